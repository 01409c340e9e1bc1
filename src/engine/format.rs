//! What can be asked for: the format of a layer, and what goes into and comes out of an engine.

use std::fmt;

use crate::kernel::MatrixMut;

/// How one linear layer is stored and multiplied.
///
/// | format | weights | inputs | sums |
/// |---|---|---|---|
/// | `Dense` | numbers | numbers | numbers |
/// | `Sparse` | numbers that are not 0, and where | numbers | numbers |
/// | `Int8` | codes -127..=127, a scale per output | codes of a calibrated scale | exact integers |
/// | `Int8Dynamic` | the same | codes, the scale taken from each row | exact integers |
/// | `Int4` | codes -7..=7, a scale per output | codes of a calibrated scale | exact integers |
/// | `SparseInt8` | codes that are not 0, and where | codes of a calibrated scale | exact integers |
/// | `TwoFour` | numbers, at most two of four neighbouring inputs not 0 | numbers | numbers |
/// | `TwoFourInt8` | codes, at most two of four not 0 | codes of a calibrated scale | exact integers |
/// | `Palette` | codes of 4 or 8 bits that name one of at most 256 numbers | numbers | numbers |
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Format {
    /// Numbers, all of them.
    #[default]
    Dense,
    /// Numbers, only those that are not 0.
    Sparse,
    /// 8-bit weights and activations; ranges by calibration.
    Int8,
    /// 8-bit weights and activations; ranges from each row.
    Int8Dynamic,
    /// 4-bit weights, 8-bit activations; ranges by calibration.
    Int4,
    /// 8-bit weights that are not 0, 8-bit activations; ranges by calibration.
    SparseInt8,
    /// Numbers, at most two of four neighbours not 0.
    TwoFour,
    /// 8-bit weights, at most two of four neighbours not 0, 8-bit activations; ranges by calibration.
    TwoFourInt8,
    /// Numbers, at most 256 different ones, stored and run as codes of 4 bits (up to 16) or 8; others are clustered.
    Palette,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 9] = [
        Self::Dense,
        Self::Sparse,
        Self::Int8,
        Self::Int8Dynamic,
        Self::Int4,
        Self::SparseInt8,
        Self::TwoFour,
        Self::TwoFourInt8,
        Self::Palette,
    ];

    /// Whether inputs are codes whose scale comes from calibration.
    pub fn is_static(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4 | Self::SparseInt8 | Self::TwoFourInt8)
    }

    /// Whether weights are codes.
    pub fn is_integer(self) -> bool {
        self.is_static() || self == Self::Int8Dynamic
    }

    /// Whether at most two of four neighbouring weights may be other than 0.
    pub fn is_two_four(self) -> bool {
        matches!(self, Self::TwoFour | Self::TwoFourInt8)
    }

    /// Whether weights may be changed by it.
    pub(super) fn is_lossy(self) -> bool {
        self.is_integer() || self == Self::Palette
    }

    /// A short name for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Sparse => "sparse",
            Self::Int8 => "int8",
            Self::Int8Dynamic => "int8 dynamic",
            Self::Int4 => "int4",
            Self::SparseInt8 => "sparse int8",
            Self::TwoFour => "2:4",
            Self::TwoFourInt8 => "int8 2:4",
            Self::Palette => "palette",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What stands at an end of the network: numbers, or codes whose scale the engine tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Io {
    /// Numbers of the engine's element type.
    #[default]
    Float,
    /// `u8` codes.
    Codes,
}

/// Rows to run an engine on.
#[derive(Clone, Copy, Debug)]
pub enum Batch<'a, F> {
    /// Row-major numbers `[rows, inputs]`.
    Float(&'a [F]),
    /// Row-major codes `[rows, inputs]`.
    Codes(&'a [u8]),
}

impl<'a, F> Batch<'a, F> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Float(x) => x.len(),
            Self::Codes(x) => x.len(),
        }
    }

    /// The elements `first .. first + count`.
    pub(super) fn part(self, first: usize, count: usize) -> Self {
        match self {
            Self::Float(x) => Self::Float(&x[first..first + count]),
            Self::Codes(x) => Self::Codes(&x[first..first + count]),
        }
    }

    pub(super) fn io(&self) -> Io {
        match self {
            Self::Float(_) => Io::Float,
            Self::Codes(_) => Io::Codes,
        }
    }
}

/// Where the results of a batch go.
#[derive(Debug)]
pub enum BatchMut<'a, F> {
    /// Row-major numbers `[rows, outputs]`.
    Float(&'a mut [F]),
    /// Row-major codes `[rows, outputs]`.
    Codes(&'a mut [u8]),
}

impl<F> BatchMut<'_, F> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Float(x) => x.len(),
            Self::Codes(x) => x.len(),
        }
    }

    pub(super) fn io(&self) -> Io {
        match self {
            Self::Float(_) => Io::Float,
            Self::Codes(_) => Io::Codes,
        }
    }
}

/// A matrix to be filled by a stage.
#[derive(Debug)]
pub(super) enum Target<'a, F> {
    Float(MatrixMut<'a, F>),
    Codes(MatrixMut<'a, u8>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_fill_a_column() {
        let mut names: Vec<_> = Format::ALL.iter().map(|format| format.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Format::ALL.len());
        assert_eq!(format!("{:>8}|", Format::Int4), "    int4|");
    }

    #[test]
    fn a_static_format_is_an_integer_format() {
        assert!(Format::ALL.iter().all(|format| !format.is_static() || format.is_integer()));
    }
}
