//! Few values that stand for many: optimal k-means in one dimension, and starts for Lloyd's iterations.
//!
//! ```text
//! cost[m, j] = min over i of  cost[m - 1, i] + sum over i <= t < j of (x[t] - mean of x[i..j])^2       x ascending
//! ```
//!
//! In one dimension clusters are intervals of the sorted numbers, so that dynamic programming finds the best of all. The best
//! `i` does not fall as `j` rises: divide and conquer finds one row of the table in O(n log n), all in O(k n log n), with 4 n k
//! bytes to walk back. Wang & Song, "Ckmeans.1d.dp", R Journal 3 (2011); Grønlund et al., arXiv:1701.07204.

use std::cmp::Ordering;

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::error::{Error, Result};
use crate::float::{Float, check_finite};
use crate::kernel::Pool;
use crate::quantize::kmeans::lloyd;

/// [`Clustering::Auto`] is exact as long as numbers times clusters do not exceed this: at most a second or so.
const AFFORDABLE: usize = 1 << 22;
/// [`Clustering::Exact`] is refused beyond it, for its memory: 1 GiB.
const EXACT_MAX: usize = 1 << 28;
/// Numbers that a start looks at.
const SAMPLE: usize = 1 << 16;
/// Iterations after the exact solution of a sample.
const POLISH: usize = 50;

/// How the shared values are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Clustering {
    /// [`Exact`](Self::Exact) up to 2^22 numbers times clusters (262,144 numbers for 16 clusters). Beyond, the exact solution of a
    /// random sample of that size, and at most 50 of Lloyd's iterations on all numbers.
    #[default]
    Auto,
    /// The least squared error of all; refused beyond 2^28 numbers times clusters, which take 1 GiB.
    Exact,
    /// Lloyd's iterations.
    Lloyd {
        /// Where they begin.
        start: Start,
        /// At most so many.
        iterations: usize,
    },
}

/// Where Lloyd's iterations begin. All look at up to 65,536 of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Start {
    /// Equally spaced from the least to the largest: keeps large weights apart, which Han et al. found the best for networks.
    Linear,
    /// Equally many numbers for each.
    Density,
    /// One number after another, drawn by its squared distance to the nearest before it (k-means++, Arthur & Vassilvitskii
    /// 2007).
    PlusPlus {
        /// Seed of the draws.
        seed: u64,
    },
}

/// At most `clusters` ascending centroids for `values`; the values themselves, if they are no more. None for none.
///
/// ```
/// use trimnet::quantize::{Clustering, cluster};
///
/// let values = [0.0f32, 1.0, 2.0, 10.0, 11.0];
/// assert_eq!(cluster(&values, 2, Clustering::Exact)?, [1.0, 10.5]);
/// assert_eq!(cluster(&values, 5, Clustering::Exact)?, values);
/// # Ok::<(), trimnet::Error>(())
/// ```
///
/// # Errors
/// [`Error::OutOfRange`] for 0 clusters, [`Error::NotFinite`] for NaN or infinity, [`Error::Unsupported`] for too many values
/// for [`Clustering::Exact`].
pub fn cluster<F: Float>(values: &[F], clusters: usize, clustering: Clustering) -> Result<Vec<F>> {
    if clusters == 0 {
        return Err(Error::OutOfRange { name: "clusters", value: 0.0, range: "at least 1" });
    }
    check_finite("values", &values.into())?;
    if let Some(few) = distinct(values, clusters) {
        return Ok(few);
    }
    let size = values.len().saturating_mul(clusters);
    let mut centroids = match clustering {
        Clustering::Exact if size > EXACT_MAX => {
            return Err(Error::Unsupported {
                what: "exact clustering",
                reason: format!("{} values times {clusters} clusters are above 2^28", values.len()),
            });
        }
        Clustering::Auto if size > AFFORDABLE => {
            let sample = sample(values, AFFORDABLE.div_ceil(clusters).max(SAMPLE), 0);
            let mut centroids = exact(&sample, clusters);
            centroids.dedup();
            lloyd(values, &mut centroids, POLISH, &Pool::for_elements(values.len()))?;
            centroids
        }
        Clustering::Auto | Clustering::Exact => exact(&sorted(values.to_vec()), clusters),
        Clustering::Lloyd { start, iterations } => {
            let mut centroids = start.centroids(&sample(values, SAMPLE, 0), clusters);
            centroids.dedup();
            lloyd(values, &mut centroids, iterations, &Pool::for_elements(values.len()))?;
            centroids
        }
    };
    centroids.dedup();
    Ok(centroids)
}

fn order<F: Float>(a: &F, b: &F) -> Ordering {
    a.partial_cmp(b).unwrap_or(Ordering::Equal)
}

fn sorted<F: Float>(mut values: Vec<F>) -> Vec<F> {
    values.sort_unstable_by(order);
    values
}

/// All different values in order, if they are at most `limit`. Zeros of both signs are one.
fn distinct<F: Float>(values: &[F], limit: usize) -> Option<Vec<F>> {
    let mut found: Vec<F> = Vec::new();
    for &value in values {
        if let Err(place) = found.binary_search_by(|other| order(other, &value)) {
            if found.len() == limit {
                return None;
            }
            found.insert(place, value + F::zero()); // -0.0 as 0.0
        }
    }
    Some(found)
}

/// At most `size` of the values in order: all, or a random choice.
fn sample<F: Float>(values: &[F], size: usize, seed: u64) -> Vec<F> {
    if values.len() <= size {
        return sorted(values.to_vec());
    }
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    sorted((0..size).map(|_| values[rng.random_range(0..values.len())]).collect())
}

impl Start {
    /// `values` ascend and are not empty.
    fn centroids<F: Float>(self, values: &[F], clusters: usize) -> Vec<F> {
        let at = |rank: usize| values[rank.min(values.len() - 1)];
        match self {
            Self::Linear => {
                let (first, last) = (at(0).as_f64(), at(values.len() - 1).as_f64());
                let share = |i: usize| if clusters == 1 { 0.5 } else { i as f64 / (clusters - 1) as f64 };
                // Not first + (last - first) * share, which may overflow.
                (0..clusters).map(|i| F::of(first * (1.0 - share(i)) + last * share(i))).collect()
            }
            Self::Density => {
                let middle = |i: usize| (2 * i + 1) * values.len() / (2 * clusters);
                (0..clusters).map(|i| at(middle(i))).collect()
            }
            Self::PlusPlus { seed } => plus_plus(values, clusters, seed),
        }
    }
}

fn plus_plus<F: Float>(values: &[F], clusters: usize, seed: u64) -> Vec<F> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut centroids = vec![values[rng.random_range(0..values.len())]];
    let size = values.iter().fold(0.0, |size: f64, x| size.max(x.as_f64().abs())).max(f64::MIN_POSITIVE);
    let mut squares = vec![f64::INFINITY; values.len()];
    while centroids.len() < clusters {
        let last = centroids[centroids.len() - 1].as_f64() / size;
        let mut sum = 0.0;
        for (square, x) in squares.iter_mut().zip(values) {
            let distance = x.as_f64() / size - last;
            *square = square.min(distance * distance);
            sum += *square;
        }
        let mut rest = rng.random::<f64>() * sum;
        let drawn = squares.iter().position(|&square| {
            rest -= square;
            rest < 0.0
        });
        // Nothing is drawn where all are at a centroid already.
        let Some(&next) = drawn.and_then(|i| values.get(i)) else { break };
        centroids.push(next);
    }
    sorted(centroids)
}

/// Running sums over distinct values: of their numbers, of all values, and of all squares. Those of values start at the middle
/// and go both ways: so none holds a value that is farther out than those beside it, whose digits it would swallow.
struct Sums {
    counts: Vec<f64>,
    values: Vec<f64>,
    squares: Vec<f64>,
}

impl Sums {
    /// The squared error of one cluster, `start < end`.
    fn cost(&self, start: usize, end: usize) -> f64 {
        let (count, sum) = (self.counts[end] - self.counts[start], self.values[end] - self.values[start]);
        (self.squares[end] - self.squares[start] - sum * sum / count).max(0.0)
    }
}

/// The best `clusters` centroids of ascending values.
fn exact<F: Float>(values: &[F], clusters: usize) -> Vec<F> {
    let mut points: Vec<(F, f64)> = Vec::new();
    for &value in values {
        match points.last_mut() {
            Some((last, count)) if *last == value => *count += 1.0,
            _ => points.push((value, 1.0)),
        }
    }
    let n = points.len();
    if n <= clusters {
        return points.into_iter().map(|(value, _)| value).collect();
    }
    // Around their middle and at most about 1: squares neither overflow nor cancel more than they must.
    let middle = points[n / 2].0.as_f64();
    let size = points.iter().fold(0.0, |size: f64, (x, _)| size.max((x.as_f64() * 0.5 - middle * 0.5).abs()));
    let zeros = || vec![0.0; n + 1];
    let mut sums = Sums { counts: zeros(), values: zeros(), squares: zeros() };
    let terms = |i: usize| {
        let (value, count) = points[i];
        let x = (value.as_f64() * 0.5 - middle * 0.5) / size;
        (count * x, count * x * x)
    };
    for i in (0..n / 2).rev() {
        let (value, square) = terms(i);
        sums.values[i] = sums.values[i + 1] - value;
        sums.squares[i] = sums.squares[i + 1] - square;
    }
    for i in n / 2..n {
        let (value, square) = terms(i);
        sums.values[i + 1] = sums.values[i] + value;
        sums.squares[i + 1] = sums.squares[i] + square;
    }
    for (i, &(_, count)) in points.iter().enumerate() {
        sums.counts[i + 1] = sums.counts[i] + count;
    }
    // costs[j]: the first j points in one cluster more at each turn; begins[m][j]: where the last of them begins.
    let mut costs: Vec<f64> = (0..=n).map(|j| if j == 0 { 0.0 } else { sums.cost(0, j) }).collect();
    let mut begins: Vec<Vec<u32>> = vec![vec![0; n + 1]];
    for m in 1..clusters {
        let mut row =
            Row { sums: &sums, before: &costs, costs: vec![f64::INFINITY; n + 1], begins: vec![0; n + 1] };
        row.fill(m + 1, n + 1, m, n);
        (costs, _) = (row.costs, begins.push(row.begins));
    }
    let mut centroids = Vec::with_capacity(clusters);
    let mut end = n;
    for begins in begins.iter().rev() {
        let begin = begins[end] as usize;
        centroids.push(mean(&points[begin..end]));
        end = begin;
    }
    centroids.reverse();
    centroids
}

/// The mean of ascending values with their counts. Of one value the value itself, and between the first and the last always:
/// differences of running sums would not promise that where some values are huge.
fn mean<F: Float>(points: &[(F, f64)]) -> F {
    let [(first, _), .., (last, _)] = points else {
        return points.first().map_or(F::zero(), |&(value, _)| value);
    };
    let size = first.as_f64().abs().max(last.as_f64().abs());
    let (count, sum) = points.iter().fold((0.0, 0.0), |(count, sum), (value, times)| {
        (count + times, sum + times * (value.as_f64() / size))
    });
    F::of((sum / count).clamp(-1.0, 1.0) * size).max(*first).min(*last)
}

/// One row of the table, from the one before.
struct Row<'a> {
    sums: &'a Sums,
    before: &'a [f64],
    costs: Vec<f64>,
    begins: Vec<u32>,
}

impl Row<'_> {
    /// Fills `from..to`, whose last clusters begin within `low..=high`.
    fn fill(&mut self, from: usize, to: usize, low: usize, high: usize) {
        if from >= to {
            return;
        }
        let j = from + (to - from) / 2;
        let (mut best, mut begin) = (f64::INFINITY, low);
        for i in low..=high.min(j - 1) {
            let cost = self.before[i] + self.sums.cost(i, j);
            if cost < best {
                (best, begin) = (cost, i);
            }
        }
        self.costs[j] = best;
        self.begins[j] = begin as u32;
        self.fill(from, j, low, begin);
        self.fill(j + 1, to, begin, high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f64> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0f64).powi(3)).collect()
    }

    fn error(values: &[f64], centroids: &[f64]) -> f64 {
        let nearest = |x: &f64| centroids.iter().map(|c| (x - c) * (x - c)).fold(f64::INFINITY, f64::min);
        values.iter().map(nearest).sum()
    }

    /// The least error over all ways to cut ascending values.
    fn best(values: &[f64], clusters: usize) -> f64 {
        if values.is_empty() || clusters == 0 {
            return if values.is_empty() { 0.0 } else { f64::INFINITY };
        }
        let cut = |end: usize| {
            let mean = values[..end].iter().sum::<f64>() / end as f64;
            error(&values[..end], &[mean]) + best(&values[end..], clusters - 1)
        };
        (1..=values.len()).map(cut).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn the_exact_solution_is_the_best_of_all_cuts() {
        for (n, k, seed) in [(9, 2, 1), (10, 3, 2), (11, 4, 3), (12, 5, 4), (12, 1, 5), (8, 7, 6)] {
            let values = sorted(numbers(n, seed));
            let centroids = cluster(&values, k, Clustering::Exact).unwrap();
            assert!((error(&values, &centroids) - best(&values, k)).abs() < 1e-12, "{n} {k}");
        }
    }

    #[test]
    fn an_outlier_does_not_blur_the_others() {
        for sign in [-1.0, 1.0] {
            let values = [1e20, 1.0, 2.0, 10.0, 11.0, 30.0].map(|x| sign * x);
            let mut expected = [1e20, 1.5, 10.5, 30.0].map(|x| sign * x);
            expected.sort_unstable_by(f64::total_cmp);
            assert_eq!(cluster(&values, 4, Clustering::Exact).unwrap(), expected);
        }
    }

    #[test]
    fn lloyd_is_never_better_than_exact() {
        let values = numbers(3000, 7);
        let exact = error(&values, &cluster(&values, 16, Clustering::Auto).unwrap());
        for start in [Start::Linear, Start::Density, Start::PlusPlus { seed: 3 }] {
            let centroids = cluster(&values, 16, Clustering::Lloyd { start, iterations: 1000 }).unwrap();
            let lloyd = error(&values, &centroids);
            assert!(exact <= lloyd * (1.0 + 1e-9) && lloyd < 1.5 * exact, "{start:?}: {exact} {lloyd}");
        }
    }

    #[test]
    fn many_values_are_clustered_nearly_as_well_from_a_sample() {
        let values = numbers(300_000, 8);
        let auto = error(&values, &cluster(&values, 32, Clustering::Auto).unwrap());
        let exact = error(&values, &cluster(&values, 32, Clustering::Exact).unwrap());
        assert!(auto < 1.01 * exact, "{auto} {exact}");
    }

    #[test]
    fn equal_huge_and_tiny_values_have_finite_centroids() {
        assert_eq!(cluster(&[0.0f32, -0.0, 5.0, 5.0], 2, Clustering::Auto).unwrap(), [0.0, 5.0]);
        assert!(cluster::<f32>(&[], 2, Clustering::Auto).unwrap().is_empty());
        let extremes = [f64::MAX, f64::MIN, 1e-300, 5e-324, 0.0, 1.0, 2.0];
        let starts = [Start::Linear, Start::Density, Start::PlusPlus { seed: 1 }];
        let lloyds = starts.map(|start| Clustering::Lloyd { start, iterations: 20 });
        for clustering in [Clustering::Auto, Clustering::Exact].into_iter().chain(lloyds) {
            for k in 1..=8 {
                let centroids = cluster(&extremes, k, clustering).unwrap();
                assert!(centroids.len() <= k && centroids.iter().all(|c| c.is_finite()), "{clustering:?}");
                assert!(centroids.is_sorted());
            }
        }
    }

    #[test]
    fn refuses_no_clusters_and_nan() {
        assert!(cluster(&[1.0f32], 0, Clustering::Auto).is_err());
        assert!(cluster(&[1.0, f32::NAN], 1, Clustering::Auto).is_err());
    }
}
