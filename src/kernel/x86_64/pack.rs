//! Packing: rows of words or double words transposed in registers, sixteen by sixteen or eight by eight on AVX-512, half as
//! many on AVX2, and for AVX2 codes widened to 16 bits.

use std::arch::x86_64::*;
use std::array;

use super::{Avx2, Avx512};
use crate::kernel::pack::Rows;
use crate::kernel::scalar::int8::put_wide;

impl Avx512 {
    /// `into[k * width + i] = flip ^ word k of row i`; a last word that is not whole is padded with zeros.
    pub(in crate::kernel) fn pack_words(
        self,
        from: Rows<'_>,
        rows: usize,
        flip: u32,
        into: &mut [u32],
        width: usize,
    ) {
        // SAFETY: `self` proves the instructions.
        unsafe { pack_words(from, rows, flip, into, width) }
    }

    /// `into[k * width + i] = double word k of row i`, which are whole.
    pub(in crate::kernel) fn pack_double_words(
        self,
        from: Rows<'_>,
        rows: usize,
        into: &mut [u64],
        width: usize,
    ) {
        // SAFETY: `self` proves the instructions.
        unsafe { pack_double_words(from, rows, into, width) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn pack_words(from: Rows<'_>, rows: usize, flip: u32, into: &mut [u32], width: usize) {
    let flip = _mm512_set1_epi32(flip as i32);
    for first in (0..rows).step_by(16) {
        let count = (rows - first).min(16);
        for at in (0..from.length).step_by(64) {
            let mut block = [_mm512_setzero_si512(); 16];
            for (i, row) in block.iter_mut().enumerate() {
                // Rows that do not exist repeat the last; the stores below leave them out.
                *row = _mm512_xor_si512(load(from.piece(first + i.min(count - 1), at)), flip);
            }
            let words = (from.length - at).div_ceil(4);
            let into = &mut into[at / 4 * width + first..];
            for (k, column) in transpose_words(block).into_iter().enumerate() {
                if k < words {
                    let into = &mut into[k * width..];
                    match into.first_chunk_mut() {
                        // What it writes behind the rows is written again with the next word.
                        Some(sixteen) if count == width => store_sixteen(sixteen, column),
                        _ => store_words(&mut into[..count], column),
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn pack_double_words(from: Rows<'_>, rows: usize, into: &mut [u64], width: usize) {
    for first in (0..rows).step_by(8) {
        let count = (rows - first).min(8);
        for at in (0..from.length).step_by(64) {
            let mut block = [_mm512_setzero_si512(); 8];
            for (i, row) in block.iter_mut().enumerate() {
                *row = load(from.piece(first + i.min(count - 1), at));
            }
            let words = (from.length - at).div_ceil(8);
            let into = &mut into[at / 8 * width + first..];
            for (k, column) in transpose_double_words(block).into_iter().enumerate() {
                if k < words {
                    store_double_words(&mut into[k * width..][..count], column);
                }
            }
        }
    }
}

/// `result[k]` lane `i` is `rows[i]` lane `k`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_words(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = rows;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // Lane q of b[4 g + c] holds column 4 q + c of the rows 4 g .. 4 g + 4.
    let mut b = a;
    for g in 0..4 {
        b[4 * g] = _mm512_unpacklo_epi64(a[4 * g], a[4 * g + 2]);
        b[4 * g + 1] = _mm512_unpackhi_epi64(a[4 * g], a[4 * g + 2]);
        b[4 * g + 2] = _mm512_unpacklo_epi64(a[4 * g + 1], a[4 * g + 3]);
        b[4 * g + 3] = _mm512_unpackhi_epi64(a[4 * g + 1], a[4 * g + 3]);
    }
    let mut columns = b;
    for c in 0..4 {
        let quarters = transpose_quarters([b[c], b[4 + c], b[8 + c], b[12 + c]]);
        for (q, quarter) in quarters.into_iter().enumerate() {
            columns[4 * q + c] = quarter;
        }
    }
    columns
}

/// `result[k]` lane `i` is `rows[i]` lane `k`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_double_words(rows: [__m512i; 8]) -> [__m512i; 8] {
    // Lane q of low and high [g] holds columns 2 q and 2 q + 1 of the rows 2 g and 2 g + 1.
    let mut low = [rows[0]; 4];
    let mut high = low;
    for g in 0..4 {
        low[g] = _mm512_unpacklo_epi64(rows[2 * g], rows[2 * g + 1]);
        high[g] = _mm512_unpackhi_epi64(rows[2 * g], rows[2 * g + 1]);
    }
    let (low, high) = (transpose_quarters(low), transpose_quarters(high));
    [low[0], high[0], low[1], high[1], low[2], high[2], low[3], high[3]]
}

/// Vectors as rows of four quarters: `result[q]` quarter `g` is `v[g]` quarter `q`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_quarters(v: [__m512i; 4]) -> [__m512i; 4] {
    let a = _mm512_shuffle_i32x4::<0b01_00_01_00>(v[0], v[1]); // v0: 0 1, v1: 0 1
    let b = _mm512_shuffle_i32x4::<0b11_10_11_10>(v[0], v[1]); // v0: 2 3, v1: 2 3
    let c = _mm512_shuffle_i32x4::<0b01_00_01_00>(v[2], v[3]);
    let d = _mm512_shuffle_i32x4::<0b11_10_11_10>(v[2], v[3]);
    [
        _mm512_shuffle_i32x4::<0b10_00_10_00>(a, c),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(a, c),
        _mm512_shuffle_i32x4::<0b10_00_10_00>(b, d),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(b, d),
    ]
}

/// At most 64 bytes, zeros behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(bytes: &[u8]) -> __m512i {
    let mask = u64::MAX >> (64 - bytes.len().clamp(1, 64));
    assert!(!bytes.is_empty());
    // SAFETY: the mask selects at most `bytes.len()` bytes, and others are not touched.
    unsafe { _mm512_maskz_loadu_epi8(mask, bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_sixteen(words: &mut [u32; 16], vector: __m512i) {
    // SAFETY: the exclusive reference covers the 64 bytes, and the store asks for no alignment.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_words(words: &mut [u32], vector: __m512i) {
    let mask = ((1u32 << words.len().min(16)) - 1) as u16;
    // SAFETY: the mask selects at most `words.len()` words, and others are not touched.
    unsafe { _mm512_mask_storeu_epi32(words.as_mut_ptr().cast(), mask, vector) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_double_words(words: &mut [u64], vector: __m512i) {
    let mask = ((1u32 << words.len().min(8)) - 1) as u8;
    // SAFETY: the mask selects at most `words.len()` double words, and others are not touched.
    unsafe { _mm512_mask_storeu_epi64(words.as_mut_ptr().cast(), mask, vector) }
}

/// Whole vectors of words or of double words, `$lanes` rows at a time.
macro_rules! transpose {
    ($name:ident, $t:ty, $lanes:literal, $load:ident, $store:ident, $transpose:ident) => {
        impl Avx2 {
            /// `into[k * width + i]` = element `k` of row `i`, for as many rows and `k` as fill whole vectors; returns how many of each.
            pub(in crate::kernel) fn $name(
                self,
                from: Rows<'_>,
                rows: usize,
                into: &mut [$t],
                width: usize,
            ) -> (usize, usize) {
                #[target_feature(enable = "avx2,fma")]
                fn run(from: Rows<'_>, rows: usize, into: &mut [$t], width: usize) -> (usize, usize) {
                    const BYTES: usize = $lanes * size_of::<$t>();
                    let (groups, whole) = (rows / $lanes, from.length / BYTES);
                    for first in (0..groups * $lanes).step_by($lanes) {
                        let rows: [&[[u8; BYTES]]; $lanes] = array::from_fn(|i| {
                            let row = &from.data[(first + i) * from.stride..][..from.length];
                            &row.as_chunks().0[..whole]
                        });
                        for (at, into) in into.chunks_exact_mut(width * $lanes).take(whole).enumerate() {
                            // SAFETY: the reference covers the vector, and the load asks for no alignment.
                            let block = rows.map(|row| unsafe { $load(row[at].as_ptr().cast()) });
                            for (into, column) in into.chunks_exact_mut(width).zip($transpose(block)) {
                                let into: &mut [$t] = &mut into[first..first + $lanes];
                                // SAFETY: the exclusive reference covers the vector; no alignment is asked for.
                                unsafe { $store(into.as_mut_ptr().cast(), column) };
                            }
                        }
                    }
                    (groups * $lanes, whole * $lanes)
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(from, rows, into, width) }
            }
        }
    };
}

transpose!(pack_words, u32, 8, _mm256_loadu_ps, _mm256_storeu_ps, transpose_eight);
transpose!(pack_double_words, u64, 4, _mm256_loadu_pd, _mm256_storeu_pd, transpose_four);

/// `result[k]` lane `i` is `rows[i]` lane `k`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_eight(rows: [__m256; 8]) -> [__m256; 8] {
    let mut a = rows;
    for i in 0..4 {
        a[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    // Half h of b[4 g + c] holds column 4 h + c of the rows 4 g .. 4 g + 4.
    let mut b = a;
    for g in 0..2 {
        b[4 * g] = _mm256_shuffle_ps::<0b01_00_01_00>(a[4 * g], a[4 * g + 2]);
        b[4 * g + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a[4 * g], a[4 * g + 2]);
        b[4 * g + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(a[4 * g + 1], a[4 * g + 3]);
        b[4 * g + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(a[4 * g + 1], a[4 * g + 3]);
    }
    let mut columns = b;
    for c in 0..4 {
        columns[c] = _mm256_permute2f128_ps::<0x20>(b[c], b[4 + c]);
        columns[4 + c] = _mm256_permute2f128_ps::<0x31>(b[c], b[4 + c]);
    }
    columns
}

/// `result[k]` lane `i` is `rows[i]` lane `k`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_four(rows: [__m256d; 4]) -> [__m256d; 4] {
    // Half h of low and high [g] holds columns 2 h and 2 h + 1 of the rows 2 g and 2 g + 1.
    let low = [_mm256_unpacklo_pd(rows[0], rows[1]), _mm256_unpacklo_pd(rows[2], rows[3])];
    let high = [_mm256_unpackhi_pd(rows[0], rows[1]), _mm256_unpackhi_pd(rows[2], rows[3])];
    [
        _mm256_permute2f128_pd::<0x20>(low[0], low[1]),
        _mm256_permute2f128_pd::<0x20>(high[0], high[1]),
        _mm256_permute2f128_pd::<0x31>(low[0], low[1]),
        _mm256_permute2f128_pd::<0x31>(high[0], high[1]),
    ]
}

impl Avx2 {
    /// Rows of codes, at most a tile of them, to `[inputs / 4][rows]`, four codes of 16 bits in each element.
    pub(in crate::kernel) fn pack_wide(
        self,
        codes: &[u8],
        inputs: usize,
        flip: u32,
        packed: &mut [[u32; 2]],
    ) {
        #[target_feature(enable = "avx2,fma")]
        fn run(codes: &[u8], inputs: usize, flip: u32, packed: &mut [[u32; 2]]) {
            let rows = codes.len() / inputs;
            let flip_all = _mm_set1_epi32(flip as i32);
            for (i, row) in codes.chunks_exact(inputs).enumerate() {
                let (sixteens, rest) = row.as_chunks::<16>();
                for (at, sixteen) in sixteens.iter().enumerate() {
                    // SAFETY: the reference covers the 16 bytes, and the load asks for no alignment.
                    let codes = unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) };
                    let wide = _mm256_cvtepu8_epi16(_mm_xor_si128(codes, flip_all));
                    let mut fours = [[0u32; 2]; 4];
                    // SAFETY: the exclusive reference covers the 32 bytes, and the store asks for no alignment.
                    unsafe { _mm256_storeu_si256(fours.as_mut_ptr().cast(), wide) };
                    for (place, four) in packed[4 * at * rows + i..].iter_mut().step_by(rows).zip(fours) {
                        *place = four;
                    }
                }
                if !rest.is_empty() {
                    put_wide(rest, flip, packed[4 * sixteens.len() * rows + i..].iter_mut().step_by(rows));
                }
            }
        }

        // SAFETY: `self` proves the instructions.
        unsafe { run(codes, inputs, flip, packed) }
    }
}
