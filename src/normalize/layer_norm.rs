//! Layer normalization: every row gets mean 0 and deviation 1 over its own features, then `gamma` and `beta`.
//!
//! ```text
//! x_hat = (x - mean(x)) / sqrt(var(x) + eps)      mean, var over the features of one row; population variance
//! y     = x_hat * gamma + beta
//! g     = dy * gamma
//! dx    = (g - mean(g) - x_hat * mean(g * x_hat)) / std
//! ```
//!
//! A row does not see its batch, so training and inference are the same, a batch of one is fine, and there are
//! no running statistics. For the same reason there is no inverse: the row's mean and deviation are not in `y`.
//! Ba, Kiros, Hinton, arXiv 1607.06450.

use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};

use super::affine::{
    Affine, AffineGrads, check_eps, check_features, check_keep, check_some, check_width, nan_grads,
};
use super::columns::{each_row, product_sums};
use crate::error::{Error, Result};
use crate::float::{Float, check_shape, elements, elements_mut, into_rows};
use crate::kernel::{Fill, Isa, PART, Pool, Stream, Streams, Work, fetch_ahead, with};
use crate::traits::Normalizer;

/// Normalizes each row of a batch `[batch, features]` by its own mean and variance.
///
/// ```
/// use trimnet::ndarray::array;
/// use trimnet::normalize::LayerNorm;
/// use trimnet::Normalizer;
///
/// let norm = LayerNorm::<f64>::new(2)?;
/// let y = norm.normalize(array![[1.0, 3.0]])?;
/// assert!((y[[0, 0]] + 1.0).abs() < 1e-5 && (y[[0, 1]] - 1.0).abs() < 1e-5);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw<F>"))]
pub struct LayerNorm<F> {
    gamma: Array1<F>,
    beta: Array1<F>,
    eps: f64,
}

/// What the backward pass of [`LayerNorm`] needs of the forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNormCache<F> {
    x_hat: Array2<F>,
    inverse: Vec<F>,
    gamma: Vec<F>,
}

impl<F: Float> LayerNorm<F> {
    /// `gamma` 1, `beta` 0, `eps` 1e-5.
    ///
    /// # Errors
    /// [`Error::Empty`] for no features.
    pub fn new(features: usize) -> Result<Self> {
        Self::from_parts(Array1::ones(features), Array1::zeros(features), 1e-5)
    }

    /// With parameters from elsewhere, each `[features]`.
    ///
    /// # Errors
    /// [`Error::Empty`] for no features, [`Error::Shape`] for unequal lengths, [`Error::NotFinite`],
    /// [`Error::OutOfRange`] for an `eps` that is not positive.
    pub fn from_parts(gamma: Array1<F>, beta: Array1<F>, eps: f64) -> Result<Self> {
        let features = gamma.len();
        check_some(features)?;
        check_features("gamma", &gamma, features)?;
        check_features("beta", &beta, features)?;
        check_eps::<F>(eps)?;
        Ok(Self { gamma, beta, eps })
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

    /// Number of features.
    pub fn features(&self) -> usize {
        self.gamma.len()
    }

    /// The learnt scale of each feature.
    pub fn gamma(&self) -> ArrayView1<'_, F> {
        self.gamma.view()
    }

    /// The learnt shift of each feature.
    pub fn beta(&self) -> ArrayView1<'_, F> {
        self.beta.view()
    }

    /// What is added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// `gamma` and `beta`, for an optimizer to move.
    pub fn affine_mut(&mut self) -> (ArrayViewMut1<'_, F>, ArrayViewMut1<'_, F>) {
        (self.gamma.view_mut(), self.beta.view_mut())
    }

    /// Only these features, in this order. Unlike batch norm's, the outputs of those that stay change, because
    /// the removed ones were part of the row's mean and variance.
    ///
    /// # Errors
    /// [`Error::Empty`] for none, [`Error::OutOfRange`] for an index that is not below
    /// [`features`](Self::features).
    pub fn select(&self, keep: &[usize]) -> Result<Self> {
        check_keep(keep, self.features())?;
        let select = |x: &Array1<F>| x.select(Axis(0), keep);
        Ok(Self { gamma: select(&self.gamma), beta: select(&self.beta), eps: self.eps })
    }

    /// As [`normalize`](Normalizer::normalize), into memory that is there already, on all threads of `pool`; the same
    /// result for any number of threads.
    ///
    /// # Errors
    /// As [`normalize`](Normalizer::normalize), and [`Error::Shape`] for a `y` of another shape than `x`. `y` holds
    /// anything then.
    pub fn normalize_into(
        &self,
        x: ArrayView2<'_, F>,
        mut y: ArrayViewMut2<'_, F>,
        pool: &Pool,
    ) -> Result<()> {
        check_shape("x", x.shape(), &[x.nrows(), self.features()])?;
        check_shape("the place for y", y.shape(), x.shape())?;
        match (x.as_slice(), y.as_slice_mut()) {
            (Some(x), Some(y)) => self.standardize(pool, Some(x), y, true).map(|_| ()),
            _ => {
                let mut rows = x.as_standard_layout().into_owned();
                self.standardize(pool, None, elements_mut(&mut rows), true)?;
                y.assign(&rows);
                Ok(())
            }
        }
    }

    /// Inference of one row of [`features`](Self::features) numbers, in place and without allocating.
    pub(crate) fn normalize_row(&self, row: &mut [F]) -> Result<()> {
        let (n, inverse) = (row.len(), &mut [F::zero()]);
        if !with(
            Isa::best(),
            Rows { isa: Isa::best(), whole: n, n, eps: self.eps, x: None, y: row, inverse, affine: None },
        ) {
            let value = f64::INFINITY;
            return Err(Error::NotFinite { what: "variance of a row", index: vec![], value });
        }
        for ((y, &gamma), &beta) in row.iter_mut().zip(&self.gamma).zip(&self.beta) {
            *y = *y * gamma + beta;
        }
        Ok(())
    }

    /// Turns every row into its `x_hat`, or into `x_hat * gamma + beta`; returns `1 / std` of each row.
    fn standardize(&self, pool: &Pool, x: Option<&[F]>, y: &mut [F], affine: bool) -> Result<Vec<F>> {
        let n = self.features();
        let part = (PART / n).max(1);
        let mut inverse = vec![F::zero(); y.len() / n];
        let (isa, whole, eps, failed) = (Isa::best(), y.len(), self.eps, AtomicBool::new(false));
        let affine = affine.then(|| Affine::new(&self.gamma, &self.beta));
        let parts = y.chunks_mut(part * n).zip(inverse.chunks_mut(part)).enumerate();
        pool.each(parts, |(i, (y, inverse))| {
            let x = x.map(|x| &x[i * part * n..][..y.len()]);
            if !with(isa, Rows { isa, whole, n, eps, x, y, inverse, affine: affine.as_ref() }) {
                failed.store(true, Ordering::Relaxed);
            }
        });
        if failed.into_inner() {
            // A row whose variance is not finite was left as it came.
            let row = inverse.iter().position(|inverse| inverse.is_nan()).unwrap_or_default();
            let bad = |x: &&F| !x.is_finite();
            let values = &x.unwrap_or(y)[row * n..][..n];
            return Err(match values.iter().enumerate().find(|(_, x)| bad(x)) {
                Some((j, x)) => Error::NotFinite { what: "x", index: vec![row, j], value: x.as_f64() },
                None => {
                    let value = f64::INFINITY;
                    Error::NotFinite { what: "variance of a row", index: vec![row], value }
                }
            });
        }
        Ok(inverse)
    }
}

/// Some rows of `y`, or of `x` on their way to `y`.
struct Rows<'a, F> {
    isa: Isa,
    /// Elements of the whole result.
    whole: usize,
    n: usize,
    eps: f64,
    x: Option<&'a [F]>,
    y: &'a mut [F],
    inverse: &'a mut [F],
    affine: Option<&'a Affine<F>>,
}

impl<F: Float> Work for Rows<'_, F> {
    /// Whether all variances are finite; where one is not, `inverse` is NaN.
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let Self { isa, whole, n, eps, x, y, inverse, affine } = self;
        let (asks, mut stream) = (isa.streams() == Streams::Asked, Stream::new(isa, whole));
        let mut finite = true;
        for (i, (row, inverse)) in y.chunks_exact_mut(n).zip(inverse).enumerate() {
            let x = x.map(|x| &x[i * n..][..n]);
            let from = x.unwrap_or(&*row);
            let first = from[0];
            let (sum, square) = shifted_sums(asks, from, first);
            let offset = sum / n as f64;
            let var = (square - sum * offset) / n as f64;
            if !var.is_finite() {
                *inverse = F::nan();
                finite = false;
                continue;
            }
            // Rounding may leave a constant row just below 0.
            let scale = F::of(1.0 / (var.max(0.0) + eps).sqrt());
            let offset = F::of(offset);
            *inverse = scale;
            match (x, affine) {
                (Some(x), Some(affine)) => {
                    let (gamma, beta) = affine.parts();
                    stream.fill(row, &mut Row { x, first, offset, scale, gamma, beta });
                }
                _ => {
                    if let Some(x) = x {
                        row.copy_from_slice(x);
                    }
                    row.iter_mut().for_each(|x| *x = ((*x - first) - offset) * scale);
                    if let Some(affine) = affine {
                        affine.run(0, row);
                    }
                }
            }
        }
        finite
    }
}

/// `y = (x - mean) * scale * gamma + beta` of one row, where `mean = first + offset`.
struct Row<'a, F> {
    x: &'a [F],
    first: F,
    offset: F,
    scale: F,
    gamma: &'a [F],
    beta: &'a [F],
}

impl<F: Float> Fill<F> for Row<'_, F> {
    #[inline(always)]
    fn fill(&mut self, at: usize, y: &mut [F]) {
        let &mut Self { x, first, offset, scale, gamma, beta } = self;
        let n = y.len();
        let (x, gamma, beta) = (&x[at..][..n], &gamma[at..][..n], &beta[at..][..n]);
        for i in 0..n {
            y[i] = ((x[i] - first) - offset) * scale * gamma[i] + beta[i];
        }
    }
}

/// Sums of `d` and `d^2` where `d = x - first`.
#[inline(always)]
fn shifted_sums<F: Float>(asks: bool, x: &[F], first: F) -> (f64, f64) {
    let (d, square) = (|x, _| x - first, |x, _| (x - first) * (x - first));
    // Two of the widest registers for each sum: an addition need not wait for the one before.
    if F::BYTES == size_of::<f32>() {
        lane_sums::<F, 32>(asks, x, x, d, square)
    } else {
        lane_sums::<F, 16>(asks, x, x, d, square)
    }
}

/// Sums of `f(a, b)` and of `g(a, b)` over two slices of equal length, in lanes so that the loop can run in vector registers, and
/// in `f64` across blocks so that long rows stay accurate. `asks` for what follows `a`.
#[inline(always)]
fn lane_sums<F: Float, const LANES: usize>(
    asks: bool,
    a: &[F],
    b: &[F],
    f: impl Fn(F, F) -> F,
    g: impl Fn(F, F) -> F,
) -> (f64, f64) {
    const BLOCK: usize = 1024;
    /// Twice as far helped rows of `f64` more, and cost rows of `f32` that a cache holds.
    const AHEAD_BYTES: usize = 8192;
    let (mut f_total, mut g_total) = (0.0, 0.0);
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let (mut f_lanes, mut g_lanes) = ([F::zero(); LANES], [F::zero(); LANES]);
        let mut add = |a: &[F], b: &[F]| {
            for (((f_lane, g_lane), &a), &b) in f_lanes.iter_mut().zip(&mut g_lanes).zip(a).zip(b) {
                *f_lane += f(a, b);
                *g_lane += g(a, b);
            }
        };
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            if asks {
                fetch_ahead(a, AHEAD_BYTES);
            }
            add(a, b);
        }
        add(a_rest, b_rest);
        f_total += f_lanes.iter().map(|lane| lane.as_f64()).sum::<f64>();
        g_total += g_lanes.iter().map(|lane| lane.as_f64()).sum::<f64>();
    }
    (f_total, g_total)
}

impl<F: Float> Normalizer<F> for LayerNorm<F> {
    type Cache = LayerNormCache<F>;
    type Grads = AffineGrads<F>;

    /// The same as in training. NaN and infinity are refused ([`Error::NotFinite`]).
    fn normalize(&self, x: Array2<F>) -> Result<Array2<F>> {
        check_width("x", &x, self.features())?;
        let mut y = into_rows(x);
        self.standardize(&Pool::for_elements(y.len()), None, elements_mut(&mut y), true)?;
        Ok(y)
    }

    /// Always [`Error::Unsupported`]: the row's mean and deviation are not in `y`.
    fn denormalize(&self, _y: Array2<F>) -> Result<Array2<F>> {
        let reason = "the mean and deviation of the row are not in its output".to_string();
        Err(Error::Unsupported { what: "the inverse of layer norm", reason })
    }

    fn normalize_batch(&mut self, x: Array2<F>) -> Result<(Array2<F>, Self::Cache)> {
        check_width("x", &x, self.features())?;
        let mut x_hat = into_rows(x);
        let pool = Pool::for_elements(x_hat.len());
        let inverse = self.standardize(&pool, None, elements_mut(&mut x_hat), false)?;
        let mut y = x_hat.clone();
        let affine = Affine::new(&self.gamma, &self.beta);
        each_row(&pool, self.features(), [], elements_mut(&mut y), |j, [], y| affine.run(j, y));
        Ok((y, LayerNormCache { x_hat, inverse, gamma: self.gamma.to_vec() }))
    }

    fn backward(&self, cache: Self::Cache, dy: Array2<F>) -> (Array2<F>, Self::Grads) {
        if dy.dim() != cache.x_hat.dim() {
            return nan_grads(cache.x_hat.dim());
        }
        let mut dx = into_rows(dy);
        let n = cache.gamma.len();
        let pool = Pool::for_elements(dx.len());
        let sums = product_sums(&pool, elements(&dx), elements(&cache.x_hat), n);
        let (isa, part) = (Isa::best(), (PART / n).max(1));
        let rows = elements_mut(&mut dx).chunks_mut(part * n);
        let rows = rows.zip(elements(&cache.x_hat).chunks(part * n)).zip(cache.inverse.chunks(part));
        pool.each(rows, |((dy, x_hat), inverse)| {
            with(isa, BackwardRows { gamma: &cache.gamma, dy, x_hat, inverse });
        });
        (dx, AffineGrads::of_sums(sums))
    }
}

/// `dx` of some rows, over `dy`.
struct BackwardRows<'a, F> {
    gamma: &'a [F],
    dy: &'a mut [F],
    x_hat: &'a [F],
    inverse: &'a [F],
}

impl<F: Float> Work for BackwardRows<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { gamma, dy, x_hat, inverse } = self;
        let n = gamma.len();
        let rows = dy.chunks_exact_mut(n).zip(x_hat.chunks_exact(n));
        for ((row, x_hat), &inverse) in rows.zip(inverse) {
            row.iter_mut().zip(gamma).for_each(|(dy, &gamma)| *dy *= gamma);
            let (g_sum, gx_sum) = lane_sums::<F, 16>(false, row, x_hat, |g, _| g, |g, x_hat| g * x_hat);
            let (g_mean, gx_mean) = (F::of(g_sum / n as f64), F::of(gx_sum / n as f64));
            for (g, &x_hat) in row.iter_mut().zip(x_hat) {
                *g = (*g - g_mean - x_hat * gx_mean) * inverse;
            }
        }
    }
}

/// What a file says, before it is checked.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(bound = "F: Float + serde::de::DeserializeOwned")]
struct Raw<F> {
    gamma: Array1<F>,
    beta: Array1<F>,
    eps: f64,
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<Raw<F>> for LayerNorm<F> {
    type Error = Error;

    fn try_from(raw: Raw<F>) -> Result<Self> {
        Self::from_parts(raw.gamma, raw.beta, raw.eps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq as close;
    use ndarray::array;

    #[test]
    fn every_row_stands_alone() {
        let norm = LayerNorm::from_parts(array![1.0, 2.0, 3.0], array![0.0, 1.0, -1.0], 1e-5).unwrap();
        let x = array![[1.0, 2.0, 4.0], [1e3, 2e3, -1e3]];
        let both = norm.normalize(x.clone()).unwrap();
        let alone = norm.normalize(x.slice(ndarray::s![1.., ..]).to_owned()).unwrap();
        assert_eq!(both.row(1), alone.row(0));
        // x_hat of [1, 2, 4] as in batch norm's golden vector.
        let expected = array![-1.06904153, 2.0 * -0.26726038 + 1.0, 3.0 * 1.33630191 - 1.0];
        close!(both.row(0).to_owned(), expected, epsilon = 1e-7);
    }

    #[test]
    fn a_constant_row_becomes_beta() {
        let norm = LayerNorm::from_parts(array![2.0_f32, 2.0], array![0.5, -0.5], 1e-5).unwrap();
        let y = norm.normalize(array![[0.1, 0.1], [0.0, 0.0], [1e30, 1e30]]).unwrap();
        assert!(y.rows().into_iter().all(|row| row == array![0.5, -0.5]));
        assert_eq!(LayerNorm::<f32>::new(1).unwrap().normalize(array![[7.0]]).unwrap(), array![[0.0]]);
    }

    #[test]
    fn a_long_row_far_from_zero_stays_accurate() {
        let n = 100_001;
        let x = Array2::from_shape_fn((1, n), |(_, j)| 1e6_f32 + (j % 3) as f32);
        let y = LayerNorm::new(n).unwrap().normalize(x).unwrap();
        let (low, high) = (y[[0, 0]], y[[0, 2]]);
        close!(low, -1.224745, epsilon = 1e-4);
        close!(high, 1.224745, epsilon = 1e-4);
    }

    #[test]
    fn has_no_inverse_and_says_why() {
        let error = LayerNorm::<f32>::new(1).unwrap().denormalize(array![[0.0]]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the inverse of layer norm: the mean and deviation of the row are not in its output"
        );
    }

    #[test]
    fn refuses_nan_and_settings_outside_their_range() {
        let error = LayerNorm::<f64>::new(2).unwrap().normalize(array![[1.0, 2.0], [1.0, f64::NAN]]);
        assert!(matches!(error, Err(Error::NotFinite { index, .. }) if index == [1, 1]));
        assert!(LayerNorm::<f32>::new(0).is_err());
        assert!(LayerNorm::<f32>::new(1).unwrap().with_eps(0.0).is_err());
        assert!(LayerNorm::from_parts(array![1.0], array![1.0, 2.0], 1e-5).is_err());
    }

    #[test]
    fn selects_the_parameters_of_what_is_left() {
        let norm = LayerNorm::from_parts(array![1.0, 2.0, 3.0], array![4.0, 5.0, 6.0], 1e-3).unwrap();
        let expected = LayerNorm::from_parts(array![3.0, 1.0], array![6.0, 4.0], 1e-3).unwrap();
        assert_eq!(norm.select(&[2, 0]).unwrap(), expected);
        assert!(norm.select(&[3]).is_err());
    }

    #[test]
    fn into_memory_gives_the_bits_of_the_normalizer_on_any_number_of_threads() {
        for (rows, width) in [(0, 3), (1, 1), (3, 17), (130, 2500)] {
            let x = Array2::from_shape_fn((rows, width), |(i, j)| ((i * 37 + j * 11) % 101) as f64 * 0.37);
            let gamma: Array1<f64> = (0..width).map(|j| 1.0 + j as f64 * 0.01).collect();
            let norm = LayerNorm::from_parts(gamma.clone(), gamma, 1e-5).unwrap();
            let y = norm.normalize(x.clone()).unwrap();
            for pool in [Pool::single(), Pool::new(3)] {
                let mut out = Array2::zeros((rows, width));
                norm.normalize_into(x.view(), out.view_mut(), &pool).unwrap();
                assert_eq!(out, y);
                let mut out = Array2::zeros((width, rows));
                norm.normalize_into(x.view(), out.view_mut().reversed_axes(), &pool).unwrap();
                assert_eq!(out.t(), y);
            }
        }
        let norm = LayerNorm::<f32>::new(2).unwrap();
        let (x, mut y) = (array![[0.0, 1.0], [f32::MAX, f32::MIN]], Array2::zeros((2, 2)));
        let error = norm.normalize_into(x.view(), y.view_mut(), &Pool::single()).unwrap_err();
        assert!(error.to_string().starts_with("variance of a row is inf at index [1]"), "{error}");
    }
}
