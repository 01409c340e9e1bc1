//! Real weights packed for the product: panels of 32 columns, `[panel][k][32]`, zero padded.

use super::Isa;
use super::matrix::Matrix;
use super::pack::pack;
use super::pages::filled;
use super::real::Real;
use super::tiles::PANEL;

/// One input of 32 columns, on cache lines of its own.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step<F>(pub(super) [F; PANEL]);

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
            let steps = &self.steps[j / PANEL * self.inputs..][..self.inputs];
            row.iter_mut().zip(steps).for_each(|(w, step)| *w = step.0[j % PANEL]);
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

/// The outputs `32 * panel ..` of weights `[outputs, k]` to `[k][32]`, zero padded.
pub(super) fn pack_panel<F: Real>(isa: Isa, weights: Matrix<'_, F>, panel: usize, steps: &mut [Step<F>]) {
    let first = panel * PANEL;
    let used = PANEL.min(weights.rows() - first);
    if used < PANEL {
        steps.iter_mut().for_each(|step| step.0[used..].fill(F::default()));
    }
    // SAFETY: a `Step` is `PANEL` numbers without padding: 128 or 256 bytes, a multiple of its alignment.
    let into = unsafe { std::slice::from_raw_parts_mut(steps.as_mut_ptr().cast::<F>(), steps.len() * PANEL) };
    pack(isa, weights.row_range(first, used), into, PANEL);
}
