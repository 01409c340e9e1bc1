//! The values that compete for staying: those of one tensor that an earlier mask has left.

use std::borrow::Cow;

use ndarray::{ArrayView, CowArray, Dimension};

use crate::error::Result;
use crate::float::{Float, check_shape};
use crate::kernel::Pool as Threads;
use crate::tensor::Mask;

use super::rank::{self, Cut, Key};
use super::report::PruneReport;

/// The kept ones among `values`.
pub(super) fn kept<F: Float>(values: &[F], keep: &[bool]) -> impl Iterator<Item = F> {
    values.iter().zip(keep).filter(|(_, keep)| **keep).map(|(&value, _)| value)
}

/// The values of one tensor, and which of them are still in.
pub(super) struct Pool<'a, F, D: Dimension> {
    pub(super) dim: D,
    /// In row-major order without holes: the order of ties.
    values: CowArray<'a, F, D>,
    pub(super) keep: Vec<bool>,
    /// Whether anything in `keep` may be false.
    filtered: bool,
}

impl<'a, F: Float, D: Dimension> Pool<'a, F, D> {
    pub(super) fn new(values: ArrayView<'a, F, D>, earlier: Option<&Mask<D>>) -> Result<Self> {
        let dim = values.raw_dim();
        let keep = match earlier {
            None => vec![true; values.len()],
            Some(earlier) => {
                check_shape("earlier mask", earlier.keep().shape(), values.shape())?;
                earlier.keep().iter().copied().collect()
            }
        };
        let values = if values.is_standard_layout() {
            CowArray::from(values)
        } else {
            CowArray::from(values.as_standard_layout().into_owned())
        };
        Ok(Self { dim, values, keep, filtered: earlier.is_some() })
    }

    fn slice(&self) -> &[F] {
        self.values.as_slice().unwrap_or_default()
    }

    pub(super) fn gone(&self) -> usize {
        self.keep.iter().filter(|&&keep| !keep).count()
    }

    pub(super) fn remaining(&self) -> Cow<'_, [F]> {
        match self.filtered {
            true => Cow::Owned(kept(self.slice(), &self.keep).collect()),
            false => Cow::Borrowed(self.slice()),
        }
    }

    /// Takes the `min_keep` best that are left out of the pool, and tells which they are.
    pub(super) fn protect(&mut self, min_keep: usize, key: Key, scratch: &mut Vec<F>) -> Vec<bool> {
        if min_keep == 0 {
            return Vec::new();
        }
        let mut best = self.keep.clone();
        let remaining = self.remaining();
        if let Some(worse) = remaining.len().checked_sub(min_keep).filter(|&worse| worse > 0)
            && let Some(found) = rank::nth(&Threads::single(), &[&*remaining], key, worse - 1, scratch)
        {
            found.cut(worse - found.below).apply(self.slice(), key, &mut best);
        }
        self.keep.iter_mut().zip(&best).for_each(|(keep, &best)| *keep &= !best);
        self.filtered = true;
        best
    }

    /// All values, and which of them are still in.
    pub(super) fn parts_mut(&mut self) -> (&[F], &mut [bool]) {
        (self.values.as_slice().unwrap_or_default(), &mut self.keep)
    }

    pub(super) fn apply(&mut self, cut: &mut Cut<F>, key: Key) {
        let (values, keep) = self.parts_mut();
        cut.apply(values, key, keep);
    }

    pub(super) fn finish(self, key: Key) -> Result<(Mask<D>, PruneReport)> {
        let (weights, dropped) = (self.keep.len(), self.gone());
        let nan = self.slice().iter().map(|&value| usize::from(key.of(value).is_nan())).sum();
        let mask = Mask::from_row_major(self.dim, self.keep)?;
        Ok((mask, PruneReport::of_weights(weights, dropped, nan)))
    }
}
