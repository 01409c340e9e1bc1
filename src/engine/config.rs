//! How to build an engine: formats, calibration, ends, threads. Checked when the engine is built, where the network is known.

use ndarray::ArrayView2;

use super::budget::Budget;
use super::choose::Auto;
use super::format::{Format, Io};
use crate::error::{Error, Result};
use crate::kernel::{Isa, Pool};
use crate::nn::Dataset;
use crate::quantize::{PaletteQuantizer, check_damping};

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
    /// Damping of GPTQ; weights are rounded to the nearest code without.
    pub(super) gptq: Option<f64>,
    /// Decibels that an integer layer has to reach to be chosen, if that was set.
    pub(super) floor_db: Option<f64>,
    /// Accuracy that the engine may lose.
    pub(super) budget: Option<Budget<'a, F>>,
    /// Rows of a call that is measured.
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
            gptq: None,
            floor_db: None,
            budget: None,
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
        self.gptq.map_or(Ok(()), check_damping)?;
        if let Some(Budget { fall, .. }) = self.budget
            && !(0.0..=1.0).contains(&fall)
        {
            let range = "a share of 0 to 1";
            return Err(Error::OutOfRange { name: "accuracy budget", value: fall, range });
        }
        if self.batch > MOST_ROWS {
            let range = "at most 1,048,576 rows";
            return Err(Error::OutOfRange { name: "batch", value: self.batch as f64, range });
        }
        Ok(())
    }

    /// Another floor for [`auto`](Self::auto) than 30, in decibels: six are one bit. Layers of unchanged weights always pass.
    #[must_use]
    pub fn with_floor(mut self, decibels: f64) -> Self {
        self.floor_db = Some(decibels);
        self
    }

    /// Accuracy may fall by no more than `fall`, a share of the rows of `data` (0.005: half a point), against the network.
    ///
    /// [`Engine::build`](super::Engine::build) measures it and refuses to make an engine that loses more: the error names the layer that
    /// costs most. With [`auto`](Self::auto), the budget takes the place of the floor, unless that is set too: what is best by
    /// bytes or time is taken first, and layers are given a more exact format, the one that wins back most for its cost
    /// before others, until the budget is kept.
    ///
    /// Choose on data that the network was not trained on, and measure the final accuracy on data that was not chosen on.
    ///
    /// ```
    /// use trimnet::engine::{Auto, Config, Engine};
    /// use trimnet::ndarray::Array2;
    /// use trimnet::nn::{Dataset, Mlp};
    /// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
    ///
    /// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    /// let mlp = Mlp::builder(8).linear(16).relu().linear(3).build::<f32>(&mut rng)?;
    /// let x = Array2::from_shape_fn((60, 8), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 11.0);
    /// let labels = mlp.predict(x.view())?.rows().into_iter().map(|y| if y[0] > y[1] { 0 } else { 1 }).collect();
    /// let held_out = Dataset::classification(x.clone(), labels)?;
    ///
    /// let config = Config::auto(Auto::Bytes).with_calibration(x.view()).with_accuracy_budget(&held_out, 0.01);
    /// let engine = Engine::build(&mlp, &config)?;
    /// for (formats, accuracy) in &engine.choice().unwrap().judged {
    ///     println!("{formats:?}: {accuracy}");
    /// }
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    #[must_use]
    pub fn with_accuracy_budget(mut self, data: &'a Dataset<F>, fall: f64) -> Self {
        self.budget = Some(Budget { data, fall });
        self
    }

    /// One linear layer in `format`, all others as they are, numbers in and out.
    pub(crate) fn with_one_layer(&self, layer: usize, format: Format) -> Self
    where
        F: Clone,
    {
        Self {
            formats: Formats::Same(Format::Dense),
            layers: vec![(layer, format)],
            input: Io::Float,
            output: Io::Float,
            budget: None,
            ..self.clone()
        }
    }

    /// The floor of a format that may be chosen.
    pub(super) fn floor_db(&self) -> f64 {
        let without = if self.budget.is_some() { f64::NEG_INFINITY } else { 30.0 };
        self.floor_db.unwrap_or(without)
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

    /// Rounds the weights of integer layers so that their outputs on the calibration data change little, not each weight by itself:
    /// [`GptqQuantizer`](crate::quantize::GptqQuantizer), behind everything before them that was quantized already. For 4 bits
    /// above all. `damping` above 0 up to 1, checked when the engine is built; 0.01 is usual.
    #[must_use]
    pub fn with_gptq(mut self, damping: f64) -> Self {
        self.gptq = Some(damping);
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
