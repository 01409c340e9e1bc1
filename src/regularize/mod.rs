//! Against overfitting: [`Regularizer`](crate::Regularizer)s and weight penalties.
//!
//! | type | disturbs | by |
//! |---|---|---|
//! | [`Dropout`] | activations | silencing a random share of them |
//! | [`GaussianNoise`] | activations | a random gain near 1 |
//! | [`Penalty`] | nothing | adding a price of the weights to the loss |
//!
//! `backward` cannot fail: a `dy` whose shape is not that of the output gives a gradient that is all NaN.

mod dropout;
mod gaussian_noise;
mod kept;
mod penalty;
mod philox;

pub use dropout::{Dropout, DropoutCache};
pub use gaussian_noise::{GaussianNoise, GaussianNoiseCache};
pub use penalty::{Groups, Penalty};
