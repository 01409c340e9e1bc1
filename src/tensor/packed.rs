//! Integers of 1..=8 or 16 bits without a gap between them.
//!
//! ```text
//! integer i = bits i*b .. (i+1)*b of the bytes, lowest bit first; two's complement where signed
//! ```
//!
//! Eight integers of `b` bits fill `b` bytes exactly, which is the unit that the loops move. Bits after the last
//! integer are zero.

use crate::error::{Error, Result};

/// Integers of one width, packed.
///
/// ```
/// use trimnet::tensor::PackedInts;
///
/// let packed = PackedInts::pack(3, true, &[-4, 3, 0, 1, -1])?;
/// assert_eq!(packed.bytes().len(), 2); // 15 bits
/// assert_eq!(packed.to_vec(), [-4, 3, 0, 1, -1]);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "RawPackedInts"))]
pub struct PackedInts {
    bits: u8,
    signed: bool,
    len: usize,
    bytes: Vec<u8>,
}

impl PackedInts {
    /// Packs `codes`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `bits` is 1..=8 or 16; [`Error::Unsupported`] for a code that does not fit.
    pub fn pack(bits: u8, signed: bool, codes: &[i32]) -> Result<Self> {
        check_bits(bits)?;
        let (min, max) = limits(bits, signed);
        if let Some(i) = codes.iter().position(|code| !(min..=max).contains(code)) {
            return Err(Error::Unsupported {
                what: "packing",
                reason: format!("code {} at {i} is outside {min}..={max}", codes[i]),
            });
        }
        let mut words = Vec::with_capacity(codes.len());
        words.extend(codes.iter().map(|&code| code as u16));
        Ok(Self::from_words(bits, signed, &words))
    }

    /// Takes over bytes in the layout above, as [`bytes`](Self::bytes) gives them.
    ///
    /// # Errors
    /// As [`pack`](Self::pack); [`Error::Unsupported`] for another number of bytes than `len` integers fill, or
    /// for bits that are set after the last one.
    pub fn from_bytes(bits: u8, signed: bool, len: usize, bytes: Vec<u8>) -> Result<Self> {
        check_bits(bits)?;
        let total = len.checked_mul(bits.into());
        let expected = total.map(|total| total.div_ceil(8));
        if expected != Some(bytes.len()) {
            return Err(Error::Unsupported {
                what: "packed integers",
                reason: format!("{} bytes do not hold {len} integers of {bits} bits", bytes.len()),
            });
        }
        let used = total.unwrap_or_default() % 8;
        if used != 0 && bytes.last().is_some_and(|last| last >> used != 0) {
            return Err(Error::Unsupported {
                what: "packed integers",
                reason: "bits are set after the last integer".into(),
            });
        }
        Ok(Self { bits, signed, len, bytes })
    }

    /// One integer in the low bits of each word; its other bits are ignored. `bits` is a valid width.
    pub(crate) fn from_words(bits: u8, signed: bool, words: &[u16]) -> Self {
        let len = words.len();
        let bytes = match bits {
            16 => words.iter().flat_map(|word| word.to_le_bytes()).collect(),
            _ => pack_words(bits, words),
        };
        Self { bits, signed, len, bytes }
    }

    /// As [`from_words`](Self::from_words), for widths up to 8.
    pub(crate) fn from_octets(bits: u8, signed: bool, octets: Vec<u8>) -> Self {
        let len = octets.len();
        let bytes = if bits == 8 { octets } else { pack_words(bits, &octets) };
        Self { bits, signed, len, bytes }
    }

    /// Bits of one integer.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Whether they have a sign.
    pub fn is_signed(&self) -> bool {
        self.signed
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of them, packed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The `i`-th integer, or `None` after the last one.
    pub fn get(&self, i: usize) -> Option<i32> {
        if i >= self.len {
            return None;
        }
        let at = i * usize::from(self.bits);
        let low = u16::from(self.bytes[at / 8]);
        let high = self.bytes.get(at / 8 + 1).map_or(0, |&byte| u16::from(byte));
        Some(self.extend((high << 8 | low) >> (at % 8)))
    }

    /// The integers from the first to the last.
    pub fn iter(&self) -> impl Iterator<Item = i32> + '_ {
        (0..self.len).filter_map(|i| self.get(i))
    }

    /// Writes the integers from `start` on into `out`; as many as there are places.
    ///
    /// # Errors
    /// [`Error::Shape`] if fewer are left.
    pub fn read(&self, start: usize, out: &mut [i32]) -> Result<()> {
        let end =
            start.checked_add(out.len()).filter(|&end| end <= self.len).ok_or_else(|| Error::Shape {
                what: "the place for integers",
                actual: vec![out.len()],
                expected: vec![self.len.saturating_sub(start)],
            })?;
        self.read_within(start, end, out);
        Ok(())
    }

    /// All integers.
    pub fn to_vec(&self) -> Vec<i32> {
        let mut codes = vec![0; self.len];
        self.read_within(0, self.len, &mut codes);
        codes
    }

    /// One byte for each integer, or `None` if some may not fit one of that sign.
    pub fn to_i8(&self) -> Option<Vec<i8>> {
        let fits = self.bits < 8 || (self.bits == 8 && self.signed);
        fits.then(|| self.octets(|code| code as i8))
    }

    /// One byte for each integer, or `None` if some may not fit one without sign.
    pub fn to_u8(&self) -> Option<Vec<u8>> {
        let fits = self.bits <= 8 && !self.signed;
        fits.then(|| self.octets(|code| code as u8))
    }

    fn octets<T>(&self, narrow: impl Fn(i32) -> T) -> Vec<T> {
        let mut octets = Vec::with_capacity(self.len);
        octets.extend(self.to_vec().into_iter().map(narrow));
        octets
    }

    /// `start..end` lies within the integers and is as long as `out`.
    pub(crate) fn read_within(&self, start: usize, end: usize, out: &mut [i32]) {
        match self.bits {
            8 if self.signed => widen(&self.bytes[start..end], out, |byte| i32::from(byte as i8)),
            8 => widen(&self.bytes[start..end], out, i32::from),
            16 => {
                let (pairs, _) = self.bytes[2 * start..2 * end].as_chunks::<2>();
                widen(pairs, out, |pair| self.extend(u16::from_le_bytes(pair)));
            }
            _ => self.read_narrow(start, out),
        }
    }

    /// Whole groups of eight by words, the ends one by one.
    fn read_narrow(&self, start: usize, out: &mut [i32]) {
        let head = (start.next_multiple_of(8) - start).min(out.len());
        let (head, body) = out.split_at_mut(head);
        for (out, i) in head.iter_mut().zip(start..) {
            *out = self.get(i).unwrap_or_default();
        }
        let bits = usize::from(self.bits);
        let first = start + head.len();
        let (eights, tail) = body.as_chunks_mut::<8>();
        let tail_start = first + 8 * eights.len();
        for (eight, packed) in eights.iter_mut().zip(self.bytes[first / 8 * bits..].chunks_exact(bits)) {
            let mut word = [0; 8];
            word[..bits].copy_from_slice(packed);
            let word = u64::from_le_bytes(word);
            for (i, out) in eight.iter_mut().enumerate() {
                *out = self.extend((word >> (i * bits)) as u16);
            }
        }
        for (out, i) in tail.iter_mut().zip(tail_start..) {
            *out = self.get(i).unwrap_or_default();
        }
    }

    /// The low bits of a word as a number.
    fn extend(&self, word: u16) -> i32 {
        let unused = 32 - u32::from(self.bits);
        let high = u32::from(word) << unused;
        if self.signed { high as i32 >> unused } else { (high >> unused) as i32 }
    }
}

fn widen<T: Copy>(from: &[T], to: &mut [i32], f: impl Fn(T) -> i32) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = f(from);
    }
}

/// Eight integers make `bits` bytes.
fn pack_words<T: Copy + Into<u64>>(bits: u8, words: &[T]) -> Vec<u8> {
    let width = usize::from(bits);
    let mask = (1 << bits) - 1;
    let eight = |words: &[T]| {
        words.iter().rev().fold(0u64, |word, &code| word << bits | (code.into() & mask)).to_le_bytes()
    };
    let mut bytes = Vec::with_capacity((words.len() * width).div_ceil(8));
    let (eights, rest) = words.as_chunks::<8>();
    for words in eights {
        bytes.extend_from_slice(&eight(words)[..width]);
    }
    bytes.extend_from_slice(&eight(rest)[..(rest.len() * width).div_ceil(8)]);
    bytes
}

fn check_bits(bits: u8) -> Result<()> {
    if matches!(bits, 1..=8 | 16) {
        return Ok(());
    }
    Err(Error::OutOfRange { name: "bits", value: bits.into(), range: "1..=8 or 16" })
}

fn limits(bits: u8, signed: bool) -> (i32, i32) {
    if signed { (-1 << (bits - 1), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct RawPackedInts {
    bits: u8,
    signed: bool,
    len: usize,
    bytes: Vec<u8>,
}

#[cfg(feature = "serde")]
impl TryFrom<RawPackedInts> for PackedInts {
    type Error = Error;

    fn try_from(raw: RawPackedInts) -> Result<Self> {
        Self::from_bytes(raw.bits, raw.signed, raw.len, raw.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_gives_back_its_codes_from_every_start() {
        for bits in (1..=8).chain([16]) {
            for signed in [false, true] {
                let (min, max) = limits(bits, signed);
                for len in 0..=40 {
                    let codes: Vec<i32> = (0..len).map(|i| min + i * 7919 % (max - min + 1)).collect();
                    let packed = PackedInts::pack(bits, signed, &codes).unwrap();
                    assert_eq!(packed.bytes().len(), (codes.len() * usize::from(bits)).div_ceil(8));
                    assert!(packed.iter().eq(codes.iter().copied()));
                    for start in 0..=codes.len() {
                        let mut out = vec![99; codes.len() - start];
                        packed.read(start, &mut out).unwrap();
                        assert_eq!(out, codes[start..]);
                    }
                    let again = PackedInts::from_bytes(bits, signed, codes.len(), packed.bytes().to_vec());
                    assert_eq!(again.unwrap(), packed);
                }
            }
        }
    }

    #[test]
    fn refuses_other_widths_and_codes_that_do_not_fit() {
        for bits in [0, 9, 15, 17] {
            assert!(PackedInts::pack(bits, false, &[0]).is_err());
            assert!(PackedInts::from_bytes(bits, false, 0, vec![]).is_err());
        }
        let error = PackedInts::pack(4, true, &[0, 8]).unwrap_err();
        assert_eq!(error.to_string(), "packing: code 8 at 1 is outside -8..=7");
    }

    #[test]
    fn refuses_bytes_that_are_not_so_many_integers() {
        assert!(PackedInts::from_bytes(4, false, 3, vec![0]).is_err());
        assert!(PackedInts::from_bytes(4, false, 3, vec![0, 0x10]).is_err());
        assert!(PackedInts::from_bytes(8, false, usize::MAX, vec![0]).is_err());
        assert!(PackedInts::from_bytes(16, false, usize::MAX, vec![0]).is_err());
    }

    #[test]
    fn a_read_past_the_end_is_refused() {
        let packed = PackedInts::pack(2, false, &[1, 2, 3]).unwrap();
        assert!(packed.read(2, &mut [0; 2]).is_err());
        assert!(packed.read(usize::MAX, &mut [0; 2]).is_err());
        assert_eq!(packed.get(3), None);
    }
}
