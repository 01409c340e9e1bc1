//! Formats by measurement: every format that a layer can have is built, run and timed here, and the best is taken.
//!
//! ```text
//! error     signal to noise of the layer's outputs on calibration data, in decibels: below the floor a format is out
//! bytes     of the stored layer, before entropy coding
//! latency   of the layer alone, codes in and out where its neighbours would give and take them
//! ```
//!
//! What is made of these measurements is told in `search`.

use std::time::Duration;

use ndarray::ArrayView2;

use super::budget::Judge;
use super::build::{build, exact_inputs};
use super::config::{Config, Correction};
use super::element::Element;
use super::format::{Format, Io};
use super::measure::Timing;
use super::network::Engine;
use super::recipe::{Block, Linear, Weights};
use super::search::Search;
use super::weights::{check_two_four, few_values, share_values};
use crate::error::{Error, Result};
use crate::tensor::SparseTensor;
use crate::traits::Compressed;

/// What formats are chosen for.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Auto {
    /// The fewest bytes.
    Bytes,
    /// The shortest time of a call.
    Latency,
    /// The fewest bytes of an engine whose call takes no longer than this.
    BytesUnderLatency(Duration),
}

/// A format that a layer could have, measured.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Candidate {
    /// The format.
    pub format: Format,
    /// Signal to noise of the layer's outputs in decibels; infinite where nothing was lost, in JSON the word `"inf"`.
    #[cfg_attr(feature = "serde", serde(with = "crate::float::number"))]
    pub sqnr_db: f64,
    /// Bytes stored, before entropy coding.
    pub bytes: usize,
    /// One call of the layer alone.
    pub latency: Timing,
    /// Whether its error is below the floor that was asked for.
    pub accurate: bool,
}

/// The candidates of each layer, in the order of [`Format::ALL`], and what the whole engine was measured against.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Choice {
    /// What was asked for.
    pub auto: Auto,
    /// Rows of a call when measuring.
    pub batch: usize,
    /// Candidates of each linear layer.
    pub layers: Vec<Vec<Candidate>>,
    /// Whole engines that were timed: their formats, and one call.
    pub engines: Vec<(Vec<Format>, Timing)>,
    /// Whole engines that an accuracy budget was measured on: their formats, and the share of right answers.
    #[cfg_attr(feature = "serde", serde(default))]
    pub judged: Vec<(Vec<Format>, f64)>,
}

/// Time for one candidate.
pub(super) const BUDGET: Duration = Duration::from_millis(4);

/// Rows of calibration data that errors are measured on.
const ROWS: usize = 256;

/// Sparse formats are tried from this share of zeros on.
const SPARSE: f64 = 0.3;

/// The formats of all linear layers, and what was measured on the way.
pub(super) fn choose<'c, F: Element>(
    inputs: usize,
    blocks: &[Block<F>],
    auto: Auto,
    config: &Config<'c, F>,
    judge: Option<&Judge<'c, F>>,
) -> Result<(Vec<Format>, Choice)> {
    let data = config.calibration.ok_or_else(|| Error::Unsupported {
        what: "choosing formats",
        reason: "errors are measured on calibration data: give some hundred typical inputs with \
                 Config::with_calibration"
            .into(),
    })?;
    let mut layers = Vec::new();
    let inputs_of = exact_inputs(inputs, blocks, data, config)?;
    for (i, x) in inputs_of {
        let Some(Block::Linear(layer)) = blocks.get(i) else { continue };
        let next_is_linear = matches!(blocks.get(i + 1), Some(Block::Linear(_)));
        let view = ArrayView2::from_shape((x.len() / layer.inputs, layer.inputs), &x)
            .map_err(|error| Error::Unsupported { what: "calibration data", reason: error.to_string() })?;
        layers.push(candidates(layer, next_is_linear, view, config)?);
    }
    let choice = Choice { auto, batch: config.batch, layers, engines: Vec::new(), judged: Vec::new() };
    let rows = repeated(data, config.batch);
    Search::new(inputs, blocks, config, judge, rows, choice)?.run()
}

/// Every format of one layer, whose inputs are `x`.
fn candidates<F: Element>(
    layer: &Linear<F>,
    codes_out: bool,
    x: ArrayView2<'_, F>,
    config: &Config<'_, F>,
) -> Result<Vec<Candidate>> {
    let Weights::Float { weight, bias } = &layer.weights else { return Ok(Vec::new()) };
    let zeros = weight.iter().filter(|w| **w == F::zero()).count();
    let sparse = zeros as f64 >= SPARSE * weight.len() as f64;
    let two_four = check_two_four(weight, layer.inputs).is_ok();
    let block = [Block::Linear(layer.clone())];
    // Clustered once, not for each engine below.
    let weight = share_values(weight, (layer.outputs, layer.inputs), config.entries)?;
    let values = few_values(&weight).unwrap_or(config.entries);
    let weights = Weights::Float { weight, bias: bias.clone() };
    let shared = [Block::Linear(Linear { weights, ..layer.clone() })];
    let alone = |format, input, output| -> Result<Engine<F>> {
        let config = Config {
            calibration: Some(x),
            input,
            output,
            correction: Correction::Mean,
            layers: Vec::new(),
            budget: None,
            ..config.clone()
        };
        let block = if format == Format::Palette { &shared } else { &block };
        let recipe = build(layer.inputs, block, &[format], &config)?;
        Engine::from_recipe(recipe, config.isa, config.pool)
    };
    let some = x.slice(ndarray::s![..x.nrows().min(ROWS), ..]);
    let exact = alone(Format::Dense, Io::Float, Io::Float)?.predict(some)?;
    let batch = repeated(x, config.batch);
    let mut all = Vec::new();
    for format in Format::ALL {
        let possible = match format {
            Format::Sparse | Format::SparseInt8 => sparse,
            Format::TwoFour | Format::TwoFourInt8 => two_four,
            _ => true,
        };
        if !possible {
            continue;
        }
        let input = if format.is_static() { Io::Codes } else { Io::Float };
        let output = if format.is_static() && codes_out { Io::Codes } else { Io::Float };
        let (found, latency) = match (alone(format, Io::Float, Io::Float), alone(format, input, output)) {
            (Ok(whole), Ok(part)) => (whole.predict(some)?, part.measure(batch.view(), BUDGET)?),
            // Sums that 32 bits cannot hold, weights or activations that `f32` cannot.
            (Err(Error::Unsupported { .. } | Error::NotFinite { .. } | Error::Empty { .. }), _)
            | (_, Err(Error::NotFinite { .. } | Error::Empty { .. }))
                if format != Format::Dense =>
            {
                continue;
            }
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let sqnr_db = sqnr(exact.iter().copied(), found.iter().copied());
        let accurate = sqnr_db >= config.floor_db() || !format.is_lossy();
        let bytes = stored_bytes(layer, format, values)?;
        all.push(Candidate { format, sqnr_db, bytes, latency, accurate });
    }
    Ok(all)
}

/// Signal to noise in decibels.
pub(crate) fn sqnr<F: Element>(exact: impl Iterator<Item = F>, found: impl Iterator<Item = F>) -> f64 {
    let (mut signal, mut noise) = (0.0, 0.0);
    for (exact, found) in exact.zip(found) {
        let (exact, found) = (exact.as_f64(), found.as_f64());
        signal += exact * exact;
        noise += (exact - found) * (exact - found);
    }
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() }
}

/// Bytes of weights, scales, indices and bias; a palette has so many `values`.
fn stored_bytes<F: Element>(layer: &Linear<F>, format: Format, values: usize) -> Result<usize> {
    let Weights::Float { weight, .. } = &layer.weights else { return Ok(0) };
    let (n, outputs) = (weight.len(), layer.outputs);
    let nonzero = layer.nonzero();
    let rest = if format.is_integer() { 8 * outputs } else { F::BYTES * outputs };
    let weights = match format {
        Format::Dense => F::BYTES * n,
        Format::Sparse => {
            let view = ArrayView2::from_shape((outputs, layer.inputs), weight)
                .map_err(|error| Error::Unsupported { what: "weights", reason: error.to_string() })?;
            SparseTensor::new(view).size_bytes()
        }
        Format::Int8 | Format::Int8Dynamic => n,
        Format::Int4 => n.div_ceil(2),
        // A bit for each weight, a byte for those that are not 0.
        Format::SparseInt8 => n.div_ceil(8) + nonzero,
        // Half of the weights, two bits each for where they are.
        Format::TwoFour => F::BYTES * n.div_ceil(2) + n.div_ceil(8),
        Format::TwoFourInt8 => n.div_ceil(2) + n.div_ceil(8),
        Format::Palette => F::BYTES * values + if values <= 16 { n.div_ceil(2) } else { n },
    };
    Ok(weights + rest)
}

/// So many rows, from the first on and again.
pub(crate) fn repeated<F: Element>(x: ArrayView2<'_, F>, rows: usize) -> ndarray::Array2<F> {
    let count = x.nrows().max(1);
    ndarray::Array2::from_shape_fn((rows, x.ncols()), |(i, j)| x[[i % count, j]])
}
