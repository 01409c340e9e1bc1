//! `train.adam|sgd.WIDTHS` and `distill.TEACHER.STUDENT`: 100 steps of 128 images of MNIST, drawn anew in every call.
//!
//! Beside the contract: `distill.cached.TEACHER.STUDENT`, the teacher's logits known beforehand.

use std::cell::Cell;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::rc::Rc;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use trimnet::distill::{Distillation, KdLoss};
use trimnet::io::idx;
use trimnet::nn::{
    Adam, Callback, CrossEntropy, Dataset, LearningRate, Mlp, Momentum, Objective, Optimizer, Sgd, Step,
    Trainer, Workspace, evaluate,
};

use super::case::{Call, Case, Context};

const STEPS: usize = 100;
const BATCH: usize = 128;
const TEACHER: [usize; 4] = [784, 1200, 1200, 10];
const STUDENT: [usize; 4] = [784, 300, 100, 10];

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    let adam = || Box::new(Adam::new()) as Box<dyn Optimizer<f32>>;
    let sgd = || -> Box<dyn Optimizer<f32>> {
        Box::new(Sgd::new().with_momentum(Momentum::Heavy(0.9)).unwrap_or_default())
    };
    vec![
        Case::new("train.adam.784-300-100-10", move |context| {
            train(context, network(&STUDENT, false, 1)?, adam(), 1e-3)
        }),
        Case::new("train.sgd.784-300-100-10", move |context| {
            train(context, network(&STUDENT, false, 1)?, sgd(), 0.05)
        }),
        Case::new("train.adam.784-1200-1200-10.bn.dropout", move |context| {
            train(context, network(&TEACHER, true, 1)?, adam(), 1e-3)
        }),
        Case::new("distill.784-1200-1200-10.784-300-100-10", |context| distill(context, false)),
        Case::new("distill.cached.784-1200-1200-10.784-300-100-10", |context| distill(context, true)),
    ]
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Linear, (batch norm,) relu(, dropout 0.5), ..., linear.
fn network(widths: &[usize; 4], regularized: bool, seed: u64) -> Result<Mlp<f32>, String> {
    let mut builder = Mlp::builder(widths[0]);
    for &width in &widths[1..3] {
        builder = builder.linear(width);
        builder = if regularized { builder.batch_norm().relu().dropout(0.5) } else { builder.relu() };
    }
    builder.linear(widths[3]).build(&mut Xoshiro256PlusPlus::seed_from_u64(seed)).map_err(text)
}

fn mnist() -> Result<Dataset<f32>, String> {
    let folder = std::env::var_os("TRIMNET_MNIST").map(PathBuf::from);
    let folder = folder.ok_or("the variable TRIMNET_MNIST does not name a folder")?;
    Ok(idx::read_folder(&folder).map_err(text)?.train)
}

/// Stops after the last step of the contract, and remembers its loss.
struct Stop(Rc<Cell<f64>>);

impl Callback<f32> for Stop {
    fn on_step(&mut self, _: &mut Mlp<f32>, step: &Step) -> trimnet::Result<ControlFlow<()>> {
        self.0.set(step.loss);
        Ok(if step.step + 1 == STEPS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

/// A call that trains `mlp`, each time with another seed; the first must have learnt something.
fn call(
    context: &Context,
    data: Dataset<f32>,
    mut mlp: Mlp<f32>,
    mut optimizer: Box<dyn Optimizer<f32>>,
    learning_rate: f64,
    mut objective: Box<dyn Objective<f32>>,
) -> Result<Call, String> {
    let trainer = Trainer::new(1, BATCH).map_err(text)?.with_threads(context.threads);
    let trainer = trainer.with_learning_rate(LearningRate::constant(learning_rate).map_err(text)?);
    let loss = Rc::new(Cell::new(f64::NAN));
    let mut seed = 0;
    let last = Rc::clone(&loss);
    let mut run = move || -> trimnet::Result<()> {
        seed += 1;
        let mut stop = Stop(Rc::clone(&last));
        let trainer = trainer.clone().with_seed(seed);
        trainer.fit(&mut mlp, &mut *objective, &data, None, &mut *optimizer, &mut [&mut stop])?;
        Ok(())
    };
    run().map_err(text)?;
    // Chance is 2.3.
    if loss.get().is_nan() || loss.get() >= 2.0 {
        return Err(format!("the loss is {} after {STEPS} steps", loss.get()));
    }
    Ok(Box::new(move || {
        if let Err(error) = run() {
            eprintln!("training failed: {error}");
        }
        black_box(loss.get());
    }))
}

fn train(
    context: &Context,
    mlp: Mlp<f32>,
    optimizer: Box<dyn Optimizer<f32>>,
    learning_rate: f64,
) -> Result<Call, String> {
    call(context, mnist()?, mlp, optimizer, learning_rate, Box::new(CrossEntropy))
}

fn distill(context: &Context, cached: bool) -> Result<Call, String> {
    let data = mnist()?;
    // The bench ends with the process; a teacher that outlives everything needs no owner.
    let teacher: &'static Mlp<f32> = Box::leak(Box::new(network(&TEACHER, false, 2)?));
    let kd = KdLoss::new(4.0, 0.3).map_err(text)?;
    let objective = if cached {
        let mut workspace = Workspace::with_threads(context.threads);
        let outputs = teacher.predict_with(data.inputs(), &mut workspace).map_err(text)?;
        Distillation::cached(outputs, kd)
    } else {
        Distillation::live(teacher, kd).map(|live| live.with_threads(context.threads))
    };
    let objective = Box::new(objective.map_err(text)?);
    call(context, data, network(&STUDENT, false, 1)?, Box::new(Adam::new()), 1e-3, objective)
}

/// Test errors in percent of what the cases of `train.adam` train: five seeds each, one JSON line per network, as the peers'
/// `accuracy.py` prints them.
pub fn accuracy(threads: usize) -> Result<(), String> {
    let folder = std::env::var_os("TRIMNET_MNIST").map(PathBuf::from);
    let folder = folder.ok_or("the variable TRIMNET_MNIST does not name a folder")?;
    let data = idx::read_folder(&folder).map_err(text)?;
    for (name, widths, regularized, epochs) in
        [("784-300-100-10", STUDENT, false, 10), ("784-1200-1200-10.bn.dropout", TEACHER, true, 3)]
    {
        let mut errors = Vec::new();
        for seed in 0..5 {
            let mut mlp = network(&widths, regularized, seed)?;
            let trainer = Trainer::new(epochs, BATCH).map_err(text)?.with_threads(threads).with_seed(seed);
            trainer
                .fit(&mut mlp, &mut CrossEntropy, &data.train, None, &mut Adam::new(), &mut [])
                .map_err(text)?;
            let test = data.test.as_ref().ok_or("the folder holds no test images")?;
            let accuracy = evaluate(&mlp, test).map_err(text)?.accuracy.unwrap_or(0.0);
            errors.push(100.0 * (1.0 - accuracy));
        }
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        let shown: Vec<String> = errors.iter().map(|error| format!("{error:.2}")).collect();
        println!(
            r#"{{"network": "{name}", "epochs": {epochs}, "errors": [{}], "mean": {mean:.3}}}"#,
            shown.join(", ")
        );
    }
    Ok(())
}
