//! A tensor as the file sees it: a shape and numbers, known bit by bit.

use super::wire::malformed;
use crate::error::{Error, Result};

/// Integers of 1 to 32 bits: what quantizers store instead of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Codes {
    bits: u8,
    signed: bool,
    values: Vec<i32>,
}

impl Codes {
    /// Codes of `bits` bits: `-2^(bits-1) ..= 2^(bits-1) - 1` if `signed`, else `0 ..= 2^bits - 1`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `bits` is 1 to 32 (signed) or 1 to 31, and for a value that needs more.
    pub fn new(bits: u8, signed: bool, values: Vec<i32>) -> Result<Self> {
        let range = if signed { "1 to 32" } else { "1 to 31" };
        if !(1..=if signed { 32 } else { 31 }).contains(&bits) {
            return Err(Error::OutOfRange { name: "bits", value: f64::from(bits), range });
        }
        let (lowest, highest) = Self::limits(bits, signed);
        if let Some(&value) = values.iter().find(|&&v| !(lowest..=highest).contains(&i64::from(v))) {
            let range = "what the declared bits can hold";
            return Err(Error::OutOfRange { name: "code", value: f64::from(value), range });
        }
        Ok(Self { bits, signed, values })
    }

    /// 1-bit codes.
    pub(crate) fn of_bits(bits: impl Iterator<Item = bool>) -> Self {
        Self { bits: 1, signed: false, values: bits.map(i32::from).collect() }
    }

    /// Bits of one code.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Whether codes may be negative.
    pub fn signed(&self) -> bool {
        self.signed
    }

    /// The codes, row-major.
    pub fn values(&self) -> &[i32] {
        &self.values
    }

    /// The codes, row-major.
    pub fn into_values(self) -> Vec<i32> {
        self.values
    }

    pub(crate) fn limits(bits: u8, signed: bool) -> (i64, i64) {
        let bits = u32::from(bits);
        if signed { (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1) } else { (0, (1i64 << bits) - 1) }
    }
}

/// The numbers of a tensor, row-major.
#[derive(Clone, Debug)]
pub enum Values {
    /// Single precision.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
    /// Integers.
    Codes(Codes),
}

/// The element type of a tensor in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum ElementType {
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Integers.
    Codes {
        /// Bits of one code.
        bits: u8,
        /// Whether codes may be negative.
        signed: bool,
    },
}

impl ElementType {
    /// Bytes of one element in memory after reading.
    pub(crate) fn memory(self) -> usize {
        match self {
            Self::F32 | Self::Codes { .. } => 4,
            Self::F64 => 8,
        }
    }
}

impl Values {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::Codes(codes) => codes.values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the elements.
    pub fn element(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::F64(_) => ElementType::F64,
            Self::Codes(codes) => ElementType::Codes { bits: codes.bits, signed: codes.signed },
        }
    }

    /// CRC-32 of the elements in little-endian order: what the file promises about the decoded numbers.
    pub(crate) fn check(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let mut block = Vec::with_capacity(8192);
        match self {
            Self::F32(v) => hash(&mut hasher, &mut block, v, |x| x.to_le_bytes()),
            Self::F64(v) => hash(&mut hasher, &mut block, v, |x| x.to_le_bytes()),
            Self::Codes(codes) => hash(&mut hasher, &mut block, &codes.values, |x| x.to_le_bytes()),
        }
        hasher.finalize()
    }
}

fn hash<T: Copy, const N: usize>(
    hasher: &mut crc32fast::Hasher,
    block: &mut Vec<u8>,
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) {
    for chunk in values.chunks(8192 / N) {
        block.clear();
        block.extend(chunk.iter().flat_map(|&x| bytes(x)));
        hasher.update(block);
    }
}

impl PartialEq for Values {
    /// Equal bit by bit: a NaN equals itself, `0.0` does not equal `-0.0`.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::F32(a), Self::F32(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
            }
            (Self::F64(a), Self::F64(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
            }
            (Self::Codes(a), Self::Codes(b)) => a == b,
            _ => false,
        }
    }
}

/// A tensor to be written, or that was read.
///
/// Every bit pattern survives, NaN and `-0.0` included: whether those are welcome is a question for the
/// network, not for its file.
///
/// ```
/// use trimnet::io::trim::{EncodeOptions, TensorData, Values, decode, encode, Limits};
///
/// let weights = TensorData::new(vec![2, 3], Values::F32(vec![0.5, 0.0, -0.5, 0.0, 0.0, 0.5]))?;
/// let encoded = encode(&weights, &EncodeOptions::default());
/// assert!(encoded.bytes().len() < 6 * 4);
/// assert_eq!(decode(encoded.bytes(), &Limits::default())?, weights);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    shape: Vec<usize>,
    values: Values,
}

impl TensorData {
    /// `values` in row-major order of `shape`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shape has another number of elements; [`Error::OutOfRange`] above 32 dimensions.
    pub fn new(shape: Vec<usize>, values: Values) -> Result<Self> {
        if shape.len() > MAX_RANK {
            let value = shape.len() as f64;
            return Err(Error::OutOfRange { name: "dimensions", value, range: "0 to 32" });
        }
        if elements(&shape) != Some(values.len()) {
            return Err(Error::Shape { what: "values", actual: vec![values.len()], expected: shape });
        }
        Ok(Self { shape, values })
    }

    /// The lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The numbers.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The numbers.
    pub fn into_values(self) -> Values {
        self.values
    }
}

pub(crate) const MAX_RANK: usize = 32;

/// The product of the axes, if this machine can count that far.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |n, &length| n.checked_mul(length))
}

/// The matrix that the models see: the first axis against all others; a vector is one row.
pub(crate) fn as_matrix(shape: &[usize], n: usize) -> (usize, usize) {
    match shape {
        [rows, _, ..] if n > 0 => (*rows, n / rows),
        _ => (1, n),
    }
}

/// How much memory a file may ask for. A reader refuses before it allocates.
///
/// A compressed file is allowed to be much smaller than what it expands to; the limit grows with the file so
/// that a few hostile bytes cannot ask for gigabytes: `base + ratio * length of the file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    base: usize,
    ratio: usize,
}

impl Default for Limits {
    /// 64 MiB and 1,024 bytes per byte of the file.
    fn default() -> Self {
        Self { base: 64 << 20, ratio: 1024 }
    }
}

impl Limits {
    /// `base` bytes for any file, and `ratio` more for each of its bytes.
    pub fn new(base: usize, ratio: usize) -> Self {
        Self { base, ratio }
    }

    pub(crate) fn budget(&self, file: usize) -> Budget {
        Budget { left: self.base.saturating_add(self.ratio.saturating_mul(file)) }
    }
}

/// What is left of the [`Limits`] while one file is read.
#[derive(Debug)]
pub(crate) struct Budget {
    left: usize,
}

impl Budget {
    /// Takes the decoded size of a tensor from the budget.
    pub(crate) fn spend(&mut self, shape: &[usize], element: ElementType) -> Result<usize> {
        let n = elements(shape);
        let bytes = n.and_then(|n| n.checked_mul(element.memory()));
        match (n, bytes) {
            (Some(n), Some(bytes)) if bytes <= self.left => {
                self.left -= bytes;
                Ok(n)
            }
            _ => Err(malformed(format!(
                "a tensor of shape {shape:?} is beyond the memory limit, {} bytes are left of it",
                self.left
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_beyond_their_bits_are_refused() {
        assert!(Codes::new(3, true, vec![-4, 3]).is_ok());
        assert!(Codes::new(3, true, vec![4]).is_err());
        assert!(Codes::new(3, false, vec![-1]).is_err());
        assert!(Codes::new(32, true, vec![i32::MIN]).is_ok());
        assert!(Codes::new(0, true, vec![]).is_err());
        assert!(Codes::new(32, false, vec![]).is_err());
    }

    #[test]
    fn shapes_that_do_not_fit_or_overflow_are_refused() {
        assert!(TensorData::new(vec![2, 2], Values::F32(vec![0.0; 3])).is_err());
        assert!(TensorData::new(vec![usize::MAX, 2], Values::F32(vec![])).is_err());
        assert!(TensorData::new(vec![usize::MAX, 0], Values::F32(vec![])).is_ok());
        let mut budget = Limits::new(100, 0).budget(1 << 30);
        assert_eq!(budget.spend(&[5, 5], ElementType::F32).unwrap(), 25);
        assert!(budget.spend(&[1], ElementType::F32).is_err());
    }
}
