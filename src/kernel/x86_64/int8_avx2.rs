//! The product of codes on AVX2, exact: no sum of products saturates.
//!
//! Tame weights (see `kernel::weights`): `vpmaddubsw` adds two products of `u8` by `i8` in 16 bits, `vpmaddwd` with ones two of those
//! sums in 32. Others: both sides widened to 16 bits, for `vpmaddwd` alone; the activations while they are packed, the weights as
//! they are read.

use std::arch::x86_64::*;

use super::Avx2;
use super::int8::product;
use super::real::FEW;
use crate::kernel::excess::{Excess, SIDE};
use crate::kernel::int8::{Job, Panel, Sums};
use crate::kernel::scalar::int8::add_excess;
use crate::kernel::stream::fetch;
use crate::kernel::tail::Finish;
use crate::kernel::tiles::{MAX_ROWS, PANEL, Pace, share};
use crate::kernel::weights::{Step4, Step8};

macro_rules! avx2 {
    ($name:ident, $step:ident, $tile:path, $add:path) => {
        product!(Avx2, "avx2,fma", $name, $step, $tile, $add, Finish::run);
    };
}

avx2!(tame_i8, Step8, tame_i8::tile, tame_excess);
avx2!(tame_i4, Step4, tame_i4::tile, tame_excess);
avx2!(wide_i8, Step8, wide_i8::tile, add_excess);

impl Avx2 {
    /// The product with weights of a byte.
    pub(in crate::kernel) fn run_i8(self, job: Job<'_, '_, Step8>) {
        if job.weights.tame { self.tame_i8(job) } else { self.wide_i8(job) }
    }

    /// The product with weights of half a byte.
    pub(in crate::kernel) fn run_i4(self, job: Job<'_, '_, Step4>) {
        self.tame_i4(job);
    }
}

/// Steps of `k` for which the passes over a panel find weights and rows in the first-level cache.
const NEAR: usize = 128;

/// Places from which the weights of a row alone are read at once: memory sends several streams faster than one.
const STREAMS: usize = 4;

/// Parts of equal length, one for each stream, and the rest.
#[inline(always)]
fn streams<T>(all: &[T]) -> ([&[T]; STREAMS], &[T]) {
    let part = all.len() / STREAMS;
    (std::array::from_fn(|s| &all[s * part..(s + 1) * part]), &all[STREAMS * part..])
}

/// One kind of tame weights.
macro_rules! tame {
    ($module:ident, $step:ident, $load:ident) => {
        mod $module {
            use super::*;

            #[target_feature(enable = "avx2,fma")]
            pub(super) fn tile(
                rows: usize,
                columns: usize,
                a: &[u32],
                Panel { steps, live, next, start }: Panel<'_, $step>,
                sums: &mut Sums,
            ) {
                sums[..rows].fill(*start);
                let vectors = columns.div_ceil(8);
                match live {
                    // A row alone passes over a panel once.
                    None if rows > 1 => {
                        let parts = steps.len().div_ceil(NEAR);
                        for (p, (a, steps)) in a.chunks(NEAR * rows).zip(steps.chunks(NEAR)).enumerate() {
                            let next = &next[share(next.len(), p, parts)];
                            near(rows, vectors, a, None, steps, next, sums);
                        }
                    }
                    live => near(rows, vectors, a, live, steps, next, sums),
                }
            }

            /// Adds some steps of `k`.
            #[target_feature(enable = "avx2,fma")]
            fn near(
                rows: usize,
                vectors: usize,
                a: &[u32],
                live: Option<&[u32]>,
                steps: &[$step],
                next: &[$step],
                sums: &mut Sums,
            ) {
                // More rows than five in two turns: registers hold the sums of two vectors then, and each code that fills a
                // vector is used twice.
                match rows {
                    1 if vectors > 2 => passes::<1, 0, 1, 4>(vectors, a, live, steps, next, sums),
                    1 => passes::<1, 0, 1, 2>(vectors, a, live, steps, next, sums),
                    2 if vectors > 2 => passes::<2, 0, 2, 4>(vectors, a, live, steps, next, sums),
                    2 => passes::<2, 0, 2, 2>(vectors, a, live, steps, next, sums),
                    3 => passes::<3, 0, 3, 2>(vectors, a, live, steps, next, sums),
                    4 => passes::<4, 0, 4, 2>(vectors, a, live, steps, next, sums),
                    5 => passes::<5, 0, 5, 2>(vectors, a, live, steps, next, sums),
                    6 => {
                        passes::<6, 0, 3, 2>(vectors, a, live, steps, next, sums);
                        passes::<6, 3, 3, 2>(vectors, a, live, steps, next, sums);
                    }
                    7 => {
                        passes::<7, 0, 4, 2>(vectors, a, live, steps, next, sums);
                        passes::<7, 4, 3, 2>(vectors, a, live, steps, next, sums);
                    }
                    8 => {
                        passes::<8, 0, 4, 2>(vectors, a, live, steps, next, sums);
                        passes::<8, 4, 4, 2>(vectors, a, live, steps, next, sums);
                    }
                    _ => unreachable!("a tile of {rows} rows"),
                }
            }

            /// `N` of the `R` rows of the tile, from row `FIRST` on, `V` vectors of 8 columns at a time.
            #[target_feature(enable = "avx2,fma")]
            fn passes<const R: usize, const FIRST: usize, const N: usize, const V: usize>(
                vectors: usize,
                a: &[u32],
                live: Option<&[u32]>,
                steps: &[$step],
                next: &[$step],
                sums: &mut Sums,
            ) {
                const { assert!(FIRST + N <= R && R <= MAX_ROWS && (PANEL / 8).is_multiple_of(V)) }
                let (a, sums) = (a.as_chunks::<R>().0, &mut sums[FIRST..FIRST + N]);
                for first in (0..vectors).step_by(V) {
                    let mut all = [[_mm256_setzero_si256(); V]; N];
                    for (all, sums) in all.iter_mut().zip(&*sums) {
                        for (v, sum) in all.iter_mut().enumerate() {
                            *sum = load_256(sums, first + v);
                        }
                    }
                    match live {
                        None if R == 1 => {
                            let ((parts, rest), (step_parts, step_rest)) = (streams(a), streams(steps));
                            for k in 0..parts[0].len() {
                                for s in 0..STREAMS {
                                    add::<R, FIRST, N, V>(&mut all, &parts[s][k], &step_parts[s][k], first);
                                }
                            }
                            for (a, step) in rest.iter().zip(step_rest) {
                                add::<R, FIRST, N, V>(&mut all, a, step, first);
                            }
                        }
                        Some(live) if R == 1 => {
                            let (parts, rest) = streams(live);
                            for i in 0..parts[0].len() {
                                for k in parts.map(|part| part[i] as usize) {
                                    add::<R, FIRST, N, V>(&mut all, &a[k], &steps[k], first);
                                }
                            }
                            for &k in rest {
                                add::<R, FIRST, N, V>(&mut all, &a[k as usize], &steps[k as usize], first);
                            }
                        }
                        None => {
                            let (two_a, last_a) = a.as_chunks::<2>();
                            let (two, last) = steps.as_chunks::<2>();
                            // Two loops: what asks in between takes longer, even if there is nothing to ask for. The first pass of
                            // all that the tile makes does it.
                            if R > FEW && FIRST == 0 && first == 0 && !next.is_empty() {
                                let mut pace = Pace::new(next.len(), two.len());
                                for (a, steps) in two_a.iter().zip(two) {
                                    fetch(&next[pace.step()]);
                                    add::<R, FIRST, N, V>(&mut all, &a[0], &steps[0], first);
                                    add::<R, FIRST, N, V>(&mut all, &a[1], &steps[1], first);
                                }
                            } else {
                                for (a, steps) in two_a.iter().zip(two) {
                                    add::<R, FIRST, N, V>(&mut all, &a[0], &steps[0], first);
                                    add::<R, FIRST, N, V>(&mut all, &a[1], &steps[1], first);
                                }
                            }
                            for (a, step) in last_a.iter().zip(last) {
                                add::<R, FIRST, N, V>(&mut all, a, step, first);
                            }
                        }
                        Some(live) => {
                            for &k in live {
                                add::<R, FIRST, N, V>(&mut all, &a[k as usize], &steps[k as usize], first);
                            }
                        }
                    }
                    for (sums, all) in sums.iter_mut().zip(all) {
                        for (v, sum) in all.into_iter().enumerate() {
                            store_256(sums, first + v, sum);
                        }
                    }
                }
            }

            /// Four more terms of each sum.
            #[inline]
            #[target_feature(enable = "avx2,fma")]
            fn add<const R: usize, const FIRST: usize, const N: usize, const V: usize>(
                all: &mut [[__m256i; V]; N],
                a: &[u32; R],
                step: &$step,
                first: usize,
            ) {
                let mut w = [_mm256_setzero_si256(); V];
                for (v, w) in w.iter_mut().enumerate() {
                    *w = $load(step, first + v);
                }
                for (sums, &a) in all.iter_mut().zip(&a[FIRST..FIRST + N]) {
                    let a = _mm256_set1_epi32(a as i32);
                    for (sum, &w) in sums.iter_mut().zip(&w) {
                        *sum = _mm256_add_epi32(*sum, dot_four(a, w));
                    }
                }
            }
        }
    };
}

tame!(tame_i8, Step8, load_i8_256);
tame!(tame_i4, Step4, load_i4_256);

/// Adds what tame weights lack.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn tame_excess(rows: usize, a: &[u32], excess: &Excess, sums: &mut Sums) {
    match rows {
        1 => excess_of_row(a, excess, &mut sums[0]),
        2 => excess_of::<2>(a, excess, sums),
        3 => excess_of::<3>(a, excess, sums),
        4 => excess_of::<4>(a, excess, sums),
        5 => excess_of::<5>(a, excess, sums),
        6 => excess_of::<6>(a, excess, sums),
        7 => excess_of::<7>(a, excess, sums),
        _ => excess_of::<8>(a, excess, sums),
    }
}

/// To a row alone: a round at once.
#[target_feature(enable = "avx2,fma")]
fn excess_of_row(a: &[u32], excess: &Excess, sums: &mut [i32; PANEL]) {
    for (order, rounds) in excess.eights() {
        let mut all = _mm256_setzero_si256();
        for (steps, weights) in rounds {
            let word = |c: usize| a[steps[c] as usize] as i32;
            let words =
                _mm256_setr_epi32(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7));
            // SAFETY: the reference covers the 32 bytes, and the load asks for no alignment.
            let weights = unsafe { _mm256_loadu_si256(weights.as_ptr().cast()) };
            all = _mm256_add_epi32(all, dot_four(words, weights));
        }
        let mut more = [0; SIDE];
        store_eight(&mut more, all);
        for (&column, more) in order.iter().zip(more) {
            let sum = &mut sums[usize::from(column) % PANEL];
            *sum = sum.wrapping_add(more);
        }
    }
}

/// To `R` rows: one step of a column for all of them.
#[target_feature(enable = "avx2,fma")]
fn excess_of<const R: usize>(a: &[u32], excess: &Excess, sums: &mut Sums) {
    let a = a.as_chunks::<R>().0;
    // The rows of a column side by side.
    let mut columns = [[0; 8]; PANEL];
    for (order, rounds) in excess.eights() {
        let mut all = [_mm256_setzero_si256(); SIDE];
        for (steps, weights) in rounds {
            for (c, all) in all.iter_mut().enumerate() {
                let step = &a[steps[c] as usize];
                let word = |i: usize| step.get(i).map_or(0, |&word| word as i32);
                let rows =
                    _mm256_setr_epi32(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7));
                let weights = _mm256_set1_epi32(i32::from_ne_bytes(weights[c].map(|w| w as u8)));
                *all = _mm256_add_epi32(*all, dot_four(rows, weights));
            }
        }
        for (&column, all) in order.iter().zip(all) {
            store_eight(&mut columns[usize::from(column) % PANEL], all);
        }
    }
    for (j, columns) in columns.as_chunks::<4>().0.iter().enumerate() {
        for half in 0..R.div_ceil(4) {
            let [a, b, c, d] = columns.each_ref().map(|rows| load_four(&rows.as_chunks().0[half]));
            let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
            let (more_ab, more_cd) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
            let rows = [
                _mm_unpacklo_epi64(ab, cd),
                _mm_unpackhi_epi64(ab, cd),
                _mm_unpacklo_epi64(more_ab, more_cd),
                _mm_unpackhi_epi64(more_ab, more_cd),
            ];
            for (sums, row) in sums[..R][4 * half..].iter_mut().zip(rows) {
                let sums: &mut [i32; 4] = &mut sums.as_chunks_mut().0[j];
                store_four(sums, _mm_add_epi32(load_four(sums), row));
            }
        }
    }
}

/// Four products added up, of which no two neighbours need more than 16 bits: of weights that are tame, or one of two is zero.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_four(a: __m256i, w: __m256i) -> __m256i {
    _mm256_madd_epi16(_mm256_maddubs_epi16(a, w), _mm256_set1_epi16(1))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_four(values: &[i32; 4]) -> __m128i {
    // SAFETY: the reference covers the 16 bytes, and the load asks for no alignment.
    unsafe { _mm_loadu_si128(values.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_four(values: &mut [i32; 4], vector: __m128i) {
    // SAFETY: the exclusive reference covers the 16 bytes, and the store asks for no alignment.
    unsafe { _mm_storeu_si128(values.as_mut_ptr().cast(), vector) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_eight(values: &[i32; 8]) -> __m256i {
    // SAFETY: the reference covers the 32 bytes, and the load asks for no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_eight(values: &mut [i32; 8], vector: __m256i) {
    // SAFETY: the exclusive reference covers the 32 bytes, and the store asks for no alignment.
    unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), vector) }
}

/// Weights that are not tame.
mod wide_i8 {
    use super::*;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn tile(
        rows: usize,
        columns: usize,
        a: &[u32],
        Panel { steps, live, start, .. }: Panel<'_, Step8>,
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
        steps: &[Step8],
        sums: &mut Sums,
    ) {
        let a = a.as_chunks::<2>().0.as_chunks::<R>().0;
        match live {
            None => {
                for (a, steps) in a.chunks(NEAR).zip(steps.chunks(NEAR)) {
                    for first in (0..vectors).step_by(V) {
                        let mut all = [[_mm256_setzero_si256(); V]; R];
                        let ((two_a, last_a), (two, last)) = (a.as_chunks::<2>(), steps.as_chunks::<2>());
                        for (a, steps) in two_a.iter().zip(two) {
                            add(&mut all, &a[0], &steps[0], first);
                            add(&mut all, &a[1], &steps[1], first);
                        }
                        for (a, step) in last_a.iter().zip(last) {
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
        step: &Step8,
        first: usize,
    ) {
        let mut w = [_mm256_setzero_si256(); V];
        for (v, w) in w.iter_mut().enumerate() {
            *w = load_i8_wide(step, first + v);
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
                let sum = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(two[0], two[1]));
                let eight = first / 2 + pair;
                let sum = _mm256_add_epi32(sum, load_256(sums, eight));
                store_256(sums, eight, sum);
            }
        }
    }
}

/// Four inputs of four columns, widened.
#[inline]
#[target_feature(enable = "avx2")]
fn load_i8_wide(step: &Step8, v: usize) -> __m256i {
    let part: &[[i8; 4]; 4] = &step.0.as_chunks().0[v];
    // SAFETY: the reference covers the 16 bytes, and the load asks for no alignment.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(part.as_ptr().cast()) })
}

/// Four inputs of eight columns.
#[inline]
#[target_feature(enable = "avx2")]
fn load_i8_256(step: &Step8, v: usize) -> __m256i {
    let part: &[[i8; 4]; 8] = &step.0.as_chunks().0[v];
    // SAFETY: the reference covers the 32 bytes, and the load asks for no alignment.
    unsafe { _mm256_loadu_si256(part.as_ptr().cast()) }
}

/// Four inputs of eight columns, out of their halves of bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn load_i4_256(step: &Step4, v: usize) -> __m256i {
    let part: &[[u8; 4]; 8] = &step.0.as_chunks().0[v % 2];
    // SAFETY: the reference covers the 32 bytes, and the load asks for no alignment.
    let both = unsafe { _mm256_loadu_si256(part.as_ptr().cast()) };
    // A count instead of a choice: the loops around stay unrolled.
    let half = _mm256_srl_epi16(both, _mm_cvtsi32_si128(if v < 2 { 0 } else { 4 }));
    _mm256_sub_epi8(_mm256_and_si256(half, _mm256_set1_epi8(15)), _mm256_set1_epi8(8))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_256(values: &[i32; PANEL], v: usize) -> __m256i {
    load_eight(&values.as_chunks().0[v])
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_256(values: &mut [i32; PANEL], v: usize, vector: __m256i) {
    store_eight(&mut values.as_chunks_mut().0[v], vector);
}
