//! How many of at most sixteen bounds are below each number, on AVX-512: by halving, with all bounds in registers.
//!
//! ```text
//! count = 0     for step in 8, 4, 2, 1:  if x > bounds[count + step - 1] { count += step }
//! ```

use std::arch::x86_64::*;

use super::Avx512;
use crate::kernel::stream::fetch_ahead;

/// Bounds, the last of which is infinity.
const BOUNDS: usize = 16;

/// Vectors that are worked on side by side: each step waits for the one before.
const VECTORS: usize = 4;

/// How many blocks ahead numbers are asked for.
const AHEAD: usize = 16;

macro_rules! below {
    ($name:ident, $t:ty, $lanes:literal, $tables:literal, $load:ident, $set:ident, $greater:ident, $indices:ident, $first:ident,
     $add:ident, $look:expr, $store:expr) => {
        impl Avx512 {
            /// As [`Real::count_below`](crate::kernel::Real::count_below).
            pub(in crate::kernel) fn $name(
                self,
                x: &[$t],
                bounds: &[$t; BOUNDS],
                counts: &mut [u8],
            ) -> usize {
                const BLOCK: usize = VECTORS * $lanes;

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
                fn run(x: &[$t], bounds: &[$t; BOUNDS], counts: &mut [u8]) -> usize {
                    // For a step of s, entry t is bound t + s - 1.
                    let tables = [4, 2, 1].map(|step| {
                        let mut table = [<$t>::INFINITY; BOUNDS];
                        table[..BOUNDS + 1 - step].copy_from_slice(&bounds[step - 1..]);
                        table
                    });
                    let mut registers = [[$set(0.0); $tables]; 3];
                    for (registers, table) in registers.iter_mut().zip(&tables) {
                        for (register, part) in registers.iter_mut().zip(table.as_chunks::<$lanes>().0) {
                            // SAFETY: the reference covers the vector, and the load asks for no alignment.
                            *register = unsafe { $load(part.as_ptr()) };
                        }
                    }
                    let middle = $set(bounds[7]);
                    let (blocks, places) = (x.as_chunks::<BLOCK>().0, counts.as_chunks_mut::<BLOCK>().0);
                    for (block, place) in blocks.iter().zip(places) {
                        fetch_ahead(block, AHEAD * size_of_val(block));
                        let mut numbers = [middle; VECTORS];
                        let mut found = [_mm512_setzero_si512(); VECTORS];
                        let parts = block.as_chunks::<$lanes>().0;
                        for v in 0..VECTORS {
                            // SAFETY: the reference covers the vector, and the load asks for no alignment.
                            numbers[v] = unsafe { $load(parts[v].as_ptr()) };
                            found[v] = $first($greater::<_CMP_GT_OQ>(numbers[v], middle), $indices(8));
                        }
                        for (step, table) in [4, 2, 1].into_iter().zip(&registers) {
                            for v in 0..VECTORS {
                                let bound = $look(table, found[v]);
                                let above = $greater::<_CMP_GT_OQ>(numbers[v], bound);
                                found[v] = $add(found[v], above, found[v], $indices(step));
                            }
                        }
                        for (found, place) in found.into_iter().zip(place.as_chunks_mut::<$lanes>().0) {
                            $store(place, found);
                        }
                    }
                    BLOCK * blocks.len().min(counts.len() / BLOCK)
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(x, bounds, counts) }
            }
        }
    };
}

below!(
    below_f32,
    f32,
    16,
    1,
    _mm512_loadu_ps,
    _mm512_set1_ps,
    _mm512_cmp_ps_mask,
    _mm512_set1_epi32,
    _mm512_maskz_mov_epi32,
    _mm512_mask_add_epi32,
    |table: &[__m512; 1], at| _mm512_permutexvar_ps(at, table[0]),
    // SAFETY: the exclusive reference covers the 16 bytes, and the store asks for no alignment.
    |place: &mut [u8; 16], found| unsafe {
        _mm_storeu_si128(place.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(found))
    }
);
below!(
    below_f64,
    f64,
    8,
    2,
    _mm512_loadu_pd,
    _mm512_set1_pd,
    _mm512_cmp_pd_mask,
    _mm512_set1_epi64,
    _mm512_maskz_mov_epi64,
    _mm512_mask_add_epi64,
    |table: &[__m512d; 2], at| _mm512_permutex2var_pd(table[0], at, table[1]),
    // SAFETY: the exclusive reference covers the 8 bytes, and the store asks for no alignment.
    |place: &mut [u8; 8], found| unsafe {
        _mm_storel_epi64(place.as_mut_ptr().cast(), _mm512_cvtepi64_epi8(found))
    }
);
