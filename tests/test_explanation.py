"""What the heat maps claim: exact sums, correct derivatives, and places that matter."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from model import DEFAULT_WEIGHTS, explanation
from model import network as nn
from model.classifier import Classifier
from model.convolution import Convolution
from model.explanation import explain, picture_of_weights, place
from model.network import Array, Layer, Linear, Scratch, forward
from model.preprocessing import Box, Views, read_picture, to_vector
from tests.pictures import SIX

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def network() -> Sequence[Layer]:
    """The network that ships."""
    return Classifier.load(DEFAULT_WEIGHTS).layers


@pytest.fixture(scope="module")
def cat(cat_picture: bytes) -> Pixels:
    return read_picture(cat_picture).pixels


def noise(side: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def random(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def convolution(c_in: int, c_out: int, stride: int = 1) -> Convolution:
    return Convolution(random(3, 3, c_in, c_out) / 5, random(c_out), stride)


def small(side: int) -> list[Layer]:
    """Every kind of layer, with biases, for pictures of that side."""
    inner: list[Layer] = [convolution(6, 6), nn.Relu(), convolution(6, 6), nn.Relu()]
    return [
        nn.Standardise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), side),
        *(convolution(3, 4, 2), nn.MaxPool(), nn.Relu(), convolution(4, 6)),
        *(nn.Residual(inner), nn.GlobalAverage(), Linear(random(6, 2), random(2)), nn.Relu()),
        Linear(random(2, 1), random(1)),
    ]


def logit(layers: Sequence[Layer], pixels: Pixels) -> float:
    return float(forward(layers, to_vector(pixels[None]), Scratch())[-1][0, 0])


def test_for_logistic_regression_the_map_is_weights_times_pixels(cat: Pixels) -> None:
    weights, bias = random(12288, 1), random(1)
    found = explain([Linear(weights, bias)], cat)
    terms = (weights[:, 0] * to_vector(cat)).reshape(64, 64, 3)
    np.testing.assert_allclose(found.heat, terms.sum(axis=2), rtol=1e-4, atol=1e-6)
    assert found.bias == pytest.approx(float(bias[0]))


def check_sum(found: explanation.Explanation, expected: float) -> None:
    assert found.logit == pytest.approx(expected, abs=1e-4)
    total = float(found.heat.sum(dtype=float)) + found.bias
    assert total == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("side", [8, 20, 64])
def test_the_map_and_the_bias_sum_to_the_logit_in_networks_of_every_layer(side: int) -> None:
    layers, pixels = small(side), noise(side)
    found = explain(layers, pixels)
    assert found.heat.shape == (side, side)
    check_sum(found, logit(layers, pixels))


def test_a_network_that_looks_in_the_mirror_too_is_explained_as_the_mean_of_both() -> None:
    layers, pixels, views = small(20), noise(20), Views(mirror=True)
    reflected = np.ascontiguousarray(pixels[:, ::-1])
    found = explanation.explain_views(layers, pixels[None], views)
    check_sum(found, (logit(layers, pixels) + logit(layers, reflected)) / 2)
    other = explanation.explain_views(layers, reflected[None], views)
    np.testing.assert_allclose(other.heat[:, ::-1], found.heat, atol=1e-5)
    assert abs(explain(layers, pixels).logit - found.logit) > 1e-4


def test_the_map_of_several_views_is_the_mean_of_theirs_and_sums_to_the_mean_logit() -> None:
    layers, mirrored = small(20), Views(mirror=True)
    views = np.stack([noise(20, seed) for seed in range(6)])
    whole = explanation.explain_views(layers, views[:1], mirrored)
    parts = [whole, *(explain(layers, view) for view in views[1:])]
    found = explanation.explain_views(layers, views, replace(SIX, mirror=True))
    check_sum(found, float(np.mean([part.logit for part in parts])))
    placed = [place(part.heat, box) for part, box in zip(parts, SIX.boxes, strict=True)]
    np.testing.assert_allclose(found.heat, np.mean(placed, axis=0), atol=1e-6)
    alone = explanation.explain_views(layers, views[:1], replace(SIX, mirror=True))
    np.testing.assert_allclose(alone.heat, whole.heat, atol=1e-6)


@pytest.mark.parametrize("box", [*SIX.boxes, (0.123, 0.3, 0.45, 0.997)])
def test_a_map_is_placed_where_its_box_lies_sum_kept(box: Box) -> None:
    heat = random(20, 20)
    placed = place(heat, box)
    assert placed.sum() == pytest.approx(float(heat.sum()), abs=1e-4)
    left, top, right, bottom = (20 * edge for edge in box)
    rows, columns = np.mgrid[:20, :20]
    outside = (columns + 1 < left) | (columns > right) | (rows + 1 < top) | (rows > bottom)
    assert not placed[outside].any()
    even = place(np.ones((20, 20)), box)[
        (columns > left) & (columns + 1 < right) & (rows > top) & (rows + 1 < bottom)
    ]
    np.testing.assert_allclose(even, 400 / ((right - left) * (bottom - top)))


def test_hiding_what_speaks_for_cat_costs_most(network: Sequence[Layer], cat: Pixels) -> None:
    blurred = np.asarray(Image.fromarray(cat).filter(ImageFilter.GaussianBlur(6)))
    order = np.argsort(explain(network, cat).heat.ravel())
    fifth = order.size // 5

    def without(places: NDArray[np.intp]) -> float:
        hidden = cat.reshape(-1, 3).copy()
        hidden[places] = blurred.reshape(-1, 3)[places]
        return logit(network, hidden.reshape(cat.shape))

    anywhere = np.random.default_rng(0).permuted(np.tile(order, (10, 1)), axis=1)[:, :fifth]
    others = [without(places) for places in (order[:fifth], *anywhere)]
    assert without(order[-fifth:]) < min(others)


def test_the_overlay_is_orange_where_it_speaks_for_and_blue_against(cat: Pixels) -> None:
    heat = np.zeros((64, 64))
    heat[:20], heat[-20:] = 1, -1
    pixels, full = explanation.overlay(cat, heat)
    assert full == pytest.approx(1)
    red, _, blue = (pixels[..., channel].astype(int) for channel in range(3))
    high = len(pixels)
    assert (red - blue)[: high // 4].min() > 100
    assert (blue - red)[-high // 4 :].min() > 100
    assert abs(red - blue)[high // 2].max() == 0
    pixels, full = explanation.overlay(cat, 1e-9 * (noise(64)[..., 0] - 128.0))  # next to nothing
    assert np.abs(np.ptp(pixels.astype(int), axis=2)).max() <= 1


def test_only_logistic_regression_has_a_picture_of_weights(network: Sequence[Layer]) -> None:
    weights = np.zeros((64, 64, 3), np.float32)
    weights[:32, :, 0], weights[32:, :, 2] = 1, -1
    picture = picture_of_weights([Linear(weights.reshape(-1, 1), np.zeros(1, np.float32))], 64)
    assert picture is not None
    assert picture[[0, 63], 0].tolist() == [[255, 127, 127], [127, 127, 0]]
    assert picture_of_weights(network, 64) is None
