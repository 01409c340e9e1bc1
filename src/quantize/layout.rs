//! Which elements of a row-major tensor share which scale.
//!
//! ```text
//! per tensor            scale 0
//! per channel, axis a   scale i[a]
//! per group, axis a     scale [i[0], .., i[a] / size, .., i[last]] of that smaller tensor, row-major (ONNX "blocked")
//! ```

use std::ops::Range;

use crate::error::{Error, Result};
use crate::kernel::{PART, Pool};
use crate::quantize::scheme::Granularity;

/// Scales, position and elements of a part of a run.
type Part<'a, T> = (Range<usize>, usize, &'a mut [T]);

/// A tensor seen as `[outer, length, inner]`, the axis of the scales in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    outer: usize,
    length: usize,
    inner: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tensor,
    Channel,
    Group(usize),
}

/// Neighbouring elements and the scales they have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Positions in the tensor.
    pub(crate) elements: Range<usize>,
    /// One scale for all of them, or as many scales as elements.
    pub(crate) scales: Range<usize>,
}

impl Layout {
    /// # Errors
    /// [`Error::Unsupported`] for an axis that the shape has not, [`Error::OutOfRange`] for groups of no elements.
    pub(crate) fn new(granularity: Granularity, shape: &[usize]) -> Result<Self> {
        let (axis, kind) = match granularity {
            Granularity::PerTensor => {
                return Ok(Self { outer: 1, length: 1, inner: shape.iter().product(), kind: Kind::Tensor });
            }
            Granularity::PerChannel { axis } => (axis, Kind::Channel),
            Granularity::PerGroup { size: 0, .. } => {
                return Err(Error::OutOfRange { name: "group size", value: 0.0, range: "at least 1" });
            }
            Granularity::PerGroup { axis, size } => (axis, Kind::Group(size)),
        };
        if axis >= shape.len() {
            return Err(Error::Unsupported {
                what: "the axis of the scales",
                reason: format!("axis {axis} of a tensor with {} axes", shape.len()),
            });
        }
        let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
        Ok(Self { outer, length: shape[axis], inner, kind })
    }

    /// Number of scales; a tensor without elements has none.
    pub(crate) fn scales(&self) -> usize {
        if self.outer == 0 || self.length == 0 || self.inner == 0 {
            return 0;
        }
        match self.kind {
            Kind::Tensor => 1,
            Kind::Channel => self.length,
            Kind::Group(size) => self.outer * self.length.div_ceil(size) * self.inner,
        }
    }

    /// Every element once, in row-major order.
    pub(crate) fn for_each_run(&self, mut f: impl FnMut(Run)) {
        if self.scales() == 0 {
            return;
        }
        let Self { outer, length, inner, kind } = *self;
        match kind {
            Kind::Tensor => f(Run { elements: 0..inner, scales: 0..1 }),
            Kind::Channel if inner == 1 => {
                for o in 0..outer {
                    f(Run { elements: o * length..(o + 1) * length, scales: 0..length });
                }
            }
            Kind::Channel => {
                for (o, a) in pairs(outer, length) {
                    let start = (o * length + a) * inner;
                    f(Run { elements: start..start + inner, scales: a..a + 1 });
                }
            }
            Kind::Group(size) if inner == 1 => {
                let groups = length.div_ceil(size);
                for (o, g) in pairs(outer, groups) {
                    let (start, end) = (g * size, ((g + 1) * size).min(length));
                    let scale = o * groups + g;
                    f(Run { elements: o * length + start..o * length + end, scales: scale..scale + 1 });
                }
            }
            Kind::Group(size) => {
                let groups = length.div_ceil(size);
                for (o, a) in pairs(outer, length) {
                    let start = (o * length + a) * inner;
                    let scale = (o * groups + a / size) * inner;
                    f(Run { elements: start..start + inner, scales: scale..scale + inner });
                }
            }
        }
    }

    /// Calls `f(state, scales, first, from, to)` for parts of runs, on all threads of `pool`: `from` and `to` are the same
    /// part of two tensors of this layout, `first` its position in them. Parts that one thread takes one after the other
    /// share a `state`.
    pub(crate) fn each_part<A: Sync, B: Send, S>(
        &self,
        pool: &Pool,
        from: &[A],
        to: &mut [B],
        state: impl Fn() -> S + Sync,
        f: impl Fn(&mut S, Range<usize>, usize, &[A], &mut [B]) + Sync,
    ) {
        if pool.threads() == 1 {
            let mut state = state();
            return self.for_each_run(|run| {
                let start = run.elements.start;
                f(&mut state, run.scales, start, &from[run.elements.clone()], &mut to[run.elements]);
            });
        }
        // A job has neighbouring parts, about PART elements together.
        let mut rest = to;
        let mut jobs: Vec<Vec<Part<'_, B>>> = Vec::new();
        let mut size = PART;
        self.for_each_run(|run| {
            let length = run.elements.len();
            let mut at = 0;
            while at < length {
                let n = if run.scales.len() == 1 { PART.min(length - at) } else { length };
                let (part, behind) = std::mem::take(&mut rest).split_at_mut(n);
                rest = behind;
                if size >= PART {
                    jobs.push(Vec::new());
                    size = 0;
                }
                if let Some(job) = jobs.last_mut() {
                    job.push((run.scales.clone(), run.elements.start + at, part));
                }
                (at, size) = (at + n, size + n);
            }
        });
        pool.each(jobs.into_iter(), |job| {
            let mut state = state();
            for (scales, first, to) in job {
                f(&mut state, scales, first, &from[first..first + to.len()], to);
            }
        });
    }

    /// The parts of the tensor under one scale: `count` runs of `size` elements, `stride` apart.
    pub(crate) fn elements(&self, scale: usize) -> impl Iterator<Item = Range<usize>> {
        let Self { outer, length, inner, kind } = *self;
        let (count, stride, start, size) = match kind {
            Kind::Tensor => (1, 0, 0, inner),
            Kind::Channel => (outer, length * inner, scale * inner, inner),
            Kind::Group(size) => {
                let groups = length.div_ceil(size);
                let (row, i) = (scale / inner.max(1), scale % inner.max(1));
                let (o, g) = (row / groups.max(1), row % groups.max(1));
                let members = size.min(length - (g * size).min(length));
                let start = (o * length + g * size) * inner + i;
                if inner == 1 { (1, 0, start, members) } else { (members, inner, start, 1) }
            }
        };
        (0..count).map(move |n| start + n * stride..start + n * stride + size)
    }
}

fn pairs(outer: usize, inner: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..outer).flat_map(move |o| (0..inner).map(move |i| (o, i)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: the scale of one element by its index.
    fn scale_of(granularity: Granularity, shape: &[usize], index: &[usize]) -> usize {
        match granularity {
            Granularity::PerTensor => 0,
            Granularity::PerChannel { axis } => index[axis],
            Granularity::PerGroup { axis, size } => (0..shape.len()).fold(0, |flat, d| {
                let (n, i) =
                    if d == axis { (shape[d].div_ceil(size), index[d] / size) } else { (shape[d], index[d]) };
                flat * n + i
            }),
        }
    }

    #[test]
    fn runs_and_elements_agree_with_the_definition() {
        let mut granularities = vec![Granularity::PerTensor];
        for axis in 0..3 {
            granularities.push(Granularity::PerChannel { axis });
            granularities.extend([1, 2, 3, 7].map(|size| Granularity::PerGroup { axis, size }));
        }
        for shape in [[2, 3, 4], [5, 1, 1], [1, 5, 1], [3, 4, 1], [1, 1, 5], [0, 2, 3], [2, 0, 3], [2, 3, 0]]
        {
            let n = shape.iter().product::<usize>();
            for &granularity in &granularities {
                let layout = Layout::new(granularity, &shape).unwrap();
                let expected: Vec<usize> = (0..n)
                    .map(|flat| scale_of(granularity, &shape, &crate::float::unravel(flat, &shape)))
                    .collect();
                let (mut seen, mut by_scale) = (Vec::new(), vec![usize::MAX; n]);
                layout.for_each_run(|run| {
                    assert_eq!(run.elements.start, seen.len());
                    assert!(run.scales.len() == 1 || run.scales.len() == run.elements.len());
                    seen.extend((0..run.elements.len()).map(|i| run.scales.start + i % run.scales.len()));
                });
                assert_eq!(seen, expected, "{granularity:?} of {shape:?}");
                for scale in 0..layout.scales() {
                    layout.elements(scale).flatten().for_each(|i| by_scale[i] = scale);
                }
                assert_eq!(by_scale, expected, "{granularity:?} of {shape:?}");
                assert_eq!(layout.scales(), expected.iter().max().map_or(0, |max| max + 1));
            }
        }
    }

    #[test]
    fn threads_see_every_element_once_with_its_scale() {
        for shape in [[2, 3, 70_000], [5, 40_000, 1], [0, 2, 3], [70, 70, 70]] {
            let from: Vec<usize> = (0..shape.iter().product()).collect();
            let mut granularities = vec![Granularity::PerTensor];
            for axis in 0..3 {
                granularities
                    .extend([Granularity::PerChannel { axis }, Granularity::PerGroup { axis, size: 32 }]);
            }
            for granularity in granularities {
                let layout = Layout::new(granularity, &shape).unwrap();
                let found = [Pool::single(), Pool::new(3)].map(|pool| {
                    let mut to = vec![(usize::MAX, 0); from.len()];
                    layout.each_part(
                        &pool,
                        &from,
                        &mut to,
                        || (),
                        |(), scales, first, from, to| {
                            for (i, (to, &from)) in to.iter_mut().zip(from).enumerate() {
                                assert_eq!(from, first + i);
                                *to = (from, scales.start + i % scales.len());
                            }
                        },
                    );
                    assert!(to.iter().map(|(from, _)| from).eq(&from));
                    to
                });
                assert_eq!(found[0], found[1], "{granularity:?} of {shape:?}");
            }
        }
    }

    #[test]
    fn refuses_an_axis_that_the_tensor_has_not() {
        assert!(Layout::new(Granularity::PerChannel { axis: 2 }, &[3, 4]).is_err());
        assert!(Layout::new(Granularity::PerGroup { axis: 0, size: 2 }, &[]).is_err());
    }

    #[test]
    fn refuses_groups_of_no_elements() {
        let error = Layout::new(Granularity::PerGroup { axis: 0, size: 0 }, &[3, 4]).unwrap_err();
        assert_eq!(error.to_string(), "group size is 0, allowed is at least 1");
    }
}
