//! The whole idea on one page: what compresses, what normalizes, what regularizes.

use ndarray::{Array, Array2, ArrayView, ArrayViewMut, Dimension};
use rand::Rng;

use crate::error::Result;
use crate::float::Float;

/// Turns a dense weight tensor into a smaller representation.
///
/// Pure: the same settings and weights give the same output; a randomised compressor carries its seed.
pub trait Compressor<F: Float, D: Dimension> {
    /// The artifact that is stored instead of the weights.
    type Output: Compressed<F, D>;

    /// Compresses `weights`, which stay as they are.
    ///
    /// # Errors
    /// [`Error::NotFinite`](crate::Error::NotFinite) for NaN or infinity, and whatever the settings and this
    /// tensor exclude.
    fn compress(&self, weights: ArrayView<'_, F, D>) -> Result<Self::Output>;
}

/// A compressed tensor: what is stored instead of the weights.
pub trait Compressed<F: Float, D: Dimension> {
    /// The shape of the tensor that was compressed.
    fn raw_dim(&self) -> D;

    /// Bytes of payload when written to disk; no struct overhead.
    fn size_bytes(&self) -> usize;

    /// Writes the expanded tensor into `out`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if `out` has another shape.
    fn decompress_into(&self, out: ArrayViewMut<'_, F, D>) -> Result<()>;

    /// The expanded tensor.
    ///
    /// # Errors
    /// None of its own: those of [`decompress_into`](Self::decompress_into).
    fn decompress(&self) -> Result<Array<F, D>> {
        let mut out = Array::zeros(self.raw_dim());
        self.decompress_into(out.view_mut())?;
        Ok(out)
    }
}

impl<F: Float, D: Dimension> Compressed<F, D> for Box<dyn Compressed<F, D>> {
    fn raw_dim(&self) -> D {
        (**self).raw_dim()
    }

    fn size_bytes(&self) -> usize {
        (**self).size_bytes()
    }

    fn decompress_into(&self, out: ArrayViewMut<'_, F, D>) -> Result<()> {
        (**self).decompress_into(out)
    }
}

/// A compressor whose artifact type is erased, so that different ones share a list:
/// `Vec<Box<dyn Compressor<f32, Ix2, Output = Box<dyn Compressed<f32, Ix2>>>>>`.
#[derive(Clone, Copy, Debug)]
pub struct Erased<C>(
    /// The compressor that does the work.
    pub C,
);

impl<F: Float, D: Dimension, C> Compressor<F, D> for Erased<C>
where
    C: Compressor<F, D>,
    C::Output: 'static,
{
    type Output = Box<dyn Compressed<F, D>>;

    fn compress(&self, weights: ArrayView<'_, F, D>) -> Result<Self::Output> {
        Ok(Box::new(self.0.compress(weights)?))
    }
}

/// Rescales each feature of a batch `[batch, features]`.
pub trait Normalizer<F: Float> {
    /// What [`backward`](Self::backward) needs of the forward pass.
    type Cache;
    /// Gradients of the learnt parameters; `()` where nothing is learnt by gradient.
    type Grads;

    /// Inference: uses, and cannot change, what was learnt.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another number of features.
    fn normalize(&self, x: Array2<F>) -> Result<Array2<F>>;

    /// Back to the original range: the inverse of [`normalize`](Self::normalize).
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another number of features;
    /// [`Error::Unsupported`](crate::Error::Unsupported) where no inverse exists.
    fn denormalize(&self, y: Array2<F>) -> Result<Array2<F>>;

    /// Training: uses this batch's statistics and folds them into the learnt ones.
    ///
    /// # Errors
    /// As [`normalize`](Self::normalize); [`Error::BatchTooSmall`](crate::Error::BatchTooSmall) where one row
    /// has no variance.
    fn normalize_batch(&mut self, x: Array2<F>) -> Result<(Array2<F>, Self::Cache)>;

    /// The gradient `dx` of the loss by the input, from `dy` by the output, and those of the parameters.
    fn backward(&self, cache: Self::Cache, dy: Array2<F>) -> (Array2<F>, Self::Grads);
}

/// Disturbs activations while training. There is no inference method: inference leaves it out.
pub trait Regularizer<F: Float> {
    /// What [`backward`](Self::backward) needs of the draw.
    type Cache;

    /// Disturbs `x` with one seed drawn from `rng`.
    fn perturb(&self, x: Array2<F>, rng: &mut dyn Rng) -> (Array2<F>, Self::Cache);

    /// The gradient by the input, for the same draw.
    fn backward(&self, cache: Self::Cache, dy: Array2<F>) -> Array2<F>;
}
