//! What happens to the integer sums of a product before they reach memory.
//!
//! ```text
//! Sums     out = sum
//! Float    out = activation(f32(sum) * (input_scale * scale[j]) + bias[j])      three roundings, no fused step
//! Codes    out = clamp(rne(f32(sum) * multiplier[j]) + zero_point, low, high)       as ONNX Runtime rounds
//! Fixed    out = clamp(((sum * multiplier[j] + 2^(t-1)) >> t) + zero_point, low, high)   t = 31 - shift[j]
//! ```
//!
//! `Fixed` is TFLite's single-rounding form, all integers. A relu before codes is `low = zero_point`.
//! One piece of code serves every instruction set, compiled once for each: the same bits everywhere.

use std::ops::Range;

use super::matrix::MatrixMut;
use super::pool::Pool;
use super::real::Real;
use super::tiles::PANEL;

/// An activation cheap enough to ride on a product.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fused {
    /// The number itself.
    #[default]
    Identity,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
}

/// From sums to outputs; values per column cover all outputs of the layer.
#[derive(Debug)]
pub enum Tail<'a> {
    /// The sums themselves.
    Sums {
        /// Where they go.
        out: MatrixMut<'a, i32>,
    },
    /// Real numbers.
    Float {
        /// Scale of the input codes: multiplies every `scale`, in f32.
        input_scale: f32,
        /// Scale of the weights of each output.
        scale: &'a [f32],
        /// Added after scaling, or none.
        bias: Option<&'a [f32]>,
        /// Applied last.
        activation: Fused,
        /// Where they go.
        out: MatrixMut<'a, f32>,
    },
    /// Codes of the next layer, through a float factor.
    Codes {
        /// `input scale * weight scale / output scale` of each output, in f32.
        multiplier: &'a [f32],
        /// The code that stands for zero.
        zero_point: u8,
        /// Least code; `zero_point` for a relu.
        low: u8,
        /// Largest code.
        high: u8,
        /// Where they go.
        out: MatrixMut<'a, u8>,
    },
    /// Codes of the next layer, through a fixed-point factor `multiplier * 2^(shift - 31)`.
    Fixed {
        /// Positive, of each output.
        multiplier: &'a [i32],
        /// -31..=30, of each output.
        shift: &'a [i32],
        /// The code that stands for zero.
        zero_point: u8,
        /// Least code; `zero_point` for a relu.
        low: u8,
        /// Largest code.
        high: u8,
        /// Where they go.
        out: MatrixMut<'a, u8>,
    },
}

impl Tail<'_> {
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Sums { out } => out.rows(),
            Self::Float { out, .. } => out.rows(),
            Self::Codes { out, .. } | Self::Fixed { out, .. } => out.rows(),
        }
    }

    /// Asserts that all lengths fit a layer of `outputs`, `columns` of which are computed.
    pub(super) fn check(&self, outputs: usize, columns: usize) {
        let found = match self {
            Self::Sums { out } => out.columns(),
            Self::Float { scale, bias, out, .. } => {
                assert_eq!(scale.len(), outputs, "scales of {outputs} outputs");
                assert_eq!(bias.map_or(outputs, <[_]>::len), outputs, "bias of {outputs} outputs");
                out.columns()
            }
            Self::Codes { multiplier, out, low, high, .. } => {
                assert_eq!(multiplier.len(), outputs, "multipliers of {outputs} outputs");
                assert!(low <= high, "codes {low}..={high}");
                out.columns()
            }
            Self::Fixed { multiplier, shift, out, low, high, .. } => {
                assert_eq!(multiplier.len(), outputs, "multipliers of {outputs} outputs");
                assert_eq!(shift.len(), outputs, "shifts of {outputs} outputs");
                assert!(shift.iter().all(|shift| (-31..=30).contains(shift)), "shifts within -31..=30");
                assert!(low <= high, "codes {low}..={high}");
                out.columns()
            }
        };
        assert_eq!(found, columns, "columns of the result");
    }

    pub(super) fn columns(&self) -> usize {
        match self {
            Self::Sums { out } => out.columns(),
            Self::Float { out, .. } => out.columns(),
            Self::Codes { out, .. } | Self::Fixed { out, .. } => out.columns(),
        }
    }

    /// The same tail for a shorter time.
    pub fn reborrow(&mut self) -> Tail<'_> {
        match self {
            Self::Sums { out } => Tail::Sums { out: out.reborrow() },
            &mut Self::Float { input_scale, scale, bias, activation, ref mut out } => {
                Tail::Float { input_scale, scale, bias, activation, out: out.reborrow() }
            }
            &mut Self::Codes { multiplier, zero_point, low, high, ref mut out } => {
                Tail::Codes { multiplier, zero_point, low, high, out: out.reborrow() }
            }
            &mut Self::Fixed { multiplier, shift, zero_point, low, high, ref mut out } => {
                Tail::Fixed { multiplier, shift, zero_point, low, high, out: out.reborrow() }
            }
        }
    }

    /// Cuts the result into parts of `width` columns and calls `task(i, tail)` once for each, on the threads of `pool`.
    ///
    /// # Panics
    /// If `width` is 0, or a task panics.
    pub fn share(self, pool: &Pool, width: usize, task: impl Fn(usize, Tail<'_>) + Sync) {
        match self {
            Self::Sums { out } => pool.run_columns(out, width, |i, out| task(i, Tail::Sums { out })),
            Self::Float { input_scale, scale, bias, activation, out } => {
                pool.run_columns(out, width, |i, out| {
                    task(i, Tail::Float { input_scale, scale, bias, activation, out });
                })
            }
            Self::Codes { multiplier, zero_point, low, high, out } => {
                pool.run_columns(out, width, |i, out| {
                    task(i, Tail::Codes { multiplier, zero_point, low, high, out });
                })
            }
            Self::Fixed { multiplier, shift, zero_point, low, high, out } => {
                pool.run_columns(out, width, |i, out| {
                    task(i, Tail::Fixed { multiplier, shift, zero_point, low, high, out });
                })
            }
        }
    }

    /// The tail of one panel: per-column values of `used` columns from `column` on, written from column `at` of the result.
    #[inline(always)]
    pub(super) fn panel(&mut self, column: usize, used: usize, at: usize) -> Finish<'_> {
        let columns = column..column + used;
        match self {
            Self::Sums { out } => Finish { at, used, kind: Kind::Sums { out: out.reborrow() } },
            Self::Float { input_scale, scale, bias, activation, out } => {
                let mut factor = padded(&scale[columns.clone()]);
                factor.iter_mut().for_each(|factor| *factor *= *input_scale);
                let bias = bias.map_or([0.0; PANEL], |bias| padded(&bias[columns]));
                let out = out.reborrow();
                Finish { at, used, kind: Kind::Float { factor, bias, activation: *activation, out } }
            }
            Self::Codes { multiplier, zero_point, low, high, out } => {
                let [low, high] = [*low, *high].map(|code| f32::from(code) - f32::from(*zero_point));
                let (factor, zero) = (padded(&multiplier[columns]), i32::from(*zero_point));
                Finish { at, used, kind: Kind::Codes { factor, zero, low, high, out: out.reborrow() } }
            }
            Self::Fixed { multiplier, shift, zero_point, low, high, out } => {
                let factor = padded(&multiplier[columns.clone()]).map(i64::from);
                let right = padded(&shift[columns]).map(|shift: i32| 31 - shift);
                let zero = i64::from(*zero_point);
                let [low, high] = [*low, *high].map(i64::from);
                let out = out.reborrow();
                Finish { at, used, kind: Kind::Fixed { factor, right, zero, low, high, out } }
            }
        }
    }
}

/// The values of a panel, zeros behind them.
#[inline(always)]
pub(super) fn padded<T: Copy + Default>(values: &[T]) -> [T; PANEL] {
    if let Some(whole) = values.first_chunk::<PANEL>() {
        return *whole;
    }
    let mut all = [T::default(); PANEL];
    all[..values.len()].copy_from_slice(values);
    all
}

/// A tail made ready for the columns of one panel.
pub(super) struct Finish<'t> {
    pub(super) at: usize,
    pub(super) used: usize,
    pub(super) kind: Kind<'t>,
}

pub(super) enum Kind<'t> {
    Sums {
        out: MatrixMut<'t, i32>,
    },
    Float {
        factor: [f32; PANEL],
        bias: [f32; PANEL],
        activation: Fused,
        out: MatrixMut<'t, f32>,
    },
    Codes {
        factor: [f32; PANEL],
        zero: i32,
        low: f32,
        high: f32,
        out: MatrixMut<'t, u8>,
    },
    Fixed {
        factor: [i64; PANEL],
        right: [i32; PANEL],
        zero: i64,
        low: i64,
        high: i64,
        out: MatrixMut<'t, u8>,
    },
}

impl Finish<'_> {
    /// Asks for where a tile of these rows will be written.
    #[inline(always)]
    pub(super) fn fetch(&mut self, rows: Range<usize>) {
        let columns = self.at..self.at + self.used;
        match &mut self.kind {
            Kind::Sums { out } => out.fetch(rows, columns),
            Kind::Float { out, .. } => out.fetch(rows, columns),
            Kind::Codes { out, .. } | Kind::Fixed { out, .. } => out.fetch(rows, columns),
        }
    }

    /// Writes a tile whose first row is `row`. Inlined into one function per instruction set.
    #[inline(always)]
    pub(super) fn run(&mut self, sums: &[[i32; PANEL]], row: usize) {
        let columns = self.at..self.at + self.used;
        match &mut self.kind {
            Kind::Sums { out } => {
                for (i, sums) in sums.iter().enumerate() {
                    store(&mut out.row_mut(row + i)[columns.clone()], sums);
                }
            }
            Kind::Float { factor, bias, activation, out } => {
                for (i, sums) in sums.iter().enumerate() {
                    let mut values = [0.0; PANEL];
                    for j in 0..PANEL {
                        values[j] = sums[j] as f32 * factor[j] + bias[j];
                    }
                    if *activation == Fused::Relu {
                        values = values.map(|x| if x < 0.0 { 0.0 } else { x });
                    }
                    store(&mut out.row_mut(row + i)[columns.clone()], &values);
                }
            }
            Kind::Codes { factor, zero, low, high, out } => {
                for (i, sums) in sums.iter().enumerate() {
                    let mut codes = [0; PANEL];
                    for j in 0..PANEL {
                        let real = sums[j] as f32 * factor[j];
                        // Clamping first gives the same code, and keeps the number small enough to round.
                        let real = if real > *low { real } else { *low };
                        let real = if real < *high { real } else { *high };
                        codes[j] = (real.round_small() + *zero) as u8;
                    }
                    store(&mut out.row_mut(row + i)[columns.clone()], &codes);
                }
            }
            Kind::Fixed { factor, right, zero, low, high, out } => {
                for (i, sums) in sums.iter().enumerate() {
                    let mut codes = [0; PANEL];
                    for j in 0..PANEL {
                        let half = 1i64 << ((right[j] - 1) & 63);
                        let scaled = (i64::from(sums[j]) * factor[j]).wrapping_add(half) >> (right[j] & 63);
                        codes[j] = scaled.saturating_add(*zero).clamp(*low, *high) as u8;
                    }
                    store(&mut out.row_mut(row + i)[columns.clone()], &codes);
                }
            }
        }
    }
}

/// The first values of a panel, as many as there is room for.
#[inline(always)]
pub(super) fn store<T: Copy>(to: &mut [T], from: &[T; PANEL]) {
    if let Some(whole) = to.first_chunk_mut::<PANEL>() {
        *whole = *from;
        return;
    }
    // In pieces of fixed lengths: copying any number of values is a call, and each row of a narrow layer would pay for it.
    let mut at = 0;
    macro_rules! pieces {
        ($($length:literal)*) => {
            $(if to.len() & $length != 0
                && let (Some(to), Some(from)) =
                    (to[at..].first_chunk_mut::<$length>(), from[at..].first_chunk::<$length>())
            {
                *to = *from;
                at += $length;
            })*
        };
    }
    pieces!(16 8 4 2 1);
    debug_assert_eq!(at, to.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Codes, Input, Isa, PackedI8, Scratch8, multiply_codes};
    use proptest::prelude::*;

    /// Sends `sums`, one row, through a tail: each is the bias of an output without inputs.
    fn send(isa: Isa, sums: &[i32], tail: Tail<'_>) {
        let weights = PackedI8::new(&[], sums.len(), 0);
        let input = Input { codes: Codes::U8(&[]), zero_point: 0, bias: Some(sums) };
        multiply_codes(isa, input, &weights, 0..weights.panels(), tail, &mut Scratch8::default());
    }

    fn codes(isa: Isa, sums: &[i32], multiplier: &[f32], [zero_point, low, high]: [u8; 3]) -> Vec<u8> {
        let mut codes = vec![0; sums.len()];
        let out = MatrixMut::new(&mut codes, 1, sums.len());
        send(isa, sums, Tail::Codes { multiplier, zero_point, low, high, out });
        codes
    }

    fn fixed(
        isa: Isa,
        sums: &[i32],
        (multiplier, shift): (i32, i32),
        [zero_point, low, high]: [u8; 3],
    ) -> Vec<u8> {
        let mut codes = vec![0; sums.len()];
        let (multiplier, shift) = (&vec![multiplier; sums.len()][..], &vec![shift; sums.len()][..]);
        let out = MatrixMut::new(&mut codes, 1, sums.len());
        send(isa, sums, Tail::Fixed { multiplier, shift, zero_point, low, high, out });
        codes
    }

    /// As the formula stands on this page.
    fn code(sum: i32, multiplier: f32, [zero_point, low, high]: [u8; 3]) -> u8 {
        let code = (sum as f32 * multiplier).round_ties_even() + f32::from(zero_point);
        code.max(f32::from(low)).min(f32::from(high)) as u8
    }

    fn fixed_code(sum: i32, multiplier: i32, shift: i32, [zero_point, low, high]: [u8; 3]) -> u8 {
        let t = 31 - shift;
        let scaled = (i128::from(sum) * i128::from(multiplier) + (1i128 << (t - 1))) >> t;
        (scaled + i128::from(zero_point)).clamp(low.into(), high.into()) as u8
    }

    #[test]
    fn tiles_of_every_width_leave_with_the_bits_of_the_plain_set() {
        for outputs in [1, 15, 16, 17, 31, 32, 33, 48, 70, 100] {
            for rows in [1, 2, 13, 30] {
                let (inputs, count) = (3, rows * outputs);
                let w: Vec<i8> = (0..outputs * inputs).map(|i| (i * 37 % 251) as u8 as i8).collect();
                let a: Vec<u8> = (0..rows * inputs).map(|i| (i * 59 % 256) as u8).collect();
                let weights = PackedI8::new(&w, outputs, inputs);
                let factor: Vec<f32> = (0..outputs).map(|j| 0.001 + j as f32 * 1e-5).collect();
                let bias: Vec<i32> = (0..outputs).map(|j| 999 - 40 * j as i32).collect();
                let run = |isa, tail: Tail<'_>| {
                    let input = Input { codes: Codes::U8(&a), zero_point: 77, bias: Some(&bias) };
                    multiply_codes(isa, input, &weights, 0..weights.panels(), tail, &mut Scratch8::default());
                };
                let codes = |isa| {
                    let mut codes = vec![9; count];
                    let out = MatrixMut::new(&mut codes, rows, outputs);
                    run(isa, Tail::Codes { multiplier: &factor, zero_point: 5, low: 5, high: 250, out });
                    codes
                };
                let numbers = |isa, activation, bias| {
                    let mut numbers = vec![9.0f32; count];
                    let out = MatrixMut::new(&mut numbers, rows, outputs);
                    run(isa, Tail::Float { input_scale: 0.3, scale: &factor, bias, activation, out });
                    numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                for isa in Isa::available() {
                    assert_eq!(codes(isa), codes(Isa::Scalar), "{isa} {rows} x {outputs}");
                    for activation in [Fused::Identity, Fused::Relu] {
                        for bias in [None, Some(&factor[..])] {
                            let expected = numbers(Isa::Scalar, activation, bias);
                            assert_eq!(numbers(isa, activation, bias), expected, "{isa} {rows} x {outputs}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn requantizes_the_ties_of_the_onnx_runtime() {
        // semantics 12.4, around a zero point of 128.
        for isa in Isa::available() {
            let sums = [1, 3, 5, 7, 9, 0, 2, -1, -3, -5, -7, -9, 0, -2];
            let expected =
                [0, 2, 2, 4, 4, 0, 1, 0, -2, -2, -4, -4, 0, -1].map(|code: i32| (code + 128) as u8);
            assert_eq!(codes(isa, &sums, &[0.5; 14], [128, 0, 255]), expected, "{isa}");
            let (m, sums) = ((0.5f32 * 1.0) / 1.0, [2, 6, 767, 1257]);
            assert_eq!(codes(isa, &sums, &[m; 4], [128, 0, 255]), [129, 131, 255, 255], "{isa}");
            let m = ((1.0f32 / 255.0) * (1.0 / 127.0)) / 0.05;
            assert_eq!(
                codes(isa, &[-754, -246, 11, 1005], &[m; 4], [100, 0, 255]),
                [100, 100, 100, 101],
                "{isa}"
            );
        }
    }

    #[test]
    fn requantizes_the_single_rounding_vectors_of_tflite() {
        // semantics 12.5, around a zero point of 100.
        let sums = [-7, -6, -5, -3, -2, -1, 1, 2, 3, 5, 6, 7, 9, 10];
        let half = [-3, -3, -2, -1, -1, 0, 1, 1, 2, 3, 3, 4, 5, 5].map(|code: i32| (code + 100) as u8);
        let quarter = [-2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3].map(|code: i32| (code + 100) as u8);
        for isa in Isa::available() {
            assert_eq!(fixed(isa, &sums, (1 << 30, 0), [100, 0, 255]), half, "{isa}");
            assert_eq!(fixed(isa, &sums, (1 << 30, -1), [100, 0, 255]), quarter, "{isa}");
            assert_eq!(fixed(isa, &[1000, -1000], (i32::MAX, -4), [100, 0, 255]), [162, 38], "{isa}");
        }
    }

    #[test]
    fn saturates_at_the_ends_and_clamps_for_a_relu() {
        for isa in Isa::available() {
            let sums = [i32::MIN, -1, 0, 1, i32::MAX];
            assert_eq!(codes(isa, &sums, &[1e30; 5], [7, 0, 255]), [0, 0, 7, 255, 255], "{isa}");
            assert_eq!(codes(isa, &sums, &[1.0; 5], [7, 7, 200]), [7, 7, 7, 8, 200], "{isa}");
            assert_eq!(fixed(isa, &sums, (i32::MAX, 30), [7, 7, 200]), [7, 7, 7, 200, 200], "{isa}");
        }
    }

    proptest! {
        #[test]
        fn every_set_gives_the_codes_of_the_formula(
            sums in prop::collection::vec(prop_oneof![any::<i32>(), -3000..3000i32], 0..70),
            multiplier in prop_oneof![Just(0.5f32), Just(0.25), 1e-9f32..1e3],
            (fixed_multiplier, shift) in (1..=i32::MAX, -31..=30i32),
            zero_point: u8, ends: (u8, u8), relu: bool, input_scale in 1e-3f32..10.0,
        ) {
            let setting = [zero_point, ends.0.min(ends.1), ends.0.max(ends.1)];
            let multipliers = vec![multiplier; sums.len()];
            let activation = if relu { Fused::Relu } else { Fused::Identity };
            let reals: Vec<f32> = sums.iter().map(|&sum| sum as f32 * (input_scale * multiplier) + 0.3).collect();
            let reals: Vec<f32> = reals.into_iter().map(|x| if relu { x.max(0.0) } else { x }).collect();
            for isa in Isa::available() {
                let expected: Vec<u8> = sums.iter().map(|&sum| code(sum, multiplier, setting)).collect();
                prop_assert_eq!(codes(isa, &sums, &multipliers, setting), expected, "{}", isa);
                let expected: Vec<u8> =
                    sums.iter().map(|&sum| fixed_code(sum, fixed_multiplier, shift, setting)).collect();
                prop_assert_eq!(fixed(isa, &sums, (fixed_multiplier, shift), setting), expected, "{}", isa);
                let mut out = vec![0.0; sums.len()];
                let tail = Tail::Float {
                    input_scale,
                    scale: &multipliers,
                    bias: Some(&vec![0.3; sums.len()]),
                    activation,
                    out: MatrixMut::new(&mut out, 1, sums.len()),
                };
                send(isa, &sums, tail);
                prop_assert_eq!(&out, &reals, "{}", isa);
            }
        }
    }
}
