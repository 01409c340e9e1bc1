//! Real weights packed for the product: panels of 32 columns in strips, `[panel][strip][k][16]` in `f32`, `[panel][strip][k][8]`
//! in `f64`, zero padded.
//!
//! An input of a strip is one cache line, and a strip is read from beginning to end: a pass that takes few columns at a time uses
//! whatever the processor fetches for it.

use std::ops::Range;

use super::Isa;
use super::matrix::Matrix;
use super::pack::pack;
use super::pages::filled;
use super::real::Real;
use super::tiles::PANEL;

/// Memory for one input of 32 columns, on whole cache lines.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step<F>(pub(super) [F; PANEL]);

/// Some terms of a panel, or of several, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Strips<'p, F> {
    numbers: &'p [F],
    /// Terms of each panel; of these, `count` from `first` on.
    depth: usize,
    first: usize,
    count: usize,
}

impl<'p, F: Real> Strips<'p, F> {
    /// These `terms` of panels that have `depth` steps each.
    pub(super) fn new(panels: &'p [Step<F>], depth: usize, terms: Range<usize>) -> Self {
        assert!(terms.start <= terms.end && terms.end <= depth, "terms {terms:?} of {depth}");
        Self { numbers: numbers(panels), depth, first: terms.start, count: terms.len() }
    }

    /// Some of its terms.
    #[inline(always)]
    pub(super) fn part(self, terms: Range<usize>) -> Self {
        Self { first: self.first + terms.start, count: terms.len(), ..self }
    }

    /// How many terms.
    #[inline(always)]
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The columns `LINE * s ..` of each term.
    #[inline(always)]
    pub(super) fn strip(&self, s: usize) -> &'p [F] {
        &self.numbers[F::LINE * (s * self.depth + self.first)..][..F::LINE * self.count]
    }
}

/// Weights packed for the product.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedReal<F> {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) steps: Vec<Step<F>>,
}

impl<F: Real> PackedReal<F> {
    /// Packs weights `[outputs, inputs]` of any strides.
    pub fn new(weights: Matrix<'_, F>) -> Self {
        let (outputs, inputs) = (weights.rows(), weights.columns());
        let panels = outputs.div_ceil(PANEL);
        let mut steps = filled(Step([F::default(); PANEL]), panels * inputs);
        for panel in 0..panels {
            pack_panel(Isa::best(), weights, panel, &mut steps[panel * inputs..(panel + 1) * inputs]);
        }
        Self { outputs, inputs, steps }
    }

    /// All weights, row-major `[outputs, inputs]`, as they were.
    pub fn weights(&self) -> Vec<F> {
        let mut all = vec![F::default(); self.outputs * self.inputs];
        for (j, row) in all.chunks_exact_mut(self.inputs.max(1)).enumerate() {
            let panel = &self.steps[j / PANEL * self.inputs..][..self.inputs];
            let strip = Strips::new(panel, self.inputs, 0..self.inputs).strip(j % PANEL / F::LINE);
            row.iter_mut()
                .zip(strip[j % F::LINE..].iter().step_by(F::LINE))
                .for_each(|(w, &number)| *w = number);
        }
        all
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

    /// Bytes that one product reads.
    pub fn size_bytes(&self) -> usize {
        size_of_val(self.steps.as_slice())
    }
}

/// The outputs `32 * panel ..` of weights `[outputs, k]` to a panel, zero padded.
pub(super) fn pack_panel<F: Real>(isa: Isa, weights: Matrix<'_, F>, panel: usize, steps: &mut [Step<F>]) {
    let strip = F::LINE * weights.columns();
    if strip == 0 {
        return;
    }
    for (s, into) in numbers_mut(steps).chunks_exact_mut(strip).enumerate() {
        let first = (panel * PANEL + s * F::LINE).min(weights.rows());
        let used = F::LINE.min(weights.rows() - first);
        if used < F::LINE {
            into.fill(F::default());
        }
        pack(isa, weights.row_range(first, used), into, F::LINE);
    }
}

/// What the memory holds.
fn numbers<F: Real>(steps: &[Step<F>]) -> &[F] {
    // SAFETY: a `Step` is `PANEL` numbers without padding: 128 or 256 bytes, a multiple of its alignment.
    unsafe { std::slice::from_raw_parts(steps.as_ptr().cast(), steps.len() * PANEL) }
}

/// The same, to be written.
pub(super) fn numbers_mut<F: Real>(steps: &mut [Step<F>]) -> &mut [F] {
    // SAFETY: as for `numbers`, and the memory is borrowed exclusively.
    unsafe { std::slice::from_raw_parts_mut(steps.as_mut_ptr().cast(), steps.len() * PANEL) }
}
