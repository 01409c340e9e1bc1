//! From a graph to a network: node after node, each changes what is known of the input's way to the output.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

use prost::Message;

use super::constant::{constant, fold};
use super::flow::{Flow, Kind, Length, Steps, Value};
use super::graph::{Graph, Source, features};
use super::node::Node;
use super::proto::ModelProto;
use super::tensor::{External, Tensor};
use super::{Tail, integers, malformed, operators, scan};
use crate::engine::QuantizedMlp;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::nn::Mlp;

/// Reads ONNX models.
///
/// ```no_run
/// use trimnet::io::onnx::OnnxImporter;
///
/// let imported = OnnxImporter::new().read::<f32>("model.onnx")?;
/// println!("{:?}, then {:?}", imported.network.widths(), imported.tail);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxImporter {
    output: Option<String>,
    base: usize,
    ratio: usize,
}

/// A network that was read, and what follows its last layer in the graph.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub struct Imported<N> {
    /// The network; its outputs are what the tail takes in.
    pub network: N,
    /// Softmax, its logarithm, or nothing.
    pub tail: Tail,
}

impl Default for OnnxImporter {
    fn default() -> Self {
        Self::new()
    }
}

impl OnnxImporter {
    /// The whole graph; memory up to 16 MiB and ten times the size of the file.
    pub fn new() -> Self {
        Self { output: None, base: 16 << 20, ratio: 10 }
    }

    /// Stops at this value of the graph, for graphs whose end is no part of the network.
    #[must_use]
    pub fn with_output(self, name: impl Into<String>) -> Self {
        Self { output: Some(name.into()), ..self }
    }

    /// Another limit of memory: `base` bytes for any file, and `ratio` more for each of its bytes.
    #[must_use]
    pub fn with_limits(self, base: usize, ratio: usize) -> Self {
        Self { base, ratio, ..self }
    }

    /// Reads a network in floats. Quantized weights become the floats that they stand for; rounded activations are
    /// not rounded. Where codes follow a linear layer or a norm, they become a clip at the lowest and the highest code:
    /// ONNX Runtime's quantizer leaves out ReLU, ReLU6 and Hardtanh there, and leaves nothing that tells them apart.
    ///
    /// Batch norms that were exported in training mode are refused; a dropout is read as one in either mode, which
    /// does nothing when the network predicts.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses; otherwise as [`from_bytes`](Self::from_bytes).
    pub fn read<F: Float>(&self, path: impl AsRef<Path>) -> Result<Imported<Mlp<F>>> {
        self.at_path(path.as_ref(), |this, bytes, external| this.floats(bytes, external))
    }

    /// Reads a network in floats from the bytes of a model without external data.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that is not a sound model; [`Error::Unsupported`] for a graph that is not a
    /// feed-forward network of supported layers, with the node at fault, and for `f64` weights read as `f32`.
    pub fn from_bytes<F: Float>(&self, bytes: &[u8]) -> Result<Imported<Mlp<F>>> {
        self.floats(bytes, External::new(None))
    }

    /// Reads a quantized network, as ONNX Runtime's own tool and [`OnnxExporter`](super::OnnxExporter) write it:
    /// `QuantizeLinear` and `DequantizeLinear` around linear layers of int8 weights.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_quantized(&self, path: impl AsRef<Path>) -> Result<Imported<QuantizedMlp>> {
        self.at_path(path.as_ref(), |this, bytes, external| this.integers(bytes, external))
    }

    /// [`read_quantized`](Self::read_quantized) from the bytes of a model without external data.
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes).
    pub fn quantized_from_bytes(&self, bytes: &[u8]) -> Result<Imported<QuantizedMlp>> {
        self.integers(bytes, External::new(None))
    }

    fn at_path<N>(
        &self,
        path: &Path,
        read: impl FnOnce(&Self, &[u8], External) -> Result<Imported<N>>,
    ) -> Result<Imported<N>> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        let mut bytes = Vec::new();
        let limit = i32::MAX as u64; // protobuf's own
        File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(io)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let read = if bytes.len() as u64 > limit {
            Err(malformed("more than the 2 GB that protobuf allows"))
        } else {
            read(self, &bytes, External::new(Some(folder.to_path_buf())))
        };
        read.map_err(|error| match error {
            Error::Format { reason, .. } => Error::Format { path: path.to_path_buf(), reason },
            other => other,
        })
    }

    fn floats<F: Float>(&self, bytes: &[u8], external: External) -> Result<Imported<Mlp<F>>> {
        let (steps, at) = self.steps::<F>(bytes, external)?;
        integers::to_mlp(&steps, at)
    }

    fn integers(&self, bytes: &[u8], external: External) -> Result<Imported<QuantizedMlp>> {
        let (steps, at) = self.steps::<f32>(bytes, external)?;
        integers::to_quantized(&steps, at)
    }

    /// The steps of the graph, and the one that is its output.
    fn steps<F: Float>(&self, bytes: &[u8], external: External) -> Result<(Steps<F>, usize)> {
        let limit = self.ratio.saturating_mul(bytes.len()).saturating_add(self.base);
        let cost = scan::cost(bytes).map_err(|reason| malformed(format!("not an ONNX model: {reason}")))?;
        if cost > limit {
            return Err(malformed(format!(
                "{} bytes that would take {cost} of memory, {limit} is the limit",
                bytes.len()
            )));
        }
        let model =
            ModelProto::decode(bytes).map_err(|error| malformed(format!("not an ONNX model: {error}")))?;
        let opset = opset(&model)?;
        let Some(graph) = &model.graph else {
            return Err(malformed("not an ONNX model: it has no graph"));
        };
        let graph = Graph::new(graph)?;
        let output = graph.output(self.output.as_deref())?;
        let order = graph.order(output)?;
        let mut reader = Reader {
            graph: &graph,
            values: BTreeMap::new(),
            steps: Steps::new(None, self.base),
            external,
            input: None,
        };
        for index in order {
            let node = Node { proto: &graph.nodes[index], opset };
            reader.node(node)?;
        }
        reader.finish(output, opset)
    }
}

/// The version of ONNX's own operators.
fn opset(model: &ModelProto) -> Result<i64> {
    const READ: std::ops::RangeInclusive<i64> = 7..=26;
    let own = |domain: &str| matches!(domain, "" | "ai.onnx");
    let version = model.opset_import.iter().find(|opset| own(&opset.domain)).map(|opset| opset.version);
    let version = version.ok_or_else(|| malformed("the model does not say which operator set it uses"))?;
    if READ.contains(&version) {
        return Ok(version);
    }
    Err(Error::Unsupported {
        what: "reading an ONNX graph",
        reason: format!("operator set {version}; {} to {} are read", READ.start(), READ.end()),
    })
}

/// A graph while it is read.
pub(super) struct Reader<'a, F> {
    graph: &'a Graph<'a>,
    values: BTreeMap<&'a str, Value>,
    pub(super) steps: Steps<F>,
    external: External,
    input: Option<&'a str>,
}

impl<'a, F: Float> Reader<'a, F> {
    fn node(&mut self, node: Node<'a>) -> Result<()> {
        let mut inputs = Vec::with_capacity(node.proto.input.len());
        for name in &node.proto.input {
            inputs.push(if name.is_empty() { None } else { Some(self.value(node, name)?) });
        }
        let value = if node.is_standard() && node.op() == "Constant" {
            let tensor = constant(node, &mut self.external)?;
            self.steps.credit(&tensor);
            Value::Constant(Rc::new(tensor))
        } else if let Some(constants) = constants(&inputs) {
            match fold(node, &constants)? {
                Some(tensor) => Value::Constant(tensor),
                None => return Err(node.unknown()),
            }
        } else {
            operators::apply(self, node, &inputs)?
        };
        if let Value::Constant(tensor) = &value {
            // Only a copy of the input costs nothing.
            if node.op() != "Identity" {
                self.steps.spend(node, tensor.bytes())?;
            }
        }
        let mut outputs = node.proto.output.iter().filter(|output| !output.is_empty());
        let Some(first) = outputs.next() else {
            return Err(node.malformed("it has no output"));
        };
        self.values.insert(first, value);
        for other in outputs {
            self.values.insert(other, Value::Nothing);
        }
        Ok(())
    }

    /// What a name stands for, of nodes that were read before.
    fn value(&mut self, node: Node<'a>, name: &'a str) -> Result<Value> {
        if let Some(value) = self.values.get(name) {
            return match value {
                Value::Nothing => {
                    Err(node.unsupported(format!("it reads `{name}`, a second output of a node")))
                }
                value => Ok(value.clone()),
            };
        }
        let value = match self.graph.source(name) {
            Some(Source::Initializer(proto)) => {
                let tensor = Tensor::read(proto, &mut self.external).map_err(malformed)?;
                self.steps.credit(&tensor);
                self.steps.spend(node, tensor.bytes())?;
                Value::Constant(Rc::new(tensor))
            }
            Some(Source::Input(input)) => {
                if let Some(other) = self.input {
                    let reason = format!("two inputs, `{other}` and `{name}`; a network has one");
                    return Err(node.unsupported(reason));
                }
                self.input = Some(name);
                self.steps.set_input(features(input));
                Value::Flow(Flow::of(0))
            }
            // `order` has put every node behind those it reads.
            Some(Source::Node(_)) | None => {
                return Err(node.malformed(format!("it reads `{name}`, which nothing has made")));
            }
        };
        self.values.insert(name, value.clone());
        Ok(value)
    }

    /// The step that input `index` of a node is, with its pending constants settled for all who read it.
    pub(super) fn settled(&mut self, node: Node<'a>, index: usize, flow: &Flow) -> Result<usize> {
        let at = self.steps.settle(node, flow)?;
        if let Some(name) = node.input(index) {
            self.values.insert(name, Value::Flow(Flow::of(at)));
        }
        Ok(at)
    }

    fn finish(mut self, output: &'a str, opset: i64) -> Result<(Steps<F>, usize)> {
        match self.values.get(output) {
            Some(Value::Flow(flow)) => {
                let flow = flow.clone();
                let end = super::proto::NodeProto {
                    name: output.to_owned(),
                    op_type: "output of the graph".into(),
                    ..Default::default()
                };
                let at = self.steps.settle(Node { proto: &end, opset }, &flow)?;
                Ok((self.steps, at))
            }
            _ => Err(Error::Unsupported {
                what: "reading an ONNX graph",
                reason: format!("the output `{output}` is not computed from the input by a network"),
            }),
        }
    }
}

/// The inputs, if all of them are constants.
fn constants(inputs: &[Option<Value>]) -> Option<Vec<Option<Rc<Tensor>>>> {
    let constant = |input: &Option<Value>| match input {
        None => Some(None),
        Some(Value::Constant(tensor)) => Some(Some(tensor.clone())),
        Some(_) => None,
    };
    inputs.iter().map(constant).collect()
}

/// The lengths of a step's axes, the batch first.
pub(super) fn shape<F: Float>(steps: &Steps<F>, at: usize) -> Option<Vec<Length>> {
    let features = steps.get(at).features.as_ref()?;
    let length =
        |length: &Option<usize>| length.map_or(Length::Unknown, |length| Length::Known(length as i64));
    Some(std::iter::once(Length::Batch).chain(features.iter().map(length)).collect())
}

/// The last step is a tail.
pub(super) fn tail<F>(kind: &Kind<F>) -> Tail {
    match kind {
        Kind::Tail(tail) => *tail,
        _ => Tail::None,
    }
}
