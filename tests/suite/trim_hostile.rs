//! Any bytes give `Ok` or `Err`: never a panic, never more memory than the limits allow, never another network.

use ndarray::{Array1, Array2};
use proptest::prelude::*;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use trimnet::io::trim::{
    EncodeOptions, Layout, Limits, TensorData, TrimReport, Values, decode, encode, tensors_from_bytes,
};
use trimnet::nn::Mlp;

fn sample() -> Mlp<f32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(2);
    let mut mlp = Mlp::builder(25)
        .linear(12)
        .batch_norm()
        .relu()
        .dropout(0.5)
        .linear(7)
        .build::<f32>(&mut rng)
        .unwrap();
    for linear in mlp.linears_mut() {
        let (rows, cols) = linear.weight().dim();
        let weight = Array2::from_shape_simple_fn((rows, cols), || {
            if rng.random_bool(0.2) { 0.25 * f32::from(rng.random_range(-3..=3i8)) } else { 0.0 }
        });
        linear.set_weight(weight).unwrap();
        linear.set_bias(Some(Array1::from_shape_simple_fn(rows, || rng.random::<f32>()))).unwrap();
    }
    mlp
}

/// The file with its checksum made right again, so that what is behind it gets tested.
fn repaired(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(body) = bytes.len().checked_sub(4) {
        let crc = crc32fast::hash(&bytes[..body]).to_le_bytes();
        bytes[body..].copy_from_slice(&crc);
    }
    bytes
}

fn read_all(bytes: &[u8]) {
    let limits = Limits::new(1 << 20, 64);
    let _ = Mlp::<f32>::from_bytes_with(bytes, &limits);
    let _ = Mlp::<f64>::from_bytes_with(bytes, &limits);
    let _ = tensors_from_bytes(bytes, &limits);
    let _ = decode(bytes, &limits);
}

#[test]
fn every_flipped_bit_is_refused_or_means_the_same() {
    let mlp = sample();
    let bytes = mlp.to_bytes();
    assert_eq!(Mlp::<f32>::from_bytes(&repaired(bytes.clone())).unwrap(), mlp);
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(loaded) = Mlp::<f32>::from_bytes(&damaged) {
            assert_eq!(loaded, mlp, "bit {bit}");
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = sample().to_bytes();
    for length in 0..bytes.len() {
        assert!(Mlp::<f32>::from_bytes(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
        // Also where the checksum was made to fit.
        assert!(Mlp::<f32>::from_bytes(&repaired(bytes[..length].to_vec())).is_err(), "{length}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(Mlp::<f32>::from_bytes(&longer).is_err());
}

#[test]
fn flipped_bits_behind_a_right_checksum_are_caught_by_the_tensor_checks_or_are_harmless() {
    let bytes = sample().to_bytes();
    for bit in 0..8 * (bytes.len() - 4) {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let damaged = repaired(damaged);
        read_all(&damaged);
        let _ = TrimReport::of_bytes(&damaged);
    }
}

#[test]
fn a_few_bytes_that_ask_for_gigabytes_are_refused_before_they_get_any() {
    // Named tensors: one, nameless, f32, rank 2, 2^30 x 2^30.
    let shape = [0x80, 0x80, 0x80, 0x80, 0x04].repeat(2);
    let section = [&[1, 0, 0, 2][..], &shape, &[1, 0x11, 0]].concat();
    let file = [b"TRIM\x01\x04", &[section.len() as u8][..], &section, &[0; 4]].concat();
    let error = tensors_from_bytes(&repaired(file), &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("memory limit"), "{error}");
}

fn tensor() -> impl Strategy<Value = TensorData> {
    (1usize..12, 1usize..12, any::<u64>(), 0u8..4).prop_map(|(rows, cols, seed, kind)| {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let values = (0..rows * cols).map(|_| match kind {
            0 => rng.random::<f32>(),
            1 => f32::from(rng.random_range(-3..=3i8)) * 0.3,
            2 => [0.0, 0.1, -0.37, 0.72][rng.random_range(0..4)],
            _ => {
                if rng.random_bool(0.2) {
                    rng.random()
                } else {
                    0.0
                }
            }
        });
        TensorData::new(vec![rows, cols], Values::F32(values.collect())).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_ok_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
        read_all(&repaired([b"TRIM\x01", &bytes[..]].concat()));
        if bytes.len() < 120 {
            let network = [b"TRIM\x01\x02", &[bytes.len() as u8][..], &bytes, &[0; 4]].concat();
            read_all(&repaired(network));
        }
    }

    #[test]
    fn a_damaged_tensor_is_ok_or_an_error(
        tensor in tensor(),
        layout in 0usize..5,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let layout = [Layout::Dense, Layout::Bitmap, Layout::Gaps, Layout::Coded, Layout::Mixed][layout];
        let mut bytes = encode(&tensor, &EncodeOptions::default().with_layouts(&[layout])).bytes().to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        read_all(&bytes);
        for length in 0..bytes.len() {
            let _ = decode(&bytes[..length], &Limits::new(1 << 20, 64));
        }
    }
}
