//! Small, fast neural networks in pure Rust: prune, quantize, distil, and run the integer file on an ordinary CPU.
//!
//! ```
//! use trimnet::engine::{Config, Format};
//! use trimnet::nn::{Adam, CrossEntropy};
//! use trimnet::prelude::*;
//! use trimnet::prune::{MagnitudePruner, Norm, Selection, score::slice_norms};
//! use trimnet::rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
//! use trimnet::ndarray::{Array2, Axis};
//!
//! // Train: is the point (x, y) inside the circle of radius 0.7?
//! let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
//! let points = Array2::from_shape_simple_fn((600, 2), || rng.random_range(-1.0..1.0_f32));
//! let labels = points.rows().into_iter().map(|p| usize::from(p.dot(&p) < 0.49)).collect();
//! let data = Dataset::classification(points, labels)?;
//! let mut mlp = Mlp::builder(2).linear(32).batch_norm().relu().linear(2).build(&mut rng)?;
//! Trainer::new(20, 32)?.fit(&mut mlp, &mut CrossEntropy, &data, None, &mut Adam::new(), &mut [])?;
//!
//! // Prune half of the neurons; masked, nothing is smaller yet; shrunk, the matrices are.
//! mlp.prune_neurons(&Selection::sparsity(0.5)?, |linear, _| slice_norms(linear.weight(), Axis(0), Norm::L2), 1)?;
//! let (small, _) = mlp.shrink()?;
//! assert!(small.parameters() < mlp.parameters());
//!
//! // Compress any tensor: an artifact that tells its bytes.
//! let weight = small.linears().next().unwrap().weight();
//! let sparse = MagnitudePruner::sparsity(0.75)?.compress(weight)?;
//! assert!(sparse.size_bytes() < weight.len() * 4);
//!
//! // Deploy: 8-bit weights and activations, integer sums, one file.
//! let engine = Engine::build(&small, &Config::new(Format::Int8).with_calibration(data.inputs()))?;
//! let classes = engine.classify(data.inputs())?;
//! let file: Vec<u8> = engine.to_bytes();
//! # assert_eq!((classes.len(), Engine::<f32>::from_bytes(&file)?.inputs()), (600, 2));
//! # Ok::<(), trimnet::Error>(())
//! ```
//!
//! # Map
//!
//! Bottom to top; a module imports only from those above it in this list.
//!
//! | module | what |
//! |---|---|
//! | [`error`] | [`Error`], [`Result`] |
//! | [`kernel`] | slices in, slices out: instruction sets, threads, and the only unsafe code |
//! | [`float`] | [`Float`]: `f32` and `f64`, over which everything is generic |
//! | [`traits`] | [`Compressor`], [`Compressed`], [`Normalizer`], [`Regularizer`]: the whole idea on one page |
//! | [`tensor`] | what compressed weights are made of: [`Mask`], [`SparseTensor`], packed integers |
//! | [`prune`] | what to remove: scores, selections, pruners, schedules |
//! | [`quantize`] | fewer bits: schemes, ranges, the uniform quantizer, the integer product |
//! | [`normalize`] | batch and layer norm, min-max and standard scaling |
//! | [`regularize`] | dropout, Gaussian noise, weight penalties |
//! | [`nn`] | a small network: train it, prune it, shrink it |
//! | [`distill`] | a student learns from a teacher |
//! | [`engine`] | the deployable network |
//! | [`io`] | the `.trim` file, ONNX, safetensors, GGUF, large checkpoints; data sets |
//! | [`report`](mod@report) | what compressing cost and won, measured |
//!
//! # Features
//!
//! | feature | default | what |
//! |---|---|---|
//! | `idx` | yes | reads IDX data sets (MNIST and others) |
//! | `parallel` | yes | threads for large work |
//! | `serde` | no | settings, masks, artifacts, networks and histories serialize, and are checked when they are read |
//! | `onnx` | no | ONNX models in and out |
//! | `safetensors` | no | `.safetensors` files in and out |
//! | `gguf` | no | GGUF files in and out |
//! | `mmap` | no | checkpoints larger than memory |

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
pub mod prelude;

pub use error::{Error, Result};
pub use float::Float;
pub use tensor::{Mask, SparseTensor};
pub use traits::{Compressed, Compressor, Erased, Normalizer, Regularizer};

pub use ndarray;
pub use rand;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
