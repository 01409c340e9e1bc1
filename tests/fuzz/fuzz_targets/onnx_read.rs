//! Any bytes as an ONNX model: `Ok` or `Err`, and what is read can be written and read again.
//!
//! `cargo fuzz run -s none onnx_read` in `tests/`, on stable; `tests/data/hostile/onnx` is a corpus to begin with.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trimnet::io::onnx::{BatchNorms, OnnxExporter, OnnxImporter};

fuzz_target!(|data: &[u8]| {
    let importer = OnnxImporter::new().with_limits(1 << 22, 10);
    let _ = importer.quantized_from_bytes(data);
    if let Ok(imported) = importer.from_bytes::<f32>(data) {
        let exporter = OnnxExporter::new().with_batch_norms(BatchNorms::Keep).with_tail(imported.tail);
        let again = exporter.float(&imported.network).unwrap().to_bytes().unwrap();
        let importer = OnnxImporter::new().with_limits(1 << 24, 100);
        let again = importer.from_bytes::<f32>(&again).unwrap();
        assert_eq!(again.network.widths(), imported.network.widths());
        assert_eq!(again.tail, imported.tail);
    }
});
