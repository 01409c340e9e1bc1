//! A network without its numbers: what a state dict does not say.

use super::dtype::Dtype;
use super::tensor::is_zero_as;
use crate::error::Result;
use crate::float::Float;
use crate::nn::{Activation, Layer, Linear, Mlp};
use crate::normalize::{BatchNorm, BnConvention};
use crate::tensor::Mask;

use ndarray::{Array2, Ix2};

use crate::io::trim::malformed;

/// The list of layers of a network, with all settings and no numbers.
///
/// PyTorch's files do not have it; give it when loading one, from a network that was built for the purpose or from JSON:
///
/// ```
/// use trimnet::io::safetensors::Architecture;
/// use trimnet::nn::Mlp;
/// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
/// let mlp = Mlp::builder(8).linear(16).batch_norm().relu().dropout(0.2).linear(4).build::<f32>(&mut rng)?;
/// let built = Architecture::of(&mlp);
/// let read = Architecture::from_json(
///     r#"{"inputs": 8, "layers": [
///         {"linear": {"outputs": 16, "bias": true}},
///         {"batch_norm": {"eps": 1e-5, "momentum": "usual", "convention": "Torch"}},
///         {"activation": "Relu"},
///         {"dropout": {"p": 0.2}},
///         {"linear": {"outputs": 4, "bias": true}}]}"#,
/// )?;
/// assert_eq!(built, read);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Architecture {
    inputs: usize,
    layers: Vec<LayerShape>,
}

/// One layer of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum LayerShape {
    Linear {
        outputs: usize,
        bias: bool,
        #[serde(default, skip_serializing_if = "MaskShape::is_none")]
        mask: MaskShape,
    },
    BatchNorm {
        eps: f64,
        #[serde(default)]
        momentum: MomentumShape,
        #[serde(default)]
        convention: BnConvention,
    },
    LayerNorm {
        eps: f64,
    },
    Activation(Activation),
    Dropout {
        p: f64,
    },
    GaussianNoise {
        deviation: f64,
    },
}

/// Where a mask of a linear layer is: nowhere, where its weight is not zero, or in bits of its own.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MaskShape {
    #[default]
    None,
    Nonzero,
    /// One hexadecimal digit for four weights, row after row, the first weight in the lowest bit.
    Bits(String),
}

/// The momentum of a batch norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MomentumShape {
    /// That of its convention.
    #[default]
    Usual,
    Cumulative,
    Fixed(f64),
}

impl Architecture {
    /// The layers of a network.
    pub fn of<F: Float>(mlp: &Mlp<F>) -> Self {
        Self::stored_as(mlp, Dtype::F64)
    }

    /// The layers of a network whose weights are stored in this type, where kept weights may round to zero.
    pub(super) fn stored_as<F: Float>(mlp: &Mlp<F>, dtype: Dtype) -> Self {
        let layers = mlp.layers().iter().map(|layer| LayerShape::of(layer, dtype)).collect();
        Self { inputs: mlp.inputs(), layers }
    }

    /// Reads the JSON that serde writes of it.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) for anything else.
    pub fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|error| malformed(format!("not an architecture: {error}")))
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn layers(&self) -> &[LayerShape] {
        &self.layers
    }
}

impl LayerShape {
    fn of<F: Float>(layer: &Layer<F>, dtype: Dtype) -> Self {
        let nonzero = |linear: &Linear<F>| Mask::new(linear.weight().mapv(|w| !is_zero_as(w, dtype)));
        match layer {
            Layer::Linear(linear) => Self::Linear {
                outputs: linear.outputs(),
                bias: linear.bias().is_some(),
                mask: match linear.mask() {
                    None => MaskShape::None,
                    Some(mask) if *mask == nonzero(linear) => MaskShape::Nonzero,
                    Some(mask) => MaskShape::of_bits(mask),
                },
            },
            Layer::BatchNorm(norm) => Self::BatchNorm {
                eps: norm.eps(),
                momentum: MomentumShape::of(norm),
                convention: norm.convention(),
            },
            Layer::LayerNorm(norm) => Self::LayerNorm { eps: norm.eps() },
            Layer::Activation(activation) => Self::Activation(*activation),
            Layer::Dropout(dropout) => Self::Dropout { p: dropout.p() },
            Layer::GaussianNoise(noise) => Self::GaussianNoise { deviation: noise.deviation() },
        }
    }
}

impl MomentumShape {
    fn of<F: Float>(norm: &BatchNorm<F>) -> Self {
        // A batch norm of one feature always exists; if it did not, the momentum would be written as a number.
        let usual =
            BatchNorm::<f32>::new(1).ok().map(|one| one.with_convention(norm.convention()).momentum());
        match norm.momentum() {
            None => Self::Cumulative,
            momentum if usual == Some(momentum) => Self::Usual,
            Some(momentum) => Self::Fixed(momentum),
        }
    }
}

impl MaskShape {
    fn is_none(&self) -> bool {
        *self == Self::None
    }

    fn of_bits(mask: &Mask<Ix2>) -> Self {
        let keep: Vec<bool> = mask.keep().iter().copied().collect();
        let digit = |four: &[bool]| {
            let bits = four.iter().rev().fold(0, |bits, &keep| 2 * bits + u32::from(keep));
            char::from_digit(bits, 16).unwrap_or('0')
        };
        Self::Bits(keep.chunks(4).map(digit).collect())
    }

    /// The mask of a weight.
    pub(super) fn mask<F: Float>(&self, weight: &Array2<F>) -> Result<Option<Mask<Ix2>>> {
        let digits = match self {
            Self::None => return Ok(None),
            Self::Nonzero => return Ok(Some(Mask::of_nonzero(weight.view()))),
            Self::Bits(digits) => digits,
        };
        if digits.len() != weight.len().div_ceil(4) {
            return Err(malformed(format!("a mask of {} digits for {} weights", digits.len(), weight.len())));
        }
        let mut keep = Vec::with_capacity(4 * digits.len());
        for digit in digits.chars() {
            let bits = digit.to_digit(16).ok_or_else(|| malformed(format!("{digit:?} in a mask")))?;
            keep.extend((0..4).map(|i| bits >> i & 1 == 1));
        }
        keep.truncate(weight.len());
        let keep = Array2::from_shape_vec(weight.dim(), keep).map_err(|e| malformed(e.to_string()))?;
        Ok(Some(Mask::new(keep)))
    }
}
