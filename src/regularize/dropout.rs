//! Dropout: silence random activations while training, so that no unit can lean on one neighbour.
//!
//! ```text
//! y[i] = x[i] * g[i]      g[i] = 0            with probability p
//!                         g[i] = 1 / (1 - p)  otherwise
//! ```
//!
//! The gain `1 / (1 - p)` keeps the mean of `y` equal to `x`, which is why inference needs no
//! counterpart: leave the layer out. Srivastava et al., JMLR 15 (2014).
//!
//! Chance comes in 16-bit draws of Philox4x32-10, keyed by one `u64` from the passed generator and addressed
//! by position in row-major order. Element `i` is dropped if its draw is below `round(p * 65536)`. The draws of
//! 64 elements are the words of eight counters, word by word, so that eight counters fill a vector register:
//!
//! ```text
//! counter = 8 * (i / 64) + i / 2 % 8      word = i / 16 % 4      half = i % 2, the lower one first
//! ```
//!
//! So `p` is served to within 1 / 131072, and the gain is that of the `p` that is served: the mean is kept
//! exactly. Draws are the same on every machine and for `f32` and `f64`.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use rand::Rng;

use super::kept::{CHUNK, Draw, Keep};
use super::philox::Philox;
use crate::error::{Error, Result};
use crate::float::{Float, check_shape, elements_mut, into_rows};
use crate::kernel::{Isa, PART, Pool, with};
use crate::traits::Regularizer;

/// Number of different 16-bit draws.
const DRAWS: u32 = 1 << 16;
/// Drops each activation with probability `p` and scales the others by `1 / (1 - p)`.
///
/// ```
/// use trimnet::Regularizer;
/// use trimnet::ndarray::Array2;
/// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::regularize::Dropout;
///
/// let dropout = Dropout::new(0.5)?;
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let (y, _cache) = dropout.perturb(Array2::<f32>::ones((4, 8)), &mut rng);
/// assert!(y.iter().all(|&y| y == 0.0 || y == 2.0));
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw", into = "Raw"))]
pub struct Dropout {
    p: f64,
    /// A draw below it drops, 0..=65536.
    threshold: u32,
}

/// What was kept, one bit per activation. An empty one waits for [`Dropout::perturb_into`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DropoutCache {
    dim: (usize, usize),
    /// Bit `i % 64` of word `i / 64` is 1 if element `i` stays; none if all stay.
    keep: Option<Vec<u64>>,
    gain: f64,
}

impl Dropout {
    /// Drops each activation with probability `p`, served as the nearest multiple of 1 / 65536 below 1:
    /// smaller than 1 / 131072 drops nothing, and the largest `p` below 1 still keeps one in 65536. 1 drops all.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= p <= 1`.
    pub fn new(p: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::OutOfRange { name: "p", value: p, range: "0 <= p <= 1" });
        }
        let most = if p < 1.0 { DRAWS - 1 } else { DRAWS };
        let threshold = ((p * f64::from(DRAWS)).round() as u32).min(most);
        Ok(Self { p, threshold })
    }

    /// Chance to drop, as it was asked for.
    pub fn p(&self) -> f64 {
        self.p
    }

    /// Chance to drop, as it is served: a multiple of 1 / 65536.
    pub fn effective_p(&self) -> f64 {
        f64::from(self.threshold) / f64::from(DRAWS)
    }

    /// What a kept activation is multiplied with: `1 / (1 - effective_p)`, or 0 where none is kept.
    pub fn gain(&self) -> f64 {
        if self.threshold == DRAWS {
            return 0.0;
        }
        f64::from(DRAWS) / f64::from(DRAWS - self.threshold)
    }
}

impl Dropout {
    /// As [`perturb`](Regularizer::perturb), into memory that is there already, on all threads of `pool`. The draw and
    /// the output are the same for any number of threads.
    ///
    /// # Errors
    /// [`Error::Shape`] if `y` has another shape than `x`; nothing is drawn then.
    pub fn perturb_into<F: Float>(
        &self,
        x: ArrayView2<'_, F>,
        mut y: ArrayViewMut2<'_, F>,
        cache: &mut DropoutCache,
        rng: &mut dyn Rng,
        pool: &Pool,
    ) -> Result<()> {
        check_shape("the place for the output", y.shape(), x.shape())?;
        let seed = rng.next_u64();
        match (x.as_slice(), y.as_slice_mut()) {
            (Some(x), Some(y)) => self.draw(seed, Some(x), y, cache, pool),
            _ => {
                let mut rows = x.as_standard_layout().into_owned();
                self.draw(seed, None, elements_mut(&mut rows), cache, pool);
                y.assign(&rows);
            }
        }
        cache.dim = x.dim();
        Ok(())
    }

    fn draw<F: Float>(&self, seed: u64, x: Option<&[F]>, y: &mut [F], cache: &mut DropoutCache, pool: &Pool) {
        cache.gain = self.gain();
        if self.threshold == 0 {
            cache.keep = None;
            if let Some(x) = x {
                y.copy_from_slice(x);
            }
            return;
        }
        let keep = cache.keep.get_or_insert_default();
        keep.resize(y.len().div_ceil(CHUNK), 0);
        let Ok(threshold) = u16::try_from(self.threshold) else {
            keep.fill(0);
            return y.fill(F::zero());
        };
        let (isa, stream, gain) = (Isa::best(), Philox::new(seed), F::of(cache.gain));
        let whole = y.len();
        let parts = y.chunks_mut(PART).zip(keep.chunks_mut(PART / CHUNK)).enumerate();
        pool.each(parts, |(i, (y, keep))| {
            let x = x.map(|x| &x[i * PART..][..y.len()]);
            let first = i * (PART / CHUNK);
            with(isa, Draw { isa, whole, stream, threshold, gain, first, x, y, keep });
        });
    }
}

impl DropoutCache {
    /// As [`backward`](Regularizer::backward), into memory that is there already, on all threads of `pool`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `dy` or `dx` has another shape than the output.
    pub fn backward_into<F: Float>(
        &self,
        dy: ArrayView2<'_, F>,
        mut dx: ArrayViewMut2<'_, F>,
        pool: &Pool,
    ) -> Result<()> {
        check_shape("dy", dy.shape(), &[self.dim.0, self.dim.1])?;
        check_shape("the place for dx", dx.shape(), dy.shape())?;
        match (dy.as_slice(), dx.as_slice_mut()) {
            (Some(dy), Some(dx)) => self.keep(Some(dy), dx, pool),
            _ => {
                let mut rows = dy.as_standard_layout().into_owned();
                self.keep(None, elements_mut(&mut rows), pool);
                dx.assign(&rows);
            }
        }
        Ok(())
    }

    fn keep<F: Float>(&self, dy: Option<&[F]>, dx: &mut [F], pool: &Pool) {
        let Some(keep) = &self.keep else {
            if let Some(dy) = dy {
                dx.copy_from_slice(dy);
            }
            return;
        };
        let (isa, whole, gain) = (Isa::best(), dx.len(), F::of(self.gain));
        let parts = dx.chunks_mut(PART).zip(keep.chunks(PART / CHUNK)).enumerate();
        pool.each(parts, |(i, (dx, keep))| {
            let dy = dy.map(|dy| &dy[i * PART..][..dx.len()]);
            with(isa, Keep { isa, whole, keep, gain, dy, dx });
        });
    }
}

impl<F: Float> Regularizer<F> for Dropout {
    type Cache = DropoutCache;

    /// Draws one `u64` from `rng`, whatever `p` is. At `p = 0` the output is the input, bit by bit.
    fn perturb(&self, x: Array2<F>, rng: &mut dyn Rng) -> (Array2<F>, Self::Cache) {
        let seed = rng.next_u64();
        let mut cache = DropoutCache { dim: x.dim(), ..Default::default() };
        if self.threshold == 0 {
            return (x, DropoutCache { gain: self.gain(), ..cache });
        }
        let mut y = into_rows(x);
        let pool = Pool::for_elements(y.len());
        self.draw(seed, None, elements_mut(&mut y), &mut cache, &pool);
        (y, cache)
    }

    fn backward(&self, cache: Self::Cache, dy: Array2<F>) -> Array2<F> {
        if dy.dim() != cache.dim {
            return Array2::from_elem(cache.dim, F::nan());
        }
        if cache.keep.is_none() {
            return dy;
        }
        let mut dx = into_rows(dy);
        let pool = Pool::for_elements(dx.len());
        cache.keep(None, elements_mut(&mut dx), &pool);
        dx
    }
}

/// What a file says, before it is checked.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Raw {
    p: f64,
}

#[cfg(feature = "serde")]
impl From<Dropout> for Raw {
    fn from(dropout: Dropout) -> Self {
        Self { p: dropout.p }
    }
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for Dropout {
    type Error = Error;

    fn try_from(raw: Raw) -> Result<Self> {
        Self::new(raw.p)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kept::draws;
    use super::*;
    use ndarray::{Array1, array};
    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    fn perturb<F: Float>(p: f64, x: Array2<F>) -> (Array2<F>, DropoutCache) {
        Dropout::new(p).unwrap().perturb(x, &mut Xoshiro256PlusPlus::seed_from_u64(1))
    }

    /// Computed from the formulas of this page in Python.
    #[test]
    fn the_stream_never_changes() {
        let stream = Philox::new(0x0123_4567_89ab_cdef);
        let draw = |i: usize| draws(stream, (i / CHUNK) as u64)[i % CHUNK];
        let expected = [8750, 47184, 5222, 44490, 10655, 63438, 30960, 44080, 12473, 41002, 56202, 22373];
        for (i, expected) in expected.into_iter().enumerate() {
            assert_eq!(draw(i), expected);
        }
        assert_eq!([63, 64, 100, 1000].map(draw), [21803, 14371, 35137, 28788]);
    }

    #[test]
    fn a_seed_drops_the_same_activations_for_ever() {
        let (_, cache) = perturb(0.5, Array2::<f32>::ones((3, 64)));
        let pinned = [0x8aae_6f6d_0495_238e, 0x3cef_1d84_957b_1127, 0xdef1_023e_52ea_d4ef];
        assert_eq!(cache.keep.unwrap(), pinned);
    }

    #[test]
    fn refuses_all_but_zero_to_one() {
        for p in
            [-0.1, -f64::MIN_POSITIVE, 1.0 + f64::EPSILON, 1.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]
        {
            let error = Dropout::new(p).unwrap_err();
            assert!(error.to_string().ends_with("allowed is 0 <= p <= 1"), "{error}");
        }
        for p in [0.0, -0.0, 1e-300, 0.5, 1.0 - f64::EPSILON, 1.0] {
            assert!(Dropout::new(p).is_ok());
        }
    }

    #[test]
    fn is_the_identity_at_zero_bit_by_bit() {
        let x = array![[f64::NAN, f64::INFINITY, -0.0, 1.0]];
        for p in [0.0, 1e-300, 1.0 / 131_073.0] {
            let (y, cache) = perturb(p, x.clone());
            let dx = Dropout::new(p).unwrap().backward(cache, x.clone());
            for out in [y, dx] {
                assert!(out.iter().zip(&x).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }

    #[test]
    fn one_drops_all() {
        let x = array![[f64::NAN, f64::INFINITY, -1.0, 1.0]];
        let (y, cache) = perturb(1.0, x.clone());
        let dx = Dropout::new(1.0).unwrap().backward(cache, x.clone());
        for out in [y, dx] {
            assert!(out.iter().all(|x| x.to_bits() == 0));
        }
        assert_eq!((Dropout::new(1.0).unwrap().effective_p(), Dropout::new(1.0).unwrap().gain()), (1.0, 0.0));
    }

    #[test]
    fn serves_p_to_within_half_a_draw_and_never_one() {
        for p in [1e-5, 0.1, 0.3, 0.5, 0.9, 0.99999] {
            assert!((Dropout::new(p).unwrap().effective_p() - p).abs() <= 0.5 / 65536.0);
        }
        let almost_one = Dropout::new(1.0 - f64::EPSILON).unwrap();
        assert_eq!((almost_one.effective_p(), almost_one.gain()), (65535.0 / 65536.0, 65536.0));
        for p in [0.25, 0.5, 0.75] {
            let dropout = Dropout::new(p).unwrap();
            assert_eq!((dropout.effective_p(), dropout.gain()), (p, 1.0 / (1.0 - p)));
        }
    }

    #[test]
    fn a_dropped_infinity_is_zero() {
        let (y, _) = perturb(0.5, Array2::from_elem((8, 8), f32::INFINITY));
        assert!(y.iter().all(|&y| y == 0.0 || y == f32::INFINITY));
        assert!(y.iter().any(|&y| y == 0.0));
    }

    #[test]
    fn every_bit_of_the_mask_is_what_the_output_shows() {
        // 5 * 27 = 135 elements: two whole words and a part.
        let (y, cache) = perturb(0.3, Array2::<f64>::ones((5, 27)));
        let keep = cache.keep.unwrap();
        let bits: Array1<bool> = (0..135).map(|i| keep[i / 64] >> (i % 64) & 1 == 1).collect();
        assert_eq!(bits, y.iter().map(|&y| y != 0.0).collect::<Array1<_>>());
    }

    #[test]
    fn every_instruction_set_and_number_of_threads_draws_the_same() {
        for (rows, columns) in [(1, 1), (5, 27), (3, 64), (300, 1001)] {
            let x = Array2::from_shape_fn((rows, columns), |(i, j)| (i * columns + j + 1) as f32);
            for p in [0.0, 0.3, 1.0] {
                let (y, cache) = perturb(p, x.clone());
                let dx = Dropout::new(p).unwrap().backward(cache.clone(), x.clone());
                for pool in [Pool::single(), Pool::new(3)] {
                    // A cache of another draw, to be overwritten.
                    let (mut again, mut out) = (perturb(0.9, y.clone()).1, x.clone());
                    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
                    let dropout = Dropout::new(p).unwrap();
                    dropout.perturb_into(x.view(), out.view_mut(), &mut again, &mut rng, &pool).unwrap();
                    assert_eq!((&out, &again), (&y, &cache));
                    again.backward_into(x.view(), out.view_mut(), &pool).unwrap();
                    assert_eq!(out, dx);
                    let mut turned = Array2::zeros((columns, rows));
                    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
                    let place = turned.view_mut().reversed_axes();
                    dropout.perturb_into(x.view(), place, &mut again, &mut rng, &pool).unwrap();
                    assert_eq!((&turned.t().to_owned(), &again), (&y, &cache));
                    again.backward_into(x.view(), turned.view_mut().reversed_axes(), &pool).unwrap();
                    assert_eq!(turned.t(), dx);
                    assert!(again.backward_into(x.view(), Array2::zeros((1, 2)).view_mut(), &pool).is_err());
                }
            }
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_file_cannot_hold_a_p_above_one() {
        let dropout = Dropout::new(0.5).unwrap();
        let json = serde_json::to_string(&dropout).unwrap();
        assert_eq!(json, r#"{"p":0.5}"#);
        assert_eq!(serde_json::from_str::<Dropout>(&json).unwrap(), dropout);
        assert!(serde_json::from_str::<Dropout>(r#"{"p":1.5}"#).is_err());
    }
}
