//! Any bytes as an engine: `Ok` or `Err`, and what is read runs one row and gives the same bytes again.
//!
//! `cargo fuzz run -s none engine_read` in `tests/`, on stable. The bytes are the section of a file, whose shell is put around
//! them, or its checksum would keep almost everything out; section 6 of a saved engine is a corpus to begin with.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trimnet::engine::{Batch, BatchMut, Engine, Io};
use trimnet::io::trim::Limits;
use trimnet_fuzz::file;

fuzz_target!(|data: &[u8]| {
    let limits = Limits::new(1 << 18, 16);
    if let Ok(engine) = Engine::<f32>::from_bytes_with(&file(6, data), &limits) {
        let (inputs, outputs) = (vec![0.5; engine.inputs()], engine.outputs());
        let codes = engine.encode(&inputs);
        let (mut numbers, mut out_codes) = (vec![0.0; outputs], vec![0; outputs]);
        let (input, output) = engine.io();
        let x = if input == Io::Codes { Batch::Codes(&codes) } else { Batch::Float(&inputs) };
        let out = match output {
            Io::Codes => BatchMut::Codes(&mut out_codes),
            Io::Float => BatchMut::Float(&mut numbers),
        };
        // A layer norm may meet numbers that are none.
        let _ = engine.run(x, out, &mut engine.workspace(1));
        let bytes = engine.to_bytes();
        assert_eq!(Engine::<f32>::from_bytes(&bytes).unwrap().to_bytes(), bytes);
    }
});
