//! Fewer bits: schemes, ranges, the uniform quantizer and the integer product.

pub mod histogram;
pub mod onnx_calibration;
pub mod params;
pub mod range;
pub mod scheme;
pub mod search;

pub use params::{QuantParams, Range};
pub use scheme::{CodeRange, Granularity, Rounding, ScaleRule, Scheme, ZeroRange};

pub use histogram::{HistogramObserver, Tails};
pub use onnx_calibration::{OnnxHistogram, onnx_symmetric_percentile};
pub use range::{MinMaxObserver, MovingAverageObserver, Observer};
pub use search::{RangeSearch, least_squares_range};
