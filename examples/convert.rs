//! Converts a network from one format to another, and compresses it on the way.
//!
//! `cargo run --release --features onnx,gguf --example convert -- IN OUT`, the formats by the ends of the names: `.trim`,
//! `.onnx`, `.safetensors` and `.gguf`. Exit codes: 0 done, 1 the conversion failed, 2 the command line is wrong.

mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use common::command_line;
use indicatif::ProgressBar;
use lexopt::{Arg, ValueExt};
use ndarray::Array2;
use trimnet::engine::{Calibrator, Target};
use trimnet::io::gguf::{Gguf, GgufType};
use trimnet::io::idx;
use trimnet::io::onnx::{OnnxExporter, OnnxImporter, Tail, WeightCodes};
use trimnet::io::safetensors::{Architecture, Names, SafeTensors, load_mlp, save_mlp};
use trimnet::nn::{Linear, Mlp};
use trimnet::prune::{Norm, PruneReport, Selection, score};

const HELP: &str = "\
convert [OPTIONS] IN OUT        formats: .trim, .onnx, .safetensors, .gguf

  --int8              int8 weights and activations, ONNX only; needs --calibrate
  --calibrate DATA    a folder of IDX files, or rows of little-endian f32 in a file
  --target NAME       whom the integers are for: onnxruntime (default) or tensorrt
  --dynamic           int8 weights, activations quantized by the runtime, ONNX only
  --int4 BLOCK        int4 weights, one scale for each BLOCK of them, ONNX only
  --prune SPARSITY    drops this fraction of all weights, the smallest, and neurons left without any
  --softmax           probabilities as output, ONNX only
  --output NAME       stops reading an ONNX graph at this value
  --layers FILE       the architecture of a .safetensors file that does not say it, as JSON:
                      {\"inputs\": 8, \"layers\": [{\"linear\": {\"outputs\": 4, \"bias\": true}}, ..]}
  --prefix TEXT       what the names in such a file begin with, \"module.\" or so
  --gguf TYPE         of weights in .gguf: f32 (default), f16, q8_0, q4_0
  --json              a report as JSON";

const FORMATS: &str = ".trim, .onnx, .safetensors and .gguf";

type Failure = Box<dyn std::error::Error>;

#[derive(Debug, Default)]
struct Args {
    from: PathBuf,
    to: PathBuf,
    int8: bool,
    calibrate: Option<PathBuf>,
    target: Target,
    dynamic: bool,
    int4: Option<usize>,
    prune: Option<f64>,
    softmax: bool,
    output: Option<String>,
    layers: Option<PathBuf>,
    prefix: String,
    gguf: Option<GgufType>,
    json: bool,
}

impl Args {
    fn parse() -> Result<Self, Failure> {
        let mut args = Self::default();
        let mut files = Vec::new();
        let mut parser = command_line();
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long("int8") => args.int8 = true,
                Arg::Long("calibrate") => args.calibrate = Some(parser.value()?.into()),
                Arg::Long("target") => {
                    args.target = match parser.value()?.string()?.as_str() {
                        "onnxruntime" => Target::OnnxRuntime,
                        "tensorrt" => Target::TensorRt,
                        other => return Err(format!("no target {other}; onnxruntime or tensorrt").into()),
                    };
                }
                Arg::Long("dynamic") => args.dynamic = true,
                Arg::Long("int4") => args.int4 = Some(parser.value()?.parse()?),
                Arg::Long("prune") => args.prune = Some(parser.value()?.parse()?),
                Arg::Long("softmax") => args.softmax = true,
                Arg::Long("output") => args.output = Some(parser.value()?.string()?),
                Arg::Long("layers") => args.layers = Some(parser.value()?.into()),
                Arg::Long("prefix") => args.prefix = parser.value()?.string()?,
                Arg::Long("gguf") => {
                    args.gguf = Some(match parser.value()?.string()?.as_str() {
                        "f32" => GgufType::F32,
                        "f16" => GgufType::F16,
                        "q8_0" => GgufType::Q8_0,
                        "q4_0" => GgufType::Q4_0,
                        other => return Err(format!("no type {other}; f32, f16, q8_0 or q4_0").into()),
                    });
                }
                Arg::Long("json") => args.json = true,
                Arg::Long("help") | Arg::Short('h') => {
                    println!("{HELP}");
                    std::process::exit(0);
                }
                Arg::Value(file) => files.push(PathBuf::from(file)),
                _ => return Err(arg.unexpected().into()),
            }
        }
        let [from, to] = files.try_into().map_err(|_| "one file to read and one to write are needed")?;
        (args.from, args.to) = (from, to);
        args.checked()
    }

    fn checked(self) -> Result<Self, Failure> {
        let forms = [self.int8, self.dynamic, self.int4.is_some()].iter().filter(|&&form| form).count();
        if forms > 1 {
            return Err("--int8, --dynamic and --int4 exclude each other".into());
        }
        if self.int8 != self.calibrate.is_some() {
            return Err("--int8 and --calibrate DATA belong together".into());
        }
        if (forms == 1 || self.softmax) && extension(&self.to) != "onnx" {
            return Err("integers and --softmax are written to .onnx only".into());
        }
        Ok(self)
    }
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

fn main() -> ExitCode {
    let args = match Args::parse() {
        Ok(args) => args,
        Err(error) => {
            eprintln!("convert: {error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match convert(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("convert: {error}");
            ExitCode::FAILURE
        }
    }
}

fn convert(args: &Args) -> Result<(), Failure> {
    let progress = ProgressBar::new_spinner();
    progress.enable_steady_tick(std::time::Duration::from_millis(100));
    progress.set_message("reading");
    let (mut mlp, tail) = read(args)?;
    let before = mlp.parameters();
    if let Some(sparsity) = args.prune {
        progress.set_message("pruning");
        mlp = prune(mlp, sparsity)?;
    }
    progress.set_message("writing");
    write(args, &mlp, tail)?;
    progress.finish_and_clear();

    let bytes = |path: &Path| std::fs::metadata(path).map(|file| file.len());
    let (from, to) = (bytes(&args.from)?, bytes(&args.to)?);
    if args.json {
        let report = serde_json::json!({
            "from": {"path": args.from, "bytes": from, "parameters": before},
            "to": {"path": args.to, "bytes": to, "parameters": mlp.parameters(), "nonzero": mlp.nonzero()},
            "widths": mlp.widths(),
        });
        println!("{report}");
    } else {
        println!(
            "{from} bytes to {to}; {:?}, {} parameters, {} of them not zero",
            mlp.widths(),
            mlp.parameters(),
            mlp.nonzero()
        );
    }
    Ok(())
}

fn read(args: &Args) -> Result<(Mlp<f32>, Tail), Failure> {
    match extension(&args.from) {
        "trim" => Ok((Mlp::load(&args.from)?, Tail::None)),
        "safetensors" => Ok((read_safetensors(args)?, Tail::None)),
        "gguf" => Ok((Gguf::load(&args.from)?.to_mlp()?, Tail::None)),
        "onnx" => {
            let importer = OnnxImporter::new();
            let importer = match &args.output {
                Some(output) => importer.with_output(output),
                None => importer,
            };
            let imported = importer.read(&args.from)?;
            Ok((imported.network, imported.tail))
        }
        other => Err(format!("no format for reading .{other} files; {FORMATS} are known").into()),
    }
}

fn read_safetensors(args: &Args) -> Result<Mlp<f32>, Failure> {
    let Some(layers) = &args.layers else { return Ok(load_mlp(&args.from)?) };
    let architecture = Architecture::from_json(&std::fs::read_to_string(layers)?)?;
    let file = SafeTensors::load(&args.from)?;
    // By the numbers of the modules, or, where some of them have no place in the network, by their order.
    let names = Names::sequential().with_prefix(&args.prefix);
    Ok(match file.to_mlp_of(&architecture, &names) {
        Ok(mlp) => mlp,
        Err(first) => match Names::numbered_in(&file, &args.prefix) {
            Ok(names) => file.to_mlp_of(&architecture, &names).map_err(|_| first)?,
            Err(_) => return Err(first.into()),
        },
    })
}

fn prune(mut mlp: Mlp<f32>, sparsity: f64) -> Result<Mlp<f32>, Failure> {
    let magnitude = |_, linear: &Linear<f32>| Ok(score::magnitude(linear.weight(), Norm::L1));
    let reports = mlp.prune_global(&Selection::sparsity(sparsity)?, magnitude, 1)?;
    let report: PruneReport = reports.into_iter().sum();
    eprintln!("pruned {} of {} weights", report.zeros, report.weights);
    Ok(mlp.shrink()?.0)
}

fn write(args: &Args, mlp: &Mlp<f32>, tail: Tail) -> Result<(), Failure> {
    match extension(&args.to) {
        format @ ("trim" | "safetensors" | "gguf") => {
            if tail != Tail::None {
                eprintln!("note: the file gives logits; the {tail:?} behind them is left out");
            }
            match format {
                "trim" => mlp.save(&args.to)?,
                "safetensors" => save_mlp(&args.to, mlp)?,
                _ => Gguf::from_mlp(mlp, args.gguf.unwrap_or(GgufType::F32))?.save(&args.to)?,
            }
            Ok(())
        }
        "onnx" => {
            let tail = if args.softmax { Tail::Softmax } else { tail };
            let exporter = OnnxExporter::new().with_tail(tail);
            let model = match (&args.calibrate, args.int4) {
                (Some(data), _) => {
                    let data = calibration(data, mlp.inputs())?;
                    let integers = Calibrator::new(args.target).quantize(mlp, data.view())?;
                    exporter.quantized(&integers, args.target)?
                }
                (None, Some(block)) => {
                    exporter.with_opset(21)?.weight_only(mlp, WeightCodes::Int4 { block })?
                }
                (None, None) if args.dynamic => exporter.dynamic(mlp)?,
                (None, None) => exporter.float(mlp)?,
            };
            Ok(model.save(&args.to)?)
        }
        other => Err(format!("no format for writing .{other} files; {FORMATS} are known").into()),
    }
}

/// A folder of IDX files, or rows of `f32`.
fn calibration(path: &Path, width: usize) -> Result<Array2<f32>, Failure> {
    if path.is_dir() {
        return Ok(idx::read_folder::<f32>(path)?.train.inputs().to_owned());
    }
    let bytes = std::fs::read(path)?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || numbers.len() % width != 0 {
        let length = bytes.len();
        return Err(format!("{}: {length} bytes are no rows of {width} f32", path.display()).into());
    }
    let numbers = numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Ok(Array2::from_shape_vec((bytes.len() / 4 / width, width), numbers)?)
}
