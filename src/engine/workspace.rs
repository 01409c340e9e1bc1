//! The memory of a call: made once, kept from call to call, one for each caller.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::float::Float;
use crate::kernel::{Scratch8, ScratchPalette, ScratchReal, SparseCodesScratch, SparseReal, SparseScratch};

/// What one caller needs to run an engine without allocating; from
/// [`Engine::workspace`](super::Engine::workspace).
///
/// Engines are shared by threads, workspaces are not: each thread makes its own.
#[derive(Debug)]
pub struct Workspace<F> {
    /// One for each thread that may work on rows of its own.
    pub(super) lanes: Vec<Mutex<Lane<F>>>,
    /// Rows that go through the network at a time.
    pub(super) rows: usize,
    /// For results that the caller gets by reference, and rows that were not contiguous.
    pub(super) input: Vec<F>,
    pub(super) output: Vec<F>,
    /// The engine it was made for.
    pub(super) engine: u64,
}

impl<F> Workspace<F> {
    /// Rows that go through the network at a time; a larger batch is cut.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// The memory of one thread.
#[derive(Debug)]
pub(super) struct Lane<F> {
    /// Outputs of the stages, by turns.
    pub(super) float: [Vec<F>; 2],
    pub(super) codes: [Vec<u8>; 2],
    pub(super) tools: Tools<F>,
}

/// What kernels work with.
#[derive(Debug)]
pub(super) struct Tools<F> {
    /// One for each thread that may work on columns of its own.
    pub(super) codes: Vec<Mutex<Scratch8>>,
    pub(super) real: Vec<Mutex<ScratchReal<F>>>,
    pub(super) palette: Vec<Mutex<ScratchPalette<F>>>,
    pub(super) sparse: SparseScratch<F>,
    pub(super) sparse_codes: SparseCodesScratch,
    /// Numbers of an `f64` engine on their way from or to `f32`.
    pub(super) narrow: Vec<f32>,
    /// Codes of rows that bring their own scale.
    pub(super) row_codes: Vec<u8>,
    pub(super) row_params: Vec<(f32, i32)>,
    pub(super) sums: Vec<i32>,
    pub(super) wide_sums: Vec<i64>,
    /// Rows of the whole batch, which is cut into chunks.
    pub(super) batch: usize,
}

impl<F: Float + SparseReal> Lane<F> {
    /// For `rows` rows of at most so many numbers and codes.
    pub(super) fn new(rows: usize, float: usize, codes: usize, threads: usize) -> Self {
        let float = || vec![F::zero(); rows * float];
        let codes = || vec![0; rows * codes];
        Self { float: [float(), float()], codes: [codes(), codes()], tools: Tools::new(threads) }
    }
}

impl<F: SparseReal> Tools<F> {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            codes: (0..threads).map(|_| Mutex::default()).collect(),
            real: (0..threads).map(|_| Mutex::default()).collect(),
            palette: (0..threads).map(|_| Mutex::default()).collect(),
            sparse: SparseScratch::default(),
            sparse_codes: SparseCodesScratch::default(),
            narrow: Vec::new(),
            row_codes: Vec::new(),
            row_params: Vec::new(),
            sums: Vec::new(),
            wide_sums: Vec::new(),
            batch: 0,
        }
    }
}

/// The memory behind a lock; what a panicking thread left in it is overwritten anyway.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One that nobody holds, else the one of number `i`.
pub(super) fn lock_any<T>(all: &[Mutex<T>], i: usize) -> Option<MutexGuard<'_, T>> {
    all.iter().find_map(|one| one.try_lock().ok()).or_else(|| all.get(i % all.len().max(1)).map(lock))
}

/// At least so many elements, whatever they hold.
pub(super) fn room<T: Copy + Default>(memory: &mut Vec<T>, count: usize) -> &mut [T] {
    if memory.len() < count {
        memory.resize(count, T::default());
    }
    &mut memory[..count]
}
