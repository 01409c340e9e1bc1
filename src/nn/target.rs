//! Neurons pruned until the network is as small as it has to be, in a unit that says what small means.
//!
//! A share of neurons is not the same share of parameters: half of the neurons of two layers that follow each other are three
//! quarters of the weights between them. What counts is measured on the network that [`Mlp::shrink`] makes of the masks.

use ndarray::Array1;

use super::linear::Linear;
use super::mlp::Mlp;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::prune::{PruneReport, Selection};

/// The most that a network may have, once it is shrunk.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SizeTarget {
    /// Weights, biases, gammas and betas.
    Parameters(usize),
    /// Multiply-adds of one row in the linear layers: their weights.
    MultiplyAdds(usize),
    /// Bytes of all parameters as numbers of the network's element type, before any coding.
    Bytes(usize),
    /// Neurons of all hidden layers.
    Neurons(usize),
}

impl SizeTarget {
    /// What a network has of this unit.
    pub fn of<F: Float>(self, mlp: &Mlp<F>) -> usize {
        match self {
            Self::Parameters(_) => mlp.parameters(),
            Self::MultiplyAdds(_) => mlp.linears().map(|linear| linear.inputs() * linear.outputs()).sum(),
            Self::Bytes(_) => mlp.parameters() * F::BYTES,
            Self::Neurons(_) => hidden(mlp),
        }
    }

    /// What it may have.
    pub fn limit(self) -> usize {
        match self {
            Self::Parameters(limit)
            | Self::MultiplyAdds(limit)
            | Self::Bytes(limit)
            | Self::Neurons(limit) => limit,
        }
    }
}

/// What [`Mlp::prune_neurons_to`] did, in the unit of its target.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TargetReport {
    /// What the network, shrunk, had before.
    pub before: usize,
    /// What it has now: at most the target.
    pub achieved: usize,
    /// One report per hidden layer, whose units are neurons.
    pub layers: Vec<PruneReport>,
}

impl<F: Float> Mlp<F> {
    /// Prunes as few hidden neurons as bring the network, shrunk, down to `target`: as
    /// [`prune_neurons`](Self::prune_neurons) with the number of neurons found by halving. [`shrink`](Self::shrink) takes them out.
    /// Nothing has changed if this fails.
    ///
    /// ```
    /// use trimnet::ndarray::Axis;
    /// use trimnet::nn::{Linear, Mlp, SizeTarget};
    /// use trimnet::prune::{Norm, score::slice_norms};
    /// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
    ///
    /// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    /// let mut mlp = Mlp::builder(20).linear(60).relu().linear(40).relu().linear(5).build::<f32>(&mut rng)?;
    /// let by_norm = |linear: &Linear<f32>, _: &Linear<f32>| slice_norms(linear.weight(), Axis(0), Norm::L2);
    /// let report = mlp.prune_neurons_to(SizeTarget::Parameters(1000), by_norm, 4)?;
    /// let small = mlp.shrink()?.0;
    /// assert_eq!(small.parameters(), report.achieved);
    /// assert!(report.achieved <= 1000 && report.before == mlp.parameters());
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the network is too large even with `min_keep` neurons in each layer; those of
    /// [`prune_neurons`](Self::prune_neurons) and [`shrink`](Self::shrink).
    pub fn prune_neurons_to(
        &mut self,
        target: SizeTarget,
        score: impl Fn(&Linear<F>, &Linear<F>) -> Result<Array1<F>>,
        min_keep: usize,
    ) -> Result<TargetReport> {
        let neurons = hidden(self);
        let without = |count: usize| -> Result<(Self, TargetReport)> {
            let mut mlp = self.clone();
            let share = if neurons == 0 { 0.0 } else { count as f64 / neurons as f64 };
            let layers = mlp.prune_neurons(&Selection::sparsity(share)?, &score, min_keep)?;
            let achieved = target.of(&mlp.shrink()?.0);
            Ok((mlp, TargetReport { before: 0, achieved, layers }))
        };
        let mut found = without(0)?;
        let before = found.1.achieved;
        let fits = |found: &(Self, TargetReport)| found.1.achieved <= target.limit();
        if !fits(&found) {
            found = without(neurons)?;
            if !fits(&found) {
                let reason = format!(
                    "{} is the least that {min_keep} neurons in each hidden layer leave",
                    found.1.achieved
                );
                return Err(Error::Unsupported { what: "the target of pruning", reason });
            }
            // Too many are left without `low` neurons, few enough without `high`.
            let (mut low, mut high) = (0, neurons);
            while high - low > 1 {
                let middle = (low + high) / 2;
                let trial = without(middle)?;
                match fits(&trial) {
                    true => (high, found) = (middle, trial),
                    false => low = middle,
                }
            }
            *self = found.0;
        }
        Ok(TargetReport { before, ..found.1 })
    }
}

/// Neurons of all linear layers but the last.
fn hidden<F: Float>(mlp: &Mlp<F>) -> usize {
    mlp.linears().rev().skip(1).map(Linear::outputs).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::{Norm, score::slice_norms};
    use ndarray::Axis;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    fn network() -> Mlp<f64> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        Mlp::builder(10).linear(40).batch_norm().relu().linear(30).relu().linear(4).build(&mut rng).unwrap()
    }

    fn by_norm(linear: &Linear<f64>, _: &Linear<f64>) -> Result<Array1<f64>> {
        slice_norms(linear.weight(), Axis(0), Norm::L2)
    }

    #[test]
    fn every_unit_is_reached_with_as_few_neurons_gone_as_possible() {
        for target in [
            SizeTarget::Parameters(700),
            SizeTarget::MultiplyAdds(600),
            SizeTarget::Bytes(6000),
            SizeTarget::Neurons(33),
        ] {
            let mut mlp = network();
            let report = mlp.prune_neurons_to(target, by_norm, 2).unwrap();
            let small = mlp.shrink().unwrap().0;
            assert_eq!(
                (target.of(&network()), target.of(&small)),
                (report.before, report.achieved),
                "{target:?}"
            );
            assert!(report.achieved <= target.limit());
            let gone = report.layers.iter().map(|layer| layer.dropped).sum::<usize>();
            // One neuron less, and it is too large.
            let mut larger = network();
            let share = Selection::sparsity((gone - 1) as f64 / 70.0).unwrap();
            larger.prune_neurons(&share, by_norm, 2).unwrap();
            assert!(target.of(&larger.shrink().unwrap().0) > target.limit(), "{target:?}");
        }
    }

    #[test]
    fn a_network_that_is_small_enough_stays_and_one_that_cannot_be_is_left_alone() {
        let mut mlp = network();
        let parameters = mlp.parameters();
        let report = mlp.prune_neurons_to(SizeTarget::Parameters(parameters), by_norm, 1).unwrap();
        assert_eq!((report.before, report.achieved), (parameters, parameters));
        assert!(mlp == network(), "it has no mask");
        let before = mlp.clone();
        let error = mlp.prune_neurons_to(SizeTarget::Neurons(7), by_norm, 4).unwrap_err().to_string();
        assert!(error.contains("8 is the least that 4 neurons"), "{error}");
        assert!(mlp == before);
    }

    #[test]
    fn a_network_without_hidden_layers_has_only_its_size() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let mut mlp = Mlp::builder(3).linear(2).build::<f64>(&mut rng).unwrap();
        assert!(mlp.prune_neurons_to(SizeTarget::Neurons(0), by_norm, 1).is_ok());
        assert!(mlp.prune_neurons_to(SizeTarget::Parameters(7), by_norm, 1).is_err());
    }
}
