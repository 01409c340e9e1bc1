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

mod into;

pub use into::BatchStatistics;

use ndarray::{Array1, Array2, ArrayView1, ArrayViewMut1, Axis, Zip};

use super::affine::{AffineGrads, check_eps, check_features, check_keep, check_some, check_width, nan_grads};
use super::columns::Moments;
use super::running::{BnConvention, Momentum};
use crate::error::{Error, Result};
use crate::float::{Float, check_shape, elements, elements_mut, into_rows};
use crate::kernel::Pool;
use crate::traits::Normalizer;

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
    x: Array2<F>,
    batch: BatchStatistics<F>,
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
        self.momentum = Momentum::new(momentum)?;
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
        self.momentum.value(self.convention)
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
        self.mix(moments, rows, self.momentum.weight_of_new(self.convention, self.batches));
    }

    /// Moves the running statistics towards those of a batch, which count `new` of 1.
    fn mix(&mut self, moments: &Moments<F>, rows: usize, new: f64) {
        let divisor = self.convention.divisor(rows);
        let mix =
            |running: &mut F, batch: f64| *running = F::of(running.as_f64() * (1.0 - new) + batch * new);
        self.running_mean.iter_mut().zip(&moments.mean).for_each(|(running, &mean)| mix(running, mean));
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
        let pool = Pool::for_elements(y.len());
        self.infer(&pool, elements_mut(&mut y));
        Ok(y)
    }

    /// `x = (y - beta) * sqrt(running_var + eps) / gamma + running_mean`; infinite where that is beyond the element type.
    fn denormalize(&self, y: Array2<F>) -> Result<Array2<F>> {
        check_width("y", &y, self.features())?;
        if let Some(j) = self.gamma.iter().position(|gamma| gamma.is_zero()) {
            let reason = format!("gamma of feature {j} is 0, which maps every input to beta");
            return Err(Error::Unsupported { what: "the inverse of batch norm", reason });
        }
        let mut x = into_rows(y);
        let inverse = self.scale().mapv(|scale| F::of(1.0 / scale)).to_vec();
        let (running_mean, beta) = (self.running_mean.to_vec(), self.beta.to_vec());
        if !inverse.iter().all(|inverse| inverse.is_finite()) {
            // A gamma whose reciprocal overflows divides instead: infinity times 0 would be NaN.
            for ((_, j), x) in x.indexed_iter_mut() {
                let std = (self.running_var[j].as_f64() + self.eps).sqrt();
                let scaled = (x.as_f64() - beta[j].as_f64()) * std / self.gamma[j].as_f64();
                *x = F::of(scaled + running_mean[j].as_f64());
            }
            return Ok(x);
        }
        for row in elements_mut(&mut x).chunks_exact_mut(self.features()) {
            let settings = running_mean.iter().zip(&inverse).zip(&beta);
            for (x, ((&mean, &inverse), &beta)) in row.iter_mut().zip(settings) {
                *x = (*x - beta) * inverse + mean;
            }
        }
        Ok(x)
    }

    /// Refuses fewer than two rows in every convention: one row has no variance. NaN and infinity are refused
    /// too ([`Error::NotFinite`]), because they would stay in the running statistics for ever.
    fn normalize_batch(&mut self, x: Array2<F>) -> Result<(Array2<F>, Self::Cache)> {
        check_width("x", &x, self.features())?;
        let x = into_rows(x);
        let mut y = Array2::zeros(x.raw_dim());
        let batch = self.normalize_batch_into(x.view(), y.view_mut(), &Pool::for_elements(x.len()))?;
        Ok((y, BatchNormCache { x, batch }))
    }

    fn backward(&self, BatchNormCache { x, batch }: Self::Cache, dy: Array2<F>) -> (Array2<F>, Self::Grads) {
        if dy.dim() != x.dim() {
            return nan_grads(x.dim());
        }
        let mut dx = into_rows(dy);
        let (pool, x) = (Pool::for_elements(dx.len()), elements(&x));
        let (gradient, sums) = batch.gradient(&pool, x, elements(&dx));
        gradient.write_over(&pool, x, elements_mut(&mut dx));
        (dx, AffineGrads::of_sums(sums))
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

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq as close;
    use ndarray::array;

    fn norm() -> BatchNorm<f64> {
        BatchNorm::new(1).unwrap()
    }

    /// Derived by hand from the formula.
    #[test]
    fn folds_into_the_linear_layer_before_it() {
        let one = |x: f64| array![x];
        let norm = BatchNorm::from_parts(one(1.5), one(-0.25), one(1.0), one(3.99999), 1e-5).unwrap();
        let (mut weight, mut bias) = (array![[2.0, -1.0]], array![0.5]);
        norm.fold_into(&mut weight, &mut bias).unwrap();
        close!(weight, array![[1.5, -0.75]], epsilon = 1e-12);
        close!(bias, array![-0.625], epsilon = 1e-12);

        assert!(matches!(norm.fold_into(&mut array![[1.0], [2.0]], &mut bias), Err(Error::Shape { .. })));
        assert!(matches!(norm.fold_into(&mut weight, &mut array![1.0, 2.0]), Err(Error::Shape { .. })));
        let (scale, shift) = norm.scale_shift();
        close!(scale, array![0.75], epsilon = 1e-12);
        close!(shift, array![-1.0], epsilon = 1e-12);
    }

    #[test]
    fn a_batch_with_few_digits_left_keeps_its_variance() {
        // In f32 the neighbours of 1e6 are 1/16 apart; the naive formulas give a negative variance here.
        let step = |i: usize| if i.is_multiple_of(2) { -0.0625_f32 } else { 0.0625 };
        let x = Array2::from_shape_fn((1000, 2), |(i, j)| if j == 0 { 1e6 + step(i) } else { step(i) });
        let mut norm = BatchNorm::<f32>::new(2).unwrap().with_momentum(Some(1.0)).unwrap();
        let (y, _) = norm.normalize_batch(x).unwrap();
        close!(norm.running_var()[0], 0.0625 * 0.0625 * (1000.0 / 999.0), epsilon = 1e-8);
        assert_eq!(y.column(0), y.column(1));
        close!(y.column(0).sum(), 0.0, epsilon = 1e-2);

        let x = Array2::from_shape_fn((1000, 1), |(i, _)| 1e6_f32 + 1e-2 * (i % 7) as f32);
        let (y, _) = BatchNorm::new(1).unwrap().normalize_batch(x).unwrap();
        assert!(y.iter().all(|y| y.is_finite()));
    }

    #[test]
    fn refuses_a_batch_of_one() {
        for convention in [BnConvention::Torch, BnConvention::Onnx, BnConvention::Burn] {
            for rows in [0, 1] {
                let error = norm().with_convention(convention).normalize_batch(Array2::zeros((rows, 1)));
                let expected = format!("batch norm by a batch needs at least 2 rows, got {rows}");
                assert_eq!(error.unwrap_err().to_string(), expected);
            }
        }
    }

    #[test]
    fn a_refused_batch_leaves_no_trace() {
        let mut norm = BatchNorm::<f32>::new(2).unwrap();
        let before = norm.clone();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = norm.normalize_batch(array![[1.0, 2.0], [3.0, 4.0], [5.0, bad]]).unwrap_err();
            assert!(matches!(error, Error::NotFinite { what: "x", index, .. } if index == [2, 1]));
        }
        let error = norm.normalize_batch(array![[1.0, f32::MAX], [3.0, f32::MIN]]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "variance of a feature is NaN at index [1]; only finite numbers are allowed"
        );
        assert_eq!(norm, before);
    }

    #[test]
    fn has_no_inverse_where_a_gamma_is_zero() {
        let (gamma, zeros) = (array![1.0, 0.0], Array1::zeros(2));
        let norm =
            BatchNorm::from_parts(gamma.clone(), zeros.clone(), zeros, array![1.0, 1.0], 1e-5).unwrap();
        let error = norm.denormalize(array![[1.0, 2.0]]).unwrap_err();
        assert!(
            matches!(&error, Error::Unsupported { reason, .. } if reason.contains("feature 1")),
            "{error}"
        );
    }

    #[test]
    fn the_inverse_by_a_tiny_gamma_is_no_nan() {
        let one = || array![1.0_f32];
        let norm = BatchNorm::from_parts(array![1e-40], one(), one(), array![4.0], 1e-5).unwrap();
        let x = norm.denormalize(array![[1.0], [2.0], [1.0 + 1e-3]]).unwrap();
        assert_eq!((x[[0, 0]], x[[1, 0]]), (1.0, f32::INFINITY));
        let norm = BatchNorm::from_parts(array![1e-40], array![0.0_f32], one(), array![4.0], 1e-5).unwrap();
        let x = norm.denormalize(array![[0.0], [1e-10]]).unwrap();
        assert_eq!(x[[0, 0]], 1.0);
        close!(x[[1, 0]] / 2e30, 1.0, epsilon = 1e-4);
    }

    #[test]
    fn it_does_not_matter_which_row_comes_first() {
        let x = |far: usize| {
            let x = |(i, _)| if i == far { 1e8_f32 } else { 0.5 * (i % 2) as f32 };
            Array2::from_shape_fn((100_000, 1), x)
        };
        let run = |x: Array2<f32>| {
            let mut norm = BatchNorm::new(1).unwrap().with_momentum(Some(1.0)).unwrap();
            let (y, cache) = norm.normalize_batch(x).unwrap();
            let dy = y.mapv(|y| y * y);
            (norm.backward(cache, dy).0, y, norm)
        };
        let ((dx, y, norm), (dx_later, y_later, later)) = (run(x(0)), run(x(2)));
        close!(norm.running_var()[0] / later.running_var()[0], 1.0, epsilon = 1e-4);
        close!(norm.running_mean()[0] / later.running_mean()[0], 1.0, epsilon = 1e-4);
        for i in [4, 5, 99_998, 99_999] {
            close!(y[[i, 0]] / y_later[[i, 0]], 1.0, epsilon = 1e-4);
            close!(dx[[i, 0]], dx_later[[i, 0]], epsilon = 1e-9);
        }
        assert_ne!(y[[4, 0]], y[[5, 0]]);
    }

    #[test]
    fn refuses_settings_outside_their_range() {
        for eps in [0.0, -1e-5, f64::NAN, f64::INFINITY, 1e-40] {
            assert!(BatchNorm::<f32>::new(1).unwrap().with_eps(eps).is_err(), "{eps}");
        }
        for momentum in [-0.1, 1.1, f64::NAN] {
            assert!(norm().with_momentum(Some(momentum)).is_err());
        }
        assert!(matches!(BatchNorm::<f32>::new(0), Err(Error::Empty { .. })));
        let one = || array![1.0];
        assert!(BatchNorm::from_parts(one(), one(), one(), array![-1.0], 1e-5).is_err());
        assert!(BatchNorm::from_parts(one(), one(), array![f64::NAN], one(), 1e-5).is_err());
        assert!(BatchNorm::from_parts(one(), array![1.0, 2.0], one(), one(), 1e-5).is_err());
    }

    #[test]
    fn selected_features_behave_as_before() {
        let part = |start: f64| Array1::from_iter((0..3).map(|i| start + f64::from(i)));
        let norm = BatchNorm::from_parts(part(1.0), part(0.5), part(-1.0), part(2.0), 1e-5).unwrap();
        let x = array![[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]];
        let few = norm.select(&[2, 0]).unwrap();
        let expected = norm.normalize(x.clone()).unwrap().select(Axis(1), &[2, 0]);
        assert_eq!(few.normalize(x.select(Axis(1), &[2, 0])).unwrap(), expected);
        assert!(matches!(norm.select(&[3]), Err(Error::OutOfRange { name: "keep", .. })));
        assert!(matches!(norm.select(&[]), Err(Error::Empty { .. })));
    }

    #[test]
    fn into_memory_gives_the_bits_of_the_normalizer_on_any_number_of_threads() {
        for (rows, width) in [(2, 1), (3, 17), (130, 2500), (67, 48)] {
            let sample = |k: usize| {
                Array2::from_shape_fn((rows, width), |(i, j)| {
                    ((i * 37 + j * 11 + k) % 101) as f32 * 0.37 - k as f32
                })
            };
            let (x, dy) = (sample(1), sample(7));
            let gamma: Array1<f32> = (0..width).map(|j| 1.0 + j as f32 * 0.01).collect();
            let beta = gamma.mapv(|g| g * 0.5 - 1.0);
            let norm = BatchNorm::from_parts(gamma, beta.clone(), beta, Array1::ones(width), 1e-5).unwrap();
            let mut once = norm.clone();
            let (y, cache) = once.normalize_batch(x.clone()).unwrap();
            let (dx, grads) = once.backward(cache, dy.clone());
            let inferred = norm.normalize(x.clone()).unwrap();
            for pool in [Pool::single(), Pool::new(3)] {
                for turned in [false, true] {
                    let mut norm = norm.clone();
                    let mut out = Array2::zeros(if turned { (width, rows) } else { (rows, width) });
                    let mut place = if turned { out.view_mut().reversed_axes() } else { out.view_mut() };
                    norm.normalize_into(x.view(), place.view_mut(), &pool).unwrap();
                    assert_eq!(place, inferred);
                    let batch = norm.normalize_batch_into(x.view(), place.view_mut(), &pool).unwrap();
                    assert_eq!(place, y);
                    assert_eq!(norm, once);
                    let again =
                        norm.backward_into(&batch, x.view(), dy.view(), place.view_mut(), &pool).unwrap();
                    assert_eq!((place.view(), &again), (dx.view(), &grads));
                    let wrong = x.slice(ndarray::s![1.., ..]);
                    assert!(norm.backward_into(&batch, wrong, dy.view(), place.view_mut(), &pool).is_err());
                }
            }
        }
    }
}
