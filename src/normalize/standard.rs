//! Standardizing: every feature gets mean 0 and deviation 1 over all data seen.
//!
//! ```text
//! y = (x - mean) / deviation      deviation = sqrt(m2 / rows), or 1 for a constant feature
//!
//! more data   d    = mean_b - mean_a
//!             mean = mean_a + d * rows_b / rows
//!             m2   = m2_a + m2_b + d^2 * rows_a * rows_b / rows
//! ```
//!
//! The deviation is that of the population, as in scikit-learn's `StandardScaler`. Statistics are kept in `f64`
//! and merge, so data may come in parts, in any order. Chan, Golub, LeVeque, The American Statistician 37 (1983).

use std::marker::PhantomData;

use ndarray::{Array1, Array2, ArrayView2};

use super::affine::{check_some, check_width};
use super::columns::{Gradient, Moments, each_row_into};
use crate::error::{Error, Result};
use crate::float::{Float, check_finite, check_shape, elements, elements_mut, into_rows};
use crate::kernel::Pool;
use crate::traits::Normalizer;

/// Shifts and scales each feature to mean 0 and deviation 1.
///
/// ```
/// use trimnet::Normalizer;
/// use trimnet::ndarray::array;
/// use trimnet::normalize::Standard;
///
/// let data = array![[1.0, 5.0], [3.0, 5.0]];
/// let scaler = Standard::fit(data.view())?;
/// let y = scaler.normalize(data.clone())?;
/// assert_eq!(y, array![[-1.0, 0.0], [1.0, 0.0]]);
/// assert_eq!(scaler.denormalize(y)?, data);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float", try_from = "Raw"))]
pub struct Standard<F> {
    rows: u64,
    mean: Vec<f64>,
    /// Sum of squared distances from the mean.
    m2: Vec<f64>,
    #[cfg_attr(feature = "serde", serde(skip))]
    element: PhantomData<F>,
}

/// What the backward pass of [`Standard`] needs of the forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct StandardCache<F> {
    x: Array2<F>,
    moments: Moments<F>,
    inverse: Vec<F>,
}

impl<F: Float> Standard<F> {
    /// Learns mean and deviation of every feature of `data` `[rows, features]`.
    ///
    /// # Errors
    /// [`Error::Empty`] without rows or features; [`Error::NotFinite`] for NaN and infinity, and for a feature
    /// whose variance overflows.
    pub fn fit(data: ArrayView2<'_, F>) -> Result<Self> {
        check_some(data.ncols())?;
        if data.nrows() == 0 {
            return Err(Error::Empty { what: "data" });
        }
        let width = data.ncols();
        let pool = Pool::for_elements(data.len());
        let x = data.as_standard_layout();
        let mut moments = Moments::of("data", elements(&x), width, &pool)?;
        moments.mend_tiny(elements(&x));
        Ok(Self { rows: data.nrows() as u64, mean: moments.mean, m2: moments.m2, element: PhantomData })
    }

    /// Learns from more data, as if it had been part of the first.
    ///
    /// # Errors
    /// As [`fit`](Self::fit), and [`Error::Shape`] for another number of features; nothing is learnt then.
    pub fn update(&mut self, data: ArrayView2<'_, F>) -> Result<()> {
        check_shape("data", data.shape(), &[data.nrows(), self.features()])?;
        self.merge(&Self::fit(data)?)
    }

    /// Learns what another one has seen, as if its data had come to this one.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of features, [`Error::NotFinite`] if a variance overflows; nothing is
    /// learnt then.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        check_shape("mean", &[other.features()], &[self.features()])?;
        let (a, b) = (self.rows as f64, other.rows as f64);
        let distance = |j: usize| other.mean[j] - self.mean[j];
        let mean = |j: usize| self.mean[j] + distance(j) * (b / (a + b));
        let m2 = |j: usize| self.m2[j] + other.m2[j] + distance(j) * distance(j) * (a * (b / (a + b)));
        let mean: Vec<f64> = (0..self.features()).map(mean).collect();
        let m2: Vec<f64> = (0..self.features()).map(m2).collect();
        if let Some(j) = m2.iter().position(|m2| !m2.is_finite()) {
            return Err(Error::NotFinite { what: "variance of a feature", index: vec![j], value: m2[j] });
        }
        (self.mean, self.m2) = (mean, m2);
        self.rows = self.rows.saturating_add(other.rows);
        Ok(())
    }

    /// Number of features.
    pub fn features(&self) -> usize {
        self.mean.len()
    }

    /// Number of rows that were learnt from.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The mean of each feature.
    pub fn mean(&self) -> Array1<F> {
        self.mean.iter().map(|&mean| F::of(mean)).collect()
    }

    /// What each feature is divided by: its deviation, or 1 if that is 0 or too small: no normal number of the element type, or
    /// with a square that is none of `f64`.
    pub fn deviation(&self) -> Array1<F> {
        self.deviations().map(F::of).collect()
    }

    fn deviations(&self) -> impl Iterator<Item = f64> + '_ {
        let rows = self.rows as f64;
        self.m2.iter().map(move |m2| deviation::<F>(m2 / rows))
    }
}

/// The root of the variance, or 1 for a constant feature.
fn deviation<F: Float>(var: f64) -> f64 {
    // A subnormal deviation has no finite reciprocal.
    if F::of(var.sqrt()).is_normal() { var.sqrt() } else { 1.0 }
}

impl<F: Float> Normalizer<F> for Standard<F> {
    type Cache = StandardCache<F>;
    type Grads = ();

    /// Refuses NaN and infinity ([`Error::NotFinite`]).
    fn normalize(&self, x: Array2<F>) -> Result<Array2<F>> {
        check_width("x", &x, self.features())?;
        check_finite("x", &x.view())?;
        let mut y = into_rows(x);
        let deviation: Vec<f64> = self.deviations().collect();
        for row in elements_mut(&mut y).chunks_exact_mut(self.features()) {
            for ((y, mean), deviation) in row.iter_mut().zip(&self.mean).zip(&deviation) {
                *y = F::of((y.as_f64() - mean) / deviation);
            }
        }
        Ok(y)
    }

    /// Refuses NaN and infinity ([`Error::NotFinite`]).
    fn denormalize(&self, y: Array2<F>) -> Result<Array2<F>> {
        check_width("y", &y, self.features())?;
        check_finite("y", &y.view())?;
        let mut x = into_rows(y);
        let deviation: Vec<f64> = self.deviations().collect();
        for row in elements_mut(&mut x).chunks_exact_mut(self.features()) {
            for ((x, mean), deviation) in row.iter_mut().zip(&self.mean).zip(&deviation) {
                *x = F::of(x.as_f64() * deviation + mean);
            }
        }
        Ok(x)
    }

    /// Standardizes by this batch's own mean and deviation, and merges them into the learnt ones. Refuses NaN
    /// and infinity ([`Error::NotFinite`]) and a batch without rows ([`Error::Empty`]).
    fn normalize_batch(&mut self, x: Array2<F>) -> Result<(Array2<F>, Self::Cache)> {
        check_width("x", &x, self.features())?;
        let rows = x.nrows();
        if rows == 0 {
            return Err(Error::Empty { what: "x" });
        }
        let x = into_rows(x);
        let (width, pool) = (x.ncols(), Pool::for_elements(x.len()));
        let mut moments = Moments::of("x", elements(&x), width, &pool)?;
        moments.mend_tiny(elements(&x));
        let inverse = |m2: &f64| F::of(1.0 / deviation::<F>(m2 / rows as f64));
        let inverse: Vec<F> = moments.m2.iter().map(inverse).collect();
        let mut y = Array2::zeros(x.raw_dim());
        let scaled = moments.scaled(&inverse, &vec![F::zero(); width]);
        each_row_into(&pool, width, [elements(&x)], elements_mut(&mut y), &scaled);
        let (mean, m2) = (moments.mean.clone(), moments.m2.clone());
        self.merge(&Self { rows: rows as u64, mean, m2, element: PhantomData })?;
        Ok((y, StandardCache { x, moments, inverse }))
    }

    /// `dx = (dy - mean(dy) - x_hat * mean(dy * x_hat)) / deviation`: the statistics are functions of the batch.
    fn backward(&self, cache: Self::Cache, dy: Array2<F>) -> (Array2<F>, ()) {
        let StandardCache { x, moments, inverse } = cache;
        if dy.dim() != x.dim() {
            return (Array2::from_elem(x.dim(), F::nan()), ());
        }
        let mut dx = into_rows(dy);
        let (pool, x) = (Pool::for_elements(dx.len()), elements(&x));
        let (gradient, _) = Gradient::new(&pool, &moments, &inverse, &inverse, (x, elements(&dx)));
        gradient.write_over(&pool, x, elements_mut(&mut dx));
        (dx, ())
    }
}

/// What a file says, before it is checked.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw {
    rows: u64,
    mean: Vec<f64>,
    m2: Vec<f64>,
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<Raw> for Standard<F> {
    type Error = Error;

    fn try_from(raw: Raw) -> Result<Self> {
        let features = raw.mean.len();
        check_some(features)?;
        check_shape("m2", &[raw.m2.len()], &[features])?;
        if raw.rows == 0 {
            return Err(Error::Empty { what: "the data behind the statistics" });
        }
        check_finite("mean", &ndarray::aview1(&raw.mean))?;
        check_finite("m2", &ndarray::aview1(&raw.m2))?;
        if let Some(&m2) = raw.m2.iter().find(|&&m2| m2 < 0.0) {
            return Err(Error::OutOfRange { name: "m2", value: m2, range: "at least 0" });
        }
        Ok(Self { rows: raw.rows, mean: raw.mean, m2: raw.m2, element: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq as close;
    use ndarray::{Axis, array, concatenate};

    #[test]
    fn a_constant_feature_keeps_its_scale() {
        let data = array![[0.1_f32], [0.1], [0.1]];
        let scaler = Standard::fit(data.view()).unwrap();
        assert_eq!(scaler.deviation(), array![1.0]);
        assert_eq!(scaler.normalize(array![[0.1], [1.1]]).unwrap(), array![[0.0], [1.0]]);
        assert_eq!(scaler.denormalize(array![[0.0]]).unwrap(), array![[0.1]]);
    }

    #[test]
    fn parts_give_the_statistics_of_the_whole() {
        let a = Array2::from_shape_fn((5, 2), |(i, j)| (i * i + 3 * j) as f64 + 1e6);
        let b = Array2::from_shape_fn((3, 2), |(i, j)| -((2 * i + j) as f64));
        let whole = concatenate![Axis(0), a, b];
        let expected = Standard::fit(whole.view()).unwrap();
        for (first, second) in [(&a, &b), (&b, &a)] {
            let mut parts = Standard::fit(first.view()).unwrap();
            parts.update(second.view()).unwrap();
            assert_eq!(parts.rows(), 8);
            close!(parts.mean(), expected.mean(), epsilon = 1e-9);
            close!(parts.deviation(), expected.deviation(), epsilon = 1e-9);
        }
    }

    #[test]
    fn a_feature_of_tiny_numbers_has_their_deviation() {
        let data = array![[1e-23_f32, 7.0], [-1e-23, 7.0], [0.0, 7.0], [0.0, 7.0]];
        let mut scaler = Standard::fit(data.view()).unwrap();
        let expected = 0.5_f32.sqrt();
        close!(scaler.deviation()[0] * 1e23, expected, epsilon = 1e-6);
        assert_eq!(scaler.deviation()[1], 1.0);
        let y = scaler.normalize(data.clone()).unwrap();
        let (batch, _) = scaler.normalize_batch(data).unwrap();
        for y in [y, batch] {
            close!(y[[0, 0]], 1.0 / expected, epsilon = 1e-5);
            close!(y.sum(), 0.0, epsilon = 1e-5);
        }
    }

    #[test]
    fn the_deviation_is_that_of_the_population() {
        let scaler = Standard::fit(array![[1.0], [2.0], [4.0]].view()).unwrap();
        close!(scaler.deviation()[0], (14.0_f64 / 9.0).sqrt(), epsilon = 1e-12);
    }

    #[test]
    fn names_the_index_of_what_is_not_finite() {
        let bad = array![[1.0, 2.0], [f64::NAN, 3.0]];
        let mut scaler = Standard::fit(array![[1.0, 2.0], [0.0, 3.0]].view()).unwrap();
        let before = scaler.clone();
        for error in [
            Standard::fit(bad.view()).err(),
            scaler.update(bad.view()).err(),
            scaler.normalize(bad.clone()).err(),
            scaler.denormalize(bad.clone()).err(),
            scaler.normalize_batch(bad.clone()).err(),
        ] {
            assert!(matches!(error, Some(Error::NotFinite { index, .. }) if index == [1, 0]));
        }
        assert!(scaler.update(array![[f64::MAX, 0.0], [f64::MIN, 0.0]].view()).is_err());
        assert!(scaler.update(array![[1e200, 0.0]].view()).is_err());
        assert_eq!(scaler, before);
    }

    #[test]
    fn refuses_empty_data_and_another_width() {
        assert!(matches!(Standard::<f32>::fit(Array2::zeros((0, 2)).view()), Err(Error::Empty { .. })));
        assert!(matches!(Standard::<f32>::fit(Array2::zeros((2, 0)).view()), Err(Error::Empty { .. })));
        let mut scaler = Standard::<f32>::fit(Array2::zeros((2, 1)).view()).unwrap();
        assert!(matches!(scaler.update(Array2::zeros((2, 2)).view()), Err(Error::Shape { .. })));
    }
}
