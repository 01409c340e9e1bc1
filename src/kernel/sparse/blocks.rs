//! Weights pruned in blocks of 16 outputs that use an input together or not at all.
//!
//! ```text
//! y[b, 16 s + l] = sum over the inputs j of strip s, in rising order, of w[16 s + l, j] * x[b, j]
//! ```
//!
//! One load brings 16 weights and one index serves them all, so this runs near the peak of the arithmetic.
//! 4096 x 4096 f32 with 90 % of the blocks pruned, one thread of an AMD EPYC (Zen 4): one row 0.11 ms, 32 rows 1.0 ms.
//!
//! One row: four chains take the inputs in turn, added as `(0 + 1) + (2 + 3)`. Many rows: one chain for each.

use super::csr::MOST_INPUTS;
use super::lanes::{LINE, Line, gather};
use super::real::{Epilogue, SparseReal, SparseScratch, share};
use crate::kernel::{Isa, MatrixMut, Pool};

/// Sparse weights `[outputs, inputs]` in strips of 16 outputs.
///
/// ```
/// use trimnet::kernel::{Epilogue, Isa, MatrixMut, Pool, SparseBlocks, SparseScratch};
///
/// let weights = SparseBlocks::new(Isa::best(), &[0.0, 2.0, 0.0, 0.0, 0.0, 3.0], 2, 3);
/// let (x, mut y) = ([1.0f32, 10.0, 100.0], [0.0; 2]);
/// weights.multiply(&Pool::single(), &x, Epilogue::default(), MatrixMut::new(&mut y, 1, 2), &mut SparseScratch::default());
/// assert_eq!((weights.blocks(), y), (2, [20.0, 300.0]));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SparseBlocks<F> {
    isa: Isa,
    outputs: usize,
    strips: Strips<F>,
}

/// Invariant: `starts` has one entry more than there are strips, begins with 0, never falls, and ends with the number of
/// `columns` and `values`; every column is below `inputs`.
#[derive(Clone, Debug, PartialEq)]
pub struct Strips<F> {
    inputs: usize,
    starts: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<Line<F>>,
}

impl<F: SparseReal> Strips<F> {
    pub(in crate::kernel) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Columns, each below `inputs`, and weights of a strip, of equal lengths.
    #[inline(always)]
    pub(in crate::kernel) fn strip(&self, s: usize) -> (&[u32], &[Line<F>]) {
        let range = self.starts[s]..self.starts[s + 1];
        (&self.columns[range.clone()], &self.values[range])
    }
}

impl<F: SparseReal> SparseBlocks<F> {
    /// From row-major weights `[outputs, inputs]`; a block with any weight but zero is kept.
    ///
    /// # Panics
    /// Unless `weights` has `outputs * inputs` elements, and `inputs` fits `u32`.
    pub fn new(isa: Isa, weights: &[F], outputs: usize, inputs: usize) -> Self {
        assert_eq!(Some(weights.len()), outputs.checked_mul(inputs), "weights of {outputs} x {inputs}");
        assert!(inputs <= MOST_INPUTS, "{inputs} inputs, at most {MOST_INPUTS} fit");
        let mut strips = Strips { inputs, starts: vec![0], columns: Vec::new(), values: Vec::new() };
        for first in (0..outputs).step_by(LINE) {
            let used = LINE.min(outputs - first);
            for j in 0..inputs {
                let mut line = Line([F::default(); LINE]);
                for (l, value) in line.0[..used].iter_mut().enumerate() {
                    *value = weights[(first + l) * inputs + j];
                }
                if line.0.iter().any(|&value| value != F::default()) {
                    strips.columns.push(j as u32);
                    strips.values.push(line);
                }
            }
            strips.starts.push(strips.columns.len());
        }
        Self { isa, outputs, strips }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.strips.inputs
    }

    /// Blocks of 16 x 1 that are kept.
    pub fn blocks(&self) -> usize {
        self.strips.columns.len()
    }

    /// Bytes in memory.
    pub fn size_bytes(&self) -> usize {
        let Strips { starts, columns, values, .. } = &self.strips;
        size_of_val(starts.as_slice()) + size_of_val(columns.as_slice()) + size_of_val(values.as_slice())
    }

    /// `y = activation(x * w^T + bias)` for row-major `x` `[rows of y, inputs]`.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn multiply(
        &self,
        pool: &Pool,
        mut x: &[F],
        tail: Epilogue<'_, F>,
        mut y: MatrixMut<'_, F>,
        scratch: &mut SparseScratch<F>,
    ) {
        let inputs = self.inputs();
        tail.check(self.outputs);
        assert_eq!(Some(x.len()), y.rows().checked_mul(inputs), "inputs of {} rows", y.rows());
        assert_eq!(y.columns(), self.outputs, "columns of the result");
        // By the whole batch, so that its last row is added up like those before it.
        let most = if y.rows() == 1 { 1 } else { 2 * LINE };
        while y.rows() > 0 {
            let count = y.rows().min(most);
            let (block, rest) = y.split_rows(count);
            let (now, later) = x.split_at(count * inputs);
            match (most, count.div_ceil(LINE)) {
                (1, _) => self.one(pool, now, tail, block),
                (_, 1) => self.many::<1>(pool, now, tail, block, scratch),
                _ => self.many::<2>(pool, now, tail, block, scratch),
            }
            (x, y) = (later, rest);
        }
    }

    /// One row of the batch.
    fn one(&self, pool: &Pool, x: &[F], tail: Epilogue<'_, F>, y: MatrixMut<'_, F>) {
        share(pool, self.blocks() as f64 * 0.7, LINE, y, |at, mut y| {
            let y = y.row_mut(0);
            F::blocks_one(self.isa, &self.strips, at / LINE, x, y);
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
        let lanes = scratch.lines(V * self.inputs());
        let nanoseconds = self.blocks() as f64 * 5.0 * V as f64;
        gather::<F, V>(self.isa, pool, nanoseconds, x, self.inputs(), lanes);
        share(pool, nanoseconds, LINE, y, |first, mut y| {
            let (rows, columns) = (y.rows(), y.columns());
            let mut sums = [Line([F::default(); LINE]); LINE];
            for at in (0..columns).step_by(LINE) {
                for b in (0..rows).step_by(LINE) {
                    let count = LINE.min(rows - b);
                    let x = Lanes { lines: lanes, every: V, line: b / LINE };
                    F::blocks_tile(self.isa, &self.strips, (first + at) / LINE, x, count, &mut sums);
                    for (i, sums) in (b..rows).zip(&sums) {
                        let used = LINE.min(columns - at);
                        tail.write(first + at, &sums.0, &mut y.row_mut(i)[at..at + used]);
                    }
                }
            }
        });
    }
}

/// One line of each input.
#[derive(Clone, Copy)]
pub struct Lanes<'a, F> {
    pub(in crate::kernel) lines: &'a [Line<F>],
    /// Lines of an input, and which one.
    pub(in crate::kernel) every: usize,
    pub(in crate::kernel) line: usize,
}

impl<F> Lanes<'_, F> {
    /// Asserts that there are lines of all inputs.
    pub(in crate::kernel) fn check(&self, inputs: usize) {
        assert_eq!(self.lines.len(), inputs * self.every, "lanes of all inputs");
        assert!(self.line < self.every, "line {} of {}", self.line, self.every);
    }
}

/// The definition for one row: sums of the strips from `first` on, as `y` is long.
pub(super) fn one<F: SparseReal>(strips: &Strips<F>, first: usize, x: &[F], y: &mut [F]) {
    assert_eq!(x.len(), strips.inputs(), "length of the input");
    for (s, y) in y.chunks_mut(LINE).enumerate() {
        let (columns, values) = strips.strip(first + s);
        let mut chains = [[F::default(); LINE]; 4];
        for (k, (&column, values)) in columns.iter().zip(values).enumerate() {
            for (sum, &value) in chains[k % 4].iter_mut().zip(&values.0) {
                *sum = value * x[column as usize] + *sum;
            }
        }
        let [a, b, c, d] = &chains;
        for (l, y) in y.iter_mut().enumerate() {
            *y = (a[l] + b[l]) + (c[l] + d[l]);
        }
    }
}

/// The definition for many rows: `y[i]` are the sums of strip `s` for lane `i`, `rows` of them at least.
pub(super) fn tile<F: SparseReal>(
    strips: &Strips<F>,
    s: usize,
    x: Lanes<'_, F>,
    rows: usize,
    y: &mut [Line<F>; LINE],
) {
    x.check(strips.inputs());
    let (columns, values) = strips.strip(s);
    for (i, y) in y[..rows].iter_mut().enumerate() {
        y.0 = [F::default(); LINE];
        for (&column, values) in columns.iter().zip(values) {
            let x = x.lines[column as usize * x.every + x.line].0[i];
            for (sum, &value) in y.0.iter_mut().zip(&values.0) {
                *sum = value * x + *sum;
            }
        }
    }
}
