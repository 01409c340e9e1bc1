//! Fewer bits: schemes, ranges, the uniform quantizer and the integer product.

pub mod dynamic;
pub mod fake;
pub mod histogram;
mod into;
pub mod kmeans;
pub(crate) mod layout;
pub mod matmul;
pub mod onnx_calibration;
pub mod params;
pub mod range;
pub mod ratio;
pub mod report;
pub mod requantize;
pub(crate) mod round;
pub mod scheme;
pub mod search;
pub mod tensor;
pub mod uniform;

pub use dynamic::dynamic_quantize_linear;
pub use fake::{PassThrough, fake_quantize, fake_quantize_tensorflow};
pub use histogram::{HistogramObserver, Tails};
pub use kmeans::{assign_nearest, lloyd};
pub use matmul::{integer_product, quantized_product, safe_depth};
pub use onnx_calibration::{OnnxHistogram, onnx_symmetric_percentile};
pub use params::{QuantParams, Range};
pub use range::{MinMaxObserver, MovingAverageObserver, Observer};
pub use ratio::{RatioQuantizer, RatioTensor};
pub use report::ErrorReport;
pub use requantize::{FixedMultiplier, Requantization, Requantizer};
pub use scheme::{CodeRange, Granularity, Rounding, ScaleRule, Scheme, ZeroRange};
pub use search::{RangeSearch, least_squares_range};
pub use tensor::QuantizedTensor;
pub use uniform::{RangeMethod, UniformQuantizer};
