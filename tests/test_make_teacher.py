"""The command that makes a teacher: what it sees, how it answers, and that it goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from benchmarks import teacher
from benchmarks.lite import Lite, not_installed
from model.preprocessing import Preprocessing
from tests.pictures import encode, zipped
from training.examples import read_teacher
from training.metrics import roc_auc


def test_every_class_of_imagenet_is_in_one_group() -> None:
    found = teacher.group_probabilities(1000 * np.eye(1000))
    np.testing.assert_array_equal(np.sort(found, axis=1)[:, -2:], [[0, 1]] * 1000)
    tabby, tiger, red_fox = 281, 292, 277
    groups = [[*teacher.GROUPS][place] for place in found[[tabby, tiger, red_fox]].argmax(axis=1)]
    assert groups == ["house cats", "big cats", "foxes"]


def test_no_picture_is_answered_by_a_regression_that_saw_its_label() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(np.array([1, 0], np.float32), 200)
    features = rng.standard_normal((400, 8)).astype(np.float32) * 10 + 3
    features[:, 0] += 25 * y
    folds, sources = np.arange(400) % 4, ["a" if i % 3 else "b" for i in range(400)]

    def answers(labels: Any) -> Any:
        order = np.random.default_rng(1)
        return teacher.out_of_fold(features, labels, sources, folds, order, steps=100)

    z = answers(y)
    assert roc_auc(y, z) > 0.93
    turned = answers(np.where(folds == 2, 1 - y, y))
    np.testing.assert_array_equal(turned[folds == 2], z[folds == 2])
    assert (turned[folds != 2] != z[folds != 2]).all()


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(256, size=(8, 8, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), "JPEG")


class Network:
    """In place of EfficientNet-Lite. It can see so many pictures, then it is stopped."""

    variant = "lite2"
    preprocessing = Preprocessing(side=8)

    def __init__(self, most: int) -> None:
        self.left = most

    def answers(self, pictures: Any) -> tuple[Any, Any]:
        self.left -= len(pictures)
        if self.left < 0:
            raise KeyboardInterrupt
        features = pictures.reshape(len(pictures), -1).astype(np.float32)
        return np.tile(features, (1, 6))[:, :1000], features


def seen(count: int, network: Network, folder: Path) -> Any:
    files: list[Callable[[], bytes]] = [lambda i=i: jpeg(i) for i in range(count)]  # type: ignore[misc]
    return teacher.see(files, cast(Lite, network), folder, at_once=4)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    stopped, other = tmp_path / "stopped", tmp_path / "other"
    stopped.mkdir()
    other.mkdir()
    with pytest.raises(KeyboardInterrupt):
        seen(14, Network(9), stopped)
    the_rest = Network(6)  # it had kept two times four
    found = seen(14, the_rest, stopped)
    assert the_rest.left == 0
    for one, unbroken in zip(found, seen(14, Network(14), other), strict=True):
        np.testing.assert_array_equal(one, unbroken)


def test_training_reads_what_the_command_writes(tmp_path: Path) -> None:
    if why := not_installed("lite0"):
        pytest.skip(why)
    names = [f"{'cat' if i % 2 else 'non-cat'}/a-{i}.jpg" for i in range(24)]
    data, output = tmp_path / "a-train.zip", tmp_path / "teacher.npz"
    data.write_bytes(zipped({name: jpeg(i) for i, name in enumerate(names)}))
    teacher.main([data], output, "lite0", threads=1)
    log_odds, groups = read_teacher(output, names)
    assert groups.shape == (24, len(teacher.GROUPS) - 1)
    assert len(np.unique(log_odds)) == 24
