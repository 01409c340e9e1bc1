//! Which activations stay, a bit each: the bits drawn, and applied to numbers.
//!
//! Where a draw stands in the stream of the generator is told in `dropout`.

use super::philox::{LANES, Philox};
use crate::float::Float;
use crate::kernel::{Fill, Isa, Stream, Streams, Work, fetch_ahead, kept_bits};

/// Draws of one block of the generator: one word of the mask.
pub(super) const CHUNK: usize = LANES * 8;

/// The draws of elements `64 * index .. 64 * (index + 1)`.
#[inline(always)]
pub(super) fn draws(stream: Philox, index: u64) -> [u16; CHUNK] {
    let words = stream.block(index);
    let mut draws = [0; CHUNK];
    for (pair, word) in draws.as_chunks_mut().0.iter_mut().zip(words.as_flattened()) {
        *pair = [*word as u16, (*word >> 16) as u16];
    }
    draws
}

/// Bit `i` is 1 if draw `i` keeps.
#[inline(always)]
pub(super) fn bits(draws: &[u16; CHUNK], threshold: u16) -> u64 {
    let kept = draws.map(|draw| u8::from(draw >= threshold));
    let bytes = kept.as_chunks().0.iter().map(|&eight| {
        // Moves bit 0 of byte i to bit 56 + i; no two terms of the product meet.
        (u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080)) >> 56
    });
    bytes.rev().fold(0, |word, byte| word << 8 | byte)
}

/// The bits of the blocks from `first` on.
#[inline(always)]
fn draw_bits(isa: Isa, stream: Philox, first: u64, threshold: u16, keep: &mut [u64]) {
    if !kept_bits(isa, stream.key(), first, threshold, keep) {
        for (index, keep) in (first..).zip(keep) {
            *keep = bits(&draws(stream, index), threshold);
        }
    }
}

/// Words of the mask that are drawn before they are used: what the nearest cache easily holds.
const WORDS: usize = 4;

/// How far ahead of their use activations are asked for.
const AHEAD_BYTES: usize = 4096;

/// Draws for `y`, whose first element is element `64 * first` of the stream.
pub(super) struct Draw<'a, F> {
    pub(super) isa: Isa,
    /// Elements of the whole result.
    pub(super) whole: usize,
    pub(super) stream: Philox,
    pub(super) threshold: u16,
    pub(super) gain: F,
    pub(super) first: usize,
    /// Where the activations are, if not in `y`.
    pub(super) x: Option<&'a [F]>,
    pub(super) y: &'a mut [F],
    pub(super) keep: &'a mut [u64],
}

/// As [`Draw`], for what is read elsewhere.
struct Drawn<'a, F> {
    isa: Isa,
    stream: Philox,
    threshold: u16,
    gain: F,
    first: usize,
    x: &'a [F],
    keep: &'a mut [u64],
}

impl<F: Float> Fill<F> for Drawn<'_, F> {
    const GRAIN: usize = CHUNK;

    #[inline(always)]
    fn fill(&mut self, at: usize, y: &mut [F]) {
        let keep = &mut self.keep[at / CHUNK..][..y.len().div_ceil(CHUNK)];
        // Memory works while the generator does.
        let x = &self.x[at..][..y.len()];
        if self.isa.streams() != Streams::Foreseen {
            fetch_ahead(x, AHEAD_BYTES);
        }
        draw_bits(self.isa, self.stream, (self.first + at / CHUNK) as u64, self.threshold, keep);
        keep_of(keep, self.gain, x, y);
    }
}

impl<F: Float> Work for Draw<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { isa, whole, stream, threshold, gain, first, x, y, keep } = self;
        match x {
            Some(x) => {
                let mut out = Stream::new(isa, whole);
                out.fill(y, &mut Drawn { isa, stream, threshold, gain, first, x, keep });
            }
            None => {
                let parts = y.chunks_mut(WORDS * CHUNK).zip(keep.chunks_mut(WORDS)).enumerate();
                for (i, (y, keep)) in parts {
                    draw_bits(isa, stream, (first + i * WORDS) as u64, threshold, keep);
                    keep_in_place(keep, gain, y);
                }
            }
        }
    }
}

/// `dx = dy * gain` where a bit is set, else 0.
pub(super) struct Keep<'a, F> {
    pub(super) isa: Isa,
    /// Elements of the whole result.
    pub(super) whole: usize,
    pub(super) keep: &'a [u64],
    pub(super) gain: F,
    /// Where `dy` is, if not in `dx`.
    pub(super) dy: Option<&'a [F]>,
    pub(super) dx: &'a mut [F],
}

/// As [`Keep`], for what is read elsewhere.
struct Kept<'a, F> {
    isa: Isa,
    keep: &'a [u64],
    gain: F,
    dy: &'a [F],
}

impl<F: Float> Fill<F> for Kept<'_, F> {
    const GRAIN: usize = CHUNK;

    #[inline(always)]
    fn fill(&mut self, at: usize, dx: &mut [F]) {
        let (streams, some) = (self.isa.streams(), 1024 / size_of::<F>());
        let parts = dx.chunks_mut(some).zip(self.keep[at / CHUNK..].chunks(some / CHUNK)).enumerate();
        for (i, (dx, keep)) in parts {
            let dy = &self.dy[at + i * some..][..dx.len()];
            // The loop becomes masked loads, after which Zen 5 foresees nothing. No more lines at a time than memory takes requests.
            if streams != Streams::Foreseen {
                fetch_ahead(dy, AHEAD_BYTES);
            }
            keep_of(keep, self.gain, dy, dx);
        }
    }
}

impl<F: Float> Work for Keep<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { isa, whole, keep, gain, dy, dx } = self;
        match dy {
            Some(dy) => {
                let mut out = Stream::new(isa, whole);
                out.fill(dx, &mut Kept { isa, keep, gain, dy });
            }
            None => keep_in_place(keep, gain, dx),
        }
    }
}

/// `to = from * gain` where a bit is set, else 0: written, not multiplied, because an infinity times 0 would be NaN.
#[inline(always)]
fn keep_of<F: Float>(keep: &[u64], gain: F, from: &[F], to: &mut [F]) {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<CHUNK>(), to.as_chunks_mut::<CHUNK>());
    for ((to, from), &word) in to.iter_mut().zip(from).zip(keep) {
        keep_some(word, gain, from, to);
    }
    let word = keep.get(from.len()).copied().unwrap_or_default();
    for (i, (to, &from)) in to_rest.iter_mut().zip(from_rest).enumerate() {
        *to = if word >> i & 1 == 0 { F::zero() } else { from * gain };
    }
}

/// [`keep_of`] from where it goes.
#[inline(always)]
fn keep_in_place<F: Float>(keep: &[u64], gain: F, x: &mut [F]) {
    let (x, rest) = x.as_chunks_mut::<CHUNK>();
    for (x, &word) in x.iter_mut().zip(keep) {
        keep_some(word, gain, &{ *x }, x);
    }
    let word = keep.get(x.len()).copied().unwrap_or_default();
    for (i, x) in rest.iter_mut().enumerate() {
        *x = if word >> i & 1 == 0 { F::zero() } else { *x * gain };
    }
}

#[inline(always)]
fn keep_some<F: Float>(word: u64, gain: F, dy: &[F; CHUNK], dx: &mut [F; CHUNK]) {
    // By index over all lanes, with a mask of their width: vectors that the compiler need not convert.
    if size_of::<F>() == size_of::<u32>() {
        let (dx, dy) = (dx.as_chunks_mut::<32>().0, dy.as_chunks::<32>().0);
        for ((dx, dy), word) in dx.iter_mut().zip(dy).zip([word as u32, (word >> 32) as u32]) {
            for i in 0..32 {
                dx[i] = if word & 1 << i == 0 { F::zero() } else { dy[i] * gain };
            }
        }
    } else {
        for i in 0..CHUNK {
            dx[i] = if word & 1 << i == 0 { F::zero() } else { dy[i] * gain };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::with;

    #[test]
    fn every_instruction_set_draws_the_same() {
        let stream = Philox::new(7);
        for (isa, threshold) in
            Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 32768), (isa, u16::MAX)])
        {
            for length in 0..12 {
                let mut keep = vec![0; length];
                draw_bits(isa, stream, (1 << 61) - 3, threshold, &mut keep);
                let expected = |i: u64| bits(&draws(stream, (1 << 61) - 3 + i), threshold);
                assert!(
                    keep.iter().copied().eq((0..length as u64).map(expected)),
                    "{isa} {threshold} {length}"
                );
            }
        }
        for (isa, first) in Isa::available().into_iter().flat_map(|isa| [(isa, 0), (isa, (1 << 29) - 2)]) {
            let expected = (0..5).map(|i| draws(stream, first + i)).collect::<Vec<_>>();
            let ones = [1.0; 5 * CHUNK - 3];
            for x in [None, Some(&ones[..])] {
                let (mut y, mut keep) = ([1.0f64; 5 * CHUNK - 3], [0; 5]);
                let (first, whole, threshold, gain) = (first as usize, usize::MAX, 9000, 2.0);
                let (y_, keep_) = (&mut y, &mut keep);
                with(isa, Draw { isa, whole, stream, threshold, gain, first, x, y: y_, keep: keep_ });
                let dropped = |&draw: &u16| draw < threshold;
                assert!(y.iter().zip(expected.as_flattened()).all(|(&y, draw)| (y == 0.0) == dropped(draw)));
                let bits = keep.iter().flat_map(|keep| (0..64).map(move |i| keep >> i & 1 == 0));
                assert!(bits.eq(expected.as_flattened().iter().map(dropped)), "{isa}");
            }
        }
    }

    fn every_set_keeps_the_same<F: Float>(gain: F) {
        let word = |i: u64| (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let keep: Vec<u64> = [0, u64::MAX].into_iter().chain((0..5).map(word)).collect();
        // What is dropped may be anything.
        let values = [F::one(), F::nan(), F::infinity(), -F::one(), F::zero(), F::neg_infinity(), -F::zero()];
        let dy: Vec<F> = (0..7 * CHUNK).map(|i| values[i * i % values.len()]).collect();
        let same = |(a, b): (&F, &F)| {
            (a.is_nan() && b.is_nan()) || (a == b && a.is_sign_negative() == b.is_sign_negative())
        };
        for length in (0..7 * CHUNK).step_by(13) {
            let dy = &dy[..length];
            let kept =
                |(i, &dy): (usize, &F)| if keep[i / 64] >> (i % 64) & 1 == 1 { dy * gain } else { F::zero() };
            let expected: Vec<F> = dy.iter().enumerate().map(kept).collect();
            for (isa, whole) in
                Isa::available().into_iter().flat_map(|isa| [(isa, length), (isa, usize::MAX)])
            {
                let (mut dx, keep) = (vec![F::one(); length], &keep);
                with(isa, Keep { isa, whole, keep, gain, dy: Some(dy), dx: &mut dx });
                assert!(dx.iter().zip(&expected).all(same), "{isa} {length}");
                dx.copy_from_slice(dy);
                with(isa, Keep { isa, whole, keep, gain, dy: None, dx: &mut dx });
                assert!(dx.iter().zip(&expected).all(same), "{isa} {length}");
            }
        }
    }

    #[test]
    fn every_instruction_set_keeps_what_the_bits_say() {
        every_set_keeps_the_same(2.0f32);
        every_set_keeps_the_same(2.0f64);
    }
}
