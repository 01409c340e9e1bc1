//! The product of real numbers: fused multiply-adds on 8 `f32` or 4 `f64` (AVX2), twice as many (AVX-512).

use std::arch::x86_64::*;

use super::{Avx2, Avx512};
use crate::kernel::block::{Job, Panel, Sums};
use crate::kernel::panels::Strips;
use crate::kernel::real::Real;
use crate::kernel::stream::fetch;
use crate::kernel::tiles::{MAX_ROWS, PANEL, Pace};

/// So few rows wait for their weights alone: to fetch others meanwhile takes from what they wait for.
pub(super) const FEW: usize = 3;

/// One element type on one instruction set: vectors of `$lanes`, terms taken `$unroll` at a time.
/// `[rows: vectors ..]` says how many vectors of columns a pass over the panel holds in registers for so many rows; the last list,
/// how many a last pass may hold instead.
macro_rules! product {
    ($cpu:ident, $features:literal, $t:ty, $vector:ty, $lanes:literal, $unroll:literal, $run:ident,
     $zero:ident, $set:ident, $fma:ident, $load:ident, $store:ident,
     [$($rows:literal: $vectors:literal),*], $last:tt) => {
        impl $cpu {
            /// The product, and what runs between its tiles, compiled for this instruction set.
            pub(in crate::kernel) fn $run(self, job: Job<'_, '_, $t>) {
                #[target_feature(enable = $features)]
                fn run(job: Job<'_, '_, $t>) {
                    job.run(|rows, columns, a, panel, sums| tile(rows, columns, a, panel, sums));
                }

                /// One tile of the product; few `columns` spare the rest of the panel.
                #[target_feature(enable = $features)]
                fn tile(
                    rows: usize,
                    columns: usize,
                    a: &[$t],
                    panel: Panel<'_, $t>,
                    sums: &mut Sums<$t>,
                ) {
                    let vectors = columns.div_ceil($lanes);
                    match rows {
                        $($rows => {
                            for first in (0..vectors).step_by($vectors) {
                                product!(@last $rows, $vectors, vectors - first, (a, panel, first, sums), $last);
                            }
                        })*
                        _ => unreachable!("a tile of {rows} rows"),
                    }
                }

                /// `R` rows by `V` vectors of columns, from vector `first` on.
                #[target_feature(enable = $features)]
                fn dot<const R: usize, const V: usize>(
                    a: &[$t],
                    Panel { strips, live, next, resume }: Panel<'_, $t>,
                    first: usize,
                    sums: &mut Sums<$t>,
                ) {
                    const { assert!(R <= MAX_ROWS) }
                    // One row alone meets several panels.
                    assert!(R == 1 || first + V <= PANEL / $lanes);
                    let (a, lines) = (a.as_chunks::<R>().0, strips_of::<V>(strips, first));
                    let (blocks, rest) = a.as_chunks::<UNROLL>();
                    let line_blocks = lines.map(|lines| &lines.as_chunks::<UNROLL>().0[..blocks.len()]);
                    let next = next.filter(|_| R > FEW);
                    let (count, next) = match next {
                        Some(next) => (next.count(), strips_of::<V>(next, first)),
                        None => (0, [&[][..]; V]),
                    };
                    // All calls are behind: from here on the sums stay in registers.
                    let mut all = [[$zero(); V]; R];
                    if resume {
                        let sums = sums.as_flattened().as_chunks().0;
                        for (i, all) in all.iter_mut().enumerate() {
                            for (v, sum) in all.iter_mut().enumerate() {
                                *sum = load(&sums[i * (PANEL / $lanes) + first + v]);
                            }
                        }
                    }
                    // Loops, not iterators: a closure that is not inlined has all sums stored and loaded around it.
                    match live {
                        None => {
                            // Two loops: what asks in between takes longer, even if there is nothing to ask for.
                            if count == 0 {
                                for (b, a) in blocks.iter().enumerate() {
                                    for (k, a) in a.iter().enumerate() {
                                        add(&mut all, a, line_blocks.map(|lines| &lines[b][k]));
                                    }
                                }
                            } else {
                                let mut pace = Pace::new(count, blocks.len());
                                for (b, a) in blocks.iter().enumerate() {
                                    for k in pace.step() {
                                        next.iter().step_by(EACH).for_each(|line| fetch(&line[k]));
                                    }
                                    for (k, a) in a.iter().enumerate() {
                                        add(&mut all, a, line_blocks.map(|lines| &lines[b][k]));
                                    }
                                }
                            }
                            for (k, a) in rest.iter().enumerate() {
                                add(&mut all, a, lines.map(|lines| &lines[blocks.len() * UNROLL + k]));
                            }
                        }
                        Some(live) => {
                            for &k in live {
                                add(&mut all, &a[k as usize], lines.map(|lines| &lines[k as usize]));
                            }
                        }
                    }
                    let sums = sums.as_flattened_mut().as_chunks_mut().0;
                    for (i, all) in all.into_iter().enumerate() {
                        for (v, sum) in all.into_iter().enumerate() {
                            store(&mut sums[i * (PANEL / $lanes) + first + v], sum);
                        }
                    }
                }

                const UNROLL: usize = $unroll;

                /// Numbers and vectors on a cache line.
                const LINE: usize = <$t as Real>::LINE;
                const EACH: usize = 64 / size_of::<$vector>();

                /// The strips of the vectors from `first` on, which is the first of its strip.
                #[inline]
                #[target_feature(enable = $features)]
                fn strips_of<const V: usize>(strips: Strips<'_, $t>, first: usize) -> [&[[$t; LINE]]; V] {
                    let mut all: [&[[$t; LINE]]; V] = [&[]; V];
                    for (v, lines) in all.iter_mut().enumerate() {
                        *lines = &strips.strip(first / EACH + v / EACH).as_chunks().0[..strips.count()];
                    }
                    all
                }

                /// One more term of each sum.
                #[inline]
                #[allow(clippy::modulo_one, reason = "some lines are one vector")]
                #[target_feature(enable = $features)]
                fn add<const R: usize, const V: usize>(
                    all: &mut [[$vector; V]; R],
                    a: &[$t; R],
                    lines: [&[$t; LINE]; V],
                ) {
                    let mut w = [$zero(); V];
                    for (v, w) in w.iter_mut().enumerate() {
                        *w = load(&lines[v].as_chunks().0[v % EACH]);
                    }
                    for (sums, &a) in all.iter_mut().zip(a) {
                        let a = $set(a);
                        for (sum, &w) in sums.iter_mut().zip(&w) {
                            *sum = $fma(a, w, *sum);
                        }
                    }
                }

                #[inline]
                #[target_feature(enable = $features)]
                fn load(values: &[$t; $lanes]) -> $vector {
                    // SAFETY: the reference covers the whole vector, and the load asks for no alignment.
                    unsafe { $load(values.as_ptr()) }
                }

                #[inline]
                #[target_feature(enable = $features)]
                fn store(values: &mut [$t; $lanes], vector: $vector) {
                    // SAFETY: the exclusive reference covers the whole vector, and the store asks for no alignment.
                    unsafe { $store(values.as_mut_ptr(), vector) }
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(job) }
            }
        }
    };
    (@last $rows:literal, $vectors:literal, $left:expr, $args:tt, [$($last:literal)*]) => {
        match $left {
            $($last if $last < $vectors => dot::<$rows, $last> $args,)*
            _ => dot::<$rows, $vectors> $args,
        }
    };
}

product!(
    Avx2, "avx2,fma", f32, __m256, 8, 4, run_f32, _mm256_setzero_ps, _mm256_set1_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_storeu_ps, [1: 4, 2: 4, 3: 2, 4: 2, 5: 2, 6: 2], []
);
product!(
    Avx2, "avx2,fma", f64, __m256d, 4, 4, run_f64, _mm256_setzero_pd, _mm256_set1_pd, _mm256_fmadd_pd,
    _mm256_loadu_pd, _mm256_storeu_pd, [1: 8, 2: 4, 3: 2, 4: 2, 5: 2, 6: 2], []
);
product!(
    Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", f32, __m512, 16, 1, run_f32,
    _mm512_setzero_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_storeu_ps,
    [1: 6, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2, 7: 2, 8: 2, 9: 2, 10: 2, 11: 2, 12: 2, 13: 2, 14: 2], [1 2]
);
product!(
    Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", f64, __m512d, 8, 1, run_f64,
    _mm512_setzero_pd, _mm512_set1_pd, _mm512_fmadd_pd, _mm512_loadu_pd, _mm512_storeu_pd,
    [1: 4, 2: 4, 3: 4, 4: 4, 5: 4, 6: 4], [1 2 3]
);
