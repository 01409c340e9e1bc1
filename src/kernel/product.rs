//! Matrix product of real numbers, `f32` or `f64`.
//!
//! ```text
//! y[i, j] = activation(bias[j] + sum over k of x[i, k] * w[j, k])
//! ```
//!
//! Every sum is one chain over `k = 0, 1, ..`, in that order, with fused multiply-adds where the
//! processor has them, and the bias is added last. So a result depends neither on the batch it was
//! computed in, nor on how rows and columns were divided among threads, and all sets with fused
//! multiply-adds give the same bits. Without them (`Scalar`) each step rounds twice. Both lie within
//! `k * EPSILON * sum over k of |x| |w|` of the exact sum.
//!
//! Weights are packed in panels of 32 columns, these in strips of a cache line for each `k`, zero padded. A tile of
//! the result stays in registers over all of `k`, or over as many as fit a small cache.
//!
//! [`multiply`] and [`affine`] leave out the `k` at which the rows of a tile of `x` are all zero (images have many), [`product`] those
//! at which a panel of `b` is; [`multiply`] not for one row with more than 8 MB of weights. A term `0 * w` changes no bit of a sum, unless `w` is infinite or NaN: there the sum
//! that would be NaN is not.

use std::ops::Range;

use super::Isa;
use super::block::{Add, Steps, Sums, blocks};
use super::live::{Live, Skip};
use super::matrix::{Matrix, MatrixMut};
use super::panels::{PackedReal, Step};
use super::real::Real;
use super::tail::Fused;
use super::tiles::{MAX_ROWS, PANEL};

/// Memory for packed matrices: grows to what is needed, and is kept from call to call.
// The sums first, on cache lines of their own: vectors that cross two are slow to store, and slower to load again.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct ScratchReal<F> {
    sums: Sums<F>,
    rows: Vec<F>,
    panel: Vec<Step<F>>,
    live: Live,
}

impl<F: Real> Default for ScratchReal<F> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            panel: Vec::new(),
            live: Live::default(),
            sums: [[F::default(); PANEL]; MAX_ROWS],
        }
    }
}

/// `y = activation(x * w^T + bias)` for the `panels` of packed `weights`.
///
/// `y` has the columns of `panels` alone: `32 * panels.start ..` up to `32 * panels.end` or the last;
/// `bias` covers all outputs.
///
/// # Panics
/// If lengths disagree.
///
/// ```
/// use trimnet::kernel::{Fused, Isa, Matrix, MatrixMut, PackedReal, ScratchReal, multiply};
///
/// let weights = PackedReal::new(Matrix::new(&[1.0, 2.0, 3.0, -4.0], 2, 2));
/// let mut y = [0.0f32; 2];
/// let (x, y_matrix) = (Matrix::new(&[1.0, 1.0], 1, 2), MatrixMut::new(&mut y, 1, 2));
/// multiply(Isa::best(), x, &weights, 0..1, Some(&[0.5, 0.5]), Fused::Relu, y_matrix, &mut ScratchReal::default());
/// assert_eq!(y, [3.5, 0.0]);
/// ```
#[expect(clippy::too_many_arguments)]
pub fn multiply<F: Real>(
    isa: Isa,
    x: Matrix<'_, F>,
    weights: &PackedReal<F>,
    panels: Range<usize>,
    bias: Option<&[F]>,
    activation: Fused,
    y: MatrixMut<'_, F>,
    scratch: &mut ScratchReal<F>,
) {
    assert!(panels.start <= panels.end && panels.end <= weights.panels(), "panels {panels:?}");
    let outputs = weights.outputs;
    let columns = (panels.end * PANEL).min(outputs) - (panels.start * PANEL).min(outputs);
    assert_eq!(bias.map_or(outputs, <[_]>::len), outputs, "bias of {outputs} outputs");
    assert_eq!((x.rows(), x.columns()), (y.rows(), weights.inputs), "shape of the input");
    assert_eq!(y.columns(), columns, "columns of the result");
    let add = bias.map_or(Add::Nothing, |bias| Add::Bias(&bias[(panels.start * PANEL).min(outputs)..]));
    let steps = Steps::Packed(&weights.steps[panels.start * weights.inputs..panels.end * weights.inputs]);
    let ScratchReal { rows, live, sums, .. } = scratch;
    blocks(isa, x, steps, add, activation, y, Skip::Rows, rows, live, sums);
}

/// `y = activation(x * w^T + bias)` for weights `[outputs, inputs]` that are not packed, of any strides.
///
/// As [`multiply`], for weights that change from call to call. To divide the work, split `y` by rows or columns and
/// pass the matching part of `x`, or of `weights` and `bias`.
///
/// # Panics
/// If shapes disagree.
pub fn affine<F: Real>(
    isa: Isa,
    x: Matrix<'_, F>,
    weights: Matrix<'_, F>,
    bias: Option<&[F]>,
    activation: Fused,
    y: MatrixMut<'_, F>,
    scratch: &mut ScratchReal<F>,
) {
    let (outputs, depth) = (weights.rows(), weights.columns());
    assert_eq!(bias.map_or(outputs, <[_]>::len), outputs, "bias of {outputs} outputs");
    assert_eq!((x.rows(), x.columns(), outputs), (y.rows(), depth, y.columns()), "shapes of a layer");
    let ScratchReal { rows, panel, live, sums } = scratch;
    panel.resize(panel.len().max(depth), Step([F::default(); PANEL]));
    let steps = Steps::Loose(weights, &mut panel[..depth]);
    let add = bias.map_or(Add::Nothing, Add::Bias);
    blocks(isa, x, steps, add, activation, y, Skip::Rows, rows, live, sums);
}

/// Whether a product replaces what the result holds, or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// `c = a * b`.
    Replace,
    /// `c = c + a * b`.
    Add,
}

/// `c = a * b` or `c = c + a * b`, with `a` `[m, k]` and `b` `[k, n]` of any strides: transposes are free.
///
/// To divide the work, split `c` by rows or columns and pass the matching part of `a` or `b`.
///
/// # Panics
/// If shapes disagree.
///
/// ```
/// use trimnet::kernel::{Update, Isa, Matrix, MatrixMut, ScratchReal, product};
///
/// let a = [1.0, 2.0, 3.0, 4.0];
/// let a = Matrix::new(&a, 2, 2);
/// let mut c = [0.0; 4];
/// product(Isa::best(), a, a.transposed(), Update::Replace, MatrixMut::new(&mut c, 2, 2), &mut ScratchReal::default());
/// assert_eq!(c, [5.0, 11.0, 11.0, 25.0]);
/// ```
pub fn product<F: Real>(
    isa: Isa,
    a: Matrix<'_, F>,
    b: Matrix<'_, F>,
    update: Update,
    c: MatrixMut<'_, F>,
    scratch: &mut ScratchReal<F>,
) {
    assert_eq!(
        (a.rows(), a.columns(), b.columns()),
        (c.rows(), b.rows(), c.columns()),
        "shapes of a product"
    );
    let depth = a.columns();
    let add = if update == Update::Add { Add::Result } else { Add::Nothing };
    let ScratchReal { rows, panel, live, sums } = scratch;
    panel.resize(panel.len().max(depth), Step([F::default(); PANEL]));
    let steps = Steps::Loose(b.transposed(), &mut panel[..depth]);
    blocks(isa, a, steps, add, Fused::Identity, c, Skip::Panels, rows, live, sums);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tail::Fused;

    /// Numbers in -1..1 that look random and depend on the seed alone.
    fn numbers<F: Real + From<f32>>(seed: u64, count: usize) -> Vec<F> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            F::from((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        };
        // A product, so that the numbers of an f64 have more digits than those of an f32.
        (0..count).map(|_| next() * next()).collect()
    }

    macro_rules! promises {
        ($module:ident, $t:ty) => {
            mod $module {
                use super::*;

                /// `a b`, one chain of fused (or not) multiply-adds per element.
                fn chain(isa: Isa, a: Matrix<'_, $t>, b: Matrix<'_, $t>) -> Vec<$t> {
                    let columns: Vec<Vec<$t>> =
                        (0..b.columns()).map(|j| b.transposed().row(j).copied().collect()).collect();
                    let mut c = Vec::new();
                    for i in 0..a.rows() {
                        for column in &columns {
                            c.push(a.row(i).zip(column).fold(0.0, |sum, (&a, &b)| match isa {
                                Isa::Scalar => sum + a * b,
                                _ => a.mul_add(b, sum),
                            }));
                        }
                    }
                    c
                }

                #[test]
                fn leaving_out_zeros_changes_no_bit() {
                    for isa in Isa::available() {
                        let scratch = &mut ScratchReal::default();
                        for (rows, inputs, outputs) in [
                            (14, 40, 33),
                            (128, 200, 37),
                            (29, 131, 64),
                            (1, 9, 5),
                            (1, 90, 133),
                            (8, 1100, 35),
                        ] {
                            let mut x = numbers::<$t>(1, rows * inputs);
                            // Whole columns, whole rows, and every other block of 32 columns of some rows.
                            for (at, x) in x.iter_mut().enumerate() {
                                let (i, k) = (at / inputs, at % inputs);
                                if k % 3 == 0 || i % 5 == 1 || (i % 2 == 0 && k / 32 % 2 == 0) {
                                    *x = if k % 2 == 0 { 0.0 } else { -0.0 };
                                }
                            }
                            let w = numbers::<$t>(2, inputs * outputs);
                            let dy = numbers::<$t>(3, rows * outputs);
                            let bias = numbers::<$t>(4, outputs);
                            let x = Matrix::new(&x, rows, inputs);
                            let (w, dy) = (Matrix::new(&w, outputs, inputs), Matrix::new(&dy, rows, outputs));
                            let mut y = vec![9.0; rows * outputs];
                            let out = MatrixMut::new(&mut y, rows, outputs);
                            affine(isa, x, w, Some(&bias), Fused::Identity, out, scratch);
                            let mut expected = chain(isa, x, w.transposed());
                            for row in expected.chunks_exact_mut(outputs) {
                                row.iter_mut().zip(&bias).for_each(|(y, b)| *y += b);
                            }
                            assert_eq!(y, expected, "{isa} {rows} {inputs} {outputs}");
                            let packed = PackedReal::new(w);
                            let mut y = vec![9.0; rows * outputs];
                            let (all, out) = (0..packed.panels(), MatrixMut::new(&mut y, rows, outputs));
                            multiply(isa, x, &packed, all, Some(&bias), Fused::Identity, out, scratch);
                            assert_eq!(y, expected, "{isa} {rows} {inputs} {outputs}, packed before");
                            let mut dw = vec![9.0; outputs * inputs];
                            let out = MatrixMut::new(&mut dw, outputs, inputs);
                            product(isa, dy.transposed(), x, Update::Replace, out, scratch);
                            assert_eq!(dw, chain(isa, dy.transposed(), x), "{isa} {rows} {inputs} {outputs}");
                        }
                    }
                }

                #[test]
                fn every_set_gives_the_bits_of_the_chain_whatever_the_batch_and_the_division() {
                    for isa in Isa::available() {
                        let scratch = &mut ScratchReal::default();
                        for length in 0..=130 {
                            for (rows, inputs, outputs) in
                                [(length, 7, 9), (3, length, 18), (15, 5, length), (1, 7, 2 * length)]
                            {
                                let x = numbers::<$t>(1, rows * inputs);
                                let w = numbers::<$t>(2, inputs * outputs);
                                let bias = numbers::<$t>(3, outputs);
                                let (x, w) =
                                    (Matrix::new(&x, rows, inputs), Matrix::new(&w, outputs, inputs));
                                let mut expected = chain(isa, x, w.transposed());
                                for row in expected.chunks_exact_mut(outputs.max(1)) {
                                    row.iter_mut().zip(&bias).for_each(|(y, b)| *y = (*y + b).max(0.0));
                                }
                                let packed = PackedReal::new(w);
                                let mut y = vec![9.0; rows * outputs];
                                let out = MatrixMut::new(&mut y, rows, outputs);
                                let all = 0..packed.panels();
                                multiply(isa, x, &packed, all, Some(&bias), Fused::Relu, out, scratch);
                                assert_eq!(y, expected, "{isa} {rows} {inputs} {outputs}");
                                let mut y = vec![9.0; rows * outputs];
                                let mut rest = MatrixMut::new(&mut y, rows, outputs);
                                for panel in 0..packed.panels() {
                                    let columns = rest.columns().min(PANEL);
                                    let (out, more) = rest.split_columns(columns);
                                    let one = panel..panel + 1;
                                    multiply(isa, x, &packed, one, Some(&bias), Fused::Relu, out, scratch);
                                    rest = more;
                                }
                                assert_eq!(y, expected, "{isa} {rows} {inputs} {outputs}, panel by panel");
                            }
                        }
                    }
                }

                #[test]
                fn to_fetch_weights_ahead_changes_no_bit() {
                    // So many tiles and weights that the next panel is fetched on every set.
                    let (rows, inputs, outputs) = (160, 801, 131);
                    let (x, w) = (numbers::<$t>(1, rows * inputs), numbers::<$t>(2, inputs * outputs));
                    let (x, w) = (Matrix::new(&x, rows, inputs), Matrix::new(&w, outputs, inputs));
                    let packed = PackedReal::new(w);
                    for isa in Isa::available() {
                        let scratch = &mut ScratchReal::default();
                        let mut expected = vec![9.0; rows * outputs];
                        let out = MatrixMut::new(&mut expected, rows, outputs);
                        affine(isa, x, w, None, Fused::Identity, out, scratch);
                        let mut y = vec![9.0; rows * outputs];
                        let out = MatrixMut::new(&mut y, rows, outputs);
                        multiply(isa, x, &packed, 0..packed.panels(), None, Fused::Identity, out, scratch);
                        assert_eq!(y, expected, "{isa}");
                    }
                }

                #[test]
                fn a_product_takes_every_transpose_and_adds_when_asked() {
                    for isa in Isa::available() {
                        let scratch = &mut ScratchReal::default();
                        for (m, k, n) in [
                            (1, 1, 1),
                            (5, 40, 33),
                            (17, 3, 70),
                            (33, 65, 31),
                            (150, 20, 34),
                            (4, 0, 4),
                            (9, 1100, 35),
                            // A result whose lines are fetched ahead.
                            (1001, 2, 135),
                        ] {
                            let (a, b) = (numbers::<$t>(1, m * k), numbers::<$t>(2, k * n));
                            for a in [Matrix::new(&a, m, k), Matrix::new(&a, k, m).transposed()] {
                                for b in [Matrix::new(&b, k, n), Matrix::new(&b, n, k).transposed()] {
                                    let expected = chain(isa, a, b);
                                    let mut c = vec![3.0; m * n];
                                    let out = MatrixMut::new(&mut c, m, n);
                                    product(isa, a, b, Update::Replace, out, scratch);
                                    assert_eq!(c, expected, "{isa} {m} {k} {n}");
                                    let out = MatrixMut::new(&mut c, m, n);
                                    product(isa, a, b, Update::Add, out, scratch);
                                    let twice: Vec<$t> = expected.iter().map(|x| x + x).collect();
                                    assert_eq!(c, twice, "{isa} {m} {k} {n}, added");
                                }
                            }
                        }
                    }
                }

                #[test]
                fn relu_keeps_nan() {
                    for isa in Isa::available() {
                        let packed = PackedReal::new(Matrix::new(&[<$t>::NAN, -1.0, 1.0], 3, 1));
                        let mut y = [0.0; 3];
                        let (x, out) = (Matrix::new(&[1.0], 1, 1), MatrixMut::new(&mut y, 1, 3));
                        multiply(isa, x, &packed, 0..1, None, Fused::Relu, out, &mut ScratchReal::default());
                        assert!(y[0].is_nan() && y[1..] == [0.0, 1.0], "{isa}: {y:?}");
                    }
                }
            }
        };
    }

    promises!(in_f32, f32);
    promises!(in_f64, f64);
}
