//! How many epochs a network needs with and without batch norm: `cargo run --release --example batch_norm`
//! Both have the same widths, data, seed and settings; the deep, narrow shape is where normalizing helps most.

mod common;

use std::ops::ControlFlow;

use common::{Args, Data, Done, TRAINING, percent, print_table};
use trimnet::nn::{Callback, CrossEntropy, Epoch, LearningRate, Mlp, Momentum, Sgd, Trainer, evaluate};

const DEPTH: usize = 6;
const WIDTH: usize = 32;
const EPOCHS: usize = 60;
const TARGET: f64 = 0.05;

/// Stops when the training loss reaches the target.
struct Reached(Option<usize>);

impl Callback<f32> for Reached {
    fn on_epoch(&mut self, _: &mut Mlp<f32>, epoch: &Epoch) -> trimnet::Result<ControlFlow<()>> {
        if epoch.loss > TARGET {
            return Ok(ControlFlow::Continue(()));
        }
        self.0 = Some(epoch.epoch + 1);
        Ok(ControlFlow::Break(()))
    }
}

fn main() -> Done {
    let args = Args::parse("Compares training with and without batch norm.", &TRAINING)?;
    let data = Data::read(&args.data)?;
    let mut rows = Vec::new();
    for rate in [0.003, 0.03, 0.3] {
        for (name, normalized) in [("plain", false), ("batch norm", true)] {
            let hidden =
                (0..DEPTH).fold(Mlp::builder(data.train.features()), |builder, _| match normalized {
                    true => builder.linear_no_bias(WIDTH).batch_norm().relu(),
                    false => builder.linear(WIDTH).relu(),
                });
            let mut mlp = hidden.linear(data.classes).build::<f32>(&mut args.rng(0))?;
            let mut reached = Reached(None);
            let trainer = Trainer::new(EPOCHS, 64)?.with_seed(args.seed);
            let trainer = trainer.with_learning_rate(LearningRate::constant(rate)?);
            let mut sgd = Sgd::new().with_momentum(Momentum::Heavy(0.9))?;
            let history =
                trainer.fit(&mut mlp, &mut CrossEntropy, &data.train, None, &mut sgd, &mut [&mut reached]);
            let (epochs, loss, accuracy) = match history {
                Ok(history) => (
                    reached.0.map_or(format!("not in {EPOCHS}"), |epochs| epochs.to_string()),
                    format!("{:.4}", history.loss().unwrap_or(f64::NAN)),
                    percent(evaluate(&mlp, &data.test)?.accuracy.unwrap_or(0.0)),
                ),
                Err(error @ trimnet::Error::Diverged { .. }) => {
                    ("diverged".into(), error.to_string(), String::new())
                }
                Err(error) => return Err(error.into()),
            };
            rows.push(vec![name.to_owned(), rate.to_string(), epochs, loss, accuracy]);
        }
    }
    println!("when the training loss falls to {TARGET}, and where it stands after {EPOCHS} epochs of SGD\n");
    let epochs = format!("epochs to {TARGET}");
    print_table(&["network", "learning rate", &epochs, "training loss", "test accuracy"], &rows);
    Ok(())
}
