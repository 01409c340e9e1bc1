//! Which scores are too low: by a threshold, or exactly as many as a sparsity asks for.
//!
//! ```text
//! threshold   score < t goes
//! sparsity    the k lowest scores go, ties lowest index first     k = rne(s * n), or another PruneCount
//! ```
//!
//! `n` counts the entries of the scope: a tensor, one row, or several tensors together. NaN ranks highest: it is
//! kept, and reported. What an earlier mask dropped ranks lowest and stays dropped, so that levels are absolute:
//! 0.5 and then 0.8 leave 80 % of zeros; with [`of_remaining`](Selection::of_remaining), as PyTorch has it, 90 %.

use std::borrow::Cow;

use ndarray::{ArrayView, Dimension};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::kernel::Pool as Threads;
use crate::tensor::{Mask, as_matrix};

use super::count::{Plan, PruneCount};
use super::pool::{Pool, kept};
use super::rank::{self, Cut, Key};
use super::report::PruneReport;

/// Among which entries the lowest are sought.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Scope {
    /// Among all of the tensor.
    #[default]
    PerTensor,
    /// Among each row by itself; the first axis counts rows. Every row keeps equally many.
    PerRow,
}

#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
enum Level {
    Sparsity(f64),
    Threshold(f64),
}

/// How many entries go, and among which.
///
/// ```
/// use ndarray::array;
/// use trimnet::prune::{Scope, Selection};
///
/// let scores = array![[0.1, 0.4, 0.2, 0.3], [9.0, 7.0, 8.0, 6.0]];
/// let half = Selection::sparsity(0.5)?;
/// let (mask, report) = half.select(scores.view(), None)?;
/// assert_eq!(mask.keep(), array![[false; 4], [true; 4]]);
/// assert_eq!(report.dropped, 4);
///
/// let (mask, _) = half.with_scope(Scope::PerRow).select(scores.view(), Some(&mask))?;
/// assert_eq!(mask.keep(), array![[false; 4], [true, false, true, false]]);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw"))]
pub struct Selection {
    level: Level,
    count: PruneCount,
    scope: Scope,
    of_remaining: bool,
}

impl Selection {
    /// As many as make this fraction of zeros, 0 = dense, 1 = nothing is left.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= sparsity <= 1`.
    pub fn sparsity(sparsity: f64) -> Result<Self> {
        Self::new(Level::Sparsity(sparsity))
    }

    /// All that score below `threshold`; what scores exactly that is kept.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `threshold` is finite and not negative.
    pub fn threshold(threshold: f64) -> Result<Self> {
        Self::new(Level::Threshold(threshold))
    }

    fn new(level: Level) -> Result<Self> {
        match level {
            Level::Sparsity(s) if !(0.0..=1.0).contains(&s) => {
                Err(Error::OutOfRange { name: "sparsity", value: s, range: "0 <= sparsity <= 1" })
            }
            Level::Threshold(t) if !(t >= 0.0 && t.is_finite()) => {
                Err(Error::OutOfRange { name: "threshold", value: t, range: "finite, at least 0" })
            }
            _ => {
                Ok(Self { level, count: PruneCount::default(), scope: Scope::default(), of_remaining: false })
            }
        }
    }

    /// Counts by another rule. A threshold counts nothing.
    pub fn with_count(self, count: PruneCount) -> Self {
        Self { count, ..self }
    }

    /// Selects in another scope.
    pub fn with_scope(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// The sparsity is a share of what an earlier mask has left, as in `torch.nn.utils.prune`.
    pub fn of_remaining(self) -> Self {
        Self { of_remaining: true, ..self }
    }

    pub(super) fn is_of_remaining(&self) -> bool {
        self.of_remaining
    }

    /// Keeps what scores high enough, of what `earlier` keeps.
    ///
    /// # Errors
    /// [`Error::Shape`] if `earlier` has another shape; [`Error::Unsupported`] for [`Scope::PerRow`] with fewer
    /// than two axes; [`Error::OutOfRange`] if the [`PruneCount`] excludes this sparsity.
    pub fn select<F: Float, D: Dimension>(
        &self,
        scores: ArrayView<'_, F, D>,
        earlier: Option<&Mask<D>>,
    ) -> Result<(Mask<D>, PruneReport)> {
        self.select_by(scores, Key::Value, earlier)
    }

    /// [`select`](Self::select) by the `key` of each value, which spares an array of scores.
    pub(super) fn select_by<F: Float, D: Dimension>(
        &self,
        values: ArrayView<'_, F, D>,
        key: Key,
        earlier: Option<&Mask<D>>,
    ) -> Result<(Mask<D>, PruneReport)> {
        let mut pool = Pool::new(values, earlier)?;
        match self.scope {
            Scope::PerTensor => self.cut(std::slice::from_mut(&mut pool), 0, key)?,
            Scope::PerRow if pool.dim.ndim() < 2 => {
                return Err(Error::Unsupported {
                    what: "selection per row",
                    reason: format!("needs two axes or more, got shape {:?}", pool.dim.slice()),
                });
            }
            Scope::PerRow => {
                let columns = as_matrix(pool.dim.slice()).1.max(1);
                let (mut left, mut scratch) = (Vec::new(), Vec::new());
                let filtered = earlier.is_some();
                let (values, keep) = pool.parts_mut();
                for (values, keep) in values.chunks_exact(columns).zip(keep.chunks_exact_mut(columns)) {
                    let row = if filtered {
                        left.clear();
                        left.extend(kept(values, keep));
                        &left
                    } else {
                        values
                    };
                    let gone = columns - row.len();
                    let single = Threads::single();
                    if let Some(mut cut) = self.find(&single, &[row], columns, gone, key, &mut scratch)? {
                        cut.apply(values, key, keep);
                    }
                }
            }
        }
        pool.finish(key)
    }

    /// One ranking over several tensors: what scores lowest in all of them goes, wherever it stands.
    ///
    /// Of each tensor at least the `min_keep` best entries are kept, if it has as many left: a ranking by
    /// magnitude can empty a whole layer otherwise. Then others go in their place, as far as there are any.
    /// Gives one mask and report per tensor; the sum of the reports is the whole.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `earlier` has one mask of the right shape per tensor; [`Error::Unsupported`] for
    /// [`Scope::PerRow`]; [`Error::OutOfRange`] if the [`PruneCount`] excludes this sparsity.
    pub fn select_global<F: Float, D: Dimension>(
        &self,
        scores: &[ArrayView<'_, F, D>],
        earlier: Option<&[Mask<D>]>,
        min_keep: usize,
    ) -> Result<Vec<(Mask<D>, PruneReport)>> {
        self.select_global_by(scores, Key::Value, earlier, min_keep)
    }

    pub(super) fn select_global_by<F: Float, D: Dimension>(
        &self,
        values: &[ArrayView<'_, F, D>],
        key: Key,
        earlier: Option<&[Mask<D>]>,
        min_keep: usize,
    ) -> Result<Vec<(Mask<D>, PruneReport)>> {
        if self.scope != Scope::PerTensor {
            return Err(Error::Unsupported {
                what: "global selection",
                reason: "ranks all entries together, so that no other scope applies".into(),
            });
        }
        if let Some(earlier) = earlier {
            check_shape("earlier masks", &[earlier.len()], &[values.len()])?;
        }
        let mut pools = values
            .iter()
            .enumerate()
            .map(|(i, values)| Pool::new(values.view(), earlier.map(|masks| &masks[i])))
            .collect::<Result<Vec<_>>>()?;
        self.cut(&mut pools, min_keep, key)?;
        pools.into_iter().map(|pool| pool.finish(key)).collect()
    }

    /// Cuts all pools at the same score.
    fn cut<F: Float, D: Dimension>(
        &self,
        pools: &mut [Pool<'_, F, D>],
        min_keep: usize,
        key: Key,
    ) -> Result<()> {
        let mut scratch = Vec::new();
        let n = pools.iter().map(|pool| pool.keep.len()).sum();
        let gone = pools.iter().map(Pool::gone).sum();
        let mut protected = Vec::with_capacity(pools.len());
        for pool in &mut *pools {
            protected.push(pool.protect(min_keep, key, &mut scratch));
        }
        let remaining: Vec<Cow<'_, [F]>> = pools.iter().map(Pool::remaining).collect();
        let parts: Vec<&[F]> = remaining.iter().map(|part| &**part).collect();
        let cut = self.find(&Threads::for_elements(n), &parts, n, gone, key, &mut scratch)?;
        drop(remaining);
        if let Some(mut cut) = cut {
            pools.iter_mut().for_each(|pool| pool.apply(&mut cut, key));
        }
        for (pool, protected) in pools.iter_mut().zip(protected) {
            pool.keep.iter_mut().zip(protected).for_each(|(keep, protected)| *keep |= protected);
        }
        Ok(())
    }

    /// Where to cut all of `values`, none of which is gone, or `None` if another scope or what remains matters.
    pub(super) fn cut_of_all<F: Float>(
        &self,
        threads: &Threads,
        values: &[F],
        key: Key,
    ) -> Result<Option<Option<Cut<F>>>> {
        if self.scope != Scope::PerTensor || self.of_remaining {
            return Ok(None);
        }
        self.find(threads, &[values], values.len(), 0, key, &mut Vec::new()).map(Some)
    }

    /// What goes of `n` entries of which none is gone, or `None` if that is no matter of their ranks alone.
    pub(super) fn plan_of_all(&self, n: usize) -> Result<Option<Plan>> {
        match self.level {
            Level::Sparsity(sparsity) if n > 0 && self.scope == Scope::PerTensor && !self.of_remaining => {
                self.count.plan(sparsity, n, 0).map(|plan| Some(plan.among(n)))
            }
            _ => Ok(None),
        }
    }

    /// Where to cut the values of `parts`, what is left of `n` entries of which `gone` are gone.
    fn find<F: Float>(
        &self,
        threads: &Threads,
        parts: &[&[F]],
        n: usize,
        gone: usize,
        key: Key,
        scratch: &mut Vec<F>,
    ) -> Result<Option<Cut<F>>> {
        let sparsity = match self.level {
            Level::Threshold(threshold) => {
                // A threshold below all numbers of the type is still above 0.
                let least = F::min_positive_value() * F::epsilon();
                let value = if threshold > 0.0 { F::of(threshold).max(least) } else { F::zero() };
                return Ok(Some(Cut { value, ties: 0 }));
            }
            Level::Sparsity(sparsity) => sparsity,
        };
        let (n, gone) = if self.of_remaining { (n - gone, 0) } else { (n, gone) };
        let left: usize = parts.iter().map(|part| part.len()).sum();
        if n == 0 || left == 0 {
            return Ok(None);
        }
        let plan = self.count.plan(sparsity, n, gone)?.among(left);
        let found = plan.rank().and_then(|rank| rank::nth(threads, parts, key, rank, scratch));
        Ok(found.map(|found| plan.cut(found)))
    }
}

/// What serde reads, before it is believed.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw {
    level: Level,
    count: PruneCount,
    scope: Scope,
    of_remaining: bool,
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for Selection {
    type Error = Error;

    fn try_from(Raw { level, count, scope, of_remaining }: Raw) -> Result<Self> {
        Ok(Self { count, scope, of_remaining, ..Self::new(level)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::score::{self, Norm};
    use ndarray::{Array1, Array2, array};

    fn floor(sparsity: f64) -> Selection {
        Selection::sparsity(sparsity).unwrap().with_count(PruneCount::Floor)
    }

    fn bits(mask: &Mask<ndarray::Ix2>) -> Array2<u8> {
        mask.keep().mapv(u8::from)
    }

    fn line(selection: &Selection, scores: &[f64]) -> Vec<u8> {
        let scores = Array1::from(scores.to_vec());
        selection.select(scores.view(), None).unwrap().0.keep().iter().map(|&keep| keep.into()).collect()
    }

    #[test]
    fn wanda_per_row_and_torchaos_over_the_layer() {
        let weights = array![[4.0_f64, 1.0, 1.0, 1.0], [0.4, 0.3, 0.2, 0.1]];
        let norms = array![0.5, 2.0, 1.0, 1.0];
        let scores = score::wanda(weights.view(), norms.view()).unwrap();
        let (mask, _) = floor(0.5).with_scope(Scope::PerRow).select(scores.view(), None).unwrap();
        assert_eq!(bits(&mask), array![[1, 1, 0, 0], [0, 1, 1, 0]]);
        let scores = score::wanda(weights.view(), norms.mapv(|x| x * x).view()).unwrap();
        let (mask, _) = floor(0.5).select(scores.view(), None).unwrap();
        assert_eq!(bits(&mask), array![[0, 1, 1, 1], [0, 1, 0, 0]]);
    }

    #[test]
    fn wanda_of_the_golden_layer() {
        let weights = array![[0.9, -0.5, 0.3, 0.1], [-0.2, 0.7, 0.6, -0.8]];
        let x = array![
            [1.0, 0.5, 0.0, 0.25],
            [0.5, 1.0, 0.5, 0.0],
            [0.0, 0.5, 1.0, 0.5],
            [0.25, 0.0, 0.5, 1.0],
            [1.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, 1.0, 1.0],
        ];
        let norms = score::input_norms(x.view()).unwrap();
        let scores = score::wanda(weights.view(), norms.view()).unwrap();
        let (mask, _) = floor(0.5).with_scope(Scope::PerRow).select(scores.view(), None).unwrap();
        assert_eq!(bits(&mask), array![[1, 1, 0, 0], [0, 1, 0, 1]]);
    }

    #[test]
    fn the_same_request_gives_six_masks() {
        use PruneCount::*;
        // Sorted: 1 2 2 2 3 4 5.
        let scores = [2.0, 5.0, 1.0, 2.0, 4.0, 2.0, 3.0];
        for (count, sparsity, expected) in [
            (HalfEven, 0.36, [0, 1, 0, 0, 1, 1, 1]),
            (Floor, 0.36, [0, 1, 0, 1, 1, 1, 1]),
            (TfmotKeep, 0.36, [1, 1, 0, 1, 1, 1, 1]),
            (SparseGptThreshold, 0.5, [0, 1, 0, 0, 1, 0, 1]),
            (SparseGptThreshold, 0.6, [0, 1, 0, 0, 1, 0, 0]),
            (TorchPruningKeep, 0.36, [0, 1, 0, 0, 1, 0, 1]),
            (NncfThreshold, 0.1, [1, 1, 0, 1, 1, 1, 1]),
            (NncfThreshold, 0.36, [0, 1, 0, 0, 1, 0, 1]),
        ] {
            let selection = Selection::sparsity(sparsity).unwrap().with_count(count);
            assert_eq!(line(&selection, &scores), expected, "{count:?}");
        }
    }

    #[test]
    fn tfmot_keeps_one_at_least_and_all_that_tie() {
        let all = Selection::sparsity(1.0).unwrap().with_count(PruneCount::TfmotKeep);
        assert_eq!(line(&all, &[1.0, 3.0, 2.0, 3.0]), [0, 1, 0, 1]);
    }

    #[test]
    fn an_f32_tenth_would_count_wrong() {
        let scores = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(line(&Selection::sparsity(0.1).unwrap(), &scores), [1; 5]);
        assert_eq!(line(&Selection::sparsity(f64::from(0.1_f32)).unwrap(), &scores), [0, 1, 1, 1, 1]);
    }

    #[test]
    fn nan_ranks_above_infinity_and_is_reported() {
        let scores = array![f32::NAN, f32::INFINITY, 1.0, f32::NAN];
        let (mask, report) = Selection::sparsity(0.5).unwrap().select(scores.view(), None).unwrap();
        assert_eq!(mask, Mask::new(array![true, false, false, true]));
        assert_eq!((report.nan, report.dropped, report.units), (2, 2, 4));
        let (mask, _) = Selection::sparsity(0.75).unwrap().select(scores.view(), None).unwrap();
        assert_eq!(mask, Mask::new(array![false, false, false, true]));
        let (mask, _) = Selection::threshold(1e30).unwrap().select(scores.view(), None).unwrap();
        assert_eq!(mask, Mask::new(array![true, true, false, true]));
    }

    #[test]
    fn lamp_keeps_the_best_of_every_layer() {
        let layers = [array![0.01, 0.02, 0.03, 0.01], array![100.0, 200.0, 300.0, 100.0]];
        let scores: Vec<_> = layers.iter().map(|w| score::lamp(w.view())).collect();
        let views: Vec<_> = scores.iter().map(|s| s.view()).collect();
        let pruned = Selection::sparsity(0.75).unwrap().select_global(&views, None, 0).unwrap();
        for (mask, report) in pruned {
            assert_eq!(mask, Mask::new(array![false, false, true, false]));
            assert_eq!(report.dropped, 3);
        }
    }

    #[test]
    fn random_scores_drop_any_that_are_not_spared() {
        let scores = score::random::<f32, _>((40, 50), 7);
        let (mask, _) = Selection::sparsity(0.5).unwrap().select(scores.view(), None).unwrap();
        assert_eq!(mask.kept(), 1000);
        let weights = score::magnitude(Array2::<f32>::ones((40, 50)).view(), Norm::L2);
        assert_ne!(Selection::sparsity(0.5).unwrap().select(weights.view(), None).unwrap().0, mask);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn serde_keeps_it_and_refuses_lies() {
        let selection = floor(0.5).with_scope(Scope::PerRow).of_remaining();
        let json = serde_json::to_string(&selection).unwrap();
        assert_eq!(serde_json::from_str::<Selection>(&json).unwrap(), selection);
        assert!(serde_json::from_str::<Selection>(&json.replace("0.5", "1.5")).is_err());
        assert!(serde_json::from_str::<Selection>(&json.replace("0.5", "-1")).is_err());
        let nm = crate::prune::NmPruner::keep(2, 4).unwrap();
        let json = serde_json::to_string(&nm).unwrap();
        assert_eq!(serde_json::from_str::<crate::prune::NmPruner>(&json).unwrap(), nm);
        assert!(serde_json::from_str::<crate::prune::NmPruner>(&json.replace('4', "1")).is_err());
        let blocks = crate::prune::StructuredPruner::blocks(2, 3, floor(0.5)).unwrap();
        let json = serde_json::to_string(&blocks).unwrap();
        assert_eq!(serde_json::from_str::<crate::prune::StructuredPruner>(&json).unwrap(), blocks);
        assert!(serde_json::from_str::<crate::prune::StructuredPruner>(&json.replace('3', "0")).is_err());
    }
}
