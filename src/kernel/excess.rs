//! What weights have beyond tame ones, see [`weights`](super::weights): a short list for each column.

use super::tiles::PANEL;

/// Largest sum of the positive weights of a tame pair, or of the negative ones without their sign.
const TAME: i16 = 128;

/// Columns that are added side by side.
pub(super) const SIDE: usize = 8;

/// What the columns of a panel have beyond the tame weights of some steps: to be multiplied and added like those, and at most one of
/// each pair is not zero.
///
/// In rounds, one step for each of eight columns: short lists of a length for each column would be mostly mispredicted ends. Columns
/// that have less get zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Excess {
    /// Where the rounds of eight columns end.
    ends: [usize; PANEL / SIDE],
    steps: Vec<[u32; SIDE]>,
    weights: Vec<[[i8; 4]; SIDE]>,
}

impl Excess {
    /// One column after the other is told by `more(column, add)`, which calls `add(step, weights)`.
    pub(super) fn new(mut more: impl FnMut(usize, &mut dyn FnMut(usize, [i8; 4]))) -> Self {
        let mut all = Self::default();
        for eight in 0..PANEL / SIDE {
            let first = all.steps.len();
            for column in 0..SIDE {
                let mut round = first;
                more(SIDE * eight + column, &mut |step, weights| {
                    if round == all.steps.len() {
                        all.steps.push([0; SIDE]);
                        all.weights.push([[0; 4]; SIDE]);
                    }
                    all.steps[round][column] = step as u32;
                    all.weights[round][column] = weights;
                    round += 1;
                });
            }
            all.ends[eight] = all.steps.len();
        }
        all
    }

    /// Whether there is none.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The rounds of the columns `8 * eight ..`: steps and weights.
    #[inline]
    pub(super) fn rounds(&self, eight: usize) -> (&[[u32; SIDE]], &[[[i8; 4]; SIDE]]) {
        let rounds = eight.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[eight];
        (&self.steps[rounds.clone()], &self.weights[rounds])
    }

    /// The steps of a column, and what it has there.
    pub(super) fn column(&self, column: usize) -> impl Iterator<Item = (usize, [i8; 4])> {
        let (steps, weights) = self.rounds(column / SIDE);
        let all = steps.iter().zip(weights);
        all.map(move |(steps, weights)| (steps[column % SIDE] as usize, weights[column % SIDE]))
            .take_while(|&(_, weights)| weights != [0; 4])
    }

    /// Bytes that one product reads.
    pub(super) fn size_bytes(&self) -> usize {
        size_of_val(self.steps.as_slice()) + size_of_val(self.weights.as_slice())
    }
}

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
    fn columns_come_back_and_are_filled_up() {
        let of = |column: usize| (0..column % 6).map(move |i| (7 * i, [column as i8, 0, 1, 0]));
        let all = Excess::new(|column, add| of(column).for_each(|(step, weights)| add(step, weights)));
        for column in 0..PANEL {
            assert!(all.column(column).eq(of(column)), "{column}");
            let longest = (0..SIDE).map(|c| of(column / SIDE * SIDE + c).count()).max();
            assert_eq!(Some(all.rounds(column / SIDE).0.len()), longest);
        }
        assert!(!all.is_empty() && Excess::new(|_, _| {}).is_empty());
    }
}
