//! A finished model and the file, or the two files, it becomes.
//!
//! Protobuf stops at 2 GB, so large weights go to a second file beside the first. Its name carries the checksum of
//! its content: when a model is written over an older one, the older one's data stay in place until the new model
//! is there, and no reader ever sees one model with the numbers of another.

use std::fs;
use std::io::Write;
use std::path::Path;

use prost::Message;

use super::proto::{ModelProto, StringStringEntryProto, TensorProto};
use crate::error::{Error, Result};
use crate::io::atomic::{write_atomic, write_atomic_with};

/// When weights go to a second file.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExternalData {
    /// When all of them together are larger than this many bytes.
    Above(u64),
    /// Whatever their size (tensors below 1 KiB stay in the model).
    Always,
}

/// Half of what protobuf can hold.
const HALF_OF_PROTOBUF: u64 = 1 << 30;
/// What protobuf can hold.
const PROTOBUF_LIMIT: usize = i32::MAX as usize;
/// Tensors below this many bytes are not worth the way to another file.
const SMALL: usize = 1024;
/// Large tensors begin at multiples of a page, so that runtimes can map them.
const ALIGNMENT: u64 = 4096;

impl Default for ExternalData {
    /// Above 1 GiB.
    fn default() -> Self {
        Self::Above(HALF_OF_PROTOBUF)
    }
}

/// An ONNX model, ready to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxModel {
    model: ModelProto,
    external: ExternalData,
}

impl OnnxModel {
    pub(super) fn new(model: ModelProto, external: ExternalData) -> Self {
        Self { model, external }
    }

    /// Adds an entry to the model's metadata, which runtimes show and ignore.
    #[must_use]
    pub fn with_metadata(mut self, key: &str, value: &str) -> Self {
        self.model.metadata_props.push(StringStringEntryProto { key: key.into(), value: value.into() });
        self
    }

    /// The bytes of the model as one file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] above 2 GB, where only [`save`](Self::save) can help.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let length = self.model.encoded_len();
        if length > PROTOBUF_LIMIT {
            return Err(Error::Unsupported {
                what: "an ONNX model in one file",
                reason: format!("{length} bytes are more than the {PROTOBUF_LIMIT} that protobuf allows"),
            });
        }
        Ok(self.model.encode_to_vec())
    }

    /// Writes the model, and beside it a file of weights if the exporter's settings say so. Each file is replaced as
    /// a whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let weights: u64 = self.initializers().iter().map(|tensor| tensor.raw_data.len() as u64).sum();
        let apart = match self.external {
            ExternalData::Always => true,
            ExternalData::Above(limit) => weights > limit.min(HALF_OF_PROTOBUF),
        };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if apart {
            let crc = self.large().fold(crc32fast::Hasher::new(), |mut crc, tensor| {
                crc.update(&tensor.raw_data);
                crc
            });
            let data_name = format!("{name}.{:08x}.data", crc.finalize());
            write_atomic_with(&path.with_file_name(&data_name), |file| self.write_data(file))?;
            write_atomic(path, &self.without_data(&data_name).encode_to_vec())?;
            remove_stale_data(path, &name, Some(&data_name));
        } else {
            write_atomic(path, &self.to_bytes()?)?;
            remove_stale_data(path, &name, None);
        }
        Ok(())
    }

    fn initializers(&self) -> &[TensorProto] {
        self.model.graph.as_ref().map_or(&[], |graph| &graph.initializer)
    }

    /// The tensors of the second file.
    fn large(&self) -> impl Iterator<Item = &TensorProto> {
        self.initializers().iter().filter(|tensor| tensor.raw_data.len() >= SMALL)
    }

    fn write_data(&self, file: &mut dyn Write) -> std::io::Result<()> {
        let mut at = 0;
        for tensor in self.large() {
            let start = u64::next_multiple_of(at, ALIGNMENT);
            file.write_all(&vec![0; (start - at) as usize])?;
            file.write_all(&tensor.raw_data)?;
            at = start + tensor.raw_data.len() as u64;
        }
        Ok(())
    }

    /// The model with places in the file `location` instead of large tensors.
    fn without_data(&self, location: &str) -> ModelProto {
        let mut at = 0;
        let apart = |tensor: &TensorProto| {
            if tensor.raw_data.len() < SMALL {
                return tensor.clone();
            }
            let (offset, length) = (u64::next_multiple_of(at, ALIGNMENT), tensor.raw_data.len() as u64);
            at = offset + length;
            let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
            TensorProto {
                dims: tensor.dims.clone(),
                data_type: tensor.data_type,
                name: tensor.name.clone(),
                external_data: vec![
                    entry("location", location.into()),
                    entry("offset", offset.to_string()),
                    entry("length", length.to_string()),
                ],
                data_location: 1,
                ..TensorProto::default()
            }
        };
        let initializer = self.initializers().iter().map(apart).collect();
        let graph = self.model.graph.as_ref().map(|graph| super::proto::GraphProto {
            node: graph.node.clone(),
            name: graph.name.clone(),
            initializer,
            input: graph.input.clone(),
            output: graph.output.clone(),
            sparse_initializer: Vec::new(),
        });
        ModelProto {
            ir_version: self.model.ir_version,
            producer_name: self.model.producer_name.clone(),
            producer_version: self.model.producer_version.clone(),
            graph,
            opset_import: self.model.opset_import.clone(),
            metadata_props: self.model.metadata_props.clone(),
        }
    }
}

/// Removes data files of earlier models under the same name: `NAME.CHECKSUM.data`, the checksum in eight digits.
fn remove_stale_data(path: &Path, name: &str, keep: Option<&str>) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let Ok(entries) = fs::read_dir(folder.unwrap_or(Path::new("."))) else { return };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let Some(file) = file.to_str() else { continue };
        let checksum = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
        let checksum = checksum.and_then(|rest| rest.strip_suffix(".data")).unwrap_or_default();
        let ours = checksum.len() == 8
            && checksum.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
            && Some(file) != keep;
        if ours {
            // A file that stays costs space and nothing else.
            let _ = fs::remove_file(entry.path());
        }
    }
}
