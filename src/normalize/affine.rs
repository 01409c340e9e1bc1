//! The learnt part of batch norm and layer norm, `y = x_hat * gamma + beta`, and what both check.

use ndarray::{Array1, Array2};

use crate::error::{Error, Result};
use crate::float::{Float, check_finite, check_shape};

/// Gradients of `gamma` and `beta`, each `[features]`.
#[derive(Clone, Debug, PartialEq)]
pub struct AffineGrads<F> {
    /// By the scale: `sum over rows of dy * x_hat`.
    pub dgamma: Array1<F>,
    /// By the shift: `sum over rows of dy`.
    pub dbeta: Array1<F>,
}

impl<F: Float> AffineGrads<F> {
    /// From `sum dy` and `sum dy * x_hat` of each feature.
    pub(super) fn of_sums((dbeta, dgamma): (Vec<f64>, Vec<f64>)) -> Self {
        let array = |sums: Vec<f64>| sums.into_iter().map(F::of).collect();
        Self { dgamma: array(dgamma), dbeta: array(dbeta) }
    }
}

/// `gamma` and `beta`, for loops over parts of rows.
pub(super) struct Affine<F> {
    gamma: Vec<F>,
    beta: Vec<F>,
}

impl<F: Float> Affine<F> {
    pub(super) fn new(gamma: &Array1<F>, beta: &Array1<F>) -> Self {
        Self { gamma: gamma.to_vec(), beta: beta.to_vec() }
    }

    /// `gamma` and `beta`.
    #[inline(always)]
    pub(super) fn parts(&self) -> (&[F], &[F]) {
        (&self.gamma, &self.beta)
    }

    /// `y = x_hat * gamma + beta`, in place, from column `j` on.
    #[inline(always)]
    pub(super) fn run(&self, j: usize, x_hat: &mut [F]) {
        for ((y, &gamma), &beta) in x_hat.iter_mut().zip(&self.gamma[j..]).zip(&self.beta[j..]) {
            *y = *y * gamma + beta;
        }
    }
}

/// What `backward` returns for a `dy` of another shape than the output: nothing but NaN.
pub(super) fn nan_grads<F: Float>(dim: (usize, usize)) -> (Array2<F>, AffineGrads<F>) {
    let features = Array1::from_elem(dim.1, F::nan());
    (Array2::from_elem(dim, F::nan()), AffineGrads { dgamma: features.clone(), dbeta: features })
}

/// `eps` keeps the division finite, so that it has to be a positive, normal number of the element type.
pub(super) fn check_eps<F: Float>(eps: f64) -> Result<()> {
    if F::of(eps).is_normal() && eps > 0.0 {
        return Ok(());
    }
    Err(Error::OutOfRange { name: "eps", value: eps, range: "positive, finite and not subnormal" })
}

/// One finite number per feature.
pub(super) fn check_features<F: Float>(what: &'static str, x: &Array1<F>, features: usize) -> Result<()> {
    check_shape(what, x.shape(), &[features])?;
    check_finite(what, &x.view())
}

/// At least one feature.
pub(super) fn check_some(features: usize) -> Result<()> {
    if features == 0 { Err(Error::Empty { what: "features" }) } else { Ok(()) }
}

/// A batch `[any, features]`.
pub(super) fn check_width<F: Float>(what: &'static str, x: &Array2<F>, features: usize) -> Result<()> {
    check_shape(what, x.shape(), &[x.nrows(), features])
}

/// Indices below the number of features.
pub(super) fn check_keep(keep: &[usize], features: usize) -> Result<()> {
    check_some(keep.len())?;
    match keep.iter().find(|&&j| j >= features) {
        Some(&j) => {
            Err(Error::OutOfRange { name: "keep", value: j as f64, range: "below the number of features" })
        }
        None => Ok(()),
    }
}
