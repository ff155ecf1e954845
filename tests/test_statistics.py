"""How unlike the pictures of its training a picture is."""

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.classifier import INPUT_STATISTICS, STATISTICS, InputStatistics, statistics

Pixels = NDArray[np.uint8]


def noise(seed: int, low: int = 0, high: int = 256) -> Pixels:
    return np.random.default_rng(seed).integers(low, high, (64, 64, 3)).astype(np.uint8)


def flat(red: int, green: int, blue: int) -> Pixels:
    return np.full((64, 64, 3), (red, green, blue), np.uint8)


def plainly(pixels: Pixels) -> list[float]:
    """The four numbers from their definitions, without regard to time."""
    grey = pixels.astype(np.float64).mean(-1)
    spread = pixels.max(-1).astype(int) - pixels.min(-1)
    steps = np.concatenate([np.diff(grey, axis=axis).ravel() for axis in (0, 1)])
    return [grey.mean(), grey.std(), spread.mean(), np.abs(steps).mean()]


@pytest.mark.parametrize(
    "pixels", [noise(1), noise(2, 90, 110), noise(3)[:16, :16]], ids=["noise", "grey", "small"]
)
def test_the_numbers_are_what_their_definitions_say(pixels: Pixels) -> None:
    assert statistics(pixels) == pytest.approx(plainly(pixels), rel=1e-4)


def test_a_flat_picture_has_neither_contrast_nor_sharpness() -> None:
    assert statistics(flat(0, 30, 90)) == pytest.approx([40, 0, 90, 0], abs=1e-3)


def test_pictures_like_the_usual_ones_are_about_one_deviation_away() -> None:
    usual = InputStatistics.of(noise(seed) for seed in range(200))
    distances = [usual.distance(noise(seed)) for seed in range(200)]
    assert np.sqrt(np.mean(np.square(distances))) == pytest.approx(1, abs=1e-6)


def test_pictures_of_another_kind_are_far_away() -> None:
    usual = InputStatistics.of(noise(seed, 50, 200) for seed in range(100))
    assert usual.distance(noise(500, 50, 200)) < 3
    assert usual.distance(flat(255, 255, 255)) > 10
    kept = InputStatistics.from_metadata(
        json.loads(json.dumps({INPUT_STATISTICS: usual.to_json()}))
    )
    assert kept
    assert kept.distance(noise(77)) == usual.distance(noise(77))
    alike = InputStatistics.of([flat(9, 9, 9)] * 3)
    assert np.isfinite(alike.distance(noise(1)))


FOUR = [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"names": [*STATISTICS], "mean": FOUR[:3], "deviation": FOUR},
        {"names": [*STATISTICS], "mean": FOUR, "deviation": [0.0, 1.0, 1.0, 1.0]},
        {"names": [*STATISTICS], "mean": [float("nan"), 1.0, 1.0, 1.0], "deviation": FOUR},
        {"names": [*STATISTICS], "mean": ["1", 1.0, 1.0, 1.0], "deviation": FOUR},
        {"names": [*STATISTICS[::-1]], "mean": FOUR, "deviation": FOUR},
    ],
    ids=str,
)
def test_an_artifact_without_usable_numbers_has_none(value: Any) -> None:
    assert InputStatistics.from_metadata({INPUT_STATISTICS: value}) is None
    assert InputStatistics.from_metadata({}) is None
