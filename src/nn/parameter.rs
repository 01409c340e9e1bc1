//! Parameters as flat slices in a fixed order: what optimizers walk over.
//!
//! The order is that of the layers; weight before bias, gamma before beta.

use ndarray::{ArrayBase, ArrayViewMut1, Data, Dimension, aview1};

use super::grads::{Grads, LayerGrads};
use super::layer::Layer;
use super::mlp::Mlp;
use crate::error::{Error, Result};
use crate::float::{Float, check_finite, check_shape};
use crate::normalize::AffineGrads;

/// One parameter tensor during an update: its numbers, their gradients, and which of them stay.
#[derive(Debug)]
pub struct Parameter<'a, F> {
    /// The layer that it belongs to, counted over all layers of the network.
    pub layer: usize,
    /// What it is to that layer.
    pub kind: ParameterKind,
    /// The numbers to move, row-major.
    pub values: &'a mut [F],
    /// The gradient of the loss by each.
    pub grads: &'a [F],
    /// The mask, `true` = keep. Whatever is written elsewhere becomes 0.0 again.
    pub keep: Option<&'a [bool]>,
}

/// What a parameter tensor is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// The weight `[out, in]` of a linear layer.
    Weight,
    /// The bias `[out]` of a linear layer.
    Bias,
    /// The gain `[features]` of a normalization.
    Gamma,
    /// The shift `[features]` of a normalization.
    Beta,
}

impl<F: Float> Mlp<F> {
    /// The shape of every parameter tensor, in the order of [`update_parameters`](Self::update_parameters).
    pub fn parameter_shapes(&self) -> Vec<Vec<usize>> {
        self.parameter_dims().map(|dims| dims.as_slice().to_vec()).collect()
    }

    /// The same without allocating.
    pub(super) fn parameter_dims(&self) -> impl Iterator<Item = Dims> + Clone {
        self.layers().iter().flat_map(|layer| {
            let both = match layer {
                Layer::Linear(linear) => [
                    Some(Dims::Matrix([linear.outputs(), linear.inputs()])),
                    linear.bias().map(|bias| Dims::Vector([bias.len()])),
                ],
                Layer::BatchNorm(norm) => [Some(Dims::Vector([norm.features()])); 2],
                Layer::LayerNorm(norm) => [Some(Dims::Vector([norm.features()])); 2],
                Layer::Activation(_) | Layer::Dropout(_) | Layer::GaussianNoise(_) => [None; 2],
            };
            both.into_iter().flatten()
        })
    }

    /// Lets `update` move every parameter by its gradients; afterwards masked weights are 0.0 again, whatever it
    /// wrote. The way to write an [`Optimizer`](super::Optimizer). Nothing has moved if this fails.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Unsupported`] if the gradients are not of this network,
    /// [`Error::NotFinite`] for a gradient that is NaN or infinite.
    pub fn update_parameters(
        &mut self,
        grads: &Grads<F>,
        mut update: impl FnMut(Parameter<'_, F>),
    ) -> Result<()> {
        check_shape("list of layer gradients", &[grads.layers().len()], &[self.layers().len()])?;
        for (layer, grads) in self.layers().iter().zip(grads.layers()) {
            check_layer_grads(layer, grads)?;
        }
        for (index, (layer, grads)) in self.layers_mut().iter_mut().zip(grads.layers()).enumerate() {
            match (layer, grads) {
                (Layer::Linear(linear), LayerGrads::Linear(grads)) => {
                    let (weight, mask, bias) = linear.parts_mut();
                    update(Parameter {
                        layer: index,
                        kind: ParameterKind::Weight,
                        values: weight.as_slice_mut().unwrap_or_default(),
                        grads: grads.dweight.as_standard_layout().as_slice().unwrap_or_default(),
                        keep: mask.and_then(|mask| mask.keep().to_slice()),
                    });
                    if let (Some(bias), Some(dbias)) = (bias, &grads.dbias) {
                        update(Parameter {
                            layer: index,
                            kind: ParameterKind::Bias,
                            values: bias.as_slice_mut().unwrap_or_default(),
                            grads: dbias.as_standard_layout().as_slice().unwrap_or_default(),
                            keep: None,
                        });
                    }
                    linear.zero_masked();
                }
                (Layer::BatchNorm(norm), LayerGrads::Affine(grads)) => {
                    update_affine(index, norm.affine_mut(), grads, &mut update);
                }
                (Layer::LayerNorm(norm), LayerGrads::Affine(grads)) => {
                    update_affine(index, norm.affine_mut(), grads, &mut update);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl<F: Float> Mlp<F> {
    /// Shows every parameter tensor, row-major, in the order of [`update_parameters`](Self::update_parameters).
    pub(super) fn show_parameters(&self, mut show: impl FnMut(&[F])) {
        for layer in self.layers() {
            let vectors = match layer {
                Layer::Linear(linear) => {
                    show(linear.weight().to_slice().unwrap_or_default());
                    [linear.bias(), None]
                }
                Layer::BatchNorm(norm) => [Some(norm.gamma()), Some(norm.beta())],
                Layer::LayerNorm(norm) => [Some(norm.gamma()), Some(norm.beta())],
                Layer::Activation(_) | Layer::Dropout(_) | Layer::GaussianNoise(_) => [None, None],
            };
            vectors.iter().flatten().for_each(|vector| show(vector.to_slice().unwrap_or_default()));
        }
    }

    /// The same to write to; afterwards masked weights are 0.0 again, whatever was written.
    pub(super) fn write_parameters(&mut self, mut write: impl FnMut(&mut [F])) {
        let both = |(gamma, beta): (ArrayViewMut1<'_, F>, ArrayViewMut1<'_, F>),
                    write: &mut dyn FnMut(&mut [F])| {
            write(gamma.into_slice().unwrap_or_default());
            write(beta.into_slice().unwrap_or_default());
        };
        for layer in self.layers_mut() {
            match layer {
                Layer::Linear(linear) => {
                    let (weight, _, bias) = linear.parts_mut();
                    write(weight.as_slice_mut().unwrap_or_default());
                    if let Some(bias) = bias {
                        write(bias.as_slice_mut().unwrap_or_default());
                    }
                    linear.zero_masked();
                }
                Layer::BatchNorm(norm) => both(norm.affine_mut(), &mut write),
                Layer::LayerNorm(norm) => both(norm.affine_mut(), &mut write),
                Layer::Activation(_) | Layer::Dropout(_) | Layer::GaussianNoise(_) => {}
            }
        }
    }

    /// Whether no parameter is NaN or infinite.
    pub(super) fn has_finite_parameters(&self) -> bool {
        let mut finite = true;
        self.show_parameters(|values| finite &= check_finite("parameter", &aview1(values)).is_ok());
        finite
    }
}

/// The shape of a parameter tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dims {
    Vector([usize; 1]),
    Matrix([usize; 2]),
}

impl Dims {
    pub(super) fn as_slice(&self) -> &[usize] {
        match self {
            Self::Vector(dims) => dims,
            Self::Matrix(dims) => dims,
        }
    }

    /// Number of elements.
    pub(super) fn elements(&self) -> usize {
        self.as_slice().iter().product()
    }
}

fn update_affine<F: Float>(
    layer: usize,
    (gamma, beta): (ArrayViewMut1<'_, F>, ArrayViewMut1<'_, F>),
    grads: &AffineGrads<F>,
    update: &mut impl FnMut(Parameter<'_, F>),
) {
    for (kind, values, grads) in
        [(ParameterKind::Gamma, gamma, &grads.dgamma), (ParameterKind::Beta, beta, &grads.dbeta)]
    {
        update(Parameter {
            layer,
            kind,
            values: values.into_slice().unwrap_or_default(),
            grads: grads.as_standard_layout().as_slice().unwrap_or_default(),
            keep: None,
        });
    }
}

/// Whether the gradients are of this layer, and finite.
fn check_layer_grads<F: Float>(layer: &Layer<F>, grads: &LayerGrads<F>) -> Result<()> {
    match (layer, grads) {
        (Layer::Linear(linear), LayerGrads::Linear(grads)) => {
            check("dweight", &grads.dweight, linear.weight().shape())?;
            match (linear.bias(), &grads.dbias) {
                (Some(bias), Some(dbias)) => check("dbias", dbias, bias.shape()),
                (None, None) => Ok(()),
                (Some(bias), None) => check_shape("dbias", &[], bias.shape()),
                (None, Some(dbias)) => check_shape("dbias", dbias.shape(), &[]),
            }
        }
        (Layer::BatchNorm(norm), LayerGrads::Affine(grads)) => check_affine(norm.features(), grads),
        (Layer::LayerNorm(norm), LayerGrads::Affine(grads)) => check_affine(norm.features(), grads),
        (Layer::Activation(_) | Layer::Dropout(_) | Layer::GaussianNoise(_), LayerGrads::None) => Ok(()),
        _ => Err(Error::Unsupported {
            what: "gradients",
            reason: "they are of another network: its layers are of other kinds".into(),
        }),
    }
}

fn check_affine<F: Float>(features: usize, grads: &AffineGrads<F>) -> Result<()> {
    check("dgamma", &grads.dgamma, &[features])?;
    check("dbeta", &grads.dbeta, &[features])
}

fn check<F, S, D>(what: &'static str, grads: &ArrayBase<S, D>, shape: &[usize]) -> Result<()>
where
    F: Float,
    S: Data<Elem = F>,
    D: Dimension,
{
    check_shape(what, grads.shape(), shape)?;
    check_finite(what, &grads.view())
}
