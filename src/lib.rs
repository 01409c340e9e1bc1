//! Small, fast neural networks in pure Rust: prune, quantize, distil, and run them.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(missing_docs)]
#![warn(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

pub mod error;
pub mod kernel;
pub mod float;
pub mod traits;
pub mod tensor;
pub mod prune;
pub mod quantize;
pub mod normalize;
pub mod regularize;
pub mod nn;
pub mod distill;
pub mod engine;
pub mod io;
pub mod report;

pub use error::{Error, Result};
pub use float::Float;
pub use tensor::{Mask, SparseTensor};
pub use traits::{Compressed, Compressor, Erased, Normalizer, Regularizer};

pub use ndarray;
pub use rand;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
