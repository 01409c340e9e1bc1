//! Quantization of a 1024 x 1024 weight, and the integer product. `cargo bench --bench quantize`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use trimnet::prune::score;
use trimnet::quantize::{
    RangeMethod, Requantization, Requantizer, Rounding, ScaleRule, Scheme, UniformQuantizer, integer_product,
};
use trimnet::{Compressed, Compressor};

const N: usize = 1024;

fn weights(rows: usize) -> Array2<f32> {
    score::random::<f32, _>((rows, N), 1) + score::random::<f32, _>((rows, N), 2) - 1.0
}

fn quantize(criterion: &mut Criterion) {
    let weights = weights(N);
    let int8 = Scheme::int8_symmetric_127();
    let int4 = Scheme::symmetric(4).unwrap();
    let schemes = [
        ("int8 per tensor", int8, 45.0),
        ("int8 per row", int8.per_channel(0), 45.0),
        ("int8 per column", int8.per_channel(1), 45.0),
        ("uint8 affine", Scheme::uint8_affine(), 45.0),
        ("torch affine", int8.with_rule(ScaleRule::AffineTorch).unwrap(), 45.0),
        ("int8 half up", int8.with_rounding(Rounding::HalfUp), 45.0),
        ("int8 stochastic", int8.with_rounding(Rounding::Stochastic { seed: 1 }), 41.0),
        ("int4 in groups of 128", int4.per_group(1, 128).unwrap(), 20.0),
        ("int4 in groups of 16 rows", int4.per_group(0, 16).unwrap(), 20.0),
        ("int16", Scheme::symmetric(16).unwrap(), 90.0),
    ];
    let mut group = criterion.benchmark_group("quantize");
    group.throughput(Throughput::Elements((N * N) as u64));
    for (name, scheme, least_sqnr_db) in schemes {
        let quantizer = UniformQuantizer::new(scheme);
        let quantized = quantizer.compress(weights.view()).unwrap();
        let report = quantized.report(weights.view()).unwrap();
        assert!(report.sqnr_db > least_sqnr_db, "{name}: {report:?}");
        group.bench_function(BenchmarkId::new("compress", name), |bencher| {
            bencher.iter(|| quantizer.compress(black_box(weights.view())).unwrap());
        });
        let mut out = quantized.decompress().unwrap();
        group.bench_function(BenchmarkId::new("decompress", name), |bencher| {
            bencher.iter(|| quantized.decompress_into(black_box(out.view_mut())).unwrap());
        });
    }
    for method in [RangeMethod::Percentile(99.9), RangeMethod::LeastSquares] {
        let quantizer = UniformQuantizer::new(int8.per_channel(0)).with_range(method).unwrap();
        let report = quantizer.compress(weights.view()).unwrap().report(weights.view()).unwrap();
        assert!(report.sqnr_db > 35.0, "{method:?}: {report:?}");
        group.bench_function(BenchmarkId::new("compress", format!("int8 per row, {method:?}")), |bencher| {
            bencher.iter(|| quantizer.compress(black_box(weights.view())).unwrap());
        });
    }
    group.finish();
}

fn product(criterion: &mut Criterion) {
    let (x, w) = (weights(32), weights(N));
    let a = UniformQuantizer::new(Scheme::uint8_affine()).compress(x.view()).unwrap();
    let q = UniformQuantizer::new(Scheme::int8_symmetric_127().per_channel(0)).compress(w.view()).unwrap();
    let acc = integer_product(&a, &q).unwrap();
    let exact = a.codes().mapv(i64::from) - i64::from(a.zero_points()[0]);
    let exact = exact.dot(&q.codes().mapv(i64::from).t());
    assert!(acc.iter().zip(&exact).all(|(&acc, &exact)| i64::from(acc) == exact));

    let mut group = criterion.benchmark_group("integer product");
    group.throughput(Throughput::Elements((32 * N * N) as u64));
    group.bench_function("32 x 1024 x 1024", |bencher| {
        bencher.iter(|| integer_product(black_box(&a), black_box(&q)).unwrap());
    });
    group.finish();

    let scales: Vec<f32> = q.scales().iter().map(|scale| scale * a.scales()[0]).collect();
    let acc = acc.into_iter().collect::<Vec<_>>();
    let mut codes = vec![0; acc.len()];
    let mut group = criterion.benchmark_group("requantize");
    group.throughput(Throughput::Elements(acc.len() as u64));
    for how in [Requantization::HalfEven, Requantization::TfliteSingle, Requantization::TfliteDouble] {
        let requantizer = Requantizer::new(how, &scales, 0.2, 128, &Scheme::uint8_affine()).unwrap();
        requantizer.apply(&acc, &mut codes).unwrap();
        let nearest =
            |i: usize| (f64::from(acc[i]) * f64::from(scales[i % N]) / 0.2 + 128.0).clamp(0.0, 255.0);
        assert!(codes.iter().enumerate().all(|(i, &code)| (f64::from(code) - nearest(i)).abs() < 1.001));
        group.bench_function(format!("{how:?}"), |bencher| {
            bencher.iter(|| requantizer.apply(black_box(&acc), &mut codes).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, quantize, product);
criterion_main!(benches);
