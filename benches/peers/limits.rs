//! `limit.*`: what the machine gives, for the share of it that the others reach. Not in the contract.

use std::hint::black_box;

use ndarray::Array2;
use trimnet::kernel::{Fused, Isa, Matrix, MatrixMut, PackedReal, Pool, Real, ScratchReal, multiply};

use super::case::{Call, Case, Context};
use super::data;

const N: usize = 4096;
/// Products of one thread in one call.
const PRODUCTS: usize = 100;
/// Its shape: so many columns that the tile is what takes the time, not the packing of rows.
const ROWS: usize = 14;
const DEPTH: usize = 256;
const COLUMNS: usize = 512;

/// `limit.read` and `limit.copy` of 64 MB; `limit.product`: on each thread 100 products 14 x 256 x 512.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("limit.read", read),
        Case::new("limit.copy", copy),
        Case::new("limit.product.f32", |context| product(context, |x| x)).smoke(),
        Case::new("limit.product.f64", |context| product(context, f64::from)),
    ]
}

/// Numbers of one job.
const JOB: usize = 16 * N;

fn read(context: &Context) -> Result<Call, String> {
    let (x, pool) = (data::normal(N * N, 1, 1.0), Pool::new(context.threads));
    Ok(Box::new(move || {
        pool.run(x.len() / JOB, |i| {
            let x = &x[i * JOB..(i + 1) * JOB];
            let (mut all, parts) = ([0u32; 32], x.as_chunks::<32>().0);
            // Four places in turns: memory sends several streams faster than one.
            for at in 0..parts.len() {
                let part = &parts[at % 4 * (parts.len() / 4) + at / 4];
                all.iter_mut().zip(part).for_each(|(all, x)| *all ^= x.to_bits());
            }
            black_box(all);
        });
    }))
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

fn product<F: Real + Copy + Sync>(context: &Context, of: fn(f32) -> F) -> Result<Call, String> {
    let numbers = |n: usize, seed| data::normal(n, seed, 1.0).into_iter().map(of).collect::<Vec<F>>();
    let (x, w) = (numbers(ROWS * DEPTH, 1), numbers(COLUMNS * DEPTH, 2));
    let weights = PackedReal::new(Matrix::new(&w, COLUMNS, DEPTH));
    let (pool, threads) = (Pool::new(context.threads), context.threads);
    Ok(Box::new(move || {
        pool.run(threads, |_| {
            let (mut y, mut scratch) = ([F::default(); ROWS * COLUMNS], ScratchReal::default());
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
