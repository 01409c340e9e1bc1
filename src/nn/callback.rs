//! What may look at, change or stop training as it runs: progress bars, pruning schedules.

use std::ops::ControlFlow;

use super::grads::Grads;
use super::history::Epoch;
use super::mlp::Mlp;
use crate::error::Result;
use crate::float::Float;

/// A step that has just been made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Number of the step over all epochs, from 0.
    pub step: usize,
    /// Steps that are planned over all epochs; `usize::MAX` where they are more.
    pub steps: usize,
    /// Number of the epoch, from 0.
    pub epoch: usize,
    /// The objective on this batch, before the step.
    pub loss: f64,
    /// The learning rate of this step.
    pub learning_rate: f64,
}

/// Called while a network trains. `ControlFlow::Break(())` ends the training after this step or epoch.
///
/// ```
/// use std::ops::ControlFlow;
/// use trimnet::nn::{Callback, Mlp, Step};
///
/// /// Stops as soon as a batch is learnt well enough.
/// struct Until(f64);
///
/// impl Callback<f32> for Until {
///     fn on_step(&mut self, _: &mut Mlp<f32>, step: &Step) -> trimnet::Result<ControlFlow<()>> {
///         Ok(if step.loss < self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
///     }
/// }
/// ```
pub trait Callback<F: Float> {
    /// Between the backward pass and the optimizer's step: may read the gradients and change them. The trainer's penalties
    /// are in them already; its clipping comes after.
    ///
    /// # Errors
    /// An error ends the training and is returned by it, with the network as it was before this step (but for the running
    /// statistics of batch norm).
    fn on_grads(&mut self, _mlp: &Mlp<F>, _grads: &mut Grads<F>, _step: &Step) -> Result<()> {
        Ok(())
    }

    /// After the optimizer's step.
    ///
    /// # Errors
    /// An error ends the training and is returned by it.
    fn on_step(&mut self, _mlp: &mut Mlp<F>, _step: &Step) -> Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }

    /// After the last step of an epoch and its validation.
    ///
    /// # Errors
    /// An error ends the training and is returned by it.
    fn on_epoch(&mut self, _mlp: &mut Mlp<F>, _epoch: &Epoch) -> Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }
}
