//! A small network: just enough to train, prune, quantize and distil.

pub mod data;
pub mod loss;
pub mod metrics;
pub mod schedule;

pub use data::{Batch, Batches, Dataset, Targets, TargetsView};
pub use metrics::ConfusionMatrix;
pub use schedule::LearningRate;
