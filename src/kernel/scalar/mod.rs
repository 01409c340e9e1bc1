//! The definition of every kernel, in plain Rust: what the others must equal.

pub(super) mod int8;
pub(super) mod real;
