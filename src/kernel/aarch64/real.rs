//! The product of real numbers: plain Rust, because NEON belongs to the plain target. What differs from the
//! definition is the fused multiply-add, one instruction here, and the sums kept in registers.

use super::{DotProd, Neon};
use crate::kernel::block::{Job, Panel, Sums};
use crate::kernel::real::Real;
use crate::kernel::tiles::PANEL;

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

fn tile<F: Real>(rows: usize, columns: usize, a: &[F], panel: Panel<'_, F>, sums: &mut Sums<F>) {
    if !panel.resume {
        sums[..rows].fill([F::default(); PANEL]);
    }
    // A strip at a time: sixteen columns of `f32`, eight of `f64`.
    for s in 0..columns.div_ceil(F::LINE) {
        match (rows, F::LINE) {
            (1, 16) => dot::<F, 1, 16>(a, panel, s, sums),
            (2, 16) => dot::<F, 2, 16>(a, panel, s, sums),
            (3, 16) => dot::<F, 3, 16>(a, panel, s, sums),
            (4, 16) => dot::<F, 4, 16>(a, panel, s, sums),
            (1, 8) => dot::<F, 1, 8>(a, panel, s, sums),
            (2, 8) => dot::<F, 2, 8>(a, panel, s, sums),
            (3, 8) => dot::<F, 3, 8>(a, panel, s, sums),
            (4, 8) => dot::<F, 4, 8>(a, panel, s, sums),
            _ => unreachable!("a tile of {rows} rows"),
        }
    }
}

/// `R` rows by strip `s`, `L` columns.
fn dot<F: Real, const R: usize, const L: usize>(
    a: &[F],
    Panel { strips, live, .. }: Panel<'_, F>,
    s: usize,
    sums: &mut Sums<F>,
) {
    let (a, strip) = (a.as_chunks::<R>().0, strips.strip(s).as_chunks::<L>().0);
    match live {
        None => chain(a.iter().zip(strip), s, sums),
        Some(live) => chain(live.iter().map(|&k| (&a[k as usize], &strip[k as usize])), s, sums),
    }
}

/// Adds these terms to the sums, in this order.
fn chain<'a, F: Real, const R: usize, const L: usize>(
    terms: impl Iterator<Item = (&'a [F; R], &'a [F; L])>,
    s: usize,
    sums: &mut Sums<F>,
) {
    let mut all = [[F::default(); L]; R];
    for (all, sums) in all.iter_mut().zip(&*sums) {
        *all = sums.as_chunks().0[s];
    }
    for (a, w) in terms {
        for (sums, &a) in all.iter_mut().zip(a) {
            for (sum, &w) in sums.iter_mut().zip(w) {
                *sum = a.fused(w, *sum);
            }
        }
    }
    for (sums, all) in sums.iter_mut().zip(all) {
        sums.as_chunks_mut().0[s] = all;
    }
}
