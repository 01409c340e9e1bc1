//! A number that changes with the steps of training: straight lines between given steps, constant outside of them.

use std::ops::Range;

use crate::error::{Error, Result};

#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Vec<(u64, f64)>", into = "Vec<(u64, f64)>"))]
pub(super) struct Ramp {
    knots: Vec<(u64, f64)>,
}

impl Ramp {
    /// # Errors
    /// [`Error::Empty`] without any; [`Error::OutOfRange`] unless the steps rise and the factors are finite and not negative.
    pub(super) fn new(knots: &[(u64, f64)]) -> Result<Self> {
        if knots.is_empty() {
            return Err(Error::Empty { what: "the list of factors" });
        }
        for pair in knots.windows(2) {
            if let [(before, _), (step, _)] = *pair
                && step <= before
            {
                let range = "above the step before it";
                return Err(Error::OutOfRange { name: "step of a factor", value: step as f64, range });
            }
        }
        match knots.iter().find(|(_, factor)| !(*factor >= 0.0 && factor.is_finite())) {
            Some(&(_, value)) => {
                Err(Error::OutOfRange { name: "factor", value, range: "finite and at least 0" })
            }
            None => Ok(Self { knots: knots.to_vec() }),
        }
    }

    pub(super) fn at(&self, step: u64) -> f64 {
        let after = self.knots.partition_point(|&(at, _)| at <= step);
        match (after.checked_sub(1).and_then(|before| self.knots.get(before)), self.knots.get(after)) {
            (Some(&(start, from)), Some(&(end, to))) => {
                from + (to - from) * ((step - start) as f64 / (end - start) as f64)
            }
            (Some(&(_, factor)), None) | (None, Some(&(_, factor))) => factor,
            (None, None) => 0.0,
        }
    }
}

impl TryFrom<Vec<(u64, f64)>> for Ramp {
    type Error = Error;

    fn try_from(knots: Vec<(u64, f64)>) -> Result<Self> {
        Self::new(&knots)
    }
}

impl From<Ramp> for Vec<(u64, f64)> {
    fn from(ramp: Ramp) -> Self {
        ramp.knots
    }
}

/// Whether a callback that was given a range of linear layers, or none, means this one.
pub(super) fn means(linears: &Option<Range<usize>>, index: usize) -> bool {
    linears.as_ref().is_none_or(|linears| linears.contains(&index))
}
