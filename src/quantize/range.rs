//! Observers: which values does a tensor take, in constant memory, over any number of batches?
//!
//! NaN and infinity are skipped and counted, never learnt. An observer that saw no finite number has no range: an
//! error, not a guess. Two observers of the same kind merge, so shards may be observed apart; [`MinMaxObserver`] and
//! [`HistogramObserver`](super::HistogramObserver) give the same result for every split and order.

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Isa, PART, Pool, Streams, Work, fetch_ahead, in_turns, with};

use super::params::Range;

/// Watches values go by and says which range to quantize.
pub trait Observer<F: Float> {
    /// Takes in one batch of values of any length.
    fn observe(&mut self, values: &[F]);

    /// The range of what was seen.
    ///
    /// # Errors
    /// [`Error::Empty`] if no finite number was seen.
    fn range(&self) -> Result<Range<F>>;

    /// Finite numbers seen.
    fn count(&self) -> u64;

    /// Numbers skipped because they were NaN or infinite.
    fn skipped(&self) -> u64;
}

/// Refuses what no data can have left in an observer.
#[cfg(feature = "serde")]
pub(super) fn check_seen<F: Float>(seen: Option<(F, F)>, count: u64) -> Result<()> {
    match seen {
        Some((min, max)) if count > 0 => Range::new(min, max).map(drop),
        None if count == 0 => Ok(()),
        _ => Err(Error::Unsupported {
            what: "an observer",
            reason: format!("{count} values were counted, and the range of them is {seen:?}"),
        }),
    }
}

/// Smallest, largest and number of the finite values of one batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Extremes<F> {
    pub(super) min: F,
    pub(super) max: F,
    pub(super) finite: u64,
}

/// The extremes of the finite values, or `None` if there are none.
pub(super) fn extremes<F: Float>(values: &[F], pool: &Pool) -> Option<Extremes<F>> {
    let isa = Isa::best();
    if pool.threads() == 1 {
        return with(isa, Scan { isa, values }).some();
    }
    let mut found = vec![Extremes::none(); values.len().div_ceil(PART)];
    pool.each(found.iter_mut().zip(values.chunks(PART)), |(to, part)| {
        *to = with(isa, Scan { isa, values: part })
    });
    found.into_iter().fold(Extremes::none(), Extremes::join).some()
}

impl<F: Float> Extremes<F> {
    fn none() -> Self {
        Self { min: F::infinity(), max: F::neg_infinity(), finite: 0 }
    }

    fn join(self, other: Self) -> Self {
        let (min, max) = (self.min.min(other.min), self.max.max(other.max));
        Self { min, max, finite: self.finite + other.finite }
    }

    fn some(self) -> Option<Self> {
        (self.finite > 0).then_some(self)
    }
}

/// The extremes of a slice.
pub(super) struct Scan<'a, F> {
    pub(super) isa: Isa,
    pub(super) values: &'a [F],
}

impl<F: Float> Work for Scan<'_, F> {
    type Output = Extremes<F>;

    #[inline(always)]
    fn run(self) -> Extremes<F> {
        const LANES: usize = 32;
        const BLOCK: usize = 512 * LANES;
        const AHEAD_BYTES: usize = 8192;
        let streams = self.isa.streams();
        let mut all = Extremes::none();
        for block in self.values.chunks(BLOCK) {
            // Most blocks are finite as a whole: then two comparisons are enough.
            let (lanes, rest) = block.as_chunks::<LANES>();
            let (mut min, mut max) = ([F::infinity(); LANES], [F::neg_infinity(); LANES]);
            let mut sums = [F::zero(); LANES];
            for at in 0..lanes.len() {
                let x = &lanes[if streams == Streams::Turns { in_turns(at, lanes.len()) } else { at }];
                if streams == Streams::Asked {
                    fetch_ahead(x, AHEAD_BYTES);
                }
                for i in 0..LANES {
                    min[i] = if x[i] < min[i] { x[i] } else { min[i] };
                    max[i] = if x[i] > max[i] { x[i] } else { max[i] };
                    // 0, or NaN from the first number on that is not finite.
                    sums[i] += x[i] * F::zero();
                }
            }
            if sums.iter().all(|sum| !sum.is_nan()) {
                let least = |a, b| if b < a { b } else { a };
                let largest = |a, b| if b > a { b } else { a };
                let (min, max) = (
                    min.into_iter().fold(F::infinity(), least),
                    max.into_iter().fold(F::neg_infinity(), largest),
                );
                all = all.join(Extremes { min, max, finite: (lanes.len() * LANES) as u64 });
                all = rest.iter().fold(all, |all, &x| all.with(x));
            } else {
                all = block.iter().fold(all, |all, &x| all.with(x));
            }
        }
        all
    }
}

impl<F: Float> Extremes<F> {
    #[inline(always)]
    fn with(self, x: F) -> Self {
        if x.is_finite() { self.join(Self { min: x, max: x, finite: 1 }) } else { self }
    }
}

/// The smallest and largest value ever seen.
///
/// ```
/// use trimnet::quantize::{MinMaxObserver, Observer};
/// let mut observer = MinMaxObserver::default();
/// observer.observe(&[0.5_f32, -1.0, f32::NAN]);
/// observer.observe(&[2.0]);
/// let range = observer.range()?;
/// assert_eq!((range.min(), range.max()), (-1.0, 2.0));
/// assert_eq!((observer.count(), observer.skipped()), (3, 1));
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"))]
#[cfg_attr(feature = "serde", serde(try_from = "RawMinMax<F>"))]
pub struct MinMaxObserver<F> {
    seen: Option<(F, F)>,
    count: u64,
    skipped: u64,
}

impl<F> Default for MinMaxObserver<F> {
    fn default() -> Self {
        Self { seen: None, count: 0, skipped: 0 }
    }
}

impl<F: Float> MinMaxObserver<F> {
    /// Takes in everything that `other` saw.
    pub fn merge(&mut self, other: &Self) {
        if let Some((min, max)) = other.seen {
            self.widen(min, max);
        }
        self.count = self.count.saturating_add(other.count);
        self.skipped = self.skipped.saturating_add(other.skipped);
    }

    /// Takes in one batch of values, on all threads of `pool`: the same result for any number of them.
    pub fn observe_on(&mut self, values: &[F], pool: &Pool) {
        let finite = extremes(values, pool).map_or(0, |e| {
            self.widen(e.min, e.max);
            e.finite
        });
        self.count = self.count.saturating_add(finite);
        self.skipped = self.skipped.saturating_add(values.len() as u64 - finite);
    }

    fn widen(&mut self, min: F, max: F) {
        self.seen = Some(self.seen.map_or((min, max), |(a, b)| (a.min(min), b.max(max))));
    }
}

impl<F: Float> Observer<F> for MinMaxObserver<F> {
    fn observe(&mut self, values: &[F]) {
        self.observe_on(values, &Pool::single());
    }

    fn range(&self) -> Result<Range<F>> {
        let (min, max) = self.seen.ok_or(Error::Empty { what: "the observed data" })?;
        Range::new(min, max)
    }

    fn count(&self) -> u64 {
        self.count
    }

    fn skipped(&self) -> u64 {
        self.skipped
    }
}

/// An exponential moving average of each batch's smallest and largest value: the first batch initialises, then
/// `min += c * (new_min - min)`, the same for `max` (PyTorch's `MovingAverageMinMaxObserver`, `c = 0.01`).
///
/// It depends on the order of the batches and therefore does not merge.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"))]
#[cfg_attr(feature = "serde", serde(try_from = "RawAverage<F>"))]
pub struct MovingAverageObserver<F> {
    averaging: f64,
    seen: Option<(F, F)>,
    count: u64,
    skipped: u64,
}

impl<F: Float> MovingAverageObserver<F> {
    /// `averaging` is the weight `c` of each new batch.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 < averaging <= 1`.
    pub fn new(averaging: f64) -> Result<Self> {
        if !(averaging > 0.0 && averaging <= 1.0) {
            return Err(Error::OutOfRange {
                name: "averaging",
                value: averaging,
                range: "0 < averaging <= 1",
            });
        }
        Ok(Self { averaging, seen: None, count: 0, skipped: 0 })
    }
}

impl<F: Float> Observer<F> for MovingAverageObserver<F> {
    fn observe(&mut self, values: &[F]) {
        let Some(e) = extremes(values, &Pool::single()) else {
            self.skipped = self.skipped.saturating_add(values.len() as u64);
            return;
        };
        let c = F::of(self.averaging);
        let average = |old: F, new: F| match new - old {
            step if step.is_finite() => old + c * step,
            _ => old * (F::one() - c) + new * c,
        };
        self.seen = Some(match self.seen {
            None => (e.min, e.max),
            Some((min, max)) => {
                let (min, max) = (average(min, e.min), average(max, e.max));
                // Rounding may push the least of nearly equal numbers past the largest.
                (min, max.max(min))
            }
        });
        self.count = self.count.saturating_add(e.finite);
        self.skipped = self.skipped.saturating_add(values.len() as u64 - e.finite);
    }

    fn range(&self) -> Result<Range<F>> {
        let (min, max) = self.seen.ok_or(Error::Empty { what: "the observed data" })?;
        Range::new(min, max)
    }

    fn count(&self) -> u64 {
        self.count
    }

    fn skipped(&self) -> u64 {
        self.skipped
    }
}

/// What serde reads, before it is believed.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct RawMinMax<F> {
    seen: Option<(F, F)>,
    count: u64,
    skipped: u64,
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<RawMinMax<F>> for MinMaxObserver<F> {
    type Error = Error;

    fn try_from(RawMinMax { seen, count, skipped }: RawMinMax<F>) -> Result<Self> {
        check_seen(seen, count)?;
        Ok(Self { seen, count, skipped })
    }
}

/// What serde reads, before it is believed.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct RawAverage<F> {
    averaging: f64,
    seen: Option<(F, F)>,
    count: u64,
    skipped: u64,
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<RawAverage<F>> for MovingAverageObserver<F> {
    type Error = Error;

    fn try_from(RawAverage { averaging, seen, count, skipped }: RawAverage<F>) -> Result<Self> {
        check_seen(seen, count)?;
        Ok(Self { seen, count, skipped, ..Self::new(averaging)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_and_order_of_batches_gives_the_same_range() {
        // semantics: a known defect elsewhere returns +-4 here.
        let batches: Vec<Vec<f32>> = [10.0, 1.0, 2.0, 3.0, 4.0].iter().map(|&a| vec![-a, a]).collect();
        for turn in 0..5 {
            let mut parts = [MinMaxObserver::default(), MinMaxObserver::default()];
            for i in 0..5 {
                parts[(i + turn) % 2].observe(&batches[(i + turn) % 5]);
            }
            let [mut a, b] = parts;
            a.merge(&b);
            assert_eq!(a.range().unwrap(), Range::new(-10.0, 10.0).unwrap());
        }
    }

    #[test]
    fn moving_average_matches_pytorch() {
        let mut observer = MovingAverageObserver::new(0.01).unwrap();
        for batch in [[-1.0_f32, 1.0], [-2.0, 3.0], [-0.5, 0.5]] {
            observer.observe(&batch);
        }
        let range = observer.range().unwrap();
        assert!((range.min() - -1.004_9).abs() < 1e-7 && (range.max() - 1.014_8).abs() < 1e-7, "{range:?}");
    }

    #[test]
    fn the_average_of_finite_batches_is_a_range() {
        let range = |c: f64, batches: &[&[f32]]| {
            let mut observer = MovingAverageObserver::new(c).unwrap();
            batches.iter().for_each(|batch| observer.observe(batch));
            observer.range().unwrap()
        };
        let far = range(0.25, &[&[-3e38], &[3e38]]);
        assert!(far.min() <= far.max() && (far.min() / -1.5e38 - 1.0).abs() < 1e-6, "{far:?}");
        assert_eq!(range(1.0, &[&[f32::MIN], &[f32::MAX]]), Range::new(f32::MAX, f32::MAX).unwrap());
        let near = range(0.1, &[&[-0.539_118_77, -0.539_118_8], &[18.975_866]]);
        assert!(near.min() <= near.max() && (near.min() - 1.412_38).abs() < 1e-4, "{near:?}");
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_file_cannot_hold_what_no_data_leave() {
        let mut seen = MinMaxObserver::default();
        seen.observe(&[-1.0_f32, 2.0, f32::NAN]);
        let mut average = MovingAverageObserver::new(0.25).unwrap();
        average.observe(&[-1.0_f32, 2.0, f32::NAN]);
        let min_max = |json: &str| serde_json::from_str::<MinMaxObserver<f32>>(json);
        let averaged = |json: &str| serde_json::from_str::<MovingAverageObserver<f32>>(json);
        let (a, b) = (serde_json::to_string(&seen).unwrap(), serde_json::to_string(&average).unwrap());
        assert_eq!(min_max(&a).unwrap(), seen);
        assert_eq!(averaged(&b).unwrap(), average);
        for (good, bad) in [("-1.0,2.0", "5.0,-5.0"), ("[-1.0,2.0]", "null"), ("2,", "0,")] {
            assert!(min_max(&a.replace(good, bad)).is_err(), "{bad}");
            assert!(averaged(&b.replace(good, bad)).is_err(), "{bad}");
        }
        assert!(averaged(&b.replace("0.25", "-7.0")).is_err());
        let most = format!("\"count\":{}", u64::MAX);
        let (mut many, mut averaged) = (
            min_max(&a.replace("\"count\":2", &most)).unwrap(),
            averaged(&b.replace("\"count\":2", &most)).unwrap(),
        );
        many.observe(&[1.0]);
        many.merge(&many.clone());
        averaged.observe(&[1.0]);
        assert_eq!((many.count(), averaged.count()), (u64::MAX, u64::MAX));
    }

    #[test]
    fn no_finite_number_is_an_error() {
        let mut observer = MinMaxObserver::default();
        observer.observe(&[f64::NAN, f64::INFINITY]);
        assert!(matches!(observer.range(), Err(Error::Empty { .. })));
        assert_eq!(observer.skipped(), 2);
        assert!(MovingAverageObserver::<f32>::new(0.01).unwrap().range().is_err());
    }

    #[test]
    fn averaging_out_of_range_is_refused() {
        for c in [0.0, -0.1, 1.1, f64::NAN] {
            assert!(matches!(MovingAverageObserver::<f32>::new(c), Err(Error::OutOfRange { .. })));
        }
    }

    #[test]
    fn subnormals_and_extremes_count_as_finite() {
        let mut observer = MinMaxObserver::default();
        observer.observe(&[1e-40_f32, f32::MAX, f32::MIN]);
        assert_eq!(observer.range().unwrap(), Range::new(f32::MIN, f32::MAX).unwrap());
    }
}
