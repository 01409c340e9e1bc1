//! `limit.*`: what the machine gives, for the share of it that the others reach. Not in the contract.

use std::hint::black_box;

use ndarray::Array2;
use trimnet::kernel::{
    Codes, Fused, Input, Isa, Matrix, MatrixMut, PackedI8, PackedReal, Pool, Real, Scratch8, ScratchReal,
    Tail, multiply, multiply_codes,
};

use super::case::{Call, Case, Context};
use super::data;

const N: usize = 4096;
/// Products of one thread in one call.
const PRODUCTS: usize = 20;
/// Its shape: rows that fill the tiles of every instruction set, and so many columns that they are what takes the time, not
/// the packing of rows.
const ROWS: usize = 84;
const DEPTH: usize = 256;
const COLUMNS: usize = 512;

/// Kilobytes that are read again and again, from the cache that holds them.
const KEPT: [usize; 5] = [256, 1 << 10, 4 << 10, 16 << 10, READ];
/// Kilobytes that one call reads.
const READ: usize = 64 << 10;
/// Numbers that one job copies.
const JOB: usize = 16 * N;

/// `limit.read.Nk`: 64 MB in rounds over N kilobytes; `limit.copy`: 64 MB; `limit.product`: on each thread as
/// many multiply-adds as 20 products 84 x 256 x 512, by instructions alone where this file has them, else those products.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("limit.copy", copy),
        Case::new("limit.product.i8", product_of_codes),
        Case::new("limit.product.f32", |context| product(context, |x| x)).smoke(),
        Case::new("limit.product.f64", |context| product(context, f64::from)),
    ];
    cases.extend(
        KEPT.map(|size| Case::new(format!("limit.read.{size}k"), move |context| read(context, size))),
    );
    cases
}

/// Each thread has its part, as large as the parts of the others.
fn read(context: &Context, kilobytes: usize) -> Result<Call, String> {
    let (threads, pool) = (context.threads, Pool::new(context.threads));
    let x = data::normal(kilobytes * 256, 1, 1.0);
    Ok(Box::new(move || {
        pool.run(threads, |i| {
            let part = x.len() / threads;
            for _ in 0..READ / kilobytes {
                look_at(&x[i * part..(i + 1) * part]);
            }
        });
    }))
}

/// By the widest loads that there are, compiled for them.
fn look_at(x: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn look_512(x: &[f32]) {
            look(x);
        }

        #[target_feature(enable = "avx2")]
        fn look_256(x: &[f32]) {
            look(x);
        }

        match Isa::best() {
            // SAFETY: the set has these instructions.
            Isa::Avx512(_) => return unsafe { look_512(x) },
            // SAFETY: as above.
            Isa::Avx2(_) => return unsafe { look_256(x) },
            _ => {}
        }
    }
    look(x);
}

/// In order where a near cache holds it, else at four places in turns: memory sends several streams faster than one.
#[inline(always)]
fn look(x: &[f32]) {
    let mut all = [0u32; 128];
    let mut add = |part: &[f32; 128]| all.iter_mut().zip(part).for_each(|(all, x)| *all ^= x.to_bits());
    let parts = x.as_chunks().0;
    if size_of_val(x) <= 1 << 20 {
        parts.iter().for_each(&mut add);
    } else {
        (0..parts.len()).for_each(|at| add(&parts[at % 4 * (parts.len() / 4) + at / 4]));
    }
    black_box(all);
}

fn copy(context: &Context) -> Result<Call, String> {
    let (x, pool) = (data::normal(N * N, 1, 1.0), Pool::new(context.threads));
    let mut y = Array2::<f32>::ones((N, N)).into_raw_vec_and_offset().0;
    Ok(Box::new(move || {
        pool.run_rows(MatrixMut::new(&mut y, N * N / JOB, JOB), 1, |i, mut y| {
            past_caches(&x[i * JOB..(i + 1) * JOB], y.row_mut(0));
        });
        black_box(&mut y);
    }))
}

/// Copies without reading what it writes to, if the processor can.
fn past_caches(from: &[f32], to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;

        // SAFETY: both types are plain numbers, any bits of which are valid.
        let (head, vectors, tail) = unsafe { to.align_to_mut::<__m128>() };
        head.copy_from_slice(&from[..head.len()]);
        tail.copy_from_slice(&from[from.len() - tail.len()..]);
        for (to, from) in vectors.iter_mut().zip(from[head.len()..].as_chunks::<4>().0) {
            // SAFETY: the references cover 16 bytes each, the one to write is aligned, and the fence below orders it.
            unsafe { _mm_stream_ps(std::ptr::from_mut(to).cast(), _mm_loadu_ps(from.as_ptr())) };
        }
        // SAFETY: an instruction of every 64-bit processor of this family, which touches no memory.
        unsafe { _mm_sfence() };
    }
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(from);
}

/// Sums in registers, which nothing else is done with: twelve of them hide the latency of each instruction. Every loop makes as
/// many products as [`product`].
#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    const ALL: usize = super::PRODUCTS * super::ROWS * super::DEPTH * super::COLUMNS;
    const SUMS: usize = 12;

    macro_rules! peak {
        ($name:ident, $features:literal, $vector:ty, $lanes:literal, $zero:expr, $factor:expr, $step:expr) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name() {
                const { assert!(ALL % (SUMS * $lanes) == 0) };
                let (a, b): ($vector, $vector) = black_box(($factor, $factor));
                let mut sums = [$zero; SUMS];
                for _ in 0..ALL / (SUMS * $lanes) {
                    for sum in &mut sums {
                        *sum = $step(*sum, a, b);
                    }
                }
                black_box(sums);
            }
        };
    }

    peak!(
        i8_512,
        "avx512f,avx512vnni",
        __m512i,
        64,
        _mm512_setzero_si512(),
        _mm512_set1_epi8(1),
        |s, a, b| { _mm512_dpbusd_epi32(s, a, b) }
    );
    peak!(f32_512, "avx512f", __m512, 16, _mm512_setzero_ps(), _mm512_set1_ps(1.0), |s, a, b| {
        _mm512_fmadd_ps(a, b, s)
    });
    peak!(f64_512, "avx512f", __m512d, 8, _mm512_setzero_pd(), _mm512_set1_pd(1.0), |s, a, b| {
        _mm512_fmadd_pd(a, b, s)
    });
    peak!(f32_256, "avx2,fma", __m256, 8, _mm256_setzero_ps(), _mm256_set1_ps(1.0), |s, a, b| {
        _mm256_fmadd_ps(a, b, s)
    });
    peak!(f64_256, "avx2,fma", __m256d, 4, _mm256_setzero_pd(), _mm256_set1_pd(1.0), |s, a, b| {
        _mm256_fmadd_pd(a, b, s)
    });
}

/// Loops of the set for codes, `f32` and `f64`, if it has some.
fn loops() -> [Option<fn()>; 3] {
    #[cfg(target_arch = "x86_64")]
    match Isa::best() {
        Isa::Avx512(_) => {
            // SAFETY: the set has these instructions.
            return unsafe { [Some(|| peak::i8_512()), Some(|| peak::f32_512()), Some(|| peak::f64_512())] };
        }
        Isa::Avx2(_) => {
            // SAFETY: as above.
            return unsafe { [None, Some(|| peak::f32_256()), Some(|| peak::f64_256())] };
        }
        _ => {}
    }
    [None; 3]
}

/// A loop on each thread.
fn looped(context: &Context, run: fn()) -> Call {
    let (pool, threads) = (Pool::new(context.threads), context.threads);
    Box::new(move || pool.run(threads, |_| run()))
}

fn product<F: Real + Copy + Sync>(context: &Context, of: fn(f32) -> F) -> Result<Call, String> {
    if let Some(run) = loops()[if size_of::<F>() == 4 { 1 } else { 2 }] {
        return Ok(looped(context, run));
    }
    let numbers = |n: usize, seed| data::normal(n, seed, 1.0).into_iter().map(of).collect::<Vec<F>>();
    let (x, w) = (numbers(ROWS * DEPTH, 1), numbers(COLUMNS * DEPTH, 2));
    let weights = PackedReal::new(Matrix::new(&w, COLUMNS, DEPTH));
    let (pool, threads) = (Pool::new(context.threads), context.threads);
    Ok(Box::new(move || {
        pool.run(threads, |_| {
            let (mut y, mut scratch) = (vec![F::default(); ROWS * COLUMNS], ScratchReal::default());
            for _ in 0..PRODUCTS {
                let (x, to) = (Matrix::new(&x, ROWS, DEPTH), MatrixMut::new(&mut y, ROWS, COLUMNS));
                multiply(
                    Isa::best(),
                    x,
                    &weights,
                    0..weights.panels(),
                    None,
                    Fused::Identity,
                    to,
                    &mut scratch,
                );
            }
            black_box(&mut y);
        });
    }))
}

/// Of codes that are normally distributed, as weights are.
fn product_of_codes(context: &Context) -> Result<Call, String> {
    if let Some(run) = loops()[0] {
        return Ok(looped(context, run));
    }
    let codes = |n: usize, seed| data::normal(n, seed, 32.0).into_iter().map(|x| x as i8).collect::<Vec<_>>();
    let (x, w) = (codes(ROWS * DEPTH, 1), codes(COLUMNS * DEPTH, 2));
    let weights = PackedI8::new(&w, COLUMNS, DEPTH);
    let (pool, threads) = (Pool::new(context.threads), context.threads);
    Ok(Box::new(move || {
        pool.run(threads, |_| {
            let (mut y, mut scratch) = (vec![0i32; ROWS * COLUMNS], Scratch8::default());
            for _ in 0..PRODUCTS {
                let input = Input { codes: Codes::I8(&x), zero_point: 0, bias: None };
                let tail = Tail::Sums { out: MatrixMut::new(&mut y, ROWS, COLUMNS) };
                multiply_codes(Isa::best(), input, &weights, 0..weights.panels(), tail, &mut scratch);
            }
            black_box(&mut y);
        });
    }))
}
