"""The model card says what the weights file and its evaluation say."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.classifier import Classifier, default_weights
from tests.pictures import encode, scene
from training import Refused, evaluation
from training.__main__ import main
from training.data import PROVENANCE
from training.evaluation_report import CARD, EVALUATION, model_card, read_evaluation

METADATA: dict[str, Any] = {
    "training": {"command": "fit", "epochs": 7, "seed": 3, "teacher": None, "teacher_share": None},
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "SECONDS", 0.001)
        patch.setattr(evaluation, "PHOTO", (400, 300))
        assert main([*map(str, command), "--robustness", "4"]) == 0
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
    pets = results["models"][0]["sources"]["pets"]
    low, high = pets["intervals"]["roc_auc"]
    assert f"{pets['roc_auc']:.3f} ({low:.3f} to {high:.3f})".replace(
        " ", "\N{NO-BREAK SPACE}"
    ) in (card.replace(" ", "\N{NO-BREAK SPACE}"))
    for row in results["robustness"]["changes"]:
        assert row["change"] in card
    for row in results["kinds"]["missed"]:
        assert f"{row['kind']}: " in card


def test_the_card_tells_what_the_weights_were_made_of(card: str, weights: Path) -> None:
    assert f"`{Classifier.load(weights).version}`" in card
    assert "6,000" in card
    assert PROVENANCE["pets"]["what"] in card
    assert "| garden | 100 | 200 | pictures of whoever trained it" in card
    assert "least log loss (scale 1.250, shift -0.500" in card
    assert "the best mean of the sources" in card
    assert "epochs = 7" in card
    assert "teacher (" not in card


def test_a_teacher_is_named_where_one_was_used(classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "taught.safetensors"
    training = METADATA["training"] | {"teacher": "mine.csv", "teacher_share": 0.5}
    saved = replace(classifier, metadata=METADATA | {"training": training}).save(path)
    text = model_card(path, evaluation_of(saved))
    assert "50 % of each training label came from a teacher" in text
    assert "`mine.csv`" in text
    assert "--teacher mine.csv" in text


def evaluation_of(classifier: Classifier) -> dict[str, Any]:
    """An evaluation with nothing in it but what must be there."""
    return {
        "format": 1,
        "split": "validation",
        "date": "2026-01-01",
        "class_names": list(classifier.class_names),
        "data": {"files": [], "pictures": 0},
        "models": [
            {"version": classifier.version, "name": "x", "sources": {}, "mean": {}, "parameters": 1}
        ],
        "at_thresholds": [{"threshold": 0.5, "sources": {}}],
        "kinds": {"false": [], "false_by_repository": [], "missed": []},
        "robustness": None,
        "speed": {
            "processor": "one",
            "batch": 1,
            "photo_pixels": [1, 1],
            **dict.fromkeys(("network_ms", "network_ms_in_batch", "small_jpeg_ms"), 1.0),
            "photo_jpeg_ms": 1.0,
        },
    }


def test_the_card_begins_with_three_sentences(card: str) -> None:
    first = card.split("\n\n")[2]
    assert first.count(". ") == 2
    assert "ROC AUC" in first


def test_weights_that_no_command_makes_say_so(
    classifier: Classifier, weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "apart.safetensors"  # metadata are no part of the version
    training = {**METADATA["training"], "command": "two runs and their mean"}
    replace(classifier, metadata={**METADATA, "training": training}).save(path)
    text = model_card(path, read_evaluation(weights.with_name(EVALUATION)))
    assert "No single command makes it" in text
    assert "two runs and their mean" in text


def test_an_evaluation_of_other_weights_is_refused(
    classifier: Classifier, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    replace(classifier, threshold=0.4).save(other)
    command = ["card", other, "--evaluation", weights.with_name(EVALUATION)]
    assert main([*map(str, command)]) == 1
    assert "Evaluate these weights" in capsys.readouterr().err
    assert not other.with_name(CARD).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("{", "is not JSON"),
        (json.dumps({"format": 99}), "no evaluation that this code reads"),
        (json.dumps([]), "no evaluation that this code reads"),
    ],
)
def test_what_is_no_evaluation_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "metrics.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match=message):
        read_evaluation(path)
