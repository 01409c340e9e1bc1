//! Sums over the rows of a batch, one per column, in one pass that reads row after row.
//!
//! Blocks of rows are summed in the element type and the blocks in `f64`: as fast as the plain loop, and the
//! rounding error does not grow with the batch.
//!
//! Moments are taken of `x - first`, where `first` is the first row: differences of near numbers are exact,
//! so a feature with mean 1e6 and deviation 1e-2 keeps its variance, where `mean(x^2) - mean(x)^2` would
//! lose it (Chan, Golub, LeVeque 1983, "shifted data"). A first row far from the rest does no harm: its
//! distance is at most `sqrt(rows)` deviations.

use ndarray::ArrayRef2;

use crate::error::{Error, Result};
use crate::float::{Float, check_finite, elements};

/// Rows that are summed in the element type before the sum goes to `f64`.
const BLOCK: usize = 64;

/// Mean and spread of each column of a batch.
pub(super) struct Moments<F> {
    /// The first row.
    first: Vec<F>,
    /// Mean minus first row.
    offset: Vec<F>,
    /// The means.
    pub(super) mean: Vec<f64>,
    /// Sum of squared distances from the mean, never negative.
    pub(super) m2: Vec<f64>,
}

impl<F: Float> Moments<F> {
    /// Of `x` `[rows, features]`, in standard layout, with at least one row.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN and infinity, and for a feature whose variance overflows.
    pub(super) fn of(what: &'static str, x: &ArrayRef2<F>) -> Result<Self> {
        let (rows, width) = x.dim();
        let x_flat = elements(x);
        let first = x_flat.get(..width).unwrap_or_default().to_vec();
        let (mut mean, mut m2) = (vec![0.0; width], vec![0.0; width]);
        let (mut sum, mut square) = (vec![F::zero(); width], vec![F::zero(); width]);
        for block in x_flat.chunks((BLOCK * width).max(1)) {
            for row in block.chunks_exact(width) {
                for (((sum, square), &x), &first) in sum.iter_mut().zip(&mut square).zip(row).zip(&first) {
                    let d = x - first;
                    *sum += d;
                    *square += d * d;
                }
            }
            flush(&mut sum, &mut mean);
            flush(&mut square, &mut m2);
        }
        let mut offset = Vec::with_capacity(width);
        for (j, (mean, m2)) in mean.iter_mut().zip(&mut m2).enumerate() {
            let sum = *mean;
            let distance = sum / rows as f64;
            // sum (d - mean)^2 = sum d^2 - (sum d) * mean
            *m2 -= sum * distance;
            if !m2.is_finite() {
                check_finite(what, &x.view())?;
                return Err(Error::NotFinite { what: "variance of a feature", index: vec![j], value: *m2 });
            }
            *m2 = m2.max(0.0);
            offset.push(F::of(distance));
            *mean = first[j].as_f64() + distance;
        }
        Ok(Self { first, offset, mean, m2 })
    }

    /// Turns every `x` into `(x - mean) * inverse`, in place; `inverse` has one number per column.
    pub(super) fn standardize(&self, x: &mut [F], inverse: &[F]) {
        for row in x.chunks_exact_mut(self.first.len()) {
            let statistics = self.first.iter().zip(&self.offset).zip(inverse);
            for (x, ((&first, &offset), &inverse)) in row.iter_mut().zip(statistics) {
                *x = ((*x - first) - offset) * inverse;
            }
        }
    }
}

/// Per column the sum of `a` and the sum of `a * b`; both `[rows, width]`, flat.
pub(super) fn product_sums<F: Float>(a: &[F], b: &[F], width: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut sums, mut products) = (vec![0.0; width], vec![0.0; width]);
    let (mut sum, mut product) = (vec![F::zero(); width], vec![F::zero(); width]);
    let block = (BLOCK * width).max(1);
    for (a, b) in a.chunks(block).zip(b.chunks(block)) {
        for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
            for (((sum, product), &a), &b) in sum.iter_mut().zip(&mut product).zip(a).zip(b) {
                *sum += a;
                *product += a * b;
            }
        }
        flush(&mut sum, &mut sums);
        flush(&mut product, &mut products);
    }
    (sums, products)
}

fn flush<F: Float>(block: &mut [F], total: &mut [f64]) {
    for (block, total) in block.iter_mut().zip(total) {
        *total += block.as_f64();
        *block = F::zero();
    }
}

/// `dx = (dy - mean(dy) - x_hat * mean(dy * x_hat)) * scale`, written over `dy`.
/// Returns `sum dy` and `sum dy * x_hat` of each column.
pub(super) fn backward<F: Float>(dy: &mut [F], x_hat: &[F], scale: &[F]) -> (Vec<f64>, Vec<f64>) {
    let width = scale.len();
    let rows = dy.len().checked_div(width).unwrap_or(0);
    let (dy_sum, dy_x_sum) = product_sums(dy, x_hat, width);
    let mean = |sums: &[f64]| -> Vec<F> { sums.iter().map(|sum| F::of(sum / rows as f64)).collect() };
    let (dy_mean, dy_x_mean) = (mean(&dy_sum), mean(&dy_x_sum));
    for (dy, x_hat) in dy.chunks_exact_mut(width.max(1)).zip(x_hat.chunks_exact(width.max(1))) {
        let means = dy_mean.iter().zip(&dy_x_mean).zip(scale);
        for ((dy, &x_hat), ((&dy_mean, &dy_x_mean), &scale)) in dy.iter_mut().zip(x_hat).zip(means) {
            *dy = (*dy - dy_mean - x_hat * dy_x_mean) * scale;
        }
    }
    (dy_sum, dy_x_sum)
}
