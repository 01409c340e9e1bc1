//! The Rust half of `tests/interop`: writes networks with their inputs and outputs for the real programs to run, and
//! runs networks that the real programs wrote.
//!
//! `write DIR` leaves models, inputs, outputs and their list, `cases.json`. `read DIR` takes such a list, runs each
//! model on its inputs, writes it again as `NAME.back.onnx`, and leaves `results.json`. Numbers stand in files of
//! little-endian `f32`, row after row.

use std::error::Error;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use trimnet::engine::{
    Calibrator, CodeParams, Config, Engine, Format, IntegerBias, QuantizedLayer, QuantizedLinear,
    QuantizedMlp, Target,
};
use trimnet::io::onnx::{BatchNorms, ExternalData, OnnxExporter, OnnxImporter, OnnxModel, Tail, WeightCodes};
use trimnet::ndarray::{Array1, Array2, s};
use trimnet::nn::{Mlp, MlpBuilder};
use trimnet::rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

type Done = Result<(), Box<dyn Error>>;

fn main() -> Done {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", folder] => write(Path::new(folder)),
        ["read", folder] => read(Path::new(folder)),
        _ => Err("onnx write DIR | onnx read DIR".into()),
    }
}

fn bytes(x: &Array2<f32>) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn random(rng: &mut Xoshiro256PlusPlus, rows: usize, width: usize) -> Array2<f32> {
    Array2::from_shape_simple_fn((rows, width), || (rng.random::<f64>() * 6.0 - 3.0) as f32)
}

/// Writes models one after the other, and what the program that runs them has to know.
struct Writer<'a> {
    folder: &'a Path,
    cases: Vec<Value>,
}

impl Writer<'_> {
    fn put(&mut self, kind: &str, model: &OnnxModel, x: &Array2<f32>, y: &Array2<f32>, extra: Value) -> Done {
        let name = format!("{kind}.{}", self.cases.len());
        model.save(self.folder.join(format!("{name}.onnx")))?;
        fs::write(self.folder.join(format!("{name}.x.f32")), bytes(x))?;
        fs::write(self.folder.join(format!("{name}.y.f32")), bytes(y))?;
        let (inputs, outputs) = (x.ncols(), y.ncols());
        self.cases
            .push(json!({"name": name, "kind": kind, "inputs": inputs, "outputs": outputs, "extra": extra}));
        Ok(())
    }
}

fn write(folder: &Path) -> Done {
    fs::create_dir_all(folder)?;
    let mut writer = Writer { folder, cases: Vec::new() };
    floats(&mut writer)?;
    integers(&mut writer)?;
    ties(&mut writer)?;
    weights(&mut writer)?;
    fs::write(folder.join("cases.json"), serde_json::to_string_pretty(&writer.cases)?)?;
    Ok(())
}

/// A hidden layer's bend, by number.
fn bend(builder: MlpBuilder, which: usize) -> MlpBuilder {
    match which % 8 {
        0 => builder.relu(),
        1 => builder.leaky_relu(0.1),
        2 => builder.elu(0.7),
        3 => builder.tanh(),
        4 => builder.sigmoid(),
        5 => builder.gelu(),
        6 => builder.clip(-0.3, 0.8),
        _ => builder.activation(trimnet::nn::Activation::GeluTanh),
    }
}

/// A network of one to four hidden layers, with running statistics that have seen data.
fn network(seed: u64, relu: bool) -> trimnet::Result<(Mlp<f32>, Xoshiro256PlusPlus)> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let which = seed as usize;
    let inputs = 1 + which * 5 % 37;
    let mut builder = Mlp::builder(inputs);
    for hidden in 0..=which % 4 {
        let width = 3 + (which * 11 + hidden * 7) % 61;
        builder = if which % 5 == 4 { builder.linear_no_bias(width) } else { builder.linear(width) };
        builder = match (which + hidden) % 4 {
            0 => builder.batch_norm(),
            1 if !relu => builder.layer_norm(),
            _ => builder,
        };
        builder = match (relu, (which + hidden) % 3) {
            (true, 0) => builder.clip(0.0, 1.5),
            (true, _) => builder.relu(),
            (false, _) => bend(builder, which + hidden),
        };
        if hidden == 0 && which.is_multiple_of(3) {
            builder = builder.dropout(0.25);
        }
    }
    let mut mlp = builder.linear(1 + which % 12).build::<f32>(&mut rng)?;
    for _ in 0..20 {
        let x = random(&mut rng, 64, inputs);
        mlp.forward(x.view(), &mut rng)?;
    }
    Ok((mlp, rng))
}

fn floats(writer: &mut Writer<'_>) -> Done {
    for seed in 0..28 {
        let (mlp, mut rng) = network(seed, false)?;
        let x = random(&mut rng, 37, mlp.inputs());
        let y = mlp.predict(x.view())?;
        let batch_norms = if seed % 2 == 0 { BatchNorms::Keep } else { BatchNorms::Fold };
        let external = if seed % 4 == 3 { ExternalData::Always } else { ExternalData::default() };
        let (tail, tail_name) = match seed % 3 {
            0 => (Tail::None, "none"),
            1 => (Tail::Softmax, "softmax"),
            _ => (Tail::LogSoftmax, "log_softmax"),
        };
        let opset = [17, 18, 20, 21, 23][seed as usize % 5];
        let exporter = OnnxExporter::new().with_opset(opset)?.with_batch_norms(batch_norms);
        let model = exporter.with_tail(tail).with_external_data(external).float(&mlp)?;
        writer.put("float", &model, &x, &y, json!({"tail": tail_name, "opset": opset}))?;
    }
    Ok(())
}

/// Enough for a million outputs of each kind.
const ROWS: usize = 10_000;

/// Outputs of the engine, the first of which are those of the definition.
fn engine_of(network: &QuantizedMlp, x: &Array2<f32>) -> Result<Array2<f32>, Box<dyn Error>> {
    let y = Engine::from_quantized(network)?.predict(x.view())?;
    let first = network.predict(x.slice(s![..x.nrows().min(200), ..]))?;
    let differ = first.iter().zip(&y).filter(|(a, b)| a != b).count();
    if differ > 0 {
        return Err(format!("{differ} outputs of the engine differ from the definition").into());
    }
    Ok(y)
}

fn integers(writer: &mut Writer<'_>) -> Done {
    for seed in 0..24 {
        let exact = seed % 4 != 3;
        let (mlp, mut rng) = network(seed, exact)?;
        let data = random(&mut rng, 500, mlp.inputs());
        for (kind, calibrator, target) in [
            ("ort", Calibrator::new(Target::OnnxRuntime), Target::OnnxRuntime),
            (
                "ort_signed",
                Calibrator::new(Target::OnnxRuntime).with_signed_activations(),
                Target::OnnxRuntime,
            ),
            ("trt", Calibrator::new(Target::TensorRt), Target::TensorRt),
        ] {
            let integers = calibrator.quantize(&mlp, data.view())?;
            let opset = [17, 20, 21, 23][seed as usize % 4];
            let model = OnnxExporter::new().with_opset(opset)?.quantized(&integers, target)?;
            let x = random(&mut rng, ROWS, mlp.inputs());
            let y = engine_of(&integers, &x)?;
            writer.put(kind, &model, &x, &y, json!({"exact": exact, "opset": opset}))?;
        }
        // What the engine builds by itself.
        for format in [Format::Int8, Format::Int4] {
            let engine = Engine::build(&mlp, &Config::new(format).with_calibration(data.view()))?;
            let model = OnnxExporter::new().quantized(&engine.to_quantized()?, Target::OnnxRuntime)?;
            let x = random(&mut rng, ROWS, mlp.inputs());
            let y = engine.predict(x.view())?;
            writer.put("engine", &model, &x, &y, json!({"exact": exact, "opset": 17}))?;
        }
    }
    Ok(())
}

/// Layers with integer outputs, whose multipliers of one half put every second sum on a tie, and inputs on ties.
fn ties(writer: &mut Writer<'_>) -> Done {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(99);
    for signed in [false, true] {
        for round in 0..4 {
            let (rows, inputs, outputs) = (4000, [3, 17, 32, 9][round], [80, 75, 64, 90][round]);
            let zero = if signed { [0, -128, 5, -3][round] } else { [128, 0, 100, 7][round] };
            let input = CodeParams::new(0.25, zero, signed)?;
            let mut layers = Vec::new();
            let mut width = inputs;
            let mut input = input;
            for (layer, outputs) in [40, outputs].into_iter().enumerate() {
                let weight =
                    Array2::from_shape_simple_fn((outputs, width), || rng.random_range(-5_i32..=5) as i8);
                let scales = Array1::from_elem(outputs, 0.5);
                let bias = Array1::from_shape_simple_fn(outputs, || rng.random_range(-90_i32..90));
                let relu = layer == 0;
                let zero = match (relu, signed) {
                    (true, true) => -128,
                    (true, false) => 0,
                    (false, _) => zero,
                };
                // sx * sw / sy = 1/2 in the first layer, then 1/4
                let output = CodeParams::new(input.scale() * if relu { 1.0 } else { 2.0 }, zero, signed)?;
                let bias = IntegerBias::Codes(bias);
                let linear = QuantizedLinear::new(weight, scales, bias, input, Some(output))?;
                layers.push(QuantizedLayer::Linear(linear));
                (input, width) = (output, outputs);
            }
            let network = QuantizedMlp::new(inputs, layers)?;
            // Every second input lies half-way between two codes.
            let x =
                Array2::from_shape_simple_fn((rows, inputs), || rng.random_range(-120..120) as f32 * 0.125);
            let y = engine_of(&network, &x)?;
            let model = OnnxExporter::new().quantized(&network, Target::OnnxRuntime)?;
            let kind = if signed { "ties_signed" } else { "ties" };
            writer.put(kind, &model, &x, &y, json!({"scale": input.scale()}))?;
        }
    }
    Ok(())
}

fn weights(writer: &mut Writer<'_>) -> Done {
    for seed in 0..8 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mlp = Mlp::builder(64).linear(48).relu().linear(32).relu().linear(10).build::<f32>(&mut rng)?;
        let x = random(&mut rng, 50, 64);
        let y = mlp.predict(x.view())?;
        let exporter = OnnxExporter::new().with_opset(21)?;
        writer.put("dynamic", &exporter.dynamic(&mlp)?, &x, &y, json!({}))?;
        writer.put("int8_weights", &exporter.weight_only(&mlp, WeightCodes::Int8)?, &x, &y, json!({}))?;
        let block = [16, 32, 64, 32][seed as usize % 4];
        let model = exporter.weight_only(&mlp, WeightCodes::Int4 { block })?;
        writer.put("int4_weights", &model, &x, &y, json!({"block": block}))?;
    }
    Ok(())
}

fn read(folder: &Path) -> Done {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(folder.join("cases.json"))?)?;
    let mut results = Vec::new();
    for case in &cases {
        let name = case["name"].as_str().unwrap_or_default();
        let result = match run(folder, name, case) {
            Ok(result) => result,
            Err(error) => json!({"error": error.to_string()}),
        };
        results.push(json!({"name": name, "result": result}));
    }
    fs::write(folder.join("results.json"), serde_json::to_string_pretty(&results)?)?;
    Ok(())
}

fn run(folder: &Path, name: &str, case: &Value) -> Result<Value, Box<dyn Error>> {
    let mut importer = OnnxImporter::new();
    if let Some(output) = case["output"].as_str() {
        importer = importer.with_output(output);
    }
    let path = folder.join(format!("{name}.onnx"));
    let numbers = fs::read(folder.join(format!("{name}.x.f32")))?;
    let numbers: Vec<f32> = numbers.as_chunks::<4>().0.iter().map(|&x| f32::from_le_bytes(x)).collect();
    let of_width = |width: usize| Array2::from_shape_vec((numbers.len() / width, width), numbers.clone());
    let exporter = OnnxExporter::new().with_opset(20)?.with_batch_norms(BatchNorms::Keep);
    let (y, back, tail) = if case["integers"].as_bool() == Some(true) {
        let imported = importer.read_quantized(&path)?;
        let y = engine_of(&imported.network, &of_width(imported.network.inputs())?)?;
        let exporter = exporter.with_tail(imported.tail);
        (y, exporter.quantized(&imported.network, Target::OnnxRuntime)?, imported.tail)
    } else {
        let imported = importer.read::<f32>(&path)?;
        let y = imported.network.predict(of_width(imported.network.inputs())?.view())?;
        (y, exporter.with_tail(imported.tail).float(&imported.network)?, imported.tail)
    };
    back.save(folder.join(format!("{name}.back.onnx")))?;
    fs::write(folder.join(format!("{name}.y.f32")), bytes(&y))?;
    Ok(json!({"outputs": y.ncols(), "tail": format!("{tail:?}")}))
}
