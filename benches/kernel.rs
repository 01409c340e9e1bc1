//! Products and elementwise loops on every instruction set of this processor:
//! `cargo bench --bench kernel -- avx512`. Throughput counts multiply-accumulates as one element; for
//! the elementwise loops, numbers.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use trimnet::kernel::{
    Codes, Fused, Grid, Input, Isa, Matrix, MatrixMut, PackedI4, PackedI8, PackedReal, Real, Scratch8,
    ScratchReal, Tail, Update, min_max, multiply, multiply_codes, product, quantize,
};

/// Rows, inputs, outputs.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 784, 300), (1, 4096, 4096), (8, 784, 300), (64, 784, 300), (32, 4096, 4096), (1024, 1024, 1024)];

fn bytes(count: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn signed(count: usize) -> Vec<i8> {
    bytes(count).into_iter().map(|code| code as i8).collect()
}

fn codes(c: &mut Criterion) {
    for isa in Isa::available() {
        let mut group = c.benchmark_group(format!("codes/{isa}"));
        group.sample_size(10);
        for (rows, inputs, outputs) in SHAPES {
            group.throughput(Throughput::Elements((rows * inputs * outputs) as u64));
            let (x, w) = (bytes(rows * inputs), signed(inputs * outputs));
            let small: Vec<i8> = w.iter().map(|w| w >> 4).collect();
            let (i8_weights, i4_weights) =
                (PackedI8::new(&w, outputs, inputs), PackedI4::new(&small, outputs, inputs));
            let (multiplier, bias) = (vec![1e-3; outputs], vec![5; outputs]);
            let (mut y, mut scratch) = (vec![0; rows * outputs], Scratch8::default());
            let input = Input { codes: Codes::U8(&x), zero_point: 3, bias: Some(&bias) };
            let shape = format!("{rows}x{inputs}x{outputs}");
            group.bench_function(BenchmarkId::new("i8", &shape), |b| {
                b.iter(|| {
                    let out = MatrixMut::new(&mut y, rows, outputs);
                    let tail = Tail::Codes { multiplier: &multiplier, zero_point: 7, low: 7, high: 255, out };
                    multiply_codes(isa, input, &i8_weights, 0..i8_weights.panels(), tail, &mut scratch);
                });
            });
            group.bench_function(BenchmarkId::new("i4", &shape), |b| {
                b.iter(|| {
                    let out = MatrixMut::new(&mut y, rows, outputs);
                    let tail = Tail::Codes { multiplier: &multiplier, zero_point: 7, low: 7, high: 255, out };
                    multiply_codes(isa, input, &i4_weights, 0..i4_weights.panels(), tail, &mut scratch);
                });
            });
        }
    }
}

fn real<F: Real + From<f32>>(c: &mut Criterion, name: &str) {
    for isa in Isa::available() {
        let mut group = c.benchmark_group(format!("{name}/{isa}"));
        group.sample_size(10);
        for (rows, inputs, outputs) in SHAPES {
            group.throughput(Throughput::Elements((rows * inputs * outputs) as u64));
            let numbers =
                |count| -> Vec<F> { signed(count).into_iter().map(|x| F::from(f32::from(x))).collect() };
            let (x, w, bias) = (numbers(rows * inputs), numbers(inputs * outputs), numbers(outputs));
            let (x, w) = (Matrix::new(&x, rows, inputs), Matrix::new(&w, outputs, inputs));
            let packed = PackedReal::new(w);
            let (mut y, mut scratch) = (vec![F::default(); rows * outputs], ScratchReal::default());
            let shape = format!("{rows}x{inputs}x{outputs}");
            group.bench_function(BenchmarkId::new("packed", &shape), |b| {
                b.iter(|| {
                    let (all, y) = (0..packed.panels(), MatrixMut::new(&mut y, rows, outputs));
                    multiply(isa, x, &packed, all, Some(&bias), Fused::Relu, y, &mut scratch);
                });
            });
            group.bench_function(BenchmarkId::new("product", &shape), |b| {
                b.iter(|| {
                    let y = MatrixMut::new(&mut y, rows, outputs);
                    product(isa, x, w.transposed(), Update::Replace, y, &mut scratch);
                });
            });
        }
    }
}

fn elementwise(c: &mut Criterion) {
    for isa in Isa::available() {
        let mut group = c.benchmark_group(format!("elementwise/{isa}"));
        for count in [784, 1 << 22] {
            group.throughput(Throughput::Elements(count as u64));
            let x: Vec<f32> = signed(count).into_iter().map(f32::from).collect();
            let mut codes = vec![0u8; count];
            let grid = Grid { scale: 0.7, zero_point: 128, low: 0, high: 255 };
            group.bench_function(BenchmarkId::new("quantize", count), |b| {
                b.iter(|| quantize(isa, &x, grid, &mut codes));
            });
            group.bench_function(BenchmarkId::new("min_max", count), |b| {
                b.iter(|| min_max(isa, black_box(&x)));
            });
        }
    }
}

fn reals(c: &mut Criterion) {
    real::<f32>(c, "f32");
    real::<f64>(c, "f64");
}

criterion_group!(benches, codes, reals, elementwise);
criterion_main!(benches);
