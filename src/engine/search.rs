//! Formats for all layers, out of what was measured of each.
//!
//! ```text
//! bytes                 the smallest of each layer
//! latency               the fastest of each; all dense and all int8 are timed as well, the fastest whole wins
//! bytes under latency   from the fastest on, whatever saves most bytes for its time, as long as the whole is fast enough
//! accuracy budget       from these on, whatever wins back most accuracy for its cost, until the budget is kept
//! ```
//!
//! Layers alone say nothing of the conversions between them, so whole engines are timed as well: one that was chosen for
//! latency is never slower than the faster of all dense and all int8, unless a budget of accuracy asks for more.

use std::cmp::Ordering;

use ndarray::Array2;

use super::budget::Judge;
use super::build::{build, set_layers};
use super::choose::{Auto, BUDGET, Candidate, Choice};
use super::config::Config;
use super::element::Element;
use super::format::Format;
use super::network::Engine;
use super::recipe::Block;
use crate::error::{Error, Result};

/// Times that a target is lowered because the whole was slower than its parts.
const TRIALS: usize = 6;

/// A search among the candidates of a choice.
pub(super) struct Search<'s, 'c, F> {
    inputs: usize,
    blocks: &'s [Block<F>],
    config: &'s Config<'c, F>,
    judge: Option<&'s Judge<'c, F>>,
    /// What engines are timed with.
    rows: Array2<F>,
    /// What each layer may become: formats that are accurate enough, or the one that was set by hand.
    layers: Vec<Vec<Candidate>>,
    choice: Choice,
}

impl<'s, 'c, F: Element> Search<'s, 'c, F> {
    pub(super) fn new(
        inputs: usize,
        blocks: &'s [Block<F>],
        config: &'s Config<'c, F>,
        judge: Option<&'s Judge<'c, F>>,
        rows: Array2<F>,
        choice: Choice,
    ) -> Result<Self> {
        let mut layers: Vec<Vec<Candidate>> = choice.layers.clone();
        layers.iter_mut().for_each(|layer| layer.retain(|c| c.accurate));
        let mut search = Self { inputs, blocks, config, judge, rows, layers, choice };
        let by_hand: Vec<usize> = config.layers.iter().map(|&(layer, _)| layer).collect();
        let formats = search.set(vec![Format::Dense; search.layers.len()])?;
        for i in by_hand {
            search.layers[i] =
                search.choice.layers[i].iter().filter(|c| c.format == formats[i]).copied().collect();
        }
        Ok(search)
    }

    /// The formats, and the choice with what was measured on the way.
    pub(super) fn run(mut self) -> Result<(Vec<Format>, Choice)> {
        let found = match self.choice.auto {
            Auto::Bytes => self.set(self.smallest())?,
            Auto::Latency => self.fastest_whole()?,
            Auto::BytesUnderLatency(bound) => self.smallest_under(bound.as_secs_f64() * 1e6)?,
        };
        let formats = match self.judge {
            Some(judge) => self.within(judge, found)?,
            None => found,
        };
        Ok((formats, self.choice))
    }

    /// With the formats that were set by hand in their places.
    fn set(&self, mut formats: Vec<Format>) -> Result<Vec<Format>> {
        set_layers(self.config, &mut formats)?;
        Ok(formats)
    }

    fn engine(&self, formats: &[Format]) -> Result<Engine<F>> {
        let recipe = build(self.inputs, self.blocks, formats, self.config)?;
        Engine::from_recipe(recipe, self.config.isa, self.config.pool.clone())
    }

    /// Microseconds of one call.
    fn time(&mut self, formats: &[Format]) -> Result<f64> {
        let timing = self.engine(formats)?.measure(self.rows.view(), 4 * BUDGET)?;
        self.choice.engines.push((formats.to_vec(), timing));
        Ok(timing.median_us)
    }

    /// The candidate of a layer with a format.
    fn candidate(&self, layer: usize, format: Format) -> Option<Candidate> {
        self.layers[layer].iter().copied().find(|c| c.format == format)
    }

    /// The fewest bytes of each layer; of equals the fastest.
    fn smallest(&self) -> Vec<Format> {
        let order = |a: &&Candidate, b: &&Candidate| {
            a.bytes.cmp(&b.bytes).then(a.latency.median_us.total_cmp(&b.latency.median_us))
        };
        let best = |layer: &Vec<Candidate>| layer.iter().min_by(order).map_or(Format::Dense, |c| c.format);
        self.layers.iter().map(best).collect()
    }

    /// The fastest candidate of each layer; of those that are no more than 5 percent slower, the most accurate.
    fn fastest(&self) -> Vec<Format> {
        let best = |layer: &Vec<Candidate>| {
            let least = layer.iter().map(|c| c.latency.median_us).fold(f64::INFINITY, f64::min);
            let near = layer.iter().filter(|c| c.latency.median_us <= 1.05 * least);
            // The first of the largest.
            let most = near.rev().max_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
            most.map_or(Format::Dense, |c| c.format)
        };
        self.layers.iter().map(best).collect()
    }

    /// The fastest of these, of all dense and of all int8, as whole engines.
    fn fastest_whole(&mut self) -> Result<Vec<Format>> {
        let mut all = vec![self.set(self.fastest())?];
        for uniform in [Format::Dense, Format::Int8] {
            let formats = self.set(vec![uniform; self.layers.len()])?;
            let allowed = (0..formats.len()).all(|i| self.candidate(i, formats[i]).is_some());
            if allowed && !all.contains(&formats) {
                all.push(formats);
            }
        }
        let mut best: Option<(f64, Vec<Format>)> = None;
        for formats in all {
            let time = self.time(&formats)?;
            if best.as_ref().is_none_or(|(least, _)| time < *least) {
                best = Some((time, formats));
            }
        }
        Ok(best.map(|(_, formats)| formats).unwrap_or_default())
    }

    /// The smallest whose whole takes no longer than `bound` microseconds.
    fn smallest_under(&mut self, bound: f64) -> Result<Vec<Format>> {
        let mut target = bound;
        // The parts do not know of the conversions between them: aim lower until the whole is fast enough.
        for _ in 0..TRIALS {
            let formats = self.set(self.under(target))?;
            let time = self.time(&formats)?;
            if time <= bound {
                return Ok(formats);
            }
            target *= (bound / time).min(0.9);
        }
        let formats = self.set(self.fastest())?;
        let time = self.time(&formats)?;
        if time <= bound {
            return Ok(formats);
        }
        let reason = format!("the fastest that was found takes {time:.1} us, the bound is {bound:.1} us");
        Err(Error::Unsupported { what: "the bound of latency", reason })
    }

    /// Fewest bytes whose latencies add up to no more than `target`: from the fastest of each layer on, whatever saves most
    /// bytes for its time comes first.
    fn under(&self, target: f64) -> Vec<Format> {
        let mut now = self.fastest();
        loop {
            let current: Vec<Option<Candidate>> =
                now.iter().enumerate().map(|(i, &format)| self.candidate(i, format)).collect();
            let total: f64 = current.iter().flatten().map(|c| c.latency.median_us).sum();
            let mut best: Option<(f64, usize, Format)> = None;
            for (i, current) in current.iter().enumerate() {
                let Some(current) = current else { continue };
                for c in self.layers[i].iter().filter(|c| c.bytes < current.bytes) {
                    let slower = c.latency.median_us - current.latency.median_us;
                    let worth = (current.bytes - c.bytes) as f64 / slower.max(1e-3);
                    if total + slower <= target && best.is_none_or(|(most, ..)| worth > most) {
                        best = Some((worth, i, c.format));
                    }
                }
            }
            match best {
                Some((_, i, format)) => now[i] = format,
                None => return now,
            }
        }
    }

    /// From `formats` on, one layer after the other more exact, until the judge allows it.
    fn within(&mut self, judge: &Judge<'_, F>, mut formats: Vec<Format>) -> Result<Vec<Format>> {
        let mut accuracy = self.judged(judge, &formats)?;
        while !judge.allows(accuracy) {
            let mut best: Option<(Gain, f64, usize, Format)> = None;
            for i in 0..formats.len() {
                let Some((next, cost)) = self.more_exact(i, formats[i]) else { continue };
                let trial: Vec<Format> =
                    formats.iter().enumerate().map(|(k, &f)| if k == i { next } else { f }).collect();
                if let Auto::BytesUnderLatency(bound) = self.choice.auto
                    && self.time(&trial)? > bound.as_secs_f64() * 1e6
                {
                    continue;
                }
                let found = self.judged(judge, &trial)?;
                let gain = Gain::new(judge.allows(found), found - accuracy, cost);
                if best.as_ref().is_none_or(|(most, ..)| gain.is_above(most)) {
                    best = Some((gain, found, i, next));
                }
            }
            match best {
                Some((_, found, i, next)) => (accuracy, formats[i]) = (found, next),
                None => return Err(judge.refusal(accuracy, worst(judge, &formats, |f| self.engine(f))?)),
            }
        }
        Ok(formats)
    }

    fn judged(&mut self, judge: &Judge<'_, F>, formats: &[Format]) -> Result<f64> {
        let accuracy = judge.accuracy(&self.engine(formats)?)?;
        self.choice.judged.push((formats.to_vec(), accuracy));
        Ok(accuracy)
    }

    /// The cheapest candidate of a layer that is more exact than the one it has, and what it costs.
    fn more_exact(&self, layer: usize, format: Format) -> Option<(Format, f64)> {
        let cost = |c: &Candidate| match self.choice.auto {
            Auto::Latency => c.latency.median_us,
            Auto::Bytes | Auto::BytesUnderLatency(_) => c.bytes as f64,
        };
        let now = self.candidate(layer, format)?;
        let better = self.layers[layer].iter().filter(|c| c.sqnr_db > now.sqnr_db);
        let next = better.min_by(|a, b| cost(a).total_cmp(&cost(b)))?;
        Some((next.format, cost(next) - cost(&now)))
    }
}

/// The linear layer that wins back most accuracy if it alone is left as it was.
pub(super) fn worst<F: Element>(
    judge: &Judge<'_, F>,
    formats: &[Format],
    engine: impl Fn(&[Format]) -> Result<Engine<F>>,
) -> Result<usize> {
    let mut worst = (0, f64::NEG_INFINITY);
    for layer in 0..formats.len() {
        let mut formats = formats.to_vec();
        formats[layer] = Format::Dense;
        let accuracy = judge.accuracy(&engine(&formats)?)?;
        if accuracy > worst.1 {
            worst = (layer, accuracy);
        }
    }
    Ok(worst.0)
}

/// What a step towards the budget is worth: to keep it at the least cost; else the most accuracy for its cost.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gain {
    /// Nothing won, or something lost.
    Nothing(f64),
    /// Accuracy for each unit of cost.
    Some(f64),
    /// The budget is kept, at this cost.
    Enough(f64),
}

impl Gain {
    fn new(allowed: bool, gain: f64, cost: f64) -> Self {
        match allowed {
            true => Self::Enough(cost),
            // What is more exact and no more expensive costs next to nothing.
            false if gain > 0.0 => Self::Some(gain / cost.max(1e-3)),
            false => Self::Nothing(gain),
        }
    }

    fn is_above(self, other: &Self) -> bool {
        let rank = |gain: &Self| match *gain {
            Self::Nothing(gain) => (0, gain),
            Self::Some(rate) => (1, rate),
            Self::Enough(cost) => (2, -cost),
        };
        let (own, other) = (rank(&self), rank(other));
        own.0.cmp(&other.0).then(own.1.total_cmp(&other.1)) == Ordering::Greater
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeping_the_budget_cheaply_beats_winning_much_beats_winning_nothing() {
        let order = [
            Gain::new(false, -0.2, 1.0),
            Gain::new(false, 0.0, 1.0),
            Gain::new(false, 0.1, 100.0),
            Gain::new(false, 0.01, 1.0),
            Gain::new(false, 0.01, -5.0),
            Gain::new(true, 0.01, 50.0),
            Gain::new(true, 0.01, 7.0),
        ];
        for (i, a) in order.iter().enumerate() {
            for (j, b) in order.iter().enumerate() {
                assert_eq!(a.is_above(b), i > j, "{a:?} {b:?}");
            }
        }
    }
}
