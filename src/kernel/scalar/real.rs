//! The product of real numbers, one multiplication at a time.

use crate::kernel::real::{Real, Step, Sums};
use crate::kernel::tiles::PANEL;

/// `sums[i][j] = sum over k of a[k][i] * w[k][j]`, in the order of `k`.
pub(in crate::kernel) fn tile<F: Real>(
    rows: usize,
    _columns: usize,
    a: &[F],
    steps: &[Step<F>],
    sums: &mut Sums<F>,
) {
    for (i, sums) in sums[..rows].iter_mut().enumerate() {
        *sums = [F::default(); PANEL];
        for (&a, step) in a[i.min(a.len())..].iter().step_by(rows).zip(steps) {
            for (sum, &w) in sums.iter_mut().zip(&step.0) {
                *sum = *sum + a * w;
            }
        }
    }
}
