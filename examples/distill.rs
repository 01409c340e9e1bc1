//! A small network taught by a large one: `cargo run --release --example distill`
//!
//! The teacher has seen all training rows, the students only 200 of them. The same student, with the same weights to begin
//! with, learns those from their labels alone, and from labels and teacher: soft targets say more about each row than its
//! label does (Hinton, Vinyals, Dean 2015, section 6).

mod common;

use common::{Args, Data, Done, Progress, TRAINING, percent, print_table};
use trimnet::distill::{Distillation, KdLoss};
use trimnet::nn::{Adam, CrossEntropy, Dataset, LearningRate, Mlp, Objective, Trainer, evaluate};

const SEEDS: u64 = 10;
const ROWS: usize = 200;
const BATCH: usize = 32;
const STEPS: usize = 1500;

fn main() -> Done {
    let args =
        Args::parse("Compares a student alone with one taught by a teacher, over several seeds.", &TRAINING)?;
    let data = Data::read(&args.data)?;
    let (inputs, classes) = (data.train.features(), data.classes);
    let (_, few) = data.train.split_stratified(ROWS as f64 / data.train.rows() as f64, args.seed)?;
    let fit =
        |mlp: &mut Mlp<f32>, objective: &mut dyn Objective<f32>, train: &Dataset<f32>, steps: usize, seed| {
            let epochs = (steps * BATCH).div_ceil(train.rows());
            let rate = LearningRate::cosine(0.003, 0.0, epochs as f64)?;
            let trainer = Trainer::new(epochs, BATCH)?.with_seed(seed).with_learning_rate(rate);
            trainer.fit(mlp, objective, train, None, &mut Adam::new(), &mut [])?;
            Ok::<_, trimnet::Error>(evaluate(mlp, &data.test)?.accuracy.unwrap_or(0.0))
        };

    let builder = Mlp::builder(inputs).linear(300).relu().dropout(0.3).linear(100).relu().dropout(0.3);
    let mut teacher = builder.linear(classes).build::<f32>(&mut args.rng(0))?;
    let right = fit(&mut teacher, &mut CrossEntropy, &data.train, 5000, args.seed)?;
    let logits = teacher.predict(few.inputs())?; // once for all students

    let bar = Progress::new("students", SEEDS as usize);
    let (mut alone, mut distilled, mut parameters) = (Vec::new(), Vec::new(), 0);
    for seed in 1..=SEEDS {
        let student =
            Mlp::builder(inputs).linear(64).relu().linear(classes).build::<f32>(&mut args.rng(seed))?;
        parameters = student.parameters();
        alone.push(fit(&mut student.clone(), &mut CrossEntropy, &few, STEPS, seed)?);
        let mut objective = Distillation::cached(logits.clone(), KdLoss::new(8.0, 0.1)?)?;
        distilled.push(fit(&mut student.clone(), &mut objective, &few, STEPS, seed)?);
        bar.at(seed);
    }
    drop(bar);

    let row = |name: &str, parameters: usize, accuracies: &[f64]| {
        let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
        let worst = accuracies.iter().copied().fold(1.0, f64::min);
        vec![name.to_owned(), parameters.to_string(), percent(mean), percent(worst)]
    };
    let rows = [
        row("teacher", teacher.parameters(), &[right]),
        row("student alone", parameters, &alone),
        row("student distilled", parameters, &distilled),
    ];
    println!("teacher: {} rows; students: {} of them, {SEEDS} seeds\n", data.train.rows(), few.rows());
    print_table(&["network", "parameters", "test accuracy", "worst"], &rows);
    Ok(())
}
