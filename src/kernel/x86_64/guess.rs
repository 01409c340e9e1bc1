//! Weights without those below a guess, and what has to be known to mend it, in one look at each: on AVX-512, which picks the
//! lanes of a vector in one instruction.

use std::arch::x86_64::*;
use std::array;

use super::Avx512;
use crate::kernel::fetch_ahead;
use crate::kernel::guess::{Bracket, Guessed};

/// What lies so far behind a vector that is read is asked for: as much time is spent on each as a copy spends on two.
const AHEAD_BYTES: usize = 8192;

macro_rules! guess {
    ($name:ident, $t:ty, $bits:ty, $lanes:literal,
     $set:ident, $compare:ident, $keep:ident, $sub:ident, $count:ident, $max:ident, $compress:ident, $sum:ident, $largest:ident,
     $load_places:ident, $store_places:ident, $set_places:ident, $add_places:ident, $compress_places:ident,
     $four:ident, $store_four:ident, $four_places:ident) => {
        impl Avx512 {
            /// As [`drop_guessed`](crate::kernel::guess::drop_guessed) for whole vectors; returns how many numbers those are.
            pub(in crate::kernel) fn $name(
                self,
                x: &[$t],
                out: &mut [$t],
                bracket: Bracket<$t>,
                first: u32,
                guessed: &mut Guessed<$t>,
            ) -> usize {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,popcnt")]
                fn run(
                    asked: bool,
                    x: &[$t],
                    out: &mut [$t],
                    bracket: Bracket<$t>,
                    first: u32,
                    guessed: &mut Guessed<$t>,
                ) -> usize {
                    assert_eq!(x.len(), out.len());
                    let Guessed { below, nan, inside, places } = guessed;
                    // A whole vector is stored wherever the next number belongs.
                    inside.reserve(x.len() + $lanes);
                    places.reserve(x.len() + $lanes);
                    let (to, to_places) = (inside.spare_capacity_mut(), places.spare_capacity_mut());
                    let set = |bits: $bits| $set(bits.cast_signed());
                    let unsigned = set(<$bits>::MAX >> 1);
                    // Numbers without a sign are in the order of their bits, and NaN comes behind all others.
                    let [lo, guess, hi] = [bracket.lo, bracket.guess, bracket.hi].map(<$t>::to_bits);
                    let (lo, guess, width) = (set(lo), set(guess), set(hi.wrapping_sub(lo)));
                    let lanes: [u32; $lanes] = array::from_fn(|lane| lane as u32);
                    // SAFETY: the reference covers the whole vector, and the load asks for no alignment.
                    let lanes = unsafe { $load_places(lanes.as_ptr().cast()) };
                    let mut here = $add_places($set_places(first.cast_signed()), lanes);
                    let (mut found, mut above, mut largest) = (0, $set(0), $set(0));
                    let (vectors, outs) = (x.as_chunks::<$lanes>().0, out.as_chunks_mut::<$lanes>().0);
                    for (from, out) in vectors.iter().zip(outs) {
                        if asked {
                            fetch_ahead(from, AHEAD_BYTES);
                        }
                        // SAFETY: the reference covers the whole vector, and the load asks for no alignment.
                        let x = unsafe { _mm512_loadu_si512(from.as_ptr().cast()) };
                        let size = _mm512_and_si512(x, unsigned);
                        let kept = $keep($compare::<_MM_CMPINT_NLT>(size, guess), x);
                        // SAFETY: the exclusive reference covers the whole vector, and the store asks for no alignment.
                        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), kept) };
                        above = $count(above, $compare::<_MM_CMPINT_NLT>(size, lo), above, $set(-1));
                        largest = $max(largest, size);
                        let within = $compare::<_MM_CMPINT_LE>($sub(size, lo), width);
                        let (size, place) = ($compress(within, size), $compress_places(within, here));
                        let count = within.count_ones() as usize;
                        // Mostly few are inside, and a whole vector would lie on two lines.
                        // SAFETY: there was room for all of `x` and a vector more, and `found` are no more than those before.
                        unsafe {
                            let (to, to_places) =
                                (to.as_mut_ptr().add(found), to_places.as_mut_ptr().add(found));
                            if count <= 4 {
                                $store_four(to.cast(), $four(size));
                                _mm_storeu_si128(to_places.cast(), $four_places(place));
                            } else {
                                _mm512_storeu_si512(to.cast(), size);
                                $store_places(to_places.cast(), place);
                            }
                        }
                        here = $add_places(here, $set_places($lanes));
                        found += count;
                    }
                    // SAFETY: the loop has written `found` numbers, one after the other, behind the last one.
                    unsafe {
                        inside.set_len(inside.len() + found);
                        places.set_len(places.len() + found);
                    }
                    let seen = vectors.as_flattened();
                    if $largest(largest) > <$t>::INFINITY.to_bits() {
                        *nan += seen.iter().filter(|x| x.is_nan()).count();
                    }
                    *below += seen.len() - $sum(above) as usize;
                    seen.len()
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(self.asked(), x, out, bracket, first, guessed) }
            }
        }
    };
}

guess!(
    guess_f32,
    f32,
    u32,
    16,
    _mm512_set1_epi32,
    _mm512_cmp_epu32_mask,
    _mm512_maskz_mov_epi32,
    _mm512_sub_epi32,
    _mm512_mask_sub_epi32,
    _mm512_max_epu32,
    _mm512_maskz_compress_epi32,
    _mm512_reduce_add_epi32,
    _mm512_reduce_max_epu32,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_set1_epi32,
    _mm512_add_epi32,
    _mm512_maskz_compress_epi32,
    _mm512_castsi512_si128,
    _mm_storeu_si128,
    _mm512_castsi512_si128
);
guess!(
    guess_f64,
    f64,
    u64,
    8,
    _mm512_set1_epi64,
    _mm512_cmp_epu64_mask,
    _mm512_maskz_mov_epi64,
    _mm512_sub_epi64,
    _mm512_mask_sub_epi64,
    _mm512_max_epu64,
    _mm512_maskz_compress_epi64,
    _mm512_reduce_add_epi64,
    _mm512_reduce_max_epu64,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_set1_epi32,
    _mm256_add_epi32,
    _mm256_maskz_compress_epi32,
    _mm512_castsi512_si256,
    _mm256_storeu_si256,
    _mm256_castsi256_si128
);
