//! Fewer bits: schemes, ranges, the uniform quantizer and the integer product.

pub mod params;
pub mod scheme;

pub use params::{QuantParams, Range};
pub use scheme::{CodeRange, Granularity, Rounding, ScaleRule, Scheme, ZeroRange};
