//! Which terms of a product matter: the `k` at which not all numbers of a tile or panel are zero.

use super::Isa;
use super::elementwise::{Work, with};
use super::panels::Strips;
use super::real::Real;
use super::tiles::PANEL;

/// Where zeros are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skip {
    /// In the tiles of packed rows.
    Rows,
    /// In the panels, as they are packed.
    Panels,
}

/// So many elements `k`, evenly spread, are looked at before all others, which are not if fewer than one of sixteen is zero.
const TRIAL: usize = 32;

/// Elements of packed rows: a zero contributes nothing.
pub(super) trait Element: Copy + Default + PartialEq {
    /// Words that are zero in the bits of a mask where an element is zero; not all elements have them.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    fn words(_: &[Self]) -> Option<(&[u32], u32)> {
        None
    }
}

impl Element for f32 {
    fn words(all: &[f32]) -> Option<(&[u32], u32)> {
        // SAFETY: both types have the same size and alignment, and any bits are valid in both.
        let words = unsafe { std::slice::from_raw_parts(all.as_ptr().cast(), all.len()) };
        Some((words, !(1 << 31)))
    }
}

impl Element for f64 {}

/// Four codes.
impl Element for u32 {
    fn words(all: &[u32]) -> Option<(&[u32], u32)> {
        Some((all, !0))
    }
}

/// Four codes of 16 bits.
impl Element for [u32; 2] {}

/// Lists of `k`, one after the other; memory is kept from use to use.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    positions: Vec<u32>,
    /// The range of each list in `positions`; `None` where all matter.
    lists: Vec<Option<(usize, usize)>>,
}

impl Live {
    pub(super) fn clear(&mut self) {
        self.positions.clear();
        self.lists.clear();
    }

    /// The list number `index`, or `None` if all `k` matter, as they do where no list was added.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&[u32]> {
        self.lists.get(index).copied().flatten().map(|(first, end)| &self.positions[first..end])
    }

    /// Adds the list of a tile, `[k][width]`.
    pub(super) fn add<F: Element>(&mut self, isa: Isa, tile: &[F], width: usize) {
        struct Find<'a, F>(&'a mut Live, &'a [F], usize);

        impl<F: Element> Work for Find<'_, F> {
            type Output = ();

            #[inline(always)]
            fn run(self) {
                let Self(live, tile, width) = self;
                // One row; the widths of whole tiles on each instruction set, and those of 32, 64, 128 and 256 rows.
                match width {
                    1 => live.find_tile::<F, 1>(tile),
                    4 => live.find_tile::<F, 4>(tile),
                    5 => live.find_tile::<F, 5>(tile),
                    6 => live.find_tile::<F, 6>(tile),
                    7 => live.find_tile::<F, 7>(tile),
                    8 => live.find_tile::<F, 8>(tile),
                    10 => live.find_tile::<F, 10>(tile),
                    11 => live.find_tile::<F, 11>(tile),
                    12 => live.find_tile::<F, 12>(tile),
                    13 => live.find_tile::<F, 13>(tile),
                    14 => live.find_tile::<F, 14>(tile),
                    _ => live.lists.push(None),
                }
            }
        }

        #[cfg(target_arch = "x86_64")]
        if let (Isa::Avx512(cpu), Some((words, bits))) = (isa, F::words(tile))
            && matches!(width, 1 | 4..=14)
        {
            let any = |k: usize| words[k * width..][..width].iter().any(|word| word & bits != 0);
            return self.list(words.len() / width, any, |into| match width {
                1 => cpu.live_words(words, bits, into),
                _ => cpu.live_rows(words, width, bits, into),
            });
        }
        with(isa, Find(self, tile, width));
    }

    /// Adds the list of a panel.
    #[inline(always)]
    pub(super) fn add_panel<F: Real>(&mut self, panel: Strips<'_, F>) {
        self.find(panel.count(), |k| {
            let mut any = false;
            for s in 0..PANEL / F::LINE {
                for &x in &panel.strip(s)[k * F::LINE..][..F::LINE] {
                    any |= x != F::default();
                }
            }
            any
        });
    }

    #[inline(always)]
    fn find_tile<F: Element, const N: usize>(&mut self, tile: &[F]) {
        // One row is counted first, by vectors: most have too few zeros.
        if N == 1
            && !worth(tile.iter().map(|&x| u32::from(x != F::default())).sum::<u32>() as usize, tile.len())
        {
            return self.lists.push(None);
        }
        let chunks = tile.as_chunks::<N>().0;
        self.find(chunks.len(), |k| {
            let mut any = false;
            for &x in &chunks[k] {
                any |= x != F::default();
            }
            any
        });
    }

    /// Lists those of so many `k` that have `any`.
    #[inline(always)]
    fn find(&mut self, length: usize, any: impl Fn(usize) -> bool) {
        self.list(length, &any, |positions| {
            let mut found = 0;
            for k in 0..length {
                positions[found] = k as u32;
                found += usize::from(any(k));
            }
            found
        });
    }

    /// The same with a loop that writes them to the beginning of what it is given, room for all in whole lines, and counts them.
    #[inline(always)]
    fn list(&mut self, length: usize, any: impl Fn(usize) -> bool, find: impl FnOnce(&mut [u32]) -> usize) {
        if length > 2 * TRIAL && (0..TRIAL).filter(|i| !any(i * length / TRIAL)).count() < TRIAL / 16 {
            return self.lists.push(None);
        }
        let first = self.positions.len();
        self.positions.resize(first + length.next_multiple_of(16), 0);
        let found = find(&mut self.positions[first..]);
        let worth = worth(found, length);
        self.lists.push(worth.then_some((first, first + found)));
        // A list keeps room for all `k`, so that memory that was enough for zeros is enough for anything.
        if !worth {
            self.positions.truncate(first);
        }
    }
}

/// Whether a list of `found` leaves out enough: it costs a little.
fn worth(found: usize, length: usize) -> bool {
    found <= length - length / 8 && found < length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(width: usize, tile: &[f32]) -> Vec<Option<Vec<u32>>> {
        let mut all: Vec<_> = Isa::available()
            .into_iter()
            .map(|isa| {
                let mut live = Live::default();
                live.add(isa, tile, width);
                live.get(0).map(<[u32]>::to_vec)
            })
            .collect();
        all.dedup();
        all
    }

    #[test]
    fn lists_what_is_not_zero_if_enough_is() {
        let tile = |depth: usize, live: fn(usize) -> bool| -> Vec<f32> {
            (0..depth * 4).map(|i| if live(i / 4) && i % 4 == 2 { -0.5 } else { 0.0 }).collect()
        };
        for depth in [8, 100, 128, 129, 500] {
            let expected: Vec<u32> = (0..depth as u32).filter(|k| k % 3 == 0).collect();
            assert_eq!(list(4, &tile(depth, |k| k % 3 == 0)), [Some(expected)], "{depth}");
            assert_eq!(list(4, &tile(depth, |_| true)), [None], "{depth}");
            assert_eq!(list(4, &tile(depth, |k| k != 5)), [(depth == 8).then(|| vec![0, 1, 2, 3, 4, 6, 7])]);
            assert_eq!(list(4, &tile(depth, |_| false)), [Some(vec![])], "{depth}");
        }
        assert_eq!(list(4, &[]), [None]);
        assert_eq!(list(2, &[0.0; 8]), [None], "no list for a width that no whole tile has");
        assert_eq!(list(1, &[0.0, 1.0, 0.0]), [Some(vec![1])]);
    }

    #[test]
    fn zeros_are_found_wherever_they_stand() {
        let tile = |zeros: std::ops::Range<usize>| -> Vec<f32> {
            (0..400 * 4).map(|i| if zeros.contains(&(i / 4)) { 0.0 } else { 1.0 }).collect()
        };
        for zeros in [0..100, 150..250, 300..400] {
            let expected: Vec<u32> = (0..400).filter(|&k| !zeros.contains(&(k as usize))).collect();
            assert_eq!(list(4, &tile(zeros)), [Some(expected)]);
        }
        assert_eq!(list(4, &tile(0..0)), [None]);
    }
}
