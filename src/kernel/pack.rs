//! Rows laid side by side: `into[k * width + i] = from[i, k]`, how every product wants its operands.

use super::Isa;
use super::matrix::Matrix;
use super::scalar;
use super::tiles::PANEL;

/// Elements that products pack: of 4 or 8 bytes, any bits of which are valid.
pub trait Plain: Copy {
    /// Packs at most a panel of rows that are contiguous each.
    fn pack_rows(isa: Isa, from: Matrix<'_, Self>, into: &mut [Self], width: usize);
}

macro_rules! plain {
    ($t:ty, $bits:ty, $pack:ident) => {
        impl Plain for $t {
            fn pack_rows(isa: Isa, from: Matrix<'_, Self>, into: &mut [Self], width: usize) {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(cpu) if !(from.rows() == width && width < 8) => {
                        let (rows, done) =
                            cpu.$pack(Rows::of(from), from.rows(), bits::<_, $bits>(into), width);
                        let below = from.row_range(rows, from.rows() - rows);
                        one_by_one(below, &mut into[rows..], width);
                        let right = from.row_range(0, rows).column_range(done, from.columns() - done);
                        one_by_one(right, &mut into[done * width..], width);
                    }
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(cpu) if from.rows() > 4 => {
                        cpu.$pack(Rows::of(from), from.rows(), 0, bits::<_, $bits>(into), width);
                    }
                    _ => few_rows(from, into, width),
                }
            }
        }
    };
}

plain!(f32, u32, pack_words);
plain!(i32, u32, pack_words);
plain!(f64, u64, pack_double_words);

/// Rows of bytes, `length` long and `stride` apart.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [u8],
    pub(super) stride: usize,
    pub(super) length: usize,
}

#[cfg(target_arch = "x86_64")]
impl<'a> Rows<'a> {
    /// The memory of a matrix with contiguous rows.
    fn of<T: Plain>(from: Matrix<'a, T>) -> Self {
        let (stride, length) = (size_of::<T>() * from.row_stride(), size_of::<T>() * from.columns());
        Self { data: bytes(from.data()), stride, length }
    }

    /// Row `i`.
    #[inline]
    pub(super) fn row(&self, i: usize) -> &'a [u8] {
        &self.data[i * self.stride..][..self.length]
    }
}

/// Integers that stand for the bits of numbers.
#[cfg(target_arch = "x86_64")]
trait Bits: Copy {}
#[cfg(target_arch = "x86_64")]
impl Bits for u32 {}
#[cfg(target_arch = "x86_64")]
impl Bits for u64 {}

/// The bits of numbers.
#[cfg(target_arch = "x86_64")]
fn bits<T: Plain, B: Bits>(values: &mut [T]) -> &mut [B] {
    const { assert!(size_of::<T>() == size_of::<B>() && align_of::<T>() == align_of::<B>()) };
    // SAFETY: both types have the same size and alignment, and any bits are valid in both.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}

/// The memory of numbers.
#[cfg(target_arch = "x86_64")]
fn bytes<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: the implementors of `Plain` are numbers without padding, and every byte is a valid `u8`.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Packs rows of codes `[rows, inputs]` to `[inputs / 4][rows]`, zero padded, each code flipped by `flip`;
/// if `wide`, on AVX2, as 16-bit numbers, two words for four of them.
pub(super) fn pack_codes(isa: Isa, codes: &[u8], inputs: usize, flip: u32, wide: bool, packed: &mut [u32]) {
    if inputs == 0 {
        return;
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(cpu) if wide => cpu.pack_wide(codes, inputs, flip, packed.as_chunks_mut().0),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(cpu) if codes.len() == 8 * inputs => {
            let (_, done) =
                cpu.pack_words(Rows { data: codes, stride: inputs, length: inputs }, 8, packed, 8);
            if flip != 0 {
                packed[..done * 8].iter_mut().for_each(|word| *word ^= flip);
            }
            for (i, row) in codes.chunks_exact(inputs).enumerate() {
                if 4 * done < inputs {
                    let places = packed[done * 8 + i..].iter_mut().step_by(8);
                    scalar::int8::put(&row[4 * done..], flip, places);
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(cpu) if codes.len() > 4 * inputs => {
            let rows = codes.len() / inputs;
            cpu.pack_words(Rows { data: codes, stride: inputs, length: inputs }, rows, flip, packed, rows);
        }
        _ => {
            debug_assert!(!wide, "only AVX2 has wide codes");
            scalar::int8::pack(codes, inputs, flip, packed);
        }
    }
}

/// Packs all of `from`, at most a panel of rows, `width` elements apart for each column.
///
/// Elements of `into` beyond the rows of `from` are left alone.
#[inline(always)]
pub(super) fn pack<T: Plain>(isa: Isa, from: Matrix<'_, T>, into: &mut [T], width: usize) {
    let rows = from.rows();
    assert!(rows <= width && width <= PANEL, "{rows} rows packed {width} apart");
    assert_eq!(into.len(), from.columns() * width, "room for {rows} packed rows");
    if rows == 0 || from.columns() == 0 {
        return;
    }
    if rows == 1 && width == 1 && from.column_stride() == 1 {
        into.copy_from_slice(&from.data()[..from.columns()]);
    } else if from.row_stride() == 1 {
        copy_columns(from, into, width);
    } else if from.column_stride() == 1 {
        T::pack_rows(isa, from, into, width);
    } else {
        one_by_one(from, into, width);
    }
}

/// The definition.
fn one_by_one<T: Copy>(from: Matrix<'_, T>, into: &mut [T], width: usize) {
    if into.is_empty() {
        return;
    }
    for i in 0..from.rows() {
        for (into, &x) in into[i..].iter_mut().step_by(width).zip(from.row(i)) {
            *into = x;
        }
    }
}

/// The definition for tiles of few rows, all of them at once.
fn few_rows<T: Copy>(from: Matrix<'_, T>, into: &mut [T], width: usize) {
    fn interleave<T: Copy, const R: usize>(from: Matrix<'_, T>, into: &mut [T]) {
        let into = into.as_chunks_mut::<R>().0;
        let rows: [&[T]; R] = std::array::from_fn(|i| &from.row_range(i, 1).data()[..into.len()]);
        for (k, into) in into.iter_mut().enumerate() {
            for (into, row) in into.iter_mut().zip(rows) {
                *into = row[k];
            }
        }
    }
    match (from.rows() == width, width) {
        (true, 2) => interleave::<T, 2>(from, into),
        (true, 3) => interleave::<T, 3>(from, into),
        (true, 4) => interleave::<T, 4>(from, into),
        (true, 5) => interleave::<T, 5>(from, into),
        (true, 6) => interleave::<T, 6>(from, into),
        (true, 7) => interleave::<T, 7>(from, into),
        _ => one_by_one(from, into, width),
    }
}

/// For a transposed matrix: what stands side by side already.
fn copy_columns<T: Copy>(from: Matrix<'_, T>, into: &mut [T], width: usize) {
    fn copy<T: Copy, const R: usize>(from: Matrix<'_, T>, into: &mut [T], width: usize) {
        let columns = from.transposed();
        for (k, into) in into.chunks_exact_mut(width).enumerate() {
            if let (Some(into), Some(from)) =
                (into.first_chunk_mut::<R>(), columns.contiguous_row(k).and_then(<[T]>::first_chunk::<R>))
            {
                *into = *from;
            }
        }
    }
    macro_rules! lengths {
        ($($r:literal)*) => {
            match from.rows() {
                $($r => copy::<T, $r>(from, into, width),)*
                _ => one_by_one(from, into, width),
            }
        };
    }
    lengths!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 20 24 28 32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_packs_like_the_definition() {
        let numbers: Vec<f32> = (0..40 * 150).map(|i| i as f32).collect();
        let doubles: Vec<f64> = numbers.iter().map(|&x| f64::from(x)).collect();
        for isa in Isa::available() {
            for rows in 0..=32 {
                for columns in (0..=50).chain([63, 64, 65, 130]) {
                    for strides in [(150, 1), (1, 40), (150, 1)] {
                        let width = if columns % 2 == 0 { 32 } else { rows.max(1) };
                        let from = Matrix::strided(&numbers, (rows, columns), strides);
                        let mut expected = vec![-1.0; columns * width];
                        one_by_one(from, &mut expected, width);
                        let mut packed = vec![-1.0; columns * width];
                        pack(isa, from, &mut packed, width);
                        assert_eq!(packed, expected, "{isa} {rows} {columns} {strides:?}");
                        let mut packed = vec![-1.0; columns * width];
                        pack(isa, Matrix::strided(&doubles, (rows, columns), strides), &mut packed, width);
                        assert!(
                            packed.iter().zip(&expected).all(|(&x, &y)| x == f64::from(y)),
                            "{isa} {rows} {columns}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn every_set_packs_codes_like_the_definition() {
        let codes: Vec<u8> = (0..14 * 300).map(|i| (i * 7 + i / 256) as u8).collect();
        for isa in Isa::available() {
            for rows in 1..=14 {
                for inputs in (0..=70).chain([127, 128, 129, 300]) {
                    let depth = usize::div_ceil(inputs, 4);
                    let mut expected = vec![1; rows * depth];
                    scalar::int8::pack(&codes[..rows * inputs], inputs, 0x8080_8080, &mut expected);
                    let mut packed = vec![2; expected.len()];
                    pack_codes(isa, &codes[..rows * inputs], inputs, 0x8080_8080, false, &mut packed);
                    assert_eq!(packed, expected, "{isa} {rows} {inputs}");
                    if isa.name() != "avx2" {
                        continue;
                    }
                    let halves: Vec<u32> =
                        expected.into_iter().flat_map(u32::to_le_bytes).map(u32::from).collect();
                    let expected: Vec<u32> = halves.chunks(2).map(|two| two[0] | two[1] << 16).collect();
                    let mut packed = vec![2; expected.len()];
                    pack_codes(isa, &codes[..rows * inputs], inputs, 0x8080_8080, true, &mut packed);
                    assert_eq!(packed, expected, "{isa} {rows} {inputs}");
                }
            }
        }
    }
}
