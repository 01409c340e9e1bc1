//! How many entries go: the same request gives different masks elsewhere, and here each by its name.
//!
//! ```text
//! n entries, of which `gone` are masked already and rank lowest; s = sparsity; rne = round half to even
//! ```
//!
//! `s * n` is formed in f64: an f32 0.1 widened to f64 makes `0.1 * 5` a little more than a half.

use crate::error::{Error, Result};
use crate::float::Float;

use super::rank::{Cut, Found};

/// The rule that turns a sparsity into a choice, named after the libraries that follow it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum PruneCount {
    /// Exactly `rne(s * n)` lowest scores go, ties by lowest index. PyTorch's count.
    #[default]
    HalfEven,
    /// Exactly `floor(s * n)` go: torchao, and Wanda per row.
    Floor,
    /// Keeps `max(rne(n * (1 - s)), 1)`, formed in f32, and what ties with the least of them: may fall short.
    TfmotKeep,
    /// Drops scores up to and including that of rank `floor(n * s)`: one more than asked, and all ties.
    /// Needs `s < 1`.
    SparseGptThreshold,
    /// Finds the threshold for `n - floor(n * (1 - s))` entries, and drops all that tie with it too.
    TorchPruningKeep,
    /// Drops scores up to and including that of rank `floor((n - 1) * s)`: at least one, even for `s = 0`.
    NncfThreshold,
}

/// Which of the remaining scores go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Nothing,
    /// Exactly so many.
    Lowest(usize),
    /// All that are smaller than the one of this rank.
    Below(usize),
    /// The one of this rank, and all that are not larger.
    UpTo(usize),
}

impl Plan {
    /// The same where no more than `left > 0` are left. A rank beyond those can only be that of a protected entry, and those
    /// rank highest.
    pub(super) fn among(self, left: usize) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Lowest(k) => Self::Lowest(k.min(left)),
            Self::Below(rank) if rank < left => Self::Below(rank),
            Self::Below(rank) | Self::UpTo(rank) => Self::UpTo(rank.min(left - 1)),
        }
    }

    /// The rank, from 0, of the score that decides, if any goes.
    pub(super) fn rank(self) -> Option<usize> {
        match self {
            Self::Nothing => None,
            Self::Lowest(k) => k.checked_sub(1),
            Self::Below(rank) | Self::UpTo(rank) => Some(rank),
        }
    }

    /// Where to cut, given what stands at [`rank`](Self::rank).
    pub(super) fn cut<F: Float>(self, found: Found<F>) -> Cut<F> {
        found.cut(match self {
            Self::Nothing | Self::Below(_) => 0,
            Self::Lowest(k) => k - found.below,
            Self::UpTo(_) => usize::MAX,
        })
    }
}

impl PruneCount {
    /// The plan for the entries that are left of `n > 0` when `gone` are gone.
    pub(super) fn plan(self, sparsity: f64, n: usize, gone: usize) -> Result<Plan> {
        let share = sparsity * n as f64;
        let exactly = |k: f64| match (k as usize).min(n).saturating_sub(gone) {
            0 => Plan::Nothing,
            k => Plan::Lowest(k),
        };
        let up_to = |rank: usize| rank.min(n - 1).checked_sub(gone).map_or(Plan::Nothing, Plan::UpTo);
        Ok(match self {
            Self::HalfEven => exactly(share.round_ties_even()),
            Self::Floor => exactly(share),
            Self::TfmotKeep => {
                let keep = (n as f32 * (1.0 - sparsity as f32)).round_ties_even().max(1.0);
                let rank = n - (keep as usize).min(n);
                rank.checked_sub(gone).map_or(Plan::Nothing, Plan::Below)
            }
            Self::SparseGptThreshold => {
                if sparsity >= 1.0 {
                    return Err(Error::OutOfRange {
                        name: "sparsity",
                        value: sparsity,
                        range: "0 <= sparsity < 1 for SparseGptThreshold",
                    });
                }
                up_to(share as usize)
            }
            Self::TorchPruningKeep => match n - (n as f64 * (1.0 - sparsity)) as usize {
                0 => Plan::Nothing,
                k => up_to(k - 1),
            },
            Self::NncfThreshold => up_to(((n - 1) as f64 * sparsity) as usize),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_round_half_to_even() {
        for (sparsity, n, k) in [
            (0.5, 5, 2),
            (0.5, 3, 2),
            (0.5, 7, 4),
            (0.5, 2, 1),
            (0.5, 6, 3),
            (0.5, 10, 5),
            (0.25, 10, 2),
            (0.25, 2, 0),
            (0.25, 5, 1),
            (0.25, 3, 1),
            (0.25, 6, 2),
            (0.3, 5, 2),
            (0.3, 3, 1),
            (0.3, 2, 1),
            (0.3, 6, 2),
            (0.3, 10, 3),
            (0.1, 5, 0),
            (0.1, 10, 1),
            (0.1, 6, 1),
            (0.1, 3, 0),
            (0.1, 2, 0),
            (0.7, 5, 4),
            (0.7, 10, 7),
            (0.7, 3, 2),
            (0.7, 2, 1),
            (0.7, 6, 4),
        ] {
            let expected = if k == 0 { Plan::Nothing } else { Plan::Lowest(k) };
            assert_eq!(PruneCount::HalfEven.plan(sparsity, n, 0).unwrap(), expected, "{sparsity} * {n}");
        }
    }

    #[test]
    fn every_rule_on_ten_entries() {
        use PruneCount::*;
        for (count, sparsity, plan) in [
            (Floor, 0.59, Plan::Lowest(5)),
            (Floor, 0.09, Plan::Nothing),
            (Floor, 1.0, Plan::Lowest(10)),
            (TfmotKeep, 0.55, Plan::Below(6)),
            (TfmotKeep, 1.0, Plan::Below(9)),
            (TfmotKeep, 0.0, Plan::Below(0)),
            (SparseGptThreshold, 0.5, Plan::UpTo(5)),
            (SparseGptThreshold, 0.0, Plan::UpTo(0)),
            (TorchPruningKeep, 0.5, Plan::UpTo(4)),
            (TorchPruningKeep, 0.0, Plan::Nothing),
            (TorchPruningKeep, 1.0, Plan::UpTo(9)),
            (NncfThreshold, 0.5, Plan::UpTo(4)),
            (NncfThreshold, 0.0, Plan::UpTo(0)),
            (NncfThreshold, 1.0, Plan::UpTo(9)),
        ] {
            assert_eq!(count.plan(sparsity, 10, 0).unwrap(), plan, "{count:?} {sparsity}");
        }
        assert!(SparseGptThreshold.plan(1.0, 10, 0).is_err());
    }

    #[test]
    fn what_is_gone_counts_towards_the_level() {
        use PruneCount::*;
        assert_eq!(HalfEven.plan(0.5, 10, 3).unwrap(), Plan::Lowest(2));
        assert_eq!(HalfEven.plan(0.5, 10, 5).unwrap(), Plan::Nothing);
        assert_eq!(HalfEven.plan(0.5, 10, 8).unwrap(), Plan::Nothing);
        assert_eq!(TfmotKeep.plan(0.5, 10, 3).unwrap(), Plan::Below(2));
        assert_eq!(SparseGptThreshold.plan(0.5, 10, 6).unwrap(), Plan::Nothing);
        assert_eq!(NncfThreshold.plan(0.5, 10, 4).unwrap(), Plan::UpTo(0));
    }
}
