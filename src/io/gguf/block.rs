//! The element types, and tensors of them.
//!
//! ```text
//! Q8_0   32 numbers in 34 bytes: f16 d, 32 codes i8      d = amax / 127      code = round(x * (1 / d)), ties away from zero
//! Q4_0   32 numbers in 18 bytes: f16 d, 16 bytes         d = m / -8, m the number of largest magnitude, the first of them
//!                                                        code = trunc(x * (1 / d) + 8.5) within 0..=15, stands for code - 8
//!        byte i: number i in the low half, number i + 16 in the high half
//! ```
//!
//! The rounding is that of ggml's reference, not that of ONNX. `d` is used in single precision for rounding and stored in
//! half.

use half::f16;
use ndarray::{ArrayD, ArrayView, Dimension, IxDyn};

use crate::error::{Error, Result};
use crate::float::{Float, check_finite};
use crate::io::safetensors::Dtype;
use crate::io::safetensors::tensor::{put_floats, take_floats};
use crate::io::trim::malformed;

/// Numbers of a block.
const BLOCK: usize = 32;

/// An element type.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// 8 bits and a scale for every 32 numbers: 8.5 bits each.
    Q8_0,
    /// 4 bits and a scale for every 32 numbers: 4.5 bits each.
    Q4_0,
    /// Integers of 64 bits, for counters.
    I64,
}

impl GgufType {
    const ALL: [(u32, Self); 6] =
        [(0, Self::F32), (1, Self::F16), (2, Self::Q4_0), (8, Self::Q8_0), (27, Self::I64), (30, Self::Bf16)];

    /// The number in the file.
    pub(super) fn id(self) -> u32 {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or(0, |(id, _)| *id)
    }

    pub(super) fn of_id(id: u32) -> Result<Self> {
        Self::ALL.iter().find(|(known, _)| *known == id).map(|(_, kind)| *kind).ok_or_else(|| {
            malformed(format!("element type {id} is not read here; F32, F16, BF16, Q8_0, Q4_0 and I64 are"))
        })
    }

    /// Numbers and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::I64 => (1, 8),
            Self::Q8_0 => (BLOCK, 34),
            Self::Q4_0 => (BLOCK, 18),
        }
    }

    /// Whether rows of this length can be stored: of `Q8_0` and `Q4_0`, multiples of 32.
    pub fn fits(self, row: usize) -> bool {
        row.is_multiple_of(self.block().0)
    }

    /// Bytes of a tensor, its axes from the outermost.
    pub(super) fn bytes_of(self, shape: &[usize]) -> Result<usize> {
        let (numbers, bytes) = self.block();
        let row = shape.last().copied().unwrap_or(1);
        if !self.fits(row) {
            return Err(malformed(format!("rows of {row} numbers, {self:?} has blocks of {numbers}")));
        }
        let elements = shape.iter().try_fold(1usize, |n, &length| n.checked_mul(length));
        let total = elements.and_then(|n| (n / numbers).checked_mul(bytes));
        total.ok_or_else(|| malformed(format!("shape {shape:?} has more bytes than memory can address")))
    }

    fn dtype(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::Bf16 => Some(Dtype::Bf16),
            Self::Q8_0 | Self::Q4_0 | Self::I64 => None,
        }
    }
}

/// A tensor, its axes from the outermost as everywhere in this crate (the file has them the other way round).
///
/// ```
/// use trimnet::io::gguf::{GgufTensor, GgufType};
/// use trimnet::ndarray::Array2;
///
/// let w = Array2::from_shape_fn((2, 64), |(i, j)| (i * 64 + j) as f32 / 64.0 - 1.0);
/// let q = GgufTensor::from_floats(w.view(), GgufType::Q8_0)?;
/// assert_eq!(q.bytes().len(), 2 * 64 / 32 * 34);
/// let error = (q.to_floats::<f32>()? - &w.into_dyn()).mapv(f32::abs);
/// assert!(error.iter().all(|&error| error < 0.006));
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    kind: GgufType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl GgufTensor {
    /// Takes over bytes as they stand in a file.
    ///
    /// # Errors
    /// [`Error::Format`] unless the shape has just so many bytes, and at most four axes.
    pub fn new(kind: GgufType, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Self> {
        if shape.len() > 4 {
            return Err(malformed(format!("{} axes, at most 4 are allowed", shape.len())));
        }
        let expected = kind.bytes_of(&shape)?;
        if expected != bytes.len() {
            let given = bytes.len();
            return Err(malformed(format!(
                "shape {shape:?} of {kind:?} has {expected} bytes, given are {given}"
            )));
        }
        Ok(Self { kind, shape, bytes })
    }

    /// Numbers in this type.
    ///
    /// # Errors
    /// [`Error::NotFinite`]; [`Error::Unsupported`] for `I64`, for numbers that would become infinite, and for those whose
    /// scale half precision cannot hold;
    /// [`Error::Format`] for rows that are not whole blocks.
    pub fn from_floats<F: Float, D: Dimension>(x: ArrayView<'_, F, D>, kind: GgufType) -> Result<Self> {
        check_finite("tensor", &x.view())?;
        let mut bytes = Vec::with_capacity(kind.bytes_of(x.shape())?);
        match kind.dtype() {
            Some(dtype) => put_floats(x.iter().copied(), dtype, &mut bytes)?,
            None => {
                let values: Vec<f32> = x.iter().map(|x| x.as_f64() as f32).collect();
                for block in values.as_chunks::<BLOCK>().0 {
                    match kind {
                        GgufType::Q8_0 => put_q8(block, &mut bytes)?,
                        GgufType::Q4_0 => put_q4(block, &mut bytes)?,
                        _ => {
                            let reason = "I64 holds no real numbers".to_string();
                            return Err(Error::Unsupported { what: "the element type", reason });
                        }
                    }
                }
            }
        }
        Self::new(kind, x.shape().to_vec(), bytes)
    }

    /// The numbers that it stands for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for `I64`.
    pub fn to_floats<F: Float>(&self) -> Result<ArrayD<F>> {
        let mut values = Vec::new();
        match (self.kind, self.kind.dtype()) {
            (_, Some(dtype)) => take_floats(dtype, &self.bytes, &mut values)?,
            (GgufType::Q8_0, _) => {
                self.bytes.as_chunks::<34>().0.iter().for_each(|b| take_q8(b, &mut values))
            }
            (GgufType::Q4_0, _) => {
                self.bytes.as_chunks::<18>().0.iter().for_each(|b| take_q4(b, &mut values))
            }
            _ => {
                let reason = "I64 holds no real numbers".to_string();
                return Err(Error::Unsupported { what: "the element type", reason });
            }
        }
        ArrayD::from_shape_vec(IxDyn(&self.shape), values).map_err(|error| malformed(error.to_string()))
    }

    /// The element type.
    pub fn kind(&self) -> GgufType {
        self.kind
    }

    /// The shape, outermost axis first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A scale as it is stored.
fn stored(d: f32) -> Result<[u8; 2]> {
    let stored = f16::from_f32(d);
    if stored.is_finite() {
        return Ok(stored.to_le_bytes());
    }
    let reason = format!("a block needs the scale {d}, half precision ends at 65504");
    Err(Error::Unsupported { what: "quantizing by blocks", reason })
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn put_q8(x: &[f32; BLOCK], bytes: &mut Vec<u8>) -> Result<()> {
    let amax = x.iter().fold(0.0f32, |amax, x| amax.max(x.abs()));
    let d = amax / 127.0;
    bytes.extend_from_slice(&stored(d)?);
    // A block of numbers below 1e-36 has an inverse that is infinite: its zeros would become NaN, which `as` makes 0.
    bytes.extend(x.iter().map(|x| (x * inverse(d)).round() as i8 as u8));
    Ok(())
}

fn put_q4(x: &[f32; BLOCK], bytes: &mut Vec<u8>) -> Result<()> {
    let largest = x.iter().fold(0.0f32, |largest, &x| if x.abs() > largest.abs() { x } else { largest });
    let d = largest / -8.0;
    bytes.extend_from_slice(&stored(d)?);
    let code = |x: f32| ((f64::from(x) * f64::from(inverse(d)) + 8.5).trunc() as u8).min(15);
    let (low, high) = x.split_at(BLOCK / 2);
    bytes.extend(low.iter().zip(high).map(|(&low, &high)| code(low) | code(high) << 4));
    Ok(())
}

fn take_q8<F: Float>(block: &[u8; 34], values: &mut Vec<F>) {
    let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
    values.extend(block[2..].iter().map(|&code| F::of(f64::from(d * f32::from(code as i8)))));
}

fn take_q4<F: Float>(block: &[u8; 18], values: &mut Vec<F>) {
    let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
    let value = |code: u8| F::of(f64::from(d * (f32::from(code) - 8.0)));
    values.extend(block[2..].iter().map(|&byte| value(byte & 15)));
    values.extend(block[2..].iter().map(|&byte| value(byte >> 4)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn quantizing_what_was_quantized_changes_nothing() {
        let w = Array2::from_shape_fn((3, 96), |(i, j)| ((i * 96 + j) as f32 * 0.37).sin());
        for (kind, error) in [(GgufType::Q8_0, 0.005), (GgufType::Q4_0, 0.13), (GgufType::F16, 0.0005)] {
            let once = GgufTensor::from_floats(w.view(), kind).unwrap();
            let back = once.to_floats::<f32>().unwrap();
            assert!(back.iter().zip(&w).all(|(a, b)| (a - b).abs() < error), "{kind:?}");
            let twice = GgufTensor::from_floats(back.view(), kind).unwrap();
            let again = twice.to_floats::<f32>().unwrap();
            assert!(again.iter().zip(&back).all(|(a, b)| (a - b).abs() <= 0.001 * a.abs().max(1.0)));
        }
    }

    #[test]
    fn the_extremes_are_numbers_or_errors() {
        for kind in [GgufType::Q8_0, GgufType::Q4_0] {
            for x in [0.0f32, 1e-45, 1e-38, 1e-20, 1.0, -1e5] {
                let w = Array2::from_shape_fn((1, 32), |(_, j)| if j == 3 { x } else { 0.0 });
                let back = GgufTensor::from_floats(w.view(), kind).unwrap().to_floats::<f32>().unwrap();
                assert!(
                    back.iter().zip(&w).all(|(a, b)| (a - b).abs() <= 0.001 * x.abs() + 1e-6),
                    "{kind:?} {x}"
                );
            }
            let huge = Array2::<f32>::from_elem((1, 32), 1e30);
            assert!(GgufTensor::from_floats(huge.view(), kind).unwrap_err().to_string().contains("65504"));
            let odd = Array2::<f32>::zeros((1, 31));
            assert!(GgufTensor::from_floats(odd.view(), kind).unwrap_err().to_string().contains("31"));
            let number = GgufTensor::from_floats(huge.view(), GgufType::F16).unwrap_err().to_string();
            assert!(number.contains("e30, F16 ends at 6.5504e4"), "{number}");
            let nan = Array2::<f32>::from_elem((1, 32), f32::NAN);
            assert!(GgufTensor::from_floats(nan.view(), kind).is_err());
        }
    }
}
