//! Lists of floating-point numbers in the fewest fixed-width bits that keep them exactly.
//!
//! ```text
//! head     mantissa bits m, or 255 for raw
//! raw      the numbers, little-endian
//! narrow   flags: bits 0..3 exponent bits e, bit 6 a zero occurs, bit 7 a sign occurs
//!          varint smallest biased exponent b; then per number: [sign] e bits, m bits
//! ```
//!
//! A number is `exponent - b`, shifted up by one if zero occurs (which is then 0), and the top `m` bits of its
//! mantissa. Half precision, bfloat16 and values rounded to a few bits are special cases that need no name of
//! their own; subnormals, infinities and NaN make a list raw.

use super::wire::{BitReader, BitWriter, Cursor, malformed, put_varint, width};
use crate::error::Result;

const RAW: u8 = 255;
const HAS_ZERO: u8 = 1 << 6;
const HAS_SIGN: u8 = 1 << 7;

/// A float as the file sees it: bits.
pub(crate) trait Element: Copy + PartialEq {
    const MANTISSA: u32;
    const EXPONENT: u32;
    const BYTES: usize = (1 + Self::MANTISSA as usize + Self::EXPONENT as usize) / 8;

    fn to_raw(self) -> u64;
    fn from_raw(raw: u64) -> Self;
    fn to_f64(self) -> f64;
    /// The nearest value.
    fn of_f64(x: f64) -> Self;
    /// `code * scale`, rounded once, as every dequantizer of this crate computes it.
    fn times(self, code: i32) -> Self;
}

macro_rules! element {
    ($t:ty, $u:ty, $mantissa:expr, $exponent:expr) => {
        impl Element for $t {
            const MANTISSA: u32 = $mantissa;
            const EXPONENT: u32 = $exponent;

            fn to_raw(self) -> u64 {
                u64::from(self.to_bits())
            }

            fn from_raw(raw: u64) -> Self {
                Self::from_bits(raw as $u)
            }

            fn to_f64(self) -> f64 {
                f64::from(self)
            }

            fn of_f64(x: f64) -> Self {
                x as $t
            }

            fn times(self, code: i32) -> Self {
                code as $t * self
            }
        }
    };
}

element!(f32, u32, 23, 8);
element!(f64, u64, 52, 11);

/// The narrow form that holds all of a list.
#[derive(Clone, Copy, Debug)]
struct Narrow {
    mantissa: u32,
    exponent: u32,
    smallest: u64,
    zero: bool,
    sign: bool,
}

impl Narrow {
    fn of<T: Element>(values: &[T]) -> Option<Self> {
        let (mut union, mut low, mut high) = (0u64, u64::MAX, 0u64);
        let (mut zero, mut sign) = (false, false);
        let special = (1u64 << T::EXPONENT) - 1;
        for raw in values.iter().map(|v| v.to_raw()) {
            let exponent = raw >> T::MANTISSA & special;
            let mantissa = raw & ((1u64 << T::MANTISSA) - 1);
            sign |= raw >> (T::MANTISSA + T::EXPONENT) != 0;
            if exponent == 0 && mantissa == 0 {
                zero = true;
                continue;
            }
            if exponent == 0 || exponent == special {
                return None;
            }
            union |= mantissa;
            (low, high) = (low.min(exponent), high.max(exponent));
        }
        let mantissa = T::MANTISSA - union.trailing_zeros().min(T::MANTISSA);
        // Nothing but zeros needs no exponent at all.
        let (low, exponent) = if low > high { (1, 0) } else { (low, width(high - low + u64::from(zero))) };
        Some(Self { mantissa, exponent, smallest: low, zero, sign })
    }

    fn bits(&self) -> usize {
        (self.mantissa + self.exponent + u32::from(self.sign)) as usize
    }
}

/// Appends the list; the reader has to know its length.
pub(crate) fn put_floats<T: Element>(out: &mut Vec<u8>, values: &[T]) {
    let narrow =
        Narrow::of(values).filter(|n| 3 + (n.bits() * values.len()).div_ceil(8) <= values.len() * T::BYTES);
    let Some(narrow) = narrow else {
        out.push(RAW);
        out.reserve(values.len() * T::BYTES);
        for value in values {
            out.extend_from_slice(&value.to_raw().to_le_bytes()[..T::BYTES]);
        }
        return;
    };
    out.push(narrow.mantissa as u8);
    let mut flags = narrow.exponent as u8;
    flags |= if narrow.zero { HAS_ZERO } else { 0 };
    flags |= if narrow.sign { HAS_SIGN } else { 0 };
    out.push(flags);
    put_varint(out, narrow.smallest);
    let mut bits = BitWriter::default();
    for raw in values.iter().map(|v| v.to_raw()) {
        if narrow.sign {
            bits.put(raw >> (T::MANTISSA + T::EXPONENT), 1);
        }
        let exponent = raw >> T::MANTISSA & ((1 << T::EXPONENT) - 1);
        let stored = if exponent == 0 { 0 } else { exponent - narrow.smallest + u64::from(narrow.zero) };
        bits.put(stored, narrow.exponent);
        bits.put((raw & ((1 << T::MANTISSA) - 1)) >> (T::MANTISSA - narrow.mantissa), narrow.mantissa);
    }
    out.extend_from_slice(&bits.finish());
}

/// Reads `n` numbers.
pub(crate) fn take_floats<T: Element>(cursor: &mut Cursor<'_>, n: usize) -> Result<Vec<T>> {
    let mantissa = cursor.byte()?;
    if mantissa == RAW {
        let length = n.checked_mul(T::BYTES).ok_or_else(|| malformed("a list of numbers is too long"))?;
        let bytes = cursor.take(length)?;
        return Ok(bytes
            .chunks_exact(T::BYTES)
            .map(|chunk| {
                let mut raw = [0; 8];
                raw[..T::BYTES].copy_from_slice(chunk);
                T::from_raw(u64::from_le_bytes(raw))
            })
            .collect());
    }
    let mantissa = u32::from(mantissa);
    let flags = cursor.byte()?;
    let exponent = u32::from(flags & 0x3f);
    let (zero, sign) = (flags & HAS_ZERO != 0, flags & HAS_SIGN != 0);
    let smallest = cursor.varint()?;
    let special = (1u64 << T::EXPONENT) - 1;
    if mantissa > T::MANTISSA || exponent > T::EXPONENT || !(1..special).contains(&smallest) {
        return Err(malformed(format!(
            "{mantissa} mantissa bits and {exponent} exponent bits from {smallest} do not fit the element type"
        )));
    }
    let field = (mantissa + exponent + u32::from(sign)) as usize;
    let length = n.checked_mul(field).ok_or_else(|| malformed("a list of numbers is too long"))?.div_ceil(8);
    let mut bits = BitReader::new(cursor.take(length)?);
    let mut values = Vec::with_capacity(n);
    for _ in 0..n {
        let negative = if sign { bits.get(1)? } else { 0 };
        let stored = bits.get(exponent)?;
        let fraction = bits.get(mantissa)?;
        let raw = if zero && stored == 0 {
            if fraction != 0 {
                return Err(malformed("a zero with a mantissa"));
            }
            0
        } else {
            let exponent = smallest + stored - u64::from(zero);
            if exponent >= special {
                return Err(malformed(format!("exponent {exponent} does not fit the element type")));
            }
            exponent << T::MANTISSA | fraction << (T::MANTISSA - mantissa)
        };
        values.push(T::from_raw(negative << (T::MANTISSA + T::EXPONENT) | raw));
    }
    bits.finish()?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Element>(values: &[T]) -> usize {
        let mut out = Vec::new();
        put_floats(&mut out, values);
        let mut cursor = Cursor::new(&out);
        let back: Vec<T> = take_floats(&mut cursor, values.len()).unwrap();
        assert!(cursor.is_empty());
        assert!(back.iter().zip(values).all(|(a, b)| a.to_raw() == b.to_raw()));
        assert_eq!(back.len(), values.len());
        out.len()
    }

    #[test]
    fn every_bit_pattern_survives() {
        let odd =
            [f32::NAN, -f32::NAN, f32::INFINITY, 1e-45, -0.0, 0.0, f32::MAX, f32::MIN_POSITIVE, 1.0 / 3.0];
        for i in 0..odd.len() {
            round_trip(&odd[i..]);
            round_trip(&odd[..i]);
        }
        round_trip(&[f64::NAN, 5e-324, -0.0, f64::MAX, f64::MIN_POSITIVE]);
        round_trip(&[f64::MAX, f64::MIN_POSITIVE, 0.0]);
    }

    #[test]
    fn half_precision_takes_sixteen_bits_and_less() {
        let halves: Vec<f32> = (0..1000u32).map(|i| f32::from_bits(0x3f00_0000 + (i << 13))).collect();
        assert!(round_trip(&halves) <= 3 + 1000 * 14 / 8);
        assert_eq!(round_trip(&[0.5f32; 100]), 3);
        assert_eq!(round_trip(&[0.0f64; 100]), 3);
        assert_eq!(round_trip(&[0.25f32, -0.5, 0.0, 1.0]), 5);
    }
}
