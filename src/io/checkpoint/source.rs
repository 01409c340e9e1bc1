//! A checkpoint on disk: headers in memory, tensors mapped one at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::safetensors::header::{Entry, Header};
use crate::io::safetensors::{Dtype, TensorView};
use crate::io::trim::{malformed, named, read_file};
use crate::kernel::map::FileMap;

/// The name of a checkpoint of one file.
pub(super) const SINGLE: &str = "model.safetensors";
/// The name of the list of shards.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A `.safetensors` file, or a folder with one or with shards and their index. Opening reads headers only.
///
/// Nobody may change the files while a checkpoint of them is in use; see [`FileMap`].
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    pub(super) files: Vec<SourceFile>,
    places: BTreeMap<String, (usize, usize)>,
}

/// One file of it.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) name: String,
    pub(super) header: Header,
    pub(super) length: u64,
    /// Seconds since 1970 when it was last written, 0 where the system does not say.
    pub(super) modified: u64,
}

/// A tensor whose bytes stay in the file.
#[derive(Debug)]
pub struct MappedTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    map: FileMap,
}

impl MappedTensor {
    /// The tensor.
    ///
    /// # Errors
    /// None: the header was checked.
    pub fn view(&self) -> Result<TensorView<'_>> {
        TensorView::new(self.dtype, &self.shape, self.map.bytes())
    }
}

impl Checkpoint {
    /// Reads the headers of a file, or of all files of a folder.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses; [`Error::Format`] for a file that is not well-formed, and an index that names
    /// files elsewhere, or tensors other than those in the files.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| Error::Format {
                path: path.to_path_buf(),
                reason: "the path names no file".to_string(),
            })?;
            let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
            return Self::of_files(folder, &[name.to_string()], None);
        }
        let index = path.join(INDEX);
        if !index.exists() {
            return Self::of_files(path.to_path_buf(), &[SINGLE.to_string()], None);
        }
        let weights = named(read_index(&read_file(&index)?), &index)?;
        let mut files: Vec<String> = weights.values().cloned().collect();
        files.sort();
        files.dedup();
        Self::of_files(path.to_path_buf(), &files, Some(&weights)).map_err(|error| match error {
            // What is wrong with a shard names the shard already.
            Error::Format { path, reason } if path.as_os_str().is_empty() => {
                Error::Format { path: index, reason }
            }
            other => other,
        })
    }

    fn of_files(folder: PathBuf, names: &[String], index: Option<&BTreeMap<String, String>>) -> Result<Self> {
        let mut files = Vec::with_capacity(names.len());
        let mut places = BTreeMap::new();
        for (i, name) in names.iter().enumerate() {
            let file = SourceFile::open(&folder, name)?;
            for (j, entry) in file.header.entries.iter().enumerate() {
                if index.is_some_and(|index| index.get(&entry.name) != Some(name)) {
                    return Err(malformed(format!(
                        "tensor {:?} is in {name}, the index does not say so",
                        entry.name
                    )));
                }
                places.insert(entry.name.clone(), (i, j));
            }
            files.push(file);
        }
        if let Some(missing) = index.and_then(|index| index.keys().find(|&name| !places.contains_key(name))) {
            return Err(malformed(format!("tensor {missing:?} of the index is in none of its files")));
        }
        Ok(Self { folder, files, places })
    }

    /// The folder of the files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Element type and shape of a tensor.
    ///
    /// # Errors
    /// [`Error::Format`] if there is none of this name.
    pub fn shape(&self, name: &str) -> Result<(Dtype, &[usize])> {
        let (_, entry) = self.place(name)?;
        Ok((entry.dtype, &entry.shape))
    }

    /// Maps a tensor.
    ///
    /// # Errors
    /// [`Error::Format`] if there is none of this name, [`Error::Io`] if the system refuses.
    pub fn tensor(&self, name: &str) -> Result<MappedTensor> {
        let (file, entry) = self.place(name)?;
        let path = self.folder.join(&file.name);
        let map = File::open(&path)
            .and_then(|opened| FileMap::new(&opened, (file.header.data + entry.start) as u64, entry.len))
            .map_err(|source| Error::Io { path, source })?;
        Ok(MappedTensor { dtype: entry.dtype, shape: entry.shape.clone(), map })
    }

    fn place(&self, name: &str) -> Result<(&SourceFile, &Entry)> {
        let place = self.places.get(name).and_then(|&(file, entry)| {
            let file = self.files.get(file)?;
            Some((file, file.header.entries.get(entry)?))
        });
        place.ok_or_else(|| malformed(format!("the checkpoint has no tensor {name:?}")))
    }
}

impl SourceFile {
    fn open(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let failed = |source| Error::Io { path: path.clone(), source };
        let mut file = File::open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let length = metadata.len();
        let modified =
            metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let modified = modified.map_or(0, |since| since.as_secs());
        let mut first = [0; 8];
        if length < 8 {
            let error = malformed(format!("{length} bytes are too few for the length of a header"));
            return named(Err(error), &path);
        }
        file.read_exact(&mut first).map_err(failed)?;
        let mut json = vec![0; named(Header::length(first, length), &path)?];
        file.read_exact(&mut json).map_err(failed)?;
        let header = named(Header::parse(&json, length - 8 - json.len() as u64), &path)?;
        Ok(Self { name: name.to_string(), header, length, modified })
    }
}

#[derive(serde::Deserialize)]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

/// The file of every tensor.
fn read_index(bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    let index: RawIndex =
        serde_json::from_slice(bytes).map_err(|error| malformed(format!("not an index: {error}")))?;
    for file in index.weight_map.values() {
        let mut parts = Path::new(file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(malformed(format!("{file:?} is not the name of a file of this folder")));
        }
    }
    Ok(index.weight_map)
}
