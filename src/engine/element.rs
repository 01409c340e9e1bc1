//! The numbers of an engine: `f32`, or `f64`, whose integer layers still scale their sums in `f32`.

use crate::float::Float;
use crate::kernel::{MatrixMut, PaletteReal, SparseReal};

/// The element type of an [`Engine`](super::Engine): `f32` or `f64`.
///
/// Integer sums become real numbers in `f32` for both, as ONNX Runtime does it.
pub trait Element: Float + SparseReal + PaletteReal {
    /// The numbers in `f32`: themselves, or copied to `spare`, those beyond its largest as that.
    #[doc(hidden)]
    fn narrow<'a>(x: &'a [Self], spare: &'a mut Vec<f32>) -> &'a [f32];

    /// Lets `write` fill `out` with numbers of `f32`, in place or by way of `spare`.
    #[doc(hidden)]
    fn fill(out: MatrixMut<'_, Self>, spare: &mut Vec<f32>, write: impl FnOnce(MatrixMut<'_, f32>));
}

impl Element for f32 {
    fn narrow<'a>(x: &'a [Self], _spare: &'a mut Vec<f32>) -> &'a [f32] {
        x
    }

    fn fill(out: MatrixMut<'_, Self>, _spare: &mut Vec<f32>, write: impl FnOnce(MatrixMut<'_, f32>)) {
        write(out);
    }
}

impl Element for f64 {
    fn narrow<'a>(x: &'a [Self], spare: &'a mut Vec<f32>) -> &'a [f32] {
        spare.clear();
        spare.extend(x.iter().map(|&x| (x as f32).clamp(f32::MIN, f32::MAX)));
        spare
    }

    fn fill(mut out: MatrixMut<'_, Self>, spare: &mut Vec<f32>, write: impl FnOnce(MatrixMut<'_, f32>)) {
        let (rows, columns) = (out.rows(), out.columns());
        spare.resize(spare.len().max(rows * columns), 0.0);
        let narrow = &mut spare[..rows * columns];
        write(MatrixMut::new(narrow, rows, columns));
        for (i, narrow) in narrow.chunks_exact(columns.max(1)).enumerate() {
            for (out, &x) in out.row_mut(i).iter_mut().zip(narrow) {
                *out = f64::from(x);
            }
        }
    }
}
