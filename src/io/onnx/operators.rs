//! The operators: what each makes of a value that depends on the input.

mod arithmetic;
mod layers;
mod linear;
mod shapes;

use std::rc::Rc;

use ndarray::Array1;

use super::Tail;
use super::flow::{Coefficient, Flow, Value};
use super::gate::Gate;
use super::import::{Reader, shape};
use super::node::Node;
use super::tensor::{Numbers, Tensor};
use crate::error::Result;
use crate::float::Float;
use crate::nn::{Activation, Layer};

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
            "Squeeze" | "Unsqueeze" if matches!(self.inputs.first(), Some(Some(Value::Shape(_)))) => {
                self.same()
            }
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
            Some(Some(Value::Gate(_))) => Err(self
                .node
                .unsupported("it reads an intermediate result of what looks like gelu, but is not")),
            Some(Some(Value::Constant(_))) => Err(self
                .node
                .unsupported(format!("its input {index} is a constant, another depends on the input"))),
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
            Numbers::F64(_) if F::BYTES < 8 => Err(self
                .node
                .unsupported("its numbers are DOUBLE, which f32 would round: read it as a network of f64")),
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
}
