//! Where the non-zeros are and what they are: five ways to lay out a matrix of symbols.
//!
//! ```text
//! dense   every element, in fixed-width bits
//! bitmap  one bit per element, then the non-zeros in fixed-width bits
//! gaps    number of zeros before each non-zero, Golomb-Rice coded, then the non-zeros in fixed-width bits
//! coded   range-coded mask and symbols, one context per decision: fast
//! mixed   range-coded, several contexts mixed: small; up to 2^24 elements
//! ```

use super::floats::{Element, put_floats, take_floats};
use super::mask_model::{Grid, code_mask};
use super::range_coder::{Decoder, Encoder};
use super::symbol_model::{Alphabet, code_symbols};
use super::wire::{BitReader, BitWriter, Cursor, malformed, put_bytes, put_varint, width};
use crate::error::Result;

/// How a matrix is laid out; the id is what the file stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Layout {
    /// Every element in fixed-width bits.
    Dense = 0,
    /// A bit per element, then the non-zeros.
    Bitmap = 1,
    /// Run lengths of zeros, then the non-zeros.
    Gaps = 2,
    /// Range-coded, one context per decision.
    Coded = 3,
    /// Range-coded, several contexts mixed.
    Mixed = 4,
}

pub(crate) const MIXED_MAX: usize = 1 << 24;

impl Layout {
    pub(crate) const ALL: [Self; 5] = [Self::Dense, Self::Bitmap, Self::Gaps, Self::Coded, Self::Mixed];

    pub(crate) fn of_id(id: u8) -> Result<Self> {
        let layout = Self::ALL.get(usize::from(id)).copied();
        layout.ok_or_else(|| malformed(format!("layout {id} is unknown to this version")))
    }
}

/// Bytes of one laid-out matrix, apart by purpose.
#[derive(Clone, Debug, Default)]
pub(crate) struct Laid {
    pub(crate) bytes: Vec<u8>,
    /// Of them, how many say where the non-zeros are.
    pub(crate) mask_bytes: usize,
}

/// What stands where the mask is one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survivors<'a, T> {
    Floats(&'a [T]),
    Symbols(&'a [i32], Alphabet),
}

/// A non-zero symbol as an unsigned number without a hole.
fn squeeze(symbol: i32, alphabet: Alphabet) -> u64 {
    (i64::from(symbol) + i64::from(alphabet.negative) - i64::from(symbol > 0)) as u64
}

fn stretch(squeezed: u64, alphabet: Alphabet) -> i32 {
    let symbol = squeezed as i64 - i64::from(alphabet.negative);
    (symbol + i64::from(symbol >= 0)) as i32
}

fn symbol_range(alphabet: Alphabet) -> u64 {
    u64::from(alphabet.negative) + u64::from(alphabet.positive)
}

fn put_survivors<T: Element>(out: &mut Vec<u8>, survivors: Survivors<'_, T>) {
    match survivors {
        Survivors::Floats(values) => put_floats(out, values),
        Survivors::Symbols(symbols, alphabet) => {
            let bits = width(symbol_range(alphabet).saturating_sub(1));
            let mut writer = BitWriter::default();
            symbols.iter().for_each(|&s| writer.put(squeeze(s, alphabet), bits));
            out.extend_from_slice(&writer.finish());
        }
    }
}

fn survivor_len<T: Element>(survivors: Survivors<'_, T>) -> usize {
    match survivors {
        // An upper bound; the narrow form is found when it is written.
        Survivors::Floats(values) => 1 + values.len() * T::BYTES,
        Survivors::Symbols(symbols, alphabet) => {
            (symbols.len() * width(symbol_range(alphabet).saturating_sub(1)) as usize).div_ceil(8)
        }
    }
}

/// Zeros before each one.
fn gaps(mask: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let mut run = 0;
    mask.iter().filter_map(move |&bit| {
        if bit == 0 {
            run += 1;
            return None;
        }
        Some(std::mem::take(&mut run))
    })
}

/// The Rice parameter with the shortest code, and its length in bits: near the logarithm of the mean gap.
fn rice_parameter(mask: &[u8]) -> (u32, u64) {
    let count = ones(mask) as u64;
    let centre = width((mask.len() as u64 - count) / count.max(1));
    let first = centre.saturating_sub(3);
    let mut bits = [0u64; 5];
    for gap in gaps(mask) {
        for (k, total) in (first..).zip(&mut bits) {
            *total += (gap >> k) + 1 + u64::from(k);
        }
    }
    let best = (first..32).zip(bits).min_by_key(|&(_, total)| total);
    best.unwrap_or((0, 0))
}

/// Bytes that a layout of fixed-width bits will take; at most, if it holds floats. `None` for the range-coded
/// ones.
pub(crate) fn planned_len<T: Element>(
    layout: Layout,
    mask: &[u8],
    survivors: Survivors<'_, T>,
) -> Option<usize> {
    match layout {
        Layout::Dense => Some(match survivors {
            Survivors::Floats(_) => 1 + mask.len() * T::BYTES,
            Survivors::Symbols(_, alphabet) => {
                (mask.len() * width(symbol_range(alphabet)) as usize).div_ceil(8)
            }
        }),
        Layout::Bitmap => Some(mask.len().div_ceil(8) + survivor_len(survivors)),
        Layout::Gaps => {
            let count = gaps(mask).count() as u64;
            let head = 1 + (width(count).max(1) as usize).div_ceil(7);
            Some(head + rice_parameter(mask).1.div_ceil(8) as usize + survivor_len(survivors))
        }
        Layout::Coded | Layout::Mixed => None,
    }
}

/// Lays out a matrix; `dense` are all its floats, if there are no symbols.
pub(crate) fn lay_out<T: Element>(
    layout: Layout,
    grid: Grid,
    mask: &[u8],
    survivors: Survivors<'_, T>,
    dense: &[T],
) -> Laid {
    let mut bytes = Vec::new();
    let mut mask_bytes = 0;
    match layout {
        Layout::Dense => match survivors {
            Survivors::Floats(_) => put_floats(&mut bytes, dense),
            Survivors::Symbols(symbols, alphabet) => {
                let bits = width(symbol_range(alphabet));
                let mut writer = BitWriter::default();
                let mut next = symbols.iter();
                for &bit in mask {
                    let symbol = if bit != 0 { next.next().copied().unwrap_or(0) } else { 0 };
                    writer.put((i64::from(symbol) + i64::from(alphabet.negative)) as u64, bits);
                }
                bytes = writer.finish();
            }
        },
        Layout::Bitmap => {
            let mut writer = BitWriter::default();
            mask.iter().for_each(|&bit| writer.put(bit.into(), 1));
            bytes = writer.finish();
            mask_bytes = bytes.len();
            put_survivors(&mut bytes, survivors);
        }
        Layout::Gaps => {
            let (k, _) = rice_parameter(mask);
            let count = gaps(mask).count();
            put_varint(&mut bytes, count as u64);
            bytes.push(k as u8);
            let mut writer = BitWriter::default();
            for gap in gaps(mask) {
                let mut high = gap >> k;
                while high >= 32 {
                    writer.put(0, 32);
                    high -= 32;
                }
                writer.put(1 << high, high as u32 + 1);
                writer.put(gap & ((1 << k) - 1), k);
            }
            bytes.extend_from_slice(&writer.finish());
            mask_bytes = bytes.len();
            put_survivors(&mut bytes, survivors);
        }
        Layout::Coded | Layout::Mixed => {
            put_varint(&mut bytes, grid.stride as u64);
            let mut encoder = Encoder::new();
            let mut mask = mask.to_vec();
            code_mask(&mut encoder, grid, &mut mask);
            let mask_bits = encoder.bits();
            match survivors {
                Survivors::Symbols(symbols, alphabet) => {
                    let mut symbols = symbols.to_vec();
                    code_symbols(&mut encoder, grid, &mask, &mut symbols, alphabet);
                    let stream = encoder.finish();
                    mask_bytes = whole_bytes(mask_bits, &stream);
                    bytes.extend_from_slice(&stream);
                }
                Survivors::Floats(values) => {
                    let stream = encoder.finish();
                    put_bytes(&mut bytes, &stream);
                    mask_bytes = bytes.len();
                    put_floats(&mut bytes, values);
                }
            }
        }
    }
    Laid { bytes, mask_bytes }
}

/// A matrix as read: which elements are there (all, if `mask` is `None`), and what they are.
#[derive(Debug)]
pub(crate) struct Matrix<T> {
    pub(crate) mask: Option<Vec<u8>>,
    pub(crate) mask_bytes: usize,
    pub(crate) symbols: Vec<i32>,
    pub(crate) floats: Vec<T>,
}

/// Reads `n = rows * cols` elements to the end of the cursor; floats if there is no alphabet.
pub(crate) fn read_layout<T: Element>(
    layout: Layout,
    cursor: &mut Cursor<'_>,
    (rows, cols): (usize, usize),
    alphabet: Option<Alphabet>,
) -> Result<Matrix<T>> {
    let n = rows * cols;
    let matrix = match layout {
        Layout::Dense => match alphabet {
            None => {
                Matrix { mask: None, mask_bytes: 0, symbols: Vec::new(), floats: take_floats(cursor, n)? }
            }
            Some(alphabet) => {
                let range = symbol_range(alphabet);
                let symbols =
                    take_fixed(cursor, n, range, |s| (s as i64 - i64::from(alphabet.negative)) as i32)?;
                Matrix { mask: None, mask_bytes: 0, symbols, floats: Vec::new() }
            }
        },
        Layout::Bitmap => {
            let bytes = cursor.take(n.div_ceil(8))?;
            let mut mask = Vec::with_capacity(n);
            mask.extend(bytes.iter().flat_map(|&byte| (0..8).map(move |i| byte >> i & 1)));
            if mask[n..].iter().any(|&bit| bit != 0) {
                return Err(malformed("padding bits are not zero"));
            }
            mask.truncate(n);
            survivors(cursor, mask, bytes.len(), alphabet)?
        }
        Layout::Gaps => survivors_of_gaps(cursor, n, alphabet)?,
        Layout::Coded | Layout::Mixed => {
            let mixed = layout == Layout::Mixed;
            let start = cursor.position();
            let stride = cursor.size()?;
            if stride > cols || (mixed && n > MIXED_MAX) || n > u32::MAX as usize {
                return Err(malformed(format!(
                    "stride {stride} or size {rows} x {cols} is beyond this layout"
                )));
            }
            let grid = Grid { rows, cols, stride, mixed };
            let stream = if alphabet.is_some() { cursor.rest() } else { cursor.bytes()? };
            let mut decoder = Decoder::new(stream);
            let mut mask = vec![0; n];
            code_mask(&mut decoder, grid, &mut mask);
            let mask_bytes = whole_bytes(decoder.bits(), stream);
            match alphabet {
                None => {
                    decoder.finish()?;
                    survivors(cursor, mask, cursor.position() - start, None)?
                }
                Some(alphabet) => {
                    let count = ones(&mask);
                    refuse_nameless(count, alphabet)?;
                    let mut symbols = vec![0; count];
                    code_symbols(&mut decoder, grid, &mask, &mut symbols, alphabet);
                    decoder.finish()?;
                    Matrix { mask: Some(mask), mask_bytes, symbols, floats: Vec::new() }
                }
            }
        }
    };
    cursor.finish("a tensor")?;
    Ok(matrix)
}

/// The share of a range-coded stream that its first `bits` took.
fn whole_bytes(bits: f64, stream: &[u8]) -> usize {
    ((bits / 8.0).round() as usize).min(stream.len())
}

fn ones(mask: &[u8]) -> usize {
    mask.chunks(4096).map(|chunk| chunk.iter().map(|&bit| usize::from(bit)).sum::<usize>()).sum()
}

fn refuse_nameless(count: usize, alphabet: Alphabet) -> Result<()> {
    if count > 0 && symbol_range(alphabet) == 0 {
        return Err(malformed(format!("{count} non-zeros, but no symbol to name them")));
    }
    Ok(())
}

fn survivors<T: Element>(
    cursor: &mut Cursor<'_>,
    mask: Vec<u8>,
    mask_bytes: usize,
    alphabet: Option<Alphabet>,
) -> Result<Matrix<T>> {
    let count = ones(&mask);
    let Some(alphabet) = alphabet else {
        let floats = take_floats(cursor, count)?;
        return Ok(Matrix { mask: Some(mask), mask_bytes, symbols: Vec::new(), floats });
    };
    refuse_nameless(count, alphabet)?;
    let symbols =
        take_fixed(cursor, count, symbol_range(alphabet).saturating_sub(1), |s| stretch(s, alphabet))?;
    Ok(Matrix { mask: Some(mask), mask_bytes, symbols, floats: Vec::new() })
}

fn survivors_of_gaps<T: Element>(
    cursor: &mut Cursor<'_>,
    n: usize,
    alphabet: Option<Alphabet>,
) -> Result<Matrix<T>> {
    let start = cursor.position();
    let count = cursor.size()?;
    let k = u32::from(cursor.byte()?);
    if count > n || k > 31 {
        return Err(malformed(format!("{count} non-zeros of {n} elements, Rice parameter {k}")));
    }
    let mut mask = vec![0u8; n];
    let mut ahead = cursor.clone();
    let mut reader = BitReader::new(ahead.rest());
    let mut at = 0u64;
    for _ in 0..count {
        let mut high = 0u64;
        while reader.get(1)? == 0 {
            high += 1;
        }
        at = at.saturating_add(high << k).saturating_add(reader.get(k)?);
        let slot = usize::try_from(at).ok().and_then(|at| mask.get_mut(at));
        *slot.ok_or_else(|| malformed(format!("a non-zero at {at}, beyond the {n} elements")))? = 1;
        at += 1;
    }
    let used = reader.finish()?;
    cursor.take(used)?;
    survivors(cursor, mask, cursor.position() - start, alphabet)
}

/// `n` numbers in `0..=largest`, each translated to a symbol.
fn take_fixed(
    cursor: &mut Cursor<'_>,
    n: usize,
    largest: u64,
    symbol: impl Fn(u64) -> i32,
) -> Result<Vec<i32>> {
    let bits = width(largest);
    let length =
        n.checked_mul(bits as usize).ok_or_else(|| malformed("a bit string is too long"))?.div_ceil(8);
    let mut reader = BitReader::new(cursor.take(length)?);
    let mut values = Vec::with_capacity(n);
    for _ in 0..n {
        let value = reader.get(bits)?;
        if value > largest {
            return Err(malformed(format!("symbol {value}, the largest is {largest}")));
        }
        values.push(symbol(value));
    }
    reader.finish()?;
    Ok(values)
}
