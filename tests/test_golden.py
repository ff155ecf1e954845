"""Golden pictures tell code that reads pictures differently."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.classifier import GOLDEN_TOLERANCE, Classifier, default_weights
from model.network import Linear
from model.preprocessing import ONE_VIEW, Preprocessing
from tests.pictures import decode
from training.golden import choose_golden

LINEAR = replace(
    Classifier.load(default_weights()),
    layers=[Linear(np.random.default_rng(1).normal(0, 0.01, (12288, 1)), np.zeros(1))],
    views=ONE_VIEW,
)
GOLDEN = choose_golden(LINEAR, np.random.default_rng(3))
MISTAKES: tuple[dict[str, Any], ...] = (
    *({"filter": name} for name in ("box", "hamming", "bicubic", "lanczos")),
    *({"reducing_gap": gap} for gap in (None, 2)),
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_every_other_preprocessing_moves_a_golden_probability(mistake: dict[str, Any]) -> None:
    wrong = replace(LINEAR, preprocessing=Preprocessing(**mistake))
    moved = [abs(wrong.predict(each.picture).cat_probability - each.probability) for each in GOLDEN]
    assert max(moved) > 2 * GOLDEN_TOLERANCE


def test_golden_pictures_are_small_photos_that_are_to_be_turned() -> None:
    assert choose_golden(LINEAR, np.random.default_rng(3)) == GOLDEN
    assert len(GOLDEN) == 3
    for each in GOLDEN:
        image = decode(each.picture)
        assert image.getexif()[0x0112] == 6
        assert image.width != image.height
        assert len(each.picture) < 20_000


def test_weights_of_zero_have_golden_pictures_too() -> None:
    zero = replace(LINEAR, layers=[Linear(np.zeros((12288, 1)), np.zeros(1))])
    assert {each.probability for each in choose_golden(zero, np.random.default_rng(1))} == {0.5}
