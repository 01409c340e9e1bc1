//! Picking the numbers of an interval out of many, on AVX-512 and AVX2: compare, compress in a register, store all
//! lanes, and step on by as many as were picked. No branch depends on a number.

use std::arch::x86_64::*;

use super::{Avx2, Avx512, ahead};

macro_rules! between {
    ($name:ident, $t:ty, $bits:ty, $lanes:literal, $load:ident, $store:ident, $set:ident, $broadcast:ident,
     $and:ident, $compare:ident, $compress:ident, $from_bits:ident) => {
        impl Avx512 {
            /// Appends those of `x`, or of their magnitudes, between `lo` and `hi` to `inside`, in order; returns how many
            /// are below `lo`, and how many of the last of `x` were not looked at.
            pub(in crate::kernel) fn $name(
                self,
                x: &[$t],
                magnitude: bool,
                (lo, hi): ($t, $t),
                inside: &mut Vec<$t>,
            ) -> (usize, usize) {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,popcnt")]
                fn run(
                    asked: bool,
                    x: &[$t],
                    magnitude: bool,
                    (lo, hi): ($t, $t),
                    inside: &mut Vec<$t>,
                ) -> (usize, usize) {
                    let sign: $bits = if magnitude { <$bits>::MAX >> 1 } else { <$bits>::MAX };
                    let keep = $from_bits($broadcast(sign.cast_signed()));
                    let (lo, hi) = ($set(lo), $set(hi));
                    let (vectors, rest) = x.as_chunks::<$lanes>();
                    let mut below = 0;
                    for vectors in vectors.chunks(BLOCK) {
                        // A whole vector is stored wherever the next number belongs.
                        inside.reserve((BLOCK + 1) * $lanes);
                        let place = inside.spare_capacity_mut();
                        let mut found = 0;
                        for x in vectors {
                            if asked {
                                ahead(x);
                            }
                            // SAFETY: the reference covers the whole vector, and the load asks for no alignment.
                            let x = $and(unsafe { $load(x.as_ptr()) }, keep);
                            below += $compare::<_CMP_LT_OQ>(x, lo).count_ones() as usize;
                            let within = $compare::<_CMP_GE_OQ>(x, lo) & $compare::<_CMP_LE_OQ>(x, hi);
                            let to = &mut place[found..][..$lanes];
                            // SAFETY: `to` covers the whole vector, and the store asks for no alignment.
                            unsafe { $store(to.as_mut_ptr().cast(), $compress(within, x)) };
                            found += within.count_ones() as usize;
                        }
                        // SAFETY: the loop has written `found` numbers, one after the other, behind the last one.
                        unsafe { inside.set_len(inside.len() + found) };
                    }
                    (below, rest.len())
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(self.asked(), x, magnitude, (lo, hi), inside) }
            }
        }
    };
}

/// Vectors between two looks at the room that is left.
const BLOCK: usize = 256;

between!(
    between_f32,
    f32,
    u32,
    16,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_set1_epi32,
    _mm512_and_ps,
    _mm512_cmp_ps_mask,
    _mm512_maskz_compress_ps,
    _mm512_castsi512_ps
);
between!(
    between_f64,
    f64,
    u64,
    8,
    _mm512_loadu_pd,
    _mm512_storeu_pd,
    _mm512_set1_pd,
    _mm512_set1_epi64,
    _mm512_and_pd,
    _mm512_cmp_pd_mask,
    _mm512_maskz_compress_pd,
    _mm512_castsi512_pd
);

/// For each mask of lanes that are `parts` words of 32 bits, the places of the words of its lanes, in order.
const fn places<const MASKS: usize>(parts: usize) -> [[u8; 8]; MASKS] {
    let mut places = [[0; 8]; MASKS];
    let mut mask = 0;
    while mask < MASKS {
        let (mut from, mut to) = (0, 0);
        while from < 8 {
            if mask >> (from / parts) & 1 == 1 {
                places[mask][to] = from as u8;
                to += 1;
            }
            from += 1;
        }
        mask += 1;
    }
    places
}

static PLACES_F32: [[u8; 8]; 256] = places(1);
static PLACES_F64: [[u8; 8]; 16] = places(2);

macro_rules! between_avx2 {
    ($name:ident, $t:ty, $bits:ty, $lanes:literal, $places:ident, $load:ident, $store:ident, $set:ident,
     $broadcast:ident, $and:ident, $compare:ident, $mask:ident, $to_bits:ident, $from_bits:ident, $sub:ident) => {
        impl Avx2 {
            /// As on AVX-512.
            pub(in crate::kernel) fn $name(
                self,
                x: &[$t],
                magnitude: bool,
                (lo, hi): ($t, $t),
                inside: &mut Vec<$t>,
            ) -> (usize, usize) {
                #[target_feature(enable = "avx2,fma,popcnt")]
                fn run(
                    x: &[$t],
                    magnitude: bool,
                    (lo, hi): ($t, $t),
                    inside: &mut Vec<$t>,
                ) -> (usize, usize) {
                    let sign = if magnitude { <$bits>::MAX } else { -1 };
                    let keep = $from_bits($broadcast(sign));
                    let (lo, hi) = ($set(lo), $set(hi));
                    let (vectors, rest) = x.as_chunks::<$lanes>();
                    let mut below = 0;
                    for vectors in vectors.chunks(BLOCK) {
                        // A whole vector is stored wherever the next number belongs.
                        inside.reserve((BLOCK + 1) * $lanes);
                        let place = inside.spare_capacity_mut();
                        let mut found = 0;
                        let mut lower = _mm256_setzero_si256();
                        for x in vectors {
                            ahead(x);
                            // SAFETY: the reference covers the whole vector, and the load asks for no alignment.
                            let x = $and(unsafe { $load(x.as_ptr()) }, keep);
                            lower = $sub(lower, $to_bits($compare::<_CMP_LT_OQ>(x, lo)));
                            let within = $and($compare::<_CMP_GE_OQ>(x, lo), $compare::<_CMP_LE_OQ>(x, hi));
                            let within = $mask(within) as usize;
                            let places = u64::from_le_bytes($places[within]);
                            let places = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(places.cast_signed()));
                            let to = &mut place[found..][..$lanes];
                            let some = $from_bits(_mm256_permutevar8x32_epi32($to_bits(x), places));
                            // SAFETY: `to` covers the whole vector, and the store asks for no alignment.
                            unsafe { $store(to.as_mut_ptr().cast(), some) };
                            found += within.count_ones() as usize;
                        }
                        // SAFETY: the loop has written `found` numbers, one after the other, behind the last one.
                        unsafe { inside.set_len(inside.len() + found) };
                        let mut counts = [0 as $bits; $lanes];
                        // SAFETY: the exclusive reference covers the vector, and the store asks for no alignment.
                        unsafe { _mm256_storeu_si256(counts.as_mut_ptr().cast(), lower) };
                        below += counts.iter().map(|&count| count as usize).sum::<usize>();
                    }
                    (below, rest.len())
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(x, magnitude, (lo, hi), inside) }
            }
        }
    };
}

between_avx2!(
    between_f32,
    f32,
    i32,
    8,
    PLACES_F32,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_set1_epi32,
    _mm256_and_ps,
    _mm256_cmp_ps,
    _mm256_movemask_ps,
    _mm256_castps_si256,
    _mm256_castsi256_ps,
    _mm256_sub_epi32
);
between_avx2!(
    between_f64,
    f64,
    i64,
    4,
    PLACES_F64,
    _mm256_loadu_pd,
    _mm256_storeu_pd,
    _mm256_set1_pd,
    _mm256_set1_epi64x,
    _mm256_and_pd,
    _mm256_cmp_pd,
    _mm256_movemask_pd,
    _mm256_castpd_si256,
    _mm256_castsi256_pd,
    _mm256_sub_epi64
);
