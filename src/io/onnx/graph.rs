//! The graph as a whole: which node makes which value, and in which order they are needed.

use std::collections::BTreeMap;

use super::malformed;
use super::proto::{Dimension, GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::error::{Error, Result};

/// Where a value comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    Input(&'a ValueInfoProto),
    Initializer(&'a TensorProto),
    Node(usize),
}

/// The values of a graph by name.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    pub(super) nodes: &'a [NodeProto],
    outputs: &'a [ValueInfoProto],
    sources: BTreeMap<&'a str, Source<'a>>,
}

impl<'a> Graph<'a> {
    pub(super) fn new(graph: &'a GraphProto) -> Result<Self> {
        let mut sources = BTreeMap::new();
        let mut put = |name: &'a str, source: Source<'a>, what: &str| {
            let before = sources.insert(name, source);
            // Older files list initializers among the inputs as well: those are defaults.
            match (before, source) {
                (None, _) | (Some(Source::Input(_)), Source::Initializer(_)) => Ok(()),
                _ => Err(malformed(format!("{what} `{name}`: another value has the same name"))),
            }
        };
        for input in &graph.input {
            put(&input.name, Source::Input(input), "input")?;
        }
        for tensor in &graph.initializer {
            put(&tensor.name, Source::Initializer(tensor), "initializer")?;
        }
        for (index, node) in graph.node.iter().enumerate() {
            if node.output.iter().all(String::is_empty) {
                let reason = format!("node `{}` (operator {}) has no output", node.name, node.op_type);
                return Err(malformed(reason));
            }
            for output in node.output.iter().filter(|output| !output.is_empty()) {
                put(output, Source::Node(index), "the output of a node")?;
            }
        }
        if let Some(values) = graph.sparse_initializer.iter().find_map(|sparse| sparse.values.as_ref()) {
            let reason = format!("the sparse initializer `{}`; dense ones are read", values.name);
            return Err(Error::Unsupported { what: "reading an ONNX graph", reason });
        }
        Ok(Self { nodes: &graph.node, outputs: &graph.output, sources })
    }

    pub(super) fn source(&self, name: &str) -> Option<Source<'a>> {
        self.sources.get(name).copied()
    }

    /// The value to stop at: the named one, or the only output of the graph that is made of floats.
    pub(super) fn output(&self, wanted: Option<&str>) -> Result<&'a str> {
        let names = || self.outputs.iter().map(|o| format!("`{}`", o.name)).collect::<Vec<_>>().join(", ");
        if let Some(wanted) = wanted {
            let found = self.sources.get_key_value(wanted).map(|(&name, _)| name);
            return found.ok_or_else(|| {
                let reason = format!("no value is called `{wanted}`; the outputs are {}", names());
                Error::Unsupported { what: "reading an ONNX graph", reason }
            });
        }
        // Classifiers of scikit-learn give labels, which are integers, and then probabilities.
        let integer = |output: &&ValueInfoProto| {
            let tensor = output.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
            tensor.is_some_and(|tensor| !matches!(tensor.elem_type, 0 | 1 | 10 | 11 | 16))
        };
        let mut floats = self.outputs.iter().filter(|output| self.outputs.len() == 1 || !integer(output));
        match (floats.next(), floats.next()) {
            (Some(output), None) => Ok(&output.name),
            (None, _) => Err(malformed("the graph has no output")),
            _ => {
                let reason = format!("several outputs, {}: name the one to stop at", names());
                Err(Error::Unsupported { what: "reading an ONNX graph", reason })
            }
        }
    }

    /// The nodes that `output` needs, each after those that it needs itself.
    pub(super) fn order(&self, output: &str) -> Result<Vec<usize>> {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            New,
            Open,
            Done,
        }
        let mut states = vec![State::New; self.nodes.len()];
        let mut order = Vec::new();
        // A stack of its own: a graph may be deeper than the machine's.
        let mut stack: Vec<(usize, usize)> = Vec::new();
        if let Some(Source::Node(index)) = self.source(output) {
            states[index] = State::Open;
            stack.push((index, 0));
        }
        while let Some((index, next)) = stack.last_mut() {
            let node = &self.nodes[*index];
            let Some(input) = node.input.get(*next) else {
                states[*index] = State::Done;
                order.push(*index);
                stack.pop();
                continue;
            };
            *next += 1;
            if input.is_empty() {
                continue;
            }
            match self.source(input) {
                None => {
                    return Err(malformed(format!(
                        "node `{}` (operator {}) reads `{input}`, which is no input, no initializer and no output \
                         of a node",
                        node.name, node.op_type
                    )));
                }
                Some(Source::Node(child)) => match states[child] {
                    State::New => {
                        states[child] = State::Open;
                        stack.push((child, 0));
                    }
                    State::Open => {
                        let node = &self.nodes[child];
                        let reason = format!(
                            "a cycle: node `{}` (operator {}) needs its own output",
                            node.name, node.op_type
                        );
                        return Err(malformed(reason));
                    }
                    State::Done => {}
                },
                Some(_) => {}
            }
        }
        Ok(order)
    }
}

/// The lengths of an input's axes after the batch; `None` if the file does not say how many axes there are.
pub(super) fn features(input: &ValueInfoProto) -> Option<Vec<Option<usize>>> {
    let shape = input.r#type.as_ref()?.tensor_type.as_ref()?.shape.as_ref()?;
    let length = |value: &Option<Dimension>| match value {
        Some(Dimension::Value(length)) => usize::try_from(*length).ok(),
        _ => None,
    };
    Some(shape.dim.iter().skip(1).map(|dim| length(&dim.value)).collect())
}
