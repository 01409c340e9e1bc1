//! Which weights stay: a boolean per weight, `true` = keep (PyTorch's polarity).
//!
//! A mask alone makes nothing smaller: the zeros it writes are stored like any other weight until a sparse
//! tensor (`SparseTensor`) or `shrink` leaves them out.

use ndarray::{Array, ArrayView, ArrayViewMut, Dimension, Zip};

use crate::error::Result;
use crate::float::{Float, check_shape};

/// One boolean per weight: `true` keeps it, `false` makes it zero.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(bound = "D: serde::Serialize + serde::de::DeserializeOwned"))]
pub struct Mask<D: Dimension> {
    keep: Array<bool, D>,
}

impl<D: Dimension> Mask<D> {
    /// Keeps where `keep` is true.
    pub fn new(keep: Array<bool, D>) -> Self {
        Self { keep }
    }

    /// Keeps what is not zero already.
    pub fn of_nonzero<F: Float>(weights: ArrayView<'_, F, D>) -> Self {
        Self::new(weights.map(|&w| w != F::zero()))
    }

    /// The booleans.
    pub fn keep(&self) -> ArrayView<'_, bool, D> {
        self.keep.view()
    }

    /// Number of kept weights.
    pub fn kept(&self) -> usize {
        self.keep.iter().filter(|&&keep| keep).count()
    }

    /// Fraction of zeros, 0 for an empty mask.
    pub fn sparsity(&self) -> f64 {
        let n = self.keep.len();
        if n == 0 { 0.0 } else { 1.0 - self.kept() as f64 / n as f64 }
    }

    /// Keeps what both masks keep.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the shapes differ.
    pub fn and(mut self, other: &Self) -> Result<Self> {
        check_shape("mask", other.keep.shape(), self.keep.shape())?;
        Zip::from(&mut self.keep).and(&other.keep).for_each(|a, &b| *a &= b);
        Ok(self)
    }

    /// Writes 0.0 where the mask does not keep. Written, not multiplied: `inf * 0` would be NaN.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the shapes differ.
    pub fn apply<F: Float>(&self, mut weights: ArrayViewMut<'_, F, D>) -> Result<()> {
        check_shape("weights", weights.shape(), self.keep.shape())?;
        Zip::from(&mut weights).and(&self.keep).for_each(|w, &keep| {
            if !keep {
                *w = F::zero();
            }
        });
        Ok(())
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
}
