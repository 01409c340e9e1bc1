//! Which entries of a matrix are not zero, as predicted decisions.
//!
//! ```text
//! 1. are there dead columns? dead rows?     one decision each
//! 2. if so, which                           from the lines before, in images also the pixels above
//! 3. the living entries, row by row         from the contexts below
//! ```
//!
//! Pruned networks die in lines: input pixels that nobody looks at are columns, removed neurons are rows. What
//! remains is predicted from the row's and the column's density so far and from neighbouring entries. With
//! `stride > 0` a column also neighbours the one `stride` before it: the first layer of an image network sees
//! pixels in rows of `stride`.

use super::model::{Mixer, Prob, stretch};
use super::range_coder::Coder;

/// How a matrix is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Columns `c` and `c - stride` are neighbours; 0 for none. At most `cols`.
    pub(crate) stride: usize,
    /// Mixes several contexts instead of looking up one: smaller, and several times slower.
    pub(crate) mixed: bool,
}

/// Codes `mask` (1 = not zero, row-major), which a decoder fills in.
pub(crate) fn code_mask<C: Coder>(coder: &mut C, grid: Grid, mask: &mut [u8]) {
    let mut live_cols = vec![0u8; grid.cols];
    let mut live_rows = vec![0u8; grid.rows];
    for (row, live) in mask.chunks_exact(grid.cols.max(1)).zip(&mut live_rows) {
        for (&bit, any) in row.iter().zip(&mut live_cols) {
            *any |= bit;
            *live |= bit;
        }
    }
    code_lines(coder, &mut live_cols, grid.stride);
    code_lines(coder, &mut live_rows, 0);
    let cols: Vec<usize> = (0..grid.cols).filter(|&c| live_cols[c] != 0).collect();
    if grid.mixed {
        Mixed::new(grid, &cols).code(coder, mask, &live_rows, &cols);
    } else {
        code_fast(coder, grid, mask, &live_rows, &cols);
    }
}

fn decide<C: Coder>(coder: &mut C, prob: &mut Prob, bit: u8) -> u8 {
    let bit = coder.code(bit != 0, prob.p());
    prob.update(bit, 1023);
    u8::from(bit)
}

/// Dead lines: a flag, then one decision per line, mixed from four contexts of the lines before.
fn code_lines<C: Coder>(coder: &mut C, live: &mut [u8], stride: usize) {
    let any_dead = coder.code(live.contains(&0), 1 << 14);
    if !any_dead {
        live.fill(1);
        return;
    }
    let mut probs = [[Prob::NEW; 16]; 4];
    let mut mixer = Mixer::new(1, [-16_000, 18_000, 18_000, 18_000, 18_000, 0]);
    let mut mean = Prob::NEW;
    for i in 0..live.len() {
        let back = |n: usize| i.checked_sub(n).map_or(0, |j| usize::from(live[j]));
        let count = |distances: &[usize]| distances.iter().map(|&n| back(n)).sum();
        let s = stride;
        let image = if s > 2 {
            let line_above = back(s) | back(s + 1) << 1 | back(s - 1) << 2 | back(2 * s) << 3;
            let corner = back(1) | back(s) << 1 | back(s + 1) << 2 | back(s - 1) << 3;
            let around = [1, 2, 3, s - 2, s - 1, s, s + 1, s + 2, 2 * s - 1, 2 * s, 2 * s + 1, 3 * s];
            [line_above, corner, count(&around)]
        } else {
            [back(1), count(&[1, 2, 3, 4]), count(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])]
        };
        let contexts = [back(1) | back(2) << 1 | back(3) << 2, image[0], image[1], image[2]];
        let base = mean.p();
        let mut inputs = [stretch(base), 0, 0, 0, 0, 256];
        for (input, (probs, context)) in inputs[1..].iter_mut().zip(probs.iter().zip(contexts)) {
            *input = opinion(probs[context], base);
        }
        let bit = coder.code(live[i] != 0, mixer.mix(0, inputs));
        mixer.update(bit);
        mean.update(bit, 255);
        probs.iter_mut().zip(contexts).for_each(|(probs, context)| probs[context].update(bit, 255));
        live[i] = u8::from(bit);
    }
}

/// One context per entry: two to the left, three above, how dense the column and the row are.
fn code_fast<C: Coder>(coder: &mut C, grid: Grid, mask: &mut [u8], live_rows: &[u8], cols: &[usize]) {
    const REFRESH: usize = 8;
    let mut probs = vec![Prob::NEW; 512];
    let width = cols.len();
    let mut above = vec![0u8; width + 2]; // living columns only, shifted by one
    let mut counts = vec![0u32; width];
    let mut classes = vec![1u8 << 5; width];
    let (mut seen, mut ones) = (0u64, 0u64);
    let mut rows_done = 0u64;
    for (row, _) in mask.chunks_exact_mut(grid.cols.max(1)).zip(live_rows).filter(|(_, live)| **live != 0) {
        if rows_done.is_multiple_of(REFRESH as u64) && rows_done > 0 {
            for (class, &count) in classes.iter_mut().zip(&counts) {
                // Against the mean: below half, below, below twice, above.
                let (count, mean) = (u64::from(count) * width as u64, ones);
                let level =
                    u8::from(2 * count >= mean) + u8::from(count >= mean) + u8::from(count >= 2 * mean);
                *class = level << 5;
            }
        }
        let expected = 64 * ones / seen.max(1);
        let levels = [expected.div_ceil(2) as u32, expected as u32 + 1, 2 * expected as u32 + 2];
        let mut history = 0u64;
        let mut pending = 0u64;
        let mut row_level = 1usize << 7;
        let mut last = above[0];
        for (i, &c) in cols.iter().enumerate() {
            if i % 16 == 0 && i >= 64 {
                let dense = pending.count_ones();
                let level = levels.iter().filter(|&&level| dense >= level).count();
                row_level = level << 7;
            }
            let overhead =
                usize::from(last) | usize::from(above[i + 1]) << 1 | usize::from(above[i + 2]) << 2;
            let context = (history & 3) as usize | overhead << 2 | usize::from(classes[i]) | row_level;
            let bit = decide(coder, &mut probs[context], row[c]);
            row[c] = bit;
            history = history << 1 | u64::from(bit);
            pending = history;
            last = above[i + 1];
            above[i + 1] = bit;
            counts[i] += u32::from(bit);
        }
        rows_done += 1;
        seen += width as u64;
        ones = counts_total(&counts, ones, rows_done);
    }
}

fn counts_total(counts: &[u32], before: u64, rows_done: u64) -> u64 {
    // Every row while few are known, then every eighth: the mean hardly moves.
    if rows_done < 64 || rows_done.is_multiple_of(8) {
        counts.iter().map(|&c| u64::from(c)).sum()
    } else {
        before
    }
}

const INPUTS: usize = 9;

/// The mixing model of the living entries.
struct Mixed {
    grid: Grid,
    /// Of all columns: ones so far.
    col_ones: Vec<u32>,
    near: Vec<Prob>,
    column: Vec<Prob>,
    densities: Vec<Prob>,
    around: Vec<Prob>,
    mixer: Mixer<INPUTS>,
    live: Vec<u8>,
}

impl Mixed {
    fn new(grid: Grid, cols: &[usize]) -> Self {
        let mut live = vec![0; grid.cols];
        cols.iter().for_each(|&c| live[c] = 1);
        let start = [-16_000, 18_000, 10_000, 4_000, 22_000, 4_000, 10_000, 6_000, 0];
        Self {
            grid,
            col_ones: vec![0; grid.cols],
            near: vec![Prob::NEW; 1 << 6],
            column: vec![Prob::NEW; 1 << 6],
            densities: vec![Prob::NEW; 256],
            around: vec![Prob::NEW; 256],
            mixer: Mixer::new(1, start),
            live,
        }
    }

    fn code<C: Coder>(&mut self, coder: &mut C, mask: &mut [u8], live_rows: &[u8], cols: &[usize]) {
        let Grid { cols: width, stride, .. } = self.grid;
        let mut total = Ratio::default();
        let mut rows_done = 0u32;
        let mut previous = [None::<usize>; 3];
        for r in (0..self.grid.rows).filter(|&r| live_rows[r] != 0) {
            let mut in_row = Ratio::default();
            for &c in cols {
                let at = r * width + c;
                let left = |n: usize| if c >= n { usize::from(mask[at - n]) } else { 0 };
                let above = |k: usize| previous[k].map_or(0, |p| usize::from(mask[p * width + c]));
                // The entries around this one that are known, and the columns around it in all rows so far.
                let mut near = left(1) | left(2) << 1;
                if stride > 1 {
                    near |= left(stride) << 2 | left(stride + 1) << 3 | left(stride - 1) << 4;
                    near |= left(2 * stride) << 5;
                } else {
                    near |= left(3) << 2 | above(0) << 3;
                }
                let column = above(0) | above(1) << 1 | above(2) << 2 | left(1) << 3;
                let mut around = Ratio::default();
                for d in [1, stride, stride + 1, stride.max(1) - 1] {
                    if d == 0 || (d == 1 && stride == 1) {
                        continue;
                    }
                    for n in [c.checked_sub(d), Some(c + d).filter(|&n| n < width)].into_iter().flatten() {
                        if self.live[n] != 0 {
                            let known = rows_done + u32::from(n < c);
                            around.add(self.col_ones[n], known);
                        }
                    }
                }
                let mean = total.p(4, 1 << 13);
                let by_row = in_row.p(24, mean);
                let own = Ratio { ones: self.col_ones[c].into(), seen: rows_done.into() };
                let by_col = own.p(8, mean);
                let by_around = around.p(16, mean);
                let base = stretch(mean);
                let level = |p: u32| ((stretch(p) - base + 448) / 112).clamp(0, 7) as usize;
                let densities = level(by_row) | level(by_col) << 3;
                let surround = level(by_around) | level(by_col) << 3 | (left(1) + left(stride.max(2))) << 6;
                let contexts = [
                    (&mut self.near[near], mean),
                    (&mut self.column[column], mean),
                    (&mut self.densities[densities], mean),
                    (&mut self.around[surround & 255], mean),
                ];
                let mut inputs = [0; INPUTS];
                for (input, (prob, mean)) in inputs[4..].iter_mut().zip(&contexts) {
                    *input = opinion(**prob, *mean);
                }
                inputs[0] = base;
                inputs[1] = stretch(by_row);
                inputs[2] = stretch(by_col);
                inputs[3] = stretch(by_around);
                inputs[8] = 256;
                let p = self.mixer.mix(0, inputs);
                let bit = coder.code(mask[at] != 0, p);
                self.mixer.update(bit);
                for (prob, _) in contexts {
                    prob.update(bit, 1000);
                }
                mask[at] = u8::from(bit);
                self.col_ones[c] += u32::from(bit);
                in_row.add(u32::from(bit), 1);
                total.add(u32::from(bit), 1);
            }
            rows_done += 1;
            previous = [Some(r), previous[0], previous[1]];
        }
    }
}

/// What a context says: nothing before it has seen anything, and more the more it has seen.
pub(crate) fn opinion(prob: Prob, mean: u32) -> i32 {
    let (n, own) = (prob.count() as i32, stretch(prob.p()));
    let base = stretch(mean);
    // A weighted step from the mean to the own estimate: n / (n + 1).
    base + times_share(own - base, n as u32)
}

/// 2^36 / (n + 1), rounded up.
static RECIPROCAL: [u64; 1 << 10] = {
    let mut table = [0; 1 << 10];
    let mut n = 0;
    while n < table.len() {
        table[n] = (1u64 << 36).div_ceil(n as u64 + 1);
        n += 1;
    }
    table
};

/// `x * n / (n + 1)`, towards zero, for `n < 1024` and a difference `x` of two stretched probabilities: a division takes
/// longer than all else that an opinion is made of.
#[inline(always)]
fn times_share(x: i32, n: u32) -> i32 {
    // Below 2^13 * 2^10, so that the error of the reciprocal, less than 2^-36 of a unit for each, never adds up to 2^-10.
    let product = u64::from(x.unsigned_abs()) * u64::from(n);
    let share = ((product * RECIPROCAL[(n & 1023) as usize]) >> 36) as i32;
    if x < 0 { -share } else { share }
}

/// How many of those seen were ones.
#[derive(Clone, Copy, Debug, Default)]
struct Ratio {
    ones: u64,
    seen: u64,
}

impl Ratio {
    fn add(&mut self, ones: u32, seen: u32) {
        self.ones += u64::from(ones);
        self.seen += u64::from(seen);
    }

    /// The share in 1/65536, as if `weight` more had been seen at the share `prior`.
    fn p(self, weight: u32, prior: u32) -> u32 {
        let weight = u64::from(weight);
        let p = ((self.ones << 16) + weight * u64::from(prior)) / (self.seen + weight);
        (p as u32).clamp(1, 65_535)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_a_division() {
        for n in 0..1024 {
            for x in (-6000..=6000).step_by(7).chain(-1..=1) {
                assert_eq!(times_share(x, n), x * n as i32 / (n as i32 + 1), "{x} {n}");
            }
        }
    }
}
