//! 2:4 weights: shuffles within 128 bits pick two of four inputs.

use std::arch::x86_64::*;

use super::{Avx2, Avx512};
use crate::kernel::sparse::{LINE, Line, PAIR_STEP, PairCodes, PairStep, Row, TILE};

/// `$vectors` vectors hold 16 numbers; `$tables` repeats four of them in each 128 bits, `$pick` picks within those.
macro_rules! pairs {
    ($cpu:ident, $features:literal, $vector:ty, $vectors:literal, $shifts:expr, $tables:expr, $word:ident, $shift:ident,
     $pick:ident, $zero:ident, $fma:ident, $add:ident, $load:ident, $store:ident) => {
        impl $cpu {
            /// The sums of one slice for the first `rows` of `x`.
            pub(in crate::kernel) fn pairs_f32(
                self,
                steps: &[PairStep<f32>],
                x: &[Row<'_, f32>; TILE],
                rows: usize,
                y: &mut [Line<f32>; TILE],
            ) {
                #[target_feature(enable = $features)]
                fn by_rows(
                    steps: &[PairStep<f32>],
                    x: &[Row<'_, f32>; TILE],
                    rows: usize,
                    y: &mut [Line<f32>; TILE],
                ) {
                    match rows {
                        0 | 1 => tile::<1>(steps, x, y),
                        2 => tile::<2>(steps, x, y),
                        3 => tile::<3>(steps, x, y),
                        _ => tile::<TILE>(steps, x, y),
                    }
                }

                #[target_feature(enable = $features)]
                fn tile<const T: usize>(
                    steps: &[PairStep<f32>],
                    x: &[Row<'_, f32>; TILE],
                    y: &mut [Line<f32>; TILE],
                ) {
                    let mut chains = [[[[$zero(); $vectors]; 2]; T]; 2];
                    let mut whole = [x[0].whole; T];
                    for (whole, x) in whole.iter_mut().zip(x) {
                        *whole = &x.whole[..x.whole.len().min(steps.len())];
                    }
                    let groups = whole[0].len();
                    for g in (0..groups / 2 * 2).step_by(2) {
                        step(&mut chains[0], &steps[g], whole.map(|x| &x[g]));
                        step(&mut chains[1], &steps[g + 1], whole.map(|x| &x[g + 1]));
                    }
                    // A copy: picked by a variable, it must not keep the chains above out of registers.
                    let mut last = chains;
                    for (g, one) in steps.iter().enumerate().skip(groups / 2 * 2) {
                        let mut four = [&x[0].last; T];
                        for (four, x) in four.iter_mut().zip(x) {
                            *four = x.whole.get(g).unwrap_or(&x.last);
                        }
                        step(&mut last[g % 2], one, four);
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
                    step: &PairStep<f32>,
                    x: [&[f32; 4]; T],
                ) {
                    let tables = x.map(|x| {
                        // SAFETY: four numbers to read.
                        let four = unsafe { _mm_loadu_ps(x.as_ptr()) };
                        $tables(four)
                    });
                    for slot in 0..2 {
                        let word = $word(step.indices[slot] as i32);
                        for v in 0..$vectors {
                            // Picking looks at the lowest two bits of each lane alone.
                            let index = $shift(word, $shifts(v));
                            // SAFETY: an aligned vector within the line, which is `$vectors` of them.
                            let w = unsafe { $load(step.values[slot].0.as_ptr().add(v * (LINE / $vectors))) };
                            for (sums, &table) in sums.iter_mut().zip(&tables) {
                                sums[slot][v] = $fma(w, $pick(table, index), sums[slot][v]);
                            }
                        }
                    }
                }

                // SAFETY: `self` proves the instructions.
                unsafe { by_rows(steps, x, rows, y) }
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

impl Avx512 {
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
                0 | 1 => pair_codes::<1>(steps, x, sums),
                2 => pair_codes::<2>(steps, x, sums),
                3 => pair_codes::<3>(steps, x, sums),
                _ => pair_codes::<TILE>(steps, x, sums),
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn pair_codes<const T: usize>(
    steps: &[PairCodes],
    x: &[&[[u8; PAIR_STEP]]; TILE],
    sums: &mut [[i32; 16]; TILE],
) {
    let mut rows = [x[0]; T];
    for (row, x) in rows.iter_mut().zip(x) {
        *row = &x[..steps.len()];
    }
    let mut chains = [[_mm512_setzero_si512(); T]; 2];
    let (pairs, last) = steps.as_chunks::<2>();
    for (k, steps) in pairs.iter().enumerate() {
        code_step(&mut chains[0], &steps[0], rows.map(|x| &x[2 * k]));
        code_step(&mut chains[1], &steps[1], rows.map(|x| &x[2 * k + 1]));
    }
    for step in last {
        code_step(&mut chains[0], step, rows.map(|x| &x[steps.len() - 1]));
    }
    for (t, sums) in sums[..T].iter_mut().enumerate() {
        // SAFETY: sixteen sums to write.
        unsafe {
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), _mm512_add_epi32(chains[0][t], chains[1][t]))
        };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn code_step<const T: usize>(sums: &mut [__m512i; T], step: &PairCodes, x: [&[u8; PAIR_STEP]; T]) {
    // SAFETY: sixteen bytes to read.
    let bits = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(step.indices.as_ptr().cast()) });
    // Bits 2 c and 2 c + 1 to the lowest of byte c; the second group begins at byte 4 of the eight.
    let bits = _mm512_or_si512(bits, _mm512_slli_epi32::<12>(bits));
    let bits = _mm512_or_si512(bits, _mm512_slli_epi32::<6>(bits));
    let picks = _mm512_or_si512(
        _mm512_and_si512(bits, _mm512_set1_epi32(0x0303_0303)),
        _mm512_set1_epi32(0x0404_0000),
    );
    // SAFETY: 64 bytes to read.
    let values = unsafe { _mm512_loadu_si512(step.values.as_ptr().cast()) };
    for (sum, x) in sums.iter_mut().zip(x) {
        let table = _mm512_set1_epi64(i64::from_le_bytes(*x));
        *sum = _mm512_dpbusd_epi32(*sum, _mm512_shuffle_epi8(table, picks), values);
    }
}
