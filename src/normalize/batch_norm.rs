//! Batch normalization: every feature of a batch gets mean `beta` and deviation `gamma`.
//!
//! ```text
//! training    x_hat = (x - mean(x)) / sqrt(var(x) + eps)      mean, var over the rows; population variance
//!             y     = x_hat * gamma + beta
//!             running_mean, running_var move towards mean(x), var(x)     see BnConvention
//! inference   y     = (x - running_mean) / sqrt(running_var + eps) * gamma + beta
//! backward    dx    = (dy - mean(dy) - x_hat * mean(dy * x_hat)) * gamma / std
//! ```
//!
//! What differs between frameworks, and spoils imported models in silence, is the running statistics alone:
//! which side the momentum weights, and which variance is kept. Ioffe and Szegedy, ICML 2015.

use ndarray::{Array1, Array2, ArrayView1, ArrayViewMut1, Axis, Zip};

use super::affine::{AffineGrads, check_eps, check_features, check_keep, check_some, check_width, nan_grads};
use super::columns::{self, Moments};
use crate::error::{Error, Result};
use crate::float::{Float, check_shape, elements, elements_mut, into_rows};
use crate::traits::Normalizer;

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
}

#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
enum Momentum {
    OfConvention,
    Fixed(f64),
    Cumulative,
}

/// Normalizes each feature of a batch `[batch, features]` by the batch's own mean and variance while training,
/// and by their running values afterwards.
///
/// ```
/// use trimnet::ndarray::array;
/// use trimnet::normalize::BatchNorm;
/// use trimnet::Normalizer;
///
/// let mut norm = BatchNorm::<f64>::new(1)?;
/// let (y, _cache) = norm.normalize_batch(array![[1.0], [2.0], [4.0]])?;
/// assert!((y[[0, 0]] + 1.069042).abs() < 1e-6);
/// assert!((norm.running_mean()[0] - 0.233333).abs() < 1e-6);
/// assert!((norm.running_var()[0] - 1.133333).abs() < 1e-6);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw<F>"))]
pub struct BatchNorm<F> {
    gamma: Array1<F>,
    beta: Array1<F>,
    running_mean: Array1<F>,
    running_var: Array1<F>,
    eps: f64,
    momentum: Momentum,
    convention: BnConvention,
    batches: u64,
}

/// What the backward pass of [`BatchNorm`] needs of the forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNormCache<F> {
    x_hat: Array2<F>,
    scale: Vec<F>,
}

impl<F: Float> BatchNorm<F> {
    /// `gamma` 1, `beta` 0, running mean 0 and variance 1; PyTorch's convention, `eps` 1e-5, momentum 0.1.
    ///
    /// # Errors
    /// [`Error::Empty`] for no features.
    pub fn new(features: usize) -> Result<Self> {
        let (zeros, ones) = (Array1::zeros(features), Array1::ones(features));
        Self::from_parts(ones.clone(), zeros.clone(), zeros, ones, 1e-5)
    }

    /// With parameters and statistics from elsewhere, each `[features]`.
    ///
    /// # Errors
    /// [`Error::Empty`] for no features, [`Error::Shape`] for unequal lengths, [`Error::NotFinite`],
    /// [`Error::OutOfRange`] for a negative variance or an `eps` that is not positive.
    pub fn from_parts(
        gamma: Array1<F>,
        beta: Array1<F>,
        running_mean: Array1<F>,
        running_var: Array1<F>,
        eps: f64,
    ) -> Result<Self> {
        let features = gamma.len();
        check_some(features)?;
        check_features("gamma", &gamma, features)?;
        check_features("beta", &beta, features)?;
        check_features("running_mean", &running_mean, features)?;
        check_features("running_var", &running_var, features)?;
        if let Some(var) = running_var.iter().find(|&&var| var < F::zero()) {
            let value = var.as_f64();
            return Err(Error::OutOfRange { name: "running_var", value, range: "at least 0" });
        }
        check_eps::<F>(eps)?;
        let (momentum, convention) = (Momentum::OfConvention, BnConvention::Torch);
        Ok(Self { gamma, beta, running_mean, running_var, eps, momentum, convention, batches: 0 })
    }

    /// Another `eps`, which is added to the variance.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless it is a positive normal number of the element type.
    pub fn with_eps(mut self, eps: f64) -> Result<Self> {
        check_eps::<F>(eps)?;
        self.eps = eps;
        Ok(self)
    }

    /// Another momentum, with the meaning of the [convention](BnConvention); `None` keeps the cumulative mean
    /// of all batches, each with equal weight.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= momentum <= 1`.
    pub fn with_momentum(mut self, momentum: Option<f64>) -> Result<Self> {
        self.momentum = match momentum {
            Some(m) if (0.0..=1.0).contains(&m) => Momentum::Fixed(m),
            Some(value) => {
                return Err(Error::OutOfRange { name: "momentum", value, range: "0 <= momentum <= 1" });
            }
            None => Momentum::Cumulative,
        };
        Ok(self)
    }

    /// Another convention, with its usual momentum unless [`with_momentum`](Self::with_momentum) set one.
    pub fn with_convention(mut self, convention: BnConvention) -> Self {
        self.convention = convention;
        self
    }

    /// The number of batches that the cumulative mean already stands for (PyTorch's `num_batches_tracked`).
    pub fn with_batches(mut self, batches: u64) -> Self {
        self.batches = batches;
        self
    }

    /// Number of features.
    pub fn features(&self) -> usize {
        self.gamma.len()
    }

    /// The learnt deviation of each feature.
    pub fn gamma(&self) -> ArrayView1<'_, F> {
        self.gamma.view()
    }

    /// The learnt mean of each feature.
    pub fn beta(&self) -> ArrayView1<'_, F> {
        self.beta.view()
    }

    /// The mean that inference subtracts.
    pub fn running_mean(&self) -> ArrayView1<'_, F> {
        self.running_mean.view()
    }

    /// The variance that inference divides by the root of.
    pub fn running_var(&self) -> ArrayView1<'_, F> {
        self.running_var.view()
    }

    /// What is added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// The momentum, `None` for the cumulative mean.
    pub fn momentum(&self) -> Option<f64> {
        match self.momentum {
            Momentum::OfConvention => Some(self.convention.default_momentum()),
            Momentum::Fixed(m) => Some(m),
            Momentum::Cumulative => None,
        }
    }

    /// How batches enter the running statistics.
    pub fn convention(&self) -> BnConvention {
        self.convention
    }

    /// Number of training batches seen.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// `gamma` and `beta`, for an optimizer to move.
    pub fn affine_mut(&mut self) -> (ArrayViewMut1<'_, F>, ArrayViewMut1<'_, F>) {
        (self.gamma.view_mut(), self.beta.view_mut())
    }

    /// Only these features, in this order: what is left after neurons were removed.
    ///
    /// # Errors
    /// [`Error::Empty`] for none, [`Error::OutOfRange`] for an index that is not below
    /// [`features`](Self::features).
    pub fn select(&self, keep: &[usize]) -> Result<Self> {
        check_keep(keep, self.features())?;
        let select = |x: &Array1<F>| x.select(Axis(0), keep);
        Ok(Self {
            gamma: select(&self.gamma),
            beta: select(&self.beta),
            running_mean: select(&self.running_mean),
            running_var: select(&self.running_var),
            ..*self
        })
    }

    /// Inference as one multiplication and one addition, `y = x * scale + shift`, each `[features]`:
    /// `scale = gamma / sqrt(running_var + eps)`, `shift = beta - running_mean * scale`.
    pub fn scale_shift(&self) -> (Array1<F>, Array1<F>) {
        let scale = self.scale();
        let shift = Zip::from(&scale)
            .and(&self.running_mean)
            .and(&self.beta)
            .map_collect(|scale, mean, beta| F::of(beta.as_f64() - mean.as_f64() * scale));
        (scale.mapv(F::of), shift)
    }

    /// Folds this layer into the linear layer before it, `weight` `[features, inputs]` and `bias`
    /// `[features]`, so that the linear layer alone gives the same inference:
    /// `w' = w * scale`, `b' = (b - running_mean) * scale + beta`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the linear layer has another number of outputs; nothing is changed then.
    pub fn fold_into(&self, weight: &mut Array2<F>, bias: &mut Array1<F>) -> Result<()> {
        check_shape("weight", weight.shape(), &[self.features(), weight.ncols()])?;
        check_shape("bias", bias.shape(), &[self.features()])?;
        let scale = self.scale();
        for (mut row, &scale) in weight.rows_mut().into_iter().zip(&scale) {
            row.mapv_inplace(|w| F::of(w.as_f64() * scale));
        }
        let parts = Zip::from(bias).and(&scale).and(&self.running_mean).and(&self.beta);
        parts.for_each(|b, scale, mean, beta| {
            *b = F::of((b.as_f64() - mean.as_f64()) * scale + beta.as_f64());
        });
        Ok(())
    }

    /// gamma / sqrt(running_var + eps), in f64 so that folding rounds once.
    fn scale(&self) -> Array1<f64> {
        Zip::from(&self.gamma)
            .and(&self.running_var)
            .map_collect(|gamma, var| gamma.as_f64() / (var.as_f64() + self.eps).sqrt())
    }

    fn update_running(&mut self, moments: &Moments<F>, rows: usize) {
        self.batches = self.batches.saturating_add(1);
        let new = match (self.momentum(), self.convention) {
            (None, _) => 1.0 / self.batches as f64,
            (Some(m), BnConvention::Onnx) => 1.0 - m,
            (Some(m), BnConvention::Torch | BnConvention::Burn) => m,
        };
        let divisor = match self.convention {
            BnConvention::Torch => rows - 1,
            BnConvention::Onnx | BnConvention::Burn => rows,
        } as f64;
        let mix =
            |running: &mut F, batch: f64| *running = F::of(running.as_f64() * (1.0 - new) + batch * new);
        self.running_mean.iter_mut().zip(moments.mean()).for_each(|(running, mean)| mix(running, mean));
        self.running_var.iter_mut().zip(&moments.m2).for_each(|(running, m2)| mix(running, m2 / divisor));
    }
}

impl<F: Float> Normalizer<F> for BatchNorm<F> {
    type Cache = BatchNormCache<F>;
    type Grads = AffineGrads<F>;

    /// `y = (x - running_mean) * gamma / sqrt(running_var + eps) + beta`; NaN and infinity pass through.
    fn normalize(&self, x: Array2<F>) -> Result<Array2<F>> {
        check_width("x", &x, self.features())?;
        let mut y = into_rows(x);
        let scale = self.scale().mapv(F::of);
        for row in elements_mut(&mut y).chunks_exact_mut(self.features()) {
            let settings = self.running_mean.iter().zip(&scale).zip(&self.beta);
            for (y, ((&mean, &scale), &beta)) in row.iter_mut().zip(settings) {
                *y = (*y - mean) * scale + beta;
            }
        }
        Ok(y)
    }

    /// `x = (y - beta) * sqrt(running_var + eps) / gamma + running_mean`.
    fn denormalize(&self, y: Array2<F>) -> Result<Array2<F>> {
        check_width("y", &y, self.features())?;
        if let Some(j) = self.gamma.iter().position(|gamma| gamma.is_zero()) {
            let reason = format!("gamma of feature {j} is 0, which maps every input to beta");
            return Err(Error::Unsupported { what: "the inverse of batch norm", reason });
        }
        let mut x = into_rows(y);
        let inverse = self.scale().mapv(|scale| F::of(1.0 / scale));
        for row in elements_mut(&mut x).chunks_exact_mut(self.features()) {
            let settings = self.running_mean.iter().zip(&inverse).zip(&self.beta);
            for (x, ((&mean, &inverse), &beta)) in row.iter_mut().zip(settings) {
                *x = (*x - beta) * inverse + mean;
            }
        }
        Ok(x)
    }

    /// Refuses fewer than two rows in every convention: one row has no variance. NaN and infinity are refused
    /// too ([`Error::NotFinite`]), because they would stay in the running statistics for ever.
    fn normalize_batch(&mut self, x: Array2<F>) -> Result<(Array2<F>, Self::Cache)> {
        let features = self.features();
        check_width("x", &x, features)?;
        let rows = x.nrows();
        if rows < 2 {
            return Err(Error::BatchTooSmall { what: "batch norm in training", rows, needed: 2 });
        }
        let mut x_hat = into_rows(x);
        let moments = Moments::of(&x_hat)?;
        let std: Vec<f64> = moments.m2.iter().map(|m2| (m2 / rows as f64 + self.eps).sqrt()).collect();
        let offset: Vec<F> = moments.offset.iter().map(|&offset| F::of(offset)).collect();
        let inverse: Vec<F> = std.iter().map(|std| F::of(1.0 / std)).collect();

        let mut y = Array2::zeros((rows, features));
        let outputs = elements_mut(&mut y).chunks_exact_mut(features);
        for (row, y) in elements_mut(&mut x_hat).chunks_exact_mut(features).zip(outputs) {
            let statistics = moments.first.iter().zip(&offset).zip(&inverse);
            for (x, ((&first, &offset), &inverse)) in row.iter_mut().zip(statistics) {
                *x = ((*x - first) - offset) * inverse;
            }
            for (((y, &x_hat), &gamma), &beta) in y.iter_mut().zip(&*row).zip(&self.gamma).zip(&self.beta) {
                *y = x_hat * gamma + beta;
            }
        }
        let scale = self.gamma.iter().zip(&std).map(|(gamma, std)| F::of(gamma.as_f64() / std)).collect();
        self.update_running(&moments, rows);
        Ok((y, BatchNormCache { x_hat, scale }))
    }

    fn backward(&self, cache: Self::Cache, dy: Array2<F>) -> (Array2<F>, Self::Grads) {
        if dy.dim() != cache.x_hat.dim() {
            return nan_grads(cache.x_hat.dim());
        }
        let mut dx = into_rows(dy);
        let (dbeta, dgamma) = columns::backward(elements_mut(&mut dx), elements(&cache.x_hat), &cache.scale);
        let array = |sums: Vec<f64>| sums.into_iter().map(F::of).collect();
        (dx, AffineGrads { dgamma: array(dgamma), dbeta: array(dbeta) })
    }
}

/// What a file says, before it is checked.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(bound = "F: Float + serde::de::DeserializeOwned")]
struct Raw<F> {
    gamma: Array1<F>,
    beta: Array1<F>,
    running_mean: Array1<F>,
    running_var: Array1<F>,
    eps: f64,
    momentum: Momentum,
    convention: BnConvention,
    batches: u64,
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<Raw<F>> for BatchNorm<F> {
    type Error = Error;

    fn try_from(raw: Raw<F>) -> Result<Self> {
        let norm = Self::from_parts(raw.gamma, raw.beta, raw.running_mean, raw.running_var, raw.eps)?
            .with_convention(raw.convention)
            .with_batches(raw.batches);
        match raw.momentum {
            Momentum::OfConvention => Ok(norm),
            Momentum::Fixed(m) => norm.with_momentum(Some(m)),
            Momentum::Cumulative => norm.with_momentum(None),
        }
    }
}
