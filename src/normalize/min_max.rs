//! Min-max scaling: every feature is stretched from the range that was seen to a range that was asked for.
//!
//! ```text
//! u = (x - min) / (max - min)      y = lo * (1 - u) + hi * u        this form is exact at both ends
//! u = (y - lo) / (hi - lo)         x = min * (1 - u) + max * u
//! ```
//!
//! A constant feature has `u = 0`: it becomes `lo`, and `lo` becomes the constant again. Values outside the
//! range that was seen go outside `lo..hi`; nothing is clipped, so the inverse holds for them too.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, aview1};

use super::affine::{check_some, check_width};
use super::columns::product_sums;
use crate::error::{Error, Result};
use crate::float::{Float, check_finite, check_shape, elements, elements_mut, into_rows};
use crate::kernel::Pool;
use crate::traits::Normalizer;

/// Maps each feature linearly from its smallest and largest value to `lo..hi`, 0..1 by default.
///
/// ```
/// use trimnet::Normalizer;
/// use trimnet::ndarray::array;
/// use trimnet::normalize::MinMax;
///
/// let data = array![[1.0, 5.0], [3.0, 5.0]];
/// let scaler = MinMax::fit(data.view())?.with_range(-1.0, 1.0)?;
/// let y = scaler.normalize(data.clone())?;
/// assert_eq!(y, array![[-1.0, -1.0], [1.0, -1.0]]);
/// assert_eq!(scaler.denormalize(y)?, data);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw<F>"))]
pub struct MinMax<F> {
    min: Array1<F>,
    max: Array1<F>,
    lo: F,
    hi: F,
}

/// What the backward pass of [`MinMax`] needs of the forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct MinMaxCache<F> {
    u: Array2<F>,
    /// `(hi - lo) / (max - min)`, 0 for a constant feature.
    slope: Vec<F>,
    /// First rows with the smallest value of each feature, and with the largest.
    min_at: Vec<usize>,
    max_at: Vec<usize>,
}

impl<F: Float> MinMax<F> {
    /// Learns the range of every feature of `data` `[rows, features]`, to be mapped to 0..1.
    ///
    /// # Errors
    /// [`Error::Empty`] without rows or features; [`Error::NotFinite`] for NaN and infinity, and for a feature
    /// whose `max - min` overflows.
    pub fn fit(data: ArrayView2<'_, F>) -> Result<Self> {
        check_some(data.ncols())?;
        let Extremes { min, max, .. } = Extremes::of("data", data)?;
        Ok(Self { min, max, lo: F::zero(), hi: F::one() })
    }

    /// Maps to `lo..hi` instead.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless both are finite and `lo < hi` in the element type.
    pub fn with_range(self, lo: f64, hi: f64) -> Result<Self> {
        let range = "finite, with lo < hi";
        for (name, value) in [("lo", lo), ("hi", hi)] {
            if !F::of(value).is_finite() {
                return Err(Error::OutOfRange { name, value, range });
            }
        }
        let (lo, hi) = (F::of(lo), F::of(hi));
        if lo >= hi || !(hi - lo).is_finite() {
            return Err(Error::OutOfRange { name: "hi", value: hi.as_f64(), range });
        }
        Ok(Self { lo, hi, ..self })
    }

    /// Widens the learnt range to that of more data.
    ///
    /// # Errors
    /// As [`fit`](Self::fit), and [`Error::Shape`] for another number of features; nothing is learnt then.
    pub fn update(&mut self, data: ArrayView2<'_, F>) -> Result<()> {
        check_shape("data", data.shape(), &[data.nrows(), self.features()])?;
        let Extremes { min, max, .. } = Extremes::of("data", data)?;
        self.merge(&min, &max)
    }

    /// Number of features.
    pub fn features(&self) -> usize {
        self.min.len()
    }

    /// The smallest value seen of each feature.
    pub fn min(&self) -> ArrayView1<'_, F> {
        self.min.view()
    }

    /// The largest value seen of each feature.
    pub fn max(&self) -> ArrayView1<'_, F> {
        self.max.view()
    }

    /// The range that is mapped to, `(lo, hi)`.
    pub fn range(&self) -> (F, F) {
        (self.lo, self.hi)
    }

    fn merge(&mut self, min: &Array1<F>, max: &Array1<F>) -> Result<()> {
        let min = self.min.iter().zip(min).map(|(&a, &b)| a.min(b)).collect();
        let max = self.max.iter().zip(max).map(|(&a, &b)| a.max(b)).collect();
        check_spread(&min, &max)?;
        (self.min, self.max) = (min, max);
        Ok(())
    }
}

/// Smallest and largest value of every column, and the first rows that hold them.
struct Extremes<F> {
    min: Array1<F>,
    max: Array1<F>,
    min_at: Vec<usize>,
    max_at: Vec<usize>,
}

impl<F: Float> Extremes<F> {
    fn of(what: &'static str, data: ArrayView2<'_, F>) -> Result<Self> {
        if data.nrows() == 0 {
            return Err(Error::Empty { what });
        }
        check_finite(what, &data)?;
        let width = data.ncols();
        let data = data.as_standard_layout();
        let mut rows = elements(&data).chunks_exact(width.max(1));
        let first = rows.next().unwrap_or_default();
        let (mut min, mut max) = (first.to_vec(), first.to_vec());
        let (mut min_at, mut max_at) = (vec![0; width], vec![0; width]);
        for (i, row) in rows.enumerate().map(|(i, row)| (i + 1, row)) {
            for ((min, at), &x) in min.iter_mut().zip(&mut min_at).zip(row) {
                (*min, *at) = if x < *min { (x, i) } else { (*min, *at) };
            }
            for ((max, at), &x) in max.iter_mut().zip(&mut max_at).zip(row) {
                (*max, *at) = if x > *max { (x, i) } else { (*max, *at) };
            }
        }
        let (min, max) = (Array1::from(min), Array1::from(max));
        check_spread(&min, &max)?;
        Ok(Self { min, max, min_at, max_at })
    }
}

/// Every `max - min` has to be a finite number.
fn check_spread<F: Float>(min: &Array1<F>, max: &Array1<F>) -> Result<()> {
    check_finite("range of the features", &(max - min).view())
}

/// Calls `f` for some whole rows after others, and looks at what it made of them while it is near.
fn each_part<F: Float>(what: &'static str, x: &mut Array2<F>, f: impl Fn(&mut [F])) -> Result<()> {
    const PART: usize = 2048;
    let width = x.ncols();
    let mut finite = true;
    for part in elements_mut(x).chunks_mut((PART / width).max(1) * width) {
        f(part);
        finite &= check_finite(what, &aview1(part)).is_ok();
    }
    if finite { Ok(()) } else { check_finite(what, &x.view()) }
}

/// Turns every `x` into its `u`, in place.
fn to_unit<F: Float>(x: &mut [F], min: &[F], spread: &[F]) {
    for row in x.chunks_exact_mut(min.len()) {
        for ((x, &min), &spread) in row.iter_mut().zip(min).zip(spread) {
            *x = (*x - min) / spread;
        }
    }
}

/// `max - min`, or infinity for a constant feature: dividing by it gives the 0 that `u` shall be.
fn spread<F: Float>(min: &Array1<F>, max: &Array1<F>) -> Vec<F> {
    let positive_or_infinity = |spread| if spread > F::zero() { spread } else { F::infinity() };
    min.iter().zip(max).map(|(&min, &max)| positive_or_infinity(max - min)).collect()
}

impl<F: Float> Normalizer<F> for MinMax<F> {
    type Cache = MinMaxCache<F>;
    type Grads = ();

    /// Refuses NaN and infinity, and a value so far from the range that was seen that it overflows ([`Error::NotFinite`]).
    fn normalize(&self, x: Array2<F>) -> Result<Array2<F>> {
        check_width("x", &x, self.features())?;
        check_finite("x", &x.view())?;
        let mut y = into_rows(x);
        let (min, spread) = (self.min.to_vec(), spread(&self.min, &self.max));
        each_part("normalized x", &mut y, |part| {
            to_unit(part, &min, &spread);
            part.iter_mut().for_each(|y| *y = self.lo * (F::one() - *y) + self.hi * *y);
        })?;
        Ok(y)
    }

    /// Refuses NaN and infinity, and a value so far from `lo..hi` that it overflows ([`Error::NotFinite`]).
    fn denormalize(&self, y: Array2<F>) -> Result<Array2<F>> {
        check_width("y", &y, self.features())?;
        check_finite("y", &y.view())?;
        let mut x = into_rows(y);
        let (min, max) = (self.min.to_vec(), self.max.to_vec());
        each_part("denormalized y", &mut x, |part| {
            for row in part.chunks_exact_mut(self.features()) {
                for ((x, &min), &max) in row.iter_mut().zip(&min).zip(&max) {
                    let u = (*x - self.lo) / (self.hi - self.lo);
                    *x = min * (F::one() - u) + max * u;
                }
            }
        })?;
        Ok(x)
    }

    /// Maps this batch's own range to `lo..hi`, and widens the learnt range to hold it. Refuses NaN and
    /// infinity ([`Error::NotFinite`]) and a batch without rows ([`Error::Empty`]).
    fn normalize_batch(&mut self, x: Array2<F>) -> Result<(Array2<F>, Self::Cache)> {
        check_width("x", &x, self.features())?;
        let Extremes { min, max, min_at, max_at } = Extremes::of("x", x.view())?;
        self.merge(&min, &max)?;
        let spread = spread(&min, &max);
        let slope = spread.iter().map(|&spread| (self.hi - self.lo) / spread).collect();
        let mut u = into_rows(x);
        to_unit(elements_mut(&mut u), &min.to_vec(), &spread);
        let y = u.mapv(|u| self.lo * (F::one() - u) + self.hi * u);
        Ok((y, MinMaxCache { u, slope, min_at, max_at }))
    }

    /// The range is a function of the batch, so the rows that hold its ends get
    /// `- sum dy * (1 - u)` (the smallest) and `- sum dy * u` (the largest) on top of `dy`, all times the slope.
    /// Of several rows at one end the first gets it.
    fn backward(&self, cache: Self::Cache, dy: Array2<F>) -> (Array2<F>, ()) {
        if dy.dim() != cache.u.dim() {
            return (Array2::from_elem(cache.u.dim(), F::nan()), ());
        }
        let mut dx = into_rows(dy);
        let pool = Pool::for_elements(dx.len());
        let (dy_sum, dy_u_sum) = product_sums(&pool, elements(&dx), elements(&cache.u), cache.slope.len());
        for (j, (&smallest, &largest)) in cache.min_at.iter().zip(&cache.max_at).enumerate() {
            dx[[smallest, j]] -= F::of(dy_sum[j] - dy_u_sum[j]);
            dx[[largest, j]] -= F::of(dy_u_sum[j]);
        }
        for row in elements_mut(&mut dx).chunks_exact_mut(cache.slope.len()) {
            row.iter_mut().zip(&cache.slope).for_each(|(dx, &slope)| *dx *= slope);
        }
        (dx, ())
    }
}

/// What a file says, before it is checked.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(bound = "F: Float + serde::de::DeserializeOwned")]
struct Raw<F> {
    min: Array1<F>,
    max: Array1<F>,
    lo: F,
    hi: F,
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<Raw<F>> for MinMax<F> {
    type Error = Error;

    fn try_from(raw: Raw<F>) -> Result<Self> {
        let features = raw.min.len();
        check_some(features)?;
        super::affine::check_features("min", &raw.min, features)?;
        super::affine::check_features("max", &raw.max, features)?;
        check_spread(&raw.min, &raw.max)?;
        if let Some((min, _)) = raw.min.iter().zip(&raw.max).find(|(min, max)| min > max) {
            return Err(Error::OutOfRange { name: "min", value: min.as_f64(), range: "at most max" });
        }
        let (lo, hi) = (F::zero(), F::one());
        Self { min: raw.min, max: raw.max, lo, hi }.with_range(raw.lo.as_f64(), raw.hi.as_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn a_constant_feature_becomes_lo_and_comes_back() {
        let data = array![[0.1, 1.0], [0.1, 3.0]];
        let scaler = MinMax::fit(data.view()).unwrap().with_range(-3.0, 5.0).unwrap();
        let y = scaler.normalize(data.clone()).unwrap();
        assert_eq!(y, array![[-3.0, -3.0], [-3.0, 5.0]]);
        assert_eq!(scaler.denormalize(y).unwrap(), data);
    }

    #[test]
    fn parts_in_any_order_give_the_range_of_the_whole() {
        let (a, b) = (array![[1.0, -5.0], [2.0, 0.0]], array![[-1.0, 7.0]]);
        let mut forth = MinMax::fit(a.view()).unwrap();
        forth.update(b.view()).unwrap();
        let mut back = MinMax::fit(b.view()).unwrap();
        back.update(a.view()).unwrap();
        assert_eq!(forth, back);
        assert_eq!((forth.min().to_owned(), forth.max().to_owned()), (array![-1.0, -5.0], array![2.0, 7.0]));
    }

    #[test]
    fn the_smallest_range_there_is_maps_to_its_ends() {
        let tiny = f32::from_bits(1);
        let data = array![[0.0], [tiny]];
        let scaler = MinMax::fit(data.view()).unwrap();
        assert_eq!(scaler.normalize(data.clone()).unwrap(), array![[0.0], [1.0]]);
        assert_eq!(scaler.denormalize(array![[0.0], [1.0]]).unwrap(), data);
    }

    #[test]
    fn names_the_index_of_a_result_that_overflows() {
        let fit = |min: f32, max: f32| MinMax::fit(array![[min, 0.0], [max, 1.0]].view()).unwrap();
        let message = |result: Result<Array2<f32>>| result.unwrap_err().to_string();
        let end = "at index [1, 0]; only finite numbers are allowed";
        for (scaler, x) in [(fit(0.0, 1e-30), 1e10), (fit(0.0, 1e-30), -1e10), (fit(-3e38, 0.0), 3e38)] {
            let refused = message(scaler.normalize(array![[0.0, 0.5], [x, 0.5]]));
            assert!(refused.starts_with("normalized x is") && refused.ends_with(end), "{refused}");
        }
        let scaler = fit(0.0, 1e-30).with_range(0.0, 1e-30).unwrap();
        let refused = message(scaler.denormalize(array![[0.0, 0.0], [1e20, 0.0]]));
        assert!(refused.starts_with("denormalized y is") && refused.ends_with(end), "{refused}");
        assert_eq!(fit(0.0, 1e-30).normalize(array![[1e8, 0.5]]).unwrap(), array![[1e38, 0.5]]);
    }

    #[test]
    fn names_the_index_of_what_is_not_finite() {
        let bad = array![[1.0, 2.0], [f64::NAN, 3.0]];
        let good = array![[1.0, 2.0], [0.0, 3.0]];
        let mut scaler = MinMax::fit(good.view()).unwrap();
        let before = scaler.clone();
        for error in [
            MinMax::fit(bad.view()).err(),
            scaler.update(bad.view()).err(),
            scaler.normalize(bad.clone()).err(),
            scaler.denormalize(bad.clone()).err(),
            scaler.normalize_batch(bad.clone()).err(),
        ] {
            assert!(matches!(error, Some(Error::NotFinite { index, .. }) if index == [1, 0]));
        }
        // Finite, but the range is not.
        assert!(scaler.update(array![[f64::MAX, 0.0], [f64::MIN, 0.0]].view()).is_err());
        assert_eq!(scaler, before);
    }

    #[test]
    fn refuses_empty_data_and_empty_ranges() {
        assert!(matches!(MinMax::<f32>::fit(Array2::zeros((0, 2)).view()), Err(Error::Empty { .. })));
        assert!(matches!(MinMax::<f32>::fit(Array2::zeros((2, 0)).view()), Err(Error::Empty { .. })));
        let scaler = MinMax::<f32>::fit(Array2::zeros((2, 1)).view()).unwrap();
        for (lo, hi) in
            [(1.0, 1.0), (2.0, 1.0), (f64::NAN, 1.0), (0.0, f64::INFINITY), (-1e39, 0.0), (-3e38, 3e38)]
        {
            assert!(matches!(scaler.clone().with_range(lo, hi), Err(Error::OutOfRange { .. })), "{lo}..{hi}");
        }
    }
}
