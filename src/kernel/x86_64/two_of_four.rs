//! 2:4 weights: shuffles within 128 bits pick two of four inputs.

use std::arch::x86_64::*;

use super::{Avx2, Avx512};
use crate::kernel::sparse::{LINE, Line, PAIR_STEP, PairCodes, PairIndices, PairValues, Pairs, Row, TILE};
use crate::kernel::tiles::PANEL;

/// `$vectors` vectors hold 16 numbers; `$tables` repeats four of them in each 128 bits, `$pick` picks within those.
macro_rules! pairs {
    ($cpu:ident, $features:literal, $vector:ty, $vectors:literal, $shifts:expr, $tables:expr, $word:ident, $shift:ident,
     $pick:ident, $zero:ident, $fma:ident, $add:ident, $load:ident, $store:ident) => {
        impl $cpu {
            /// The sums of one slice for the first `rows` of `x`.
            pub(in crate::kernel) fn pairs_f32(
                self,
                pairs: Pairs<'_, f32>,
                x: &[Row<'_, f32>; TILE],
                rows: usize,
                y: &mut [Line<f32>; TILE],
            ) {
                #[target_feature(enable = $features)]
                fn by_rows(
                    pairs: Pairs<'_, f32>,
                    x: &[Row<'_, f32>; TILE],
                    rows: usize,
                    y: &mut [Line<f32>; TILE],
                ) {
                    match rows {
                        0 | 1 => tile::<1>(pairs, x, y),
                        2 => tile::<2>(pairs, x, y),
                        3 => tile::<3>(pairs, x, y),
                        _ => tile::<TILE>(pairs, x, y),
                    }
                }

                #[target_feature(enable = $features)]
                fn tile<const T: usize>(
                    pairs: Pairs<'_, f32>,
                    x: &[Row<'_, f32>; TILE],
                    y: &mut [Line<f32>; TILE],
                ) {
                    let Pairs { values, indices } = pairs;
                    let groups = x[0].whole.len().min(values.len()).min(indices.len()) / 2 * 2;
                    let (values, indices) = (&values[..], &indices[..values.len()]);
                    let mut chains = [[[[$zero(); $vectors]; 2]; T]; 2];
                    let mut four = [&x[0].last; T];
                    assert!(x.iter().all(|x| x.whole.len() >= groups));
                    for g in (0..groups).step_by(2) {
                        for half in 0..2 {
                            for t in 0..T {
                                // SAFETY: `g + half < groups`, at most as many as each row has.
                                four[t] = unsafe { x[t].whole.get_unchecked(g + half) };
                            }
                            step(&mut chains[half], &values[g + half], &indices[g + half], &four);
                        }
                    }
                    // A copy: picked by a variable, it must not keep the chains above out of registers.
                    let mut last = chains;
                    for g in groups..values.len() {
                        for (four, x) in four.iter_mut().zip(x) {
                            *four = x.whole.get(g).unwrap_or(&x.last);
                        }
                        step(&mut last[g % 2], &values[g], &indices[g], &four);
                    }
                    for (t, y) in y[..T].iter_mut().enumerate() {
                        for v in 0..$vectors {
                            let [a, b] =
                                [0, 1].map(|half: usize| $add(last[half][t][0][v], last[half][t][1][v]));
                            // SAFETY: an aligned vector within the line, which is `$vectors` of them.
                            unsafe { $store(y.0.as_mut_ptr().add(v * (LINE / $vectors)), $add(a, b)) };
                        }
                    }
                }

                #[inline]
                #[target_feature(enable = $features)]
                fn step<const T: usize>(
                    sums: &mut [[[$vector; $vectors]; 2]; T],
                    values: &[Line<f32>; 2],
                    indices: &[u32; 2],
                    x: &[&[f32; 4]; T],
                ) {
                    let mut tables = [$zero(); T];
                    for (table, x) in tables.iter_mut().zip(x) {
                        // SAFETY: four numbers to read.
                        *table = $tables(unsafe { _mm_loadu_ps(x.as_ptr()) });
                    }
                    for slot in 0..2 {
                        let word = $word(indices[slot] as i32);
                        for v in 0..$vectors {
                            // Picking looks at the lowest two bits of each lane alone.
                            let index = $shift(word, $shifts(v));
                            // SAFETY: an aligned vector within the line, which is `$vectors` of them.
                            let w = unsafe { $load(values[slot].0.as_ptr().add(v * (LINE / $vectors))) };
                            for (sums, &table) in sums.iter_mut().zip(&tables) {
                                sums[slot][v] = $fma(w, $pick(table, index), sums[slot][v]);
                            }
                        }
                    }
                }

                // SAFETY: `self` proves the instructions.
                unsafe { by_rows(pairs, x, rows, y) }
            }
        }
    };
}

pairs!(
    Avx2,
    "avx2,fma",
    __m256,
    2,
    |v: usize| _mm256_add_epi32(
        _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14),
        _mm256_set1_epi32(16 * v as i32)
    ),
    |four| _mm256_set_m128(four, four),
    _mm256_set1_epi32,
    _mm256_srlv_epi32,
    _mm256_permutevar_ps,
    _mm256_setzero_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps,
    _mm256_load_ps,
    _mm256_store_ps
);
pairs!(
    Avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma",
    __m512,
    1,
    |_| _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
    |four| _mm512_broadcast_f32x4(four),
    _mm512_set1_epi32,
    _mm512_srlv_epi32,
    _mm512_permutevar_ps,
    _mm512_setzero_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps,
    _mm512_load_ps,
    _mm512_store_ps
);

macro_rules! pair_codes {
    ($cpu:ident, $tile:ident) => {
        impl $cpu {
            /// Sums of codes of one slice, the first or second `half` of a panel, for as many rows of `x` as there are of `sums`.
            pub(in crate::kernel) fn pair_codes(
                self,
                steps: PairCodes<'_>,
                x: &[&[[u8; PAIR_STEP]]; TILE],
                half: usize,
                sums: &mut [[i32; PANEL]],
            ) {
                // SAFETY: `self` proves the instructions.
                unsafe {
                    match sums.len() {
                        0 | 1 => $tile::<1>(steps, x, half, sums),
                        2 => $tile::<2>(steps, x, half, sums),
                        3 => $tile::<3>(steps, x, half, sums),
                        _ => $tile::<TILE>(steps, x, half, sums),
                    }
                }
            }
        }
    };
}

pair_codes!(Avx2, pair_codes_avx2);
pair_codes!(Avx512, pair_codes_avx512);

/// The lowest two bits of each byte.
const LOWEST: i32 = 0x0303_0303;

/// The second group of inputs begins at byte 4 of the eight.
const GROUP: i32 = 0x0404_0000;

/// Sums of each output and row of codes, added up by steps in turns: with one alone each step would wait for the one before.
const CHAINS: usize = 4;

/// Eight outputs in a vector. A product with every other weight zero is one that fits 16 bits.
#[target_feature(enable = "avx2,fma")]
fn pair_codes_avx2<const T: usize>(
    steps: PairCodes<'_>,
    x: &[&[[u8; PAIR_STEP]]; TILE],
    slice: usize,
    sums: &mut [[i32; PANEL]],
) {
    assert!(x.iter().all(|x| x.len() >= steps.values.len()));
    let (even, ones) = (_mm256_set1_epi16(0xff), _mm256_set1_epi16(1));
    let shifts = [_mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2), _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6)];
    let (lowest, group) = (_mm256_set1_epi32(LOWEST), _mm256_set1_epi32(GROUP));
    let mut all = [[_mm256_setzero_si256(); 2]; T];
    for (k, (values, indices)) in steps.values.iter().zip(steps.indices).enumerate() {
        let values = values.0.as_chunks::<8>().0;
        // SAFETY: sixteen bytes to read.
        let indices = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(indices.as_ptr().cast()) });
        for half in 0..2 {
            // SAFETY: 32 bytes to read.
            let values = unsafe { _mm256_loadu_si256(values[half].as_ptr().cast()) };
            let (first, second) = (_mm256_and_si256(values, even), _mm256_andnot_si256(even, values));
            let bits = _mm256_and_si256(_mm256_srlv_epi32(indices, shifts[half]), lowest);
            let picks = _mm256_or_si256(bits, group);
            for (all, x) in all.iter_mut().zip(x) {
                // SAFETY: `k` is below the number of steps, of which each row has as many at least.
                let x = unsafe { x.get_unchecked(k) };
                let inputs = _mm256_shuffle_epi8(_mm256_set1_epi64x(i64::from_le_bytes(*x)), picks);
                let first = _mm256_madd_epi16(_mm256_maddubs_epi16(inputs, first), ones);
                let second = _mm256_madd_epi16(_mm256_maddubs_epi16(inputs, second), ones);
                all[half] = _mm256_add_epi32(all[half], _mm256_add_epi32(first, second));
            }
        }
    }
    for (sums, all) in sums.iter_mut().zip(all) {
        for (half, sum) in sums.as_chunks_mut::<8>().0[2 * slice..].iter_mut().zip(all) {
            // SAFETY: eight sums to write.
            unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), sum) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn pair_codes_avx512<const T: usize>(
    steps: PairCodes<'_>,
    x: &[&[[u8; PAIR_STEP]]; TILE],
    half: usize,
    sums: &mut [[i32; PANEL]],
) {
    assert!(x.iter().all(|x| x.len() >= steps.values.len()));
    let mut chains = [[_mm512_setzero_si512(); T]; CHAINS];
    let ((values, last_values), (indices, last_indices)) =
        (steps.values.as_chunks::<CHAINS>(), steps.indices.as_chunks::<CHAINS>());
    let step = |sum: &mut [__m512i; T], values: &PairValues, indices: &PairIndices, k: usize| {
        let picks = picks(indices);
        // SAFETY: 64 bytes to read.
        let values = unsafe { _mm512_load_si512(values.0.as_ptr().cast()) };
        for (sum, x) in sum.iter_mut().zip(x) {
            // SAFETY: `k` is below the number of steps, of which each row has as many at least.
            let x = _mm512_set1_epi64(i64::from_le_bytes(unsafe { *x.get_unchecked(k) }));
            *sum = _mm512_dpbusd_epi32(*sum, _mm512_shuffle_epi8(x, picks), values);
        }
    };
    for (i, (values, indices)) in values.iter().zip(indices).enumerate() {
        for c in 0..CHAINS {
            step(&mut chains[c], &values[c], &indices[c], CHAINS * i + c);
        }
    }
    for (c, (values, indices)) in last_values.iter().zip(last_indices).enumerate() {
        step(&mut chains[0], values, indices, steps.values.len() / CHAINS * CHAINS + c);
    }
    for (t, sums) in sums.iter_mut().take(T).enumerate() {
        let sum = chains[1..].iter().fold(chains[0][t], |sum, chain| _mm512_add_epi32(sum, chain[t]));
        let sums: &mut [i32; 16] = &mut sums.as_chunks_mut().0[half];
        // SAFETY: sixteen sums to write.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum) };
    }
}

/// Which bytes of two groups of inputs, repeated, a step multiplies.
#[inline]
#[target_feature(enable = "avx512f")]
fn picks(indices: &PairIndices) -> __m512i {
    // SAFETY: sixteen bytes to read.
    let all = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(indices.as_ptr().cast()) });
    let bits = _mm512_srlv_epi32(all, _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6));
    _mm512_or_si512(_mm512_and_si512(bits, _mm512_set1_epi32(LOWEST)), _mm512_set1_epi32(GROUP))
}
