//! Training passes: forward with a cache, and back through it.
//!
//! A relu between two linear layers rides on the first and keeps nothing: the input that the second keeps is positive
//! exactly where it was.

use ndarray::{Array2, ArrayView2};
use rand::Rng;

use super::activation::Activation;
use super::grads::{Grads, LayerGrads};
use super::layer::{Flow, Layer, LayerCache, Reach};
use super::mlp::Mlp;
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::float::{Float, check_shape};

/// What [`Mlp::backward`] needs of the forward pass. It is handed back by value: a stale one cannot be used twice.
#[derive(Clone, Debug)]
pub struct MlpCache<F: Float> {
    rows: usize,
    /// The input, unless the caller brings it again.
    input: Option<Array2<F>>,
    layers: Vec<LayerCache<F>>,
    /// Features that leave each layer: the cache fits a network whose layers have the same.
    widths: Vec<usize>,
    /// The outputs that were asked for, each with its layer.
    hidden: Vec<(usize, Array2<F>)>,
}

impl<F: Float> Default for MlpCache<F> {
    fn default() -> Self {
        Self { rows: 0, input: None, layers: Vec::new(), widths: Vec::new(), hidden: Vec::new() }
    }
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
        self.check_input(x)?;
        let (y, mut cache) = self.pass(x, hidden, rng, &mut Workspace::new())?;
        cache.input = Some(x.to_owned());
        Ok((y, cache))
    }

    /// The forward pass for an `x` that is finite. The cache does not hold it.
    pub(super) fn pass(
        &mut self,
        x: ArrayView2<'_, F>,
        hidden: &[usize],
        rng: &mut dyn Rng,
        workspace: &mut Workspace<F>,
    ) -> Result<(Array2<F>, MlpCache<F>)> {
        hidden.iter().try_for_each(|&layer| self.check_layer(layer))?;
        check_shape("input", x.shape(), &[x.nrows(), self.inputs()])?;
        if x.nrows() == 0 {
            return Err(Error::Empty { what: "the batch" });
        }
        let mut cache = workspace.take_cache();
        cache.rows = x.nrows();
        let mut flow = Flow::Input(x);
        let (mut rest, mut rode) = (self.layers_mut(), false);
        while let [layer, next @ ..] = rest {
            let index = cache.layers.len();
            let relu = matches!(next, [Layer::Activation(Activation::Relu), then @ ..] if feeds_linear(then));
            let rides = relu && matches!(layer, Layer::Linear(_)) && !hidden.contains(&index);
            let (y, layer_cache) = if rode {
                (flow.into_owned(workspace), LayerCache::Relu(None))
            } else {
                layer.forward(flow, rides, feeds_linear(next), rng, workspace)?
            };
            if hidden.contains(&index) {
                cache.hidden.push((index, y.clone()));
            }
            cache.widths.push(y.ncols());
            cache.layers.push(layer_cache);
            flow = Flow::Owned(y);
            (rest, rode) = (next, rides);
        }
        Ok((flow.into_owned(workspace), cache))
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
        let workspace = &mut Workspace::new();
        let (dx, grads) = self.walk_back(cache, None, dlogits, hints, Reach::Input, workspace)?;
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
        Ok(self.walk_back(cache, None, dlogits, hints, Reach::Parameters, &mut Workspace::new())?.1)
    }

    /// The gradients by the parameters after [`pass`](Self::pass) over `x`.
    pub(super) fn pass_back(
        &self,
        cache: MlpCache<F>,
        x: ArrayView2<'_, F>,
        dlogits: Array2<F>,
        hints: &[(usize, Array2<F>)],
        workspace: &mut Workspace<F>,
    ) -> Result<Grads<F>> {
        Ok(self.walk_back(cache, Some(x), dlogits, hints, Reach::Parameters, workspace)?.1)
    }

    fn walk_back(
        &self,
        mut cache: MlpCache<F>,
        x: Option<ArrayView2<'_, F>>,
        dlogits: Array2<F>,
        hints: &[(usize, Array2<F>)],
        reach: Reach,
        workspace: &mut Workspace<F>,
    ) -> Result<(Option<Array2<F>>, Grads<F>)> {
        self.check_widths(&cache.widths)?;
        let width = cache.widths.last().copied().unwrap_or_default();
        check_shape("dlogits", dlogits.shape(), &[cache.rows, width])?;
        for (layer, dhidden) in hints {
            self.check_layer(*layer)?;
            check_shape("dhidden", dhidden.shape(), &[cache.rows, cache.widths[*layer]])?;
        }
        let held = cache.input.take();
        let input = x.or(held.as_ref().map(|x| x.view()));

        let mut grads = workspace.take_grads();
        let learns = |layer: &Layer<F>| layer.parameters() > 0;
        let lowest = self.layers().iter().position(learns).unwrap_or_default();
        let mut dy = Some(dlogits);
        // The input of the linear layer that was passed last: where it is positive, so was the relu that fed it.
        let mut fed = None;
        for (index, (layer, cache)) in self.layers().iter().zip(cache.layers.drain(..)).enumerate().rev() {
            let Some(mut d) = dy.take() else {
                grads.push(LayerGrads::None);
                continue;
            };
            for (_, dhidden) in hints.iter().filter(|(layer, _)| *layer == index) {
                d += dhidden;
            }
            let reach = if index > lowest { Reach::Input } else { reach };
            let (dx, mut layer_grads) = layer.backward(cache, input, d, reach, &mut fed, workspace)?;
            if let (Layer::Linear(linear), LayerGrads::Linear(grads)) = (layer, &mut layer_grads)
                && let Some(Layer::BatchNorm(_)) = self.layers().get(index + 1)
            {
                linear.hold_dead_biases(grads);
            }
            grads.push(layer_grads);
            dy = dx;
        }
        grads.reverse();
        if let Some(fed) = fed {
            workspace.recycle(fed);
        }
        cache.widths.clear();
        cache.hidden.clear();
        workspace.give_cache(cache);
        Ok((dy, Grads::new(grads)))
    }

    /// Refuses a cache of another network.
    fn check_widths(&self, found: &[usize]) -> Result<()> {
        let mut width = self.inputs();
        let mut fits = found.len() == self.layers().len();
        for (layer, &found) in self.layers().iter().zip(found) {
            width = layer.outputs(width)?;
            fits &= width == found;
        }
        if fits {
            return Ok(());
        }
        let mut width = self.inputs();
        let mut widths = Vec::with_capacity(self.layers().len());
        for layer in self.layers() {
            width = layer.outputs(width)?;
            widths.push(width);
        }
        check_shape("cache of the forward pass", found, &widths)
    }
}

/// Whether these layers begin with a linear one.
fn feeds_linear<F>(layers: &[Layer<F>]) -> bool {
    matches!(layers, [Layer::Linear(_), ..])
}
