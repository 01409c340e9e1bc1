//! Files replaced as a whole or not at all: written under a temporary name, brought to the disk, then renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Writes `bytes`; whoever reads the path at any moment finds the old file or the new one, both whole.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// [`write_atomic`] for contents that need not stand in memory at once.
pub(crate) fn write_atomic_with(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    replace(path, |file, temporary| {
        let mut file = BufWriter::new(file);
        write(&mut file).and_then(|()| file.flush()).map_err(failed(temporary))
    })
}

/// [`write_atomic`] for contents that are written here and there, by whoever may fail for reasons of their own.
#[cfg_attr(not(feature = "mmap"), allow(dead_code))]
pub(crate) fn replace<T>(path: &Path, write: impl FnOnce(&mut File, &Path) -> Result<T>) -> Result<T> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        let reason = "the path names no file".to_string();
        return Err(Error::Format { path: path.to_path_buf(), reason });
    };
    let folder =
        path.parent().filter(|p| !p.as_os_str().is_empty()).map_or(PathBuf::from("."), Path::to_path_buf);
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    let temporary = folder.join(temporary);
    let mut file = File::create_new(&temporary).map_err(failed(&temporary))?;
    let written = write(&mut file, &temporary).and_then(|written| {
        file.sync_all().map_err(failed(&temporary))?;
        fs::rename(&temporary, path).map_err(failed(path))?;
        Ok(written)
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    let written = written?;
    sync_folder(&folder)?;
    Ok(written)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { path, source }
}

/// Removes what writers of `path` left behind when they were killed. One that still runs fails when it is done.
#[cfg(feature = "mmap")]
pub(crate) fn remove_leftovers(path: &Path) -> Result<()> {
    let Some((folder, name)) = path.parent().zip(path.file_name().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let begin = format!(".{name}.");
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let entry = entry.map_err(failed(folder))?;
        let left = entry.file_name().to_str().is_some_and(|n| n.starts_with(&begin) && n.ends_with(".tmp"));
        if left {
            fs::remove_file(entry.path()).map_err(failed(&entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> Result<()> {
    // The new name reaches the disk with the folder, not with the file.
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| Error::Io { path: folder.to_path_buf(), source })
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_a_file_and_leaves_no_other() {
        let folder = std::env::temp_dir().join(format!("trimnet-atomic-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.trim");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert!(write_atomic(&folder.join("missing").join("a.trim"), b"").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_write_that_fails_half_way_leaves_the_old_file() {
        let folder = std::env::temp_dir().join(format!("trimnet-atomic-half-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.onnx");
        write_atomic(&path, b"old").unwrap();
        let failed = write_atomic_with(&path, |file| {
            file.write_all(&[0; 100_000])?;
            Err(io::Error::other("the disk is full"))
        });
        assert!(failed.unwrap_err().to_string().contains("the disk is full"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
