//! ONNX: networks from PyTorch, Keras and scikit-learn come in, networks for ONNX Runtime and TensorRT go out.
//!
//! Writing: [`OnnxExporter`] makes an [`OnnxModel`] of a float network or a quantized one. Reading: [`OnnxImporter`]
//! understands feed-forward graphs as the usual exporters write them, folded constants and quantization included,
//! and refuses everything else by the name of the node. No protobuf compiler is needed: `proto` holds the messages.
//!
//! Bottom to top: `proto` (messages), `build` (a graph in the making), `export` and `quantized` (layers as nodes),
//! `model` (the file); `scan` (what would a file cost?), `tensor` (numbers of a file), `node`, `constant` (nodes that
//! can be computed before any input is known), `graph` (what needs what), `flow` (what has become of the input),
//! `gate` (a formula spread over many nodes), `operators`, `import` and `integers` (the network).

mod proto;
mod build;
mod export;
mod model;
mod quantized;
mod scan;
mod tensor;
mod node;
mod constant;
mod graph;
mod flow;
mod gate;
mod operators;
mod import;
mod integers;

pub use import::{Imported, OnnxImporter};
pub use model::{ExternalData, OnnxModel};
pub use quantized::WeightCodes;

use std::path::PathBuf;

use crate::error::{Error, Result};

/// The bytes are not what they claim to be; the path is added where it is known.
fn malformed(reason: impl Into<String>) -> Error {
    Error::Format { path: PathBuf::new(), reason: reason.into() }
}

/// What follows the last layer.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// Nothing: the logits themselves.
    #[default]
    None,
    /// Probabilities.
    Softmax,
    /// Their logarithms.
    LogSoftmax,
}

/// What becomes of batch norms.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BatchNorms {
    /// They are part of the linear layers beside them: fewer nodes.
    #[default]
    Fold,
    /// They stay nodes, so that the network can be trained on after it has been read back. What comes back follows
    /// ONNX: the running variance takes in the population variance of a batch where PyTorch takes the sample's, and a
    /// norm that averages over all batches (no momentum) gets the momentum 0.9. The running statistics are the same
    /// until training goes on.
    Keep,
}

/// Writes networks as ONNX models.
///
/// ```
/// use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::io::onnx::{OnnxExporter, Tail};
/// use trimnet::nn::Mlp;
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let mlp = Mlp::builder(8).linear(4).batch_norm().relu().linear(2).build::<f32>(&mut rng)?;
/// let model = OnnxExporter::new().with_tail(Tail::Softmax).float(&mlp)?;
/// assert!(model.to_bytes()?.len() > 4 * (8 * 4 + 4 + 4 * 2 + 2));
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OnnxExporter {
    opset: i64,
    tail: Tail,
    batch_norms: BatchNorms,
    external: ExternalData,
}

impl Default for OnnxExporter {
    fn default() -> Self {
        Self::new()
    }
}

impl OnnxExporter {
    /// Operator set 17, batch norms folded, logits as output, one file unless it is too large for that.
    pub fn new() -> Self {
        Self { opset: 17, tail: Tail::None, batch_norms: BatchNorms::Fold, external: ExternalData::default() }
    }

    /// Another operator set: 21 for int4 weights, 20 for Gelu as one node.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `17 <= opset <= 23`.
    pub fn with_opset(self, opset: u8) -> Result<Self> {
        if !(17..=23).contains(&opset) {
            return Err(Error::OutOfRange { name: "opset", value: opset.into(), range: "17..=23" });
        }
        Ok(Self { opset: opset.into(), ..self })
    }

    /// Something after the last layer.
    #[must_use]
    pub fn with_tail(self, tail: Tail) -> Self {
        Self { tail, ..self }
    }

    /// Batch norms kept or folded; quantized networks have none to keep.
    #[must_use]
    pub fn with_batch_norms(self, batch_norms: BatchNorms) -> Self {
        Self { batch_norms, ..self }
    }

    /// Weights in a second file.
    #[must_use]
    pub fn with_external_data(self, external: ExternalData) -> Self {
        Self { external, ..self }
    }
}
