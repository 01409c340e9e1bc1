//! Weights with zeros anywhere.
//!
//! ```text
//! one row:    within each cell (see `cells.rs`) chain c of 16 sums the products of the entries c, c + 16, ... of a weight row, in
//!             that order; the chains are added in pairs: c and c + 8, then c and c + 4, c + 2, c + 1
//! many rows:  within each cell chain c of 2 sums the products of the entries c, c + 2, ..., for every row of
//!             the batch, the first from the sum of the cells before on; then the two
//! ```
//!
//! Both lie within `n * EPSILON * sum of |w| |x|` of the exact sum of `n` entries. They differ in the last bits, and a
//! batch of up to three rows is computed row by row; what a thread computes does not depend on how many there are.
//!
//! With AVX-512 one row of `f32` is added up in windows (`windows.rs`) and groups (`groups.rs`) instead.
//!
//! 4096 x 4096 f32, one thread of an AMD EPYC (Zen 5), 90 / 95 / 99 % zeros: one row 0.14 / 0.075 / 0.028 ms;
//! 32 rows 0.89 / 0.51 / 0.15 ms (`cargo bench --bench peers -- --filter sparse.f32`).
//! Tried and left: bitmaps with expanding loads (five times as long for one row with 90 % zeros), hardware gathers (1.7 times as
//! long), asking ahead for entries of many rows (a tenth more).

use super::cells::{Cell, Cells, One, Sums};
use super::csr::Csr;
use super::lanes::{GROUP, GROUPS, LINE, Line, gather, scatter};
use super::real::{Epilogue, SparseReal, SparseScratch, share};
use super::windows::Windows;
use crate::kernel::elementwise::{Work, with};
use crate::kernel::{Isa, MatrixMut, Pool};

/// Up to here a batch is computed row by row.
const FEW: usize = 3;

/// Sparse weights `[outputs, inputs]`, ready to multiply on one set of instructions.
///
/// ```
/// use trimnet::kernel::{Epilogue, Isa, MatrixMut, Pool, SparseRows, SparseScratch};
///
/// let weights = SparseRows::new(Isa::best(), &[0.0, 2.0, 0.0, 0.0, 0.0, 3.0], 2, 3);
/// let (x, mut y) = ([1.0f32, 10.0, 100.0], [0.0; 2]);
/// let tail = Epilogue { bias: Some(&[0.5, -1.0]), ..Epilogue::default() };
/// weights.multiply(&Pool::single(), &x, tail, MatrixMut::new(&mut y, 1, 2), &mut SparseScratch::default());
/// assert_eq!(y, [20.5, 299.0]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SparseRows<F> {
    isa: Isa,
    many: Cells<F>,
    /// Windows unless an input is infinite or NaN: the cells for many rows do it then.
    one: One<F, Windows<F>>,
}

impl<F: SparseReal> SparseRows<F> {
    /// From row-major weights `[outputs, inputs]`; everything but zero is kept.
    ///
    /// # Panics
    /// Unless `weights` has `outputs * inputs` elements, and `inputs` fits `u32`.
    pub fn new(isa: Isa, weights: &[F], outputs: usize, inputs: usize) -> Self {
        let csr = Csr::from_dense(weights, outputs, inputs);
        let bytes = 2 * size_of::<Line<F>>();
        let many = Cells::near(&csr, (bytes, bytes));
        let windows = if F::wants_windows(isa) { Windows::new(&csr) } else { None };
        let one = One::new(&csr, &many, windows);
        Self { isa, many, one }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.many.outputs()
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.many.inputs()
    }

    /// Weights that are not zero.
    pub fn nonzero(&self) -> usize {
        self.many.nonzero()
    }

    /// Bytes in memory, all layouts together.
    pub fn size_bytes(&self) -> usize {
        self.many.size_bytes() + self.one.size_bytes(Windows::size_bytes)
    }

    /// `y = activation(x * w^T + bias)` for row-major `x` `[rows of y, inputs]`.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn multiply(
        &self,
        pool: &Pool,
        x: &[F],
        tail: Epilogue<'_, F>,
        y: MatrixMut<'_, F>,
        scratch: &mut SparseScratch<F>,
    ) {
        let batch = y.rows();
        self.multiply_part(pool, x, tail, y, batch, scratch);
    }

    /// The same for some rows of a batch of `batch` rows, to the bits that they have there.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn multiply_part(
        &self,
        pool: &Pool,
        mut x: &[F],
        tail: Epilogue<'_, F>,
        mut y: MatrixMut<'_, F>,
        batch: usize,
        scratch: &mut SparseScratch<F>,
    ) {
        tail.check(self.outputs());
        assert_eq!(Some(x.len()), y.rows().checked_mul(self.inputs()), "inputs of {} rows", y.rows());
        assert_eq!(y.columns(), self.outputs(), "columns of the result");
        // By the whole batch, not by what is left of it: the last rows are added up like those before them.
        let most = if batch <= FEW { 1 } else { F::lines(self.isa) * LINE };
        while y.rows() > 0 {
            let count = y.rows().min(most);
            let (block, rest) = y.split_rows(count);
            let (now, later) = x.split_at(count * self.inputs());
            match (most, count.div_ceil(LINE)) {
                (1, _) => self.one(pool, now, tail, block, scratch),
                (_, 1) => self.many::<1>(pool, now, tail, block, scratch),
                _ => self.many::<2>(pool, now, tail, block, scratch),
            }
            (x, y) = (later, rest);
        }
    }

    /// One row of the batch.
    fn one(
        &self,
        pool: &Pool,
        x: &[F],
        tail: Epilogue<'_, F>,
        y: MatrixMut<'_, F>,
        scratch: &mut SparseScratch<F>,
    ) {
        let (nonzero, height) = (self.nonzero() as f64, self.many.height());
        // A window multiplies its padding as well, which is harmless unless an input is infinite.
        if let One::Windows(windows) = &self.one
            && x.iter().fold(true, |all, x| all & x.finite())
        {
            let lines = windows.prepare(x, scratch);
            return share(pool, nonzero * 0.14, windows.height(), y, |at, mut y| {
                let y = y.row_mut(0);
                windows.multiply(self.isa, at..at + y.len(), lines, x, y);
                tail.apply(at, y);
            });
        }
        let cells = if let One::Cells(cells) = &self.one { cells } else { &self.many };
        share(pool, nonzero * 0.25, height, y, |at, mut y| {
            let y = y.row_mut(0);
            one(self.isa, cells, at, x, y);
            tail.apply(at, y);
        });
    }

    /// At most `16 * V` rows of the batch.
    fn many<const V: usize>(
        &self,
        pool: &Pool,
        x: &[F],
        tail: Epilogue<'_, F>,
        y: MatrixMut<'_, F>,
        scratch: &mut SparseScratch<F>,
    ) {
        let cells = &self.many;
        let lanes = scratch.lines(cells.inputs() * V);
        let nanoseconds = cells.nonzero() as f64 * 0.7 * V as f64;
        gather::<F, V>(self.isa, pool, nanoseconds, x, cells.inputs(), lanes);
        share(pool, nanoseconds, cells.height(), y, |at, y| {
            with(self.isa, Many::<F, V> { isa: self.isa, cells, at, lanes, tail: tail.from(at), out: y })
        });
    }
}

/// Sums of the weight rows `at ..`, which begin with a band, as many as `y` is long.
pub(super) fn one<F: SparseReal>(isa: Isa, cells: &Cells<F>, at: usize, x: &[F], y: &mut [F]) {
    assert_eq!((x.len(), at % cells.height()), (cells.inputs(), 0), "whole rows and bands");
    for (b, y) in y.chunks_mut(cells.height()).enumerate() {
        y.fill(F::default());
        for (cell, x) in cells.band(at / cells.height() + b).zip(x.chunks(cells.width())) {
            F::one(isa, cell, x, y);
        }
    }
}

/// Computes the weight rows `at ..`, which begin with a band, as many as `out` has columns; `lanes` are `[inputs][V]`.
struct Many<'a, F, const V: usize> {
    isa: Isa,
    cells: &'a Cells<F>,
    at: usize,
    lanes: &'a [Line<F>],
    tail: Epilogue<'a, F>,
    out: MatrixMut<'a, F>,
}

impl<F: SparseReal, const V: usize> Work for Many<'_, F, V> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { isa, cells, at, lanes, tail, mut out } = self;
        let ((lanes, _), columns, height) = (lanes.as_chunks::<V>(), out.columns(), cells.height());
        assert_eq!((lanes.len(), at % height), (cells.inputs(), 0), "lanes of all inputs, whole bands");
        let (mut memory, mut turned) = (Sums::new(), [[[Line::default(); GROUP]; V]; GROUPS]);
        for first in (0..columns).step_by(height) {
            let last = columns.min(first + height);
            let sums = memory.begin(last - first, [Line([F::default(); LINE]); V]);
            for (cell, lanes) in cells.band((at + first) / height).zip(lanes.chunks(cells.width())) {
                cell_many_on(isa, cell, lanes, sums);
            }
            scatter(isa, sums.as_chunks().0, &mut turned, &tail, first..last, &mut out);
        }
    }
}

/// Adds to the sums of a band, for many rows, what a cell has for its inputs `x`.
fn cell_many_on<F: SparseReal, const V: usize>(
    isa: Isa,
    cell: Cell<'_, F>,
    x: &[[Line<F>; V]],
    sums: &mut [[Line<F>; V]],
) {
    match isa {
        // Without the instruction, a fused step is a call of the maths library.
        Isa::Scalar => cell_many::<F, V, false>(cell, x, sums),
        _ => F::many(isa, cell, x, sums),
    }
}

/// [`cell_many`] with steps that round once, compiled for each set of instructions.
pub(super) struct Fused<'a, F, const V: usize> {
    pub(super) cell: Cell<'a, F>,
    pub(super) x: &'a [[Line<F>; V]],
    pub(super) sums: &'a mut [[Line<F>; V]],
}

impl<F: SparseReal, const V: usize> Work for Fused<'_, F, V> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        cell_many::<F, V, true>(self.cell, self.x, self.sums);
    }
}

/// The definition for many rows, of which `x` holds the inputs of a cell and `sums` the sums of a band.
#[inline(always)]
fn cell_many<F: SparseReal, const V: usize, const FUSED: bool>(
    cell: Cell<'_, F>,
    x: &[[Line<F>; V]],
    sums: &mut [[Line<F>; V]],
) {
    assert_eq!(x.len(), cell.inputs(), "lanes of all inputs");
    let step = |sum: &mut [Line<F>; V], column: u16, value: F| {
        // SAFETY: columns are below the inputs of the cell, of which there are as many as `x`.
        let x = unsafe { x.get_unchecked(usize::from(column)) };
        for (sum, x) in sum.iter_mut().zip(x) {
            for (sum, &x) in sum.0.iter_mut().zip(&x.0) {
                *sum = if FUSED { value.fused(x, *sum) } else { value * x + *sum };
            }
        }
    };
    for part in cell {
        let (columns, values) = part.entries();
        let (column_pairs, last_column) = columns.as_chunks::<2>();
        let (value_pairs, last_value) = values.as_chunks::<2>();
        let sums = &mut sums[part.row];
        let (mut even, mut odd) = (*sums, [Line([F::default(); LINE]); V]);
        for (columns, values) in column_pairs.iter().zip(value_pairs) {
            step(&mut even, columns[0], values[0]);
            step(&mut odd, columns[1], values[1]);
        }
        for (&column, &value) in last_column.iter().zip(last_value) {
            step(&mut even, column, value);
        }
        for (sum, (even, odd)) in sums.iter_mut().zip(even.iter().zip(&odd)) {
            sum.0 = std::array::from_fn(|l| even.0[l] + odd.0[l]);
        }
    }
}

/// The definition for one row: adds to the sums `y` of a band what a cell has for its inputs `x`.
pub(super) fn cell_one<F: SparseReal>(cell: Cell<'_, F>, x: &[F], y: &mut [F]) {
    assert_eq!(x.len(), cell.inputs(), "length of the input");
    for part in cell {
        let (columns, values) = part.entries();
        let mut chains = [F::default(); 16];
        let (column_chunks, last_columns) = columns.as_chunks::<16>();
        let (value_chunks, last_values) = values.as_chunks::<16>();
        for (columns, values) in column_chunks.iter().zip(value_chunks) {
            for c in 0..16 {
                // SAFETY: columns are below the inputs of the cell, of which `x` has as many.
                let x = unsafe { *x.get_unchecked(usize::from(columns[c])) };
                chains[c] = values[c] * x + chains[c];
            }
        }
        for ((chain, &column), &value) in chains.iter_mut().zip(last_columns).zip(last_values) {
            *chain = value * x[usize::from(column)] + *chain;
        }
        for half in [8, 4, 2, 1] {
            for c in 0..half {
                chains[c] = chains[c] + chains[c + half];
            }
        }
        y[part.row] = y[part.row] + chains[0];
    }
}
