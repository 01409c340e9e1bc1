//! Fewer bits: schemes, ranges, the uniform quantizer and the integer product.
//!
//! ```text
//! scheme     bits, symmetric or affine, per tensor, channel or group, rounding   Scheme
//! range      what the codes cover: of a tensor, or of what flows by              RangeMethod, MinMaxObserver, HistogramObserver, ..
//! quantize   both, as a Compressor whose artifact holds integers                 UniformQuantizer, QuantizedTensor
//! gptq       the same codes, rounded by what the weights will be multiplied by        GptqQuantizer
//! palette    some values that weights share, by k-means                          PaletteQuantizer, PaletteTensor, lloyd, cluster
//! train      what quantizing does, and its gradient                              fake_quantize, PassThrough
//! compute    sums of products of codes, and the codes of the sums                quantized_product, Requantizer
//! error      decibels, largest error, clipped numbers                            ErrorReport
//! ```

mod cholesky;
pub mod cluster;
pub mod dynamic;
pub mod fake;
pub mod gptq;
pub mod histogram;
mod into;
pub mod kmeans;
pub(crate) mod layout;
pub mod matmul;
pub mod nearest;
pub mod onnx_calibration;
pub mod palette;
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

pub use cluster::{Clustering, Start, cluster};
pub use dynamic::dynamic_quantize_linear;
pub(crate) use dynamic::dynamic_scale;
pub use fake::{PassThrough, fake_quantize, fake_quantize_tensorflow};
pub use gptq::GptqQuantizer;
pub(crate) use gptq::check_damping;
pub use histogram::{HistogramObserver, Tails};
pub use kmeans::lloyd;
pub use matmul::{integer_product, quantized_product, safe_depth};
pub use nearest::assign_nearest;
pub use onnx_calibration::{OnnxHistogram, onnx_symmetric_percentile};
pub use palette::{PaletteQuantizer, PaletteTensor};
pub use params::{QuantParams, Range};
pub use range::{MinMaxObserver, MovingAverageObserver, Observer};
pub use ratio::{RatioQuantizer, RatioTensor};
pub use report::ErrorReport;
pub use requantize::{FixedMultiplier, Requantization, Requantizer};
pub use scheme::{CodeRange, Granularity, Rounding, ScaleRule, Scheme, ZeroRange};
pub use search::{RangeSearch, least_squares_range};
pub use tensor::QuantizedTensor;
pub use uniform::{RangeMethod, UniformQuantizer};
