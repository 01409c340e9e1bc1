//! From floats to few signed codes, without a jump: more and more weights are put on a grid and held there, the large ones
//! first, while those that are still free learn to make up for it.
//!
//! ```text
//! w = scale * code,   code in -levels..=-1 and 1..=levels;   zero belongs to the mask
//! ```
//!
//! Zhou et al., "Incremental network quantization", 2017. A frozen weight moves only with its scale, by the mean of what the
//! optimizer wanted of all frozen weights. Biases slide from what they are to multiples of a power of two, with a gradient
//! that goes straight through.

use std::ops::ControlFlow;

use trimnet::ndarray::{Array1, Array2, ArrayView2, Zip};
use trimnet::nn::{Callback, Linear, Mlp, Step};
use trimnet::{Mask, Result};

/// A free weight below this share of the scale when its time comes is dropped: less so once codes were weighed one by one.
const DEAD: f32 = 0.4;
const DEAD_AGAIN: f32 = 0.15;

/// The grid of biases has about this many steps to each side.
const BIAS_STEPS: f32 = 16.0;

/// Masks and codes change every so many steps.
const EVERY: usize = 20;

/// One layer on its way to the grid.
struct Grid {
    levels: f32,
    dead: f32,
    scale: f32,
    /// 0 where a weight is free or masked.
    codes: Array2<f32>,
    bias: Array1<f32>,
    used_bias: Array1<f32>,
}

impl Grid {
    fn new(linear: &Linear<f32>, levels: i32, scale: Option<f32>) -> Self {
        let levels = levels as f32;
        let dead = if scale.is_some() { DEAD_AGAIN } else { DEAD };
        let kept = linear.weight().iter().filter(|&&w| w != 0.0).count().max(1) as f32;
        let mean = linear.weight().iter().map(|w| w.abs()).sum::<f32>() / kept;
        let scale = scale.unwrap_or_else(|| {
            (0..50).fold(mean * 2.0 / (levels + 1.0), |s, _| fit(linear.weight(), s, levels))
        });
        let bias = linear.bias().map_or_else(|| Array1::zeros(linear.outputs()), |bias| bias.to_owned());
        Self {
            levels,
            dead,
            scale,
            codes: Array2::zeros(linear.weight().raw_dim()),
            used_bias: bias.clone(),
            bias,
        }
    }

    /// After a step of the optimizer: what is frozen goes back to the grid.
    fn hold(&mut self, w: &mut Array2<f32>) {
        let (mut up, mut down) = (0.0, 0.0);
        Zip::from(&self.codes).and(&*w).for_each(|&code, &now| {
            up += (now - code * self.scale) * code;
            down += code * code;
        });
        if down > 0.0 {
            self.scale += up / down;
        } else {
            self.scale = fit(w.view(), self.scale, self.levels);
        }
        Zip::from(w).and(&self.codes).for_each(|w, &code| {
            if code != 0.0 {
                *w = code * self.scale
            }
        });
    }

    /// Freezes the largest free weights until a `share` of all is frozen.
    fn freeze(&mut self, w: &mut Array2<f32>, share: f64) {
        let free = |(&w, &code): (&f32, &f32)| (w != 0.0 && code == 0.0).then_some(w.abs());
        let mut sizes: Vec<f32> = w.iter().zip(&self.codes).filter_map(free).collect();
        let kept = w.iter().filter(|&&w| w != 0.0).count();
        let left = ((1.0 - share) * kept as f64) as usize;
        if left >= sizes.len() {
            return;
        }
        let (_, &mut smallest, _) = sizes.select_nth_unstable_by(left, f32::total_cmp);
        let smallest = if left == 0 { 0.0 } else { smallest };
        let (scale, levels, dead) = (self.scale, self.levels, self.dead);
        Zip::from(w).and(&mut self.codes).for_each(|w, code| {
            if *w != 0.0 && *code == 0.0 && w.abs() >= smallest {
                let size = w.abs() / scale;
                *code = if size < dead { 0.0 } else { size.round().clamp(1.0, levels).copysign(*w) };
                *w = *code * scale;
            }
        });
    }

    fn round_bias(&mut self, now: Array1<f32>, blend: f32) -> &Array1<f32> {
        Zip::from(&mut self.bias)
            .and(&self.used_bias)
            .and(&now)
            .for_each(|bias, used, now| *bias += now - used);
        let largest = self.bias.iter().fold(0.0_f32, |most, b| most.max(b.abs()));
        let step = (largest / BIAS_STEPS).max(1e-6).log2().ceil().exp2();
        Zip::from(&mut self.used_bias)
            .and(&self.bias)
            .for_each(|used, &b| *used = b + blend * ((b / step).round() * step - b));
        &self.used_bias
    }
}

/// The scale of least squared error for the codes that `scale` gives.
fn fit(w: ArrayView2<'_, f32>, scale: f32, levels: f32) -> f32 {
    let (mut up, mut down) = (0.0, 0.0);
    for size in w.iter().map(|w| w.abs()).filter(|&w| w != 0.0) {
        let code = (size / scale).round().clamp(1.0, levels);
        up += size * code;
        down += code * code;
    }
    if down > 0.0 && up > 0.0 { up / down } else { scale }
}

/// Freezes a network in the course of one or more fits, whose steps it counts over the whole plan.
pub struct Freezing {
    grids: Vec<Grid>,
    /// Weights begin and end to freeze, and biases end to slide, at these shares of the plan.
    begin: f64,
    end: f64,
    /// Steps before the fit at hand, and of the plan.
    done: usize,
    steps: usize,
}

impl Freezing {
    /// For a plan of `steps`. `scales` are those to go on with, if the network was frozen before.
    pub fn new(mlp: &Mlp<f32>, levels: i32, scales: Option<&[f32]>, steps: usize) -> Self {
        let grid = |(index, linear): (usize, &Linear<f32>)| {
            Grid::new(linear, levels, scales.and_then(|scales| scales.get(index).copied()))
        };
        Self { grids: mlp.linears().enumerate().map(grid).collect(), begin: 0.1, end: 0.8, done: 0, steps }
    }

    /// Goes on with everything frozen: only scales and biases learn.
    pub fn hold(&mut self) {
        (self.begin, self.end) = (-1.0, 0.0);
    }

    /// The step of each layer's grid.
    pub fn scales(&self) -> Vec<f32> {
        self.grids.iter().map(|grid| grid.scale).collect()
    }

    /// What the weights are once all are frozen.
    pub fn codes(&self) -> Vec<Array2<i32>> {
        self.grids.iter().map(|grid| grid.codes.mapv(|code| code as i32)).collect()
    }

    /// Puts other codes in the place of the frozen ones, into the network too.
    pub fn set_codes(&mut self, mlp: &mut Mlp<f32>, codes: &[Array2<i32>]) -> Result<()> {
        for ((grid, linear), codes) in self.grids.iter_mut().zip(mlp.linears_mut()).zip(codes) {
            grid.codes = codes.mapv(|code| code as f32);
            linear.set_mask(Mask::new(codes.mapv(|code| code != 0)))?;
            linear.set_weight(grid.codes.mapv(|code| code * grid.scale))?;
        }
        Ok(())
    }
}

impl Callback<f32> for Freezing {
    fn on_step(&mut self, mlp: &mut Mlp<f32>, step: &Step) -> Result<ControlFlow<()>> {
        self.done += 1;
        let at = self.done as f64 / self.steps as f64;
        let share = ((at - self.begin) / (self.end - self.begin)).clamp(0.0, 1.0);
        let due = self.done.is_multiple_of(EVERY) || step.step + 1 == step.steps;
        for (grid, linear) in self.grids.iter_mut().zip(mlp.linears_mut()) {
            let mut w = linear.weight().to_owned();
            grid.hold(&mut w);
            if due && share > 0.0 {
                grid.freeze(&mut w, share);
                linear.set_mask(Mask::new(w.mapv(|w| w != 0.0)))?;
            }
            linear.set_weight(w)?;
            if let Some(bias) = linear.bias().map(|bias| bias.to_owned()) {
                let blend = ((share - 0.6) / 0.4).clamp(0.0, 1.0) as f32;
                linear.set_bias(Some(grid.round_bias(bias, blend).clone()))?;
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
