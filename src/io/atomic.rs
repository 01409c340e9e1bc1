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
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { path, source }
    };
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
    let written = File::create_new(&temporary)
        .and_then(|file| {
            let mut file = BufWriter::new(file);
            write(&mut file)?;
            file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
        })
        .map_err(failed(&temporary))
        .and_then(|()| fs::rename(&temporary, path).map_err(failed(path)));
    if written.is_err() {
        // The first error is the one to report; a file that was never created cannot be removed.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_folder(&folder)
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
