//! Training passes: forward with a cache, and back through it.

use ndarray::{Array2, ArrayView2};
use rand::Rng;

use super::grads::{Grads, LayerGrads};
use super::layer::{Layer, LayerCache, Reach};
use super::mlp::Mlp;
use crate::error::{Error, Result};
use crate::float::{Float, check_shape};

/// What [`Mlp::backward`] needs of the forward pass. It is handed back by value: a stale one cannot be used twice.
#[derive(Clone, Debug)]
pub struct MlpCache<F: Float> {
    rows: usize,
    layers: Vec<LayerCache<F>>,
    /// Features that leave each layer: the cache fits a network whose layers have the same.
    widths: Vec<usize>,
    /// The outputs that were asked for, each with its layer.
    hidden: Vec<(usize, Array2<F>)>,
}

impl<F: Float> MlpCache<F> {
    /// The output `[n, width]` of this layer, if [`Mlp::forward_with_hidden`] was asked to keep it.
    pub fn hidden(&self, layer: usize) -> Option<ArrayView2<'_, F>> {
        self.hidden.iter().find(|(kept, _)| *kept == layer).map(|(_, output)| output.view())
    }
}

impl<F: Float> Mlp<F> {
    /// Training: `[n, inputs]` to logits `[n, outputs]`. Draws for dropout and noise from `rng`, and folds the
    /// statistics of this batch into the batch norms.
    ///
    /// # Errors
    /// [`Error::Empty`] for a batch without rows, [`Error::BatchTooSmall`] for one row with a batch norm,
    /// [`Error::Shape`] for another number of inputs, [`Error::NotFinite`] for NaN or infinity.
    pub fn forward(&mut self, x: ArrayView2<'_, F>, rng: &mut dyn Rng) -> Result<(Array2<F>, MlpCache<F>)> {
        self.forward_with_hidden(x, &[], rng)
    }

    /// As [`forward`](Self::forward), and keeps the outputs of these layers for [`MlpCache::hidden`]: what a
    /// distillation hint compares with its teacher's.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::OutOfRange`] if there is no such layer.
    pub fn forward_with_hidden(
        &mut self,
        x: ArrayView2<'_, F>,
        hidden: &[usize],
        rng: &mut dyn Rng,
    ) -> Result<(Array2<F>, MlpCache<F>)> {
        hidden.iter().try_for_each(|&layer| self.check_layer(layer))?;
        self.check_input(x)?;
        let rows = x.nrows();
        if rows == 0 {
            return Err(Error::Empty { what: "the batch" });
        }
        let layers = self.layers_mut();
        let mut cache = MlpCache {
            rows,
            layers: Vec::with_capacity(layers.len()),
            widths: Vec::with_capacity(layers.len()),
            hidden: Vec::with_capacity(hidden.len()),
        };
        let mut x = x.to_owned();
        for (index, layer) in layers.iter_mut().enumerate() {
            let (y, layer_cache) = layer.forward(x, rng)?;
            if hidden.contains(&index) {
                cache.hidden.push((index, y.clone()));
            }
            cache.widths.push(y.ncols());
            cache.layers.push(layer_cache);
            x = y;
        }
        Ok((x, cache))
    }

    /// The gradients `dx` by the input and those by all parameters, from `dlogits` `[n, outputs]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `dlogits` is not of the batch of the cache; [`Error::Shape`] or
    /// [`Error::Unsupported`] if the cache is of a network with other layers.
    pub fn backward(&self, cache: MlpCache<F>, dlogits: Array2<F>) -> Result<(Array2<F>, Grads<F>)> {
        self.backward_with_hints(cache, dlogits, &[])
    }

    /// As [`backward`](Self::backward), with further gradients `(layer, dhidden)` by the outputs of layers, as
    /// from a loss that looks at hidden activations.
    ///
    /// # Errors
    /// As [`backward`](Self::backward); [`Error::OutOfRange`] if there is no such layer, [`Error::Shape`] if a
    /// gradient is not of its output.
    pub fn backward_with_hints(
        &self,
        cache: MlpCache<F>,
        dlogits: Array2<F>,
        hints: &[(usize, Array2<F>)],
    ) -> Result<(Array2<F>, Grads<F>)> {
        let rows = cache.rows;
        let (dx, grads) = self.walk_back(cache, dlogits, hints, Reach::Input)?;
        // With this reach there always is one.
        Ok((dx.unwrap_or_else(|| Array2::zeros((rows, self.inputs()))), grads))
    }

    /// Only the gradients by the parameters: as [`backward`](Self::backward) without the matrix product for
    /// `dx`, the dearest of a wide first layer. What training calls.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn gradients(&self, cache: MlpCache<F>, dlogits: Array2<F>) -> Result<Grads<F>> {
        self.gradients_with_hints(cache, dlogits, &[])
    }

    /// As [`gradients`](Self::gradients), with the further gradients of
    /// [`backward_with_hints`](Self::backward_with_hints).
    ///
    /// # Errors
    /// As [`backward_with_hints`](Self::backward_with_hints).
    pub fn gradients_with_hints(
        &self,
        cache: MlpCache<F>,
        dlogits: Array2<F>,
        hints: &[(usize, Array2<F>)],
    ) -> Result<Grads<F>> {
        Ok(self.walk_back(cache, dlogits, hints, Reach::Parameters)?.1)
    }

    fn walk_back(
        &self,
        cache: MlpCache<F>,
        dlogits: Array2<F>,
        hints: &[(usize, Array2<F>)],
        reach: Reach,
    ) -> Result<(Option<Array2<F>>, Grads<F>)> {
        let mut width = self.inputs();
        let mut widths = Vec::with_capacity(self.layers().len());
        for layer in self.layers() {
            width = layer.outputs(width)?;
            widths.push(width);
        }
        check_shape("cache of the forward pass", &cache.widths, &widths)?;
        check_shape("dlogits", dlogits.shape(), &[cache.rows, width])?;
        for (layer, dhidden) in hints {
            self.check_layer(*layer)?;
            check_shape("dhidden", dhidden.shape(), &[cache.rows, widths[*layer]])?;
        }

        let mut grads = Vec::with_capacity(self.layers().len());
        let learns = |layer: &Layer<F>| layer.parameters() > 0;
        let lowest = self.layers().iter().position(learns).unwrap_or_default();
        let mut dy = Some(dlogits);
        for (index, (layer, cache)) in self.layers().iter().zip(cache.layers).enumerate().rev() {
            let Some(mut d) = dy.take() else {
                grads.push(LayerGrads::None);
                continue;
            };
            for (_, dhidden) in hints.iter().filter(|(layer, _)| *layer == index) {
                d += dhidden;
            }
            let reach = if index > lowest { Reach::Input } else { reach };
            let (dx, layer_grads) = layer.backward(cache, d, reach)?;
            grads.push(layer_grads);
            dy = dx;
        }
        grads.reverse();
        Ok((dy, Grads::new(grads)))
    }
}
