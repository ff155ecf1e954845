"""The model card says what the weights file and its evaluation say."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.classifier import Classifier, default_weights
from tests.pictures import encode, scene
from training import Refused
from training.__main__ import main
from training.card import CARD, EVALUATION, model_card, read_evaluation
from training.data import PROVENANCE

METADATA: dict[str, Any] = {
    "training": {"command": "fit", "epochs": 7, "batch": 128, "teacher": None},
    "data": {
        "training": {
            "files": ["cats-train.zip"],
            "pictures": 12_345,
            "sources": {
                "pets": {"cat": 6_000, "non-cat": 6_045},
                "garden": {"cat": 100, "non-cat": 200},
            },
            "sha256": "0123456789abcdef" * 4,
        }
    },
    "calibration": {"scale": 1.25, "shift": -0.5, "rule": "least log loss"},
    "threshold_rule": "the best mean of the sources",
}


@pytest.fixture(scope="module")
def weights(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with metadata, and their evaluation beside them."""
    folder = tmp_path_factory.mktemp("card")
    path = folder / "mine.safetensors"
    replace(classifier, metadata=METADATA).save(path)
    with zipfile.ZipFile(folder / "mine-val.zip", "w") as archive:
        for i in range(40):
            picture = encode(scene(64, 64).rotate(8 * i))
            archive.writestr(f"{('cat/pets-cat', 'non-cat/pets-dog')[i % 2]}-{i}.png", picture)
    command = ["evaluate", path, folder / "mine-val.zip", "--output", folder / "report"]
    assert main([*map(str, command)]) == 0
    (folder / "report" / "metrics.json").rename(folder / EVALUATION)
    return path


@pytest.fixture(scope="module")
def card(weights: Path) -> str:
    assert main(["card", str(weights)]) == 0
    return weights.with_name(CARD).read_text(encoding="utf-8")


def test_the_committed_card_is_what_the_committed_files_give() -> None:
    weights = default_weights()
    if weights.stem == "logistic":
        pytest.skip("the lesson's weights have no card")
    results = read_evaluation(weights.with_name(EVALUATION))
    committed = weights.with_name(CARD).read_text(encoding="utf-8")
    assert committed == model_card(weights, results), "make it again: python -m training card"


def test_the_card_tells_the_figures_of_the_evaluation(card: str, weights: Path) -> None:
    results = read_evaluation(weights.with_name(EVALUATION))
    pets = results["sources"]["pets"]
    low, high = pets["intervals"]["roc_auc"]
    space = "\N{NO-BREAK SPACE}"
    assert f"{pets['roc_auc']:.3f} ({low:.3f}{space}to{space}{high:.3f})" in card
    for row in (*results["changes"]["rows"], *results["kinds"]["missed"]):
        assert (row.get("change") or f"- {row['kind']}: ") in card


def test_the_card_tells_what_the_weights_were_made_of(card: str, weights: Path) -> None:
    assert f"`{Classifier.load(weights).version}`" in card
    for words in (
        PROVENANCE["pets"]["what"],
        "| garden | 100 | 200 | pictures from the person who trained it",
        "least log loss (scale 1.250, shift -0.500",
        "the best mean of the sources",
    ):
        assert words in card
    assert "teacher (" not in card


def test_the_recipe_is_what_differs_from_the_defaults(card: str) -> None:
    assert "| epochs | 7 |" in card
    assert "epochs = 7" in card
    assert "batch" not in card


def test_a_teacher_is_named_where_one_was_used(
    classifier: Classifier, weights: Path, tmp_path: Path
) -> None:
    training = METADATA["training"] | {"teacher": "mine.npz", "teacher_share": 0.25}
    text = card_of(classifier, weights, tmp_path, training)
    assert "25 % of each training label came from a teacher" in text
    assert "--teacher mine.npz" in text
    assert "teacher_share = 0.25" in text


def card_of(classifier: Classifier, weights: Path, folder: Path, training: dict[str, Any]) -> str:
    """The card of the same weights, trained in that way: metadata are no part of the version."""
    path = folder / "apart.safetensors"
    replace(classifier, metadata={**METADATA, "training": training}).save(path)
    return model_card(path, read_evaluation(weights.with_name(EVALUATION)))


def test_the_card_begins_with_three_sentences(card: str) -> None:
    first = card.split("\n\n")[2]
    assert first.count(". ") == 2
    assert "ROC AUC" in first


def test_weights_that_no_command_makes_say_so(
    classifier: Classifier, weights: Path, tmp_path: Path
) -> None:
    training = {**METADATA["training"], "command": "two runs and their mean"}
    text = card_of(classifier, weights, tmp_path, training)
    assert "No single command reproduces it" in text


def test_an_evaluation_of_other_weights_is_refused(
    classifier: Classifier, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    replace(classifier, threshold=0.4).save(other)
    other.with_name(EVALUATION).write_bytes(weights.with_name(EVALUATION).read_bytes())
    assert main(["card", str(other)]) == 1
    assert "Evaluate these weights" in capsys.readouterr().err
    assert not other.with_name(CARD).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("{", "is not JSON"),
        (json.dumps({"format": 99}), "not an evaluation of this version"),
        (json.dumps([]), "not an evaluation of this version"),
    ],
)
def test_what_is_no_evaluation_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "metrics.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match=message):
        read_evaluation(path)
