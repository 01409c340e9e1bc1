//! What PyTorch 2.15 computes, in f64 unless said; `tests/data/golden.py` made the numbers.

use approx::assert_relative_eq;
use ndarray::{Array1, Array2, ArrayView2, Axis, Ix2};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use serde_json::Value;
use trimnet::distill::KdLoss;
use trimnet::nn::loss::{cross_entropy, mse};
use trimnet::nn::{
    Activation, Adam, AdamW, Decay, Grads, Layer, LayerGrads, Linear, LinearGrads, Mlp, Momentum, Optimizer,
    Sgd,
};
use trimnet::normalize::{BatchNorm, LayerNorm};
use trimnet::prune::{MagnitudePruner, Norm, Pruner, Selection, StructuredPruner};
use trimnet::quantize::{
    MinMaxObserver, MovingAverageObserver, Observer, QuantParams, ScaleRule, Scheme, UniformQuantizer,
    ZeroRange, fake_quantize,
};
use trimnet::{Compressor, Mask, Normalizer};

fn golden(topic: &str) -> Value {
    let path = format!("{}/tests/data/golden_{topic}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn vector(value: &Value) -> Array1<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn matrix(value: &Value) -> Array2<f64> {
    let rows: Vec<_> = value.as_array().unwrap().iter().map(vector).collect();
    Array2::from_shape_fn((rows.len(), rows[0].len()), |(i, j)| rows[i][j])
}

fn labels(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
}

#[test]
fn batch_norm_forward_backward_and_running_statistics() {
    let g = golden("batch_norm");
    let gamma = vector(&g["gamma"]);
    let features = gamma.len();
    let mut norm = BatchNorm::from_parts(
        gamma,
        vector(&g["beta"]),
        Array1::zeros(features),
        Array1::ones(features),
        1e-5,
    )
    .unwrap();
    for step in g["steps"].as_array().unwrap() {
        let (y, cache) = norm.normalize_batch(matrix(&step["x"])).unwrap();
        assert_relative_eq!(y, matrix(&step["y"]), max_relative = 1e-10, epsilon = 1e-12);
        let (dx, grads) = norm.backward(cache, matrix(&step["dy"]));
        assert_relative_eq!(dx, matrix(&step["dx"]), max_relative = 1e-8, epsilon = 1e-9);
        assert_relative_eq!(grads.dgamma, vector(&step["dgamma"]), max_relative = 1e-10, epsilon = 1e-12);
        assert_relative_eq!(grads.dbeta, vector(&step["dbeta"]), max_relative = 1e-10, epsilon = 1e-12);
        assert_relative_eq!(norm.running_mean(), vector(&step["running_mean"]).view(), max_relative = 1e-12);
        assert_relative_eq!(norm.running_var(), vector(&step["running_var"]).view(), max_relative = 1e-12);
    }
    let y = norm.normalize(matrix(&g["infer"]["x"])).unwrap();
    assert_relative_eq!(y, matrix(&g["infer"]["y"]), max_relative = 1e-12, epsilon = 1e-13);
}

#[test]
fn layer_norm_forward_and_backward() {
    let g = golden("layer_norm");
    let mut norm = LayerNorm::from_parts(vector(&g["gamma"]), vector(&g["beta"]), 1e-5).unwrap();
    let (y, cache) = norm.normalize_batch(matrix(&g["x"])).unwrap();
    assert_relative_eq!(y, matrix(&g["y"]), max_relative = 1e-12, epsilon = 1e-13);
    let (dx, grads) = norm.backward(cache, matrix(&g["dy"]));
    assert_relative_eq!(dx, matrix(&g["dx"]), max_relative = 1e-10, epsilon = 1e-12);
    assert_relative_eq!(grads.dgamma, vector(&g["dgamma"]), max_relative = 1e-12, epsilon = 1e-13);
    assert_relative_eq!(grads.dbeta, vector(&g["dbeta"]), max_relative = 1e-12, epsilon = 1e-13);
}

#[test]
fn ten_steps_of_every_optimizer() {
    let g = golden("optimizers");
    let adam = |lambda| Adam::<f64>::new().with_decay(Decay::Coupled(lambda)).unwrap();
    let sgd = |momentum, lambda| {
        Sgd::<f64>::new().with_momentum(momentum).unwrap().with_decay(Decay::Coupled(lambda)).unwrap()
    };
    let adamw = AdamW::<f64>::new(0.1).unwrap().with_betas(0.8, 0.95).unwrap().with_eps(1e-6).unwrap();
    let optimizers: Vec<(&str, f64, Box<dyn Optimizer<f64>>)> = vec![
        ("sgd", 0.1, Box::new(sgd(Momentum::None, 0.0))),
        ("sgd_momentum", 0.1, Box::new(sgd(Momentum::Heavy(0.9), 0.0))),
        ("sgd_momentum_decay", 0.1, Box::new(sgd(Momentum::Heavy(0.9), 0.01))),
        ("sgd_nesterov", 0.1, Box::new(sgd(Momentum::Nesterov(0.9), 0.0))),
        ("sgd_nesterov_decay", 0.1, Box::new(sgd(Momentum::Nesterov(0.9), 0.01))),
        ("adam", 0.01, Box::new(adam(0.0))),
        ("adam_l2", 0.01, Box::new(adam(0.1))),
        ("adamw", 0.01, Box::new(adamw)),
    ];
    assert_eq!(g["traces"].as_object().unwrap().len(), optimizers.len());
    for (name, rate, mut optimizer) in optimizers {
        let linear = Linear::new(matrix(&g["weight"]), Some(vector(&g["bias"]))).unwrap();
        let mut mlp = Mlp::from_layers(4, vec![Layer::Linear(linear)]).unwrap();
        for (i, expected) in g["traces"][name].as_array().unwrap().iter().enumerate() {
            let grads =
                LinearGrads { dweight: matrix(&g["dweight"][i]), dbias: Some(vector(&g["dbias"][i])) };
            optimizer.step(&mut mlp, &Grads::new(vec![LayerGrads::Linear(grads)]), rate).unwrap();
            let linear = mlp.linears().next().unwrap();
            assert_relative_eq!(
                linear.weight(),
                matrix(&expected["weight"]).view(),
                max_relative = 1e-9,
                epsilon = 1e-11
            );
            assert_relative_eq!(
                linear.bias().unwrap(),
                vector(&expected["bias"]).view(),
                max_relative = 1e-9,
                epsilon = 1e-11
            );
        }
    }
}

#[test]
fn losses_and_their_gradients() {
    let g = golden("distillation");
    let (student, teacher, labels) = (matrix(&g["student"]), matrix(&g["teacher"]), labels(&g["labels"]));
    for case in g["cases"].as_array().unwrap() {
        let loss =
            KdLoss::new(case["temperature"].as_f64().unwrap(), case["alpha"].as_f64().unwrap()).unwrap();
        let terms = loss.evaluate(student.view(), teacher.view(), &labels).unwrap();
        assert_relative_eq!(terms.loss, case["loss"].as_f64().unwrap(), max_relative = 1e-10);
        assert_relative_eq!(terms.dlogits, matrix(&case["dlogits"]), max_relative = 1e-9, epsilon = 1e-11);
    }
    let (loss, dlogits) = cross_entropy(student.view(), &labels).unwrap();
    assert_relative_eq!(loss, g["cross_entropy"]["loss"].as_f64().unwrap(), max_relative = 1e-12);
    assert_relative_eq!(
        dlogits,
        matrix(&g["cross_entropy"]["dlogits"]),
        max_relative = 1e-11,
        epsilon = 1e-13
    );
    let (loss, doutputs) = mse(student.view(), teacher.view()).unwrap();
    assert_relative_eq!(loss, g["mse"]["loss"].as_f64().unwrap(), max_relative = 1e-12);
    assert_relative_eq!(doutputs, matrix(&g["mse"]["doutputs"]), max_relative = 1e-12);
}

#[test]
fn activations_and_their_derivatives() {
    let g = golden("activations");
    let x = vector(&g["x"]);
    let functions = [
        ("relu", Activation::Relu),
        ("leaky_relu", Activation::LeakyRelu(0.2)),
        ("elu", Activation::Elu(1.0)),
        ("tanh", Activation::Tanh),
        ("sigmoid", Activation::Sigmoid),
        ("gelu", Activation::Gelu),
        ("gelu_tanh", Activation::GeluTanh),
        ("relu6", Activation::Clip { min: 0.0, max: 6.0 }),
        ("hardtanh", Activation::Clip { min: -0.25, max: 1.5 }),
    ];
    assert_eq!(g["functions"].as_object().unwrap().len(), functions.len());
    for (name, activation) in functions {
        let (y, cache) = activation.forward(x.clone().insert_axis(ndarray::Axis(0)));
        let dx = activation.backward(cache, Array2::ones(y.raw_dim())).unwrap();
        let expected = &g["functions"][name];
        assert_relative_eq!(y.row(0), vector(&expected["y"]).view(), max_relative = 1e-11, epsilon = 1e-13);
        assert_relative_eq!(dx.row(0), vector(&expected["dx"]).view(), max_relative = 1e-10, epsilon = 1e-12);
    }
}

/// `nn.Sequential(Linear(6, 8), BatchNorm1d(8), ReLU(), Linear(8, 5), GELU(), Linear(5, 3))` from its state dict.
fn sequential(state: &Value) -> Mlp<f64> {
    let linear = |i| {
        let (weight, bias) = (&state[format!("{i}.weight")], &state[format!("{i}.bias")]);
        Layer::Linear(Linear::new(matrix(weight), Some(vector(bias))).unwrap())
    };
    let norm = BatchNorm::from_parts(
        vector(&state["1.weight"]),
        vector(&state["1.bias"]),
        vector(&state["1.running_mean"]),
        vector(&state["1.running_var"]),
        1e-5,
    );
    let layers = vec![
        linear(0),
        Layer::BatchNorm(norm.unwrap()),
        Layer::Activation(Activation::Relu),
        linear(3),
        Layer::Activation(Activation::Gelu),
        linear(5),
    ];
    Mlp::from_layers(6, layers).unwrap()
}

#[test]
fn ten_steps_of_a_whole_network() {
    let g = golden("mlp");
    let mut mlp = sequential(&g["start"]);
    let mut adam = Adam::new();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(0); // nothing in this network draws from it
    for (i, expected) in vector(&g["losses"]).into_iter().enumerate() {
        let (logits, cache) = mlp.forward(matrix(&g["x"][i]).view(), &mut rng).unwrap();
        let (loss, dlogits) = cross_entropy(logits.view(), &labels(&g["labels"][i])).unwrap();
        assert_relative_eq!(loss, expected, max_relative = 1e-8);
        let (_, grads) = mlp.backward(cache, dlogits).unwrap();
        adam.step(&mut mlp, &grads, 0.02).unwrap();
    }
    let close = |a: ArrayView2<'_, f64>, b: Array2<f64>| {
        assert_relative_eq!(a, b.view(), max_relative = 1e-6, epsilon = 1e-8)
    };
    for (linear, i) in mlp.linears().zip([0, 3, 5]) {
        close(linear.weight(), matrix(&g["end"][format!("{i}.weight")]));
    }
    let logits = mlp.predict(matrix(&g["probe"]["x"]).view()).unwrap();
    close(logits.view(), matrix(&g["probe"]["logits"]));
}

fn mask(value: &Value) -> Mask<Ix2> {
    Mask::new(matrix(value).mapv(|keep| keep != 0.0))
}

#[test]
fn masks_of_magnitude_rows_columns_and_a_global_ranking() {
    let g = golden("prune");
    let weight = matrix(&g["weight"]);
    for case in g["unstructured"].as_array().unwrap() {
        let pruner = MagnitudePruner::sparsity(case["sparsity"].as_f64().unwrap()).unwrap();
        assert_eq!(pruner.mask(weight.view(), None).unwrap().0, mask(&case["mask"]));
    }
    for case in g["structured"].as_array().unwrap() {
        let selection = Selection::sparsity(case["sparsity"].as_f64().unwrap()).unwrap();
        let norm = if case["norm"] == 1 { Norm::L1 } else { Norm::L2 };
        let pruner = StructuredPruner::slices(Axis(case["axis"].as_u64().unwrap() as usize), selection)
            .with_norm(norm);
        assert_eq!(pruner.mask(weight.view(), None).unwrap().0, mask(&case["mask"]));
    }
    // PyTorch's second half is half of what is left; here that is a choice by name.
    let first = MagnitudePruner::sparsity(0.5).unwrap().mask(weight.view(), None).unwrap().0;
    let again = MagnitudePruner::new(Selection::sparsity(0.5).unwrap().of_remaining());
    assert_eq!(again.mask(weight.view(), Some(&first)).unwrap().0, mask(&g["repeated"]));

    let (w, v) = (matrix(&g["global"]["weights"][0]), matrix(&g["global"]["weights"][1]));
    let pruner = MagnitudePruner::sparsity(g["global"]["sparsity"].as_f64().unwrap()).unwrap();
    let pruned = pruner.mask_global(&[w.view(), v.view()], None, 0).unwrap();
    let masks: Vec<_> = pruned.into_iter().map(|(mask, _)| mask).collect();
    assert_eq!(masks, [mask(&g["global"]["masks"][0]), mask(&g["global"]["masks"][1])]);
}

fn floats(value: &Value) -> Array1<f32> {
    vector(value).mapv(|x| x as f32)
}

#[test]
fn fake_quantization_and_its_gradient_to_the_bit() {
    let g = golden("fake_quantize");
    let (x, dy) = (floats(&g["x"]), floats(&g["dy"]));
    for case in g["cases"].as_array().unwrap() {
        let integer = |name: &str| case[name].as_i64().unwrap();
        let bits = (integer("qmax") - integer("qmin") + 1).ilog2() as u8;
        let scheme = Scheme::torch_affine(bits, integer("qmin") < 0).unwrap();
        let scale = case["scale"].as_f64().unwrap() as f32;
        let params = QuantParams { scale, zero_point: integer("zero_point") as i32 };
        let (y, pass) = fake_quantize(&scheme, params, x.clone()).unwrap();
        assert_eq!(y, floats(&case["y"]));
        assert_eq!(pass.backward(dy.clone()).unwrap(), floats(&case["dx"]));
    }
}

#[test]
fn observers_scales_and_zero_points_to_the_bit() {
    let g = golden("observers");
    let batches: Vec<Array2<f32>> =
        g["batches"].as_array().unwrap().iter().map(|b| matrix(b).mapv(|x| x as f32)).collect();
    let observed = |observer: &mut dyn Observer<f32>| {
        batches.iter().for_each(|batch| observer.observe(batch.as_slice().unwrap()));
        observer.range().unwrap()
    };
    for case in g["per_tensor"].as_array().unwrap() {
        let range = match case["observer"].as_str().unwrap() {
            "MinMaxObserver" => observed(&mut MinMaxObserver::default()),
            _ => observed(&mut MovingAverageObserver::new(0.01).unwrap()),
        };
        assert_eq!((range.min(), range.max()), (single(&case["min"]), single(&case["max"])));
        let name = case["scheme"].as_str().unwrap();
        let mut scheme = Scheme::torch_affine(8, name.ends_with("i8")).unwrap();
        if name.starts_with("symmetric") {
            scheme = scheme.with_rule(ScaleRule::Symmetric).unwrap();
        }
        let params = scheme.params(range);
        assert_eq!(params.scale, single(&case["scale"]), "{name}");
        assert_eq!(i64::from(params.zero_point), case["zero_point"].as_i64().unwrap(), "{name}");
    }
    let scheme = Scheme::int8_symmetric_128().with_zero_range(ZeroRange::TorchEps).per_channel(0);
    let quantized = UniformQuantizer::new(scheme).compress(batches[0].view()).unwrap();
    assert_eq!(quantized.scales(), floats(&g["per_channel_symmetric_i8"]["scale"]).as_slice().unwrap());
}

fn single(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}
