//! The plain ratio form: a fixed grid with `ratio` steps to the unit, the same for every tensor.
//!
//! ```text
//! code = rne(w * ratio)        w' = code / ratio
//! ```
//!
//! There is no scale to measure and none to store, and nothing is clipped: as many bits are used as the largest code
//! needs. A ratio of 100 keeps two decimals.

use ndarray::{ArrayView, ArrayViewMut, Dimension};

use crate::error::{Error, Result};
use crate::float::{Float, check_finite, check_shape, unravel};
use crate::tensor::PackedInts;
use crate::traits::{Compressed, Compressor};

/// Rounds weights to multiples of `1 / ratio`.
///
/// ```
/// use ndarray::array;
/// use trimnet::quantize::RatioQuantizer;
/// use trimnet::{Compressed, Compressor};
///
/// let compressed = RatioQuantizer::new(4.0)?.compress(array![0.3f32, -1.0, 0.1].view())?;
/// assert_eq!(compressed.decompress()?, array![0.25, -1.0, 0.0]);
/// assert_eq!(compressed.codes().bits(), 3); // -4 needs three bits
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "f64", into = "f64"))]
pub struct RatioQuantizer {
    ratio: f64,
}

impl RatioQuantizer {
    /// Steps to the unit.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `ratio` is within 1e-30..=1e30.
    pub fn new(ratio: f64) -> Result<Self> {
        // Within this range neither the ratio nor what a code stands for leaves `f32`.
        if !(1e-30..=1e30).contains(&ratio) {
            return Err(Error::OutOfRange { name: "ratio", value: ratio, range: "1e-30..=1e30" });
        }
        Ok(Self { ratio })
    }

    /// Steps to the unit.
    pub fn ratio(&self) -> f64 {
        self.ratio
    }
}

impl TryFrom<f64> for RatioQuantizer {
    type Error = Error;

    fn try_from(ratio: f64) -> Result<Self> {
        Self::new(ratio)
    }
}

impl From<RatioQuantizer> for f64 {
    fn from(quantizer: RatioQuantizer) -> Self {
        quantizer.ratio
    }
}

impl<F: Float, D: Dimension> Compressor<F, D> for RatioQuantizer {
    type Output = RatioTensor<F, D>;

    /// # Errors
    /// [`Error::NotFinite`] for NaN or infinity; [`Error::Unsupported`] for a weight whose code needs more than 16 bits.
    fn compress(&self, weights: ArrayView<'_, F, D>) -> Result<Self::Output> {
        check_finite("weights", &weights)?;
        let ratio = F::of(self.ratio);
        let limit = F::of_int(1 << 15);
        let mut codes = Vec::with_capacity(weights.len());
        for (flat, &w) in weights.iter().enumerate() {
            let code = (w * ratio).round_half_even();
            if code >= limit || code < -limit {
                return Err(Error::Unsupported {
                    what: "the ratio",
                    reason: format!(
                        "{w} at index {:?} times {} needs more than 16 bits",
                        unravel(flat, weights.shape()),
                        self.ratio
                    ),
                });
            }
            codes.push(code.small_int());
        }
        let codes = PackedInts::pack(bits_for(&codes), true, &codes)?;
        Ok(RatioTensor { shape: weights.raw_dim(), ratio, codes })
    }
}

/// The fewest bits that [`PackedInts`] has for signed codes that large.
fn bits_for(codes: &[i32]) -> u8 {
    let magnitude = codes.iter().fold(0, |all, &code| all | if code < 0 { !code } else { code });
    match 33 - magnitude.leading_zeros() {
        bits @ ..=8 => bits as u8,
        _ => 16,
    }
}

/// Multiples of `1 / ratio`.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw<F, D>"))]
#[cfg_attr(
    feature = "serde",
    serde(bound(
        serialize = "F: serde::Serialize, D: serde::Serialize",
        deserialize = "F: Float + serde::Deserialize<'de>, D: Dimension + serde::Deserialize<'de>"
    ))
)]
pub struct RatioTensor<F, D> {
    shape: D,
    ratio: F,
    codes: PackedInts,
}

impl<F: Float, D: Dimension> RatioTensor<F, D> {
    /// Steps to the unit.
    pub fn ratio(&self) -> F {
        self.ratio
    }

    /// The multiples, in row-major order.
    pub fn codes(&self) -> &PackedInts {
        &self.codes
    }
}

impl<F: Float, D: Dimension> Compressed<F, D> for RatioTensor<F, D> {
    fn raw_dim(&self) -> D {
        self.shape.clone()
    }

    /// The packed codes, and the ratio.
    fn size_bytes(&self) -> usize {
        self.codes.bytes().len() + F::BYTES
    }

    fn decompress_into(&self, mut out: ArrayViewMut<'_, F, D>) -> Result<()> {
        check_shape("the place for the tensor", out.shape(), self.shape.slice())?;
        out.iter_mut().zip(self.codes.to_vec()).for_each(|(out, code)| *out = F::of_int(code) / self.ratio);
        Ok(())
    }
}

#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw<F, D> {
    shape: D,
    ratio: F,
    codes: PackedInts,
}

#[cfg(feature = "serde")]
impl<F: Float, D: Dimension> TryFrom<Raw<F, D>> for RatioTensor<F, D> {
    type Error = Error;

    fn try_from(Raw { shape, ratio, codes }: Raw<F, D>) -> Result<Self> {
        check_shape(
            "the codes of a ratio tensor",
            &[codes.len()],
            &[crate::quantize::tensor::elements(&shape)?],
        )?;
        if !(ratio > F::zero() && ratio.is_finite() && (F::of_int(1 << 16) / ratio).is_finite()) {
            let range = "above 0, and no code may stand for infinity";
            return Err(Error::OutOfRange { name: "ratio", value: ratio.as_f64(), range });
        }
        Ok(Self { shape, ratio, codes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn refuses_a_ratio_that_is_no_grid() {
        for ratio in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-40, 1e40] {
            assert!(RatioQuantizer::new(ratio).is_err(), "{ratio}");
        }
    }

    #[test]
    fn uses_as_many_bits_as_the_largest_code_needs() {
        let bits = |w: f64| {
            RatioQuantizer::new(1.0).unwrap().compress(array![0.0, w].view()).unwrap().codes().bits()
        };
        let expected =
            [(0.0, 1), (-1.0, 1), (1.0, 2), (-2.0, 2), (127.0, 8), (-128.0, 8), (128.0, 16), (-32_768.0, 16)];
        for (w, expected) in expected {
            assert_eq!(bits(w), expected, "{w}");
        }
    }

    #[test]
    fn names_the_weight_that_does_not_fit() {
        let error = RatioQuantizer::new(1000.0).unwrap().compress(array![[1.0, 33.0]].view()).unwrap_err();
        assert_eq!(error.to_string(), "the ratio: 33 at index [0, 1] times 1000 needs more than 16 bits");
    }
}
