//! The values of keys, and a reader that takes nothing for granted.

use crate::error::Result;
use crate::io::trim::malformed;

/// What a key stands for.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Type 0.
    U8(u8),
    /// Type 1.
    I8(i8),
    /// Type 2.
    U16(u16),
    /// Type 3.
    I16(i16),
    /// Type 4.
    U32(u32),
    /// Type 5.
    I32(i32),
    /// Type 6.
    F32(f32),
    /// Type 7.
    Bool(bool),
    /// Type 8.
    Text(String),
    /// Type 10.
    U64(u64),
    /// Type 11.
    I64(i64),
    /// Type 12.
    F64(f64),
    /// Type 9 of numbers.
    Numbers(Numbers),
    /// Type 9 of texts.
    Texts(Vec<String>),
}

/// Numbers of one type, as they stand in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    kind: u32,
    bytes: Vec<u8>,
}

impl Numbers {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / width(self.kind).unwrap_or(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All of them, in `f64`, which holds them exactly but for integers beyond 2^53.
    pub fn to_f64(&self) -> Vec<f64> {
        let number = |bytes: &[u8]| match Value::scalar(self.kind, bytes) {
            Some(Value::U8(x)) => f64::from(x),
            Some(Value::I8(x)) => f64::from(x),
            Some(Value::U16(x)) => f64::from(x),
            Some(Value::I16(x)) => f64::from(x),
            Some(Value::U32(x)) => f64::from(x),
            Some(Value::I32(x)) => f64::from(x),
            Some(Value::F32(x)) => f64::from(x),
            Some(Value::Bool(x)) => f64::from(u8::from(x)),
            Some(Value::U64(x)) => x as f64,
            Some(Value::I64(x)) => x as f64,
            Some(Value::F64(x)) => x,
            _ => f64::NAN,
        };
        self.bytes.chunks_exact(width(self.kind).unwrap_or(1)).map(number).collect()
    }
}

const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a number of this type.
fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | BOOL => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl Value {
    /// A number from its bytes.
    fn scalar(kind: u32, bytes: &[u8]) -> Option<Self> {
        Some(match kind {
            0 => Self::U8(*bytes.first()?),
            1 => Self::I8(*bytes.first()? as i8),
            2 => Self::U16(u16::from_le_bytes(bytes.try_into().ok()?)),
            3 => Self::I16(i16::from_le_bytes(bytes.try_into().ok()?)),
            4 => Self::U32(u32::from_le_bytes(bytes.try_into().ok()?)),
            5 => Self::I32(i32::from_le_bytes(bytes.try_into().ok()?)),
            6 => Self::F32(f32::from_le_bytes(bytes.try_into().ok()?)),
            BOOL => Self::Bool(match bytes.first()? {
                0 => false,
                1 => true,
                _ => return None,
            }),
            10 => Self::U64(u64::from_le_bytes(bytes.try_into().ok()?)),
            11 => Self::I64(i64::from_le_bytes(bytes.try_into().ok()?)),
            12 => Self::F64(f64::from_le_bytes(bytes.try_into().ok()?)),
            _ => return None,
        })
    }

    pub(super) fn read(reader: &mut Reader<'_>, kind: u32) -> Result<Self> {
        match (kind, width(kind)) {
            (TEXT, _) => Ok(Self::Text(reader.text()?)),
            (ARRAY, _) => Self::read_array(reader),
            (_, Some(width)) => {
                let value = Self::scalar(kind, reader.take(width)?);
                value.ok_or_else(|| malformed(format!("a value of type {kind} that it cannot have")))
            }
            _ => Err(malformed(format!("a value of type {kind}, which is unknown"))),
        }
    }

    fn read_array(reader: &mut Reader<'_>) -> Result<Self> {
        let kind = reader.u32()?;
        let count = reader.u64()?;
        match width(kind) {
            Some(width) => {
                let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(width));
                let bytes = bytes.ok_or_else(|| malformed(format!("an array of {count} numbers")))?;
                Ok(Self::Numbers(Numbers { kind, bytes: reader.take(bytes)?.to_vec() }))
            }
            None if kind == TEXT => {
                // Each text takes eight bytes at least, so a count that lies ends soon.
                let mut texts = Vec::new();
                for _ in 0..count {
                    texts.push(reader.text()?);
                }
                Ok(Self::Texts(texts))
            }
            None => Err(malformed(format!("an array of type {kind}; numbers and texts are read"))),
        }
    }

    /// Type and value.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut put = |kind: u32, bytes: &[u8]| {
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(bytes);
        };
        match self {
            Self::U8(x) => put(0, &[*x]),
            Self::I8(x) => put(1, &[*x as u8]),
            Self::U16(x) => put(2, &x.to_le_bytes()),
            Self::I16(x) => put(3, &x.to_le_bytes()),
            Self::U32(x) => put(4, &x.to_le_bytes()),
            Self::I32(x) => put(5, &x.to_le_bytes()),
            Self::F32(x) => put(6, &x.to_le_bytes()),
            Self::Bool(x) => put(BOOL, &[u8::from(*x)]),
            Self::U64(x) => put(10, &x.to_le_bytes()),
            Self::I64(x) => put(11, &x.to_le_bytes()),
            Self::F64(x) => put(12, &x.to_le_bytes()),
            Self::Text(text) => {
                put(TEXT, &[]);
                put_text(out, text);
            }
            Self::Numbers(numbers) => {
                put(ARRAY, &numbers.kind.to_le_bytes());
                out.extend_from_slice(&(numbers.len() as u64).to_le_bytes());
                out.extend_from_slice(&numbers.bytes);
            }
            Self::Texts(texts) => {
                put(ARRAY, &TEXT.to_le_bytes());
                out.extend_from_slice(&(texts.len() as u64).to_le_bytes());
                texts.iter().for_each(|text| put_text(out, text));
            }
        }
    }
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Bytes, and how far they have been read.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        if n > left {
            return Err(malformed(format!("{n} bytes are needed at byte {}, {left} are left", self.at)));
        }
        self.at += n;
        Ok(&self.bytes[self.at - n..self.at])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| malformed("a number that is cut off"))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        let at = self.at;
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        let text = std::str::from_utf8(bytes);
        Ok(text
            .map_err(|error| malformed(format!("the text at byte {at} is not UTF-8: {error}")))?
            .to_string())
    }
}
