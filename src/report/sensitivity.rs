//! Which layer is the problem? Each linear layer compressed alone, in several ways, and the whole network measured.
//!
//! ```text
//! SQNR         10 log10(sum of y^2 / sum of (y - y')^2) of the outputs of the network, y' with one layer compressed
//! bytes        of the file that Engine::save writes, against one of numbers only
//! ```
//!
//! Layers that are harmless alone may not be so together: measure the whole with [`report`](super::report()), or let
//! [`Config::with_accuracy_budget`] search.

use std::fmt;

use ndarray::{Array2, Ix2};

use crate::engine::{Config, Element, Engine, Format, sqnr};
use crate::error::{Error, Result};
use crate::nn::objective::Tally;
use crate::nn::{Dataset, Evaluation, Mlp};
use crate::prune::{MagnitudePruner, NmPruner, Pruner};

/// What is done to a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Treatment {
    /// Stored and multiplied in another format.
    Format(Format),
    /// This share of the weights is zero, the smallest magnitudes; nothing is trained afterwards.
    Sparsity(f64),
    /// Of four neighbouring inputs the two smallest magnitudes are zero; nothing is trained afterwards.
    TwoFour,
}

impl Treatment {
    /// Eight and four bits, a palette, half to nine tenths of zeros, and 2:4.
    pub const USUAL: [Self; 7] = [
        Self::Format(Format::Int8),
        Self::Format(Format::Int4),
        Self::Format(Format::Palette),
        Self::Sparsity(0.5),
        Self::Sparsity(0.75),
        Self::Sparsity(0.9),
        Self::TwoFour,
    ];

    /// An engine of the network in which one linear layer is treated.
    fn engine<F: Element>(self, mlp: &Mlp<F>, config: &Config<'_, F>, layer: usize) -> Result<Engine<F>> {
        let pruned = |pruner: &dyn Fn(&mut Mlp<F>) -> Result<()>, format| {
            let mut mlp = mlp.clone();
            pruner(&mut mlp)?;
            Engine::build(&mlp, &config.with_one_layer(layer, format))
        };
        fn prune<F: Element>(mlp: &mut Mlp<F>, layer: usize, pruner: &impl Pruner<F, Ix2>) -> Result<()> {
            mlp.prune_each(layer..layer + 1, pruner).map(drop)
        }
        match self {
            Self::Format(format) => Engine::build(mlp, &config.with_one_layer(layer, format)),
            Self::Sparsity(share) => {
                let pruner = MagnitudePruner::sparsity(share)?;
                pruned(&|mlp| prune(mlp, layer, &pruner), Format::Sparse)
            }
            Self::TwoFour => {
                let pruner = NmPruner::keep(2, 4)?;
                pruned(&|mlp| prune(mlp, layer, &pruner), Format::TwoFour)
            }
        }
    }
}

impl fmt::Display for Treatment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(format) => format.fmt(f),
            Self::Sparsity(share) => f.pad(&format!("{} % zeros", 100.0 * share)),
            Self::TwoFour => f.pad("2:4"),
        }
    }
}

/// The network with one linear layer compressed.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Trial {
    /// The linear layer, from 0.
    pub layer: usize,
    /// What was done to it.
    pub treatment: Treatment,
    /// Signal to noise of the outputs of the network in decibels; infinite where nothing was lost, in JSON the word `"inf"`.
    #[cfg_attr(feature = "serde", serde(with = "crate::float::number"))]
    pub sqnr_db: f64,
    /// Loss and accuracy.
    pub after: Evaluation,
    /// Bytes of the file.
    pub bytes: usize,
}

/// Every treatment of every linear layer, what harms most first.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Sensitivity {
    /// Loss and accuracy of the network.
    pub before: Evaluation,
    /// Bytes of the file of an engine of numbers only.
    pub bytes: usize,
    /// Rows that were measured on.
    pub rows: usize,
    /// By the fall of accuracy, then by the rise of the loss.
    pub trials: Vec<Trial>,
}

impl Sensitivity {
    /// Measures `treatments` of each linear layer on `data`. Calibration and everything else but formats, ends and budgets is taken
    /// from `config`; what a layer cannot be made into is left out.
    ///
    /// ```
    /// use trimnet::engine::{Config, Format};
    /// use trimnet::ndarray::Array2;
    /// use trimnet::nn::{Dataset, Mlp};
    /// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
    /// use trimnet::report::{Sensitivity, Treatment};
    ///
    /// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    /// let mlp = Mlp::builder(8).linear(16).relu().linear(3).build::<f32>(&mut rng)?;
    /// let x = Array2::from_shape_fn((90, 8), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 11.0);
    /// let data = Dataset::classification(x.clone(), (0..90).map(|i| i % 3).collect())?;
    ///
    /// let config = Config::new(Format::Dense).with_calibration(x.view());
    /// let sensitivity = Sensitivity::sweep(&mlp, &config, &data, &Treatment::USUAL)?;
    /// assert_eq!(sensitivity.trials.len(), 2 * Treatment::USUAL.len());
    /// println!("{sensitivity}");
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Label`] if network and data do not fit; [`Error::OutOfRange`] for a share of zeros beyond 0 to 1, and
    /// those of [`Engine::build`].
    pub fn sweep<F: Element>(
        mlp: &Mlp<F>,
        config: &Config<'_, F>,
        data: &Dataset<F>,
        treatments: &[Treatment],
    ) -> Result<Self> {
        let evaluation = |outputs: &Array2<F>| {
            let mut tally = Tally::default();
            tally.add(outputs.view(), data.targets()).map(|()| tally.evaluation())
        };
        let exact = mlp.predict(data.inputs())?;
        let before = evaluation(&exact)?;
        let dense = Engine::build(mlp, &config.with_one_layer(0, Format::Dense))?;
        let mut trials = Vec::new();
        for layer in 0..mlp.linears().count() {
            for &treatment in treatments {
                let engine = match treatment.engine(mlp, config, layer) {
                    Ok(engine) => engine,
                    // As Config::auto leaves them out; static formats without calibration are a mistake.
                    Err(
                        Error::Unsupported { what: "format 2:4", .. }
                        | Error::NotFinite { .. }
                        | Error::Empty { .. },
                    ) => continue,
                    Err(error) => return Err(error),
                };
                let found = engine.numbers(data.inputs())?;
                trials.push(Trial {
                    layer,
                    treatment,
                    sqnr_db: sqnr(exact.iter().copied(), found.iter().copied()),
                    after: evaluation(&found)?,
                    bytes: engine.to_bytes().len(),
                });
            }
        }
        let harm = |trial: &Trial| (-trial.after.accuracy.unwrap_or_default(), trial.after.loss);
        trials.sort_by(|a, b| {
            let (a, b) = (harm(a), harm(b));
            b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1))
        });
        Ok(Self { before, bytes: dense.to_bytes().len(), rows: data.rows(), trials })
    }
}

impl fmt::Display for Sensitivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accuracy = |evaluation: &Evaluation| match evaluation.accuracy {
            Some(accuracy) => format!("{:.2} %", 100.0 * accuracy),
            None => "-".to_string(),
        };
        writeln!(
            f,
            "{:<6}{:<14}{:>10}{:>10}{:>12}{:>10}{:>12}",
            "layer", "treatment", "accuracy", "points", "loss", "SQNR dB", "bytes saved"
        )?;
        writeln!(f, "{}", "-".repeat(74))?;
        for trial in &self.trials {
            let points = match (self.before.accuracy, trial.after.accuracy) {
                (Some(before), Some(after)) => format!("{:+.2}", 100.0 * (after - before)),
                _ => "-".to_string(),
            };
            writeln!(
                f,
                "{:<6}{:<14}{:>10}{points:>10}{:>12.4}{:>10.1}{:>12}",
                trial.layer,
                trial.treatment,
                accuracy(&trial.after),
                trial.after.loss,
                trial.sqnr_db,
                self.bytes as i64 - trial.bytes as i64
            )?;
        }
        write!(
            f,
            "one layer at a time, on {} rows; as it was: {}, loss {:.4}, {} bytes",
            self.rows,
            accuracy(&self.before),
            self.before.loss,
            self.bytes
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Layer, Linear};
    use ndarray::array;

    /// The second layer tells two neighbours apart that are nearly the same: it suffers from coarse weights.
    fn example() -> (Mlp<f32>, Dataset<f32>) {
        let rows = 200;
        let first = Array2::from_shape_fn((4, 4), |(i, j)| f32::from(u8::from(i == j)));
        let second = array![[1.0, 0.97, 0.3, -0.2], [0.97, 1.0, -0.2, 0.3]];
        let layer = |weight: Array2<f32>| Layer::Linear(Linear::new(weight, None).unwrap());
        let mlp = Mlp::from_layers(4, vec![layer(first), layer(second)]).unwrap();
        let x = Array2::from_shape_fn((rows, 4), |(i, j)| ((i * 7 + j * 5 + i * j) % 13) as f32 / 13.0);
        let labels =
            mlp.predict(x.view()).unwrap().rows().into_iter().map(|y| usize::from(y[1] > y[0])).collect();
        (mlp, Dataset::classification(x, labels).unwrap())
    }

    #[test]
    fn the_layer_that_suffers_stands_first_and_numbers_are_of_the_engine() {
        let (mlp, data) = example();
        let config = Config::new(Format::Int8).with_calibration(data.inputs());
        let treatments = [Treatment::Format(Format::Int4), Treatment::Sparsity(0.5), Treatment::TwoFour];
        let found = Sensitivity::sweep(&mlp, &config, &data, &treatments).unwrap();
        assert_eq!((found.before.accuracy, found.rows, found.trials.len()), (Some(1.0), 200, 6));
        // The first layer is the identity: nothing is lost by half of its weights, nor by 2:4.
        assert_eq!(found.trials[0].layer, 1);
        let lossless = found.trials.iter().filter(|trial| trial.sqnr_db == f64::INFINITY);
        let lossless: Vec<_> = lossless.map(|trial| (trial.layer, trial.treatment)).collect();
        assert_eq!(lossless, [(0, treatments[1]), (0, treatments[2])]);
        assert!(found.trials.is_sorted_by(|a, b| a.after.accuracy <= b.after.accuracy));
        let trial = found.trials[0];
        let engine = trial.treatment.engine(&mlp, &config, 1).unwrap();
        assert_eq!(engine.evaluate(&data).unwrap(), trial.after);
        assert_eq!(engine.to_bytes().len(), trial.bytes);
        let text = found.to_string();
        for word in ["int4", "50 % zeros", "2:4", "bytes saved", "on 200 rows"] {
            assert!(text.contains(word), "{word} in\n{text}");
        }
    }

    #[test]
    fn refuses_what_no_layer_can_be_and_data_that_does_not_fit() {
        let (mlp, data) = example();
        let config = Config::new(Format::Dense);
        let int8 = [Treatment::Format(Format::Int8)];
        let error = Sensitivity::sweep(&mlp, &config, &data, &int8).unwrap_err().to_string();
        assert!(error.contains("with_calibration"), "{error}");
        let error = Sensitivity::sweep(&mlp, &config, &data, &[Treatment::Sparsity(1.5)]).unwrap_err();
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
        let other = Dataset::classification(array![[1.0f32]], vec![0]).unwrap();
        assert!(Sensitivity::sweep(&mlp, &config, &other, &int8).is_err());
        // A format that a layer has not: left out.
        let found = Sensitivity::sweep(&mlp, &config, &data, &[Treatment::Format(Format::TwoFour)]).unwrap();
        assert_eq!(found.trials.iter().map(|trial| trial.layer).collect::<Vec<_>>(), [0]);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn comes_back_from_json() {
        let (mlp, data) = example();
        let config = Config::new(Format::Dense).with_calibration(data.inputs());
        let found = Sensitivity::sweep(&mlp, &config, &data, &Treatment::USUAL).unwrap();
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Sensitivity>(&text).unwrap(), found, "{text}");
    }
}
