//! Terms that matter, found by vectors: the words of a tile `[k][width]` that are not all zero in some bits.

use std::arch::x86_64::*;

use super::Avx512;
use super::tail::mask;

impl Avx512 {
    /// Writes those `k` at which a word has any of the `bits` to the beginning of `positions`, and returns how many.
    ///
    /// # Panics
    /// Unless `positions` has whole lines of 16 for all words.
    pub(in crate::kernel) fn live_words(self, words: &[u32], bits: u32, positions: &mut [u32]) -> usize {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn run(words: &[u32], bits: u32, positions: &mut [u32]) -> usize {
            let mut found = 0;
            let mut at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            for words in words.chunks(16) {
                // SAFETY: the mask selects so many words, and others are not touched.
                let words = unsafe { _mm512_maskz_loadu_epi32(mask(words.len()), words.as_ptr().cast()) };
                let live = _mm512_test_epi32_mask(words, _mm512_set1_epi32(bits as i32));
                let line = &mut positions[found..found + 16];
                // SAFETY: sixteen words to write.
                unsafe {
                    _mm512_storeu_si512(line.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(live, at))
                };
                found += live.count_ones() as usize;
                at = _mm512_add_epi32(at, _mm512_set1_epi32(16));
            }
            found
        }

        // SAFETY: `self` proves the instructions.
        unsafe { run(words, bits, positions) }
    }

    /// Writes those `k` at which any of `width` words, at most 16, has any of the `bits` to the beginning of `positions`, and returns
    /// how many.
    ///
    /// # Panics
    /// Unless `positions` has room for all.
    pub(in crate::kernel) fn live_rows(
        self,
        words: &[u32],
        width: usize,
        bits: u32,
        positions: &mut [u32],
    ) -> usize {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn run(words: &[u32], width: usize, bits: u32, positions: &mut [u32]) -> usize {
            let (mut found, all, bits) = (0, mask(width), _mm512_set1_epi32(bits as i32));
            for (k, words) in words.chunks_exact(width).enumerate() {
                // SAFETY: the mask selects so many words, and others are not touched.
                let words = unsafe { _mm512_maskz_loadu_epi32(all, words.as_ptr().cast()) };
                positions[found] = k as u32;
                found += usize::from(_mm512_test_epi32_mask(words, bits) != 0);
            }
            found
        }

        assert!((1..=16).contains(&width), "{width} words");
        // SAFETY: `self` proves the instructions.
        unsafe { run(words, width, bits, positions) }
    }
}
