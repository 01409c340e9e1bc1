//! A binary range coder: a bit that the model expected with probability `p` costs `-log2 p` bits.
//!
//! ```text
//! state    low, range                    (the interval [low, low + range))
//! bound  = floor(range * p / 65536)      p = chance of a one, in 1/65536
//! one      range = bound
//! zero     low += bound, range -= bound
//! while range < 2^24: the top byte of low leaves, low and range are shifted left by 8
//! ```
//!
//! Carries run back into the bytes that are already out, so that the interval is never cut short: with 16-bit
//! probabilities the loss against the ideal code length is below 0.01 %. At the end as many bytes as possible
//! are left away, trailing zero bytes among them: the decoder reads zeros beyond the end.
//! G. N. N. Martin, "Range encoding" (1979); the interval arithmetic is that of LZMA.
//!
//! Models talk to [`Coder`], not to one direction: the same code drives the encoder and the decoder, which is
//! why the two cannot disagree.

use super::wire::malformed;
use crate::error::Result;

const RENORMALIZE_BELOW: u32 = 1 << 24;

/// One direction of coding.
pub(crate) trait Coder {
    /// The encoder writes `bit` and returns it; the decoder ignores `bit` and returns the one it read.
    /// `p_one` is the chance of a one in 1/65536, within `1..=65535`.
    fn code(&mut self, bit: bool, p_one: u32) -> bool;
}

/// Writes.
#[derive(Debug)]
pub(crate) struct Encoder {
    out: Vec<u8>,
    low: u32,
    range: u32,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { out: Vec::new(), low: 0, range: u32::MAX }
    }

    /// Length of the code so far, in bits; whole bytes only after [`finish`](Self::finish).
    pub(crate) fn bits(&self) -> f64 {
        8.0 * self.out.len() as f64 + 32.0 - f64::from(self.range).log2()
    }

    fn carry(&mut self) {
        for byte in self.out.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }

    /// The shortest bytes that decode to what was coded.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let last = u64::from(self.low) + u64::from(self.range) - 1;
        for kept in 0..=4u32 {
            let tail = ((1u64 << (32 - 8 * kept)) - 1).min(u64::from(u32::MAX));
            let value = (u64::from(self.low) + tail) & !tail;
            if value <= last {
                if value > u64::from(u32::MAX) {
                    self.carry();
                }
                self.out.extend_from_slice(&(value as u32).to_be_bytes()[..kept as usize]);
                break;
            }
        }
        while self.out.last() == Some(&0) {
            self.out.pop();
        }
        self.out
    }
}

impl Coder for Encoder {
    #[inline(always)]
    fn code(&mut self, bit: bool, p_one: u32) -> bool {
        debug_assert!((1..=65535).contains(&p_one));
        let bound = ((u64::from(self.range) * u64::from(p_one)) >> 16) as u32;
        if bit {
            self.range = bound;
        } else {
            let (low, carry) = self.low.overflowing_add(bound);
            self.low = low;
            self.range -= bound;
            if carry {
                self.carry();
            }
        }
        while self.range < RENORMALIZE_BELOW {
            self.out.push((self.low >> 24) as u8);
            self.low <<= 8;
            self.range <<= 8;
        }
        bit
    }
}

/// Reads.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    code: u32,
    range: u32,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { bytes, at: 0, code: 0, range: u32::MAX };
        for _ in 0..4 {
            decoder.code = decoder.code << 8 | decoder.next();
        }
        decoder
    }

    #[inline(always)]
    fn next(&mut self) -> u32 {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        u32::from(byte)
    }

    /// What [`Encoder::bits`] was at the same decision.
    pub(crate) fn bits(&self) -> f64 {
        8.0 * (self.at - 4) as f64 + 32.0 - f64::from(self.range).log2()
    }

    /// Refuses bytes that no decision needed.
    pub(crate) fn finish(self) -> Result<()> {
        if self.at < self.bytes.len() {
            return Err(malformed(format!(
                "a range-coded stream of {} bytes was complete after {}",
                self.bytes.len(),
                self.at
            )));
        }
        Ok(())
    }
}

impl Coder for Decoder<'_> {
    #[inline(always)]
    fn code(&mut self, _bit: bool, p_one: u32) -> bool {
        let bound = ((u64::from(self.range) * u64::from(p_one)) >> 16) as u32;
        let bit = self.code < bound;
        if bit {
            self.range = bound;
        } else {
            self.code -= bound;
            self.range -= bound;
        }
        while self.range < RENORMALIZE_BELOW {
            self.code = self.code << 8 | self.next();
            self.range <<= 8;
        }
        bit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bits_under_any_probabilities_come_back(
            coded in proptest::collection::vec((any::<bool>(), prop_oneof![1u32..=3, 1u32..=65535, 65533u32..=65535]), 0..600)
        ) {
            let mut encoder = Encoder::new();
            for &(bit, p) in &coded {
                encoder.code(bit, p);
            }
            let ideal: f64 = coded.iter().map(|&(bit, p)| {
                let p = f64::from(p) / 65536.0;
                -(if bit { p } else { 1.0 - p }).log2()
            }).sum();
            let bytes = encoder.finish();
            prop_assert!(8.0 * bytes.len() as f64 <= ideal * 1.0005 + 8.1);
            let mut decoder = Decoder::new(&bytes);
            for &(bit, p) in &coded {
                prop_assert_eq!(decoder.code(false, p), bit);
            }
            prop_assert!(decoder.finish().is_ok());
        }
    }

    #[test]
    fn a_carry_runs_back_through_bytes_of_ones() {
        // Improbable zeros push low to the end of the interval, where the next addition overflows.
        let coded: Vec<(bool, u32)> =
            (0..4000).map(|i| (i % 7 == 3, if i % 5 == 0 { 1 } else { 65_535 })).collect();
        let mut encoder = Encoder::new();
        for &(bit, p) in &coded {
            encoder.code(bit, p);
        }
        let bytes = encoder.finish();
        let mut decoder = Decoder::new(&bytes);
        assert!(coded.iter().all(|&(bit, p)| decoder.code(false, p) == bit));
    }

    #[test]
    fn nothing_coded_is_no_byte() {
        assert!(Encoder::new().finish().is_empty());
    }
}
