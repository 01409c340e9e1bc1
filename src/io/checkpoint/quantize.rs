//! A matrix as integers, block of rows after block of rows. A row needs nothing from its neighbours.

use std::sync::Mutex;

use ndarray::Array2;

use crate::error::{Error, Result};
use crate::io::safetensors::Dtype;
use crate::io::safetensors::TensorView;
use crate::io::safetensors::compressed::{Packing, pack_row};
use crate::io::safetensors::tensor::{put_floats, take_floats};
use crate::kernel::Pool;
use crate::quantize::{Scheme, UniformQuantizer};
use crate::traits::{Compressed, Compressor};

/// Elements of a block: 1 MB in single precision, small against any budget and large against the cost of a task.
pub(super) const BLOCK: usize = 1 << 18;

/// How a matrix becomes integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Integers {
    pub(super) bits: u8,
    pub(super) group: Option<usize>,
    pub(super) packing: Packing,
}

impl Integers {
    /// Scales in a row.
    pub(super) fn groups(self, inputs: usize) -> usize {
        self.group.map_or(1, |group| inputs / group)
    }

    fn scheme(self) -> Result<Scheme> {
        let scheme = Scheme::symmetric(self.bits)?;
        match self.group {
            None => Ok(scheme.per_channel(0)),
            Some(group) => scheme.per_group(1, group),
        }
    }
}

/// Sums over elements, formed per block and added in the order of the blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ErrorSums {
    pub(super) signal: f64,
    pub(super) noise: f64,
    pub(super) max: f64,
}

impl ErrorSums {
    pub(super) fn add(&mut self, x: f64, error: f64) {
        self.signal += x * x;
        self.noise += error * error;
        self.max = self.max.max(error.abs());
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.signal += other.signal;
        self.noise += other.noise;
        self.max = self.max.max(other.max);
    }

    /// `None` where nothing was lost.
    pub(super) fn sqnr_db(&self) -> Option<f64> {
        let db = 10.0 * (self.signal / self.noise).log10();
        db.is_finite().then_some(db)
    }
}

/// What one block becomes.
struct Block {
    codes: Vec<u8>,
    scales: Vec<u8>,
    errors: ErrorSums,
}

/// Writes codes as part 0 and scales as part 1.
pub(super) fn quantize(
    integers: Integers,
    x: TensorView<'_>,
    pool: &Pool,
    sink: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
) -> Result<ErrorSums> {
    let &[out, inputs] = x.shape() else { return Ok(ErrorSums::default()) };
    let quantizer = UniformQuantizer::new(integers.scheme()?);
    let rows = (BLOCK / inputs.max(1)).max(1);
    let row_bytes = inputs * x.dtype().bits() / 8;
    let mut errors = ErrorSums::default();
    in_order(
        out.div_ceil(rows),
        pool,
        |i| {
            let first = i * rows;
            let bytes = &x.bytes()[first * row_bytes..(first + rows).min(out) * row_bytes];
            block(integers, &quantizer, x.dtype(), inputs, bytes).map_err(|error| match error {
                Error::NotFinite { what, mut index, value } => {
                    index.iter_mut().take(1).for_each(|row| *row += first);
                    Error::NotFinite { what, index, value }
                }
                other => other,
            })
        },
        |block| {
            errors.merge(block.errors);
            sink(0, &block.codes)?;
            sink(1, &block.scales)
        },
    )?;
    Ok(errors)
}

fn block(
    integers: Integers,
    quantizer: &UniformQuantizer,
    dtype: Dtype,
    inputs: usize,
    bytes: &[u8],
) -> Result<Block> {
    let mut values: Vec<f32> = Vec::with_capacity(bytes.len() / (dtype.bits() / 8).max(1));
    take_floats(dtype, bytes, &mut values)?;
    let rows = values.len() / inputs.max(1);
    let x = Array2::from_shape_vec((rows, inputs), values)
        .map_err(|error| Error::Unsupported { what: "a block of rows", reason: error.to_string() })?;
    let quantized = quantizer.compress(x.view())?;
    let back = quantized.decompress()?;
    let mut errors = ErrorSums::default();
    x.iter().zip(&back).for_each(|(&x, &back)| errors.add(f64::from(x), f64::from(x) - f64::from(back)));
    let codes = match integers.packing {
        Packing::Plain => quantized.packed().bytes().to_vec(),
        Packing::Packed => {
            let codes = quantized.packed().to_vec();
            let mut bytes = Vec::with_capacity(codes.len());
            for row in codes.chunks(inputs.max(1)) {
                pack_row(row.iter().copied(), integers.bits, &mut bytes);
            }
            bytes
        }
    };
    let mut scales = Vec::with_capacity(4 * quantized.scales().len());
    put_floats(quantized.scales().iter().copied(), Dtype::F32, &mut scales)?;
    Ok(Block { codes, scales, errors })
}

/// Makes blocks on all threads, a few ahead, and takes them in their order.
pub(super) fn in_order<T: Send>(
    blocks: usize,
    pool: &Pool,
    make: impl Fn(usize) -> Result<T> + Sync,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let wave = 2 * pool.threads();
    for first in (0..blocks).step_by(wave) {
        let slots: Vec<Mutex<Option<Result<T>>>> =
            (first..blocks.min(first + wave)).map(|_| Mutex::new(None)).collect();
        pool.run(slots.len(), |i| {
            let made = make(first + i);
            // Nobody else has this slot: a lock that a panic has poisoned is of no concern.
            *slots[i].lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(made);
        });
        for slot in slots {
            if let Some(made) = slot.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
                take(made?)?;
            }
        }
    }
    Ok(())
}
