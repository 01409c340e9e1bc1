//! The recipe: everything an engine is made of, as it is stored. Plain data, checked as a whole.
//!
//! ```text
//! code c of scale s and zero point z stands for (c - z) * s
//!
//! static    sum[j] = bias[j] + sum over k of (c[k] - z) * w[j, k]        scale of a sum: input scale * scale[j]
//! dynamic   the same without bias, which is added to the real number
//! ```

use crate::engine::bound::Bound;
use crate::engine::format::Format;
use crate::engine::weights::{check_two_four, few_values};
use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::nn::{Activation, Layer};
use crate::normalize::LayerNorm;
use crate::quantize::QuantParams;

/// A network as stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recipe<F> {
    pub(crate) inputs: usize,
    /// Codes at the entry, or numbers.
    pub(crate) entry: Option<QuantParams<f32>>,
    /// Codes at the exit, or numbers.
    pub(crate) exit: Option<QuantParams<f32>>,
    pub(crate) blocks: Vec<Block<F>>,
}

/// One piece of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Block<F> {
    Linear(Linear<F>),
    /// `y = x * scale + shift`: a batch norm that no linear layer could take in.
    Affine {
        scale: Vec<F>,
        shift: Vec<F>,
    },
    LayerNorm(LayerNorm<F>),
    Activation(Activation),
}

/// A linear layer with the activation that follows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Linear<F> {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) format: Format,
    pub(crate) weights: Weights<F>,
    pub(crate) activation: Option<Activation>,
}

/// Row-major weights `[outputs, inputs]`, and the bias.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Weights<F> {
    Float {
        weight: Vec<F>,
        bias: Option<Vec<F>>,
    },
    Codes {
        codes: Vec<i8>,
        /// One per output.
        scale: Vec<f32>,
        sums: Sums,
    },
}

/// Where the codes of the input come from, and what becomes of the sums.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sums {
    Static {
        input: QuantParams<f32>,
        /// In units of input scale * scale.
        bias: Vec<i32>,
        output: Output,
    },
    Dynamic {
        bias: Option<Vec<f32>>,
    },
}

/// From the sums of a static layer onwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Output {
    Float,
    /// Codes of the activated outputs; `before` those that an activation looks up.
    Codes {
        before: Option<QuantParams<f32>>,
        after: QuantParams<f32>,
    },
}

impl<F: Float> Recipe<F> {
    pub(crate) fn linears(&self) -> impl DoubleEndedIterator<Item = &Linear<F>> {
        self.blocks.iter().filter_map(|block| match block {
            Block::Linear(linear) => Some(linear),
            _ => None,
        })
    }

    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<F>> {
        self.blocks.iter_mut().filter_map(|block| match block {
            Block::Linear(linear) => Some(linear),
            _ => None,
        })
    }

    /// Refuses a recipe that could not run: what a file may hold.
    pub(crate) fn check(&self) -> Result<()> {
        if self.inputs == 0 {
            return Err(Error::Empty { what: "the input of the engine" });
        }
        if self.linears().next().is_none() {
            return Err(Error::Empty { what: "the list of linear layers" });
        }
        self.entry.iter().chain(&self.exit).try_for_each(|&params| check_params(params))?;
        let mut width = self.inputs;
        for block in &self.blocks {
            match block {
                Block::Linear(linear) => {
                    check_shape("weight", &[linear.outputs, linear.inputs], &[linear.outputs, width])?;
                    linear.check()?;
                    width = linear.outputs;
                }
                Block::Affine { scale, shift } => {
                    check_shape("scale", &[scale.len(), shift.len()], &[width, width])?;
                    scale.iter().chain(shift).try_for_each(|&x| check_number(x.as_f64()))?;
                }
                Block::LayerNorm(norm) => check_shape("layer norm", &[norm.features()], &[width])?,
                Block::Activation(activation) => check_activation::<F>(*activation, width)?,
            }
        }
        Ok(())
    }
}

impl<F> Block<F> {
    /// The codes that go into it, if codes do.
    pub(super) fn codes_in(&self) -> Option<QuantParams<f32>> {
        match self.sums()? {
            Sums::Static { input, .. } => Some(*input),
            Sums::Dynamic { .. } => None,
        }
    }

    /// The codes that come out of it, if codes do.
    pub(super) fn codes_out(&self) -> Option<QuantParams<f32>> {
        match self.sums()? {
            Sums::Static { output: Output::Codes { after, .. }, .. } => Some(*after),
            _ => None,
        }
    }

    fn sums(&self) -> Option<&Sums> {
        match self {
            Self::Linear(Linear { weights: Weights::Codes { sums, .. }, .. }) => Some(sums),
            _ => None,
        }
    }
}

impl<F> Weights<F> {
    /// Lets go of the weights, not of scales and biases.
    pub(crate) fn take(&mut self) {
        match self {
            Self::Float { weight, .. } => *weight = Vec::new(),
            Self::Codes { codes, .. } => *codes = Vec::new(),
        }
    }
}

impl<F: Float> Linear<F> {
    /// Weights that are not zero.
    pub(crate) fn nonzero(&self) -> usize {
        match &self.weights {
            Weights::Float { weight, .. } => weight.iter().filter(|w| **w != F::zero()).count(),
            Weights::Codes { codes, .. } => codes.iter().filter(|w| **w != 0).count(),
        }
    }

    fn check(&self) -> Result<()> {
        let elements = self.inputs.checked_mul(self.outputs).filter(|&n| n > 0);
        let elements = elements.ok_or(Error::Empty { what: "the weights of a linear layer" })?;
        let outputs = &[self.outputs][..];
        self.activation.iter().try_for_each(|&activation| check_activation::<F>(activation, self.outputs))?;
        match &self.weights {
            Weights::Float { weight, bias } => {
                check_shape("weight", &[weight.len()], &[elements])?;
                weight.iter().chain(bias.iter().flatten()).try_for_each(|&x| check_number(x.as_f64()))?;
                bias.iter().try_for_each(|bias| check_shape("bias", &[bias.len()], outputs))?;
                if self.format.is_two_four() {
                    check_two_four(weight, self.inputs)?;
                }
                if self.format == Format::Palette && few_values(weight).is_none() {
                    let reason = "its weights have more than 256 different values".to_string();
                    return Err(Error::Unsupported { what: "format palette", reason });
                }
                self.agrees(!self.format.is_integer())
            }
            Weights::Codes { codes, scale, sums } => {
                check_shape("weight", &[codes.len()], &[elements])?;
                check_shape("scale", &[scale.len()], outputs)?;
                scale.iter().try_for_each(|&scale| check_scale(scale))?;
                let most = if self.format == Format::Int4 { 7 } else { 127 };
                if let Some(&code) = codes.iter().find(|code| !(-most..=most).contains(*code)) {
                    let range = "-127..=127, and -7..=7 for int4";
                    return Err(Error::OutOfRange { name: "weight code", value: f64::from(code), range });
                }
                if self.format.is_two_four() {
                    check_two_four(codes, self.inputs)?;
                }
                match sums {
                    Sums::Static { input, bias, output } => {
                        check_shape("bias", &[bias.len()], outputs)?;
                        check_params(*input)?;
                        if let Output::Codes { before, after } = output {
                            before.iter().try_for_each(|&params| check_params(params))?;
                            check_params(*after)?;
                            let looked_up = self.activation.is_some_and(|activation| !activation.is_limit());
                            self.agrees(before.is_some() == looked_up)?;
                        }
                        self.agrees(self.format.is_static())
                    }
                    Sums::Dynamic { bias } => {
                        bias.iter().flatten().try_for_each(|&x| check_number(x.into()))?;
                        bias.iter().try_for_each(|bias| check_shape("bias", &[bias.len()], outputs))?;
                        Bound::dynamic(codes, self.inputs).fits_or_refuse()?;
                        self.agrees(self.format == Format::Int8Dynamic)
                    }
                }
            }
        }
    }

    fn agrees(&self, agrees: bool) -> Result<()> {
        if agrees {
            return Ok(());
        }
        let reason = format!("the weights of a layer are not of its format, {}", self.format);
        Err(Error::Unsupported { what: "the recipe of an engine", reason })
    }
}

fn check_activation<F: Float>(activation: Activation, width: usize) -> Result<()> {
    Layer::<F>::Activation(activation).outputs(width).map(drop)
}

pub(crate) fn check_params(params: QuantParams<f32>) -> Result<()> {
    check_scale(params.scale)?;
    if (0..=255).contains(&params.zero_point) {
        return Ok(());
    }
    Err(Error::OutOfRange { name: "zero point", value: f64::from(params.zero_point), range: "0..=255" })
}

fn check_number(value: f64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::NotFinite { what: "weight or bias of an engine", index: vec![], value })
}

fn check_scale(scale: f32) -> Result<()> {
    if scale.is_finite() && scale > 0.0 {
        return Ok(());
    }
    Err(Error::OutOfRange { name: "scale", value: f64::from(scale), range: "finite and above 0" })
}
