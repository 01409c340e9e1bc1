//! Matrix product with weights that take few different values: codes, and a table of what they stand for.
//!
//! ```text
//! y[i, j] = activation(bias[j] + sum over k of x[i, k] * table[code[j, k]])
//!
//! at most 16 values   4-bit codes   [strip][k / 8][16]   32 bits hold 8 inputs of one of 16 outputs, the first lowest
//! at most 256         8-bit codes   [strip][k / 4][16]   4 inputs
//! ```
//!
//! Every sum is the chain of [`multiply`], so the bits are those of the same weights as numbers, on every set of
//! instructions. Rows multiply straight from the codes: an eighth or a quarter of the bytes comes from memory, and a
//! table is looked up in registers (AVX2: up to 32 values, and more by gathering). Where looking up takes long,
//! many rows have some panels unpacked at a time, which the product of numbers then reads from a cache.

use std::ops::Range;

use super::Isa;
use super::elementwise::{Work, with};
use super::matrix::{Matrix, MatrixMut};
use super::panels::{PackedReal, Step, numbers_mut};
use super::product::{ScratchReal, multiply};
use super::real::Real;
use super::tail::Fused;
use super::tiles::{PANEL, Tiles};

/// Outputs of a strip, two of which are a panel.
pub(super) const STRIP: usize = 16;

/// Strips whose sums leave together.
pub(super) const TOGETHER: usize = 4;

/// Most rows whose sums fit the registers.
pub(super) const TILE: usize = 8;

/// Most values of a table.
const MOST: usize = 256;

/// Unpacked panels take about so many bytes at a time, two panels at least.
const UNPACKED_BYTES: usize = 1 << 19;

/// Some inputs of sixteen outputs, on a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(pub(super) [u32; STRIP]);

/// Sums of some rows on their way from registers to memory.
pub(super) type Sums<F> = [[F; STRIP * TOGETHER]; TILE];

/// The numbers of a table: `f32` and `f64`.
pub trait PaletteReal: Real + sealed::Sealed {}

pub(super) mod sealed {
    use super::*;

    /// The kernels that are not the same code for both types.
    pub trait Sealed: Real {
        /// The bits, so that those of lesser numbers are less; `-0.0` comes before `0.0`.
        fn order(self) -> u64;
        /// Up to so many rows multiply straight from the codes of so many values.
        fn few(isa: Isa, values: usize) -> usize;
        /// Does so.
        fn rows(isa: Isa, job: Job<'_, '_, Self>);
        /// One panel as numbers.
        fn unpack(isa: Isa, weights: &PackedPalette<Self>, panel: usize, into: Unpacked<'_, Self>);
    }
}

impl PaletteReal for f32 {}
impl PaletteReal for f64 {}

impl sealed::Sealed for f32 {
    fn order(self) -> u64 {
        let bits = self.to_bits();
        u64::from(if bits >> 31 == 1 { !bits } else { bits | 1 << 31 })
    }

    fn few(isa: Isa, values: usize) -> usize {
        // Where a look-up takes no longer than a few products it is cheaper than to unpack, whatever the batch.
        match (isa, values) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2(_), ..=16) | (Isa::Avx512(_), ..=64) => usize::MAX,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2(_), ..=32) | (Isa::Avx512(_), _) => TILE,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2(_), _) => TILE / 2,
            _ => 1,
        }
    }

    fn rows(isa: Isa, job: Job<'_, '_, Self>) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(cpu) => cpu.palette_rows(job),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(cpu) => cpu.palette_rows(job),
            _ => with(isa, Plain(isa, job)),
        }
    }

    fn unpack(isa: Isa, weights: &PackedPalette<Self>, panel: usize, into: Unpacked<'_, Self>) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(cpu) => cpu.palette_unpack(weights, panel, into.0),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(cpu) => cpu.palette_unpack(weights, panel, into.0),
            _ => with(isa, Unpack(weights, panel, into.0)),
        }
    }
}

impl sealed::Sealed for f64 {
    fn order(self) -> u64 {
        let bits = self.to_bits();
        if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
    }

    fn few(_isa: Isa, _values: usize) -> usize {
        1
    }

    fn rows(isa: Isa, job: Job<'_, '_, Self>) {
        with(isa, Plain(isa, job));
    }

    fn unpack(isa: Isa, weights: &PackedPalette<Self>, panel: usize, into: Unpacked<'_, Self>) {
        with(isa, Unpack(weights, panel, into.0));
    }
}

/// Weights of few different values, packed for the product.
///
/// ```
/// use trimnet::kernel::PackedPalette;
///
/// let weights = PackedPalette::new(&[0.5f32, -1.0, 0.5, 0.0, 0.5, -1.0], 2, 3);
/// let weights = weights.expect("three values are few");
/// assert_eq!(weights.table(), [-1.0, 0.0, 0.5]);
/// assert_eq!(weights.bits(), 4);
/// assert_eq!(weights.weights(), [0.5, -1.0, 0.5, 0.0, 0.5, -1.0]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PackedPalette<F> {
    outputs: usize,
    inputs: usize,
    entries: usize,
    /// 16 or 256 values, of which the last may be zeros that no code names.
    pub(super) table: Vec<F>,
    /// `depth` for each strip; strips come in pairs.
    words: Vec<Word>,
}

impl<F: PaletteReal> PackedPalette<F> {
    /// Packs row-major weights `[outputs, inputs]`; nothing if they have more than 256 different values (`-0.0` and `0.0` are two).
    ///
    /// # Panics
    /// Unless `weights` has `outputs * inputs` elements.
    pub fn new(weights: &[F], outputs: usize, inputs: usize) -> Option<Self> {
        assert_eq!(Some(weights.len()), outputs.checked_mul(inputs), "weights of {outputs} x {inputs}");
        let mut table = distinct(weights)?;
        let entries = table.len();
        let keys: Vec<u64> = table.iter().map(|value| value.order()).collect();
        table.resize(if entries <= 16 { 16 } else { MOST }, F::default());
        let mut packed = Self { outputs, inputs, entries, table, words: Vec::new() };
        let (depth, bits, each) = (packed.depth(), packed.bits(), packed.each());
        packed.words = vec![Word([0; STRIP]); 2 * packed.panels() * depth];
        for (j, row) in weights.chunks_exact(inputs.max(1)).enumerate() {
            let words = &mut packed.words[j / STRIP * depth..][..depth];
            for (word, part) in words.iter_mut().zip(row.chunks(each)) {
                for (i, w) in part.iter().enumerate() {
                    let code = keys.partition_point(|&key| key < w.order());
                    word.0[j % STRIP] |= (code as u32) << (bits * i as u32);
                }
            }
        }
        Some(packed)
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
        self.outputs.div_ceil(PANEL)
    }

    /// The different values, ascending.
    pub fn table(&self) -> &[F] {
        &self.table[..self.entries]
    }

    /// Bits of a code: 4 or 8.
    pub fn bits(&self) -> u32 {
        if self.table.len() == 16 { 4 } else { 8 }
    }

    /// Bytes that one product reads.
    pub fn size_bytes(&self) -> usize {
        size_of_val(self.words.as_slice()) + size_of_val(self.table.as_slice())
    }

    /// All weights, row-major `[outputs, inputs]`, as they were.
    pub fn weights(&self) -> Vec<F> {
        let (each, bits, last) = (self.each(), self.bits(), self.table.len() as u32 - 1);
        let row = |j: usize| {
            let words = self.strip(j / STRIP);
            (0..self.inputs).map(move |k| {
                let code = words[k / each].0[j % STRIP] >> (bits * (k % each) as u32) & last;
                self.table[code as usize]
            })
        };
        (0..self.outputs).flat_map(row).collect()
    }

    /// Panels that are unpacked at a time.
    pub(crate) fn together(&self) -> usize {
        (UNPACKED_BYTES / (size_of::<Step<F>>() * self.inputs.max(1))).max(2)
    }

    /// Inputs of a word.
    fn each(&self) -> usize {
        32 / self.bits() as usize
    }

    /// Words of a strip.
    fn depth(&self) -> usize {
        self.inputs.div_ceil(self.each())
    }

    /// The words of one strip.
    pub(super) fn strip(&self, s: usize) -> &[Word] {
        let depth = self.depth();
        &self.words[s * depth..(s + 1) * depth]
    }
}

/// The different values in order, `-0.0` before `0.0`, if they are at most 256.
pub(crate) fn distinct<F: PaletteReal>(values: &[F]) -> Option<Vec<F>> {
    let (mut found, mut keys): (Vec<F>, Vec<u64>) = (Vec::new(), Vec::new());
    for &value in values {
        let key = value.order();
        if let Err(place) = keys.binary_search(&key) {
            if found.len() == MOST {
                return None;
            }
            found.insert(place, value);
            keys.insert(place, key);
        }
    }
    Some(found)
}

/// Memory for unpacked panels: grows to what is needed, and is kept from call to call.
#[derive(Clone, Debug)]
pub struct ScratchPalette<F> {
    panels: PackedReal<F>,
    sums: Sums<F>,
}

impl<F: Real> Default for ScratchPalette<F> {
    fn default() -> Self {
        let panels = PackedReal { outputs: 0, inputs: 0, steps: Vec::new() };
        Self { panels, sums: [[F::default(); STRIP * TOGETHER]; TILE] }
    }
}

/// `y = activation(x * w^T + bias)` for row-major `x` `[rows of y, inputs]` and the `panels` of packed `weights`.
///
/// `y` has the columns of `panels` alone: `32 * panels.start ..` up to `32 * panels.end` or the last; `bias` covers all
/// outputs.
///
/// # Panics
/// If lengths disagree.
///
/// ```
/// use trimnet::kernel::{Fused, Isa, MatrixMut, PackedPalette, ScratchPalette, ScratchReal, multiply_palette};
///
/// let weights = PackedPalette::new(&[1.0f32, 2.0, 2.0, -1.0], 2, 2).expect("three values are few");
/// let (mut y, bias) = ([0.0f32; 2], [0.5, 0.5]);
/// let scratch = (&mut ScratchReal::default(), &mut ScratchPalette::default());
/// let out = MatrixMut::new(&mut y, 1, 2);
/// multiply_palette(Isa::best(), &[1.0, 10.0], &weights, 0..1, Some(&bias), Fused::Relu, out, scratch);
/// assert_eq!(y, [21.5, 0.0]);
/// ```
#[expect(clippy::too_many_arguments)]
pub fn multiply_palette<F: PaletteReal>(
    isa: Isa,
    x: &[F],
    weights: &PackedPalette<F>,
    panels: Range<usize>,
    bias: Option<&[F]>,
    activation: Fused,
    mut y: MatrixMut<'_, F>,
    (real, scratch): (&mut ScratchReal<F>, &mut ScratchPalette<F>),
) {
    assert!(panels.start <= panels.end && panels.end <= weights.panels(), "panels {panels:?}");
    let (outputs, inputs) = (weights.outputs, weights.inputs);
    let column = |panel: usize| (panel * PANEL).min(outputs);
    assert_eq!(bias.map_or(outputs, <[_]>::len), outputs, "bias of {outputs} outputs");
    assert_eq!(Some(x.len()), y.rows().checked_mul(inputs), "inputs of {} rows", y.rows());
    assert_eq!(y.columns(), column(panels.end) - column(panels.start), "columns of the result");
    let rows = y.rows();
    if rows <= F::few(isa, weights.entries) {
        let bias = bias.map(|bias| &bias[column(panels.start)..]);
        return F::rows(isa, Job { weights, panels, x, bias, activation, y, sums: &mut scratch.sums });
    }
    let together = weights.together();
    let unpacked = &mut scratch.panels;
    for first in panels.clone().step_by(together) {
        let last = (first + together).min(panels.end);
        let (count, columns) = (last - first, column(first)..column(last));
        unpacked.steps.resize(unpacked.steps.len().max(count * inputs), Step([F::default(); PANEL]));
        for (panel, steps) in (first..last).zip(unpacked.steps.chunks_exact_mut(inputs.max(1))) {
            F::unpack(isa, weights, panel, Unpacked(numbers_mut(steps)));
        }
        (unpacked.outputs, unpacked.inputs) = (columns.len(), inputs);
        let (out, rest) = y.split_columns(columns.len());
        let bias = bias.map(|bias| &bias[columns]);
        multiply(isa, Matrix::new(x, rows, inputs), unpacked, 0..count, bias, activation, out, real);
        y = rest;
    }
}

/// Where the numbers of a panel go, as [`PackedReal`] has them.
pub struct Unpacked<'a, F>(&'a mut [F]);

/// Rows to be multiplied by some panels.
pub struct Job<'j, 's, F> {
    weights: &'j PackedPalette<F>,
    panels: Range<usize>,
    x: &'j [F],
    /// From the first of the columns on.
    bias: Option<&'j [F]>,
    activation: Fused,
    y: MatrixMut<'j, F>,
    sums: &'s mut Sums<F>,
}

impl<F: PaletteReal> Job<'_, '_, F> {
    /// Does it, at most `most` rows at a time, with `tile(weights, strips, x, sums)` for the sums of some strips. Inlined into
    /// one function for each instruction set.
    #[inline(always)]
    pub(super) fn run(
        mut self,
        most: usize,
        tile: impl Fn(&PackedPalette<F>, Range<usize>, &[F], &mut Sums<F>),
    ) {
        let (columns, end) = (self.y.columns(), 2 * self.panels.end);
        if self.weights.inputs == 0 {
            self.sums.iter_mut().for_each(|sums| sums.fill(F::default()));
        }
        for first in (2 * self.panels.start..end).step_by(TOGETHER) {
            let at = (first - 2 * self.panels.start) * STRIP;
            let used = (STRIP * TOGETHER).min(columns - at);
            for rows in Tiles::new(self.y.rows(), most) {
                let (row, count) = (rows.start, rows.len());
                let x = &self.x[row * self.weights.inputs..][..count * self.weights.inputs];
                if !x.is_empty() {
                    tile(self.weights, first..(first + TOGETHER).min(end), x, self.sums);
                }
                for (i, sums) in self.sums[..count].iter().enumerate() {
                    let y = &mut self.y.row_mut(row + i)[at..at + used];
                    match self.bias {
                        Some(bias) => {
                            let terms = sums.iter().zip(&bias[at..at + used]);
                            y.iter_mut().zip(terms).for_each(|(y, (&sum, &bias))| *y = sum + bias);
                        }
                        None => y.iter_mut().zip(sums).for_each(|(y, &sum)| *y = sum + F::default()),
                    }
                    if self.activation == Fused::Relu {
                        y.iter_mut().for_each(|y| *y = if *y < F::default() { F::default() } else { *y });
                    }
                }
            }
        }
    }
}

/// The definition: one row at a time, one code after the other.
struct Plain<'j, 's, F>(Isa, Job<'j, 's, F>);

impl<F: PaletteReal> Work for Plain<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self(isa, job) = self;
        let fused = isa != Isa::Scalar;
        job.run(1, |weights, strips, x, sums| {
            let (bits, last) = (weights.bits(), weights.table.len() as u32 - 1);
            for (s, sums) in strips.zip(sums[0].as_chunks_mut::<STRIP>().0) {
                let mut all = [F::default(); STRIP];
                for (word, x) in weights.strip(s).iter().zip(x.chunks(weights.each())) {
                    for (i, &x) in x.iter().enumerate() {
                        for (sum, &codes) in all.iter_mut().zip(&word.0) {
                            let w = weights.table[(codes >> (bits * i as u32) & last) as usize];
                            *sum = if fused { x.fused(w, *sum) } else { *sum + x * w };
                        }
                    }
                }
                *sums = all;
            }
        });
    }
}

/// The numbers of a panel, one code after the other.
struct Unpack<'a, F>(&'a PackedPalette<F>, usize, &'a mut [F]);

impl<F: PaletteReal> Work for Unpack<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self(weights, panel, numbers) = self;
        let (bits, last) = (weights.bits(), weights.table.len() as u32 - 1);
        for (s, strip) in numbers.chunks_exact_mut((F::LINE * weights.inputs).max(1)).enumerate() {
            // Sixteen columns have one or two strips of numbers.
            let (words, at) = (weights.strip(2 * panel + s * F::LINE / STRIP), s * F::LINE % STRIP);
            for (word, lines) in words.iter().zip(strip.chunks_mut(weights.each() * F::LINE)) {
                for (i, line) in lines.chunks_exact_mut(F::LINE).enumerate() {
                    for (number, &codes) in line.iter_mut().zip(&word.0[at..]) {
                        *number = weights.table[(codes >> (bits * i as u32) & last) as usize];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Weights of so many values, and inputs, that look random.
    fn numbers(seed: u64, count: usize, values: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state >> 40
        };
        (0..count).map(|_| (next() % values as u64) as f32 / values as f32 - 0.37).collect()
    }

    fn same(rows: usize, inputs: usize, outputs: usize, values: usize, seed: u64) {
        let (w, x) = (numbers(seed, inputs * outputs, values), numbers(seed + 1, rows * inputs, 1 << 20));
        let bias = numbers(seed + 2, outputs, 1 << 20);
        let packed = PackedPalette::new(&w, outputs, inputs).unwrap();
        assert_eq!(packed.weights(), w);
        assert_eq!(packed.bits(), if packed.table().len() <= 16 { 4 } else { 8 });
        let reference = PackedReal::new(Matrix::new(&w, outputs, inputs));
        for isa in Isa::available() {
            let (real, scratch) = (&mut ScratchReal::default(), &mut ScratchPalette::default());
            let mut expected = vec![9.0; rows * outputs];
            let (out, all) = (MatrixMut::new(&mut expected, rows, outputs), 0..reference.panels());
            let matrix = Matrix::new(&x, rows, inputs);
            multiply(isa, matrix, &reference, all, Some(&bias), Fused::Relu, out, real);
            let mut y = vec![9.0; rows * outputs];
            let mut rest = MatrixMut::new(&mut y, rows, outputs);
            // All but the last panel, then the last: what threads do.
            let cut = packed.panels().saturating_sub(1);
            for panels in [0..cut, cut..packed.panels()] {
                let columns = (panels.end * PANEL).min(outputs) - panels.start * PANEL;
                let (out, more) = rest.split_columns(columns);
                multiply_palette(isa, &x, &packed, panels, Some(&bias), Fused::Relu, out, (real, scratch));
                rest = more;
            }
            assert_eq!(y, expected, "{isa} {rows} x {inputs} x {outputs}, {values} values");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn every_set_gives_the_bits_of_the_product_of_numbers(
            rows in 1usize..=20, inputs in 1usize..=130, outputs in 1usize..=130,
            values in prop::sample::select(&[1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 200, 256]), seed in 0u64..1000,
        ) {
            same(rows, inputs, outputs, values, seed);
        }
    }

    #[test]
    fn every_length_gives_the_bits_of_the_product_of_numbers() {
        for length in 1..=130 {
            for values in [3, 16, 40, 256] {
                same(1, length, 50, values, 7);
                same(5, 19, length, values, 8);
            }
            same(length, 9, 40, 16, 9);
        }
        // More panels than are unpacked together.
        same(9, 2100, 200, 256, 10);
    }

    #[test]
    fn numbers_of_64_bits_give_the_bits_of_their_product() {
        for (rows, values) in [(1, 16), (1, 100), (5, 16), (5, 256)] {
            let (inputs, outputs) = (37, 45);
            let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
            let (w, x) =
                (wide(numbers(1, inputs * outputs, values)), wide(numbers(2, rows * inputs, 1 << 20)));
            let packed = PackedPalette::new(&w, outputs, inputs).unwrap();
            let reference = PackedReal::new(Matrix::new(&w, outputs, inputs));
            for isa in Isa::available() {
                let (real, scratch) = (&mut ScratchReal::default(), &mut ScratchPalette::default());
                let (mut y, mut expected) = (vec![9.0; rows * outputs], vec![9.0; rows * outputs]);
                let (matrix, all) = (Matrix::new(&x, rows, inputs), 0..packed.panels());
                let out = MatrixMut::new(&mut expected, rows, outputs);
                multiply(isa, matrix, &reference, all.clone(), None, Fused::Identity, out, real);
                let out = MatrixMut::new(&mut y, rows, outputs);
                multiply_palette(isa, &x, &packed, all, None, Fused::Identity, out, (real, scratch));
                assert_eq!(y, expected, "{isa} {rows} {values}");
            }
        }
    }

    #[test]
    fn more_than_256_values_are_not_few_and_both_zeros_come_back() {
        let many: Vec<f32> = (0..257).map(|i| i as f32).collect();
        assert!(PackedPalette::new(&many, 1, 257).is_none());
        assert!(PackedPalette::new(&many[..256], 2, 128).is_some());
        let zeros = PackedPalette::new(&[0.0f64, -0.0, 1.0], 1, 3).unwrap();
        assert_eq!(zeros.table().len(), 3);
        assert!(zeros.weights()[1].is_sign_negative() && zeros.weights()[0].is_sign_positive());
    }
}
