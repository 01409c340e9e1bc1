//! The operators: what each makes of a value that depends on the input.

use std::rc::Rc;

use ndarray::{Array1, Array2};

use super::Tail;
use super::flow::{Coefficient, Flow, Kind, Length, Value};
use super::gate::{Form, Gate, Product};
use super::import::{Reader, shape};
use super::node::Node;
use super::tensor::{Numbers, Origin, Tensor};
use crate::engine::CodeParams;
use crate::error::Result;
use crate::float::Float;
use crate::nn::{Activation, Layer, Linear};
use crate::normalize::{BatchNorm, BnConvention, LayerNorm};
use crate::regularize::Dropout;

/// Reads a node, at least one of whose inputs is no constant.
pub(super) fn apply<'a, F: Float>(
    reader: &mut Reader<'a, F>,
    node: Node<'a>,
    inputs: &[Option<Value>],
) -> Result<Value> {
    let mut operator = Operator { reader, node, inputs };
    match (node.is_standard(), node.proto.domain.as_str(), node.op()) {
        (true, _, op) => operator.standard(op),
        (_, "ai.onnx.ml", "Scaler") => operator.scaler(),
        (_, "ai.onnx.ml", "ZipMap") => operator.same(),
        (_, "com.microsoft", "Gelu") => operator.activation(Activation::Gelu),
        _ => Err(node.unknown()),
    }
}

struct Operator<'r, 'a, 'i, F> {
    reader: &'r mut Reader<'a, F>,
    node: Node<'a>,
    inputs: &'i [Option<Value>],
}

impl<'a, F: Float> Operator<'_, 'a, '_, F> {
    fn standard(&mut self, op: &str) -> Result<Value> {
        let node = self.node;
        match op {
            "Gemm" => self.gemm(),
            "MatMul" => self.matmul(),
            "Add" | "Sub" | "Mul" | "Div" => self.arithmetic(op),
            "Pow" => self.power(),
            "ReduceMean" => self.mean(),
            "Sqrt" => match self.inputs.first() {
                Some(Some(Value::Gate(gate))) if gate.root().is_some() => {
                    Ok(gate.root().map_or(Value::Nothing, Value::Gate))
                }
                _ => Err(node.unsupported("roots are read as a part of a layer norm only")),
            },
            "Neg" => {
                let flow = self.flow(0)?;
                let negative = flow.times(&Coefficient::One(-1.0));
                negative.map(Value::Flow).ok_or_else(|| node.unknown())
            }
            "BatchNormalization" => self.batch_norm(),
            "LayerNormalization" => self.layer_norm(),
            "Relu" => self.activation(Activation::Relu),
            "LeakyRelu" => self.activation(Activation::LeakyRelu(node.float("alpha", 0.01)?.into())),
            "PRelu" => self.prelu(),
            "Elu" => self.activation(Activation::Elu(node.float("alpha", 1.0)?.into())),
            "Sigmoid" => self.activation(Activation::Sigmoid),
            "Tanh" => match self.inputs.first() {
                Some(Some(Value::Gate(gate))) => gate.tanh().map(Value::Gate).ok_or_else(|| {
                    node.unsupported("the tangent of a polynomial is read as a part of gelu only")
                }),
                _ => self.activation(Activation::Tanh),
            },
            "Gelu" => match node.word("approximate", "none")? {
                "none" => self.activation(Activation::Gelu),
                "tanh" => self.activation(Activation::GeluTanh),
                other => Err(node.malformed(format!("the approximation `{other}` does not exist"))),
            },
            "Erf" => {
                let flow = self.flow(0)?;
                let gate = flow.factor().and_then(|factor| Gate::erf(flow.at, factor));
                gate.map(Value::Gate).ok_or_else(|| node.unsupported("erf is read as a part of gelu only"))
            }
            "Clip" => self.clip(),
            "Softmax" => self.tail(Tail::Softmax),
            "LogSoftmax" => self.tail(Tail::LogSoftmax),
            "Dropout" => self.dropout(),
            "QuantizeLinear" => self.quantize(),
            "DequantizeLinear" => self.dequantize(),
            "Identity" => self.same(),
            "Cast" => self.cast(),
            "Flatten" => self.flatten(),
            "Reshape" => self.reshape(),
            "Squeeze" | "Unsqueeze" if matches!(self.inputs.first(), Some(Some(Value::Shape(_)))) => self.same(),
            "Squeeze" => self.squeeze(),
            "Shape" => {
                let at = self.step(0)?;
                let shape = shape(&self.reader.steps, at);
                shape.map(Value::Shape).ok_or_else(|| node.unsupported("the shape of the input is not known"))
            }
            "Gather" | "Slice" => self.pick(op),
            "Concat" => self.concat(),
            _ => Err(node.unknown()),
        }
    }

    fn flow(&self, index: usize) -> Result<Flow> {
        match self.inputs.get(index) {
            Some(Some(Value::Flow(flow))) => Ok(flow.clone()),
            Some(Some(Value::Codes { .. })) => {
                Err(self.node.unsupported("it reads codes; only DequantizeLinear may"))
            }
            Some(Some(Value::Gate(_))) => {
                Err(self.node.unsupported("it reads an intermediate result of what looks like gelu, but is not"))
            }
            Some(Some(Value::Constant(_))) => {
                Err(self.node.unsupported(format!("its input {index} is a constant, another depends on the input")))
            }
            Some(Some(Value::Shape(_) | Value::Nothing)) => {
                Err(self.node.unsupported(format!("its input {index} is no batch of numbers")))
            }
            Some(None) | None => Err(self.node.malformed(format!("it has no input {index}"))),
        }
    }

    /// The step that an input is.
    fn step(&mut self, index: usize) -> Result<usize> {
        let flow = self.flow(index)?;
        self.reader.settled(self.node, index, &flow)
    }

    fn constant(&self, index: usize) -> Result<Option<&Rc<Tensor>>> {
        match self.inputs.get(index) {
            None | Some(None) => Ok(None),
            Some(Some(Value::Constant(tensor))) => Ok(Some(tensor)),
            Some(Some(_)) => Err(self.node.unsupported(format!("its input {index} is not a constant"))),
        }
    }

    fn required(&self, index: usize) -> Result<&Rc<Tensor>> {
        self.constant(index)?.ok_or_else(|| self.node.malformed(format!("it has no input {index}")))
    }

    /// The floats of a constant, in the network's element type.
    fn floats(&self, tensor: &Tensor) -> Result<Vec<F>> {
        let floats = |x: &[f32]| x.iter().map(|&x| F::of(x.into())).collect();
        match &tensor.numbers {
            Numbers::F32(x) => Ok(floats(x)),
            Numbers::F64(_) if F::BYTES < 8 => Err(self.node.unsupported(
                "its numbers are DOUBLE, which f32 would round: read it as a network of f64",
            )),
            Numbers::F64(x) => Ok(x.iter().map(|&x| F::of(x)).collect()),
            _ => Err(self.node.unsupported("its constants are no floats")),
        }
    }

    /// A constant vector of this length; one number stands for all.
    fn vector(&self, tensor: &Tensor, length: usize) -> Result<Array1<F>> {
        let values = self.floats(tensor)?;
        let (leading, last) = match tensor.dims.split_last() {
            None => (true, 1),
            Some((&last, leading)) => (leading.iter().all(|&dim| dim == 1), last),
        };
        match values.as_slice() {
            [value] => Ok(Array1::from_elem(length, *value)),
            _ if leading && last == length => Ok(values.into()),
            _ => Err(self.node.unsupported(format!(
                "a constant of shape {:?}, where {length} features need one number each",
                tensor.dims
            ))),
        }
    }

    fn same(&mut self) -> Result<Value> {
        match self.inputs.first() {
            Some(Some(value)) => Ok(value.clone()),
            _ => Err(self.node.malformed("it has no input")),
        }
    }

    fn layer(&mut self, at: usize, layer: Layer<F>) -> Result<Value> {
        Ok(Value::Flow(Flow::of(self.reader.steps.layer(self.node, at, layer)?)))
    }

    fn activation(&mut self, activation: Activation) -> Result<Value> {
        let at = self.step(0)?;
        self.layer(at, Layer::Activation(activation))
    }

    fn gemm(&mut self) -> Result<Value> {
        let node = self.node;
        if node.int("transA", 0)? != 0 {
            return Err(node.unsupported("transA = 1 would mix the rows of the batch"));
        }
        let transposed = node.int("transB", 0)? == 1;
        let (alpha, beta) = (node.float("alpha", 1.0)?, node.float("beta", 1.0)?);
        let bias = self.constant(2)?.cloned();
        self.linear(transposed, bias.as_ref(), alpha, beta)
    }

    fn matmul(&mut self) -> Result<Value> {
        self.linear(false, None, 1.0, 1.0)
    }

    /// `alpha * x w + beta * b`, with `w` `[out, in]` if transposed, else `[in, out]`.
    fn linear(&mut self, transposed: bool, bias: Option<&Rc<Tensor>>, alpha: f32, beta: f32) -> Result<Value> {
        let node = self.node;
        let at = self.step(0)?;
        self.reader.steps.not_after_tail(node, at)?;
        let tensor = self.required(1)?.clone();
        let [rows, columns] = tensor.dims.as_slice() else {
            return Err(node.unsupported(format!("its weight has shape {:?}; two axes are read", tensor.dims)));
        };
        let (outputs, inputs) = if transposed { (*rows, *columns) } else { (*columns, *rows) };
        if let Some(width) = self.reader.steps.width(at).filter(|&width| width != inputs) {
            return Err(node.malformed(format!("a weight for {inputs} inputs, where {width} arrive")));
        }
        if tensor.len() == 0 {
            return Err(node.malformed(format!("its weight of shape {:?} is empty", tensor.dims)));
        }
        self.reader.steps.spend(node, tensor.len().saturating_mul(F::BYTES))?;
        let values = self.floats(&tensor)?;
        let stored = Array2::from_shape_vec((*rows, *columns), values).map_err(|error| node.malformed(error))?;
        let weight = if transposed { stored } else { stored.t().as_standard_layout().into_owned() };
        let weight = if alpha == 1.0 { weight } else { weight * F::of(alpha.into()) };
        let values = match bias {
            None => None,
            Some(bias) => {
                let values = self.vector(bias, outputs)?;
                Some(if beta == 1.0 { values } else { values * F::of(beta.into()) })
            }
        };
        let linear = Linear::new(weight, values).map_err(|error| node.malformed(error))?;
        let plain = alpha == 1.0 && beta == 1.0;
        let weight = if plain { self.weight_codes(&tensor, transposed)? } else { None };
        let bias = bias.and_then(|bias| bias.origin.clone()).filter(|_| plain);
        let kind = Kind::Linear { linear, weight, bias };
        Ok(Value::Flow(Flow::of(self.reader.steps.push(at, kind, Some(outputs)))))
    }

    /// The codes behind a weight, as `[out, in]` with one scale per output or for all.
    fn weight_codes(&self, tensor: &Tensor, transposed: bool) -> Result<Option<Rc<Origin>>> {
        let (Some(origin), [rows, columns]) = (&tensor.origin, tensor.dims.as_slice()) else { return Ok(None) };
        let output_axis = usize::from(!transposed);
        if !matches!(origin.codes, Numbers::I8(_)) || origin.scales.len() > 1 && origin.axis != output_axis {
            return Ok(None);
        }
        if transposed {
            return Ok(Some(origin.clone()));
        }
        let Numbers::I8(codes) = &origin.codes else { return Ok(None) };
        let codes = (0..*columns).flat_map(|c| (0..*rows).filter_map(move |r| codes.get(r * columns + c).copied()));
        Ok(Some(Rc::new(Origin {
            codes: Numbers::I8(codes.collect()),
            scales: origin.scales.clone(),
            axis: 0,
        })))
    }

    fn arithmetic(&mut self, op: &str) -> Result<Value> {
        let node = self.node;
        match (self.inputs.first(), self.inputs.get(1)) {
            (Some(Some(Value::Constant(c))), Some(Some(value))) => self.with_constant(op, value, 1, c, true),
            (Some(Some(value)), Some(Some(Value::Constant(c)))) => self.with_constant(op, value, 0, c, false),
            (Some(Some(Value::Flow(flow))), Some(Some(Value::Gate(Gate { at, form: Form::Mean }))))
                if op == "Sub" && flow.at == *at && flow.is_plain() =>
            {
                Ok(Value::Gate(Gate { at: *at, form: Form::Centred }))
            }
            (Some(Some(Value::Gate(a))), Some(Some(Value::Gate(b)))) => self.gates(op, *a, *b),
            (Some(Some(Value::Gate(gate))), Some(Some(Value::Flow(flow))))
            | (Some(Some(Value::Flow(flow))), Some(Some(Value::Gate(gate)))) => self.gate_and_flow(op, *gate, flow),
            (Some(Some(Value::Flow(a))), Some(Some(Value::Flow(b))))
                if op == "Mul" && a.at == b.at && a.factor().is_some() && b.factor().is_some() =>
            {
                let factor = a.factor().unwrap_or(1.0) * b.factor().unwrap_or(1.0);
                let form = Form::Square(factor);
                Ok(Value::Gate(Gate { at: a.at, form }))
            }
            (Some(Some(_)), Some(Some(_))) => Err(node.unsupported(
                "both its inputs depend on the input of the network; that is read as a part of gelu only",
            )),
            _ => Err(node.malformed("it needs two inputs")),
        }
    }

    /// The square of what is centred, or the end of a layer norm.
    fn gates(&mut self, op: &str, a: Gate, b: Gate) -> Result<Value> {
        let node = self.node;
        let unknown = || node.unsupported("it looks like a part of a layer norm, but does not fit its formula");
        match (op, a.form, b.form) {
            ("Mul", Form::Centred, Form::Centred) if a.at == b.at => a.squared().map(Value::Gate).ok_or_else(unknown),
            ("Div", Form::Centred, Form::Deviation(eps)) if a.at == b.at => {
                let width = self.reader.steps.width(a.at).ok_or_else(unknown)?;
                self.reader.steps.spend(node, 2 * width * F::BYTES)?;
                let norm = LayerNorm::new(width).and_then(|norm| norm.with_eps(eps));
                self.layer(a.at, Layer::LayerNorm(norm.map_err(|error| node.malformed(error))?))
            }
            _ => Err(unknown()),
        }
    }

    fn mean(&mut self) -> Result<Value> {
        let node = self.node;
        let axes = match node.ints("axes")? {
            Some(axes) => Some(axes.to_vec()),
            None => self.constant(1)?.and_then(|axes| axes.ints()),
        };
        let unknown = || node.unsupported("means are read over the last axis, as a part of a layer norm");
        if axes.as_deref() != Some(&[-1]) || node.int("keepdims", 1)? != 1 {
            return Err(unknown());
        }
        if let Some(Some(Value::Gate(gate))) = self.inputs.first() {
            return gate.mean().map(Value::Gate).ok_or_else(unknown);
        }
        let at = self.step(0)?;
        Ok(Value::Gate(Gate { at, form: Form::Mean }))
    }

    fn gate_and_flow(&mut self, op: &str, gate: Gate, flow: &Flow) -> Result<Value> {
        let node = self.node;
        let unknown = || node.unsupported("it looks like a part of gelu, but does not fit its formula");
        match op {
            "Add" => gate.plus_flow(flow).map(Value::Gate).ok_or_else(unknown),
            "Mul" => match gate.times_flow(flow).ok_or_else(unknown)? {
                Product::Piece(gate) => Ok(Value::Gate(gate)),
                Product::Whole(activation, scale) => {
                    let at = self.reader.steps.layer(node, flow.at, Layer::Activation(activation))?;
                    Ok(Value::Flow(Flow { scale, ..Flow::of(at) }))
                }
            },
            _ => Err(unknown()),
        }
    }

    /// A value and a constant, the constant on the left if `flipped`.
    fn with_constant(
        &mut self,
        op: &str,
        value: &Value,
        index: usize,
        constant: &Rc<Tensor>,
        flipped: bool,
    ) -> Result<Value> {
        let node = self.node;
        if !constant.is_float() {
            return Err(node.unsupported("arithmetic with constants that are no floats"));
        }
        if let (Value::Gate(gate), Some(c)) = (value, constant.float()) {
            let gate = match op {
                "Mul" => gate.times(c),
                "Div" if !flipped => gate.times(1.0 / c),
                "Add" => gate.plus(c),
                _ => None,
            };
            return gate
                .map(Value::Gate)
                .ok_or_else(|| node.unsupported("it looks like a part of gelu, but does not fit its formula"));
        }
        let Value::Flow(flow) = value else {
            return Err(node.unsupported(format!("its input {index} is no batch of numbers")));
        };
        if op == "Add" && flow.is_plain() {
            if let Some(value) = self.add_bias(flow.at, constant)? {
                return Ok(value);
            }
        }
        // One number for all features may be a part of gelu, whose other parts read the same, settled step.
        let each = flow.scale.one().is_none() || flow.shift.one().is_none();
        let settled;
        let flow = if each && constant.float().is_some() {
            settled = Flow::of(self.reader.settled(node, index, flow)?);
            &settled
        } else {
            flow
        };
        let c = self.coefficient(flow, constant)?;
        let result = match (op, flipped) {
            ("Add", _) => flow.plus(&c),
            ("Mul", _) => flow.times(&c),
            ("Sub", false) => flow.plus(&negative(&c)),
            ("Sub", true) => flow.times(&Coefficient::One(-1.0)).and_then(|flow| flow.plus(&c)),
            ("Div", false) => flow.over(&c),
            _ => return Err(node.unsupported("a constant over a batch of numbers")),
        };
        let flow = result.ok_or_else(|| node.malformed("constants of different lengths for the same features"))?;
        let finite = |c: &Coefficient| match c {
            Coefficient::One(c) => c.is_finite(),
            Coefficient::Each(c) => c.iter().all(|c| c.is_finite()),
        };
        if !finite(&flow.scale) || !finite(&flow.shift) {
            return Err(node.malformed("its constants lead to a number that is not finite"));
        }
        Ok(Value::Flow(flow))
    }

    /// The bias of a linear layer that has none, kept in the codes that the file has.
    fn add_bias(&mut self, at: usize, constant: &Rc<Tensor>) -> Result<Option<Value>> {
        let step = self.reader.steps.get(at);
        let (Kind::Linear { linear, weight, .. }, Some(before)) = (&step.kind, step.before) else { return Ok(None) };
        if linear.bias().is_some() {
            return Ok(None);
        }
        let (mut linear, weight, width) = (linear.clone(), weight.clone(), linear.outputs());
        self.reader.steps.spend(self.node, linear.weight().len() * F::BYTES)?;
        let bias = self.vector(constant, width)?;
        linear.set_bias(Some(bias)).map_err(|error| self.node.malformed(error))?;
        let kind = Kind::Linear { linear, weight, bias: constant.origin.clone() };
        Ok(Some(Value::Flow(Flow::of(self.reader.steps.push(before, kind, Some(width))))))
    }

    fn coefficient(&self, flow: &Flow, constant: &Tensor) -> Result<Coefficient> {
        let values = constant.floats().unwrap_or_default();
        if let [value] = values.as_slice() {
            return Ok(Coefficient::One(*value));
        }
        let length = constant.dims.last().copied().unwrap_or(0);
        let width = self.reader.steps.width(flow.at);
        let vector = values.len() == length && width.is_none_or(|width| width == length) && length > 0;
        if !vector {
            return Err(self.node.unsupported(format!(
                "a constant of shape {:?}; one number, or one for each feature, is read",
                constant.dims
            )));
        }
        Ok(Coefficient::Each(values.into()))
    }

    fn power(&mut self) -> Result<Value> {
        let exponent = self.required(1)?.float();
        if let (Some(Some(Value::Gate(gate))), Some(2.0)) = (self.inputs.first(), exponent) {
            let unknown = || self.node.unsupported("the square of an intermediate result");
            return gate.squared().map(Value::Gate).ok_or_else(unknown);
        }
        let flow = self.flow(0)?;
        let gate = exponent.zip(flow.factor()).and_then(|(exponent, factor)| Gate::power(flow.at, factor, exponent));
        gate.map(Value::Gate).ok_or_else(|| self.node.unsupported("powers are read as a part of gelu only"))
    }

    fn batch_norm(&mut self) -> Result<Value> {
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

    fn layer_norm(&mut self) -> Result<Value> {
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

    fn prelu(&mut self) -> Result<Value> {
        let slopes = self.required(1)?.floats().unwrap_or_default();
        match slopes.split_first() {
            Some((&slope, rest)) if rest.iter().all(|&other| other == slope) => {
                self.activation(Activation::LeakyRelu(slope))
            }
            _ => Err(self.node.unsupported("one slope for all features is read")),
        }
    }

    fn clip(&mut self) -> Result<Value> {
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
        let unbounded = |bound: f64| bound.abs() >= f64::from(f32::MAX);
        match (low, high) {
            (low, high) if unbounded(low) && unbounded(high) => self.same(),
            (0.0, high) if unbounded(high) => self.activation(Activation::Relu),
            _ => self.clip_by_relus(low, high),
        }
    }

    /// Two linear layers of a column each around ReLUs: `clip(x) = low + relu(x - low) - relu(x - high)`.
    fn clip_by_relus(&mut self, low: f64, high: f64) -> Result<Value> {
        let node = self.node;
        if low.is_nan() || high.is_nan() || low > high {
            return Err(node.malformed(format!("bounds {low} and {high}")));
        }
        let at = self.step(0)?;
        self.reader.steps.not_after_tail(node, at)?;
        let width = self.reader.steps.width(at);
        let width = width.ok_or_else(|| node.unsupported("the number of features is not known here"))?;
        let lower = (!(low <= f64::from(f32::MIN))).then_some(low);
        let upper = (!(high >= f64::from(f32::MAX))).then_some(high);
        // high - relu(high - x) where only the upper bound exists
        let terms: Vec<(f64, f64, f64)> = match (lower, upper) {
            (Some(low), Some(high)) => vec![(1.0, -low, 1.0), (1.0, -high, -1.0)],
            (Some(low), None) => vec![(1.0, -low, 1.0)],
            (None, Some(high)) => vec![(-1.0, high, -1.0)],
            (None, None) => return self.same(),
        };
        let shift = lower.or(upper).unwrap_or(0.0);
        let hidden = terms.len().saturating_mul(width);
        let size = hidden.checked_mul(width).and_then(|n| n.checked_mul(2 * F::BYTES));
        let size = size.ok_or_else(|| node.malformed(format!("a clip of {width} features")))?;
        self.reader.steps.spend(node, size)?;
        let mut spread = Array2::zeros((hidden, width));
        let mut gather = Array2::zeros((width, hidden));
        let mut bias = Array1::zeros(hidden);
        for (term, &(sign, offset, weight)) in terms.iter().enumerate() {
            for i in 0..width {
                spread[[term * width + i, i]] = F::of(sign);
                gather[[i, term * width + i]] = F::of(weight);
                bias[term * width + i] = F::of(offset);
            }
        }
        let fail = |error| node.malformed(error);
        let first = Linear::new(spread, Some(bias)).map_err(fail)?;
        let second = Linear::new(gather, Some(Array1::from_elem(width, F::of(shift)))).map_err(fail)?;
        let plain = |linear| Kind::Linear { linear, weight: None, bias: None };
        let at = self.reader.steps.push(at, plain(first), Some(hidden));
        let at = self.reader.steps.layer(node, at, Layer::Activation(Activation::Relu))?;
        Ok(Value::Flow(Flow::of(self.reader.steps.push(at, plain(second), Some(width)))))
    }

    fn tail(&mut self, tail: Tail) -> Result<Value> {
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

    fn dropout(&mut self) -> Result<Value> {
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
    fn code_params(&self) -> Result<CodeParams> {
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

    fn quantize(&mut self) -> Result<Value> {
        let at = self.step(0)?;
        Ok(Value::Codes { at, params: self.code_params()? })
    }

    fn dequantize(&mut self) -> Result<Value> {
        let node = self.node;
        let Some(Some(Value::Codes { at, params })) = self.inputs.first() else {
            return Err(node.unsupported("it reads what is neither a constant nor the output of QuantizeLinear"));
        };
        if self.code_params()? != *params {
            return Err(node.unsupported("scale and zero point are not those of the QuantizeLinear before"));
        }
        self.reader.steps.not_after_tail(node, *at)?;
        Ok(Value::Flow(Flow::of(self.reader.steps.push(*at, Kind::Codes(*params), None))))
    }

    fn cast(&mut self) -> Result<Value> {
        use super::proto::data_type::{BFLOAT16, DOUBLE, FLOAT, FLOAT16, INT32, INT64, name};
        let to = i32::try_from(self.node.int("to", 0)?).unwrap_or(0);
        let shape = matches!(self.inputs.first(), Some(Some(Value::Shape(_))));
        match to {
            FLOAT | DOUBLE | FLOAT16 | BFLOAT16 if !shape => self.same(),
            INT32 | INT64 if shape => self.same(),
            _ => Err(self.node.unsupported(format!("a batch of numbers cast to {}", name(to)))),
        }
    }

    fn flatten(&mut self) -> Result<Value> {
        let axis = self.node.int("axis", 1)?;
        let at = self.step(0)?;
        let rank = self.reader.steps.get(at).features.as_ref().map(|features| features.len() as i64);
        if axis != 1 && rank.is_none_or(|rank| axis != -rank) {
            return Err(self.node.unsupported(format!("axis {axis}; all axes but the batch are joined")));
        }
        self.flat(at, None)
    }

    /// All features on one axis, which is `width` long if that is known.
    fn flat(&mut self, at: usize, width: Option<usize>) -> Result<Value> {
        let node = self.node;
        let features = self.reader.steps.get(at).features.clone();
        let known = features.as_ref().and_then(|features| {
            features.iter().try_fold(1_usize, |n, dim| dim.and_then(|dim| n.checked_mul(dim)))
        });
        if let (Some(known), Some(width)) = (known, width) {
            if known != width {
                return Err(node.unsupported(format!("{known} features become rows of {width}")));
            }
        }
        let width = known.or(width);
        match features {
            Some(features) if features.len() != 1 && !self.reader.steps.elementwise_so_far(at) => {
                Err(node.unsupported(format!("axes {features:?} are joined behind a layer")))
            }
            Some(features) if features.len() == 1 && features.first() == Some(&width) => Ok(Value::Flow(Flow::of(at))),
            _ => Ok(Value::Flow(Flow::of(self.reader.steps.reshaped(at, vec![width])))),
        }
    }

    fn reshape(&mut self) -> Result<Value> {
        let node = self.node;
        let target: Vec<Length> = match (self.inputs.get(1), node.ints("shape")?) {
            (Some(Some(Value::Shape(shape))), _) => shape.clone(),
            (Some(Some(Value::Constant(shape))), _) => {
                let ints = shape.ints().ok_or_else(|| node.malformed("its shape is no list of integers"))?;
                ints.into_iter().map(Length::Known).collect()
            }
            (_, Some(ints)) => ints.iter().map(|&dim| Length::Known(dim)).collect(),
            _ => return Err(node.unsupported("its shape is neither a constant nor taken from a batch")),
        };
        let at = self.step(0)?;
        let last = match target.as_slice() {
            // The batch, then everything else.
            [Length::Batch | Length::Known(-1 | 0) | Length::Unknown, last] => *last,
            // A batch of one, fixed by the exporter.
            [Length::Known(1), last @ Length::Known(2..)] => *last,
            [Length::Known(-1) | Length::Batch] if self.reader.steps.width(at) == Some(1) => Length::Known(1),
            other => {
                return Err(node.unsupported(format!("the shape {other:?}; [batch, features] is read")));
            }
        };
        match last {
            Length::Known(-1 | 0) | Length::Unknown => self.flat(at, None),
            Length::Known(width) => {
                let width = usize::try_from(width).map_err(|_| node.malformed(format!("a width of {width}")))?;
                self.flat(at, Some(width))
            }
            Length::Batch => Err(node.unsupported("the batch as features")),
        }
    }

    fn squeeze(&mut self) -> Result<Value> {
        let at = self.step(0)?;
        if self.reader.steps.get(at).features.as_deref() == Some(&[Some(1)]) {
            return Ok(Value::Flow(Flow::of(at)));
        }
        Err(self.node.unsupported("more than one feature"))
    }

    /// Lengths of a shape.
    fn pick(&mut self, op: &str) -> Result<Value> {
        let node = self.node;
        let Some(Some(Value::Shape(shape))) = self.inputs.first() else {
            return Err(node.unsupported("parts of a shape are read, not parts of a batch"));
        };
        let index = |i: i64| {
            let i = if i < 0 { i.saturating_add(shape.len() as i64) } else { i };
            usize::try_from(i).unwrap_or(0).min(shape.len())
        };
        let ints = |i: usize| -> Result<Vec<i64>> {
            let ints = self.constant(i)?.map_or(Some(vec![]), |tensor| tensor.ints());
            ints.ok_or_else(|| node.malformed(format!("its input {i} is no list of integers")))
        };
        let picked: Option<Vec<Length>> = if op == "Gather" {
            ints(1)?.iter().map(|&i| shape.get(index(i)).copied()).collect()
        } else {
            let (starts, ends) = match (node.ints("starts")?, node.ints("ends")?) {
                (Some(starts), Some(ends)) => (starts.to_vec(), ends.to_vec()),
                _ => (ints(1)?, ints(2)?),
            };
            let steps = ints(4)?;
            match (starts.as_slice(), ends.as_slice()) {
                ([start], [end]) if steps.iter().all(|&step| step == 1) => {
                    shape.get(index(*start)..index(*end)).map(<[Length]>::to_vec)
                }
                _ => None,
            }
        };
        picked.map(Value::Shape).ok_or_else(|| node.unsupported("the lengths that it picks"))
    }

    fn concat(&mut self) -> Result<Value> {
        let node = self.node;
        let shapes = self.inputs.iter().flatten().any(|input| matches!(input, Value::Shape(_)));
        if !shapes {
            return self.concat_columns();
        }
        let mut all = Vec::new();
        for input in self.inputs.iter().flatten() {
            match input {
                Value::Shape(shape) => all.extend(shape),
                Value::Constant(tensor) => all.extend(
                    tensor
                        .ints()
                        .ok_or_else(|| node.malformed("a shape that is no list of integers"))?
                        .into_iter()
                        .map(Length::Known),
                ),
                _ => return Err(node.unsupported("a shape joined with a batch")),
            }
        }
        if all.len() > 8 {
            return Err(node.unsupported("a shape of more than 8 axes"));
        }
        Ok(Value::Shape(all))
    }

    /// `[1 - p, p]`, the probabilities of two classes from one: a linear layer of one input.
    fn concat_columns(&mut self) -> Result<Value> {
        let node = self.node;
        let only = || node.unsupported("columns are joined where each is a multiple of the same one feature");
        if !matches!(node.int("axis", 1)?, 1 | -1) {
            return Err(only());
        }
        let flows: Vec<Flow> = (0..self.inputs.len()).map(|i| self.flow(i)).collect::<Result<_>>()?;
        let at = flows.first().map(|flow| flow.at).ok_or_else(only)?;
        if self.reader.steps.width(at) != Some(1) || flows.iter().any(|flow| flow.at != at) {
            return Err(only());
        }
        self.reader.steps.not_after_tail(node, at)?;
        let coefficients = |f: fn(&Flow) -> &Coefficient| -> Option<Vec<F>> {
            let one = |c: &Coefficient| match c {
                Coefficient::One(c) => Some(F::of(*c)),
                Coefficient::Each(c) => c.first().map(|&c| F::of(c)),
            };
            flows.iter().map(|flow| one(f(flow))).collect()
        };
        let scales = coefficients(|flow| &flow.scale).ok_or_else(only)?;
        let shifts = coefficients(|flow| &flow.shift).ok_or_else(only)?;
        let n = scales.len();
        let weight = Array2::from_shape_vec((n, 1), scales).map_err(|error| node.malformed(error))?;
        let linear = Linear::new(weight, Some(shifts.into())).map_err(|error| node.malformed(error))?;
        let kind = Kind::Linear { linear, weight: None, bias: None };
        Ok(Value::Flow(Flow::of(self.reader.steps.push(at, kind, Some(n)))))
    }

    /// `(x - offset) * scale`, the standardization of scikit-learn.
    fn scaler(&mut self) -> Result<Value> {
        let node = self.node;
        let at = self.step(0)?;
        let of = |floats: &[f32]| Array1::from_iter(floats.iter().map(|&x| F::of(x.into())));
        let (offset, scale) = (of(node.floats("offset")?), of(node.floats("scale")?));
        let (beta, var) = (Array1::zeros(scale.len()), Array1::ones(scale.len()));
        let norm = BatchNorm::from_parts(scale, beta, offset, var, 1e-30).map_err(|error| node.malformed(error))?;
        if let Some(width) = self.reader.steps.width(at).filter(|&width| width != norm.features()) {
            return Err(node.malformed(format!("{} scales, where {width} features arrive", norm.features())));
        }
        self.layer(at, Layer::BatchNorm(norm))
    }
}

fn negative(c: &Coefficient) -> Coefficient {
    match c {
        Coefficient::One(c) => Coefficient::One(-c),
        Coefficient::Each(c) => Coefficient::Each(c.iter().map(|c| -c).collect()),
    }
}
