//! The element type of every tensor: `f32` or `f64`.

use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{Array2, ArrayRef2, ArrayView, Dimension, NdFloat};
use num_traits::{FromPrimitive, ToPrimitive};

use crate::error::{Error, Result};
use crate::kernel::{Exp, Isa, PART, Pool, Work, with};

#[cfg(feature = "serde")]
pub(crate) mod number;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// A floating-point element, `f32` or `f64`. Sealed: half floats are a storage format only.
pub trait Float:
    sealed::Sealed + NdFloat + Exp + FromPrimitive + ToPrimitive + Default + std::iter::Sum
{
    /// Bytes of one element.
    const BYTES: usize;

    /// The nearest value of this type.
    fn of(x: f64) -> Self;

    /// The same value as `f64`, exactly.
    fn as_f64(self) -> f64;

    /// Rounds to the nearest integer, ties to the even one.
    fn round_half_even(self) -> Self;

    /// The nearest integer, ties to even, for `|x| < 2^22`: a sum instead of a call. Other numbers give any integer.
    #[doc(hidden)]
    fn small_int(self) -> i32;

    /// The nearest value of this type.
    #[doc(hidden)]
    fn of_int(x: i32) -> Self;
}

macro_rules! float {
    ($t:ty, $anchor:expr) => {
        impl Float for $t {
            const BYTES: usize = size_of::<$t>();

            #[inline(always)]
            fn of(x: f64) -> Self {
                x as $t
            }

            #[inline(always)]
            fn as_f64(self) -> f64 {
                f64::from(self)
            }

            #[inline(always)]
            fn round_half_even(self) -> Self {
                self.round_ties_even()
            }

            #[inline(always)]
            fn small_int(self) -> i32 {
                // At 1.5 * 2^(mantissa bits) the distance of neighbours is 1: the sum rounds, its last bits count.
                const ANCHOR: $t = $anchor;
                (self + ANCHOR).to_bits().wrapping_sub(ANCHOR.to_bits()) as i32
            }

            #[inline(always)]
            fn of_int(x: i32) -> Self {
                x as $t
            }
        }
    };
}

float!(f32, 12_582_912.0);
float!(f64, 6_755_399_441_055_744.0);

/// Refuses NaN and infinity, naming the first place where one stands.
pub(crate) fn check_finite<F: Float, D: Dimension>(
    what: &'static str,
    x: &ArrayView<'_, F, D>,
) -> Result<()> {
    check_finite_on(&Pool::single(), what, x)
}

/// [`check_finite`] on all threads of `pool` where that pays; does not allocate.
pub(crate) fn check_finite_on<F: Float, D: Dimension>(
    pool: &Pool,
    what: &'static str,
    x: &ArrayView<'_, F, D>,
) -> Result<()> {
    if x.as_slice_memory_order().is_some_and(|x| all_finite(pool, x)) {
        return Ok(());
    }
    for (flat, &value) in x.iter().enumerate() {
        if !value.is_finite() {
            return Err(Error::NotFinite { what, index: unravel(flat, x.shape()), value: value.as_f64() });
        }
    }
    Ok(())
}

fn all_finite<F: Float>(pool: &Pool, x: &[F]) -> bool {
    let isa = Isa::best();
    if !pool.pays(size_of_val(x) as f64 / BYTES_PER_NANOSECOND) {
        return with(isa, AllFinite(x));
    }
    let finite = AtomicBool::new(true);
    pool.run(x.len().div_ceil(PART), |i| {
        let part = &x[i * PART..x.len().min((i + 1) * PART)];
        if !with(isa, AllFinite(part)) {
            finite.store(false, Ordering::Relaxed);
        }
    });
    finite.into_inner()
}

/// What one thread looks at, about.
const BYTES_PER_NANOSECOND: f64 = 64.0;

/// One pass without branches, which the compiler turns into vectors.
struct AllFinite<'a, F>(&'a [F]);

impl<F: Float> Work for AllFinite<'_, F> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        self.0.iter().fold(true, |all, x| all & x.is_finite())
    }
}

/// The index of the `flat`-th element in row-major order.
pub(crate) fn unravel(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, &length) in index.iter_mut().zip(shape).rev() {
        *i = flat % length.max(1);
        flat /= length.max(1);
    }
    index
}

/// Refuses an array whose shape is not the expected one.
#[inline]
pub(crate) fn check_shape(what: &'static str, actual: &[usize], expected: &[usize]) -> Result<()> {
    // Number by number: comparing slices is a call of the C library, which one row of a small network would feel.
    if actual.len() == expected.len() && actual.iter().zip(expected).all(|(a, b)| a == b) {
        return Ok(());
    }
    Err(Error::Shape { what, actual: actual.to_vec(), expected: expected.to_vec() })
}

/// The same matrix with contiguous rows: itself if it has them already, else a copy.
pub(crate) fn into_rows<F: Float>(x: Array2<F>) -> Array2<F> {
    if x.is_standard_layout() { x } else { x.as_standard_layout().into_owned() }
}

/// The elements of a matrix that went through [`into_rows`], row after row.
pub(crate) fn elements<F: Float>(x: &ArrayRef2<F>) -> &[F] {
    debug_assert!(x.is_standard_layout());
    x.as_slice().unwrap_or_default()
}

/// [`elements`], to write.
pub(crate) fn elements_mut<F: Float>(x: &mut ArrayRef2<F>) -> &mut [F] {
    debug_assert!(x.is_standard_layout());
    x.as_slice_mut().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn names_the_first_infinity_in_a_transposed_view() {
        let x = array![[0.0, 1.0, f64::INFINITY], [f64::NAN, 2.0, 3.0]];
        let error = check_finite("weights", &x.t()).unwrap_err();
        assert_eq!(error.to_string(), "weights is NaN at index [0, 1]; only finite numbers are allowed");
    }

    #[test]
    fn many_numbers_are_looked_at_by_all_threads() {
        let mut x = ndarray::Array1::from_elem(10 * PART + 7, 1.0f32);
        for pool in [Pool::single(), Pool::new(3)] {
            assert!(check_finite_on(&pool, "input", &x.view()).is_ok());
            for at in [0, 5 * PART, 10 * PART + 6] {
                x[at] = f32::NEG_INFINITY;
                let error = check_finite_on(&pool, "input", &x.view()).unwrap_err().to_string();
                assert!(error.contains(&format!("[{at}]")), "{error}");
                x[at] = 1.0;
            }
        }
    }

    #[test]
    fn small_integers_are_rounded_half_even() {
        for quarter in -16_000_000..16_000_000 {
            let x = f64::from(quarter) / 4.0;
            assert_eq!(x.small_int(), x.round_ties_even() as i32);
            assert_eq!((x as f32).small_int(), (x as f32).round_ties_even() as i32);
        }
    }

    #[test]
    fn accepts_the_extremes() {
        let x = array![f32::MAX, f32::MIN, f32::MIN_POSITIVE, -0.0];
        assert!(check_finite("weights", &x.view()).is_ok());
    }
}
