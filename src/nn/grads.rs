//! The gradients of one backward pass: one entry per layer, in the order of the layers.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::linear::LinearGrads;
use crate::float::Float;
use crate::normalize::AffineGrads;

/// 2^600: in this unit no square of an `f64` overflows.
const LARGE: f64 = 4.149515568880993e180;

/// Gradients of the parameters of one layer.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerGrads<F> {
    /// The layer has no parameters.
    None,
    /// Those of a linear layer.
    Linear(LinearGrads<F>),
    /// Those of gamma and beta of a batch or layer norm.
    Affine(AffineGrads<F>),
}

/// Gradients of all parameters of a network: what [`Mlp::backward`](super::Mlp::backward) returns and
/// [`Optimizer::step`](super::Optimizer::step) takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Grads<F> {
    layers: Vec<LayerGrads<F>>,
}

impl<F: Float> Grads<F> {
    /// One entry per layer of the network that they will be used with.
    pub fn new(layers: Vec<LayerGrads<F>>) -> Self {
        Self { layers }
    }

    /// One entry per layer.
    pub fn layers(&self) -> &[LayerGrads<F>] {
        &self.layers
    }

    pub(super) fn into_layers(self) -> Vec<LayerGrads<F>> {
        self.layers
    }

    /// The weight gradients of the linear layers, first to last; in step with
    /// [`Mlp::linears`](super::Mlp::linears).
    pub fn dweights(&self) -> impl Iterator<Item = ArrayView2<'_, F>> {
        self.layers.iter().filter_map(|layer| match layer {
            LayerGrads::Linear(grads) => Some(grads.dweight.view()),
            _ => None,
        })
    }

    /// The same to write to, for penalties that join the loss.
    pub fn dweights_mut(&mut self) -> impl Iterator<Item = ArrayViewMut2<'_, F>> {
        self.layers.iter_mut().filter_map(|layer| match layer {
            LayerGrads::Linear(grads) => Some(grads.dweight.view_mut()),
            _ => None,
        })
    }

    /// The L2 norm over all gradients together, formed in `f64`; infinite only where no `f64` holds it.
    pub fn norm(&self) -> f64 {
        let norm = self.norm_in(1.0);
        if norm.is_finite() { norm } else { self.norm_in(LARGE) * LARGE }
    }

    /// The norm in units of `unit`, a power of two.
    fn norm_in(&self, unit: f64) -> f64 {
        let parts = unit.recip();
        let squares = |sum: f64, &g: &F| sum + (g.as_f64() * parts) * (g.as_f64() * parts);
        let sum = self.layers.iter().fold(0.0, |sum, layer| match layer {
            LayerGrads::None => sum,
            LayerGrads::Linear(grads) => {
                grads.dbias.iter().flatten().fold(grads.dweight.iter().fold(sum, squares), squares)
            }
            LayerGrads::Affine(grads) => grads.dgamma.iter().chain(&grads.dbeta).fold(sum, squares),
        });
        sum.sqrt()
    }

    /// Multiplies every gradient by `factor`; with [`norm`](Self::norm), what clipping is made of.
    pub fn scale(&mut self, factor: F) {
        for layer in &mut self.layers {
            match layer {
                LayerGrads::None => {}
                LayerGrads::Linear(grads) => {
                    grads.dweight *= factor;
                    if let Some(dbias) = &mut grads.dbias {
                        *dbias *= factor;
                    }
                }
                LayerGrads::Affine(grads) => {
                    grads.dgamma *= factor;
                    grads.dbeta *= factor;
                }
            }
        }
    }
}
