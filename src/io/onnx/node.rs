//! One node as the importer sees it: its attributes by name, and errors that say where they happened.

use super::proto::{AttributeProto, NodeProto, TensorProto, attribute_type};
use crate::error::{Error, Result};

/// What the importer understands.
const SUPPORTED: &str = "Gemm, MatMul, Add, Sub, Mul, Div, BatchNormalization, LayerNormalization, Relu, LeakyRelu, \
                         PRelu, Elu, Tanh, Sigmoid, Gelu, Erf and Pow inside of Gelu, ReduceMean and Sqrt \
                         inside of LayerNormalization, Clip, Dropout, Softmax, \
                         LogSoftmax, QuantizeLinear, DequantizeLinear, Flatten, Reshape, Squeeze, Identity, Cast, \
                         Shape, Gather, Slice, Unsqueeze, Concat, Transpose, Constant, ai.onnx.ml.Scaler and ZipMap";

/// A node and its place in the graph.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'a> {
    pub(super) proto: &'a NodeProto,
    pub(super) opset: i64,
}

impl<'a> Node<'a> {
    pub(super) fn op(self) -> &'a str {
        &self.proto.op_type
    }

    /// Whether the operator is ONNX's own.
    pub(super) fn is_standard(self) -> bool {
        matches!(self.proto.domain.as_str(), "" | "ai.onnx")
    }

    /// The name of an input; `None` if there are fewer, or it is left out.
    pub(super) fn input(self, index: usize) -> Option<&'a str> {
        self.proto.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Where and what, for messages.
    fn place(self) -> String {
        let Self { proto, .. } = self;
        let output = proto.output.first().map_or("", String::as_str);
        let name = if proto.name.is_empty() { output } else { &proto.name };
        let domain = if self.is_standard() { String::new() } else { format!("{}.", proto.domain) };
        format!("node `{name}` (operator {domain}{})", proto.op_type)
    }

    /// The graph is sound, but no feed-forward network that this crate has.
    pub(super) fn unsupported(self, reason: impl std::fmt::Display) -> Error {
        Error::Unsupported { what: "reading an ONNX graph", reason: format!("{}: {reason}", self.place()) }
    }

    /// The operator is not known.
    pub(super) fn unknown(self) -> Error {
        self.unsupported(format!(
            "this operator is not supported; supported are {SUPPORTED}. If only the end of the graph is at fault, \
             name the output to stop at"
        ))
    }

    /// The graph is wrong.
    pub(super) fn malformed(self, reason: impl std::fmt::Display) -> Error {
        super::malformed(format!("{}: {reason}", self.place()))
    }

    fn attribute(self, name: &str, kind: i32) -> Result<Option<&'a AttributeProto>> {
        let Some(attribute) = self.proto.attribute.iter().find(|attribute| attribute.name == name) else {
            return Ok(None);
        };
        // Old files leave the type out.
        if attribute.r#type != kind && attribute.r#type != 0 {
            return Err(self.malformed(format!("attribute `{name}` has type {}", attribute.r#type)));
        }
        Ok(Some(attribute))
    }

    pub(super) fn float(self, name: &str, default: f32) -> Result<f32> {
        Ok(self.attribute(name, attribute_type::FLOAT)?.map_or(default, |attribute| attribute.f))
    }

    pub(super) fn has(self, name: &str) -> bool {
        self.proto.attribute.iter().any(|attribute| attribute.name == name)
    }

    pub(super) fn int(self, name: &str, default: i64) -> Result<i64> {
        Ok(self.attribute(name, attribute_type::INT)?.map_or(default, |attribute| attribute.i))
    }

    pub(super) fn ints(self, name: &str) -> Result<Option<&'a [i64]>> {
        Ok(self.attribute(name, attribute_type::INTS)?.map(|attribute| attribute.ints.as_slice()))
    }

    pub(super) fn floats(self, name: &str) -> Result<&'a [f32]> {
        Ok(self.attribute(name, attribute_type::FLOATS)?.map_or(&[], |attribute| attribute.floats.as_slice()))
    }

    pub(super) fn word(self, name: &str, default: &'a str) -> Result<&'a str> {
        let Some(attribute) = self.attribute(name, attribute_type::STRING)? else { return Ok(default) };
        std::str::from_utf8(&attribute.s)
            .map_err(|_| self.malformed(format!("attribute `{name}` is not UTF-8")))
    }

    pub(super) fn tensor(self, name: &str) -> Result<Option<&'a TensorProto>> {
        Ok(self.attribute(name, attribute_type::TENSOR)?.and_then(|attribute| attribute.t.as_ref()))
    }
}
