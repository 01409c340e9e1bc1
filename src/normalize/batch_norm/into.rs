//! Batch normalization into memory that is there already, on all threads of a pool: the same results for any number of
//! threads, and the same as of the [`Normalizer`](crate::Normalizer).

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::super::affine::AffineGrads;
use super::super::columns::{Gradient, Moments, Scaled, each_row, each_row_into};
use super::BatchNorm;
use crate::error::{Error, Result};
use crate::float::{Float, check_shape, elements, elements_mut};
use crate::kernel::Pool;

/// What the normalized batch was computed with: all that [`BatchNorm::backward_into`] needs beside the batch itself.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchStatistics<F> {
    rows: usize,
    moments: Moments<F>,
    /// `1 / std`.
    inverse: Vec<F>,
    /// `gamma / std`.
    scale: Vec<F>,
}

impl<F: Float> BatchStatistics<F> {
    /// With `sum dy` and `sum dy * x_hat` of each feature.
    pub(super) fn gradient(&self, pool: &Pool, x: &[F], dy: &[F]) -> (Gradient<'_, F>, (Vec<f64>, Vec<f64>)) {
        Gradient::new(pool, &self.moments, &self.inverse, &self.scale, (x, dy))
    }
}

impl<F: Float> BatchNorm<F> {
    /// As [`normalize`](crate::Normalizer::normalize).
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of features, or a `y` of another shape than `x`.
    pub fn normalize_into(
        &self,
        x: ArrayView2<'_, F>,
        mut y: ArrayViewMut2<'_, F>,
        pool: &Pool,
    ) -> Result<()> {
        check_shape("x", x.shape(), &[x.nrows(), self.features()])?;
        check_shape("the place for y", y.shape(), x.shape())?;
        match (x.as_slice(), y.as_slice_mut()) {
            (Some(x), Some(y)) => self.infer_into(pool, x, y),
            _ => {
                let mut rows = x.as_standard_layout().into_owned();
                self.infer(pool, elements_mut(&mut rows));
                y.assign(&rows);
            }
        }
        Ok(())
    }

    /// As [`normalize_batch`](crate::Normalizer::normalize_batch). What it returns is of the size of one row: the batch has to
    /// be kept for the backward pass instead.
    ///
    /// ```
    /// use trimnet::kernel::Pool;
    /// use trimnet::ndarray::{Array2, array};
    /// use trimnet::normalize::BatchNorm;
    ///
    /// let (mut norm, pool) = (BatchNorm::<f32>::new(1)?, Pool::single());
    /// let (x, mut y) = (array![[1.0], [2.0], [4.0]], Array2::zeros((3, 1)));
    /// let batch = norm.normalize_batch_into(x.view(), y.view_mut(), &pool)?;
    /// let (dy, mut dx) = (array![[1.0], [0.0], [0.0]], Array2::zeros((3, 1)));
    /// let grads = norm.backward_into(&batch, x.view(), dy.view(), dx.view_mut(), &pool)?;
    /// assert_eq!(grads.dbeta, array![1.0]);
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`normalize_batch`](crate::Normalizer::normalize_batch), and [`Error::Shape`] for a `y` of another shape than `x`.
    pub fn normalize_batch_into(
        &mut self,
        x: ArrayView2<'_, F>,
        mut y: ArrayViewMut2<'_, F>,
        pool: &Pool,
    ) -> Result<BatchStatistics<F>> {
        let (rows, features) = (x.nrows(), self.features());
        check_shape("x", x.shape(), &[rows, features])?;
        check_shape("the place for y", y.shape(), x.shape())?;
        let x = x.as_standard_layout();
        let x = elements(&x);
        let batch = self.statistics(x, rows, pool)?;
        let scaled = batch.moments.scaled(&batch.scale, &self.beta.to_vec());
        let run = |y: &mut [F]| each_row_into(pool, features, [x], y, &scaled);
        match y.as_slice_mut() {
            Some(y) => run(y),
            None => {
                let mut rows = Array2::zeros(y.raw_dim());
                run(elements_mut(&mut rows));
                y.assign(&rows);
            }
        }
        self.update_running(&batch.moments, rows);
        Ok(batch)
    }

    /// Takes the running statistics of the batch `x` `[batch, features]`, whatever they were before, as if it were the first batch
    /// of a training with cumulative mean: for weights that have changed since. A whole network:
    /// [`Mlp::estimate_batch_norms`](crate::nn::Mlp::estimate_batch_norms).
    ///
    /// # Errors
    /// As [`normalize_batch`](crate::Normalizer::normalize_batch); the statistics stay what they were then.
    pub fn estimate(&mut self, x: ArrayView2<'_, F>) -> Result<()> {
        let rows = x.nrows();
        check_shape("x", x.shape(), &[rows, self.features()])?;
        let x = x.as_standard_layout();
        let batch = self.statistics(elements(&x), rows, &Pool::for_elements(x.len()))?;
        self.mix(&batch.moments, rows, 1.0);
        self.batches = 1;
        Ok(())
    }

    /// As [`backward`](crate::Normalizer::backward), from the batch `x` that `batch` describes.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x`, `dy` and `dx` have the shape of that batch.
    pub fn backward_into(
        &self,
        batch: &BatchStatistics<F>,
        x: ArrayView2<'_, F>,
        dy: ArrayView2<'_, F>,
        mut dx: ArrayViewMut2<'_, F>,
        pool: &Pool,
    ) -> Result<AffineGrads<F>> {
        let shape = [batch.rows, batch.scale.len()];
        check_shape("x", x.shape(), &shape)?;
        check_shape("dy", dy.shape(), &shape)?;
        check_shape("the place for dx", dx.shape(), &shape)?;
        let (x, dy) = (x.as_standard_layout(), dy.as_standard_layout());
        let (x, dy) = (elements(&x), elements(&dy));
        let (gradient, sums) = batch.gradient(pool, x, dy);
        match dx.as_slice_mut() {
            Some(dx) => gradient.write_to(pool, x, dy, dx),
            None => {
                let mut rows = Array2::zeros(dx.raw_dim());
                gradient.write_to(pool, x, dy, elements_mut(&mut rows));
                dx.assign(&rows);
            }
        }
        Ok(AffineGrads::of_sums(sums))
    }

    fn statistics(&self, x: &[F], rows: usize, pool: &Pool) -> Result<BatchStatistics<F>> {
        if rows < 2 {
            return Err(Error::BatchTooSmall { what: "batch norm by a batch", rows, needed: 2 });
        }
        let moments = Moments::of("x", x, self.features(), pool)?;
        let std: Vec<f64> = moments.m2.iter().map(|m2| (m2 / rows as f64 + self.eps).sqrt()).collect();
        let inverse = std.iter().map(|std| F::of(1.0 / std)).collect();
        let scale = self.gamma.iter().zip(&std).map(|(gamma, std)| F::of(gamma.as_f64() / std)).collect();
        Ok(BatchStatistics { rows, moments, inverse, scale })
    }

    /// What inference needs of each column: `running_mean`, `scale` and `beta`.
    fn inference(&self) -> [Vec<F>; 3] {
        [self.running_mean.to_vec(), self.scale().mapv(F::of).to_vec(), self.beta.to_vec()]
    }

    /// `y = (y - running_mean) * scale + beta`.
    pub(super) fn infer(&self, pool: &Pool, y: &mut [F]) {
        let [mean, scale, beta] = self.inference();
        each_row(pool, self.features(), [], y, |j, [], y| {
            let settings = mean[j..].iter().zip(&scale[j..]).zip(&beta[j..]);
            for (y, ((&mean, &scale), &beta)) in y.iter_mut().zip(settings) {
                *y = (*y - mean) * scale + beta;
            }
        });
    }

    /// As [`infer`](Self::infer), from `x` to `y`.
    fn infer_into(&self, pool: &Pool, x: &[F], y: &mut [F]) {
        let [center, scale, shift] = self.inference();
        each_row_into(pool, self.features(), [x], y, &Scaled { center, scale, shift });
    }
}
