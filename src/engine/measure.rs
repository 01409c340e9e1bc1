//! Time, measured: medians of short samples, with the quartiles as their spread.

use std::fmt;
use std::time::{Duration, Instant};

use ndarray::{Array2, ArrayView2};

use super::element::Element;
use super::format::{Batch, BatchMut, Format, Io};
use super::linear::Linear;
use super::network::Engine;
use super::recipe;
use super::workspace::Tools;
use crate::error::{Error, Result};
use crate::float::{check_finite, check_shape};
use crate::kernel::{Isa, MatrixMut, Pool};

/// How long something took, as often as there was time for.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Timing {
    /// Half of the samples took no longer, in microseconds.
    pub median_us: f64,
    /// A quarter took no longer.
    pub lower_us: f64,
    /// A quarter took no less.
    pub upper_us: f64,
    /// Samples; short calls are repeated within one.
    pub samples: usize,
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median_us, lower_us, upper_us, .. } = self;
        f.pad(&format!("{median_us:.1} us ({lower_us:.1}..{upper_us:.1})"))
    }
}

/// Times `call` for about so long, in at least five samples of at least 20 microseconds each.
pub(super) fn time(budget: Duration, mut call: impl FnMut() -> Result<()>) -> Result<Timing> {
    const LEAST: usize = 5;
    const SAMPLE: f64 = 20e-6;
    let mut sample = |calls: u32| -> Result<f64> {
        let begin = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        Ok(begin.elapsed().as_secs_f64() / f64::from(calls))
    };
    // The first call finds cold caches and sleeping threads.
    sample(1)?;
    let once = sample(1)?;
    let calls = (SAMPLE / once.max(1e-9)).ceil().clamp(1.0, 10_000.0) as u32;
    let mut samples = Vec::new();
    let begin = Instant::now();
    while samples.len() < LEAST || begin.elapsed() < budget {
        samples.push(sample(calls)? * 1e6);
    }
    samples.sort_by(f64::total_cmp);
    let at = |share: usize| samples[(samples.len() - 1) * share / 4];
    Ok(Timing { median_us: at(2), lower_us: at(1), upper_us: at(3), samples: samples.len() })
}

impl<F: Element> Engine<F> {
    /// Measures one call with these rows, for about as long as `budget` says, on the threads of the engine.
    ///
    /// An engine that takes codes is given the codes of `x`.
    ///
    /// # Errors
    /// As [`run`](Self::run); [`Error::Empty`] without rows.
    pub fn measure(&self, x: ArrayView2<'_, F>, budget: Duration) -> Result<Timing> {
        if x.nrows() == 0 {
            return Err(Error::Empty { what: "the batch to measure" });
        }
        let rows = x.nrows();
        check_shape("input", x.shape(), &[rows, self.inputs()])?;
        check_finite("input", &x)?;
        let x: Array2<F> = x.as_standard_layout().into_owned();
        let numbers = x.as_slice().unwrap_or_default();
        let codes = self.encode(numbers);
        let mut out = (vec![F::zero(); rows * self.outputs()], vec![0; rows * self.outputs()]);
        let mut workspace = self.workspace(rows);
        let (input, output) = self.io();
        time(budget, || {
            let x = if input == Io::Codes { Batch::Codes(&codes) } else { Batch::Float(numbers) };
            let out =
                if output == Io::Codes { BatchMut::Codes(&mut out.1) } else { BatchMut::Float(&mut out.0) };
            self.run(x, out, &mut workspace)
        })
    }
}

/// The density of random weights `[outputs, inputs]` at which the sparse kernel takes as long as the dense one for a batch of
/// `rows` here; none if it is faster at every density, or at none.
pub(crate) fn break_even_density(
    (outputs, inputs): (usize, usize),
    rows: usize,
    isa: Isa,
    pool: &Pool,
) -> Result<Option<f64>> {
    const BUDGET: Duration = Duration::from_millis(2);
    let x = vec![1.0f32; rows * inputs];
    let mut y = vec![0.0f32; rows * outputs];
    let mut tools = Tools { batch: rows, ..Tools::new(pool.threads()) };
    let mut timed = |format: Format, density: f64| {
        let layer = recipe::Linear {
            inputs,
            outputs,
            format,
            weights: recipe::Weights::Float { weight: scattered(outputs * inputs, density), bias: None },
            activation: None,
        };
        let linear = Linear::new(&layer, isa);
        let run = || {
            linear.run_float(isa, pool, &x, MatrixMut::new(&mut y, rows, outputs), &mut tools);
            Ok(())
        };
        Ok::<_, Error>(time(BUDGET, run)?.median_us)
    };
    let dense = timed(Format::Dense, 1.0)?;
    let (mut low, mut high) = (0.0, 1.0);
    if timed(Format::Sparse, 0.01)? > dense || timed(Format::Sparse, 1.0)? < dense {
        return Ok(None);
    }
    for _ in 0..6 {
        let middle = (low + high) / 2.0;
        if timed(Format::Sparse, middle)? < dense { low = middle } else { high = middle }
    }
    Ok(Some((low + high) / 2.0))
}

/// Ones among zeros, at places that look random.
fn scattered(count: usize, density: f64) -> Vec<f32> {
    let below = (density * f64::from(u32::MAX)) as u64;
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        state >> 32
    };
    (0..count).map(|_| if next() <= below { 1.0 } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_break_even_density_lies_between_nothing_and_all() {
        let found = break_even_density((64, 64), 1, Isa::best(), &Pool::single()).unwrap();
        assert!(found.is_none_or(|density| density > 0.0 && density < 1.0), "{found:?}");
        let ones = scattered(10_000, 0.25).iter().sum::<f32>();
        assert!((2300.0..2700.0).contains(&ones), "{ones}");
    }

    #[test]
    fn quartiles_are_in_order_and_failures_come_through() {
        let mut count = 0u64;
        let timing = time(Duration::from_millis(2), || {
            count += std::hint::black_box(1);
            Ok(())
        });
        let timing = timing.unwrap();
        assert!(timing.lower_us <= timing.median_us && timing.median_us <= timing.upper_us);
        assert!(timing.samples >= 5 && count > 100);
        assert!(time(Duration::ZERO, || Err(Error::Empty { what: "nothing" })).is_err());
    }
}
