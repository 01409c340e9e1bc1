//! The engine and the description of its integers, [`QuantizedMlp`], which other formats are written from and read to.
//!
//! | description | engine |
//! |---|---|
//! | codes of zero point `z`, int8 | codes of zero point `z + 128`, uint8: the same numbers |
//! | integer output | output in codes; a ReLU or clip that the limits of the codes are is not written down |
//! | real activation between two codes | a table of 256 codes |
//! | real bias behind the sums | `y * 1 + b` |
//!
//! Either way the integers stay what they are, and so do all factors: both give the same bits wherever no layer is in
//! floats. A float layer in between may differ in its last bits, as float sums in another order do.

use ndarray::{Array1, Array2};

use super::format::Format;
use super::lower::plain;
use super::network::Engine;
use super::quantized::{CodeParams, IntegerBias, QuantizedLayer, QuantizedLinear, QuantizedMlp};
use super::recipe::{Block, Linear, Output, Recipe, Sums, Weights};
use crate::error::{Error, Result};
use crate::kernel::{Isa, Pool};
use crate::nn::{self, Activation, Layer};
use crate::normalize::BatchNorm;
use crate::quantize::QuantParams;

impl Engine<f32> {
    /// The engine of a network in integers: of one that was calibrated for another runtime, or read from its file.
    ///
    /// ```
    /// use trimnet::engine::{Calibrator, Config, Engine, Format, Target};
    /// use trimnet::ndarray::Array2;
    /// use trimnet::nn::Mlp;
    /// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
    ///
    /// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    /// let mlp = Mlp::builder(4).linear(16).relu().linear(2).build::<f32>(&mut rng)?;
    /// let data = Array2::from_shape_fn((64, 4), |(n, i)| (n * 4 + i) as f32 / 128.0 - 1.0);
    ///
    /// let integers = Calibrator::new(Target::OnnxRuntime).quantize(&mlp, data.view())?;
    /// let engine = Engine::from_quantized(&integers)?;
    /// assert_eq!(engine.predict(data.view())?, integers.predict(data.view())?); // bit for bit
    ///
    /// // The other way round: what an engine computes, for OnnxExporter::quantized.
    /// let engine = Engine::build(&mlp, &Config::new(Format::Int8).with_calibration(data.view()))?;
    /// assert_eq!(engine.to_quantized()?.predict(data.view())?, engine.predict(data.view())?);
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] for codes that no integer layer takes in or gives; [`Error::OutOfRange`] for a weight code
    /// of -128.
    pub fn from_quantized(network: &QuantizedMlp) -> Result<Self> {
        let mut blocks = Vec::with_capacity(network.layers().len());
        for (index, layer) in network.layers().iter().enumerate() {
            match layer {
                QuantizedLayer::Linear(linear) => put_integers(&mut blocks, linear),
                QuantizedLayer::Real(layer) => blocks.extend(plain(layer)),
                QuantizedLayer::Codes(_) => {
                    let reason =
                        format!("layer {index} rounds to codes that no integer layer takes in or gives");
                    return Err(Error::Unsupported { what: "an engine of this network", reason });
                }
            }
        }
        let recipe = Recipe { inputs: network.inputs(), entry: None, exit: None, blocks };
        Self::from_recipe(recipe, Isa::best(), Pool::shared())
    }

    /// The integers that this engine computes, to be written as ONNX: what goes in and comes out are numbers.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a layer of dynamic activations, for sums beyond 32 bits, and for an activation that is
    /// neither the limit of its codes nor looked up from codes.
    pub fn to_quantized(&self) -> Result<QuantizedMlp> {
        let recipe = &self.recipe();
        let mut layers = Vec::with_capacity(recipe.blocks.len() + 2);
        // Codes at the ends, where no integer layer takes in or gives the same.
        let taken = recipe.blocks.first().and_then(Block::codes_in);
        if let Some(entry) = recipe.entry.filter(|&entry| taken != Some(entry)) {
            layers.push(QuantizedLayer::Codes(code_params(entry)?));
        }
        for block in &recipe.blocks {
            match block {
                Block::Linear(linear) => take_linear(&mut layers, linear)?,
                Block::Affine { scale, shift } => {
                    let n = scale.len();
                    let (gamma, beta) = (Array1::from(scale.clone()), Array1::from(shift.clone()));
                    // A batch norm that has seen mean 0 and variance 1; its eps vanishes beside them.
                    let norm = BatchNorm::from_parts(gamma, beta, Array1::zeros(n), Array1::ones(n), 1e-30)?;
                    layers.push(QuantizedLayer::Real(Layer::BatchNorm(norm)));
                }
                Block::LayerNorm(norm) => layers.push(QuantizedLayer::Real(Layer::LayerNorm(norm.clone()))),
                Block::Activation(activation) => layers.push(real(*activation)),
            }
        }
        let given = recipe.blocks.last().and_then(Block::codes_out);
        if let Some(exit) = recipe.exit.filter(|&exit| given != Some(exit)) {
            layers.push(QuantizedLayer::Codes(code_params(exit)?));
        }
        QuantizedMlp::new(recipe.inputs, layers)
    }
}

/// Codes 0..=255 that stand for the same numbers.
fn unsigned(params: CodeParams) -> QuantParams<f32> {
    QuantParams { scale: params.scale(), zero_point: params.zero_point() - params.qmin() }
}

fn code_params(params: QuantParams<f32>) -> Result<CodeParams> {
    CodeParams::new(params.scale, params.zero_point, false)
}

fn put_integers(blocks: &mut Vec<Block<f32>>, linear: &QuantizedLinear) {
    let (outputs, inputs) = linear.weight().dim();
    let (bias, added) = match linear.bias() {
        IntegerBias::None => (vec![0; outputs], None),
        IntegerBias::Codes(codes) => (codes.to_vec(), None),
        IntegerBias::Real(bias) => (vec![0; outputs], Some(bias.to_vec())),
    };
    let output = match linear.output() {
        Some(after) => Output::Codes { before: None, after: unsigned(after) },
        None => Output::Float,
    };
    let sums = Sums::Static { input: unsigned(linear.input()), bias, output };
    let codes = linear.weight().iter().copied().collect();
    let weights = Weights::Codes { codes, scale: linear.scales().to_vec(), sums };
    blocks.push(Block::Linear(Linear { inputs, outputs, format: Format::Int8, weights, activation: None }));
    if let Some(shift) = added {
        blocks.push(Block::Affine { scale: vec![1.0; outputs], shift });
    }
}

fn real(activation: Activation) -> QuantizedLayer {
    QuantizedLayer::Real(Layer::Activation(activation))
}

fn take_linear(layers: &mut Vec<QuantizedLayer>, linear: &Linear<f32>) -> Result<()> {
    let refuse =
        |reason: &str| Error::Unsupported { what: "writing the integers down", reason: reason.into() };
    let shape = (linear.outputs, linear.inputs);
    let unshaped = |error: ndarray::ShapeError| refuse(&error.to_string());
    match &linear.weights {
        Weights::Float { weight, bias } => {
            let weight = Array2::from_shape_vec(shape, weight.clone()).map_err(unshaped)?;
            let linear = nn::Linear::new(weight, bias.clone().map(Array1::from))?;
            layers.push(QuantizedLayer::Real(Layer::Linear(linear)));
        }
        Weights::Codes { sums: Sums::Dynamic { .. }, .. } => {
            return Err(refuse(
                "the scales of its inputs are taken from each row; quantize with calibration data",
            ));
        }
        Weights::Codes { codes, scale, sums: Sums::Static { input, bias, output } } => {
            let output = match output {
                Output::Float => None,
                Output::Codes { before, after } => Some(code_params(before.unwrap_or(*after))?),
            };
            let codes = Array2::from_shape_vec(shape, codes.clone()).map_err(unshaped)?;
            let (scales, bias) =
                (Array1::from(scale.clone()), IntegerBias::Codes(Array1::from(bias.clone())));
            let integers = QuantizedLinear::new(codes, scales, bias, code_params(*input)?, output)?;
            layers.push(QuantizedLayer::Linear(integers));
        }
    }
    let Some(activation) = linear.activation else { return Ok(()) };
    if let Weights::Codes {
        sums: Sums::Static { output: Output::Codes { before: None, after }, .. }, ..
    } = &linear.weights
    {
        let limits = super::linear::limits(activation, *after);
        return if limits == (0, 255) {
            Ok(())
        } else {
            Err(refuse("the limits of an activation lie inside those of its codes"))
        };
    }
    layers.push(real(activation));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Batch, BatchMut, Calibrator, Config, Io, Target};
    use crate::nn::Mlp;
    use rand::rngs::Xoshiro256PlusPlus;
    use rand::{RngExt, SeedableRng};

    fn data(rng: &mut Xoshiro256PlusPlus, rows: usize) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, 7), || rng.random_range(-2.0..2.0))
    }

    fn network(rng: &mut Xoshiro256PlusPlus) -> Mlp<f32> {
        let builder = Mlp::builder(7).linear(33).batch_norm().relu().linear(20).clip(0.0, 0.4).linear(18);
        builder.tanh().linear(5).build(rng).unwrap()
    }

    #[test]
    fn an_engine_computes_the_bits_of_the_description() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
        let (mlp, x) = (network(&mut rng), data(&mut rng, 300));
        for calibrator in [
            Calibrator::new(Target::OnnxRuntime),
            Calibrator::new(Target::OnnxRuntime).with_signed_activations(),
            Calibrator::new(Target::TensorRt),
        ] {
            let integers = calibrator.quantize(&mlp, x.view()).unwrap();
            let engine = Engine::from_quantized(&integers).unwrap();
            assert_eq!(
                engine.predict(x.view()).unwrap(),
                integers.predict(x.view()).unwrap(),
                "{calibrator:?}"
            );
        }
    }

    #[test]
    fn a_description_computes_the_bits_of_the_engine() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(6);
        let (mlp, x) = (network(&mut rng), data(&mut rng, 300));
        for format in [Format::Int8, Format::SparseInt8, Format::Int4] {
            let engine = Engine::build(&mlp, &Config::new(format).with_calibration(x.view())).unwrap();
            let integers = engine.to_quantized().unwrap();
            assert_eq!(integers.predict(x.view()).unwrap(), engine.predict(x.view()).unwrap(), "{format}");
            let again = Engine::from_quantized(&integers).unwrap();
            assert_eq!(again.predict(x.view()).unwrap(), engine.predict(x.view()).unwrap(), "{format}");
        }
    }

    #[test]
    fn refuses_what_has_no_counterpart() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
        let engine = Engine::build(&network(&mut rng), &Config::new(Format::Int8Dynamic)).unwrap();
        assert!(engine.to_quantized().unwrap_err().to_string().contains("calibration data"));
        let codes = QuantizedLayer::Codes(CodeParams::new(1.0, 0, true).unwrap());
        let linear = nn::Linear::new(Array2::ones((2, 3)), None).unwrap();
        let layers = vec![codes, QuantizedLayer::Real(Layer::Linear(linear))];
        let error = Engine::from_quantized(&QuantizedMlp::new(3, layers).unwrap()).unwrap_err();
        assert!(error.to_string().contains("layer 0 rounds to codes"), "{error}");
    }

    #[test]
    fn codes_at_the_ends_stay_codes_beside_layers_of_numbers() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(8);
        let (mlp, x) = (network(&mut rng), data(&mut rng, 300));
        for dense in [vec![], vec![0], vec![3], vec![0, 3]] {
            let config = Config::new(Format::Int8).with_calibration(x.view()).with_io(Io::Codes, Io::Codes);
            let config = dense.iter().fold(config, |config, &layer| config.with_layer(layer, Format::Dense));
            let engine = Engine::build(&mlp, &config).unwrap();
            let mut codes = vec![0; 300 * engine.outputs()];
            let input = engine.encode(x.as_slice().unwrap());
            let mut workspace = engine.workspace(300);
            engine.run(Batch::Codes(&input), BatchMut::Codes(&mut codes), &mut workspace).unwrap();
            let exit = engine.exit().unwrap();
            let integers = engine.to_quantized().unwrap();
            let found = integers.predict(x.view()).unwrap();
            let far = |(y, code): &(&f32, &u8)| {
                let expected = (i32::from(**code) - exit.zero_point) as f32 * exit.scale;
                (*y - expected).abs() > 1e-5
            };
            // The last bit of a sum of numbers may decide on a code.
            let differ = found.iter().zip(&codes).filter(far).count();
            assert!(differ <= if dense.is_empty() { 0 } else { 15 }, "{dense:?}: {differ}");
            let ends = |layer: Option<&QuantizedLayer>| matches!(layer, Some(QuantizedLayer::Codes(_)));
            let expected = (dense.contains(&0), dense.contains(&3));
            assert_eq!((ends(integers.layers().first()), ends(integers.layers().last())), expected);
        }
    }
}
