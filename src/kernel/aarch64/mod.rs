//! 64-bit Arm: NEON, and its byte dot products where the processor has them.
//!
//! Written like the others and never run by its authors, who had no such machine: kept small enough
//! to be right by inspection, and swept by the same tests wherever someone runs them.

/// Proof that this processor has NEON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// Proof that this processor has NEON and `FEAT_DotProd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DotProd(());

impl DotProd {
    pub(super) fn detect() -> Option<Self> {
        (Neon::detect().is_some() && std::arch::is_aarch64_feature_detected!("dotprod")).then_some(Self(()))
    }
}
