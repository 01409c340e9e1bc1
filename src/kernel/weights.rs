//! Integer weights packed for the product: panels of 32 columns, four inputs of one column side by side.
//!
//! ```text
//! i8   [panel][k / 4][32][4]     128 bytes a step
//! i4   [panel][k / 4][16][4]      64 bytes a step: the low half of a byte belongs to a column of the
//!                                 first 16, the high half to the column 16 further; both as weight + 8
//! ```
//!
//! Both are zero padded, and come with the sum of the weights of each column.
//!
//! AVX2 multiplies four bytes by four at once only with sums of two products in 16 bits (`vpmaddubsw`), which hold
//! `255 * w1 + 255 * w2` if positive weights of a pair of inputs add up to 128 at most, and negative ones too. Of trained weights a
//! few pairs in a hundred do not: there what is too much of the larger one stands apart, as [`Excess`], and the product adds it.
//! Such weights are called tame; those of four bits always are. Where the excess is not small, or AVX2 not the best set of the
//! processor, weights stay as they are.

use super::Isa;
use super::excess::{Excess, beyond_tame};
use super::int8::Job;
use super::pages::filled;
use super::scalar;
use super::tiles::PANEL;

/// Four inputs of 32 columns, on two cache lines.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step8(pub(super) [[i8; 4]; PANEL]);

/// Four inputs of 32 columns, on one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step4(pub(super) [[u8; 4]; PANEL / 2]);

/// Four inputs of a panel: [`Step8`] or [`Step4`].
pub trait Step: sealed::Sealed + Copy + Send + Sync + 'static {
    /// Least and largest weight.
    #[doc(hidden)]
    const RANGE: (i8, i8);

    /// Weights that are all zero.
    #[doc(hidden)]
    const ZERO: Self;

    /// Whether all weights in the range are tame.
    #[doc(hidden)]
    const TAME: bool = Self::RANGE.0 >= -64 && Self::RANGE.1 <= 64;

    /// Puts weights of one column in their place.
    #[doc(hidden)]
    fn set(&mut self, column: usize, weights: [i8; 4]);

    /// The weights of one column.
    #[doc(hidden)]
    fn get(&self, column: usize) -> [i8; 4];

    /// Multiplies a block of rows.
    #[doc(hidden)]
    fn run(isa: Isa, job: Job<'_, '_, Self>);
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Step8 {}
    impl Sealed for super::Step4 {}
}

macro_rules! run {
    ($method:ident) => {
        fn run(isa: Isa, job: Job<'_, '_, Self>) {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(cpu) => cpu.$method(job),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(cpu) => cpu.$method(job),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon(cpu) => cpu.$method(job),
                #[cfg(target_arch = "aarch64")]
                Isa::DotProd(cpu) => cpu.$method(job),
                Isa::Scalar => job.run(scalar::int8::tile),
            }
        }
    };
}

impl Step for Step8 {
    const RANGE: (i8, i8) = (-128, 127);
    const ZERO: Self = Self([[0; 4]; PANEL]);

    fn set(&mut self, column: usize, weights: [i8; 4]) {
        self.0[column] = weights;
    }

    fn get(&self, column: usize) -> [i8; 4] {
        self.0[column]
    }

    run!(run_i8);
}

impl Step for Step4 {
    const RANGE: (i8, i8) = (-8, 7);
    const ZERO: Self = Self([[0x88; 4]; PANEL / 2]);

    fn set(&mut self, column: usize, weights: [i8; 4]) {
        let (keep, shift) = if column < 16 { (0xf0, 0) } else { (0x0f, 4) };
        for (byte, weight) in self.0[column % 16].iter_mut().zip(weights) {
            *byte = *byte & keep | ((weight + 8) as u8 & 15) << shift;
        }
    }

    fn get(&self, column: usize) -> [i8; 4] {
        let shift = if column < 16 { 0 } else { 4 };
        self.0[column % 16].map(|byte| (byte >> shift & 15) as i8 - 8)
    }

    run!(run_i4);
}

/// Integer weights packed for the product: [`PackedI8`] or [`PackedI4`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedCodes<S> {
    outputs: usize,
    inputs: usize,
    pub(super) steps: Vec<S>,
    pub(super) column_sums: Vec<[i32; PANEL]>,
    /// Whether `steps` are tame; `excess` of each panel is what they lack then, and empty otherwise.
    pub(super) tame: bool,
    pub(super) excess: Vec<Excess>,
}

/// One excess among fewer steps of columns costs more than it saves.
const RARE: usize = 20;

/// Weights -128..=127, a byte each.
pub type PackedI8 = PackedCodes<Step8>;

/// Weights -8..=7, half a byte each.
pub type PackedI4 = PackedCodes<Step4>;

impl<S: Step> PackedCodes<S> {
    /// Packs row-major weights `[outputs, inputs]`.
    ///
    /// # Panics
    /// Unless `weights` has `outputs * inputs` elements, and all lie in the range of the type.
    pub fn new(weights: &[i8], outputs: usize, inputs: usize) -> Self {
        Self::pack(weights, outputs, inputs, wants_tame(Isa::best()))
    }

    /// Packs weights, and tames them if that is wanted and they are not too wild.
    pub(super) fn pack(weights: &[i8], outputs: usize, inputs: usize, tame: bool) -> Self {
        assert_eq!(Some(weights.len()), outputs.checked_mul(inputs), "weights of {outputs} x {inputs}");
        let (least, largest) = S::RANGE;
        assert!(weights.iter().all(|w| (least..=largest).contains(w)), "weights within {least}..={largest}");
        let (panels, depth) = (outputs.div_ceil(PANEL), inputs.div_ceil(4));
        let mut steps = filled(S::ZERO, panels * depth);
        let mut column_sums = vec![[0; PANEL]; panels];
        for (j, row) in weights.chunks_exact(inputs.max(1)).enumerate() {
            let (panel, column) = (j / PANEL, j % PANEL);
            for (step, part) in steps[panel * depth..].iter_mut().zip(row.chunks(4)) {
                let mut four = [0; 4];
                four[..part.len()].copy_from_slice(part);
                step.set(column, four);
            }
            column_sums[panel][column] = row.iter().fold(0i32, |sum, &w| sum.wrapping_add(i32::from(w)));
        }
        let mut packed = Self {
            outputs,
            inputs,
            steps,
            column_sums,
            tame: S::TAME,
            excess: vec![Excess::default(); panels],
        };
        if tame && !S::TAME {
            packed.tame();
        }
        packed
    }

    /// Moves what is not tame to the excess, unless that is much.
    fn tame(&mut self) {
        let depth = self.inputs.div_ceil(4).max(1);
        let (mut found, most) = (0, self.steps.len() * PANEL / RARE);
        let mut excess = Vec::new();
        for steps in self.steps.chunks_exact(depth) {
            let mut columns: [Vec<_>; PANEL] = Default::default();
            for (at, step) in steps.iter().enumerate() {
                for (column, more) in columns.iter_mut().enumerate() {
                    let weights = beyond_tame(step.get(column));
                    if weights != [0; 4] {
                        more.push((at as u32, weights));
                    }
                }
            }
            found += columns.iter().map(Vec::len).sum::<usize>();
            if found > most {
                return;
            }
            excess.push(Excess::new(&columns));
        }
        for (excess, steps) in excess.iter().zip(self.steps.chunks_exact_mut(depth)) {
            for (column, step, weights) in excess.all() {
                let four = steps[step].get(column);
                steps[step].set(column, std::array::from_fn(|k| four[k].wrapping_sub(weights[k])));
            }
        }
        excess.resize(self.panels(), Excess::default());
        (self.tame, self.excess) = (true, excess);
    }

    /// Number of outputs, the columns of the product.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs, the depth of the product.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of panels of 32 outputs: what callers split among threads.
    pub fn panels(&self) -> usize {
        self.column_sums.len()
    }

    /// Bytes that one product reads.
    pub fn size_bytes(&self) -> usize {
        let excess: usize = self.excess.iter().map(Excess::size_bytes).sum();
        size_of_val(self.steps.as_slice()) + size_of_val(self.column_sums.as_slice()) + excess
    }

    /// All weights, row-major `[outputs, inputs]`, as they were.
    pub fn weights(&self) -> Vec<i8> {
        let depth = self.inputs.div_ceil(4);
        let mut all = vec![0; self.outputs * self.inputs];
        for (j, row) in all.chunks_exact_mut(self.inputs.max(1)).enumerate() {
            let steps = &self.steps[j / PANEL * depth..][..depth];
            for (part, step) in row.chunks_mut(4).zip(steps) {
                part.copy_from_slice(&step.get(j % PANEL)[..part.len()]);
            }
        }
        for (panel, excess) in self.excess.iter().enumerate() {
            for (column, step, weights) in excess.all() {
                let row = &mut all[(panel * PANEL + column) * self.inputs..][..self.inputs];
                for (w, more) in row[4 * step..].iter_mut().zip(weights) {
                    *w = w.wrapping_add(more);
                }
            }
        }
        all
    }

    /// The weight from one input to one output.
    ///
    /// # Panics
    /// Unless both exist.
    pub fn weight(&self, output: usize, input: usize) -> i8 {
        assert!(output < self.outputs && input < self.inputs, "weight [{output}, {input}]");
        let (panel, column, step) = (output / PANEL, output % PANEL, input / 4);
        let weight = self.steps[panel * self.inputs.div_ceil(4) + step].get(column)[input % 4];
        let mut excess = self.excess[panel].all().filter(|&(c, at, _)| (c, at) == (column, step));
        let more = excess.next().map_or(0, |(.., weights)| weights[input % 4]);
        weight.wrapping_add(more)
    }
}

/// Whether the kernels of this set are faster with tame weights.
fn wants_tame(isa: Isa) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_weights_read_back() {
        for (outputs, inputs) in [(1, 1), (33, 5), (70, 64), (16, 7)] {
            let weights: Vec<i8> = (0..outputs * inputs).map(|i| (i * 7 % 256) as u8 as i8).collect();
            let small: Vec<i8> = weights.iter().map(|w| w >> 4).collect();
            let packed_small = PackedI4::new(&small, outputs, inputs);
            for tame in [false, true] {
                let packed = PackedI8::pack(&weights, outputs, inputs, tame);
                assert_eq!((packed.weights(), packed_small.weights()), (weights.clone(), small.clone()));
                for (i, (&weight, &small)) in weights.iter().zip(&small).enumerate() {
                    assert_eq!(packed.weight(i / inputs, i % inputs), weight);
                    assert_eq!(packed_small.weight(i / inputs, i % inputs), small);
                }
            }
        }
    }

    #[test]
    fn wild_weights_are_left_as_they_are() {
        let wild = PackedI8::pack(&[127; 64 * 40], 40, 64, true);
        assert!(!wild.tame && wild.excess.iter().all(Excess::is_empty));
        let mut few = vec![3; 64 * 40];
        few[5..7].fill(-128);
        let tame = PackedI8::pack(&few, 40, 64, true);
        assert!(tame.tame);
        assert!(tame.excess[0].is_empty(), "inputs 5 and 6 are of different pairs");
        few[4..6].fill(-128);
        let tame = PackedI8::pack(&few, 40, 64, true);
        assert!(tame.excess[0].all().eq([(0, 1, [-128, 0, 0, 0])]));
        assert_eq!(tame.weights(), few);
    }

    #[test]
    #[should_panic(expected = "weights within -8..=7")]
    fn refuses_weights_that_four_bits_cannot_hold() {
        PackedI4::new(&[8], 1, 1);
    }
}
