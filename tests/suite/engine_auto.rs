//! Formats by measurement, and a trained network as the judge.

#![cfg(feature = "idx")]

use std::path::Path;
use std::time::Duration;

use ndarray::s;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use trimnet::engine::{Auto, Config, Engine, Format};
use trimnet::io::idx;
use trimnet::nn::metrics::accuracy;
use trimnet::nn::{Adam, CrossEntropy, Dataset, Mlp, Trainer};
use trimnet::prune::MagnitudePruner;
use trimnet::quantize::PaletteQuantizer;
use trimnet::report::report;
use trimnet::{Compressed, Compressor};

fn digits() -> (Dataset<f32>, Dataset<f32>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/digits");
    let images = idx::read_folder(&folder).unwrap();
    match images.test {
        Some(test) => (images.train, test),
        None => images.train.split_stratified(0.25, 0).unwrap(),
    }
}

fn trained(train: &Dataset<f32>) -> Mlp<f32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mlp = Mlp::builder(train.features())
        .linear(64)
        .batch_norm()
        .relu()
        .dropout(0.1)
        .linear(32)
        .relu()
        .linear(10);
    let mut mlp = mlp.build::<f32>(&mut rng).unwrap();
    let trainer = Trainer::new(40, 32).unwrap().with_seed(1);
    trainer.fit(&mut mlp, &mut CrossEntropy, train, None, &mut Adam::new(), &mut []).unwrap();
    mlp
}

#[test]
fn int8_keeps_the_accuracy_of_a_trained_network() {
    let (train, test) = digits();
    let mlp = trained(&train);
    let labels = test.labels().unwrap();
    let before = accuracy(mlp.predict(test.inputs()).unwrap().view(), labels).unwrap();
    assert!(before > 0.93, "{before}");
    for (format, most) in [(Format::Dense, 1e-9), (Format::Int8, 0.003), (Format::Int8Dynamic, 0.003)] {
        let config = Config::new(format).with_calibration(train.inputs());
        let engine = Engine::build(&mlp, &config).unwrap();
        let after = accuracy(engine.predict(test.inputs()).unwrap().view(), labels).unwrap();
        assert!((before - after).abs() <= most, "{format}: {before} {after}");
    }
}

#[test]
fn formats_that_were_chosen_are_accurate_and_the_choice_is_told() {
    let (train, test) = digits();
    let mut mlp = trained(&train);
    let pruner = MagnitudePruner::sparsity(0.9).unwrap();
    if let Some(first) = mlp.linears_mut().next() {
        let pruned = pruner.compress(first.weight()).unwrap().decompress().unwrap();
        first.set_weight(pruned).unwrap();
    }
    let some = train.inputs().slice_move(s![..300, ..]);
    let build = |auto| Engine::build(&mlp, &Config::auto(auto).with_calibration(some)).unwrap();

    let small = build(Auto::Bytes);
    let choice = small.choice().unwrap();
    for (layer, candidates) in small.layers().iter().zip(&choice.layers) {
        let chosen = candidates.iter().find(|c| c.format == layer.format).unwrap();
        assert!(chosen.accurate);
        assert!(candidates.iter().filter(|c| c.accurate).all(|c| c.bytes >= chosen.bytes));
        assert!(candidates.iter().any(|c| c.format == Format::Dense));
    }
    assert!(choice.layers[0].iter().any(|c| c.format == Format::SparseInt8));

    let fast = build(Auto::Latency);
    let engines = &fast.choice().unwrap().engines;
    let formats: Vec<Format> = fast.layers().iter().map(|layer| layer.format).collect();
    let own = engines.iter().find(|(of, _)| *of == formats).unwrap().1;
    assert!(engines.iter().all(|(_, timing)| timing.median_us >= own.median_us));

    let both = build(Auto::BytesUnderLatency(Duration::from_millis(50)));
    let error = Config::auto(Auto::BytesUnderLatency(Duration::from_nanos(1))).with_calibration(some);
    let error = Engine::build(&mlp, &error).unwrap_err().to_string();
    assert!(error.contains("the fastest that was found takes"), "{error}");

    for engine in [small, fast, both] {
        let report = report(&mlp, &engine, &test).unwrap();
        let (before, after) = report.accuracy.unwrap();
        assert!(before - after < 0.02, "{report}");
        assert_eq!(report.bytes.total(), engine.to_bytes().len());
    }
    let error = Engine::build(&mlp, &Config::auto(Auto::Bytes)).unwrap_err().to_string();
    assert!(error.contains("with_calibration"), "{error}");
}

#[test]
fn shared_weights_make_the_smallest_engine_a_palette() {
    let (train, test) = digits();
    let mut mlp = trained(&train);
    mlp = mlp.fold_batch_norm().unwrap();
    for linear in mlp.linears_mut() {
        let shared = PaletteQuantizer::new(12).unwrap().compress(linear.weight()).unwrap();
        linear.set_weight(shared.decompress().unwrap()).unwrap();
    }
    let some = train.inputs().slice_move(s![..300, ..]);
    let engine = Engine::build(&mlp, &Config::auto(Auto::Bytes).with_calibration(some)).unwrap();
    // Exact, at half a byte for each weight.
    assert_eq!(engine.layers()[0].format, Format::Palette);
    let report = report(&mlp, &engine, &test).unwrap();
    assert!(report.to_string().contains("palette"), "{report}");
    assert!(report.layers[0].candidates.iter().any(|c| c.format == Format::Palette && c.sqnr_db > 100.0));
}

#[test]
fn a_layer_set_by_hand_wins_over_the_measurement() {
    let (train, _) = digits();
    let mlp = trained(&train.select(&(0..200).collect::<Vec<_>>()).unwrap());
    let config = Config::auto(Auto::Bytes).with_calibration(train.inputs()).with_layer(0, Format::Dense);
    assert_eq!(Engine::build(&mlp, &config).unwrap().layers()[0].format, Format::Dense);
}

#[test]
fn formats_that_f32_cannot_serve_are_left_out() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    let mlp = Mlp::builder(2).linear(2).tanh().linear(2).build::<f32>(&mut rng).unwrap();
    let mut wide = mlp.clone();
    let huge = ndarray::array![[1e20f32, 2e20], [2e20, 1e20]];
    wide.linears_mut().next().unwrap().set_weight(huge).unwrap();
    let data = ndarray::Array2::from_shape_fn((64, 2), |(i, j)| 1e30 * (1 + i + j) as f32);
    for auto in [Auto::Bytes, Auto::Latency] {
        let config = Config::auto(auto).with_calibration(data.view());
        let engine = Engine::build(&wide, &config).unwrap();
        assert_eq!(engine.predict(data.view()).unwrap().dim(), (64, 2), "{auto:?}");
    }
    let mut wide = Mlp::builder(2).linear(2).build::<f64>(&mut rng).unwrap();
    wide.linears_mut().next().unwrap().set_weight(ndarray::array![[1e200, 2e200], [-1e200, 1.0]]).unwrap();
    let data = ndarray::Array2::from_shape_fn((64, 2), |(i, j)| (1 + i + j) as f64);
    let engine = Engine::build(&wide, &Config::auto(Auto::Bytes).with_calibration(data.view())).unwrap();
    let exact = wide.predict(data.view()).unwrap();
    assert!(engine.predict(data.view()).unwrap().iter().zip(&exact).all(|(y, x)| (y / x - 1.0).abs() < 1e-9));
}
