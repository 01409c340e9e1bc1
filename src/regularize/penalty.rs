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

use ndarray::{Array1, ArrayView1, ArrayView2, ArrayViewMut2, Axis, Zip};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::tensor::root;

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

    /// The same penalty, `factor` times as strong.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless the strength is still finite and at least 0.
    pub fn scaled(self, factor: f64) -> Result<Self> {
        match self.kind {
            Kind::Elastic { l1, l2 } => Kind::Elastic { l1: l1 * factor, l2: l2 * factor },
            Kind::GroupLasso { lambda, groups, by_size } => {
                Kind::GroupLasso { lambda: lambda * factor, groups, by_size }
            }
        }
        .try_into()
    }

    /// The price of these weights; 0 for an empty matrix, not finite if a weight is not.
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
                lambda * groups.weight(w, by_size) * groups.norms(w).iter().sum::<f64>()
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
                let sign = |w: F| if w.is_zero() { w } else { w.signum() };
                let (l1_near, l2_near) = (F::of(l1), F::of(l2));
                if l1_near.is_finite() && l2_near.is_finite() {
                    Zip::from(&mut dw).and(&w).for_each(|dw, &w| *dw += l1_near * sign(w) + l2_near * w);
                } else {
                    // Beyond the element type, where infinity times 0 would be NaN.
                    Zip::from(&mut dw)
                        .and(&w)
                        .for_each(|dw, &w| *dw += F::of(l1 * sign(w).as_f64() + l2 * w.as_f64()));
                }
            }
            Kind::GroupLasso { lambda, groups, by_size } => {
                let lambda = lambda * groups.weight(w, by_size);
                // Dividing by infinity gives a group of zeros the gradient 0.
                let norms = groups.norms(w);
                let norms = norms.iter().map(|&norm| if norm == 0.0 { f64::INFINITY } else { norm });
                let norms: Array1<f64> = norms.collect();
                let norms = match groups {
                    Groups::Rows => norms.view().insert_axis(Axis(1)),
                    Groups::Columns => norms.view().insert_axis(Axis(0)),
                };
                Zip::from(&mut dw).and(&w).and_broadcast(&norms).for_each(|dw, w, norm| {
                    *dw += F::of(lambda * (w.as_f64() / norm));
                });
            }
        }
        Ok(())
    }
}

impl Groups {
    /// The factor of the group lasso.
    fn weight<F>(self, w: ArrayView2<'_, F>, by_size: bool) -> f64 {
        let size = match self {
            Self::Rows => w.ncols(),
            Self::Columns => w.nrows(),
        };
        if by_size { (size as f64).sqrt() } else { 1.0 }
    }

    /// Euclidean norms of the groups.
    fn norms<F: Float>(self, w: ArrayView2<'_, F>) -> Vec<f64> {
        match self {
            Self::Rows => w.rows().into_iter().map(|row| norm(squares(row), row)).collect(),
            Self::Columns => {
                let mut sums = vec![0.0; w.ncols()];
                for row in w.rows() {
                    for (sum, w) in sums.iter_mut().zip(row) {
                        *sum += w.as_f64() * w.as_f64();
                    }
                }
                sums.into_iter().zip(w.columns()).map(|(sum, column)| norm(sum, column)).collect()
            }
        }
    }
}

fn squares<F: Float>(w: ArrayView1<'_, F>) -> f64 {
    w.iter().map(|w| w.as_f64() * w.as_f64()).sum()
}

fn norm<F: Float>(squares: f64, w: ArrayView1<'_, F>) -> f64 {
    root(squares, 1, w.iter().copied())
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

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    fn gradient(penalty: Penalty, w: &Array2<f64>) -> Array2<f64> {
        let mut dw = Array2::zeros(w.dim());
        penalty.add_gradient(w.view(), dw.view_mut()).unwrap();
        dw
    }

    #[test]
    fn prices_are_those_of_the_formulas() {
        let w = array![[3.0, -4.0], [0.0, 0.0]];
        assert_eq!(Penalty::l1(2.0).unwrap().value(w.view()), 14.0);
        assert_eq!(Penalty::l2(2.0).unwrap().value(w.view()), 25.0);
        assert_eq!(Penalty::keras_l2(2.0).unwrap().value(w.view()), 50.0);
        assert_eq!(Penalty::elastic(2.0, 2.0).unwrap().value(w.view()), 39.0);
        assert_eq!(Penalty::group_lasso(2.0, Groups::Rows).unwrap().value(w.view()), 10.0);
        assert_eq!(Penalty::group_lasso(2.0, Groups::Columns).unwrap().value(w.view()), 14.0);
        let by_size = Penalty::group_lasso_by_size(2.0, Groups::Rows).unwrap().value(w.view());
        assert!((by_size - 10.0 * 2.0_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn keras_decays_twice_as_fast() {
        let w = array![[3.0, -4.0]];
        assert_eq!(gradient(Penalty::l2(0.5).unwrap(), &w), array![[1.5, -2.0]]);
        assert_eq!(gradient(Penalty::keras_l2(0.5).unwrap(), &w), array![[3.0, -4.0]]);
    }

    #[test]
    fn scaling_scales_the_price() {
        let w = array![[3.0, -4.0]];
        for penalty in [Penalty::elastic(2.0, 1.0).unwrap(), Penalty::group_lasso(2.0, Groups::Rows).unwrap()]
        {
            let half = penalty.scaled(0.5).unwrap();
            assert_eq!(half.value(w.view()), penalty.value(w.view()) / 2.0);
            assert_eq!(penalty.scaled(0.0).unwrap().value(w.view()), 0.0);
            assert!(penalty.scaled(-1.0).is_err() && penalty.scaled(f64::NAN).is_err());
        }
    }

    #[test]
    fn a_zero_weight_and_a_zero_group_feel_nothing() {
        let w = array![[0.0, -0.0], [3.0, 4.0]];
        assert_eq!(gradient(Penalty::l1(1.0).unwrap(), &w), array![[0.0, 0.0], [1.0, 1.0]]);
        let rows = Penalty::group_lasso(1.0, Groups::Rows).unwrap();
        assert_eq!(gradient(rows, &w), array![[0.0, 0.0], [0.6, 0.8]]);
    }

    #[test]
    fn the_group_norm_neither_overflows_nor_vanishes() {
        let rows = Penalty::group_lasso(1.0, Groups::Rows).unwrap();
        for size in [1e-300, 1e-200, 1e200, 1e300] {
            let dw = gradient(rows, &array![[3.0 * size, 4.0 * size]]);
            assert!((dw[[0, 0]] - 0.6).abs() < 1e-12 && (dw[[0, 1]] - 0.8).abs() < 1e-12, "{dw}");
        }
    }

    #[test]
    fn a_price_beyond_the_element_type_leaves_zeros_alone() {
        let two = 2.0_f64;
        let w = array![[0.0_f32, 1.0, -two.powi(-100) as f32]];
        let gradient = |penalty: Penalty| {
            let mut dw = Array2::zeros((1, 3));
            penalty.add_gradient(w.view(), dw.view_mut()).unwrap();
            dw
        };
        let infinity = f32::INFINITY;
        assert_eq!(gradient(Penalty::l1(1e300).unwrap()), array![[0.0, infinity, -infinity]]);
        let l2 = Penalty::l2(two.powi(200)).unwrap();
        assert_eq!(gradient(l2), array![[0.0, infinity, -two.powi(100) as f32]]);
    }

    #[test]
    fn adds_to_what_is_there_and_refuses_another_shape() {
        let (w, mut dw) = (array![[1.0_f32, 2.0]], array![[10.0_f32, 20.0]]);
        Penalty::l2(1.0).unwrap().add_gradient(w.view(), dw.view_mut()).unwrap();
        assert_eq!(dw, array![[11.0, 22.0]]);
        let error = Penalty::l2(1.0).unwrap().add_gradient(w.view(), Array2::zeros((2, 1)).view_mut());
        assert_eq!(error.unwrap_err().to_string(), "dw has shape [2, 1], expected [1, 2]");
    }

    #[test]
    fn refuses_negative_and_endless_prices() {
        for lambda in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(Penalty::l1(lambda).is_err() && Penalty::l2(lambda).is_err());
            assert!(Penalty::keras_l2(lambda).is_err() && Penalty::elastic(0.0, lambda).is_err());
            assert!(Penalty::group_lasso(lambda, Groups::Rows).is_err());
            assert!(Penalty::group_lasso_by_size(lambda, Groups::Columns).is_err());
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_file_cannot_hold_a_negative_price() {
        let penalty = Penalty::group_lasso(0.5, Groups::Columns).unwrap();
        let json = serde_json::to_string(&penalty).unwrap();
        assert_eq!(serde_json::from_str::<Penalty>(&json).unwrap(), penalty);
        assert!(serde_json::from_str::<Penalty>(&json.replace("0.5", "-0.5")).is_err());
    }
}
