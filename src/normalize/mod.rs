//! Rescaling features: [`Normalizer`](crate::Normalizer)s.
