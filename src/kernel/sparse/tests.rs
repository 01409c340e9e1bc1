//! One battery for every layout, type and set of instructions: equal to the plain sum within the stated error.

use super::*;
use crate::kernel::{Fused, Isa, MatrixMut, Pool};
use proptest::prelude::*;

/// What the battery needs to know of a type.
trait Number: SparseReal + Into<f64> + std::fmt::Debug {
    const EPSILON: f64;
    fn of(x: f64) -> Self;
}

impl Number for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
    fn of(x: f64) -> Self {
        x as f32
    }
}

impl Number for f64 {
    const EPSILON: f64 = f64::EPSILON;
    fn of(x: f64) -> Self {
        x
    }
}

/// SplitMix64, in [-1, 1).
pub(super) fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// Leaves the first two of every four neighbours that are not zero.
pub(super) fn two_of_four<T: Copy + Default + PartialEq>(mut w: Vec<T>, inputs: usize) -> Vec<T> {
    for four in w.chunks_mut(inputs.max(1)).flat_map(|row| row.chunks_mut(4)) {
        four.iter_mut().filter(|w| **w != T::default()).skip(2).for_each(|w| *w = T::default());
    }
    w
}

/// Weights `[outputs, inputs]` of which about `density` are not zero, in blocks of `height` outputs.
fn weights<F: Number>(seed: u64, outputs: usize, inputs: usize, density: f64, height: usize) -> Vec<F> {
    let (mut value, mut keep) = (noise(seed), noise(seed ^ 77));
    let kept: Vec<bool> =
        (0..outputs.div_ceil(height) * inputs).map(|_| (keep() + 1.0) / 2.0 < density).collect();
    (0..outputs * inputs)
        .map(|at| (value(), kept[at / inputs / height * inputs + at % inputs]))
        .map(|(value, kept)| F::of(if kept { value } else { 0.0 }))
        .collect()
}

type Multiply<'m, F> = &'m dyn Fn(&Pool, &[F], Epilogue<'_, F>, MatrixMut<'_, F>, &mut SparseScratch<F>);

/// Multiplies alone and with three threads: the same bits, and within the bound of the plain sum.
fn check<F: Number>(
    name: &str,
    w: &[F],
    outputs: usize,
    inputs: usize,
    batch: usize,
    multiply: Multiply<'_, F>,
) {
    let mut value = noise(5);
    let x: Vec<F> = (0..batch * inputs).map(|_| F::of(value())).collect();
    let bias: Vec<F> = (0..outputs).map(|_| F::of(value())).collect();
    let pool = Pool::new(3);
    let mut scratch = SparseScratch::default();
    for (bias, activation) in [(None, Fused::Identity), (Some(&bias[..]), Fused::Relu)] {
        let tail = Epilogue { bias, activation };
        let mut y = vec![F::of(f64::NAN); batch * outputs];
        multiply(&Pool::single(), &x, tail, MatrixMut::new(&mut y, batch, outputs), &mut scratch);
        for (at, &y) in y.iter().enumerate() {
            let (b, i) = (at / outputs, at % outputs);
            let (w, x) = (&w[i * inputs..][..inputs], &x[b * inputs..][..inputs]);
            let products = || w.iter().zip(x).map(|(&w, &x)| w.into() * x.into());
            let bias: f64 = bias.map_or(0.0, |bias| bias[i].into());
            let mut expected = products().sum::<f64>() + bias;
            if activation == Fused::Relu {
                expected = expected.max(0.0);
            }
            let size = products().map(f64::abs).sum::<f64>() + bias.abs();
            let error = (y.into() - expected).abs();
            let bound = F::EPSILON * size * (inputs as f64 + 2.0);
            assert!(
                error <= bound,
                "{name} {outputs}x{inputs} batch {batch} [{b}, {i}]: {y:?}, expected {expected}"
            );
        }
        let mut again = vec![F::of(f64::NAN); batch * outputs];
        multiply(&pool, &x, tail, MatrixMut::new(&mut again, batch, outputs), &mut scratch);
        assert_eq!(y, again, "{name}: depends on the number of threads");
    }
}

fn every_layout<F: Number>(outputs: usize, inputs: usize, density: f64, batches: &[usize]) {
    for isa in Isa::available() {
        let w = weights::<F>(3, outputs, inputs, density, 1);
        let rows = SparseRows::new(isa, &w, outputs, inputs);
        let blocked = weights::<F>(4, outputs, inputs, density, 16);
        let blocks = SparseBlocks::new(isa, &blocked, outputs, inputs);
        let paired = two_of_four(w.clone(), inputs);
        let pairs = TwoOfFour::new(isa, &paired, outputs, inputs).unwrap();
        for &batch in batches {
            let name = format!("2:4 on {isa}");
            check(&name, &paired, outputs, inputs, batch, &|p, x, t, y, _| pairs.multiply(p, x, t, y));
            let name = format!("rows on {isa}");
            check(&name, &w, outputs, inputs, batch, &|p, x, t, y, s| rows.multiply(p, x, t, y, s));
            let name = format!("blocks on {isa}");
            check(&name, &blocked, outputs, inputs, batch, &|p, x, t, y, s| blocks.multiply(p, x, t, y, s));
        }
    }
}

#[test]
fn every_batch_from_1_to_70_equals_the_plain_sum() {
    let batches: Vec<usize> = (0..=70).collect();
    every_layout::<f32>(37, 83, 0.2, &batches);
    every_layout::<f64>(37, 83, 0.2, &batches);
}

#[test]
fn every_density_equals_the_plain_sum() {
    for density in [0.0, 0.01, 0.1, 0.3, 0.6, 1.0] {
        every_layout::<f32>(50, 200, density, &[1, 4, 33]);
        every_layout::<f64>(50, 200, density, &[1, 4, 33]);
    }
}

#[test]
fn empty_matrices_and_single_elements_work() {
    for (outputs, inputs) in [(0, 0), (0, 5), (5, 0), (1, 1), (16, 1), (17, 1), (1, 33)] {
        every_layout::<f32>(outputs, inputs, 0.7, &[0, 1, 2, 5, 40]);
        every_layout::<f64>(outputs, inputs, 0.7, &[0, 1, 2, 5, 40]);
    }
}

#[test]
fn more_inputs_than_u16_counts_work() {
    every_layout::<f32>(3, 70_000, 0.001, &[1, 5]);
}

#[test]
fn enough_work_for_several_threads_gives_the_same_bits() {
    every_layout::<f32>(1000, 1030, 0.3, &[1, 32]);
}

#[test]
fn an_infinite_input_reaches_only_the_outputs_that_use_it() {
    for isa in Isa::available() {
        // Wide cells, and narrow ones.
        for (batch, inputs) in [(1, 96), (5, 96), (40, 96), (1, 500), (40, 500)] {
            let outputs = 40;
            let mut w = weights::<f32>(9, outputs, inputs, 0.4, 1);
            w.iter_mut().skip(17).step_by(inputs).take(20).for_each(|w| *w = 0.0);
            let x: Vec<f32> =
                (0..batch * inputs).map(|at| if at % inputs == 17 { f32::INFINITY } else { 1.0 }).collect();
            let rows = SparseRows::new(isa, &w, outputs, inputs);
            let mut y = vec![0.0; batch * outputs];
            let out = MatrixMut::new(&mut y, batch, outputs);
            rows.multiply(&Pool::single(), &x, Epilogue::default(), out, &mut SparseScratch::default());
            for (at, y) in y.iter().enumerate() {
                let uses = w[at % outputs * inputs + 17] != 0.0;
                assert_eq!(y.is_finite(), !uses, "{isa}, output {}", at % outputs);
                assert!(!y.is_nan());
            }
        }
    }
}

#[test]
#[should_panic(expected = "inputs of 2 rows")]
fn refuses_an_input_of_another_length() {
    let rows = SparseRows::new(Isa::Scalar, &[1.0f32; 6], 2, 3);
    let mut y = [0.0; 4];
    let out = MatrixMut::new(&mut y, 2, 2);
    rows.multiply(&Pool::single(), &[0.0; 5], Epilogue::default(), out, &mut SparseScratch::default());
}

#[test]
fn the_batch_changes_no_bit_of_two_of_four() {
    let (outputs, inputs, batch) = (40, 91, 9);
    let w = two_of_four(weights::<f32>(21, outputs, inputs, 0.7, 1), inputs);
    let x = weights::<f32>(22, batch, inputs, 1.0, 1);
    for isa in Isa::available() {
        let pairs = TwoOfFour::new(isa, &w, outputs, inputs).unwrap();
        let mut all = vec![0.0; batch * outputs];
        pairs.multiply(&Pool::single(), &x, Epilogue::default(), MatrixMut::new(&mut all, batch, outputs));
        for (x, all) in x.chunks(inputs).zip(all.chunks(outputs)) {
            let mut one = vec![0.0; outputs];
            pairs.multiply(&Pool::single(), x, Epilogue::default(), MatrixMut::new(&mut one, 1, outputs));
            assert_eq!(one, all, "{isa}");
        }
    }
}

#[test]
fn refuses_three_of_four() {
    assert!(TwoOfFour::new(Isa::best(), &[1.0f32, 0.0, 2.0, 3.0], 1, 4).is_none());
    assert!(TwoOfFourCodes::new(Isa::best(), &[1, 0, 2, 3], 1, 4).is_none());
    // The third begins another group.
    assert!(TwoOfFour::new(Isa::best(), &[0.0f32, 0.0, 2.0, 3.0, 4.0], 1, 5).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_shape_equals_the_plain_sum(
        outputs in 1usize..130, inputs in 1usize..130, batch in 1usize..70, density in 0.0..1.0f64,
    ) {
        every_layout::<f32>(outputs, inputs, density, &[batch]);
        every_layout::<f64>(outputs, inputs, density, &[batch]);
    }
}
