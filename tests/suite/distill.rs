//! What distillation promises, beyond the numbers of its loss (which are tested beside it).

use approx::assert_relative_eq;
use ndarray::{Array, Array2, ArrayView2, array};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::Error;
use trimnet::distill::{Compare, Distillation, Hint, KdLoss, KdWeights, Reduction};
use trimnet::nn::{
    Adam, CrossEntropy, Dataset, LearningRate, MeanSquaredError, Mlp, Objective, Trainer, evaluate,
};

fn rng(seed: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

fn inputs(rows: usize) -> Array2<f64> {
    Array::from_shape_fn((rows, 2), |(row, column)| {
        (row as f64 * if column == 0 { 0.37 } else { 0.91 }).sin()
    })
}

/// Whether both coordinates have the same sign.
fn quadrants(rows: usize) -> Dataset<f64> {
    let inputs = inputs(rows);
    let labels = inputs.rows().into_iter().map(|x| usize::from(x[0] * x[1] > 0.0)).collect();
    Dataset::classification(inputs, labels).unwrap()
}

fn network(hidden: usize, outputs: usize, seed: u64) -> Mlp<f64> {
    Mlp::builder(2).linear(hidden).tanh().linear(outputs).build(&mut rng(seed)).unwrap()
}

fn trainer(epochs: usize) -> Trainer {
    Trainer::new(epochs, 32).unwrap().with_learning_rate(LearningRate::constant(0.02).unwrap())
}

fn teacher(data: &Dataset<f64>) -> Mlp<f64> {
    let mut teacher = network(32, 2, 1);
    trainer(200).fit(&mut teacher, &mut CrossEntropy, data, None, &mut Adam::new(), &mut []).unwrap();
    assert!(evaluate(&teacher, data).unwrap().accuracy.unwrap() > 0.97);
    teacher
}

fn soft_loss(student: &Mlp<f64>, teacher: &Mlp<f64>, x: ArrayView2<'_, f64>) -> f64 {
    let kd = KdLoss::new(2.0, 0.0).unwrap();
    kd.soft(student.predict(x).unwrap().view(), teacher.predict(x).unwrap().view()).unwrap().0
}

#[test]
fn a_student_learns_its_teacher_without_labels() {
    let data = quadrants(300);
    let teacher = teacher(&data);
    // The labels are all 0: with a weight of 0 on them, they are never looked at.
    let unlabelled = Dataset::classification(inputs(300), vec![0; 300]).unwrap();
    let mut student = network(12, 2, 2);
    let before = soft_loss(&student, &teacher, data.inputs());
    let mut objective = Distillation::live(&teacher, KdLoss::new(2.0, 0.0).unwrap()).unwrap();
    trainer(150).fit(&mut student, &mut objective, &unlabelled, None, &mut Adam::new(), &mut []).unwrap();
    assert!(soft_loss(&student, &teacher, data.inputs()) < 0.05 * before);
    assert!(evaluate(&student, &data).unwrap().accuracy.unwrap() > 0.9);
}

#[test]
fn cached_outputs_teach_the_same_as_a_live_teacher() {
    let data = quadrants(100);
    let teacher = network(16, 2, 5);
    let kd = KdLoss::new(3.0, 0.3).unwrap();
    let run = |mut objective: Distillation<'_, f64>| {
        let mut student = network(4, 2, 6);
        trainer(3).fit(&mut student, &mut objective, &data, None, &mut Adam::new(), &mut []).unwrap();
        student.predict(data.inputs()).unwrap()
    };
    let live = run(Distillation::live(&teacher, kd).unwrap());
    let cached = run(Distillation::cached(teacher.predict(data.inputs()).unwrap(), kd).unwrap());
    assert_relative_eq!(live, cached, max_relative = 1e-9, epsilon = 1e-12);
}

#[test]
fn regression_learns_the_teachers_values() {
    let x = inputs(200);
    let y = x.map_axis(ndarray::Axis(1), |x| (3.0 * x[0]).sin() * x[1]).insert_axis(ndarray::Axis(1));
    let data = Dataset::regression(x, y).unwrap();
    let mut teacher = network(32, 1, 1);
    trainer(150).fit(&mut teacher, &mut MeanSquaredError, &data, None, &mut Adam::new(), &mut []).unwrap();
    let mut student = network(12, 1, 2);
    let mut objective = Distillation::live(&teacher, KdWeights::alpha(0.2)).unwrap();
    trainer(150).fit(&mut student, &mut objective, &data, None, &mut Adam::new(), &mut []).unwrap();
    let apart = student.predict(data.inputs()).unwrap() - teacher.predict(data.inputs()).unwrap();
    assert!(apart.mapv(|d| d * d).mean().unwrap() < 0.005);
    assert!(evaluate(&student, &data).unwrap().loss < 0.01);
}

/// Central differences of the whole objective, hints and all, against the gradients of the network.
#[test]
fn the_gradient_of_a_hinted_student_matches_finite_differences() {
    let data = quadrants(7);
    let teacher = network(4, 2, 1);
    let student = network(4, 2, 2);
    let compares = [
        Compare::Logits(KdLoss::new(3.0, 0.4).unwrap()),
        Compare::Logits(KdLoss::new(3.0, 0.4).unwrap().with_reduction(Reduction::Mean)),
        Compare::Values(KdWeights { hard: 0.5, soft: 2.0 }),
    ];
    for compare in compares {
        let mut objective = Distillation::live(&teacher, compare)
            .unwrap()
            .with_hint(Hint::live(1, &teacher, 1, 0.7).unwrap());
        objective.begin(&student, &data).unwrap();
        let mut loss = |mut mlp: Mlp<f64>| {
            let mut batches = data.batches(7).unwrap();
            let batch = batches.next_batch().unwrap();
            let (outputs, cache) = mlp.forward_with_hidden(batch.inputs, &[1], &mut rng(0)).unwrap();
            let hidden = [cache.hidden(1).unwrap()];
            let evaluated = objective.evaluate(outputs.view(), &hidden, &batch).unwrap();
            let grads = mlp.gradients_with_hints(cache, evaluated.doutputs, &evaluated.dhidden).unwrap();
            (evaluated.loss, grads)
        };
        let (_, grads) = loss(student.clone());
        for (layer, dweight) in grads.dweights().enumerate() {
            for (index, &d) in dweight.indexed_iter() {
                let mut at = |shift: f64| {
                    let mut mlp = student.clone();
                    let linear = mlp.linears_mut().nth(layer).unwrap();
                    let mut weight = linear.weight().to_owned();
                    weight[index] += shift;
                    linear.set_weight(weight).unwrap();
                    loss(mlp).0
                };
                assert_relative_eq!(d, (at(1e-5) - at(-1e-5)) / 2e-5, epsilon = 1e-8);
            }
        }
    }
}

#[test]
fn a_hint_teaches_a_hidden_layer_also_of_another_width() {
    let data = quadrants(200);
    let teacher = teacher(&data);
    let cached = teacher.hidden(data.inputs(), 1).unwrap();
    for hint in [
        Hint::live(1, &teacher, 1, 1.0).unwrap().with_regressor(3),
        Hint::cached(1, cached, 1.0).unwrap().with_regressor(3),
    ] {
        let mut student = network(6, 2, 2);
        let mut objective =
            Distillation::live(&teacher, KdLoss::new(2.0, 0.0).unwrap()).unwrap().with_hint(hint);
        let history =
            trainer(60).fit(&mut student, &mut objective, &data, None, &mut Adam::new(), &mut []).unwrap();
        assert!(history.loss().unwrap() < 0.5 * history.epochs[0].loss);
    }
}

#[test]
fn refuses_a_pair_that_does_not_fit() {
    let data = quadrants(10);
    let kd = KdLoss::new(2.0, 0.5).unwrap();
    let fit = |mut objective: Distillation<'_, f64>, data: &Dataset<f64>| {
        trainer(1)
            .fit(&mut network(4, 2, 1), &mut objective, data, None, &mut Adam::new(), &mut [])
            .unwrap_err()
    };
    let three = network(4, 3, 1);
    assert!(matches!(fit(Distillation::live(&three, kd).unwrap(), &data), Error::Shape { .. }));
    let wide = Mlp::builder(3).linear(2).build::<f64>(&mut rng(1)).unwrap();
    assert!(matches!(fit(Distillation::live(&wide, kd).unwrap(), &data), Error::Shape { .. }));
    let nine = Array2::zeros((9, 2));
    assert!(matches!(fit(Distillation::cached(nine, kd).unwrap(), &data), Error::Shape { .. }));
    let mut nan = Array2::zeros((10, 2));
    nan[[4, 1]] = f64::NAN;
    assert!(matches!(fit(Distillation::cached(nan, kd).unwrap(), &data), Error::NotFinite { .. }));
    let values = Dataset::regression(inputs(10), Array2::zeros((10, 2))).unwrap();
    let teacher = network(8, 2, 1);
    assert!(matches!(fit(Distillation::live(&teacher, kd).unwrap(), &values), Error::Unsupported { .. }));
    let hint = Hint::live(1, &teacher, 1, 1.0).unwrap();
    let hinted = Distillation::live(&teacher, kd).unwrap().with_hint(hint);
    assert!(matches!(fit(hinted, &data), Error::Shape { what: "hidden layer of the teacher", .. }));
    let hint = Hint::live(9, &teacher, 1, 1.0).unwrap();
    assert!(matches!(
        fit(Distillation::live(&teacher, kd).unwrap().with_hint(hint), &data),
        Error::OutOfRange { .. }
    ));
    assert!(Hint::live(1, &teacher, 9, 1.0).is_err());
    assert!(Hint::live(1, &teacher, 1, -1.0).is_err());
    assert!(Distillation::live(&teacher, KdWeights { hard: f64::NAN, soft: 1.0 }).is_err());
    let teacher = Mlp::builder(2).linear(2).build::<f32>(&mut rng(1)).unwrap();
    assert!(Hint::live(0, &teacher, 0, 1e39).is_err());
    assert!(Distillation::live(&teacher, KdWeights { hard: 1e39, soft: 1.0 }).is_err());
    assert!(Distillation::live(&teacher, KdLoss::new(1e39, 0.5).unwrap()).is_err());
}

#[test]
fn the_mean_over_classes_is_warned_of_in_the_history() {
    let data = quadrants(10);
    let kd = KdLoss::new(2.0, 0.5).unwrap().with_reduction(Reduction::Mean);
    let outputs = array![[1.0, 0.0]].broadcast((10, 2)).unwrap().to_owned();
    let mut objective = Distillation::cached(outputs, kd).unwrap();
    let history = trainer(1)
        .fit(&mut network(4, 2, 1), &mut objective, &data, None, &mut Adam::new(), &mut [])
        .unwrap();
    assert_eq!(history.warnings.len(), 1);
    assert!(history.warnings[0].contains("2 times smaller"), "{:?}", history.warnings);
}
