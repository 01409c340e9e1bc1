//! What is written as ONNX comes back; the real runtimes are asked in `tests/interop`.
#![cfg(feature = "onnx")]

use std::fs;
use std::path::PathBuf;

use trimnet::engine::{
    Calibrator, CodeParams, IntegerBias, QuantizedLayer, QuantizedLinear, QuantizedMlp, Target,
};
use trimnet::io::onnx::{BatchNorms, ExternalData, OnnxExporter, OnnxImporter, Tail, WeightCodes};
use trimnet::ndarray::{Array2, array};
use trimnet::nn::{Activation, Layer, Linear, Mlp};
use trimnet::normalize::{BatchNorm, LayerNorm};
use trimnet::rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

fn rng() -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(7)
}

fn inputs() -> Array2<f32> {
    let mut rng = rng();
    Array2::from_shape_simple_fn((40, 5), || (rng.random::<f64>() * 4.0 - 2.0) as f32)
}

fn network() -> Mlp<f32> {
    let mut mlp = Mlp::builder(5)
        .linear(9)
        .batch_norm()
        .relu()
        .linear_no_bias(8)
        .leaky_relu(0.2)
        .layer_norm()
        .linear(7)
        .gelu()
        .linear(6)
        .activation(Activation::GeluTanh)
        .linear(6)
        .elu(0.5)
        .linear(6)
        .tanh()
        .linear(5)
        .sigmoid()
        .linear(5)
        .clip(0.25, 0.75)
        .linear(3)
        .build::<f32>(&mut rng())
        .unwrap();
    for _ in 0..5 {
        mlp.forward(inputs().view(), &mut rng()).unwrap();
    }
    mlp
}

fn kinds(mlp: &Mlp<f32>) -> Vec<String> {
    let word = |layer: &Layer<f32>| format!("{layer:?}").split(['(', '{']).take(2).collect::<String>();
    mlp.layers().iter().map(word).collect()
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("trimnet-onnx-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn every_layer_comes_back_as_itself() {
    for opset in [17, 18, 20, 21, 23] {
        for tail in [Tail::None, Tail::Softmax, Tail::LogSoftmax] {
            let exporter = OnnxExporter::new().with_opset(opset).unwrap();
            let exporter = exporter.with_batch_norms(BatchNorms::Keep).with_tail(tail);
            let bytes = exporter.float(&network()).unwrap().to_bytes().unwrap();
            let back = OnnxImporter::new().from_bytes::<f32>(&bytes).unwrap();
            assert_eq!(back.tail, tail);
            assert_eq!(kinds(&back.network), kinds(&network()));
            let x = inputs();
            let (a, b) = (network().predict(x.view()).unwrap(), back.network.predict(x.view()).unwrap());
            // Slopes and eps pass through f32.
            assert!((a - b).iter().all(|d| d.abs() < 1e-6));
        }
    }
}

#[test]
fn folded_batch_norms_give_the_same() {
    let bytes = OnnxExporter::new().float(&network()).unwrap().to_bytes().unwrap();
    let back = OnnxImporter::new().from_bytes::<f32>(&bytes).unwrap().network;
    assert_eq!(back.layers().len(), network().layers().len() - 1);
    let x = inputs();
    let difference = network().predict(x.view()).unwrap() - back.predict(x.view()).unwrap();
    assert!(difference.iter().all(|d| d.abs() < 1e-5));
}

#[test]
fn integers_come_back_as_the_same_integers() {
    for calibrator in
        [Calibrator::new(Target::OnnxRuntime), Calibrator::new(Target::OnnxRuntime).with_signed_activations()]
    {
        let integers = calibrator.quantize(&network(), inputs().view()).unwrap();
        let model = OnnxExporter::new().with_opset(20).unwrap().quantized(&integers, Target::OnnxRuntime);
        let bytes = model.unwrap().to_bytes().unwrap();
        let back = OnnxImporter::new().quantized_from_bytes(&bytes).unwrap().network;
        let x = inputs();
        assert_eq!(back.predict(x.view()).unwrap(), integers.predict(x.view()).unwrap());
        // As floats: the numbers that the codes stand for, and clips where the codes were ReLUs.
        let floats = OnnxImporter::new().from_bytes::<f32>(&bytes).unwrap().network;
        let exact = integers.dequantized().unwrap();
        assert_eq!(kinds(&floats), kinds(&exact));
        let difference = floats.predict(x.view()).unwrap() - exact.predict(x.view()).unwrap();
        assert!(difference.iter().all(|d| d.abs() < 1e-5));
    }
    let integers = Calibrator::new(Target::TensorRt).quantize(&network(), inputs().view()).unwrap();
    let exporter = OnnxExporter::new().with_opset(20).unwrap();
    let bytes = exporter.quantized(&integers, Target::TensorRt).unwrap().to_bytes().unwrap();
    let back = OnnxImporter::new().quantized_from_bytes(&bytes).unwrap().network;
    assert_eq!(back.layers().len(), integers.layers().len());
    for (back, layer) in back.layers().iter().zip(integers.layers()) {
        if let QuantizedLayer::Linear(_) = layer {
            assert_eq!(back, layer);
        }
    }
}

#[test]
fn tensor_rt_gets_no_zero_points() {
    let integers = Calibrator::new(Target::OnnxRuntime).quantize(&network(), inputs().view()).unwrap();
    let error = OnnxExporter::new().quantized(&integers, Target::TensorRt).unwrap_err().to_string();
    assert!(error.contains("layer 0 has an integer bias; quantize for Target::TensorRt"), "{error}");
}

#[test]
fn integer_weights_come_back_within_half_a_step() {
    let mlp = Mlp::builder(37).linear(21).relu().linear(3).build::<f32>(&mut rng()).unwrap();
    let exporter = OnnxExporter::new().with_opset(21).unwrap();
    let largest = |w: &Linear<f32>| w.weight().iter().fold(0.0_f32, |m, w| m.max(w.abs()));
    for (codes, steps) in [(WeightCodes::Int8, 127.0), (WeightCodes::Int4 { block: 16 }, 7.0)] {
        let bytes = exporter.weight_only(&mlp, codes).unwrap().to_bytes().unwrap();
        let back = OnnxImporter::new().from_bytes::<f32>(&bytes).unwrap().network;
        for (a, b) in mlp.linears().zip(back.linears()) {
            let half = 0.501 * largest(a) / steps;
            assert!((&a.weight() - &b.weight()).iter().all(|d| d.abs() <= half), "{codes:?}");
            assert_eq!(a.bias(), b.bias());
        }
    }
    let error = exporter.weight_only(&mlp, WeightCodes::Int4 { block: 24 }).unwrap_err().to_string();
    assert_eq!(error, "block is 24, allowed is 16, 32, 64, 128 or 256");
    assert!(OnnxExporter::new().weight_only(&mlp, WeightCodes::Int4 { block: 32 }).is_err());
}

#[test]
fn weights_beside_the_model_replace_those_of_the_model_before() {
    let folder = folder("external");
    let path = folder.join("a.onnx");
    let files = || {
        let mut names: Vec<String> = fs::read_dir(&folder)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let exporter = OnnxExporter::new().with_external_data(ExternalData::Always);
    for width in [30, 40] {
        let mlp = Mlp::builder(32).linear(width).relu().linear(20).build::<f32>(&mut rng()).unwrap();
        exporter.float(&mlp).unwrap().save(&path).unwrap();
        assert_eq!(OnnxImporter::new().read::<f32>(&path).unwrap().network, mlp);
        assert_eq!(files().len(), 2, "{:?}", files());
        // In memory there is no other file.
        let error = OnnxImporter::new().from_bytes::<f32>(&fs::read(&path).unwrap()).unwrap_err();
        assert!(error.to_string().contains("read the model from its path"), "{error}");
    }
    fs::write(folder.join("a.onnx.notours.data"), b"").unwrap();
    OnnxExporter::new().float(&network()).unwrap().save(&path).unwrap();
    assert_eq!(files(), ["a.onnx", "a.onnx.notours.data"]);
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn above_the_limit_means_above_it() {
    let folder = folder("limit");
    let mlp = Mlp::builder(32).linear(32).build::<f32>(&mut rng()).unwrap();
    let weights = 4 * (32 * 32 + 32);
    for (limit, files) in [(weights, 1), (weights - 1, 2)] {
        let exporter = OnnxExporter::new().with_external_data(ExternalData::Above(limit));
        exporter.float(&mlp).unwrap().save(folder.join("a.onnx")).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), files);
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn the_same_network_gives_the_same_bytes() {
    let bytes = || OnnxExporter::new().float(&network()).unwrap().to_bytes().unwrap();
    assert_eq!(bytes(), bytes());
}

#[test]
fn f64_is_written_as_f32_and_refused_if_that_is_infinite() {
    let linear =
        |w| Mlp::from_layers(1, vec![Layer::Linear(Linear::new(array![[w]], None).unwrap())]).unwrap();
    let bytes = OnnxExporter::new().float(&linear(0.1_f64)).unwrap().to_bytes().unwrap();
    let back = OnnxImporter::new().from_bytes::<f64>(&bytes).unwrap().network;
    assert_eq!(back, linear(f64::from(0.1_f32)));
    let error = OnnxExporter::new().float(&linear(1e300)).unwrap_err().to_string();
    assert!(error.contains("weight rounded to f32 is inf at index [0]"), "{error}");
}

#[test]
fn settings_out_of_range_are_refused() {
    for opset in [0, 16, 24] {
        assert!(OnnxExporter::new().with_opset(opset).is_err());
    }
}

#[test]
fn stops_at_a_named_value() {
    let bytes = OnnxExporter::new().with_tail(Tail::Softmax).float(&network()).unwrap().to_bytes().unwrap();
    let error = OnnxImporter::new().with_output("nothing").from_bytes::<f32>(&bytes).unwrap_err().to_string();
    assert!(error.contains("no value is called `nothing`; the outputs are `output`"), "{error}");
    let whole = OnnxImporter::new().with_output("output").from_bytes::<f32>(&bytes).unwrap();
    assert_eq!((whole.tail, whole.network.outputs()), (Tail::Softmax, 3));
}

/// One of two models whose weights lie beside them.
fn large(which: usize) -> Mlp<f32> {
    Mlp::builder(64).linear(200 + which).relu().linear(30).build::<f32>(&mut rng()).unwrap()
}

#[test]
#[ignore = "the child of `a_kill_at_any_moment_leaves_a_whole_model`"]
fn writes_until_killed() {
    let Ok(path) = std::env::var("TRIMNET_WRITE_UNTIL_KILLED") else { return };
    let exporter = OnnxExporter::new().with_external_data(ExternalData::Always);
    for round in 0..100_000 {
        exporter.float(&large(round % 2)).unwrap().save(&path).unwrap();
    }
}

#[test]
fn a_kill_at_any_moment_leaves_a_whole_model() {
    let folder = folder("kill");
    let path = folder.join("a.onnx");
    for round in 0..12 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "onnx::writes_until_killed", "--ignored"])
            .env("TRIMNET_WRITE_UNTIL_KILLED", &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // From the second round on there is a file to be replaced.
        while !path.exists() {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(5 + 7 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let network = OnnxImporter::new().read::<f32>(&path).unwrap().network;
        assert!((0..2).any(|which| network == large(which)), "round {round}");
    }
    fs::remove_dir_all(&folder).unwrap();
}

/// One integer layer from one input to three outputs of this range, then one from these to a float.
fn rounded_to(output: CodeParams, split: bool) -> QuantizedMlp {
    let input = CodeParams::new(0.1, 128, false).unwrap();
    let bias = || IntegerBias::Codes(array![0, 7, -9]);
    let own = (!split).then_some(output);
    let first =
        QuantizedLinear::new(array![[100], [-100], [50]], array![0.02, 0.02, 0.03], bias(), input, own);
    let second =
        QuantizedLinear::new(array![[90, 60, -120]], array![0.01], IntegerBias::None, output, None).unwrap();
    let first = QuantizedLayer::Linear(first.unwrap());
    QuantizedMlp::new(1, vec![first, QuantizedLayer::Linear(second)]).unwrap()
}

#[test]
fn relu6_and_hardtanh_that_became_codes_are_clips_in_floats() {
    let x = Array2::from_shape_fn((41, 1), |(i, _)| i as f32 * 0.6 - 12.0);
    let of = |scale, zero_point, signed| CodeParams::new(scale, zero_point, signed).unwrap();
    for (output, min, max) in [
        (of(6.0 / 255.0, 0, false), 0.0, 6.0),              // relu6
        (of(6.0 / 255.0, -128, true), 0.0, 6.0),            // relu6
        (of(2.0 / 254.0, 127, false), -1.0, 128.0 / 127.0), // hardtanh
        (of(0.2, 0, false), 0.0, 51.0),                     // relu
    ] {
        for split in [false, true] {
            let integers = rounded_to(output, split);
            let exporter = OnnxExporter::new().quantized(&integers, Target::OnnxRuntime).unwrap();
            let read = OnnxImporter::new().from_bytes::<f32>(&exporter.to_bytes().unwrap()).unwrap();
            let exact = integers.predict(x.view()).unwrap();
            for floats in [read.network, integers.dequantized().unwrap()] {
                let clip = match floats.layers()[1] {
                    Layer::Activation(Activation::Clip { min, max }) => (min, max),
                    ref other => panic!("{other:?}"),
                };
                assert!((clip.0 - min).abs() < 1e-5 && (clip.1 - max).abs() < 1e-5, "{clip:?}");
                assert_eq!(floats.layers().len(), 3, "no clip behind the end or before the begin");
                // Half a step of each of the three codes, and of the input's.
                let allowed = 0.5 * output.scale() * 2.7 + 0.05 * (2.0 * 0.9 + 2.0 * 0.6 + 1.5 * 1.2);
                let difference = floats.predict(x.view()).unwrap() - &exact;
                assert!(difference.iter().all(|d| d.abs() <= allowed), "{output:?} {difference}");
            }
        }
    }
}

#[test]
fn settings_that_f32_cannot_hold_are_refused() {
    let linear = || Layer::Linear(Linear::new(array![[1.0_f64]], None).unwrap());
    let export = |layer| {
        let mlp = Mlp::from_layers(1, vec![linear(), layer]).unwrap();
        let exporter = OnnxExporter::new().with_batch_norms(BatchNorms::Keep);
        Ok::<_, trimnet::Error>(exporter.float(&mlp)?.to_bytes().unwrap())
    };
    let norm = Layer::LayerNorm(LayerNorm::new(1).unwrap().with_eps(1e-50).unwrap());
    let batch_norm =
        BatchNorm::from_parts(array![1.0], array![0.0], array![0.0], array![1.0], 1e-50).unwrap();
    for (layer, reason) in [
        (norm, "eps is 0.00000000000000000000000000000000000000000000000001, allowed is 1.2e-38 or more"),
        (Layer::BatchNorm(batch_norm), "allowed is 1.2e-38 or more"),
        (Layer::Activation(Activation::Elu(1e300)), "alpha of elu is 1000"),
        (Layer::Activation(Activation::LeakyRelu(-1e300)), "slope of leaky relu is -1000"),
    ] {
        let error = export(layer).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let clip = Layer::Activation(Activation::Clip { min: 0.0, max: 1e300 });
    let back = OnnxImporter::new().from_bytes::<f64>(&export(clip).unwrap()).unwrap().network;
    assert_eq!(back.layers()[1], Layer::Activation(Activation::Relu));
}
