//! Philox4x32-10 on AVX-512: eight counters, each word in the lower half of a lane, where products of 32 bits are made.

use std::arch::x86_64::*;

use super::Avx512;

const M0: i64 = 0xD251_1F53;
const M1: i64 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;
const ROUNDS: usize = 10;
/// `a ^ b ^ c`.
const XOR: i32 = 0x96;

impl Avx512 {
    /// As [`kept_bits`](crate::kernel::kept_bits).
    pub(in crate::kernel) fn kept_bits(self, key: u64, first: u64, threshold: u16, keep: &mut [u64]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn run(key: u64, first: u64, threshold: u16, keep: &mut [u64]) {
            let mut keys = [[_mm512_setzero_si512(); 2]; ROUNDS];
            let (mut low, mut high) = (key as u32, (key >> 32) as u32);
            for keys in &mut keys {
                *keys = [_mm512_set1_epi64(i64::from(low)), _mm512_set1_epi64(i64::from(high))];
                (low, high) = (low.wrapping_add(W0), high.wrapping_add(W1));
            }
            let (m0, m1) = (_mm512_set1_epi64(M0), _mm512_set1_epi64(M1));
            let lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
            let least = _mm512_set1_epi16(threshold as i16);
            for (i, keep) in keep.iter_mut().enumerate() {
                let counter = first.wrapping_add(i as u64).wrapping_mul(8);
                let mut c0 = _mm512_add_epi64(_mm512_set1_epi64(counter as i64), lanes);
                let mut c1 = _mm512_srli_epi64::<32>(c0);
                let (mut c2, mut c3) = (_mm512_setzero_si512(), _mm512_setzero_si512());
                for &[k0, k1] in &keys {
                    // The upper halves of lanes hold anything: nothing reads them.
                    let (p0, p1) = (_mm512_mul_epu32(m0, c0), _mm512_mul_epu32(m1, c2));
                    c0 = _mm512_ternarylogic_epi64::<XOR>(_mm512_srli_epi64::<32>(p1), c1, k0);
                    c2 = _mm512_ternarylogic_epi64::<XOR>(_mm512_srli_epi64::<32>(p0), c3, k1);
                    (c1, c3) = (p1, p0);
                }
                *keep = kept(c0, c1, least) | kept(c2, c3, least) << 32;
            }
        }

        /// A bit for each 16-bit half of these words.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn kept(a: __m512i, b: __m512i, least: __m512i) -> u64 {
            let words = _mm512_castsi256_si512(_mm512_cvtepi64_epi32(a));
            let words = _mm512_inserti64x4::<1>(words, _mm512_cvtepi64_epi32(b));
            u64::from(_mm512_cmpge_epu16_mask(words, least))
        }

        // SAFETY: `self` proves the instructions.
        unsafe { run(key, first, threshold, keep) }
    }
}
