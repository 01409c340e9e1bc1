//! A network as nodes: floats, one node or two per layer.
//!
//! | layer | nodes |
//! |---|---|
//! | linear | `Gemm` (`transB = 1`: the weight stays `[out, in]`); without bias also `Gemm` |
//! | batch norm | `BatchNormalization`, or nothing where it is folded |
//! | layer norm | `LayerNormalization` |
//! | activations | `Relu`, `LeakyRelu`, `Elu`, `Tanh`, `Sigmoid`, `Clip`, `Gelu` (before operator set 20: its formula) |
//! | dropout, noise | nothing |

use std::f32::consts::{FRAC_2_PI, SQRT_2};

use super::build::{Builder, float, int, string};
use super::{BatchNorms, OnnxExporter, OnnxModel, Tail};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::nn::{Activation, Layer, Linear, Mlp};
use crate::normalize::{BatchNorm, BnConvention, LayerNorm};

impl OnnxExporter {
    /// The network in floats. Numbers of an `f64` network are rounded to `f32`, which is what runtimes compute in.
    /// ONNX has no place for masks: a pruned network comes back with its zeros, free to move.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for an `f64` beyond the range of `f32`, or a folded weight that overflows;
    /// [`Error::OutOfRange`] for a setting that `f32` cannot hold, as an `eps` of 1e-50.
    pub fn float<F: Float>(&self, mlp: &Mlp<F>) -> Result<OnnxModel> {
        let folded;
        let mlp = match self.batch_norms {
            BatchNorms::Keep => mlp,
            BatchNorms::Fold => {
                folded = mlp.fold_batch_norm()?;
                &folded
            }
        };
        let mut graph = Builder::new(self.opset);
        let mut x = graph.input(INPUT, mlp.inputs());
        for (index, layer) in mlp.layers().iter().enumerate() {
            x = put_layer(&mut graph, index, layer, &x)?;
        }
        Ok(self.finish(graph, &x, mlp.outputs()))
    }

    /// Appends the tail and names the output.
    pub(super) fn finish(&self, mut graph: Builder, x: &str, width: usize) -> OnnxModel {
        let axis = || vec![int("axis", -1)];
        let y = match self.tail {
            Tail::None => x.to_owned(),
            Tail::Softmax => graph.node("Softmax", &[x], axis()),
            Tail::LogSoftmax => graph.node("LogSoftmax", &[x], axis()),
        };
        OnnxModel::new(graph.output(&y, OUTPUT, width), self.external)
    }
}

pub(super) const INPUT: &str = "input";
const OUTPUT: &str = "output";

/// Appends one float layer to the value `x`.
pub(super) fn put_layer<F: Float>(
    graph: &mut Builder,
    index: usize,
    layer: &Layer<F>,
    x: &str,
) -> Result<String> {
    Ok(match layer {
        Layer::Linear(linear) => put_linear(graph, index, linear, x)?,
        Layer::BatchNorm(norm) => put_batch_norm(graph, index, norm, x)?,
        Layer::LayerNorm(norm) => put_layer_norm(graph, index, norm, x)?,
        Layer::Activation(activation) => put_activation(graph, *activation, x)?,
        Layer::Dropout(_) | Layer::GaussianNoise(_) => x.to_owned(),
    })
}

/// The numbers in `f32`.
pub(super) fn rounded<'a, F: Float>(
    what: &'static str,
    x: impl IntoIterator<Item = &'a F>,
) -> Result<Vec<f32>> {
    let round = |(index, x): (usize, &F)| {
        let value = x.as_f64() as f32;
        if value.is_finite() {
            return Ok(value);
        }
        Err(Error::NotFinite { what, index: vec![index], value: value.into() })
    };
    x.into_iter().enumerate().map(round).collect()
}

/// A setting in `f32`.
fn setting(name: &'static str, value: f64) -> Result<f32> {
    let rounded = value as f32;
    if rounded.is_finite() {
        return Ok(rounded);
    }
    Err(Error::OutOfRange { name, value, range: "within the range of f32" })
}

/// The `eps` of a norm in `f32`, where readers want it to be above 0 too.
fn eps(value: f64) -> Result<f32> {
    let rounded = setting("eps", value)?;
    if rounded.is_normal() {
        return Ok(rounded);
    }
    Err(Error::OutOfRange { name: "eps", value, range: "1.2e-38 or more, the least normal f32" })
}

fn put_linear<F: Float>(graph: &mut Builder, index: usize, linear: &Linear<F>, x: &str) -> Result<String> {
    let (outputs, inputs) = linear.weight().dim();
    let weight = rounded("weight rounded to f32", linear.weight())?;
    let weight = graph.floats(format!("{index}.weight"), &[outputs, inputs], &weight);
    let transposed = vec![int("transB", 1)];
    Ok(match linear.bias() {
        Some(bias) => {
            let bias = rounded("bias rounded to f32", bias)?;
            let bias = graph.floats(format!("{index}.bias"), &[outputs], &bias);
            graph.node("Gemm", &[x, &weight, &bias], transposed)
        }
        None => graph.node("Gemm", &[x, &weight], transposed),
    })
}

fn put_batch_norm<F: Float>(
    graph: &mut Builder,
    index: usize,
    norm: &BatchNorm<F>,
    x: &str,
) -> Result<String> {
    let mut put = |name: &str, values| -> Result<String> {
        let values = rounded("a number of a batch norm rounded to f32", values)?;
        Ok(graph.floats(format!("{index}.{name}"), &[values.len()], &values))
    };
    let (gamma, beta) = (norm.gamma(), norm.beta());
    let (mean, var) = (norm.running_mean(), norm.running_var());
    let (gamma, beta) = (put("weight", &gamma)?, put("bias", &beta)?);
    let (mean, var) = (put("running_mean", &mean)?, put("running_var", &var)?);
    // ONNX weights the old value.
    let momentum = match (norm.convention(), norm.momentum()) {
        (_, None) => 0.9,
        (BnConvention::Onnx, Some(momentum)) => momentum,
        (_, Some(momentum)) => 1.0 - momentum,
    };
    let attributes = vec![float("epsilon", eps(norm.eps())?), float("momentum", momentum as f32)];
    Ok(graph.node("BatchNormalization", &[x, &gamma, &beta, &mean, &var], attributes))
}

fn put_layer_norm<F: Float>(
    graph: &mut Builder,
    index: usize,
    norm: &LayerNorm<F>,
    x: &str,
) -> Result<String> {
    let mut put = |name: &str, values| -> Result<String> {
        let values = rounded("a number of a layer norm rounded to f32", values)?;
        Ok(graph.floats(format!("{index}.{name}"), &[values.len()], &values))
    };
    let (gamma, beta) = (norm.gamma(), norm.beta());
    let (gamma, beta) = (put("weight", &gamma)?, put("bias", &beta)?);
    let attributes = vec![int("axis", -1), float("epsilon", eps(norm.eps())?)];
    Ok(graph.node("LayerNormalization", &[x, &gamma, &beta], attributes))
}

fn put_activation(graph: &mut Builder, activation: Activation, x: &str) -> Result<String> {
    Ok(match activation {
        Activation::Relu => graph.node("Relu", &[x], Vec::new()),
        Activation::LeakyRelu(slope) => {
            graph.node("LeakyRelu", &[x], vec![float("alpha", setting("slope of leaky relu", slope)?)])
        }
        Activation::Elu(alpha) => {
            graph.node("Elu", &[x], vec![float("alpha", setting("alpha of elu", alpha)?)])
        }
        Activation::Clip { min, max } => {
            // Beyond the largest number there is nothing to clip.
            let most = f64::from(f32::MAX);
            let min = setting("lower bound of clip", min.max(-most))?;
            let max = setting("upper bound of clip", max.min(most))?;
            let (min, max) = (graph.scalar("min", min), graph.scalar("max", max));
            graph.node("Clip", &[x, &min, &max], Vec::new())
        }
        Activation::Tanh => graph.node("Tanh", &[x], Vec::new()),
        Activation::Sigmoid => graph.node("Sigmoid", &[x], Vec::new()),
        Activation::Gelu if graph.opset() >= 20 => graph.node("Gelu", &[x], Vec::new()),
        Activation::GeluTanh if graph.opset() >= 20 => {
            graph.node("Gelu", &[x], vec![string("approximate", "tanh")])
        }
        // x * (1 + erf(x / sqrt(2))) * 0.5, in PyTorch's order, which runtimes know and fuse.
        Activation::Gelu => {
            let root = graph.scalar("sqrt2", SQRT_2);
            let steps = graph.node("Div", &[x, &root], Vec::new());
            let erf = graph.node("Erf", &[&steps], Vec::new());
            put_gate(graph, x, &erf)
        }
        // x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) * 0.5
        Activation::GeluTanh => {
            let (three, c) = (graph.scalar("three", 3.0), graph.scalar("cubic", 0.044_715));
            let root = graph.scalar("sqrt2pi", FRAC_2_PI.sqrt());
            let cube = graph.node("Pow", &[x, &three], Vec::new());
            let cube = graph.node("Mul", &[&cube, &c], Vec::new());
            let sum = graph.node("Add", &[x, &cube], Vec::new());
            let sum = graph.node("Mul", &[&sum, &root], Vec::new());
            let tanh = graph.node("Tanh", &[&sum], Vec::new());
            put_gate(graph, x, &tanh)
        }
    })
}

/// `x * (1 + gate) * 0.5`
fn put_gate(graph: &mut Builder, x: &str, gate: &str) -> String {
    let (one, half) = (graph.scalar("one", 1.0), graph.scalar("half", 0.5));
    let gate = graph.node("Add", &[gate, &one], Vec::new());
    let product = graph.node("Mul", &[x, &gate], Vec::new());
    graph.node("Mul", &[&product, &half], Vec::new())
}
