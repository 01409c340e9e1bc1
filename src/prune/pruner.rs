//! Compressors that leave out what matters least, and store the rest in a [`SparseTensor`].
//!
//! ```text
//! MagnitudePruner    one weight at a time, by |w|: per tensor, per row, global
//! StructuredPruner   whole rows, columns, slices of an axis, or blocks, by their norm
//! NmPruner           all but the N largest |w| of every M neighbours
//! ```
//!
//! `compress` refuses NaN and infinity. [`Pruner::mask`] only marks: it makes nothing smaller, and it keeps NaN.
//! For other [scores](super::score), give them to a [`Selection`] and the mask to [`SparseTensor::masked`].

use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{ArrayView, ArrayViewMut, Dimension};

use crate::error::Result;
use crate::float::{Float, check_finite, check_shape};
use crate::kernel::{Isa, PART, Pool};
use crate::tensor::{Mask, SparseTensor};
use crate::traits::Compressor;

use super::once;
use super::rank::{Cut, Key};
use super::report::PruneReport;
use super::select::Selection;

/// A compressor that can also tell which weights it keeps: what a network needs that goes on training.
pub trait Pruner<F: Float, D: Dimension>: Compressor<F, D, Output = SparseTensor<F, D>> {
    /// Marks what to keep of `weights`, of what `earlier` keeps. NaN ranks highest and is kept.
    ///
    /// A mask makes nothing smaller: see [`compress`](Compressor::compress) and `shrink`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if `earlier` has another shape, and whatever the settings and this tensor exclude.
    fn mask(&self, weights: ArrayView<'_, F, D>, earlier: Option<&Mask<D>>)
    -> Result<(Mask<D>, PruneReport)>;

    /// Writes the weights into `out`, and 0 where the [mask](Self::mask) does not keep. It makes nothing smaller, and for
    /// most settings no mask either: one pass over memory or two, on all threads of `pool`, into memory that is
    /// there already. The same zeros for any number of threads.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if `out` has another shape, and as [`mask`](Self::mask).
    fn prune_into(
        &self,
        weights: ArrayView<'_, F, D>,
        out: ArrayViewMut<'_, F, D>,
        _pool: &Pool,
    ) -> Result<PruneReport> {
        masked_into(self.mask(weights.view(), None)?, weights, out)
    }
}

/// `out = weights` where the mask keeps.
pub(super) fn masked_into<F: Float, D: Dimension>(
    (mask, report): (Mask<D>, PruneReport),
    weights: ArrayView<'_, F, D>,
    mut out: ArrayViewMut<'_, F, D>,
) -> Result<PruneReport> {
    check_shape("the place for the weights", out.shape(), weights.shape())?;
    out.assign(&weights);
    mask.apply(out)?;
    Ok(report)
}

/// How every pruner compresses.
pub(super) fn compress<F: Float, D: Dimension>(
    pruner: &impl Pruner<F, D>,
    weights: ArrayView<'_, F, D>,
) -> Result<SparseTensor<F, D>> {
    check_finite("weights", &weights)?;
    let (mask, _) = pruner.mask(weights.view(), None)?;
    SparseTensor::masked(weights, &mask)
}

/// An earlier mask for a share of what remains: without one, weights that are zero count as gone.
pub(super) fn remaining<F: Float, D: Dimension>(
    selection: &Selection,
    weights: &ArrayView<'_, F, D>,
    earlier: Option<&Mask<D>>,
) -> Option<Mask<D>> {
    match earlier {
        Some(earlier) => Some(earlier.clone()),
        None => selection.is_of_remaining().then(|| Mask::of_nonzero(weights.view())),
    }
}

/// Drops the weights of smallest `|w|`.
///
/// ```
/// use ndarray::array;
/// use trimnet::{Compressed, Compressor, prune::MagnitudePruner};
///
/// let weights = array![[0.1_f32, -2.0, 0.3], [4.0, -0.2, 0.0]];
/// let sparse = MagnitudePruner::sparsity(0.5)?.compress(weights.view())?;
/// assert_eq!(sparse.decompress()?, array![[0.0, -2.0, 0.3], [4.0, 0.0, 0.0]]);
/// assert_eq!(sparse.size_bytes(), 1 + 3 * 4);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MagnitudePruner {
    selection: Selection,
}

impl MagnitudePruner {
    /// Selects by `|w|`.
    pub fn new(selection: Selection) -> Self {
        Self { selection }
    }

    /// This fraction of zeros per tensor.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `0 <= sparsity <= 1`.
    pub fn sparsity(sparsity: f64) -> Result<Self> {
        Selection::sparsity(sparsity).map(Self::new)
    }

    /// Drops all `|w| < threshold`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `threshold` is finite and not negative.
    pub fn threshold(threshold: f64) -> Result<Self> {
        Selection::threshold(threshold).map(Self::new)
    }

    /// One ranking over several tensors, those of a network; a mask and a report for each. The settings are as
    /// for [`Selection::select_global`], `min_keep` too; a share of what remains without earlier masks counts
    /// zeros as gone.
    ///
    /// ```
    /// use ndarray::array;
    /// use trimnet::prune::{MagnitudePruner, PruneReport};
    ///
    /// let layers = [array![[0.1, 0.2], [0.3, 0.4]], array![[5.0, -0.35], [7.0, 8.0]]];
    /// let views: Vec<_> = layers.iter().map(|w| w.view()).collect();
    /// let pruned = MagnitudePruner::sparsity(0.5)?.mask_global(&views, None, 1)?;
    /// assert_eq!(pruned[0].0.keep(), array![[false, false], [false, true]]);    // 0.4, the last of its layer
    /// assert_eq!(pruned[1].0.keep(), array![[true, false], [true, true]]);
    /// assert_eq!(pruned.iter().map(|(_, report)| *report).sum::<PruneReport>().sparsity(), 0.5);
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Selection::select_global`].
    pub fn mask_global<F: Float, D: Dimension>(
        &self,
        weights: &[ArrayView<'_, F, D>],
        earlier: Option<&[Mask<D>]>,
        min_keep: usize,
    ) -> Result<Vec<(Mask<D>, PruneReport)>> {
        if earlier.is_none() && self.selection.is_of_remaining() {
            let nonzero: Vec<_> = weights.iter().map(|w| Mask::of_nonzero(w.view())).collect();
            return self.selection.select_global_by(weights, Key::Magnitude, Some(&nonzero), min_keep);
        }
        self.selection.select_global_by(weights, Key::Magnitude, earlier, min_keep)
    }
}

impl<F: Float, D: Dimension> Pruner<F, D> for MagnitudePruner {
    fn mask(
        &self,
        weights: ArrayView<'_, F, D>,
        earlier: Option<&Mask<D>>,
    ) -> Result<(Mask<D>, PruneReport)> {
        let earlier = remaining(&self.selection, &weights, earlier);
        self.selection.select_by(weights, Key::Magnitude, earlier.as_ref())
    }

    fn prune_into(
        &self,
        weights: ArrayView<'_, F, D>,
        mut out: ArrayViewMut<'_, F, D>,
        pool: &Pool,
    ) -> Result<PruneReport> {
        check_shape("the place for the weights", out.shape(), weights.shape())?;
        if let (Some(x), Some(out)) = (weights.as_slice(), out.as_slice_mut()) {
            if let Some(plan) = self.selection.plan_of_all(x.len())?
                && let Some(report) = once::write(pool, plan, x, out)
            {
                return Ok(report);
            }
            if let Some(cut) = self.selection.cut_of_all(pool, x, Key::Magnitude)? {
                return Ok(write(pool, cut, x, out));
            }
        }
        masked_into(self.mask(weights.view(), None)?, weights, out)
    }
}

impl<F: Float, D: Dimension> Compressor<F, D> for MagnitudePruner {
    type Output = SparseTensor<F, D>;

    fn compress(&self, weights: ArrayView<'_, F, D>) -> Result<Self::Output> {
        compress(self, weights)
    }
}

/// `out = x` without what `cut` drops.
fn write<F: Float>(pool: &Pool, cut: Option<Cut<F>>, x: &[F], out: &mut [F]) -> PruneReport {
    // Nothing is smaller than a magnitude of 0.
    let mut cut = cut.unwrap_or(Cut { value: F::zero(), ties: 0 });
    let (isa, whole, dropped, nan) = (Isa::best(), x.len(), AtomicUsize::new(0), AtomicUsize::new(0));
    pool.each(x.chunks(PART).zip(out.chunks_mut(PART)), |(x, out)| {
        let (gone, unknown) = cut.write(isa, whole, x, Key::Magnitude, out);
        dropped.fetch_add(gone, Ordering::Relaxed);
        nan.fetch_add(unknown, Ordering::Relaxed);
    });
    let (mut dropped, nan) = (dropped.into_inner(), nan.into_inner());
    if cut.counts_ties() {
        let ties = cut.ties;
        cut.drop_ties(x, Key::Magnitude, out, |out| {
            *out = F::zero();
            false
        });
        dropped += ties - cut.ties;
    }
    PruneReport::of_weights(x.len(), dropped, nan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::{PruneCount, Scope};
    use crate::traits::Compressed;
    use ndarray::{Array1, Array2, Array3, array};

    fn mask<F: Float, D: Dimension>(pruner: &MagnitudePruner, weights: &ndarray::Array<F, D>) -> Mask<D> {
        pruner.mask(weights.view(), None).unwrap().0
    }

    #[test]
    fn equal_weights_go_lowest_index_first() {
        // 3 of 8.
        let pruner = MagnitudePruner::sparsity(0.375).unwrap();
        let expected = Mask::new(array![false, false, false, true, true, true, true, true]);
        assert_eq!(mask(&pruner, &Array1::from_elem(8, -2.0)), expected);
    }

    #[test]
    fn levels_are_absolute_unless_they_are_of_what_remains() {
        let weights: Array1<f64> = (1..=100).map(f64::from).collect();
        let half = MagnitudePruner::sparsity(0.5).unwrap();
        let (first, _) = half.mask(weights.view(), None).unwrap();
        assert_eq!(half.mask(weights.view(), Some(&first)).unwrap().1.dropped, 50);
        let lower = MagnitudePruner::sparsity(0.2).unwrap();
        assert_eq!(lower.mask(weights.view(), Some(&first)).unwrap().0, first);
        // torch.nn.utils.prune: 0.5 and 0.5 leave 75 of 100 zeros.
        let half = MagnitudePruner::new(Selection::sparsity(0.5).unwrap().of_remaining());
        let (second, report) = half.mask(weights.view(), Some(&first)).unwrap();
        assert_eq!((report.dropped, second.kept()), (75, 25));
        let once = half.compress(weights.view()).unwrap();
        assert_eq!(half.compress(once.decompress().unwrap().view()).unwrap().nnz(), 25);
    }

    #[test]
    fn zeros_of_an_earlier_round_count_towards_the_level() {
        let weights = array![0.0, 5.0, 0.0, 1.0, 3.0, 2.0];
        let pruner = MagnitudePruner::sparsity(0.5).unwrap();
        let expected = Mask::new(array![false, true, false, false, true, true]);
        assert_eq!(mask(&pruner, &weights), expected);
    }

    #[test]
    fn a_dropped_weight_stays_dropped_even_if_it_grew() {
        let earlier = Mask::new(array![false, true, true, true]);
        let pruner = MagnitudePruner::sparsity(0.5).unwrap();
        let (mask, _) = pruner.mask(array![100.0, 3.0, 2.0, 1.0].view(), Some(&earlier)).unwrap();
        assert_eq!(mask, Mask::new(array![false, true, true, false]));
    }

    #[test]
    fn every_row_keeps_equally_many() {
        let weights = Array3::from_shape_fn((3, 2, 5), |(i, j, k)| ((i + 1) * (j * 5 + k + 1)) as f64);
        let selection = Selection::sparsity(0.7).unwrap().with_scope(Scope::PerRow);
        let mask = mask(&MagnitudePruner::new(selection.clone()), &weights);
        assert!(mask.keep().outer_iter().all(|row| row.iter().filter(|&&keep| keep).count() == 3));
        let vector = Array1::<f64>::ones(3);
        assert!(MagnitudePruner::new(selection).compress(vector.view()).is_err());
    }

    #[test]
    fn per_row_respects_an_earlier_mask() {
        let weights = array![[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]];
        let earlier = Mask::new(array![[false, true, true, true], [true, true, true, true]]);
        let selection = Selection::sparsity(0.5).unwrap().with_scope(Scope::PerRow);
        let (mask, _) = MagnitudePruner::new(selection).mask(weights.view(), Some(&earlier)).unwrap();
        let expected = array![[false, true, true, false], [false, false, true, true]];
        assert_eq!(mask, Mask::new(expected));
    }

    #[test]
    fn thresholds_keep_what_equals_them() {
        let pruner = MagnitudePruner::threshold(0.5).unwrap();
        assert_eq!(mask(&pruner, &array![0.5, -0.5, 0.49, 0.0]), Mask::new(array![true, true, false, false]));
        let tiny = MagnitudePruner::threshold(1e-50).unwrap();
        let weights = array![0.0_f32, -0.0, f32::from_bits(1), 1.0];
        assert_eq!(mask(&tiny, &weights), Mask::new(array![false, false, true, true]));
        for threshold in [-0.1, f64::NAN, f64::INFINITY] {
            assert!(MagnitudePruner::threshold(threshold).is_err());
        }
    }

    #[test]
    fn nan_is_kept_by_a_mask_and_refused_by_compress() {
        // torch: [NaN, 1, 2, 3], drop 1.
        let weights = array![f64::NAN, 1.0, 2.0, 3.0];
        let pruner = MagnitudePruner::sparsity(0.25).unwrap();
        let (mask, report) = pruner.mask(weights.view(), None).unwrap();
        assert_eq!(mask, Mask::new(array![true, false, true, true]));
        assert_eq!(report.nan, 1);
        let error = pruner.compress(weights.view()).unwrap_err();
        assert_eq!(error.to_string(), "weights is NaN at index [0]; only finite numbers are allowed");
        let most = MagnitudePruner::sparsity(1.0).unwrap();
        assert_eq!(most.mask(weights.view(), None).unwrap().0.kept(), 0);
    }

    #[test]
    fn pruning_into_memory_equals_the_mask() {
        let values = [0.0, -1.0, 2.0, 1.0, f64::NAN, -2.0, f64::INFINITY, -0.0, 3.0, 0.5, -0.25];
        let many = Array2::from_shape_fn((7, 10_007), |(i, j)| ((i * 10_007 + j) as f64 * 0.7).sin());
        let ties = Array2::from_shape_fn((5, 33), |(i, j)| values[(i * 7 + j * j) % values.len()]);
        for weights in [many, ties, Array2::zeros((300, 300)), Array2::zeros((0, 3))] {
            for sparsity in [0.0, 0.3, 0.9, 1.0] {
                for count in [PruneCount::HalfEven, PruneCount::TfmotKeep, PruneCount::TorchPruningKeep] {
                    let selection = Selection::sparsity(sparsity).unwrap().with_count(count);
                    into_equals_mask(&MagnitudePruner::new(selection.clone()), &weights);
                    into_equals_mask(&MagnitudePruner::new(selection.of_remaining()), &weights);
                }
            }
            into_equals_mask(&MagnitudePruner::threshold(1.0).unwrap(), &weights);
            into_equals_mask(&MagnitudePruner::threshold(0.0).unwrap(), &weights);
        }
    }

    fn into_equals_mask(pruner: &MagnitudePruner, weights: &Array2<f64>) {
        let (mask, report) = pruner.mask(weights.view(), None).unwrap();
        let mut expected = weights.clone();
        mask.apply(expected.view_mut()).unwrap();
        for pool in [Pool::single(), Pool::new(2)] {
            let mut out = Array2::from_elem(weights.raw_dim(), 7.0);
            assert_eq!(
                pruner.prune_into(weights.view(), out.view_mut(), &pool).unwrap(),
                report,
                "{pruner:?}"
            );
            assert!(out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{pruner:?}");
        }
    }

    #[test]
    fn a_sparsity_is_a_fraction() {
        for sparsity in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let error = MagnitudePruner::sparsity(sparsity).unwrap_err().to_string();
            assert_eq!(error, format!("sparsity is {sparsity}, allowed is 0 <= sparsity <= 1"));
        }
    }

    #[test]
    fn tensors_without_elements_and_of_zeros_work() {
        for count in [PruneCount::HalfEven, PruneCount::TfmotKeep, PruneCount::NncfThreshold] {
            for scope in [Scope::PerTensor, Scope::PerRow] {
                let selection = Selection::sparsity(0.5).unwrap().with_count(count).with_scope(scope);
                let pruner = MagnitudePruner::new(selection);
                for shape in [(0, 3), (3, 0), (0, 0)] {
                    let sparse = pruner.compress(Array2::<f32>::zeros(shape).view()).unwrap();
                    assert_eq!(sparse.decompress().unwrap().dim(), shape);
                }
                assert_eq!(pruner.compress(Array2::<f32>::zeros((4, 4)).view()).unwrap().nnz(), 0);
            }
        }
    }

    #[test]
    fn a_global_ranking_can_leave_every_layer_something() {
        let small = Array2::from_shape_fn((4, 5), |(i, j)| 0.001 * (i * 5 + j) as f64);
        let large = Array2::from_shape_fn((8, 10), |(i, j)| 1.0 + (i * 10 + j) as f64);
        let pruner = MagnitudePruner::sparsity(0.5).unwrap();
        let kept = |min_keep| {
            let pruned = pruner.mask_global(&[small.view(), large.view()], None, min_keep).unwrap();
            let total: PruneReport = pruned.iter().map(|(_, report)| *report).sum();
            (pruned[0].0.kept(), pruned[1].0.kept(), total.dropped)
        };
        assert_eq!(kept(0), (0, 50, 50));
        assert_eq!(kept(3), (3, 47, 50));
        assert_eq!(kept(80), (20, 80, 0));
    }

    #[test]
    fn a_global_ranking_respects_earlier_masks() {
        let layers = [array![1.0, 2.0], array![3.0, 4.0, 0.5]];
        let views: Vec<_> = layers.iter().map(|w| w.view()).collect();
        let earlier = [Mask::new(array![true, false]), Mask::new(array![true, true, true])];
        let pruner = MagnitudePruner::sparsity(0.6).unwrap();
        let pruned = pruner.mask_global(&views, Some(&earlier), 0).unwrap();
        assert_eq!(pruned[0].0, Mask::new(array![false, false]));
        assert_eq!(pruned[1].0, Mask::new(array![true, true, false]));
        assert!(pruner.mask_global(&views, Some(&earlier[..1]), 0).is_err());
        let per_row = Selection::sparsity(0.6).unwrap().with_scope(Scope::PerRow);
        assert!(MagnitudePruner::new(per_row).mask_global(&views, None, 0).is_err());
        assert_eq!(pruner.mask_global::<f32, ndarray::Ix2>(&[], None, 1).unwrap(), []);
    }
}
