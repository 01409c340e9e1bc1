//! Weights with zeros anywhere, times one row: 16 outputs side by side.
//!
//! ```text
//! band b: the outputs height * b ..      lane: the weights of an output, or a part of them      group: 16 lanes about as long
//! step k of a group: the k-th weight of each of its lanes, and the input that it meets
//! sum of lane l:  sum over k of value[k][l] * x[column[k][l]]      y: the sums of the lanes of each output
//! ```
//!
//! A sum is a lane, so that it needs no end of its own; and the loop over the steps ends where it ended for the group before.
//! A lane shorter than its group has zeros in the places that it does not need (Kreutzer et al. 2014, "SELL-C-sigma", doi
//! 10.1137/130930352); that they stay few, outputs with twice as many weights as others are cut. Of an infinite input those
//! zeros make NaN, so callers use cells for such.

use std::ops::Range;

use super::csr::Csr;
use super::lanes::{LINE, Line};
use super::real::SparseReal;
use crate::kernel::Isa;

/// Inputs whose columns fit their type.
const MOST_INPUTS: usize = 1 << 16;

/// Most outputs of a band.
const MOST_ROWS: usize = 256;

/// Groups whose sums are on their way at a time.
const TOGETHER: usize = 8;

/// No lane is cut to fewer weights.
const LEAST: usize = 16;

/// Invariant: `steps` and `rows` have an entry for each group, `columns` and `values` as many places as all steps together. Rows
/// are below the outputs of their band, columns below `inputs`. `bands` has an entry for each band, and one more.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Groups<F> {
    inputs: usize,
    height: usize,
    bands: Vec<Start>,
    rows: Vec<[u8; LINE]>,
    steps: Vec<u32>,
    columns: Vec<[u16; LINE]>,
    values: Vec<Line<F>>,
}

/// Where a band begins.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Start {
    group: usize,
    place: usize,
}

/// Some weights of an output.
struct Lane<'a, F> {
    row: u8,
    columns: &'a [u32],
    values: &'a [F],
}

/// Some groups.
#[derive(Clone, Copy, Debug)]
pub struct Steps<'a, F> {
    pub(in crate::kernel) inputs: usize,
    /// How many each group has.
    pub(in crate::kernel) steps: &'a [u32],
    /// Of all of them, one after the other; below the inputs.
    pub(in crate::kernel) columns: &'a [[u16; LINE]],
    pub(in crate::kernel) values: &'a [Line<F>],
}

impl<F: SparseReal> Groups<F> {
    /// `None` for more inputs than columns count.
    pub(super) fn new(csr: &Csr<F>) -> Option<Self> {
        if csr.inputs() > MOST_INPUTS {
            return None;
        }
        // Parts for several threads, of rows enough to have equals.
        let height = (csr.outputs() / 4).next_multiple_of(LINE).clamp(MOST_ROWS / 2, MOST_ROWS);
        let mut all = Self {
            inputs: csr.inputs(),
            height,
            bands: Vec::new(),
            rows: Vec::new(),
            steps: Vec::new(),
            columns: Vec::new(),
            values: Vec::new(),
        };
        for first in (0..csr.outputs()).step_by(height) {
            all.bands.push(all.end());
            let mut lanes = lanes(csr, first..csr.outputs().min(first + height));
            lanes.sort_by_key(|lane| lane.columns.len());
            for lanes in lanes.chunks(LINE) {
                all.push(lanes);
            }
        }
        all.bands.push(all.end());
        Some(all)
    }

    /// The shortest lane comes first.
    fn push(&mut self, lanes: &[Lane<'_, F>]) {
        let steps = lanes.last().map_or(0, |longest| longest.columns.len());
        let first = self.values.len();
        self.steps.push(steps as u32);
        self.rows.push(std::array::from_fn(|l| lanes.get(l).map_or(0, |lane| lane.row)));
        self.columns.resize(first + steps, [0; LINE]);
        self.values.resize(first + steps, Line([F::default(); LINE]));
        for (l, lane) in lanes.iter().enumerate() {
            for (k, (&column, &value)) in lane.columns.iter().zip(lane.values).enumerate() {
                self.columns[first + k][l] = column as u16;
                self.values[first + k].0[l] = value;
            }
        }
    }

    fn end(&self) -> Start {
        Start { group: self.steps.len(), place: self.values.len() }
    }

    /// Outputs of a band; the last one may have fewer.
    pub(super) fn height(&self) -> usize {
        self.height
    }

    pub(super) fn size_bytes(&self) -> usize {
        size_of_val(self.bands.as_slice())
            + size_of_val(self.rows.as_slice())
            + size_of_val(self.steps.as_slice())
            + size_of_val(self.columns.as_slice())
            + size_of_val(self.values.as_slice())
    }

    /// Sums of the outputs `at ..`, which begin with a band, as many as `y` is long, for finite numbers `x`.
    pub(super) fn multiply(&self, isa: Isa, at: usize, x: &[F], y: &mut [F]) {
        assert_eq!(at % self.height, 0, "whole bands");
        for (b, y) in y.chunks_mut(self.height).enumerate() {
            let b = at / self.height + b;
            let (Start { group, mut place }, end) = (self.bands[b], self.bands[b + 1]);
            let (steps, rows) = (&self.steps[group..end.group], &self.rows[group..end.group]);
            y.fill(F::default());
            for (steps, rows) in steps.chunks(TOGETHER).zip(rows.chunks(TOGETHER)) {
                let places = place..place + steps.iter().sum::<u32>() as usize;
                place = places.end;
                let (columns, values) = (&self.columns[places.clone()], &self.values[places]);
                let mut sums = [Line([F::default(); LINE]); TOGETHER];
                F::groups(isa, Steps { inputs: self.inputs, steps, columns, values }, x, &mut sums);
                for (rows, sums) in rows.iter().zip(&sums) {
                    for (&row, &sum) in rows.iter().zip(&sums.0) {
                        let y = &mut y[usize::from(row)];
                        *y = *y + sum;
                    }
                }
            }
        }
    }
}

/// Those of some outputs, none longer than twice the average where that is possible.
fn lanes<F: SparseReal>(csr: &Csr<F>, outputs: Range<usize>) -> Vec<Lane<'_, F>> {
    let weights: usize = outputs.clone().map(|i| csr.row(i).0.len()).sum();
    let most = (2 * weights / outputs.len()).min(weights.div_ceil(LINE)).max(LEAST);
    let mut all = Vec::with_capacity(2 * outputs.len());
    for i in outputs.clone() {
        let (columns, values) = csr.row(i);
        let parts = columns.len().div_ceil(most);
        for part in 0..parts {
            let entries = part * columns.len() / parts..(part + 1) * columns.len() / parts;
            all.push(Lane {
                row: (i - outputs.start) as u8,
                columns: &columns[entries.clone()],
                values: &values[entries],
            });
        }
    }
    all
}

/// The definition: the sums of each group.
pub(in crate::kernel) fn groups<F: SparseReal>(groups: Steps<'_, F>, x: &[F], sums: &mut [Line<F>]) {
    assert_eq!(x.len(), groups.inputs, "length of the input");
    let mut first = 0;
    for (&steps, sums) in groups.steps.iter().zip(sums) {
        let places = first..first + steps as usize;
        for (columns, values) in groups.columns[places.clone()].iter().zip(&groups.values[places]) {
            for l in 0..LINE {
                sums.0[l] = values.0[l] * x[usize::from(columns[l])] + sums.0[l];
            }
        }
        first += steps as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places for each weight of a layer whose output `i` has the first `weights(i)` inputs; checks the sums.
    fn places(outputs: usize, inputs: usize, weights: impl Fn(usize) -> usize) -> f64 {
        let mut csr = Csr::<f32>::new(inputs);
        (0..outputs).for_each(|i| csr.push_row((0..weights(i)).map(|j| (j, (i % 5 + 1) as f32))));
        let groups = Groups::new(&csr).unwrap();
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; outputs];
            groups.multiply(isa, 0, &vec![2.0; inputs], &mut y);
            assert!(y.iter().enumerate().all(|(i, &y)| y == (2 * (i % 5 + 1) * weights(i)) as f32), "{isa}");
            if let Some(later) = y.get_mut(groups.height()..) {
                let before = later.to_vec();
                later.fill(f32::NAN);
                groups.multiply(isa, groups.height(), &vec![2.0; inputs], later);
                assert_eq!(later, before, "{isa}");
            }
        }
        (groups.values.len() * LINE) as f64 / csr.nonzero().max(1) as f64
    }

    #[test]
    fn few_places_are_not_needed() {
        assert_eq!(places(512, 100, |_| 40), 1.0);
        assert_eq!(places(512, 100, |_| 0), 0.0);
        assert!(places(1000, 500, |i| 30 + i * 7 % 21) < 1.1);
        // One output has nearly all: it is cut.
        assert!(places(1, 4096, |_| 4096) < 1.1);
        assert!(places(300, 4096, |i| if i == 77 { 4096 } else { 3 }) < 2.0);
        assert!(places(512, 4096, |i| if i % 16 == 0 { 4000 } else { 20 }) < 1.3);
    }

    #[test]
    fn more_inputs_than_columns_count_are_left_to_cells() {
        assert!(Groups::new(&Csr::<f32>::new(1 << 16)).is_some());
        assert!(Groups::new(&Csr::<f32>::new((1 << 16) + 1)).is_none());
    }
}
