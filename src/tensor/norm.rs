//! The Euclidean norm of weights, at every size that the type has.
//!
//! ```text
//! norm = sqrt(sum w^2 / n) = amax * sqrt(sum (w / amax)^2 / n)        n = 1: a norm; else a mean over n
//! ```
//!
//! The second form is taken where the squares of the first leave the numbers: those of `f64` above about 1e150 and below
//! 1e-140. Squares of `f32` are summed in `f64` and never do.

use crate::float::Float;

/// The norm of `w` from `sum`, its sum of squares in `f64`.
pub(crate) fn root<F: Float>(sum: f64, n: usize, w: impl Iterator<Item = F> + Clone) -> f64 {
    let n = n as f64;
    if F::BYTES < size_of::<f64>() || (1e-280..1e300).contains(&sum) || sum.is_nan() {
        return (sum / n).sqrt();
    }
    let largest = w.clone().fold(0.0, |largest: f64, w| largest.max(w.as_f64().abs()));
    if largest == 0.0 || largest.is_infinite() {
        return largest;
    }
    largest * (w.map(|w| (w.as_f64() / largest).powi(2)).sum::<f64>() / n).sqrt()
}
