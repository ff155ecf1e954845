"""The networks that training starts from, and what is made of them when it is done."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

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
)

STAGES = (32, 64, 128, 256)  # channels at 32×32, 16×16, 8×8 and 4×4
MOST_STAGES = 6  # halved after each but the last, 32 places a side become 1
MEAN, DEVIATION = (0.48, 0.45, 0.41), (0.27, 0.26, 0.27)  # of the training pictures' colours


def default_network(
    rng: np.random.Generator, stages: Sequence[int] = STAGES, outputs: int = 1
) -> list[Layer]:
    """The default network, with random weights: a 5×5 convolution of stride 2 to 32×32 and a
    residual block of two convolutions, then for each further stage a pooling, a convolution and
    such a block, the average over all places and the logistic units. float32.

    outputs: more than one where it also learns other things (Caruana 1997, Multitask Learning):
    they teach the layers below more than one bit a picture."""
    layers: list[Layer] = [
        Standardise(MEAN, DEVIATION),
        *_conv_norm_relu(rng, 5, 3, stages[0], stride=2),
        _block(rng, stages[0]),
    ]
    for before, channels in pairwise(stages):
        layers += [MaxPool(), *_conv_norm_relu(rng, 3, before, channels), _block(rng, channels)]
    head = rng.standard_normal((stages[-1], outputs)) * np.sqrt(1 / stages[-1])
    layers += [GlobalAverage(), Linear(head.astype(np.float32), np.zeros(outputs, np.float32))]
    return layers


def _block(rng: np.random.Generator, channels: int) -> Residual:
    first, second = (_conv_norm_relu(rng, 3, channels, channels) for _ in range(2))
    return Residual(first + second)


def _conv_norm_relu(
    rng: np.random.Generator, kernel: int, c_in: int, c_out: int, stride: int = 1
) -> list[Layer]:
    """A convolution, its normalisation and ReLU. Random weights of variance 2 / (kernel²·C_in) (He
    et al. 2015, Delving Deep into Rectifiers), no bias: the normalisation has the shift."""
    deviation = np.sqrt(2 / (kernel * kernel * c_in))
    weights = rng.standard_normal((kernel, kernel, c_in, c_out)) * deviation
    convolution = Convolution(weights.astype(np.float32), stride=stride)
    return [convolution, BatchNorm(np.zeros(c_out, np.float32)), Relu()]


def fold(layers: Sequence[Layer], statistics: Mapping[int, Iterable[Array]]) -> list[Layer]:
    """The same function without batch normalisation, for the artifact.

    statistics: mean and variance (channels,) by `id` of each BatchNorm layer. Its scale
    1/√(σ² + ε) and shift go into the convolution before it. No parameters are shared with
    `layers`: training may go on.
    """
    folded: list[Layer] = []
    for layer in layers:
        if isinstance(layer, BatchNorm):
            mean, variance = statistics[id(layer)]
            scale = 1 / np.sqrt(variance + NORM_EPSILON)
            convolution = folded.pop()
            assert isinstance(convolution, Convolution)
            weights = convolution.parameters["weights"] * scale
            bias = layer.parameters["shift"] - mean * scale
            bias += convolution.parameters.get("bias", 0) * scale
            both = (weights.astype(np.float32), bias.astype(np.float32))
            folded.append(Convolution(*both, convolution.stride))
        elif isinstance(layer, Residual):
            folded.append(Residual(fold(layer.layers, statistics)))
        else:
            folded.append(copy.deepcopy(layer))
    return folded


def batch_norms(layers: Sequence[Layer]) -> list[BatchNorm]:
    """All BatchNorm layers, those inside residual layers too."""
    found: list[BatchNorm] = []
    for layer in layers:
        if isinstance(layer, BatchNorm):
            found.append(layer)
        elif isinstance(layer, Residual):
            found += batch_norms(layer.layers)
    return found
