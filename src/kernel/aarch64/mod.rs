//! 64-bit Arm: NEON, and its byte dot products where the processor has them.
//!
//! Written like the others, but its authors had no such machine: it was compiled, and passed all unit
//! tests of the crate without optional features under emulation (rustc 1.96, qemu 7.2). Its speed was never measured.

mod int8;
mod real;

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
