//! What training makes small: a loss over a batch, and its gradient by the network's outputs.
//!
//! ```text
//! cross-entropy          L = mean_rows( logsumexp(z) - z[label] )     dL/dz = (softmax(z) - onehot) / rows
//! mean squared error     L = mean_elements( (y - t)^2 )               dL/dy = 2 (y - t) / (rows * outputs)
//! ```
//!
//! The mean of the squared error is over all elements, as PyTorch's `MSELoss`, not a sum over outputs. A NaN among the
//! outputs gives a NaN loss; the trainer turns that into an error with the step in it.

use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Zip};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::kernel::{Isa, Pool, Work, with};

/// Softmax cross-entropy of `logits` `[rows, classes]` against one label per row: the mean over the rows and its
/// gradient `dlogits`.
///
/// # Errors
/// [`Error::Empty`] without rows or classes, [`Error::Shape`] for another number of labels, [`Error::Label`] for a label
/// that is not below the number of classes.
///
/// ```
/// use ndarray::array;
/// let (loss, dlogits) = trimnet::nn::loss::cross_entropy(array![[0.0_f64, 0.0]].view(), &[1])?;
/// assert!((loss - 2.0_f64.ln()).abs() < 1e-15);
/// assert_eq!(dlogits, array![[0.5, -0.5]]);
/// # Ok::<(), trimnet::Error>(())
/// ```
pub fn cross_entropy<F: Float>(logits: ArrayView2<'_, F>, labels: &[usize]) -> Result<(F, Array2<F>)> {
    let mut dlogits = Array2::zeros(logits.raw_dim()); // [rows, classes]
    let loss = cross_entropy_into(logits, labels, dlogits.view_mut())?;
    Ok((loss, dlogits))
}

/// As [`cross_entropy`], with the gradient written to `dlogits` `[rows, classes]`. Two passes over each row while it is in
/// the nearest cache; the rows are shared among threads where they are many.
///
/// # Errors
/// As [`cross_entropy`], and [`Error::Shape`] if `dlogits` has another shape.
pub fn cross_entropy_into<F: Float>(
    logits: ArrayView2<'_, F>,
    labels: &[usize],
    dlogits: ArrayViewMut2<'_, F>,
) -> Result<F> {
    let pool = if logits.len() < PARALLEL { Pool::single() } else { Pool::shared() };
    cross_entropy_on(&pool, logits, labels, dlogits)
}

/// As [`cross_entropy_into`], on these threads.
///
/// # Errors
/// As [`cross_entropy_into`].
pub fn cross_entropy_on<F: Float>(
    pool: &Pool,
    logits: ArrayView2<'_, F>,
    labels: &[usize],
    mut dlogits: ArrayViewMut2<'_, F>,
) -> Result<F> {
    check_labels(logits, labels)?;
    check_shape("dlogits", dlogits.shape(), logits.shape())?;
    let (rows, classes) = logits.dim();
    let count = F::of(rows as f64);
    let standard = logits.as_standard_layout();
    let Some(out) = dlogits.as_slice_mut() else {
        let mut rows = Array2::zeros(logits.raw_dim());
        let loss = cross_entropy_on(pool, logits, labels, rows.view_mut())?;
        dlogits.assign(&rows);
        return Ok(loss);
    };
    // The division of the rows, and with it the order of the sum, is the same for any number of threads.
    let height = rows.div_ceil(PARTS);
    let sums = [const { AtomicU64::new(0) }; PARTS];
    let parts = standard.as_slice().unwrap_or_default().chunks(height * classes);
    let parts = parts.zip(labels.chunks(height)).zip(out.chunks_mut(height * classes)).zip(&sums);
    let isa = Isa::best();
    pool.share(parts, |(((logits, labels), dlogits), sum)| {
        let part = with(isa, CrossEntropyRows { logits, labels, dlogits, rows: count });
        sum.store(part.to_bits(), Ordering::Relaxed);
    });
    let sum: f64 = sums.iter().map(|sum| f64::from_bits(sum.load(Ordering::Relaxed))).sum();
    Ok(F::of(sum / rows as f64))
}

/// Parts into which rows are divided, whatever the number of threads.
const PARTS: usize = 64;

/// From so many logits on, about 30 us of one core, two threads pay.
const PARALLEL: usize = 1 << 15;

/// Loss and gradient of some rows; results in the sum of the losses.
struct CrossEntropyRows<'a, F> {
    logits: &'a [F],
    labels: &'a [usize],
    dlogits: &'a mut [F],
    /// Rows of the whole batch.
    rows: F,
}

impl<F: Float> Work for CrossEntropyRows<'_, F> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Self { logits, labels, dlogits, rows } = self;
        let classes = logits.len() / labels.len();
        let each = F::one() / rows;
        let mut total = 0.0;
        let rows_in = logits.chunks_exact(classes).zip(dlogits.chunks_exact_mut(classes));
        for ((z, d), &label) in rows_in.zip(labels) {
            let max = largest(z);
            let mut sums = [F::zero(); LANES];
            let (whole, rest) = z.as_chunks::<LANES>();
            let (d_whole, d_rest) = d.as_chunks_mut::<LANES>();
            for (z, d) in whole.iter().zip(d_whole.iter_mut()) {
                for ((sum, &z), d) in sums.iter_mut().zip(z).zip(d) {
                    *d = (z - max).exp_below();
                    *sum += *d;
                }
            }
            if !rest.is_empty() {
                let mut last = padded(rest);
                for (sum, z) in sums.iter_mut().zip(&mut last) {
                    *z = (*z - max).exp_below();
                    *sum += *z;
                }
                d_rest.copy_from_slice(&last[..rest.len()]);
            }
            let sum = total_of(sums);
            total += (sum.ln() - (z[label] - max)).as_f64();
            let gain = F::one() / (sum * rows);
            d.iter_mut().for_each(|d| *d *= gain);
            d[label] -= each;
        }
        total
    }
}

/// Numbers of a row that are worked on side by side.
pub(crate) const LANES: usize = 16;

/// The end of a row, filled up with numbers whose exponential is 0.
#[inline(always)]
pub(crate) fn padded<F: Float>(rest: &[F]) -> [F; LANES] {
    let mut lanes = [F::neg_infinity(); LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

/// The largest number, NaN left out.
#[inline(always)]
pub(crate) fn largest<F: Float>(z: &[F]) -> F {
    let larger = |a: F, b: F| if b > a { b } else { a };
    let mut lanes = [F::neg_infinity(); LANES];
    let (whole, rest) = z.as_chunks::<LANES>();
    for z in whole {
        lanes.iter_mut().zip(z).for_each(|(max, &z)| *max = larger(*max, z));
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(F::neg_infinity(), larger)
}

/// The sum of the lanes, in halves.
#[inline(always)]
pub(crate) fn total_of<F: Float>(mut lanes: [F; LANES]) -> F {
    let mut length = LANES;
    while length > 1 {
        length /= 2;
        let (low, high) = lanes.split_at_mut(length);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
    }
    lanes[0]
}

/// Squared error of `outputs` against `targets`, both `[rows, outputs]`: the mean over all elements and its gradient.
///
/// # Errors
/// [`Error::Empty`] without elements, [`Error::Shape`] if the shapes differ.
///
/// ```
/// use ndarray::array;
/// let (loss, doutputs) = trimnet::nn::loss::mse(array![[1.0, 2.0]].view(), array![[0.0, 4.0]].view())?;
/// assert_eq!(loss, 2.5);
/// assert_eq!(doutputs, array![[1.0, -2.0]]);
/// # Ok::<(), trimnet::Error>(())
/// ```
pub fn mse<F: Float>(outputs: ArrayView2<'_, F>, targets: ArrayView2<'_, F>) -> Result<(F, Array2<F>)> {
    check_shape("targets", targets.shape(), outputs.shape())?;
    if outputs.is_empty() {
        return Err(Error::Empty { what: "outputs" });
    }
    let n = outputs.len() as f64;
    let gain = F::of(2.0 / n);
    let mut sum = 0.0;
    let doutputs = Zip::from(outputs).and(targets).map_collect(|&y, &t| {
        let difference = y - t;
        sum += (difference * difference).as_f64();
        difference * gain
    });
    Ok((F::of(sum / n), doutputs))
}

/// One label per row, each below the number of classes.
pub(crate) fn check_labels<F: Float>(logits: ArrayView2<'_, F>, labels: &[usize]) -> Result<()> {
    if logits.is_empty() {
        return Err(Error::Empty { what: "logits" });
    }
    check_shape("labels", &[labels.len()], &[logits.nrows()])?;
    let classes = logits.ncols();
    match labels.iter().enumerate().find(|&(_, &label)| label >= classes) {
        Some((row, &label)) => Err(Error::Label { row, label, classes }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::{assert_abs_diff_eq, assert_relative_eq};
    use ndarray::array;

    /// The largest difference between a gradient and central differences of its loss.
    fn gradient_error(x: &Array2<f64>, dx: &Array2<f64>, loss: impl Fn(ArrayView2<'_, f64>) -> f64) -> f64 {
        let h = 1e-5;
        let mut worst = 0.0_f64;
        for (index, &dx) in dx.indexed_iter() {
            let at = |shift: f64| {
                let mut x = x.clone();
                x[index] += shift;
                loss(x.view())
            };
            worst = worst.max((dx - (at(h) - at(-h)) / (2.0 * h)).abs());
        }
        worst
    }

    #[test]
    fn cross_entropy_has_the_value_of_pytorch() {
        let logits = array![[1.0, 2.0, 3.0], [0.5, -1.0, 0.25]];
        let (loss, _) = cross_entropy(logits.view(), &[2, 0]).unwrap();
        assert_abs_diff_eq!(loss, 0.550859075, epsilon = 1e-9);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let x = array![[0.3, -2.0, 1.1, 0.0], [4.0, 0.2, -0.7, 1.5], [0.0, 0.0, 0.1, -0.1]];
        let labels = [3, 0, 2];
        let (_, dx) = cross_entropy(x.view(), &labels).unwrap();
        assert!(gradient_error(&x, &dx, |x| cross_entropy(x, &labels).unwrap().0) < 1e-9);
        let t = x.mapv(|x| x * x - 1.0);
        let (_, dx) = mse(x.view(), t.view()).unwrap();
        assert!(gradient_error(&x, &dx, |x| mse(x, t.view()).unwrap().0) < 1e-9);
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let (loss, dlogits) =
            cross_entropy(array![[1e30_f32, -1e30], [-3e38, 3e38]].view(), &[0, 0]).unwrap();
        assert!(loss > 1e37);
        assert!(dlogits.iter().all(|d| d.is_finite()), "{dlogits}");
        let (loss, _) = cross_entropy(array![[1000.0_f32, 0.0]].view(), &[0]).unwrap();
        assert_eq!(loss, 0.0);
    }

    #[test]
    fn a_constant_on_all_logits_changes_nothing() {
        let x = array![[0.3_f64, -2.0, 1.1]];
        let (a, da) = cross_entropy(x.view(), &[1]).unwrap();
        let (b, db) = cross_entropy((&x + 100.0).view(), &[1]).unwrap();
        assert_relative_eq!(a, b, epsilon = 1e-12);
        assert_abs_diff_eq!(da, db, epsilon = 1e-12);
        assert_abs_diff_eq!(da.sum(), 0.0, epsilon = 1e-15);
    }

    #[test]
    fn refuses_labels_out_of_range_and_shapes_that_differ() {
        let error = cross_entropy(array![[0.0, 1.0], [0.0, 1.0]].view(), &[1, 2]).unwrap_err();
        assert_eq!(error.to_string(), "label 2 of row 1 is not below the number of classes, 2");
        assert!(matches!(cross_entropy(array![[0.0, 1.0]].view(), &[]), Err(Error::Shape { .. })));
        assert!(matches!(cross_entropy(Array2::<f32>::zeros((0, 2)).view(), &[]), Err(Error::Empty { .. })));
        assert!(matches!(mse(array![[0.0]].view(), array![[0.0, 1.0]].view()), Err(Error::Shape { .. })));
        let empty = Array2::<f64>::zeros((0, 2));
        assert!(matches!(mse(empty.view(), empty.view()), Err(Error::Empty { .. })));
    }

    #[test]
    fn a_nan_among_the_outputs_gives_a_nan_loss() {
        assert!(cross_entropy(array![[f32::NAN, 0.0]].view(), &[1]).unwrap().0.is_nan());
        assert!(mse(array![[f32::NAN]].view(), array![[0.0]].view()).unwrap().0.is_nan());
    }
}
