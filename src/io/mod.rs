//! Files: the crate's own container, safetensors, GGUF, ONNX, large checkpoints, and data sets.

pub(crate) mod atomic;
#[cfg(feature = "mmap")]
#[cfg_attr(docsrs, doc(cfg(feature = "mmap")))]
pub mod checkpoint;
#[cfg(feature = "gguf")]
#[cfg_attr(docsrs, doc(cfg(feature = "gguf")))]
pub mod gguf;
#[cfg(feature = "idx")]
#[cfg_attr(docsrs, doc(cfg(feature = "idx")))]
pub mod idx;
#[cfg(feature = "onnx")]
#[cfg_attr(docsrs, doc(cfg(feature = "onnx")))]
pub mod onnx;
#[cfg(feature = "safetensors")]
#[cfg_attr(docsrs, doc(cfg(feature = "safetensors")))]
pub mod safetensors;
pub mod trim;
