//! ONNX's DynamicQuantizeLinear: uint8 activations, the scale taken from each batch. Everything in `f32`.
//!
//! ```text
//! lo = min(0, min x)   hi = max(0, max x)   scale = (hi - lo) / 255
//! zero_point = rne(clip(0 - lo / scale, 0, 255))     code = clip(rne(x / scale) + zero_point, 0, 255)
//! ```
//!
//! This is the operator to the letter, for parity with ONNX Runtime: NaN is ignored and becomes code 0, a subnormal
//! scale stays one, and an infinity makes the scale infinite and all codes 0. Only a width beyond `f32`, which the formula would make
//! infinite, is divided before it is formed. Everywhere else in this crate a scale is finite and normal: see [`ScaleRule::AffineDynamic`](crate::quantize::ScaleRule::AffineDynamic).

/// Codes, scale and zero point of `x`, all zeros (and nothing at all) with scale 1.
///
/// ```
/// use trimnet::quantize::dynamic_quantize_linear;
///
/// let (codes, scale, zero_point) = dynamic_quantize_linear(&[-1.0, 2.0]);
/// assert_eq!((codes, scale, zero_point), (vec![0, 255], 3.0 / 255.0, 85));
/// ```
pub fn dynamic_quantize_linear(x: &[f32]) -> (Vec<u8>, f32, u8) {
    let lo = x.iter().fold(0.0f32, |lo, &x| if x < lo { x } else { lo });
    let hi = x.iter().fold(0.0f32, |hi, &x| if x > hi { x } else { hi });
    if lo == hi {
        return (vec![0; x.len()], 1.0, 0);
    }
    let scale = dynamic_scale(lo, hi);
    let zero_point = (0.0 - lo / scale).clamp(0.0, 255.0).round_ties_even();
    // A range below 255 times the least subnormal rounds to a scale of 0, and codes of NaN or infinity.
    let code = |&x: &f32| ((x / scale).round_ties_even() + zero_point).clamp(0.0, 255.0) as u8;
    (x.iter().map(code).collect(), scale, zero_point as u8)
}

/// `(hi - lo) / 255`, for `lo <= 0 <= hi`.
pub(crate) fn dynamic_scale(lo: f32, hi: f32) -> f32 {
    let width = hi - lo;
    if width.is_finite() { width / 255.0 } else { hi / 255.0 - lo / 255.0 }
}
