"""Writes the bad files of `safetensors/` and `gguf/`, each bad in one way; `tests/hostile_tensors.rs` has a test for each."""
import json, pathlib, struct

HERE = pathlib.Path(__file__).parent

def put(folder, name, data):
    (HERE / folder / name).write_bytes(data)

# ------------------------------------------------------------------------------------------------ safetensors

def st(name, header, data=b"", length=None):
    header = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    put("safetensors", name + ".safetensors", struct.pack("<Q", len(header) if length is None else length) + header + data)

def t(dtype="F32", shape=(2,), start=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}

put("safetensors", "empty.safetensors", b"")
put("safetensors", "seven_bytes.safetensors", b"\x10" * 7)
st("header_longer_than_file", {"a": t()}, b"\0" * 8, length=5000)
st("header_of_2_63_bytes", {"a": t()}, b"\0" * 8, length=1 << 63)
st("header_of_200_mb", {"a": t()}, b"\0" * 8, length=200_000_000)
st("header_cut_in_json", json.dumps({"a": t()})[:-6], b"")
st("header_not_utf8", b'{"\xff\xfe":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8)
st("header_not_an_object", "[1, 2, 3]")
st("header_with_garbage_after_it", json.dumps({"a": t()}) + "{}", b"\0" * 8)
st("deeply_nested", '{"a":' + "[" * 5000 + "]" * 5000 + "}")
st("unknown_dtype", {"a": t(dtype="F31")}, b"\0" * 8)
st("missing_offsets", {"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8)
st("negative_dimension", {"a": t(shape=(-2,))}, b"\0" * 8)
st("dimension_of_2_63", {"a": t(shape=(1 << 63, 1 << 63))}, b"\0" * 8)
st("product_wraps_to_2", {"a": t(shape=(1 << 33, (1 << 31) + 0, 1))}, b"\0" * 8)
st("dimension_beyond_64_bits", {"a": t(shape=(1 << 70,))}, b"\0" * 8)
st("shape_smaller_than_offsets", {"a": t(shape=(1,))}, b"\0" * 8)
st("offsets_backwards", {"a": t(start=8, end=0)}, b"\0" * 8)
st("offsets_beyond_the_data", {"a": t(start=0, end=8)}, b"\0" * 4)
st("offsets_of_2_64", {"a": t(start=(1 << 64) - 8, end=(1 << 64) - 1)}, b"\0" * 8)
st("overlapping", {"a": t(), "b": t(start=4, end=12)}, b"\0" * 12)
st("same_bytes_twice", {"a": t(), "b": t()}, b"\0" * 8)
st("a_gap", {"a": t(), "b": t(start=12, end=20)}, b"\0" * 20)
st("bytes_after_the_last_tensor", {"a": t()}, b"\0" * 8 + b"hidden")
st("data_cut_off", {"a": t(), "b": t(start=8, end=16)}, b"\0" * 15)
st("duplicate_name", '{"a":' + json.dumps(t()) + ',"a":' + json.dumps(t()) + "}", b"\0" * 8)
st("metadata_of_numbers", {"__metadata__": {"format": 1}, "a": t()}, b"\0" * 8)
st("half_a_byte", {"a": t(dtype="F4", shape=(3,), end=2)}, b"\0" * 2)
layer = {"linear": {"outputs": 1 << 62, "bias": True}}
net = {"version": 1, "names": {"prefix": ""}, "network": {"inputs": 1 << 62, "layers": [layer]}}
def network(name, change):
    described = json.loads(json.dumps(net))
    change(described)
    header = {"__metadata__": {"trimnet": json.dumps(described)}, "0.weight": t(shape=(1, 1), end=4), "0.bias": t(shape=(1,), start=4, end=8)}
    st("network_" + name, header, struct.pack("<ff", 1, 2))
network("wider_than_memory", lambda n: None)
network("of_a_later_version", lambda n: n.update(version=99))
network("with_a_mask_of_lies", lambda n: n.update(network={"inputs": 1, "layers": [{"linear": {"outputs": 1, "bias": True, "mask": {"bits": "f" * 100}}}]}))
network("with_a_layer_it_has_not", lambda n: n.update(network={"inputs": 1, "layers": [{"linear": {"outputs": 1, "bias": True}}, {"linear": {"outputs": 1, "bias": True}}]}))
network("with_a_dropout_of_2", lambda n: n.update(network={"inputs": 1, "layers": [{"linear": {"outputs": 1, "bias": True}}, {"dropout": {"p": 2.0}}]}))
one = {"linear": {"outputs": 1, "bias": True}}
network("with_a_norm_of_2_62", lambda n: n.update(names={"prefix": "", "modules": ["n", "0"]}, network={"inputs": 1 << 62, "layers": [{"layer_norm": {"eps": 1e-5}}, one]}))
network("that_uses_a_tensor_twice", lambda n: n.update(names={"prefix": "", "modules": ["0", "0"]}, network={"inputs": 1, "layers": [one, one]}))
network("of_10001_layers", lambda n: n.update(network={"inputs": 1, "layers": [one] + [{"activation": "Relu"}] * 10000}))

# ------------------------------------------------------------------------------------------------ gguf

def text(s):
    s = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(s)) + s

def info(name="a", dims=(32,), kind=0, offset=0):
    return text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)

ARCH = text("general.architecture") + struct.pack("<I", 8) + text("x")

def gguf(name, infos=(), keys=(ARCH,), data=b"", tensors=None, count=None, magic=b"GGUF", version=3):
    head = magic + struct.pack("<IQQ", version, len(infos) if tensors is None else tensors, len(keys) if count is None else count)
    body = head + b"".join(keys) + b"".join(infos)
    body += b"\0" * (-len(body) % 32)
    put("gguf", name + ".gguf", body + data)

put("gguf", "empty.gguf", b"")
gguf("wrong_magic", magic=b"GGML")
gguf("version_1", version=1)
gguf("big_endian", version=3 << 24)
put("gguf", "header_cut_off.gguf", b"GGUF" + struct.pack("<IQ", 3, 1))
gguf("tensors_2_63", tensors=1 << 63)
gguf("keys_2_63", count=1 << 63)
gguf("key_longer_than_file", keys=(struct.pack("<Q", 1 << 62) + b"abc",))
gguf("key_not_utf8", keys=(text(b"\xff\xfe") + struct.pack("<II", 4, 1),))
gguf("duplicate_key", keys=(ARCH, ARCH))
gguf("unknown_value_type", keys=(text("k") + struct.pack("<I", 99),))
gguf("array_of_2_60_numbers", keys=(text("k") + struct.pack("<IIQ", 9, 6, 1 << 60),))
gguf("array_of_2_60_texts", keys=(text("k") + struct.pack("<IIQ", 9, 8, 1 << 60),))
gguf("array_of_arrays", keys=(text("k") + struct.pack("<IIQ", 9, 9, 1) * 2000,))
gguf("bool_of_2", keys=(text("k") + struct.pack("<IB", 7, 2),))
gguf("alignment_0", keys=(ARCH, text("general.alignment") + struct.pack("<II", 4, 0)), infos=(info(),), data=b"\0" * 128)
gguf("alignment_3", keys=(ARCH, text("general.alignment") + struct.pack("<II", 4, 3)), infos=(info(),), data=b"\0" * 128)
gguf("five_axes", infos=(info(dims=(1, 1, 1, 1, 1)),), data=b"\0" * 32)
gguf("axes_2_32", infos=(text("a") + struct.pack("<I", (1 << 32) - 1),), data=b"\0" * 32)
gguf("dimension_2_63", infos=(info(dims=(1 << 63, 1 << 63)),), data=b"\0" * 32)
gguf("product_wraps", infos=(info(dims=(1 << 32, 1 << 32, 4)),), data=b"\0" * 32)
gguf("unknown_element_type", infos=(info(kind=12, dims=(256,)),), data=b"\0" * 144)
gguf("row_of_33_in_blocks_of_32", infos=(info(kind=8, dims=(33,)),), data=b"\0" * 96)
gguf("offset_unaligned", infos=(info(offset=8),), data=b"\0" * 160)
gguf("offset_2_64", infos=(info(offset=(1 << 64) - 32),), data=b"\0" * 128)
gguf("overlapping", infos=(info("a"), info("b", offset=64)), data=b"\0" * 192)
gguf("duplicate_tensor", infos=(info("a"), info("a", offset=128)), data=b"\0" * 256)
gguf("data_cut_off", infos=(info(),), data=b"\0" * 127)
gguf("tensor_name_not_utf8", infos=(info(b"\xc3\x28"),), data=b"\0" * 128)
