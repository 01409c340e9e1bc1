//! Sparse products: the definitions compiled for AVX2 and AVX-512, and what the compiler would not find.

use std::arch::x86_64::*;

use super::{Avx2, Avx512};
use crate::kernel::MatrixMut;
use crate::kernel::sparse::{
    Column, Csr, Epilogue, LINE, Line, Slices, SparseReal, Strips, WINDOW, blocks_many, blocks_one, gather,
    many,
};

impl Avx512 {
    /// What it includes.
    pub(in crate::kernel) fn avx2(self) -> Avx2 {
        Avx2(())
    }
}

/// The same code with other instructions.
macro_rules! compiled {
    ($cpu:ident, $features:literal, f32 tile $tile:literal) => {
        impl $cpu {
            pub(in crate::kernel) fn sparse_gather<F: SparseReal, const V: usize>(
                self,
                x: &[F],
                inputs: usize,
                lanes: &mut [Line<F>],
            ) {
                #[target_feature(enable = $features)]
                fn inner<F: SparseReal, const V: usize>(x: &[F], inputs: usize, lanes: &mut [Line<F>]) {
                    gather::<F, V>(x, inputs, lanes);
                }
                // SAFETY: `self` proves that the processor has these instructions.
                unsafe { inner::<F, V>(x, inputs, lanes) }
            }

            pub(in crate::kernel) fn sparse_many<F: SparseReal, C: Column, const V: usize>(
                self,
                csr: &Csr<F, C>,
                first: usize,
                lanes: &[Line<F>],
                tail: &Epilogue<'_, F>,
                out: &mut MatrixMut<'_, F>,
            ) {
                #[target_feature(enable = $features)]
                fn inner<F: SparseReal, C: Column, const V: usize>(
                    csr: &Csr<F, C>,
                    first: usize,
                    lanes: &[Line<F>],
                    tail: &Epilogue<'_, F>,
                    out: &mut MatrixMut<'_, F>,
                ) {
                    many::<F, C, V>(csr, first, lanes, tail, out, F::fused);
                }
                // SAFETY: `self` proves that the processor has these instructions.
                unsafe { inner::<F, C, V>(csr, first, lanes, tail, out) }
            }

            pub(in crate::kernel) fn blocks_one<F: SparseReal>(
                self,
                strips: &Strips<F>,
                first: usize,
                x: &[F],
                y: &mut [F],
            ) {
                #[target_feature(enable = $features)]
                fn inner<F: SparseReal>(strips: &Strips<F>, first: usize, x: &[F], y: &mut [F]) {
                    blocks_one(strips, first, x, y, F::fused);
                }
                // SAFETY: `self` proves that the processor has these instructions.
                unsafe { inner(strips, first, x, y) }
            }

            pub(in crate::kernel) fn blocks_many<F: SparseReal>(
                self,
                strips: &Strips<F>,
                first: usize,
                lanes: &[Line<F>],
                tail: &Epilogue<'_, F>,
                out: &mut MatrixMut<'_, F>,
            ) {
                #[target_feature(enable = $features)]
                fn inner<F: SparseReal>(
                    strips: &Strips<F>,
                    first: usize,
                    lanes: &[Line<F>],
                    tail: &Epilogue<'_, F>,
                    out: &mut MatrixMut<'_, F>,
                ) {
                    // As many rows as there are registers, of twice the width for f64.
                    if size_of::<F>() == 4 {
                        blocks_many::<F, $tile>(strips, first, lanes, tail, out, F::fused);
                    } else {
                        blocks_many::<F, { $tile / 2 }>(strips, first, lanes, tail, out, F::fused);
                    }
                }
                // SAFETY: `self` proves that the processor has these instructions.
                unsafe { inner(strips, first, lanes, tail, out) }
            }
        }
    };
}

compiled!(Avx2, "avx2,fma", f32 tile 4);
compiled!(Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", f32 tile 16);

impl Avx2 {
    /// [`crate::kernel::sparse`]'s product with one row, four inputs gathered by a load and three inserts.
    pub(in crate::kernel) fn sparse_one(self, csr: &Csr<f32, u16>, first: usize, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), csr.inputs(), "length of the input");
        // SAFETY: `self` proves that the processor has these instructions.
        unsafe { sparse_one(csr, first, x, y) }
    }
}

/// `x` has as many elements as `csr` has inputs.
#[target_feature(enable = "avx2,fma")]
fn sparse_one(csr: &Csr<f32, u16>, first: usize, x: &[f32], y: &mut [f32]) {
    debug_assert_eq!(x.len(), csr.inputs());
    // The inputs of four columns.
    let four = |columns: &[u16; 4]| {
        // SAFETY: columns of a `Csr` are below its inputs, of which there are as many as `x` is long.
        let at = |column: u16| unsafe { _mm_set_ss(*x.get_unchecked(usize::from(column))) };
        // One load of all columns: loads are what this runs out of.
        // SAFETY: eight bytes to read, wherever they stand.
        let all = unsafe { columns.as_ptr().cast::<u64>().read_unaligned() };
        let low = _mm_insert_ps::<0x10>(at(all as u16), at((all >> 16) as u16));
        _mm_insert_ps::<0x30>(_mm_insert_ps::<0x20>(low, at((all >> 32) as u16)), at((all >> 48) as u16))
    };
    let step = |sum: __m128, columns: &[u16; 4], values: &[f32; 4]| {
        // SAFETY: four numbers to read.
        let values = unsafe { _mm_loadu_ps(values.as_ptr()) };
        _mm_fmadd_ps(values, four(columns), sum)
    };
    for (i, y) in y.iter_mut().enumerate() {
        let (columns, values) = csr.row(first + i);
        let (columns, last_columns) = columns.as_chunks::<4>();
        let (values, last_values) = values.as_chunks::<4>();
        let (column_chunks, more_columns) = columns.as_chunks::<4>();
        let (value_chunks, more_values) = values.as_chunks::<4>();
        let mut chains = [_mm_setzero_ps(); 4];
        for (columns, values) in column_chunks.iter().zip(value_chunks) {
            chains[0] = step(chains[0], &columns[0], &values[0]);
            chains[1] = step(chains[1], &columns[1], &values[1]);
            chains[2] = step(chains[2], &columns[2], &values[2]);
            chains[3] = step(chains[3], &columns[3], &values[3]);
        }
        // A copy: what follows picks by a variable, which must not keep the chains above out of registers.
        let mut last = chains;
        for (k, (columns, values)) in more_columns.iter().zip(more_values).enumerate() {
            last[k] = step(last[k], columns, values);
        }
        if !last_columns.is_empty() {
            let (mut columns, mut weights) = ([last_columns[0]; 4], [0.0; 4]);
            columns[..last_columns.len()].copy_from_slice(last_columns);
            weights[..last_values.len()].copy_from_slice(last_values);
            // Lanes beyond the row's end would multiply an input by zero: masked, since it may be infinite.
            let mask = _mm_cmplt_epi32(_mm_setr_epi32(0, 1, 2, 3), _mm_set1_epi32(last_columns.len() as i32));
            let x = _mm_and_ps(four(&columns), _mm_castsi128_ps(mask));
            // SAFETY: four numbers to read.
            let weights = unsafe { _mm_loadu_ps(weights.as_ptr()) };
            let k = more_columns.len();
            last[k] = _mm_fmadd_ps(weights, x, last[k]);
        }
        let [a, b, c, d] = last;
        let sum = _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d));
        let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
        *y = _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum)));
    }
}

impl Avx512 {
    /// [`crate::kernel::sparse::Slices`] times `x`, two lines for each window.
    pub(in crate::kernel) fn sparse_slices(
        self,
        slices: Slices<'_, f32>,
        x: &[Line<f32>],
        y: &mut [Line<f32>],
    ) {
        let places = y.len() * slices.windows * slices.steps;
        assert_eq!(x.len(), 2 * slices.windows, "lines of all windows");
        assert_eq!((slices.values.len(), slices.indices.len()), (places, places), "places of all slices");
        macro_rules! by_steps {
            ($($steps:literal)*) => {
                match slices.steps {
                    // SAFETY: `self` proves that the processor has these instructions.
                    $($steps => unsafe { sparse_slices::<$steps>(slices, x, y) },)*
                    _ => crate::kernel::sparse::slices(slices, x, y),
                }
            };
        }
        by_steps!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn sparse_slices<const K: usize>(slices: Slices<'_, f32>, x: &[Line<f32>], y: &mut [Line<f32>]) {
    const { assert!(WINDOW == 2 * LINE) };
    let (values, _) = slices.values.as_chunks::<K>();
    let (indices, _) = slices.indices.as_chunks::<K>();
    let (windows, _) = x.as_chunks::<2>();
    let per_slice = values.chunks_exact(windows.len()).zip(indices.chunks_exact(windows.len()));
    for (y, (values, indices)) in y.iter_mut().zip(per_slice) {
        let mut chains = [_mm512_setzero_ps(); K];
        for ((values, indices), window) in values.iter().zip(indices).zip(windows) {
            let (low, high) = (load(&window[0]), load(&window[1]));
            for k in 0..K {
                // SAFETY: sixteen bytes to read.
                let index = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(indices[k].as_ptr().cast()) });
                let x = _mm512_permutex2var_ps(low, index, high);
                chains[k] = _mm512_fmadd_ps(load(&values[k]), x, chains[k]);
            }
        }
        let sum = chains[1..].iter().fold(chains[0], |sum, &chain| _mm512_add_ps(sum, chain));
        // SAFETY: sixteen numbers to write, on a cache line.
        unsafe { _mm512_store_ps(y.0.as_mut_ptr(), sum) };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line<f32>) -> __m512 {
    // SAFETY: sixteen numbers to read, on a cache line.
    unsafe { _mm512_load_ps(line.0.as_ptr()) }
}
