//! The road of a student: pruned while it learns, cut to what is alive, put on a grid of few codes, and polished down to the
//! budget, with a round of learning after each cut.

use trimnet::distill::{Distillation, KdLoss};
use trimnet::ndarray::{Array2, ArrayView2, Axis};
use trimnet::nn::{
    Activation, Adam, Callback, CrossEntropy, Dataset, Layer, LearningRate, Linear, Mlp, Objective, Trainer,
};
use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::regularize::Dropout;
use trimnet::{Error, Mask, Result};

use crate::common::Progress;
use crate::freeze::Freezing;
use crate::options::Recipe;
use crate::polish::{Polish, Task};
use crate::prune::Pruning;
use crate::teacher::Pool;

const BATCH: usize = 250;
const RATE: f64 = 3e-3;
/// Of the student's epochs: pruning, freezing, learning again after a cut, settling after the last.
const SHARES: [f64; 4] = [0.5, 0.35, 0.12, 0.05];

/// A cut takes no more bytes than leave this share, and keeps some that settling may need.
const CUT: f64 = 0.85;
const SPARE: usize = 8;

/// Of the distillation loss.
const TEMPERATURE: f64 = 4.0;
const ALPHA: f64 = 0.1;

/// Images on which codes are priced, and zeros that are tried as codes again.
const POLISH_ROWS: usize = 12_000;
const WANTED: usize = 600;

/// A student at work.
pub struct Student<'p> {
    recipe: &'p Recipe,
    pool: Pool,
    copies: usize,
    seed: u64,
    /// Pixels of the whole image, and those of them that the network still reads.
    pixels: usize,
    live: Vec<usize>,
    mlp: Mlp<f32>,
}

impl<'p> Student<'p> {
    /// A fresh network before `pool`, which holds `copies` of the training images.
    pub fn new(recipe: &'p Recipe, pool: Pool, copies: usize, classes: usize, seed: u64) -> Result<Self> {
        let pixels = pool.data.features();
        let hidden = recipe.hidden.iter().fold(Mlp::builder(pixels), |mlp, &width| mlp.linear(width).relu());
        let mlp = hidden.linear(classes).build(&mut Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x57))?;
        let mlp = with_dropout(&mlp, recipe.dropout)?;
        Ok(Self { recipe, pool, copies, seed, pixels, live: (0..pixels).collect(), mlp })
    }

    /// Everything from the fresh network to those that fit the budgets, which `found` is given one by one.
    pub fn run(
        mut self,
        mut seen: impl FnMut(&str, &Mlp<f32>) -> Result<()>,
        mut found: impl FnMut(usize, &Mlp<f32>) -> Result<()>,
    ) -> Result<()> {
        let [pruning, freezing, ..] = SHARES.map(|share| self.epochs(share));
        let mut prune = Pruning {
            l1: self.recipe.l1,
            group: self.recipe.group,
            keep: self.recipe.keep,
            done: 0,
            steps: self.steps(pruning)?,
        };
        self.fit("pruning", pruning, (RATE, 0.45 * RATE), &mut prune)?;
        self.cut()?;
        seen("pruned", &self.whole(&self.mlp)?)?;

        let levels = self.recipe.levels;
        self.mlp = with_dropout(&self.mlp, 0.5 * self.recipe.dropout)?;
        let mut frozen = Freezing::new(&self.mlp, levels, None, self.steps(freezing)?);
        self.fit("freezing", freezing, (0.45 * RATE, 1e-5), &mut frozen)?;
        self.mlp = with_dropout(&self.mlp, 0.0)?;
        seen("frozen", &self.whole(&self.mlp)?)?;
        for &budget in &self.recipe.budgets {
            // Without a teacher all training images are known by now, and what a code costs there says little.
            if self.pool.teacher.is_some() || self.whole(&self.mlp)?.to_bytes().len() > budget {
                self.squeeze(&mut frozen, budget, &mut seen)?;
            }
            found(budget, &self.whole(&self.mlp)?)?;
        }
        Ok(())
    }

    /// From a frozen network to one whose file is no longer than `budget`.
    fn squeeze(
        &mut self,
        frozen: &mut Freezing,
        budget: usize,
        seen: &mut impl FnMut(&str, &Mlp<f32>) -> Result<()>,
    ) -> Result<()> {
        let [_, _, again, settling] = SHARES.map(|share| self.epochs(share));
        loop {
            let bytes = self.whole(&self.mlp)?.to_bytes().len();
            let last = budget as f64 >= CUT * bytes as f64;
            let target = if last { budget.saturating_sub(SPARE) } else { (CUT * bytes as f64) as usize };
            self.polish(frozen, target)?;
            let polished = self.whole(&self.mlp)?;
            seen("polished", &polished)?;
            let left = polished.to_bytes().len();
            if left > budget && (last || left >= bytes) {
                let reason = format!(
                    "{left} bytes are the least that this network takes; fewer neurons to begin with take less"
                );
                return Err(Error::Unsupported { what: "this budget", reason });
            }
            if last {
                break;
            }
            *frozen =
                Freezing::new(&self.mlp, self.recipe.levels, Some(&frozen.scales()), self.steps(again)?);
            self.fit("learning again", again, (1e-3, 1e-5), frozen)?;
            seen("frozen again", &self.whole(&self.mlp)?)?;
        }
        // Scales and biases make up for the last cut, unless that needs more bytes than there are.
        let polished = self.mlp.clone();
        frozen.hold();
        self.fit("settling", settling, (3e-4, 1e-5), frozen)?;
        if self.whole(&self.mlp)?.to_bytes().len() > budget {
            self.mlp = polished;
        }
        Ok(())
    }

    /// Passes over the pool for a share of the student's epochs over the training images.
    fn epochs(&self, share: f64) -> usize {
        ((self.recipe.epochs as f64 * share / self.copies as f64).round() as usize).max(1)
    }

    fn steps(&self, epochs: usize) -> Result<usize> {
        Ok(epochs * Trainer::new(epochs, BATCH)?.steps_per_epoch(&self.pool.data))
    }

    fn fit(
        &mut self,
        what: &'static str,
        epochs: usize,
        rate: (f64, f64),
        callback: &mut dyn Callback<f32>,
    ) -> Result<()> {
        let mut objective: Box<dyn Objective<f32>> = match &self.pool.teacher {
            Some(logits) => Box::new(Distillation::cached(logits.clone(), KdLoss::new(TEMPERATURE, ALPHA)?)?),
            None => Box::new(CrossEntropy),
        };
        let rate = LearningRate::cosine(rate.0, rate.1, epochs as f64)?;
        let mut bar = Progress::new(what, epochs);
        self.seed += 1;
        Trainer::new(epochs, BATCH)?.with_seed(self.seed).with_learning_rate(rate).fit(
            &mut self.mlp,
            objective.as_mut(),
            &self.pool.data,
            None,
            &mut Adam::new(),
            &mut [callback, &mut bar],
        )?;
        Ok(())
    }

    /// Leaves out dead neurons and pixels, of the images too.
    fn cut(&mut self) -> Result<()> {
        let (small, _) = self.mlp.shrink()?;
        let first = small.linears().next().map(|linear| linear.weight().to_owned()).unwrap_or_default();
        self.live = (0..self.pixels).filter(|&pixel| first.column(pixel).iter().any(|&w| w != 0.0)).collect();
        self.mlp = with_first(&small, self.live.len(), |w| w.select(Axis(1), &self.live))?;
        let labels = self.pool.data.labels().unwrap_or_default().to_vec();
        self.pool.data =
            Dataset::classification(self.pool.data.inputs().select(Axis(1), &self.live), labels)?;
        Ok(())
    }

    /// The network as it reads whole images.
    fn whole(&self, mlp: &Mlp<f32>) -> Result<Mlp<f32>> {
        let (whole, _) = with_first(mlp, self.pixels, |w| {
            let mut wide = Array2::zeros((w.nrows(), self.pixels));
            for (column, &pixel) in w.columns().into_iter().zip(&self.live) {
                wide.column_mut(pixel).assign(&column);
            }
            wide
        })?
        .shrink()?;
        Ok(whole)
    }

    /// Takes codes until the file is `budget` bytes long.
    fn polish(&mut self, frozen: &mut Freezing, budget: usize) -> Result<()> {
        let bar = Progress::new("polishing", 1);
        let all = self.pool.data.rows();
        let rows: Vec<usize> =
            (0..POLISH_ROWS.min(all)).map(|row| (row * 102_931 + self.seed as usize) % all).collect();
        let part = self.pool.data.select(&rows)?;
        let labels = part.labels().unwrap_or_default();
        let teacher = match &self.pool.teacher {
            Some(logits) => logits.select(Axis(0), &rows),
            None => Array2::zeros((rows.len(), self.mlp.outputs())),
        };
        let alpha = if self.pool.teacher.is_some() { ALPHA } else { 1.0 };
        let biases: Vec<Vec<f32>> =
            self.mlp.linears().map(|l| l.bias().map_or_else(Vec::new, |bias| bias.to_vec())).collect();
        let task = Task {
            inputs: part.inputs(),
            labels,
            teacher: teacher.view(),
            temperature: TEMPERATURE as f32,
            alpha: alpha as f32,
        };
        let wanted = self.wanted(&part, teacher.view(), alpha, &frozen.scales())?;
        let bytes = |codes: &[Array2<i32>]| {
            let mut mlp = self.mlp.clone();
            for ((linear, codes), scale) in mlp.linears_mut().zip(codes).zip(frozen.scales()) {
                linear.clear_mask();
                if linear.set_weight(codes.mapv(|code| code as f32 * scale)).is_err() {
                    return 0;
                }
            }
            self.whole(&mlp).map_or(0, |whole| whole.to_bytes().len())
        };
        let mut polish = Polish::new(frozen.codes(), frozen.scales(), self.recipe.levels, &biases, task);
        let price = polish.reduce(budget, bytes);
        polish.improve(price, &wanted);
        polish.reduce(budget, bytes);
        bar.at(1);
        frozen.set_codes(&mut self.mlp, polish.codes())
    }

    /// The zeros that the loss would most like to be codes: layer, row, column, sign.
    fn wanted(
        &self,
        part: &Dataset<f32>,
        teacher: ArrayView2<'_, f32>,
        alpha: f64,
        scales: &[f32],
    ) -> Result<Vec<(usize, usize, usize, i32)>> {
        let mut open = self.mlp.clone();
        open.linears_mut().for_each(Linear::clear_mask);
        let (logits, cache) = open.forward(part.inputs(), &mut Xoshiro256PlusPlus::seed_from_u64(0))?;
        let labels = part.labels().unwrap_or_default();
        let loss = KdLoss::new(TEMPERATURE, alpha)?.evaluate(logits.view(), teacher, labels)?;
        let (_, grads) = open.backward(cache, loss.dlogits)?;
        let mut wanted = Vec::new();
        for (layer, ((linear, dw), scale)) in self.mlp.linears().zip(grads.dweights()).zip(scales).enumerate()
        {
            for (((out, at), &g), _) in dw.indexed_iter().zip(linear.weight()).filter(|(_, w)| **w == 0.0) {
                wanted.push((g.abs() * scale, (layer, out, at, if g > 0.0 { -1 } else { 1 })));
            }
        }
        wanted.sort_by(|a, b| b.0.total_cmp(&a.0));
        Ok(wanted.into_iter().take(WANTED).map(|(_, place)| place).collect())
    }
}

/// The same network with another first weight, `inputs` wide.
fn with_first(
    mlp: &Mlp<f32>,
    inputs: usize,
    change: impl Fn(ArrayView2<'_, f32>) -> Array2<f32>,
) -> Result<Mlp<f32>> {
    let mut layers = Vec::new();
    for (index, linear) in mlp.linears().enumerate() {
        if index > 0 {
            layers.push(Layer::Activation(Activation::Relu));
        }
        let weight = if index == 0 { change(linear.weight()) } else { linear.weight().to_owned() };
        let mask = Mask::new(weight.mapv(|w| w != 0.0));
        let mut linear = Linear::new(weight, linear.bias().map(|bias| bias.to_owned()))?;
        linear.set_mask(mask)?;
        layers.push(Layer::Linear(linear));
    }
    Mlp::from_layers(inputs, layers)
}

/// The same network, with dropout of this `rate` before each linear layer.
fn with_dropout(mlp: &Mlp<f32>, rate: f64) -> Result<Mlp<f32>> {
    let kept = mlp.layers().iter().filter(|layer| !matches!(layer, Layer::Dropout(_)));
    let mut layers = Vec::new();
    for layer in kept {
        if rate > 0.0 && matches!(layer, Layer::Linear(_)) {
            layers.push(Layer::Dropout(Dropout::new(rate)?));
        }
        layers.push(layer.clone());
    }
    Mlp::from_layers(mlp.inputs(), layers)
}
