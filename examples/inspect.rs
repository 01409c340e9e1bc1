//! What is inside a `.trim` file: layers, sparsity, histograms, bytes per part; and, with images, how well it recognizes them.
//! `cargo run --release --example inspect -- FILE.trim [--data DIR] [--json]`

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Data, Done, Failure, command_line, percent, print_table};
use lexopt::{Arg, ValueExt};
use serde_json::{Value, json};
use trimnet::engine::Engine;
use trimnet::io::trim::{TrimReport, tensors_from_bytes};
use trimnet::ndarray::ArrayView2;
use trimnet::nn::{Layer, Mlp, metrics};
use trimnet::{Error, Float};

const HELP: &str = "Prints what a .trim file holds.\n\nusage: inspect FILE.trim [--data DIR] [--json]\n\n  \
                    --data DIR  runs the test images of a folder of IDX files (MNIST) through it\n  \
                    --json      prints one object: bytes, error_percent, layers, nonzero, parts";

struct Args {
    file: PathBuf,
    data: Option<PathBuf>,
    json: bool,
}

impl Args {
    fn parse() -> Result<Self, Failure> {
        let (mut file, mut data, mut json) = (None, None, false);
        let mut parser = command_line();
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Value(path) if file.is_none() => file = Some(path.into()),
                Arg::Long("data") => data = Some(parser.value()?.parse()?),
                Arg::Long("json") => json = true,
                Arg::Long("help") | Arg::Short('h') => {
                    println!("{HELP}");
                    std::process::exit(0);
                }
                _ => return Err(arg.unexpected().into()),
            }
        }
        let file = file.ok_or("which file? usage: inspect FILE.trim [--data DIR] [--json]")?;
        Ok(Self { file, data, json })
    }
}

/// What a file may hold.
enum Content {
    Network(Mlp<f32>),
    NetworkF64(Mlp<f64>),
    Engine(Engine<f32>),
    EngineF64(Engine<f64>),
    Tensors,
}

impl Content {
    fn read(bytes: &[u8]) -> trimnet::Result<Self> {
        if tensors_from_bytes(bytes, &Default::default()).is_ok() {
            return Ok(Self::Tensors);
        }
        match Mlp::from_bytes(bytes) {
            Ok(mlp) => return Ok(Self::Network(mlp)),
            Err(Error::Unsupported { .. }) => return Mlp::from_bytes(bytes).map(Self::NetworkF64),
            Err(_) => {}
        }
        match Engine::from_bytes(bytes) {
            Err(Error::Unsupported { .. }) => Engine::from_bytes(bytes).map(Self::EngineF64),
            other => other.map(Self::Engine),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Network(_) => "network, f32",
            Self::NetworkF64(_) => "network, f64",
            Self::Engine(_) => "engine, f32",
            Self::EngineF64(_) => "engine, f64",
            Self::Tensors => "named tensors",
        }
    }

    fn layers(&self) -> Vec<LayerLine> {
        match self {
            Self::Network(mlp) => network_layers(mlp),
            Self::NetworkF64(mlp) => network_layers(mlp),
            Self::Engine(engine) => engine_layers(engine.layers()),
            Self::EngineF64(engine) => engine_layers(engine.layers()),
            Self::Tensors => Vec::new(),
        }
    }

    /// The share of rows whose largest output is not the label's.
    fn error(&self, data: &Data) -> Result<f64, Failure> {
        let labels = data.test.labels().ok_or("the images have no labels")?;
        let inputs = data.test.inputs();
        let wide = || inputs.mapv(f64::from);
        let classes = match self {
            Self::Network(mlp) => metrics::predictions(mlp.predict(inputs)?.view()),
            Self::NetworkF64(mlp) => metrics::predictions(mlp.predict(wide().view())?.view()),
            Self::Engine(engine) => engine.classify(inputs)?,
            Self::EngineF64(engine) => engine.classify(wide().view())?,
            Self::Tensors => {
                return Err("named tensors are not a network: nothing to run images through".into());
            }
        };
        let wrong = classes.iter().zip(labels).filter(|(class, label)| class != label).count();
        Ok(wrong as f64 / labels.len() as f64)
    }
}

/// One line of the table of layers.
struct LayerLine {
    kind: String,
    shape: Option<[usize; 2]>,
    nonzero: usize,
    values: Option<Weights>,
}

/// The numbers of a weight that are not 0.
struct Weights {
    distinct: usize,
    least: f64,
    most: f64,
    bars: String,
}

impl Weights {
    fn of<F: Float>(weight: ArrayView2<'_, F>) -> Option<Self> {
        const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        const BINS: usize = 48;
        let mut values: Vec<f64> = weight.iter().map(|w| w.as_f64()).filter(|w| *w != 0.0).collect();
        values.sort_by(f64::total_cmp);
        let (&least, &most) = (values.first()?, values.last()?);
        let mut bins = [0usize; BINS];
        for w in &values {
            let at = if most > least { (w - least) / (most - least) * BINS as f64 } else { 0.0 };
            bins[(at as usize).min(BINS - 1)] += 1;
        }
        values.dedup();
        // By the root: a few weights in a bin should still be seen beside many.
        let tallest = bins.iter().copied().max().unwrap_or(1) as f64;
        let bar = |&n: &usize| BARS[((n as f64 / tallest).sqrt() * 8.0).ceil() as usize];
        Some(Self { distinct: values.len(), least, most, bars: bins.iter().map(bar).collect() })
    }
}

fn network_layers<F: Float>(mlp: &Mlp<F>) -> Vec<LayerLine> {
    let line = |layer: &Layer<F>| match layer {
        Layer::Linear(linear) => {
            let weight = linear.weight();
            let nonzero = weight.iter().filter(|w| !w.is_zero()).count();
            let shape = Some([linear.inputs(), linear.outputs()]);
            LayerLine { kind: "linear".into(), shape, nonzero, values: Weights::of(weight) }
        }
        other => {
            let kind = match other {
                Layer::Activation(activation) => format!("{activation:?}").to_lowercase(),
                Layer::BatchNorm(_) => "batch norm".into(),
                Layer::LayerNorm(_) => "layer norm".into(),
                Layer::Dropout(dropout) => format!("dropout {}", dropout.p()),
                Layer::GaussianNoise(noise) => format!("noise {}", noise.deviation()),
                other => format!("{other:?}"),
            };
            LayerLine { kind, shape: None, nonzero: other.nonzero(), values: None }
        }
    };
    mlp.layers().iter().map(line).collect()
}

fn engine_layers(layers: Vec<trimnet::engine::LayerInfo>) -> Vec<LayerLine> {
    let line = |layer: trimnet::engine::LayerInfo| LayerLine {
        kind: format!("{:?}", layer.format).to_lowercase(),
        shape: Some([layer.inputs, layer.outputs]),
        nonzero: layer.nonzero,
        values: None,
    };
    layers.into_iter().map(line).collect()
}

/// Where the bytes are, by purpose: they add up to the file.
struct Parts {
    mask: usize,
    codes: usize,
    palettes: usize,
    biases: usize,
    header: usize,
}

impl Parts {
    fn of(report: &TrimReport) -> Self {
        let mut parts = Self { mask: 0, codes: 0, palettes: 0, biases: 0, header: report.header };
        for tensor in &report.tensors {
            let bytes = tensor.bytes;
            if tensor.shape.len() < 2 {
                parts.biases += bytes.total();
            } else if tensor.name.ends_with(".mask") {
                parts.mask += bytes.total();
            } else {
                parts.mask += bytes.mask;
                parts.codes += bytes.values;
                parts.palettes += bytes.table;
                parts.header += bytes.head;
            }
        }
        parts
    }

    fn json(&self) -> Value {
        let Self { mask, codes, palettes, biases, header } = self;
        json!({ "mask": mask, "codes": codes, "palettes": palettes, "biases": biases, "header": header })
    }
}

fn main() -> Done {
    let args = Args::parse()?;
    let named = |error: Error| match error {
        Error::Format { reason, .. } => format!("{}: {reason}", args.file.display()),
        other => format!("{}: {other}", args.file.display()),
    };
    let bytes = fs::read(&args.file).map_err(|error| format!("{}: {error}", args.file.display()))?;
    let report = TrimReport::of_bytes(&bytes).map_err(named)?;
    let content = Content::read(&bytes).map_err(named)?;
    let data = args.data.as_deref().map(Data::read).transpose()?;
    let error = data.as_ref().map(|data| content.error(data)).transpose()?;
    let (layers, parts) = (content.layers(), Parts::of(&report));
    let nonzero: usize =
        report.tensors.iter().filter(|t| !t.name.ends_with(".mask")).map(|t| t.nonzero).sum();
    if args.json {
        let layer = |line: &LayerLine| {
            let mut object = json!({ "kind": line.kind, "nonzero": line.nonzero });
            if let Some([inputs, outputs]) = line.shape {
                object["inputs"] = inputs.into();
                object["outputs"] = outputs.into();
            }
            if let Some(weights) = &line.values {
                object["values"] = weights.distinct.into();
            }
            object
        };
        let object = json!({
            "bytes": bytes.len(),
            "error_percent": error.map(|error| 100.0 * error),
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
            "nonzero": nonzero,
            "parts": parts.json(),
        });
        println!("{object}");
        return Ok(());
    }

    println!(
        "{}: {}, {} bytes, {nonzero} numbers that are not 0\n",
        args.file.display(),
        content.name(),
        bytes.len()
    );
    if !layers.is_empty() {
        let cell = |line: &LayerLine| {
            let mut cells = vec![line.kind.clone()];
            match line.shape {
                Some([inputs, outputs]) => {
                    let kept = line.nonzero as f64 / (inputs * outputs) as f64;
                    cells.extend([
                        format!("{inputs} -> {outputs}"),
                        line.nonzero.to_string(),
                        percent(1.0 - kept),
                    ]);
                }
                None => cells.extend([String::new(), String::new(), String::new()]),
            }
            cells.push(line.values.as_ref().map_or(String::new(), |weights| weights.distinct.to_string()));
            cells
        };
        let cells: Vec<_> = layers.iter().map(cell).collect();
        print_table(&["layer", "shape", "nonzero", "sparsity", "values"], &cells);
        println!();
        for (index, line) in layers.iter().enumerate() {
            if let Some(Weights { least, most, bars, .. }) = &line.values {
                println!("{index:>3} {least:>9.4} |{bars}| {most:.4}");
            }
        }
        if layers.iter().any(|line| line.values.is_some()) {
            println!("    the weights that are not 0, from the least to the largest\n");
        }
    }
    println!("{report}\n");
    let Parts { mask, codes, palettes, biases, header } = parts;
    println!(
        "mask {mask}  codes {codes}  palettes {palettes}  biases and other vectors {biases}  header {header}"
    );
    if let (Some(error), Some(data)) = (error, &data) {
        let rows = data.test.rows();
        println!("{} of {rows} test images wrong: {}", (error * rows as f64).round(), percent(error));
    }
    Ok(())
}
