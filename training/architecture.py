"""The networks that training starts from, and what is made of them when it is done."""

import copy
from collections.abc import Iterable, Mapping, Sequence

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
    Mirrored,
    Relu,
    Residual,
    Standardise,
    unmirrored,
)

STAGES = (64, 128, 256)  # channels at 16×16, 8×8 and 4×4
MOST_STAGES = 5  # halved after each but the last, 16 places a side become 1
MEAN, DEVIATION = (0.48, 0.45, 0.41), (0.27, 0.26, 0.27)  # of the training pictures' colours


def default_network(
    rng: np.random.Generator, stages: Sequence[int] = STAGES, outputs: int = 1
) -> list[Layer]:
    """The default network, with random weights: a 5×5 convolution of stride 2 and a pooling to
    16×16, then for each of `stages` one convolution and one residual block of two, a pooling
    between them, the average over all places and the logistic units. float32.

    outputs: more than one where it also learns other things (Caruana 1997, Multitask Learning):
    they teach the layers below more than one bit a picture."""
    layers: list[Layer] = [
        Standardise(MEAN, DEVIATION),
        _convolution(rng, 5, 3, 32, stride=2),
        MaxPool(),
        _norm(32),
        Relu(),
    ]
    channels = 32
    for i, wider in enumerate(stages):
        if i:
            layers.append(MaxPool())
        layers += _conv_norm_relu(rng, channels, wider)
        layers.append(
            Residual(_conv_norm_relu(rng, wider, wider) + _conv_norm_relu(rng, wider, wider))
        )
        channels = wider
    head = rng.standard_normal((channels, outputs)) * np.sqrt(1 / channels)
    layers += [GlobalAverage(), Linear(head.astype(np.float32), np.zeros(outputs, np.float32))]
    return layers


def _conv_norm_relu(rng: np.random.Generator, c_in: int, c_out: int) -> list[Layer]:
    return [_convolution(rng, 3, c_in, c_out), _norm(c_out), Relu()]


def _convolution(
    rng: np.random.Generator, kernel: int, c_in: int, c_out: int, stride: int = 1
) -> Convolution:
    """Random weights of variance 2 / (kernel²·C_in) (He et al. 2015, Delving Deep into
    Rectifiers), no bias: the normalisation that follows has the shift."""
    deviation = np.sqrt(2 / (kernel * kernel * c_in))
    weights = rng.standard_normal((kernel, kernel, c_in, c_out)) * deviation
    return Convolution(weights.astype(np.float32), stride=stride)


def _norm(channels: int) -> BatchNorm:
    return BatchNorm(np.zeros(channels, np.float32))


def mirrored(layers: Sequence[Layer]) -> list[Layer]:
    """The trained network as it answers: with the mean over each picture and its mirror image of
    what the logistic unit sees. Networks that start on rows of pixels stay as they are."""
    plain = unmirrored(layers)
    if not isinstance(plain[0], Standardise):
        return plain
    return [plain[0], Mirrored(plain[1:-1]), plain[-1]]


def fold(layers: Sequence[Layer], statistics: Mapping[int, Iterable[Array]]) -> list[Layer]:
    """The same function without batch normalisation, for the artifact.

    statistics: mean and variance (channels,) by `id` of each BatchNorm layer. Its scale
    1/√(σ² + ε) and shift go into the convolution before it; a pooling between them does not mind,
    since the scale is positive. No parameters are shared with `layers`: training may go on.
    """
    folded: list[Layer] = []
    place = 0  # of the last convolution
    for layer in layers:
        if isinstance(layer, BatchNorm):
            mean, variance = statistics[id(layer)]
            scale = 1 / np.sqrt(variance + NORM_EPSILON)
            convolution = folded[place]
            assert isinstance(convolution, Convolution)
            weights = convolution.parameters["weights"] * scale
            bias = layer.parameters["shift"] - mean * scale
            bias += convolution.parameters.get("bias", 0) * scale
            both = (weights.astype(np.float32), bias.astype(np.float32))
            folded[place] = Convolution(*both, convolution.stride)
        elif isinstance(layer, Residual):
            folded.append(Residual(fold(layer.layers, statistics)))
        else:
            place = len(folded) if isinstance(layer, Convolution) else place
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
