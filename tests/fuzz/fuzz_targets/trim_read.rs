//! Any bytes as a `.trim` file or tensor: `Ok` or `Err`, and what is read can be written and read again.
//!
//! `cargo fuzz run --fuzz-dir tests/fuzz -s none trim_read`, on stable. The checksum of the file is made right first, or
//! nothing behind it would ever be reached.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trimnet::io::trim::{Limits, TrimReport, decode, tensors_from_bytes};
use trimnet::nn::Mlp;

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

fuzz_target!(|data: &[u8]| {
    let limits = Limits::new(1 << 16, 16);
    let _ = decode(data, &limits);
    let mut section = Vec::new();
    let mut length = data.len();
    while length >= 128 {
        section.push(length as u8 | 0x80);
        length >>= 7;
    }
    section.push(length as u8);
    for kind in [2, 4] {
        let mut file = [b"TRIM\x01", &[kind][..], &section, data].concat();
        file.extend(crc32(&file).to_le_bytes());
        if kind == 4 {
            let _ = tensors_from_bytes(&file, &limits);
        } else if let Ok(mlp) = Mlp::<f64>::from_bytes_with(&file, &limits) {
            let again = mlp.to_bytes();
            assert_eq!(Mlp::<f64>::from_bytes(&again).unwrap(), mlp);
            assert_eq!(TrimReport::of_bytes(&again).unwrap().total, again.len());
        }
    }
});
