//! Training through a compressor: the network holds compressed weights, the optimizer moves full-precision ones behind them.
//!
//! ```text
//! shown w = decompress(compress(latent v))         forward and backward see w
//! v <- v + (optimizer(w) - w)                      the step is taken as if w were v: the straight-through gradient
//! ```
//!
//! With a fraction below one only the largest of `|v|` are compressed, the others are shown as they are: first the half that
//! matters most, then more (Zhou et al., "Incremental network quantization", 2017). Straight-through: Bengio et al., 2013.

use std::ops::{ControlFlow, Range};

use ndarray::{Array2, ArrayView2, Ix2, Zip};

use super::callback::{Callback, Step};
use super::grads::Grads;
use super::mlp::Mlp;
use super::ramp::{Ramp, means};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::traits::{Compressed, Compressor};

/// A [`Callback`] for quantization-aware training of all linear layers' weights, with any [`Compressor`].
///
/// What the mask of a layer drops is 0 in both copies. When the training ends the network holds compressed weights (all of
/// them, if the fraction is 1). Where early stopping restores an epoch, it holds those of that epoch: let it look away until
/// the fraction is 1, with [`EarlyStopping::after`](super::EarlyStopping::after). The compressor runs after every step on
/// every layer: choose one that is quick.
///
/// One callback is for one network. A training that begins with other weights than those it left shown starts anew, layer by
/// layer.
///
/// ```
/// use ndarray::array;
/// use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::nn::{Adam, CrossEntropy, Dataset, Mlp, StraightThrough, Trainer};
/// use trimnet::quantize::{Scheme, UniformQuantizer};
///
/// let data = Dataset::classification(array![[0.0, 1.0], [1.0, 0.0]], vec![0, 1])?;
/// let mut mlp = Mlp::builder(2).linear(20).relu().linear(2).build::<f32>(&mut Xoshiro256PlusPlus::seed_from_u64(1))?;
/// // Half of the weights from step 10, all from step 30 on: 3 bits with a sign, -3 to 3 steps.
/// let mut aware = StraightThrough::new(UniformQuantizer::new(Scheme::symmetric(3)?), &[(10, 0.5), (30, 1.0)])?;
/// Trainer::new(60, 2)?.fit(&mut mlp, &mut CrossEntropy, &data, None, &mut Adam::new(), &mut [&mut aware])?;
/// for linear in mlp.linears() {
///     let largest = linear.weight().iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
///     assert!(linear.weight().iter().all(|w| { let code = w / (largest / 3.0); (code - code.round()).abs() < 1e-5 }));
/// }
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct StraightThrough<F, C> {
    compressor: C,
    begin: u64,
    fraction: Ramp,
    linears: Option<Range<usize>>,
    /// One per linear layer, empty before the first step.
    layers: Vec<Option<Held<F>>>,
}

/// The two copies of a weight.
#[derive(Clone, Debug, PartialEq)]
struct Held<F> {
    latent: Array2<F>,
    shown: Array2<F>,
}

impl<F: Float, C: Compressor<F, Ix2>> StraightThrough<F, C> {
    /// Shows a fraction of compressed weights that depends on the step: straight lines between these steps, nothing before the
    /// first, the last fraction after the last. `&[(begin, 1.0)]` compresses all at once.
    ///
    /// # Errors
    /// [`Error::Empty`] without any; [`Error::OutOfRange`] unless the steps rise and the fractions lie within `0..=1`.
    pub fn new(compressor: C, fractions: &[(u64, f64)]) -> Result<Self> {
        let fraction = Ramp::new(fractions)?;
        if let Some(&(_, value)) = fractions.iter().find(|(_, fraction)| *fraction > 1.0) {
            return Err(Error::OutOfRange { name: "fraction", value, range: "0 <= fraction <= 1" });
        }
        let begin = fractions.first().map_or(0, |&(step, _)| step);
        Ok(Self { compressor, begin, fraction, linears: None, layers: Vec::new() })
    }

    /// Only these linear layers, counted without other layers; all unless said.
    pub fn for_linears(self, linears: Range<usize>) -> Self {
        Self { linears: Some(linears), ..self }
    }

    /// The full-precision weights of a linear layer, once there are any.
    pub fn latent(&self, linear: usize) -> Option<ArrayView2<'_, F>> {
        self.layers.get(linear)?.as_ref().map(|held| held.latent.view())
    }

    fn show(&self, latent: &Array2<F>, fraction: f64) -> Result<Array2<F>> {
        let mut shown = self.compressor.compress(latent.view())?.decompress()?;
        if fraction < 1.0 {
            let mut sizes: Vec<F> = latent.iter().filter(|w| !w.is_zero()).map(|w| w.abs()).collect();
            let free = ((1.0 - fraction) * sizes.len() as f64) as usize;
            if free > 0 && free <= sizes.len() {
                let by_size = |a: &F, b: &F| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal);
                let (_, &mut last, _) = sizes.select_nth_unstable_by(free - 1, by_size);
                let back = |shown: &mut F, &v: &F| {
                    if v.abs() <= last {
                        *shown = v;
                    }
                };
                Zip::from(&mut shown).and(latent).for_each(back);
            }
        }
        Ok(shown)
    }
}

impl<F: Float, C: Compressor<F, Ix2>> Callback<F> for StraightThrough<F, C> {
    fn on_grads(&mut self, mlp: &Mlp<F>, _grads: &mut Grads<F>, step: &Step) -> Result<()> {
        if step.step > 0 {
            return Ok(());
        }
        for (place, linear) in self.layers.iter_mut().zip(mlp.linears()) {
            let Some(held) = place else { continue };
            if let Some(mask) = linear.mask().filter(|mask| mask.keep().dim() == held.shown.dim()) {
                mask.apply(held.shown.view_mut())?;
            }
            if held.shown != linear.weight() {
                *place = None;
            }
        }
        Ok(())
    }

    fn on_step(&mut self, mlp: &mut Mlp<F>, step: &Step) -> Result<ControlFlow<()>> {
        let step = step.step as u64;
        if step < self.begin {
            return Ok(ControlFlow::Continue(()));
        }
        let fraction = self.fraction.at(step);
        self.layers.resize(mlp.linears().count(), None);
        for (index, linear) in mlp.linears_mut().enumerate() {
            if !means(&self.linears, index) {
                continue;
            }
            let Some(place) = self.layers.get_mut(index) else { continue };
            let mut latent = match place.take() {
                Some(Held { mut latent, shown }) if latent.dim() == linear.weight().dim() => {
                    let moved = |v: &mut F, &w: &F, &shown: &F| *v += w - shown;
                    Zip::from(&mut latent).and(linear.weight()).and(&shown).for_each(moved);
                    latent
                }
                _ => linear.weight().to_owned(),
            };
            if let Some(mask) = linear.mask() {
                mask.apply(latent.view_mut())?;
            }
            linear.set_weight(self.show(&latent, fraction)?)?;
            let shown = linear.weight().to_owned();
            if let Some(place) = self.layers.get_mut(index) {
                *place = Some(Held { latent, shown });
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Layer, Linear};
    use crate::quantize::{Scheme, UniformQuantizer};
    use crate::tensor::Mask;
    use ndarray::array;

    fn step(step: usize) -> Step {
        Step { step, steps: 10, epoch: 0, loss: 1.0, learning_rate: 0.1 }
    }

    fn network(weight: Array2<f64>) -> Mlp<f64> {
        Mlp::from_layers(weight.ncols(), vec![Layer::Linear(Linear::new(weight, None).unwrap())]).unwrap()
    }

    fn aware(fractions: &[(u64, f64)]) -> StraightThrough<f64, UniformQuantizer> {
        StraightThrough::new(UniformQuantizer::new(Scheme::symmetric(3).unwrap()), fractions).unwrap()
    }

    fn weight(mlp: &Mlp<f64>) -> ArrayView2<'_, f64> {
        mlp.linears().next().unwrap().weight()
    }

    fn add(mlp: &mut Mlp<f64>, moved: Array2<f64>) {
        let sum = &weight(mlp) + &moved;
        mlp.linears_mut().next().unwrap().set_weight(sum).unwrap();
    }

    #[test]
    fn small_steps_add_up_behind_what_is_shown() {
        let mut mlp = network(array![[3.0, 1.0, 0.0]]);
        let mut aware = aware(&[(0, 1.0)]);
        assert!(aware.on_step(&mut mlp, &step(0)).unwrap().is_continue());
        for n in 1..=3 {
            assert_eq!(weight(&mlp), array![[3.0, 1.0, 0.0]], "step {n}");
            add(&mut mlp, array![[0.0, 0.2, 0.0]]);
            assert!(aware.on_step(&mut mlp, &step(n)).unwrap().is_continue());
        }
        assert_eq!(weight(&mlp), array![[3.0, 2.0, 0.0]]);
        assert!((aware.latent(0).unwrap()[[0, 1]] - 1.6).abs() < 1e-12);
    }

    #[test]
    fn a_mask_drops_both_copies() {
        let mut mlp = network(array![[3.0, 1.2]]);
        let mut aware = aware(&[(0, 1.0)]);
        assert!(aware.on_step(&mut mlp, &step(0)).unwrap().is_continue());
        mlp.apply_masks(vec![Mask::new(array![[true, false]])]).unwrap();
        assert!(aware.on_step(&mut mlp, &step(1)).unwrap().is_continue());
        assert_eq!(
            (weight(&mlp), aware.latent(0).unwrap()),
            (array![[3.0, 0.0]].view(), array![[3.0, 0.0]].view())
        );
    }

    #[test]
    fn the_largest_are_compressed_first_and_none_too_early() {
        let start = array![[3.0, 2.2, 1.2, 0.7]];
        let mut mlp = network(start.clone());
        let mut aware = aware(&[(2, 0.5), (4, 1.0)]);
        assert!(aware.on_step(&mut mlp, &step(1)).unwrap().is_continue());
        assert_eq!(weight(&mlp), start);
        let expected =
            [array![[3.0, 2.0, 1.2, 0.7]], array![[3.0, 2.0, 1.0, 0.7]], array![[3.0, 2.0, 1.0, 1.0]]];
        for (n, expected) in (2..).zip(expected) {
            assert!(aware.on_step(&mut mlp, &step(n)).unwrap().is_continue());
            assert_eq!(weight(&mlp), expected, "step {n}");
        }
    }

    #[test]
    fn another_network_starts_anew_and_the_same_goes_on() {
        let (mut mlp, mut aware) = (network(array![[3.0, 1.4, 2.0]]), aware(&[(0, 1.0)]));
        let mut grads = Grads::new(Vec::new());
        let mut fit = |mlp: &mut Mlp<f64>, moved: f64| {
            aware.on_grads(mlp, &mut grads, &step(0)).unwrap();
            add(mlp, array![[0.0, moved, 0.0]]);
            assert!(aware.on_step(mlp, &step(0)).unwrap().is_continue());
            aware.latent(0).unwrap()[[0, 1]]
        };
        assert_eq!(fit(&mut mlp, 0.0), 1.4);
        assert!((fit(&mut mlp, 0.2) - 1.6).abs() < 1e-12);
        mlp.apply_masks(vec![Mask::new(array![[true, true, false]])]).unwrap();
        assert!((fit(&mut mlp, 0.2) - 1.8).abs() < 1e-12);
        assert_eq!(fit(&mut network(array![[3.0, 1.0, 2.0]]), 0.25), 1.25);
    }

    #[test]
    fn refuses_fractions_above_one() {
        let quantizer = UniformQuantizer::default();
        assert!(StraightThrough::<f32, _>::new(quantizer, &[(0, 1.5)]).is_err());
        assert!(StraightThrough::<f32, _>::new(quantizer, &[]).is_err());
    }
}
