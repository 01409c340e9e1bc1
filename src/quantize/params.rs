//! The range of the data that the codes have to cover, and the scale and zero point that follow from it.

use crate::error::{Error, Result};
use crate::float::Float;

/// A closed interval of finite numbers, `min <= max`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "(F, F)", into = "(F, F)"))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"))]
pub struct Range<F> {
    min: F,
    max: F,
}

impl<F: Float> Range<F> {
    /// From the least to the largest number.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN or infinity, [`Error::Unsupported`] if `min > max`.
    pub fn new(min: F, max: F) -> Result<Self> {
        for (index, value) in [min, max].into_iter().enumerate() {
            if !value.is_finite() {
                return Err(Error::NotFinite { what: "range", index: vec![index], value: value.as_f64() });
            }
        }
        if min > max {
            return Err(Error::Unsupported {
                what: "range",
                reason: format!("its lower end {min} is above its upper end {max}"),
            });
        }
        Ok(Self { min, max })
    }

    /// The least and the largest finite number of `values`; NaN and infinity are left out.
    ///
    /// # Errors
    /// [`Error::Empty`] if no finite number is among them.
    pub fn of(values: &[F]) -> Result<Self> {
        let start = (F::infinity(), F::neg_infinity());
        let (min, max) = values.iter().fold(start, |(min, max), &x| {
            let finite = x.is_finite();
            (if finite && x < min { x } else { min }, if finite && x > max { x } else { max })
        });
        if min > max {
            return Err(Error::Empty { what: "the finite part of the values" });
        }
        Ok(Self { min, max })
    }

    /// Its lower end.
    pub fn min(self) -> F {
        self.min
    }

    /// Its upper end.
    pub fn max(self) -> F {
        self.max
    }

    /// From `low` to `high`, each moved into this range.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn cut(self, low: F, high: F) -> Result<Self> {
        let inside = |x: F| x.max(self.min).min(self.max);
        Self::new(inside(low), inside(high))
    }

    /// The length of one of `n` equal steps from end to end.
    pub(crate) fn step(self, n: F) -> F {
        // Dividing twice only where the width overflows: everywhere else the runtimes divide once.
        let width = self.max - self.min;
        if width.is_finite() { width / n } else { self.max / n - self.min / n }
    }

    /// Widened to include 0, which every scheme represents exactly.
    #[must_use]
    pub fn with_zero(self) -> Self {
        Self { min: self.min.min(F::zero()), max: self.max.max(F::zero()) }
    }

    pub(crate) fn in_f64(self) -> Range<f64> {
        Range { min: self.min.as_f64(), max: self.max.as_f64() }
    }

    pub(crate) fn zero() -> Self {
        Self { min: F::zero(), max: F::zero() }
    }

    /// Widens to include `values`, which are finite.
    pub(crate) fn cover(&mut self, values: &[F]) {
        // Plain comparisons over independent lanes: `min` has a rule for NaN that costs.
        const LANES: usize = 16;
        let (mut min, mut max) = ([self.min; LANES], [self.max; LANES]);
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for ((min, max), &x) in min.iter_mut().zip(&mut max).zip(chunk) {
                *min = if x < *min { x } else { *min };
                *max = if x > *max { x } else { *max };
            }
        }
        min.iter().chain(&max).chain(rest).for_each(|&x| self.cover_one(x));
    }

    #[inline]
    pub(crate) fn cover_one(&mut self, x: F) {
        self.min = if x < self.min { x } else { self.min };
        self.max = if x > self.max { x } else { self.max };
    }

    pub(crate) fn unit() -> Self {
        Self { min: -F::one(), max: F::one() }
    }
}

impl<F: Float> TryFrom<(F, F)> for Range<F> {
    type Error = Error;

    fn try_from((min, max): (F, F)) -> Result<Self> {
        Self::new(min, max)
    }
}

impl<F> From<Range<F>> for (F, F) {
    fn from(range: Range<F>) -> Self {
        (range.min, range.max)
    }
}

/// What turns codes into numbers: `x = (code - zero_point) * scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct QuantParams<F> {
    /// Distance of neighbouring codes; finite and above 0 when made by [`Scheme::params`](crate::quantize::Scheme::params).
    pub scale: F,
    /// The code of 0.
    pub zero_point: i32,
}

impl<F: Float> QuantParams<F> {
    /// The number that `code` stands for.
    #[inline]
    pub fn dequantize(self, code: i32) -> F {
        F::of_int(code.saturating_sub(self.zero_point)) * self.scale
    }
}
