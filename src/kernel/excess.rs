//! What weights have beyond tame ones, see [`weights`](super::weights): a short list for each column.

use std::cmp::Reverse;
use std::{iter, slice};

use super::tiles::PANEL;

/// Largest sum of the positive weights of a tame pair, or of the negative ones without their sign.
const TAME: i16 = 128;

/// Columns that are added side by side.
pub(super) const SIDE: usize = 8;

/// What the columns of a panel have beyond the tame weights of some steps: to be multiplied and added like those, and at most one of
/// each pair is not zero.
///
/// In rounds, one step for each of eight columns: lists of a few steps for each column would be mostly mispredicted ends. Columns that
/// have less get zeros; those side by side are about equally long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Excess {
    /// The columns, longest first.
    order: [u8; PANEL],
    /// Where the rounds of eight columns in this order end.
    ends: [usize; PANEL / SIDE],
    steps: Vec<[u32; SIDE]>,
    weights: Vec<[[i8; 4]; SIDE]>,
}

impl Excess {
    /// Of the steps of each column and what it has there.
    pub(super) fn new(columns: &[Vec<(u32, [i8; 4])>; PANEL]) -> Self {
        let mut all = Self { order: std::array::from_fn(|column| column as u8), ..Self::default() };
        all.order.sort_by_key(|&column| Reverse(columns[usize::from(column)].len()));
        for (order, end) in all.order.as_chunks::<SIDE>().0.iter().zip(&mut all.ends) {
            let columns = order.map(|column| &columns[usize::from(column)]);
            for round in 0..columns[0].len() {
                let at = columns.map(|column| column.get(round).copied().unwrap_or_default());
                all.steps.push(at.map(|(step, _)| step));
                all.weights.push(at.map(|(_, weights)| weights));
            }
            *end = all.steps.len();
        }
        all
    }

    /// Whether there is none.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Eight columns at a time, and their rounds of steps and weights.
    #[inline]
    pub(super) fn eights(&self) -> impl Iterator<Item = (&[u8; SIDE], Rounds<'_>)> {
        self.order.as_chunks().0.iter().enumerate().map(|(eight, order)| {
            let rounds = eight.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[eight];
            (order, iter::zip(&self.steps[rounds.clone()], &self.weights[rounds]))
        })
    }

    /// All of it: columns, steps, and what they have there.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, usize, [i8; 4])> {
        self.eights().flat_map(|(order, rounds)| {
            rounds.flat_map(move |(steps, weights)| {
                let each = order.iter().zip(steps).zip(weights);
                each.map(|((&column, &step), &weights)| (usize::from(column), step as usize, weights))
                    .filter(|&(.., weights)| weights != [0; 4])
            })
        })
    }

    /// Bytes that one product reads.
    pub(super) fn size_bytes(&self) -> usize {
        size_of_val(self.steps.as_slice()) + size_of_val(self.weights.as_slice())
    }
}

/// Steps of eight columns, and the weights there.
type Rounds<'a> = iter::Zip<slice::Iter<'a, [u32; SIDE]>, slice::Iter<'a, [[i8; 4]; SIDE]>>;

/// What has to be taken from four weights to make them tame: from the larger one of a pair.
pub(super) fn beyond_tame(weights: [i8; 4]) -> [i8; 4] {
    let mut beyond = [0; 4];
    for (two, beyond) in weights.as_chunks::<2>().0.iter().zip(beyond.as_chunks_mut::<2>().0) {
        let [a, b] = two.map(i16::from);
        let larger = usize::from(b.abs() > a.abs());
        if (a < 0) == (b < 0) {
            beyond[larger] = (a + b - (a + b).clamp(-TAME, TAME)) as i8;
        }
    }
    beyond
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tame_pairs_and_their_excess_add_up_to_the_weights() {
        for a in i8::MIN..=i8::MAX {
            for b in i8::MIN..=i8::MAX {
                let [x, y, ..] = beyond_tame([a, b, 0, 0]);
                let (tame_a, tame_b) = (i16::from(a) - i16::from(x), i16::from(b) - i16::from(y));
                assert!(tame_a.max(0) + tame_b.max(0) <= 128 && tame_a.min(0) + tame_b.min(0) >= -128);
                assert!(x == 0 || y == 0);
                assert_eq!((i8::try_from(tame_a).is_ok(), i8::try_from(tame_b).is_ok()), (true, true));
                if a.unsigned_abs() <= 64 && b.unsigned_abs() <= 64 {
                    assert_eq!((x, y), (0, 0));
                }
            }
        }
    }

    #[test]
    fn columns_come_back_and_few_zeros_fill_them_up() {
        let columns = std::array::from_fn(|column| {
            (0..column as u32 * 7 % 32).map(|i| (7 * i, [column as i8 - 40, 0, 1, 0])).collect()
        });
        let all = Excess::new(&columns);
        let mut found: Vec<_> = all.all().collect();
        found.sort_unstable();
        let each = columns.iter().enumerate();
        let expected =
            each.flat_map(|(j, column)| column.iter().map(move |&(step, w)| (j, step as usize, w)));
        assert!(found.into_iter().eq(expected));
        assert_eq!(all.steps.len(), 31 + 23 + 15 + 7);
        assert!(!all.is_empty() && Excess::new(&Default::default()).is_empty());
    }
}
