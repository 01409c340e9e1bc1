//! A small network taught by a large one: `cargo run --release --example distill`
//! The same student, with the same weights to begin with, learns from the labels alone and from teacher and labels.

mod common;

use common::{Args, Data, Done, Progress, percent, print_table};
use trimnet::distill::{Distillation, KdLoss};
use trimnet::nn::{Adam, CrossEntropy, LearningRate, Mlp, Objective, Trainer, evaluate};

const SEEDS: u64 = 10;
const HIDDEN: usize = 16;
const BATCH: usize = 32;

fn main() -> Done {
    let args = Args::parse("Compares a student alone with one taught by a teacher, over several seeds.")?;
    let data = Data::read(&args.data)?;
    let (inputs, classes) = (data.train.features(), data.classes);
    let fit = |mlp: &mut Mlp<f32>, objective: &mut dyn Objective<f32>, steps: usize, seed: u64| {
        let epochs = data.epochs(steps, BATCH);
        let rate = LearningRate::cosine(0.003, 0.0, epochs as f64)?;
        let trainer = Trainer::new(epochs, BATCH)?.with_seed(seed).with_learning_rate(rate);
        trainer.fit(mlp, objective, &data.train, None, &mut Adam::new(), &mut [])?;
        Ok::<_, trimnet::Error>(evaluate(mlp, &data.test)?.accuracy.unwrap_or(0.0))
    };

    let teacher =
        Mlp::builder(inputs).linear(300).relu().dropout(0.3).linear(100).relu().dropout(0.3).linear(classes);
    let mut teacher = teacher.build::<f32>(&mut args.rng(0))?;
    let teacher_accuracy = fit(&mut teacher, &mut CrossEntropy, 5000, args.seed)?;
    let logits = teacher.predict(data.train.inputs())?; // once for all students

    let bar = Progress::new("students", SEEDS as usize);
    let (mut alone, mut distilled, mut parameters) = (Vec::new(), Vec::new(), 0);
    for seed in 1..=SEEDS {
        let student =
            Mlp::builder(inputs).linear(HIDDEN).relu().linear(classes).build::<f32>(&mut args.rng(seed))?;
        parameters = student.parameters();
        alone.push(fit(&mut student.clone(), &mut CrossEntropy, 4000, seed)?);
        let mut objective = Distillation::cached(logits.clone(), KdLoss::new(4.0, 0.1)?)?;
        distilled.push(fit(&mut student.clone(), &mut objective, 4000, seed)?);
        bar.at(seed);
    }
    drop(bar);

    let row = |name: &str, parameters: usize, accuracies: &[f64]| {
        let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
        let worst = accuracies.iter().copied().fold(1.0, f64::min);
        vec![name.to_owned(), parameters.to_string(), percent(mean), percent(worst)]
    };
    let rows = [
        row("teacher", teacher.parameters(), &[teacher_accuracy]),
        row("student alone", parameters, &alone),
        row("student distilled", parameters, &distilled),
    ];
    println!("students: mean and worst of {SEEDS} seeds\n");
    print_table(&["network", "parameters", "test accuracy", "worst"], &rows);
    Ok(())
}
