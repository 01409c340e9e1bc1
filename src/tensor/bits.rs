//! Booleans packed eight to a byte: element `i` is bit `i % 8` of byte `i / 8`, bits after the end are zero.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// Packs what `bit` says of each item.
pub(crate) fn pack<T: Copy>(items: &[T], bit: impl Fn(T) -> bool) -> Vec<u8> {
    let byte = |items: &[T]| items.iter().rev().fold(0, |byte, &item| byte << 1 | u8::from(bit(item)));
    let (whole, rest) = items.as_chunks::<8>();
    let mut bits = Vec::with_capacity(items.len().div_ceil(8));
    bits.extend(whole.iter().map(|items| byte(items)));
    if !rest.is_empty() {
        bits.push(byte(rest));
    }
    bits
}

/// The first `n` booleans.
#[cfg(feature = "serde")]
pub(crate) fn unpack(bits: &[u8], n: usize) -> Vec<bool> {
    let mut keep = Vec::with_capacity(n);
    keep.extend(bits.iter().flat_map(|&byte| (0..8).map(move |i| byte >> i & 1 == 1)).take(n));
    keep
}

/// How many are true.
pub(crate) fn count(bits: &[u8]) -> usize {
    bits.iter().map(|byte| byte.count_ones() as usize).sum()
}

/// Calls `f` with the position of every true one, ascending.
pub(crate) fn each(bits: &[u8], mut f: impl FnMut(usize)) {
    let (words, rest) = bits.as_chunks::<8>();
    let mut base = 0;
    for &word in words {
        let mut word = u64::from_le_bytes(word);
        while word != 0 {
            f(base + word.trailing_zeros() as usize);
            word &= word - 1;
        }
        base += 64;
    }
    for &byte in rest {
        (0..8).filter(|i| byte >> i & 1 == 1).for_each(|i| f(base + i));
        base += 8;
    }
}

/// Refuses bits that are not exactly `n` booleans.
#[cfg_attr(not(feature = "serde"), allow(dead_code))]
pub(crate) fn check(bits: &[u8], n: usize) -> Result<()> {
    let reason = if bits.len() != n.div_ceil(8) {
        format!("{} bytes of bits for {n} weights, expected {}", bits.len(), n.div_ceil(8))
    } else if !n.is_multiple_of(8) && bits.last().is_some_and(|byte| byte >> (n % 8) != 0) {
        format!("bits are set after the last of {n} weights")
    } else {
        return Ok(());
    };
    Err(Error::Format { path: PathBuf::new(), reason })
}

/// The number of elements of `shape`, if an array of them can exist at all.
#[cfg_attr(not(feature = "serde"), allow(dead_code))]
pub(crate) fn elements(shape: &[usize], bytes: usize) -> Result<usize> {
    // Zero-sized axes count as 1 here, as ndarray itself demands of a shape.
    let fits = shape.iter().try_fold(1usize, |n, &length| n.checked_mul(length.max(1)));
    match fits.and_then(|n| n.checked_mul(bytes)) {
        Some(n) if isize::try_from(n).is_ok() => Ok(shape.iter().product()),
        _ => Err(Error::Format {
            path: PathBuf::new(),
            reason: format!("no memory can hold a tensor of shape {shape:?}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_comes_back() {
        for n in 0..200 {
            let keep: Vec<bool> = (0..n).map(|i| i * i % 3 == 1 || i % 7 == 0).collect();
            let bits = pack(&keep, |keep| keep);
            let mut positions = Vec::new();
            each(&bits, |i| positions.push(i));
            let expected: Vec<usize> = (0..n).filter(|&i| keep[i]).collect();
            assert_eq!(positions, expected);
            assert_eq!(count(&bits), expected.len());
            assert!(check(&bits, n).is_ok());
            assert!(check(&bits, n + 8).is_err());
        }
    }

    #[test]
    fn refuses_a_bit_after_the_end() {
        assert!(check(&[0b1000], 3).is_err());
        assert!(check(&[0b1000], 4).is_ok());
    }

    #[test]
    fn refuses_a_shape_that_overflows() {
        assert!(elements(&[usize::MAX, 2], 4).is_err());
        assert!(elements(&[usize::MAX, 2, 0], 4).is_err());
        assert!(elements(&[isize::MAX as usize / 2], 4).is_err());
        assert_eq!(elements(&[3, 0, 2], 4).unwrap(), 0);
        assert_eq!(elements(&[], 4).unwrap(), 1);
    }
}
