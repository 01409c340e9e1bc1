//! Inference of the trainable network at several batch sizes: `cargo bench --bench predict`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::{Array2, Axis};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use trimnet::nn::Mlp;

fn predict(c: &mut Criterion) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let plain =
        Mlp::builder(784).linear(300).relu().linear(100).relu().linear(10).build::<f32>(&mut rng).unwrap();
    let normed = Mlp::builder(784)
        .linear_no_bias(300)
        .batch_norm()
        .relu()
        .dropout(0.2)
        .linear_no_bias(100)
        .batch_norm()
        .relu()
        .linear(10)
        .build::<f32>(&mut rng)
        .unwrap();
    let folded = normed.fold_batch_norm().unwrap();
    let all: Array2<f32> = Array2::from_shape_simple_fn((1024, 784), || rng.random());

    let mut group = c.benchmark_group("predict 784-300-100-10");
    for (name, mlp) in [("plain", &plain), ("batch norm", &normed), ("folded", &folded)] {
        for rows in [1, 3, 4, 32, 1024] {
            let (x, _) = all.view().split_at(Axis(0), rows);
            let (y, whole) = (mlp.predict(x).unwrap(), mlp.predict(all.view()).unwrap());
            let worst = y.iter().zip(&whole).map(|(y, z)| (y - z).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "a row's outputs do not depend on the batch: {worst}");
            group.throughput(Throughput::Elements(rows as u64));
            group.bench_with_input(BenchmarkId::new(name, rows), &x, |b, &x| {
                b.iter(|| black_box(mlp.predict(black_box(x)).unwrap()));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, predict);
criterion_main!(benches);
