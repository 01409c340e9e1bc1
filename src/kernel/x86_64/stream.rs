//! Whole cache lines written past the caches, on AVX-512.

use std::arch::x86_64::*;

use super::Avx512;

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
