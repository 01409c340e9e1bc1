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
        // Before operator set 14, the outputs of new statistics say so.
        let outputs = node.proto.output.iter().filter(|output| !output.is_empty()).count();
        if node.int("training_mode", 0)? != 0 || node.opset < 14 && outputs > 1 {
            return Err(node.unsupported(
                "it is in training mode, where it takes mean and variance of each batch; export the network in eval \
                 mode",
            ));
        }
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

    /// `(x - offset) * scale`, the standardization of scikit-learn; either may be one number for all features.
    pub(super) fn scaler(&mut self) -> Result<Value> {
        let node = self.node;
        let at = self.step(0)?;
        let (offset, scale) = (node.floats("offset")?, node.floats("scale")?);
        let n = self.reader.steps.width(at).unwrap_or(offset.len().max(scale.len()));
        self.reader.steps.spend(node, n.saturating_mul(4 * F::BYTES))?;
        let of = |floats: &[f32], what: &str| match floats {
            [one] => Ok(Array1::from_elem(n, F::of((*one).into()))),
            all if all.len() == n => Ok(all.iter().map(|&x| F::of(x.into())).collect()),
            all => Err(node.malformed(format!("{} {what}, where {n} features arrive", all.len()))),
        };
        let (offset, scale) = (of(offset, "offsets")?, of(scale, "scales")?);
        let norm = BatchNorm::from_parts(scale, Array1::zeros(n), offset, Array1::ones(n), 1e-30)
            .map_err(|error| node.malformed(error))?;
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

    /// A dropout, whether the graph was exported in training mode or not.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::onnx::OnnxImporter;
    use crate::io::onnx::build::{Builder, int};
    use crate::io::onnx::proto::{AttributeProto, ModelProto, attribute_type};
    use ndarray::array;
    use prost::Message;

    /// A network of four features whose first node is `put` here.
    fn model(opset: i64, put: impl FnOnce(&mut Builder, &str) -> String) -> ModelProto {
        let mut graph = Builder::new(opset);
        let x = graph.input("x", 4);
        let y = put(&mut graph, &x);
        let weight = graph.floats("w", &[4, 1], &[1.0, 10.0, 100.0, 1000.0]);
        let y = graph.node("MatMul", &[&y, &weight], Vec::new());
        graph.output(&y, "y", 1)
    }

    fn read(model: &ModelProto) -> Result<crate::nn::Mlp<f32>> {
        Ok(OnnxImporter::new().from_bytes(&model.encode_to_vec())?.network)
    }

    #[test]
    fn a_batch_norm_in_training_mode_is_refused() {
        let norm = |graph: &mut Builder, x: &str, training| {
            let put = |graph: &mut Builder, name: &str| graph.floats(name, &[4], &[1.0; 4]);
            let [gamma, beta, mean, var] = ["gamma", "beta", "mean", "var"].map(|name| put(graph, name));
            graph.node("BatchNormalization", &[x, &gamma, &beta, &mean, &var], training)
        };
        for (opset, mode) in [(17, 0), (17, 1), (13, 0)] {
            let attributes = if opset < 14 { Vec::new() } else { vec![int("training_mode", mode)] };
            let mut model = model(opset, |graph, x| norm(graph, x, attributes));
            if opset < 14 {
                let node = &mut model.graph.as_mut().unwrap().node[0];
                node.output.extend(["m", "v", "", ""].map(String::from));
            }
            match read(&model) {
                Ok(mlp) => assert!(mode == 0 && opset == 17 && mlp.layers().len() == 2),
                Err(error) => {
                    assert!(mode == 1 || opset == 13, "{error}");
                    assert!(error.to_string().contains("export the network in eval mode"), "{error}");
                }
            }
        }
    }

    #[test]
    fn a_dropout_in_training_mode_is_one_when_the_network_trains() {
        let dropout = |graph: &mut Builder, x: &str| {
            let (ratio, training) = (graph.scalar("ratio", 0.25), "training".to_string());
            graph.tensor(training.clone(), crate::io::onnx::proto::data_type::BOOL, &[], vec![1]);
            graph.node("Dropout", &[x, &ratio, &training], Vec::new())
        };
        let mlp = read(&model(17, dropout)).unwrap();
        assert!(matches!(&mlp.layers()[0], Layer::Dropout(dropout) if dropout.p() == 0.25));
        assert_eq!(mlp.predict(array![[1.0, 2.0, 3.0, 4.0]].view()).unwrap(), array![[4321.0]]);
    }

    #[test]
    fn a_scaler_has_one_number_for_all_features_or_one_for_each() {
        let scaler = |offset: &[f32], scale: &[f32]| {
            let floats = |name: &str, floats: &[f32]| AttributeProto {
                name: name.into(),
                floats: floats.to_vec(),
                r#type: attribute_type::FLOATS,
                ..AttributeProto::default()
            };
            let attributes = vec![floats("offset", offset), floats("scale", scale)];
            let mut model = model(17, |graph, x| graph.node("Scaler", &[x], attributes));
            model.graph.as_mut().unwrap().node[0].domain = "ai.onnx.ml".into();
            read(&model)?.predict(array![[1.0, 2.0, 3.0, 4.0]].view())
        };
        let each = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(scaler(&[1.0], &[2.0]).unwrap(), array![[6420.0]]);
        assert_eq!(scaler(&[1.0], &each).unwrap(), array![[12_620.0]]);
        assert_eq!(scaler(&each, &[5.0]).unwrap(), array![[0.0]]);
        let error = scaler(&[1.0, 2.0], &each).unwrap_err().to_string();
        assert!(error.contains("2 offsets, where 4 features arrive"), "{error}");
    }
}
