#!/usr/bin/env python3
"""Writes the golden files beside this script with PyTorch, one JSON file a topic.

    pip install torch==2.15.0 numpy==2.4.6
    python golden.py

Inputs come from a seeded generator and are stored with the results, so the tests need nothing else."""
import json
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

warnings.filterwarnings("ignore")
HERE = Path(__file__).resolve().parent
torch.set_num_threads(1)


def normal(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def write(topic, value):
    def plain(x):
        if isinstance(x, torch.Tensor):
            return plain(x.tolist())
        if isinstance(x, dict):
            return {key: plain(value) for key, value in x.items()}
        if isinstance(x, (list, tuple)):
            return [plain(value) for value in x]
        return x
    text = json.dumps({"torch": torch.__version__, **plain(value)}, separators=(",", ":"))
    (HERE / f"golden_{topic}.json").write_text(text + "\n")


def batch_norm():
    """Three training batches, then one inference batch, and the gradients of each training batch."""
    features = 5
    layer = nn.BatchNorm1d(features, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(1 + 0.3 * normal(features, seed=1))
        layer.bias.copy_(0.2 * normal(features, seed=2))
    start = {"gamma": layer.weight.detach().clone(), "beta": layer.bias.detach().clone()}
    steps = []
    for i, rows in enumerate((7, 2, 16)):
        x = (3 * normal(rows, features, seed=10 + i) + 1).requires_grad_()
        dy = normal(rows, features, seed=20 + i)
        layer.zero_grad()
        y = layer(x)
        y.backward(dy)
        steps.append({"x": x.detach(), "y": y.detach(), "dy": dy, "dx": x.grad, "dgamma": layer.weight.grad.clone(),
                      "dbeta": layer.bias.grad.clone(), "running_mean": layer.running_mean.clone(), "running_var": layer.running_var.clone()})
    layer.eval()
    x = normal(4, features, seed=30)
    write("batch_norm", {**start, "steps": steps, "infer": {"x": x, "y": layer(x).detach()}})


def layer_norm():
    layer = nn.LayerNorm(6, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(1 + 0.3 * normal(6, seed=1))
        layer.bias.copy_(0.2 * normal(6, seed=2))
    x = (2 * normal(5, 6, seed=3) - 1).requires_grad_()
    dy = normal(5, 6, seed=4)
    y = layer(x)
    y.backward(dy)
    write("layer_norm", {"gamma": layer.weight.detach(), "beta": layer.bias.detach(), "x": x.detach(), "y": y.detach(), "dy": dy,
                         "dx": x.grad, "dgamma": layer.weight.grad, "dbeta": layer.bias.grad})


def optimizers():
    """Ten steps each on a linear layer [3, 4] with bias, gradients given."""
    weight, bias = normal(3, 4, seed=1), normal(3, seed=2)
    dweight = [normal(3, 4, seed=100 + i) for i in range(10)]
    dbias = [normal(3, seed=200 + i) for i in range(10)]
    makers = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
        "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "sgd_momentum_decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        "sgd_nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        "sgd_nesterov_decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "adam_l2": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6),
    }
    traces = {}
    for name, make in makers.items():
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        optimizer, trace = make([w, b]), []
        for dw, db in zip(dweight, dbias):
            w.grad, b.grad = dw.clone(), db.clone()
            optimizer.step()
            trace.append({"weight": w.detach().clone(), "bias": b.detach().clone()})
        traces[name] = trace
    write("optimizers", {"weight": weight, "bias": bias, "dweight": dweight, "dbias": dbias, "traces": traces})


def distillation():
    cases = []
    student, teacher = 2 * normal(6, 5, seed=1), 2 * normal(6, 5, seed=2)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    for temperature in (1.0, 2.5, 20.0):
        for alpha in (0.0, 0.3, 1.0):
            s = student.clone().requires_grad_()
            hard = F.cross_entropy(s, labels)
            soft = F.kl_div(F.log_softmax(s / temperature, 1), F.softmax(teacher / temperature, 1), reduction="batchmean")
            loss = alpha * hard + (1 - alpha) * temperature ** 2 * soft
            loss.backward()
            cases.append({"temperature": temperature, "alpha": alpha, "loss": loss.item(), "dlogits": s.grad})
    s = student.clone().requires_grad_()
    entropy = F.cross_entropy(s, labels)
    entropy.backward()
    t = student.clone().requires_grad_()
    mse = F.mse_loss(t, teacher)
    mse.backward()
    write("distillation", {"student": student, "teacher": teacher, "labels": labels, "cases": cases,
                           "cross_entropy": {"loss": entropy.item(), "dlogits": s.grad}, "mse": {"loss": mse.item(), "doutputs": t.grad}})


def prune_masks():
    def masked(weight, apply):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight)
        apply(layer)
        return layer.weight_mask
    w = normal(7, 9, seed=1)
    unstructured = [{"sparsity": s, "mask": masked(w, lambda m: prune.l1_unstructured(m, "weight", s))} for s in (0.0, 0.1, 0.5, 0.77, 0.9, 1.0)]
    structured = [{"sparsity": s, "norm": n, "axis": d, "mask": masked(w, lambda m: prune.ln_structured(m, "weight", s, n, d))}
                  for s in (0.25, 0.5, 0.8) for n in (1, 2) for d in (0, 1)]
    def twice(m):
        prune.l1_unstructured(m, "weight", 0.5)
        prune.l1_unstructured(m, "weight", 0.5)
    a, b = nn.Linear(9, 7, bias=False, dtype=torch.float64), nn.Linear(4, 5, bias=False, dtype=torch.float64)
    v = 0.5 * normal(5, 4, seed=2)
    with torch.no_grad():
        a.weight.copy_(w)
        b.weight.copy_(v)
    prune.global_unstructured([(a, "weight"), (b, "weight")], prune.L1Unstructured, amount=0.6)
    write("prune", {"weight": w, "unstructured": unstructured, "structured": structured, "repeated": masked(w, twice),
                    "global": {"sparsity": 0.6, "weights": [w, v], "masks": [a.weight_mask, b.weight_mask]}})


def fake_quantize():
    x = (2 * normal(64, seed=1, dtype=torch.float32)).requires_grad_()
    dy = normal(64, seed=2, dtype=torch.float32)
    cases = []
    for scale, zero_point, qmin, qmax in ((0.02, 0, -128, 127), (0.015, 12, 0, 255), (0.3, 0, -8, 7), (0.11, 3, 0, 15)):
        x.grad = None
        y = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, qmin, qmax)
        y.backward(dy)
        cases.append({"scale": scale, "zero_point": zero_point, "qmin": qmin, "qmax": qmax, "y": y.detach(), "dx": x.grad.clone()})
    write("fake_quantize", {"x": x.detach(), "dy": dy, "cases": cases})


def observers():
    from torch.ao.quantization import MinMaxObserver, MovingAverageMinMaxObserver, PerChannelMinMaxObserver
    batches = [normal(4, 6, seed=i, dtype=torch.float32) * (i + 1) + 0.3 for i in range(3)]
    out = []
    for name, dtype, scheme in (("affine_u8", torch.quint8, torch.per_tensor_affine), ("affine_i8", torch.qint8, torch.per_tensor_affine),
                                ("symmetric_i8", torch.qint8, torch.per_tensor_symmetric), ("symmetric_u8", torch.quint8, torch.per_tensor_symmetric)):
        for kind in (MinMaxObserver, MovingAverageMinMaxObserver):
            observer = kind(dtype=dtype, qscheme=scheme)
            for batch in batches:
                observer(batch)
            scale, zero_point = observer.calculate_qparams()
            out.append({"observer": kind.__name__, "scheme": name, "min": observer.min_val.item(), "max": observer.max_val.item(),
                        "scale": scale.item(), "zero_point": int(zero_point.item())})
    observer = PerChannelMinMaxObserver(ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    observer(batches[0])
    scale, zero_point = observer.calculate_qparams()
    write("observers", {"batches": batches, "per_tensor": out, "per_channel_symmetric_i8": {"scale": scale, "zero_point": zero_point}})


def mlp():
    """Ten Adam steps of 6-8-5-3 with batch norm and two activations: loss, logits and parameters after the last step."""
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(0.4 * normal(*p.shape, seed=50 + i) + (1 if i == 2 else 0))
    start = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=0.02), []
    xs = [normal(12, 6, seed=70 + i) for i in range(10)]
    labels = [torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(90 + i)) for i in range(10)]
    for x, y in zip(xs, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    net.eval()
    probe = normal(4, 6, seed=99)
    write("mlp", {"start": start, "x": xs, "labels": labels, "losses": losses, "end": net.state_dict(), "probe": {"x": probe, "logits": net(probe).detach()}})


def activations():
    x = torch.linspace(-6, 6, 49, dtype=torch.float64)
    table = {}
    for name, f in {"relu": F.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "elu": F.elu, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
                    "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
                    "relu6": F.relu6, "hardtanh": lambda x: F.hardtanh(x, -0.25, 1.5)}.items():
        v = x.clone().requires_grad_()
        y = f(v)
        y.sum().backward()
        table[name] = {"y": y.detach(), "dx": v.grad}
    write("activations", {"x": x, "functions": table})


for make in (batch_norm, layer_norm, optimizers, distillation, prune_masks, fake_quantize, observers, mlp, activations):
    make()
