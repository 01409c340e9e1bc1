//! `gemm.i8|f32|f64.N`: a product of two N x N matrices, the second packed beforehand.

use std::hint::black_box;
use std::sync::Mutex;

use trimnet::kernel::{
    Codes, Fused, Input, Isa, Matrix, MatrixMut, PackedI8, PackedReal, Pool, Real, Scratch8, ScratchReal,
    Tail, multiply, multiply_codes,
};

use super::case::{Call, Case, Context};
use super::{check, data};

const N: usize = 1024;

/// Rows of the product that the check computes the slow way.
const CHECKED: [usize; 3] = [0, 500, N - 1];

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(format!("gemm.i8.{N}"), codes),
        Case::new(format!("gemm.f32.{N}"), |context| {
            let numbers = |seed| data::normal(N * N, seed, 1.0);
            real(context, numbers(1), numbers(2), |x| f64::from(*x), 1e-6)
        }),
        Case::new(format!("gemm.f64.{N}"), |context| {
            let numbers = |seed| data::widen(&data::normal(N * N, seed, 1.0));
            real(context, numbers(1), numbers(2), |x| *x, 1e-14)
        }),
    ]
}

fn pool(context: &Context) -> Pool {
    if context.threads == 1 { Pool::single() } else { Pool::new(context.threads) }
}

/// One memory for each part of the rows.
fn scratch<T: Default>(pool: &Pool) -> Vec<Mutex<T>> {
    (0..pool.threads()).map(|_| Mutex::default()).collect()
}

fn codes(context: &Context) -> Result<Call, String> {
    let (a, b) = (data::codes(N * N, 1), data::codes(N * N, 2));
    let transposed: Vec<i8> = (0..N * N).map(|i| b[i % N * N + i / N]).collect();
    let weights = PackedI8::new(&transposed, N, N);
    let pool = pool(context);
    let (scratch, height) = (scratch::<Scratch8>(&pool), N.div_ceil(pool.threads()));
    let mut c = vec![0i32; N * N];
    let run = move |a: &[i8], c: &mut [i32]| {
        pool.run_rows(MatrixMut::new(c, N, N), height, |i, out| {
            let codes = Codes::I8(&a[i * height * N..][..out.rows() * N]);
            let input = Input { codes, zero_point: 0, bias: None };
            if let Ok(mut scratch) = scratch[i].lock() {
                let tail = Tail::Sums { out };
                multiply_codes(Isa::best(), input, &weights, 0..weights.panels(), tail, &mut scratch);
            }
        });
    };
    run(&a, &mut c);
    for i in CHECKED {
        let (row, mut expected) = (&a[i * N..][..N], vec![0i32; N]);
        for (&x, b) in row.iter().zip(b.chunks_exact(N)) {
            expected.iter_mut().zip(b).for_each(|(sum, &w)| *sum += i32::from(x) * i32::from(w));
        }
        check::equal("product", &c[i * N..][..N], &expected)?;
    }
    Ok(Box::new(move || {
        run(&a, &mut c);
        black_box(&c);
    }))
}

fn real<F: Real>(
    context: &Context,
    a: Vec<F>,
    b: Vec<F>,
    wide: impl Fn(&F) -> f64,
    tolerance: f64,
) -> Result<Call, String> {
    let weights = PackedReal::new(Matrix::new(&b, N, N).transposed());
    let pool = pool(context);
    let (scratch, height) = (scratch::<ScratchReal<F>>(&pool), N.div_ceil(pool.threads()));
    let mut c = vec![F::default(); N * N];
    let run = move |a: &[F], c: &mut [F]| {
        pool.run_rows(MatrixMut::new(c, N, N), height, |i, out| {
            let rows = Matrix::new(&a[i * height * N..][..out.rows() * N], out.rows(), N);
            if let Ok(mut scratch) = scratch[i].lock() {
                let panels = 0..weights.panels();
                multiply(Isa::best(), rows, &weights, panels, None, Fused::Identity, out, &mut scratch);
            }
        });
    };
    run(&a, &mut c);
    for i in CHECKED {
        let mut expected = vec![0.0; N];
        for (x, b) in a[i * N..][..N].iter().zip(b.chunks_exact(N)) {
            expected.iter_mut().zip(b).for_each(|(sum, w)| *sum += wide(x) * wide(w));
        }
        let found: Vec<f64> = c[i * N..][..N].iter().map(&wide).collect();
        check::close("product", &found, &expected, tolerance)?;
    }
    Ok(Box::new(move || {
        run(&a, &mut c);
        black_box(&c);
    }))
}
