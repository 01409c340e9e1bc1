//! What compressed weights are made of.

pub mod mask;
pub mod packed;

pub use mask::Mask;
pub use packed::PackedInts;
