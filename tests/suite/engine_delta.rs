//! Differences between engines: exact to the byte, small, and refused when damaged or put on another base.

use ndarray::Array2;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::engine::{Config, Element, Engine, Format, Io};
use trimnet::io::trim::{EncodeOptions, Limits, apply, apply_engine, diff, diff_engine};
use trimnet::nn::Mlp;
use trimnet::prune::NmPruner;
use trimnet::{Compressed, Compressor, Float};

type Rng = Xoshiro256PlusPlus;

const FORMATS: [Format; 9] = Format::ALL;

fn network<F: Float>(seed: u64) -> Mlp<F> {
    let mut rng = Rng::seed_from_u64(seed);
    let builder = Mlp::builder(12).layer_norm().linear(17).relu().linear(9).gelu().linear(8).relu();
    let mut mlp: Mlp<F> = builder.batch_norm().linear(3).build(&mut rng).unwrap();
    for linear in mlp.linears_mut() {
        // Of two in four, so that every format can have them.
        let pruned = NmPruner::keep(2, 4).unwrap().compress(linear.weight()).unwrap().decompress().unwrap();
        linear.set_weight(pruned).unwrap();
    }
    mlp
}

fn data<F: Float>(seed: u64, scale: f64) -> Array2<F> {
    let mut rng = Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((40, 12), || F::of(scale * rng.random_range(-1.0..1.0)))
}

fn engine<F: Element>(mlp: &Mlp<F>, formats: &[Format], io: (Io, Io), x: &Array2<F>) -> Engine<F> {
    let mut config = Config::new(Format::Int8).with_calibration(x.view()).with_io(io.0, io.1);
    for (layer, &format) in formats.iter().enumerate() {
        // Behind the first layer inputs without weights are cut out, and four neighbours are others.
        let format = if layer > 0 && format.is_two_four() { Format::Dense } else { format };
        config = config.with_layer(layer, format);
    }
    Engine::build(mlp, &config).unwrap()
}

/// Trained further: weights move a little, or a few of them change sign.
fn trained<F: Float>(mlp: &Mlp<F>, way: u8, seed: u64) -> Mlp<F> {
    let (mut new, mut rng) = (mlp.clone(), Rng::seed_from_u64(seed));
    for linear in new.linears_mut() {
        let mut weight = linear.weight().to_owned();
        match way {
            0 => {}
            1 => weight.mapv_inplace(|w| w * F::of(1.01)),
            _ => weight.mapv_inplace(|w| if rng.random_bool(0.1) { -w } else { w }),
        }
        linear.set_weight(weight).unwrap();
        linear.set_bias(linear.bias().map(|bias| bias.mapv(|b| b + F::of(f64::from(way) * 0.01)))).unwrap();
    }
    new
}

fn comes_back<F: Element>(seed: u64, formats: &[Format], io: (Io, Io), way: u8, scale: f64) {
    let mlp = network::<F>(seed);
    let base = engine(&mlp, formats, io, &data(seed, 1.0));
    let new = engine(&trained(&mlp, way, seed), formats, io, &data(seed + 1, scale));
    let delta = diff_engine(&base, &new, &EncodeOptions::default()).unwrap();
    let again = apply_engine(&base, &delta, &Limits::default()).unwrap();
    assert_eq!(again.to_bytes(), new.to_bytes(), "{formats:?}");
    assert!(apply_engine(&new, &delta, &Limits::default()).is_err() || base.to_bytes() == new.to_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_comes_out_is_equal_to_the_byte(
        seed in 0u64..1 << 40,
        formats in proptest::collection::vec(proptest::sample::select(&FORMATS), 4),
        io in proptest::sample::select(&[(Io::Float, Io::Float), (Io::Codes, Io::Float), (Io::Codes, Io::Codes)]),
        way in 0u8..3,
        scale in proptest::sample::select(&[1.0, 1.3]),
    ) {
        comes_back::<f32>(seed, &formats, io, way, scale);
        comes_back::<f64>(seed, &formats, io, way, scale);
    }

    #[test]
    fn any_bytes_are_an_error_or_an_engine(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let mlp = network::<f32>(1);
        let base = engine(&mlp, &[Format::Int8, Format::Palette, Format::Int4, Format::Dense], (Io::Float, Io::Codes), &data(1, 1.0));
        let good = diff_engine(&base, &base, &EncodeOptions::default()).unwrap();
        // Behind the right checks of base and result, and with the checksum of the file made right.
        let section = [&good[7..15], &bytes].concat();
        let file = sealed(&[b"TRIM\x01\x0a", &[section.len() as u8][..], &section].concat());
        if let Ok(engine) = apply_engine(&base, &file, &Limits::new(1 << 16, 16)) {
            prop_assert_eq!(engine.to_bytes(), base.to_bytes());
        }
    }
}

fn sealed(body: &[u8]) -> Vec<u8> {
    [body, &crc32fast::hash(body).to_le_bytes()].concat()
}

#[test]
fn calibrating_anew_costs_a_fraction_of_the_engine() {
    let mlp = Mlp::builder(80).linear(60).relu().linear(10).build::<f32>(&mut Rng::seed_from_u64(1)).unwrap();
    let x = |scale: f32| Array2::from_shape_fn((50, 80), |(i, j)| scale * ((i * 7 + j * 3) % 11) as f32);
    let engine =
        |scale| Engine::build(&mlp, &Config::new(Format::Int8).with_calibration(x(scale).view())).unwrap();
    let (base, new) = (engine(0.1), engine(0.13));
    let delta = diff_engine(&base, &new, &EncodeOptions::default()).unwrap();
    assert!(delta.len() < new.to_bytes().len() / 8, "{} of {}", delta.len(), new.to_bytes().len());
    let none = diff_engine(&base, &base, &EncodeOptions::default()).unwrap();
    assert!(none.len() < 40, "{}", none.len());
}

#[test]
fn what_cannot_be_told_apart_by_numbers_is_named() {
    let (mlp, x, io) = (network::<f32>(1), data(1, 1.0), (Io::Float, Io::Float));
    let base = engine(&mlp, &[Format::Int8; 4], io, &x);
    let said =
        |new: &Engine<f32>| diff_engine(&base, new, &EncodeOptions::default()).unwrap_err().to_string();
    let other = engine(&mlp, &[Format::Int8, Format::Int4, Format::Int8, Format::Int8], io, &x);
    let error = said(&other);
    assert!(error.contains("int8") && error.contains("int4 layer 9 x 17"), "{error}");
    assert!(said(&engine(&mlp, &[Format::Int8; 4], (Io::Codes, Io::Float), &x)).contains("ends"));
    let fewer = Mlp::builder(12).linear(3).build::<f32>(&mut Rng::seed_from_u64(1)).unwrap();
    assert!(said(&engine(&fewer, &[Format::Int8], io, &x)).contains("blocks"));
}

#[test]
fn the_difference_of_networks_is_not_that_of_engines() {
    let (mlp, limits) = (network::<f32>(1), Limits::default());
    let base = engine(&mlp, &[Format::Dense; 4], (Io::Float, Io::Float), &data(1, 1.0));
    let of_engines = diff_engine(&base, &base, &EncodeOptions::default()).unwrap();
    let of_networks = diff(&mlp, &mlp, &EncodeOptions::default()).unwrap();
    assert!(apply(&mlp, &of_engines, &limits).unwrap_err().to_string().contains("no section Delta"));
    let error = apply_engine(&base, &of_networks, &limits).unwrap_err().to_string();
    assert!(error.contains("no section EngineDelta; it holds a difference, for apply"), "{error}");
    assert!(Engine::<f32>::from_bytes(&of_engines).is_err());
}

#[test]
fn damage_is_refused() {
    let (mlp, limits) = (network::<f32>(2), Limits::default());
    let formats = [Format::Int8, Format::Palette, Format::Int4, Format::Int8Dynamic];
    let base = engine(&mlp, &formats, (Io::Codes, Io::Float), &data(1, 1.0));
    let new = engine(&trained(&mlp, 2, 3), &formats, (Io::Codes, Io::Float), &data(2, 1.2));
    let delta = diff_engine(&base, &new, &EncodeOptions::default()).unwrap();
    let whole = new.to_bytes();
    assert_eq!(apply_engine(&base, &delta, &limits).unwrap().to_bytes(), whole);
    for end in 0..delta.len() {
        assert!(apply_engine(&base, &delta[..end], &limits).is_err(), "cut at {end}");
    }
    for bit in 0..8 * delta.len() {
        let mut damaged = delta.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(apply_engine(&base, &damaged, &limits).is_err(), "bit {bit}");
        // What the checksum of the file would have caught first.
        if let Ok(engine) = apply_engine(&base, &sealed(&damaged[..delta.len() - 4]), &limits) {
            assert_eq!(engine.to_bytes(), whole, "bit {bit}");
        }
    }
    assert!(apply_engine(&base, &delta, &Limits::new(10, 0)).is_err());
}

#[test]
fn settings_that_differ_in_the_sign_of_zero_are_refused_when_written() {
    let engine = |slope: f64| {
        let mut rng = Rng::seed_from_u64(1);
        let mlp = Mlp::builder(4).linear(3).leaky_relu(slope).linear(2).build::<f32>(&mut rng).unwrap();
        Engine::build(&mlp, &Config::new(Format::Dense)).unwrap()
    };
    let (base, new) = (engine(0.0), engine(-0.0));
    let error = diff_engine(&base, &new, &EncodeOptions::default()).unwrap_err().to_string();
    assert!(error.contains("-0"), "{error}");
}
