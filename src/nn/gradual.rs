//! Gradual pruning: a little more at every few steps of training, so that what stays can learn to do without.
//!
//! ```text
//! at the steps of the schedule:  keep the largest |w| of all linear layers together, as many as its level leaves
//! ```
//!
//! One ranking over all layers finds for itself how much each can spare. What is masked stays masked. Zhu & Gupta, "To
//! prune, or not to prune", 2017, with their cubic schedule: [`Schedule::cubic`].

use std::ops::ControlFlow;

use ndarray::Array2;

use super::callback::{Callback, Step};
use super::mlp::Mlp;
use crate::error::Result;
use crate::float::Float;
use crate::prune::{MagnitudePruner, PruneReport, Schedule};
use crate::tensor::Mask;

/// A [`Callback`] that masks the smallest weights of the whole network as a [`Schedule`] of steps says.
///
/// Masks alone make nothing smaller: follow with [`Mlp::shrink`] or store the weights as sparse tensors.
///
/// ```
/// use ndarray::array;
/// use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::nn::{Adam, CrossEntropy, Dataset, GradualPruning, Mlp, Trainer};
/// use trimnet::prune::Schedule;
///
/// let data = Dataset::classification(array![[0.0, 1.0], [1.0, 0.0]], vec![0, 1])?;
/// let mut mlp = Mlp::builder(2).linear(20).relu().linear(2).build::<f32>(&mut Xoshiro256PlusPlus::seed_from_u64(1))?;
/// let mut pruning = GradualPruning::new(Schedule::cubic(0.0, 0.75, 10, 50)?.every(10)?);
/// Trainer::new(60, 2)?.fit(&mut mlp, &mut CrossEntropy, &data, None, &mut Adam::new(), &mut [&mut pruning])?;
/// assert_eq!(pruning.report().map(|report| report.sparsity()), Some(0.75));
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct GradualPruning {
    schedule: Schedule,
    min_keep: usize,
    report: Option<PruneReport>,
}

impl GradualPruning {
    /// Follows `schedule`, whose steps are those of the trainer, from 0.
    ///
    /// A level is reached only at a step at which masks change: choose `end - begin` as a multiple of the frequency.
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule, min_keep: 1, report: None }
    }

    /// Keeps at least this many weights of each layer, 1 unless said, so that no layer goes silent.
    pub fn with_min_keep(self, min_keep: usize) -> Self {
        Self { min_keep, ..self }
    }

    /// What the last change of masks removed, over all layers; `None` before the first.
    pub fn report(&self) -> Option<PruneReport> {
        self.report
    }
}

impl<F: Float> Callback<F> for GradualPruning {
    fn on_step(&mut self, mlp: &mut Mlp<F>, step: &Step) -> Result<ControlFlow<()>> {
        if let Some(sparsity) = self.schedule.update(step.step as u64) {
            let weights: Vec<_> = mlp.linears().map(|linear| linear.weight()).collect();
            let all = |shape| Mask::new(Array2::from_elem(shape, true));
            let earlier: Vec<_> = mlp
                .masks()
                .zip(&weights)
                .map(|(mask, w)| mask.cloned().unwrap_or_else(|| all(w.raw_dim())))
                .collect();
            let pruner = MagnitudePruner::sparsity(sparsity)?;
            let (masks, reports): (Vec<_>, Vec<_>) =
                pruner.mask_global(&weights, Some(&earlier), self.min_keep)?.into_iter().unzip();
            mlp.apply_masks(masks)?;
            self.report = Some(reports.into_iter().sum());
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Adam, CrossEntropy, Dataset, Trainer};
    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    fn data() -> Dataset<f64> {
        let inputs = Array2::from_shape_fn((40, 3), |(row, column)| ((row * 3 + column) as f64 * 0.7).sin());
        let labels = inputs.rows().into_iter().map(|x| usize::from(x.sum() > 0.0)).collect();
        Dataset::classification(inputs, labels).unwrap()
    }

    fn network() -> Mlp<f64> {
        Mlp::builder(3).linear(20).relu().linear(2).build(&mut Xoshiro256PlusPlus::seed_from_u64(1)).unwrap()
    }

    fn sparsities(schedule: Schedule) -> Vec<f64> {
        struct Watch(Vec<f64>);
        impl Callback<f64> for Watch {
            fn on_step(&mut self, mlp: &mut Mlp<f64>, _: &Step) -> Result<ControlFlow<()>> {
                let zeros: usize =
                    mlp.linears().map(|l| l.weight().iter().filter(|&&w| w == 0.0).count()).sum();
                self.0.push(zeros as f64 / 100.0);
                Ok(ControlFlow::Continue(()))
            }
        }
        let (mut pruning, mut watch) = (GradualPruning::new(schedule), Watch(Vec::new()));
        let trainer = Trainer::new(4, 10).unwrap();
        let callbacks: &mut [&mut dyn Callback<f64>] = &mut [&mut pruning, &mut watch];
        trainer.fit(&mut network(), &mut CrossEntropy, &data(), None, &mut Adam::new(), callbacks).unwrap();
        watch.0
    }

    #[test]
    fn the_level_follows_the_schedule_and_survives_the_optimizer() {
        // 100 weights, 16 steps.
        let levels = sparsities(Schedule::cubic(0.0, 0.8, 2, 10).unwrap().every(4).unwrap());
        assert_eq!(levels, [[0.0; 2].as_slice(), &[0.0; 4], &[0.7; 4], &[0.8; 6]].concat());
    }

    #[test]
    fn what_a_layer_had_masked_before_stays_masked() {
        let mut mlp = network();
        let first = mlp.linears().next().unwrap();
        let keep = Array2::from_shape_fn(first.weight().raw_dim(), |(row, _)| row % 2 == 0);
        mlp.linears_mut().next().unwrap().set_mask(Mask::new(keep.clone())).unwrap();
        let mut pruning = GradualPruning::new(Schedule::constant(0.5, 0).unwrap());
        let trainer = Trainer::new(1, 10).unwrap();
        trainer
            .fit(&mut mlp, &mut CrossEntropy, &data(), None, &mut Adam::new(), &mut [&mut pruning])
            .unwrap();
        assert_eq!(pruning.report().unwrap().dropped, 50);
        let mask = mlp.linears().next().unwrap().mask().unwrap().clone();
        assert!(mask.keep().iter().zip(&keep).all(|(&now, &before)| !now || before));
    }

    #[test]
    fn no_layer_goes_silent() {
        let mut mlp = network();
        let mut pruning = GradualPruning::new(Schedule::constant(0.99, 0).unwrap()).with_min_keep(3);
        let trainer = Trainer::new(1, 10).unwrap();
        trainer
            .fit(&mut mlp, &mut CrossEntropy, &data(), None, &mut Adam::new(), &mut [&mut pruning])
            .unwrap();
        assert!(mlp.masks().all(|mask| mask.unwrap().kept() >= 3));
    }
}
