//! Estimate: batch norms take their running statistics from data, because weights before them have changed without training.
//!
//! ```text
//! for each batch norm, first to last:   h = what enters it, in inference, for all rows of x
//!                                       running_mean = mean(h)    running_var = var(h)
//! ```
//!
//! The later norms see what the earlier ones, estimated already, let through: what they will see when the network is used.
//! PyTorch's `update_bn` runs the network in training instead, with dropout and with statistics of each batch.

use ndarray::ArrayView2;

use super::layer::{Flow, Layer};
use super::mlp::Mlp;
use super::workspace::Workspace;
use crate::error::Result;
use crate::float::Float;
use crate::traits::Normalizer;

impl<F: Float> Mlp<F> {
    /// Sets the running statistics of all batch norms to those of the rows of `x` `[n, inputs]`, some hundreds or more of the
    /// kind that the network was trained on; labels are not needed. Returns how many norms there are. To be called after weights
    /// were pruned, rounded or averaged, and before norms are folded or an engine is built.
    ///
    /// ```
    /// use trimnet::ndarray::Array2;
    /// use trimnet::nn::{Linear, Mlp};
    /// use trimnet::prune::{Norm, Selection, score::slice_norms};
    /// use trimnet::rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
    ///
    /// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    /// let mut mlp = Mlp::builder(8).linear(32).batch_norm().relu().linear(2).build::<f32>(&mut rng)?;
    /// let x = Array2::from_shape_simple_fn((500, 8), || rng.random_range(-1.0..1.0));
    /// let by_row = |linear: &Linear<f32>, _: &_| slice_norms(linear.weight(), trimnet::ndarray::Axis(0), Norm::L2);
    /// mlp.prune_neurons(&Selection::sparsity(0.5)?, by_row, 4)?;
    /// assert_eq!(mlp.estimate_batch_norms(x.view())?, 1);
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another number of inputs, [`Error::NotFinite`](crate::Error::NotFinite) for NaN or
    /// infinity there or in front of a norm, [`Error::BatchTooSmall`](crate::Error::BatchTooSmall) for fewer than two rows. The network
    /// stays what it was then.
    pub fn estimate_batch_norms(&mut self, x: ArrayView2<'_, F>) -> Result<usize> {
        self.check_input(x)?;
        let is_norm = |layer: &Layer<F>| matches!(layer, Layer::BatchNorm(_));
        let end = self.layers().iter().rposition(is_norm).map_or(0, |last| last + 1);
        let (mut flow, mut workspace, mut norms) = (Flow::Input(x), Workspace::new(), Vec::new());
        for layer in &self.layers()[..end] {
            flow = match layer {
                Layer::BatchNorm(norm) => {
                    let mut norm = norm.clone();
                    norm.estimate(flow.view())?;
                    let y = norm.normalize(flow.into_owned(&mut workspace))?;
                    norms.push(norm);
                    Flow::Owned(y)
                }
                _ => layer.infer(flow, None, false, &mut workspace)?,
            };
        }
        let count = norms.len();
        let places = self.layers_mut().iter_mut().filter(|layer| is_norm(layer));
        places.zip(norms).for_each(|(place, norm)| *place = Layer::BatchNorm(norm));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::normalize::{BatchNorm, BnConvention};
    use approx::assert_abs_diff_eq;
    use ndarray::{Array2, Axis, array};
    use rand::rngs::Xoshiro256PlusPlus;
    use rand::{RngExt, SeedableRng};

    /// Two norms, of which the first is behind a relu and dropout, and rows for them.
    fn network() -> (Mlp<f64>, Array2<f64>) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let builder =
            Mlp::builder(5).linear(7).relu().dropout(0.5).batch_norm().linear(6).batch_norm().relu();
        let mlp = builder.linear(3).build(&mut rng).unwrap();
        (mlp, Array2::from_shape_simple_fn((40, 5), || rng.random_range(-2.0..3.0)))
    }

    fn norms(mlp: &Mlp<f64>) -> Vec<(usize, &BatchNorm<f64>)> {
        let layers = mlp.layers().iter().enumerate();
        layers
            .filter_map(|(i, layer)| if let Layer::BatchNorm(norm) = layer { Some((i, norm)) } else { None })
            .collect()
    }

    #[test]
    fn each_norm_has_the_statistics_of_what_enters_it() {
        let (mut mlp, x) = network();
        assert_eq!(mlp.estimate_batch_norms(x.view()).unwrap(), 2);
        for (i, norm) in norms(&mlp) {
            let h = mlp.hidden(x.view(), i - 1).unwrap();
            assert_abs_diff_eq!(norm.running_mean(), h.mean_axis(Axis(0)).unwrap().view(), epsilon = 1e-12);
            assert_abs_diff_eq!(norm.running_var(), h.var_axis(Axis(0), 1.0).view(), epsilon = 1e-12);
            assert_eq!(norm.batches(), 1);
        }
        let once = mlp.clone();
        mlp.estimate_batch_norms(x.view()).unwrap();
        assert_eq!(mlp, once, "the statistics before do not matter");
    }

    /// What a norm sees is the same whatever the scale of the weights before it.
    #[test]
    fn weights_that_were_scaled_no_longer_matter() {
        let (mut mlp, x) = network();
        mlp.estimate_batch_norms(x.view()).unwrap();
        let before = mlp.predict(x.view()).unwrap();
        for linear in mlp.linears_mut().take(2) {
            let (weight, bias) =
                (linear.weight().mapv(|w| 1e3 * w), linear.bias().map(|b| b.mapv(|b| 1e3 * b)));
            linear.set_weight(weight).unwrap();
            linear.set_bias(bias).unwrap();
        }
        assert!((&mlp.predict(x.view()).unwrap() - &before).iter().any(|d| d.abs() > 1.0));
        mlp.estimate_batch_norms(x.view()).unwrap();
        assert_abs_diff_eq!(mlp.predict(x.view()).unwrap(), before, epsilon = 1e-4);
    }

    #[test]
    fn a_convention_keeps_its_variance() {
        for (convention, var) in
            [(BnConvention::Torch, 4.0), (BnConvention::Onnx, 2.0), (BnConvention::Burn, 2.0)]
        {
            let mut norm = BatchNorm::<f64>::new(1).unwrap().with_convention(convention);
            norm.estimate(array![[1.0], [1.0 + 8f64.sqrt()]].view()).unwrap();
            assert_abs_diff_eq!(norm.running_var()[0], var, epsilon = 1e-12);
        }
    }

    #[test]
    fn what_cannot_be_estimated_changes_nothing() {
        let (mut mlp, mut x) = network();
        let before = mlp.clone();
        let error = mlp.estimate_batch_norms(x.slice(ndarray::s![..1, ..])).unwrap_err();
        assert!(matches!(error, Error::BatchTooSmall { .. }), "{error}");
        let error = mlp.estimate_batch_norms(x.slice(ndarray::s![.., ..4])).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        x[[7, 2]] = f64::INFINITY;
        let error = mlp.estimate_batch_norms(x.view()).unwrap_err();
        assert!(matches!(error, Error::NotFinite { .. }), "{error}");
        assert_eq!(mlp, before);
        let plain = Mlp::builder(5).linear(2);
        let mut plain = plain.build::<f64>(&mut Xoshiro256PlusPlus::seed_from_u64(1)).unwrap();
        x[[7, 2]] = 0.0;
        assert_eq!(plain.estimate_batch_norms(x.view()).unwrap(), 0);
    }
}
