//! What every regularizer and every weight penalty promises, one battery for all of them.

use ndarray::{Array2, array, s};
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::regularize::{Dropout, GaussianNoise, Groups, Penalty};
use trimnet::{Error, Float, Regularizer};

fn rng(seed: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// Numbers in -1..1.
fn values<F: Float>(dim: (usize, usize), seed: u64) -> Array2<F> {
    let mut rng = rng(!seed);
    Array2::from_shape_simple_fn(dim, || F::of(2.0 * rng.random::<f64>() - 1.0))
}

fn perturbed<F: Float, R: Regularizer<F>>(
    regularizer: &R,
    x: &Array2<F>,
    seed: u64,
) -> (Array2<F>, R::Cache) {
    regularizer.perturb(x.clone(), &mut rng(seed))
}

/// Same seed, same output, in both precisions; one number is drawn from the generator, whatever the shape.
fn one_seed_one_output<R>(regularizer: &R, dim: (usize, usize), seed: u64) -> Result<(), TestCaseError>
where
    R: Regularizer<f32> + Regularizer<f64>,
{
    let x = values::<f64>(dim, seed);
    let (y, _) = perturbed(regularizer, &x, seed);
    prop_assert_eq!(&y, &perturbed(regularizer, &x, seed).0);
    let (single, _) = perturbed(regularizer, &x.mapv(|x| x as f32), seed);
    for (&a, &b) in single.iter().zip(&y) {
        prop_assert_eq!(a == 0.0, b == 0.0);
        prop_assert!((f64::from(a) - b).abs() <= 1e-5 * (1.0 + b.abs()));
    }
    let (mut used, mut expected) = (rng(seed), rng(seed));
    regularizer.perturb(x, &mut used);
    expected.next_u64();
    prop_assert_eq!(used, expected);
    Ok(())
}

/// `y = x * g` and `dx = dy * g` with one `g`, and finite differences agree.
fn backward_uses_the_same_draw(
    regularizer: &impl Regularizer<f64>,
    dim: (usize, usize),
    seed: u64,
) -> Result<(), TestCaseError> {
    let (x, dy) = (values::<f64>(dim, seed), values::<f64>(dim, seed ^ 1));
    let (gain, _) = perturbed(regularizer, &Array2::ones(dim), seed);
    let (y, cache) = perturbed(regularizer, &x, seed);
    prop_assert_eq!(&y, &(&x * &gain));
    let dx = regularizer.backward(cache, dy.clone());
    prop_assert_eq!(&dx, &(&dy * &gain));

    let loss = |x: &Array2<f64>| (perturbed(regularizer, x, seed).0 * &dy).sum();
    let h = 1e-3;
    for index in [(0, 0), (dim.0 / 2, dim.1 / 2), (dim.0 - 1, dim.1 - 1)] {
        let (mut above, mut below) = (x.clone(), x.clone());
        above[index] += h;
        below[index] -= h;
        let numeric = (loss(&above) - loss(&below)) / (2.0 * h);
        prop_assert!((dx[index] - numeric).abs() < 1e-9 * (1.0 + numeric.abs()));
    }
    Ok(())
}

/// A draw belongs to a position in row-major order, not to a shape, a layout or a batch.
fn draws_belong_to_positions(
    regularizer: &impl Regularizer<f64>,
    dim: (usize, usize),
    seed: u64,
) -> Result<(), TestCaseError> {
    let (x, dy) = (values::<f64>(dim, seed), values::<f64>(dim, seed ^ 1));
    let (y, cache) = perturbed(regularizer, &x, seed);
    let dx = regularizer.backward(cache, dy.clone());

    let columns = |x: &Array2<f64>| x.t().as_standard_layout().into_owned().reversed_axes();
    let sliced = |x: &Array2<f64>| {
        let mut big = Array2::from_elem((2 * x.nrows(), x.ncols() + 3), f64::NAN);
        big.slice_mut(s![..;-2, 2..2 + x.ncols()]).assign(x);
        big.slice_move(s![..;-2, 2..2 + x.ncols()])
    };
    for (odd_x, odd_dy) in [(columns(&x), sliced(&dy)), (sliced(&x), columns(&dy))] {
        let (odd_y, cache) = perturbed(regularizer, &odd_x, seed);
        prop_assert_eq!(&odd_y, &y);
        prop_assert_eq!(&regularizer.backward(cache, odd_dy), &dx);
    }

    let rows = dim.0.div_ceil(2);
    let part = x.slice(s![..rows, ..]).to_owned();
    prop_assert_eq!(perturbed(regularizer, &part, seed).0, y.slice(s![..rows, ..]));
    let flat = x.clone().into_shape_with_order((1, x.len())).unwrap();
    let (flat, _) = perturbed(regularizer, &flat, seed);
    prop_assert!(flat.iter().eq(&y));
    Ok(())
}

/// The mean of the gain over many draws is 1, within 5 standard errors.
fn keeps_the_mean(regularizer: &impl Regularizer<f64>, deviation: f64) {
    for seed in 0..8 {
        let (y, _) = perturbed(regularizer, &Array2::ones((400, 250)), seed);
        let error = (y.mean().unwrap() - 1.0).abs();
        let standard_error = deviation / (y.len() as f64).sqrt();
        assert!(error <= 5.0 * standard_error, "seed {seed}: mean off by {error}, {standard_error}");
        let spread = y.std(0.0);
        assert!((spread - deviation).abs() <= 0.1 * deviation, "seed {seed}: {spread}, expected {deviation}");
    }
}

macro_rules! laws {
    ($name:ident, $make:expr, deviation of the gain: $deviation:expr) => {
        mod $name {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(48))]

                #[test]
                fn keeps_the_laws(rows in 1_usize..20, columns in 1_usize..40, seed: u64) {
                    let (regularizer, dim) = ($make, (rows, columns));
                    one_seed_one_output(&regularizer, dim, seed)?;
                    backward_uses_the_same_draw(&regularizer, dim, seed)?;
                    draws_belong_to_positions(&regularizer, dim, seed)?;
                }
            }

            #[test]
            fn keeps_the_mean() {
                super::keeps_the_mean(&$make, $deviation);
            }

            #[test]
            fn takes_empty_batches_and_answers_another_shape_with_nan() {
                for dim in [(0, 3), (3, 0), (0, 0)] {
                    let (y, cache) = perturbed(&$make, &Array2::<f32>::zeros(dim), 1);
                    assert_eq!(y.dim(), dim);
                    assert_eq!($make.backward(cache, y).dim(), dim);
                }
                let (_, cache) = perturbed(&$make, &Array2::<f32>::ones((2, 3)), 1);
                let dx = $make.backward(cache, Array2::<f32>::ones((3, 2)));
                assert_eq!(dx.dim(), (2, 3));
                assert!(dx.iter().all(|dx| dx.is_nan()));
            }
        }
    };
}

laws!(no_dropout, Dropout::new(0.0).unwrap(), deviation of the gain: 0.0);
laws!(little_dropout, Dropout::new(0.01).unwrap(), deviation of the gain: (0.01_f64 / 0.99).sqrt());
laws!(half_dropout, Dropout::new(0.5).unwrap(), deviation of the gain: 1.0);
laws!(much_dropout, Dropout::new(0.9).unwrap(), deviation of the gain: 3.0);
laws!(no_noise, GaussianNoise::new(0.0).unwrap(), deviation of the gain: 0.0);
laws!(gaussian_noise, GaussianNoise::new(0.3).unwrap(), deviation of the gain: 0.3);

#[test]
fn dropout_drops_the_promised_share() {
    for p in [0.001, 0.1, 0.3, 0.5, 0.8, 0.999] {
        let (y, _) = perturbed(&Dropout::new(p).unwrap(), &Array2::<f32>::ones((1000, 200)), 3);
        let share = y.iter().filter(|&&y| y == 0.0).count() as f64 / 200_000.0;
        assert!((share - p).abs() < 5.0 * (p * (1.0 - p) / 200_000.0).sqrt() + 1e-5, "{p}: {share}");
    }
}

#[test]
fn neighbours_are_dropped_independently() {
    let n = 100_000;
    let (y, _) = perturbed(&Dropout::new(0.5).unwrap(), &Array2::<f32>::ones((1, n)), 4);
    let y: Vec<f64> = y.iter().map(|&y| f64::from(y) - 1.0).collect();
    for lag in [1, 2, 8, 16, 32, 64, 128, 512] {
        let correlation = y.windows(lag + 1).map(|w| w[0] * w[lag]).sum::<f64>() / n as f64;
        assert!(correlation.abs() < 5.0 / (n as f64).sqrt(), "lag {lag}: {correlation}");
    }
}

/// The same formulas in Python give these bits.
#[test]
fn a_seed_gives_the_same_numbers_for_ever() {
    let ones = Array2::<f64>::ones((1, 8));
    let (y, _) = perturbed(&Dropout::new(0.5).unwrap(), &ones, 1);
    assert_eq!(y, array![[0.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 2.0]]);
    let (y, _) = perturbed(&GaussianNoise::new(0.5).unwrap(), &ones, 1);
    let expected = array![[
        1.1816587009828672,
        0.6370095585952495,
        0.3887418554974277,
        1.334753576700635,
        1.0313265182691287,
        1.5327926708505757,
        0.9804330498071399,
        0.32152424766928567
    ]];
    assert!((&y - &expected).iter().all(|difference| difference.abs() < 1e-14), "{y}");
}

fn penalties() -> Vec<Penalty> {
    vec![
        Penalty::l1(0.3).unwrap(),
        Penalty::l2(0.3).unwrap(),
        Penalty::keras_l2(0.3).unwrap(),
        Penalty::elastic(0.2, 0.7).unwrap(),
        Penalty::group_lasso(0.3, Groups::Rows).unwrap(),
        Penalty::group_lasso(0.3, Groups::Columns).unwrap(),
        Penalty::group_lasso_by_size(0.3, Groups::Rows).unwrap(),
        Penalty::group_lasso_by_size(0.3, Groups::Columns).unwrap(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn gradients_of_penalties_match_finite_differences(rows in 1_usize..6, columns in 1_usize..6, seed: u64) {
        // Away from 0, where the absolute value has a corner.
        let w = values::<f64>((rows, columns), seed).mapv(|w| w + 0.1 * w.signum());
        for penalty in penalties() {
            let mut dw = Array2::ones(w.dim());
            penalty.add_gradient(w.view(), dw.view_mut()).unwrap();
            let h = 1e-5;
            for (index, dw) in dw.indexed_iter() {
                let (mut above, mut below) = (w.clone(), w.clone());
                above[index] += h;
                below[index] -= h;
                let numeric = (penalty.value(above.view()) - penalty.value(below.view())) / (2.0 * h);
                prop_assert!((dw - 1.0 - numeric).abs() < 1e-7, "{:?}: {}, {}", penalty, dw - 1.0, numeric);
            }
        }
    }

    #[test]
    fn penalties_ignore_layout_and_precision(rows in 0_usize..6, columns in 0_usize..6, seed: u64) {
        let w = values::<f64>((rows, columns), seed);
        let transposed = w.t().as_standard_layout().into_owned();
        let single = w.mapv(|w| w as f32);
        for penalty in penalties() {
            let (mut dw, mut dt) = (Array2::zeros(w.dim()), Array2::zeros(transposed.dim()));
            let mut single_dw = Array2::zeros(w.dim());
            penalty.add_gradient(w.view(), dw.view_mut()).unwrap();
            penalty.add_gradient(transposed.t(), dt.view_mut().reversed_axes()).unwrap();
            penalty.add_gradient(single.view(), single_dw.view_mut()).unwrap();
            prop_assert_eq!(&dw, &dt.t());
            let value = penalty.value(w.view());
            prop_assert!((penalty.value(transposed.t()) - value).abs() <= 1e-12);
            prop_assert!((f64::from(penalty.value(single.view())) - value).abs() <= 1e-5);
            prop_assert!(single_dw.iter().zip(&dw).all(|(&a, b)| (f64::from(a) - b).abs() <= 1e-5));
        }
    }
}

#[test]
fn penalties_refuse_another_shape_and_survive_what_is_not_finite() {
    for penalty in penalties() {
        let mut dw = Array2::<f32>::zeros((3, 2));
        let error = penalty.add_gradient(Array2::zeros((2, 3)).view(), dw.view_mut());
        assert!(matches!(error, Err(Error::Shape { .. })));
        for bad in [f32::NAN, f32::INFINITY] {
            let w = array![[bad, 1.0], [1.0, 2.0], [0.0, 0.0]];
            assert!(!penalty.value(w.view()).is_finite());
            penalty.add_gradient(w.view(), dw.view_mut()).unwrap();
        }
    }
}
