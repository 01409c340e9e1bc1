//! The product of codes, one multiplication at a time.

use crate::kernel::excess::Excess;
use crate::kernel::int8::{Panel, Sums};
use crate::kernel::weights::Step;

/// `sums[i][j] = start[j] + sum over k of a[k][i] * w[k][j]`, four `k` in each element of both.
pub(in crate::kernel) fn tile<S: Step>(
    rows: usize,
    _columns: usize,
    a: &[u32],
    Panel { steps, start, .. }: Panel<'_, S>,
    sums: &mut Sums,
) {
    for (i, sums) in sums[..rows].iter_mut().enumerate() {
        *sums = *start;
        for (four, step) in a[i.min(a.len())..].iter().step_by(rows).zip(steps) {
            let a = four.to_ne_bytes().map(i32::from);
            for (column, sum) in sums.iter_mut().enumerate() {
                let w = step.get(column);
                for k in 0..4 {
                    *sum = sum.wrapping_add(a[k] * i32::from(w[k]));
                }
            }
        }
    }
}

/// Adds what tame weights lack: the same terms.
pub(in crate::kernel) fn add_excess(rows: usize, a: &[u32], excess: &Excess, sums: &mut Sums) {
    for (column, step, weights) in excess.all() {
        let fours = &a[step * rows..][..rows];
        for (sums, four) in sums.iter_mut().zip(fours) {
            for (a, w) in four.to_ne_bytes().into_iter().zip(weights) {
                sums[column] = sums[column].wrapping_add(i32::from(a) * i32::from(w));
            }
        }
    }
}

/// Rows of codes `[rows, inputs]` to `[inputs / 4][rows]`, four codes in each element, zero padded before the flip.
pub(in crate::kernel) fn pack(codes: &[u8], inputs: usize, flip: u32, packed: &mut [u32]) {
    let rows = codes.len() / inputs.max(1);
    for (i, row) in codes.chunks_exact(inputs.max(1)).enumerate() {
        if rows == 1 {
            put(row, flip, packed.iter_mut());
        } else {
            put(row, flip, packed[i..].iter_mut().step_by(rows));
        }
    }
}

/// A row of codes, four in each place.
pub(in crate::kernel) fn put<'a>(row: &[u8], flip: u32, mut places: impl Iterator<Item = &'a mut u32>) {
    let (fours, last) = fours(row);
    // Two loops, because a chain of both would not be compiled to vectors.
    for (four, place) in fours.iter().zip(places.by_ref()) {
        *place = u32::from_ne_bytes(*four) ^ flip;
    }
    if let (Some(four), Some(place)) = (last, places.next()) {
        *place = u32::from_ne_bytes(four) ^ flip;
    }
}

/// A row with 16 bits for each code, four codes in each place.
#[cfg(target_arch = "x86_64")]
pub(in crate::kernel) fn put_wide<'a>(row: &[u8], flip: u32, places: impl Iterator<Item = &'a mut [u32; 2]>) {
    let (fours, last) = fours(row);
    for (place, four) in places.zip(fours.iter().chain(&last)) {
        let [a, b, c, d] = (u32::from_ne_bytes(*four) ^ flip).to_ne_bytes().map(u32::from);
        *place = [a | b << 16, c | d << 16];
    }
}

/// A row in fours; the last, if it is not whole, with zeros behind.
fn fours(row: &[u8]) -> (&[[u8; 4]], Option<[u8; 4]>) {
    let (fours, rest) = row.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    (fours, (!rest.is_empty()).then_some(last))
}
