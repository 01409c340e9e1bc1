//! How fast `.trim` encodes and decodes, in bytes of the dense f32 matrix.
//!
//! `cargo bench --bench trim`. The matrix is 4096 x 4096 at 95 % sparsity with 16 different values: the goal is
//! 50 MB/s each way on one core. The sizes of all layouts are printed once, beside the entropy.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use trimnet::io::trim::{EncodeOptions, Layout, Limits, TensorData, Values, decode, encode};

fn matrix(n: usize, sparsity: f64, centroids: usize) -> TensorData {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    // Centroids with the histogram of a normal distribution cut into equal steps.
    let centroid = |rng: &mut Xoshiro256PlusPlus| {
        let sum: f64 = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
        let half = centroids as f64 / 2.0;
        let step = (sum / 3.0 * half).floor().clamp(-half, half - 1.0);
        ((step + 0.5) / half + step * 0.01).sin() as f32
    };
    let values = (0..n * n).map(|_| if rng.random_bool(sparsity) { 0.0 } else { centroid(&mut rng) });
    TensorData::new(vec![n, n], Values::F32(values.collect())).unwrap()
}

fn trim(c: &mut Criterion) {
    let large = matrix(4096, 0.95, 16);
    let options = EncodeOptions::default();
    for layout in [Layout::Dense, Layout::Bitmap, Layout::Gaps, Layout::Coded] {
        let encoded = encode(&large, &EncodeOptions::default().with_layouts(&[layout]));
        println!("4096 x 4096, 95 % zeros, 16 values, {layout:?}: {} bytes", encoded.bytes().len());
    }
    let mut group = c.benchmark_group("4096x4096 at 95 %");
    group.sample_size(10).throughput(Throughput::Bytes(4 << 24));
    group.bench_function("encode", |b| b.iter(|| encode(black_box(&large), &options)));
    let encoded = encode(&large, &options);
    group.bench_function("decode", |b| {
        b.iter(|| decode(black_box(encoded.bytes()), &Limits::default()).unwrap())
    });
    group.finish();

    let small = matrix(256, 0.9, 8);
    let mut group = c.benchmark_group("256x256 at 90 %, mixed");
    group.sample_size(20).throughput(Throughput::Bytes(4 << 16));
    let mixed = EncodeOptions::default().with_layouts(&[Layout::Mixed]);
    group.bench_function("encode", |b| b.iter(|| encode(black_box(&small), &mixed)));
    let encoded = encode(&small, &mixed);
    group.bench_function("decode", |b| {
        b.iter(|| decode(black_box(encoded.bytes()), &Limits::default()).unwrap())
    });
    group.finish();
}

criterion_group!(benches, trim);
criterion_main!(benches);
