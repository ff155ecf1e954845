"""The course's lesson, to be read from top to bottom: from a computation graph to a classifier.

    1. a computation graph: J = 3(a + bc), forward and backward
    2. the cost of a network's answers, and its derivatives
    3. gradient descent over all examples, from zeros
    4. a run on labelled pictures

Letters: m examples, n_x numbers each; X (m, n_x) holds one example a row and is the course's X
(n_x, m) transposed; y (m,) the labels, 1 for the first class ('cat') and 0 for the other, or a
probability between; z the network's last stage, a = σ(z) the prediction ŷ. `dx` is short for the
derivative of the last node with respect to x: `dz` for dL/dz, `dw` for dJ/dw, `db` for dJ/db.

The layers themselves, forward and backward, are in `model.network`. Logistic regression is the
list of one `Linear` layer; a longer list has the same right end.

Source: deeplearning.ai, Neural Networks and Deep Learning, week 2, and its programming assignment
"Logistic Regression with a Neural Network mindset".
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from model.machine import cores
from model.network import (
    Array,
    Gradients,
    Layer,
    Linear,
    Scratch,
    backward,
    forward,
    parameters,
    prepare,
    sigmoid,
)
from training import Refused

Progress = Callable[[int, float], None]  # called with (iteration, J) before each step

LEARNING_RATE, ITERATIONS = 0.005, 2000  # of the assignment
RECORD_EVERY = 100  # iterations between two points of the cost curve
THRESHOLD = 0.5


# --- 1. a computation graph ---------------------------------------------------------------------
#
#     a ─────────────────┐
#     b ──┐              ├─→ v = a + u ──→ J = 3v
#     c ──┴─→ u = bc ────┘
#
# The forward pass goes from left to right and computes J. The backward pass goes from right to left
# and computes, for each node, the derivative of J with respect to it: the chain rule multiplies
# what the node on the right already knows by one derivative of its own.


class Nodes(NamedTuple):
    """What the forward pass leaves behind for the backward pass."""

    u: float
    v: float
    J: float


class Derivatives(NamedTuple):
    """dJ/dv, dJ/da, dJ/du, dJ/db and dJ/dc, in the order in which the backward pass finds them."""

    dv: float
    da: float
    du: float
    db: float
    dc: float


def graph_forward(a: float, b: float, c: float) -> Nodes:
    """The three nodes from left to right.

    >>> graph_forward(5, 3, 2)
    Nodes(u=6, v=11, J=33)
    """
    u = b * c
    v = a + u
    J = 3 * v
    return Nodes(u, v, J)


def graph_backward(b: float, c: float) -> Derivatives:
    """The derivatives of J from right to left. Of the numbers of the forward pass only b and c are
    needed: the other nodes are sums and a constant multiple, whose derivatives are constants.

    >>> graph_backward(3, 2)
    Derivatives(dv=3, da=3, du=3, db=6, dc=9)
    """
    dv = 3  # J = 3v:      dJ/dv = 3
    da = dv * 1  # v = a + u:   dJ/da = dJ/dv · dv/da = 3 · 1
    du = dv * 1  # v = a + u:   dJ/du = dJ/dv · dv/du = 3 · 1
    db = du * c  # u = bc:      dJ/db = dJ/du · du/db = 3 · c
    dc = du * b  # u = bc:      dJ/dc = dJ/du · du/dc = 3 · b
    return Derivatives(dv, da, du, db, dc)


# --- 2. the cost and its derivatives ------------------------------------------------------------
#
# For logistic regression the computation graph is
#
#     x, w, b ──→ z = wᵀx + b ──→ a = σ(z) ──→ L(a, y) = −(y log a + (1 − y) log(1 − a))
#
# and the chain rule, from right to left, gives
#
#     da = dL/da = −y/a + (1 − y)/(1 − a)
#     dz = dL/dz = da · da/dz = (−y/a + (1 − y)/(1 − a)) · a(1 − a) = a − y
#     dw = dL/dw = dz · dz/dw = x dz
#     db = dL/db = dz · dz/db = dz
#
# because σ'(z) = σ(z)(1 − σ(z)) = a(1 − a). The cost of m examples is the mean of their losses,
# J = 1/m Σ L(aⁱ, yⁱ), so its derivatives are the means of theirs:
#
#     dw = 1/m Σ xⁱ dzⁱ = 1/m Xᵀ dz          db = 1/m Σ dzⁱ


def loss(z: Array, y: Array) -> Array:
    """L(a, y) = −(y log a + (1 − y) log(1 − a)) of each example, from the logit: a = σ(z).

    z, y: of one shape; z any finite number, y in [0, 1]. Returns that shape, numbers ≥ 0.

    Written out with σ, log a = −log(1 + e⁻ᶻ) and log(1 − a) = −z − log(1 + e⁻ᶻ), so
    L = z − yz + log(1 + e⁻ᶻ) = max(z, 0) − yz + log(1 + e^−|z|). The textbook form rounds a to 0 or
    1 where σ saturates, and log 0 makes the cost infinite or NaN; this one stays exact.
    """
    result: Array = np.maximum(z, 0) - y * z + np.log1p(np.exp(-np.abs(z)))
    return result


def forward_backward(
    layers: Sequence[Layer], x: Array, y: Array, scratch: Scratch, other_outputs: float = 1.0
) -> tuple[Gradients, float]:
    """One pass over the rows of x (m, n_x) and back: Σ dL/dparameter by name, and Σ L.

    y: (m, k) in [0, 1], k the outputs of the network, 1 unless it also learns other things. Σ L is
    that of the class; the losses of the others count `other_outputs` times for the derivatives.
    scratch: made with `keep=True`; a gradient may be its memory, which the next pass writes over.
    """
    stages = forward(layers, x, scratch)
    z = stages[-1]
    total = float(np.sum(loss(z[:, 0], y[:, 0]), dtype=np.float64))
    a = sigmoid(z)
    dz = a - y
    dz[:, 1:] *= other_outputs
    _, gradients = backward(layers, stages, dz, scratch, input_gradient=False)
    return gradients, total


def propagate(layers: Sequence[Layer], X: Array, y: Array) -> tuple[Gradients, float]:
    """One forward and one backward pass over m examples: (dJ/dparameter by name, J).

    X: (m, n_x) in [0, 1], one picture a row. y: (m,) in [0, 1].
    """
    targets = y[:, None].astype(X.dtype, copy=False)
    sums, total = forward_backward(layers, X, targets, Scratch(keep=True))
    return {name: gradient / len(X) for name, gradient in sums.items()}, total / len(X)


# --- 3. gradient descent ------------------------------------------------------------------------


def initialize_with_zeros(n_x: int) -> list[Layer]:
    """Logistic regression before training: one linear layer, w (n_x, 1) and b (1,) all zero.

    Zeros will do because there is no hidden layer: every weight meets another pixel, so they part
    in the first step, and the cost has no other minimum to end up in.
    """
    return [Linear(weights=np.zeros((n_x, 1), np.float32), bias=np.zeros(1, np.float32))]


def gradient_descent(
    layers: Sequence[Layer],
    X: Array,
    y: Array,
    *,
    learning_rate: float = LEARNING_RATE,
    iterations: int = ITERATIONS,
    progress: Progress | None = None,
) -> list[float]:
    """Repeat w := w − α dJ/dw, b := b − α dJ/db, in place, for every parameter: the assignment's
    `optimize`.

    X, y: as for `propagate`. learning_rate: α > 0. Returns J at every 100th iteration, from 0
    on, each before that iteration's step. Raises Refused when J is not finite.
    """
    weights = parameters(layers)
    costs = []
    with np.errstate(over="ignore", invalid="ignore"):  # the check of J below tells
        for iteration in range(iterations):
            gradients, J = propagate(layers, X, y)
            if not isfinite(J):
                raise Refused(
                    f"The cost is not finite at iteration {iteration}: the learning rate "
                    f"{learning_rate:g} is too large. Try a tenth of it."
                )
            if iteration % RECORD_EVERY == 0:
                costs.append(J)
            if progress:
                progress(iteration, J)
            for name, gradient in gradients.items():
                gradient *= learning_rate
                weights[name] -= gradient
            prepare(layers)
    return costs


def predict(layers: Sequence[Layer], X: Array) -> Array:
    """ŷ = σ(z), (m,) float64, the probability of the first class, for X as for `propagate`."""
    z = forward(layers, X, Scratch())[-1][:, 0]
    return sigmoid(z.astype(np.float64))


# --- 4. a run -----------------------------------------------------------------------------------


def train(
    X: Array,
    y: Array,
    learning_rate: float = LEARNING_RATE,
    iterations: int = ITERATIONS,
    progress: Progress | None = None,
) -> tuple[list[Layer], list[float]]:
    """Train logistic regression from zeros: the assignment's `model`. X and y as for `propagate`.
    Returns the layers, and J at every 100th iteration. Raises Refused."""
    layers = initialize_with_zeros(X.shape[1])
    with threadpool_limits(cores(), user_api="blas"):  # one product is shared out to all cores
        costs = gradient_descent(
            layers, X, y, learning_rate=learning_rate, iterations=iterations, progress=progress
        )
    return layers, costs
