//! The product of codes, one multiplication at a time.

use crate::kernel::int8::{Step8, Sums};
use crate::kernel::tiles::PANEL;

/// `sums[i][j] = start[j] + sum over k of a[k][i] * w[k][j]`, four `k` in each element of both.
pub(in crate::kernel) fn tile(
    rows: usize,
    a: &[u32],
    steps: &[Step8],
    start: &[i32; PANEL],
    sums: &mut Sums,
) {
    for (i, sums) in sums[..rows].iter_mut().enumerate() {
        *sums = *start;
        for (four, step) in a[i.min(a.len())..].iter().step_by(rows).zip(steps) {
            let a = four.to_ne_bytes().map(i32::from);
            for (sum, w) in sums.iter_mut().zip(&step.0) {
                for k in 0..4 {
                    *sum = sum.wrapping_add(a[k] * i32::from(w[k]));
                }
            }
        }
    }
}

/// Rows of codes `[rows, inputs]` to `[inputs / 4][rows]`, four codes in each element, zero padded before the flip.
pub(in crate::kernel) fn pack(codes: &[u8], inputs: usize, flip: u32, packed: &mut [u32]) {
    for_each_four(codes, inputs, |place, four| packed[place] = u32::from_ne_bytes(four) ^ flip);
}

/// The same with 16 bits for each code, two elements for four of them.
pub(in crate::kernel) fn pack_wide(codes: &[u8], inputs: usize, flip: u32, packed: &mut [u32]) {
    let (pairs, _) = packed.as_chunks_mut::<2>();
    for_each_four(codes, inputs, |place, four| {
        let [a, b, c, d] = (u32::from_ne_bytes(four) ^ flip).to_ne_bytes().map(u32::from);
        pairs[place] = [a | b << 16, c | d << 16];
    });
}

/// Calls `put(place in [inputs / 4][rows], four codes)`.
#[inline(always)]
fn for_each_four(codes: &[u8], inputs: usize, mut put: impl FnMut(usize, [u8; 4])) {
    let rows = codes.len() / inputs.max(1);
    for (i, row) in codes.chunks_exact(inputs.max(1)).enumerate() {
        let (fours, rest) = row.as_chunks::<4>();
        for (k, four) in fours.iter().enumerate() {
            put(k * rows + i, *four);
        }
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            put(fours.len() * rows + i, last);
        }
    }
}
