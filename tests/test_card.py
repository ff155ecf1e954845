"""The model card says what the weights file and its evaluation say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model import DEFAULT_WEIGHTS
from model.classifier import Classifier
from tests.pictures import encode, scene, write_files, zipped
from training import Refused
from training.__main__ import main
from training.card import CARD, EVALUATION, model_card, read_evaluation
from training.data import PROVENANCE

SOURCES = {"pets": {"cat": 6_000, "non-cat": 6_045}, "garden": {"cat": 100, "non-cat": 200}}
TRAINING_DATA = {"files": ["cats-train.zip"], "pictures": 12_345, "sources": SOURCES}
METADATA: dict[str, Any] = {
    "training": {"command": "fit", "epochs": 7, "batch": 128, "teacher": None},
    "data": {"training": TRAINING_DATA | {"sha256": "0123456789abcdef" * 4}},
    "calibration": {"scale": 1.25, "shift": -0.5, "rule": "least log loss"},
    "threshold_rule": "the best mean of the sources",
}


@pytest.fixture(scope="module")
def weights(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with metadata, and their evaluation beside them."""
    names = [f"{('cat/pets-cat', 'non-cat/pets-dog')[i % 2]}-{i}.png" for i in range(40)]
    data = {name: encode(scene(64, 64).rotate(8 * i)) for i, name in enumerate(names)}
    folder = write_files(tmp_path_factory.mktemp("card"), {"mine-val.zip": zipped(data)})
    path = folder / "mine.safetensors"
    replace(classifier, metadata=METADATA).save(path)
    command = ["evaluate", path, folder / "mine-val.zip", "--output", folder / "report"]
    assert main([*map(str, command)]) == 0
    (folder / "report" / "metrics.json").rename(folder / EVALUATION)
    return path


@pytest.fixture(scope="module")
def card(weights: Path) -> str:
    assert main(["card", str(weights)]) == 0
    return weights.with_name(CARD).read_text(encoding="utf-8")


def test_the_committed_card_is_what_the_committed_files_give() -> None:
    weights = DEFAULT_WEIGHTS
    if weights.stem == "logistic":
        pytest.skip("the lesson's weights have no card")
    results = read_evaluation(weights.with_name(EVALUATION))
    committed = weights.with_name(CARD).read_text(encoding="utf-8")
    assert committed == model_card(weights, Classifier.load(weights), results), (
        "make it again: python -m training card"
    )


def test_the_card_tells_the_figures_of_the_evaluation(card: str, weights: Path) -> None:
    results = read_evaluation(weights.with_name(EVALUATION))
    pets = results["sources"]["pets"]
    low, high = pets["intervals"]["roc_auc"]
    space = "\N{NO-BREAK SPACE}"
    assert f"{pets['roc_auc']:.3f} ({low:.3f}{space}to{space}{high:.3f})" in card
    for row in (*results["changes"]["rows"], *results["kinds"]["missed"]):
        assert (row.get("change") or f"- {row['kind']}: ") in card


def test_the_card_tells_what_the_weights_were_made_of(card: str, weights: Path) -> None:
    for words in (
        f"`{Classifier.load(weights).version}`",
        PROVENANCE["pets"]["what"],
        "| garden | 100 | 200 | pictures from the person who trained it",
        "least log loss. The scale is 1.250 and the shift -0.500",
        "the best mean of the sources",
        "| epochs | 7 | 40 |",
        "epochs = 7",
    ):
        assert words in card
    assert "teacher (" not in card
    assert "batch" not in card  # as in the defaults


def test_a_teacher_is_named(classifier: Classifier, weights: Path, tmp_path: Path) -> None:
    """Metadata are no part of the version: the evaluation is still that of these weights."""
    path = tmp_path / "apart.safetensors"
    taught = METADATA["training"] | {"teacher": "mine.npz", "teacher_share": 0.25}
    replace(classifier, metadata=METADATA | {"training": taught}).save(path)
    text = model_card(path, Classifier.load(path), read_evaluation(weights.with_name(EVALUATION)))
    for words in ("25 % of each training label came from a teacher", "--teacher mine.npz"):
        assert words in text


def test_an_evaluation_of_other_weights_is_refused(
    classifier: Classifier, weights: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    replace(classifier, threshold=0.4).save(other)
    with pytest.raises(Refused, match="Evaluate these weights"):
        model_card(other, Classifier.load(other), read_evaluation(weights.with_name(EVALUATION)))


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    for text in (None, "{", '{"format": 99}', "[]"):
        if text is not None:
            path.write_text(text, encoding="utf-8")
        with pytest.raises(Refused, match="is missing, or not an evaluation of this version"):
            read_evaluation(path)
