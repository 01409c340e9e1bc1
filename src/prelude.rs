//! The traits and the few types that most programs name: `use trimnet::prelude::*;`.

pub use crate::engine::Engine;
pub use crate::error::{Error, Result};
pub use crate::float::Float;
pub use crate::nn::{Dataset, Mlp, Optimizer, Trainer};
pub use crate::prune::Pruner;
pub use crate::quantize::Observer;
pub use crate::traits::{Compressed, Compressor, Normalizer, Regularizer};
