//! Compressed rows: for each output, the columns and values of its weights that are not zero. What the layouts are made of.

/// The most inputs whose columns fit their type.
pub(super) const MOST_INPUTS: usize = u32::MAX as usize;

/// Of which zeros are left out.
pub(super) trait Number: Copy + Default + PartialEq {}

impl<T: Copy + Default + PartialEq> Number for T {}

/// Invariant: `starts` has one entry more than there are rows, begins with 0, never falls, and ends with the number of `columns`
/// and `values`; every column is below `inputs`, and columns rise within a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Csr<T> {
    inputs: usize,
    starts: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<T>,
}

impl<T: Number> Csr<T> {
    /// Without rows.
    ///
    /// # Panics
    /// If the columns of so many inputs do not fit their type.
    pub(super) fn new(inputs: usize) -> Self {
        assert!(inputs <= MOST_INPUTS, "{inputs} inputs, at most {MOST_INPUTS} fit");
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
            self.columns.push(column as u32);
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

    pub(super) fn outputs(&self) -> usize {
        self.starts.len() - 1
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn nonzero(&self) -> usize {
        self.values.len()
    }

    /// Columns, each below `inputs`, and values of row `i`, of equal lengths.
    ///
    /// # Panics
    /// Unless `i` is a row.
    pub(super) fn row(&self, i: usize) -> (&[u32], &[T]) {
        let entries = self.starts[i]..self.starts[i + 1];
        (&self.columns[entries.clone()], &self.values[entries])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_not_zero() {
        let csr = Csr::<f32>::from_dense(&[0.0, 1.0, 0.0, 0.0, -0.0, 0.0, 2.0, 3.0, 0.0], 3, 3);
        assert_eq!(csr.row(0), (&[1][..], &[1.0][..]));
        assert_eq!(csr.row(1), (&[][..], &[][..]));
        assert_eq!(csr.row(2), (&[0, 1][..], &[2.0, 3.0][..]));
        assert_eq!((csr.outputs(), csr.inputs(), csr.nonzero()), (3, 3, 3));
    }

    #[test]
    #[should_panic(expected = "column 3 of 3 inputs")]
    fn refuses_a_column_outside() {
        Csr::<f32>::new(3).push_row([(0, 1.0), (3, 1.0)].into_iter());
    }

    #[test]
    #[should_panic(expected = "column 1 of 3 inputs")]
    fn refuses_columns_out_of_order() {
        Csr::<f32>::new(3).push_row([(1, 1.0), (1, 1.0)].into_iter());
    }
}
