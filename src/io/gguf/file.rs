//! A whole GGUF file.

use std::collections::BTreeSet;
use std::path::Path;

use super::block::{GgufTensor, GgufType};
use super::value::{Reader, Value, put_text};
use crate::error::Result;
use crate::io::atomic::write_atomic;
use crate::io::safetensors::reason;
use crate::io::trim::{malformed, named, read_file};

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT: &str = "general.alignment";
const USUAL_ALIGNMENT: usize = 32;

/// Keys and tensors, in their order.
///
/// ```
/// use trimnet::io::gguf::{Gguf, GgufTensor, GgufType, Value};
/// use trimnet::ndarray::Array2;
///
/// let mut file = Gguf::new("llama");
/// file.push_key("llama.block_count", Value::U32(1));
/// let w = Array2::<f32>::ones((4, 32));
/// file.push("output.weight", GgufTensor::from_floats(w.view(), GgufType::Q4_0)?);
/// let back = Gguf::from_bytes(&file.to_bytes()?)?;
/// assert_eq!(back, file);
/// assert_eq!(back.get("output.weight")?.to_floats::<f32>()?, w.into_dyn());
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Gguf {
    keys: Vec<(String, Value)>,
    tensors: Vec<(String, GgufTensor)>,
}

impl Gguf {
    /// Without tensors; `architecture` is what `general.architecture` says, a key that every file has.
    pub fn new(architecture: &str) -> Self {
        let key = ("general.architecture".to_string(), Value::Text(architecture.to_string()));
        Self { keys: vec![key], tensors: Vec::new() }
    }

    /// Adds a key.
    pub fn push_key(&mut self, key: impl Into<String>, value: Value) {
        self.keys.push((key.into(), value));
    }

    /// Adds a tensor.
    pub fn push(&mut self, name: impl Into<String>, tensor: GgufTensor) {
        self.tensors.push((name.into(), tensor));
    }

    /// The keys.
    pub fn keys(&self) -> &[(String, Value)] {
        &self.keys
    }

    /// What a key stands for, or `None`.
    pub fn key(&self, key: &str) -> Option<&Value> {
        self.keys.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// The tensors.
    pub fn tensors(&self) -> &[(String, GgufTensor)] {
        &self.tensors
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if there is none.
    pub fn get(&self, name: &str) -> Result<&GgufTensor> {
        let found = self.tensors.iter().find(|(known, _)| known == name);
        found.map(|(_, tensor)| tensor).ok_or_else(|| malformed(format!("there is no tensor {name:?}")))
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) for keys or tensors of the same name, and an alignment that cannot be.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        unique("keys", self.keys.iter().map(|(key, _)| key))?;
        unique("tensors", self.tensors.iter().map(|(name, _)| name))?;
        let alignment = alignment(self.key(ALIGNMENT))?;
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&3u32.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            put_text(&mut out, key);
            value.write(&mut out);
        }
        let mut offset = 0;
        for (name, tensor) in &self.tensors {
            put_text(&mut out, name);
            out.extend_from_slice(&(tensor.shape().len() as u32).to_le_bytes());
            for &length in tensor.shape().iter().rev() {
                out.extend_from_slice(&(length as u64).to_le_bytes());
            }
            out.extend_from_slice(&tensor.kind().id().to_le_bytes());
            out.extend_from_slice(&(offset as u64).to_le_bytes());
            offset += tensor.bytes().len().next_multiple_of(alignment);
        }
        out.resize(out.len().next_multiple_of(alignment), 0);
        out.reserve_exact(offset);
        for (_, tensor) in &self.tensors {
            out.extend_from_slice(tensor.bytes());
            out.resize(out.len().next_multiple_of(alignment), 0);
        }
        Ok(out)
    }

    /// Reads the bytes of a file, version 2 or 3, little-endian.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) for anything but a whole, well-formed file, and for element types other
    /// than those of [`GgufType`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        if reader.take(4).ok() != Some(&MAGIC[..]) {
            return Err(malformed("not a GGUF file: it does not begin with GGUF"));
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            let hint = if version.swap_bytes() <= 3 { ", big-endian" } else { "" };
            return Err(malformed(format!("version {version}{hint}; 2 and 3, little-endian, are read")));
        }
        let (tensor_count, key_count) = (reader.u64()?, reader.u64()?);
        // Nothing is reserved for these counts: each key and tensor takes bytes of the file, which end.
        let mut keys = Vec::new();
        for _ in 0..key_count {
            let key = reader.text()?;
            let kind = reader.u32()?;
            let value = Value::read(&mut reader, kind);
            keys.push((
                key.clone(),
                value.map_err(|error| malformed(format!("key {key:?}: {}", reason(error))))?,
            ));
        }
        unique("keys", keys.iter().map(|(key, _)| key))?;
        let mut infos = Vec::new();
        for _ in 0..tensor_count {
            infos.push(Info::read(&mut reader)?);
        }
        unique("tensors", infos.iter().map(|info| &info.name))?;
        let alignment = alignment(keys.iter().find(|(key, _)| key == ALIGNMENT).map(|(_, value)| value))?;
        let start = reader.at().checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
        let data = bytes.get(start.min(bytes.len())..).unwrap_or_default();
        check_places(&infos, alignment, data.len())?;
        let tensors = infos.into_iter().map(|info| {
            let bytes = data[info.offset..info.offset + info.len].to_vec();
            Ok((info.name, GgufTensor::new(info.kind, info.shape, bytes)?))
        });
        Ok(Self { keys, tensors: tensors.collect::<Result<_>>()? })
    }

    /// Writes the file, as a whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the system refuses; otherwise as [`to_bytes`](Self::to_bytes).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomic(path.as_ref(), &self.to_bytes()?)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the system refuses; otherwise as [`from_bytes`](Self::from_bytes).
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        named(Self::from_bytes(&read_file(path)?), path)
    }
}

/// What a file says of a tensor.
struct Info {
    name: String,
    kind: GgufType,
    shape: Vec<usize>,
    offset: usize,
    len: usize,
}

impl Info {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let name = reader.text()?;
        let wrong = |reason: String| malformed(format!("tensor {name:?}: {reason}"));
        let axes = reader.u32()?;
        if axes > 4 {
            return Err(wrong(format!("{axes} axes, at most 4 are allowed")));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            let length = reader.u64()?;
            shape.push(usize::try_from(length).map_err(|_| wrong(format!("an axis of length {length}")))?);
        }
        shape.reverse();
        let kind = GgufType::of_id(reader.u32()?).map_err(|error| wrong(reason(error)))?;
        let len = kind.bytes_of(&shape).map_err(|error| wrong(reason(error)))?;
        let offset = reader.u64()?;
        let offset = usize::try_from(offset).map_err(|_| wrong(format!("its offset is {offset}")))?;
        Ok(Self { name, kind, shape, offset, len })
    }
}

/// Every tensor within the data, aligned, and on bytes of its own.
fn check_places(infos: &[Info], alignment: usize, data: usize) -> Result<()> {
    let mut sorted: Vec<&Info> = infos.iter().collect();
    sorted.sort_by_key(|info| (info.offset, info.len));
    let mut end = 0;
    for info in sorted {
        let wrong = |reason: String| malformed(format!("tensor {:?}: {reason}", info.name));
        let last = info.offset.checked_add(info.len).filter(|&last| last <= data);
        let last = last.ok_or_else(|| {
            wrong(format!(
                "{} bytes at {} do not lie within the data, which have {data}",
                info.len, info.offset
            ))
        })?;
        if !info.offset.is_multiple_of(alignment) {
            return Err(wrong(format!("its offset {} is no multiple of {alignment}", info.offset)));
        }
        if info.offset < end {
            return Err(wrong(format!(
                "it begins at {}, within another one that ends at {end}",
                info.offset
            )));
        }
        end = last;
    }
    Ok(())
}

fn alignment(value: Option<&Value>) -> Result<usize> {
    match value {
        None => Ok(USUAL_ALIGNMENT),
        Some(&Value::U32(alignment)) if alignment.is_power_of_two() && alignment <= 1 << 20 => {
            Ok(alignment as usize)
        }
        Some(other) => Err(malformed(format!("{ALIGNMENT} is {other:?}, a power of 2 up to 2^20 is wanted"))),
    }
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(malformed(format!("two {what} are called {name:?}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, Array2};

    fn sample() -> Gguf {
        let mut file = Gguf::new("trimnet");
        let numbers =
            [Value::U8(1), Value::I8(-1), Value::U16(2), Value::I16(-2), Value::U32(3), Value::I32(-3)];
        let more = [Value::F32(0.5), Value::Bool(true), Value::U64(4), Value::I64(-4), Value::F64(0.1)];
        for (i, value) in numbers.into_iter().chain(more).enumerate() {
            file.push_key(format!("k{i}"), value);
        }
        file.push_key("texts", Value::Texts(vec!["a".into(), String::new(), "\u{e9}".into()]));
        let w = Array2::from_shape_fn((3, 64), |(i, j)| (i * 64 + j) as f32 - 90.0);
        for kind in [GgufType::Q8_0, GgufType::Q4_0, GgufType::F16, GgufType::Bf16, GgufType::F32] {
            file.push(format!("{kind:?}"), GgufTensor::from_floats(w.view(), kind).unwrap());
        }
        let odd = GgufTensor::from_floats(Array1::from(vec![1.0f32; 5]).view(), GgufType::F32).unwrap();
        file.push("odd", odd);
        file
    }

    #[test]
    fn comes_back() {
        let bytes = sample().to_bytes().unwrap();
        assert_eq!(Gguf::from_bytes(&bytes).unwrap(), sample());
        assert!(bytes.len().is_multiple_of(32));
    }

    #[test]
    fn another_alignment_is_kept() {
        let mut file = sample();
        file.push_key(ALIGNMENT, Value::U32(4096));
        let bytes = file.to_bytes().unwrap();
        assert_eq!(Gguf::from_bytes(&bytes).unwrap(), file);
        assert!(bytes.len().is_multiple_of(4096));
        for bad in [Value::U32(0), Value::U32(24), Value::U32(1 << 31), Value::U64(32)] {
            let mut file = sample();
            file.push_key(ALIGNMENT, bad);
            assert!(file.to_bytes().is_err());
        }
    }

    #[test]
    fn every_cut_before_the_last_padding_is_noticed() {
        let bytes = sample().to_bytes().unwrap();
        for length in 0..bytes.len() - 12 {
            assert!(Gguf::from_bytes(&bytes[..length]).is_err(), "{length}");
        }
    }
}
