//! Sparse codes: every set of instructions gives the very integers of the plain sum, and of the dense product.

use super::tests::{noise, two_of_four};
use super::*;
use crate::kernel::{Codes, Fused, Input, Isa, MatrixMut, PackedI8, Pool, Scratch8, Tail, multiply_codes};
use proptest::prelude::*;

/// Weights `[outputs, inputs]` of which about `density` are not zero, the extremes among them.
fn weights(outputs: usize, inputs: usize, density: f64) -> Vec<i8> {
    let mut value = noise(11);
    (0..outputs * inputs)
        .map(
            |_| {
                if (value() + 1.0) / 2.0 < density { (value() * 200.0).clamp(-128.0, 127.0) as i8 } else { 0 }
            },
        )
        .collect()
}

fn check(outputs: usize, inputs: usize, density: f64, batches: &[usize]) {
    let all = weights(outputs, inputs, density);
    let pairs = two_of_four(all.clone(), inputs);
    for (w, two) in [(all, false), (pairs, true)] {
        check_weights(&w, two, (outputs, inputs), batches);
    }
}

fn check_weights(w: &[i8], two: bool, (outputs, inputs): (usize, usize), batches: &[usize]) {
    let mut value = noise(12);
    let bias: Vec<i32> = (0..outputs).map(|_| (value() * 1e9) as i32).collect();
    let pool = Pool::new(3);
    let mut scratch = SparseCodesScratch::default();
    for &batch in batches {
        let bytes: Vec<u8> = (0..batch * inputs).map(|_| (value().abs() * 300.0).min(255.0) as u8).collect();
        let signed: Vec<i8> = bytes.iter().map(|&x| x as i8).collect();
        for (codes, zero_point) in [(Codes::U8(&bytes), 129), (Codes::I8(&signed), -7)] {
            let x = |at: usize| match codes {
                Codes::U8(codes) => i32::from(codes[at]),
                Codes::I8(codes) => i32::from(codes[at]),
            };
            let expected: Vec<i32> = (0..batch * outputs)
                .map(|at| {
                    let (b, i) = (at / outputs, at % outputs);
                    let products =
                        (0..inputs).map(|j| i32::from(w[i * inputs + j]) * (x(b * inputs + j) - zero_point));
                    products.sum::<i32>().wrapping_add(bias[i])
                })
                .collect();
            for isa in Isa::available() {
                let sparse = SparseCodes::new(isa, w, outputs, inputs);
                let pairs = TwoOfFourCodes::new(isa, w, outputs, inputs);
                assert!(pairs.is_some() || !two);
                for pool in [&Pool::single(), &pool] {
                    let name = format!("{isa} {outputs}x{inputs} batch {batch}");
                    let input = Input { codes, zero_point, bias: Some(&bias) };
                    if let Some(pairs) = &pairs {
                        let mut sums = vec![i32::MIN; batch * outputs];
                        let tail = Tail::Sums { out: MatrixMut::new(&mut sums, batch, outputs) };
                        pairs.multiply(pool, input, tail, &mut scratch);
                        assert_eq!(sums, expected, "2:4 {name}");
                    }
                    let mut sums = vec![i32::MIN; batch * outputs];
                    let tail = Tail::Sums { out: MatrixMut::new(&mut sums, batch, outputs) };
                    sparse.multiply(pool, input, tail, &mut scratch);
                    assert_eq!(sums, expected, "{name}");
                }
            }
        }
    }
}

#[test]
fn every_batch_from_0_to_70_gives_the_plain_integers() {
    let batches: Vec<usize> = (0..=70).collect();
    check(45, 150, 0.2, &batches);
}

#[test]
fn every_density_gives_the_plain_integers() {
    for density in [0.0, 0.01, 0.1, 0.4, 1.0] {
        check(70, 300, density, &[1, 2, 4, 33]);
    }
}

#[test]
fn empty_matrices_and_single_elements_work() {
    for (outputs, inputs) in [(0, 0), (0, 5), (5, 0), (1, 1), (16, 1), (33, 1), (1, 129)] {
        check(outputs, inputs, 0.8, &[0, 1, 5, 40]);
    }
}

#[test]
fn more_inputs_than_u16_counts_work() {
    check(3, 70_000, 0.001, &[1, 5]);
}

#[test]
fn narrow_cells_and_several_bands_equal_the_plain_sum() {
    check(300, 900, 0.3, &[1, 5, 33]);
}

#[test]
fn extremes_of_weights_and_codes_are_exact() {
    let (outputs, inputs) = (33, 260);
    for weight in [-128, 127] {
        let w = vec![weight; outputs * inputs];
        for isa in Isa::available() {
            let sparse = SparseCodes::new(isa, &w, outputs, inputs);
            for batch in [1, 40] {
                let codes = vec![255; batch * inputs];
                let mut sums = vec![0; batch * outputs];
                let tail = Tail::Sums { out: MatrixMut::new(&mut sums, batch, outputs) };
                let input = Input { codes: Codes::U8(&codes), zero_point: 0, bias: None };
                sparse.multiply(&Pool::single(), input, tail, &mut SparseCodesScratch::default());
                assert_eq!(sums, vec![i32::from(weight) * 255 * inputs as i32; batch * outputs], "{isa}");
            }
        }
    }
}

#[test]
fn every_tail_ends_like_that_of_the_dense_product() {
    let (outputs, inputs, batch) = (75, 90, 37);
    let w = weights(outputs, inputs, 0.2);
    let mut value = noise(13);
    let codes: Vec<u8> = (0..batch * inputs).map(|_| (value().abs() * 255.0) as u8).collect();
    let input = Input { codes: Codes::U8(&codes), zero_point: 100, bias: None };
    let scale: Vec<f32> = (0..outputs).map(|_| value().abs() as f32 * 0.01).collect();
    let bias: Vec<f32> = (0..outputs).map(|_| value() as f32).collect();
    let multiplier: Vec<i32> = (0..outputs).map(|_| (value().abs() * 2e9) as i32).collect();
    let shift = vec![-6; outputs];
    for isa in Isa::available() {
        let (sparse, dense) =
            (SparseCodes::new(isa, &w, outputs, inputs), PackedI8::new(&w, outputs, inputs));
        for pool in [Pool::single(), Pool::new(3)] {
            let mut real = [vec![0.0; batch * outputs], vec![1.0; batch * outputs]];
            let mut byte = [vec![0; batch * outputs], vec![1; batch * outputs]];
            let mut fixed = [vec![0; batch * outputs], vec![1; batch * outputs]];
            for (k, ((real, byte), fixed)) in real.iter_mut().zip(&mut byte).zip(&mut fixed).enumerate() {
                let tails = [
                    Tail::Float {
                        input_scale: 0.5,
                        scale: &scale,
                        bias: Some(&bias),
                        activation: Fused::Relu,
                        out: MatrixMut::new(real, batch, outputs),
                    },
                    Tail::Codes {
                        multiplier: &scale,
                        zero_point: 10,
                        low: 10,
                        high: 200,
                        out: MatrixMut::new(byte, batch, outputs),
                    },
                    Tail::Fixed {
                        multiplier: &multiplier,
                        shift: &shift,
                        zero_point: 10,
                        low: 0,
                        high: 255,
                        out: MatrixMut::new(fixed, batch, outputs),
                    },
                ];
                for tail in tails {
                    if k == 0 {
                        sparse.multiply(&pool, input, tail, &mut SparseCodesScratch::default());
                    } else {
                        multiply_codes(isa, input, &dense, 0..dense.panels(), tail, &mut Scratch8::default());
                    }
                }
            }
            assert_eq!(real[0], real[1], "{isa}");
            assert_eq!(byte[0], byte[1], "{isa}");
            assert_eq!(fixed[0], fixed[1], "{isa}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_shape_gives_the_plain_integers(
        outputs in 1usize..130, inputs in 1usize..300, batch in 1usize..70, density in 0.0..1.0f64,
    ) {
        check(outputs, inputs, density, &[batch]);
    }
}
