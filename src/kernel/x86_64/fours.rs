//! Groups of four numbers without their lowest, on AVX-512: each number is compared with the three others of its group,
//! which are its own vector turned by one, two and three places.

use std::arch::x86_64::*;

use super::Avx512;

macro_rules! fours {
    ($name:ident, $t:ty, $lanes:literal, $bits:ty, $infinity:literal, $set:ident, $earlier:ident, $load:ident,
     $store:ident, $cast:ident, $and:ident, $min:ident, $turn:ident, $add:ident, $greater:ident, $unordered:ident,
     $keep:ident) => {
        impl Avx512 {
            /// As [`Real::keep_of_fours`](crate::kernel::Real::keep_of_fours), for whole vectors.
            pub(in crate::kernel) fn $name(self, x: &[$t], out: &mut [$t], surplus: u32) -> (usize, usize) {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,popcnt")]
                fn run(x: &[$t], out: &mut [$t], surplus: u32) -> (usize, usize) {
                    let (x, out) = (x.as_chunks::<$lanes>().0, out.as_chunks_mut::<$lanes>().0);
                    let magnitude = $set(<$bits>::MAX);
                    // Of two equal ones the earlier is the lower: turned by one place, that is the one seen from the last of a group.
                    let [one, two, three] =
                        [$earlier(1, 0, 0, 0), $earlier(1, 1, 0, 0), $earlier(1, 1, 1, 0)];
                    let mut nan = 0;
                    for (from, to) in x.iter().zip(&mut *out) {
                        // SAFETY: the reference covers the vector, and the load asks for no alignment.
                        let x = unsafe { $load(from.as_ptr()) };
                        nan += $unordered::<_CMP_UNORD_Q>(x, x).count_ones() as usize;
                        // Magnitudes in the order of their bits; NaN as infinity.
                        let own = $min($and($cast(x), magnitude), $set($infinity));
                        let first = $greater($add(own, one), $turn::<0b00_11_10_01>(own));
                        let second = $greater($add(own, two), $turn::<0b01_00_11_10>(own));
                        let third = $greater($add(own, three), $turn::<0b10_01_00_11>(own));
                        let keep = match surplus {
                            0 => !0,
                            1 => first | second | third,
                            2 => (first & second) | (third & (first | second)),
                            3 => first & second & third,
                            _ => 0,
                        };
                        // SAFETY: the exclusive reference covers the vector, and the store asks for no alignment.
                        unsafe { $store(to.as_mut_ptr(), $keep(keep, x)) };
                    }
                    ($lanes * x.len().min(out.len()), nan)
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(x, out, surplus) }
            }
        }
    };
}

fours!(
    fours_f32,
    f32,
    16,
    i32,
    0x7f80_0000,
    _mm512_set1_epi32,
    _mm512_set4_epi32,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_castps_si512,
    _mm512_and_si512,
    _mm512_min_epi32,
    _mm512_shuffle_epi32,
    _mm512_add_epi32,
    _mm512_cmpgt_epi32_mask,
    _mm512_cmp_ps_mask,
    _mm512_maskz_mov_ps
);
fours!(
    fours_f64,
    f64,
    8,
    i64,
    0x7ff0_0000_0000_0000,
    _mm512_set1_epi64,
    _mm512_set4_epi64,
    _mm512_loadu_pd,
    _mm512_storeu_pd,
    _mm512_castpd_si512,
    _mm512_and_si512,
    _mm512_min_epi64,
    _mm512_permutex_epi64,
    _mm512_add_epi64,
    _mm512_cmpgt_epi64_mask,
    _mm512_cmp_pd_mask,
    _mm512_maskz_mov_pd
);
