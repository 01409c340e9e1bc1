//! Weights without the rows of smallest norm.
//!
//! ```text
//! few rows:   the norms of all, a selection, and the result by what was selected
//! many rows:  the norms of some give a guess of the cut
//!             one pass:  the norm of a row; by the guess the row itself, which is still in a near cache, or zeros
//!             a selection by all norms; rows that the guess got wrong are written again, some hundredths of all
//! ```

use ndarray::{ArrayView, Axis};

use crate::error::Result;
use crate::float::Float;
use crate::kernel::{Isa, PART, Pool, Stream};

use super::bracket::hash;
use super::report::PruneReport;
use super::score::{Norm, row_norm};
use super::select::Selection;

/// Rows of a sample. Of twice as many the cut is known better by a third, and they take as long as is won.
const SAMPLE: usize = 128;
/// So many rows are many: a sample is a small part of them.
const MANY: usize = 8 * SAMPLE;
/// A larger row has left the near caches when its norm is known.
const NEAR_BYTES: usize = 256 << 10;

/// `out = x` without the rows, of `columns` weights each, that `selection` drops by their norm, on all threads of `pool`.
pub(super) fn write<F: Float>(
    pool: &Pool,
    (selection, norm): (&Selection, Norm),
    columns: usize,
    x: &[F],
    out: &mut [F],
) -> Result<PruneReport> {
    let (isa, whole, count) = (Isa::best(), x.len(), x.len() / columns);
    let reads = (isa, isa.streams());
    let select = |norms: &[F]| selection.select(ArrayView::from(norms).insert_axis(Axis(0)), None);
    let guess = if count >= MANY && columns * size_of::<F>() <= NEAR_BYTES {
        // One at a hashed place in each of equal stretches.
        let place = |i: usize| (i * count + hash(i as u64) as usize % count) / SAMPLE;
        let norm_at = |i| row_norm(reads, &x[place(i) * columns..][..columns], norm);
        let norms: Vec<F> = (0..SAMPLE).map(norm_at).collect();
        let kept = select(&norms)?.0;
        let kept = norms.iter().zip(kept.keep()).filter(|&(_, &keep)| keep);
        Some(kept.fold(F::infinity(), |least, (&norm, _)| least.min(norm)))
    } else {
        None
    };
    let guessed = |norm: F| guess.map(|guess| norm >= guess || norm.is_nan());

    let mut norms = vec![F::zero(); count];
    let rows = (PART / columns).max(1);
    let size = rows * columns;
    pool.each(x.chunks(size).zip(out.chunks_mut(size)).zip(norms.chunks_mut(rows)), |((x, out), norms)| {
        let mut stream = Stream::new(isa, whole);
        for ((x, out), to) in x.chunks(columns).zip(out.chunks_mut(columns)).zip(norms) {
            *to = row_norm(reads, x, norm);
            if let Some(keep) = guessed(*to) {
                put(&mut stream, keep, x, out);
            }
        }
    });
    let (keep, report) = select(&norms)?;
    let keep: Vec<(F, bool)> = norms.into_iter().zip(keep.keep().iter().copied()).collect();
    pool.each(x.chunks(size).zip(out.chunks_mut(size)).zip(keep.chunks(rows)), |((x, out), keep)| {
        let mut stream = Stream::new(isa, whole);
        for ((x, out), &(norm, keep)) in x.chunks(columns).zip(out.chunks_mut(columns)).zip(keep) {
            if guessed(norm) != Some(keep) {
                put(&mut stream, keep, x, out);
            }
        }
    });
    Ok(PruneReport { weights: whole, zeros: report.dropped * columns, ..report })
}

/// `out = x`, or zeros.
fn put<F: Float>(stream: &mut Stream<F>, keep: bool, x: &[F], out: &mut [F]) {
    if keep { stream.copy(x, out) } else { stream.clear(out) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::{Pruner, StructuredPruner};
    use ndarray::{Array2, ArrayView2};

    fn equals_the_mask<F: Float>(x: ArrayView2<'_, F>, selection: &Selection) {
        let bits = |x: F| if x.is_nan() { u64::MAX } else { x.as_f64().to_bits() };
        let pruner = StructuredPruner::rows(selection.clone());
        let (mask, expected) = pruner.mask(x, None).unwrap();
        for pool in [Pool::single(), Pool::new(3)] {
            let mut out = Array2::from_elem(x.dim(), F::one());
            let report = pruner.prune_into(x, out.view_mut(), &pool).unwrap();
            assert_eq!(report, expected, "{selection:?}");
            for ((&x, &out), &keep) in x.iter().zip(&out).zip(mask.keep()) {
                assert_eq!(bits(out), bits(if keep { x } else { F::zero() }), "{selection:?}");
            }
        }
    }

    #[test]
    fn many_rows_are_pruned_as_by_their_mask() {
        let random = |i: usize| hash(i as u64) as f64 / u64::MAX as f64 - 0.5;
        let selections = [0.0, 0.1, 0.5, 0.97, 1.0].map(|share| Selection::sparsity(share).unwrap());
        let selections = selections.into_iter().chain([Selection::threshold(0.6).unwrap()]);
        for selection in selections {
            for (rows, columns) in [(MANY - 1, 3), (MANY, 1), (MANY + 77, 5), (3 * MANY, 2)] {
                let at = |(i, j): (usize, usize)| random(i * columns + j);
                let lists = [
                    Array2::from_shape_fn((rows, columns), at),
                    // Equal rows, zeros, and what is not a number.
                    Array2::from_shape_fn((rows, columns), |(i, _)| (8.0 * random(i)).floor()),
                    Array2::zeros((rows, columns)),
                    Array2::from_shape_fn((rows, columns), |(i, j)| match i % 7 {
                        0 => f64::NAN,
                        1 => f64::INFINITY,
                        _ => at((i, j)),
                    }),
                ];
                for x in lists {
                    equals_the_mask(x.view(), &selection);
                    equals_the_mask(x.mapv(|x| x as f32).view(), &selection);
                }
            }
        }
    }

    #[test]
    fn rows_that_hide_from_the_sample_are_pruned_all_the_same() {
        let mut x = Array2::from_shape_fn((2 * MANY, 2), |(i, j)| (i + j) as f64 + 1.0);
        for i in 0..SAMPLE {
            x.row_mut((i * 2 * MANY + hash(i as u64) as usize % (2 * MANY)) / SAMPLE).fill(0.0);
        }
        equals_the_mask(x.view(), &Selection::sparsity(0.5).unwrap());
    }
}
