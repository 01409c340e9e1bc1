//! Philox4x32-10: random numbers by position instead of in sequence.
//!
//! A block of four 32-bit words is a function of a key and a counter alone, so element i of a tensor gets the
//! same draw whatever the instruction set, the number of threads or the order of work.
//!
//! ```text
//! round   (c0, c1, c2, c3) -> (hi(M1 * c2) ^ c1 ^ k0,  lo(M1 * c2),  hi(M0 * c0) ^ c3 ^ k1,  lo(M0 * c0))
//! key     k0 += W0, k1 += W1 between rounds; ten rounds
//! ```
//!
//! Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
/// The golden ratio and `sqrt(3) - 1` in 32 bits.
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;
const ROUNDS: usize = 10;

/// Counters that are computed side by side, so that the loop over them fills vector registers.
pub(super) const LANES: usize = 8;

/// Four words of each of [`LANES`] counters: `words[w][lane]`.
type Block = [[u32; LANES]; 4];

/// A stream of random words, addressed by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Philox {
    key: u64,
}

impl Philox {
    pub(super) fn new(key: u64) -> Self {
        Self { key }
    }

    /// Its key.
    pub(super) fn key(self) -> u64 {
        self.key
    }

    /// The words of the counters `LANES * index .. LANES * (index + 1)`; the counter's upper half is 0.
    #[inline(always)]
    pub(super) fn block(self, index: u64) -> Block {
        let mut words = [[0; LANES]; 4];
        let [low, high, ..] = &mut words;
        for (lane, (low, high)) in low.iter_mut().zip(high).enumerate() {
            let counter = index.wrapping_mul(LANES as u64).wrapping_add(lane as u64);
            *low = counter as u32;
            *high = (counter >> 32) as u32;
        }
        ten_rounds(words, self.key)
    }
}

#[inline(always)]
fn ten_rounds(mut c: Block, key: u64) -> Block {
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    let [c0, c1, c2, c3] = &mut c;
    for _ in 0..ROUNDS {
        for (((c0, c1), c2), c3) in c0.iter_mut().zip(&mut *c1).zip(&mut *c2).zip(&mut *c3) {
            let (hi0, lo0) = multiply(M0, *c0);
            let (hi1, lo1) = multiply(M1, *c2);
            (*c0, *c1, *c2, *c3) = (hi1 ^ *c1 ^ k0, lo1, hi0 ^ *c3 ^ k1, lo0);
        }
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    c
}

/// Upper and lower half of the 64-bit product.
#[inline(always)]
fn multiply(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first lane of a block whose lanes all have this counter.
    fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
        let block = counter.map(|word| [word; LANES]);
        ten_rounds(block, u64::from(key[0]) | u64::from(key[1]) << 32).map(|lanes| lanes[0])
    }

    #[test]
    fn gives_the_published_known_answers() {
        // Random123, kat_vectors, philox4x32-10.
        let ones = u32::MAX;
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([ones; 4], [ones; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn lanes_are_consecutive_counters() {
        let key = 0x0123_4567_89ab_cdef;
        let index = (1 << 29) - 1; // the last lane's counter is 2^32 - 1, the next block's first is 2^32
        let blocks = [Philox::new(key).block(index), Philox::new(key).block(index + 1)];
        for (offset, block) in blocks.iter().enumerate() {
            for lane in 0..LANES {
                let counter = (index + offset as u64) * LANES as u64 + lane as u64;
                let expected =
                    philox([counter as u32, (counter >> 32) as u32, 0, 0], [key as u32, (key >> 32) as u32]);
                assert_eq!(block.map(|lanes| lanes[lane]), expected);
            }
        }
    }
}
