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

SHIPPED = Classifier.load(default_weights())
LINEAR = replace(
    SHIPPED,
    layers=[Linear(np.random.default_rng(1).normal(0, 0.01, (12288, 1)), np.zeros(1))],
    views=ONE_VIEW,
)
MISTAKES: tuple[dict[str, Any], ...] = (
    *({"filter": name} for name in ("box", "hamming", "bicubic", "lanczos")),
    *({"reducing_gap": gap} for gap in (None, 2)),
)


@pytest.mark.parametrize("classifier", [SHIPPED, LINEAR], ids=["deep", "logistic regression"])
def test_every_other_preprocessing_moves_a_golden_probability(classifier: Classifier) -> None:
    golden = choose_golden(classifier, np.random.default_rng(3))
    for mistake in MISTAKES:
        wrong = replace(classifier, preprocessing=Preprocessing(**mistake))
        moved = [
            abs(wrong.predict(each.picture).cat_probability - each.probability) for each in golden
        ]
        assert max(moved) > 2 * GOLDEN_TOLERANCE, mistake


def test_golden_pictures_are_small_photos_that_are_to_be_turned() -> None:
    golden = choose_golden(LINEAR, np.random.default_rng(3))
    assert golden == choose_golden(LINEAR, np.random.default_rng(3))
    assert len(golden) == 3
    for each in golden:
        image = decode(each.picture)
        assert image.getexif()[0x0112] == 6
        assert image.width != image.height
        assert len(each.picture) < 20_000


def test_weights_of_zero_have_golden_pictures_too() -> None:
    zero = replace(LINEAR, layers=[Linear(np.zeros((12288, 1)), np.zeros(1))])
    assert {each.probability for each in choose_golden(zero, np.random.default_rng(1))} == {0.5}
