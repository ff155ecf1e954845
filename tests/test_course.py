"""The course's lesson: its figures, and derivatives that are right, safe, the same in blocks."""

import os
import re
import subprocess
import sys
from importlib import import_module
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.network import Array, Layer, Linear, Relu, Scratch, forward, parameters
from model.preprocessing import to_vector
from tests.data_folder import REPOSITORY, data_file
from tests.test_data import make_hdf5, pixels
from tests.test_network import slope
from training import course
from training.course import loss, propagate
from training.data import read_pictures

pytestmark = pytest.mark.usefixtures("one_blas_thread")
numbers = st.floats(-100, 100)


@given(a=numbers, b=numbers, c=numbers)
def test_derivatives_are_those_of_finite_differences(a: float, b: float, c: float) -> None:
    found = course.graph_backward(b, c)
    step = 1e-3
    for direction, derivative in zip(np.eye(3), (found.da, found.db, found.dc), strict=True):
        above = course.graph_forward(*(np.array([a, b, c]) + step * direction)).J
        below = course.graph_forward(*(np.array([a, b, c]) - step * direction)).J
        assert (above - below) / (2 * step) == pytest.approx(derivative, abs=1e-5)


def test_the_backward_pass_gives_the_course_s_derivatives() -> None:
    assert course.graph_backward(b=3, c=2) == course.Derivatives(dv=3, da=3, du=3, db=6, dc=9)


def random_network(rng: np.random.Generator, *sizes: int) -> list[Layer]:
    """Linear layers of those sizes with ReLU between them, in float64."""
    layers: list[Layer] = []
    for inputs, outputs in pairwise(sizes):
        layers += [Linear(rng.normal(size=(inputs, outputs)), rng.normal(size=outputs)), Relu()]
    return layers[:-1]


@pytest.mark.parametrize("sizes", [(5, 1), (1, 1), (7, 4, 1), (6, 5, 3, 1)])
@pytest.mark.parametrize("soft_labels", [False, True])
def test_gradients_are_the_derivatives_of_the_cost(
    sizes: tuple[int, ...], soft_labels: bool
) -> None:
    rng = np.random.default_rng(3)
    layers = random_network(rng, *sizes)
    X = rng.normal(size=(9, sizes[0]))
    y = rng.uniform(size=9) if soft_labels else rng.integers(0, 2, 9).astype(float)

    def cost() -> float:
        return float(loss(forward(layers, X, Scratch())[-1][:, 0], y).mean())

    gradients, J = propagate(layers, X, y)
    assert pytest.approx(cost()) == J
    weights = parameters(layers)
    assert gradients.keys() == weights.keys()
    for name, values in weights.items():
        for place in np.ndindex(values.shape):
            expected = slope(cost, values, place, step=1e-6)
            assert gradients[name][place] == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_the_gradients_of_logistic_regression_are_the_course_s_formulas() -> None:
    # The check of propagate in the assignment, with its X and Y.
    X = np.array([[1.0, 2.0, -1.0], [3.0, 4.0, -3.2]]).T
    y = np.array([1.0, 0.0, 1.0])
    layers: list[Layer] = [Linear(weights=np.array([[1.0], [2.0]]), bias=np.array([2.0]))]
    gradients, J = propagate(layers, X, y)
    assert gradients["0.weights"][:, 0] == pytest.approx([0.99845601, 2.39507239])
    assert gradients["0.bias"] == pytest.approx([0.00145557813678])
    assert pytest.approx(5.801545319394553) == J


@given(z=st.floats(-30, 30), y=st.floats(0, 1))
def test_the_loss_is_the_textbook_s_where_that_can_be_computed(z: float, y: float) -> None:
    # 1 − σ(z) is σ(−z): subtracting from 1 would lose the digits that are compared.
    a, not_a = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    textbook = -(y * np.log(a) + (1 - y) * np.log(not_a))
    assert loss(np.array(z), np.array(y)) == pytest.approx(textbook, rel=1e-9, abs=1e-12)


@given(z=st.floats(-1e30, 1e30), y=st.floats(0, 1))
def test_the_loss_is_finite_and_not_negative(z: float, y: float) -> None:
    for dtype in (np.float32, np.float64):
        assert 0 <= loss(np.array([z], dtype), np.array([y], dtype))[0] < np.inf


def course_data(split: str) -> tuple[Array, Array]:
    read = read_pictures([data_file(f"{split}_catvnoncat.h5")])
    return to_vector(read.pictures), read.labels


def test_the_course_s_run_gives_the_course_s_figures() -> None:
    X, y = course_data("train")
    layers = course.initialize_with_zeros(12_288)
    costs = course.gradient_descent(layers, X, y, learning_rate=0.005, iterations=2000)
    assert len(costs) == 20
    shown = [f"{costs[i]:.6f}" for i in (0, 1, 19)]  # iterations 0, 100 and 1,900
    assert shown == ["0.693147", "0.584508", "0.140872"]
    assert np.mean((course.predict(layers, X) >= 0.5) == y) == pytest.approx(0.9904, abs=5e-5)
    X, y = course_data("test")
    assert np.mean((course.predict(layers, X) >= 0.5) == y) == pytest.approx(0.70)


PAGE = (REPOSITORY / "docs" / "course.md").read_text(encoding="utf-8")


def test_the_comparison_of_learning_rates_on_the_course_page_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    labels = [0, 1, 0, 1, 0, 1]
    make_hdf5(tmp_path / "train_catvnoncat.h5", train_set_x=pixels(6), train_set_y=labels)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", example]
    lines = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True).splitlines()
    assert [line.split()[0] for line in lines] == ["0.01", "0.001", "0.0001"]


def test_every_name_on_the_course_page_exists_in_the_file_it_links_to() -> None:
    links = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+)\.py\)", PAGE)
    assert len(links) == PAGE.count("](../") > 20
    for name, file in links:
        module = file.replace("/", ".")
        assert name == module or name.startswith(f"{module}.")
        if name != module:
            attrgetter(name.removeprefix(f"{module}."))(import_module(module))
