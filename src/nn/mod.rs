//! A small network: just enough to train, prune, quantize and distil.
//!
//! ```text
//! build      layers one after the other                            Mlp::builder, Mlp::from_layers, Init
//! data       rows with labels or values, in batches                Dataset
//! train      objective, optimizer, schedule, validation            Trainer, CrossEntropy, MeanSquaredError, Adam, AdamW, Sgd,
//!                                                                  LearningRate, EarlyStopping, History
//! by hand    the same step by step                                 Mlp::forward, Mlp::backward, Optimizer::step
//! compress   masks, sharing, codes and averages while it trains    GradualPruning, WeightSharing, StraightThrough,
//!                                                                  AnnealedPenalty, WeightAverage: each a Callback
//! cut        dead neurons out, batch norms into their neighbours   Mlp::prune_neurons, Mlp::prune_neurons_to, Mlp::shrink,
//!                                                                  Mlp::fold_batch_norm
//! estimate   batch norms again, after weights changed              Mlp::estimate_batch_norms
//! measure    loss, accuracy, confusion                             evaluate, metrics
//! ```
//!
//! A network is saved and loaded by `Mlp::save` and `Mlp::load` ([`io::trim`](crate::io::trim)); an
//! [`Engine`](crate::engine::Engine) is the form that is deployed.

pub mod activation;
pub mod adam;
pub mod anneal;
pub mod average;
pub mod backprop;
pub mod builder;
pub mod callback;
pub mod data;
pub mod estimate;
pub mod fold;
pub mod gradual;
pub(crate) mod frozen;
pub mod grads;
pub mod history;
pub mod init;
pub mod layer;
pub mod linear;
pub mod loss;
pub mod metrics;
pub mod mlp;
pub mod objective;
pub mod optimizer;
pub mod parameter;
pub mod pruning;
mod ramp;
pub mod schedule;
pub mod sgd;
pub mod sharing;
pub mod shrink;
pub mod straight_through;
pub mod target;
pub mod trainer;
pub mod workspace;

pub use activation::{Activation, ActivationCache};
pub use adam::{Adam, AdamW};
pub use anneal::AnnealedPenalty;
pub use average::WeightAverage;
pub use backprop::MlpCache;
pub use builder::MlpBuilder;
pub use callback::{Callback, Step};
pub use data::{Batch, Batches, Dataset, Targets, TargetsView};
pub use grads::{Grads, LayerGrads};
pub use gradual::GradualPruning;
pub use history::{Epoch, History, Stop};
pub use init::Init;
pub use layer::Layer;
pub use linear::{Linear, LinearGrads};
pub use metrics::ConfusionMatrix;
pub use mlp::Mlp;
pub use objective::{
    CrossEntropy, Evaluated, Evaluation, HiddenGrads, MeanSquaredError, Objective, evaluate, evaluate_with,
};
pub use optimizer::{Decay, Optimizer};
pub use parameter::{Parameter, ParameterKind};
pub use schedule::LearningRate;
pub use sgd::{Momentum, Sgd};
pub use sharing::{SharedGradient, WeightSharing};
pub use shrink::{ShrinkReport, ShrunkLayer};
pub use straight_through::StraightThrough;
pub use target::{SizeTarget, TargetReport};
pub use trainer::{EarlyStopping, Trainer, Watch};
pub use workspace::Workspace;
