//! GGUF, version 3: the file of llama.cpp and candle.
//!
//! ```text
//! "GGUF"  u32 version  u64 number of tensors  u64 number of keys
//! key     text, u32 type, value             text: u64 length, UTF-8
//! tensor  text, u32 axes, u64 length of each axis from the innermost, u32 type, u64 offset
//! data    tensors at their offsets, counted from the first multiple of the alignment; all little-endian
//! ```
//!
//! Of the element types, `F32`, `F16`, `BF16`, `Q8_0`, `Q4_0` and `I64`; `block` has their formulas.

mod block;
mod file;
mod network;
mod value;

pub use block::{GgufTensor, GgufType};
pub use file::Gguf;
pub use value::{Numbers, Value};
