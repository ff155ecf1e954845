"""The classifier and its file: what is saved is what is loaded, and nothing else is."""

import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from model import DEFAULT_WEIGHTS, artifact, classifier
from model import network as nn
from model.artifact import describe, pack, unpack
from model.classifier import BadArtifact, Classifier, Golden, InputStatistics
from model.convolution import Convolution
from model.network import Layer, Linear, parameters
from model.preprocessing import PictureReader, Preprocessing, read_picture, to_vector
from tests import pictures
from tests.data_folder import REPOSITORY
from training.golden import choose_golden

NAMES = ("cat", "non-cat")
BICUBIC = Image.Resampling.BICUBIC


def floats(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@cache
def smooth_weights(scale: float = 0.02) -> NDArray[np.float32]:
    """Weights (12288, 1) that vary slowly over the picture, as trained ones do."""
    planes = [Image.fromarray(plane).resize((64, 64), BICUBIC) for plane in floats(3, 8, 8)]
    return np.stack([*map(np.asarray, planes)], axis=-1).reshape(-1, 1) * np.float32(scale)


def logistic(bias: float = 0.1, scale: float = 0.02) -> Classifier:
    layer = Linear(smooth_weights(scale).copy(), np.array([bias], np.float32))
    golden = (Golden(pictures.turned(6), 0.0),)
    return Classifier("test", NAMES, 0.5, [layer], golden=golden)


def deep() -> Classifier:
    """A small network with a layer of every kind."""
    layers: list[Layer] = [
        nn.Standardise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        Convolution(floats(5, 5, 3, 4), floats(4), stride=2),
        nn.Relu(),
        nn.MaxPool(),
        nn.Residual([Convolution(floats(3, 3, 4, 4) / 9, floats(4)), nn.Relu()]),
        nn.GlobalAverage(),
        Linear(floats(4, 1), floats(1)),
    ]
    return replace(logistic(), layers=layers)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def test_the_probability_is_the_networks_for_the_preprocessed_picture() -> None:
    tested = logistic()
    prediction = tested.predict(pictures.turned(6))
    x = to_vector(read_picture(pictures.turned(6)).pixels).astype(np.float64)
    z = x @ tested.layers[0].parameters["weights"][:, 0].astype(np.float64) + 0.1
    assert prediction.cat_probability == pytest.approx(1 / (1 + np.exp(-z)), abs=1e-5)
    assert prediction.warnings == ("it was rotated upright, following its EXIF orientation",)


@pytest.mark.parametrize(("shift", "label"), [(-1e-9, "cat"), (0, "cat"), (1e-9, "non-cat")])
def test_from_the_threshold_on_the_label_is_the_first_class(shift: float, label: str) -> None:
    probability = logistic().predict(pictures.picture()).cat_probability
    tested = replace(logistic(), threshold=probability + shift)
    assert tested.predict(pictures.picture()).label == label


def test_probabilities_have_words_and_only_not_sure_stands_on_both_sides_of_the_threshold() -> None:
    no, maybe, yes = "no cat, quite sure", "not sure", "cat, quite sure"
    found = [logistic().words(p) for p in (0.0, 0.0999, 0.1, 0.4, 0.5, 0.7, 0.9, 1.0)]
    assert found == [no, no, "no cat, probably", maybe, maybe, "cat, probably", yes, yes]
    words = [words for _, words in replace(logistic(), class_names=("fox", "badger")).bands]
    assert (words[0], words[-1]) == ("badger, quite sure", "fox, quite sure")
    for threshold in (1e-6, 0.2, 0.31, 0.5, 0.99, 1 - 1e-6):
        starts = [start for start, _ in replace(logistic(), threshold=threshold).bands]
        assert starts == sorted(set(starts))
        assert starts[2] < threshold < starts[3]


@pytest.mark.parametrize("make", [logistic, deep])
def test_what_is_loaded_is_what_was_saved(make: Callable[[], Classifier], path: Path) -> None:
    metadata = {"seed": 7, "training": {"rate": 0.005}, "metrics": {"accuracy": 0.7, "n": None}}
    original = replace(make(), threshold=0.37, metadata=metadata)
    saved, loaded = original.save(path), Classifier.load(path)
    for each in (saved, loaded):
        assert (each.name, each.class_names, each.threshold) == ("test", NAMES, 0.37)
        assert (each.metadata, each.preprocessing) == (metadata, Preprocessing())
        assert json.dumps(describe(each.layers)) == json.dumps(describe(original.layers))
        assert each.version == saved.version
    data = pictures.picture()
    assert loaded.predict(data).cat_probability == original.predict(data).cat_probability


def test_the_same_content_is_the_same_bytes_in_every_process(path: Path) -> None:
    logistic().save(path)
    before = path.read_bytes()
    code = "import sys; from tests.test_classifier import logistic; logistic().save(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=REPOSITORY, check=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("make", [logistic, deep])
def test_half_precision_is_half_the_size(make: Callable[[], Classifier], path: Path) -> None:
    original = make()
    full, half = original.save(path), original.save(path.with_name("half"), "float16")
    assert path.with_name("half").stat().st_size < path.stat().st_size
    for golden in half.golden:
        assert golden.probability == half.predict(golden.picture).cat_probability
    for name, value in parameters(half.layers).items():
        expected = parameters(full.layers)[name]
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "dtype", "what"),
    [
        ({"layers": [Linear(np.full((12288, 1), np.nan), np.zeros(1))]}, "float32", "0.weights"),
        ({"layers": [Linear(np.full((12288, 1), 1e5), np.zeros(1))]}, "float16", "not finite"),
        ({"golden": ()}, "float32", "no golden picture"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(
    change: dict[str, Any], dtype: Any, what: str, path: Path
) -> None:
    with pytest.raises(BadArtifact, match=f"not written.*{what}"):
        replace(logistic(), **change).save(path, dtype)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("moment", [(os, "fsync"), (Path, "replace")])
@pytest.mark.parametrize(
    "what", [KeyboardInterrupt(), OSError(5, "Input/output error"), OSError("no number")]
)
def test_an_interrupted_save_leaves_the_old_file_and_no_other(
    path: Path, moment: tuple[object, str], what: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    logistic().save(path)
    before = path.read_bytes()
    monkeypatch.setattr(*moment, Mock(side_effect=what))
    with pytest.raises(type(what)) as stopped:
        logistic(bias=1).save(path)
    if isinstance(stopped.value, OSError):
        assert stopped.value.filename == str(path)
        assert f"{stopped.value.strerror}" in str(what)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_save_keeps_permissions_links_and_pipes_as_they_are(tmp_path: Path, path: Path) -> None:
    previous = os.umask(0o027)
    try:
        logistic().save(path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    link, pipe = tmp_path / "current", tmp_path / "pipe"
    link.symlink_to(path.name)
    saved = logistic(bias=1).save(link)
    assert link.is_symlink()
    assert Classifier.load(path).version == saved.version
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file"):
        logistic().save(pipe)
    assert pipe.is_fifo()


def refused(path: Path) -> str:
    with pytest.raises(BadArtifact) as caught:
        Classifier.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith("train one with `python -m training`.")
    return message


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, path: Path) -> None:
    assert "No such file" in refused(path)
    assert "directory" in refused(tmp_path)
    assert "not a regular file" in refused(Path("/dev/zero"))
    with path.open("wb") as file:
        file.truncate(artifact.MAX_BYTES + 1)  # sparse: takes no room
    assert "too many" in refused(path)
    for content in (
        *(b"", bytes(100), b"random text, long enough for a header length" * 10),
        *(struct.pack("<Q", size) + b"[" * 20_000 for size in (2, 20_000, 200_000_000, 2**63)),
        struct.pack("<Q", 21) + b'{"__metadata__":"text',
    ):
        path.write_bytes(content)
        refused(path)
    for dtype, metadata, words in (
        (np.float32, None, "not a weights file of format version 2"),
        (np.float32, {"format_version": "1"}, "not a weights file of format version 2"),
        (np.float32, {"values": "pt"}, "not JSON"),
        (np.float64, None, "stored as float64, expected float32 or float16"),
    ):
        safetensors.numpy.save_file({"a": np.zeros(3, dtype)}, path, metadata)
        assert words in refused(path)


Change = Callable[[dict[str, Any], dict[str, Any]], object]  # of a file's values and tensors
CHANGES: Sequence[tuple[Change | dict[str, Any], str]] = [  # and what is said
    ({"format_version": 1}, "format version is 1, and this code reads 2"),
    ({"name": "cat\nERROR"}, "printable"),
    ({"name": "cat" * 100}, "at most 80"),
    ({"class_names": ["cat", "\x1b[2J"]}, "printable"),
    *(({"class_names": names}, "class_names") for names in (["cat"], ["cat", "cat"], [1, 2])),
    *(({"threshold": value}, "threshold") for value in (0.0, 1.0, "0.5", None)),
    ({"threshold": float("nan")}, "not JSON"),
    ({"data": {"pictures": float("inf")}}, "not JSON"),
    ({"architecture": "linear"}, "cannot be used"),
    ({"preprocessing": {"side": 64}}, "preprocessing must"),
    ({"views": None}, "views must"),
    (lambda v, _: v.pop("views"), "views must"),
    (lambda v, _: v.pop("preprocessing"), "preprocessing must"),
    (
        {"views": pictures.SIX.to_json() | {"weights": [1] * 6}},
        "views must have boxes, unsure and mirror",
    ),
    *(({"golden": value}, "golden") for value in (None, [], [None])),
    (lambda v, _: v["preprocessing"].update(filter="nearest"), "filter"),
    (lambda v, _: v["preprocessing"].update(gamma=2), "gamma"),
    (lambda v, _: v["preprocessing"].update(fit="crop"), "preprocessing must"),
    (lambda v, _: v["preprocessing"].update(side=0), "preprocessing must"),
    (lambda v, _: v["preprocessing"].update(side=32), "not run"),
    (lambda v, _: v["architecture"][0].pop("mean"), "mean"),
    (lambda v, _: v["architecture"][1].update(dilation=2), "dilation"),
    (lambda v, _: v["architecture"][4]["layers"][0].update(kind="magic"), "unknown kind: 'magic'"),
    (lambda v, t: v.update(architecture=[t.popitem() for _ in [*t]][:0]), "not run"),
    (lambda _, t: t.pop("4.0.weights"), "weights"),
    (lambda _, t: t.update({"9.w": floats(1)}), "9.w"),
    (lambda _, t: t.update({"6.weights": floats(3, 1)}), "not run"),
    (lambda _, t: t.update({"6.weights": floats(4, 2)}), "not run"),
    (lambda _, t: t["6.weights"].__setitem__(3, np.inf), "not finite"),
    (lambda _, t: t["6.weights"].__imul__(1.1), "differently"),
    (lambda v, _: v["golden"][0].update(picture="*"), "base64"),
    (lambda v, _: v["golden"][0].update(picture="YWJj"), "cannot be read"),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=map(str, range(len(CHANGES))))
def test_a_file_with_something_wrong_is_refused_with_what(
    path: Path, change: Change | dict[str, Any], expected: str
) -> None:
    deep().save(path)
    values, tensors = unpack(path.read_bytes())
    if callable(change):
        change(values, tensors)
    else:
        values.update(change)
    path.write_bytes(pack(values, tensors))
    assert expected in refused(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_anywhere_is_refused_or_changes_nothing_that_matters(
    tmp_path_factory: pytest.TempPathFactory, choose: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    good = folder / "good.safetensors"
    if not good.exists():
        deep().save(good)
    data = bytearray(good.read_bytes())
    if choose.draw(st.booleans()):
        del data[choose.draw(st.integers(0, len(data) - 1)) :]
    else:
        at = choose.draw(st.integers(0, 1500) | st.integers(0, len(data) - 1))
        data[at] = choose.draw(st.integers(0, 255))
    damaged = folder / "damaged.safetensors"
    damaged.write_bytes(data)
    try:
        loaded = Classifier.load(damaged)
    except BadArtifact:
        return
    for golden in loaded.golden:
        found = loaded.predict(golden.picture).cat_probability
        assert found == pytest.approx(golden.probability, abs=1e-3)


@pytest.fixture(scope="module")
def golden_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a classifier with golden pictures that were chosen for it."""
    path = tmp_path_factory.mktemp("golden") / "logistic"
    weights = np.random.default_rng(1).normal(0.001, 0.01, (12288, 1)).astype(np.float32)
    tested = replace(logistic(), layers=[Linear(weights, np.full(1, -5, np.float32))])
    replace(tested, golden=choose_golden(tested, np.random.default_rng(3))).save(path)
    return path


def test_golden_pictures_are_small_photos_that_are_to_be_turned(golden_file: Path) -> None:
    golden = Classifier.load(golden_file).golden
    assert len(golden) == 3
    for each in golden:
        image = pictures.decode(each.picture)
        assert image.getexif()[0x0112] == 6
        assert image.width != image.height
        assert len(each.picture) < 20_000


SQUARE = (64, 64)
Patch = Callable[[pytest.MonkeyPatch], None]


def specification_is(**changed: Any) -> Patch:
    return lambda patch: patch.setattr(
        Preprocessing, "from_json", lambda _: Preprocessing(**changed)
    )


def reader_is(read: Callable[[bytes, NDArray[np.uint8]], Any]) -> Patch:
    """A code whose reader makes these pixels of a file, and of those that are right."""

    class Reader(PictureReader):
        def __init__(self, data: bytes, *others: Any) -> None:
            super().__init__(data, *others)
            pixels = np.ascontiguousarray(read(data, self.picture.pixels))
            self.picture = replace(self.picture, pixels=pixels)

    return lambda patch: patch.setattr(classifier, "PictureReader", Reader)


def squeeze_is(resize: Callable[[Image.Image], Image.Image]) -> Patch:
    """A code that decodes right and then does something else."""
    return reader_is(lambda data, _: resize(ImageOps.exif_transpose(pictures.decode(data))))


def vector_is(scale: Callable[[NDArray[np.uint8]], NDArray[np.floating[Any]]]) -> Patch:
    def vector(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return scale(pixels).reshape(len(pixels), -1).astype(np.float32)

    return lambda patch: patch.setattr(classifier, "to_vector", vector)


WRONG: Mapping[str, Patch] = {
    "box": specification_is(filter="box"),
    "decoded whole": specification_is(reducing_gap=None),
    "centre crop": squeeze_is(lambda image: ImageOps.fit(image, SQUARE)),
    "letterbox": squeeze_is(lambda image: ImageOps.pad(image, SQUARE)),
    "orientation not read": reader_is(lambda _, right: np.rot90(right)),
    "mirrored": reader_is(lambda _, right: right[:, ::-1]),
    "blue first": reader_is(lambda _, right: right[..., ::-1]),
    "channels first": vector_is(lambda pixels: pixels.transpose(0, 3, 1, 2) / 255),
    "scaled to [-1, 1]": vector_is(lambda pixels: pixels / 127.5 - 1),
    "divided by 256": vector_is(lambda pixels: pixels / 256),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_code_that_preprocesses_differently_refuses_the_file(
    mistake: str, golden_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRONG[mistake](monkeypatch)
    assert "differently" in refused(golden_file)
    if mistake not in ("mirrored", "divided by 256"):
        # What ships looks in the mirror too; and of 256 for 255 not every picture tells
        assert "differently" in refused(DEFAULT_WEIGHTS)


def noise(seed: int, low: int = 0, high: int = 256) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(low, high, (64, 64, 3)).astype(np.uint8)


def test_the_numbers_are_what_their_definitions_say() -> None:
    for pixels in (noise(1), noise(2, 90, 110), noise(3)[:16, :16]):
        grey = pixels.astype(np.float64).mean(-1)
        spread = pixels.max(-1).astype(int) - pixels.min(-1)
        steps = np.concatenate([np.diff(grey, axis=axis).ravel() for axis in (0, 1)])
        expected = [grey.mean(), grey.std(), spread.mean(), np.abs(steps).mean()]
        assert classifier.statistics(pixels) == pytest.approx(expected, rel=1e-4)


def test_usual_pictures_are_about_one_deviation_away_and_others_far() -> None:
    usual = InputStatistics.of(noise(seed, 50, 200) for seed in range(200))
    distances = [usual.distance(noise(seed, 50, 200)) for seed in range(200)]
    assert np.sqrt(np.mean(np.square(distances))) == pytest.approx(1, abs=1e-6)
    assert usual.distance(np.full((64, 64, 3), 255, np.uint8)) > 10
    alike = InputStatistics.of([noise(9)] * 3)
    assert np.isfinite(alike.distance(noise(1)))


def test_an_artifact_keeps_them() -> None:
    usual = InputStatistics.of(noise(seed) for seed in range(9))
    metadata = json.loads(json.dumps({classifier.INPUT_STATISTICS: usual.to_json()}))
    kept = InputStatistics.from_metadata(metadata)
    assert kept
    assert kept.distance(noise(77)) == usual.distance(noise(77))
    metadata[classifier.INPUT_STATISTICS]["names"].reverse()  # numbers of a later version
    assert InputStatistics.from_metadata(metadata) is None
    assert InputStatistics.from_metadata({}) is None
