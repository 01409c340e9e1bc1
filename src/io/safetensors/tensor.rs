//! One tensor: an element type, a shape, and bytes in little-endian, row-major order.

use half::{bf16, f16};
use ndarray::{ArrayD, ArrayView, Dimension, IxDyn};

use super::dtype::Dtype;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::io::trim::malformed;

/// A tensor with its own bytes.
///
/// ```
/// use trimnet::io::safetensors::{Dtype, Tensor};
/// use trimnet::ndarray::array;
///
/// let weights = array![[1.0_f32, -2.5], [0.0, 1e-3]];
/// let half = Tensor::from_floats(weights.view(), Dtype::Bf16)?;
/// assert_eq!(half.bytes().len(), 8);
/// let back = half.view().to_floats::<f32>()?;
/// assert_eq!(back[[0, 1]], -2.5);
/// assert!((back[[1, 1]] - 1e-3).abs() < 1e-5);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    /// Takes over bytes as they stand in a file.
    ///
    /// # Errors
    /// [`Error::Format`] unless the shape has just so many bytes.
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Self> {
        check(dtype, &shape, &bytes)?;
        Ok(Self { dtype, shape, bytes })
    }

    /// Real numbers as `F16`, `BF16`, `F32` or `F64`, to the nearest. NaN and infinity stay what they are.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another type, and for a finite number that would become infinite.
    pub fn from_floats<F: Float, D: Dimension>(x: ArrayView<'_, F, D>, dtype: Dtype) -> Result<Self> {
        let mut bytes = Vec::with_capacity(x.len() * dtype.bits() / 8);
        put_floats(x.iter().copied(), dtype, &mut bytes)?;
        Ok(Self { dtype, shape: x.shape().to_vec(), bytes })
    }

    /// Integers as `I8`, `U8`, `I32` or `I64`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another type, and for a code that does not fit.
    pub fn from_codes<D: Dimension>(codes: ArrayView<'_, i32, D>, dtype: Dtype) -> Result<Self> {
        let width = dtype.bits() / 8;
        let (lowest, highest) = match dtype {
            Dtype::I8 => (-128, 127),
            Dtype::U8 => (0, 255),
            Dtype::I32 | Dtype::I64 => (i32::MIN, i32::MAX),
            _ => return Err(unsupported(dtype, "integers", "I8, U8, I32 or I64")),
        };
        let mut bytes = Vec::with_capacity(codes.len() * width);
        for &code in &codes {
            if !(lowest..=highest).contains(&code) {
                let reason = format!("{code} is not within {lowest}..={highest}");
                return Err(Error::Unsupported { what: "a tensor of integers", reason });
            }
            bytes.extend_from_slice(&i64::from(code).to_le_bytes()[..width]);
        }
        Ok(Self { dtype, shape: codes.shape().to_vec(), bytes })
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same tensor without its own bytes.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { dtype: self.dtype, shape: &self.shape, bytes: &self.bytes }
    }
}

/// A tensor in bytes that stand elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorView<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// A tensor of these bytes.
    ///
    /// # Errors
    /// [`Error::Format`] unless the shape has just so many bytes.
    pub fn new(dtype: Dtype, shape: &'a [usize], bytes: &'a [u8]) -> Result<Self> {
        check(dtype, shape, bytes)?;
        Ok(Self { dtype, shape, bytes })
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// A copy with its own bytes.
    pub fn to_tensor(&self) -> Tensor {
        Tensor { dtype: self.dtype, shape: self.shape.to_vec(), bytes: self.bytes.to_vec() }
    }

    /// The numbers of a tensor of `F16`, `BF16`, `F32` or `F64`, each to the nearest of `F`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another type.
    pub fn to_floats<F: Float>(&self) -> Result<ArrayD<F>> {
        let mut values = Vec::new();
        take_floats(self.dtype, self.bytes, &mut values)?;
        array(self.shape, values)
    }

    /// The integers of a tensor of `I8`, `U8`, `I32`, `BOOL`, or small ones of `I64`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another type, [`Error::Format`] for an `I64` beyond 32 bits.
    pub fn to_codes(&self) -> Result<ArrayD<i32>> {
        let (quads, eights) = (self.bytes.as_chunks().0, self.bytes.as_chunks().0);
        let values = match self.dtype {
            Dtype::I8 => self.bytes.iter().map(|&byte| i32::from(byte as i8)).collect(),
            Dtype::U8 | Dtype::Bool => self.bytes.iter().map(|&byte| i32::from(byte)).collect(),
            Dtype::I32 => quads.iter().map(|&b| i32::from_le_bytes(b)).collect(),
            Dtype::I64 => eights
                .iter()
                .map(|&b| i64::from_le_bytes(b))
                .map(|x| i32::try_from(x).map_err(|_| malformed(format!("{x} is no code of 32 bits"))))
                .collect::<Result<Vec<i32>>>()?,
            _ => return Err(unsupported(self.dtype, "integers", "I8, U8, BOOL, I32 or I64")),
        };
        array(self.shape, values)
    }
}

fn check(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
    let expected = dtype.bytes_of(shape)?;
    if expected == bytes.len() {
        return Ok(());
    }
    Err(malformed(format!("shape {shape:?} of {dtype} has {expected} bytes, given are {}", bytes.len())))
}

fn array<T>(shape: &[usize], values: Vec<T>) -> Result<ArrayD<T>> {
    ArrayD::from_shape_vec(IxDyn(shape), values).map_err(|error| malformed(error.to_string()))
}

fn unsupported(dtype: Dtype, what: &str, known: &str) -> Error {
    Error::Unsupported {
        what: "the element type",
        reason: format!("{dtype} holds no {what} that this crate reads; {known} do"),
    }
}

/// Appends numbers in a float type, each to the nearest. A finite number has to stay one.
pub(crate) fn put_floats<F: Float>(
    x: impl Iterator<Item = F>,
    dtype: Dtype,
    bytes: &mut Vec<u8>,
) -> Result<()> {
    let mut lost = None;
    let mut keep = |(i, x): (usize, f64), infinite: bool| {
        if infinite && x.is_finite() && lost.is_none() {
            lost = Some((i, x));
        }
    };
    let x = x.map(F::as_f64).enumerate();
    match dtype {
        Dtype::F16 => x.for_each(|x| {
            let half = f16::from_f32(to_odd(x.1));
            keep(x, half.is_infinite());
            bytes.extend_from_slice(&half.to_le_bytes());
        }),
        Dtype::Bf16 => x.for_each(|x| {
            let half = bf16::from_f32(to_odd(x.1));
            keep(x, half.is_infinite());
            bytes.extend_from_slice(&half.to_le_bytes());
        }),
        Dtype::F32 => x.for_each(|x| {
            let single = x.1 as f32;
            keep(x, single.is_infinite());
            bytes.extend_from_slice(&single.to_le_bytes());
        }),
        Dtype::F64 => x.for_each(|x| bytes.extend_from_slice(&x.1.to_le_bytes())),
        _ => return Err(unsupported(dtype, "real numbers", "F16, BF16, F32 and F64")),
    }
    let Some((i, x)) = lost else { return Ok(()) };
    let most = match dtype {
        Dtype::F16 => f16::MAX.to_f64(),
        Dtype::Bf16 => bf16::MAX.to_f64(),
        _ => f32::MAX.into(),
    };
    let reason = format!("number {i} is {x:e}, {dtype} ends at {most:e}");
    Err(Error::Unsupported { what: "rounding to fewer bits", reason })
}

/// Whether a number becomes zero in a float type.
pub(super) fn is_zero_as<F: Float>(x: F, dtype: Dtype) -> bool {
    let x = x.as_f64();
    match dtype {
        Dtype::F16 => f16::from_f32(to_odd(x)).to_f64() == 0.0,
        Dtype::Bf16 => bf16::from_f32(to_odd(x)).to_f64() == 0.0,
        Dtype::F32 => x as f32 == 0.0,
        _ => x == 0.0,
    }
}

/// The single-precision number that remembers in its last bit whether anything was cut off, so that rounding it once more
/// is as good as rounding `x`: to odd (Boldo and Melquiond, 2008).
fn to_odd(x: f64) -> f32 {
    let y = x as f32;
    let bits = y.to_bits();
    if f64::from(y) == x || x.is_nan() || bits & 1 == 1 {
        return y;
    }
    f32::from_bits(if f64::from(y).abs() > x.abs() { bits - 1 } else { bits | 1 })
}

/// Appends the numbers that whole elements of a float type stand for.
pub(crate) fn take_floats<F: Float>(dtype: Dtype, bytes: &[u8], values: &mut Vec<F>) -> Result<()> {
    let (pairs, quads, eights) = (bytes.as_chunks().0, bytes.as_chunks().0, bytes.as_chunks().0);
    match dtype {
        Dtype::F16 => values.extend(pairs.iter().map(|&b| F::of(f16::from_le_bytes(b).to_f64()))),
        Dtype::Bf16 => values.extend(pairs.iter().map(|&b| F::of(bf16::from_le_bytes(b).to_f64()))),
        Dtype::F32 => values.extend(quads.iter().map(|&b| F::of(f64::from(f32::from_le_bytes(b))))),
        Dtype::F64 => values.extend(eights.iter().map(|&b| F::of(f64::from_le_bytes(b)))),
        _ => return Err(unsupported(dtype, "real numbers", "F16, BF16, F32 and F64")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{array, aview1};

    #[test]
    fn every_bfloat16_and_half_comes_back_bit_by_bit() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let tensor = Tensor::new(dtype, vec![1 << 16], all.clone()).unwrap();
            let numbers = tensor.view().to_floats::<f32>().unwrap();
            let back = Tensor::from_floats(numbers.view(), dtype).unwrap();
            for (a, b) in tensor.bytes().chunks(2).zip(back.bytes().chunks(2)) {
                let bits = u16::from_le_bytes([a[0], a[1]]);
                let number = numbers[usize::from(bits)];
                assert!(a == b || number.is_nan(), "{dtype} {bits:04x}");
            }
        }
    }

    #[test]
    fn numbers_go_to_the_nearest_once() {
        // Just above the middle of two halves: by way of f32 it would become the middle, and go to the even one below.
        let x = array![1.0f64 + 2f64.powi(-11) + 2f64.powi(-40)];
        let half = Tensor::from_floats(x.view(), Dtype::F16).unwrap();
        assert_eq!(half.view().to_floats::<f64>().unwrap()[[0]], 1.0 + 2f64.powi(-10));
    }

    #[test]
    fn a_finite_number_never_becomes_infinite() {
        let most = |dtype| match dtype {
            Dtype::F16 => 65504.0,
            Dtype::Bf16 => bf16::MAX.to_f64(),
            _ => f64::from(f32::MAX),
        };
        for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
            let read = |x: f64| {
                let tensor = Tensor::from_floats(array![0.0, x].view(), dtype)?;
                tensor.view().to_floats::<f64>().map(|x| x[[1]])
            };
            assert_eq!(read(-most(dtype)).unwrap(), -most(dtype));
            assert_eq!(read(f64::INFINITY).unwrap(), f64::INFINITY);
            assert!(read(f64::NAN).unwrap().is_nan());
            let error = read(-1.01 * most(dtype)).unwrap_err().to_string();
            assert!(
                error.contains("number 1 is -") && error.contains(&format!("{dtype} ends at")),
                "{error}"
            );
        }
        let error = Tensor::from_floats(array![1e5f32].view(), Dtype::F16).unwrap_err().to_string();
        assert_eq!(error, "rounding to fewer bits: number 0 is 1e5, F16 ends at 6.5504e4");
    }

    #[test]
    fn codes_come_back_and_those_that_do_not_fit_are_refused() {
        for (dtype, codes) in [
            (Dtype::I8, [-128, 127]),
            (Dtype::U8, [0, 255]),
            (Dtype::I32, [i32::MIN, i32::MAX]),
            (Dtype::I64, [i32::MIN, i32::MAX]),
        ] {
            let tensor = Tensor::from_codes(aview1(&codes), dtype).unwrap();
            assert_eq!(tensor.view().to_codes().unwrap().as_slice().unwrap(), codes);
        }
        assert!(Tensor::from_codes(aview1(&[128]), Dtype::I8).is_err());
        assert!(Tensor::from_codes(aview1(&[1]), Dtype::F32).is_err());
        let large = Tensor::new(Dtype::I64, vec![], (1i64 << 40).to_le_bytes().to_vec()).unwrap();
        assert!(large.view().to_codes().is_err());
        assert!(large.view().to_floats::<f32>().unwrap_err().to_string().contains("I64"));
    }

    #[test]
    fn a_shape_of_another_length_is_refused() {
        let error = Tensor::new(Dtype::F32, vec![2, 3], vec![0; 20]).unwrap_err();
        assert_eq!(error.to_string(), "shape [2, 3] of F32 has 24 bytes, given are 20");
        assert!(Tensor::new(Dtype::F4, vec![3], vec![0; 2]).is_err());
        assert!(Tensor::new(Dtype::F32, vec![1 << 63, 4], vec![]).is_err());
    }
}
