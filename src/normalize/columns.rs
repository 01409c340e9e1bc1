//! Sums over the rows of a batch, one per column, in one pass that reads row after row.
//!
//! Blocks of rows are summed in the element type and the blocks in `f64`: as fast as the plain loop, and the
//! rounding error does not grow with the batch. Threads share the columns of a sum and the rows of everything else, so
//! that a result does not depend on their number.
//!
//! Moments are taken of `x - center`, where the center is the first row: differences of near numbers are exact,
//! so a feature with mean 1e6 and deviation 1e-2 keeps its variance, where `mean(x^2) - mean(x)^2` would
//! lose it (Chan, Golub, LeVeque 1983, "shifted data"). If the first row is very far from the rest, which it can be by
//! `sqrt(rows)` deviations, a second pass has its center at the mean that the first found.

use std::marker::PhantomData;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Fill, Isa, PART, Pool, Stream, Work, fetch, with};

/// Rows that are summed in the element type before the sum goes to `f64`.
const BLOCK: usize = 64;
/// Rows of which sums are taken in registers.
const DEEP: usize = 4;
/// How far ahead numbers are asked for, and where several rows are read at a time.
const AHEAD_BYTES: usize = 4096;
const AHEAD_OF_SUMS_BYTES: usize = 2048;
/// Columns that are summed side by side, in registers; threads divide them by so many.
const COLUMNS: usize = 16;
/// The same on AVX-512, whose registers hold so many of `f32` and of `f64`; each row gives some lines in order, of which a
/// processor foresees the next.
const WIDE: usize = 128;
const WIDE_F64: usize = 64;

/// So many deviations may lie between center and mean: their square takes 10 of the 24 bits of `f32` from the variance. Farther
/// out the center is moved.
const FAR: f64 = 32.0;

/// Mean and spread of each column of a batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Moments<F> {
    /// A number near those of its column.
    center: Vec<F>,
    /// Mean minus center.
    offset: Vec<F>,
    /// The means.
    pub(super) mean: Vec<f64>,
    /// Sum of squared distances from the mean, never negative.
    pub(super) m2: Vec<f64>,
}

impl<F: Float> Moments<F> {
    /// Of `x` `[rows, width]`, row after row, with at least one row and one column.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN and infinity, and for a feature whose variance overflows.
    pub(super) fn of(what: &'static str, x: &[F], width: usize, pool: &Pool) -> Result<Self> {
        let moments = Self::about(x[..width].to_vec(), what, x, pool)?;
        let rows = (x.len() / width) as f64;
        let Self { center, offset, mean, m2 } = &moments;
        let far = |j: usize| offset[j].as_f64().powi(2) * rows > FAR * FAR * m2[j];
        if !(0..width).any(far) {
            return Ok(moments);
        }
        let center = (0..width).map(|j| if far(j) { F::of(mean[j]) } else { center[j] }).collect();
        Self::about(center, what, x, pool)
    }

    /// About a center for each column.
    fn about(center: Vec<F>, what: &'static str, x: &[F], pool: &Pool) -> Result<Self> {
        let width = center.len();
        let rows = x.len() / width;
        let (mut mean, mut m2) = column_sums(pool, x.len(), width, &Shifted { x, center: &center });
        let mut offset = Vec::with_capacity(width);
        for (j, (mean, m2)) in mean.iter_mut().zip(&mut m2).enumerate() {
            let sum = *mean;
            let distance = sum / rows as f64;
            // sum (d - mean)^2 = sum d^2 - (sum d) * mean
            *m2 -= sum * distance;
            if !m2.is_finite() {
                let culprit = x.iter().position(|x| !x.is_finite());
                return Err(match culprit {
                    Some(at) => {
                        let (index, value) = (vec![at / width, at % width], x[at].as_f64());
                        Error::NotFinite { what, index, value }
                    }
                    None => Error::NotFinite { what: "variance of a feature", index: vec![j], value: *m2 },
                });
            }
            *m2 = m2.max(0.0);
            offset.push(F::of(distance));
            *mean = center[j].as_f64() + distance;
        }
        Ok(Self { center, offset, mean, m2 })
    }

    /// Forms `m2` in `f64` for the columns whose squares are too small for the element type. One pass over such columns, the
    /// constant ones among them.
    pub(super) fn mend_tiny(&mut self, x: &[F]) {
        if F::BYTES == size_of::<f64>() {
            return;
        }
        let width = self.m2.len();
        let rows = (x.len() / width) as f64;
        let least = (F::min_positive_value() / F::epsilon()).as_f64();
        for (j, (m2, &mean)) in self.m2.iter_mut().zip(&self.mean).enumerate() {
            if *m2 < rows * least {
                *m2 = x[j..].iter().step_by(width).map(|x| (x.as_f64() - mean).powi(2)).sum();
            }
        }
    }

    /// `y = (x - mean) * scale + beta`: of what is near, `x - center`, as exact as with the mean.
    pub(super) fn scaled(&self, scale: &[F], beta: &[F]) -> Scaled<F> {
        let shift = |((&beta, &offset), &scale): ((&F, &F), &F)| beta - offset * scale;
        let shift = beta.iter().zip(&self.offset).zip(scale).map(shift).collect();
        Scaled { center: self.center.clone(), scale: scale.to_vec(), shift }
    }
}

/// `y = (x - center) * scale + shift`.
pub(super) struct Scaled<F> {
    pub(super) center: Vec<F>,
    pub(super) scale: Vec<F>,
    pub(super) shift: Vec<F>,
}

impl<F: Float> Columns<F, 1> for Scaled<F> {
    #[inline(always)]
    fn run(&self, j: usize, [x]: [&[F]; 1], y: &mut [F]) {
        let n = y.len();
        let (x, center) = (&x[..n], &self.center[j..][..n]);
        let (scale, shift) = (&self.scale[j..][..n], &self.shift[j..][..n]);
        for i in 0..n {
            y[i] = (x[i] - center[i]) * scale[i] + shift[i];
        }
    }
}

/// Per column the sum of `a` and the sum of `a * b`; both `[rows, width]`, flat.
pub(super) fn product_sums<F: Float>(pool: &Pool, a: &[F], b: &[F], width: usize) -> (Vec<f64>, Vec<f64>) {
    column_sums(pool, a.len(), width, &Product { a, b })
}

/// The two numbers that every element adds to the sums of its column.
trait Terms<F>: Sync {
    /// Rows of which sums are taken in registers on AVX-512. Rows of 4,096 numbers lie in one set of the nearest cache, column by
    /// column, which has room for twelve lines of all arrays.
    const DEEP_WIDE: usize;

    /// Adds those of neighbours in one row to `a` and `b`: the first is element `at`, in column `j`.
    fn add(&self, at: usize, j: usize, a: &mut [F], b: &mut [F]);

    /// Asks for what belongs to `n` elements from `at` on, if there are so many.
    fn fetch(&self, at: usize, n: usize);
}

/// `d` and `d^2`, where `d = x - center`.
struct Shifted<'a, F> {
    x: &'a [F],
    center: &'a [F],
}

impl<F: Float> Terms<F> for Shifted<'_, F> {
    const DEEP_WIDE: usize = 8;

    #[inline(always)]
    fn add(&self, at: usize, j: usize, a: &mut [F], b: &mut [F]) {
        let n = a.len();
        let (b, x, center) = (&mut b[..n], &self.x[at..][..n], &self.center[j..][..n]);
        for i in 0..n {
            let d = x[i] - center[i];
            a[i] += d;
            b[i] += d * d;
        }
    }

    #[inline(always)]
    fn fetch(&self, at: usize, n: usize) {
        fetch_some(self.x, at, n);
    }
}

/// `a` and `a * b`.
struct Product<'a, F> {
    a: &'a [F],
    b: &'a [F],
}

impl<F: Float> Terms<F> for Product<'_, F> {
    const DEEP_WIDE: usize = 4;

    #[inline(always)]
    fn add(&self, at: usize, _: usize, sums: &mut [F], products: &mut [F]) {
        let n = sums.len();
        let (products, a, b) = (&mut products[..n], &self.a[at..][..n], &self.b[at..][..n]);
        for i in 0..n {
            sums[i] += a[i];
            products[i] += a[i] * b[i];
        }
    }

    #[inline(always)]
    fn fetch(&self, at: usize, n: usize) {
        fetch_some(self.a, at, n);
        fetch_some(self.b, at, n);
    }
}

/// `dy` and `dy * (x - mean)`.
struct Centered<'a, F> {
    dy: &'a [F],
    x: &'a [F],
    moments: &'a Moments<F>,
}

impl<F: Float> Terms<F> for Centered<'_, F> {
    const DEEP_WIDE: usize = 4;

    #[inline(always)]
    fn add(&self, at: usize, j: usize, a: &mut [F], b: &mut [F]) {
        let Self { dy, x, moments: Moments { center, offset, .. } } = self;
        let n = a.len();
        let (b, dy, x) = (&mut b[..n], &dy[at..][..n], &x[at..][..n]);
        let (center, offset) = (&center[j..][..n], &offset[j..][..n]);
        for i in 0..n {
            a[i] += dy[i];
            b[i] += dy[i] * ((x[i] - center[i]) - offset[i]);
        }
    }

    #[inline(always)]
    fn fetch(&self, at: usize, n: usize) {
        fetch_some(self.dy, at, n);
        fetch_some(self.x, at, n);
    }
}

/// Asks for `n` numbers from `at` on, if there are so many.
#[inline(always)]
fn fetch_some<F>(numbers: &[F], at: usize, n: usize) {
    fetch(numbers.get(at..at + n).unwrap_or_default());
}

/// Both sums of each of `width` columns over all rows of `elements` elements.
fn column_sums<F: Float>(
    pool: &Pool,
    elements: usize,
    width: usize,
    terms: &impl Terms<F>,
) -> (Vec<f64>, Vec<f64>) {
    let (mut sums, mut others) = (vec![0.0; width], vec![0.0; width]);
    let (isa, rows) = (Isa::best(), elements.checked_div(width).unwrap_or(0));
    let part = width.div_ceil(pool.threads()).next_multiple_of(COLUMNS).max(COLUMNS);
    let parts = sums.chunks_mut(part).zip(others.chunks_mut(part)).enumerate();
    pool.each(parts, |(i, (sums, others))| {
        let element = PhantomData::<F>;
        let wide = is_wide(isa);
        with(isa, ColumnSums { element, rows, width, first: i * part, terms, wide, sums, others });
    });
    (sums, others)
}

/// Whether there are registers for many columns, and asking for some rows at a time helps: processors with AVX-512 foresee fewer of
/// them than they read in that time, others only lose room in the nearest cache.
fn is_wide(isa: Isa) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) => true,
        _ => false,
    }
}

struct ColumnSums<'a, F, T> {
    element: PhantomData<F>,
    rows: usize,
    width: usize,
    /// The first column.
    first: usize,
    terms: &'a T,
    /// Whether it sums many columns side by side, and asks for numbers before it reads them.
    wide: bool,
    sums: &'a mut [f64],
    others: &'a mut [f64],
}

impl<F: Float, T: Terms<F>> ColumnSums<'_, F, T> {
    /// Adds some rows to the sums of columns from `done` on, `N` at a time; returns the first that is left.
    #[inline(always)]
    fn add_rows<const N: usize>(&self, rows: Range<usize>, done: usize, a: &mut [F], b: &mut [F]) -> usize {
        let (a, b) = (a[done..].as_chunks_mut::<N>().0, b[done..].as_chunks_mut::<N>().0);
        let count = N * a.len();
        for (i, (a, b)) in a.iter_mut().zip(b).enumerate() {
            let j = self.first + done + i * N;
            // Of their own: they stay in registers over the rows.
            let (mut sums, mut others) = (*a, *b);
            for row in rows.clone() {
                let at = row * self.width + j;
                if self.wide {
                    self.terms.fetch(at + AHEAD_OF_SUMS_BYTES / F::BYTES, N);
                }
                self.terms.add(at, j, &mut sums, &mut others);
            }
            (*a, *b) = (sums, others);
        }
        done + count
    }
}

impl<F: Float, T: Terms<F>> Work for ColumnSums<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let columns = self.sums.len();
        let (mut a, mut b) = (vec![F::zero(); columns], vec![F::zero(); columns]);
        let deep = if self.wide { T::DEEP_WIDE } else { DEEP };
        for start in (0..self.rows).step_by(BLOCK) {
            let end = (start + BLOCK).min(self.rows);
            for first in (start..end).step_by(deep) {
                let rows = first..(first + deep).min(end);
                let mut done = 0;
                if self.wide && F::BYTES == size_of::<f32>() {
                    done = self.add_rows::<WIDE>(rows.clone(), done, &mut a, &mut b);
                } else if self.wide {
                    done = self.add_rows::<WIDE_F64>(rows.clone(), done, &mut a, &mut b);
                }
                done = self.add_rows::<COLUMNS>(rows.clone(), done, &mut a, &mut b);
                for row in rows {
                    let j = self.first + done;
                    self.terms.add(row * self.width + j, j, &mut a[done..], &mut b[done..]);
                }
            }
            flush(&mut a, self.sums);
            flush(&mut b, self.others);
        }
    }
}

#[inline(always)]
fn flush<F: Float>(block: &mut [F], total: &mut [f64]) {
    for (block, total) in block.iter_mut().zip(total) {
        *total += block.as_f64();
        *block = F::zero();
    }
}

/// `dx = (dy - mean(dy) - x_hat * mean(dy * x_hat)) * scale`, where `x_hat = (x - mean) * inverse`; of fewer numbers for each
/// column: `dx = (dy - shift - (x - center) * slope) * scale`.
pub(super) struct Gradient<'a, F> {
    center: &'a [F],
    slope: Vec<F>,
    shift: Vec<F>,
    scale: &'a [F],
}

impl<'a, F: Float> Gradient<'a, F> {
    /// With `sum dy` and `sum dy * x_hat` of each column.
    pub(super) fn new(
        pool: &Pool,
        moments: &'a Moments<F>,
        inverse: &[F],
        scale: &'a [F],
        (x, dy): (&[F], &[F]),
    ) -> (Self, (Vec<f64>, Vec<f64>)) {
        let width = scale.len();
        let (dy_sum, mut dy_x_sum) = column_sums(pool, dy.len(), width, &Centered { dy, x, moments });
        let rows = dy.len().checked_div(width).unwrap_or(0) as f64;
        let (mut slope, mut shift) = (Vec::with_capacity(width), Vec::with_capacity(width));
        for (j, inverse) in inverse.iter().enumerate() {
            dy_x_sum[j] *= inverse.as_f64();
            slope.push(F::of(dy_x_sum[j] / rows * inverse.as_f64()));
            shift.push(F::of(dy_sum[j] / rows - moments.offset[j].as_f64() * slope[j].as_f64()));
        }
        (Self { center: &moments.center, slope, shift, scale }, (dy_sum, dy_x_sum))
    }

    /// Writes `dx` over `dy`.
    pub(super) fn write_over(&self, pool: &Pool, x: &[F], dy: &mut [F]) {
        each_row(pool, self.scale.len(), [x], dy, |j, [x], dy| self.over(j, x, dy));
    }

    /// Writes `dx`.
    pub(super) fn write_to(&self, pool: &Pool, x: &[F], dy: &[F], dx: &mut [F]) {
        each_row_into(pool, self.scale.len(), [x, dy], dx, self);
    }

    #[inline(always)]
    fn over(&self, j: usize, x: &[F], dy: &mut [F]) {
        let n = dy.len();
        let (x, center, slope) = (&x[..n], &self.center[j..][..n], &self.slope[j..][..n]);
        let (shift, scale) = (&self.shift[j..][..n], &self.scale[j..][..n]);
        for i in 0..n {
            dy[i] = number(dy[i], x[i], center[i], slope[i], shift[i], scale[i]);
        }
    }
}

impl<F: Float> Columns<F, 2> for Gradient<'_, F> {
    #[inline(always)]
    fn run(&self, j: usize, [x, dy]: [&[F]; 2], dx: &mut [F]) {
        let n = dx.len();
        let (x, dy, center, slope) = (&x[..n], &dy[..n], &self.center[j..][..n], &self.slope[j..][..n]);
        let (shift, scale) = (&self.shift[j..][..n], &self.scale[j..][..n]);
        for i in 0..n {
            dx[i] = number(dy[i], x[i], center[i], slope[i], shift[i], scale[i]);
        }
    }
}

/// One number of a [`Gradient`].
#[inline(always)]
fn number<F: Float>(dy: F, x: F, center: F, slope: F, shift: F, scale: F) -> F {
    (dy - shift - (x - center) * slope) * scale
}

/// What becomes of some columns of a row; a trait, because a closure may be left out of the code for an instruction set.
pub(super) trait Columns<F, const N: usize>: Sync {
    /// From `inputs` to `out`, from column `j` on; has to be `#[inline(always)]`.
    fn run(&self, j: usize, inputs: [&[F]; N], out: &mut [F]);
}

/// Most columns of one call.
const TILE: usize = 1024;
/// A row of so many bytes is made by parts, each for all rows before the next: three numbers for each column of a whole one would
/// not stay in the first-level cache.
const WIDE_BYTES: usize = 16 << 10;
/// A part has some more bytes: fewer are not written past the caches. Two inputs are read faster in longer parts (Zen 5).
const TILE_BYTES: usize = 2 << 10;
const TILE_BYTES_OF_TWO: usize = 4 << 10;

/// Calls `f(j, inputs, out)` for parts of rows, at most [`TILE`] columns from column `j` on, on all threads. All
/// slices are of equal length.
pub(super) fn each_row<F: Float, const N: usize>(
    pool: &Pool,
    width: usize,
    inputs: [&[F]; N],
    out: &mut [F],
    f: impl Fn(usize, [&[F]; N], &mut [F]) + Sync,
) {
    let (isa, part) = (Isa::best(), whole_rows(width));
    pool.each(out.chunks_mut(part).enumerate(), |(i, out)| {
        let inputs = inputs.map(|x| &x[i * part..][..out.len()]);
        with(isa, Rows { width, inputs, out, f: &f });
    });
}

/// As [`each_row`] where `out` is only written, past the caches if it is large.
pub(super) fn each_row_into<F: Float, const N: usize>(
    pool: &Pool,
    width: usize,
    inputs: [&[F]; N],
    out: &mut [F],
    f: &impl Columns<F, N>,
) {
    let (isa, whole, part) = (Isa::best(), out.len(), whole_rows(width));
    pool.each(out.chunks_mut(part).enumerate(), |(i, out)| {
        let inputs = inputs.map(|x| &x[i * part..][..out.len()]);
        with(isa, FillRows { isa, whole, width, inputs, out, f });
    });
}

/// Elements of one job: about [`PART`].
fn whole_rows(width: usize) -> usize {
    (PART / width.max(1)).max(1) * width.max(1)
}

struct FillRows<'a, 'f, F, G, const N: usize> {
    isa: Isa,
    /// Elements of the whole output.
    whole: usize,
    width: usize,
    inputs: [&'a [F]; N],
    out: &'a mut [F],
    f: &'f G,
}

impl<F: Float, G: Columns<F, N>, const N: usize> Work for FillRows<'_, '_, F, G, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { isa, whole, width, inputs, out, f } = self;
        let mut stream = Stream::new(isa, whole);
        let bytes = width * size_of::<F>();
        if bytes < WIDE_BYTES {
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                stream.fill(out, &mut Row { at: row * width, left: 0, turn: usize::MAX, jump: 0, inputs, f });
            }
            return;
        }
        // Parts end where lines of the output do: a line that two of them write would be read and written twice.
        let before = (out.as_ptr().addr() / size_of::<F>()).wrapping_neg() % F::LINE;
        let (rows, lines) = (out.len() / width, (width - before) / F::LINE);
        let tile = if N > 1 { TILE_BYTES_OF_TWO } else { TILE_BYTES };
        let parts = lines / (tile / size_of::<F>() / F::LINE + 1);
        let edge = |part: usize| match part {
            0 => 0,
            part if part == parts => width,
            part => before + part * lines / parts * F::LINE,
        };
        for (left, right) in (0..parts).map(|part| (edge(part), edge(part + 1))) {
            for row in 0..rows {
                let (at, end) = (row * width + left, row * width + right);
                let next = if row + 1 < rows { at + width } else { right };
                let mut part = Row { at, left, turn: right - left, jump: next.wrapping_sub(end), inputs, f };
                stream.fill(&mut out[at..end], &mut part);
            }
        }
    }
}

/// One row, or part of it.
struct Row<'a, 'f, F, G, const N: usize> {
    /// Where it begins, and in which column.
    at: usize,
    left: usize,
    /// How long it is if the next does not follow it, and how far that is away.
    turn: usize,
    jump: usize,
    inputs: [&'a [F]; N],
    f: &'f G,
}

impl<F: Float, G: Columns<F, N>, const N: usize> Fill<F> for Row<'_, '_, F, G, N> {
    #[inline(always)]
    fn fill(&mut self, j: usize, out: &mut [F]) {
        let (at, n, ahead) = (self.at + j, out.len(), AHEAD_BYTES / F::BYTES);
        let jump = if j + ahead < self.turn { 0 } else { self.jump };
        let soon = (at + ahead).wrapping_add(jump);
        self.inputs.iter().for_each(|x| fetch_some(x, soon, n));
        self.f.run(self.left + j, self.inputs.map(|x| &x[at..at + n]), out);
    }
}

struct Rows<'a, 'f, F, G, const N: usize> {
    width: usize,
    inputs: [&'a [F]; N],
    out: &'a mut [F],
    f: &'f G,
}

impl<F: Float, G, const N: usize> Work for Rows<'_, '_, F, G, N>
where
    G: Fn(usize, [&[F]; N], &mut [F]),
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { width, inputs, out, f } = self;
        for row in 0..out.len().checked_div(width).unwrap_or(0) {
            for j in (0..width).step_by(TILE) {
                let part = row * width + j..row * width + width.min(j + TILE);
                f(j, inputs.map(|x| &x[part.clone()]), &mut out[part.clone()]);
            }
        }
    }
}
