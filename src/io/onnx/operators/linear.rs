//! Linear layers: `Gemm`, and `MatMul` with or without an `Add` behind it.

use std::rc::Rc;

use ndarray::Array2;

use super::Operator;
use crate::error::Result;
use crate::float::Float;
use crate::io::onnx::flow::{Coefficient, Flow, Kind, Value};
use crate::io::onnx::tensor::{Numbers, Origin, Tensor};
use crate::nn::Linear;

impl<F: Float> Operator<'_, '_, '_, F> {
    pub(super) fn gemm(&mut self) -> Result<Value> {
        let node = self.node;
        if node.int("transA", 0)? != 0 {
            return Err(node.unsupported("transA = 1 would mix the rows of the batch"));
        }
        let transposed = node.int("transB", 0)? == 1;
        let (alpha, beta) = (node.float("alpha", 1.0)?, node.float("beta", 1.0)?);
        let bias = self.constant(2)?.cloned();
        self.linear(transposed, bias.as_ref(), alpha, beta)
    }

    pub(super) fn matmul(&mut self) -> Result<Value> {
        self.linear(false, None, 1.0, 1.0)
    }

    /// `alpha * x w + beta * b`, with `w` `[out, in]` if transposed, else `[in, out]`.
    pub(super) fn linear(
        &mut self,
        transposed: bool,
        bias: Option<&Rc<Tensor>>,
        alpha: f32,
        beta: f32,
    ) -> Result<Value> {
        let node = self.node;
        let at = self.step(0)?;
        self.reader.steps.not_after_tail(node, at)?;
        let tensor = self.required(1)?.clone();
        let [rows, columns] = tensor.dims.as_slice() else {
            return Err(
                node.unsupported(format!("its weight has shape {:?}; two axes are read", tensor.dims))
            );
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
        let stored =
            Array2::from_shape_vec((*rows, *columns), values).map_err(|error| node.malformed(error))?;
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
    pub(super) fn weight_codes(&self, tensor: &Tensor, transposed: bool) -> Result<Option<Rc<Origin>>> {
        let (Some(origin), [rows, columns]) = (&tensor.origin, tensor.dims.as_slice()) else {
            return Ok(None);
        };
        let output_axis = usize::from(!transposed);
        if !matches!(origin.codes, Numbers::I8(_)) || origin.scales.len() > 1 && origin.axis != output_axis {
            return Ok(None);
        }
        if transposed {
            return Ok(Some(origin.clone()));
        }
        let Numbers::I8(codes) = &origin.codes else { return Ok(None) };
        let codes =
            (0..*columns).flat_map(|c| (0..*rows).filter_map(move |r| codes.get(r * columns + c).copied()));
        Ok(Some(Rc::new(Origin {
            codes: Numbers::I8(codes.collect()),
            scales: origin.scales.clone(),
            axis: 0,
        })))
    }

    /// The bias of a linear layer that has none, kept in the codes that the file has.
    pub(super) fn add_bias(&mut self, at: usize, constant: &Rc<Tensor>) -> Result<Option<Value>> {
        let step = self.reader.steps.get(at);
        let (Kind::Linear { linear, weight, .. }, Some(before)) = (&step.kind, step.before) else {
            return Ok(None);
        };
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

    /// `[1 - p, p]`, the probabilities of two classes from one: a linear layer of one input.
    pub(super) fn concat_columns(&mut self) -> Result<Value> {
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
}
