"""The optimiser does what its formulas say, and the schedule what its picture shows."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from model.network import Array, Gradients, Layer, Linear, parameters
from training.architecture import convolutional
from training.optimizer import NUMBERS, Optimizer, bind, one_cycle


def layers_of(seed: int, n_x: int = 5) -> list[Layer]:
    rng = np.random.default_rng(seed)
    return [
        Linear(rng.standard_normal((n_x, 3)), rng.standard_normal(3)),
        Linear(rng.standard_normal((3, 1)), rng.standard_normal(1)),
    ]


def gradients_of(layers: list[Layer], seed: int) -> Gradients:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(v.shape) for name, v in parameters(layers).items()}


class Reference:
    """The update as it is written, for one parameter at a time, in float64."""

    def __init__(self, layers: list[Layer]) -> None:
        self.theta = {name: v.copy() for name, v in parameters(layers).items()}
        self.velocity = {name: np.zeros_like(v) for name, v in self.theta.items()}
        self.average = {name: v.copy() for name, v in self.theta.items()}
        self.steps = 0

    def step(self, gradients: Gradients, rate: float, mu: float, decay: float, b: float) -> None:
        self.steps += 1
        beta = min(b, self.steps / (self.steps + 9))
        for name, theta in self.theta.items():
            g = gradients[name] + (decay * theta if theta.ndim > 1 else 0)
            v = self.velocity[name] = mu * self.velocity[name] + g
            self.theta[name] = theta - rate * (g + mu * v)
            self.average[name] += (1 - beta) * (self.theta[name] - self.average[name])


def flat(values: dict[str, Array]) -> Array:
    return np.concatenate([value.ravel() for value in values.values()])


@pytest.mark.parametrize("n_x", [5, NUMBERS // 2])  # in one piece and in several
def test_a_step_is_nesterov_momentum_with_decay_and_an_average(n_x: int) -> None:
    layers = layers_of(0, n_x)
    reference = Reference(layers)
    optimizer = Optimizer(layers, momentum=0.8, weight_decay=0.01, averaging=0.5)
    with ThreadPoolExecutor(2) as pool:
        for step in range(4):
            shards = [gradients_of(layers, 10 * step + i) for i in range(3)]
            rate = 0.1 / (step + 1)
            optimizer.step(shards, 12, rate, pool)
            mean = {name: np.sum([s[name] for s in shards], axis=0) / 12 for name in shards[0]}
            reference.step(mean, rate, 0.8, 0.01, 0.5)
    np.testing.assert_allclose(optimizer.theta, flat(reference.theta), atol=1e-12)
    np.testing.assert_allclose(optimizer.velocity, flat(reference.velocity), atol=1e-12)
    np.testing.assert_allclose(optimizer.average, flat(reference.average), atol=1e-12)
    # The layers see the new numbers: their parameters are views.
    np.testing.assert_array_equal(flat(parameters(layers)), optimizer.theta)


def test_the_number_of_threads_changes_no_bit() -> None:
    results = []
    for threads in (1, 3):
        layers = layers_of(1, NUMBERS)
        optimizer = Optimizer(layers)
        with ThreadPoolExecutor(threads) as pool:
            for step in range(3):
                optimizer.step([gradients_of(layers, step)], 4, 0.1, pool)
        results.append(optimizer.theta)
    np.testing.assert_array_equal(results[0], results[1])


def test_it_finds_the_minimum_of_a_bowl() -> None:
    layers = layers_of(2)
    target = {name: v + 1 for name, v in parameters(layers).items()}
    optimizer = Optimizer(layers, weight_decay=0)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(200):
            slopes = {name: v - target[name] for name, v in parameters(layers).items()}
            optimizer.step([slopes], 1, 0.05, pool)
    np.testing.assert_allclose(optimizer.theta, flat(target), atol=1e-4)


def test_binding_reaches_layers_within_layers_and_keeps_the_order() -> None:
    layers = convolutional(np.random.default_rng(3), (4, 6))
    before = {name: v.copy() for name, v in parameters(layers).items()}
    vector = flat(before)
    bind(layers, vector)
    after = parameters(layers)
    assert list(after) == list(before)
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[name])
        assert np.shares_memory(value, vector)
    vector[...] = 7
    assert all((value == 7).all() for value in parameters(layers).values())


def test_one_cycle_rises_to_its_peak_and_falls_to_almost_nothing() -> None:
    rates = [one_cycle(i / 1000, peak=0.2, warm_up=0.15) for i in range(1001)]
    top = int(np.argmax(rates))
    assert top == 150
    assert rates[top] == pytest.approx(0.2)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert rates[0] == pytest.approx(0.008)
    assert rates[-1] == pytest.approx(0.0002)


def test_one_cycle_without_a_warm_up_starts_at_its_peak() -> None:
    assert one_cycle(0, peak=0.1, warm_up=0) == pytest.approx(0.1)
