//! The `i`-th smallest of very many numbers, without sorting them.
//!
//! ```text
//! sample 16,384 of them, sort the sample; a little left and right of rank i stand lo and hi
//! one pass: count x < lo, collect lo <= x <= hi
//! select among the collected, about 2 % of all
//! ```
//!
//! If the bracket misses, which the data would have to conspire for, all are collected and selected from.
//! Floyd and Rivest, Communications of the ACM 18 (1975). NaN ranks above infinity.

use std::cmp::Ordering;

use crate::float::Float;

/// Where to cut a list of scores: below `value` all go, and of those equal to it the first `ties`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut<F> {
    pub(super) value: F,
    pub(super) ties: usize,
}

impl<F: Float> Cut<F> {
    /// Drops from `keep` what the cut drops, counting its ties down.
    pub(super) fn apply(&mut self, scores: &[F], key: impl Fn(F) -> F, keep: &mut [bool]) {
        let value = self.value;
        let ties = |x: F| x == value || (x.is_nan() && value.is_nan());
        if value.is_nan() {
            keep.iter_mut().zip(scores).for_each(|(keep, &x)| *keep &= key(x).is_nan());
        } else {
            // NaN is not below anything and stays.
            keep.iter_mut().zip(scores).for_each(|(keep, &x)| {
                let x = key(x);
                *keep &= (x >= value) | x.is_nan();
            });
        }
        if self.ties == 0 {
            return;
        }
        // Ties go in order of their index, so that equal weights prune the same way on every machine.
        for (keep, &x) in keep.iter_mut().zip(scores) {
            if *keep && ties(key(x)) {
                *keep = false;
                self.ties -= 1;
                if self.ties == 0 {
                    return;
                }
            }
        }
    }
}

const SAMPLE: usize = 1 << 14;
const CHUNK: usize = 1024;
const LANES: usize = 16;

/// The `i`-th smallest (from 0) of `key` of all numbers in `pool`, and how many are smaller than it.
///
/// `scratch` is overwritten. `None` if there are not that many.
pub(super) fn nth<F: Float>(
    pool: &[&[F]],
    key: impl Fn(F) -> F + Copy,
    i: usize,
    scratch: &mut Vec<F>,
) -> Option<(F, usize)> {
    let n: usize = pool.iter().map(|part| part.len()).sum();
    if i >= n {
        return None;
    }
    let bracket = if n >= 4 * SAMPLE { bracket(pool, key, n, i) } else { None };
    if let Some((lo, hi)) = bracket {
        let below = collect(pool, key, lo, hi, scratch);
        if let Some(found) = i.checked_sub(below).and_then(|i| select(scratch, i)) {
            return Some((found.0, below + found.1));
        }
    }
    scratch.clear();
    scratch.extend(pool.iter().flat_map(|part| part.iter()).map(|&x| key(x)).filter(|x| !x.is_nan()));
    let numbers = scratch.len();
    Some(select(scratch, i).unwrap_or((F::nan(), numbers)))
}

/// The `i`-th smallest of `numbers`, none of them NaN, and how many are smaller.
fn select<F: Float>(numbers: &mut [F], i: usize) -> Option<(F, usize)> {
    if i >= numbers.len() {
        return None;
    }
    let (left, &mut value, _) = numbers.select_nth_unstable_by(i, |a, b| {
        // Half as much work as `order`, which asks for NaN.
        if a < b {
            Ordering::Less
        } else if a > b {
            Ordering::Greater
        } else {
            Ordering::Equal
        }
    });
    Some((value, left.iter().filter(|&&x| x < value).count()))
}

/// The total order of the ranks: NaN above all, -0 equal to 0.
fn order<F: Float>(a: F, b: F) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Two numbers of the pool between which the `i`-th smallest of all `n` very probably lies.
fn bracket<F: Float>(pool: &[&[F]], key: impl Fn(F) -> F, n: usize, i: usize) -> Option<(F, F)> {
    let mut sample = Vec::with_capacity(SAMPLE);
    let (mut parts, mut part, mut start): (_, &[F], _) = (pool.iter(), &[], 0);
    for slot in 0..SAMPLE {
        // One at a hashed place in each of SAMPLE equal stretches: a fixed stride would see few columns only.
        let (from, to) = (slot * n / SAMPLE, (slot + 1) * n / SAMPLE);
        let place = from + (hash(slot as u64) % (to - from) as u64) as usize;
        while place - start >= part.len() {
            start += part.len();
            part = parts.next()?;
        }
        sample.push(key(part[place - start]));
    }
    sample.sort_unstable_by(|a, b| order(*a, *b));
    // Five standard deviations of the rank in the sample.
    let share = (i as f64 + 0.5) / n as f64;
    let middle = share * SAMPLE as f64;
    let spread = 5.0 * (middle * (1.0 - share)).sqrt() + 2.0;
    let lo = if middle < spread { F::neg_infinity() } else { sample[(middle - spread) as usize] };
    let hi = sample.get((middle + spread) as usize).map_or(F::infinity(), |&hi| hi);
    Some((lo, if hi.is_nan() { F::infinity() } else { hi }))
}

/// Collects what lies between `lo` and `hi`, and counts what lies below.
fn collect<F: Float>(pool: &[&[F]], key: impl Fn(F) -> F + Copy, lo: F, hi: F, inside: &mut Vec<F>) -> usize {
    inside.clear();
    let mut found = [F::zero(); LANES];
    let mut below = 0;
    for chunk in pool.iter().flat_map(|part| part.chunks(CHUNK)) {
        below += chunk.iter().map(|&x| u32::from(key(x) < lo)).sum::<u32>() as usize;
        for lanes in chunk.chunks(LANES) {
            // Most lanes hold nothing; asking them together costs one branch.
            let any = lanes.iter().fold(false, |any, &x| any | ((lo <= key(x)) & (key(x) <= hi)));
            if any {
                // Without branches: which numbers lie inside cannot be predicted.
                let mut len = 0;
                for &x in lanes {
                    let x = key(x);
                    found[len] = x;
                    len += usize::from((lo <= x) & (x <= hi));
                }
                inside.extend_from_slice(&found[..len]);
            }
        }
    }
    below
}

/// SplitMix64 of `x`.
fn hash(x: u64) -> u64 {
    let x = x.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(pool: &[&[f64]], i: usize) -> (f64, usize) {
        let mut all = pool.concat();
        all.sort_by(|a, b| order(*a, *b));
        (all[i], all.iter().filter(|&&x| order(x, all[i]).is_lt()).count())
    }

    fn same(a: (f64, usize), b: (f64, usize)) -> bool {
        a.1 == b.1 && (a.0 == b.0 || (a.0.is_nan() && b.0.is_nan()))
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
            for i in [0, 1, 700, 35_000, 63_000, 69_998, 69_999] {
                let found = nth(&pool, |x| x, i, &mut scratch).unwrap();
                assert!(same(found, sorted(&pool, i)), "list {list}, rank {i}: {found:?}");
            }
            assert_eq!(nth(&pool, |x| x, 70_000, &mut scratch), None);
        }
    }

    #[test]
    fn the_bracket_holds_a_small_part() {
        let numbers: Vec<f64> = (0..1 << 20).map(|i| hash(i) as f64).collect();
        for i in [0, 100, 1 << 19, (1 << 20) - 1] {
            let (lo, hi) = bracket(&[&numbers], |x| x, numbers.len(), i).unwrap();
            let mut inside = Vec::new();
            let below = collect(&[&numbers], |x| x, lo, hi, &mut inside);
            assert!(below <= i && i < below + inside.len(), "{i}");
            assert!(inside.len() < numbers.len() / 20, "{}", inside.len());
        }
    }

    #[test]
    fn a_list_that_hides_from_the_sample_is_still_ranked() {
        // The sampled places hold 0, all others distinct numbers: the bracket collapses around 0.
        let n = 5 * SAMPLE;
        let mut numbers: Vec<f64> = (0..n).map(|i| i as f64 - 40_000.0).collect();
        for slot in 0..SAMPLE {
            numbers[slot * 5 + (hash(slot as u64) % 5) as usize] = 0.0;
        }
        for i in [5, n / 2, n - 5] {
            let found = nth(&[&numbers], |x| x, i, &mut Vec::new()).unwrap();
            assert!(same(found, sorted(&[&numbers], i)), "{i}");
        }
    }
}
