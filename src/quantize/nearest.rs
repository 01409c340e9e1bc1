//! The nearest of several values for each number.
//!
//! ```text
//! end[j]   the largest number that is not above (c[j] + c[j + 1]) / 2, exactly
//! code     how many ends are below x
//! ```
//!
//! Among up to 15 ends AVX-512 finds the place by halving; elsewhere few are all compared with. Of more, a table by position tells
//! which are surely passed.

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::kernel::{Isa, PART, Pool, Work, fetch, with};
use crate::quantize::kmeans::{AHEAD, check_centroids};

/// Writes the index of the nearest of `centroids`, which ascend, for each value; of two that are equally near, the lower
/// one. NaN gets the first. Exact, for any number of threads.
///
/// # Errors
/// [`Error::Empty`] without centroids, [`Error::NotFinite`] for a centroid that is NaN or infinite, [`Error::Unsupported`] if
/// they do not ascend or are more than 256; [`Error::Shape`] unless there are as many codes as values.
pub fn assign_nearest<F: Float>(values: &[F], centroids: &[F], codes: &mut [u8], pool: &Pool) -> Result<()> {
    check_centroids(centroids)?;
    check_shape("codes", &[codes.len()], &[values.len()])?;
    if centroids.len() > 256 {
        return Err(Error::Unsupported {
            what: "codes of one byte",
            reason: format!("{} centroids, at most 256 have one", centroids.len()),
        });
    }
    // The largest number that is not nearer to the upper of two neighbours.
    let mut ends: Vec<F> = centroids.windows(2).map(|pair| end(pair[0], pair[1])).collect();
    let isa = Isa::best();
    let guess = (size_of_val(ends.as_slice()) > FEW).then(|| Guess::new(&ends));
    let for_rest = if guess.is_some() { isa.for_tables() } else { isa };
    // Nothing is above infinity.
    let mut halved = [F::infinity(); HALVED];
    let halves = ends.len() < HALVED;
    halved.iter_mut().zip(&ends).for_each(|(to, &end)| *to = end);
    ends.resize(ends.len().next_multiple_of(TOGETHER), F::infinity());
    pool.each(values.chunks(PART).zip(codes.chunks_mut(PART)), |(values, codes)| {
        let done = if halves { F::count_below(isa, values, &halved, codes) } else { 0 };
        let (values, codes) = (&values[done..], &mut codes[done..]);
        with(for_rest, Assign { values, ends: &ends, guess: guess.as_ref(), codes });
    });
    Ok(())
}

/// The largest number of the type that is not above the middle of `a` and `b`, exactly.
fn end<F: Float>(a: F, b: F) -> F {
    // Halves are exact where the sum overflows; elsewhere they may not be.
    let unit = if (a.as_f64() + b.as_f64()).is_finite() { 1.0 } else { 0.5 };
    let (a, b) = (a.as_f64() * unit, b.as_f64() * unit);
    // sum + rest = a + b (Knuth's two-sum)
    let sum = a + b;
    let part = sum - a;
    let rest = (a - (sum - part)) + (b - part);
    let near = F::of(sum * (0.5 / unit));
    let twice = near.as_f64() * (2.0 * unit);
    if twice > sum || (twice == sum && rest < 0.0) { next_down(near) } else { near }
}

/// The next number of the type below `x`.
fn next_down<F: Float>(x: F) -> F {
    match F::BYTES {
        4 => F::of(f64::from((x.as_f64() as f32).next_down())),
        _ => F::of(x.as_f64().next_down()),
    }
}

/// Boundaries among which a kernel finds the place of a number by halving, and infinity.
const HALVED: usize = 16;
/// Bytes of boundaries which are all compared with.
const FEW: usize = 64;
/// Boundaries that are compared with while a count is in a register.
const TOGETHER: usize = 8;
/// Most boundaries that codes of a byte tell apart, and one behind them.
const MOST: usize = 256;

const CELLS: usize = 1 << 12;

/// Boundaries that are surely passed, by position between the first and the last.
struct Guess<F> {
    first: F,
    per_unit: F,
    passed: [u8; CELLS],
    /// Infinity behind the last.
    ends: [F; 2 * MOST],
    /// Digits of the largest number of boundaries in one cell.
    digits: u32,
}

impl<F: Float> Guess<F> {
    fn new(ends: &[F]) -> Self {
        let (first, last) = (ends[0], ends[ends.len() - 1]);
        let per_unit = F::of((CELLS - 1) as f64) / (last - first);
        let per_unit = if per_unit.is_finite() { per_unit } else { F::zero() };
        let passed = [0; CELLS];
        let mut guess = Self { first, per_unit, passed, ends: [F::infinity(); 2 * MOST], digits: 0 };
        guess.ends[..ends.len()].copy_from_slice(ends);
        // The cell of a number never falls as the number grows: who is in a later cell than an end is above it.
        let cells: Vec<usize> = ends.iter().map(|&end| guess.cell(end)).collect();
        for same in cells.chunk_by(usize::eq) {
            guess.digits = guess.digits.max(usize::BITS - same.len().leading_zeros());
            guess.passed[same[0] + 1..].iter_mut().for_each(|passed| *passed += same.len() as u8);
        }
        guess
    }

    #[inline(always)]
    fn cell(&self, x: F) -> usize {
        ((x - self.first) * self.per_unit).index(CELLS as i32 - 1) as usize
    }

    /// Boundaries that each number has passed.
    #[inline(always)]
    fn passed<const N: usize>(&self, x: &[F; N]) -> [u8; N] {
        let (mut cells, mut passed) = ([0u16; N], [0; N]);
        // By index over all: what the compiler turns into vectors.
        for i in 0..N {
            cells[i] = self.cell(x[i]) as u16;
        }
        for i in 0..N {
            passed[i] = self.passed[usize::from(cells[i]) % CELLS];
        }
        // Those of its own cell, by halving; mostly there is one at most.
        for step in (1..self.digits).rev().map(|digit| 1 << digit) {
            for i in 0..N {
                let last = usize::from(passed[i]) + step - 1;
                passed[i] += step as u8 * u8::from(x[i] > self.ends[last % (2 * MOST)]);
            }
        }
        for i in 0..N {
            passed[i] += u8::from(x[i] > self.ends[usize::from(passed[i])]);
        }
        passed
    }
}

struct Assign<'a, F> {
    values: &'a [F],
    ends: &'a [F],
    guess: Option<&'a Guess<F>>,
    codes: &'a mut [u8],
}

impl<F: Float> Assign<'_, F> {
    /// Codes for `N` numbers at a time, by a way to find them that works for one as well.
    #[inline(always)]
    fn run_with<const N: usize>(self, many: impl Fn(&[F; N]) -> [u8; N], one: impl Fn(&[F; 1]) -> [u8; 1]) {
        let (blocks, rest) = self.values.as_chunks();
        let (code_blocks, code_rest) = self.codes.as_chunks_mut();
        for (at, (x, codes)) in blocks.iter().zip(code_blocks).enumerate() {
            blocks.get(at + AHEAD).inspect(|soon| fetch(*soon));
            *codes = many(x);
        }
        for (&x, code) in rest.iter().zip(code_rest) {
            [*code] = one(&[x]);
        }
    }
}

impl<F: Float> Work for Assign<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let ends = self.ends;
        match self.guess {
            Some(guess) => self.run_with::<128>(|x| guess.passed(x), |x| guess.passed(x)),
            // So many that their counts stay in registers over all boundaries.
            None => self.run_with::<64>(|x| nearest(x, ends), |x| nearest(x, ends)),
        }
    }
}

#[inline(always)]
fn nearest<F: Float, const N: usize>(x: &[F; N], ends: &[F]) -> [u8; N] {
    let mut codes = [0i32; N];
    for ends in ends.as_chunks::<TOGETHER>().0 {
        // By index over all lanes: what the compiler turns into vectors.
        for i in 0..N {
            codes[i] += ends.iter().map(|&end| i32::from(x[i] > end)).sum::<i32>();
        }
    }
    codes.map(|code| code as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::kmeans::tests::{spaced, values};

    /// The definition: all distances.
    fn brute<F: Float>(x: F, centroids: &[F]) -> usize {
        let distance = |c: &F| (x.as_f64() - c.as_f64()).abs();
        (1..centroids.len())
            .fold(0, |best, j| if distance(&centroids[j]) < distance(&centroids[best]) { j } else { best })
    }

    #[test]
    fn every_value_gets_its_nearest_centroid() {
        let mut values = values(5000);
        values.extend([f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::NAN]);
        for k in [1, 2, 3, 16, 33, 34, 200, 256] {
            let mut centroids = spaced(k);
            if k > 4 {
                centroids[2] = centroids[1]; // an empty cluster
                centroids[k - 1] = 1e6; // all others in one cell of guesses
            }
            // The middle of two, and its neighbours.
            for pair in centroids.windows(2) {
                let end = (pair[0] + pair[1]) * 0.5;
                values.extend([end, end.next_up(), end.next_down()]);
            }
            for pool in [Pool::single(), Pool::new(2)] {
                let mut codes = vec![7; values.len()];
                assign_nearest(&values, &centroids, &mut codes, &pool).unwrap();
                for (&x, &code) in values.iter().zip(&codes) {
                    let finite = x.clamp(-1e9, 1e9);
                    let (found, best) = (centroids[usize::from(code)], centroids[brute(finite, &centroids)]);
                    // As near as f64 can tell.
                    let distance = |c: f32| (f64::from(finite) - f64::from(c)).abs();
                    let right = distance(found) == distance(best);
                    assert!(x.is_nan() && code == 0 || right, "{x} of {k}: {found}, not {best}");
                }
            }
        }
    }

    #[test]
    fn neighbouring_centroids_are_told_apart() {
        fn check<F: Float>(centroids: &[F]) {
            let mut codes = vec![7; centroids.len()];
            assign_nearest(centroids, centroids, &mut codes, &Pool::single()).unwrap();
            assert!(codes.iter().copied().eq(0..centroids.len() as u8), "{centroids:?}: {codes:?}");
        }
        check(&[1, 2, 3].map(f32::from_bits));
        check(&[-f32::from_bits(1), 0.0, f32::from_bits(1)]);
        check(&[1, 2, 3].map(f64::from_bits));
        let e = f64::EPSILON;
        check(&[1.0 + e, 1.0 + 2.0 * e, 1.0 + 3.0 * e]);
        check(&[f64::MAX.next_down(), f64::MAX]);
        check(&[f64::MIN, f64::MAX]);
        // No number of the type is the middle: those beside it have a side each.
        let mut codes = [7; 2];
        let values = [1.0 + 3.0 * e, 1.0 + 4.0 * e];
        assign_nearest(&values, &[1.0 + e, 1.0 + 6.0 * e], &mut codes, &Pool::single()).unwrap();
        assert_eq!(codes, [0, 1]);
    }

    #[test]
    fn refuses_another_number_of_codes_and_more_than_they_can_tell() {
        let pool = Pool::single();
        assert!(assign_nearest(&[1.0], &[1.0], &mut [0; 2], &pool).is_err());
        assert!(assign_nearest(&[1.0], &[0.0; 257], &mut [0], &pool).is_err());
    }
}
