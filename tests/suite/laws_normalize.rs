//! What every normalizer promises, one battery for all of them.

use ndarray::{Array2, Axis, array, s};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::normalize::{BatchNorm, BnConvention, LayerNorm, MinMax, Standard};
use trimnet::{Error, Float, Normalizer};

/// A batch whose values are well apart along both axes, so that differences of 1e-5 see a smooth function.
fn batch<F: Float>(rows: usize, features: usize, seed: u64) -> Array2<F> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    Array2::from_shape_fn((rows, features), |(i, j)| {
        F::of(((5 * i + 3 * j) % 7) as f64 + 0.4 * rng.random::<f64>() - 3.0)
    })
}

/// Numbers in 0.5..1.5.
fn weights<F: Float>(rows: usize, features: usize, seed: u64) -> Array2<F> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(!seed);
    Array2::from_shape_simple_fn((rows, features), || F::of(0.5 + rng.random::<f64>()))
}

fn batch_norm<F: Float>(features: usize) -> BatchNorm<F> {
    let part = |seed| weights(1, features, seed).row(0).to_owned();
    BatchNorm::from_parts(part(1), part(2), part(3), part(4), 1e-5).unwrap()
}

fn batch_norm_onnx<F: Float>(features: usize) -> BatchNorm<F> {
    batch_norm(features).with_convention(BnConvention::Onnx)
}

fn layer_norm<F: Float>(features: usize) -> LayerNorm<F> {
    let part = |seed| weights(1, features, seed).row(0).to_owned();
    LayerNorm::from_parts(part(1), part(2), 1e-5).unwrap()
}

fn min_max<F: Float>(features: usize) -> MinMax<F> {
    MinMax::fit(batch(5, features, 7).view()).unwrap().with_range(-0.5, 2.0).unwrap()
}

fn standard<F: Float>(features: usize) -> Standard<F> {
    Standard::fit(batch(5, features, 7).view()).unwrap()
}

fn close<F: Float>(a: &Array2<F>, b: &Array2<F>, tolerance: f64) -> Result<(), TestCaseError> {
    prop_assert_eq!(a.dim(), b.dim());
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a.as_f64(), b.as_f64());
        prop_assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{} and {}", a, b);
    }
    Ok(())
}

/// The loss is `sum(dy * y)`, so that its gradient by `y` is `dy`.
fn backward_matches_finite_differences(
    norm: impl Normalizer<f64> + Clone,
    x: &Array2<f64>,
    dy: &Array2<f64>,
) -> Result<(), TestCaseError> {
    let loss = |x: &Array2<f64>| {
        let (y, _) = norm.clone().normalize_batch(x.clone()).unwrap();
        (y * dy).sum()
    };
    let (_, cache) = norm.clone().normalize_batch(x.clone()).unwrap();
    let (dx, _) = norm.backward(cache, dy.clone());
    let h = 1e-5;
    let numeric = Array2::from_shape_fn(x.dim(), |index| {
        let (mut above, mut below) = (x.clone(), x.clone());
        above[index] += h;
        below[index] -= h;
        (loss(&above) - loss(&below)) / (2.0 * h)
    });
    close(&dx, &numeric, 1e-6)
}

/// Single precision gives what double precision gives, forward and backward.
fn precisions_agree<A, B>(
    mut single: A,
    mut double: B,
    x: &Array2<f64>,
    dy: &Array2<f64>,
) -> Result<(), TestCaseError>
where
    A: Normalizer<f32>,
    B: Normalizer<f64>,
{
    let narrow = |x: &Array2<f64>| x.mapv(|x| x as f32);
    let wide = |x: Array2<f32>| x.mapv(f64::from);
    close(&wide(single.normalize(narrow(x)).unwrap()), &double.normalize(x.clone()).unwrap(), 1e-4)?;
    let (y, cache) = single.normalize_batch(narrow(x)).unwrap();
    let (expected, expected_cache) = double.normalize_batch(x.clone()).unwrap();
    close(&wide(y), &expected, 1e-4)?;
    let (dx, _) = single.backward(cache, narrow(dy));
    close(&wide(dx), &double.backward(expected_cache, dy.clone()).0, 1e-4)
}

fn strided_input_gives_what_its_copy_gives(
    norm: impl Normalizer<f64> + Clone,
    x: &Array2<f64>,
    dy: &Array2<f64>,
) -> Result<(), TestCaseError> {
    let columns = |x: &Array2<f64>| x.t().as_standard_layout().into_owned().reversed_axes();
    let sliced = |x: &Array2<f64>| {
        let mut big = Array2::from_elem((2 * x.nrows(), x.ncols() + 3), f64::NAN);
        big.slice_mut(s![..;-2, 2..2 + x.ncols()]).assign(x);
        big.slice_move(s![..;-2, 2..2 + x.ncols()])
    };
    let (y, cache) = norm.clone().normalize_batch(x.clone()).unwrap();
    let (dx, _) = norm.backward(cache, dy.clone());
    for (odd_x, odd_dy) in [(columns(x), sliced(dy)), (sliced(x), columns(dy))] {
        prop_assert!(x.ncols() == 1 || !odd_x.is_standard_layout());
        let (odd_y, cache) = norm.clone().normalize_batch(odd_x.clone()).unwrap();
        prop_assert_eq!(&odd_y, &y);
        prop_assert_eq!(&norm.backward(cache, odd_dy).0, &dx);
        prop_assert_eq!(norm.normalize(odd_x).unwrap(), norm.normalize(x.clone()).unwrap());
    }
    Ok(())
}

/// A constant added along the axis of the statistics is invisible in training.
fn shifts_are_invisible(
    norm: impl Normalizer<f64> + Clone,
    along: Axis,
    x: &Array2<f64>,
) -> Result<(), TestCaseError> {
    let (y, _) = norm.clone().normalize_batch(x.clone()).unwrap();
    let mut shifted = x.clone();
    for (i, mut lane) in shifted.lanes_mut(along).into_iter().enumerate() {
        lane += 10.0 * i as f64 - 4.0;
    }
    close(&norm.clone().normalize_batch(shifted).unwrap().0, &y, 1e-9)
}

/// Whatever the numbers and the shape, the answer is a result or an error.
fn nothing_panics<F: Float, N: Normalizer<F>>(norm: &mut N, x: &Array2<F>, dy: &Array2<F>) {
    let _ = norm.normalize(x.clone());
    let _ = norm.denormalize(x.clone());
    if let Ok((y, cache)) = norm.normalize_batch(x.clone()) {
        assert_eq!(y.dim(), x.dim());
        let (dx, _) = norm.backward(cache, dy.clone());
        assert_eq!(dx.dim(), x.dim());
        assert!(dy.dim() == x.dim() || dx.iter().all(|dx| dx.is_nan()));
    }
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => -10.0..10.0,
        1 => prop::sample::select(vec![
            0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 1e-320, 1e-40, 3e38, 1e200,
        ]),
    ]
}

fn hostile() -> impl Strategy<Value = Array2<f64>> {
    (0_usize..4, 0_usize..4).prop_flat_map(|dim| {
        prop::collection::vec(number(), dim.0 * dim.1)
            .prop_map(move |x| Array2::from_shape_vec(dim, x).unwrap())
    })
}

macro_rules! laws {
    ($name:ident, statistics along $axis:expr, inverse: $inverse:expr) => {
        mod $name {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(48))]

                #[test]
                fn keeps_the_laws(rows in 2_usize..8, features in 2_usize..8, seed: u64) {
                    let (x, dy) = (batch(rows, features, seed), weights(rows, features, seed));
                    backward_matches_finite_differences($name::<f64>(features), &x, &dy)?;
                    precisions_agree($name::<f32>(features), $name::<f64>(features), &x, &dy)?;
                    strided_input_gives_what_its_copy_gives($name::<f64>(features), &x, &dy)?;
                    shifts_are_invisible($name::<f64>(features), $axis, &x)?;
                    let norm = $name::<f64>(features);
                    if $inverse {
                        let y = norm.normalize(x.clone()).unwrap();
                        close(&norm.denormalize(y).unwrap(), &x, 1e-9)?;
                    } else {
                        let refused = matches!(norm.denormalize(x), Err(Error::Unsupported { .. }));
                        prop_assert!(refused);
                    }
                }

                #[test]
                fn never_panics(x in hostile(), dy in hostile(), features in 1_usize..4) {
                    nothing_panics(&mut $name::<f64>(features), &x, &dy);
                    let narrow = |x: &Array2<f64>| x.mapv(|x| x as f32);
                    nothing_panics(&mut $name::<f32>(features), &narrow(&x), &narrow(&dy));
                }
            }

            #[test]
            fn refuses_another_width() {
                let mut norm = $name::<f32>(3);
                let x = Array2::zeros((2, 4));
                for error in [norm.normalize(x.clone()).err(), norm.normalize_batch(x).err()] {
                    let message = error.unwrap().to_string();
                    assert_eq!(message, "x has shape [2, 4], expected [2, 3]");
                }
            }

            #[test]
            fn a_gradient_of_another_shape_gives_nan() {
                let mut norm = $name::<f64>(3);
                let (_, cache) = norm.normalize_batch(batch(4, 3, 1)).unwrap();
                let (dx, _) = norm.backward(cache, Array2::ones((3, 4)));
                assert_eq!(dx.dim(), (4, 3));
                assert!(dx.iter().all(|dx| dx.is_nan()));
            }

            #[test]
            fn survives_a_constant_batch() {
                let mut norm = $name::<f32>(3);
                let (y, cache) = norm.normalize_batch(Array2::from_elem((4, 3), 0.1)).unwrap();
                let (dx, _) = norm.backward(cache, Array2::ones((4, 3)));
                assert!(y.iter().chain(&dx).all(|value| value.is_finite()));
            }
        }
    };
}

laws!(batch_norm, statistics along Axis(0), inverse: true);
laws!(batch_norm_onnx, statistics along Axis(0), inverse: true);
laws!(layer_norm, statistics along Axis(1), inverse: false);
laws!(min_max, statistics along Axis(0), inverse: true);
laws!(standard, statistics along Axis(0), inverse: true);

/// Means and population deviations of the columns.
fn moments(y: &Array2<f64>) -> (Array2<f64>, Array2<f64>) {
    let mean = y.mean_axis(Axis(0)).unwrap().insert_axis(Axis(0));
    (mean, y.std_axis(Axis(0), 0.0).insert_axis(Axis(0)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn batch_norm_has_mean_beta_and_deviation_gamma(rows in 2_usize..300, features in 1_usize..8, seed: u64) {
        let mut norm = batch_norm::<f64>(features).with_eps(1e-12).unwrap();
        let (y, _) = norm.normalize_batch(batch(rows, features, seed)).unwrap();
        let (mean, deviation) = moments(&y);
        close(&mean, &norm.beta().to_owned().insert_axis(Axis(0)), 1e-9)?;
        close(&deviation, &norm.gamma().to_owned().insert_axis(Axis(0)), 1e-9)?;
    }

    #[test]
    fn standard_has_mean_zero_and_deviation_one(rows in 2_usize..300, features in 1_usize..8, seed: u64) {
        let (y, _) = standard::<f64>(features).normalize_batch(batch(rows, features, seed)).unwrap();
        let (mean, deviation) = moments(&y);
        close(&mean, &Array2::zeros((1, features)), 1e-9)?;
        close(&deviation, &Array2::ones((1, features)), 1e-9)?;
    }

    #[test]
    fn layer_norm_rows_have_mean_zero_and_deviation_one(rows in 1_usize..8, features in 2_usize..100, seed: u64) {
        let mut norm = LayerNorm::<f64>::new(features).unwrap().with_eps(1e-12).unwrap();
        let (y, _) = norm.normalize_batch(batch(rows, features, seed)).unwrap();
        let (mean, deviation) = moments(&y.t().to_owned());
        close(&mean, &Array2::zeros((1, rows)), 1e-9)?;
        close(&deviation, &Array2::ones((1, rows)), 1e-9)?;
    }

    #[test]
    fn min_max_touches_both_ends_and_never_leaves(rows in 2_usize..50, features in 1_usize..8, seed: u64) {
        let (y, _) = min_max::<f32>(features).normalize_batch(batch(rows, features, seed)).unwrap();
        for column in y.columns() {
            let ends = column.iter().fold((f32::MAX, f32::MIN), |(lo, hi), &y| (lo.min(y), hi.max(y)));
            prop_assert_eq!(ends, (-0.5, 2.0));
        }
    }

    #[test]
    fn gradients_of_gamma_and_beta_match_finite_differences(rows in 2_usize..8, features in 2_usize..8, seed: u64) {
        let (x, dy) = (batch(rows, features, seed), weights(rows, features, seed));
        macro_rules! check {
            ($norm:expr) => {
                let norm = $norm;
                let (_, cache) = norm.clone().normalize_batch(x.clone()).unwrap();
                let (_, grads) = norm.backward(cache, dy.clone());
                let h = 1e-5;
                for j in 0..features {
                    let loss = |gamma: f64, beta: f64| {
                        let mut norm = norm.clone();
                        norm.affine_mut().0[j] += gamma;
                        norm.affine_mut().1[j] += beta;
                        (norm.normalize_batch(x.clone()).unwrap().0 * &dy).sum()
                    };
                    let dgamma = (loss(h, 0.0) - loss(-h, 0.0)) / (2.0 * h);
                    let dbeta = (loss(0.0, h) - loss(0.0, -h)) / (2.0 * h);
                    prop_assert!((grads.dgamma[j] - dgamma).abs() < 1e-6);
                    prop_assert!((grads.dbeta[j] - dbeta).abs() < 1e-6);
                }
            };
        }
        check!(batch_norm::<f64>(features));
        check!(layer_norm::<f64>(features));
    }

    #[test]
    fn folding_changes_no_output(features in 1_usize..8, inputs in 1_usize..8, seed: u64) {
        let norm = batch_norm::<f64>(features);
        let (x, mut weight) = (batch::<f64>(5, inputs, seed), batch::<f64>(features, inputs, !seed));
        let mut bias = weights::<f64>(1, features, seed).row(0).to_owned();
        let expected = norm.normalize(x.dot(&weight.t()) + &bias).unwrap();
        let (scale, shift) = norm.scale_shift();
        close(&((x.dot(&weight.t()) + &bias) * scale + shift), &expected, 1e-9)?;
        norm.fold_into(&mut weight, &mut bias).unwrap();
        close(&(x.dot(&weight.t()) + &bias), &expected, 1e-9)?;
    }
}

#[test]
fn inference_learns_nothing_and_training_does() {
    let mut norm = BatchNorm::<f32>::new(1).unwrap();
    let before = norm.clone();
    norm.normalize(array![[5.0]]).unwrap();
    assert_eq!(norm, before);
    norm.normalize_batch(array![[5.0], [6.0]]).unwrap();
    assert_ne!(norm, before);
}

#[cfg(feature = "serde")]
mod files {
    use super::*;
    use serde::{Serialize, de::DeserializeOwned};
    use std::fmt::Debug;

    fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) -> String {
        let json = serde_json::to_string(&value).unwrap();
        assert_eq!(serde_json::from_str::<T>(&json).unwrap(), value, "{json}");
        json
    }

    fn refused<T: DeserializeOwned>(json: &str, from: &str, to: &str) {
        assert!(json.contains(from), "{json} does not contain {from}");
        assert!(serde_json::from_str::<T>(&json.replacen(from, to, 1)).is_err(), "{from} -> {to} was read");
    }

    #[test]
    fn come_back_as_they_were_and_cannot_lie() {
        let json = round_trip(BatchNorm::<f32>::new(2).unwrap().with_momentum(None).unwrap().with_batches(3));
        refused::<BatchNorm<f32>>(
            &json,
            r#""running_var":{"v":1,"dim":[2],"data":[1.0,1.0]}"#,
            r#""running_var":{"v":1,"dim":[2],"data":[-1.0,1.0]}"#,
        );
        refused::<BatchNorm<f32>>(&json, r#""dim":[2],"data":[1.0,1.0]"#, r#""dim":[1],"data":[1.0]"#);
        refused::<BatchNorm<f32>>(&json, r#""eps":0.00001"#, r#""eps":-1.0"#);
        let json = round_trip(BatchNorm::<f64>::new(1).unwrap().with_momentum(Some(0.5)).unwrap());
        refused::<BatchNorm<f64>>(&json, "0.5", "1.5");

        let json = round_trip(LayerNorm::<f64>::new(2).unwrap());
        refused::<LayerNorm<f64>>(&json, r#""dim":[2],"data":[1.0,1.0]"#, r#""dim":[0],"data":[]"#);

        let json =
            round_trip(MinMax::fit(array![[1.0_f32], [2.0]].view()).unwrap().with_range(-4.0, 4.0).unwrap());
        refused::<MinMax<f32>>(&json, r#""data":[1.0]"#, r#""data":[3.0]"#);
        refused::<MinMax<f32>>(&json, "-4.0", "4.0");

        let json = round_trip(Standard::fit(array![[1.0_f32], [2.0]].view()).unwrap());
        refused::<Standard<f32>>(&json, "0.5", "-0.5");
        refused::<Standard<f32>>(&json, "[0.5]", "[0.5,0.5]");
        refused::<Standard<f32>>(&json, r#""rows":2"#, r#""rows":0"#);
    }
}
