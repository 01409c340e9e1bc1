//! Sparse weights times dense rows: `y[b, i] = activation(bias[i] + sum over j of w[i, j] * x[b, j])`, zeros left out.
//!
//! | layout | for | one row of a batch | many rows |
//! |---|---|---|---|
//! | [`SparseRows`] | zeros anywhere | wide cells; with AVX-512, windows of 32 columns and groups of 16 outputs | narrow cells: one weight times a vector of batch rows |
//! | [`SparseBlocks`] | 16 outputs share which inputs they use | a vector of weights times one input | the same, 16 rows at a time |
//! | [`TwoOfFour`] | at most two of four neighbours | shuffles pick the inputs of 16 outputs | the same, 4 rows at a time |
//! | [`SparseCodes`], [`TwoOfFourCodes`] | the same in codes | | |
//!
//! All but 2:4: "zeros left out" is more than speed: an infinite input does not touch an output whose weight for it is zero, where a
//! dense product would give NaN.

mod blocks;
mod cells;
mod code_windows;
mod codes;
mod csr;
mod groups;
mod lanes;
mod real;
mod rows;
mod two_of_four;
mod two_of_four_codes;
mod windows;

#[cfg(test)]
mod code_tests;
#[cfg(test)]
mod tests;

pub use blocks::SparseBlocks;
pub use codes::{SparseCodes, SparseCodesScratch};
pub use real::{Epilogue, SparseReal, SparseScratch};
pub use rows::SparseRows;
pub use two_of_four::TwoOfFour;
pub use two_of_four_codes::TwoOfFourCodes;

// For the folder of an instruction set. 64-bit Arm runs the definitions, which the compiler turns into NEON.
#[cfg(target_arch = "x86_64")]
pub(in crate::kernel) use {
    blocks::{Lanes, Strips},
    cells::Cell,
    code_windows::{CodeSlice, CodeStep, WINDOW as WINDOW8, code_slice},
    codes::{CODE_LANES, CodeLine, CodeSums, place},
    groups::Steps,
    lanes::{LINE, Line},
    two_of_four::{Pairs, Row, TILE},
    two_of_four_codes::{PairCodes, PairIndices, PairValues, STEP as PAIR_STEP},
    windows::{Slices, WINDOW, slices},
};
