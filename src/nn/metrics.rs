//! How often a network is right.
//!
//! ```text
//! prediction[row] = the class of the largest logit; among equals the lowest class; NaN loses to any number
//! accuracy        = right / rows
//! precision[c]    = right among those predicted c       recall[c] = right among those that are c
//! ```

use ndarray::{Array2, ArrayView2};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::nn::loss::check_labels;

/// The predicted class of each row of `logits` `[rows, classes]`.
pub fn predictions<F: Float>(logits: ArrayView2<'_, F>) -> Vec<usize> {
    let largest = |row: ndarray::ArrayView1<'_, F>| {
        let mut best = (0, F::neg_infinity());
        for (class, &logit) in row.iter().enumerate() {
            if logit > best.1 {
                best = (class, logit);
            }
        }
        best.0
    };
    logits.rows().into_iter().map(largest).collect()
}

/// The share of rows of `logits` `[rows, classes]` whose prediction is the label.
///
/// # Errors
/// [`Error::Empty`] without rows or classes, [`Error::Shape`] for another number of labels, [`Error::Label`] for a label
/// that is not below the number of classes.
///
/// ```
/// use ndarray::array;
/// use trimnet::nn::metrics::accuracy;
/// assert_eq!(accuracy(array![[0.1, 0.9], [0.5, 0.5]].view(), &[1, 1])?, 0.5);
/// # Ok::<(), trimnet::Error>(())
/// ```
pub fn accuracy<F: Float>(logits: ArrayView2<'_, F>, labels: &[usize]) -> Result<f64> {
    check_labels(logits, labels)?;
    let right = predictions(logits).iter().zip(labels).filter(|(a, b)| a == b).count();
    Ok(right as f64 / labels.len() as f64)
}

/// How often each class was taken for each other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ConfusionMatrix {
    counts: Array2<usize>,
}

impl ConfusionMatrix {
    /// Counts the predictions of `logits` `[rows, classes]` against the labels.
    ///
    /// # Errors
    /// As [`accuracy`].
    pub fn new<F: Float>(logits: ArrayView2<'_, F>, labels: &[usize]) -> Result<Self> {
        check_labels(logits, labels)?;
        Self::of_predictions(&predictions(logits), labels, logits.ncols())
    }

    /// Counts predicted classes against the labels, both below `classes`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the numbers differ, [`Error::Label`] for a class out of range.
    pub fn of_predictions(predictions: &[usize], labels: &[usize], classes: usize) -> Result<Self> {
        check_shape("predictions", &[predictions.len()], &[labels.len()])?;
        let mut counts = Array2::zeros((classes, classes));
        for (row, (&prediction, &label)) in predictions.iter().zip(labels).enumerate() {
            match counts.get_mut((label, prediction)) {
                Some(count) => *count += 1,
                None => return Err(Error::Label { row, label: label.max(prediction), classes }),
            }
        }
        Ok(Self { counts })
    }

    /// Counts `[label, prediction]`.
    pub fn counts(&self) -> ArrayView2<'_, usize> {
        self.counts.view()
    }

    /// The share of rows on the diagonal; 0 without rows.
    pub fn accuracy(&self) -> f64 {
        share(self.counts.diag().sum(), self.counts.sum()).unwrap_or(0.0)
    }

    /// Of the rows that were predicted as each class, the share that is of it; `None` for a class never predicted.
    pub fn precision(&self) -> Vec<Option<f64>> {
        let right = self.counts.diag();
        self.counts
            .columns()
            .into_iter()
            .zip(right)
            .map(|(column, &right)| share(right, column.sum()))
            .collect()
    }

    /// Of the rows of each class, the share that was predicted as it; `None` for a class without rows.
    pub fn recall(&self) -> Vec<Option<f64>> {
        let right = self.counts.diag();
        self.counts.rows().into_iter().zip(right).map(|(row, &right)| share(right, row.sum())).collect()
    }
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn ties_go_to_the_lowest_class_and_nan_never_wins() {
        let logits = array![[1.0, 1.0, 0.0], [f32::NAN, -3.0, -2.0], [f32::NAN; 3], [0.0, 2.0, f32::NAN]];
        assert_eq!(predictions(logits.view()), [0, 2, 0, 1]);
    }

    #[test]
    fn counts_who_was_taken_for_whom() {
        let matrix = ConfusionMatrix::of_predictions(&[0, 1, 1, 0], &[0, 1, 0, 0], 3).unwrap();
        assert_eq!(matrix.counts(), array![[2, 1, 0], [0, 1, 0], [0, 0, 0]]);
        assert_eq!(matrix.accuracy(), 0.75);
        assert_eq!(matrix.precision(), [Some(1.0), Some(0.5), None]);
        assert_eq!(matrix.recall(), [Some(2.0 / 3.0), Some(1.0), None]);
    }

    #[test]
    fn refuses_classes_out_of_range() {
        assert!(matches!(
            ConfusionMatrix::of_predictions(&[2], &[0], 2),
            Err(Error::Label { row: 0, label: 2, classes: 2 })
        ));
        assert!(matches!(accuracy(array![[0.0, 1.0]].view(), &[2]), Err(Error::Label { .. })));
        assert!(matches!(ConfusionMatrix::of_predictions(&[], &[0], 2), Err(Error::Shape { .. })));
    }
}
