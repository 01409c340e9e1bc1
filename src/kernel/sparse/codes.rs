//! Sparse weights of codes: `u8` (or `i8`) activations times `i8` weights, exact in `i32`.
//!
//! ```text
//! sum[b, i] = bias[i] - zero_point * W[i] + sum over j of w[i, j] * x[b, j]      W[i] = sum over j of w[i, j]
//! ```
//!
//! The sums are those of the dense product (`int8.rs`), to the bit, for any input and on every set of instructions:
//! leaving out zeros changes no integer. `i8` activations are `u8` ones with the sign bit flipped, as there.
//!
//! One row: windows of 128 inputs where the processor looks up 64 of 128 bytes at once (AVX-512 VBMI), see
//! `code_windows.rs`; wide cells elsewhere (`cells.rs`). Many rows: narrow cells, 32 rows side by side as 16-bit numbers, two weights
//! at a time, whose products `pmaddwd` adds in pairs; for that weights are held in 16 bits.
//!
//! 4096 x 4096, one thread of an AMD EPYC (Zen 5), 90 / 95 / 99 % zeros: one row 0.053 / 0.036 / 0.014 ms, 32 rows
//! 0.64 / 0.41 / 0.13 ms (`cargo bench --bench peers -- --filter sparse.i8`).

use std::ops::Range;

use super::cells::{Cell, Cells, One, Sums};
use super::code_windows::{CodeWindows, WINDOW};
use super::csr::{Csr, Number};
use super::real::worth_sharing;
use crate::kernel::elementwise::{Work, with};
use crate::kernel::int8::{Codes, Input};
use crate::kernel::pack::pack;
use crate::kernel::tail::{Finish, Tail, padded};
use crate::kernel::tiles::PANEL;
use crate::kernel::{Isa, Matrix, Pool};

/// Rows of a batch side by side.
pub(in crate::kernel) const CODE_LANES: usize = 32;

/// Up to here a batch is computed row by row.
const FEW: usize = 3;

/// One input of 32 rows of a batch: row `b` stands at [`place`]`(b)`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct CodeLine(pub(in crate::kernel) [i16; CODE_LANES]);

/// Where row `b` stands, so that interleaving two lines within 128 bits gives rows 0..16 and 16..32 in order.
pub(in crate::kernel) const fn place(b: usize) -> usize {
    (b % 16 / 4) * 8 + b / 16 * 4 + b % 4
}

/// Sums of an output for 32 rows of the batch.
pub(in crate::kernel) type CodeSums = [i32; CODE_LANES];

/// Sparse `i8` weights `[outputs, inputs]`, ready to multiply on one set of instructions.
///
/// ```
/// use trimnet::kernel::{Codes, Input, Isa, MatrixMut, Pool, SparseCodes, SparseCodesScratch, Tail};
///
/// let weights = SparseCodes::new(Isa::best(), &[0, 2, 0, 0, 0, -3], 2, 3);
/// let mut sums = [0; 2];
/// let input = Input { codes: Codes::U8(&[1, 10, 100]), zero_point: 10, bias: Some(&[7, 0]) };
/// let tail = Tail::Sums { out: MatrixMut::new(&mut sums, 1, 2) };
/// weights.multiply(&Pool::single(), input, tail, &mut SparseCodesScratch::default());
/// assert_eq!(sums, [7, -270]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SparseCodes {
    isa: Isa,
    many: Cells<i16>,
    one: One<i8, CodeWindows>,
    /// Of the weights of each output.
    sums: Vec<i32>,
}

/// Memory for packed activations: grows to what is needed, and is kept from call to call.
#[derive(Clone, Debug, Default)]
pub struct SparseCodesScratch {
    pub(super) bytes: Vec<u8>,
    lanes: Vec<CodeLine>,
}

impl SparseCodes {
    /// From row-major weights `[outputs, inputs]`; everything but zero is kept.
    ///
    /// # Panics
    /// Unless `weights` has `outputs * inputs` elements, and `inputs` fits `u32`.
    pub fn new(isa: Isa, weights: &[i8], outputs: usize, inputs: usize) -> Self {
        let csr = Csr::from_dense(weights, outputs, inputs);
        let many = Cells::near(&csr, (size_of::<CodeLine>(), size_of::<CodeSums>()));
        let one = One::new(&csr, &many, CodeWindows::new(isa, &csr));
        Self { isa, many, one, sums: weight_sums(weights, outputs, inputs) }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.sums.len()
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.many.inputs()
    }

    /// All weights, row-major `[outputs, inputs]`, as they were.
    pub fn weights(&self) -> Vec<i8> {
        self.many.to_dense().into_iter().map(|weight| weight as i8).collect()
    }

    /// Weights that are not zero.
    pub fn nonzero(&self) -> usize {
        self.many.nonzero()
    }

    /// Bytes in memory, all layouts together.
    pub fn size_bytes(&self) -> usize {
        let layouts = self.many.size_bytes() + self.one.size_bytes(CodeWindows::size_bytes);
        layouts + size_of_val(self.sums.as_slice())
    }

    /// Multiplies `input` by the weights and sends the sums through `tail`, whose matrix has a column per output.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn multiply(
        &self,
        pool: &Pool,
        input: Input<'_>,
        mut tail: Tail<'_>,
        scratch: &mut SparseCodesScratch,
    ) {
        tail.check(self.outputs(), self.outputs());
        let (batch, inputs) = (tail.rows(), self.inputs());
        let signs = Signs::new(&input, batch, inputs);
        let start = Start::new(&self.sums, signs.zero_point, input.bias);
        let mut first = 0;
        while first < batch {
            let rest = batch - first;
            let rows = first..first + if rest <= FEW { 1 } else { rest.min(CODE_LANES) };
            let signs = signs.rows(&rows, inputs);
            if rows.len() == 1 {
                let x = signs.padded(inputs, inputs.next_multiple_of(WINDOW), &mut scratch.bytes);
                self.one(pool, x, rows.start, &start, tail.reborrow());
            } else {
                let lanes = gather(self.isa, signs, inputs, &mut scratch.lanes);
                self.many(pool, lanes, &rows, &start, tail.reborrow());
            }
            first = rows.end;
        }
    }

    /// One row, padded to whole windows.
    fn one(&self, pool: &Pool, x: &[u8], row: usize, start: &Start<'_>, tail: Tail<'_>) {
        let (isa, outputs, height) = (self.isa, self.outputs(), self.many.height());
        let nanoseconds =
            self.nonzero() as f64 * if matches!(self.one, One::Windows(_)) { 0.06 } else { 0.4 };
        share_tail(pool, nanoseconds, height / PANEL, tail, |panels, mut tail| {
            let mut band = Sums::new();
            each_panel(isa, outputs, panels, &mut tail, &(row..row + 1), start, |at, sums| {
                if at.is_multiple_of(height) {
                    let (b, band) = (at / height, band.begin(height.min(outputs - at), 0));
                    match &self.one {
                        One::Windows(windows) => windows.multiply(isa, b, x, band),
                        One::Cells(cells) => one(cells, b, &x[..self.inputs()], band),
                        One::Same => one(&self.many, b, &x[..self.inputs()], band),
                    }
                }
                sums[0].copy_from_slice(&band.get()[at % height..][..PANEL]);
            });
        });
    }

    /// Some rows, whose inputs are `lanes`.
    fn many(&self, pool: &Pool, lanes: &[CodeLine], rows: &Range<usize>, start: &Start<'_>, tail: Tail<'_>) {
        let (isa, outputs, height) = (self.isa, self.outputs(), self.many.height());
        share_tail(pool, self.nonzero() as f64 * 0.5, height / PANEL, tail, |panels, mut tail| {
            let mut band = Sums::new();
            each_panel(isa, outputs, panels, &mut tail, rows, start, |at, sums| {
                if at.is_multiple_of(height) {
                    let band = band.begin(height.min(outputs - at), [0; CODE_LANES]);
                    let cells = self.many.band(at / height);
                    for (cell, lanes) in cells.zip(lanes.chunks(self.many.width())) {
                        many_on(isa, cell, lanes, band);
                    }
                }
                let panel = &band.get()[at % height..][..PANEL];
                pack(
                    isa,
                    Matrix::new(panel.as_flattened(), PANEL, CODE_LANES),
                    sums.as_flattened_mut(),
                    PANEL,
                );
            });
        });
    }
}

/// Codes as `u8`: those that are `i8` have their sign bits flipped on the way.
#[derive(Clone, Copy)]
pub(super) struct Signs<'a> {
    codes: &'a [u8],
    flip: u8,
    /// The code that stands for zero after that.
    pub(super) zero_point: i32,
}

impl<'a> Signs<'a> {
    pub(super) fn new(input: &Input<'a>, batch: usize, inputs: usize) -> Self {
        let (codes, flip, zero_point) = match input.codes {
            Codes::U8(codes) => (codes, 0, input.zero_point),
            Codes::I8(codes) => (as_bytes(codes), 0x80, input.zero_point.wrapping_add(128)),
        };
        assert_eq!(Some(codes.len()), batch.checked_mul(inputs), "codes of {batch} x {inputs}");
        Self { codes, flip, zero_point }
    }

    fn rows(self, rows: &Range<usize>, inputs: usize) -> Self {
        Self { codes: &self.codes[rows.start * inputs..rows.end * inputs], ..self }
    }

    /// Flipped rows of `width`, padded with zeros.
    pub(super) fn padded<'s>(&self, inputs: usize, width: usize, bytes: &'s mut Vec<u8>) -> &'s [u8] {
        bytes.clear();
        for row in self.codes.chunks_exact(inputs.max(1)) {
            bytes.extend(row.iter().map(|code| code ^ self.flip));
            bytes.resize(bytes.len() + width - inputs, 0);
        }
        bytes
    }
}

/// What sums begin with.
pub(super) struct Start<'a> {
    weights: &'a [i32],
    zero_point: i32,
    bias: Option<&'a [i32]>,
}

impl<'a> Start<'a> {
    /// For the sums of the weights of each output.
    pub(super) fn new(weights: &'a [i32], zero_point: i32, bias: Option<&'a [i32]>) -> Self {
        assert_eq!(
            bias.map_or(weights.len(), <[_]>::len),
            weights.len(),
            "bias of {} outputs",
            weights.len()
        );
        Self { weights, zero_point, bias }
    }
}

/// Sums of the weights of each output.
pub(super) fn weight_sums(weights: &[i8], outputs: usize, inputs: usize) -> Vec<i32> {
    let sum = |row: &[i8]| row.iter().fold(0i32, |sum, &w| sum.wrapping_add(i32::from(w)));
    (0..outputs).map(|i| sum(&weights[i * inputs..(i + 1) * inputs])).collect()
}

/// Computes the sums of `rows` panel by panel, `[row][output]`, and sends them through the tail.
pub(super) fn each_panel(
    isa: Isa,
    outputs: usize,
    panels: Range<usize>,
    tail: &mut Tail<'_>,
    rows: &Range<usize>,
    start: &Start<'_>,
    mut compute: impl FnMut(usize, &mut [[i32; PANEL]; CODE_LANES]),
) {
    let mut sums = [[0; PANEL]; CODE_LANES];
    for panel in panels.clone() {
        let column = panel * PANEL;
        let used = PANEL.min(outputs - column);
        compute(column, &mut sums);
        let begin = with(isa, Begin { start, columns: column..column + used });
        for sums in &mut sums[..rows.len()] {
            for (sum, &begin) in sums.iter_mut().zip(&begin) {
                *sum = sum.wrapping_add(begin);
            }
        }
        let mut end = tail.panel(column, used, column - panels.start * PANEL);
        with(isa, End { end: &mut end, sums: &sums[..rows.len()], row: rows.start });
    }
}

/// What the sums of some columns of a panel begin with, compiled for each set of instructions.
struct Begin<'s> {
    start: &'s Start<'s>,
    columns: Range<usize>,
}

impl Work for Begin<'_> {
    type Output = [i32; PANEL];

    #[inline(always)]
    fn run(self) -> [i32; PANEL] {
        let Start { weights, zero_point, bias } = *self.start;
        let mut begin = bias.map_or([0; PANEL], |bias| padded(&bias[self.columns.clone()]));
        let weights = padded(&weights[self.columns]);
        for j in 0..PANEL {
            begin[j] = begin[j].wrapping_sub(weights[j].wrapping_mul(zero_point));
        }
        begin
    }
}

/// The last step of a panel, compiled for each set of instructions.
struct End<'e, 't> {
    end: &'e mut Finish<'t>,
    sums: &'e [[i32; PANEL]],
    row: usize,
}

impl Work for End<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.end.run(self.sums, self.row);
    }
}

/// Calls `task` for ranges of panels and their tails: all at once, or on the pool if there is enough to do, in multiples of
/// `granule` panels.
pub(super) fn share_tail(
    pool: &Pool,
    nanoseconds: f64,
    granule: usize,
    tail: Tail<'_>,
    task: impl Fn(Range<usize>, Tail<'_>) + Sync,
) {
    let panels = tail.columns().div_ceil(PANEL);
    if panels == 0 {
        return;
    }
    match worth_sharing(pool, nanoseconds) {
        None => task(0..panels, tail),
        Some(parts) => {
            let width = panels.div_ceil(parts).next_multiple_of(granule);
            tail.share(pool, width * PANEL, |i, tail| task(i * width..panels.min((i + 1) * width), tail));
        }
    }
}

/// Transposes rows of codes to lines, one for each input. Places without a row hold any numbers.
fn gather<'s>(isa: Isa, signs: Signs<'_>, inputs: usize, lanes: &'s mut Vec<CodeLine>) -> &'s [CodeLine] {
    lanes.resize(lanes.len().max(inputs), CodeLine([0; CODE_LANES]));
    let lanes = &mut lanes[..inputs];
    let Signs { codes, flip, .. } = signs;
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(cpu) => cpu.gather_codes(codes, inputs, flip, lanes),
        _ => gather_one_by_one(codes, inputs, flip, lanes),
    }
    lanes
}

/// The definition.
fn gather_one_by_one(codes: &[u8], inputs: usize, flip: u8, lanes: &mut [CodeLine]) {
    for (b, codes) in codes.chunks_exact(inputs.max(1)).enumerate() {
        for (line, &code) in lanes.iter_mut().zip(codes) {
            line.0[place(b)] = i16::from(code ^ flip);
        }
    }
}

/// The definition for one row: adds to the sums of band `b`.
pub(super) fn one<T: Number + Into<i32>>(cells: &Cells<T>, b: usize, x: &[u8], sums: &mut [i32]) {
    assert_eq!(x.len(), cells.inputs(), "length of the input");
    for (cell, x) in cells.band(b).zip(x.chunks(cells.width())) {
        for part in cell {
            let (columns, values) = part.entries();
            let mut chains = [0i32; 4];
            let (column_chunks, last_columns) = columns.as_chunks::<4>();
            let (value_chunks, last_values) = values.as_chunks::<4>();
            for (columns, values) in column_chunks.iter().zip(value_chunks) {
                for ((chain, &column), &value) in chains.iter_mut().zip(columns).zip(values) {
                    // SAFETY: columns are below the inputs of the cell, of which `x` has as many.
                    let x = unsafe { *x.get_unchecked(usize::from(column)) };
                    *chain = chain.wrapping_add(value.into() * i32::from(x));
                }
            }
            for ((chain, &column), &value) in chains.iter_mut().zip(last_columns).zip(last_values) {
                *chain = chain.wrapping_add(value.into() * i32::from(x[usize::from(column)]));
            }
            let sum = &mut sums[part.row];
            *sum = chains.iter().fold(*sum, |sum, &chain| sum.wrapping_add(chain));
        }
    }
}

fn many_on(isa: Isa, cell: Cell<'_, i16>, lanes: &[CodeLine], sums: &mut [CodeSums]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(cpu) => cpu.sparse_codes(cell, lanes, sums),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(cpu) => cpu.sparse_codes(cell, lanes, sums),
        _ => many(cell, lanes, sums),
    }
}

/// The definition for many rows, of which `lanes` holds the inputs of a cell and `sums` the sums of a band.
fn many(cell: Cell<'_, i16>, lanes: &[CodeLine], sums: &mut [CodeSums]) {
    assert_eq!(lanes.len(), cell.inputs(), "lanes of all inputs");
    for part in cell {
        let sums = &mut sums[part.row];
        let mut all: CodeSums = [0; CODE_LANES];
        sums.iter().enumerate().for_each(|(b, &sum)| all[place(b)] = sum);
        let (columns, values) = part.entries();
        for (&column, &value) in columns.iter().zip(values) {
            for (sum, &x) in all.iter_mut().zip(&lanes[usize::from(column)].0) {
                *sum = sum.wrapping_add(i32::from(value) * i32::from(x));
            }
        }
        *sums = std::array::from_fn(|b| all[place(b)]);
    }
}

fn as_bytes(codes: &[i8]) -> &[u8] {
    // SAFETY: `i8` and `u8` have the same size, alignment and no invalid values.
    unsafe { std::slice::from_raw_parts(codes.as_ptr().cast(), codes.len()) }
}
