//! Quantized weights in the layout of the `compressed-tensors` package, which `transformers` and `vLLM` load.
//!
//! ```text
//! plain    P.weight         I8  [out, in]
//!          P.weight_scale   F32 [out, 1]           or [out, in / group]
//! packed   P.weight_packed  I32 [out, ceil(in * bits / 32)]
//!          P.weight_scale   F32 [out, 1]           or [out, in / group]
//!          P.weight_shape   I64 [2]                out, in
//! affine   P.weight_zero_point   plain: I8 like the scales; packed: I32 [ceil(out * bits / 32), 1 or in / group]
//! ```
//!
//! Packed integers are `code + 2^(bits - 1)`, the first in the lowest bits of the first word; each row begins with a word
//! of its own. Zero points are packed likewise, along the outputs. Version 0.20 of the package.
//!
//! A file does not say its bits; the number of words does, but for 4 inputs and fewer, which take one word in either width.
//! There bits beyond those of 4-bit codes tell, and 8 bits are not written packed.

use ndarray::{Array2, Ix2};
use serde_json::{Value, json};

use super::dtype::Dtype;
use super::file::SafeTensors;
use super::reason;
use super::tensor::{Tensor, TensorView};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::io::trim::malformed;
use crate::quantize::{CodeRange, Granularity, QuantParams, QuantizedTensor, Scheme};

/// How the integers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// One byte for each: `int-quantized`. 8 bits only.
    Plain,
    /// As many as fit into 32-bit words: `pack-quantized`. 4 and 8 bits.
    Packed,
}

/// Quantized weights.
///
/// ```
/// use trimnet::io::safetensors::{SafeTensors, compressed::Packing};
/// use trimnet::ndarray::array;
/// use trimnet::quantize::{Scheme, UniformQuantizer};
/// use trimnet::{Compressed, Compressor};
///
/// let weight = array![[0.7_f32, -0.1, 0.2, 0.0], [1.4, 0.4, -1.0, 0.2]];
/// let int4 = UniformQuantizer::new(Scheme::symmetric(4)?.per_group(1, 2)?).compress(weight.view())?;
/// let mut file = SafeTensors::new();
/// file.insert_quantized("head", &int4, Packing::Packed)?;
/// assert_eq!(file.names().collect::<Vec<_>>(), ["head.weight_packed", "head.weight_scale", "head.weight_shape"]);
/// assert_eq!(file.quantized("head")?.decompress()?, int4.decompress()?);
/// # Ok::<(), trimnet::Error>(())
/// ```
impl SafeTensors {
    /// Puts the weight of `module` in as integers and scales.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless the scheme has signed codes of 8 bits (or, packed, 4) and one scale for each output or
    /// for groups of inputs that divide their number, and for packed 8 bits of 4 inputs or fewer.
    pub fn insert_quantized<F: Float>(
        &mut self,
        module: &str,
        weight: &QuantizedTensor<F, Ix2>,
        packing: Packing,
    ) -> Result<()> {
        let scheme = weight.scheme();
        let [out, inputs] = [weight.shape()[0], weight.shape()[1]];
        let groups = groups(scheme, packing, inputs)?;
        let bits = scheme.bits();
        let codes = weight.codes();
        match packing {
            Packing::Plain => {
                self.insert(format!("{module}.weight"), Tensor::from_codes(codes.view(), Dtype::I8)?)
            }
            Packing::Packed => {
                let mut bytes = Vec::with_capacity(out * words(inputs, bits) * 4);
                for row in codes.rows() {
                    pack_row(row.iter().copied(), bits, &mut bytes);
                }
                let packed = Tensor::new(Dtype::I32, vec![out, words(inputs, bits)], bytes)?;
                self.insert(format!("{module}.weight_packed"), packed);
                self.insert(format!("{module}.weight_shape"), shape_tensor(out, inputs)?);
            }
        }
        let scales = Array2::from_shape_vec((out, groups), weight.scales().to_vec());
        let scales = scales.map_err(|error| malformed(error.to_string()))?;
        self.insert(format!("{module}.weight_scale"), Tensor::from_floats(scales.view(), Dtype::F32)?);
        if !scheme.is_symmetric() {
            let points = Array2::from_shape_vec((out, groups), weight.zero_points().to_vec());
            let points = points.map_err(|error| malformed(error.to_string()))?;
            let tensor = match packing {
                Packing::Plain => Tensor::from_codes(points.view(), Dtype::I8)?,
                Packing::Packed => {
                    let mut columns = Vec::new();
                    for column in points.columns() {
                        pack_row(column.iter().copied(), bits, &mut columns);
                    }
                    let (words, _) = columns.as_chunks::<4>();
                    let columns =
                        Array2::from_shape_fn((words.len() / groups.max(1), groups), |(i, group)| {
                            i32::from_le_bytes(words[group * (words.len() / groups.max(1)) + i])
                        });
                    Tensor::from_codes(columns.view(), Dtype::I32)?
                }
            };
            self.insert(format!("{module}.weight_zero_point"), tensor);
        }
        Ok(())
    }

    /// The quantized weight of `module`, in either layout.
    ///
    /// # Errors
    /// [`Error::Format`] if a tensor is missing or does not fit the others; [`Error::Unsupported`] for bits other than 4
    /// and 8, and for groups of inputs that do not stand side by side (`weight_g_idx`, activation order).
    pub fn quantized(&self, module: &str) -> Result<QuantizedTensor<f32, Ix2>> {
        let wrong = |reason: String| malformed(format!("the quantized weight of {module:?}: {reason}"));
        let scales = self.get(&format!("{module}.weight_scale"))?;
        let (bits, codes) = match self.find(&format!("{module}.weight_packed")) {
            None => {
                let weight = self.get(&format!("{module}.weight"))?;
                if weight.dtype() != Dtype::I8 {
                    return Err(wrong(format!("its elements are {}, not I8", weight.dtype())));
                }
                (8, matrix(weight.to_codes()?)?)
            }
            Some(packed) => {
                let shape = self.get(&format!("{module}.weight_shape"))?.to_codes()?;
                let dim = match shape.as_slice() {
                    Some(&[out, inputs]) if out >= 0 && inputs >= 0 => [out as usize, inputs as usize],
                    _ => return Err(wrong("its shape is not two numbers".to_string())),
                };
                unpack(packed, dim).map_err(wrong)?
            }
        };
        let (out, inputs) = codes.dim();
        let granularity = match *scales.shape() {
            [1] | [] => Granularity::PerTensor,
            [rows, 1] if rows == out => Granularity::PerChannel { axis: 0 },
            [rows, groups] if rows == out && groups > 0 && inputs % groups == 0 && inputs > 0 => {
                Granularity::PerGroup { axis: 1, size: inputs / groups }
            }
            _ => {
                return Err(wrong(format!("scales of shape {:?} for {:?}", scales.shape(), codes.shape())));
            }
        };
        if let Some(order) = self.find(&format!("{module}.weight_g_idx")) {
            let size = match granularity {
                Granularity::PerGroup { size, .. } => size,
                _ => inputs,
            };
            check_order(order, inputs, size).map_err(|error| match error {
                Error::Format { .. } => wrong(reason(error)),
                other => other,
            })?;
        }
        let points = match self.find(&format!("{module}.weight_zero_point")) {
            None => None,
            Some(points) if points.dtype() == Dtype::I32 => {
                Some(unpack_points(points, bits, scales.shape()).map_err(wrong)?)
            }
            Some(points) => Some(points.to_codes()?.iter().copied().collect::<Vec<i32>>()),
        };
        let scales: Vec<f32> = scales.to_floats::<f32>()?.iter().copied().collect();
        if points.as_ref().is_some_and(|points| points.len() != scales.len()) {
            return Err(wrong(format!("{} scales and another number of zero points", scales.len())));
        }
        let scheme = match &points {
            Some(points) if points.iter().any(|&point| point != 0) => {
                Scheme::affine(bits)?.with_signed(true)?
            }
            _ => Scheme::symmetric(bits)?.with_codes(CodeRange::Full)?,
        };
        let scheme = match granularity {
            Granularity::PerTensor => scheme.per_tensor(),
            Granularity::PerChannel { axis } => scheme.per_channel(axis),
            Granularity::PerGroup { axis, size } => scheme.per_group(axis, size)?,
        };
        let params: Vec<QuantParams<f32>> = scales
            .iter()
            .enumerate()
            .map(|(i, &scale)| {
                let zero_point = points.as_ref().and_then(|points| points.get(i).copied()).unwrap_or(0);
                QuantParams { scale, zero_point }
            })
            .collect();
        QuantizedTensor::from_codes(scheme, &params, codes.view()).map_err(|error| wrong(reason(error)))
    }
}

/// Scales in a row, or why the scheme has no place in this layout.
fn groups(scheme: &Scheme, packing: Packing, inputs: usize) -> Result<usize> {
    let refused = |reason: String| Error::Unsupported { what: "the compressed-tensors layout", reason };
    match (scheme.bits(), packing) {
        (8, _) | (4, Packing::Packed) if scheme.is_signed() => {}
        (bits, _) => {
            let sign = if scheme.is_signed() { "signed" } else { "unsigned" };
            return Err(refused(format!("{bits} bits {sign}; it has 8 bits signed and, packed, 4")));
        }
    }
    if packing == Packing::Packed && !tells_bits(inputs) && scheme.bits() == 8 {
        let reason = format!("8 bits of {inputs} inputs packed look like 4 bits; store them plain");
        return Err(refused(reason));
    }
    match scheme.granularity() {
        Granularity::PerChannel { axis: 0 } => Ok(1),
        Granularity::PerGroup { axis: 1, size } if inputs.is_multiple_of(size) => Ok(inputs / size),
        Granularity::PerGroup { axis: 1, size } => {
            Err(refused(format!("groups of {size} do not divide {inputs} inputs")))
        }
        other => Err(refused(format!("{other:?}; it has one scale per output or per group of inputs"))),
    }
}

/// 32-bit words of a row.
pub(crate) fn words(codes: usize, bits: u8) -> usize {
    (codes * usize::from(bits)).div_ceil(32)
}

/// Whether the number of words in a row tells 4 bits from 8: from 5 inputs on, and where there are none to be told apart.
pub(crate) fn tells_bits(inputs: usize) -> bool {
    inputs == 0 || words(inputs, 4) != words(inputs, 8)
}

/// Appends one row of codes of 4 or 8 bits, offset by half their range, filled up to whole words.
pub(crate) fn pack_row(codes: impl Iterator<Item = i32>, bits: u8, bytes: &mut Vec<u8>) {
    let offset = 1i32 << (bits - 1);
    let (mut word, mut used) = (0u32, 0u32);
    for code in codes {
        word |= ((code + offset) as u32) << used;
        used += u32::from(bits);
        if used == 32 {
            bytes.extend_from_slice(&word.to_le_bytes());
            (word, used) = (0, 0);
        }
    }
    if used > 0 {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
}

/// `P.weight_shape`.
pub(crate) fn shape_tensor(out: usize, inputs: usize) -> Result<Tensor> {
    let bytes = [(out as u64).to_le_bytes(), (inputs as u64).to_le_bytes()].concat();
    Tensor::new(Dtype::I64, vec![2], bytes)
}

/// The width that fills the words of a row, and the codes.
fn unpack(packed: TensorView<'_>, [out, inputs]: [usize; 2]) -> Result<(u8, Array2<i32>), String> {
    let (shape, dtype) = (packed.shape(), packed.dtype());
    let fits = |bits: &u8| dtype == Dtype::I32 && shape == [out, words(inputs, *bits)];
    let mut bits = [4, 8].into_iter().find(fits).ok_or_else(|| {
        format!("words of shape {shape:?} of {dtype} are not [{out}, {inputs}] codes of 4 or 8 bits")
    })?;
    let width = words(inputs, bits);
    let (words, _) = packed.bytes().as_chunks::<4>();
    // Nobody fills up a word of 4-bit codes with anything but zeros.
    if !tells_bits(inputs) && words.iter().any(|&word| u32::from_le_bytes(word) >> (4 * inputs) != 0) {
        bits = 8;
    }
    let per_word = 32 / usize::from(bits);
    let codes = Array2::from_shape_fn((out, inputs), |(row, column)| {
        code(words.get(row * width + column / per_word), bits, column)
    });
    Ok((bits, codes))
}

/// Zero points packed along the outputs, in the order of the scales.
fn unpack_points(packed: TensorView<'_>, bits: u8, scales: &[usize]) -> Result<Vec<i32>, String> {
    let (out, groups) = match *scales {
        [out, groups] => (out, groups),
        _ => (1, 1),
    };
    let height = words(out, bits);
    if packed.shape() != [height, groups] {
        return Err(format!("zero points of shape {:?} for scales of shape {scales:?}", packed.shape()));
    }
    let (words, _) = packed.bytes().as_chunks::<4>();
    let per_word = 32 / usize::from(bits);
    let mut points = Vec::with_capacity(out * groups);
    for row in 0..out {
        for group in 0..groups {
            points.push(code(words.get(row / per_word * groups + group), bits, row));
        }
    }
    Ok(points)
}

/// Refuses groups other than `size` inputs side by side. The package writes -1 where it has no order.
fn check_order(order: TensorView<'_>, inputs: usize, size: usize) -> Result<()> {
    let groups = order.to_codes()?;
    if groups.shape() != [inputs] {
        let shape = groups.shape();
        return Err(malformed(format!("a group index of shape {shape:?} for {inputs} inputs")));
    }
    let unset = groups.iter().all(|&group| group == -1);
    let moved = groups.iter().enumerate().find(|&(i, &group)| usize::try_from(group).ok() != Some(i / size));
    match moved {
        Some((i, group)) if !unset => Err(Error::Unsupported {
            what: "the compressed-tensors layout",
            reason: format!(
                "input {i} has the scale of group {group}; inputs in another order than that of their groups, here \
                 {}, are not read",
                i / size
            ),
        }),
        _ => Ok(()),
    }
}

/// The `i`-th code of a row, in the word that holds it.
fn code(word: Option<&[u8; 4]>, bits: u8, i: usize) -> i32 {
    let per_word = 32 / usize::from(bits);
    let word = u32::from_le_bytes(word.copied().unwrap_or_default());
    let code = word >> (i % per_word * usize::from(bits)) & ((1 << bits) - 1);
    code as i32 - (1 << (bits - 1))
}

fn matrix(codes: ndarray::ArrayD<i32>) -> Result<Array2<i32>> {
    codes.into_dimensionality().map_err(|_| malformed("a quantized weight that is not a matrix"))
}

/// One way in which modules are quantized, for `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct QuantizedModules {
    /// The storage.
    pub packing: Packing,
    /// Bits of a code.
    pub bits: u8,
    /// Inputs that share a scale; `None` for one scale per output.
    pub group: Option<usize>,
    /// Names of the modules.
    pub modules: Vec<String>,
}

/// The block `quantization_config` of a `config.json`: weights as described, activations as they are. `kept` are the
/// names of linear modules that stay as they were.
pub fn quantization_config(quantized: &[QuantizedModules], kept: &[String]) -> Value {
    let format = |packing| match packing {
        Packing::Plain => "int-quantized",
        Packing::Packed => "pack-quantized",
    };
    let mut groups = serde_json::Map::new();
    for (i, of) in quantized.iter().enumerate() {
        let mut weights = json!({
            "num_bits": of.bits, "type": "int", "symmetric": true, "dynamic": false,
            "strategy": if of.group.is_some() { "group" } else { "channel" },
        });
        if let Some(group) = of.group {
            weights["group_size"] = json!(group);
        }
        // With one way for all, "Linear" is what other tools expect; several have to be told apart by name.
        let targets = if quantized.len() == 1 { json!(["Linear"]) } else { json!(of.modules) };
        groups.insert(
            format!("group_{i}"),
            json!({
                "targets": targets, "format": format(of.packing), "weights": weights,
                "input_activations": null, "output_activations": null,
            }),
        );
    }
    let first = quantized.first().map_or(Packing::Plain, |of| of.packing);
    let mixed = quantized.iter().any(|of| of.packing != first);
    json!({
        "quant_method": "compressed-tensors",
        "format": if mixed { "mixed-precision" } else { format(first) },
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "kv_cache_scheme": null,
        "ignore": kept,
        "config_groups": groups,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::UniformQuantizer;
    use crate::traits::{Compressed, Compressor};

    fn weight(out: usize, inputs: usize) -> Array2<f32> {
        Array2::from_shape_fn((out, inputs), |(i, j)| ((i * inputs + j) as f32 * 0.7).sin() + 0.2)
    }

    #[test]
    fn packs_as_the_package_does() {
        let mut bytes = Vec::new();
        pack_row([-8, -7, 0, 7, 1, 2, 3, 4, 5].into_iter(), 4, &mut bytes);
        let (words, _) = bytes.as_chunks::<4>();
        assert_eq!(words.iter().map(|&w| u32::from_le_bytes(w)).collect::<Vec<_>>(), [0xcba9_f810, 0xd]);
    }

    #[test]
    fn every_layout_comes_back() {
        for (out, inputs) in [(1, 8), (3, 24), (9, 64), (16, 40)] {
            let weight = weight(out, inputs);
            for (bits, packing) in [(8, Packing::Plain), (8, Packing::Packed), (4, Packing::Packed)] {
                let symmetric = Scheme::symmetric(bits).unwrap();
                let affine = Scheme::affine(bits).unwrap().with_signed(true).unwrap();
                for scheme in [symmetric, affine] {
                    for scheme in [scheme.per_channel(0), scheme.per_group(1, 8).unwrap()] {
                        let quantized = UniformQuantizer::new(scheme).compress(weight.view()).unwrap();
                        let mut file = SafeTensors::new();
                        file.insert_quantized("p", &quantized, packing).unwrap();
                        let file = SafeTensors::from_bytes(&file.to_bytes().unwrap()).unwrap();
                        let back = file.quantized("p").unwrap();
                        assert_eq!(back.codes(), quantized.codes(), "{out} {inputs} {bits} {packing:?}");
                        assert_eq!(back.decompress().unwrap(), quantized.decompress().unwrap());
                    }
                }
            }
        }
    }

    #[test]
    fn refuses_what_the_layout_cannot_say() {
        let mut file = SafeTensors::new();
        let mut error = |scheme: Scheme, packing| {
            let quantized = UniformQuantizer::new(scheme).compress(weight(4, 12).view()).unwrap();
            file.insert_quantized("p", &quantized, packing).unwrap_err().to_string()
        };
        assert!(error(Scheme::default(), Packing::Plain).contains("PerTensor"));
        assert!(error(Scheme::uint8_affine().per_channel(0), Packing::Plain).contains("unsigned"));
        assert!(error(Scheme::symmetric(4).unwrap().per_channel(0), Packing::Plain).contains("4 bits"));
        assert!(error(Scheme::symmetric(3).unwrap().per_channel(0), Packing::Packed).contains("3 bits"));
        assert!(error(Scheme::default().per_group(1, 8).unwrap(), Packing::Packed).contains("groups of 8"));
        assert!(error(Scheme::default().per_channel(1), Packing::Packed).contains("axis: 1"));
    }

    #[test]
    fn few_inputs_come_back_in_their_own_bits() {
        let plain = ndarray::array![[1.0f32, -2.0, 3.0, 0.5], [0.1, 0.2, -0.3, 0.4]];
        for inputs in 1..=5 {
            let weight = Array2::from_shape_fn((2, inputs), |(i, j)| plain[[i, j % 4]]);
            let compress = |bits| {
                let scheme = Scheme::symmetric(bits).unwrap().per_channel(0);
                UniformQuantizer::new(scheme).compress(weight.view()).unwrap()
            };
            let (int4, int8) = (compress(4), compress(8));
            let back = |quantized, packing| {
                let mut file = SafeTensors::new();
                file.insert_quantized("p", quantized, packing).map(|()| file.quantized("p").unwrap().codes())
            };
            assert_eq!(back(&int4, Packing::Packed).unwrap(), int4.codes());
            assert_eq!(back(&int8, Packing::Plain).unwrap(), int8.codes());
            match back(&int8, Packing::Packed) {
                Ok(codes) => assert!(inputs == 5 && codes == int8.codes()),
                Err(error) => {
                    let text = format!("8 bits of {inputs} inputs packed look like 4 bits; store them plain");
                    assert!(inputs < 5 && error.to_string().contains(&text), "{error}");
                }
            }
            // As another program may pack them.
            let mut file = SafeTensors::new();
            file.insert_quantized("p", &int8, Packing::Plain).unwrap();
            let mut bytes = Vec::new();
            int8.codes().rows().into_iter().for_each(|row| pack_row(row.iter().copied(), 8, &mut bytes));
            let packed = Tensor::new(Dtype::I32, vec![2, inputs.div_ceil(4)], bytes).unwrap();
            file.insert("p.weight_packed", packed);
            file.insert("p.weight_shape", shape_tensor(2, inputs).unwrap());
            assert_eq!(file.quantized("p").unwrap().codes(), int8.codes(), "{inputs}");
        }
    }

    #[test]
    fn groups_in_another_order_are_refused() {
        let scheme = Scheme::symmetric(4).unwrap().per_group(1, 4).unwrap();
        let quantized = UniformQuantizer::new(scheme).compress(weight(3, 8).view()).unwrap();
        let mut file = SafeTensors::new();
        file.insert_quantized("p", &quantized, Packing::Packed).unwrap();
        let mut read = |order: &[i32]| {
            let order = Tensor::from_codes(ndarray::aview1(order), Dtype::I32).unwrap();
            file.insert("p.weight_g_idx", order);
            file.quantized("p")
        };
        assert_eq!(read(&[0, 0, 0, 0, 1, 1, 1, 1]).unwrap().codes(), quantized.codes());
        assert_eq!(read(&[-1; 8]).unwrap().codes(), quantized.codes());
        let error = read(&[0, 1, 0, 0, 1, 1, 0, 1]).unwrap_err().to_string();
        assert!(error.contains("input 1 has the scale of group 1") && error.contains("here 0"), "{error}");
        let error = read(&[0, 0, 1, 1]).unwrap_err().to_string();
        assert!(error.contains("a group index of shape [4] for 8 inputs"), "{error}");
    }

    #[test]
    fn tensors_that_do_not_fit_each_other_are_refused() {
        let scheme = Scheme::symmetric(4).unwrap().per_group(1, 8).unwrap();
        let quantized = UniformQuantizer::new(scheme).compress(weight(4, 16).view()).unwrap();
        let mut good = SafeTensors::new();
        good.insert_quantized("p", &quantized, Packing::Packed).unwrap();
        let floats = |x: Array2<f32>| Tensor::from_floats(x.view(), Dtype::F32).unwrap();
        let words = |shape: [usize; 2]| Tensor::from_codes(Array2::zeros(shape).view(), Dtype::I32).unwrap();
        for (name, tensor) in [
            ("p.weight_scale", floats(Array2::zeros((4, 2)))),
            ("p.weight_scale", floats(Array2::ones((4, 3)))),
            ("p.weight_scale", floats(Array2::from_elem((4, 1), f32::NAN))),
            ("p.weight_shape", shape_tensor(4, 17).unwrap()),
            ("p.weight_shape", shape_tensor(1 << 40, 16).unwrap()),
            ("p.weight_packed", words([4, 3])),
            ("p.weight_zero_point", words([3, 2])),
        ] {
            let mut bad = good.clone();
            bad.insert(name, tensor);
            assert!(bad.quantized("p").is_err(), "{name}");
        }
        assert!(good.quantized("q").is_err());
    }
}
