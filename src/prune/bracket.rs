//! Between which two of very many numbers the `i`-th smallest very probably lies: what a sample says.
//!
//! ```text
//! sample up to 8,192 cache lines, each at a hashed place of a stretch of its own
//! in the sample, five standard deviations left and right of rank i, stand lo and hi
//! ```
//!
//! The deviation of the rank is that of independent numbers, or if it is larger that of whole lines: neighbours may be alike. The bracket
//! of 16 million weights in f32 holds 0.8 % of them; to read numbers one by one instead of lines takes as long, and gives 2 %.
//! Floyd and Rivest, Communications of the ACM 18 (1975); Cochran, Sampling Techniques (1977), chapter 9.

use crate::float::Float;
use crate::kernel::{Bracket, Isa, fetch};

use super::rank::{Key, collect_part, compare};

/// The most lines of a sample.
const LINES: usize = 1 << 13;
/// One of so many numbers begins a line of the sample, unless that are more than [`LINES`].
const STRETCH: usize = 1 << 10;
/// So many lines are waited for at a time: each lies in a page of its own.
const TOGETHER: usize = 32;
/// Fewer numbers than so many stretches are selected from without a sample.
const LEAST: usize = 64;
/// A sample of more numbers is ranked with the help of a sample of its own.
const MANY: usize = 1 << 14;

/// That of the `i`-th smallest `key` of all `n` numbers of the pool, if they are many.
///
/// `sample` is overwritten.
pub(super) fn bracket<F: Float>(
    pool: &[&[F]],
    key: Key,
    n: usize,
    i: usize,
    sample: &mut Vec<F>,
) -> Option<Bracket<F>> {
    if n < LEAST * STRETCH {
        return None;
    }
    take_lines(pool, key, n, sample)?;
    let share = (i as f64 + 0.5) / n as f64;
    let rank = (share * sample.len() as f64) as usize;
    // The numbers of the sample around that rank, of which so many are smaller: all, or again those of a bracket.
    let (mut around, mut below) = (Vec::new(), 0);
    let mut outer = Bracket { lo: F::neg_infinity(), guess: F::zero(), hi: F::infinity() };
    if sample.len() > MANY {
        outer = bracket(&[sample], Key::Value, sample.len(), rank, &mut around)?;
        around.clear();
        below = collect_part(Isa::best(), sample, Key::Value, outer, &mut around);
    } else {
        around.extend_from_slice(sample);
    }
    let place = rank.checked_sub(below).filter(|&place| place < around.len())?;
    let guess = *around.select_nth_unstable_by(place, compare).1;
    let spread = spread(sample, share, guess);
    // What stands to the left of a selected place is no larger, and to the right no smaller.
    let lo = match place.checked_sub(spread) {
        Some(left) => *around[..=place].select_nth_unstable_by(left, compare).1,
        None => outer.lo,
    };
    let hi = match place + spread {
        right if right < around.len() => *around[place..].select_nth_unstable_by(spread, compare).1,
        _ => outer.hi,
    };
    Some(Bracket { lo, guess, hi })
}

/// Takes a sample: lines of the numbers of the pool, NaN as infinity.
fn take_lines<F: Float>(pool: &[&[F]], key: Key, n: usize, sample: &mut Vec<F>) -> Option<()> {
    let lines = (n / STRETCH).min(LINES);
    sample.clear();
    sample.reserve(lines * F::LINE);
    let (mut parts, mut part, mut start): (_, &[F], _) = (pool.iter(), &[], 0);
    let mut take = |line: &[F]| {
        for &x in line {
            let x = key.of(x);
            sample.push(if x.is_nan() { F::infinity() } else { x });
        }
    };
    let mut waiting: [&[F]; TOGETHER] = [&[]; TOGETHER];
    for line in 0..lines {
        // One at a hashed place in each of equal stretches: a fixed stride would see few columns only.
        let (from, to) = (line * n / lines, (line + 1) * n / lines);
        let place = from + (hash(line as u64) % (to - from) as u64) as usize;
        while place - start >= part.len() {
            start += part.len();
            part = parts.next()?;
        }
        let place = place - start;
        let into_line = part[place..].as_ptr().addr() / size_of::<F>() % F::LINE;
        let rest = &part[place.saturating_sub(into_line)..];
        let next = &rest[..F::LINE.min(rest.len())];
        fetch(&next[..1]);
        take(std::mem::replace(&mut waiting[line % TOGETHER], next));
    }
    let (last, first) = waiting.split_at(lines % TOGETHER);
    first.iter().chain(last).for_each(|line| take(line));
    Some(())
}

/// Five standard deviations of the rank of `middle` in a sample of lines.
fn spread<F: Float>(sample: &[F], share: f64, middle: F) -> usize {
    let lines = sample.chunks(F::LINE);
    let (mut sum, mut squares) = (0.0, 0.0);
    for line in lines.clone() {
        let below = line.iter().map(|&x| u32::from(x < middle)).sum::<u32>();
        sum += f64::from(below);
        squares += f64::from(below * below);
    }
    let of_lines = squares - sum * sum / lines.len() as f64;
    let of_numbers = sample.len() as f64 * share * (1.0 - share);
    (5.0 * of_lines.max(of_numbers).sqrt() + 2.0) as usize
}

/// SplitMix64 of `x`.
pub(super) fn hash(x: u64) -> u64 {
    let x = x.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Pool;
    use crate::prune::rank::nth;

    /// How many of the numbers are below the bracket, and how many inside.
    fn count(numbers: &[f64], i: usize) -> (usize, usize) {
        let bracket = bracket(&[numbers], Key::Value, numbers.len(), i, &mut Vec::new()).unwrap();
        assert!(bracket.lo <= bracket.guess && bracket.guess <= bracket.hi, "{bracket:?}");
        let mut inside = Vec::new();
        let below = collect_part(Isa::best(), numbers, Key::Value, bracket, &mut inside);
        (below, inside.len())
    }

    #[test]
    fn holds_a_small_part() {
        for (n, most) in [(1 << 17, 5), (1 << 20, 16), (1 << 24, 40)] {
            let numbers: Vec<f64> = (0..n).map(|i| hash(i) as f64).collect();
            for i in [0, 100, numbers.len() / 2, numbers.len() - 1] {
                let (below, inside) = count(&numbers, i);
                assert!(below <= i && i < below + inside, "{i}");
                assert!(inside < numbers.len() / most, "{n} {i}: {inside}");
            }
        }
    }

    #[test]
    fn is_wider_where_neighbours_are_alike() {
        let n = 1 << 20;
        // 64 in a row are the same.
        let numbers: Vec<f64> = (0..n).map(|i| hash(i / 64) as f64).collect();
        for i in (0..10).map(|tenth| tenth * numbers.len() / 10) {
            let (below, inside) = count(&numbers, i);
            assert!(below <= i && i < below + inside, "{i}");
        }
    }

    #[test]
    fn a_list_that_hides_from_the_sample_is_still_ranked() {
        // The lines of the sample hold 0, all others distinct numbers: the bracket collapses around 0.
        let n = 80 * STRETCH;
        let mut numbers: Vec<f64> = (0..n).map(|i| i as f64 - 40_000.0).collect();
        for line in 0..80 {
            let place = line * STRETCH + (hash(line as u64) % STRETCH as u64) as usize;
            numbers[place.saturating_sub(8)..(place + 8).min(n)].fill(0.0);
        }
        let mut sorted = numbers.clone();
        sorted.sort_by(f64::total_cmp);
        for i in [5, n / 2, n - 5] {
            let found = nth(&Pool::single(), &[&numbers], Key::Value, i, &mut Vec::new()).unwrap();
            assert_eq!(found.value, sorted[i], "{i}");
        }
    }
}
