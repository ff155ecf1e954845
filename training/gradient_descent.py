"""Gradient descent as the course does it: all m examples in every step, from zeros.

The assignment's functions and theirs here: `initialize_with_zeros`, `propagate` (in
`training.cost`), `optimize` = `gradient_descent`, `predict`, `model` = `training.course.train`.

Source: deeplearning.ai, Neural Networks and Deep Learning, week 2, "Gradient Descent" and the
programming assignment "Logistic Regression with a Neural Network mindset".
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from model.network import (
    Array,
    Layer,
    Linear,
    Scratch,
    forward,
    parameters,
    pieces,
    prepare,
    sigmoid,
)
from training.cost import ROWS_AT_ONCE, as_floats, propagate
from training.errors import Refused

RECORD_EVERY = 100  # iterations between two points of the cost curve, as in the assignment


def every_core() -> AbstractContextManager[Any]:
    """While it lasts, NumPy's linear algebra uses all cores for one product: here nothing else
    runs beside it, and a product of all examples is large enough to be shared out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits: AbstractContextManager[Any] = threadpool_limits(cores, user_api="blas")
    return limits


class Diverged(Refused, ArithmeticError):
    """The cost is no longer a number: the steps were too large."""


def initialize_with_zeros(n_x: int, dtype: npt.DTypeLike = np.float32) -> list[Layer]:
    """Logistic regression before training: one linear layer, w (n_x, 1) and b (1,) all zero.

    Zeros will do because there is no hidden layer: every weight meets another pixel, so they part
    in the first step, and the cost has no other minimum to end up in.
    """
    return [Linear(weights=np.zeros((n_x, 1), dtype), bias=np.zeros(1, dtype))]


def gradient_descent(
    layers: Sequence[Layer],
    X: Array,
    y: Array,
    *,
    learning_rate: float = 0.005,
    iterations: int = 2000,
    record_every: int = RECORD_EVERY,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Repeat w := w − α dJ/dw, b := b − α dJ/db, in place, for every parameter of the layers.

    X, y: as for `propagate`. learning_rate: α > 0. progress: called with (iteration, J) before
    each step.
    Returns J at iterations 0, record_every, 2·record_every, …, each before that iteration's step.
    Raises `Diverged` when J is no longer finite.
    """
    weights = parameters(layers)
    scratch = Scratch(keep=True)
    costs = []
    with np.errstate(over="ignore", invalid="ignore"):  # told by the check of J below
        for iteration in range(iterations):
            gradients, J = propagate(layers, X, y, scratch)
            if not isfinite(J):
                raise Diverged(
                    f"The cost is no longer a number at iteration {iteration}: the learning rate "
                    f"{learning_rate:g} is too large. Try a tenth of it."
                )
            if iteration % record_every == 0:
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
    scratch = Scratch()
    return np.concatenate(
        [
            sigmoid(forward(layers, as_floats(X[block]), scratch)[-1][:, 0].astype(np.float64))
            for block in pieces(len(X), ROWS_AT_ONCE)
        ]
    )
