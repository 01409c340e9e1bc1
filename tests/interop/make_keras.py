"""Keras networks through tf2onnx, for `interop_onnx read`. Needs tensorflow and tf2onnx.

    make_keras.py DIR
"""
import json, os, pathlib, sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
import keras
from keras import layers

FOLDER = pathlib.Path(sys.argv[1])
FOLDER.mkdir(parents=True, exist_ok=True)
CASES = []
for seed, activation in enumerate(["relu", "tanh", "sigmoid", "elu", "gelu_tanh", "leaky_relu", "relu6", "relu"]):
    keras.utils.set_random_seed(seed)
    image = seed == 7
    network = keras.Sequential([keras.Input((3, 4) if image else (6 + seed,))])
    if image:
        network.add(layers.Flatten())
    network.add(layers.Dense(12 + seed, bias_initializer="normal"))
    if seed % 2:
        network.add(layers.BatchNormalization())
    # The exact gelu of Keras needs Erfc, which ONNX has not and tf2onnx refuses.
    tanh = lambda x: keras.activations.gelu(x, approximate=True)
    network.add(layers.Activation(tanh if activation == "gelu_tanh" else activation))
    network.add(layers.Dropout(0.3))
    network.add(layers.Dense(5, activation="softmax" if seed % 3 else None, use_bias=seed % 4 != 2))
    rng = np.random.default_rng(seed)
    shape = network.input_shape[1:]
    network.compile("adam", "mse")
    network.fit(rng.normal(size=(128, *shape)), rng.random((128, 5)), epochs=2, verbose=0)
    x = rng.normal(size=(32, *shape)).astype(np.float32)
    name = f"keras.{seed}"
    network.export(FOLDER / f"{name}.onnx", format="onnx", verbose=False)
    x.tofile(FOLDER / f"{name}.x.f32")
    CASES.append({"name": name, "shape": list(shape), "source": "keras"})
(FOLDER / "cases.json").write_text(json.dumps(CASES, indent=1))
print(f"{len(CASES)} networks")
