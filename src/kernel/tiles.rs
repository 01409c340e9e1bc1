//! How a product is cut: panels of 32 columns, tiles of near-equal rows; and how tiles share what is done by the way.

use std::ops::Range;

/// Columns of a panel.
pub(super) const PANEL: usize = 32;

/// A panel of so many bytes fits into the second-level cache beside the one in use and the rows.
pub(super) const NEAR_BYTES: usize = 192 * 1024;

/// Most rows of a register tile on any instruction set.
pub(super) const MAX_ROWS: usize = 14;

/// Rows split into near-equal tiles of at most `most`, so that no thin one remains: 64 = 13 + 13 + 13 + 13 + 12.
#[derive(Clone, Debug)]
pub(super) struct Tiles {
    next: usize,
    rows: usize,
    tiles: usize,
}

impl Tiles {
    pub(super) fn new(rows: usize, most: usize) -> Self {
        Self { next: 0, rows, tiles: rows.div_ceil(most) }
    }
}

impl ExactSizeIterator for Tiles {}

impl Iterator for Tiles {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        if self.tiles == 0 {
            return None;
        }
        let end = self.next + (self.rows - self.next).div_ceil(self.tiles);
        let tile = self.next..end;
        self.next = end;
        self.tiles -= 1;
        Some(tile)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.tiles, Some(self.tiles))
    }
}

/// Part `index` of `count` things, where all parts are as good as equal.
#[inline(always)]
pub(super) fn share(count: usize, index: usize, parts: usize) -> Range<usize> {
    index * count / parts..(index + 1) * count / parts
}

/// Spreads `count` things over `steps`, evenly.
#[cfg(any(target_arch = "x86_64", test))]
pub(super) struct Pace {
    count: usize,
    steps: usize,
    due: usize,
    done: usize,
}

#[cfg(any(target_arch = "x86_64", test))]
impl Pace {
    #[inline(always)]
    pub(super) fn new(count: usize, steps: usize) -> Self {
        Self { count, steps, due: 0, done: 0 }
    }

    /// Those of the next step.
    #[inline(always)]
    pub(super) fn step(&mut self) -> Range<usize> {
        let first = self.done;
        self.due += self.count;
        while self.due >= self.steps {
            self.due -= self.steps;
            self.done += 1;
        }
        first..self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_all_rows_and_differ_by_one_at_most() {
        for rows in 0..100 {
            let tiles: Vec<_> = Tiles::new(rows, 14).collect();
            assert_eq!(tiles.iter().cloned().flatten().collect::<Vec<_>>(), (0..rows).collect::<Vec<_>>());
            let lengths = tiles.iter().map(Range::len);
            assert!(lengths.clone().max().unwrap_or(0) <= 14);
            assert!(lengths.clone().max().unwrap_or(0) - lengths.min().unwrap_or(0) <= 1);
        }
    }

    #[test]
    fn a_pace_leaves_nothing_out_and_never_differs_by_more_than_one() {
        for count in 0..40 {
            for steps in 1..20 {
                let mut pace = Pace::new(count, steps);
                let each: Vec<_> = (0..steps).map(|_| pace.step()).collect();
                assert_eq!(
                    each.iter().cloned().flatten().collect::<Vec<_>>(),
                    (0..count).collect::<Vec<_>>()
                );
                assert!(
                    each.iter().all(|now| now.len() == count / steps || now.len() == count.div_ceil(steps))
                );
            }
        }
    }
}
