//! All stages of a network, and how a batch goes through them.
//!
//! ```text
//! many rows   cut into chunks; each thread takes chunks through all stages, with a lane of memory of its own;
//!             fewer are many for a network of few weights, which every thread can read for itself
//! few rows    one lane; a stage that is large enough divides its columns among threads
//! ```
//!
//! A row gives the same bits either way, in every batch and on every number of threads; batches of up to three rows are the
//! exception where weights are sparse and real: those add up in another order.

use super::element::Element;
use super::format::{Batch, BatchMut, Target};
use super::integer::nanoseconds;
use super::linear::Linear;
use super::recipe::{Block, Output, Recipe, Sums, Weights};
use super::stage::{Op, Post, Stage, table};
use super::workspace::{Lane, Workspace, lock, lock_any};
use crate::error::Result;
use crate::kernel::{Isa, MatrixMut, Pool};
use crate::quantize::QuantParams;

/// Most rows that go through the stages at a time: activations stay in the caches, weights are read once for all.
pub(super) const CHUNK: usize = 256;

/// From so many rows per thread on, threads take rows of their own: the weights are read by each.
const ROWS_PER_THREAD: usize = 48;

/// From so many on, if the weights are few.
const ROWS_OF_FEW_WEIGHTS: usize = 12;

/// Bytes of weights that each core can read for itself, from its second-level cache for the most part.
const FEW_WEIGHTS: usize = 3 << 19;

/// Nanoseconds of work from which on a second thread pays for rows of its own: it is called once, not for each layer.
const WORTH_SHARING: f64 = 20_000.0;

/// Packed stages.
#[derive(Clone, Debug)]
pub(super) struct Machine<F> {
    pub(super) isa: Isa,
    pub(super) pool: Pool,
    pub(super) stages: Vec<Stage<F>>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Of all weights that a row is multiplied by.
    pub(super) bytes: usize,
}

/// What flows between two stages.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flow {
    Float,
    Codes(QuantParams<f32>),
}

impl<F: Element> Machine<F> {
    /// Packs a checked recipe.
    pub(super) fn new(recipe: &Recipe<F>, isa: Isa, pool: Pool) -> Self {
        Self::of_blocks(recipe.inputs, (recipe.entry, recipe.exit), &recipe.blocks, isa, pool)
    }

    /// Packs blocks that stand between codes or numbers.
    pub(super) fn of_blocks(
        inputs: usize,
        (entry, exit): (Option<QuantParams<f32>>, Option<QuantParams<f32>>),
        blocks: &[Block<F>],
        isa: Isa,
        pool: Pool,
    ) -> Self {
        let flow = entry.map_or(Flow::Float, Flow::Codes);
        let mut builder = Builder { isa, stages: Vec::new(), width: inputs, flow };
        blocks.iter().for_each(|block| builder.block(block));
        match exit {
            Some(exit) => builder.want_codes(exit),
            None => builder.want_float(),
        }
        let (stages, outputs) = (builder.stages, builder.width);
        let bytes = |stage: &Stage<F>| match &stage.op {
            Op::Linear(linear) => linear.multiplied_bytes(),
            _ => 0,
        };
        let bytes = stages.iter().map(bytes).sum();
        Self { isa, pool, stages, inputs, outputs, bytes }
    }

    /// The linear layers, first to last.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear<F>> {
        self.stages.iter().filter_map(|stage| match &stage.op {
            Op::Linear(linear) => Some(&**linear),
            _ => None,
        })
    }

    /// Memory for batches cut into chunks of at most `rows` rows.
    pub(super) fn workspace(&self, rows: usize, engine: u64) -> Workspace<F> {
        let rows = rows.clamp(1, CHUNK);
        let threads = self.pool.threads();
        let widest = |codes| {
            let between = &self.stages[..self.stages.len().saturating_sub(1)];
            between.iter().filter(|s| s.codes == codes).map(|s| s.outputs).max().unwrap_or(0)
        };
        let lane = |_| std::sync::Mutex::new(Lane::new(rows, widest(false), widest(true), threads));
        Workspace {
            lanes: (0..threads).map(lane).collect(),
            rows,
            input: Vec::new(),
            output: Vec::with_capacity(self.outputs),
            engine,
        }
    }

    /// Grows all memory to what calls use.
    pub(super) fn warm(&self, workspace: &mut Workspace<F>) {
        for lane in &mut workspace.lanes {
            let tools = &mut lock(lane).tools;
            for stage in &self.stages {
                if let Op::Linear(linear) = &stage.op {
                    linear.warm(self.isa, workspace.rows, tools);
                }
            }
        }
    }

    /// Runs `rows` rows. Lengths and types are those of the network.
    pub(super) fn run(
        &self,
        rows: usize,
        x: Batch<'_, F>,
        out: BatchMut<'_, F>,
        workspace: &mut Workspace<F>,
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        if self.shares_rows(rows) {
            return self.run_rows(rows, x, out, workspace);
        }
        let Some(lane) = workspace.lanes.first_mut() else { return Ok(()) };
        let lane = lane.get_mut().unwrap_or_else(|poison| poison.into_inner());
        let mut rest = match out {
            BatchMut::Float(out) => Target::Float(MatrixMut::new(out, rows, self.outputs)),
            BatchMut::Codes(out) => Target::Codes(MatrixMut::new(out, rows, self.outputs)),
        };
        // Chunks of equal size: a small rest would be a batch of another kind.
        let height = rows.div_ceil(rows.div_ceil(workspace.rows));
        let mut first = 0;
        while first < rows {
            let count = height.min(rows - first);
            let (now, later) = match rest {
                Target::Float(out) => {
                    let (now, later) = out.split_rows(count);
                    (Target::Float(now), Target::Float(later))
                }
                Target::Codes(out) => {
                    let (now, later) = out.split_rows(count);
                    (Target::Codes(now), Target::Codes(later))
                }
            };
            let x = x.part(first * self.inputs, count * self.inputs);
            lane.tools.batch = rows;
            self.run_chunk(&self.pool, count, x, now, lane)?;
            (first, rest) = (first + count, later);
        }
        Ok(())
    }

    /// Whether threads take rows of their own.
    fn shares_rows(&self, rows: usize) -> bool {
        let threads = self.pool.threads();
        let few = self.bytes <= FEW_WEIGHTS && nanoseconds(self.isa, self.bytes, rows) >= WORTH_SHARING;
        threads > 1 && rows >= threads * if few { ROWS_OF_FEW_WEIGHTS } else { ROWS_PER_THREAD }
    }

    /// Chunks of rows on all threads.
    fn run_rows(
        &self,
        rows: usize,
        x: Batch<'_, F>,
        out: BatchMut<'_, F>,
        workspace: &Workspace<F>,
    ) -> Result<()> {
        let threads = self.pool.threads();
        // Chunks of equal size, a multiple of the threads, so that all end together.
        let rounds = rows.div_ceil(threads * workspace.rows);
        let height = rows.div_ceil(threads * rounds);
        let failure = std::sync::Mutex::new(Ok(()));
        let task = |i: usize, count: usize, out: Target<'_, F>| {
            let x = x.part(i * height * self.inputs, count * self.inputs);
            if let Some(mut lane) = lock_any(&workspace.lanes, i) {
                lane.tools.batch = rows;
                if let Err(error) = self.run_chunk(&Pool::single(), count, x, out, &mut lane) {
                    *lock(&failure) = Err(error);
                }
            }
        };
        match out {
            BatchMut::Float(out) => {
                let out = MatrixMut::new(out, rows, self.outputs);
                self.pool.run_rows(out, height, |i, out| task(i, out.rows(), Target::Float(out)));
            }
            BatchMut::Codes(out) => {
                let out = MatrixMut::new(out, rows, self.outputs);
                self.pool.run_rows(out, height, |i, out| task(i, out.rows(), Target::Codes(out)));
            }
        }
        failure.into_inner().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Rows that fit the lane, through all stages.
    fn run_chunk(
        &self,
        pool: &Pool,
        rows: usize,
        x: Batch<'_, F>,
        out: Target<'_, F>,
        lane: &mut Lane<F>,
    ) -> Result<()> {
        let Some((last, stages)) = self.stages.split_last() else { return Ok(()) };
        let Lane { float, codes, tools } = lane;
        let mut from: Option<&Stage<F>> = None;
        for (i, stage) in stages.iter().enumerate() {
            let (float, codes) = (turns(float, i), turns(codes, i));
            let input = source(x, from, rows, float.0, codes.0);
            let size = rows * stage.outputs;
            let target = if stage.codes {
                Target::Codes(MatrixMut::new(&mut codes.1[..size], rows, stage.outputs))
            } else {
                Target::Float(MatrixMut::new(&mut float.1[..size], rows, stage.outputs))
            };
            stage.run(self.isa, pool, input, target, tools)?;
            from = Some(stage);
        }
        let (float, codes) = (turns(float, stages.len()), turns(codes, stages.len()));
        let input = source(x, from, rows, float.0, codes.0);
        last.run(self.isa, pool, input, out, tools)
    }
}

/// The buffer that stage `i` reads, and the one it writes.
fn turns<T>([a, b]: &mut [Vec<T>; 2], i: usize) -> (&[T], &mut [T]) {
    if i.is_multiple_of(2) { (a, b) } else { (b, a) }
}

/// What the stage before has left, or the batch itself.
fn source<'a, F>(
    x: Batch<'a, F>,
    from: Option<&Stage<F>>,
    rows: usize,
    float: &'a [F],
    codes: &'a [u8],
) -> Batch<'a, F> {
    match from {
        None => x,
        Some(stage) if stage.codes => Batch::Codes(&codes[..rows * stage.outputs]),
        Some(stage) => Batch::Float(&float[..rows * stage.outputs]),
    }
}

/// Joins blocks to stages, with conversions where a block wants something else than the one before gives.
struct Builder<F> {
    isa: Isa,
    stages: Vec<Stage<F>>,
    width: usize,
    flow: Flow,
}

impl<F: Element> Builder<F> {
    fn push(&mut self, op: Op<F>, outputs: usize, flow: Flow) {
        let codes = matches!(flow, Flow::Codes(_));
        self.stages.push(Stage { op, post: Vec::new(), inputs: self.width, outputs, codes });
        (self.width, self.flow) = (outputs, flow);
    }

    fn want_float(&mut self) {
        if let Flow::Codes(params) = self.flow {
            self.push(Op::Dequantize(params), self.width, Flow::Float);
        }
    }

    fn want_codes(&mut self, params: QuantParams<f32>) {
        if self.flow != Flow::Codes(params) {
            self.want_float();
            self.push(Op::Quantize(params), self.width, Flow::Codes(params));
        }
    }

    /// Something done in place to numbers.
    fn post(&mut self, post: Post<F>) {
        self.want_float();
        if self.stages.is_empty() {
            self.push(Op::Copy, self.width, Flow::Float);
        }
        if let Some(stage) = self.stages.last_mut() {
            stage.post.push(post);
        }
    }

    fn block(&mut self, block: &Block<F>) {
        match block {
            Block::Affine { scale, shift } => {
                self.post(Post::Affine { scale: scale.clone(), shift: shift.clone() })
            }
            Block::LayerNorm(norm) => self.post(Post::LayerNorm(norm.clone())),
            Block::Activation(activation) => self.post(Post::Activation(*activation)),
            Block::Linear(layer) => {
                let linear = Op::Linear(Box::new(Linear::new(layer, self.isa)));
                let left = super::linear::fused(layer.activation).1;
                match &layer.weights {
                    Weights::Codes { sums: Sums::Static { input, output, .. }, .. } => {
                        self.want_codes(*input);
                        match output {
                            Output::Codes { before, after } => {
                                self.push(linear, layer.outputs, Flow::Codes(*after));
                                let table = layer.activation.zip(*before).map(|(activation, before)| {
                                    Post::Table(table(activation, before, *after))
                                });
                                if let Some(stage) = self.stages.last_mut() {
                                    stage.post.extend(table);
                                }
                                return;
                            }
                            Output::Float => self.push(linear, layer.outputs, Flow::Float),
                        }
                    }
                    _ => {
                        self.want_float();
                        self.push(linear, layer.outputs, Flow::Float);
                    }
                }
                if let Some(activation) = left {
                    self.post(Post::Activation(activation));
                }
            }
        }
    }
}
