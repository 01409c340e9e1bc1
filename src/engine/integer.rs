//! Integer products: weights packed for one of the kernels, on as many threads as pay, exact whatever the layer.

use std::ops::Range;
use std::sync::Mutex;

use super::bound::{Bound, split};
use super::element::Element;
use super::format::Format;
use super::machine::CHUNK;
use super::recipe;
use super::workspace::{Tools, lock, room};
use crate::kernel::{
    Codes, Fused, Input, Isa, MatrixMut, PackedCodes, PackedI4, PackedI8, Pool, Scratch8, SparseCodes,
    SparseCodesScratch, Step, Tail, TwoOfFourCodes, multiply_codes,
};

/// Columns that the kernels compute together: the grain at which threads divide a layer.
pub(super) const PANEL: usize = 32;

/// Integer weights for one of the kernels.
#[derive(Clone, Debug)]
pub(super) enum CodeWeights {
    I8(PackedI8),
    I4(PackedI4),
    Sparse(Box<SparseCodes>),
    TwoFour(TwoOfFourCodes),
    /// Products of parts of the inputs, added in 64 bits.
    Split {
        inputs: usize,
        outputs: usize,
        parts: Vec<(Range<usize>, PackedI8)>,
    },
}

impl CodeWeights {
    /// Packs weights of a static layer, in parts if a sum could leave 32 bits.
    pub(super) fn new<F>(
        layer: &recipe::Linear<F>,
        codes: &[i8],
        zero_point: i32,
        bias: &[i32],
        isa: Isa,
    ) -> Self {
        let (outputs, inputs) = (layer.outputs, layer.inputs);
        if !Bound::of(codes, inputs, zero_point, bias).fits() {
            return Self::split(codes, outputs, inputs, zero_point);
        }
        match layer.format {
            Format::SparseInt8 => Self::Sparse(Box::new(SparseCodes::new(isa, codes, outputs, inputs))),
            Format::Int4 => Self::I4(PackedI4::new(codes, outputs, inputs)),
            format => match two_four(format, || TwoOfFourCodes::new(isa, codes, outputs, inputs)) {
                Some(weights) => Self::TwoFour(weights),
                None => Self::I8(PackedI8::new(codes, outputs, inputs)),
            },
        }
    }

    /// Bytes that one product reads.
    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Self::I8(weights) => weights.size_bytes(),
            Self::I4(weights) => weights.size_bytes(),
            Self::Sparse(weights) => weights.size_bytes(),
            Self::TwoFour(weights) => weights.size_bytes(),
            Self::Split { parts, .. } => parts.iter().map(|(_, part)| part.size_bytes()).sum(),
        }
    }

    /// The row-major codes that were packed; nothing where they cannot be told from the packed ones.
    pub(super) fn unpacked(&self) -> Option<Vec<i8>> {
        match self {
            Self::I8(weights) => Some(weights.weights()),
            Self::I4(weights) => Some(weights.weights()),
            Self::Sparse(weights) => Some(weights.weights()),
            Self::TwoFour(_) => None,
            Self::Split { inputs, outputs, parts } => {
                let mut all = vec![0; inputs * outputs];
                for (range, part) in parts {
                    let rows = all.chunks_exact_mut(*inputs);
                    for (row, part) in rows.zip(part.weights().chunks_exact(range.len())) {
                        row[range.clone()].copy_from_slice(part);
                    }
                }
                Some(all)
            }
        }
    }

    /// Partial products, 1 as a rule.
    pub(super) fn parts(&self) -> usize {
        match self {
            Self::Split { parts, .. } => parts.len(),
            _ => 1,
        }
    }

    /// Grows the memory of a lane to what `rows` rows need.
    pub(super) fn warm<F: Element>(&self, isa: Isa, rows: usize, tools: &mut Tools<F>) {
        match self {
            Self::I8(weights) => warm(isa, rows, weights, tools),
            Self::I4(weights) => warm(isa, rows, weights, tools),
            Self::Sparse(sparse) => {
                warm_sparse(
                    rows.min(64),
                    (sparse.inputs(), sparse.outputs()),
                    tools,
                    |input, tail, scratch| {
                        sparse.multiply(&Pool::single(), input, tail, scratch);
                    },
                );
            }
            Self::TwoFour(pairs) => {
                warm_sparse(rows, (pairs.inputs(), pairs.outputs()), tools, |input, tail, scratch| {
                    pairs.multiply(&Pool::single(), input, tail, scratch);
                });
            }
            Self::Split { inputs, outputs, parts } => {
                room(&mut tools.row_codes, rows * inputs);
                room(&mut tools.sums, rows * outputs);
                room(&mut tools.wide_sums, rows * outputs);
                parts.iter().for_each(|(_, part)| warm(isa, rows, part, tools));
            }
        }
    }

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

    /// Multiplies and sends the sums through `tail`.
    pub(super) fn run<F: Element>(
        &self,
        isa: Isa,
        pool: &Pool,
        input: Input<'_>,
        tail: Tail<'_>,
        tools: &mut Tools<F>,
    ) {
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
pub(super) fn dense<S: Step>(
    isa: Isa,
    pool: &Pool,
    input: Input<'_>,
    weights: &PackedCodes<S>,
    tail: Tail<'_>,
    scratch: &mut [Mutex<Scratch8>],
) {
    let rows = match input.codes {
        Codes::U8(codes) => codes.len() / weights.inputs().max(1),
        Codes::I8(codes) => codes.len() / weights.inputs().max(1),
    };
    let panels = weights.panels();
    match parts(isa, pool, rows, weights.size_bytes(), panels) {
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
pub(super) fn warm<F: Element, S: Step>(
    isa: Isa,
    rows: usize,
    weights: &PackedCodes<S>,
    tools: &mut Tools<F>,
) {
    room(&mut tools.narrow, rows * weights.outputs());
    let columns = weights.outputs().min(PANEL);
    let (x, mut y) = (vec![0; rows * weights.inputs()], vec![0; rows * columns]);
    for scratch in &mut tools.codes {
        let input = Input { codes: Codes::U8(&x), zero_point: 0, bias: None };
        let tail = Tail::Sums { out: MatrixMut::new(&mut y, rows, columns) };
        multiply_codes(isa, input, weights, 0..1, tail, &mut lock(scratch));
    }
}

/// How many threads a layer pays for.
pub(super) fn parts(isa: Isa, pool: &Pool, rows: usize, bytes: usize, panels: usize) -> usize {
    if pool.pays(nanoseconds(isa, bytes, rows)) { pool.threads().min(panels).max(1) } else { 1 }
}

/// The time of a product with so many bytes of weights by a rough count: a core multiplies weights of 228 bytes in a
/// nanosecond (57 of f32, 228 codes), or waits for them to come from a cache at 60, whichever takes longer. Without
/// AVX-512 it is about 120 (40 of f32, 80 codes), and 45.
pub(super) fn nanoseconds(isa: Isa, bytes: usize, rows: usize) -> f64 {
    let (multiplied, read) = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => (120.0, 45.0),
        _ => (228.0, 60.0),
    };
    let bytes = bytes as f64;
    (bytes * rows as f64 / multiplied).max(bytes / read)
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

/// Packed 2:4 weights where the format says so.
pub(super) fn two_four<T>(format: Format, pack: impl FnOnce() -> Option<T>) -> Option<T> {
    if format.is_two_four() { pack() } else { None }
}
