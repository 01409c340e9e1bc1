//! From numbers to small signed symbols and back: what a tensor's few distinct values are called.
//!
//! ```text
//! floats    no symbols: the numbers themselves
//! integers  value = zero_point + symbol
//! uniform   value = scale * symbol              one scale, or one for each row
//! palette   value = table[symbol]               negative symbols for negative values, nearer to 0 first
//! ```
//!
//! Symbol 0 is what the mask leaves out: `0.0` (`-0.0` is a value like any other), or the zero point. All of it
//! is found by looking at the bits: a mapping is used only if it gives every one of them back.

use super::floats::{Element, put_floats, take_floats};
use super::symbol_model::Alphabet;
use super::tensor::Codes;
use super::wire::{Cursor, malformed, put_varint, put_zigzag};
use crate::error::Result;

/// How symbols become numbers; the id is what the file stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Mapping {
    /// The numbers themselves.
    Floats = 0,
    /// Integers around a zero point.
    Integers = 1,
    /// Multiples of one scale.
    Uniform = 2,
    /// Multiples of one scale for each row.
    UniformRows = 3,
    /// At most 256 values besides zero.
    Palette = 4,
}

impl Mapping {
    pub(crate) fn of_id(id: u8) -> Result<Self> {
        const ALL: [Mapping; 5] =
            [Mapping::Floats, Mapping::Integers, Mapping::Uniform, Mapping::UniformRows, Mapping::Palette];
        ALL.get(usize::from(id))
            .copied()
            .ok_or_else(|| malformed(format!("mapping {id} is unknown to this version")))
    }
}

const PALETTE_MAX: usize = 256;
const CODE_MAX: f64 = 32_767.0;

/// A tensor in symbols.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) mapping: Mapping,
    /// The bytes that tell what symbols mean.
    pub(crate) table: Vec<u8>,
    pub(crate) alphabet: Alphabet,
    /// One for every one of the mask, none of them 0.
    pub(crate) symbols: Vec<i32>,
}

fn alphabet_of(symbols: &[i32]) -> Alphabet {
    let (low, high) = symbols.iter().fold((0, 0), |(low, high), &s| (s.min(low), s.max(high)));
    Alphabet { negative: low.unsigned_abs(), positive: high.unsigned_abs() }
}

fn put_alphabet(out: &mut Vec<u8>, alphabet: Alphabet) {
    put_varint(out, alphabet.negative.into());
    put_varint(out, alphabet.positive.into());
}

fn take_alphabet(cursor: &mut Cursor<'_>) -> Result<Alphabet> {
    let (negative, positive) = (cursor.varint()?, cursor.varint()?);
    if negative > 1 << 31 || positive >= 1 << 31 {
        return Err(malformed(format!("symbols from -{negative} to {positive} are beyond 32 bits")));
    }
    Ok(Alphabet { negative: negative as u32, positive: positive as u32 })
}

/// The mask and the symbols of integers: the most frequent code is the zero point if it is worth a mask.
pub(crate) fn map_codes(codes: &Codes) -> (Vec<u8>, Mapped) {
    let values = codes.values();
    let zero = if codes.signed() { 0 } else { most_frequent(values) };
    let mask = values.iter().map(|&v| u8::from(v != zero)).collect();
    // Codes are at most 32 bits apart from a zero point of the same sign convention.
    let symbols: Vec<i32> = values.iter().filter(|&&v| v != zero).map(|&v| v.wrapping_sub(zero)).collect();
    let alphabet = alphabet_of(&symbols);
    let mut table = Vec::new();
    put_zigzag(&mut table, zero.into());
    put_alphabet(&mut table, alphabet);
    (mask, Mapped { mapping: Mapping::Integers, table, alphabet, symbols })
}

/// The most frequent of the small codes; the smallest on a tie.
fn most_frequent(values: &[i32]) -> i32 {
    let mut counts = vec![0usize; 256];
    for &v in values {
        if let Some(count) = usize::try_from(v).ok().and_then(|v| counts.get_mut(v)) {
            *count += 1;
        }
    }
    let best = counts.iter().enumerate().max_by_key(|&(v, &count)| (count, std::cmp::Reverse(v)));
    best.map_or(0, |(v, _)| v as i32)
}

/// All symbol mappings that give every bit of `values` back; `mask` is one where a value is not `0.0`.
pub(crate) fn map_floats<T: Element>(values: &[T], rows: usize, cols: usize) -> Vec<Mapped> {
    let mut found = Vec::new();
    let distinct = Distinct::of(values);
    let nonzero = || values.iter().copied().filter(|v| v.to_raw() != 0);
    let scale = match &distinct {
        Some(distinct) => scale_of(|| distinct.values.iter().copied()),
        None => scale_of(nonzero),
    };
    if let Some(scale) = scale {
        let symbols: Vec<i32> = nonzero().map(|v| symbol_of(v, scale)).collect();
        found.push(uniform(Mapping::Uniform, &[scale], symbols));
    } else if rows > 1
        && cols >= 8
        && let Some(scales) = row_scales(values, cols)
    {
        let symbols = values.chunks_exact(cols).zip(&scales).flat_map(|(row, &scale)| {
            row.iter().filter(|v| v.to_raw() != 0).map(move |&v| symbol_of(v, scale))
        });
        let symbols = symbols.collect();
        found.push(uniform(Mapping::UniformRows, &scales, symbols));
    }
    // A scale that fits by accident makes large symbols of few values.
    let roomy = |values: usize| {
        let range = |m: &Mapped| u64::from(m.alphabet.negative) + u64::from(m.alphabet.positive);
        found.iter().all(|m| m.mapping != Mapping::Uniform || range(m) > 4 * values as u64)
    };
    if let Some(distinct) = distinct.filter(|distinct| roomy(distinct.values.len())) {
        found.push(distinct.palette(nonzero()));
    }
    found
}

fn uniform<T: Element>(mapping: Mapping, scales: &[T], symbols: Vec<i32>) -> Mapped {
    let mut table = Vec::new();
    put_floats(&mut table, scales);
    let alphabet = alphabet_of(&symbols);
    put_alphabet(&mut table, alphabet);
    Mapped { mapping, table, alphabet, symbols }
}

fn row_scales<T: Element>(values: &[T], cols: usize) -> Option<Vec<T>> {
    let rows = values.chunks_exact(cols);
    rows.map(|row| scale_of(|| row.iter().copied().filter(|v| v.to_raw() != 0)).or_else(|| dead(row)))
        .collect()
}

fn dead<T: Element>(row: &[T]) -> Option<T> {
    row.iter().all(|v| v.to_raw() == 0).then(|| T::from_raw(0))
}

fn symbol_of<T: Element>(value: T, scale: T) -> i32 {
    (value.to_f64() / scale.to_f64()).round() as i32
}

/// The scale of which all values are exact multiples, if the multiples stay small.
fn scale_of<T: Element, I: Iterator<Item = T>>(values: impl Fn() -> I) -> Option<T> {
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    for magnitude in values().map(|v| v.to_f64().abs()) {
        if !(magnitude > 0.0 && magnitude.is_finite()) {
            return None;
        }
        (least, most) = (least.min(magnitude), most.max(magnitude));
    }
    if least > most {
        return None;
    }
    for divisor in 1..=16 {
        let guess = least / f64::from(divisor);
        let largest = (most / guess).round();
        if largest > CODE_MAX {
            return None;
        }
        let centre = T::of_f64(most / largest).to_raw();
        let near = [0i64, 1, -1, 2, -2].into_iter().map(|step| T::from_raw(centre.wrapping_add_signed(step)));
        for scale in near.filter(|scale| scale.to_f64() > 0.0 && scale.to_f64().is_finite()) {
            if values().all(|v| scale.times(symbol_of(v, scale)).to_raw() == v.to_raw()) {
                return Some(scale);
            }
        }
    }
    None
}

/// The different values of a tensor, if they are few: an open hash table from bits to an index.
struct Distinct<T> {
    values: Vec<T>,
    slots: Vec<u16>,
}

impl<T: Element> Distinct<T> {
    const SLOTS: usize = 1024;

    fn of(values: &[T]) -> Option<Self> {
        let mut distinct = Self { values: Vec::new(), slots: vec![u16::MAX; Self::SLOTS] };
        for &value in values.iter().filter(|v| v.to_raw() != 0) {
            let slot = distinct.slot(value);
            if distinct.slots[slot] == u16::MAX {
                if distinct.values.len() == PALETTE_MAX {
                    return None;
                }
                distinct.slots[slot] = distinct.values.len() as u16;
                distinct.values.push(value);
            }
        }
        Some(distinct)
    }

    /// Where `value` is or would be; at most a quarter of the slots is ever taken.
    #[inline]
    fn slot(&self, value: T) -> usize {
        let mut slot = (value.to_raw().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize;
        loop {
            let index = self.slots[slot];
            if index == u16::MAX || self.values[usize::from(index)].to_raw() == value.to_raw() {
                return slot;
            }
            slot = (slot + 1) % Self::SLOTS;
        }
    }

    fn palette(self, nonzero: impl Iterator<Item = T>) -> Mapped {
        let sign = 1u64 << (T::MANTISSA + T::EXPONENT);
        let mut order: Vec<usize> = (0..self.values.len()).collect();
        // Negative values first, each sign from small to large magnitude.
        order.sort_by_key(|&i| (self.values[i].to_raw() & sign == 0, self.values[i].to_raw() & !sign));
        let table_values: Vec<T> = order.iter().map(|&i| self.values[i]).collect();
        let negative = table_values.iter().filter(|v| v.to_raw() & sign != 0).count();
        let mut names = vec![0i32; order.len()];
        for (rank, &i) in order.iter().enumerate() {
            names[i] = if rank < negative { -(rank as i32) - 1 } else { (rank - negative) as i32 + 1 };
        }
        let alphabet = Alphabet { negative: negative as u32, positive: (order.len() - negative) as u32 };
        let mut table = Vec::new();
        put_alphabet(&mut table, alphabet);
        put_floats(&mut table, &table_values);
        let symbols = nonzero.map(|v| names[usize::from(self.slots[self.slot(v)])]).collect();
        Mapped { mapping: Mapping::Palette, table, alphabet, symbols }
    }
}

/// What symbols mean, as read.
#[derive(Debug)]
pub(crate) enum Meaning<T> {
    Integers { zero: i64 },
    Uniform { scale: T },
    UniformRows { scales: Vec<T> },
    Palette { values: Vec<T> },
}

/// Reads the table of a mapping other than [`Mapping::Floats`].
pub(crate) fn take_meaning<T: Element>(
    cursor: &mut Cursor<'_>,
    mapping: Mapping,
    rows: usize,
) -> Result<(Meaning<T>, Alphabet)> {
    match mapping {
        Mapping::Floats => Err(malformed("floats have no symbols")),
        Mapping::Integers => {
            let zero = cursor.zigzag()?;
            Ok((Meaning::Integers { zero }, take_alphabet(cursor)?))
        }
        Mapping::Uniform => {
            let scale = take_floats(cursor, 1)?[0];
            Ok((Meaning::Uniform { scale }, take_alphabet(cursor)?))
        }
        Mapping::UniformRows => {
            let scales = take_floats(cursor, rows)?;
            Ok((Meaning::UniformRows { scales }, take_alphabet(cursor)?))
        }
        Mapping::Palette => {
            let alphabet = take_alphabet(cursor)?;
            let entries = u64::from(alphabet.negative) + u64::from(alphabet.positive);
            if entries > PALETTE_MAX as u64 {
                return Err(malformed(format!(
                    "a palette of {entries} values, at most {PALETTE_MAX} are allowed"
                )));
            }
            let values = take_floats(cursor, entries as usize)?;
            Ok((Meaning::Palette { values }, alphabet))
        }
    }
}

impl<T: Element> Meaning<T> {
    /// The number that `symbol` stands for in `row`. Symbols are known to lie inside the alphabet.
    #[inline]
    pub(crate) fn value(&self, symbol: i32, row: usize, alphabet: Alphabet) -> T {
        match self {
            Self::Uniform { scale } => scale.times(symbol),
            Self::UniformRows { scales } => {
                scales.get(row).map_or(T::from_raw(0), |scale| scale.times(symbol))
            }
            Self::Palette { values } => {
                let index = if symbol < 0 { -1 - symbol } else { symbol - 1 + alphabet.negative as i32 };
                values.get(index as usize).copied().unwrap_or(T::from_raw(0))
            }
            Self::Integers { .. } => T::from_raw(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_scale_of_quantized_weights() {
        for scale in [0.013_7f32, 1.0, 3e-5, 0.1] {
            for codes in
                [vec![1, 2, -3, 7], vec![-127, 3, 64], vec![2, 4, -6], vec![5, 7, 9], vec![30_000, 1]]
            {
                let values: Vec<f32> = codes.iter().map(|&c| c as f32 * scale).collect();
                let found = scale_of(|| values.iter().copied()).unwrap();
                assert!(values.iter().all(|&v| found.times(symbol_of(v, found)) == v), "{scale} {codes:?}");
            }
        }
        assert!(scale_of(|| [0.1f32, 0.271_828, 0.314_159].into_iter()).is_none());
        assert!(scale_of(|| [1.0f32, f32::NAN].into_iter()).is_none());
        assert!(scale_of(std::iter::empty::<f32>).is_none());
    }

    #[test]
    fn a_palette_of_256_values_is_found_and_one_more_is_not() {
        let values: Vec<f32> =
            (0..257).map(|i| (i as f32).sqrt() * if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
        // The first is -0.0, a value of its own.
        assert!(Distinct::of(&values[..256]).is_some());
        assert!(Distinct::of(&values).is_none());
    }
}
