//! Numbers to codes: the weights and biases of an integer layer.
//!
//! ```text
//! scale[j] = max over k of |w[j, k]| / 127          code = rne(w / scale)           (4 bits: / 7, least squared error)
//! bias[j]  = rne(b[j] / (input scale * scale[j]))   the product in f32, the quotient in f64, the code in 32 bits
//! ```
//!
//! A bias that would need more than 30 bits makes the scale of its output larger, as ONNX Runtime's tool does. An output
//! without codes but 0 has any scale: one that keeps its bias exact to 24 bits.

use ndarray::ArrayView2;

use super::format::Format;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::distinct;
use crate::quantize::{GptqQuantizer, PaletteQuantizer, RangeMethod, Scheme, UniformQuantizer};
use crate::traits::{Compressed, Compressor};

/// Codes and the scale of each output.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WeightCodes {
    pub(super) codes: Vec<i8>,
    pub(super) scale: Vec<f32>,
}

/// A bias of more codes than this enlarges the scale: the sum of products keeps as much room.
const LARGEST_BIAS: f32 = (1 << 30) as f32;

/// Quantizes weights `[outputs, inputs]` one output at a time; with typical `rows` of inputs and a damping, by GPTQ.
pub(super) fn quantize_weights<F: Float>(
    weight: &[F],
    outputs: usize,
    inputs: usize,
    format: Format,
    gptq: Option<(ArrayView2<'_, f32>, f64)>,
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
    let tensor = match gptq {
        Some((rows, damping)) => GptqQuantizer::new(quantizer, rows, damping)?.compress(view)?,
        None => quantizer.compress(view)?,
    };
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
            if codes.iter().all(|&code| code == 0) {
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
            (f64::from(bias.as_f64() as f32) / f64::from(input_scale * scale)).round_ties_even() as i32
        };
        self.scale.iter().zip(bias).map(code).collect()
    }
}

/// Different values among weights, if they are at most 256: what a palette can name. `-0.0` and `0.0` are two.
pub(crate) fn few_values<F: Float>(weight: &[F]) -> Option<usize> {
    // Exact, and so as many.
    let wide: Vec<f64> = weight.iter().map(|w| w.as_f64()).collect();
    distinct(&wide).map(|values| values.len())
}

/// Weights `[outputs, inputs]` of at most 256 different values, `-0.0` being `0.0`: themselves, or clustered to `entries`.
pub(super) fn share_values<F: Float>(
    weight: &[F],
    (outputs, inputs): (usize, usize),
    entries: usize,
) -> Result<Vec<F>> {
    let quantizer = PaletteQuantizer::new(entries)?;
    let weight: Vec<F> = weight.iter().map(|&w| w + F::zero()).collect();
    if few_values(&weight).is_some() {
        return Ok(weight);
    }
    let view = ArrayView2::from_shape((outputs, inputs), &weight)
        .map_err(|error| Error::Unsupported { what: "weights", reason: error.to_string() })?;
    Ok(quantizer.compress(view)?.decompress()?.into_iter().collect())
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
                         first, and before that cut dead neurons out with Mlp::shrink",
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
        let mut weights = quantize_weights(&weight, 2, 2, Format::Int8, None).unwrap();
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
        let mut weights = quantize_weights(&weight, 1, 2, Format::Int8, None).unwrap();
        weights.make_room(&weight, &[5.0f32], 2, 0.01);
        let bias = weights.bias_codes(&[5.0f32], 0.01)[0];
        assert!((1 << 29..=1 << 30).contains(&bias), "{bias}");
        assert!((bias as f32 * (0.01 * weights.scale[0]) - 5.0).abs() < 1e-5);
    }

    #[test]
    fn few_values_are_kept_and_many_are_clustered() {
        let few: Vec<f32> = (0..512).map(|i| if i == 256 { -0.0 } else { (i % 256) as f32 }).collect();
        assert_eq!(few_values(&few), None);
        let shared = share_values(&few, (2, 256), 2).unwrap();
        assert_eq!((few_values(&shared), &shared), (Some(256), &few));
        let many: Vec<f32> = (0..512).map(|i| i as f32).collect();
        assert_eq!(few_values(&many), None);
        assert_eq!(few_values(&share_values(&many, (2, 256), 20).unwrap()), Some(20));
        assert!(share_values(&many, (2, 256), 257).is_err() && share_values(&few, (2, 256), 1).is_err());
    }

    #[test]
    fn refuses_three_of_four_and_names_them() {
        let error = check_two_four(&[1.0f32, 0.0, 2.0, 0.0, 1.0, 1.0, 1.0], 7).unwrap_err().to_string();
        assert!(error.contains("output 0") && error.contains("4..7"), "{error}");
        assert!(check_two_four(&[1.0f32, 0.0, 2.0, 0.0, 1.0, 1.0], 6).is_ok());
    }

    #[test]
    fn an_output_whose_weights_have_decayed_keeps_its_bias() {
        for format in [Format::Int8, Format::Int4, Format::SparseInt8] {
            for decayed in [1e-30f32, 1e-36, 1e-37, 1e-40, 1e-45] {
                let weight = [decayed, -decayed, 1.0, -1.0];
                let mut weights = quantize_weights(&weight, 2, 2, format, None).unwrap();
                let bias = [0.3f32, 0.1];
                weights.make_room(&weight, &bias, 2, 4.0);
                let back = weights.bias_codes(&bias, 4.0)[0] as f32 * (4.0 * weights.scale[0]);
                assert!((back - 0.3).abs() < 1e-6, "{format} {decayed}: {back}");
            }
        }
    }

    #[test]
    fn large_biases_are_divided_in_f64() {
        let weights = WeightCodes { codes: vec![1], scale: vec![0.001] };
        let mut differ = 0;
        for bias in (1..200).map(|i| 1234.567 * i as f32) {
            let exact = (f64::from(bias) / f64::from(0.03f32 * 0.001)).round_ties_even() as i32;
            assert_eq!(weights.bias_codes(&[bias], 0.03), [exact]);
            differ += i32::from((bias / (0.03f32 * 0.001)).round_ties_even() as i32 != exact);
        }
        assert!(differ > 20, "the f32 quotient is another one: {differ}");
    }
}
