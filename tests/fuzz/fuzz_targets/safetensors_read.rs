//! Any bytes as safetensors: `Ok` or `Err`, and what is read can be written and read again.
//!
//! `cargo fuzz run -s none safetensors_read` in `tests/`, on stable; `tests/data/hostile/safetensors` is a corpus to begin with.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trimnet::io::safetensors::SafeTensors;

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = SafeTensors::from_bytes(data) {
        let again = SafeTensors::from_bytes(&file.to_bytes().unwrap()).unwrap();
        assert_eq!(again, file);
        let _ = file.to_mlp::<f32>();
        for name in file.names() {
            if let Some(module) = name.strip_suffix(".weight_scale") {
                let _ = file.quantized(module);
            }
        }
    }
});
