//! One training step of 784-300-100-10, and its parts: `cargo bench --bench train_step`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use trimnet::Mask;
use trimnet::nn::{Adam, AdamW, Mlp, MlpBuilder, Momentum, Optimizer, Sgd};

const ROWS: usize = 128;

fn plain() -> MlpBuilder {
    Mlp::builder(784).linear(300).relu().linear(100).relu().linear(10)
}

fn normed() -> MlpBuilder {
    Mlp::builder(784)
        .linear_no_bias(300)
        .batch_norm()
        .relu()
        .dropout(0.2)
        .linear_no_bias(100)
        .batch_norm()
        .relu()
        .linear(10)
}

fn batch() -> Array2<f32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(2);
    Array2::from_shape_simple_fn((ROWS, 784), || rng.random())
}

fn step(
    mlp: &mut Mlp<f32>,
    optimizer: &mut dyn Optimizer<f32>,
    x: &Array2<f32>,
    rng: &mut Xoshiro256PlusPlus,
) {
    let (logits, cache) = mlp.forward(x.view(), rng).unwrap();
    let dlogits = logits / ROWS as f32;
    let grads = mlp.gradients(cache, dlogits).unwrap();
    optimizer.step(mlp, &grads, 1e-3).unwrap();
}

fn train_step(c: &mut Criterion) {
    let x = batch();
    let mut group = c.benchmark_group("train_step 784-300-100-10, 128 rows");
    group.throughput(Throughput::Elements(ROWS as u64));
    for (name, builder) in [("plain", plain()), ("batch norm, dropout", normed())] {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut mlp = builder.build::<f32>(&mut rng).unwrap();
        let mut adam = Adam::new();
        let size = |mlp: &Mlp<f32>| mlp.predict(x.view()).unwrap().mapv(f32::abs).sum();
        let before = size(&mlp);
        for _ in 0..20 {
            step(&mut mlp, &mut adam, &x, &mut rng);
        }
        assert!(size(&mlp) < before, "the loss falls");
        group.bench_function(format!("{name}, adam"), |b| b.iter(|| step(&mut mlp, &mut adam, &x, &mut rng)));
        group.bench_function(format!("{name}, forward"), |b| {
            b.iter(|| black_box(mlp.forward(x.view(), &mut rng).unwrap()));
        });
        group.bench_function(format!("{name}, gradients"), |b| {
            let (logits, cache) = mlp.forward(x.view(), &mut rng).unwrap();
            b.iter_batched(
                || (cache.clone(), logits.clone()),
                |(cache, logits)| black_box(mlp.gradients(cache, logits).unwrap()),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn optimizer_step(c: &mut Criterion) {
    let x = batch();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut mlp = plain().build::<f32>(&mut rng).unwrap();
    let (logits, cache) = mlp.forward(x.view(), &mut rng).unwrap();
    let grads = mlp.gradients(cache, logits).unwrap();
    let mut masked = mlp.clone();
    let masks = mlp.linears().map(|l| Mask::new(l.weight().mapv(|w| w > 0.0))).collect();
    masked.apply_masks(masks).unwrap();

    let mut group = c.benchmark_group("optimizer 784-300-100-10");
    group.throughput(Throughput::Elements(mlp.parameters() as u64));
    let momentum = || Sgd::new().with_momentum(Momentum::Heavy(0.9)).unwrap();
    let optimizers: [(&str, Box<dyn Optimizer<f32>>); 3] = [
        ("sgd, momentum", Box::new(momentum())),
        ("adam", Box::new(Adam::new())),
        ("adamw", Box::new(AdamW::new(0.01).unwrap())),
    ];
    for (name, mut optimizer) in optimizers {
        for (mask, mlp) in [("dense", &mut mlp), ("masked", &mut masked)] {
            optimizer.reset();
            optimizer.step(mlp, &grads, 1e-9).unwrap();
            assert!(mlp.linears().all(|l| l.weight().iter().all(|w| w.is_finite())));
            group.bench_function(format!("{name}, {mask}"), |b| {
                b.iter(|| optimizer.step(mlp, black_box(&grads), 1e-9).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, train_step, optimizer_step);
criterion_main!(benches);
