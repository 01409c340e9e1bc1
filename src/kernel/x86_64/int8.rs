//! The product of codes, exact: no instruction used here saturates between a product and its sum.
//!
//! AVX-512 with VNNI: `vpdpbusd` adds four products of `u8` by `i8` to an `i32`, for 16 columns at once.
//! AVX2: both sides widened to 16 bits, `vpmaddwd` adds two products into an `i32`; the activations are
//! widened while they are packed, the weights as they are read. (`vpmaddubsw` would be faster, and wrong.)

use std::arch::x86_64::*;

use super::{Avx2, Avx512};
use crate::kernel::int8::{Step8, Sums};
use crate::kernel::tail::Finish;
use crate::kernel::tiles::{MAX_ROWS, PANEL};

impl Avx512 {
    /// One tile of the product; `columns <= 16` spares the second half of the panel.
    pub(in crate::kernel) fn tile_i8(
        self,
        rows: usize,
        columns: usize,
        a: &[u32],
        steps: &[Step8],
        start: &[i32; PANEL],
        sums: &mut Sums,
    ) {
        // SAFETY: `self` proves the instructions.
        unsafe { vnni::tile(rows, columns, a, steps, start, sums) }
    }

    /// [`Finish::run`], compiled for this instruction set.
    pub(in crate::kernel) fn finish(self, tail: &mut Finish<'_>, sums: &[[i32; PANEL]], row: usize) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn finish(tail: &mut Finish<'_>, sums: &[[i32; PANEL]], row: usize) {
            tail.run(sums, row);
        }

        // SAFETY: `self` proves the instructions.
        unsafe { finish(tail, sums, row) }
    }
}

impl Avx2 {
    /// One tile of the product, `a` as 16-bit numbers; `columns <= 16` spares the second half of the panel.
    pub(in crate::kernel) fn tile_i8(
        self,
        rows: usize,
        columns: usize,
        a: &[u32],
        steps: &[Step8],
        start: &[i32; PANEL],
        sums: &mut Sums,
    ) {
        // SAFETY: `self` proves the instructions.
        unsafe { wide::tile(rows, columns, a, steps, start, sums) }
    }

    /// [`Finish::run`], compiled for this instruction set.
    pub(in crate::kernel) fn finish(self, tail: &mut Finish<'_>, sums: &[[i32; PANEL]], row: usize) {
        #[target_feature(enable = "avx2,fma")]
        fn finish(tail: &mut Finish<'_>, sums: &[[i32; PANEL]], row: usize) {
            tail.run(sums, row);
        }

        // SAFETY: `self` proves the instructions.
        unsafe { finish(tail, sums, row) }
    }
}

mod vnni {
    use super::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    pub(super) fn tile(
        rows: usize,
        columns: usize,
        a: &[u32],
        steps: &[Step8],
        start: &[i32; PANEL],
        sums: &mut Sums,
    ) {
        macro_rules! rows {
            ($($r:literal: $u:literal),*) => {
                match rows {
                    $($r if columns > 16 => dot::<$r, 2, $u>(a, steps, start, sums),
                    $r => dot::<$r, 1, $u>(a, steps, start, sums),)*
                    _ => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        // The second number hides the latency of `vpdpbusd` where few rows give few independent sums.
        rows!(1: 4, 2: 4, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1, 14: 1)
    }

    /// `R` rows by `16 V` columns in registers, `U` steps of `k` at a time.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    fn dot<const R: usize, const V: usize, const U: usize>(
        a: &[u32],
        steps: &[Step8],
        start: &[i32; PANEL],
        sums: &mut Sums,
    ) {
        const { assert!(R <= MAX_ROWS && 16 * V <= PANEL) }
        let mut all = [[[_mm512_setzero_si512(); V]; R]; U];
        for row in &mut all[0] {
            for (v, sum) in row.iter_mut().enumerate() {
                *sum = load_i32(start, v);
            }
        }
        let (a, _) = a.as_chunks::<R>();
        let ((a, a_rest), (steps, steps_rest)) = (a.as_chunks::<U>(), steps.as_chunks::<U>());
        for (a, steps) in a.iter().zip(steps) {
            for u in 0..U {
                step(&mut all[u], &a[u], &steps[u]);
            }
        }
        for (a, steps) in a_rest.iter().zip(steps_rest) {
            step(&mut all[0], a, steps);
        }
        for r in 0..R {
            for v in 0..V {
                let mut sum = all[0][r][v];
                for more in &all[1..] {
                    sum = _mm512_add_epi32(sum, more[r][v]);
                }
                store_i32(&mut sums[r], v, sum);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    fn step<const R: usize, const V: usize>(sums: &mut [[__m512i; V]; R], a: &[u32; R], step: &Step8) {
        let mut w = [_mm512_setzero_si512(); V];
        for (v, w) in w.iter_mut().enumerate() {
            *w = load_i8(step, v);
        }
        for (sums, &a) in sums.iter_mut().zip(a) {
            let a = _mm512_set1_epi32(a as i32);
            for (sum, &w) in sums.iter_mut().zip(&w) {
                *sum = _mm512_dpbusd_epi32(*sum, a, w);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load_i8(step: &Step8, v: usize) -> __m512i {
        let part: &[[i8; 4]; 16] = &step.0.as_chunks().0[v];
        // SAFETY: the reference covers the 64 bytes, and the load asks for no alignment.
        unsafe { _mm512_loadu_si512(part.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load_i32(values: &[i32; PANEL], v: usize) -> __m512i {
        let part: &[i32; 16] = &values.as_chunks().0[v];
        // SAFETY: the reference covers the 64 bytes, and the load asks for no alignment.
        unsafe { _mm512_loadu_si512(part.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store_i32(values: &mut [i32; PANEL], v: usize, vector: __m512i) {
        let part: &mut [i32; 16] = &mut values.as_chunks_mut().0[v];
        // SAFETY: the exclusive reference covers the 64 bytes, and the store asks for no alignment.
        unsafe { _mm512_storeu_si512(part.as_mut_ptr().cast(), vector) }
    }
}

mod wide {
    use super::*;

    /// Vectors of 4 columns for which a pass over the panel keeps sums, one row alone twice as many.
    const PASS: usize = 4;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn tile(
        rows: usize,
        columns: usize,
        a: &[u32],
        steps: &[Step8],
        start: &[i32; PANEL],
        sums: &mut Sums,
    ) {
        if rows == 1 && columns > 16 {
            return dot::<1, { 2 * PASS }>(a, steps, 0, start, sums);
        }
        for first in (0..columns.div_ceil(4)).step_by(PASS) {
            match rows {
                1 => dot::<1, PASS>(a, steps, first, start, sums),
                2 => dot::<2, PASS>(a, steps, first, start, sums),
                3 => dot::<3, PASS>(a, steps, first, start, sums),
                _ => unreachable!("a tile of {rows} rows"),
            }
        }
    }

    /// `R` rows by `V` vectors of 4 columns, from vector `first` on.
    #[target_feature(enable = "avx2,fma")]
    fn dot<const R: usize, const V: usize>(
        a: &[u32],
        steps: &[Step8],
        first: usize,
        start: &[i32; PANEL],
        sums: &mut Sums,
    ) {
        const { assert!(R <= MAX_ROWS && V % 2 == 0) }
        assert!(first + V <= PANEL / 4);
        // Each column has two sums side by side: of its first and its last two inputs of every four.
        let mut all = [[_mm256_setzero_si256(); V]; R];
        for (a, step) in a.as_chunks::<2>().0.as_chunks::<R>().0.iter().zip(steps) {
            let mut x = [_mm256_setzero_si256(); R];
            for (x, &[low, high]) in x.iter_mut().zip(a) {
                *x = _mm256_set1_epi64x((u64::from(low) | u64::from(high) << 32) as i64);
            }
            for v in 0..V {
                let w = load_i8(step, first + v);
                for (sums, &x) in all.iter_mut().zip(&x) {
                    sums[v] = _mm256_add_epi32(sums[v], _mm256_madd_epi16(x, w));
                }
            }
        }
        for (sums, all) in sums.iter_mut().zip(all) {
            for (pair, two) in all.as_chunks::<2>().0.iter().enumerate() {
                // Columns 0 1 4 5 | 2 3 6 7, then in order.
                let sum = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(two[0], two[1]));
                let eight = first / 2 + pair;
                store_i32(sums, eight, _mm256_add_epi32(sum, load_i32(start, eight)));
            }
        }
    }

    /// Four inputs of four columns, widened.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_i8(step: &Step8, v: usize) -> __m256i {
        let part: &[[i8; 4]; 4] = &step.0.as_chunks().0[v];
        // SAFETY: the reference covers the 16 bytes, and the load asks for no alignment.
        _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(part.as_ptr().cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_i32(values: &[i32; PANEL], v: usize) -> __m256i {
        let part: &[i32; 8] = &values.as_chunks().0[v];
        // SAFETY: the reference covers the 32 bytes, and the load asks for no alignment.
        unsafe { _mm256_loadu_si256(part.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store_i32(values: &mut [i32; PANEL], v: usize, vector: __m256i) {
        let part: &mut [i32; 8] = &mut values.as_chunks_mut().0[v];
        // SAFETY: the exclusive reference covers the 32 bytes, and the store asks for no alignment.
        unsafe { _mm256_storeu_si256(part.as_mut_ptr().cast(), vector) }
    }
}
