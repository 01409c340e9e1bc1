//! What an optimizer is: one step from gradients to better parameters.
//!
//! A masked weight is exactly 0.0 after any step, and so are its momentum and moments: without that it would
//! come back as soon as its mask is lifted, or even under it.

use super::grads::Grads;
use super::mlp::Mlp;
use super::parameter::Dims;
use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::kernel::{Isa, Pool, Work, with};

/// Moves the parameters of a network against their gradients.
pub trait Optimizer<F: Float> {
    /// One step of size `learning_rate`. Nothing has moved if this fails.
    ///
    /// The state (momentum, moments) is made at the first step for the shapes of this network.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= learning_rate` and finite; [`Error::NotFinite`] for a gradient that is
    /// NaN or infinite; [`Error::Shape`] if the gradients do not fit the network, or if the network has other
    /// shapes than at the step before (as after [`Mlp::shrink`]): [`reset`](Self::reset), then step.
    fn step(&mut self, mlp: &mut Mlp<F>, grads: &Grads<F>, learning_rate: f64) -> Result<()>;

    /// As [`step`](Self::step), with threads to share the work; the numbers are the same for any number of them.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    fn step_on(
        &mut self,
        mlp: &mut Mlp<F>,
        grads: &Grads<F>,
        learning_rate: f64,
        _pool: &Pool,
    ) -> Result<()> {
        self.step(mlp, grads, learning_rate)
    }

    /// Forgets momentum, moments and the number of steps, as for a network of another shape; keeps the settings.
    fn reset(&mut self);
}

/// How weights are pulled towards zero, and by how much. Biases, gammas and betas decay too, as in PyTorch.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Decay {
    /// Not at all.
    #[default]
    None,
    /// `g + lambda * w` in place of the gradient: the penalty `lambda / 2 * sum w^2`; PyTorch's SGD and Adam.
    Coupled(f64),
    /// `w * (1 - learning_rate * lambda)` before the step, past momentum and moments; AdamW.
    Decoupled(f64),
    /// `g + 2 * lambda * w`: the penalty `lambda * sum w^2`; Keras' `l2(lambda)`.
    KerasL2(f64),
}

impl Decay {
    pub(super) fn check(self) -> Result<Self> {
        match self {
            Self::None => {}
            Self::Coupled(lambda) | Self::Decoupled(lambda) | Self::KerasL2(lambda) => {
                check_not_negative("weight decay", lambda)?;
            }
        }
        Ok(self)
    }

    /// What is added to the gradient per unit of weight.
    pub(super) fn coupled(self) -> f64 {
        match self {
            Self::Coupled(lambda) => lambda,
            Self::KerasL2(lambda) => 2.0 * lambda,
            Self::None | Self::Decoupled(_) => 0.0,
        }
    }

    /// What the weight is multiplied by before the step.
    pub(super) fn shrinkage(self, learning_rate: f64) -> f64 {
        match self {
            Self::Decoupled(lambda) => 1.0 - learning_rate * lambda,
            Self::None | Self::Coupled(_) | Self::KerasL2(_) => 1.0,
        }
    }
}

pub(super) fn check_not_negative(name: &'static str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::OutOfRange { name, value, range: ">= 0 and finite" })
}

pub(super) fn check_fraction(name: &'static str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::OutOfRange { name, value, range: "0 <= x < 1" })
}

/// The setting in the type of the weights, where it could overflow.
pub(super) fn narrow<F: Float>(name: &'static str, value: f64) -> Result<F> {
    let narrow = F::of(value);
    if narrow.is_finite() {
        return Ok(narrow);
    }
    Err(Error::OutOfRange { name, value, range: "finite in the type of the weights" })
}

/// The numbers (momentum, moments) that an optimizer keeps beside every parameter, in the order of the visits.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Memory<F> {
    slots: Vec<Slot<F>>,
}

/// The memory of one parameter tensor.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Slot<F> {
    shape: Vec<usize>,
    numbers: Vec<Vec<F>>,
}

impl<F> Default for Memory<F> {
    fn default() -> Self {
        Self { slots: Vec::new() }
    }
}

impl<F: Float> Memory<F> {
    /// Makes `vectors` vectors of zeros per parameter at the first call; afterwards checks that they still fit.
    pub(super) fn fit(&mut self, vectors: usize, shapes: impl Iterator<Item = Dims> + Clone) -> Result<()> {
        if self.slots.is_empty() {
            let slot = |dims: Dims| Slot {
                shape: dims.as_slice().to_vec(),
                numbers: vec![vec![F::zero(); dims.elements()]; vectors],
            };
            self.slots = shapes.clone().map(slot).collect();
        }
        check_shape("list of optimizer states", &[self.slots.len()], &[shapes.clone().count()])?;
        for (slot, shape) in self.slots.iter().zip(shapes) {
            check_shape("optimizer state", &slot.shape, shape.as_slice())?;
            check_shape("list of vectors of the optimizer state", &[slot.numbers.len()], &[vectors])?;
            for numbers in &slot.numbers {
                check_shape("vector of the optimizer state", &[numbers.len()], &[shape.elements()])?;
            }
        }
        Ok(())
    }

    /// The memories in the order of the visits.
    pub(super) fn slots(&mut self) -> impl Iterator<Item = &mut Slot<F>> {
        self.slots.iter_mut()
    }
}

impl<F: Float> Slot<F> {
    /// The vectors; as many as were asked of [`Memory::fit`].
    pub(super) fn vectors<const N: usize>(&mut self) -> [&mut [F]; N] {
        let mut vectors = self.numbers.iter_mut();
        std::array::from_fn(|_| vectors.next().map(Vec::as_mut_slice).unwrap_or_default())
    }
}

/// How one number moves with its gradient and what the optimizer remembers of it: `N` numbers.
pub(super) trait Rule<F, const N: usize>: Copy + Send {
    /// The new number; `memory` becomes the new memory.
    fn step(self, w: F, gradient: F, memory: &mut [F; N]) -> F;
}

/// From so many numbers on, about 30 us of one core, two threads pay.
const PARALLEL: usize = 1 << 16;

/// Moves every number of a tensor by `rule`, all in one pass; masked ones, and what is remembered of them, become 0.0:
/// else it would move them as soon as the mask is lifted.
pub(super) fn walk<F: Float, const N: usize>(
    pool: &Pool,
    rule: impl Rule<F, N>,
    values: &mut [F],
    grads: &[F],
    memory: [&mut [F]; N],
    keep: Option<&[bool]>,
) {
    let parts = if values.len() < PARALLEL { 1 } else { pool.threads().min(Pool::JOBS) };
    // Whole cache lines for each.
    let size = values.len().div_ceil(parts).next_multiple_of(64).max(1);
    let mut memory = memory.map(|memory| memory.chunks_mut(size));
    let mut keeps = keep.map(|keep| keep.chunks(size));
    let jobs = values.chunks_mut(size).zip(grads.chunks(size)).map(|(values, grads)| Walk {
        rule,
        values,
        grads,
        memory: memory.each_mut().map(|chunks| chunks.next().unwrap_or_default()),
        keep: keeps.as_mut().and_then(Iterator::next),
    });
    let isa = Isa::best();
    if parts == 1 { jobs.for_each(|job| with(isa, job)) } else { pool.share(jobs, |job| with(isa, job)) }
}

struct Walk<'a, F, R, const N: usize> {
    rule: R,
    values: &'a mut [F],
    grads: &'a [F],
    memory: [&'a mut [F]; N],
    keep: Option<&'a [bool]>,
}

impl<F: Float, R: Rule<F, N>, const N: usize> Work for Walk<'_, F, R, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { rule, values, grads, memory, keep } = self;
        let length = values.len();
        let grads = &grads[..length];
        let mut memory = memory.map(|memory| &mut memory[..length]);
        match keep {
            None => {
                for i in 0..length {
                    let mut own = std::array::from_fn(|n| memory[n][i]);
                    values[i] = rule.step(values[i], grads[i], &mut own);
                    for (memory, own) in memory.iter_mut().zip(own) {
                        memory[i] = own;
                    }
                }
            }
            Some(keep) => {
                let keep = &keep[..length];
                let kept = |keep: bool, x: F| if keep { x } else { F::zero() };
                for i in 0..length {
                    let mut own = std::array::from_fn(|n| memory[n][i]);
                    values[i] = kept(keep[i], rule.step(values[i], grads[i], &mut own));
                    for (memory, own) in memory.iter_mut().zip(own) {
                        memory[i] = kept(keep[i], own);
                    }
                }
            }
        }
    }
}
