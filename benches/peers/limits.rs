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

/// `limit.read.Nk`: 64 MB in rounds over N kilobytes; `limit.copy`: 64 MB; `limit.product`: on each thread 20 products
/// 84 x 256 x 512.
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

fn look_at(x: &[f32]) {
    let (mut all, parts) = ([0u32; 32], x.as_chunks::<32>().0);
    // Four places in turns: memory sends several streams faster than one.
    for at in 0..parts.len() {
        let part = &parts[at % 4 * (parts.len() / 4) + at / 4];
        all.iter_mut().zip(part).for_each(|(all, x)| *all ^= x.to_bits());
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

fn product<F: Real + Copy + Sync>(context: &Context, of: fn(f32) -> F) -> Result<Call, String> {
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
