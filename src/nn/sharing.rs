//! Weight sharing while training: the weights of a layer take few values, and those that share one move together.
//!
//! ```text
//! step begin   every weight becomes the nearest of the palette's values            codes and zeros are fixed from then on
//! then         d loss / d value = mean or sum of d loss / d w over its members     before the optimizer's step
//!              value = mean of its members                                         after it
//! ```
//!
//! The mean after the step takes back what the optimizer's memory of single weights moved apart. Han et al., "Deep
//! Compression", ICLR 2016.

use std::ops::{ControlFlow, Range};

use ndarray::{ArrayView2, ArrayViewMut2};

use super::callback::{Callback, Step};
use super::grads::Grads;
use super::linear::Linear;
use super::mlp::Mlp;
use super::ramp::means;
use crate::error::Result;
use crate::float::{Float, elements_mut};
use crate::quantize::PaletteQuantizer;
use crate::traits::{Compressed, Compressor};

/// What a shared value takes for its gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum SharedGradient {
    /// The mean over its members: steps of the size that the weights had alone.
    #[default]
    Mean,
    /// The sum over its members, which is the derivative. Under SGD the steps of values with many members are long; Adam's
    /// do not depend on it.
    Sum,
}

/// A [`Callback`] that clusters the weights of each linear layer at one step and trains the shared values from then on.
///
/// Zeros stay zeros, whether a mask holds them or not. A weight that a mask drops later leaves its value. So a layer never has
/// more values besides 0 than the quantizer has entries (one fewer if it had zeros). Clustered anew is a layer that has
/// changed its shape since.
///
/// One callback is for one network. A training that begins with a layer whose weights do not share the values that they were
/// left with starts anew, from `begin` on. Where early stopping restores an epoch before `begin`, nothing is shared: let it
/// look away until then, with [`EarlyStopping::after`](super::EarlyStopping::after).
///
/// ```
/// use ndarray::array;
/// use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::nn::{Adam, CrossEntropy, Dataset, Mlp, Trainer, WeightSharing};
/// use trimnet::quantize::PaletteQuantizer;
///
/// let data = Dataset::classification(array![[0.0, 1.0], [1.0, 0.0]], vec![0, 1])?;
/// let mut mlp = Mlp::builder(2).linear(20).relu().linear(2).build::<f32>(&mut Xoshiro256PlusPlus::seed_from_u64(1))?;
/// let mut sharing = WeightSharing::new(PaletteQuantizer::new(4)?, 20);
/// Trainer::new(60, 2)?.fit(&mut mlp, &mut CrossEntropy, &data, None, &mut Adam::new(), &mut [&mut sharing])?;
/// for linear in mlp.linears() {
///     let mut values: Vec<_> = linear.weight().iter().map(|w| w.to_bits()).collect();
///     values.sort();
///     values.dedup();
///     assert!(values.len() <= 4);
/// }
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSharing {
    quantizer: PaletteQuantizer,
    begin: u64,
    gradient: SharedGradient,
    linears: Option<Range<usize>>,
    /// One per linear layer, empty before the first clustering.
    layers: Vec<Option<Sharers>>,
}

impl WeightSharing {
    /// Clusters after step `begin` of the trainer.
    pub fn new(quantizer: PaletteQuantizer, begin: u64) -> Self {
        Self { quantizer, begin, gradient: SharedGradient::Mean, linears: None, layers: Vec::new() }
    }

    /// Another gradient.
    pub fn with_gradient(self, gradient: SharedGradient) -> Self {
        Self { gradient, ..self }
    }

    /// Only these linear layers, counted without other layers; all unless said.
    pub fn for_linears(self, linears: Range<usize>) -> Self {
        Self { linears: Some(linears), ..self }
    }
}

impl<F: Float> Callback<F> for WeightSharing {
    fn on_grads(&mut self, mlp: &Mlp<F>, grads: &mut Grads<F>, step: &Step) -> Result<()> {
        let layers = self.layers.iter_mut().zip(mlp.linears().zip(grads.dweights_mut()));
        for (place, (linear, dweight)) in layers {
            if let Some(sharers) = place.as_mut().filter(|sharers| sharers.fit(linear)) {
                sharers.leave(linear);
                if step.step > 0 || sharers.hold(linear.weight()) {
                    sharers.pool(dweight, self.gradient);
                } else {
                    *place = None;
                }
            }
        }
        Ok(())
    }

    fn on_step(&mut self, mlp: &mut Mlp<F>, step: &Step) -> Result<ControlFlow<()>> {
        if (step.step as u64) < self.begin {
            return Ok(ControlFlow::Continue(()));
        }
        self.layers.resize(mlp.linears().count(), None);
        for (index, (sharers, linear)) in self.layers.iter_mut().zip(mlp.linears_mut()).enumerate() {
            if !means(&self.linears, index) {
                continue;
            }
            match sharers.as_mut().filter(|sharers| sharers.fit(linear)) {
                Some(sharers) => {
                    sharers.leave(linear);
                    sharers.pool(linear.parts_mut().0.view_mut(), SharedGradient::Mean);
                }
                None => {
                    let tensor = self.quantizer.compress(linear.weight())?;
                    let weight = tensor.decompress()?;
                    let mut places = vec![NONE; weight.len()];
                    tensor.each(|place, i| places[i] = place as u32);
                    let mut found = Sharers { dim: weight.dim(), values: tensor.palettes().len(), places };
                    found.forget_zeros(weight.view());
                    *sharers = Some(found);
                    linear.set_weight(weight)?;
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The place of a weight that is and stays 0.
const NONE: u32 = u32::MAX;

/// Which weights of a layer share a value.
#[derive(Clone, Debug, PartialEq)]
struct Sharers {
    dim: (usize, usize),
    values: usize,
    /// The value of each weight, row-major.
    places: Vec<u32>,
}

impl Sharers {
    fn fit<F: Float>(&self, linear: &Linear<F>) -> bool {
        self.dim == linear.weight().dim()
    }

    /// What the mask has dropped leaves its value.
    fn leave<F: Float>(&mut self, linear: &Linear<F>) {
        if let Some(mask) = linear.mask() {
            let dropped = self.places.iter_mut().zip(mask.keep()).filter(|(_, keep)| !**keep);
            dropped.for_each(|(place, _)| *place = NONE);
        }
    }

    /// Whether those that share a place have one value, and those without any are 0.
    fn hold<F: Float>(&self, weight: ArrayView2<'_, F>) -> bool {
        let mut values = vec![None; self.values];
        weight.iter().zip(&self.places).all(|(&w, &place)| match values.get_mut(place as usize) {
            Some(value) => *value.get_or_insert(w) == w,
            None => w.is_zero(),
        })
    }

    fn forget_zeros<F: Float>(&mut self, weight: ArrayView2<'_, F>) {
        let zeros = self.places.iter_mut().zip(weight).filter(|(_, w)| w.is_zero());
        zeros.for_each(|(place, _)| *place = NONE);
    }

    /// Replaces every number by the mean or the sum over those that share its place; 0 where there is none.
    fn pool<F: Float>(&self, mut numbers: ArrayViewMut2<'_, F>, reduction: SharedGradient) {
        let mut sums = vec![(0.0, 0.0); self.values];
        let numbers = elements_mut(&mut numbers);
        for (&x, &place) in numbers.iter().zip(&self.places) {
            if let Some((sum, count)) = sums.get_mut(place as usize) {
                (*sum, *count) = (*sum + x.as_f64(), *count + 1.0);
            }
        }
        let pooled: Vec<F> = sums
            .into_iter()
            .map(|(sum, count)| match reduction {
                SharedGradient::Sum => F::of(sum),
                SharedGradient::Mean => F::of(if count > 0.0 { sum / count } else { 0.0 }),
            })
            .collect();
        for (x, &place) in numbers.iter_mut().zip(&self.places) {
            *x = pooled.get(place as usize).copied().unwrap_or(F::zero());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Layer, LayerGrads, LinearGrads};
    use crate::tensor::Mask;
    use ndarray::{Array2, array};

    fn step(step: usize) -> Step {
        Step { step, steps: 10, epoch: 0, loss: 1.0, learning_rate: 0.1 }
    }

    fn network(weight: Array2<f64>) -> Mlp<f64> {
        Mlp::from_layers(weight.ncols(), vec![Layer::Linear(Linear::new(weight, None).unwrap())]).unwrap()
    }

    fn grads(dweight: Array2<f64>) -> Grads<f64> {
        Grads::new(vec![LayerGrads::Linear(LinearGrads { dweight, dbias: None })])
    }

    fn weight(mlp: &Mlp<f64>) -> ArrayView2<'_, f64> {
        mlp.linears().next().unwrap().weight()
    }

    #[test]
    fn members_have_one_gradient_and_zeros_none() {
        let start = array![[1.0, 1.2, 0.0, -3.0]];
        let (mean, sum) = (array![[3.0, 3.0, 0.0, 7.0]], array![[6.0, 6.0, 0.0, 7.0]]);
        for (kind, expected) in [(SharedGradient::Mean, mean), (SharedGradient::Sum, sum)] {
            let mut mlp = network(start.clone());
            let mut sharing = WeightSharing::new(PaletteQuantizer::new(3).unwrap(), 0).with_gradient(kind);
            assert!(sharing.on_step(&mut mlp, &step(0)).unwrap().is_continue());
            assert_eq!(weight(&mlp), array![[1.1, 1.1, 0.0, -3.0]]);
            let mut grads = grads(array![[2.0, 4.0, 5.0, 7.0]]);
            sharing.on_grads(&mlp, &mut grads, &step(1)).unwrap();
            assert_eq!(grads.dweights().next().unwrap(), expected);
        }
    }

    #[test]
    fn what_moved_apart_comes_together_and_the_dropped_leave() {
        let mut mlp = network(array![[1.0, 1.2, 0.0, -3.0]]);
        let mut sharing = WeightSharing::new(PaletteQuantizer::new(3).unwrap(), 5);
        assert!(sharing.on_step(&mut mlp, &step(4)).unwrap().is_continue());
        assert_eq!(weight(&mlp), array![[1.0, 1.2, 0.0, -3.0]], "too early");
        assert!(sharing.on_step(&mut mlp, &step(5)).unwrap().is_continue());
        mlp.linears_mut().next().unwrap().set_weight(array![[2.0, 3.0, 9.0, -4.0]]).unwrap();
        assert!(sharing.on_step(&mut mlp, &step(6)).unwrap().is_continue());
        assert_eq!(weight(&mlp), array![[2.5, 2.5, 0.0, -4.0]]);
        mlp.apply_masks(vec![Mask::new(array![[false, true, true, true]])]).unwrap();
        mlp.linears_mut().next().unwrap().set_weight(array![[2.0, 5.0, 9.0, -4.0]]).unwrap();
        assert!(sharing.on_step(&mut mlp, &step(7)).unwrap().is_continue());
        assert_eq!(weight(&mlp), array![[0.0, 5.0, 0.0, -4.0]]);
    }

    #[test]
    fn another_network_starts_anew_and_the_same_goes_on() {
        let mut mlp = network(array![[1.0, 1.2, 0.0, -3.0]]);
        let mut sharing = WeightSharing::new(PaletteQuantizer::new(3).unwrap(), 2);
        assert!(sharing.on_step(&mut mlp, &step(2)).unwrap().is_continue());
        mlp.apply_masks(vec![Mask::new(array![[false, true, true, true]])]).unwrap();
        let (same, mut other) = (mlp.clone(), network(array![[1.0, 2.0, 0.5, -3.0]]));
        for (mlp, expected) in [(&same, [0.0, 4.0, 0.0, 7.0]), (&other, [2.0, 4.0, 5.0, 7.0])] {
            let mut grads = grads(array![[2.0, 4.0, 5.0, 7.0]]);
            sharing.on_grads(mlp, &mut grads, &step(0)).unwrap();
            assert_eq!(grads.dweights().next().unwrap().row(0).to_vec(), expected);
        }
        assert!(sharing.on_step(&mut other, &step(2)).unwrap().is_continue());
        assert_eq!(weight(&other), array![[0.75, 2.0, 0.75, -3.0]]);
    }

    #[test]
    fn a_layer_of_another_shape_is_clustered_anew_and_others_are_left_alone() {
        let mut sharing = WeightSharing::new(PaletteQuantizer::new(2).unwrap(), 0);
        assert!(sharing.on_step(&mut network(array![[1.0, 2.0, 3.0]]), &step(0)).unwrap().is_continue());
        let mut other = network(array![[1.0, 3.0], [1.0, 3.0], [2.0, 3.0]]);
        assert!(sharing.on_step(&mut other, &step(1)).unwrap().is_continue());
        assert_eq!(weight(&other), array![[4.0 / 3.0, 3.0], [4.0 / 3.0, 3.0], [4.0 / 3.0, 3.0]]);
        let mut free = network(array![[1.0, 2.0, 3.0]]);
        assert!(sharing.for_linears(1..2).on_step(&mut free, &step(1)).unwrap().is_continue());
        assert_eq!(weight(&free), array![[1.0, 2.0, 3.0]]);
    }
}
