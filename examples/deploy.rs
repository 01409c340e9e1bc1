//! From a trained network to one that serves: build, save, load, answer requests, and measure all of it.
//! `cargo run --release --example deploy [-- --data DIR --load FILE --out FILE --format int8|int4|dynamic|f32|latency|bytes --gptq DAMPING
//! --budget POINTS --sweep --seed N --requests N --threads N --seconds S]`

mod common;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Data, Done, Progress, command_line, number};
use lexopt::{Arg, ValueExt};
use trimnet::Error;
use trimnet::engine::{Auto, Config, Engine, Format};
use trimnet::nn::{Adam, CrossEntropy, LearningRate, Mlp, Trainer, metrics};
use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::report::{Sensitivity, Treatment, report};

const STEPS: usize = 5000;

struct Args {
    data: PathBuf,
    load: Option<PathBuf>,
    out: PathBuf,
    format: String,
    gptq: Option<f64>,
    budget: Option<f64>,
    sweep: bool,
    seed: u64,
    requests: usize,
    threads: usize,
    seconds: f64,
}

impl Args {
    fn parse() -> Result<Self, lexopt::Error> {
        let mut args = Self {
            data: Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/digits"),
            load: None,
            out: "engine.trim".into(),
            format: "int8".into(),
            gptq: None,
            budget: None,
            sweep: false,
            seed: 1,
            requests: 10_000,
            threads: 16,
            seconds: 1.0,
        };
        let mut parser = command_line();
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long("data") => args.data = parser.value()?.into(),
                Arg::Long("load") => args.load = Some(parser.value()?.into()),
                Arg::Long("out") => args.out = parser.value()?.into(),
                Arg::Long("format") => args.format = parser.value()?.string()?,
                Arg::Long("gptq") => args.gptq = Some(number(&mut parser, "--gptq")?),
                Arg::Long("budget") => args.budget = Some(number(&mut parser, "--budget")?),
                Arg::Long("sweep") => args.sweep = true,
                Arg::Long("seed") => args.seed = number(&mut parser, "--seed")?,
                Arg::Long("requests") => args.requests = number(&mut parser, "--requests")?,
                Arg::Long("threads") => {
                    args.threads = number::<NonZeroUsize>(&mut parser, "--threads")?.get()
                }
                Arg::Long("seconds") => args.seconds = number(&mut parser, "--seconds")?,
                Arg::Long("help") | Arg::Short('h') => {
                    println!("{}", help());
                    std::process::exit(0);
                }
                _ => return Err(arg.unexpected()),
            }
        }
        // What is wrong is told before anything is trained.
        config(&args.format)?;
        let checked = |option: &str, value: Option<f64>, most: f64| match value {
            Some(value) if !(0.0..=most).contains(&value) => {
                Err(format!("{option} {value}: allowed is 0 to {most}"))
            }
            _ => Ok(()),
        };
        checked("--gptq", args.gptq, 1.0)?;
        checked("--budget", args.budget, 100.0)?;
        Duration::try_from_secs_f64(args.seconds).map_err(|e| format!("--seconds {}: {e}", args.seconds))?;
        Ok(args)
    }
}

/// What the options are for.
fn help() -> String {
    format!(
        "Trains or loads a network, builds an engine, saves it, loads it, and serves requests.\n
  --data DIR        images as IDX files (default: the digits that travel with the repository)
  --load FILE       a network instead of training one
  --out FILE        where the engine is saved (default: engine.trim)
  --format WORD     {FORMATS} (default: int8)
  --gptq DAMPING    rounds weights by what they are multiplied by; 0.01 is usual, 0 means no
  --budget POINTS   percentage points of accuracy that may be lost on images held out of training; formats that are
                    chosen by latency or bytes are searched within it, others refused beyond it
  --sweep           first tells what each layer loses, compressed alone in several ways
  --seed N          decides everything random (default: 1)
  --requests N      requests to serve (default: 10000)
  --threads N       threads that share the engine (default: 16)
  --seconds S       for so long (default: 1)"
    )
}

const FORMATS: &str = "int8|int4|dynamic|f32|latency|bytes";

/// How to build the engine, by a word of [`FORMATS`].
fn config<'a>(format: &str) -> Result<Config<'a, f32>, lexopt::Error> {
    Ok(match format {
        "int8" => Config::new(Format::Int8),
        "int4" => Config::new(Format::Int4),
        "dynamic" => Config::new(Format::Int8Dynamic),
        "f32" => Config::new(Format::Dense),
        "latency" => Config::auto(Auto::Latency),
        "bytes" => Config::auto(Auto::Bytes),
        other => return Err(format!("--format {other}: allowed is {FORMATS}").into()),
    })
}

fn main() -> Done {
    let args = Args::parse()?;
    let mut data = Data::read(&args.data)?;
    // To judge what is lost, a sixth of the images is neither trained nor tested on.
    let mut judges = None;
    if args.sweep || args.budget.is_some() {
        let (train, held_out) = data.train.split(1.0 / 6.0, 3)?;
        (data.train, judges) = (train, Some(held_out));
    }
    let mlp = match &args.load {
        Some(path) => Mlp::load(path)?,
        None => train(&data, args.seed)?,
    };

    // Some hundred typical inputs tell the ranges of activations.
    let rows: Vec<usize> = (0..data.train.rows().min(1000)).collect();
    let typical = data.train.select(&rows)?;
    let mut config = config(&args.format)?.with_calibration(typical.inputs());
    if let Some(damping) = args.gptq.filter(|&damping| damping > 0.0) {
        config = config.with_gptq(damping);
    }
    if let Some(judges) = judges.as_ref().filter(|_| args.sweep) {
        println!("{}\n", Sensitivity::sweep(&mlp, &config, judges, &Treatment::USUAL)?);
    }
    if let (Some(judges), Some(points)) = (&judges, args.budget) {
        config = config.with_accuracy_budget(judges, points / 100.0);
    }
    let begin = Instant::now();
    let engine = Engine::build(&mlp, &config)?;
    println!("built in {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);

    engine.save(&args.out)?;
    let begin = Instant::now();
    let engine_loaded = Engine::<f32>::load(&args.out)?;
    let bytes = std::fs::metadata(&args.out)?.len();
    println!(
        "saved {bytes} bytes as {}, loaded in {:.1} ms",
        args.out.display(),
        begin.elapsed().as_secs_f64() * 1e3
    );
    if engine_loaded.predict(data.test.inputs())? != engine.predict(data.test.inputs())? {
        failed("loading", "the loaded engine gives other numbers".to_string())?;
    }
    println!("\n{}\n", report(&mlp, &engine, &data.test)?);

    serve(&engine_loaded, &data, args.requests)?;
    share(&engine_loaded, &data, args.threads, Duration::from_secs_f64(args.seconds))
}

/// Ends the program with a reason.
fn failed(what: &'static str, reason: String) -> trimnet::Result<()> {
    Err(Error::Unsupported { what, reason })
}

fn train(data: &Data, seed: u64) -> trimnet::Result<Mlp<f32>> {
    let (inputs, batch) = (data.train.features(), if data.train.rows() < 10_000 { 32 } else { 128 });
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mlp = Mlp::builder(inputs).linear(300).batch_norm().relu().dropout(0.2).linear(100).relu();
    let mut mlp = mlp.linear(data.classes).build::<f32>(&mut rng)?;
    let epochs = data.epochs(STEPS, batch);
    let rate = LearningRate::cosine(0.002, 0.0, epochs as f64)?;
    let trainer = Trainer::new(epochs, batch)?.with_seed(seed).with_learning_rate(rate);
    let mut bar = Progress::new("training", epochs);
    trainer.fit(&mut mlp, &mut CrossEntropy, &data.train, None, &mut Adam::new(), &mut [&mut bar])?;
    drop(bar);
    Ok(mlp)
}

/// One request after the other, as they would come in: the time of each.
fn serve(engine: &Engine<f32>, data: &Data, requests: usize) -> Done {
    let images = data.test.inputs();
    let labels = data.test.labels().unwrap_or_default();
    let mut workspace = engine.workspace(1);
    let (mut times, mut right) = (Vec::with_capacity(requests), 0);
    for request in 0..requests {
        let i = request % images.nrows();
        let image = &images.row(i).to_vec();
        let begin = Instant::now();
        let logits = engine.predict_one(image, &mut workspace)?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        let logits = trimnet::ndarray::ArrayView1::from(logits);
        right +=
            usize::from(metrics::predictions(logits.insert_axis(trimnet::ndarray::Axis(0)))[0] == labels[i]);
    }
    let share = 100.0 * right as f64 / requests.max(1) as f64;
    println!("{requests} requests, one image each: {share:.2} % right");
    histogram(&mut times);
    Ok(())
}

/// Times in bins that grow by a factor, and the quantiles that matter.
fn histogram(times: &mut [f64]) {
    times.sort_by(f64::total_cmp);
    let Some((&least, &most)) = times.first().zip(times.last()) else { return };
    let mut low = least;
    while low <= most {
        let high = low * 1.25;
        let count = times.iter().filter(|&&time| time >= low && time < high).count();
        if count > 0 {
            let bar = "#".repeat((60 * count).div_ceil(times.len()));
            println!("{low:>9.1} us {count:>7} {bar}");
        }
        low = high;
    }
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("median {:.1} us, 99 % {:.1} us, 99.9 % {:.1} us", at(0.5), at(0.99), at(0.999));
}

/// Many threads with one engine: every result has to be that of one thread.
fn share(engine: &Engine<f32>, data: &Data, threads: usize, time: Duration) -> Done {
    let images = data.test.inputs();
    let expected = engine.predict(images)?;
    let calls: usize = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let expected = &expected;
                scope.spawn(move || -> trimnet::Result<usize> {
                    let mut workspace = engine.workspace(1);
                    let (begin, mut calls) = (Instant::now(), 0);
                    while begin.elapsed() < time {
                        let i = (calls + 37 * thread) % images.nrows();
                        let image = images.row(i).to_vec();
                        let same = engine.predict_one(&image, &mut workspace)? == expected.row(i).to_vec();
                        if !same {
                            let (what, reason) = ("sharing an engine", format!("row {i} differs"));
                            return Err(Error::Unsupported { what, reason });
                        }
                        calls += 1;
                    }
                    Ok(calls)
                })
            })
            .collect();
        let counts = workers.into_iter().map(|worker| match worker.join() {
            Ok(count) => count,
            Err(_) => Ok(0),
        });
        counts.sum::<trimnet::Result<usize>>()
    })?;
    println!("\n{threads} threads shared it for {:.1} s: {calls} calls, all equal", time.as_secs_f64());
    Ok(())
}
