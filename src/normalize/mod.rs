//! Rescaling features: [`Normalizer`](crate::Normalizer)s.
//!
//! | type | statistics over | learnt by gradient | inverse |
//! |---|---|---|---|
//! | [`BatchNorm`] | the rows of a batch, per feature | gamma, beta | yes, unless a gamma is 0 |
//! | [`LayerNorm`] | the features of one row | gamma, beta | no: the row's statistics are gone |
//! | [`MinMax`] | all data seen, per feature | - | yes |
//! | [`Standard`] | all data seen, per feature | - | yes |
//!
//! `backward` cannot fail: a `dy` whose shape is not that of the output gives gradients that are all NaN.

mod affine;
mod batch_norm;
mod columns;
mod layer_norm;
mod min_max;
mod running;
mod standard;

pub use affine::AffineGrads;
pub use batch_norm::{BatchNorm, BatchNormCache, BatchStatistics};
pub use layer_norm::{LayerNorm, LayerNormCache};
pub use min_max::{MinMax, MinMaxCache};
pub use running::BnConvention;
pub use standard::{Standard, StandardCache};
