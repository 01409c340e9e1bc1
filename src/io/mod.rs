//! Files: the crate's own container, and data sets.

pub mod trim;
