//! Sparse products: the definitions compiled for AVX2 and AVX-512, and what the compiler would not find.

use std::arch::x86_64::*;

use super::{Avx2, Avx512};
use crate::kernel::sparse::{Cell, LINE, Lanes, Line, Slices, Steps, Strips, WINDOW};

/// Blocks of 16 outputs: `$vectors` vectors hold them, and `$tile` rows of a batch fill the registers.
macro_rules! blocks {
    ($cpu:ident, $features:literal, $t:ty, $vector:ty, $vectors:literal, [$($tile:literal),*], $one:ident, $many:ident,
     $zero:ident, $set:ident, $fma:ident, $add:ident, $load:ident, $store:ident) => {
        impl $cpu {
            /// The sums of the strips from `first` on for one row.
            pub(in crate::kernel) fn $one(self, strips: &Strips<$t>, first: usize, x: &[$t], y: &mut [$t]) {
                #[target_feature(enable = $features)]
                fn one(strips: &Strips<$t>, first: usize, x: &[$t], y: &mut [$t]) {
                    assert_eq!(x.len(), strips.inputs(), "length of the input");
                    for (s, y) in y.chunks_mut(LINE).enumerate() {
                        let (columns, values) = strips.strip(first + s);
                        let mut chains = [[$zero(); $vectors]; 4];
                        let (column_chunks, last_columns) = columns.as_chunks::<4>();
                        let (value_chunks, last_values) = values.as_chunks::<4>();
                        for (columns, values) in column_chunks.iter().zip(value_chunks) {
                            for c in 0..4 {
                                // SAFETY: columns of `Strips` are below their inputs, of which `x` has as many.
                                let x = unsafe { *x.get_unchecked(columns[c] as usize) };
                                step(&mut chains[c], &values[c], x);
                            }
                        }
                        // A copy: picked by a variable, it must not keep the chains above out of registers.
                        let mut last = chains;
                        for ((chain, &column), values) in last.iter_mut().zip(last_columns).zip(last_values) {
                            step(chain, values, x[column as usize]);
                        }
                        let [a, b, c, d] = last;
                        let mut sums = Line([0.0; LINE]);
                        for v in 0..$vectors {
                            store(&mut sums, v, $add($add(a[v], b[v]), $add(c[v], d[v])));
                        }
                        y.copy_from_slice(&sums.0[..y.len()]);
                    }
                }

                #[inline]
                #[target_feature(enable = $features)]
                fn step(sums: &mut [$vector; $vectors], values: &Line<$t>, x: $t) {
                    let x = $set(x);
                    for (v, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: an aligned vector within the line, which is `$vectors` of them.
                        let values = unsafe { $load(values.0.as_ptr().add(v * (LINE / $vectors))) };
                        *sum = $fma(values, x, *sum);
                    }
                }

                #[inline]
                #[target_feature(enable = $features)]
                fn store(to: &mut Line<$t>, v: usize, vector: $vector) {
                    assert!(v < $vectors);
                    // SAFETY: an aligned vector within the line, which is `$vectors` of them.
                    unsafe { $store(to.0.as_mut_ptr().add(v * (LINE / $vectors)), vector) }
                }

                // SAFETY: `self` proves the instructions.
                unsafe { one(strips, first, x, y) }
            }

            /// The sums of strip `s` for the first `rows` lanes at least.
            pub(in crate::kernel) fn $many(
                self,
                strips: &Strips<$t>,
                s: usize,
                x: Lanes<'_, $t>,
                rows: usize,
                y: &mut [Line<$t>; LINE],
            ) {
                #[target_feature(enable = $features)]
                fn many(strips: &Strips<$t>, s: usize, x: Lanes<'_, $t>, rows: usize, y: &mut [Line<$t>; LINE]) {
                    x.check(strips.inputs());
                    const MOST: usize = { let all = [$($tile),*]; all[all.len() - 1] };
                    for first in (0..rows).step_by(MOST) {
                        match rows - first {
                            $(..=$tile => tile::<$tile>(strips.strip(s), x, first, y),)*
                            _ => tile::<MOST>(strips.strip(s), x, first, y),
                        }
                    }
                }

                /// Lanes `first .. first + T`; `x` has lines of all columns.
                #[target_feature(enable = $features)]
                fn tile<const T: usize>(
                    (columns, values): (&[u32], &[Line<$t>]),
                    x: Lanes<'_, $t>,
                    first: usize,
                    y: &mut [Line<$t>; LINE],
                ) {
                    assert!(first + T <= LINE);
                    let mut sums = [[$zero(); $vectors]; T];
                    for (&column, values) in columns.iter().zip(values) {
                        // SAFETY: `x` was checked to have lines of all inputs, which columns are below.
                        let x = unsafe { x.lines.get_unchecked(column as usize * x.every + x.line) };
                        let mut w = [$zero(); $vectors];
                        for (v, w) in w.iter_mut().enumerate() {
                            // SAFETY: an aligned vector within the line, which is `$vectors` of them.
                            *w = unsafe { $load(values.0.as_ptr().add(v * (LINE / $vectors))) };
                        }
                        for (t, sums) in sums.iter_mut().enumerate() {
                            // SAFETY: `first + T` is at most the length of a line.
                            let x = $set(unsafe { *x.0.get_unchecked(first + t) });
                            for (sum, &w) in sums.iter_mut().zip(&w) {
                                *sum = $fma(x, w, *sum);
                            }
                        }
                    }
                    for (y, sums) in y[first..first + T].iter_mut().zip(&sums) {
                        for (v, &sum) in sums.iter().enumerate() {
                            // SAFETY: an aligned vector within the line, which is `$vectors` of them.
                            unsafe { $store(y.0.as_mut_ptr().add(v * (LINE / $vectors)), sum) };
                        }
                    }
                }

                // SAFETY: `self` proves the instructions.
                unsafe { many(strips, s, x, rows, y) }
            }
        }
    };
}

blocks!(
    Avx2,
    "avx2,fma",
    f32,
    __m256,
    2,
    [2, 4],
    blocks_one_f32,
    blocks_tile_f32,
    _mm256_setzero_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps,
    _mm256_load_ps,
    _mm256_store_ps
);
blocks!(
    Avx2,
    "avx2,fma",
    f64,
    __m256d,
    4,
    [2],
    blocks_one_f64,
    blocks_tile_f64,
    _mm256_setzero_pd,
    _mm256_set1_pd,
    _mm256_fmadd_pd,
    _mm256_add_pd,
    _mm256_load_pd,
    _mm256_store_pd
);
blocks!(
    Avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma",
    f32,
    __m512,
    1,
    [4, 8, 16],
    blocks_one_f32,
    blocks_tile_f32,
    _mm512_setzero_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps,
    _mm512_load_ps,
    _mm512_store_ps
);
blocks!(
    Avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma",
    f64,
    __m512d,
    2,
    [4, 8],
    blocks_one_f64,
    blocks_tile_f64,
    _mm512_setzero_pd,
    _mm512_set1_pd,
    _mm512_fmadd_pd,
    _mm512_add_pd,
    _mm512_load_pd,
    _mm512_store_pd
);

impl Avx2 {
    /// Adds to the sums `y` of one row what a cell has for its inputs, four of them gathered by a load and three inserts.
    pub(in crate::kernel) fn sparse_one(self, cell: Cell<'_, f32>, x: &[f32], y: &mut [f32]) {
        // SAFETY: `self` proves that the processor has these instructions.
        unsafe { sparse_one(cell, x, y) }
    }
}

#[target_feature(enable = "avx2,fma")]
fn sparse_one(cell: Cell<'_, f32>, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), cell.inputs(), "length of the input");
    // SAFETY: columns of a cell are below its inputs, of which there are as many as `x` is long; it has one for column 0 if it has
    // entries.
    let four = |columns: u64| unsafe { four(x, columns) };
    // SAFETY: four numbers to read.
    let values_of = |values: &[f32; 4]| unsafe { _mm_loadu_ps(values.as_ptr()) };
    let step = |sum: __m128, columns: &[u16; 4], values: &[f32; 4]| {
        _mm_fmadd_ps(values_of(values), four(four_columns(columns)), sum)
    };
    for part in cell {
        let (columns, values, last) = part.fours();
        let whole = columns.len() - usize::from(last > 0);
        let (columns, last_columns) = columns.split_at(whole);
        let (values, last_values) = values.split_at(whole);
        let (column_chunks, more_columns) = columns.as_chunks::<4>();
        let (value_chunks, more_values) = values.as_chunks::<4>();
        let [mut a, mut b, mut c, mut d] = [_mm_setzero_ps(); 4];
        for (columns, values) in column_chunks.iter().zip(value_chunks) {
            a = step(a, &columns[0], &values[0]);
            b = step(b, &columns[1], &values[1]);
            c = step(c, &columns[2], &values[2]);
            d = step(d, &columns[3], &values[3]);
        }
        // One to three, and what belongs to others, masked.
        let end = |sum: __m128| match (last_columns, last_values) {
            ([columns], [values]) => {
                let mask = _mm_cmplt_epi32(_mm_setr_epi32(0, 1, 2, 3), _mm_set1_epi32(last as i32));
                let mask = _mm_castsi128_ps(mask);
                let columns = four_columns(columns) & ((1 << (16 * last)) - 1);
                _mm_fmadd_ps(_mm_and_ps(values_of(values), mask), _mm_and_ps(four(columns), mask), sum)
            }
            _ => sum,
        };
        match (more_columns, more_values) {
            ([p], [u]) => {
                a = step(a, p, u);
                b = end(b);
            }
            ([p, q], [u, v]) => {
                (a, b) = (step(a, p, u), step(b, q, v));
                c = end(c);
            }
            ([p, q, r], [u, v, w]) => {
                (a, b, c) = (step(a, p, u), step(b, q, v), step(c, r, w));
                d = end(d);
            }
            _ => a = end(a),
        }
        let sum = _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d));
        let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
        y[part.row] += _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum)));
    }
}

/// Four columns, in one load: loads are what gathering runs out of.
#[inline(always)]
fn four_columns(columns: &[u16; 4]) -> u64 {
    // SAFETY: eight bytes to read, wherever they stand.
    unsafe { columns.as_ptr().cast::<u64>().read_unaligned() }
}

/// The inputs of four columns, by a load and three inserts.
///
/// # Safety
/// `x` has inputs for all of them.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn four(x: &[f32], columns: u64) -> __m128 {
    // SAFETY: the condition of this function.
    let at = |column: u16| unsafe { _mm_set_ss(*x.get_unchecked(usize::from(column))) };
    let low = _mm_insert_ps::<0x10>(at(columns as u16), at((columns >> 16) as u16));
    _mm_insert_ps::<0x30>(_mm_insert_ps::<0x20>(low, at((columns >> 32) as u16)), at((columns >> 48) as u16))
}

impl Avx512 {
    /// [`crate::kernel::sparse::Steps`] times `x`.
    pub(in crate::kernel) fn sparse_groups(self, groups: Steps<'_, f32>, x: &[f32], sums: &mut [Line<f32>]) {
        // SAFETY: `self` proves that the processor has these instructions.
        unsafe { sparse_groups(groups, x, sums) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn sparse_groups(groups: Steps<'_, f32>, x: &[f32], sums: &mut [Line<f32>]) {
    assert_eq!(x.len(), groups.inputs, "length of the input");
    let (mut columns, mut values) = (groups.columns, groups.values);
    for (&steps, sums) in groups.steps.iter().zip(sums) {
        let (these_columns, more_columns) = columns.split_at(steps as usize);
        let (these_values, more_values) = values.split_at(steps as usize);
        let mut sum = _mm512_setzero_ps();
        for (columns, values) in these_columns.iter().zip(these_values) {
            let (columns, _) = columns.as_chunks::<4>();
            // SAFETY: the columns of groups are below their inputs, of which there are as many as `x` is long.
            let four = |i: usize| unsafe { four(x, four_columns(&columns[i])) };
            let low = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(four(0)), four(1));
            let high = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(four(2)), four(3));
            let x = _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high);
            sum = _mm512_fmadd_ps(load(values), x, sum);
        }
        // SAFETY: sixteen numbers to write, on a cache line.
        unsafe { _mm512_store_ps(sums.0.as_mut_ptr(), sum) };
        (columns, values) = (more_columns, more_values);
    }
}

impl Avx512 {
    /// Adds to the sums of many rows what a cell has for its inputs.
    pub(in crate::kernel) fn sparse_many<const V: usize>(
        self,
        cell: Cell<'_, f32>,
        x: &[[Line<f32>; V]],
        sums: &mut [[Line<f32>; V]],
    ) {
        // SAFETY: `self` proves that the processor has these instructions.
        unsafe { sparse_many(cell, x, sums) }
    }
}

/// Four weights are loaded at once, and each is spread by a shuffle: loads are what this runs out of.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn sparse_many<const V: usize>(cell: Cell<'_, f32>, x: &[[Line<f32>; V]], sums: &mut [[Line<f32>; V]]) {
    assert_eq!(x.len(), cell.inputs(), "lanes of all inputs");
    let step = |sum: &mut [__m512; V], column: u64, weight: __m512| {
        // SAFETY: columns of a cell are below its inputs, of which there are as many as `x`.
        let x = unsafe { x.get_unchecked(column as u16 as usize) };
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum = _mm512_fmadd_ps(weight, load(x), *sum);
        }
    };
    for part in cell {
        let (columns, values) = part.entries();
        let (column_fours, last_columns) = columns.as_chunks::<4>();
        let (value_fours, last_values) = values.as_chunks::<4>();
        let sums = &mut sums[part.row];
        let (mut even, mut odd) = ([_mm512_setzero_ps(); V], [_mm512_setzero_ps(); V]);
        for (even, sum) in even.iter_mut().zip(&*sums) {
            *even = load(sum);
        }
        for (columns, values) in column_fours.iter().zip(value_fours) {
            // SAFETY: eight bytes to read, wherever they stand.
            let columns = unsafe { columns.as_ptr().cast::<u64>().read_unaligned() };
            // SAFETY: four numbers to read.
            let weights = _mm512_broadcast_f32x4(unsafe { _mm_loadu_ps(values.as_ptr()) });
            step(&mut even, columns, _mm512_shuffle_ps::<0x00>(weights, weights));
            step(&mut odd, columns >> 16, _mm512_shuffle_ps::<0x55>(weights, weights));
            step(&mut even, columns >> 32, _mm512_shuffle_ps::<0xaa>(weights, weights));
            step(&mut odd, columns >> 48, _mm512_shuffle_ps::<0xff>(weights, weights));
        }
        for (i, (&column, &value)) in last_columns.iter().zip(last_values).enumerate() {
            let weight = _mm512_set1_ps(value);
            if i == 1 {
                step(&mut odd, column.into(), weight);
            } else {
                step(&mut even, column.into(), weight);
            }
        }
        for (sum, (even, odd)) in sums.iter_mut().zip(even.into_iter().zip(odd)) {
            // SAFETY: sixteen numbers to write, on a cache line.
            unsafe { _mm512_store_ps(sum.0.as_mut_ptr(), _mm512_add_ps(even, odd)) };
        }
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
