//! Distillation as a training objective: labels, the teacher's outputs, and hints on hidden layers, added up.
//!
//! ```text
//! logits   hard * CE(student, labels)   + soft * T^2 * KL(teacher || student)     classification
//! values   hard * loss(student, target) + soft * MSE(student, teacher)            regression, or bare logits
//! ```
//!
//! The teacher is a network that is asked batch by batch, or outputs that were computed once, row for row. Its own widths
//! do not matter: only the number of outputs has to be the student's.

use ndarray::{Array2, ArrayView2, Zip};

use super::hint::{Hint, Source};
use super::loss::{KdLoss, KdWeights};
use crate::error::Result;
use crate::float::{Float, check_shape};
use crate::nn::frozen::Frozen;
use crate::nn::loss::{cross_entropy, mse};
use crate::nn::{
    Batch, CrossEntropy, Dataset, Evaluated, HiddenGrads, MeanSquaredError, Mlp, Objective, TargetsView,
    Workspace,
};

/// How the outputs of student and teacher are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Compare {
    /// As softened class probabilities.
    Logits(KdLoss),
    /// As plain numbers, by their mean squared error. The targets' own loss is the mean squared error for a regression
    /// and the cross-entropy for labels (then the logits are matched: Ba & Caruana, 2014).
    Values(KdWeights),
}

impl From<KdLoss> for Compare {
    fn from(loss: KdLoss) -> Self {
        Self::Logits(loss)
    }
}

impl From<KdWeights> for Compare {
    fn from(weights: KdWeights) -> Self {
        Self::Values(weights)
    }
}

/// Learning from a teacher.
///
/// ```
/// use ndarray::array;
/// use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::distill::{Distillation, KdLoss};
/// use trimnet::nn::{Adam, Dataset, Mlp, Trainer};
///
/// let rng = &mut Xoshiro256PlusPlus::seed_from_u64(1);
/// let teacher = Mlp::builder(2).linear(16).relu().linear(2).build::<f32>(rng)?;
/// let mut student = Mlp::builder(2).linear(4).relu().linear(2).build::<f32>(rng)?;
/// let data = Dataset::classification(array![[0.0, 1.0], [1.0, 0.0]], vec![0, 1])?;
///
/// let outputs = teacher.predict(data.inputs())?; // once, for all epochs
/// let mut objective = Distillation::cached(outputs, KdLoss::new(4.0, 0.5)?)?;
/// Trainer::new(10, 2)?.fit(&mut student, &mut objective, &data, None, &mut Adam::new(), &mut [])?;
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Distillation<'t, F: Float> {
    source: Source<'t, F>,
    compare: Compare,
    hints: Vec<Hint<'t, F>>,
    layers: Vec<usize>,
    workspace: Workspace<F>,
}

impl<'t, F: Float> Distillation<'t, F> {
    /// Asks the teacher, in inference, about every batch.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a weight that is negative, or a setting out of the range of the
    /// element type.
    pub fn live(teacher: &'t Mlp<F>, compare: impl Into<Compare>) -> Result<Self> {
        Self::new(Source::Live(Frozen::new(teacher, None)?), compare.into())
    }

    /// Uses what a teacher of any kind said about each row of the data set, `[rows, outputs]`: each row is computed once
    /// instead of once per epoch.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a weight that is negative, or a setting out of the range of the
    /// element type.
    pub fn cached(outputs: Array2<F>, compare: impl Into<Compare>) -> Result<Self> {
        Self::new(Source::Cached(outputs), compare.into())
    }

    /// Compares a hidden layer too; the loss of the hint is added.
    pub fn with_hint(mut self, hint: Hint<'t, F>) -> Self {
        self.layers.push(hint.layer());
        self.hints.push(hint);
        self
    }

    fn new(source: Source<'t, F>, compare: Compare) -> Result<Self> {
        match compare {
            Compare::Logits(loss) => loss.check::<F>()?,
            Compare::Values(weights) => weights.check::<F>()?,
        }
        let workspace = Workspace::new();
        Ok(Self { source, compare, hints: Vec::new(), layers: Vec::new(), workspace })
    }

    /// So many threads for the teacher, the caller's included; all cores unless said.
    pub fn with_threads(self, threads: usize) -> Self {
        Self { workspace: Workspace::with_threads(threads), ..self }
    }

    /// The loss of the outputs against teacher and targets, and its gradient.
    fn compare(
        &self,
        outputs: ArrayView2<'_, F>,
        teacher: ArrayView2<'_, F>,
        batch: &Batch<'_, F>,
        doutputs: &mut Array2<F>,
    ) -> Result<F> {
        let weights = self.weights();
        let (hard_gain, soft_gain) = (F::of(weights.hard), F::of(weights.soft));
        if let (Compare::Logits(loss), TargetsView::Labels(labels)) = (self.compare, batch.targets)
            && weights.hard > 0.0
        {
            let (hard, soft) = loss.evaluate_into(outputs, teacher, labels, doutputs)?;
            return Ok(hard * hard_gain + soft * soft_gain);
        }
        let (soft, dsoft) = match self.compare {
            Compare::Logits(loss) => loss.soft(outputs, teacher)?,
            Compare::Values(_) => mse(outputs, teacher)?,
        };
        *doutputs = dsoft * soft_gain;
        let mut loss = soft * soft_gain;
        if weights.hard > 0.0 {
            let (hard, dhard) = match batch.targets {
                TargetsView::Labels(labels) => cross_entropy(outputs, labels)?,
                TargetsView::Values(values) => mse(outputs, values)?,
            };
            loss += hard * hard_gain;
            Zip::from(doutputs).and(&dhard).for_each(|d, &h| *d += h * hard_gain);
        }
        Ok(loss)
    }

    fn weights(&self) -> KdWeights {
        match self.compare {
            Compare::Logits(loss) => loss.weights(),
            Compare::Values(weights) => weights,
        }
    }
}

impl<F: Float> Objective<F> for Distillation<'_, F> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if teacher and student differ in inputs or outputs, if there are not as many cached rows as the
    /// data has, or if two hinted layers differ in width without a regressor; [`Error::NotFinite`](crate::Error::NotFinite) for cached outputs
    /// that are not finite; as the loss of the targets, unless their weight is 0.
    fn begin(&mut self, student: &Mlp<F>, data: &Dataset<F>) -> Result<()> {
        let outputs = self.source.check(data)?;
        check_shape("outputs of the teacher", &[outputs], &[student.outputs()])?;
        // Without a weight on the targets, they need not fit: unlabelled rows with any label will do.
        if self.weights().hard > 0.0 {
            match (self.compare, data.targets()) {
                (Compare::Values(_), TargetsView::Values(_)) => MeanSquaredError.begin(student, data)?,
                _ => CrossEntropy.begin(student, data)?,
            }
        }
        self.hints.iter_mut().try_for_each(|hint| hint.begin(student, data))
    }

    fn hidden_layers(&self) -> &[usize] {
        &self.layers
    }

    fn evaluate(
        &mut self,
        outputs: ArrayView2<'_, F>,
        hidden: &[ArrayView2<'_, F>],
        batch: &Batch<'_, F>,
    ) -> Result<Evaluated<F>> {
        let mut doutputs = Array2::zeros(outputs.raw_dim());
        let (loss, dhidden) = self.evaluate_into(outputs, hidden, batch, &mut doutputs)?;
        Ok(Evaluated { loss, doutputs, dhidden })
    }

    fn evaluate_into(
        &mut self,
        outputs: ArrayView2<'_, F>,
        hidden: &[ArrayView2<'_, F>],
        batch: &Batch<'_, F>,
        doutputs: &mut Array2<F>,
    ) -> Result<(F, HiddenGrads<F>)> {
        let teacher = self.source.of(batch, &mut self.workspace)?; // [batch, outputs]
        let mut loss = self.compare(outputs, teacher.view(), batch, doutputs)?;
        self.workspace.recycle(teacher);
        let mut dhidden = Vec::with_capacity(self.hints.len());
        for (hint, hidden) in self.hints.iter_mut().zip(hidden) {
            let (hint_loss, d) = hint.evaluate(*hidden, batch, &mut self.workspace)?;
            loss += hint_loss;
            dhidden.push((hint.layer(), d));
        }
        Ok((loss, dhidden))
    }

    fn step(&mut self, learning_rate: f64) -> Result<()> {
        self.hints.iter_mut().try_for_each(|hint| hint.step(learning_rate))
    }

    fn warning(&self, outputs: usize) -> Option<String> {
        match self.compare {
            Compare::Logits(loss) => loss.warning(outputs),
            Compare::Values(_) => None,
        }
    }
}
