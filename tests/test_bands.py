"""Words for probabilities: stored in the artifact, checked when it is loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model import bands
from model.bands import Band, default_bands, words_for
from model.classifier import BadArtifact, Classifier

NAMES = ("cat", "non-cat")


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.0, "no cat, quite sure"),
        (0.0999, "no cat, quite sure"),
        (0.1, "no cat, probably"),
        (0.4, "not sure"),
        (0.5, "not sure"),
        (0.7, "cat, probably"),
        (0.9, "cat, quite sure"),
        (1.0, "cat, quite sure"),
    ],
)
def test_probabilities_have_words(probability: float, words: str) -> None:
    assert words_for(probability, default_bands(NAMES, 0.5)) == words


def test_the_words_use_the_names_of_the_classes() -> None:
    words = [band.words for band in default_bands(("fox", "badger"), 0.5)]
    assert words[0] == "badger, quite sure"
    assert words[-1] == "fox, quite sure"


@pytest.mark.parametrize("threshold", [1e-6, 0.01, 0.2, 0.31, 0.5, 0.8, 0.99, 1 - 1e-6])
def test_only_not_sure_stands_on_both_sides_of_the_threshold(threshold: float) -> None:
    found = default_bands(NAMES, threshold)
    starts = [band.start for band in found]
    assert starts == sorted(set(starts))
    assert starts[2] < threshold < starts[3]


def test_an_artifact_keeps_its_bands(classifier: Classifier, tmp_path: Path) -> None:
    own = (Band(0.0, "nothing"), Band(0.25, "something"))
    path = tmp_path / "own.safetensors"
    replace(classifier, bands=own).save(path)
    assert Classifier.load(path).all_bands == own
    assert Classifier.load(path).words(0.3) == "something"


def test_an_artifact_saved_without_bands_gets_those_of_its_threshold(
    classifier: Classifier, tmp_path: Path
) -> None:
    path = tmp_path / "default.safetensors"
    saved = replace(classifier, bands=(), threshold=0.2).save(path)
    assert saved.bands == default_bands(NAMES, 0.2)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        "cat",
        [{"from": 0.1, "words": "late"}],
        [{"from": 0, "words": ""}],
        [{"from": 0, "words": "two\nlines"}],
        [{"from": 0, "words": "x" * 81}],
        [{"from": 0, "words": "a"}, {"from": 0, "words": "b"}],
        [{"from": 0, "words": "a"}, {"from": 1, "words": "b"}],
        [{"from": 0, "words": "a"}, {"from": float("nan"), "words": "b"}],
        [{"from": "0", "words": "a"}],
        [{"from": 0, "words": "a", "more": 1}],
        [None],
    ],
    ids=repr,
)
def test_other_bands_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="its bands must be a list"):
        bands.from_json(value)


def test_a_classifier_with_unusable_bands_is_not_written(
    classifier: Classifier, tmp_path: Path
) -> None:
    with pytest.raises(BadArtifact, match="bands must be"):
        replace(classifier, bands=(Band(0.5, "late"),)).save(tmp_path / "bad.safetensors")
