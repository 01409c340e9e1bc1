//! ONNX Runtime's histogram calibrators, reproduced to the last bit where users compare against them.
//!
//! The histogram is signed: the first batch fixes `(-T, T)` with `T = amax`; a larger `amax` adds bins of the same width
//! on both sides. Unlike [`HistogramObserver`](super::HistogramObserver) it depends on the first batch, grows without
//! bound and does not merge; prefer the other unless the numbers must agree with that tool.
//!
//! Rules and defects: `compute_percentile` and `get_entropy_threshold` of onnxruntime 1.32,
//! `quantization/calibrate.py`.

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::Pool;

use super::histogram::check_percentile;
use super::params::Range;
use super::range::{Observer, extremes};
use super::search::RangeSearch;

/// The bins that may be added by one growing step; beyond, an outlier would cost gigabytes.
const MOST_BINS: f64 = 16_777_216.0;

/// A growing signed histogram with ONNX Runtime's rules.
///
/// ```
/// use trimnet::quantize::{Observer, OnnxHistogram};
/// let mut histogram = OnnxHistogram::new(4)?;
/// histogram.observe(&[-1.0, -0.6, -0.2, 0.2, 0.6, 1.0]);
/// assert_eq!(histogram.counts(), [2, 1, 1, 2]);
/// histogram.observe(&[1.6, 0.1]);
/// assert_eq!(histogram.counts(), [0, 0, 2, 1, 2, 2, 0, 1]); // now on -2..2
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxHistogram {
    bins: usize,
    counts: Vec<u64>,
    threshold: f64,
    seen: Option<(f64, f64)>,
    refused: u64,
    skipped: u64,
}

impl OnnxHistogram {
    /// `bins` of the first batch: ONNX Runtime takes 128 for entropy, 2,048 for percentiles.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `2 <= bins <= 65536`.
    pub fn new(bins: usize) -> Result<Self> {
        if !(2..=65536).contains(&bins) {
            return Err(Error::OutOfRange { name: "bins", value: bins as f64, range: "2 <= bins <= 65536" });
        }
        Ok(Self { bins, counts: Vec::new(), threshold: 0.0, seen: None, refused: 0, skipped: 0 })
    }

    /// The counts, over equal bins of [`edge`](Self::edge).
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Lower edge of bin `i` (or, for `i = counts().len()`, the upper edge of the last bin), in f32 as ONNX Runtime holds it.
    pub fn edge(&self, i: usize) -> f64 {
        edge(i, self.counts.len(), -self.threshold, self.threshold)
    }

    /// Numbers that would have needed more than 16 million bins, and were left out of the counts (not of the range).
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The asymmetric percentile: half of the rest is cut from each side; clipped to what was seen.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 < percentile <= 100`; [`Error::Empty`] if no finite number was seen.
    pub fn percentile(&self, percentile: f64) -> Result<Range<f64>> {
        check_percentile(percentile)?;
        let seen = Observer::<f64>::range(self)?;
        let cut = (100.0 - percentile) / 200.0;
        let low = self.edge(first_reaching(&self.counts, cut));
        let high = self.edge(first_reaching(&self.counts, 1.0 - cut));
        seen.cut(low, high)
    }

    /// The range `(-t, t)` of least Kullback-Leibler divergence between the clipped distribution and its quantized form
    /// of `levels` levels; clipped to what was seen.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the bins leave only one candidate: with 128 bins and 128 levels, that tool's defaults,
    /// "entropy" is the same as min-max. [`Error::Empty`] if no finite number was seen.
    pub fn entropy(&self, levels: usize) -> Result<RangeSearch<f64>> {
        let seen = Observer::<f64>::range(self)?;
        let (half, mid) = (levels / 2, self.counts.len() / 2);
        if levels < 2 || half >= mid {
            return Err(Error::Unsupported {
                what: "entropy calibration",
                reason: format!(
                    "{} bins leave at most one candidate for {levels} levels; take more bins",
                    self.counts.len()
                ),
            });
        }
        let mut best = (f64::INFINITY, 0, 0);
        for i in half..=mid {
            let (start, end) = (mid - i, (mid + i + 1).min(self.counts.len()));
            let divergence = divergence(&self.counts, start, end, levels);
            if divergence < best.0 {
                best = (divergence, start, end);
            }
        }
        let range = if best.2 == 0 { seen } else { seen.cut(self.edge(best.1), self.edge(best.2))? };
        Ok(RangeSearch { range, candidates: mid - half + 1, error: best.0 })
    }
}

impl<F: Float> Observer<F> for OnnxHistogram {
    fn observe(&mut self, values: &[F]) {
        let Some(e) = extremes(values, &Pool::single()) else {
            self.skipped += values.len() as u64;
            return;
        };
        self.skipped += values.len() as u64 - e.finite;
        let (min, max) = (e.min.as_f64(), e.max.as_f64());
        self.seen = Some(self.seen.map_or((min, max), |(a, b)| (a.min(min), b.max(max))));
        let amax = max.abs().max(min.abs());
        if self.counts.is_empty() {
            self.counts = vec![0; self.bins];
        }
        if self.threshold == 0.0 {
            // numpy widens an empty range to one of width 1.
            self.threshold = if amax == 0.0 { 0.0 } else { amax };
        } else if amax > self.threshold {
            let stride = 2.0 * self.threshold / self.counts.len() as f64;
            let more = ((amax - self.threshold) / stride).floor() + 1.0;
            if more <= MOST_BINS {
                let more = more as usize;
                let mut wider = vec![0; more];
                wider.append(&mut self.counts);
                wider.resize(wider.len() + more, 0);
                self.counts = wider;
                self.threshold += more as f64 * stride;
            }
        }
        // numpy gives an all-zero batch the range -0.5..0.5, whose middle bin takes everything.
        let t = if self.threshold == 0.0 { 0.5 } else { self.threshold };
        let bins = self.counts.len();
        for &v in values {
            let v = v.as_f64();
            if v.abs() <= t {
                self.counts[bin(v, bins, -t, t)] += 1;
            } else if v.is_finite() {
                self.refused += 1;
            }
        }
    }

    fn range(&self) -> Result<Range<F>> {
        let (min, max) = self.seen.ok_or(Error::Empty { what: "the observed data" })?;
        Range::new(F::of(min), F::of(max))
    }

    fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.refused
    }

    fn skipped(&self) -> u64 {
        self.skipped
    }
}

/// The symmetric percentile over the histogram of `|x|` of one batch: `(-t, t)`, then clipped to what was seen, which may
/// leave it lopsided.
///
/// # Errors
/// As [`OnnxHistogram::percentile`].
pub fn onnx_symmetric_percentile<F: Float>(values: &[F], bins: usize, percentile: f64) -> Result<Range<f64>> {
    check_percentile(percentile)?;
    OnnxHistogram::new(bins)?;
    let e = extremes(values, &Pool::single()).ok_or(Error::Empty { what: "the observed data" })?;
    let (min, max) = (e.min.as_f64(), e.max.as_f64());
    let finite = || values.iter().map(|v| v.as_f64().abs()).filter(|v| v.is_finite());
    let low = finite().fold(f64::INFINITY, f64::min);
    let high = max.abs().max(min.abs());
    let (low, high) = if low == high { (low - 0.5, high + 0.5) } else { (low, high) };
    let mut counts = vec![0; bins];
    for v in finite() {
        counts[bin(v, bins, low, high)] += 1;
    }
    let t = edge(first_reaching(&counts, percentile / 100.0), bins, low, high);
    Range::new(min, max)?.cut(-t, t)
}

/// Edge `i` of `bins` equal bins, computed in f64 and stored in f32.
fn edge(i: usize, bins: usize, low: f64, high: f64) -> f64 {
    f64::from((low + (high - low) / bins as f64 * i as f64) as f32)
}

/// numpy's rule: the last bin is closed, rounding is corrected by comparing with the edges.
fn bin(v: f64, bins: usize, low: f64, high: f64) -> usize {
    let exact = |i: usize| low + (high - low) / bins as f64 * i as f64;
    let mut i = (((v - low) / (high - low)) * bins as f64) as usize;
    i = i.min(bins - 1);
    if v < exact(i) {
        i = i.saturating_sub(1);
    } else if i + 1 < bins && v >= exact(i + 1) {
        i += 1;
    }
    i
}

/// The first bin at which the cumulated share is at least `share` (numpy's `searchsorted`).
fn first_reaching(counts: &[u64], share: f64) -> usize {
    let total: u64 = counts.iter().sum();
    let mut sum = 0.0;
    for (i, &n) in counts.iter().enumerate() {
        sum += n as f64 / total as f64;
        if sum >= share {
            return i;
        }
    }
    counts.len()
}

/// KL(p || q) of bins `start..end`: `p` has both tails in its edge bins, `q` is the slice merged to `levels` integers.
fn divergence(counts: &[u64], start: usize, end: usize, levels: usize) -> f64 {
    let slice = &counts[start..end];
    let mut p = slice.to_vec();
    if let Some(first) = p.first_mut() {
        *first += counts[..start].iter().sum::<u64>();
    }
    if let Some(last) = p.last_mut() {
        *last += counts[end..].iter().sum::<u64>();
    }
    let merged = slice.len() / levels;
    let mut q = vec![0; p.len()];
    for level in 0..levels {
        let (a, b) = (level * merged, (level + 1) * merged);
        let nonzero = p[a..b].iter().filter(|&&n| n > 0).count();
        if nonzero > 0 {
            let mut sum: u64 = slice[a..b].iter().sum();
            if level + 1 == levels {
                sum += slice[b..].iter().sum::<u64>();
            }
            // That tool spreads the count in an integer array, which truncates.
            q[a..b].fill(sum / nonzero as u64);
        }
    }
    match (smoothed(&p), smoothed(&q)) {
        (Some(p), Some(q)) => {
            // That tool compares sums of f32; neighbouring candidates differ in the last digits, so their order matters.
            let (sp, sq) = (pairwise_sum(&p), pairwise_sum(&q));
            let term = |(&p, &q): (&f32, &f32)| {
                let (p, q) = (f64::from(p / sp), f64::from(q / sq));
                (p * (p / q).ln()) as f32
            };
            f64::from(pairwise_sum(&p.iter().zip(&q).map(term).collect::<Vec<_>>()))
        }
        _ => f64::INFINITY,
    }
}

/// Zeros become 1e-4, taken evenly from the rest; `None` if nothing can be smoothed.
fn smoothed(counts: &[u64]) -> Option<Vec<f32>> {
    const EPS: f64 = 1e-4;
    let zeros = counts.iter().filter(|&&n| n == 0).count();
    let rest = counts.len() - zeros;
    if rest == 0 {
        return None;
    }
    let taken = (EPS * zeros as f64 / rest as f64) as f32;
    Some(counts.iter().map(|&n| if n == 0 { EPS as f32 } else { n as f32 - taken }).collect())
}

/// numpy's order of adding: eight sums side by side up to 128 numbers, halves beyond.
fn pairwise_sum(x: &[f32]) -> f32 {
    if x.len() < 8 {
        return x.iter().sum();
    }
    if x.len() > 128 {
        let half = x.len() / 2 / 8 * 8;
        return pairwise_sum(&x[..half]) + pairwise_sum(&x[half..]);
    }
    let (eights, rest) = x.as_chunks::<8>();
    let mut r = [0.0_f32; 8];
    for eight in eights {
        r.iter_mut().zip(eight).for_each(|(r, x)| *r += x);
    }
    let sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    rest.iter().fold(sum, |sum, x| sum + x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// i / 1000 for i = -1000..=1000, plus one 12.0.
    fn data() -> Vec<f32> {
        (-1000..=1000).map(|i| (f64::from(i) / 1000.0) as f32).chain([12.0]).collect()
    }

    fn histogram(bins: usize) -> OnnxHistogram {
        let mut h = OnnxHistogram::new(bins).unwrap();
        h.observe(&data());
        h
    }

    #[test]
    fn entropy_matches_the_executed_reference() {
        let found = |bins| histogram(bins).entropy(128).unwrap().range;
        assert_eq!(found(2048), Range::new(-1.0, 1.980_468_75).unwrap());
        assert_eq!(found(4096), Range::new(-1.0, 7.464_843_75).unwrap());
    }

    #[test]
    fn a_search_of_one_candidate_is_an_error() {
        let error = histogram(128).entropy(128).unwrap_err();
        assert_eq!(
            error.to_string(),
            "entropy calibration: 128 bins leave at most one candidate for 128 levels; take more bins"
        );
    }

    #[test]
    fn percentiles_match_the_executed_reference() {
        assert_eq!(histogram(2048).percentile(99.9).unwrap(), Range::new(-1.0, 0.996_093_75).unwrap());
        let symmetric = onnx_symmetric_percentile(&data(), 2048, 99.9).unwrap();
        assert_eq!(symmetric, Range::new(-0.996_093_75, 0.996_093_75).unwrap());
    }

    #[test]
    fn constants_keep_their_range() {
        for constant in [3.0, -3.0, 0.1, 1e-30, 0.0] {
            let (values, range) = ([constant; 3], Range::new(constant, constant).unwrap());
            let mut h = OnnxHistogram::new(2048).unwrap();
            h.observe(&values);
            assert_eq!(h.entropy(128).unwrap().range, range);
            for percentile in [99.999, 50.0, 1e-3] {
                assert_eq!(h.percentile(percentile).unwrap(), range);
                assert_eq!(onnx_symmetric_percentile(&values, 2048, percentile).unwrap(), range);
            }
        }
    }

    #[test]
    fn zeros_and_one_giant_outlier_stay_finite() {
        let mut h = OnnxHistogram::new(128).unwrap();
        h.observe(&[0.0_f32; 10]);
        h.observe(&[1e-30, 1.0]);
        h.observe(&[f32::MAX, f32::NAN]);
        assert_eq!(Observer::<f64>::range(&h).unwrap(), Range::new(0.0, f64::from(f32::MAX)).unwrap());
        assert_eq!((h.refused(), Observer::<f64>::skipped(&h), Observer::<f64>::count(&h)), (1, 1, 13));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(OnnxHistogram::new(1).is_err());
        assert!(histogram(2048).percentile(0.0).is_err() && histogram(2048).percentile(f64::NAN).is_err());
        assert!(histogram(2048).entropy(0).is_err());
        assert!(OnnxHistogram::new(64).unwrap().entropy(16).is_err());
    }
}
