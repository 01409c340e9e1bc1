//! Matrix product of real numbers, `f32` or `f64`.
//!
//! ```text
//! y[i, j] = activation(bias[j] + sum over k of x[i, k] * w[j, k])
//! ```
//!
//! Every sum is one chain over `k = 0, 1, ..`, in that order, with fused multiply-adds where the
//! processor has them, and the bias is added last. So a result depends neither on the batch it was
//! computed in, nor on how rows and columns were divided among threads, and all sets with fused
//! multiply-adds give the same bits. Without them (`Scalar`) each step rounds twice. Both lie within
//! `k * EPSILON * sum over k of |x| |w|` of the exact sum.
//!
//! Weights are packed in panels of 32 columns, `[panel][k][32]`, zero padded. A tile of the result
//! stays in registers over all of `k`.
//!
//! [`multiply`] and [`affine`] leave out the `k` at which the rows of a tile of `x` are all zero (images have many), [`product`] those
//! at which a panel of `b` is. A term `0 * w` changes no bit of a sum, unless `w` is infinite or NaN: there the sum
//! that would be NaN is not.

use std::ops::Range;

use super::Isa;
use super::live::{Live, Skip};
use super::matrix::{Matrix, MatrixMut};
use super::pack::pack;
use super::panels::{PackedReal, Step, pack_panel};
use super::scalar;
use super::tail::{Fused, padded};
use super::tiles::{MAX_ROWS, PANEL, Tiles};

/// A block of packed input stays below this many bytes, so that it lives in the second-level cache.
const BLOCK_BYTES: usize = 512 * 1024;

/// A panel of so many bytes fits into the second-level cache beside the one in use and the rows.
const NEAR_BYTES: usize = 192 * 1024;

/// Sums of a tile on their way from registers to memory.
pub(super) type Sums<F> = [[F; PANEL]; MAX_ROWS];

/// The numbers that the kernels multiply: `f32` and `f64`.
pub trait Real:
    sealed::Sealed
    + Default
    + PartialOrd
    + Send
    + Sync
    + std::ops::Add<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + 'static
{
    #[doc(hidden)]
    const INFINITY: Self;

    #[doc(hidden)]
    const NEG_INFINITY: Self;

    /// The nearest value of this type.
    #[doc(hidden)]
    fn of_i32(x: i32) -> Self;

    /// `self * factor + term`, rounded once.
    #[doc(hidden)]
    fn fused(self, factor: Self, term: Self) -> Self;

    /// The nearest integer, ties to even, of a number of magnitude below 2^22.
    #[doc(hidden)]
    fn round_small(self) -> i32;

    /// Appends those of `x`, or of their magnitudes, in the closed interval `between` to `inside`, in order; returns how
    /// many are below it, and how many of the last of `x` are left to the caller.
    #[doc(hidden)]
    fn collect_between(
        isa: Isa,
        x: &[Self],
        magnitude: bool,
        between: (Self, Self),
        inside: &mut Vec<Self>,
    ) -> (usize, usize);

    /// Writes groups of four without the `surplus` lowest magnitudes of each, of equal ones the first; NaN ranks as
    /// infinity. Returns how many numbers that were from the beginning of `x` (the rest is left to the caller), and how
    /// many of them are NaN.
    #[doc(hidden)]
    fn keep_of_fours(isa: Isa, x: &[Self], out: &mut [Self], surplus: u32) -> (usize, usize);

    /// Rows of the register tile.
    #[doc(hidden)]
    fn tile_rows(isa: Isa) -> usize;

    /// Multiplies a block of rows.
    #[doc(hidden)]
    fn run(isa: Isa, job: Job<'_, '_, Self>);
}

mod sealed {
    use crate::kernel::pack::Plain;

    pub trait Sealed: Plain {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

macro_rules! real {
    ($t:ty, $round:literal, $run:ident, $between:ident, $fours:ident, avx2: $avx2_rows:literal, avx512: $avx512_rows:literal) => {
        impl Real for $t {
            const INFINITY: Self = Self::INFINITY;
            const NEG_INFINITY: Self = Self::NEG_INFINITY;

            #[inline(always)]
            fn of_i32(x: i32) -> Self {
                x as Self
            }

            #[inline(always)]
            fn fused(self, factor: Self, term: Self) -> Self {
                self.mul_add(factor, term)
            }

            #[inline(always)]
            fn round_small(self) -> i32 {
                // In the binade of this number neighbours are 1 apart, so the addition rounds, and the low bits
                // of the sum are the integer.
                let round: Self = $round;
                (self + round).to_bits().wrapping_sub(round.to_bits()) as i32
            }

            fn collect_between(
                isa: Isa,
                x: &[Self],
                magnitude: bool,
                between: (Self, Self),
                inside: &mut Vec<Self>,
            ) -> (usize, usize) {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(cpu) => cpu.$between(x, magnitude, between, inside),
                    _ => {
                        let _ = (magnitude, between, inside);
                        (0, x.len())
                    }
                }
            }

            fn keep_of_fours(isa: Isa, x: &[Self], out: &mut [Self], surplus: u32) -> (usize, usize) {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(cpu) => cpu.$fours(x, out, surplus),
                    _ => {
                        let _ = (x, out, surplus);
                        (0, 0)
                    }
                }
            }

            fn tile_rows(isa: Isa) -> usize {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(_) => $avx2_rows,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(_) => $avx512_rows,
                    _ => 4,
                }
            }

            fn run(isa: Isa, job: Job<'_, '_, Self>) {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(cpu) => cpu.$run(job),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(cpu) => cpu.$run(job),
                    #[cfg(target_arch = "aarch64")]
                    Isa::Neon(cpu) => cpu.run_real(job),
                    #[cfg(target_arch = "aarch64")]
                    Isa::DotProd(cpu) => cpu.run_real(job),
                    Isa::Scalar => job.run(scalar::real::tile),
                }
            }
        }
    };
}

real!(f32, 12_582_912.0, run_f32, between_f32, fours_f32, avx2: 6, avx512: 14);
real!(f64, 6_755_399_441_055_744.0, run_f64, between_f64, fours_f64, avx2: 6, avx512: 6);

/// Memory for packed matrices: grows to what is needed, and is kept from call to call.
#[derive(Clone, Debug)]
pub struct ScratchReal<F> {
    rows: Vec<F>,
    panel: Vec<Step<F>>,
    live: Live,
    sums: Sums<F>,
}

impl<F: Real> Default for ScratchReal<F> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            panel: Vec::new(),
            live: Live::default(),
            sums: [[F::default(); PANEL]; MAX_ROWS],
        }
    }
}

/// `y = activation(x * w^T + bias)` for the `panels` of packed `weights`.
///
/// `y` has the columns of `panels` alone: `32 * panels.start ..` up to `32 * panels.end` or the last;
/// `bias` covers all outputs.
///
/// # Panics
/// If lengths disagree.
///
/// ```
/// use trimnet::kernel::{Fused, Isa, Matrix, MatrixMut, PackedReal, ScratchReal, multiply};
///
/// let weights = PackedReal::new(Matrix::new(&[1.0, 2.0, 3.0, -4.0], 2, 2));
/// let mut y = [0.0f32; 2];
/// let (x, y_matrix) = (Matrix::new(&[1.0, 1.0], 1, 2), MatrixMut::new(&mut y, 1, 2));
/// multiply(Isa::best(), x, &weights, 0..1, Some(&[0.5, 0.5]), Fused::Relu, y_matrix, &mut ScratchReal::default());
/// assert_eq!(y, [3.5, 0.0]);
/// ```
#[expect(clippy::too_many_arguments)]
pub fn multiply<F: Real>(
    isa: Isa,
    x: Matrix<'_, F>,
    weights: &PackedReal<F>,
    panels: Range<usize>,
    bias: Option<&[F]>,
    activation: Fused,
    y: MatrixMut<'_, F>,
    scratch: &mut ScratchReal<F>,
) {
    assert!(panels.start <= panels.end && panels.end <= weights.panels(), "panels {panels:?}");
    let outputs = weights.outputs;
    let columns = (panels.end * PANEL).min(outputs) - (panels.start * PANEL).min(outputs);
    assert_eq!(bias.map_or(outputs, <[_]>::len), outputs, "bias of {outputs} outputs");
    assert_eq!((x.rows(), x.columns()), (y.rows(), weights.inputs), "shape of the input");
    assert_eq!(y.columns(), columns, "columns of the result");
    let add = bias.map_or(Add::Nothing, |bias| Add::Bias(&bias[(panels.start * PANEL).min(outputs)..]));
    let steps = Steps::Packed(&weights.steps[panels.start * weights.inputs..panels.end * weights.inputs]);
    let ScratchReal { rows, live, sums, .. } = scratch;
    blocks(isa, x, steps, add, activation, y, Skip::Rows, rows, live, sums);
}

/// `y = activation(x * w^T + bias)` for weights `[outputs, inputs]` that are not packed, of any strides.
///
/// As [`multiply`], for weights that change from call to call. To divide the work, split `y` by rows or columns and
/// pass the matching part of `x`, or of `weights` and `bias`.
///
/// # Panics
/// If shapes disagree.
pub fn affine<F: Real>(
    isa: Isa,
    x: Matrix<'_, F>,
    weights: Matrix<'_, F>,
    bias: Option<&[F]>,
    activation: Fused,
    y: MatrixMut<'_, F>,
    scratch: &mut ScratchReal<F>,
) {
    let (outputs, depth) = (weights.rows(), weights.columns());
    assert_eq!(bias.map_or(outputs, <[_]>::len), outputs, "bias of {outputs} outputs");
    assert_eq!((x.rows(), x.columns(), outputs), (y.rows(), depth, y.columns()), "shapes of a layer");
    let ScratchReal { rows, panel, live, sums } = scratch;
    panel.resize(panel.len().max(depth), Step([F::default(); PANEL]));
    let steps = Steps::Loose(weights, &mut panel[..depth]);
    let add = bias.map_or(Add::Nothing, Add::Bias);
    blocks(isa, x, steps, add, activation, y, Skip::Rows, rows, live, sums);
}

/// Whether a product replaces what the result holds, or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// `c = a * b`.
    Replace,
    /// `c = c + a * b`.
    Add,
}

/// `c = a * b` or `c = c + a * b`, with `a` `[m, k]` and `b` `[k, n]` of any strides: transposes are free.
///
/// To divide the work, split `c` by rows or columns and pass the matching part of `a` or `b`.
///
/// # Panics
/// If shapes disagree.
///
/// ```
/// use trimnet::kernel::{Update, Isa, Matrix, MatrixMut, ScratchReal, product};
///
/// let a = [1.0, 2.0, 3.0, 4.0];
/// let a = Matrix::new(&a, 2, 2);
/// let mut c = [0.0; 4];
/// product(Isa::best(), a, a.transposed(), Update::Replace, MatrixMut::new(&mut c, 2, 2), &mut ScratchReal::default());
/// assert_eq!(c, [5.0, 11.0, 11.0, 25.0]);
/// ```
pub fn product<F: Real>(
    isa: Isa,
    a: Matrix<'_, F>,
    b: Matrix<'_, F>,
    update: Update,
    c: MatrixMut<'_, F>,
    scratch: &mut ScratchReal<F>,
) {
    assert_eq!(
        (a.rows(), a.columns(), b.columns()),
        (c.rows(), b.rows(), c.columns()),
        "shapes of a product"
    );
    let depth = a.columns();
    let add = if update == Update::Add { Add::Result } else { Add::Nothing };
    let ScratchReal { rows, panel, live, sums } = scratch;
    panel.resize(panel.len().max(depth), Step([F::default(); PANEL]));
    let steps = Steps::Loose(b.transposed(), &mut panel[..depth]);
    blocks(isa, a, steps, add, Fused::Identity, c, Skip::Panels, rows, live, sums);
}

/// Packs one block of rows after the other, and multiplies each.
#[expect(clippy::too_many_arguments)]
fn blocks<F: Real>(
    isa: Isa,
    x: Matrix<'_, F>,
    mut steps: Steps<'_, F>,
    add: Add<'_, F>,
    activation: Fused,
    mut y: MatrixMut<'_, F>,
    skip: Skip,
    memory: &mut Vec<F>,
    live: &mut Live,
    sums: &mut Sums<F>,
) {
    let (rows, depth, tile_rows) = (x.rows(), x.columns(), F::tile_rows(isa));
    // At least so many rows that the panels pay which `product` packs for each block, or a cache further away sends.
    let least = if matches!(steps, Steps::Loose(..)) { 128 } else { 512 / size_of::<F>() };
    let block = (BLOCK_BYTES / (size_of::<F>() * depth.max(1))).max(least).next_multiple_of(tile_rows);
    for first in (0..rows).step_by(block) {
        let count = block.min(rows - first);
        memory.resize(memory.len().max(count * depth), F::default());
        live.clear();
        for tile in Tiles::new(count, tile_rows) {
            let rows = x.row_range(first + tile.start, tile.len());
            let packed = &mut memory[tile.start * depth..tile.end * depth];
            pack(isa, rows, packed, tile.len());
            if skip == Skip::Rows {
                live.add(isa, packed, tile.len());
            }
        }
        let (packed, steps, live, y) = (&memory[..count * depth], &mut steps, &mut *live, y.reborrow());
        let job =
            Job { isa, packed, depth, first, count, tile_rows, steps, add, activation, y, skip, live, sums };
        F::run(isa, job);
    }
}

/// A block of packed rows to be multiplied by some panels.
pub struct Job<'j, 's, F> {
    isa: Isa,
    packed: &'j [F],
    depth: usize,
    /// First row of the block.
    first: usize,
    /// Its rows.
    count: usize,
    tile_rows: usize,
    steps: &'j mut Steps<'s, F>,
    add: Add<'j, F>,
    activation: Fused,
    y: MatrixMut<'j, F>,
    skip: Skip,
    live: &'j mut Live,
    sums: &'j mut Sums<F>,
}

/// The panels of a product.
enum Steps<'s, F> {
    /// One after the other.
    Packed(&'s [Step<F>]),
    /// Weights yet to be packed, and the memory for one panel.
    Loose(Matrix<'s, F>, &'s mut [Step<F>]),
}

/// A panel as a tile reads it.
#[derive(Clone, Copy)]
pub(super) struct Panel<'p, F> {
    /// `[k][32]`.
    pub(super) steps: &'p [Step<F>],
    /// The `k` that matter, if not all do.
    pub(super) live: Option<&'p [u32]>,
    /// What will be read next, as long as `steps`.
    pub(super) next: &'p [Step<F>],
}

/// What is added to a sum.
#[derive(Clone, Copy)]
enum Add<'a, F> {
    Nothing,
    /// A number of each column.
    Bias(&'a [F]),
    /// What the result holds.
    Result,
}

impl<F: Real> Job<'_, '_, F> {
    /// Does it, with `tile(rows, columns, a, steps, live, sums)` for one tile of sums, where `live` lists the `k` that
    /// matter if not all do. Inlined into one function for each instruction set.
    #[inline(always)]
    pub(super) fn run(mut self, tile: impl Fn(usize, usize, &[F], Panel<'_, F>, &mut Sums<F>)) {
        let columns = self.y.columns();
        for panel in 0..columns.div_ceil(PANEL) {
            let mut next: &[Step<F>] = &[];
            let steps: &[Step<F>] = match self.steps {
                Steps::Packed(all) => {
                    if self.depth * size_of::<Step<F>>() <= NEAR_BYTES {
                        next = &all[(panel + 1) * self.depth..];
                    }
                    &all[panel * self.depth..(panel + 1) * self.depth]
                }
                Steps::Loose(weights, memory) => {
                    pack_panel(self.isa, *weights, panel, memory);
                    if self.skip == Skip::Panels {
                        self.live.clear();
                        self.live.add_steps(memory);
                    }
                    memory
                }
            };
            let at = panel * PANEL;
            let used = PANEL.min(columns - at);
            let bias = match self.add {
                Add::Bias(all) => padded(&all[at..at + used]),
                Add::Nothing | Add::Result => [F::default(); PANEL],
            };
            let tiles = Tiles::new(self.count, self.tile_rows);
            for (index, rows) in tiles.enumerate() {
                let next =
                    if rows.end == self.count && !next.is_empty() { &next[..self.depth] } else { steps };
                let a = &self.packed[rows.start * self.depth..rows.end * self.depth];
                let live = match self.skip {
                    Skip::Rows => self.live.get(index),
                    Skip::Panels => self.live.get(0),
                };
                tile(rows.len(), used, a, Panel { steps, live, next }, self.sums);
                for (i, sums) in self.sums[..rows.len()].iter().enumerate() {
                    let y = &mut self.y.row_mut(self.first + rows.start + i)[at..at + used];
                    let (result, relu) = (matches!(self.add, Add::Result), self.activation == Fused::Relu);
                    match <&mut [F; PANEL]>::try_from(&mut *y) {
                        Ok(whole) => leave(whole, sums, &bias, result, relu),
                        Err(_) => {
                            let mut whole = padded(y);
                            leave(&mut whole, sums, &bias, result, relu);
                            y.copy_from_slice(&whole[..used]);
                        }
                    }
                }
            }
        }
    }
}

/// Adds the bias, or what is there already, and applies the activation.
#[inline(always)]
fn leave<F: Real>(y: &mut [F; PANEL], sums: &[F; PANEL], bias: &[F; PANEL], result: bool, relu: bool) {
    let mut values = *sums;
    // By index over a whole panel: what the compiler turns into vectors.
    if result {
        for j in 0..PANEL {
            values[j] = y[j] + values[j];
        }
    } else {
        for j in 0..PANEL {
            values[j] = values[j] + bias[j];
        }
    }
    if relu {
        for value in &mut values {
            *value = if *value < F::default() { F::default() } else { *value };
        }
    }
    *y = values;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tail::Fused;

    /// Numbers in -1..1 that look random and depend on the seed alone.
    fn numbers<F: Real + From<f32>>(seed: u64, count: usize) -> Vec<F> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            F::from((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        };
        // A product, so that the numbers of an f64 have more digits than those of an f32.
        (0..count).map(|_| next() * next()).collect()
    }

    macro_rules! promises {
        ($module:ident, $t:ty) => {
            mod $module {
                use super::*;

                /// `a b`, one chain of fused (or not) multiply-adds per element.
                fn chain(isa: Isa, a: Matrix<'_, $t>, b: Matrix<'_, $t>) -> Vec<$t> {
                    let columns: Vec<Vec<$t>> =
                        (0..b.columns()).map(|j| b.transposed().row(j).copied().collect()).collect();
                    let mut c = Vec::new();
                    for i in 0..a.rows() {
                        for column in &columns {
                            c.push(a.row(i).zip(column).fold(0.0, |sum, (&a, &b)| match isa {
                                Isa::Scalar => sum + a * b,
                                _ => a.mul_add(b, sum),
                            }));
                        }
                    }
                    c
                }

                #[test]
                fn leaving_out_zeros_changes_no_bit() {
                    for isa in Isa::available() {
                        let scratch = &mut ScratchReal::default();
                        for (rows, inputs, outputs) in
                            [(14, 40, 33), (128, 200, 37), (29, 131, 64), (1, 9, 5)]
                        {
                            let mut x = numbers::<$t>(1, rows * inputs);
                            // Whole columns, whole rows, and every other block of 32 columns of some rows.
                            for (at, x) in x.iter_mut().enumerate() {
                                let (i, k) = (at / inputs, at % inputs);
                                if k % 3 == 0 || i % 5 == 1 || (i % 2 == 0 && k / 32 % 2 == 0) {
                                    *x = if k % 2 == 0 { 0.0 } else { -0.0 };
                                }
                            }
                            let w = numbers::<$t>(2, inputs * outputs);
                            let dy = numbers::<$t>(3, rows * outputs);
                            let bias = numbers::<$t>(4, outputs);
                            let x = Matrix::new(&x, rows, inputs);
                            let (w, dy) = (Matrix::new(&w, outputs, inputs), Matrix::new(&dy, rows, outputs));
                            let mut y = vec![9.0; rows * outputs];
                            let out = MatrixMut::new(&mut y, rows, outputs);
                            affine(isa, x, w, Some(&bias), Fused::Identity, out, scratch);
                            let mut expected = chain(isa, x, w.transposed());
                            for row in expected.chunks_exact_mut(outputs) {
                                row.iter_mut().zip(&bias).for_each(|(y, b)| *y += b);
                            }
                            assert_eq!(y, expected, "{isa} {rows} {inputs} {outputs}");
                            let mut dw = vec![9.0; outputs * inputs];
                            let out = MatrixMut::new(&mut dw, outputs, inputs);
                            product(isa, dy.transposed(), x, Update::Replace, out, scratch);
                            assert_eq!(dw, chain(isa, dy.transposed(), x), "{isa} {rows} {inputs} {outputs}");
                        }
                    }
                }

                #[test]
                fn every_set_gives_the_bits_of_the_chain_whatever_the_batch_and_the_division() {
                    for isa in Isa::available() {
                        let scratch = &mut ScratchReal::default();
                        for length in 0..=100 {
                            for (rows, inputs, outputs) in [(length, 7, 9), (3, length, 18), (15, 5, length)]
                            {
                                let x = numbers::<$t>(1, rows * inputs);
                                let w = numbers::<$t>(2, inputs * outputs);
                                let bias = numbers::<$t>(3, outputs);
                                let (x, w) =
                                    (Matrix::new(&x, rows, inputs), Matrix::new(&w, outputs, inputs));
                                let mut expected = chain(isa, x, w.transposed());
                                for row in expected.chunks_exact_mut(outputs.max(1)) {
                                    row.iter_mut().zip(&bias).for_each(|(y, b)| *y = (*y + b).max(0.0));
                                }
                                let packed = PackedReal::new(w);
                                let mut y = vec![9.0; rows * outputs];
                                let out = MatrixMut::new(&mut y, rows, outputs);
                                let all = 0..packed.panels();
                                multiply(isa, x, &packed, all, Some(&bias), Fused::Relu, out, scratch);
                                assert_eq!(y, expected, "{isa} {rows} {inputs} {outputs}");
                                let mut y = vec![9.0; rows * outputs];
                                let mut rest = MatrixMut::new(&mut y, rows, outputs);
                                for panel in 0..packed.panels() {
                                    let columns = rest.columns().min(PANEL);
                                    let (out, more) = rest.split_columns(columns);
                                    let one = panel..panel + 1;
                                    multiply(isa, x, &packed, one, Some(&bias), Fused::Relu, out, scratch);
                                    rest = more;
                                }
                                assert_eq!(y, expected, "{isa} {rows} {inputs} {outputs}, panel by panel");
                            }
                        }
                    }
                }

                #[test]
                fn a_product_takes_every_transpose_and_adds_when_asked() {
                    for isa in Isa::available() {
                        let scratch = &mut ScratchReal::default();
                        for (m, k, n) in
                            [(1, 1, 1), (5, 40, 33), (17, 3, 70), (33, 65, 31), (150, 20, 34), (4, 0, 4)]
                        {
                            let (a, b) = (numbers::<$t>(1, m * k), numbers::<$t>(2, k * n));
                            for a in [Matrix::new(&a, m, k), Matrix::new(&a, k, m).transposed()] {
                                for b in [Matrix::new(&b, k, n), Matrix::new(&b, n, k).transposed()] {
                                    let expected = chain(isa, a, b);
                                    let mut c = vec![3.0; m * n];
                                    let out = MatrixMut::new(&mut c, m, n);
                                    product(isa, a, b, Update::Replace, out, scratch);
                                    assert_eq!(c, expected, "{isa} {m} {k} {n}");
                                    let out = MatrixMut::new(&mut c, m, n);
                                    product(isa, a, b, Update::Add, out, scratch);
                                    let twice: Vec<$t> = expected.iter().map(|x| x + x).collect();
                                    assert_eq!(c, twice, "{isa} {m} {k} {n}, added");
                                }
                            }
                        }
                    }
                }

                #[test]
                fn relu_keeps_nan() {
                    for isa in Isa::available() {
                        let packed = PackedReal::new(Matrix::new(&[<$t>::NAN, -1.0, 1.0], 3, 1));
                        let mut y = [0.0; 3];
                        let (x, out) = (Matrix::new(&[1.0], 1, 1), MatrixMut::new(&mut y, 1, 3));
                        multiply(isa, x, &packed, 0..1, None, Fused::Relu, out, &mut ScratchReal::default());
                        assert!(y[0].is_nan() && y[1..] == [0.0, 1.0], "{isa}: {y:?}");
                    }
                }
            }
        };
    }

    promises!(in_f32, f32);
    promises!(in_f64, f64);
}
