"""The network: layers as nodes of a computation graph, one forward pass, one backward pass.

A network is a list of layers. `forward` runs them in order and returns every stage, the input
first and the logits z last; σ(z) is the probability of the first class. Serving reads the last
stage; backpropagation reads them all. Logistic regression is the list with one `Linear` layer.

Shapes: X (m, n_x) holds one picture a row, n_x = 64·64·3 = 12,288 numbers in [0, 1]; z (m, 1).
Inside a convolutional network a stage is (m, height, width, channels).

The backward pass is the chain rule, node by node: a layer gets dy, the derivative of each
example's loss with respect to its output y, and gives dx = dy · ∂y/∂x and the derivatives with
respect to its own parameters, summed over the m examples; divided by m, which is the caller's to
do, they are those of the cost. Names follow the course (deeplearning.ai, Neural Networks and Deep
Learning, week 2): `dz` is short for dL/dz.
"""

from collections.abc import Hashable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]  # float32 in use, float64 where gradients are checked
Gradients = dict[str, Array]
Derivatives = tuple[Array, Gradients]  # dx, and those with respect to the parameters

POOL_PICTURES = 16  # pictures a pooling step handles at a time, so that they stay in cache
NORM_EPSILON = 1e-4  # added to the variance
NORM_ROWS = 4096  # rows (picture places) a step handles at a time, so that they stay in cache


def sigmoid(z: Array) -> Array:
    """σ(z) = 1 / (1 + e⁻ᶻ), elementwise, in (0, 1), without overflow for any finite z."""
    e = np.exp(-np.abs(z))  # in (0, 1]: never overflows
    a: Array = np.where(z >= 0, 1, e) / (1 + e)
    return a


class Scratch:
    """The memory of one thread's passes: buffers reused from call to call, and what a layer's
    forward pass leaves for its backward pass.

    New large arrays for each batch cost more in page faults than the arithmetic on them.
    `keep=True` says that a backward pass follows, and `train=False` that it is for the stages
    alone: weights then get no gradients, nor what would make up for many pictures. One instance
    serves one thread, and the stages of a pass are valid until the next pass with the same scratch.
    """

    def __init__(self, *, keep: bool = False, train: bool = True) -> None:
        self.keep, self.train = keep, train
        self.saved: dict[Hashable, Any] = {}
        self._buffers: dict[Hashable, Array] = {}

    def array(self, key: Hashable, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An uninitialised array of that shape; the same memory for the same key each time."""
        size = prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[key] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)


class Layer:
    """One node of the graph: y = f(x; parameters). Instances hold parameters and nothing else,
    so that any number of threads may run the same layer, each with its own scratch."""

    kind: str
    parameters: dict[str, Array]

    def __init_subclass__(cls, kind: str = "") -> None:
        cls.kind = kind

    def __init__(self, parameters: dict[str, Array] | None = None) -> None:
        self.parameters = parameters or {}

    def prepare(self) -> None:
        """Compute again what is derived from the parameters; called whenever they change."""

    def forward(self, x: Array, scratch: Scratch) -> Array:
        """y for x; the first axis of both is the m examples."""
        raise NotImplementedError

    def backward(self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool) -> Derivatives:
        """dx, and the parameters' gradients summed over examples. `dy` may be overwritten.
        Without `input_gradient` nobody reads dx, and a layer may leave out computing it."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What is needed, as well as the parameters, to build the layer again: JSON values."""
        return {}


class Linear(Layer, kind="linear"):
    """z = x·W + b, the logistic unit's linear part: x (m, n_x), weights (n_x, n_y), bias (n_y,).

    For n_y = 1 this is the course's z = wᵀx + b for all examples at once.
    Backward: dw = xᵀ·dz, db = Σ dz, dx = dz·wᵀ.
    """

    def __init__(self, weights: Array, bias: Array) -> None:
        super().__init__({"weights": weights, "bias": bias})

    def forward(self, x: Array, scratch: Scratch) -> Array:
        z: Array = x @ self.parameters["weights"] + self.parameters["bias"]
        return z

    def backward(self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool) -> Derivatives:
        dx = dy @ self.parameters["weights"].T if input_gradient else x
        return dx, {"weights": x.T @ dy, "bias": dy.sum(axis=0)}


class Standardise(Layer, kind="standardise"):
    """y = (x − mean) / deviation for each channel, and rows unrolled to pictures again:
    x (m, side·side·channels) → y (m, side, side, channels). Mean and deviation are statistics of
    the training pictures, fitted once; no gradient step changes them."""

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], side: int = 64) -> None:
        super().__init__()
        self.mean, self.deviation, self.side = tuple(mean), tuple(deviation), side

    def forward(self, x: Array, scratch: Scratch) -> Array:
        places = self.side * self.side  # whole rows: NumPy is slow over short last axes
        mean = np.tile(np.asarray(self.mean, x.dtype), places)
        deviation = np.tile(np.asarray(self.deviation, x.dtype), places)
        y = scratch.array((id(self), "y"), (len(x), self.side, self.side, len(self.mean)), x.dtype)
        rows = y.reshape(len(x), -1)
        np.subtract(x, mean, out=rows)
        rows /= deviation
        return y

    def backward(self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool) -> Derivatives:
        return (dy / np.asarray(self.deviation, dy.dtype)).reshape(x.shape), {}

    def settings(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation, "side": self.side}


class Relu(Layer, kind="relu"):
    """y = max(x, 0), in place: the stage before it holds the same numbers afterwards.
    Backward: dx = dy where x > 0, else 0."""

    def forward(self, x: Array, scratch: Scratch) -> Array:
        return np.maximum(x, 0, out=x)

    def backward(self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool) -> Derivatives:
        dy *= x > 0
        return dy, {}


class MaxPool(Layer, kind="max_pool"):
    """The largest of each 2×2 block: x (m, 2h, 2w, c) → y (m, h, w, c).
    Backward: dy goes to the place of the largest, the first of them where several tie."""

    def forward(self, x: Array, scratch: Scratch) -> Array:
        m, height, width, channels = x.shape
        y = scratch.array((id(self), "y"), (m, height // 2, width // 2, channels), x.dtype)
        for part in pieces(m, POOL_PICTURES):
            corners = _corners(x[part])
            np.maximum(corners[0], corners[1], out=y[part])
            np.maximum(y[part], corners[2], out=y[part])
            np.maximum(y[part], corners[3], out=y[part])
        scratch.saved[id(self)] = y
        return y

    def backward(self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool) -> Derivatives:
        y, dx = scratch.saved[id(self)], scratch.array((id(self), "dx"), x.shape, x.dtype)
        for part in pieces(len(x), POOL_PICTURES):
            left = np.ones(y[part].shape, bool)  # places whose gradient still has no owner
            for corner, dcorner in zip(_corners(x[part]), _corners(dx[part]), strict=True):
                owner = corner == y[part]
                owner &= left
                left ^= owner
                np.multiply(dy[part], owner, out=dcorner)
        return dx, {}


def _corners(x: Array) -> list[Array]:
    """The four places of every 2×2 block as four views (m, h, w, c)."""
    return [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]


class GlobalAverage(Layer, kind="global_average"):
    """The mean over all places of each channel: x (m, h, w, c) → y (m, c)."""

    def forward(self, x: Array, scratch: Scratch) -> Array:
        y: Array = x.mean(axis=(1, 2))
        return y

    def backward(self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool) -> Derivatives:
        _, height, width, _ = x.shape
        dx = scratch.array((id(self), "dx"), x.shape, x.dtype)
        dx[...] = (dy / (height * width))[:, None, None, :]
        return dx, {}


class BatchNorm(Layer, kind="batch_norm"):
    """Batch normalisation (Ioffe and Szegedy 2015), while a network is trained:
    y = (x − μ)/√(σ² + ε) + shift, x, y (m, h, w, channels), μ, σ² (channels,) over the rest.

    There is no learned scale: ReLU and the convolution that follows take any. Trained networks are
    saved without it: measured statistics move into the convolutions before it.

    Backward, with n = m·h·w rows and x̂ = y − shift:
    dshift = Σ dy, dx = (dy − Σ dy/n − x̂ · Σ(dy·x̂)/n) / √(σ² + ε).
    """

    def __init__(self, shift: Array) -> None:
        super().__init__({"shift": shift})

    def forward(self, x: Array, scratch: Scratch) -> Array:
        y = scratch.array((id(self), "y"), x.shape, x.dtype)
        rows, out = x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])
        mean = _sum(rows) / len(rows)
        variance = np.zeros_like(mean)
        for part in pieces(len(rows), NORM_ROWS):
            centred = scratch.array("centred", rows[part].shape, x.dtype)
            np.subtract(rows[part], mean, out=centred)
            centred *= centred
            variance += _sum(centred)
        variance /= len(rows)
        inverse = 1 / np.sqrt(variance + np.asarray(NORM_EPSILON, x.dtype))
        shift = self.parameters["shift"] - mean * inverse
        for part in pieces(len(rows), NORM_ROWS):
            np.multiply(rows[part], inverse, out=out[part])
            out[part] += shift
        scratch.saved[id(self)] = mean, variance, inverse
        return y

    def backward(self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool) -> Derivatives:
        mean, _, inverse = scratch.saved[id(self)]
        rows, d = x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1])
        dshift = _sum(d)
        dot = np.zeros_like(mean)
        for part in pieces(len(rows), NORM_ROWS):
            product = scratch.array("centred", rows[part].shape, x.dtype)
            np.multiply(rows[part], d[part], out=product)
            dot += _sum(product)
        dot = (dot - mean * dshift) * inverse  # Σ dy·x̂
        slope = dot * inverse**2 / len(rows)
        offset = slope * mean - dshift * inverse / len(rows)
        for part in pieces(len(rows), NORM_ROWS):
            product = scratch.array("centred", rows[part].shape, x.dtype)
            np.multiply(rows[part], slope, out=product)
            d[part] *= inverse
            d[part] -= product
            d[part] += offset
        return dy, {"shift": dshift}


def _sum(rows: Array) -> Array:
    """Column sums, as a matrix product: several times as fast as `sum(axis=0)`."""
    total: Array = np.ones(len(rows), rows.dtype) @ rows
    return total


class Residual(Layer, kind="residual"):
    """y = x + f(x), f being layers of its own (He et al. 2015, Deep Residual Learning).
    Backward: dx = dy + the inner layers' dx."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__(parameters(layers))
        self.layers = layers

    def prepare(self) -> None:
        prepare(self.layers)

    def forward(self, x: Array, scratch: Scratch) -> Array:
        stages = forward(self.layers, x, scratch)
        scratch.saved[id(self)] = stages
        return np.add(x, stages[-1], out=scratch.array((id(self), "y"), x.shape, x.dtype))

    def backward(self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool) -> Derivatives:
        dbranch = scratch.array((id(self), "dy"), dy.shape, dy.dtype)
        dbranch[...] = dy  # the inner layers may overwrite theirs
        dx, gradients = backward(self.layers, scratch.saved[id(self)], dbranch, scratch)
        dx += dy
        return dx, gradients


def pieces(n: int, size: int) -> Iterator[slice]:
    """Slices that cover range(n), `size` at a time."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def forward(layers: Sequence[Layer], x: Array, scratch: Scratch) -> list[Array]:
    """Every stage of the network for the pictures x (m, n_x): [x, …, z], z (m, 1) the logits."""
    stages = [x]
    for layer in layers:
        stages.append(layer.forward(stages[-1], scratch))
    return stages


def backward(
    layers: Sequence[Layer],
    stages: Sequence[Array],
    dz: Array,
    scratch: Scratch,
    *,
    input_gradient: bool = True,
) -> tuple[Array, Gradients]:
    """The chain rule from the last stage back to the first.

    stages: what `forward` returned, with the same scratch, made with `keep=True`.
    dz: the derivatives of the losses with respect to the last stage; may be overwritten.
    Returns (dx, gradients): the derivative with respect to the first stage (meaningless without
    `input_gradient`), and for each parameter, under the name that `parameters` gives it, the
    derivative summed over the m examples.
    """
    first = 0 if input_gradient else next(i for i, layer in enumerate(layers) if layer.parameters)
    gradients: Gradients = {}
    dy = dz
    for i in reversed(range(first, len(layers))):
        needed = input_gradient or i > first
        dy, own = layers[i].backward(stages[i], dy, scratch, needed)
        gradients |= {f"{i}.{name}": gradient for name, gradient in own.items()}
    return dy, gradients


def parameters(layers: Sequence[Layer]) -> dict[str, Array]:
    """All parameters by name, `<place in the list>.<name>`; the layers' own arrays, no copies."""
    return {
        f"{i}.{name}": value
        for i, layer in enumerate(layers)
        for name, value in layer.parameters.items()
    }


def prepare(layers: Sequence[Layer]) -> None:
    """Compute again what layers derive from their parameters; to be called after changing any."""
    for layer in layers:
        layer.prepare()
