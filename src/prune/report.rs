//! What a selection did, in numbers.

use std::fmt;
use std::iter::Sum;

/// What a selection did. It speaks of a mask, which makes nothing smaller by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct PruneReport {
    /// What competed: weights, rows, columns or blocks.
    pub units: usize,
    /// How many of them are gone: the `k` that the level came to, with what an earlier mask had dropped.
    pub dropped: usize,
    /// Number of weights.
    pub weights: usize,
    /// How many of them the mask does not keep.
    pub zeros: usize,
    /// Units whose score is NaN; they rank highest.
    pub nan: usize,
}

impl PruneReport {
    /// That of single weights.
    pub(super) fn of_weights(weights: usize, dropped: usize, nan: usize) -> Self {
        Self { units: weights, dropped, weights, zeros: dropped, nan }
    }

    /// Fraction of zeros in the mask, 0 for no weights.
    pub fn sparsity(&self) -> f64 {
        if self.weights == 0 { 0.0 } else { self.zeros as f64 / self.weights as f64 }
    }
}

impl Sum for PruneReport {
    fn sum<I: Iterator<Item = Self>>(reports: I) -> Self {
        reports.fold(Self::default(), |a, b| Self {
            units: a.units + b.units,
            dropped: a.dropped + b.dropped,
            weights: a.weights + b.weights,
            zeros: a.zeros + b.zeros,
            nan: a.nan + b.nan,
        })
    }
}

impl fmt::Display for PruneReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { units, dropped, weights, zeros, nan } = self;
        write!(f, "{zeros} of {weights} weights masked ({:.2} %)", 100.0 * self.sparsity())?;
        if units != weights {
            write!(f, ", {dropped} of {units} units")?;
        }
        if *nan > 0 {
            write!(f, ", {nan} NaN")?;
        }
        write!(f, "; nothing is smaller before it is stored sparse or shrunk")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_that_nothing_is_smaller_yet() {
        let report = PruneReport { units: 5, dropped: 2, weights: 20, zeros: 8, nan: 1 };
        assert_eq!(
            report.to_string(),
            "8 of 20 weights masked (40.00 %), 2 of 5 units, 1 NaN; nothing is smaller before it is stored \
             sparse or shrunk"
        );
        assert_eq!(PruneReport::default().sparsity(), 0.0);
    }
}
