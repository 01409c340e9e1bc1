//! From the steps of a graph to a network, of floats or of integers.

use ndarray::{Array1, Array2};

use super::flow::{Kind, Step, Steps};
use super::import::{Imported, tail};
use super::malformed;
use super::tensor::{Numbers, Origin};
use crate::engine::{CodeParams, IntegerBias, QuantizedLayer, QuantizedLinear, QuantizedMlp};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::nn::{Activation, Layer, Linear, Mlp};

/// The number of inputs: what the first layer that knows takes in, else what the graph says.
fn inputs<F: Float>(path: &[&Step<F>], steps: &Steps<F>) -> Result<usize> {
    let of = |step: &&Step<F>| match &step.kind {
        Kind::Linear { linear, .. } => Some(linear.inputs()),
        Kind::Layer(Layer::BatchNorm(norm)) => Some(norm.features()),
        Kind::Layer(Layer::LayerNorm(norm)) => Some(norm.features()),
        _ => None,
    };
    path.iter().find_map(of).or_else(|| steps.width(0)).ok_or_else(|| not_a_network("it has no linear layer"))
}

fn not_a_network(reason: impl std::fmt::Display) -> Error {
    Error::Unsupported { what: "reading an ONNX graph", reason: format!("no network: {reason}") }
}

pub(super) fn to_mlp<F: Float>(steps: &Steps<F>, at: usize) -> Result<Imported<Mlp<F>>> {
    let path = steps.path(at);
    let mut layers = Vec::with_capacity(path.len());
    for step in &path {
        match &step.kind {
            Kind::Codes(params) => params.put_clip(&mut layers),
            Kind::Input | Kind::Tail(_) => {}
            Kind::Layer(layer) => layers.push(layer.clone()),
            Kind::Linear { linear, .. } => layers.push(Layer::Linear(linear.clone())),
        }
    }
    let network = Mlp::from_layers(inputs(&path, steps)?, layers).map_err(not_a_network)?;
    Ok(Imported { network, tail: tail(&steps.get(at).kind) })
}

pub(super) fn to_quantized(steps: &Steps<f32>, at: usize) -> Result<Imported<QuantizedMlp>> {
    let path = steps.path(at);
    let mut layers = Vec::with_capacity(path.len());
    let mut integers = 0;
    let mut place = 0;
    // The codes that the value has just been rounded to, not yet part of a layer.
    let mut coded: Option<CodeParams> = None;
    while let Some(step) = path.get(place) {
        place += 1;
        match (&step.kind, coded) {
            (Kind::Linear { linear, weight: Some(weight), bias }, Some(input)) => {
                let (output, consumed) = output(&path[place..]);
                let layer = quantized_linear(linear, weight, bias.as_deref(), input, output)?;
                // A real bias cannot be added before an integer output.
                let (output, consumed) =
                    if layer.output().is_some() { (output, consumed) } else { (None, 0) };
                layers.push(QuantizedLayer::Linear(layer));
                place += consumed;
                coded = output;
                integers += 1;
            }
            (Kind::Codes(params), None) => coded = Some(*params),
            // Rounded twice to the same codes is rounded once.
            (Kind::Codes(params), Some(before)) if *params == before => {}
            (kind, before) => {
                if let Some(before) = before {
                    put_codes(&mut layers, before);
                }
                coded = None;
                match kind {
                    Kind::Codes(params) => coded = Some(*params),
                    Kind::Layer(layer) => layers.push(QuantizedLayer::Real(layer.clone())),
                    Kind::Linear { linear, .. } => {
                        layers.push(QuantizedLayer::Real(Layer::Linear(linear.clone())));
                    }
                    Kind::Input | Kind::Tail(_) => {}
                }
            }
        }
    }
    if let Some(codes) = coded {
        put_codes(&mut layers, codes);
    }
    if integers == 0 {
        return Err(not_a_network("no layer has int8 weights and quantized inputs; read it in floats"));
    }
    let network = QuantizedMlp::new(inputs(&path, steps)?, layers).map_err(not_a_network)?;
    Ok(Imported { network, tail: tail(&steps.get(at).kind) })
}

/// Codes that no integer layer takes in, unless the layer before gave them already.
fn put_codes(layers: &mut Vec<QuantizedLayer>, codes: CodeParams) {
    let given = match layers.last() {
        Some(QuantizedLayer::Linear(linear)) => linear.output() == Some(codes),
        _ => false,
    };
    if !given {
        layers.push(QuantizedLayer::Codes(codes));
    }
}

/// The codes that a layer gives, and how many steps behind it they take: a ReLU that is the clip itself, and the
/// rounding.
fn output<F>(rest: &[&Step<F>]) -> (Option<CodeParams>, usize) {
    let kind = |i: usize| rest.get(i).map(|step| &step.kind);
    match (kind(0), kind(1)) {
        (Some(Kind::Codes(params)), _) => (Some(*params), 1),
        (Some(Kind::Layer(Layer::Activation(Activation::Relu))), Some(Kind::Codes(params)))
            if params.clips_at_zero() =>
        {
            (Some(*params), 2)
        }
        _ => (None, 0),
    }
}

fn quantized_linear(
    linear: &Linear<f32>,
    weight: &Origin,
    bias: Option<&Origin>,
    input: CodeParams,
    output: Option<CodeParams>,
) -> Result<QuantizedLinear> {
    let (outputs, inputs) = linear.weight().dim();
    let Numbers::I8(codes) = &weight.codes else { return Err(malformed("weights that are no int8")) };
    let codes = Array2::from_shape_vec((outputs, inputs), codes.clone()).map_err(malformed_by)?;
    let scales = match weight.scales.as_slice() {
        [scale] => Array1::from_elem(outputs, *scale),
        scales => Array1::from(scales.to_vec()),
    };
    let bias = match (bias, linear.bias()) {
        (_, None) => IntegerBias::None,
        (Some(Origin { codes: Numbers::I32(codes), scales: of_bias, .. }), Some(_)) => {
            let right = |(o, &scale): (usize, &f32)| {
                let expected = input.scale() * scales[o];
                (scale - expected).abs() <= 1e-5 * expected
            };
            let of_bias = match of_bias.as_slice() {
                [scale] => vec![*scale; outputs],
                all => all.to_vec(),
            };
            if of_bias.len() != outputs || !of_bias.iter().enumerate().all(right) {
                return Err(not_a_network("an integer bias whose scale is not that of the sums"));
            }
            IntegerBias::Codes(match codes.as_slice() {
                [code] => Array1::from_elem(outputs, *code),
                codes => Array1::from(codes.to_vec()),
            })
        }
        (_, Some(bias)) => IntegerBias::Real(bias.to_owned()),
    };
    let output = output.filter(|_| !matches!(bias, IntegerBias::Real(_)));
    QuantizedLinear::new(codes, scales, bias, input, output).map_err(not_a_network)
}

fn malformed_by(error: impl std::fmt::Display) -> Error {
    malformed(error.to_string())
}
