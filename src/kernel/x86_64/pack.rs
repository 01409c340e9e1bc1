//! Packing: rows of words or double words transposed in registers, sixteen by sixteen or eight by eight on AVX-512, half as
//! many on AVX2, and for AVX2 codes widened to 16 bits.

use std::arch::x86_64::*;
use std::array;

use super::{Avx2, Avx512};
use crate::kernel::pack::Rows;
use crate::kernel::scalar::int8::put_wide;
use crate::kernel::stream::fetch_line;

/// While a row is packed, what it holds so many bytes further on is asked for: some processors hardly read ahead by themselves.
const AHEAD: usize = 512;

/// Words or double words, `$lanes` rows at a time.
macro_rules! pack {
    ($name:ident, $t:ty, $lanes:literal, $set:ident, $transpose:ident, $store:ident) => {
        impl Avx512 {
            /// `into[k * width + i] = flip ^ element k of row i`; a last element that is not whole is padded with zeros.
            ///
            /// # Panics
            /// If there are fewer rows than `rows`, or `into` has no room for them.
            pub(in crate::kernel) fn $name(
                self,
                from: Rows<'_>,
                rows: usize,
                flip: $t,
                into: &mut [$t],
                width: usize,
            ) {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
                fn run(from: Rows<'_>, rows: usize, flip: $t, into: &mut [$t], width: usize) {
                    const EACH: usize = size_of::<$t>();
                    let (length, flip) = (from.length, $set(flip.cast_signed()));
                    assert!(rows <= width, "{rows} rows packed {width} apart");
                    let into = &mut into[..length.div_ceil(EACH) * width];
                    for first in (0..rows).step_by($lanes) {
                        let count = (rows - first).min($lanes);
                        // Rows that do not exist repeat the last.
                        let starts: [*const u8; $lanes] =
                            array::from_fn(|i| from.row(first + i.min(count - 1)).as_ptr());
                        for at in (0..length).step_by(64) {
                            let bytes = (length - at).min(64);
                            let mut block = [flip; $lanes];
                            if bytes == 64 {
                                // Behind a row comes another; those that are packed next stand behind all of these.
                                let end = if at + AHEAD < length {
                                    0
                                } else {
                                    (rows * from.stride).wrapping_sub(length)
                                };
                                for start in &starts[..count] {
                                    fetch_line(start.wrapping_add(at + AHEAD).wrapping_add(end));
                                }
                                for (block, start) in block.iter_mut().zip(starts) {
                                    // SAFETY: the row has 64 bytes from there on.
                                    let part = unsafe { load(start.add(at)) };
                                    *block = _mm512_xor_si512(*block, part);
                                }
                            } else {
                                for (block, start) in block.iter_mut().zip(starts) {
                                    // SAFETY: the row has so many bytes from there on.
                                    let part = unsafe { load_some(start.add(at), bytes) };
                                    *block = _mm512_xor_si512(*block, part);
                                }
                            }
                            let (columns, words) = ($transpose(block), bytes.div_ceil(EACH));
                            let into = &mut into[at / EACH * width + first..];
                            // What a whole vector writes behind the rows is written again with the next element.
                            let whole = count == $lanes
                                || count == width && (words - 1) * width + $lanes <= into.len();
                            if whole && words == $lanes {
                                for (k, column) in columns.into_iter().enumerate() {
                                    // SAFETY: there is room for all rows of each element, and for a vector behind the last.
                                    unsafe { store(into.as_mut_ptr().add(k * width), column) };
                                }
                            } else {
                                let mask = !0 >> ($lanes - count);
                                for (k, column) in columns.into_iter().enumerate().take(words) {
                                    // SAFETY: there is room for all rows of each element, which the mask selects.
                                    unsafe { $store(into.as_mut_ptr().add(k * width).cast(), mask, column) };
                                }
                            }
                        }
                    }
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(from, rows, flip, into, width) }
            }
        }
    };
}

pack!(pack_words, u32, 16, _mm512_set1_epi32, transpose_words, _mm512_mask_storeu_epi32);
pack!(pack_double_words, u64, 8, _mm512_set1_epi64, transpose_double_words, _mm512_mask_storeu_epi64);

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

/// # Safety
/// 64 bytes have to be readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(bytes: *const u8) -> __m512i {
    // SAFETY: see above; no alignment is asked for.
    unsafe { _mm512_loadu_si512(bytes.cast()) }
}

/// So many bytes, 1..=64, and zeros behind them.
///
/// # Safety
/// They have to be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_some(bytes: *const u8, count: usize) -> __m512i {
    // SAFETY: the mask selects those, and others are not touched.
    unsafe { _mm512_maskz_loadu_epi8(u64::MAX >> (64 - count), bytes.cast()) }
}

/// # Safety
/// 64 bytes have to be writable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<T>(into: *mut T, vector: __m512i) {
    // SAFETY: see above; no alignment is asked for.
    unsafe { _mm512_storeu_si512(into.cast(), vector) }
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
                        let rows: [&[[u8; BYTES]]; $lanes] =
                            array::from_fn(|i| &from.row(first + i).as_chunks().0[..whole]);
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
