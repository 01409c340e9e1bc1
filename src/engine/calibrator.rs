//! From a float network and some of its inputs to integers: where codes lie, and what their scales are.
//!
//! The two runtimes that execute quantized ONNX files want opposite things:
//!
//! | | [`Target::OnnxRuntime`] | [`Target::TensorRt`] |
//! |---|---|---|
//! | activations | affine, 0..=255 (or -128..=127) | symmetric, -128..=127, zero point 0 |
//! | ReLU, clip | the limits of the codes | a float layer, codes after it |
//! | bias | 32-bit integers | floats |
//!
//! Both: int8 weights, symmetric, one scale per output; batch norms folded; other activations and layer norms in
//! floats between the integer layers; the last layer gives floats.

use ndarray::{Array1, Array2, ArrayView2};

use super::quantized::{CodeParams, IntegerBias, QuantizedLayer, QuantizedLinear, QuantizedMlp, real};
use crate::error::{Error, Result};
use crate::float::{check_finite, check_shape};
use crate::nn::{Layer, Linear, Mlp};
use crate::quantize::{CodeRange, MinMaxObserver, Observer, QuantParams, Range, Scheme};

/// The runtime that will execute the integers.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Target {
    /// ONNX Runtime: every linear layer becomes one integer kernel.
    #[default]
    OnnxRuntime,
    /// TensorRT's explicit quantization.
    TensorRt,
}

/// Turns a float network into integers, with ranges measured on calibration data.
///
/// ```
/// use ndarray::Array2;
/// use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::engine::{Calibrator, Target};
/// use trimnet::nn::Mlp;
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let mlp = Mlp::builder(4).linear(16).relu().linear(2).build::<f32>(&mut rng)?;
/// let data = Array2::from_shape_fn((64, 4), |(n, i)| (n * 4 + i) as f32 / 128.0 - 1.0);
/// let integers = Calibrator::new(Target::OnnxRuntime).quantize(&mlp, data.view())?;
/// let difference = integers.predict(data.view())? - mlp.predict(data.view())?;
/// assert!(difference.iter().all(|d| d.abs() < 0.05));
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Calibrator {
    target: Target,
    signed: bool,
    reduced: bool,
}

impl Calibrator {
    /// For this runtime, with uint8 activations where it allows them.
    pub fn new(target: Target) -> Self {
        Self { target, signed: false, reduced: false }
    }

    /// Int8 activations for ONNX Runtime too, as its own tool makes by default. The same precision.
    #[must_use]
    pub fn with_signed_activations(self) -> Self {
        Self { signed: true, ..self }
    }

    /// Weights in -64..=64, for CPUs without VNNI, on which ONNX Runtime's products of uint8 and int8 saturate.
    #[must_use]
    pub fn with_reduced_weights(self) -> Self {
        Self { reduced: true, ..self }
    }

    /// Measures the range of every linear layer's input on `data`, `[n, inputs]`, and rounds all weights.
    ///
    /// # Errors
    /// [`Error::Empty`] without data; [`Error::Shape`] for another number of inputs; [`Error::NotFinite`];
    /// [`Error::Unsupported`] for a layer whose sums could leave 32 bits.
    pub fn quantize(&self, mlp: &Mlp<f32>, data: ArrayView2<'_, f32>) -> Result<QuantizedMlp> {
        check_shape("calibration data", data.shape(), &[data.nrows(), mlp.inputs()])?;
        check_finite("calibration data", &data)?;
        if data.is_empty() {
            return Err(Error::Empty { what: "calibration data" });
        }
        let mlp = mlp.fold_batch_norm()?;
        let inputs = self.input_params(&mlp, data)?;
        let mut layers = Vec::new();
        let mut rest = mlp.layers().iter().zip(&inputs).peekable();
        while let Some((layer, input)) = rest.next() {
            let (Layer::Linear(linear), Some(input)) = (layer, *input) else {
                layers.push(QuantizedLayer::Real(layer.clone()));
                continue;
            };
            // The codes of the next layer's input, if nothing but a ReLU or a clip lies between and their limits do
            // its work.
            let mut ahead = rest.clone();
            let limit = match ahead.peek() {
                Some((Layer::Activation(activation), _)) if activation.is_limit() => Some(*activation),
                _ => None,
            };
            ahead.next_if(|_| limit.is_some());
            let output = ahead.peek().and_then(|(_, params)| **params).filter(|params| {
                self.target == Target::OnnxRuntime && limit.is_none_or(|limit| params.limit(limit))
            });
            if output.is_some() {
                rest = ahead;
            }
            layers.push(QuantizedLayer::Linear(self.linear(linear, input, output)?));
        }
        QuantizedMlp::new(mlp.inputs(), layers)
    }

    /// Scale and zero point of the input of every linear layer; `None` for the others.
    fn input_params(&self, mlp: &Mlp<f32>, data: ArrayView2<'_, f32>) -> Result<Vec<Option<CodeParams>>> {
        const ROWS: usize = 1024;
        let mut observers = vec![MinMaxObserver::default(); mlp.layers().len()];
        for start in (0..data.nrows()).step_by(ROWS) {
            let end = (start + ROWS).min(data.nrows());
            let mut x = data.slice(ndarray::s![start..end, ..]).to_owned();
            for (layer, observer) in mlp.layers().iter().zip(&mut observers) {
                if matches!(layer, Layer::Linear(_)) {
                    x.rows().into_iter().for_each(|row| observer.observe(&row.to_vec()));
                }
                x = real(layer, x)?;
            }
        }
        let params = |(layer, observer): (&Layer<f32>, &MinMaxObserver<f32>)| match layer {
            Layer::Linear(_) => self.activation_params(observer.range()?).map(Some),
            _ => Ok(None),
        };
        mlp.layers().iter().zip(&observers).map(params).collect()
    }

    fn activation_params(&self, range: Range<f32>) -> Result<CodeParams> {
        let signed = self.signed || self.target == Target::TensorRt;
        let scheme = match self.target {
            Target::OnnxRuntime => Scheme::uint8_affine().with_signed(signed)?,
            // The scale of -127..=127; the code -128 is there for what the calibration did not see.
            Target::TensorRt => Scheme::int8_symmetric_127(),
        };
        let QuantParams { scale, mut zero_point } = scheme.params(range);
        if self.target == Target::OnnxRuntime && range.min() >= 0.0 {
            // Also for data of all zeros, which would get the code 0: only the lowest code makes the clip a ReLU.
            zero_point = scheme.qmin();
        }
        CodeParams::new(scale, zero_point, signed)
    }

    fn linear(
        &self,
        linear: &Linear<f32>,
        input: CodeParams,
        output: Option<CodeParams>,
    ) -> Result<QuantizedLinear> {
        let codes = if self.reduced { CodeRange::ReducedNarrow } else { CodeRange::Narrow };
        let scheme = Scheme::int8_symmetric_127().with_codes(codes)?;
        let (weight, bias) = (linear.weight(), linear.bias());
        let mut quantized = Array2::zeros(weight.dim());
        let mut scales = Array1::zeros(weight.nrows());
        for (o, (row, mut codes)) in weight.rows().into_iter().zip(quantized.rows_mut()).enumerate() {
            let scale = row_scale(&scheme, &row.to_vec(), bias.map_or(0.0, |bias| bias[o]), input.scale())?;
            let bound = scheme.qmax() as f32;
            codes.zip_mut_with(&row, |code, &w| {
                *code = (w / scale).round_ties_even().clamp(-bound, bound) as i8;
            });
            scales[o] = scale;
        }
        let bias = match (bias, self.target) {
            (None, _) => IntegerBias::None,
            (Some(bias), Target::TensorRt) => IntegerBias::Real(bias.to_owned()),
            (Some(bias), Target::OnnxRuntime) => {
                IntegerBias::Codes(Array1::from_iter(bias.iter().zip(&scales).map(|(&b, &scale)| {
                    (f64::from(b) / f64::from(input.scale() * scale)).round_ties_even() as i32
                })))
            }
        };
        QuantizedLinear::new(quantized, scales, bias, input, output)
    }
}

/// The scale of one row of weights, large enough for its bias and for a normal product with the input's scale.
fn row_scale(scheme: &Scheme, row: &[f32], bias: f32, input: f32) -> Result<f32> {
    let scale = scheme.params(Range::of(row)?).scale;
    let bias = f64::from(bias.abs()) / f64::from(input);
    let of_bias = if row.iter().all(|&w| (w / scale).round_ties_even() == 0.0) {
        // Nothing but the bias is left of this output: it gets twenty bits, not the steps of any scale.
        if bias > 0.0 {
            return Ok(((bias / f64::from(1 << 20)) as f32).max(f32::MIN_POSITIVE / input.min(1.0)));
        } else {
            0.0
        }
    } else {
        // A bias far above the weights would leave 32 bits: half of them for it, half for the sum.
        bias / f64::from(1 << 30)
    };
    Ok(scale.max(of_bias as f32).max(2.0 * f32::MIN_POSITIVE / input.min(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Activation;
    use ndarray::{Array, array};
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    fn data() -> Array2<f32> {
        Array::from_shape_fn((200, 6), |(n, i)| ((n * 31 + i * 17) % 101) as f32 / 40.0 - 1.0)
    }

    fn network() -> Mlp<f32> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(4);
        Mlp::builder(6).linear(12).batch_norm().relu().linear(8).tanh().linear(3).build(&mut rng).unwrap()
    }

    #[test]
    fn stays_close_to_the_floats_for_both_targets() {
        let exact = network().predict(data().view()).unwrap();
        for calibrator in [
            Calibrator::new(Target::OnnxRuntime),
            Calibrator::new(Target::OnnxRuntime).with_signed_activations(),
            Calibrator::new(Target::OnnxRuntime).with_reduced_weights(),
            Calibrator::new(Target::TensorRt),
        ] {
            let integers = calibrator.quantize(&network(), data().view()).unwrap();
            let worst = (integers.predict(data().view()).unwrap() - &exact).mapv(f32::abs);
            assert!(worst.iter().all(|&e| e < 0.06), "{calibrator:?}: {worst}");
        }
    }

    #[test]
    fn onnx_runtime_has_no_relu_left_and_tensor_rt_no_zero_point() {
        let ort = Calibrator::new(Target::OnnxRuntime).quantize(&network(), data().view()).unwrap();
        assert_eq!(ort.layers().len(), 4); // linear, linear, tanh, linear
        let trt = Calibrator::new(Target::TensorRt).quantize(&network(), data().view()).unwrap();
        assert_eq!(trt.layers().len(), 5);
        for layer in trt.layers() {
            if let QuantizedLayer::Linear(linear) = layer {
                assert_eq!((linear.input().zero_point(), linear.output()), (0, None));
                assert!(matches!(linear.bias(), IntegerBias::Real(_)));
            }
        }
    }

    #[test]
    fn dead_outputs_keep_their_bias_and_dead_layers_their_relu() {
        let first = Linear::new(array![[0.0, 0.0], [1e-9, 0.0]], Some(array![-0.3, -5.0])).unwrap();
        let second = Linear::new(array![[1.0, 1.0]], Some(array![0.7])).unwrap();
        let layers = vec![Layer::Linear(first), Layer::Activation(Activation::Relu), Layer::Linear(second)];
        let mlp = Mlp::from_layers(2, layers).unwrap();
        let x = array![[0.5, 1.0], [0.0, 0.0]];
        for signed in [false, true] {
            let calibrator = Calibrator { signed, ..Calibrator::new(Target::OnnxRuntime) };
            let y = calibrator.quantize(&mlp, x.view()).unwrap().predict(x.view()).unwrap();
            assert!(y.iter().all(|y| (y - 0.7).abs() < 0.01), "{y}");
        }
    }

    #[test]
    fn refuses_data_that_calibrate_nothing() {
        let calibrator = Calibrator::new(Target::OnnxRuntime);
        let error = |x: Array2<f32>| calibrator.quantize(&network(), x.view()).unwrap_err().to_string();
        assert_eq!(error(Array2::zeros((0, 6))), "calibration data is empty");
        assert_eq!(error(Array2::zeros((3, 5))), "calibration data has shape [3, 5], expected [3, 6]");
        assert!(error(Array2::from_elem((1, 6), f32::NAN)).contains("only finite numbers"));
    }
}
