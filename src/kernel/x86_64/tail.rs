//! From sums to outputs on AVX-512: the steps of [`Finish::run`] in vectors, to the same bits, with masks where a panel
//! is not whole.

use std::arch::x86_64::*;

use crate::kernel::tail::{Finish, Fused, Kind};
use crate::kernel::tiles::PANEL;

/// Writes a tile whose first row is `row`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) fn send(finish: &mut Finish<'_>, sums: &[[i32; PANEL]], row: usize) {
    let columns = finish.at..finish.at + finish.used;
    match &mut finish.kind {
        Kind::Codes { factor, zero, low, high, out } => {
            for (i, sums) in sums.iter().enumerate() {
                let out = &mut out.row_mut(row + i)[columns.clone()];
                for v in 0..PANEL / 16 {
                    let code = codes(load_i32(part(sums, v)), load_f32(part(factor, v)), *zero, *low, *high);
                    store_u8(part_mut(out, v), code);
                }
            }
        }
        Kind::Float { factor, bias, activation, out } => {
            for (i, sums) in sums.iter().enumerate() {
                let out = &mut out.row_mut(row + i)[columns.clone()];
                for v in 0..PANEL / 16 {
                    let (sums, factor) = (load_i32(part(sums, v)), load_f32(part(factor, v)));
                    let y = numbers(sums, factor, load_f32(part(bias, v)), *activation);
                    store_f32(part_mut(out, v), y);
                }
            }
        }
        Kind::Sums { .. } | Kind::Fixed { .. } => finish.run(sums, row),
    }
}

/// `clamp(rne(sum * factor), low, high) + zero_point`; `low` and `high` count from the zero point.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn codes(sum: __m512i, factor: __m512, zero_point: i32, low: f32, high: f32) -> __m512i {
    let round = _mm512_set1_ps(12_582_912.0);
    let real = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), factor);
    // The first operand only if it is greater, or less: NaN becomes `low`.
    let real = _mm512_min_ps(_mm512_max_ps(real, _mm512_set1_ps(low)), _mm512_set1_ps(high));
    let bits = _mm512_castps_si512(_mm512_add_ps(real, round));
    _mm512_add_epi32(_mm512_sub_epi32(bits, _mm512_castps_si512(round)), _mm512_set1_epi32(zero_point))
}

/// `activation(sum * factor + bias)`, rounded after each step.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn numbers(sum: __m512i, factor: __m512, bias: __m512, activation: Fused) -> __m512 {
    let y = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), factor), bias);
    match activation {
        Fused::Identity => y,
        Fused::Relu => {
            let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(y, _mm512_setzero_ps());
            _mm512_mask_mov_ps(y, negative, _mm512_setzero_ps())
        }
    }
}

/// The elements `16 v .. 16 v + 16`, or as many of them as there are.
#[inline]
pub(super) fn part<T>(values: &[T], v: usize) -> &[T] {
    &values[(16 * v).min(values.len())..(16 * v + 16).min(values.len())]
}

/// The same to write.
#[inline]
pub(super) fn part_mut<T>(values: &mut [T], v: usize) -> &mut [T] {
    let length = values.len();
    &mut values[(16 * v).min(length)..(16 * v + 16).min(length)]
}

/// One bit for each of at most sixteen elements.
#[inline]
fn mask(length: usize) -> u16 {
    ((1u32 << length.min(16)) - 1) as u16
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_i32(values: &[i32]) -> __m512i {
    // SAFETY: the mask selects at most `values.len()` elements, and others are not touched.
    unsafe { _mm512_maskz_loadu_epi32(mask(values.len()), values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_f32(values: &[f32]) -> __m512 {
    // SAFETY: the mask selects at most `values.len()` elements, and others are not touched.
    unsafe { _mm512_maskz_loadu_ps(mask(values.len()), values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_i32(values: &mut [i32], vector: __m512i) {
    // SAFETY: the mask selects at most `values.len()` elements, and others are not touched.
    unsafe { _mm512_mask_storeu_epi32(values.as_mut_ptr(), mask(values.len()), vector) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_f32(values: &mut [f32], vector: __m512) {
    // SAFETY: the mask selects at most `values.len()` elements, and others are not touched.
    unsafe { _mm512_mask_storeu_ps(values.as_mut_ptr(), mask(values.len()), vector) }
}

/// The low bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_u8(values: &mut [u8], vector: __m512i) {
    // SAFETY: the mask selects at most `values.len()` bytes, and others are not touched.
    unsafe { _mm512_mask_cvtepi32_storeu_epi8(values.as_mut_ptr().cast(), mask(values.len()), vector) }
}
