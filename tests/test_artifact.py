"""A network's description and tensors stand for the network; anything else is refused."""

import json
from typing import Any

import numpy as np
import pytest

from model.artifact import build, describe
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


LAYERS = small_network()
DESCRIBED, TENSORS = describe(LAYERS), parameters(LAYERS)


def with_entry(place: int, entry: Any) -> Any:
    """The description with another entry at that place."""
    return [*DESCRIBED[:place], entry, *DESCRIBED[place + 1 :]]


def without(name: str) -> dict[str, Array]:
    return {key: value for key, value in TENSORS.items() if key != name}


@pytest.mark.parametrize(
    ("description", "tensors", "message"),
    [
        ("linear", TENSORS, "not a list of layers"),
        (with_entry(2, {"kind": "dropout"}), TENSORS, "layer 2 is of an unknown kind: 'dropout'"),
        (with_entry(0, {}), TENSORS, "layer 0 is of an unknown kind: None"),
        (with_entry(0, None), TENSORS, "layer 0 is of an unknown kind: None"),
        (
            with_entry(1, {**DESCRIBED[1], "dilation": 2}),
            TENSORS,
            r"layer 1 \(convolution\) cannot be built: .*dilation",
        ),
        (
            with_entry(0, {"kind": "standardise", "mean": [0.5] * 3}),
            TENSORS,
            r"layer 0 \(standardise\) cannot be built: .*deviation",
        ),
        (DESCRIBED, without("1.weights"), r"layer 1 \(convolution\) cannot be built: .*weights"),
        (DESCRIBED, without("4.0.weights"), r"layer 4\.0 \(convolution\) cannot .*weights"),
        (DESCRIBED, {**TENSORS, "9.weights": floats(1, 1)}, "belong to no layer: 9.weights"),
        (DESCRIBED, {**TENSORS, "2.weights": floats(1, 1)}, r"layer 2 \(relu\) cannot be built"),
        (DESCRIBED, {**TENSORS, "6.bias": floats(1) * np.nan}, r"6\.bias .* not finite"),
        (with_entry(4, {"kind": "residual", "layers": 3}), TENSORS, "not a list of layers"),
    ],
)
def test_what_is_no_network_is_refused_and_named(
    description: Any, tensors: dict[str, Array], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(description, tensors)
