//! How to build an engine: formats, calibration, ends, threads. Checked when the engine is built, where the network is known.

use ndarray::ArrayView2;

use super::choose::Auto;
use super::format::{Format, Io};
use crate::error::{Error, Result};
use crate::kernel::{Isa, Pool};
use crate::quantize::PaletteQuantizer;

/// Rows of a call that may be measured.
const MOST_ROWS: usize = 1 << 20;

/// How the range of an activation is found from calibration data.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RangeChoice {
    /// The best of all below, by the measured error of the codes; for each activation anew.
    #[default]
    Measured,
    /// From the least to the largest number seen.
    MinMax,
    /// The middle 99.99 percent.
    Percentile,
    /// The least squared error.
    LeastSquares,
    /// The least divergence of the distributions.
    Entropy,
}

/// Where the formats of layers come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Formats {
    Same(Format),
    Measured(Auto),
}

/// Whether the mean error of an integer layer is taken off its bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Correction {
    #[default]
    Mean,
    None,
}

/// What [`Engine::build`](super::Engine::build) is to make of a network.
///
/// ```
/// use trimnet::engine::{Config, Engine, Format, Io};
/// use trimnet::ndarray::Array2;
/// use trimnet::nn::Mlp;
/// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let mlp = Mlp::builder(8).linear(16).relu().linear(3).build::<f32>(&mut rng)?;
/// let data = Array2::from_shape_fn((50, 8), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 11.0);
///
/// let config = Config::new(Format::Int8).with_calibration(data.view()).with_layer(1, Format::Dense);
/// let engine = Engine::build(&mlp, &config)?;
/// assert_eq!(engine.layers()[0].format, Format::Int8);
/// assert_eq!(engine.layers()[1].format, Format::Dense);
///
/// let config = Config::new(Format::Int8).with_calibration(data.view()).with_io(Io::Codes, Io::Float);
/// assert!(Engine::build(&mlp, &config)?.entry().is_some()); // scale and zero point of the codes that go in
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Config<'a, F> {
    pub(super) formats: Formats,
    pub(super) layers: Vec<(usize, Format)>,
    pub(super) calibration: Option<ArrayView2<'a, F>>,
    pub(super) range: RangeChoice,
    pub(super) correction: Correction,
    /// Decibels that an integer layer has to reach to be chosen, and rows of a call that is measured.
    pub(super) floor_db: f64,
    pub(super) batch: usize,
    /// Values that palettes are clustered to.
    pub(super) entries: usize,
    pub(super) input: Io,
    pub(super) output: Io,
    pub(super) isa: Isa,
    pub(super) pool: Pool,
}

impl<'a, F> Config<'a, F> {
    /// Every linear layer in `format`; numbers in and out; all instructions and all cores of this machine.
    pub fn new(format: Format) -> Self {
        Self::with_formats(Formats::Same(format))
    }

    /// Every linear layer in the format that measures best here, for calls of one row, among those that leave a layer at
    /// least 30 dB of signal to noise.
    #[must_use]
    pub fn auto(auto: Auto) -> Self {
        Self::with_formats(Formats::Measured(auto))
    }

    fn with_formats(formats: Formats) -> Self {
        Self {
            formats,
            layers: Vec::new(),
            calibration: None,
            range: RangeChoice::default(),
            correction: Correction::default(),
            floor_db: 30.0,
            batch: 1,
            entries: 16,
            input: Io::default(),
            output: Io::default(),
            isa: Isa::best(),
            pool: Pool::shared(),
        }
    }

    /// Another format for one linear layer, counted from 0.
    #[must_use]
    pub fn with_layer(mut self, layer: usize, format: Format) -> Self {
        self.layers.push((layer, format));
        self
    }

    /// Typical inputs `[rows, inputs]`, some hundreds of them: from their activations come the scales of codes, and the
    /// mean errors that are taken off the biases.
    #[must_use]
    pub fn with_calibration(mut self, inputs: ArrayView2<'a, F>) -> Self {
        self.calibration = Some(inputs);
        self
    }

    /// The settings that no constructor has refused.
    pub(super) fn check(&self) -> Result<()> {
        PaletteQuantizer::new(self.entries)?;
        if self.batch > MOST_ROWS {
            let range = "at most 1,048,576 rows";
            return Err(Error::OutOfRange { name: "batch", value: self.batch as f64, range });
        }
        Ok(())
    }

    /// Another floor for [`auto`](Self::auto), in decibels: six are one bit. Layers of unchanged weights always pass.
    #[must_use]
    pub fn with_floor(mut self, decibels: f64) -> Self {
        self.floor_db = decibels;
        self
    }

    /// Another number of rows for the calls that [`auto`](Self::auto) measures: at most 1,048,576, checked when the engine is built;
    /// 0 counts as 1.
    #[must_use]
    pub fn with_batch(mut self, rows: usize) -> Self {
        self.batch = rows.max(1);
        self
    }

    /// Another number of values for the weights of a layer of [`Format::Palette`] than 16: 2 to 256, checked when the engine is
    /// built. Up to 16 take 4 bits for each weight, more take 8. Weights that have at most 256 different values already are
    /// kept as they are.
    #[must_use]
    pub fn with_palette_entries(mut self, entries: usize) -> Self {
        self.entries = entries;
        self
    }

    /// Another way to find ranges.
    #[must_use]
    pub fn with_range(mut self, range: RangeChoice) -> Self {
        self.range = range;
        self
    }

    /// Leaves the mean error of integer layers as it is. With [`RangeChoice::MinMax`] the codes are then those that ONNX
    /// Runtime's tool makes of the same weights.
    #[must_use]
    pub fn without_bias_correction(mut self) -> Self {
        self.correction = Correction::None;
        self
    }

    /// Numbers or codes at the entry and at the exit.
    #[must_use]
    pub fn with_io(mut self, input: Io, output: Io) -> Self {
        (self.input, self.output) = (input, output);
        self
    }

    /// Other instructions than the best: integer results are the same on all of them.
    #[must_use]
    pub fn with_isa(mut self, isa: Isa) -> Self {
        self.isa = isa;
        self
    }

    /// Other threads than one per core; [`Pool::single`] for the caller alone.
    #[must_use]
    pub fn with_pool(mut self, pool: Pool) -> Self {
        self.pool = pool;
        self
    }
}
