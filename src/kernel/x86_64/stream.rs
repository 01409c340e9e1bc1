//! Whole cache lines written past the caches, on AVX-512 and AVX2.

use std::arch::x86_64::*;
use std::ptr;

use super::{Avx2, Avx512};

impl Avx512 {
    /// Copies `from` to `to`, which are of equal length, without bringing `to` into the caches.
    pub(in crate::kernel) fn stream(self, from: &[__m512i], to: &mut [__m512i]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn run(from: &[__m512i], to: &mut [__m512i]) {
            for (to, &from) in to.iter_mut().zip(from) {
                // SAFETY: the exclusive reference to an aligned vector. What orders these stores is `kernel::stream`.
                unsafe { _mm512_stream_si512(to, from) };
            }
        }

        // SAFETY: `self` proves the instructions.
        unsafe { run(from, to) }
    }
}

impl Avx2 {
    /// As on AVX-512, each line in two halves.
    pub(in crate::kernel) fn stream(self, from: &[__m512i], to: &mut [__m512i]) {
        #[target_feature(enable = "avx2,fma")]
        fn run(from: &[__m512i], to: &mut [__m512i]) {
            for (to, from) in to.iter_mut().zip(from) {
                let (to, from): (*mut __m256i, *const __m256i) =
                    (ptr::from_mut(to).cast(), ptr::from_ref(from).cast());
                for half in 0..2 {
                    // SAFETY: both references cover two aligned halves. What orders these stores is `kernel::stream`.
                    unsafe { _mm256_stream_si256(to.add(half), _mm256_load_si256(from.add(half))) };
                }
            }
        }

        // SAFETY: `self` proves the instructions.
        unsafe { run(from, to) }
    }
}
