//! Proof that no sum of a layer can leave 32 bits, whatever its input; where one could, how the layer is split.
//!
//! ```text
//! highest[j] = bias[j] + sum over w > 0 of w * (255 - z) + sum over w < 0 of |w| * z
//! lowest[j]  = bias[j] - sum over w > 0 of w * z         - sum over w < 0 of |w| * (255 - z)
//! ```
//!
//! Sums wrap on the way, so only where they end counts.

use std::ops::Range;

use crate::error::{Error, Result};

/// The worst case of a layer's sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Bound {
    /// The largest magnitude that a sum of any output can have; `i32::MAX` is what fits.
    pub worst: i64,
    /// The output that can reach it.
    pub output: usize,
    /// Partial products that the layer was split into along its inputs; 1 is a layer that fits.
    pub parts: usize,
}

impl Bound {
    /// Of codes 0..=255 with this zero point.
    pub(crate) fn of(codes: &[i8], inputs: usize, zero_point: i32, bias: &[i32]) -> Self {
        let rows = codes.chunks_exact(inputs.max(1));
        let worst = |row: &[i8], bias: i32| {
            let (positive, negative) = signed_sums(row);
            let (below, above) = (i64::from(zero_point), i64::from(255 - zero_point));
            let highest = i64::from(bias) + positive * above + negative * below;
            let lowest = i64::from(bias) - positive * below - negative * above;
            highest.max(-lowest)
        };
        Self::largest(rows.zip(bias).map(|(row, &bias)| worst(row, bias)))
    }

    /// Of codes 0..=255 with any zero point among them.
    pub(crate) fn dynamic(codes: &[i8], inputs: usize) -> Self {
        Self::largest(codes.chunks_exact(inputs.max(1)).map(|row| {
            let (positive, negative) = signed_sums(row);
            // Also what the kernel sums before it takes the zero point off.
            255 * positive.max(negative).max(positive + negative)
        }))
    }

    fn largest(worst: impl Iterator<Item = i64>) -> Self {
        let start = Self { worst: 0, output: 0, parts: 1 };
        worst.enumerate().fold(
            start,
            |all, (output, worst)| {
                if worst > all.worst { Self { worst, output, parts: 1 } } else { all }
            },
        )
    }

    pub(crate) fn fits(&self) -> bool {
        self.worst <= i64::from(i32::MAX)
    }

    pub(crate) fn fits_or_refuse(&self) -> Result<()> {
        if self.fits() {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: "int8 with dynamic activations",
            reason: format!(
                "the sum of output {} may reach {}, above the {} of 32 bits; use static activations, which split \
                 such a layer",
                self.output,
                self.worst,
                i32::MAX
            ),
        })
    }
}

/// Ranges of inputs, as few as they come greedily, whose partial sums fit for every output.
pub(crate) fn split(codes: &[i8], inputs: usize, zero_point: i32) -> Vec<Range<usize>> {
    // One input moves a sum by at most 127 * 255: so many of them always fit.
    const STEP: usize = 1024;
    let outputs = codes.len() / inputs.max(1);
    let mut parts = Vec::new();
    let mut start = 0;
    let mut end = 0;
    while end < inputs {
        let next = (end + STEP).min(inputs);
        let fits = (0..outputs).all(|j| {
            let (positive, negative) = signed_sums(&codes[j * inputs + start..j * inputs + next]);
            let widest = i64::from(zero_point.max(255 - zero_point));
            (positive + negative) * widest <= i64::from(i32::MAX)
        });
        if !fits {
            parts.push(start..end);
            start = end;
        }
        end = next;
    }
    parts.push(start..end);
    parts
}

/// Sum of the weights above 0, and of the magnitudes of those below.
fn signed_sums(row: &[i8]) -> (i64, i64) {
    // 32 bits hold the sums of a chunk, and are twice as fast.
    row.chunks(1 << 16).fold((0, 0), |(positive, negative), chunk| {
        let above: i32 = chunk.iter().map(|&w| i32::from(w.max(0))).sum();
        let all: i32 = chunk.iter().map(|&w| i32::from(w)).sum();
        (positive + i64::from(above), negative + i64::from(above - all))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_reached() {
        let codes = [3, -2, 0, 1, 127, 127, -127, 5];
        for zero_point in [0, 7, 128, 255] {
            let bound = Bound::of(&codes, 4, zero_point, &[100, -50]);
            let extreme = |row: &[i8], bias: i32, up: bool| {
                let best = |w: i8| if (w > 0) == up { 255 - zero_point } else { -zero_point };
                row.iter().map(|&w| i64::from(w) * i64::from(best(w))).sum::<i64>() + i64::from(bias)
            };
            let all = [
                extreme(&codes[..4], 100, true),
                extreme(&codes[..4], 100, false),
                extreme(&codes[4..], -50, true),
                extreme(&codes[4..], -50, false),
            ];
            assert_eq!(Some(bound.worst), all.iter().map(|x| x.abs()).max(), "zero point {zero_point}");
            assert_eq!(bound.output, 1);
        }
    }

    #[test]
    fn parts_cover_all_inputs_and_each_fits() {
        for inputs in [1, 1000, 70_000, 200_000] {
            let codes = vec![127; inputs];
            let parts = split(&codes, inputs, 0);
            assert_eq!(parts.iter().cloned().flatten().collect::<Vec<_>>(), (0..inputs).collect::<Vec<_>>());
            for part in &parts {
                assert!(127 * 255 * part.len() as i64 <= i64::from(i32::MAX), "{part:?}");
            }
            assert_eq!(parts.len() > 1, !Bound::of(&codes, inputs, 0, &[0]).fits());
        }
    }
}
