//! One step of a call: an operation that fills a buffer, and what happens to the buffer in place.

use ndarray::ArrayViewMut1;

use super::element::Element;
use super::format::{Batch, Target};
use super::linear::Linear;
use super::workspace::Tools;
use crate::error::Result;
use crate::kernel::{Grid, Isa, MatrixMut, Pool, dequantize, quantize};
use crate::nn::Activation;
use crate::normalize::LayerNorm;
use crate::quantize::QuantParams;

/// An operation, then what is done in place, in this order.
#[derive(Clone, Debug)]
pub(super) struct Stage<F> {
    pub(super) op: Op<F>,
    pub(super) post: Vec<Post<F>>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Whether codes come out.
    pub(super) codes: bool,
}

/// From one buffer to another.
#[derive(Clone, Debug)]
pub(super) enum Op<F> {
    /// Numbers to the same numbers.
    Copy,
    /// Numbers to codes.
    Quantize(QuantParams<f32>),
    /// Codes to numbers.
    Dequantize(QuantParams<f32>),
    /// Numbers to numbers, or codes to either.
    Linear(Box<Linear<F>>),
}

/// In place.
#[derive(Clone, Debug)]
pub(super) enum Post<F> {
    Activation(Activation),
    Affine {
        scale: Vec<F>,
        shift: Vec<F>,
    },
    LayerNorm(LayerNorm<F>),
    /// Codes to codes: a function that was computed for all of them.
    Table(Box<[u8; 256]>),
}

impl<F: Element> Stage<F> {
    /// Runs it on as many rows as `out` has.
    pub(super) fn run(
        &self,
        isa: Isa,
        pool: &Pool,
        x: Batch<'_, F>,
        mut out: Target<'_, F>,
        tools: &mut Tools<F>,
    ) -> Result<()> {
        match (&self.op, x, &mut out) {
            (Op::Copy, Batch::Float(x), Target::Float(out)) => {
                each_row(x, self.inputs, out, |x, out| out.copy_from_slice(x));
            }
            (Op::Quantize(params), Batch::Float(x), Target::Codes(out)) => {
                let scale = F::of(f64::from(params.scale));
                let grid = Grid { scale, zero_point: params.zero_point, low: 0, high: 255 };
                each_row(x, self.inputs, out, |x, out| quantize(isa, x, grid, out));
            }
            (Op::Dequantize(params), Batch::Codes(x), Target::Float(out)) => {
                let scale = F::of(f64::from(params.scale));
                each_row(x, self.inputs, out, |x, out| dequantize(isa, x, scale, params.zero_point, out));
            }
            (Op::Linear(linear), Batch::Float(x), Target::Float(out)) => {
                linear.run_float(isa, pool, x, out.reborrow(), tools);
            }
            (Op::Linear(linear), Batch::Codes(x), Target::Float(out)) => {
                linear.run_codes(isa, pool, x, Target::Float(out.reborrow()), tools);
            }
            (Op::Linear(linear), Batch::Codes(x), Target::Codes(out)) => {
                linear.run_codes(isa, pool, x, Target::Codes(out.reborrow()), tools);
            }
            // The machine joins stages of agreeing types.
            _ => {}
        }
        self.post.iter().try_for_each(|post| post.run(&mut out))
    }
}

impl<F: Element> Post<F> {
    fn run(&self, out: &mut Target<'_, F>) -> Result<()> {
        match out {
            Target::Float(out) => (0..out.rows()).try_for_each(|i| self.run_row(out.row_mut(i))),
            Target::Codes(out) => {
                if let Self::Table(table) = self {
                    for i in 0..out.rows() {
                        out.row_mut(i).iter_mut().for_each(|code| *code = table[usize::from(*code)]);
                    }
                }
                Ok(())
            }
        }
    }

    fn run_row(&self, row: &mut [F]) -> Result<()> {
        match self {
            Self::Activation(activation) => activation.apply_to(ArrayViewMut1::from(row)),
            Self::Affine { scale, shift } => {
                for ((y, &scale), &shift) in row.iter_mut().zip(scale).zip(shift) {
                    *y = *y * scale + shift;
                }
            }
            Self::LayerNorm(norm) => norm.normalize_row(row)?,
            Self::Table(_) => {}
        }
        Ok(())
    }
}

fn each_row<A, B>(x: &[A], inputs: usize, out: &mut MatrixMut<'_, B>, mut f: impl FnMut(&[A], &mut [B])) {
    for (i, x) in x.chunks_exact(inputs.max(1)).enumerate() {
        f(x, out.row_mut(i));
    }
}

/// The codes of an activation, for every code that can come.
pub(super) fn table(
    activation: Activation,
    before: QuantParams<f32>,
    after: QuantParams<f32>,
) -> Box<[u8; 256]> {
    let isa = Isa::Scalar;
    let codes: [u8; 256] = std::array::from_fn(|code| code as u8);
    let mut numbers = [0.0f32; 256];
    dequantize(isa, &codes, before.scale, before.zero_point, &mut numbers);
    activation.apply_to(ArrayViewMut1::from(&mut numbers[..]));
    let mut table = Box::new([0; 256]);
    let grid = Grid { scale: after.scale, zero_point: after.zero_point, low: 0, high: 255 };
    quantize(isa, &numbers, grid, &mut table[..]);
    table
}
