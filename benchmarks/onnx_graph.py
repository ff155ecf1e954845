"""Networks as ONNX graphs, for ONNX Runtime: this project's layers, without PyTorch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.convolution import Convolution
from model.network import (
    Array,
    GlobalAverage,
    Layer,
    Linear,
    MaxPool,
    Mirrored,
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

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """The name of the operation's output."""
        name = f"{len(self._nodes)}"
        self._nodes.append(helper.make_node(operation, inputs, [name], **attributes))
        return name

    def constant(self, value: Array) -> str:
        """The name of a float32 constant."""
        name = f"c{len(self._constants)}"
        tensor = np.ascontiguousarray(value, np.float32)
        self._constants.append(numpy_helper.from_array(tensor, name))
        return name

    def integers(self, *values: int) -> str:
        """The name of a constant vector of int64."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def halves(self, x: str) -> tuple[str, str]:
        """The names of the first and the last half of the examples."""
        names = f"{len(self._nodes)}a", f"{len(self._nodes)}b"
        self._nodes.append(helper.make_node("Split", [x], names, axis=0))
        return names

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
        names = [self.constant(value) for value in (weights, bias) if value is not None]
        return self.add(
            "Conv",
            x,
            *names,
            kernel_shape=[k, k],
            strides=[stride, stride],
            pads=[k // 2] * 4 if pads is None else list(pads),
            group=group,
        )

    def model(self, output: str) -> bytes:
        """The checked, serialised model whose only output is that one, (m, …)."""
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["m", None])
        graph = helper.make_graph(
            self._nodes, "network", [self._input], [result], initializer=self._constants
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString()
        return data


def from_layers(layers: Sequence[Layer], side: int = 64) -> bytes:
    """The model that gives σ(z) (m, 1) for pictures (m, 3, side, side) in [0, 1]."""
    graph = Graph(side)
    x = "x"
    for layer in layers:
        x = _add(graph, layer, x)
    return graph.model(graph.add("Sigmoid", x))


def _add(graph: Graph, layer: Layer, x: str) -> str:
    match layer:
        case Standardise():
            mean, deviation = (
                graph.constant(np.array(value).reshape(1, -1, 1, 1))
                for value in (layer.mean, layer.deviation)
            )
            return graph.add("Div", graph.add("Sub", x, mean), deviation)
        case Convolution():
            weights = layer.parameters["weights"].transpose(3, 2, 0, 1)
            return graph.convolution(x, weights, layer.parameters.get("bias"), layer.stride)
        case Relu():
            return graph.add("Relu", x)
        case MaxPool():
            return graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        case GlobalAverage():
            return graph.add("Flatten", graph.add("GlobalAveragePool", x))
        case Residual():
            inner = x
            for each in layer.layers:
                inner = _add(graph, each, inner)
            return graph.add("Add", x, inner)
        case Mirrored():
            reverse = [graph.integers(value) for value in (-1, -(2**31), 3, -1)]
            inner = graph.add("Concat", x, graph.add("Slice", x, *reverse), axis=0)
            for each in layer.layers:
                inner = _add(graph, each, inner)
            return graph.add("Mean", *graph.halves(inner))
        case Linear():
            constants = [graph.constant(layer.parameters[n]) for n in ("weights", "bias")]
            return graph.add("Gemm", x, *constants)
    raise TypeError(f"{__name__} does not know {layer.kind} layers yet")


def session(model: bytes, threads: int = 1) -> Any:
    """An ONNX Runtime session on so many threads, with all its optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
