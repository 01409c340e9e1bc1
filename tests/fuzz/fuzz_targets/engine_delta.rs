//! Any bytes as the difference of an engine: `Ok` or `Err`, and what is made of it has the difference of its own again.
//!
//! `cargo fuzz run -s none engine_delta` in `tests/`, on stable. Checks of the base and of the result are not fuzzed: the
//! first are right, and a wrong second one is tried for both of two results.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use trimnet::engine::{Config, Engine, Format};
use trimnet::io::trim::{EncodeOptions, Limits, apply_engine, diff_engine};
use trimnet::kernel::Pool;
use trimnet::ndarray::Array2;
use trimnet::nn::Mlp;
use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet_fuzz::file;

/// A base with all kinds of tensors, and the content of a difference from it.
static BASE: LazyLock<(Engine<f32>, Vec<u8>)> = LazyLock::new(|| {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mlp = Mlp::builder(5).layer_norm().linear(6).relu().linear(4).tanh().linear(4).linear(3).relu().batch_norm();
    let mlp = mlp.build::<f32>(&mut rng).unwrap();
    let engine = |scale: f32| {
        let x = Array2::from_shape_fn((20, 5), |(i, j)| scale * ((i * 3 + j * 5) % 7) as f32);
        let config = Config::new(Format::Int8).with_calibration(x.view()).with_pool(Pool::single());
        let formats = [Format::Int8, Format::Int4, Format::Palette, Format::Int8Dynamic];
        let config = formats.into_iter().enumerate().fold(config, |config, (i, format)| config.with_layer(i, format));
        Engine::build(&mlp, &config).unwrap()
    };
    let (base, new) = (engine(0.1), engine(0.2));
    let delta = diff_engine(&base, &new, &EncodeOptions::default()).unwrap();
    (base, delta)
});

fuzz_target!(|data: &[u8]| {
    let (base, delta) = &*BASE;
    let begin = delta.iter().position(|&byte| byte == 10).unwrap() + 1;
    let begin = begin + 1 + usize::from(delta[begin] & 0x80 != 0);
    let of_base = &delta[begin..begin + 4];
    // The check of the result stands at the end of the message that refuses it.
    let said = apply_engine(base, &file(10, &[of_base, &[0; 4], data].concat()), &Limits::new(1 << 18, 16));
    let Err(error) = said else { return };
    let said = error.to_string();
    let Some((_, rest)) = said.split_once("the result has check ") else { return };
    let of_new = u32::from_str_radix(&rest[..8], 16).unwrap().to_le_bytes();
    if let Ok(new) = apply_engine(base, &file(10, &[of_base, &of_new, data].concat()), &Limits::new(1 << 18, 16)) {
        let again = diff_engine(base, &new, &EncodeOptions::default()).unwrap();
        assert_eq!(apply_engine(base, &again, &Limits::default()).unwrap().to_bytes(), new.to_bytes());
    }
});
