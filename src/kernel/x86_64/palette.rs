//! Weights looked up in registers: a permutation of the table by the codes is the look-up, and needs no mask, because it
//! reads the low bits of each lane alone.

use std::arch::x86_64::*;
use std::array;

use super::{Avx2, Avx512};
use crate::kernel::palette::{Job, PackedPalette, STRIP, Sums, Word};

/// One set of instructions. Up to so many `$values` are a table of `$n` vectors, looked up by `$k` codes in a word; so many
/// `$rows` keep the sums of `$strips` strips in registers.
macro_rules! palette {
    ($cpu:ident, $features:literal, $vector:ty, $lanes:literal, $most:literal,
     $zero:ident, $set:ident, $fma:ident, $store:ident,
     [$($values:literal: $n:literal, $k:literal);*], [$($rows:literal: $strips:literal),*]) => {
        impl $cpu {
            /// The sums of few rows.
            pub(in crate::kernel) fn palette_rows(self, job: Job<'_, '_, f32>) {
                #[target_feature(enable = $features)]
                fn run(job: Job<'_, '_, f32>) {
                    job.run($most, |weights, strips, x, sums| {
                        let values = weights.table.as_slice();
                        match weights.table().len() {
                            $(..=$values => tile::<$n, $k>(weights, strips, x, values, sums),)*
                            _ => unreachable!("a table of more than 256 values"),
                        }
                    });
                }

                /// Some strips by some rows.
                #[target_feature(enable = $features)]
                fn tile<const N: usize, const K: usize>(
                    weights: &PackedPalette<f32>,
                    strips: std::ops::Range<usize>,
                    x: &[f32],
                    values: &[f32],
                    sums: &mut Sums<f32>,
                ) {
                    let inputs = weights.inputs();
                    match x.len() / inputs {
                        $($rows => {
                            for (at, first) in strips.clone().step_by($strips).enumerate() {
                                let words: [&[Word]; $strips] =
                                    array::from_fn(|p| weights.strip((first + p).min(strips.end - 1)));
                                let x: [&[f32]; $rows] = array::from_fn(|i| &x[i * inputs..(i + 1) * inputs]);
                                dot::<N, K, $rows, $strips>(words, x, values, at * $strips * STRIP, sums);
                            }
                        })*
                        rows => unreachable!("a tile of {rows} rows"),
                    }
                }

                /// `R` rows by `P` strips; their sums begin in column `at`.
                #[target_feature(enable = $features)]
                fn dot<const N: usize, const K: usize, const R: usize, const P: usize>(
                    words: [&[Word]; P],
                    x: [&[f32]; R],
                    values: &[f32],
                    at: usize,
                    sums: &mut Sums<f32>,
                ) {
                    let table = table::<N>(values);
                    let mut all = [[[$zero(); STRIP / $lanes]; P]; R];
                    let chunks = x.map(|x| x.as_chunks::<K>());
                    let whole = chunks[0].0.len();
                    for w in 0..whole {
                        let x = chunks.map(|(chunks, _)| &chunks[w]);
                        word::<N, K, R, P>(words.map(|words| &words[w]), x, K, &table, values, &mut all);
                    }
                    let left = chunks[0].1.len();
                    if left > 0 {
                        let x = chunks.map(|(_, rest)| array::from_fn(|i| rest.get(i).copied().unwrap_or(0.0)));
                        let x = x.each_ref();
                        word::<N, K, R, P>(words.map(|words| &words[whole]), x, left, &table, values, &mut all);
                    }
                    for (sums, all) in sums.iter_mut().zip(all) {
                        let vectors = sums[at..].as_chunks_mut::<$lanes>().0.iter_mut();
                        for (to, sum) in vectors.zip(all.into_iter().flatten()) {
                            // SAFETY: the exclusive reference covers the whole vector, and the store asks for no alignment.
                            unsafe { $store(to.as_mut_ptr(), sum) }
                        }
                    }
                }

                /// The first `count` inputs of one word.
                #[inline]
                #[target_feature(enable = $features)]
                fn word<const N: usize, const K: usize, const R: usize, const P: usize>(
                    words: [&Word; P],
                    x: [&[f32; K]; R],
                    count: usize,
                    table: &[$vector; N],
                    values: &[f32],
                    all: &mut [[[$vector; STRIP / $lanes]; P]; R],
                ) {
                    let mut codes = words.map(|word| indices(word));
                    for i in 0..count.min(K) {
                        for (p, codes) in codes.iter_mut().enumerate() {
                            for (v, code) in codes.iter_mut().enumerate() {
                                let w = lookup::<N>(table, values, *code);
                                for (sums, x) in all.iter_mut().zip(&x) {
                                    sums[p][v] = $fma($set(x[i]), w, sums[p][v]);
                                }
                                *code = shift::<K>(*code);
                            }
                        }
                    }
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(job) }
            }

            /// One panel as numbers.
            pub(in crate::kernel) fn palette_unpack(
                self,
                weights: &PackedPalette<f32>,
                panel: usize,
                numbers: &mut [f32],
            ) {
                #[target_feature(enable = $features)]
                fn run(weights: &PackedPalette<f32>, panel: usize, numbers: &mut [f32]) {
                    match weights.table().len() {
                        $(..=$values => unpack::<$n, $k>(weights, panel, numbers),)*
                        _ => unreachable!("a table of more than 256 values"),
                    }
                }

                #[target_feature(enable = $features)]
                fn unpack<const N: usize, const K: usize>(
                    weights: &PackedPalette<f32>,
                    panel: usize,
                    numbers: &mut [f32],
                ) {
                    let values = weights.table.as_slice();
                    let table = table::<N>(values);
                    for (s, strip) in numbers.as_chunks_mut::<STRIP>().0.chunks_mut(weights.inputs()).enumerate() {
                        for (word, lines) in weights.strip(2 * panel + s).iter().zip(strip.chunks_mut(K)) {
                            let mut codes = indices(word);
                            for line in lines {
                                let vectors = line.as_chunks_mut::<$lanes>().0.iter_mut();
                                for (to, code) in vectors.zip(&mut codes) {
                                    let w = lookup::<N>(&table, values, *code);
                                    // SAFETY: the exclusive reference covers the whole vector, and the store asks for no alignment.
                                    unsafe { $store(to.as_mut_ptr(), w) }
                                    *code = shift::<K>(*code);
                                }
                            }
                        }
                    }
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(weights, panel, numbers) }
            }
        }
    };
}

mod avx512 {
    use super::*;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn indices(word: &Word) -> [__m512i; 1] {
        // SAFETY: the reference covers the whole vector.
        [unsafe { _mm512_loadu_epi32(word.0.as_ptr().cast()) }]
    }

    /// The codes of the next input.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn shift<const K: usize>(codes: __m512i) -> __m512i {
        _mm512_srlv_epi32(codes, _mm512_set1_epi32(const { 32 / K as i32 }))
    }

    /// The first `16 N` values.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn table<const N: usize>(values: &[f32]) -> [__m512; N] {
        let all = values.as_chunks::<16>().0;
        // SAFETY: the reference covers the whole vector, and the load asks for no alignment.
        array::from_fn(|n| unsafe { _mm512_loadu_ps(all[n].as_ptr()) })
    }

    /// One vector of 16 values by 4 bits, pairs of them by 5, and from more pairs the one that the next bits name.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn lookup<const N: usize>(table: &[__m512; N], _values: &[f32], codes: __m512i) -> __m512 {
        if N == 1 {
            return _mm512_permutexvar_ps(codes, table[0]);
        }
        let mut found: [__m512; N] = *table;
        for pair in 0..N / 2 {
            found[pair] = _mm512_permutex2var_ps(table[2 * pair], codes, table[2 * pair + 1]);
        }
        let (mut left, mut bit) = (N / 2, 32);
        while left > 1 {
            let upper = _mm512_test_epi32_mask(codes, _mm512_set1_epi32(bit));
            for pair in 0..left / 2 {
                found[pair] = _mm512_mask_blend_ps(upper, found[2 * pair], found[2 * pair + 1]);
            }
            (left, bit) = (left / 2, bit * 2);
        }
        found[0]
    }

    palette!(
        Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", __m512, 16, 8,
        _mm512_setzero_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_storeu_ps,
        [16: 1, 8; 32: 2, 4; 64: 4, 4; 256: 16, 4], [1: 4, 2: 4, 3: 4, 4: 4, 5: 2, 6: 2, 7: 2, 8: 2]
    );
}

mod avx2 {
    use super::*;

    #[inline]
    #[target_feature(enable = "avx2")]
    fn indices(word: &Word) -> [__m256i; 2] {
        let halves = word.0.as_chunks::<8>().0;
        // SAFETY: the reference covers the whole vector, and the load asks for no alignment.
        array::from_fn(|h| unsafe { _mm256_loadu_si256(halves[h].as_ptr().cast()) })
    }

    /// The codes of the next input.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn shift<const K: usize>(codes: __m256i) -> __m256i {
        _mm256_srlv_epi32(codes, _mm256_set1_epi32(const { 32 / K as i32 }))
    }

    /// The first `8 N` values.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn table<const N: usize>(values: &[f32]) -> [__m256; N] {
        let all = values.as_chunks::<8>().0;
        // SAFETY: the reference covers the whole vector, and the load asks for no alignment.
        array::from_fn(|n| unsafe { _mm256_loadu_ps(all[n].as_ptr()) })
    }

    /// Vectors of 8 values by 3 bits, and of these the one that the next bits name; from memory by 8 bits, for `N` of 0.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn lookup<const N: usize>(table: &[__m256; N], values: &[f32], codes: __m256i) -> __m256 {
        if N > 0 {
            let mut found = table.map(|table| _mm256_permutevar8x32_ps(table, codes));
            let (mut left, mut place) = (N, 28);
            while left > 1 {
                // The sign chooses.
                let upper = _mm256_castsi256_ps(_mm256_sllv_epi32(codes, _mm256_set1_epi32(place)));
                for pair in 0..left / 2 {
                    found[pair] = _mm256_blendv_ps(found[2 * pair], found[2 * pair + 1], upper);
                }
                (left, place) = (left / 2, place - 1);
            }
            return found[0];
        }
        assert!(values.len() > 255);
        let codes = _mm256_and_si256(codes, _mm256_set1_epi32(255));
        // SAFETY: all codes are at most 255, and there are more values than that.
        unsafe { _mm256_i32gather_ps::<4>(values.as_ptr(), codes) }
    }

    palette!(
        Avx2, "avx2,fma", __m256, 8, 4,
        _mm256_setzero_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_storeu_ps,
        [16: 2, 8; 32: 4, 4; 256: 0, 4], [1: 2, 2: 2, 3: 1, 4: 1]
    );
}
