//! Sums over the rows of a batch, one per column, in one pass that reads row after row.
//!
//! Blocks of rows are summed in the element type and the blocks in `f64`: as fast as the plain loop, and the
//! rounding error does not grow with the batch. Threads share the columns of a sum and the rows of everything else, so
//! that a result does not depend on their number.
//!
//! Moments are taken of `x - first`, where `first` is the first row: differences of near numbers are exact,
//! so a feature with mean 1e6 and deviation 1e-2 keeps its variance, where `mean(x^2) - mean(x)^2` would
//! lose it (Chan, Golub, LeVeque 1983, "shifted data"). A first row far from the rest does no harm: its
//! distance is at most `sqrt(rows)` deviations.

use std::marker::PhantomData;

use super::affine::Affine;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Fill, Isa, PART, Pool, Stream, Work, fetch, with};

/// Rows that are summed in the element type before the sum goes to `f64`.
const BLOCK: usize = 64;
/// Rows of which sums are taken in registers.
const DEEP: usize = 4;
/// How many columns ahead numbers are asked for: so many rows at a time are more than a processor foresees.
const AHEAD: usize = 512;
/// Columns that are summed side by side, in registers; threads divide them by so many.
const COLUMNS: usize = 32;

/// Mean and spread of each column of a batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Moments<F> {
    /// The first row.
    first: Vec<F>,
    /// Mean minus first row.
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
        let rows = x.len() / width;
        let first = x[..width].to_vec();
        let (mut mean, mut m2) = column_sums(pool, x.len(), width, &Shifted { x, first: &first });
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
            *mean = first[j].as_f64() + distance;
        }
        Ok(Self { first, offset, mean, m2 })
    }

    /// `x_hat = (x - mean) * inverse`, in place, for some columns from column `j` on.
    #[inline(always)]
    pub(super) fn standardize(&self, j: usize, inverse: &[F], x: &mut [F]) {
        let statistics = self.first[j..].iter().zip(&self.offset[j..]).zip(&inverse[j..]);
        for (x, ((&first, &offset), &inverse)) in x.iter_mut().zip(statistics) {
            *x = ((*x - first) - offset) * inverse;
        }
    }
}

/// `y = (x - mean) * inverse * gamma + beta`.
pub(super) struct Normalize<'a, F> {
    pub(super) moments: &'a Moments<F>,
    pub(super) inverse: &'a [F],
    pub(super) affine: &'a Affine<F>,
}

impl<F: Float> Columns<F, 1> for Normalize<'_, F> {
    #[inline(always)]
    fn run(&self, j: usize, [x]: [&[F]; 1], y: &mut [F]) {
        let Self { moments, inverse, affine } = self;
        let (n, (gamma, beta)) = (y.len(), affine.parts());
        let (x, first, offset) = (&x[..n], &moments.first[j..][..n], &moments.offset[j..][..n]);
        let (inverse, gamma, beta) = (&inverse[j..][..n], &gamma[j..][..n], &beta[j..][..n]);
        for i in 0..n {
            y[i] = ((x[i] - first[i]) - offset[i]) * inverse[i] * gamma[i] + beta[i];
        }
    }
}

/// Per column the sum of `a` and the sum of `a * b`; both `[rows, width]`, flat.
pub(super) fn product_sums<F: Float>(pool: &Pool, a: &[F], b: &[F], width: usize) -> (Vec<f64>, Vec<f64>) {
    column_sums(pool, a.len(), width, &Product { a, b })
}

/// The two numbers that every element adds to the sums of its column.
trait Terms<F>: Sync {
    /// Adds those of neighbours in one row to `a` and `b`: the first is element `at`, in column `j`.
    fn add(&self, at: usize, j: usize, a: &mut [F], b: &mut [F]);

    /// Asks for what belongs to [`COLUMNS`] elements from `at` on, if there are so many.
    fn fetch(&self, at: usize);
}

/// `d` and `d^2`, where `d = x - first`.
struct Shifted<'a, F> {
    x: &'a [F],
    first: &'a [F],
}

impl<F: Float> Terms<F> for Shifted<'_, F> {
    #[inline(always)]
    fn add(&self, at: usize, j: usize, a: &mut [F], b: &mut [F]) {
        let n = a.len();
        let (b, x, first) = (&mut b[..n], &self.x[at..][..n], &self.first[j..][..n]);
        for i in 0..n {
            let d = x[i] - first[i];
            a[i] += d;
            b[i] += d * d;
        }
    }

    #[inline(always)]
    fn fetch(&self, at: usize) {
        fetch_some(self.x, at, COLUMNS);
    }
}

/// `a` and `a * b`.
struct Product<'a, F> {
    a: &'a [F],
    b: &'a [F],
}

impl<F: Float> Terms<F> for Product<'_, F> {
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
    fn fetch(&self, at: usize) {
        fetch_some(self.a, at, COLUMNS);
        fetch_some(self.b, at, COLUMNS);
    }
}

/// `dy` and `dy * x_hat`, with `x_hat` as [`Moments::standardize`] makes it.
struct Standardized<'a, F> {
    dy: &'a [F],
    x: &'a [F],
    moments: &'a Moments<F>,
    inverse: &'a [F],
}

impl<F: Float> Terms<F> for Standardized<'_, F> {
    #[inline(always)]
    fn add(&self, at: usize, j: usize, a: &mut [F], b: &mut [F]) {
        let Self { dy, x, moments: Moments { first, offset, .. }, inverse } = self;
        let n = a.len();
        let (b, dy, x) = (&mut b[..n], &dy[at..][..n], &x[at..][..n]);
        let (first, offset, inverse) = (&first[j..][..n], &offset[j..][..n], &inverse[j..][..n]);
        for i in 0..n {
            a[i] += dy[i];
            b[i] += dy[i] * (((x[i] - first[i]) - offset[i]) * inverse[i]);
        }
    }

    #[inline(always)]
    fn fetch(&self, at: usize) {
        fetch_some(self.dy, at, COLUMNS);
        fetch_some(self.x, at, COLUMNS);
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
        with(isa, ColumnSums { element, rows, width, first: i * part, terms, sums, others });
    });
    (sums, others)
}

struct ColumnSums<'a, F, T> {
    element: PhantomData<F>,
    rows: usize,
    width: usize,
    /// The first column.
    first: usize,
    terms: &'a T,
    sums: &'a mut [f64],
    others: &'a mut [f64],
}

impl<F: Float, T: Terms<F>> Work for ColumnSums<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let columns = self.sums.len();
        let (mut a, mut b) = (vec![F::zero(); columns], vec![F::zero(); columns]);
        for start in (0..self.rows).step_by(BLOCK) {
            let end = (start + BLOCK).min(self.rows);
            for first in (start..end).step_by(DEEP) {
                let last = (first + DEEP).min(end);
                let at = |row: usize, j: usize| row * self.width + self.first + j;
                let ((a, a_rest), (b, b_rest)) = (a.as_chunks_mut::<COLUMNS>(), b.as_chunks_mut::<COLUMNS>());
                let rest = COLUMNS * a.len();
                for (i, (a, b)) in a.iter_mut().zip(b).enumerate() {
                    // Of their own: they stay in registers over the rows.
                    let (mut sums, mut others) = (*a, *b);
                    for row in first..last {
                        let j = i * COLUMNS;
                        self.terms.fetch(at(row, j) + AHEAD);
                        self.terms.add(at(row, j), self.first + j, &mut sums, &mut others);
                    }
                    (*a, *b) = (sums, others);
                }
                for row in first..last {
                    self.terms.add(at(row, rest), self.first + rest, a_rest, b_rest);
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

/// What the backward pass knows of each column: `mean(dy)`, `mean(dy * x_hat)`, and `gamma / std`.
struct Backward<'a, F> {
    dy_mean: Vec<F>,
    dy_x_mean: Vec<F>,
    scale: &'a [F],
}

impl<'a, F: Float> Backward<'a, F> {
    fn new(rows: usize, sums: &(Vec<f64>, Vec<f64>), scale: &'a [F]) -> Self {
        let mean = |sums: &[f64]| sums.iter().map(|sum| F::of(sum / rows as f64)).collect();
        Self { dy_mean: mean(&sums.0), dy_x_mean: mean(&sums.1), scale }
    }

    /// `dx = (dy - mean(dy) - x_hat * mean(dy * x_hat)) * scale`, from column `j` on.
    #[inline(always)]
    fn run(&self, j: usize, x_hat: &[F], dy: &mut [F]) {
        let means = self.dy_mean[j..].iter().zip(&self.dy_x_mean[j..]).zip(&self.scale[j..]);
        for ((dy, &x_hat), ((&dy_mean, &dy_x_mean), &scale)) in dy.iter_mut().zip(x_hat).zip(means) {
            *dy = (*dy - dy_mean - x_hat * dy_x_mean) * scale;
        }
    }
}

/// `dx = (dy - mean(dy) - x_hat * mean(dy * x_hat)) * scale`, written over `dy`.
/// Returns `sum dy` and `sum dy * x_hat` of each column.
pub(super) fn backward<F: Float>(
    pool: &Pool,
    dy: &mut [F],
    x_hat: &[F],
    scale: &[F],
) -> (Vec<f64>, Vec<f64>) {
    let width = scale.len();
    let sums = product_sums(pool, dy, x_hat, width);
    let backward = Backward::new(dy.len().checked_div(width).unwrap_or(0), &sums, scale);
    each_row(pool, width, [x_hat], [dy], |j, [x_hat], [dy]| backward.run(j, x_hat, dy));
    sums
}

/// As [`backward`], from `x` instead of `x_hat`, into `dx`.
pub(super) fn backward_from<F: Float>(
    pool: &Pool,
    moments: &Moments<F>,
    inverse: &[F],
    scale: &[F],
    (x, dy): (&[F], &[F]),
    dx: &mut [F],
) -> (Vec<f64>, Vec<f64>) {
    let width = scale.len();
    let sums = column_sums(pool, dy.len(), width, &Standardized { dy, x, moments, inverse });
    let backward = Backward::new(dy.len().checked_div(width).unwrap_or(0), &sums, scale);
    each_row_into(pool, width, [x, dy], dx, &BackwardFrom { backward, moments, inverse });
    sums
}

/// Columns that [`BackwardFrom`] takes together.
const SOME: usize = 16;

/// What [`backward_from`] does to columns.
struct BackwardFrom<'a, F> {
    backward: Backward<'a, F>,
    moments: &'a Moments<F>,
    inverse: &'a [F],
}

impl<F: Float> Columns<F, 2> for BackwardFrom<'_, F> {
    #[inline(always)]
    fn run(&self, j: usize, [x, dy]: [&[F]; 2], dx: &mut [F]) {
        let Self { backward: Backward { dy_mean, dy_x_mean, scale }, moments, inverse } = self;
        let one = |x: F, dy: F, first: F, offset: F, inverse: F, dy_mean: F, dy_x_mean: F, scale: F| {
            let x_hat = ((x - first) - offset) * inverse;
            (dy - dy_mean - x_hat * dy_x_mean) * scale
        };
        let n = dx.len();
        let Some(last) = n.checked_sub(SOME) else {
            for i in 0..n {
                let at = j + i;
                let (first, offset) = (moments.first[at], moments.offset[at]);
                dx[i] = one(x[i], dy[i], first, offset, inverse[at], dy_mean[at], dy_x_mean[at], scale[at]);
            }
            return;
        };
        for at in (0..n).step_by(SOME) {
            // The last part ends with the last column, and makes some of the part before again.
            let at = at.min(last);
            // Arrays, and a result of its own: so many slices are too many for the compiler to tell from `dx`.
            let (first, offset, inverse) =
                (some(&moments.first, j + at), some(&moments.offset, j + at), some(inverse, j + at));
            let (dy_mean, dy_x_mean, scale) =
                (some(dy_mean, j + at), some(dy_x_mean, j + at), some(scale, j + at));
            let (x, dy, mut own) = (some(x, at), some(dy, at), [F::zero(); SOME]);
            for i in 0..SOME {
                own[i] =
                    one(x[i], dy[i], first[i], offset[i], inverse[i], dy_mean[i], dy_x_mean[i], scale[i]);
            }
            dx[at..at + SOME].copy_from_slice(&own);
        }
    }
}

/// The numbers from `at` on.
#[inline(always)]
fn some<F: Float>(numbers: &[F], at: usize) -> [F; SOME] {
    let mut own = [F::zero(); SOME];
    own.copy_from_slice(&numbers[at..at + SOME]);
    own
}

/// What becomes of some columns of a row; a trait, because a closure may be left out of the code for an instruction set.
pub(super) trait Columns<F, const N: usize>: Sync {
    /// From `inputs` to `out`, from column `j` on; has to be `#[inline(always)]`.
    fn run(&self, j: usize, inputs: [&[F]; N], out: &mut [F]);
}

/// Most columns of one call.
const TILE: usize = 1024;

/// Calls `f(j, inputs, outputs)` for parts of rows, at most [`TILE`] columns from column `j` on, on all threads. All
/// slices are of equal length.
pub(super) fn each_row<F: Float, const N: usize, const M: usize>(
    pool: &Pool,
    width: usize,
    inputs: [&[F]; N],
    outputs: [&mut [F]; M],
    f: impl Fn(usize, [&[F]; N], [&mut [F]; M]) + Sync,
) {
    let elements = outputs.first().map_or(0, |out| out.len());
    let part = whole_rows(width);
    let mut outputs = outputs.map(|out| out.chunks_mut(part));
    let isa = Isa::best();
    let jobs = (0..elements.div_ceil(part)).map(|i| {
        let inputs = inputs.map(|x| &x[i * part..elements.min((i + 1) * part)]);
        (inputs, outputs.each_mut().map(|out| out.next().unwrap_or_default()))
    });
    pool.each(jobs, |(inputs, outputs)| with(isa, Rows { width, inputs, outputs, f: &f }));
}

/// As [`each_row`] for one output that is only written, past the caches if it is large.
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
        // Some columns of all rows, then the next: what belongs to the columns stays in the nearest cache.
        for first in (0..width).step_by(TILE) {
            let columns = TILE.min(width - first);
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                let of = |row| inputs.map(|x| x.get(row * width + first..).unwrap_or_default());
                let (inputs, next) = (of(row), of(row + 1));
                stream.fill(&mut out[first..first + columns], &mut Piece { first, inputs, next, f });
            }
        }
        stream.finish();
    }
}

/// Columns of one row, from column `first` on.
struct Piece<'a, 'f, F, G, const N: usize> {
    first: usize,
    inputs: [&'a [F]; N],
    /// What the next row will be made from.
    next: [&'a [F]; N],
    f: &'f G,
}

impl<F: Float, G: Columns<F, N>, const N: usize> Fill<F> for Piece<'_, '_, F, G, N> {
    #[inline(always)]
    fn fill(&mut self, at: usize, out: &mut [F]) {
        self.next.iter().for_each(|x| fetch_some(x, at, out.len()));
        let inputs = self.inputs.map(|x| &x[at..at + out.len()]);
        self.f.run(self.first + at, inputs, out);
    }
}

struct Rows<'a, 'f, F, G, const N: usize, const M: usize> {
    width: usize,
    inputs: [&'a [F]; N],
    outputs: [&'a mut [F]; M],
    f: &'f G,
}

impl<F: Float, G, const N: usize, const M: usize> Work for Rows<'_, '_, F, G, N, M>
where
    G: Fn(usize, [&[F]; N], [&mut [F]; M]),
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { width, inputs, mut outputs, f } = self;
        let rows = outputs.first().map_or(0, |out| out.len()).checked_div(width).unwrap_or(0);
        for row in 0..rows {
            for j in (0..width).step_by(TILE) {
                let part = row * width + j..row * width + width.min(j + TILE);
                let inputs = inputs.map(|x| &x[part.clone()]);
                f(j, inputs, outputs.each_mut().map(|out| &mut out[part.clone()]));
            }
        }
    }
}
