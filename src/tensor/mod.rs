//! What compressed weights are made of.

pub(crate) mod bits;
pub mod mask;
mod norm;
pub mod packed;
mod positions;
pub mod sparse;

pub use mask::Mask;
pub(crate) use norm::root;
pub use packed::PackedInts;
pub use sparse::{CompressedRows, SparseFormat, SparseTensor};

/// A tensor seen as a matrix: the first axis counts rows, all others together are columns.
pub(crate) fn as_matrix(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [rows, rest @ ..] => (*rows, rest.iter().product()),
    }
}
