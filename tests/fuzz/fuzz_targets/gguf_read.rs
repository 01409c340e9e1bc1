//! Any bytes as GGUF: `Ok` or `Err`, and what is read can be written and read again.
//!
//! `cargo fuzz run -s none gguf_read` in `tests/`, on stable; `tests/data/hostile/gguf` is a corpus to begin with.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trimnet::io::gguf::Gguf;

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = Gguf::from_bytes(data) {
        let bytes = file.to_bytes().unwrap();
        let again = Gguf::from_bytes(&bytes).unwrap();
        // Values may be NaN, which equals nothing; their bytes do.
        assert_eq!(again.to_bytes().unwrap(), bytes);
        let _ = file.to_mlp::<f32>();
        for (_, tensor) in file.tensors() {
            let _ = tensor.to_floats::<f32>();
        }
    }
});
