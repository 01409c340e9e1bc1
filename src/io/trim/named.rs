//! Named tensors in a file of their own, for whatever is not a network.
//!
//! ```text
//! section  varint number of tensors, then each: varint length of the name, name in UTF-8, tensor
//! ```

use std::path::Path;

use super::container::{Kind, named, only, read_file, read_sections, write_sections};
use super::encoding::{Taken, encode, take_tensor};
use super::search::EncodeOptions;
use super::tensor::{Limits, TensorData};
use super::wire::{Cursor, malformed, put_bytes, put_varint};
use crate::error::Result;
use crate::io::atomic::write_atomic;

/// A whole file of named tensors.
pub fn tensors_to_bytes(tensors: &[(&str, &TensorData)], options: &EncodeOptions) -> Vec<u8> {
    let mut section = Vec::new();
    put_varint(&mut section, tensors.len() as u64);
    for (name, tensor) in tensors {
        put_bytes(&mut section, name.as_bytes());
        section.extend_from_slice(encode(tensor, options).bytes());
    }
    write_sections(&[(Kind::Tensors, &section)])
}

/// Reads what [`tensors_to_bytes`] wrote, in the order of writing.
///
/// # Errors
/// [`Error::Format`](crate::Error::Format) for anything else, and for tensors beyond `limits`.
pub fn tensors_from_bytes(bytes: &[u8], limits: &Limits) -> Result<Vec<(String, TensorData)>> {
    Ok(read_tensors(bytes, limits)?.into_iter().map(|(name, taken)| (name, taken.tensor)).collect())
}

/// The tensors and where their bytes are.
pub(super) fn read_tensors(bytes: &[u8], limits: &Limits) -> Result<Vec<(String, Taken)>> {
    let mut cursor = Cursor::new(only(&read_sections(bytes)?, Kind::Tensors)?);
    let mut budget = limits.budget(bytes.len());
    let count = cursor.size()?;
    let mut tensors = Vec::new();
    for _ in 0..count {
        let name =
            std::str::from_utf8(cursor.bytes()?).map_err(|e| malformed(format!("a tensor's name: {e}")))?;
        tensors.push((name.to_string(), take_tensor(&mut cursor, &mut budget)?));
    }
    cursor.finish("the last tensor")?;
    Ok(tensors)
}

/// Writes a file of named tensors, as a whole or not at all.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) if the system refuses.
pub fn save_tensors(
    path: impl AsRef<Path>,
    tensors: &[(&str, &TensorData)],
    options: &EncodeOptions,
) -> Result<()> {
    write_atomic(path.as_ref(), &tensors_to_bytes(tensors, options))
}

/// Reads a file of named tensors.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) if the system refuses, [`Error::Format`](crate::Error::Format) for any other
/// file.
pub fn load_tensors(path: impl AsRef<Path>, limits: &Limits) -> Result<Vec<(String, TensorData)>> {
    let path = path.as_ref();
    named(tensors_from_bytes(&read_file(path)?, limits), path)
}
