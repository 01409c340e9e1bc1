//! Which of `n` weights are stored: a bitmap, or the zeros between them; see [`sparse`](super::sparse).

use super::bits;

#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub(super) enum Positions {
    Bitmap(Vec<u8>),
    Gaps(Vec<u8>),
    Gaps16(Vec<u16>),
}

pub(super) const ESCAPE: usize = u8::MAX as usize;
pub(super) const ESCAPE16: usize = u16::MAX as usize;

impl Positions {
    /// The smallest form of these bits over `n` weights.
    pub(super) fn smallest(bitmap: Vec<u8>, n: usize) -> Self {
        let (mut next, mut gaps, mut gaps16) = (0, 0, 0);
        bits::each(&bitmap, |i| {
            gaps += 1 + (i - next) / ESCAPE;
            gaps16 += 2 * (1 + (i - next) / ESCAPE16);
            next = i + 1;
        });
        gaps += (n - next) / ESCAPE;
        gaps16 += 2 * ((n - next) / ESCAPE16);
        // Ties go to the form that is read fastest.
        if bitmap.len() <= gaps.min(gaps16) {
            Self::Bitmap(bitmap)
        } else if gaps <= gaps16 {
            let mut out = Vec::with_capacity(gaps);
            encode_gaps(&bitmap, n, ESCAPE, |gap| out.push(gap as u8));
            Self::Gaps(out)
        } else {
            let mut out = Vec::with_capacity(gaps16 / 2);
            encode_gaps(&bitmap, n, ESCAPE16, |gap| out.push(gap as u16));
            Self::Gaps16(out)
        }
    }

    /// Calls `f` with every position, ascending.
    pub(super) fn each(&self, f: impl FnMut(usize)) {
        match self {
            Self::Bitmap(bitmap) => bits::each(bitmap, f),
            Self::Gaps(gaps) => decode_gaps(gaps, ESCAPE, f),
            Self::Gaps16(gaps) => decode_gaps(gaps, ESCAPE16, f),
        }
    }

    /// Whether these are positions among `n` weights, and end where [`smallest`](Self::smallest) would.
    #[cfg(feature = "serde")]
    pub(super) fn covers(&self, n: usize) -> crate::error::Result<bool> {
        Ok(match self {
            Self::Bitmap(bitmap) => bits::check(bitmap, n).map(|()| true)?,
            Self::Gaps(gaps) => cover(gaps, ESCAPE, n),
            Self::Gaps16(gaps) => cover(gaps, ESCAPE16, n),
        })
    }

    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Self::Bitmap(bytes) | Self::Gaps(bytes) => bytes.len(),
            Self::Gaps16(gaps) => 2 * gaps.len(),
        }
    }
}

/// Every gap below `escape` is a stored weight after that many zeros, `escape` is that many zeros.
fn encode_gaps(bitmap: &[u8], n: usize, escape: usize, mut push: impl FnMut(usize)) {
    let mut next = 0;
    let zeros = |gap: usize, push: &mut dyn FnMut(usize)| (0..gap / escape).for_each(|_| push(escape));
    bits::each(bitmap, |i| {
        zeros(i - next, &mut push);
        push((i - next) % escape);
        next = i + 1;
    });
    // The zeros at the end are written too, so that a few bytes cannot claim a tensor of any size.
    zeros(n - next, &mut push);
}

fn decode_gaps<G: Copy + Into<usize>>(gaps: &[G], escape: usize, mut f: impl FnMut(usize)) {
    let mut next = 0;
    for &gap in gaps {
        let gap = gap.into();
        next += gap;
        if gap != escape {
            f(next);
            next += 1;
        }
    }
}

/// Whether the gaps end within `n` weights, and where their encoder would have ended.
#[cfg(feature = "serde")]
fn cover<G: Copy + Into<usize>>(gaps: &[G], escape: usize, n: usize) -> bool {
    let end = gaps.iter().try_fold(0usize, |end, &gap| {
        let gap = gap.into();
        end.checked_add(gap + usize::from(gap != escape))
    });
    end.is_some_and(|end| end <= n && n - end < escape)
}
