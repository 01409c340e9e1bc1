//! One row of codes by packed weights on AVX-512 with VNNI: every weight is read once and used once, so that the time
//! is that of the cache which they come from, and all else has to hide behind it.
//!
//! The four bytes of the row at one step of `k` meet three panels at once, and the sums leave from registers.

use std::arch::x86_64::*;

use super::Avx512;
use super::int8::{load_i4_512, load_i8_512};
use crate::kernel::int8::{Job, Sums};
use crate::kernel::tail::{Fused, Tail};
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
                fn run(mut job: Job<'_, '_, $step>) {
                    let mut panel = job.panels.start;
                    while panel < job.panels.end {
                        let columns = job.weights.outputs() - panel * PANEL;
                        let (a, depth) = (job.packed, job.width);
                        let steps = &job.weights.steps[panel * depth..];
                        if job.panels.end - panel >= TOGETHER && columns > PANEL * (TOGETHER - 1) + 16 {
                            let sums = dot::<TOGETHER, 2, 1>(a, steps);
                            (0..TOGETHER).for_each(|i| finish(&mut job, panel + i, sums[i]));
                            panel += TOGETHER;
                        } else if columns > 16 {
                            finish(&mut job, panel, dot::<1, 2, 4>(a, steps)[0]);
                            panel += 1;
                        } else {
                            finish(&mut job, panel, dot::<1, 1, 4>(a, steps)[0]);
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
                ) -> [[__m512i; V]; P] {
                    let depth = a.len();
                    let steps: [&[$step]; P] = std::array::from_fn(|p| &steps[p * depth..][..depth]);
                    let mut all = [[[_mm512_setzero_si512(); V]; P]; U];
                    let mut step = |u: usize, k: usize| {
                        let a = _mm512_set1_epi32(a[k] as i32);
                        for (sums, steps) in all[u].iter_mut().zip(&steps) {
                            for (v, sum) in sums.iter_mut().enumerate() {
                                *sum = _mm512_dpbusd_epi32(*sum, a, $load(&steps[k], v));
                            }
                        }
                    };
                    let whole = depth - depth % U;
                    for k in (0..whole).step_by(U) {
                        (0..U).for_each(|u| step(u, k + u));
                    }
                    (whole..depth).for_each(|k| step(0, k));
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
            let [low, high] = [*low, *high].map(|code| _mm512_set1_ps((i32::from(code) - zero_point) as f32));
            let (zero_point, round) = (_mm512_set1_epi32(zero_point), _mm512_set1_ps(12_582_912.0));
            for (v, &sum) in all.iter().enumerate() {
                let real = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), load_f32(part(multiplier, v)));
                // The first operand only if it is greater, or less: NaN becomes `low`.
                let real = _mm512_min_ps(_mm512_max_ps(real, low), high);
                let bits = _mm512_castps_si512(_mm512_add_ps(real, round));
                let code = _mm512_sub_epi32(bits, _mm512_castps_si512(round));
                store_u8(part_mut(out, v), _mm512_add_epi32(code, zero_point));
            }
        }
        Tail::Float { input_scale, scale, bias, activation, out } => {
            let out = &mut out.row_mut(job.first)[at..at + used];
            let (scale, input_scale, zero) = (&scale[columns.clone()], *input_scale, _mm512_setzero_ps());
            for (v, &sum) in all.iter().enumerate() {
                let factor = _mm512_mul_ps(load_f32(part(scale, v)), _mm512_set1_ps(input_scale));
                let bias = bias.map_or(zero, |bias| load_f32(part(&bias[columns.clone()], v)));
                let mut y = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), factor), bias);
                if *activation == Fused::Relu {
                    let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(y, zero);
                    y = _mm512_mask_mov_ps(y, negative, zero);
                }
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

/// The elements `16 v .. 16 v + 16`, or as many of them as there are.
#[inline]
fn part<T>(values: &[T], v: usize) -> &[T] {
    &values[(16 * v).min(values.len())..(16 * v + 16).min(values.len())]
}

/// The same to write.
#[inline]
fn part_mut<T>(values: &mut [T], v: usize) -> &mut [T] {
    let length = values.len();
    &mut values[(16 * v).min(length)..(16 * v + 16).min(length)]
}

/// One bit for each of at most sixteen elements.
#[inline]
fn mask(length: usize) -> u16 {
    ((1u32 << length.min(16)) - 1) as u16
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i32(values: &[i32]) -> __m512i {
    // SAFETY: the mask selects at most `values.len()` elements, and others are not touched.
    unsafe { _mm512_maskz_loadu_epi32(mask(values.len()), values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(values: &[f32]) -> __m512 {
    // SAFETY: the mask selects at most `values.len()` elements, and others are not touched.
    unsafe { _mm512_maskz_loadu_ps(mask(values.len()), values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_i32(values: &mut [i32], vector: __m512i) {
    // SAFETY: the mask selects at most `values.len()` elements, and others are not touched.
    unsafe { _mm512_mask_storeu_epi32(values.as_mut_ptr(), mask(values.len()), vector) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_f32(values: &mut [f32], vector: __m512) {
    // SAFETY: the mask selects at most `values.len()` elements, and others are not touched.
    unsafe { _mm512_mask_storeu_ps(values.as_mut_ptr(), mask(values.len()), vector) }
}

/// The low bytes.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_u8(values: &mut [u8], vector: __m512i) {
    // SAFETY: the mask selects at most `values.len()` bytes, and others are not touched.
    unsafe { _mm512_mask_cvtepi32_storeu_epi8(values.as_mut_ptr().cast(), mask(values.len()), vector) }
}
