//! Pruning of a 1024 x 1024 weight: selection, masks, storage. `cargo bench --bench prune`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::{Array2, Ix2};
use trimnet::prune::{MagnitudePruner, NmPruner, Pruner, Scope, Selection, StructuredPruner, score};
use trimnet::{Compressed, SparseTensor};

const N: usize = 1024;

fn weights() -> Array2<f32> {
    score::random::<f32, _>((N, N), 1) + score::random::<f32, _>((N, N), 2) - 1.0
}

fn prune(criterion: &mut Criterion) {
    let weights = weights();
    let at = |sparsity| Selection::sparsity(sparsity).unwrap();
    type Rule = Box<dyn Pruner<f32, Ix2, Output = SparseTensor<f32, Ix2>>>;
    let rules: [(&str, usize, Rule); 5] = [
        ("magnitude 90 %", N * N - 943_718, Box::new(MagnitudePruner::sparsity(0.9).unwrap())),
        (
            "magnitude per row 90 %",
            N * 102,
            Box::new(MagnitudePruner::new(at(0.9).with_scope(Scope::PerRow))),
        ),
        ("2:4", N * N / 2, Box::new(NmPruner::keep(2, 4).unwrap())),
        ("rows 50 %", N * N / 2, Box::new(StructuredPruner::rows(at(0.5)))),
        ("blocks 16x1 75 %", N * N / 4, Box::new(StructuredPruner::blocks(16, 1, at(0.75)).unwrap())),
    ];
    for group in ["mask", "compress"] {
        let mut group_of = criterion.benchmark_group(group);
        group_of.throughput(Throughput::Elements((N * N) as u64));
        for (name, kept, rule) in &rules {
            assert_eq!(rule.mask(weights.view(), None).unwrap().0.kept(), *kept, "{name}");
            assert_eq!(rule.compress(weights.view()).unwrap().nnz(), *kept, "{name}");
            group_of.bench_function(BenchmarkId::from_parameter(name), |bencher| match group {
                "mask" => bencher.iter(|| rule.mask(black_box(weights.view()), None).unwrap()),
                _ => bencher.iter(|| {
                    black_box(rule.compress(black_box(weights.view())).unwrap());
                }),
            });
        }
        group_of.finish();
    }
}

fn sparse(criterion: &mut Criterion) {
    let weights = weights();
    let x = score::random::<f32, _>((32, N), 3);
    let mut group = criterion.benchmark_group("sparse");
    group.throughput(Throughput::Elements((N * N) as u64));
    for sparsity in [0.5, 0.9, 0.99] {
        let pruner = MagnitudePruner::sparsity(sparsity).unwrap();
        let (mask, _) = pruner.mask(weights.view(), None).unwrap();
        let sparse = SparseTensor::masked(weights.view(), &mask).unwrap();
        let mut out = sparse.decompress().unwrap();
        let mut masked = weights.clone();
        mask.apply(masked.view_mut()).unwrap();
        assert_eq!(out, masked);
        let difference = sparse.dot(x.view()).unwrap() - x.dot(&masked.t());
        assert!(difference.iter().all(|d| d.abs() < 1e-3));
        group.bench_function(BenchmarkId::new("store", sparsity), |bencher| {
            bencher.iter(|| SparseTensor::masked(black_box(weights.view()), &mask).unwrap());
        });
        group.bench_function(BenchmarkId::new("decompress", sparsity), |bencher| {
            bencher.iter(|| sparse.decompress_into(black_box(out.view_mut())).unwrap());
        });
        group.bench_function(BenchmarkId::new("dot batch 32", sparsity), |bencher| {
            bencher.iter(|| sparse.dot(black_box(x.view())).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, prune, sparse);
criterion_main!(benches);
