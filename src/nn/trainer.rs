//! The training loop: shuffled batches, one optimizer step each, and everything that hangs on it.
//!
//! ```text
//! for each epoch, for each batch in a new random order:
//!     lr    = learning rate at epoch step / (steps per epoch)
//!     g     = d(objective + penalties) / d(parameters);  callbacks;  scaled to the clip norm where it is longer
//!     network <- optimizer(network, g, lr);  callbacks
//! validation; callbacks; early stopping
//! ```
//!
//! The order of the rows and the draws of dropout come from one generator with the trainer's seed: the same seed, data,
//! settings and machine give the same bits, on any number of threads. A step works in the memory of the step before. Batches are equal within one row, without a small rest at the end (see
//! [`Batches`](super::Batches)): batch norm works for every number of rows above one.

use std::ops::ControlFlow;

use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use super::callback::{Callback, Step};
use super::data::{Dataset, count};
use super::grads::Grads;
use super::history::{Epoch, History, Stop};
use super::mlp::Mlp;
use super::objective::{Evaluation, Objective, check_evaluation, evaluate_with};
use super::optimizer::Optimizer;
use super::schedule::LearningRate;
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::regularize::Penalty;

/// What early stopping watches on the validation part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Watch {
    /// The loss, which should fall.
    Loss,
    /// The accuracy, which should rise; equal accuracies are told apart by the loss.
    Accuracy,
}

/// Ends training when validation has not improved for `patience` epochs, and restores the best weights, also when the
/// epochs run out first.
///
/// An epoch whose validation loss is NaN improves nothing and is never the best. Without any other the network stays as the
/// last step left it, and [`History::best_epoch`] is `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EarlyStopping {
    watch: Watch,
    patience: usize,
    after: usize,
}

impl EarlyStopping {
    /// Allows `patience` epochs in a row without improvement and stops at the next one.
    pub fn new(watch: Watch, patience: usize) -> Self {
        Self { watch, patience, after: 0 }
    }

    /// Looks away for the first `epochs`: while a pruning schedule is still removing weights, the best network is one
    /// that is not sparse enough yet.
    pub fn after(self, epochs: usize) -> Self {
        Self { after: epochs, ..self }
    }
}

/// The settings of a training loop.
///
/// ```
/// use ndarray::array;
/// use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::nn::{CrossEntropy, Dataset, LearningRate, Mlp, Sgd, Trainer, evaluate};
///
/// let xor = Dataset::classification(array![[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], vec![0, 1, 1, 0])?;
/// let mut mlp = Mlp::builder(2).linear(16).tanh().linear(2).build::<f64>(&mut Xoshiro256PlusPlus::seed_from_u64(1))?;
/// let trainer = Trainer::new(200, 4)?.with_learning_rate(LearningRate::constant(0.5)?);
/// trainer.fit(&mut mlp, &mut CrossEntropy, &xor, None, &mut Sgd::new(), &mut [])?;
/// assert_eq!(evaluate(&mlp, &xor)?.accuracy, Some(1.0));
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw"))]
pub struct Trainer {
    epochs: usize,
    batch: usize,
    seed: u64,
    learning_rate: LearningRate,
    penalties: Vec<Penalty>,
    clip_norm: Option<f64>,
    early_stopping: Option<EarlyStopping>,
    threads: Option<usize>,
}

impl Trainer {
    /// `epochs` passes over the data in batches of `batch` rows, at a learning rate of 0.001 and with seed 0. With
    /// `usize::MAX` epochs, early stopping or a callback ends the training.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a batch of 0 rows.
    pub fn new(epochs: usize, batch: usize) -> Result<Self> {
        Self {
            epochs,
            batch,
            seed: 0,
            learning_rate: LearningRate::constant(0.001)?,
            penalties: Vec::new(),
            clip_norm: None,
            early_stopping: None,
            threads: None,
        }
        .checked()
    }

    /// Another seed for the order of the rows and the draws of dropout.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Another learning rate.
    pub fn with_learning_rate(self, learning_rate: LearningRate) -> Self {
        Self { learning_rate, ..self }
    }

    /// One more price on the weights of all linear layers; biases, gammas and betas stay free.
    pub fn with_penalty(mut self, penalty: Penalty) -> Self {
        self.penalties.push(penalty);
        self
    }

    /// Scales the gradients of all parameters together down to the L2 norm `max` where it is longer.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `max` is finite and positive.
    pub fn with_clip_norm(self, max: f64) -> Result<Self> {
        Self { clip_norm: Some(max), ..self }.checked()
    }

    /// Stops early, and restores the best weights.
    pub fn with_early_stopping(self, early_stopping: EarlyStopping) -> Self {
        Self { early_stopping: Some(early_stopping), ..self }
    }

    /// So many threads for the steps, the caller's included; all cores unless said. The numbers are the same for any
    /// number of threads, and small networks use one.
    ///
    /// An objective that runs a network of its own has its own setting.
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads: Some(threads), ..self }
    }

    /// Steps of one epoch over this data, for schedules that count steps.
    pub fn steps_per_epoch<F: Float>(&self, data: &Dataset<F>) -> usize {
        count(data.rows(), self.batch)
    }

    /// Trains `mlp` for the objective on `data`, measuring `validation` after each epoch.
    ///
    /// The optimizer keeps its state: pass the same one again to go on, a fresh one to start over. After early stopping
    /// restored earlier weights, it still has the momentum of the last step. All else starts over at each call: epochs and
    /// steps count from 0, the learning rate begins its schedule, and the rows come in the order of the seed; go on with
    /// [another seed](Self::with_seed) for another order.
    ///
    /// # Errors
    /// [`Error::Diverged`] if the loss of a batch is NaN or infinite, with the network as it was before that step (but for
    /// the running statistics of batch norm); the same with an infinite loss if a parameter is NaN or infinite at the end of
    /// an epoch, with the network as it is. [`Error::Shape`], [`Error::Label`] or [`Error::Unsupported`] if data, validation
    /// part and network do not fit, or for early stopping without a validation part, before anything has changed; and
    /// whatever the objective, the optimizer or a callback returns.
    pub fn fit<F: Float>(
        &self,
        mlp: &mut Mlp<F>,
        objective: &mut dyn Objective<F>,
        data: &Dataset<F>,
        validation: Option<&Dataset<F>>,
        optimizer: &mut dyn Optimizer<F>,
        callbacks: &mut [&mut dyn Callback<F>],
    ) -> Result<History> {
        check_shape("inputs", &[data.rows(), data.features()], &[data.rows(), mlp.inputs()])?;
        if let Some(validation) = validation {
            check_evaluation(mlp, validation)?;
        }
        objective.begin(mlp, data)?;
        let mut best = self.early_stopping.map(Best::new);
        if best.is_some() && validation.is_none() {
            return Err(Error::Unsupported {
                what: "early stopping",
                reason: "it needs a validation part to watch; Dataset::split makes one".to_owned(),
            });
        }
        let mut history = History {
            epochs: Vec::new(),
            stop: Stop::Finished,
            best_epoch: None,
            warnings: objective.warning(mlp.outputs()).into_iter().collect(),
        };
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(self.seed);
        let mut workspace = self.threads.map_or_else(Workspace::new, Workspace::with_threads);
        let mut batches = data.batches(self.batch)?;
        let steps_per_epoch = self.steps_per_epoch(data);
        let mut step = 0;
        for epoch in 0..self.epochs {
            batches.shuffle(&mut rng);
            let (mut loss_sum, mut rows, mut learning_rate) = (0.0, 0, 0.0);
            let mut flow = ControlFlow::Continue(());
            while let Some(batch) = batches.next_batch() {
                learning_rate = self.learning_rate.at(step as f64 / steps_per_epoch as f64);
                let (outputs, cache) =
                    mlp.pass(batch.inputs, objective.hidden_layers(), &mut rng, &mut workspace)?;
                let hidden: Vec<_> =
                    objective.hidden_layers().iter().filter_map(|&layer| cache.hidden(layer)).collect();
                let mut doutputs = workspace.array(outputs.nrows(), outputs.ncols());
                let (loss, dhidden) =
                    objective.evaluate_into(outputs.view(), &hidden, &batch, &mut doutputs)?;
                workspace.recycle(outputs);
                let loss = loss.as_f64();
                if !loss.is_finite() {
                    return Err(Error::Diverged { epoch, step, loss });
                }
                let mut grads = mlp.pass_back(cache, batch.inputs, doutputs, &dhidden, &mut workspace)?;
                self.add_penalties(mlp, &mut grads)?;
                let steps = self.epochs.saturating_mul(steps_per_epoch);
                let at = Step { step, steps, epoch, loss, learning_rate };
                for callback in callbacks.iter_mut() {
                    callback.on_grads(mlp, &mut grads, &at)?;
                }
                self.clip(&mut grads);
                optimizer.step_on(mlp, &grads, learning_rate, &workspace.pool(usize::MAX))?;
                workspace.recycle_grads(grads);
                objective.step(learning_rate)?;
                loss_sum += loss * batch.rows.len() as f64;
                rows += batch.rows.len();
                step += 1;
                for callback in callbacks.iter_mut() {
                    if callback.on_step(mlp, &at)?.is_break() {
                        flow = ControlFlow::Break(());
                    }
                }
                if flow.is_break() {
                    break;
                }
            }
            // A step that overflows is seen by the loss of the next one: not after the last, nor behind a relu.
            if !mlp.has_finite_parameters() {
                return Err(Error::Diverged { epoch, step: step.saturating_sub(1), loss: f64::INFINITY });
            }
            let record = Epoch {
                epoch,
                loss: loss_sum / rows as f64,
                penalty: self.penalty(mlp),
                learning_rate,
                validation: validation.map(|data| evaluate_with(mlp, data, &mut workspace)).transpose()?,
            };
            for callback in callbacks.iter_mut() {
                if callback.on_epoch(mlp, &record)?.is_break() {
                    flow = ControlFlow::Break(());
                }
            }
            let patient = match (&mut best, record.validation) {
                (Some(best), Some(validation)) => best.see(epoch, validation, mlp),
                _ => true,
            };
            history.epochs.push(record);
            if flow.is_break() {
                history.stop = Stop::Callback;
                break;
            }
            if !patient {
                history.stop = Stop::NoImprovement;
                break;
            }
        }
        if let Some((epoch, _, weights)) = best.and_then(|best| best.found) {
            *mlp = weights;
            history.best_epoch = Some(epoch);
        }
        Ok(history)
    }

    fn penalty<F: Float>(&self, mlp: &Mlp<F>) -> f64 {
        let of = |penalty: &Penalty| {
            mlp.linears().map(|linear| penalty.value(linear.weight()).as_f64()).sum::<f64>()
        };
        // The sum of nothing is -0.
        self.penalties.iter().map(of).sum::<f64>() + 0.0
    }

    fn add_penalties<F: Float>(&self, mlp: &Mlp<F>, grads: &mut Grads<F>) -> Result<()> {
        for penalty in &self.penalties {
            for (linear, dweight) in mlp.linears().zip(grads.dweights_mut()) {
                penalty.add_gradient(linear.weight(), dweight)?;
            }
        }
        Ok(())
    }

    fn clip<F: Float>(&self, grads: &mut Grads<F>) {
        if let Some(max) = self.clip_norm {
            let norm = grads.norm();
            // Nothing brings infinite gradients to a length: the optimizer refuses them by name.
            if norm > max && norm.is_finite() {
                grads.scale(F::of(max / norm));
            }
        }
    }

    fn checked(self) -> Result<Self> {
        if self.batch == 0 {
            return Err(Error::OutOfRange { name: "batch size", value: 0.0, range: "batch size >= 1" });
        }
        match self.clip_norm {
            Some(max) if !(max > 0.0 && max.is_finite()) => {
                Err(Error::OutOfRange { name: "clip norm", value: max, range: "0 < clip norm, finite" })
            }
            _ => Ok(self),
        }
    }
}

/// The best network so far, and when it was.
struct Best<F> {
    settings: EarlyStopping,
    found: Option<(usize, Evaluation, Mlp<F>)>,
}

impl<F: Float> Best<F> {
    fn new(settings: EarlyStopping) -> Self {
        Self { settings, found: None }
    }

    /// Takes in an epoch; false when patience is at an end.
    fn see(&mut self, epoch: usize, validation: Evaluation, mlp: &Mlp<F>) -> bool {
        if epoch < self.settings.after {
            return true;
        }
        if self.settings.watch.improves(validation, self.found.as_ref().map(|&(_, best, _)| best)) {
            self.found = Some((epoch, validation, mlp.clone()));
            return true;
        }
        let vain = match self.found {
            Some((at, ..)) => epoch - at,
            None => epoch - self.settings.after + 1,
        };
        vain <= self.settings.patience
    }
}

impl Watch {
    /// Whether `new` is better than the best so far; a NaN never is.
    fn improves(self, new: Evaluation, best: Option<Evaluation>) -> bool {
        match (self, best) {
            _ if new.loss.is_nan() => false,
            (_, None) => true,
            (Self::Accuracy, Some(best)) if new.accuracy != best.accuracy => new.accuracy > best.accuracy,
            (Self::Accuracy | Self::Loss, Some(best)) => new.loss < best.loss,
        }
    }
}

/// The wire form of [`Trainer`], checked on the way in.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw {
    epochs: usize,
    batch: usize,
    seed: u64,
    learning_rate: LearningRate,
    penalties: Vec<Penalty>,
    clip_norm: Option<f64>,
    early_stopping: Option<EarlyStopping>,
    #[serde(default)]
    threads: Option<usize>,
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for Trainer {
    type Error = Error;

    fn try_from(raw: Raw) -> Result<Self> {
        let Raw { epochs, batch, seed, learning_rate, penalties, clip_norm, early_stopping, threads } = raw;
        Self { epochs, batch, seed, learning_rate, penalties, clip_norm, early_stopping, threads }.checked()
    }
}
