//! Regularizers on a batch of 1024 x 4096 `f32`, weight penalties on a matrix of that size.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::Regularizer;
use trimnet::regularize::{Dropout, GaussianNoise, Groups, Penalty};

const DIM: (usize, usize) = (1024, 4096);

fn batch(seed: u64) -> Array2<f32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    Array2::from_shape_simple_fn(DIM, || rng.random::<f32>() + 0.5)
}

fn bench<R: Regularizer<f32>>(c: &mut Criterion, name: &str, regularizer: R)
where
    R::Cache: Clone,
{
    let (x, dy) = (batch(1), batch(2));
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    let (y, cache) = regularizer.perturb(x.clone(), &mut rng);
    let drift = y.sum() / x.sum() - 1.0;
    assert!(drift.abs() < 0.01, "the mean moved by {drift}");
    assert_eq!(regularizer.backward(cache.clone(), x.clone()), y);

    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements((DIM.0 * DIM.1) as u64)).sample_size(20);
    group.bench_function("perturb", |b| {
        b.iter_batched(|| x.clone(), |x| black_box(regularizer.perturb(x, &mut rng)), BatchSize::LargeInput);
    });
    group.bench_function("backward", |b| {
        let inputs = || (cache.clone(), dy.clone());
        b.iter_batched(
            inputs,
            |(cache, dy)| black_box(regularizer.backward(cache, dy)),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn regularize(c: &mut Criterion) {
    bench(c, "dropout", Dropout::new(0.5).expect("p in range"));
    bench(c, "gaussian_noise", GaussianNoise::new(0.1).expect("deviation in range"));
}

fn penalties(c: &mut Criterion) {
    let w = batch(1);
    let mut dw = Array2::zeros(DIM);
    let mut group = c.benchmark_group("penalty");
    group.throughput(Throughput::Elements(w.len() as u64)).sample_size(20);
    for (name, penalty) in [
        ("elastic", Penalty::elastic(1e-4, 1e-4)),
        ("group_lasso_rows", Penalty::group_lasso(1e-4, Groups::Rows)),
        ("group_lasso_columns", Penalty::group_lasso(1e-4, Groups::Columns)),
    ] {
        let penalty = penalty.expect("prices in range");
        assert!(penalty.value(w.view()) > 0.0);
        group.bench_function(name, |b| b.iter(|| penalty.add_gradient(w.view(), dw.view_mut())));
    }
    group.finish();
}

criterion_group!(benches, regularize, penalties);
criterion_main!(benches);
