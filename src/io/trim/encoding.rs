//! One tensor in bytes: the registry of encodings, how one is written and read.
//!
//! ```text
//! payload  encoding id = layout | mapping << 4
//!          table of the mapping (nothing for floats)
//!          the laid-out matrix
//! body     varint length of the payload, payload, check
//! tensor   element type, rank, axes, body          (a body alone where the reader knows the rest)
//! check    CRC-32 of the decoded elements, little-endian, cut to 1 byte for payloads below 128 bytes,
//!          to 2 below 64 KiB, else all 4
//! ```
//!
//! The check is of the numbers, not of the bytes, which the file's own CRC guards: it also catches a decoder
//! that understood something else than the encoder meant.

use super::floats::Element;
use super::layout::{Layout, Matrix, read_layout};
use super::mapping::{Mapping, Meaning, take_meaning};
use super::search::{EncodeOptions, smallest};
use super::symbol_model::Alphabet;
use super::tensor::{Budget, Codes, ElementType, Limits, MAX_RANK, TensorData, Values, as_matrix};
use super::wire::{Cursor, malformed, put_bytes, put_varint};
use crate::error::Result;

/// What a tensor's numbers are called and how they are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Encoding {
    /// How the matrix is laid out.
    pub layout: Layout,
    /// How symbols become numbers.
    pub mapping: Mapping,
}

impl Encoding {
    fn id(self) -> u8 {
        self.layout as u8 | (self.mapping as u8) << 4
    }

    fn of_id(id: u8) -> Result<Self> {
        Ok(Self { layout: Layout::of_id(id & 15)?, mapping: Mapping::of_id(id >> 4)? })
    }
}

/// Where the bytes of one tensor went; they add up to its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TensorBytes {
    /// Type, shape, lengths, ids, check.
    pub head: usize,
    /// Scales, zero points, palettes.
    pub table: usize,
    /// Where the non-zeros are.
    pub mask: usize,
    /// What they are.
    pub values: usize,
}

impl TensorBytes {
    /// All of them.
    pub fn total(&self) -> usize {
        self.head + self.table + self.mask + self.values
    }
}

/// A tensor in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    bytes: Vec<u8>,
    encoding: Encoding,
    parts: TensorBytes,
}

impl Encoded {
    /// The bytes, which [`decode`] reads.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The encoding that was the smallest.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Where the bytes went.
    pub fn parts(&self) -> TensorBytes {
        self.parts
    }
}

/// Encodes a tensor with its type and shape, in the smallest of the encodings that `options` allow.
pub fn encode(tensor: &TensorData, options: &EncodeOptions) -> Encoded {
    let mut bytes = Vec::new();
    put_element(&mut bytes, tensor.values().element());
    bytes.push(tensor.shape().len() as u8);
    tensor.shape().iter().for_each(|&length| put_varint(&mut bytes, length as u64));
    let head = bytes.len();
    let mut encoded = encode_body(tensor.shape(), tensor.values(), options);
    encoded.parts.head += head;
    bytes.extend_from_slice(&encoded.bytes);
    encoded.bytes = bytes;
    encoded
}

/// Bytes that [`encode`] takes for this tensor.
pub fn encoded_len(tensor: &TensorData, options: &EncodeOptions) -> usize {
    encode(tensor, options).bytes.len()
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`Error::Format`](crate::Error::Format) for anything else, and for a tensor beyond `limits`.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<TensorData> {
    let mut cursor = Cursor::new(bytes);
    let taken = take_tensor(&mut cursor, &mut limits.budget(bytes.len()))?;
    cursor.finish("the tensor")?;
    Ok(taken.tensor)
}

/// A tensor as read, and where its bytes were.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) tensor: TensorData,
    pub(crate) encoding: Encoding,
    pub(crate) parts: TensorBytes,
}

pub(crate) fn take_tensor(cursor: &mut Cursor<'_>, budget: &mut Budget) -> Result<Taken> {
    let start = cursor.position();
    let element = take_element(cursor)?;
    let rank = usize::from(cursor.byte()?);
    if rank > MAX_RANK {
        return Err(malformed(format!("{rank} dimensions, at most {MAX_RANK} are allowed")));
    }
    let shape = (0..rank).map(|_| cursor.size()).collect::<Result<Vec<_>>>()?;
    let head = cursor.position() - start;
    let mut taken = take_body(cursor, element, shape, budget)?;
    taken.parts.head += head;
    Ok(taken)
}

const SIGNED: u8 = 0x40;
const CODES: u8 = 0x80;

pub(crate) fn put_element(out: &mut Vec<u8>, element: ElementType) {
    out.push(match element {
        ElementType::F32 => 0,
        ElementType::F64 => 1,
        ElementType::Codes { bits, signed } => CODES | if signed { SIGNED } else { 0 } | (bits - 1),
    });
}

pub(crate) fn take_element(cursor: &mut Cursor<'_>) -> Result<ElementType> {
    let byte = cursor.byte()?;
    match byte {
        0 => Ok(ElementType::F32),
        1 => Ok(ElementType::F64),
        _ if byte & CODES != 0 && byte & 0x20 == 0 && byte != (CODES | 31) => {
            Ok(ElementType::Codes { bits: (byte & 0x1f) + 1, signed: byte & SIGNED != 0 })
        }
        _ => Err(malformed(format!("element type {byte} is unknown to this version"))),
    }
}

fn check_len(payload: usize) -> usize {
    match payload {
        0..128 => 1,
        128..65_536 => 2,
        _ => 4,
    }
}

/// Length, payload and check; the reader has to know type and shape.
pub(crate) fn encode_body(shape: &[usize], values: &Values, options: &EncodeOptions) -> Encoded {
    let (encoding, table, laid) = smallest(shape, values, options);
    let mut payload = vec![encoding.id()];
    payload.extend_from_slice(&table);
    payload.extend_from_slice(&laid.bytes);
    let mut bytes = Vec::with_capacity(payload.len() + 8);
    put_bytes(&mut bytes, &payload);
    bytes.extend_from_slice(&values.check().to_le_bytes()[..check_len(payload.len())]);
    let values = laid.bytes.len() - laid.mask_bytes;
    let head = bytes.len() - table.len() - laid.bytes.len();
    let parts = TensorBytes { head, table: table.len(), mask: laid.mask_bytes, values };
    Encoded { bytes, encoding, parts }
}

/// Reads what [`encode_body`] wrote.
pub(crate) fn take_body(
    cursor: &mut Cursor<'_>,
    element: ElementType,
    shape: Vec<usize>,
    budget: &mut Budget,
) -> Result<Taken> {
    let start = cursor.position();
    let n = budget.spend(&shape, element)?;
    let payload = cursor.bytes()?;
    let check = cursor.take(check_len(payload.len()))?;
    let total = cursor.position() - start;
    let size = as_matrix(&shape, n);
    let mut payload = Cursor::new(payload);
    let encoding = Encoding::of_id(payload.byte()?)?;
    let (values, table, mask) = match element {
        ElementType::F32 => {
            let (values, table, mask) = read_floats(&mut payload, encoding, size)?;
            (Values::F32(values), table, mask)
        }
        ElementType::F64 => {
            let (values, table, mask) = read_floats(&mut payload, encoding, size)?;
            (Values::F64(values), table, mask)
        }
        ElementType::Codes { bits, signed } => {
            let (codes, table, mask) = read_codes(&mut payload, encoding, size, bits, signed)?;
            (Values::Codes(codes), table, mask)
        }
    };
    let actual = values.check().to_le_bytes();
    if check != &actual[..check.len()] {
        return Err(malformed(format!(
            "a tensor of shape {shape:?} decodes to check {:02x?}, the file says {check:02x?}",
            &actual[..check.len()]
        )));
    }
    let laid = payload.position() - 1 - table;
    let parts = TensorBytes { head: total - table - laid, table, mask, values: laid - mask };
    Ok(Taken { tensor: TensorData::new(shape, values)?, encoding, parts })
}

/// Numbers, bytes of the mapping's table, bytes of the mask.
type Read<T> = (T, usize, usize);

fn read_floats<T: Element>(
    payload: &mut Cursor<'_>,
    Encoding { layout, mapping }: Encoding,
    size: (usize, usize),
) -> Result<Read<Vec<T>>> {
    match mapping {
        Mapping::Floats => {
            let Matrix { mask, floats, mask_bytes, .. } = read_layout::<T>(layout, payload, size, None)?;
            let Some(mask) = mask else { return Ok((floats, 0, 0)) };
            let mut next = floats.into_iter();
            let zero = T::from_raw(0);
            let values = mask.iter().map(|&bit| if bit != 0 { next.next().unwrap_or(zero) } else { zero });
            Ok((values.collect(), 0, mask_bytes))
        }
        Mapping::Integers => Err(malformed("floating-point elements in an encoding of integers")),
        Mapping::Uniform | Mapping::UniformRows | Mapping::Palette => {
            let (meaning, alphabet) = take_meaning::<T>(payload, mapping, size.0)?;
            let table = payload.position() - 1;
            let matrix = read_layout::<T>(layout, payload, size, Some(alphabet))?;
            Ok((numbers(&matrix, &meaning, size.1, alphabet), table, matrix.mask_bytes))
        }
    }
}

/// Puts the numbers where the symbols stand.
fn numbers<T: Element>(matrix: &Matrix<T>, meaning: &Meaning<T>, cols: usize, alphabet: Alphabet) -> Vec<T> {
    let zero = T::from_raw(0);
    let value = |symbol: i32, row| if symbol == 0 { zero } else { meaning.value(symbol, row, alphabet) };
    let cols = cols.max(1);
    match &matrix.mask {
        None => {
            let rows = matrix.symbols.chunks(cols).enumerate();
            rows.flat_map(|(row, symbols)| symbols.iter().map(move |&s| value(s, row))).collect()
        }
        Some(mask) => {
            let mut out = vec![zero; mask.len()];
            let mut next = matrix.symbols.iter();
            for (row, (bits, out)) in mask.chunks(cols).zip(out.chunks_mut(cols)).enumerate() {
                for (out, _) in out.iter_mut().zip(bits).filter(|(_, bit)| **bit != 0) {
                    *out = next.next().map_or(zero, |&s| value(s, row));
                }
            }
            out
        }
    }
}

fn read_codes(
    payload: &mut Cursor<'_>,
    Encoding { layout, mapping }: Encoding,
    size: (usize, usize),
    bits: u8,
    signed: bool,
) -> Result<Read<Codes>> {
    if mapping != Mapping::Integers {
        return Err(malformed(format!("integer elements in an encoding of floats, {mapping:?}")));
    }
    let (meaning, alphabet) = take_meaning::<f32>(payload, mapping, size.0)?;
    let Meaning::Integers { zero } = meaning else { return Err(malformed("integers without a zero point")) };
    let (lowest, highest) = Codes::limits(bits, signed);
    let least = zero.saturating_sub(alphabet.negative.into());
    let most = zero.saturating_add(alphabet.positive.into());
    if !(lowest..=highest).contains(&zero) || least < lowest || most > highest {
        return Err(malformed(format!("codes from {least} to {most} around {zero} do not fit {bits} bits")));
    }
    let table = payload.position() - 1;
    let matrix = read_layout::<f32>(layout, payload, size, Some(alphabet))?;
    let code = |symbol: i32| (zero + i64::from(symbol)) as i32;
    let mut next = matrix.symbols.iter();
    let values = match &matrix.mask {
        None => next.map(|&s| code(s)).collect(),
        Some(mask) => mask
            .iter()
            .map(|&bit| if bit != 0 { next.next().map_or(code(0), |&s| code(s)) } else { code(0) })
            .collect(),
    };
    Ok((Codes::new(bits, signed, values)?, table, matrix.mask_bytes))
}
