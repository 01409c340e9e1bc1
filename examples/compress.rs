//! The whole road on real digits: train, prune, shrink, quantize, distil, and measure each step.
//! `cargo run --release --example compress [-- --data DIR --seed N --json --out DIR]`

mod common;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::{Args, Data, Done, Progress, percent, print_table};
use trimnet::distill::{Distillation, KdLoss};
use trimnet::engine::{Config, Engine, Format};
use trimnet::ndarray::{Array2, Axis, Slice, s};
use trimnet::nn::metrics::accuracy;
use trimnet::nn::{Adam, CrossEntropy, GradualPruning, Layer, LearningRate, Mlp, Trainer};
use trimnet::prune::Schedule;
use trimnet::regularize::{Groups, Penalty};

const TEACHER_STEPS: usize = 5000;
const PRUNING_STEPS: usize = 8000;
const STUDENT_STEPS: usize = 24_000;

/// Of all weights of the teacher; masks change every so many steps.
const SPARSITY: f64 = 0.92;
const PRUNE_EVERY: usize = 20;

/// What makes whole neurons die, so that shrinking finds something to remove.
const GROUP_LASSO: f64 = 1e-4;

fn main() -> Done {
    let about = "Trains, prunes, shrinks, quantizes and distils a network, and prints what was won.";
    let args = Args::parse(about, &["data", "seed", "json", "out"])?;
    let data = Data::read(&args.data)?;
    let batch = if data.train.rows() < 10_000 { 32 } else { 128 };
    let (inputs, classes) = (data.train.features(), data.classes);
    std::fs::create_dir_all(&args.out)
        .map_err(|source| trimnet::Error::Io { path: args.out.clone(), source })?;
    let mut table = Table { data: &data, out: args.out.clone(), rows: Vec::new() };
    let trainer = |steps, rate, seed| {
        let epochs = data.epochs(steps, batch);
        let rate = LearningRate::cosine(rate, 0.0, epochs as f64)?;
        Ok::<_, trimnet::Error>((
            epochs,
            Trainer::new(epochs, batch)?.with_seed(args.seed * 10 + seed).with_learning_rate(rate),
        ))
    };

    // A teacher, with dropout against overfitting.
    let teacher =
        Mlp::builder(inputs).linear(300).relu().dropout(0.2).linear(100).relu().dropout(0.2).linear(classes);
    let mut teacher = teacher.build::<f32>(&mut args.rng(0))?;
    let (epochs, training) = trainer(TEACHER_STEPS, 0.002, 0)?;
    let mut bar = Progress::new("training the teacher", epochs);
    training.fit(&mut teacher, &mut CrossEntropy, &data.train, None, &mut Adam::new(), &mut [&mut bar])?;
    drop(bar);
    table.float("teacher", &teacher)?;
    let logits = teacher.predict(data.train.inputs())?; // [rows, classes], once for all that learn from it

    // Pruned step by step while it goes on learning, from its own earlier opinion too.
    let layers = teacher.layers().iter().filter(|layer| !matches!(layer, Layer::Dropout(_))).cloned();
    let mut pruned = Mlp::from_layers(inputs, layers.collect())?;
    let (epochs, training) = trainer(PRUNING_STEPS, 0.002, 1)?;
    let training = training.with_penalty(Penalty::group_lasso_by_size(GROUP_LASSO, Groups::Rows)?);
    let begin = training.steps_per_epoch(&data.train);
    let rounds = epochs * begin * 6 / 10 / PRUNE_EVERY;
    let schedule = Schedule::cubic(0.0, SPARSITY, begin as u64, (begin + rounds * PRUNE_EVERY) as u64)?;
    let mut pruning = GradualPruning::new(schedule.every(PRUNE_EVERY as u64)?);
    let mut objective = Distillation::cached(logits.clone(), KdLoss::new(8.0, 0.5)?)?;
    let mut bar = Progress::new("pruning", epochs);
    training.fit(
        &mut pruned,
        &mut objective,
        &data.train,
        None,
        &mut Adam::new(),
        &mut [&mut pruning, &mut bar],
    )?;
    drop(bar);
    table.float("pruned", &pruned)?;

    // The same function in smaller matrices, then in integers.
    let (shrunk, _) = pruned.shrink()?;
    table.float("shrunk", &shrunk)?;
    table.int8("int8", &shrunk)?;

    // A student of a tenth of the teacher's parameters learns from the teacher's outputs.
    let hidden = (teacher.parameters() / 10).saturating_sub(classes) / (inputs + classes + 1);
    let mut student =
        Mlp::builder(inputs).linear(hidden.max(1)).relu().linear(classes).build::<f32>(&mut args.rng(2))?;
    let (epochs, training) = trainer(STUDENT_STEPS, 0.004, 2)?;
    let mut objective = Distillation::cached(logits, KdLoss::new(4.0, 0.5)?)?;
    let mut bar = Progress::new("distilling a student", epochs);
    training.fit(&mut student, &mut objective, &data.train, None, &mut Adam::new(), &mut [&mut bar])?;
    drop(bar);
    table.float("student", &student)?;
    table.int8("student-int8", &student)?;

    if args.json {
        table.print_json()
    } else {
        table.print()
    }
    Ok(())
}

/// What is known about one model.
struct Row {
    model: &'static str,
    accuracy: f64,
    parameters: usize,
    nonzero: usize,
    bytes: u64,
    sqnr_db: Option<f64>,
    /// Median times of one input, in microseconds: by the network itself, and by the engine that is made of it.
    predict_us: Option<f64>,
    engine_us: f64,
}

struct Table<'d> {
    data: &'d Data,
    out: PathBuf,
    rows: Vec<Row>,
}

impl Table<'_> {
    fn float(&mut self, model: &'static str, mlp: &Mlp<f32>) -> trimnet::Result<()> {
        let (test, path) = (&self.data.test, self.path(model));
        mlp.save(&path)?;
        let logits = mlp.predict(test.inputs())?;
        let one = test.inputs().slice_move(s![..1, ..]);
        let predict_us = median_us(|| mlp.predict(black_box(one)).map(drop))?;
        let engine_us = self.engine_us(&Engine::build(mlp, &Config::new(Format::Dense))?)?;
        let times = (Some(predict_us), engine_us);
        self.push(model, (mlp.parameters(), mlp.nonzero()), &path, (&logits, None), times)
    }

    /// Weights and activations of 8 bits, and sums of integers, in the deployable form of the network.
    fn int8(&mut self, model: &'static str, mlp: &Mlp<f32>) -> trimnet::Result<()> {
        let (train, test, path) = (&self.data.train, &self.data.test, self.path(model));
        let rows = train.rows().min(1000) as isize;
        let calibration = train.inputs().slice_axis_move(Axis(0), Slice::from(..rows));
        let engine = Engine::build(mlp, &Config::new(Format::Int8).with_calibration(calibration))?;
        engine.save(&path)?;
        let logits = engine.predict(test.inputs())?;
        let sqnr = sqnr_db(&mlp.predict(test.inputs())?, &logits);
        let biases =
            mlp.linears().filter_map(|linear| linear.bias()).flatten().filter(|&&b| b != 0.0).count();
        let nonzero = engine.layers().iter().map(|layer| layer.nonzero).sum::<usize>() + biases;
        let times = (None, self.engine_us(&engine)?);
        self.push(model, (mlp.parameters(), nonzero), &path, (&logits, Some(sqnr)), times)
    }

    fn engine_us(&self, engine: &Engine<f32>) -> trimnet::Result<f64> {
        let (one, mut workspace) = (self.data.test.inputs().row(0).to_vec(), engine.workspace(1));
        median_us(|| engine.predict_one(black_box(&one), &mut workspace).map(|_| ()))
    }

    fn path(&self, model: &str) -> PathBuf {
        self.out.join(model).with_extension("trim")
    }

    fn push(
        &mut self,
        model: &'static str,
        (parameters, nonzero): (usize, usize),
        path: &Path,
        (logits, sqnr_db): (&Array2<f32>, Option<f64>),
        (predict_us, engine_us): (Option<f64>, f64),
    ) -> trimnet::Result<()> {
        let io = |source| trimnet::Error::Io { path: path.to_owned(), source };
        let bytes = std::fs::metadata(path).map_err(io)?.len();
        let accuracy = accuracy(logits.view(), self.data.test.labels().unwrap_or_default())?;
        self.rows.push(Row { model, accuracy, parameters, nonzero, bytes, sqnr_db, predict_us, engine_us });
        Ok(())
    }

    fn print(&self) {
        let rows = self.rows.iter().map(|row| {
            let sqnr = row.sqnr_db.map_or(String::new(), |db| format!("{db:.1} dB"));
            let numbers = [row.parameters.to_string(), row.nonzero.to_string(), row.bytes.to_string(), sqnr];
            let mut cells = vec![row.model.to_owned(), percent(row.accuracy)];
            cells.extend(numbers);
            cells.push(row.predict_us.map_or(String::new(), |us| format!("{us:.1}")));
            cells.push(format!("{:.1}", row.engine_us));
            cells
        });
        let header = ["model", "accuracy", "parameters", "nonzero", "bytes", "SQNR", "predict", "engine"];
        print_table(&header, &rows.collect::<Vec<_>>());
        println!(
            "\naccuracy on {} held-out images; bytes of the file; SQNR of the outputs;",
            self.data.test.rows()
        );
        println!(
            "predict, engine: us for one image by Mlp::predict and by an Engine, which shrinks by itself"
        );
        println!("models saved in {}", self.out.display());
    }

    fn print_json(&self) {
        for Row { model, accuracy, parameters, nonzero, bytes, predict_us, engine_us, .. } in &self.rows {
            let predict_us = predict_us.map_or("null".into(), |us| format!("{us:.3}"));
            println!(
                r#"{{"model":"{model}","accuracy":{accuracy},"parameters":{parameters},"nonzero":{nonzero},"bytes":{bytes},"predict_us":{predict_us},"engine_us":{engine_us:.3}}}"#
            );
        }
    }
}

/// The median time of a call, in microseconds, of 200 samples. One call alone is too short for the clock: a sample is the
/// mean of 50.
fn median_us(mut call: impl FnMut() -> trimnet::Result<()>) -> trimnet::Result<f64> {
    const CALLS: u32 = 50;
    let mut times = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        for _ in 0..CALLS {
            call()?;
        }
        times.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS));
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Signal to quantization noise of the logits, in decibels.
fn sqnr_db(exact: &Array2<f32>, found: &Array2<f32>) -> f64 {
    let noise = (exact - found).mapv(|x| f64::from(x).powi(2)).sum();
    10.0 * (exact.mapv(|x| f64::from(x).powi(2)).sum() / noise).log10()
}
