//! The integer product: what quantized x quantized is, exactly.
//!
//! ```text
//! acc[i, j] = sum_k (a[i, k] - za[i]) * (w[j, k] - zw[j])          y[i, j] = acc[i, j] * sa[i] * sw[j]
//! ```
//!
//! Weights stand as `[out, in]`, so both factors run along rows. Accumulators are `i32`, and no sum is started that
//! could leave it: for every output the bound below is proved from the weights, for any activations that the scheme
//! of `a` can hold. (ONNX's MatMulInteger wraps silently.)
//!
//! ```text
//! highest[j] = sum_{w > 0} w * (qmax - za) + sum_{w < 0} |w| * (za - qmin)      w = w[j, k] - zw[j]
//! lowest[j]  = the same with the two factors exchanged
//! ```

use ndarray::{Array2, Ix2};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::quantize::scheme::{Granularity, Scheme};
use crate::quantize::tensor::QuantizedTensor;

/// `acc = (a - za) (w - zw)'`, `[n, in] x [out, in] -> [n, out]`, exact.
///
/// ```
/// use ndarray::array;
/// use trimnet::quantize::{QuantParams, QuantizedTensor, Scheme, integer_product};
///
/// let one = |zero_point| [QuantParams { scale: 1.0f32, zero_point }];
/// let a = QuantizedTensor::from_codes(Scheme::affine(8)?, &one(2), array![[1, 2], [3, 4]].view())?;
/// let w = QuantizedTensor::from_codes(Scheme::int8_symmetric_127(), &one(1), array![[5, 7], [-6, 8]].view())?;
/// assert_eq!(integer_product(&a, &w)?, array![[-4, 7], [16, 7]]);
/// # Ok::<(), trimnet::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the rows differ in length. [`Error::Unsupported`] if scales change along a row, or if some sum
/// could leave `i32`.
pub fn integer_product<F: Float>(
    a: &QuantizedTensor<F, Ix2>,
    w: &QuantizedTensor<F, Ix2>,
) -> Result<Array2<i32>> {
    let (a_rows, w_rows) = (Rows::new("activations", a)?, Rows::new("weights", w)?);
    let ((n, inputs), (outputs, columns)) = (a_rows.shape, w_rows.shape);
    check_shape("weights", &[outputs, columns], &[outputs, inputs])?;
    prove_no_overflow(a.scheme(), &a_rows.zero_points, &w_rows)?;
    let acc = match (a_rows.narrow(), w_rows.narrow()) {
        (Some(a), Some(w)) => product(&a, &w, inputs), // two 16-bit factors: the machine adds pairs of products
        _ => product(&a_rows.centred, &w_rows.centred, inputs),
    };
    let acc = if acc.is_empty() { vec![0; n * outputs] } else { acc }; // no inputs: empty sums
    Array2::from_shape_vec((n, outputs), acc).map_err(|_| Error::Empty { what: "the product" })
}

/// `y = acc * sa * sw`, the real product that the codes stand for.
///
/// # Errors
/// As [`integer_product`].
pub fn quantized_product<F: Float>(
    a: &QuantizedTensor<F, Ix2>,
    w: &QuantizedTensor<F, Ix2>,
) -> Result<Array2<F>> {
    let acc = integer_product(a, w)?;
    let (a_scales, w_scales) = (per_row(a.scales(), acc.nrows()), per_row(w.scales(), acc.ncols()));
    let mut y = acc.mapv(F::of_int); // [n, out]
    for (mut row, &a_scale) in y.rows_mut().into_iter().zip(&a_scales) {
        row.iter_mut().zip(&w_scales).for_each(|(y, &w_scale)| *y *= a_scale * w_scale);
    }
    Ok(y)
}

/// The longest row for which no code of `a` and `w` can overflow an `i32` accumulator, whatever they are: 66,311 for
/// uint8 activations and weights in -127..=127, both with zero point 0.
pub fn safe_depth(a: (&Scheme, i32), w: (&Scheme, i32)) -> usize {
    let reach = |(scheme, zero_point): (&Scheme, i32)| {
        let zero_point = i64::from(zero_point);
        (i64::from(scheme.qmax()) - zero_point).abs().max((zero_point - i64::from(scheme.qmin())).abs())
    };
    let product = i128::from(reach(a)) * i128::from(reach(w));
    usize::try_from(i128::from(i32::MAX) / product.max(1)).unwrap_or(usize::MAX)
}

/// Codes of a matrix, less their zero points.
struct Rows {
    shape: (usize, usize),
    centred: Vec<i32>,
    zero_points: Vec<i32>,
}

impl Rows {
    fn new<F: Float>(what: &'static str, tensor: &QuantizedTensor<F, Ix2>) -> Result<Self> {
        let shape = (tensor.shape()[0], tensor.shape()[1]);
        if !matches!(
            tensor.scheme().granularity(),
            Granularity::PerTensor | Granularity::PerChannel { axis: 0 }
        ) {
            return Err(Error::Unsupported {
                what: "the integer product",
                reason: format!("{what} need one scale, or one for each row; theirs change along a row"),
            });
        }
        let zero_points = per_row(tensor.zero_points(), shape.0);
        let mut centred = tensor.packed().to_vec();
        for (row, zero_point) in centred.chunks_exact_mut(shape.1.max(1)).zip(&zero_points) {
            row.iter_mut().for_each(|code| *code -= zero_point);
        }
        Ok(Self { shape, centred, zero_points })
    }

    /// Half the width, if the codes allow.
    fn narrow(&self) -> Option<Vec<i16>> {
        self.centred.iter().map(|&code| i16::try_from(code).ok()).collect()
    }
}

/// The same for every row, or one each. (An empty tensor has no scales at all.)
fn per_row<T: Copy + Default>(values: &[T], rows: usize) -> Vec<T> {
    match values {
        [one] => vec![*one; rows],
        [] => vec![T::default(); rows],
        each => each.to_vec(),
    }
}

fn prove_no_overflow(scheme: &Scheme, zero_points: &[i32], w: &Rows) -> Result<()> {
    let above = zero_points.iter().map(|zp| i64::from(scheme.qmax() - zp)).max().unwrap_or(0);
    let below = zero_points.iter().map(|zp| i64::from(zp - scheme.qmin())).max().unwrap_or(0);
    for (j, row) in w.centred.chunks_exact(w.shape.1.max(1)).enumerate() {
        let positive: i64 = row.iter().map(|&w| i64::from(w.max(0))).sum();
        let negative: i64 = row.iter().map(|&w| i64::from(w.min(0))).sum();
        let highest = positive * above - negative * below;
        let lowest = negative * above - positive * below;
        let bound = highest.max(-lowest);
        if bound > i64::from(i32::MAX) {
            return Err(Error::Unsupported {
                what: "the integer product",
                reason: format!(
                    "output {j} over {} inputs may reach {bound}, above the {} of a 32-bit sum; \
                     use fewer bits or reduced codes",
                    row.len(),
                    i32::MAX
                ),
            });
        }
    }
    Ok(())
}

/// Rows of `a` times rows of `w`, both `inputs` long.
fn product<T: Copy + Into<i32>>(a: &[T], w: &[T], inputs: usize) -> Vec<i32> {
    let inputs = inputs.max(1);
    let mut acc = Vec::with_capacity(a.len() / inputs * (w.len() / inputs));
    for a in a.chunks_exact(inputs) {
        acc.extend(w.chunks_exact(inputs).map(|w| dot(a, w)));
    }
    acc
}

#[inline]
fn dot<T: Copy + Into<i32>>(a: &[T], w: &[T]) -> i32 {
    a.iter().zip(w).map(|(&a, &w)| a.into() * w.into()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{QuantParams, UniformQuantizer};
    use crate::traits::{Compressed, Compressor};
    use ndarray::{Array2, array};

    fn tensor(scheme: Scheme, zero_point: i32, codes: Array2<i32>) -> QuantizedTensor<f32, Ix2> {
        QuantizedTensor::from_codes(scheme, &[QuantParams { scale: 1.0, zero_point }], codes.view()).unwrap()
    }

    #[test]
    fn refuses_a_sum_that_may_overflow_and_names_the_bound() {
        let uint8 = Scheme::affine(8).unwrap();
        let (a, w) = (Array2::from_elem((1, 40_000), 255), Array2::from_elem((1, 40_000), 255));
        let error = integer_product(&tensor(uint8, 0, a), &tensor(uint8, 0, w)).unwrap_err().to_string();
        assert!(
            error.contains("output 0 over 40000 inputs may reach 2601000000, above the 2147483647"),
            "{error}"
        );
    }

    #[test]
    fn the_longest_safe_row_is_safe_and_the_next_is_not() {
        let (uint8, int8) = (Scheme::affine(8).unwrap(), Scheme::int8_symmetric_127());
        let depth = safe_depth((&uint8, 0), (&int8, 0));
        assert_eq!(depth, 66_311);
        let acc = |n| {
            let (a, w) = (Array2::from_elem((1, n), 255), Array2::from_elem((1, n), -127));
            integer_product(&tensor(uint8, 0, a), &tensor(int8, 0, w))
        };
        assert_eq!(acc(depth).unwrap(), array![[-255 * 127 * 66_311]]);
        assert!(acc(depth + 1).is_err());
    }

    #[test]
    fn sixteen_bits_multiply_exactly() {
        let int16 = Scheme::symmetric(16).unwrap();
        let (a, w) = (array![[32_767, -32_767]], array![[32_767, 0], [-1, 2]]);
        let expected = array![[32_767 * 32_767, -3 * 32_767]];
        assert_eq!(integer_product(&tensor(int16, 0, a), &tensor(int16, 0, w)).unwrap(), expected);
    }

    #[test]
    fn equals_the_product_of_the_real_numbers_with_a_scale_per_row() {
        let a = Array2::from_shape_fn((5, 37), |(i, k)| ((i * 37 + k) * 29 % 101) as f64 / 50.0 - 0.3);
        let w = Array2::from_shape_fn((7, 37), |(j, k)| ((j * 37 + k) * 31 % 97) as f64 / 30.0 - 1.5);
        let a = UniformQuantizer::new(Scheme::affine(8).unwrap().per_channel(0)).compress(a.view()).unwrap();
        let w = UniformQuantizer::new(Scheme::affine(5).unwrap().per_channel(0)).compress(w.view()).unwrap();
        let y = quantized_product(&a, &w).unwrap();
        let expected = a.decompress().unwrap().dot(&w.decompress().unwrap().t());
        assert!((y - expected).iter().all(|error| error.abs() < 1e-12));
    }

    #[test]
    fn refuses_rows_of_other_lengths_and_scales_along_a_row() {
        let (a, w) = (array![[1, 2]], array![[1, 2, 3]]);
        let int8 = Scheme::default();
        assert!(integer_product(&tensor(int8, 0, a), &tensor(int8, 0, w.clone())).is_err());
        let grouped = int8.per_group(1, 2).unwrap();
        let params = [QuantParams { scale: 1.0f32, zero_point: 0 }; 2];
        let grouped = QuantizedTensor::from_codes(grouped, &params, w.view()).unwrap();
        assert!(integer_product(&grouped, &tensor(int8, 0, w)).is_err());
    }

    #[test]
    fn empty_sums_are_zero() {
        let empty = |n| {
            let codes = Array2::<i32>::zeros((n, 0));
            QuantizedTensor::<f32, Ix2>::from_codes(Scheme::default(), &[], codes.view()).unwrap()
        };
        assert_eq!(integer_product(&empty(2), &empty(3)).unwrap(), Array2::<i32>::zeros((2, 3)));
        assert_eq!(integer_product(&empty(0), &empty(3)).unwrap(), Array2::<i32>::zeros((0, 3)));
        assert_eq!(quantized_product(&empty(2), &empty(3)).unwrap(), Array2::<f32>::zeros((2, 3)));
    }
}
