//! Which weights stay: a boolean per weight, `true` = keep (PyTorch's polarity).
//!
//! A mask alone makes nothing smaller: the zeros it writes are stored like any other weight until a
//! [`SparseTensor`](crate::tensor::SparseTensor) or `shrink` leaves them out.

use ndarray::{Array, ArrayView, ArrayViewMut, Dimension, Zip};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};

/// One boolean per weight: `true` keeps it, `false` makes it zero.
///
/// ```
/// use ndarray::array;
/// use trimnet::Mask;
///
/// let mut weights = array![[0.1_f32, -2.0], [3.0, 0.0]];
/// let mask = Mask::new(array![[false, true], [true, true]]);
/// mask.apply(weights.view_mut())?;
/// assert_eq!(weights, array![[0.0, -2.0], [3.0, 0.0]]);
/// assert_eq!(mask.sparsity(), 0.25);
/// # Ok::<(), trimnet::Error>(())
/// ```
///
/// With the feature `serde` it is stored as its shape and one bit per weight.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "Packed<D>", try_from = "Packed<D>"))]
#[cfg_attr(feature = "serde", serde(bound = "D: Dimension + serde::Serialize + serde::de::DeserializeOwned"))]
pub struct Mask<D: Dimension> {
    keep: Array<bool, D>,
}

impl<D: Dimension> Mask<D> {
    /// Keeps where `keep` is true.
    pub fn new(keep: Array<bool, D>) -> Self {
        Self { keep }
    }

    /// Keeps where `keep` is true, in row-major order.
    pub(crate) fn from_row_major(dim: D, keep: Vec<bool>) -> Result<Self> {
        let (actual, expected) = (vec![keep.len()], dim.slice().to_vec());
        let keep = Array::from_shape_vec(dim, keep);
        keep.map(Self::new).map_err(|_| Error::Shape { what: "mask", actual, expected })
    }

    /// Keeps everything.
    pub fn full(dim: D) -> Self {
        Self::new(Array::from_elem(dim, true))
    }

    /// Keeps what is not zero already.
    pub fn of_nonzero<F: Float>(weights: ArrayView<'_, F, D>) -> Self {
        Self::new(weights.map(|&w| w != F::zero()))
    }

    /// The booleans.
    pub fn keep(&self) -> ArrayView<'_, bool, D> {
        self.keep.view()
    }

    /// The booleans, for the caller to have.
    pub fn into_keep(self) -> Array<bool, D> {
        self.keep
    }

    /// The shape of the weights.
    pub fn raw_dim(&self) -> D {
        self.keep.raw_dim()
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.keep.len()
    }

    /// Whether there are no weights at all.
    pub fn is_empty(&self) -> bool {
        self.keep.is_empty()
    }

    /// Number of kept weights.
    pub fn kept(&self) -> usize {
        self.keep.iter().filter(|&&keep| keep).count()
    }

    /// Fraction of zeros, 0 for an empty mask.
    pub fn sparsity(&self) -> f64 {
        let n = self.len();
        if n == 0 { 0.0 } else { (n - self.kept()) as f64 / n as f64 }
    }

    /// Keeps what both masks keep.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub fn and(mut self, other: &Self) -> Result<Self> {
        check_shape("mask", other.keep.shape(), self.keep.shape())?;
        Zip::from(&mut self.keep).and(&other.keep).for_each(|a, &b| *a &= b);
        Ok(self)
    }

    /// Writes 0.0 where the mask does not keep. Written, not multiplied: `inf * 0` would be NaN.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub fn apply<F: Float>(&self, mut weights: ArrayViewMut<'_, F, D>) -> Result<()> {
        check_shape("weights", weights.shape(), self.keep.shape())?;
        // Without a branch: a random mask would be mispredicted at every other weight.
        Zip::from(&mut weights).and(&self.keep).for_each(|w, &keep| *w = if keep { *w } else { F::zero() });
        Ok(())
    }
}

/// What serde stores of a mask.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Packed<D> {
    dim: D,
    bits: Vec<u8>,
}

#[cfg(feature = "serde")]
impl<D: Dimension> From<Mask<D>> for Packed<D> {
    fn from(mask: Mask<D>) -> Self {
        let keep = mask.keep.as_standard_layout();
        let bits = super::bits::pack(keep.as_slice().unwrap_or_default(), |keep| keep);
        Self { dim: mask.raw_dim(), bits }
    }
}

#[cfg(feature = "serde")]
impl<D: Dimension> TryFrom<Packed<D>> for Mask<D> {
    type Error = Error;

    fn try_from(Packed { dim, bits }: Packed<D>) -> Result<Self> {
        let n = super::bits::elements(dim.slice(), 1)?;
        super::bits::check(&bits, n)?;
        Self::from_row_major(dim, super::bits::unpack(&bits, n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn composes_with_an_earlier_mask() {
        let a = Mask::new(array![true, true, false, false]);
        let b = Mask::new(array![true, false, true, false]);
        assert_eq!(a.and(&b).unwrap(), Mask::new(array![true, false, false, false]));
    }

    #[test]
    fn a_masked_infinity_becomes_zero() {
        let mut w = array![f32::INFINITY, 2.0];
        Mask::new(array![false, true]).apply(w.view_mut()).unwrap();
        assert_eq!(w, array![0.0, 2.0]);
    }

    #[test]
    fn refuses_another_shape() {
        let mask = Mask::full(ndarray::Dim([2, 3]));
        assert!(mask.apply(ndarray::Array2::<f32>::zeros((3, 2)).view_mut()).is_err());
        assert!(mask.and(&Mask::full(ndarray::Dim([3, 2]))).is_err());
    }

    #[test]
    fn an_empty_mask_is_not_sparse() {
        assert_eq!(Mask::full(ndarray::Dim([0, 3])).sparsity(), 0.0);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn serde_keeps_it_and_refuses_lies() {
        let mask = Mask::new(array![[true, false, true], [false, false, true]]);
        let json = serde_json::to_string(&mask).unwrap();
        assert_eq!(json, r#"{"dim":[2,3],"bits":[37]}"#);
        assert_eq!(serde_json::from_str::<Mask<ndarray::Ix2>>(&json).unwrap(), mask);
        let transposed = Mask::new(mask.keep.clone().reversed_axes());
        let json = serde_json::to_string(&transposed).unwrap();
        assert_eq!(serde_json::from_str::<Mask<ndarray::Ix2>>(&json).unwrap(), transposed);
        for lie in [
            r#"{"dim":[2,3],"bits":[]}"#,
            r#"{"dim":[2,3],"bits":[255]}"#,
            r#"{"dim":[2,3],"bits":[1,1]}"#,
            r#"{"dim":[18446744073709551615,18446744073709551615],"bits":[1]}"#,
            r#"{"dim":[18446744073709551615,4,0],"bits":[]}"#,
        ] {
            assert!(serde_json::from_str::<Mask<ndarray::Ix2>>(lie).is_err(), "{lie}");
        }
    }
}
