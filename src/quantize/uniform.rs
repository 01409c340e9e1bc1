//! Uniform quantization: equal steps between neighbouring codes.
//!
//! The range of the elements that share a scale is measured, becomes a scale and zero point by the rule of the
//! [`Scheme`], and rounds the elements to codes.

use std::cmp::Ordering;

use ndarray::{ArrayView, Dimension};

use crate::error::Result;
use crate::float::{Float, check_finite};
use crate::quantize::histogram::check_percentile;
use crate::quantize::layout::Layout;
use crate::quantize::params::{QuantParams, Range};
use crate::quantize::scheme::Scheme;
use crate::quantize::search::least_squares_range;
use crate::quantize::tensor::QuantizedTensor;
use crate::traits::Compressor;

/// Which range of the data the codes cover; what lies outside is clipped.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RangeMethod {
    /// From the least to the largest element: nothing is clipped.
    #[default]
    MinMax,
    /// The middle `percent` of the elements, `0 < percent <= 100`: of `|x|` for symmetric schemes, half of the rest cut
    /// from each side for affine ones. Exact, from the sorted order.
    Percentile(f64),
    /// The one of 80 shrunken ranges with the least squared error; see [`least_squares_range`].
    LeastSquares,
}

/// Rounds weights to equally spaced codes.
///
/// ```
/// use ndarray::array;
/// use trimnet::quantize::{Scheme, UniformQuantizer};
/// use trimnet::{Compressed, Compressor};
///
/// let weights = array![[0.5f32, -1.27, 0.0], [12.7, 0.04, -3.0]];
/// let quantized = UniformQuantizer::new(Scheme::default().per_channel(0)).compress(weights.view())?;
/// assert_eq!(quantized.codes(), array![[50, -127, 0], [127, 0, -30]]);
/// assert!(quantized.report(weights.view())?.sqnr_db > 45.0);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw"))]
pub struct UniformQuantizer {
    scheme: Scheme,
    range: RangeMethod,
}

impl UniformQuantizer {
    /// Covers the whole range of the data.
    pub fn new(scheme: Scheme) -> Self {
        Self { scheme, range: RangeMethod::MinMax }
    }

    /// Covers the range that `method` finds.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a percentile outside of `0 < percent <= 100`.
    pub fn with_range(self, method: RangeMethod) -> Result<Self> {
        if let RangeMethod::Percentile(percent) = method {
            check_percentile(percent)?;
        }
        Ok(Self { range: method, ..self })
    }

    /// The scheme.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// How the range is found.
    pub fn range(&self) -> RangeMethod {
        self.range
    }

    /// One scale and zero point for each scale of the layout.
    pub(super) fn params<F: Float>(&self, layout: &Layout, x: &[F]) -> Result<Vec<QuantParams<F>>> {
        let ranges = match self.range {
            RangeMethod::MinMax => min_max(layout, x),
            RangeMethod::Percentile(percent) => {
                each_scale(layout, x, |values| Ok(percentile(values, percent, self.scheme.is_symmetric())))?
            }
            RangeMethod::LeastSquares => {
                each_scale(layout, x, |values| Ok(least_squares_range(values, &self.scheme)?.range))?
            }
        };
        Ok(ranges.into_iter().map(|range| self.scheme.params(range)).collect())
    }
}

impl<F: Float, D: Dimension> Compressor<F, D> for UniformQuantizer {
    type Output = QuantizedTensor<F, D>;

    /// # Errors
    /// [`Error::NotFinite`](crate::Error::NotFinite) for NaN or infinity, which have no range;
    /// [`Error::Unsupported`](crate::Error::Unsupported) for an axis that the tensor has not.
    fn compress(&self, weights: ArrayView<'_, F, D>) -> Result<Self::Output> {
        check_finite("weights", &weights)?;
        let layout = Layout::new(self.scheme.granularity(), weights.shape())?;
        let weights = weights.as_standard_layout();
        let params = self.params(&layout, weights.as_slice().unwrap_or_default())?; // standard layout: a slice
        QuantizedTensor::with_params(self.scheme, &params, weights.view())
    }
}

/// The range of 0 and all elements of each scale, in one pass over memory in its order.
fn min_max<F: Float>(layout: &Layout, x: &[F]) -> Vec<Range<F>> {
    let mut ranges = vec![Range::zero(); layout.scales()];
    layout.for_each_run(|run| {
        let x = &x[run.elements];
        match &mut ranges[run.scales] {
            [range] => range.cover(x),
            ranges => ranges.iter_mut().zip(x).for_each(|(range, &x)| range.cover_one(x)),
        }
    });
    ranges
}
/// The range that `find` sees in the elements of each scale, gathered one scale at a time.
fn each_scale<F: Float>(
    layout: &Layout,
    x: &[F],
    find: impl Fn(&mut [F]) -> Result<Range<F>>,
) -> Result<Vec<Range<F>>> {
    let mut values = Vec::new();
    (0..layout.scales())
        .map(|scale| {
            values.clear();
            layout.elements(scale).for_each(|elements| values.extend_from_slice(&x[elements]));
            find(&mut values)
        })
        .collect()
}

/// The range of the middle `percent` of `values`, which are finite and at least one.
fn percentile<F: Float>(values: &mut [F], percent: f64, symmetric: bool) -> Range<F> {
    // The rank of the last value inside: the smallest k with k + 1 >= share * n.
    let rank = |share: f64| ((share * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1;
    let order = |a: &F, b: &F| a.partial_cmp(b).unwrap_or(Ordering::Equal);
    let mut range = Range::zero();
    if symmetric {
        let rank = rank(percent / 100.0);
        let (_, &mut t, _) = values.select_nth_unstable_by(rank, |a, b| order(&a.abs(), &b.abs()));
        range.cover_one(t.abs());
        range.cover_one(-t.abs());
    } else {
        let high = rank(1.0 - (100.0 - percent) / 200.0);
        let low = values.len() - 1 - high;
        range.cover_one(*values.select_nth_unstable_by(high, order).1);
        range.cover_one(*values.select_nth_unstable_by(low, order).1);
    }
    range
}

/// What serde reads, before it is believed.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw {
    scheme: Scheme,
    range: RangeMethod,
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for UniformQuantizer {
    type Error = crate::error::Error;

    fn try_from(Raw { scheme, range }: Raw) -> Result<Self> {
        Self::new(scheme).with_range(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use ndarray::{Array2, array};

    #[test]
    fn a_percentile_cuts_the_outlier() {
        let mut w = Array2::from_shape_fn((1, 101), |(_, j)| j as f32 / 100.0 - 0.5);
        w[[0, 7]] = -80.0;
        let scale = |scheme: Scheme, percent| {
            let quantizer =
                UniformQuantizer::new(scheme).with_range(RangeMethod::Percentile(percent)).unwrap();
            quantizer.compress(w.view()).unwrap().scales()[0]
        };
        assert_eq!(scale(Scheme::symmetric(8).unwrap(), 99.0), 0.5 / 127.0);
        assert_eq!(scale(Scheme::symmetric(8).unwrap(), 100.0), 80.0 / 127.0);
        assert!((scale(Scheme::uint8_affine(), 98.0) - 0.99 / 255.0).abs() < 1e-8);
    }

    #[test]
    fn least_squares_never_loses_to_min_max() {
        let w = Array2::from_shape_fn((6, 64), |(i, j)| ((i * 64 + j) as f64 * 0.7).sin().powi(5));
        for scheme in [
            Scheme::symmetric(4).unwrap().per_channel(0),
            Scheme::affine(3).unwrap().per_group(1, 20).unwrap(),
        ] {
            let error = |method| {
                let quantizer = UniformQuantizer::new(scheme).with_range(method).unwrap();
                quantizer.compress(w.view()).unwrap().report(w.view()).unwrap().mse
            };
            assert!(error(RangeMethod::LeastSquares) <= error(RangeMethod::MinMax));
        }
    }

    #[test]
    fn refuses_a_percentile_out_of_range() {
        for percent in [0.0, -1.0, 100.5, f64::NAN] {
            let refused = UniformQuantizer::default().with_range(RangeMethod::Percentile(percent));
            assert!(matches!(refused, Err(Error::OutOfRange { name: "percentile", .. })));
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_file_cannot_hold_a_percentile_out_of_range() {
        let quantizer = UniformQuantizer::default().with_range(RangeMethod::Percentile(99.5)).unwrap();
        let json = serde_json::to_string(&quantizer).unwrap();
        assert_eq!(serde_json::from_str::<UniformQuantizer>(&json).unwrap(), quantizer);
        assert!(serde_json::from_str::<UniformQuantizer>(&json.replace("99.5", "500.0")).is_err());
    }

    #[test]
    fn an_empty_tensor_has_no_range_to_search() {
        let quantizer = UniformQuantizer::default().with_range(RangeMethod::LeastSquares).unwrap();
        let empty: Array2<f32> = array![[], []];
        assert!(quantizer.compress(empty.view()).is_ok());
    }
}
