//! Files seen as memory, for tensors that are larger than what one wants to read at once.

use std::fs::File;
use std::io;

/// Some bytes of a file, read when they are looked at.
///
/// While one exists, nobody may change the file: what is read then is undefined, and the system ends a process that reads
/// where a file was cut off. This crate replaces files by renaming, which leaves maps of the old one as they are.
#[derive(Debug)]
pub struct FileMap(Option<memmap2::Mmap>);

impl FileMap {
    /// Maps `len` bytes from `offset` on.
    ///
    /// # Errors
    /// Those of the system; `UnexpectedEof` if the file is shorter.
    pub fn new(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| file.metadata().map_or(true, |metadata| metadata.len() < end)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if len == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the map is read-only, and the bytes lie within the file as the check above found it; that the file
        // stays as it is while the map exists is the one condition that no program can enforce, stated at the type.
        let map = unsafe { memmap2::MmapOptions::new().offset(offset).len(len).map(file)? };
        Ok(Self(Some(map)))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
