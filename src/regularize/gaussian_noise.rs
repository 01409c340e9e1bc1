//! Gaussian noise: a random gain near 1 on every activation while training.
//!
//! ```text
//! y[i] = x[i] * g[i]      g[i] = 1 + deviation * n[i]      n[i] standard normal
//! ```
//!
//! The mean of `g` is 1, so inference needs no counterpart: leave the layer out. With
//! `deviation = sqrt(p / (1 - p))` it has the mean and variance of dropout (Srivastava et al., JMLR 15, 2014,
//! section 10).
//!
//! Normals come by Box-Muller from the words of Philox4x32-10, keyed by one `u64` from the passed generator
//! and addressed by position in row-major order. Element `i` belongs to the counter `8 * (i / 32) + i % 8`; its
//! words `w0, w1` give the elements with `i / 8 % 4` = 0 and 1, `w2, w3` those with 2 and 3:
//!
//! ```text
//! r = sqrt(-2 ln((w0 + 1/2) / 2^32))      t = 2 pi w1 / 2^32      n = r cos(t), r sin(t)
//! ```
//!
//! The words are the same everywhere; the last bit of a normal is that of the platform's `ln` and `cos`.

use std::f64::consts::TAU;

use ndarray::Array2;
use rand::Rng;

use super::philox::{LANES, Philox};
use crate::error::{Error, Result};
use crate::float::{Float, elements, elements_mut, into_rows};
use crate::traits::Regularizer;

/// Normals of one block of the generator.
const CHUNK: usize = LANES * 4;

/// Multiplies each activation with a gain of mean 1 and this deviation.
///
/// ```
/// use trimnet::Regularizer;
/// use trimnet::ndarray::Array2;
/// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::regularize::GaussianNoise;
///
/// let noise = GaussianNoise::new(0.1)?;
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let (y, _cache) = noise.perturb(Array2::<f32>::ones((4, 8)), &mut rng);
/// assert!(y.iter().all(|&y| (0.3..1.7).contains(&y)));
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw", into = "Raw"))]
pub struct GaussianNoise {
    deviation: f64,
}

/// The gains that were drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct GaussianNoiseCache<F> {
    dim: (usize, usize),
    /// None if all are 1.
    gain: Option<Vec<F>>,
}

impl GaussianNoise {
    /// Gains of mean 1 and this deviation.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= deviation <= 1e6`; beyond, nothing of the input would be left.
    pub fn new(deviation: f64) -> Result<Self> {
        if !(0.0..=1e6).contains(&deviation) {
            let range = "0 <= deviation <= 1e6";
            return Err(Error::OutOfRange { name: "deviation", value: deviation, range });
        }
        Ok(Self { deviation })
    }

    /// Standard deviation of the gain.
    pub fn deviation(&self) -> f64 {
        self.deviation
    }
}

/// Elements `32 * index .. 32 * (index + 1)` of the stream of standard normals.
fn normals(stream: Philox, index: u64) -> [f64; CHUNK] {
    const UNIT: f64 = 1.0 / (1_u64 << 32) as f64;
    let words = stream.block(index);
    let mut normals = [0.0; CHUNK];
    for (words, normals) in words.chunks_exact(2).zip(normals.chunks_exact_mut(2 * LANES)) {
        let (cosines, sines) = normals.split_at_mut(LANES);
        let normals = cosines.iter_mut().zip(sines);
        for ((&w0, &w1), (cosine, sine)) in words[0].iter().zip(&words[1]).zip(normals) {
            let r = (-2.0 * ((f64::from(w0) + 0.5) * UNIT).ln()).sqrt();
            let (sin, cos) = (TAU * f64::from(w1) * UNIT).sin_cos();
            *cosine = r * cos;
            *sine = r * sin;
        }
    }
    normals
}

fn multiply<F: Float>(x: &mut Array2<F>, gain: &[F]) {
    elements_mut(x).iter_mut().zip(gain).for_each(|(x, &gain)| *x *= gain);
}

impl<F: Float> Regularizer<F> for GaussianNoise {
    type Cache = GaussianNoiseCache<F>;

    /// Draws one `u64` from `rng`, whatever the deviation is. At 0 the output is the input, bit by bit.
    fn perturb(&self, x: Array2<F>, rng: &mut dyn Rng) -> (Array2<F>, Self::Cache) {
        let stream = Philox::new(rng.next_u64());
        let dim = x.dim();
        if self.deviation == 0.0 {
            return (x, GaussianNoiseCache { dim, gain: None });
        }
        let mut y = into_rows(x);
        let mut gain = Vec::with_capacity(y.len());
        for (index, chunk) in elements(&y).chunks(CHUNK).enumerate() {
            let normals = normals(stream, index as u64);
            gain.extend(normals[..chunk.len()].iter().map(|n| F::of(1.0 + self.deviation * n)));
        }
        multiply(&mut y, &gain);
        (y, GaussianNoiseCache { dim, gain: Some(gain) })
    }

    fn backward(&self, cache: Self::Cache, dy: Array2<F>) -> Array2<F> {
        if dy.dim() != cache.dim {
            return Array2::from_elem(cache.dim, F::nan());
        }
        let Some(gain) = cache.gain else { return dy };
        let mut dx = into_rows(dy);
        multiply(&mut dx, &gain);
        dx
    }
}

/// What a file says, before it is checked.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Raw {
    deviation: f64,
}

#[cfg(feature = "serde")]
impl From<GaussianNoise> for Raw {
    fn from(noise: GaussianNoise) -> Self {
        Self { deviation: noise.deviation }
    }
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for GaussianNoise {
    type Error = Error;

    fn try_from(raw: Raw) -> Result<Self> {
        Self::new(raw.deviation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    /// Computed from the formulas of this page in Python.
    #[test]
    fn the_stream_never_changes() {
        let stream = Philox::new(0x0123_4567_89ab_cdef);
        let expected = [
            (0, 0.11006913512948137),
            (1, -0.38104008741609163),
            (7, -0.1963349092112369),
            (8, -0.8030993971334928),
            (16, -2.2234925732374586),
            (24, 0.3009010462394445),
            (32, -0.5224834372771918),
            (47, -1.9503967080718574),
        ];
        for (i, expected) in expected {
            let normal = normals(stream, (i / CHUNK) as u64)[i % CHUNK];
            assert!((normal - expected).abs() < 1e-14, "{i}: {normal}, expected {expected}");
        }
    }

    #[test]
    fn draws_have_the_moments_of_a_standard_normal() {
        let stream = Philox::new(7);
        let n = 100_000;
        let draws: Vec<f64> = (0..n / CHUNK as u64).flat_map(|index| normals(stream, index)).collect();
        let moment = |k: i32| draws.iter().map(|n| n.powi(k)).sum::<f64>() / draws.len() as f64;
        // Within 5 standard errors; the variance of n^k is E n^2k - (E n^k)^2.
        for (k, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let error: f64 = moment(k) - expected;
            assert!(error.abs() < 5.0 * (variance / n as f64).sqrt(), "moment {k} is off by {error}");
        }
    }

    #[test]
    fn is_the_identity_at_zero_bit_by_bit() {
        let x = array![[f64::NAN, f64::INFINITY, -0.0, 1.0]];
        let noise = GaussianNoise::new(0.0).unwrap();
        let (y, cache) = noise.perturb(x.clone(), &mut Xoshiro256PlusPlus::seed_from_u64(1));
        for out in [y, noise.backward(cache, x.clone())] {
            assert!(out.iter().zip(&x).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    #[test]
    fn refuses_negative_and_endless_deviations() {
        for deviation in [-1e-9, f64::NAN, f64::INFINITY, 2e6] {
            assert!(matches!(
                GaussianNoise::new(deviation),
                Err(Error::OutOfRange { name: "deviation", .. })
            ));
        }
        assert_eq!(GaussianNoise::new(1e6).unwrap().deviation(), 1e6);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_file_cannot_hold_a_negative_deviation() {
        let noise = GaussianNoise::new(0.5).unwrap();
        let json = serde_json::to_string(&noise).unwrap();
        assert_eq!(serde_json::from_str::<GaussianNoise>(&json).unwrap(), noise);
        assert!(serde_json::from_str::<GaussianNoise>(r#"{"deviation":-1.0}"#).is_err());
    }
}
