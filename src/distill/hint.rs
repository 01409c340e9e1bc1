//! Hints: a hidden layer of the student learns to look like one of the teacher's.
//!
//! ```text
//! L = weight * mean_elements( (r(h_student) - h_teacher)^2 )
//! ```
//!
//! `r` is the identity where both layers have the same width, else a regressor: a linear layer from the student's width to
//! the teacher's that learns along (by Adam, at the trainer's learning rate) and is thrown away in the end. Romero et al.,
//! "FitNets: Hints for Thin Deep Nets", ICLR 2015.

use ndarray::{Array2, ArrayView2};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use super::loss::check_weight;
use crate::error::{Error, Result};
use crate::float::{Float, check_finite, check_shape};
use crate::nn::frozen::Frozen;
use crate::nn::loss::mse;
use crate::nn::{Adam, Batch, Dataset, Grads, Layer, Mlp, Optimizer, Workspace};

/// Where the teacher's side of a comparison comes from.
#[derive(Clone, Debug)]
pub(super) enum Source<'t, F: Float> {
    /// A network, asked batch by batch.
    Live(Frozen<'t, F>),
    /// What it said about every row of the data set.
    Cached(Array2<F>),
}

impl<F: Float> Source<'_, F> {
    /// Refuses a source that does not fit the data, and returns its width.
    pub(super) fn check(&self, data: &Dataset<F>) -> Result<usize> {
        match self {
            Self::Live(teacher) => {
                check_shape("inputs of the teacher", &[teacher.inputs()], &[data.features()])?;
                teacher.outputs()
            }
            Self::Cached(values) => {
                let width = values.ncols();
                check_shape("cached outputs of the teacher", values.shape(), &[data.rows(), width])?;
                check_finite("cached outputs of the teacher", &values.view())?;
                Ok(width)
            }
        }
    }

    /// The teacher's side for the rows of this batch.
    pub(super) fn of(&self, batch: &Batch<'_, F>, workspace: &mut Workspace<F>) -> Result<Array2<F>> {
        match self {
            Self::Live(teacher) => teacher.predict_with(batch.inputs, workspace),
            Self::Cached(values) => match batch.rows.iter().find(|&&row| row >= values.nrows()) {
                Some(&row) => Err(Error::OutOfRange {
                    name: "row",
                    value: row as f64,
                    range: "a row of the cached outputs",
                }),
                None => {
                    let mut outputs = workspace.array(batch.rows.len(), values.ncols());
                    for (&row, mut to) in batch.rows.iter().zip(outputs.rows_mut()) {
                        to.assign(&values.row(row));
                    }
                    Ok(outputs)
                }
            },
        }
    }
}

/// Compares a hidden layer of the student with one of the teacher.
#[derive(Clone, Debug)]
pub struct Hint<'t, F: Float> {
    layer: usize,
    source: Source<'t, F>,
    weight: f64,
    regressor_seed: Option<u64>,
    regressor: Option<Regressor<F>>,
}

/// The linear layer between the two widths, and what it takes to train it.
#[derive(Clone, Debug)]
struct Regressor<F> {
    mlp: Mlp<F>,
    adam: Adam<F>,
    grads: Option<Grads<F>>,
}

impl<'t, F: Float> Hint<'t, F> {
    /// Compares the output of the student's layer at `layer` with that of the teacher's at `teacher_layer`, asked batch
    /// by batch; both count all layers, activations too, from 0.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `weight` is finite, also in the element type, and not negative, or if the teacher has
    /// no such layer.
    pub fn live(layer: usize, teacher: &'t Mlp<F>, teacher_layer: usize, weight: f64) -> Result<Self> {
        Self::new(layer, Source::Live(Frozen::new(teacher, Some(teacher_layer))?), weight)
    }

    /// Compares with what the teacher's layer gave for every row of the data set `[rows, width]`, as
    /// [`Mlp::hidden`] computes it.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `weight` is finite, also in the element type, and not negative.
    pub fn cached(layer: usize, hidden: Array2<F>, weight: f64) -> Result<Self> {
        Self::new(layer, Source::Cached(hidden), weight)
    }

    /// Allows two layers of different widths: a linear layer between them learns along.
    pub fn with_regressor(self, seed: u64) -> Self {
        Self { regressor_seed: Some(seed), ..self }
    }

    /// The student's layer.
    pub fn layer(&self) -> usize {
        self.layer
    }

    fn new(layer: usize, source: Source<'t, F>, weight: f64) -> Result<Self> {
        check_weight::<F>("hint weight", weight)?;
        Ok(Self { layer, source, weight, regressor_seed: None, regressor: None })
    }

    /// Refuses what does not fit, and makes the regressor.
    pub(super) fn begin(&mut self, student: &Mlp<F>, data: &Dataset<F>) -> Result<()> {
        let (from, to) = (width(student, self.layer)?, self.source.check(data)?);
        let Some(seed) = self.regressor_seed else {
            return check_shape("hidden layer of the teacher", &[to], &[from]);
        };
        // One that has learnt already goes on when the same student is trained again.
        if self.regressor.as_ref().is_none_or(|r| r.mlp.widths() != [from, to]) {
            let mlp = Mlp::builder(from).linear(to).build(&mut Xoshiro256PlusPlus::seed_from_u64(seed))?;
            self.regressor = Some(Regressor { mlp, adam: Adam::new(), grads: None });
        }
        Ok(())
    }

    /// The weighted loss, and its gradient by the student's hidden layer.
    pub(super) fn evaluate(
        &mut self,
        hidden: ArrayView2<'_, F>,
        batch: &Batch<'_, F>,
        workspace: &mut Workspace<F>,
    ) -> Result<(F, Array2<F>)> {
        let target = self.source.of(batch, workspace)?;
        let weight = F::of(self.weight);
        let Some(regressor) = &mut self.regressor else {
            let (loss, dhidden) = mse(hidden, target.view())?;
            return Ok((loss * weight, dhidden * weight));
        };
        // A linear layer draws nothing from the generator.
        let (y, cache) = regressor.mlp.forward(hidden, &mut Xoshiro256PlusPlus::seed_from_u64(0))?;
        let (loss, dy) = mse(y.view(), target.view())?;
        let (dhidden, grads) = regressor.mlp.backward(cache, dy * weight)?;
        regressor.grads = Some(grads);
        Ok((loss * weight, dhidden))
    }

    /// Moves the regressor.
    pub(super) fn step(&mut self, learning_rate: f64) -> Result<()> {
        match &mut self.regressor {
            Some(Regressor { mlp, adam, grads }) => match grads.take() {
                Some(grads) => adam.step(mlp, &grads, learning_rate),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }
}

/// Features that leave the layer at `layer`.
fn width<F: Float>(mlp: &Mlp<F>, layer: usize) -> Result<usize> {
    match mlp.layers().get(..=layer) {
        Some(layers) => layers.iter().try_fold(mlp.inputs(), |width, layer: &Layer<F>| layer.outputs(width)),
        None => {
            Err(Error::OutOfRange { name: "layer", value: layer as f64, range: "a layer of the network" })
        }
    }
}
