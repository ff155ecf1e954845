"""An evaluation measures what the service answers, tells all of it, and guards the test split."""

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.classifier import Classifier
from model.network import Array
from tests.pictures import encode, scene
from training import Refused, evaluation
from training.__main__ import main
from training.data import name_parts, read_pictures
from training.evaluation import (
    LOG,
    LOG_HEAD,
    Subject,
    answer,
    data_files,
    evaluate,
    log_opening,
    measure,
    measure_sources,
    record,
    split_of,
    wrong_by_kind,
)
from training.evaluation_report import headlines
from training.metrics import average_precision, brier_score, expected_calibration_error, roc_auc

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


@pytest.fixture(scope="module", autouse=True)
def _quick_clocks() -> Iterator[None]:
    """Speed is measured in a blink: it is no claim of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "SECONDS", 0.001)
        patch.setattr(evaluation, "PHOTO", (400, 300))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a validation and a test split."""
    data = tmp_path_factory.mktemp("data")
    write_zip(data / "cats-val.zip")
    write_zip(data / "cats-test.zip")
    return data


@pytest.fixture(scope="module")
def evaluated(folder: Path, weights_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an evaluation with everything in it."""
    output = tmp_path_factory.mktemp("out") / "report"
    command = ["evaluate", weights_path, folder, "--baseline", weights_path]
    assert main([*map(str, command), "--robustness", "5", "--output", str(output)]) == 0
    return output


def results_of(report: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    return results


# --- numbers ------------------------------------------------------------------------------------


def random_answers(m: int = 90) -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    y = (rng.random(m) < 0.4).astype(np.float32)
    return y, np.clip(0.3 + 0.3 * y + 0.2 * rng.standard_normal(m), 0, 1)


def test_every_metric_is_measured_with_an_interval_around_it() -> None:
    y, p = random_answers()
    measured = measure(y, p, 0.5, np.random.default_rng(1))
    expected = {
        "roc_auc": roc_auc(y, p),
        "average_precision": average_precision(y, p),
        "brier_score": brier_score(y, p),
        "expected_calibration_error": expected_calibration_error(y, p),
        "called_first": float((p >= 0.5).mean()),
    }
    assert {name: measured[name] for name in expected} == expected
    for name in (*expected, "balanced_accuracy"):
        low, high = measured["intervals"][name]
        assert low < high
        if name != "expected_calibration_error":  # resampling can only make it larger
            assert low <= measured[name] <= high


def test_sources_count_the_same_in_the_mean_and_those_of_one_class_not_at_all() -> None:
    y, p = random_answers()
    y[60:] = 0
    sources = ["a"] * 20 + ["b"] * 40 + ["rooms"] * 30
    measured = measure_sources(y, p, sources, 0.5, seed=1)
    assert list(measured["sources"]) == ["a", "b", "rooms"]
    aucs = roc_auc(y[:20], p[:20]), roc_auc(y[20:60], p[20:60])
    assert measured["mean"]["roc_auc"] == pytest.approx(sum(aucs) / 2)
    rooms = measured["sources"]["rooms"]
    assert rooms["roc_auc"] is None
    assert rooms["called_first"] == (p[60:] >= 0.5).mean()
    assert set(rooms["intervals"]) == {"brier_score", "expected_calibration_error", "called_first"}


def test_kinds_of_enough_pictures_are_told_worst_first() -> None:
    names = (
        [f"non-cat/tiny-n02085620_{i}.jpg" for i in range(12)]
        + [f"non-cat/tiny-n02094433_{i}.jpg" for i in range(12)]
        + [f"non-cat/tiny-n02129165_{i}.jpg" for i in range(19)]
        + [f"non-cat/web-popular-fox-{i:04}.jpg" for i in range(20)]
        + [f"cat/pets-cat-{i:05}.jpg" for i in range(20)]
    )
    kinds = [name_parts(name, name.split("/")[1].split("-")[0]) for name in names]
    y = np.array([name.startswith("cat") for name in names], float)
    p = np.zeros(len(names))
    p[:6] = 0.9  # Chihuahuas
    p[43:53] = 0.5  # foxes, just at the threshold
    p[-3:] = 0.8  # found
    told = wrong_by_kind(y, p, kinds, 0.5)
    assert [(row["kind"], row["wrong"], row["pictures"]) for row in told["false"]] == [
        ("foxes, wolves and raccoons", 10, 20),
        ("small dogs", 6, 24),
    ]
    assert told["false"][1]["shows"] == ["Chihuahua", "Yorkshire terrier"]
    assert [(row["kind"], row["share"]) for row in told["false_by_repository"]] == [
        ("popular", 0.5)
    ]
    assert [(row["kind"], row["wrong"]) for row in told["missed"]] == [("pets: cat", 17)]


def test_answers_are_those_of_the_service(
    folder: Path, classifier: Classifier, weights_path: Path
) -> None:
    file = folder / "cats-val.zip"
    pictures, (p, again) = answer([Subject(classifier, weights_path)] * 2, [file])
    assert (p == again).all()
    read = read_pictures([file])
    assert pictures.names == read.names
    assert pictures.fingerprint == read.fingerprint
    with zipfile.ZipFile(file) as archive:
        served = [
            classifier.predict(archive.read(name)).cat_probability for name in pictures.names[::9]
        ]
    assert p[::9].tolist() == served


def test_the_same_seed_gives_the_same_numbers(
    folder: Path, classifier: Classifier, weights_path: Path, evaluated: Path
) -> None:
    first = results_of(evaluated)
    again = evaluate(
        [Subject(classifier, weights_path)] * 2,
        [folder / "cats-val.zip"],
        lambda _: None,
        robustness_pictures=5,
    ).results
    for varying in ("speed", "date"):
        del first[varying], again[varying]
    assert json.loads(json.dumps(again)) == first


# --- the report ---------------------------------------------------------------------------------


def test_the_report_is_one_file_that_asks_for_no_other(evaluated: Path) -> None:
    assert {path.name for path in evaluated.iterdir()} == {"report.html", "metrics.json"}
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) >= 20  # one picture under each change
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r'base64,[^"]*', "", page)


def test_the_report_tells_every_part(evaluated: Path) -> None:
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    for words in (
        *("balanced accuracy", "ROC AUC", "average precision", "Brier score"),
        *("expected calibration error", "Right and wrong answers", "reliability diagram of pets"),
        *("Other thresholds", "precision / recall", "Beside others", "taken for class cat"),
        *("turned by 30°", "fills a tenth of the frame", "infrared look", "JPEG of quality 20"),
        *("The worst mistakes", "network, one picture", "rooms", "Its balanced accuracy is"),
    ):
        assert words in page


def test_pictures_of_one_class_are_measured_too(weights_path: Path, tmp_path: Path) -> None:
    data = write_zip(tmp_path / "garden.zip", {"non-cat/pets-dog": 3})
    command = ["evaluate", str(weights_path), str(data), "--output", str(tmp_path / "report")]
    assert main([*command, "--robustness", "2"]) == 0
    results = results_of(tmp_path / "report")
    assert results["models"][0]["mean"] == {}
    assert results["models"][0]["sources"]["others"]["pictures"] == 3


def test_classifiers_of_other_classes_are_not_compared(
    folder: Path,
    weights_path: Path,
    classifier: Classifier,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "tom.safetensors"
    replace(classifier, class_names=("tom", "nobody")).save(other)
    command = ["evaluate", weights_path, folder, "--baseline", other, "--output", tmp_path / "r"]
    assert main([*map(str, command)]) == 1
    assert "tom.safetensors answers tom or nobody" in capsys.readouterr().err


# --- the test split -----------------------------------------------------------------------------


def test_a_folder_stands_for_the_split_that_is_asked_for(folder: Path) -> None:
    assert data_files([folder], test=False) == [folder / "cats-val.zip"]
    assert data_files([folder], test=True) == [folder / "cats-test.zip"]


@pytest.mark.parametrize(
    ("names", "test", "split"),
    [
        (["cats-val.zip", "mine"], False, "validation"),
        (["mine.zip"], False, "validation"),
        (["attestations.zip", "latest.zip"], False, "validation"),
        (["cats-train.zip", "train_catvnoncat.h5"], False, "training"),
        (["cats-test.zip", "test_catvnoncat.h5"], True, "test"),
        (["mine.zip"], True, "test"),
    ],
)
def test_the_split_is_told_by_the_names(names: list[str], test: bool, split: str) -> None:
    assert split_of([Path(name) for name in names], test=test) == split


@pytest.mark.parametrize(
    ("names", "test", "message"),
    [
        (["cats-test.zip"], False, "cats-test.zip is of the test split"),
        (["cats-val.zip", "test_catvnoncat.h5"], False, "test_catvnoncat.h5 is of the test split"),
        (["cats-test.zip", "web-val.zip"], True, "web-val.zip is of the validation split"),
        (["cats-train.zip"], True, "cats-train.zip is of the training split"),
        (["cats-train.zip", "cats-val.zip"], False, "cats-train.zip: training pictures"),
    ],
)
def test_splits_are_kept_apart(names: list[str], test: bool, message: str) -> None:
    with pytest.raises(Refused, match=re.escape(message)):
        split_of([Path(name) for name in names], test=test)


@pytest.fixture
def opening(folder: Path, weights_path: Path, tmp_path: Path) -> Callable[[Path], int]:
    def run(log: Path) -> int:
        command = ["evaluate", weights_path, folder, "--test", "--robustness", "0"]
        return main([*map(str, [*command, "--log", log, "--output", tmp_path / "report"])])

    return run


def test_opening_the_test_split_is_logged(
    opening: Callable[[Path], int], classifier: Classifier, tmp_path: Path
) -> None:
    log = tmp_path / "EXPERIMENTS.md"
    log.write_text("# What was tried\n\nMuch.\n", encoding="utf-8")
    assert opening(log) == 0
    results = results_of(tmp_path / "report")
    assert results["split"] == "test"
    log_opening(log, results, headlines(results))
    text = log.read_text(encoding="utf-8")
    assert text.startswith("# What was tried\n\nMuch.\n\n" + LOG_HEAD)
    one, again = text.partition(LOG_HEAD)[2].strip().splitlines()
    assert one == again
    auc = results["models"][0]["sources"]["pets"]["roc_auc"]
    for told in (classifier.version, "cats-test.zip", f"pets {auc:.3f}", results["date"]):
        assert told in one


def test_no_figure_is_told_that_could_not_be_logged(
    opening: Callable[[Path], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert opening(tmp_path) == 1  # a folder
    assert "AUC" not in capsys.readouterr().out
    assert not (tmp_path / "report").exists()


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
    assert kept["roc_auc"] == results_of(evaluated)["models"][0]["sources"]["pets"]["roc_auc"]
    assert after.version == before.version
    assert after.golden == before.golden
    assert path.stat().st_size < size + 10_000  # numbers of the same width
