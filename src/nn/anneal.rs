//! A penalty whose strength changes as training goes on: it first gathers what is needed into few weights, then lets go,
//! so that what stays is no smaller than it should be.
//!
//! ```text
//! g <- g + f(t) * d penalty / d w          f: straight lines between given steps, constant outside of them
//! ```
//!
//! Deep Compression's successors all do this in some form; Wen et al., "Learning structured sparsity in deep neural
//! networks", 2016, for the group lasso.

use std::ops::Range;

use super::callback::{Callback, Step};
use super::grads::Grads;
use super::mlp::Mlp;
use super::ramp::{Ramp, means};
use crate::error::Result;
use crate::float::Float;
use crate::regularize::Penalty;

/// A [`Callback`] that adds a [`Penalty`] to the gradients of the linear layers' weights, by a factor that depends on the
/// step.
///
/// ```
/// use trimnet::nn::AnnealedPenalty;
/// use trimnet::regularize::Penalty;
///
/// // Rises over 100 steps, holds until step 500, and is gone at step 600.
/// let l1 = AnnealedPenalty::new(Penalty::l1(3e-5)?, &[(0, 0.0), (100, 1.0), (500, 1.0), (600, 0.0)])?;
/// assert_eq!([50, 300, 575, 9999].map(|step| l1.factor(step)), [0.5, 1.0, 0.25, 0.0]);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AnnealedPenalty {
    penalty: Penalty,
    factor: Ramp,
    linears: Option<Range<usize>>,
}

impl AnnealedPenalty {
    /// `penalty` times the factors at these steps, with straight lines between them; the first factor holds before, the
    /// last one after them.
    ///
    /// # Errors
    /// [`Error::Empty`](crate::Error::Empty) without any; [`Error::OutOfRange`](crate::Error::OutOfRange) unless the steps rise and the factors are finite and not
    /// negative.
    pub fn new(penalty: Penalty, factors: &[(u64, f64)]) -> Result<Self> {
        Ok(Self { penalty, factor: Ramp::new(factors)?, linears: None })
    }

    /// Only for these linear layers, counted without other layers; all unless said. Layers that the network does not have
    /// are passed over.
    pub fn for_linears(self, linears: Range<usize>) -> Self {
        Self { linears: Some(linears), ..self }
    }

    /// The factor of a step.
    pub fn factor(&self, step: u64) -> f64 {
        self.factor.at(step)
    }
}

impl<F: Float> Callback<F> for AnnealedPenalty {
    fn on_grads(&mut self, mlp: &Mlp<F>, grads: &mut Grads<F>, step: &Step) -> Result<()> {
        let factor = self.factor(step.step as u64);
        if factor > 0.0 {
            let penalty = self.penalty.scaled(factor)?;
            for (index, (linear, dweight)) in mlp.linears().zip(grads.dweights_mut()).enumerate() {
                if means(&self.linears, index) {
                    penalty.add_gradient(linear.weight(), dweight)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{CrossEntropy, Dataset, Sgd, Trainer};
    use ndarray::array;
    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    fn train(trainer: Trainer, callbacks: &mut [&mut dyn Callback<f64>]) -> Mlp<f64> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(2);
        let mut mlp = Mlp::builder(2).linear(5).tanh().linear(2).build(&mut rng).unwrap();
        let data =
            Dataset::classification(array![[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], vec![0, 1, 1]).unwrap();
        trainer.fit(&mut mlp, &mut CrossEntropy, &data, None, &mut Sgd::new(), callbacks).unwrap();
        mlp
    }

    #[test]
    fn a_constant_factor_is_the_penalty_of_the_trainer() {
        let penalty = Penalty::l1(0.02).unwrap();
        let trainer = Trainer::new(10, 3).unwrap().with_clip_norm(0.5).unwrap();
        let mut annealed = AnnealedPenalty::new(penalty.scaled(0.5).unwrap(), &[(7, 2.0)]).unwrap();
        assert_eq!(
            train(trainer.clone(), &mut [&mut annealed]),
            train(trainer.with_penalty(penalty), &mut [])
        );
    }

    #[test]
    fn only_the_named_layers_pay() {
        let trainer = Trainer::new(1, 3).unwrap();
        let mut annealed =
            AnnealedPenalty::new(Penalty::l1(0.5).unwrap(), &[(0, 1.0)]).unwrap().for_linears(1..2);
        let (free, paid) = (train(trainer.clone(), &mut []), train(trainer, &mut [&mut annealed]));
        let same: Vec<_> =
            free.linears().zip(paid.linears()).map(|(a, b)| a.weight() == b.weight()).collect();
        assert_eq!(same, [true, false]);
    }

    #[test]
    fn refuses_steps_that_do_not_rise_and_factors_below_zero() {
        let new = |factors: &[(u64, f64)]| AnnealedPenalty::new(Penalty::l1(1.0).unwrap(), factors);
        assert!(
            new(&[]).is_err() && new(&[(1, 1.0), (1, 0.0)]).is_err() && new(&[(2, 1.0), (1, 0.0)]).is_err()
        );
        assert!(new(&[(0, -1.0)]).is_err() && new(&[(0, f64::NAN)]).is_err());
    }
}
