//! Sparse products of codes.

use std::arch::x86_64::*;

use super::{Avx2, Avx512};
use crate::kernel::pack::Rows;
use crate::kernel::sparse::{
    CODE_LANES, Cell, CodeLine, CodeSlice, CodeStep, CodeSums, WINDOW8, code_slice, place,
};

/// Proof that this processor has AVX-512 VBMI beside the other parts.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernel) struct Vbmi(());

impl Avx512 {
    /// Look-ups of bytes, which not every processor with the other parts has.
    pub(in crate::kernel) fn vbmi(self) -> Option<Vbmi> {
        is_x86_feature_detected!("avx512vbmi").then_some(Vbmi(()))
    }

    /// Packs 64 inputs at a time.
    pub(in crate::kernel) fn gather_codes(
        self,
        codes: &[u8],
        inputs: usize,
        flip: u8,
        lanes: &mut [CodeLine],
    ) {
        let rows = codes.len() / inputs.max(1);
        // Words of four codes, in parts that fit the stack.
        const PART: usize = 64;
        let whole = inputs / PART * PART;
        let mut words = [[0u32; CODE_LANES]; PART / 4];
        for (at, lanes) in (0..whole).step_by(PART).zip(lanes.chunks_exact_mut(PART)) {
            let from = Rows { data: &codes[at..], stride: inputs, length: PART };
            self.pack_words(from, rows, u32::from(flip) * 0x0101_0101, words.as_flattened_mut(), CODE_LANES);
            // SAFETY: `self` proves the instructions.
            unsafe { spread_codes(&words, lanes) };
        }
        for (b, codes) in codes.chunks_exact(inputs.max(1)).enumerate() {
            for (line, &code) in lanes[whole..].iter_mut().zip(&codes[whole..]) {
                line.0[place(b)] = i16::from(code ^ flip);
            }
        }
    }
}

/// Four lines from each 32 words.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn spread_codes(words: &[[u32; CODE_LANES]], lanes: &mut [CodeLine]) {
    let byte = _mm512_set1_epi32(0xff);
    for (words, lines) in words.iter().zip(lanes.as_chunks_mut::<4>().0) {
        // SAFETY: the first and the second sixteen of 32 words.
        let (a, b) = unsafe {
            (_mm512_loadu_epi32(words.as_ptr().cast()), _mm512_loadu_epi32(words[16..].as_ptr().cast()))
        };
        let line = |a, b| _mm512_packus_epi32(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte));
        let all = [
            line(a, b),
            line(_mm512_srli_epi32::<8>(a), _mm512_srli_epi32::<8>(b)),
            line(_mm512_srli_epi32::<16>(a), _mm512_srli_epi32::<16>(b)),
            line(_mm512_srli_epi32::<24>(a), _mm512_srli_epi32::<24>(b)),
        ];
        for (to, line) in lines.iter_mut().zip(all) {
            // SAFETY: a line is one aligned vector.
            unsafe { _mm512_store_si512(to.0.as_mut_ptr().cast(), line) };
        }
    }
}

/// Many rows: `$vectors` vectors hold the 32 numbers of a line; two lines are interleaved, so that neighbours are the two
/// factors of one row of the batch.
macro_rules! codes {
    ($cpu:ident, $features:literal, $vector:ty, $vectors:literal, $zero:ident, $set:ident, $load:ident, $loadu:ident, $store:ident,
     $low:ident, $high:ident, $add:ident, $multiply:expr) => {
        impl $cpu {
            /// See [`crate::kernel::sparse`]'s definition for many rows of codes.
            pub(in crate::kernel) fn sparse_codes(
                self,
                cell: Cell<'_, i16>,
                lanes: &[CodeLine],
                sums: &mut [CodeSums],
            ) {
                #[target_feature(enable = $features)]
                fn inner(cell: Cell<'_, i16>, lanes: &[CodeLine], sums: &mut [CodeSums]) {
                    assert_eq!(lanes.len(), cell.inputs(), "lanes of all inputs");
                    for part in cell {
                        let (columns, values) = part.entries();
                        let (column_fours, more_columns) = columns.as_chunks::<4>();
                        let (value_fours, more_values) = values.as_chunks::<4>();
                        let (column_pairs, last_column) = more_columns.as_chunks::<2>();
                        let (value_pairs, last_value) = more_values.as_chunks::<2>();
                        let sums = &mut sums[part.row];
                        let (mut even, mut odd) = ([[$zero(); 2]; $vectors], [[$zero(); 2]; $vectors]);
                        for (columns, values) in column_fours.iter().zip(value_fours) {
                            let [[a, b], [c, d]] = [[columns[0], columns[1]], [columns[2], columns[3]]];
                            step(&mut even, lanes, [a, b], [values[0], values[1]]);
                            step(&mut odd, lanes, [c, d], [values[2], values[3]]);
                        }
                        for (&columns, &values) in column_pairs.iter().zip(value_pairs) {
                            step(&mut even, lanes, columns, values);
                        }
                        if let (&[column], &[value]) = (last_column, last_value) {
                            step(&mut odd, lanes, [column; 2], [value, 0]);
                        }
                        for (v, (even, odd)) in even.into_iter().zip(odd).enumerate() {
                            for half in 0..2 {
                                let to = &mut sums[half * 16 + v * (16 / $vectors)..][..16 / $vectors];
                                // SAFETY: as many sums as a vector holds.
                                let before = unsafe { $loadu(to.as_ptr().cast()) };
                                let sum = $add(before, $add(even[half], odd[half]));
                                // SAFETY: as above.
                                unsafe { $store(to.as_mut_ptr().cast(), sum) };
                            }
                        }
                    }
                }

                /// The columns are below the number of `lanes`.
                #[inline]
                #[target_feature(enable = $features)]
                fn step(
                    sums: &mut [[$vector; 2]; $vectors],
                    lanes: &[CodeLine],
                    columns: [u16; 2],
                    weights: [i16; 2],
                ) {
                    let [p, q] = weights;
                    let weights = $set(i32::from(q) << 16 | (i32::from(p) & 0xffff));
                    // SAFETY: columns of a cell are below its inputs, of which `lanes` has lines.
                    let (a, b) = unsafe {
                        (
                            lanes.get_unchecked(usize::from(columns[0])),
                            lanes.get_unchecked(usize::from(columns[1])),
                        )
                    };
                    for (v, sums) in sums.iter_mut().enumerate() {
                        let at = v * (CODE_LANES / $vectors);
                        // SAFETY: an aligned vector of each line, which is `$vectors` of them.
                        let (a, b) = unsafe {
                            ($load(a.0.as_ptr().add(at).cast()), $load(b.0.as_ptr().add(at).cast()))
                        };
                        sums[0] = $multiply(sums[0], $low(a, b), weights);
                        sums[1] = $multiply(sums[1], $high(a, b), weights);
                    }
                }

                // SAFETY: `self` proves the instructions.
                unsafe { inner(cell, lanes, sums) }
            }
        }
    };
}

codes!(
    Avx2,
    "avx2,fma",
    __m256i,
    2,
    _mm256_setzero_si256,
    _mm256_set1_epi32,
    _mm256_load_si256,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_unpacklo_epi16,
    _mm256_unpackhi_epi16,
    _mm256_add_epi32,
    |sum, x, w| _mm256_add_epi32(sum, _mm256_madd_epi16(x, w))
);
codes!(
    Avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma",
    __m512i,
    1,
    _mm512_setzero_si512,
    _mm512_set1_epi32,
    _mm512_load_si512,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_unpacklo_epi16,
    _mm512_unpackhi_epi16,
    _mm512_add_epi32,
    |sum, x, w| _mm512_dpwssd_epi32(sum, x, w)
);

impl Vbmi {
    /// See [`code_slice`].
    pub(in crate::kernel) fn code_slice(self, slice: CodeSlice<'_>, x: &[u8], sums: &mut [i32; 16]) {
        macro_rules! by_steps {
            ($($steps:literal)*) => {
                match slice.steps {
                    // SAFETY: `self` proves the instructions.
                    $($steps => unsafe { code_slice_of::<$steps>(slice.places, x, sums) },)*
                    _ => code_slice(slice, x, sums),
                }
            };
        }
        by_steps!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma")]
fn code_slice_of<const K: usize>(places: &[CodeStep], x: &[u8], sums: &mut [i32; 16]) {
    let mut chains = [_mm512_setzero_si512(); K];
    for (places, x) in places.as_chunks::<K>().0.iter().zip(x.as_chunks::<WINDOW8>().0) {
        // SAFETY: the halves of 128 bytes.
        let (low, high) =
            unsafe { (_mm512_loadu_si512(x.as_ptr().cast()), _mm512_loadu_si512(x[64..].as_ptr().cast())) };
        for (chain, place) in chains.iter_mut().zip(places) {
            // SAFETY: 64 bytes, aligned.
            let indices = unsafe { _mm512_load_si512(place.indices.as_ptr().cast()) };
            // SAFETY: 64 bytes, aligned.
            let values = unsafe { _mm512_load_si512(place.values.as_ptr().cast()) };
            *chain = _mm512_dpbusd_epi32(*chain, _mm512_permutex2var_epi8(low, indices, high), values);
        }
    }
    // SAFETY: sixteen sums to read.
    let before = unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) };
    let sum = chains.iter().fold(before, |sum, &chain| _mm512_add_epi32(sum, chain));
    // SAFETY: sixteen sums to write.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum) };
}
