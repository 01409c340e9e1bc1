//! One row of codes by packed weights on AVX-512 with VNNI: every weight is read once and used once, so that the time
//! is that of the cache which they come from, and all else has to hide behind it.
//!
//! The four bytes of the row at one step of `k` meet three panels at once, and the sums leave from registers. Steps at which
//! all four are zero are left out where they are many.

use std::arch::x86_64::*;

use super::Avx512;
use super::int8::{load_i4_512, load_i8_512};
use super::tail::{codes, load_f32, load_i32, numbers, part, part_mut, store_f32, store_i32, store_u8};
use crate::kernel::int8::{Job, Sums};
use crate::kernel::tail::Tail;
use crate::kernel::tiles::{MAX_ROWS, PANEL};
use crate::kernel::weights::{Step, Step4, Step8};

/// Panels that share the loads of the row.
const TOGETHER: usize = 3;

/// The product of a block of one row with one kind of weights.
macro_rules! row {
    ($method:ident, $step:ident, $load:ident) => {
        impl Avx512 {
            /// The product of one row.
            pub(super) fn $method(self, job: Job<'_, '_, $step>) {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
                fn run(job: Job<'_, '_, $step>) {
                    match job.live.get(0) {
                        None => {
                            let depth = job.width;
                            panels(job, depth, |i| i);
                        }
                        Some(live) => panels(job, live.len(), |i| live[i] as usize),
                    }
                }

                /// All panels, by `count` steps: number `i` is step `at(i)`.
                #[inline]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
                fn panels(mut job: Job<'_, '_, $step>, count: usize, at: impl Fn(usize) -> usize + Copy) {
                    let mut panel = job.panels.start;
                    while panel < job.panels.end {
                        let columns = job.weights.outputs() - panel * PANEL;
                        let (a, depth) = (job.packed, job.width);
                        let steps = &job.weights.steps[panel * depth..];
                        if job.panels.end - panel >= TOGETHER && columns > PANEL * (TOGETHER - 1) + 16 {
                            let sums = dot::<TOGETHER, 2, 1>(a, steps, count, at);
                            for (i, sums) in sums.into_iter().enumerate() {
                                finish(&mut job, panel + i, sums);
                            }
                            panel += TOGETHER;
                        } else if columns > 16 {
                            finish(&mut job, panel, dot::<1, 2, 4>(a, steps, count, at)[0]);
                            panel += 1;
                        } else {
                            finish(&mut job, panel, dot::<1, 1, 4>(a, steps, count, at)[0]);
                            panel += 1;
                        }
                    }
                }

                /// `P` panels of `16 V` columns, `U` steps of `k` at a time.
                #[inline]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
                fn dot<const P: usize, const V: usize, const U: usize>(
                    a: &[u32],
                    steps: &[$step],
                    count: usize,
                    at: impl Fn(usize) -> usize,
                ) -> [[__m512i; V]; P] {
                    let depth = a.len();
                    let mut panels = [steps; P];
                    for (p, panel) in panels.iter_mut().enumerate() {
                        *panel = &steps[p * depth..][..depth];
                    }
                    let mut all = [[[_mm512_setzero_si512(); V]; P]; U];
                    let whole = count - count % U;
                    for i in (0..whole).step_by(U) {
                        for u in 0..U {
                            step(&mut all[u], a, &panels, at(i + u));
                        }
                    }
                    for i in whole..count {
                        step(&mut all[0], a, &panels, at(i));
                    }
                    let mut sums = all[0];
                    for more in &all[1..] {
                        for (sums, more) in sums.iter_mut().zip(more) {
                            for (sum, &more) in sums.iter_mut().zip(more) {
                                *sum = _mm512_add_epi32(*sum, more);
                            }
                        }
                    }
                    sums
                }

                #[inline]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
                fn step<const P: usize, const V: usize>(
                    all: &mut [[__m512i; V]; P],
                    a: &[u32],
                    panels: &[&[$step]; P],
                    k: usize,
                ) {
                    let a = _mm512_set1_epi32(a[k] as i32);
                    for (sums, steps) in all.iter_mut().zip(panels) {
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = _mm512_dpbusd_epi32(*sum, a, $load(&steps[k], v));
                        }
                    }
                }

                // SAFETY: `self` proves the instructions.
                unsafe { run(job) }
            }
        }
    };
}

row!(row_i8, Step8, load_i8_512);
row!(row_i4, Step4, load_i4_512);

/// Adds what the sums start from, and sends them through the tail: the same steps as [`Tail::panel`] takes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn finish<S: Step, const V: usize>(job: &mut Job<'_, '_, S>, panel: usize, sums: [__m512i; V]) {
    let column = panel * PANEL;
    let used = PANEL.min(job.weights.outputs() - column);
    let (columns, at) = (column..column + used, column - job.panels.start * PANEL);
    let zero_point = _mm512_set1_epi32(job.zero_point);
    let mut all = sums;
    for (v, sum) in all.iter_mut().enumerate() {
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
