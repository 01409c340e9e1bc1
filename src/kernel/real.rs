//! The numbers that products, elementwise loops and selections compute with.

use super::Isa;
use super::block::Job;
use super::guess::{Bracket, Guessed};
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

    /// Towards 0, within `0..=last` for `last <= 2^30`; NaN gives 0. Vectors do it, which they do not for `as i32`.
    #[doc(hidden)]
    fn index(self, last: i32) -> i32;

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

    /// As [`drop_guessed`](super::guess::drop_guessed). Returns how many numbers that were from the beginning of `x` (the rest is left
    /// to the caller).
    #[doc(hidden)]
    fn drop_guessed(
        isa: Isa,
        x: &[Self],
        out: &mut [Self],
        bracket: Bracket<Self>,
        first: u32,
        guessed: &mut Guessed<Self>,
    ) -> usize;

    /// How many of the `bounds`, which ascend and the last of which is infinity, are below each of `x`; NaN is above none. Returns how many
    /// numbers that were from the beginning of `x` (the rest is left to the caller).
    #[doc(hidden)]
    fn count_below(isa: Isa, x: &[Self], bounds: &[Self; 16], counts: &mut [u8]) -> usize;

    /// Writes groups of four without the `surplus` lowest magnitudes of each, of equal ones the first; NaN ranks above
    /// infinity. Returns how many numbers that were from the beginning of `x` (the rest is left to the caller), and how
    /// many of them are NaN.
    #[doc(hidden)]
    fn keep_of_fours(isa: Isa, x: &[Self], out: &mut [Self], surplus: u32) -> (usize, usize);

    /// Rows of the register tile.
    #[doc(hidden)]
    fn tile_rows(isa: Isa) -> usize;

    /// Panels that one row is multiplied by together: the sums of a panel alone would wait for each other.
    #[doc(hidden)]
    fn row_panels(isa: Isa) -> usize;

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
    ($t:ty, $round:literal, $run:ident, $between:ident, $guess:ident, $below:ident, $fours:ident,
     avx2: $avx2_rows:literal, avx512: $avx512_rows:literal, row_panels: $row_panels:literal) => {
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

            #[inline(always)]
            fn index(self, last: i32) -> i32 {
                let top = last.min(1 << 30) as Self;
                let x = if self > 0.0 { self } else { 0.0 };
                let x = if x < top { x } else { top };
                // SAFETY: no NaN is above 0, and 0 <= x <= 2^30. The type may round `last` up.
                unsafe { x.to_int_unchecked::<i32>() }.min(last)
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

            fn drop_guessed(
                isa: Isa,
                x: &[Self],
                out: &mut [Self],
                bracket: Bracket<Self>,
                first: u32,
                guessed: &mut Guessed<Self>,
            ) -> usize {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(cpu) => cpu.$guess(x, out, bracket, first, guessed),
                    _ => {
                        let _ = (x, out, bracket, first, guessed);
                        0
                    }
                }
            }

            fn count_below(isa: Isa, x: &[Self], bounds: &[Self; 16], counts: &mut [u8]) -> usize {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(cpu) => cpu.$below(x, bounds, counts),
                    _ => {
                        let _ = (x, bounds, counts);
                        0
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

            fn row_panels(isa: Isa) -> usize {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(_) => $row_panels,
                    _ => 1,
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

real!(f32, 12_582_912.0, run_f32, between_f32, guess_f32, below_f32, fours_f32, avx2: 6, avx512: 14, row_panels: 3);
real!(f64, 6_755_399_441_055_744.0, run_f64, between_f64, guess_f64, below_f64, fours_f64, avx2: 6, avx512: 6, row_panels: 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_counts_the_bounds_below_a_number() {
        fn check<F: Real + From<f32>>() {
            let mut bounds = [F::INFINITY; 16];
            // Equal ones, both infinities and some room.
            let some = [f32::NEG_INFINITY, -2.0, -1.0, -1.0, 0.0, 0.25, 3.0, 3.0, 3.0, 8.0, 9.0];
            bounds.iter_mut().zip(some).for_each(|(to, x)| *to = F::from(x));
            let mut edges: Vec<F> = some.into_iter().map(F::from).collect();
            edges.extend([f32::INFINITY, f32::NAN, f32::MIN, f32::MAX, -0.0, 0.1, 2.9, 8.5].map(F::from));
            for isa in Isa::available() {
                for length in 0..=200 {
                    let x: Vec<F> = (0..length).map(|i| edges[i * 7 % edges.len()]).collect();
                    let mut counts = vec![77; length];
                    let done = F::count_below(isa, &x, &bounds, &mut counts);
                    assert!(done <= length);
                    for (at, (x, &count)) in x.iter().zip(&counts).enumerate() {
                        let below = bounds.iter().filter(|bound| x > bound).count();
                        assert_eq!(usize::from(count), if at < done { below } else { 77 }, "{isa} {at}");
                    }
                }
            }
        }
        check::<f32>();
        check::<f64>();
    }

    #[test]
    fn an_index_is_cut_and_stays_in_its_range() {
        let cases = [
            (f64::NAN, 0),
            (f64::NEG_INFINITY, 0),
            (-1.5, 0),
            (-0.0, 0),
            (0.99, 0),
            (1.0, 1),
            (4094.99, 4094),
            (4096.0, 4095),
            (1e30, 4095),
            (f64::INFINITY, 4095),
        ];
        for (x, index) in cases {
            assert_eq!((x.index(4095), (x as f32).index(4095)), (index, index), "{x}");
        }
        // Not a number of f32: 2^29 is next to it.
        let last = (1 << 29) - 1;
        assert_eq!((f32::MAX.index(last), f64::MAX.index(last)), (last, last));
        assert_eq!(f32::MAX.index(i32::MAX), 1 << 30);
    }
}
