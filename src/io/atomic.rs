//! Files replaced as a whole or not at all: written under a temporary name, brought to the disk, then renamed.

use std::ffi::{OsStr, OsString};
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
    let path = &target(path)?;
    let Some(name) = path.file_name() else {
        let reason = "the path names no file".to_string();
        return Err(Error::Format { path: path.to_path_buf(), reason });
    };
    let folder = folder(path);
    let mut temporary = begin(name);
    temporary.push(format!("{}.{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
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

/// The folder that a file is in.
fn folder(path: &Path) -> PathBuf {
    path.parent().filter(|p| !p.as_os_str().is_empty()).map_or(PathBuf::from("."), Path::to_path_buf)
}

/// The file that a path leads to, at the end of all links, whether it is there or not: a link stays a link.
fn target(path: &Path) -> Result<PathBuf> {
    const MOST: usize = 40;
    let mut target = path.to_path_buf();
    for _ in 0..MOST {
        match fs::read_link(&target) {
            Ok(to) => target = folder(&target).join(to),
            // No link, or nothing there yet.
            Err(_) => return Ok(target),
        }
    }
    Err(Error::Format {
        path: path.to_path_buf(),
        reason: format!("more than {MOST} links, one after another"),
    })
}

/// How the temporary names of a file begin. File systems end at 255 bytes: of a long name, its begin and a checksum.
fn begin(name: &OsStr) -> OsString {
    const LONG: usize = 200;
    let mut begin = OsString::from(".");
    if name.len() <= LONG {
        begin.push(name);
    } else {
        let text = name.to_string_lossy();
        let kept: String = text.char_indices().take_while(|(at, _)| *at < LONG / 2).map(|(_, c)| c).collect();
        begin.push(format!("{kept}.{:08x}", crc32fast::hash(name.as_encoded_bytes())));
    }
    begin.push(".");
    begin
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { path, source }
}

/// Removes what writers of `path` left behind when they were killed. One that still runs fails when it is done.
#[cfg(feature = "mmap")]
pub(crate) fn remove_leftovers(path: &Path) -> Result<()> {
    let path = &target(path)?;
    let Some(name) = path.file_name() else { return Ok(()) };
    let (folder, begin) = (folder(path), begin(name));
    for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
        let entry = entry.map_err(failed(&folder))?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let left = name.starts_with(begin.as_encoded_bytes()) && name.ends_with(b".tmp");
        if left {
            fs::remove_file(entry.path()).map_err(failed(&entry.path()))?;
        }
    }
    Ok(())
}

/// Removes a file, if it is there, for good.
#[cfg(feature = "mmap")]
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(&folder(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(path)(error)),
    }
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
    fn the_longest_names_can_be_written() {
        let folder = std::env::temp_dir().join(format!("trimnet-atomic-long-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let names = [200, 201, 255].map(|length| "x".repeat(length)).into_iter();
        let names: Vec<String> = names.chain(["\u{e9}".repeat(127)]).collect();
        for name in &names {
            write_atomic(&folder.join(name), name.as_bytes()).unwrap();
        }
        assert!(names.iter().all(|name| fs::read(folder.join(name)).unwrap() == name.as_bytes()));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), names.len());
        // Long names that begin alike have temporary files of their own.
        assert_ne!(begin("x".repeat(201).as_ref()), begin("x".repeat(202).as_ref()));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link_and_what_it_points_to_is_replaced() {
        use std::os::unix::fs::symlink;
        let folder = std::env::temp_dir().join(format!("trimnet-atomic-link-{}", std::process::id()));
        let (real, links) = (folder.join("real"), folder.join("links"));
        fs::create_dir_all(&real).unwrap();
        fs::create_dir_all(&links).unwrap();
        fs::write(real.join("a"), b"old").unwrap();
        symlink("../real/a", links.join("one")).unwrap();
        symlink("one", links.join("two")).unwrap();
        symlink(real.join("b"), links.join("new")).unwrap();
        symlink("round", links.join("round")).unwrap();
        write_atomic(&links.join("two"), b"a").unwrap();
        write_atomic(&links.join("new"), b"b").unwrap();
        assert_eq!(
            (fs::read(real.join("a")).unwrap(), fs::read(real.join("b")).unwrap()),
            (b"a".into(), b"b".into())
        );
        for link in ["one", "two", "new"] {
            assert!(fs::symlink_metadata(links.join(link)).unwrap().is_symlink());
        }
        assert_eq!((fs::read_dir(&real).unwrap().count(), fs::read_dir(&links).unwrap().count()), (2, 4));
        let error = write_atomic(&links.join("round"), b"").unwrap_err().to_string();
        assert!(error.contains("more than 40 links"), "{error}");
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
