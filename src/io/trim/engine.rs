//! An engine as a section of the file: its recipe, so that a loaded engine packs the same weights and gives the same bits.
//!
//! ```text
//! section   element type, varint inputs, ends: 1 codes go in, 2 codes come out; [grid] [grid]; varint number of blocks
//! grid      float list of one f32 scale, byte zero point
//! block     tag = kind | flags << 4, then
//! 1 numbers   flags: 1 bias                            linear, weight [out, in], [bias [out]]
//! 2 static    flags: 1 codes come out, 2 looked up     linear, weight as signed codes [out, in], scale [out] f32,
//!             bias [out] as signed 32-bit codes, grid of the input, [grid before the activation], [grid of the output]
//! 3 dynamic   flags: 1 bias                            linear, weight, scale, [bias [out] f32]
//! 4 affine    scale [in], shift [in]
//! 5 layer norm  setting eps, gamma [in], beta [in]
//! 6 activation  activation
//! linear      byte format, varint out, activation
//! activation  0, or the tag of the activation as a layer of a network, and its setting
//! ```
//!
//! Weights of 8 bits are signed 8-bit codes, those of 4 bits signed 4-bit codes; which layout they get, dense, sparse or
//! entropy coded, is the encoder's choice, whatever the format.

use std::path::Path;

use super::container::{Kind, named, only, read_file, read_sections, write_sections};
use super::encoding::{put_element, take_element};
use super::floats::{put_floats, take_floats};
use super::network::{Reader, element, put_activation, put_body, put_number, refused, tag};
use super::report::TrimReport;
use super::search::EncodeOptions;
use super::tensor::{Codes, ElementType, Limits, Values};
use super::wire::{Cursor, malformed, put_varint};
use crate::engine::recipe::{Block, Linear, Output, Recipe, Sums, Weights};
use crate::engine::{Element, Engine, Format};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::io::atomic::write_atomic;
use crate::kernel::{Isa, Pool};
use crate::nn::Activation;
use crate::normalize::LayerNorm;
use crate::quantize::QuantParams;

const NUMBERS: u8 = 1;
const STATIC: u8 = 2;
const DYNAMIC: u8 = 3;
const AFFINE: u8 = 4;
const LAYER_NORM: u8 = 5;
const ACTIVATION: u8 = 6;

const BIAS: u8 = 1;
const CODES_OUT: u8 = 1;
const LOOKED_UP: u8 = 2;

/// Ids of formats are their places.
const FORMATS: [Format; 9] = [
    Format::Dense,
    Format::Sparse,
    Format::TwoFour,
    Format::Int8,
    Format::Int8Dynamic,
    Format::Int4,
    Format::SparseInt8,
    Format::TwoFourInt8,
    Format::Palette,
];

/// Saving and loading: `.trim`, the crate's own file. Integers are stored as integers.
///
/// ```
/// use trimnet::engine::{Config, Engine, Format};
/// use trimnet::ndarray::Array2;
/// use trimnet::nn::Mlp;
/// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let mlp = Mlp::builder(50).linear(40).relu().linear(4).build::<f32>(&mut rng)?;
/// let data = Array2::from_shape_fn((60, 50), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 11.0);
/// let engine = Engine::build(&mlp, &Config::new(Format::Int8).with_calibration(data.view()))?;
///
/// let bytes = engine.to_bytes();
/// assert!(bytes.len() < mlp.to_bytes().len() / 3);
/// let loaded = Engine::<f32>::from_bytes(&bytes)?;
/// assert_eq!(loaded.predict(data.view())?, engine.predict(data.view())?); // the same bits
/// # Ok::<(), trimnet::Error>(())
/// ```
impl<F: Element> Engine<F> {
    /// Writes the engine; the file is replaced as a whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomic(path.as_ref(), &self.to_bytes())
    }

    /// Reads an engine with the default [`Limits`], to run on all instructions and cores of this machine.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses; otherwise as [`from_bytes`](Self::from_bytes).
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_with(path, &Limits::default())
    }

    /// Reads an engine that may need more, or is granted less, memory than by default: large sparse ones do, if hardly anything is
    /// left of them.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(path: impl AsRef<Path>, limits: &Limits) -> Result<Self> {
        let path = path.as_ref();
        named(Self::from_bytes_with(&read_file(path)?, limits), path)
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_bytes_with(&EncodeOptions::default())
    }

    /// The bytes of the file, with a say in the search for the smallest.
    pub fn to_bytes_with(&self, options: &EncodeOptions) -> Vec<u8> {
        let mut section = Vec::new();
        put_recipe(&mut section, &self.recipe(), Form::Encoded(options));
        write_sections(&[(Kind::Engine, &section)])
    }

    /// Reads the bytes of a file, with the default [`Limits`].
    ///
    /// # Errors
    /// [`Error::Format`] for anything but a whole and undamaged file; [`Error::Unsupported`] for an engine of the other element
    /// type, which would give other numbers.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::from_bytes_with(bytes, &Limits::default())
    }

    /// Reads the bytes of a file that may need more, or is granted less, memory than by default.
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes).
    pub fn from_bytes_with(bytes: &[u8], limits: &Limits) -> Result<Self> {
        Self::from_recipe(read_recipe(bytes, limits)?.0, Isa::best(), Pool::shared())
    }
}

/// What stands for a tensor.
#[derive(Clone, Copy)]
pub(super) enum Form<'a> {
    /// Its body.
    Encoded(&'a EncodeOptions),
    /// Its elements, little-endian: what checks are made of.
    Plain,
}

impl Form<'_> {
    fn put(self, out: &mut Vec<u8>, shape: Vec<usize>, values: Values) {
        match (self, values) {
            (Self::Encoded(options), values) => put_body(out, shape, values, options),
            (Self::Plain, Values::F32(values)) => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            (Self::Plain, Values::F64(values)) => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            (Self::Plain, Values::Codes(codes)) => {
                out.extend(codes.values().iter().flat_map(|x| x.to_le_bytes()));
            }
        }
    }
}

pub(super) fn put_recipe<F: Float>(out: &mut Vec<u8>, recipe: &Recipe<F>, form: Form<'_>) {
    put_element(out, element::<F>());
    put_varint(out, recipe.inputs as u64);
    out.push(u8::from(recipe.entry.is_some()) | u8::from(recipe.exit.is_some()) << 1);
    recipe.entry.iter().chain(&recipe.exit).for_each(|&grid| put_grid(out, grid));
    put_varint(out, recipe.blocks.len() as u64);
    for block in &recipe.blocks {
        match block {
            Block::Linear(linear) => put_linear(out, linear, form),
            Block::Affine { scale, shift } => {
                out.push(tag(AFFINE, 0));
                put_numbers(out, vec![scale.len()], scale, form);
                put_numbers(out, vec![shift.len()], shift, form);
            }
            Block::LayerNorm(norm) => {
                out.push(tag(LAYER_NORM, 0));
                put_number(out, norm.eps());
                put_numbers(out, vec![norm.features()], &norm.gamma().to_vec(), form);
                put_numbers(out, vec![norm.features()], &norm.beta().to_vec(), form);
            }
            Block::Activation(activation) => {
                out.push(tag(ACTIVATION, 0));
                put_activation(out, *activation);
            }
        }
    }
}

fn put_linear<F: Float>(out: &mut Vec<u8>, linear: &Linear<F>, form: Form<'_>) {
    let (outputs, shape) = (vec![linear.outputs], vec![linear.outputs, linear.inputs]);
    let (kind, flags) = match &linear.weights {
        Weights::Float { bias, .. } => (NUMBERS, if bias.is_some() { BIAS } else { 0 }),
        Weights::Codes { sums: Sums::Dynamic { bias }, .. } => {
            (DYNAMIC, if bias.is_some() { BIAS } else { 0 })
        }
        Weights::Codes { sums: Sums::Static { output, .. }, .. } => match output {
            Output::Float => (STATIC, 0),
            Output::Codes { before: None, .. } => (STATIC, CODES_OUT),
            Output::Codes { before: Some(_), .. } => (STATIC, CODES_OUT | LOOKED_UP),
        },
    };
    out.push(tag(kind, flags));
    out.push(FORMATS.iter().position(|&format| format == linear.format).unwrap_or(0) as u8);
    put_varint(out, linear.outputs as u64);
    match linear.activation {
        None => out.push(0),
        Some(activation) => put_activation(out, activation),
    }
    match &linear.weights {
        Weights::Float { weight, bias } => {
            put_numbers(out, shape, weight, form);
            if let Some(bias) = bias {
                put_numbers(out, outputs, bias, form);
            }
        }
        Weights::Codes { codes, scale, sums } => {
            put_codes(out, shape, weight_bits(linear.format), codes.iter().map(|&w| w.into()), form);
            form.put(out, outputs.clone(), Values::F32(scale.clone()));
            match sums {
                Sums::Dynamic { bias: Some(bias) } => {
                    form.put(out, outputs, Values::F32(bias.clone()));
                }
                Sums::Dynamic { bias: None } => {}
                Sums::Static { input, bias, output } => {
                    put_codes(out, outputs, 32, bias.iter().copied(), form);
                    put_grid(out, *input);
                    if let Output::Codes { before, after } = output {
                        before.iter().for_each(|&grid| put_grid(out, grid));
                        put_grid(out, *after);
                    }
                }
            }
        }
    }
}

pub(super) fn weight_bits(format: Format) -> u8 {
    if format == Format::Int4 { 4 } else { 8 }
}

pub(super) fn put_grid(out: &mut Vec<u8>, grid: QuantParams<f32>) {
    put_floats(out, &[grid.scale]);
    // A recipe has been checked: 0..=255.
    out.push(grid.zero_point as u8);
}

fn put_numbers<F: Float>(out: &mut Vec<u8>, shape: Vec<usize>, x: &[F], form: Form<'_>) {
    let values = match element::<F>() {
        // Exact: these are f32 already.
        ElementType::F32 => Values::F32(x.iter().map(|x| x.as_f64() as f32).collect()),
        _ => Values::F64(x.iter().map(|x| x.as_f64()).collect()),
    };
    form.put(out, shape, values);
}

fn put_codes(
    out: &mut Vec<u8>,
    shape: Vec<usize>,
    bits: u8,
    codes: impl Iterator<Item = i32>,
    form: Form<'_>,
) {
    // A recipe has been checked: the codes fit their bits.
    if let Ok(codes) = Codes::new(bits, true, codes.collect()) {
        form.put(out, shape, Values::Codes(codes));
    }
}

/// The recipe of an engine and where its bytes are.
pub(super) fn read_recipe<F: Float>(bytes: &[u8], limits: &Limits) -> Result<(Recipe<F>, TrimReport)> {
    let mut cursor = Cursor::new(only(&read_sections(bytes)?, Kind::Engine)?);
    let found = take_element(&mut cursor)?;
    if found != element::<F>() {
        let reason = format!("the file holds an engine of {found:?}, whose numbers would not be the same");
        return Err(Error::Unsupported { what: "loading an engine as another element type", reason });
    }
    let inputs = cursor.size()?;
    let ends = cursor.byte()?;
    if ends > 3 {
        return Err(malformed(format!("ends {ends} of an engine are unknown to this version")));
    }
    let entry = if ends & 1 != 0 { Some(take_grid(&mut cursor)?) } else { None };
    let exit = if ends & 2 != 0 { Some(take_grid(&mut cursor)?) } else { None };
    let count = cursor.size()?;
    let budget = limits.budget(bytes.len());
    let mut reader = Reader { cursor, element: found, budget, width: inputs, layer: 0, tensors: Vec::new() };
    let mut blocks = Vec::new();
    for layer in 0..count {
        reader.layer = layer;
        blocks.push(reader.block()?);
    }
    reader.cursor.finish("the last block")?;
    let recipe = Recipe { inputs, entry, exit, blocks };
    recipe.check().map_err(|error| malformed(format!("not an engine: {error}")))?;
    Ok((recipe, TrimReport::new(bytes.len(), reader.tensors)))
}

pub(super) fn take_grid(cursor: &mut Cursor<'_>) -> Result<QuantParams<f32>> {
    let scale = take_floats::<f32>(cursor, 1)?.first().copied().unwrap_or(0.0);
    Ok(QuantParams { scale, zero_point: cursor.byte()?.into() })
}

/// Outputs of a panel of packed weights, as far as memory is concerned.
const PANEL: usize = 32;

impl Reader<'_> {
    fn block<F: Float>(&mut self) -> Result<Block<F>> {
        let tag = self.cursor.byte()?;
        let (kind, flags) = (tag & 15, tag >> 4);
        let allowed = match kind {
            NUMBERS | DYNAMIC => BIAS,
            STATIC => CODES_OUT | LOOKED_UP,
            _ => 0,
        };
        if flags & !allowed != 0 || kind == STATIC && flags == LOOKED_UP {
            return Err(malformed(format!(
                "flags {flags:04b} of block kind {kind} are unknown to this version"
            )));
        }
        match kind {
            NUMBERS | STATIC | DYNAMIC => Ok(Block::Linear(self.linear_block(kind, flags)?)),
            AFFINE => {
                let scale = self.floats("scale", vec![self.width])?;
                Ok(Block::Affine { scale, shift: self.floats("shift", vec![self.width])? })
            }
            LAYER_NORM => {
                let eps = self.number()?;
                let (gamma, beta) = (self.vector("gamma")?, self.vector("beta")?);
                Ok(Block::LayerNorm(LayerNorm::from_parts(gamma, beta, eps).map_err(refused)?))
            }
            ACTIVATION => match self.activation_or_none()? {
                Some(activation) => Ok(Block::Activation(activation)),
                None => Err(malformed("an activation that is none")),
            },
            _ => Err(malformed(format!("block kind {kind} is unknown to this version"))),
        }
    }

    fn activation_or_none(&mut self) -> Result<Option<Activation>> {
        let found = self.cursor.byte()?;
        match found {
            0 => Ok(None),
            _ if found & 15 == tag(super::network::ACTIVATION, 0) => Ok(Some(self.activation(found >> 4)?)),
            _ => Err(malformed(format!("activation {found} is unknown to this version"))),
        }
    }

    fn linear_block<F: Float>(&mut self, kind: u8, flags: u8) -> Result<Linear<F>> {
        let id = self.cursor.byte()?;
        let format = FORMATS.get(usize::from(id)).copied();
        let format = format.ok_or_else(|| malformed(format!("format {id} is unknown to this version")))?;
        let (inputs, outputs) = (self.width, self.cursor.size()?);
        let activation = self.activation_or_none()?;
        let (shape, vector) = (vec![outputs, inputs], vec![outputs]);
        // Packed weights are filled up to whole panels; only what is not zero is packed of sparse ones.
        if !matches!(format, Format::Sparse | Format::SparseInt8) {
            let filling = outputs.checked_next_multiple_of(PANEL).unwrap_or(usize::MAX) - outputs;
            self.budget.spend(&[filling, inputs], self.element)?;
        }
        let weights = if kind == NUMBERS {
            let weight = self.floats("weight", shape)?;
            let bias = if flags & BIAS != 0 { Some(self.floats("bias", vector)?) } else { None };
            Weights::Float { weight, bias }
        } else {
            let codes = self.signed_codes("weight", shape, weight_bits(format))?;
            let codes = codes.into_iter().map(|code| code as i8).collect();
            let scale = self.f32s("scale", vector.clone())?;
            let sums = if kind == DYNAMIC {
                Sums::Dynamic {
                    bias: if flags & BIAS != 0 { Some(self.f32s("bias", vector)?) } else { None },
                }
            } else {
                let bias = self.signed_codes("bias", vector, 32)?;
                let input = take_grid(&mut self.cursor)?;
                let before = if flags & LOOKED_UP != 0 { Some(take_grid(&mut self.cursor)?) } else { None };
                let output = if flags & CODES_OUT != 0 {
                    Output::Codes { before, after: take_grid(&mut self.cursor)? }
                } else {
                    Output::Float
                };
                Sums::Static { input, bias, output }
            };
            Weights::Codes { codes, scale, sums }
        };
        self.width = outputs;
        Ok(Linear { inputs, outputs, format, weights, activation })
    }

    fn signed_codes(&mut self, role: &str, shape: Vec<usize>, bits: u8) -> Result<Vec<i32>> {
        match self.body(role, ElementType::Codes { bits, signed: true }, shape)? {
            Values::Codes(codes) => Ok(codes.into_values()),
            _ => Err(malformed("numbers in place of integers")),
        }
    }

    fn f32s(&mut self, role: &str, shape: Vec<usize>) -> Result<Vec<f32>> {
        match self.body(role, ElementType::F32, shape)? {
            Values::F32(values) => Ok(values),
            _ => Err(malformed("not f32 where f32 is expected")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Config, Io};
    use crate::nn::Mlp;
    use ndarray::Array2;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    fn engines() -> Vec<(Engine<f32>, Array2<f32>)> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let mlp =
            Mlp::builder(20).layer_norm().linear(17).relu().linear(9).gelu().linear(8).relu().batch_norm();
        let mlp = mlp.build::<f32>(&mut rng).unwrap();
        let data = Array2::from_shape_fn((64, 20), |(i, j)| ((i * 7 + j * 5) % 13) as f32 / 6.0 - 1.0);
        let formats = Format::ALL.into_iter().filter(|format| !format.is_two_four());
        let engine = |format| {
            let config = Config::new(format).with_calibration(data.view());
            Engine::build(&mlp, &config).unwrap()
        };
        formats.map(|format| (engine(format), data.clone())).collect()
    }

    #[test]
    fn every_format_comes_back_and_predicts_the_same_bits() {
        for (engine, data) in engines() {
            let bytes = engine.to_bytes();
            let loaded = Engine::<f32>::from_bytes(&bytes).unwrap();
            assert_eq!(loaded.recipe(), engine.recipe());
            assert_eq!(loaded.predict(data.view()).unwrap(), engine.predict(data.view()).unwrap());
            assert_eq!(loaded.to_bytes(), bytes);
            let report = TrimReport::of_bytes(&bytes).unwrap();
            assert_eq!(report.total, bytes.len());
            let error = Engine::<f64>::from_bytes(&bytes).unwrap_err().to_string();
            assert!(error.contains("F32"), "{error}");
        }
    }

    #[test]
    fn codes_at_the_ends_come_back() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(4);
        let mlp = Mlp::builder(5).linear(4).tanh().linear(3).build::<f64>(&mut rng).unwrap();
        let data = Array2::from_shape_fn((30, 5), |(i, j)| ((i * 3 + j) % 7) as f64);
        let config = Config::new(Format::Int8).with_calibration(data.view()).with_io(Io::Codes, Io::Codes);
        let engine = Engine::build(&mlp, &config).unwrap();
        let loaded = Engine::<f64>::from_bytes(&engine.to_bytes()).unwrap();
        assert_eq!((loaded.entry(), loaded.exit()), (engine.entry(), engine.exit()));
        assert_eq!(loaded.recipe(), engine.recipe());
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_an_error() {
        for (engine, _) in engines() {
            let bytes = engine.to_bytes();
            for end in 0..bytes.len() {
                assert!(Engine::<f32>::from_bytes(&bytes[..end]).is_err());
            }
            for at in (0..bytes.len()).step_by(7) {
                let mut bytes = bytes.clone();
                bytes[at] ^= 0x55;
                assert!(Engine::<f32>::from_bytes(&bytes).is_err());
            }
        }
    }

    #[test]
    fn lies_behind_a_right_checksum_are_errors_and_never_panics() {
        for (engine, data) in engines() {
            let mut section = Vec::new();
            put_recipe(&mut section, &engine.recipe(), Form::Encoded(&EncodeOptions::default()));
            for at in 0..section.len() {
                for flip in [1, 0x80, 0xff] {
                    let mut section = section.clone();
                    section[at] ^= flip;
                    let file = write_sections(&[(Kind::Engine, &section)]);
                    if let Ok(engine) = Engine::<f32>::from_bytes(&file)
                        && engine.inputs() == data.ncols()
                    {
                        // Another engine, but one that runs.
                        let _ = engine.predict(data.view());
                    }
                }
            }
        }
    }

    #[test]
    fn a_palette_of_too_many_values_is_refused() {
        let (engine, _) = engines().swap_remove(0);
        let mut recipe = engine.recipe();
        recipe.linears_mut().for_each(|layer| layer.format = Format::Palette);
        let mut section = Vec::new();
        put_recipe(&mut section, &recipe, Form::Encoded(&EncodeOptions::default()));
        let file = write_sections(&[(Kind::Engine, &section)]);
        let error = Engine::<f32>::from_bytes(&file).unwrap_err().to_string();
        assert!(error.contains("256 different values"), "{error}");
    }

    #[test]
    fn a_small_file_cannot_ask_for_much_memory() {
        let mut section = Vec::new();
        put_element(&mut section, ElementType::F32);
        put_varint(&mut section, 1 << 40);
        section.extend_from_slice(&[0, 1, tag(NUMBERS, 0), 0, 1, 0]);
        let file = write_sections(&[(Kind::Engine, &section)]);
        let error = Engine::<f32>::from_bytes(&file).unwrap_err().to_string();
        assert!(error.contains("memory limit"), "{error}");
    }

    #[test]
    fn reading_takes_the_memory_of_the_tensors_and_of_panels_that_are_filled_up() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
        for (outputs, formats) in [(64, &Format::ALL[..]), (33, &[Format::Sparse, Format::SparseInt8])] {
            let mut mlp = Mlp::builder(40).linear(outputs).build::<f32>(&mut rng).unwrap();
            let weight = Array2::from_shape_fn((outputs, 40), |(i, j)| [1.0, 0.0, 0.0, 0.5][(i + j) % 4]);
            mlp.linears_mut().for_each(|linear| linear.set_weight(weight.clone()).unwrap());
            let data = Array2::from_shape_fn((64, 40), |(i, j)| ((i * 7 + j * 5) % 13) as f32 / 6.0 - 1.0);
            for &format in formats {
                let engine = Engine::build(&mlp, &Config::new(format).with_calibration(data.view())).unwrap();
                let bytes = engine.to_bytes();
                let report = TrimReport::of_bytes(&bytes).unwrap();
                let tensors = report.tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>());
                let needed = 4 * tensors.sum::<usize>();
                let read = |limit| Engine::<f32>::from_bytes_with(&bytes, &Limits::new(limit, 0));
                assert!(read(needed).is_ok(), "{format} {outputs}");
                assert!(read(needed - 1).is_err(), "{format} {outputs}");
            }
        }
    }

    #[test]
    fn limits_go_with_the_path_and_the_report() {
        let (engine, _) = engines().swap_remove(0);
        let path = std::env::temp_dir().join(format!("trimnet-limits-{}-engine.trim", std::process::id()));
        engine.save(&path).unwrap();
        assert_eq!(Engine::<f32>::load_with(&path, &Limits::default()).unwrap().recipe(), engine.recipe());
        let error = Engine::<f32>::load_with(&path, &Limits::new(0, 0)).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("memory limit") && error.contains("engine.trim"), "{error}");
        assert!(TrimReport::of_bytes_with(&engine.to_bytes(), &Limits::new(0, 0)).is_err());
    }
}
