//! The network: a list of layers, each feeding the next.
//!
//! The receiver tells the mode: [`Mlp::predict`] (`&self`) infers, [`Mlp::forward`] (`&mut self`) trains, with
//! chance for dropout from a passed `rng` and the running statistics of batch norms moving.

use ndarray::{Array2, ArrayView2, Ix2};

use super::activation::Activation;
use super::builder::MlpBuilder;
use super::layer::{Flow, Layer};
use super::linear::Linear;
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::float::{Float, check_finite, check_shape};
use crate::kernel::PackedReal;
use crate::tensor::Mask;

/// A feed-forward network.
///
/// ```
/// use trimnet::ndarray::array;
/// use trimnet::nn::{Mlp, Optimizer, Sgd};
/// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let mut mlp = Mlp::builder(2).linear(8).tanh().linear(1).build::<f64>(&mut rng)?;
/// let x = array![[0.0, 1.0], [1.0, 0.0]];
/// let target = array![[1.0], [-1.0]];
///
/// let mut sgd = Sgd::new();
/// for _ in 0..100 {
///     let (y, cache) = mlp.forward(x.view(), &mut rng)?;
///     let grads = mlp.gradients(cache, y - &target)?;
///     sgd.step(&mut mlp, &grads, 0.1)?;
/// }
/// let error = (mlp.predict(x.view())? - target).mapv(f64::abs).sum();
/// assert!(error < 0.01);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "serde",
    serde(try_from = "RawMlp<F>", bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned")
)]
pub struct Mlp<F> {
    inputs: usize,
    layers: Vec<Layer<F>>,
}

// On one element type only, so that `Mlp::builder(784)` needs no annotation: `build` decides.
impl Mlp<f32> {
    /// Starts a description, layer by layer, for this many inputs; `build::<f32>` or `build::<f64>` ends it.
    /// It is always called as `Mlp::builder`, for both types.
    pub fn builder(inputs: usize) -> MlpBuilder {
        MlpBuilder::new(inputs)
    }
}

impl<F: Float> Mlp<F> {
    /// A network of these layers.
    ///
    /// # Errors
    /// [`Error::Empty`] for no inputs or no linear layer; [`Error::Shape`] if the output of a layer does not fit
    /// the next; [`Error::OutOfRange`] for an activation whose setting is not finite in the type of the
    /// weights.
    pub fn from_layers(inputs: usize, layers: Vec<Layer<F>>) -> Result<Self> {
        if inputs == 0 {
            return Err(Error::Empty { what: "the input of the network" });
        }
        if !layers.iter().any(|layer| matches!(layer, Layer::Linear(_))) {
            return Err(Error::Empty { what: "the list of linear layers" });
        }
        layers.iter().try_fold(inputs, |width, layer| layer.outputs(width))?;
        Ok(Self { inputs, layers })
    }

    /// The layers, first to last.
    pub fn layers(&self) -> &[Layer<F>] {
        &self.layers
    }

    /// The layers, for code of this module that keeps their widths.
    pub(super) fn layers_mut(&mut self) -> &mut [Layer<F>] {
        &mut self.layers
    }

    /// The layers themselves.
    pub fn into_layers(self) -> Vec<Layer<F>> {
        self.layers
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.linears().last().map_or(self.inputs, Linear::outputs)
    }

    /// The inputs, then the outputs of every linear layer: `[784, 300, 100, 10]`.
    pub fn widths(&self) -> Vec<usize> {
        std::iter::once(self.inputs).chain(self.linears().map(Linear::outputs)).collect()
    }

    /// The linear layers, first to last.
    pub fn linears(&self) -> impl DoubleEndedIterator<Item = &Linear<F>> {
        self.layers.iter().filter_map(|layer| match layer {
            Layer::Linear(linear) => Some(linear),
            _ => None,
        })
    }

    /// The linear layers, to set their weights, biases and masks. A layer put in the place of another must have
    /// its shape; if not, the next use of the network is an [`Error::Shape`].
    pub fn linears_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Linear<F>> {
        self.layers.iter_mut().filter_map(|layer| match layer {
            Layer::Linear(linear) => Some(linear),
            _ => None,
        })
    }

    /// Number of weights, biases, gammas and betas, zeros included.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(Layer::parameters).sum()
    }

    /// Number of those that are not zero.
    pub fn nonzero(&self) -> usize {
        self.layers.iter().map(Layer::nonzero).sum()
    }

    /// Inference: `[n, inputs]` to `[n, outputs]`. No rows in, no rows out.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of inputs, [`Error::NotFinite`] for NaN or infinity.
    pub fn predict(&self, x: ArrayView2<'_, F>) -> Result<Array2<F>> {
        self.predict_with(x, &mut Workspace::new())
    }

    /// As [`predict`](Self::predict), with threads and memory that are kept from call to call.
    ///
    /// # Errors
    /// As [`predict`](Self::predict).
    pub fn predict_with(&self, x: ArrayView2<'_, F>, workspace: &mut Workspace<F>) -> Result<Array2<F>> {
        self.infer(x, &self.layers, &[], workspace)
    }

    /// Inference up to and including the layer at `layer`: its output, `[n, width]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is no such layer, else as [`predict`](Self::predict).
    pub fn hidden(&self, x: ArrayView2<'_, F>, layer: usize) -> Result<Array2<F>> {
        self.check_layer(layer)?;
        self.infer(x, &self.layers[..=layer], &[], &mut Workspace::new())
    }

    /// Inference through `layers`, whose weights are `packed` as far as there are any.
    pub(super) fn infer(
        &self,
        x: ArrayView2<'_, F>,
        mut layers: &[Layer<F>],
        mut packed: &[Option<PackedReal<F>>],
        workspace: &mut Workspace<F>,
    ) -> Result<Array2<F>> {
        self.check_input(x)?;
        let mut flow = Flow::Input(x);
        while let [layer, rest @ ..] = layers {
            let relu = matches!(rest, [Layer::Activation(Activation::Relu), ..]);
            let rides = relu && matches!(layer, Layer::Linear(_));
            flow = layer.infer(flow, packed.first().and_then(Option::as_ref), rides, workspace)?;
            let done = if rides { 2 } else { 1 };
            (layers, packed) = (&layers[done..], packed.get(done..).unwrap_or_default());
        }
        Ok(flow.into_owned(workspace))
    }

    pub(super) fn check_input(&self, x: ArrayView2<'_, F>) -> Result<()> {
        check_shape("input", x.shape(), &[x.nrows(), self.inputs])?;
        check_finite("input", &x)
    }

    pub(super) fn check_layer(&self, layer: usize) -> Result<()> {
        if layer < self.layers.len() {
            return Ok(());
        }
        Err(Error::OutOfRange {
            name: "layer",
            value: layer as f64,
            range: "below the number of layers of the network",
        })
    }

    /// The mask of every linear layer, first to last; `None` where none is set.
    pub fn masks(&self) -> impl Iterator<Item = Option<&Mask<Ix2>>> {
        self.linears().map(Linear::mask)
    }

    /// Sets one mask per linear layer, as [`Linear::set_mask`] does. Nothing has changed if this fails.
    ///
    /// Masks alone make nothing smaller or faster: follow with [`shrink`](Self::shrink), or store the weights as
    /// sparse tensors.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more or fewer masks than linear layers, or one has another shape than its
    /// weight.
    pub fn apply_masks(&mut self, masks: Vec<Mask<Ix2>>) -> Result<()> {
        check_shape("list of masks", &[masks.len()], &[self.linears().count()])?;
        for (linear, mask) in self.linears().zip(&masks) {
            check_shape("mask", mask.keep().shape(), linear.weight().shape())?;
        }
        for (linear, mask) in self.linears_mut().zip(masks) {
            linear.set_mask(mask)?;
        }
        Ok(())
    }
}

/// What a file holds, before it is checked.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(rename = "Mlp", bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned")]
struct RawMlp<F> {
    inputs: usize,
    layers: Vec<Layer<F>>,
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<RawMlp<F>> for Mlp<F> {
    type Error = Error;

    fn try_from(raw: RawMlp<F>) -> Result<Self> {
        Self::from_layers(raw.inputs, raw.layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Activation;
    use ndarray::array;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    fn layer(weight: Array2<f64>) -> Layer<f64> {
        Layer::Linear(Linear::new(weight, None).unwrap())
    }

    fn network() -> Mlp<f64> {
        let relu = Layer::Activation(Activation::Relu);
        Mlp::from_layers(2, vec![layer(array![[1.0, -1.0], [0.0, 2.0]]), relu, layer(array![[1.0, 1.0]])])
            .unwrap()
    }

    #[test]
    fn predicts_and_shows_its_hidden_layers() {
        let (mlp, x) = (network(), array![[1.0, 3.0], [3.0, 1.0]]);
        assert_eq!(mlp.hidden(x.view(), 0).unwrap(), array![[-2.0, 6.0], [2.0, 2.0]]);
        assert_eq!(mlp.hidden(x.view(), 1).unwrap(), array![[0.0, 6.0], [2.0, 2.0]]);
        assert_eq!(mlp.hidden(x.view(), 2).unwrap(), mlp.predict(x.view()).unwrap());
        assert_eq!(mlp.predict(x.view()).unwrap(), array![[6.0], [4.0]]);
        assert_eq!(
            mlp.hidden(x.view(), 3).unwrap_err().to_string(),
            "layer is 3, allowed is below the number of layers of the network"
        );
    }

    #[test]
    fn refuses_inputs_that_do_not_fit_or_are_not_finite() {
        let mut mlp = network();
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
        let wide = array![[1.0, 2.0, 3.0]];
        let nan = array![[1.0, 2.0], [3.0, f64::NAN]];
        for error in [mlp.predict(wide.view()).err(), mlp.forward(wide.view(), &mut rng).err()] {
            assert_eq!(error.unwrap().to_string(), "input has shape [1, 3], expected [1, 2]");
        }
        for error in [mlp.predict(nan.view()).err(), mlp.forward(nan.view(), &mut rng).err()] {
            assert_eq!(
                error.unwrap().to_string(),
                "input is NaN at index [1, 1]; only finite numbers are allowed"
            );
        }
    }

    #[test]
    fn no_rows_predict_no_rows_but_cannot_train() {
        let mut mlp = network();
        let none = Array2::zeros((0, 2));
        assert_eq!(mlp.predict(none.view()).unwrap().shape(), [0, 1]);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
        assert_eq!(mlp.forward(none.view(), &mut rng).unwrap_err().to_string(), "the batch is empty");
    }

    #[test]
    fn a_batch_of_one_cannot_train_a_batch_norm_but_predicts() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
        let mut mlp = Mlp::builder(2).linear(3).batch_norm().build::<f32>(&mut rng).unwrap();
        let one = array![[1.0, 2.0]];
        assert!(matches!(mlp.forward(one.view(), &mut rng), Err(Error::BatchTooSmall { rows: 1, .. })));
        assert!(mlp.predict(one.view()).is_ok());
    }

    #[test]
    fn inference_draws_nothing_and_training_of_the_same_seed_repeats() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
        let mut mlp = Mlp::builder(2).linear(30).dropout(0.5).linear(1).build::<f64>(&mut rng).unwrap();
        let x = array![[1.0, 2.0]];
        let mut train = |seed| {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            mlp.forward(x.view(), &mut rng).unwrap().0
        };
        assert_eq!(train(1), train(1));
        assert_ne!(train(1), train(2));
        assert_eq!(mlp.predict(x.view()).unwrap(), mlp.predict(x.view()).unwrap());
    }

    #[test]
    fn refuses_layers_that_do_not_fit_each_other() {
        let error = |layers| Mlp::from_layers(2, layers).unwrap_err().to_string();
        assert_eq!(
            error(vec![layer(array![[1.0, 2.0]]), layer(array![[1.0, 2.0]])]),
            "weight has shape [1, 2], expected [1, 1]"
        );
        let norm = crate::normalize::BatchNorm::new(3).unwrap();
        assert_eq!(
            error(vec![layer(array![[1.0, 2.0]]), Layer::BatchNorm(norm)]),
            "batch norm has shape [3], expected [1]"
        );
        assert_eq!(error(vec![Layer::Activation(Activation::Relu)]), "the list of linear layers is empty");
    }

    #[test]
    fn masks_are_set_all_or_none() {
        let mut mlp = network();
        let good = Mask::new(array![[true, false], [true, true]]);
        let bad = Mask::new(array![[true]]);
        assert!(mlp.apply_masks(vec![good.clone()]).is_err());
        assert!(mlp.apply_masks(vec![good.clone(), bad]).is_err());
        assert!(mlp.masks().all(|mask| mask.is_none()));
        mlp.apply_masks(vec![good.clone(), Mask::new(array![[true, true]])]).unwrap();
        assert_eq!(mlp.masks().next().unwrap(), Some(&good));
        assert_eq!((mlp.parameters(), mlp.nonzero()), (6, 4));
    }

    #[test]
    fn a_clone_is_a_network_like_any_other() {
        let mut mlp = network();
        let copy = mlp.clone();
        let masks = mlp.linears().map(|l| Mask::new(l.weight().mapv(|_| false))).collect();
        mlp.apply_masks(masks).unwrap();
        assert_ne!(mlp, copy);
        assert_eq!(copy, network());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn comes_back_from_serde_and_refuses_what_is_not_a_network() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let mut mlp = Mlp::builder(2)
            .linear(3)
            .batch_norm()
            .leaky_relu(0.1)
            .dropout(0.25)
            .linear_no_bias(2)
            .layer_norm()
            .gaussian_noise(0.5)
            .build::<f32>(&mut rng) // serde_json does not promise the last bit of an f64
            .unwrap();
        let masks = mlp.linears().map(|l| Mask::new(l.weight().mapv(|w| w > 0.0))).collect();
        mlp.apply_masks(masks).unwrap();
        let json = serde_json::to_string(&mlp).unwrap();
        assert_eq!(serde_json::from_str::<Mlp<f32>>(&json).unwrap(), mlp);

        for (good, bad) in [
            (r#""inputs":2"#, r#""inputs":3"#),
            (r#""inputs":2"#, r#""inputs":0"#),
            ("0.25", "1.5"),
            (r#""LeakyRelu":0.1"#, r#""LeakyRelu":1e300"#),
        ] {
            assert!(json.contains(good), "{json}");
            assert!(serde_json::from_str::<Mlp<f32>>(&json.replace(good, bad)).is_err(), "{bad}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn optimizer_state_comes_back_from_serde() {
        use crate::nn::{Adam, Optimizer};
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let (mut a, x) = (network(), array![[1.0, 3.0], [3.0, 1.0]]);
        let mut adam = Adam::new();
        let mut train = |mlp: &mut Mlp<f64>, adam: &mut Adam<f64>| {
            let (y, cache) = mlp.forward(x.view(), &mut rng).unwrap();
            let grads = mlp.gradients(cache, y).unwrap();
            adam.step(mlp, &grads, 0.1)
        };
        train(&mut a, &mut adam).unwrap();
        let json = serde_json::to_string(&adam).unwrap();
        let (mut b, mut copy) = (a.clone(), serde_json::from_str::<Adam<f64>>(&json).unwrap());
        train(&mut a, &mut adam).unwrap();
        train(&mut b, &mut copy).unwrap();
        let difference = a.predict(x.view()).unwrap() - b.predict(x.view()).unwrap();
        assert!(difference.iter().all(|d| d.abs() < 1e-12));

        assert!(serde_json::from_str::<Adam<f64>>(&json.replace("0.999", "1.0")).is_err());
        let mut short: Adam<f64> =
            serde_json::from_str(&json.replace("\"numbers\":[[", "\"numbers\":[[1,")).unwrap();
        assert!(matches!(train(&mut b, &mut short), Err(Error::Shape { .. })));
    }
}
