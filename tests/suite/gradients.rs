//! Every gradient against finite differences, in double precision.

use ndarray::{Array2, Zip};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use trimnet::nn::{Activation, Grads, LayerGrads, Linear, Mlp};

const SEED: u64 = 5;
const STEP: f64 = 1e-5;

/// Numbers without a pattern, away from zero, in -1..1.
fn numbers(rows: usize, columns: usize, salt: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, columns), |(r, c)| {
        let x = ((r * 31 + c * 17 + salt * 7 + 3) as f64 * 0.7548776662466927).fract();
        2.0 * x - 1.0 + if x < 0.5 { -0.01 } else { 0.01 }
    })
}

/// `loss = sum(c * y + y^2 / 2)`, whose gradient is `c + y`, at the output and at the hidden layers `hidden`.
fn loss(mlp: &Mlp<f64>, x: &Array2<f64>, hidden: &[usize]) -> f64 {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let (y, cache) = mlp.clone().forward_with_hidden(x.view(), hidden, &mut rng).unwrap();
    let of = |y: &Array2<f64>, salt| {
        Zip::from(y)
            .and(&numbers(y.nrows(), y.ncols(), salt))
            .fold(0.0, |sum, &y, &c| sum + c * y + y * y / 2.0)
    };
    hidden.iter().fold(of(&y, 0), |sum, &l| sum + of(&cache.hidden(l).unwrap().to_owned(), l + 1))
}

fn backward(mlp: &Mlp<f64>, x: &Array2<f64>, hidden: &[usize]) -> (Array2<f64>, Grads<f64>) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let mut mlp = mlp.clone();
    let (y, cache) = mlp.forward_with_hidden(x.view(), hidden, &mut rng).unwrap();
    let of = |y: Array2<f64>, salt| numbers(y.nrows(), y.ncols(), salt) + y;
    let hints: Vec<_> = hidden.iter().map(|&l| (l, of(cache.hidden(l).unwrap().to_owned(), l + 1))).collect();
    mlp.backward_with_hints(cache, of(y, 0), &hints).unwrap()
}

/// All parameters, or all gradients, one after the other.
fn flat(mlp: &Mlp<f64>, grads: &Grads<f64>) -> (Vec<f64>, Vec<f64>) {
    let (mut values, mut slopes) = (Vec::new(), Vec::new());
    mlp.clone()
        .update_parameters(grads, |p| {
            values.extend_from_slice(p.values);
            slopes.extend_from_slice(p.grads);
        })
        .unwrap();
    (values, slopes)
}

/// The same network with parameter number `index` moved by `by`.
fn moved(mlp: &Mlp<f64>, grads: &Grads<f64>, index: usize, by: f64) -> Mlp<f64> {
    let mut mlp = mlp.clone();
    let mut start = 0;
    mlp.update_parameters(grads, |p| {
        let end = start + p.values.len();
        if (start..end).contains(&index) {
            p.values[index - start] += by;
        }
        start = end;
    })
    .unwrap();
    mlp
}

fn check(name: &str, mlp: &Mlp<f64>, x: &Array2<f64>, hidden: &[usize]) {
    let close = |what: String, slope: f64, loss: &dyn Fn(f64) -> f64| {
        // Fourth order: a batch norm over a nearly constant feature bends too much for the second.
        let (near, far) = (loss(STEP) - loss(-STEP), loss(2.0 * STEP) - loss(-2.0 * STEP));
        let difference = (8.0 * near - far) / (12.0 * STEP);
        let error = (slope - difference).abs() / slope.abs().max(difference.abs()).max(1.0);
        assert!(error < 1e-7, "{name}, {what}: backward says {slope}, differences say {difference}");
    };
    let (dx, grads) = backward(mlp, x, hidden);
    assert!(dx.iter().any(|&d| d != 0.0), "{name}");
    for ((row, column), &d) in dx.indexed_iter() {
        let at = |by: f64| {
            let mut x = x.clone();
            x[[row, column]] += by;
            loss(mlp, &x, hidden)
        };
        close(format!("input {row}, {column}"), d, &at);
    }
    let (values, slopes) = flat(mlp, &grads);
    assert_eq!(values.len(), mlp.parameters(), "{name}");
    for (index, &slope) in slopes.iter().enumerate() {
        let at = |by: f64| loss(&moved(mlp, &grads, index, by), x, hidden);
        close(format!("parameter {index}"), slope, &at);
    }
}

fn rng() -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(SEED)
}

#[test]
fn linear_with_and_without_a_bias() {
    let x = numbers(5, 3, 9);
    check("bias", &Mlp::builder(3).linear(4).build(&mut rng()).unwrap(), &x, &[]);
    check("no bias", &Mlp::builder(3).linear_no_bias(4).build(&mut rng()).unwrap(), &x, &[]);
    check("one row", &Mlp::builder(3).linear(4).build(&mut rng()).unwrap(), &numbers(1, 3, 9), &[]);
    check(
        "one input",
        &Mlp::builder(1).linear(4).linear(1).build(&mut rng()).unwrap(),
        &numbers(5, 1, 9),
        &[],
    );
}

#[test]
fn every_activation() {
    for activation in [
        Activation::Relu,
        Activation::LeakyRelu(0.1),
        Activation::LeakyRelu(-0.5),
        Activation::Elu(1.3),
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Clip { min: -0.3, max: 0.4 },
    ] {
        let mlp = Mlp::builder(3).linear(6).activation(activation).linear(2).build(&mut rng()).unwrap();
        check(&format!("{activation:?}"), &mlp, &numbers(5, 3, 9), &[]);
    }
}

#[test]
fn batch_norm() {
    let mlp = Mlp::builder(3).batch_norm().linear(4).batch_norm().build(&mut rng()).unwrap();
    check("batch norm", &mlp, &numbers(5, 3, 9), &[]);
}

#[test]
fn layer_norm() {
    let mlp = Mlp::builder(4).layer_norm().linear(5).layer_norm().build(&mut rng()).unwrap();
    check("layer norm", &mlp, &numbers(5, 4, 9), &[]);
}

#[test]
fn dropout_and_gaussian_noise_of_the_same_seed() {
    let mlp = Mlp::builder(3).linear(8).dropout(0.5).linear(2).build(&mut rng()).unwrap();
    check("dropout", &mlp, &numbers(5, 3, 9), &[]);
    let mlp = Mlp::builder(3)
        .gaussian_noise(0.3)
        .linear(8)
        .gaussian_noise(0.5)
        .linear(2)
        .build(&mut rng())
        .unwrap();
    check("noise", &mlp, &numbers(5, 3, 9), &[]);
}

fn whole() -> Mlp<f64> {
    Mlp::builder(4)
        .dropout(0.1)
        .linear_no_bias(8)
        .batch_norm()
        .relu()
        .dropout(0.4)
        .linear(6)
        .layer_norm()
        .gelu()
        .gaussian_noise(0.2)
        .linear(5)
        .batch_norm()
        .tanh()
        .linear(3)
        .build(&mut rng())
        .unwrap()
}

#[test]
fn a_whole_network_with_batch_norm_and_dropout() {
    check("whole", &whole(), &numbers(7, 4, 9), &[]);
}

#[test]
fn gradients_injected_at_hidden_layers() {
    check("hints", &whole(), &numbers(7, 4, 9), &[3, 7, 12, 0]);
}

#[test]
fn gradients_are_those_of_backward() {
    let (x, mlp) = (numbers(7, 4, 9), whole());
    let (_, full) = backward(&mlp, &x, &[]);
    let mut mlp = mlp;
    let (y, cache) = mlp.forward(x.view(), &mut rng()).unwrap();
    let dlogits = numbers(y.nrows(), y.ncols(), 0) + &y;
    assert_eq!(mlp.gradients(cache, dlogits).unwrap(), full);
}

#[test]
fn a_masked_weight_passes_nothing_back_but_has_a_gradient_of_its_own() {
    let mut mlp = Mlp::builder(3).linear(1).build::<f64>(&mut rng()).unwrap();
    let mask = trimnet::Mask::new(ndarray::array![[true, false, true]]);
    mlp.apply_masks(vec![mask]).unwrap();
    let (dx, grads) = backward(&mlp, &numbers(5, 3, 9), &[]);
    assert!(dx.column(1).iter().all(|&d| d == 0.0));
    let LayerGrads::Linear(grads) = &grads.layers()[0] else { panic!("a linear layer") };
    assert_ne!(grads.dweight[[0, 1]], 0.0);
}

#[test]
fn refuses_what_is_not_of_this_pass() {
    let x = numbers(5, 3, 9);
    let mut mlp = Mlp::builder(3).linear(4).relu().linear(2).build::<f64>(&mut rng()).unwrap();
    let other = Mlp::builder(3).linear(4).tanh().linear(2).build::<f64>(&mut rng()).unwrap();
    let wider = Mlp::builder(3).linear(5).relu().linear(2).build::<f64>(&mut rng()).unwrap();
    let deeper = Mlp::builder(3).linear(4).linear(4).linear(2).build::<f64>(&mut rng()).unwrap();
    let mut cache = || mlp.forward(x.view(), &mut rng()).unwrap().1;
    let [a, b, c, d, e, f, g] = std::array::from_fn(|_| cache());
    let dy = numbers(5, 2, 0);
    assert_eq!(
        mlp.backward(a, numbers(5, 3, 0)).unwrap_err().to_string(),
        "dlogits has shape [5, 3], expected [5, 2]"
    );
    assert!(mlp.backward(b, numbers(4, 2, 0)).is_err());
    assert!(wider.backward(c, dy.clone()).is_err());
    assert!(deeper.backward(d, dy.clone()).is_err());
    assert!(mlp.backward_with_hints(e, dy.clone(), &[(3, numbers(5, 2, 0))]).is_err());
    assert!(mlp.backward_with_hints(f, dy.clone(), &[(1, numbers(5, 2, 0))]).is_err());
    assert!(other.backward(g, dy).is_err());
    assert!(mlp.forward_with_hidden(x.view(), &[3], &mut rng()).is_err());
}

#[test]
fn linear_refuses_a_foreign_batch() {
    let linear = Linear::new(numbers(2, 3, 0), None).unwrap();
    assert!(linear.gradients(numbers(5, 3, 0).view(), numbers(4, 2, 0).view()).is_err());
}
