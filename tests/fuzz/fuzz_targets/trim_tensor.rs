//! Any tensor comes back from every layout, bit by bit; and its bytes, damaged, are `Ok` or `Err`.
//!
//! `cargo fuzz run --fuzz-dir tests/fuzz -s none trim_tensor`, on stable.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trimnet::io::trim::{EncodeOptions, Layout, Limits, TensorData, Values, decode, encode};

fuzz_target!(|data: &[u8]| {
    let [layout, cols, palette, flip_at, flip, values @ ..] = data else { return };
    let layouts = [Layout::Dense, Layout::Bitmap, Layout::Gaps, Layout::Coded, Layout::Mixed];
    let options = EncodeOptions::default().with_layouts(&[layouts[usize::from(layout % 5)]]).with_image_width(4);
    let cols = 1 + usize::from(*cols % 64);
    let values: Vec<f32> = if palette % 2 == 0 {
        values.iter().map(|&v| if v < 128 { 0.0 } else { f32::from(v) * f32::from(*palette) }).collect()
    } else {
        values.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
    };
    let rows = values.len() / cols;
    let tensor = TensorData::new(vec![rows, cols], Values::F32(values[..rows * cols].to_vec())).unwrap();
    let mut bytes = encode(&tensor, &options).bytes().to_vec();
    assert_eq!(decode(&bytes, &Limits::default()).unwrap(), tensor);
    let at = usize::from(*flip_at) % bytes.len();
    bytes[at] ^= flip;
    let _ = decode(&bytes, &Limits::new(1 << 16, 16));
});
