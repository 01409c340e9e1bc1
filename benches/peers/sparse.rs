//! `sparse.f32.N.sPERCENT.bBATCH`: a batch times sparse weights, batch first in and out.
//!
//! Beside the contract: `sparse.f32.N.blocks16.sPERCENT.bBATCH`, the same with whole 16 x 1 blocks pruned, and
//! `sparse.i8.N.sPERCENT.bBATCH`, exact sums of weights and activations in codes; `sparse.f32|i8.N.2of4.bBATCH`, the same
//! with the first two of every four neighbours kept.

use std::hint::black_box;

use trimnet::kernel::{
    Codes, Epilogue, Input, Isa, MatrixMut, Pool, SparseBlocks, SparseCodes, SparseCodesScratch, SparseRows,
    SparseScratch, Tail, TwoOfFour, TwoOfFourCodes,
};

use super::case::{Call, Case, Context};
use super::{check, data};

const N: usize = 4096;

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for batch in [1, 32] {
        for percent in [90, 95, 99] {
            let id = format!("sparse.f32.{N}.s{percent}.b{batch}");
            let case = Case::new(id, move |context| rows(context, percent, batch));
            cases.push(if (percent, batch) == (99, 1) { case.smoke() } else { case });
        }
    }
    for batch in [1, 32] {
        cases.push(Case::new(format!("sparse.f32.{N}.2of4.b{batch}"), move |context| pairs(context, batch)));
        cases.push(Case::new(format!("sparse.i8.{N}.2of4.b{batch}"), move |context| {
            pair_codes(context, batch)
        }));
        let id = format!("sparse.f32.{N}.blocks16.s90.b{batch}");
        cases.push(Case::new(id, move |context| blocks(context, 90, batch)));
        for percent in [90, 95, 99] {
            let id = format!("sparse.i8.{N}.s{percent}.b{batch}");
            cases.push(Case::new(id, move |context| codes(context, percent, batch)));
        }
    }
    cases
}

/// Weights `[N, N]`, zero where a number in [0, 1) of the block of `height` outputs is below `percent / 100`.
fn weights(percent: u32, height: usize) -> Vec<f32> {
    let below = f64::from(percent) / 100.0;
    let uniform = data::uniform(N.div_ceil(height) * N, 4);
    let mut weights = data::normal(N * N, 1, 1.0);
    for (i, row) in weights.chunks_mut(N).enumerate() {
        for (w, &u) in row.iter_mut().zip(&uniform[i / height * N..]) {
            if f64::from(u) < below {
                *w = 0.0;
            }
        }
    }
    weights
}

fn rows(context: &Context, percent: u32, batch: usize) -> Result<Call, String> {
    let weights = weights(percent, 1);
    let rows = SparseRows::new(Isa::best(), &weights, N, N);
    prepare(context, batch, &weights, move |pool, x, y, scratch| {
        rows.multiply(pool, x, Epilogue::default(), y, scratch);
    })
}

fn blocks(context: &Context, percent: u32, batch: usize) -> Result<Call, String> {
    let weights = weights(percent, 16);
    let blocks = SparseBlocks::new(Isa::best(), &weights, N, N);
    prepare(context, batch, &weights, move |pool, x, y, scratch| {
        blocks.multiply(pool, x, Epilogue::default(), y, scratch);
    })
}

fn prepare(
    context: &Context,
    batch: usize,
    weights: &[f32],
    multiply: impl Fn(&Pool, &[f32], MatrixMut<'_, f32>, &mut SparseScratch<f32>) + 'static,
) -> Result<Call, String> {
    let pool = Pool::new(context.threads);
    let x = data::normal(batch * N, 2, 1.0);
    let mut y = vec![0.0; batch * N];
    let mut scratch = SparseScratch::default();
    multiply(&pool, &x, MatrixMut::new(&mut y, batch, N), &mut scratch);
    let expected: Vec<f64> = x.chunks(N).flat_map(|x| weights.chunks(N).map(move |w| dot(w, x))).collect();
    check::close("y", &data::widen(&y), &expected, 1e-5)?;
    Ok(Box::new(move || {
        multiply(&pool, black_box(&x), MatrixMut::new(&mut y, batch, N), &mut scratch);
        black_box(&mut y);
    }))
}

/// The first two of every four neighbours.
fn two_of_four(mut weights: Vec<f32>) -> Vec<f32> {
    weights.chunks_mut(4).for_each(|four| four[2..].fill(0.0));
    weights.chunks_mut(4).enumerate().for_each(|(at, four)| four.rotate_right(at % 3));
    weights
}

fn pairs(context: &Context, batch: usize) -> Result<Call, String> {
    let weights = two_of_four(weights(0, 1));
    let pairs = TwoOfFour::new(Isa::best(), &weights, N, N).ok_or("three of four")?;
    prepare(context, batch, &weights, move |pool, x, y, _| pairs.multiply(pool, x, Epilogue::default(), y))
}

fn codes(context: &Context, percent: u32, batch: usize) -> Result<Call, String> {
    let weights = as_codes(&weights(percent, 1));
    let sparse = SparseCodes::new(Isa::best(), &weights, N, N);
    prepare_codes(context, batch, &weights, move |pool, input, tail, scratch| {
        sparse.multiply(pool, input, tail, scratch)
    })
}

fn pair_codes(context: &Context, batch: usize) -> Result<Call, String> {
    let weights = as_codes(&two_of_four(weights(0, 1)));
    let pairs = TwoOfFourCodes::new(Isa::best(), &weights, N, N).ok_or("three of four")?;
    prepare_codes(context, batch, &weights, move |pool, input, tail, scratch| {
        pairs.multiply(pool, input, tail, scratch)
    })
}

fn as_codes(weights: &[f32]) -> Vec<i8> {
    weights.iter().map(|w| (w * 30.0).round().clamp(-127.0, 127.0) as i8).collect()
}

fn prepare_codes(
    context: &Context,
    batch: usize,
    weights: &[i8],
    multiply: impl Fn(&Pool, Input<'_>, Tail<'_>, &mut SparseCodesScratch) + 'static,
) -> Result<Call, String> {
    let pool = Pool::new(context.threads);
    let x: Vec<u8> = data::uniform(batch * N, 2).iter().map(|x| (x * 255.0) as u8).collect();
    let plain =
        |w: &[i8], x: &[u8]| w.iter().zip(x).map(|(&w, &x)| i32::from(w) * (i32::from(x) - 128)).sum::<i32>();
    let expected: Vec<i32> = x.chunks(N).flat_map(|x| weights.chunks(N).map(move |w| plain(w, x))).collect();
    let mut sums = vec![0; batch * N];
    let mut scratch = SparseCodesScratch::default();
    let mut call = move |sums: &mut [i32]| {
        let input = Input { codes: Codes::U8(black_box(&x)), zero_point: 128, bias: None };
        multiply(&pool, input, Tail::Sums { out: MatrixMut::new(sums, batch, N) }, &mut scratch);
    };
    call(&mut sums);
    check::equal("sums", &sums, &expected)?;
    Ok(Box::new(move || {
        call(&mut sums);
        black_box(&mut sums);
    }))
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
