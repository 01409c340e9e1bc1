//! Weight penalties: a price on large weights, added to the loss. They are what makes a small magnitude mean
//! little importance, so that magnitude pruning has something to find.
//!
//! ```text
//! l1           lambda * sum |w|                        gradient  lambda * sign(w), 0 at 0
//! l2           lambda / 2 * sum w^2                    gradient  lambda * w
//! keras_l2     lambda * sum w^2                        gradient  2 * lambda * w
//! elastic      l1 + l2
//! group_lasso  lambda * s * sum over groups |w_g|_2    gradient  lambda * s * w / |w_g|_2, 0 where the norm is 0
//! ```
//!
//! `l2` has the factor 1/2 that makes it equal to the weight decay of SGD; Keras' `l2(lambda)` has not, and so
//! decays twice as fast for the same number. In the group lasso `s` is 1, or `sqrt(size of a group)` in the
//! form of Yuan and Lin (2006), which makes one lambda fit matrices of different shapes.

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, Zip};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};

/// What the group lasso drives to zero together; a weight is `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Groups {
    /// All weights of one output neuron.
    Rows,
    /// All weights that read one input.
    Columns,
}

/// A price of a weight matrix `[out, in]` that joins the loss.
///
/// ```
/// use trimnet::ndarray::{array, Array2};
/// use trimnet::regularize::Penalty;
///
/// let w = array![[1.0_f32, -2.0]];
/// let l2 = Penalty::l2(0.5)?;
/// assert_eq!(l2.value(w.view()), 1.25);
/// let mut dw = Array2::zeros((1, 2));
/// l2.add_gradient(w.view(), dw.view_mut())?;
/// assert_eq!(dw, array![[0.5, -1.0]]);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Kind", into = "Kind"))]
pub struct Penalty {
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
enum Kind {
    /// `l1 * sum |w| + l2 / 2 * sum w^2`.
    Elastic {
        l1: f64,
        l2: f64,
    },
    GroupLasso {
        lambda: f64,
        groups: Groups,
        by_size: bool,
    },
}

impl Penalty {
    /// `lambda * sum |w|`: drives single weights to zero.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `lambda` is finite and at least 0.
    pub fn l1(lambda: f64) -> Result<Self> {
        Self::elastic(lambda, 0.0)
    }

    /// `lambda / 2 * sum w^2`: the same as weight decay `lambda` in SGD.
    ///
    /// # Errors
    /// As [`l1`](Self::l1).
    pub fn l2(lambda: f64) -> Result<Self> {
        Self::elastic(0.0, lambda)
    }

    /// `lambda * sum w^2`, as Keras' `l2(lambda)`: twice [`l2`](Self::l2).
    ///
    /// # Errors
    /// As [`l1`](Self::l1).
    pub fn keras_l2(lambda: f64) -> Result<Self> {
        Self::elastic(0.0, 2.0 * check_lambda("lambda", lambda)?)
    }

    /// `l1 * sum |w| + l2 / 2 * sum w^2`.
    ///
    /// # Errors
    /// As [`l1`](Self::l1), for both.
    pub fn elastic(l1: f64, l2: f64) -> Result<Self> {
        Kind::Elastic { l1, l2 }.try_into()
    }

    /// `lambda * sum over groups |w_g|_2`: drives whole rows or columns to zero, which `shrink` can remove.
    ///
    /// # Errors
    /// As [`l1`](Self::l1).
    pub fn group_lasso(lambda: f64, groups: Groups) -> Result<Self> {
        Kind::GroupLasso { lambda, groups, by_size: false }.try_into()
    }

    /// `lambda * sqrt(size of a group) * sum over groups |w_g|_2`: [`group_lasso`](Self::group_lasso) with the
    /// weighting of Yuan and Lin (2006).
    ///
    /// # Errors
    /// As [`l1`](Self::l1).
    pub fn group_lasso_by_size(lambda: f64, groups: Groups) -> Result<Self> {
        Kind::GroupLasso { lambda, groups, by_size: true }.try_into()
    }

    /// The price of these weights; 0 for an empty matrix, NaN if a weight is NaN.
    pub fn value<F: Float>(&self, w: ArrayView2<'_, F>) -> F {
        F::of(match self.kind {
            Kind::Elastic { l1, l2 } => {
                let price = |w: &F| {
                    let w = w.as_f64();
                    l1 * w.abs() + 0.5 * l2 * w * w
                };
                w.iter().map(price).sum()
            }
            Kind::GroupLasso { lambda, groups, by_size } => {
                let w = by_rows(groups, w);
                lambda * weight(by_size, w.ncols()) * w.rows().into_iter().map(norm).sum::<f64>()
            }
        })
    }

    /// Adds the gradient by `w` to `dw`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the two shapes differ.
    pub fn add_gradient<F: Float>(&self, w: ArrayView2<'_, F>, mut dw: ArrayViewMut2<'_, F>) -> Result<()> {
        check_shape("dw", dw.shape(), w.shape())?;
        match self.kind {
            Kind::Elastic { l1, l2 } => {
                let (l1, l2) = (F::of(l1), F::of(l2));
                Zip::from(&mut dw).and(&w).for_each(|dw, &w| {
                    let sign = if w.is_zero() { w } else { w.signum() };
                    *dw = *dw + (l1 * sign + l2 * w);
                });
            }
            Kind::GroupLasso { lambda, groups, by_size } => {
                let w = by_rows(groups, w);
                if groups == Groups::Columns {
                    dw.swap_axes(0, 1);
                }
                let lambda = lambda * weight(by_size, w.ncols());
                for (mut dw, w) in dw.rows_mut().into_iter().zip(w.rows()) {
                    let norm = norm(w);
                    if norm != 0.0 {
                        Zip::from(&mut dw)
                            .and(&w)
                            .for_each(|dw, w| *dw = *dw + F::of(lambda * (w.as_f64() / norm)));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The groups as rows.
fn by_rows<F>(groups: Groups, w: ArrayView2<'_, F>) -> ArrayView2<'_, F> {
    match groups {
        Groups::Rows => w,
        Groups::Columns => w.reversed_axes(),
    }
}

fn weight(by_size: bool, size: usize) -> f64 {
    if by_size { (size as f64).sqrt() } else { 1.0 }
}

/// Euclidean norm; scaled by the largest entry, so that no square overflows or vanishes.
fn norm<F: Float>(w: ArrayView1<'_, F>) -> f64 {
    let largest = w.iter().fold(0.0, |largest, w| {
        let w = w.as_f64().abs();
        if w > largest || w.is_nan() { w } else { largest }
    });
    if largest == 0.0 {
        return 0.0;
    }
    let square = |w: &F| (w.as_f64() / largest) * (w.as_f64() / largest);
    largest * w.iter().map(square).sum::<f64>().sqrt()
}

fn check_lambda(name: &'static str, lambda: f64) -> Result<f64> {
    if lambda >= 0.0 && lambda.is_finite() {
        return Ok(lambda);
    }
    Err(Error::OutOfRange { name, value: lambda, range: "finite and at least 0" })
}

impl TryFrom<Kind> for Penalty {
    type Error = Error;

    fn try_from(kind: Kind) -> Result<Self> {
        match kind {
            Kind::Elastic { l1, l2 } => {
                check_lambda("l1", l1)?;
                check_lambda("l2", l2)?;
            }
            Kind::GroupLasso { lambda, .. } => {
                check_lambda("lambda", lambda)?;
            }
        }
        Ok(Self { kind })
    }
}

#[cfg(feature = "serde")]
impl From<Penalty> for Kind {
    fn from(penalty: Penalty) -> Self {
        penalty.kind
    }
}
