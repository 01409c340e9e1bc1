//! `.trim`: the crate's own file. Small because sparsity, palettes and scales are found in the numbers and
//! entropy coded; safe because a reader checks everything before it believes it.
//!
//! Networks: [`Mlp::save`](crate::nn::Mlp::save), [`Mlp::load`](crate::nn::Mlp::load). Engines:
//! [`Engine::save`](crate::engine::Engine::save), [`Engine::load`](crate::engine::Engine::load). Tensors by name: [`save_tensors`],
//! [`load_tensors`]. What turns one into another: [`diff`], [`diff_engine`]. What a file holds: [`TrimReport`].
//!
//! `docs/format.md` specifies it byte by byte. Inside, bottom to top: `wire` (numbers and cursors), `range_coder`,
//! `model` (probabilities that learn), `mask_model` and `symbol_model` (what predicts what), `floats`
//! (lists of numbers), `mapping` (numbers as symbols), `layout` (symbols as bytes), `encoding` (one tensor),
//! `search` (the smallest of its encodings), `container` (the file), `named`, `network` and `engine` (what is in it), `delta` and
//! `engine_delta` (how two of them differ).

mod wire;
mod range_coder;
mod model;
mod mask_model;
mod symbol_model;
mod floats;
mod tensor;
mod mapping;
mod layout;
mod encoding;
mod search;
mod container;
mod named;
mod network;
mod engine;
mod delta;
mod engine_delta;
mod report;

#[cfg(feature = "safetensors")]
pub(crate) use container::{named, read_file};
#[cfg(feature = "safetensors")]
pub(crate) use wire::malformed;

pub use delta::{apply, diff};
pub use encoding::{Encoded, Encoding, TensorBytes, decode, encode, encoded_len};
pub use engine_delta::{apply_engine, diff_engine};
pub use layout::Layout;
pub use mapping::Mapping;
pub use named::{load_tensors, save_tensors, tensors_from_bytes, tensors_to_bytes};
pub use report::{TensorReport, TrimReport};
pub use search::EncodeOptions;
pub use tensor::{Codes, ElementType, Limits, TensorData, Values};
