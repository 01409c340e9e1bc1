//! The whole work, known from headers and recipe alone: the same plan on every machine.

use super::job::{Job, Planned};
use super::recipe::Recipe;
use super::source::{Checkpoint, SINGLE};
use crate::error::{Error, Result};
use crate::io::safetensors::compressed::{QuantizedModules, quantization_config};
use crate::io::safetensors::header::Header;
use crate::io::trim::malformed;

/// Shards of jobs.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Plan {
    fingerprint: String,
    shards: Vec<Shard>,
}

/// One file to write.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Shard {
    file: String,
    jobs: Vec<Job>,
}

impl Shard {
    /// The name of the file.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Its jobs, in the order in which they are done.
    pub fn jobs(&self) -> &[Job] {
        &self.jobs
    }
}

impl Plan {
    /// One job for each tensor, in the order of the files; a shard ends with its source file, or before it would grow
    /// beyond `max_shard_bytes` (a larger tensor has a shard of its own).
    ///
    /// # Errors
    /// [`Error::Empty`] for a checkpoint without tensors; as [`Job::new`]; [`Error::Format`] if what a tensor becomes has
    /// the name of another one.
    pub fn new(checkpoint: &Checkpoint, recipe: &Recipe, max_shard_bytes: u64) -> Result<Self> {
        let mut shards: Vec<Vec<Job>> = Vec::new();
        let mut names = std::collections::BTreeSet::new();
        for file in &checkpoint.files {
            let mut bytes = u64::MAX;
            for entry in &file.header.entries {
                let job = Job::new(checkpoint, &entry.name, recipe.action(&entry.name))?;
                let mut size = 0u64;
                for (name, dtype, shape) in job.outputs(entry.dtype, &entry.shape) {
                    size += dtype.bytes_of(&shape)? as u64;
                    if !names.insert(name.clone()) {
                        return Err(malformed(format!("two tensors would be called {name:?}")));
                    }
                }
                let grown = bytes.saturating_add(size);
                match shards.last_mut() {
                    Some(shard) if grown <= max_shard_bytes => {
                        shard.push(job);
                        bytes = grown;
                    }
                    _ => {
                        shards.push(vec![job]);
                        bytes = size;
                    }
                }
            }
        }
        let count = shards.len();
        if count == 0 {
            return Err(Error::Empty { what: "the checkpoint" });
        }
        let shards = shards.into_iter().enumerate();
        let shards: Vec<Shard> = shards.map(|(i, jobs)| Shard { file: file_name(i, count), jobs }).collect();
        Ok(Self { fingerprint: fingerprint(checkpoint, &shards)?, shards })
    }

    /// What tells this plan from others: of other jobs, or for files of other headers, lengths or times.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The shards.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The header of a shard's file.
    pub(super) fn header(&self, checkpoint: &Checkpoint, shard: &Shard) -> Result<Header> {
        let mut outputs: Vec<Planned> = Vec::new();
        for job in &shard.jobs {
            let (dtype, shape) = checkpoint.shape(job.tensor())?;
            outputs.extend(job.outputs(dtype, shape));
        }
        let format = ("format".to_string(), "pt".to_string());
        Header::plan(outputs, [format].into())
    }

    /// The block `quantization_config` of `config.json`, if anything becomes integers.
    pub(super) fn quantization_config(&self, checkpoint: &Checkpoint) -> Result<Option<serde_json::Value>> {
        let mut ways: Vec<QuantizedModules> = Vec::new();
        let mut kept = Vec::new();
        for job in self.shards.iter().flat_map(|shard| &shard.jobs) {
            let module = job.module().to_string();
            let Some(integers) = job.integers() else {
                let (dtype, shape) = checkpoint.shape(job.tensor())?;
                if shape.len() == 2 && dtype.is_float() && job.tensor().ends_with(".weight") {
                    kept.push(module);
                }
                continue;
            };
            let same = |way: &&mut QuantizedModules| {
                (way.bits, way.group, way.packing) == (integers.bits, integers.group, integers.packing)
            };
            match ways.iter_mut().find(same) {
                Some(way) => way.modules.push(module),
                None => ways.push(QuantizedModules {
                    packing: integers.packing,
                    bits: integers.bits,
                    group: integers.group,
                    modules: vec![module],
                }),
            }
        }
        ways.sort();
        kept.sort();
        Ok((!ways.is_empty()).then(|| quantization_config(&ways, &kept)))
    }
}

/// The name of shard `i` of so many.
fn file_name(i: usize, count: usize) -> String {
    match count {
        1 => SINGLE.to_string(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    }
}

/// Whether a plan could have a shard of this name.
pub(super) fn is_file_name(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let numbers = numbers.and_then(|numbers| numbers.split_once("-of-"));
    let sharded = numbers.and_then(|(i, count)| {
        let (i, count) = (i.parse::<usize>().ok()?, count.parse::<usize>().ok()?);
        Some(file_name(i.checked_sub(1).filter(|&i| i < count)?, count))
    });
    name == SINGLE || sharded.as_deref() == Some(name)
}

/// FNV-1a, 64 bits, of all that the output depends on: enough to notice a change that nobody made to deceive.
fn fingerprint(checkpoint: &Checkpoint, shards: &[Shard]) -> Result<String> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in &checkpoint.files {
        add(file.name.as_bytes());
        add(&file.length.to_le_bytes());
        add(&file.modified.to_le_bytes());
        add(&file.header.bytes()?);
    }
    add(&serde_json::to_vec(shards).map_err(|error| malformed(error.to_string()))?);
    Ok(format!("{hash:016x}"))
}
