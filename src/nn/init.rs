//! Where training starts: random weights whose spread keeps the size of activations from layer to layer.
//!
//! ```text
//! Kaiming   deviation = sqrt(2 / fan_in)               He et al., 2015; for relu
//! Xavier    deviation = sqrt(2 / (fan_in + fan_out))   Glorot & Bengio, 2010; for tanh and sigmoid
//! uniform   bound     = sqrt(3) * deviation
//! Torch     bound     = 1 / sqrt(fan_in)               what PyTorch's nn.Linear does, bias included
//! ```
//!
//! Everything is drawn as `f64` by our own Box-Muller and a pure-Rust `libm`, so that a seed gives the same
//! weights on every machine, and the same up to rounding for `f32` and `f64`.

use std::f64::consts::TAU;

use ndarray::{Array1, Array2};
use rand::{Rng, RngExt};

use crate::float::Float;

/// How the weights of a linear layer are drawn. Biases are 0 except for [`Torch`](Self::Torch).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Init {
    /// Normal with deviation `sqrt(2 / fan_in)`.
    #[default]
    KaimingNormal,
    /// Uniform in `±sqrt(6 / fan_in)`.
    KaimingUniform,
    /// Normal with deviation `sqrt(2 / (fan_in + fan_out))`.
    XavierNormal,
    /// Uniform in `±sqrt(6 / (fan_in + fan_out))`.
    XavierUniform,
    /// Uniform in `±1 / sqrt(fan_in)`, weight and bias: the default of PyTorch's `nn.Linear`.
    Torch,
}

impl Init {
    /// A weight `[outputs, inputs]`, drawn row by row.
    pub fn weight<F: Float>(self, outputs: usize, inputs: usize, rng: &mut dyn Rng) -> Array2<F> {
        let (fan_in, fan_out) = (inputs.max(1) as f64, outputs as f64);
        let shape = (outputs, inputs);
        let uniform = |bound: f64, rng: &mut dyn Rng| {
            Array2::from_shape_simple_fn(shape, || F::of(bound * (2.0 * rng.random::<f64>() - 1.0)))
        };
        let normal = |deviation: f64, rng: &mut dyn Rng| {
            let mut normal = Normal { rng, spare: None };
            Array2::from_shape_simple_fn(shape, || F::of(deviation * normal.draw()))
        };
        match self {
            Self::KaimingNormal => normal((2.0 / fan_in).sqrt(), rng),
            Self::KaimingUniform => uniform((6.0 / fan_in).sqrt(), rng),
            Self::XavierNormal => normal((2.0 / (fan_in + fan_out)).sqrt(), rng),
            Self::XavierUniform => uniform((6.0 / (fan_in + fan_out)).sqrt(), rng),
            Self::Torch => uniform(fan_in.sqrt().recip(), rng),
        }
    }

    /// The bias `[outputs]` of a layer with `inputs` inputs.
    pub fn bias<F: Float>(self, outputs: usize, inputs: usize, rng: &mut dyn Rng) -> Array1<F> {
        match self {
            Self::Torch => {
                let bound = (inputs.max(1) as f64).sqrt().recip();
                Array1::from_shape_simple_fn(outputs, || F::of(bound * (2.0 * rng.random::<f64>() - 1.0)))
            }
            _ => Array1::zeros(outputs),
        }
    }
}

/// Standard normal numbers by Box-Muller, which makes two at a time.
struct Normal<'a> {
    rng: &'a mut dyn Rng,
    spare: Option<f64>,
}

impl Normal<'_> {
    fn draw(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        // 1 - u lies in (0, 1]: its logarithm is finite.
        let radius = (-2.0 * libm::log(1.0 - self.rng.random::<f64>())).sqrt();
        let angle = TAU * self.rng.random::<f64>();
        self.spare = Some(radius * libm::sin(angle));
        radius * libm::cos(angle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    #[test]
    fn the_spread_is_the_promised_one() {
        for (init, deviation) in [
            (Init::KaimingNormal, (2.0f64 / 400.0).sqrt()),
            (Init::KaimingUniform, (2.0f64 / 400.0).sqrt()),
            (Init::XavierNormal, (2.0f64 / 500.0).sqrt()),
            (Init::XavierUniform, (2.0f64 / 500.0).sqrt()),
            (Init::Torch, (1.0f64 / 1200.0).sqrt()),
        ] {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
            let w = init.weight::<f64>(100, 400, &mut rng);
            // 40,000 numbers: five standard errors of the deviation are about 2 %, of the mean 2.5 %.
            assert!((w.std(0.0) / deviation - 1.0).abs() < 0.02, "{init:?}: {}", w.std(0.0) / deviation);
            assert!(w.mean().unwrap().abs() < 0.025 * deviation, "{init:?}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_bits_for_ever() {
        let draw = |init: Init| {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
            let w = init.weight::<f64>(1, 3, &mut rng);
            (w[[0, 0]], w[[0, 1]], w[[0, 2]])
        };
        assert_eq!(
            draw(Init::KaimingNormal),
            (0.129_532_270_228_692_5, 0.243_222_481_787_497_75, -1.164_939_155_580_554_4)
        );
        assert_eq!(
            draw(Init::Torch),
            (-0.513_425_543_383_184_2, -0.378_607_999_394_779_4, 0.251_235_272_554_217_1)
        );
    }

    #[test]
    fn single_precision_is_the_rounded_double() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let wide = Init::KaimingNormal.weight::<f64>(4, 5, &mut rng);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        assert_eq!(Init::KaimingNormal.weight::<f32>(4, 5, &mut rng), wide.mapv(|w| w as f32));
    }
}
