//! What passes through a network keep from call to call: memory and threads.
//!
//! Fresh memory is slow (the first write to each page of it costs ten times a write to a page in use), so a training
//! step works in the arrays of the step before. Who divides work among threads divides the *result*; each sum stays
//! one chain on one thread, and the numbers are the same for any number of threads.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use ndarray::{Array1, Array2, ArrayView2};

use super::backprop::MlpCache;
use super::grads::{Grads, LayerGrads};
use crate::float::{Float, elements, elements_mut};
use crate::kernel::{
    Fused, Isa, Matrix, MatrixMut, PackedReal, Pool, ScratchReal, Update, affine, multiply, product,
};
use crate::regularize::DropoutCache;

/// From so many multiply-adds on, about 20 us of one core, two threads pay.
const PARALLEL: usize = 1 << 20;

/// Columns are divided by whole panels of the product.
const PANEL: usize = 32;

/// Arrays without use that are kept; far more than one step of a deep network gives back.
const SPARE: usize = 256;

/// Memory and threads for [`Mlp::predict_with`](super::Mlp::predict_with): after the first call, the next ones of the same
/// size allocate nothing.
///
/// ```
/// use trimnet::ndarray::Array2;
/// use trimnet::nn::{Mlp, Workspace};
/// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
///
/// let mlp = Mlp::builder(784).linear(300).relu().linear(10).build::<f32>(&mut Xoshiro256PlusPlus::seed_from_u64(1))?;
/// let mut workspace = Workspace::with_threads(2);
/// let images = Array2::from_elem((32, 784), 0.5);
/// for _ in 0..10 {
///     let logits = mlp.predict_with(images.view(), &mut workspace)?;
///     workspace.recycle(logits);
/// }
/// # Ok::<(), trimnet::Error>(())
/// ```
pub struct Workspace<F: Float> {
    /// `None` is the pool of all cores, asked for when work is there that pays.
    pool: Option<Pool>,
    isa: Isa,
    scratch: Vec<Mutex<ScratchReal<F>>>,
    spare: Vec<Vec<F>>,
    cache: Option<MlpCache<F>>,
    grads: Vec<LayerGrads<F>>,
    masks: Vec<DropoutCache>,
}

impl<F: Float> Default for Workspace<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// A clone has the same threads and its own memory.
impl<F: Float> Clone for Workspace<F> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), ..Self::new() }
    }
}

impl<F: Float> fmt::Debug for Workspace<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.spare.iter().map(|spare| spare.capacity() * F::BYTES).sum::<usize>();
        f.debug_struct("Workspace").field("pool", &self.pool).field("spare_bytes", &bytes).finish()
    }
}

impl<F: Float> Workspace<F> {
    /// All cores that this process may use, for work that is large enough.
    pub fn new() -> Self {
        Self {
            pool: None,
            isa: Isa::best(),
            scratch: Vec::new(),
            spare: Vec::new(),
            cache: None,
            grads: Vec::new(),
            masks: Vec::new(),
        }
    }

    /// So many threads, the caller's included; 0 and 1 mean the caller alone.
    pub fn with_threads(threads: usize) -> Self {
        Self { pool: Some(Pool::new(threads)), ..Self::new() }
    }

    /// Takes back an array whose numbers are not needed any more.
    pub fn recycle(&mut self, array: Array2<F>) {
        self.give(array.into_raw_vec_and_offset().0);
    }

    /// The threads, for work of so many multiply-adds or the like.
    pub(super) fn pool(&mut self, work: usize) -> Pool {
        if work < PARALLEL { Pool::single() } else { self.pool.get_or_insert_with(Pool::shared).clone() }
    }

    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    pub(super) fn give(&mut self, spare: Vec<F>) {
        if spare.capacity() > 0 && self.spare.len() < SPARE {
            self.spare.push(spare);
        }
    }

    /// So many numbers, of any value.
    pub(super) fn take(&mut self, length: usize) -> Vec<F> {
        let fits = |spare: &&(usize, usize)| spare.1 >= length;
        let capacities = self.spare.iter().map(Vec::capacity).enumerate();
        let best = capacities.filter(|spare| fits(&spare)).min_by_key(|it| it.1);
        let mut taken = best.map_or_else(|| Vec::with_capacity(length), |(i, _)| self.spare.swap_remove(i));
        taken.resize(length, F::zero());
        taken
    }

    pub(crate) fn array(&mut self, rows: usize, columns: usize) -> Array2<F> {
        let numbers = self.take(rows * columns);
        // The length fits, so this is the vector itself.
        Array2::from_shape_vec((rows, columns), numbers).unwrap_or_else(|_| Array2::zeros((rows, columns)))
    }

    pub(super) fn copy(&mut self, x: ArrayView2<'_, F>) -> Array2<F> {
        let mut copy = self.array(x.nrows(), x.ncols());
        copy.assign(&x);
        copy
    }

    /// An empty cache with the memory of an earlier one.
    pub(super) fn take_cache(&mut self) -> MlpCache<F> {
        self.cache.take().unwrap_or_default()
    }

    pub(super) fn give_cache(&mut self, cache: MlpCache<F>) {
        self.cache = Some(cache);
    }

    /// An empty list with the memory of an earlier one.
    pub(super) fn take_grads(&mut self) -> Vec<LayerGrads<F>> {
        std::mem::take(&mut self.grads)
    }

    pub(super) fn recycle_grads(&mut self, grads: Grads<F>) {
        let mut layers = grads.into_layers();
        for layer in layers.drain(..) {
            match layer {
                LayerGrads::None => {}
                LayerGrads::Linear(grads) => {
                    self.recycle(grads.dweight);
                    self.recycle_vector(grads.dbias.unwrap_or_default());
                }
                LayerGrads::Affine(grads) => {
                    self.recycle_vector(grads.dgamma);
                    self.recycle_vector(grads.dbeta);
                }
            }
        }
        self.grads = layers;
    }

    /// A mask of dropout with the memory of an earlier one.
    pub(super) fn take_mask(&mut self) -> DropoutCache {
        self.masks.pop().unwrap_or_default()
    }

    pub(super) fn give_mask(&mut self, mask: DropoutCache) {
        if self.masks.len() < SPARE {
            self.masks.push(mask);
        }
    }

    fn recycle_vector(&mut self, vector: Array1<F>) {
        self.give(vector.into_raw_vec_and_offset().0);
    }

    /// `activation(x w^T + b)` for `w` `[out, in]`.
    pub(super) fn affine(
        &mut self,
        x: ArrayView2<'_, F>,
        weight: &Array2<F>,
        bias: Option<&[F]>,
        activation: Fused,
    ) -> Array2<F> {
        let (outputs, depth) = weight.dim();
        let mut y = self.array(x.nrows(), outputs); // [n, out]
        let w = Matrix::new(elements(weight), outputs, depth);
        as_matrix(x, |x| {
            self.divide(&mut y, depth, |isa, rows, columns, y, scratch| {
                let (first, count) = columns;
                let bias = bias.map(|bias| &bias[first..first + count]);
                let (x, w) = (x.row_range(rows.0, rows.1), w.row_range(first, count));
                affine(isa, x, w, bias, activation, y, scratch);
            });
        });
        y
    }

    /// As [`affine`](Self::affine), with the bits of it, for weights that are packed already.
    pub(super) fn affine_packed(
        &mut self,
        x: ArrayView2<'_, F>,
        weight: &PackedReal<F>,
        bias: Option<&[F]>,
        activation: Fused,
    ) -> Array2<F> {
        let mut y = self.array(x.nrows(), weight.outputs()); // [n, out]
        as_matrix(x, |x| {
            self.divide(&mut y, weight.inputs(), |isa, rows, columns, y, scratch| {
                let (first, x) = (columns.0 / PANEL, x.row_range(rows.0, rows.1));
                let panels = first..first + columns.1.div_ceil(PANEL);
                multiply(isa, x, weight, panels, bias, activation, y, scratch);
            });
        });
        y
    }

    /// `a b`.
    pub(super) fn product(&mut self, a: ArrayView2<'_, F>, b: ArrayView2<'_, F>) -> Array2<F> {
        let mut c = self.array(a.nrows(), b.ncols());
        as_matrix(a, |a| {
            as_matrix(b, |b| {
                self.divide(&mut c, a.columns(), |isa, rows, columns, c, scratch| {
                    let (a, b) = (a.row_range(rows.0, rows.1), b.column_range(columns.0, columns.1));
                    product(isa, a, b, Update::Replace, c, scratch);
                });
            });
        });
        c
    }

    /// Divides the rows or columns of `c`, whichever are more, among the threads: the parts pack the rest twice.
    /// Calls `part(isa, (first row, rows), (first column, columns), part of c, scratch)`.
    fn divide(
        &mut self,
        c: &mut Array2<F>,
        depth: usize,
        part: impl Fn(Isa, (usize, usize), (usize, usize), MatrixMut<'_, F>, &mut ScratchReal<F>) + Sync,
    ) {
        let (rows, columns) = c.dim();
        let pool = self.pool(rows.saturating_mul(columns).saturating_mul(depth));
        let parts = pool.threads();
        if self.scratch.len() < parts {
            self.scratch.resize_with(parts, Mutex::default);
        }
        let (isa, scratch) = (self.isa, &self.scratch);
        let run = |index: usize, rows, columns, c: MatrixMut<'_, F>| {
            if let Some(scratch) = scratch.get(index) {
                part(isa, rows, columns, c, &mut scratch.lock().unwrap_or_else(PoisonError::into_inner));
            }
        };
        let c = MatrixMut::new(elements_mut(c), rows, columns);
        let width = columns.div_ceil(PANEL).div_ceil(parts) * PANEL;
        if parts == 1 || rows == 0 || columns == 0 {
            run(0, (0, rows), (0, columns), c);
        } else if rows > columns || width >= columns {
            let height = rows.div_ceil(parts);
            pool.run_rows(c, height, |i, c| run(i, (i * height, c.rows()), (0, columns), c));
        } else {
            pool.run_columns(c, width, |i, c| run(i, (0, rows), (i * width, c.columns()), c));
        }
    }
}

/// `x` as the kernels see it; a copy only if neither rows nor columns are contiguous.
fn as_matrix<F: Float, R>(x: ArrayView2<'_, F>, run: impl FnOnce(Matrix<'_, F>) -> R) -> R {
    let (rows, columns) = x.dim();
    if let Some(data) = x.to_slice() {
        run(Matrix::new(data, rows, columns))
    } else if let Some(data) = x.reversed_axes().to_slice() {
        run(Matrix::new(data, columns, rows).transposed())
    } else {
        let copy = x.as_standard_layout();
        run(Matrix::new(copy.as_slice().unwrap_or_default(), rows, columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array, s};

    fn numbers(rows: usize, columns: usize, salt: usize) -> Array2<f32> {
        Array::from_shape_fn((rows, columns), |(i, j)| ((i * 31 + j * 17 + salt) % 23) as f32 / 7.0 - 1.5)
    }

    #[test]
    fn products_are_the_same_bits_for_any_number_of_threads() {
        // Large enough to be divided: by columns, by rows, and with fewer panels than threads.
        for (rows, columns, depth) in [(60, 300, 90), (500, 100, 60), (300, 30, 300), (30, 60, 1000)] {
            let (a, b) = (numbers(rows, depth, 1), numbers(depth, columns, 2));
            let bias: Vec<f32> = (0..columns).map(|j| j as f32).collect();
            let run = |threads| {
                let mut workspace = Workspace::with_threads(threads);
                let w = b.t().as_standard_layout().into_owned();
                let y = workspace.affine(a.view(), &w, Some(&bias), Fused::Relu);
                (workspace.product(a.view(), b.view()), y)
            };
            let (c, y) = run(1);
            for threads in [2, 3, 7] {
                assert_eq!(run(threads), (c.clone(), y.clone()), "{threads} threads");
            }
            let sums = a.dot(&b);
            let close = |x: &Array2<f32>, y: &Array2<f32>| x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-2);
            assert!(close(&c, &sums));
            assert!(close(&y, &(sums + Array1::from_vec(bias.clone())).mapv(|y| y.max(0.0))));
        }
    }

    #[test]
    fn any_strides_multiply_alike() {
        let mut workspace = Workspace::with_threads(1);
        let (a, b) = (numbers(14, 20, 1), numbers(20, 6, 2));
        let c = workspace.product(a.view(), b.view());
        let (at, bt) = (a.t().as_standard_layout().into_owned(), b.t().as_standard_layout().into_owned());
        assert_eq!(workspace.product(at.t(), bt.t()), c);
        let reversed = a.slice(s![..;-1, ..]).as_standard_layout().into_owned();
        assert_eq!(workspace.product(reversed.slice(s![..;-1, ..]), b.view()), c);
    }

    #[test]
    fn what_was_given_back_is_used_again() {
        let mut workspace = Workspace::<f64>::with_threads(1);
        let first = workspace.array(3, 4);
        let at = first.as_ptr();
        workspace.recycle(first);
        let (again, another) = (workspace.array(2, 6), workspace.array(2, 6));
        assert_eq!(again.as_ptr(), at);
        assert_ne!(another.as_ptr(), at);
    }
}
