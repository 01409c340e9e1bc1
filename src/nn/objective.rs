//! What a network is trained for: from its outputs on a batch to a loss and the gradients of it.

use ndarray::{Array2, ArrayView2};

use super::data::{Batch, Dataset, TargetsView};
use super::loss::{check_labels, cross_entropy, cross_entropy_into, mse};
use super::metrics::predictions;
use super::mlp::Mlp;
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::float::{Float, check_shape};

/// A loss with whatever it needs besides the batch, as a teacher.
pub trait Objective<F: Float> {
    /// Called once before the first step: refuses what does not fit.
    ///
    /// # Errors
    /// Whatever of the network or the data the objective excludes.
    fn begin(&mut self, mlp: &Mlp<F>, data: &Dataset<F>) -> Result<()>;

    /// The layers whose outputs [`evaluate`](Self::evaluate) looks at besides the last; none by default.
    fn hidden_layers(&self) -> &[usize] {
        &[]
    }

    /// The loss of a batch and its gradients, from the `outputs` `[batch, outputs]` and the outputs of the
    /// [`hidden_layers`](Self::hidden_layers).
    ///
    /// # Errors
    /// As the loss itself.
    fn evaluate(
        &mut self,
        outputs: ArrayView2<'_, F>,
        hidden: &[ArrayView2<'_, F>],
        batch: &Batch<'_, F>,
    ) -> Result<Evaluated<F>>;

    /// As [`evaluate`](Self::evaluate), with the gradient by the outputs written to `doutputs` `[batch, outputs]`: what
    /// training calls. Returns the loss and the gradients by the hidden layers.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    fn evaluate_into(
        &mut self,
        outputs: ArrayView2<'_, F>,
        hidden: &[ArrayView2<'_, F>],
        batch: &Batch<'_, F>,
        doutputs: &mut Array2<F>,
    ) -> Result<(F, HiddenGrads<F>)> {
        let evaluated = self.evaluate(outputs, hidden, batch)?;
        *doutputs = evaluated.doutputs;
        Ok((evaluated.loss, evaluated.dhidden))
    }

    /// Moves what the objective itself learns, after the network's own step; nothing by default.
    ///
    /// # Errors
    /// As an optimizer's.
    fn step(&mut self, _learning_rate: f64) -> Result<()> {
        Ok(())
    }

    /// What is doubtful in the settings for a network of this many outputs, in words; kept in the history.
    fn warning(&self, _outputs: usize) -> Option<String> {
        None
    }
}

/// The loss of a batch and its gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated<F> {
    /// The loss, a mean over the batch.
    pub loss: F,
    /// Gradient by the outputs `[batch, outputs]`.
    pub doutputs: Array2<F>,
    /// Gradients by the outputs of layers, as many as [`Objective::hidden_layers`] names.
    pub dhidden: HiddenGrads<F>,
}

/// Gradients by the outputs of layers, each with its layer.
pub type HiddenGrads<F> = Vec<(usize, Array2<F>)>;

/// Softmax cross-entropy with the labels: classification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CrossEntropy;

/// The mean squared error over all elements: regression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MeanSquaredError;

impl<F: Float> Objective<F> for CrossEntropy {
    fn begin(&mut self, mlp: &Mlp<F>, data: &Dataset<F>) -> Result<()> {
        check_classes(mlp, data)
    }

    fn evaluate(
        &mut self,
        outputs: ArrayView2<'_, F>,
        _: &[ArrayView2<'_, F>],
        batch: &Batch<'_, F>,
    ) -> Result<Evaluated<F>> {
        let (loss, doutputs) = cross_entropy(outputs, labels(batch.targets)?)?;
        Ok(Evaluated { loss, doutputs, dhidden: Vec::new() })
    }

    fn evaluate_into(
        &mut self,
        outputs: ArrayView2<'_, F>,
        _: &[ArrayView2<'_, F>],
        batch: &Batch<'_, F>,
        doutputs: &mut Array2<F>,
    ) -> Result<(F, HiddenGrads<F>)> {
        let loss = cross_entropy_into(outputs, labels(batch.targets)?, doutputs.view_mut())?;
        Ok((loss, Vec::new()))
    }
}

impl<F: Float> Objective<F> for MeanSquaredError {
    fn begin(&mut self, mlp: &Mlp<F>, data: &Dataset<F>) -> Result<()> {
        match data.targets() {
            TargetsView::Values(values) => check_values(mlp, values),
            TargetsView::Labels(_) => Err(Error::Unsupported {
                what: "mean squared error",
                reason: "the data set has labels; use cross-entropy, or make it a regression".to_owned(),
            }),
        }
    }

    fn evaluate(
        &mut self,
        outputs: ArrayView2<'_, F>,
        _: &[ArrayView2<'_, F>],
        batch: &Batch<'_, F>,
    ) -> Result<Evaluated<F>> {
        let TargetsView::Values(values) = batch.targets else {
            return Err(Error::Unsupported {
                what: "mean squared error",
                reason: "the batch has labels".to_owned(),
            });
        };
        let (loss, doutputs) = mse(outputs, values)?;
        Ok(Evaluated { loss, doutputs, dhidden: Vec::new() })
    }
}

/// The labels, or why there are none.
pub(crate) fn labels<F>(targets: TargetsView<'_, F>) -> Result<&[usize]> {
    match targets {
        TargetsView::Labels(labels) => Ok(labels),
        TargetsView::Values(_) => Err(Error::Unsupported {
            what: "cross-entropy",
            reason: "the data set is a regression; use the mean squared error".to_owned(),
        }),
    }
}

/// Every label needs an output; the first one without is named.
pub(crate) fn check_classes<F: Float>(mlp: &Mlp<F>, data: &Dataset<F>) -> Result<()> {
    let classes = mlp.outputs();
    match labels(data.targets())?.iter().enumerate().find(|&(_, &label)| label >= classes) {
        Some((row, &label)) => Err(Error::Label { row, label, classes }),
        None => Ok(()),
    }
}

/// Every row of values needs as many as the network has outputs.
fn check_values<F: Float>(mlp: &Mlp<F>, values: ArrayView2<'_, F>) -> Result<()> {
    check_shape("target values", values.shape(), &[values.nrows(), mlp.outputs()])
}

/// How good a network is on a data set.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Evaluation {
    /// The cross-entropy with the labels, or the mean squared error of a regression. In a file for people, as JSON, the word
    /// `"inf"` or `"NaN"` where it is not finite.
    #[cfg_attr(feature = "serde", serde(with = "crate::float::number"))]
    pub loss: f64,
    /// The share of right predictions; `None` for a regression.
    pub accuracy: Option<f64>,
}

/// Rows that are predicted at once.
const CHUNK: usize = 1024;

/// Refuses data that [`evaluate`] cannot measure this network on.
pub(super) fn check_evaluation<F: Float>(mlp: &Mlp<F>, data: &Dataset<F>) -> Result<()> {
    check_shape("validation inputs", data.inputs().shape(), &[data.rows(), mlp.inputs()])?;
    match data.targets() {
        TargetsView::Labels(_) => check_classes(mlp, data),
        TargetsView::Values(values) => check_values(mlp, values),
    }
}

/// Measures a network in inference, a thousand rows at a time.
///
/// # Errors
/// [`Error::Shape`] if inputs or outputs do not fit, [`Error::Label`] for a label without an output.
pub fn evaluate<F: Float>(mlp: &Mlp<F>, data: &Dataset<F>) -> Result<Evaluation> {
    evaluate_with(mlp, data, &mut Workspace::new())
}

/// As [`evaluate`], with threads and memory that are kept from call to call.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_with<F: Float>(
    mlp: &Mlp<F>,
    data: &Dataset<F>,
    workspace: &mut Workspace<F>,
) -> Result<Evaluation> {
    let mut batches = data.batches(CHUNK)?;
    let mut tally = Tally::default();
    while let Some(batch) = batches.next_batch() {
        let outputs = mlp.predict_with(batch.inputs, workspace)?;
        tally.add(outputs.view(), batch.targets)?;
        workspace.recycle(outputs);
    }
    Ok(tally.evaluation())
}

/// What a network says of the batches of a data set, added up.
#[derive(Default)]
pub(crate) struct Tally {
    rows: usize,
    loss: f64,
    right: Option<usize>,
}

impl Tally {
    pub(crate) fn add<F: Float>(
        &mut self,
        outputs: ArrayView2<'_, F>,
        targets: TargetsView<'_, F>,
    ) -> Result<()> {
        let mean = match targets {
            TargetsView::Labels(labels) => {
                check_labels(outputs, labels)?;
                let hits = predictions(outputs).iter().zip(labels).filter(|(a, b)| a == b).count();
                self.right = Some(self.right.unwrap_or(0) + hits);
                cross_entropy(outputs, labels)?.0
            }
            TargetsView::Values(values) => mse(outputs, values)?.0,
        };
        self.loss += mean.as_f64() * outputs.nrows() as f64;
        self.rows += outputs.nrows();
        Ok(())
    }

    pub(crate) fn evaluation(self) -> Evaluation {
        let rows = self.rows as f64;
        Evaluation { loss: self.loss / rows, accuracy: self.right.map(|right| right as f64 / rows) }
    }
}
