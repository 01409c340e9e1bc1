//! Weights without those of smallest size, written in the pass over memory that finds out which those are.
//!
//! ```text
//! a sample gives a bracket of the cut, about 1 % of all weights, and a guess in its middle
//! one pass:  out = 0 if |x| < guess, else x;  count what is below the bracket, collect what is inside, and its places
//! select the cut among the collected; mend `out` between guess and cut, less than a thousandth of all
//! ```

use std::any::Any;
use std::cell::RefCell;

use crate::float::Float;
use crate::kernel::{Bracket, Fill, Guessed, Isa, PART, Pool, drop_guessed, write_stream};

use super::bracket::bracket;
use super::count::Plan;
use super::rank::{self, Found, Key};
use super::report::PruneReport;

/// `out = x` without what `plan` drops, on all threads of `pool`. `None` if there are too few weights for this way or no kernel, or if the
/// bracket missed, which the weights would have to conspire for: nothing is known of `out` then.
pub(super) fn write<F: Float>(pool: &Pool, plan: Plan, x: &[F], out: &mut [F]) -> Option<PruneReport> {
    let (isa, rank) = (Isa::best(), plan.rank()?);
    if !isa.compresses() {
        return None;
    }
    let mut memory = Memory::take();
    let report = write_with(&mut memory, isa, pool, (plan, rank), x, out);
    memory.keep();
    report
}

fn write_with<F: Float>(
    Memory { scratch, parts }: &mut Memory<F>,
    isa: Isa,
    pool: &Pool,
    (plan, rank): (Plan, usize),
    x: &[F],
    out: &mut [F],
) -> Option<PruneReport> {
    let n = x.len();
    let bracket = bracket(&[x], Key::Magnitude, n, rank, scratch)?;
    let bracket = Bracket { lo: bracket.lo.max(F::zero()), ..bracket };
    let size = n.div_ceil(4 * pool.threads()).next_multiple_of(PART).min(1 << 31);
    parts.resize_with(n.div_ceil(size), Part::default);
    pool.each(parts.iter_mut().zip(x.chunks(size)).zip(out.chunks_mut(size)), |((part, x), out)| {
        part.seen.clear();
        write_stream(isa, n, out, Pass { isa, x, bracket, seen: &mut part.seen });
    });

    let below: usize = parts.iter().map(|part| part.seen.below).sum();
    let inside: Vec<&[F]> = parts.iter().map(|part| &*part.seen.inside).collect();
    let found = rank::nth(&Pool::single(), &inside, Key::Value, rank.checked_sub(below)?, scratch)?;
    let found = Found { below: below + found.below, ..found };

    let cut = plan.cut(found);
    let all_ties = cut.ties == usize::MAX;
    let drops = |size: F| size < cut.value || (size == cut.value && all_ties);
    // The guess was right about all others.
    let doubted =
        Bracket { lo: bracket.guess.min(cut.value), guess: F::zero(), hi: bracket.guess.max(cut.value) };
    pool.each(parts.iter_mut().zip(x.chunks(size)).zip(out.chunks_mut(size)), |((part, x), out)| {
        let Part { seen, doubted: found } = part;
        found.clear();
        let mut unused = [F::zero(); MENDED];
        for (at, sizes) in (0..).step_by(MENDED).zip(seen.inside.chunks(MENDED)) {
            drop_guessed(isa, sizes, &mut unused[..sizes.len()], doubted, at, found);
        }
        for (&size, &at) in found.inside.iter().zip(&found.places) {
            if drops(size) != (size < bracket.guess) {
                let place = seen.places[at as usize] as usize;
                out[place] = if drops(size) { F::zero() } else { x[place] };
            }
        }
    });
    // Ties go in order of their index, as everywhere.
    let mut ties = if cut.counts_ties() { cut.ties } else { 0 };
    for (part, out) in parts.iter().zip(out.chunks_mut(size)) {
        let Guessed { inside, places, .. } = &part.seen;
        let equal = inside.iter().zip(places).filter(|(size, _)| **size == cut.value);
        for (_, &place) in equal.take(ties) {
            out[place as usize] = F::zero();
            ties -= 1;
        }
    }
    let dropped = found.below + cut.ties.min(found.equal);
    let nan = parts.iter().map(|part| part.seen.nan).sum();
    Some(PruneReport::of_weights(n, dropped, nan))
}

/// So many of those inside the bracket are looked at together.
const MENDED: usize = 256;

/// One part of the pass.
struct Pass<'a, F> {
    isa: Isa,
    x: &'a [F],
    bracket: Bracket<F>,
    seen: &'a mut Guessed<F>,
}

impl<F: Float> Fill<F> for Pass<'_, F> {
    #[inline(always)]
    fn fill(&mut self, at: usize, out: &mut [F]) {
        let x = &self.x[at..at + out.len()];
        drop_guessed(self.isa, x, out, self.bracket, at as u32, self.seen);
    }
}

/// What is collected, kept from call to call of a thread: fresh memory costs more than what is written to it.
#[derive(Default)]
struct Memory<F> {
    scratch: Vec<F>,
    parts: Vec<Part<F>>,
}

/// What was seen of some weights.
#[derive(Default)]
struct Part<F> {
    seen: Guessed<F>,
    /// Which of those inside the bracket lie between guess and cut.
    doubted: Guessed<F>,
}

/// No more is kept: what is collected of some 200 million weights.
const KEPT_BYTES: usize = 16 << 20;

thread_local! {
    static KEPT: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

impl<F: Float> Memory<F> {
    /// What was kept, if it is of this type.
    fn take() -> Self {
        let kept = KEPT.with_borrow_mut(Option::take);
        kept.and_then(|kept| kept.downcast().ok()).map_or_else(Self::default, |kept| *kept)
    }

    fn keep(self) {
        let of_list = |list: &Guessed<F>| list.inside.capacity() * (size_of::<F>() + size_of::<u32>());
        let of_part = |part: &Part<F>| of_list(&part.seen) + of_list(&part.doubted);
        let bytes = self.scratch.capacity() * size_of::<F>() + self.parts.iter().map(of_part).sum::<usize>();
        if bytes <= KEPT_BYTES {
            KEPT.with_borrow_mut(|kept| *kept = Some(Box::new(self)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::bracket::hash;
    use crate::prune::{MagnitudePruner, PruneCount, Pruner, Selection};
    use ndarray::{Array1, ArrayView1};

    /// Pruning into memory equals the mask, for lists long enough for a sample.
    fn equals_the_mask<F: Float>(x: &[F]) {
        use PruneCount::*;
        let x = ArrayView1::from(x);
        let bits = |x: F| if x.is_nan() { u64::MAX } else { x.as_f64().to_bits() };
        for (sparsity, count) in [0.0, 0.0001, 0.3, 0.5, 0.9, 0.9999]
            .into_iter()
            .flat_map(|s| [HalfEven, TfmotKeep, SparseGptThreshold].map(|count| (s, count)))
            .chain([(1.0, HalfEven)])
        {
            let pruner = MagnitudePruner::new(Selection::sparsity(sparsity).unwrap().with_count(count));
            let (mask, expected) = pruner.mask(x, None).unwrap();
            for pool in [Pool::single(), Pool::new(3)] {
                let mut out = Array1::from_elem(x.len(), F::one());
                let report = pruner.prune_into(x, out.view_mut(), &pool).unwrap();
                assert_eq!(report, expected, "{sparsity} {count:?}");
                for ((&x, &out), &keep) in x.iter().zip(&out).zip(mask.keep()) {
                    let expected = if keep { x } else { F::zero() };
                    assert_eq!(bits(out), bits(expected), "{sparsity} {count:?}");
                }
            }
        }
    }

    #[test]
    fn pruning_into_memory_equals_the_mask_for_every_kind_of_list() {
        let n = 2 * PART as u64 + 77;
        let random = |i: u64| hash(i) as f64 / u64::MAX as f64 - 0.5;
        let lists: [Vec<f64>; 6] = [
            (0..n).map(random).collect(),
            (0..n).map(|i| random(i / 500) * random(i)).collect(),
            (0..n).map(|i| i as f64 - 70_000.0).collect(),
            vec![-3.0; n as usize],
            (0..n).map(|i| if random(i) < 0.1 { -0.0 } else { (8.0 * random(i)).floor() }).collect(),
            (0..n)
                .map(|i| if random(i) < -0.4 { f64::NAN } else { 1.0 / (random(i) - 0.2).max(0.0) })
                .collect(),
        ];
        for x in lists {
            equals_the_mask(&x);
            equals_the_mask(&x.iter().map(|&x| x as f32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_list_that_hides_from_the_sample_is_pruned_all_the_same() {
        // The lines of the sample hold 0, all others distinct numbers.
        let mut x: Vec<f64> = (0..80 << 10).map(|i| f64::from(i) + 1.0).collect();
        for line in 0..80 {
            let place = (line << 10) + (hash(line as u64) % 1024) as usize;
            let end = x.len().min(place + 8);
            x[place.saturating_sub(8)..end].fill(0.0);
        }
        assert!(write(&Pool::single(), Plan::Lowest(60_000), &x, &mut x.clone()).is_none());
        equals_the_mask(&x);
    }
}
