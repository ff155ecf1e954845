"""Stochastic gradient descent with Nesterov momentum, a one-cycle schedule and averaged weights."""

from collections.abc import Sequence
from concurrent.futures import Executor
from math import cos, pi

import numpy as np

from model.network import Array, Gradients, Layer, parameters, pieces

NUMBERS = 65536  # parameters an update step handles at a time, so that they stay in cache


class Optimizer:
    """The parameters of a network as one vector θ, and what each step does to it.

    Nesterov momentum (Sutskever et al. 2013), with weight decay λ on weights but not on biases:

        g ← dJ/dθ + λθ,   v ← μv + g,   θ ← θ − α(g + μv)

    and an exponential average of the weights, θ̄ ← θ̄ + (1 − β)(θ − θ̄), which is what is kept at the
    end (Polyak and Juditsky 1992); β grows from 0 to `averaging` so that the start is forgotten.

    The layers' parameters become views of θ. A step that is cut off leaves the vectors undefined.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        averaging: float = 0.999,
    ) -> None:
        self.momentum, self.weight_decay, self.averaging = momentum, weight_decay, averaging
        self.steps = 0
        own = parameters(layers)
        self.theta = np.concatenate([value.ravel() for value in own.values()])
        self.velocity = np.zeros_like(self.theta)
        self.average = self.theta.copy()
        self._gradient = np.empty_like(self.theta)
        self._decay = np.concatenate(
            [np.full(v.size, weight_decay if v.ndim > 1 else 0, v.dtype) for v in own.values()]
        )
        self._places: dict[str, slice] = {}
        start = 0
        for name, value in own.items():
            self._places[name] = slice(start, start + value.size)
            start += value.size
        bind(layers, self.theta)

    def step(
        self, shards: Sequence[Gradients], examples: int, learning_rate: float, pool: Executor
    ) -> None:
        """One update from the gradients that each shard summed over its part of the examples."""
        for name, place in self._places.items():
            total = self._gradient[place].reshape(shards[0][name].shape)
            np.multiply(shards[0][name], 1 / examples, out=total)
            for shard in shards[1:]:
                total += shard[name] * (1 / examples)
        self.steps += 1
        beta = min(self.averaging, self.steps / (self.steps + 9))
        # Each part is computed alone: the result does not depend on the number of threads.
        list(
            pool.map(
                lambda part: self._update(part, learning_rate, 1 - beta),
                pieces(len(self.theta), NUMBERS),
            )
        )

    def _update(self, part: slice, learning_rate: float, fresh: float) -> None:
        theta, velocity, average = self.theta[part], self.velocity[part], self.average[part]
        gradient = self._gradient[part]
        gradient += self._decay[part] * theta
        velocity *= self.momentum
        velocity += gradient
        gradient += self.momentum * velocity
        gradient *= learning_rate
        theta -= gradient
        average += fresh * (theta - average)


def bind(layers: Sequence[Layer], vector: Array) -> None:
    """Make the layers' parameters views of the vector, in the order of `parameters`.
    `model.network.prepare` must follow."""
    start = 0
    for layer in layers:
        inner = getattr(layer, "layers", None)
        if inner is not None:
            size = sum(value.size for value in layer.parameters.values())
            bind(inner, vector[start : start + size])
            layer.parameters = parameters(inner)
            start += size
            continue
        for name, value in layer.parameters.items():
            layer.parameters[name] = vector[start : start + value.size].reshape(value.shape)
            start += value.size


def one_cycle(progress: float, peak: float, warm_up: float = 0.15) -> float:
    """The learning rate at `progress` (0 to 1) of the run: up in a straight line to the peak, then
    down along half a cosine to almost 0 (after Smith and Topin 2018, Super-Convergence)."""
    if progress < warm_up:
        return peak * (0.04 + 0.96 * progress / warm_up)
    return peak * (0.001 + 0.999 * (1 + cos(pi * (progress - warm_up) / (1 - warm_up))) / 2)
