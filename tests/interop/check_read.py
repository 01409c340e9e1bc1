"""What trimnet read is what ONNX Runtime computes: its own outputs, and those of the model it wrote back.

    check_read.py DIR        DIR as `make_networks.py DIR` and then `interop_onnx read DIR` left it
"""
import collections, json, pathlib, sys
import numpy as np
import onnx
import onnxruntime as ort

ort.set_default_logger_severity(3)
FOLDER = pathlib.Path(sys.argv[1])
CASES = json.loads((FOLDER / "cases.json").read_text())
RESULTS = {r["name"]: r["result"] for r in json.loads((FOLDER / "results.json").read_text())}
FAILED, COUNTS, WORST, CODES = [], collections.Counter(), collections.defaultdict(float), [0, 0]


def open_session(path):
    options = ort.SessionOptions()
    # On processors without VNNI, products of uint8 and int8 saturate otherwise.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path, x, pick=None):
    session = open_session(path)
    outputs = session.run(pick, {session.get_inputs()[0].name: x})
    y = outputs[-1]  # classifiers: labels, then probabilities
    if isinstance(y, list):
        y = np.array([[row[key] for key in sorted(row)] for row in y], np.float32)
    return y.reshape(-1, y.shape[-1]) if y.ndim > 1 else y.reshape(-1, 1)


def softmax(y, kind):
    if kind == "None":
        return y
    log = y - y.max(1, keepdims=True)
    log = log - np.log(np.exp(log).sum(1, keepdims=True))
    return np.exp(log) if kind == "Softmax" else log


for case in CASES:
    name = case["name"]
    kind = name.split(".")[0]
    COUNTS[kind] += 1
    result = RESULTS.get(name, {"error": "no result"})
    if "error" in result:
        FAILED.append(f"{name}: {result['error']}")
        continue
    try:
        x = np.fromfile(FOLDER / f"{name}.x.f32", "<f4").reshape(-1, *case["shape"])
        theirs = run(FOLDER / f"{name}.onnx", x)
        ours = np.fromfile(FOLDER / f"{name}.y.f32", "<f4").reshape(-1, result["outputs"])
        ours = softmax(ours.astype(np.float64), result["tail"]).astype(np.float32)
        onnx.checker.check_model(str(FOLDER / f"{name}.back.onnx"), full_check=True)
        session = open_session(FOLDER / f"{name}.back.onnx")
        width = session.get_inputs()[0].shape[1]
        back = run(FOLDER / f"{name}.back.onnx", x.reshape(-1, width))
        size = max(np.abs(theirs).max(), 1e-30)
        for what, y in (("trimnet", ours), ("written back", back)):
            differ = float(np.abs(y - theirs).max() / size)
            limit = case.get("close", 1e-6 if case["source"] != "keras" else 2e-6)
            if case.get("integers"):
                # Every output is a code times a scale; a float activation in between may move one by its last bit.
                CODES[0] += y.size
                CODES[1] += int((np.abs(y - theirs) > 1e-6 * size).sum())
                limit = 0.02
            else:
                WORST[kind] = max(WORST[kind], differ)
            if not differ <= limit:
                FAILED.append(f"{name}: {what} differs by {differ:.2e} of the largest output")
    except Exception as error:  # noqa: BLE001 - every failure is reported with its case
        FAILED.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
print("networks:", dict(COUNTS))
print("largest relative difference:", {k: f"{v:.1e}" for k, v in WORST.items()})
if CODES[0]:
    print(f"quantized networks of ONNX Runtime: {CODES[1]} of {CODES[0]:,} outputs differ")
for line in FAILED:
    print("FAILED", line)
sys.exit(bool(FAILED))
