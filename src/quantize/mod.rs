//! Fewer bits: schemes, ranges, the uniform quantizer and the integer product.

pub mod dynamic;
pub(crate) mod layout;
pub mod matmul;
pub mod params;
pub mod ratio;
pub mod report;
pub mod requantize;
pub(crate) mod round;
pub mod scheme;
pub mod tensor;
pub mod uniform;

pub use dynamic::dynamic_quantize_linear;
pub use matmul::{integer_product, quantized_product, safe_depth};
pub use params::{QuantParams, Range};
pub use ratio::{RatioQuantizer, RatioTensor};
pub use report::ErrorReport;
pub use requantize::{FixedMultiplier, Requantization, Requantizer};
pub use scheme::{CodeRange, Granularity, Rounding, ScaleRule, Scheme, ZeroRange};
pub use tensor::QuantizedTensor;
pub use uniform::{RangeMethod, UniformQuantizer};
