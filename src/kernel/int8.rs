//! Matrix product of codes: `u8` activations times `i8` weights, exact in `i32`.
//!
//! ```text
//! sum[i, j] = bias[j] + sum over k of (a[i, k] - zero_point) * w[j, k]        (wrapping, as ONNX)
//!           = (bias[j] - zero_point * W[j]) + sum over k of a[i, k] * w[j, k]    W[j] = sum over k of w[j, k]
//! ```
//!
//! The second line is what runs: the zero point costs one number per column, and `i8` activations are
//! `u8` ones with the sign bit flipped and 128 added to the zero point (or the other way round, on Arm). No instruction set here has a
//! saturating step in between, so with `|w| <= 127` and at most 66,311 inputs nothing wraps either.
//!
//! Weights are packed once ([`PackedI8`](super::PackedI8), or [`PackedI4`](super::PackedI4) at half the
//! bytes). A tile of the result stays in registers over all of `k`, and leaves through a [`Tail`].

use std::ops::Range;

use super::Isa;
use super::excess::Excess;
use super::live::Live;
use super::pack::pack_codes;
use super::scalar;
use super::tail::{Finish, Tail, padded};
use super::tiles::{MAX_ROWS, NEAR_BYTES, PANEL, Tiles, share};
use super::weights::{PackedCodes, Step};

/// A block of packed activations stays below this many bytes, so that it lives in the second-level cache.
const BLOCK_BYTES: usize = 256 * 1024;

/// So many bytes of weights come from a cache far away, or from memory: the next are fetched while these are computed with.
const FAR_BYTES: usize = 2 << 20;

/// Sums of a tile on their way from registers to the tail.
pub(super) type Sums = [[i32; PANEL]; MAX_ROWS];

/// Activations: rows of codes, `[rows, inputs]`.
#[derive(Clone, Copy, Debug)]
pub enum Codes<'a> {
    /// Codes 0..=255.
    U8(&'a [u8]),
    /// Codes -128..=127.
    I8(&'a [i8]),
}

impl Codes<'_> {
    fn len(&self) -> usize {
        match self {
            Self::U8(codes) => codes.len(),
            Self::I8(codes) => codes.len(),
        }
    }
}

/// Memory for packed activations: grows to what is needed, and is kept from call to call.
// The sums first, on cache lines of their own, as in `ScratchReal`.
#[repr(C, align(64))]
#[derive(Clone, Debug, Default)]
pub struct Scratch8 {
    sums: Sums,
    rows: Vec<u32>,
    live: Live,
}

/// The input of a product.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Row-major codes `[rows, inputs]`.
    pub codes: Codes<'a>,
    /// The code that stands for zero.
    pub zero_point: i32,
    /// `[outputs]`, added to the sums; or none.
    pub bias: Option<&'a [i32]>,
}

/// Multiplies `input` by the `panels` of `weights` and sends the sums through `tail`.
///
/// The tail's per-column values cover all outputs; its matrix has one row per row of codes, and the
/// columns of `panels` alone: `32 * panels.start ..` up to `32 * panels.end` or the last.
///
/// # Panics
/// If lengths disagree.
///
/// ```
/// use trimnet::kernel::{Codes, Input, Isa, MatrixMut, PackedI8, Scratch8, Tail, multiply_codes};
///
/// // ONNX MatMulInteger: [[1, 2], [3, 4]] with zero point 2, times [[3, -8], [6, 9]] (transposed here).
/// let weights = PackedI8::new(&[3, 6, -8, 9], 2, 2);
/// let input = Input { codes: Codes::U8(&[1, 2, 3, 4]), zero_point: 2, bias: None };
/// let mut sums = [0; 4];
/// let tail = Tail::Sums { out: MatrixMut::new(&mut sums, 2, 2) };
/// multiply_codes(Isa::best(), input, &weights, 0..1, tail, &mut Scratch8::default());
/// assert_eq!(sums, [-3, 8, 15, 10]);
/// ```
pub fn multiply_codes<S: Step>(
    isa: Isa,
    input: Input<'_>,
    weights: &PackedCodes<S>,
    panels: Range<usize>,
    mut tail: Tail<'_>,
    scratch: &mut Scratch8,
) {
    assert!(panels.start <= panels.end && panels.end <= weights.panels(), "panels {panels:?}");
    let columns = (panels.end * PANEL).min(weights.outputs()) - (panels.start * PANEL).min(weights.outputs());
    tail.check(weights.outputs(), columns);
    let (rows, inputs) = (tail.rows(), weights.inputs());
    assert_eq!(Some(input.codes.len()), rows.checked_mul(inputs), "codes of {rows} x {inputs}");
    if let Some(bias) = input.bias {
        assert_eq!(bias.len(), weights.outputs(), "bias of {} outputs", weights.outputs());
    }
    let (zero_point, flip) = match (input.codes, packs_signed(isa)) {
        (Codes::U8(_), false) | (Codes::I8(_), true) => (input.zero_point, 0),
        (Codes::I8(_), false) => (input.zero_point.wrapping_add(128), 0x8080_8080),
        (Codes::U8(_), true) => (input.zero_point.wrapping_sub(128), 0x8080_8080),
    };
    let depth = inputs.div_ceil(4);
    let (tile_rows, width) = (tile_rows(isa, weights.tame), depth * words(isa, weights.tame));
    let wide = width > depth;
    let bytes = (panels.len() * depth).saturating_mul(size_of::<S>());
    let skips = skips_from(isa).is_some_and(|least| rows > 1 || bytes >= least);
    // A row alone has no time for divisions.
    let fit = |rows: usize| rows.next_multiple_of(tile_rows).max(tile_rows);
    let block = if rows == 1 { 1 } else { fit(BLOCK_BYTES / (4 * width.max(1))) };
    let Scratch8 { rows: memory, live, sums } = scratch;
    for first in (0..rows).step_by(block) {
        let count = block.min(rows - first);
        memory.resize(memory.len().max(count * width), 0);
        let packed = &mut memory[..count * width];
        live.clear();
        for tile in Tiles::new(count, tile_rows) {
            let codes = (first + tile.start) * inputs..(first + tile.end) * inputs;
            let target = &mut packed[tile.start * width..tile.end * width];
            match input.codes {
                Codes::U8(all) => pack_codes(isa, &all[codes], inputs, flip, wide, target),
                Codes::I8(all) => pack_codes(isa, as_bytes(&all[codes]), inputs, flip, wide, target),
            }
            if skips && wide {
                live.add(isa, target.as_chunks::<2>().0, tile.len());
            } else if skips {
                live.add(isa, target, tile.len());
            }
        }
        let (panels, bias, live, tail) = (panels.clone(), input.bias, &*live, &mut tail);
        let job = Job {
            weights,
            panels,
            bias,
            zero_point,
            packed,
            live,
            width,
            first,
            count,
            tile_rows,
            tail,
            sums,
        };
        S::run(isa, job);
    }
}

/// A block of packed rows to be multiplied by some panels.
pub struct Job<'j, 't, S> {
    pub(super) weights: &'j PackedCodes<S>,
    pub(super) panels: Range<usize>,
    pub(super) bias: Option<&'j [i32]>,
    pub(super) zero_point: i32,
    pub(super) packed: &'j [u32],
    /// Which words of each tile are not zero, for sets that leave those out.
    pub(super) live: &'j Live,
    /// Words of `packed` for one row.
    pub(super) width: usize,
    /// First row of the block.
    pub(super) first: usize,
    /// Its rows.
    pub(super) count: usize,
    tile_rows: usize,
    pub(super) tail: &'j mut Tail<'t>,
    sums: &'j mut Sums,
}

/// A panel as a tile reads it; not every set leaves out zeros and fetches ahead.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
pub(super) struct Panel<'p, S> {
    pub(super) steps: &'p [S],
    /// The steps that matter, if not all do.
    pub(super) live: Option<&'p [u32]>,
    /// The share of this tile in the next panel: to be fetched while it computes.
    pub(super) next: &'p [S],
    /// What sums begin with.
    pub(super) start: &'p [i32; PANEL],
}

impl<S: Step> Job<'_, '_, S> {
    /// Does it, with `tile(rows, columns, a, panel, sums)` for one tile of sums. Inlined into one function for each instruction set.
    #[inline(always)]
    pub(super) fn run(self, tile: impl Fn(usize, usize, &[u32], Panel<'_, S>, &mut Sums)) {
        self.run_with(tile, scalar::int8::add_excess, |finish, sums, row| finish.run(sums, row));
    }

    /// The same with an `add(rows, a, excess, sums)` for what tame weights lack, and a way of its own from the sums of a tile, whose
    /// first row is given, to the result.
    #[inline(always)]
    pub(super) fn run_with(
        self,
        tile: impl Fn(usize, usize, &[u32], Panel<'_, S>, &mut Sums),
        add: impl Fn(usize, &[u32], &Excess, &mut Sums),
        send: impl Fn(&mut Finish<'_>, &[[i32; PANEL]], usize),
    ) {
        let depth = self.weights.inputs().div_ceil(4);
        let tiles = Tiles::new(self.count, self.tile_rows);
        let steps_of = |panel: usize| &self.weights.steps[panel * depth..(panel + 1) * depth];
        let bytes = depth * size_of::<S>();
        let ahead = bytes <= NEAR_BYTES && bytes.saturating_mul(self.panels.len()) > FAR_BYTES;
        for panel in self.panels.clone() {
            let steps = steps_of(panel);
            let next = if ahead && panel + 1 < self.panels.end { steps_of(panel + 1) } else { &[] };
            let column = panel * PANEL;
            let used = PANEL.min(self.weights.outputs() - column);
            let mut start = [0; PANEL];
            if let Some(bias) = self.bias {
                start = padded(&bias[column..column + used]);
            }
            let column_sums = self.weights.column_sums[panel];
            for j in 0..PANEL {
                start[j] = start[j].wrapping_sub(column_sums[j].wrapping_mul(self.zero_point));
            }
            let mut finish = self.tail.panel(column, used, column - self.panels.start * PANEL);
            for (index, rows) in tiles.clone().enumerate() {
                let a = &self.packed[rows.start * self.width..rows.end * self.width];
                finish.fetch(self.first + rows.start..self.first + rows.end);
                let (live, next) = (self.live.get(index), &next[share(next.len(), index, tiles.len())]);
                tile(rows.len(), used, a, Panel { steps, live, next, start: &start }, self.sums);
                let excess = &self.weights.excess[panel];
                if !excess.is_empty() {
                    add(rows.len(), a, excess, self.sums);
                }
                send(&mut finish, &self.sums[..rows.len()], self.first + rows.start);
            }
        }
    }
}

/// Rows of the register tile.
fn tile_rows(isa: Isa, tame: bool) -> usize {
    match (isa, tame) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2(_), true) => 8,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2(_), false) => 5,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512(_), _) => 14,
        _ => 4,
    }
}

/// Bytes of weights from which on one row leaves out zeros, if the set does: AVX-512 reads fewer in less time than zeros are found in.
fn skips_from(isa: Isa) -> Option<usize> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => Some(0),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) => Some(64 * 1024),
        _ => None,
    }
}

/// Whether activations are packed as `i8`; they are `u8` elsewhere.
fn packs_signed(isa: Isa) -> bool {
    match isa {
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(_) | Isa::DotProd(_) => true,
        _ => false,
    }
}

/// Words that hold four packed activations.
fn words(isa: Isa, tame: bool) -> usize {
    match (isa, tame) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2(_), false) => 2,
        _ => 1,
    }
}

fn as_bytes(codes: &[i8]) -> &[u8] {
    // SAFETY: `i8` and `u8` have the same size, alignment and no invalid values.
    unsafe { std::slice::from_raw_parts(codes.as_ptr().cast(), codes.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{MatrixMut, PackedI4, PackedI8};
    use proptest::prelude::*;

    /// The first line of the page, term by term.
    fn definition(
        a: &[i32],
        zero_point: i32,
        bias: &[i32],
        w: &[i8],
        rows: usize,
        inputs: usize,
    ) -> Vec<i32> {
        let outputs = bias.len();
        let mut sums = Vec::new();
        for i in 0..rows {
            for j in 0..outputs {
                let mut sum = bias[j];
                for k in 0..inputs {
                    let product = (a[i * inputs + k] - zero_point).wrapping_mul(i32::from(w[j * inputs + k]));
                    sum = sum.wrapping_add(product);
                }
                sums.push(sum);
            }
        }
        sums
    }

    /// Bytes that look random and depend on the seed alone.
    fn bytes(seed: u64, count: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 56) as u8
        };
        (0..count).map(|_| next()).collect()
    }

    fn signed(codes: &[u8]) -> Vec<i8> {
        codes.iter().map(|&code| code as i8).collect()
    }

    /// Sums of one product on one instruction set, both in one call and panel by panel.
    fn sums<S: Step>(isa: Isa, input: Input<'_>, weights: &PackedCodes<S>, rows: usize) -> Vec<i32> {
        let (outputs, scratch) = (weights.outputs(), &mut Scratch8::default());
        let mut whole = vec![0; rows * outputs];
        let out = MatrixMut::new(&mut whole, rows, outputs);
        multiply_codes(isa, input, weights, 0..weights.panels(), Tail::Sums { out }, scratch);
        let mut parts = vec![1; rows * outputs];
        let mut rest = MatrixMut::new(&mut parts, rows, outputs);
        for panel in 0..weights.panels() {
            let (out, more) = {
                let columns = rest.columns().min(PANEL);
                rest.split_columns(columns)
            };
            multiply_codes(isa, input, weights, panel..panel + 1, Tail::Sums { out }, scratch);
            rest = more;
        }
        assert_eq!(whole, parts, "{isa}: the panels alone");
        whole
    }

    /// Weights as they are and, where kernels for it exist, tame.
    fn packed(w: &[i8], outputs: usize, inputs: usize) -> Vec<PackedI8> {
        let kinds = if cfg!(target_arch = "x86_64") { &[false, true][..] } else { &[false] };
        kinds.iter().map(|&tame| PackedI8::pack(w, outputs, inputs, tame)).collect()
    }

    /// Few pairs of weights that are not tame.
    fn nearly_tame(seed: u64, count: usize) -> Vec<i8> {
        let all = signed(&bytes(seed, count));
        let wild = |i: usize| i % 56 < 2;
        all.into_iter().enumerate().map(|(i, w)| if wild(i) { w | 96 } else { w / 2 }).collect()
    }

    #[test]
    fn every_set_equals_the_definition_for_every_dimension_to_130() {
        for isa in Isa::available() {
            for length in 0..=130 {
                for (rows, inputs, outputs) in [
                    (length, 7, 9),
                    (length, 37, 41),
                    (3, length, 18),
                    (15, length, 5),
                    (2, 9, length),
                    (1, length, 115),
                    (1, 9, length),
                ] {
                    let (a, w) = (bytes(1, rows * inputs), nearly_tame(2, inputs * outputs));
                    let bias: Vec<i32> = (0..outputs).map(|j| 1000 - 17 * j as i32).collect();
                    let wide: Vec<_> = a.iter().map(|&a| i32::from(a)).collect();
                    let expected = definition(&wide, 131, &bias, &w, rows, inputs);
                    let input = Input { codes: Codes::U8(&a), zero_point: 131, bias: Some(&bias) };
                    for packed in packed(&w, outputs, inputs) {
                        let found = sums(isa, input, &packed, rows);
                        assert_eq!(found, expected, "{isa} {rows} {inputs} {outputs}");
                    }
                    let a = signed(&a);
                    let wide: Vec<_> = a.iter().map(|&a| i32::from(a)).collect();
                    let expected = definition(&wide, -5, &bias, &w, rows, inputs);
                    let input = Input { codes: Codes::I8(&a), zero_point: -5, bias: Some(&bias) };
                    for packed in packed(&w, outputs, inputs) {
                        let found = sums(isa, input, &packed, rows);
                        assert_eq!(found, expected, "{isa} {rows} {inputs} {outputs}");
                    }
                    let w: Vec<i8> = w.iter().map(|w| w >> 4).collect();
                    let expected = definition(&wide, -5, &bias, &w, rows, inputs);
                    let packed = PackedI4::new(&w, outputs, inputs);
                    assert_eq!(
                        sums(isa, input, &packed, rows),
                        expected,
                        "{isa} i4 {rows} {inputs} {outputs}"
                    );
                }
            }
        }
    }

    #[test]
    fn leaving_out_zeros_changes_no_sum() {
        // Last, so many weights that every set looks for the zeros of one row.
        let shapes = (1..=14).chain([32]).map(|rows| (rows, 301, 115)).chain([(1, 1037, 515)]);
        for (rows, inputs, outputs) in shapes {
            let w = nearly_tame(2, inputs * outputs);
            let small: Vec<i8> = w.iter().map(|w| w >> 4).collect();
            let bias = vec![7; outputs];
            // Of blocks of twenty inputs, one in so many is not all zero.
            for every in [1, 2, 3, 5, 100] {
                let mut a = bytes(1, rows * inputs);
                let zeros = a.iter_mut().enumerate().filter(|(i, _)| (i % inputs / 20 + 1) % every != 0);
                zeros.for_each(|(_, a)| *a = 0);
                for zero_point in [0, 9] {
                    let wide: Vec<_> = a.iter().map(|&a| i32::from(a)).collect();
                    let expected = definition(&wide, zero_point, &bias, &w, rows, inputs);
                    let expected_i4 = definition(&wide, zero_point, &bias, &small, rows, inputs);
                    let input = Input { codes: Codes::U8(&a), zero_point, bias: Some(&bias) };
                    for isa in Isa::available() {
                        for packed in packed(&w, outputs, inputs) {
                            assert_eq!(sums(isa, input, &packed, rows), expected, "{isa} {rows} {every}");
                        }
                        let packed = PackedI4::new(&small, outputs, inputs);
                        assert_eq!(sums(isa, input, &packed, rows), expected_i4, "{isa} i4 {rows} {every}");
                    }
                }
            }
        }
    }

    #[test]
    fn to_fetch_weights_ahead_changes_no_sum() {
        // So many weights that the next panel is fetched, but for one panel alone, with which `sums` compares.
        let (rows, inputs, outputs) = (19, 1037, 4115);
        let (a, w) = (bytes(1, rows * inputs), nearly_tame(2, inputs * outputs));
        let small: Vec<i8> = w.iter().map(|w| w >> 4).collect();
        let input = Input { codes: Codes::U8(&a), zero_point: 9, bias: None };
        for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::Scalar) {
            for packed in packed(&w, outputs, inputs) {
                sums(isa, input, &packed, rows);
            }
            sums(isa, input, &PackedI4::new(&small, outputs, inputs), rows);
        }
    }

    #[test]
    fn to_fetch_where_results_go_changes_no_sum() {
        let (rows, inputs, outputs) = (1203, 6, 115);
        let (a, w) = (bytes(1, rows * inputs), nearly_tame(2, inputs * outputs));
        let wide: Vec<_> = a.iter().map(|&a| i32::from(a)).collect();
        let expected = definition(&wide, 9, &vec![0; outputs], &w, rows, inputs);
        let input = Input { codes: Codes::U8(&a), zero_point: 9, bias: None };
        for isa in Isa::available() {
            for packed in packed(&w, outputs, inputs) {
                assert_eq!(sums(isa, input, &packed, rows), expected, "{isa}");
            }
        }
    }

    #[test]
    fn extremes_do_not_saturate() {
        for isa in Isa::available() {
            for inputs in [1, 2, 3, 4, 5, 64, 129, 4096] {
                for rows in [1, 2, 3, 4, 14] {
                    let packed = PackedI8::new(&vec![127; inputs], 1, inputs);
                    let codes = vec![255; rows * inputs];
                    let input = Input { codes: Codes::U8(&codes), zero_point: 0, bias: None };
                    assert_eq!(sums(isa, input, &packed, rows), vec![255 * 127 * inputs as i32; rows]);
                    let packed = PackedI8::new(&vec![-128; inputs], 1, inputs);
                    assert_eq!(sums(isa, input, &packed, rows), vec![-255 * 128 * inputs as i32; rows]);
                    let codes = vec![-128; rows * inputs];
                    let input = Input { codes: Codes::I8(&codes), zero_point: 0, bias: None };
                    assert_eq!(sums(isa, input, &packed, rows), vec![128 * 128 * inputs as i32; rows]);
                    let packed = PackedI8::new(&vec![-127; inputs], 1, inputs);
                    assert_eq!(sums(isa, input, &packed, rows), vec![128 * 127 * inputs as i32; rows]);
                }
            }
        }
    }

    #[test]
    fn wraps_as_onnx_where_a_sum_overflows() {
        // semantics: 40,000 products 255 * 255 give -1,693,967,296; here as 2 * 80,000 of 255 * 127 and their rest.
        let inputs = 80_000;
        let packed = PackedI8::new(&vec![127; inputs], 1, inputs);
        let codes = vec![255; inputs];
        let input = Input { codes: Codes::U8(&codes), zero_point: 0, bias: None };
        let wrapped = (255i64 * 127 * inputs as i64) as i32;
        for isa in Isa::available() {
            assert_eq!(sums(isa, input, &packed, 1), [wrapped], "{isa}");
        }
    }

    proptest! {
        #[test]
        fn every_set_equals_the_definition(
            rows in 0usize..=40, inputs in 0usize..=130, outputs in 0usize..=130,
            zero_point in -300..300, seed: u64, wild: bool,
        ) {
            let a = bytes(seed, rows * inputs);
            let w = if wild { signed(&bytes(!seed, inputs * outputs)) } else { nearly_tame(!seed, inputs * outputs) };
            let wide: Vec<_> = a.iter().map(|&a| i32::from(a)).collect();
            let expected = definition(&wide, zero_point, &vec![0; outputs], &w, rows, inputs);
            let input = Input { codes: Codes::U8(&a), zero_point, bias: None };
            for isa in Isa::available() {
                for packed in packed(&w, outputs, inputs) {
                    prop_assert_eq!(&sums(isa, input, &packed, rows), &expected, "{}", isa);
                }
            }
            let w: Vec<i8> = w.iter().map(|w| w >> 4).collect();
            let expected = definition(&wide, zero_point, &vec![0; outputs], &w, rows, inputs);
            let packed = PackedI4::new(&w, outputs, inputs);
            for isa in Isa::available() {
                prop_assert_eq!(&sums(isa, input, &packed, rows), &expected, "{} i4", isa);
            }
        }
    }
}
