//! One layer of a network: an enum, so that a network can be matched on, folded, exported and compared.

use ndarray::{Array2, CowArray, Ix2};
use rand::Rng;

use super::activation::{Activation, ActivationCache};
use super::grads::LayerGrads;
use super::linear::Linear;
use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::normalize::{BatchNorm, LayerNorm};
use crate::regularize::{Dropout, GaussianNoise};
use crate::traits::{Normalizer, Regularizer};

/// One layer of an [`Mlp`](super::Mlp), batch `[n, features]` in, batch out.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"))]
pub enum Layer<F> {
    /// A weighted sum of all inputs; the only layer that changes the number of features.
    Linear(Linear<F>),
    /// Each feature to mean beta and deviation gamma over the batch.
    BatchNorm(BatchNorm<F>),
    /// Each row to mean beta and deviation gamma over its features.
    LayerNorm(LayerNorm<F>),
    /// A function of every element.
    Activation(Activation),
    /// Silences random elements in training; nothing in inference.
    Dropout(Dropout),
    /// Multiplies elements by random gains around 1 in training; nothing in inference.
    GaussianNoise(GaussianNoise),
}

impl<F: Float> Layer<F> {
    /// The number of features that leave the layer, for those that enter.
    ///
    /// # Errors
    /// [`Error::Shape`] if the layer is made for another number of inputs; [`Error::OutOfRange`] for an
    /// activation whose setting is not finite.
    pub fn outputs(&self, inputs: usize) -> Result<usize> {
        match self {
            Self::Linear(linear) => {
                check_shape("weight", &[linear.outputs(), linear.inputs()], &[linear.outputs(), inputs])?;
                return Ok(linear.outputs());
            }
            Self::BatchNorm(norm) => check_shape("batch norm", &[norm.features()], &[inputs])?,
            Self::LayerNorm(norm) => check_shape("layer norm", &[norm.features()], &[inputs])?,
            Self::Activation(activation) => activation.check()?,
            Self::Dropout(_) | Self::GaussianNoise(_) => {}
        }
        Ok(inputs)
    }

    /// Number of learnt numbers that gradients move: weights, biases, gammas and betas.
    pub fn parameters(&self) -> usize {
        match self {
            Self::Linear(linear) => linear.parameters(),
            Self::BatchNorm(norm) => 2 * norm.features(),
            Self::LayerNorm(norm) => 2 * norm.features(),
            Self::Activation(_) | Self::Dropout(_) | Self::GaussianNoise(_) => 0,
        }
    }

    /// Number of those that are not zero.
    pub fn nonzero(&self) -> usize {
        let of = |x: &&F| **x != F::zero();
        match self {
            Self::Linear(linear) => linear.nonzero(),
            Self::BatchNorm(norm) => norm.gamma().iter().chain(norm.beta()).filter(of).count(),
            Self::LayerNorm(norm) => norm.gamma().iter().chain(norm.beta()).filter(of).count(),
            Self::Activation(_) | Self::Dropout(_) | Self::GaussianNoise(_) => 0,
        }
    }

    /// Inference.
    pub(super) fn infer<'a>(&self, x: CowArray<'a, F, Ix2>) -> Result<CowArray<'a, F, Ix2>> {
        Ok(match self {
            Self::Linear(linear) => linear.apply(x.view())?.into(),
            Self::BatchNorm(norm) => norm.normalize(x.into_owned())?.into(),
            Self::LayerNorm(norm) => norm.normalize(x.into_owned())?.into(),
            Self::Activation(activation) => activation.apply(x.into_owned()).into(),
            Self::Dropout(_) | Self::GaussianNoise(_) => x,
        })
    }

    /// Training: the output, and what [`backward`](Self::backward) needs.
    pub(super) fn forward(&mut self, x: Array2<F>, rng: &mut dyn Rng) -> Result<(Array2<F>, LayerCache<F>)> {
        Ok(match self {
            Self::Linear(linear) => (linear.apply(x.view())?, LayerCache::Linear(x)),
            Self::BatchNorm(norm) => {
                let (y, cache) = norm.normalize_batch(x)?;
                (y, LayerCache::BatchNorm(cache))
            }
            Self::LayerNorm(norm) => {
                let (y, cache) = norm.normalize_batch(x)?;
                (y, LayerCache::LayerNorm(cache))
            }
            Self::Activation(activation) => {
                let (y, cache) = activation.forward(x);
                (y, LayerCache::Activation(cache))
            }
            Self::Dropout(dropout) => {
                let (y, cache) = dropout.perturb(x, rng);
                (y, LayerCache::Dropout(cache))
            }
            Self::GaussianNoise(noise) => {
                let (y, cache) = noise.perturb(x, rng);
                (y, LayerCache::GaussianNoise(cache))
            }
        })
    }

    /// The gradients of the parameters and, unless this is the last layer on the way back and nobody asks, that
    /// by the input.
    pub(super) fn backward(
        &self,
        cache: LayerCache<F>,
        dy: Array2<F>,
        reach: Reach,
    ) -> Result<(Option<Array2<F>>, LayerGrads<F>)> {
        Ok(match (self, cache) {
            (Self::Linear(linear), LayerCache::Linear(x)) => {
                let grads = linear.gradients(x.view(), dy.view())?;
                let dx = match reach {
                    Reach::Input => Some(linear.backward(dy.view())?),
                    Reach::Parameters => None,
                };
                (dx, LayerGrads::Linear(grads))
            }
            (Self::BatchNorm(norm), LayerCache::BatchNorm(cache)) => {
                let (dx, grads) = norm.backward(cache, dy);
                (Some(dx), LayerGrads::Affine(grads))
            }
            (Self::LayerNorm(norm), LayerCache::LayerNorm(cache)) => {
                let (dx, grads) = norm.backward(cache, dy);
                (Some(dx), LayerGrads::Affine(grads))
            }
            (Self::Activation(activation), LayerCache::Activation(cache)) => {
                (Some(activation.backward(cache, dy)?), LayerGrads::None)
            }
            (Self::Dropout(dropout), LayerCache::Dropout(cache)) => {
                (Some(dropout.backward(cache, dy)), LayerGrads::None)
            }
            (Self::GaussianNoise(noise), LayerCache::GaussianNoise(cache)) => {
                (Some(noise.backward(cache, dy)), LayerGrads::None)
            }
            _ => {
                return Err(Error::Unsupported {
                    what: "backward",
                    reason: "the cache is of another network: its layers are of other kinds".into(),
                });
            }
        })
    }
}

/// How far back gradients are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Down to the input of the layer.
    Input,
    /// Only to its parameters: saves a matrix product.
    Parameters,
}

/// What one layer keeps of the forward pass.
#[derive(Clone, Debug)]
pub(super) enum LayerCache<F: Float> {
    Linear(Array2<F>),
    BatchNorm(<BatchNorm<F> as Normalizer<F>>::Cache),
    LayerNorm(<LayerNorm<F> as Normalizer<F>>::Cache),
    Activation(ActivationCache<F>),
    Dropout(<Dropout as Regularizer<F>>::Cache),
    GaussianNoise(<GaussianNoise as Regularizer<F>>::Cache),
}
