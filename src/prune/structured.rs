//! Structured pruning: whole rows, columns, slices or blocks go, by their norm.
//!
//! ```text
//! score[u] = norm of the weights of unit u        u: a row, a column, a block
//! ```
//!
//! Only dropped rows and columns can be shrunk away; blocks are what fast sparse kernels like.

use ndarray::{ArrayView, ArrayViewMut, Axis, Dimension, Ix2};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::kernel::Pool;
use crate::tensor::{Mask, SparseTensor, as_matrix};
use crate::traits::Compressor;

use super::pruner::{self, Pruner, masked_into};
use super::report::PruneReport;
use super::rows;
use super::score::{self, Norm};
use super::select::Selection;

/// What goes as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
enum Unit {
    Slices { axis: usize },
    Blocks { height: usize, width: usize },
}

/// Drops whole rows, columns or blocks of smallest norm. The sparsity counts them, not weights.
///
/// ```
/// use ndarray::array;
/// use trimnet::{Compressed, Compressor, prune::{Selection, StructuredPruner}};
///
/// let weights = array![[0.1_f32, -2.0], [0.5, 0.5], [4.0, -0.2], [0.0, 0.0]];
/// let half = Selection::sparsity(0.5)?;
/// let sparse = StructuredPruner::rows(half).compress(weights.view())?;
/// assert_eq!(sparse.decompress()?, array![[0.1, -2.0], [0.0, 0.0], [4.0, -0.2], [0.0, 0.0]]);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw"))]
pub struct StructuredPruner {
    unit: Unit,
    norm: Norm,
    selection: Selection,
}

impl StructuredPruner {
    /// Whole rows, the output neurons of a weight `[out, in]`, by their L2 norm.
    pub fn rows(selection: Selection) -> Self {
        Self::slices(Axis(0), selection)
    }

    /// Whole columns, the inputs of a weight `[out, in]`, by their L2 norm.
    pub fn columns(selection: Selection) -> Self {
        Self::slices(Axis(1), selection)
    }

    /// Whole slices along any axis, by their L2 norm.
    pub fn slices(axis: Axis, selection: Selection) -> Self {
        Self { unit: Unit::Slices { axis: axis.index() }, norm: Norm::default(), selection }
    }

    /// Whole blocks of `height` rows and `width` columns, by their mean L2 norm, see [`score::block_norms`].
    /// The first axis counts rows, all others together are columns; blocks at the edge may be smaller.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if `height` or `width` is zero.
    pub fn blocks(height: usize, width: usize, selection: Selection) -> Result<Self> {
        Self { unit: Unit::Blocks { height, width }, norm: Norm::default(), selection }.checked()
    }

    /// Ranks by another norm.
    pub fn with_norm(self, norm: Norm) -> Self {
        Self { norm, ..self }
    }

    fn checked(self) -> Result<Self> {
        match self.unit {
            Unit::Blocks { height: 0, .. } => {
                Err(Error::OutOfRange { name: "block height", value: 0.0, range: "at least 1" })
            }
            Unit::Blocks { width: 0, .. } => {
                Err(Error::OutOfRange { name: "block width", value: 0.0, range: "at least 1" })
            }
            _ => Ok(self),
        }
    }

    /// Calls `f` for every run of weights in `flat` that belong together, with the number of their unit.
    fn runs<T>(&self, shape: &[usize], flat: &mut [T], mut f: impl FnMut(usize, &mut [T])) {
        match self.unit {
            Unit::Slices { axis } => {
                let length = shape[axis].max(1);
                let inner: usize = shape[axis + 1..].iter().product();
                let runs = flat.chunks_exact_mut(inner.max(1));
                (0..length).cycle().zip(runs).for_each(|(unit, run)| f(unit, run));
            }
            Unit::Blocks { height, width } => {
                let columns = as_matrix(shape).1.max(1);
                for (row, weights) in flat.chunks_exact_mut(columns).enumerate() {
                    let first = row / height * columns.div_ceil(width);
                    (first..).zip(weights.chunks_mut(width)).for_each(|(unit, run)| f(unit, run));
                }
            }
        }
    }
}

impl<F: Float, D: Dimension> Pruner<F, D> for StructuredPruner {
    fn mask(
        &self,
        weights: ArrayView<'_, F, D>,
        earlier: Option<&Mask<D>>,
    ) -> Result<(Mask<D>, PruneReport)> {
        // Slices as one row per slice, blocks as they lie.
        let scores = match self.unit {
            Unit::Slices { axis } => {
                score::slice_norms(weights.view(), Axis(axis), self.norm)?.insert_axis(Axis(0))
            }
            Unit::Blocks { height, width } => score::block_norms(weights.view(), [height, width], self.norm)?,
        };
        let earlier = pruner::remaining(&self.selection, &weights, earlier);
        let mut keep = match &earlier {
            None => vec![true; weights.len()],
            Some(earlier) => {
                check_shape("earlier mask", earlier.keep().shape(), weights.shape())?;
                earlier.keep().iter().copied().collect()
            }
        };
        // A unit takes part as long as one weight of it is left.
        let left = earlier.is_some().then(|| {
            let mut left = vec![false; scores.len()];
            self.runs(weights.shape(), &mut keep, |unit, run| left[unit] |= run.contains(&true));
            let mut left = left.into_iter();
            Mask::<Ix2>::new(scores.map(|_| left.next().unwrap_or_default()))
        });
        let (units, report) = self.selection.select(scores.view(), left.as_ref())?;
        let units: Vec<bool> = units.keep().iter().copied().collect();
        self.runs(weights.shape(), &mut keep, |unit, run| {
            if !units[unit] {
                run.fill(false);
            }
        });
        Mask::from_row_major(weights.raw_dim(), keep).map(|mask| {
            let (weights, zeros) = (mask.len(), mask.len() - mask.kept());
            (mask, PruneReport { weights, zeros, ..report })
        })
    }

    fn prune_into(
        &self,
        weights: ArrayView<'_, F, D>,
        mut out: ArrayViewMut<'_, F, D>,
        pool: &Pool,
    ) -> Result<PruneReport> {
        check_shape("the place for the weights", out.shape(), weights.shape())?;
        let by_rows = self.unit == Unit::Slices { axis: 0 } && !self.selection.is_of_remaining();
        if by_rows
            && weights.ndim() > 0
            && !weights.is_empty()
            && let (Some(x), Some(out)) = (weights.as_slice(), out.as_slice_mut())
        {
            let columns = as_matrix(weights.shape()).1;
            return rows::write(pool, (&self.selection, self.norm), columns, x, out);
        }
        masked_into(self.mask(weights.view(), None)?, weights, out)
    }
}

impl<F: Float, D: Dimension> Compressor<F, D> for StructuredPruner {
    type Output = SparseTensor<F, D>;

    fn compress(&self, weights: ArrayView<'_, F, D>) -> Result<Self::Output> {
        pruner::compress(self, weights)
    }
}

/// What serde reads, before it is believed.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw {
    unit: Unit,
    norm: Norm,
    selection: Selection,
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for StructuredPruner {
    type Error = Error;

    fn try_from(Raw { unit, norm, selection }: Raw) -> Result<Self> {
        Self { unit, norm, selection }.checked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::{PruneCount, Scope};
    use crate::traits::Compressed;
    use ndarray::{Array2, Array4, array};

    fn half() -> Selection {
        Selection::sparsity(0.5).unwrap()
    }

    #[test]
    fn rows_are_counted_as_torch_counts_them() {
        for (rows, dropped) in [(5, 2), (7, 4)] {
            let weights = Array2::from_shape_fn((rows, 3), |(i, j)| ((i * 5) % rows + j) as f64);
            let (mask, report) = StructuredPruner::rows(half()).mask(weights.view(), None).unwrap();
            assert_eq!((report.units, report.dropped, report.zeros), (rows, dropped, 3 * dropped));
            assert!(mask.keep().rows().into_iter().all(|row| row.iter().all(|&keep| keep == row[0])));
        }
    }

    #[test]
    fn columns_and_inner_axes_go_as_a_whole() {
        let weights = array![[9.0, 1.0, 2.0], [9.0, 1.0, -2.0]];
        let (mask, _) = StructuredPruner::columns(half()).mask(weights.view(), None).unwrap();
        assert_eq!(mask, Mask::new(array![[true, false, false], [true, false, false]]));
        let kernel = Array4::from_shape_fn((2, 4, 3, 3), |(_, channel, _, _)| channel as f64 + 1.0);
        let (mask, _) = StructuredPruner::slices(Axis(1), half()).mask(kernel.view(), None).unwrap();
        let expected = Mask::new(kernel.mapv(|w| w > 2.0));
        assert_eq!(mask, expected);
    }

    #[test]
    fn huge_and_tiny_rows_go_by_their_norm() {
        let weights = array![[3e200, 4e200], [2e200, 2e200], [3e-200, 4e-200], [2e-200, 2e-200]];
        let pruner = StructuredPruner::rows(Selection::sparsity(0.25).unwrap());
        let dropped = |weights: Array2<f64>| {
            let (mask, _) = pruner.mask(weights.view(), None).unwrap();
            mask.keep().column(0).iter().position(|&keep| !keep)
        };
        assert_eq!(dropped(weights.clone()), Some(3));
        assert_eq!(dropped(weights.slice_move(ndarray::s![..;-1, ..])), Some(0));
    }

    #[test]
    fn only_rows_that_are_left_compete_for_a_share_of_what_remains() {
        let weights = array![[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]];
        let pruner = StructuredPruner::rows(half().of_remaining());
        let (mask, report) = pruner.mask(weights.view(), None).unwrap();
        assert_eq!(report.dropped, 3);
        assert_eq!(mask.keep().column(0), array![false, false, false, true, true]);
    }

    #[test]
    fn blocks_go_as_a_whole_and_the_edge_competes_fairly() {
        let weights =
            array![[1.0, 1.0, 5.0, 5.0, 2.0], [1.0, 1.0, 5.0, 5.0, 2.0], [3.0, 3.0, 0.0, 0.0, 6.0],];
        let pruner = StructuredPruner::blocks(2, 2, half()).unwrap();
        let (mask, report) = pruner.mask(weights.view(), None).unwrap();
        assert_eq!((report.units, report.dropped, report.zeros), (6, 3, 8));
        let t = true;
        let f = false;
        assert_eq!(mask, Mask::new(array![[f, f, t, t, f], [f, f, t, t, f], [t, t, f, f, t]]));
        let (mask, _) = StructuredPruner::blocks(1, 2, half().with_scope(Scope::PerRow))
            .unwrap()
            .mask(array![[1.0, 1.0, 5.0, 5.0], [9.0, 9.0, 8.0, 8.0]].view(), None)
            .unwrap();
        assert_eq!(mask, Mask::new(array![[f, f, t, t], [t, t, f, f]]));
    }

    #[test]
    fn a_mean_and_a_maximum_may_disagree() {
        let weights = array![[3.0, 3.0], [4.0, 0.0]];
        let rows = StructuredPruner::rows(half());
        assert_eq!(rows.mask(weights.view(), None).unwrap().0.keep().column(0), array![true, false]);
        let rows = rows.with_norm(Norm::Max);
        assert_eq!(rows.mask(weights.view(), None).unwrap().0.keep().column(0), array![false, true]);
    }

    #[test]
    fn an_earlier_mask_stays() {
        let weights = array![[1.0, 1.0], [5.0, 6.0], [3.0, 3.0], [7.0, 8.0]];
        let earlier = Mask::new(array![[true, true], [false, false], [true, true], [true, false]]);
        let (mask, report) = StructuredPruner::rows(half()).mask(weights.view(), Some(&earlier)).unwrap();
        assert_eq!(report.dropped, 2);
        assert_eq!(mask, Mask::new(array![[false, false], [false, false], [true, true], [true, false]]));
        assert!(StructuredPruner::rows(half()).mask(weights.t(), Some(&earlier)).is_err());
    }

    #[test]
    fn pruning_into_memory_equals_the_mask() {
        let weights = Array2::from_shape_fn((7, 300), |(i, j)| ((i * 31 + j * 7) % 17) as f32 - 8.0);
        for pruner in [
            StructuredPruner::rows(half()),
            StructuredPruner::rows(half()).with_norm(Norm::Max),
            StructuredPruner::rows(half().of_remaining()).with_norm(Norm::L1),
            StructuredPruner::columns(half()),
            StructuredPruner::blocks(2, 3, half()).unwrap(),
        ] {
            let (mask, report) = pruner.mask(weights.view(), None).unwrap();
            let mut expected = weights.clone();
            mask.apply(expected.view_mut()).unwrap();
            for pool in [Pool::single(), Pool::new(2)] {
                let mut out = Array2::from_elem(weights.raw_dim(), 7.0);
                assert_eq!(pruner.prune_into(weights.view(), out.view_mut(), &pool).unwrap(), report);
                assert_eq!(out, expected);
            }
            assert!(
                pruner
                    .prune_into(weights.view(), Array2::zeros((300, 7)).view_mut(), &Pool::single())
                    .is_err()
            );
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        assert!(StructuredPruner::blocks(0, 2, half()).is_err());
        assert!(StructuredPruner::blocks(2, 0, half()).is_err());
        let weights = Array2::<f32>::ones((3, 3));
        assert!(StructuredPruner::slices(Axis(2), half()).compress(weights.view()).is_err());
        let number = ndarray::arr0(3.0);
        let refused = StructuredPruner::rows(half()).mask(number.view(), None).unwrap_err().to_string();
        let into = StructuredPruner::rows(half()).prune_into(
            number.view(),
            ndarray::arr0(7.0).view_mut(),
            &Pool::single(),
        );
        assert_eq!(into.unwrap_err().to_string(), refused);
        let gpt = Selection::sparsity(1.0).unwrap().with_count(PruneCount::SparseGptThreshold);
        assert!(StructuredPruner::rows(gpt).compress(weights.view()).is_err());
    }

    #[test]
    fn tensors_without_elements_work() {
        for pruner in [
            StructuredPruner::rows(half()),
            StructuredPruner::columns(half()),
            StructuredPruner::blocks(2, 2, half()).unwrap(),
        ] {
            for shape in [(0, 3), (3, 0), (0, 0)] {
                let sparse = pruner.compress(Array2::<f32>::zeros(shape).view()).unwrap();
                assert_eq!(sparse.decompress().unwrap().dim(), shape);
            }
        }
    }
}
