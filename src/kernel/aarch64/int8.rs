//! The product of codes, four products of `i8` by `i8` for each of 4 columns at once, exact.
//!
//! `FEAT_DotProd`: `sdot`, which has no stable intrinsic, hence one line of assembly. Without it: products
//! of 16 bits, at most 2^14 each, added in pairs to 32 bits. Activations are packed as `i8` for both.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{DotProd, Neon};
use crate::kernel::int8::{Job, Panel, Sums};
use crate::kernel::tiles::PANEL;
use crate::kernel::weights::{Step4, Step8};

/// Vectors of 4 columns for which a pass over the panel keeps sums.
const PASS: usize = 4;

/// The product of one instruction set with one kind of weights.
macro_rules! product {
    ($cpu:ident, $features:literal, $run:ident, $module:ident, $step:ident, $load:ident, $dot:ident) => {
        impl $cpu {
            /// The product, and what runs between its tiles, compiled for this instruction set.
            pub(in crate::kernel) fn $run(self, job: Job<'_, '_, $step>) {
                #[target_feature(enable = $features)]
                fn run(job: Job<'_, '_, $step>) {
                    job.run(|rows, columns, a, panel, sums| $module::tile(rows, columns, a, panel, sums));
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(job) }
            }
        }

        mod $module {
            use super::*;

            #[target_feature(enable = $features)]
            pub(super) fn tile(
                rows: usize,
                columns: usize,
                a: &[u32],
                Panel { steps, start, .. }: Panel<'_, $step>,
                sums: &mut Sums,
            ) {
                for first in (0..columns.div_ceil(4)).step_by(PASS) {
                    match rows {
                        1 => dot::<1>(a, steps, first, start, sums),
                        2 => dot::<2>(a, steps, first, start, sums),
                        3 => dot::<3>(a, steps, first, start, sums),
                        4 => dot::<4>(a, steps, first, start, sums),
                        _ => unreachable!("a tile of {rows} rows"),
                    }
                }
            }

            /// `R` rows by `PASS` vectors of 4 columns, from vector `first` on.
            #[target_feature(enable = $features)]
            fn dot<const R: usize>(
                a: &[u32],
                steps: &[$step],
                first: usize,
                start: &[i32; PANEL],
                sums: &mut Sums,
            ) {
                assert!(first + PASS <= PANEL / 4);
                let mut all = [[vdupq_n_s32(0); PASS]; R];
                for (a, step) in a.as_chunks::<R>().0.iter().zip(steps) {
                    let mut w = [vdupq_n_s8(0); PASS];
                    for (v, w) in w.iter_mut().enumerate() {
                        *w = $load(step, first + v);
                    }
                    for (sums, &a) in all.iter_mut().zip(a) {
                        let a = vreinterpretq_s8_u32(vdupq_n_u32(a));
                        for (sum, &w) in sums.iter_mut().zip(&w) {
                            *sum = $dot(*sum, a, w);
                        }
                    }
                }
                for (sums, all) in sums.iter_mut().zip(all) {
                    for (v, sum) in all.into_iter().enumerate() {
                        store_i32(sums, first + v, vaddq_s32(sum, load_i32(start, first + v)));
                    }
                }
            }
        }
    };
}

product!(Neon, "neon", run_i8, pairs_i8, Step8, load_i8, pairs);
product!(Neon, "neon", run_i4, pairs_i4, Step4, load_i4, pairs);
product!(DotProd, "neon,dotprod", run_i8, sdot_i8, Step8, load_i8, sdot);
product!(DotProd, "neon,dotprod", run_i4, sdot_i4, Step4, load_i4, sdot);

/// Adds the products of four bytes each to the four sums.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, a: int8x16_t, w: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction, enabled for this function, computes on its operands alone.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {w:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Adds the products of four bytes each to the four sums.
#[inline]
#[target_feature(enable = "neon")]
fn pairs(sum: int32x4_t, a: int8x16_t, w: int8x16_t) -> int32x4_t {
    let low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(w)));
    let high = vpaddlq_s16(vmull_high_s8(a, w));
    vaddq_s32(sum, vpaddq_s32(low, high))
}

#[inline]
#[target_feature(enable = "neon")]
fn load_i8(step: &Step8, v: usize) -> int8x16_t {
    let part: &[[i8; 4]; 4] = &step.0.as_chunks().0[v];
    // SAFETY: the reference covers the 16 bytes, and the load asks for no alignment.
    unsafe { vld1q_s8(part.as_ptr().cast()) }
}

/// Four inputs of four columns, out of their halves of bytes.
#[inline]
#[target_feature(enable = "neon")]
fn load_i4(step: &Step4, v: usize) -> int8x16_t {
    let part: &[[u8; 4]; 4] = &step.0.as_chunks().0[v % 4];
    // SAFETY: the reference covers the 16 bytes, and the load asks for no alignment.
    let both = unsafe { vld1q_u8(part.as_ptr().cast()) };
    let half = if v < 4 { vandq_u8(both, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(both) };
    vsubq_s8(vreinterpretq_s8_u8(half), vdupq_n_s8(8))
}

#[inline]
#[target_feature(enable = "neon")]
fn load_i32(values: &[i32; PANEL], v: usize) -> int32x4_t {
    let part: &[i32; 4] = &values.as_chunks().0[v];
    // SAFETY: the reference covers the 16 bytes, and the load asks for no alignment.
    unsafe { vld1q_s32(part.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store_i32(values: &mut [i32; PANEL], v: usize, vector: int32x4_t) {
    let part: &mut [i32; 4] = &mut values.as_chunks_mut().0[v];
    // SAFETY: the exclusive reference covers the 16 bytes, and the store asks for no alignment.
    unsafe { vst1q_s32(part.as_mut_ptr(), vector) }
}
