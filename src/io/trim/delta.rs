//! A fine-tuned network as its difference from the one that it was made of.
//!
//! ```text
//! section   CRC-32 of the base, CRC-32 of the result (4 bytes each), then for each layer of the base in order
//! linear      weight, byte of the mask: 0 none, 1 where the weight is not 0, 2 stored (1-bit codes), 3 that of the base; [bias]
//! batch norm  varint batches, gamma, beta, running mean, running variance        layer norm  gamma, beta
//! tensor    byte, then
//!   0 same        nothing
//!   1 ranks       varint number of values, float list of them, signed 10-bit codes: rank among them - rank in the base
//!   2 steps       (f32) signed 32-bit codes: steps between representable numbers, wrapping
//!   3 bits        the two bit patterns, exclusive or
//!   4 whole       the tensor itself
//! ```
//!
//! Ranks are the places of a tensor's different values in their order; so shared values may all have moved and only the few
//! weights that changed from one to another cost anything. The smallest form is taken for each tensor. What comes out is equal
//! to the bit, or an error.

use ndarray::{Array1, Array2, ArrayView, Dimension, Ix2};

use super::container::{Kind, only, read_sections, write_sections};
use super::encoding::{encode_body, take_body};
use super::floats::{put_floats, take_floats};
use super::network::{element, put_activation, refused, usual_momentum};
use super::search::EncodeOptions;
use super::tensor::{Budget, Codes, ElementType, Limits, Values};
use super::wire::{Cursor, malformed, put_varint};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::nn::{Layer, Linear, Mlp};
use crate::normalize::{BatchNorm, LayerNorm};
use crate::tensor::Mask;

pub(super) const SAME: u8 = 0;
const RANKS: u8 = 1;
pub(super) const STEPS: u8 = 2;
const BITS: u8 = 3;
pub(super) const WHOLE: u8 = 4;

const NO_MASK: u8 = 0;
const MASK_IS_NONZERO: u8 = 1;
const MASK_APART: u8 = 2;
const MASK_OF_BASE: u8 = 3;

/// More different values than this have no ranks.
const RANKED: usize = 256;

/// What turns `base` into `new`: a file of its own, which [`apply`] reads. Small where they have much in common.
///
/// ```
/// use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::io::trim::{apply, diff};
/// use trimnet::nn::Mlp;
///
/// let base = Mlp::builder(50).linear(40).relu().linear(10).build::<f32>(&mut Xoshiro256PlusPlus::seed_from_u64(1))?;
/// let mut new = base.clone();
/// for linear in new.linears_mut() {
///     linear.set_bias(linear.bias().map(|bias| bias.mapv(|b| b + 0.5)))?;
/// }
/// let delta = diff(&base, &new, &Default::default())?;
/// assert!(delta.len() < new.to_bytes().len() / 10);
/// assert_eq!(apply(&base, &delta, &Default::default())?, new);
/// assert!(apply(&new, &delta, &Default::default()).is_err()); // not the base that it was made from
/// # Ok::<(), trimnet::Error>(())
/// ```
///
/// # Errors
/// [`Error::Unsupported`] unless both have the same layers with the same shapes and settings.
pub fn diff<F: Float>(base: &Mlp<F>, new: &Mlp<F>, options: &EncodeOptions) -> Result<Vec<u8>> {
    if skeleton(base) != skeleton(new) {
        return Err(Error::Unsupported {
            what: "a difference between two networks",
            reason: "their layers, shapes or settings are not the same: save the new one whole".into(),
        });
    }
    let mut section = Vec::new();
    section.extend_from_slice(&check(base).to_le_bytes());
    section.extend_from_slice(&check(new).to_le_bytes());
    for (base, new) in base.layers().iter().zip(new.layers()) {
        put_layer(&mut section, base, new, options);
    }
    Ok(write_sections(&[(Kind::Delta, &section)]))
}

/// The network that [`diff`] was given as `new`, to the bit, from its `base`.
///
/// # Errors
/// [`Error::Format`] for anything but a whole and undamaged file, for another base, and for tensors beyond `limits`.
pub fn apply<F: Float>(base: &Mlp<F>, delta: &[u8], limits: &Limits) -> Result<Mlp<F>> {
    let mut cursor = Cursor::new(only(&read_sections(delta)?, Kind::Delta)?);
    let (of_base, of_new) = (take_check(&mut cursor)?, take_check(&mut cursor)?);
    let actual = check(base);
    if actual != of_base {
        return Err(malformed(format!(
            "the difference is from a base of check {of_base:08x}, this one has {actual:08x}"
        )));
    }
    let mut reader = Reader { cursor, budget: limits.budget(delta.len()) };
    let layers = base.layers().iter().map(|layer| reader.layer(layer)).collect::<Result<Vec<_>>>()?;
    reader.cursor.finish("the last layer")?;
    let mlp = Mlp::from_layers(base.inputs(), layers).map_err(refused)?;
    let actual = check(&mlp);
    if actual != of_new {
        return Err(malformed(format!("the result has check {actual:08x}, the file says {of_new:08x}")));
    }
    Ok(mlp)
}

/// Everything that two networks must share to be told apart by their numbers.
fn skeleton<F: Float>(mlp: &Mlp<F>) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, mlp.inputs() as u64);
    for layer in mlp.layers() {
        put_skeleton(&mut out, layer);
    }
    out
}

fn put_skeleton<F: Float>(out: &mut Vec<u8>, layer: &Layer<F>) {
    let mut numbers = |kind: u8, numbers: &[f64]| {
        out.push(kind);
        numbers.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
    };
    match layer {
        Layer::Linear(linear) => {
            numbers(1, &[linear.outputs() as f64, f64::from(u8::from(linear.bias().is_some()))]);
        }
        Layer::BatchNorm(norm) => {
            numbers(2, &[norm.eps(), norm.momentum().unwrap_or(-1.0), f64::from(norm.convention() as u8)]);
        }
        Layer::LayerNorm(norm) => numbers(3, &[norm.eps()]),
        Layer::Activation(activation) => {
            out.push(4);
            put_activation(out, *activation);
        }
        Layer::Dropout(dropout) => numbers(5, &[dropout.p()]),
        Layer::GaussianNoise(noise) => numbers(6, &[noise.deviation()]),
    }
}

/// CRC-32 of all that a network is.
fn check<F: Float>(mlp: &Mlp<F>) -> u32 {
    let mut bytes = skeleton(mlp);
    bytes.push(F::BYTES as u8);
    for layer in mlp.layers() {
        let mut put = |tensor: &[u64]| {
            for raw in tensor {
                bytes.extend_from_slice(&raw.to_le_bytes()[..F::BYTES]);
            }
        };
        match layer {
            Layer::Linear(linear) => {
                put(&raws(linear.weight()));
                linear.bias().iter().for_each(|bias| put(&raws(bias.view())));
                bytes.push(u8::from(linear.mask().is_some()));
                bytes.extend(linear.mask().iter().flat_map(|mask| mask.keep().into_owned()).map(u8::from));
            }
            Layer::BatchNorm(norm) => {
                let all = [norm.gamma(), norm.beta(), norm.running_mean(), norm.running_var()];
                all.into_iter().for_each(|x| put(&raws(x)));
                bytes.extend_from_slice(&norm.batches().to_le_bytes());
            }
            Layer::LayerNorm(norm) => [norm.gamma(), norm.beta()].into_iter().for_each(|x| put(&raws(x))),
            Layer::Activation(_) | Layer::Dropout(_) | Layer::GaussianNoise(_) => {}
        }
    }
    crc32fast::hash(&bytes)
}

pub(super) fn take_check(cursor: &mut Cursor<'_>) -> Result<u32> {
    let bytes = cursor.take(4)?;
    Ok(bytes.iter().rev().fold(0, |check, &byte| check << 8 | u32::from(byte)))
}

/// The bit patterns, row-major.
fn raws<F: Float, D: Dimension>(x: ArrayView<'_, F, D>) -> Vec<u64> {
    x.iter().map(|&x| raw(x)).collect()
}

fn raw<F: Float>(x: F) -> u64 {
    // Exact: these are f32 already.
    if F::BYTES == 4 { u64::from((x.as_f64() as f32).to_bits()) } else { x.as_f64().to_bits() }
}

fn of_raw<F: Float>(raw: u64) -> F {
    if F::BYTES == 4 { F::of(f32::from_bits(raw as u32).into()) } else { F::of(f64::from_bits(raw)) }
}

/// Bit patterns as numbers of the file.
fn values_of<F: Float>(raws: &[u64]) -> Values {
    match F::BYTES {
        4 => Values::F32(raws.iter().map(|&raw| f32::from_bits(raw as u32)).collect()),
        _ => Values::F64(raws.iter().map(|&raw| f64::from_bits(raw)).collect()),
    }
}

/// An integer that rises with the number: `-0.0` is right below `0.0`.
fn ordered(raw: u64) -> i32 {
    let bits = raw as u32 as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

/// The inverse, which is the same.
fn unordered(order: i32) -> u64 {
    u64::from((order ^ (((order >> 31) as u32) >> 1) as i32) as u32)
}

/// The different numbers in order, if they are few.
fn distinct<F: Float>(raws: &[u64]) -> Option<Vec<u64>> {
    let mut found: Vec<u64> = Vec::new();
    for raw in raws {
        if let Err(place) = found.binary_search_by_key(&key::<F>(*raw), |&raw| key::<F>(raw)) {
            if found.len() == RANKED {
                return None;
            }
            found.insert(place, *raw);
        }
    }
    Some(found)
}

/// What numbers are ordered by.
fn key<F: Float>(raw: u64) -> u64 {
    let sign = 1u64 << (8 * F::BYTES - 1);
    if raw & sign != 0 { !raw & (sign - 1) } else { raw | sign }
}

fn rank<F: Float>(values: &[u64], raw: u64) -> i32 {
    values.partition_point(|&other| key::<F>(other) < key::<F>(raw)) as i32
}

fn put_layer<F: Float>(out: &mut Vec<u8>, base: &Layer<F>, new: &Layer<F>, options: &EncodeOptions) {
    match (base, new) {
        (Layer::Linear(base), Layer::Linear(new)) => {
            put_tensor(out, base.weight(), new.weight(), options);
            put_mask(out, base, new, options);
            if let (Some(base), Some(new)) = (base.bias(), new.bias()) {
                put_tensor(out, base, new, options);
            }
        }
        (Layer::BatchNorm(base), Layer::BatchNorm(new)) => {
            put_varint(out, new.batches());
            put_tensor(out, base.gamma(), new.gamma(), options);
            put_tensor(out, base.beta(), new.beta(), options);
            put_tensor(out, base.running_mean(), new.running_mean(), options);
            put_tensor(out, base.running_var(), new.running_var(), options);
        }
        (Layer::LayerNorm(base), Layer::LayerNorm(new)) => {
            put_tensor(out, base.gamma(), new.gamma(), options);
            put_tensor(out, base.beta(), new.beta(), options);
        }
        // No numbers that could differ: the skeletons are the same.
        _ => {}
    }
}

fn put_mask<F: Float>(out: &mut Vec<u8>, base: &Linear<F>, new: &Linear<F>, options: &EncodeOptions) {
    match new.mask() {
        mask if mask == base.mask() => out.push(MASK_OF_BASE),
        None => out.push(NO_MASK),
        Some(mask) if *mask == Mask::of_nonzero(new.weight()) => out.push(MASK_IS_NONZERO),
        Some(mask) => {
            out.push(MASK_APART);
            let codes = Codes::of_bits(mask.keep().iter().copied());
            let shape = mask.keep().shape().to_vec();
            out.extend_from_slice(encode_body(&shape, &Values::Codes(codes), options).bytes());
        }
    }
}

pub(super) fn put_tensor<F: Float, D: Dimension>(
    out: &mut Vec<u8>,
    base: ArrayView<'_, F, D>,
    new: ArrayView<'_, F, D>,
    options: &EncodeOptions,
) {
    let (shape, base, new) = (new.shape().to_vec(), raws(base), raws(new));
    if base == new {
        return out.push(SAME);
    }
    let body = |values: &Values| encode_body(&shape, values, options).bytes().to_vec();
    let mut forms = vec![(WHOLE, body(&values_of::<F>(&new)))];
    let xor: Vec<u64> = base.iter().zip(&new).map(|(a, b)| a ^ b).collect();
    forms.push((BITS, body(&values_of::<F>(&xor))));
    let pairs = || base.iter().zip(&new);
    if F::BYTES == 4 {
        let steps = pairs().map(|(&a, &b)| ordered(b).wrapping_sub(ordered(a))).collect();
        forms.extend(Codes::new(32, true, steps).ok().map(|codes| (STEPS, body(&Values::Codes(codes)))));
    }
    if let (Some(before), Some(after)) = (distinct::<F>(&base), distinct::<F>(&new)) {
        let moved = pairs().map(|(&a, &b)| rank::<F>(&after, b) - rank::<F>(&before, a)).collect();
        if let Ok(codes) = Codes::new(10, true, moved) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, after.len() as u64);
            match values_of::<F>(&after) {
                Values::F32(values) => put_floats(&mut bytes, &values),
                Values::F64(values) => put_floats(&mut bytes, &values),
                Values::Codes(_) => {}
            }
            bytes.extend(body(&Values::Codes(codes)));
            forms.push((RANKS, bytes));
        }
    }
    if let Some((form, bytes)) = forms.into_iter().min_by_key(|(form, bytes)| (bytes.len(), *form)) {
        out.push(form);
        out.extend(bytes);
    }
}

/// Reads layers in the order of the base.
pub(super) struct Reader<'a> {
    pub(super) cursor: Cursor<'a>,
    pub(super) budget: Budget,
}

impl Reader<'_> {
    fn layer<F: Float>(&mut self, base: &Layer<F>) -> Result<Layer<F>> {
        Ok(match base {
            Layer::Linear(linear) => Layer::Linear(self.linear(linear)?),
            Layer::BatchNorm(norm) => {
                let batches = self.cursor.varint()?;
                let (gamma, beta) = (self.vector(norm.gamma())?, self.vector(norm.beta())?);
                let (mean, var) = (self.vector(norm.running_mean())?, self.vector(norm.running_var())?);
                let new = BatchNorm::from_parts(gamma, beta, mean, var, norm.eps()).map_err(refused)?;
                let new = new.with_convention(norm.convention()).with_batches(batches);
                // The convention's usual momentum is not the same setting as a given one of that value.
                Layer::BatchNorm(match norm.momentum() == usual_momentum(norm.convention())? {
                    true => new,
                    false => new.with_momentum(norm.momentum()).map_err(refused)?,
                })
            }
            Layer::LayerNorm(norm) => {
                let (gamma, beta) = (self.vector(norm.gamma())?, self.vector(norm.beta())?);
                Layer::LayerNorm(LayerNorm::from_parts(gamma, beta, norm.eps()).map_err(refused)?)
            }
            Layer::Activation(_) | Layer::Dropout(_) | Layer::GaussianNoise(_) => base.clone(),
        })
    }

    fn linear<F: Float>(&mut self, base: &Linear<F>) -> Result<Linear<F>> {
        let shape = base.weight().dim();
        let weight = matrix(shape, self.tensor(base.weight())?)?;
        let mask = match self.cursor.byte()? {
            NO_MASK => None,
            MASK_IS_NONZERO => Some(Mask::of_nonzero(weight.view())),
            MASK_APART => {
                let keep = self.codes(1, false, &[shape.0, shape.1])?;
                Some(Mask::<Ix2>::new(matrix(shape, keep.into_iter().map(|code| code != 0).collect())?))
            }
            MASK_OF_BASE => base.mask().cloned(),
            other => return Err(malformed(format!("mask {other} is unknown to this version"))),
        };
        let bias = base.bias().map(|bias| self.vector(bias)).transpose()?;
        let mut linear = Linear::new(weight, bias).map_err(refused)?;
        if let Some(mask) = mask {
            linear.set_mask(mask)?;
        }
        Ok(linear)
    }

    fn vector<F: Float>(&mut self, base: ndarray::ArrayView1<'_, F>) -> Result<Array1<F>> {
        Ok(Array1::from_vec(self.tensor(base)?))
    }

    pub(super) fn codes(&mut self, bits: u8, signed: bool, shape: &[usize]) -> Result<Vec<i32>> {
        let element = ElementType::Codes { bits, signed };
        match take_body(&mut self.cursor, element, shape.to_vec(), &mut self.budget)?.tensor.into_values() {
            Values::Codes(codes) => Ok(codes.into_values()),
            _ => Err(malformed("numbers in place of codes")),
        }
    }

    fn raws<F: Float>(&mut self, shape: &[usize]) -> Result<Vec<u64>> {
        let taken = take_body(&mut self.cursor, element::<F>(), shape.to_vec(), &mut self.budget)?;
        match taken.tensor.into_values() {
            Values::F32(values) => Ok(values.into_iter().map(|x| u64::from(x.to_bits())).collect()),
            Values::F64(values) => Ok(values.into_iter().map(f64::to_bits).collect()),
            Values::Codes(_) => Err(malformed("codes in place of numbers")),
        }
    }

    pub(super) fn tensor<F: Float, D: Dimension>(&mut self, base: ArrayView<'_, F, D>) -> Result<Vec<F>> {
        let (shape, base) = (base.shape().to_vec(), raws(base));
        let form = self.cursor.byte()?;
        let new: Vec<u64> = match form {
            SAME => base,
            RANKS => {
                let count = self.cursor.size()?;
                if count > RANKED {
                    return Err(malformed(format!("{count} different values, at most {RANKED} have ranks")));
                }
                let after: Vec<u64> = match F::BYTES {
                    4 => take_floats::<f32>(&mut self.cursor, count)?
                        .iter()
                        .map(|x| x.to_bits().into())
                        .collect(),
                    _ => take_floats::<f64>(&mut self.cursor, count)?.iter().map(|x| x.to_bits()).collect(),
                };
                let before = distinct::<F>(&base);
                let before = before.ok_or_else(|| malformed("ranks of a base that has too many values"))?;
                let moved = self.codes(10, true, &shape)?;
                let value = |(&raw, moved): (&u64, i32)| {
                    let rank = usize::try_from(rank::<F>(&before, raw) + moved).ok();
                    let value = rank.and_then(|rank| after.get(rank)).copied();
                    value.ok_or_else(|| malformed("a rank beyond the list of values"))
                };
                base.iter().zip(moved).map(value).collect::<Result<_>>()?
            }
            STEPS if F::BYTES == 4 => {
                let steps = self.codes(32, true, &shape)?;
                base.iter().zip(steps).map(|(&a, step)| unordered(ordered(a).wrapping_add(step))).collect()
            }
            BITS => self.raws::<F>(&shape)?.into_iter().zip(base).map(|(xor, a)| xor ^ a).collect(),
            WHOLE => self.raws::<F>(&shape)?,
            other => return Err(malformed(format!("difference {other} is unknown to this version"))),
        };
        Ok(new.into_iter().map(of_raw).collect())
    }
}

fn matrix<T>((rows, cols): (usize, usize), values: Vec<T>) -> Result<Array2<T>> {
    Array2::from_shape_vec((rows, cols), values).map_err(|error| malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_rise_with_the_number_and_come_back() {
        let ascending = [f32::MIN, -1.5, -1e-40, -0.0, 0.0, 1e-40, 1.5, f32::MAX];
        let raws = ascending.map(|x| u64::from(x.to_bits()));
        assert!(raws.windows(2).all(|pair| ordered(pair[0]) < ordered(pair[1])));
        assert!(raws.windows(2).all(|pair| key::<f32>(pair[0]) < key::<f32>(pair[1])));
        assert!(raws.iter().all(|&raw| unordered(ordered(raw)) == raw));
        let wide = ascending.map(|x| f64::from(x).to_bits());
        assert!(wide.windows(2).all(|pair| key::<f64>(pair[0]) < key::<f64>(pair[1])));
    }
}
