//! The crate as its users see it, in one program: generic code is compiled once for all tests.
//!
//! Tests that count memory, or limit it, are programs of their own beside this one.

mod api;
mod atomic;
mod checkpoint;
mod distill;
mod engine;
mod engine_auto;
mod engine_delta;
mod golden_quantize;
mod golden_torch;
mod gradients;
mod idx;
mod laws;
mod laws_normalize;
mod laws_optimizer;
mod laws_prune;
mod laws_quantize;
mod laws_regularize;
mod layering;
mod onnx;
mod shrink;
mod trained_compression;
mod trainer;
mod trim;
mod trim_delta;
mod trim_hostile;
mod trim_network;
