//! Files: the crate's own container, and data sets.

#[cfg(feature = "idx")]
#[cfg_attr(docsrs, doc(cfg(feature = "idx")))]
pub mod idx;
