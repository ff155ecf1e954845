"""Networks as ONNX graphs, for ONNX Runtime: this project's layers, without PyTorch.

python -m benchmarks.onnx_graph WEIGHTS FILE.onnx
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.classifier import Classifier
from model.convolution import Convolution
from model.network import (
    Array,
    GlobalAverage,
    Layer,
    Linear,
    MaxPool,
    Relu,
    Residual,
    Standardise,
)

OPSET, IR_VERSION = 17, 8  # old enough for every ONNX Runtime of the last years


class Graph:
    """A graph in the making; pictures (m, 3, side, side) float32 are its input `x`."""

    def __init__(self, side: int) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._input = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", 3, side, side])

    def add(self, operation: str, *inputs: str | Array, **attributes: Any) -> str:
        """The name of the operation's output; inputs: names, or constants."""
        names = [self._constant(x) if isinstance(x, np.ndarray) else x for x in inputs]
        output = str(len(self._nodes))
        self._nodes.append(helper.make_node(operation, names, [output], **attributes))
        return output

    def _constant(self, value: Array) -> str:
        name = f"constant {len(self._constants)}"
        exact = np.ascontiguousarray(value, np.int64 if value.dtype.kind == "i" else np.float32)
        self._constants.append(numpy_helper.from_array(exact, name))
        return name

    def convolution(
        self,
        x: str,
        weights: Array,
        bias: Array | None,
        stride: int = 1,
        pads: Sequence[int] | None = None,
        group: int = 1,
    ) -> str:
        """weights (C_out, C_in / group, k, k); pads (top, left, bottom, right), or None: k//2."""
        k = weights.shape[2]
        return self.add(
            "Conv",
            *(x, weights) if bias is None else (x, weights, bias),
            kernel_shape=[k, k],
            strides=[stride, stride],
            pads=[k // 2] * 4 if pads is None else list(pads),
            group=group,
        )

    def model(self, *outputs: str) -> bytes:
        """The checked, serialised model with these outputs, (m, …) each."""
        results = [
            helper.make_tensor_value_info(o, TensorProto.FLOAT, ["m", None]) for o in outputs
        ]
        graph = helper.make_graph(self._nodes, "x", [self._input], results, self._constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString()
        return data


def from_layers(layers: Sequence[Layer], side: int = 64, *, mirror: bool = False) -> bytes:
    """The model that gives σ(z) (m, 1) for pictures (m, 3, side, side) in [0, 1]. With `mirror` z
    is the mean of the picture's and of its mirror image's."""
    graph, x = Graph(side), "x"
    if mirror:
        image = graph.add("Slice", x, *np.array([[-1], [-(2**31)], [3], [-1]]))
        x = graph.add("Concat", x, image, axis=0)
    if isinstance(layers[0], Linear):  # it takes rows, whose last axis are the colours
        x = graph.add("Flatten", graph.add("Transpose", x, perm=[0, 2, 3, 1]))
    z = _add(graph, layers, x)
    if mirror:
        z = graph.add(
            "ReduceMean", graph.add("Reshape", z, np.array([2, -1, 1])), axes=[0], keepdims=0
        )
    return graph.model(graph.add("Sigmoid", z))


def _add(graph: Graph, layers: Sequence[Layer], x: str) -> str:
    for layer in layers:
        own = layer.parameters
        match layer:
            case Standardise():
                mean, deviation = np.array([layer.mean, layer.deviation]).reshape(2, 1, -1, 1, 1)
                x = graph.add("Div", graph.add("Sub", x, mean), deviation)
            case Convolution():
                weights = own["weights"].transpose(3, 2, 0, 1)
                x = graph.convolution(x, weights, own.get("bias"), layer.stride)
            case Relu():
                x = graph.add("Relu", x)
            case MaxPool():
                x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
            case GlobalAverage():
                x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
            case Residual():
                x = graph.add("Add", x, _add(graph, layer.layers, x))
            case Linear():
                x = graph.add("Gemm", x, own["weights"], own["bias"])
            case _:
                raise TypeError(f"{__name__} does not know {layer.kind} layers yet")
    return x


if __name__ == "__main__":
    served = Classifier.load(sys.argv[1])
    Path(sys.argv[2]).write_bytes(from_layers(served.layers, mirror=served.views.mirror))
