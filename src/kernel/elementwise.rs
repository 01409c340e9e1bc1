//! One number at a time, many at once: quantize, dequantize, the range of a tensor, relu.
//!
//! ```text
//! quantize     code = clamp(rne(x / scale) + zero_point, low, high)        NaN gives low
//! dequantize   x = (code - zero_point) * scale
//! ```
//!
//! The division is a division: multiplying by `1 / scale` rounds otherwise on ties. Bodies are plain
//! Rust, compiled once for each instruction set; all sets give the same bits.

use super::Isa;
use super::real::Real;
use super::stream::Plain;

/// A computation that is compiled for each instruction set: `run` has to be `#[inline(always)]`.
pub(crate) trait Work {
    /// What it results in.
    type Output;

    /// Does it.
    fn run(self) -> Self::Output;
}

/// Runs `work` compiled for `isa`.
pub(crate) fn with<W: Work>(isa: Isa, work: W) -> W::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(cpu) => cpu.with(work),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(cpu) => cpu.with(work),
        // NEON belongs to the plain 64-bit Arm target.
        _ => work.run(),
    }
}

/// The type of a code: `u8` or `i8`.
pub trait Code: Plain + 'static {
    /// Least and largest code.
    const RANGE: (i32, i32);

    /// The code with the low bits of `x`.
    #[doc(hidden)]
    fn of_i32(x: i32) -> Self;

    /// The code as a number.
    #[doc(hidden)]
    fn as_i32(self) -> i32;
}

macro_rules! code {
    ($t:ty) => {
        impl Code for $t {
            const RANGE: (i32, i32) = (<$t>::MIN as i32, <$t>::MAX as i32);

            #[inline(always)]
            fn of_i32(x: i32) -> Self {
                x as $t
            }

            #[inline(always)]
            fn as_i32(self) -> i32 {
                i32::from(self)
            }
        }
    };
}

code!(u8);
code!(i8);

/// The same bytes, as two's complement.
pub(crate) fn as_signed(codes: &[u8]) -> &[i8] {
    // SAFETY: `u8` and `i8` have the same size and alignment, and every byte is a value of both.
    unsafe { std::slice::from_raw_parts(codes.as_ptr().cast(), codes.len()) }
}

/// Where codes lie among the real numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid<F> {
    /// Distance of two codes.
    pub scale: F,
    /// The code of zero, `low..=high`.
    pub zero_point: i32,
    /// Least code in use.
    pub low: i32,
    /// Largest code in use.
    pub high: i32,
}

impl<F> Grid<F> {
    fn check<C: Code>(&self) {
        let (least, largest) = C::RANGE;
        let Self { zero_point, low, high, .. } = *self;
        assert!(least <= low && low <= high && high <= largest, "codes {low}..={high}");
        assert!((low..=high).contains(&zero_point), "zero point {zero_point} outside {low}..={high}");
    }
}

/// Writes the code of each number of `x`.
///
/// # Panics
/// If lengths differ, or the grid does not fit the type of the codes.
///
/// ```
/// use trimnet::kernel::{Grid, Isa, quantize};
///
/// let mut codes = [0i8; 5];
/// let grid = Grid { scale: 1.0, zero_point: 0, low: -128, high: 127 };
/// quantize(Isa::best(), &[0.5, 1.5, 1e9, f32::NEG_INFINITY, f32::NAN], grid, &mut codes);
/// assert_eq!(codes, [0, 2, 127, -128, -128]);
/// ```
pub fn quantize<F: Real, C: Code>(isa: Isa, x: &[F], grid: Grid<F>, codes: &mut [C]) {
    struct Quantize<'a, F, C>(&'a [F], Grid<F>, &'a mut [C]);

    impl<F: Real, C: Code> Work for Quantize<'_, F, C> {
        type Output = ();

        #[inline(always)]
        fn run(self) {
            let Self(x, Grid { scale, zero_point, low, high }, codes) = self;
            let (low, high) = (F::of_i32(low - zero_point), F::of_i32(high - zero_point));
            for (code, &x) in codes.iter_mut().zip(x) {
                // Clamping first gives the same code, and keeps the number small enough to round. NaN is not
                // above anything.
                let x = x / scale;
                let x = if x > low { x } else { low };
                let x = if x < high { x } else { high };
                *code = C::of_i32(x.round_small() + zero_point);
            }
        }
    }

    grid.check::<C>();
    assert_eq!(x.len(), codes.len(), "as many codes as numbers");
    with(isa, Quantize(x, grid, codes));
}

/// Writes the number of each code.
///
/// # Panics
/// If lengths differ.
pub fn dequantize<F: Real, C: Code>(isa: Isa, codes: &[C], scale: F, zero_point: i32, x: &mut [F]) {
    struct Dequantize<'a, F, C>(&'a [C], F, i32, &'a mut [F]);

    impl<F: Real, C: Code> Work for Dequantize<'_, F, C> {
        type Output = ();

        #[inline(always)]
        fn run(self) {
            let Self(codes, scale, zero_point, x) = self;
            for (x, code) in x.iter_mut().zip(codes) {
                *x = F::of_i32(code.as_i32().wrapping_sub(zero_point)) * scale;
            }
        }
    }

    assert_eq!(x.len(), codes.len(), "as many codes as numbers");
    with(isa, Dequantize(codes, scale, zero_point, x));
}

/// The least and the largest number, NaN left out: `(inf, -inf)` if there is none.
///
/// ```
/// use trimnet::kernel::{Isa, min_max};
///
/// assert_eq!(min_max(Isa::best(), &[2.0, f32::NAN, -1.0]), (-1.0, 2.0));
/// ```
pub fn min_max<F: Real>(isa: Isa, x: &[F]) -> (F, F) {
    struct MinMax<'a, F>(&'a [F]);

    impl<F: Real> Work for MinMax<'_, F> {
        type Output = (F, F);

        #[inline(always)]
        fn run(self) -> (F, F) {
            // As many lanes as hide the latency of a comparison on any set.
            const LANES: usize = 64;
            let (mut low, mut high) = ([F::INFINITY; LANES], [F::NEG_INFINITY; LANES]);
            let (whole, rest) = self.0.as_chunks::<LANES>();
            for x in whole {
                for i in 0..LANES {
                    low[i] = if x[i] < low[i] { x[i] } else { low[i] };
                    high[i] = if x[i] > high[i] { x[i] } else { high[i] };
                }
            }
            let least = |a, b| if b < a { b } else { a };
            let largest = |a, b| if b > a { b } else { a };
            let low = low.into_iter().chain(rest.iter().copied()).fold(F::INFINITY, least);
            let high = high.into_iter().chain(rest.iter().copied()).fold(F::NEG_INFINITY, largest);
            (low, high)
        }
    }

    with(isa, MinMax(x))
}

/// `x = max(x, 0)`, in place; NaN stays NaN.
pub fn relu<F: Real>(isa: Isa, x: &mut [F]) {
    struct Relu<'a, F>(&'a mut [F]);

    impl<F: Real> Work for Relu<'_, F> {
        type Output = ();

        #[inline(always)]
        fn run(self) {
            for x in self.0 {
                *x = if *x < F::default() { F::default() } else { *x };
            }
        }
    }

    with(isa, Relu(x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the formula stands on this page.
    fn code(x: f64, grid: Grid<f64>) -> i32 {
        if x.is_nan() {
            return grid.low;
        }
        let code = (x / grid.scale).round_ties_even() + f64::from(grid.zero_point);
        code.clamp(grid.low.into(), grid.high.into()) as i32
    }

    fn code_f32(x: f32, grid: Grid<f32>) -> i32 {
        let code = (x / grid.scale).round_ties_even() + grid.zero_point as f32;
        if x.is_nan() { grid.low } else { code.clamp(grid.low as f32, grid.high as f32) as i32 }
    }

    #[test]
    fn gives_the_codes_of_the_onnx_runtime() {
        // semantics 12.1.
        let x = [-1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, -128.5, 300.0, -300.0, 1e9, -1e9];
        let x = [&x[..], &[f32::INFINITY, f32::NEG_INFINITY, f32::NAN]].concat();
        for isa in Isa::available() {
            let mut codes = [0i8; 15];
            quantize(isa, &x, Grid { scale: 1.0, zero_point: 0, low: -128, high: 127 }, &mut codes);
            assert_eq!(
                codes,
                [-2, 0, 0, 2, 2, 126, 127, -128, 127, -128, 127, -128, 127, -128, -128],
                "{isa}"
            );
            let mut codes = [9u8; 15];
            quantize(isa, &x, Grid { scale: 1.0, zero_point: 0, low: 0, high: 255 }, &mut codes);
            assert_eq!(codes, [0, 0, 0, 2, 2, 126, 128, 0, 255, 0, 255, 0, 255, 0, 0], "{isa}");
            let mut codes = [0i8; 4];
            quantize(
                isa,
                &[-0.5f32, 0.5, 1.5, 2.5],
                Grid { scale: 1.0, zero_point: 1, low: -128, high: 127 },
                &mut codes,
            );
            assert_eq!(codes, [1, 1, 3, 3], "{isa}");
            for (scale, x, expected) in
                [(0.002f32, 0.003f32, 2), (0.003, 0.0045, 1), (0.023, 0.0345, 2), (0.048, 0.072, 1)]
            {
                let mut codes = [0u8];
                quantize(isa, &[x], Grid { scale, zero_point: 0, low: 0, high: 255 }, &mut codes);
                assert_eq!(codes, [expected], "{isa}: {x} / {scale}");
            }
            let mut x = [0.0f32; 4];
            dequantize(isa, &[-128i8, -1, 0, 127], 0.5, -1, &mut x);
            assert_eq!(x, [-63.5, 0.0, 0.5, 64.0], "{isa}");
        }
    }

    #[test]
    fn every_set_equals_the_formula_at_every_length() {
        for isa in Isa::available() {
            for length in 0..=3 * 64 + 1 {
                let x: Vec<f32> = (0..length).map(|i| (i * 37 % 101) as f32 * 0.25 - 9.0).collect();
                let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                let grid = Grid { scale: 0.17, zero_point: 3, low: -100, high: 120 };
                let mut codes = vec![0i8; length];
                quantize(isa, &x, grid, &mut codes);
                let expected: Vec<_> = x.iter().map(|&x| code_f32(x, grid) as i8).collect();
                assert_eq!(codes, expected, "{isa} {length}");
                let grid = Grid { scale: 0.17, zero_point: 3, low: 0, high: 255 };
                let mut codes = vec![0u8; length];
                quantize(isa, &wide, grid, &mut codes);
                let expected: Vec<_> = wide.iter().map(|&x| code(x, grid) as u8).collect();
                assert_eq!(codes, expected, "{isa} {length}");
                let mut back = vec![0.0f64; length];
                dequantize(isa, &codes, 0.17, 3, &mut back);
                assert!(
                    back.iter().zip(&codes).all(|(&x, &c)| x == (f64::from(c) - 3.0) * 0.17),
                    "{isa} {length}"
                );
                let low = x.iter().copied().fold(f32::INFINITY, f32::min);
                let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(min_max(isa, &x), (low, high), "{isa} {length}");
                let mut y = x.clone();
                relu(isa, &mut y);
                assert!(x.iter().zip(&y).all(|(x, &y)| x.max(0.0) == y), "{isa} {length}");
            }
        }
    }

    #[test]
    fn the_range_leaves_nan_out_wherever_it_stands() {
        for isa in Isa::available() {
            for place in 0..130 {
                let mut x = vec![1.0f64; 130];
                x[place] = f64::NAN;
                x[(place + 7) % 130] = -3.0;
                assert_eq!(min_max(isa, &x), (-3.0, 1.0), "{isa} {place}");
            }
            assert_eq!(min_max(isa, &[f32::NAN]), (f32::INFINITY, f32::NEG_INFINITY), "{isa}");
        }
    }

    proptest! {
        #[test]
        fn every_set_equals_the_formula_for_any_bits(
            bits in prop::collection::vec(any::<u32>(), 1..100), scale in 1e-30f32..1e30, zero_point in -128..=127,
        ) {
            let x: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
            let grid = Grid { scale, zero_point, low: -128, high: 127 };
            let expected: Vec<_> = x.iter().map(|&x| code_f32(x, grid) as i8).collect();
            for isa in Isa::available() {
                let mut codes = vec![0i8; x.len()];
                quantize(isa, &x, grid, &mut codes);
                prop_assert_eq!(&codes, &expected, "{}", isa);
            }
        }
    }
}
