//! Rounding that knows what the weights will be multiplied by: the weights of one input are rounded after the other, and
//! those of later inputs take up what that did to the outputs (GPTQ).
//!
//! ```text
//! H = X^T X / rows + damping * mean(diagonal) * I          X: typical inputs [rows, inputs]
//! U^T U = H^-1, U upper
//! for k in order:   q = round(w[:, k])     e = (w[:, k] - q) / U[k, k]     w[:, l] -= e * U[k, l] for all l after k
//! ```
//!
//! The order is that of falling `H[k, k]`: the inputs that matter most are rounded first, while all others can still make up
//! for them. Scales are those of the weights as they came. Frantar, Ashkboos, Hoefler and Alistarh 2022, "GPTQ: Accurate
//! Post-Training Quantization for Generative Pre-trained Transformers", arXiv:2210.17323.

use std::cmp::Ordering;

use ndarray::{ArrayView2, Ix2};

use crate::error::{Error, Result};
use crate::float::{Float, check_finite, check_shape};
use crate::kernel::{Isa, Matrix, MatrixMut, Pool, ScratchReal, Stream, Update, product};
use crate::quantize::cholesky::{BLOCK, inverse_factor};
use crate::quantize::layout::Layout;
use crate::quantize::params::QuantParams;
use crate::quantize::round::{self, Params};
use crate::quantize::tensor::QuantizedTensor;
use crate::quantize::uniform::UniformQuantizer;
use crate::traits::Compressor;

/// Outputs that are rounded together: what one thread takes.
const OUTPUTS: usize = 64;

/// Numbers of the sum of squares that one thread takes.
const COLUMNS: usize = 64;

/// Rounds weights `[outputs, inputs]` so that their products with typical inputs change little, instead of each weight.
///
/// Pays for few bits: with 8 there is little left to win. Needs more rows of inputs than there are inputs to be worth its name;
/// with fewer it is led by what those rows happen to share, and `damping` has to be larger. Weights that are 0 stay 0, so a
/// pruned layer stays as sparse as it was.
///
/// Holds `inputs^2` numbers of 8 bytes, three times as many while it is made, and takes about `inputs^3` multiply-adds to make and half of `outputs * inputs^2` for
/// each tensor.
///
/// ```
/// use trimnet::ndarray::Array2;
/// use trimnet::quantize::{GptqQuantizer, Scheme, UniformQuantizer};
/// use trimnet::{Compressed, Compressor};
///
/// // Inputs that go together, as pixels do.
/// let x = Array2::from_shape_fn((200, 16), |(i, j)| ((i * (1 + j / 4)) as f64 * 0.37).sin());
/// let weights = Array2::from_shape_fn((8, 16), |(i, j)| ((i * 16 + j) as f64 * 0.71).sin());
///
/// let nearest = UniformQuantizer::new(Scheme::symmetric(3)?.per_channel(0));
/// let gptq = GptqQuantizer::new(nearest, x.view(), 0.01)?;
/// let error = |w: &Array2<f64>| (x.dot(&(w - &weights).t())).mapv(|e| e * e).sum();
/// let by_gptq = error(&gptq.compress(weights.view())?.decompress()?);
/// let by_nearest = error(&nearest.compress(weights.view())?.decompress()?);
/// assert!(by_gptq < 0.5 * by_nearest);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct GptqQuantizer {
    base: UniformQuantizer,
    /// Which inputs are rounded first.
    order: Vec<usize>,
    /// `U`, `[inputs, inputs]`, in that order.
    factor: Vec<f64>,
    damping: f64,
}

impl GptqQuantizer {
    /// Scheme and ranges of `base`, for weights that are multiplied by rows like `inputs` `[rows, inputs]`.
    ///
    /// `damping`, as a share of the mean square of the inputs, keeps `H` well away from the singular matrix that inputs which
    /// depend on each other make; 0.01 is usual. If it is too small for these numbers, ten times as much is taken, up to 1:
    /// [`damping`](Self::damping) tells.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 < damping <= 1`; [`Error::Empty`] without rows or inputs; [`Error::NotFinite`] for NaN and
    /// infinity; [`Error::Unsupported`] if squares of inputs are beyond `f64`.
    pub fn new<F: Float>(base: UniformQuantizer, inputs: ArrayView2<'_, F>, damping: f64) -> Result<Self> {
        check_damping(damping)?;
        if inputs.is_empty() {
            return Err(Error::Empty { what: "the inputs of GPTQ" });
        }
        check_finite("the inputs of GPTQ", &inputs)?;
        let (rows, n) = inputs.dim();
        let x: Vec<f64> = inputs.iter().map(|x| x.as_f64()).collect();
        let pool = Pool::for_elements(rows.saturating_mul(n));
        let squares = mean_products(&x, rows, n, &pool);
        let diagonal: Vec<f64> = squares.iter().step_by(n + 1).copied().collect();
        let mean = diagonal.iter().sum::<f64>() / n as f64;
        if !mean.is_finite() {
            let reason = "the squares of its inputs are beyond f64".to_string();
            return Err(Error::Unsupported { what: "GPTQ", reason });
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| diagonal[b].partial_cmp(&diagonal[a]).unwrap_or(Ordering::Equal));
        // Inputs that are always 0 depend on nothing.
        let mean = if mean > 0.0 { mean } else { 1.0 };
        let mut used = damping;
        loop {
            let mut h = Vec::with_capacity(n * n);
            for (i, &row) in order.iter().enumerate() {
                h.extend(order.iter().map(|&column| squares[row * n + column] / mean));
                h[i * n + i] += used;
            }
            if let Some(factor) = inverse_factor(h, n, &pool) {
                return Ok(Self { base, order, factor, damping: used });
            }
            if used >= 1.0 {
                let reason = "its inputs depend on each other beyond what damping can part".to_string();
                return Err(Error::Unsupported { what: "GPTQ", reason });
            }
            used = (10.0 * used).min(1.0);
        }
    }

    /// The damping that was used: what was asked for, or the first of ten times as much that sufficed.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// What finds scales and zero points.
    pub fn base(&self) -> &UniformQuantizer {
        &self.base
    }

    /// The codes of some rows of weights, which are the `first` outputs on; the parameters are those that `which` names.
    fn round<F: Float>(
        &self,
        first: usize,
        weights: &[F],
        params: &[QuantParams<F>],
        which: &[usize],
        codes: &mut [i32],
    ) {
        let n = self.order.len();
        let outputs = weights.len() / n;
        // [k][output]: the weights of one input are neighbours.
        let mut left: Vec<f64> = Vec::with_capacity(weights.len());
        for &input in &self.order {
            left.extend(weights[input..].iter().step_by(n).map(|w| w.as_f64()));
        }
        let mut errors = vec![0.0; BLOCK * outputs];
        let mut numbers = vec![F::zero(); outputs];
        let mut own_codes = vec![0; outputs];
        let mut own_params = Vec::with_capacity(outputs);
        let (mut stream, scratch) = (Stream::near(), &mut ScratchReal::default());
        for start in (0..n).step_by(BLOCK) {
            let end = (start + BLOCK).min(n);
            for k in start..end {
                let (input, u) = (self.order[k], &self.factor[k * n..(k + 1) * n]);
                let (now, later) = left[k * outputs..end * outputs].split_at_mut(outputs);
                let were = || weights[input..].iter().step_by(n);
                for ((number, now), &was) in numbers.iter_mut().zip(&*now).zip(were()) {
                    let moved = F::of(*now);
                    *number = if moved.is_finite() { moved } else { was };
                }
                own_params.clear();
                own_params.extend(which[input..].iter().step_by(n).map(|&at| params[at]));
                let (position, scheme) = (k * OUTPUTS + first, self.base.scheme());
                let each = Params::Each(&own_params);
                round::quantize(&mut stream, scheme, each, position, &numbers, &mut own_codes);
                let own_errors = &mut errors[(k - start) * outputs..][..outputs];
                for (j, &was) in were().enumerate() {
                    let (number, params) = (numbers[j].as_f64(), own_params[j]);
                    if was == F::zero() {
                        own_codes[j] = params.zero_point;
                    }
                    own_errors[j] = (params.dequantize(own_codes[j]).as_f64() - number) / u[k];
                    codes[j * n + input] = own_codes[j];
                }
                for (w, &u) in later.chunks_exact_mut(outputs).zip(&u[k + 1..end]) {
                    w.iter_mut().zip(&*own_errors).for_each(|(w, e)| *w += e * u);
                }
            }
            let u = Matrix::strided(&self.factor[start * n + end..], (end - start, n - end), (n, 1));
            let errors = Matrix::new(&errors[..(end - start) * outputs], end - start, outputs);
            let rest = MatrixMut::new(&mut left[end * outputs..], n - end, outputs);
            product(Isa::best(), u.transposed(), errors, Update::Add, rest, scratch);
        }
    }
}

/// Refuses a share of damping that no quantizer takes.
pub(crate) fn check_damping(damping: f64) -> Result<()> {
    if damping > 0.0 && damping <= 1.0 {
        return Ok(());
    }
    Err(Error::OutOfRange { name: "damping", value: damping, range: "0 < damping <= 1" })
}

/// `X^T X / rows`.
fn mean_products(x: &[f64], rows: usize, n: usize, pool: &Pool) -> Vec<f64> {
    let x = Matrix::new(x, rows, n);
    let mut sums = vec![0.0; n * n];
    pool.run_columns(MatrixMut::new(&mut sums, n, n), COLUMNS, |part, sums| {
        let right = x.column_range(part * COLUMNS, sums.columns());
        product(Isa::best(), x.transposed(), right, Update::Replace, sums, &mut ScratchReal::default());
    });
    sums.iter_mut().for_each(|sum| *sum /= rows as f64);
    sums
}

impl<F: Float> Compressor<F, Ix2> for GptqQuantizer {
    type Output = QuantizedTensor<F, Ix2>;

    /// # Errors
    /// [`Error::NotFinite`] for NaN or infinity; [`Error::Shape`] for weights of another number of inputs.
    fn compress(&self, weights: ArrayView2<'_, F>) -> Result<Self::Output> {
        let n = self.order.len();
        check_finite("weights", &weights)?;
        check_shape("weights", weights.shape(), &[weights.nrows(), n])?;
        let layout = Layout::new(self.base.scheme().granularity(), weights.shape())?;
        let shape = weights.raw_dim();
        let weights = weights.as_standard_layout();
        let weights = weights.as_slice().unwrap_or_default(); // standard layout: always a slice
        let params = self.base.params(&layout, weights)?;
        let mut which = vec![0; weights.len()];
        layout.for_each_run(|run| {
            let scales = run.scales.cycle();
            which[run.elements].iter_mut().zip(scales).for_each(|(at, scale)| *at = scale);
        });
        let mut codes = ndarray::Array2::zeros(shape);
        let pool = Pool::for_elements(weights.len().saturating_mul(n));
        let parts = codes.as_slice_mut().unwrap_or_default().chunks_mut(OUTPUTS * n).enumerate();
        pool.each(parts, |(part, codes)| {
            let elements = part * OUTPUTS * n..part * OUTPUTS * n + codes.len();
            self.round(part * OUTPUTS, &weights[elements.clone()], &params, &which[elements], codes);
        });
        QuantizedTensor::from_codes(*self.base.scheme(), &params, codes.view())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{RangeMethod, Scheme};
    use crate::traits::Compressed;
    use ndarray::{Array2, array};

    /// Rows in which neighbours go together, and the last input never says anything.
    fn inputs(rows: usize, n: usize) -> Array2<f64> {
        Array2::from_shape_fn((rows, n), |(i, j)| {
            let wave =
                (i as f64 * 0.61 + j as f64 * 0.21).sin() + 0.3 * ((i * 7 + j * 13) % 11) as f64 / 11.0;
            if j + 1 == n { 0.0 } else { wave * (1.0 + j as f64 / n as f64) }
        })
    }

    fn weights(outputs: usize, n: usize) -> Array2<f64> {
        Array2::from_shape_fn((outputs, n), |(i, j)| ((i * n + j) as f64 * 1.7).sin())
    }

    fn error(x: &Array2<f64>, a: &Array2<f64>, b: &Array2<f64>) -> f64 {
        x.dot(&(a - b).t()).mapv(|e| e * e).sum()
    }

    /// The formula, one weight at a time, by the inverse of what remains of H (the definition that U makes fast).
    fn by_definition(base: &UniformQuantizer, x: &Array2<f64>, damping: f64, w: &Array2<f64>) -> Array2<f64> {
        let (rows, n) = x.dim();
        let mut h = x.t().dot(x) / rows as f64;
        let mean = h.diag().sum() / n as f64;
        h.diag_mut().mapv_inplace(|d| d + damping * mean);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| h[[b, b]].total_cmp(&h[[a, a]]));
        let params = base.compress(w.view()).unwrap().params();
        let (mut left, mut found) = (w.clone(), w.clone());
        for (k, &input) in order.iter().enumerate() {
            // Gauss-Jordan.
            let rest = &order[k..];
            let m = rest.len();
            let mut a = Array2::zeros((m, 2 * m));
            for (i, &p) in rest.iter().enumerate() {
                rest.iter().enumerate().for_each(|(j, &q)| a[[i, j]] = h[[p, q]]);
                a[[i, m + i]] = 1.0;
            }
            for i in 0..m {
                let pivot = a[[i, i]];
                a.row_mut(i).mapv_inplace(|x| x / pivot);
                let own = a.row(i).to_owned();
                for j in (0..m).filter(|&j| j != i) {
                    let factor = a[[j, i]];
                    a.row_mut(j).zip_mut_with(&own, |x, &own| *x -= factor * own);
                }
            }
            for j in 0..w.nrows() {
                let value = if w[[j, input]] == 0.0 {
                    0.0
                } else {
                    let codes = base.scheme().quantize(&[left[[j, input]]], params[j]).unwrap();
                    params[j].dequantize(codes[0])
                };
                let error = (left[[j, input]] - value) / a[[0, m]];
                found[[j, input]] = value;
                for (i, &l) in rest.iter().enumerate().skip(1) {
                    left[[j, l]] -= error * a[[0, m + i]];
                }
            }
        }
        found
    }

    #[test]
    fn rounds_as_the_definition_does() {
        let base = UniformQuantizer::new(Scheme::symmetric(4).unwrap().per_channel(0));
        for (n, outputs) in [(1, 1), (5, 3), (40, 7), (70, 66), (131, 5)] {
            let (x, mut w) = (inputs(3 * n + 1, n), weights(outputs, n));
            w[[0, 0]] = 0.0;
            let gptq = GptqQuantizer::new(base, x.view(), 0.05).unwrap();
            let found = gptq.compress(w.view()).unwrap().decompress().unwrap();
            let expected = by_definition(&base, &x, 0.05, &w);
            let differ = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
            // A tie may fall either way by the last bit of a sum.
            assert!(differ <= w.len() / 200, "{n} inputs, {outputs} outputs: {differ} differ");
        }
    }

    #[test]
    fn outputs_change_less_than_by_rounding_to_the_nearest() {
        let (x, w) = (inputs(400, 48), weights(20, 48));
        for bits in [2, 3, 4, 8] {
            for scheme in [Scheme::symmetric(bits).unwrap().per_channel(0), Scheme::affine(bits).unwrap()] {
                let base = UniformQuantizer::new(scheme).with_range(RangeMethod::LeastSquares).unwrap();
                let nearest = base.compress(w.view()).unwrap().decompress().unwrap();
                let gptq = GptqQuantizer::new(base, x.view(), 0.01).unwrap();
                let found = gptq.compress(w.view()).unwrap().decompress().unwrap();
                let (ours, theirs) = (error(&x, &found, &w), error(&x, &nearest, &w));
                assert!(ours < 0.6 * theirs, "{scheme:?}: {ours} {theirs}");
            }
        }
    }

    #[test]
    fn zeros_stay_zero_and_silent_inputs_are_rounded_to_the_nearest() {
        let (x, mut w) = (inputs(90, 30), weights(6, 30));
        w.iter_mut().step_by(3).for_each(|w| *w = 0.0);
        for scheme in [
            Scheme::symmetric(4).unwrap().per_channel(0),
            Scheme::affine(4).unwrap().per_group(1, 7).unwrap(),
        ] {
            let base = UniformQuantizer::new(scheme);
            let gptq = GptqQuantizer::new(base, x.view(), 0.01).unwrap();
            let found = gptq.compress(w.view()).unwrap().decompress().unwrap();
            assert!(w.iter().zip(&found).all(|(w, found)| *w != 0.0 || *found == 0.0));
            let nearest = base.compress(w.view()).unwrap().decompress().unwrap();
            assert_eq!(found.column(29), nearest.column(29));
        }
    }

    #[test]
    fn inputs_that_are_all_zero_leave_rounding_to_the_nearest() {
        let w = weights(4, 9);
        let base = UniformQuantizer::new(Scheme::symmetric(3).unwrap().per_channel(0));
        let gptq = GptqQuantizer::new(base, Array2::<f32>::zeros((5, 9)).view(), 0.01).unwrap();
        assert_eq!(gptq.compress(w.view()).unwrap(), base.compress(w.view()).unwrap());
    }

    #[test]
    fn too_little_damping_grows_until_it_suffices_and_says_so() {
        // Two inputs that are the same, with digits that squares lose.
        let x = Array2::from_shape_fn((50, 2), |(i, _)| 1.0 + i as f64 * 0.1);
        let base = UniformQuantizer::new(Scheme::symmetric(4).unwrap());
        let gptq = GptqQuantizer::new(base, x.view(), 1e-30).unwrap();
        assert!(gptq.damping() > 1e-30 && gptq.damping() < 1e-10, "{}", gptq.damping());
        assert_eq!(GptqQuantizer::new(base, x.view(), 0.01).unwrap().damping(), 0.01);
    }

    #[test]
    fn refuses_bad_settings_and_data() {
        let base = UniformQuantizer::new(Scheme::symmetric(4).unwrap());
        let x = inputs(9, 3);
        for damping in [0.0, -1.0, 1.5, f64::NAN] {
            assert!(matches!(GptqQuantizer::new(base, x.view(), damping), Err(Error::OutOfRange { .. })));
        }
        assert!(matches!(
            GptqQuantizer::new(base, Array2::<f64>::zeros((0, 3)).view(), 0.1),
            Err(Error::Empty { .. })
        ));
        assert!(matches!(
            GptqQuantizer::new(base, array![[f64::NAN]].view(), 0.1),
            Err(Error::NotFinite { .. })
        ));
        assert!(matches!(
            GptqQuantizer::new(base, array![[1e200]].view(), 0.1),
            Err(Error::Unsupported { .. })
        ));
        let gptq = GptqQuantizer::new(base, x.view(), 0.1).unwrap();
        assert!(matches!(gptq.compress(weights(2, 4).view()), Err(Error::Shape { .. })));
        assert!(gptq.compress(weights(0, 3).view()).unwrap().codes().is_empty());
    }
}
