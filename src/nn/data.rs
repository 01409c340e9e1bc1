//! Examples to learn from: rows of inputs with a label or a vector of target values each.
//!
//! A batch is gathered into one reused buffer. The order of rows comes from a Fisher-Yates shuffle written here, so that
//! a seed means the same order whatever version of the random crate is in use.

use ndarray::{Array2, ArrayView2, Axis, s};
use rand::{Rng, SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::error::{Error, Result};
use crate::float::{Float, check_finite, elements, elements_mut};
use crate::kernel::fetch;

/// Rows that are under way from memory while one is copied.
const AHEAD: usize = 2;

/// What the network should answer.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Targets<F> {
    /// A class for each row.
    Labels(Vec<usize>),
    /// Values `[rows, outputs]`.
    Values(Array2<F>),
}

/// Inputs `[rows, features]`, all finite, with a target for each row; at least one row.
///
/// ```
/// use ndarray::array;
/// use trimnet::nn::data::Dataset;
/// let xor = Dataset::classification(array![[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], vec![0, 1, 1, 0])?;
/// let (train, test) = xor.split(0.25, 7)?;
/// assert_eq!((train.rows(), test.rows()), (3, 1));
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw<F>"))]
#[cfg_attr(feature = "serde", serde(bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned"))]
pub struct Dataset<F> {
    inputs: Array2<F>,
    targets: Targets<F>,
}

impl<F: Float> Dataset<F> {
    /// Rows of `inputs` `[rows, features]` with one class each.
    ///
    /// # Errors
    /// [`Error::Empty`] without rows or features, [`Error::Shape`] for another number of labels, and
    /// [`Error::NotFinite`] for NaN or infinity.
    pub fn classification(inputs: Array2<F>, labels: Vec<usize>) -> Result<Self> {
        Self::new(inputs, Targets::Labels(labels))
    }

    /// Rows of `inputs` `[rows, features]` with `values` `[rows, outputs]`.
    ///
    /// # Errors
    /// As [`classification`](Self::classification), for the values too.
    pub fn regression(inputs: Array2<F>, values: Array2<F>) -> Result<Self> {
        Self::new(inputs, Targets::Values(values))
    }

    fn new(inputs: Array2<F>, targets: Targets<F>) -> Result<Self> {
        if inputs.is_empty() {
            return Err(Error::Empty { what: "inputs" });
        }
        check_finite("inputs", &inputs.view())?;
        let inputs = standard(inputs);
        let targets = match targets {
            Targets::Labels(labels) if labels.len() != inputs.nrows() => {
                return Err(Error::Shape {
                    what: "labels",
                    actual: vec![labels.len()],
                    expected: vec![inputs.nrows()],
                });
            }
            Targets::Values(values) if values.nrows() != inputs.nrows() => {
                let (actual, expected) = (values.shape().to_vec(), vec![inputs.nrows(), values.ncols()]);
                return Err(Error::Shape { what: "target values", actual, expected });
            }
            Targets::Values(values) if values.is_empty() => {
                return Err(Error::Empty { what: "target values" });
            }
            Targets::Values(values) => {
                check_finite("target values", &values.view())?;
                Targets::Values(standard(values))
            }
            labels => labels,
        };
        Ok(Self { inputs, targets })
    }

    /// Number of rows, at least 1.
    pub fn rows(&self) -> usize {
        self.inputs.nrows()
    }

    /// Inputs of a row.
    pub fn features(&self) -> usize {
        self.inputs.ncols()
    }

    /// Inputs `[rows, features]`.
    pub fn inputs(&self) -> ArrayView2<'_, F> {
        self.inputs.view()
    }

    /// What the network should answer.
    pub fn targets(&self) -> TargetsView<'_, F> {
        match &self.targets {
            Targets::Labels(labels) => TargetsView::Labels(labels),
            Targets::Values(values) => TargetsView::Values(values.view()),
        }
    }

    /// The labels, unless this is a regression.
    pub fn labels(&self) -> Option<&[usize]> {
        match &self.targets {
            Targets::Labels(labels) => Some(labels),
            Targets::Values(_) => None,
        }
    }

    /// These rows, in this order; a row may be taken more than once.
    ///
    /// # Errors
    /// [`Error::Empty`] for no rows, [`Error::OutOfRange`] for a row that is not there.
    pub fn select(&self, rows: &[usize]) -> Result<Self> {
        if rows.is_empty() {
            return Err(Error::Empty { what: "rows" });
        }
        if let Some(&row) = rows.iter().find(|&&row| row >= self.rows()) {
            return Err(Error::OutOfRange { name: "row", value: row as f64, range: "0 <= row < rows" });
        }
        let targets = match &self.targets {
            Targets::Labels(labels) => {
                Targets::Labels(rows.iter().filter_map(|&row| labels.get(row).copied()).collect())
            }
            Targets::Values(values) => Targets::Values(values.select(Axis(0), rows)),
        };
        Ok(Self { inputs: self.inputs.select(Axis(0), rows), targets })
    }

    /// Splits at random into the rest and a held-out part of `fraction` of the rows (rounded half to even).
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 < fraction < 1`, [`Error::Empty`] if a part would have no row.
    pub fn split(&self, fraction: f64, seed: u64) -> Result<(Self, Self)> {
        self.split_in_order(fraction, &shuffled(self.rows(), seed))
    }

    /// As [`split`](Self::split), with the held-out share of every class within one row of `fraction`.
    ///
    /// # Errors
    /// As [`split`](Self::split), and [`Error::Unsupported`] for a regression.
    pub fn split_stratified(&self, fraction: f64, seed: u64) -> Result<(Self, Self)> {
        let Targets::Labels(labels) = &self.targets else {
            return Err(Error::Unsupported {
                what: "stratified split",
                reason: "a regression has no classes; use split".to_owned(),
            });
        };
        let mut order = shuffled(self.rows(), seed);
        order.sort_by_key(|&row| labels.get(row));
        self.split_in_order(fraction, &order)
    }

    /// Holds out evenly spaced rows of `order`: of any run of m rows, `fraction * m` within one.
    fn split_in_order(&self, fraction: f64, order: &[usize]) -> Result<(Self, Self)> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(Error::OutOfRange { name: "fraction", value: fraction, range: "0 < fraction < 1" });
        }
        let held_out_of = |rows: usize| (rows as f64 * fraction).round_ties_even();
        let (held_out, rest): (Vec<_>, Vec<_>) =
            order.iter().enumerate().partition(|&(i, _)| held_out_of(i + 1) > held_out_of(i));
        let rows = |part: Vec<(usize, &usize)>| part.into_iter().map(|(_, &row)| row).collect::<Vec<_>>();
        Ok((self.select(&rows(rest))?, self.select(&rows(held_out))?))
    }

    /// Batches of about `size` rows (see [`Batches`]), in the order of the rows until [`Batches::shuffle`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a size of 0.
    pub fn batches(&self, size: usize) -> Result<Batches<'_, F>> {
        if size == 0 {
            return Err(Error::OutOfRange { name: "batch size", value: 0.0, range: "batch size >= 1" });
        }
        let count = count(self.rows(), size);
        let capacity = self.rows().div_ceil(count);
        Ok(Batches {
            data: self,
            count,
            order: (0..self.rows()).collect(),
            batch: 0,
            next: 0,
            inputs: Array2::zeros((capacity, self.features())),
            targets: match &self.targets {
                Targets::Labels(_) => Targets::Labels(Vec::with_capacity(capacity)),
                Targets::Values(values) => Targets::Values(Array2::zeros((capacity, values.ncols()))),
            },
        })
    }
}

/// The wire form of [`Dataset`], checked on the way in.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(bound = "F: serde::de::DeserializeOwned")]
struct Raw<F> {
    inputs: Array2<F>,
    targets: Targets<F>,
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<Raw<F>> for Dataset<F> {
    type Error = Error;

    fn try_from(raw: Raw<F>) -> Result<Self> {
        Self::new(raw.inputs, raw.targets)
    }
}

/// Borrowed [`Targets`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TargetsView<'a, F> {
    /// A class for each row.
    Labels(&'a [usize]),
    /// Values `[rows, outputs]`.
    Values(ArrayView2<'a, F>),
}

/// Some rows of a [`Dataset`], gathered.
#[derive(Clone, Debug)]
pub struct Batch<'a, F> {
    /// Which rows of the data set, in this order.
    pub rows: &'a [usize],
    /// Inputs `[batch, features]`.
    pub inputs: ArrayView2<'a, F>,
    /// What the network should answer.
    pub targets: TargetsView<'a, F>,
}

/// Walks through a data set batch by batch; a lending iterator, because all batches share one buffer.
///
/// ```text
/// batches of an epoch = max(1, rows / size, rounded to the nearest, halves down)
/// ```
///
/// Their sizes differ by at most one row, and lie between 3/4 and 3/2 of the size that was asked for (a data set that is
/// smaller is one batch): there is no small rest at the end. A rest of a few rows would be a full step in the direction of
/// a few rows, and ruins training with batch norm; of a single row, batch norm could take no variance at all.
#[derive(Clone, Debug)]
pub struct Batches<'d, F> {
    data: &'d Dataset<F>,
    count: usize,
    order: Vec<usize>,
    batch: usize,
    next: usize,
    inputs: Array2<F>,
    targets: Targets<F>,
}

impl<F: Float> Batches<'_, F> {
    /// Number of batches of an epoch.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Starts over in a new random order.
    pub fn shuffle(&mut self, rng: &mut dyn Rng) {
        shuffle(&mut self.order, rng);
        (self.batch, self.next) = (0, 0);
    }

    /// The next batch, or `None` at the end of the epoch.
    pub fn next_batch(&mut self) -> Option<Batch<'_, F>> {
        if self.batch == self.count {
            return None;
        }
        // The first batches take one more, as many as there are rows over.
        let (size, over) = (self.order.len() / self.count, self.order.len() % self.count);
        let take = size + usize::from(self.batch < over);
        let rows = self.order.get(self.next..self.next + take)?;
        self.next += take;
        self.batch += 1;
        gather(&self.data.inputs, rows, &mut self.inputs);
        let targets = match (&self.data.targets, &mut self.targets) {
            (Targets::Labels(from), Targets::Labels(to)) => {
                to.clear();
                to.extend(rows.iter().filter_map(|&row| from.get(row)));
                TargetsView::Labels(to)
            }
            (Targets::Values(from), Targets::Values(to)) => {
                gather(from, rows, to);
                TargetsView::Values(to.slice(s![..take, ..]))
            }
            _ => return None,
        };
        Some(Batch { rows, inputs: self.inputs.slice(s![..take, ..]), targets })
    }
}

/// Batches of about `size` rows in an epoch.
pub(super) fn count(rows: usize, size: usize) -> usize {
    let size = size.max(1);
    let (full, rest) = (rows / size, rows % size);
    // Halves go down, so that three rows in batches of two are one batch of three, not of two and one.
    (full + usize::from(rest > size - rest)).max(1)
}

/// Copies `rows` of `from` into the first rows of `to`, both row-major.
fn gather<F: Float>(from: &Array2<F>, rows: &[usize], to: &mut Array2<F>) {
    let width = from.ncols().max(1);
    let from = |row: usize| elements(from).get(row * width..(row + 1) * width).unwrap_or_default();
    for (i, (&row, to)) in rows.iter().zip(elements_mut(to).chunks_exact_mut(width)).enumerate() {
        // Rows in a random order are what no processor foresees.
        if let Some(&ahead) = rows.get(i + AHEAD) {
            fetch(from(ahead));
        }
        to.copy_from_slice(from(row));
    }
}

fn standard<F: Float>(x: Array2<F>) -> Array2<F> {
    if x.is_standard_layout() { x } else { x.as_standard_layout().into_owned() }
}

/// `0..n` in a random order.
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    shuffle(&mut order, &mut Xoshiro256PlusPlus::seed_from_u64(seed));
    order
}

/// Fisher-Yates. The index below `n` is the upper half of `random * n`; its bias of `n / 2^64` does not matter here.
fn shuffle(order: &mut [usize], rng: &mut dyn Rng) {
    for i in (1..order.len()).rev() {
        let below = i as u128 + 1;
        let j = ((u128::from(rng.next_u64()) * below) >> 64) as usize;
        order.swap(i, j);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array, array};

    fn counting(rows: usize) -> Dataset<f32> {
        let inputs = Array::from_shape_fn((rows, 2), |(row, column)| (10 * row + column) as f32);
        Dataset::classification(inputs, (0..rows).map(|row| row % 3).collect()).unwrap()
    }

    #[test]
    fn an_epoch_visits_every_row_once_with_its_own_label() {
        let data = counting(23);
        let mut batches = data.batches(5).unwrap();
        batches.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(1));
        let mut seen = Vec::new();
        let mut count = 0;
        while let Some(batch) = batches.next_batch() {
            let TargetsView::Labels(labels) = batch.targets else { panic!("labels") };
            for ((&row, inputs), &label) in batch.rows.iter().zip(batch.inputs.rows()).zip(labels) {
                assert_eq!(inputs, array![(10 * row) as f32, (10 * row + 1) as f32]);
                assert_eq!(label, row % 3);
                seen.push(row);
            }
            count += 1;
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..23).collect::<Vec<_>>());
        assert_eq!(count, 5);
    }

    #[test]
    fn batches_are_equal_within_one_row_and_about_as_large_as_asked() {
        for (rows, size, expected) in [
            (12, 4, vec![4, 4, 4]),
            (11, 5, vec![6, 5]),
            (13, 5, vec![5, 4, 4]),
            (1, 5, vec![1]),
            (7, 5, vec![7]),
            (3, 1, vec![1, 1, 1]),
            (3, 2, vec![3]),
        ] {
            assert_eq!(sizes(rows, size), expected, "{rows} rows in batches of {size}");
        }
        for (rows, size) in (1..60).flat_map(|rows| (2..20).map(move |size| (rows, size))) {
            let sizes = sizes(rows, size);
            assert_eq!(sizes.iter().sum::<usize>(), rows);
            let (least, most) = (*sizes.iter().min().unwrap(), *sizes.iter().max().unwrap());
            assert!(most - least <= 1 && 2 * most <= 3 * size, "{rows} {size} {sizes:?}");
            assert!(4 * least >= 3 * size - 3 || sizes.len() == 1, "{rows} {size} {sizes:?}");
            assert!(least > 1 || rows == 1, "{rows} {size} {sizes:?}");
        }
    }

    fn sizes(rows: usize, size: usize) -> Vec<usize> {
        let data = counting(rows);
        let mut batches = data.batches(size).unwrap();
        let mut sizes = Vec::new();
        while let Some(batch) = batches.next_batch() {
            sizes.push(batch.inputs.nrows());
        }
        assert_eq!(batches.count(), sizes.len());
        sizes
    }

    #[test]
    fn a_seed_means_the_same_order_for_ever() {
        assert_eq!(shuffled(10, 1), [4, 7, 9, 3, 2, 1, 5, 0, 6, 8]);
    }

    #[test]
    fn a_split_is_a_partition_of_the_promised_size() {
        let data = counting(101);
        let (train, test) = data.split(0.2, 3).unwrap();
        assert_eq!((train.rows(), test.rows()), (81, 20));
        let mut rows: Vec<_> = train
            .inputs()
            .column(0)
            .iter()
            .chain(test.inputs().column(0))
            .map(|&x| x as usize / 10)
            .collect();
        rows.sort_unstable();
        assert_eq!(rows, (0..101).collect::<Vec<_>>());
    }

    #[test]
    fn a_stratified_split_keeps_the_share_of_every_class() {
        let labels: Vec<usize> = (0..200).map(|row| if row < 170 { 0 } else { 1 + row % 2 }).collect();
        let data = Dataset::classification(Array2::<f64>::zeros((200, 1)), labels).unwrap();
        let (_, test) = data.split_stratified(0.2, 5).unwrap();
        let of = |class| test.labels().unwrap().iter().filter(|&&label| label == class).count();
        assert_eq!((of(0), of(1), of(2)), (34, 3, 3));
    }

    #[test]
    fn refuses_splits_that_leave_a_part_empty() {
        let data = counting(4);
        for fraction in [0.0, 1.0, -0.1, f64::NAN] {
            assert!(matches!(data.split(fraction, 0), Err(Error::OutOfRange { name: "fraction", .. })));
        }
        assert!(matches!(data.split(0.01, 0), Err(Error::Empty { .. })));
        assert!(matches!(data.split(0.99, 0), Err(Error::Empty { .. })));
    }

    #[test]
    fn refuses_empty_unequal_and_infinite_data() {
        assert!(matches!(
            Dataset::classification(Array2::<f32>::zeros((0, 3)), vec![]),
            Err(Error::Empty { .. })
        ));
        assert!(matches!(Dataset::classification(array![[1.0_f32]], vec![0, 1]), Err(Error::Shape { .. })));
        assert!(matches!(Dataset::classification(array![[f32::NAN]], vec![0]), Err(Error::NotFinite { .. })));
        let infinite = Dataset::regression(array![[1.0]], array![[f64::INFINITY]]);
        assert!(matches!(infinite, Err(Error::NotFinite { what: "target values", .. })));
        assert!(matches!(
            Dataset::regression(array![[1.0]], Array2::zeros((1, 0))),
            Err(Error::Empty { .. })
        ));
        assert!(matches!(counting(3).select(&[3]), Err(Error::OutOfRange { .. })));
        assert!(matches!(counting(3).batches(0), Err(Error::OutOfRange { .. })));
    }
}
