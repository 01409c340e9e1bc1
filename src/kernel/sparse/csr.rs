//! Compressed rows: for each output, the columns and values of its weights that are not zero.

/// A column, stored as narrow as the number of inputs allows: index loads are what a sparse product spends its time on.
pub(in crate::kernel) trait Column: Copy + Send + Sync + 'static {
    /// The most inputs whose columns fit.
    const LIMIT: usize;
    fn new(column: usize) -> Self;
    fn get(self) -> usize;
}

macro_rules! column {
    ($t:ty) => {
        impl Column for $t {
            const LIMIT: usize = <$t>::MAX as usize;

            fn new(column: usize) -> Self {
                column as $t
            }

            #[inline(always)]
            fn get(self) -> usize {
                self as usize
            }
        }
    };
}

column!(u16);
column!(u32);

/// Invariant: `starts` has one entry more than there are rows, begins with 0, never falls, and ends with the number of `columns`
/// and `values`; every column is below `inputs`, and columns rise within a row.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::kernel) struct Csr<T, C> {
    inputs: usize,
    starts: Vec<usize>,
    columns: Vec<C>,
    values: Vec<T>,
}

impl<T: Copy + Default + PartialEq, C: Column> Csr<T, C> {
    /// Without rows.
    ///
    /// # Panics
    /// If the columns of so many inputs do not fit their type.
    pub(super) fn new(inputs: usize) -> Self {
        assert!(inputs <= C::LIMIT, "{inputs} inputs, at most {} fit", C::LIMIT);
        Self { inputs, starts: vec![0], columns: Vec::new(), values: Vec::new() }
    }

    /// Appends a row of `(column, value)`, of which zeros are left out.
    ///
    /// # Panics
    /// If a column is not below the number of inputs, or they do not rise.
    pub(super) fn push_row(&mut self, entries: impl Iterator<Item = (usize, T)>) {
        let mut least = 0;
        for (column, value) in entries.filter(|&(_, value)| value != T::default()) {
            assert!((least..self.inputs).contains(&column), "column {column} of {} inputs", self.inputs);
            least = column + 1;
            self.columns.push(C::new(column));
            self.values.push(value);
        }
        self.starts.push(self.values.len());
    }

    /// From row-major weights `[outputs, inputs]`.
    pub(super) fn from_dense(weights: &[T], outputs: usize, inputs: usize) -> Self {
        assert_eq!(Some(weights.len()), outputs.checked_mul(inputs), "weights of {outputs} x {inputs}");
        let mut all = Self::new(inputs);
        for i in 0..outputs {
            all.push_row(weights[i * inputs..(i + 1) * inputs].iter().copied().enumerate());
        }
        all
    }

    /// Row-major weights `[outputs, inputs]`.
    pub(super) fn to_dense(&self) -> Vec<T> {
        let mut all = vec![T::default(); self.outputs() * self.inputs];
        for (i, to) in all.chunks_exact_mut(self.inputs.max(1)).enumerate() {
            let (columns, values) = self.row(i);
            columns.iter().zip(values).for_each(|(column, &value)| to[column.get()] = value);
        }
        all
    }

    pub(in crate::kernel) fn outputs(&self) -> usize {
        self.starts.len() - 1
    }

    pub(in crate::kernel) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn nonzero(&self) -> usize {
        self.values.len()
    }

    pub(super) fn size_bytes(&self) -> usize {
        size_of_val(self.starts.as_slice())
            + size_of_val(self.columns.as_slice())
            + size_of_val(self.values.as_slice())
    }

    /// Columns, each below `inputs`, and values of row `i`, of equal lengths.
    ///
    /// # Panics
    /// Unless `i` is a row.
    #[inline(always)]
    pub(in crate::kernel) fn row(&self, i: usize) -> (&[C], &[T]) {
        let (start, end) = (self.starts[i], self.starts[i + 1]);
        debug_assert!(start <= end && end <= self.columns.len());
        // SAFETY: the invariant: starts never fall, and end with the number of columns.
        let columns = unsafe { self.columns.get_unchecked(start..end) };
        // SAFETY: as above; there are as many values as columns.
        let values = unsafe { self.values.get_unchecked(start..end) };
        (columns, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_not_zero() {
        let csr = Csr::<f32, u16>::from_dense(&[0.0, 1.0, 0.0, 0.0, -0.0, 0.0, 2.0, 3.0, 0.0], 3, 3);
        assert_eq!(csr.row(0), (&[1][..], &[1.0][..]));
        assert_eq!(csr.row(1), (&[][..], &[][..]));
        assert_eq!(csr.row(2), (&[0, 1][..], &[2.0, 3.0][..]));
        assert_eq!((csr.outputs(), csr.inputs(), csr.nonzero()), (3, 3, 3));
        assert_eq!(csr.to_dense(), [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 3.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "column 3 of 3 inputs")]
    fn refuses_a_column_outside() {
        Csr::<f32, u16>::new(3).push_row([(0, 1.0), (3, 1.0)].into_iter());
    }

    #[test]
    #[should_panic(expected = "column 1 of 3 inputs")]
    fn refuses_columns_out_of_order() {
        Csr::<f32, u16>::new(3).push_row([(1, 1.0), (1, 1.0)].into_iter());
    }
}
