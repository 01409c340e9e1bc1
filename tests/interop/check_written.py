"""ONNX Runtime runs what trimnet wrote: the numbers, the fused kernels, the rules of each runtime.

    check_written.py DIR        DIR as `interop_onnx write DIR` left it
"""
import collections, json, pathlib, sys
import numpy as np
import onnx
import onnxruntime as ort

ort.set_default_logger_severity(3)
FOLDER = pathlib.Path(sys.argv[1])
CASES = json.loads((FOLDER / "cases.json").read_text())
FAILED, COUNTS, VALUES, WORST = [], collections.Counter(), collections.Counter(), collections.defaultdict(float)


def fail(case, what):
    FAILED.append(f"{case['name']}: {what}")


def load(case):
    path = FOLDER / case["name"]
    x = np.fromfile(f"{path}.x.f32", "<f4").reshape(-1, case["inputs"])
    y = np.fromfile(f"{path}.y.f32", "<f4").reshape(-1, case["outputs"])
    return f"{path}.onnx", x, y


def run(path, x, optimized=None, as_written=False, exact=True, **settings):
    options = ort.SessionOptions()
    if exact:
        # On processors without VNNI, products of uint8 and int8 saturate otherwise.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    for key, value in settings.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    full = session.run(None, {name: x})[0]
    # The batch dimension is free.
    assert session.run(None, {name: x[:1]})[0].shape == (1, full.shape[1])
    return full


def relative(a, b):
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def kernels(path, x):
    saved = FOLDER / "optimized.onnx"
    y = run(path, x, saved)
    return y, collections.Counter(node.op_type for node in onnx.load(saved).graph.node)


def softmax(y, kind):
    y = y.astype(np.float64)
    y = y - y.max(1, keepdims=True)
    log = y - np.log(np.exp(y).sum(1, keepdims=True))
    return {"none": y, "softmax": np.exp(log), "log_softmax": log}[kind]


def check_float(case):
    path, x, y = load(case)
    expected = y if case["extra"]["tail"] == "none" else softmax(y, case["extra"]["tail"])
    worst = relative(run(path, x), expected)
    WORST["float"] = max(WORST["float"], worst)
    if not worst <= 1e-5:
        fail(case, f"differs by {worst:.2e} of the largest output")


def check_fused(case):
    """All linear layers are integer kernels, and ONNX Runtime computes the very same numbers."""
    path, x, y = load(case)
    got, ops = kernels(path, x)
    model = onnx.load(path)
    linear = sum(node.op_type == "Gemm" for node in model.graph.node)
    if ops["QGemm"] != linear or any(ops[op] for op in ("Gemm", "FusedGemm", "MatMul", "MatMulNBits")):
        fail(case, f"not fused: {dict(ops)} for {linear} linear layers")
    if case["extra"].get("exact", True):
        allowed = {"QGemm", "QuantizeLinear", "DequantizeLinear"}
        if set(ops) - allowed or ops["QuantizeLinear"] != 1 or ops["DequantizeLinear"] > 1:
            fail(case, f"more than integer kernels: {dict(ops)}")
        differ = int((got != y).sum())
        VALUES[case["kind"]] += y.size
        if differ:
            fail(case, f"{differ} of {y.size} outputs differ from our integers")
    else:
        # Float activations between integer layers: the last bit of a tanh may move a code by one.
        if relative(got, y) > 0.05:
            fail(case, f"differs by {relative(got, y):.2e}")
        VALUES["near a float activation"] += y.size
        VALUES["of these differing"] += int((np.abs(got - y) > 1e-6 * np.abs(y).max()).sum())


def check_tensor_rt(case):
    """TensorRT's rules of explicit quantization, and results in ONNX Runtime within one code per layer."""
    path, x, y = load(case)
    model = onnx.load(path)
    graph = model.graph
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    producer = {o: n for n in graph.node for o in n.output}
    consumers = collections.defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    allowed = {"QuantizeLinear", "DequantizeLinear", "Gemm", "Relu", "Clip", "LeakyRelu", "Elu", "Tanh", "Sigmoid", "Gelu",
               "Erf", "Div", "Mul", "Add", "Pow", "LayerNormalization", "BatchNormalization", "Softmax"}
    for node in graph.node:
        if node.domain or node.op_type not in allowed:
            fail(case, f"operator {node.domain}.{node.op_type}")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if len(node.input) != 3:
                fail(case, f"{node.name} without a zero point")
                continue
            scale, zero = constants.get(node.input[1]), constants.get(node.input[2])
            if scale is None or zero is None:
                fail(case, f"{node.name}: scale and zero point must be constants")
                continue
            if zero.dtype != np.int8 or np.any(zero != 0) or not np.all(scale > 0) or scale.size != zero.size:
                fail(case, f"{node.name}: not symmetric int8 with positive scales")
            weight = node.input[0] in constants
            axis = [a.i for a in node.attribute if a.name == "axis"]
            if weight and (axis != [0] or scale.shape != (constants[node.input[0]].shape[0],)):
                fail(case, f"{node.name}: weights need one scale per output along an explicit axis")
            if weight and np.abs(constants[node.input[0]].astype(int)).max() > 127:
                fail(case, f"{node.name}: weights beyond 127")
            if not weight and scale.size != 1:
                fail(case, f"{node.name}: activations need one scale")
        if node.op_type == "QuantizeLinear":
            if [c.op_type for c in consumers[node.output[0]]] != ["DequantizeLinear"]:
                fail(case, f"{node.name} is not followed by its DequantizeLinear alone")
            source = producer.get(node.input[0])
            if source is not None and source.op_type == "Gemm" and any(
                c.op_type in ("Relu", "Clip") for c in consumers[source.output[0]]
            ):
                fail(case, f"{node.name} stands between Gemm and Relu")
            if node.output[0] in {o.name for o in graph.output}:
                fail(case, f"{node.name} is an output")
        if node.op_type == "Gemm":
            for name in node.input[:2]:
                if producer.get(name) is None or producer[name].op_type != "DequantizeLinear":
                    fail(case, f"{node.name}: input {name} does not come from DequantizeLinear")
            if len(node.input) == 3 and (
                node.input[2] not in constants or constants[node.input[2]].dtype != np.float32
            ):
                fail(case, f"{node.name}: the bias must be constant floats")
    # Optimized, it rounds the bias to integers too.
    worst = relative(run(path, x), y)
    WORST["trt"] = max(WORST["trt"], worst)
    # As written, it multiplies the dequantized floats: a sum whose last bit differs may become the next code.
    share = float((np.abs(run(path, x, as_written=True) - y) > 1e-5 * np.abs(y).max()).mean())
    WORST["share of trt"] = max(WORST["share of trt"], share)
    if not (worst < 0.1 and share < 0.003):
        fail(case, f"differs by {worst:.2e} of the largest output, in {share:.2%} of them")


def check_dynamic(case):
    path, x, y = load(case)
    got, ops = kernels(path, x)
    if ops["DynamicQuantizeMatMul"] != 3 or ops["MatMulInteger"]:
        fail(case, f"not fused: {dict(ops)}")
    if relative(got, y) > 0.05:
        fail(case, f"differs by {relative(got, y):.2e}")


def dequantized(path, x):
    """The same model with its weights in floats, by onnx's own numbers."""
    graph = onnx.load(path).graph
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    values = {graph.input[0].name: x.astype(np.float64)}
    for node in graph.node:
        of = lambda i: values[node.input[i]] if node.input[i] in values else constants[node.input[i]].astype(np.float64)
        attribute = {a.name: a.i for a in node.attribute}
        if node.op_type == "DequantizeLinear":
            codes, scale, block = of(0), of(1), attribute.get("block_size")
            if block:
                scale = np.repeat(scale, block, axis=attribute["axis"])[: codes.shape[0]]
            y = codes * scale
        else:
            y = {"MatMul": lambda: of(0) @ of(1), "Add": lambda: of(0) + of(1), "Relu": lambda: np.maximum(of(0), 0)}[
                node.op_type]()
        values[node.output[0]] = y
    return y


def check_weights(case):
    path, x, y = load(case)
    saved = FOLDER / "optimized.onnx"
    # Weights alone are integers here, and the exact products cannot load such a model.
    got = run(path, x, saved, exact=False, session__qdq_matmulnbits_accuracy_level="1")
    ops = collections.Counter(node.op_type for node in onnx.load(saved).graph.node)
    # Rows shorter than a block, and 8 bits in older layouts, may stay DequantizeLinear + MatMul.
    if not ops["MatMulNBits"]:
        fail(case, f"not fused: {dict(ops)}")
    worst = relative(got, dequantized(path, x))
    WORST[case["kind"]] = max(WORST[case["kind"]], worst)
    if not worst < 1e-5:
        fail(case, f"differs by {worst:.2e} from its dequantized weights")
    if relative(got, y) > {"int8_weights": 0.02, "int4_weights": 0.35}[case["kind"]]:
        fail(case, f"differs by {relative(got, y):.2e} from the floats")


CHECKS = {
    "float": check_float, "ort": check_fused, "ort_signed": check_fused, "engine": check_fused, "ties": check_fused,
    "ties_signed": check_fused, "trt": check_tensor_rt, "dynamic": check_dynamic, "int8_weights": check_weights,
    "int4_weights": check_weights,
}
for case in CASES:
    COUNTS[case["kind"]] += 1
    try:
        onnx.checker.check_model(str(FOLDER / f"{case['name']}.onnx"), full_check=True)
        CHECKS[case["kind"]](case)
    except Exception as error:  # noqa: BLE001 - every failure is reported with its case
        fail(case, f"{type(error).__name__}: {str(error)[:300]}")
print("networks:", dict(COUNTS))
print("equal integer outputs:", {k: f"{v:,}" for k, v in VALUES.items()})
print("largest relative difference:", {k: f"{v:.1e}" for k, v in WORST.items()})
for kind in ("ort", "ort_signed", "engine", "ties", "ties_signed"):
    if VALUES[kind] < 1_000_000:
        FAILED.append(f"only {VALUES[kind]:,} values compared of {kind}")
for line in FAILED:
    print("FAILED", line)
sys.exit(bool(FAILED))
