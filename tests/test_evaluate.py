"""An evaluation measures what the service answers, tells all of it, and guards the test split."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.classifier import Classifier
from model.preprocessing import Views
from tests.pictures import SIX, encode, scene, write_files, zipped
from training import Refused, evaluation
from training.__main__ import main
from training.data import name_parts, read_pictures

PICTURES = {  # how many pictures of each kind the test data holds, by the beginning of their names
    "cat/pets-cat-": 24,
    "non-cat/pets-dog-": 24,
    "cat/tiny-n02123045_": 20,
    "non-cat/tiny-n02085620_": 12,
    "non-cat/web-places-kitchen-eval-": 22,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A validation and a test split of pictures unlike each other; names as in our data."""
    names = [f"{start}{i:04}.png" for start, count in PICTURES.items() for i in range(count)]
    data = zipped({name: encode(scene(64, 64).rotate(i)) for i, name in enumerate(names)})
    files = dict.fromkeys(("cats-val.zip", "cats-test.zip"), data)
    return write_files(tmp_path_factory.mktemp("data"), files)


@pytest.fixture(scope="module")
def evaluated(folder: Path, weights_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an evaluation."""
    output = tmp_path_factory.mktemp("out") / "report"
    assert main(["evaluate", str(weights_path), str(folder), "--output", str(output)]) == 0
    return output


def results_of(report: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    return results


def test_figures_have_intervals_and_sources_count_the_same_in_the_mean() -> None:
    rng = np.random.default_rng(3)
    y = (rng.random(90) < 0.4).astype(np.float32)
    p = np.clip(0.3 + 0.3 * y + 0.2 * rng.standard_normal(90), 0, 1)
    halves = (slice(20), slice(20, 90))
    one, two = (evaluation.measure(y[half], p[half], 0.5, rng) for half in halves)
    rooms = evaluation.measure(np.zeros(90), p, 0.5, rng)
    for name in ("roc_auc", "balanced_accuracy", "called_first"):
        low, high = two["intervals"][name]
        assert low <= two[name] <= high
        assert low < high
    assert rooms["roc_auc"] is None
    assert set(rooms["intervals"]) == {"expected_calibration_error", "called_first"}
    mean = evaluation.mean_of({"a": one, "b": two, "rooms": rooms})
    assert mean["roc_auc"] == pytest.approx((one["roc_auc"] + two["roc_auc"]) / 2)
    assert evaluation.mean_of({"rooms": rooms}) == {}


def test_kinds_of_enough_pictures_are_told_worst_first() -> None:
    counts = {"non-cat/tiny-n02085620_": 12, "non-cat/tiny-n02094433_": 12}  # kinds of small dogs
    counts |= {"non-cat/web-popular-fox-": 20, "non-cat/web-popular-wolf-": 20, "cat/pets-cat-": 20}
    counts["non-cat/tiny-n02129165_"] = 19  # too few
    names = [f"{start}{i:04}.jpg" for start, count in counts.items() for i in range(count)]
    kinds = [name_parts(name, name.split("/")[1].split("-")[0]) for name in names]
    y = np.array([name.startswith("cat") for name in names], float)
    p = np.zeros(len(names))
    p[:6] = 0.9
    p[24:34] = 0.5  # foxes, just at the threshold
    p[64:67] = 0.8  # cats that were found
    rows = evaluation.wrong_by_kind(y, p, kinds, 0.5)
    canines = "foxes, wolves and raccoons"
    assert [(row["kind"], row["group"], row["share"]) for row in rows["false"]] == [
        *(("fox", canines, 0.5), (canines, "", 0.25)),
        *(("small dogs", "", 0.25), ("wolf", canines, 0)),
    ]
    assert [(row["kind"], row["wrong"]) for row in rows["missed"]] == [("pets: cat", 17)]


def test_answers_are_those_of_the_service_and_figures_the_same_each_time(
    folder: Path, classifier: Classifier, evaluated: Path
) -> None:
    pictures = read_pictures([folder / "cats-val.zip"])
    twice = replace(classifier, views=Views(SIX.boxes[:2], (-50.0, 50.0)))
    p, views = evaluation.answers(twice, pictures.files[:9], "answering")
    served = [twice.predict(load()) for load in pictures.files[:9]]
    assert p.tolist() == [each.cat_probability for each in served]
    assert views.tolist() == [2] * 9
    again, _ = evaluation.evaluate(classifier, pictures)
    first = results_of(evaluated)
    assert json.loads(json.dumps(again)) == {name: first[name] for name in again}


def test_pictures_are_made_harder_as_the_names_of_the_changes_say() -> None:
    black, grey, white = (np.full((96, 96, 3), value, np.uint8) for value in (0, 200, 255))
    frame = evaluation.shrunk_to_quarter(white, black, np.random.default_rng(1))
    assert (frame > 127).mean() == pytest.approx(0.25, rel=0.15)
    dark = evaluation.low_light(grey, grey, np.random.default_rng(1))
    assert dark.mean() == pytest.approx(40, abs=0.5)  # a fifth of the light
    assert dark.std() == pytest.approx(255 * 0.01, rel=0.1)


def test_the_report_is_one_file_that_tells_every_part(evaluated: Path) -> None:
    assert {path.name for path in evaluated.iterdir()} == {"report.html", "metrics.json"}
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r'base64,[^"]*', "", page)
    for words in ("ROC AUC", "rooms", "reliability diagram of pets", "in a fifth of the light"):
        assert words in page


@pytest.mark.parametrize(
    ("names", "test", "split"),
    [
        (["cats-val.zip", "mine"], False, "validation"),
        (["attestations.zip", "latest.zip"], False, "validation"),
        (["cats-train.zip", "train_catvnoncat.h5"], False, "training"),
        (["cats-test.zip", "test_catvnoncat.h5"], True, "test"),
        (["mine.zip"], True, "test"),
        (["cats-val.zip", "test_catvnoncat.h5"], False, "h5 belongs to the test split"),
        (["cats-test.zip", "web-val.zip"], True, "web-val.zip belongs to the validation split"),
        (["cats-train.zip"], True, "cats-train.zip belongs to the training split"),
        (["cats-train.zip", "cats-val.zip"], False, "measure training pictures separately"),
    ],
)
def test_splits_are_told_by_names_and_kept_apart(names: list[str], test: bool, split: str) -> None:
    files = [Path(name) for name in names]
    if " " in split:
        with pytest.raises(Refused, match=split):
            evaluation.split_of(files, test=test)
    else:
        assert evaluation.split_of(files, test=test) == split


def test_opening_the_test_split_is_logged_before_any_figure_is_told(
    folder: Path, weights_path: Path, classifier: Classifier, tmp_path: Path
) -> None:
    log, report = tmp_path / "EXPERIMENTS.md", tmp_path / "report"
    log.write_text("# What was tried\n\n| date |\n|---|\n", encoding="utf-8")
    lines: list[str] = []
    evaluation.run_evaluate(weights_path, [folder], lines.append, test=True, output=report, log=log)
    assert [line.partition(":")[0] for line in lines[:2]] == ["cats-test.zip", "logged"]
    results = results_of(report)
    assert results["split"] == "test"
    evaluation.log_opening(log, results)
    *before, one, again = log.read_text(encoding="utf-8").splitlines()
    assert before == ["# What was tried", "", "| date |", "|---|"]
    assert one == again
    auc = results["sources"]["pets"]["roc_auc"]
    for words in (classifier.version, "cats-test.zip", f"pets {auc:.3f}", results["date"]):
        assert words in one


def test_without_a_log_no_figures(folder: Path, weights_path: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(IsADirectoryError):
        evaluation.run_evaluate(weights_path, [folder], lines.append, test=True, log=tmp_path)
    assert lines == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_recording_changes_the_metrics_and_nothing_else(
    evaluated: Path, classifier: Classifier, tmp_path: Path, dtype: Any
) -> None:
    path = tmp_path / "mine.safetensors"
    of_the_test = {"pets": {"roc_auc": 0.9}}
    metadata = {"metrics": {"test": of_the_test}, "seed": 4}
    before = replace(classifier, metadata=metadata).save(path, dtype)
    size = path.stat().st_size
    evaluation.record(path, results_of(evaluated))
    after = Classifier.load(path)
    assert (after.metadata["seed"], after.metadata["metrics"]["test"]) == (4, of_the_test)
    kept = after.metadata["metrics"]["validation"]["pets"]
    assert kept["roc_auc"] == results_of(evaluated)["sources"]["pets"]["roc_auc"]
    assert (after.version, after.golden) == (before.version, before.golden)
    assert path.stat().st_size < size + 10_000  # numbers of the same width
