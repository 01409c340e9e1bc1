//! Weights with zeros anywhere, in cells: some outputs times some inputs.
//!
//! ```text
//! band b: the outputs height * b ..      cell c of a band: what its outputs have for the inputs width * c ..
//! within a cell: rows of as many weights each stand together, the shortest first; rows without weights are left out
//! ```
//!
//! A loop over a row ends where it ended for the row before, so that no branch is mispredicted, which costs as much as some
//! twenty weights. Narrow cells keep the inputs of many rows of a batch in the first-level cache: 32 of them are 128 bytes for
//! each input, more than the second-level cache sends per weight in the time that the products take.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::csr::{Csr, Number};
use crate::kernel::tiles::PANEL;

/// Most outputs of a band.
pub(super) const MOST_ROWS: usize = 256;

/// Inputs whose columns fit their type.
const WHOLE: usize = 1 << 16;

/// What the inputs of a narrow cell may fill of the first-level cache, which has 32 KB at least.
const NEAR_BYTES: usize = 24 << 10;

/// The inputs that the weights of a row meet in a narrow cell have to be so many times as many bytes as its sums, which are fetched
/// and stored for them.
const PAYS: usize = 8;

/// Entries after the last row, so that four can be loaded wherever one stands.
const SPARE: usize = 3;

/// Neighbouring rows of a cell with as many weights each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    weights: u32,
    rows: u32,
}

/// Where a cell begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Start {
    run: usize,
    row: usize,
    entry: usize,
}

/// Invariant: `starts` has an entry for each cell, band by band, and one more; none falls; those of the last are the numbers of
/// `runs`, of `rows`, and of `columns` and `values` without [`SPARE`]. The runs of a cell have as many rows and entries together as
/// lie between its start and the next. Rows are below the outputs of their band, columns below the inputs of their cell.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cells<F> {
    outputs: usize,
    inputs: usize,
    height: usize,
    width: usize,
    starts: Vec<Start>,
    runs: Vec<Run>,
    rows: Vec<u16>,
    columns: Vec<u16>,
    values: Vec<F>,
}

impl<F: Number> Cells<F> {
    /// As wide as possible, for one row of a batch.
    pub(super) fn whole<S: Number + Into<F>>(csr: &Csr<S>) -> Self {
        Self::new(csr, WHOLE)
    }

    /// For many rows of a batch, which take so many bytes for each input and for each output: narrow where that pays.
    pub(super) fn near<S: Number + Into<F>>(csr: &Csr<S>, (input, output): (usize, usize)) -> Self {
        let width = NEAR_BYTES / input;
        let met = csr.nonzero().saturating_mul(width).saturating_mul(input);
        let pays =
            met >= PAYS.saturating_mul(output).saturating_mul(csr.outputs()).saturating_mul(csr.inputs());
        Self::new(csr, if pays && csr.inputs() > 2 * width { width } else { WHOLE })
    }

    fn new<S: Number + Into<F>>(csr: &Csr<S>, width: usize) -> Self {
        let (outputs, inputs) = (csr.outputs(), csr.inputs());
        // Parts for several threads, of rows enough to have equals.
        let height = (outputs / 16).next_multiple_of(PANEL).clamp(2 * PANEL, MOST_ROWS);
        let mut all = Self {
            outputs,
            inputs,
            height,
            width,
            starts: Vec::new(),
            runs: Vec::new(),
            rows: Vec::new(),
            columns: Vec::with_capacity(csr.nonzero() + SPARE),
            values: Vec::with_capacity(csr.nonzero() + SPARE),
        };
        for first in (0..outputs).step_by(height) {
            for left in (0..inputs).step_by(width) {
                all.starts.push(all.end());
                all.push_cell(csr, first..outputs.min(first + height), left);
            }
        }
        all.starts.push(all.end());
        all.columns.extend([0; SPARE]);
        all.values.extend([F::default(); SPARE]);
        all
    }

    fn push_cell<S: Number + Into<F>>(&mut self, csr: &Csr<S>, outputs: Range<usize>, left: usize) {
        let entries = |i: usize| {
            let (columns, values) = csr.row(i);
            let at = |column: usize| columns.partition_point(|&c| (c as usize) < column);
            let range = at(left)..at(left.saturating_add(self.width));
            (&columns[range.clone()], &values[range])
        };
        let mut rows: Vec<_> = outputs.clone().map(|i| (i - outputs.start, entries(i))).collect();
        rows.retain(|(_, (columns, _))| !columns.is_empty());
        rows.sort_by_key(|(_, (columns, _))| columns.len());
        for same in rows.chunk_by(|(_, a), (_, b)| a.0.len() == b.0.len()) {
            self.runs.push(Run { weights: same[0].1.0.len() as u32, rows: same.len() as u32 });
        }
        for (row, (columns, values)) in rows {
            self.rows.push(row as u16);
            self.columns.extend(columns.iter().map(|&column| (column as usize - left) as u16));
            self.values.extend(values.iter().map(|&value| value.into()));
        }
    }

    fn end(&self) -> Start {
        Start { run: self.runs.len(), row: self.rows.len(), entry: self.values.len() }
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn nonzero(&self) -> usize {
        self.values.len() - SPARE
    }

    /// Outputs of a band, a multiple of [`PANEL`] and at most [`MOST_ROWS`]; the last one may have fewer.
    pub(super) fn height(&self) -> usize {
        self.height
    }

    /// Inputs of a cell; the last one may have fewer.
    pub(in crate::kernel) fn width(&self) -> usize {
        self.width
    }

    /// Whether one cell holds all inputs.
    pub(super) fn is_whole(&self) -> bool {
        self.inputs <= self.width
    }

    /// Row-major weights `[outputs, inputs]`.
    pub(super) fn to_dense(&self) -> Vec<F> {
        let mut all = vec![F::default(); self.outputs * self.inputs];
        for b in 0..self.outputs.div_ceil(self.height) {
            for (c, cell) in self.band(b).enumerate() {
                for part in cell {
                    let first = (b * self.height + part.row) * self.inputs + c * self.width;
                    let (columns, values) = part.entries();
                    for (&column, &value) in columns.iter().zip(values) {
                        all[first + usize::from(column)] = value;
                    }
                }
            }
        }
        all
    }

    pub(super) fn size_bytes(&self) -> usize {
        size_of_val(self.starts.as_slice())
            + size_of_val(self.runs.as_slice())
            + size_of_val(self.rows.as_slice())
            + size_of_val(self.columns.as_slice())
            + size_of_val(self.values.as_slice())
    }

    /// The cells of band `b`, each for the next [`width`](Self::width) inputs.
    ///
    /// # Panics
    /// Unless `b` is a band.
    pub(super) fn band(&self, b: usize) -> impl Iterator<Item = Cell<'_, F>> {
        let cells = self.inputs.div_ceil(self.width);
        self.starts[b * cells..][..cells + 1].windows(2).enumerate().map(|(c, ends)| {
            let (start, end) = (ends[0], ends[1]);
            Cell {
                inputs: self.width.min(self.inputs - c * self.width),
                run: Run { weights: 0, rows: 0 },
                runs: self.runs[start.run..end.run].iter(),
                rows: self.rows[start.row..end.row].iter(),
                columns: &self.columns[start.entry..end.entry + SPARE],
                values: &self.values[start.entry..end.entry + SPARE],
            }
        })
    }
}

/// What multiplies one row, beside the cells for many.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum One<T, W> {
    /// Those cells.
    Same,
    /// They are narrow: wide ones.
    Cells(Cells<T>),
    /// A layout of its own.
    Windows(W),
}

impl<T: Number, W> One<T, W> {
    /// `windows` where there are any.
    pub(super) fn new<S: Number + Into<T>, M: Number>(
        csr: &Csr<S>,
        many: &Cells<M>,
        windows: Option<W>,
    ) -> Self {
        match windows {
            Some(windows) => Self::Windows(windows),
            None if many.is_whole() => Self::Same,
            None => Self::Cells(Cells::whole(csr)),
        }
    }

    /// What it adds to the bytes of the cells for many rows.
    pub(super) fn size_bytes(&self, of: impl Fn(&W) -> usize) -> usize {
        match self {
            Self::Same => 0,
            Self::Cells(cells) => cells.size_bytes(),
            Self::Windows(windows) => of(windows),
        }
    }
}

/// The sums of a band, which are written as far as the band needs them.
pub(super) struct Sums<T> {
    memory: [MaybeUninit<T>; MOST_ROWS],
    /// So many are written.
    used: usize,
}

impl<T: Copy> Sums<T> {
    /// None.
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { memory: [const { MaybeUninit::uninit() }; MOST_ROWS], used: 0 }
    }

    /// Those of so many outputs, and up to a whole panel, all `zero`.
    #[inline(always)]
    pub(super) fn begin(&mut self, outputs: usize, zero: T) -> &mut [T] {
        let count = outputs.next_multiple_of(PANEL);
        self.memory[..count].iter_mut().for_each(|sums| {
            sums.write(zero);
        });
        self.used = count;
        // SAFETY: so many were written, and are borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), count) }
    }

    /// Whole panels of them.
    #[inline(always)]
    pub(super) fn get(&self) -> &[T] {
        // SAFETY: so many were written.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.used) }
    }
}

/// The rows of a cell that are still to come.
#[derive(Clone, Debug)]
pub struct Cell<'a, F> {
    inputs: usize,
    run: Run,
    runs: std::slice::Iter<'a, Run>,
    rows: std::slice::Iter<'a, u16>,
    columns: &'a [u16],
    values: &'a [F],
}

/// What a row has in a cell.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a, F> {
    /// Below the outputs of the band.
    pub(in crate::kernel) row: usize,
    count: usize,
    /// `count` of them and up to three more, a multiple of four.
    columns: &'a [u16],
    /// As many.
    values: &'a [F],
}

impl<F> Cell<'_, F> {
    /// Inputs of the cell.
    pub(in crate::kernel) fn inputs(&self) -> usize {
        self.inputs
    }
}

impl<'a, F> Iterator for Cell<'a, F> {
    type Item = Part<'a, F>;

    #[inline(always)]
    fn next(&mut self) -> Option<Part<'a, F>> {
        if self.run.rows == 0 {
            self.run = *self.runs.next()?;
        }
        self.run.rows -= 1;
        let (row, count) = (usize::from(*self.rows.next()?), self.run.weights as usize);
        let padded = count.next_multiple_of(4);
        debug_assert!(padded <= self.columns.len() && self.columns.len() == self.values.len());
        // SAFETY: the invariant of `Cells`: as many entries as the runs say, and `SPARE` more.
        let part = unsafe { (self.columns.get_unchecked(..padded), self.values.get_unchecked(..padded)) };
        // SAFETY: as above.
        let later = unsafe { (self.columns.get_unchecked(count..), self.values.get_unchecked(count..)) };
        (self.columns, self.values) = later;
        Some(Part { row, count, columns: part.0, values: part.1 })
    }
}

impl<'a, F> Part<'a, F> {
    /// Columns, below the inputs of the cell, and values.
    #[inline(always)]
    pub(in crate::kernel) fn entries(&self) -> (&'a [u16], &'a [F]) {
        // SAFETY: there are at least so many.
        unsafe { (self.columns.get_unchecked(..self.count), self.values.get_unchecked(..self.count)) }
    }

    /// The entries in fours, and how many of the last four there are if not all, else none. What else those hold belongs to
    /// others: any number for any column.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(in crate::kernel) fn fours(&self) -> (&'a [[u16; 4]], &'a [[F; 4]], usize) {
        (self.columns.as_chunks().0, self.values.as_chunks().0, self.count % 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every entry as (output, input, value), in order of outputs.
    fn entries(cells: &Cells<f32>) -> Vec<(usize, usize, f32)> {
        let bands = cells.outputs.div_ceil(cells.height);
        let mut all = Vec::new();
        for b in 0..bands {
            for (c, cell) in cells.band(b).enumerate() {
                let mut longest = 0;
                for part in cell {
                    let (columns, values) = part.entries();
                    assert!(columns.len() >= longest.max(1), "sorted by length");
                    longest = columns.len();
                    all.extend(columns.iter().zip(values).map(|(&column, &value)| {
                        (b * cells.height + part.row, c * cells.width + usize::from(column), value)
                    }));
                }
            }
        }
        all.sort_by_key(|&(i, j, _)| (i, j));
        all
    }

    #[test]
    fn hold_every_weight_once() {
        let (outputs, inputs) = (300, 1000);
        for every in [1, 7, 400] {
            let mut dense = vec![0.0f32; outputs * inputs];
            dense.iter_mut().enumerate().step_by(every).for_each(|(at, w)| *w = 1.0 + at as f32);
            let csr = Csr::<f32>::from_dense(&dense, outputs, inputs);
            let expected: Vec<_> = (0..outputs)
                .flat_map(|i| {
                    let (columns, values) = csr.row(i);
                    columns.iter().zip(values).map(move |(&column, &value)| (i, column as usize, value))
                })
                .collect();
            let (near, whole) = (Cells::near(&csr, (128, 128)), Cells::whole(&csr));
            assert_eq!((near.is_whole(), whole.is_whole()), (every == 400, true));
            assert_eq!(entries(&near), expected);
            assert_eq!(entries(&whole), expected);
            assert_eq!(near.nonzero(), csr.nonzero());
        }
    }

    #[test]
    fn more_inputs_than_columns_count_make_several_cells() {
        let mut dense = vec![0.0f32; 2 * 70_000];
        (dense[5], dense[65_535], dense[65_536], dense[139_999]) = (1.0, 2.0, 3.0, 4.0);
        let cells = Cells::whole(&Csr::<f32>::from_dense(&dense, 2, 70_000));
        assert!(!cells.is_whole());
        assert_eq!(entries(&cells), [(0, 5, 1.0), (0, 65_535, 2.0), (0, 65_536, 3.0), (1, 69_999, 4.0)]);
    }
}
