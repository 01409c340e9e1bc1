//! Slices in, slices out: the loops that take the time, and the only unsafe code of the crate.
//!
//! Everything is compiled for the plain target and chosen while running: an [`Isa`] is a value that
//! only exists when the processor was found to have the instructions, so the functions that take one
//! are safe. Each kernel has a plain definition in `scalar`; a faster one equals it (integers) or
//! stays within the error that its page states (floats).

mod block;
mod draws;
mod elementwise;
mod excess;
mod exp;
mod guess;
mod int8;
mod isa;
mod live;
#[cfg(feature = "mmap")]
#[cfg_attr(docsrs, doc(cfg(feature = "mmap")))]
pub mod map;
mod matrix;
mod pack;
mod pages;
mod palette;
mod panels;
mod pool;
mod product;
mod real;
mod scalar;
mod sparse;
mod stream;
mod tail;
mod tiles;
mod weights;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub(crate) use draws::kept_bits;
pub use elementwise::{Code, Grid, dequantize, min_max, quantize, relu};
pub(crate) use elementwise::{Work, as_signed, with};
pub use exp::Exp;
pub(crate) use guess::{Bracket, Guessed, drop_guessed};
pub use int8::{Codes, Input, Scratch8, multiply_codes};
pub use isa::Isa;
pub(crate) use isa::Streams;
pub use matrix::{Matrix, MatrixMut};
pub use pages::prefer_huge_pages;
pub(crate) use palette::distinct;
pub use palette::{PackedPalette, PaletteReal, ScratchPalette, multiply_palette};
pub use panels::PackedReal;
pub(crate) use pool::PART;
pub use pool::Pool;
pub use product::{ScratchReal, Update, affine, multiply, product};
pub use real::Real;
pub use sparse::{
    Epilogue, SparseBlocks, SparseCodes, SparseCodesScratch, SparseReal, SparseRows, SparseScratch,
    TwoOfFour, TwoOfFourCodes,
};
pub(crate) use stream::{Fill, Plain, Stream, fetch, fetch_ahead, in_turns, write as write_stream};
pub use tail::{Fused, Tail};
pub use weights::{PackedCodes, PackedI4, PackedI8, Step, Step4, Step8};
