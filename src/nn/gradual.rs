//! Gradual pruning: a little more at every few steps of training, so that what stays can learn to do without.
//!
//! ```text
//! at the steps of the schedule:  keep the best-scored weights, as many as its level leaves
//! magnitude     |w|
//! LAMP          w^2 / sum of u^2 over the weights of the layer that are not smaller
//! Taylor        root of the mean of (w * dw)^2 over the steps since the last change
//! activations   |w| * norm of the input that it reads
//! regrowth      a fraction more than that goes, and as many come back: those dropped here before whose summed gradient is largest
//! ```
//!
//! One ranking over all layers finds for itself how much each can spare. What is masked stays masked, but for regrowth. Zhu &
//! Gupta, "To prune, or not to prune", 2017, with their cubic schedule: [`Schedule::cubic`]; Lee et al. 2021 for LAMP; Molchanov
//! et al. 2019 for Taylor; Sun et al. 2024 (Wanda) for activations; Evci et al. 2020 (RigL) for regrowth.

use std::ops::ControlFlow;

use ndarray::{Array2, ArrayView2, Ix2, Zip};

use super::callback::{Callback, Step};
use super::grads::Grads;
use super::layer::Layer;
use super::mlp::Mlp;
use super::pruning::mask_or_full;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::prune::score::{input_norms, lamp, wanda};
use crate::prune::{MagnitudePruner, PruneReport, Schedule, Selection};
use crate::tensor::Mask;

/// A [`Callback`] that masks the least important weights of the network as a [`Schedule`] of steps says: the smallest of all
/// linear layers together, unless told otherwise.
///
/// One callback is for one training, whose steps the schedule counts. At the first step of another it starts anew, unless the
/// masks of the network are those that it left: what other hands have masked stays masked.
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
    score: Score,
    per_layer: bool,
    regrowth: f64,
    report: Option<PruneReport>,
    /// Of each linear layer, since the last change.
    seen: Vec<Seen>,
    /// The masks of all linear layers after the last change.
    left: Vec<Mask<Ix2>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Score {
    Magnitude,
    Lamp,
    Taylor,
    /// Calibration inputs `[n, in]`.
    Activations(Array2<f64>),
}

/// What a layer's gradients told.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    /// Sum of the gradients.
    sums: Array2<f64>,
    /// Sum of `(w * dw)^2`.
    squares: Array2<f64>,
    /// What this callback dropped, so that it may come back.
    dropped: Array2<bool>,
}

impl Seen {
    fn new(dim: (usize, usize)) -> Self {
        Self { sums: Array2::zeros(dim), squares: Array2::zeros(dim), dropped: Array2::from_elem(dim, false) }
    }
}

impl GradualPruning {
    /// Follows `schedule`, whose steps are those of the trainer, from 0.
    ///
    /// A level is reached only at a step at which masks change: choose `end - begin` as a multiple of the frequency.
    pub fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            min_keep: 1,
            score: Score::Magnitude,
            per_layer: false,
            regrowth: 0.0,
            report: None,
            seen: Vec::new(),
            left: Vec::new(),
        }
    }

    /// Keeps at least this many weights of each layer, 1 unless said, so that no layer goes silent.
    pub fn with_min_keep(self, min_keep: usize) -> Self {
        Self { min_keep, ..self }
    }

    /// Ranks by [`lamp`]: magnitudes that can be compared between layers.
    pub fn by_lamp(self) -> Self {
        Self { score: Score::Lamp, ..self }
    }

    /// Ranks by gradient times weight, averaged over the steps since masks last changed.
    pub fn by_taylor(self) -> Self {
        Self { score: Score::Taylor, ..self }
    }

    /// Ranks by [`wanda`]: magnitude times the size of the input that the weight reads, measured on `inputs` `[n, in]`, which flow
    /// through the network before each change of masks.
    ///
    /// # Errors
    /// [`Error::Empty`] without rows.
    pub fn by_activations<F: Float>(self, inputs: ArrayView2<'_, F>) -> Result<Self> {
        if inputs.is_empty() {
            return Err(Error::Empty { what: "the calibration batch" });
        }
        Ok(Self { score: Score::Activations(inputs.mapv(F::as_f64)), ..self })
    }

    /// Prunes every layer to the level by itself.
    pub fn per_layer(self) -> Self {
        Self { per_layer: true, ..self }
    }

    /// At each change of masks this `fraction` of the kept weights makes room for as many that were dropped before, those whose
    /// gradients since the last change add up to the most; they start at 0. The number of zeros stays that of the schedule.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= fraction < 1`.
    pub fn with_regrowth(self, fraction: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&fraction) {
            return Err(Error::OutOfRange {
                name: "regrown fraction",
                value: fraction,
                range: "0 <= fraction < 1",
            });
        }
        Ok(Self { regrowth: fraction, ..self })
    }

    /// What the last change of masks removed, over all layers; `None` before the first.
    pub fn report(&self) -> Option<PruneReport> {
        self.report
    }

    fn watches_gradients(&self) -> bool {
        self.regrowth > 0.0 || self.score == Score::Taylor
    }

    /// Starts anew where the network has other layers than before.
    fn meet<F: Float>(&mut self, mlp: &Mlp<F>) {
        let dims = || mlp.linears().map(|linear| linear.weight().dim());
        if !dims().eq(self.seen.iter().map(|seen| seen.sums.dim())) {
            self.seen = dims().map(Seen::new).collect();
        }
    }

    fn scores<F: Float>(&self, mlp: &Mlp<F>) -> Result<Vec<Array2<F>>> {
        let weights = mlp.linears().map(|linear| linear.weight());
        Ok(match &self.score {
            Score::Magnitude => weights.map(|w| w.mapv(F::abs)).collect(),
            Score::Lamp => weights.map(lamp).collect(),
            // The root does not change the ranking, but keeps the squares of f32 from vanishing.
            Score::Taylor => self.seen.iter().map(|seen| seen.squares.mapv(|x| F::of(x.sqrt()))).collect(),
            Score::Activations(inputs) => {
                let inputs = inputs.mapv(F::of);
                let mut scores = Vec::new();
                for (index, layer) in mlp.layers().iter().enumerate() {
                    if let Layer::Linear(linear) = layer {
                        let norms = match index.checked_sub(1) {
                            Some(before) => input_norms(mlp.hidden(inputs.view(), before)?.view())?,
                            None => input_norms(inputs.view())?,
                        };
                        scores.push(wanda(linear.weight(), norms.view())?);
                    }
                }
                scores
            }
        })
    }

    /// Prunes some layers in one ranking; `first` is the number of the first.
    fn prune<F: Float>(
        &self,
        sparsity: f64,
        weights: &[ArrayView2<'_, F>],
        scores: &[Array2<F>],
        earlier: &[Mask<Ix2>],
        seen: &mut [Seen],
    ) -> Result<Vec<(Mask<Ix2>, PruneReport)>> {
        let all: usize = earlier.iter().map(Mask::len).sum();
        let zeros =
            |masks: &[(Mask<Ix2>, PruneReport)]| masks.iter().map(|(m, _)| m.len() - m.kept()).sum::<usize>();
        let before: usize = earlier.iter().map(|mask| mask.len() - mask.kept()).sum();
        let target = ((sparsity * all as f64).round_ties_even() as usize).max(before).min(all);
        let more = (self.regrowth * (all - target) as f64) as usize;
        let level = if more > 0 { (target + more) as f64 / all as f64 } else { sparsity };
        let mut pruned = if self.score == Score::Magnitude {
            MagnitudePruner::sparsity(level)?.mask_global(weights, Some(earlier), self.min_keep)?
        } else {
            let views: Vec<_> = scores.iter().map(|score| score.view()).collect();
            Selection::sparsity(level)?.select_global(&views, Some(earlier), self.min_keep)?
        };
        for (seen, ((mask, _), earlier)) in seen.iter_mut().zip(pruned.iter().zip(earlier)) {
            Zip::from(&mut seen.dropped)
                .and(mask.keep())
                .and(earlier.keep())
                .for_each(|dropped, &now, &before| *dropped = !now && (*dropped || before));
        }
        let back = zeros(&pruned).saturating_sub(target).min(more);
        if back > 0 {
            regrow(back, &mut pruned, seen);
        }
        Ok(pruned)
    }
}

/// Gives `back` weights back, those with the largest sum of gradients of what was dropped; ties by layer, then by index.
fn regrow(back: usize, pruned: &mut [(Mask<Ix2>, PruneReport)], seen: &mut [Seen]) {
    let mut found: Vec<(f64, usize, usize)> = Vec::new();
    for (layer, seen) in seen.iter().enumerate() {
        let candidates =
            seen.sums.iter().zip(&seen.dropped).enumerate().filter(|(_, (_, dropped))| **dropped);
        found.extend(candidates.map(|(i, (sum, _))| (sum.abs(), layer, i)));
    }
    found.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    found.truncate(back);
    for (layer, ((mask, report), seen)) in pruned.iter_mut().zip(seen).enumerate() {
        let mut keep = mask.keep().to_owned();
        let columns = keep.ncols();
        for &(_, _, i) in found.iter().filter(|(_, of, _)| *of == layer) {
            let place = [i / columns.max(1), i % columns.max(1)];
            keep[place] = true;
            seen.dropped[place] = false;
            report.dropped = report.dropped.saturating_sub(1);
            report.zeros = report.zeros.saturating_sub(1);
        }
        *mask = Mask::new(keep);
    }
}

impl<F: Float> Callback<F> for GradualPruning {
    fn on_grads(&mut self, mlp: &Mlp<F>, grads: &mut Grads<F>, step: &Step) -> Result<()> {
        if step.step == 0 && !mlp.masks().eq(self.left.iter().map(Some)) {
            (self.report, self.seen, self.left) = (None, Vec::new(), Vec::new());
        }
        if !self.watches_gradients() {
            return Ok(());
        }
        self.meet(mlp);
        for (seen, (linear, dweight)) in self.seen.iter_mut().zip(mlp.linears().zip(grads.dweights())) {
            Zip::from(&mut seen.sums).and(&mut seen.squares).and(linear.weight()).and(dweight).for_each(
                |sum, square, w, dw| {
                    let (w, dw) = (w.as_f64(), dw.as_f64());
                    *sum += dw;
                    *square += (w * dw) * (w * dw);
                },
            );
        }
        Ok(())
    }

    fn on_step(&mut self, mlp: &mut Mlp<F>, step: &Step) -> Result<ControlFlow<()>> {
        let Some(sparsity) = self.schedule.update(step.step as u64) else {
            return Ok(ControlFlow::Continue(()));
        };
        self.meet(mlp);
        let weights: Vec<_> = mlp.linears().map(|linear| linear.weight()).collect();
        let earlier: Vec<_> = mlp.linears().map(mask_or_full).collect();
        let scores = if self.score == Score::Magnitude { Vec::new() } else { self.scores(mlp)? };
        let mut seen = std::mem::take(&mut self.seen);
        let pruned = if self.per_layer {
            let mut pruned = Vec::with_capacity(weights.len());
            for (i, seen) in seen.iter_mut().enumerate() {
                let scores = scores.get(i..i + 1).unwrap_or_default();
                let (weights, earlier) = (&weights[i..i + 1], &earlier[i..i + 1]);
                pruned.extend(self.prune(sparsity, weights, scores, earlier, std::slice::from_mut(seen))?);
            }
            pruned
        } else {
            self.prune(sparsity, &weights, &scores, &earlier, &mut seen)?
        };
        for seen in &mut seen {
            seen.sums.fill(0.0);
            seen.squares.fill(0.0);
        }
        self.seen = seen;
        let (masks, reports): (Vec<_>, Vec<_>) = pruned.into_iter().unzip();
        self.left.clone_from(&masks);
        mlp.apply_masks(masks)?;
        self.report = Some(reports.into_iter().sum());
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

    #[test]
    fn every_score_reaches_the_level_of_the_schedule() {
        let schedule = || Schedule::cubic(0.0, 0.8, 2, 10).unwrap().every(4).unwrap();
        let inputs = data().inputs().to_owned();
        for pruning in [
            GradualPruning::new(schedule()).by_lamp(),
            GradualPruning::new(schedule()).by_taylor(),
            GradualPruning::new(schedule()).by_activations(inputs.view()).unwrap(),
        ] {
            for mut pruning in
                [pruning.clone(), pruning.clone().per_layer(), pruning.with_regrowth(0.3).unwrap()]
            {
                let mut mlp = network();
                let trainer = Trainer::new(4, 10).unwrap();
                let callbacks: &mut [&mut dyn Callback<f64>] = &mut [&mut pruning];
                trainer.fit(&mut mlp, &mut CrossEntropy, &data(), None, &mut Adam::new(), callbacks).unwrap();
                let zeros: usize = mlp.masks().map(|mask| mask.unwrap().len() - mask.unwrap().kept()).sum();
                assert_eq!((zeros, pruning.report().unwrap().zeros), (80, 80), "{:?}", pruning.score);
            }
        }
    }

    #[test]
    fn per_layer_leaves_every_layer_the_same_share() {
        let mut mlp = network();
        let mut pruning = GradualPruning::new(Schedule::constant(0.5, 0).unwrap()).per_layer();
        let trainer = Trainer::new(1, 10).unwrap();
        trainer
            .fit(&mut mlp, &mut CrossEntropy, &data(), None, &mut Adam::new(), &mut [&mut pruning])
            .unwrap();
        assert!(mlp.masks().all(|mask| mask.unwrap().sparsity() == 0.5));
    }

    #[test]
    fn regrowth_changes_which_weights_are_kept_but_not_how_many_and_frees_no_foreign_mask() {
        struct Watch;
        impl Callback<f64> for Watch {
            fn on_step(&mut self, mlp: &mut Mlp<f64>, _: &Step) -> Result<ControlFlow<()>> {
                assert_eq!(mlp.masks().map(|mask| mask.unwrap().kept()).sum::<usize>(), 40);
                assert!(!mlp.masks().next().unwrap().unwrap().keep().row(0).iter().any(|&keep| keep));
                Ok(ControlFlow::Continue(()))
            }
        }
        let masks = |regrowth: f64| {
            let mut mlp = network();
            let first = mlp.linears().next().unwrap();
            let foreign = Array2::from_shape_fn(first.weight().raw_dim(), |(row, _)| row != 0);
            mlp.linears_mut().next().unwrap().set_mask(Mask::new(foreign)).unwrap();
            let pruning = GradualPruning::new(Schedule::constant(0.6, 0).unwrap());
            let mut pruning = pruning.with_regrowth(regrowth).unwrap();
            let trainer = Trainer::new(2, 10).unwrap();
            let callbacks: &mut [&mut dyn Callback<f64>] = &mut [&mut pruning, &mut Watch];
            trainer.fit(&mut mlp, &mut CrossEntropy, &data(), None, &mut Adam::new(), callbacks).unwrap();
            mlp.masks().map(|mask| mask.unwrap().clone()).collect::<Vec<_>>()
        };
        assert_ne!(masks(0.25), masks(0.0));
    }

    #[test]
    fn a_second_training_starts_anew_and_frees_no_mask_of_its_network() {
        let fit = |mlp: &mut Mlp<f64>, pruning: &mut GradualPruning| {
            let trainer = Trainer::new(2, 10).unwrap();
            trainer.fit(mlp, &mut CrossEntropy, &data(), None, &mut Adam::new(), &mut [pruning]).unwrap();
        };
        let fresh = || GradualPruning::new(Schedule::constant(0.6, 0).unwrap()).with_regrowth(0.25).unwrap();
        let mut pruning = fresh();
        fit(&mut network(), &mut pruning);

        let mut mlp = network();
        let foreign = Array2::from_shape_fn((20, 3), |(_, column)| column != 2);
        mlp.linears_mut().next().unwrap().set_mask(Mask::new(foreign.clone())).unwrap();
        let mut alone = mlp.clone();
        fit(&mut mlp, &mut pruning);
        fit(&mut alone, &mut fresh());
        assert_eq!(mlp, alone);
        let mask = mlp.masks().next().unwrap().unwrap();
        assert!(mask.keep().iter().zip(&foreign).all(|(&now, &before)| !now || before));
    }

    #[test]
    fn refuses_an_empty_batch_and_growing_all() {
        let pruning = GradualPruning::new(Schedule::constant(0.5, 0).unwrap());
        assert!(pruning.clone().by_activations(Array2::<f32>::zeros((0, 3)).view()).is_err());
        assert!(pruning.with_regrowth(1.0).is_err());
    }
}
