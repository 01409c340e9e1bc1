//! Gelu and layer norm as their formulas, spread over five to nine nodes.
//!
//! ```text
//! gelu        x * (1 + erf(x / sqrt(2))) / 2
//! gelu_tanh   x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2
//! layer norm  (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)
//! ```
//!
//! Exporters write the products in any order. So a piece is kept as what it is: a gate `slope * g(x) + offset`, a
//! polynomial on its way into the tangent, a mean on its way into a deviation.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use super::flow::{Coefficient, Flow};
use crate::nn::Activation;

/// A piece of the formula, on the input that is step `at`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Gate {
    pub(super) at: usize,
    pub(super) form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// `c x^2`
    Square(f64),
    /// `a x + c x^3`
    Cubic(f64, f64),
    /// `slope * g(x) + offset`, with the `g` of this activation.
    Gate(Activation, f64, f64),
    /// `mean(x)`
    Mean,
    /// `x - mean(x)`
    Centred,
    /// `(x - mean(x))^2`
    CentredSquare,
    /// `mean((x - mean(x))^2) + eps`
    Variance(f64),
    /// `sqrt(mean((x - mean(x))^2) + eps)`
    Deviation(f64),
}

/// Half-precision constants are this far off.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 2e-3 * b.abs()
}

impl Gate {
    /// `erf(factor * x)`
    pub(super) fn erf(at: usize, factor: f64) -> Option<Self> {
        close(factor, FRAC_1_SQRT_2).then_some(Self { at, form: Form::Gate(Activation::Gelu, 1.0, 0.0) })
    }

    /// `(factor * x)^exponent`
    pub(super) fn power(at: usize, factor: f64, exponent: f64) -> Option<Self> {
        let form = if exponent == 2.0 {
            Form::Square(factor.powi(2))
        } else if exponent == 3.0 {
            Form::Cubic(0.0, factor.powi(3))
        } else {
            return None;
        };
        Some(Self { at, form })
    }

    pub(super) fn tanh(self) -> Option<Self> {
        let root = FRAC_2_PI.sqrt();
        match self.form {
            Form::Cubic(a, c) if close(a, root) && close(c, root * 0.044_715) => {
                Some(Self { form: Form::Gate(Activation::GeluTanh, 1.0, 0.0), ..self })
            }
            _ => None,
        }
    }

    /// The mean over the features.
    pub(super) fn mean(self) -> Option<Self> {
        let square = self.form == Form::CentredSquare;
        square.then_some(Self { form: Form::Variance(0.0), ..self })
    }

    pub(super) fn squared(self) -> Option<Self> {
        let centred = self.form == Form::Centred;
        centred.then_some(Self { form: Form::CentredSquare, ..self })
    }

    pub(super) fn root(self) -> Option<Self> {
        match self.form {
            Form::Variance(eps) => Some(Self { form: Form::Deviation(eps), ..self }),
            _ => None,
        }
    }

    pub(super) fn times(self, factor: f64) -> Option<Self> {
        let form = match self.form {
            Form::Square(c) => Form::Square(c * factor),
            Form::Cubic(a, c) => Form::Cubic(a * factor, c * factor),
            Form::Gate(of, slope, offset) => Form::Gate(of, slope * factor, offset * factor),
            _ => return None,
        };
        Some(Self { form, ..self })
    }

    pub(super) fn plus(self, summand: f64) -> Option<Self> {
        match self.form {
            Form::Gate(of, slope, offset) => {
                Some(Self { form: Form::Gate(of, slope, offset + summand), ..self })
            }
            Form::Variance(eps) => Some(Self { form: Form::Variance(eps + summand), ..self }),
            _ => None,
        }
    }

    /// The sum with a multiple of `x`.
    pub(super) fn plus_flow(self, flow: &Flow) -> Option<Self> {
        match (self.form, flow.factor()) {
            (Form::Cubic(a, c), Some(factor)) if flow.at == self.at => {
                Some(Self { form: Form::Cubic(a + factor, c), ..self })
            }
            _ => None,
        }
    }

    /// The product with a multiple of `x`: another piece, or the whole activation and a factor.
    pub(super) fn times_flow(self, flow: &Flow) -> Option<Product> {
        let factor = flow.factor().filter(|_| flow.at == self.at)?;
        match self.form {
            Form::Square(c) => Some(Product::Piece(Self { form: Form::Cubic(0.0, c * factor), ..self })),
            Form::Gate(of, slope, offset) if close(offset, slope) => {
                Some(Product::Whole(of, Coefficient::One(round(2.0 * slope * factor))))
            }
            _ => None,
        }
    }
}

/// What a gate times its input is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Product {
    Piece(Gate),
    /// The activation times this.
    Whole(Activation, Coefficient),
}

/// The product of the formula's factors is 2, 1 or a half; none of them is worth a batch norm for its last bit.
fn round(x: f64) -> f64 {
    if (x - x.round()).abs() < 1e-6 { x.round() } else { x }
}
