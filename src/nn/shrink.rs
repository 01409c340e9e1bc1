//! Shrink: leave out the neurons that masks have killed, so that the matrices get smaller and the outputs stay.
//!
//! ```text
//! hidden neuron j, between the linear layers w, b and w', b':
//!
//! all w[j, :] = 0    its value is a constant c = activation(batch_norm(b[j])), whatever the input:
//!                    b' = b' + c * w'[:, j], then neuron j goes
//! all w'[:, j] = 0   nobody listens: neuron j goes
//! ```
//!
//! With neuron j go row j of `w`, `b[j]`, its entries of batch norms, and column j of `w'`. Whatever goes may kill
//! further neurons, so this repeats until nothing changes.
//!
//! Inputs and outputs of the network stay as they are. So do all neurons of a layer that a layer norm sees: it
//! divides by the deviation over all of them, so that even a constant one moves the others.

use ndarray::{Array1, Array2, ArrayView1};

use super::layer::{Flow, Layer};
use super::linear::Linear;
use super::mlp::Mlp;
use super::workspace::Workspace;
use crate::error::Result;
use crate::float::Float;

/// What [`Mlp::shrink`] removed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ShrinkReport {
    /// One entry per linear layer, first to last; the outputs of the last always stay.
    pub layers: Vec<ShrunkLayer>,
    /// Weights, biases, gammas and betas before, zeros included.
    pub parameters_before: usize,
    /// The same afterwards.
    pub parameters_after: usize,
}

/// What [`Mlp::shrink`] did to one linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ShrunkLayer {
    /// Its place among all layers of the network.
    pub layer: usize,
    /// Neurons (outputs) before.
    pub neurons_before: usize,
    /// Neurons afterwards.
    pub neurons_after: usize,
}

impl ShrinkReport {
    /// Number of neurons removed from all layers together.
    pub fn removed(&self) -> usize {
        self.layers.iter().map(|layer| layer.neurons_before - layer.neurons_after).sum()
    }
}

impl<F: Float> Mlp<F> {
    /// The same function in smaller matrices: without the hidden neurons whose incoming weights are all zero,
    /// whose constant is folded into the next bias, and those whose outgoing weights are all zero.
    ///
    /// [`predict`](Self::predict) gives the same up to the rounding of the folded sums. It is looked at the
    /// weights, not at masks; masks are cut with the weights. A layer that died completely keeps its first
    /// neuron. An optimizer has to be [reset](super::Optimizer::reset) before it goes on with the smaller network.
    ///
    /// ```
    /// use ndarray::array;
    /// use trimnet::nn::{Activation, Layer, Linear, Mlp};
    ///
    /// let hidden = Linear::new(array![[1.0, 2.0], [0.0, 0.0]], Some(array![0.0, 3.0]))?;
    /// let output = Linear::new(array![[1.0, 10.0]], None)?;
    /// let layers = vec![Layer::Linear(hidden), Layer::Activation(Activation::Relu), Layer::Linear(output)];
    /// let (small, report) = Mlp::from_layers(2, layers)?.shrink()?;
    ///
    /// assert_eq!(small.widths(), [2, 1, 1]);
    /// assert_eq!(small.linears().last().and_then(|l| l.bias()), Some(array![30.0].view()));
    /// assert_eq!((report.parameters_before, report.parameters_after), (8, 5));
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// None that data can cause; those of the layers are passed on.
    pub fn shrink(&self) -> Result<(Self, ShrinkReport)> {
        self.shrink_where(|_, _| true)
    }

    /// The same where `may` allows a linear layer to lose these inputs.
    pub(crate) fn shrink_where(
        &self,
        may: impl Fn(&Linear<F>, &[usize]) -> bool,
    ) -> Result<(Self, ShrinkReport)> {
        let mut layers = self.layers().to_vec();
        let linears: Vec<usize> = (0..layers.len()).filter(|&i| as_linear(&layers, i).is_some()).collect();
        let mut changed = true;
        while changed {
            changed = false;
            for (&a, &b) in linears.iter().zip(linears.iter().skip(1)) {
                changed |= cut(&mut layers, a, b, &may)?;
            }
        }
        let small = Self::from_layers(self.inputs(), layers)?;
        let layers = linears
            .into_iter()
            .zip(self.linears().zip(small.linears()))
            .map(|(layer, (before, after))| ShrunkLayer {
                layer,
                neurons_before: before.outputs(),
                neurons_after: after.outputs(),
            })
            .collect();
        let report = ShrinkReport {
            layers,
            parameters_before: self.parameters(),
            parameters_after: small.parameters(),
        };
        Ok((small, report))
    }
}

fn as_linear<F>(layers: &[Layer<F>], index: usize) -> Option<&Linear<F>> {
    match layers.get(index) {
        Some(Layer::Linear(linear)) => Some(linear),
        _ => None,
    }
}

fn all_zero<F: Float>(weights: ArrayView1<'_, F>) -> bool {
    weights.iter().all(|&w| w == F::zero())
}

/// Removes the dead neurons between the linear layers at `a` and `b` if the second may lose them; whether it did.
fn cut<F: Float>(
    layers: &mut [Layer<F>],
    a: usize,
    b: usize,
    may: &impl Fn(&Linear<F>, &[usize]) -> bool,
) -> Result<bool> {
    let (Some(first), Some(second)) = (as_linear(layers, a), as_linear(layers, b)) else { return Ok(false) };
    let between = &layers[a + 1..b];
    if between.iter().any(|layer| matches!(layer, Layer::LayerNorm(_))) {
        return Ok(false);
    }

    let width = first.outputs();
    let unheard = |j: usize| all_zero(second.weight().column(j));
    let mut dead: Vec<usize> =
        (0..width).filter(|&j| unheard(j) || all_zero(first.weight().row(j))).collect();
    if dead.len() == width {
        dead.remove(0);
    }
    if dead.is_empty() || !may(second, &dead) {
        return Ok(false);
    }

    // What a neuron without inputs says: its bias, sent through the layers between as inference does.
    let bias = first.bias().map_or_else(|| Array1::zeros(width), |bias| bias.to_owned());
    let (row, workspace) = (Flow::Owned(bias.insert_axis(ndarray::Axis(0))), &mut Workspace::new()); // [1, width]
    let row = between.iter().try_fold(row, |x, layer| layer.infer(x, None, false, workspace))?;
    let constants: Array2<F> = row.into_owned(workspace);

    let mut folded: Vec<f64> = match second.bias() {
        Some(bias) => bias.iter().map(|b| b.as_f64()).collect(),
        None => vec![0.0; second.outputs()],
    };
    dead.retain(|&j| {
        if unheard(j) {
            return true;
        }
        let c = constants[[0, j]].as_f64();
        let with: Vec<f64> =
            folded.iter().zip(second.weight().column(j)).map(|(b, w)| b + w.as_f64() * c).collect();
        // A constant so large that the bias would overflow stays where it is.
        let fits = with.iter().all(|&b| F::of(b).is_finite());
        if fits {
            folded = with;
        }
        fits
    });
    if dead.is_empty() {
        return Ok(false);
    }

    let keep: Vec<usize> = (0..width).filter(|j| dead.binary_search(j).is_err()).collect();
    let first = first.select(Some(&keep), None)?;
    let mut second = second.select(None, Some(&keep))?;
    if second.bias().is_some() || folded.iter().any(|&b| b != 0.0) {
        second.set_bias(Some(folded.into_iter().map(F::of).collect()))?;
    }
    layers[a] = Layer::Linear(first);
    layers[b] = Layer::Linear(second);
    for layer in &mut layers[a + 1..b] {
        if let Layer::BatchNorm(norm) = layer {
            *norm = norm.select(&keep)?;
        }
    }
    Ok(true)
}
