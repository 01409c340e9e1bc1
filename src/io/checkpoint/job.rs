//! One tensor to do: small, serializable, and without a thought for the others.

use super::prune::prune;
use super::quantize::{Integers, quantize};
use super::recipe::Action;
use super::report::{OutputReport, TensorReport};
use super::source::Checkpoint;
use crate::error::{Error, Result};
use crate::io::safetensors::compressed::{Packing, shape_tensor, tells_bits, words};
use crate::io::safetensors::{Dtype, Tensor, TensorView, reason};
use crate::kernel::Pool;

/// What becomes of one tensor of a checkpoint.
///
/// ```no_run
/// use trimnet::io::checkpoint::{Action, Checkpoint, Job};
/// use trimnet::kernel::Pool;
///
/// let checkpoint = Checkpoint::open("model")?;
/// let job = Job::new(&checkpoint, "lm_head.weight", Action::Int4 { group: Some(32) })?;
/// let (tensors, report) = job.run(&checkpoint, &Pool::shared())?;
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "RawJob")]
pub struct Job {
    tensor: String,
    action: Action,
    note: Option<String>,
}

#[derive(serde::Deserialize)]
#[serde(rename = "Job")]
struct RawJob {
    tensor: String,
    action: Action,
    note: Option<String>,
}

impl TryFrom<RawJob> for Job {
    type Error = Error;

    fn try_from(RawJob { tensor, action, note }: RawJob) -> Result<Self> {
        action.check()?;
        Ok(Self { tensor, action, note })
    }
}

/// A name, an element type and a shape.
pub(super) type Planned = (String, Dtype, Vec<usize>);

impl Job {
    /// What `action` means for a tensor: itself, or nothing, with a note that says why.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a sparsity outside `0..=1` and a group of 0; [`Error::Format`] if there is no such
    /// tensor, [`Error::Unsupported`] for groups that do not divide the inputs.
    pub fn new(checkpoint: &Checkpoint, tensor: &str, action: Action) -> Result<Self> {
        action.check()?;
        let (dtype, shape) = checkpoint.shape(tensor)?;
        let job = Self { tensor: tensor.to_string(), action, note: None };
        let note = job.obstacle(dtype, shape);
        if note.is_some() {
            return Ok(Self { action: Action::Keep, note, ..job });
        }
        job.check_groups(shape)?;
        Ok(job)
    }

    /// Why the action cannot be done to such a tensor.
    fn obstacle(&self, dtype: Dtype, shape: &[usize]) -> Option<String> {
        let integers = self.integers();
        if self.action == Action::Keep {
            None
        } else if !dtype.is_float() {
            Some(format!("{dtype} holds no real numbers"))
        } else if shape.len() < 2 || shape.contains(&0) {
            Some(format!("shape {shape:?} is not a matrix"))
        } else if integers.is_some() && (shape.len() != 2 || !self.tensor.ends_with(".weight")) {
            Some("not the weight of a linear layer".to_string())
        } else if let (Some(Integers { bits: 8, packing: Packing::Packed, .. }), &[_, inputs]) =
            (integers, shape)
            && !tells_bits(inputs)
        {
            Some(format!("8 bits of {inputs} inputs packed look like 4 bits"))
        } else {
            None
        }
    }

    fn check_groups(&self, shape: &[usize]) -> Result<()> {
        match (self.integers(), shape) {
            (Some(Integers { group: Some(group), .. }), &[_, inputs]) if !inputs.is_multiple_of(group) => {
                let tensor = &self.tensor;
                let reason = format!("groups of {group} do not divide the {inputs} inputs of {tensor:?}");
                Err(Error::Unsupported { what: "quantizing by groups", reason })
            }
            _ => Ok(()),
        }
    }

    /// The name of the tensor.
    pub fn tensor(&self) -> &str {
        &self.tensor
    }

    /// What is done to it.
    pub fn action(&self) -> Action {
        self.action
    }

    /// The module that a weight belongs to.
    pub(super) fn module(&self) -> &str {
        self.tensor.strip_suffix(".weight").unwrap_or(&self.tensor)
    }

    pub(super) fn integers(&self) -> Option<Integers> {
        match self.action {
            Action::Int8 { group, packing } => Some(Integers { bits: 8, group, packing }),
            Action::Int4 { group } => Some(Integers { bits: 4, group, packing: Packing::Packed }),
            _ => None,
        }
    }

    /// What it writes, known before any byte is read. The order is that of the parts which `stream` speaks of.
    pub(super) fn outputs(&self, dtype: Dtype, shape: &[usize]) -> Vec<Planned> {
        let (Some(integers), &[out, inputs]) = (self.integers(), shape) else {
            return vec![(self.tensor.clone(), dtype, shape.to_vec())];
        };
        let name = |suffix: &str| format!("{}.{suffix}", self.module());
        let scales = (name("weight_scale"), Dtype::F32, vec![out, integers.groups(inputs)]);
        match integers.packing {
            Packing::Plain => vec![(name("weight"), Dtype::I8, shape.to_vec()), scales],
            Packing::Packed => vec![
                (name("weight_packed"), Dtype::I32, vec![out, words(inputs, integers.bits)]),
                scales,
                (name("weight_shape"), Dtype::I64, vec![2]),
            ],
        }
    }

    /// Does it, part by part: `sink(part, bytes)` gets the bytes of each output from the first to the last.
    pub(super) fn stream(
        &self,
        x: TensorView<'_>,
        pool: &Pool,
        sink: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<TensorReport> {
        let outputs = self.outputs(x.dtype(), x.shape());
        let mut sums: Vec<(u64, crc32fast::Hasher)> =
            outputs.iter().map(|_| (0, crc32fast::Hasher::new())).collect();
        let mut counted = |part: usize, bytes: &[u8]| {
            if let Some((length, crc)) = sums.get_mut(part) {
                *length += bytes.len() as u64;
                crc.update(bytes);
            }
            sink(part, bytes)
        };
        let (mut zeros, mut sqnr_db, mut max_error) = (None, None, None);
        match (self.action, self.integers(), x.shape()) {
            (_, Some(integers), &[out, inputs]) => {
                let errors = quantize(integers, x, pool, &mut counted).map_err(|error| self.named(error))?;
                if integers.packing == Packing::Packed {
                    counted(2, shape_tensor(out, inputs)?.bytes())?;
                }
                (sqnr_db, max_error) = (errors.sqnr_db(), Some(errors.max));
            }
            (Action::Prune { sparsity }, ..) => {
                let pruned = prune(sparsity, x, pool, &mut |bytes| counted(0, bytes));
                let pruned = pruned.map_err(|error| self.named(error))?;
                (zeros, sqnr_db) = (Some(pruned.zeros), pruned.errors.sqnr_db());
            }
            _ => x.bytes().chunks(1 << 22).try_for_each(|bytes| counted(0, bytes))?,
        }
        let bytes_after = sums.iter().map(|(length, _)| length).sum();
        let outputs = outputs.into_iter().zip(sums);
        Ok(TensorReport {
            tensor: self.tensor.clone(),
            dtype: x.dtype(),
            shape: x.shape().to_vec(),
            action: self.action,
            note: self.note.clone(),
            bytes_before: x.bytes().len() as u64,
            bytes_after,
            outputs: outputs
                .map(|((name, ..), (_, crc))| OutputReport { name, crc32: crc.finalize() })
                .collect(),
            zeros,
            sqnr_db,
            max_error,
        })
    }

    fn named(&self, error: Error) -> Error {
        Error::Unsupported {
            what: "compressing a tensor",
            reason: format!("{:?}: {}", self.tensor, reason(error)),
        }
    }

    /// Does it in memory: the tensors that take the place of this one, and a report.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for NaN and infinity, and for a job of another checkpoint whose action this tensor does not
    /// allow; [`Error::Format`] if there is no such tensor, [`Error::Io`] if the system refuses to map it.
    pub fn run(&self, checkpoint: &Checkpoint, pool: &Pool) -> Result<(Vec<(String, Tensor)>, TensorReport)> {
        let (dtype, shape) = checkpoint.shape(&self.tensor)?;
        if let Some(reason) = self.obstacle(dtype, shape) {
            let reason = format!("{:?}: {reason}", self.tensor);
            return Err(Error::Unsupported { what: "compressing a tensor", reason });
        }
        self.check_groups(shape)?;
        let mapped = checkpoint.tensor(&self.tensor)?;
        let x = mapped.view()?;
        let outputs = self.outputs(x.dtype(), x.shape());
        let mut parts = vec![Vec::new(); outputs.len()];
        let report = self.stream(x, pool, &mut |part, bytes| {
            if let Some(part) = parts.get_mut(part) {
                part.extend_from_slice(bytes);
            }
            Ok(())
        })?;
        let tensors = outputs
            .into_iter()
            .zip(parts)
            .map(|((name, dtype, shape), bytes)| Ok((name, Tensor::new(dtype, shape, bytes)?)));
        Ok((tensors.collect::<Result<_>>()?, report))
    }
}
