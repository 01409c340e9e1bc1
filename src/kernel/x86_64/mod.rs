//! x86-64: AVX2 with FMA, and AVX-512 with VNNI.
//!
//! A function for an instruction set is a method of its proof, and calls a `#[target_feature]`
//! function: the one unsafe step, justified by the existence of `self`.

use crate::kernel::elementwise::Work;
use crate::kernel::{Isa, Streams, fetch_ahead};

mod below;
mod between;
mod fours;
mod guess;
mod int8;
mod int8_avx2;
mod live;
mod pack;
mod palette;
mod philox;
mod real;
mod row;
mod sparse;
mod sparse_codes;
mod stream;
mod tail;
mod two_of_four;

/// Proof that this processor has AVX2, FMA and POPCNT, which comes with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("popcnt"))
        .then_some(Self(()))
    }
}

/// Proof that this processor has AVX-512 F, BW, DQ, VL and VNNI, and AVX2, FMA and POPCNT as well.
///
/// Functions for it carry
/// `#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        (Avx2::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni"))
        .then_some(Self(()))
    }
}

impl Avx2 {
    /// Runs `work` compiled for this instruction set.
    pub(super) fn with<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx2,fma")]
        fn with<W: Work>(work: W) -> W::Output {
            work.run()
        }

        // SAFETY: `self` proves the instructions.
        unsafe { with(work) }
    }
}

impl Avx512 {
    /// The smaller set, which every such processor has.
    pub(in crate::kernel) fn narrow(self) -> Avx2 {
        Avx2(())
    }

    /// Runs `work` compiled for this instruction set.
    pub(super) fn with<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn with<W: Work>(work: W) -> W::Output {
            work.run()
        }

        // SAFETY: `self` proves the instructions.
        unsafe { with(work) }
    }

    /// Whether this processor reads faster if it is asked ahead.
    fn asked(self) -> bool {
        Isa::Avx512(self).streams() == Streams::Asked
    }
}

/// Asks for what lies one page behind a vector that is read, where the processor's own guess ends: a hint, which
/// changes nothing but time.
#[inline(always)]
fn ahead<T, const N: usize>(vector: &[T; N]) {
    fetch_ahead(vector, 4096);
}
