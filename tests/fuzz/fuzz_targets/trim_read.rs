//! Any bytes as a `.trim` file or tensor: `Ok` or `Err`, and what is read can be written and read again.
//!
//! `cargo fuzz run --fuzz-dir tests/fuzz -s none trim_read`, on stable. The checksum of the file is made right first, or
//! nothing behind it would ever be reached.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trimnet::io::trim::{Limits, TrimReport, decode, tensors_from_bytes};
use trimnet::nn::Mlp;
use trimnet_fuzz::file;

fuzz_target!(|data: &[u8]| {
    let limits = Limits::new(1 << 16, 16);
    let _ = decode(data, &limits);
    for kind in [2, 4] {
        let file = file(kind, data);
        if kind == 4 {
            let _ = tensors_from_bytes(&file, &limits);
        } else if let Ok(mlp) = Mlp::<f64>::from_bytes_with(&file, &limits) {
            let again = mlp.to_bytes();
            assert_eq!(Mlp::<f64>::from_bytes(&again).unwrap(), mlp);
            assert_eq!(TrimReport::of_bytes(&again).unwrap().total, again.len());
        }
    }
});
