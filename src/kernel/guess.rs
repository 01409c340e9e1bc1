//! Leaving out what is smaller than a guess of the bound, and remembering enough to mend it once the bound is known.

use super::isa::Isa;
use super::real::Real;

/// Between which numbers one of a certain rank very probably lies. That of a magnitude has no bound with a minus.
#[derive(Clone, Copy, Debug)]
pub struct Bracket<F> {
    pub(crate) lo: F,
    /// The best guess.
    pub(crate) guess: F,
    pub(crate) hi: F,
}

/// What was seen of some numbers.
#[derive(Clone, Debug)]
pub struct Guessed<F> {
    /// How many magnitudes are below the bracket.
    pub(crate) below: usize,
    pub(crate) nan: usize,
    /// The magnitudes inside the bracket, in order.
    pub(crate) inside: Vec<F>,
    /// Where they stand.
    pub(crate) places: Vec<u32>,
}

impl<F> Default for Guessed<F> {
    fn default() -> Self {
        Self { below: 0, nan: 0, inside: Vec::new(), places: Vec::new() }
    }
}

impl<F> Guessed<F> {
    /// Forgets what was seen, and keeps its memory.
    pub(crate) fn clear(&mut self) {
        (self.below, self.nan) = (0, 0);
        self.inside.clear();
        self.places.clear();
    }
}

/// `out = 0 if |x| < guess else x`; NaN stays. What was seen is added to `guessed`, where the first of `x` stands at `first`.
pub(crate) fn drop_guessed<F: Real + num_traits::Float>(
    isa: Isa,
    x: &[F],
    out: &mut [F],
    bracket: Bracket<F>,
    first: u32,
    guessed: &mut Guessed<F>,
) {
    let done = F::drop_guessed(isa, x, out, bracket, first, guessed);
    let Bracket { lo, guess, hi } = bracket;
    let rest = x[done..].iter().zip(&mut out[done..]);
    for (place, (&x, out)) in (first + done as u32..).zip(rest) {
        let size = x.abs();
        *out = if size < guess { F::zero() } else { x };
        guessed.below += usize::from(size < lo);
        guessed.nan += usize::from(x.is_nan());
        if lo <= size && size <= hi {
            guessed.inside.push(size);
            guessed.places.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_set_is_the_definition<F: Real + num_traits::Float + std::fmt::Debug>(
        values: &[F],
        brackets: &[[F; 3]],
    ) {
        let x: Vec<F> = (0..2500).map(|i| values[(i * i * 3 + i / 7) % values.len()]).collect();
        let lengths = (0..70).chain([255, 256, 257, 2500]);
        for (length, &[lo, guess, hi]) in lengths.flat_map(|length| brackets.iter().map(move |b| (length, b)))
        {
            let all = Isa::available().into_iter().map(|isa| {
                let (mut out, mut guessed) = (vec![F::one(); length], Guessed::default());
                drop_guessed(isa, &x[..length], &mut out, Bracket { lo, guess, hi }, 5, &mut guessed);
                format!("{out:?} {guessed:?}")
            });
            let mut all: Vec<String> = all.collect();
            all.dedup();
            assert_eq!(all.len(), 1, "{length} {lo:?} {guess:?} {hi:?}: {all:?}");
        }
    }

    #[test]
    fn every_instruction_set_sees_the_same() {
        let (nan, infinity) = (f64::NAN, f64::INFINITY);
        let values = [0.0, -1.0, 2.0, 1.0, nan, -2.0, infinity, -0.0, 3.0, -infinity, 0.5, -nan, 1.5];
        let brackets =
            [[0.5, 1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 1.5, infinity], [0.5, 0.5, 1.0], [infinity; 3]];
        every_set_is_the_definition(&values, &brackets);
        every_set_is_the_definition(&values.map(|x| x as f32), &brackets.map(|b| b.map(|x| x as f32)));
    }

    #[test]
    fn sees_what_has_to_be_mended() {
        let (x, mut out, mut guessed) = ([0.1, -0.4, f64::NAN, 0.5, -0.9], [9.0; 5], Guessed::default());
        drop_guessed(Isa::Scalar, &x, &mut out, Bracket { lo: 0.4, guess: 0.5, hi: 0.6 }, 7, &mut guessed);
        assert_eq!(format!("{out:?}"), "[0.0, 0.0, NaN, 0.5, -0.9]");
        assert_eq!((guessed.below, guessed.nan), (1, 1));
        assert_eq!((guessed.inside, guessed.places), (vec![0.4, 0.5], vec![8, 10]));
    }
}
