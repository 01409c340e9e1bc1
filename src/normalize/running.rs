//! The running statistics of batch norm: where frameworks differ.
//!
//! ```text
//!           weight of the new batch   running variance divides by
//! Torch     m  (0.1)                  n - 1
//! Onnx      1 - m  (m = 0.9)          n
//! Burn      m  (0.1)                  n
//! ```
//!
//! Without momentum the k-th batch weighs `1 / k`: the cumulative mean.

use crate::error::{Error, Result};

/// How a training batch enters the running statistics.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum BnConvention {
    /// `running = (1 - m) * running + m * new`, m = 0.1; the running variance is unbiased, `n / (n - 1)`.
    #[default]
    Torch,
    /// `running = m * running + (1 - m) * new`, m = 0.9; population variance.
    Onnx,
    /// `running = (1 - m) * running + m * new`, m = 0.1; population variance.
    Burn,
}

impl BnConvention {
    fn default_momentum(self) -> f64 {
        match self {
            Self::Torch | Self::Burn => 0.1,
            Self::Onnx => 0.9,
        }
    }

    /// What the sum of squared distances of at least two `rows` is divided by.
    pub(super) fn divisor(self, rows: usize) -> f64 {
        match self {
            Self::Torch => (rows - 1) as f64,
            Self::Onnx | Self::Burn => rows as f64,
        }
    }
}

/// What was asked for, so that a convention chosen later brings its own default.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) enum Momentum {
    OfConvention,
    Fixed(f64),
    Cumulative,
}

impl Momentum {
    pub(super) fn new(momentum: Option<f64>) -> Result<Self> {
        match momentum {
            Some(m) if (0.0..=1.0).contains(&m) => Ok(Self::Fixed(m)),
            Some(value) => Err(Error::OutOfRange { name: "momentum", value, range: "0 <= momentum <= 1" }),
            None => Ok(Self::Cumulative),
        }
    }

    pub(super) fn value(self, convention: BnConvention) -> Option<f64> {
        match self {
            Self::OfConvention => Some(convention.default_momentum()),
            Self::Fixed(m) => Some(m),
            Self::Cumulative => None,
        }
    }

    /// The weight of the batch that is number `batches`, counted from 1.
    pub(super) fn weight_of_new(self, convention: BnConvention, batches: u64) -> f64 {
        match (self.value(convention), convention) {
            (None, _) => 1.0 / batches as f64,
            (Some(m), BnConvention::Onnx) => 1.0 - m,
            (Some(m), BnConvention::Torch | BnConvention::Burn) => m,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalize::BatchNorm;
    use crate::traits::Normalizer;
    use approx::assert_abs_diff_eq as close;
    use ndarray::{Array2, array};

    fn norm() -> BatchNorm<f64> {
        BatchNorm::new(1).unwrap()
    }

    /// Running mean and variance after these batches of one feature.
    fn running(mut norm: BatchNorm<f64>, batches: &[&[f64]]) -> (f64, f64) {
        for batch in batches {
            let x = Array2::from_shape_fn((batch.len(), 1), |(i, _)| batch[i]);
            norm.normalize_batch(x).unwrap();
        }
        (norm.running_mean()[0], norm.running_var()[0])
    }

    /// PyTorch 2.15.0.
    #[test]
    fn moves_the_running_statistics_as_pytorch_does() {
        for (batch, mean, var) in [
            (&[1.0, 2.0, 4.0][..], 0.7 / 3.0, 1.0 + 0.4 / 3.0),
            (&[1.0, 2.0, 3.0, 4.0], 0.25, 1.0 + 0.2 / 3.0),
            (&[0.0, 2.0], 0.1, 1.1),
        ] {
            let actual = running(norm(), &[batch]);
            close!(actual.0, mean, epsilon = 1e-12);
            close!(actual.1, var, epsilon = 1e-12);
        }
        let (y, _) = norm().normalize_batch(array![[1.0], [2.0], [4.0]]).unwrap();
        close!(y, array![[-1.06904153], [-0.26726038], [1.33630191]], epsilon = 1e-8);
    }

    #[test]
    fn without_momentum_every_batch_weighs_the_same() {
        let cumulative = norm().with_momentum(None).unwrap();
        let (mean, var) = running(cumulative, &[&[1.0, 2.0, 4.0], &[4.0, 5.0, 7.0]]);
        close!(mean, 23.0 / 6.0, epsilon = 1e-12);
        close!(var, 7.0 / 3.0, epsilon = 1e-12);
    }

    #[test]
    fn each_convention_keeps_its_own_variance_and_momentum() {
        for (convention, momentum, var) in [
            (BnConvention::Torch, 0.1, 1.0 + 0.4 / 3.0),
            (BnConvention::Onnx, 0.9, 1.05555556),
            (BnConvention::Burn, 0.1, 1.05555556),
        ] {
            let norm = norm().with_convention(convention);
            assert_eq!(norm.momentum(), Some(momentum));
            let actual = running(norm, &[&[1.0, 2.0, 4.0]]);
            close!(actual.0, 0.7 / 3.0, epsilon = 1e-12);
            close!(actual.1, var, epsilon = 1e-8);
        }
        // ONNX weights the old value, the others the new one.
        let slow = norm().with_momentum(Some(0.9)).unwrap();
        close!(running(slow.clone(), &[&[0.0, 2.0]]).0, 0.9, epsilon = 1e-12);
        close!(running(slow.with_convention(BnConvention::Onnx), &[&[0.0, 2.0]]).0, 0.1, epsilon = 1e-12);
    }
}
