//! Checkpoints larger than memory: compressed tensor by tensor, shard by shard, on as many machines as there are.
//!
//! ```text
//! Checkpoint      a .safetensors file, or a folder of shards with its model.safetensors.index.json; headers only
//!   + Recipe      first pattern that matches a name -> keep, prune, int8, int4
//!   = Plan        shards of jobs, one job per tensor; the same on every machine
//! compress_shard  one shard of the plan: maps one tensor at a time, works on blocks of rows with all cores, writes
//!                 `.NAME.tmp`, syncs, renames, then writes NAME.report.json; a shard with its report is not done again
//! merge           checks all reports, writes the index, config.json and the report of the whole
//! ```
//!
//! The bytes depend on the checkpoint and the recipe alone: blocks have a fixed size, every sum is over a block, and blocks
//! are added up in their order. Tensors that the recipe does not name keep every bit.

mod job;
mod plan;
mod prune;
mod quantize;
mod recipe;
mod report;
mod run;
mod source;

pub use job::Job;
pub use plan::{Plan, Shard};
pub use recipe::{Action, Recipe, Rule};
pub use report::{CheckpointReport, OutputReport, ShardReport, TensorReport};
pub use run::{Options, Progress, compress_checkpoint, compress_shard, merge};
pub use source::{Checkpoint, MappedTensor};
