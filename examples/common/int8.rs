//! A network in integers: int8 weights, uint8 activations, exact integer products.

use std::path::Path;

use trimnet::io::trim::{Codes, EncodeOptions, TensorData, Values, save_tensors};
use trimnet::ndarray::{Array1, Array2, ArrayView2, Ix2};
use trimnet::nn::{Activation, Layer, Mlp};
use trimnet::quantize::{QuantizedTensor, Scheme, UniformQuantizer, quantized_product};
use trimnet::{Compressed, Compressor, Error, Result};

/// The weights of each neuron have a scale of their own, and so have the inputs of each row, taken from the row itself:
/// an answer does not depend on what else is in the batch.
pub struct Int8 {
    steps: Vec<Step>,
    activations: UniformQuantizer,
}

enum Step {
    Linear { weight: QuantizedTensor<f32, Ix2>, bias: Option<Array1<f32>> },
    Activation(Activation),
}

impl Int8 {
    /// Quantizes a network of linear layers and activations; dropout and noise are left out, as in every inference.
    pub fn new(mlp: &Mlp<f32>) -> Result<Self> {
        let weights = UniformQuantizer::new(Scheme::int8_symmetric_127().per_channel(0));
        let mut steps = Vec::new();
        for layer in mlp.layers() {
            match layer {
                Layer::Linear(linear) => steps.push(Step::Linear {
                    weight: weights.compress(linear.weight())?,
                    bias: linear.bias().map(|bias| bias.to_owned()),
                }),
                Layer::Activation(activation) => steps.push(Step::Activation(*activation)),
                Layer::Dropout(_) | Layer::GaussianNoise(_) => {}
                _ => {
                    let reason = "fold norms into the linear layers before quantizing".to_owned();
                    return Err(Error::Unsupported { what: "a norm in integers", reason });
                }
            }
        }
        Ok(Self { steps, activations: UniformQuantizer::new(Scheme::uint8_affine().per_channel(0)) })
    }

    /// `[n, inputs]` to `[n, outputs]`.
    pub fn predict(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        let mut x = x.to_owned();
        for step in &self.steps {
            x = match step {
                Step::Linear { weight, bias } => {
                    let y = quantized_product(&self.activations.compress(x.view())?, weight)?;
                    match bias {
                        Some(bias) => y + bias,
                        None => y,
                    }
                }
                Step::Activation(activation) => activation.apply(x),
            };
        }
        Ok(x)
    }

    /// Weights, scales and biases by name, in one `.trim` file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for (index, (weight, bias)) in self.linears().enumerate() {
            let codes = Codes::new(8, true, weight.codes().iter().copied().collect())?;
            let floats = |values: &[f32]| TensorData::new(vec![values.len()], Values::F32(values.to_vec()));
            tensors.push((
                format!("{index}.weight"),
                TensorData::new(weight.shape().to_vec(), Values::Codes(codes))?,
            ));
            tensors.push((format!("{index}.scale"), floats(weight.scales())?));
            if let Some(bias) = bias {
                tensors.push((format!("{index}.bias"), floats(&bias.to_vec())?));
            }
        }
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        save_tensors(path, &tensors, &EncodeOptions::default())
    }

    /// Codes and biases that are not zero.
    pub fn nonzero(&self) -> usize {
        let of = |(weight, bias): (&QuantizedTensor<f32, Ix2>, Option<&Array1<f32>>)| {
            weight.codes().iter().filter(|&&code| code != 0).count()
                + bias.into_iter().flatten().filter(|&&b| b != 0.0).count()
        };
        self.linears().map(of).sum()
    }

    /// Signal to quantization noise of all weights together, in decibels.
    pub fn sqnr_db(&self, original: &Mlp<f32>) -> Result<f64> {
        let (mut signal, mut noise) = (0.0, 0.0);
        for (linear, (weight, _)) in original.linears().zip(self.linears()) {
            for (&w, &q) in linear.weight().iter().zip(&weight.decompress()?) {
                signal += f64::from(w).powi(2);
                noise += f64::from(w - q).powi(2);
            }
        }
        Ok(10.0 * (signal / noise).log10())
    }

    fn linears(&self) -> impl Iterator<Item = (&QuantizedTensor<f32, Ix2>, Option<&Array1<f32>>)> {
        self.steps.iter().filter_map(|step| match step {
            Step::Linear { weight, bias } => Some((weight, bias.as_ref())),
            Step::Activation(_) => None,
        })
    }
}
