"""The same network in PyTorch, made from this project's layers and with their numbers.

Pictures are (m, channels, height, width) in PyTorch; `pictures` gives rows that form, without a
copy, in the order in memory that is called channels_last there and that PyTorch is fastest in.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

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
from training.batch_norm import EPSILON, BatchNorm


class Network(nn.Module):
    """Layers as PyTorch modules; `own` finds its parameters by this project's names."""

    def __init__(self, layers: Sequence[Layer], dtype: str = "float32") -> None:
        super().__init__()
        self.own: dict[str, Any] = {}
        self.body = nn.Sequential(*(self._module(x, f"{i}.") for i, x in enumerate(layers)))
        self.to(getattr(torch, dtype), memory_format=torch.channels_last)

    def forward(self, x: Any) -> Any:
        """The logits (m, 1) for `pictures`."""
        return self.body(x)

    def values(self) -> dict[str, Array]:
        """The parameters, under the names and in the shapes that they have in this project."""
        return {name: _to_ours(value) for name, value in self.own.items()}

    def gradients(self) -> dict[str, Array]:
        """The derivatives that the last backward pass left, in the same form."""
        return {name: _to_ours(value.grad) for name, value in self.own.items()}

    def _module(self, layer: Layer, prefix: str) -> Any:
        match layer:
            case Standardise():
                return _Standardise(layer)
            case Convolution():
                return self._convolution(layer, prefix)
            case BatchNorm():
                return self._batch_norm(layer, prefix)
            case Relu():
                return nn.ReLU(inplace=True)
            case MaxPool():
                return nn.MaxPool2d(2)
            case GlobalAverage():
                return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            case Residual() | Mirrored():
                inner = (self._module(x, f"{prefix}{i}.") for i, x in enumerate(layer.layers))
                whole = _Residual if isinstance(layer, Residual) else _Mirrored
                return whole(nn.Sequential(*inner))
            case Linear():
                return self._linear(layer, prefix)
        raise TypeError(f"{type(self).__name__} does not know {layer.kind} layers yet")

    def _convolution(self, layer: Convolution, prefix: str) -> Any:
        weights, bias = layer.parameters["weights"], layer.parameters.get("bias")
        k, _, c_in, c_out = weights.shape
        module = nn.Conv2d(c_in, c_out, k, layer.stride, k // 2, bias=bias is not None)
        self.own[f"{prefix}weights"] = _set(module.weight, weights.transpose(3, 2, 0, 1))
        if bias is not None:
            self.own[f"{prefix}bias"] = _set(module.bias, bias)
        return module

    def _batch_norm(self, layer: BatchNorm, prefix: str) -> Any:
        shift = layer.parameters["shift"]
        # Running averages are left out: this project measures the statistics afterwards.
        module = nn.BatchNorm2d(len(shift), eps=EPSILON, track_running_stats=False)
        module.weight.requires_grad_(False)  # stays 1: there is no learned scale
        self.own[f"{prefix}shift"] = _set(module.bias, shift)
        return module

    def _linear(self, layer: Linear, prefix: str) -> Any:
        weights = layer.parameters["weights"]
        module = nn.Linear(*weights.shape)
        self.own[f"{prefix}weights"] = _set(module.weight, weights.T)
        self.own[f"{prefix}bias"] = _set(module.bias, layer.parameters["bias"])
        return module


class _Standardise(nn.Module):
    def __init__(self, layer: Standardise) -> None:
        super().__init__()
        for name, value in (("mean", layer.mean), ("deviation", layer.deviation)):
            exact = torch.tensor(value, dtype=torch.float64)
            self.register_buffer(name, exact.reshape(1, -1, 1, 1))

    def forward(self, x: Any) -> Any:
        return (x - self.mean).div_(self.deviation)


class _Residual(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return x + self.inner(x)


class _Mirrored(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        one, other = self.inner(torch.cat([x, x.flip(3)])).chunk(2)
        return (one + other) / 2


def pictures(X: Array, side: int = 64) -> Any:
    """Rows X (m, side·side·3) as PyTorch's pictures (m, 3, side, side), channels_last, no copy."""
    return torch.from_numpy(X.reshape(len(X), side, side, 3)).permute(0, 3, 1, 2)


def _set(parameter: Any, value: Array) -> Any:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return parameter


def _to_ours(value: Any) -> Array:
    """(C_out, C_in, k, k) → (k, k, C_in, C_out), (n_y, n_x) → (n_x, n_y); vectors as they are."""
    array: Array = value.detach().numpy()
    ours = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return np.array(ours)  # a copy: the next step changes the other in place
