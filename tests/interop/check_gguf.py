"""The `gguf` package against trimnet, both ways. Usage: check_gguf.py BINARY (the example `interop_safetensors`)."""
import pathlib, subprocess, sys, tempfile
import gguf, numpy as np
from gguf import quants

BINARY = sys.argv[1]
TYPES = {name: getattr(gguf.GGMLQuantizationType, name) for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0")}

def equal(a, b, what):
    a, b = np.asarray(a, dtype=np.float32).ravel(), np.asarray(b, dtype=np.float32).ravel()
    assert a.shape == b.shape and np.array_equal(a, b), f"{what}: {np.abs(a - b).max() if a.shape == b.shape else (a.shape, b.shape)}"

with tempfile.TemporaryDirectory() as folder:
    folder, count = pathlib.Path(folder), 0
    subprocess.run([BINARY, "gguf-write", folder], check=True)
    for path in sorted(folder.glob("*.gguf")):
        reader = gguf.GGUFReader(path)
        assert reader.fields["general.architecture"].contents() == "trimnet"
        w = np.fromfile(path.with_suffix(".f32"), dtype="<f4")
        names = [t.name for t in reader.tensors]
        assert names == list(TYPES), names
        for tensor in reader.tensors:
            columns = int(tensor.shape[0])
            equal(quants.dequantize(tensor.data, tensor.tensor_type), np.fromfile(path.with_suffix(f".{tensor.name}.f32"), dtype="<f4"), (path.name, tensor.name))
            theirs = quants.quantize(w.reshape(-1, columns), TYPES[tensor.name])
            assert theirs.tobytes() == tensor.data.tobytes(), (path.name, tensor.name, "bytes differ")
        count += 1
    assert count >= 20
    print(f"trimnet -> gguf: {count} files, 5 element types, every byte as gguf quantizes")

with tempfile.TemporaryDirectory() as folder:
    folder, count, written = pathlib.Path(folder), 20, {}
    for seed in range(count):
        rng = np.random.default_rng(seed)
        writer = gguf.GGUFWriter(folder / f"{seed}.theirs.gguf", "llama")
        writer.add_block_count(2)
        writer.add_string("general.name", "é")
        writer.add_array("tokenizer.ggml.tokens", ["a", "", "bc"])
        writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 2.0])
        for name, kind in TYPES.items():
            w = rng.normal(size=(1 + seed % 6, 32 * (1 + seed % 4))).astype(np.float32)
            data = quants.quantize(w, kind)
            writer.add_tensor(name, data, raw_dtype=kind)
            written[seed, name] = quants.dequantize(data, kind)
        writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
    subprocess.run([BINARY, "gguf-read", folder], check=True)
    for (seed, name), numbers in written.items():
        equal(np.fromfile(folder / f"{seed}.{name}.f32", dtype="<f4"), numbers, (seed, name))
    for seed in range(count):
        back = gguf.GGUFReader(folder / f"{seed}.back.gguf")
        assert back.fields["tokenizer.ggml.tokens"].contents() == ["a", "", "bc"]
        assert back.fields["tokenizer.ggml.scores"].contents() == [0.5, -1.0, 2.0]
        for tensor in back.tensors:
            equal(quants.dequantize(tensor.data, tensor.tensor_type), written[seed, tensor.name], (seed, tensor.name))
    print(f"gguf -> trimnet -> gguf: {count} files equal")
