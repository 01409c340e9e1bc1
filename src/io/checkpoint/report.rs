//! What was done, per tensor, per shard, and in total.

use super::recipe::Action;
use crate::io::safetensors::Dtype;

/// One tensor.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TensorReport {
    /// Its name.
    pub tensor: String,
    /// Its element type before.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What was done.
    pub action: Action,
    /// Why a rule that matches did nothing.
    pub note: Option<String>,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes of all that was written for it.
    pub bytes_after: u64,
    /// What was written for it.
    pub outputs: Vec<OutputReport>,
    /// Zeros afterwards, where it was pruned.
    pub zeros: Option<u64>,
    /// Signal to noise in decibels, where something was lost.
    pub sqnr_db: Option<f64>,
    /// Largest absolute error, where it was quantized.
    pub max_error: Option<f64>,
}

/// One tensor that was written.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OutputReport {
    /// Its name.
    pub name: String,
    /// CRC-32 of its bytes.
    pub crc32: u32,
}

/// One file that was written.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ShardReport {
    /// Its name.
    pub file: String,
    /// The plan that it belongs to.
    pub fingerprint: String,
    /// Its length.
    pub bytes: u64,
    /// Its tensors, in the order in which they were done.
    pub tensors: Vec<TensorReport>,
}

/// The whole checkpoint.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CheckpointReport {
    /// Bytes of all tensors before.
    pub bytes_before: u64,
    /// Bytes of all tensors afterwards.
    pub bytes_after: u64,
    /// How many tensors each action was done to.
    pub actions: std::collections::BTreeMap<String, usize>,
    /// All files.
    pub shards: Vec<ShardReport>,
}
