//! Weights with zeros anywhere.
//!
//! ```text
//! one row:    chain c of 16 sums the products of the entries c, c + 16, ... of a weight row, in that order;
//!             the chains are added in pairs: c and c + 8, then c and c + 4, c + 2, c + 1
//! many rows:  chain c of 2 sums the products of the entries c, c + 2, ..., for every row of the batch; then the two
//! ```
//!
//! Both lie within `n * EPSILON * sum of |w| |x|` of the exact sum of `n` entries. They differ in the last bits, and a
//! batch of up to three rows is computed row by row; what a thread computes does not depend on how many there are.
//!
//! 4096 x 4096 f32, one thread of an AMD EPYC (Zen 4), 90 / 95 / 99 % zeros: one row 0.36 / 0.18 / 0.053 ms in compressed
//! rows (AVX2: four loads and inserts; hardware gathers take 0.62), 0.24 / 0.135 in windows, see `windows.rs`; 32 rows
//! 2.4 / 1.15 / 0.31 ms (`cargo bench --bench peers -- --filter sparse.f32`, best of the samples on a busy machine).
//! Tried and left: bitmaps with expanding loads (1.75 ms for one row at any density), and blocking the columns for many rows,
//! so that the batch stays in the first-level cache: rows become short, and their ends cost more than the loads saved.

use super::csr::{Column, Csr};
use super::lanes::{GROUP, Group, LINE, Line, gather, scatter};
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
    rows: Rows<F>,
    windows: Option<Windows<F>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Rows<F> {
    Narrow(Csr<F, u16>),
    Wide(Csr<F, u32>),
}

impl<F: SparseReal> SparseRows<F> {
    /// From row-major weights `[outputs, inputs]`; everything but zero is kept.
    ///
    /// # Panics
    /// Unless `weights` has `outputs * inputs` elements, and `inputs` fits `u32`.
    pub fn new(isa: Isa, weights: &[F], outputs: usize, inputs: usize) -> Self {
        let rows = if inputs <= u16::LIMIT {
            Rows::Narrow(Csr::from_dense(weights, outputs, inputs))
        } else {
            Rows::Wide(Csr::from_dense(weights, outputs, inputs))
        };
        let windows = match &rows {
            Rows::Narrow(csr) if F::wants_windows(isa) => Windows::new(csr),
            _ => None,
        };
        Self { isa, rows, windows }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        match &self.rows {
            Rows::Narrow(csr) => csr.outputs(),
            Rows::Wide(csr) => csr.outputs(),
        }
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        match &self.rows {
            Rows::Narrow(csr) => csr.inputs(),
            Rows::Wide(csr) => csr.inputs(),
        }
    }

    /// Weights that are not zero.
    pub fn nonzero(&self) -> usize {
        match &self.rows {
            Rows::Narrow(csr) => csr.nonzero(),
            Rows::Wide(csr) => csr.nonzero(),
        }
    }

    /// Bytes in memory, both layouts together.
    pub fn size_bytes(&self) -> usize {
        let rows = match &self.rows {
            Rows::Narrow(csr) => csr.size_bytes(),
            Rows::Wide(csr) => csr.size_bytes(),
        };
        rows + self.windows.as_ref().map_or(0, Windows::size_bytes)
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
        x: &[F],
        tail: Epilogue<'_, F>,
        y: MatrixMut<'_, F>,
        batch: usize,
        scratch: &mut SparseScratch<F>,
    ) {
        tail.check(self.outputs());
        assert_eq!(Some(x.len()), y.rows().checked_mul(self.inputs()), "inputs of {} rows", y.rows());
        assert_eq!(y.columns(), self.outputs(), "columns of the result");
        match &self.rows {
            Rows::Narrow(csr) => self.run(csr, pool, x, tail, y, batch, scratch),
            Rows::Wide(csr) => self.run(csr, pool, x, tail, y, batch, scratch),
        }
    }

    #[expect(clippy::too_many_arguments)]
    fn run<C: Column>(
        &self,
        csr: &Csr<F, C>,
        pool: &Pool,
        mut x: &[F],
        tail: Epilogue<'_, F>,
        mut y: MatrixMut<'_, F>,
        batch: usize,
        scratch: &mut SparseScratch<F>,
    ) {
        // By the whole batch, not by what is left of it: the last rows are added up like those before them.
        let most = if batch <= FEW { 1 } else { F::lines(self.isa) * LINE };
        while y.rows() > 0 {
            let count = y.rows().min(most);
            let (block, rest) = y.split_rows(count);
            let (now, later) = x.split_at(count * csr.inputs());
            match (most, count.div_ceil(LINE)) {
                (1, _) => self.one(csr, pool, now, tail, block, scratch),
                (_, 1) => self.many::<C, 1>(csr, pool, now, tail, block, scratch),
                _ => self.many::<C, 2>(csr, pool, now, tail, block, scratch),
            }
            (x, y) = (later, rest);
        }
    }

    /// One row of the batch.
    fn one<C: Column>(
        &self,
        csr: &Csr<F, C>,
        pool: &Pool,
        x: &[F],
        tail: Epilogue<'_, F>,
        y: MatrixMut<'_, F>,
        scratch: &mut SparseScratch<F>,
    ) {
        // A window multiplies its padding as well, which is harmless unless an input is infinite.
        let windows = self.windows.as_ref().filter(|_| x.iter().fold(true, |all, x| all & x.finite()));
        let nanoseconds = csr.nonzero() as f64 * if windows.is_some() { 0.14 } else { 0.25 };
        match windows {
            Some(windows) => {
                let lines = windows.prepare(x, scratch);
                share(pool, nanoseconds, GROUP, y, |at, mut y| {
                    let y = y.row_mut(0);
                    windows.multiply(self.isa, at..at + y.len(), lines, x, y);
                    tail.apply(at, y);
                });
            }
            None => share(pool, nanoseconds, GROUP, y, |at, mut y| {
                let y = y.row_mut(0);
                F::one(self.isa, csr, at, x, y);
                tail.apply(at, y);
            }),
        }
    }

    /// At most `16 * V` rows of the batch.
    fn many<C: Column, const V: usize>(
        &self,
        csr: &Csr<F, C>,
        pool: &Pool,
        x: &[F],
        tail: Epilogue<'_, F>,
        y: MatrixMut<'_, F>,
        scratch: &mut SparseScratch<F>,
    ) {
        let lanes = scratch.lines(csr.inputs() * V);
        let nanoseconds = csr.nonzero() as f64 * 0.7 * V as f64;
        gather::<F, V>(self.isa, pool, nanoseconds, x, csr.inputs(), lanes);
        share(pool, nanoseconds, GROUP, y, |at, mut y| {
            many_on::<F, C, V>(self.isa, csr, at, lanes, &tail, &mut y)
        });
    }
}

fn many_on<F: SparseReal, C: Column, const V: usize>(
    isa: Isa,
    csr: &Csr<F, C>,
    first: usize,
    lanes: &[Line<F>],
    tail: &Epilogue<'_, F>,
    out: &mut MatrixMut<'_, F>,
) {
    match isa {
        // Without the instruction, a fused step is a call of the maths library.
        Isa::Scalar => Many::<F, C, V, false> { isa, csr, first, lanes, tail, out }.run(),
        _ => with(isa, Many::<F, C, V, true> { isa, csr, first, lanes, tail, out }),
    }
}

/// The definition for many rows, compiled for each set of instructions; `FUSED` steps round once.
///
/// Computes the weight rows `first ..`, as many as `out` has columns; `lanes` are `[inputs][V]`.
struct Many<'a, 'o, F, C, const V: usize, const FUSED: bool> {
    isa: Isa,
    csr: &'a Csr<F, C>,
    first: usize,
    lanes: &'a [Line<F>],
    tail: &'a Epilogue<'a, F>,
    out: &'a mut MatrixMut<'o, F>,
}

impl<F: SparseReal, C: Column, const V: usize, const FUSED: bool> Work for Many<'_, '_, F, C, V, FUSED> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { isa, csr, first, lanes, tail, out } = self;
        let (lanes, _) = lanes.as_chunks::<V>();
        assert_eq!(lanes.len(), csr.inputs(), "lanes of all inputs");
        let zero = [[F::default(); LINE]; V];
        let step = |sum: &mut [[F; LINE]; V], column: C, value: F| {
            // SAFETY: columns of a `Csr` are below its inputs, of which there are as many as `lanes`.
            let x = unsafe { lanes.get_unchecked(column.get()) };
            for (sum, x) in sum.iter_mut().zip(x) {
                for (sum, &x) in sum.iter_mut().zip(&x.0) {
                    *sum = if FUSED { value.fused(x, *sum) } else { value * x + *sum };
                }
            }
        };
        let (tail, columns) = (tail.from(first), out.columns());
        let mut group: Group<F, V> = [[Line([F::default(); LINE]); V]; GROUP];
        for at in (0..columns).step_by(GROUP) {
            let used = GROUP.min(columns - at);
            for (r, sums) in group[..used].iter_mut().enumerate() {
                let (columns, values) = csr.row(first + at + r);
                let (mut even, mut odd) = (zero, zero);
                let (column_pairs, last_column) = columns.as_chunks::<2>();
                let (value_pairs, last_value) = values.as_chunks::<2>();
                for (columns, values) in column_pairs.iter().zip(value_pairs) {
                    step(&mut even, columns[0], values[0]);
                    step(&mut odd, columns[1], values[1]);
                }
                for (&column, &value) in last_column.iter().zip(last_value) {
                    step(&mut even, column, value);
                }
                for v in 0..V {
                    sums[v].0 = std::array::from_fn(|l| even[v][l] + odd[v][l]);
                }
            }
            scatter(isa, &group, &tail, at, used, out);
        }
    }
}

/// The definition for one row: sums of the weight rows `first ..`, as many as `y` is long.
pub(in crate::kernel) fn one<F: SparseReal, C: Column>(csr: &Csr<F, C>, first: usize, x: &[F], y: &mut [F]) {
    assert_eq!(x.len(), csr.inputs(), "length of the input");
    for (i, y) in y.iter_mut().enumerate() {
        let (columns, values) = csr.row(first + i);
        let mut chains = [F::default(); 16];
        let (column_chunks, last_columns) = columns.as_chunks::<16>();
        let (value_chunks, last_values) = values.as_chunks::<16>();
        for (columns, values) in column_chunks.iter().zip(value_chunks) {
            for c in 0..16 {
                // SAFETY: columns of a `Csr` are below its inputs, of which there are as many as `x` is long.
                let x = unsafe { *x.get_unchecked(columns[c].get()) };
                chains[c] = values[c] * x + chains[c];
            }
        }
        for ((chain, column), &value) in chains.iter_mut().zip(last_columns).zip(last_values) {
            *chain = value * x[column.get()] + *chain;
        }
        for half in [8, 4, 2, 1] {
            for c in 0..half {
                chains[c] = chains[c] + chains[c + half];
            }
        }
        *y = chains[0];
    }
}
