//! A network in integers, as a description that every file format and engine can take: codes, scales, zero points.
//!
//! ```text
//! q      = clip(rne(x / sx) + zx)                                      input codes, one scale for all
//! acc[o] = b[o] + sum_i (q[i] - zx) * w[o, i]                          exact in i32; w zero point 0
//! float output     y[o] = acc[o] * (sx * sw[o])  (+ b[o] if the bias is real)
//! integer output   p[o] = clip(rne(acc[o] * (sx * sw[o] / sy)) + zy)   y = (p - zy) * sy
//! ```
//!
//! All factors are formed in `f32` in exactly this order, which is what ONNX Runtime 1.32 computes: the codes are
//! equal bit for bit. A ReLU before an integer output whose zero point is the lowest code is the clip itself and
//! does not appear. [`QuantizedMlp::predict`] is the definition, plain and slow.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};

use crate::error::{Error, Result};
use crate::float::{Float, check_finite, check_shape};
use crate::nn::{Activation, Layer, Mlp};
use crate::quantize::QuantParams;
use crate::traits::Normalizer;

/// Scale, zero point and type of the 8-bit codes of one activation.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "RawCodeParams", into = "RawCodeParams"))]
pub struct CodeParams {
    scale: f32,
    zero_point: i32,
    signed: bool,
}

impl CodeParams {
    /// Codes -128..=127 if `signed`, else 0..=255.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless the scale is a normal number above 0 and the zero point is a code.
    pub fn new(scale: f32, zero_point: i32, signed: bool) -> Result<Self> {
        if !(scale.is_normal() && scale > 0.0) {
            return Err(Error::OutOfRange {
                name: "scale",
                value: scale.into(),
                range: "a normal f32 above 0",
            });
        }
        let params = Self { scale, zero_point, signed };
        if !(params.qmin()..=params.qmax()).contains(&zero_point) {
            return Err(Error::OutOfRange {
                name: "zero_point",
                value: zero_point.into(),
                range: if signed { "-128..=127" } else { "0..=255" },
            });
        }
        Ok(params)
    }

    /// Distance of neighbouring codes.
    pub fn scale(self) -> f32 {
        self.scale
    }

    /// The code of 0.
    pub fn zero_point(self) -> i32 {
        self.zero_point
    }

    /// Whether codes are int8; else uint8.
    pub fn is_signed(self) -> bool {
        self.signed
    }

    /// Scale and zero point.
    pub fn params(self) -> QuantParams<f32> {
        QuantParams { scale: self.scale, zero_point: self.zero_point }
    }

    /// The lowest code.
    pub fn qmin(self) -> i32 {
        if self.signed { -128 } else { 0 }
    }

    /// The highest code.
    pub fn qmax(self) -> i32 {
        if self.signed { 127 } else { 255 }
    }

    /// Whether the clip at the lowest code is a ReLU.
    pub fn clips_at_zero(self) -> bool {
        self.zero_point == self.qmin()
    }

    /// Whether the lowest and the highest code are the limits of this activation.
    pub(super) fn limit(self, activation: Activation) -> bool {
        match activation {
            Activation::Relu => self.clips_at_zero(),
            Activation::Clip { min, max } => {
                (self.quantize(min as f32), self.quantize(max as f32)) == (self.qmin(), self.qmax())
            }
            _ => false,
        }
    }

    /// The code of `x`: ONNX's QuantizeLinear.
    pub fn quantize(self, x: f32) -> i32 {
        self.code(x / self.scale)
    }

    /// Puts the clip at the lowest and the highest code behind layers that end without limits of their own. A quantizer
    /// leaves out ReLU, ReLU6 and Hardtanh, because the codes do their work, and nothing tells them apart afterwards:
    /// a ReLU whose largest output was 6 has the codes of a ReLU6. The clip computes what the integers do in each
    /// case. Behind an activation that is still there, the ends of the codes are calibration alone.
    pub(crate) fn put_clip<F: Float>(self, layers: &mut Vec<Layer<F>>) {
        let idle = |layer: &&Layer<F>| matches!(layer, Layer::Dropout(_) | Layer::GaussianNoise(_));
        let last = layers.iter().rev().find(|layer| !idle(layer));
        if let Some(Layer::Linear(_) | Layer::BatchNorm(_) | Layer::LayerNorm(_)) = last {
            let number = |code: i32| f64::from(code - self.zero_point) * f64::from(self.scale);
            let (min, max) = (number(self.qmin()), number(self.qmax()));
            let most = f64::from(f32::MAX);
            layers.push(Layer::Activation(Activation::Clip { min: min.max(-most), max: max.min(most) }));
        }
    }

    /// The number that a code stands for: ONNX's DequantizeLinear.
    pub fn dequantize(self, code: i32) -> f32 {
        (code - self.zero_point) as f32 * self.scale
    }

    /// Rounds a number of steps to a code. NaN becomes the lowest code.
    fn code(self, steps: f32) -> i32 {
        let code = steps.round_ties_even() + self.zero_point as f32;
        code.max(self.qmin() as f32).min(self.qmax() as f32) as i32
    }

    /// The largest distance of a code from the zero point.
    fn reach(self) -> i64 {
        i64::from((self.qmax() - self.zero_point).max(self.zero_point - self.qmin()))
    }
}

/// What is added to the sums of an integer layer, one number per output.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum IntegerBias {
    /// Nothing.
    None,
    /// To the accumulator: integers of scale `sx * sw[o]` (ONNX Runtime, TFLite).
    Codes(Array1<i32>),
    /// To the float output (TensorRT).
    Real(Array1<f32>),
}

/// A linear layer of int8 weights: codes in, codes or floats out.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "RawLinear", into = "RawLinear"))]
pub struct QuantizedLinear {
    weight: Array2<i8>,
    scales: Array1<f32>,
    bias: IntegerBias,
    input: CodeParams,
    output: Option<CodeParams>,
}

impl QuantizedLinear {
    /// `weight` `[out, in]`, one scale per output, zero point 0.
    ///
    /// # Errors
    /// [`Error::Empty`] without weights; [`Error::Shape`] for scales or a bias of another length;
    /// [`Error::OutOfRange`] unless scales and their products with the input's are normal numbers above 0;
    /// [`Error::NotFinite`]; [`Error::Unsupported`] for a real bias before an integer output, and for sums that
    /// could leave `i32`.
    pub fn new(
        weight: Array2<i8>,
        scales: Array1<f32>,
        bias: IntegerBias,
        input: CodeParams,
        output: Option<CodeParams>,
    ) -> Result<Self> {
        let outputs = weight.nrows();
        if weight.is_empty() {
            return Err(Error::Empty { what: "weight" });
        }
        check_shape("scales", scales.shape(), &[outputs])?;
        for scale in scales.iter().flat_map(|&scale| [scale, scale * input.scale]) {
            if !(scale.is_normal() && scale > 0.0) {
                let range = "a normal f32 above 0, also times the scale of the input";
                return Err(Error::OutOfRange { name: "scale of a weight", value: scale.into(), range });
            }
        }
        match &bias {
            IntegerBias::None => {}
            IntegerBias::Codes(codes) => check_shape("bias", codes.shape(), &[outputs])?,
            IntegerBias::Real(bias) => {
                check_shape("bias", bias.shape(), &[outputs])?;
                check_finite("bias", &bias.view())?;
                if output.is_some() {
                    let reason = "the sums become codes before it could be added; make it integers".into();
                    return Err(Error::Unsupported { what: "a real bias of an integer output", reason });
                }
            }
        }
        let linear = Self { weight, scales, bias, input, output };
        linear.prove_no_overflow()?;
        Ok(linear)
    }

    fn prove_no_overflow(&self) -> Result<()> {
        for (o, row) in self.weight.rows().into_iter().enumerate() {
            let sum: i64 = row.iter().map(|&w| i64::from(w).abs() * self.input.reach()).sum();
            let bias = match &self.bias {
                IntegerBias::Codes(codes) => i64::from(codes[o]).abs(),
                _ => 0,
            };
            if sum + bias > i64::from(i32::MAX) {
                return Err(Error::Unsupported {
                    what: "a sum of 32 bits",
                    reason: format!("output {o} could reach {}, beyond {}", sum + bias, i32::MAX),
                });
            }
        }
        Ok(())
    }

    /// Codes of the weights, `[out, in]`, zero point 0.
    pub fn weight(&self) -> ArrayView2<'_, i8> {
        self.weight.view()
    }

    /// One scale per output.
    pub fn scales(&self) -> ArrayView1<'_, f32> {
        self.scales.view()
    }

    /// What is added to the sums.
    pub fn bias(&self) -> &IntegerBias {
        &self.bias
    }

    /// What the inputs are rounded to.
    pub fn input(&self) -> CodeParams {
        self.input
    }

    /// What the outputs are rounded to; `None` for floats.
    pub fn output(&self) -> Option<CodeParams> {
        self.output
    }

    /// The scale of the accumulators, `sx * sw[o]`.
    pub fn accumulator_scales(&self) -> Array1<f32> {
        self.scales.mapv(|scale| self.input.scale * scale)
    }

    /// The float layer that the codes stand for.
    fn dequantized(&self) -> Result<crate::nn::Linear<f32>> {
        let scales = self.scales.view().insert_axis(Axis(1));
        let bias = match &self.bias {
            IntegerBias::None => None,
            IntegerBias::Real(bias) => Some(bias.clone()),
            IntegerBias::Codes(codes) => Some(codes.mapv(|b| b as f32) * self.accumulator_scales()),
        };
        crate::nn::Linear::new(self.weight.mapv(f32::from) * scales, bias)
    }

    fn predict(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        check_shape("input", x.shape(), &[x.nrows(), self.weight.ncols()])?;
        let centred = x.mapv(|x| self.input.quantize(x) - self.input.zero_point);
        let scales = self.accumulator_scales();
        let mut y = Array2::zeros((x.nrows(), self.weight.nrows()));
        for (x, mut y) in centred.rows().into_iter().zip(y.rows_mut()) {
            for (o, (y, w)) in y.iter_mut().zip(self.weight.rows()).enumerate() {
                // Proved in the constructor: no sum leaves i32.
                let sum: i32 = x.iter().zip(w).map(|(&x, &w)| x * i32::from(w)).sum();
                let acc = match &self.bias {
                    IntegerBias::Codes(codes) => sum + codes[o],
                    _ => sum,
                };
                *y = match (self.output, &self.bias) {
                    (Some(p), _) => p.dequantize(p.code(acc as f32 * (scales[o] / p.scale))),
                    (None, IntegerBias::Real(bias)) => acc as f32 * scales[o] + bias[o],
                    (None, _) => acc as f32 * scales[o],
                };
            }
        }
        Ok(y)
    }
}

/// One layer of a [`QuantizedMlp`].
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum QuantizedLayer {
    /// Integer weights.
    Linear(QuantizedLinear),
    /// Rounds to codes and back.
    Codes(CodeParams),
    /// A layer that stays in floats: an activation, a norm, a linear layer worth its precision.
    Real(Layer<f32>),
}

/// A network whose linear layers multiply integers.
///
/// ```
/// use ndarray::array;
/// use trimnet::engine::{CodeParams, IntegerBias, QuantizedLayer, QuantizedLinear, QuantizedMlp};
///
/// let input = CodeParams::new(0.5, 0, true)?;
/// let bias = IntegerBias::Codes(array![2]);
/// let linear = QuantizedLinear::new(array![[2, -3]], array![0.25], bias, input, None)?;
/// let network = QuantizedMlp::new(2, vec![QuantizedLayer::Linear(linear)])?;
/// // codes 2 and 4: 2 + 2 * 2 - 4 * 3 = -6, times 0.5 * 0.25
/// assert_eq!(network.predict(array![[1.0, 2.0]].view())?, array![[-0.75]]);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "RawQuantizedMlp"))]
pub struct QuantizedMlp {
    inputs: usize,
    layers: Vec<QuantizedLayer>,
}

impl QuantizedMlp {
    /// A network of these layers.
    ///
    /// # Errors
    /// As [`Mlp::from_layers`].
    pub fn new(inputs: usize, layers: Vec<QuantizedLayer>) -> Result<Self> {
        let network = Self { inputs, layers };
        network.dequantized()?;
        Ok(network)
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        let width = |layer: &QuantizedLayer| match layer {
            QuantizedLayer::Linear(linear) => Some(linear.weight.nrows()),
            QuantizedLayer::Real(Layer::Linear(linear)) => Some(linear.outputs()),
            _ => None,
        };
        self.layers.iter().rev().find_map(width).unwrap_or(self.inputs)
    }

    /// The layers, first to last.
    pub fn layers(&self) -> &[QuantizedLayer] {
        &self.layers
    }

    /// The float network that the codes stand for. Its activations are not rounded. Where codes follow a linear layer
    /// or a norm, a [`Clip`](Activation::Clip) at the lowest and the highest code stands for the ReLU, ReLU6 or
    /// Hardtanh that the codes have replaced.
    ///
    /// # Errors
    /// As [`Mlp::from_layers`].
    pub fn dequantized(&self) -> Result<Mlp<f32>> {
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            match layer {
                QuantizedLayer::Real(layer) => layers.push(layer.clone()),
                QuantizedLayer::Codes(codes) => codes.put_clip(&mut layers),
                QuantizedLayer::Linear(linear) => {
                    linear.input.put_clip(&mut layers);
                    layers.push(Layer::Linear(linear.dequantized()?));
                    if let Some(output) = linear.output {
                        output.put_clip(&mut layers);
                    }
                }
            }
        }
        Mlp::from_layers(self.inputs, layers)
    }

    /// Inference, `[n, inputs]` to `[n, outputs]`: the definition. Integer outputs come as the numbers they stand
    /// for.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of inputs, [`Error::NotFinite`] for NaN or infinity.
    pub fn predict(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        check_shape("input", x.shape(), &[x.nrows(), self.inputs])?;
        check_finite("input", &x)?;
        let mut x = x.to_owned();
        for layer in &self.layers {
            x = match layer {
                QuantizedLayer::Linear(linear) => linear.predict(x.view())?,
                QuantizedLayer::Codes(params) => x.mapv(|x| params.dequantize(params.quantize(x))),
                QuantizedLayer::Real(layer) => real(layer, x)?,
            };
        }
        Ok(x)
    }
}

/// Inference of a float layer.
pub(super) fn real(layer: &Layer<f32>, x: Array2<f32>) -> Result<Array2<f32>> {
    match layer {
        Layer::Linear(linear) => linear.apply(x.view()),
        Layer::BatchNorm(norm) => norm.normalize(x),
        Layer::LayerNorm(norm) => norm.normalize(x),
        Layer::Activation(activation) => Ok(activation.apply(x)),
        Layer::Dropout(_) | Layer::GaussianNoise(_) => Ok(x),
    }
}

#[cfg(feature = "serde")]
mod raw {
    use super::*;

    #[derive(serde::Serialize, serde::Deserialize)]
    pub(super) struct RawCodeParams {
        scale: f32,
        zero_point: i32,
        signed: bool,
    }

    impl From<CodeParams> for RawCodeParams {
        fn from(CodeParams { scale, zero_point, signed }: CodeParams) -> Self {
            Self { scale, zero_point, signed }
        }
    }

    impl TryFrom<RawCodeParams> for CodeParams {
        type Error = Error;

        fn try_from(RawCodeParams { scale, zero_point, signed }: RawCodeParams) -> Result<Self> {
            Self::new(scale, zero_point, signed)
        }
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    pub(super) struct RawLinear {
        weight: Array2<i8>,
        scales: Array1<f32>,
        bias: IntegerBias,
        input: CodeParams,
        output: Option<CodeParams>,
    }

    impl From<QuantizedLinear> for RawLinear {
        fn from(linear: QuantizedLinear) -> Self {
            let QuantizedLinear { weight, scales, bias, input, output } = linear;
            Self { weight, scales, bias, input, output }
        }
    }

    impl TryFrom<RawLinear> for QuantizedLinear {
        type Error = Error;

        fn try_from(RawLinear { weight, scales, bias, input, output }: RawLinear) -> Result<Self> {
            Self::new(weight, scales, bias, input, output)
        }
    }

    #[derive(serde::Deserialize)]
    pub(super) struct RawQuantizedMlp {
        inputs: usize,
        layers: Vec<QuantizedLayer>,
    }

    impl TryFrom<RawQuantizedMlp> for QuantizedMlp {
        type Error = Error;

        fn try_from(RawQuantizedMlp { inputs, layers }: RawQuantizedMlp) -> Result<Self> {
            Self::new(inputs, layers)
        }
    }
}
#[cfg(feature = "serde")]
use raw::{RawCodeParams, RawLinear, RawQuantizedMlp};

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn uint8(scale: f32, zero_point: i32) -> CodeParams {
        CodeParams::new(scale, zero_point, false).unwrap()
    }

    #[test]
    fn codes_are_those_of_quantize_linear() {
        let int8 = CodeParams::new(1.0, 1, true).unwrap();
        let codes = [-0.5, 0.5, 1.5, 2.5, 1e9, f32::NAN, f32::NEG_INFINITY].map(|x| int8.quantize(x));
        assert_eq!(codes, [1, 1, 3, 3, 127, -128, -128]);
        assert_eq!([-1.5, 126.5, 127.5, 300.0].map(|x| uint8(1.0, 0).quantize(x)), [0, 126, 128, 255]);
    }

    #[test]
    fn requantizes_with_ties_to_even_and_clips_as_a_relu() {
        // One weight of 1, all scales 1 but the output's 2: acc / 2.
        let linear = QuantizedLinear::new(
            array![[1]],
            array![1.0],
            IntegerBias::None,
            uint8(1.0, 128),
            Some(uint8(2.0, 0)),
        )
        .unwrap();
        let network = QuantizedMlp::new(1, vec![QuantizedLayer::Linear(linear)]).unwrap();
        let x = array![[1.0], [3.0], [5.0], [-3.0], [126.0]];
        assert_eq!(network.predict(x.view()).unwrap(), array![[0.0], [4.0], [4.0], [0.0], [126.0]]);
        assert_eq!(network.dequantized().unwrap().layers().len(), 2);
    }

    #[test]
    fn refuses_what_could_overflow_or_has_no_scale() {
        let new = |weight, scales, bias, input| QuantizedLinear::new(weight, scales, bias, input, None);
        let deep = Array2::from_elem((1, 70_000), 127);
        let error = new(deep, array![1.0], IntegerBias::None, uint8(1.0, 0)).unwrap_err();
        assert_eq!(error.to_string(), "a sum of 32 bits: output 0 could reach 2266950000, beyond 2147483647");
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-30] {
            assert!(new(array![[1]], array![scale], IntegerBias::None, uint8(1e-20, 0)).is_err(), "{scale}");
        }
        assert!(new(array![[1]], array![1.0, 1.0], IntegerBias::None, uint8(1.0, 0)).is_err());
        let bias = IntegerBias::Real(array![0.5]);
        let output = Some(uint8(1.0, 0));
        assert!(QuantizedLinear::new(array![[1]], array![1.0], bias, uint8(1.0, 0), output).is_err());
        assert!(CodeParams::new(1.0, 200, true).is_err());
        assert!(CodeParams::new(1e-40, 0, true).is_err());
    }
}
