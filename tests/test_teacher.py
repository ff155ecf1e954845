"""Soft labels: read from a CSV, calibrated by source, mixed with the labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.network import sigmoid
from training import Refused
from training.teacher import calibrated, read_teacher, soften


def table(folder: Path, text: str) -> Path:
    path = folder / "teacher.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_log_odds_come_in_the_order_of_the_pictures(tmp_path: Path) -> None:
    path = table(tmp_path, "name,cat_log_odds,more\ncat/b.jpg,1.5,x\ncat/a.jpg,-2,y\n")
    np.testing.assert_array_equal(read_teacher(path, ["cat/a.jpg", "cat/b.jpg"]), [-2, 1.5])


def test_an_npz_of_names_and_logits_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "teacher.npz"
    names, logits = np.array([b"cat/b.jpg", b"cat/a.jpg"]), np.array([1.5, -2], np.float16)
    np.savez(path, name=names, logit=logits)
    np.testing.assert_array_equal(read_teacher(path, ["cat/a.jpg", "cat/b.jpg"]), [-2, 1.5])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"name": np.array([b"a"])}, "has the arrays name; expected name and logit"),
        ({"name": np.array([b"a"]), "logit": np.array([1.0, 2.0])}, "one floating-point number"),
        ({"name": np.array([b"a"]), "logit": np.array([np.nan])}, "the logit of a is no number"),
        ({"name": np.array([None]), "logit": np.array([1.0])}, "is no NPZ of names and numbers"),
    ],
)
def test_an_npz_that_holds_something_else_is_refused(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "teacher.npz", **arrays)
    with pytest.raises(Refused, match=message):
        read_teacher(tmp_path / "teacher.npz", ["a"])


def test_pictures_that_it_lacks_are_counted_and_named(tmp_path: Path) -> None:
    path = table(tmp_path, "name,cat_log_odds\ncat/a.jpg,1\n")
    names = ["cat/a.jpg", *(f"cat/{i}.jpg" for i in range(7))]
    with pytest.raises(Refused, match=r"no log-odds for 7 of 8 .*: cat/0\.jpg, .*cat/4\.jpg, …"):
        read_teacher(path, names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,odds\na,1\n", "has the columns picture, odds; expected name and cat_log_odds"),
        ("", r"has the columns \(none\)"),
        ("name,cat_log_odds\na,1\nb,much\n", "line 3: 'much' is not a number"),
        ("name,cat_log_odds\na,nan\n", "line 2: 'nan' is not a number"),
        ("name,cat_log_odds\na\n", "line 2: None is not a number"),
    ],
)
def test_what_is_no_such_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=message):
        read_teacher(table(tmp_path, text), ["a"])


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        read_teacher(tmp_path / "none.csv", ["a"])
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(Refused, match="is no CSV"):
        read_teacher(tmp_path / "binary.csv", ["a"])


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
