//! Layers that are one node: norms, activations with settings, dropout, the rounding to codes.

use ndarray::Array1;

use super::Operator;
use crate::engine::CodeParams;
use crate::error::Result;
use crate::float::Float;
use crate::io::onnx::Tail;
use crate::io::onnx::flow::{Flow, Kind, Value};
use crate::io::onnx::tensor::Numbers;
use crate::nn::{Activation, Layer};
use crate::normalize::{BatchNorm, BnConvention, LayerNorm};
use crate::regularize::Dropout;

impl<F: Float> Operator<'_, '_, '_, F> {
    pub(super) fn batch_norm(&mut self) -> Result<Value> {
        let node = self.node;
        let at = self.step(0)?;
        let flat = self.reader.steps.get(at).features.as_ref().is_none_or(|features| features.len() == 1);
        if !flat {
            return Err(node.unsupported("batch norms are read for batches of one axis of features"));
        }
        let gamma = self.floats(self.required(1)?)?;
        let n = gamma.len();
        if let Some(width) = self.reader.steps.width(at).filter(|&width| width != n) {
            return Err(node.malformed(format!("statistics of {n} features, where {width} arrive")));
        }
        let beta = self.vector(self.required(2)?, n)?;
        let mean = self.vector(self.required(3)?, n)?;
        let var = self.vector(self.required(4)?, n)?;
        self.reader.steps.spend(node, 4 * n * F::BYTES)?;
        let eps = f64::from(node.float("epsilon", 1e-5)?);
        let momentum = f64::from(node.float("momentum", 0.9)?);
        let norm = BatchNorm::from_parts(gamma.into(), beta, mean, var, eps)
            .map(|norm| norm.with_convention(BnConvention::Onnx))
            .and_then(|norm| norm.with_momentum(Some(momentum)))
            .map_err(|error| node.malformed(error))?;
        self.layer(at, Layer::BatchNorm(norm))
    }

    pub(super) fn layer_norm(&mut self) -> Result<Value> {
        let node = self.node;
        let at = self.step(0)?;
        let rank = self.reader.steps.get(at).features.as_ref().map_or(1, Vec::len) as i64;
        let axis = node.int("axis", -1)?;
        if axis != -1 && axis != rank {
            return Err(node.unsupported(format!("axis {axis}; layer norms are read over the last axis")));
        }
        let gamma = self.floats(self.required(1)?)?;
        let n = gamma.len();
        if let Some(width) = self.reader.steps.width(at).filter(|&width| width != n) {
            return Err(node.malformed(format!("gains of {n} features, where {width} arrive")));
        }
        let beta = match self.constant(2)? {
            Some(beta) => self.vector(beta, n)?,
            None => Array1::zeros(n),
        };
        self.reader.steps.spend(node, 2 * n * F::BYTES)?;
        let eps = f64::from(node.float("epsilon", 1e-5)?);
        let norm = LayerNorm::from_parts(gamma.into(), beta, eps).map_err(|error| node.malformed(error))?;
        self.layer(at, Layer::LayerNorm(norm))
    }

    /// `(x - offset) * scale`, the standardization of scikit-learn.
    pub(super) fn scaler(&mut self) -> Result<Value> {
        let node = self.node;
        let at = self.step(0)?;
        let of = |floats: &[f32]| Array1::from_iter(floats.iter().map(|&x| F::of(x.into())));
        let (offset, scale) = (of(node.floats("offset")?), of(node.floats("scale")?));
        let (beta, var) = (Array1::zeros(scale.len()), Array1::ones(scale.len()));
        let norm =
            BatchNorm::from_parts(scale, beta, offset, var, 1e-30).map_err(|error| node.malformed(error))?;
        if let Some(width) = self.reader.steps.width(at).filter(|&width| width != norm.features()) {
            return Err(node.malformed(format!("{} scales, where {width} features arrive", norm.features())));
        }
        self.layer(at, Layer::BatchNorm(norm))
    }

    pub(super) fn prelu(&mut self) -> Result<Value> {
        let slopes = self.required(1)?.floats().unwrap_or_default();
        match slopes.split_first() {
            Some((&slope, rest)) if rest.iter().all(|&other| other == slope) => {
                self.activation(Activation::LeakyRelu(slope))
            }
            _ => Err(self.node.unsupported("one slope for all features is read")),
        }
    }

    pub(super) fn clip(&mut self) -> Result<Value> {
        let node = self.node;
        let bound = |operator: &Self, index: usize, name: &str, none: f64| -> Result<f64> {
            if node.has(name) {
                return Ok(node.float(name, 0.0)?.into());
            }
            match operator.constant(index)? {
                None => Ok(none),
                Some(bound) => bound.float().ok_or_else(|| node.malformed("a bound that is not one float")),
            }
        };
        let low = bound(self, 1, "min", f64::NEG_INFINITY)?;
        let high = bound(self, 2, "max", f64::INFINITY)?;
        // What exporters write for no bound: infinity, or the largest number.
        let most = f64::from(f32::MAX);
        if low.is_nan() || high.is_nan() || low > high || low >= most || high <= -most {
            return Err(node.malformed(format!("bounds {low} and {high}")));
        }
        match (low.max(-most), high.min(most)) {
            (low, high) if low == -most && high == most => self.same(),
            (0.0, high) if high == most => self.activation(Activation::Relu),
            (min, max) => self.activation(Activation::Clip { min, max }),
        }
    }

    pub(super) fn tail(&mut self, tail: Tail) -> Result<Value> {
        let node = self.node;
        let at = self.step(0)?;
        self.reader.steps.not_after_tail(node, at)?;
        let rank = self.reader.steps.get(at).features.as_ref().map_or(1, Vec::len) as i64;
        let axis = node.int("axis", if node.opset < 13 { 1 } else { -1 })?;
        if axis != -1 && axis != rank {
            return Err(node.unsupported(format!("axis {axis}; it is read over the last axis")));
        }
        Ok(Value::Flow(Flow::of(self.reader.steps.push(at, Kind::Tail(tail), None))))
    }

    pub(super) fn dropout(&mut self) -> Result<Value> {
        let ratio = match self.constant(1)? {
            Some(ratio) => ratio.float(),
            None if self.node.has("ratio") => Some(self.node.float("ratio", 0.5)?.into()),
            None => None,
        };
        match ratio {
            Some(p) if p > 0.0 && p < 1.0 => {
                let at = self.step(0)?;
                let dropout = Dropout::new(p).map_err(|error| self.node.malformed(error))?;
                self.layer(at, Layer::Dropout(dropout))
            }
            _ => self.same(),
        }
    }

    /// Scale and zero point of the codes of an activation.
    pub(super) fn code_params(&self) -> Result<CodeParams> {
        let node = self.node;
        let scale = match &self.required(1)?.numbers {
            Numbers::F32(scales) if scales.len() == 1 => scales[0],
            _ => return Err(node.unsupported("activations with one scale of type FLOAT are read")),
        };
        let (zero_point, signed) = match self.constant(2)?.map(|zero| &zero.numbers) {
            None => (0, false),
            Some(Numbers::I8(zero)) if zero.len() == 1 => (zero[0].into(), true),
            Some(Numbers::U8(zero)) if zero.len() == 1 => (zero[0].into(), false),
            Some(_) => return Err(node.unsupported("activations of int8 and uint8 codes are read")),
        };
        CodeParams::new(scale, zero_point, signed).map_err(|error| node.malformed(error))
    }

    pub(super) fn quantize(&mut self) -> Result<Value> {
        let at = self.step(0)?;
        Ok(Value::Codes { at, params: self.code_params()? })
    }

    pub(super) fn dequantize(&mut self) -> Result<Value> {
        let node = self.node;
        let Some(Some(Value::Codes { at, params })) = self.inputs.first() else {
            return Err(
                node.unsupported("it reads what is neither a constant nor the output of QuantizeLinear")
            );
        };
        if self.code_params()? != *params {
            return Err(node.unsupported("scale and zero point are not those of the QuantizeLinear before"));
        }
        self.reader.steps.not_after_tail(node, *at)?;
        Ok(Value::Flow(Flow::of(self.reader.steps.push(*at, Kind::Codes(*params), None))))
    }
}
