//! What deploying a network cost and what it won: bytes, errors, accuracy and time, all of them measured here and now.
//!
//! ```text
//! bytes   of the file that Engine::save writes: weights + scales + indices + metadata = its length
//! SQNR    10 log10(sum of y^2 / sum of (y - y')^2) of a layer's outputs, y of the network, y' of the engine
//! ```
//!
//! Sizes come from the encoded file, times from clocks on this machine; nothing is derived from counting operations.

pub mod sensitivity;

use std::fmt;
use std::time::Duration;

use ndarray::{Axis, Slice};

use crate::engine::recipe::Block;
use crate::engine::{
    Bound, Candidate, Config, Element, Engine, Format, Timing, break_even_density, repeated, sqnr,
};
use crate::error::{Error, Result};
use crate::io::trim::{Limits, TrimReport};
use crate::nn::metrics::accuracy;
use crate::nn::{Dataset, Mlp};
use crate::quantize::QuantParams;

pub use sensitivity::{Sensitivity, Treatment, Trial};

/// Where bytes of a file went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Bytes {
    /// Weights and biases.
    pub weights: usize,
    /// Scales of codes, palettes.
    pub scales: usize,
    /// Where weights that are not 0 are.
    pub indices: usize,
    /// Lengths, shapes, settings, checksums.
    pub metadata: usize,
}

impl Bytes {
    /// All of them.
    pub fn total(&self) -> usize {
        self.weights + self.scales + self.indices + self.metadata
    }
}

/// One linear layer.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LayerReport {
    /// How it is stored and multiplied.
    pub format: Format,
    /// Inputs.
    pub inputs: usize,
    /// Outputs.
    pub outputs: usize,
    /// Weights and biases, zeros included.
    pub parameters: usize,
    /// Weights that are not 0.
    pub nonzero: usize,
    /// Its bytes in the file.
    pub bytes: Bytes,
    /// Signal to noise of its outputs against the network's, in decibels; infinite where nothing was lost, none if the
    /// network has other layers.
    #[cfg_attr(feature = "serde", serde(with = "crate::float::number::option", default))]
    pub sqnr_db: Option<f64>,
    /// The worst case of its integer sums.
    pub bound: Option<Bound>,
    /// What it was measured against, if its format was chosen by measurement.
    pub candidates: Vec<Candidate>,
    /// Share of weights that are not 0 at which the sparse kernel becomes as slow as the dense one here, one row at a time;
    /// measured where many weights are 0.
    pub break_even_density: Option<f64>,
    /// Why it has this format.
    pub why: String,
}

/// The whole engine.
///
/// In a file for people, as JSON, an infinite signal to noise is the word `"inf"`.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Report {
    /// Linear layers, first to last.
    pub layers: Vec<LayerReport>,
    /// Scale and zero point of the codes that go in; none if numbers do.
    #[cfg_attr(feature = "serde", serde(default))]
    pub entry: Option<QuantParams<f32>>,
    /// Scale and zero point of the codes that come out; none if numbers do.
    #[cfg_attr(feature = "serde", serde(default))]
    pub exit: Option<QuantParams<f32>>,
    /// Parameters of the network, and of the engine.
    pub parameters: (usize, usize),
    /// Bytes of the engine's file.
    pub bytes: Bytes,
    /// Length of the network's file, and of the engine's.
    pub file_bytes: (usize, usize),
    /// Rows that accuracy and errors were measured on.
    pub rows: usize,
    /// Share of right classes of the network, and of the engine; none without labels.
    pub accuracy: Option<(f64, f64)>,
    /// Signal to noise of the outputs in decibels; infinite where nothing was lost.
    #[cfg_attr(feature = "serde", serde(with = "crate::float::number"))]
    pub sqnr_db: f64,
    /// One row at a time.
    pub latency: Timing,
    /// The same of an engine whose layers are all dense numbers.
    pub dense_latency: Timing,
    /// A batch of 256 rows.
    pub batch_256: Timing,
    /// The same of an engine whose layers are all dense numbers.
    pub dense_batch_256: Timing,
    /// Instructions that were used.
    pub instructions: String,
    /// Threads that were allowed.
    pub threads: usize,
}

/// Time for each measurement.
const BUDGET: Duration = Duration::from_millis(60);

/// Rows that errors of layers are measured on.
const ROWS: usize = 512;

/// The break-even density is measured from this share of zeros on.
const SPARSE: f64 = 0.3;

/// Measures an engine against the network that it was made of.
///
/// ```
/// use trimnet::engine::{Config, Engine, Format};
/// use trimnet::ndarray::Array2;
/// use trimnet::nn::{Dataset, Mlp};
/// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let mlp = Mlp::builder(20).linear(32).relu().linear(3).build::<f32>(&mut rng)?;
/// let x = Array2::from_shape_fn((90, 20), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 11.0);
/// let data = Dataset::classification(x, (0..90).map(|i| i % 3).collect())?;
///
/// let config = Config::new(Format::Int8).with_calibration(data.inputs());
/// let engine = Engine::build(&mlp, &config)?;
/// let report = trimnet::report::report(&mlp, &engine, &data)?;
/// assert_eq!(report.bytes.total(), engine.to_bytes().len());
/// println!("{report}");
/// # Ok::<(), trimnet::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if network, engine and data do not fit; [`Error::Empty`] without data.
pub fn report<F: Element>(mlp: &Mlp<F>, engine: &Engine<F>, data: &Dataset<F>) -> Result<Report> {
    if data.rows() == 0 {
        return Err(Error::Empty { what: "the data of the report" });
    }
    let config = Config::new(Format::Dense).with_isa(engine.isa()).with_pool(engine.pool().clone());
    let dense = Engine::build(mlp, &config)?;
    let rows = data.rows().min(ROWS);
    let some = data.inputs().slice_axis_move(Axis(0), Slice::from(..rows as isize));
    let (exact, found) = (dense.behind_linears(some)?, engine.behind_linears(some)?);
    let same = exact.len() == found.len() && exact.iter().zip(&found).all(|(a, b)| a.dim() == b.dim());
    let before = mlp.predict(data.inputs())?;
    let after = engine.numbers(data.inputs())?;
    if before.dim() != after.dim() {
        let (actual, expected) = (after.shape().to_vec(), before.shape().to_vec());
        return Err(Error::Shape { what: "output of the engine", actual, expected });
    }
    let file = engine.to_bytes();
    let sizes = TrimReport::of_bytes_with(&file, &Limits::new(usize::MAX, 0))?;
    let places = engine.blocks().iter().enumerate();
    let places = places.filter(|(_, block)| matches!(block, Block::Linear(_))).map(|(place, _)| place);
    let mut layers = Vec::new();
    let mut total = Bytes { metadata: sizes.header, ..Bytes::default() };
    sizes.tensors.iter().for_each(|tensor| add(&mut total, tensor));
    for (i, (info, place)) in engine.layers().into_iter().zip(places).enumerate() {
        let mut bytes = Bytes::default();
        let prefix = format!("{place}.");
        let own = sizes.tensors.iter().filter(|tensor| tensor.name.starts_with(&prefix));
        own.for_each(|tensor| add(&mut bytes, tensor));
        let weights = info.inputs * info.outputs;
        let zeros = 1.0 - info.nonzero as f64 / weights as f64;
        let break_even_density = if zeros >= SPARSE {
            break_even_density((info.outputs, info.inputs), 1, engine.isa(), engine.pool())?
        } else {
            None
        };
        let candidates = engine.choice().and_then(|choice| choice.layers.get(i)).cloned().unwrap_or_default();
        layers.push(LayerReport {
            format: info.format,
            inputs: info.inputs,
            outputs: info.outputs,
            parameters: weights + info.outputs,
            nonzero: info.nonzero,
            bytes,
            sqnr_db: same.then(|| sqnr(exact[i].iter().copied(), found[i].iter().copied())),
            bound: info.bound,
            why: why(info.format, 1.0 - zeros, &candidates, break_even_density),
            candidates,
            break_even_density,
        });
    }
    let (one, many) = (repeated(data.inputs(), 1), repeated(data.inputs(), 256));
    let accuracy = match data.labels() {
        Some(labels) => Some((accuracy(before.view(), labels)?, accuracy(after.view(), labels)?)),
        None => None,
    };
    Ok(Report {
        entry: engine.entry(),
        exit: engine.exit(),
        parameters: (mlp.parameters(), layers.iter().map(|layer| layer.parameters).sum()),
        layers,
        bytes: total,
        file_bytes: (mlp.to_bytes().len(), file.len()),
        rows: data.rows(),
        accuracy,
        sqnr_db: sqnr(before.iter().copied(), after.iter().copied()),
        latency: engine.measure(one.view(), BUDGET)?,
        dense_latency: dense.measure(one.view(), BUDGET)?,
        batch_256: engine.measure(many.view(), BUDGET)?,
        dense_batch_256: dense.measure(many.view(), BUDGET)?,
        instructions: engine.isa().name().to_string(),
        threads: engine.pool().threads(),
    })
}

fn add(bytes: &mut Bytes, tensor: &crate::io::trim::TensorReport) {
    bytes.metadata += tensor.bytes.head;
    bytes.indices += tensor.bytes.mask;
    bytes.scales += tensor.bytes.table;
    if tensor.name.ends_with(".scale") {
        bytes.scales += tensor.bytes.values;
    } else {
        bytes.weights += tensor.bytes.values;
    }
}

/// The reason in words and measured numbers.
fn why(format: Format, density: f64, candidates: &[Candidate], break_even: Option<f64>) -> String {
    let of = |format| candidates.iter().find(|c| c.format == format);
    let mut why = match of(format) {
        None if candidates.is_empty() => "as asked for".to_string(),
        None => "set by hand".to_string(),
        Some(own) => {
            let mut why = format!("{:.1} us, {} bytes", own.latency.median_us, own.bytes);
            for other in candidates.iter().filter(|c| c.format != format) {
                let short = if other.accurate { "" } else { ", too noisy" };
                why += &format!(
                    "; {} {:.1} us, {} bytes, {:.0} dB{short}",
                    other.format, other.latency.median_us, other.bytes, other.sqnr_db
                );
            }
            why
        }
    };
    if let Some(break_even) = break_even {
        let verdict = if density < break_even { "faster" } else { "slower" };
        why += &format!(
            "; in numbers, sparse is {verdict} than dense here: density {density:.2}, break-even measured {break_even:.2}"
        );
    }
    why
}

/// What dense numbers may be faster by without a word: two measurements of the same differ by as much.
const MARGIN: f64 = 1.05;

impl Report {
    /// The calls that took longer than those of dense numbers, and how many times as long.
    pub fn slower(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let calls = [
            ("one row", &self.latency, &self.dense_latency),
            ("256 rows", &self.batch_256, &self.dense_batch_256),
        ];
        let times = calls.map(|(call, own, dense)| (call, own.median_us / dense.median_us));
        times.into_iter().filter(|&(_, times)| times > MARGIN)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = "-".repeat(104);
        writeln!(
            f,
            "{:<6}{:<13}{:>13}{:>11}{:>10}{:>10}{:>9}{:>9}{:>9}{:>10}",
            "layer", "format", "shape", "nonzero", "weights", "scales", "indices", "meta", "bytes", "SQNR dB"
        )?;
        writeln!(f, "{line}")?;
        for (i, layer) in self.layers.iter().enumerate() {
            let Bytes { weights, scales, indices, metadata } = layer.bytes;
            let shape = format!("{} x {}", layer.outputs, layer.inputs);
            let sqnr = layer.sqnr_db.map_or("-".to_string(), |db| format!("{db:.1}"));
            writeln!(
                f,
                "{i:<6}{:<13}{shape:>13}{:>11}{weights:>10}{scales:>10}{indices:>9}{metadata:>9}{:>9}{sqnr:>10}",
                layer.format,
                layer.nonzero,
                layer.bytes.total()
            )?;
        }
        let Bytes { weights, scales, indices, metadata } = self.bytes;
        writeln!(f, "{line}")?;
        writeln!(
            f,
            "{:<19}{:>13}{:>11}{weights:>10}{scales:>10}{indices:>9}{metadata:>9}{:>9}{:>10.1}",
            "file",
            "",
            "",
            self.bytes.total(),
            self.sqnr_db
        )?;
        writeln!(f)?;
        let ends = |params: Option<QuantParams<f32>>| match params {
            Some(QuantParams { scale, zero_point }) => {
                format!("u8 codes of scale {scale:e} and zero point {zero_point}")
            }
            None => "numbers".to_string(),
        };
        writeln!(f, "in, out      {}; {}", ends(self.entry), ends(self.exit))?;
        writeln!(f, "parameters   {} -> {}", self.parameters.0, self.parameters.1)?;
        let (before, after) = self.file_bytes;
        let ratio = before as f64 / after.max(1) as f64;
        writeln!(f, "file         {before} -> {after} bytes ({ratio:.1} times smaller)")?;
        if let Some((before, after)) = self.accuracy {
            let (before, after) = (100.0 * before, 100.0 * after);
            writeln!(f, "accuracy     {before:.2} % -> {after:.2} % on {} rows", self.rows)?;
        }
        writeln!(f, "one row      {}; all dense {}", self.latency, self.dense_latency)?;
        let rate = |timing: &Timing| 256.0 / timing.median_us * 1e6;
        writeln!(
            f,
            "256 rows     {}, {:.0} rows/s; all dense {}, {:.0} rows/s",
            self.batch_256,
            rate(&self.batch_256),
            self.dense_batch_256,
            rate(&self.dense_batch_256)
        )?;
        let slower: Vec<_> = self.slower().map(|(call, times)| format!("{call} {times:.2} times")).collect();
        if !slower.is_empty() {
            let slower = slower.join(", ");
            writeln!(f, "slower here  than all dense: {slower}; Auto::Latency takes what is faster")?;
        }
        writeln!(f, "measured on  {}, at most {} threads", self.instructions, self.threads)?;
        for (i, layer) in self.layers.iter().enumerate() {
            write!(f, "layer {i}: {}: {}", layer.format, layer.why)?;
            if let Some(bound) = layer.bound {
                let share = bound.worst as f64 / f64::from(i32::MAX);
                write!(
                    f,
                    "; largest possible sum {:.1e}, {:.2} % of 32 bits",
                    bound.worst as f64,
                    100.0 * share
                )?;
                if bound.parts > 1 {
                    write!(f, ", so it is split into {} parts", bound.parts)?;
                }
            }
            if i + 1 < self.layers.len() {
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Auto, Io};
    use ndarray::Array2;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    fn example() -> (Mlp<f32>, Dataset<f32>) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mlp = Mlp::builder(40).linear(32).batch_norm().relu().dropout(0.5).linear(24).tanh().linear(3);
        let mlp = mlp.build::<f32>(&mut rng).unwrap();
        let x = Array2::from_shape_fn((90, 40), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 11.0);
        (mlp, Dataset::classification(x, (0..90).map(|i| i % 3).collect()).unwrap())
    }

    #[test]
    fn the_parts_add_up_to_the_length_of_the_file() {
        let (mlp, data) = example();
        for format in [Format::Dense, Format::Int8, Format::Int4, Format::SparseInt8] {
            let config = Config::new(format).with_calibration(data.inputs());
            let engine = Engine::build(&mlp, &config).unwrap();
            let report = report(&mlp, &engine, &data).unwrap();
            assert_eq!(report.bytes.total(), engine.to_bytes().len());
            assert_eq!(report.file_bytes, (mlp.to_bytes().len(), engine.to_bytes().len()));
            assert!(
                report.layers.iter().map(|layer| layer.bytes.total()).sum::<usize>() < report.bytes.total()
            );
            assert!(report.layers.iter().all(|layer| layer.sqnr_db.is_some_and(|db| db > 5.0)), "{report}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_report_of_a_lossless_engine_comes_back_from_json() {
        let (mlp, data) = example();
        let engine = Engine::build(&mlp, &Config::new(Format::Dense)).unwrap();
        let report = report(&mlp, &engine, &data).unwrap();
        let lossless = Report {
            sqnr_db: f64::INFINITY,
            layers: report
                .layers
                .iter()
                .map(|layer| LayerReport { sqnr_db: Some(f64::INFINITY), ..layer.clone() })
                .collect(),
            ..report.clone()
        };
        for report in [report, lossless] {
            let text = serde_json::to_string(&report).unwrap();
            assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report, "{text}");
        }
    }

    #[test]
    fn codes_at_the_ends_are_told_with_their_scales() {
        let (mlp, data) = example();
        let config = Config::new(Format::Int8).with_calibration(data.inputs());
        let numbers = report(&mlp, &Engine::build(&mlp, &config).unwrap(), &data).unwrap();
        assert!(numbers.to_string().contains("in, out      numbers; numbers"));
        let engine = Engine::build(&mlp, &config.with_io(Io::Codes, Io::Codes)).unwrap();
        let report = report(&mlp, &engine, &data).unwrap();
        assert_eq!((report.entry, report.exit), (engine.entry(), engine.exit()));
        let scale = engine.exit().unwrap().scale;
        let text = report.to_string();
        assert!(text.contains(&format!("u8 codes of scale {scale:e}")), "{text}");
        // The codes of the output are a little noisier than its numbers.
        assert!(report.sqnr_db > 20.0 && report.sqnr_db < numbers.sqnr_db, "{text}");
        assert_eq!(report.bytes.total(), engine.to_bytes().len());
    }

    #[test]
    fn prints_every_measured_alternative() {
        let (mlp, data) = example();
        let config = Config::auto(Auto::Latency).with_floor(40.0).with_calibration(data.inputs());
        let engine = Engine::build(&mlp, &config).unwrap();
        let text = report(&mlp, &engine, &data).unwrap().to_string();
        for word in ["dense", "int8 dynamic", "int4", "too noisy", "times smaller", "rows/s"] {
            assert!(text.contains(word), "{word} in\n{text}");
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let (mlp, data) = example();
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(2);
        let other = Mlp::builder(41).linear(3).build::<f32>(&mut rng).unwrap();
        let engine = Engine::build(&other, &Config::new(Format::Dense)).unwrap();
        assert!(report(&mlp, &engine, &data).is_err());
    }

    #[test]
    fn says_where_dense_numbers_are_faster() {
        let (mlp, data) = example();
        let engine = Engine::build(&mlp, &Config::new(Format::Dense)).unwrap();
        let mut report = report(&mlp, &engine, &data).unwrap();
        (report.latency, report.batch_256) = (report.dense_latency, report.dense_batch_256);
        assert!(!report.to_string().contains("slower here"));
        report.latency.median_us = 1.5 * report.dense_latency.median_us;
        assert_eq!(report.slower().map(|(call, _)| call).collect::<Vec<_>>(), ["one row"]);
        let text = report.to_string();
        assert!(text.contains("slower here  than all dense: one row 1.50 times; Auto::Latency"), "{text}");
    }
}
