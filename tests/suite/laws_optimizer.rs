//! Laws and golden vectors of the optimizers.
//!
//! The golden numbers were computed by PyTorch (`torch.optim`, double precision) from the settings beside them.

use approx::assert_abs_diff_eq;
use ndarray::{Array1, Array2, Axis, array};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use trimnet::nn::{
    Adam, AdamW, Decay, Grads, Layer, LayerGrads, Linear, LinearGrads, Mlp, Momentum, Optimizer, Sgd,
};
use trimnet::normalize::AffineGrads;
use trimnet::{Error, Mask};

/// A network that is nothing but these weights.
fn weights(w: Array1<f64>) -> Mlp<f64> {
    let linear = Linear::new(w.clone().insert_axis(Axis(0)), None).unwrap();
    Mlp::from_layers(w.len(), vec![Layer::Linear(linear)]).unwrap()
}

fn grads(g: Array1<f64>) -> Grads<f64> {
    Grads::new(vec![LayerGrads::Linear(LinearGrads { dweight: g.insert_axis(Axis(0)), dbias: None })])
}

fn of(mlp: &Mlp<f64>) -> Array1<f64> {
    mlp.linears().next().unwrap().weight().row(0).to_owned()
}

/// Steps of 0.1 along these gradients give these weights, one after the other.
fn check_trace(mut optimizer: impl Optimizer<f64>, w: Array1<f64>, trace: &[(Array1<f64>, Array1<f64>)]) {
    let mut mlp = weights(w);
    for (g, expected) in trace {
        optimizer.step(&mut mlp, &grads(g.clone()), 0.1).unwrap();
        assert_abs_diff_eq!(of(&mlp), expected.clone(), epsilon = 1e-12);
    }
}

/// The three gradients of the reference traces, with the weights after each.
fn trace(after: [[f64; 2]; 3]) -> Vec<(Array1<f64>, Array1<f64>)> {
    let g = [array![0.5, -1.0], array![0.25, 2.0], array![0.0, 0.0]];
    g.into_iter().zip(after.map(Array1::from_iter)).collect()
}

#[test]
fn sgd_with_coupled_and_decoupled_decay_shrink_alike_without_a_gradient() {
    for decay in [Decay::Coupled(0.5), Decay::Decoupled(0.5), Decay::KerasL2(0.25)] {
        check_trace(Sgd::new().with_decay(decay).unwrap(), array![2.0], &[(array![0.0], array![1.9])]);
    }
    check_trace(AdamW::new(0.5).unwrap(), array![2.0], &[(array![0.0], array![1.9])]);
}

#[test]
fn sgd_with_momentum() {
    let sgd = Sgd::new().with_momentum(Momentum::Heavy(0.9)).unwrap();
    check_trace(sgd, array![1.0], &[(array![1.0], array![0.9]), (array![1.0], array![0.71])]);
}

#[test]
fn sgd_with_momentum_and_decay() {
    let sgd =
        Sgd::new().with_momentum(Momentum::Heavy(0.9)).unwrap().with_decay(Decay::Coupled(0.01)).unwrap();
    let after = [[0.949, -1.898], [0.877151, -2.004302], [0.811609749, -2.097969498]];
    check_trace(sgd, array![1.0, -2.0], &trace(after));
}

#[test]
fn sgd_with_nesterov() {
    let sgd = Sgd::new().with_momentum(Momentum::Nesterov(0.9)).unwrap();
    check_trace(sgd, array![1.0, -2.0], &trace([[0.905, -1.81], [0.817, -2.109], [0.7603, -2.1981]]));
}

#[test]
fn adamw() {
    let after = [
        [0.899000002000, -1.898000001000],
        [0.804883040475, -1.932712353471],
        [0.732020403414, -1.959079549646],
    ];
    check_trace(AdamW::new(0.01).unwrap(), array![1.0, -2.0], &trace(after));
}

#[test]
fn adam_with_l2() {
    let after = [
        [0.900000001961, -1.900000000980],
        [0.806555041050, -1.935504418657],
        [0.733427518907, -1.962393179238],
    ];
    check_trace(Adam::new().with_decay(Decay::Coupled(0.01)).unwrap(), array![1.0, -2.0], &trace(after));
}

#[test]
fn a_masked_weight_is_not_revived_by_its_momentum() {
    let mut sgd = Sgd::new().with_momentum(Momentum::Heavy(0.9)).unwrap();
    let mut mlp = weights(array![1.0, 1.0]);
    sgd.step(&mut mlp, &grads(array![1.0, 1.0]), 0.1).unwrap();
    mlp.apply_masks(vec![Mask::new(array![[false, true]])]).unwrap();
    sgd.step(&mut mlp, &grads(array![0.0, 1.0]), 0.1).unwrap();
    assert_eq!(of(&mlp)[0], 0.0);
    assert_abs_diff_eq!(of(&mlp)[1], 0.71, epsilon = 1e-15);

    // Not even when the mask is lifted: the momentum itself was cleared.
    mlp.linears_mut().for_each(Linear::clear_mask);
    sgd.step(&mut mlp, &grads(array![0.0, 1.0]), 0.1).unwrap();
    assert_eq!(of(&mlp)[0], 0.0);
}

/// Every optimizer, with this much of every decay.
fn all(lambda: f64) -> Vec<(String, Box<dyn Optimizer<f64>>)> {
    let mut list: Vec<(String, Box<dyn Optimizer<f64>>)> =
        vec![("AdamW".into(), Box::new(AdamW::new(lambda).unwrap()))];
    for decay in [Decay::None, Decay::Coupled(lambda), Decay::Decoupled(lambda), Decay::KerasL2(lambda)] {
        for momentum in [Momentum::None, Momentum::Heavy(0.9), Momentum::Nesterov(0.9)] {
            let sgd = Sgd::new().with_momentum(momentum).unwrap().with_decay(decay).unwrap();
            list.push((format!("Sgd, {momentum:?}, {decay:?}"), Box::new(sgd)));
        }
        let adam = Adam::new().with_decay(decay).unwrap();
        list.push((format!("Adam, {decay:?}"), Box::new(adam)));
    }
    list
}

fn network(seed: u64) -> Mlp<f64> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    Mlp::builder(4)
        .linear(5)
        .batch_norm()
        .relu()
        .linear_no_bias(3)
        .layer_norm()
        .linear(2)
        .build(&mut rng)
        .unwrap()
}

/// Whether the network could take the step: a layer norm before a row of zeros can make gradients explode.
fn train_step(optimizer: &mut dyn Optimizer<f64>, mlp: &mut Mlp<f64>, x: &Array2<f64>) -> bool {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
    let grads = mlp.forward(x.view(), &mut rng).and_then(|(y, cache)| mlp.gradients(cache, y));
    match grads.and_then(|grads| optimizer.step(mlp, &grads, 0.05)) {
        Err(Error::NotFinite { .. }) => false,
        step => step.is_ok() || panic!("{step:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_masked_weight_is_exactly_zero_after_any_number_of_steps(
        keep in proptest::collection::vec(any::<bool>(), 20 + 15 + 6),
        x in proptest::collection::vec(-2.0..2.0, 24),
        lambda in 0.0..0.5,
        before in 0usize..3,
        after in 1usize..6,
        seed in 0u64..1000,
    ) {
        let x = Array2::from_shape_vec((6, 4), x).unwrap();
        for (name, mut optimizer) in all(lambda) {
            let mut mlp = network(seed);
            for _ in 0..before {
                train_step(&mut *optimizer, &mut mlp, &x);
            }
            let mut flags = keep.iter().copied();
            let masks: Vec<_> = mlp
                .linears()
                .map(|l| Mask::new(Array2::from_shape_simple_fn(l.weight().raw_dim(), || flags.next().unwrap())))
                .collect();
            mlp.apply_masks(masks.clone()).unwrap();
            for step in 0..after {
                let went = train_step(&mut *optimizer, &mut mlp, &x);
                for (linear, mask) in mlp.linears().zip(&masks) {
                    for (w, &keep) in linear.weight().iter().zip(mask.keep()) {
                        prop_assert!(keep || w.to_bits() == 0, "{name}, step {step}: {w}");
                    }
                }
                if !went {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_learning_rate_of_zero_moves_nothing(seed in 0u64..1000) {
        for (name, mut optimizer) in all(0.1) {
            let mut mlp = network(seed);
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
            let (y, cache) = mlp.forward(Array2::ones((3, 4)).view(), &mut rng).unwrap();
            let grads = mlp.gradients(cache, y).unwrap();
            let before = mlp.clone();
            optimizer.step(&mut mlp, &grads, 0.0).unwrap();
            prop_assert_eq!(&before, &mlp, "{}", name);
        }
    }
}

#[test]
fn nothing_moves_when_a_step_fails() {
    let x = Array2::from_shape_fn((3, 4), |(n, i)| (n * 4 + i) as f64 / 7.0);
    for (name, mut optimizer) in all(0.1) {
        let mut mlp = network(1);
        assert!(train_step(&mut *optimizer, &mut mlp, &x));
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
        let (y, cache) = mlp.forward(x.view(), &mut rng).unwrap();
        let good = mlp.gradients(cache, y).unwrap();
        let before = mlp.clone();

        for rate in [-0.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(optimizer.step(&mut mlp, &good, rate), Err(Error::OutOfRange { .. })), "{name}");
        }
        let mut layers = good.layers().to_vec();
        layers.pop();
        assert!(
            matches!(optimizer.step(&mut mlp, &Grads::new(layers), 0.1), Err(Error::Shape { .. })),
            "{name}"
        );

        // The very last gradient is bad: the layers before it must not have moved.
        let mut layers = good.layers().to_vec();
        if let Some(LayerGrads::Linear(last)) = layers.last_mut() {
            last.dbias.as_mut().unwrap()[1] = f64::NAN;
        }
        let error = optimizer.step(&mut mlp, &Grads::new(layers), 0.1).unwrap_err();
        assert_eq!(error.to_string(), "dbias is NaN at index [1]; only finite numbers are allowed", "{name}");

        let mut layers = good.layers().to_vec();
        layers[0] = LayerGrads::None;
        assert!(optimizer.step(&mut mlp, &Grads::new(layers), 0.1).is_err(), "{name}");
        let mut layers = good.layers().to_vec();
        layers[1] = LayerGrads::Affine(AffineGrads { dgamma: Array1::zeros(5), dbeta: Array1::zeros(4) });
        assert!(optimizer.step(&mut mlp, &Grads::new(layers), 0.1).is_err(), "{name}");
        assert_eq!(before, mlp, "{name}");
    }
}

#[test]
fn a_network_of_another_shape_needs_a_reset() {
    let g = |n: usize| grads(Array1::ones(n));
    for mut optimizer in [
        Box::new(Sgd::new().with_momentum(Momentum::Heavy(0.9)).unwrap()) as Box<dyn Optimizer<f64>>,
        Box::new(Adam::new()),
        Box::new(AdamW::new(0.0).unwrap()),
    ] {
        optimizer.step(&mut weights(array![1.0, 2.0, 3.0]), &g(3), 0.1).unwrap();
        let mut smaller = weights(array![1.0, 2.0]);
        let error = optimizer.step(&mut smaller, &g(2), 0.1).unwrap_err();
        assert_eq!(error.to_string(), "optimizer state has shape [1, 3], expected [1, 2]");
        assert_eq!(of(&smaller), array![1.0, 2.0]);
        optimizer.reset();
        optimizer.step(&mut smaller, &g(2), 0.1).unwrap();
        assert_abs_diff_eq!(of(&smaller), array![0.9, 1.9], epsilon = 1e-8);
    }
}

#[test]
fn refuses_settings_out_of_range() {
    for bad in [-0.1, 1.0, f64::NAN] {
        assert!(Sgd::<f64>::new().with_momentum(Momentum::Heavy(bad)).is_err());
        assert!(Sgd::<f64>::new().with_momentum(Momentum::Nesterov(bad)).is_err());
        assert!(Adam::<f64>::new().with_betas(bad, 0.9).is_err());
        assert!(Adam::<f64>::new().with_betas(0.9, bad).is_err());
    }
    for bad in [-0.1, f64::NAN, f64::INFINITY] {
        for decay in [Decay::Coupled(bad), Decay::Decoupled(bad), Decay::KerasL2(bad)] {
            assert!(Sgd::<f64>::new().with_decay(decay).is_err());
            assert!(Adam::<f64>::new().with_decay(decay).is_err());
        }
        assert!(AdamW::<f64>::new(bad).is_err());
    }
    for bad in [0.0, -1e-8, f64::NAN, f64::INFINITY] {
        assert!(Adam::<f64>::new().with_eps(bad).is_err());
    }
    // Positive, but zero in single precision: a weight without a gradient would become 0 / 0.
    assert!(Adam::<f32>::new().with_eps(1e-60).is_err());
}
