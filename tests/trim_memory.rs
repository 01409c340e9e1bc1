//! Hostile bytes cannot make a reader of `.trim` take more memory than its limits allow.

mod memory;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use trimnet::io::trim::{Codes, EncodeOptions, Layout, Limits, TensorData, Values, decode, encode};

#[test]
fn damaged_tensors_stay_inside_the_limits() {
    const BASE: usize = 1 << 16;
    // Twice the decoded tensor and 5 bytes per element for mask and symbols; the models' tables are constant.
    const ALLOWED: isize = 4 * BASE as isize + (4 << 20);
    let limits = Limits::new(BASE, 0);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(9);
    for layout in [Layout::Dense, Layout::Bitmap, Layout::Gaps, Layout::Coded, Layout::Mixed] {
        for kind in 0..4 {
            let values: Vec<f32> = (0..600)
                .map(|_| match kind {
                    0 => rng.random(),
                    1 if rng.random_bool(0.8) => 0.0,
                    1 => rng.random(),
                    2 => [0.0, 0.1, -0.37, 0.72][rng.random_range(0..4)],
                    _ => 0.3 * f32::from(rng.random_range(-3..=3i8)),
                })
                .collect();
            let floats = TensorData::new(vec![20, 30], Values::F32(values.clone())).unwrap();
            let codes = values.iter().map(|&x| (x * 10.0) as i32).collect();
            let codes =
                TensorData::new(vec![30, 20], Values::Codes(Codes::new(8, true, codes).unwrap())).unwrap();
            for tensor in [floats, codes] {
                let options = EncodeOptions::default().with_layouts(&[layout]);
                let good = encode(&tensor, &options).bytes().to_vec();
                for _ in 0..400 {
                    let mut bytes = good.clone();
                    // The lengths stand at the front.
                    for _ in 0..rng.random_range(1..4) {
                        let front = if rng.random() { 16 } else { usize::MAX };
                        let at = rng.random_range(0..bytes.len().min(front));
                        bytes[at] = rng.random();
                    }
                    let (_, used) = memory::peak(|| decode(&bytes, &limits));
                    assert!(used <= ALLOWED, "{used} bytes for {layout:?}: {bytes:02x?}");
                }
            }
        }
    }
}
