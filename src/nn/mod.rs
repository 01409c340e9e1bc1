//! A small network: just enough to train, prune, quantize and distil.

pub mod activation;
pub mod adam;
pub mod backprop;
pub mod builder;
pub mod fold;
pub mod grads;
pub mod init;
pub mod layer;
pub mod linear;
pub mod mlp;
pub mod optimizer;
pub mod parameter;
pub mod pruning;
pub mod sgd;
pub mod shrink;

pub use activation::{Activation, ActivationCache};
pub use adam::{Adam, AdamW};
pub use backprop::MlpCache;
pub use builder::MlpBuilder;
pub use grads::{Grads, LayerGrads};
pub use init::Init;
pub use layer::Layer;
pub use linear::{Linear, LinearGrads};
pub use mlp::Mlp;
pub use optimizer::{Decay, Optimizer};
pub use parameter::{Parameter, ParameterKind};
pub use sgd::{Momentum, Sgd};
pub use shrink::{ShrinkReport, ShrunkLayer};
