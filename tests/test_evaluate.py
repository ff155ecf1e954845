"""An evaluation measures what the service answers, tells all of it, and guards the test split."""

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.classifier import Classifier
from model.network import Array
from model.preprocessing import Preprocessing, Views
from tests.pictures import encode, scene
from training import Refused
from training.__main__ import main
from training.data import name_parts, read_pictures
from training.evaluation import (
    CHANGES,
    LOG,
    LOG_HEAD,
    answers,
    changed,
    data_files,
    evaluate,
    log_opening,
    low_light,
    mean_of,
    measure,
    record,
    run_evaluate,
    shrunk_to_quarter,
    split_of,
    wrong_by_kind,
)
from training.metrics import expected_calibration_error, roc_auc

# How many pictures of each kind the test data holds, by the beginning of their names
PICTURES = {
    "cat/pets-cat": 24,
    "non-cat/pets-dog": 24,
    "cat/tiny-n02123045_": 20,
    "non-cat/tiny-n02085620_": 12,
    "non-cat/tiny-n02094433_": 12,
    "non-cat/web-places-kitchen-eval": 22,
}


def write_zip(path: Path, pictures: dict[str, int] = PICTURES) -> Path:
    """Pictures unlike each other; names as in the project's data."""
    turns = iter(range(360))
    with zipfile.ZipFile(path, "w") as archive:
        for start, count in pictures.items():
            for i in range(count):
                image = scene(64, 64).rotate(next(turns))
                name = f"{start}{i}" if start.endswith("_") else f"{start}-{i:04d}"
                archive.writestr(f"{name}.png", encode(image))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a validation and a test split."""
    data = tmp_path_factory.mktemp("data")
    write_zip(data / "cats-val.zip")
    write_zip(data / "cats-test.zip")
    return data


@pytest.fixture(scope="module")
def evaluated(folder: Path, weights_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an evaluation."""
    output = tmp_path_factory.mktemp("out") / "report"
    assert main(["evaluate", str(weights_path), str(folder), "--output", str(output)]) == 0
    return output


def results_of(report: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    return results


# --- figures ------------------------------------------------------------------------------------


def random_answers(m: int = 90) -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    y = (rng.random(m) < 0.4).astype(np.float32)
    return y, np.clip(0.3 + 0.3 * y + 0.2 * rng.standard_normal(m), 0, 1)


def test_every_metric_is_measured_with_an_interval_around_it() -> None:
    y, p = random_answers()
    measured = measure(y, p, 0.5, np.random.default_rng(1))
    assert measured["roc_auc"] == roc_auc(y, p)
    assert measured["expected_calibration_error"] == expected_calibration_error(y, p)
    assert measured["called_first"] == (p >= 0.5).mean()
    for name in ("roc_auc", "balanced_accuracy", "called_first"):
        low, high = measured["intervals"][name]
        assert low <= measured[name] <= high
        assert low < high


def test_sources_count_the_same_in_the_mean_and_those_of_one_class_not_at_all() -> None:
    y, p = random_answers()
    rng = np.random.default_rng(1)
    one, two = measure(y[:20], p[:20], 0.5, rng), measure(y[20:], p[20:], 0.5, rng)
    rooms = measure(np.zeros(90), p, 0.5, rng)
    assert rooms["roc_auc"] is None
    assert set(rooms["intervals"]) == {"expected_calibration_error", "called_first"}
    mean = mean_of({"a": one, "b": two, "rooms": rooms})
    assert mean["roc_auc"] == pytest.approx((one["roc_auc"] + two["roc_auc"]) / 2)
    assert mean_of({"rooms": rooms}) == {}


def test_kinds_of_enough_pictures_are_told_worst_first() -> None:
    names = (
        [f"non-cat/tiny-n02085620_{i}.jpg" for i in range(12)]
        + [f"non-cat/tiny-n02094433_{i}.jpg" for i in range(12)]
        + [f"non-cat/tiny-n02129165_{i}.jpg" for i in range(19)]
        + [f"non-cat/web-popular-fox-{i:04}.jpg" for i in range(20)]
        + [f"non-cat/web-popular-wolf-{i:04}.jpg" for i in range(20)]
        + [f"cat/pets-cat-{i:05}.jpg" for i in range(20)]
    )
    kinds = [name_parts(name, name.split("/")[1].split("-")[0]) for name in names]
    y = np.array([name.startswith("cat") for name in names], float)
    p = np.zeros(len(names))
    p[:6] = 0.9  # Chihuahuas
    p[43:53] = 0.5  # foxes, just at the threshold
    p[-3:] = 0.8  # found
    rows = wrong_by_kind(y, p, kinds, 0.5)
    canines = "foxes, wolves and raccoons"
    assert [(row["kind"], row["group"], row["share"]) for row in rows["false"]] == [
        ("fox", canines, 0.5),
        (canines, "", 0.25),
        ("small dogs", "", 0.25),
        ("wolf", canines, 0),
    ]
    assert [(row["kind"], row["wrong"]) for row in rows["missed"]] == [("pets: cat", 17)]


def test_answers_are_those_of_the_service(folder: Path, classifier: Classifier) -> None:
    pictures = read_pictures([folder / "cats-val.zip"])
    boxes = ((0.0, 0.0, 1.0, 1.0), (0.2, 0.2, 0.8, 0.8))
    twice = replace(classifier, views=Views(boxes, (-50.0, 50.0)))
    p, views = answers(twice, pictures.files[:9], "answering")
    served = [twice.predict(load()) for load in pictures.files[:9]]
    assert p.tolist() == [each.cat_probability for each in served]
    assert views.tolist() == [2] * 9
    figures, _ = evaluate(twice, pictures)
    assert {its["looked_again"] for its in figures["sources"].values()} == {1.0}


def test_the_same_pictures_give_the_same_figures(
    folder: Path, classifier: Classifier, evaluated: Path
) -> None:
    first = results_of(evaluated)
    again, _ = evaluate(classifier, read_pictures([folder / "cats-val.zip"]))
    assert json.loads(json.dumps(again)) == {name: first[name] for name in again}


# --- pictures that are harder -------------------------------------------------------------------


def test_a_picture_in_a_quarter_of_the_frame_is_whole_and_smaller() -> None:
    black, white = (np.full((96, 96, 3), value, np.uint8) for value in (0, 255))
    frame = shrunk_to_quarter(white, black, np.random.default_rng(1))
    assert (frame > 127).mean() == pytest.approx(0.25, rel=0.15)


def test_low_light_is_a_fifth_of_the_light_with_noise() -> None:
    grey = np.full((96, 96, 3), 200, np.uint8)
    dark = low_light(grey, grey, np.random.default_rng(1))
    assert dark.mean() == pytest.approx(40, abs=0.5)
    assert dark.std() == pytest.approx(255 * 0.01, rel=0.1)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_the_same_whatever_else_is_changed(folder: Path, name: str) -> None:
    pictures = read_pictures([folder / "cats-val.zip"])
    few, more = (changed(pictures, range(n), name, Preprocessing()) for n in (2, 5))
    assert [load() for load in few] == [load() for load in more[:2]]


# --- the report ---------------------------------------------------------------------------------


def test_the_report_is_one_file_that_tells_every_part(evaluated: Path) -> None:
    assert {path.name for path in evaluated.iterdir()} == {"report.html", "metrics.json"}
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r'base64,[^"]*', "", page)
    for words in (
        *("Its balanced accuracy is", "ROC AUC", "expected calibration error", "rooms"),
        *("Right and wrong answers", "reliability diagram of pets", "Wrongly called cat"),
        *("fills a quarter of the frame", "in a fifth of the light", "The worst mistakes"),
    ):
        assert words in page


def test_pictures_of_one_class_are_measured_too(weights_path: Path, tmp_path: Path) -> None:
    data = write_zip(tmp_path / "garden.zip", {"non-cat/pets-dog": 3})
    command = ["evaluate", str(weights_path), str(data), "--output", str(tmp_path / "report")]
    assert main(command) == 0
    results = results_of(tmp_path / "report")
    assert results["mean"] == {}
    assert results["sources"]["others"]["pictures"] == 3


# --- the test split -----------------------------------------------------------------------------


def test_a_folder_stands_for_the_split_that_is_asked_for(folder: Path) -> None:
    assert data_files([folder], test=False) == [folder / "cats-val.zip"]
    assert data_files([folder], test=True) == [folder / "cats-test.zip"]


@pytest.mark.parametrize(
    ("names", "test", "split"),
    [
        (["cats-val.zip", "mine"], False, "validation"),
        (["attestations.zip", "latest.zip"], False, "validation"),
        (["cats-train.zip", "train_catvnoncat.h5"], False, "training"),
        (["cats-test.zip", "test_catvnoncat.h5"], True, "test"),
        (["mine.zip"], True, "test"),
        (
            ["cats-val.zip", "test_catvnoncat.h5"],
            False,
            "test_catvnoncat.h5 belongs to the test split",
        ),
        (["cats-test.zip", "web-val.zip"], True, "web-val.zip belongs to the validation split"),
        (["cats-train.zip"], True, "cats-train.zip belongs to the training split"),
        (["cats-train.zip", "cats-val.zip"], False, "measure training pictures separately"),
    ],
)
def test_the_split_is_told_by_the_names_and_splits_are_kept_apart(
    names: list[str], test: bool, split: str
) -> None:
    files = [Path(name) for name in names]
    if " " in split:
        with pytest.raises(Refused, match=split):
            split_of(files, test=test)
    else:
        assert split_of(files, test=test) == split


def test_opening_the_test_split_is_logged_before_any_figure_is_told(
    folder: Path, weights_path: Path, classifier: Classifier, tmp_path: Path
) -> None:
    log = tmp_path / "EXPERIMENTS.md"
    log.write_text("# What was tried\n\nMuch.\n", encoding="utf-8")
    lines: list[str] = []
    report = tmp_path / "report"
    run_evaluate(weights_path, [folder], lines.append, test=True, output=report, log=log)
    assert [line.partition(":")[0] for line in lines[:2]] == ["cats-test.zip", "logged"]
    results = results_of(report)
    assert results["split"] == "test"
    log_opening(log, results)
    text = log.read_text(encoding="utf-8")
    assert text.startswith("# What was tried\n\nMuch.\n\n" + LOG_HEAD)
    one, again = text.partition(LOG_HEAD)[2].strip().splitlines()
    assert one == again
    auc = results["sources"]["pets"]["roc_auc"]
    for words in (classifier.version, "cats-test.zip", f"pets {auc:.3f}", results["date"]):
        assert words in one


def test_no_figure_is_told_that_could_not_be_logged(
    folder: Path, weights_path: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    with pytest.raises(IsADirectoryError):
        run_evaluate(weights_path, [folder], lines.append, test=True, log=tmp_path)
    assert lines == []


def test_the_projects_log_is_ready_for_openings() -> None:
    assert LOG_HEAD in LOG.read_text(encoding="utf-8")


# --- what is kept in the weights ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_recording_changes_the_metrics_and_nothing_else(
    evaluated: Path, classifier: Classifier, tmp_path: Path, dtype: Any
) -> None:
    path = tmp_path / "mine.safetensors"
    metadata = {"metrics": {"test": {"pets": {"roc_auc": 0.9}}}, "seed": 4}
    before = replace(classifier, metadata=metadata).save(path, dtype)
    size = path.stat().st_size
    record(path, results_of(evaluated))
    after = Classifier.load(path)
    assert after.metadata["seed"] == 4
    assert after.metadata["metrics"]["test"] == {"pets": {"roc_auc": 0.9}}
    kept = after.metadata["metrics"]["validation"]["pets"]
    assert kept["roc_auc"] == results_of(evaluated)["sources"]["pets"]["roc_auc"]
    assert (after.version, after.golden) == (before.version, before.golden)
    assert path.stat().st_size < size + 10_000  # numbers of the same width
