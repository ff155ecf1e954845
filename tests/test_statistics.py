"""How unlike the pictures of its training a picture is."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from model.classifier import INPUT_STATISTICS, InputStatistics, statistics

Pixels = NDArray[np.uint8]


def noise(seed: int, low: int = 0, high: int = 256) -> Pixels:
    return np.random.default_rng(seed).integers(low, high, (64, 64, 3)).astype(np.uint8)


def plainly(pixels: Pixels) -> list[float]:
    """The four numbers from their definitions, without regard to time."""
    grey = pixels.astype(np.float64).mean(-1)
    spread = pixels.max(-1).astype(int) - pixels.min(-1)
    steps = np.concatenate([np.diff(grey, axis=axis).ravel() for axis in (0, 1)])
    return [grey.mean(), grey.std(), spread.mean(), np.abs(steps).mean()]


def test_the_numbers_are_what_their_definitions_say() -> None:
    for pixels in (noise(1), noise(2, 90, 110), noise(3)[:16, :16]):
        assert statistics(pixels) == pytest.approx(plainly(pixels), rel=1e-4)
    flat = np.full((64, 64, 3), (0, 30, 90), np.uint8)
    assert statistics(flat) == pytest.approx([40, 0, 90, 0], abs=1e-3)


def test_usual_pictures_are_about_one_deviation_away_and_others_far() -> None:
    usual = InputStatistics.of(noise(seed, 50, 200) for seed in range(200))
    distances = [usual.distance(noise(seed, 50, 200)) for seed in range(200)]
    assert np.sqrt(np.mean(np.square(distances))) == pytest.approx(1, abs=1e-6)
    assert usual.distance(np.full((64, 64, 3), 255, np.uint8)) > 10
    alike = InputStatistics.of([noise(9)] * 3)
    assert np.isfinite(alike.distance(noise(1)))


def test_an_artifact_keeps_them() -> None:
    usual = InputStatistics.of(noise(seed) for seed in range(9))
    metadata = json.loads(json.dumps({INPUT_STATISTICS: usual.to_json()}))
    kept = InputStatistics.from_metadata(metadata)
    assert kept
    assert kept.distance(noise(77)) == usual.distance(noise(77))
    metadata[INPUT_STATISTICS]["names"].reverse()  # numbers of a later version
    assert InputStatistics.from_metadata(metadata) is None
    assert InputStatistics.from_metadata({}) is None
