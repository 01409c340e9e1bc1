//! Sums and products: with constants, which find their layer later, or as pieces of a formula.

use std::rc::Rc;

use super::Operator;
use crate::error::Result;
use crate::float::Float;
use crate::io::onnx::flow::{Coefficient, Flow, Value};
use crate::io::onnx::gate::{Form, Gate, Product};
use crate::io::onnx::tensor::Tensor;
use crate::nn::Layer;
use crate::normalize::LayerNorm;

impl<F: Float> Operator<'_, '_, '_, F> {
    pub(super) fn arithmetic(&mut self, op: &str) -> Result<Value> {
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
            | (Some(Some(Value::Flow(flow))), Some(Some(Value::Gate(gate)))) => {
                self.gate_and_flow(op, *gate, flow)
            }
            (Some(Some(Value::Flow(a))), Some(Some(Value::Flow(b))))
                if op == "Mul" && a.at == b.at && a.factor().is_some() && b.factor().is_some() =>
            {
                let factor = a.factor().unwrap_or(1.0) * b.factor().unwrap_or(1.0);
                let form = Form::Square(factor);
                Ok(Value::Gate(Gate { at: a.at, form }))
            }
            (Some(Some(_)), Some(Some(_))) => Err(node.unsupported(
                "both its inputs depend on the input of the network; that is read as a part of gelu or a layer \
                 norm only: sums of a residual network and SiLU, x * sigmoid(x), are not supported",
            )),
            _ => Err(node.malformed("it needs two inputs")),
        }
    }

    /// The square of what is centred, or the end of a layer norm.
    pub(super) fn gates(&mut self, op: &str, a: Gate, b: Gate) -> Result<Value> {
        let node = self.node;
        let unknown =
            || node.unsupported("it looks like a part of a layer norm, but does not fit its formula");
        match (op, a.form, b.form) {
            ("Mul", Form::Centred, Form::Centred) if a.at == b.at => {
                a.squared().map(Value::Gate).ok_or_else(unknown)
            }
            ("Div", Form::Centred, Form::Deviation(eps)) if a.at == b.at => {
                let width = self.reader.steps.width(a.at).ok_or_else(unknown)?;
                self.reader.steps.spend(node, width.saturating_mul(2 * F::BYTES))?;
                let norm = LayerNorm::new(width).and_then(|norm| norm.with_eps(eps));
                self.layer(a.at, Layer::LayerNorm(norm.map_err(|error| node.malformed(error))?))
            }
            _ => Err(unknown()),
        }
    }

    pub(super) fn mean(&mut self) -> Result<Value> {
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

    pub(super) fn gate_and_flow(&mut self, op: &str, gate: Gate, flow: &Flow) -> Result<Value> {
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
    pub(super) fn with_constant(
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
            return gate.map(Value::Gate).ok_or_else(|| {
                node.unsupported("it looks like a part of gelu, but does not fit its formula")
            });
        }
        let Value::Flow(flow) = value else {
            return Err(node.unsupported(format!("its input {index} is no batch of numbers")));
        };
        if op == "Add"
            && flow.is_plain()
            && let Some(value) = self.add_bias(flow.at, constant)?
        {
            return Ok(value);
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
        let flow =
            result.ok_or_else(|| node.malformed("constants of different lengths for the same features"))?;
        let finite = |c: &Coefficient| match c {
            Coefficient::One(c) => c.is_finite(),
            Coefficient::Each(c) => c.iter().all(|c| c.is_finite()),
        };
        if !finite(&flow.scale) || !finite(&flow.shift) {
            return Err(node.malformed("its constants lead to a number that is not finite"));
        }
        self.reader.steps.spend(node, flow.scale.bytes().saturating_add(flow.shift.bytes()))?;
        Ok(Value::Flow(flow))
    }

    pub(super) fn coefficient(&self, flow: &Flow, constant: &Tensor) -> Result<Coefficient> {
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

    pub(super) fn power(&mut self) -> Result<Value> {
        let exponent = self.required(1)?.float();
        if let (Some(Some(Value::Gate(gate))), Some(2.0)) = (self.inputs.first(), exponent) {
            let unknown = || self.node.unsupported("the square of an intermediate result");
            return gate.squared().map(Value::Gate).ok_or_else(unknown);
        }
        let flow = self.flow(0)?;
        let gate =
            exponent.zip(flow.factor()).and_then(|(exponent, factor)| Gate::power(flow.at, factor, exponent));
        gate.map(Value::Gate).ok_or_else(|| self.node.unsupported("powers are read as a part of gelu only"))
    }
}

fn negative(c: &Coefficient) -> Coefficient {
    match c {
        Coefficient::One(c) => Coefficient::One(-c),
        Coefficient::Each(c) => Coefficient::Each(c.iter().map(|c| -c).collect()),
    }
}
