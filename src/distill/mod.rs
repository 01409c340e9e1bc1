//! Teacher to student: a small network learns from the outputs of a large one, not from the labels alone.

pub mod loss;

pub use loss::{KdLoss, KdTerms, KdWeights, Reduction};
