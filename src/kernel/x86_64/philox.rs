//! Philox4x32-10 on AVX-512 and AVX2: eight counters, each word in the lower half of a lane, where products of 32 bits
//! are made.

use std::arch::x86_64::*;

use super::{Avx2, Avx512};

const M0: i64 = 0xD251_1F53;
const M1: i64 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;
const ROUNDS: usize = 10;
/// Blocks whose rounds alternate.
const TOGETHER: usize = 4;
/// `a ^ b ^ c`.
const XOR: i32 = 0x96;

/// The keys of the rounds. Numbers, not vectors: a call is short, and to fill as many registers would take as long as a
/// block.
#[inline(always)]
fn keys(key: u64) -> [[i64; 2]; ROUNDS] {
    let mut keys = [[0; 2]; ROUNDS];
    let (mut low, mut high) = (key as u32, (key >> 32) as u32);
    for keys in &mut keys {
        *keys = [i64::from(low), i64::from(high)];
        (low, high) = (low.wrapping_add(W0), high.wrapping_add(W1));
    }
    keys
}

impl Avx512 {
    /// As [`kept_bits`](crate::kernel::kept_bits).
    pub(in crate::kernel) fn kept_bits(self, key: u64, first: u64, threshold: u16, keep: &mut [u64]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn run(key: u64, first: u64, threshold: u16, keep: &mut [u64]) {
            let keys = keys(key);
            let (fours, rest) = keep.as_chunks_mut::<TOGETHER>();
            let after = first.wrapping_add((TOGETHER * fours.len()) as u64);
            for (first, keep) in (0..).map(|i| first.wrapping_add(TOGETHER as u64 * i)).zip(fours) {
                *keep = words(&keys, first, threshold);
            }
            for (first, keep) in (0..).map(|i| after.wrapping_add(i)).zip(rest) {
                [*keep] = words(&keys, first, threshold);
            }
        }

        /// The words of `N` blocks, side by side: each alone would wait for its own results most of the time.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn words<const N: usize>(keys: &[[i64; 2]; ROUNDS], first: u64, threshold: u16) -> [u64; N] {
            let (m0, m1) = (_mm512_set1_epi64(M0), _mm512_set1_epi64(M1));
            let lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
            let mut all = [[_mm512_setzero_si512(); 4]; N];
            for (i, [c0, c1, ..]) in all.iter_mut().enumerate() {
                let counter = first.wrapping_add(i as u64).wrapping_mul(8);
                *c0 = _mm512_add_epi64(_mm512_set1_epi64(counter as i64), lanes);
                *c1 = _mm512_srli_epi64::<32>(*c0);
            }
            for keys in keys {
                let [k0, k1] = keys.map(|key| _mm512_set1_epi64(key));
                for [c0, c1, c2, c3] in &mut all {
                    // The upper halves of lanes hold anything: nothing reads them.
                    let (p0, p1) = (_mm512_mul_epu32(m0, *c0), _mm512_mul_epu32(m1, *c2));
                    *c0 = _mm512_ternarylogic_epi64::<XOR>(_mm512_srli_epi64::<32>(p1), *c1, k0);
                    *c2 = _mm512_ternarylogic_epi64::<XOR>(_mm512_srli_epi64::<32>(p0), *c3, k1);
                    (*c1, *c3) = (p1, p0);
                }
            }
            let least = _mm512_set1_epi16(threshold as i16);
            let mut words = [0; N];
            for (word, [c0, c1, c2, c3]) in words.iter_mut().zip(all) {
                *word = kept(c0, c1, least) | kept(c2, c3, least) << 32;
            }
            words
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

impl Avx2 {
    /// As [`kept_bits`](crate::kernel::kept_bits).
    pub(in crate::kernel) fn kept_bits(self, key: u64, first: u64, threshold: u16, keep: &mut [u64]) {
        #[target_feature(enable = "avx2,fma")]
        fn run(key: u64, first: u64, threshold: u16, keep: &mut [u64]) {
            let keys = keys(key);
            // One block fills the registers, and the processor begins the next one while it waits for this one.
            for (first, keep) in (0..).map(|i| first.wrapping_add(i)).zip(keep) {
                *keep = word(&keys, first, threshold);
            }
        }

        /// The word of one block.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn word(keys: &[[i64; 2]; ROUNDS], first: u64, threshold: u16) -> u64 {
            let (m0, m1) = (_mm256_set1_epi64x(M0), _mm256_set1_epi64x(M1));
            // The counters lie so that their words are in order once two vectors of them are one.
            let lanes = [_mm256_set_epi64x(5, 4, 1, 0), _mm256_set_epi64x(7, 6, 3, 2)];
            let counter = _mm256_set1_epi64x(first.wrapping_mul(8).cast_signed());
            let mut both = lanes.map(|lanes| {
                let c0 = _mm256_add_epi64(counter, lanes);
                [c0, _mm256_srli_epi64::<32>(c0), _mm256_setzero_si256(), _mm256_setzero_si256()]
            });
            for keys in keys {
                let [k0, k1] = keys.map(|key| _mm256_set1_epi64x(key));
                for [c0, c1, c2, c3] in &mut both {
                    // The upper halves of lanes hold anything: nothing reads them.
                    let (p0, p1) = (_mm256_mul_epu32(m0, *c0), _mm256_mul_epu32(m1, *c2));
                    // Key first: the product is what is waited for.
                    *c0 = _mm256_xor_si256(_mm256_srli_epi64::<32>(p1), _mm256_xor_si256(*c1, k0));
                    *c2 = _mm256_xor_si256(_mm256_srli_epi64::<32>(p0), _mm256_xor_si256(*c3, k1));
                    (*c1, *c3) = (p1, p0);
                }
            }
            let least = _mm256_set1_epi16(threshold.cast_signed());
            let [[a0, a1, a2, a3], [b0, b1, b2, b3]] = both;
            let (low, high) = (kept(a0, b0, a1, b1, least), kept(a2, b2, a3, b3, least));
            u64::from(low) | u64::from(high) << 32
        }

        /// A bit for each 16-bit half of two words of all counters.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn kept(a0: __m256i, b0: __m256i, a1: __m256i, b1: __m256i, least: __m256i) -> u32 {
            let kept = [(a0, b0), (a1, b1)].map(|(a, b)| {
                let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
                let words = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
                _mm256_cmpeq_epi16(_mm256_max_epu16(words, least), words)
            });
            // Packing goes by halves of the register: 0, 1 of the first, then of the second.
            let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(kept[0], kept[1]));
            _mm256_movemask_epi8(bytes).cast_unsigned()
        }

        // SAFETY: `self` proves the instructions.
        unsafe { run(key, first, threshold, keep) }
    }
}
