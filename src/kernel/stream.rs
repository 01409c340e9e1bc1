//! Results too large for the caches, written past them.
//!
//! An ordinary store reads the line that it writes to. A large result that nobody reads soon costs a third of the traffic
//! less without that; a small one is better left where the next reader finds it.

use super::elementwise::{Work, with};
use super::isa::Isa;
use super::real::Real;

/// Results of so many bytes are not found in a cache by whoever reads them next.
const LARGE: usize = 8 << 20;

/// Numbers between two writes: they stay in the nearest cache.
const CHUNK: usize = 1024;

/// Makes a result part by part, in order.
pub(crate) trait Fill<F> {
    /// Writes the elements `at..at + out.len()`; has to be `#[inline(always)]`.
    fn fill(&mut self, at: usize, out: &mut [F]);
}

/// Fills `out`, part of a result of `whole` elements, with what `fill` makes.
pub(crate) fn write<F: Real, T: Fill<F>>(isa: Isa, whole: usize, out: &mut [F], fill: &mut T) {
    struct Write<'a, F, T> {
        large: bool,
        out: &'a mut [F],
        fill: &'a mut T,
    }

    impl<F: Real, T: Fill<F>> Work for Write<'_, F, T> {
        type Output = ();

        #[inline(always)]
        fn run(self) {
            let Self { large, out, fill } = self;
            let mut chunk = [F::default(); CHUNK];
            for (i, out) in out.chunks_mut(CHUNK).enumerate() {
                if large {
                    let chunk = &mut chunk[..out.len()];
                    fill.fill(i * CHUNK, chunk);
                    past_caches(chunk, out);
                } else {
                    fill.fill(i * CHUNK, out);
                }
            }
            if large {
                finish();
            }
        }
    }

    let large = cfg!(target_arch = "x86_64") && whole.saturating_mul(size_of::<F>()) >= LARGE;
    with(isa, Write { large, out, fill });
}

/// Copies; on x86-64 without bringing `to` into the caches. Others may see it only after [`finish`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn past_caches<F: Real>(from: &[F], to: &mut [F]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

    // SAFETY: both types are plain numbers, any bytes of which are valid.
    let (head, vectors, tail) = unsafe { to.align_to_mut::<__m128i>() };
    let lanes = size_of::<__m128i>() / size_of::<F>();
    let (first, rest) = from.split_at(head.len());
    let (middle, last) = rest.split_at(vectors.len() * lanes);
    head.copy_from_slice(first);
    tail.copy_from_slice(last);
    for (to, from) in vectors.iter_mut().zip(middle.chunks_exact(lanes)) {
        // SAFETY: `from` is as many bytes as a vector, and the load asks for no alignment.
        let vector = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
        // SAFETY: the exclusive reference to an aligned vector; `write` calls `finish` before anyone else gets at it.
        unsafe { _mm_stream_si128(to, vector) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn past_caches<F: Real>(from: &[F], to: &mut [F]) {
    to.copy_from_slice(from);
}

/// Orders the stores of [`past_caches`] before all later ones, as other stores are by themselves.
#[inline(always)]
fn finish() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: an instruction of every 64-bit processor of this family, which touches no memory.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(f64);

    impl Fill<f64> for Count {
        #[inline(always)]
        fn fill(&mut self, at: usize, out: &mut [f64]) {
            out.iter_mut().enumerate().for_each(|(i, out)| *out = self.0 + (at + i) as f64);
        }
    }

    #[test]
    fn large_and_small_results_are_the_same_at_every_length_and_place() {
        let mut memory = vec![-1.0; 3 * CHUNK];
        for isa in Isa::available() {
            for (start, length) in [(0, 0), (1, 1), (3, 2), (1, CHUNK), (2, CHUNK + 7), (5, 2 * CHUNK + 1)] {
                for whole in [length, LARGE] {
                    memory.fill(-1.0);
                    write(isa, whole, &mut memory[start..start + length], &mut Count(0.5));
                    let right = |(i, &x): (usize, &f64)| match i {
                        i if (start..start + length).contains(&i) => x == 0.5 + (i - start) as f64,
                        _ => x == -1.0,
                    };
                    assert!(memory.iter().enumerate().all(right), "{isa} {start} {length} {whole}");
                }
            }
        }
    }
}
