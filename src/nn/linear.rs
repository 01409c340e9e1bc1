//! Linear (fully connected) layer: a weighted sum of all inputs for every output.
//!
//! ```text
//! y[n, o]  = sum_i x[n, i] * w[o, i]  +  b[o]            y = x w^T + b
//! dx = dy w        dw = dy^T x        db[o] = sum_n dy[n, o]
//! ```
//!
//! The weight is `[out, in]`, row-major: a row is one output's contiguous dot product. A mask, once set, is part
//! of the layer: what it does not keep is exactly 0.0 until another mask is set, whatever writes the weight.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Ix2};

use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::float::{Float, check_finite, check_shape, elements, elements_mut};
use crate::kernel::{Fused, Matrix, PackedReal, Work, with};
use crate::tensor::Mask;

/// Up to this many rows, dot products row by row beat the blocked matrix product, which packs the weight first.
const FEW_ROWS: usize = 3;

/// `y = x w^T + b` with an optional bias and an optional mask over the weight.
///
/// ```
/// use ndarray::array;
/// use trimnet::{Mask, nn::Linear};
///
/// let mut layer = Linear::new(array![[1.0, 2.0], [3.0, 4.0]], Some(array![0.5, -0.5]))?;
/// assert_eq!(layer.apply(array![[1.0, 1.0]].view())?, array![[3.5, 6.5]]);
///
/// layer.set_mask(Mask::new(array![[true, false], [true, true]]))?;
/// assert_eq!(layer.weight(), array![[1.0, 0.0], [3.0, 4.0]]);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "serde",
    serde(try_from = "RawLinear<F>", bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned")
)]
pub struct Linear<F> {
    weight: Array2<F>,
    bias: Option<Array1<F>>,
    mask: Option<Mask<Ix2>>,
}

impl<F: Float> Linear<F> {
    /// A layer of `weight` `[out, in]` and `bias` `[out]`, without a mask.
    ///
    /// # Errors
    /// [`Error::Empty`] for no inputs or no outputs, [`Error::Shape`] if the bias has another length than the
    /// weight has rows, [`Error::NotFinite`] for NaN or infinity.
    pub fn new(weight: Array2<F>, bias: Option<Array1<F>>) -> Result<Self> {
        if weight.is_empty() {
            return Err(Error::Empty { what: "weight" });
        }
        check_finite("weight", &weight.view())?;
        let outputs = weight.nrows();
        let mut layer = Self { weight: standard(weight), bias: None, mask: None };
        if let Some(bias) = bias {
            check_shape("bias", bias.shape(), &[outputs])?;
            layer.set_bias(Some(bias))?;
        }
        Ok(layer)
    }

    /// Number of inputs: columns of the weight.
    pub fn inputs(&self) -> usize {
        self.weight.ncols()
    }

    /// Number of outputs: rows of the weight.
    pub fn outputs(&self) -> usize {
        self.weight.nrows()
    }

    /// The weight `[out, in]`, row-major.
    pub fn weight(&self) -> ArrayView2<'_, F> {
        self.weight.view()
    }

    /// The bias `[out]`.
    pub fn bias(&self) -> Option<ArrayView1<'_, F>> {
        self.bias.as_ref().map(|bias| bias.view())
    }

    /// The mask `[out, in]`, if one is set.
    pub fn mask(&self) -> Option<&Mask<Ix2>> {
        self.mask.as_ref()
    }

    /// Replaces the weight; 0.0 is written wherever the mask does not keep.
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape, [`Error::NotFinite`] for NaN or infinity (also under the mask).
    pub fn set_weight(&mut self, weight: Array2<F>) -> Result<()> {
        check_shape("weight", weight.shape(), self.weight.shape())?;
        check_finite("weight", &weight.view())?;
        self.weight = standard(weight);
        self.zero_masked();
        Ok(())
    }

    /// Replaces, adds or removes the bias.
    ///
    /// # Errors
    /// [`Error::Shape`] for another length than [`outputs`](Self::outputs), [`Error::NotFinite`] for NaN or
    /// infinity.
    pub fn set_bias(&mut self, bias: Option<Array1<F>>) -> Result<()> {
        if let Some(bias) = &bias {
            check_shape("bias", bias.shape(), &[self.outputs()])?;
            check_finite("bias", &bias.view())?;
        }
        // Through an iterator: a reversed or strided array becomes contiguous, which the optimizers rely on.
        self.bias = bias.map(|bias| bias.iter().copied().collect());
        Ok(())
    }

    /// Sets the mask in place of the one before, and writes 0.0 where it does not keep.
    ///
    /// The zeros stay exactly 0.0 through every optimizer. A mask alone makes nothing smaller or faster: the
    /// zeros are stored like any other weight until [`Mlp::shrink`](super::Mlp::shrink) or a sparse tensor
    /// leaves them out. To keep an earlier mask as well, compose them with [`Mask::and`].
    ///
    /// # Errors
    /// [`Error::Shape`] if the mask has another shape than the weight.
    pub fn set_mask(&mut self, mask: Mask<Ix2>) -> Result<()> {
        check_shape("mask", mask.keep().shape(), self.weight.shape())?;
        self.mask = Some(if mask.keep().is_standard_layout() {
            mask
        } else {
            Mask::new(standard(mask.keep().to_owned()))
        });
        self.zero_masked();
        Ok(())
    }

    /// Forgets the mask. The weights that it zeroed are 0.0 still, but free to move.
    pub fn clear_mask(&mut self) {
        self.mask = None;
    }

    /// Number of weights and biases, zeros included.
    pub fn parameters(&self) -> usize {
        self.weight.len() + self.bias.as_ref().map_or(0, |bias| bias.len())
    }

    /// Number of weights and biases that are not zero.
    pub fn nonzero(&self) -> usize {
        let of = |x: &F| *x != F::zero();
        self.weight.iter().filter(|x| of(x)).count() + self.bias.iter().flatten().filter(|x| of(x)).count()
    }

    /// `x w^T + b`: `[n, in]` to `[n, out]`, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of inputs.
    pub fn apply(&self, x: ArrayView2<'_, F>) -> Result<Array2<F>> {
        self.apply_with(x, None, Fused::Identity, &mut Workspace::new())
    }

    /// The weight as products read it, for [`apply_with`](Self::apply_with).
    pub(super) fn packed(&self) -> PackedReal<F> {
        PackedReal::new(Matrix::new(elements(&self.weight), self.outputs(), self.inputs()))
    }

    /// As [`apply`](Self::apply), with an activation on the way and perhaps the weight [`packed`](Self::packed).
    pub(super) fn apply_with(
        &self,
        x: ArrayView2<'_, F>,
        packed: Option<&PackedReal<F>>,
        activation: Fused,
        workspace: &mut Workspace<F>,
    ) -> Result<Array2<F>> {
        check_shape("input", x.shape(), &[x.nrows(), self.inputs()])?;
        let bias = self.bias.as_ref().map(|bias| bias.as_slice().unwrap_or_default());
        if x.nrows() > FEW_ROWS {
            return Ok(match packed {
                Some(packed) => workspace.affine_packed(x, packed, bias, activation),
                None => workspace.affine(x, &self.weight, bias, activation),
            });
        }
        let mut y = workspace.array(x.nrows(), self.outputs()); // [n, out]
        let (x, inputs, outputs) = (x.as_standard_layout(), self.inputs(), self.outputs());
        let rows = elements(&x).chunks_exact(inputs).zip(elements_mut(&mut y).chunks_exact_mut(outputs));
        for (x, y) in rows {
            with(workspace.isa(), Dots { x, w: elements(&self.weight), bias, activation, y });
        }
        Ok(y)
    }

    /// The gradients of the weight and the bias, from the input `x` `[n, in]` and `dy` `[n, out]`.
    ///
    /// That of a masked weight is what the loss says, not zero: scores that look for weights to bring back need
    /// it, and the optimizers leave it out.
    ///
    /// # Errors
    /// [`Error::Shape`] if `x` or `dy` does not fit this layer or the other.
    pub fn gradients(&self, x: ArrayView2<'_, F>, dy: ArrayView2<'_, F>) -> Result<LinearGrads<F>> {
        self.gradients_with(x, dy, &mut Workspace::new())
    }

    pub(super) fn gradients_with(
        &self,
        x: ArrayView2<'_, F>,
        dy: ArrayView2<'_, F>,
        workspace: &mut Workspace<F>,
    ) -> Result<LinearGrads<F>> {
        check_shape("input", x.shape(), &[dy.nrows(), self.inputs()])?;
        check_shape("dy", dy.shape(), &[x.nrows(), self.outputs()])?;
        let dweight = workspace.product(dy.t(), x); // [out, in]
        let dbias = self.bias.as_ref().map(|_| {
            let mut dbias = workspace.take(self.outputs());
            dbias.fill(F::zero());
            match dy.to_slice() {
                Some(dy) => with(workspace.isa(), AddRows(dy, &mut dbias)),
                None => dbias.iter_mut().zip(&dy.sum_axis(Axis(0))).for_each(|(sum, &d)| *sum = d),
            }
            Array1::from_vec(dbias)
        });
        Ok(LinearGrads { dweight, dbias })
    }

    /// No gradient for the bias of an output whose weights are all masked, in front of a batch norm.
    ///
    /// The norm takes the mean off, so there it is 0 but for rounding, which the norm of an output that never changes divides by
    /// `sqrt(eps)`: enough for Adam to make whole steps of it, which the running mean is always behind.
    pub(super) fn hold_dead_biases(&self, grads: &mut LinearGrads<F>) {
        let (Some(mask), Some(dbias)) = (&self.mask, &mut grads.dbias) else { return };
        for (keep, d) in mask.keep().rows().into_iter().zip(dbias) {
            if !keep.iter().any(|&keep| keep) {
                *d = F::zero();
            }
        }
    }

    /// The gradient by the input, `dy w`: `[n, out]` to `[n, in]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `dy` has another number of columns than the layer has outputs.
    pub fn backward(&self, dy: ArrayView2<'_, F>) -> Result<Array2<F>> {
        self.backward_with(dy, &mut Workspace::new())
    }

    pub(super) fn backward_with(
        &self,
        dy: ArrayView2<'_, F>,
        workspace: &mut Workspace<F>,
    ) -> Result<Array2<F>> {
        check_shape("dy", dy.shape(), &[dy.nrows(), self.outputs()])?;
        Ok(workspace.product(dy, self.weight.view())) // [n, in]
    }

    /// The weight, the mask and the bias for an update in place; [`zero_masked`](Self::zero_masked) comes after.
    pub(super) fn parts_mut(&mut self) -> (&mut Array2<F>, Option<&Mask<Ix2>>, Option<&mut Array1<F>>) {
        (&mut self.weight, self.mask.as_ref(), self.bias.as_mut())
    }

    /// Writes 0.0 where the mask does not keep.
    pub(super) fn zero_masked(&mut self) {
        if let Some(mask) = &self.mask {
            let keep = mask.keep().to_slice().unwrap_or_default();
            zero_where_not(keep, self.weight.as_slice_mut().unwrap_or_default());
        }
    }

    /// Only these outputs and these inputs, in this order; `None` keeps all.
    pub(super) fn select(&self, outputs: Option<&[usize]>, inputs: Option<&[usize]>) -> Result<Self> {
        let pick = |axis: Axis, keep: &[usize], out: &mut Self| {
            out.weight = standard(out.weight.select(axis, keep));
            out.mask = out.mask.take().map(|mask| Mask::new(standard(mask.keep().select(axis, keep))));
        };
        let mut out = self.clone();
        if let Some(keep) = outputs {
            pick(Axis(0), keep, &mut out);
            out.bias = out.bias.map(|bias| bias.select(Axis(0), keep));
        }
        if let Some(keep) = inputs {
            pick(Axis(1), keep, &mut out);
        }
        if out.weight.is_empty() { Err(Error::Empty { what: "weight" }) } else { Ok(out) }
    }
}

/// Gradients of a [`Linear`].
#[derive(Clone, Debug, PartialEq)]
pub struct LinearGrads<F> {
    /// By the weight, `[out, in]`; masked entries are not zeroed.
    pub dweight: Array2<F>,
    /// By the bias, `[out]`, where there is one.
    pub dbias: Option<Array1<F>>,
}

/// Row-major, copying only what is not already.
fn standard<T: Clone>(x: Array2<T>) -> Array2<T> {
    if x.is_standard_layout() { x } else { x.as_standard_layout().into_owned() }
}

/// Writes 0.0 where `keep` is false. A selection for every number: a branch would be guessed wrong half of the time.
fn zero_where_not<F: Float>(keep: &[bool], numbers: &mut [F]) {
    for (number, &keep) in numbers.iter_mut().zip(keep) {
        *number = if keep { *number } else { F::zero() };
    }
}

/// `y[o] = activation(sum_i x[i] * w[o, i] + b[o])` for one row: each weight is read once.
struct Dots<'a, F> {
    x: &'a [F],
    w: &'a [F],
    bias: Option<&'a [F]>,
    activation: Fused,
    y: &'a mut [F],
}

impl<F: Float> Work for Dots<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { x, w, bias, activation, y } = self;
        for (o, (y, w)) in y.iter_mut().zip(w.chunks_exact(x.len())).enumerate() {
            let sum = dot(x, w) + bias.map_or(F::zero(), |bias| bias[o]);
            *y = if activation == Fused::Relu && sum <= F::zero() { F::zero() } else { sum };
        }
    }
}

/// Running sums enough that neither the latency of an addition nor the order of one sum holds the loop back.
#[inline(always)]
fn dot<F: Float>(a: &[F], b: &[F]) -> F {
    const LANES: usize = 32;
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [F::zero(); LANES];
    for (a, b) in a.iter().zip(b) {
        // By index over all lanes: what the compiler turns into vectors.
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let rest = a_rest.iter().zip(b_rest).fold(F::zero(), |sum, (&a, &b)| sum + a * b);
    let sums: [F; 16] = std::array::from_fn(|i| sums[i] + sums[i + 16]);
    let sums: [F; 8] = std::array::from_fn(|i| sums[i] + sums[i + 8]);
    let sums: [F; 4] = std::array::from_fn(|i| sums[i] + sums[i + 4]);
    (sums[0] + sums[2]) + (sums[1] + sums[3]) + rest
}

/// Adds all rows to the sums of the columns.
struct AddRows<'a, F>(&'a [F], &'a mut [F]);

impl<F: Float> Work for AddRows<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self(rows, sums) = self;
        for row in rows.chunks_exact(sums.len()) {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
        }
    }
}

/// What a file holds, before it is checked.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(rename = "Linear", bound = "F: Float + serde::Serialize + serde::de::DeserializeOwned")]
struct RawLinear<F> {
    weight: Array2<F>,
    bias: Option<Array1<F>>,
    mask: Option<Mask<Ix2>>,
}

#[cfg(feature = "serde")]
impl<F: Float> TryFrom<RawLinear<F>> for Linear<F> {
    type Error = Error;

    fn try_from(raw: RawLinear<F>) -> Result<Self> {
        let mut layer = Self::new(raw.weight, raw.bias)?;
        if let Some(mask) = raw.mask {
            layer.set_mask(mask)?;
        }
        Ok(layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array, array};

    fn layer(inputs: usize, outputs: usize) -> Linear<f64> {
        let w = Array::from_shape_fn((outputs, inputs), |(o, i)| ((o * 7 + i * 3) % 11) as f64 - 5.0);
        Linear::new(w, Some(Array::from_iter((0..outputs).map(|o| o as f64)))).unwrap()
    }

    #[test]
    fn few_rows_and_many_rows_agree_at_every_width() {
        for inputs in 1..=49 {
            let layer = layer(inputs, 3);
            let x = Array::from_shape_fn((5, inputs), |(n, i)| ((n * 5 + i * 2) % 7) as f64 - 3.0);
            let all = layer.apply(x.view()).unwrap();
            assert!(all.is_standard_layout());
            // Small integers: both orders of summation are exact.
            for n in 0..5 {
                let one = layer.apply(x.slice(ndarray::s![n..n + 1, ..])).unwrap();
                assert_eq!(one.row(0), all.row(n), "{inputs} inputs, row {n}");
            }
        }
    }

    #[test]
    fn a_transposed_input_gives_the_same() {
        let layer = layer(4, 3);
        for rows in [1, 2, 5] {
            let x = Array::from_shape_fn((4, rows), |(i, n)| (i + 2 * n) as f64);
            assert_eq!(layer.apply(x.t()).unwrap(), layer.apply(x.t().as_standard_layout().view()).unwrap());
        }
    }

    #[test]
    fn masked_weights_are_zero_whatever_writes_them() {
        let mut layer = layer(2, 2);
        layer.set_mask(Mask::new(array![[true, false], [false, true]])).unwrap();
        layer.set_weight(array![[1.0, 2.0], [3.0, 4.0]]).unwrap();
        assert_eq!(layer.weight(), array![[1.0, 0.0], [0.0, 4.0]]);
        assert_eq!(layer.nonzero(), 3);
        layer.clear_mask();
        assert_eq!(layer.weight(), array![[1.0, 0.0], [0.0, 4.0]]);
    }

    #[test]
    fn a_transposed_mask_and_a_reversed_bias_are_laid_out_afresh() {
        let mut layer = layer(2, 3);
        let keep = array![[true, false, true], [false, true, true]];
        layer.set_mask(Mask::new(keep.reversed_axes())).unwrap();
        assert!(layer.mask().unwrap().keep().is_standard_layout());
        layer.set_bias(Some(array![1.0, 2.0, 3.0].slice_move(ndarray::s![..;-1]))).unwrap();
        assert_eq!(layer.bias().unwrap().as_slice().unwrap(), [3.0, 2.0, 1.0]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let error = |r: Result<Linear<f64>>| r.unwrap_err().to_string();
        assert_eq!(error(Linear::new(Array2::zeros((0, 3)), None)), "weight is empty");
        assert_eq!(
            error(Linear::new(array![[1.0, f64::NAN]], None)),
            "weight is NaN at index [0, 1]; only finite numbers are allowed"
        );
        assert_eq!(
            error(Linear::new(array![[1.0, 2.0]], Some(array![1.0, 2.0]))),
            "bias has shape [2], expected [1]"
        );
        let mut layer = layer(2, 3);
        let x = array![[1.0, 2.0, 3.0]];
        assert_eq!(layer.apply(x.view()).unwrap_err().to_string(), "input has shape [1, 3], expected [1, 2]");
        assert!(layer.set_mask(Mask::new(array![[true]])).is_err());
        assert!(layer.set_weight(array![[1.0]]).is_err());
        assert!(layer.gradients(array![[1.0, 2.0]].view(), array![[1.0]].view()).is_err());
        assert!(layer.backward(array![[1.0]].view()).is_err());
    }

    #[test]
    fn no_rows_in_no_rows_out() {
        assert_eq!(layer(2, 3).apply(Array2::zeros((0, 2)).view()).unwrap().shape(), [0, 3]);
    }
}
