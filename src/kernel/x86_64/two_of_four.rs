//! 2:4 weights: shuffles within 128 bits pick two of four inputs.

use std::arch::x86_64::*;

use super::{Avx2, Avx512};
use crate::kernel::sparse::{LINE, Line, PAIR_STEP, PairCodes, Pairs, Row, TILE};

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
            /// The sums of one slice of codes for the first `rows` of `x`.
            pub(in crate::kernel) fn pair_codes(
                self,
                steps: &[PairCodes],
                x: &[&[[u8; PAIR_STEP]]; TILE],
                rows: usize,
                sums: &mut [[i32; 16]; TILE],
            ) {
                // SAFETY: `self` proves the instructions.
                unsafe {
                    match rows {
                        0 | 1 => $tile::<1>(steps, x, sums),
                        2 => $tile::<2>(steps, x, sums),
                        3 => $tile::<3>(steps, x, sums),
                        _ => $tile::<TILE>(steps, x, sums),
                    }
                }
            }
        }
    };
}

pair_codes!(Avx2, pair_codes_avx2);
pair_codes!(Avx512, pair_codes_avx512);

/// Eight outputs in a vector. A product with every other weight zero is one that fits 16 bits.
#[target_feature(enable = "avx2,fma")]
fn pair_codes_avx2<const T: usize>(
    steps: &[PairCodes],
    x: &[&[[u8; PAIR_STEP]]; TILE],
    sums: &mut [[i32; 16]; TILE],
) {
    assert!(x.iter().all(|x| x.len() >= steps.len()));
    let (even, ones) = (_mm256_set1_epi16(0xff), _mm256_set1_epi16(1));
    let mut all = [[_mm256_setzero_si256(); 2]; T];
    for (k, step) in steps.iter().enumerate() {
        let (values, indices) = (step.values.as_chunks::<8>().0, step.indices.as_chunks::<8>().0);
        for half in 0..2 {
            // SAFETY: 32 bytes to read.
            let values = unsafe { _mm256_loadu_si256(values[half].as_ptr().cast()) };
            let (first, second) = (_mm256_and_si256(values, even), _mm256_andnot_si256(even, values));
            let bits = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(indices[half])));
            let picks = spread_256(bits);
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
        for (half, sum) in sums.as_chunks_mut::<8>().0.iter_mut().zip(all) {
            // SAFETY: eight sums to write.
            unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), sum) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn pair_codes_avx512<const T: usize>(
    steps: &[PairCodes],
    x: &[&[[u8; PAIR_STEP]]; TILE],
    sums: &mut [[i32; 16]; TILE],
) {
    assert!(x.iter().all(|x| x.len() >= steps.len()));
    let mut chains = [[_mm512_setzero_si512(); T]; 2];
    let (pairs, last) = steps.as_chunks::<2>();
    for (k, pair) in pairs.iter().enumerate() {
        for half in 0..2 {
            let (picks, values) = (picks(&pair[half]), values(&pair[half]));
            for t in 0..T {
                // SAFETY: `2 k + half` is below the number of steps, of which each row has as many at least.
                let x = unsafe { x[t].get_unchecked(2 * k + half) };
                let inputs = _mm512_shuffle_epi8(_mm512_set1_epi64(i64::from_le_bytes(*x)), picks);
                chains[half][t] = _mm512_dpbusd_epi32(chains[half][t], inputs, values);
            }
        }
    }
    for step in last {
        for (sum, x) in chains[0].iter_mut().zip(x) {
            let x = _mm512_set1_epi64(i64::from_le_bytes(x[steps.len() - 1]));
            *sum = _mm512_dpbusd_epi32(*sum, _mm512_shuffle_epi8(x, picks(step)), values(step));
        }
    }
    for (t, sums) in sums[..T].iter_mut().enumerate() {
        // SAFETY: sixteen sums to write.
        unsafe {
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), _mm512_add_epi32(chains[0][t], chains[1][t]))
        };
    }
}

/// Which bytes of two groups, repeated, a step multiplies.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn picks(step: &PairCodes) -> __m512i {
    // SAFETY: sixteen bytes to read.
    let bits = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(step.indices.as_ptr().cast()) });
    spread_512(bits)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn values(step: &PairCodes) -> __m512i {
    // SAFETY: 64 bytes to read.
    unsafe { _mm512_loadu_si512(step.values.as_ptr().cast()) }
}

/// Eight bits for each output to four bytes of two: bits `2 c` and `2 c + 1` to the lowest of byte `c`; the second group of inputs
/// begins at byte 4 of the eight.
macro_rules! spread {
    ($name:ident, $features:literal, $vector:ty, $or:ident, $and:ident, $left:ident, $set:ident) => {
        #[inline]
        #[target_feature(enable = $features)]
        fn $name(bits: $vector) -> $vector {
            let bits = $or(bits, $left::<12>(bits));
            let bits = $or(bits, $left::<6>(bits));
            $or($and(bits, $set(0x0303_0303)), $set(0x0404_0000))
        }
    };
}

spread!(spread_256, "avx2", __m256i, _mm256_or_si256, _mm256_and_si256, _mm256_slli_epi32, _mm256_set1_epi32);
spread!(
    spread_512,
    "avx512f",
    __m512i,
    _mm512_or_si512,
    _mm512_and_si512,
    _mm512_slli_epi32,
    _mm512_set1_epi32
);
