"""Soft labels: read from a file, calibrated by source, mixed with the labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.network import sigmoid
from training import Refused
from training.teacher import calibrated, read_teacher, soften


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "teacher.npz", **arrays)
    return folder / "teacher.npz"


NAMES = np.array([b"cat/b.jpg", b"cat/a.jpg"])


def test_the_teacher_is_read_in_the_order_of_the_pictures(tmp_path: Path) -> None:
    groups = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]], np.float16)
    path = npz(
        tmp_path, name=NAMES, logit=np.array([1.5, -2], np.float16), group_probability=groups
    )
    teacher = read_teacher(path, ["cat/a.jpg", "cat/b.jpg"])
    np.testing.assert_array_equal(teacher.log_odds, [-2, 1.5])
    np.testing.assert_allclose(teacher.groups, [[0.3, 0.5], [0.1, 0.0]], atol=1e-3)


def test_a_teacher_may_tell_the_class_alone(tmp_path: Path) -> None:
    path = npz(tmp_path, name=NAMES.astype(str), logit=np.array([1.5, -2]))
    assert read_teacher(path, ["cat/a.jpg"]).groups.shape == (1, 0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"name": np.array([b"a"])}, "has the arrays name; expected name and logit"),
        ({"name": np.array([b"a"]), "logit": np.array([1.0, 2.0])}, r"1 names, .* shape \(2,\)"),
        ({"name": np.array([b"a"]), "logit": np.array([1])}, "int64 .* floating-point"),
        ({"name": np.array([b"a"]), "logit": np.array([np.nan])}, "is no number"),
        ({"name": np.array([None]), "logit": np.array([1.0])}, "is no NPZ of names and numbers"),
    ],
)
def test_an_npz_that_holds_something_else_is_refused(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=message):
        read_teacher(npz(tmp_path, **arrays), ["a"])


def test_pictures_that_it_lacks_are_counted_and_named(tmp_path: Path) -> None:
    names = ["cat/a.jpg", *(f"cat/{i}.jpg" for i in range(7))]
    with pytest.raises(Refused, match=r"nothing of 7 of 8 .*: cat/0\.jpg, .*cat/4\.jpg, …"):
        read_teacher(npz(tmp_path, name=NAMES, logit=np.zeros(2)), names)


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        read_teacher(tmp_path / "none.npz", ["a"])
    (tmp_path / "table.csv").write_text("name,logit\na,1\n")
    with pytest.raises(Refused, match="is no NPZ"):
        read_teacher(tmp_path / "table.csv", ["a"])


def test_each_source_is_calibrated_on_its_own_labels() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 3, 8000)
    labels = (rng.random(8000) < sigmoid(z)).astype(np.float32)
    sources = ["a" if i % 2 else "b" for i in range(8000)]
    in_a = np.array(sources) == "a"
    log_odds = np.where(in_a, z / 2 - 4, z * 3 + 5)  # scale and zero of their own
    probabilities = calibrated(log_odds, labels, sources)
    assert np.abs(probabilities - sigmoid(z)).max() < 0.06
    uncalibrated = sigmoid(log_odds)
    assert np.abs(uncalibrated - sigmoid(z)).mean() > 0.2


def test_a_source_of_one_class_is_calibrated_with_the_others() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(0, 3, 3000)
    labels = (rng.random(3000) < sigmoid(z)).astype(np.float32)
    rooms = rng.normal(-4, 1, 500)
    log_odds = np.concatenate([z, rooms])
    every_label = np.concatenate([labels, np.zeros(500, np.float32)])
    probabilities = calibrated(log_odds, every_label, ["a"] * 3000 + ["rooms"] * 500)
    assert 0.001 < probabilities[3000:].mean() < 0.1  # not a blank 0


def test_targets_are_a_mix_of_label_and_teacher() -> None:
    labels, probabilities = np.array([1.0, 0.0], np.float32), np.array([0.6, 0.1])
    targets = soften(labels, probabilities, 0.25)
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, [0.9, 0.025])
    np.testing.assert_array_equal(soften(labels, probabilities, 0), labels)
