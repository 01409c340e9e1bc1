//! A linear layer ready to run: packed weights, and what becomes of the sums.

use std::ops::Range;

use super::bound::{Bound, split};
use super::element::Element;
use super::format::{Format, Target};
use super::machine::CHUNK;
use super::recipe::{self, Output, Sums, Weights};
use super::workspace::{Tools, lock, room};
use crate::kernel::{
    Codes, Epilogue, Fused, Grid, Input, Isa, Matrix, MatrixMut, PackedCodes, PackedI4, PackedI8, PackedReal,
    Pool, SparseCodes, SparseCodesScratch, SparseRows, Step, Tail, TwoOfFour, TwoOfFourCodes, min_max,
    multiply, multiply_codes, quantize,
};
use crate::nn::Activation;

/// Columns that the kernels compute together: the grain at which threads divide a layer.
const PANEL: usize = 32;

/// Below this many nanoseconds of work, by the estimate below, a layer is not worth a second thread.
const WORTH_SHARING: f64 = 40_000.0;

/// Packed weights.
#[derive(Clone, Debug)]
pub(super) enum Linear<F> {
    Dense {
        weights: PackedReal<F>,
        bias: Option<Vec<F>>,
        activation: Fused,
    },
    Sparse {
        weights: SparseRows<F>,
        bias: Option<Vec<F>>,
        activation: Fused,
    },
    TwoFour {
        weights: TwoOfFour<F>,
        bias: Option<Vec<F>>,
        activation: Fused,
    },
    Static {
        weights: CodeWeights,
        zero_point: i32,
        bias: Vec<i32>,
        finish: Finish,
    },
    Dynamic {
        weights: PackedI8,
        scale: Vec<f32>,
        row_sums: Vec<i32>,
        bias: Option<Vec<f32>>,
        activation: Fused,
    },
}

/// Integer weights for one of the kernels.
#[derive(Clone, Debug)]
pub(super) enum CodeWeights {
    I8(PackedI8),
    I4(PackedI4),
    Sparse(SparseCodes),
    TwoFour(TwoOfFourCodes),
    /// Products of parts of the inputs, added in 64 bits.
    Split {
        inputs: usize,
        outputs: usize,
        parts: Vec<(Range<usize>, PackedI8)>,
    },
}

/// What becomes of the sums of a static layer.
#[derive(Clone, Debug)]
pub(super) enum Finish {
    Float { input_scale: f32, scale: Vec<f32>, activation: Fused },
    Codes { multiplier: Vec<f32>, zero_point: u8, low: u8 },
}

/// The activation that a kernel applies itself, and the one that is left to do.
pub(super) fn fused(activation: Option<Activation>) -> (Fused, Option<Activation>) {
    match activation {
        Some(Activation::Relu) => (Fused::Relu, None),
        other => (Fused::Identity, other),
    }
}

impl<F: Element> Linear<F> {
    /// Packs a layer of a checked recipe.
    pub(super) fn new(layer: &recipe::Linear<F>, isa: Isa) -> Self {
        let (outputs, inputs) = (layer.outputs, layer.inputs);
        let activation = fused(layer.activation).0;
        match &layer.weights {
            Weights::Float { weight, bias } if layer.format == Format::Sparse => Self::Sparse {
                weights: SparseRows::new(isa, weight, outputs, inputs),
                bias: bias.clone(),
                activation,
            },
            Weights::Float { weight, bias } => {
                match two_four(layer.format, || TwoOfFour::new(isa, weight, outputs, inputs)) {
                    Some(weights) => Self::TwoFour { weights, bias: bias.clone(), activation },
                    None => Self::Dense {
                        weights: PackedReal::new(Matrix::new(weight, outputs, inputs)),
                        bias: bias.clone(),
                        activation,
                    },
                }
            }
            Weights::Codes { codes, scale, sums: Sums::Dynamic { bias } } => Self::Dynamic {
                weights: PackedI8::new(codes, outputs, inputs),
                scale: scale.clone(),
                row_sums: codes
                    .chunks_exact(inputs)
                    .map(|row| row.iter().map(|&w| i32::from(w)).sum())
                    .collect(),
                bias: bias.clone(),
                activation,
            },
            Weights::Codes { codes, scale, sums: Sums::Static { input, bias, output } } => {
                let bound = Bound::of(codes, inputs, input.zero_point, bias);
                let weights = if !bound.fits() {
                    CodeWeights::split(codes, outputs, inputs, input.zero_point)
                } else if layer.format == Format::SparseInt8 {
                    CodeWeights::Sparse(SparseCodes::new(isa, codes, outputs, inputs))
                } else if layer.format == Format::Int4 {
                    CodeWeights::I4(PackedI4::new(codes, outputs, inputs))
                } else {
                    match two_four(layer.format, || TwoOfFourCodes::new(isa, codes, outputs, inputs)) {
                        Some(weights) => CodeWeights::TwoFour(weights),
                        None => CodeWeights::I8(PackedI8::new(codes, outputs, inputs)),
                    }
                };
                let finish = Finish::new(input.scale, scale, *output, layer.activation);
                Self::Static { weights, zero_point: input.zero_point, bias: bias.clone(), finish }
            }
        }
    }

    /// Bytes that one product reads.
    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Self::Dense { weights, .. } => weights.size_bytes(),
            Self::Sparse { weights, .. } => weights.size_bytes(),
            Self::TwoFour { weights, .. } => weights.size_bytes(),
            Self::Dynamic { weights, .. } => weights.size_bytes(),
            Self::Static { weights, .. } => match weights {
                CodeWeights::I8(weights) => weights.size_bytes(),
                CodeWeights::I4(weights) => weights.size_bytes(),
                CodeWeights::Sparse(weights) => weights.size_bytes(),
                CodeWeights::TwoFour(weights) => weights.size_bytes(),
                CodeWeights::Split { parts, .. } => parts.iter().map(|(_, part)| part.size_bytes()).sum(),
            },
        }
    }

    /// Partial products, 1 as a rule.
    pub(super) fn parts(&self) -> usize {
        match self {
            Self::Static { weights: CodeWeights::Split { parts, .. }, .. } => parts.len(),
            _ => 1,
        }
    }

    /// Grows the memory of a lane to what `rows` rows need, by products with the first outputs alone.
    pub(super) fn warm(&self, isa: Isa, rows: usize, tools: &mut Tools<F>) {
        match self {
            Self::Dense { weights, .. } => {
                let columns = weights.outputs().min(PANEL);
                let (x, mut y) = (vec![F::zero(); rows * weights.inputs()], vec![F::zero(); rows * columns]);
                for scratch in &mut tools.real {
                    let (x, y) =
                        (Matrix::new(&x, rows, weights.inputs()), MatrixMut::new(&mut y, rows, columns));
                    multiply(isa, x, weights, 0..1, None, Fused::Identity, y, &mut lock(scratch));
                }
            }
            Self::Sparse { weights, .. } => {
                for rows in [1, rows.min(64)] {
                    let (x, mut y) =
                        (vec![F::zero(); rows * weights.inputs()], vec![F::zero(); rows * weights.outputs()]);
                    let y = MatrixMut::new(&mut y, rows, weights.outputs());
                    weights.multiply(&Pool::single(), &x, Epilogue::default(), y, &mut tools.sparse);
                }
            }
            Self::TwoFour { .. } => {}
            Self::Dynamic { weights, .. } => {
                room(&mut tools.row_codes, rows * weights.inputs());
                room(&mut tools.sums, rows * weights.outputs());
                room(&mut tools.narrow, rows * weights.outputs().max(weights.inputs()));
                tools.row_params.reserve(rows);
                warm(isa, rows, weights, tools);
            }
            Self::Static { weights, .. } => match weights {
                CodeWeights::I8(weights) => warm(isa, rows, weights, tools),
                CodeWeights::I4(weights) => warm(isa, rows, weights, tools),
                CodeWeights::Sparse(sparse) => {
                    warm_sparse(
                        rows.min(64),
                        (sparse.inputs(), sparse.outputs()),
                        tools,
                        |input, tail, scratch| {
                            sparse.multiply(&Pool::single(), input, tail, scratch);
                        },
                    );
                }
                CodeWeights::TwoFour(pairs) => {
                    warm_sparse(rows, (pairs.inputs(), pairs.outputs()), tools, |input, tail, scratch| {
                        pairs.multiply(&Pool::single(), input, tail, scratch);
                    });
                }
                CodeWeights::Split { inputs, outputs, parts } => {
                    room(&mut tools.row_codes, rows * inputs);
                    room(&mut tools.sums, rows * outputs);
                    room(&mut tools.wide_sums, rows * outputs);
                    parts.iter().for_each(|(_, part)| warm(isa, rows, part, tools));
                }
            },
        }
    }

    /// Numbers to numbers.
    pub(super) fn run_float(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &[F],
        mut out: MatrixMut<'_, F>,
        tools: &mut Tools<F>,
    ) {
        match self {
            Self::Dense { weights, bias, activation } => {
                let (rows, bias) = (out.rows(), bias.as_deref());
                let x = Matrix::new(x, rows, weights.inputs());
                match parts(pool, rows, weights.size_bytes(), weights.panels()) {
                    1 => {
                        if let Some(scratch) = tools.real.first_mut() {
                            let scratch = scratch.get_mut().unwrap_or_else(|poison| poison.into_inner());
                            multiply(isa, x, weights, 0..weights.panels(), bias, *activation, out, scratch);
                        }
                    }
                    count => {
                        let each = weights.panels().div_ceil(count);
                        let scratch = &tools.real;
                        pool.run_columns(out, each * PANEL, |i, out| {
                            let panels = i * each..((i + 1) * each).min(weights.panels());
                            if let Some(scratch) = scratch.get(i) {
                                multiply(isa, x, weights, panels, bias, *activation, out, &mut lock(scratch));
                            }
                        });
                    }
                }
            }
            Self::Sparse { weights, bias, activation } => {
                let tail = Epilogue { bias: bias.as_deref(), activation: *activation };
                weights.multiply(pool, x, tail, out, &mut tools.sparse);
            }
            Self::TwoFour { weights, bias, activation } => {
                let tail = Epilogue { bias: bias.as_deref(), activation: *activation };
                weights.multiply(pool, x, tail, out);
            }
            Self::Dynamic { .. } => self.run_dynamic(isa, pool, x, out, tools),
            // Stages are made so that it gets codes.
            Self::Static { .. } => (0..out.rows()).for_each(|i| out.row_mut(i).fill(F::nan())),
        }
    }

    /// Codes to numbers or codes.
    pub(super) fn run_codes(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &[u8],
        out: Target<'_, F>,
        tools: &mut Tools<F>,
    ) {
        let Self::Static { weights, zero_point, bias, finish } = self else { return };
        let input = Input { codes: Codes::U8(x), zero_point: *zero_point, bias: Some(bias) };
        match (finish, out) {
            (Finish::Codes { multiplier, zero_point, low }, Target::Codes(out)) => {
                let tail = Tail::Codes { multiplier, zero_point: *zero_point, low: *low, high: 255, out };
                weights.run(isa, pool, input, tail, tools);
            }
            (Finish::Float { input_scale, scale, activation }, Target::Float(out)) => {
                let mut narrow = std::mem::take(&mut tools.narrow);
                F::fill(out, &mut narrow, |out| {
                    let (input_scale, activation) = (*input_scale, *activation);
                    let tail = Tail::Float { input_scale, scale, bias: None, activation, out };
                    weights.run(isa, pool, input, tail, tools);
                });
                tools.narrow = narrow;
            }
            // Stages are made so that these agree.
            _ => {}
        }
    }

    /// Each row quantized by its own range. A row gives the same alone and in a batch.
    fn run_dynamic(&self, isa: Isa, pool: &Pool, x: &[F], out: MatrixMut<'_, F>, tools: &mut Tools<F>) {
        let Self::Dynamic { weights, scale, row_sums, bias, activation } = self else { return };
        let (rows, inputs, outputs) = (out.rows(), weights.inputs(), weights.outputs());
        let mut row_codes = std::mem::take(&mut tools.row_codes);
        let mut row_params = std::mem::take(&mut tools.row_params);
        let mut narrow = std::mem::take(&mut tools.narrow);
        let codes = room(&mut row_codes, rows * inputs);
        row_params.clear();
        for (x, codes) in x.chunks_exact(inputs).zip(codes.chunks_exact_mut(inputs)) {
            let x = F::narrow(x, &mut narrow);
            let (scale, zero_point) = dynamic_params(min_max(isa, x));
            quantize(isa, x, Grid { scale, zero_point, low: 0, high: 255 }, codes);
            row_params.push((scale, zero_point));
        }
        let codes = Codes::U8(codes);
        F::fill(out, &mut narrow, |mut out| match row_params[..] {
            [(input_scale, zero_point)] => {
                let input = Input { codes, zero_point, bias: None };
                let (bias, activation) = (bias.as_deref(), *activation);
                let tail = Tail::Float { input_scale, scale, bias, activation, out };
                dense(isa, pool, input, weights, tail, &mut tools.codes);
            }
            _ => {
                let mut memory = std::mem::take(&mut tools.sums);
                let sums = room(&mut memory, rows * outputs);
                let input = Input { codes, zero_point: 0, bias: None };
                let tail = Tail::Sums { out: MatrixMut::new(sums, rows, outputs) };
                dense(isa, pool, input, weights, tail, &mut tools.codes);
                for (i, (sums, &(input_scale, zero_point))) in
                    sums.chunks_exact(outputs).zip(&row_params).enumerate()
                {
                    // The same three roundings as the kernel's.
                    let columns = sums.iter().zip(row_sums).zip(scale);
                    let out = out.row_mut(i);
                    for (y, ((&sum, &row_sum), &scale)) in out.iter_mut().zip(columns) {
                        let sum = sum.wrapping_sub(row_sum.wrapping_mul(zero_point));
                        *y = sum as f32 * (scale * input_scale);
                    }
                    match bias {
                        Some(bias) => out.iter_mut().zip(bias).for_each(|(y, &bias)| *y += bias),
                        None => out.iter_mut().for_each(|y| *y += 0.0),
                    }
                    if *activation == Fused::Relu {
                        crate::kernel::relu(isa, out);
                    }
                }
                tools.sums = memory;
            }
        });
        (tools.row_codes, tools.row_params, tools.narrow) = (row_codes, row_params, narrow);
    }
}

/// Packed 2:4 weights where the format says so.
fn two_four<T>(format: Format, pack: impl FnOnce() -> Option<T>) -> Option<T> {
    if format.is_two_four() { pack() } else { None }
}

impl Finish {
    fn new(input_scale: f32, scale: &[f32], output: Output, activation: Option<Activation>) -> Self {
        match output {
            Output::Float => {
                Self::Float { input_scale, scale: scale.to_vec(), activation: fused(activation).0 }
            }
            Output::Codes { before, after } => {
                let to = before.unwrap_or(after);
                // ONNX Runtime's factor: each product and quotient rounded to f32.
                let multiplier = scale.iter().map(|&scale| input_scale * scale / to.scale).collect();
                let zero_point = to.zero_point as u8;
                let low =
                    if before.is_none() && activation == Some(Activation::Relu) { zero_point } else { 0 };
                Self::Codes { multiplier, zero_point, low }
            }
        }
    }
}

impl CodeWeights {
    fn split(codes: &[i8], outputs: usize, inputs: usize, zero_point: i32) -> Self {
        let part = |range: Range<usize>| {
            let columns = codes.chunks_exact(inputs).flat_map(|row| &row[range.clone()]).copied();
            let part = PackedI8::new(&columns.collect::<Vec<_>>(), outputs, range.len());
            (range, part)
        };
        Self::Split {
            inputs,
            outputs,
            parts: split(codes, inputs, zero_point).into_iter().map(part).collect(),
        }
    }

    fn run<F: Element>(&self, isa: Isa, pool: &Pool, input: Input<'_>, tail: Tail<'_>, tools: &mut Tools<F>) {
        match self {
            Self::I8(weights) => dense(isa, pool, input, weights, tail, &mut tools.codes),
            Self::I4(weights) => dense(isa, pool, input, weights, tail, &mut tools.codes),
            Self::Sparse(weights) => weights.multiply(pool, input, tail, &mut tools.sparse_codes),
            Self::TwoFour(weights) => weights.multiply(pool, input, tail, &mut tools.sparse_codes),
            Self::Split { inputs, outputs, parts } => {
                run_split(isa, pool, input, (*inputs, *outputs), parts, tail, tools);
            }
        }
    }
}

/// The product with packed weights, on as many threads as pay.
fn dense<S: Step>(
    isa: Isa,
    pool: &Pool,
    input: Input<'_>,
    weights: &PackedCodes<S>,
    tail: Tail<'_>,
    scratch: &mut [std::sync::Mutex<crate::kernel::Scratch8>],
) {
    let rows = match input.codes {
        Codes::U8(codes) => codes.len() / weights.inputs().max(1),
        Codes::I8(codes) => codes.len() / weights.inputs().max(1),
    };
    let panels = weights.panels();
    match parts(pool, rows, weights.size_bytes(), panels) {
        1 => {
            if let Some(scratch) = scratch.first_mut() {
                let scratch = scratch.get_mut().unwrap_or_else(|poison| poison.into_inner());
                multiply_codes(isa, input, weights, 0..panels, tail, scratch);
            }
        }
        count => {
            let each = panels.div_ceil(count);
            let scratch = &*scratch;
            tail.share(pool, each * PANEL, |i, tail| {
                if let Some(scratch) = scratch.get(i) {
                    let panels = i * each..((i + 1) * each).min(panels);
                    multiply_codes(isa, input, weights, panels, tail, &mut lock(scratch));
                }
            });
        }
    }
}

/// The same of a sparse product, for one row and for many, which go different ways.
fn warm_sparse<F: Element>(
    rows: usize,
    (inputs, outputs): (usize, usize),
    tools: &mut Tools<F>,
    multiply: impl Fn(Input<'_>, Tail<'_>, &mut SparseCodesScratch),
) {
    room(&mut tools.narrow, CHUNK * outputs);
    for rows in [1, rows] {
        let (x, mut y) = (vec![0; rows * inputs], vec![0; rows * outputs]);
        let input = Input { codes: Codes::U8(&x), zero_point: 0, bias: None };
        let tail = Tail::Sums { out: MatrixMut::new(&mut y, rows, outputs) };
        multiply(input, tail, &mut tools.sparse_codes);
    }
}

/// Grows the memory of a dense product, and that of its outputs on their way to `f64`.
fn warm<F: Element, S: Step>(isa: Isa, rows: usize, weights: &PackedCodes<S>, tools: &mut Tools<F>) {
    room(&mut tools.narrow, rows * weights.outputs());
    let columns = weights.outputs().min(PANEL);
    let (x, mut y) = (vec![0; rows * weights.inputs()], vec![0; rows * columns]);
    for scratch in &mut tools.codes {
        let input = Input { codes: Codes::U8(&x), zero_point: 0, bias: None };
        let tail = Tail::Sums { out: MatrixMut::new(&mut y, rows, columns) };
        multiply_codes(isa, input, weights, 0..1, tail, &mut lock(scratch));
    }
}

/// How many threads a layer pays for. Its time by a rough count: a core multiplies weights of 228 bytes in a nanosecond
/// (57 of f32, 228 codes), or waits for them to come from a cache at 60, whichever takes longer.
fn parts(pool: &Pool, rows: usize, bytes: usize, panels: usize) -> usize {
    if pool.threads() == 1 {
        return 1;
    }
    let bytes = bytes as f64;
    let nanoseconds = (bytes * rows as f64 / 228.0).max(bytes / 60.0);
    if nanoseconds < WORTH_SHARING { 1 } else { pool.threads().min(panels).max(1) }
}

/// Partial products over ranges of the inputs, added in 64 bits: the plain way, for layers that 32 bits cannot hold.
fn run_split<F: Element>(
    isa: Isa,
    pool: &Pool,
    input: Input<'_>,
    (inputs, outputs): (usize, usize),
    parts: &[(Range<usize>, PackedI8)],
    mut tail: Tail<'_>,
    tools: &mut Tools<F>,
) {
    let Codes::U8(codes) = input.codes else { return };
    let rows = codes.len() / inputs.max(1);
    let Tools { codes: scratch, row_codes, sums, wide_sums, .. } = tools;
    let wide = room(wide_sums, rows * outputs);
    wide.fill(0);
    for (range, weights) in parts {
        let part = room(row_codes, rows * range.len());
        for (to, from) in part.chunks_exact_mut(range.len()).zip(codes.chunks_exact(inputs)) {
            to.copy_from_slice(&from[range.clone()]);
        }
        let sums = room(sums, rows * outputs);
        let out = MatrixMut::new(sums, rows, outputs);
        let input = Input { codes: Codes::U8(part), zero_point: input.zero_point, bias: None };
        dense(isa, pool, input, weights, Tail::Sums { out }, scratch);
        wide.iter_mut().zip(&*sums).for_each(|(wide, &sum)| *wide += i64::from(sum));
    }
    for (i, wide) in wide.chunks_exact_mut(outputs).enumerate() {
        if let Some(bias) = input.bias {
            wide.iter_mut().zip(bias).for_each(|(wide, &bias)| *wide += i64::from(bias));
        }
        match &mut tail {
            Tail::Float { input_scale, scale, activation, out, .. } => {
                for ((y, &sum), &scale) in out.row_mut(i).iter_mut().zip(&*wide).zip(*scale) {
                    *y = sum as f32 * (scale * *input_scale);
                    if *activation == Fused::Relu && *y < 0.0 {
                        *y = 0.0;
                    }
                }
            }
            Tail::Codes { multiplier, zero_point, low, high, out } => {
                for ((code, &sum), &multiplier) in out.row_mut(i).iter_mut().zip(&*wide).zip(*multiplier) {
                    let real = (sum as f32 * multiplier).round_ties_even() + f32::from(*zero_point);
                    *code = real.clamp(f32::from(*low), f32::from(*high)) as u8;
                }
            }
            Tail::Sums { .. } | Tail::Fixed { .. } => {}
        }
    }
}

/// ONNX's DynamicQuantizeLinear of one row; a range of nothing gives scale 1.
pub(super) fn dynamic_params((low, high): (f32, f32)) -> (f32, i32) {
    let (low, high) = (low.min(0.0), high.max(0.0));
    let scale = (high - low) / 255.0;
    if !scale.is_normal() {
        return (1.0, 0);
    }
    (scale, (0.0 - low / scale).clamp(0.0, 255.0).round_ties_even() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::dynamic_quantize_linear;

    #[test]
    fn the_scale_of_a_row_is_that_of_onnx() {
        for x in [&[0.0f32, 2.0, -3.0, -2.5, 1.34, 0.5][..], &[-1.0, 1.0], &[3.0, 5.0], &[-5.0, -3.0], &[0.0]]
        {
            let (_, scale, zero_point) = dynamic_quantize_linear(x);
            assert_eq!(dynamic_params(min_max(Isa::best(), x)), (scale, i32::from(zero_point)), "{x:?}");
        }
        assert_eq!(dynamic_params((f32::INFINITY, f32::NEG_INFINITY)), (1.0, 0));
        assert_eq!(dynamic_params((-f32::MAX, f32::MAX)), (1.0, 0));
    }
}
