//! Quantized networks as nodes: static, dynamic, and weights alone.
//!
//! ```text
//! OnnxRuntime  x - QuantizeLinear - DequantizeLinear --------- Gemm(transB=1) - QuantizeLinear - ... - Gemm - y
//!              w int8 [out, in] - DequantizeLinear(axis=0) ----'
//!              b int32 [out] - DequantizeLinear(sx * sw, axis=0) ' one QGemm each; the ReLU is the clip
//! TensorRt     the same with zero points 0, the ReLU before QuantizeLinear, and b in floats
//! dynamic      DynamicQuantizeLinear - MatMulInteger - Cast - Mul(sx * sw) - Add(b)
//! weights      w int8 or int4 [in, out] - DequantizeLinear - MatMul - Add(b)
//! ```
//!
//! Each form is the one that ONNX Runtime fuses into an integer kernel: `QGemm`, `DynamicQuantizeMatMul`,
//! `MatMulNBits`.

use ndarray::{Array1, Array2, ArrayView2, Axis};

use super::build::{Builder, int};
use super::export::{INPUT, put_layer, rounded};
use super::proto::data_type;
use super::{OnnxExporter, OnnxModel};
use crate::engine::{CodeParams, IntegerBias, QuantizedLayer, QuantizedLinear, QuantizedMlp, Target};
use crate::error::{Error, Result};
use crate::nn::{Layer, Linear, Mlp};
use crate::quantize::{QuantizedTensor, Scheme, UniformQuantizer};
use crate::traits::Compressor;

/// How [`OnnxExporter::weight_only`] stores weights.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightCodes {
    /// Int8, one scale per output.
    Int8,
    /// Int4 in -7..=7, one scale for each `block` inputs of an output; needs operator set 21.
    Int4 {
        /// 16, 32, 64, 128 or 256: what ONNX Runtime has kernels for.
        block: usize,
    },
}

impl OnnxExporter {
    /// A quantized network, whose codes ONNX Runtime reproduces bit for bit.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for [`Target::TensorRt`] if the network has zero points, codes without a sign or
    /// integer biases.
    pub fn quantized(&self, network: &QuantizedMlp, target: Target) -> Result<OnnxModel> {
        if target == Target::TensorRt {
            check_tensor_rt(network)?;
        }
        let mut graph = Builder::new(self.opset);
        let mut x = graph.input(INPUT, network.inputs());
        // Codes that the value has been through already.
        let mut coded = None;
        for (index, layer) in network.layers().iter().enumerate() {
            (x, coded) = match layer {
                QuantizedLayer::Linear(linear) => {
                    if coded != Some(linear.input()) {
                        x = put_codes(&mut graph, &format!("{index}.input"), linear.input(), &x);
                    }
                    x = put_linear(&mut graph, index, linear, &x)?;
                    if let Some(output) = linear.output() {
                        x = put_codes(&mut graph, &format!("{index}.output"), output, &x);
                    }
                    (x, linear.output())
                }
                QuantizedLayer::Codes(params) => {
                    (put_codes(&mut graph, &format!("{index}.codes"), *params, &x), Some(*params))
                }
                QuantizedLayer::Real(layer) => (put_layer(&mut graph, index, layer, &x)?, None),
            };
        }
        Ok(self.finish(graph, &x, network.outputs()))
    }

    /// Weights as int8, one scale per output; activations quantized by the runtime, batch by batch. No data are
    /// needed. Batch norms are folded.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for a folded weight that overflows; [`Error::Unsupported`] for rows of more than 66,311
    /// weights, whose sums ONNX Runtime would wrap.
    pub fn dynamic(&self, mlp: &Mlp<f32>) -> Result<OnnxModel> {
        const LONGEST: usize = 66_311;
        self.linears(mlp, |graph, index, linear, x| {
            let (outputs, inputs) = linear.weight().dim();
            if inputs > LONGEST {
                let reason = format!("layer {index} has rows of {inputs}, {LONGEST} is the most");
                return Err(Error::Unsupported { what: "a sum of 32 bits", reason });
            }
            let (codes, scales) = int8(linear.weight())?;
            let codes = transposed(&codes); // [in, out]
            let weight = graph.int8(format!("{index}.weight"), &[inputs, outputs], &codes);
            let scales = graph.floats(format!("{index}.weight_scale"), &[outputs], &scales);
            let zeros = graph.int8(format!("{index}.weight_zero_point"), &[outputs], &vec![0; outputs]);
            let [q, scale, zero_point] = graph.node_of("DynamicQuantizeLinear", &[x]);
            let acc = graph.node("MatMulInteger", &[&q, &weight, &zero_point, &zeros], Vec::new());
            let to = int("to", data_type::FLOAT.into());
            let acc = graph.node("Cast", &[&acc], vec![to]);
            let scales = graph.node("Mul", &[&scale, &scales], Vec::new());
            let y = graph.node("Mul", &[&acc, &scales], Vec::new());
            put_bias(graph, index, linear, y)
        })
    }

    /// Weights as integers, all else in floats: a small file for large layers. Batch norms are folded.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for another block size; [`Error::Unsupported`] for int4 below operator set 21;
    /// [`Error::NotFinite`] for a folded weight that overflows.
    pub fn weight_only(&self, mlp: &Mlp<f32>, codes: WeightCodes) -> Result<OnnxModel> {
        if let WeightCodes::Int4 { block } = codes {
            if !matches!(block, 16 | 32 | 64 | 128 | 256) {
                let range = "16, 32, 64, 128 or 256";
                return Err(Error::OutOfRange { name: "block", value: block as f64, range });
            }
            if self.opset < 21 {
                let reason = format!("operator set {} has none, 21 has", self.opset);
                return Err(Error::Unsupported { what: "int4 weights", reason });
            }
        }
        self.linears(mlp, |graph, index, linear, x| {
            let weight = match codes {
                WeightCodes::Int8 => put_int8_weight(graph, index, linear)?,
                WeightCodes::Int4 { block } => put_int4_weight(graph, index, linear, block)?,
            };
            let y = graph.node("MatMul", &[x, &weight], Vec::new());
            put_bias(graph, index, linear, y)
        })
    }

    /// The folded network with its linear layers put by `put`, all others as they are.
    fn linears(
        &self,
        mlp: &Mlp<f32>,
        put: impl Fn(&mut Builder, usize, &Linear<f32>, &str) -> Result<String>,
    ) -> Result<OnnxModel> {
        let mlp = mlp.fold_batch_norm()?;
        let mut graph = Builder::new(self.opset);
        let mut x = graph.input(INPUT, mlp.inputs());
        for (index, layer) in mlp.layers().iter().enumerate() {
            x = match layer {
                Layer::Linear(linear) => put(&mut graph, index, linear, &x)?,
                layer => put_layer(&mut graph, index, layer, &x)?,
            };
        }
        Ok(self.finish(graph, &x, mlp.outputs()))
    }
}

/// TensorRT's published rules, as far as the network decides them.
fn check_tensor_rt(network: &QuantizedMlp) -> Result<()> {
    let refuse = |index: usize, reason: &str| {
        let reason = format!("layer {index} has {reason}; quantize for Target::TensorRt");
        Err(Error::Unsupported { what: "a file for TensorRT", reason })
    };
    for (index, layer) in network.layers().iter().enumerate() {
        let params = match layer {
            QuantizedLayer::Linear(linear) => {
                if matches!(linear.bias(), IntegerBias::Codes(_)) {
                    return refuse(index, "an integer bias");
                }
                [Some(linear.input()), linear.output()]
            }
            QuantizedLayer::Codes(params) => [Some(*params), None],
            QuantizedLayer::Real(_) => [None, None],
        };
        if params.iter().flatten().any(|params| params.zero_point() != 0 || !params.is_signed()) {
            return refuse(index, "codes that are not int8 with a zero point of 0");
        }
    }
    Ok(())
}

/// `QuantizeLinear`, `DequantizeLinear`.
fn put_codes(graph: &mut Builder, name: &str, params: CodeParams, x: &str) -> String {
    let scale = graph.floats(format!("{name}_scale"), &[], &[params.scale()]);
    let element = if params.is_signed() { data_type::INT8 } else { data_type::UINT8 };
    let zero_point = vec![params.zero_point() as u8]; // two's complement: the same byte for both
    let zero_point = graph.tensor(format!("{name}_zero_point"), element, &[], zero_point);
    let q = graph.node("QuantizeLinear", &[x, &scale, &zero_point], Vec::new());
    graph.node("DequantizeLinear", &[&q, &scale, &zero_point], Vec::new())
}

fn put_linear(graph: &mut Builder, index: usize, linear: &QuantizedLinear, x: &str) -> Result<String> {
    let (outputs, inputs) = linear.weight().dim();
    let axis = || vec![int("axis", 0)];
    let name = |what: &str| format!("{index}.{what}");
    let codes: Vec<i8> = linear.weight().iter().copied().collect();
    let weight = graph.int8(name("weight"), &[outputs, inputs], &codes);
    let scales = graph.floats(name("weight_scale"), &[outputs], &linear.scales().to_vec());
    let zeros = graph.int8(name("weight_zero_point"), &[outputs], &vec![0; outputs]);
    let weight = graph.node("DequantizeLinear", &[&weight, &scales, &zeros], axis());
    let bias = match linear.bias() {
        IntegerBias::None => None,
        IntegerBias::Real(bias) => Some(graph.floats(name("bias"), &[outputs], &bias.to_vec())),
        IntegerBias::Codes(codes) => {
            let bias = graph.int32(name("bias"), &[outputs], &codes.to_vec());
            let scales = linear.accumulator_scales().to_vec();
            let scales = graph.floats(name("bias_scale"), &[outputs], &scales);
            let zeros = graph.int32(name("bias_zero_point"), &[outputs], &vec![0; outputs]);
            Some(graph.node("DequantizeLinear", &[&bias, &scales, &zeros], axis()))
        }
    };
    let inputs: Vec<&str> = [x, &weight].into_iter().chain(bias.as_deref()).collect();
    Ok(graph.node("Gemm", &inputs, vec![int("transB", 1)]))
}

fn put_bias(graph: &mut Builder, index: usize, linear: &Linear<f32>, y: String) -> Result<String> {
    let Some(bias) = linear.bias() else { return Ok(y) };
    let bias = graph.floats(format!("{index}.bias"), &[linear.outputs()], &rounded("bias", bias)?);
    Ok(graph.node("Add", &[&y, &bias], Vec::new()))
}

/// Codes `[out, in]` and one scale per output.
fn int8(weight: ArrayView2<'_, f32>) -> Result<(Array2<i8>, Vec<f32>)> {
    let quantized = UniformQuantizer::new(Scheme::int8_symmetric_127().per_channel(0)).compress(weight)?;
    Ok((quantized.codes().mapv(|code| code as i8), quantized.scales().to_vec()))
}

/// Row after row of the transposed matrix.
fn transposed<T: Copy>(x: &Array2<T>) -> Vec<T> {
    x.t().iter().copied().collect()
}

fn put_int8_weight(graph: &mut Builder, index: usize, linear: &Linear<f32>) -> Result<String> {
    let (outputs, inputs) = linear.weight().dim();
    let (codes, scales) = int8(linear.weight())?;
    let weight = graph.int8(format!("{index}.weight"), &[inputs, outputs], &transposed(&codes));
    let scales = graph.floats(format!("{index}.weight_scale"), &[outputs], &scales);
    Ok(graph.node("DequantizeLinear", &[&weight, &scales], vec![int("axis", 1)]))
}

/// Stored as `[in, out]`, because ONNX Runtime fuses no other form.
fn put_int4_weight(graph: &mut Builder, index: usize, linear: &Linear<f32>, block: usize) -> Result<String> {
    let (outputs, inputs) = linear.weight().dim();
    let scheme = Scheme::symmetric(4)?.per_group(1, block)?;
    let quantized: QuantizedTensor<f32, _> = UniformQuantizer::new(scheme).compress(linear.weight())?;
    let codes = transposed(&quantized.codes());
    // Two to a byte, the first in the low half.
    let bytes = codes.chunks(2).map(|pair| match pair {
        [low, high] => (low & 0xf | (high & 0xf) << 4) as u8,
        rest => rest.iter().fold(0, |byte, low| byte | (low & 0xf) as u8),
    });
    let weight =
        graph.tensor(format!("{index}.weight"), data_type::INT4, &[inputs, outputs], bytes.collect());
    let blocks = inputs.div_ceil(block);
    let scales = Array1::from_vec(quantized.scales().to_vec());
    let scales = scales.into_shape_with_order((outputs, blocks)).map_err(|_| Error::Shape {
        what: "scales",
        actual: vec![quantized.scales().len()],
        expected: vec![outputs, blocks],
    })?;
    debug_assert_eq!(scales.len_of(Axis(1)), blocks);
    let scales = graph.floats(format!("{index}.weight_scale"), &[blocks, outputs], &transposed(&scales));
    let attributes = vec![int("axis", 0), int("block_size", block as i64)];
    Ok(graph.node("DequantizeLinear", &[&weight, &scales], attributes))
}
