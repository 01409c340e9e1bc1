//! Fake quantization: round to the grid and stay real, so that a network learns to live with its codes.
//!
//! ```text
//! q = round(x / scale) + zero_point        y = (clip(q, qmin, qmax) - zero_point) * scale
//! dx = dy  where qmin <= q <= qmax, else 0
//! ```
//!
//! The gradient of rounding is taken to be 1 (the straight-through estimator; Bengio et al., 2013), that of clipping is
//! exact. Which values count as clipped is decided by the unclipped `q`, bounds included, as in PyTorch; TensorFlow
//! decides by `x` itself ([`fake_quantize_tensorflow`]).

use ndarray::{Array, Dimension, Zip};

use crate::error::Result;
use crate::float::{Float, check_shape};
use crate::kernel::{Isa, PART, Pool, Work, with};
use crate::quantize::params::{QuantParams, Range};
use crate::quantize::round::rounded;
use crate::quantize::scheme::{CodeRange, Rounding, Scheme};
use crate::quantize::tensor::check_one;

/// Where the gradient of a fake quantization passes.
#[derive(Clone, Debug, PartialEq)]
pub struct PassThrough<D: Dimension> {
    inside: Array<bool, D>,
}

impl<D: Dimension> PassThrough<D> {
    /// `dx` from `dy`: unchanged inside the range, 0 where `x` was clipped or NaN.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if `dy` has another shape than `x`.
    pub fn backward<F: Float>(self, mut dy: Array<F, D>) -> Result<Array<F, D>> {
        check_shape("dy", dy.shape(), self.inside.shape())?;
        Zip::from(&mut dy).and(&self.inside).for_each(|dy, &inside| {
            if !inside {
                *dy = F::zero();
            }
        });
        Ok(dy)
    }
}

/// Rounds `x` to what the codes of `scheme` stand for, under one scale and zero point, by the [`Rounding`] of the scheme: what
/// [`Scheme::quantize`] and then [`QuantParams::dequantize`] give. Fast for the two that round half to even.
///
/// ```
/// use ndarray::array;
/// use trimnet::quantize::{QuantParams, Scheme, fake_quantize};
/// let params = QuantParams { scale: 1.0, zero_point: 0 };
/// let (y, pass) = fake_quantize(&Scheme::int8_symmetric_128(), params, array![0.4, 127.49, 127.5])?;
/// assert_eq!(y, array![0.0, 127.0, 127.0]);
/// assert_eq!(pass.backward(array![1.0, 1.0, 1.0])?, array![1.0, 1.0, 0.0]);
/// # Ok::<(), trimnet::Error>(())
/// ```
///
/// # Errors
/// [`Error::OutOfRange`](crate::Error::OutOfRange) for a scale that is not finite and above 0 or so large that a code stands
/// for infinity, for a zero point that is not a code, and as [`Scheme::quantize`].
pub fn fake_quantize<F: Float, D: Dimension>(
    scheme: &Scheme,
    params: QuantParams<F>,
    mut x: Array<F, D>,
) -> Result<(Array<F, D>, PassThrough<D>)> {
    check_one(scheme, params)?;
    let low = F::of(f64::from(scheme.qmin() - params.zero_point));
    let high = F::of(f64::from(scheme.qmax() - params.zero_point));
    let (QuantParams { scale, .. }, rounding) = (params, scheme.rounding());
    let divide = match rounding {
        Rounding::HalfEvenDivide => true,
        Rounding::HalfEvenReciprocal => false,
        _ => {
            let mut inside = Array::from_elem(x.raw_dim(), false);
            // In the order of positions, which stochastic rounding draws by.
            for (i, (x, inside)) in x.iter_mut().zip(&mut inside).enumerate() {
                let q = rounded(rounding, *x, scale, i);
                *inside = (low <= q) & (q <= high);
                *x = clip(q, low, high) * scale;
            }
            return Ok((x, PassThrough { inside }));
        }
    };
    // In the order of `x`, so that both have neighbours in common.
    let mut inside = x.map(|_| false);
    let fake = |x: &mut F, inside: &mut bool| {
        let q = (if divide { *x / scale } else { *x * scale.recip() }).round_half_even();
        *inside = (low <= q) & (q <= high); // false for NaN
        *x = clip(q, low, high) * scale;
    };
    match (x.as_slice_memory_order_mut(), inside.as_slice_memory_order_mut()) {
        (Some(x), Some(inside)) => {
            let pool = Pool::for_elements(x.len());
            let isa = Isa::best();
            pool.each(x.chunks_mut(PART).zip(inside.chunks_mut(PART)), |(x, inside)| {
                with(isa, Pairs { x, inside, f: fake });
            });
        }
        _ => Zip::from(&mut x).and(&mut inside).for_each(fake),
    }
    Ok((x, PassThrough { inside }))
}

/// Calls `f` for each element and its flag.
struct Pairs<'a, F, G> {
    x: &'a mut [F],
    inside: &'a mut [bool],
    f: G,
}

impl<F: Float, G: Fn(&mut F, &mut bool)> Work for Pairs<'_, F, G> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { x, inside, f } = self;
        x.iter_mut().zip(inside).for_each(|(x, inside)| f(x, inside));
    }
}

/// TensorFlow's form: the range is nudged so that 0 is a code, ties go up, and the gradient passes where `x` itself lies
/// in the nudged range, bounds included.
///
/// # Errors
/// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `bits` is 2..=8 or 16.
pub fn fake_quantize_tensorflow<F: Float, D: Dimension>(
    bits: u8,
    codes: CodeRange,
    range: Range<F>,
    mut x: Array<F, D>,
) -> Result<(Array<F, D>, PassThrough<D>)> {
    let scheme = Scheme::affine(bits)?.with_codes(codes)?;
    let (first, last, scale) = nudged(&scheme, range.with_zero());
    let (low, high, half) = (first * scale, last * scale, F::of(0.5));
    let mut inside = Array::from_elem(x.raw_dim(), false);
    let width_overflows = !(high - low).is_finite();
    Zip::from(&mut x).and(&mut inside).for_each(|x, inside| {
        *inside = low <= *x && *x <= high;
        let inner = clip(*x, low, high);
        *x = if width_overflows {
            clip((inner / scale + half).floor(), first, last) * scale
        } else {
            ((inner - low) / scale + half).floor() * scale + low
        };
    });
    Ok((x, PassThrough { inside }))
}

/// The ends of the range in steps from 0, moved so that 0 falls on a code, and the step.
fn nudged<F: Float>(scheme: &Scheme, range: Range<F>) -> (F, F, F) {
    let (qmin, qmax) = (F::of(f64::from(scheme.qmin())), F::of(f64::from(scheme.qmax())));
    let scale = range.step(qmax - qmin);
    if scale <= F::zero() {
        return (F::zero(), F::zero(), F::one());
    }
    let zero_point = clip((qmin - range.min() / scale + F::of(0.5)).floor(), qmin, qmax);
    let params = QuantParams { scale, zero_point: zero_point.as_f64() as i32 };
    (qmin - zero_point, qmax - zero_point, scheme.bounded(params).scale)
}

/// Into `low..=high`; NaN becomes `low`.
#[inline(always)]
fn clip<F: Float>(x: F, low: F, high: F) -> F {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::round::tests::ROUNDINGS;
    use ndarray::{Array1, array};

    fn int8(zero_point: i32, x: Array1<f32>) -> (Array1<f32>, Array1<f32>) {
        let ones = Array1::ones(x.raw_dim());
        let params = QuantParams { scale: 1.0, zero_point };
        let (y, pass) = fake_quantize(&Scheme::torch_affine(8, true).unwrap(), params, x).unwrap();
        (y, pass.backward(ones).unwrap())
    }

    #[test]
    fn the_gradient_stops_where_the_unclipped_code_leaves_the_range() {
        let x = array![127.49, 127.5, -128.49, -128.5, -128.51, f32::NAN, f32::INFINITY];
        let (y, dx) = int8(0, x);
        assert_eq!(dx, array![1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(y[5], -128.0);
    }

    #[test]
    fn the_zero_point_is_added_after_rounding() {
        let (y, dx) = int8(1, array![0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 300.0, -300.0]);
        assert_eq!(y, array![0.0, 2.0, 2.0, 0.0, -2.0, 126.0, 126.0, 126.0, -129.0]);
        assert_eq!(dx, array![1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn tensorflow_rounds_ties_up_on_a_nudged_range() {
        let range = Range::new(-127.0_f32, 127.0).unwrap();
        let x = array![-1.5, -0.5, 0.5, 1.5, 2.5];
        let (y, pass) = fake_quantize_tensorflow(8, CodeRange::Narrow, range, x).unwrap();
        assert_eq!(y, array![-1.0, 0.0, 1.0, 2.0, 3.0]);
        assert_eq!(pass.backward(Array1::<f32>::ones(5)).unwrap(), Array1::<f32>::ones(5));
        let (y, pass) =
            fake_quantize_tensorflow(8, CodeRange::Narrow, range, array![-127.5, -127.0, 127.0, 127.1])
                .unwrap();
        assert_eq!(y, array![-127.0, -127.0, 127.0, 127.0]);
        assert_eq!(pass.backward(Array1::<f32>::ones(4)).unwrap(), array![0.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn every_rounding_gives_what_its_codes_stand_for() {
        let params = QuantParams { scale: 0.003_f32, zero_point: 2 };
        let x = Array1::from_iter((-900..900).map(|i| i as f32 * 0.0005).chain([0.0045, 0.0029, f32::NAN]));
        for rounding in ROUNDINGS {
            let scheme = Scheme::int8_symmetric_128().with_rounding(rounding);
            let codes = scheme.quantize(x.as_slice().unwrap(), params).unwrap();
            let expected = Array1::from_iter(codes.iter().map(|&code| params.dequantize(code)));
            let (y, pass) = fake_quantize(&scheme, params, x.clone()).unwrap();
            assert_eq!(y, expected, "{rounding:?}");
            let (mut into, pool) = (Array1::zeros(x.len()), Pool::new(2));
            scheme.fake_quantize_into(&[params], x.view(), into.view_mut(), &pool).unwrap();
            assert_eq!(into, expected, "{rounding:?}");
            // Positions count in rows, whatever the order in memory.
            let turned = x.to_shape((3, 601)).unwrap().reversed_axes().as_standard_layout().into_owned();
            let (turned, _) = fake_quantize(&scheme, params, turned.reversed_axes()).unwrap();
            assert!(turned.iter().eq(&expected), "{rounding:?}");
            // Where a code in the middle was clipped, the gradient stops.
            let dx = pass.backward(Array1::<f32>::ones(x.len())).unwrap();
            let clipped = |(&code, &dx): (&i32, &f32)| (-128 < code && code < 127) <= (dx == 1.0);
            assert!(codes.iter().zip(&dx).all(clipped), "{rounding:?}");
        }
    }

    #[test]
    fn the_widest_range_stays_finite() {
        let range = Range::new(-3e38_f32, 3e38).unwrap();
        let x = array![-3e38, -1e38, 0.0, 1e38, 3e38];
        let (y, _) = fake_quantize_tensorflow(8, CodeRange::Full, range, x.clone()).unwrap();
        assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1.3e36 * 2.0), "{y}");
        let range = Range::new(f64::MIN, f64::MAX).unwrap();
        let (y, _) = fake_quantize_tensorflow(2, CodeRange::Full, range, array![f64::MIN, f64::MAX]).unwrap();
        assert!(y[0] < -1e307 && y[1] > 1e307 && y.iter().all(|y| y.is_finite()), "{y}");
    }

    #[test]
    fn a_range_of_nothing_gives_zeros() {
        let range = Range::new(0.0_f64, 0.0).unwrap();
        let (y, _) = fake_quantize_tensorflow(8, CodeRange::Full, range, array![0.0, 1.0]).unwrap();
        assert_eq!(y, array![0.0, 0.0]);
    }

    #[test]
    fn refuses_parameters_and_gradients_that_do_not_fit() {
        let scheme = Scheme::default();
        assert!(fake_quantize(&scheme, QuantParams { scale: 0.0, zero_point: 0 }, array![1.0]).is_err());
        assert!(fake_quantize(&scheme, QuantParams { scale: 1.0, zero_point: 999 }, array![1.0]).is_err());
        assert!(fake_quantize(&scheme, QuantParams { scale: f32::MAX, zero_point: 0 }, array![1.0]).is_err());
        let (_, pass) =
            fake_quantize(&scheme, QuantParams { scale: 1.0, zero_point: 0 }, array![1.0]).unwrap();
        assert!(pass.backward(array![1.0, 2.0]).is_err());
    }
}
