//! Matrices seen through slices: rows and columns a fixed stride apart.
//!
//! [`Matrix`] reads, with any strides, so that a transpose is a swap of two numbers. [`MatrixMut`]
//! writes, with contiguous rows, and can be split by rows or by columns into parts that different
//! threads fill: the element `[i, j]` stands at `i * stride + j`, and two parts share none.

use std::marker::PhantomData;
use std::ops::Range;

use super::stream::fetch;

/// A result of fewer bytes stays in the second-level cache.
const CACHE_BYTES: usize = 512 * 1024;

/// A matrix to read: element `[i, j]` is `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A row-major matrix without gaps.
    ///
    /// # Panics
    /// Unless `data` has `rows * columns` elements.
    pub fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(columns), "elements of a {rows} x {columns} matrix");
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// A matrix with any strides.
    ///
    /// # Panics
    /// Unless the last element lies inside `data`.
    pub fn strided(
        data: &'a [T],
        (rows, columns): (usize, usize),
        (row_stride, column_stride): (usize, usize),
    ) -> Self {
        let end = extent(rows, columns, row_stride, column_stride);
        assert!(end.is_some_and(|end| end <= data.len()), "a {rows} x {columns} matrix leaves its slice");
        Self { data, rows, columns, row_stride, column_stride }
    }

    /// The same elements with rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The rows `first..first + count`.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn row_range(self, first: usize, count: usize) -> Self {
        assert!(first <= self.rows && count <= self.rows - first, "rows {first} + {count} of {}", self.rows);
        let data = if count == 0 || self.columns == 0 { &[] } else { &self.data[first * self.row_stride..] };
        Self { data, rows: count, ..self }
    }

    /// The columns `first..first + count`.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn column_range(self, first: usize, count: usize) -> Self {
        self.transposed().row_range(first, count).transposed()
    }

    pub(super) fn data(&self) -> &'a [T] {
        self.data
    }

    pub(super) fn row_stride(&self) -> usize {
        self.row_stride
    }

    pub(super) fn column_stride(&self) -> usize {
        self.column_stride
    }

    /// Row `i` where rows are contiguous.
    pub(super) fn contiguous_row(&self, i: usize) -> Option<&'a [T]> {
        (self.column_stride == 1 || self.columns <= 1).then(|| {
            assert!(i < self.rows, "row {i} of {}", self.rows);
            if self.columns == 0 { &[] } else { &self.data[i * self.row_stride..][..self.columns] }
        })
    }

    /// The elements of row `i` from column `from` on, however they are laid out.
    pub(super) fn row(&self, i: usize) -> impl Iterator<Item = &'a T> + use<'a, T> {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        let data = if self.columns == 0 { &[] } else { &self.data[i * self.row_stride..] };
        data.iter().step_by(self.column_stride.max(1)).take(self.columns)
    }
}

/// A matrix to write: contiguous rows, `stride` elements apart.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    /// Invariant: the elements `i * stride + j` from here on, for `i < rows` and `j < columns`, are
    /// valid and borrowed by this value alone, for `'a`.
    data: *mut T,
    rows: usize,
    columns: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a `MatrixMut` is as exclusive as the `&mut [T]` rows that it stands for (see `data`).
unsafe impl<T: Send> Send for MatrixMut<'_, T> {}

impl<'a, T> MatrixMut<'a, T> {
    /// A row-major matrix without gaps.
    ///
    /// # Panics
    /// Unless `data` has `rows * columns` elements.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(columns), "elements of a {rows} x {columns} matrix");
        Self { data: data.as_mut_ptr(), rows, columns, stride: columns, borrow: PhantomData }
    }

    /// A matrix whose rows stand `stride >= columns` elements apart.
    ///
    /// # Panics
    /// Unless rows are disjoint and the last element lies inside `data`.
    pub fn strided(data: &'a mut [T], (rows, columns): (usize, usize), stride: usize) -> Self {
        let end = extent(rows, columns, stride, 1);
        assert!(stride >= columns || rows <= 1, "rows of {columns} elements, {stride} apart, overlap");
        assert!(end.is_some_and(|end| end <= data.len()), "a {rows} x {columns} matrix leaves its slice");
        Self { data: data.as_mut_ptr(), rows, columns, stride, borrow: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Row `i`.
    ///
    /// # Panics
    /// Unless `i < rows`.
    #[inline]
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        if self.columns == 0 {
            return &mut [];
        }
        // SAFETY: `i < rows`, so the invariant of `data` says that the row starts inside one allocation.
        let start = unsafe { self.data.add(i * self.stride) };
        // SAFETY: the invariant of `data`: these `columns` elements are valid and borrowed by `self` alone.
        unsafe { std::slice::from_raw_parts_mut(start, self.columns) }
    }

    /// Asks for the `columns` of some rows that will be written soon, where the whole does not fit into the second-level cache:
    /// stores would wait for their lines one after the other.
    #[inline(always)]
    pub(super) fn fetch(&mut self, rows: Range<usize>, columns: Range<usize>) {
        if self.rows * self.columns * size_of::<T>() < CACHE_BYTES {
            return;
        }
        for row in rows {
            fetch(&self.row_mut(row)[columns.clone()]);
        }
    }

    /// The rows before `at`, and the others.
    ///
    /// # Panics
    /// Unless `at <= rows`.
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        assert!(at <= self.rows, "row {at} of {}", self.rows);
        let rest = self.rows - at;
        let start = if rest == 0 || self.columns == 0 {
            self.data
        } else {
            // SAFETY: `at < rows`, so the invariant of `data` says that row `at` starts inside.
            unsafe { self.data.add(at * self.stride) }
        };
        (Self { rows: at, ..self }, Self { data: start, rows: rest, ..self })
    }

    /// The columns before `at`, and the others.
    ///
    /// # Panics
    /// Unless `at <= columns`.
    pub fn split_columns(self, at: usize) -> (Self, Self) {
        assert!(at <= self.columns, "column {at} of {}", self.columns);
        let start = if self.rows == 0 {
            self.data
        } else {
            // SAFETY: `at <= columns`, and row 0 exists: at most the end of its elements.
            unsafe { self.data.add(at) }
        };
        let rest = self.columns - at;
        (Self { columns: at, ..self }, Self { data: start, columns: rest, ..self })
    }

    /// The same matrix for a shorter time.
    pub fn reborrow(&mut self) -> MatrixMut<'_, T> {
        MatrixMut {
            data: self.data,
            rows: self.rows,
            columns: self.columns,
            stride: self.stride,
            borrow: PhantomData,
        }
    }
}

/// One past the index of the last element, if that is a number.
fn extent(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> Option<usize> {
    if rows == 0 || columns == 0 {
        return Some(0);
    }
    let down = (rows - 1).checked_mul(row_stride)?;
    let right = (columns - 1).checked_mul(column_stride)?;
    down.checked_add(right)?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transpose_reads_the_same_elements() {
        let data = [1, 2, 3, 4, 5, 6];
        let matrix = Matrix::new(&data, 2, 3).transposed();
        assert_eq!(matrix.row(1).copied().collect::<Vec<_>>(), [2, 5]);
        assert!(matrix.contiguous_row(0).is_none());
    }

    #[test]
    fn parts_cover_every_element_once() {
        let mut data = vec![0; 35];
        let (top, bottom) = MatrixMut::strided(&mut data, (5, 6), 7).split_rows(2);
        let (left, right) = bottom.split_columns(4);
        let (all, none) = right.split_columns(2);
        for (mut part, mark) in [(top, 1), (left, 2), (all, 3), (none, 9)] {
            for i in 0..part.rows() {
                part.row_mut(i).iter_mut().for_each(|x| *x += mark);
            }
        }
        let row = |i: usize| data[7 * i..7 * i + 7].to_vec();
        assert_eq!(row(1), [1, 1, 1, 1, 1, 1, 0]);
        assert_eq!(row(4), [2, 2, 2, 2, 3, 3, 0]);
    }

    #[test]
    #[should_panic(expected = "leaves its slice")]
    fn refuses_strides_that_leave_the_slice() {
        Matrix::strided(&[0; 10], (2, 3), (8, 1));
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn refuses_rows_that_overlap() {
        MatrixMut::strided(&mut [0; 10], (2, 3), 2);
    }
}
