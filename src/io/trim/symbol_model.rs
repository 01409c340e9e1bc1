//! The symbols where the mask is one: signed integers without a zero, as predicted decisions.
//!
//! ```text
//! sign         one decision, if both signs occur
//! magnitude v  n = floor(log2 v) in unary, then the n bits below the leading one, first to last (Elias gamma);
//!              every decision has its own place in a tree, so that small alphabets learn their exact histogram
//! ```
//!
//! Decisions that the largest magnitude makes impossible are not coded. The mask is known before, as a whole,
//! so a context may look to both sides of an entry.

use super::mask_model::{Grid, opinion};
use super::model::{Mixer, Prob};
use super::range_coder::Coder;
use super::wire::width;

/// The largest magnitudes that occur; 0 where a sign does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alphabet {
    pub(crate) negative: u32,
    pub(crate) positive: u32,
}

impl Alphabet {
    fn largest(self) -> u32 {
        self.negative.max(self.positive)
    }

    /// Places in the tree of decisions.
    fn nodes(self) -> usize {
        UNARY + width(u64::from(self.largest())) as usize * PER_LENGTH
    }
}

const UNARY: usize = 32;
const TREE_LEVELS: u32 = 5; // with a node each; deeper bits have one node per level
const PER_LENGTH: usize = (1 << TREE_LEVELS) + 32;

/// Codes `v` in `1..=largest`; `decide(node, bit)` codes one decision.
fn code_magnitude(v: u32, largest: u32, mut decide: impl FnMut(usize, bool) -> bool) -> u32 {
    let longest = width(u64::from(largest)).saturating_sub(1);
    let length = width(u64::from(v)).saturating_sub(1);
    let mut n = 0;
    while n < longest && decide(n as usize, length > n) {
        n += 1;
    }
    let mut prefix = 1u32;
    for level in 0..n {
        let below = n - 1 - level; // bits still to come after this one
        let one = u64::from(prefix << 1 | 1) << below;
        if one > u64::from(largest) {
            prefix <<= 1;
            continue;
        }
        let place = if level < TREE_LEVELS { prefix as usize } else { (1 << TREE_LEVELS) + level as usize };
        let node = UNARY + n as usize * PER_LENGTH + place;
        prefix = prefix << 1 | u32::from(decide(node, v >> below & 1 != 0));
    }
    prefix
}

/// Codes one symbol for every one of `mask`, in its order; a decoder fills `symbols` in.
pub(crate) fn code_symbols<C: Coder>(
    coder: &mut C,
    grid: Grid,
    mask: &[u8],
    symbols: &mut [i32],
    alphabet: Alphabet,
) {
    if alphabet.largest() == 0 {
        return;
    }
    if grid.mixed {
        code_mixed(coder, grid, mask, symbols, alphabet);
    } else {
        code_fast(coder, symbols, alphabet);
    }
}

fn signed(negative: bool, magnitude: u32) -> i32 {
    if negative { (magnitude as i32).wrapping_neg() } else { magnitude as i32 }
}

/// The sign that an alphabet leaves no choice about.
fn only_sign(alphabet: Alphabet) -> Option<bool> {
    match (alphabet.negative, alphabet.positive) {
        (0, _) => Some(false),
        (_, 0) => Some(true),
        _ => None,
    }
}

/// Contexts: the sign and the size of the symbol before.
fn code_fast<C: Coder>(coder: &mut C, symbols: &mut [i32], alphabet: Alphabet) {
    let nodes = alphabet.nodes();
    let mut signs = [Prob::NEW; 3];
    let mut probs = vec![Prob::NEW; 4 * nodes];
    let forced = only_sign(alphabet);
    let (mut last_sign, mut last_size) = (0usize, 0usize);
    for symbol in symbols {
        let negative = forced.unwrap_or_else(|| {
            let prob = &mut signs[last_sign];
            let negative = coder.code(*symbol < 0, prob.p());
            prob.update(negative, 1023);
            negative
        });
        let largest = if negative { alphabet.negative } else { alphabet.positive };
        let probs = &mut probs[last_size * nodes..][..nodes];
        let magnitude = code_magnitude(symbol.unsigned_abs(), largest, |node, bit| {
            let prob = &mut probs[node];
            let bit = coder.code(bit, prob.p());
            prob.update(bit, 1023);
            bit
        });
        *symbol = signed(negative, magnitude);
        last_sign = 1 + usize::from(negative);
        last_size = size_class(magnitude, alphabet);
    }
}

/// 1 to 3 for the thirds of the lengths that occur; 0 is kept for "nothing there".
fn size_class(magnitude: u32, alphabet: Alphabet) -> usize {
    let (length, longest) = (width(u64::from(magnitude)), width(u64::from(alphabet.largest())));
    if longest <= 3 { length.clamp(1, 3) as usize } else { (1 + 3 * (length - 1) / longest) as usize }
}

const INPUTS: usize = 7;

/// What the neighbourhood of an entry says.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    sign: usize, // 0 nothing, 1 positive, 2 negative
    size: usize, // 0 nothing, 1..=3
}

/// Running balance of signs and sizes in a line.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    balance: i32,
    sizes: u32,
    count: u32,
    last: Seen,
}

impl Line {
    fn learn(&mut self, seen: Seen) {
        self.balance = (self.balance + if seen.sign == 1 { 1 } else { -1 }).clamp(-1000, 1000);
        self.sizes += seen.size as u32;
        self.count += 1;
        if self.count >= 4096 {
            (self.sizes, self.count) = (self.sizes / 2, self.count / 2);
        }
        self.last = seen;
    }

    /// -2..=2 as 0..=4.
    fn lean(&self) -> usize {
        let (b, n) = (self.balance, self.count as i32);
        let strong = 3 * b.abs() > n && b.abs() > 1;
        match (b.signum(), strong) {
            (0, _) => 2,
            (1, false) => 3,
            (1, true) => 4,
            (_, false) => 1,
            (_, true) => 0,
        }
    }

    /// The mean size in quarters, 0 if unknown, at most 9.
    fn mean(&self) -> usize {
        (4 * self.sizes).checked_div(self.count).map_or(0, |quarters| (quarters - 3).min(9) as usize)
    }
}

/// Contexts: neighbours, lines, how crowded it is around the entry.
fn code_mixed<C: Coder>(coder: &mut C, grid: Grid, mask: &[u8], symbols: &mut [i32], alphabet: Alphabet) {
    let Grid { rows, cols, stride, .. } = grid;
    let nodes = alphabet.nodes();
    let forced = only_sign(alphabet);
    let mut columns = vec![Line::default(); cols];
    let mut row_now = vec![Seen::default(); cols];
    let mut sign_tables = vec![Prob::NEW; 6 * 256];
    let mut tables = vec![Prob::NEW; 6 * 64 * nodes];
    let start = [8_000, 8_000, 8_000, 8_000, 8_000, 8_000, 0];
    let mut sign_mixer = Mixer::<INPUTS>::new(4, start);
    let mut mixer = Mixer::<INPUTS>::new(UNARY + 1, [-8_000, 11_000, 11_000, 11_000, 11_000, 11_000, 0]);
    let mut next = symbols.iter_mut();
    for r in 0..rows {
        let row_mask = &mask[r * cols..][..cols];
        let mut row = Line::default();
        row_now.fill(Seen::default());
        for c in (0..cols).filter(|&c| row_mask[c] != 0) {
            let Some(symbol) = next.next() else { return };
            let back = |n: usize| if n > 0 && c >= n { row_now[c - n] } else { Seen::default() };
            let ahead = |n: usize| usize::from(n > 0 && c + n < cols && row_mask[c + n] != 0);
            let (w, n) = (back(1), back(stride));
            let (nw, ne) = (back(stride + usize::from(stride > 0)), back(stride.saturating_sub(1)));
            let col = columns[c];
            let here = |s: Seen| usize::from(s.sign != 0);
            let crowd =
                (here(w) + here(n) + here(nw) + here(ne) + ahead(1) + ahead(stride) + ahead(stride + 1))
                    .min(3);
            let sign = |s: Seen| match s.sign {
                1 => 1i32,
                2 => -1,
                _ => 0,
            };
            let near = 2 * sign(w) + 2 * sign(n) + sign(nw) + sign(ne);
            let negative = forced.unwrap_or_else(|| {
                let contexts = [
                    0,
                    w.sign + 3 * n.sign + 9 * nw.sign + 27 * ne.sign,
                    col.lean() + 5 * col.last.sign,
                    row.lean() + 5 * row.last.sign,
                    (near + 6) as usize + 16 * col.lean(),
                    (near + 6) as usize + 16 * row.lean(),
                ];
                let mean = sign_tables[0].p();
                let mut inputs = [0; INPUTS];
                for (i, (input, context)) in inputs.iter_mut().zip(contexts).enumerate() {
                    *input = opinion(sign_tables[256 * i + context], mean);
                }
                inputs[INPUTS - 1] = 256;
                let set = usize::from(near != 0) + 2 * usize::from(col.count > 0);
                let p = sign_mixer.mix(set, inputs);
                let negative = coder.code(*symbol < 0, p);
                sign_mixer.update(negative);
                for (i, context) in contexts.into_iter().enumerate() {
                    sign_tables[256 * i + context].update(negative, 1000);
                }
                negative
            });
            let largest = if negative { alphabet.negative } else { alphabet.positive };
            let own = 1 + usize::from(negative);
            let agrees = usize::from(near != 0 && (near < 0) == negative);
            let contexts = [
                0,
                usize::from(negative) + 2 * crowd,
                w.size + 4 * n.size + 16 * agrees,
                col.mean() + 10 * col.last.size,
                row.mean() + 10 * row.last.size,
                col.last.size + 4 * usize::from(col.last.sign == own) + 8 * row.last.size,
            ];
            let magnitude = code_magnitude(symbol.unsigned_abs(), largest, |node, bit| {
                let at = |i: usize| (64 * i + contexts[i]) * nodes + node;
                let mean = tables[at(0)].p();
                let mut inputs = [0; INPUTS];
                for (i, input) in inputs.iter_mut().enumerate().take(INPUTS - 1) {
                    *input = opinion(tables[at(i)], mean);
                }
                inputs[INPUTS - 1] = 256;
                let p = mixer.mix(node.min(UNARY), inputs);
                let bit = coder.code(bit, p);
                mixer.update(bit);
                for i in 0..INPUTS - 1 {
                    tables[at(i)].update(bit, 1000);
                }
                bit
            });
            *symbol = signed(negative, magnitude);
            let seen = Seen { sign: own, size: size_class(magnitude, alphabet) };
            row_now[c] = seen;
            row.learn(seen);
            columns[c].learn(seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_magnitude_up_to_every_largest_has_its_own_decisions() {
        for largest in [1u32, 2, 3, 4, 5, 7, 8, 9, 31, 32, 100] {
            let mut seen = std::collections::BTreeSet::new();
            for v in 1..=largest {
                let mut path = Vec::new();
                assert_eq!(
                    code_magnitude(v, largest, |node, bit| {
                        path.push((node, bit));
                        bit
                    }),
                    v
                );
                let nodes = Alphabet { negative: 0, positive: largest }.nodes();
                assert!(path.iter().all(|&(node, _)| node < nodes));
                assert!(seen.insert(path));
            }
        }
        assert_eq!(code_magnitude(1 << 31, 1 << 31, |_, bit| bit), 1 << 31);
    }

    #[test]
    fn whatever_is_decided_the_magnitude_stays_inside() {
        for largest in 1u32..70 {
            for pattern in 0u32..256 {
                let mut i = 0;
                let v = code_magnitude(0, largest, |_, _| {
                    i += 1;
                    pattern >> (i % 8) & 1 != 0
                });
                assert!((1..=largest).contains(&v));
            }
        }
    }
}
