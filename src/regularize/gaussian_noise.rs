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
//! and addressed by position in row-major order: words `2k, 2k + 1` of the stream give elements `2k, 2k + 1`,
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
    for (lane, normals) in normals.chunks_exact_mut(4).enumerate() {
        for (words, pair) in words.chunks_exact(2).zip(normals.chunks_exact_mut(2)) {
            let r = (-2.0 * ((f64::from(words[0][lane]) + 0.5) * UNIT).ln()).sqrt();
            let (sin, cos) = (TAU * f64::from(words[1][lane]) * UNIT).sin_cos();
            pair[0] = r * cos;
            pair[1] = r * sin;
        }
    }
    normals
}

fn multiply<F: Float>(x: &mut Array2<F>, gain: &[F]) {
    elements_mut(x).iter_mut().zip(gain).for_each(|(x, &gain)| *x = *x * gain);
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
