//! What to remove: scores, selections, pruners and schedules.
//!
//! ```text
//! score      how important is a weight, a row, a column, a block?           score::*
//! select     how many go, and which: threshold, exactly k, per row, global  Selection
//! prune      both, as a Compressor whose artifact stores no zeros           MagnitudePruner, NmPruner, ..
//! schedule   how much at which step of training                             Schedule
//! ```
//!
//! Two verbs are kept apart: a [`Mask`](crate::Mask) marks weights and makes nothing smaller; a
//! [`SparseTensor`](crate::SparseTensor) leaves them out of storage, and `shrink` out of the network.

mod bracket;
mod count;
pub mod nm;
mod once;
pub mod pruner;
mod pool;
mod rank;
mod report;
mod rows;
pub mod schedule;
pub mod score;
pub mod select;
pub mod structured;

pub use count::PruneCount;
pub use nm::NmPruner;
pub use pruner::{MagnitudePruner, Pruner};
pub use report::PruneReport;
pub use schedule::Schedule;
pub use score::Norm;
pub use select::{Scope, Selection};
pub use structured::StructuredPruner;
