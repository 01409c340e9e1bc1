//! The numbers of other runtimes, to the bit: ONNX Runtime 1.32, PyTorch 2.15, torchao 0.18, TFLite.

#![allow(clippy::excessive_precision)] // the digits of the sources, whose bits are checked below

use ndarray::{Array2, array};
use trimnet::Compressed;
use trimnet::quantize::{
    CodeRange, FixedMultiplier, Granularity, QuantParams, QuantizedTensor, Range, Requantization,
    Requantizer, Rounding, ScaleRule, Scheme, ZeroRange, dynamic_quantize_linear, integer_product,
};

const INF: f32 = f32::INFINITY;

fn one<F>(scale: F, zero_point: i32) -> QuantParams<F> {
    QuantParams { scale, zero_point }
}

fn params(scheme: Scheme, lo: f32, hi: f32) -> (f32, i32) {
    let QuantParams { scale, zero_point } = scheme.params(Range::new(lo, hi).unwrap());
    (scale, zero_point)
}

fn ort_int8_affine() -> Scheme {
    Scheme::int8_symmetric_128().with_rule(ScaleRule::AffineOnnxRuntime).unwrap()
}

fn torch_int8_symmetric() -> Scheme {
    Scheme::int8_symmetric_128()
        .with_zero_range(ZeroRange::TorchEps)
        .with_rounding(Rounding::HalfEvenReciprocal)
}

// QuantizeLinear

#[test]
fn quantize_linear_int8() {
    let int8 = Scheme::int8_symmetric_128();
    let x = [-1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, -128.5, 300.0, -300.0, 1e9, -1e9, INF, -INF, f32::NAN];
    let codes = [-2, 0, 0, 2, 2, 126, 127, -128, 127, -128, 127, -128, 127, -128, -128];
    assert_eq!(int8.quantize(&x, one(1.0, 0)).unwrap(), codes);
    // The zero point is added after rounding.
    assert_eq!(int8.quantize(&[-0.5, 0.5, 1.5, 2.5], one(1.0, 1)).unwrap(), [1, 1, 3, 3]);
    assert_eq!(int8.quantize(&x.map(f64::from), one(1.0, 0)).unwrap(), codes);
}

#[test]
fn quantize_linear_uint8() {
    let x = [-1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, 300.0, -300.0, INF, -INF, f32::NAN];
    let codes = [0, 0, 0, 2, 2, 126, 128, 255, 0, 255, 0, 0];
    assert_eq!(Scheme::uint8_affine().quantize(&x, one(1.0, 0)).unwrap(), codes);
}

#[test]
fn quantize_linear_per_axis() {
    let x = array![[1.0f32, -2.0, 3.0], [4.0, 5.0, -6.0]];
    let scheme = Scheme::int8_symmetric_128().per_channel(0);
    let tensor = QuantizedTensor::with_params(scheme, &[one(0.5, 0), one(2.0, 1)], x.view()).unwrap();
    assert_eq!(tensor.codes(), array![[2, -4, 6], [3, 3, -2]]);
}

#[test]
fn quantize_linear_blocked() {
    let x = array![[1.0f32, -2.0, 3.0, 4.0], [5.0, 6.0, -7.0, 8.0]];
    let scheme = Scheme::int8_symmetric_128().per_group(1, 2).unwrap();
    let params = [one(0.5, 0), one(1.0, 0), one(1.0, 0), one(2.0, 1)];
    let tensor = QuantizedTensor::with_params(scheme, &params, x.view()).unwrap();
    assert_eq!(tensor.codes(), array![[2, -4, 3, 4], [5, 6, -3, 5]]);
    assert_eq!(tensor.scheme().granularity(), Granularity::PerGroup { axis: 1, size: 2 });
}

#[test]
fn dequantize_linear() {
    let codes = array![[-128, -1, 0, 127]];
    let tensor =
        QuantizedTensor::from_codes(Scheme::int8_symmetric_128(), &[one(0.5f32, -1)], codes.view()).unwrap();
    assert_eq!(tensor.decompress().unwrap(), array![[-63.5, 0.0, 0.5, 64.0]]);
}

#[test]
fn division_and_the_reciprocal_differ_on_ties() {
    let divide = Scheme::int8_symmetric_128();
    let reciprocal = divide.with_rounding(Rounding::HalfEvenReciprocal);
    for (scale, x, by_division, by_reciprocal) in
        [(0.002f32, 0.003, 2, 1), (0.003, 0.0045, 1, 2), (0.023, 0.0345, 2, 1), (0.048, 0.072, 1, 2)]
    {
        assert_eq!(divide.quantize(&[x], one(scale, 0)).unwrap(), [by_division], "{x} / {scale}");
        assert_eq!(reciprocal.quantize(&[x], one(scale, 0)).unwrap(), [by_reciprocal], "{x} * (1 / {scale})");
    }
}

// DynamicQuantizeLinear

#[test]
fn dynamic_quantize_linear_is_the_operator() {
    type Case<'a> = (&'a [f32], &'a [u8], f32, u8);
    let cases: [Case<'_>; 12] = [
        (&[0.0, 2.0, -3.0, -2.5, 1.34, 0.5], &[153, 255, 0, 26, 221, 179], 0.019607844, 153),
        (&[-1.0, 1.0], &[0, 254], 0.0078431377, 127),
        (&[-1.0, 2.0], &[0, 255], 0.011764706, 85),
        (&[3.0, 5.0], &[153, 255], 0.019607844, 0),
        (&[-5.0, -3.0], &[0, 102], 0.019607844, 255),
        (&[1.0, 2.1, 1.3, 2.5, 3.34, 4.0], &[64, 134, 83, 159, 213, 255], 0.015686275, 0),
        (&[-1.0, -2.0], &[128, 0], 0.007843138, 255),
        (&[3.0, 3.0], &[255, 255], 0.011764706, 0),
        (&[0.0, 0.0], &[0, 0], 1.0, 0),
        (&[1e-40, 0.0], &[255, 0], 3.923636e-43, 0),
        (&[0.0, f32::NAN, 1.0], &[0, 0, 255], 0.003921569, 0),
        (&[INF, 1.0], &[0, 0], INF, 0),
    ];
    for (x, codes, scale, zero_point) in cases {
        assert_eq!(dynamic_quantize_linear(x), (codes.to_vec(), scale, zero_point), "{x:?}");
    }
}

#[test]
fn the_dynamic_rule_gives_the_operators_scales() {
    let dynamic = Scheme::uint8_affine().with_rule(ScaleRule::AffineDynamic).unwrap();
    for x in [[-1.0, 1.0], [-1.0, 2.0], [3.0, 5.0], [-5.0, -3.0], [-2.0, -1.0], [3.0, 3.0], [0.0, 0.0]] {
        let (codes, scale, zero_point) = dynamic_quantize_linear(&x);
        assert_eq!(params(dynamic, x[0], x[1]), (scale, zero_point.into()), "{x:?}");
        let ours = dynamic.quantize(&x, one(scale, zero_point.into())).unwrap();
        assert_eq!(ours, codes.iter().map(|&code| i32::from(code)).collect::<Vec<_>>(), "{x:?}");
    }
}

// Scale and zero point from a range

/// The literals of the tables, by their bits.
#[test]
fn the_literals_are_the_bits() {
    for (literal, bits) in [
        (0.011764706f32, 0x3c40c0c1),
        (0.015686275, 0x3c808081),
        (0.015748031, 0x3c810204),
        (0.023529412, 0x3cc0c0c1),
        (0.023622047, 0x3cc18306),
        (0.03137255, 0x3d008081),
        (0.031496063, 0x3d010204),
        (0.007843138, 0x3c008081),
        (0.007874016, 0x3c010204),
    ] {
        assert_eq!(literal.to_bits(), bits, "{literal}");
    }
}

#[test]
fn scales_of_a_range() {
    const EPS: f32 = 1.1920929e-7;
    type Row = ((f32, f32), [(f32, i32); 4]);
    // ONNX Runtime int8 affine, PyTorch int8 affine, ONNX Runtime int8 symmetric, PyTorch int8 symmetric.
    let rows: [Row; 8] = [
        ((-1.0, 2.0), [(0.011764706, -43), (0.011764706, -43), (0.015748031, 0), (0.015686275, 0)]),
        ((0.0, 4.0), [(0.015686275, -128), (0.015686275, -128), (0.031496063, 0), (0.03137255, 0)]),
        ((-3.0, 0.0), [(0.011764706, 127), (0.011764706, 127), (0.023622047, 0), (0.023529412, 0)]),
        ((1.0, 3.0), [(0.011764706, -128), (0.011764706, -128), (0.023622047, 0), (0.023529412, 0)]),
        ((0.0, 0.0), [(1.0, 0), (EPS, -128), (1.0, 0), (EPS, 0)]),
        ((-1.0, 1.0), [(0.007843138, 0), (0.007843138, -1), (0.007874016, 0), (0.007843138, 0)]),
        ((0.0, 1e-40), [(1.0, 0), (EPS, -128), (1.0, 0), (EPS, 0)]),
        ((-1e-36, 1e-36), [(1.0, 0), (EPS, -128), (1.0, 0), (EPS, 0)]),
    ];
    let schemes = [
        ort_int8_affine(),
        Scheme::torch_affine(8, true).unwrap(),
        Scheme::int8_symmetric_127(),
        torch_int8_symmetric(),
    ];
    for ((lo, hi), expected) in rows {
        for (scheme, expected) in schemes.iter().zip(expected) {
            assert_eq!(params(*scheme, lo, hi), expected, "{lo}..{hi} under {scheme:?}");
        }
    }
}

#[test]
fn scales_of_uint8() {
    let ort = Scheme::uint8_affine();
    let torch = Scheme::torch_affine(8, false).unwrap();
    let dynamic = ort.with_rule(ScaleRule::AffineDynamic).unwrap();
    // f64 sees a tie in (-1, 1), f32 does not.
    assert_eq!([ort, torch, dynamic].map(|scheme| params(scheme, -1.0, 1.0).1), [128, 127, 127]);
    for scheme in [ort, torch] {
        for ((lo, hi), zero_point) in
            [((-1.0, 2.0), 85), ((-3.0, 0.0), 255), ((0.0, 4.0), 0), ((1.0, 3.0), 0)]
        {
            assert_eq!(params(scheme, lo, hi).1, zero_point);
        }
    }
    assert_eq!(params(ort, -1.0, 3.0), (0.015686275, 64));
    assert_eq!(params(ort.with_rule(ScaleRule::Symmetric).unwrap(), -1.0, 1.0), (0.007843138, 128));
    assert_eq!(params(torch, 3.0, 3.0), (0.011764706, 0));
    assert_eq!(params(torch.with_codes(CodeRange::Reduced).unwrap(), -1.0, 0.5), (0.011811024, 85));
}

#[test]
fn more_scales_of_onnx_runtime() {
    assert_eq!(params(ort_int8_affine(), 0.5, 3.0), (0.011764706, -128));
    let int4 = Scheme::symmetric(4).unwrap().with_codes(CodeRange::Full).unwrap();
    assert_eq!(params(int4, 1.0, 2.0), (0.26666668, 0));
    assert_eq!(params(Scheme::int8_symmetric_127(), -3e38, 3e38), (2.3622048e36, 0));
}

#[test]
fn code_ranges_of_onnx_runtime() {
    let limits = |scheme: Scheme| (scheme.qmin(), scheme.qmax());
    let (int8, int16) = (Scheme::int8_symmetric_127(), Scheme::symmetric(16).unwrap());
    let (uint8, int4) = (Scheme::uint8_affine(), Scheme::symmetric(4).unwrap());
    let uint16 = Scheme::affine(16).unwrap().with_rule(ScaleRule::Symmetric).unwrap();
    assert_eq!(limits(int8.with_codes(CodeRange::Full).unwrap()), (-128, 127));
    assert_eq!(limits(int8), (-127, 127));
    assert_eq!(limits(int8.with_codes(CodeRange::ReducedNarrow).unwrap()), (-64, 64));
    assert_eq!(params(int8.with_codes(CodeRange::ReducedNarrow).unwrap(), -2.0, 1.0), (2.0 / 64.0, 0));
    assert_eq!(limits(int8.with_codes(CodeRange::Reduced).unwrap()), (-64, 63));
    assert_eq!(limits(uint8), (0, 255));
    assert_eq!(limits(uint8.with_codes(CodeRange::Reduced).unwrap()), (0, 127));
    assert_eq!(limits(int16), (-32_767, 32_767));
    assert_eq!(params(uint16, -1.0, 1.0).1, 32_768);
    assert_eq!(limits(int4.with_codes(CodeRange::Full).unwrap()), (-8, 7));
    assert_eq!(limits(int4.with_codes(CodeRange::Reduced).unwrap()), (-4, 3));
    let int2 = Scheme::symmetric(2).unwrap();
    assert_eq!(limits(int2.with_codes(CodeRange::Full).unwrap()), (-2, 1));
}

#[test]
fn the_floors_of_torchao_and_gptq() {
    let torchao = Scheme::int8_symmetric_128().with_zero_range(ZeroRange::TorchaoTiny);
    assert_eq!(params(torchao, 0.0, 0.0), (f32::MIN_POSITIVE, 0));
    let no_clipping = torchao.with_rule(ScaleRule::SymmetricNoClipping).unwrap();
    assert_eq!(params(no_clipping, -1.0, 1.0), (1.0 / 127.0, 0));
    assert_eq!(params(no_clipping, -1.0, 0.5), (1.0 / 128.0, 0));
    let gptq = Scheme::affine(4).unwrap().with_zero_range(ZeroRange::GptqUnit);
    assert_eq!(params(gptq, 0.0, 0.0), (2.0 / 15.0, 8));
}

#[test]
fn a_channel_of_zeros_does_not_disturb_the_others() {
    use trimnet::{Compressor, quantize::UniformQuantizer};
    let rows = array![[0.0f32, 0.0], [1.0, -2.0]];
    let compress =
        |scheme: Scheme| UniformQuantizer::new(scheme.per_channel(0)).compress(rows.view()).unwrap();
    assert_eq!(compress(torch_int8_symmetric()).scales(), [1.1920929e-7, 0.015686275]);
    assert_eq!(compress(Scheme::int8_symmetric_127()).scales(), [1.0, 0.015748031]);
}

#[test]
fn a_narrower_range_reaches_the_lowest_code_unless_codes_are_narrow() {
    let x = [-2.0f32, 1.0];
    let range = Range::new(-1.0, 1.0).unwrap();
    let ours = Scheme::int8_symmetric_127();
    let params = ours.params(range);
    assert_eq!(Scheme::int8_symmetric_128().quantize(&x, params).unwrap(), [-128, 127]);
    assert_eq!(ours.quantize(&x, params).unwrap(), [-127, 127]);
    let measured = ours.params(Range::of(&x).unwrap());
    assert_eq!(measured.scale, 0.015748031);
    assert_eq!(ours.quantize(&x, measured).unwrap(), [-127, 64]);
}

// Integer products

fn coded(scheme: Scheme, zero_point: i32, codes: Array2<i32>) -> QuantizedTensor<f32, ndarray::Ix2> {
    QuantizedTensor::from_codes(scheme, &[one(1.0, zero_point)], codes.view()).unwrap()
}

#[test]
fn matmul_integer() {
    let a = coded(Scheme::uint8_affine(), 2, array![[1, 2], [3, 4]]);
    let b = array![[5, -6], [7, 8]];
    let w = coded(Scheme::int8_symmetric_128(), 1, b.t().to_owned());
    assert_eq!(integer_product(&a, &w).unwrap(), array![[-4, 7], [16, 7]]);
}

/// ONNX Runtime gives -1,693,967,296 here; the true sum is 2,601,000,000.
#[test]
fn a_product_that_would_wrap_is_refused() {
    let tensor = || coded(Scheme::uint8_affine(), 0, Array2::from_elem((1, 40_000), 255));
    let error = integer_product(&tensor(), &tensor()).unwrap_err().to_string();
    assert!(error.contains("2601000000"), "{error}");
}

fn requantized(
    how: Requantization,
    multiplier: f32,
    scheme: Scheme,
    zero_point: i32,
    acc: &[i32],
) -> Vec<i32> {
    let mut codes = vec![0; acc.len()];
    let requantizer = Requantizer::new(how, &[multiplier], 1.0, zero_point, &scheme).unwrap();
    requantizer.apply(acc, &mut codes).unwrap();
    codes
}

#[test]
fn qlinear_matmul_ties_go_to_even() {
    let acc = [1, 3, 5, 7, 9, 0, 2];
    let half = |acc: &[i32]| requantized(Requantization::HalfEven, 0.5, Scheme::uint8_affine(), 128, acc);
    assert_eq!(half(&acc), [0, 2, 2, 4, 4, 0, 1].map(|y| y + 128));
    assert_eq!(half(&acc.map(|acc| -acc)), [0, -2, -2, -4, -4, 0, -1].map(|y| y + 128));
}

#[test]
fn qlinear_matmul() {
    let b = array![[1, -1], [2, -2], [3, 5]];
    let cases = [
        ((0.5f32, 2), 1.0f32, (1.0f32, 128), array![[2, 6], [767, 1257]], [129, 131, 255, 255]),
        (
            (1.0 / 255.0, 128),
            1.0 / 127.0,
            (0.05, 100),
            array![[-754, -246], [11, 1005]],
            [100, 100, 100, 101],
        ),
    ];
    for ((a_scale, a_zero), b_scale, (y_scale, y_zero), expected_acc, expected) in cases {
        let a = coded(Scheme::uint8_affine(), a_zero, array![[1, 2, 3], [4, 5, 255]]);
        let w = coded(Scheme::int8_symmetric_128(), 0, b.t().to_owned());
        let acc = integer_product(&a, &w).unwrap();
        assert_eq!(acc, expected_acc);
        let how = Requantization::HalfEven;
        let requantizer =
            Requantizer::new(how, &[a_scale * b_scale], y_scale, y_zero, &Scheme::uint8_affine()).unwrap();
        let mut codes = [0; 4];
        requantizer.apply(acc.as_slice().unwrap(), &mut codes).unwrap();
        assert_eq!(codes, expected);
    }
}

// TFLite requantization

#[test]
fn quantize_multiplier() {
    for (multiplier, q, shift) in [
        (0.0, 0, 0),
        (1.0, 1_073_741_824, 1),
        (0.5, 1_073_741_824, 0),
        (0.25, 1_073_741_824, -1),
        (0.75, 1_610_612_736, 0),
        (1.5, 1_610_612_736, 1),
        (0.1, 1_717_986_918, -3),
        (0.0003, 1_319_413_953, -11),
        ((-31f64).exp2(), 1_073_741_824, -30),
        ((-32f64).exp2(), 1_073_741_824, -31),
        ((-33f64).exp2(), 0, 0),
        (1.0 - (-32f64).exp2(), 1_073_741_824, 1),
    ] {
        assert_eq!(FixedMultiplier::new(multiplier).unwrap(), FixedMultiplier { q, shift }, "{multiplier}");
    }
}

#[test]
fn the_three_requantizations_on_ties() {
    let acc = [-7, -6, -5, -3, -2, -1, 1, 2, 3, 5, 6, 7, 9, 10];
    let half = [-3, -3, -2, -1, -1, 0, 1, 1, 2, 3, 3, 4, 5, 5];
    let rows = [
        (0.5, Requantization::TfliteSingle, half),
        (0.5, Requantization::TfliteDouble, half),
        (0.5, Requantization::HalfEven, [-4, -3, -2, -2, -1, 0, 0, 1, 2, 2, 3, 4, 4, 5]),
        (0.25, Requantization::TfliteSingle, [-2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3]),
        (0.25, Requantization::TfliteDouble, [-2, -2, -1, -1, -1, 0, 1, 1, 1, 2, 2, 2, 3, 3]),
        (0.25, Requantization::HalfEven, [-2, -2, -1, -1, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2]),
    ];
    for (multiplier, how, expected) in rows {
        let codes = requantized(how, multiplier, Scheme::int8_symmetric_128(), 0, &acc);
        assert_eq!(codes, expected, "{how:?} times {multiplier}");
    }
}

#[test]
fn single_and_double_rounding_of_a_thousand() {
    let near_half = FixedMultiplier { q: (1 << 30) + (1 << 27), shift: 0 };
    assert_eq!([1000, -1000].map(|x| near_half.single(x)), [563, -562]);
    assert_eq!([1000, -1000].map(|x| near_half.double(x)), [563, -562]);
    let sixteenth = FixedMultiplier { q: i32::MAX, shift: -4 };
    assert_eq!([1000, -1000].map(|x| sixteenth.single(x)), [62, -62]);
    assert_eq!([1000, -1000].map(|x| sixteenth.double(x)), [63, -63]);
}
