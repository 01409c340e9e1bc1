//! Weights with zeros anywhere, times one row: the layout for processors that look up 16 of 32 numbers at once.
//!
//! ```text
//! slice s: the outputs 16 s ..       window w: the inputs 32 w ..
//! step k of a window: for each of the 16 outputs, its k-th weight within the window, and which of the 32 inputs it meets
//! lane l of chain k:  sum over w of value[s][w][k][l] * x[32 w + index[s][w][k][l]]
//! y = chain 0 + chain 1 + ...  + the rest
//! ```
//!
//! The 32 inputs of a window sit in two registers, from which one permutation (`vpermt2ps`) takes 16: no load per weight.
//! Every window has the same number of steps, so that there is no branch to mispredict; a place that an output does not
//! need holds a zero, and weights beyond the steps go to the rest, see `groups.rs`: all of them where there are few. A step costs
//! about as much as seven weights of the rest, hence [`PAYS`].
//!
//! A zero in a place that is not needed makes NaN of an infinite input, so callers use cells alone for those.

use std::ops::Range;

use super::csr::Csr;
use super::groups::Groups;
use super::lanes::{GROUP, LINE, Line};
use super::real::{SparseReal, SparseScratch};
use crate::kernel::Isa;

/// Inputs of a window.
pub(in crate::kernel) const WINDOW: usize = 2 * LINE;

/// Most steps: as many chains have to stay in registers.
pub(in crate::kernel) const MOST_STEPS: usize = 12;

/// A step has to take so many weights of each slice and window on average.
const PAYS: usize = 7;

/// Invariant: `slices * windows * steps` places of 16 lanes in `values` and `indices`, with `steps <= MOST_STEPS`, `rest`
/// with as many rows as outputs, and `inputs <= 32 * windows`.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::kernel) struct Windows<F> {
    inputs: usize,
    windows: usize,
    steps: usize,
    values: Vec<Line<F>>,
    /// Below 32.
    indices: Vec<[u8; LINE]>,
    rest: Groups<F>,
}

/// The places of some slices.
#[derive(Clone, Copy, Debug)]
pub struct Slices<'a, F> {
    pub(in crate::kernel) windows: usize,
    pub(in crate::kernel) steps: usize,
    pub(in crate::kernel) values: &'a [Line<F>],
    pub(in crate::kernel) indices: &'a [[u8; LINE]],
}

impl<F: SparseReal> Windows<F> {
    /// `None` for more inputs than the rest can have.
    pub(super) fn new(csr: &Csr<F>) -> Option<Self> {
        let windows = csr.inputs().div_ceil(WINDOW);
        let slices = csr.outputs().div_ceil(LINE);
        // taken[k]: how many weights step k would take.
        let mut taken = [0; MOST_STEPS];
        for i in 0..csr.outputs() {
            each_place(csr.row(i).0, |_, _, step| {
                if let Some(taken) = taken.get_mut(step) {
                    *taken += 1;
                }
            });
        }
        let steps = taken.iter().take_while(|&&taken| taken > PAYS * slices * windows).count();
        let mut values = vec![Line([F::default(); LINE]); slices * windows * steps];
        let mut indices = vec![[0; LINE]; slices * windows * steps];
        let mut rest = Csr::new(csr.inputs());
        let mut late = Vec::new();
        for i in 0..csr.outputs() {
            let (columns, row) = csr.row(i);
            late.clear();
            each_place(columns, |entry, window, step| {
                let column = columns[entry] as usize;
                if step < steps {
                    let place = (i / LINE * windows + window) * steps + step;
                    values[place].0[i % LINE] = row[entry];
                    indices[place][i % LINE] = (column % WINDOW) as u8;
                } else {
                    late.push((column, row[entry]));
                }
            });
            rest.push_row(late.iter().copied());
        }
        let rest = Groups::new(&rest)?;
        Some(Self { inputs: csr.inputs(), windows, steps, values, indices, rest })
    }

    /// Outputs that are computed together.
    pub(super) fn height(&self) -> usize {
        self.rest.height()
    }

    pub(super) fn size_bytes(&self) -> usize {
        size_of_val(self.values.as_slice()) + size_of_val(self.indices.as_slice()) + self.rest.size_bytes()
    }

    /// The input on cache lines, padded with zeros to whole windows.
    pub(super) fn prepare<'s>(&self, x: &[F], scratch: &'s mut SparseScratch<F>) -> &'s [Line<F>] {
        assert_eq!(x.len(), self.inputs, "length of the input");
        if self.steps == 0 {
            return &[];
        }
        let lines = scratch.lines(2 * self.windows);
        for (line, x) in lines.iter_mut().zip(x.chunks(LINE)) {
            line.0[x.len()..].fill(F::default());
            line.0[..x.len()].copy_from_slice(x);
        }
        lines[x.len().div_ceil(LINE)..].fill(Line([F::default(); LINE]));
        lines
    }

    /// Sums of the outputs `rows`, which begin at a multiple of [`height`](Self::height); `lines` are the finite numbers `x` prepared.
    pub(super) fn multiply(&self, isa: Isa, rows: Range<usize>, lines: &[Line<F>], x: &[F], y: &mut [F]) {
        assert_eq!(rows.len(), y.len(), "sums of all outputs");
        self.rest.multiply(isa, rows.start, x, y);
        if self.steps == 0 {
            return;
        }
        // In blocks, so that the sums stay on the stack.
        const BLOCK: usize = 16;
        let mut sums = [Line([F::default(); LINE]); BLOCK];
        for (b, y) in y.chunks_mut(BLOCK * LINE).enumerate() {
            let first = rows.start / LINE + b * BLOCK;
            let sums = &mut sums[..y.len().div_ceil(LINE)];
            let per_slice = self.windows * self.steps;
            let places = first * per_slice..(first + sums.len()) * per_slice;
            let (values, indices) = (&self.values[places.clone()], &self.indices[places]);
            F::slices(isa, Slices { windows: self.windows, steps: self.steps, values, indices }, lines, sums);
            for (y, sums) in y.chunks_mut(GROUP).zip(sums.iter()) {
                for (y, &sum) in y.iter_mut().zip(&sums.0) {
                    *y = sum + *y;
                }
            }
        }
    }
}

/// Calls `place(entry, window, step)` for the entries of a row.
fn each_place(columns: &[u32], mut place: impl FnMut(usize, usize, usize)) {
    let (mut last, mut step) = (usize::MAX, 0);
    for (entry, &column) in columns.iter().enumerate() {
        let window = column as usize / WINDOW;
        step = if window == last { step + 1 } else { 0 };
        last = window;
        place(entry, window, step);
    }
}

/// The definition: the sums of each slice.
pub(in crate::kernel) fn slices<F: SparseReal>(slices: Slices<'_, F>, x: &[Line<F>], y: &mut [Line<F>]) {
    let Slices { windows, steps, values, indices } = slices;
    for (s, y) in y.iter_mut().enumerate() {
        let mut chains = [[F::default(); LINE]; MOST_STEPS];
        for w in 0..windows {
            for (k, chain) in chains[..steps].iter_mut().enumerate() {
                let place = (s * windows + w) * steps + k;
                for l in 0..LINE {
                    let index = usize::from(indices[place][l]);
                    let x = x[2 * w + index / LINE].0[index % LINE];
                    chain[l] = values[place].0[l] * x + chain[l];
                }
            }
        }
        y.0 = chains[0];
        for chain in &chains[1..steps] {
            y.0 = std::array::from_fn(|l| y.0[l] + chain[l]);
        }
    }
}
