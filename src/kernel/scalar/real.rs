//! The product of real numbers, one multiplication at a time.

use crate::kernel::block::{Panel, Sums};
use crate::kernel::real::Real;
use crate::kernel::tiles::PANEL;

/// `sums[i][j] = sum over k of a[k][i] * w[k][j]`, in the order of `k`.
pub(in crate::kernel) fn tile<F: Real>(
    rows: usize,
    _columns: usize,
    a: &[F],
    Panel { strips, live, resume, .. }: Panel<'_, F>,
    sums: &mut Sums<F>,
) {
    for (i, sums) in sums[..rows].iter_mut().enumerate() {
        if !resume {
            *sums = [F::default(); PANEL];
        }
        for (s, sums) in sums.chunks_exact_mut(F::LINE).enumerate() {
            let strip = strips.strip(s);
            let mut add = |k: usize| {
                let a = a[k * rows + i];
                for (sum, &w) in sums.iter_mut().zip(&strip[k * F::LINE..]) {
                    *sum = *sum + a * w;
                }
            };
            match live {
                None => (0..strips.count()).for_each(add),
                Some(live) => live.iter().for_each(|&k| add(k as usize)),
            }
        }
    }
}
