//! Pruning a network in place: selections over its linear layers, written into their masks.
//!
//! A mask sets weights to zero and holds them there through training. It makes nothing smaller or faster by
//! itself: after neurons were pruned, [`Mlp::shrink`] takes them out; scattered zeros pay in sparse tensors.

use std::ops::Range;

use ndarray::{Array1, Array2, Ix2};

use super::linear::Linear;
use super::mlp::Mlp;
use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::prune::{PruneReport, Pruner, Selection};
use crate::tensor::Mask;

impl<F: Float> Mlp<F> {
    /// Prunes each of these linear layers (counted without other layers) by itself, beyond what its mask has
    /// dropped before. One report per layer. Nothing has changed if this fails.
    ///
    /// ```
    /// use trimnet::nn::Mlp;
    /// use trimnet::prune::{Selection, StructuredPruner};
    /// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
    ///
    /// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    /// let mut mlp = Mlp::builder(8).linear(16).relu().linear(4).build::<f32>(&mut rng)?;
    /// // Half of the hidden neurons; the outputs stay.
    /// mlp.prune_each(0..1, &StructuredPruner::rows(Selection::sparsity(0.5)?))?;
    /// assert_eq!(mlp.shrink()?.0.widths(), [8, 8, 4]);
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there are no such layers; those of the pruner.
    pub fn prune_each(
        &mut self,
        linears: Range<usize>,
        pruner: &impl Pruner<F, Ix2>,
    ) -> Result<Vec<PruneReport>> {
        if linears.end > self.linears().count() {
            return Err(Error::OutOfRange {
                name: "end of the range of linear layers",
                value: linears.end as f64,
                range: "at most the number of linear layers",
            });
        }
        let chosen = self.linears().skip(linears.start).take(linears.len());
        let pruned = chosen
            .map(|l| pruner.mask(l.weight(), l.mask()))
            .collect::<Result<Vec<(Mask<Ix2>, PruneReport)>>>()?;
        self.set_masks(linears.start, pruned)
    }

    /// Prunes all linear layers in one ranking: what scores lowest goes, wherever it stands, beyond what masks
    /// have dropped before. Each layer keeps at least its best `min_keep` weights. One report per layer; their
    /// sum is the whole. Nothing has changed if this fails.
    ///
    /// ```
    /// use trimnet::nn::Mlp;
    /// use trimnet::prune::{Norm, PruneReport, Selection, score};
    /// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
    ///
    /// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    /// let mut mlp = Mlp::builder(10).linear(20).relu().linear(10).build::<f32>(&mut rng)?;
    /// let magnitude = |_, linear: &trimnet::nn::Linear<f32>| Ok(score::magnitude(linear.weight(), Norm::L1));
    /// let reports = mlp.prune_global(&Selection::sparsity(0.9)?, magnitude, 1)?;
    /// assert_eq!(reports.into_iter().sum::<PruneReport>().zeros, 360);
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// `score` is called with the number of each linear layer and the layer, and gives one score per weight.
    ///
    /// # Errors
    /// Those of `score`; [`Error::Shape`] if its scores are not of the shape of the weight; those of
    /// [`Selection::select_global`].
    pub fn prune_global(
        &mut self,
        selection: &Selection,
        score: impl Fn(usize, &Linear<F>) -> Result<Array2<F>>,
        min_keep: usize,
    ) -> Result<Vec<PruneReport>> {
        let mut scores = Vec::new();
        for (index, linear) in self.linears().enumerate() {
            let score = score(index, linear)?;
            check_shape("scores", score.shape(), linear.weight().shape())?;
            scores.push(score);
        }
        let views: Vec<_> = scores.iter().map(|score| score.view()).collect();
        let earlier: Vec<_> = self.linears().map(mask_or_full).collect();
        let pruned = selection.select_global(&views, Some(&earlier), min_keep)?;
        self.set_masks(0, pruned)
    }

    /// Prunes hidden neurons, those of all linear layers but the last, in one ranking, beyond those dropped
    /// before. Each layer keeps at least its best `min_keep` neurons. One report per hidden layer, whose units
    /// are neurons. Nothing has changed if this fails.
    ///
    /// All incoming weights of a dropped neuron are masked, which leaves the constant that its bias makes;
    /// [`shrink`](Self::shrink) folds that into the next bias and removes the neuron.
    ///
    /// `score` is called with a linear layer and the one after it, and gives one score per neuron between them:
    ///
    /// ```
    /// use ndarray::Axis;
    /// use trimnet::nn::{Linear, Mlp};
    /// use trimnet::prune::{Norm, Selection, score::slice_norms};
    /// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
    ///
    /// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    /// let mut mlp = Mlp::builder(10).linear(30).relu().linear(20).relu().linear(5).build::<f64>(&mut rng)?;
    /// let in_times_out = |a: &Linear<f64>, b: &Linear<f64>| {
    ///     Ok(slice_norms(a.weight(), Axis(0), Norm::L2)? * slice_norms(b.weight(), Axis(1), Norm::L2)?)
    /// };
    /// mlp.prune_neurons(&Selection::sparsity(0.8)?, in_times_out, 2)?;
    /// let (small, report) = mlp.shrink()?;
    /// assert_eq!(report.removed(), 40);
    /// assert!(small.parameters() < mlp.parameters() / 3);
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of `score`; [`Error::Shape`] if it gives another number of scores than there are neurons; those of
    /// [`Selection::select_global`].
    pub fn prune_neurons(
        &mut self,
        selection: &Selection,
        score: impl Fn(&Linear<F>, &Linear<F>) -> Result<Array1<F>>,
        min_keep: usize,
    ) -> Result<Vec<PruneReport>> {
        let mut scores = Vec::new();
        let mut earlier = Vec::new();
        for (linear, next) in self.linears().zip(self.linears().skip(1)) {
            let score = score(linear, next)?;
            check_shape("scores", score.shape(), &[linear.outputs()])?;
            scores.push(score);
            let keep = mask_or_full(linear);
            earlier
                .push(Mask::new(keep.keep().rows().into_iter().map(|row| row.iter().any(|&k| k)).collect()));
        }
        let views: Vec<_> = scores.iter().map(|score| score.view()).collect();
        let selected = selection.select_global(&views, Some(&earlier), min_keep)?;
        let mut pruned = Vec::with_capacity(selected.len());
        for (linear, (neurons, report)) in self.linears().zip(selected) {
            let mut keep = mask_or_full(linear).into_keep();
            for (mut row, &neuron) in keep.rows_mut().into_iter().zip(neurons.keep()) {
                row.map_inplace(|keep| *keep &= neuron);
            }
            let mask = Mask::new(keep);
            let report = PruneReport { weights: mask.len(), zeros: mask.len() - mask.kept(), ..report };
            pruned.push((mask, report));
        }
        self.set_masks(0, pruned)
    }

    fn set_masks(&mut self, start: usize, pruned: Vec<(Mask<Ix2>, PruneReport)>) -> Result<Vec<PruneReport>> {
        let mut reports = Vec::with_capacity(pruned.len());
        for (linear, (mask, report)) in self.linears_mut().skip(start).zip(pruned) {
            linear.set_mask(mask)?;
            reports.push(report);
        }
        Ok(reports)
    }
}

pub(super) fn mask_or_full<F: Float>(linear: &Linear<F>) -> Mask<Ix2> {
    linear.mask().cloned().unwrap_or_else(|| Mask::full(linear.weight().raw_dim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Activation, Layer};
    use crate::prune::{MagnitudePruner, Norm, StructuredPruner, score};
    use ndarray::{Axis, array};

    fn network() -> Mlp<f64> {
        let layer = |weight: Array2<f64>| Layer::Linear(Linear::new(weight, None).unwrap());
        Mlp::from_layers(
            2,
            vec![
                layer(array![[1.0, -2.0], [0.3, 0.4], [5.0, 6.0]]),
                Layer::Activation(Activation::Relu),
                layer(array![[0.1, -0.2, 0.05], [0.15, 0.25, 9.0]]),
            ],
        )
        .unwrap()
    }

    fn magnitude(_: usize, linear: &Linear<f64>) -> Result<Array2<f64>> {
        Ok(score::magnitude(linear.weight(), Norm::L1))
    }

    fn incoming(linear: &Linear<f64>, _: &Linear<f64>) -> Result<Array1<f64>> {
        score::slice_norms(linear.weight(), Axis(0), Norm::L2)
    }

    fn zeros(mlp: &Mlp<f64>) -> Vec<usize> {
        mlp.linears().map(|l| l.weight().iter().filter(|&&w| w == 0.0).count()).collect()
    }

    #[test]
    fn a_global_ranking_hits_the_level_over_all_layers_and_spares_the_best_of_each() {
        let half = Selection::sparsity(0.5).unwrap();
        let mut mlp = network();
        let reports = mlp.prune_global(&half, magnitude, 0).unwrap();
        assert_eq!(zeros(&mlp), [1, 5]);
        assert_eq!(reports.into_iter().sum::<PruneReport>().sparsity(), 0.5);

        let mut mlp = network();
        mlp.prune_global(&half, magnitude, 3).unwrap();
        assert_eq!(zeros(&mlp), [3, 3]);
    }

    #[test]
    fn a_second_pruning_goes_on_from_the_first() {
        let mut mlp = network();
        mlp.prune_global(&Selection::sparsity(0.5).unwrap(), magnitude, 0).unwrap();
        mlp.prune_global(&Selection::sparsity(0.75).unwrap(), magnitude, 0).unwrap();
        assert_eq!(zeros(&mlp), [4, 5]);
        mlp.prune_each(0..2, &MagnitudePruner::sparsity(0.5).unwrap()).unwrap();
        assert_eq!(zeros(&mlp), [4, 5]);
    }

    #[test]
    fn pruned_neurons_are_those_that_shrink_removes() {
        let mut mlp = network();
        let reports = mlp.prune_neurons(&Selection::sparsity(2.0 / 3.0).unwrap(), incoming, 1).unwrap();
        assert_eq!(
            (reports[0].units, reports[0].dropped, reports[0].weights, reports[0].zeros),
            (3, 2, 6, 4)
        );
        let x = array![[1.0, 2.0], [-3.0, 1.0]];
        let (small, _) = mlp.shrink().unwrap();
        assert_eq!(small.widths(), [2, 1, 2]);
        assert_eq!(small.predict(x.view()).unwrap(), mlp.predict(x.view()).unwrap());
    }

    #[test]
    fn a_range_leaves_other_layers_alone() {
        let mut mlp = network();
        mlp.prune_each(0..1, &StructuredPruner::rows(Selection::sparsity(0.34).unwrap())).unwrap();
        assert_eq!(zeros(&mlp), [2, 0]);
        assert!(mlp.linears().nth(1).unwrap().mask().is_none());
    }

    #[test]
    fn nothing_changes_when_pruning_fails() {
        let mut mlp = network();
        let half = Selection::sparsity(0.5).unwrap();
        assert!(mlp.prune_each(1..3, &MagnitudePruner::new(half.clone())).is_err());
        assert!(mlp.prune_global(&half, |_, _| Ok(array![[1.0]]), 0).is_err());
        assert!(mlp.prune_neurons(&half, |_, _| Ok(array![1.0]), 0).is_err());
        assert_eq!(mlp, network());
    }
}
