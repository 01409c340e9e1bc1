//! `kmeans.K.Nm`: ten Lloyd iterations in one dimension, then the code of each weight; binning is in the clock.

use std::hint::black_box;

use trimnet::Float;
use trimnet::kernel::Pool;
use trimnet::quantize::{assign_nearest, lloyd};

use super::case::{Call, Case, Context};
use super::data;

const ITERATIONS: usize = 10;

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    let mut cases = typed::<f32>("");
    cases.extend(typed::<f64>(".f64"));
    cases
}

fn typed<F: Float>(suffix: &str) -> Vec<Case> {
    let case = |k: usize, millions: usize| {
        Case::new(format!("kmeans.{k}.{millions}m{suffix}"), move |context| {
            kmeans::<F>(context, k, millions << 20)
        })
    };
    let small = case(256, 1);
    vec![case(16, 16), if F::BYTES == 4 { small.smoke() } else { small }]
}

fn kmeans<F: Float>(context: &Context, k: usize, n: usize) -> Result<Call, String> {
    let x: Vec<F> = data::normal(n, 1, 0.02).into_iter().map(|w| F::of(w.into())).collect();
    let (low, high) = x.iter().fold((x[0], x[0]), |(low, high), &x| {
        (if x < low { x } else { low }, if x > high { x } else { high })
    });
    let start: Vec<F> =
        (0..k).map(|j| low + (high - low) * F::of(j as f64) / F::of((k - 1) as f64)).collect();
    let expected = exact(&x, &start);
    let pool = Pool::new(context.threads);
    let (mut centroids, mut codes) = (start.clone(), vec![1; n]);
    let few: Vec<F> = x[..1 << 16].to_vec();
    let call = move |centroids: &mut Vec<F>, codes: &mut Vec<u8>| {
        centroids.copy_from_slice(&start);
        lloyd(black_box(&x), centroids, ITERATIONS, &pool).map_err(|e| e.to_string())?;
        assign_nearest(&x, centroids, codes, &pool).map_err(|e| e.to_string())
    };
    call(&mut centroids, &mut codes)?;
    let square = |x: F, c: F| (x - c).as_f64().powi(2);
    let least = |x: F, centroids: &[F]| centroids.iter().map(|&c| square(x, c)).fold(f64::INFINITY, f64::min);
    if let Some(at) = few
        .iter()
        .zip(&codes)
        .position(|(&x, &code)| square(x, centroids[usize::from(code)]) > least(x, &centroids) * (1.0 + 1e-6))
    {
        return Err(format!("weight {at} has a nearer centroid"));
    }
    let error = |centroids: &[F]| few.iter().map(|&x| least(x, centroids)).sum::<f64>();
    if error(&centroids) > 1.01 * error(&expected) {
        return Err(format!("squared error {:e}, exactly {:e}", error(&centroids), error(&expected)));
    }
    Ok(Box::new(move || {
        black_box(call(&mut centroids, &mut codes).ok());
        black_box((&mut centroids, &mut codes));
    }))
}

/// By sorting.
fn exact<F: Float>(x: &[F], start: &[F]) -> Vec<F> {
    let mut x: Vec<f64> = x.iter().map(|x| x.as_f64()).collect();
    x.sort_unstable_by(f64::total_cmp);
    let mut centroids: Vec<f64> = start.iter().map(|c| c.as_f64()).collect();
    for _ in 0..ITERATIONS {
        let mut ends: Vec<usize> =
            centroids.windows(2).map(|pair| x.partition_point(|&x| x <= (pair[0] + pair[1]) / 2.0)).collect();
        ends.push(x.len());
        let mut begin = 0;
        for (c, end) in centroids.iter_mut().zip(ends) {
            if end > begin {
                *c = x[begin..end].iter().sum::<f64>() / (end - begin) as f64;
            }
            begin = end;
        }
    }
    centroids.into_iter().map(F::of).collect()
}
