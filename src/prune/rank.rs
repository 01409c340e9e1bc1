//! The `i`-th smallest of very many numbers, without sorting them.
//!
//! ```text
//! a sample says between which two the number probably lies: see `bracket.rs`
//! one pass: count x < lo, collect lo <= x <= hi
//! select among the collected, about 1 % of all
//! ```
//!
//! If the bracket misses, which the data would have to conspire for, all are collected and selected from.
//! Floyd and Rivest, Communications of the ACM 18 (1975). NaN ranks above infinity.

use std::cmp::Ordering;

use crate::float::Float;
use crate::kernel::{Bracket, Fill, Isa, PART, Pool, Streams, Work, fetch_ahead, with, write_stream};

use super::bracket::bracket;

/// What of a number is ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// Itself.
    Value,
    /// Its size.
    Magnitude,
}

impl Key {
    #[inline(always)]
    pub(super) fn of<F: Float>(self, x: F) -> F {
        match self {
            Self::Value => x,
            Self::Magnitude => x.abs(),
        }
    }
}

/// Where to cut a list of scores: below `value` all go, and of those equal to it the first `ties`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut<F> {
    pub(super) value: F,
    pub(super) ties: usize,
}

/// Where the `i`-th smallest stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Found<F> {
    pub(super) value: F,
    /// How many are smaller.
    pub(super) below: usize,
    /// How many are equal, itself included.
    pub(super) equal: usize,
}

impl<F: Float> Found<F> {
    /// Cuts everything below, and the first `ties` that are equal.
    pub(super) fn cut(self, ties: usize) -> Cut<F> {
        // All ties are no matter of order.
        Cut { value: self.value, ties: if ties >= self.equal { usize::MAX } else { ties } }
    }
}

impl<F: Float> Cut<F> {
    /// Drops from `keep` what the cut drops, counting its ties down.
    pub(super) fn apply(&mut self, scores: &[F], key: Key, keep: &mut [bool]) {
        let Self { value, ties } = *self;
        if ties == usize::MAX && !value.is_nan() {
            return with(Isa::best(), Mark { scores, keep, key, drops: |x| x <= value });
        }
        if value.is_nan() {
            keep.iter_mut().zip(scores).for_each(|(keep, &x)| *keep &= key.of(x).is_nan());
        } else {
            // NaN is not below anything and stays.
            with(Isa::best(), Mark { scores, keep: &mut *keep, key, drops: |x| x < value });
        }
        self.drop_ties(scores, key, keep, |keep| !std::mem::take(keep));
    }

    /// `out = x` without what the cut drops, part of `whole` elements. Returns how many it drops but for counted ties, and
    /// how many are NaN.
    pub(super) fn write(&self, isa: Isa, whole: usize, x: &[F], key: Key, out: &mut [F]) -> (usize, usize) {
        fn run<F: Float, P: Fn(F) -> bool + Copy>(
            (isa, whole, out): (Isa, usize, &mut [F]),
            (x, key): (&[F], Key),
            drops: P,
        ) -> (usize, usize) {
            let write = Write { isa, x, key, drops, dropped: 0, nan: 0 };
            let write = write_stream(isa, whole, out, write);
            (write.dropped, write.nan)
        }

        let (value, to, from) = (self.value, (isa, whole, out), (x, key));
        match self.ties {
            _ if value.is_nan() => run(to, from, |x: F| !x.is_nan()),
            usize::MAX => run(to, from, move |x| x <= value),
            _ => run(to, from, move |x| x < value),
        }
    }

    /// Whether ties are counted, in order.
    pub(super) fn counts_ties(&self) -> bool {
        self.ties > 0 && (self.ties < usize::MAX || self.value.is_nan())
    }

    /// Calls `drop` with the first `ties` that are equal to the cut, until it has dropped so many: it returns true where
    /// there was nothing left to drop.
    pub(super) fn drop_ties<T>(
        &mut self,
        scores: &[F],
        key: Key,
        to: &mut [T],
        drop: impl Fn(&mut T) -> bool,
    ) {
        if self.ties == 0 {
            return;
        }
        let value = self.value;
        // Ties go in order of their index, so that equal weights prune the same way on every machine.
        for (to, &x) in to.iter_mut().zip(scores) {
            let x = key.of(x);
            if (x == value || (x.is_nan() && value.is_nan())) && !drop(to) {
                self.ties -= 1;
                if self.ties == 0 {
                    return;
                }
            }
        }
    }
}

/// `keep &= !drops(key(score))`.
struct Mark<'a, F, P> {
    scores: &'a [F],
    keep: &'a mut [bool],
    key: Key,
    drops: P,
}

impl<F: Float, P: Fn(F) -> bool> Work for Mark<'_, F, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { scores, keep, key, drops } = self;
        keep.iter_mut().zip(scores).for_each(|(keep, &x)| *keep &= !drops(key.of(x)));
    }
}

/// `out = x`, or 0 where it is dropped; counts those, and NaN.
struct Write<'a, F, P> {
    isa: Isa,
    x: &'a [F],
    key: Key,
    drops: P,
    dropped: usize,
    nan: usize,
}

impl<F: Float, P: Fn(F) -> bool + Copy> Fill<F> for Write<'_, F, P> {
    #[inline(always)]
    fn fill(&mut self, at: usize, out: &mut [F]) {
        // Copies: nothing that is written could be one of them, so that the loop becomes vectors.
        let (streams, key, drops) = (self.isa.streams(), self.key, self.drops);
        let (mut gone, mut unknown) = (0u32, 0u32);
        let some = 1024 / size_of::<F>();
        for (i, out) in out.chunks_mut(some).enumerate() {
            let x = &self.x[at + i * some..][..out.len()];
            // No more lines at a time than memory takes requests.
            if streams != Streams::Foreseen {
                fetch_ahead(x, AHEAD_BYTES);
            }
            for (&x, out) in x.iter().zip(out) {
                let drop = drops(key.of(x));
                *out = if drop { F::zero() } else { x };
                gone += u32::from(drop);
                unknown += u32::from(x.is_nan());
            }
        }
        self.dropped += gone as usize;
        self.nan += unknown as usize;
    }
}

/// How far ahead of their use numbers are asked for.
const AHEAD_BYTES: usize = 4096;

const CHUNK: usize = 1024;

/// The `i`-th smallest (from 0) of `key` of all numbers in `pool`.
///
/// `scratch` is overwritten. `None` if there are not that many.
pub(super) fn nth<F: Float>(
    threads: &Pool,
    pool: &[&[F]],
    key: Key,
    i: usize,
    scratch: &mut Vec<F>,
) -> Option<Found<F>> {
    let n: usize = pool.iter().map(|part| part.len()).sum();
    if i >= n {
        return None;
    }
    if let Some(bracket) = bracket(pool, key, n, i, scratch) {
        let below = collect(threads, pool, key, bracket, scratch);
        // What was collected is ranked the same way while there is much of it: each round leaves some hundredths.
        let found = i.checked_sub(below).filter(|&i| i < scratch.len()).and_then(|i| {
            if scratch.len() < n / 4 {
                nth(&Pool::single(), &[&std::mem::take(scratch)], Key::Value, i, scratch)
            } else {
                select(scratch, i)
            }
        });
        if let Some(found) = found {
            return Some(Found { below: below + found.below, ..found });
        }
    }
    scratch.clear();
    scratch.extend(pool.iter().flat_map(|part| part.iter()).map(|&x| key.of(x)).filter(|x| !x.is_nan()));
    let numbers = scratch.len();
    let nan = Found { value: F::nan(), below: numbers, equal: n - numbers };
    Some(select(scratch, i).unwrap_or(nan))
}

/// The `i`-th smallest of `numbers`, none of them NaN.
fn select<F: Float>(numbers: &mut [F], i: usize) -> Option<Found<F>> {
    if i >= numbers.len() {
        return None;
    }
    let (left, &mut value, right) = numbers.select_nth_unstable_by(i, compare);
    let below = left.iter().filter(|&&x| x < value).count();
    let equal = right.iter().filter(|&&x| x == value).count();
    Some(Found { value, below, equal: left.len() - below + 1 + equal })
}

/// The order of numbers that are not NaN: half as much work as asking for it.
pub(super) fn compare<F: Float>(a: &F, b: &F) -> Ordering {
    if a < b {
        Ordering::Less
    } else if a > b {
        Ordering::Greater
    } else {
        Ordering::Equal
    }
}

/// The total order of the ranks: NaN above all, -0 equal to 0.
#[cfg(test)]
fn order<F: Float>(a: F, b: F) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Collects what lies between `lo` and `hi`, and counts what lies below.
fn collect<F: Float>(
    threads: &Pool,
    pool: &[&[F]],
    key: Key,
    bracket: Bracket<F>,
    inside: &mut Vec<F>,
) -> usize {
    let isa = Isa::best();
    inside.clear();
    if threads.threads() == 1 {
        return pool.iter().map(|&x| collect_part(isa, x, key, bracket, inside)).sum();
    }
    let parts: Vec<&[F]> = pool.iter().flat_map(|part| part.chunks(PART)).collect();
    let mut found: Vec<(usize, Vec<F>)> = vec![Default::default(); parts.len()];
    threads.each(found.iter_mut().zip(parts), |((below, inside), x)| {
        *below = collect_part(isa, x, key, bracket, inside);
    });
    found.iter().for_each(|(_, part)| inside.extend_from_slice(part));
    found.iter().map(|(below, _)| below).sum()
}

/// By the kernel of the instruction set as far as there is one, and by the definition from there on.
pub(super) fn collect_part<F: Float>(
    isa: Isa,
    x: &[F],
    key: Key,
    Bracket { lo, hi, .. }: Bracket<F>,
    inside: &mut Vec<F>,
) -> usize {
    let (below, left) = F::collect_between(isa, x, key == Key::Magnitude, (lo, hi), inside);
    below + with(isa, Collect { x: &x[x.len() - left..], key, lo, hi, inside })
}

/// Appends the numbers between `lo` and `hi` to `inside`, and counts those below.
struct Collect<'a, F> {
    x: &'a [F],
    key: Key,
    lo: F,
    hi: F,
    inside: &'a mut Vec<F>,
}

impl<F: Float> Work for Collect<'_, F> {
    type Output = usize;

    #[inline(always)]
    fn run(self) -> usize {
        const BLOCK: usize = 64;
        let Self { x, key, lo, hi, inside } = self;
        let mut total = 0;
        let (blocks, rest) = x.as_chunks::<BLOCK>();
        for blocks in blocks.chunks(CHUNK) {
            let mut below = [0u32; BLOCK];
            for x in blocks {
                let mut flags = [0u8; BLOCK];
                // By index over all lanes: what the compiler turns into vectors.
                for i in 0..BLOCK {
                    let x = key.of(x[i]);
                    flags[i] = u8::from((lo <= x) & (x <= hi));
                    below[i] += u32::from(x < lo);
                }
                // Asking all of them together costs one branch, and whoever is inside another one.
                let mut bits = bits(&flags);
                inside.reserve(BLOCK);
                while bits != 0 {
                    inside.push(key.of(x[bits.trailing_zeros() as usize]));
                    bits &= bits - 1;
                }
            }
            total += below.iter().map(|&below| below as usize).sum::<usize>();
        }
        for &x in rest {
            let x = key.of(x);
            total += usize::from(x < lo);
            if (lo <= x) & (x <= hi) {
                inside.push(x);
            }
        }
        total
    }
}

/// Bit `i` is flag `i`, 0 or 1.
#[inline(always)]
fn bits(flags: &[u8; 64]) -> u64 {
    let bytes = flags.as_chunks().0.iter().map(|&eight| {
        // Moves bit 0 of byte i to bit 56 + i; no two terms of the product meet.
        u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56
    });
    bytes.rev().fold(0, |word, byte| word << 8 | byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::bracket::hash;

    fn sorted(pool: &[&[f64]], i: usize) -> Found<f64> {
        let mut all = pool.concat();
        all.sort_by(|a, b| order(*a, *b));
        let count = |which: Ordering| all.iter().filter(|&&x| order(x, all[i]) == which).count();
        Found { value: all[i], below: count(Ordering::Less), equal: count(Ordering::Equal) }
    }

    fn same(a: Found<f64>, b: Found<f64>) -> bool {
        let values = a.value == b.value || (a.value.is_nan() && b.value.is_nan());
        values && (a.below, a.equal) == (b.below, b.equal)
    }

    #[test]
    fn equals_sorting_for_long_lists_of_every_kind() {
        let n = 70_000_u64;
        let random = |i: u64| hash(i) as f64 / u64::MAX as f64 - 0.5;
        let lists: [Vec<f64>; 6] = [
            (0..n).map(random).collect(),
            (0..n).map(|i| i as f64).collect(),
            (0..n).map(|i| (n - i) as f64).collect(),
            vec![3.0; n as usize],
            (0..n).map(|i| if random(i) < 0.4 { 0.0 } else { random(i).floor() }).collect(),
            (0..n)
                .map(|i| if random(i) < 0.0 { f64::NAN } else { random(i) / 0.0_f64.max(random(i + n)) })
                .collect(),
        ];
        let mut scratch = Vec::new();
        for (list, numbers) in lists.iter().enumerate() {
            let (a, b) = numbers.split_at(12_345);
            let pool = [a, &[], b];
            for threads in [Pool::single(), Pool::new(3)] {
                for i in [0, 1, 700, 35_000, 63_000, 69_998, 69_999] {
                    let found = nth(&threads, &pool, Key::Value, i, &mut scratch).unwrap();
                    assert!(same(found, sorted(&pool, i)), "list {list}, rank {i}: {found:?}");
                }
                assert_eq!(nth(&threads, &pool, Key::Value, 70_000, &mut scratch), None);
            }
        }
    }

    /// What every instruction set collects, at every length, is what the definition does.
    fn every_set_collects_the_same<F: Float>(values: &[F], intervals: &[(F, F)]) {
        let x: Vec<F> = (0..2500).map(|i| values[(i * i * 3 + i / 7) % values.len()]).collect();
        let lengths = (0..70).chain([2047, 2048, 2049, 2500]);
        for (length, &(lo, hi)) in lengths.flat_map(|length| intervals.iter().map(move |pair| (length, pair)))
        {
            for (isa, key) in
                Isa::available().into_iter().flat_map(|isa| [(isa, Key::Value), (isa, Key::Magnitude)])
            {
                let x = &x[..length];
                let keys = || x.iter().map(|&x| key.of(x));
                let mut inside = vec![F::one()];
                let bracket = Bracket { lo, guess: lo, hi };
                let below = collect_part(isa, x, key, bracket, &mut inside);
                assert_eq!(below, keys().filter(|&x| x < lo).count(), "{isa} {length} {key:?}");
                let expected = keys().filter(|&x| lo <= x && x <= hi);
                let signs = |x: F| (x, x.is_sign_negative());
                assert!(
                    inside[1..].iter().copied().map(signs).eq(expected.map(signs)),
                    "{isa} {length} {key:?}"
                );
            }
        }
    }

    #[test]
    fn every_instruction_set_collects_the_same() {
        let (nan, infinity) = (f64::NAN, f64::INFINITY);
        let values = [0.0, -1.0, 2.0, 1.0, nan, -2.0, infinity, -0.0, 3.0, -infinity, 0.5, -nan, 1.5];
        let intervals = [(0.5, 2.0), (0.0, 0.0), (-infinity, infinity), (2.0, 1.0), (infinity, infinity)];
        every_set_collects_the_same(&values, &intervals);
        every_set_collects_the_same(&values.map(|x| x as f32), &intervals.map(|(a, b)| (a as f32, b as f32)));
    }
}
