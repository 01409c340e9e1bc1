//! Files: the crate's own container, ONNX, and data sets.

pub(crate) mod atomic;
#[cfg(feature = "idx")]
#[cfg_attr(docsrs, doc(cfg(feature = "idx")))]
pub mod idx;
#[cfg(feature = "onnx")]
#[cfg_attr(docsrs, doc(cfg(feature = "onnx")))]
pub mod onnx;
pub mod trim;
