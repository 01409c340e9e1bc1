//! How large the optimizer's steps are, as a function of the epoch.
//!
//! ```text
//! constant    lr(e) = rate
//! step        lr(e) = rate * factor^floor(e / every)
//! cosine      lr(e) = last + (rate - last) * (1 + cos(pi * min(e / epochs, 1))) / 2
//! warm-up     lr(e) = rate * (start + (1 - start) * e / warm)   while e < warm, then the above at e - warm
//! ```
//!
//! The epoch `e` is fractional: the trainer asks with `step / steps per epoch`, so that a cosine falls smoothly whatever
//! the batch size. A step falls at its epoch, also where `e / every` comes out a rounding below the whole number. Cosine:
//! Loshchilov & Hutter, ICLR 2017, without restarts.

use crate::error::{Error, Result};

/// A learning rate over the epochs.
///
/// ```
/// use trimnet::nn::schedule::LearningRate;
/// let schedule = LearningRate::cosine(0.1, 0.0, 20.0)?.with_warm_up(2.0, 0.1)?;
/// assert_eq!(schedule.at(2.0), 0.1);
/// assert_eq!(schedule.at(22.0), 0.0);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw"))]
pub struct LearningRate {
    rate: f64,
    decay: Decay,
    warm: f64,
    start: f64,
}

/// How the rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
enum Decay {
    Constant,
    Step { every: f64, factor: f64 },
    Cosine { last: f64, epochs: f64 },
}

impl LearningRate {
    /// The same `rate` for ever.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `rate` is finite and not negative.
    pub fn constant(rate: f64) -> Result<Self> {
        Self::new(rate, Decay::Constant)
    }

    /// `rate`, multiplied by `factor` after each `every` epochs.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `rate` is finite and not negative, `every` finite and positive, `0 < factor <= 1`.
    pub fn step(rate: f64, every: f64, factor: f64) -> Result<Self> {
        Self::new(rate, Decay::Step { every, factor })
    }

    /// Falls along half a cosine from `rate` to `last` over `epochs`, and stays there.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `rate` is finite and not negative, `0 <= last <= rate`, `epochs` finite and positive.
    pub fn cosine(rate: f64, last: f64, epochs: f64) -> Result<Self> {
        Self::new(rate, Decay::Cosine { last, epochs })
    }

    /// Rises linearly from `start * rate` to `rate` over the first `epochs`; the schedule begins after that.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `epochs` is finite and not negative and `0 <= start <= 1`.
    pub fn with_warm_up(self, epochs: f64, start: f64) -> Result<Self> {
        Self { warm: epochs, start, ..self }.checked()
    }

    /// The rate at a fractional epoch, counted from 0.
    pub fn at(&self, epoch: f64) -> f64 {
        if epoch < self.warm {
            return self.rate * (self.start + (1.0 - self.start) * epoch / self.warm);
        }
        let after = epoch - self.warm;
        match self.decay {
            Decay::Constant => self.rate,
            Decay::Step { every, factor } => {
                // Both epochs, their difference, the period and the division round by half a unit in the last place each,
                // and 0.3 / 0.1 is below 3.
                let rounding = 4.0 * f64::EPSILON * epoch;
                self.rate * factor.powf(((after + rounding) / every).floor())
            }
            Decay::Cosine { last, epochs } => {
                let turn = (after / epochs).min(1.0) * std::f64::consts::PI;
                last + (self.rate - last) * (1.0 + turn.cos()) / 2.0
            }
        }
    }

    fn new(rate: f64, decay: Decay) -> Result<Self> {
        Self { rate, decay, warm: 0.0, start: 1.0 }.checked()
    }

    fn checked(self) -> Result<Self> {
        let check = |name, value: f64, ok: bool, range| {
            if value.is_finite() && ok { Ok(()) } else { Err(Error::OutOfRange { name, value, range }) }
        };
        check("learning rate", self.rate, self.rate >= 0.0, "0 <= learning rate, finite")?;
        check("warm-up epochs", self.warm, self.warm >= 0.0, "0 <= warm-up epochs, finite")?;
        check("warm-up start", self.start, (0.0..=1.0).contains(&self.start), "0 <= start <= 1")?;
        match self.decay {
            Decay::Constant => Ok(self),
            Decay::Step { every, factor } => {
                check("every", every, every > 0.0, "0 < every, finite")?;
                check("factor", factor, factor > 0.0 && factor <= 1.0, "0 < factor <= 1")?;
                Ok(self)
            }
            Decay::Cosine { last, epochs } => {
                check(
                    "last learning rate",
                    last,
                    (0.0..=self.rate).contains(&last),
                    "0 <= last <= learning rate",
                )?;
                check("epochs", epochs, epochs > 0.0, "0 < epochs, finite")?;
                Ok(self)
            }
        }
    }
}

/// The wire form of [`LearningRate`], checked on the way in.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw {
    rate: f64,
    decay: Decay,
    warm: f64,
    start: f64,
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for LearningRate {
    type Error = Error;

    fn try_from(Raw { rate, decay, warm, start }: Raw) -> Result<Self> {
        Self { rate, decay, warm, start }.checked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn a_step_falls_after_each_period() {
        let schedule = LearningRate::step(0.8, 3.0, 0.5).unwrap();
        let rates: Vec<_> = [0.0, 2.9, 3.0, 5.9, 6.0].iter().map(|&e| schedule.at(e)).collect();
        assert_eq!(rates, [0.8, 0.8, 0.4, 0.4, 0.2]);
    }

    #[test]
    fn a_step_falls_at_its_epoch_whatever_the_rounding() {
        let schedule = LearningRate::step(1.0, 0.1, 0.5).unwrap();
        for tenth in 0..40 {
            assert_eq!(schedule.at(f64::from(tenth) / 10.0), 0.5f64.powi(tenth), "tenth {tenth}");
            assert_eq!(schedule.at(f64::from(tenth) / 10.0 + 0.09), 0.5f64.powi(tenth), "and a while");
        }
        for warm in [0.3, 0.9, 10.0, 100.1] {
            let schedule = schedule.with_warm_up(warm, 0.0).unwrap();
            for tenth in 0..40 {
                let epoch = warm + f64::from(tenth) / 10.0;
                assert_eq!(schedule.at(epoch), 0.5f64.powi(tenth), "{warm} and tenth {tenth}");
            }
        }
    }

    #[test]
    fn a_cosine_is_half_way_in_the_middle_and_stays_at_its_end() {
        let schedule = LearningRate::cosine(1.0, 0.2, 10.0).unwrap();
        assert_eq!(schedule.at(0.0), 1.0);
        assert_abs_diff_eq!(schedule.at(5.0), 0.6, epsilon = 1e-15);
        assert_eq!(schedule.at(10.0), 0.2);
        assert_eq!(schedule.at(99.0), 0.2);
    }

    #[test]
    fn a_warm_up_rises_linearly_and_then_hands_over() {
        let schedule = LearningRate::step(1.0, 1.0, 0.1).unwrap().with_warm_up(4.0, 0.2).unwrap();
        let rates: Vec<_> = [0.0, 2.0, 4.0, 5.0].iter().map(|&e| schedule.at(e)).collect();
        assert_abs_diff_eq!(rates.as_slice(), [0.2, 0.6, 1.0, 0.1].as_slice(), epsilon = 1e-15);
    }

    #[test]
    fn refuses_settings_out_of_range() {
        for rate in [-0.1, f64::NAN, f64::INFINITY] {
            assert!(LearningRate::constant(rate).is_err());
        }
        assert!(LearningRate::step(0.1, 0.0, 0.5).is_err());
        assert!(LearningRate::step(0.1, 1.0, 0.0).is_err());
        assert!(LearningRate::step(0.1, 1.0, 1.1).is_err());
        assert!(LearningRate::cosine(0.1, 0.2, 10.0).is_err());
        assert!(LearningRate::cosine(0.1, 0.0, f64::NAN).is_err());
        assert!(LearningRate::constant(0.1).unwrap().with_warm_up(-1.0, 0.5).is_err());
        assert!(LearningRate::constant(0.1).unwrap().with_warm_up(1.0, 1.5).is_err());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_stored_schedule_is_checked_when_it_is_read() {
        let schedule = LearningRate::cosine(0.1, 0.0, 5.0).unwrap();
        let text = serde_json::to_string(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<LearningRate>(&text).unwrap(), schedule);
        assert!(serde_json::from_str::<LearningRate>(&text.replace("0.1", "-0.1")).is_err());
    }
}
