//! One layer of a network: an enum, so that a network can be matched on, folded, exported and compared.

use ndarray::{Array2, ArrayView2};
use rand::Rng;

use super::activation::{Activation, ActivationCache};
use super::grads::LayerGrads;
use super::linear::Linear;
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::float::{Float, check_shape, elements, elements_mut, into_rows};
use crate::kernel::{Fused, PackedReal, Work, with};
use crate::normalize::{BatchNorm, BatchStatistics, LayerNorm};
use crate::regularize::{Dropout, DropoutCache, GaussianNoise};
use crate::traits::{Normalizer, Regularizer};

/// What an element of batch norm or dropout costs, in multiply-adds of a product.
const ELEMENT: usize = 16;

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
    /// activation whose setting is not finite in the type of the weights.
    pub fn outputs(&self, inputs: usize) -> Result<usize> {
        match self {
            Self::Linear(linear) => {
                check_shape("weight", &[linear.outputs(), linear.inputs()], &[linear.outputs(), inputs])?;
                return Ok(linear.outputs());
            }
            Self::BatchNorm(norm) => check_shape("batch norm", &[norm.features()], &[inputs])?,
            Self::LayerNorm(norm) => check_shape("layer norm", &[norm.features()], &[inputs])?,
            Self::Activation(activation) => activation.check::<F>()?,
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

    /// Inference, of a linear layer perhaps with its weight packed; a relu that `rides` on it is done too.
    pub(super) fn infer<'x>(
        &self,
        x: Flow<'x, F>,
        packed: Option<&PackedReal<F>>,
        rides: bool,
        workspace: &mut Workspace<F>,
    ) -> Result<Flow<'x, F>> {
        Ok(Flow::Owned(match self {
            Self::Linear(linear) => {
                let y = linear.apply_with(x.view(), packed, fused(rides), workspace)?;
                x.recycle(workspace);
                y
            }
            Self::BatchNorm(norm) => norm.normalize(x.into_owned(workspace))?,
            Self::LayerNorm(norm) => norm.normalize(x.into_owned(workspace))?,
            Self::Activation(activation) => activation.apply(x.into_owned(workspace)),
            Self::Dropout(_) | Self::GaussianNoise(_) => return Ok(x),
        }))
    }

    /// Training: the output, and what [`backward`](Self::backward) needs. `rides`: the next layer is a relu, and may be
    /// done here. `feeds`: the next layer is linear, and what goes into it tells what a relu needs.
    pub(super) fn forward(
        &mut self,
        x: Flow<'_, F>,
        rides: bool,
        feeds: bool,
        rng: &mut dyn Rng,
        workspace: &mut Workspace<F>,
    ) -> Result<(Array2<F>, LayerCache<F>)> {
        if let Self::Linear(linear) = self {
            let y = linear.apply_with(x.view(), None, fused(rides), workspace)?;
            let kept = match x {
                Flow::Input(_) => None,
                Flow::Owned(x) => Some(x),
            };
            return Ok((y, LayerCache::Linear(kept)));
        }
        let x = x.into_owned(workspace);
        Ok(match self {
            // Returned above.
            Self::Linear(_) => (x, LayerCache::Linear(None)),
            Self::BatchNorm(norm) => {
                let mut y = workspace.array(x.nrows(), x.ncols());
                let pool = workspace.pool(ELEMENT * x.len());
                let batch = norm.normalize_batch_into(x.view(), y.view_mut(), &pool)?;
                (y, LayerCache::BatchNorm(x, batch))
            }
            Self::LayerNorm(norm) => {
                let (y, cache) = norm.normalize_batch(x)?;
                (y, LayerCache::LayerNorm(cache))
            }
            Self::Activation(Activation::Relu) => {
                let y = Activation::Relu.apply(x);
                let kept = (!feeds).then(|| workspace.copy(y.view()));
                (y, LayerCache::Relu(kept))
            }
            Self::Activation(activation) => {
                let (y, cache) = activation.forward(x);
                (y, LayerCache::Activation(cache))
            }
            Self::Dropout(dropout) => {
                let (mut y, mut mask) = (workspace.array(x.nrows(), x.ncols()), workspace.take_mask());
                let pool = workspace.pool(ELEMENT * x.len());
                dropout.perturb_into(x.view(), y.view_mut(), &mut mask, rng, &pool)?;
                workspace.recycle(x);
                (y, LayerCache::Dropout(mask))
            }
            Self::GaussianNoise(noise) => {
                let (y, cache) = noise.perturb(x, rng);
                (y, LayerCache::GaussianNoise(cache))
            }
        })
    }

    /// The gradients of the parameters and, unless this is the last layer on the way back and nobody asks, that
    /// by the input. `input` is that of the network; `fed` is what went into the linear layer that was passed last.
    pub(super) fn backward(
        &self,
        cache: LayerCache<F>,
        input: Option<ArrayView2<'_, F>>,
        mut dy: Array2<F>,
        reach: Reach,
        fed: &mut Option<Array2<F>>,
        workspace: &mut Workspace<F>,
    ) -> Result<(Option<Array2<F>>, LayerGrads<F>)> {
        Ok(match (self, cache) {
            (Self::Linear(linear), LayerCache::Linear(kept)) => {
                let x = kept.as_ref().map(|x| x.view()).or(input).ok_or_else(Self::other_network)?;
                let grads = linear.gradients_with(x, dy.view(), workspace)?;
                let dx = match reach {
                    Reach::Input => Some(linear.backward_with(dy.view(), workspace)?),
                    Reach::Parameters => None,
                };
                workspace.recycle(dy);
                if let Some(earlier) = std::mem::replace(fed, kept) {
                    workspace.recycle(earlier);
                }
                (dx, LayerGrads::Linear(grads))
            }
            (Self::Activation(Activation::Relu), LayerCache::Relu(kept)) => {
                let y = kept.as_ref().or(fed.as_ref()).ok_or_else(Self::other_network)?;
                check_shape("dy", dy.shape(), y.shape())?;
                dy = into_rows(dy);
                with(workspace.isa(), ReluBackward(elements(y), elements_mut(&mut dy)));
                if let Some(kept) = kept {
                    workspace.recycle(kept);
                }
                (Some(dy), LayerGrads::None)
            }
            (Self::BatchNorm(norm), LayerCache::BatchNorm(x, batch)) => {
                let mut dx = workspace.array(x.nrows(), x.ncols());
                let pool = workspace.pool(ELEMENT * x.len());
                let grads = norm.backward_into(&batch, x.view(), dy.view(), dx.view_mut(), &pool)?;
                workspace.recycle(x);
                workspace.recycle(dy);
                (Some(dx), LayerGrads::Affine(grads))
            }
            (Self::LayerNorm(norm), LayerCache::LayerNorm(cache)) => {
                let (dx, grads) = norm.backward(cache, dy);
                (Some(dx), LayerGrads::Affine(grads))
            }
            (Self::Activation(activation), LayerCache::Activation(cache)) => {
                (Some(activation.backward(cache, dy)?), LayerGrads::None)
            }
            (Self::Dropout(_), LayerCache::Dropout(mask)) => {
                let mut dx = workspace.array(dy.nrows(), dy.ncols());
                let pool = workspace.pool(ELEMENT * dy.len());
                mask.backward_into(dy.view(), dx.view_mut(), &pool)?;
                workspace.recycle(dy);
                workspace.give_mask(mask);
                (Some(dx), LayerGrads::None)
            }
            (Self::GaussianNoise(noise), LayerCache::GaussianNoise(cache)) => {
                (Some(noise.backward(cache, dy)), LayerGrads::None)
            }
            _ => return Err(Self::other_network()),
        })
    }

    fn other_network() -> Error {
        Error::Unsupported {
            what: "backward",
            reason: "the cache is of another network: its layers are of other kinds".into(),
        }
    }
}

/// What a linear layer does for a relu that rides on it.
fn fused(rides: bool) -> Fused {
    if rides { Fused::Relu } else { Fused::Identity }
}

/// `dy` where `y` is positive (or NaN), else 0.
struct ReluBackward<'a, F>(&'a [F], &'a mut [F]);

impl<F: Float> Work for ReluBackward<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (d, &y) in self.1.iter_mut().zip(self.0) {
            *d = if y <= F::zero() { F::zero() } else { *d };
        }
    }
}

/// What goes from layer to layer: the input of the network, or what the layer before made.
#[derive(Debug)]
pub(super) enum Flow<'x, F> {
    /// The caller's.
    Input(ArrayView2<'x, F>),
    /// The network's own.
    Owned(Array2<F>),
}

impl<F: Float> Flow<'_, F> {
    pub(super) fn view(&self) -> ArrayView2<'_, F> {
        match self {
            Self::Input(x) => x.view(),
            Self::Owned(x) => x.view(),
        }
    }

    pub(super) fn into_owned(self, workspace: &mut Workspace<F>) -> Array2<F> {
        match self {
            Self::Input(x) => workspace.copy(x),
            Self::Owned(x) => x,
        }
    }

    fn recycle(self, workspace: &mut Workspace<F>) {
        if let Self::Owned(x) = self {
            workspace.recycle(x);
        }
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
    /// Its input; `None` for that of the network.
    Linear(Option<Array2<F>>),
    /// The output of a relu; `None` for what goes into the linear layer after it.
    Relu(Option<Array2<F>>),
    /// Its input, and what it was normalized with.
    BatchNorm(Array2<F>, BatchStatistics<F>),
    LayerNorm(<LayerNorm<F> as Normalizer<F>>::Cache),
    Activation(ActivationCache<F>),
    Dropout(DropoutCache),
    GaussianNoise(<GaussianNoise as Regularizer<F>>::Cache),
}
