//! Uniform quantization: equal steps between neighbouring codes.
//!
//! The range of the elements that share a scale is measured, becomes a scale and zero point by the rule of the
//! [`Scheme`], and rounds the elements to codes.

use ndarray::{ArrayView, Dimension};

use crate::error::Result;
use crate::float::{Float, check_finite};
use crate::quantize::layout::Layout;
use crate::quantize::params::{QuantParams, Range};
use crate::quantize::scheme::Scheme;
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
pub struct UniformQuantizer {
    scheme: Scheme,
    range: RangeMethod,
}

impl UniformQuantizer {
    /// Covers the whole range of the data.
    pub fn new(scheme: Scheme) -> Self {
        Self { scheme, range: RangeMethod::MinMax }
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
    fn params<F: Float>(&self, layout: &Layout, x: &[F]) -> Result<Vec<QuantParams<F>>> {
        let ranges = match self.range {
            RangeMethod::MinMax => min_max(layout, x),
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
