//! Quantizing into memory that is there already: a fresh place for 64 MB costs ten times the work.
//!
//! ```text
//! quantize        code = clip(round(x / scale) + zero_point, qmin, qmax)
//! dequantize      x    = (code - zero_point) * scale
//! fake quantize   both, and no codes in between
//! ```
//!
//! One pass over memory on all threads of a pool, per tensor, channel or group; the same bits for any number of threads.

use ndarray::{Array, ArrayView, ArrayViewMut, Dimension};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::kernel::{Code, Fill, Isa, Plain, Pool, Stream, Streams, fetch_ahead};
use crate::quantize::layout::Layout;
use crate::quantize::params::QuantParams;
use crate::quantize::round::{self, Params, rounded};
use crate::quantize::scheme::{Rounding, Scheme};
use crate::quantize::tensor;

impl Scheme {
    /// Writes the codes of `x`, with parameters in the order of the scheme's granularity. Infinities saturate; NaN
    /// becomes the lowest code.
    ///
    /// ```
    /// use ndarray::{Array2, array};
    /// use trimnet::kernel::Pool;
    /// use trimnet::quantize::{QuantParams, Scheme};
    ///
    /// let scheme = Scheme::int8_symmetric_127().per_channel(0);
    /// let params = [0.5f32, 2.0].map(|scale| QuantParams { scale, zero_point: 0 });
    /// let x = array![[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]];
    /// let (mut codes, mut back) = (Array2::<i8>::zeros((2, 3)), Array2::zeros((2, 3)));
    /// scheme.quantize_into(&params, x.view(), codes.view_mut(), &Pool::shared())?;
    /// assert_eq!(codes, array![[2, -4, 6], [2, 2, -3]]); // 5 / 2 is a tie: to even
    /// scheme.dequantize_into(&params, codes.view(), back.view_mut(), &Pool::shared())?;
    /// assert_eq!(back, array![[1.0, -2.0, 3.0], [4.0, 4.0, -6.0]]);
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the codes of the scheme do not fit `C`, or for an axis that `x` has not;
    /// [`Error::Shape`] for `codes` of another shape or another number of parameters than the granularity asks for;
    /// [`Error::OutOfRange`] unless scales are finite and above 0 and zero points are codes.
    pub fn quantize_into<F: Float, C: Code + Send, D: Dimension>(
        &self,
        params: &[QuantParams<F>],
        x: ArrayView<'_, F, D>,
        codes: ArrayViewMut<'_, C, D>,
        pool: &Pool,
    ) -> Result<()> {
        let (least, largest) = C::RANGE;
        if self.qmin() < least || self.qmax() > largest {
            return Err(Error::Unsupported {
                what: "quantizing to bytes",
                reason: format!("codes {}..={} do not fit {least}..={largest}", self.qmin(), self.qmax()),
            });
        }
        self.transform(params, x, codes, |layout, x, codes| {
            tensor::quantize_into(pool, streams(codes), self, params, layout, x, codes);
        })
    }

    /// Writes the numbers that `codes` stand for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an axis that `codes` has not; [`Error::Shape`] for `x` of another shape or another
    /// number of parameters than the granularity asks for; [`Error::OutOfRange`] unless scales are finite and above 0
    /// and zero points are codes.
    pub fn dequantize_into<F: Float, C: Code + Sync, D: Dimension>(
        &self,
        params: &[QuantParams<F>],
        codes: ArrayView<'_, C, D>,
        x: ArrayViewMut<'_, F, D>,
        pool: &Pool,
    ) -> Result<()> {
        self.transform(params, codes, x, |layout, codes, x| {
            let stream = streams(x);
            layout.each_part(pool, codes, x, stream, |stream, scales, _, codes, x| {
                round::dequantize(stream, Params::of(&params[scales]), codes, x);
            });
        })
    }

    /// Writes what `x` becomes when it is quantized and dequantized: the numbers of
    /// [`fake_quantize`](crate::quantize::fake_quantize), per tensor, channel or group.
    ///
    /// # Errors
    /// As [`dequantize_into`](Self::dequantize_into).
    pub fn fake_quantize_into<F: Float, D: Dimension>(
        &self,
        params: &[QuantParams<F>],
        x: ArrayView<'_, F, D>,
        y: ArrayViewMut<'_, F, D>,
        pool: &Pool,
    ) -> Result<()> {
        let rounding = self.rounding();
        let (qmin, qmax) = (self.qmin(), self.qmax());
        self.transform(params, x, y, |layout, x, y| {
            let stream = streams(y);
            layout.each_part(pool, x, y, stream, |stream, scales, first, x, y| {
                let (params, each) = (Params::of(&params[scales.clone()]), &params[scales]);
                let divide = match rounding {
                    Rounding::HalfEvenDivide => true,
                    Rounding::HalfEvenReciprocal => false,
                    _ => {
                        for (i, ((y, &x), &params)) in
                            y.iter_mut().zip(x).zip(each.iter().cycle()).enumerate()
                        {
                            let steps = rounded(rounding, x, params.scale, first + i);
                            *y = number(steps, params, (bound(qmin, params), bound(qmax, params)));
                        }
                        return;
                    }
                };
                stream.write(y, &mut Fake { qmin, qmax, divide, params, x });
            });
        })
    }

    /// Checks, and gives `run` both tensors in row-major order.
    fn transform<F: Float, A: Copy + Default, B: Copy + Default, D: Dimension>(
        &self,
        params: &[QuantParams<F>],
        from: ArrayView<'_, A, D>,
        mut to: ArrayViewMut<'_, B, D>,
        run: impl FnOnce(&Layout, &[A], &mut [B]),
    ) -> Result<()> {
        check_shape("the place for the result", to.shape(), from.shape())?;
        let layout = Layout::new(self.granularity(), from.shape())?;
        tensor::check_params(self, params, &layout)?;
        let from = from.as_standard_layout();
        let from = from.as_slice().unwrap_or_default(); // standard layout: always a slice
        match to.as_slice_mut() {
            Some(to) => run(&layout, from, to),
            None => {
                let mut rows = Array::<B, D>::from_elem(to.raw_dim(), B::default());
                run(&layout, from, rows.as_slice_mut().unwrap_or_default());
                to.zip_mut_with(&rows, |to, &x| *to = x);
            }
        }
        Ok(())
    }
}

/// Makes streams for parts of this result.
fn streams<T: Plain>(result: &[T]) -> impl Fn() -> Stream<T> + Sync + use<T> {
    let whole = result.len();
    move || Stream::new(Isa::best(), whole)
}

/// How far ahead of their use numbers are asked for, where asking helps.
const AHEAD_BYTES: usize = 4096;

struct Fake<'a, F> {
    qmin: i32,
    qmax: i32,
    divide: bool,
    params: Params<'a, F>,
    x: &'a [F],
}

impl<F: Float> Fill<F> for Fake<'_, F> {
    #[inline(always)]
    fn fill(&mut self, at: usize, y: &mut [F]) {
        let Self { qmin, qmax, divide, params, x } = *self;
        let x = &x[at..][..y.len()];
        if Isa::best().streams() == Streams::Asked {
            fetch_ahead(x, AHEAD_BYTES);
        }
        match params {
            Params::One(params) => {
                let (low, high) = (bound(qmin, params), bound(qmax, params));
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = fake(divide, x, params, (low, high));
                }
            }
            Params::Each(params) => {
                for ((y, &x), &params) in y.iter_mut().zip(x).zip(&params[at..]) {
                    *y = fake(divide, x, params, (bound(qmin, params), bound(qmax, params)));
                }
            }
        }
    }
}

/// What is done to one number, between the bounds of its steps from 0.
#[inline(always)]
fn fake<F: Float>(divide: bool, x: F, params: QuantParams<F>, (low, high): (F, F)) -> F {
    let steps = if divide { x / params.scale } else { x * params.scale.recip() };
    number(steps.round_half_even(), params, (low, high))
}

/// An end of the codes, in steps from 0.
#[inline(always)]
fn bound<F: Float>(code: i32, params: QuantParams<F>) -> F {
    F::of_int(code - params.zero_point)
}

/// What is `steps` from 0, clipped.
#[inline(always)]
fn number<F: Float>(steps: F, params: QuantParams<F>, (low, high): (F, F)) -> F {
    let steps = if steps > low { steps } else { low }; // NaN becomes low
    (if steps < high { steps } else { high }) * params.scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{QuantizedTensor, fake_quantize};
    use crate::traits::Compressed;
    use ndarray::Array2;

    fn sample(rows: usize, columns: usize) -> Array2<f32> {
        let special = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, 0.25, -0.75];
        Array2::from_shape_fn((rows, columns), |(i, j)| match (i * columns + j) % 50 {
            at @ 0..8 => special[at],
            _ => ((i * 31 + j * 17) % 1001) as f32 * 0.1 - 50.0,
        })
    }

    #[test]
    fn into_memory_gives_the_bits_of_the_tensor_on_any_number_of_threads() {
        for (rows, columns) in [(3, 67), (5, 30_000), (0, 4)] {
            let x = sample(rows, columns);
            for scheme in [
                Scheme::int8_symmetric_127(),
                Scheme::int8_symmetric_127().per_channel(0),
                Scheme::int8_symmetric_127().per_channel(1).with_rounding(Rounding::HalfEvenReciprocal),
                Scheme::int8_symmetric_127().per_channel(1).with_rounding(Rounding::Stochastic { seed: 2 }),
                Scheme::int8_symmetric_127().with_rounding(Rounding::HalfUp),
                Scheme::int8_symmetric_127().per_group(1, 32).unwrap(),
                Scheme::int8_symmetric_127().per_group(0, 2).unwrap(),
            ] {
                let scales = Layout::new(scheme.granularity(), x.shape()).unwrap().scales();
                let params: Vec<_> = (0..scales)
                    .map(|i| QuantParams { scale: 0.1 + (i % 7) as f32 * 0.05, zero_point: i as i32 % 5 })
                    .collect();
                let expected = QuantizedTensor::with_params(scheme, &params, x.view()).unwrap();
                let back = expected.decompress().unwrap();
                for pool in [Pool::single(), Pool::new(3)] {
                    let mut codes = Array2::<i8>::zeros((rows, columns));
                    scheme.quantize_into(&params, x.view(), codes.view_mut(), &pool).unwrap();
                    assert_eq!(codes.mapv(i32::from), expected.codes());
                    let mut turned = Array2::<i8>::zeros((columns, rows));
                    let place = turned.view_mut().reversed_axes();
                    scheme.quantize_into(&params, x.view(), place, &pool).unwrap();
                    assert_eq!(turned.t(), codes);
                    let mut y = Array2::zeros((rows, columns));
                    scheme.dequantize_into(&params, turned.t(), y.view_mut(), &pool).unwrap();
                    assert_eq!(y, back);
                    scheme.fake_quantize_into(&params, x.view(), y.view_mut(), &pool).unwrap();
                    // -0 * scale is -0, code 0 stands for 0: equal numbers.
                    assert_eq!(y, back);
                    if let [one] = params[..] {
                        assert_eq!(fake_quantize(&scheme, one, x.clone()).unwrap().0, y);
                    }
                }
            }
        }
    }

    #[test]
    fn refuses_codes_that_do_not_fit_the_bytes() {
        let (x, params) = (sample(2, 2), [QuantParams { scale: 1.0, zero_point: 0 }]);
        let mut codes = Array2::<u8>::zeros((2, 2));
        let symmetric = Scheme::int8_symmetric_127();
        assert!(symmetric.quantize_into(&params, x.view(), codes.view_mut(), &Pool::single()).is_err());
        let mut codes = Array2::<i8>::zeros((2, 3));
        assert!(symmetric.quantize_into(&params, x.view(), codes.view_mut(), &Pool::single()).is_err());
        let mut codes = Array2::<i8>::zeros((2, 2));
        assert!(symmetric.quantize_into(&[], x.view(), codes.view_mut(), &Pool::single()).is_err());
        assert!(symmetric.quantize_into(&params, x.view(), codes.view_mut(), &Pool::single()).is_ok());
    }
}
