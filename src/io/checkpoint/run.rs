//! Doing the work: one shard, all shards, and what comes last.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::plan::{Plan, Shard, is_file_name};
use super::recipe::Recipe;
use super::report::{CheckpointReport, ShardReport, TensorReport};
use super::source::{Checkpoint, INDEX};
use crate::error::{Error, Result};
use crate::io::atomic::{remove, remove_leftovers, replace, write_atomic};
use crate::io::trim::{malformed, named, read_file};
use crate::kernel::Pool;

/// How to work. Nothing here changes a byte of a tensor.
#[derive(Clone, Debug)]
pub struct Options {
    /// A shard ends before it would grow beyond this.
    pub max_shard_bytes: u64,
    /// Who works.
    pub pool: Pool,
}

impl Default for Options {
    /// Shards of 5 GB, all cores.
    fn default() -> Self {
        Self { max_shard_bytes: 5_000_000_000, pool: Pool::shared() }
    }
}

/// What has just been done.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// A tensor; it counts when its shard is done.
    Tensor(&'a TensorReport),
    /// A shard.
    Shard {
        /// What is in it.
        report: &'a ShardReport,
        /// Whether an earlier run had done it.
        found: bool,
    },
}

/// Compresses a whole checkpoint into a folder: shards that an earlier run of the same plan has finished are kept, the
/// others are done, then [`merge`] finishes. Peak memory is that of the largest tensor, mapped, and a few megabytes for each
/// thread.
///
/// # Errors
/// [`Error::Unsupported`] if both are the same folder, and for NaN or infinity in a tensor that is to be compressed;
/// [`Error::Format`] for files that are not well-formed; [`Error::Io`] if the system refuses.
pub fn compress_checkpoint(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    recipe: &Recipe,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<CheckpointReport> {
    let checkpoint = Checkpoint::open(input)?;
    let plan = Plan::new(&checkpoint, recipe, options.max_shard_bytes)?;
    for shard in 0..plan.shards().len() {
        compress_shard(&checkpoint, &plan, shard, output.as_ref(), &options.pool, progress)?;
    }
    merge(&checkpoint, &plan, output)
}

/// Does one shard of a plan, unless it is done already.
///
/// # Errors
/// [`Error::OutOfRange`] if the plan has no such shard; otherwise as [`compress_checkpoint`].
pub fn compress_shard(
    checkpoint: &Checkpoint,
    plan: &Plan,
    shard: usize,
    output: impl AsRef<Path>,
    pool: &Pool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<ShardReport> {
    let output = output.as_ref();
    let wanted = plan.shards().get(shard).ok_or(Error::OutOfRange {
        name: "shard",
        value: shard as f64,
        range: "below the number of shards of the plan",
    })?;
    let failed = |source| Error::Io { path: output.to_path_buf(), source };
    fs::create_dir_all(output).map_err(failed)?;
    let here = if checkpoint.folder().as_os_str().is_empty() { Path::new(".") } else { checkpoint.folder() };
    if fs::canonicalize(output).map_err(failed)? == fs::canonicalize(here).map_err(failed)? {
        let reason = format!("{} is the folder of the checkpoint itself", output.display());
        return Err(Error::Unsupported { what: "compressing a checkpoint", reason });
    }
    let path = output.join(wanted.file());
    if let Some(report) = finished(plan, wanted, output) {
        progress(Progress::Shard { report: &report, found: true });
        return Ok(report);
    }
    remove_leftovers(&path)?;
    // A report of another plan must not vouch for this shard, should nobody come to write its own.
    remove(&report_path(output, wanted))?;
    let (bytes, tensors) = replace(&path, |file, temporary| {
        write_shard(checkpoint, plan, wanted, pool, (file, temporary), progress)
    })?;
    let file = wanted.file().to_string();
    let report = ShardReport { file, fingerprint: plan.fingerprint().to_string(), bytes, tensors };
    write_json(&report_path(output, wanted), &report)?;
    progress(Progress::Shard { report: &report, found: false });
    Ok(report)
}

fn write_shard(
    checkpoint: &Checkpoint,
    plan: &Plan,
    shard: &Shard,
    pool: &Pool,
    (file, path): (&mut File, &Path),
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(u64, Vec<TensorReport>)> {
    let failed = |source| Error::Io { path: path.to_path_buf(), source };
    let header = plan.header(checkpoint, shard)?;
    let bytes = (header.data + header.data_len()) as u64;
    let head = header.bytes()?;
    file.set_len(bytes).and_then(|()| file.write_all(&head)).map_err(failed)?;
    let starts: BTreeMap<&str, u64> =
        header.entries.iter().map(|e| (e.name.as_str(), (header.data + e.start) as u64)).collect();
    let mut reports = Vec::with_capacity(shard.jobs().len());
    for job in shard.jobs() {
        let mapped = checkpoint.tensor(job.tensor())?;
        let x = mapped.view()?;
        let outputs = job.outputs(x.dtype(), x.shape());
        let mut places: Vec<u64> =
            outputs.iter().map(|(name, ..)| starts.get(name.as_str()).copied().unwrap_or(bytes)).collect();
        let report = job.stream(x, pool, &mut |part, bytes| {
            let Some(place) = places.get_mut(part) else { return Ok(()) };
            file.seek(SeekFrom::Start(*place)).and_then(|_| file.write_all(bytes)).map_err(failed)?;
            *place += bytes.len() as u64;
            Ok(())
        })?;
        progress(Progress::Tensor(&report));
        reports.push(report);
    }
    Ok((bytes, reports))
}

const REPORT: &str = ".report.json";

fn report_path(output: &Path, shard: &Shard) -> PathBuf {
    output.join(format!("{}{REPORT}", shard.file()))
}

/// The report of a shard that this plan has finished: written after the shard, so it vouches for it.
fn finished(plan: &Plan, shard: &Shard, output: &Path) -> Option<ShardReport> {
    let json = fs::read(report_path(output, shard)).ok()?;
    let report: ShardReport = serde_json::from_slice(&json).ok()?;
    let length = fs::metadata(output.join(shard.file())).ok()?.len();
    (report.fingerprint == plan.fingerprint() && report.file == shard.file() && report.bytes == length)
        .then_some(report)
}

/// The last step, when all shards are there: writes `model.safetensors.index.json` if they are several, `config.json` if the
/// checkpoint has one, with the block `quantization_config` in it if anything became integers, and `compression.json`, the
/// report that is returned. What other plans left in the folder could be read in the place of the shards: their shards
/// that have a report go, and so does an index where there is one shard only.
///
/// # Errors
/// [`Error::Format`] if a shard is missing or of another plan; [`Error::Io`] if the system refuses.
pub fn merge(checkpoint: &Checkpoint, plan: &Plan, output: impl AsRef<Path>) -> Result<CheckpointReport> {
    let output = output.as_ref();
    let mut report =
        CheckpointReport { bytes_before: 0, bytes_after: 0, actions: BTreeMap::new(), shards: Vec::new() };
    let mut weights: BTreeMap<&str, &str> = BTreeMap::new();
    for shard in plan.shards() {
        let done = finished(plan, shard, output).ok_or_else(|| {
            let reason = "it is missing, or not finished, or of another checkpoint or recipe".to_string();
            Error::Format { path: output.join(shard.file()), reason }
        })?;
        for tensor in &done.tensors {
            report.bytes_before += tensor.bytes_before;
            report.bytes_after += tensor.bytes_after;
            *report.actions.entry(tensor.action.name().to_string()).or_default() += 1;
        }
        report.shards.push(done);
    }
    for shard in &report.shards {
        let outputs = shard.tensors.iter().flat_map(|tensor| &tensor.outputs);
        weights.extend(outputs.map(|output| (output.name.as_str(), shard.file.as_str())));
    }
    if report.shards.len() > 1 {
        let index = json!({"metadata": {"total_size": report.bytes_after}, "weight_map": weights});
        write_json(&output.join(INDEX), &index)?;
    } else {
        remove(&output.join(INDEX))?;
    }
    remove_other_plans(plan, output)?;
    let config = checkpoint.folder().join("config.json");
    if config.exists() {
        let parsed =
            serde_json::from_slice(&read_file(&config)?).map_err(|error| malformed(error.to_string()));
        let mut settings: Value = named(parsed, &config)?;
        if let (Some(settings), Some(block)) =
            (settings.as_object_mut(), plan.quantization_config(checkpoint)?)
        {
            settings.insert("quantization_config".to_string(), block);
        }
        write_json(&output.join("config.json"), &settings)?;
    }
    write_json(&output.join("compression.json"), &report)?;
    Ok(report)
}

/// Removes shards that the plan does not have, and their reports. A file without a report is not known to be ours.
fn remove_other_plans(plan: &Plan, output: &Path) -> Result<()> {
    let failed = |source| Error::Io { path: output.to_path_buf(), source };
    for entry in fs::read_dir(output).map_err(failed)? {
        let report = entry.map_err(failed)?.file_name();
        let Some(file) = report.to_str().and_then(|name| name.strip_suffix(REPORT)) else { continue };
        if !is_file_name(file) || plan.shards().iter().any(|shard| shard.file() == file) {
            continue;
        }
        let json = fs::read(output.join(&report)).map_err(failed)?;
        if serde_json::from_slice::<ShardReport>(&json).is_ok_and(|report| report.file == file) {
            remove(&output.join(file))?;
            remove(&output.join(&report))?;
        }
    }
    Ok(())
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(value).map_err(|error| malformed(error.to_string()))?;
    write_atomic(path, &json)
}
