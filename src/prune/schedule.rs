//! How much is pruned at which step of training.
//!
//! ```text
//! constant     s_t = s_f
//! polynomial   s_t = s_f + (s_i - s_f) * (1 - p)^power      p = clip((t - begin) / (end - begin), 0, 1)
//! ```
//!
//! Power 3 is the cubic schedule of Zhu and Gupta, "To prune, or not to prune" (2017): TFMOT's
//! `PolynomialDecay`, torch.ao's `CubicSL`. A step is whatever the caller counts, batches or epochs.

use crate::error::{Error, Result};

/// The sparsity to prune to at each step. Levels lie in `0 <= sparsity < 1` and never fall.
///
/// ```
/// use trimnet::prune::Schedule;
///
/// let schedule = Schedule::cubic(0.0, 0.8, 0, 100)?.every(25)?;
/// let percent: Vec<_> = (0..=200).filter_map(|step| schedule.update(step)).map(|s| (100.0 * s) as f32).collect();
/// assert_eq!(percent, [0.0, 46.25, 70.0, 78.75, 80.0]);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw"))]
pub struct Schedule {
    initial: f64,
    target: f64,
    power: f64,
    begin: u64,
    /// The last step at which masks change; `None`: they never stop to.
    end: Option<u64>,
    frequency: u64,
    zero_before: bool,
}

impl Schedule {
    /// `sparsity` from step `begin` on, for ever.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= sparsity < 1`.
    pub fn constant(sparsity: f64, begin: u64) -> Result<Self> {
        Self {
            initial: sparsity,
            target: sparsity,
            power: 1.0,
            begin,
            end: None,
            frequency: 1,
            zero_before: false,
        }
        .checked()
    }

    /// From `initial` at step `begin` to `target` at step `end`: fast at first, while there is much to spare.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= initial <= target < 1` and `begin < end`.
    pub fn cubic(initial: f64, target: f64, begin: u64, end: u64) -> Result<Self> {
        Self::polynomial(initial, target, begin, end, 3.0)
    }

    /// [`cubic`](Self::cubic) with another power; 1 is linear.
    ///
    /// # Errors
    /// As [`cubic`](Self::cubic), and unless `power` is positive and finite.
    pub fn polynomial(initial: f64, target: f64, begin: u64, end: u64, power: f64) -> Result<Self> {
        Self { initial, target, power, begin, end: Some(end), frequency: 1, zero_before: false }.checked()
    }

    /// Prunes at every `frequency`-th step only, counted from `begin` (TFMOT's default is 100).
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for 0.
    pub fn every(self, frequency: u64) -> Result<Self> {
        Self { frequency, ..self }.checked()
    }

    /// Nothing is pruned before `begin` (`CubicSL`'s `initially_zero`), instead of `initial`.
    pub fn zero_before_begin(self) -> Self {
        Self { zero_before: true, ..self }
    }

    fn checked(self) -> Result<Self> {
        let out_of_range = |name, value, range| Err(Error::OutOfRange { name, value, range });
        if !(0.0..1.0).contains(&self.target) {
            return out_of_range("target sparsity", self.target, "0 <= sparsity < 1");
        }
        if !(0.0..=self.target).contains(&self.initial) {
            return out_of_range("initial sparsity", self.initial, "0 <= initial <= target");
        }
        if !(self.power > 0.0 && self.power.is_finite()) {
            return out_of_range("power", self.power, "positive and finite");
        }
        if let Some(end) = self.end.filter(|&end| end <= self.begin) {
            return out_of_range("end", end as f64, "begin < end");
        }
        if self.frequency == 0 {
            return out_of_range("frequency", 0.0, "at least 1");
        }
        Ok(self)
    }

    /// The level of `step`, whether or not masks change there.
    pub fn sparsity(&self, step: u64) -> f64 {
        if step < self.begin && self.zero_before {
            return 0.0;
        }
        let done = step.saturating_sub(self.begin) as f64;
        let p = self.end.map_or(1.0, |end| (done / (end - self.begin) as f64).min(1.0));
        let level = self.target + (self.initial - self.target) * (1.0 - p).powf(self.power);
        level.clamp(self.initial, self.target) // rounding may leave it by a bit
    }

    /// The level to prune to at `step`, if masks change there: between `begin` and `end`, every `frequency`-th.
    pub fn update(&self, step: u64) -> Option<f64> {
        let active = step >= self.begin && self.end.is_none_or(|end| step <= end);
        (active && (step - self.begin).is_multiple_of(self.frequency)).then(|| self.sparsity(step))
    }
}

/// What serde reads, before it is believed.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw {
    initial: f64,
    target: f64,
    power: f64,
    begin: u64,
    end: Option<u64>,
    frequency: u64,
    zero_before: bool,
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for Schedule {
    type Error = Error;

    fn try_from(raw: Raw) -> Result<Self> {
        let Raw { initial, target, power, begin, end, frequency, zero_before } = raw;
        Self { initial, target, power, begin, end, frequency, zero_before }.checked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cubic_levels_are_those_of_tfmot() {
        let levels = |schedule: Schedule| [0, 25, 50, 75, 100].map(|t| schedule.sparsity(t));
        let close = |a: [f64; 5], b: [f64; 5]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(levels(Schedule::cubic(0.0, 0.8, 0, 100).unwrap()), [0.0, 0.4625, 0.7, 0.7875, 0.8]));
        assert!(close(
            levels(Schedule::cubic(0.5, 0.9, 0, 100).unwrap()),
            [0.5, 0.73125, 0.85, 0.89375, 0.9]
        ));
        assert!(close(
            levels(Schedule::polynomial(0.0, 0.8, 0, 100, 1.0).unwrap()),
            [0.0, 0.2, 0.4, 0.6, 0.8]
        ));
    }

    #[test]
    fn masks_change_between_begin_and_end_at_the_frequency() {
        let schedule = Schedule::cubic(0.1, 0.8, 10, 30).unwrap().every(7).unwrap();
        let steps: Vec<u64> = (0..100).filter(|&t| schedule.update(t).is_some()).collect();
        assert_eq!(steps, [10, 17, 24]);
        assert_eq!(schedule.sparsity(0), 0.1);
        assert_eq!(schedule.sparsity(1000), 0.8);
        assert_eq!(schedule.clone().zero_before_begin().sparsity(9), 0.0);
        assert_eq!(schedule.zero_before_begin().sparsity(10), 0.1);
    }

    #[test]
    fn constant_never_stops() {
        let schedule = Schedule::constant(0.5, 10).unwrap().every(2).unwrap();
        assert_eq!(schedule.update(9), None);
        assert_eq!(schedule.update(10), Some(0.5));
        assert_eq!(schedule.update(11), None);
        assert_eq!(schedule.update(1_000_000), Some(0.5));
    }

    #[test]
    fn refuses_levels_and_steps_that_make_no_sense() {
        for sparsity in [-0.1, 1.0, 1.1, f64::NAN, f64::INFINITY] {
            assert!(Schedule::constant(sparsity, 0).is_err());
            assert!(Schedule::cubic(0.0, sparsity, 0, 10).is_err());
            assert!(Schedule::cubic(sparsity, 0.9, 0, 10).is_err());
        }
        assert!(Schedule::cubic(0.6, 0.5, 0, 10).is_err());
        assert!(Schedule::cubic(0.0, 0.5, 10, 10).is_err());
        assert!(Schedule::polynomial(0.0, 0.5, 0, 10, 0.0).is_err());
        assert!(Schedule::polynomial(0.0, 0.5, 0, 10, f64::NAN).is_err());
        assert!(Schedule::constant(0.5, 0).unwrap().every(0).is_err());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn serde_keeps_it_and_refuses_lies() {
        let schedule = Schedule::cubic(0.1, 0.8, 10, 30).unwrap().every(7).unwrap();
        let json = serde_json::to_string(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule);
        for (from, to) in [("0.8", "1.8"), ("\"frequency\":7", "\"frequency\":0"), ("30", "3")] {
            assert!(serde_json::from_str::<Schedule>(&json.replace(from, to)).is_err());
        }
    }
}
