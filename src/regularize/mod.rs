//! Against overfitting: [`Regularizer`](crate::Regularizer)s and weight penalties.
