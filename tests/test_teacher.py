"""Soft labels: read from a file, calibrated by source, mixed with the labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.network import sigmoid
from training import Refused
from training.data import PictureSet
from training.teacher import calibrated, read_teacher, soft_targets


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "teacher.npz", **arrays)
    return folder / "teacher.npz"


NAMES = np.array([b"cat/b.jpg", b"cat/a.jpg"])


def test_the_teacher_is_read_in_the_order_of_the_pictures(tmp_path: Path) -> None:
    logit = np.array([1.5, -2], np.float16)
    groups = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]], np.float16)
    path = npz(tmp_path, name=NAMES, logit=logit, group_probability=groups)
    teacher = read_teacher(path, ["cat/a.jpg", "cat/b.jpg"])
    np.testing.assert_array_equal(teacher.log_odds, [-2, 1.5])
    np.testing.assert_allclose(teacher.groups, [[0.3, 0.5], [0.1, 0.0]], atol=1e-3)
    path = npz(tmp_path, name=NAMES.astype(str), logit=logit)  # it may tell the class alone
    assert read_teacher(path, ["cat/a.jpg"]).groups.shape == (1, 0)


ONE, MANY = np.array([b"a"]), ["a", *(f"cat/{i}.jpg" for i in range(7))]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"name": ONE}, "has the arrays name; expected name and logit"),
        ({"name": ONE, "logit": np.array([1.0, 2.0])}, r"1 names, .* shape \(2,\)"),
        ({"name": ONE, "logit": np.array([1])}, "int64 .* floating-point"),
        ({"name": ONE, "logit": np.array([np.nan])}, "values are not finite"),
        ({"name": np.array([None]), "logit": np.ones(1)}, "is not a valid NPZ"),
        ({"name": ONE, "logit": np.ones(1)}, r"no entry for 7 of 8 .*: cat/0\.jpg, .*4\.jpg, …"),
    ],
)
def test_a_file_that_does_not_tell_of_each_picture_is_refused(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        read_teacher(tmp_path / "none.npz", MANY)
    with pytest.raises(Refused, match=message):
        read_teacher(npz(tmp_path, **arrays), MANY)


def test_each_source_is_calibrated_on_its_own_labels_or_if_of_one_class_on_all() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 3, 8000)
    labels = (rng.random(8000) < sigmoid(z)).astype(np.float32)
    sources = ["a" if i % 2 else "b" for i in range(8000)]
    in_a = np.array(sources) == "a"
    log_odds = np.where(in_a, z / 2 - 4, z * 3 + 5)  # scale and zero of their own
    probabilities = calibrated(log_odds, labels, sources)
    assert np.abs(probabilities - sigmoid(z)).max() < 0.06
    assert np.abs(sigmoid(log_odds) - sigmoid(z)).mean() > 0.2
    rooms = np.append(z, rng.normal(-4, 1, 500)), np.append(labels, np.zeros(500))
    probabilities = calibrated(*rooms, ["a"] * 8000 + ["rooms"] * 500)
    assert 0.001 < probabilities[8000:].mean() < 0.1  # not a blank 0


def test_targets_are_a_mix_of_label_and_teacher_beside_its_groups(tmp_path: Path) -> None:
    labels, names = np.array([1, 0, 1, 0], np.float32), [*"abcd"]
    logit, groups = np.array([2.0, -1, 0.5, 1]), np.full((4, 3), 0.25)
    path = npz(tmp_path, name=names, logit=logit, group_probability=groups)
    pixels, sides = np.zeros((4, 1, 1, 3), np.uint8), np.ones(4, np.int16)
    pictures = PictureSet(pixels, sides, labels, names, ["s"] * 4, ("cat", "non-cat"), [])
    for share in (0.25, 0.0):
        targets = soft_targets(path, pictures, share)
        assert targets.dtype == np.float32
        probabilities = calibrated(logit, labels, ["s"] * 4)
        expected = np.column_stack([(1 - share) * labels + share * probabilities, groups[:, 1:]])
        np.testing.assert_allclose(targets, expected, rtol=1e-6)
