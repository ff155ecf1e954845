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

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from model import artifact, classifier, preprocessing
from model.artifact import pack, unpack
from model.classifier import BadArtifact, Classifier, Golden, default_weights
from model.network import GlobalAverage, Layer, Linear, MaxPool, Relu, Standardise
from model.preprocessing import (
    Filter,
    InvalidImage,
    PictureReader,
    Preprocessing,
    read_picture,
    to_vector,
)
from tests import pictures
from tests.data_folder import REPOSITORY

NAMES = ("cat", "non-cat")


def smooth_weights(seed: int, cells: int = 8, scale: float = 0.02) -> NDArray[np.float32]:
    """Weights (12288, 1) that vary slowly over the picture, as trained ones do."""
    rng = np.random.default_rng(seed)
    planes = [rng.normal(size=(cells, cells)).astype(np.float32) for _ in range(3)]
    upscaled = [
        np.asarray(Image.fromarray(plane).resize((64, 64), Image.Resampling.BICUBIC))
        for plane in planes
    ]
    return (np.stack(upscaled, axis=-1).reshape(-1, 1) * scale).astype(np.float32)


PHOTOS = ("cat", "coffee", "rocket")


@cache
def golden_photos() -> tuple[Golden, ...]:
    """Small photos, none of a square, to be turned, and of odd sides: there roundings show."""
    photos = [Image.open(REPOSITORY / "examples" / f"{name}.jpg") for name in PHOTOS]
    return tuple(
        Golden(pictures.encode(photo.resize((287, 261)), "JPEG", exif=pictures.exif(6)), 0.0)
        for photo in photos
    )


def logistic(seed: int = 0, **options: Any) -> Classifier:
    layer = Linear(smooth_weights(seed, **options), np.array([0.1], np.float32))
    return Classifier("test", NAMES, 0.5, [layer], golden=golden_photos())


def deep(seed: int = 0) -> Classifier:
    """A small network of other layers than one linear one."""
    rng = np.random.default_rng(seed)
    layers: list[Layer] = [
        Standardise([0.5, 0.5, 0.5], [0.25, 0.25, 0.25]),
        MaxPool(),
        MaxPool(),
        Relu(),
        GlobalAverage(),
        Linear(rng.normal(size=(3, 8)).astype(np.float32), np.zeros(8, np.float32)),
        Relu(),
        Linear(rng.normal(size=(8, 1)).astype(np.float32), np.zeros(1, np.float32)),
    ]
    return replace(logistic(), layers=layers)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


@pytest.fixture(scope="module")
def golden_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a classifier that is unsure of its golden pictures, as chosen ones are."""
    path = tmp_path_factory.mktemp("golden") / "logistic"
    unsure(logistic(5, cells=32)).save(path)
    return path


def unsure(tested: Classifier) -> Classifier:
    """The same with the logits of its golden pictures moved and scaled to mean 0, deviation 1."""
    z = tested.logits([tested.read(golden.picture) for golden in tested.golden], "one")
    last = tested.layers[-1].parameters
    last["bias"][...] = (last["bias"] - z.mean()) / z.std()
    last["weights"][...] /= z.std()
    return tested


# --- Predicting ----------------------------------------------------------------------------------


def test_the_probability_is_the_networks_for_the_preprocessed_picture() -> None:
    tested = logistic()
    prediction = tested.predict(pictures.turned(6))
    x = to_vector(read_picture(pictures.turned(6)).pixels).astype(np.float64)
    z = x @ tested.layers[0].parameters["weights"][:, 0].astype(np.float64) + 0.1
    assert prediction.cat_probability == pytest.approx(1 / (1 + np.exp(-z)), abs=1e-5)
    assert prediction.warnings == ("it was turned upright as its EXIF orientation says",)
    assert prediction.picture.width == 160


@pytest.mark.parametrize(("shift", "label"), [(-1e-9, "cat"), (0, "cat"), (1e-9, "non-cat")])
def test_from_the_threshold_on_the_label_is_the_first_class(shift: float, label: str) -> None:
    probability = logistic().predict(pictures.picture()).cat_probability
    tested = replace(logistic(), threshold=probability + shift)
    assert tested.predict(pictures.picture()).label == label


def test_what_is_no_picture_is_refused_as_such() -> None:
    with pytest.raises(InvalidImage):
        logistic().predict(b"no picture")


# --- Words for probabilities ---------------------------------------------------------------------


def test_probabilities_have_words_of_the_names_of_the_classes() -> None:
    no, maybe, yes = "no cat, quite sure", "not sure", "cat, quite sure"
    found = [logistic().words(p) for p in (0.0, 0.0999, 0.1, 0.4, 0.5, 0.7, 0.9, 1.0)]
    assert found == [no, no, "no cat, probably", maybe, maybe, "cat, probably", yes, yes]
    words = [band.words for band in replace(logistic(), class_names=("fox", "badger")).bands]
    assert (words[0], words[-1]) == ("badger, quite sure", "fox, quite sure")


@pytest.mark.parametrize("threshold", [1e-6, 0.2, 0.31, 0.5, 0.99, 1 - 1e-6])
def test_only_not_sure_stands_on_both_sides_of_the_threshold(threshold: float) -> None:
    starts = [band.start for band in replace(logistic(), threshold=threshold).bands]
    assert starts == sorted(set(starts))
    assert starts[2] < threshold < starts[3]


# --- Saving and loading --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [logistic, deep])
def test_what_is_loaded_is_what_was_saved(make: Callable[[], Classifier], path: Path) -> None:
    metadata = {"seed": 7, "training": {"rate": 0.005}, "metrics": {"accuracy": 0.7, "n": None}}
    original = replace(make(), threshold=0.37, metadata=metadata)
    saved, loaded = original.save(path), Classifier.load(path)
    for each in (saved, loaded):
        assert (each.name, each.class_names, each.threshold) == ("test", NAMES, 0.37)
        assert each.metadata == metadata
        assert each.preprocessing == Preprocessing()
    assert saved.version == loaded.version
    assert len(loaded.version) == 12
    data = pictures.picture()
    assert loaded.predict(data).cat_probability == original.predict(data).cat_probability


def test_other_programs_read_the_file_as_safetensors(path: Path) -> None:
    logistic().save(path)
    with safetensors.safe_open(path, "np") as file:
        values = json.loads(file.metadata()["values"])
        assert (values["class_names"], values["format_version"]) == (list(NAMES), 1)
        np.testing.assert_array_equal(file.get_tensor("0.weights"), smooth_weights(0))


def test_a_file_of_a_text_for_each_value_is_read_as_before(path: Path) -> None:
    logistic().save(path)
    values, tensors = unpack(path.read_bytes())
    values["golden"] = values["golden"][0]  # and of one golden picture
    values["bands"] = []  # and of words of its own
    path.write_bytes(pack(values, tensors))
    saved = Classifier.load(path)
    texts = {key: json.dumps(value) for key, value in values.items()}
    safetensors.numpy.save_file(tensors, path, texts)
    assert Classifier.load(path).version == saved.version
    assert Classifier.load(path).metadata == {}


def in_another_process(code: str, path: Path) -> int:
    begin = "import os, signal, sys; from tests.test_classifier import logistic;"
    command = [sys.executable, "-c", begin + code, str(path)]
    return subprocess.run(command, cwd=REPOSITORY, check=False).returncode


def test_the_same_content_is_the_same_bytes_in_every_process(path: Path) -> None:
    logistic().save(path)
    before = path.read_bytes()
    path.unlink()
    assert in_another_process("logistic().save(sys.argv[1])", path) == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("make", [logistic, deep])
def test_half_precision_is_half_the_size_and_its_own_golden(
    make: Callable[[], Classifier], path: Path
) -> None:
    original = make()
    full, half = original.save(path), original.save(path.with_name("half"), "float16")
    assert path.with_name("half").stat().st_size < path.stat().st_size
    for golden in half.golden:
        assert golden.probability == half.predict(golden.picture).cat_probability
    weights = half.layers[-1].parameters["weights"]
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, full.layers[-1].parameters["weights"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numbers_that_are_not_finite_are_not_saved(dtype: Any, path: Path) -> None:
    weights = smooth_weights(0)
    weights[5] = 1e5 if dtype == "float16" else np.nan
    with pytest.raises(BadArtifact, match=r"not written.*0\.weights.*not finite"):
        replace(logistic(), layers=[Linear(weights, np.zeros(1, np.float32))]).save(path, dtype)
    assert list(path.parent.iterdir()) == []


def test_a_classifier_without_a_golden_picture_is_not_saved(path: Path) -> None:
    with pytest.raises(BadArtifact, match="no golden picture"):
        replace(logistic(), golden=()).save(path)


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file"):
        logistic().save(pipe)
    assert pipe.is_fifo()


@pytest.mark.parametrize("moment", [(os, "fsync"), (Path, "replace")])
@pytest.mark.parametrize("what", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_an_interrupted_save_leaves_the_old_file_and_no_other(
    path: Path,
    moment: tuple[object, str],
    what: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logistic().save(path)
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise what

    monkeypatch.setattr(*moment, interrupt)
    with pytest.raises(type(what)):
        logistic(seed=1).save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_file_has_the_permissions_of_the_user_and_a_link_to_it_stays_one(
    tmp_path: Path, path: Path
) -> None:
    previous = os.umask(0o027)
    try:
        logistic().save(path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    link = tmp_path / "current"
    link.symlink_to(path.name)
    saved = logistic(seed=1).save(link)
    assert link.is_symlink()
    assert Classifier.load(path).version == saved.version


# --- What is refused -----------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(BadArtifact) as caught:
        Classifier.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith("train one with `python -m training`.")
    return message


def test_what_is_no_file_is_named(tmp_path: Path, path: Path) -> None:
    assert "No such file" in refused(path)
    assert "directory" in refused(tmp_path)
    assert "not a regular file" in refused(Path("/dev/zero"))
    with path.open("wb") as file:
        file.truncate(artifact.MAX_BYTES + 1)  # sparse: takes no room
    assert "too many" in refused(path)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\0", bytes(100), b"random text, long enough for a header length" * 10),
        *(struct.pack("<Q", size) + b"{}" for size in (2, 2**63)),
        struct.pack("<Q", 200_000_000) + b"{" * 500,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 21) + b'{"__metadata__":"text',
        struct.pack("<Q", 20_000) + b"[" * 20_000,
        pictures.picture("JPEG"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path)


def test_weights_of_something_else_are_refused(path: Path) -> None:
    safetensors.numpy.save_file({"a": np.zeros(3)}, path)
    refused(path)
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    assert "no classifier of this project" in refused(path)
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path, {"format": "pt"})
    assert "not JSON" in refused(path)


VALUES: Sequence[tuple[dict[str, Any], str]] = [  # that a file has instead, and what is said
    ({"format_version": 2}, "format version is 2"),
    ({"name": "cat\nERROR"}, "printable"),
    ({"name": "cat" * 100}, "at most 80"),
    ({"name": ""}, "name"),
    ({"class_names": ["cat", "\x1b[2J"]}, "printable"),
    *(({"class_names": names}, "class_names") for names in (["cat"], ["cat", "cat"], [1, 2])),
    *(({"threshold": value}, "threshold") for value in (0.0, 1.0, float("nan"), "0.5")),
    ({"architecture": [{"kind": "magic"}]}, "magic"),
    *(({"architecture": value}, "list of layers") for value in ("linear", None)),
    *(({"preprocessing": value}, "preprocessing must") for value in (None, {"side": 64})),
    ({"views": None}, "views must"),
    *(({"golden": value}, "golden") for value in (None, [], [None])),
]
Change = Callable[[dict[str, Any], dict[str, Any]], object]
CHANGES: Mapping[str, tuple[Change, str]] = {
    "no threshold": (lambda v, _: v.pop("threshold"), "threshold must be"),
    "no architecture": (lambda v, _: v.pop("architecture"), "list of layers"),
    "an unknown filter": (lambda v, _: v["preprocessing"].update(filter="nearest"), "filter"),
    "an unknown step": (lambda v, _: v["preprocessing"].update(gamma=2), "gamma"),
    "another side": (lambda v, _: v["preprocessing"].update(side=32), "not run"),
    "another filter": (lambda v, _: v["preprocessing"].update(filter="box"), "differently"),
    "no layers": (lambda v, t: [v.update(architecture=[]), t.popitem(), t.popitem()], "not run"),
    "a missing tensor": (lambda _, t: t.pop("0.bias"), "bias"),
    "a foreign tensor": (lambda _, t: t.update({"9.w": np.zeros(1, "f4")}), "9.w"),
    "a short tensor": (lambda _, t: t.update({"0.weights": np.zeros((100, 1), "f4")}), "not run"),
    "two outputs": (lambda _, t: t.update({"0.weights": np.zeros((12288, 2), "f4")}), "not run"),
    "infinite": (lambda _, t: t["0.weights"].__setitem__(3, np.inf), "not finite"),
    "golden no base64": (lambda v, _: v["golden"][0].update(picture="*"), "base64"),
    "golden no picture": (lambda v, _: v["golden"][1].update(picture="YWJj"), "cannot be read"),
    "golden NaN": (lambda v, _: v["golden"][2].update(probability=float("nan")), "differently"),
    "other weights": (lambda _, t: t["0.weights"].__imul__(1.1), "differently"),
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        *((lambda v, _, new=new: v.update(new), expected) for new, expected in VALUES),
        *CHANGES.values(),
    ],
    ids=[*(str(new) for new, _ in VALUES), *CHANGES],
)
def test_a_file_with_something_wrong_is_refused_with_what(
    path: Path, change: Change, expected: str, golden_file: Path
) -> None:
    values, tensors = unpack(golden_file.read_bytes())
    change(values, tensors)
    path.write_bytes(pack(values, tensors))
    assert expected in refused(path)


def test_tensors_of_other_types_are_refused(path: Path) -> None:
    logistic().save(path)
    values, tensors = unpack(path.read_bytes())
    metadata = {"values": json.dumps(values)}
    wide = {name: value.astype(np.float64) for name, value in tensors.items()}
    safetensors.numpy.save_file(wide, path, metadata)
    assert "stored as F64, expected F32 or F16" in refused(path)


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


# --- The golden pair -----------------------------------------------------------------------------

Read = Callable[[bytes, NDArray[np.uint8]], Any]
SQUARE, BILINEAR = (64, 64), Image.Resampling.BILINEAR


def squeeze_with(resize: Callable[[Image.Image], Image.Image]) -> Read:
    """Decodes right and then does something else."""
    return lambda data, _: resize(ImageOps.exif_transpose(pictures.decode(data)))


def thumbnail(data: bytes, _: NDArray[np.uint8]) -> Image.Image:
    """Lets the JPEG decoder do most of the shrinking."""
    image = pictures.decode(data)
    image.draft("RGB", SQUARE)
    return ImageOps.exif_transpose(image).resize(SQUARE, BILINEAR)


def turn_pixels(turn: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Read:
    return lambda _, right: np.ascontiguousarray(turn(right))


Patch = Callable[[pytest.MonkeyPatch], None]


def reader_is(read: Read) -> Patch:
    """A code whose reader makes these pixels of the whole."""

    class Reader(PictureReader):
        def __init__(self, data: bytes, *others: Any) -> None:
            super().__init__(data, *others)
            pixels = np.asarray(read(data, self.picture.pixels))
            self.picture = replace(self.picture, pixels=pixels)

    return lambda patch: patch.setattr(classifier, "PictureReader", Reader)


def filter_is(name: Filter) -> Patch:
    return reader_is(lambda data, _: read_picture(data, Preprocessing(filter=name)).pixels)


def vector_is(scale: Callable[[NDArray[np.uint8]], NDArray[np.floating[Any]]]) -> Patch:
    def vector(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return scale(pixels).reshape(len(pixels), -1).astype(np.float32)

    return lambda patch: patch.setattr(classifier, "to_vector", vector)


WRONG: Mapping[str, Patch] = {
    "box filter": filter_is("box"),
    "bicubic filter": filter_is("bicubic"),
    "nearest pixel": reader_is(
        squeeze_with(lambda image: image.resize(SQUARE, Image.Resampling.NEAREST))
    ),
    "no antialiasing": reader_is(
        squeeze_with(
            lambda image: image.transform(
                SQUARE, Image.Transform.EXTENT, (0, 0, *image.size), Image.Resampling.BILINEAR
            )
        )
    ),
    "shrunk in decoding, with what is beyond the edge": reader_is(thumbnail),
    "decoded whole": reader_is(squeeze_with(lambda image: image.resize(SQUARE, BILINEAR))),
    "shrunk in two steps": reader_is(
        squeeze_with(lambda image: image.resize(SQUARE, BILINEAR, reducing_gap=2))
    ),
    "centre crop": reader_is(squeeze_with(lambda image: ImageOps.fit(image, SQUARE))),
    "letterbox": reader_is(squeeze_with(lambda image: ImageOps.pad(image, SQUARE))),
    "orientation not read": lambda patch: patch.setattr(preprocessing, "_TURNS", {}),
    "turned the wrong way": lambda patch: patch.setitem(
        preprocessing._TURNS, 6, Image.Transpose.ROTATE_90
    ),
    "mirrored": reader_is(turn_pixels(lambda pixels: pixels[:, ::-1])),
    "blue first": reader_is(turn_pixels(lambda pixels: pixels[..., ::-1])),
    "columns first": reader_is(turn_pixels(lambda pixels: pixels.transpose(1, 0, 2))),
    "channels first": vector_is(lambda pixels: pixels.transpose(0, 3, 1, 2) / 255),
    "not scaled": vector_is(lambda pixels: pixels / 1),
    "scaled to [-1, 1]": vector_is(lambda pixels: pixels / 127.5 - 1),
    "divided by 256": vector_is(lambda pixels: pixels / 256),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_code_that_preprocesses_differently_refuses_the_file(
    mistake: str, golden_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Classifier.load(golden_file)
    WRONG[mistake](monkeypatch)
    assert "differently" in refused(golden_file)


@pytest.mark.parametrize("mistake", WRONG.keys() - {"mirrored", "divided by 256"})
def test_the_file_that_ships_is_refused_by_such_code(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its network looks in the mirror too; and of 256 for 255 not every picture tells."""
    WRONG[mistake](monkeypatch)
    assert "differently" in refused(default_weights())
