//! The network: a list of layers, each feeding the next.
//!
//! The receiver tells the mode: [`Mlp::predict`] (`&self`) infers, [`Mlp::forward`] (`&mut self`) trains, with
//! chance for dropout from a passed `rng` and the running statistics of batch norms moving.

use ndarray::{Array2, ArrayView2, CowArray, Ix2};

use super::builder::MlpBuilder;
use super::layer::Layer;
use super::linear::Linear;
use crate::error::{Error, Result};
use crate::float::{Float, check_finite, check_shape};
use crate::tensor::Mask;

/// A feed-forward network.
///
/// ```
/// use trimnet::ndarray::array;
/// use trimnet::nn::{Mlp, Optimizer, Sgd};
/// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let mut mlp = Mlp::builder(2).linear(8).tanh().linear(1).build::<f64>(&mut rng)?;
/// let x = array![[0.0, 1.0], [1.0, 0.0]];
/// let target = array![[1.0], [-1.0]];
///
/// let mut sgd = Sgd::new();
/// for _ in 0..100 {
///     let (y, cache) = mlp.forward(x.view(), &mut rng)?;
///     let grads = mlp.gradients(cache, y - &target)?;
///     sgd.step(&mut mlp, &grads, 0.1)?;
/// }
/// let error = (mlp.predict(x.view())? - target).mapv(f64::abs).sum();
/// assert!(error < 0.01);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "serde",
    serde(try_from = "RawMlp<F>", bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned")
)]
pub struct Mlp<F> {
    inputs: usize,
    layers: Vec<Layer<F>>,
}

// On one element type only, so that `Mlp::builder(784)` needs no annotation: `build` decides.
impl Mlp<f32> {
    /// Starts a description, layer by layer, for this many inputs; `build::<f32>` or `build::<f64>` ends it.
    pub fn builder(inputs: usize) -> MlpBuilder {
        MlpBuilder::new(inputs)
    }
}

impl<F: Float> Mlp<F> {
    /// A network of these layers.
    ///
    /// # Errors
    /// [`Error::Empty`] for no inputs or no linear layer; [`Error::Shape`] if the output of a layer does not fit
    /// the next; [`Error::OutOfRange`] for an activation whose setting is not finite.
    pub fn from_layers(inputs: usize, layers: Vec<Layer<F>>) -> Result<Self> {
        if inputs == 0 {
            return Err(Error::Empty { what: "the input of the network" });
        }
        if !layers.iter().any(|layer| matches!(layer, Layer::Linear(_))) {
            return Err(Error::Empty { what: "the list of linear layers" });
        }
        layers.iter().try_fold(inputs, |width, layer| layer.outputs(width))?;
        Ok(Self { inputs, layers })
    }

    /// The layers, first to last.
    pub fn layers(&self) -> &[Layer<F>] {
        &self.layers
    }

    /// The layers, for code of this module that keeps their widths.
    pub(super) fn layers_mut(&mut self) -> &mut [Layer<F>] {
        &mut self.layers
    }

    /// The layers themselves.
    pub fn into_layers(self) -> Vec<Layer<F>> {
        self.layers
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.linears().last().map_or(self.inputs, Linear::outputs)
    }

    /// The inputs, then the outputs of every linear layer: `[784, 300, 100, 10]`.
    pub fn widths(&self) -> Vec<usize> {
        std::iter::once(self.inputs).chain(self.linears().map(Linear::outputs)).collect()
    }

    /// The linear layers, first to last.
    pub fn linears(&self) -> impl DoubleEndedIterator<Item = &Linear<F>> {
        self.layers.iter().filter_map(|layer| match layer {
            Layer::Linear(linear) => Some(linear),
            _ => None,
        })
    }

    /// The linear layers, to set their weights, biases and masks. A layer put in the place of another must have
    /// its shape; if not, the next use of the network is an [`Error::Shape`].
    pub fn linears_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Linear<F>> {
        self.layers.iter_mut().filter_map(|layer| match layer {
            Layer::Linear(linear) => Some(linear),
            _ => None,
        })
    }

    /// Number of weights, biases, gammas and betas, zeros included.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(Layer::parameters).sum()
    }

    /// Number of those that are not zero.
    pub fn nonzero(&self) -> usize {
        self.layers.iter().map(Layer::nonzero).sum()
    }

    /// Inference: `[n, inputs]` to `[n, outputs]`. No rows in, no rows out.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of inputs, [`Error::NotFinite`] for NaN or infinity.
    pub fn predict(&self, x: ArrayView2<'_, F>) -> Result<Array2<F>> {
        self.infer(x, &self.layers)
    }

    /// Inference up to and including the layer at `layer`: its output, `[n, width]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is no such layer, else as [`predict`](Self::predict).
    pub fn hidden(&self, x: ArrayView2<'_, F>, layer: usize) -> Result<Array2<F>> {
        self.check_layer(layer)?;
        self.infer(x, &self.layers[..=layer])
    }

    fn infer(&self, x: ArrayView2<'_, F>, layers: &[Layer<F>]) -> Result<Array2<F>> {
        self.check_input(x)?;
        let x = layers.iter().try_fold(CowArray::<F, Ix2>::from(x), |x, layer| layer.infer(x))?;
        Ok(x.into_owned())
    }

    pub(super) fn check_input(&self, x: ArrayView2<'_, F>) -> Result<()> {
        check_shape("input", x.shape(), &[x.nrows(), self.inputs])?;
        check_finite("input", &x)
    }

    pub(super) fn check_layer(&self, layer: usize) -> Result<()> {
        if layer < self.layers.len() {
            return Ok(());
        }
        Err(Error::OutOfRange {
            name: "layer",
            value: layer as f64,
            range: "below the number of layers of the network",
        })
    }

    /// The mask of every linear layer, first to last; `None` where none is set.
    pub fn masks(&self) -> impl Iterator<Item = Option<&Mask<Ix2>>> {
        self.linears().map(Linear::mask)
    }

    /// Sets one mask per linear layer, as [`Linear::set_mask`] does. Nothing has changed if this fails.
    ///
    /// Masks alone make nothing smaller or faster: follow with [`shrink`](Self::shrink), or store the weights as
    /// sparse tensors.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more or fewer masks than linear layers, or one has another shape than its
    /// weight.
    pub fn apply_masks(&mut self, masks: Vec<Mask<Ix2>>) -> Result<()> {
        check_shape("list of masks", &[masks.len()], &[self.linears().count()])?;
        for (linear, mask) in self.linears().zip(&masks) {
            check_shape("mask", mask.keep().shape(), linear.weight().shape())?;
        }
        for (linear, mask) in self.linears_mut().zip(masks) {
            linear.set_mask(mask)?;
        }
        Ok(())
    }
}

/// What a file holds, before it is checked.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(rename = "Mlp", bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned")]
struct RawMlp<F> {
    inputs: usize,
    layers: Vec<Layer<F>>,
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<RawMlp<F>> for Mlp<F> {
    type Error = Error;

    fn try_from(raw: RawMlp<F>) -> Result<Self> {
        Self::from_layers(raw.inputs, raw.layers)
    }
}
