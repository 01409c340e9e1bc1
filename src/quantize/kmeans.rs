//! Weights that share few values: Lloyd's iterations in one dimension.
//!
//! ```text
//! repeat   boundary[j] = (c[j] + c[j + 1]) / 2                    the nearest centroid changes there
//!          c[j] = mean of the numbers between its boundaries      an empty cluster keeps its centroid
//! ```
//!
//! In one dimension a cluster is an interval, so a histogram with running sums stands for all numbers: 4,096 bins between
//! the least and the largest, each with its count and the exact mean of what it holds, to 2^-29 of the range. Only bins in
//! which a boundary falls are approximated, as evenly filled; up to 65,536 numbers are sorted instead, and nothing is.
//! S. P. Lloyd, IEEE Transactions on Information Theory 28 (1982).

use crate::error::{Error, Result};
use crate::float::{Float, check_finite};
use crate::kernel::{Isa, Pool, Work, fetch, with};
use crate::quantize::range::extremes;

/// Up to so many numbers are sorted.
const SORTED: usize = 1 << 16;
const BINS: usize = 1 << 12;
/// Bits of a position within a bin.
const FRACTION: u32 = 17;
/// Numbers that are binned before their fractions could overflow what is left of 64 bits.
const BATCH: usize = 1 << 20;
/// Blocks of numbers between the one that is worked on and the one that is asked for: work on a block is long enough to let the
/// processor's own reading ahead stop.
pub(super) const AHEAD: usize = 4;
/// A count of one in the upper half of a bin, above the sum of fractions.
const ONE: u64 = 1 << 40;

/// Moves `centroids`, which ascend, `iterations` times to the means of the `values` that are nearest to them; stops
/// where nothing moves any more. Returns how many iterations moved something. The same for any number of threads.
///
/// ```
/// use trimnet::kernel::Pool;
/// use trimnet::quantize::{assign_nearest, lloyd};
///
/// let values = [0.0f32, 1.0, 2.0, 10.0, 11.0];
/// let mut centroids = [0.0, 11.0];
/// lloyd(&values, &mut centroids, 10, &Pool::single())?;
/// assert_eq!(centroids, [1.0, 10.5]);
/// let mut codes = [0; 5];
/// assign_nearest(&values, &centroids, &mut codes, &Pool::single())?;
/// assert_eq!(codes, [0, 0, 0, 1, 1]);
/// # Ok::<(), trimnet::Error>(())
/// ```
///
/// # Errors
/// [`Error::Empty`] without centroids, [`Error::NotFinite`] for NaN or infinity, [`Error::Unsupported`] if the centroids do
/// not ascend.
pub fn lloyd<F: Float>(values: &[F], centroids: &mut [F], iterations: usize, pool: &Pool) -> Result<usize> {
    check_centroids(centroids)?;
    let Some(e) = extremes(values, pool) else {
        return check_finite("values", &values.into()).map(|()| 0);
    };
    if e.finite < values.len() as u64 {
        check_finite("values", &values.into())?;
    }
    let sums: Box<dyn Sums> = match values.len() <= SORTED {
        true => Box::new(Sorted::new(values)),
        false => Box::new(Histogram::new(values, e.min, e.max, pool)),
    };
    for iteration in 0..iterations {
        let mut moved = false;
        let mut from = sums.none();
        for j in 0..centroids.len() {
            let to = match centroids.get(j + 1) {
                Some(&next) => sums.up_to(middle(centroids[j], next)),
                None => sums.all(),
            };
            if to.0 > from.0 {
                let mean = F::of(sums.mean(from, to));
                moved |= mean != centroids[j];
                // Its boundaries were found before it moved.
                centroids[j] = mean;
            }
            from = to;
        }
        // Rounding may push the mean of equal numbers past that of its neighbour.
        centroids.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        if !moved {
            return Ok(iteration);
        }
    }
    Ok(iterations)
}

/// The middle of two numbers, to the digits of `f64`.
fn middle<F: Float>(a: F, b: F) -> f64 {
    0.5 * a.as_f64() + 0.5 * b.as_f64()
}

pub(super) fn check_centroids<F: Float>(centroids: &[F]) -> Result<()> {
    if centroids.is_empty() {
        return Err(Error::Empty { what: "centroids" });
    }
    check_finite("centroids", &centroids.into())?;
    match centroids.windows(2).position(|pair| pair[0] > pair[1]) {
        None => Ok(()),
        Some(j) => Err(Error::Unsupported {
            what: "centroids",
            reason: format!(
                "{} at {j} is followed by {}; they have to ascend",
                centroids[j],
                centroids[j + 1]
            ),
        }),
    }
}

/// Count and running sum of the numbers that are not above a boundary.
trait Sums {
    /// Before the first number.
    fn none(&self) -> (f64, f64);

    fn up_to(&self, boundary: f64) -> (f64, f64);

    fn all(&self) -> (f64, f64);

    /// The mean of the numbers between two boundaries, at least one; never outside of them.
    fn mean(&self, from: (f64, f64), to: (f64, f64)) -> f64;
}

/// A power of two, by which `n` numbers up to `amax` in size have a finite sum: 1 for all but those near the end of `f64`.
fn unit(amax: f64, n: usize) -> f64 {
    if (amax * 4.0 * n as f64).is_finite() { 1.0 } else { 1.0 / (1u128 << 66) as f64 }
}

/// The numbers in order, and their running sums.
struct Sorted {
    values: Vec<f64>,
    /// One more than numbers, times `unit`. They start at the first number that is not negative and go both ways: so none holds
    /// a number that is larger than those beside it, whose digits it would swallow.
    sums: Vec<f64>,
    unit: f64,
}

impl Sorted {
    fn new<F: Float>(values: &[F]) -> Self {
        let mut values: Vec<f64> = values.iter().map(|x| x.as_f64()).collect();
        values.sort_unstable_by(f64::total_cmp);
        let ends = values.first().into_iter().chain(values.last());
        let unit = unit(ends.fold(0.0, |amax: f64, x| amax.max(x.abs())), values.len());
        let start = values.partition_point(|&x| x < 0.0);
        let mut sums = vec![0.0; values.len() + 1];
        for i in (0..start).rev() {
            sums[i] = sums[i + 1] - values[i] * unit;
        }
        for i in start..values.len() {
            sums[i + 1] = sums[i] + values[i] * unit;
        }
        Self { values, sums, unit }
    }

    fn before(&self, n: usize) -> (f64, f64) {
        (n as f64, self.sums[n])
    }
}

impl Sums for Sorted {
    fn none(&self) -> (f64, f64) {
        self.before(0)
    }

    fn up_to(&self, boundary: f64) -> (f64, f64) {
        self.before(self.values.partition_point(|&x| x <= boundary))
    }

    fn all(&self) -> (f64, f64) {
        self.before(self.values.len())
    }

    fn mean(&self, from: (f64, f64), to: (f64, f64)) -> f64 {
        let (first, last) = (self.values[from.0 as usize], self.values[to.0 as usize - 1]);
        ((to.1 - from.1) / (to.0 - from.0) / self.unit).max(first).min(last)
    }
}

/// The numbers in bins of equal width.
struct Histogram {
    /// By which everything else is multiplied.
    unit: f64,
    min: f64,
    max: f64,
    width: f64,
    /// Count and sum of each bin.
    bins: Vec<(f64, f64)>,
    /// Counts and sums of all bins before, and behind the last one of all.
    before: Vec<(f64, f64)>,
}

impl Histogram {
    fn new<F: Float>(values: &[F], min: F, max: F, pool: &Pool) -> Self {
        let width = (max.as_f64() * 0.5 - min.as_f64() * 0.5) * (2.0 / BINS as f64);
        let steps = f64::from(1u32 << FRACTION);
        // Of a range that is nothing, or whose reciprocal is beyond the numbers, everything falls into the first bin.
        let per_unit = match steps / width {
            s if s.is_finite() && F::of(s).is_finite() => F::of(s),
            _ => F::zero(),
        };
        let part = values.len().div_ceil(pool.threads());
        let mut found = vec![vec![(0u64, 0u64); BINS]; values.len().div_ceil(part)];
        let isa = Isa::best();
        pool.each(found.iter_mut().zip(values.chunks(part)), |(bins, values)| {
            match (max - min).is_finite() {
                true => with(isa, Count::<F, false> { values, min, per_unit, bins }),
                false => with(isa, Count::<F, true> { values, min, per_unit, bins }),
            }
        });
        let mut counts = vec![(0u64, 0u64); BINS];
        for found in &found {
            counts.iter_mut().zip(found).for_each(|(to, part)| *to = (to.0 + part.0, to.1 + part.1));
        }
        let unit = unit(min.as_f64().abs().max(max.as_f64().abs()), values.len());
        let (min, max, width) = (min.as_f64() * unit, max.as_f64() * unit, width * unit);
        // Half a step up, because fractions were cut.
        let sum = |(i, &(n, fractions)): (usize, &(u64, u64))| {
            let n_real = n as f64;
            let offset = n_real * i as f64 + (fractions as f64 + 0.5 * n_real) / steps;
            (n_real, n_real * min + offset * width)
        };
        let bins: Vec<_> = counts.iter().enumerate().map(sum).collect();
        let mut before = vec![(0.0, 0.0)];
        before.extend(bins.iter().scan((0.0, 0.0), |(count, sum), bin| {
            (*count, *sum) = (*count + bin.0, *sum + bin.1);
            Some((*count, *sum))
        }));
        Self { unit, min, max, width, bins, before }
    }
}

impl Sums for Histogram {
    fn none(&self) -> (f64, f64) {
        self.before[0]
    }

    fn up_to(&self, boundary: f64) -> (f64, f64) {
        let boundary = boundary * self.unit;
        let at = (boundary - self.min) / self.width;
        if at.is_nan() || at <= 0.0 {
            return if boundary < self.min {
                (0.0, 0.0)
            } else {
                self.before[usize::from(self.width == 0.0)]
            };
        }
        if at >= BINS as f64 {
            return self.all();
        }
        let (bin, share) = (at as usize, at.fract());
        let ((count, sum), (n, total)) = (self.before[bin], self.bins[bin]);
        if n == 0.0 {
            return (count, sum);
        }
        // Evenly filled about its mean: the part below the boundary lies as far below the mean as the rest above it.
        let below = n * share;
        let mean = total / n - 0.5 * (1.0 - share) * self.width;
        (count + below, sum + below * mean)
    }

    fn all(&self) -> (f64, f64) {
        self.before[BINS]
    }

    fn mean(&self, from: (f64, f64), to: (f64, f64)) -> f64 {
        ((to.1 - from.1) / (to.0 - from.0)).max(self.min).min(self.max) / self.unit
    }
}

/// Adds count and sum of fractions of each bin; `WIDE` where the range overflows the type.
struct Count<'a, F, const WIDE: bool> {
    values: &'a [F],
    min: F,
    /// Steps of a fraction in one unit.
    per_unit: F,
    bins: &'a mut [(u64, u64)],
}

impl<F: Float, const WIDE: bool> Work for Count<'_, F, WIDE> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // Few, which leave the first-level cache to the bins.
        const CHUNK: usize = 128;
        const LAST: i32 = ((BINS as u32) << FRACTION) as i32 - 1;
        let Self { values, min, per_unit, bins } = self;
        let (half, two) = (F::of(0.5), F::of(2.0));
        let step = |x: F| match WIDE {
            false => ((x - min) * per_unit).index(LAST) as u32,
            true => ((x * half - min * half) * (per_unit * two)).index(LAST) as u32,
        };
        // What a number adds, and where.
        let part = |step: u32| ONE + u64::from(step & ((1 << FRACTION) - 1));
        let mut table = [0u64; BINS];
        let (mut places, mut parts) = ([0u32; CHUNK], [0u64; CHUNK]);
        for batch in values.chunks(BATCH) {
            let (chunks, rest) = batch.as_chunks::<CHUNK>();
            for (at, values) in chunks.iter().enumerate() {
                chunks.get(at + AHEAD).inspect(|soon| fetch(*soon));
                // Both by vectors, so that one addition for each number is left.
                for i in 0..CHUNK {
                    let step = step(values[i]);
                    (places[i], parts[i]) = (step >> FRACTION, part(step));
                }
                for i in 0..CHUNK {
                    table[places[i] as usize % BINS] += parts[i];
                }
            }
            for &x in rest {
                table[(step(x) >> FRACTION) as usize % BINS] += part(step(x));
            }
            for (bin, sum) in bins.iter_mut().zip(&mut table) {
                *bin = (bin.0 + *sum / ONE, bin.1 + *sum % ONE);
                *sum = 0;
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::quantize::nearest::assign_nearest;

    pub(in crate::quantize) fn values(n: u32) -> Vec<f32> {
        (0..n)
            .map(|i| (f64::from(i) * 0.618_034).fract() as f32)
            .map(|u| u - 0.5 + (u - 0.5).powi(3) * 4.0)
            .collect()
    }

    pub(in crate::quantize) fn spaced(k: usize) -> Vec<f32> {
        (0..k).map(|j| -1.0 + 2.0 * j as f32 / (k - 1).max(1) as f32).collect()
    }

    #[test]
    fn bins_lead_to_the_centroids_of_all_values() {
        let values = values(100_000);
        for k in [2, 5, 16, 64] {
            let (mut binned, mut exact) = (spaced(k), spaced(k));
            lloyd(&values, &mut binned, 10, &Pool::single()).unwrap();
            for _ in 0..10 {
                let mut codes = vec![0; values.len()];
                assign_nearest(&values, &exact, &mut codes, &Pool::single()).unwrap();
                for (j, c) in exact.iter_mut().enumerate() {
                    let mine = values.iter().zip(&codes).filter(|(_, code)| usize::from(**code) == j);
                    let (n, sum) = mine.fold((0, 0.0), |(n, sum), (&x, _)| (n + 1, sum + f64::from(x)));
                    *c = if n > 0 { (sum / f64::from(n)) as f32 } else { *c };
                }
            }
            for (a, b) in binned.iter().zip(&exact) {
                assert!((a - b).abs() < 1e-4, "{k}: {a} {b}");
            }
            let mut threads = spaced(k);
            lloyd(&values, &mut threads, 10, &Pool::new(3)).unwrap();
            assert_eq!(threads, binned);
        }
    }

    #[test]
    fn stops_when_nothing_moves_and_keeps_empty_clusters() {
        let mut centroids = [0.0, 5.0, 11.0];
        let moved = lloyd(&[0.0f64, 1.0, 10.0, 12.0], &mut centroids, 100, &Pool::single()).unwrap();
        assert_eq!((centroids, moved), ([0.5, 5.0, 11.0], 1));
        for n in [1, 100_000] {
            let mut one = [3.0f32, 4.0];
            lloyd(&vec![7.0; n], &mut one, 5, &Pool::single()).unwrap();
            assert_eq!(one, [3.0, 7.0]);
        }
        assert_eq!(lloyd::<f32>(&[], &mut [1.0], 5, &Pool::single()).unwrap(), 0);
    }

    #[test]
    fn large_numbers_do_not_swallow_the_means_of_small_ones() {
        let moved = |values: &[f32], mut centroids: Vec<f32>| {
            lloyd(values, &mut centroids, 10, &Pool::single()).unwrap();
            centroids
        };
        assert_eq!(moved(&[-1e20, 1.0, 2.0, 3.0], vec![-1e20, 1.0]), [-1e20, 2.0]);
        assert_eq!(moved(&[-3.0, -2.0, -1.0, 1e20], vec![-1.0, 1e20]), [-2.0, 1e20]);
        assert_eq!(moved(&[-1e20, -1.0, 0.5, 1e20], vec![-1e20, 0.0, 1e20]), [-1e20, -0.25, 1e20]);
    }

    #[test]
    fn centroids_of_finite_numbers_are_finite_means() {
        let (mut two, pool) = ([0.0], Pool::single());
        lloyd(&[1e308, 1e308], &mut two, 10, &pool).unwrap();
        assert_eq!(two, [1e308]);
        // Evenly from one end to the other: two halves.
        let even = |amax: f64| (0..70_000).map(move |i| amax * (f64::from(i) / 69_999.0 * 2.0 - 1.0));
        let values: Vec<f32> = even(3e38).map(|x| x as f32).collect();
        let mut centroids = [-1e38f32, 1e38];
        lloyd(&values, &mut centroids, 50, &pool).unwrap();
        assert!(centroids.iter().all(|c| (c.abs() / 1.5e38 - 1.0).abs() < 1e-3), "{centroids:?}");
        let values: Vec<f64> = even(1.7e308).collect();
        let mut centroids = [-1e307, 1e307];
        lloyd(&values, &mut centroids, 50, &pool).unwrap();
        assert!(centroids.iter().all(|c| (c.abs() / 8.5e307 - 1.0).abs() < 1e-3), "{centroids:?}");
    }

    #[test]
    fn refuses_what_has_no_order() {
        let pool = Pool::single();
        assert!(lloyd(&[1.0], &mut [], 1, &pool).is_err());
        assert!(lloyd(&[1.0], &mut [2.0, 1.0], 1, &pool).is_err());
        assert!(lloyd(&[1.0], &mut [f64::NAN], 1, &pool).is_err());
        assert!(lloyd(&[1.0, f64::NAN], &mut [1.0], 1, &pool).is_err());
        assert!(lloyd(&[f64::INFINITY], &mut [1.0], 1, &pool).is_err());
    }
}
