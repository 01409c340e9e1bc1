//! Teacher to student: a small network learns from the outputs of a large one, not from the labels alone.
//!
//! [`KdLoss`] is the loss, [`Distillation`] the [`Objective`](crate::nn::Objective) that a
//! [`Trainer`](crate::nn::Trainer) takes, [`Hint`] the comparison of hidden layers.

pub mod hint;
pub mod loss;
pub mod objective;

pub use hint::Hint;
pub use loss::{KdLoss, KdTerms, KdWeights, Reduction};
pub use objective::{Compare, Distillation};
