//! Describes a network in one readable chain; `build` draws its weights.

use rand::Rng;

use super::activation::Activation;
use super::init::Init;
use super::layer::Layer;
use super::linear::Linear;
use super::mlp::Mlp;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::normalize::{BatchNorm, LayerNorm};
use crate::regularize::{Dropout, GaussianNoise};

/// A network being described. Everything is checked by [`build`](Self::build).
///
/// ```
/// use trimnet::nn::Mlp;
/// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let mlp = Mlp::builder(784)
///     .linear(300).batch_norm().relu().dropout(0.5)
///     .linear(100).gelu()
///     .linear(10)
///     .build::<f32>(&mut rng)?;
/// assert_eq!(mlp.widths(), [784, 300, 100, 10]);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a description is nothing until it is built"]
pub struct MlpBuilder {
    inputs: usize,
    init: Init,
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Linear { outputs: usize, bias: Bias },
    BatchNorm,
    LayerNorm,
    Activation(Activation),
    Dropout(f64),
    GaussianNoise(f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bias {
    Yes,
    No,
}

impl MlpBuilder {
    pub(super) fn new(inputs: usize) -> Self {
        Self { inputs, init: Init::default(), steps: Vec::new() }
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// How the weights of all linear layers are drawn; [`Init::KaimingNormal`] if not said.
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// A linear layer with this many outputs and a bias.
    pub fn linear(self, outputs: usize) -> Self {
        self.then(Step::Linear { outputs, bias: Bias::Yes })
    }

    /// A linear layer without a bias, as before a batch norm, whose beta makes the bias redundant.
    pub fn linear_no_bias(self, outputs: usize) -> Self {
        self.then(Step::Linear { outputs, bias: Bias::No })
    }

    /// Batch norm, in PyTorch's convention.
    pub fn batch_norm(self) -> Self {
        self.then(Step::BatchNorm)
    }

    /// Layer norm.
    pub fn layer_norm(self) -> Self {
        self.then(Step::LayerNorm)
    }

    /// An activation.
    pub fn activation(self, activation: Activation) -> Self {
        self.then(Step::Activation(activation))
    }

    /// `max(x, 0)`.
    pub fn relu(self) -> Self {
        self.activation(Activation::Relu)
    }

    /// `x` above zero, `slope * x` below.
    pub fn leaky_relu(self, slope: f64) -> Self {
        self.activation(Activation::LeakyRelu(slope))
    }

    /// `x` above zero, `alpha * (e^x - 1)` below.
    pub fn elu(self, alpha: f64) -> Self {
        self.activation(Activation::Elu(alpha))
    }

    /// The hyperbolic tangent.
    pub fn tanh(self) -> Self {
        self.activation(Activation::Tanh)
    }

    /// The logistic function.
    pub fn sigmoid(self) -> Self {
        self.activation(Activation::Sigmoid)
    }

    /// The exact Gelu.
    pub fn gelu(self) -> Self {
        self.activation(Activation::Gelu)
    }

    /// The nearest number in `min..=max`; `ReLU6` is 0 and 6.
    pub fn clip(self, min: f64, max: f64) -> Self {
        self.activation(Activation::Clip { min, max })
    }

    /// Dropout with chance `p`, `0 <= p <= 1`.
    pub fn dropout(self, p: f64) -> Self {
        self.then(Step::Dropout(p))
    }

    /// Multiplicative Gaussian noise of this deviation.
    pub fn gaussian_noise(self, deviation: f64) -> Self {
        self.then(Step::GaussianNoise(deviation))
    }

    /// Draws the weights, layer by layer from the first.
    ///
    /// # Errors
    /// [`Error::Empty`] for no inputs, no linear layer, or a linear layer without outputs;
    /// [`Error::OutOfRange`] for a setting of a layer outside its range.
    pub fn build<F: Float>(&self, rng: &mut dyn Rng) -> Result<Mlp<F>> {
        let mut width = self.inputs;
        let mut layers = Vec::with_capacity(self.steps.len());
        for &step in &self.steps {
            layers.push(match step {
                Step::Linear { outputs, bias } => {
                    check_memory::<F>("number of weights of a linear layer", width, outputs)?;
                    let weight = self.init.weight(outputs, width, rng);
                    let bias = match bias {
                        Bias::Yes => Some(self.init.bias(outputs, width, rng)),
                        Bias::No => None,
                    };
                    width = outputs;
                    Layer::Linear(Linear::new(weight, bias)?)
                }
                Step::BatchNorm => {
                    check_memory::<F>("number of features of a batch norm", width, 1)?;
                    Layer::BatchNorm(BatchNorm::new(width)?)
                }
                Step::LayerNorm => {
                    check_memory::<F>("number of features of a layer norm", width, 1)?;
                    Layer::LayerNorm(LayerNorm::new(width)?)
                }
                Step::Activation(activation) => Layer::Activation(activation),
                Step::Dropout(p) => Layer::Dropout(Dropout::new(p)?),
                Step::GaussianNoise(deviation) => Layer::GaussianNoise(GaussianNoise::new(deviation)?),
            });
        }
        Mlp::from_layers(self.inputs, layers)
    }
}

/// Refuses a matrix of so many rows and columns that has no address in memory.
fn check_memory<F: Float>(name: &'static str, rows: usize, columns: usize) -> Result<()> {
    if rows.checked_mul(columns).is_some_and(|n| n <= isize::MAX as usize / F::BYTES) {
        return Ok(());
    }
    Err(Error::OutOfRange { name, value: rows as f64 * columns as f64, range: "what memory can address" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    fn error(builder: MlpBuilder) -> String {
        builder.build::<f32>(&mut Xoshiro256PlusPlus::seed_from_u64(0)).unwrap_err().to_string()
    }

    #[test]
    fn errors_surface_in_build() {
        assert_eq!(error(Mlp::builder(0).linear(2)), "weight is empty");
        assert_eq!(error(Mlp::builder(0).relu()), "the input of the network is empty");
        assert_eq!(error(Mlp::builder(3)), "the list of linear layers is empty");
        assert_eq!(error(Mlp::builder(3).linear(0)), "weight is empty");
        let memory = "is 2305843009213694000, allowed is what memory can address";
        for (builder, what) in [
            (Mlp::builder(1 << 60).linear(2), "weights of a linear layer"),
            (Mlp::builder(1 << 61).batch_norm(), "features of a batch norm"),
            (Mlp::builder(1 << 61).layer_norm(), "features of a layer norm"),
        ] {
            assert_eq!(error(builder), format!("number of {what} {memory}"));
        }
        assert_eq!(
            error(Mlp::builder(3).linear(2).leaky_relu(f64::NAN)),
            "slope of leaky relu is NaN, allowed is finite in the type of the weights"
        );
        assert!(error(Mlp::builder(3).linear(2).dropout(1.5)).contains("allowed is"));
        assert!(error(Mlp::builder(3).linear(2).gaussian_noise(-1.0)).contains("allowed is"));
    }

    #[test]
    fn the_same_seed_builds_the_same_network() {
        let build = |seed| {
            Mlp::builder(3)
                .linear(4)
                .batch_norm()
                .relu()
                .linear_no_bias(2)
                .build::<f64>(&mut Xoshiro256PlusPlus::seed_from_u64(seed))
                .unwrap()
        };
        assert_eq!(build(1), build(1));
        assert_ne!(build(1), build(2));
    }
}
