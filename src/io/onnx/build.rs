//! Builds a graph node by node: names, tensors as bytes, the chain from input to output.

use super::proto::{
    AttributeProto, Dimension, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    ShapeProto, TensorProto, TensorTypeProto, TypeProto, ValueInfoProto, attribute_type, data_type,
};

/// A graph in the making: a chain of nodes, each made from what came before.
#[derive(Debug)]
pub(super) struct Builder {
    graph: GraphProto,
    opset: i64,
    names: usize,
}

impl Builder {
    pub(super) fn new(opset: i64) -> Self {
        Self { graph: GraphProto { name: "trimnet".into(), ..GraphProto::default() }, opset, names: 0 }
    }

    pub(super) fn opset(&self) -> i64 {
        self.opset
    }

    /// The network's input, `[N, width]` floats.
    pub(super) fn input(&mut self, name: &str, width: usize) -> String {
        self.graph.input.push(batch(name, width));
        name.to_owned()
    }

    /// Makes `value` the network's output, `[N, width]` floats, under this name.
    pub(super) fn output(mut self, value: &str, name: &str, width: usize) -> ModelProto {
        // The value gets the name; only the input itself, which has one, needs a node for that.
        if self.graph.input.iter().any(|input| input.name == value) {
            self.node_named("Identity", &[value], name, Vec::new());
        } else {
            for node in &mut self.graph.node {
                let names = node.input.iter_mut().chain(&mut node.output);
                names.filter(|n| *n == value).for_each(|n| *n = name.to_owned());
            }
        }
        self.graph.output.push(batch(name, width));
        ModelProto {
            ir_version: ir_version(self.opset),
            producer_name: "trimnet".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: self.opset }],
            metadata_props: Vec::new(),
        }
    }

    /// A node of one output, whose name is returned.
    pub(super) fn node(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = self.fresh(op);
        self.node_named(op, inputs, &output, attributes);
        output
    }

    /// A node of several outputs.
    pub(super) fn node_of<const N: usize>(&mut self, op: &str, inputs: &[&str]) -> [String; N] {
        let name = self.fresh(op);
        let outputs: [String; N] = std::array::from_fn(|i| format!("{name}.{i}"));
        self.push(op, name, inputs, &outputs, Vec::new());
        outputs
    }

    fn node_named(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) {
        self.push(op, format!("node.{output}"), inputs, &[output.to_owned()], attributes);
    }

    fn push(
        &mut self,
        op: &str,
        name: String,
        inputs: &[&str],
        outputs: &[String],
        attribute: Vec<AttributeProto>,
    ) {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: outputs.to_vec(),
            name,
            op_type: op.to_owned(),
            attribute,
            domain: String::new(),
        });
    }

    fn fresh(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{}.{}", what.to_lowercase(), self.names)
    }

    /// A tensor of numbers; its name is returned.
    pub(super) fn tensor(
        &mut self,
        name: String,
        data_type: i32,
        dims: &[usize],
        raw_data: Vec<u8>,
    ) -> String {
        self.graph.initializer.push(TensorProto {
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type,
            name: name.clone(),
            raw_data,
            ..TensorProto::default()
        });
        name
    }

    pub(super) fn floats(&mut self, name: impl Into<String>, dims: &[usize], x: &[f32]) -> String {
        let bytes = x.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensor(name.into(), data_type::FLOAT, dims, bytes)
    }

    /// One float without an axis, named after what it is for.
    pub(super) fn scalar(&mut self, what: &str, x: f32) -> String {
        let name = self.fresh(what);
        self.floats(name, &[], &[x])
    }

    pub(super) fn int8(&mut self, name: impl Into<String>, dims: &[usize], x: &[i8]) -> String {
        let bytes = x.iter().map(|&x| x as u8).collect();
        self.tensor(name.into(), data_type::INT8, dims, bytes)
    }

    pub(super) fn int32(&mut self, name: impl Into<String>, dims: &[usize], x: &[i32]) -> String {
        let bytes = x.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensor(name.into(), data_type::INT32, dims, bytes)
    }
}

/// The version of the file format that came with an operator set.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        _ => 11,
    }
}

/// Floats of shape `[N, width]`: any number of rows.
fn batch(name: &str, width: usize) -> ValueInfoProto {
    let dim = |value| DimensionProto { value: Some(value) };
    let dim = vec![dim(Dimension::Param("N".into())), dim(Dimension::Value(width as i64))];
    let shape = Some(ShapeProto { dim });
    let tensor_type = Some(TensorTypeProto { elem_type: data_type::FLOAT, shape });
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type }) }
}

/// An attribute that is a float.
pub(super) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f, r#type: attribute_type::FLOAT, ..AttributeProto::default() }
}

/// An attribute that is an integer.
pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i, r#type: attribute_type::INT, ..AttributeProto::default() }
}

/// An attribute that is a word.
pub(super) fn string(name: &str, s: &str) -> AttributeProto {
    let s = s.as_bytes().to_vec();
    AttributeProto { name: name.into(), s, r#type: attribute_type::STRING, ..AttributeProto::default() }
}
