//! Groups of four numbers without their lowest, on AVX-512 and AVX2: each number is compared with the three others of
//! its group, which are its own vector turned by one, two and three places.

use std::arch::x86_64::*;

use super::{Avx2, Avx512, ahead};

macro_rules! fours {
    ($name:ident, $t:ty, $lanes:literal, $bits:ty, $nan:literal, $set:ident, $earlier:ident, $load:ident,
     $store:ident, $cast:ident, $and:ident, $min:ident, $turn:ident, $add:ident, $greater:ident, $unordered:ident,
     $keep:ident) => {
        impl Avx512 {
            /// As [`Real::keep_of_fours`](crate::kernel::Real::keep_of_fours), for whole vectors.
            pub(in crate::kernel) fn $name(self, x: &[$t], out: &mut [$t], surplus: u32) -> (usize, usize) {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,popcnt")]
                fn run(asked: bool, x: &[$t], out: &mut [$t], surplus: u32) -> (usize, usize) {
                    let (x, out) = (x.as_chunks::<$lanes>().0, out.as_chunks_mut::<$lanes>().0);
                    let magnitude = $set(<$bits>::MAX);
                    // Of two equal ones the earlier is the lower: turned by one place, that is the one seen from the last of a group.
                    let [one, two, three] =
                        [$earlier(1, 0, 0, 0), $earlier(1, 1, 0, 0), $earlier(1, 1, 1, 0)];
                    let mut nan = 0;
                    for (from, to) in x.iter().zip(&mut *out) {
                        if asked {
                            ahead(from);
                        }
                        // SAFETY: the reference covers the vector, and the load asks for no alignment.
                        let x = unsafe { $load(from.as_ptr()) };
                        nan += $unordered::<_CMP_UNORD_Q>(x, x).count_ones() as usize;
                        // Magnitudes in the order of their bits; every NaN as the one above infinity.
                        let own = $min($and($cast(x), magnitude), $set($nan));
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
                unsafe { run(self.asked(), x, out, surplus) }
            }
        }
    };
}

fours!(
    fours_f32,
    f32,
    16,
    i32,
    0x7f80_0001,
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
    0x7ff0_0000_0000_0001,
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

macro_rules! fours_avx2 {
    ($name:ident, $t:ty, $lanes:literal, $bits:ty, $nan:literal, $set:ident, $earlier:expr, $load:ident,
     $store:ident, $cast:ident, $back:ident, $and:ident, $unordered:ident, $blend:ident, $turn:ident, $add:ident,
     $sub:ident, $greater:ident) => {
        impl Avx2 {
            /// As [`Real::keep_of_fours`](crate::kernel::Real::keep_of_fours), for whole vectors.
            pub(in crate::kernel) fn $name(self, x: &[$t], out: &mut [$t], surplus: u32) -> (usize, usize) {
                #[target_feature(enable = "avx2,fma")]
                fn run(x: &[$t], out: &mut [$t], surplus: u32) -> (usize, usize) {
                    let (x, out) = (x.as_chunks::<$lanes>().0, out.as_chunks_mut::<$lanes>().0);
                    let magnitude = $back($set(<$bits>::MAX));
                    let above = $back($set($nan));
                    // As above; the comparison by three places comes from the one by one place.
                    let [one, two] = $earlier;
                    // An answer of yes is -1, and the third answer is one more than what stands for it below.
                    let most = $set(2 - surplus as $bits);
                    let mut nan = _mm256_setzero_si256();
                    for (from, to) in x.iter().zip(&mut *out) {
                        ahead(from);
                        // SAFETY: the reference covers the vector, and the load asks for no alignment.
                        let x = unsafe { $load(from.as_ptr()) };
                        let unknown = $unordered::<_CMP_UNORD_Q>(x, x);
                        nan = $sub(nan, $cast(unknown));
                        // Magnitudes in the order of their bits; every NaN as the one above infinity.
                        let own = $cast($blend($and(x, magnitude), above, unknown));
                        let first = $greater($add(own, one), $turn::<0b00_11_10_01>(own));
                        let second = $greater($add(own, two), $turn::<0b01_00_11_10>(own));
                        // Whoever stands three places on asked about this one: the answer is the opposite.
                        let not_third = $turn::<0b10_01_00_11>(first);
                        let keep = $greater(most, $sub($add(first, second), not_third));
                        // SAFETY: the exclusive reference covers the vector, and the store asks for no alignment.
                        unsafe { $store(to.as_mut_ptr(), $and($back(keep), x)) };
                    }
                    let mut counts = [0 as $bits; $lanes];
                    // SAFETY: the exclusive reference covers the vector, and the store asks for no alignment.
                    unsafe { _mm256_storeu_si256(counts.as_mut_ptr().cast(), nan) };
                    ($lanes * x.len().min(out.len()), counts.iter().map(|&count| count as usize).sum())
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(x, out, surplus) }
            }
        }
    };
}

fours_avx2!(
    fours_f32,
    f32,
    8,
    i32,
    0x7f80_0001,
    _mm256_set1_epi32,
    [_mm256_set_epi32(1, 0, 0, 0, 1, 0, 0, 0), _mm256_set_epi32(1, 1, 0, 0, 1, 1, 0, 0)],
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_castps_si256,
    _mm256_castsi256_ps,
    _mm256_and_ps,
    _mm256_cmp_ps,
    _mm256_blendv_ps,
    _mm256_shuffle_epi32,
    _mm256_add_epi32,
    _mm256_sub_epi32,
    _mm256_cmpgt_epi32
);
fours_avx2!(
    fours_f64,
    f64,
    4,
    i64,
    0x7ff0_0000_0000_0001,
    _mm256_set1_epi64x,
    [_mm256_set_epi64x(1, 0, 0, 0), _mm256_set_epi64x(1, 1, 0, 0)],
    _mm256_loadu_pd,
    _mm256_storeu_pd,
    _mm256_castpd_si256,
    _mm256_castsi256_pd,
    _mm256_and_pd,
    _mm256_cmp_pd,
    _mm256_blendv_pd,
    _mm256_permute4x64_epi64,
    _mm256_add_epi64,
    _mm256_sub_epi64,
    _mm256_cmpgt_epi64
);
