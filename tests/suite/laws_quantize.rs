//! Laws of the quantizers, over every scheme: those of a compressor, and what a code may do to a number.

use ndarray::{Array2, Axis, Ix2, array};
use proptest::prelude::*;
use trimnet::quantize::{
    Clustering, CodeRange, GptqQuantizer, Granularity, PaletteQuantizer, QuantizedTensor, Range, RangeMethod,
    RatioQuantizer, Rounding, ScaleRule, Scheme, Start, UniformQuantizer, ZeroRange,
};
use trimnet::{Compressed, Compressor, Erased, Error, Float};

use crate::laws;

const ROUNDINGS: [Rounding; 6] = [
    Rounding::HalfEvenDivide,
    Rounding::HalfEvenReciprocal,
    Rounding::HalfAwayFromZero,
    Rounding::HalfUp,
    Rounding::Truncate,
    Rounding::Stochastic { seed: 5 },
];
const RULES: [ScaleRule; 5] = [
    ScaleRule::Symmetric,
    ScaleRule::SymmetricNoClipping,
    ScaleRule::AffineOnnxRuntime,
    ScaleRule::AffineTorch,
    ScaleRule::AffineDynamic,
];
const CODES: [CodeRange; 4] =
    [CodeRange::Full, CodeRange::Narrow, CodeRange::Reduced, CodeRange::ReducedNarrow];
const RANGES: [RangeMethod; 3] =
    [RangeMethod::MinMax, RangeMethod::Percentile(90.0), RangeMethod::LeastSquares];
const ZERO_RANGES: [ZeroRange; 4] =
    [ZeroRange::One, ZeroRange::TorchEps, ZeroRange::TorchaoTiny, ZeroRange::GptqUnit];

fn any_of<T: Copy + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(all)
}

/// Every scheme that can be made, for a matrix.
fn schemes() -> impl Strategy<Value = Scheme> {
    let numbers = (any_of(&[2u8, 3, 4, 5, 6, 7, 8, 16]), any::<bool>(), 0..5usize, 1..=50usize);
    let choices = (any_of(&RULES), any_of(&CODES), any_of(&ZERO_RANGES), any_of(&ROUNDINGS));
    (numbers, choices).prop_filter_map(
        "such a scheme does not exist",
        |((bits, signed, granularity, size), (rule, codes, zero_range, rounding))| {
            let scheme = Scheme::symmetric(bits).ok()?.with_signed(signed).ok()?;
            let scheme = scheme.with_codes(codes).ok()?.with_rule(rule).ok()?;
            let scheme = scheme.with_zero_range(zero_range).with_rounding(rounding);
            match granularity {
                0 => Some(scheme),
                axis @ 1..=2 => Some(scheme.per_channel(axis - 1)),
                axis => scheme.per_group(axis - 3, size).ok(),
            }
        },
    )
}

/// The largest error that a rounding makes, in steps.
fn largest_error(rounding: Rounding) -> f64 {
    if matches!(rounding, Rounding::Truncate | Rounding::Stochastic { .. }) { 1.0 } else { 0.5 }
}

/// The scale and zero point of every element.
fn per_element<F: Float>(tensor: &QuantizedTensor<F, Ix2>) -> Array2<(F, i32)> {
    let (rows, columns) = (tensor.shape()[0], tensor.shape()[1]);
    let params = tensor.params();
    Array2::from_shape_fn((rows, columns), |(i, j)| {
        use trimnet::quantize::Granularity::{PerChannel, PerGroup, PerTensor};
        let at = match tensor.scheme().granularity() {
            PerTensor => 0,
            PerChannel { axis } => [i, j][axis],
            PerGroup { axis: 0, size } => i / size * columns + j,
            PerGroup { size, .. } => i * columns.div_ceil(size) + j / size,
        };
        (params[at].scale, params[at].zero_point)
    })
}

fn quantizer<F: Float>(scheme: Scheme, range: RangeMethod, weights: &Array2<F>) {
    let quantizer = UniformQuantizer::new(scheme).with_range(range).unwrap();
    laws::sees_only_the_weights(&quantizer, weights);
    laws::refuses_what_is_not_finite(&quantizer, weights);

    let tensor = quantizer.compress(weights.view()).unwrap();
    let (codes, out) = (tensor.codes(), tensor.decompress().unwrap());
    let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
    let eps = F::epsilon().as_f64();
    for (((&w, &code), &out), &(scale, zero_point)) in
        weights.iter().zip(&codes).zip(&out).zip(&per_element(&tensor))
    {
        assert!((qmin..=qmax).contains(&code), "{code}");
        assert!((qmin..=qmax).contains(&zero_point), "{zero_point}");
        assert!(scale.is_finite() && scale > F::zero(), "{scale}");
        assert!(out.is_finite());
        let (w, out, scale) = (w.as_f64(), out.as_f64(), scale.as_f64());
        if w == 0.0 {
            assert!(out == 0.0 && code == zero_point, "zero became {out}");
        }
        let steps = w / scale + f64::from(zero_point);
        if steps >= qmin.into() && steps <= qmax.into() {
            let bound = largest_error(scheme.rounding()) * scale + 2.0 * eps * (w.abs() + scale);
            assert!((w - out).abs() <= bound, "{w} became {out}, scale {scale}");
        } else {
            assert!(code == if steps < qmin.into() { qmin } else { qmax }, "{w} became {out}, scale {scale}");
        }
    }

    let report = tensor.report(weights.view()).unwrap();
    let largest =
        weights.iter().zip(&out).map(|(w, out)| (w.as_f64() - out.as_f64()).abs()).fold(0.0, f64::max);
    assert!((report.max_error - largest).abs() <= 1e-12 * largest + f64::MIN_POSITIVE);
    assert_eq!(report.elements, weights.len());
    assert!(!report.sqnr_db.is_nan() && !report.mse.is_nan());

    let erased = Erased(quantizer).compress(weights.view()).unwrap();
    assert_eq!(erased.decompress().unwrap(), out);
    let bits = usize::from(scheme.bits());
    assert_eq!(tensor.packed().bytes().len(), (weights.len() * bits).div_ceil(8));
    let zero_points =
        if scheme.is_signed() && scheme.is_symmetric() { 0 } else { tensor.scales().len() * bits };
    let size = tensor.packed().bytes().len() + tensor.scales().len() * F::BYTES + zero_points.div_ceil(8);
    assert_eq!(tensor.size_bytes(), size);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_code_stands_for_a_number_at_most_half_a_step_away(scheme in schemes(), range in any_of(&RANGES), weights in laws::weights()) {
        quantizer(scheme, range, &weights);
        quantizer(scheme, range, &weights.mapv(f64::from));
    }

    #[test]
    fn order_is_preserved(scheme in schemes(), rounding in any_of(&ROUNDINGS[..5]), weights in laws::weights()) {
        let scheme = scheme.with_rounding(rounding);
        let tensor = UniformQuantizer::new(scheme.per_tensor()).compress(weights.view()).unwrap();
        let mut pairs: Vec<_> = weights.iter().copied().zip(tensor.codes()).collect();
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        prop_assert!(pairs.is_sorted_by_key(|pair| pair.1));
    }

    #[test]
    fn what_codes_stand_for_has_the_same_codes(
        scheme in schemes(), nearest in any_of(&ROUNDINGS[..4]), weights in laws::weights(),
    ) {
        let scheme = scheme.with_rounding(nearest);
        let once = UniformQuantizer::new(scheme).compress(weights.view()).unwrap();
        let again = once.decompress().unwrap();
        prop_assert_eq!(QuantizedTensor::with_params(scheme, &once.params(), again.view()).unwrap(), once);
    }

    /// The largest weight has the largest code, so the range is found again; rounding may move it by its last bit.
    #[test]
    fn narrow_symmetric_codes_survive_a_second_time(bits in 2..=8u8, weights in laws::weights()) {
        let quantizer = UniformQuantizer::new(Scheme::symmetric(bits).unwrap().per_channel(0));
        let once = quantizer.compress(weights.view()).unwrap();
        let twice = quantizer.compress(once.decompress().unwrap().view()).unwrap();
        for (i, (a, b)) in once.scales().iter().zip(twice.scales()).enumerate() {
            let zero = once.codes().index_axis(Axis(0), i).iter().all(|&code| code == 0);
            prop_assert!(zero || (a - b).abs() <= a * f32::EPSILON);
        }
        prop_assert_eq!(once.codes(), twice.codes());
    }

    #[test]
    fn any_range_gives_a_scale_that_is_finite_and_positive(scheme in schemes(), a: u64, b: u64) {
        fn check<F: Float>(scheme: &Scheme, a: F, b: F) {
            let Ok(range) = Range::new(a.min(b), a.max(b)) else { return };
            let params = scheme.params(range);
            assert!(params.scale.is_finite() && params.scale >= F::min_positive_value(), "{params:?}");
            assert!((scheme.qmin()..=scheme.qmax()).contains(&params.zero_point), "{params:?}");
            assert!(params.dequantize(params.zero_point) == F::zero());
            assert!(params.dequantize(scheme.qmin()).is_finite() && params.dequantize(scheme.qmax()).is_finite());
        }
        check(&scheme, f64::from_bits(a), f64::from_bits(b));
        check(&scheme, f32::from_bits(a as u32), f32::from_bits(b as u32));
        check(&scheme, f32::from_bits(a as u32), f32::from_bits(a as u32));
        check(&scheme, 0.0, f64::from_bits(b));
    }

    #[test]
    fn any_number_has_a_code(scheme in schemes(), x: Vec<u32>, scale: u32) {
        let x: Vec<f32> = x.into_iter().map(f32::from_bits).collect();
        let scale = f32::from_bits(scale);
        let codes = scheme.quantize(&x, trimnet::quantize::QuantParams { scale, zero_point: scheme.qmax() });
        let multiplies = scheme.rounding() == Rounding::HalfEvenReciprocal;
        let usable = scale > 0.0 && scale.is_finite() && !(multiplies && scale.recip().is_infinite());
        prop_assert_eq!(codes.is_ok(), usable, "scale {:e}", scale);
        for (x, code) in x.into_iter().zip(codes.unwrap_or_default()) {
            prop_assert!((scheme.qmin()..=scheme.qmax()).contains(&code));
            prop_assert!(!x.is_nan() || code == scheme.qmin());
        }
    }

    #[test]
    fn palettes_obey_the_laws_of_a_compressor(
        weights in laws::weights(),
        entries in 2..=20usize,
        granularity in any_of(&[
            Granularity::PerTensor,
            Granularity::PerChannel { axis: 0 },
            Granularity::PerChannel { axis: 1 },
            Granularity::PerGroup { axis: 0, size: 3 },
            Granularity::PerGroup { axis: 1, size: 7 },
        ]),
        clustering in any_of(&[
            Clustering::Auto,
            Clustering::Lloyd { start: Start::Linear, iterations: 30 },
            Clustering::Lloyd { start: Start::Density, iterations: 3 },
            Clustering::Lloyd { start: Start::PlusPlus { seed: 7 }, iterations: 30 },
        ]),
        keeps_zeros in any::<bool>(),
    ) {
        let quantizer = PaletteQuantizer::new(entries).unwrap().with_clustering(clustering);
        let quantizer = quantizer.with_granularity(granularity).unwrap();
        let quantizer = if keeps_zeros { quantizer } else { quantizer.with_zeros_clustered() };
        laws::compressor(&quantizer, &weights);
        laws::compressor(&quantizer, &weights.mapv(f64::from));
        if keeps_zeros {
            let out: Array2<f32> = quantizer.compress(weights.view()).unwrap().decompress().unwrap();
            prop_assert!(weights.iter().zip(&out).all(|(w, x)| *w != 0.0 || *x == 0.0));
        }
    }

    #[test]
    fn gptq_sees_only_the_weights_and_keeps_zeros(scheme in schemes(), range in any_of(&RANGES), weights in laws::weights()) {
        fn check<F: Float>(base: UniformQuantizer, weights: &Array2<F>) {
            let x = Array2::from_shape_fn((9, weights.ncols()), |(i, k)| F::of(((3 * i + k * k) % 7) as f64 - 2.0));
            if x.is_empty() {
                return;
            }
            let gptq = GptqQuantizer::new(base, x.view(), 0.1).unwrap();
            laws::sees_only_the_weights(&gptq, weights);
            laws::refuses_what_is_not_finite(&gptq, weights);
            let out = gptq.compress(weights.view()).unwrap().decompress().unwrap();
            assert!(weights.iter().zip(&out).all(|(w, x)| x.is_finite() && (*w != F::zero() || *x == F::zero())));
        }
        let base = UniformQuantizer::new(scheme).with_range(range).unwrap();
        check(base, &weights);
        check(base, &weights.mapv(f64::from));
    }

    #[test]
    fn the_ratio_form_obeys_the_laws_of_a_compressor(weights in laws::weights()) {
        let ratio = RatioQuantizer::new(100.0).unwrap();
        let weights = weights.mapv(|w| w.clamp(-9.0, 9.0));
        laws::compressor(&ratio, &weights);
        laws::compressor(&ratio, &weights.mapv(f64::from));
        let out: Array2<f32> = ratio.compress(weights.view()).unwrap().decompress().unwrap();
        prop_assert!(weights.iter().zip(&out).all(|(w, out)| (w - out).abs() <= 0.005 + 2e-6));
    }
}

#[test]
fn zeros_constants_subnormals_and_an_outlier_have_usable_scales() {
    let mut outlier = Array2::from_elem((3, 4), 1e-3f32);
    outlier[[1, 2]] = 1e30;
    let tensors = [
        Array2::zeros((3, 4)),
        Array2::from_elem((3, 4), 2.5),
        Array2::from_elem((3, 4), -2.5),
        Array2::from_elem((3, 4), 1e-42),
        Array2::from_elem((3, 4), f32::MAX),
        Array2::from_elem((3, 4), f32::MIN),
        outlier,
    ];
    for weights in tensors {
        for bits in (2..=8).chain([16]) {
            for scheme in [Scheme::symmetric(bits).unwrap(), Scheme::affine(bits).unwrap()] {
                for range in RANGES {
                    quantizer(scheme, range, &weights);
                    quantizer(scheme.per_channel(1), range, &weights);
                }
            }
        }
    }
}

#[test]
fn all_zeros_have_scale_one_and_zero_point_zero() {
    for scheme in [Scheme::default(), Scheme::uint8_affine()] {
        let tensor = UniformQuantizer::new(scheme).compress(Array2::<f32>::zeros((2, 3)).view()).unwrap();
        assert_eq!((tensor.scales(), tensor.zero_points()), (&[1.0][..], &[0][..]));
    }
}

#[test]
fn an_axis_that_the_tensor_has_not_is_an_error() {
    let weights = array![[1.0f32, 2.0]];
    for scheme in [Scheme::default().per_channel(2), Scheme::default().per_group(7, 3).unwrap()] {
        let error = UniformQuantizer::new(scheme).compress(weights.view()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
    let scalar = ndarray::arr0(1.0f32);
    assert!(UniformQuantizer::new(Scheme::default().per_channel(0)).compress(scalar.view()).is_err());
    let scalar = UniformQuantizer::new(Scheme::default()).compress(scalar.view()).unwrap();
    assert_eq!(scalar.decompress().unwrap(), ndarray::arr0(1.0));
}

#[test]
fn parameters_and_codes_that_do_not_fit_are_refused() {
    use trimnet::quantize::QuantParams;
    let x = array![[1.0f32, 2.0], [3.0, 4.0]];
    let params = |n, zero_point| vec![QuantParams { scale: 1.0f32, zero_point }; n];
    let int4 = Scheme::symmetric(4).unwrap().per_channel(0);
    assert!(QuantizedTensor::with_params(int4, &params(2, 0), x.view()).is_ok());
    assert!(QuantizedTensor::with_params(int4, &params(1, 0), x.view()).is_err());
    assert!(QuantizedTensor::with_params(int4, &params(3, 0), x.view()).is_err());
    assert!(QuantizedTensor::with_params(int4, &params(2, 8), x.view()).is_err());
    assert!(QuantizedTensor::from_codes(int4, &params(2, 0), array![[7, -7], [0, 1]].view()).is_ok());
    // -8 fits the bits, but is no narrow code.
    assert!(QuantizedTensor::from_codes(int4, &params(2, 0), array![[7, -8], [0, 1]].view()).is_err());
    assert!(QuantizedTensor::from_codes(int4, &params(2, 0), array![[7, 8], [0, 1]].view()).is_err());
}

#[test]
fn an_engine_gets_bytes() {
    let weights = array![[1.0f32, -1.0, 0.51]];
    let compress = |scheme| UniformQuantizer::new(scheme).compress(weights.view()).unwrap();
    assert_eq!(compress(Scheme::default()).packed().to_i8().unwrap(), [127, -127, 65]);
    assert_eq!(compress(Scheme::symmetric(4).unwrap()).packed().to_i8().unwrap(), [7, -7, 4]);
    assert_eq!(compress(Scheme::uint8_affine()).packed().to_u8().unwrap(), [255, 1, 193]);
    assert_eq!(compress(Scheme::uint8_affine()).packed().to_i8(), None);
    assert_eq!(compress(Scheme::symmetric(16).unwrap()).packed().to_i8(), None);
}

#[cfg(feature = "serde")]
mod stored {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn every_artifact_comes_back() {
        let weights = array![[0.3f32, -1.0, 0.1], [2.0, 0.0, -0.5]];
        let quantizer = UniformQuantizer::new(Scheme::affine(3).unwrap().per_group(1, 2).unwrap());
        let tensor = quantizer.compress(weights.view()).unwrap();
        let text = serde_json::to_string(&(quantizer, &tensor)).unwrap();
        assert_eq!(
            serde_json::from_str::<(UniformQuantizer, QuantizedTensor<f32, Ix2>)>(&text).unwrap(),
            (quantizer, tensor)
        );

        let ratio = RatioQuantizer::new(10.0).unwrap();
        let tensor = ratio.compress(weights.view()).unwrap();
        let text = serde_json::to_string(&(ratio, &tensor)).unwrap();
        assert_eq!(serde_json::from_str::<(RatioQuantizer, _)>(&text).unwrap(), (ratio, tensor));
    }

    #[test]
    fn hostile_tensors_are_errors() {
        let weights = array![[0.3f32, -1.0, 0.1], [2.0, 0.0, -0.5]];
        let tensor = UniformQuantizer::new(Scheme::symmetric(4).unwrap()).compress(weights.view()).unwrap();
        let good = serde_json::to_value(&tensor).unwrap();
        let read = |value: &Value| serde_json::from_value::<QuantizedTensor<f32, Ix2>>(value.clone());
        assert_eq!(read(&good).unwrap(), tensor);
        let changes: [(&str, Value); 16] = [
            ("/shape", json!([2, 4])),
            ("/shape", json!([0, 3])),
            ("/shape", json!([0, u64::MAX])),
            ("/shape", json!([u64::MAX, u64::MAX])),
            ("/scales", json!([])),
            ("/scales", json!([0.0])),
            ("/scales", json!([-1.0])),
            ("/scales", json!([1.0, 1.0])),
            ("/scales", json!([3e38])),
            ("/zero_points", json!([100])),
            ("/zero_points", json!([])),
            ("/codes/bits", json!(9)),
            ("/codes/len", json!(7)),
            ("/codes/signed", json!(false)),
            ("/codes/bytes", json!([0x88, 0, 0])),
            ("/scheme/bits", json!(5)),
        ];
        for (place, value) in changes {
            let mut bad = good.clone();
            *bad.pointer_mut(place).unwrap() = value.clone();
            assert!(read(&bad).is_err(), "{place} = {value}");
        }
        for (place, value) in
            [("/bits", json!(17)), ("/granularity", json!({"PerGroup": {"axis": 0, "size": 0}}))]
        {
            let mut bad = serde_json::to_value(Scheme::default()).unwrap();
            *bad.pointer_mut(place).unwrap() = value.clone();
            assert!(serde_json::from_value::<Scheme>(bad).is_err(), "{place} = {value}");
        }
        assert!(serde_json::from_str::<Range<f32>>("[2.0, 1.0]").is_err());
        assert!(serde_json::from_str::<RatioQuantizer>("-1.0").is_err());
        let tensor = RatioQuantizer::new(10.0).unwrap().compress(weights.view()).unwrap();
        for (place, value) in [("/ratio", json!(0.0)), ("/ratio", json!(1e-38)), ("/shape", json!([7, 1]))] {
            let mut bad = serde_json::to_value(&tensor).unwrap();
            *bad.pointer_mut(place).unwrap() = value.clone();
            let read = serde_json::from_value::<trimnet::quantize::RatioTensor<f32, Ix2>>(bad);
            assert!(read.is_err(), "{place} = {value}");
        }
    }
}
