//! `batchnorm.train|infer|backward`, `layernorm.forward` and `dropout.forward|backward` on a batch of 1024 x 4096.

use std::hint::black_box;

use ndarray::{Array1, Array2};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::Float;
use trimnet::kernel::Pool;
use trimnet::normalize::{BatchNorm, LayerNorm};
use trimnet::regularize::{Dropout, DropoutCache};

use super::case::{Call, Case, Context};
use super::{check, data};

const ROWS: usize = 1024;
const COLUMNS: usize = 4096;
const EPS: f64 = 1e-5;
const TOLERANCE: f64 = 1e-5;

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    let mut cases = typed::<f32>("");
    cases.extend(typed::<f64>(".f64"));
    cases
}

fn typed<F: Float>(suffix: &str) -> Vec<Case> {
    let id = |work: &str| format!("{work}.{ROWS}x{COLUMNS}{suffix}");
    let backward = Case::new(id("batchnorm.backward"), backward::<F>);
    vec![
        Case::new(id("batchnorm.train"), train::<F>),
        Case::new(id("batchnorm.infer"), infer::<F>),
        if F::BYTES == 4 { backward.smoke() } else { backward },
        Case::new(id("layernorm.forward"), layer_norm::<F>),
        Case::new(id("dropout.forward"), dropout::<F>),
        Case::new(id("dropout.backward"), dropout_backward::<F>),
    ]
}

fn array<F: Float>(x: Vec<f32>) -> Result<Array2<F>, String> {
    let x = x.into_iter().map(|x| F::of(x.into())).collect();
    Array2::from_shape_vec((ROWS, COLUMNS), x).map_err(|e| e.to_string())
}

fn batch<F: Float>(seed: u64) -> Result<Array2<F>, String> {
    array(data::normal(ROWS * COLUMNS, seed, 1.0))
}

fn row<F: Float>(x: Vec<f32>, scale: f64, shift: f64) -> Array1<F> {
    x.into_iter().map(|x| F::of(shift + scale * f64::from(x))).collect()
}

fn gamma_beta<F: Float>() -> (Array1<F>, Array1<F>) {
    (row(data::normal(COLUMNS, 2, 1.0), 0.1, 1.0), row(data::normal(COLUMNS, 3, 1.0), 0.1, 0.0))
}

fn batch_norm<F: Float>() -> Result<BatchNorm<F>, String> {
    let (gamma, beta) = gamma_beta();
    let (mean, var) =
        (row(data::normal(COLUMNS, 5, 1.0), 0.1, 0.0), row(data::uniform(COLUMNS, 6), 1.0, 0.5));
    BatchNorm::from_parts(gamma, beta, mean, var, EPS).map_err(|e| e.to_string())
}

fn wide<F: Float>(x: &Array2<F>) -> Array2<f64> {
    x.mapv(|x| x.as_f64())
}

fn close<F: Float>(what: &str, result: &Array2<F>, expected: &Array2<f64>) -> Result<(), String> {
    let (result, expected) = (wide(result), expected.as_standard_layout());
    check::close(
        what,
        result.as_slice().unwrap_or_default(),
        expected.as_slice().unwrap_or_default(),
        TOLERANCE,
    )
}

/// `x_hat` and deviation, by the formula, in f64.
fn standardized(x: &Array2<f64>) -> (Array2<f64>, Array1<f64>) {
    let n = x.nrows() as f64;
    let mean = x.sum_axis(ndarray::Axis(0)) / n;
    let centred = x - &mean;
    let std = centred.mapv(|x| x * x).sum_axis(ndarray::Axis(0)).mapv(|m2| (m2 / n + EPS).sqrt());
    (centred / &std, std)
}

fn train<F: Float>(context: &Context) -> Result<Call, String> {
    let (mut norm, x, pool) = (batch_norm::<F>()?, batch::<F>(1)?, Pool::new(context.threads));
    let (gamma, beta) = (norm.gamma().mapv(|g| g.as_f64()), norm.beta().mapv(|b| b.as_f64()));
    let expected = standardized(&wide(&x)).0 * &gamma + &beta;
    let mut y = Array2::ones((ROWS, COLUMNS));
    norm.normalize_batch_into(x.view(), y.view_mut(), &pool).map_err(|e| e.to_string())?;
    close("y", &y, &expected)?;
    Ok(Box::new(move || {
        black_box(norm.normalize_batch_into(black_box(x.view()), y.view_mut(), &pool).ok());
        black_box(&mut y);
    }))
}

fn infer<F: Float>(context: &Context) -> Result<Call, String> {
    let (norm, x, pool) = (batch_norm::<F>()?, batch::<F>(1)?, Pool::new(context.threads));
    let row = |x: ndarray::ArrayView1<'_, F>| x.mapv(|x| x.as_f64());
    let std = row(norm.running_var()).mapv(|var| (var + EPS).sqrt());
    let expected = (wide(&x) - &row(norm.running_mean())) / &std * &row(norm.gamma()) + &row(norm.beta());
    let mut y = Array2::ones((ROWS, COLUMNS));
    norm.normalize_into(x.view(), y.view_mut(), &pool).map_err(|e| e.to_string())?;
    close("y", &y, &expected)?;
    Ok(Box::new(move || {
        black_box(norm.normalize_into(black_box(x.view()), y.view_mut(), &pool).ok());
        black_box(&mut y);
    }))
}

fn backward<F: Float>(context: &Context) -> Result<Call, String> {
    let (mut norm, x, pool) = (batch_norm::<F>()?, batch::<F>(1)?, Pool::new(context.threads));
    let (dy, mut dx) = (batch::<F>(4)?, Array2::ones((ROWS, COLUMNS)));
    let seen = norm.normalize_batch_into(x.view(), dx.view_mut(), &pool).map_err(|e| e.to_string())?;
    let call = move |dx: &mut Array2<F>| {
        norm.backward_into(&seen, black_box(x.view()), dy.view(), dx.view_mut(), &pool)
            .map_err(|e| e.to_string())
    };
    let grads = call(&mut dx)?;
    let ((x_hat, std), dy) = (standardized(&wide(&batch::<F>(1)?)), wide(&batch::<F>(4)?));
    let (dbeta, dgamma) = (dy.sum_axis(ndarray::Axis(0)), (&dy * &x_hat).sum_axis(ndarray::Axis(0)));
    let scale = gamma_beta::<F>().0.mapv(|g| g.as_f64()) / &std;
    let n = ROWS as f64;
    close("dx", &dx, &((&dy - &(&dbeta / n) - &x_hat * &(&dgamma / n)) * &scale))?;
    for (what, result, expected) in [("dgamma", grads.dgamma, dgamma), ("dbeta", grads.dbeta, dbeta)] {
        let result: Vec<f64> = result.iter().map(|x| x.as_f64()).collect();
        check::close(what, &result, expected.as_slice().unwrap_or_default(), TOLERANCE)?;
    }
    Ok(Box::new(move || {
        black_box(call(&mut dx).ok());
        black_box(&mut dx);
    }))
}

fn layer_norm<F: Float>(context: &Context) -> Result<Call, String> {
    let (gamma, beta) = gamma_beta::<F>();
    let expected = standardized(&wide(&batch::<F>(1)?).reversed_axes()).0.reversed_axes()
        * &gamma.mapv(|g| g.as_f64())
        + &beta.mapv(|b| b.as_f64());
    let norm = LayerNorm::from_parts(gamma, beta, EPS).map_err(|e| e.to_string())?;
    let (x, pool, mut y) = (batch::<F>(1)?, Pool::new(context.threads), Array2::ones((ROWS, COLUMNS)));
    norm.normalize_into(x.view(), y.view_mut(), &pool).map_err(|e| e.to_string())?;
    close("y", &y, &expected)?;
    Ok(Box::new(move || {
        black_box(norm.normalize_into(black_box(x.view()), y.view_mut(), &pool).ok());
        black_box(&mut y);
    }))
}

fn dropout<F: Float>(context: &Context) -> Result<Call, String> {
    let (x, pool, mut y) = (batch::<F>(1)?, Pool::new(context.threads), Array2::ones((ROWS, COLUMNS)));
    let dropout = Dropout::new(0.5).map_err(|e| e.to_string())?;
    let (mut cache, mut rng) = (DropoutCache::default(), Xoshiro256PlusPlus::seed_from_u64(1));
    let mut call = move |y: &mut Array2<F>| {
        let x = black_box(x.view());
        dropout.perturb_into(x, y.view_mut(), &mut cache, &mut rng, &pool).map_err(|e| e.to_string())
    };
    call(&mut y)?;
    let x = batch::<F>(1)?;
    let dropped = y.iter().filter(|y| **y == F::zero()).count() as f64 / y.len() as f64;
    if (dropped - 0.5).abs() > 0.005 || !y.iter().zip(&x).all(|(&y, &x)| y == F::zero() || y == x + x) {
        return Err(format!("{dropped} dropped, or the rest is not doubled"));
    }
    Ok(Box::new(move || {
        black_box(call(&mut y).ok());
        black_box(&mut y);
    }))
}

fn dropout_backward<F: Float>(context: &Context) -> Result<Call, String> {
    let (pool, mut dx) = (Pool::new(context.threads), Array2::ones((ROWS, COLUMNS)));
    let (dy, mut cache) = (batch::<F>(4)?, DropoutCache::default());
    // The mask of a draw, not that of the contract: half of the numbers at random either way.
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
    let dropout = Dropout::new(0.5).map_err(|e| e.to_string())?;
    let mut kept = Array2::zeros((ROWS, COLUMNS));
    let ones = Array2::<F>::ones((ROWS, COLUMNS));
    dropout
        .perturb_into(ones.view(), kept.view_mut(), &mut cache, &mut rng, &pool)
        .map_err(|e| e.to_string())?;
    cache.backward_into(dy.view(), dx.view_mut(), &pool).map_err(|e| e.to_string())?;
    if dx != &dy * &kept {
        return Err("dx is not dy times the draw".to_string());
    }
    Ok(Box::new(move || {
        black_box(cache.backward_into(black_box(dy.view()), dx.view_mut(), &pool).ok());
        black_box(&mut dx);
    }))
}
