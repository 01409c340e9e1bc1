//! Numbers to codes: the loops, one for each rounding.
//!
//! ```text
//! code = round(clip(x / scale, qmin - zero_point, qmax - zero_point)) + zero_point
//! ```
//!
//! Clipped first: the bounds are integers, so rounding cannot leave them again, and what remains is small enough for
//! an addition to round it. The comparisons send NaN to the lowest code, and infinities to the ends.

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Fill, Isa, Plain, Stream, Streams, Work, fetch_ahead, in_turns, with};
use crate::quantize::params::QuantParams;
use crate::quantize::scheme::{Rounding, Scheme};

/// A place for codes: the low 8 or 16 bits, or all of them.
pub(crate) trait Code: Plain {
    fn of(code: i32) -> Self;
}

impl<C: crate::kernel::Code> Code for C {
    #[inline(always)]
    fn of(code: i32) -> Self {
        C::of_i32(code)
    }
}

impl Code for u16 {
    #[inline(always)]
    fn of(code: i32) -> Self {
        code as u16
    }
}

impl Code for i32 {
    #[inline(always)]
    fn of(code: i32) -> Self {
        code
    }
}

/// Which parameters the elements of a run have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Params<'a, F> {
    /// All the same.
    One(QuantParams<F>),
    /// Each its own.
    Each(&'a [QuantParams<F>]),
}

impl<'a, F: Float> Params<'a, F> {
    /// Those of a [`Run`](crate::quantize::layout::Run).
    pub(crate) fn of(params: &'a [QuantParams<F>]) -> Self {
        match params {
            [one] => Self::One(*one),
            each => Self::Each(each),
        }
    }
}

/// Numbers of a block: long slices are asked for block by block, or read at several places in turns.
const BLOCK: usize = 64;

/// How far ahead of their use numbers are asked for, where asking helps.
const AHEAD_BYTES: usize = 8192;

/// The codes of `x`, whose first element is the `first`-th of its tensor.
pub(crate) fn quantize<F: Float, C: Code>(
    stream: &mut Stream<C>,
    scheme: &Scheme,
    params: Params<'_, F>,
    first: usize,
    x: &[F],
    codes: &mut [C],
) {
    let isa = Isa::best();
    with(isa, Quantize { streams: isa.streams(), stream, scheme, params, first, x, codes });
}

/// One loop for each rounding.
struct Quantize<'a, F, C> {
    streams: Streams,
    stream: &'a mut Stream<C>,
    scheme: &'a Scheme,
    params: Params<'a, F>,
    first: usize,
    x: &'a [F],
    codes: &'a mut [C],
}

impl<F: Float, C: Code> Work for Quantize<'_, F, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { streams, stream, scheme, params, first, x, codes } = self;
        let half = F::of(0.5);
        let to = (streams, stream, codes);
        match scheme.rounding() {
            Rounding::HalfEvenDivide => run(scheme, params, x, to, divide, |steps, _| steps),
            Rounding::HalfEvenReciprocal => {
                run(scheme, params, x, to, |x, s| x * s.recip(), |steps, _| steps);
            }
            Rounding::HalfAwayFromZero => run(scheme, params, x, to, divide, |steps, _| steps.round()),
            Rounding::HalfUp => run(scheme, params, x, to, divide, |steps, _| (steps + half).floor()),
            Rounding::Truncate => run(scheme, params, x, to, divide, |steps, _| steps.trunc()),
            Rounding::Stochastic { seed } => {
                let draw = |i: usize| F::of(uniform(seed, (first + i) as u64));
                // The sum may round up to the next integer but one: an integer stays what it is.
                let up = |steps: F, i| (steps + draw(i)).floor().min(steps.ceil());
                run(scheme, params, x, to, divide, up);
            }
        }
    }
}

/// The steps from 0 to `x`, the `i`-th of its tensor, as an integer that is not clipped: the definition of every rounding.
pub(super) fn rounded<F: Float>(rounding: Rounding, x: F, scale: F, i: usize) -> F {
    let steps = divide(x, scale);
    match rounding {
        Rounding::HalfEvenDivide => steps.round_half_even(),
        Rounding::HalfEvenReciprocal => (x * scale.recip()).round_half_even(),
        Rounding::HalfAwayFromZero => steps.round(),
        Rounding::HalfUp => (steps + F::of(0.5)).floor(),
        Rounding::Truncate => steps.trunc(),
        Rounding::Stochastic { seed } => (steps + F::of(uniform(seed, i as u64))).floor().min(steps.ceil()),
    }
}

/// The numbers that `codes` stand for.
pub(crate) fn dequantize<F: Float, C: crate::kernel::Code>(
    stream: &mut Stream<F>,
    params: Params<'_, F>,
    codes: &[C],
    x: &mut [F],
) {
    stream.write(x, &mut Dequantize { params, codes });
}

struct Dequantize<'a, F, C> {
    params: Params<'a, F>,
    codes: &'a [C],
}

impl<F: Float, C: crate::kernel::Code> Fill<F> for Dequantize<'_, F, C> {
    #[inline(always)]
    fn fill(&mut self, at: usize, x: &mut [F]) {
        let codes = &self.codes[at..];
        match self.params {
            Params::One(params) => {
                for (x, &code) in x.iter_mut().zip(codes) {
                    *x = number(code, params);
                }
            }
            Params::Each(params) => {
                for ((x, &code), &params) in x.iter_mut().zip(codes).zip(&params[at..]) {
                    *x = number(code, params);
                }
            }
        }
    }
}

/// The zero point is a code, so that the difference fits.
#[inline(always)]
fn number<F: Float, C: crate::kernel::Code>(code: C, params: QuantParams<F>) -> F {
    F::of_int(code.as_i32().wrapping_sub(params.zero_point)) * params.scale
}

#[inline(always)]
fn divide<F: Float>(x: F, scale: F) -> F {
    x / scale
}

/// `round` gives an integer, or any number whose nearest integer is meant.
#[inline(always)]
fn run<F: Float, C: Code>(
    scheme: &Scheme,
    params: Params<'_, F>,
    x: &[F],
    (streams, stream, codes): (Streams, &mut Stream<C>, &mut [C]),
    steps: impl Fn(F, F) -> F,
    round: impl Fn(F, usize) -> F,
) {
    let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
    let code = |x: F, params: QuantParams<F>, i: usize| {
        let low = F::of_int(qmin - params.zero_point);
        let high = F::of_int(qmax - params.zero_point);
        let steps = steps(x, params.scale);
        let steps = if steps > low { steps } else { low };
        let steps = if steps < high { steps } else { high };
        C::of(round(steps, i).small_int() + params.zero_point)
    };
    let asks = streams == Streams::Asked;
    let mut coded = Coded { asks, params, x, code };
    match params {
        _ if asks => stream.fill(codes, &mut coded),
        Params::One(_) => {
            let (blocks, rest) = codes.as_chunks_mut::<BLOCK>();
            let count = blocks.len();
            for at in (0..count).map(|at| in_turns(at, count)) {
                coded.fill(at * BLOCK, &mut blocks[at]);
            }
            coded.fill(count * BLOCK, rest);
        }
        Params::Each(_) => coded.fill(0, codes),
    }
}

/// Makes codes part by part.
struct Coded<'a, F, Q> {
    asks: bool,
    params: Params<'a, F>,
    x: &'a [F],
    code: Q,
}

impl<F: Float, C: Code, Q: Fn(F, QuantParams<F>, usize) -> C> Fill<C> for Coded<'_, F, Q> {
    #[inline(always)]
    fn fill(&mut self, at: usize, codes: &mut [C]) {
        let x = &self.x[at..][..codes.len()];
        match self.params {
            Params::One(params) => {
                for (n, (codes, x)) in codes.chunks_mut(BLOCK).zip(x.chunks(BLOCK)).enumerate() {
                    if self.asks {
                        fetch_ahead(x, AHEAD_BYTES);
                    }
                    for (i, (to, &x)) in codes.iter_mut().zip(x).enumerate() {
                        *to = (self.code)(x, params, at + n * BLOCK + i);
                    }
                }
            }
            Params::Each(params) => {
                for (i, ((to, &x), &params)) in codes.iter_mut().zip(x).zip(&params[at..]).enumerate() {
                    *to = (self.code)(x, params, at + i);
                }
            }
        }
    }
}

/// The `i`-th number of a stream in 0..1: the SplitMix64 finalizer over a counter, so that a draw depends on its
/// position and not on the order in which elements are visited.
#[inline(always)]
fn uniform(seed: u64, i: u64) -> f64 {
    let mut z = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

impl Scheme {
    /// The codes of `x` under one scale and zero point. Infinities saturate; NaN becomes the lowest code.
    ///
    /// ```
    /// use trimnet::quantize::{QuantParams, Scheme};
    ///
    /// let params = QuantParams { scale: 0.5f32, zero_point: 0 };
    /// assert_eq!(Scheme::int8_symmetric_127().quantize(&[0.25, 0.75, 1e9, f32::NAN], params)?, [0, 2, 127, -127]);
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless the scale is finite and above 0, the zero point is a code, and for
    /// [`Rounding::HalfEvenReciprocal`] the reciprocal of the scale is finite.
    pub fn quantize<F: Float>(&self, x: &[F], params: QuantParams<F>) -> Result<Vec<i32>> {
        self.check(params)?;
        let mut codes = vec![0; x.len()];
        quantize(&mut Stream::near(), self, Params::One(params), 0, x, &mut codes);
        Ok(codes)
    }

    /// The sum of squared differences between `x` and what its codes stand for: what a range search minimises.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn squared_error<F: Float>(&self, x: &[F], params: QuantParams<F>) -> Result<f64> {
        self.squared_error_in(x, params, 1.0)
    }

    /// [`squared_error`](Self::squared_error) of numbers divided by `unit`.
    pub(super) fn squared_error_in<F: Float>(
        &self,
        x: &[F],
        params: QuantParams<F>,
        unit: f64,
    ) -> Result<f64> {
        self.check(params)?;
        let ordinary = unit == 1.0;
        let error = |code: i32, x: F| {
            let error = (params.dequantize(code) - x).as_f64();
            square(if ordinary { error } else { error / unit })
        };
        let (mut stream, mut codes) = (Stream::near(), [0i32; CHUNK]);
        let mut sum = 0.0;
        for (n, x) in x.chunks(CHUNK).enumerate() {
            let codes = &mut codes[..x.len()];
            quantize(&mut stream, self, Params::One(params), n * CHUNK, x, codes);
            sum += codes.iter().zip(x).map(|(&code, &x)| error(code, x)).sum::<f64>();
        }
        Ok(sum)
    }

    /// Refuses parameters that no data could have.
    pub(crate) fn check<F: Float>(&self, params: QuantParams<F>) -> Result<()> {
        if !(params.scale > F::zero() && params.scale.is_finite()) {
            return Err(Error::OutOfRange {
                name: "scale",
                value: params.scale.as_f64(),
                range: "finite and above 0",
            });
        }
        if self.rounding() == Rounding::HalfEvenReciprocal && !params.scale.recip().is_finite() {
            return Err(Error::OutOfRange {
                name: "scale",
                value: params.scale.as_f64(),
                range: "large enough for a finite reciprocal",
            });
        }
        if !(self.qmin()..=self.qmax()).contains(&params.zero_point) {
            return Err(Error::OutOfRange {
                name: "zero point",
                value: params.zero_point.into(),
                range: "a code of the scheme",
            });
        }
        Ok(())
    }
}

/// Codes that are on their way from one form to another at a time: they stay in the nearest cache.
pub(crate) const CHUNK: usize = 1024;

fn square(x: f64) -> f64 {
    x * x
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const ONE: QuantParams<f64> = QuantParams { scale: 1.0, zero_point: 0 };
    const X: [f64; 8] = [-2.5, -1.5, -0.5, -0.2, 0.5, 1.5, 2.5, 2.7];

    fn codes(rounding: Rounding) -> Vec<i32> {
        Scheme::int8_symmetric_128().with_rounding(rounding).quantize(&X, ONE).unwrap()
    }

    pub(in crate::quantize) const ROUNDINGS: [Rounding; 6] = [
        Rounding::HalfEvenDivide,
        Rounding::HalfEvenReciprocal,
        Rounding::HalfAwayFromZero,
        Rounding::HalfUp,
        Rounding::Truncate,
        Rounding::Stochastic { seed: 5 },
    ];

    #[test]
    fn ties_go_where_the_name_says() {
        assert_eq!(codes(Rounding::HalfEvenDivide), [-2, -2, 0, 0, 0, 2, 2, 3]);
        assert_eq!(codes(Rounding::HalfEvenReciprocal), [-2, -2, 0, 0, 0, 2, 2, 3]);
        assert_eq!(codes(Rounding::HalfAwayFromZero), [-3, -2, -1, 0, 1, 2, 3, 3]);
        assert_eq!(codes(Rounding::HalfUp), [-2, -1, 0, 0, 1, 2, 3, 3]);
        assert_eq!(codes(Rounding::Truncate), [-2, -1, 0, 0, 0, 1, 2, 2]);
    }

    #[test]
    fn every_loop_rounds_as_defined() {
        let x: Vec<f32> =
            (-2000..2000).map(|i| i as f32 * 0.0015).chain([1e30, -1e30, f32::INFINITY]).collect();
        let params = QuantParams { scale: 0.003, zero_point: 3 };
        for rounding in ROUNDINGS {
            let codes = Scheme::int8_symmetric_128().with_rounding(rounding).quantize(&x, params).unwrap();
            let code = |(i, &x)| (rounded(rounding, x, params.scale, i) + 3.0).clamp(-128.0, 127.0) as i32;
            assert!(x.iter().enumerate().map(code).eq(codes), "{rounding:?}");
        }
    }

    #[test]
    fn the_largest_number_below_a_half_is_not_rounded_up() {
        let x = [0.5f32.next_down(), 0.5f64.next_down() as f32];
        let params = QuantParams { scale: 1.0, zero_point: 0 };
        assert_eq!(Scheme::default().quantize(&x, params).unwrap(), [0, 0]);
    }

    #[test]
    fn stochastic_rounding_keeps_the_mean_and_repeats() {
        let scheme = Scheme::default().with_rounding(Rounding::Stochastic { seed: 7 });
        let n = 100_000;
        let codes = scheme.quantize(&vec![0.3; n], ONE).unwrap();
        assert!(codes.iter().all(|&code| code == 0 || code == 1));
        let mean = codes.iter().sum::<i32>() as f64 / n as f64;
        assert!((mean - 0.3).abs() < 5.0 * (0.21 / n as f64).sqrt(), "{mean}");
        assert_eq!(codes, scheme.quantize(&vec![0.3; n], ONE).unwrap());
        assert_eq!(codes[..8], [0, 0, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn stochastic_rounding_leaves_integers_alone() {
        let scheme = Scheme::default().with_rounding(Rounding::Stochastic { seed: 1 });
        let x: Vec<f32> = (-127..=127).map(|i| i as f32).collect();
        let codes = scheme.quantize(&x, QuantParams { scale: 1.0, zero_point: 0 }).unwrap();
        assert!(codes.iter().copied().eq(-127..=127));
    }

    #[test]
    fn a_long_slice_gives_the_codes_of_its_parts() {
        let x: Vec<f64> = (0..200 * BLOCK + 5).map(|i| (i * 37 % 1001) as f64 * 0.21 - 105.0).collect();
        for rounding in [Rounding::HalfEvenDivide, Rounding::Stochastic { seed: 3 }] {
            let scheme = Scheme::int8_symmetric_127().with_rounding(rounding);
            let (mut whole, mut parts) = (vec![0i8; x.len()], vec![0i8; x.len()]);
            let past_caches = &mut Stream::new(Isa::best(), usize::MAX);
            quantize(past_caches, &scheme, Params::One(ONE), 0, &x, &mut whole);
            for (i, (x, codes)) in x.chunks(7).zip(parts.chunks_mut(7)).enumerate() {
                quantize(&mut Stream::near(), &scheme, Params::One(ONE), 7 * i, x, codes);
            }
            assert_eq!(whole, parts);
        }
    }

    #[test]
    fn refuses_scales_and_zero_points_that_no_data_could_have() {
        for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Scheme::default().quantize(&X, QuantParams { scale, zero_point: 0 }).is_err());
        }
        let tiny = QuantParams { scale: f32::from_bits(1), zero_point: 0 };
        let reciprocal = Scheme::default().with_rounding(Rounding::HalfEvenReciprocal);
        let error = reciprocal.quantize(&[0.0], tiny).unwrap_err().to_string();
        assert!(error.ends_with("allowed is large enough for a finite reciprocal"), "{error}");
        assert_eq!(Scheme::default().quantize(&[0.0, tiny.scale], tiny).unwrap(), [0, 1]);
        for zero_point in [i32::MIN, -128, 128, i32::MAX] {
            assert!(Scheme::default().squared_error(&X, QuantParams { scale: 1.0, zero_point }).is_err());
        }
    }

    #[test]
    fn squared_error_is_that_of_each_element() {
        let error = Scheme::int8_symmetric_128().squared_error(&X, ONE).unwrap();
        assert!((error - (6.0 * 0.25 + 0.04 + 0.09)).abs() < 1e-12);
    }
}
