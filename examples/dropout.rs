//! The same network with and without dropout: `cargo run --release --example dropout`
//!
//! A fifth of all labels are replaced by random ones. A large network learns those of the training part by heart, which
//! helps nowhere else: training accuracy runs away from test accuracy. Dropout closes the gap, and finds the true labels.

mod common;

use common::{Args, Data, Done, TRAINING, percent, print_table};
use trimnet::nn::{Adam, CrossEntropy, Dataset, LearningRate, Mlp, Trainer, evaluate};
use trimnet::rand::RngExt;

const WRONG: f64 = 0.2;
const EPOCHS: usize = 60;
const SEEDS: u64 = 3;

fn main() -> Done {
    let args = Args::parse("Compares training with and without dropout on partly wrong labels.", &TRAINING)?;
    let data = Data::read(&args.data)?;
    let mut rng = args.rng(0);
    let mut spoil = |part: &Dataset<f32>| {
        let spoilt =
            part.labels().unwrap_or_default().iter().map(|&label| match rng.random::<f64>() < WRONG {
                true => rng.random_range(0..data.classes),
                false => label,
            });
        Dataset::classification(part.inputs().to_owned(), spoilt.collect())
    };
    let (train, test) = (spoil(&data.train)?, spoil(&data.test)?);
    let mut rows = Vec::new();
    for p in [0.0, 0.2, 0.5] {
        let mut sums = [0.0; 3];
        for seed in 0..SEEDS {
            let builder =
                Mlp::builder(train.features()).linear(256).relu().dropout(p).linear(256).relu().dropout(p);
            let mut mlp = builder.linear(data.classes).build::<f32>(&mut args.rng(1 + seed))?;
            let rate = LearningRate::cosine(0.001, 0.0, EPOCHS as f64)?;
            let trainer =
                Trainer::new(EPOCHS, 64)?.with_seed(args.seed * SEEDS + seed).with_learning_rate(rate);
            trainer.fit(&mut mlp, &mut CrossEntropy, &train, None, &mut Adam::new(), &mut [])?;
            for (sum, part) in sums.iter_mut().zip([&train, &test, &data.test]) {
                *sum += evaluate(&mlp, part)?.accuracy.unwrap_or(0.0);
            }
        }
        let [train, test, truth] = sums.map(|sum| sum / SEEDS as f64);
        let gap = format!("{:.2}", 100.0 * (train - test));
        rows.push(vec![p.to_string(), percent(train), percent(test), gap, percent(truth)]);
    }
    println!("{} training rows, {} test rows, mean of {SEEDS} seeds", train.rows(), data.test.rows());
    println!("a fifth of all labels are random; the last column has the test rows with their true ones\n");
    print_table(&["p", "training", "test", "gap in points", "test, true labels"], &rows);
    Ok(())
}
