//! 2:4 weights of codes: `u8` (or `i8`) activations times `i8` weights, exact in `i32`.
//!
//! ```text
//! slice s: the outputs 16 s ..      step k: the inputs 8 k .. 8 k + 8, two groups of four
//! place c of 4 of a lane: a weight of group c / 2, and which of its four inputs it meets, two bits
//! ```
//!
//! The sums are those of the dense product, to the bit. A shuffle within 128 bits picks the inputs of a step: 64 with AVX-512, where one
//! dot product (`vpdpbusd`) multiplies them and adds in fours, 32 with AVX2, which multiplies every other one (`vpmaddubsw`) so that
//! all fits 16 bits. Elsewhere this is the plain definition.
//!
//! One row of 4096 x 4096 takes 0.09 ms, one thread of an AMD EPYC (Zen 5), where the dense product takes 0.14; 32 rows 1.06 ms, as long as
//! the dense product. With AVX2 there 0.22 and 4.8 ms.

use super::codes::{CODE_LANES, Signs, Start, each_panel, share_tail, weight_sums};
use super::two_of_four::{TILE, kept};
use crate::kernel::int8::Input;
use crate::kernel::pages::filled;
use crate::kernel::tail::Tail;
use crate::kernel::tiles::PANEL;
use crate::kernel::{Isa, Pool};

/// Inputs of a step.
pub(in crate::kernel) const STEP: usize = 8;

/// Outputs of a slice.
pub(in crate::kernel) const SLICE: usize = 16;

/// Weights of a step, on a cache line: four places for each output.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct PairValues(pub(in crate::kernel) [[i8; 4]; SLICE]);

/// Indices of a step: for place `c` of output `4 q + j` the bits `2 q` and `2 q + 1` of byte `4 j + c`. So a shift by as many bits in each
/// 128 of a vector puts each where its place needs it.
pub(in crate::kernel) type PairIndices = [u8; 16];

/// Some steps, as many of each.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct PairCodes<'a> {
    pub(in crate::kernel) values: &'a [PairValues],
    pub(in crate::kernel) indices: &'a [PairIndices],
}

/// 2:4 `i8` weights `[outputs, inputs]`, ready to multiply on one set of instructions.
///
/// ```
/// use trimnet::kernel::{Codes, Input, Isa, MatrixMut, Pool, SparseCodesScratch, Tail, TwoOfFourCodes};
///
/// let weights = TwoOfFourCodes::new(Isa::best(), &[0, 2, 0, -3], 1, 4).expect("two of four");
/// let mut sums = [0];
/// let input = Input { codes: Codes::U8(&[1, 10, 100, 20]), zero_point: 0, bias: None };
/// let tail = Tail::Sums { out: MatrixMut::new(&mut sums, 1, 1) };
/// weights.multiply(&Pool::single(), input, tail, &mut SparseCodesScratch::default());
/// assert_eq!(sums, [-40]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TwoOfFourCodes {
    isa: Isa,
    inputs: usize,
    /// Invariant: one for each slice and eight inputs, slice by slice.
    values: Vec<PairValues>,
    /// As many.
    indices: Vec<PairIndices>,
    sums: Vec<i32>,
}

impl TwoOfFourCodes {
    /// From row-major weights `[outputs, inputs]`, or `None` if four neighbours hold more than two that are not zero. The last
    /// group of a row may be shorter.
    ///
    /// # Panics
    /// Unless `weights` has `outputs * inputs` elements.
    pub fn new(isa: Isa, weights: &[i8], outputs: usize, inputs: usize) -> Option<Self> {
        assert_eq!(Some(weights.len()), outputs.checked_mul(inputs), "weights of {outputs} x {inputs}");
        let depth = inputs.div_ceil(STEP);
        let mut values = filled(PairValues([[0; 4]; SLICE]), outputs.div_ceil(SLICE) * depth);
        let mut indices = filled([0; 16], values.len());
        for (i, row) in weights.chunks_exact(inputs.max(1)).enumerate() {
            for (g, four) in row.chunks(4).enumerate() {
                let (step, output) = (i / SLICE * depth + g / 2, i % SLICE);
                for (slot, (index, value)) in kept(four)?.into_iter().enumerate() {
                    let place = g % 2 * 2 + slot;
                    values[step].0[output][place] = value;
                    indices[step][4 * (output % 4) + place] |= (index as u8) << (2 * (output / 4));
                }
            }
        }
        Some(Self { isa, inputs, values, indices, sums: weight_sums(weights, outputs, inputs) })
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.sums.len()
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes in memory.
    pub fn size_bytes(&self) -> usize {
        size_of_val(self.values.as_slice())
            + size_of_val(self.indices.as_slice())
            + size_of_val(self.sums.as_slice())
    }

    /// Multiplies `input` by the weights and sends the sums through `tail`, whose matrix has a column per output.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn multiply(
        &self,
        pool: &Pool,
        input: Input<'_>,
        tail: Tail<'_>,
        scratch: &mut super::codes::SparseCodesScratch,
    ) {
        let (outputs, inputs, batch) = (self.outputs(), self.inputs, tail.rows());
        tail.check(outputs, outputs);
        let signs = Signs::new(&input, batch, inputs);
        let start = Start::new(&self.sums, signs.zero_point, input.bias);
        let depth = inputs.div_ceil(STEP);
        let x = signs.padded(inputs, depth * STEP, &mut scratch.bytes);
        let nanoseconds = self.values.len() as f64 * 2.0 * (1.0 + batch as f64);
        share_tail(pool, nanoseconds, 1, tail, |panels, mut tail| {
            // Some rows at a time: their sums have to stay in the cache, and so have the weights of a panel.
            for first in (0..batch).step_by(CODE_LANES) {
                let rows = first..batch.min(first + CODE_LANES);
                each_panel(self.isa, outputs, panels.clone(), &mut tail, &rows, &start, |column, sums| {
                    let values = self.values.chunks_exact(depth.max(1));
                    let slices = values.zip(self.indices.chunks_exact(depth.max(1)));
                    sums[..rows.len()].fill([0; PANEL]);
                    for (half, slice) in slices.skip(column / SLICE).take(PANEL / SLICE).enumerate() {
                        let steps = PairCodes { values: slice.0, indices: slice.1 };
                        for (b, sums) in rows.clone().step_by(TILE).zip(sums[..rows.len()].chunks_mut(TILE)) {
                            // Rows that do not exist repeat the last.
                            let row =
                                |t: usize| &x[(b + t.min(sums.len() - 1)) * depth * STEP..][..depth * STEP];
                            let x: [&[[u8; STEP]]; TILE] = std::array::from_fn(|t| row(t).as_chunks().0);
                            pairs_on(self.isa, steps, &x, half, sums);
                        }
                    }
                });
            }
        });
    }
}

/// Sums of one slice, the first or second `half` of a panel, for as many rows of `x` as there are of `sums`.
fn pairs_on(
    isa: Isa,
    steps: PairCodes<'_>,
    x: &[&[[u8; STEP]]; TILE],
    half: usize,
    sums: &mut [[i32; PANEL]],
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(cpu) => cpu.pair_codes(steps, x, half, sums),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(cpu) => cpu.pair_codes(steps, x, half, sums),
        _ => pairs(steps, x, half, sums),
    }
}

/// The definition.
fn pairs(steps: PairCodes<'_>, x: &[&[[u8; STEP]]; TILE], half: usize, sums: &mut [[i32; PANEL]]) {
    for (x, sums) in x.iter().zip(sums) {
        let sums = &mut sums.as_chunks_mut::<SLICE>().0[half];
        *sums = [0; SLICE];
        for ((values, indices), x) in steps.values.iter().zip(steps.indices).zip(*x) {
            for (output, (sum, values)) in sums.iter_mut().zip(&values.0).enumerate() {
                for (place, &value) in values.iter().enumerate() {
                    let bits = indices[4 * (output % 4) + place] >> (2 * (output / 4));
                    let index = place / 2 * 4 + usize::from(bits & 3);
                    *sum = sum.wrapping_add(i32::from(value) * i32::from(x[index]));
                }
            }
        }
    }
}
