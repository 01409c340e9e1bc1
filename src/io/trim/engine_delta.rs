//! An engine as its difference from another one: of the same layers and formats, calibrated or trained anew.
//!
//! ```text
//! section   check of the base, check of the result (4 bytes each), then in the order of section 6 for every
//! grid      0 same, or 1 and the grid
//! numbers   a difference as of networks
//! codes     byte, then  0 same: nothing    2 steps: signed codes of one bit more (32: as many), wrapping    4 whole: the codes
//! check     CRC-32 of section 6 with the elements of tensors, little-endian, in place of their bodies
//! ```

use ndarray::{Array1, ArrayView1};

use super::container::{Kind, only, read_sections, write_sections};
use super::delta::{Reader, SAME, STEPS, WHOLE, put_tensor, take_check};
use super::encoding::encode_body;
use super::engine::{Form, put_grid, put_recipe, take_grid, weight_bits};
use super::network::refused;
use super::search::EncodeOptions;
use super::tensor::{Codes, Limits, Values};
use super::wire::{Cursor, malformed};
use crate::engine::recipe::{Block, Output, Recipe, Sums, Weights};
use crate::engine::{Element, Engine};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::normalize::LayerNorm;
use crate::quantize::QuantParams;

/// What turns the engine `base` into `new`: a file of its own, which [`apply_engine`] reads. Small where they have much in
/// common, as an engine and the same one calibrated anew.
///
/// ```
/// use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::engine::{Config, Engine, Format};
/// use trimnet::io::trim::{apply_engine, diff_engine};
/// use trimnet::ndarray::Array2;
/// use trimnet::nn::Mlp;
///
/// let mlp = Mlp::builder(50).linear(40).relu().linear(10).build::<f32>(&mut Xoshiro256PlusPlus::seed_from_u64(1))?;
/// let data = Array2::from_shape_fn((60, 50), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 11.0);
/// let base = Engine::build(&mlp, &Config::new(Format::Int8).with_calibration(data.view()))?;
/// let brighter = data.mapv(|x| 1.5 * x);
/// let new = Engine::build(&mlp, &Config::new(Format::Int8).with_calibration(brighter.view()))?;
///
/// let delta = diff_engine(&base, &new, &Default::default())?;
/// assert!(delta.len() < new.to_bytes().len() / 4);
/// assert_eq!(apply_engine(&base, &delta, &Default::default())?.to_bytes(), new.to_bytes());
/// assert!(apply_engine(&new, &delta, &Default::default()).is_err()); // not the base that it was made from
/// # Ok::<(), trimnet::Error>(())
/// ```
///
/// # Errors
/// [`Error::Unsupported`], which names the first block that differs, unless both have the same layers, formats, shapes,
/// activations and ends.
pub fn diff_engine<F: Element>(
    base: &Engine<F>,
    new: &Engine<F>,
    options: &EncodeOptions,
) -> Result<Vec<u8>> {
    let (mut base, mut new) = (base.recipe(), new.recipe());
    check_same(&base, &new)?;
    let mut section = Vec::new();
    section.extend_from_slice(&check(&base).to_le_bytes());
    section.extend_from_slice(&check(&new).to_le_bytes());
    // One after the other, because their tensors come in the same order.
    let mut before = Vec::new();
    each_part(&mut base, &mut |part| {
        before.push(Owned::of(&part));
        Ok(())
    })?;
    let mut before = before.into_iter();
    each_part(&mut new, &mut |part| {
        if let Some(before) = before.next() {
            put_part(&mut section, &before, part, options);
        }
        Ok(())
    })?;
    Ok(write_sections(&[(Kind::EngineDelta, &section)]))
}

/// The engine that [`diff_engine`] was given as `new`, to the bit, from its `base`, with the instructions and threads of that.
///
/// # Errors
/// [`Error::Format`] for anything but a whole and undamaged file, for another base, and for tensors beyond `limits`.
pub fn apply_engine<F: Element>(base: &Engine<F>, delta: &[u8], limits: &Limits) -> Result<Engine<F>> {
    let mut cursor = Cursor::new(only(&read_sections(delta)?, Kind::EngineDelta)?);
    let (of_base, of_new) = (take_check(&mut cursor)?, take_check(&mut cursor)?);
    let mut recipe = base.recipe();
    let actual = check(&recipe);
    if actual != of_base {
        return Err(malformed(format!(
            "the difference is from a base of check {of_base:08x}, this one has {actual:08x}"
        )));
    }
    let mut reader = Reader { cursor, budget: limits.budget(delta.len()) };
    each_part(&mut recipe, &mut |part| reader.part(part))?;
    reader.cursor.finish("the last block")?;
    let actual = check(&recipe);
    if actual != of_new {
        return Err(malformed(format!("the result has check {actual:08x}, the file says {of_new:08x}")));
    }
    Engine::from_recipe(recipe, base.isa(), base.pool().clone())
        .map_err(|error| malformed(format!("not an engine: {error}")))
}

/// CRC-32 of all that an engine is.
fn check<F: Float>(recipe: &Recipe<F>) -> u32 {
    let mut bytes = Vec::new();
    put_recipe(&mut bytes, recipe, Form::Plain);
    crc32fast::hash(&bytes)
}

/// What two engines may differ in.
enum Part<'a, F> {
    Grid(&'a mut QuantParams<f32>),
    Numbers(Vec<usize>, &'a mut Vec<F>),
    Scales(&'a mut Vec<f32>),
    /// Codes of so many bits.
    Weights(Vec<usize>, u8, &'a mut Vec<i8>),
    Bias(&'a mut Vec<i32>),
}

/// The same, of the base.
enum Owned<F> {
    Grid(QuantParams<f32>),
    Numbers(Vec<F>),
    Scales(Vec<f32>),
    Codes(Vec<i32>),
}

impl<F: Float> Owned<F> {
    fn of(part: &Part<'_, F>) -> Self {
        match part {
            Part::Grid(grid) => Self::Grid(**grid),
            Part::Numbers(_, x) => Self::Numbers(x.to_vec()),
            Part::Scales(x) => Self::Scales(x.to_vec()),
            Part::Weights(_, _, codes) => Self::Codes(codes.iter().map(|&code| code.into()).collect()),
            Part::Bias(codes) => Self::Codes(codes.to_vec()),
        }
    }
}

/// Every part in the order of the file, to be read or replaced by others of the same length.
fn each_part<F: Float>(recipe: &mut Recipe<F>, f: &mut impl FnMut(Part<'_, F>) -> Result<()>) -> Result<()> {
    recipe.entry.iter_mut().chain(&mut recipe.exit).try_for_each(|grid| f(Part::Grid(grid)))?;
    for block in &mut recipe.blocks {
        match block {
            Block::Linear(linear) => {
                let (shape, vector) = (vec![linear.outputs, linear.inputs], vec![linear.outputs]);
                match &mut linear.weights {
                    Weights::Float { weight, bias } => {
                        f(Part::Numbers(shape, weight))?;
                        bias.iter_mut().try_for_each(|bias| f(Part::Numbers(vector.clone(), bias)))?;
                    }
                    Weights::Codes { codes, scale, sums } => {
                        f(Part::Weights(shape, weight_bits(linear.format), codes))?;
                        f(Part::Scales(scale))?;
                        match sums {
                            Sums::Dynamic { bias } => {
                                bias.iter_mut().try_for_each(|bias| f(Part::Scales(bias)))?;
                            }
                            Sums::Static { input, bias, output } => {
                                f(Part::Bias(bias))?;
                                f(Part::Grid(input))?;
                                if let Output::Codes { before, after } = output {
                                    before.iter_mut().try_for_each(|grid| f(Part::Grid(grid)))?;
                                    f(Part::Grid(after))?;
                                }
                            }
                        }
                    }
                }
            }
            Block::Affine { scale, shift } => {
                f(Part::Numbers(vec![scale.len()], scale))?;
                f(Part::Numbers(vec![shift.len()], shift))?;
            }
            Block::LayerNorm(norm) => {
                let (mut gamma, mut beta) = (norm.gamma().to_vec(), norm.beta().to_vec());
                f(Part::Numbers(vec![gamma.len()], &mut gamma))?;
                f(Part::Numbers(vec![beta.len()], &mut beta))?;
                let (gamma, beta) = (Array1::from(gamma), Array1::from(beta));
                *norm = LayerNorm::from_parts(gamma, beta, norm.eps()).map_err(refused)?;
            }
            Block::Activation(_) => {}
        }
    }
    Ok(())
}

/// Refuses two engines that differ in more than their numbers.
fn check_same<F: Float>(base: &Recipe<F>, new: &Recipe<F>) -> Result<()> {
    let refuse = |what: String| {
        let reason = format!("{what}: save the new one whole");
        Err(Error::Unsupported { what: "a difference between two engines", reason })
    };
    let ends = |recipe: &Recipe<F>| (recipe.entry.is_some(), recipe.exit.is_some());
    if base.inputs != new.inputs || ends(base) != ends(new) {
        return refuse("their inputs, or the codes at their ends, are not the same".into());
    }
    if base.blocks.len() != new.blocks.len() {
        return refuse(format!("one has {} blocks, the other {}", base.blocks.len(), new.blocks.len()));
    }
    let (plain, other) = (skeleton(base)?, skeleton(new)?);
    for (i, (a, b)) in plain.blocks.iter().zip(&other.blocks).enumerate() {
        if a != b {
            let name = |block: &Block<F>| match block {
                Block::Linear(linear) => {
                    format!("a {} layer {} x {}", linear.format, linear.outputs, linear.inputs)
                }
                Block::Affine { .. } => "a scale and shift".into(),
                Block::LayerNorm(_) => "a layer norm".into(),
                Block::Activation(_) => "an activation".into(),
            };
            let (a, b) = (name(a), name(b));
            let what =
                if a == b { format!("with other settings than {a}") } else { format!("not {a} but {b}") };
            return refuse(format!("block {i} is {what}"));
        }
    }
    // Equal numbers, but a result is checked by its bytes.
    let bytes = |recipe| {
        let mut bytes = Vec::new();
        put_recipe(&mut bytes, recipe, Form::Plain);
        bytes
    };
    if bytes(&plain) != bytes(&other) {
        return refuse("a setting is 0 in one and -0 in the other".into());
    }
    Ok(())
}

/// Everything but the numbers.
fn skeleton<F: Float>(recipe: &Recipe<F>) -> Result<Recipe<F>> {
    let mut recipe = recipe.clone();
    each_part(&mut recipe, &mut |part| {
        match part {
            Part::Grid(grid) => *grid = QuantParams { scale: 1.0, zero_point: 0 },
            Part::Numbers(_, x) => x.fill(F::zero()),
            Part::Scales(x) => x.fill(0.0),
            Part::Weights(_, _, codes) => codes.fill(0),
            Part::Bias(codes) => codes.fill(0),
        }
        Ok(())
    })?;
    Ok(recipe)
}

fn put_part<F: Float>(out: &mut Vec<u8>, before: &Owned<F>, part: Part<'_, F>, options: &EncodeOptions) {
    match (before, part) {
        (Owned::Grid(before), Part::Grid(grid)) => {
            let same = before.scale.to_bits() == grid.scale.to_bits() && before.zero_point == grid.zero_point;
            out.push(u8::from(!same));
            if !same {
                put_grid(out, *grid);
            }
        }
        (Owned::Numbers(before), Part::Numbers(shape, x)) => {
            put_shaped(out, &shape, before, x, options);
        }
        (Owned::Scales(before), Part::Scales(x)) => put_shaped(out, &[x.len()], before, x, options),
        (Owned::Codes(before), Part::Weights(shape, bits, codes)) => {
            put_steps(out, shape, bits, before, codes.iter().map(|&code| code.into()).collect(), options);
        }
        (Owned::Codes(before), Part::Bias(codes)) => {
            put_steps(out, vec![codes.len()], 32, before, codes.clone(), options);
        }
        // The engines have the same parts.
        _ => {}
    }
}

fn put_shaped<F: Float>(out: &mut Vec<u8>, shape: &[usize], before: &[F], x: &[F], options: &EncodeOptions) {
    let view = |x| ndarray::ArrayViewD::from_shape(shape, x);
    if let (Ok(before), Ok(x)) = (view(before), view(x)) {
        put_tensor(out, before, x, options);
    }
}

/// Bits of the steps between codes of so many.
fn step_bits(bits: u8) -> u8 {
    (bits + 1).min(32)
}

fn put_steps(
    out: &mut Vec<u8>,
    shape: Vec<usize>,
    bits: u8,
    before: &[i32],
    codes: Vec<i32>,
    options: &EncodeOptions,
) {
    if *before == codes {
        return out.push(SAME);
    }
    let steps = codes.iter().zip(before).map(|(code, before)| code.wrapping_sub(*before)).collect();
    let forms = [(STEPS, step_bits(bits), steps), (WHOLE, bits, codes)];
    let encoded = forms.into_iter().filter_map(|(form, bits, codes)| {
        let codes = Codes::new(bits, true, codes).ok()?;
        Some((form, encode_body(&shape, &Values::Codes(codes), options)))
    });
    if let Some((form, body)) = encoded.min_by_key(|(form, body)| (body.bytes().len(), *form)) {
        out.push(form);
        out.extend_from_slice(body.bytes());
    }
}

impl Reader<'_> {
    /// Replaces a part of the base by that of the result.
    fn part<F: Float>(&mut self, part: Part<'_, F>) -> Result<()> {
        match part {
            Part::Grid(grid) => match self.cursor.byte()? {
                0 => {}
                1 => *grid = take_grid(&mut self.cursor)?,
                other => {
                    return Err(malformed(format!(
                        "difference {other} of a grid is unknown to this version"
                    )));
                }
            },
            Part::Numbers(shape, x) => {
                let view = ndarray::ArrayViewD::from_shape(&shape[..], x);
                *x = self.tensor(view.map_err(|error| malformed(error.to_string()))?)?;
            }
            Part::Scales(x) => *x = self.tensor(ArrayView1::from(&x[..]))?,
            Part::Weights(shape, bits, codes) => {
                let before = codes.iter().map(|&code| code.into()).collect();
                let new = self.steps(&shape, bits, before)?;
                // Of at most 8 bits.
                *codes = new.into_iter().map(|code| code as i8).collect();
            }
            Part::Bias(codes) => *codes = self.steps(&[codes.len()], 32, std::mem::take(codes))?,
        }
        Ok(())
    }

    fn steps(&mut self, shape: &[usize], bits: u8, before: Vec<i32>) -> Result<Vec<i32>> {
        match self.cursor.byte()? {
            SAME => Ok(before),
            STEPS => {
                let steps = self.codes(step_bits(bits), true, shape)?;
                let new = before.iter().zip(steps).map(|(code, step)| code.wrapping_add(step)).collect();
                Ok(Codes::new(bits, true, new).map_err(refused)?.into_values())
            }
            WHOLE => self.codes(bits, true, shape),
            other => Err(malformed(format!("difference {other} of codes is unknown to this version"))),
        }
    }
}
