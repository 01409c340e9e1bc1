//! The letters of the file: variable-length integers, bit strings, and cursors that cannot run off the end.
//!
//! ```text
//! varint   7 bits per byte, least significant first; the top bit says that another byte follows;
//!          the shortest form only, so that every value has exactly one spelling
//! zigzag   0, -1, 1, -2, ... as 0, 1, 2, 3, ..., then a varint
//! bits     least significant bit first, the last byte padded with zero bits
//! ```

use std::path::PathBuf;

use crate::error::{Error, Result};

/// An error about bytes in memory; whoever knows the file's name adds it.
pub(crate) fn malformed(reason: impl Into<String>) -> Error {
    Error::Format { path: PathBuf::new(), reason: reason.into() }
}

/// Appends `value` as a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed value, small magnitudes in few bytes.
pub(crate) fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length and the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads from the front of a slice.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let remaining = self.remaining();
        match self.bytes[self.at..].get(..n) {
            Some(slice) => {
                self.at += n;
                Ok(slice)
            }
            None => {
                Err(malformed(format!("cut off: {n} bytes wanted at offset {}, {remaining} left", self.at)))
            }
        }
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }

    pub(crate) fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn varint(&mut self) -> Result<u64> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let digit = u64::from(byte & 0x7f);
            if shift == 63 && digit > 1 {
                break;
            }
            value |= digit << shift;
            if byte < 0x80 {
                if byte == 0 && shift > 0 {
                    break;
                }
                return Ok(value);
            }
        }
        Err(malformed(format!("the number at offset {start} is not a shortest 64-bit varint")))
    }

    pub(crate) fn zigzag(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A count or length; refuses what does not fit this machine's address space.
    pub(crate) fn size(&mut self) -> Result<usize> {
        let value = self.varint()?;
        usize::try_from(value).map_err(|_| malformed(format!("size {value} is beyond this machine")))
    }

    /// A length, then that many bytes.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.size()?;
        self.take(length)
    }

    /// Refuses trailing bytes.
    pub(crate) fn finish(&self, what: &str) -> Result<()> {
        match self.remaining() {
            0 => Ok(()),
            n => Err(malformed(format!("{n} bytes too many after {what}"))),
        }
    }
}

/// Writes fields of 0 to 64 bits, least significant bit first.
#[derive(Debug, Default)]
pub(crate) struct BitWriter {
    out: Vec<u8>,
    pending: u128,
    held: u32,
}

impl BitWriter {
    pub(crate) fn put(&mut self, value: u64, bits: u32) {
        debug_assert!(bits == 64 || value >> bits == 0);
        self.pending |= u128::from(value) << self.held;
        self.held += bits;
        while self.held >= 8 {
            self.out.push(self.pending as u8);
            self.pending >>= 8;
            self.held -= 8;
        }
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        if self.held > 0 {
            self.out.push(self.pending as u8);
        }
        self.out
    }
}

/// Reads what [`BitWriter`] wrote.
#[derive(Debug)]
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
    pending: u128,
    held: u32,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, pending: 0, held: 0 }
    }

    pub(crate) fn get(&mut self, bits: u32) -> Result<u64> {
        while self.held < bits {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(malformed(format!(
                    "a bit string ends after {} bytes, too early",
                    self.bytes.len()
                )));
            };
            self.pending |= u128::from(byte) << self.held;
            self.held += 8;
            self.at += 1;
        }
        let value = (self.pending & ((1u128 << bits) - 1)) as u64;
        self.pending >>= bits;
        self.held -= bits;
        Ok(value)
    }

    /// Refuses set padding bits and returns the number of bytes used.
    pub(crate) fn finish(self) -> Result<usize> {
        if self.pending != 0 {
            return Err(malformed("padding bits are not zero"));
        }
        Ok(self.at)
    }
}

/// Bits that `value` needs: 0 for 0, 3 for 4 to 7.
pub(crate) fn width(value: u64) -> u32 {
    64 - value.leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_come_back_and_have_one_spelling() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut cursor = Cursor::new(&out);
            assert_eq!(cursor.varint().unwrap(), value);
            assert!(cursor.is_empty());
        }
        for long in [&[0x80, 0x00][..], &[0xff; 11], &[0xff, 0x80], &[0xff; 9]] {
            assert!(Cursor::new(long).varint().is_err());
        }
    }

    #[test]
    fn zigzag_comes_back() {
        for value in [0, -1, 1, i64::MIN, i64::MAX, -128] {
            let mut out = Vec::new();
            put_zigzag(&mut out, value);
            assert_eq!(Cursor::new(&out).zigzag().unwrap(), value);
        }
    }

    #[test]
    fn bit_fields_of_every_width_come_back() {
        let mut writer = BitWriter::default();
        for bits in 0..=64 {
            writer.put(if bits == 0 { 0 } else { u64::MAX >> (64 - bits) }, bits);
            writer.put(0, 1);
        }
        let bytes = writer.finish();
        let mut reader = BitReader::new(&bytes);
        for bits in 0..=64 {
            assert_eq!(reader.get(bits).unwrap(), if bits == 0 { 0 } else { u64::MAX >> (64 - bits) });
            assert_eq!(reader.get(1).unwrap(), 0);
        }
        assert_eq!(reader.finish().unwrap(), bytes.len());
    }
}
