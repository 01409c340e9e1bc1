//! A linear layer ready to run: packed weights, and what becomes of the sums.

use super::element::Element;
use super::format::{Format, Target};
use super::integer::{CodeWeights, PANEL, dense, parts, two_four, warm};
use super::recipe::{self, Output, Sums, Weights};
use super::workspace::{Tools, lock, room};
use crate::kernel::{
    Codes, Epilogue, Fused, Grid, Input, Isa, Matrix, MatrixMut, PackedI8, PackedPalette, PackedReal, Pool,
    SparseRows, Tail, TwoOfFour, min_max, multiply, multiply_palette, quantize,
};
use crate::nn::Activation;
use crate::quantize::{QuantParams, dynamic_scale};

/// Packed weights.
#[derive(Clone, Debug)]
pub(super) enum Linear<F> {
    Dense {
        weights: PackedReal<F>,
        bias: Option<Vec<F>>,
        activation: Fused,
    },
    Sparse {
        weights: Box<SparseRows<F>>,
        bias: Option<Vec<F>>,
        activation: Fused,
    },
    TwoFour {
        weights: TwoOfFour<F>,
        bias: Option<Vec<F>>,
        activation: Fused,
    },
    Palette {
        weights: PackedPalette<F>,
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

/// Weights as they are stored.
pub(super) enum Unpacked<F> {
    Float(Vec<F>),
    Codes(Vec<i8>),
}

/// What becomes of the sums of a static layer.
#[derive(Clone, Debug)]
pub(super) enum Finish {
    Float { input_scale: f32, scale: Vec<f32>, activation: Fused },
    Codes { multiplier: Vec<f32>, zero_point: u8, low: u8, high: u8 },
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
                weights: Box::new(SparseRows::new(isa, weight, outputs, inputs)),
                bias: bias.clone(),
                activation,
            },
            Weights::Float { weight, bias } => {
                let bias = bias.clone();
                let palette = match layer.format {
                    Format::Palette => PackedPalette::new(weight, outputs, inputs),
                    _ => None,
                };
                if let Some(weights) = palette {
                    return Self::Palette { weights, bias, activation };
                }
                match two_four(layer.format, || TwoOfFour::new(isa, weight, outputs, inputs)) {
                    Some(weights) => Self::TwoFour { weights, bias, activation },
                    None => {
                        let weights = PackedReal::new(Matrix::new(weight, outputs, inputs));
                        Self::Dense { weights, bias, activation }
                    }
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
                let weights = CodeWeights::new(layer, codes, input.zero_point, bias, isa);
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
            Self::Palette { weights, .. } => weights.size_bytes(),
            Self::Dynamic { weights, .. } => weights.size_bytes(),
            Self::Static { weights, .. } => weights.size_bytes(),
        }
    }

    /// Bytes of the weights that a core multiplies: of a palette those that its codes stand for.
    pub(super) fn multiplied_bytes(&self) -> usize {
        match self {
            Self::Palette { weights, .. } => F::BYTES * weights.inputs() * weights.outputs(),
            _ => self.size_bytes(),
        }
    }

    /// Whether the packed weights tell what was packed, to the bit.
    pub(super) fn can_unpack(&self) -> bool {
        match self {
            Self::Dense { .. } | Self::Palette { .. } | Self::Dynamic { .. } => true,
            Self::Static { weights, .. } => !matches!(weights, CodeWeights::TwoFour(_)),
            // The sign of a zero is gone.
            Self::Sparse { .. } | Self::TwoFour { .. } => false,
        }
    }

    /// The row-major weights that were packed, where they can be told.
    pub(super) fn unpacked(&self) -> Option<Unpacked<F>> {
        match self {
            Self::Dense { weights, .. } => Some(Unpacked::Float(weights.weights())),
            Self::Palette { weights, .. } => Some(Unpacked::Float(weights.weights())),
            Self::Dynamic { weights, .. } => Some(Unpacked::Codes(weights.weights())),
            Self::Static { weights, .. } => weights.unpacked().map(Unpacked::Codes),
            Self::Sparse { .. } | Self::TwoFour { .. } => None,
        }
    }

    /// Partial products, 1 as a rule.
    pub(super) fn parts(&self) -> usize {
        match self {
            Self::Static { weights, .. } => weights.parts(),
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
            Self::Palette { weights, .. } => {
                let panels = 0..weights.together().min(weights.panels());
                let columns = (panels.end * PANEL).min(weights.outputs());
                let (x, mut y) = (vec![F::zero(); rows * weights.inputs()], vec![F::zero(); rows * columns]);
                for (real, palette) in tools.real.iter().zip(&tools.palette) {
                    let (panels, out) = (panels.clone(), MatrixMut::new(&mut y, rows, columns));
                    let scratch = (&mut *lock(real), &mut *lock(palette));
                    multiply_palette(isa, &x, weights, panels, None, Fused::Identity, out, scratch);
                }
            }
            Self::Sparse { weights, .. } => {
                for (rows, batch) in [(1, 1), (rows.min(64), 64)] {
                    let (x, mut y) =
                        (vec![F::zero(); rows * weights.inputs()], vec![F::zero(); rows * weights.outputs()]);
                    let y = MatrixMut::new(&mut y, rows, weights.outputs());
                    let (pool, tail, scratch) = (Pool::single(), Epilogue::default(), &mut tools.sparse);
                    weights.multiply_part(&pool, &x, tail, y, batch, scratch);
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
            Self::Static { weights, .. } => weights.warm(isa, rows, tools),
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
                match parts(isa, pool, rows, weights.size_bytes(), weights.panels()) {
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
            Self::Palette { weights, bias, activation } => {
                let (rows, bias) = (out.rows(), bias.as_deref());
                let count = parts(isa, pool, rows, self.multiplied_bytes(), weights.panels());
                let each = weights.panels().div_ceil(count);
                let (real, palette) = (&tools.real, &tools.palette);
                pool.run_columns(out, each * PANEL, |i, out| {
                    let panels = i * each..((i + 1) * each).min(weights.panels());
                    if let (Some(real), Some(palette)) = (real.get(i), palette.get(i)) {
                        let scratch = (&mut *lock(real), &mut *lock(palette));
                        multiply_palette(isa, x, weights, panels, bias, *activation, out, scratch);
                    }
                });
            }
            Self::Sparse { weights, bias, activation } => {
                let tail = Epilogue { bias: bias.as_deref(), activation: *activation };
                weights.multiply_part(pool, x, tail, out, tools.batch, &mut tools.sparse);
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
            (Finish::Codes { multiplier, zero_point, low, high }, Target::Codes(out)) => {
                let (low, high) = (*low, *high);
                let tail = Tail::Codes { multiplier, zero_point: *zero_point, low, high, out };
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
                let limited = activation.filter(|_| before.is_none());
                let (low, high) = limited.map_or((0, 255), |activation| limits(activation, to));
                Self::Codes { multiplier, zero_point, low, high }
            }
        }
    }
}

/// The lowest and the highest code of an activation. Rounding keeps the order: the code of a clipped number is the clipped
/// code.
pub(super) fn limits(activation: Activation, params: QuantParams<f32>) -> (u8, u8) {
    match activation {
        Activation::Relu => (params.zero_point as u8, 255),
        Activation::Clip { min, max } => (code(min, params), code(max, params)),
        _ => (0, 255),
    }
}

/// The code of a number.
fn code(x: f64, params: QuantParams<f32>) -> u8 {
    let grid = Grid { scale: params.scale, zero_point: params.zero_point, low: 0, high: 255 };
    let mut code = [0];
    quantize(Isa::Scalar, &[x as f32], grid, &mut code);
    code[0]
}

/// ONNX's DynamicQuantizeLinear of one row; a range of nothing, or of too little for a normal scale, gives scale 1.
pub(super) fn dynamic_params((low, high): (f32, f32)) -> (f32, i32) {
    let (low, high) = (low.min(0.0), high.max(0.0));
    let scale = dynamic_scale(low, high);
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
        let wide = &[-3e38, 3e38, 1e38];
        for x in [
            &[0.0f32, 2.0, -3.0, -2.5, 1.34, 0.5][..],
            &[-1.0, 1.0],
            &[3.0, 5.0],
            &[-5.0, -3.0],
            &[0.0],
            wide,
        ] {
            let (_, scale, zero_point) = dynamic_quantize_linear(x);
            assert_eq!(dynamic_params(min_max(Isa::best(), x)), (scale, i32::from(zero_point)), "{x:?}");
        }
        assert_eq!(dynamic_params((f32::INFINITY, f32::NEG_INFINITY)), (1.0, 0));
        assert_eq!(dynamic_params((0.0, f32::MIN_POSITIVE)), (1.0, 0));
    }
}
