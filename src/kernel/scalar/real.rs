//! The product of real numbers, one multiplication at a time.

use crate::kernel::block::{Panel, Sums};
use crate::kernel::panels::Step;
use crate::kernel::real::Real;
use crate::kernel::tiles::PANEL;

/// `sums[i][j] = sum over k of a[k][i] * w[k][j]`, in the order of `k`.
pub(in crate::kernel) fn tile<F: Real>(
    rows: usize,
    _columns: usize,
    a: &[F],
    Panel { steps, live, resume, .. }: Panel<'_, F>,
    sums: &mut Sums<F>,
) {
    for (i, sums) in sums[..rows].iter_mut().enumerate() {
        if !resume {
            *sums = [F::default(); PANEL];
        }
        let mut add = |a: F, step: &Step<F>| {
            for (sum, &w) in sums.iter_mut().zip(&step.0) {
                *sum = *sum + a * w;
            }
        };
        match live {
            None => a[i.min(a.len())..].iter().step_by(rows).zip(steps).for_each(|(&a, step)| add(a, step)),
            Some(live) => live.iter().for_each(|&k| add(a[k as usize * rows + i], &steps[k as usize])),
        }
    }
}
