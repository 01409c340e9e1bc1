//! The range of least squared error: clipping a few large values may cost less than coarse steps for all others.
//!
//! ```text
//! range_i = (1 - i / 100) * (lo, hi),  i = 0..80      the first strict minimum of  sum (x' - x)^2
//! ```
//!
//! Both ends shrink together, as in GPTQ's `mse` option (Frantar et al., 2022), here with the square of the error.

use crate::error::Result;
use crate::float::Float;
use crate::quantize::params::{QuantParams, Range};
use crate::quantize::scheme::Scheme;

const CANDIDATES: u32 = 80;

/// A range found by trying several.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"))]
pub struct RangeSearch<F> {
    /// The best range.
    pub range: Range<F>,
    /// How many ranges were tried; always more than one.
    pub candidates: usize,
    /// What the search minimised, at its best: a sum of squared errors, or a divergence. Squares of `f64` may be beyond the
    /// numbers; then it is 0 or infinite, and the range is the best all the same.
    #[cfg_attr(feature = "serde", serde(with = "crate::float::number"))]
    pub error: f64,
}

/// The range in which `values` have the least squared error once quantized under `scheme`.
///
/// ```
/// use trimnet::quantize::{Scheme, least_squares_range};
/// let mut values: Vec<f32> = (0..1000).map(|i| (i as f32 / 500.0 - 1.0).powi(3)).collect();
/// values.push(3.0); // one outlier
/// let found = least_squares_range(&values, &Scheme::symmetric(4)?)?;
/// assert!(found.range.max() < 3.0);
/// assert_eq!(found.candidates, 80);
/// # Ok::<(), trimnet::Error>(())
/// ```
///
/// # Errors
/// [`Error::Empty`](crate::Error::Empty) without a finite value. NaN and infinity are left out.
pub fn least_squares_range<F: Float>(values: &[F], scheme: &Scheme) -> Result<RangeSearch<F>> {
    let range = Range::of(values)?;
    if values.iter().all(|v| v.is_finite()) {
        return search(range, scheme, |params, unit| scheme.squared_error_in(values, params, unit));
    }
    let finite: Vec<F> = values.iter().copied().filter(|v| v.is_finite()).collect();
    search(range, scheme, |params, unit| scheme.squared_error_in(&finite, params, unit))
}

/// Shrinks `seen` step by step and keeps the first least `error`, which is given the size of the numbers if it is far from 1:
/// squares of numbers divided by it neither overflow nor vanish.
pub(super) fn search<F: Float>(
    seen: Range<F>,
    scheme: &Scheme,
    error: impl Fn(QuantParams<F>, f64) -> Result<f64>,
) -> Result<RangeSearch<F>> {
    let amax = seen.min().abs().max(seen.max().abs()).as_f64();
    let unit = if amax == 0.0 || (1e-120..1e140).contains(&amax) { 1.0 } else { amax };
    let mut best = RangeSearch { range: seen, candidates: CANDIDATES as usize, error: f64::INFINITY };
    for i in 0..CANDIDATES {
        let share = F::of(1.0 - f64::from(i) / 100.0);
        let range = Range::new(seen.min() * share, seen.max() * share)?;
        let error = error(scheme.params(range), unit)?;
        if error < best.error {
            best = RangeSearch { range, error, ..best };
        }
    }
    Ok(RangeSearch { error: best.error * unit * unit, ..best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn no_other_candidate_is_better() {
        let values: Vec<f64> =
            (0..500).map(|i| f64::from(i * 7919 % 1000) / 250.0 - 2.0).map(|x| x * x * x).collect();
        for bits in [2, 3, 4, 8] {
            let scheme = Scheme::symmetric(bits).unwrap();
            let found = least_squares_range(&values, &scheme).unwrap();
            let all = Range::of(&values).unwrap();
            for i in 0..80 {
                let share = 1.0 - f64::from(i) / 100.0;
                let range = Range::new(all.min() * share, all.max() * share).unwrap();
                assert!(scheme.squared_error(&values, scheme.params(range)).unwrap() >= found.error);
            }
        }
    }

    #[test]
    fn huge_and_tiny_numbers_have_the_range_of_ordinary_ones() {
        let mut values: Vec<f64> = (0..1000).map(|i| (f64::from(i) / 500.0 - 1.0).powi(3)).collect();
        values.push(3.0);
        let scheme = Scheme::symmetric(4).unwrap();
        let expected = least_squares_range(&values, &scheme).unwrap().range;
        // Powers of two near 1e200 and 1e-200: all digits stay.
        for unit in [2.0_f64.powi(664), 2.0_f64.powi(-664)] {
            let scaled: Vec<f64> = values.iter().map(|x| x * unit).collect();
            let found = least_squares_range(&scaled, &scheme).unwrap().range;
            assert_eq!((found.min() / unit, found.max() / unit), (expected.min(), expected.max()));
        }
    }

    #[test]
    fn zeros_and_constants_keep_a_usable_range() {
        for values in [vec![0.0_f32; 4], vec![3.0; 4], vec![1e-40; 4], vec![-2.0, f32::NAN]] {
            let found = least_squares_range(&values, &Scheme::default()).unwrap();
            assert!(Scheme::default().params(found.range).scale > 0.0);
        }
        assert!(matches!(least_squares_range(&[f32::NAN], &Scheme::default()), Err(Error::Empty { .. })));
    }
}
