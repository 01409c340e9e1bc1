//! What the trainer promises.

use std::ops::ControlFlow;

use approx::assert_relative_eq;
use ndarray::{Array, Array2, ArrayView2, array};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::nn::loss::cross_entropy;
use trimnet::nn::{
    Adam, Callback, CrossEntropy, Dataset, EarlyStopping, Epoch, Grads, Layer, LayerGrads, LearningRate,
    Linear, LinearGrads, MeanSquaredError, Mlp, Optimizer, Sgd, Step, Stop, StraightThrough, Trainer, Watch,
    evaluate,
};
use trimnet::quantize::{Scheme, UniformQuantizer};
use trimnet::regularize::Penalty;
use trimnet::{Error, Mask, Result};

fn rng(seed: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// Three noisy rays that a small network can tell apart.
fn rays(rows: usize) -> Dataset<f64> {
    let inputs = Array::from_shape_fn((rows, 2), |(row, column)| {
        let angle = (row % 3) as f64 * 2.1 + (row as f64 * 0.7).sin() * 0.4;
        let radius = 0.5 + (row as f64 * 1.3).cos().abs();
        radius * if column == 0 { angle.cos() } else { angle.sin() }
    });
    Dataset::classification(inputs, (0..rows).map(|row| row % 3).collect()).unwrap()
}

fn network(seed: u64) -> Mlp<f64> {
    Mlp::builder(2).linear(12).batch_norm().relu().dropout(0.2).linear(3).build(&mut rng(seed)).unwrap()
}

#[test]
fn learns_and_reports_what_it_learnt() {
    let (train, test) = rays(90).split_stratified(0.2, 1).unwrap();
    let mut mlp = network(1);
    let trainer = Trainer::new(40, 16).unwrap().with_learning_rate(LearningRate::constant(0.02).unwrap());
    let history =
        trainer.fit(&mut mlp, &mut CrossEntropy, &train, Some(&test), &mut Adam::new(), &mut []).unwrap();
    assert_eq!((history.epochs.len(), history.stop), (40, Stop::Finished));
    assert!(history.epochs[39].loss < history.epochs[0].loss);
    let last = history.epochs[39].validation.unwrap();
    assert_eq!(last, evaluate(&mlp, &test).unwrap());
    assert!(last.accuracy.unwrap() > 0.9, "{last:?}");
}

#[test]
fn one_step_is_forward_gradients_and_the_optimizer() {
    let data = rays(3);
    let start = Mlp::builder(2).linear(4).tanh().linear(3).build::<f64>(&mut rng(3)).unwrap();
    let mut trained = start.clone();
    Trainer::new(1, 3)
        .unwrap()
        .with_learning_rate(LearningRate::constant(0.1).unwrap())
        .with_penalty(Penalty::l2(0.01).unwrap())
        .fit(&mut trained, &mut CrossEntropy, &data, None, &mut Sgd::new(), &mut [])
        .unwrap();

    let mut by_hand = start;
    let (logits, cache) = by_hand.forward(data.inputs(), &mut rng(0)).unwrap();
    let (_, dlogits) = cross_entropy(logits.view(), data.labels().unwrap()).unwrap();
    let mut grads = by_hand.gradients(cache, dlogits).unwrap();
    for (linear, mut dweight) in by_hand.linears().zip(grads.dweights_mut()) {
        dweight.scaled_add(0.01, &linear.weight());
    }
    Sgd::new().step(&mut by_hand, &grads, 0.1).unwrap();
    for (a, b) in trained.linears().zip(by_hand.linears()) {
        assert_relative_eq!(a.weight(), b.weight(), epsilon = 1e-14);
    }
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let data = rays(50);
    let run = |seed| {
        let mut mlp = network(7);
        let trainer = Trainer::new(5, 8).unwrap().with_seed(seed);
        let history =
            trainer.fit(&mut mlp, &mut CrossEntropy, &data, None, &mut Adam::new(), &mut []).unwrap();
        (mlp, history)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn a_seed_means_the_same_training_in_every_version() {
    let mut mlp = network(7);
    let trainer = Trainer::new(3, 8).unwrap().with_seed(1);
    let history =
        trainer.fit(&mut mlp, &mut CrossEntropy, &rays(50), None, &mut Adam::new(), &mut []).unwrap();
    // Made by this test; the last digits belong to the machine's order of summation.
    assert_relative_eq!(history.loss().unwrap(), 1.2724820252876767, max_relative = 1e-9);
}

#[test]
fn a_row_too_many_does_not_break_batch_norm() {
    let mut mlp = network(1);
    let trainer = Trainer::new(2, 8).unwrap();
    trainer.fit(&mut mlp, &mut CrossEntropy, &rays(33), None, &mut Adam::new(), &mut []).unwrap();
    let error = Trainer::new(1, 1)
        .unwrap()
        .fit(&mut mlp, &mut CrossEntropy, &rays(5), None, &mut Adam::new(), &mut [])
        .unwrap_err();
    assert!(matches!(error, Error::BatchTooSmall { rows: 1, needed: 2, .. }));
}

#[test]
fn a_loss_that_is_not_finite_names_its_epoch_and_step() {
    let inputs = Array2::from_elem((4, 1), 1e200);
    let data = Dataset::regression(inputs, Array2::from_elem((4, 1), -1e200)).unwrap();
    let mut mlp = Mlp::builder(1).linear(1).build::<f64>(&mut rng(1)).unwrap();
    let before = mlp.clone();
    let error = Trainer::new(3, 2)
        .unwrap()
        .fit(&mut mlp, &mut MeanSquaredError, &data, None, &mut Sgd::new(), &mut [])
        .unwrap_err();
    assert!(matches!(error, Error::Diverged { epoch: 0, step: 0, .. }), "{error}");
    assert_eq!(mlp, before);

    let data = Dataset::regression(array![[1.0], [2.0]], array![[1.0], [-1.0]]).unwrap();
    let trainer = Trainer::new(10_000, 2).unwrap().with_learning_rate(LearningRate::constant(10.0).unwrap());
    let error =
        trainer.fit(&mut mlp, &mut MeanSquaredError, &data, None, &mut Sgd::new(), &mut []).unwrap_err();
    match error {
        Error::Diverged { epoch, step, .. } => assert!(epoch > 0 && step == epoch),
        other => panic!("{other}"),
    }
}

#[test]
fn a_last_step_that_overflows_is_an_error_not_a_network() {
    let data = Dataset::regression(array![[1e9_f32]], array![[0.0]]).unwrap();
    let linear = Linear::new(array![[1.0_f32]], None).unwrap();
    let mut mlp = Mlp::from_layers(1, vec![Layer::Linear(linear)]).unwrap();
    for epochs in [1, 2] {
        let trainer = Trainer::new(epochs, 1).unwrap();
        let error = trainer
            .with_learning_rate(LearningRate::constant(1e30).unwrap())
            .fit(&mut mlp.clone(), &mut MeanSquaredError, &data, None, &mut Sgd::new(), &mut [])
            .unwrap_err();
        assert!(matches!(error, Error::Diverged { epoch: 0, step: 0, loss: f64::INFINITY }), "{error}");
    }
    Trainer::new(1, 1)
        .unwrap()
        .with_learning_rate(LearningRate::constant(1e-30).unwrap())
        .fit(&mut mlp, &mut MeanSquaredError, &data, None, &mut Sgd::new(), &mut [])
        .unwrap();
}

/// Stops after this epoch.
struct Until(usize);

impl Callback<f64> for Until {
    fn on_step(&mut self, _: &mut Mlp<f64>, step: &Step) -> Result<ControlFlow<()>> {
        assert_eq!(step.steps, usize::MAX);
        Ok(ControlFlow::Continue(()))
    }

    fn on_epoch(&mut self, _: &mut Mlp<f64>, epoch: &Epoch) -> Result<ControlFlow<()>> {
        Ok(if epoch.epoch == self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

#[test]
fn any_number_of_epochs_may_be_asked_for() {
    for epochs in [usize::MAX, usize::MAX / 2] {
        let trainer = Trainer::new(epochs, 2).unwrap();
        let callbacks: &mut [&mut dyn Callback<f64>] = &mut [&mut Until(1)];
        let history = trainer
            .fit(&mut network(1), &mut CrossEntropy, &rays(30), None, &mut Adam::new(), callbacks)
            .unwrap();
        assert_eq!((history.epochs.len(), history.stop), (2, Stop::Callback));
    }
}

/// Makes the network predict these, one per epoch.
struct Predict(&'static [f64]);

impl Callback<f64> for Predict {
    fn on_step(&mut self, mlp: &mut Mlp<f64>, step: &Step) -> Result<ControlFlow<()>> {
        let y = self.0.get(step.epoch).copied().unwrap_or(0.0);
        for linear in mlp.linears_mut() {
            linear.set_weight(array![[y], [y]])?;
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[test]
fn an_epoch_whose_validation_is_nan_is_never_the_best() {
    // Both logits overflow, and the difference of two infinities is NaN.
    let start = Linear::new(array![[1.0], [1.0]], None).unwrap();
    let start = Mlp::from_layers(1, vec![Layer::Linear(start)]).unwrap();
    let train = Dataset::classification(array![[0.0], [0.0]], vec![0, 1]).unwrap();
    let test = Dataset::classification(array![[1e10], [1e10]], vec![0, 1]).unwrap();
    for watch in [Watch::Loss, Watch::Accuracy] {
        let fit = |patience, losses: &'static [f64]| {
            let mut mlp = start.clone();
            let trainer =
                Trainer::new(6, 2).unwrap().with_early_stopping(EarlyStopping::new(watch, patience));
            let mut predict = Predict(losses);
            let callbacks: &mut [&mut dyn Callback<f64>] = &mut [&mut predict];
            let history = trainer
                .fit(&mut mlp, &mut CrossEntropy, &train, Some(&test), &mut Sgd::new(), callbacks)
                .unwrap();
            let weight = mlp.linears().next().unwrap().weight()[[0, 0]];
            (history.best_epoch, history.epochs.len(), history.stop, weight, history)
        };
        let (best, epochs, stop, weight, history) = fit(5, &[1e300, 0.0]);
        assert!(history.epochs[0].validation.unwrap().loss.is_nan());
        assert_eq!((best, epochs, stop, weight), (Some(1), 6, Stop::Finished, 0.0), "{watch:?}");
        let (best, epochs, stop, weight, _) = fit(1, &[1e300, 1e301, 1e302, 0.0]);
        assert_eq!((best, epochs, stop, weight), (None, 2, Stop::NoImprovement, 1e301), "{watch:?}");
    }
}

/// Remembers the network of every epoch, and spoils it after the third.
struct Spoil(Vec<Mlp<f64>>);

impl Callback<f64> for Spoil {
    fn on_step(&mut self, mlp: &mut Mlp<f64>, step: &Step) -> Result<ControlFlow<()>> {
        if step.epoch > 2 {
            for linear in mlp.linears_mut() {
                let zeros = Array2::zeros(linear.weight().raw_dim());
                linear.set_weight(zeros)?;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn on_epoch(&mut self, mlp: &mut Mlp<f64>, _: &Epoch) -> Result<ControlFlow<()>> {
        self.0.push(mlp.clone());
        Ok(ControlFlow::Continue(()))
    }
}

#[test]
fn early_stopping_restores_the_best_weights() {
    let (train, test) = rays(90).split(0.3, 2).unwrap();
    for watch in [Watch::Loss, Watch::Accuracy] {
        let mut mlp = network(2);
        let mut spoil = Spoil(Vec::new());
        let trainer = Trainer::new(50, 16)
            .unwrap()
            .with_learning_rate(LearningRate::constant(0.02).unwrap())
            .with_early_stopping(EarlyStopping::new(watch, 4));
        let history = trainer
            .fit(&mut mlp, &mut CrossEntropy, &train, Some(&test), &mut Adam::new(), &mut [&mut spoil])
            .unwrap();
        let best = history.best_epoch.unwrap();
        assert_eq!(history.stop, Stop::NoImprovement);
        assert_eq!(history.epochs.len(), best + 6);
        assert_eq!(mlp, spoil.0[best]);
        let score = |epoch: &Epoch| epoch.validation.unwrap().loss;
        if watch == Watch::Loss {
            assert!(history.epochs.iter().all(|epoch| score(epoch) >= score(&history.epochs[best])));
        }
    }
}

#[test]
fn early_stopping_restores_compressed_weights_only_where_it_looks_away_before() {
    let (train, test) = rays(90).split(0.3, 2).unwrap();
    let rate = |rate| LearningRate::constant(rate).unwrap();
    let mut learnt = Mlp::builder(2).linear(12).tanh().linear(3).build::<f64>(&mut rng(2)).unwrap();
    let trainer = Trainer::new(40, 16).unwrap().with_learning_rate(rate(0.02));
    trainer.fit(&mut learnt, &mut CrossEntropy, &train, None, &mut Adam::new(), &mut []).unwrap();
    // Nothing moves the weights but the quantizer: three values, from the fifth epoch on.
    let trainer = Trainer::new(8, 16).unwrap().with_learning_rate(rate(0.0));
    let begin = 4 * trainer.steps_per_epoch(&train);
    let most_values = |stopping| {
        let quantizer = UniformQuantizer::new(Scheme::symmetric(2).unwrap());
        let mut aware = StraightThrough::new(quantizer, &[(begin as u64, 1.0)]).unwrap();
        let mut mlp = learnt.clone();
        let trainer = trainer.clone().with_early_stopping(stopping);
        let callbacks: &mut [&mut dyn Callback<f64>] = &mut [&mut aware];
        let history = trainer
            .fit(&mut mlp, &mut CrossEntropy, &train, Some(&test), &mut Adam::new(), callbacks)
            .unwrap();
        let values = |weight: ArrayView2<'_, f64>| {
            let mut values: Vec<_> = weight.iter().map(|w| w.to_bits()).collect();
            values.sort_unstable();
            values.dedup();
            values.len()
        };
        (history.best_epoch.unwrap(), mlp.linears().map(|linear| values(linear.weight())).max().unwrap())
    };
    let (best, values) = most_values(EarlyStopping::new(Watch::Loss, 10));
    assert!(best == 0 && values > 3, "{best} {values}");
    let (best, values) = most_values(EarlyStopping::new(Watch::Loss, 10).after(4));
    assert!(best == 4 && values <= 3, "{best} {values}");
}

#[test]
fn early_stopping_looks_away_while_it_is_told_to() {
    let (train, test) = rays(90).split(0.3, 2).unwrap();
    let mut mlp = network(2);
    let trainer =
        Trainer::new(8, 16).unwrap().with_early_stopping(EarlyStopping::new(Watch::Loss, 0).after(6));
    let history =
        trainer.fit(&mut mlp, &mut CrossEntropy, &train, Some(&test), &mut Adam::new(), &mut []).unwrap();
    assert!(history.best_epoch.unwrap() >= 6);
    let alone = trainer.fit(&mut mlp, &mut CrossEntropy, &train, None, &mut Adam::new(), &mut []);
    assert!(matches!(alone, Err(Error::Unsupported { what: "early stopping", .. })));
}

/// Prunes after a number of steps, and stops after another.
struct PruneThenStop {
    prune: usize,
    stop: usize,
    seen: usize,
}

impl Callback<f64> for PruneThenStop {
    fn on_step(&mut self, mlp: &mut Mlp<f64>, step: &Step) -> Result<ControlFlow<()>> {
        assert_eq!(step.step, self.seen);
        self.seen += 1;
        if step.step == self.prune {
            let masks = mlp.linears().map(|linear| Mask::new(linear.weight().mapv(|w| w > 0.0))).collect();
            mlp.apply_masks(masks)?;
        }
        Ok(if step.step == self.stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

#[test]
fn a_callback_can_prune_and_stop() {
    let mut mlp = network(2);
    let mut callback = PruneThenStop { prune: 3, stop: 20, seen: 0 };
    let trainer = Trainer::new(50, 8).unwrap();
    let history = trainer
        .fit(&mut mlp, &mut CrossEntropy, &rays(60), None, &mut Adam::new(), &mut [&mut callback])
        .unwrap();
    assert_eq!((history.stop, callback.seen, history.epochs.len()), (Stop::Callback, 21, 3));
    for linear in mlp.linears() {
        let keep = linear.mask().unwrap().keep();
        assert!(keep.iter().any(|&keep| !keep));
        assert!(linear.weight().iter().zip(keep).all(|(&w, &keep)| keep || w == 0.0));
    }
}

#[test]
fn penalties_make_weights_smaller_and_are_reported() {
    let data = rays(60);
    let train = |penalty: Option<Penalty>| {
        let mut mlp = network(4);
        let trainer = Trainer::new(30, 16).unwrap().with_learning_rate(LearningRate::constant(0.02).unwrap());
        let trainer = penalty.into_iter().fold(trainer, Trainer::with_penalty);
        let history =
            trainer.fit(&mut mlp, &mut CrossEntropy, &data, None, &mut Adam::new(), &mut []).unwrap();
        let sum: f64 = mlp.linears().map(|linear| linear.weight().mapv(f64::abs).sum()).sum();
        (sum, history.epochs.last().unwrap().penalty)
    };
    let (free, nothing) = train(None);
    let (priced, price) = train(Some(Penalty::l1(0.01).unwrap()));
    assert!(priced < 0.7 * free, "{priced} {free}");
    assert_eq!(nothing.to_bits(), 0, "not -0");
    assert_relative_eq!(price, 0.01 * priced, max_relative = 1e-12);
}

#[test]
fn a_clipped_gradient_moves_no_further_than_its_norm() {
    let data = Dataset::regression(array![[100.0], [200.0]], array![[1e6], [-1e6]]).unwrap();
    let mut mlp = Mlp::builder(1).linear(1).build::<f64>(&mut rng(1)).unwrap();
    let before = mlp.clone();
    let trainer = Trainer::new(1, 2).unwrap().with_learning_rate(LearningRate::constant(1.0).unwrap());
    let trainer = trainer.with_clip_norm(0.25).unwrap();
    trainer.fit(&mut mlp, &mut MeanSquaredError, &data, None, &mut Sgd::new(), &mut []).unwrap();
    let moved: f64 = before
        .linears()
        .zip(mlp.linears())
        .map(|(a, b)| {
            let bias = &b.bias().unwrap() - &a.bias().unwrap();
            (&b.weight() - &a.weight()).mapv(|d| d * d).sum() + bias.mapv(|d| d * d).sum()
        })
        .sum();
    assert_relative_eq!(moved.sqrt(), 0.25, max_relative = 1e-9);
    assert!(Trainer::new(1, 1).unwrap().with_clip_norm(0.0).is_err());
    assert!(Trainer::new(1, 1).unwrap().with_clip_norm(f64::NAN).is_err());
    assert!(Trainer::new(1, 0).is_err());
}

#[test]
fn gradients_whose_squares_overflow_are_clipped_like_others() {
    let linear =
        |w: f64| Mlp::from_layers(1, vec![Layer::Linear(Linear::new(array![[w]], None).unwrap())]).unwrap();
    for row in [1e30, 1e90, 1e150] {
        let data = Dataset::regression(array![[row]], array![[0.0]]).unwrap();
        let mut mlp = linear(1.0);
        let trainer = Trainer::new(1, 1).unwrap().with_clip_norm(1.0).unwrap();
        trainer
            .with_learning_rate(LearningRate::constant(0.1).unwrap())
            .fit(&mut mlp, &mut MeanSquaredError, &data, None, &mut Sgd::new(), &mut [])
            .unwrap();
        assert_relative_eq!(mlp.linears().next().unwrap().weight()[[0, 0]], 0.9, max_relative = 1e-12);
    }
    let grads = |dweight| Grads::new(vec![LayerGrads::Linear(LinearGrads { dweight, dbias: None })]);
    assert_relative_eq!(grads(array![[3e200, -4e200]]).norm(), 5e200, max_relative = 1e-15);
    assert_eq!(grads(array![[1.0, f64::INFINITY]]).norm(), f64::INFINITY);
    assert!(grads(array![[1.0, f64::NAN]]).norm().is_nan());
}

#[test]
fn the_learning_rate_follows_its_schedule_within_the_epoch() {
    struct Rates(Vec<f64>);
    impl Callback<f64> for Rates {
        fn on_step(&mut self, _: &mut Mlp<f64>, step: &Step) -> Result<ControlFlow<()>> {
            self.0.push(step.learning_rate);
            Ok(ControlFlow::Continue(()))
        }
    }
    let mut rates = Rates(Vec::new());
    let trainer = Trainer::new(2, 2)
        .unwrap()
        .with_learning_rate(LearningRate::constant(1.0).unwrap().with_warm_up(1.0, 0.0).unwrap());
    trainer
        .fit(&mut network(1), &mut CrossEntropy, &rays(8), None, &mut Adam::new(), &mut [&mut rates])
        .unwrap();
    assert_eq!(rates.0, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn no_epochs_change_nothing() {
    let mut mlp = network(1);
    let history = Trainer::new(0, 4)
        .unwrap()
        .fit(&mut mlp, &mut CrossEntropy, &rays(9), None, &mut Adam::new(), &mut [])
        .unwrap();
    assert_eq!(mlp, network(1));
    assert_eq!(history.loss(), None);
}

#[test]
fn refuses_data_that_does_not_fit_the_network() {
    let trainer = Trainer::new(1, 4).unwrap();
    let fit = |data: Dataset<f64>, objective: &mut dyn trimnet::nn::Objective<f64>| {
        trainer.fit(&mut network(1), objective, &data, None, &mut Adam::new(), &mut []).unwrap_err()
    };
    let wide = Dataset::classification(Array2::zeros((4, 3)), vec![0; 4]).unwrap();
    assert!(matches!(fit(wide, &mut CrossEntropy), Error::Shape { .. }));
    let labels = Dataset::classification(Array2::zeros((4, 2)), vec![0, 1, 3, 0]).unwrap();
    assert!(matches!(fit(labels, &mut CrossEntropy), Error::Label { row: 2, label: 3, classes: 3 }));
    let values = Dataset::regression(Array2::zeros((4, 2)), Array2::zeros((4, 2))).unwrap();
    assert!(matches!(fit(values.clone(), &mut CrossEntropy), Error::Unsupported { .. }));
    assert!(matches!(fit(values, &mut MeanSquaredError), Error::Shape { .. }));
    assert!(matches!(fit(rays(4), &mut MeanSquaredError), Error::Unsupported { .. }));
}

#[test]
fn a_validation_part_that_does_not_fit_is_refused_before_anything_changes() {
    let trainer = Trainer::new(1, 4).unwrap();
    let mut mlp = network(1);
    let mut fit = |validation: Dataset<f64>| {
        let (train, before, adam) = (rays(12), mlp.clone(), &mut Adam::new());
        let error = trainer.fit(&mut mlp, &mut CrossEntropy, &train, Some(&validation), adam, &mut []);
        assert_eq!(mlp, before);
        error.unwrap_err()
    };
    let wide = Dataset::classification(Array2::zeros((4, 3)), vec![0; 4]).unwrap();
    assert_eq!(fit(wide).to_string(), "validation inputs has shape [4, 3], expected [4, 2]");
    let labels = Dataset::classification(Array2::zeros((4, 2)), vec![0, 1, 3, 0]).unwrap();
    assert!(matches!(fit(labels), Error::Label { row: 2, label: 3, classes: 3 }));
    let values = Dataset::regression(Array2::zeros((4, 2)), Array2::zeros((4, 2))).unwrap();
    assert!(matches!(fit(values), Error::Shape { what: "target values", .. }));
}

#[test]
fn evaluates_in_chunks_as_if_at_once() {
    let (mlp, data) = (network(5), rays(2500));
    let whole = evaluate(&mlp, &data).unwrap();
    let logits = mlp.predict(data.inputs()).unwrap();
    let labels = data.labels().unwrap();
    assert_relative_eq!(whole.loss, cross_entropy(logits.view(), labels).unwrap().0, max_relative = 1e-12);
    assert_eq!(whole.accuracy, Some(trimnet::nn::metrics::accuracy(logits.view(), labels).unwrap()));
}

#[cfg(feature = "serde")]
#[test]
fn stored_settings_and_histories_come_back() {
    let trainer = Trainer::new(2, 8)
        .unwrap()
        .with_penalty(Penalty::l1(0.5).unwrap())
        .with_early_stopping(EarlyStopping::new(Watch::Loss, 3));
    let text = serde_json::to_string(&trainer).unwrap();
    assert_eq!(serde_json::from_str::<Trainer>(&text).unwrap(), trainer);
    assert!(serde_json::from_str::<Trainer>(&text.replace("\"batch\":8", "\"batch\":0")).is_err());

    let data = rays(20);
    let history = trainer
        .fit(&mut network(1), &mut CrossEntropy, &data, Some(&data), &mut Adam::new(), &mut [])
        .unwrap();
    let text = serde_json::to_string(&history).unwrap();
    assert_eq!(serde_json::from_str::<trimnet::nn::History>(&text).unwrap(), history);
    let mut wild = history;
    wild.epochs[0].validation.as_mut().unwrap().loss = f64::INFINITY;
    wild.epochs[1].loss = f64::INFINITY;
    let text = serde_json::to_string(&wild).unwrap();
    assert_eq!(serde_json::from_str::<trimnet::nn::History>(&text).unwrap(), wild);
    let data = Dataset::classification(array![[1.0, 0.5], [-2.0, 0.25]], vec![1, 0]).unwrap();
    let text = serde_json::to_string(&data).unwrap();
    assert_eq!(serde_json::from_str::<Dataset<f64>>(&text).unwrap(), data);
    assert!(serde_json::from_str::<Dataset<f64>>(&text.replace("[2,2]", "[1,4]")).is_err());
}
