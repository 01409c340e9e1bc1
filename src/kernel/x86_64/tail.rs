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
            let factor = halves_f32(factor);
            for (i, sums) in sums.iter().enumerate() {
                let sums = halves_i32(sums);
                let a = codes(sums[0], factor[0], *zero, *low, *high);
                let b = codes(sums[1], factor[1], *zero, *low, *high);
                store_panel_u8(&mut out.row_mut(row + i)[columns.clone()], a, b);
            }
        }
        Kind::Float { factor, bias, activation, out } => {
            let (factor, bias) = (halves_f32(factor), halves_f32(bias));
            for (i, sums) in sums.iter().enumerate() {
                let sums = halves_i32(sums);
                let a = numbers(sums[0], factor[0], bias[0], *activation);
                let b = numbers(sums[1], factor[1], bias[1], *activation);
                store_panel_f32(&mut out.row_mut(row + i)[columns.clone()], a, b);
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

/// The columns of a panel, sixteen and sixteen.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves_f32(values: &[f32; PANEL]) -> [__m512; 2] {
    let halves = values.as_chunks::<16>().0;
    // SAFETY: each reference covers the 64 bytes, and the loads ask for no alignment.
    unsafe { [_mm512_loadu_ps(halves[0].as_ptr()), _mm512_loadu_ps(halves[1].as_ptr())] }
}

/// The same of integers.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves_i32(values: &[i32; PANEL]) -> [__m512i; 2] {
    let halves = values.as_chunks::<16>().0;
    // SAFETY: as above.
    unsafe { [_mm512_loadu_si512(halves[0].as_ptr().cast()), _mm512_loadu_si512(halves[1].as_ptr().cast())] }
}

/// The low bytes of a panel of columns, or of as many as there is room for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn store_panel_u8(out: &mut [u8], a: __m512i, b: __m512i) {
    let (a, b) = (_mm512_cvtepi32_epi8(a), _mm512_cvtepi32_epi8(b));
    let bytes = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
    match out.first_chunk_mut::<PANEL>() {
        // SAFETY: the exclusive reference covers the 32 bytes, and the store asks for no alignment.
        Some(whole) => unsafe { _mm256_storeu_si256(whole.as_mut_ptr().cast(), bytes) },
        None => {
            let mask = (1u32 << out.len()) - 1;
            // SAFETY: the mask selects at most `out.len()` bytes, and others are not touched.
            unsafe { _mm256_mask_storeu_epi8(out.as_mut_ptr().cast(), mask, bytes) }
        }
    }
}

/// A panel of columns, or as many as there is room for.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_panel_f32(out: &mut [f32], a: __m512, b: __m512) {
    match out.first_chunk_mut::<PANEL>() {
        Some(whole) => {
            let halves = whole.as_chunks_mut::<16>().0;
            // SAFETY: the exclusive references cover the 64 bytes each, and the stores ask for no alignment.
            unsafe {
                _mm512_storeu_ps(halves[0].as_mut_ptr(), a);
                _mm512_storeu_ps(halves[1].as_mut_ptr(), b);
            }
        }
        None => {
            store_f32(part_mut(out, 0), a);
            store_f32(part_mut(out, 1), b);
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
pub(super) fn mask(length: usize) -> u16 {
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
