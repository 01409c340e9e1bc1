//! Activations: the bends between linear layers, element by element.
//!
//! ```text
//! relu(x)       = max(x, 0)
//! leaky_relu(x) = x             for x > 0,  slope * x            otherwise
//! elu(x)        = x             for x > 0,  alpha * (e^x - 1)    otherwise
//! sigmoid(x)    = 1 / (1 + e^-x)
//! gelu(x)       = x * Phi(x),   Phi(x) = erfc(-x / sqrt(2)) / 2          (Hendrycks & Gimpel, 2016)
//! gelu_tanh(x)  = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
//! clip(x)       = min  for x < min,  max  for x > max,  x  otherwise
//! ```
//!
//! Where the slope jumps, at 0, it is that of the left side, and at both bounds of a clip it is 0, as in PyTorch (there
//! `Hardtanh` and `ReLU6`). NaN stays NaN.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI, FRAC_2_SQRT_PI};

use ndarray::{Array2, ArrayViewMut, Dimension, Zip};

use super::optimizer::narrow;
use crate::error::{Error, Result};
use crate::float::{Float, check_shape};

/// A function applied to every element.
///
/// ```
/// use ndarray::array;
/// use trimnet::nn::Activation;
///
/// assert_eq!(Activation::Relu.apply(array![[-1.0, 2.0]]), array![[0.0, 2.0]]);
/// assert_eq!(Activation::LeakyRelu(0.1).apply(array![[-1.0, 2.0]]), array![[-0.1, 2.0]]);
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x` above zero, `slope * x` below; the slope is finite in the type of the weights (PyTorch's default is 0.01).
    LeakyRelu(f64),
    /// `x` above zero, `alpha * (e^x - 1)` below; alpha is finite in the type of the weights (PyTorch's default is 1).
    Elu(f64),
    /// The hyperbolic tangent, -1..1.
    Tanh,
    /// The logistic function, 0..1.
    Sigmoid,
    /// `x` times the normal distribution function: the exact form, PyTorch's default.
    Gelu,
    /// The approximation of [`Gelu`](Self::Gelu) by a hyperbolic tangent; off by up to 5e-4.
    GeluTanh,
    /// The nearest number in `min..=max`, both finite in the type of the weights: `ReLU6` is 0 and 6. `f32::MAX` is as good
    /// as no bound.
    Clip {
        /// The lower bound.
        min: f64,
        /// The upper bound, not below the lower one.
        max: f64,
    },
}

impl Activation {
    /// Refuses a setting that is not finite in the type of the weights, and bounds in the wrong order.
    pub(super) fn check<F: Float>(self) -> Result<()> {
        let finite = |x: f64| F::of(x).is_finite();
        let (name, value) = match self {
            Self::LeakyRelu(slope) => ("slope of leaky relu", slope),
            Self::Elu(alpha) => ("alpha of elu", alpha),
            Self::Clip { min, .. } if !finite(min) => ("lower bound of clip", min),
            Self::Clip { min, max } => {
                if finite(max) && min > max {
                    let range = "not below the lower bound";
                    return Err(Error::OutOfRange { name: "upper bound of clip", value: max, range });
                }
                ("upper bound of clip", max)
            }
            _ => return Ok(()),
        };
        narrow::<F>(name, value).map(|_| ())
    }

    /// Whether codes can do it by a lower and an upper limit, without looking anything up.
    pub(crate) fn is_limit(self) -> bool {
        matches!(self, Self::Relu | Self::Clip { .. })
    }

    /// The function, element by element.
    pub fn apply<F: Float>(self, mut x: Array2<F>) -> Array2<F> {
        self.apply_to(x.view_mut());
        x
    }

    /// The function, element by element, in place.
    pub(crate) fn apply_to<F: Float, D: Dimension>(self, mut x: ArrayViewMut<'_, F, D>) {
        match self {
            Self::Relu => x.mapv_inplace(relu),
            Self::LeakyRelu(slope) => {
                let slope = F::of(slope);
                x.mapv_inplace(|x| if x > F::zero() { x } else { slope * x });
            }
            Self::Elu(alpha) => {
                let alpha = F::of(alpha);
                x.mapv_inplace(|x| if x > F::zero() { x } else { alpha * x.exp_m1() });
            }
            Self::Tanh => x.mapv_inplace(F::tanh),
            Self::Sigmoid => x.mapv_inplace(sigmoid),
            Self::Gelu => x.mapv_inplace(|x| F::of(gelu(x.as_f64()))),
            Self::GeluTanh => x.mapv_inplace(|x| F::of(gelu_tanh(x.as_f64()))),
            Self::Clip { min, max } => {
                let (min, max) = (F::of(min), F::of(max));
                x.mapv_inplace(|x| clip(x, min, max));
            }
        }
    }

    /// The function, and what [`backward`](Self::backward) needs of it.
    pub fn forward<F: Float>(self, x: Array2<F>) -> (Array2<F>, ActivationCache<F>) {
        match self {
            // Their slope is a polynomial of their value.
            Self::Tanh | Self::Sigmoid => {
                let y = self.apply(x);
                (y.clone(), ActivationCache { of: self, kept: y })
            }
            Self::Relu => (x.mapv(relu), ActivationCache { of: self, kept: x }),
            _ => (self.apply(x.clone()), ActivationCache { of: self, kept: x }),
        }
    }

    /// The gradient `dx = dy * slope` by the input.
    ///
    /// # Errors
    /// [`Error::Shape`] if `dy` has another shape than the batch of the cache; [`Error::Unsupported`] if the
    /// cache is of another activation.
    pub fn backward<F: Float>(self, cache: ActivationCache<F>, mut dy: Array2<F>) -> Result<Array2<F>> {
        check_shape("dy", dy.shape(), cache.kept.shape())?;
        if cache.of != self {
            return Err(Error::Unsupported {
                what: "backward",
                reason: format!("the cache is of {:?}, the layer is {self:?}", cache.of),
            });
        }
        let (zero, one) = (F::zero(), F::one());
        let dx = Zip::from(&mut dy).and(&cache.kept);
        match self {
            Self::Relu => dx.for_each(|d, &x| *d = if x <= zero { zero } else { *d }),
            Self::LeakyRelu(slope) => {
                let slope = F::of(slope);
                dx.for_each(|d, &x| *d = if x > zero { *d } else { *d * slope });
            }
            Self::Elu(alpha) => {
                let alpha = F::of(alpha);
                dx.for_each(|d, &x| *d = if x > zero { *d } else { *d * alpha * x.exp() });
            }
            Self::Tanh => dx.for_each(|d, &y| *d *= one - y * y),
            Self::Sigmoid => dx.for_each(|d, &y| *d *= y * (one - y)),
            Self::Gelu => dx.for_each(|d, &x| *d *= F::of(gelu_slope(x.as_f64()))),
            Self::GeluTanh => dx.for_each(|d, &x| *d *= F::of(gelu_tanh_slope(x.as_f64()))),
            Self::Clip { min, max } => {
                let (min, max) = (F::of(min), F::of(max));
                dx.for_each(|d, &x| *d = if x <= min || x >= max { zero } else { *d });
            }
        }
        Ok(dy)
    }
}

/// What [`Activation::backward`] needs of the forward pass.
#[derive(Clone, Debug)]
pub struct ActivationCache<F> {
    of: Activation,
    /// The output where the slope follows from it, the input elsewhere.
    kept: Array2<F>,
}

fn relu<F: Float>(x: F) -> F {
    // Not `max`, which would turn NaN into 0.
    if x <= F::zero() { F::zero() } else { x }
}

fn clip<F: Float>(x: F, min: F, max: F) -> F {
    // NaN compares with nothing and passes.
    if x < min {
        min
    } else if x > max {
        max
    } else {
        x
    }
}

fn sigmoid<F: Float>(x: F) -> F {
    // The exponent is never positive, so that nothing overflows and small values keep their digits.
    let e = (-x.abs()).exp();
    if x < F::zero() { e / (F::one() + e) } else { F::one() / (F::one() + e) }
}

/// `Phi(x)`. By `erfc`, because `1 + erf` loses every digit for x below -6.
fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * FRAC_1_SQRT_2)
}

fn gelu(x: f64) -> f64 {
    x * normal_cdf(x)
}

fn gelu_slope(x: f64) -> f64 {
    // Phi(x) + x * phi(x),   phi(x) = e^(-x^2 / 2) / sqrt(2 pi)
    normal_cdf(x) + x * (-0.5 * x * x).exp() * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2)
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + (FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

fn gelu_tanh_slope(x: f64) -> f64 {
    // Beyond 10 the tangent is 1 to the last bit; without the clamp, x^2 could overflow into inf * 0.
    let x = x.clamp(-10.0, 10.0);
    let c = FRAC_2_PI.sqrt();
    let t = (c * (x + 0.044715 * x * x * x)).tanh();
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use ndarray::array;

    const ALL: [Activation; 8] = [
        Activation::Relu,
        Activation::LeakyRelu(0.01),
        Activation::Elu(1.5),
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Clip { min: -0.5, max: 6.0 },
    ];

    fn at(activation: Activation, x: f64) -> f64 {
        activation.apply(array![[x]])[[0, 0]]
    }

    #[test]
    fn known_values() {
        // Gelu by 30-digit arithmetic.
        for (x, gelu) in [
            (1.0, 0.841_344_746_068_542_9),
            (-1.0, -0.158_655_253_931_457_05),
            (3.0, 2.995_950_305_905_11),
            (-8.0, -4.976_768_459_417_427e-15),
        ] {
            assert_relative_eq!(at(Activation::Gelu, x), gelu, max_relative = 2e-15);
        }
        assert_relative_eq!(at(Activation::GeluTanh, 1.0), 0.841_191_990_608_276, max_relative = 1e-14);
        assert_relative_eq!(at(Activation::Sigmoid, -2.0), 0.119_202_922_022_117_56, max_relative = 1e-15);
        assert_relative_eq!(at(Activation::Elu(2.0), -1.0), -1.264_241_117_657_115_4, max_relative = 1e-15);
        assert_eq!(at(Activation::LeakyRelu(0.5), -3.0), -1.5);
        let relu6 = Activation::Clip { min: 0.0, max: 6.0 };
        assert_eq!([-1.0, 0.5, 6.0, 7.0].map(|x| at(relu6, x)), [0.0, 0.5, 6.0, 6.0]);
    }

    #[test]
    fn the_extremes_stay_finite() {
        for activation in ALL {
            for x in [-f64::from(f32::MAX), -1e4, -745.0, 0.0, 745.0, 1e4, f64::from(f32::MAX)] {
                let (y, cache) = activation.forward(array![[x as f32]]);
                let dx = activation.backward(cache, array![[1.0]]).unwrap();
                assert!(y[[0, 0]].is_finite() && dx[[0, 0]].is_finite(), "{activation:?} at {x}: {y} {dx}");
            }
        }
    }

    #[test]
    fn nan_stays_nan() {
        for activation in ALL {
            assert!(at(activation, f64::NAN).is_nan(), "{activation:?}");
        }
    }

    #[test]
    fn the_slope_is_that_of_the_left_at_zero_and_none_at_a_bound() {
        let slope = |a: Activation| a.backward(a.forward(array![[0.0]]).1, array![[1.0]]).unwrap()[[0, 0]];
        assert_eq!(slope(Activation::Relu), 0.0);
        assert_eq!(slope(Activation::LeakyRelu(0.25)), 0.25);
        assert_eq!(slope(Activation::Elu(1.5)), 1.5);
        assert_eq!(slope(Activation::Clip { min: 0.0, max: 6.0 }), 0.0);
        assert_eq!(slope(Activation::Clip { min: -6.0, max: 0.0 }), 0.0);
        assert_eq!(slope(Activation::Clip { min: -6.0, max: 1.0 }), 1.0);
    }

    #[test]
    fn forward_equals_apply() {
        let x = array![[-3.0, -0.5, 0.0], [0.5, 1.0, 3.0]];
        for activation in ALL {
            assert_eq!(activation.forward(x.clone()).0, activation.apply(x.clone()), "{activation:?}");
        }
    }

    #[test]
    fn refuses_settings_that_are_not_finite_and_bounds_in_the_wrong_order() {
        assert_eq!(
            Activation::LeakyRelu(f64::NAN).check::<f64>().unwrap_err().to_string(),
            "slope of leaky relu is NaN, allowed is finite in the type of the weights"
        );
        assert!(Activation::Elu(f64::INFINITY).check::<f64>().is_err());
        for (min, max) in [(f64::NAN, 1.0), (0.0, f64::NAN), (0.0, f64::INFINITY), (-f64::INFINITY, 0.0)] {
            assert!(Activation::Clip { min, max }.check::<f64>().is_err(), "{min} {max}");
        }
        let error = Activation::Clip { min: 1.0, max: 0.5 }.check::<f64>().unwrap_err();
        assert_eq!(error.to_string(), "upper bound of clip is 0.5, allowed is not below the lower bound");
        Activation::Clip { min: 1.0, max: 1.0 }.check::<f64>().unwrap();
    }

    #[test]
    fn refuses_settings_that_are_infinite_in_the_type_of_the_weights() {
        for activation in [
            Activation::LeakyRelu(1e300),
            Activation::Elu(-1e39),
            Activation::Clip { min: -1e39, max: 0.0 },
            Activation::Clip { min: 0.0, max: 1e39 },
        ] {
            activation.check::<f64>().unwrap();
            let error = activation.check::<f32>().unwrap_err().to_string();
            assert!(
                error.ends_with("allowed is finite in the type of the weights"),
                "{activation:?}: {error}"
            );
        }
        let most = f64::from(f32::MAX);
        Activation::Clip { min: -most, max: most }.check::<f32>().unwrap();
    }
}
