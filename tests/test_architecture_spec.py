"""A network's description and tensors stand for the network; anything else is refused."""

import json
from typing import Any

import numpy as np
import pytest

from model.architecture import build, describe
from model.convolution import Convolution
from model.network import (
    Array,
    GlobalAverage,
    Layer,
    Linear,
    MaxPool,
    Mirrored,
    Relu,
    Residual,
    Scratch,
    Standardise,
    forward,
    parameters,
)


def floats(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def small_network() -> list[Layer]:
    """One layer of every kind."""
    return [
        Standardise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), side=8),
        Convolution(floats(5, 5, 3, 4), floats(4), stride=2),
        Relu(),
        MaxPool(),
        Residual([Convolution(floats(3, 3, 4, 4), floats(4)), Relu()]),
        Mirrored([GlobalAverage()]),
        Linear(floats(4, 1), floats(1)),
    ]


def test_a_network_comes_back_from_its_description_and_tensors() -> None:
    layers = small_network()
    description = json.loads(json.dumps(describe(layers)))  # as an artifact stores it
    built = build(description, parameters(layers))
    assert describe(built) == describe(layers)
    x = np.random.default_rng(0).random((3, 192), np.float32)
    z = [forward(each, x, Scratch())[-1] for each in (layers, built)]
    np.testing.assert_array_equal(z[0], z[1])


def test_logistic_regression_is_a_list_of_one_layer() -> None:
    layers: list[Layer] = [Linear(floats(12, 1), floats(1))]
    assert describe(layers) == [{"kind": "linear"}]
    assert list(parameters(layers)) == ["0.weights", "0.bias"]


def test_half_precision_tensors_become_single_precision() -> None:
    layers = small_network()
    half = {name: value.astype(np.float16) for name, value in parameters(layers).items()}
    for name, value in parameters(build(describe(layers), half)).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, half[name])


Tensors = dict[str, Array]


def described() -> tuple[Any, Tensors]:
    layers = small_network()
    return describe(layers), parameters(layers)


def no_list(_description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return "linear", tensors


def unknown_kind(description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return [*description[:2], {"kind": "dropout"}, *description[3:]], tensors


def no_kind(description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return [{}, *description[1:]], tensors


def no_entry(description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return [None, *description[1:]], tensors


def unknown_setting(description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return [description[0], {**description[1], "dilation": 2}, *description[2:]], tensors


def missing_setting(description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return [{"kind": "standardise", "mean": [0.5] * 3}, *description[1:]], tensors


def missing_tensor(description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return description, {name: v for name, v in tensors.items() if name != "1.weights"}


def missing_inner_tensor(description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return description, {name: v for name, v in tensors.items() if name != "4.0.weights"}


def extra_tensor(description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return description, {**tensors, "9.weights": floats(1, 1)}


def tensor_for_a_layer_without(description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return description, {**tensors, "2.weights": floats(1, 1)}


def wrong_dimensions(description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return description, {**tensors, "6.weights": floats(4)}


def not_finite(description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return description, {**tensors, "6.bias": np.array([np.nan], np.float32)}


def inner_layers_no_list(description: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    return [*description[:4], {"kind": "residual", "layers": 3}, *description[5:]], tensors


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_list, "not a list of layers"),
        (unknown_kind, "layer 2 is of an unknown kind: 'dropout'"),
        (no_kind, "layer 0 is of an unknown kind: None"),
        (no_entry, "layer 0 is of an unknown kind: None"),
        (unknown_setting, r"layer 1 \(convolution\) cannot be built: .*dilation"),
        (missing_setting, r"layer 0 \(standardise\) cannot be built: .*deviation"),
        (missing_tensor, r"layer 1 \(convolution\) cannot be built: .*weights"),
        (missing_inner_tensor, r"layer 4\.0 \(convolution\) cannot be built: .*weights"),
        (extra_tensor, "tensors that belong to no layer: 9.weights"),
        (
            tensor_for_a_layer_without,
            r"tensor 2\.weights is none that a layer of the kind relu has",
        ),
        (wrong_dimensions, r"tensor 6\.weights has shape \(4,\), expected 2 dimensions"),
        (not_finite, r"tensor 6\.bias holds numbers that are not finite"),
        (inner_layers_no_list, "not a list of layers"),
    ],
)
def test_what_is_no_network_is_refused_and_named(spoil: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(*spoil(*described()))
