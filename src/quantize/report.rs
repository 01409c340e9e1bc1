//! What a quantizer cost: the error report.
//!
//! ```text
//! mse = mean (x - x')^2        max = max |x - x'|        SQNR = 10 log10( sum x^2 / sum (x - x')^2 )  dB
//! ```
//!
//! Six decibels are one bit.

use crate::float::Float;
use crate::quantize::params::QuantParams;
use crate::quantize::round::Params;
use crate::quantize::scheme::Scheme;

/// The error of a quantized tensor against its original. In a file for people, as JSON, infinity is the word `"inf"`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ErrorReport {
    /// Mean squared error; 0 for an empty tensor, infinite where the squares overflow.
    #[cfg_attr(feature = "serde", serde(with = "crate::float::number"))]
    pub mse: f64,
    /// Largest absolute error.
    pub max_error: f64,
    /// Signal to quantization noise in decibels; infinite where nothing was lost.
    #[cfg_attr(feature = "serde", serde(with = "crate::float::number"))]
    pub sqnr_db: f64,
    /// Elements that lie more than half a step outside what the codes cover.
    pub clipped: usize,
    /// Number of elements.
    pub elements: usize,
}

/// Sums that become a report. Squares are of parts of the largest element, so that none overflows.
pub(crate) struct Errors {
    qmin: i32,
    qmax: i32,
    unit: f64,
    signal: f64,
    noise: f64,
    max_error: f64,
    clipped: usize,
    elements: usize,
}

impl Errors {
    pub(crate) fn new<F: Float>(scheme: &Scheme, original: &[F]) -> Self {
        let amax = original.iter().fold(F::zero(), |amax, x| amax.max(x.abs())).as_f64();
        let unit = if amax > 0.0 { amax } else { 1.0 };
        let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
        Self { qmin, qmax, unit, signal: 0.0, noise: 0.0, max_error: 0.0, clipped: 0, elements: 0 }
    }

    pub(crate) fn add<F: Float>(&mut self, original: &[F], codes: &[i32], params: Params<'_, F>) {
        let pairs = original.iter().zip(codes);
        match params {
            Params::One(params) => pairs.for_each(|(&x, &code)| self.add_one(x, code, params)),
            Params::Each(params) => {
                pairs.zip(params).for_each(|((&x, &code), &params)| self.add_one(x, code, params))
            }
        }
    }

    #[inline]
    fn add_one<F: Float>(&mut self, x: F, code: i32, params: QuantParams<F>) {
        let (x, scale) = (x.as_f64(), params.scale.as_f64());
        let error = x - params.dequantize(code).as_f64();
        self.signal += (x / self.unit) * (x / self.unit);
        self.noise += (error / self.unit) * (error / self.unit);
        self.max_error = self.max_error.max(error.abs());
        let steps = x / scale + f64::from(params.zero_point);
        let outside = steps < f64::from(self.qmin) - 0.5 || steps > f64::from(self.qmax) + 0.5;
        self.clipped += usize::from(outside);
        self.elements += 1;
    }

    pub(crate) fn report(&self) -> ErrorReport {
        let mean = self.noise / self.elements.max(1) as f64;
        ErrorReport {
            mse: mean * self.unit * self.unit,
            max_error: self.max_error,
            sqnr_db: if self.noise == 0.0 {
                f64::INFINITY
            } else {
                10.0 * (self.signal / self.noise).log10()
            },
            clipped: self.clipped,
            elements: self.elements,
        }
    }
}

#[cfg(all(test, feature = "serde"))]
mod tests {
    use super::*;
    use crate::quantize::RangeSearch;

    #[test]
    fn a_report_of_no_loss_comes_back_from_json() {
        for (mse, sqnr_db) in [(0.0, f64::INFINITY), (0.25, 48.5), (f64::INFINITY, -3.0)] {
            let report = ErrorReport { mse, max_error: 1.0, sqnr_db, clipped: 2, elements: 3 };
            let json = serde_json::to_string(&report).unwrap();
            assert_eq!(serde_json::from_str::<ErrorReport>(&json).unwrap(), report);
            let range = crate::quantize::Range::new(-1.0, 1.0).unwrap();
            let search = RangeSearch { range, candidates: 80, error: mse };
            let json = serde_json::to_string(&search).unwrap();
            assert_eq!(serde_json::from_str::<RangeSearch<f64>>(&json).unwrap(), search);
        }
    }
}
