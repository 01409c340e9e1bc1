//! The numbers that products, elementwise loops and selections compute with.

use super::Isa;
use super::block::Job;
use super::scalar;

/// The numbers that the kernels multiply: `f32` and `f64`.
pub trait Real:
    sealed::Sealed
    + Default
    + PartialOrd
    + Send
    + Sync
    + std::ops::Add<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + 'static
{
    #[doc(hidden)]
    const INFINITY: Self;

    #[doc(hidden)]
    const NEG_INFINITY: Self;

    /// How many lie on a cache line.
    #[doc(hidden)]
    const LINE: usize = 64 / size_of::<Self>();

    /// The nearest value of this type.
    #[doc(hidden)]
    fn of_i32(x: i32) -> Self;

    /// `self * factor + term`, rounded once.
    #[doc(hidden)]
    fn fused(self, factor: Self, term: Self) -> Self;

    /// The nearest integer, ties to even, of a number of magnitude below 2^22.
    #[doc(hidden)]
    fn round_small(self) -> i32;

    /// Appends those of `x`, or of their magnitudes, in the closed interval `between` to `inside`, in order; returns how
    /// many are below it, and how many of the last of `x` are left to the caller.
    #[doc(hidden)]
    fn collect_between(
        isa: Isa,
        x: &[Self],
        magnitude: bool,
        between: (Self, Self),
        inside: &mut Vec<Self>,
    ) -> (usize, usize);

    /// Writes groups of four without the `surplus` lowest magnitudes of each, of equal ones the first; NaN ranks as
    /// infinity. Returns how many numbers that were from the beginning of `x` (the rest is left to the caller), and how
    /// many of them are NaN.
    #[doc(hidden)]
    fn keep_of_fours(isa: Isa, x: &[Self], out: &mut [Self], surplus: u32) -> (usize, usize);

    /// Rows of the register tile.
    #[doc(hidden)]
    fn tile_rows(isa: Isa) -> usize;

    /// Multiplies a block of rows.
    #[doc(hidden)]
    fn run(isa: Isa, job: Job<'_, '_, Self>);
}

mod sealed {
    use crate::kernel::live::Element;
    use crate::kernel::pack::Plain;

    #[expect(private_bounds)]
    pub trait Sealed: Plain + Element {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

macro_rules! real {
    ($t:ty, $round:literal, $run:ident, $between:ident, $fours:ident, avx2: $avx2_rows:literal, avx512: $avx512_rows:literal) => {
        impl Real for $t {
            const INFINITY: Self = Self::INFINITY;
            const NEG_INFINITY: Self = Self::NEG_INFINITY;

            #[inline(always)]
            fn of_i32(x: i32) -> Self {
                x as Self
            }

            #[inline(always)]
            fn fused(self, factor: Self, term: Self) -> Self {
                self.mul_add(factor, term)
            }

            #[inline(always)]
            fn round_small(self) -> i32 {
                // In the binade of this number neighbours are 1 apart, so the addition rounds, and the low bits
                // of the sum are the integer.
                let round: Self = $round;
                (self + round).to_bits().wrapping_sub(round.to_bits()) as i32
            }

            fn collect_between(
                isa: Isa,
                x: &[Self],
                magnitude: bool,
                between: (Self, Self),
                inside: &mut Vec<Self>,
            ) -> (usize, usize) {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(cpu) => cpu.$between(x, magnitude, between, inside),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(cpu) => cpu.$between(x, magnitude, between, inside),
                    _ => {
                        let _ = (magnitude, between, inside);
                        (0, x.len())
                    }
                }
            }

            fn keep_of_fours(isa: Isa, x: &[Self], out: &mut [Self], surplus: u32) -> (usize, usize) {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(cpu) => cpu.$fours(x, out, surplus),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(cpu) => cpu.$fours(x, out, surplus),
                    _ => {
                        let _ = (x, out, surplus);
                        (0, 0)
                    }
                }
            }

            fn tile_rows(isa: Isa) -> usize {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(_) => $avx2_rows,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(_) => $avx512_rows,
                    _ => 4,
                }
            }

            fn run(isa: Isa, job: Job<'_, '_, Self>) {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(cpu) => cpu.$run(job),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(cpu) => cpu.$run(job),
                    #[cfg(target_arch = "aarch64")]
                    Isa::Neon(cpu) => cpu.run_real(job),
                    #[cfg(target_arch = "aarch64")]
                    Isa::DotProd(cpu) => cpu.run_real(job),
                    Isa::Scalar => job.run(scalar::real::tile),
                }
            }
        }
    };
}

real!(f32, 12_582_912.0, run_f32, between_f32, fours_f32, avx2: 6, avx512: 14);
real!(f64, 6_755_399_441_055_744.0, run_f64, between_f64, fours_f64, avx2: 6, avx512: 6);
