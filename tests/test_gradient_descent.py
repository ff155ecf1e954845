"""Gradient descent gives the course's own figures."""

import re
from collections.abc import Iterator
from importlib import import_module

import h5py
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from benchmarks.gradient_descent import notebook
from model.network import Array, parameters
from model.preprocessing import to_vector
from tests.data_folder import REPOSITORY, data_file
from training.gradient_descent import (
    Diverged,
    gradient_descent,
    initialize_with_zeros,
    predict,
)


@pytest.fixture(autouse=True)
def one_blas_thread() -> Iterator[None]:
    """Threads that wait for each other are slow where tests share the processor with others."""
    with threadpool_limits(1, user_api="blas"):
        yield


def course_data(split: str) -> tuple[Array, Array]:
    with h5py.File(data_file(f"{split}_catvnoncat.h5")) as file:
        return to_vector(file[f"{split}_set_x"][()]), file[f"{split}_set_y"][()].astype(np.float32)


def clouds(rng: np.random.Generator, m: int = 60, n_x: int = 8) -> tuple[Array, Array]:
    """Two clouds of points that a plane can tell apart."""
    y = (np.arange(m) % 2).astype(np.float32)
    X = rng.normal(size=(m, n_x)).astype(np.float32) * 0.3 + y[:, None]
    return X, y


def test_the_course_s_run_gives_the_course_s_figures() -> None:
    X, y = course_data("train")
    layers = initialize_with_zeros(12_288)
    costs = gradient_descent(layers, X, y, learning_rate=0.005, iterations=2000)
    assert len(costs) == 20
    shown = [f"{costs[i]:.6f}" for i in (0, 1, 19)]  # iterations 0, 100 and 1,900
    assert shown == ["0.693147", "0.584508", "0.140872"]
    assert np.mean((predict(layers, X) >= 0.5) == y) == pytest.approx(0.9904, abs=5e-5)
    X, y = course_data("test")
    assert np.mean((predict(layers, X) >= 0.5) == y) == pytest.approx(0.70)


def test_costs_are_those_of_the_notebook_in_float64() -> None:
    rng = np.random.default_rng(1)
    X, y = clouds(rng)
    costs = gradient_descent(initialize_with_zeros(8), X, y, iterations=500, learning_rate=0.1)
    expected = notebook(X.T.astype(np.float64), y[None], iterations=500, learning_rate=0.1)
    np.testing.assert_allclose(costs, expected, atol=1e-6)


def test_what_can_be_told_apart_is_told_apart() -> None:
    X, y = clouds(np.random.default_rng(2))
    layers = initialize_with_zeros(8)
    costs = gradient_descent(layers, X, y, learning_rate=0.5, iterations=1000)
    assert costs[-1] < 0.05
    assert ((predict(layers, X) >= 0.5) == y).all()


def test_two_runs_give_the_same_weights() -> None:
    X, y = clouds(np.random.default_rng(3))
    runs = [initialize_with_zeros(8) for _ in range(2)]
    for layers in runs:
        gradient_descent(layers, X, y, iterations=50)
    first, second = (parameters(layers) for layers in runs)
    assert all((first[name] == second[name]).all() for name in first)


def test_progress_hears_of_every_iteration_and_costs_are_recorded_before_the_step() -> None:
    X, y = clouds(np.random.default_rng(4))
    heard: list[tuple[int, float]] = []
    costs = gradient_descent(
        initialize_with_zeros(8),
        X,
        y,
        iterations=7,
        record_every=3,
        progress=lambda iteration, cost: heard.append((iteration, cost)),
    )
    assert [iteration for iteration, _ in heard] == list(range(7))
    assert costs == [heard[0][1], heard[3][1], heard[6][1]]


def test_steps_that_are_too_large_are_refused_with_a_message() -> None:
    X, y = clouds(np.random.default_rng(5))
    with pytest.raises(Diverged, match=r"learning rate 1e\+39 is too large. Try a tenth"):
        gradient_descent(initialize_with_zeros(8), X, y, learning_rate=1e39, iterations=10)


def test_pictures_and_their_vectors_get_the_same_probabilities() -> None:
    rng = np.random.default_rng(6)
    pictures = rng.integers(0, 256, (300, 2, 2, 3), np.uint8)  # more than one block
    layers = initialize_with_zeros(12)
    parameters(layers)["0.weights"][:] = rng.normal(size=(12, 1))
    p = predict(layers, pictures)
    assert p.shape == (300,)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p, predict(layers, to_vector(pictures)), atol=1e-6)


def test_every_name_on_the_course_page_exists_in_the_file_it_links_to() -> None:
    page = (REPOSITORY / "docs" / "course.md").read_text(encoding="utf-8")
    links = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+)\.py\)", page)
    assert len(links) == page.count("](../")
    assert len(links) > 20
    for name, file in links:
        module = file.replace("/", ".")
        found: object = import_module(module)
        assert name == module or name.startswith(f"{module}.")
        for attribute in name.removeprefix(module).strip(".").split("."):
            found = getattr(found, attribute) if attribute else found
