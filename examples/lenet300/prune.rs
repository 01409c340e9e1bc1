//! Pruning while the student learns: a price on weights, neurons and pixels makes the needless ones small, and the smallest go.
//!
//! ```text
//! 3 % .. 100 %   gradient + l1 * sign(w) + group * w / |w of its neuron| + group * w / |w of its pixel|
//! 20 % .. 95 %   of all weights, in one ranking by size, all but `keep` go, cubic in time
//! ```
//!
//! The last layer's neurons and the later layers' inputs are free of the group price (Wen et al., "Learning structured
//! sparsity in deep neural networks", 2016; the schedule: Zhu & Gupta, 2017).

use std::ops::ControlFlow;

use trimnet::ndarray::{Array1, ArrayView2, Axis, Zip};
use trimnet::nn::{Callback, Grads, Mlp, Step};
use trimnet::{Mask, Result};

const EVERY: usize = 20;

/// The prices, and what is left in the end.
pub struct Pruning {
    pub l1: f32,
    pub group: f32,
    pub keep: usize,
    /// Steps before the fit at hand, and of the plan.
    pub done: usize,
    pub steps: usize,
}

impl Pruning {
    fn share(&self, from: f64, to: f64) -> f64 {
        ((self.done as f64 / self.steps as f64 - from) / (to - from)).clamp(0.0, 1.0)
    }
}

/// One over the norm of each row or column.
fn per_norm(w: ArrayView2<'_, f32>, axis: Axis, price: f32) -> Array1<f32> {
    w.map_axis(axis, |w| price / w.iter().map(|w| w * w).sum::<f32>().sqrt().max(1e-8))
}

impl Callback<f32> for Pruning {
    fn on_grads(&mut self, mlp: &Mlp<f32>, grads: &mut Grads<f32>, _: &Step) -> Result<()> {
        if self.share(0.0, 1.0) < 0.03 {
            return Ok(());
        }
        let last = mlp.linears().count() - 1;
        for (index, (linear, mut dw)) in mlp.linears().zip(grads.dweights_mut()).enumerate() {
            let w = linear.weight();
            let of_group = |price| if price { self.group } else { 0.0 };
            let neurons = per_norm(w, Axis(1), of_group(index < last));
            let pixels = per_norm(w, Axis(0), of_group(index == 0));
            for ((mut dw, w), neuron) in dw.rows_mut().into_iter().zip(w.rows()).zip(neurons) {
                Zip::from(&mut dw).and(w).and(&pixels).for_each(|dw, &w, pixel| {
                    if w != 0.0 {
                        *dw += self.l1.copysign(w) + w * (neuron + pixel);
                    }
                });
            }
        }
        Ok(())
    }

    fn on_step(&mut self, mlp: &mut Mlp<f32>, step: &Step) -> Result<ControlFlow<()>> {
        self.done += 1;
        let due = self.done.is_multiple_of(EVERY) || step.step + 1 == step.steps;
        let gone = 1.0 - (1.0 - self.share(0.2, 0.95)).powi(3);
        let mut sizes: Vec<f32> = Vec::new();
        if due && gone > 0.0 {
            mlp.linears().for_each(|linear| sizes.extend(linear.weight().iter().map(|w| w.abs())));
        }
        let go = (sizes.len().saturating_sub(self.keep) as f64 * gone) as usize;
        if go > 0 {
            let (_, &mut smallest, _) = sizes.select_nth_unstable_by(go, f32::total_cmp);
            for linear in mlp.linears_mut() {
                linear.set_mask(Mask::new(linear.weight().mapv(|w| w != 0.0 && w.abs() >= smallest)))?;
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
