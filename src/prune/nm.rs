//! N:M pruning: of every M consecutive inputs the N largest `|w|` stay.
//!
//! ```text
//! w   [ 3 -1  2  4 | 0  5 -6  1 | 2  1 ]      2:4, the last group is a tail of two
//! ->  [ 3  0  0  4 | 0  5 -6  0 | 2  1 ]
//! ```
//!
//! Groups never cross a row; the first axis counts rows, all others together are columns. A tail of `r < M`
//! weights keeps `min(N, r)`, as if it were filled up with zeros that go first: a file that needs whole groups
//! pads, the maths does not. N:M makes a regular pattern; whether that is fast depends on the machine.

use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{ArrayView, ArrayViewMut, Dimension};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::kernel::{Fill, Isa, PART, Pool, write_stream};
use crate::tensor::{Mask, SparseTensor, as_matrix};
use crate::traits::Compressor;

use super::pruner::{self, Pruner, masked_into};
use super::rank::{self, Key};
use super::report::PruneReport;

/// Keeps N of every M consecutive inputs.
///
/// ```
/// use ndarray::array;
/// use trimnet::{Compressed, Compressor, prune::NmPruner};
///
/// let weights = array![[3.0_f32, -1.0, 2.0, 4.0], [0.1, 0.2, 0.2, 0.2]];
/// let sparse = NmPruner::keep(2, 4)?.compress(weights.view())?;
/// assert_eq!(sparse.decompress()?, array![[3.0, 0.0, 0.0, 4.0], [0.0, 0.0, 0.2, 0.2]]);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw"))]
pub struct NmPruner {
    keep: usize,
    of: usize,
}

/// Up to this length a group is ranked by comparing all with all.
const SHORT: usize = 16;

impl NmPruner {
    /// `n` of every `m` consecutive inputs are kept.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `1 <= n <= m`.
    pub fn keep(n: usize, m: usize) -> Result<Self> {
        if (1..=m).contains(&n) {
            return Ok(Self { keep: n, of: m });
        }
        Err(Error::OutOfRange { name: "n of n:m", value: n as f64, range: "1 <= n <= m" })
    }

    /// `m` zeros in every `n` consecutive inputs: TFMOT's `sparsity_m_by_n`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `m < n`.
    pub fn zeros_of(m: usize, n: usize) -> Result<Self> {
        if m < n {
            return Ok(Self { keep: n - m, of: n });
        }
        Err(Error::OutOfRange { name: "m zeros of n", value: m as f64, range: "m < n" })
    }

    /// N, how many are kept of a group.
    pub fn n(&self) -> usize {
        self.keep
    }

    /// M, the length of a group.
    pub fn m(&self) -> usize {
        self.of
    }

    /// Drops all but the best of one group.
    fn group<F: Float>(&self, weights: &[F], keep: &mut [bool], scratch: &mut Scratch<F>) {
        let Some(mut surplus) = weights.len().checked_sub(self.keep).filter(|&surplus| surplus > 0) else {
            return;
        };
        if weights.len() <= SHORT {
            // rank = how many rank lower; what is gone already scores below zero.
            let mut scores = [F::zero(); SHORT];
            for ((score, &w), &keep) in scores.iter_mut().zip(weights).zip(&*keep) {
                *score = if keep { w.abs() } else { -F::one() };
            }
            let scores = &scores[..weights.len()];
            for (i, (&score, keep)) in scores.iter().zip(keep).enumerate() {
                let lower = scores[..i].iter().filter(|&&other| not_above(other, score)).count()
                    + scores[i + 1..].iter().filter(|&&other| !not_above(score, other)).count();
                *keep &= lower >= surplus;
            }
            return;
        }
        let gone = keep.iter().filter(|&&keep| !keep).count();
        surplus = surplus.saturating_sub(gone);
        scratch.left.clear();
        scratch.left.extend(weights.iter().zip(&*keep).filter(|(_, keep)| **keep).map(|(&w, _)| w));
        if surplus > 0
            && let Some(found) =
                rank::nth(&Pool::single(), &[&scratch.left], Key::Magnitude, surplus - 1, &mut scratch.rank)
        {
            found.cut(surplus - found.below).apply(weights, Key::Magnitude, keep);
        }
    }
}

#[derive(Default)]
struct Scratch<F> {
    left: Vec<F>,
    rank: Vec<F>,
}

impl<F: Float, D: Dimension> Pruner<F, D> for NmPruner {
    fn mask(
        &self,
        weights: ArrayView<'_, F, D>,
        earlier: Option<&Mask<D>>,
    ) -> Result<(Mask<D>, PruneReport)> {
        let mut keep = match earlier {
            None => vec![true; weights.len()],
            Some(earlier) => {
                check_shape("earlier mask", earlier.keep().shape(), weights.shape())?;
                earlier.keep().iter().copied().collect()
            }
        };
        let dense = weights.as_standard_layout();
        let dense = dense.as_slice().unwrap_or_default();
        let columns = as_matrix(weights.shape()).1.max(1);
        let mut scratch = Scratch::default();
        for (row, keep) in dense.chunks_exact(columns).zip(keep.chunks_exact_mut(columns)) {
            for (group, keep) in row.chunks(self.of).zip(keep.chunks_mut(self.of)) {
                self.group(group, keep, &mut scratch);
            }
        }
        let nan = dense.iter().filter(|w| w.is_nan()).count();
        let mask = Mask::from_row_major(weights.raw_dim(), keep)?;
        let (weights, zeros) = (mask.len(), mask.len() - mask.kept());
        Ok((mask, PruneReport::of_weights(weights, zeros, nan)))
    }

    fn prune_into(
        &self,
        weights: ArrayView<'_, F, D>,
        mut out: ArrayViewMut<'_, F, D>,
        pool: &Pool,
    ) -> Result<PruneReport> {
        check_shape("the place for the weights", out.shape(), weights.shape())?;
        if self.of == 4
            && as_matrix(weights.shape()).1.is_multiple_of(4)
            && let (Some(x), Some(out)) = (weights.as_slice(), out.as_slice_mut())
        {
            let (isa, whole, surplus) = (Isa::best(), x.len(), 4 - self.keep as u32);
            let nan = AtomicUsize::new(0);
            pool.each(x.chunks(PART).zip(out.chunks_mut(PART)), |(x, out)| {
                let fours = write_stream(isa, whole, out, Fours { isa, x, surplus, nan: 0 });
                nan.fetch_add(fours.nan, Ordering::Relaxed);
            });
            let zeros = x.len() / 4 * (4 - self.keep);
            let (units, nan) = (x.len(), nan.into_inner());
            return Ok(PruneReport::of_weights(units, zeros, nan));
        }
        masked_into(self.mask(weights.view(), None)?, weights, out)
    }
}

/// Whole groups of four, without the `surplus` lowest of each; counts NaN.
struct Fours<'a, F> {
    isa: Isa,
    x: &'a [F],
    surplus: u32,
    nan: usize,
}

impl<F: Float> Fill<F> for Fours<'_, F> {
    const GRAIN: usize = 4;

    #[inline(always)]
    fn fill(&mut self, at: usize, out: &mut [F]) {
        /// Groups side by side: one for each lane of a vector register.
        const LANES: usize = 16;
        let x = &self.x[at..][..out.len()];
        let (done, nan) = F::keep_of_fours(self.isa, x, out, self.surplus);
        self.nan += nan;
        let (blocks, rest) = x[done..].as_chunks::<{ 4 * LANES }>();
        let (out_blocks, out_rest) = out[done..].as_chunks_mut::<{ 4 * LANES }>();
        for (x, out) in blocks.iter().zip(out_blocks) {
            self.nan += fours(x, out, self.surplus);
        }
        for (x, out) in rest.as_chunks::<4>().0.iter().zip(out_rest.as_chunks_mut::<4>().0) {
            self.nan += fours(x, out, self.surplus);
        }
    }
}

/// The order of magnitudes, in which NaN is above infinity and equal to every NaN.
#[inline(always)]
fn not_above<F: Float>(a: F, b: F) -> bool {
    (a <= b) | b.is_nan()
}

/// As [`NmPruner::group`] ranks them: `rank = how many rank lower`, equal ones by their index.
#[inline(always)]
fn fours<F: Float, const N: usize>(x: &[F; N], out: &mut [F; N], surplus: u32) -> usize {
    let mut nan = 0u32;
    for (x, out) in x.as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<4>().0) {
        let [a, b, c, d] = x.map(F::abs);
        // The first not above the second: the second has one more below it, else the first.
        let [ab, ac, ad] = [not_above(a, b), not_above(a, c), not_above(a, d)].map(u32::from);
        let [bc, bd, cd] = [not_above(b, c), not_above(b, d), not_above(c, d)].map(u32::from);
        let ranks = [3 - ab - ac - ad, ab + 2 - bc - bd, ac + bc + 1 - cd, ad + bd + cd];
        for ((out, &x), rank) in out.iter_mut().zip(x).zip(ranks) {
            *out = if rank >= surplus { x } else { F::zero() };
            nan += u32::from(x.is_nan());
        }
    }
    nan as usize
}

impl<F: Float, D: Dimension> Compressor<F, D> for NmPruner {
    type Output = SparseTensor<F, D>;

    fn compress(&self, weights: ArrayView<'_, F, D>) -> Result<Self::Output> {
        pruner::compress(self, weights)
    }
}

/// What serde reads, before it is believed.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw {
    keep: usize,
    of: usize,
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for NmPruner {
    type Error = Error;

    fn try_from(Raw { keep, of }: Raw) -> Result<Self> {
        Self::keep(keep, of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traits::Compressed;
    use ndarray::{Array1, Array2, array};

    fn mask(pruner: NmPruner, weights: Array2<f64>) -> Array2<bool> {
        pruner.mask(weights.view(), None).unwrap().0.into_keep()
    }

    #[test]
    fn a_tail_keeps_as_many_as_a_whole_group() {
        let pruner = NmPruner::keep(2, 4).unwrap();
        let (t, f) = (true, false);
        let weights = array![[3.0, -1.0, 2.0, 4.0, 0.0, 5.0, -6.0, 1.0, 2.0, 1.0]];
        assert_eq!(mask(pruner, weights), array![[t, f, f, t, f, t, t, f, t, t]]);
        assert_eq!(mask(pruner, array![[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]]), array![[t, f, t], [f, t, t]]);
    }

    #[test]
    fn pruning_into_memory_equals_the_mask() {
        let values = [0.0, -1.0, 2.0, 1.0, f64::NAN, -2.0, f64::INFINITY, -0.0, 3.0, f64::NEG_INFINITY, 0.5];
        for (rows, columns) in [(1, 4), (3, 8), (5, 52), (1, 4096), (33, 4096), (2, 6), (0, 4), (4, 0)] {
            let weights = Array2::from_shape_fn((rows, columns), |(i, j)| {
                values[(i * 7 + j * j * 3 + j / 5) % values.len()]
            });
            for keep in 1..=4 {
                let pruner = NmPruner::keep(keep, 4).unwrap();
                let (mask, report) = pruner.mask(weights.view(), None).unwrap();
                let mut expected = weights.clone();
                mask.apply(expected.view_mut()).unwrap();
                for pool in [Pool::single(), Pool::new(2)] {
                    let mut out = Array2::from_elem(weights.raw_dim(), 7.0);
                    assert_eq!(pruner.prune_into(weights.view(), out.view_mut(), &pool).unwrap(), report);
                    assert!(out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
                }
            }
        }
    }

    /// Groups of four by every instruction set, at every length, equal those by the definition.
    fn every_set_keeps_the_same<F: Float>(values: &[F]) {
        let x: Vec<F> = (0..4 * 67).map(|i| values[(i * i * 3 + i / 4 + i / 9) % values.len()]).collect();
        for (length, surplus) in (0..=67).flat_map(|groups| (0..=4).map(move |surplus| (4 * groups, surplus)))
        {
            let mut expected = vec![F::one(); length];
            let groups = x.as_chunks::<4>().0.iter().zip(expected.as_chunks_mut::<4>().0);
            let nan: usize = groups.map(|(x, out)| fours(x, out, surplus)).sum();
            for isa in Isa::available() {
                let mut out = vec![F::one(); length];
                let mut fill = Fours { isa, x: &x[..length], surplus, nan: 0 };
                fill.fill(0, &mut out);
                let same = |(a, b): (&F, &F)| {
                    a.is_nan() && b.is_nan() || a == b && a.is_sign_negative() == b.is_sign_negative()
                };
                assert!(out.iter().zip(&expected).all(same), "{isa} {length} {surplus}");
                assert_eq!(fill.nan, nan, "{isa} {length} {surplus}");
            }
        }
    }

    #[test]
    fn every_instruction_set_keeps_the_same_of_four() {
        let infinity = f64::INFINITY;
        let values =
            [0.0, -1.0, 2.0, 1.0, f64::NAN, infinity, -2.0, -0.0, -f64::NAN, 3.0, -infinity, 0.5, 1e-40];
        every_set_keeps_the_same(&values);
        every_set_keeps_the_same(&values.map(|x| x as f32));
    }

    #[test]
    fn zeros_of_counts_zeros() {
        assert_eq!(NmPruner::zeros_of(1, 4).unwrap(), NmPruner::keep(3, 4).unwrap());
        let pruned = mask(NmPruner::zeros_of(1, 4).unwrap(), array![[4.0, 1.0, 2.0, 3.0]]);
        assert_eq!(pruned, array![[true, false, true, true]]);
    }

    #[test]
    fn long_groups_agree_with_short_ones() {
        // One group of 20 with 6 kept, and the same by selecting exactly 14.
        let weights = Array2::from_shape_fn((5, 20), |(i, j)| ((i * 7 + j * j) % 9) as f64 - 4.0);
        let selection =
            crate::prune::Selection::sparsity(0.7).unwrap().with_scope(crate::prune::Scope::PerRow);
        let (expected, _) = selection.select(weights.mapv(f64::abs).view(), None).unwrap();
        assert_eq!(mask(NmPruner::keep(6, 20).unwrap(), weights.clone()), expected.into_keep());
        let weights = weights.slice_move(ndarray::s![.., ..10]);
        let (expected, _) = selection.select(weights.mapv(f64::abs).view(), None).unwrap();
        assert_eq!(mask(NmPruner::keep(3, 10).unwrap(), weights), expected.into_keep());
    }

    #[test]
    fn an_earlier_mask_counts_and_stays() {
        for m in [4, 20] {
            let weights: Array2<f64> = Array1::range(1.0, 1.0 + m as f64, 1.0).insert_axis(ndarray::Axis(0));
            let mut earlier = Array2::from_elem((1, m), true);
            earlier[[0, m - 1]] = false;
            let pruner = NmPruner::keep(2, m).unwrap();
            let (mask, _) = pruner.mask(weights.view(), Some(&Mask::new(earlier))).unwrap();
            let expected = Array2::from_shape_fn((1, m), |(_, j)| j == m - 2 || j == m - 3);
            assert_eq!(mask.into_keep(), expected);
        }
    }

    #[test]
    fn nan_is_kept() {
        let pruned = mask(NmPruner::keep(1, 3).unwrap(), array![[5.0, f64::NAN, 9.0]]);
        assert_eq!(pruned, array![[false, true, false]]);
        let (nan, infinity) = (f64::NAN, f64::INFINITY);
        assert_eq!(mask(NmPruner::keep(1, 2).unwrap(), array![[nan, infinity]]), array![[true, false]]);
        // Of several the later ones, whatever their bits.
        let several = array![[nan, infinity, -nan, f64::from_bits(0x7ff0_0000_0000_0001), 1.0]];
        let kept = array![[false, false, true, true, false]];
        assert_eq!(mask(NmPruner::keep(2, 5).unwrap(), several), kept);
        let weights = array![[nan, infinity, -infinity, 1.0], [infinity, nan, nan, -nan]];
        let mut out = Array2::zeros((2, 4));
        NmPruner::keep(2, 4).unwrap().prune_into(weights.view(), out.view_mut(), &Pool::single()).unwrap();
        assert!(out[[0, 0]].is_nan() && out[[1, 2]].is_nan() && out[[1, 3]].is_nan(), "{out}");
        assert_eq!(out.mapv(|w| w == 0.0), array![[false, true, false, true], [true, true, false, false]]);
    }

    #[test]
    fn refuses_impossible_patterns() {
        for (n, m) in [(0, 4), (5, 4), (0, 0), (1, 0)] {
            assert!(NmPruner::keep(n, m).is_err(), "{n}:{m}");
        }
        for (m, n) in [(4, 4), (5, 4), (0, 0)] {
            assert!(NmPruner::zeros_of(m, n).is_err(), "{m} of {n}");
        }
    }

    #[test]
    fn tensors_without_elements_work() {
        for shape in [(0, 3), (3, 0)] {
            let sparse = NmPruner::keep(2, 4).unwrap().compress(Array2::<f32>::zeros(shape).view()).unwrap();
            assert_eq!(sparse.decompress().unwrap().dim(), shape);
        }
    }
}
