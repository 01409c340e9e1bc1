//! What an engine promises: integer results to the bit, float results near the network's, the same from every thread.

use std::time::{Duration, Instant};

use ndarray::{Array1, Array2, ArrayView2};
use proptest::prelude::*;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use trimnet::engine::{Batch, BatchMut, Config, Engine, Format, Io, LayerInfo, RangeChoice};
use trimnet::kernel::{Isa, Pool};
use trimnet::nn::{Activation, Layer, Linear, Mlp};
use trimnet::normalize::{BatchNorm, LayerNorm};
use trimnet::prune::NmPruner;
use trimnet::quantize::QuantParams;
use trimnet::{Compressed, Compressor};

fn uniform(rng: &mut Xoshiro256PlusPlus, rows: usize, columns: usize) -> Array2<f32> {
    Array2::from_shape_simple_fn((rows, columns), || rng.random::<f32>() * 2.0 - 0.8)
}

/// Linear layers of these widths with random biases, and `activation` between them.
fn network(widths: &[usize], activation: Activation, seed: u64) -> Mlp<f32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut layers = Vec::new();
    for (i, pair) in widths.windows(2).enumerate() {
        let scale = (3.0 / pair[0] as f32).sqrt();
        let weight =
            Array2::from_shape_simple_fn((pair[1], pair[0]), || scale * (2.0 * rng.random::<f32>() - 1.0));
        let bias = Array1::from_shape_simple_fn(pair[1], || 0.2 * rng.random::<f32>() - 0.1);
        layers.push(Layer::Linear(Linear::new(weight, Some(bias)).unwrap()));
        if i + 2 < widths.len() {
            layers.push(Layer::Activation(activation));
        }
    }
    Mlp::from_layers(widths[0], layers).unwrap()
}

/// An integer engine like ONNX Runtime's tool makes it.
fn plain<'a>(format: Format, data: ArrayView2<'a, f32>, isa: Isa) -> Config<'a, f32> {
    Config::new(format)
        .with_calibration(data)
        .with_range(RangeChoice::MinMax)
        .without_bias_correction()
        .with_isa(isa)
}

fn code(x: f32, low: i32, high: i32, zero_point: i32) -> i32 {
    (f64::from(x.round_ties_even()) + f64::from(zero_point)).clamp(f64::from(low), f64::from(high)) as i32
}

fn quantized(x: &[f32], params: QuantParams<f32>) -> Vec<i32> {
    x.iter().map(|&x| code(x / params.scale, 0, 255, params.zero_point)).collect()
}

/// The network in QDQ arithmetic, term by term, one row: only the scales of activations are taken from the engine.
fn reference(mlp: &Mlp<f32>, layers: &[LayerInfo], row: &[f32]) -> Vec<f32> {
    let mut codes = quantized(row, layers[0].input.unwrap());
    let count = layers.len();
    for (i, (linear, info)) in mlp.linears().zip(layers).enumerate() {
        let input = info.input.unwrap();
        let (mut next, mut out) = (Vec::new(), Vec::new());
        for (w, &b) in linear.weight().rows().into_iter().zip(linear.bias().unwrap()) {
            let amax = w.iter().fold(0.0f32, |amax, w| amax.max(w.abs()));
            let scale = (f64::from(amax) / 127.0) as f32;
            let bias = (f64::from(b) / f64::from(input.scale * scale)).round_ties_even() as i64;
            let sum = w.iter().zip(&codes).fold(bias, |sum, (&w, &c)| {
                sum + i64::from(code(w / scale, -127, 127, 0)) * i64::from(c - input.zero_point)
            });
            let sum = i32::try_from(sum).unwrap() as f32;
            match info.output {
                None => out.push(sum * (input.scale * scale)),
                Some(to) => {
                    let low = if i + 1 < count { to.zero_point } else { 0 };
                    next.push(code(sum * (input.scale * scale / to.scale), low, 255, to.zero_point));
                }
            }
        }
        if info.output.is_none() {
            return out;
        }
        codes = next;
    }
    codes.into_iter().map(|code| code as f32).collect()
}

#[test]
fn int8_equals_the_plain_qdq_arithmetic_to_the_bit() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
    for widths in [&[7, 5, 3][..], &[784, 300, 100, 10], &[33, 65, 64, 31, 1], &[1, 1, 1], &[130, 4]] {
        let mlp = network(widths, Activation::Relu, 2);
        let data = uniform(&mut rng, 60, widths[0]);
        for isa in Isa::available() {
            let engine = Engine::build(&mlp, &plain(Format::Int8, data.view(), isa)).unwrap();
            let layers = engine.layers();
            for rows in [1, 2, 3, 15, 60] {
                let x = data.slice(ndarray::s![..rows, ..]);
                let y = engine.predict(x).unwrap();
                for (x, y) in x.rows().into_iter().zip(y.rows()) {
                    assert_eq!(
                        y.to_vec(),
                        reference(&mlp, &layers, x.as_slice().unwrap()),
                        "{isa} {widths:?} {rows}"
                    );
                }
            }
        }
    }
}

#[test]
fn codes_in_and_out_are_those_of_the_reference() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(6);
    let mlp = network(&[20, 30, 4], Activation::Relu, 3);
    let data = uniform(&mut rng, 50, 20);
    let config = plain(Format::Int8, data.view(), Isa::best()).with_io(Io::Codes, Io::Codes);
    let engine = Engine::build(&mlp, &config).unwrap();
    let (entry, exit) = (engine.entry().unwrap(), engine.exit().unwrap());
    assert_eq!(engine.layers()[1].output, Some(exit));
    let x = data.as_slice().unwrap();
    let codes: Vec<u8> = quantized(x, entry).into_iter().map(|code| code as u8).collect();
    let mut out = vec![0; 50 * 4];
    let mut workspace = engine.workspace(50);
    engine.run(Batch::Codes(&codes), BatchMut::Codes(&mut out), &mut workspace).unwrap();
    for (x, out) in data.rows().into_iter().zip(out.chunks(4)) {
        let expected = reference(&mlp, &engine.layers(), x.as_slice().unwrap());
        assert_eq!(out.iter().map(|&code| f32::from(code)).collect::<Vec<_>>(), expected);
    }
    let error = engine.predict(data.view()).unwrap_err().to_string();
    assert!(error.contains("takes Codes and gives Codes"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shape_equals_the_reference_on_every_set(
        widths in prop::collection::vec(1usize..70, 2..5), rows in 1usize..20, seed in 0u64..1000,
    ) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mlp = network(&widths, Activation::Relu, seed);
        let data = uniform(&mut rng, rows, widths[0]);
        for isa in Isa::available() {
            let engine = Engine::build(&mlp, &plain(Format::Int8, data.view(), isa)).unwrap();
            if mlp.linears().count() == engine.layers().len() && mlp.shrink().unwrap().0 == mlp {
                let y = engine.predict(data.view()).unwrap();
                for (x, y) in data.rows().into_iter().zip(y.rows()) {
                    prop_assert_eq!(y.to_vec(), reference(&mlp, &engine.layers(), x.as_slice().unwrap()));
                }
            }
        }
    }

    #[test]
    fn any_format_and_activation_gives_rows_that_do_not_depend_on_batch_threads_or_instructions(
        widths in prop::collection::vec(1usize..50, 2..5),
        formats in prop::collection::vec(prop::sample::select(&[
            Format::Dense, Format::Sparse, Format::Int8, Format::Int8Dynamic, Format::Int4, Format::SparseInt8,
            Format::Palette,
        ]), 4),
        activation in prop::sample::select(&[
            Activation::Relu, Activation::Tanh, Activation::Gelu, Activation::LeakyRelu(0.1), Activation::Sigmoid,
        ]),
        io in prop::sample::select(&[(Io::Float, Io::Float), (Io::Codes, Io::Float), (Io::Codes, Io::Codes)]),
        rows in 1usize..200, seed in 0u64..1000,
    ) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mlp = network(&widths, activation, seed);
        let data = uniform(&mut rng, rows, widths[0]);
        let mut config = Config::new(Format::Int8).with_calibration(data.view()).with_io(io.0, io.1);
        for (layer, &format) in formats.iter().take(widths.len() - 1).enumerate() {
            config = config.with_layer(layer, format);
        }
        let run = |engine: &Engine<f32>, part: ArrayView2<'_, f32>| -> Vec<f32> {
            let (count, outputs) = (part.nrows(), engine.outputs());
            let flat: Vec<f32> = part.iter().copied().collect();
            let codes: Vec<u8> = engine
                .entry()
                .map_or(Vec::new(), |entry| quantized(&flat, entry).into_iter().map(|code| code as u8).collect());
            let x = if codes.is_empty() { Batch::Float(&flat) } else { Batch::Codes(&codes) };
            let (mut numbers, mut bytes) = (vec![0.0; count * outputs], vec![0; count * outputs]);
            let workspace = &mut engine.workspace(count);
            match engine.io().1 {
                Io::Float => engine.run(x, BatchMut::Float(&mut numbers), workspace).unwrap(),
                Io::Codes => {
                    engine.run(x, BatchMut::Codes(&mut bytes), workspace).unwrap();
                    numbers = bytes.iter().map(|&code| f32::from(code)).collect();
                }
            }
            numbers
        };
        let engine = Engine::build(&mlp, &config).unwrap();
        let all = run(&engine, data.view());
        prop_assert!(all.iter().all(|y| y.is_finite()));
        let threads = engine.clone().with_pool(Pool::new(3));
        prop_assert_eq!(&run(&threads, data.view()), &all);
        for i in [0, rows / 2, rows - 1] {
            let one = run(&engine, data.slice(ndarray::s![i..i + 1, ..]));
            let sparse = formats.iter().take(widths.len() - 1).any(|&f| f == Format::Sparse);
            if sparse {
                // The sum of a sparse row is added up in another order when it is alone.
                for (a, b) in one.iter().zip(&all[i * engine.outputs()..]) {
                    prop_assert!((a - b).abs() <= 1.0f32.max(1e-2 * b.abs()));
                }
            } else {
                prop_assert_eq!(&one[..], &all[i * engine.outputs()..(i + 1) * engine.outputs()]);
            }
        }
    }
}

fn relative_error(found: &Array2<f32>, expected: &Array2<f32>) -> f32 {
    let norm = |x: &Array2<f32>| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    norm(&(found - expected)) / norm(expected)
}

#[test]
fn every_format_stays_near_the_network() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
    let data = uniform(&mut rng, 300, 64);
    for activation in [
        Activation::Relu,
        Activation::Tanh,
        Activation::Gelu,
        Activation::Elu(1.0),
        Activation::Clip { min: -0.25, max: 0.5 },
    ] {
        let mlp = network(&[64, 80, 40, 10], activation, 8);
        let expected = mlp.predict(data.view()).unwrap();
        for (format, tolerance) in [
            (Format::Dense, 1e-5),
            (Format::Sparse, 1e-5),
            (Format::Int8, 0.04),
            (Format::Int8Dynamic, 0.04),
            (Format::SparseInt8, 0.04),
            (Format::Int4, 0.3),
            (Format::Palette, 0.3),
        ] {
            let engine = Engine::build(&mlp, &Config::new(format).with_calibration(data.view())).unwrap();
            let error = relative_error(&engine.predict(data.view()).unwrap(), &expected);
            assert!(error < tolerance, "{format} {activation:?}: {error}");
            assert!(engine.layers().iter().all(|layer| layer.format == format));
        }
    }
}

#[test]
fn sparse_int8_gives_the_bits_of_int8() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(9);
    let data = uniform(&mut rng, 70, 50);
    let mlp = network(&[50, 60, 10], Activation::Relu, 10);
    let engine = |format| Engine::build(&mlp, &Config::new(format).with_calibration(data.view())).unwrap();
    let (dense, sparse) = (engine(Format::Int8), engine(Format::SparseInt8));
    assert_eq!(dense.predict(data.view()).unwrap(), sparse.predict(data.view()).unwrap());
}

#[test]
fn a_palette_keeps_few_values_and_gives_the_bits_of_dense() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(30);
    let data = uniform(&mut rng, 70, 50);
    for (values, bits) in [(2, 4), (16, 4), (17, 8), (256, 8)] {
        let mut mlp = network(&[50, 60, 33, 10], Activation::Relu, 31);
        for linear in mlp.linears_mut() {
            let weight = linear.weight().mapv(|w| (w * values as f32 * 2.0).round() / 64.0 + 0.0);
            let (low, high) = (-(values as f32) / 128.0, (values as f32 - 2.0) / 128.0);
            linear.set_weight(weight.mapv(|w| w.clamp(low, high))).unwrap();
        }
        for isa in Isa::available() {
            let engine = |format| Engine::build(&mlp, &Config::<f32>::new(format).with_isa(isa)).unwrap();
            let (dense, palette) = (engine(Format::Dense), engine(Format::Palette));
            for rows in [1, 2, 7, 8, 9, 70] {
                let x = data.slice(ndarray::s![..rows, ..]);
                assert_eq!(palette.predict(x).unwrap(), dense.predict(x).unwrap(), "{isa} {values} {rows}");
            }
            let (layer, numbers) = (&palette.layers()[0], 4 * 64 * 50);
            // Up to whole words of inputs, and the table.
            let most = numbers * bits / 32 + numbers / 10 + 4 * 256;
            assert!(layer.packed_bytes < most, "{} bytes of {most}", layer.packed_bytes);
            let loaded = Engine::<f32>::from_bytes(&palette.to_bytes()).unwrap();
            assert_eq!(loaded.to_bytes(), palette.to_bytes());
            assert_eq!(loaded.layers(), palette.layers());
        }
    }
}

#[test]
fn a_palette_of_more_entries_is_nearer_to_the_network() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(32);
    let data = uniform(&mut rng, 100, 40);
    let mlp = network(&[40, 50, 10], Activation::Tanh, 33);
    let expected = mlp.predict(data.view()).unwrap();
    let mut last = f32::INFINITY;
    for entries in [2, 8, 16, 64, 256] {
        let config = Config::new(Format::Palette).with_palette_entries(entries);
        let engine = Engine::build(&mlp, &config).unwrap();
        let error = relative_error(&engine.predict(data.view()).unwrap(), &expected);
        assert!(error < last, "{entries} entries: {error}, fewer {last}");
        last = error;
    }
    assert!(last < 0.01, "{last}");
    for entries in [0, 1, 257] {
        let config = Config::new(Format::Palette).with_palette_entries(entries);
        let error = Engine::build(&mlp, &config).unwrap_err().to_string();
        assert!(error.contains("2 <= entries <= 256"), "{error}");
    }
}

#[test]
fn two_of_four_is_checked_and_gives_the_bits_of_int8() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(11);
    let data = uniform(&mut rng, 70, 50);
    let mut mlp = network(&[50, 60, 10], Activation::Relu, 12);
    let config = |format| Config::new(format).with_calibration(data.view());
    let error = Engine::build(&mlp, &config(Format::TwoFourInt8)).unwrap_err().to_string();
    assert!(error.contains("2:4") && error.contains("NmPruner"), "{error}");
    for linear in mlp.linears_mut() {
        let pruned = NmPruner::keep(2, 4).unwrap().compress(linear.weight()).unwrap().decompress().unwrap();
        linear.set_weight(pruned).unwrap();
    }
    let two_four = Engine::build(&mlp, &config(Format::TwoFourInt8)).unwrap();
    let numbers = Engine::build(&mlp, &config(Format::TwoFour)).unwrap();
    let expected = mlp.predict(data.view()).unwrap();
    assert!(relative_error(&numbers.predict(data.view()).unwrap(), &expected) < 1e-6);
    let int8 = Engine::build(&mlp, &config(Format::Int8)).unwrap();
    assert_eq!(two_four.predict(data.view()).unwrap(), int8.predict(data.view()).unwrap());
}

#[test]
fn norms_that_cannot_be_folded_are_steps_of_their_own() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(13);
    let data = uniform(&mut rng, 40, 6);
    let linear = |seed, [out, inputs]: [usize; 2]| {
        network(&[inputs, out], Activation::Relu, seed).linears().next().cloned().unwrap()
    };
    let vector = |seed: u64, n: usize| {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        Array1::from_shape_simple_fn(n, || 0.5 + rng.random::<f32>())
    };
    let batch_norm = |n: usize| {
        BatchNorm::from_parts(vector(1, n), vector(2, n), vector(3, n), vector(4, n), 1e-5).unwrap()
    };
    let layers = vec![
        Layer::LayerNorm(LayerNorm::from_parts(vector(5, 6), vector(6, 6), 1e-5).unwrap()),
        Layer::Linear(linear(1, [8, 6])),
        Layer::BatchNorm(batch_norm(8)),
        Layer::Activation(Activation::Gelu),
        Layer::LayerNorm(LayerNorm::from_parts(vector(7, 8), vector(8, 8), 1e-5).unwrap()),
        Layer::Linear(linear(2, [5, 8])),
        Layer::Activation(Activation::Relu),
        Layer::BatchNorm(batch_norm(5)),
    ];
    let mlp = Mlp::from_layers(6, layers).unwrap();
    let expected = mlp.predict(data.view()).unwrap();
    for (format, tolerance) in [(Format::Dense, 1e-5), (Format::Int8, 0.03), (Format::Int8Dynamic, 0.03)] {
        let engine = Engine::build(&mlp, &Config::new(format).with_calibration(data.view())).unwrap();
        let error = relative_error(&engine.predict(data.view()).unwrap(), &expected);
        assert!(error < tolerance, "{format}: {error}");
    }
}

#[test]
fn an_f64_engine_is_exact_where_it_is_dense_and_near_where_it_is_not() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(15);
    let mlp = Mlp::builder(30).linear(20).relu().linear(5).build::<f64>(&mut rng).unwrap();
    let data = uniform(&mut rng, 90, 30).mapv(f64::from);
    let expected = mlp.predict(data.view()).unwrap();
    for (format, tolerance) in [
        (Format::Dense, 1e-13),
        (Format::Sparse, 1e-13),
        (Format::Palette, 0.02),
        (Format::Int8, 0.05),
        (Format::Int8Dynamic, 0.05),
    ] {
        let config = Config::new(format).with_calibration(data.view()).with_palette_entries(256);
        let engine = Engine::build(&mlp, &config).unwrap();
        let error = (engine.predict(data.view()).unwrap() - &expected).mapv(f64::abs);
        let most = error.iter().fold(0.0, |a: f64, &b| a.max(b));
        assert!(most < tolerance, "{format}: {most}");
    }
}

#[test]
fn a_layer_whose_sums_could_overflow_is_split_and_gives_the_exact_sum() {
    let inputs = 70_000;
    let weight =
        Array2::from_shape_fn((3, inputs), |(j, k)| if j == 1 && k % 2 == 0 { -1.0 } else { 1.0f32 });
    let linear = Linear::new(weight, Some(Array1::from(vec![0.0, 0.5, 1.0]))).unwrap();
    let mlp = Mlp::from_layers(inputs, vec![Layer::Linear(linear)]).unwrap();
    let ones = Array2::from_elem((2, inputs), 1.0f32);
    let engine = Engine::build(&mlp, &plain(Format::Int8, ones.view(), Isa::best())).unwrap();
    let bound = engine.layers()[0].bound.unwrap();
    assert!(bound.worst > i64::from(i32::MAX) && bound.parts == 2, "{bound:?}");
    let y = engine.predict(ones.view()).unwrap();
    let expected = [inputs as f32, 0.5, inputs as f32 + 1.0];
    for (y, expected) in y.row(1).iter().zip(expected) {
        assert!((y - expected).abs() <= 1e-3 * expected.abs().max(10.0), "{y} {expected}");
    }
    let error = Engine::build(&mlp, &Config::new(Format::Int8Dynamic)).unwrap_err().to_string();
    assert!(error.contains("32 bits"), "{error}");
}

#[test]
fn bias_correction_takes_the_mean_error_away() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(17);
    let data = uniform(&mut rng, 500, 40).mapv(|x| x + 0.5);
    let mlp = network(&[40, 30, 6], Activation::Relu, 18);
    let expected = mlp.predict(data.view()).unwrap();
    let drift = |config: Config<'_, f32>| {
        let engine =
            Engine::build(&mlp, &config.with_layer(0, Format::Int4).with_layer(1, Format::Int4)).unwrap();
        let error = engine.predict(data.view()).unwrap() - &expected;
        error.mean_axis(ndarray::Axis(0)).unwrap().mapv(f32::abs).sum()
    };
    let config = || Config::new(Format::Int8).with_calibration(data.view());
    assert!(drift(config()) < 0.2 * drift(config().without_bias_correction()));
}

#[test]
fn sixteen_threads_share_one_engine_for_ten_seconds() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(19);
    let mut mlp = network(&[100, 80, 60, 12], Activation::Relu, 20);
    for linear in mlp.linears_mut() {
        // Formats of every kind can have it.
        let pruned = NmPruner::keep(2, 4).unwrap().compress(linear.weight()).unwrap().decompress().unwrap();
        linear.set_weight(pruned).unwrap();
    }
    let data = uniform(&mut rng, 64, 100);
    for format in Format::ALL {
        let config = Config::new(format).with_calibration(data.view()).with_pool(Pool::new(3));
        let engine = Engine::build(&mlp, &config).unwrap();
        // A row alone is added up in another order where weights are sparse and real.
        let one = |i: usize| engine.predict(data.slice(ndarray::s![i..i + 1, ..])).unwrap().row(0).to_vec();
        let rows: Vec<Vec<f32>> = (0..64).map(one).collect();
        let batch = engine.predict(data.view()).unwrap();
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..16 {
                let (engine, data, rows, batch) = (&engine, &data, &rows, &batch);
                scope.spawn(move || {
                    let mut workspace = engine.workspace(64);
                    let mut calls = 0;
                    while calls == 0 || begin.elapsed() * (Format::ALL.len() as u32) < Duration::from_secs(10)
                    {
                        let i = (thread * 31 + calls) % 64;
                        let row = data.row(i);
                        let y = engine.predict_one(row.as_slice().unwrap(), &mut workspace).unwrap();
                        assert_eq!(y, rows[i], "{format}");
                        if calls % 50 == 0 {
                            let mut out = Array2::zeros((64, 12));
                            engine.predict_into(data.view(), out.view_mut(), &mut workspace).unwrap();
                            assert_eq!(out, batch, "{format}");
                        }
                        calls += 1;
                    }
                });
            }
        });
    }
}

#[test]
fn chunks_and_threads_do_not_change_a_row_of_a_batch() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(23);
    let mut mlp = network(&[256, 256, 8], Activation::Relu, 24);
    for linear in mlp.linears_mut() {
        let mut weight = linear.weight().to_owned();
        weight.indexed_iter_mut().filter(|((i, j), _)| (i * 7 + j * 3) % 10 > 1).for_each(|(_, w)| *w = 0.0);
        linear.set_weight(weight).unwrap();
    }
    let data = uniform(&mut rng, 133, 256);
    for format in [Format::Sparse, Format::SparseInt8, Format::Dense, Format::Int8] {
        let config = |pool| Config::new(format).with_calibration(data.view()).with_pool(pool);
        let engine = Engine::build(&mlp, &config(Pool::single())).unwrap();
        let expected = engine.predict(data.view()).unwrap();
        for threads in [2, 11] {
            let shared = Engine::build(&mlp, &config(Pool::new(threads))).unwrap();
            assert_eq!(shared.predict(data.view()).unwrap(), expected, "{format}, {threads} threads");
        }
        for rows in 1..=5 {
            let mut out = Array2::zeros(expected.raw_dim());
            engine.predict_into(data.view(), out.view_mut(), &mut engine.workspace(rows)).unwrap();
            assert_eq!(out, expected, "{format}, {rows} rows at a time");
        }
    }
}

#[test]
fn rows_wider_than_f32_can_subtract_are_quantized() {
    let weight = ndarray::array![[1.0f32, 0.0, 0.0], [0.0, 1.0, 0.5]];
    let mlp = Mlp::from_layers(3, vec![Layer::Linear(Linear::new(weight.clone(), None).unwrap())]).unwrap();
    let engine = Engine::build(&mlp, &Config::new(Format::Int8Dynamic)).unwrap();
    let x = ndarray::array![[3e38f32, -3e38, 0.0], [2e38, -1.5e38, 1e38], [1.0, -1.0, 0.5]];
    for (x, y) in x.rows().into_iter().zip(engine.predict(x.view()).unwrap().rows()) {
        let exact = weight.dot(&x);
        let largest = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert!((&exact - &y).iter().all(|error| error.abs() < 0.01 * largest), "{y} {exact}");
    }
    let wide = weight.mapv(f64::from);
    let mlp = Mlp::from_layers(3, vec![Layer::Linear(Linear::new(wide, None).unwrap())]).unwrap();
    let engine = Engine::build(&mlp, &Config::new(Format::Int8Dynamic)).unwrap();
    let y = engine.predict(ndarray::array![[1e200, -1e200, 0.0]].view()).unwrap();
    assert!(y[[0, 0]] > 3e38 && y[[0, 1]] < -3e38, "the largest of f32: {y}");
}

#[test]
fn wrong_input_is_an_error_that_says_what_is_wrong() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(21);
    let mlp = network(&[8, 6, 2], Activation::Relu, 22);
    let data = uniform(&mut rng, 10, 8);
    let engine = Engine::build(&mlp, &Config::new(Format::Int8).with_calibration(data.view())).unwrap();
    let said = |error: trimnet::Error| error.to_string();
    let mut workspace = engine.workspace(4);
    assert!(said(engine.predict(data.slice(ndarray::s![.., ..7])).unwrap_err()).contains("expected [10, 8]"));
    let mut nan = data.clone();
    nan[[3, 2]] = f32::NAN;
    assert!(said(engine.predict(nan.view()).unwrap_err()).contains("[3, 2]"));
    assert!(engine.predict_one(&[0.0; 9], &mut workspace).is_err());
    let mut out = Array2::zeros((9, 2));
    assert!(engine.predict_into(data.view(), out.view_mut(), &mut workspace).is_err());
    let other = engine.clone().with_pool(Pool::single());
    assert!(said(other.predict_one(&[0.0; 8], &mut workspace).unwrap_err()).contains("another engine"));
    assert!(said(Engine::build(&mlp, &Config::new(Format::Int8)).unwrap_err()).contains("with_calibration"));
    let config = Config::new(Format::Dense).with_layer(2, Format::Int8);
    assert!(said(Engine::build(&mlp, &config).unwrap_err()).contains("layer is 2"));
    let config = || Config::new(Format::Dense).with_calibration(data.view());
    assert!(
        said(Engine::build(&mlp, &config().with_palette_entries(1)).unwrap_err())
            .contains("entries of a palette is 1")
    );
    assert!(said(Engine::build(&mlp, &config().with_batch(1 << 62)).unwrap_err()).contains("1,048,576"));
    let measured = |x: ArrayView2<'_, f32>| engine.measure(x, Duration::ZERO).map(|_| ());
    assert!(said(measured(data.slice(ndarray::s![.., ..7])).unwrap_err()).contains("expected [10, 8]"));
    assert!(said(measured(nan.view()).unwrap_err()).contains("[3, 2]"));
    let mut out = Array2::from_elem((2, 10), 5.0);
    assert!(engine.predict_into(nan.view(), out.view_mut().reversed_axes(), &mut workspace).is_err());
    assert_eq!(out, Array2::from_elem((2, 10), 5.0), "what an error leaves");
    let empty = Array2::zeros((0, 8));
    assert!(Engine::build(&mlp, &Config::new(Format::Int8).with_calibration(empty.view())).is_err());
    assert_eq!(engine.predict(empty.view()).unwrap().dim(), (0, 2));
}

#[test]
fn a_strided_batch_gives_the_same_as_its_copy() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(23);
    let mlp = network(&[8, 6, 2], Activation::Relu, 24);
    let data = uniform(&mut rng, 8, 20);
    let engine = Engine::build(&mlp, &Config::new(Format::Dense)).unwrap();
    let copy = data.t().as_standard_layout().into_owned();
    assert_eq!(engine.predict(data.t()).unwrap(), engine.predict(copy.view()).unwrap());
    let mut out = Array2::zeros((2, 20));
    let mut workspace = engine.workspace(20);
    engine.predict_into(data.t(), out.view_mut().reversed_axes(), &mut workspace).unwrap();
    assert_eq!(out.t(), engine.predict(copy.view()).unwrap());
    let classes = engine.classify(copy.view()).unwrap();
    assert!(classes.iter().zip(out.columns()).all(|(&class, y)| y[class] >= y[1 - class]));
}
