//! Numbers to codes: the weights and biases of an integer layer.
//!
//! ```text
//! scale[j] = max over k of |w[j, k]| / 127          code = rne(w / scale)           (4 bits: / 7, least squared error)
//! bias[j]  = rne(b[j] / (input scale * scale[j]))   in 32 bits
//! ```
//!
//! A bias that would need more than 30 bits makes the scale of its output larger, as ONNX Runtime's tool does. An output
//! without weights has any scale: one that keeps its bias exact to 24 bits.

use ndarray::ArrayView2;

use super::format::Format;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::quantize::{RangeMethod, Scheme, UniformQuantizer};
use crate::traits::Compressor;

/// Codes and the scale of each output.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WeightCodes {
    pub(super) codes: Vec<i8>,
    pub(super) scale: Vec<f32>,
}

/// A bias of more codes than this enlarges the scale: the sum of products keeps as much room.
const LARGEST_BIAS: f32 = (1 << 30) as f32;

/// Quantizes weights `[outputs, inputs]` one output at a time.
pub(super) fn quantize_weights<F: Float>(
    weight: &[F],
    outputs: usize,
    inputs: usize,
    format: Format,
) -> Result<WeightCodes> {
    // In f32, as the scales are: what a runtime would see.
    let narrow: Vec<f32> = weight.iter().map(|w| w.as_f64() as f32).collect();
    let view = ArrayView2::from_shape((outputs, inputs), &narrow)
        .map_err(|error| Error::Unsupported { what: "weights", reason: error.to_string() })?;
    let quantizer = if format == Format::Int4 {
        UniformQuantizer::new(Scheme::symmetric(4)?.per_channel(0)).with_range(RangeMethod::LeastSquares)?
    } else {
        UniformQuantizer::new(Scheme::int8_symmetric_127().per_channel(0))
    };
    let tensor = quantizer.compress(view)?;
    let packed = tensor.packed();
    let codes = packed.to_i8().unwrap_or_else(|| packed.iter().map(|code| code as i8).collect());
    Ok(WeightCodes { codes, scale: tensor.scales().to_vec() })
}

impl WeightCodes {
    /// Gives outputs whose bias their scale cannot hold another scale.
    pub(super) fn make_room<F: Float>(&mut self, weight: &[F], bias: &[F], inputs: usize, input_scale: f32) {
        let rows = weight.chunks_exact(inputs.max(1)).zip(self.codes.chunks_exact_mut(inputs.max(1)));
        for ((scale, &bias), (weight, codes)) in self.scale.iter_mut().zip(bias).zip(rows) {
            let bias = (bias.as_f64() as f32).abs();
            if weight.iter().all(|&w| w == F::zero()) {
                let exact = bias / input_scale / (1 << 24) as f32;
                *scale = if exact.is_normal() && exact.is_finite() { exact } else { 1.0 };
            } else if bias / (input_scale * *scale) > LARGEST_BIAS {
                let larger = bias / input_scale / LARGEST_BIAS;
                if larger.is_finite() {
                    *scale = larger;
                    for (code, w) in codes.iter_mut().zip(weight) {
                        *code = (w.as_f64() as f32 / larger).round_ties_even().clamp(-127.0, 127.0) as i8;
                    }
                }
            }
        }
    }

    /// Biases in units of the sums; beyond 32 bits they saturate.
    pub(super) fn bias_codes<F: Float>(&self, bias: &[F], input_scale: f32) -> Vec<i32> {
        let code = |(&scale, &bias): (&f32, &F)| {
            // The cast saturates.
            (bias.as_f64() as f32 / (input_scale * scale)).round_ties_even() as i32
        };
        self.scale.iter().zip(bias).map(code).collect()
    }
}

/// Refuses weights of which more than two in four neighbours are not 0.
pub(crate) fn check_two_four<T: PartialEq + Default>(weight: &[T], inputs: usize) -> Result<()> {
    for (j, row) in weight.chunks_exact(inputs.max(1)).enumerate() {
        for (g, group) in row.chunks(4).enumerate() {
            let kept = group.iter().filter(|w| **w != T::default()).count();
            if kept > 2 {
                return Err(Error::Unsupported {
                    what: "format 2:4",
                    reason: format!(
                        "output {j} has {kept} weights in the group of inputs {}..{}; prune with NmPruner::keep(2, 4) \
                         first",
                        4 * g,
                        (4 * g + 4).min(inputs)
                    ),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_without_weights_keeps_its_bias() {
        let weight = [0.0f32, 0.0, 1.0, -1.0];
        let mut weights = quantize_weights(&weight, 2, 2, Format::Int8).unwrap();
        let bias = [0.123_456_f32, 0.5];
        weights.make_room(&weight, &bias, 2, 0.25);
        let codes = weights.bias_codes(&bias, 0.25);
        let back = codes[0] as f32 * (0.25 * weights.scale[0]);
        assert!((back - bias[0]).abs() < 1e-6, "{back}");
        assert_eq!(weights.scale[1], 1.0 / 127.0);
    }

    #[test]
    fn a_bias_beyond_thirty_bits_enlarges_the_scale() {
        let weight = [1e-7f32, -1e-7];
        let mut weights = quantize_weights(&weight, 1, 2, Format::Int8).unwrap();
        weights.make_room(&weight, &[5.0f32], 2, 0.01);
        let bias = weights.bias_codes(&[5.0f32], 0.01)[0];
        assert!((1 << 29..=1 << 30).contains(&bias), "{bias}");
        assert!((bias as f32 * (0.01 * weights.scale[0]) - 5.0).abs() < 1e-5);
    }

    #[test]
    fn refuses_three_of_four_and_names_them() {
        let error = check_two_four(&[1.0f32, 0.0, 2.0, 0.0, 1.0, 1.0, 1.0], 7).unwrap_err().to_string();
        assert!(error.contains("output 0") && error.contains("4..7"), "{error}");
        assert!(check_two_four(&[1.0f32, 0.0, 2.0, 0.0, 1.0, 1.0], 6).is_ok());
    }
}
