"""The command that makes a teacher: what it sees, how it answers, and that it goes on."""

import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from benchmarks import teacher
from benchmarks.lite import Lite, not_installed
from model.preprocessing import Preprocessing
from training.metrics import roc_auc
from training.teacher import read_teacher


@pytest.mark.parametrize(
    ("number", "group"),
    [
        (281, "house cats"),  # tabby
        (292, "big cats"),  # tiger
        (277, "foxes"),  # red fox
        (101, "hoofed, elephants"),  # tusker
        (8, "birds"),  # hen
        (999, "things"),  # toilet tissue
    ],
)
def test_a_class_of_imagenet_counts_for_its_group(number: int, group: str) -> None:
    logits = np.zeros((1, 1000))
    logits[0, number] = 50
    [found] = teacher.group_probabilities(logits)
    assert found[list(teacher.GROUPS).index(group)] == pytest.approx(1)


def test_every_class_of_imagenet_is_in_one_group() -> None:
    found = teacher.group_probabilities(1000 * np.eye(1000))
    np.testing.assert_array_equal(np.sort(found, axis=1)[:, -2:], [[0, 1]] * 1000)


def test_the_name_alone_decides_on_the_fold() -> None:
    assert [teacher.fold_of(f"cat/pets-cat-{i:05}.jpg") for i in range(6)] == [2, 1, 2, 1, 0, 1]
    counts = np.bincount([teacher.fold_of(f"non-cat/web-{i}.jpg") for i in range(4000)])
    assert len(counts) == 4
    assert counts.min() > 900


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
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


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
    with pytest.raises(KeyboardInterrupt):
        seen(14, Network(9), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # of four pictures each
    network = Network(6)  # the rest
    features, groups = seen(14, network, tmp_path)
    assert network.left == 0
    (tmp_path / "other").mkdir()
    whole_features, whole_groups = seen(14, Network(14), tmp_path / "other")
    np.testing.assert_array_equal(features, whole_features)
    np.testing.assert_array_equal(groups, whole_groups)
    assert features.shape == (14, 192)


def test_other_pictures_of_the_same_names_are_seen_anew(tmp_path: Path) -> None:
    seen(4, Network(4), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        teacher.see([lambda: jpeg(99)] * 4, cast(Lite, Network(0)), tmp_path, at_once=4)


def test_training_reads_what_the_command_writes(tmp_path: Path) -> None:
    if why := not_installed("lite0"):
        pytest.skip(why)
    names = [f"{'cat' if i % 2 else 'non-cat'}/a-{i}.jpg" for i in range(24)]
    with zipfile.ZipFile(tmp_path / "a-train.zip", "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, jpeg(i))
    output = tmp_path / "teacher.npz"
    teacher.main([tmp_path / "a-train.zip"], output, "lite0", threads=1)
    found = read_teacher(output, names)
    assert found.groups.shape == (24, len(teacher.GROUPS) - 1)
    assert len(np.unique(found.log_odds)) == 24
