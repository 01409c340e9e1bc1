//! `engine.int8|f32|f64.WIDTHS.bBATCH`: logits of a network of linear layers and relus, for one batch of images.

use std::hint::black_box;

use trimnet::engine::{Config, Element, Engine, Format};
use trimnet::kernel::Pool;
use trimnet::ndarray::{Array1, Array2};
use trimnet::nn::{Activation, Layer, Linear, Mlp};

use super::case::{Call, Case, Context};
use super::{check, data};

const NETWORKS: [&[usize]; 3] = [&[784, 300, 100, 10], &[784, 1200, 1200, 10], &[1024, 4096, 4096, 1024]];
const BATCHES: [usize; 3] = [1, 32, 1024];

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (number, networks) in [("int8", &NETWORKS[..]), ("f32", &NETWORKS), ("f64", &NETWORKS[..1])] {
        for &widths in networks {
            for batch in BATCHES {
                let name = widths.iter().map(usize::to_string).collect::<Vec<_>>().join("-");
                let case =
                    Case::new(format!("engine.{number}.{name}.b{batch}"), move |context| match number {
                        "int8" => prepare::<f32>(context, widths, batch, Format::Int8, 0.05),
                        "f32" => prepare::<f32>(context, widths, batch, Format::Dense, 1e-5),
                        _ => prepare::<f64>(context, widths, batch, Format::Dense, 1e-5),
                    });
                cases.push(if widths.len() == 4 && widths[1] == 300 && batch <= 32 {
                    case.smoke()
                } else {
                    case
                });
            }
        }
    }
    cases
}

fn network<F: Element>(widths: &[usize]) -> Result<Mlp<F>, String> {
    let wide = |x: Vec<f32>| x.into_iter().map(|x| F::of(f64::from(x))).collect::<Vec<_>>();
    let mut layers = Vec::new();
    for (k, pair) in widths.windows(2).enumerate() {
        let [inputs, outputs] = [pair[0], pair[1]];
        let weight = data::normal(inputs * outputs, 100 + k as u64, (2.0 / inputs as f64).sqrt());
        let weight = Array2::from_shape_vec((outputs, inputs), wide(weight)).map_err(|e| e.to_string())?;
        let bias = Array1::from_vec(wide(data::normal(outputs, 200 + k as u64, 0.01)));
        layers.push(Layer::Linear(Linear::new(weight, Some(bias)).map_err(|e| e.to_string())?));
        if k + 2 < widths.len() {
            layers.push(Layer::Activation(Activation::Relu));
        }
    }
    Mlp::from_layers(widths[0], layers).map_err(|e| e.to_string())
}

fn images<F: Element>(rows: usize, inputs: usize, seed: u64) -> Result<Array2<F>, String> {
    let x = data::uniform(rows * inputs, seed).into_iter().map(|x| F::of(f64::from(x))).collect();
    Array2::from_shape_vec((rows, inputs), x).map_err(|e| e.to_string())
}

fn prepare<F: Element>(
    context: &Context,
    widths: &[usize],
    batch: usize,
    format: Format,
    tolerance: f64,
) -> Result<Call, String> {
    let mlp = network::<F>(widths)?;
    let calibration = images::<F>(256, widths[0], 2)?;
    let pool = if context.threads == 1 { Pool::single() } else { Pool::new(context.threads) };
    let config = Config::new(format).with_calibration(calibration.view()).with_pool(pool);
    let engine = Engine::build(&mlp, &config).map_err(|e| e.to_string())?;
    let x = images::<F>(batch, widths[0], 1)?;
    let mut out = Array2::<F>::zeros((batch, engine.outputs()));
    let mut workspace = engine.workspace(batch);
    engine.predict_into(x.view(), out.view_mut(), &mut workspace).map_err(|e| e.to_string())?;
    let expected = mlp.predict(x.view()).map_err(|e| e.to_string())?;
    let numbers = |x: &Array2<F>| x.iter().map(|x| x.as_f64()).collect::<Vec<_>>();
    check::close("logits", &numbers(&out), &numbers(&expected), tolerance)?;
    Ok(Box::new(move || {
        let done = engine.predict_into(x.view(), out.view_mut(), &mut workspace);
        black_box((&out, done.is_ok()));
    }))
}
