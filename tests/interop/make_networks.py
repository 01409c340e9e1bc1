"""Networks as PyTorch's two exporters, skl2onnx and ONNX Runtime's quantizer write them, for `interop_onnx read`.

    make_networks.py DIR [PART..]        parts: pytorch, halves, sklearn, quantized
"""
import json, pathlib, sys, warnings
import numpy as np
import onnx
import torch
from torch import nn

warnings.filterwarnings("ignore")
FOLDER = pathlib.Path(sys.argv[1])
FOLDER.mkdir(parents=True, exist_ok=True)
CASES = []


def put(name, x, **more):
    np.ascontiguousarray(x, "<f4").tofile(FOLDER / f"{name}.x.f32")
    CASES.append({"name": name, "shape": list(x.shape[1:]), **more})


def acts(i):
    return [nn.ReLU(), nn.LeakyReLU(0.2), nn.ELU(0.8), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.GELU(approximate="tanh"),
            nn.ReLU6(), nn.Hardtanh(), nn.PReLU()][i % 10]


def torch_network(seed):
    torch.manual_seed(seed)
    width, layers = 2 + seed * 7 % 23, []
    inputs = width
    for hidden in range(1 + seed % 3):
        new = 4 + (seed * 5 + hidden * 9) % 29
        layers.append(nn.Linear(width, new, bias=seed % 4 != 3))
        if (seed + hidden) % 3 == 0:
            layers.append(nn.BatchNorm1d(new))
        if (seed + hidden) % 3 == 1:
            layers.append(nn.LayerNorm(new))
        layers.append(acts(seed + hidden))
        if seed % 5 == 0:
            layers.append(nn.Dropout(0.3))
        width = new
    layers.append(nn.Linear(width, 1 + seed % 7))
    layers += [[], [nn.Softmax(-1)], [nn.LogSoftmax(-1)], [nn.Sigmoid()]][seed % 4]
    network = nn.Sequential(*layers)
    network.train()
    for _ in range(10):
        network(torch.randn(64, inputs) * 2 + 0.5)
    return network.eval(), inputs


class Flat(nn.Module):
    """An image flattened in one of the ways that people write."""

    def __init__(self, how):
        super().__init__()
        self.how, self.body = how, nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))

    def forward(self, x):
        x = {"flatten": lambda: torch.flatten(x, 1), "view": lambda: x.view(-1, 12),
             "size": lambda: x.view(x.size(0), -1), "reshape": lambda: x.reshape(x.shape[0], 12)}[self.how]()
        return self.body(x)


def export(network, x, name, dynamo, **options):
    path = str(FOLDER / f"{name}.onnx")
    if dynamo:
        batch = torch.export.Dim("batch", min=1, max=4096)
        torch.onnx.export(network, (x,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False, **options)
    else:
        torch.onnx.export(network, (x,), path, dynamo=False, input_names=["x"], output_names=["y"],
                          dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, **options)
    put(name, x.numpy(), source="torch")


def pytorch():
    for seed in range(24):
        network, inputs = torch_network(seed)
        x = torch.randn(32, inputs)
        export(network, x, f"legacy.{seed}", False, opset_version=[11, 13, 17, 18][seed % 4] if seed % 3 != 1 else 17)
        if seed % 3 == 0:
            export(network, x, f"dynamo.{seed}", True)
    for how in ("flatten", "view", "size", "reshape"):
        x = torch.randn(32, 1, 3, 4)
        export(Flat(how).eval(), x, f"legacy.{how}", False)
        export(Flat(how).eval(), x, f"dynamo.{how}", True)
    torch.manual_seed(3)
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)).eval()
    export(body, torch.randn(32, 6), "legacy.not_folded", False, do_constant_folding=False)
    export(body, torch.randn(32, 6), "dynamo.not_optimized", True, optimize=False)
    sequence = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    export(sequence, torch.randn(32, 5, 6), "legacy.sequence", False)
    export(sequence, torch.randn(32, 5, 6), "dynamo.sequence", True)


def halves():
    """Weights of 16 bits, cast where they are used."""
    for i, kind in enumerate([onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16] * 2):
        torch.manual_seed(70 + i)
        network = nn.Sequential(nn.Linear(9, 14), nn.ReLU(), nn.Linear(14, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
        x, name = torch.randn(32, 9), f"halves.{i}"
        export(network, x, name, False)
        model = onnx.load(FOLDER / f"{name}.onnx")
        weights = list(model.graph.initializer)
        del model.graph.initializer[:]
        for at, weight in enumerate(weights):
            half = torch.from_numpy(onnx.numpy_helper.to_array(weight).copy())
            half = half.to(torch.float16 if kind == onnx.TensorProto.FLOAT16 else torch.bfloat16)
            raw = half.view(torch.int16).numpy().astype("<i2").tobytes()
            model.graph.initializer.append(onnx.helper.make_tensor(f"{weight.name}.half", kind, weight.dims, raw, raw=True))
            cast = onnx.helper.make_node("Cast", [f"{weight.name}.half"], [weight.name], to=onnx.TensorProto.FLOAT)
            model.graph.node.insert(at, cast)
        onnx.save(model, FOLDER / f"{name}.onnx")


def sklearn():
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from skl2onnx import to_onnx

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 7)).astype(np.float32) * 3 + 1
    for i, activation in enumerate(["relu", "tanh", "logistic", "identity"]):
        for classes in (2, 4):
            y = (np.abs(x[:, 0] + x[:, 1] * 2) * 10).astype(int) % classes
            model = MLPClassifier((9, 5)[: 1 + i % 2], activation=activation, max_iter=15, random_state=i).fit(x, y)
            onx = to_onnx(model, x[:1], options={"zipmap": bool(i % 2)})
            onnx.save(onx, FOLDER / f"sklearn.{activation}.{classes}.onnx")
            put(f"sklearn.{activation}.{classes}", x, source="sklearn", probabilities=True)
        model = make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(8,), activation=activation,
                                                            max_iter=15, random_state=i))
        onnx.save(to_onnx(model.fit(x, x[:, 0] * 2), x[:1]), FOLDER / f"sklearn.regressor.{activation}.onnx")
        put(f"sklearn.regressor.{activation}", x, source="sklearn")


def quantized():
    from onnxruntime.quantization import (CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic,
                                          quantize_static)

    class Data(CalibrationDataReader):
        def __init__(self, name, x):
            self.batches = iter([{name: x[i : i + 16]} for i in range(0, len(x), 16)])

        def get_next(self):
            return next(self.batches, None)

    for i, activation in enumerate([nn.ReLU, nn.ReLU, nn.ReLU, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ReLU]):
        torch.manual_seed(40 + i)
        network = nn.Sequential(nn.Linear(10, 24), activation(), nn.Linear(24, 16), activation(), nn.Linear(16, 5)).eval()
        x = torch.randn(256, 10)
        source = FOLDER / "source.onnx"
        torch.onnx.export(network, (x[:2],), str(source), dynamo=False, input_names=["x"], output_names=["y"],
                          dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, opset_version=17)
        name = f"ort_quantized.{i}"
        kind = [QuantType.QInt8, QuantType.QUInt8][i % 2]
        quantize_static(str(source), str(FOLDER / f"{name}.onnx"), Data("x", x.numpy()), QuantFormat.QDQ,
                        per_channel=i % 4 < 2, activation_type=kind, weight_type=QuantType.QInt8)
        put(name, x.numpy(), source="onnxruntime", integers=True)
        copy = f"ort_quantized_as_floats.{i}"
        (FOLDER / f"{copy}.onnx").write_bytes((FOLDER / f"{name}.onnx").read_bytes())
        put(copy, x.numpy(), source="onnxruntime", close=0.1)


PARTS = {"pytorch": pytorch, "halves": halves, "sklearn": sklearn, "quantized": quantized}
for part in sys.argv[2:] or PARTS:
    PARTS[part]()
(FOLDER / "cases.json").write_text(json.dumps(CASES, indent=1))
print(f"{len(CASES)} networks")
