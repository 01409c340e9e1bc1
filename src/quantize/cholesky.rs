//! The triangular factor of an inverse, as [`GptqQuantizer`](super::GptqQuantizer) needs it.
//!
//! ```text
//! U^T U = H^-1     U upper, H symmetric and positive definite     [n, n], row-major
//! L L^T = H with its rows and columns in reverse order (Cholesky);     U = L^-1, reversed again
//! ```
//!
//! Blocks of 64 rows and columns; what a block does to the rest is a matrix product. Every number is one chain of sums, so the
//! bits are the same for any number of threads.

use crate::kernel::{Isa, Matrix, MatrixMut, Pool, ScratchReal, Update, product};

pub(super) const BLOCK: usize = 64;

/// Columns of a product that one thread takes.
const COLUMNS: usize = 256;

/// `U`, or none if `H` is not positive definite as far as these numbers can tell.
pub(super) fn inverse_factor(mut h: Vec<f64>, n: usize, pool: &Pool) -> Option<Vec<f64>> {
    h.reverse();
    factor(&mut h, n, pool)?;
    let mut upper = inverse(&h, n, pool);
    upper.reverse();
    Some(upper)
}

/// `L` in the place of the lower triangle of `a`; the rest is left with numbers of no meaning.
fn factor(a: &mut [f64], n: usize, pool: &Pool) -> Option<()> {
    for first in (0..n).step_by(BLOCK) {
        let end = (first + BLOCK).min(n);
        for i in first..end {
            for j in first..i {
                a[i * n + j] =
                    (a[i * n + j] - dot(&a[i * n + first..], &a[j * n + first..], j - first)) / a[j * n + j];
            }
            let row = &a[i * n + first..];
            let square = a[i * n + i] - dot(row, row, i - first);
            if !(square > 0.0 && square.is_finite()) {
                return None;
            }
            a[i * n + i] = square.sqrt();
        }
        let (block, below) = a.split_at_mut(end * n);
        let block = &block[first * n..];
        pool.each(below.chunks_mut(BLOCK * n), |rows| {
            for row in rows.chunks_exact_mut(n) {
                for (j, line) in (first..end).zip(block.chunks_exact(n)) {
                    row[j] = (row[j] - dot(&row[first..], &line[first..], j - first)) / line[j];
                }
            }
        });
        let panel: Vec<f64> = below.chunks_exact(n).flat_map(|row| &row[first..end]).copied().collect();
        let panel = Matrix::new(&panel, n - end, end - first);
        let minus: Vec<f64> = below.chunks_exact(n).flat_map(|row| &row[first..end]).map(|x| -x).collect();
        let minus = Matrix::new(&minus, n - end, end - first);
        pool.each(below.chunks_mut(BLOCK * n).enumerate(), |(part, rows)| {
            let (at, count) = (part * BLOCK, rows.len() / n);
            // Up to the diagonal.
            let columns = at + count;
            let (a, b) = (minus.row_range(at, count), panel.row_range(0, columns).transposed());
            let c = MatrixMut::strided(&mut rows[end..], (count, columns), n);
            product(Isa::best(), a, b, Update::Add, c, &mut ScratchReal::default());
        });
    }
    Some(())
}

/// `L^-1`, zeros above its diagonal.
fn inverse(lower: &[f64], n: usize, pool: &Pool) -> Vec<f64> {
    let mut all = vec![0.0; n * n];
    for first in (0..n).step_by(BLOCK) {
        let end = (first + BLOCK).min(n);
        let width = end - first;
        let l = |i: usize, j: usize| lower[(first + i) * n + first + j];
        let mut own = vec![0.0; width * width];
        for j in 0..width {
            own[j * width + j] = 1.0 / l(j, j);
            for i in j + 1..width {
                let sum: f64 = (j..i).map(|k| l(i, k) * own[k * width + j]).sum();
                own[i * width + j] = -sum / l(i, i);
            }
        }
        // X[i, ..first] = -L[i, i]^-1 (L[i, ..first] X[..first, ..first])
        let (above, rows) = all.split_at_mut(first * n);
        let left = Matrix::strided(&lower[first * n..], (width, first), (n, 1));
        let above = Matrix::strided(above, (first, first), (n, 1));
        let mut sums = vec![0.0; width * first];
        pool.run_columns(MatrixMut::new(&mut sums, width, first), COLUMNS, |part, sums| {
            let above = above.column_range(part * COLUMNS, sums.columns());
            product(Isa::best(), left, above, Update::Replace, sums, &mut ScratchReal::default());
        });
        let minus: Vec<f64> = own.iter().map(|x| -x).collect();
        let (minus, sums) = (Matrix::new(&minus, width, width), Matrix::new(&sums, width, first));
        let out = MatrixMut::strided(rows, (width, first), n);
        product(Isa::best(), minus, sums, Update::Replace, out, &mut ScratchReal::default());
        for (row, own) in rows.chunks_exact_mut(n).zip(own.chunks_exact(width)) {
            row[first..end].copy_from_slice(own);
        }
    }
    all
}

/// The product of the first `count` numbers of both.
fn dot(a: &[f64], b: &[f64], count: usize) -> f64 {
    a[..count].iter().zip(&b[..count]).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A^T A of numbers that look random, and some more on the diagonal.
    fn positive(n: usize) -> Vec<f64> {
        let a: Vec<f64> = (0..n * n).map(|i| ((i * i * 31 + i * 7) % 101) as f64 / 50.0 - 1.0).collect();
        let mut h = vec![0.0; n * n];
        for (at, h) in h.iter_mut().enumerate() {
            let (i, j) = (at / n, at % n);
            *h = (0..n).map(|k| a[k * n + i] * a[k * n + j]).sum::<f64>() + f64::from(u8::from(i == j));
        }
        h
    }

    #[test]
    fn the_factor_is_upper_and_its_square_the_inverse() {
        for n in [1, 2, 5, 63, 64, 65, 130, 200] {
            let h = positive(n);
            let u = inverse_factor(h.clone(), n, &Pool::new(2)).unwrap();
            assert_eq!(u, inverse_factor(h.clone(), n, &Pool::single()).unwrap(), "{n}: threads");
            for i in 0..n {
                assert!(u[i * n..i * n + i].iter().all(|&x| x == 0.0), "{n}: row {i} is not upper");
                // Row i of U^T (U H), which is that of the identity.
                for j in 0..n {
                    let uh = |k: usize| (k..n).map(|l| u[k * n + l] * h[l * n + j]).sum::<f64>();
                    let sum: f64 = (0..=i).map(|k| u[k * n + i] * uh(k)).sum();
                    let expected = f64::from(u8::from(i == j));
                    assert!((sum - expected).abs() < 1e-7, "{n}: {i} {j} {sum}");
                }
                if n > 100 && i > 3 {
                    break;
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_has_none() {
        let pool = Pool::single();
        assert!(inverse_factor(vec![1.0, 2.0, 2.0, 1.0], 2, &pool).is_none());
        for x in [0.0, -1.0, f64::INFINITY, f64::NAN] {
            assert!(inverse_factor(vec![x], 1, &pool).is_none(), "{x}");
        }
    }
}
