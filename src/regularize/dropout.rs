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
//! by position in row-major order. Element `i` is dropped if its draw is below `round(p * 65536)`:
//!
//! ```text
//! counter = i / 8      word = i / 2 % 4      half = i % 2, the lower one first
//! ```
//!
//! So `p` is served to within 1 / 131072, and the gain is that of the `p` that is served: the mean is kept
//! exactly. Draws are the same on every machine and for `f32` and `f64`.

use ndarray::Array2;
use rand::Rng;

use super::philox::{LANES, Philox};
use crate::error::{Error, Result};
use crate::float::{Float, elements_mut, into_rows};
use crate::traits::Regularizer;

/// Number of different 16-bit draws.
const DRAWS: u32 = 1 << 16;
/// Draws of one block of the generator: one word of the mask.
const CHUNK: usize = LANES * 8;

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
    /// A draw below it drops, 0..=65535.
    threshold: u32,
}

/// What was kept, one bit per activation.
#[derive(Clone, Debug, PartialEq)]
pub struct DropoutCache {
    dim: (usize, usize),
    /// Bit `i % 64` of word `i / 64` is 1 if element `i` stays; none if all stay.
    keep: Option<Vec<u64>>,
    gain: f64,
}

impl Dropout {
    /// Drops each activation with probability `p`, served as the nearest multiple of 1 / 65536 below 1:
    /// smaller than 1 / 131072 drops nothing, and the largest `p` below 1 still keeps one in 65536.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= p < 1`.
    pub fn new(p: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::OutOfRange { name: "p", value: p, range: "0 <= p < 1" });
        }
        let threshold = ((p * f64::from(DRAWS)).round() as u32).min(DRAWS - 1);
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

    /// What a kept activation is multiplied with: `1 / (1 - effective_p)`.
    pub fn gain(&self) -> f64 {
        f64::from(DRAWS) / f64::from(DRAWS - self.threshold)
    }
}

/// The draws of elements `64 * index .. 64 * (index + 1)`.
#[inline]
fn draws(stream: Philox, index: u64) -> [u16; CHUNK] {
    let words = stream.block(index);
    let mut draws = [0; CHUNK];
    for (lane, draws) in draws.chunks_exact_mut(8).enumerate() {
        for (word, pair) in words.iter().zip(draws.chunks_exact_mut(2)) {
            pair[0] = word[lane] as u16;
            pair[1] = (word[lane] >> 16) as u16;
        }
    }
    draws
}

impl<F: Float> Regularizer<F> for Dropout {
    type Cache = DropoutCache;

    /// Draws one `u64` from `rng`, whatever `p` is. At `p = 0` the output is the input, bit by bit.
    fn perturb(&self, x: Array2<F>, rng: &mut dyn Rng) -> (Array2<F>, Self::Cache) {
        let stream = Philox::new(rng.next_u64());
        let (dim, gain) = (x.dim(), self.gain());
        if self.threshold == 0 {
            return (x, DropoutCache { dim, keep: None, gain });
        }
        let mut y = into_rows(x);
        let mut keep = Vec::with_capacity(y.len().div_ceil(CHUNK));
        let (threshold, factor) = (self.threshold as u16, F::of(gain));
        for (index, chunk) in elements_mut(&mut y).chunks_mut(CHUNK).enumerate() {
            let draws = draws(stream, index as u64);
            for (y, &draw) in chunk.iter_mut().zip(&draws) {
                // Written, not multiplied: an infinity times 0 would be NaN.
                *y = if draw < threshold { F::zero() } else { *y * factor };
            }
            let bits = draws.iter().enumerate().map(|(i, &draw)| u64::from(draw >= threshold) << i);
            keep.push(bits.fold(0, |word, bit| word | bit));
        }
        (y, DropoutCache { dim, keep: Some(keep), gain })
    }

    fn backward(&self, cache: Self::Cache, dy: Array2<F>) -> Array2<F> {
        if dy.dim() != cache.dim {
            return Array2::from_elem(cache.dim, F::nan());
        }
        let Some(keep) = cache.keep else { return dy };
        let mut dx = into_rows(dy);
        let gain = F::of(cache.gain);
        for (chunk, word) in elements_mut(&mut dx).chunks_mut(CHUNK).zip(keep) {
            for (i, dx) in chunk.iter_mut().enumerate() {
                *dx = if word >> i & 1 == 0 { F::zero() } else { *dx * gain };
            }
        }
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
