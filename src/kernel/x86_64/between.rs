//! Picking the numbers of an interval out of many, on AVX-512: compare, compress in a register, store all lanes, and
//! step on by as many as were picked. No branch depends on a number.

use std::arch::x86_64::*;

use super::Avx512;

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
                unsafe { run(x, magnitude, (lo, hi), inside) }
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
