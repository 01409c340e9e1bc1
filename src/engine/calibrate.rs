//! Ranges of activations: several are tried, and the one whose codes come out nearest to the numbers is taken.
//!
//! ```text
//! min-max        everything that was seen
//! percentile     the middle 99.99 percent
//! least squares  the best of 80 shrunken ranges, on the histogram
//! entropy        the least divergence between the clipped distribution and its codes (ONNX Runtime's, 512 bins)
//! ```
//!
//! All are measured on the same numbers, a sample of some 65,536 spread over the calibration data, fewer than twice as many, by the
//! mean squared error of their codes. Ties go to the first of this list.

use std::sync::Mutex;

use super::config::RangeChoice;
use super::workspace::lock;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::Pool;
use crate::quantize::{
    HistogramObserver, MinMaxObserver, Observer, OnnxHistogram, QuantParams, Range, Scheme, Tails,
};

/// Numbers that candidates are measured on, roughly.
const SAMPLE: usize = 1 << 16;

/// The parameters of `u8` codes for these activations.
pub(super) fn params<F: Float>(x: &[F], choice: RangeChoice, pool: &Pool) -> Result<QuantParams<f32>> {
    let scheme = Scheme::uint8_affine();
    let mut seen = MinMaxObserver::default();
    seen.observe(x);
    let seen = narrow(Observer::<F>::range(&seen)?)?;
    if choice == RangeChoice::MinMax {
        return Ok(scheme.params(seen));
    }
    // Evenly spread, by a step that shares no factor with the width of a batch as a rule.
    let step = (x.len() / SAMPLE) | 1;
    let sample: Vec<f32> =
        x.iter().step_by(step).map(|x| x.as_f64() as f32).filter(|x| x.is_finite()).collect();
    let mut histogram = HistogramObserver::<f32>::default();
    histogram.observe(&sample);
    let (low, high) = (seen.min(), seen.max());
    histogram.observe(&[low, high]);
    let range = |choice| match choice {
        RangeChoice::MinMax | RangeChoice::Measured => Ok(seen),
        RangeChoice::Percentile => histogram.percentile(99.99, Tails::Both),
        RangeChoice::LeastSquares => Ok(histogram.least_squares(&scheme)?.range),
        RangeChoice::Entropy => {
            let mut histogram = OnnxHistogram::new(512)?;
            histogram.observe(&sample);
            let range = histogram.entropy(128)?.range;
            Range::new(range.min() as f32, range.max() as f32)
        }
    };
    if choice != RangeChoice::Measured {
        return Ok(scheme.params(range(choice)?));
    }
    // The one that takes longest begins first.
    const TRIED: [RangeChoice; 4] =
        [RangeChoice::LeastSquares, RangeChoice::Entropy, RangeChoice::Percentile, RangeChoice::MinMax];
    let found = [const { Mutex::new(None) }; TRIED.len()];
    pool.run(TRIED.len(), |i| {
        if let Ok(range) = range(TRIED[i]) {
            let params = scheme.params(range);
            let error = scheme.squared_error(&sample, params);
            *lock(&found[i]) = Some(error.map(|error| (error, params)));
        }
    });
    let mut best: Option<(f64, QuantParams<f32>)> = None;
    // In the order of the page: the last of `TRIED` is the first.
    for i in [3, 2, 0, 1] {
        if let Some(found) = lock(&found[i]).take() {
            let (error, params) = found?;
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, params));
            }
        }
    }
    best.map(|(_, params)| params).ok_or(Error::Empty { what: "the calibration data" })
}

/// In `f32`, as the scales are.
fn narrow<F: Float>(range: Range<F>) -> Result<Range<f32>> {
    Range::new(range.min().as_f64() as f32, range.max().as_f64() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look normal, and depend on the seed alone.
    fn numbers(count: usize) -> Vec<f32> {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..count).map(|_| (0..6).map(|_| next()).sum::<f32>() - 3.0).collect()
    }

    #[test]
    fn no_other_choice_has_a_smaller_error() {
        let mut x = numbers(20_000);
        x[77] = 40.0;
        let scheme = Scheme::uint8_affine();
        let error = |choice| scheme.squared_error(&x, params(&x, choice, &Pool::single()).unwrap()).unwrap();
        let measured = error(RangeChoice::Measured);
        for choice in
            [RangeChoice::MinMax, RangeChoice::Percentile, RangeChoice::LeastSquares, RangeChoice::Entropy]
        {
            assert!(measured <= error(choice), "{choice:?}");
        }
        assert!(measured < error(RangeChoice::MinMax));
    }

    #[test]
    fn zeros_and_outliers_have_a_usable_scale_and_nothing_is_an_error() {
        for x in [vec![0.0f64; 9], vec![-3.0; 5], vec![1e-40, 0.0], vec![f64::NAN, 2.0, f64::INFINITY]] {
            let params = params(&x, RangeChoice::Measured, &Pool::single()).unwrap();
            assert!(params.scale.is_normal() && (0..=255).contains(&params.zero_point), "{x:?}: {params:?}");
        }
        assert!(params::<f32>(&[], RangeChoice::Measured, &Pool::single()).is_err());
        assert!(params(&[f32::NAN], RangeChoice::Measured, &Pool::single()).is_err());
    }
}
