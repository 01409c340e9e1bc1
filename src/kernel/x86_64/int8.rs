//! The product of codes on AVX-512 with VNNI, exact: `vpdpbusd` adds four products of `u8` by `i8` to an `i32`, for 16 columns at once.

use std::arch::x86_64::*;

use super::Avx512;
use super::real::FEW;
use super::tail::send;
use crate::kernel::int8::{Job, Panel, Sums};
use crate::kernel::scalar::int8::add_excess;
use crate::kernel::stream::fetch;
use crate::kernel::tiles::{MAX_ROWS, PANEL, Pace};
use crate::kernel::weights::{Step4, Step8};

/// The product of one processor with one kind of weights. What runs between the tiles is compiled for it as well.
macro_rules! product {
    ($cpu:ident, $features:literal, $name:ident, $step:ident, $tile:path, $add:path, $send:path) => {
        impl $cpu {
            fn $name(self, job: Job<'_, '_, $step>) {
                #[target_feature(enable = $features)]
                fn run(job: Job<'_, '_, $step>) {
                    job.run_with(
                        |rows, columns, a, panel, sums| $tile(rows, columns, a, panel, sums),
                        |rows, a, excess, sums| $add(rows, a, excess, sums),
                        |finish, sums, row| $send(finish, sums, row),
                    );
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(job) }
            }
        }
    };
}

pub(super) use product;

macro_rules! avx512 {
    ($name:ident, $step:ident, $tile:path) => {
        product!(
            Avx512,
            "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma",
            $name,
            $step,
            $tile,
            add_excess,
            send
        );
    };
}

avx512!(vnni_i8, Step8, vnni_i8::tile);
avx512!(vnni_i4, Step4, vnni_i4::tile);

impl Avx512 {
    /// The product with weights of a byte.
    pub(in crate::kernel) fn run_i8(self, job: Job<'_, '_, Step8>) {
        if job.count == 1 && !job.weights.tame { self.row_i8(job) } else { self.vnni_i8(job) }
    }

    /// The product with weights of half a byte.
    pub(in crate::kernel) fn run_i4(self, job: Job<'_, '_, Step4>) {
        if job.count == 1 { self.row_i4(job) } else { self.vnni_i4(job) }
    }
}

macro_rules! tile_rows {
    ($rows:expr, $columns:expr, $args:tt, $($r:literal: $u:literal),*) => {
        match $rows {
            $($r if $columns > 16 => dot::<$r, 2, $u> $args,
            $r => dot::<$r, 1, $u> $args,)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}

/// AVX-512 for one kind of weights.
macro_rules! vnni {
    ($module:ident, $step:ident, $load:ident) => {
        mod $module {
            use super::*;

            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
            pub(super) fn tile(
                rows: usize,
                columns: usize,
                a: &[u32],
                Panel { steps, live, next, start }: Panel<'_, $step>,
                sums: &mut Sums,
            ) {
                // The last number hides the latency of `vpdpbusd` where few rows give few independent sums. One row alone
                // goes another way, see `row`, unless weights are tame.
                tile_rows!(
                    rows, columns, (a, live, steps, next, start, sums),
                    1: 4, 2: 4, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1, 14: 1
                );
            }

            /// `R` rows by `16 V` columns in registers, `U` steps of `k` at a time.
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
            fn dot<const R: usize, const V: usize, const U: usize>(
                a: &[u32],
                live: Option<&[u32]>,
                steps: &[$step],
                next: &[$step],
                start: &[i32; PANEL],
                sums: &mut Sums,
            ) {
                const { assert!(R <= MAX_ROWS && 16 * V <= PANEL) }
                let mut all = [[[_mm512_setzero_si512(); V]; R]; U];
                for row in &mut all[0] {
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = load_512(start, v);
                    }
                }
                let (a, _) = a.as_chunks::<R>();
                match live {
                    None => {
                        let ((a, a_rest), (steps, steps_rest)) = (a.as_chunks::<U>(), steps.as_chunks::<U>());
                        // Two loops, as elsewhere: what asks in between takes longer, even if there is nothing to ask for.
                        if R > FEW && !next.is_empty() {
                            let mut pace = Pace::new(next.len(), steps.len());
                            for (a, steps) in a.iter().zip(steps) {
                                fetch(&next[pace.step()]);
                                for u in 0..U {
                                    step(&mut all[u], &a[u], &steps[u]);
                                }
                            }
                        } else {
                            for (a, steps) in a.iter().zip(steps) {
                                for u in 0..U {
                                    step(&mut all[u], &a[u], &steps[u]);
                                }
                            }
                        }
                        for (a, steps) in a_rest.iter().zip(steps_rest) {
                            step(&mut all[0], a, steps);
                        }
                    }
                    Some(live) => {
                        for &k in live {
                            step(&mut all[0], &a[k as usize], &steps[k as usize]);
                        }
                    }
                }
                for r in 0..R {
                    for v in 0..V {
                        let mut sum = all[0][r][v];
                        for more in &all[1..] {
                            sum = _mm512_add_epi32(sum, more[r][v]);
                        }
                        store_512(&mut sums[r], v, sum);
                    }
                }
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
            fn step<const R: usize, const V: usize>(sums: &mut [[__m512i; V]; R], a: &[u32; R], step: &$step) {
                let mut w = [_mm512_setzero_si512(); V];
                for (v, w) in w.iter_mut().enumerate() {
                    *w = $load(step, v);
                }
                for (sums, &a) in sums.iter_mut().zip(a) {
                    let a = _mm512_set1_epi32(a as i32);
                    for (sum, &w) in sums.iter_mut().zip(&w) {
                        *sum = _mm512_dpbusd_epi32(*sum, a, w);
                    }
                }
            }
        }
    };
}

vnni!(vnni_i8, Step8, load_i8_512);
vnni!(vnni_i4, Step4, load_i4_512);

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_i8_512(step: &Step8, v: usize) -> __m512i {
    let part: &[[i8; 4]; 16] = &step.0.as_chunks().0[v];
    // SAFETY: the reference covers the 64 bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_si512(part.as_ptr().cast()) }
}

/// Sixteen columns out of their halves of bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_i4_512(step: &Step4, v: usize) -> __m512i {
    _mm512_sub_epi8(load_u4_512(step, v), _mm512_set1_epi8(8))
}

/// The same plus 8, as they stand there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_u4_512(step: &Step4, v: usize) -> __m512i {
    // SAFETY: the reference covers the 64 bytes, and the load asks for no alignment.
    let both = unsafe { _mm512_loadu_si512(step.0.as_ptr().cast()) };
    let half = if v == 0 { both } else { _mm512_srli_epi16::<4>(both) };
    _mm512_and_si512(half, _mm512_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_512(values: &[i32; PANEL], v: usize) -> __m512i {
    let part: &[i32; 16] = &values.as_chunks().0[v];
    // SAFETY: the reference covers the 64 bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_si512(part.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_512(values: &mut [i32; PANEL], v: usize, vector: __m512i) {
    let part: &mut [i32; 16] = &mut values.as_chunks_mut().0[v];
    // SAFETY: the exclusive reference covers the 64 bytes, and the store asks for no alignment.
    unsafe { _mm512_storeu_si512(part.as_mut_ptr().cast(), vector) }
}
