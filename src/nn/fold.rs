//! Fold: batch norms become part of the linear layers beside them, and what only training needs goes.
//!
//! ```text
//! y = x * scale + shift, the inference form of a batch norm
//!
//! linear before it   w' = scale * w (row by row)         b' = scale * b + shift
//! linear after it    w' = w * scale (column by column)   b' = b + w shift
//! ```

use ndarray::{Array1, Axis};

use super::layer::Layer;
use super::linear::Linear;
use super::mlp::Mlp;
use crate::error::Result;
use crate::float::Float;
use crate::normalize::BatchNorm;

impl<F: Float> Mlp<F> {
    /// The same inference without dropout, noise and batch norms: each is folded into the linear layer directly
    /// before it, else into the one directly after it. Between two other layers a batch norm stays.
    ///
    /// [`predict`](Self::predict) gives the same up to rounding. Masked weights stay zero and masked.
    ///
    /// # Errors
    /// [`Error::NotFinite`](crate::Error::NotFinite) if a folded weight or bias overflows.
    pub fn fold_batch_norm(&self) -> Result<Self> {
        let mut layers: Vec<Layer<F>> = Vec::with_capacity(self.layers().len());
        for layer in self.layers() {
            match layer {
                Layer::Dropout(_) | Layer::GaussianNoise(_) => {}
                Layer::BatchNorm(norm) => match layers.last_mut() {
                    Some(Layer::Linear(linear)) => fold_after(linear, norm)?,
                    _ => layers.push(layer.clone()),
                },
                Layer::Linear(linear) => {
                    let mut linear = linear.clone();
                    while let Some(Layer::BatchNorm(norm)) = layers.last() {
                        fold_before(norm, &mut linear)?;
                        layers.pop();
                    }
                    layers.push(Layer::Linear(linear));
                }
                Layer::LayerNorm(_) | Layer::Activation(_) => layers.push(layer.clone()),
            }
        }
        Self::from_layers(self.inputs(), layers)
    }
}

fn fold_after<F: Float>(linear: &mut Linear<F>, norm: &BatchNorm<F>) -> Result<()> {
    let mut weight = linear.weight().to_owned();
    let mut bias = linear.bias().map_or_else(|| Array1::zeros(linear.outputs()), |bias| bias.to_owned());
    norm.fold_into(&mut weight, &mut bias)?;
    linear.set_weight(weight)?;
    linear.set_bias(Some(bias))
}

fn fold_before<F: Float>(norm: &BatchNorm<F>, linear: &mut Linear<F>) -> Result<()> {
    let (scale, shift) = norm.scale_shift(); // [in]
    let bias = linear.apply(shift.insert_axis(Axis(0)).view())?; // [1, out]: b + w shift
    let weight = &linear.weight() * &scale;
    linear.set_weight(weight)?;
    linear.set_bias(Some(bias.row(0).to_owned()))
}
