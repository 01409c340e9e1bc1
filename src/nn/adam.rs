//! Adam: steps scaled by running moments of the gradient (Kingma & Ba, 2015), and AdamW, whose weight decay goes
//! past the moments (Loshchilov & Hutter, 2019).
//!
//! ```text
//! m = beta1 * m + (1 - beta1) * g        m_hat = m / (1 - beta1^t)
//! v = beta2 * v + (1 - beta2) * g^2      v_hat = v / (1 - beta2^t)
//! w = w - learning_rate * m_hat / (sqrt(v_hat) + eps)
//!
//! Adam    g = gradient + lambda * w
//! AdamW   w = w * (1 - learning_rate * lambda) before the step
//! ```

use super::grads::Grads;
use super::mlp::Mlp;
use super::optimizer::{Decay, Memory, Optimizer, Rule, check_fraction, check_not_negative, narrow, walk};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::Pool;

/// Adam. Weight decay, none by default, is usually [`Decay::Coupled`] here and [`Decay::Decoupled`] in [`AdamW`].
///
/// ```
/// use trimnet::nn::{Adam, Decay};
///
/// let optimizer = Adam::<f32>::new().with_betas(0.9, 0.99)?.with_decay(Decay::Coupled(1e-4))?;
/// # let _ = optimizer;
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "RawAdam<F>"))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"))]
pub struct Adam<F> {
    betas: (f64, f64),
    eps: f64,
    decay: Decay,
    steps: u64,
    memory: Memory<F>,
}

impl<F: Float> Default for Adam<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: Float> Adam<F> {
    /// Betas 0.9 and 0.999, eps 1e-8, no weight decay.
    pub fn new() -> Self {
        Self { betas: (0.9, 0.999), eps: 1e-8, decay: Decay::None, steps: 0, memory: Memory::default() }
    }

    /// With these shares of the earlier moments.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= beta < 1` for both.
    pub fn with_betas(mut self, beta1: f64, beta2: f64) -> Result<Self> {
        check_fraction("beta1", beta1)?;
        check_fraction("beta2", beta2)?;
        self.betas = (beta1, beta2);
        Ok(self)
    }

    /// With this number to keep the division finite.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless it is positive and finite, also in the type of the weights.
    pub fn with_eps(mut self, eps: f64) -> Result<Self> {
        let narrow = F::of(eps);
        if !(narrow > F::zero() && narrow.is_finite()) {
            return Err(Error::OutOfRange {
                name: "eps",
                value: eps,
                range: "> 0 and finite in the type of the weights",
            });
        }
        self.eps = eps;
        Ok(self)
    }

    /// With this weight decay.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless lambda is finite and not negative.
    pub fn with_decay(mut self, decay: Decay) -> Result<Self> {
        self.decay = decay.check()?;
        Ok(self)
    }

    /// The two betas.
    pub fn betas(&self) -> (f64, f64) {
        self.betas
    }

    /// The number that keeps the division finite.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// The weight decay.
    pub fn decay(&self) -> Decay {
        self.decay
    }
}

impl<F: Float> Optimizer<F> for Adam<F> {
    fn step(&mut self, mlp: &mut Mlp<F>, grads: &Grads<F>, learning_rate: f64) -> Result<()> {
        self.step_on(mlp, grads, learning_rate, &Pool::single())
    }

    fn step_on(&mut self, mlp: &mut Mlp<F>, grads: &Grads<F>, learning_rate: f64, pool: &Pool) -> Result<()> {
        check_not_negative("learning rate", learning_rate)?;
        let t = self.steps.saturating_add(1);
        let (beta1, beta2) = self.betas;
        // The bias corrections in f64, once per step: 1 - 0.999^t loses half of the digits of an f32.
        let correct1 = 1.0 - beta1.powf(t as f64);
        let correct2 = 1.0 - beta2.powf(t as f64);
        let rule = Moments {
            step: narrow("learning rate", learning_rate / correct1)?,
            gain: F::of(correct2.sqrt().recip()),
            eps: F::of(self.eps),
            lambda: narrow("weight decay", self.decay.coupled())?,
            shrink: narrow("weight decay", self.decay.shrinkage(learning_rate))?,
            keep: (F::of(beta1), F::of(beta2)),
            take: (F::of(1.0 - beta1), F::of(1.0 - beta2)),
        };
        self.memory.fit(2, mlp.parameter_dims())?;
        let mut slots = self.memory.slots();
        mlp.update_parameters(grads, |p| {
            if let Some(slot) = slots.next() {
                walk(pool, rule, p.values, p.grads, slot.vectors(), p.keep);
            }
        })?;
        self.steps = t;
        Ok(())
    }

    fn reset(&mut self) {
        self.memory = Memory::default();
        self.steps = 0;
    }
}

/// The formulas of this page for one number, with what is the same for all of them.
#[derive(Clone, Copy)]
struct Moments<F> {
    step: F,
    gain: F,
    eps: F,
    lambda: F,
    shrink: F,
    keep: (F, F),
    take: (F, F),
}

impl<F: Float> Rule<F, 2> for Moments<F> {
    #[inline(always)]
    fn step(self, w: F, gradient: F, memory: &mut [F; 2]) -> F {
        let [m, v] = memory;
        let g = gradient + self.lambda * w;
        *m = self.keep.0 * *m + self.take.0 * g;
        *v = self.keep.1 * *v + self.take.1 * g * g;
        // sqrt(v_hat) = sqrt(v) / sqrt(1 - beta2^t)
        w * self.shrink - self.step * *m / (v.sqrt() * self.gain + self.eps)
    }
}

/// Adam with decoupled weight decay.
///
/// ```
/// use trimnet::nn::AdamW;
///
/// let optimizer = AdamW::<f32>::new(0.01)?; // lambda
/// # let _ = optimizer;
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"))]
pub struct AdamW<F>(Adam<F>);

impl<F: Float> AdamW<F> {
    /// Betas 0.9 and 0.999, eps 1e-8, and `lambda` of weight decay (PyTorch's default is 0.01).
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless lambda is finite and not negative.
    pub fn new(lambda: f64) -> Result<Self> {
        Adam::new().with_decay(Decay::Decoupled(lambda)).map(Self)
    }

    /// As [`Adam::with_betas`].
    ///
    /// # Errors
    /// As [`Adam::with_betas`].
    pub fn with_betas(self, beta1: f64, beta2: f64) -> Result<Self> {
        self.0.with_betas(beta1, beta2).map(Self)
    }

    /// As [`Adam::with_eps`].
    ///
    /// # Errors
    /// As [`Adam::with_eps`].
    pub fn with_eps(self, eps: f64) -> Result<Self> {
        self.0.with_eps(eps).map(Self)
    }
}

impl<F: Float> Optimizer<F> for AdamW<F> {
    fn step(&mut self, mlp: &mut Mlp<F>, grads: &Grads<F>, learning_rate: f64) -> Result<()> {
        self.0.step(mlp, grads, learning_rate)
    }

    fn step_on(&mut self, mlp: &mut Mlp<F>, grads: &Grads<F>, learning_rate: f64, pool: &Pool) -> Result<()> {
        self.0.step_on(mlp, grads, learning_rate, pool)
    }

    fn reset(&mut self) {
        self.0.reset();
    }
}

/// What a file holds, before it is checked; the memory is checked against the network at the next step.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(rename = "Adam")]
struct RawAdam<F> {
    betas: (f64, f64),
    eps: f64,
    decay: Decay,
    steps: u64,
    memory: Memory<F>,
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<RawAdam<F>> for Adam<F> {
    type Error = Error;

    fn try_from(raw: RawAdam<F>) -> Result<Self> {
        let (beta1, beta2) = raw.betas;
        let adam = Self::new().with_betas(beta1, beta2)?.with_eps(raw.eps)?.with_decay(raw.decay)?;
        Ok(Self { steps: raw.steps, memory: raw.memory, ..adam })
    }
}
