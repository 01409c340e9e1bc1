//! Sparse weights times dense rows: `y[b, i] = activation(bias[i] + sum over j of w[i, j] * x[b, j])`, zeros left out.
//!
//! | layout | for | one row of a batch | many rows |
//! |---|---|---|---|
//! | [`SparseRows`] | zeros anywhere | compressed rows; with AVX-512, windows of 32 columns as well | one weight times a vector of batch rows |
//! | [`SparseBlocks`] | 16 outputs share which inputs they use | a vector of weights times one input | the same, 16 rows at a time |
//!
//! "Zeros left out" is more than speed: an infinite input does not touch an output whose weight for it is zero, where a
//! dense product would give NaN.

mod blocks;
mod csr;
mod lanes;
mod real;
mod rows;
mod windows;

#[cfg(test)]
mod tests;

pub use blocks::SparseBlocks;
pub use real::{Epilogue, SparseReal, SparseScratch};
pub use rows::SparseRows;

// For the folders of the instruction sets.
pub(in crate::kernel) use blocks::{Lanes, Strips};
pub(in crate::kernel) use csr::{Column, Csr};
pub(in crate::kernel) use lanes::{LINE, Line};
pub(in crate::kernel) use rows::many;
pub(in crate::kernel) use windows::{Slices, WINDOW, slices};
