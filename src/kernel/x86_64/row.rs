//! One row of codes by packed weights on AVX-512 with VNNI: every weight is read once and used once, so that the time
//! is that of the cache which they come from, and all else has to hide behind it.
//!
//! The weights are read in the order in which they stand, so that the processor, which reads ahead, runs into the next panel and
//! not past the last; and the sums leave from registers. Steps at which all four bytes of the row are zero are left out where they are
//! many.

use std::arch::x86_64::*;

use super::Avx512;
use super::int8::{load_i8_512, load_u4_512};
use super::tail::{codes, load_f32, load_i32, mask, numbers, part, part_mut, store_f32, store_i32, store_u8};
use crate::kernel::int8::{Job, Sums};
use crate::kernel::tail::Tail;
use crate::kernel::tiles::{MAX_ROWS, PANEL};
use crate::kernel::weights::{Step, Step4, Step8};

/// Steps of `k` with sums of their own, so that none waits for the one before.
const ABREAST: usize = 8;

/// The product of a block of one row with one kind of weights, which `$load` gives as `w + $above`.
macro_rules! row {
    ($method:ident, $step:ident, $load:ident, $above:literal) => {
        impl Avx512 {
            /// The product of one row.
            pub(super) fn $method(self, job: Job<'_, '_, $step>) {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
                fn run(mut job: Job<'_, '_, $step>) {
                    let (a, depth, live) = (job.packed, job.width, job.live.get(0));
                    let excess = if $above == 0 { 0 } else { sum(a).wrapping_mul($above) };
                    for panel in job.panels.clone() {
                        let steps = &job.weights.steps[panel * depth..][..depth];
                        if job.weights.outputs() - panel * PANEL > 16 {
                            finish(&mut job, panel, dot::<2>(a, live, steps), excess);
                        } else {
                            finish(&mut job, panel, dot::<1>(a, live, steps), excess);
                        }
                    }
                }

                /// A panel of `16 V` columns.
                #[inline]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
                fn dot<const V: usize>(a: &[u32], live: Option<&[u32]>, steps: &[$step]) -> [__m512i; V] {
                    let mut all = [[_mm512_setzero_si512(); V]; ABREAST];
                    match live {
                        None => {
                            let ((a, a_rest), (steps, steps_rest)) =
                                (a.as_chunks::<ABREAST>(), steps.as_chunks::<ABREAST>());
                            for (a, steps) in a.iter().zip(steps) {
                                for u in 0..ABREAST {
                                    step(&mut all[u], a[u], &steps[u]);
                                }
                            }
                            for (&a, steps) in a_rest.iter().zip(steps_rest) {
                                step(&mut all[0], a, steps);
                            }
                        }
                        Some(live) => {
                            let (live, rest) = live.as_chunks::<ABREAST>();
                            for live in live {
                                for u in 0..ABREAST {
                                    let k = live[u] as usize;
                                    step(&mut all[u], a[k], &steps[k]);
                                }
                            }
                            for &k in rest {
                                step(&mut all[0], a[k as usize], &steps[k as usize]);
                            }
                        }
                    }
                    let mut sums = all[0];
                    for more in &all[1..] {
                        for (sum, &more) in sums.iter_mut().zip(more) {
                            *sum = _mm512_add_epi32(*sum, more);
                        }
                    }
                    sums
                }

                #[inline]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
                fn step<const V: usize>(sums: &mut [__m512i; V], a: u32, step: &$step) {
                    let a = _mm512_set1_epi32(a as i32);
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_dpbusd_epi32(*sum, a, $load(step, v));
                    }
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(job) }
            }
        }
    };
}

row!(row_i8, Step8, load_i8_512, 0);
row!(row_i4, Step4, load_u4_512, 8);

/// The sum of all codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn sum(a: &[u32]) -> i32 {
    let (mut all, ones) = (_mm512_setzero_si512(), _mm512_set1_epi8(1));
    for a in a.chunks(16) {
        // SAFETY: the mask selects so many words, and others are not touched.
        let codes = unsafe { _mm512_maskz_loadu_epi32(mask(a.len()), a.as_ptr().cast()) };
        all = _mm512_dpbusd_epi32(all, codes, ones);
    }
    _mm512_reduce_add_epi32(all)
}

/// Takes what the sums have in excess, adds what they start from, and sends them through the tail: the same steps as [`Tail::panel`]
/// takes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn finish<S: Step, const V: usize>(job: &mut Job<'_, '_, S>, panel: usize, sums: [__m512i; V], excess: i32) {
    let column = panel * PANEL;
    let used = PANEL.min(job.weights.outputs() - column);
    let (columns, at) = (column..column + used, column - job.panels.start * PANEL);
    let zero_point = _mm512_set1_epi32(job.zero_point);
    let mut all = sums;
    for (v, sum) in all.iter_mut().enumerate() {
        *sum = _mm512_sub_epi32(*sum, _mm512_set1_epi32(excess));
        if let Some(bias) = job.bias {
            *sum = _mm512_add_epi32(*sum, load_i32(part(&bias[columns.clone()], v)));
        }
        let column_sums = load_i32(part(&job.weights.column_sums[panel], v));
        *sum = _mm512_sub_epi32(*sum, _mm512_mullo_epi32(column_sums, zero_point));
    }
    match &mut *job.tail {
        Tail::Codes { multiplier, zero_point, low, high, out } => {
            let out = &mut out.row_mut(job.first)[at..at + used];
            let (multiplier, zero_point) = (&multiplier[columns], i32::from(*zero_point));
            let (low, high) = ((i32::from(*low) - zero_point) as f32, (i32::from(*high) - zero_point) as f32);
            for (v, &sum) in all.iter().enumerate() {
                let code = codes(sum, load_f32(part(multiplier, v)), zero_point, low, high);
                store_u8(part_mut(out, v), code);
            }
        }
        Tail::Float { input_scale, scale, bias, activation, out } => {
            let out = &mut out.row_mut(job.first)[at..at + used];
            let (scale, input_scale, zero) = (&scale[columns.clone()], *input_scale, _mm512_setzero_ps());
            for (v, &sum) in all.iter().enumerate() {
                let factor = _mm512_mul_ps(load_f32(part(scale, v)), _mm512_set1_ps(input_scale));
                let bias = bias.map_or(zero, |bias| load_f32(part(&bias[columns.clone()], v)));
                let y = numbers(sum, factor, bias, *activation);
                store_f32(part_mut(out, v), y);
            }
        }
        tail @ (Tail::Sums { .. } | Tail::Fixed { .. }) => {
            let mut sums: Sums = [[0; PANEL]; MAX_ROWS];
            for (v, &sum) in all.iter().enumerate() {
                store_i32(part_mut(&mut sums[0], v), sum);
            }
            tail.panel(column, used, at).run(&sums[..1], job.first);
        }
    }
}
