#!/usr/bin/env python3
"""Writes the bad ONNX files beside it, byte by byte; needs nothing but Python. Read by tests/onnx_hostile.rs."""
import pathlib, struct

HERE = pathlib.Path(__file__).parent


def varint(n):
    n &= (1 << 64) - 1
    out = b""
    while n >= 128:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def number(tag, n):
    return varint(tag << 3) + varint(n)


def field(tag, content):
    content = content.encode() if isinstance(content, str) else content
    return varint(tag << 3 | 2) + varint(len(content)) + content


def tensor(name, dims, values=None, kind=1, raw=None, external=None):
    out = b"".join(number(1, d) for d in dims) + number(2, kind) + field(8, name)
    if values is not None:
        raw = struct.pack(f"<{len(values)}f", *values)
    if raw is not None:
        out += field(9, raw)
    if external:
        out += b"".join(field(13, field(1, k) + field(2, v)) for k, v in external.items()) + number(14, 1)
    return out


def attribute(name, i=None, s=None):
    return field(1, name) + (number(3, i) + number(20, 2) if s is None else field(4, s) + number(20, 3))


def node(op, inputs, outputs, *attributes, name="bad", domain=""):
    out = b"".join(field(1, i) for i in inputs) + b"".join(field(2, o) for o in outputs)
    return out + field(3, name) + field(4, op) + b"".join(field(5, a) for a in attributes) + (
        field(7, domain) if domain else b"")


def value(name, *dims):
    shape = b"".join(field(1, number(1, d) if isinstance(d, int) else field(2, d)) for d in dims)
    return field(1, name) + field(2, field(1, number(1, 1) + field(2, shape)))


def graph(nodes, tensors, inputs=(value("x", "N", 2),), outputs=(value("y", "N", 1),)):
    out = b"".join(field(1, n) for n in nodes) + field(2, "g") + b"".join(field(5, t) for t in tensors)
    return out + b"".join(field(11, i) for i in inputs) + b"".join(field(12, o) for o in outputs)


def model(g, opset=17):
    return number(1, 8) + field(7, g) + field(8, number(2, opset))


def write(name, data):
    (HERE / f"{name}.onnx").write_bytes(data)


W = tensor("w", [1, 2], [1.0, 2.0])
GEMM = node("Gemm", ["x", "w"], ["y"], attribute("transB", 1))


def one(*nodes, tensors=(W,), **more):
    return model(graph(nodes, tensors, **more))


def weight(**more):
    return one(GEMM, tensors=(tensor("w", **more),))


write("empty", b"")
write("not_protobuf", b"\x89PNG\r\n\x1a\n" + bytes(24))
write("truncated_varint", number(1, 8) + b"\x3a\x80")
write("endless_varint", b"\x08" + b"\xff" * 12)
write("lying_length", number(1, 8) + b"\x3a\xff\xff\xff\xff\x07" + b"abc")
write("length_of_2_63", b"\x3a" + varint(1 << 63))
write("no_graph", number(1, 8) + field(8, number(2, 17)))
write("no_opset", number(1, 8) + field(7, graph([GEMM], [W])))
write("opset_99", model(graph([GEMM], [W]), 99))
write("no_output", one(GEMM, outputs=()))
write("duplicate_initializer", one(GEMM, tensors=(W, W)))
write("duplicate_output", one(GEMM, node("Relu", ["x"], ["y"])))
write("cycle", one(node("Relu", ["b"], ["a"], name="first"), node("Relu", ["a"], ["b"], name="second"),
                   node("Gemm", ["b", "w"], ["y"], attribute("transB", 1))))
write("self_cycle", one(node("Relu", ["y"], ["y"])))
write("missing_initializer", one(GEMM, tensors=()))
write("negative_dimension", weight(dims=[-1, 2], values=[1.0, 2.0]))
write("dimensions_of_2_62", weight(dims=[1 << 62, 1 << 62], values=[1.0]))
write("dimension_of_2_63", weight(dims=[1 << 63, 2], values=[1.0]))
write("a_terabyte_of_four_bytes", weight(dims=[1 << 20, 1 << 18], values=[1.0]))
write("too_few_numbers", weight(dims=[1, 2], values=[1.0]))
write("too_many_numbers", weight(dims=[1, 2], values=[1.0, 2.0, 3.0]))
write("nine_axes", weight(dims=[1] * 9, values=[1.0]))
write("weight_of_three_axes", weight(dims=[1, 1, 2], values=[1.0, 2.0]))
write("empty_weight", weight(dims=[0, 2], values=[]))
write("weight_does_not_fit", weight(dims=[1, 3], values=[1.0, 2.0, 3.0]))
write("nan_weight", weight(dims=[1, 2], values=[1.0, float("nan")]))
write("tensor_of_strings", weight(dims=[1, 2], kind=8, raw=b""))
write("unknown_element_type", weight(dims=[1, 2], kind=77, raw=b"1234"))
write("name_not_utf8", one(GEMM, tensors=(number(1, 1) + number(2, 1) + field(8, b"\xff\xfe"),)))
write("attribute_not_utf8", one(node("Gelu", ["x"], ["y"], attribute("approximate", s=b"\xff"))))
write("attribute_of_wrong_type", one(node("Gemm", ["x", "w"], ["y"], attribute("transB", s=b"1"))))
write("external_absolute", weight(dims=[1, 2], external={"location": "/etc/passwd"}))
write("external_parent", weight(dims=[1, 2], external={"location": "../onnx/make.py"}))
write("external_missing", weight(dims=[1, 2], external={"location": "nowhere.data"}))
write("external_nowhere", weight(dims=[1, 2], external={"offset": "0"}))
write("external_past_the_end", weight(dims=[1, 2], external={"location": "make.py", "offset": str(1 << 40)}))
write("external_overflow", weight(dims=[1, 2], external={"location": "make.py", "offset": str((1 << 64) - 1)}))
write("external_wrong_length", weight(dims=[1, 2], external={"location": "make.py", "length": "9"}))
write("external_not_a_number", weight(dims=[1, 2], external={"location": "make.py", "offset": "-1"}))
write("unsupported_operator", one(node("Conv", ["x", "w"], ["y"], name="conv1")))
write("unsupported_domain", one(node("Gemm", ["x", "w"], ["y"], name="mine", domain="my.domain")))
write("residual", one(node("Relu", ["x"], ["r"]), node("Add", ["x", "r"], ["y"], name="skip")))
write("two_inputs", one(node("Add", ["x", "z"], ["y"]), inputs=(value("x", "N", 2), value("z", "N", 2))))
write("softmax_in_the_middle", one(node("Softmax", ["x"], ["s"]), node("Gemm", ["s", "w"], ["y"], attribute("transB", 1))))
write("no_linear_layer", one(node("Relu", ["x"], ["y"])))
write("node_without_inputs", one(node("Gemm", [], ["y"])))
write("node_without_outputs", one(node("Gemm", ["x", "w"], []), GEMM))
write("output_of_no_node", one(node("Gemm", ["x", "w"], ["z"])))
ONE, ZERO, CODES = tensor("s", [], [1.0]), tensor("s", [], [0.0]), tensor("c", [1, 2], kind=3, raw=b"\1\2")
DQ = node("DequantizeLinear", ["c", "s"], ["w"])
write("scale_of_zero", one(DQ, GEMM, tensors=(ZERO, CODES)))
write("scale_of_nan", one(DQ, GEMM, tensors=(tensor("s", [], [float("nan")]), CODES)))
write("scales_of_no_axis", one(node("DequantizeLinear", ["c", "s"], ["w"], attribute("axis", 7)), GEMM,
                               tensors=(tensor("s", [2], [1.0, 1.0]), CODES)))
write("block_of_minus_one", one(node("DequantizeLinear", ["c", "s"], ["w"], attribute("block_size", -1)), GEMM,
                                tensors=(ONE, CODES)))
write("half_bytes_missing", weight(dims=[3, 2], kind=22, raw=b"\1\2"))
