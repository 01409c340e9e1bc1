//! The numbers of a file: in the model or beside it, in any of the places and types that exporters use.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use super::proto::{TensorProto, data_type};

/// Numbers of one type, row after row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Numbers {
    /// Also of the half types.
    F32(Vec<f32>),
    F64(Vec<f64>),
    /// Also of int4.
    I8(Vec<i8>),
    /// Also of uint4 and bool.
    U8(Vec<u8>),
    I32(Vec<i32>),
    I64(Vec<i64>),
}

/// A tensor whose numbers are as many as its shape says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) dims: Vec<usize>,
    pub(super) numbers: Numbers,
    /// What it was dequantized from.
    pub(super) origin: Option<Rc<Origin>>,
}

/// Codes and their scales: where a tensor of floats comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Origin {
    /// Int8 or int32, as many as the floats.
    pub(super) codes: Numbers,
    /// One, or one for each index along `axis`; zero points are all 0.
    pub(super) scales: Vec<f32>,
    pub(super) axis: usize,
}

const MAX_RANK: usize = 8;

impl Tensor {
    pub(super) fn new(dims: Vec<usize>, numbers: Numbers) -> Self {
        Self { dims, numbers, origin: None }
    }

    /// Reads a tensor of the model.
    pub(super) fn read(proto: &TensorProto, external: &mut External) -> Result<Self, String> {
        let of = || format!("tensor `{}`", proto.name);
        let dims = dims(&proto.dims).map_err(|reason| format!("{}: {reason}", of()))?;
        let n: usize = dims.iter().product();
        let bytes;
        let raw = if proto.data_location == 1 {
            let size = stored_bytes(proto.data_type, n).ok_or_else(|| {
                format!("{} has elements of type {}", of(), data_type::name(proto.data_type))
            })?;
            bytes = external.read(proto, size).map_err(|reason| format!("{}: {reason}", of()))?;
            Some(&bytes)
        } else {
            Some(&proto.raw_data).filter(|raw| !raw.is_empty())
        };
        let numbers = match raw {
            Some(raw) => from_raw(proto.data_type, n, raw),
            None => from_lists(proto, n),
        };
        Ok(Self::new(
            dims,
            numbers.map_err(|reason| format!("{} of shape {:?}: {reason}", of(), proto.dims))?,
        ))
    }

    pub(super) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        let size = match self.numbers {
            Numbers::I8(_) | Numbers::U8(_) => 1,
            Numbers::F32(_) | Numbers::I32(_) => 4,
            Numbers::F64(_) | Numbers::I64(_) => 8,
        };
        self.len().saturating_mul(size + if self.origin.is_some() { 4 } else { 0 })
    }

    /// The numbers of a tensor of floats.
    pub(super) fn floats(&self) -> Option<Vec<f64>> {
        match &self.numbers {
            Numbers::F32(x) => Some(x.iter().map(|&x| x.into()).collect()),
            Numbers::F64(x) => Some(x.clone()),
            _ => None,
        }
    }

    /// The one number of a tensor of one float.
    pub(super) fn float(&self) -> Option<f64> {
        match &self.numbers {
            Numbers::F32(x) if x.len() == 1 => x.first().map(|&x| x.into()),
            Numbers::F64(x) if x.len() == 1 => x.first().copied(),
            _ => None,
        }
    }

    /// The numbers of a short list of integers.
    pub(super) fn ints(&self) -> Option<Vec<i64>> {
        match &self.numbers {
            Numbers::I32(x) if x.len() <= MAX_RANK => Some(x.iter().map(|&x| x.into()).collect()),
            Numbers::I64(x) if x.len() <= MAX_RANK => Some(x.clone()),
            _ => None,
        }
    }

    pub(super) fn is_float(&self) -> bool {
        matches!(self.numbers, Numbers::F32(_) | Numbers::F64(_))
    }
}

fn dims(dims: &[i64]) -> Result<Vec<usize>, String> {
    if dims.len() > MAX_RANK {
        return Err(format!("{} axes, {MAX_RANK} is the most", dims.len()));
    }
    let sizes: Option<Vec<usize>> = dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let sizes = sizes.ok_or_else(|| format!("the shape {dims:?} has a negative length"))?;
    let elements = sizes.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim));
    match elements {
        Some(n) if n <= isize::MAX as usize / 8 => Ok(sizes),
        _ => Err(format!("the shape {dims:?} has more elements than memory has bytes")),
    }
}

/// Bytes of `n` elements in a file.
fn stored_bytes(element: i32, n: usize) -> Option<usize> {
    match element {
        data_type::FLOAT | data_type::INT32 => n.checked_mul(4),
        data_type::DOUBLE | data_type::INT64 => n.checked_mul(8),
        data_type::FLOAT16 | data_type::BFLOAT16 => n.checked_mul(2),
        data_type::INT8 | data_type::UINT8 | data_type::BOOL => Some(n),
        data_type::INT4 | data_type::UINT4 => Some(n.div_ceil(2)),
        _ => None,
    }
}

const READABLE: &str =
    "FLOAT, DOUBLE, FLOAT16, BFLOAT16, INT8, UINT8, INT4, UINT4, BOOL, INT32 and INT64 are read";

fn unreadable(element: i32) -> String {
    format!("elements of type {}; {READABLE}", data_type::name(element))
}

fn from_raw(element: i32, n: usize, raw: &[u8]) -> Result<Numbers, String> {
    fn each<const N: usize, T>(raw: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
        raw.as_chunks::<N>().0.iter().map(|&bytes| f(bytes)).collect()
    }
    let expected = stored_bytes(element, n).ok_or_else(|| unreadable(element))?;
    if raw.len() != expected {
        return Err(format!("{} bytes of data, {expected} are needed", raw.len()));
    }
    Ok(match element {
        data_type::FLOAT => Numbers::F32(each(raw, f32::from_le_bytes)),
        data_type::DOUBLE => Numbers::F64(each(raw, f64::from_le_bytes)),
        data_type::FLOAT16 => Numbers::F32(each(raw, |bytes| of_f16(u16::from_le_bytes(bytes)))),
        data_type::BFLOAT16 => Numbers::F32(each(raw, |bytes| of_bf16(u16::from_le_bytes(bytes)))),
        data_type::INT32 => Numbers::I32(each(raw, i32::from_le_bytes)),
        data_type::INT64 => Numbers::I64(each(raw, i64::from_le_bytes)),
        data_type::INT8 => Numbers::I8(raw.iter().map(|&x| x as i8).collect()),
        data_type::INT4 => Numbers::I8(nibbles(raw, n).map(|x| ((x << 4) as i8) >> 4).collect()),
        data_type::UINT4 => Numbers::U8(nibbles(raw, n).collect()),
        _ => Numbers::U8(raw.to_vec()),
    })
}

/// Two to a byte, the first in the low half.
fn nibbles(raw: &[u8], n: usize) -> impl Iterator<Item = u8> {
    raw.iter().flat_map(|&byte| [byte & 0xf, byte >> 4]).take(n)
}

fn from_lists(proto: &TensorProto, n: usize) -> Result<Numbers, String> {
    let ints = &proto.int32_data;
    let narrow = |bits: u32| {
        let range = |x: &&i32| i64::from(**x) < -(1 << bits) || i64::from(**x) >= 1 << bits;
        match ints.iter().find(range) {
            Some(x) => Err(format!("{x} is no {}", data_type::name(proto.data_type))),
            None => Ok(()),
        }
    };
    // Integers of half a byte may stand two to an entry, or one.
    let packed = || ints.len() == n.div_ceil(2) && n > 1;
    let (numbers, length) = match proto.data_type {
        data_type::FLOAT => (Numbers::F32(proto.float_data.clone()), proto.float_data.len()),
        data_type::DOUBLE => (Numbers::F64(proto.double_data.clone()), proto.double_data.len()),
        data_type::INT64 => (Numbers::I64(proto.int64_data.clone()), proto.int64_data.len()),
        data_type::INT32 => (Numbers::I32(ints.clone()), ints.len()),
        data_type::FLOAT16 => (Numbers::F32(ints.iter().map(|&x| of_f16(x as u16)).collect()), ints.len()),
        data_type::BFLOAT16 => (Numbers::F32(ints.iter().map(|&x| of_bf16(x as u16)).collect()), ints.len()),
        data_type::INT4 | data_type::UINT4 if packed() => {
            let raw: Vec<u8> = ints.iter().map(|&x| x as u8).collect();
            return from_raw(proto.data_type, n, &raw);
        }
        data_type::INT8 | data_type::INT4 => {
            narrow(7)?;
            (Numbers::I8(ints.iter().map(|&x| x as i8).collect()), ints.len())
        }
        data_type::UINT8 | data_type::UINT4 | data_type::BOOL => {
            narrow(8)?;
            (Numbers::U8(ints.iter().map(|&x| x as u8).collect()), ints.len())
        }
        other => return Err(unreadable(other)),
    };
    if length != n {
        return Err(format!("{length} numbers, {n} are needed"));
    }
    Ok(numbers)
}

fn of_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

fn of_f16(x: u16) -> f32 {
    let (sign, exponent, fraction) =
        (u32::from(x >> 15) << 31, u32::from(x >> 10 & 0x1f), u32::from(x & 0x3ff));
    match exponent {
        0 => f32::from_bits(sign | (fraction as f32 * 2.0_f32.powi(-24)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

/// The files beside a model that hold large tensors.
#[derive(Debug)]
pub(super) struct External {
    folder: Option<PathBuf>,
    /// Names and lengths of those that were opened.
    files: BTreeMap<PathBuf, u64>,
    /// Bytes read of all of them.
    read: u64,
}

impl External {
    /// Beside a model in this folder; `None` for a model in memory.
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, files: BTreeMap::new(), read: 0 }
    }

    /// Bytes of all files that were opened.
    pub(super) fn bytes(&self) -> u64 {
        self.files.values().sum()
    }

    fn read(&mut self, proto: &TensorProto, size: usize) -> Result<Vec<u8>, String> {
        let entry = |key: &str| proto.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(value) => value.parse::<u64>().map(Some).map_err(|_| format!("its {key} is `{value}`")),
        };
        let location = entry("location").ok_or("its data are in another file, which is not named")?;
        let path = self.path(location)?;
        let mut file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let length = file.metadata().map_err(|error| format!("{}: {error}", path.display()))?.len();
        let (offset, claimed) = (number("offset")?.unwrap_or(0), number("length")?);
        let size = size as u64;
        if claimed.is_some_and(|claimed| claimed != size) {
            return Err(format!("its length is {}, {size} bytes are needed", claimed.unwrap_or_default()));
        }
        if offset.checked_add(size).is_none_or(|end| end > length) {
            return Err(format!("{size} bytes at {offset} of `{location}`, which has {length}"));
        }
        self.files.insert(path.clone(), length);
        self.read = self.read.saturating_add(size);
        // Tensors may share their numbers, but not so often that a small file becomes a large network.
        if self.read > self.bytes().saturating_mul(4) {
            return Err(format!("the tensors share the {} bytes of `{location}` too often", self.bytes()));
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.take(size).read_to_end(&mut bytes))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(bytes)
    }

    /// The file of this name, which lies in the model's folder or below.
    fn path(&self, location: &str) -> Result<PathBuf, String> {
        let Some(folder) = &self.folder else {
            return Err(format!("its data are in the file `{location}`: read the model from its path"));
        };
        let inside = |path: &Path| {
            path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        };
        let relative = Path::new(location);
        if location.is_empty() || location.contains(['\\', ':']) || !inside(relative) {
            return Err(format!("the location `{location}` of its data is not below the model's folder"));
        }
        let path = folder.join(relative);
        let resolve =
            |path: &Path| path.canonicalize().map_err(|error| format!("{}: {error}", path.display()));
        if !resolve(&path)?.starts_with(resolve(folder)?) {
            return Err(format!("the location `{location}` of its data leads out of the model's folder"));
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_exact() {
        let cases =
            [(0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (0x0001, 5.960_464_5e-8), (0x8000, -0.0)];
        for (bits, value) in cases {
            assert_eq!(of_f16(bits).to_bits(), f32::to_bits(value), "{bits:x}");
        }
        assert!(of_f16(0x7c01).is_nan() && of_f16(0xfc00) == f32::NEG_INFINITY);
        assert_eq!(of_bf16(0x3f80), 1.0);
    }

    #[test]
    fn half_bytes_are_low_first() {
        let int4 = from_raw(data_type::INT4, 3, &[0xe1, 0x83]).unwrap();
        assert_eq!(int4, Numbers::I8(vec![1, -2, 3]));
        assert_eq!(from_raw(data_type::UINT4, 2, &[0xe1]).unwrap(), Numbers::U8(vec![1, 14]));
    }
}
