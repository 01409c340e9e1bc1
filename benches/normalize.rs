//! Normalizers on a batch of 1024 x 4096 `f32`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::Normalizer;
use trimnet::normalize::{BatchNorm, LayerNorm, MinMax, Standard};

const ROWS: usize = 1024;
const FEATURES: usize = 4096;

fn batch(seed: u64) -> Array2<f32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    Array2::from_shape_simple_fn((ROWS, FEATURES), || rng.random::<f32>() * 2.0 - 1.0)
}

fn bench<N: Normalizer<f32>>(c: &mut Criterion, name: &str, mut norm: N)
where
    N::Cache: Clone,
{
    let (x, dy) = (batch(1), batch(2));
    let (y, cache) = norm.normalize_batch(x.clone()).expect("a batch of finite numbers");
    assert!(y.iter().all(|y| y.is_finite()) && y.iter().any(|&y| y != 0.0));
    let (dx, _) = norm.backward(cache.clone(), dy.clone());
    assert!(dx.iter().all(|dx| dx.is_finite()));

    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements((ROWS * FEATURES) as u64)).sample_size(20);
    group.bench_function("infer", |b| {
        b.iter_batched(|| x.clone(), |x| black_box(norm.normalize(x)), BatchSize::LargeInput);
    });
    group.bench_function("train", |b| {
        b.iter_batched(|| x.clone(), |x| black_box(norm.normalize_batch(x)), BatchSize::LargeInput);
    });
    group.bench_function("backward", |b| {
        let inputs = || (cache.clone(), dy.clone());
        b.iter_batched(inputs, |(cache, dy)| black_box(norm.backward(cache, dy)), BatchSize::LargeInput);
    });
    group.finish();
}

fn normalize(c: &mut Criterion) {
    bench(c, "batch_norm", BatchNorm::new(FEATURES).expect("features"));
    bench(c, "layer_norm", LayerNorm::new(FEATURES).expect("features"));
    let data = batch(3);
    bench(c, "min_max", MinMax::fit(data.view()).expect("finite data"));
    bench(c, "standard", Standard::fit(data.view()).expect("finite data"));
}

criterion_group!(benches, normalize);
criterion_main!(benches);
