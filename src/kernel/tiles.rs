//! How a product is cut: panels of 32 columns, tiles of near-equal rows.

use std::ops::Range;

/// Columns of a panel.
pub(super) const PANEL: usize = 32;

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
}
