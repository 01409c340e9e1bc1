//! A whole safetensors file: named tensors and metadata, to and from bytes.

use std::collections::BTreeMap;
use std::path::Path;

use super::header::Header;
use super::tensor::{Tensor, TensorView};
use crate::error::Result;
use crate::io::atomic::write_atomic_with;
use crate::io::trim::{malformed, named, read_file};

/// Named tensors and a few texts.
///
/// ```
/// use trimnet::io::safetensors::{Dtype, SafeTensors, Tensor};
/// use trimnet::ndarray::array;
///
/// let mut file = SafeTensors::new();
/// file.insert("codes", Tensor::from_codes(array![[1, -2, 3]].view(), Dtype::I8)?);
/// file.insert("scale", Tensor::from_floats(array![0.5_f32].view(), Dtype::F32)?);
/// let back = SafeTensors::from_bytes(&file.to_bytes()?)?;
/// assert_eq!(back.get("codes")?.to_codes()?, array![[1, -2, 3]].into_dyn());
/// assert!(back.get("zero_point").is_err());
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SafeTensors {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
}

impl SafeTensors {
    /// Without tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a tensor in, in the place of one of the same name.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// Puts a text in, in the place of one of the same key. `format` = `pt` is what PyTorch's tools look for.
    pub fn insert_metadata(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.metadata.insert(key.into(), text.into());
    }

    /// The texts.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, TensorView<'_>)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.view()))
    }

    /// The tensor of this name, or `None`.
    pub fn find(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors.get(name).map(Tensor::view)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if there is none.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        self.find(name).ok_or_else(|| {
            let known: Vec<&str> = self.names().take(20).collect();
            malformed(format!("there is no tensor {name:?}; there are {}: {known:?}", self.tensors.len()))
        })
    }

    /// The bytes of the file; the same for the same contents.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) for a tensor that is called `__metadata__`.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let header = self.header()?;
        let mut bytes = header.bytes()?;
        bytes.reserve_exact(header.data_len());
        for entry in &header.entries {
            bytes.extend_from_slice(self.get(&entry.name)?.bytes());
        }
        Ok(bytes)
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) for anything but a whole, well-formed file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let Some((first, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(malformed(format!("{} bytes are too few for the length of a header", bytes.len())));
        };
        let length = Header::length(*first, bytes.len() as u64)?;
        let (json, data) = rest.split_at(length);
        let header = Header::parse(json, data.len() as u64)?;
        let tensors = header.entries.into_iter().map(|entry| {
            let bytes = data[entry.start..entry.start + entry.len].to_vec();
            Ok((entry.name, Tensor::new(entry.dtype, entry.shape, bytes)?))
        });
        Ok(Self { metadata: header.metadata, tensors: tensors.collect::<Result<_>>()? })
    }

    /// Writes the file, as a whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the system refuses; otherwise as [`to_bytes`](Self::to_bytes).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let header = self.header()?;
        let head = header.bytes()?;
        let tensors: Vec<TensorView<'_>> =
            header.entries.iter().map(|entry| self.get(&entry.name)).collect::<Result<_>>()?;
        write_atomic_with(path.as_ref(), |file| {
            file.write_all(&head)?;
            tensors.iter().try_for_each(|tensor| file.write_all(tensor.bytes()))
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the system refuses; otherwise as [`from_bytes`](Self::from_bytes).
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        named(Self::from_bytes(&read_file(path)?), path)
    }

    fn header(&self) -> Result<Header> {
        let tensors = self.tensors.iter().map(|(name, t)| (name.clone(), t.dtype(), t.shape().to_vec()));
        Header::plan(tensors.collect(), self.metadata.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::safetensors::Dtype;
    use ndarray::array;

    fn sample() -> SafeTensors {
        let mut file = SafeTensors::new();
        file.insert("b", Tensor::from_codes(array![1, 2, 3].view(), Dtype::U8).unwrap());
        file.insert("a", Tensor::from_floats(array![[1.5f32, 2.0]].view(), Dtype::F64).unwrap());
        file.insert("n", Tensor::from_codes(ndarray::arr0(7).view(), Dtype::I64).unwrap());
        file.insert("none", Tensor::new(Dtype::F32, vec![0, 4], vec![]).unwrap());
        file.insert_metadata("format", "pt");
        file.insert_metadata("a", "\"quoted\"\n\u{1f600}");
        file
    }

    #[test]
    fn comes_back_and_repeats() {
        let bytes = sample().to_bytes().unwrap();
        assert_eq!(SafeTensors::from_bytes(&bytes).unwrap(), sample());
        assert_eq!(sample().to_bytes().unwrap(), bytes);
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
    }

    #[test]
    fn the_official_reader_and_writer_agree() {
        let bytes = sample().to_bytes().unwrap();
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.len(), 4);
        assert_eq!(theirs.tensor("a").unwrap().data(), sample().get("a").unwrap().bytes());
        let (_, metadata) = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["a"], "\"quoted\"\n\u{1f600}");

        let again = ::safetensors::serialize(theirs.tensors(), None).unwrap();
        let ours = SafeTensors::from_bytes(&again).unwrap();
        assert!(ours.iter().eq(sample().iter()));
    }

    #[test]
    fn every_cut_is_noticed() {
        let bytes = sample().to_bytes().unwrap();
        for length in 0..bytes.len() {
            assert!(SafeTensors::from_bytes(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn an_empty_file_is_a_file() {
        let bytes = SafeTensors::new().to_bytes().unwrap();
        assert_eq!(SafeTensors::from_bytes(&bytes).unwrap(), SafeTensors::new());
    }
}
