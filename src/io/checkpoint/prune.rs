//! A tensor with zeros in the place of its smallest numbers, without a copy of it in memory.
//!
//! ```text
//! k = rne(sparsity * n)      the k smallest |w| go, ties by lowest index: as `MagnitudePruner::sparsity`
//! ```
//!
//! `|w|` orders like its bits without the sign. Their upper 16 bits are counted, the count tells which value of them the
//! k-th smallest has, and so on with the next 16 bits below it: one pass for half precision, two for single, four for
//! double. Counts are integers, so the order of blocks does not matter.

use super::quantize::{BLOCK, ErrorSums, in_order};
use crate::error::{Error, Result};
use crate::float::unravel;
use crate::io::safetensors::tensor::take_floats;
use crate::io::safetensors::{Dtype, TensorView};
use crate::kernel::Pool;

/// What was done.
pub(super) struct Pruned {
    pub(super) zeros: u64,
    pub(super) errors: ErrorSums,
}

/// Writes the tensor with zeros.
pub(super) fn prune(
    sparsity: f64,
    x: TensorView<'_>,
    pool: &Pool,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Pruned> {
    let width = x.dtype().bits() / 8;
    let n = x.bytes().len() / width;
    let k = ((sparsity * n as f64).round_ties_even() as u64).min(n as u64);
    let block = |i: usize| &x.bytes()[i * BLOCK * width..((i + 1) * BLOCK).min(n) * width];
    let blocks = n.div_ceil(BLOCK);

    in_order(
        blocks,
        pool,
        |i| match keys(block(i), width).position(|key| key >= infinity(x.dtype())) {
            None => Ok(()),
            Some(at) => {
                let mut value = Vec::new();
                take_floats::<f64>(x.dtype(), &block(i)[at * width..(at + 1) * width], &mut value)?;
                let index = unravel(i * BLOCK + at, x.shape());
                Err(Error::NotFinite {
                    what: "weights",
                    index,
                    value: value.first().copied().unwrap_or(f64::NAN),
                })
            }
        },
        Ok,
    )?;

    // Afterwards: `below` keys are smaller than `threshold`, and with those equal to it they are at least k.
    let (mut threshold, mut below) = (0u64, 0u64);
    for digit in (0..width / 2).rev() {
        let mut counts = vec![0u64; 1 << 16];
        in_order(
            blocks,
            pool,
            |i| {
                let mut counts = vec![0u32; 1 << 16];
                let above = threshold >> (16 * (digit + 1)).min(63);
                for key in keys(block(i), width).filter(|key| key >> (16 * (digit + 1)).min(63) == above) {
                    counts[(key >> (16 * digit) & 0xffff) as usize] += 1;
                }
                Ok(counts)
            },
            |of_block| {
                counts.iter_mut().zip(of_block).for_each(|(sum, count)| *sum += u64::from(count));
                Ok(())
            },
        )?;
        for (value, &count) in counts.iter().enumerate() {
            if below + count >= k || value == 0xffff {
                threshold |= (value as u64) << (16 * digit);
                break;
            }
            below += count;
        }
    }

    // Ties go from the first on; each block has to know how many stand before it.
    let mut before = Vec::with_capacity(blocks);
    let mut ties = 0u64;
    in_order(
        blocks,
        pool,
        |i| Ok(keys(block(i), width).filter(|&key| key == threshold).count() as u64),
        |count| {
            before.push(ties);
            ties += count;
            Ok(())
        },
    )?;
    let dropped_ties = k.saturating_sub(below);
    let mut pruned = Pruned { zeros: 0, errors: ErrorSums::default() };
    in_order(
        blocks,
        pool,
        |i| {
            let mut out = block(i).to_vec();
            let mut values: Vec<f64> = Vec::with_capacity(out.len() / width);
            take_floats(x.dtype(), &out, &mut values)?;
            let (mut tie, mut zeros, mut errors) = (before[i], 0, ErrorSums::default());
            for ((element, key), value) in out.chunks_mut(width).zip(keys(block(i), width)).zip(values) {
                let equal = key == threshold;
                let drop = k > 0 && (key < threshold || (equal && tie < dropped_ties));
                tie += u64::from(equal);
                if drop {
                    element.fill(0);
                }
                zeros += u64::from(drop || key == 0);
                errors.add(value, if drop { value } else { 0.0 });
            }
            Ok((out, zeros, errors))
        },
        |(out, zeros, errors)| {
            pruned.zeros += zeros;
            pruned.errors.merge(errors);
            sink(&out)
        },
    )?;
    Ok(pruned)
}

/// The bits of `|w|`.
fn keys(bytes: &[u8], width: usize) -> impl Iterator<Item = u64> + '_ {
    let sign = 1u64 << (8 * width - 1);
    bytes.chunks_exact(width).map(move |element| {
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(element);
        u64::from_le_bytes(wide) & !sign
    })
}

/// The bits of infinity; those of NaN are larger.
fn infinity(dtype: Dtype) -> u64 {
    match dtype {
        Dtype::F16 => 0x7c00,
        Dtype::Bf16 => 0x7f80,
        Dtype::F32 => 0x7f80_0000,
        _ => 0x7ff0_0000_0000_0000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::safetensors::Tensor;
    use crate::prune::MagnitudePruner;
    use crate::traits::{Compressed, Compressor};
    use ndarray::Array2;

    fn pruned(x: &Tensor, sparsity: f64, threads: usize) -> Result<(Tensor, u64)> {
        let mut bytes = Vec::new();
        let pruned = prune(sparsity, x.view(), &Pool::new(threads), &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        Ok((Tensor::new(x.dtype(), x.shape().to_vec(), bytes)?, pruned.zeros))
    }

    #[test]
    fn chooses_as_the_magnitude_pruner_does() {
        // Many ties, many blocks.
        let w = Array2::from_shape_fn((600, 1000), |(i, j)| ((i * 31 + j * 17) % 257) as f64 - 100.0);
        for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64] {
            let tensor = Tensor::from_floats(w.view(), dtype).unwrap();
            let exact = tensor.view().to_floats::<f64>().unwrap();
            for sparsity in [0.0, 1e-6, 0.3, 0.5, 0.999, 1.0] {
                let expected = MagnitudePruner::sparsity(sparsity).unwrap().compress(exact.view()).unwrap();
                let expected = expected.decompress().unwrap();
                let (ours, zeros) = pruned(&tensor, sparsity, 2).unwrap();
                assert_eq!(ours.view().to_floats::<f64>().unwrap(), expected, "{dtype} {sparsity}");
                assert_eq!(zeros, expected.iter().filter(|&&x| x == 0.0).count() as u64);
            }
        }
    }

    #[test]
    fn names_the_place_of_an_infinity() {
        let mut w = Array2::<f32>::ones((700, 500));
        w[[601, 7]] = f32::NEG_INFINITY;
        let error = pruned(&Tensor::from_floats(w.view(), Dtype::F32).unwrap(), 0.5, 2).unwrap_err();
        assert_eq!(error.to_string(), "weights is -inf at index [601, 7]; only finite numbers are allowed");
    }
}
