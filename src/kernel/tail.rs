//! What happens to the sums of a product before they reach memory.

/// An activation cheap enough to ride on a product.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fused {
    /// The number itself.
    #[default]
    Identity,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
}
