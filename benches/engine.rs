//! Engines: building one, and one call in every format.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ndarray::Array2;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use trimnet::engine::{Config, Engine, Format};
use trimnet::kernel::Pool;
use trimnet::nn::Mlp;
use trimnet::prune::NmPruner;
use trimnet::{Compressed, Compressor};

fn network(widths: &[usize]) -> Mlp<f32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut mlp = Mlp::builder(widths[0]);
    for (i, &width) in widths[1..].iter().enumerate() {
        mlp = mlp.linear(width);
        if i + 2 < widths.len() {
            mlp = mlp.relu();
        }
    }
    mlp.build(&mut rng).unwrap()
}

fn images(rows: usize, inputs: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, inputs), |(i, j)| ((i * 31 + j * 17) % 101) as f32 / 101.0)
}

fn build(c: &mut Criterion) {
    let mlp = network(&[784, 1200, 1200, 10]);
    let data = images(1000, 784);
    let mut group = c.benchmark_group("engine/build 784-1200-1200-10, 1000 rows");
    group.sample_size(10);
    for format in [Format::Dense, Format::Int8, Format::Int4] {
        let config = Config::new(format).with_calibration(data.view());
        group.bench_function(format.name(), |b| b.iter(|| Engine::build(black_box(&mlp), &config).unwrap()));
    }
    group.finish();
}

fn predict(c: &mut Criterion) {
    let mut mlp = network(&[784, 300, 100, 10]);
    for linear in mlp.linears_mut() {
        let pruned = NmPruner::keep(2, 4).unwrap().compress(linear.weight()).unwrap().decompress().unwrap();
        linear.set_weight(pruned).unwrap();
    }
    for rows in [1, 32] {
        let mut group = c.benchmark_group(format!("engine/784-300-100-10, half of the weights, {rows} rows"));
        let data = images(256, 784);
        let x = data.slice(ndarray::s![..rows, ..]);
        for format in Format::ALL {
            let config = Config::new(format).with_calibration(data.view()).with_pool(Pool::single());
            let engine = Engine::build(&mlp, &config).unwrap();
            let (mut workspace, mut out) = (engine.workspace(rows), Array2::zeros((rows, 10)));
            group.bench_function(BenchmarkId::from_parameter(format.name()), |b| {
                b.iter(|| engine.predict_into(x, out.view_mut(), &mut workspace).unwrap());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, build, predict);
criterion_main!(benches);
