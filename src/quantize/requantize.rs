//! From a 32-bit sum back to a code, in the three ways that runtimes do it.
//!
//! ```text
//! multiplier = sa * sw / sy          code = clip(round(acc * multiplier) + zero_point, qmin, qmax)
//! ```
//!
//! - ONNX Runtime: one `f32` factor, half to even.
//! - TFLite, single rounding: a 31-bit integer factor and one shift; ties go up.
//! - TFLite, double rounding (gemmlowp, its default): a rounding multiplication, then a rounding shift.
//!
//! Single rounding differs from ONNX Runtime on exact ties only; double rounding a little more often.

use crate::error::{Error, Result};
use crate::float::check_shape;
use crate::quantize::params::QuantParams;
use crate::quantize::scheme::Scheme;

/// How an accumulator times a multiplier becomes an integer.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Requantization {
    /// `rne(acc * m)` with `m` in `f32`: ONNX Runtime.
    #[default]
    HalfEven,
    /// Integers alone, one rounding, ties up: TFLite built for single rounding.
    TfliteSingle,
    /// Integers alone, two roundings: TFLite's default.
    TfliteDouble,
}

/// A multiplier as `q * 2^(shift - 31)`, with `q` in `2^30..2^31`, or both 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FixedMultiplier {
    /// The 31-bit fraction.
    pub q: i32,
    /// Powers of two, to the left.
    pub shift: i32,
}

impl FixedMultiplier {
    /// TFLite's QuantizeMultiplier: the nearest of this form.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= multiplier < 2^31`.
    pub fn new(multiplier: f64) -> Result<Self> {
        if !(0.0..2_147_483_648.0).contains(&multiplier) {
            return Err(Error::OutOfRange {
                name: "multiplier",
                value: multiplier,
                range: "0 <= multiplier < 2^31",
            });
        }
        if multiplier < f64::MIN_POSITIVE {
            return Ok(Self { q: 0, shift: 0 });
        }
        // multiplier = fraction * 2^shift, fraction in 0.5..1, by its bits: the exponent is that of 0.5.
        let bits = multiplier.to_bits();
        let mut shift = (bits >> 52) as i32 - 1022;
        let fraction = f64::from_bits(bits & !(0x7ff << 52) | 1022 << 52);
        let mut q = (fraction * 2_147_483_648.0).round() as i64;
        if q == 1 << 31 {
            q /= 2;
            shift += 1;
        }
        if shift < -31 {
            return Ok(Self { q: 0, shift: 0 });
        }
        Ok(Self { q: q as i32, shift })
    }

    /// `round(x * q * 2^(shift - 31))`, ties towards plus infinity.
    pub fn single(self, x: i32) -> i32 {
        let (q, shift) = if self.shift > 30 { (i32::MAX, 30) } else { (self.q, self.shift.max(-31)) };
        let right = 31 - shift;
        let rounded = (i64::from(x) * i64::from(q) + (1 << (right - 1))) >> right;
        saturate(rounded)
    }

    /// gemmlowp: the high half of the doubled product, rounded, then a rounding shift to the right. Multipliers of 1
    /// and more shift `x` to the left first, which saturates.
    pub fn double(self, x: i32) -> i32 {
        let shifted = saturate(i64::from(x) << self.shift.clamp(0, 31));
        divide_by_power(high_mul(shifted, self.q), self.shift.clamp(-31, 0).abs())
    }
}

fn saturate(x: i64) -> i32 {
    x.clamp(i32::MIN.into(), i32::MAX.into()) as i32
}

/// `trunc((a * b + nudge) / 2^31)`.
fn high_mul(a: i32, b: i32) -> i32 {
    let product = i64::from(a) * i64::from(b);
    let nudge = if product >= 0 { 1 << 30 } else { 1 - (1 << 30) };
    saturate((product + nudge) / (1 << 31))
}

/// `x / 2^e`, ties away from zero.
fn divide_by_power(x: i32, e: i32) -> i32 {
    let mask = (1i64 << e) - 1;
    let rest = i64::from(x) & mask;
    let threshold = (mask >> 1) + i64::from(x < 0);
    saturate((i64::from(x) >> e) + i64::from(rest > threshold))
}

/// Turns accumulators of one layer into codes: one multiplier for each output, one zero point.
///
/// ```
/// use trimnet::quantize::{Requantization, Requantizer, Scheme};
///
/// let half = |how| Requantizer::new(how, &[0.5], 1.0, 0, &Scheme::int8_symmetric_128());
/// let mut codes = [0; 3];
/// half(Requantization::HalfEven)?.apply(&[1, 3, -3], &mut codes)?;
/// assert_eq!(codes, [0, 2, -2]);
/// half(Requantization::TfliteSingle)?.apply(&[1, 3, -3], &mut codes)?;
/// assert_eq!(codes, [1, 2, -1]);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Requantizer {
    how: Requantization,
    factors: Vec<f32>,
    fixed: Vec<FixedMultiplier>,
    zero_point: i32,
    qmin: i32,
    qmax: i32,
}

impl Requantizer {
    /// For accumulators of scale `acc_scales` (one, or one for each output), to codes of `scale` and `zero_point`.
    ///
    /// The accumulator's scale is `sa * sw`, rounded to `f32`: so ONNX Runtime forms its factor.
    ///
    /// # Errors
    /// [`Error::Empty`] without scales; [`Error::OutOfRange`] unless all scales are finite and above 0, the zero point is a
    /// code of `scheme`, and a multiplier of the integer forms is below 2^31.
    pub fn new(
        how: Requantization,
        acc_scales: &[f32],
        scale: f32,
        zero_point: i32,
        scheme: &Scheme,
    ) -> Result<Self> {
        if acc_scales.is_empty() {
            return Err(Error::Empty { what: "the accumulator's scales" });
        }
        scheme.check(QuantParams { scale, zero_point })?;
        let mut factors = Vec::with_capacity(acc_scales.len());
        let mut fixed = Vec::with_capacity(acc_scales.len());
        for &acc_scale in acc_scales {
            let factor = acc_scale / scale;
            if !(acc_scale > 0.0 && factor.is_finite()) {
                return Err(Error::OutOfRange {
                    name: "the accumulator's scale",
                    value: acc_scale.into(),
                    range: "above 0 and finite, also over the output's scale",
                });
            }
            factors.push(factor);
            if how != Requantization::HalfEven {
                fixed.push(FixedMultiplier::new(f64::from(acc_scale) / f64::from(scale))?);
            }
        }
        Ok(Self { how, factors, fixed, zero_point, qmin: scheme.qmin(), qmax: scheme.qmax() })
    }

    /// Writes the codes of rows of accumulators, as many to a row as there are outputs.
    ///
    /// # Errors
    /// [`Error::Shape`] if `codes` has another length than `acc`, or the length is no multiple of the outputs.
    pub fn apply(&self, acc: &[i32], codes: &mut [i32]) -> Result<()> {
        check_shape("the place for codes", &[codes.len()], &[acc.len()])?;
        let outputs = self.factors.len();
        check_shape("the last row of accumulators", &[acc.len() % outputs], &[0])?;
        match self.how {
            Requantization::HalfEven => self.rows(&self.factors, acc, codes, |&factor, acc| {
                // Clipped far outside the codes, where the sum with the zero point cannot overflow.
                (acc as f32 * factor).round_ties_even().clamp(-1e9, 1e9) as i32
            }),
            Requantization::TfliteSingle => {
                self.rows(&self.fixed, acc, codes, |fixed, acc| fixed.single(acc))
            }
            Requantization::TfliteDouble => {
                self.rows(&self.fixed, acc, codes, |fixed, acc| fixed.double(acc))
            }
        }
        Ok(())
    }

    #[inline]
    fn rows<M>(&self, multipliers: &[M], acc: &[i32], codes: &mut [i32], scaled: impl Fn(&M, i32) -> i32) {
        let Self { zero_point, qmin, qmax, .. } = *self;
        let code = |multiplier: &M, acc| scaled(multiplier, acc).saturating_add(zero_point).clamp(qmin, qmax);
        if let [multiplier] = multipliers {
            codes.iter_mut().zip(acc).for_each(|(to, &acc)| *to = code(multiplier, acc));
            return;
        }
        for (codes, acc) in codes.chunks_exact_mut(multipliers.len()).zip(acc.chunks_exact(multipliers.len()))
        {
            codes.iter_mut().zip(acc).zip(multipliers).for_each(|((to, &acc), m)| *to = code(m, acc));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extreme_accumulators_and_multipliers_saturate() {
        for multiplier in [0.0, 1e-300, 0.3, 1.0, 1e9, 1_073_741_823.5] {
            let fixed = FixedMultiplier::new(multiplier).unwrap();
            for acc in [i32::MIN, -1, 0, 1, i32::MAX] {
                let exact = (f64::from(acc) * multiplier).clamp(i32::MIN.into(), i32::MAX.into());
                let tolerance = 1.0 + exact.abs() * 1e-9;
                let left =
                    (f64::from(acc) * f64::from(fixed.shift.max(0)).exp2()).abs() <= f64::from(i32::MAX);
                assert!(
                    !left || (f64::from(fixed.double(acc)) - exact).abs() <= tolerance,
                    "{acc} * {multiplier}"
                );
                assert!((f64::from(fixed.single(acc)) - exact).abs() <= tolerance, "{acc} * {multiplier}");
            }
        }
    }

    #[test]
    fn any_fields_give_some_integer() {
        for q in [i32::MIN, -1, 0, i32::MAX] {
            for shift in [i32::MIN, -32, -31, 0, 31, 32, i32::MAX] {
                let fixed = FixedMultiplier { q, shift };
                for acc in [i32::MIN, -1, 0, 1, i32::MAX] {
                    let _ = (fixed.single(acc), fixed.double(acc));
                }
            }
        }
    }

    #[test]
    fn refuses_multipliers_and_scales_without_meaning() {
        for multiplier in [-0.1, f64::NAN, f64::INFINITY, 2_147_483_648.0] {
            assert!(FixedMultiplier::new(multiplier).is_err());
        }
        let scheme = Scheme::default();
        let new =
            |acc: &[f32], scale, zp| Requantizer::new(Requantization::TfliteDouble, acc, scale, zp, &scheme);
        assert!(new(&[], 1.0, 0).is_err());
        assert!(new(&[0.0], 1.0, 0).is_err());
        assert!(new(&[f32::NAN], 1.0, 0).is_err());
        assert!(new(&[1.0], 0.0, 0).is_err());
        assert!(new(&[1.0], 1.0, 300).is_err());
        assert!(new(&[1e30], 1e-30, 0).is_err());
        assert!(new(&[1.0, 2.0], 1.0, 0).unwrap().apply(&[1, 2, 3], &mut [0; 3]).is_err());
        assert!(new(&[1.0, 2.0], 1.0, 0).unwrap().apply(&[1, 2], &mut [0; 3]).is_err());
    }

    #[test]
    fn each_output_has_its_multiplier() {
        let requantizer =
            Requantizer::new(Requantization::HalfEven, &[1.0, 10.0], 1.0, 1, &Scheme::default()).unwrap();
        let mut codes = [0; 4];
        requantizer.apply(&[1, 2, -3, i32::MIN], &mut codes).unwrap();
        assert_eq!(codes, [2, 21, -2, -127]);
    }
}
