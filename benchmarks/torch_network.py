"""The network in training in PyTorch: this project's layers as PyTorch's functions.

Pictures are (m, channels, height, width) in PyTorch. `pictures` gives rows that form without a
copy, in the order in memory that is called channels_last there and that PyTorch is fastest in.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from model.convolution import Convolution
from model.network import (
    NORM_EPSILON,
    Array,
    BatchNorm,
    GlobalAverage,
    Layer,
    Linear,
    MaxPool,
    Relu,
    Residual,
    Standardise,
    parameters,
)

Tensors = dict[str, Any]  # a network's parameters, under this project's names


def pictures(X: Array, side: int = 64) -> Any:
    """Rows X (m, side·side·3) as PyTorch's pictures (m, 3, side, side), channels_last, no copy."""
    return torch.from_numpy(X.reshape(len(X), side, side, 3)).permute(0, 3, 1, 2)


def tensors(layers: Sequence[Layer]) -> Tensors:
    """The parameters as PyTorch has them, copied: (C_out, C_in, k, k) and (n_y, n_x)."""
    return {name: _tensor(np.array(value)) for name, value in parameters(layers).items()}


def _tensor(value: Array) -> Any:
    if value.ndim < 4:
        return torch.from_numpy(value.T.copy())
    tensor = torch.from_numpy(value.transpose(3, 2, 0, 1).copy())
    return tensor.contiguous(memory_format=torch.channels_last)


def array(tensor: Any) -> Array:
    """The reverse, for a parameter or its gradient."""
    value: Array = tensor.detach().numpy()
    return np.array(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T)


def forward(layers: Sequence[Layer], own: Tensors, x: Any, prefix: str = "") -> Any:
    """The logits (m, 1) for `pictures` x."""
    for i, layer in enumerate(layers):
        name = f"{prefix}{i}."
        match layer:
            case Standardise():
                mean, deviation = torch.tensor([layer.mean, layer.deviation], dtype=x.dtype)
                x = (x - mean.reshape(-1, 1, 1)) / deviation.reshape(-1, 1, 1)
            case Convolution():
                weights = own[f"{name}weights"]
                padding = weights.shape[2] // 2
                x = functional.conv2d(x, weights, own.get(f"{name}bias"), layer.stride, padding)
            case BatchNorm():
                shift, eps = own[f"{name}shift"], NORM_EPSILON
                x = functional.batch_norm(x, None, None, bias=shift, training=True, eps=eps)
            case Relu():
                x = functional.relu(x, inplace=True)
            case MaxPool():
                x = functional.max_pool2d(x, 2)
            case GlobalAverage():
                x = x.mean(dim=(2, 3))
            case Residual():
                x = x + forward(layer.layers, own, x, name)
            case Linear():
                x = functional.linear(x, own[f"{name}weights"], own[f"{name}bias"])
            case _:
                raise TypeError(f"{__name__} does not know {layer.kind} layers yet")
    return x
