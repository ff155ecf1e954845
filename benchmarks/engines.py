"""One network, three ways to run it: this project, PyTorch and ONNX Runtime.

An engine is made from a weights file, on one thread, and gives `predict(X)`: the probabilities (m,)
for rows X (m, 12,288) float32. What each would rather have the rows as is made beforehand by
`prepare(X)`, which is not timed. Libraries are imported by the engine that needs them, so that a
process holds one only.
"""

from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from model.classifier import Classifier
from model.network import Array

INSTALL = {
    "torch": "python -m pip install torch==2.13.0",
    "onnx": "python -m pip install --require-hashes -r requirements/benchmarks.txt",
    "onnxruntime": "python -m pip install --require-hashes -r requirements/benchmarks.txt",
}


class Engine(Protocol):
    """A network ready to run."""

    def version(self) -> str:
        """Name and version of what runs it."""

    def prepare(self, X: Array) -> Any:
        """The rows in the engine's own form."""

    def predict(self, x: Any) -> Array:
        """Probabilities (m,) for what `prepare` gave."""


class Ours:
    """This project, as the service runs it."""

    def __init__(self, weights: str) -> None:
        self.classifier = Classifier.load(weights)

    def version(self) -> str:
        return f"NumPy {np.__version__}"

    def prepare(self, X: Array) -> Array:
        return X

    def predict(self, x: Array) -> Array:
        return self.classifier.probabilities(x)


class Torch:
    """PyTorch, eager, channels_last."""

    def __init__(self, weights: str) -> None:
        import torch

        from benchmarks.torch_network import Network

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.network = Network(Classifier.load(weights).layers).eval()

    def version(self) -> str:
        return f"PyTorch {self.torch.__version__}"

    def prepare(self, X: Array) -> Any:
        from benchmarks.torch_network import pictures

        return pictures(X)

    def predict(self, x: Any) -> Array:
        with self.torch.inference_mode():
            y: Array = self.torch.sigmoid(self.network(x)).numpy()[:, 0]
        return y


class OnnxRuntime:
    """ONNX Runtime, one thread, all its optimisations."""

    def __init__(self, weights: str) -> None:
        from benchmarks.onnx_graph import from_layers, session

        self.session = session(from_layers(Classifier.load(weights).layers))

    def version(self) -> str:
        import onnxruntime

        return f"ONNX Runtime {onnxruntime.__version__}"

    def prepare(self, X: Array) -> Array:
        x = X.reshape(len(X), 64, 64, 3).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(x)

    def predict(self, x: Array) -> Array:
        y: Array = self.session.run(None, {"x": x})[0][:, 0]
        return y


class Lite0:
    """EfficientNet-Lite0 on ONNX Runtime; another network, so only its memory compares."""

    def __init__(self, weights: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(weights, options)

    def prepare(self, X: Array) -> Array:
        return np.zeros((len(X), 3, 224, 224), np.float32)

    def predict(self, x: Array) -> Array:
        y: Array = self.session.run(None, {"x": x})[0][:, 281:286].sum(axis=1)
        return y


ENGINES: dict[str, type[Ours] | type[Torch] | type[OnnxRuntime]] = {
    "this project": Ours,
    "PyTorch": Torch,
    "ONNX Runtime": OnnxRuntime,
}
_NEEDED = {"this project": (), "PyTorch": ("torch",), "ONNX Runtime": ("onnx", "onnxruntime")}


def available() -> tuple[list[str], list[str]]:
    """Names of the engines that can run here, and a line for each that cannot, with the remedy."""
    names, missing = [], []
    for name in ENGINES:
        absent = [package for package in _NEEDED[name] if find_spec(package) is None]
        if absent:
            how = " or ".join(dict.fromkeys(INSTALL[package] for package in absent))
            missing.append(f"{name} is left out: {' and '.join(absent)} not installed ({how}).")
        else:
            names.append(name)
    return names, missing
