//! From blocks of numbers to the recipe: each linear layer to its format, one after the other, with the calibration data
//! going through the network twice: as numbers, and as what has been built so far makes of them.
//!
//! ```text
//! bias correction   b' = b + (W mean(x) - W' mean(x'))      x', W' as quantized; linear, so means suffice
//! ```

use ndarray::{ArrayView2, ArrayViewMut1};

use super::calibrate;
use super::config::{Config, Correction};
use super::element::Element;
use super::format::{Batch, BatchMut, Format, Io};
use super::machine::Machine;
use super::recipe::{Block, Linear, Output, Recipe, Sums, Weights};
use super::weights::{WeightCodes, check_two_four, quantize_weights, share_values};
use crate::error::{Error, Result};
use crate::float::{check_finite, check_shape};
use crate::kernel::{Grid, Isa, quantize};
use crate::quantize::QuantParams;

/// Puts the formats that were set for single layers in the place of others.
pub(super) fn set_layers<F>(config: &Config<'_, F>, formats: &mut [Format]) -> Result<()> {
    for &(layer, format) in &config.layers {
        match formats.get_mut(layer) {
            Some(slot) => *slot = format,
            None => {
                let range = "below the number of linear layers";
                return Err(Error::OutOfRange { name: "layer", value: layer as f64, range });
            }
        }
    }
    Ok(())
}

/// The inputs of every linear layer, with its place among the blocks, as the network was trained.
pub(super) fn exact_inputs<F: Element>(
    inputs: usize,
    blocks: &[Block<F>],
    data: ArrayView2<'_, F>,
    config: &Config<'_, F>,
) -> Result<Vec<(usize, Vec<F>)>> {
    let config = Config { calibration: Some(data), input: Io::Float, output: Io::Float, ..config.clone() };
    let mut state = State::new(inputs, &[Format::Int8], &config)?;
    let mut found = Vec::new();
    for (i, block) in blocks.iter().enumerate() {
        if let Block::Linear(layer) = block {
            found.push((i, state.exact.clone()));
            state.exact = state.run_float(block, &state.exact)?;
            state.width = layer.outputs;
        } else {
            state.exact = state.run_float(block, &state.exact)?;
        }
    }
    Ok(found)
}

/// The recipe of a network whose linear layers have these formats.
pub(super) fn build<F: Element>(
    inputs: usize,
    blocks: &[Block<F>],
    formats: &[Format],
    config: &Config<'_, F>,
) -> Result<Recipe<F>> {
    let mut state = State::new(inputs, formats, config)?;
    let mut built = Vec::with_capacity(blocks.len());
    let mut linear = formats.iter().copied();
    for (i, block) in blocks.iter().enumerate() {
        let block = match block {
            Block::Linear(layer) => {
                let format = linear.next().unwrap_or_default();
                let next = match blocks.get(i + 1) {
                    Some(Block::Linear(_)) => linear.clone().next(),
                    _ => None,
                };
                let is_last = i + 1 == blocks.len();
                let codes = next.is_some_and(Format::is_static) || is_last && config.output == Io::Codes;
                state.linear(block, layer, format, codes)?
            }
            other => {
                state.pass(other)?;
                other.clone()
            }
        };
        built.push(block);
    }
    let exit = match config.output {
        Io::Float => None,
        Io::Codes => Some(state.exit()?),
    };
    let entry = match config.input {
        Io::Float => None,
        Io::Codes => state.entry,
    };
    Ok(Recipe { inputs, entry, exit, blocks: built })
}

/// Where the build stands: in front of the next block.
struct State<'s, 'c, F> {
    config: &'s Config<'c, F>,
    /// Rows of calibration data, 0 without.
    rows: usize,
    width: usize,
    /// Linear layers that were built.
    linears: usize,
    /// Activations of the network as it was trained, `[rows, width]`.
    exact: Vec<F>,
    /// Activations of what was built.
    built: Flow<F>,
    entry: Option<QuantParams<f32>>,
}

#[derive(Clone, Debug)]
enum Flow<F> {
    Float(Vec<F>),
    Codes(Vec<u8>, QuantParams<f32>),
}

impl<'s, 'c, F: Element> State<'s, 'c, F> {
    fn new(inputs: usize, formats: &[Format], config: &'s Config<'c, F>) -> Result<Self> {
        let exact = match config.calibration {
            Some(data) => calibration(data, inputs)?,
            None => Vec::new(),
        };
        let needs = config.input == Io::Codes || config.output == Io::Codes;
        let exact =
            if needs || formats.iter().any(|format| format.is_integer()) { exact } else { Vec::new() };
        if exact.is_empty() && (needs || formats.iter().any(|format| format.is_static())) {
            return Err(Error::Unsupported {
                what: "static activations",
                reason: "their scales come from calibration data: give some hundred typical inputs with \
                         Config::with_calibration, or choose Format::Int8Dynamic"
                    .into(),
            });
        }
        let rows = exact.len() / inputs;
        let mut state = Self {
            config,
            rows,
            width: inputs,
            linears: 0,
            built: Flow::Float(exact.clone()),
            exact,
            entry: None,
        };
        if config.input == Io::Codes {
            let params = state.params_of(&state.exact)?;
            state.entry = Some(params);
            state.quantize(params)?;
        }
        Ok(state)
    }

    fn params_of(&self, x: &[F]) -> Result<QuantParams<f32>> {
        calibrate::params(x, self.config.range, &self.config.pool)
    }

    /// What was built so far, in codes of these parameters.
    fn quantize(&mut self, params: QuantParams<f32>) -> Result<()> {
        match &self.built {
            Flow::Codes(_, current) if *current == params => {}
            Flow::Codes(..) => {
                let reason = "two scales for the same activations".to_string();
                return Err(Error::Unsupported { what: "building an engine", reason });
            }
            Flow::Float(x) => {
                let scale = F::of(f64::from(params.scale));
                let grid = Grid { scale, zero_point: params.zero_point, low: 0, high: 255 };
                let mut codes = vec![0; x.len()];
                quantize(self.config.isa, x, grid, &mut codes);
                self.built = Flow::Codes(codes, params);
            }
        }
        Ok(())
    }

    /// The mean of every input of the next block, of what was built.
    fn built_mean(&self) -> Vec<f64> {
        match &self.built {
            Flow::Float(x) => mean(x, self.width, |x| x.as_f64()),
            Flow::Codes(codes, params) => {
                let number =
                    |code: u8| (f64::from(code) - f64::from(params.zero_point)) * f64::from(params.scale);
                mean(codes, self.width, number)
            }
        }
    }

    /// A block without a format of its own.
    fn pass(&mut self, block: &Block<F>) -> Result<()> {
        if self.rows > 0 {
            self.exact = self.run_float(block, &self.exact)?;
            self.built = Flow::Float(self.run_built(block)?.0);
        }
        Ok(())
    }

    /// A linear layer in its format, whose outputs are codes if the next layer wants them and it can make them.
    fn linear(
        &mut self,
        block: &Block<F>,
        layer: &Linear<F>,
        format: Format,
        codes: bool,
    ) -> Result<Block<F>> {
        let (outputs, inputs) = (layer.outputs, layer.inputs);
        let Weights::Float { weight, bias } = &layer.weights else {
            let reason = "its weights are codes already".to_string();
            return Err(Error::Unsupported { what: "lowering a layer", reason });
        };
        if format.is_two_four() {
            check_two_four(weight, inputs)?;
        }
        let mut changed = None;
        let exact = if self.rows > 0 { Some(self.exact_outputs(block)?) } else { None };
        if format.is_integer() {
            let zeros = vec![F::zero(); outputs];
            let mut bias = bias.clone().unwrap_or(zeros);
            let input = if format.is_static() {
                let params = match &self.built {
                    Flow::Codes(_, params) => *params,
                    Flow::Float(_) => self.params_of(&self.exact)?,
                };
                self.quantize(params)?;
                Some(params)
            } else {
                None
            };
            let mut weights = self.weights(weight, (outputs, inputs), format)?;
            if self.config.correction == Correction::Mean && self.rows > 0 {
                let (exact, built) = (mean(&self.exact, inputs, |x| x.as_f64()), self.built_mean());
                let rows = weight.chunks_exact(inputs).zip(weights.codes.chunks_exact(inputs));
                for ((bias, &scale), (row, codes)) in bias.iter_mut().zip(&weights.scale).zip(rows) {
                    let wanted: f64 = row.iter().zip(&exact).map(|(w, x)| w.as_f64() * x).sum();
                    let found: f64 = codes.iter().zip(&built).map(|(&w, x)| f64::from(w) * x).sum();
                    *bias = F::of(bias.as_f64() + wanted - found * f64::from(scale));
                }
            }
            let sums = match input {
                None => Sums::Dynamic { bias: Some(bias.iter().map(|b| b.as_f64() as f32).collect()) },
                Some(input) => {
                    weights.make_room(weight, &bias, inputs, input.scale);
                    let output = match &exact {
                        Some((after, before)) if codes => Output::Codes {
                            before: before.as_ref().map(|x| self.params_of(x)).transpose()?,
                            after: self.params_of(after)?,
                        },
                        _ => Output::Float,
                    };
                    Sums::Static { input, bias: weights.bias_codes(&bias, input.scale), output }
                }
            };
            changed = Some(Weights::Codes { codes: weights.codes, scale: weights.scale, sums });
        } else if format == Format::Palette {
            let weight = share_values(weight, (outputs, inputs), self.config.entries)?;
            changed = Some(Weights::Float { weight, bias: bias.clone() });
        }
        let weights = changed.unwrap_or_else(|| layer.weights.clone());
        let built = Block::Linear(Linear { inputs, outputs, format, weights, activation: layer.activation });
        if let Some((exact, _)) = exact {
            let (float, codes) = self.run_built(&built)?;
            self.built = match (built.codes_out(), codes) {
                (Some(after), Some(codes)) => Flow::Codes(codes, after),
                _ => Flow::Float(float),
            };
            self.exact = exact;
        }
        self.width = outputs;
        self.linears += 1;
        Ok(built)
    }

    /// The codes of the weights `[outputs, inputs]` of the next layer.
    fn weights(
        &self,
        weight: &[F],
        (outputs, inputs): (usize, usize),
        format: Format,
    ) -> Result<WeightCodes> {
        let Some(damping) = self.config.gptq else {
            return quantize_weights(weight, outputs, inputs, format, None);
        };
        if self.rows == 0 {
            let reason = "it rounds by calibration data: give some hundred typical inputs with \
                          Config::with_calibration";
            return Err(Error::Unsupported { what: "GPTQ", reason: reason.into() });
        }
        let rows: Vec<f32> = match &self.built {
            Flow::Float(x) => x.iter().map(|x| x.as_f64() as f32).collect(),
            Flow::Codes(codes, params) => {
                codes.iter().map(|&code| params.dequantize(i32::from(code))).collect()
            }
        };
        let rows = ArrayView2::from_shape((self.rows, inputs), &rows)
            .map_err(|error| Error::Unsupported { what: "GPTQ", reason: error.to_string() })?;
        let named = |error| match error {
            Error::Unsupported { what, reason } => {
                Error::Unsupported { what, reason: format!("linear layer {}: {reason}", self.linears) }
            }
            other => other,
        };
        quantize_weights(weight, outputs, inputs, format, Some((rows, damping))).map_err(named)
    }

    /// The outputs of a layer as it was trained, and before an activation that codes would have to look up.
    fn exact_outputs(&self, block: &Block<F>) -> Result<(Vec<F>, Option<Vec<F>>)> {
        match block {
            Block::Linear(layer) if layer.activation.is_some_and(|activation| !activation.is_limit()) => {
                let plain = Block::Linear(Linear { activation: None, ..layer.clone() });
                let before = self.run_float(&plain, &self.exact)?;
                let mut x = before.clone();
                if let Some(activation) = layer.activation {
                    activation.apply_to(ArrayViewMut1::from(&mut x[..]));
                }
                Ok((x, Some(before)))
            }
            _ => Ok((self.run_float(block, &self.exact)?, None)),
        }
    }

    /// The parameters of codes at the exit.
    fn exit(&self) -> Result<QuantParams<f32>> {
        match &self.built {
            Flow::Codes(_, params) => Ok(*params),
            Flow::Float(_) => self.params_of(&self.exact),
        }
    }

    /// One block on numbers, as it was trained.
    fn run_float(&self, block: &Block<F>, x: &[F]) -> Result<Vec<F>> {
        let blocks = std::slice::from_ref(block);
        let machine =
            Machine::of_blocks(self.width, (None, None), blocks, Isa::best(), self.config.pool.clone());
        let mut out = vec![F::zero(); self.rows * machine.outputs];
        let mut workspace = machine.workspace(self.rows, 0);
        machine.run(self.rows, Batch::Float(x), BatchMut::Float(&mut out), &mut workspace)?;
        Ok(out)
    }

    /// One block on what was built so far: numbers or codes, whichever it gives.
    fn run_built(&self, block: &Block<F>) -> Result<(Vec<F>, Option<Vec<u8>>)> {
        let exit = block.codes_out();
        let (entry, x) = match &self.built {
            Flow::Float(x) => (None, Batch::Float(&x[..])),
            Flow::Codes(codes, params) => (Some(*params), Batch::Codes(&codes[..])),
        };
        let blocks = std::slice::from_ref(block);
        let (isa, pool) = (self.config.isa, self.config.pool.clone());
        let machine = Machine::of_blocks(self.width, (entry, exit), blocks, isa, pool);
        let mut workspace = machine.workspace(self.rows, 0);
        let count = self.rows * machine.outputs;
        match exit {
            None => {
                let mut out = vec![F::zero(); count];
                machine.run(self.rows, x, BatchMut::Float(&mut out), &mut workspace)?;
                Ok((out, None))
            }
            Some(_) => {
                let mut out = vec![0; count];
                machine.run(self.rows, x, BatchMut::Codes(&mut out), &mut workspace)?;
                Ok((Vec::new(), Some(out)))
            }
        }
    }
}

/// The calibration data, checked.
fn calibration<F: Element>(data: ArrayView2<'_, F>, inputs: usize) -> Result<Vec<F>> {
    check_shape("calibration data", data.shape(), &[data.nrows(), inputs])?;
    check_finite("calibration data", &data)?;
    if data.is_empty() {
        return Err(Error::Empty { what: "the calibration data" });
    }
    Ok(data.iter().copied().collect())
}

/// The mean of each column.
fn mean<T: Copy>(x: &[T], width: usize, number: impl Fn(T) -> f64) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    for row in x.chunks_exact(width.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += number(x));
    }
    let rows = (x.len() / width.max(1)).max(1) as f64;
    sums.iter_mut().for_each(|sum| *sum /= rows);
    sums
}
