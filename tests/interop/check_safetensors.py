"""PyTorch against trimnet through safetensors, both ways. Usage: check_safetensors.py BINARY

BINARY is the example `interop_safetensors`. Exits with an error at the first difference.
"""
import json, pathlib, subprocess, sys, tempfile
import numpy as np, torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

BINARY = sys.argv[1]
ACTIVATIONS = {
    "Relu": lambda _: torch.nn.ReLU(), "Tanh": lambda _: torch.nn.Tanh(), "Sigmoid": lambda _: torch.nn.Sigmoid(),
    "Gelu": lambda _: torch.nn.GELU(), "GeluTanh": lambda _: torch.nn.GELU(approximate="tanh"),
    "LeakyRelu": torch.nn.LeakyReLU, "Elu": torch.nn.ELU, "Clip": lambda s: torch.nn.Hardtanh(s["min"], s["max"]),
}

def module(layer, width):
    (kind, s), = layer.items()
    if kind == "linear":
        return torch.nn.Linear(width, s["outputs"], bias=s["bias"]), s["outputs"]
    if kind == "batch_norm":
        return torch.nn.BatchNorm1d(width, eps=s["eps"]), width
    if kind == "layer_norm":
        return torch.nn.LayerNorm(width, eps=s["eps"]), width
    if kind == "dropout":
        return torch.nn.Dropout(s["p"]), width
    name, setting = (s, None) if isinstance(s, str) else next(iter(s.items()))
    return ACTIVATIONS[name](setting), width

def sequential(network):
    width, modules = network["inputs"], []
    for layer in network["layers"]:
        made, width = module(layer, width)
        modules.append(made)
    return torch.nn.Sequential(*modules).eval()

def floats(path, width):
    return torch.from_numpy(np.fromfile(path, dtype="<f4").reshape(-1, width).copy())

def same(a, b, what):
    # Two float32 programs add in different orders: relative to the largest output.
    error = ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()
    assert error <= 1e-6, f"{what}: {error}"
    return error

def same_keys(ours, model, what):
    theirs = model.state_dict()
    assert list(sorted(ours)) == list(sorted(theirs)), f"{what}: {sorted(ours)} {sorted(theirs)}"
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype and ours[key].shape == value.shape, f"{what}: {key}"

with tempfile.TemporaryDirectory() as folder:
    folder, worst, count = pathlib.Path(folder), 0.0, 0
    subprocess.run([BINARY, "write", folder], check=True)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert metadata["format"] == "pt"
        network = json.loads(metadata["trimnet"])["network"]
        model, tensors = sequential(network), load_file(path)
        same_keys(tensors, model, path.name)
        model.load_state_dict(tensors, strict=True)
        y = model(floats(path.with_suffix(".x.f32"), network["inputs"])).detach()
        worst, count = max(worst, same(floats(path.with_suffix(".y.f32"), y.shape[1]), y, path.name)), count + 1
    assert count >= 20
    print(f"trimnet -> PyTorch: {count} networks, largest difference {worst:.1e}")

with tempfile.TemporaryDirectory() as folder:
    folder, worst, count = pathlib.Path(folder), 0.0, 24
    kinds, models = list(ACTIVATIONS), []
    for seed in range(count):
        torch.manual_seed(seed)
        layers, width = [], 1 + seed * 7 % 29
        network = {"inputs": width, "layers": layers}
        for hidden in range(1 + seed % 3):
            layers.append({"linear": {"outputs": 2 + (seed * 13 + hidden) % 50, "bias": seed % 4 != 3}})
            if (seed + hidden) % 3 == 0:
                layers.append({"batch_norm": {"eps": 1e-5 * (1 + seed)}})
            if (seed + hidden) % 3 == 1:
                layers.append({"layer_norm": {"eps": 1e-5}})
            name = kinds[(seed + hidden) % len(kinds)]
            settings = {"LeakyRelu": 0.3, "Elu": 0.3, "Clip": {"min": -0.5, "max": 0.75}}
            layers.append({"activation": {name: settings[name]} if name in settings else name})
            layers.append({"dropout": {"p": 0.5}})
        layers.append({"linear": {"outputs": 1 + seed % 9, "bias": True}})
        model = sequential(network).train()
        for _ in range(3):
            model(torch.randn(16, width))
        model.eval()
        x = torch.randn(33, width)
        save_file(model.state_dict(), folder / f"{seed}.torch.safetensors")
        (folder / f"{seed}.json").write_text(json.dumps(network))
        x.numpy().astype("<f4").tofile(folder / f"{seed}.x.f32")
        models.append((model, network, x))
    subprocess.run([BINARY, "read", folder], check=True)
    for seed, (model, network, x) in enumerate(models):
        y = model(x).detach()
        worst = max(worst, same(floats(folder / f"{seed}.y.f32", y.shape[1]), y, f"read {seed}"))
        back = load_file(folder / f"{seed}.back.safetensors")
        same_keys(back, model, f"back {seed}")
        for key, value in model.state_dict().items():
            assert torch.equal(back[key], value), f"back {seed}: {key}"
        again = sequential(network)
        again.load_state_dict(back, strict=True)
        assert torch.equal(again(x), y)
    print(f"PyTorch -> trimnet -> PyTorch: {count} networks, largest difference {worst:.1e}, state dicts equal bit by bit")
