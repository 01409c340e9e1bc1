//! What training makes small: a loss over a batch, and its gradient by the network's outputs.
//!
//! ```text
//! cross-entropy          L = mean_rows( logsumexp(z) - z[label] )     dL/dz = (softmax(z) - onehot) / rows
//! mean squared error     L = mean_elements( (y - t)^2 )               dL/dy = 2 (y - t) / (rows * outputs)
//! ```
//!
//! The mean of the squared error is over all elements, as PyTorch's `MSELoss`, not a sum over outputs. A NaN among the
//! outputs gives a NaN loss; the trainer turns that into an error with the step in it.

use ndarray::{Array2, ArrayView2, ArrayViewMut1, Zip};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};

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
    check_labels(logits, labels)?;
    let rows = F::of(logits.nrows() as f64);
    let mut dlogits = logits.to_owned(); // [rows, classes]
    let mut sum = 0.0;
    for (mut z, &label) in dlogits.rows_mut().into_iter().zip(labels) {
        log_softmax(z.view_mut());
        for (class, z) in z.iter_mut().enumerate() {
            if class == label {
                sum -= z.as_f64();
                *z = (z.exp() - F::one()) / rows;
            } else {
                *z = z.exp() / rows;
            }
        }
    }
    Ok((F::of(sum / logits.nrows() as f64), dlogits))
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

/// Turns a row of logits `z` into `z - logsumexp(z)` in place.
///
/// The maximum is taken off first, so that no exponential overflows.
pub(crate) fn log_softmax<F: Float>(mut z: ArrayViewMut1<'_, F>) {
    let max = z.iter().fold(F::neg_infinity(), |max, &z| max.max(z));
    let mut sum = F::zero();
    for z in &mut z {
        *z -= max;
        sum += z.exp();
    }
    let log_sum = sum.ln();
    z.mapv_inplace(|z| z - log_sum);
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
