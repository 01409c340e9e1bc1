//! Sparse weights of codes times one row, for processors that look up 64 of 128 bytes at once.
//!
//! ```text
//! slice s: the outputs 16 s ..       window w: the inputs 128 w ..
//! step k of a window: for each of the 16 outputs, its weights 4 k .. 4 k + 4 within the window, and which inputs they meet
//! sum of lane l: over w, k and c < 4 of value[s][w][k][l][c] * x[128 w + index[s][w][k][l][c]]
//! ```
//!
//! As `windows.rs` for real numbers: one permutation (`vpermi2b`) takes 64 inputs, one dot product (`vpdpbusd`) multiplies
//! them and adds in fours. Places that are not needed hold a zero, which no integer minds.

use super::cells::Cells;
use super::codes::one;
use super::csr::Csr;
use crate::kernel::Isa;

/// Inputs of a window.
pub(in crate::kernel) const WINDOW: usize = 128;

/// Outputs of a slice.
pub(in crate::kernel) const SLICE: usize = 16;

/// Most steps.
pub(in crate::kernel) const MOST_STEPS: usize = 12;

/// A step has to take so many weights of each slice and window on average.
const PAYS: usize = 4;

/// 16 outputs, four places each.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct CodeStep {
    pub(in crate::kernel) values: [[i8; 4]; SLICE],
    /// Below 128.
    pub(in crate::kernel) indices: [[u8; 4]; SLICE],
}

/// Invariant: `slices * windows * steps` places in `places`, with `1 <= steps <= MOST_STEPS`, `rest` with as many rows as
/// outputs, and its inputs at most `128 * windows`.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::kernel) struct CodeWindows {
    windows: usize,
    steps: usize,
    places: Vec<CodeStep>,
    rest: Cells<i16>,
}

/// The places of one slice.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernel) struct CodeSlice<'a> {
    pub(in crate::kernel) steps: usize,
    pub(in crate::kernel) places: &'a [CodeStep],
}

impl CodeWindows {
    /// `None` where cells alone are as good, or the processor has no such look-up.
    pub(super) fn new(isa: Isa, csr: &Csr<i8>) -> Option<Self> {
        if !looks_up(isa) {
            return None;
        }
        let windows = csr.inputs().div_ceil(WINDOW);
        let slices = csr.outputs().div_ceil(SLICE);
        let mut taken = [0; MOST_STEPS];
        for i in 0..csr.outputs() {
            each_place(csr.row(i).0, |_, _, place| {
                if let Some(taken) = taken.get_mut(place / 4) {
                    *taken += 1;
                }
            });
        }
        let steps = taken.iter().take_while(|&&taken| taken > PAYS * slices * windows).count();
        if steps == 0 {
            return None;
        }
        let none = CodeStep { values: [[0; 4]; SLICE], indices: [[0; 4]; SLICE] };
        let mut places = vec![none; slices * windows * steps];
        let mut rest = Csr::new(csr.inputs());
        let mut late = Vec::new();
        for i in 0..csr.outputs() {
            let (columns, row) = csr.row(i);
            late.clear();
            each_place(columns, |entry, window, place| {
                let column = columns[entry] as usize;
                if place / 4 < steps {
                    let step = &mut places[(i / SLICE * windows + window) * steps + place / 4];
                    step.values[i % SLICE][place % 4] = row[entry];
                    step.indices[i % SLICE][place % 4] = (column % WINDOW) as u8;
                } else {
                    late.push((column, row[entry]));
                }
            });
            rest.push_row(late.iter().copied());
        }
        Some(Self { windows, steps, places, rest: Cells::whole(&rest) })
    }

    pub(super) fn size_bytes(&self) -> usize {
        size_of_val(self.places.as_slice()) + self.rest.size_bytes()
    }

    /// Adds to the sums of band `b` of cells; `x` is padded to whole windows.
    pub(super) fn multiply(&self, isa: Isa, b: usize, x: &[u8], sums: &mut [i32]) {
        assert_eq!(x.len(), self.windows * WINDOW, "whole windows");
        one(&self.rest, b, &x[..self.rest.inputs()], sums);
        let per_slice = self.windows * self.steps;
        let slices = self.places.chunks_exact(per_slice).skip(b * self.rest.height() / SLICE);
        for (places, sums) in slices.zip(sums.as_chunks_mut::<SLICE>().0) {
            slice_on(isa, CodeSlice { steps: self.steps, places }, x, sums);
        }
    }
}

/// Calls `place(entry, window, which of the row's weights in the window)` for the entries of a row.
fn each_place(columns: &[u32], mut place: impl FnMut(usize, usize, usize)) {
    let (mut last, mut which) = (usize::MAX, 0);
    for (entry, &column) in columns.iter().enumerate() {
        let window = column as usize / WINDOW;
        which = if window == last { which + 1 } else { 0 };
        last = window;
        place(entry, window, which);
    }
}

fn looks_up(isa: Isa) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(cpu) => cpu.vbmi().is_some(),
        _ => false,
    }
}

fn slice_on(isa: Isa, slice: CodeSlice<'_>, x: &[u8], sums: &mut [i32; SLICE]) {
    #[cfg(target_arch = "x86_64")]
    if let Isa::Avx512(cpu) = isa
        && let Some(vbmi) = cpu.vbmi()
    {
        vbmi.code_slice(slice, x, sums);
        return;
    }
    let _ = isa;
    code_slice(slice, x, sums);
}

/// The definition: adds the sums of a slice.
pub(in crate::kernel) fn code_slice(slice: CodeSlice<'_>, x: &[u8], sums: &mut [i32; SLICE]) {
    let windows = x.as_chunks::<WINDOW>().0;
    for (places, x) in slice.places.chunks_exact(slice.steps).zip(windows) {
        for place in places {
            for ((sum, values), indices) in sums.iter_mut().zip(&place.values).zip(&place.indices) {
                for (&value, &index) in values.iter().zip(indices) {
                    *sum = sum.wrapping_add(i32::from(value) * i32::from(x[usize::from(index)]));
                }
            }
        }
    }
}
