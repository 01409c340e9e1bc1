//! What compressed weights are made of.

pub mod mask;

pub use mask::Mask;
