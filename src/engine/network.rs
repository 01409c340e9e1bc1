//! The engine: a network that runs, and nothing else.

use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::bound::Bound;
use super::budget::Judge;
use super::build::{build, set_layers};
use super::choose::{Choice, choose};
use super::config::{Config, Formats};
use super::element::Element;
use super::format::{Batch, BatchMut, Format, Io};
use super::linear::Unpacked;
use super::lower::lower;
use super::machine::Machine;
use super::recipe::{Block, Output, Recipe, Sums, Weights};
use super::search::worst;
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::float::{check_finite_on, check_shape};
use crate::kernel::{Grid, Isa, Pool, dequantize, quantize};
use crate::nn::Mlp;
use crate::quantize::QuantParams;

/// A network ready to be deployed: immutable, shared by threads, no allocation in a call.
///
/// It holds its weights once, packed for the kernels, and unpacks them to be saved; sparse and 2:4 numbers, and 2:4 codes, are held
/// as they are stored as well.
///
/// ```
/// use trimnet::engine::{Config, Engine, Format};
/// use trimnet::ndarray::Array2;
/// use trimnet::nn::Mlp;
/// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let mlp = Mlp::builder(20).linear(32).relu().linear(4).build::<f32>(&mut rng)?;
/// let data = Array2::from_shape_fn((100, 20), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 11.0);
///
/// let config = Config::new(Format::Int8).with_calibration(data.view());
/// let engine = Engine::build(&mlp, &config)?;
/// let error = (engine.predict(data.view())? - mlp.predict(data.view())?).mapv(f32::abs);
/// assert!(error.iter().all(|&error| error < 0.05));
///
/// // One row at a time, with memory that is made once.
/// let mut workspace = engine.workspace(1);
/// let row = data.row(0).to_vec();
/// assert_eq!(engine.predict_one(&row, &mut workspace)?, engine.predict(data.view())?.row(0).to_vec());
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Engine<F> {
    /// Without the weights that the machine can give back.
    rest: Recipe<F>,
    machine: Machine<F>,
    layers: Vec<LayerInfo>,
    choice: Option<Choice>,
    /// Tells its workspaces from those of others; a clone shares them.
    id: u64,
}

/// A linear layer of an engine.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerInfo {
    /// How it is stored and multiplied.
    pub format: Format,
    /// Inputs.
    pub inputs: usize,
    /// Outputs.
    pub outputs: usize,
    /// Weights that are not zero.
    pub nonzero: usize,
    /// Bytes of the packed weights, which one product reads.
    pub packed_bytes: usize,
    /// The codes of its input, if their scale is static.
    pub input: Option<QuantParams<f32>>,
    /// The codes in which an activation other than relu and clip is looked up.
    pub before_activation: Option<QuantParams<f32>>,
    /// The codes of its output, if codes come out.
    pub output: Option<QuantParams<f32>>,
    /// The worst case of its integer sums.
    pub bound: Option<Bound>,
}

impl<F: Element> Engine<F> {
    /// Folds, shrinks, quantizes and packs a network.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for static activations without calibration data, and for a format that a layer cannot have;
    /// [`Error::Shape`] and [`Error::NotFinite`] for calibration data that is not of the network or not of numbers;
    /// [`Error::NotFinite`] for a weight that is not a number, and for weights or activations of which codes cannot be made because
    /// `f32` cannot hold them; [`Error::Empty`] if no activation of a layer is finite; [`Error::OutOfRange`] for a layer that is not
    /// there, and for settings out of their range; [`Error::OverBudget`] and [`Error::Label`] by
    /// [`Config::with_accuracy_budget`]. Formats that fail so are left out by [`Config::auto`].
    pub fn build(mlp: &Mlp<F>, config: &Config<'_, F>) -> Result<Self> {
        config.check()?;
        let (inputs, blocks) = (mlp.inputs(), lower(mlp)?);
        let engine = |formats: &[Format]| {
            Self::from_recipe(build(inputs, &blocks, formats, config)?, config.isa, config.pool.clone())
        };
        let count = mlp.linears().count();
        let judge = config.budget.map(|budget| Judge::new(budget, mlp)).transpose()?;
        match config.formats {
            Formats::Same(format) => {
                let mut formats = vec![format; count];
                set_layers(config, &mut formats)?;
                let built = engine(&formats)?;
                if let Some(judge) = judge {
                    let accuracy = judge.accuracy(&built)?;
                    if !judge.allows(accuracy) {
                        return Err(judge.refusal(accuracy, worst(&judge, &formats, engine)?));
                    }
                }
                Ok(built)
            }
            Formats::Measured(auto) => {
                let (formats, choice) = choose(inputs, &blocks, auto, config, judge.as_ref())?;
                Ok(Self { choice: Some(choice), ..engine(&formats)? })
            }
        }
    }

    /// Packs what was built or loaded.
    pub(crate) fn from_recipe(recipe: Recipe<F>, isa: Isa, pool: Pool) -> Result<Self> {
        recipe.check()?;
        let machine = Machine::new(&recipe, isa, pool);
        let layers = layers(&recipe, &machine);
        let mut rest = recipe;
        for (layer, linear) in rest.linears_mut().zip(machine.linears()) {
            if linear.can_unpack() {
                layer.weights.take();
            }
        }
        Ok(Self { rest, machine, layers, choice: None, id: next_id() })
    }

    /// What a file holds.
    pub(crate) fn recipe(&self) -> Recipe<F> {
        let mut recipe = self.rest.clone();
        for (layer, linear) in recipe.linears_mut().zip(self.machine.linears()) {
            match (linear.unpacked(), &mut layer.weights) {
                (Some(Unpacked::Float(numbers)), Weights::Float { weight, .. }) => *weight = numbers,
                (Some(Unpacked::Codes(numbers)), Weights::Codes { codes, .. }) => *codes = numbers,
                _ => {}
            }
        }
        recipe
    }

    /// The blocks, of which most weights are packed only.
    pub(crate) fn blocks(&self) -> &[Block<F>] {
        &self.rest.blocks
    }

    /// The numbers behind each linear layer and its activation, of a batch of numbers: what codes stand for, where codes are.
    pub(crate) fn behind_linears(&self, x: ArrayView2<'_, F>) -> Result<Vec<Array2<F>>> {
        let whole = self.recipe();
        let ends = whole.blocks.iter().enumerate().filter(|(_, block)| matches!(block, Block::Linear(_)));
        let part = |end: usize| -> Result<Array2<F>> {
            let recipe = Recipe {
                inputs: whole.inputs,
                entry: whole.entry,
                exit: None,
                blocks: whole.blocks[..=end].to_vec(),
            };
            Self::from_recipe(recipe, self.machine.isa, self.machine.pool.clone())?.numbers(x)
        };
        ends.map(|(end, _)| part(end)).collect()
    }

    /// Numbers or codes of one row that goes in.
    pub fn inputs(&self) -> usize {
        self.machine.inputs
    }

    /// Numbers or codes of one row that comes out.
    pub fn outputs(&self) -> usize {
        self.machine.outputs
    }

    /// What goes in and what comes out.
    pub fn io(&self) -> (Io, Io) {
        let io = |params: Option<_>| if params.is_some() { Io::Codes } else { Io::Float };
        (io(self.rest.entry), io(self.rest.exit))
    }

    /// Scale and zero point of the codes that go in, if codes do.
    pub fn entry(&self) -> Option<QuantParams<f32>> {
        self.rest.entry
    }

    /// Scale and zero point of the codes that come out, if codes do.
    pub fn exit(&self) -> Option<QuantParams<f32>> {
        self.rest.exit
    }

    /// The instructions that it runs on.
    pub fn isa(&self) -> Isa {
        self.machine.isa
    }

    /// The threads that it may use.
    pub fn pool(&self) -> &Pool {
        &self.machine.pool
    }

    /// The same network on other threads. Its workspaces are to be made anew.
    #[must_use]
    pub fn with_pool(self, pool: Pool) -> Self {
        Self { machine: Machine { pool, ..self.machine }, id: next_id(), ..self }
    }

    /// What formats were measured, if this engine was built by [`Config::auto`]; a file does not hold it.
    pub fn choice(&self) -> Option<&Choice> {
        self.choice.as_ref()
    }

    /// The codes of numbers at the entry; nothing if numbers go in.
    pub fn encode(&self, x: &[F]) -> Vec<u8> {
        let Some(entry) = self.rest.entry else { return Vec::new() };
        let mut codes = vec![0; x.len()];
        let scale = F::of(f64::from(entry.scale));
        let grid = Grid { scale, zero_point: entry.zero_point, low: 0, high: 255 };
        quantize(self.machine.isa, x, grid, &mut codes);
        codes
    }

    /// The numbers of codes at the exit; nothing if numbers come out.
    pub fn decode(&self, codes: &[u8]) -> Vec<F> {
        let Some(exit) = self.rest.exit else { return Vec::new() };
        let mut x = vec![F::zero(); codes.len()];
        dequantize(self.machine.isa, codes, F::of(f64::from(exit.scale)), exit.zero_point, &mut x);
        x
    }

    /// The linear layers, first to last.
    pub fn layers(&self) -> Vec<LayerInfo> {
        self.layers.clone()
    }

    /// The memory that one caller needs, for batches of up to `rows` rows at full speed; larger ones are cut.
    ///
    /// Nothing is allocated by calls that use it; arrays that are not contiguous are copied to memory that grows with the first of
    /// their size.
    pub fn workspace(&self, rows: usize) -> Workspace<F> {
        let mut workspace = self.machine.workspace(rows, self.id);
        self.machine.warm(&mut workspace);
        workspace
    }

    /// Runs a batch of rows; everything else is made of this.
    ///
    /// # Errors
    /// [`Error::Shape`] for lengths that are not of the same whole number of rows; [`Error::Unsupported`] for numbers where
    /// the engine takes or gives codes, and the other way round, and for the workspace of another engine;
    /// [`Error::NotFinite`] for NaN or infinity in the input, and where a layer norm meets them.
    pub fn run(&self, x: Batch<'_, F>, out: BatchMut<'_, F>, workspace: &mut Workspace<F>) -> Result<()> {
        let rows = x.len() / self.inputs();
        check_shape("input", &[x.len()], &[rows * self.inputs()])?;
        check_shape("output", &[out.len()], &[rows * self.outputs()])?;
        if (x.io(), out.io()) != self.io() {
            let (input, output) = self.io();
            let reason = format!("this one takes {input:?} and gives {output:?}: see Engine::io");
            return Err(Error::Unsupported { what: "the input and output of the engine", reason });
        }
        if workspace.engine != self.id {
            let reason = "it was made for another engine: use Engine::workspace of this one".into();
            return Err(Error::Unsupported { what: "the workspace", reason });
        }
        if let Batch::Float(x) = x {
            let view = ArrayView2::from_shape((rows, self.inputs()), x);
            check_finite_on(self.pool(), "input", &view.map_err(|error| unshaped(&error))?)?;
        }
        self.machine.run(rows, x, out, workspace)
    }

    /// Outputs of a batch `[rows, inputs]`, into `out` `[rows, outputs]`.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn predict_into(
        &self,
        x: ArrayView2<'_, F>,
        mut out: ArrayViewMut2<'_, F>,
        workspace: &mut Workspace<F>,
    ) -> Result<()> {
        check_shape("input", x.shape(), &[x.nrows(), self.inputs()])?;
        check_shape("output", out.shape(), &[x.nrows(), self.outputs()])?;
        if let (Some(x), Some(out)) = (x.as_slice(), out.as_slice_mut()) {
            return self.run(Batch::Float(x), BatchMut::Float(out), workspace);
        }
        // Other strides: by way of memory of our own.
        let (mut input, mut output) =
            (std::mem::take(&mut workspace.input), std::mem::take(&mut workspace.output));
        input.clear();
        input.extend(x.iter().copied());
        output.clear();
        output.resize(out.len(), F::zero());
        let result = self.run(Batch::Float(&input), BatchMut::Float(&mut output), workspace);
        if result.is_ok() {
            out.iter_mut().zip(&output).for_each(|(out, &y)| *out = y);
        }
        (workspace.input, workspace.output) = (input, output);
        result
    }

    /// Outputs of a batch `[rows, inputs]`, `[rows, outputs]`, with memory of its own: for calls that are rare.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn predict(&self, x: ArrayView2<'_, F>) -> Result<Array2<F>> {
        let mut out = Array2::zeros((x.nrows(), self.outputs()));
        let mut workspace = self.machine.workspace(x.nrows(), self.id);
        self.predict_into(x, out.view_mut(), &mut workspace)?;
        Ok(out)
    }

    /// Outputs of one row, which stay in the workspace until the next call.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn predict_one<'w>(&self, x: &[F], workspace: &'w mut Workspace<F>) -> Result<&'w [F]> {
        check_shape("input", &[x.len()], &[self.inputs()])?;
        let mut output = std::mem::take(&mut workspace.output);
        output.resize(self.outputs(), F::zero());
        let result = self.run(Batch::Float(x), BatchMut::Float(&mut output), workspace);
        workspace.output = output;
        result.map(|()| &workspace.output[..])
    }

    /// The index of the largest output of each row; ties go to the lower index.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn classify(&self, x: ArrayView2<'_, F>) -> Result<Vec<usize>> {
        Ok(crate::nn::metrics::predictions(self.predict(x)?.view()))
    }
}

/// What can be told of the linear layers.
fn layers<F: Element>(recipe: &Recipe<F>, machine: &Machine<F>) -> Vec<LayerInfo> {
    let info = |(layer, linear): (&super::recipe::Linear<F>, &super::linear::Linear<F>)| {
        let mut info = LayerInfo {
            format: layer.format,
            inputs: layer.inputs,
            outputs: layer.outputs,
            nonzero: layer.nonzero(),
            packed_bytes: linear.size_bytes(),
            input: None,
            before_activation: None,
            output: None,
            bound: None,
        };
        if let Weights::Codes { codes, sums, .. } = &layer.weights {
            info.bound = Some(Bound::dynamic(codes, layer.inputs));
            if let Sums::Static { input, bias, output } = sums {
                let bound = Bound::of(codes, layer.inputs, input.zero_point, bias);
                info.bound = Some(Bound { parts: linear.parts(), ..bound });
                info.input = Some(*input);
                if let Output::Codes { before, after } = output {
                    (info.before_activation, info.output) = (*before, Some(*after));
                }
            }
        }
        info
    };
    recipe.linears().zip(machine.linears()).map(info).collect()
}

/// What no other engine of this process has.
fn next_id() -> u64 {
    static COUNTER: AtomicU64 = AtomicU64::new(1);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

fn unshaped(error: &ndarray::ShapeError) -> Error {
    Error::Unsupported { what: "the input", reason: error.to_string() }
}

const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Engine<f32>>();
    shared::<Engine<f64>>();
};

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    #[test]
    fn weights_are_held_once_and_come_back_to_the_bit() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mlp = Mlp::builder(37).linear(50).relu().linear(9).build::<f32>(&mut rng).unwrap();
        let data = Array2::from_shape_fn((40, 37), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 11.0);
        for format in Format::ALL.into_iter().filter(|format| !format.is_two_four()) {
            let config = Config::new(format).with_calibration(data.view());
            let (mut formats, blocks) = (vec![format; 2], lower(&mlp).unwrap());
            set_layers(&config, &mut formats).unwrap();
            let recipe = build(37, &blocks, &formats, &config).unwrap();
            let engine = Engine::build(&mlp, &config).unwrap();
            assert_eq!(engine.recipe(), recipe, "{format}");
            let held: usize = engine
                .rest
                .linears()
                .map(|layer| match &layer.weights {
                    Weights::Float { weight, .. } => weight.len(),
                    Weights::Codes { codes, .. } => codes.len(),
                })
                .sum();
            assert_eq!(held, if format == Format::Sparse { 37 * 50 + 50 * 9 } else { 0 }, "{format}");
        }
    }
}
