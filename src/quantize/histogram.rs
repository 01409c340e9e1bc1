//! A histogram that grows: 2,048 bins whose width is a power of two, doubled whenever a value falls outside.
//!
//! ```text
//! bin of x = floor(x / width)      in -1024 .. 1024      width = 2^e
//! ```
//!
//! Doubling the width adds neighbouring bins, and `floor(floor(x / w) / 2) = floor(x / 2w)` exactly: the counts depend
//! neither on the order of the values, nor on batches, nor on shards that were merged. Memory is constant (16 KiB).
//!
//! From the counts come two ranges: a percentile, and the range of least squared quantization error.

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Isa, PART, Pool, Work, fetch, with};

use super::params::Range;
#[cfg(feature = "serde")]
use super::range::check_seen;
use super::range::{Observer, Scan};
use super::scheme::Scheme;
use super::search::{RangeSearch, search};

const HALF: usize = 1024;
const BINS: usize = 2 * HALF;

/// Counts values in bins of equal width, whatever their size turns out to be.
///
/// ```
/// use trimnet::quantize::{HistogramObserver, Observer, Tails};
/// let mut observer = HistogramObserver::default();
/// observer.observe(&(0..1000).map(|i| i as f32 / 1000.0).collect::<Vec<_>>());
/// observer.observe(&[50.0]); // one outlier
/// let range = observer.percentile(99.0, Tails::Both)?;
/// assert!(range.max() < 1.01);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "serde",
    serde(
        try_from = "Parts<F>",
        into = "Parts<F>",
        bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"
    )
)]
pub struct HistogramObserver<F> {
    /// log2 of the bin width.
    exponent: i32,
    counts: Vec<u64>,
    seen: Option<(F, F)>,
    skipped: u64,
}

/// The serialized form, checked when it is read.
#[cfg(feature = "serde")]
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Parts<F> {
    exponent: i32,
    counts: Vec<u64>,
    seen: Option<(F, F)>,
    skipped: u64,
}

#[cfg(feature = "serde")]
impl<F> From<HistogramObserver<F>> for Parts<F> {
    fn from(h: HistogramObserver<F>) -> Self {
        Self { exponent: h.exponent, counts: h.counts, seen: h.seen, skipped: h.skipped }
    }
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<Parts<F>> for HistogramObserver<F> {
    type Error = Error;

    fn try_from(p: Parts<F>) -> Result<Self> {
        crate::float::check_shape("counts", &[p.counts.len()], &[BINS])?;
        check_seen(p.seen, total(&p.counts))?;
        let amax = p.seen.map_or(F::zero(), |(min, max)| min.abs().max(max.abs()));
        if !(smallest_exponent(amax)..=LARGEST).contains(&p.exponent) {
            return Err(Error::Unsupported {
                what: "histogram",
                reason: "bins do not cover the values seen".into(),
            });
        }
        Ok(Self { exponent: p.exponent, counts: p.counts, seen: p.seen, skipped: p.skipped })
    }
}

/// Which ends of the distribution a percentile cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Tails {
    /// One threshold on `|x|`: the range is `(-t, t)`.
    Symmetric,
    /// Half of the rest is cut from each side.
    Both,
}

/// Wide enough for `f64::MAX`, and no wider: `width * HALF` stays below 2^1025.
#[cfg(feature = "serde")]
const LARGEST: i32 = 1015;
/// Fine enough for the smallest subnormal `f64`.
const SMALLEST: i32 = -1074;

/// The smallest exponent whose bins cover `-amax..=amax`: `amax < 2^exponent * HALF`.
fn smallest_exponent<F: Float>(amax: F) -> i32 {
    let amax = amax.as_f64();
    if amax == 0.0 {
        return SMALLEST;
    }
    // 2^(k-1) <= amax < 2^k, from the bits, because log2 rounds.
    let bits = amax.to_bits();
    let k = match (bits >> 52) as i32 {
        0 => (64 - bits.leading_zeros() as i32) - 1074,
        biased => biased - 1022,
    };
    (k - 10).max(SMALLEST)
}

/// `2^e` for exponents that may be subnormal.
fn power_of_two(e: i32) -> f64 {
    if e >= -1022 { f64::from_bits(((e + 1023) as u64) << 52) } else { f64::from_bits(1 << (e + 1074)) }
}

impl<F> Default for HistogramObserver<F> {
    fn default() -> Self {
        Self { exponent: SMALLEST, counts: vec![0; BINS], seen: None, skipped: 0 }
    }
}

impl<F: Float> HistogramObserver<F> {
    /// Width of a bin, a power of two.
    pub fn bin_width(&self) -> f64 {
        power_of_two(self.exponent)
    }

    /// The counts; bin `i` holds values in `[(i - 1024) * width, (i - 1023) * width)`.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Takes in everything that `other` saw.
    pub fn merge(&mut self, other: &Self) {
        self.grow(other.exponent);
        let mut theirs = other.clone();
        theirs.grow(self.exponent);
        for (mine, theirs) in self.counts.iter_mut().zip(&theirs.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        if let Some((min, max)) = other.seen {
            self.widen(min, max);
        }
        self.skipped = self.skipped.saturating_add(other.skipped);
    }

    /// The range that holds `percentile` percent of the values, never wider than what was seen.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 < percentile <= 100`; [`Error::Empty`] if no finite number was seen.
    pub fn percentile(&self, percentile: f64, tails: Tails) -> Result<Range<F>> {
        check_percentile(percentile)?;
        let seen = self.range()?;
        let width = self.bin_width();
        let total = self.count() as f64;
        // The outer edge of the bin in which the cumulated share of `counts` reaches `share`.
        let reach = |counts: &mut dyn Iterator<Item = u64>, share: f64| {
            let mut sum = 0_u64;
            for (bin, n) in counts.enumerate() {
                sum = sum.saturating_add(n);
                if sum as f64 >= share * total && sum > 0 {
                    return bin as f64 + 1.0;
                }
            }
            BINS as f64
        };
        let (low, high) = match tails {
            Tails::Symmetric => {
                let (negative, positive) = self.counts.split_at(HALF);
                let mut folded =
                    positive.iter().zip(negative.iter().rev()).map(|(a, b)| a.saturating_add(*b));
                let t = reach(&mut folded, percentile / 100.0) * width;
                (-t, t)
            }
            Tails::Both => {
                let share = 1.0 - (100.0 - percentile) / 200.0;
                let high = reach(&mut self.counts.iter().copied(), share) - HALF as f64;
                let low = HALF as f64 - reach(&mut self.counts.iter().rev().copied(), share);
                (low * width, high * width)
            }
        };
        seen.cut(F::of(low), F::of(high))
    }

    /// The range whose quantization under `scheme` has the least squared error, each bin standing at its centre:
    /// shrinks both ends of the seen range together by `1 - i / 100`, `i = 0..80`, first strict minimum.
    ///
    /// # Errors
    /// [`Error::Empty`] if no finite number was seen.
    pub fn least_squares(&self, scheme: &Scheme) -> Result<RangeSearch<F>> {
        let width = self.bin_width();
        let centres: Vec<(F, f64)> = (0..BINS)
            .filter(|&i| self.counts[i] > 0)
            .map(|i| (F::of((i as f64 - HALF as f64 + 0.5) * width), self.counts[i] as f64))
            .collect();
        let (values, counts): (Vec<F>, Vec<f64>) = centres.into_iter().unzip();
        search(self.range()?, scheme, |params, unit| {
            let codes = scheme.quantize(&values, params)?;
            let error = |(&code, (&x, n)): (&i32, (&F, &f64))| {
                ((params.dequantize(code) - x).as_f64() / unit).powi(2) * n
            };
            Ok(codes.iter().zip(values.iter().zip(&counts)).map(error).sum())
        })
    }

    fn grow(&mut self, exponent: i32) {
        if exponent <= self.exponent {
            return;
        }
        let shift = (exponent - self.exponent).min(63) as u32;
        let mut wider = vec![0_u64; BINS];
        for (i, &n) in self.counts.iter().enumerate() {
            let bin = (i as i64 - HALF as i64) >> shift;
            let wide = &mut wider[(bin + HALF as i64) as usize];
            *wide = wide.saturating_add(n);
        }
        self.counts = wider;
        self.exponent = exponent;
    }

    fn widen(&mut self, min: F, max: F) {
        self.seen = Some(self.seen.map_or((min, max), |(a, b)| (a.min(min), b.max(max))));
    }
}

/// Values that are looked at and counted together: the nearest cache, if it is of 48 KB, holds those of `f32` beside the tables.
const BLOCK: usize = 4096;
/// Blocks that are counted before 16 bits could overflow.
const BLOCKS: usize = u16::MAX as usize / (BLOCK / TABLES + TABLES);
/// Tables side by side: a value that repeats would wait for its own count otherwise.
const TABLES: usize = 4;
/// Numbers that are 0, half of the outputs of a ReLU, are counted in places behind the bins, in turns: in one place each would
/// wait for the one before even so.
const ZEROS: usize = 32;
/// Places of a table, a power of two, so that a remainder keeps them apart without a check.
const PLACES: usize = (BINS + ZEROS).next_power_of_two();

/// Counts of one thread, in 16 bits, of which the nearest cache holds all, until they are added to an observer.
struct Tables {
    counts: Box<[[u16; PLACES]; TABLES]>,
    bins: Box<[u16; BLOCK]>,
    /// How many blocks were counted.
    blocks: usize,
}

impl Tables {
    fn new() -> Self {
        Self { counts: Box::new([[0; PLACES]; TABLES]), bins: Box::new([0; BLOCK]), blocks: 0 }
    }

    /// Moves the counts to `total`.
    fn flush(&mut self, total: &mut [u64]) {
        for table in self.counts.iter_mut() {
            let zeros: u64 = table[BINS..][..ZEROS].iter().map(|&n| u64::from(n)).sum();
            total[HALF] = total[HALF].saturating_add(zeros);
            total.iter_mut().zip(&*table).for_each(|(total, &n)| *total = total.saturating_add(n.into()));
            table[..BINS + ZEROS].fill(0);
        }
        self.blocks = 0;
    }
}

/// Adds the values of one block, all of them finite, to `tables`.
struct Count<'a, F> {
    values: &'a [F],
    /// The two factors whose product is `1 / width`.
    scales: (F, F),
    tables: &'a mut Tables,
    /// The block after this one: memory brings it while this one is counted.
    next: &'a [F],
}

impl<F: Float> Work for Count<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { values, scales: (a, b), tables, next } = self;
        let (counts, bins) = (&mut *tables.counts, &mut tables.bins[..values.len()]);
        for (i, (bin, &v)) in bins.iter_mut().zip(values).enumerate() {
            let floor = (v * a * b).floor();
            // A product too small for the type still lies below zero.
            let floor = if v < F::zero() { floor.min(-F::one()) } else { floor };
            let own = (floor.small_int() + HALF as i32) as u16;
            *bin = if v == F::zero() { (BINS + i % ZEROS) as u16 } else { own };
        }
        let mut next = next.chunks(4 * TABLES);
        for some in bins.chunks(4 * TABLES) {
            fetch(next.next().unwrap_or_default());
            let (fours, rest) = some.as_chunks::<TABLES>();
            for four in fours {
                for i in 0..TABLES {
                    counts[i][usize::from(four[i]) % PLACES] += 1;
                }
            }
            for &bin in rest {
                counts[0][usize::from(bin) % PLACES] += 1;
            }
        }
    }
}

impl<F: Float> HistogramObserver<F> {
    /// Takes in one batch of values, on all threads of `pool`: the same result for any number of them.
    pub fn observe_on(&mut self, values: &[F], pool: &Pool) {
        if pool.threads() == 1 || values.len() < 2 * PART {
            return self.see(values);
        }
        let part = values.len().div_ceil(pool.threads());
        let mut parts = vec![Self::default(); values.len().div_ceil(part)];
        pool.each(parts.iter_mut().zip(values.chunks(part)), |(observer, values)| observer.see(values));
        parts.iter().for_each(|part| self.merge(part));
    }

    fn see(&mut self, values: &[F]) {
        let (isa, mut tables) = (Isa::best(), Tables::new());
        let mut finite = Vec::new();
        let mut blocks = values.chunks(BLOCK).peekable();
        while let Some(block) = blocks.next() {
            let found = with(isa, Scan { isa, values: block });
            self.skipped = self.skipped.saturating_add(block.len() as u64 - found.finite);
            if found.finite == 0 {
                continue;
            }
            self.widen(found.min, found.max);
            let exponent = smallest_exponent(found.min.abs().max(found.max.abs()));
            if exponent > self.exponent || tables.blocks == BLOCKS {
                tables.flush(&mut self.counts);
                self.grow(exponent);
            }
            let mut values = block;
            if found.finite < block.len() as u64 {
                finite.clear();
                finite.extend(block.iter().copied().filter(|v| v.is_finite()));
                values = &finite;
            }
            // Two steps, because the reciprocal of the smallest widths is beyond the type; of zeros alone both are.
            let factor = |e| F::of(power_of_two(e)).min(F::max_value());
            let (a, b) = (-self.exponent / 2, -self.exponent - -self.exponent / 2);
            let (scales, next) = ((factor(a), factor(b)), blocks.peek().copied().unwrap_or_default());
            with(isa, Count { values, scales, tables: &mut tables, next });
            tables.blocks += 1;
        }
        tables.flush(&mut self.counts);
    }
}

impl<F: Float> Observer<F> for HistogramObserver<F> {
    fn observe(&mut self, values: &[F]) {
        self.observe_on(values, &Pool::single());
    }

    /// The smallest and largest value seen.
    fn range(&self) -> Result<Range<F>> {
        let (min, max) = self.seen.ok_or(Error::Empty { what: "the observed data" })?;
        Range::new(min, max)
    }

    fn count(&self) -> u64 {
        total(&self.counts)
    }

    fn skipped(&self) -> u64 {
        self.skipped
    }
}

fn total(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, &n| sum.saturating_add(n))
}

pub(super) fn check_percentile(percentile: f64) -> Result<()> {
    if !(percentile > 0.0 && percentile <= 100.0) {
        return Err(Error::OutOfRange {
            name: "percentile",
            value: percentile,
            range: "0 < percentile <= 100",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn observed(batches: &[Vec<f64>]) -> HistogramObserver<f64> {
        let mut observer = HistogramObserver::default();
        batches.iter().for_each(|batch| observer.observe(batch));
        observer
    }

    #[test]
    fn a_number_that_repeats_is_counted_as_often_as_it_came() {
        // More than 16 bits hold, in one place or in those of zeros; and the ends of blocks.
        for x in [0.0f32, -0.0, 0.75, -0.75] {
            for n in [1, 5, BLOCK - 1, BLOCK + 3, 300_001] {
                let mut observer = HistogramObserver::default();
                observer.observe_on(&vec![x; n], &Pool::single());
                observer.observe_on(&[1.0], &Pool::single());
                let bin = (f64::from(x) / observer.bin_width()).floor() + HALF as f64;
                let (bin, counted) = (bin as usize, n as u64);
                assert_eq!(observer.counts[bin], counted, "{x} {n} times");
                assert_eq!(observer.count(), counted + 1);
            }
        }
    }

    proptest! {
        #[test]
        fn order_batches_and_shards_do_not_matter(
            values in prop::collection::vec(prop_oneof![-1e3..1e3, -1e-3..1e-3, Just(0.0), Just(1e300), Just(5e-324), Just(-5e-324)], 1..200),
            cut in 0_usize..200,
        ) {
            let whole = observed(std::slice::from_ref(&values));
            let cut = cut.min(values.len());
            let mut backwards: Vec<f64> = values.clone();
            backwards.reverse();
            prop_assert_eq!(&observed(&[backwards]), &whole);
            prop_assert_eq!(&observed(&[values[..cut].to_vec(), values[cut..].to_vec()]), &whole);
            let mut a = observed(&[values[..cut].to_vec()]);
            a.merge(&observed(&[values[cut..].to_vec()]));
            prop_assert_eq!(&a, &whole);
            prop_assert_eq!(whole.count(), values.len() as u64);
        }

        #[test]
        fn every_range_lies_within_what_was_seen(
            values in prop::collection::vec(-1e6_f32..1e6, 1..100), percentile in 0.001..=100.0_f64,
        ) {
            let mut observer = HistogramObserver::default();
            observer.observe(&values);
            let seen = observer.range().unwrap();
            for tails in [Tails::Symmetric, Tails::Both] {
                let range = observer.percentile(percentile, tails).unwrap();
                prop_assert!(range.min() >= seen.min() && range.max() <= seen.max());
            }
            let whole = observer.percentile(100.0, Tails::Both).unwrap();
            prop_assert_eq!(whole, seen);
            let found = observer.least_squares(&Scheme::uint8_affine()).unwrap();
            prop_assert!(Scheme::uint8_affine().params(found.range).scale > 0.0);
        }
    }

    #[test]
    fn bins_hold_what_they_say() {
        let observer = observed(&[vec![-1.0, -0.5, 0.0, 0.75, 1023.5]]);
        assert_eq!(observer.bin_width(), 1.0);
        for (bin, n) in [(HALF - 1, 2), (HALF, 2), (HALF + 1023, 1)] {
            assert_eq!(observer.counts()[bin], n, "bin {bin}");
        }
    }

    #[test]
    fn threads_count_the_same() {
        let mut values: Vec<f64> = (0..300_000).map(|i| (f64::from(i) * 0.1).sin() * 3.0).collect();
        for skip in [0, 1] {
            let (mut one, mut three) = (HistogramObserver::default(), HistogramObserver::default());
            one.observe(&values);
            three.observe_on(&values, &Pool::new(3));
            assert_eq!(one, three);
            assert_eq!((one.count(), one.skipped()), (300_000 - skip, skip));
            let width = one.bin_width();
            let mut counts = [0; BINS];
            for v in values.iter().filter(|v| v.is_finite()) {
                counts[((v / width).floor() + HALF as f64) as usize] += 1;
            }
            assert_eq!(one.counts(), counts);
            values[77_777] = f64::NAN;
        }
    }

    #[test]
    fn one_outlier_does_not_stretch_the_percentile() {
        let mut values: Vec<f64> = (-1000..=1000).map(|i| f64::from(i) / 1000.0).collect();
        values.push(12.0);
        let observer = observed(&[values]);
        let symmetric = observer.percentile(99.9, Tails::Symmetric).unwrap();
        assert!(symmetric.max() > 0.98 && symmetric.max() < 1.02, "{symmetric:?}");
        assert!(observer.percentile(99.9, Tails::Both).unwrap().max() < 1.02);
    }

    #[test]
    fn the_extremes_of_the_type_fit() {
        let observer = observed(&[vec![f64::MAX, f64::MIN, 5e-324, f64::NAN, f64::INFINITY]]);
        assert_eq!((observer.count(), observer.skipped()), (3, 2));
        assert_eq!(observer.percentile(100.0, Tails::Both).unwrap(), Range::new(f64::MIN, f64::MAX).unwrap());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_file_cannot_hold_a_histogram_that_nobody_saw() {
        let observer = observed(&[vec![-1.0, 2.0, 2.0]]);
        let good = serde_json::to_value(&observer).unwrap();
        let read = |value| serde_json::from_value::<HistogramObserver<f64>>(value);
        assert_eq!(read(good.clone()).unwrap(), observer);
        for (place, value) in [("/seen", "[2.0, -1.0]"), ("/seen", "null"), ("/exponent", "-20")] {
            let mut bad = good.clone();
            *bad.pointer_mut(place).unwrap() = serde_json::from_str(value).unwrap();
            assert!(read(bad).is_err(), "{place} = {value}");
        }
        let mut many = good;
        many["counts"][HALF + 600] = u64::MAX.into();
        many["skipped"] = u64::MAX.into();
        let mut many = read(many).unwrap();
        many.merge(&many.clone());
        many.observe(&[2.0, f64::NAN]);
        assert_eq!((many.count(), many.skipped()), (u64::MAX, u64::MAX));
        assert!(many.percentile(50.0, Tails::Symmetric).is_ok());
    }

    #[test]
    fn nothing_seen_and_percentiles_out_of_range_are_errors() {
        let empty = HistogramObserver::<f32>::default();
        assert!(matches!(empty.percentile(99.0, Tails::Both), Err(Error::Empty { .. })));
        assert!(empty.least_squares(&Scheme::default()).is_err());
        for p in [0.0, -1.0, 100.1, f64::NAN] {
            assert!(matches!(
                observed(&[vec![1.0]]).percentile(p, Tails::Both),
                Err(Error::OutOfRange { .. })
            ));
        }
    }
}
