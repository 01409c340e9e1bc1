//! The header of a safetensors file: what is in it, and where.
//!
//! ```text
//! u64 n, little-endian    length of the header
//! n bytes                 JSON: {"__metadata__": {text: text}, name: {"dtype", "shape", "data_offsets": [a, b]}, ..}
//! the rest                data; tensor bytes a..b, counted from here
//! ```
//!
//! A reader that trusts nothing: names are unique, shapes agree with lengths, and the tensors cover the data without
//! overlap, gap or remainder, so that no byte has two meanings and none has a hidden one. A writer that repeats
//! itself: the largest elements first, then by name, the order of other writers, so that every tensor is aligned;
//! metadata by key; the header padded with spaces to a multiple of 8.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::dtype::Dtype;
use super::reason;
use crate::error::Result;
use crate::io::trim::malformed;

/// Longer headers are refused, as by other readers.
const LONGEST: u64 = 100_000_000;

const METADATA: &str = "__metadata__";

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// First byte within the data.
    pub(crate) start: usize,
    /// Number of bytes.
    pub(crate) len: usize,
}

/// All of it, tensors in the order of their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) entries: Vec<Entry>,
    /// Where the data begin in the file.
    pub(crate) data: usize,
}

impl Header {
    /// How long the header is, from the first eight bytes of a file of `file` bytes.
    pub(crate) fn length(first: [u8; 8], file: u64) -> Result<usize> {
        let length = u64::from_le_bytes(first);
        if length > LONGEST {
            return Err(malformed(format!("a header of {length} bytes, at most {LONGEST} are allowed")));
        }
        if length > file.saturating_sub(8) {
            return Err(malformed(format!("a header of {length} bytes in a file of {file}")));
        }
        Ok(length as usize)
    }

    /// Reads the JSON of a file that has `data` bytes after it.
    pub(crate) fn parse(json: &[u8], data: u64) -> Result<Self> {
        let text = std::str::from_utf8(json)
            .map_err(|error| malformed(format!("the header is not UTF-8: {error}")))?;
        let raw: RawHeader = serde_json::from_str(text)
            .map_err(|error| malformed(format!("the header is not what it should be: {error}")))?;
        let mut names = BTreeSet::new();
        let mut entries = Vec::with_capacity(raw.tensors.len());
        for (name, raw) in &raw.tensors {
            if !names.insert(name) {
                return Err(malformed(format!("two tensors are called {name:?}")));
            }
            entries.push(entry(name, raw, data)?);
        }
        entries.sort_by(|a, b| (a.start, a.len, &a.name).cmp(&(b.start, b.len, &b.name)));
        let mut end = 0;
        let mut before = "the header";
        for entry in &entries {
            if entry.start < end {
                return Err(malformed(format!("tensor {:?} overlaps {before:?}", entry.name)));
            }
            if entry.start > end {
                return Err(malformed(format!(
                    "bytes {end}..{} of the data, before tensor {:?}, belong to no tensor",
                    entry.start, entry.name
                )));
            }
            (end, before) = (entry.start + entry.len, &entry.name);
        }
        if end as u64 != data {
            return Err(malformed(format!("{data} bytes of data, the tensors cover {end}")));
        }
        Ok(Self { metadata: raw.metadata, entries, data: 8 + json.len() })
    }

    /// The header of a file of these tensors, in the order in which they are to be written.
    pub(crate) fn plan(
        mut tensors: Vec<(String, Dtype, Vec<usize>)>,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self> {
        tensors.sort_by(|a, b| b.1.bits().cmp(&a.1.bits()).then_with(|| a.0.cmp(&b.0)));
        let mut names = BTreeSet::new();
        let mut entries = Vec::with_capacity(tensors.len());
        let mut start = 0usize;
        for (name, dtype, shape) in tensors {
            if name == METADATA || !names.insert(name.clone()) {
                return Err(malformed(format!("a tensor cannot be called {name:?}, the name is taken")));
            }
            let len = dtype.bytes_of(&shape)?;
            entries.push(Entry { name, dtype, shape, start, len });
            start = start.checked_add(len).ok_or_else(|| malformed("more bytes than a file can have"))?;
        }
        let mut header = Self { metadata, entries, data: 0 };
        header.data = header.bytes()?.len();
        Ok(header)
    }

    /// The bytes of the file before the data.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec(self).map_err(|error| malformed(error.to_string()))?;
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(&json);
        Ok(bytes)
    }

    /// Bytes of all tensors.
    pub(crate) fn data_len(&self) -> usize {
        self.entries.last().map_or(0, |entry| entry.start + entry.len)
    }
}

fn entry(name: &str, raw: &RawEntry, data: u64) -> Result<Entry> {
    let wrong = |reason: String| malformed(format!("tensor {name:?}: {reason}"));
    let dtype = Dtype::of_name(&raw.dtype)
        .ok_or_else(|| wrong(format!("the element type {:?} is unknown", raw.dtype)))?;
    let [start, end] = raw.data_offsets;
    if start > end || end > data {
        return Err(wrong(format!("bytes {start}..{end} do not lie within the data, which have {data}")));
    }
    let shape: Option<Vec<usize>> = raw.shape.iter().map(|&length| usize::try_from(length).ok()).collect();
    let shape = shape.ok_or_else(|| wrong(format!("shape {:?} cannot be addressed", raw.shape)))?;
    let len = dtype.bytes_of(&shape).map_err(|error| wrong(reason(error)))?;
    if len as u64 != end - start {
        return Err(wrong(format!(
            "shape {shape:?} of {dtype} has {len} bytes, the offsets say {}",
            end - start
        )));
    }
    Ok(Entry { name: name.to_string(), dtype, shape, start: start as usize, len })
}

/// What the JSON says, before it is believed.
#[derive(Default)]
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawEntry)>,
}

#[derive(Serialize, Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        // `null` stands for none in files of some writers.
                        let more = map.next_value::<Option<BTreeMap<String, String>>>()?;
                        header.metadata.extend(more.unwrap_or_default());
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

impl Serialize for Header {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, &self.metadata)?;
        }
        for entry in &self.entries {
            let raw = RawEntry {
                dtype: entry.dtype.name().to_string(),
                shape: entry.shape.iter().map(|&length| length as u64).collect(),
                data_offsets: [entry.start as u64, (entry.start + entry.len) as u64],
            };
            map.serialize_entry(&entry.name, &raw)?;
        }
        map.end()
    }
}
