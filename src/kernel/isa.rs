//! Which instructions this processor has: values that cannot be made without asking it.

use std::fmt;
use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use super::aarch64::{DotProd, Neon};
#[cfg(target_arch = "x86_64")]
use super::x86_64::{Avx2, Avx512};

/// A set of instructions that this processor has, with the proof of it inside.
///
/// The proofs (`Avx2`, `Avx512`, ...) have private fields and are made by detection alone, so whoever
/// matches one out of an `Isa` may run the functions compiled for it. Without AVX2, FMA and POPCNT, or
/// without all five parts of AVX-512 that the kernels use, a processor falls to the set below.
///
/// ```
/// use trimnet::kernel::Isa;
///
/// let best = Isa::best();
/// assert!(Isa::available().contains(&best));
/// assert!(Isa::available().contains(&Isa::Scalar));
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust: the definition of every kernel, and what runs where nothing better is found.
    Scalar,
    /// 256-bit vectors: AVX2 and FMA, with POPCNT.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// 512-bit vectors with byte dot products: AVX-512 F, BW, DQ, VL and VNNI (with AVX2 and FMA).
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// 128-bit vectors of every 64-bit Arm.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// NEON with byte dot products (`FEAT_DotProd`).
    #[cfg(target_arch = "aarch64")]
    DotProd(DotProd),
}

impl Isa {
    /// The fastest set of this processor; asked once, then remembered.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().copied().unwrap_or(Self::Scalar))
    }

    /// Every set of this processor, the plain one first and the fastest last: what tests sweep.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::detect().map(Self::Avx2));
            all.extend(Avx512::detect().map(Self::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.extend(Neon::detect().map(Self::Neon));
            all.extend(DotProd::detect().map(Self::DotProd));
        }
        all
    }

    /// How this processor reads a long stream fastest.
    pub(crate) fn streams(self) -> Streams {
        match self {
            #[cfg(target_arch = "x86_64")]
            // AVX-VNNI tells the generations apart: Zen 4 has AVX-512 without it.
            Self::Avx512(_) if !is_x86_feature_detected!("avxvnni") => Streams::Foreseen,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Streams::Asked,
            _ => Streams::Turns,
        }
    }

    /// Whether lanes of a vector can be picked in one instruction.
    pub(crate) fn compresses(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => true,
            _ => false,
        }
    }

    /// The set for loops that look numbers up in tables: compiled for AVX-512, each look-up of sixteen is a gather, which took up to
    /// twice as long as sixteen loads (Zen 5).
    pub(crate) fn for_tables(self) -> Self {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(cpu) => Self::Avx2(cpu.narrow()),
            other => other,
        }
    }

    /// A short name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Self::DotProd(_) => "neon-dotprod",
        }
    }
}

/// How a processor reads one long stream of numbers fastest, measured on three generations of one maker; others are taken for
/// the one whose instructions they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streams {
    /// At several places in turns where it is mostly read, and asked for ahead where as much is written (Zen 3).
    Turns,
    /// Unasked: pruning took up to three quarters longer otherwise. In order, but for quantizing, which is in turns (Zen 4).
    Foreseen,
    /// In order and asked for ahead: dropout in `f64` took about four times as long without, and two threads that quantize in turns
    /// twice as long (Zen 5).
    Asked,
}

impl Default for Isa {
    fn default() -> Self {
        Self::best()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_set_is_always_there_and_the_best_comes_last() {
        let all = Isa::available();
        assert_eq!(all.first(), Some(&Isa::Scalar));
        assert_eq!(all.last(), Some(&Isa::best()));
    }

    #[test]
    fn names_differ() {
        let mut names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
        names.dedup();
        assert_eq!(names.len(), Isa::available().len());
    }
}
