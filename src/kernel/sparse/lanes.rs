//! Rows of a batch side by side, so that one weight multiplies a vector of them.
//!
//! ```text
//! batch [b, inputs]  ->  lanes [inputs][V][16]      lane l of V * 16 is row l of the batch
//! ```

use std::ops::Range;

use super::cells::MOST_ROWS;
use super::real::{Epilogue, SparseReal, worth_sharing};
use crate::kernel::pack::pack;
use crate::kernel::{Isa, Matrix, MatrixMut, Pool};

/// Lanes of a line.
pub(in crate::kernel) const LINE: usize = 16;

/// Rows of weights whose sums are transposed together.
pub(in crate::kernel) const GROUP: usize = 16;

/// Groups of a band, at most.
pub(super) const GROUPS: usize = MOST_ROWS / GROUP;

/// Sixteen numbers on cache lines of their own.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Line<T>(pub(in crate::kernel) [T; LINE]);

/// The sums of a group of weight rows: `[row][V][16]`.
pub(in crate::kernel) type Group<F, const V: usize> = [[Line<F>; V]; GROUP];

/// Transposes rows `[rows, inputs]`, at most `16 * V`, to `[inputs][V]` lines, for a product that takes so many nanoseconds.
/// Lanes without a row keep what they held.
pub(super) fn gather<F: SparseReal, const V: usize>(
    isa: Isa,
    pool: &Pool,
    nanoseconds: f64,
    x: &[F],
    inputs: usize,
    lanes: &mut [Line<F>],
) {
    let threads = worth_sharing(pool, nanoseconds).map_or(1, |_| pool.threads().min(Pool::JOBS));
    let x = Matrix::new(x, x.len() / inputs.max(1), inputs);
    // Whole lines of every row, for all that read them.
    let part = inputs.div_ceil(threads).next_multiple_of(LINE).max(LINE);
    pool.share(lanes.chunks_mut(part * V).enumerate(), |(i, lanes)| {
        pack(isa, x.column_range(i * part, lanes.len() / V), numbers_mut(lanes), V * LINE);
    });
}

/// Writes the sums of a band of weight rows to those `columns` of the result, row by row: lines that follow each other are ready sooner
/// than the same line of every row, which often share a set of the first-level cache. `turned` is overwritten.
#[inline(always)]
pub(super) fn scatter<F: SparseReal, const V: usize>(
    isa: Isa,
    groups: &[Group<F, V>],
    turned: &mut [[[Line<F>; GROUP]; V]; GROUPS],
    tail: &Epilogue<'_, F>,
    columns: Range<usize>,
    out: &mut MatrixMut<'_, F>,
) {
    for (group, turned) in groups.iter().zip(&mut *turned) {
        let sums = Matrix::new(numbers(group.as_flattened()), GROUP, V * LINE);
        pack(isa, sums, numbers_mut(turned.as_flattened_mut()), GROUP);
    }
    for i in 0..out.rows() {
        let row = &mut out.row_mut(i)[columns.clone()];
        for ((at, out), turned) in columns.clone().step_by(GROUP).zip(row.chunks_mut(GROUP)).zip(&*turned) {
            tail.write(at, &turned.as_flattened()[i].0, out);
        }
    }
}

fn numbers<F: SparseReal>(lines: &[Line<F>]) -> &[F] {
    // SAFETY: a `Line` of 4- or 8-byte numbers is 16 of them without padding, 64 or 128 bytes.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LINE) }
}

fn numbers_mut<F: SparseReal>(lines: &mut [Line<F>]) -> &mut [F] {
    // SAFETY: as above, and borrowed exclusively.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LINE) }
}
