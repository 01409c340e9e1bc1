//! The outermost shell of a `.trim` file.
//!
//! ```text
//! "TRIM"   magic
//! 1        version of the format
//! sections each: varint kind, varint length, that many bytes
//! crc      CRC-32 of everything before, little-endian
//! ```
//!
//! Sections of odd kind are optional: a reader that does not know one skips it. Sections of even kind are
//! required: a reader that does not know one refuses the file. So a file from a newer version either loads with
//! the same meaning or says what it needs.

use std::fs;
use std::path::Path;

use super::wire::{Cursor, malformed, put_bytes, put_varint};
use crate::error::{Error, Result};

const MAGIC: [u8; 4] = *b"TRIM";
const VERSION: u8 = 1;

/// What a section holds. Even: required.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text for people, UTF-8.
    Note = 1,
    /// A trainable network.
    Network = 2,
    /// Named tensors.
    Tensors = 4,
    /// A network that runs, in numbers or integers.
    Engine = 6,
    /// What turns one network into another.
    Delta = 8,
    /// What turns one engine into another.
    EngineDelta = 10,
}

impl Kind {
    fn of_id(id: u64) -> Option<Self> {
        use Kind::{Delta, Engine, EngineDelta, Network, Note, Tensors};
        [Note, Network, Tensors, Engine, Delta, EngineDelta].into_iter().find(|&kind| kind as u64 == id)
    }

    /// What it is, and what reads it.
    fn reader(self) -> &'static str {
        match self {
            Self::Note => "a note",
            Self::Network => "a network, for Mlp::load",
            Self::Tensors => "tensors, for load_tensors",
            Self::Engine => "an engine, for Engine::load",
            Self::Delta => "a difference, for apply",
            Self::EngineDelta => "a difference, for apply_engine",
        }
    }
}

/// A whole file from its sections.
pub(crate) fn write_sections(sections: &[(Kind, &[u8])]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    for &(kind, bytes) in sections {
        put_varint(&mut out, kind as u64);
        put_bytes(&mut out, bytes);
    }
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// The sections of a file that this version knows.
pub(crate) fn read_sections(bytes: &[u8]) -> Result<Vec<(Kind, &[u8])>> {
    let mut cursor = Cursor::new(bytes);
    if cursor.take(4).ok() != Some(&MAGIC[..]) {
        return Err(malformed("not a .trim file: it does not begin with TRIM"));
    }
    let version = cursor.byte()?;
    if version != VERSION {
        return Err(malformed(format!("format version {version}, this reader knows {VERSION}")));
    }
    let body = cursor.rest();
    let Some((body, crc)) = body.split_last_chunk::<4>() else {
        return Err(malformed(format!("cut off after {} bytes", bytes.len())));
    };
    let actual = crc32fast::hash(&bytes[..bytes.len() - 4]);
    if actual != u32::from_le_bytes(*crc) {
        return Err(malformed(format!(
            "damaged or cut off: checksum {actual:08x}, the file says {:08x}",
            u32::from_le_bytes(*crc)
        )));
    }
    let mut cursor = Cursor::new(body);
    let mut sections = Vec::new();
    while !cursor.is_empty() {
        let id = cursor.varint()?;
        let content = cursor.bytes()?;
        match Kind::of_id(id) {
            Some(kind) => sections.push((kind, content)),
            None if id % 2 == 1 => {}
            None => {
                return Err(malformed(format!("section kind {id} is required and unknown to this version")));
            }
        }
    }
    Ok(sections)
}

/// The one section of a kind.
pub(crate) fn only<'a>(sections: &[(Kind, &'a [u8])], kind: Kind) -> Result<&'a [u8]> {
    let mut found = sections.iter().filter(|(k, _)| *k == kind).map(|(_, bytes)| *bytes);
    match (found.next(), found.next()) {
        (Some(bytes), None) => Ok(bytes),
        (None, _) => {
            let held = sections.iter().map(|(kind, _)| kind.reader()).collect::<Vec<_>>().join(" and ");
            let hint = if held.is_empty() { held } else { format!("; it holds {held}") };
            Err(malformed(format!("the file has no section {kind:?}{hint}")))
        }
        (Some(_), Some(_)) => Err(malformed(format!("the file has several sections {kind:?}"))),
    }
}

/// Reads a whole file.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })
}

/// Adds the file's name to an error about its bytes.
pub(crate) fn named<T>(result: Result<T>, path: &Path) -> Result<T> {
    result.map_err(|error| match error {
        Error::Format { reason, .. } => Error::Format { path: path.to_path_buf(), reason },
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_crc(body: &[u8]) -> Vec<u8> {
        let mut out = [&MAGIC[..], &[VERSION], body].concat();
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    #[test]
    fn unknown_optional_sections_are_skipped_and_required_ones_refused() {
        let known = with_crc(&[2, 1, 7]);
        assert_eq!(read_sections(&known).unwrap(), vec![(Kind::Network, &[7u8][..])]);
        let optional = with_crc(&[99, 3, 1, 2, 3, 2, 1, 7]);
        assert_eq!(read_sections(&optional).unwrap(), vec![(Kind::Network, &[7u8][..])]);
        let required = with_crc(&[98, 3, 1, 2, 3, 2, 1, 7]);
        assert!(read_sections(&required).unwrap_err().to_string().contains("98"));
    }

    #[test]
    fn another_version_is_named() {
        let mut file = with_crc(&[]);
        file[4] = 2;
        assert!(read_sections(&file).unwrap_err().to_string().contains("version 2"));
    }
}
