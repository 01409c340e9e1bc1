//! A network as a section of the file: the layers with their real shapes, each followed by its tensors.
//!
//! ```text
//! section     element type, varint inputs, varint number of layers, then the layers
//! layer       tag = kind | flags << 4, then
//! 1 linear    flags: 1 bias, 2 mask where the weight is not 0, 4 mask of its own
//!             varint outputs, weight [out, in], [mask [out, in] of 1-bit codes], [bias [out]]
//! 2 batch     flags: convention (2 bits), 4 usual momentum, 8 cumulative
//!   norm      eps, [momentum], varint batches, gamma, beta, running mean, running variance
//! 3 layer     eps, gamma, beta
//!   norm
//! 4 activation  flags: which; slope of leaky relu, alpha of elu, bounds of clip
//! 5 dropout   p
//! 6 noise     deviation
//! ```
//!
//! Settings are lists of one `f64` number, tensors are bodies: type and shape follow from the layer. The masks of
//! pruned networks cost nothing, because they are where the weights are zero; a mask that keeps a weight which
//! happens to be 0 is stored of its own.

use std::path::Path;

use ndarray::{Array1, Array2, ArrayView, Dimension, Ix2};

use super::container::{Kind, named, only, read_file, read_sections, write_sections};
use super::encoding::{encode_body, put_element, take_body, take_element};
use super::floats::{put_floats, take_floats};
use super::report::{TensorReport, TrimReport};
use super::search::EncodeOptions;
use super::tensor::{Budget, Codes, ElementType, Limits, Values};
use super::wire::{Cursor, malformed, put_varint};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::io::atomic::write_atomic;
use crate::nn::{Activation, Layer, Linear, Mlp};
use crate::normalize::{BatchNorm, BnConvention, LayerNorm};
use crate::regularize::{Dropout, GaussianNoise};
use crate::tensor::Mask;

const LINEAR: u8 = 1;
const BATCH_NORM: u8 = 2;
const LAYER_NORM: u8 = 3;
pub(super) const ACTIVATION: u8 = 4;
const DROPOUT: u8 = 5;
const NOISE: u8 = 6;

const BIAS: u8 = 1;
const MASK_IS_NONZERO: u8 = 2;
const MASK_APART: u8 = 4;
const USUAL_MOMENTUM: u8 = 4;
const CUMULATIVE: u8 = 8;

/// Saving and loading: `.trim`, the crate's own file.
///
/// ```
/// use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::nn::Mlp;
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let mlp = Mlp::builder(8).linear(4).batch_norm().relu().linear(2).build::<f32>(&mut rng)?;
/// let bytes = mlp.to_bytes();
/// assert_eq!(Mlp::<f32>::from_bytes(&bytes)?, mlp); // no constructor, no shapes: all of it is in the file
/// assert!(Mlp::<f32>::from_bytes(&bytes[..bytes.len() - 1]).is_err());
/// # Ok::<(), trimnet::Error>(())
/// ```
impl<F: Float> Mlp<F> {
    /// Writes the network, masks and training settings included; the file is replaced as a whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomic(path.as_ref(), &self.to_bytes())
    }

    /// Writes the network with a say in the search for the smallest encodings.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn save_with(&self, path: impl AsRef<Path>, options: &EncodeOptions) -> Result<()> {
        write_atomic(path.as_ref(), &self.to_bytes_with(options))
    }

    /// Reads a network with the default [`Limits`].
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses; otherwise as [`from_bytes`](Self::from_bytes).
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_with(path, &Limits::default())
    }

    /// Reads a network that may need more, or is granted less, memory than by default.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(path: impl AsRef<Path>, limits: &Limits) -> Result<Self> {
        let path = path.as_ref();
        named(Self::from_bytes_with(&read_file(path)?, limits), path)
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_bytes_with(&EncodeOptions::default())
    }

    /// The bytes of the file, with a say in the search for the smallest.
    pub fn to_bytes_with(&self, options: &EncodeOptions) -> Vec<u8> {
        let mut section = Vec::new();
        put_element(&mut section, element::<F>());
        put_varint(&mut section, self.inputs() as u64);
        put_varint(&mut section, self.layers().len() as u64);
        for layer in self.layers() {
            put_layer(&mut section, layer, options);
        }
        write_sections(&[(Kind::Network, &section)])
    }

    /// Reads the bytes of a file, with the default [`Limits`].
    ///
    /// # Errors
    /// [`Error::Format`] for anything but a whole and undamaged file; [`Error::Unsupported`] for a file of `f64`
    /// read as `f32`, which would round (the other way is exact, and allowed).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::from_bytes_with(bytes, &Limits::default())
    }

    /// Reads the bytes of a file that may need more, or is granted less, memory than by default.
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes).
    pub fn from_bytes_with(bytes: &[u8], limits: &Limits) -> Result<Self> {
        Ok(read_network(bytes, limits)?.0)
    }
}

/// The network and where its bytes are.
pub(super) fn read_network<F: Float>(bytes: &[u8], limits: &Limits) -> Result<(Mlp<F>, TrimReport)> {
    let mut cursor = Cursor::new(only(&read_sections(bytes)?, Kind::Network)?);
    let element = take_element(&mut cursor)?;
    match (element, F::BYTES) {
        (ElementType::F32, _) | (ElementType::F64, 8) => {}
        (ElementType::F64, _) => {
            let reason = "the file holds f64, which f32 would round: load it as Mlp<f64>".to_string();
            return Err(Error::Unsupported { what: "loading f64 as f32", reason });
        }
        (ElementType::Codes { .. }, _) => return Err(malformed("a network of integers is not trainable")),
    }
    let inputs = cursor.size()?;
    let count = cursor.size()?;
    let budget = limits.budget(bytes.len());
    let mut reader = Reader { cursor, element, budget, width: inputs, layer: 0, tensors: Vec::new() };
    let mut layers = Vec::new();
    for layer in 0..count {
        reader.layer = layer;
        layers.push(reader.layer()?);
    }
    reader.cursor.finish("the last layer")?;
    let mlp =
        Mlp::from_layers(inputs, layers).map_err(|error| malformed(format!("not a network: {error}")))?;
    Ok((mlp, TrimReport::new(bytes.len(), reader.tensors)))
}

pub(super) fn element<F: Float>() -> ElementType {
    if F::BYTES == 4 { ElementType::F32 } else { ElementType::F64 }
}

pub(super) fn tag(kind: u8, flags: u8) -> u8 {
    kind | flags << 4
}

pub(super) fn put_number(out: &mut Vec<u8>, x: f64) {
    put_floats(out, &[x]);
}

fn put_tensor<F: Float, D: Dimension>(out: &mut Vec<u8>, x: ArrayView<'_, F, D>, options: &EncodeOptions) {
    let shape = x.shape().to_vec();
    let values = if F::BYTES == 4 {
        // Exact: these are f32 already.
        Values::F32(x.iter().map(|x| x.as_f64() as f32).collect())
    } else {
        Values::F64(x.iter().map(|x| x.as_f64()).collect())
    };
    put_body(out, shape, values, options);
}

pub(super) fn put_body(out: &mut Vec<u8>, shape: Vec<usize>, values: Values, options: &EncodeOptions) {
    out.extend_from_slice(encode_body(&shape, &values, options).bytes());
}

fn put_layer<F: Float>(out: &mut Vec<u8>, layer: &Layer<F>, options: &EncodeOptions) {
    match layer {
        Layer::Linear(linear) => put_linear(out, linear, options),
        Layer::BatchNorm(norm) => put_batch_norm(out, norm, options),
        Layer::LayerNorm(norm) => {
            out.push(tag(LAYER_NORM, 0));
            put_number(out, norm.eps());
            put_tensor(out, norm.gamma(), options);
            put_tensor(out, norm.beta(), options);
        }
        Layer::Activation(activation) => put_activation(out, *activation),
        Layer::Dropout(dropout) => {
            out.push(tag(DROPOUT, 0));
            put_number(out, dropout.p());
        }
        Layer::GaussianNoise(noise) => {
            out.push(tag(NOISE, 0));
            put_number(out, noise.deviation());
        }
    }
}

fn put_linear<F: Float>(out: &mut Vec<u8>, linear: &Linear<F>, options: &EncodeOptions) {
    let weight = linear.weight();
    let apart = linear.mask().filter(|mask| **mask != Mask::of_nonzero(weight));
    let mut flags = if linear.bias().is_some() { BIAS } else { 0 };
    flags |= match (linear.mask(), apart) {
        (None, _) => 0,
        (Some(_), None) => MASK_IS_NONZERO,
        (Some(_), Some(_)) => MASK_APART,
    };
    out.push(tag(LINEAR, flags));
    put_varint(out, linear.outputs() as u64);
    put_tensor(out, weight, options);
    if let Some(mask) = apart {
        let codes = Codes::of_bits(mask.keep().iter().copied());
        put_body(out, mask.keep().shape().to_vec(), Values::Codes(codes), options);
    }
    if let Some(bias) = linear.bias() {
        put_tensor(out, bias, options);
    }
}

/// The momentum that a convention comes with.
pub(super) fn usual_momentum(convention: BnConvention) -> Result<Option<f64>> {
    Ok(BatchNorm::<f32>::new(1)?.with_convention(convention).momentum())
}

const CONVENTIONS: [BnConvention; 3] = [BnConvention::Torch, BnConvention::Onnx, BnConvention::Burn];

fn put_batch_norm<F: Float>(out: &mut Vec<u8>, norm: &BatchNorm<F>, options: &EncodeOptions) {
    let momentum = norm.momentum();
    let usual = momentum.is_some() && usual_momentum(norm.convention()).is_ok_and(|usual| usual == momentum);
    let convention = CONVENTIONS.iter().position(|&c| c == norm.convention()).unwrap_or(0) as u8;
    let flags =
        convention | if usual { USUAL_MOMENTUM } else { 0 } | if momentum.is_none() { CUMULATIVE } else { 0 };
    out.push(tag(BATCH_NORM, flags));
    put_number(out, norm.eps());
    if let Some(momentum) = momentum.filter(|_| !usual) {
        put_number(out, momentum);
    }
    put_varint(out, norm.batches());
    for x in [norm.gamma(), norm.beta(), norm.running_mean(), norm.running_var()] {
        put_tensor(out, x, options);
    }
}

pub(super) fn put_activation(out: &mut Vec<u8>, activation: Activation) {
    let (id, settings) = match activation {
        Activation::Relu => (0, vec![]),
        Activation::LeakyRelu(slope) => (1, vec![slope]),
        Activation::Elu(alpha) => (2, vec![alpha]),
        Activation::Tanh => (3, vec![]),
        Activation::Sigmoid => (4, vec![]),
        Activation::Gelu => (5, vec![]),
        Activation::GeluTanh => (6, vec![]),
        Activation::Clip { min, max } => (7, vec![min, max]),
    };
    out.push(tag(ACTIVATION, id));
    settings.into_iter().for_each(|setting| put_number(out, setting));
}

/// Reads layers in order; `width` is what the next one takes in.
pub(super) struct Reader<'a> {
    pub(super) cursor: Cursor<'a>,
    pub(super) element: ElementType,
    pub(super) budget: Budget,
    pub(super) width: usize,
    pub(super) layer: usize,
    pub(super) tensors: Vec<TensorReport>,
}

impl Reader<'_> {
    pub(super) fn number(&mut self) -> Result<f64> {
        Ok(take_floats(&mut self.cursor, 1)?[0])
    }

    pub(super) fn body(&mut self, role: &str, element: ElementType, shape: Vec<usize>) -> Result<Values> {
        let taken = take_body(&mut self.cursor, element, shape, &mut self.budget)?;
        self.tensors.push(TensorReport::new(format!("{}.{role}", self.layer), &taken));
        Ok(taken.tensor.into_values())
    }

    pub(super) fn floats<F: Float>(&mut self, role: &str, shape: Vec<usize>) -> Result<Vec<F>> {
        match self.body(role, self.element, shape)? {
            Values::F32(values) => Ok(values.into_iter().map(|x| F::of(x.into())).collect()),
            Values::F64(values) => Ok(values.into_iter().map(F::of).collect()),
            Values::Codes(_) => Err(malformed("integers in place of weights")),
        }
    }

    pub(super) fn vector<F: Float>(&mut self, role: &str) -> Result<Array1<F>> {
        Ok(Array1::from_vec(self.floats(role, vec![self.width])?))
    }

    fn layer<F: Float>(&mut self) -> Result<Layer<F>> {
        let tag = self.cursor.byte()?;
        let (kind, flags) = (tag & 15, tag >> 4);
        let allowed = match kind {
            LINEAR => BIAS | MASK_IS_NONZERO | MASK_APART,
            BATCH_NORM | ACTIVATION => 15,
            _ => 0,
        };
        if flags & !allowed != 0 {
            return Err(malformed(format!(
                "flags {flags:04b} of layer kind {kind} are unknown to this version"
            )));
        }
        match kind {
            LINEAR => Ok(Layer::Linear(self.linear(flags)?)),
            BATCH_NORM => Ok(Layer::BatchNorm(self.batch_norm(flags)?)),
            LAYER_NORM => {
                let eps = self.number()?;
                let (gamma, beta) = (self.vector("gamma")?, self.vector("beta")?);
                Ok(Layer::LayerNorm(LayerNorm::from_parts(gamma, beta, eps).map_err(refused)?))
            }
            ACTIVATION => Ok(Layer::Activation(self.activation(flags)?)),
            DROPOUT => Ok(Layer::Dropout(Dropout::new(self.number()?).map_err(refused)?)),
            NOISE => Ok(Layer::GaussianNoise(GaussianNoise::new(self.number()?).map_err(refused)?)),
            _ => Err(malformed(format!("layer kind {kind} is unknown to this version"))),
        }
    }

    fn linear<F: Float>(&mut self, flags: u8) -> Result<Linear<F>> {
        let outputs = self.cursor.size()?;
        let shape = [outputs, self.width];
        let weight = self.floats("weight", shape.to_vec())?;
        let weight = matrix(shape, weight)?;
        let mask = match flags & (MASK_IS_NONZERO | MASK_APART) {
            0 => None,
            MASK_IS_NONZERO => Some(Mask::of_nonzero(weight.view())),
            MASK_APART => {
                let bit = ElementType::Codes { bits: 1, signed: false };
                let Values::Codes(codes) = self.body("mask", bit, shape.to_vec())? else {
                    return Err(malformed("a mask that is not made of codes"));
                };
                let keep = codes.values().iter().map(|&code| code != 0).collect();
                Some(Mask::<Ix2>::new(matrix(shape, keep)?))
            }
            _ => return Err(malformed("a linear layer with two masks")),
        };
        self.width = outputs;
        let bias = if flags & BIAS != 0 { Some(self.vector("bias")?) } else { None };
        let mut linear = Linear::new(weight, bias).map_err(refused)?;
        if let Some(mask) = mask {
            linear.set_mask(mask)?;
        }
        Ok(linear)
    }

    fn batch_norm<F: Float>(&mut self, flags: u8) -> Result<BatchNorm<F>> {
        let convention = CONVENTIONS.get(usize::from(flags & 3)).copied();
        let convention = convention.ok_or_else(|| malformed("a batch norm of unknown convention"))?;
        let eps = self.number()?;
        let momentum = match flags & (USUAL_MOMENTUM | CUMULATIVE) {
            USUAL_MOMENTUM => None,
            CUMULATIVE => Some(None),
            0 => Some(Some(self.number()?)),
            _ => return Err(malformed("a batch norm with two momentums")),
        };
        let batches = self.cursor.varint()?;
        let (gamma, beta) = (self.vector("gamma")?, self.vector("beta")?);
        let (mean, var) = (self.vector("running_mean")?, self.vector("running_var")?);
        let norm = BatchNorm::from_parts(gamma, beta, mean, var, eps).map_err(refused)?;
        let norm = norm.with_convention(convention).with_batches(batches);
        match momentum {
            None => Ok(norm),
            Some(momentum) => norm.with_momentum(momentum).map_err(refused),
        }
    }

    pub(super) fn activation(&mut self, id: u8) -> Result<Activation> {
        Ok(match id {
            0 => Activation::Relu,
            1 => Activation::LeakyRelu(self.number()?),
            2 => Activation::Elu(self.number()?),
            3 => Activation::Tanh,
            4 => Activation::Sigmoid,
            5 => Activation::Gelu,
            6 => Activation::GeluTanh,
            7 => Activation::Clip { min: self.number()?, max: self.number()? },
            _ => return Err(malformed(format!("activation {id} is unknown to this version"))),
        })
    }
}

/// A layer that its own constructor does not accept.
pub(super) fn refused(error: Error) -> Error {
    malformed(format!("a layer that cannot be: {error}"))
}

fn matrix<T>([rows, cols]: [usize; 2], values: Vec<T>) -> Result<Array2<T>> {
    Array2::from_shape_vec((rows, cols), values).map_err(|error| malformed(error.to_string()))
}
