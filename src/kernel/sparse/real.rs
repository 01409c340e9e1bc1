//! What the sparse products of real numbers share: the element types, the end of a sum, memory, and threads.

use super::blocks::{self, Lanes, Strips};
use super::cells::Cell;
use super::groups::{self, Steps};
use super::lanes::{LINE, Line};
use super::rows;
use super::two_of_four::{self, Pairs, Row, TILE};
use super::windows::{self, Slices};
use crate::kernel::elementwise::with;
use crate::kernel::pool::WORTH_SHARING;
use crate::kernel::tail::Fused;
use crate::kernel::{Isa, MatrixMut, Pool, Real};

/// The numbers that the kernels multiply: `f32` and `f64`.
pub trait SparseReal: Real + sealed::Sealed {
    /// Lines of 16 rows of a batch that fit the registers.
    #[doc(hidden)]
    fn lines(isa: Isa) -> usize;

    /// Whether a layout in windows is worth building for this set of instructions.
    #[doc(hidden)]
    fn wants_windows(isa: Isa) -> bool;
}

mod sealed {
    use super::*;

    /// The kernels that are not the same code for both types.
    pub trait Sealed: Real {
        fn finite(self) -> bool;
        /// See [`rows::cell_one`].
        fn one(isa: Isa, cell: Cell<'_, Self>, x: &[Self], y: &mut [Self]);
        /// See [`rows::Fused`].
        fn many<const V: usize>(
            isa: Isa,
            cell: Cell<'_, Self>,
            x: &[[Line<Self>; V]],
            sums: &mut [[Line<Self>; V]],
        );
        /// See [`windows::slices`].
        fn slices(isa: Isa, slices: Slices<'_, Self>, x: &[Line<Self>], y: &mut [Line<Self>]);
        /// See [`groups::groups`].
        fn groups(isa: Isa, groups: Steps<'_, Self>, x: &[Self], sums: &mut [Line<Self>]);
        /// See [`blocks::one`].
        fn blocks_one(isa: Isa, strips: &Strips<Self>, first: usize, x: &[Self], y: &mut [Self]);
        /// See [`blocks::tile`].
        fn blocks_tile(
            isa: Isa,
            strips: &Strips<Self>,
            s: usize,
            x: Lanes<'_, Self>,
            rows: usize,
            y: &mut [Line<Self>; LINE],
        );
        /// See [`two_of_four::pairs`].
        fn pairs(
            isa: Isa,
            pairs: Pairs<'_, Self>,
            x: &[Row<'_, Self>; TILE],
            rows: usize,
            y: &mut [Line<Self>; TILE],
        );
    }
}

macro_rules! real {
    ($t:ty, $blocks_one:ident, $blocks_tile:ident) => {
        #[inline(always)]
        fn finite(self) -> bool {
            self.is_finite()
        }

        fn blocks_one(isa: Isa, strips: &Strips<Self>, first: usize, x: &[Self], y: &mut [Self]) {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(cpu) => cpu.$blocks_one(strips, first, x, y),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(cpu) => cpu.$blocks_one(strips, first, x, y),
                _ => blocks::one(strips, first, x, y),
            }
        }

        fn blocks_tile(
            isa: Isa,
            strips: &Strips<Self>,
            s: usize,
            x: Lanes<'_, Self>,
            rows: usize,
            y: &mut [Line<Self>; LINE],
        ) {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(cpu) => cpu.$blocks_tile(strips, s, x, rows, y),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(cpu) => cpu.$blocks_tile(strips, s, x, rows, y),
                _ => blocks::tile(strips, s, x, rows, y),
            }
        }
    };
}

impl SparseReal for f32 {
    fn lines(isa: Isa) -> usize {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) | Isa::Avx512(_) => 2,
            _ => 1,
        }
    }

    fn wants_windows(isa: Isa) -> bool {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => true,
            _ => false,
        }
    }
}

impl sealed::Sealed for f32 {
    real!(f32, blocks_one_f32, blocks_tile_f32);

    fn one(isa: Isa, cell: Cell<'_, Self>, x: &[Self], y: &mut [Self]) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(cpu) => cpu.sparse_one(cell, x, y),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(cpu) => cpu.narrow().sparse_one(cell, x, y),
            _ => rows::cell_one(cell, x, y),
        }
    }

    fn many<const V: usize>(
        isa: Isa,
        cell: Cell<'_, Self>,
        x: &[[Line<Self>; V]],
        sums: &mut [[Line<Self>; V]],
    ) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(cpu) => cpu.sparse_many(cell, x, sums),
            _ => with(isa, rows::Fused { cell, x, sums }),
        }
    }

    fn slices(isa: Isa, slices: Slices<'_, Self>, x: &[Line<Self>], y: &mut [Line<Self>]) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(cpu) => cpu.sparse_slices(slices, x, y),
            _ => windows::slices(slices, x, y),
        }
    }

    fn groups(isa: Isa, groups: Steps<'_, Self>, x: &[Self], sums: &mut [Line<Self>]) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(cpu) => cpu.sparse_groups(groups, x, sums),
            _ => groups::groups(groups, x, sums),
        }
    }

    fn pairs(
        isa: Isa,
        pairs: Pairs<'_, Self>,
        x: &[Row<'_, Self>; TILE],
        rows: usize,
        y: &mut [Line<Self>; TILE],
    ) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(cpu) => cpu.pairs_f32(pairs, x, rows, y),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(cpu) => cpu.pairs_f32(pairs, x, rows, y),
            _ => two_of_four::pairs(pairs, x, rows, y),
        }
    }
}

impl SparseReal for f64 {
    fn lines(isa: Isa) -> usize {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => 2,
            _ => 1,
        }
    }

    fn wants_windows(_isa: Isa) -> bool {
        false
    }
}

impl sealed::Sealed for f64 {
    real!(f64, blocks_one_f64, blocks_tile_f64);

    fn one(_isa: Isa, cell: Cell<'_, Self>, x: &[Self], y: &mut [Self]) {
        rows::cell_one(cell, x, y);
    }

    fn many<const V: usize>(
        isa: Isa,
        cell: Cell<'_, Self>,
        x: &[[Line<Self>; V]],
        sums: &mut [[Line<Self>; V]],
    ) {
        with(isa, rows::Fused { cell, x, sums });
    }

    fn slices(_isa: Isa, slices: Slices<'_, Self>, x: &[Line<Self>], y: &mut [Line<Self>]) {
        windows::slices(slices, x, y);
    }

    fn groups(_isa: Isa, groups: Steps<'_, Self>, x: &[Self], sums: &mut [Line<Self>]) {
        groups::groups(groups, x, sums);
    }

    fn pairs(
        _isa: Isa,
        pairs: Pairs<'_, Self>,
        x: &[Row<'_, Self>; TILE],
        rows: usize,
        y: &mut [Line<Self>; TILE],
    ) {
        two_of_four::pairs(pairs, x, rows, y);
    }
}

/// What is added to the sums, and what becomes of them.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a, F> {
    /// One number per output, or none.
    pub bias: Option<&'a [F]>,
    /// Applied last.
    pub activation: Fused,
}

impl<F> Default for Epilogue<'_, F> {
    fn default() -> Self {
        Self { bias: None, activation: Fused::Identity }
    }
}

impl<'a, F: SparseReal> Epilogue<'a, F> {
    pub(super) fn check(&self, outputs: usize) {
        assert_eq!(self.bias.map_or(outputs, <[F]>::len), outputs, "bias of {outputs} outputs");
    }

    /// The same for the outputs from `first` on.
    pub(super) fn from(&self, first: usize) -> Self {
        Self { bias: self.bias.map(|bias| &bias[first..]), activation: self.activation }
    }

    /// Finishes the sums of the outputs `at ..`, as many as `out` holds.
    #[inline(always)]
    pub(super) fn write(&self, at: usize, sums: &[F; LINE], out: &mut [F]) {
        match <&mut [F; LINE]>::try_from(&mut *out) {
            Ok(whole) => *whole = *sums,
            Err(_) => out.copy_from_slice(&sums[..out.len()]),
        }
        self.apply(at, out);
    }

    /// Finishes the sums of the outputs `at ..` in place.
    #[inline(always)]
    pub(in crate::kernel) fn apply(&self, at: usize, sums: &mut [F]) {
        if let Some(bias) = self.bias {
            let bias = &bias[at..at + sums.len()];
            for (y, &bias) in sums.iter_mut().zip(bias) {
                *y = *y + bias;
            }
        }
        match self.activation {
            Fused::Identity => {}
            Fused::Relu => {
                for y in sums {
                    *y = if *y < F::default() { F::default() } else { *y };
                }
            }
        }
    }
}

/// Memory for transposed batches: grows to what is needed, and is kept from call to call.
#[derive(Clone, Debug)]
pub struct SparseScratch<F> {
    lanes: Vec<Line<F>>,
}

impl<F> Default for SparseScratch<F> {
    fn default() -> Self {
        Self { lanes: Vec::new() }
    }
}

impl<F: SparseReal> SparseScratch<F> {
    /// So many lines, with whatever they held before.
    pub(super) fn lines(&mut self, count: usize) -> &mut [Line<F>] {
        if self.lanes.len() < count {
            self.lanes.resize(count, Line([F::default(); LINE]));
        }
        &mut self.lanes[..count]
    }
}

/// Computes `out` by parts of columns, a multiple of `granule` each: alone, or on the pool if there is enough to do.
pub(super) fn share<T: Send>(
    pool: &Pool,
    nanoseconds: f64,
    granule: usize,
    out: MatrixMut<'_, T>,
    task: impl Fn(usize, MatrixMut<'_, T>) + Sync,
) {
    let columns = out.columns();
    if columns == 0 {
        return;
    }
    match worth_sharing(pool, nanoseconds) {
        None => task(0, out),
        Some(parts) => {
            let width = columns.div_ceil(parts).next_multiple_of(granule);
            pool.run_columns(out, width, |i, part| task(i * width, part));
        }
    }
}

/// How many parts to cut work into, or none if the caller is faster alone.
pub(super) fn worth_sharing(pool: &Pool, nanoseconds: f64) -> Option<usize> {
    // Four parts per thread even out rows of unequal work, unless they become too short.
    let parts = (4 * pool.threads()).min((nanoseconds / WORTH_SHARING) as usize).max(pool.threads());
    pool.pays(nanoseconds).then_some(parts)
}
