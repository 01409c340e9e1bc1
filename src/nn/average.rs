//! Averages of all parameters over many steps: calmer than the last step, and mostly better.
//!
//! ```text
//! uniform        a_n = a_(n-1) + (w_n - a_(n-1)) / n
//! exponential    a_n = a_(n-1) + (w_n - a_(n-1)) * max(1 - decay, 1 / n)
//! ```
//!
//! Polyak & Juditsky 1992; Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018.
//! The `1 / n` lets the exponential average begin as a uniform one, without a bias towards where it started.

use std::ops::ControlFlow;

use super::callback::{Callback, Step};
use super::mlp::Mlp;
use super::optimizer::narrow;
use crate::error::{Error, Result};
use crate::float::{Float, check_shape};

/// A [`Callback`] that averages the weights, biases, gammas and betas, in `f64`; [`apply`](Self::apply) writes them into a
/// network.
///
/// What is equal at every step is equal in the average: weights that share a value (while no weight changes from one value
/// to another) still share it. What the mask of the network drops is zero. When a layer is resized, the average starts anew.
///
/// The running statistics of a batch norm are not averaged: [`Mlp::estimate_batch_norms`] takes them from data afterwards.
///
/// ```
/// use ndarray::array;
/// use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::nn::{Adam, CrossEntropy, Dataset, Mlp, Trainer, WeightAverage};
///
/// let data = Dataset::classification(array![[0.0, 1.0], [1.0, 0.0]], vec![0, 1])?;
/// let mut mlp = Mlp::builder(2).linear(8).relu().linear(2).build::<f32>(&mut Xoshiro256PlusPlus::seed_from_u64(1))?;
/// let mut average = WeightAverage::uniform(20); // of steps 20 to 59
/// Trainer::new(60, 2)?.fit(&mut mlp, &mut CrossEntropy, &data, None, &mut Adam::new(), &mut [&mut average])?;
/// assert_eq!(average.steps(), 40);
/// average.apply(&mut mlp)?;
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw"))]
pub struct WeightAverage {
    decay: f64,
    begin: u64,
    steps: u64,
    /// One per parameter tensor.
    means: Vec<Vec<f64>>,
}

impl WeightAverage {
    /// All steps from step `begin` on count alike.
    pub fn uniform(begin: u64) -> Self {
        Self { decay: 1.0, begin, steps: 0, means: Vec::new() }
    }

    /// A step counts `decay` times as much as the one after it: an average over about `1 / (1 - decay)` steps.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= decay < 1`.
    pub fn exponential(decay: f64, begin: u64) -> Result<Self> {
        if !(0.0..1.0).contains(&decay) {
            return Err(Error::OutOfRange { name: "decay", value: decay, range: "0 <= decay < 1" });
        }
        Ok(Self { decay, begin, steps: 0, means: Vec::new() })
    }

    /// How many steps are in the average.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes in the network as it is now; what the trainer calls after each step from `begin` on.
    pub fn add<F: Float>(&mut self, mlp: &Mlp<F>) {
        let sizes = mlp.parameter_dims().map(|dims| dims.elements());
        if !sizes.clone().eq(self.means.iter().map(Vec::len)) {
            self.steps = 0;
            self.means = sizes.map(|size| vec![0.0; size]).collect();
        }
        self.steps = self.steps.saturating_add(1);
        let rate = (1.0 - self.decay).max(1.0 / self.steps as f64);
        let mut means = self.means.iter_mut();
        mlp.show_parameters(|values| {
            for (mean, value) in means.next().into_iter().flatten().zip(values) {
                *mean += (value.as_f64() - *mean) * rate;
            }
        });
    }

    /// Writes the average into `mlp`, whose masks hold. Does nothing before the first step.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not of the network that was averaged; [`Error::OutOfRange`] for an average that is not
    /// finite in the type of the weights. Nothing has changed if this fails.
    pub fn apply<F: Float>(&self, mlp: &mut Mlp<F>) -> Result<()> {
        if self.steps == 0 {
            return Ok(());
        }
        let actual: Vec<_> = mlp.parameter_dims().map(|dims| dims.elements()).collect();
        let expected: Vec<_> = self.means.iter().map(Vec::len).collect();
        check_shape("list of parameter lengths", &actual, &expected)?;
        self.means.iter().flatten().try_for_each(|&mean| narrow::<F>("average", mean).map(|_| ()))?;
        let mut means = self.means.iter();
        mlp.write_parameters(|values| {
            for (value, &mean) in values.iter_mut().zip(means.next().into_iter().flatten()) {
                *value = F::of(mean);
            }
        });
        Ok(())
    }
}

impl<F: Float> Callback<F> for WeightAverage {
    fn on_step(&mut self, mlp: &mut Mlp<F>, step: &Step) -> Result<ControlFlow<()>> {
        if step.step as u64 >= self.begin {
            self.add(mlp);
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// What serde reads, before it is believed.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw {
    decay: f64,
    begin: u64,
    steps: u64,
    means: Vec<Vec<f64>>,
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for WeightAverage {
    type Error = Error;

    fn try_from(Raw { decay, begin, steps, means }: Raw) -> Result<Self> {
        if !(0.0..=1.0).contains(&decay) {
            return Err(Error::OutOfRange { name: "decay", value: decay, range: "0 <= decay <= 1" });
        }
        if let Some(&value) = means.iter().flatten().find(|mean| !mean.is_finite()) {
            return Err(Error::OutOfRange { name: "average", value, range: "finite" });
        }
        Ok(Self { decay, begin, steps, means })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Layer, Linear};
    use crate::tensor::Mask;
    use ndarray::{Array2, array};

    fn network(weight: Array2<f64>) -> Mlp<f64> {
        Mlp::from_layers(2, vec![Layer::Linear(Linear::new(weight, Some(array![1.0])).unwrap())]).unwrap()
    }

    fn averaged(mut average: WeightAverage) -> Array2<f64> {
        for w in [1.0, 2.0, 6.0] {
            average.add(&network(array![[w, 3.0]]));
        }
        let mut mlp = network(array![[0.0, 0.0]]);
        average.apply(&mut mlp).unwrap();
        mlp.linears().next().unwrap().weight().to_owned()
    }

    #[test]
    fn averages_are_those_of_the_formulas() {
        assert_eq!(averaged(WeightAverage::uniform(0)), array![[3.0, 3.0]]);
        assert_eq!(averaged(WeightAverage::exponential(0.5, 0).unwrap()), array![[3.75, 3.0]]);
        assert_eq!(averaged(WeightAverage::exponential(0.0, 0).unwrap()), array![[6.0, 3.0]]);
    }

    #[test]
    fn the_mask_of_the_network_holds() {
        let mut average = WeightAverage::uniform(0);
        average.add(&network(array![[1.0, 2.0]]));
        let mut mlp = network(array![[5.0, 5.0]]);
        mlp.apply_masks(vec![Mask::new(array![[false, true]])]).unwrap();
        average.apply(&mut mlp).unwrap();
        assert_eq!(mlp.linears().next().unwrap().weight(), array![[0.0, 2.0]]);
    }

    #[test]
    fn starts_anew_when_a_layer_is_resized_and_refuses_another_network() {
        let mut average = WeightAverage::uniform(0);
        average.add(&network(array![[1.0, 2.0]]));
        let other = Linear::new(array![[4.0, 5.0], [6.0, 7.0]], None).unwrap();
        let mut other = Mlp::from_layers(2, vec![Layer::Linear(other)]).unwrap();
        assert!(average.apply(&mut other).is_err());
        average.add(&other);
        assert_eq!(average.steps(), 1);
        average.apply(&mut other).unwrap();
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_stored_average_comes_back_with_any_weights_and_any_number_of_steps() {
        let mut average = WeightAverage::uniform(0);
        average.add(&network(array![[1e39, 2.0]]));
        let text = serde_json::to_string(&average).unwrap();
        assert_eq!(serde_json::from_str::<WeightAverage>(&text).unwrap(), average);
        let text = text.replace(r#""steps":1"#, &format!(r#""steps":{}"#, u64::MAX));
        let mut average = serde_json::from_str::<WeightAverage>(&text).unwrap();
        average.add(&network(array![[1e39, 2.0]]));
        assert_eq!(average.steps(), u64::MAX);
        let mut mlp = network(array![[0.0, 0.0]]);
        average.apply(&mut mlp).unwrap();
        assert_eq!(mlp, network(array![[1e39, 2.0]]));
    }

    #[test]
    fn an_average_that_does_not_fit_the_type_of_the_weights_is_refused_and_changes_nothing() {
        let mut average = WeightAverage::uniform(0);
        average.add(&network(array![[1.0, 1e39]]));
        let narrow = Linear::new(array![[5.0_f32, 5.0]], Some(array![1.0])).unwrap();
        let mut narrow = Mlp::from_layers(2, vec![Layer::Linear(narrow)]).unwrap();
        let before = narrow.clone();
        let error = average.apply(&mut narrow).unwrap_err();
        assert!(matches!(error, Error::OutOfRange { name: "average", value: 1e39, .. }), "{error}");
        assert_eq!(narrow, before);
    }

    #[test]
    fn nothing_averaged_changes_nothing() {
        let mut mlp = network(array![[1.0, 2.0]]);
        WeightAverage::uniform(0).apply(&mut mlp).unwrap();
        assert_eq!(mlp, network(array![[1.0, 2.0]]));
    }
}
