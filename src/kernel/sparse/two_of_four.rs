//! Weights of which at most two of every four neighbours in a row are not zero (2:4): values and two bits each.
//!
//! ```text
//! slice s: the outputs 16 s ..      group g: the inputs 4 g .. 4 g + 4       slot t of 2: which of the four, and its weight
//! chain (g % 2, t):  sum over g of value[s][g][t][l] * x[4 g + index[s][g][t][l]]
//! y = (chain (0, 0) + chain (0, 1)) + (chain (1, 0) + chain (1, 1))
//! ```
//!
//! The same chains for every batch, so a result does not depend on the batch it was computed in. One shuffle within
//! 128 bits picks the inputs of 16 outputs. A slot that is not needed holds a zero and multiplies like any other, so an
//! infinite input can make NaN of an output that does not use it, as in a dense product.
//!
//! In `f32` 4.25 bytes per kept weight, 53 % of a dense layer. That is what one row gains, being bound by memory: 1.9 ms
//! for 4096 x 4096, one thread of an AMD EPYC (Zen 4). Many rows gain nothing over the dense product: 11 ms for 32.

use super::lanes::{LINE, Line};
use super::real::{Epilogue, SparseReal, share};
use crate::kernel::{Isa, MatrixMut, Pool};

/// Rows of a batch computed together.
pub(in crate::kernel) const TILE: usize = 4;

/// The slots of the groups of one slice: values, and indices of two bits each, lane by lane from the lowest; as many of each.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a, F> {
    pub(in crate::kernel) values: &'a [[Line<F>; 2]],
    pub(in crate::kernel) indices: &'a [[u32; 2]],
}

/// 2:4 weights `[outputs, inputs]`, ready to multiply on one set of instructions.
///
/// ```
/// use trimnet::kernel::{Epilogue, Isa, MatrixMut, Pool, TwoOfFour};
///
/// let weights = TwoOfFour::new(Isa::best(), &[0.0, 2.0, 0.0, 3.0], 1, 4).expect("two of four");
/// let (x, mut y) = ([1.0f32, 10.0, 100.0, 1000.0], [0.0]);
/// weights.multiply(&Pool::single(), &x, Epilogue::default(), MatrixMut::new(&mut y, 1, 1));
/// assert_eq!(y, [3020.0]);
/// assert!(TwoOfFour::new(Isa::best(), &[1.0f32, 2.0, 0.0, 3.0], 1, 4).is_none());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TwoOfFour<F> {
    isa: Isa,
    outputs: usize,
    inputs: usize,
    /// For each slice and group, slice by slice.
    values: Vec<[Line<F>; 2]>,
    /// As many.
    indices: Vec<[u32; 2]>,
}

impl<F: SparseReal> TwoOfFour<F> {
    /// From row-major weights `[outputs, inputs]`, or `None` if four neighbours hold more than two that are not zero. The last
    /// group of a row may be shorter.
    ///
    /// # Panics
    /// Unless `weights` has `outputs * inputs` elements.
    pub fn new(isa: Isa, weights: &[F], outputs: usize, inputs: usize) -> Option<Self> {
        assert_eq!(Some(weights.len()), outputs.checked_mul(inputs), "weights of {outputs} x {inputs}");
        let groups = inputs.div_ceil(4);
        let mut values = vec![[Line([F::default(); LINE]); 2]; outputs.div_ceil(LINE) * groups];
        let mut indices = vec![[0; 2]; values.len()];
        for (i, row) in weights.chunks_exact(inputs.max(1)).enumerate() {
            for (g, four) in row.chunks(4).enumerate() {
                let step = i / LINE * groups + g;
                for (slot, (index, value)) in kept(four)?.into_iter().enumerate() {
                    values[step][slot].0[i % LINE] = value;
                    indices[step][slot] |= index << (2 * (i % LINE));
                }
            }
        }
        Some(Self { isa, outputs, inputs, values, indices })
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes in memory.
    pub fn size_bytes(&self) -> usize {
        size_of_val(self.values.as_slice()) + size_of_val(self.indices.as_slice())
    }

    /// `y = activation(x * w^T + bias)` for row-major `x` `[rows of y, inputs]`.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn multiply(&self, pool: &Pool, x: &[F], tail: Epilogue<'_, F>, y: MatrixMut<'_, F>) {
        tail.check(self.outputs);
        let (batch, groups) = (y.rows(), self.inputs.div_ceil(4));
        assert_eq!(Some(x.len()), batch.checked_mul(self.inputs), "inputs of {batch} rows");
        assert_eq!(y.columns(), self.outputs, "columns of the result");
        let nanoseconds = self.values.len() as f64 * 1.2 * (2.0 + batch as f64);
        share(pool, nanoseconds, LINE, y, |first, mut y| {
            let mut sums = [Line([F::default(); LINE]); TILE];
            for at in (0..y.columns()).step_by(LINE) {
                let (slice, used) = ((first + at) / LINE, LINE.min(y.columns() - at));
                let steps = slice * groups..(slice + 1) * groups;
                let pairs = Pairs { values: &self.values[steps.clone()], indices: &self.indices[steps] };
                for b in (0..batch).step_by(TILE) {
                    let rows = TILE.min(batch - b);
                    let x: [Row<'_, F>; TILE] = std::array::from_fn(|t| {
                        // Rows that do not exist repeat the last.
                        Row::new(&x[(b + t.min(rows - 1)) * self.inputs..][..self.inputs])
                    });
                    F::pairs(self.isa, pairs, &x, rows, &mut sums);
                    for (t, sums) in sums[..rows].iter().enumerate() {
                        tail.write(first + at, &sums.0, &mut y.row_mut(b + t)[at..at + used]);
                    }
                }
            }
        });
    }
}

/// Index and value of the first two that are not zero, or of what fills their slots.
pub(super) fn kept<T: Copy + Default + PartialEq>(four: &[T]) -> Option<[(u32, T); 2]> {
    let mut slots = [(0, T::default()); 2];
    let mut used = 0;
    for (index, &value) in (0..).zip(four) {
        if value != T::default() {
            *slots.get_mut(used)? = (index, value);
            used += 1;
        }
    }
    Some(slots)
}

/// A row of inputs in fours, the last padded with zeros.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a, F> {
    pub(in crate::kernel) whole: &'a [[F; 4]],
    pub(in crate::kernel) last: [F; 4],
}

impl<'a, F: SparseReal> Row<'a, F> {
    fn new(x: &'a [F]) -> Self {
        let (whole, rest) = x.as_chunks();
        let mut last = [F::default(); 4];
        last[..rest.len()].copy_from_slice(rest);
        Self { whole, last }
    }
}

/// The definition: `y[t]` are the sums of one slice for row `t`, for the first `rows` at least.
pub(super) fn pairs<F: SparseReal>(
    pairs: Pairs<'_, F>,
    x: &[Row<'_, F>; TILE],
    rows: usize,
    y: &mut [Line<F>; TILE],
) {
    for (x, y) in x[..rows].iter().zip(y) {
        let mut chains = [[[F::default(); LINE]; 2]; 2];
        for (g, (values, indices)) in pairs.values.iter().zip(pairs.indices).enumerate() {
            let x = x.whole.get(g).unwrap_or(&x.last);
            for ((chain, values), &indices) in chains[g % 2].iter_mut().zip(values).zip(indices) {
                for (l, (sum, &value)) in chain.iter_mut().zip(&values.0).enumerate() {
                    *sum = value * x[(indices >> (2 * l) & 3) as usize] + *sum;
                }
            }
        }
        let [[a, b], [c, d]] = chains;
        y.0 = std::array::from_fn(|l| (a[l] + b[l]) + (c[l] + d[l]));
    }
}
