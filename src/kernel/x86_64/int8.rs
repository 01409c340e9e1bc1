//! The product of codes, exact: no instruction used here saturates between a product and its sum.
//!
//! AVX-512 with VNNI: `vpdpbusd` adds four products of `u8` by `i8` to an `i32`, for 16 columns at once.
//! AVX2: both sides widened to 16 bits, `vpmaddwd` adds two products into an `i32`; the activations are
//! widened while they are packed, the weights as they are read. (`vpmaddubsw` would be faster, and wrong.)

use std::arch::x86_64::*;

use super::tail::send;
use super::{Avx2, Avx512};
use crate::kernel::int8::{Job, Sums};
use crate::kernel::tail::Finish;
use crate::kernel::tiles::{MAX_ROWS, PANEL};
use crate::kernel::weights::{Step4, Step8};

/// The products of one processor. What runs between the tiles is compiled for it as well.
macro_rules! products {
    ($cpu:ident, $features:literal, $i8:ident, $i4:ident, $send:expr $(, $row_i8:ident, $row_i4:ident)?) => {
        impl $cpu {
            /// The product with weights of a byte.
            pub(in crate::kernel) fn run_i8(self, job: Job<'_, '_, Step8>) {
                #[target_feature(enable = $features)]
                fn run(job: Job<'_, '_, Step8>) {
                    job.run_with(
                        |rows, columns, a, live, steps, start, sums| {
                            $i8::tile(rows, columns, a, live, steps, start, sums)
                        },
                        |finish, sums, row| $send(finish, sums, row),
                    );
                }

                $(if job.count == 1 {
                    return self.$row_i8(job);
                })?
                // SAFETY: `self` proves the instructions.
                unsafe { run(job) }
            }

            /// The product with weights of half a byte.
            pub(in crate::kernel) fn run_i4(self, job: Job<'_, '_, Step4>) {
                #[target_feature(enable = $features)]
                fn run(job: Job<'_, '_, Step4>) {
                    job.run_with(
                        |rows, columns, a, live, steps, start, sums| {
                            $i4::tile(rows, columns, a, live, steps, start, sums)
                        },
                        |finish, sums, row| $send(finish, sums, row),
                    );
                }

                $(if job.count == 1 {
                    return self.$row_i4(job);
                })?
                // SAFETY: `self` proves the instructions.
                unsafe { run(job) }
            }
        }
    };
}

products!(Avx2, "avx2,fma", wide_i8, wide_i4, Finish::run);
products!(
    Avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma",
    vnni_i8,
    vnni_i4,
    send,
    row_i8,
    row_i4
);

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
                live: Option<&[u32]>,
                steps: &[$step],
                start: &[i32; PANEL],
                sums: &mut Sums,
            ) {
                // The last number hides the latency of `vpdpbusd` where few rows give few independent sums. One row alone
                // goes another way, see `row`.
                tile_rows!(
                    rows, columns, (a, live, steps, start, sums),
                    2: 4, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1, 14: 1
                );
            }

            /// `R` rows by `16 V` columns in registers, `U` steps of `k` at a time.
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
            fn dot<const R: usize, const V: usize, const U: usize>(
                a: &[u32],
                live: Option<&[u32]>,
                steps: &[$step],
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
                        for (a, steps) in a.iter().zip(steps) {
                            for u in 0..U {
                                step(&mut all[u], &a[u], &steps[u]);
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

/// Steps of `k` for which the passes over a panel find weights and rows in the first-level cache.
const NEAR: usize = 128;

/// AVX2 for one kind of weights.
macro_rules! wide {
    ($module:ident, $step:ident, $load:ident) => {
        mod $module {
            use super::*;

            #[target_feature(enable = "avx2,fma")]
            pub(super) fn tile(
                rows: usize,
                columns: usize,
                a: &[u32],
                live: Option<&[u32]>,
                steps: &[$step],
                start: &[i32; PANEL],
                sums: &mut Sums,
            ) {
                sums[..rows].fill(*start);
                let vectors = columns.div_ceil(4);
                match rows {
                    1 if vectors > 4 => passes::<1, 8>(vectors, a, live, steps, sums),
                    1 => passes::<1, 4>(vectors, a, live, steps, sums),
                    2 => passes::<2, 4>(vectors, a, live, steps, sums),
                    3 => passes::<3, 2>(vectors, a, live, steps, sums),
                    4 => passes::<4, 2>(vectors, a, live, steps, sums),
                    5 => passes::<5, 2>(vectors, a, live, steps, sums),
                    _ => unreachable!("a tile of {rows} rows"),
                }
            }

            /// The whole tile, `R` rows by `V` vectors of 4 columns at a time.
            #[target_feature(enable = "avx2,fma")]
            fn passes<const R: usize, const V: usize>(
                vectors: usize,
                a: &[u32],
                live: Option<&[u32]>,
                steps: &[$step],
                sums: &mut Sums,
            ) {
                let a = a.as_chunks::<2>().0.as_chunks::<R>().0;
                match live {
                    None => {
                        for (a, steps) in a.chunks(NEAR).zip(steps.chunks(NEAR)) {
                            for first in (0..vectors).step_by(V) {
                                let mut all = [[_mm256_setzero_si256(); V]; R];
                                for (a, step) in a.iter().zip(steps) {
                                    add(&mut all, a, step, first);
                                }
                                leave(&all, first, sums);
                            }
                        }
                    }
                    Some(live) => {
                        for live in live.chunks(NEAR) {
                            for first in (0..vectors).step_by(V) {
                                let mut all = [[_mm256_setzero_si256(); V]; R];
                                for &k in live {
                                    add(&mut all, &a[k as usize], &steps[k as usize], first);
                                }
                                leave(&all, first, sums);
                            }
                        }
                    }
                }
            }

            /// Four more terms of each sum: two sums of a column stand side by side, of its first and its last two inputs
            /// of every four.
            #[inline]
            #[target_feature(enable = "avx2,fma")]
            fn add<const R: usize, const V: usize>(
                all: &mut [[__m256i; V]; R],
                a: &[[u32; 2]; R],
                step: &$step,
                first: usize,
            ) {
                let mut w = [_mm256_setzero_si256(); V];
                for (v, w) in w.iter_mut().enumerate() {
                    *w = $load(step, first + v);
                }
                for (sums, &[low, high]) in all.iter_mut().zip(a) {
                    let a = _mm256_set1_epi64x((u64::from(low) | u64::from(high) << 32) as i64);
                    for (sum, &w) in sums.iter_mut().zip(&w) {
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, w));
                    }
                }
            }

            /// Adds them to what the tile holds.
            #[inline]
            #[target_feature(enable = "avx2,fma")]
            fn leave<const R: usize, const V: usize>(all: &[[__m256i; V]; R], first: usize, sums: &mut Sums) {
                const { assert!(R <= MAX_ROWS && V.is_multiple_of(2) && (PANEL / 4).is_multiple_of(V)) }
                for (sums, all) in sums.iter_mut().zip(all) {
                    for (pair, two) in all.as_chunks::<2>().0.iter().enumerate() {
                        // Columns 0 1 4 5 | 2 3 6 7, then in order.
                        let sum =
                            _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(two[0], two[1]));
                        let eight = first / 2 + pair;
                        let sum = _mm256_add_epi32(sum, load_256(sums, eight));
                        store_256(sums, eight, sum);
                    }
                }
            }
        }
    };
}

wide!(wide_i8, Step8, load_i8_256);
wide!(wide_i4, Step4, load_i4_256);

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
pub(super) fn load_i4_512(step: &Step4, v: usize) -> __m512i {
    // SAFETY: the reference covers the 64 bytes, and the load asks for no alignment.
    let both = unsafe { _mm512_loadu_si512(step.0.as_ptr().cast()) };
    let half = if v == 0 { both } else { _mm512_srli_epi16::<4>(both) };
    _mm512_sub_epi8(_mm512_and_si512(half, _mm512_set1_epi8(15)), _mm512_set1_epi8(8))
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

/// Four inputs of four columns, widened.
#[inline]
#[target_feature(enable = "avx2")]
fn load_i8_256(step: &Step8, v: usize) -> __m256i {
    let part: &[[i8; 4]; 4] = &step.0.as_chunks().0[v];
    // SAFETY: the reference covers the 16 bytes, and the load asks for no alignment.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(part.as_ptr().cast()) })
}

/// Four inputs of four columns, out of their halves of bytes and widened.
#[inline]
#[target_feature(enable = "avx2")]
fn load_i4_256(step: &Step4, v: usize) -> __m256i {
    let part: &[[u8; 4]; 4] = &step.0.as_chunks().0[v % 4];
    // SAFETY: the reference covers the 16 bytes, and the load asks for no alignment.
    let both = unsafe { _mm_loadu_si128(part.as_ptr().cast()) };
    // A count instead of a choice: the loops around stay unrolled.
    let half = _mm_srl_epi16(both, _mm_cvtsi32_si128(if v < 4 { 0 } else { 4 }));
    _mm256_cvtepi8_epi16(_mm_sub_epi8(_mm_and_si128(half, _mm_set1_epi8(15)), _mm_set1_epi8(8)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_256(values: &[i32; PANEL], v: usize) -> __m256i {
    let part: &[i32; 8] = &values.as_chunks().0[v];
    // SAFETY: the reference covers the 32 bytes, and the load asks for no alignment.
    unsafe { _mm256_loadu_si256(part.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_256(values: &mut [i32; PANEL], v: usize, vector: __m256i) {
    let part: &mut [i32; 8] = &mut values.as_chunks_mut().0[v];
    // SAFETY: the exclusive reference covers the 32 bytes, and the store asks for no alignment.
    unsafe { _mm256_storeu_si256(part.as_mut_ptr().cast(), vector) }
}
