//! The promises of `.trim` for tensors: every bit comes back, and the bytes are few.

use proptest::prelude::*;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use trimnet::io::trim::{
    Codes, EncodeOptions, Layout, Limits, Mapping, TensorData, Values, decode, encode, encoded_len,
    load_tensors, save_tensors, tensors_from_bytes, tensors_to_bytes,
};

const LAYOUTS: [Layout; 5] = [Layout::Dense, Layout::Bitmap, Layout::Gaps, Layout::Coded, Layout::Mixed];

/// Round trip under every layout, and under the free choice, which must be the smallest.
fn comes_back(tensor: &TensorData) -> Result<(), TestCaseError> {
    let limits = Limits::default();
    let mut least = usize::MAX;
    for layout in LAYOUTS {
        let options = EncodeOptions::default().with_layouts(&[layout]).with_image_width(4);
        let encoded = encode(tensor, &options);
        prop_assert_eq!(&decode(encoded.bytes(), &limits).unwrap(), tensor);
        prop_assert_eq!(encoded.parts().total(), encoded.bytes().len());
        least = least.min(encoded.bytes().len());
    }
    let encoded = encode(tensor, &EncodeOptions::default().with_image_width(4));
    prop_assert_eq!(&decode(encoded.bytes(), &limits).unwrap(), tensor);
    prop_assert_eq!(encoded.bytes().len(), least);
    Ok(())
}

fn shape() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![]),
        (0usize..40).prop_map(|n| vec![n]),
        (0usize..14, 0usize..14).prop_map(|(r, c)| vec![r, c]),
        (1usize..5, 1usize..5, 1usize..5).prop_map(|(a, b, c)| vec![a, b, c]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_f32_bits_come_back(shape in shape(), bits in proptest::collection::vec(any::<u32>(), 200), keep in proptest::collection::vec(0u8..4, 200)) {
        let n = shape.iter().product();
        let values = (0..n).map(|i| if keep[i % 200] == 0 { 0.0 } else { f32::from_bits(bits[i % 200]) }).collect();
        comes_back(&TensorData::new(shape, Values::F32(values)).unwrap())?;
    }

    #[test]
    fn any_f64_bits_come_back(shape in shape(), bits in proptest::collection::vec(any::<u64>(), 200), keep in proptest::collection::vec(0u8..4, 200)) {
        let n = shape.iter().product();
        let values = (0..n).map(|i| if keep[i % 200] == 0 { 0.0 } else { f64::from_bits(bits[i % 200]) }).collect();
        comes_back(&TensorData::new(shape, Values::F64(values)).unwrap())?;
    }

    #[test]
    fn any_codes_come_back(shape in shape(), bits in 1u8..=32, signed: bool, seed: u64, density in 0.0..=1.0) {
        let bits = if signed { bits } else { bits.min(31) };
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let (low, high) = if signed { (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1) } else { (0, (1i64 << bits) - 1) };
        let n = shape.iter().product();
        let resting = if signed { 0 } else { high / 2 };
        let values = (0..n).map(|_| if rng.random_bool(density) { rng.random_range(low..=high) } else { resting } as i32);
        let codes = Codes::new(bits, signed, values.collect()).unwrap();
        comes_back(&TensorData::new(shape, Values::Codes(codes)).unwrap())?;
    }

    #[test]
    fn any_palette_comes_back(shape in shape(), palette in proptest::collection::vec(any::<u32>(), 1..9), seed: u64) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let n = shape.iter().product();
        let values = (0..n).map(|_| f32::from_bits(palette[rng.random_range(0..palette.len())])).collect();
        comes_back(&TensorData::new(shape, Values::F32(values)).unwrap())?;
    }

    #[test]
    fn any_scaled_codes_come_back(shape in shape(), scale in 1e-6f64..10.0, row_scales: bool, bits in 1u32..15, seed: u64) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let n: usize = shape.iter().product();
        let cols = shape.last().copied().unwrap_or(1).max(1);
        let values = (0..n).map(|i| {
            let scale = if row_scales { scale as f32 * (1.0 + (i / cols) as f32 / 7.0) } else { scale as f32 };
            rng.random_range(-(1i32 << bits)..=1 << bits) as f32 * scale
        }).collect();
        comes_back(&TensorData::new(shape, Values::F32(values)).unwrap())?;
    }
}

/// A matrix whose non-zeros are `symbol * scale`.
fn matrix(rows: usize, cols: usize, density: f64, levels: i32, scale: f32, seed: u64) -> TensorData {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let values = (0..rows * cols).map(|_| {
        if !rng.random_bool(density) {
            return 0.0;
        }
        let sign = if rng.random_bool(0.5) { -1.0 } else { 1.0 };
        sign * rng.random_range(1..=levels) as f32 * scale
    });
    TensorData::new(vec![rows, cols], Values::F32(values.collect())).unwrap()
}

fn entropy(p: f64) -> f64 {
    -p * p.log2() - (1.0 - p) * (1.0 - p).log2()
}

#[test]
fn an_unstructured_mask_and_its_codes_cost_their_entropy() {
    for layout in [Layout::Coded, Layout::Mixed] {
        for density in [0.01, 0.05, 0.3] {
            let (rows, cols, levels) = (400, 600, 4);
            let encoded = encode(
                &matrix(rows, cols, density, levels, 0.01, 5),
                &EncodeOptions::default().with_layouts(&[layout]),
            );
            let n = (rows * cols) as f64;
            let ideal = n * (entropy(density) + density * (1.0 + f64::from(levels).log2())) / 8.0;
            let got = encoded.bytes().len() as f64;
            assert!(got < 1.03 * ideal + 30.0, "{layout:?} {density}: {got} bytes, entropy {ideal}");
        }
    }
}

#[test]
fn dead_rows_and_columns_cost_almost_nothing() {
    let inner = matrix(40, 100, 0.1, 3, 0.5, 1);
    let Values::F32(inner_values) = inner.values() else { unreachable!() };
    let mut values = vec![0.0f32; 100 * 784];
    for r in 0..40 {
        for c in 0..100 {
            values[(r * 2 + 10) * 784 + c + 300] = inner_values[r * 100 + c];
        }
    }
    let outer = TensorData::new(vec![100, 784], Values::F32(values)).unwrap();
    let options = EncodeOptions::default();
    assert!(encoded_len(&outer, &options) < encoded_len(&inner, &options) + 50);
}

#[test]
fn the_obvious_encoding_is_found() {
    let encoding = |tensor: &TensorData| encode(tensor, &EncodeOptions::default()).encoding();
    assert_eq!(encoding(&matrix(50, 60, 0.1, 3, 0.3, 2)).mapping, Mapping::Uniform);
    let three = [0.1f32, -0.271_828, 0.314_159];
    let palette = (0..3000).map(|i| if i % 7 == 0 { three[i % 3] } else { 0.0 }).collect();
    assert_eq!(
        encoding(&TensorData::new(vec![50, 60], Values::F32(palette)).unwrap()).mapping,
        Mapping::Palette
    );
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let floats = (0..3000).map(|_| rng.random::<f32>() - 0.5).collect();
    let floats = TensorData::new(vec![50, 60], Values::F32(floats)).unwrap();
    assert_eq!(encoding(&floats).mapping, Mapping::Floats);
    let rows = (0..3000).map(|i| ((i * 7919 % 13) as f32 - 6.0) * (1.0 + (i / 60) as f32 * 0.013)).collect();
    assert_eq!(
        encoding(&TensorData::new(vec![50, 60], Values::F32(rows)).unwrap()).mapping,
        Mapping::UniformRows
    );
}

#[test]
fn the_smallest_tensors_stay_small() {
    let options = EncodeOptions::default();
    assert!(encoded_len(&TensorData::new(vec![], Values::F32(vec![1.5])).unwrap(), &options) <= 10);
    assert!(encoded_len(&TensorData::new(vec![0], Values::F64(vec![])).unwrap(), &options) <= 10);
    assert!(
        encoded_len(&TensorData::new(vec![4096, 64], Values::F32(vec![0.0; 4096 * 64])).unwrap(), &options)
            <= 16
    );
}

#[test]
fn named_tensors_come_back_from_disk() {
    let a = matrix(10, 20, 0.2, 3, 0.5, 3);
    let b =
        TensorData::new(vec![3], Values::Codes(Codes::new(8, true, vec![-128, 0, 127]).unwrap())).unwrap();
    let tensors = [("weight", &a), ("codes", &b), ("", &a)];
    let path = std::env::temp_dir().join(format!("trimnet-tensors-{}.trim", std::process::id()));
    save_tensors(&path, &tensors, &EncodeOptions::default()).unwrap();
    let back = load_tensors(&path, &Limits::default()).unwrap();
    assert!(back.iter().map(|(name, tensor)| (name.as_str(), tensor)).eq(tensors));
    std::fs::remove_file(&path).unwrap();
    let error = load_tensors(&path, &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("trimnet-tensors"), "{error}");
    let bytes = tensors_to_bytes(&tensors, &EncodeOptions::default());
    assert_eq!(tensors_from_bytes(&bytes, &Limits::default()).unwrap(), back);
}

#[test]
fn a_file_may_not_ask_for_more_memory_than_its_limits() {
    let zeros = TensorData::new(vec![1024, 1024], Values::F32(vec![0.0; 1 << 20])).unwrap();
    let bytes = tensors_to_bytes(&[("zeros", &zeros)], &EncodeOptions::default());
    assert!(bytes.len() < 40);
    assert!(tensors_from_bytes(&bytes, &Limits::new(4 << 20, 0)).is_ok());
    let error = tensors_from_bytes(&bytes, &Limits::new((4 << 20) - 1, 0)).unwrap_err().to_string();
    assert!(error.contains("memory limit"), "{error}");
}
