//! The laws of the traits, written once: every implementation passes them for every shape, stride and value.
//!
//! A new compressor adds one line to a `compressor_laws!` list.

use std::fmt::Debug;

use ndarray::{Array2, Ix2, ShapeBuilder, s};
use proptest::prelude::*;
use trimnet::{Compressed, Compressor, Error, Float};

/// Weights `[0..=13, 0..=40]`: zeros, ties, ordinary, tiny and huge ones.
pub fn weights() -> impl Strategy<Value = Array2<f32>> {
    let weight = prop_oneof![
        2 => Just(0.0_f32),
        4 => (-4_i8..=4).prop_map(|w| f32::from(w) / 4.0),
        8 => -3.0_f32..3.0,
        1 => prop_oneof![Just(-0.0_f32), Just(1e-40), Just(-1e-20), Just(1e30), Just(-1e30)],
    ];
    (0..=13_usize, 0..=40_usize).prop_flat_map(move |shape| {
        proptest::collection::vec(weight.clone(), shape.0 * shape.1)
            .prop_map(move |weights| Array2::from_shape_vec(shape, weights).unwrap())
    })
}

/// Everything that holds for a compressor.
pub fn compressor<F: Float, C>(compressor: &C, weights: &Array2<F>)
where
    C: Compressor<F, Ix2>,
    C::Output: PartialEq + Debug,
{
    sees_only_the_weights(compressor, weights);
    changes_nothing_twice(compressor, weights);
    refuses_what_is_not_finite(compressor, weights);
}

/// Same input, same output, however it lies in memory; and the shape comes back.
pub fn sees_only_the_weights<F: Float, C>(compressor: &C, weights: &Array2<F>)
where
    C: Compressor<F, Ix2>,
    C::Output: PartialEq + Debug,
{
    let output = compressor.compress(weights.view()).unwrap();
    assert_eq!(output, compressor.compress(weights.view()).unwrap(), "the second time");
    assert_eq!(output.raw_dim(), weights.raw_dim());
    assert_eq!(output.decompress().unwrap().dim(), weights.dim());

    let mut column_major = Array2::zeros(weights.raw_dim().f());
    column_major.assign(weights);
    assert_eq!(output, compressor.compress(column_major.view()).unwrap(), "column-major");
    let (rows, columns) = weights.dim();
    let mut holes = Array2::from_elem((2 * rows, 3 * columns), F::of(77.0));
    holes.slice_mut(s![..;2, ..;3]).assign(weights);
    assert_eq!(output, compressor.compress(holes.slice(s![..;2, ..;3])).unwrap(), "strided");
    let reversed = weights.slice(s![..;-1, ..;-1]).as_standard_layout().into_owned();
    assert_eq!(output, compressor.compress(reversed.slice(s![..;-1, ..;-1])).unwrap(), "negative strides");

    let mut out = Array2::from_elem(weights.raw_dim().f(), F::of(77.0));
    output.decompress_into(out.view_mut()).unwrap();
    assert_eq!(out, output.decompress().unwrap(), "into a column-major array");
    let mut wrong = Array2::zeros((rows + 1, columns));
    assert!(matches!(output.decompress_into(wrong.view_mut()), Err(Error::Shape { .. })));
}

/// Compressing the decompressed tensor again changes nothing.
pub fn changes_nothing_twice<F: Float, C: Compressor<F, Ix2>>(compressor: &C, weights: &Array2<F>) {
    let once = compressor.compress(weights.view()).unwrap().decompress().unwrap();
    let twice = compressor.compress(once.view()).unwrap().decompress().unwrap();
    assert_eq!(once, twice);
}

/// NaN and infinity are refused with an error that names the index.
pub fn refuses_what_is_not_finite<F: Float, C: Compressor<F, Ix2>>(compressor: &C, weights: &Array2<F>)
where
    C::Output: Debug,
{
    let (rows, columns) = weights.dim();
    if weights.is_empty() {
        return;
    }
    let place = [rows / 2, columns - 1];
    for bad in [F::nan(), F::infinity(), F::neg_infinity()] {
        let mut weights = weights.clone();
        weights[place] = bad;
        match compressor.compress(weights.view()) {
            Err(Error::NotFinite { index, value, .. }) => {
                assert_eq!(index, place);
                assert!(value == bad.as_f64() || value.is_nan());
            }
            other => panic!("{bad} gave {other:?}"),
        }
    }
}

/// One test per compressor, in both precisions: `compressor_laws! { name: compressor, .. }`.
macro_rules! compressor_laws {
    ($($name:ident: $compressor:expr),* $(,)?) => {
        proptest::proptest! {
            #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
            $(
                #[test]
                fn $name(weights in $crate::laws::weights()) {
                    let compressor = $compressor;
                    $crate::laws::compressor(&compressor, &weights);
                    $crate::laws::compressor(&compressor, &weights.mapv(f64::from));
                }
            )*
        }
    };
}

pub(crate) use compressor_laws;
