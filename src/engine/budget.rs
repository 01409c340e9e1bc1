//! Accuracy that an engine may not lose: measured on data with labels, and won back layer by layer where formats are chosen.

use super::element::Element;
use super::network::Engine;
use crate::error::{Error, Result};
use crate::nn::{Dataset, Evaluation, Mlp, evaluate};

/// How far accuracy may fall, and on which data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget<'a, F> {
    pub(super) data: &'a Dataset<F>,
    pub(super) fall: f64,
}

/// A budget, and the accuracy that the network begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judge<'a, F> {
    budget: Budget<'a, F>,
    before: f64,
}

impl<'a, F: Element> Judge<'a, F> {
    pub(super) fn new(budget: Budget<'a, F>, mlp: &Mlp<F>) -> Result<Self> {
        let before = of(evaluate(mlp, budget.data)?)?;
        Ok(Self { budget, before })
    }

    pub(super) fn accuracy(&self, engine: &Engine<F>) -> Result<f64> {
        of(engine.evaluate(self.budget.data)?)
    }

    /// Whether the budget allows this accuracy; what rounding does to shares of rows is forgiven.
    pub(super) fn allows(&self, accuracy: f64) -> bool {
        self.before - accuracy <= self.budget.fall + 1e-12
    }

    /// The error of an engine that is too bad, of which linear layer `layer` is most to blame.
    pub(super) fn refusal(&self, accuracy: f64, layer: usize) -> Error {
        Error::OverBudget { before: self.before, after: accuracy, allowed: self.budget.fall, layer }
    }
}

fn of(evaluation: Evaluation) -> Result<f64> {
    evaluation.accuracy.ok_or_else(|| Error::Unsupported {
        what: "an accuracy budget",
        reason: "its data has no labels; for a regression, Config::with_floor bounds the error of each layer"
            .into(),
    })
}
