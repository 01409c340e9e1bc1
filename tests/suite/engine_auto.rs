//! Formats by measurement, and a trained network as the judge.

#![cfg(feature = "idx")]

use std::path::Path;
use std::time::Duration;

use ndarray::s;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use trimnet::engine::{Auto, Config, Engine, Format, Io};
use trimnet::io::idx;
use trimnet::nn::metrics::accuracy;
use trimnet::nn::{Adam, CrossEntropy, Dataset, Mlp, Trainer};
use trimnet::prune::MagnitudePruner;
use trimnet::quantize::PaletteQuantizer;
use trimnet::report::report;
use trimnet::{Compressed, Compressor, Error};

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

#[test]
fn an_accuracy_budget_refuses_what_loses_more_and_names_the_layer() {
    let (train, test) = digits();
    let mlp = trained(&train);
    let config = || {
        // Two values for each layer, which no network survives.
        let config = Config::new(Format::Palette).with_palette_entries(2).with_layer(2, Format::Int8);
        config.with_calibration(train.inputs())
    };
    let error = Engine::build(&mlp, &config().with_accuracy_budget(&test, 0.02)).unwrap_err();
    let Error::OverBudget { before, after, allowed, layer } = error else { panic!("{error}") };
    let engine = Engine::build(&mlp, &config().with_accuracy_budget(&test, 1.0)).unwrap();
    assert_eq!(engine.evaluate(&test).unwrap().accuracy, Some(after));
    assert_eq!(trimnet::nn::evaluate(&mlp, &test).unwrap().accuracy, Some(before));
    assert!(before - after > allowed && layer < 2, "{before} {after} {layer}");
    let text = error.to_string();
    assert!(
        text.contains("allowed is a fall by 2.00 points") && text.contains(&format!("layer {layer}")),
        "{text}"
    );
}

#[test]
fn an_accuracy_budget_wins_accuracy_back_until_it_is_kept() {
    let (train, test) = digits();
    let mlp = trained(&train);
    let some = train.inputs().slice_move(s![..300, ..]);
    let before = trimnet::nn::evaluate(&mlp, &test).unwrap().accuracy.unwrap();
    for auto in [Auto::Bytes, Auto::Latency, Auto::BytesUnderLatency(Duration::from_millis(50))] {
        let config = Config::auto(auto).with_palette_entries(2).with_calibration(some);
        let engine = Engine::build(&mlp, &config.with_accuracy_budget(&test, 0.005)).unwrap();
        let judged = &engine.choice().unwrap().judged;
        let formats: Vec<Format> = engine.layers().iter().map(|layer| layer.format).collect();
        let own = judged.iter().rev().find(|(of, _)| *of == formats).unwrap().1;
        assert_eq!(engine.evaluate(&test).unwrap().accuracy, Some(own));
        assert!(before - own <= 0.005 + 1e-9, "{auto:?}: {before} {own}");
        if auto == Auto::Bytes {
            // Two values were the smallest, and lost too much.
            assert!(judged[0].0.contains(&Format::Palette) && before - judged[0].1 > 0.005, "{judged:?}");
            let floor = Config::auto(auto).with_calibration(some);
            let by_floor = Engine::build(&mlp, &floor).unwrap();
            assert!(engine.to_bytes().len() < by_floor.to_bytes().len());
        }
    }
}

#[test]
fn a_search_within_a_budget_leaves_layers_that_were_set_by_hand() {
    let (train, test) = digits();
    let mlp = trained(&train);
    let some = train.inputs().slice_move(s![..300, ..]);
    let config = Config::auto(Auto::Bytes).with_palette_entries(2).with_calibration(some);
    let config = config.with_layer(0, Format::Palette).with_accuracy_budget(&test, 0.005);
    let error = Engine::build(&mlp, &config).unwrap_err();
    assert!(matches!(error, Error::OverBudget { layer: 0, .. }), "{error}");
}

#[test]
fn an_accuracy_budget_needs_labels_and_a_share() {
    let (train, _) = digits();
    let mlp = trained(&train.select(&(0..200).collect::<Vec<_>>()).unwrap());
    let config = || Config::new(Format::Int8).with_calibration(train.inputs());
    for fall in [-0.1, 1.5, f64::NAN] {
        let error = Engine::build(&mlp, &config().with_accuracy_budget(&train, fall)).unwrap_err();
        assert!(matches!(error, Error::OutOfRange { name: "accuracy budget", .. }), "{error}");
    }
    let values = mlp.predict(train.inputs()).unwrap();
    let regression = Dataset::regression(train.inputs().to_owned(), values).unwrap();
    let error = Engine::build(&mlp, &config().with_accuracy_budget(&regression, 0.1)).unwrap_err();
    assert!(matches!(error, Error::Unsupported { what: "an accuracy budget", .. }), "{error}");
    let labels = vec![10; train.rows()];
    let wrong = Dataset::classification(train.inputs().to_owned(), labels).unwrap();
    let error = Engine::build(&mlp, &config().with_accuracy_budget(&wrong, 0.1)).unwrap_err();
    assert!(matches!(error, Error::Label { .. }), "{error}");
}

#[test]
fn an_engine_evaluates_like_its_network_whatever_its_ends() {
    let (train, test) = digits();
    let mlp = trained(&train);
    let exact = trimnet::nn::evaluate(&mlp, &test).unwrap();
    for (input, output) in
        [(Io::Float, Io::Float), (Io::Codes, Io::Float), (Io::Float, Io::Codes), (Io::Codes, Io::Codes)]
    {
        let config = Config::new(Format::Int8).with_calibration(train.inputs()).with_io(input, output);
        let found = Engine::build(&mlp, &config).unwrap().evaluate(&test).unwrap();
        assert!((found.loss - exact.loss).abs() < 0.05 * exact.loss, "{found:?} {exact:?}");
        assert!((found.accuracy.unwrap() - exact.accuracy.unwrap()).abs() < 0.01, "{found:?} {exact:?}");
    }
}

#[test]
fn gptq_makes_four_bits_less_noisy_on_rows_it_has_not_seen() {
    let (train, test) = digits();
    let mlp = trained(&train);
    let exact = mlp.predict(test.inputs()).unwrap();
    let noise = |config: Config<'_, f32>| {
        let engine = Engine::build(&mlp, &config).unwrap();
        (engine.predict(test.inputs()).unwrap() - &exact).mapv(|e| e * e).sum()
    };
    for (format, least) in [(Format::Int4, 2.0), (Format::Int8, 1.05), (Format::Int8Dynamic, 1.05)] {
        let config = || Config::new(format).with_calibration(train.inputs());
        let (nearest, gptq) = (noise(config()), noise(config().with_gptq(0.01)));
        assert!(nearest > least * gptq, "{format}: {nearest} {gptq}");
    }
    let build = |config: Config<'_, f32>| Engine::build(&mlp, &config).unwrap_err();
    let without = build(Config::new(Format::Int8Dynamic).with_gptq(0.01));
    assert!(without.to_string().contains("with_calibration"), "{without}");
    let damping = build(Config::new(Format::Int4).with_calibration(train.inputs()).with_gptq(0.0));
    assert!(matches!(damping, Error::OutOfRange { name: "damping", .. }), "{damping}");
}

#[test]
fn gptq_keeps_the_zeros_of_a_pruned_layer() {
    let (train, _) = digits();
    let mut mlp = trained(&train);
    mlp.prune_each(0..1, &MagnitudePruner::sparsity(0.8).unwrap()).unwrap();
    let config = Config::new(Format::SparseInt8).with_calibration(train.inputs()).with_gptq(0.01);
    let (gptq, zeros) = (Engine::build(&mlp, &config).unwrap(), |engine: &Engine<f32>| {
        let layer = &engine.layers()[0];
        layer.inputs * layer.outputs - layer.nonzero
    });
    let nearest = Config::new(Format::SparseInt8).with_calibration(train.inputs());
    let nearest = Engine::build(&mlp, &nearest).unwrap();
    // Small weights may become 0 either way.
    let pruned = (0.8 * (gptq.layers()[0].inputs * gptq.layers()[0].outputs) as f64) as usize;
    assert!(zeros(&gptq) >= pruned && zeros(&nearest) >= pruned);
}
