//! A tensor that stores its zeros as positions only: the others' values, and where they stand.
//!
//! ```text
//! values    the stored weights in row-major order, F::BYTES each
//! index     whichever takes fewest bytes for this tensor of n weights:
//!   bitmap  one bit per weight                             n / 8 bytes
//!   gaps    zeros before each stored weight, one byte      about one byte per stored weight
//!           each; 255 = 255 zeros and no weight yet
//!   gaps16  the same in two bytes; 65535 is the escape
//! ```
//!
//! For random zeros the bitmap is smallest below 88 % of zeros, gaps above, two-byte gaps above 99.7 %.
//! Row pointers are not stored: they follow from the positions, and [`to_rows`](SparseTensor::to_rows) makes
//! them for those who multiply.

use ndarray::{Array2, ArrayView, ArrayView2, ArrayViewMut, Dimension, Ix2};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::traits::Compressed;

use super::mask::Mask;
use super::positions::Positions;
use super::{as_matrix, bits};

/// How the positions are stored; see the [module](self).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SparseFormat {
    /// One bit per weight.
    Bitmap,
    /// One byte per stored weight: the zeros before it.
    Gaps,
    /// Two bytes per stored weight: the zeros before it.
    Gaps16,
}

/// A tensor without its zeros.
///
/// Made by the pruners, or from any tensor that has zeros:
///
/// ```
/// use ndarray::{Array2, array};
/// use trimnet::{Compressed, tensor::SparseTensor};
///
/// let mut weights = Array2::<f32>::zeros((300, 784));
/// weights[[7, 30]] = 0.5;
/// weights[[299, 0]] = -2.0;
/// let sparse = SparseTensor::new(weights.view());
/// assert_eq!(sparse.nnz(), 2);
/// assert!(sparse.size_bytes() < 20);                                      // dense: 940,800
/// assert_eq!(sparse.decompress()?, weights);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw<F, D>"))]
#[cfg_attr(
    feature = "serde",
    serde(bound(
        serialize = "F: serde::Serialize, D: serde::Serialize",
        deserialize = "F: Float + serde::Deserialize<'de>, D: Dimension + serde::Deserialize<'de>"
    ))
)]
pub struct SparseTensor<F, D> {
    dim: D,
    index: Positions,
    /// As many as `index` has positions.
    values: Vec<F>,
}

/// Minus zero is stored: what survives pruning survives to the bit.
fn is_stored<F: Float>(w: F) -> bool {
    (w != F::zero()) | w.is_sign_negative()
}

impl<F: Float, D: Dimension> SparseTensor<F, D> {
    /// Stores everything but the zeros of `weights`.
    pub fn new(weights: ArrayView<'_, F, D>) -> Self {
        let dim = weights.raw_dim();
        let dense = weights.as_standard_layout();
        let dense = dense.as_slice().unwrap_or_default();
        Self::pack(dim, dense, bits::pack(dense, is_stored))
    }

    /// Stores what `mask` keeps of `weights`, without the zeros among it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub fn masked(weights: ArrayView<'_, F, D>, mask: &Mask<D>) -> Result<Self> {
        check_shape("mask", mask.keep().shape(), weights.shape())?;
        let dim = weights.raw_dim();
        let (dense, keep) = (weights.as_standard_layout(), mask.keep());
        let (dense, keep) = (dense.as_slice().unwrap_or_default(), keep.as_standard_layout());
        let mut bitmap = bits::pack(dense, is_stored);
        let keep = bits::pack(keep.as_slice().unwrap_or_default(), |keep| keep);
        bitmap.iter_mut().zip(keep).for_each(|(stored, keep)| *stored &= keep);
        Ok(Self::pack(dim, dense, bitmap))
    }

    fn pack(dim: D, dense: &[F], bitmap: Vec<u8>) -> Self {
        let mut values = Vec::with_capacity(bits::count(&bitmap));
        bits::each(&bitmap, |i| values.push(dense[i]));
        Self { dim, index: Positions::smallest(bitmap, dense.len()), values }
    }

    /// Number of stored weights.
    pub fn nnz(&self) -> usize {
        self.values.len()
    }

    /// Fraction of zeros, 0 for an empty tensor.
    pub fn sparsity(&self) -> f64 {
        let n = self.dim.size();
        if n == 0 { 0.0 } else { (n - self.nnz()) as f64 / n as f64 }
    }

    /// How the positions are stored.
    pub fn format(&self) -> SparseFormat {
        match self.index {
            Positions::Bitmap(_) => SparseFormat::Bitmap,
            Positions::Gaps(_) => SparseFormat::Gaps,
            Positions::Gaps16(_) => SparseFormat::Gaps16,
        }
    }

    /// The stored weights in row-major order.
    pub fn values(&self) -> &[F] {
        &self.values
    }

    /// Where they stand.
    pub fn mask(&self) -> Mask<D> {
        let mut keep = ndarray::Array::from_elem(self.dim.clone(), false);
        if let Some(keep) = keep.as_slice_mut() {
            self.index.each(|i| keep[i] = true);
        }
        Mask::new(keep)
    }

    /// Compressed rows: the first axis counts rows, all others together are columns.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if a column does not fit 32 bits.
    pub fn to_rows(&self) -> Result<CompressedRows<F>> {
        let (rows, columns) = as_matrix(self.dim.slice());
        if u32::try_from(columns).is_err() {
            return Err(Error::Unsupported {
                what: "compressed rows",
                reason: format!("{columns} columns do not fit 32-bit column numbers"),
            });
        }
        let mut out = CompressedRows {
            columns: columns as u32,
            row_pointers: Vec::with_capacity(rows + 1),
            column_indices: Vec::with_capacity(self.nnz()),
            values: self.values.clone(),
        };
        let mut start = 0; // of the current row, among all weights
        out.row_pointers.push(0);
        self.index.each(|i| {
            while i - start >= columns {
                out.row_pointers.push(out.column_indices.len());
                start += columns;
            }
            out.column_indices.push((i - start) as u32);
        });
        out.row_pointers.resize(rows + 1, out.column_indices.len());
        Ok(out)
    }
}

impl<F: Float> SparseTensor<F, Ix2> {
    /// `y = x Wᵀ` for the weights `[out, in]` in `self`: `x` is `[n, in]`, `y` is `[n, out]`.
    ///
    /// Plain and sequential: one sum per output in ascending order of inputs. Zeros are left out, so that
    /// they hide a NaN or infinity in `x`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has `in` columns.
    pub fn dot(&self, x: ArrayView2<'_, F>) -> Result<Array2<F>> {
        let (out, inputs) = (self.dim[0], self.dim[1]);
        check_shape("x", x.shape(), &[x.nrows(), inputs])?;
        let n = x.nrows();
        // Transposed, so that one weight meets the whole batch in a row.
        let xt = x.t().as_standard_layout().into_owned(); // [in, n]
        let mut yt = Array2::zeros((out, n)); // [out, n]
        if n == 0 {
            return Ok(yt.reversed_axes());
        }
        if let (Some(xt), Some(yt)) = (xt.as_slice(), yt.as_slice_mut()) {
            let mut values = self.values.iter();
            let (mut row, mut start) = (0, 0);
            self.index.each(|i| {
                while i - start >= inputs {
                    row += 1;
                    start += inputs;
                }
                let column = i - start;
                let Some(&w) = values.next() else { return };
                let y = &mut yt[row * n..][..n];
                for (y, &x) in y.iter_mut().zip(&xt[column * n..][..n]) {
                    *y += w * x;
                }
            });
        }
        Ok(yt.reversed_axes().as_standard_layout().into_owned())
    }
}

impl<F: Float, D: Dimension> Compressed<F, D> for SparseTensor<F, D> {
    fn raw_dim(&self) -> D {
        self.dim.clone()
    }

    fn size_bytes(&self) -> usize {
        self.index.size_bytes() + self.values.len() * F::BYTES
    }

    fn decompress_into(&self, mut out: ArrayViewMut<'_, F, D>) -> Result<()> {
        check_shape("out", out.shape(), self.dim.slice())?;
        let mut values = self.values.iter();
        if let Some(out) = out.as_slice_mut() {
            out.fill(F::zero());
            self.index.each(|i| {
                if let Some(&value) = values.next() {
                    out[i] = value;
                }
            });
        } else {
            let mut next = self.mask().into_keep().into_iter();
            out.iter_mut().for_each(|w| {
                *w = match next.next() {
                    Some(true) => values.next().copied().unwrap_or_default(),
                    _ => F::zero(),
                }
            });
        }
        Ok(())
    }
}

/// Compressed rows, ready to multiply: row `r` holds the entries `row_pointers[r]..row_pointers[r + 1]`.
#[derive(Clone, Debug, PartialEq)]
pub struct CompressedRows<F> {
    columns: u32,
    row_pointers: Vec<usize>,
    column_indices: Vec<u32>,
    values: Vec<F>,
}

impl<F> CompressedRows<F> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.row_pointers.len() - 1
    }

    /// Number of columns; every index is below it.
    pub fn columns(&self) -> u32 {
        self.columns
    }

    /// Where each row begins, and at the end the number of entries: one more than there are rows, ascending.
    pub fn row_pointers(&self) -> &[usize] {
        &self.row_pointers
    }

    /// The column of each entry, ascending within a row.
    pub fn column_indices(&self) -> &[u32] {
        &self.column_indices
    }

    /// The value of each entry.
    pub fn values(&self) -> &[F] {
        &self.values
    }
}

/// What serde reads, before it is believed.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw<F, D> {
    dim: D,
    index: Positions,
    values: Vec<F>,
}

#[cfg(feature = "serde")]
impl<F: Float, D: Dimension> TryFrom<Raw<F, D>> for SparseTensor<F, D> {
    type Error = Error;

    fn try_from(Raw { dim, index, values }: Raw<F, D>) -> Result<Self> {
        let n = bits::elements(dim.slice(), F::BYTES)?;
        let covers = index.covers(n)?;
        let mut positions = 0;
        index.each(|_| positions += 1);
        if covers && positions == values.len() {
            return Ok(Self { dim, index, values });
        }
        Err(Error::Format {
            path: std::path::PathBuf::new(),
            reason: format!("{positions} positions for {} values do not make a tensor of {n}", values.len()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::positions::{ESCAPE, ESCAPE16};
    use super::*;
    use ndarray::{Array, Array1, Array3, array, s};

    /// `every`-th weight is not zero.
    fn strewn(n: usize, every: usize) -> Array1<f32> {
        Array::from_shape_fn(n, |i| if i % every == every / 2 { i as f32 + 1.0 } else { 0.0 })
    }

    #[test]
    fn stores_whatever_is_smallest_and_says_how_large_it_is() {
        for (every, format, bytes) in [
            (1, SparseFormat::Bitmap, 12_500 + 4 * 100_000),
            (4, SparseFormat::Bitmap, 12_500 + 4 * 25_000),
            (10, SparseFormat::Gaps, 10_000 + 4 * 10_000),
            (200, SparseFormat::Gaps, 500 + 4 * 500),
            (5_000, SparseFormat::Gaps16, 2 * 20 + 4 * 20),
            // One value in the middle, and 2 x 50,000 zeros that need no escape.
            (100_000, SparseFormat::Gaps16, 2 + 4),
            (1_000_000, SparseFormat::Gaps16, 2),
        ] {
            let weights = strewn(100_000, every);
            let sparse = SparseTensor::new(weights.view());
            assert_eq!(sparse.format(), format, "{every}");
            assert_eq!(sparse.size_bytes(), bytes, "{every}");
            assert_eq!(sparse.decompress().unwrap(), weights, "{every}");
            assert_eq!(sparse.mask(), Mask::of_nonzero(weights.view()), "{every}");
        }
    }

    #[test]
    fn long_gaps_come_back() {
        for escape in [ESCAPE, ESCAPE16] {
            for gap in [escape - 1, escape, escape + 1, 2 * escape, 2 * escape + 1] {
                for tail in [0, 1, escape - 1, escape, escape + 1] {
                    let mut weights = Array1::<f64>::zeros(gap + 1 + tail);
                    weights[gap] = -1.5;
                    let sparse = SparseTensor::new(weights.view());
                    assert_eq!(sparse.decompress().unwrap(), weights);
                }
            }
        }
    }

    #[test]
    fn minus_zero_survives_to_the_bit() {
        let sparse = SparseTensor::new(array![0.0_f32, -0.0, 1.0].view());
        assert_eq!(sparse.nnz(), 2);
        assert!(sparse.decompress().unwrap()[1].is_sign_negative());
    }

    #[test]
    fn works_without_elements_and_without_axes() {
        let sparse = SparseTensor::new(Array2::<f32>::zeros((3, 0)).view());
        assert_eq!((sparse.nnz(), sparse.size_bytes(), sparse.sparsity()), (0, 0, 0.0));
        assert_eq!(sparse.to_rows().unwrap().row_pointers(), [0, 0, 0, 0]);
        assert_eq!(sparse.dot(Array2::zeros((2, 0)).view()).unwrap(), Array2::<f32>::zeros((2, 3)));
        let sparse = SparseTensor::new(Array2::<f32>::zeros((0, 3)).view());
        assert_eq!(sparse.to_rows().unwrap().row_pointers(), [0]);
        assert_eq!(sparse.dot(Array2::zeros((2, 3)).view()).unwrap().shape(), [2, 0]);
        let point = ndarray::arr0(2.5_f64);
        let sparse = SparseTensor::new(point.view());
        assert_eq!(sparse.decompress().unwrap(), point);
        assert_eq!(sparse.to_rows().unwrap().column_indices(), [0]);
    }

    #[test]
    fn rows_flatten_the_other_axes() {
        let mut weights = Array3::<f32>::zeros((4, 2, 3));
        weights[[1, 0, 2]] = 1.0;
        weights[[1, 1, 0]] = 2.0;
        weights[[3, 1, 2]] = 3.0;
        let rows = SparseTensor::new(weights.view()).to_rows().unwrap();
        assert_eq!((rows.rows(), rows.columns()), (4, 6));
        assert_eq!(rows.row_pointers(), [0, 0, 2, 2, 3]);
        assert_eq!(rows.column_indices(), [2, 3, 5]);
        assert_eq!(rows.values(), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn expands_into_a_strided_view() {
        let weights = array![[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]];
        let sparse = SparseTensor::new(weights.view());
        let mut out = Array2::from_elem((6, 4), 9.0);
        sparse.decompress_into(out.slice_mut(s![..4;2, 1..])).unwrap();
        assert_eq!(out.slice(s![..4;2, 1..]), weights);
        assert!(out.slice(s![1, ..]).iter().all(|&x| x == 9.0));
        assert!(sparse.decompress_into(out.view_mut()).is_err());
    }

    #[test]
    fn dot_is_the_dense_product() {
        let weights = Array2::from_shape_fn((7, 11), |(i, j)| {
            if (i * 11 + j) % 3 == 0 { i as f64 - 0.5 * j as f64 } else { 0.0 }
        });
        let x = Array2::from_shape_fn((11, 5), |(i, j)| (i * 5 + j) as f64 / 7.0).reversed_axes();
        let y = SparseTensor::new(weights.view()).dot(x.view()).unwrap();
        approx::assert_abs_diff_eq!(y, x.dot(&weights.t()), epsilon = 1e-12);
        assert!(y.is_standard_layout());
        let sparse = SparseTensor::new(weights.view());
        assert!(sparse.dot(Array2::zeros((5, 10)).view()).is_err());
        assert_eq!(sparse.dot(Array2::zeros((0, 11)).view()).unwrap().shape(), [0, 7]);
    }

    #[test]
    fn masked_refuses_another_shape() {
        let mask = Mask::full(ndarray::Dim([3]));
        assert!(SparseTensor::masked(array![1.0, 2.0].view(), &mask).is_err());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn serde_keeps_it_and_refuses_lies() {
        for every in [1, 3, 20, 5_000] {
            let sparse = SparseTensor::new(strewn(20_000, every).view());
            let json = serde_json::to_string(&sparse).unwrap();
            assert_eq!(serde_json::from_str::<SparseTensor<f32, ndarray::Ix1>>(&json).unwrap(), sparse);
        }
        for lie in [
            r#"{"dim":[9],"index":{"bitmap":[1,0]},"values":[]}"#,
            r#"{"dim":[9],"index":{"bitmap":[1]},"values":[1.0]}"#,
            r#"{"dim":[9],"index":{"bitmap":[0,2]},"values":[1.0]}"#,
            r#"{"dim":[9],"index":{"gaps":[9]},"values":[1.0]}"#,
            r#"{"dim":[9],"index":{"gaps":[8]},"values":[]}"#,
            r#"{"dim":[9],"index":{"gaps":[255]},"values":[]}"#,
            r#"{"dim":[999999999999],"index":{"gaps":[1]},"values":[1.0]}"#,
            r#"{"dim":[99999],"index":{"gaps16":[]},"values":[]}"#,
            r#"{"dim":[18446744073709551615],"index":{"gaps":[]},"values":[]}"#,
        ] {
            assert!(serde_json::from_str::<SparseTensor<f32, ndarray::Ix1>>(lie).is_err(), "{lie}");
        }
    }
}
