//! What happened during training, epoch by epoch.

use super::objective::Evaluation;

/// One epoch. In a file for people, as JSON, a number that is infinite or NaN is the word `"inf"`, `"-inf"` or `"NaN"`.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Epoch {
    /// Number of the epoch, from 0.
    pub epoch: usize,
    /// The objective, averaged over the rows while they were learnt from; without penalties.
    #[cfg_attr(feature = "serde", serde(with = "crate::float::number"))]
    pub loss: f64,
    /// The penalties on the weights at the end of the epoch.
    #[cfg_attr(feature = "serde", serde(with = "crate::float::number"))]
    pub penalty: f64,
    /// The learning rate of the last step.
    pub learning_rate: f64,
    /// The validation part at the end of the epoch, where one was given.
    pub validation: Option<Evaluation>,
}

/// Why training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Stop {
    /// All epochs were done.
    Finished,
    /// Validation did not improve for as many epochs as early stopping allows.
    NoImprovement,
    /// A callback asked for it.
    Callback,
}

/// All epochs, and how training ended.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct History {
    /// The epochs, the last one perhaps cut short by a callback.
    pub epochs: Vec<Epoch>,
    /// Why training ended.
    pub stop: Stop,
    /// The epoch whose weights the network has now, if early stopping chose them.
    pub best_epoch: Option<usize>,
    /// What is doubtful in the settings.
    pub warnings: Vec<String>,
}

impl History {
    /// The loss of the last epoch; `None` without epochs.
    pub fn loss(&self) -> Option<f64> {
        self.epochs.last().map(|epoch| epoch.loss)
    }
}
