//! `sparse.f32.N.sPERCENT.bBATCH`: a batch times sparse weights, batch first in and out.
//!
//! Beside the contract, `sparse.f32.N.blocks16.sPERCENT.bBATCH`: the same with whole 16 x 1 blocks pruned.

use std::hint::black_box;

use trimnet::kernel::{Epilogue, Isa, MatrixMut, Pool, SparseBlocks, SparseRows, SparseScratch};

use super::case::{Call, Case, Context};
use super::{check, data};

const N: usize = 4096;

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for batch in [1, 32] {
        for percent in [90, 95, 99] {
            let id = format!("sparse.f32.{N}.s{percent}.b{batch}");
            cases.push(Case::new(id, move |context| rows(context, percent, batch)));
        }
    }
    for batch in [1, 32] {
        let id = format!("sparse.f32.{N}.blocks16.s90.b{batch}");
        cases.push(Case::new(id, move |context| blocks(context, 90, batch)));
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

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
