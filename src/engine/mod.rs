//! The deployable network: folded, lowered, integer or sparse; no training code.

pub mod calibrate;
pub mod quantized;

pub use calibrate::{Calibrator, Target};
pub use quantized::{CodeParams, IntegerBias, QuantizedLayer, QuantizedLinear, QuantizedMlp};
