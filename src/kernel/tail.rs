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

use super::matrix::MatrixMut;
use super::pool::Pool;
use super::tiles::PANEL;

/// Adding and subtracting it rounds an `f32` of magnitude below 2^22 to an integer, ties to even.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

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

fn padded<T: Copy + Default>(values: &[T]) -> [T; PANEL] {
    let mut all = [T::default(); PANEL];
    all[..values.len()].copy_from_slice(values);
    all
}

/// A tail made ready for the columns of one panel.
pub(super) struct Finish<'t> {
    at: usize,
    used: usize,
    kind: Kind<'t>,
}

enum Kind<'t> {
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
                        // Clamping first gives the same code, and keeps the number small enough for `ROUND`.
                        let real = if real > *low { real } else { *low };
                        let real = if real < *high { real } else { *high };
                        let rounded = (real + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
                        codes[j] = (rounded as i32 + *zero) as u8;
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

#[inline(always)]
fn store<T: Copy>(to: &mut [T], from: &[T; PANEL]) {
    match <&mut [T; PANEL]>::try_from(&mut *to) {
        Ok(whole) => *whole = *from,
        Err(_) => to.copy_from_slice(&from[..to.len()]),
    }
}
