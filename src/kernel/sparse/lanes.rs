//! Rows of a batch side by side, so that one weight multiplies a vector of them.
//!
//! ```text
//! batch [b, inputs]  ->  lanes [inputs][V][16]      lane l of V * 16 is row l of the batch, zero where there is none
//! ```

use super::real::{Epilogue, SparseReal};
use crate::kernel::matrix::MatrixMut;

/// Lanes of a line.
pub(in crate::kernel) const LINE: usize = 16;

/// Rows of weights that are computed before they are written out together.
pub(in crate::kernel) const GROUP: usize = 16;

/// Sixteen numbers on cache lines of their own.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Line<T>(pub(in crate::kernel) [T; LINE]);

/// The sums of a group of weight rows: `[row][V][16]`.
pub(in crate::kernel) type Group<F, const V: usize> = [[Line<F>; V]; GROUP];

/// Transposes rows `[rows, inputs]`, at most `16 * V`, to `[inputs][V]` lines, all of which are written.
#[inline(always)]
pub(in crate::kernel) fn gather<F: Copy + Default, const V: usize>(
    x: &[F],
    inputs: usize,
    lanes: &mut [Line<F>],
) {
    if inputs == 0 {
        return;
    }
    for v in 0..V {
        let x = x.get(v * LINE * inputs..).unwrap_or_default();
        let rows = (x.len() / inputs).min(LINE);
        let (tiles, _) = lanes.as_chunks_mut::<V>();
        if rows == LINE {
            let rows: [&[F]; LINE] = std::array::from_fn(|l| &x[l * inputs..][..inputs]);
            for (j, line) in tiles[..inputs].iter_mut().enumerate() {
                line[v].0 = std::array::from_fn(|l| rows[l][j]);
            }
        } else {
            for (j, line) in tiles[..inputs].iter_mut().enumerate() {
                line[v].0 = std::array::from_fn(|l| if l < rows { x[l * inputs + j] } else { F::default() });
            }
        }
    }
}

/// Writes the sums of `columns` weight rows to rows `first ..` of the result, from column `at` on.
#[inline(always)]
pub(in crate::kernel) fn scatter<F: SparseReal, const V: usize>(
    sums: &Group<F, V>,
    tail: &Epilogue<'_, F>,
    at: usize,
    columns: usize,
    rows: std::ops::Range<usize>,
    out: &mut MatrixMut<'_, F>,
) {
    for (l, i) in rows.enumerate() {
        let (v, l) = (l / LINE, l % LINE);
        let target = &mut out.row_mut(i)[at..at + columns];
        if let Ok(target) = <&mut [F; GROUP]>::try_from(&mut *target) {
            *target = std::array::from_fn(|r| sums[r][v].0[l]);
        } else {
            for (y, sums) in target.iter_mut().zip(sums) {
                *y = sums[v].0[l];
            }
        }
        tail.apply(at, target);
    }
}
