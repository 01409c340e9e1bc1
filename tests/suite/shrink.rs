//! Shrinking and folding change the matrices, never the function.

use ndarray::{Array1, Array2, Axis, array};
use proptest::prelude::*;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use trimnet::nn::{Activation, Adam, CrossEntropy, Dataset, Layer, Linear, Mlp, Trainer, evaluate};
use trimnet::normalize::{BatchNorm, LayerNorm};
use trimnet::prune::score::slice_norms;
use trimnet::prune::{Norm, Selection};
use trimnet::regularize::Dropout;
use trimnet::{Float, Mask};

type Rng = Xoshiro256PlusPlus;

fn vector<F: Float>(n: usize, low: f64, high: f64, rng: &mut Rng) -> Array1<F> {
    Array1::from_shape_simple_fn(n, || F::of(low + (high - low) * rng.random::<f64>()))
}

fn batch<F: Float>(rows: usize, columns: usize, rng: &mut Rng) -> Array2<F> {
    Array2::from_shape_simple_fn((rows, columns), || F::of(2.0 * rng.random::<f64>() - 1.0))
}

fn batch_norm<F: Float>(n: usize, rng: &mut Rng) -> Layer<F> {
    let (gamma, beta) = (vector(n, -1.5, 1.5, rng), vector(n, -1.0, 1.0, rng));
    let (mean, var) = (vector(n, -1.0, 1.0, rng), vector(n, 0.5, 2.0, rng));
    Layer::BatchNorm(BatchNorm::from_parts(gamma, beta, mean, var, 1e-5).unwrap())
}

/// Dead rows, dead columns and scattered zeros, sometimes as a mask.
fn sparse_linear<F: Float>(inputs: usize, outputs: usize, rng: &mut Rng) -> Layer<F> {
    let dead = |n: usize, chance: f64, rng: &mut Rng| -> Vec<bool> {
        (0..n).map(|_| rng.random_bool(chance)).collect()
    };
    let chance = if rng.random_bool(0.1) { 1.0 } else { 0.3 };
    let (rows, columns) = (dead(outputs, chance, rng), dead(inputs, 0.3, rng));
    let keep =
        Array2::from_shape_fn((outputs, inputs), |(o, i)| !rows[o] && !columns[i] && rng.random_bool(0.8));
    let mask = Mask::new(keep);
    let mut weight = batch(outputs, inputs, rng);
    mask.apply(weight.view_mut()).unwrap();
    let bias = rng.random_bool(0.7).then(|| vector(outputs, -1.0, 1.0, rng));
    let mut linear = Linear::new(weight, bias).unwrap();
    if rng.random_bool(0.5) {
        linear.set_mask(mask).unwrap();
    }
    Layer::Linear(linear)
}

fn random_network<F: Float>(seed: u64) -> Mlp<F> {
    let mut rng = Rng::seed_from_u64(seed);
    let rng = &mut rng;
    let inputs = rng.random_range(1..5);
    let mut layers = Vec::new();
    if rng.random_bool(0.2) {
        layers.push(batch_norm(inputs, rng));
    }
    let mut width = inputs;
    for _ in 0..rng.random_range(1..4) {
        let outputs = rng.random_range(1..8);
        layers.push(sparse_linear(width, outputs, rng));
        width = outputs;
        let activation = match rng.random_range(0..7) {
            0 => Activation::Relu,
            1 => Activation::LeakyRelu(0.1),
            2 => Activation::Sigmoid,
            3 => Activation::Gelu,
            4 => Activation::Tanh,
            5 => Activation::Clip { min: -0.2, max: 0.6 },
            _ => Activation::Elu(1.0),
        };
        let mut between = Vec::new();
        if rng.random_bool(0.5) {
            between.push(batch_norm(width, rng));
        }
        if rng.random_bool(0.9) {
            between.push(Layer::Activation(activation));
        }
        if rng.random_bool(0.3) {
            between.push(Layer::Dropout(Dropout::new(0.5).unwrap()));
        }
        if rng.random_bool(0.15) {
            let (gamma, beta) = (vector(width, -1.5, 1.5, rng), vector(width, -1.0, 1.0, rng));
            between.push(Layer::LayerNorm(LayerNorm::from_parts(gamma, beta, 1e-5).unwrap()));
        }
        if rng.random_bool(0.3) {
            between.reverse();
        }
        layers.extend(between);
    }
    layers.push(sparse_linear(width, rng.random_range(1..4), rng));
    Mlp::from_layers(inputs, layers).unwrap()
}

/// The greatest difference of the outputs over a batch, against their size.
fn difference<F: Float>(a: &Mlp<F>, b: &Mlp<F>) -> f64 {
    let x = batch(9, a.inputs(), &mut Rng::seed_from_u64(99));
    let (y, z) = (a.predict(x.view()).unwrap(), b.predict(x.view()).unwrap());
    assert_eq!(y.shape(), z.shape());
    let distance = |(y, z): (&F, &F)| (y.as_f64() - z.as_f64()).abs() / y.as_f64().abs().max(1.0);
    y.iter().zip(&z).map(distance).fold(0.0, f64::max)
}

fn linear(mlp: &Mlp<f64>, index: usize) -> &Linear<f64> {
    mlp.linears().nth(index).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn shrinking_keeps_every_output(seed in any::<u64>()) {
        let mlp = random_network::<f64>(seed);
        let (small, report) = mlp.shrink().unwrap();
        prop_assert!(difference(&mlp, &small) < 1e-11);
        let single = random_network::<f32>(seed);
        prop_assert!(difference(&single, &single.shrink().unwrap().0) < 1e-4);

        prop_assert_eq!((small.inputs(), small.outputs()), (mlp.inputs(), mlp.outputs()));
        prop_assert_eq!(report.parameters_before, mlp.parameters());
        prop_assert_eq!(report.parameters_after, small.parameters());
        prop_assert_eq!(report.layers.len(), mlp.linears().count());
        for (mask, linear) in small.masks().zip(small.linears()) {
            prop_assert!(mask.is_none_or(|mask| mask.keep().shape() == linear.weight().shape()));
        }
    }

    #[test]
    fn shrinking_twice_changes_nothing_more(seed in any::<u64>()) {
        let small = random_network::<f64>(seed).shrink().unwrap().0;
        let (again, report) = small.shrink().unwrap();
        prop_assert_eq!(report.removed(), 0);
        prop_assert_eq!(small, again);
    }

    #[test]
    fn no_dead_neuron_is_left_outside_of_layer_norms(seed in any::<u64>()) {
        let small = random_network::<f64>(seed).shrink().unwrap().0;
        if small.layers().iter().any(|layer| matches!(layer, Layer::LayerNorm(_))) {
            return Ok(());
        }
        let linears: Vec<_> = small.linears().collect();
        for pair in linears.windows(2).filter(|pair| pair[0].outputs() > 1) {
            for j in 0..pair[0].outputs() {
                prop_assert!(pair[0].weight().row(j).iter().any(|&w| w != 0.0));
                prop_assert!(pair[1].weight().column(j).iter().any(|&w| w != 0.0));
            }
        }
    }

    #[test]
    fn folding_keeps_every_output_and_leaves_nothing_of_training(seed in any::<u64>()) {
        let mlp = random_network::<f64>(seed);
        let folded = mlp.fold_batch_norm().unwrap();
        prop_assert!(difference(&mlp, &folded) < 1e-11);
        let single = random_network::<f32>(seed);
        prop_assert!(difference(&single, &single.fold_batch_norm().unwrap()) < 1e-4);

        prop_assert!(!folded.layers().iter().any(|layer| matches!(layer, Layer::Dropout(_))));
        for pair in folded.layers().windows(2) {
            let kinds = (&pair[0], &pair[1]);
            prop_assert!(!matches!(kinds, (Layer::Linear(_), Layer::BatchNorm(_))));
            prop_assert!(!matches!(kinds, (Layer::BatchNorm(_), Layer::Linear(_))));
        }
        for (before, after) in mlp.linears().zip(folded.linears()) {
            prop_assert_eq!(before.mask(), after.mask());
        }
    }

    #[test]
    fn a_folded_network_gives_the_same_in_training_as_in_inference(seed in any::<u64>()) {
        let mut folded = random_network::<f64>(seed).fold_batch_norm().unwrap();
        if !folded.layers().iter().any(|layer| matches!(layer, Layer::BatchNorm(_))) {
            let mut rng = Rng::seed_from_u64(1);
            let x = batch(9, folded.inputs(), &mut rng);
            let trained = folded.forward(x.view(), &mut rng).unwrap().0;
            prop_assert_eq!(trained, folded.predict(x.view()).unwrap());
        }
    }

    #[test]
    fn folding_and_shrinking_agree_in_any_order(seed in any::<u64>()) {
        let mlp = random_network::<f64>(seed);
        let a = mlp.shrink().unwrap().0.fold_batch_norm().unwrap();
        let b = mlp.fold_batch_norm().unwrap().shrink().unwrap().0;
        prop_assert!(difference(&a, &b) < 1e-11);
    }
}

fn chain(layers: Vec<Layer<f64>>, inputs: usize) -> Mlp<f64> {
    Mlp::from_layers(inputs, layers).unwrap()
}

fn layer(weight: Array2<f64>, bias: Option<Array1<f64>>) -> Layer<f64> {
    Layer::Linear(Linear::new(weight, bias).unwrap())
}

#[test]
fn a_removed_neuron_takes_its_column_bias_norm_and_mask_entries_along() {
    let norm = BatchNorm::from_parts(
        array![1.0, 2.0, 3.0],
        array![0.1, 0.2, 0.3],
        array![0.0, 0.5, 1.0],
        array![1.0, 1.0, 1.0],
        1e-5,
    )
    .unwrap();
    let mut mlp = chain(
        vec![
            layer(array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], Some(array![7.0, 8.0, 9.0])),
            Layer::BatchNorm(norm),
            Layer::Activation(Activation::Relu),
            layer(array![[1.0, 2.0, 3.0]], Some(array![4.0])),
        ],
        2,
    );
    mlp.apply_masks(vec![
        Mask::new(array![[true, false], [false, false], [true, true]]),
        Mask::new(array![[true, true, true]]),
    ])
    .unwrap();
    let (small, report) = mlp.shrink().unwrap();
    assert_eq!(small.widths(), [2, 2, 1]);
    assert_eq!(report.removed(), 1);
    assert_eq!((report.layers[1].layer, report.layers[0].neurons_after), (3, 2));
    assert_eq!(linear(&small, 0).weight(), array![[1.0, 0.0], [5.0, 6.0]]);
    assert_eq!(linear(&small, 0).bias().unwrap(), array![7.0, 9.0]);
    assert_eq!(linear(&small, 0).mask().unwrap(), &Mask::new(array![[true, false], [true, true]]));
    assert_eq!(linear(&small, 1).weight(), array![[1.0, 3.0]]);
    let Layer::BatchNorm(norm) = &small.layers()[1] else { panic!("a batch norm") };
    assert_eq!(norm.gamma(), array![1.0, 3.0]);
    // 4 + 2 * relu((8 - 0.5) * 2 / sqrt(1 + 1e-5) + 0.2)
    let folded = 4.0 + 2.0 * (7.5 * 2.0 / 1.00001f64.sqrt() + 0.2);
    approx::assert_relative_eq!(linear(&small, 1).bias().unwrap()[0], folded, max_relative = 1e-15);
}

#[test]
fn a_constant_gives_a_bias_to_a_layer_without_one_and_only_then() {
    let network = |bias: f64| {
        chain(
            vec![
                layer(array![[1.0], [0.0]], Some(array![0.0, bias])),
                Layer::Activation(Activation::Relu),
                layer(array![[1.0, 2.0]], None),
            ],
            1,
        )
    };
    assert_eq!(linear(&network(3.0).shrink().unwrap().0, 1).bias().unwrap(), array![6.0]);
    assert!(linear(&network(-3.0).shrink().unwrap().0, 1).bias().is_none());
}

#[test]
fn one_removal_leads_to_the_next() {
    // Output ignores the second neuron of the second layer, which alone listens to the second of the first.
    let mlp = chain(
        vec![
            layer(array![[1.0], [1.0]], None),
            layer(array![[1.0, 0.0], [0.0, 1.0]], None),
            layer(array![[1.0, 0.0]], None),
        ],
        1,
    );
    assert_eq!(mlp.shrink().unwrap().0.widths(), [1, 1, 1, 1]);
}

#[test]
fn a_layer_that_died_completely_keeps_one_neuron_and_the_constant_output() {
    let mlp = chain(
        vec![
            layer(Array2::zeros((3, 2)), Some(array![1.0, 2.0, 3.0])),
            Layer::Activation(Activation::Relu),
            layer(array![[1.0, 1.0, 1.0]], Some(array![0.5])),
        ],
        2,
    );
    let (small, report) = mlp.shrink().unwrap();
    assert_eq!(small.widths(), [2, 1, 1]);
    assert_eq!(report.removed(), 2);
    assert_eq!(small.predict(array![[5.0, -5.0]].view()).unwrap(), array![[6.5]]);
}

#[test]
fn a_layer_norm_keeps_all_neurons_that_it_sees() {
    let mlp = chain(
        vec![
            layer(array![[1.0], [0.0], [-1.0]], Some(array![1.0, 2.0, 3.0])),
            Layer::LayerNorm(LayerNorm::new(3).unwrap()),
            layer(array![[1.0, 2.0, 0.0]], None),
        ],
        1,
    );
    let (small, report) = mlp.shrink().unwrap();
    assert_eq!((report.removed(), &small), (0, &mlp));
}

#[test]
fn inputs_and_outputs_stay_even_if_dead() {
    let mlp = chain(vec![layer(array![[0.0, 1.0], [0.0, 0.0]], None)], 2);
    assert_eq!(mlp.shrink().unwrap().0, mlp);
}

#[test]
fn a_constant_that_would_overflow_the_bias_stays_a_neuron() {
    let huge = f32::MAX;
    let layers = vec![
        Layer::Linear(Linear::new(array![[1.0f32], [0.0]], Some(array![0.0, huge])).unwrap()),
        Layer::Linear(Linear::new(array![[1.0f32, 2.0]], None).unwrap()),
    ];
    let mlp = Mlp::from_layers(1, layers).unwrap();
    assert_eq!(mlp.shrink().unwrap().0, mlp);
}

#[test]
fn folds_the_golden_batch_norm() {
    let norm = BatchNorm::from_parts(array![1.5], array![-0.25], array![1.0], array![3.99999], 1e-5).unwrap();
    let mlp = chain(vec![layer(array![[2.0, -1.0]], Some(array![0.5])), Layer::BatchNorm(norm)], 2);
    let folded = mlp.fold_batch_norm().unwrap();
    approx::assert_abs_diff_eq!(linear(&folded, 0).weight(), array![[1.5, -0.75]].view(), epsilon = 1e-15);
    approx::assert_abs_diff_eq!(linear(&folded, 0).bias().unwrap(), array![-0.625].view(), epsilon = 1e-15);
}

#[test]
fn folding_that_overflows_is_an_error() {
    let norm = BatchNorm::from_parts(array![1e30f32], array![0.0], array![0.0], array![0.0], 1e-20).unwrap();
    let linear = Linear::new(array![[1.0f32]], None).unwrap();
    let mlp = Mlp::from_layers(1, vec![Layer::Linear(linear), Layer::BatchNorm(norm)]).unwrap();
    assert!(mlp.fold_batch_norm().unwrap_err().to_string().contains("only finite numbers"));
}

#[test]
fn a_dead_neuron_before_a_batch_norm_stays_a_constant() {
    for seed in [1, 3] {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let points = Array2::from_shape_simple_fn((2000, 2), || rng.random_range(-1.0..1.0_f32));
        let labels = points.rows().into_iter().map(|p| usize::from(p.dot(&p) < 0.49)).collect();
        let (train, test) = Dataset::classification(points, labels).unwrap().split(0.2, 7).unwrap();
        let builder = Mlp::builder(2).linear(64).batch_norm().relu().linear(32).relu().linear(2);
        let mut mlp = builder.build(&mut rng).unwrap();
        let trainer = Trainer::new(15, 50).unwrap();
        let fit = |mlp: &mut Mlp<f32>| {
            trainer.fit(mlp, &mut CrossEntropy, &train, None, &mut Adam::new(), &mut []).unwrap();
        };
        fit(&mut mlp);
        let by_row = |linear: &Linear<f32>, _: &_| slice_norms(linear.weight(), Axis(0), Norm::L2);
        mlp.prune_neurons(&Selection::sparsity(0.5).unwrap(), by_row, 4).unwrap();
        let biases = |mlp: &Mlp<f32>| {
            let first = mlp.linears().next().unwrap();
            let keep = first.mask().unwrap().keep();
            let rows = keep.rows().into_iter().zip(first.bias().unwrap());
            let dead = rows.filter(|(row, _)| !row.iter().any(|&keep| keep));
            dead.map(|(_, &bias)| bias).collect::<Vec<f32>>()
        };
        let before = biases(&mlp);
        assert!(before.len() > 20);
        fit(&mut mlp);
        assert_eq!(biases(&mlp), before);
        let accuracy = evaluate(&mlp.shrink().unwrap().0, &test).unwrap().accuracy.unwrap();
        assert!(accuracy > 0.95, "seed {seed}: {accuracy}");
    }
}
