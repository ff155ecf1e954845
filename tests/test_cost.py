"""The cost and its derivatives: right, safe where the textbook form is not, the same in blocks."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.network import Array, Layer, Linear, Relu, Scratch, forward, parameters
from training.cost import cost, loss, propagate
from training.gradient_descent import initialize_with_zeros

logits = st.floats(-1e30, 1e30)
probabilities = st.floats(0, 1)


def random_network(rng: np.random.Generator, *sizes: int) -> list[Layer]:
    """Linear layers of those sizes with ReLU between them, in float64."""
    layers: list[Layer] = []
    for inputs, outputs in pairwise(sizes):
        layers += [
            Linear(weights=rng.normal(size=(inputs, outputs)), bias=rng.normal(size=outputs))
        ]
        layers += [Relu()]
    return layers[:-1]


def cost_of(layers: list[Layer], X: Array, y: Array) -> float:
    return cost(forward(layers, X, Scratch())[-1][:, 0], y)


@pytest.mark.parametrize("sizes", [(5, 1), (1, 1), (7, 4, 1), (6, 5, 3, 1)])
@pytest.mark.parametrize("soft_labels", [False, True])
def test_gradients_are_the_derivatives_of_the_cost(
    sizes: tuple[int, ...], soft_labels: bool
) -> None:
    rng = np.random.default_rng(3)
    layers = random_network(rng, *sizes)
    X = rng.normal(size=(9, sizes[0]))
    y = rng.uniform(size=9) if soft_labels else rng.integers(0, 2, 9).astype(float)
    gradients, J = propagate(layers, X, y)
    assert pytest.approx(cost_of(layers, X, y)) == J
    weights = parameters(layers)
    assert gradients.keys() == weights.keys()
    step = 1e-6
    for name, values in weights.items():
        for place in np.ndindex(values.shape):
            kept = values[place]
            values[place] = kept + step
            above = cost_of(layers, X, y)
            values[place] = kept - step
            below = cost_of(layers, X, y)
            values[place] = kept
            slope = (above - below) / (2 * step)
            assert gradients[name][place] == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_the_gradients_of_logistic_regression_are_the_course_s_formulas() -> None:
    # The check of propagate in the assignment, with its X and Y.
    X = np.array([[1.0, 2.0, -1.0], [3.0, 4.0, -3.2]]).T
    y = np.array([1.0, 0.0, 1.0])
    layers: list[Layer] = [Linear(weights=np.array([[1.0], [2.0]]), bias=np.array([2.0]))]
    gradients, J = propagate(layers, X, y)
    assert gradients["0.weights"][:, 0] == pytest.approx([0.99845601, 2.39507239])
    assert gradients["0.bias"] == pytest.approx([0.00145557813678])
    assert pytest.approx(5.801545319394553) == J


@given(z=st.floats(-30, 30), y=probabilities)
def test_the_loss_is_the_textbook_s_where_that_can_be_computed(z: float, y: float) -> None:
    # 1 − σ(z) is σ(−z): subtracting from 1 would lose the digits that are compared.
    a, not_a = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    textbook = -(y * np.log(a) + (1 - y) * np.log(not_a))
    assert loss(np.array(z), np.array(y)) == pytest.approx(textbook, rel=1e-9, abs=1e-12)


@given(z=logits, y=probabilities)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_is_finite_and_not_negative(z: float, y: float, dtype: type) -> None:
    value = loss(np.array([z], dtype), np.array([y], dtype))
    assert np.isfinite(value).all()
    assert (value >= 0).all()


@pytest.mark.parametrize(("z", "y", "expected"), [(1e4, 0, 1e4), (-1e4, 1, 1e4), (1e4, 1, 0)])
def test_a_saturated_sigmoid_costs_what_it_should(z: float, y: float, expected: float) -> None:
    # The textbook form gives log 0 here.
    assert cost(np.array([z]), np.array([y])) == pytest.approx(expected, abs=1e-12)


def test_gradients_are_finite_where_the_sigmoid_saturates() -> None:
    layers: list[Layer] = [Linear(weights=np.full((2, 1), 1e20, np.float32), bias=np.zeros(1))]
    X = np.array([[1, 1], [-1, -1], [1, 0]], np.float32)
    gradients, J = propagate(layers, X, np.array([0, 1, 1], np.float32))
    assert np.isfinite(J)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_the_cost_from_zeros_is_the_logarithm_of_2() -> None:
    X = np.random.default_rng(0).random((4, 12)).astype(np.float32)
    _, J = propagate(initialize_with_zeros(12), X, np.array([0, 1, 1, 0], np.float32))
    assert pytest.approx(np.log(2)) == J


@pytest.mark.parametrize("rows_at_once", [1, 2, 7, 10, 11])
def test_blocks_of_rows_give_the_same_gradients(rows_at_once: int) -> None:
    rng = np.random.default_rng(1)
    layers = random_network(rng, 6, 3, 1)
    X, y = rng.normal(size=(10, 6)), rng.uniform(size=10)
    whole, whole_cost = propagate(layers, X, y)
    blocks, blocks_cost = propagate(layers, X, y, rows_at_once=rows_at_once)
    assert blocks_cost == pytest.approx(whole_cost)
    for name, gradient in whole.items():
        np.testing.assert_allclose(blocks[name], gradient, rtol=1e-12, atol=1e-14)


def test_pictures_give_the_gradients_of_their_vectors() -> None:
    rng = np.random.default_rng(2)
    pictures = rng.integers(0, 256, (5, 4, 4, 3), np.uint8)
    vectors = (pictures.reshape(5, -1) / 255).astype(np.float32)
    y = np.array([0, 1, 1, 0, 1], np.float32)
    layers = initialize_with_zeros(48)
    from_pictures, _ = propagate(layers, pictures, y, rows_at_once=2)
    from_vectors, _ = propagate(layers, vectors, y)
    np.testing.assert_allclose(
        from_pictures["0.weights"], from_vectors["0.weights"], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(("examples", "labels"), [(3, 2), (0, 0)])
def test_a_label_for_each_example_is_required(examples: int, labels: int) -> None:
    with pytest.raises(ValueError, match="one label for each example"):
        propagate(initialize_with_zeros(2), np.zeros((examples, 2)), np.zeros(labels))
