//! The same network with and without dropout: `cargo run --release --example dropout`
//! Few training rows and many weights: the gap between training and test accuracy is what dropout closes.

mod common;

use common::{Args, Data, Done, percent, print_table};
use trimnet::nn::{Adam, CrossEntropy, LearningRate, Mlp, Trainer, evaluate};

const ROWS: usize = 300;
const EPOCHS: usize = 150;
const SEEDS: u64 = 5;

fn main() -> Done {
    let args = Args::parse("Compares training with and without dropout on few rows.")?;
    let data = Data::read(&args.data)?;
    let few = ROWS.min(data.train.rows() / 2) as f64 / data.train.rows() as f64;
    let (_, train) = data.train.split_stratified(few, args.seed)?;
    let mut rows = Vec::new();
    for p in [0.0, 0.2, 0.5] {
        let (mut train_sum, mut test_sum, mut loss_sum) = (0.0, 0.0, 0.0);
        for seed in 0..SEEDS {
            let builder =
                Mlp::builder(train.features()).linear(512).relu().dropout(p).linear(512).relu().dropout(p);
            let mut mlp = builder.linear(data.classes).build::<f32>(&mut args.rng(seed))?;
            let rate = LearningRate::cosine(0.001, 0.0, EPOCHS as f64)?;
            let trainer =
                Trainer::new(EPOCHS, 32)?.with_seed(args.seed * SEEDS + seed).with_learning_rate(rate);
            trainer.fit(&mut mlp, &mut CrossEntropy, &train, None, &mut Adam::new(), &mut [])?;
            let (on_train, on_test) = (evaluate(&mlp, &train)?, evaluate(&mlp, &data.test)?);
            train_sum += on_train.accuracy.unwrap_or(0.0);
            test_sum += on_test.accuracy.unwrap_or(0.0);
            loss_sum += on_test.loss;
        }
        let [train, test, loss] = [train_sum, test_sum, loss_sum].map(|sum| sum / SEEDS as f64);
        let gap = format!("{:.2}", 100.0 * (train - test));
        rows.push(vec![format!("p = {p}"), percent(train), percent(test), gap, format!("{loss:.4}")]);
    }
    println!("{} training rows, {} test rows, mean of {SEEDS} seeds\n", train.rows(), data.test.rows());
    print_table(&["dropout", "training", "test", "gap in points", "test loss"], &rows);
    Ok(())
}
