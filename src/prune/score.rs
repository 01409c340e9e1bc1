//! How important a weight, a row, a column or a block is; what scores lowest goes first.
//!
//! ```text
//! magnitude   |w|                                 one weight
//! norm        (sum |w|^p)^(1/p), p = 1, 2, inf    a row, a column, a block (there: mean instead of sum)
//! LAMP        w_i^2 / sum_{j >= i} w_j^2          j in ascending order of |w|; comparable across layers
//! Wanda       |w_ij| * ||x_j||                    x_j: what input j receives
//! Taylor      |w * dL/dw|                         first-order change of the loss
//! random      uniform from 0 to 1                 what every other score has to beat
//! ```
//!
//! LAMP: Lee et al., ICLR 2021. Wanda: Sun et al., ICLR 2024. Taylor: Molchanov et al., CVPR 2019.
//! Scores are handed to a [`Selection`](super::Selection); NaN scores highest there.

use ndarray::{
    Array, Array1, Array2, ArrayView, ArrayView1, ArrayView2, Axis, Dimension, IntoDimension, Zip,
};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::kernel::{Isa, PART, Pool, Streams, Work, fetch_ahead, with};
use crate::tensor::{as_matrix, root};

/// How the magnitudes of several weights become one number.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Norm {
    /// The sum of `|w|`.
    L1,
    /// The root of the sum of `w^2`.
    #[default]
    L2,
    /// The largest `|w|`.
    Max,
}

impl Norm {
    /// `sum` with one more weight. In f64, so that the order of summation hardly matters.
    #[inline(always)]
    fn add<F: Float>(self, sum: f64, w: F) -> f64 {
        let w = w.as_f64();
        match self {
            Self::L1 => sum + w.abs(),
            Self::L2 => sum + w * w,
            // Not f64::max, which would lose a NaN.
            Self::Max => {
                if w.abs() <= sum {
                    sum
                } else {
                    w.abs() + sum * 0.0
                }
            }
        }
    }

    /// The norm of `weights` from their sum; for a mean, of the `n` that make one.
    fn finish<F: Float>(self, sum: f64, n: usize, weights: impl Iterator<Item = F> + Clone) -> f64 {
        match self {
            Self::L1 => sum / n as f64,
            Self::L2 => root(sum, n, weights),
            Self::Max => sum,
        }
    }
}

/// The magnitude of every weight: `|w|` (L1, Max) or `w^2` (L2). Both rank weights alike, but small squares
/// round to zero, so that the pruners rank by `|w|`.
pub fn magnitude<F: Float, D: Dimension>(weights: ArrayView<'_, F, D>, norm: Norm) -> Array<F, D> {
    match norm {
        Norm::L1 | Norm::Max => weights.mapv(F::abs),
        Norm::L2 => weights.mapv(|w| w * w),
    }
}

/// The norm of every slice along `axis`, over all other axes: `Axis(0)` of a weight `[out, in]` scores output
/// neurons, `Axis(1)` inputs.
///
/// ```
/// use ndarray::{Axis, array};
/// use trimnet::prune::score::{Norm, slice_norms};
///
/// let weights = array![[3.0, 4.0], [0.0, -1.0]];
/// assert_eq!(slice_norms(weights.view(), Axis(0), Norm::L2)?, array![5.0, 1.0]);
/// assert_eq!(slice_norms(weights.view(), Axis(1), Norm::L1)?, array![3.0, 5.0]);
/// # Ok::<(), trimnet::Error>(())
/// ```
///
/// # Errors
/// [`Error::OutOfRange`] if there is no such axis.
pub fn slice_norms<F: Float, D: Dimension>(
    weights: ArrayView<'_, F, D>,
    axis: Axis,
    norm: Norm,
) -> Result<Array1<F>> {
    check_axis(axis, weights.ndim())?;
    let inner: usize = weights.shape()[axis.index() + 1..].iter().product();
    if inner > 1 && axis.index() == 0 {
        let weights = weights.as_standard_layout();
        let weights = weights.as_slice().unwrap_or_default();
        return Ok(row_norms(&Pool::for_elements(weights.len()), weights, inner, norm).into());
    }
    Ok(norms(weights, axis, norm).into_iter().map(F::of).collect())
}

/// As [`slice_norms`], in `f64`, by one thread.
fn norms<F: Float, D: Dimension>(weights: ArrayView<'_, F, D>, axis: Axis, norm: Norm) -> Vec<f64> {
    let length = weights.len_of(axis);
    let inner: usize = weights.shape()[axis.index() + 1..].iter().product();
    let mut sums = vec![0.0; length];
    let weights = weights.as_standard_layout();
    let weights = weights.as_slice().unwrap_or_default();
    if inner == 1 {
        for row in weights.chunks_exact(length.max(1)) {
            sums.iter_mut().zip(row).for_each(|(sum, &w)| *sum = norm.add(*sum, w));
        }
    } else if inner > 1 {
        for outer in weights.chunks_exact((length * inner).max(1)) {
            for (sum, slice) in sums.iter_mut().zip(outer.chunks_exact(inner)) {
                *sum = slice.iter().fold(*sum, |sum, &w| norm.add(sum, w));
            }
        }
    }
    let slice = |i: usize| {
        let outers = weights.chunks_exact((length * inner).max(1));
        outers.flat_map(move |outer| outer[i * inner..][..inner].iter().copied())
    };
    sums.into_iter().enumerate().map(|(i, sum)| norm.finish(sum, 1, slice(i))).collect()
}

/// The norm of every row of `weights`, `columns` > 0 wide.
fn row_norms<F: Float>(pool: &Pool, weights: &[F], columns: usize, norm: Norm) -> Vec<F> {
    let isa = Isa::best();
    let streams = isa.streams();
    let mut norms = vec![F::zero(); weights.len() / columns];
    let rows = (PART / columns).max(1);
    pool.each(norms.chunks_mut(rows).zip(weights.chunks(rows * columns)), |(norms, rows)| {
        for (to, row) in norms.iter_mut().zip(rows.chunks_exact(columns)) {
            *to = row_norm((isa, streams), row, norm);
        }
    });
    norms
}

/// The norm of one row; how the processor reads is asked once for all rows.
pub(super) fn row_norm<F: Float>((isa, streams): (Isa, Streams), row: &[F], norm: Norm) -> F {
    let sum = with(isa, RowSum { streams, row, norm });
    F::of(norm.finish(sum, 1, row.iter().copied()))
}

/// What [`Norm::add`] makes of a whole row, in lanes.
struct RowSum<'a, F> {
    streams: Streams,
    row: &'a [F],
    norm: Norm,
}

impl<F: Float> Work for RowSum<'_, F> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Self { streams, row, norm } = self;
        match norm {
            Norm::L1 => lanes(streams, row, |sum, w| Norm::L1.add(sum, w), |a, b| a + b),
            Norm::L2 => lanes(streams, row, |sum, w| Norm::L2.add(sum, w), |a, b| a + b),
            Norm::Max => lanes(streams, row, |sum, w| Norm::Max.add(sum, w), |a, b| Norm::Max.add(a, b)),
        }
    }
}

#[inline(always)]
fn lanes<F: Float>(
    streams: Streams,
    row: &[F],
    add: impl Fn(f64, F) -> f64,
    join: impl Fn(f64, f64) -> f64,
) -> f64 {
    // So few that the compiler keeps all sums in registers.
    const LANES: usize = 16;
    const AHEAD_BYTES: usize = 8192;
    let mut sums = [0.0; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for row in whole {
        if streams == Streams::Asked {
            fetch_ahead(row, AHEAD_BYTES);
        }
        for i in 0..LANES {
            sums[i] = add(sums[i], row[i]);
        }
    }
    sums.iter_mut().zip(rest).for_each(|(sum, &w)| *sum = add(*sum, w));
    sums.into_iter().fold(0.0, join)
}

pub(super) fn check_axis(axis: Axis, axes: usize) -> Result<()> {
    if axis.index() < axes {
        return Ok(());
    }
    Err(Error::OutOfRange { name: "axis", value: axis.index() as f64, range: "0 <= axis < number of axes" })
}

/// The mean norm of every block of `height` rows and `width` columns: the mean of `|w|` (L1), the root of the
/// mean of `w^2` (L2), the largest `|w|` (Max). The first axis counts rows, all others together are columns.
///
/// Blocks that the edge cuts off average what they have, so that they compete fairly.
///
/// # Errors
/// [`Error::OutOfRange`] if `height` or `width` is zero.
pub fn block_norms<F: Float, D: Dimension>(
    weights: ArrayView<'_, F, D>,
    [height, width]: [usize; 2],
    norm: Norm,
) -> Result<Array2<F>> {
    for (name, length) in [("block height", height), ("block width", width)] {
        if length == 0 {
            return Err(Error::OutOfRange { name, value: 0.0, range: "at least 1" });
        }
    }
    let (rows, columns) = as_matrix(weights.shape());
    let mut sums = Array2::<f64>::zeros((rows.div_ceil(height), columns.div_ceil(width)));
    let weights = weights.as_standard_layout();
    let weights = weights.as_slice().unwrap_or_default();
    for (r, row) in weights.chunks_exact(columns.max(1)).enumerate() {
        for (sum, block) in sums.row_mut(r / height).iter_mut().zip(row.chunks(width)) {
            *sum = block.iter().fold(*sum, |sum, &w| norm.add(sum, w));
        }
    }
    Ok(Array2::from_shape_fn(sums.raw_dim(), |(r, c)| {
        let width_here = width.min(columns - c * width);
        let n = height.min(rows - r * height) * width_here;
        let block = weights.chunks_exact(columns).skip(r * height).take(height);
        let block = block.flat_map(|row| row[c * width..][..width_here].iter().copied());
        F::of(norm.finish(sums[[r, c]], n, block))
    }))
}

/// LAMP: the square of a weight over the sum of all squares in its tensor that are not smaller.
///
/// Scores of different tensors can be compared: select [globally](super::Selection::select_global) by them.
/// A tensor of zeros scores 0 everywhere; NaN and infinity score NaN and leave the others alone.
pub fn lamp<F: Float, D: Dimension>(weights: ArrayView<'_, F, D>) -> Array<F, D> {
    let mut descending: Vec<(f64, usize)> =
        weights.iter().enumerate().map(|(i, w)| (w.as_f64().abs(), i)).collect();
    // Equal weights: the later one counts as larger, so that the earlier one goes first. NaN, infinity lead.
    descending.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    let largest = descending.iter().map(|&(w, _)| w).find(|w| w.is_finite()).unwrap_or(0.0);
    let mut scores = vec![F::zero(); weights.len()];
    let mut sum = 0.0;
    for (w, i) in descending {
        if !w.is_finite() {
            scores[i] = F::nan();
        } else if w > 0.0 {
            // Divided by the largest first: the squares of tiny weights would vanish.
            let square = (w / largest).powi(2);
            sum += square;
            scores[i] = F::of(square / sum);
        }
    }
    let mut scores = scores.into_iter();
    Array::from_shape_simple_fn(weights.raw_dim(), || scores.next().unwrap_or_default())
}

/// The root mean square of every input over a batch `x` `[n, in]`: what [`wanda`] multiplies with.
///
/// # Errors
/// [`Error::Empty`] for a batch without rows.
pub fn input_norms<F: Float>(x: ArrayView2<'_, F>) -> Result<Array1<F>> {
    if x.nrows() == 0 {
        return Err(Error::Empty { what: "x" });
    }
    // In f64: the norm of many rows may be beyond the type, their mean is not.
    let rows = x.nrows() as f64;
    Ok(norms(x, Axis(1), Norm::L2).into_iter().map(|norm| F::of(norm / rows.sqrt())).collect())
}

/// Wanda: `|w_ij| * norms_j` for weights `[out, in]`; to be selected
/// [per row](super::Scope::PerRow), with [`PruneCount::Floor`](super::PruneCount::Floor) as in the paper.
///
/// `norms`: [`input_norms`] of calibration data. With their squares, selected per tensor, it is torchao's
/// `WandaSparsifier`.
///
/// # Errors
/// [`Error::Shape`] unless there is one norm per input.
pub fn wanda<F: Float>(weights: ArrayView2<'_, F>, norms: ArrayView1<'_, F>) -> Result<Array2<F>> {
    check_shape("norms", norms.shape(), &[weights.ncols()])?;
    let mut scores = magnitude(weights, Norm::L1);
    scores.rows_mut().into_iter().for_each(|mut row| row *= &norms);
    Ok(scores)
}

/// First-order Taylor: `|w * dw|`, how much the loss moves if the weight becomes zero; `dw` is its gradient.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ.
pub fn taylor<F: Float, D: Dimension>(
    weights: ArrayView<'_, F, D>,
    dw: ArrayView<'_, F, D>,
) -> Result<Array<F, D>> {
    check_shape("dw", dw.shape(), weights.shape())?;
    Ok(Zip::from(&weights).and(&dw).map_collect(|&w, &dw| (w * dw).abs()))
}

/// Uniform from 0 to 1, the same for the same seed and shape.
pub fn random<F: Float, D: Dimension>(shape: impl IntoDimension<Dim = D>, seed: u64) -> Array<F, D> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    Array::from_shape_simple_fn(shape.into_dimension(), || F::of(rng.random::<f64>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;
    use ndarray::{Array3, array};

    #[test]
    fn lamp_of_one_two_three() {
        let scores = lamp(array![1.0, 2.0, 3.0].view());
        assert_abs_diff_eq!(scores, array![1.0 / 14.0, 4.0 / 13.0, 1.0], epsilon = 1e-15);
        let scores = lamp(array![[-3.0_f32], [1.0], [2.0]].view());
        assert_abs_diff_eq!(scores, array![[1.0], [1.0 / 14.0], [4.0 / 13.0]], epsilon = 1e-7);
    }

    #[test]
    fn lamp_of_zeros_tiny_and_equal_weights() {
        assert_eq!(lamp(array![0.0, 0.0].view()), array![0.0, 0.0]);
        assert_eq!(lamp(array![1e-200, 1e-200].view()), array![0.5, 1.0]);
        let scores = lamp(array![1.0, f64::NAN, f64::INFINITY].view());
        assert!(scores[0] == 1.0 && scores[1].is_nan() && scores[2].is_nan());
        assert_eq!(lamp(Array3::<f32>::zeros((2, 0, 1)).view()).len(), 0);
    }

    #[test]
    fn slices_along_every_axis() {
        let w = Array3::from_shape_fn((2, 3, 4), |(i, j, k)| (i * 12 + j * 4 + k) as f64 - 11.5);
        for axis in [0, 1, 2] {
            for (norm, p) in [(Norm::L1, 1), (Norm::L2, 2)] {
                let expected: Array1<f64> = w
                    .axis_iter(Axis(axis))
                    .map(|slice| slice.iter().map(|w| w.abs().powi(p)).sum::<f64>().powf(1.0 / f64::from(p)))
                    .collect();
                assert_abs_diff_eq!(
                    slice_norms(w.view(), Axis(axis), norm).unwrap(),
                    expected,
                    epsilon = 1e-12
                );
            }
        }
        assert_eq!(slice_norms(w.view(), Axis(0), Norm::Max).unwrap(), array![11.5, 11.5]);
        assert!(slice_norms(w.view(), Axis(3), Norm::L1).is_err());
    }

    #[test]
    fn slices_without_elements_have_norm_zero() {
        let w = Array2::<f32>::zeros((2, 0));
        assert_eq!(slice_norms(w.view(), Axis(0), Norm::L2).unwrap(), array![0.0, 0.0]);
        assert_eq!(slice_norms(w.view(), Axis(1), Norm::L2).unwrap().len(), 0);
    }

    #[test]
    fn norms_neither_overflow_nor_vanish() {
        let w = array![[3e200, 4e200], [3e-200, 4e-200], [0.0, 0.0], [f64::INFINITY, 1.0]];
        let expected = array![5e200, 5e-200, 0.0, f64::INFINITY];
        let near = |found: Array1<f64>, expected: &Array1<f64>| {
            let near = |(a, b): (&f64, &f64)| a == b || (a / b - 1.0).abs() < 1e-14;
            assert!(found.iter().zip(expected).all(near), "{found}");
        };
        near(slice_norms(w.view(), Axis(0), Norm::L2).unwrap(), &expected);
        near(slice_norms(w.t(), Axis(1), Norm::L2).unwrap(), &expected);
        let cube = w.to_shape((2, 4, 1)).unwrap();
        let halves = array![3e200, 4e200, f64::INFINITY, 1.0];
        near(slice_norms(cube.view(), Axis(1), Norm::L2).unwrap(), &halves);
        let blocks = block_norms(w.slice(ndarray::s![..2, ..]), [1, 2], Norm::L2).unwrap();
        near(blocks.column(0).mapv(|norm| norm * 2.0_f64.sqrt()), &array![5e200, 5e-200]);
        assert_eq!(input_norms(Array2::from_elem((4, 1), 3e38_f32).view()).unwrap(), array![3e38_f32]);
    }

    #[test]
    fn a_nan_reaches_its_norm() {
        for norm in [Norm::L1, Norm::L2, Norm::Max] {
            for w in [array![[f32::NAN, 9.0], [1.0, 2.0]], array![[9.0, f32::NAN], [1.0, 2.0]]] {
                let norms = slice_norms(w.view(), Axis(0), norm).unwrap();
                assert!(norms[0].is_nan() && norms[1].is_finite(), "{norm:?}");
            }
        }
    }

    #[test]
    fn cut_off_blocks_average_what_they_have() {
        let w = array![[1.0, 1.0, 4.0], [1.0, 1.0, 4.0], [-2.0, 2.0, 6.0]];
        assert_eq!(block_norms(w.view(), [2, 2], Norm::L1).unwrap(), array![[1.0, 4.0], [2.0, 6.0]]);
        assert_eq!(block_norms(w.view(), [2, 2], Norm::L2).unwrap(), array![[1.0, 4.0], [2.0, 6.0]]);
        assert_eq!(block_norms(w.view(), [3, 9], Norm::Max).unwrap(), array![[6.0]]);
        assert!(block_norms(w.view(), [0, 2], Norm::L1).is_err());
        assert!(block_norms(w.view(), [2, 0], Norm::L1).is_err());
        assert_eq!(block_norms(Array2::<f64>::zeros((0, 3)).view(), [2, 2], Norm::L1).unwrap().dim(), (0, 2));
        assert_eq!(block_norms(Array2::<f64>::zeros((3, 0)).view(), [2, 2], Norm::L1).unwrap().dim(), (2, 0));
    }

    #[test]
    fn wanda_scales_by_the_input() {
        let w = array![[4.0, -1.0], [0.4, 0.3]];
        assert_eq!(wanda(w.view(), array![0.5, 2.0].view()).unwrap(), array![[2.0, 2.0], [0.2, 0.6]]);
        assert!(wanda(w.view(), array![1.0].view()).is_err());
        let x = array![[3.0, 0.0], [-4.0, 0.0]];
        assert_abs_diff_eq!(input_norms(x.view()).unwrap(), array![12.5_f64.sqrt(), 0.0], epsilon = 1e-15);
        assert!(input_norms(Array2::<f32>::zeros((0, 2)).view()).is_err());
    }

    #[test]
    fn taylor_is_weight_times_gradient() {
        let scores = taylor(array![2.0, -3.0].view(), array![-1.0, 0.5].view()).unwrap();
        assert_eq!(scores, array![2.0, 1.5]);
        assert!(taylor(array![2.0].view(), array![-1.0, 0.5].view()).is_err());
    }

    #[test]
    fn the_random_scores_of_a_seed_stay() {
        let scores: Array1<f64> = random(3, 1);
        assert_eq!(scores, array![0.8116121588818848, 0.7471047161582187, 0.10015090353378375]);
        assert_ne!(scores, random::<f64, _>(3, 2));
        assert_eq!(random::<f32, _>(3, 1), scores.mapv(|score| score as f32));
    }
}
