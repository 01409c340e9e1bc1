//! Results too large for the caches, written past them.
//!
//! An ordinary store reads the line that it writes to. A large result that nobody reads soon costs a third of the traffic
//! less without that; a small one is better left where the next reader finds it.

use std::marker::PhantomData;

use super::elementwise::{Work, with};
use super::isa::Isa;
use super::real::Real;

/// Results of so many bytes are not found in a cache by whoever reads them next.
const LARGE: usize = 8 << 20;

/// Bytes between two writes: so few that reading and writing alternate, which suits memory better than long stretches
/// of either.
const CHUNK_BYTES: usize = 1024;

/// Shorter parts are left to the caches: their first and last lines are not whole, which writes past the caches suffer from.
const SHORT: usize = 2048;

/// Bytes of a line.
const ALIGN: usize = 64;

/// A chunk and the line before it. Begins with a page: a processor looks for what was just written by the last twelve bits of an
/// address, and the calls that fill this memory keep their own variables right below. Where those had the same bits, 2:4 in `f64`
/// took three times as long.
#[repr(C, align(4096))]
struct Page([u8; CHUNK_BYTES + ALIGN]);

/// Numbers and codes, of which results consist.
///
/// # Safety
/// Any bytes of the size are a value, and all bytes of a value are defined.
pub unsafe trait Plain: Copy + Default {}

// SAFETY: `f32` and `f64`.
unsafe impl<F: Real> Plain for F {}
// SAFETY: integers.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}

/// Makes a result part by part, in order.
pub(crate) trait Fill<F> {
    /// Each part begins at a multiple of so many elements, a divisor of 128.
    const GRAIN: usize = 1;

    /// Writes the elements `at..at + out.len()`, about a thousand at most where it is streamed; has to be `#[inline(always)]`.
    fn fill(&mut self, at: usize, out: &mut [F]);
}

/// Fills `out`, part of a result of `whole` elements, with what `fill` makes, and returns it.
pub(crate) fn write<F: Plain, T: Fill<F>>(isa: Isa, whole: usize, out: &mut [F], fill: T) -> T {
    struct Write<'a, F, T> {
        isa: Isa,
        whole: usize,
        out: &'a mut [F],
        fill: T,
    }

    impl<F: Plain, T: Fill<F>> Work for Write<'_, F, T> {
        type Output = T;

        #[inline(always)]
        fn run(self) -> T {
            let Self { isa, whole, out, mut fill } = self;
            Stream::new(isa, whole).fill(out, &mut fill);
            fill
        }
    }

    with(isa, Write { isa, whole, out, fill })
}

/// The way to a large result, part by part. Dropping it orders what was written before all that is written later, as other
/// stores are by themselves: only then others may see it. That waits for memory, so that one stream writes many parts.
pub(crate) struct Stream<F> {
    isa: Isa,
    large: bool,
    memory: Page,
    of: PhantomData<F>,
}

impl<F: Plain> Stream<F> {
    /// For parts of a result of `whole` elements.
    #[inline(always)]
    pub(crate) fn new(isa: Isa, whole: usize) -> Self {
        let can = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) | Isa::Avx512(_) => true,
            _ => false,
        };
        let large = can && whole.saturating_mul(size_of::<F>()) >= LARGE;
        Self { isa, large, memory: Page([0; CHUNK_BYTES + ALIGN]), of: PhantomData }
    }

    /// For results that are read soon, or whose memory is new: the system has just cleared it, so that the caches have it already.
    pub(crate) fn near() -> Self {
        Self::new(Isa::best(), 0)
    }

    /// Fills `out` with what `fill` makes.
    pub(crate) fn write<T: Fill<F>>(&mut self, out: &mut [F], fill: &mut T) {
        struct Write<'a, F, T> {
            stream: &'a mut Stream<F>,
            out: &'a mut [F],
            fill: &'a mut T,
        }

        impl<F: Plain, T: Fill<F>> Work for Write<'_, F, T> {
            type Output = ();

            #[inline(always)]
            fn run(self) {
                self.stream.fill(self.out, self.fill);
            }
        }

        with(self.isa, Write { stream: self, out, fill });
    }

    /// As [`write`](Self::write), for work that is compiled for an instruction set already.
    #[inline(always)]
    pub(crate) fn fill<T: Fill<F>>(&mut self, out: &mut [F], fill: &mut T) {
        // As far from the beginning of a line as the result: then whole lines are whole lines in both. And if the grain
        // allows it, the first part ends where a line does, so that all others are whole lines.
        let (isa, large) = (self.isa, self.passes(out));
        let mut shift = out.as_ptr().addr() % ALIGN / size_of::<F>();
        let whole = large && shift.is_multiple_of(T::GRAIN);
        let most = CHUNK_BYTES / size_of::<F>();
        let mut length = if whole { most - shift } else { most };
        let (mut rest, mut at) = (out, 0);
        // SAFETY: any bytes are values of the type. A page begins with one.
        let (_, memory, _) = unsafe { self.memory.0.align_to_mut::<F>() };
        while !rest.is_empty() {
            let (part, after) = rest.split_at_mut(length.min(rest.len()));
            let chunk = &mut memory[shift..][..part.len()];
            // One call for both ways: what is called once is inlined, and compiled for the instruction set.
            fill.fill(at, if large { &mut *chunk } else { &mut *part });
            if large {
                past_caches(isa, chunk, part);
            }
            at += part.len();
            (rest, length) = (after, most);
            if whole {
                shift = 0;
            }
        }
    }

    /// Copies.
    #[inline(always)]
    pub(crate) fn copy(&mut self, from: &[F], to: &mut [F]) {
        if self.passes(to) { past_caches(self.isa, from, to) } else { to.copy_from_slice(from) }
    }

    /// Writes zeros.
    #[inline(always)]
    pub(crate) fn clear(&mut self, to: &mut [F]) {
        struct Zeros;

        impl<F: Plain> Fill<F> for Zeros {
            #[inline(always)]
            fn fill(&mut self, _: usize, out: &mut [F]) {
                out.fill(F::default());
            }
        }

        if self.passes(to) { self.write(to, &mut Zeros) } else { to.fill(F::default()) }
    }

    /// Whether this part of the result is better written past them.
    #[inline(always)]
    fn passes(&self, part: &[F]) -> bool {
        self.large && size_of_val(part) >= SHORT
    }
}

impl<F> Drop for Stream<F> {
    #[inline(always)]
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.large {
            // SAFETY: an instruction of every 64-bit processor of this family, which touches no memory.
            unsafe { std::arch::x86_64::_mm_sfence() };
        }
    }
}

/// Asks for numbers that will be read or written soon, line by line from the first: a hint, which changes nothing but time.
#[inline(always)]
pub(crate) fn fetch<T>(numbers: &[T]) {
    fetch_ahead(numbers, 0);
}

/// Asks for as much as `part` that lies `ahead` bytes behind it, whether there is anything or not.
#[inline(always)]
pub(crate) fn fetch_ahead<T>(part: &[T], ahead: usize) {
    for at in (0..size_of_val(part)).step_by(ALIGN) {
        fetch_line(part.as_ptr().cast::<u8>().wrapping_add(ahead + at));
    }
}

/// Asks for the line of a byte, whether there is one or not.
#[inline(always)]
pub(crate) fn fetch_line(byte: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

        // SAFETY: an instruction of every 64-bit processor of this family, which reads nothing and may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(byte.cast()) };
    }
    let _ = byte;
}

/// Which of `parts` parts to read after `at` others, so that four places are read in turns: to the processor each is a stream of its
/// own, and memory sends several faster than one. Parts of some cache lines do best; few of them are read in order.
#[inline(always)]
pub(crate) fn in_turns(at: usize, parts: usize) -> usize {
    const PLACES: usize = 4;
    const LEAST: usize = 32;
    let place = parts / PLACES;
    if place >= LEAST && at < PLACES * place { at % PLACES * place + at / PLACES } else { at }
}

/// Copies; with AVX2 and AVX-512 the whole lines without bringing `to` into the caches. Others may see it only
/// when the [`Stream`] is gone.
#[inline(always)]
fn past_caches<F: Plain>(isa: Isa, from: &[F], to: &mut [F]) {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx2(_) | Isa::Avx512(_)) {
        use std::arch::x86_64::__m512i;

        // SAFETY: any bytes are values of both types.
        let (head, lines, tail) = unsafe { to.align_to_mut::<__m512i>() };
        // SAFETY: as above.
        let (before, whole, _) = unsafe { from[head.len()..].align_to::<__m512i>() };
        if before.is_empty() && whole.len() >= lines.len() {
            head.copy_from_slice(&from[..head.len()]);
            tail.copy_from_slice(&from[from.len() - tail.len()..]);
            let whole = &whole[..lines.len()];
            match isa {
                Isa::Avx2(cpu) => cpu.stream(whole, lines),
                Isa::Avx512(cpu) => cpu.stream(whole, lines),
                Isa::Scalar => lines.copy_from_slice(whole),
            }
            return;
        }
    }
    let _ = isa;
    to.copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes an element from its position.
    struct Each<F>(fn(usize) -> F);

    impl<F> Fill<F> for Each<F> {
        #[inline(always)]
        fn fill(&mut self, at: usize, out: &mut [F]) {
            out.iter_mut().enumerate().for_each(|(i, out)| *out = (self.0)(at + i));
        }
    }

    /// Counts in parts of four.
    struct Fours;

    impl Fill<f64> for Fours {
        const GRAIN: usize = 4;

        #[inline(always)]
        fn fill(&mut self, at: usize, out: &mut [f64]) {
            assert_eq!(at % 4, 0);
            out.iter_mut().enumerate().for_each(|(i, out)| *out = (at + i) as f64);
        }
    }

    #[test]
    fn turns_take_each_part_once() {
        for parts in [0, 1, 5, 127, 128, 131, 200] {
            let mut all: Vec<usize> = (0..parts).map(|at| in_turns(at, parts)).collect();
            all.sort_unstable();
            assert_eq!(all, Vec::from_iter(0..parts));
        }
        assert_eq!([0, 1, 2, 3, 4, 159, 160].map(|at| in_turns(at, 162)), [0, 40, 80, 120, 1, 159, 160]);
    }

    #[test]
    fn parts_begin_at_multiples_of_the_grain_wherever_the_result_lies() {
        let mut memory = vec![-1.0; 3 * CHUNK_BYTES];
        for isa in Isa::available() {
            for (start, length) in (0..9).flat_map(|start| [(start, 4), (start, 2 * CHUNK_BYTES + 12)]) {
                let out = &mut memory[start..start + length];
                write(isa, LARGE, out, Fours);
                assert!(out.iter().enumerate().all(|(i, &x)| x == i as f64), "{isa} {start} {length}");
            }
        }
    }

    #[test]
    fn large_and_small_results_are_the_same_at_every_length_and_place() {
        check(-1.0, |i| i as f64 + 0.5);
        check(-1.0, |i| i as f32 + 0.5);
        check(255, |i| (i % 251) as u8);
    }

    /// `untouched` is what `each` never makes.
    fn check<F: Plain + PartialEq>(untouched: F, each: fn(usize) -> F) {
        let mut memory = [untouched; 3 * CHUNK_BYTES];
        for isa in Isa::available() {
            for (start, length) in
                [(0, 0), (1, 1), (3, 2), (1, CHUNK_BYTES), (2, CHUNK_BYTES + 7), (5, 2 * CHUNK_BYTES + 1)]
            {
                for whole in [length, LARGE] {
                    memory.fill(untouched);
                    write(isa, whole, &mut memory[start..start + length], Each(each));
                    let right = |(i, &x): (usize, &F)| match i {
                        i if (start..start + length).contains(&i) => x == each(i - start),
                        _ => x == untouched,
                    };
                    assert!(memory.iter().enumerate().all(right), "{isa} {start} {length} {whole}");
                }
            }
        }
    }
}
