//! Differences between networks: exact to the bit, small, and refused when damaged or put on another base.

use ndarray::Array2;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::io::trim::{EncodeOptions, Limits, apply, diff};
use trimnet::nn::Mlp;
use trimnet::quantize::PaletteQuantizer;
use trimnet::{Compressed, Compressor, Float, Mask};

type Rng = Xoshiro256PlusPlus;

fn network<F: Float>(rng: &mut Rng) -> Mlp<F> {
    Mlp::builder(20)
        .linear(30)
        .batch_norm()
        .relu()
        .dropout(0.5)
        .linear_no_bias(12)
        .layer_norm()
        .leaky_relu(0.1)
        .linear(4)
        .build(rng)
        .unwrap()
}

/// All weights take few values, and a third of them is masked.
fn share<F: Float>(mlp: &mut Mlp<F>, rng: &mut Rng) {
    for linear in mlp.linears_mut() {
        let keep = Array2::from_shape_simple_fn(linear.weight().raw_dim(), || rng.random_bool(0.66));
        linear.set_mask(Mask::new(keep)).unwrap();
        let shared = PaletteQuantizer::new(8).unwrap().compress(linear.weight()).unwrap();
        linear.set_weight(shared.decompress().unwrap()).unwrap();
    }
}

/// One of several ways in which a network is trained further.
fn change<F: Float>(mlp: &mut Mlp<F>, way: u8, rng: &mut Rng) {
    let x = Array2::from_shape_simple_fn((8, 20), || F::of(rng.random_range(-1.0..1.0)));
    if way == 6 {
        mlp.forward(x.view(), rng).unwrap(); // moves the running statistics
        return;
    }
    for linear in mlp.linears_mut() {
        let mut weight = linear.weight().to_owned();
        match way {
            0 => {}
            1 => weight.mapv_inplace(|w| w * F::of(1.001)),
            2 => weight.mapv_inplace(|w| if rng.random_bool(0.05) { -w } else { w }),
            3 => linear.clear_mask(),
            4 => linear.set_mask(Mask::new(weight.mapv(|w| w > F::zero()))).unwrap(),
            5 => linear.set_mask(Mask::of_nonzero(weight.view())).unwrap(),
            _ => weight.mapv_inplace(|w| w + F::of(rng.random_range(-0.1..0.1))),
        }
        linear.set_weight(weight).unwrap();
        if way % 2 == 1 {
            linear.set_bias(linear.bias().map(|bias| bias.mapv(|b| b + F::of(0.25)))).unwrap();
        }
    }
}

fn comes_back<F: Float>(seed: u64, shared: bool, ways: &[u8]) {
    let mut rng = Rng::seed_from_u64(seed);
    let mut base: Mlp<F> = network(&mut rng);
    if shared {
        share(&mut base, &mut rng);
    }
    let mut new = base.clone();
    ways.iter().for_each(|&way| change(&mut new, way, &mut rng));
    let delta = diff(&base, &new, &EncodeOptions::default()).unwrap();
    let again = apply(&base, &delta, &Limits::default()).unwrap();
    for (i, (a, b)) in again.layers().iter().zip(new.layers()).enumerate() {
        assert!(a == b, "layer {i}, ways {ways:?}, shared {shared}");
    }
    assert_eq!(again, new);
    assert_eq!(again.to_bytes(), new.to_bytes(), "the sign of a zero");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_comes_out_is_equal_to_the_bit(
        seed in any::<u64>(),
        shared in any::<bool>(),
        ways in proptest::collection::vec(0..8u8, 0..4),
    ) {
        comes_back::<f32>(seed, shared, &ways);
        comes_back::<f64>(seed, shared, &ways);
    }

    #[test]
    fn any_bytes_are_an_error_or_a_network(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let base: Mlp<f32> = network(&mut Rng::seed_from_u64(1));
        let good = diff(&base, &base, &EncodeOptions::default()).unwrap();
        // Behind the right checks of base and result, and with the checksum of the file made right.
        let section = [&good[7..15], &bytes].concat();
        let file = sealed(&[b"TRIM\x01\x08", &[section.len() as u8][..], &section].concat());
        if let Ok(mlp) = apply(&base, &file, &Limits::new(1 << 16, 16)) {
            prop_assert_eq!(mlp, base);
        }
    }
}

fn sealed(body: &[u8]) -> Vec<u8> {
    [body, &crc32fast::hash(body).to_le_bytes()].concat()
}

#[test]
fn shared_values_that_moved_cost_little() {
    let mut rng = Rng::seed_from_u64(1);
    let mut base = Mlp::builder(100).linear(80).relu().linear(10).build::<f32>(&mut rng).unwrap();
    share(&mut base, &mut rng);
    let mut new = base.clone();
    change(&mut new, 1, &mut rng);
    let (delta, whole) = (diff(&base, &new, &EncodeOptions::default()).unwrap(), new.to_bytes());
    assert!(delta.len() < whole.len() / 4, "{} of {}", delta.len(), whole.len());
    let none = diff(&base, &base, &EncodeOptions::default()).unwrap();
    assert!(none.len() < 40, "{}", none.len());
}

#[test]
fn small_steps_cost_less_than_the_numbers() {
    let mut rng = Rng::seed_from_u64(1);
    let base = Mlp::builder(100).linear(80).relu().linear(10).build::<f32>(&mut rng).unwrap();
    let mut new = base.clone();
    change(&mut new, 1, &mut rng);
    let (delta, whole) = (diff(&base, &new, &EncodeOptions::default()).unwrap(), new.to_bytes());
    assert!(delta.len() < whole.len() * 2 / 3, "{} of {}", delta.len(), whole.len());
}

#[test]
fn another_base_another_architecture_and_damage_are_refused() {
    let mut rng = Rng::seed_from_u64(3);
    let mut base = Mlp::builder(9).linear(6).batch_norm().relu().linear(3).build::<f32>(&mut rng).unwrap();
    share(&mut base, &mut rng);
    let mut new = base.clone();
    change(&mut new, 7, &mut Rng::seed_from_u64(1));
    let (options, limits) = (EncodeOptions::default(), Limits::default());
    let delta = diff(&base, &new, &options).unwrap();
    assert_eq!(apply(&base, &delta, &limits).unwrap(), new);
    assert!(apply(&new, &delta, &limits).unwrap_err().to_string().contains("base of check"));
    let other = Mlp::builder(9).linear(7).relu().linear(3).build::<f32>(&mut rng).unwrap();
    assert!(diff(&base, &other, &options).is_err());
    let slope =
        Mlp::builder(9).linear(6).batch_norm().leaky_relu(0.2).linear(3).build::<f32>(&mut rng).unwrap();
    assert!(diff(&base, &slope, &options).is_err());
    assert!(Mlp::<f32>::from_bytes(&delta).is_err() && apply(&base, &base.to_bytes(), &limits).is_err());
    for end in 0..delta.len() {
        assert!(apply(&base, &delta[..end], &limits).is_err(), "cut at {end}");
    }
    for bit in 0..8 * delta.len() {
        let mut damaged = delta.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(apply(&base, &damaged, &limits).is_err(), "bit {bit}");
        // What the checksum of the file would have caught first.
        if let Ok(mlp) = apply(&base, &sealed(&damaged[..delta.len() - 4]), &limits) {
            assert_eq!(mlp, new, "bit {bit}");
        }
    }
    assert!(apply(&base, &delta, &Limits::new(10, 0)).is_err());
}
