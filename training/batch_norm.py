"""Batch normalisation (Ioffe and Szegedy 2015), as a layer of the network while it is trained.

Each channel is centred and scaled by the mean and variance of the pictures at hand, and gets a
learned shift. There is no learned scale: ReLU and the convolution that follows take any. Trained
networks are saved without it: `fold` moves measured statistics into the convolutions before it.
"""

import numpy as np

from model.network import Array, Gradients, Layer, Scratch, pieces

EPSILON = 1e-4  # added to the variance
ROWS = 4096  # rows (picture places) a step handles at a time, so that they stay in cache


class BatchNorm(Layer):
    """y = (x − μ)/√(σ² + ε) + shift, x, y (m, h, w, channels), μ, σ² (channels,) over the rest.

    Backward, with n = m·h·w rows and x̂ = y − shift:
    dshift = Σ dy, dx = (dy − Σ dy/n − x̂ · Σ(dy·x̂)/n) / √(σ² + ε).
    """

    kind = "batch_norm"

    def __init__(self, shift: Array) -> None:
        super().__init__(shift=shift)

    def forward(self, x: Array, scratch: Scratch) -> Array:
        y = scratch.array((id(self), "y"), x.shape, x.dtype)
        rows, out = _rows(x), _rows(y)
        mean = _sum(rows) / len(rows)
        variance = np.zeros_like(mean)
        for part in pieces(len(rows), ROWS):
            centred = scratch.array("centred", rows[part].shape, x.dtype)
            np.subtract(rows[part], mean, out=centred)
            centred *= centred
            variance += _ones(centred) @ centred
        variance /= len(rows)
        inverse = 1 / np.sqrt(variance + np.asarray(EPSILON, x.dtype))
        shift = self.parameters["shift"] - mean * inverse
        for part in pieces(len(rows), ROWS):
            np.multiply(rows[part], inverse, out=out[part])
            out[part] += shift
        scratch.saved[id(self)] = mean, variance, inverse
        return y

    def backward(
        self, x: Array, y: Array, dy: Array, scratch: Scratch, input_gradient: bool
    ) -> tuple[Array, Gradients]:
        mean, _, inverse = scratch.saved[id(self)]
        rows, d = _rows(x), _rows(dy)
        dshift = _sum(d)
        dot = np.zeros_like(mean)
        for part in pieces(len(rows), ROWS):
            product = scratch.array("centred", rows[part].shape, x.dtype)
            np.multiply(rows[part], d[part], out=product)
            dot += _ones(product) @ product
        dot = (dot - mean * dshift) * inverse  # Σ dy·x̂
        slope = dot * inverse**2 / len(rows)
        offset = slope * mean - dshift * inverse / len(rows)
        for part in pieces(len(rows), ROWS):
            product = scratch.array("centred", rows[part].shape, x.dtype)
            np.multiply(rows[part], slope, out=product)
            d[part] *= inverse
            d[part] -= product
            d[part] += offset
        return dy, {"shift": dshift}


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _ones(rows: Array) -> Array:
    return np.ones(len(rows), rows.dtype)


def _sum(rows: Array) -> Array:
    """Column sums, as a matrix product: several times as fast as `sum(axis=0)`."""
    total: Array = _ones(rows) @ rows
    return total
