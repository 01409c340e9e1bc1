//! The deployable network: folded, lowered, integer or sparse; no training code.
//!
//! ```text
//! Mlp --lower--> blocks --formats, calibration--> recipe --pack--> stages --run--> outputs
//! ```
//!
//! A *recipe* is what a file holds: blocks with their weights as they are stored, and the scales of the codes between
//! them. *Stages* are what runs: weights packed for the kernels, one stage per linear layer. The same recipe gives the
//! same stages and so the same bits, whether it was just built or loaded.
//!
//! Bottom to top: `element` (f32 and f64), `format` and `config` (what can be asked for), `recipe` (the data), `lower`
//! (from the trained network), `bound` (no sum overflows), `weights` (numbers to codes), `calibrate` (ranges),
//! `integer`, `linear` and `stage` (one step of a call), `workspace` (its memory), `machine` (all stages), `build` (numbers to recipe),
//! `network` (the public type), `evaluate` (how good it is), `exchange` (with other programs), `measure`, `choose`, `search` and `budget`
//! (formats by measurement).

mod element;
mod format;
mod budget;
mod config;
pub(crate) mod recipe;
mod lower;
mod bound;
mod weights;
mod calibrate;
pub mod calibrator;
pub mod quantized;
mod stage;
mod integer;
mod linear;
mod workspace;
mod machine;
mod build;
mod network;
mod evaluate;
mod exchange;
mod measure;
mod search;
mod choose;

pub use bound::Bound;
pub use calibrator::{Calibrator, Target};
pub use choose::{Auto, Candidate, Choice};
pub(crate) use choose::{repeated, sqnr};
pub use config::{Config, RangeChoice};
pub use element::Element;
pub use format::{Batch, BatchMut, Format, Io};
pub use measure::Timing;
pub(crate) use measure::break_even_density;
pub use network::{Engine, LayerInfo};
pub use quantized::{CodeParams, IntegerBias, QuantizedLayer, QuantizedLinear, QuantizedMlp};
pub use workspace::Workspace;
