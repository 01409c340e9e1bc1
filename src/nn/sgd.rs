//! Stochastic gradient descent, with momentum.
//!
//! ```text
//! g = gradient + lambda * w              coupled weight decay
//! v = mu * v + g                         first step v = g; no factor 1 - mu, as in PyTorch
//! w = w - learning_rate * v              heavy ball (Polyak, 1964)
//! w = w - learning_rate * (g + mu * v)   Nesterov (Sutskever et al., 2013)
//! ```

use super::grads::Grads;
use super::mlp::Mlp;
use super::optimizer::{Decay, Memory, Optimizer, Rule, check_fraction, check_not_negative, narrow, walk};
use crate::error::Result;
use crate::float::Float;
use crate::kernel::Pool;

/// What remains of earlier gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Momentum {
    /// Nothing.
    #[default]
    None,
    /// `mu` of the velocity remains at each step, `0 <= mu < 1`.
    Heavy(f64),
    /// The same, looking one step ahead.
    Nesterov(f64),
}

/// Stochastic gradient descent: plain, with momentum or with Nesterov's, with any [`Decay`].
///
/// ```
/// use trimnet::nn::{Decay, Momentum, Sgd};
///
/// let optimizer = Sgd::<f32>::new().with_momentum(Momentum::Nesterov(0.9))?.with_decay(Decay::Coupled(1e-4))?;
/// # let _ = optimizer;
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "RawSgd<F>"))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"))]
pub struct Sgd<F> {
    momentum: Momentum,
    decay: Decay,
    memory: Memory<F>,
}

impl<F: Float> Sgd<F> {
    /// Plain gradient descent.
    pub fn new() -> Self {
        Self { momentum: Momentum::None, decay: Decay::None, memory: Memory::default() }
    }

    /// With this momentum; forgets the velocity of the steps so far.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::error::Error::OutOfRange) unless `0 <= mu < 1`.
    pub fn with_momentum(mut self, momentum: Momentum) -> Result<Self> {
        if let Momentum::Heavy(mu) | Momentum::Nesterov(mu) = momentum {
            check_fraction("momentum", mu)?;
        }
        self.momentum = momentum;
        self.memory = Memory::default();
        Ok(self)
    }

    /// With this weight decay.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::error::Error::OutOfRange) unless lambda is finite and not negative.
    pub fn with_decay(mut self, decay: Decay) -> Result<Self> {
        self.decay = decay.check()?;
        Ok(self)
    }

    /// The momentum.
    pub fn momentum(&self) -> Momentum {
        self.momentum
    }

    /// The weight decay.
    pub fn decay(&self) -> Decay {
        self.decay
    }
}

impl<F: Float> Optimizer<F> for Sgd<F> {
    fn step(&mut self, mlp: &mut Mlp<F>, grads: &Grads<F>, learning_rate: f64) -> Result<()> {
        self.step_on(mlp, grads, learning_rate, &Pool::single())
    }

    fn step_on(&mut self, mlp: &mut Mlp<F>, grads: &Grads<F>, learning_rate: f64, pool: &Pool) -> Result<()> {
        check_not_negative("learning rate", learning_rate)?;
        let (vectors, mu) = match self.momentum {
            Momentum::None => (0, 0.0),
            Momentum::Heavy(mu) | Momentum::Nesterov(mu) => (1, mu),
        };
        let plain = Plain {
            lr: narrow("learning rate", learning_rate)?,
            lambda: narrow("weight decay", self.decay.coupled())?,
            shrink: narrow("weight decay", self.decay.shrinkage(learning_rate))?,
        };
        let (momentum, mu) = (self.momentum, F::of(mu));
        self.memory.fit(vectors, mlp.parameter_dims())?;
        let mut slots = self.memory.slots();
        mlp.update_parameters(grads, |p| {
            let Some(slot) = slots.next() else { return };
            match momentum {
                Momentum::None => walk(pool, plain, p.values, p.grads, [], p.keep),
                Momentum::Heavy(_) => {
                    walk(pool, Heavy { plain, mu }, p.values, p.grads, slot.vectors(), p.keep);
                }
                Momentum::Nesterov(_) => {
                    walk(pool, Nesterov { plain, mu }, p.values, p.grads, slot.vectors(), p.keep);
                }
            }
        })
    }

    fn reset(&mut self) {
        self.memory = Memory::default();
    }
}

/// A step without momentum.
#[derive(Clone, Copy)]
struct Plain<F> {
    lr: F,
    lambda: F,
    shrink: F,
}

#[derive(Clone, Copy)]
struct Heavy<F> {
    plain: Plain<F>,
    mu: F,
}

#[derive(Clone, Copy)]
struct Nesterov<F> {
    plain: Plain<F>,
    mu: F,
}

impl<F: Float> Rule<F, 0> for Plain<F> {
    #[inline(always)]
    fn step(self, w: F, gradient: F, _: &mut [F; 0]) -> F {
        let g = gradient + self.lambda * w;
        w * self.shrink - self.lr * g
    }
}

impl<F: Float> Rule<F, 1> for Heavy<F> {
    #[inline(always)]
    fn step(self, w: F, gradient: F, [v]: &mut [F; 1]) -> F {
        let Self { plain, mu } = self;
        let g = gradient + plain.lambda * w;
        *v = mu * *v + g;
        w * plain.shrink - plain.lr * *v
    }
}

impl<F: Float> Rule<F, 1> for Nesterov<F> {
    #[inline(always)]
    fn step(self, w: F, gradient: F, [v]: &mut [F; 1]) -> F {
        let Self { plain, mu } = self;
        let g = gradient + plain.lambda * w;
        *v = mu * *v + g;
        w * plain.shrink - plain.lr * (g + mu * *v)
    }
}

/// What a file holds, before it is checked; the memory is checked against the network at the next step.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(rename = "Sgd")]
struct RawSgd<F> {
    momentum: Momentum,
    decay: Decay,
    memory: Memory<F>,
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<RawSgd<F>> for Sgd<F> {
    type Error = crate::error::Error;

    fn try_from(raw: RawSgd<F>) -> Result<Self> {
        let mut sgd = Self::new().with_momentum(raw.momentum)?.with_decay(raw.decay)?;
        sgd.memory = raw.memory;
        Ok(sgd)
    }
}
