//! The product of real numbers: plain Rust, because NEON belongs to the plain target. What differs from the
//! definition is the fused multiply-add, one instruction here, and the sums kept in registers.

use super::{DotProd, Neon};
use crate::kernel::block::{Job, Panel, Sums};
use crate::kernel::panels::Step;
use crate::kernel::real::Real;
use crate::kernel::tiles::PANEL;

/// Columns for which a pass over the panel keeps sums.
const PASS: usize = 16;

macro_rules! products {
    ($cpu:ident) => {
        impl $cpu {
            /// The product on this instruction set.
            pub(in crate::kernel) fn run_real<F: Real>(self, job: Job<'_, '_, F>) {
                job.run(tile);
            }
        }
    };
}

products!(Neon);
products!(DotProd);

fn tile<F: Real>(
    rows: usize,
    columns: usize,
    a: &[F],
    Panel { steps, live, resume, .. }: Panel<'_, F>,
    sums: &mut Sums<F>,
) {
    if !resume {
        sums[..rows].fill([F::default(); PANEL]);
    }
    for first in (0..columns).step_by(PASS) {
        match rows {
            1 => dot::<F, 1>(a, steps, live, first, sums),
            2 => dot::<F, 2>(a, steps, live, first, sums),
            3 => dot::<F, 3>(a, steps, live, first, sums),
            4 => dot::<F, 4>(a, steps, live, first, sums),
            _ => unreachable!("a tile of {rows} rows"),
        }
    }
}

/// `R` rows by `PASS` columns, from column `first` on.
fn dot<F: Real, const R: usize>(
    a: &[F],
    steps: &[Step<F>],
    live: Option<&[u32]>,
    first: usize,
    sums: &mut Sums<F>,
) {
    let a = a.as_chunks::<R>().0;
    match live {
        None => chain(a.iter().zip(steps), first, sums),
        Some(live) => chain(live.iter().map(|&k| (&a[k as usize], &steps[k as usize])), first, sums),
    }
}

/// Adds these terms to the sums, in this order.
fn chain<'a, F: Real, const R: usize>(
    terms: impl Iterator<Item = (&'a [F; R], &'a Step<F>)>,
    first: usize,
    sums: &mut Sums<F>,
) {
    assert!(first + PASS <= PANEL);
    let mut all = [[F::default(); PASS]; R];
    for (all, sums) in all.iter_mut().zip(&*sums) {
        all.copy_from_slice(&sums[first..first + PASS]);
    }
    for (a, step) in terms {
        let w: &[F; PASS] = &step.0.as_chunks().0[first / PASS];
        for (sums, &a) in all.iter_mut().zip(a) {
            for (sum, &w) in sums.iter_mut().zip(w) {
                *sum = a.fused(w, *sum);
            }
        }
    }
    for (sums, all) in sums.iter_mut().zip(all) {
        sums[first..first + PASS].copy_from_slice(&all);
    }
}
