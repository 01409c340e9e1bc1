//! Weights pruned in blocks of 16 outputs that use an input together or not at all.
//!
//! ```text
//! y[b, 16 s + l] = sum over the inputs j of strip s, in rising order, of w[16 s + l, j] * x[b, j]
//! ```
//!
//! One load brings 16 weights and one index serves them all, so this runs near the peak of the arithmetic.
//! One row: four chains take the inputs in turn, added as `(0 + 1) + (2 + 3)`. Many rows: one chain for each.

use super::csr::Column;
use super::lanes::{GROUP, LINE, Line, gather};
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
pub(in crate::kernel) struct Strips<F> {
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
        assert!(inputs <= u32::LIMIT, "{inputs} inputs, at most {} fit", u32::LIMIT);
        let mut strips = Strips { inputs, starts: vec![0], columns: Vec::new(), values: Vec::new() };
        for first in (0..outputs).step_by(LINE) {
            let used = LINE.min(outputs - first);
            for j in 0..inputs {
                let mut line = Line([F::default(); LINE]);
                for (l, value) in line.0[..used].iter_mut().enumerate() {
                    *value = weights[(first + l) * inputs + j];
                }
                if line.0.iter().any(|&value| value != F::default()) {
                    strips.columns.push(Column::new(j));
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
        while y.rows() > 0 {
            let count = if y.rows() == 1 { 1 } else { y.rows().min(2 * LINE) };
            let (block, rest) = y.split_rows(count);
            let (now, later) = x.split_at(count * inputs);
            let nanoseconds =
                self.blocks() as f64 * if count == 1 { 0.7 } else { 5.0 * count.div_ceil(LINE) as f64 };
            if count == 1 {
                share(pool, nanoseconds, GROUP, block, |at, mut y| {
                    one_on(self.isa, &self.strips, at / LINE, now, y.row_mut(0));
                    tail.apply(at, y.row_mut(0));
                });
            } else {
                let lanes = scratch.lines(2 * inputs);
                gather_on(self.isa, now, inputs, lanes);
                share(pool, nanoseconds, GROUP, block, |at, mut y| {
                    many_on(self.isa, &self.strips, at / LINE, lanes, &tail.from(at), &mut y);
                });
            }
            (x, y) = (later, rest);
        }
    }
}

fn gather_on<F: SparseReal>(isa: Isa, x: &[F], inputs: usize, lanes: &mut [Line<F>]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(cpu) => cpu.sparse_gather::<F, 2>(x, inputs, lanes),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(cpu) => cpu.sparse_gather::<F, 2>(x, inputs, lanes),
        _ => gather::<F, 2>(x, inputs, lanes),
    }
}

fn one_on<F: SparseReal>(isa: Isa, strips: &Strips<F>, first: usize, x: &[F], y: &mut [F]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(cpu) => cpu.blocks_one(strips, first, x, y),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(cpu) => cpu.blocks_one(strips, first, x, y),
        _ => one(strips, first, x, y, |a, b, c| a * b + c),
    }
}

fn many_on<F: SparseReal>(
    isa: Isa,
    strips: &Strips<F>,
    first: usize,
    lanes: &[Line<F>],
    tail: &Epilogue<'_, F>,
    out: &mut MatrixMut<'_, F>,
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(cpu) => cpu.blocks_many(strips, first, lanes, tail, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(cpu) => cpu.blocks_many(strips, first, lanes, tail, out),
        _ => many::<F, 4>(strips, first, lanes, tail, out, |a, b, c| a * b + c),
    }
}

/// The definition for one row, compiled for every set of instructions: the strips from `first` on, as `y` is long.
#[inline(always)]
pub(in crate::kernel) fn one<F: SparseReal>(
    strips: &Strips<F>,
    first: usize,
    x: &[F],
    y: &mut [F],
    fused: impl Fn(F, F, F) -> F + Copy,
) {
    assert_eq!(x.len(), strips.inputs(), "length of the input");
    let step = |sum: &mut [F; LINE], column: u32, values: &Line<F>| {
        // SAFETY: columns of `Strips` are below their inputs, of which there are as many as `x` is long.
        let x = unsafe { *x.get_unchecked(column as usize) };
        for (sum, &value) in sum.iter_mut().zip(&values.0) {
            *sum = fused(value, x, *sum);
        }
    };
    for (s, y) in y.chunks_mut(LINE).enumerate() {
        let (columns, values) = strips.strip(first + s);
        let mut chains = [[F::default(); LINE]; 4];
        let (column_chunks, last_columns) = columns.as_chunks::<4>();
        let (value_chunks, last_values) = values.as_chunks::<4>();
        for (columns, values) in column_chunks.iter().zip(value_chunks) {
            step(&mut chains[0], columns[0], &values[0]);
            step(&mut chains[1], columns[1], &values[1]);
            step(&mut chains[2], columns[2], &values[2]);
            step(&mut chains[3], columns[3], &values[3]);
        }
        for ((chain, &column), values) in chains.iter_mut().zip(last_columns).zip(last_values) {
            step(chain, column, values);
        }
        let [a, b, c, d] = &chains;
        for (l, y) in y.iter_mut().enumerate() {
            *y = (a[l] + b[l]) + (c[l] + d[l]);
        }
    }
}

/// The definition for many rows, `T` of them at a time in registers, compiled for every set of instructions.
#[inline(always)]
pub(in crate::kernel) fn many<F: SparseReal, const T: usize>(
    strips: &Strips<F>,
    first: usize,
    lanes: &[Line<F>],
    tail: &Epilogue<'_, F>,
    out: &mut MatrixMut<'_, F>,
    fused: impl Fn(F, F, F) -> F + Copy,
) {
    let (lanes, _) = lanes.as_chunks::<2>();
    assert_eq!(lanes.len(), strips.inputs(), "lanes of all inputs");
    assert_eq!(LINE % T, 0, "rows of a tile");
    let (rows, columns) = (out.rows(), out.columns());
    for at in (0..columns).step_by(LINE) {
        let used = LINE.min(columns - at);
        let (strip_columns, strip_values) = strips.strip(first + at / LINE);
        for b in (0..rows).step_by(T) {
            let mut sums = [[F::default(); LINE]; T];
            for (&column, values) in strip_columns.iter().zip(strip_values) {
                // SAFETY: columns of `Strips` are below their inputs, of which there are as many as `lanes`.
                let x = unsafe { lanes.get_unchecked(column as usize) };
                // `T` divides 16, so a tile lies within one of the two lines.
                let x = &x[b / LINE % 2].0[b % LINE..][..T];
                for t in 0..T {
                    for l in 0..LINE {
                        sums[t][l] = fused(values.0[l], x[t], sums[t][l]);
                    }
                }
            }
            for (i, sums) in (b..rows).zip(&sums) {
                let target = &mut out.row_mut(i)[at..at + used];
                match <&mut [F; LINE]>::try_from(&mut *target) {
                    Ok(whole) => *whole = *sums,
                    Err(_) => target.copy_from_slice(&sums[..used]),
                }
                tail.apply(at, target);
            }
        }
    }
}
