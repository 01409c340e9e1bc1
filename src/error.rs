//! The one error type of the crate: every variant carries the facts of what went wrong.

use std::path::{Path, PathBuf};

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that data, settings or files can do wrong.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two shapes that have to agree do not.
    #[error("{what} has shape {actual:?}, expected {expected:?}")]
    Shape {
        /// The argument that does not fit.
        what: &'static str,
        /// Its shape.
        actual: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A setting lies outside its allowed range.
    #[error("{name} is {value}, allowed is {range}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The allowed range, as in the docs.
        range: &'static str,
    },
    /// A number that has to be finite is NaN or infinite.
    #[error("{what} is {value}{}; only finite numbers are allowed", at(index))]
    NotFinite {
        /// The argument that holds it.
        what: &'static str,
        /// Where it stands.
        index: Vec<usize>,
        /// NaN, infinity or minus infinity.
        value: f64,
    },
    /// Nothing was given where at least one element is needed.
    #[error("{what} is empty")]
    Empty {
        /// The argument without elements.
        what: &'static str,
    },
    /// A batch has too few rows for the statistics that are asked of it.
    #[error("{what} needs at least {needed} rows, got {rows}")]
    BatchTooSmall {
        /// The operation.
        what: &'static str,
        /// Rows of the batch.
        rows: usize,
        /// The least number of rows.
        needed: usize,
    },
    /// A class label that the network has no output for.
    #[error("label {label} of row {row} is not below the number of classes, {classes}")]
    Label {
        /// Position in the labels.
        row: usize,
        /// The label.
        label: usize,
        /// The number of classes.
        classes: usize,
    },
    /// Training led to a loss that is not a number, or to parameters that are not.
    #[error(
        "the loss is {loss} in epoch {epoch}, step {step}; a smaller learning rate or clipped gradients may help"
    )]
    Diverged {
        /// The epoch, from 0.
        epoch: usize,
        /// The step over all epochs, from 0.
        step: usize,
        /// NaN or infinity; infinity if parameters are not finite.
        loss: f64,
    },
    /// A compressed network is right less often than was allowed.
    #[error(
        "accuracy falls from {:.2} % to {:.2} %, allowed is a fall by {:.2} points; linear layer {layer} costs most",
        100.0 * before, 100.0 * after, 100.0 * allowed
    )]
    OverBudget {
        /// Share of right answers of the network.
        before: f64,
        /// The same of what was made of it.
        after: f64,
        /// By how much it may fall.
        allowed: f64,
        /// The linear layer, from 0, that wins back most if it is left as it was.
        layer: usize,
    },
    /// Two settings, or a setting and the data, exclude each other.
    #[error("{what}: {reason}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// Why it cannot be done, and what can.
        reason: String,
    },
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A file is not what it claims to be.
    #[error("{}{reason}", of(path))]
    Format {
        /// The file; empty for bytes in memory.
        path: PathBuf,
        /// What was found, what was expected, and where.
        reason: String,
    },
}

/// The file that an error is about, if it is one.
fn of(path: &Path) -> String {
    if path.as_os_str().is_empty() { String::new() } else { format!("{}: ", path.display()) }
}

/// Where a number stands, if it is one of many.
fn at(index: &[usize]) -> String {
    if index.is_empty() { String::new() } else { format!(" at index {index:?}") }
}
