"""Data for training: what is read, and what is refused with which message."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from model.preprocessing import Preprocessing, read_picture
from tests.data_folder import data_file
from tests.pictures import encode, picture, scene, turned, write_files, zipped
from training import Refused
from training.data import NameParts, name_parts, on_all_cores, read_pictures

Files = dict[str, bytes]


def view(i: int) -> bytes:
    """A picture unlike the others: the same in both classes is refused."""
    return encode(scene(80, 60).rotate(7 * i))


GOOD: Files = {
    "cat/pets-cat-1.jpg": picture("JPEG"),
    "cat/pets-cat-2.png": picture("PNG"),
    "non-cat/tiny-7.webp": picture("WEBP", 70, 90),
}


def make_zip(path: Path, files: Files) -> Path:
    path = path.with_suffix(".zip")
    path.write_bytes(zipped(files))
    return path


def make_hdf5(path: Path, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.update(datasets)
    return path


def pixels(m: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (m, 64, 64, 3), np.uint8)


make = pytest.mark.parametrize("make", [write_files, make_zip])
Make = Callable[[Path, Files], Path]


@make
def test_pictures_are_labelled_by_their_folder(tmp_path: Path, make: Make) -> None:
    data = read_pictures([make(tmp_path / "mydata", GOOD)])
    assert data.names == list(GOOD)
    assert data.labels.tolist() == [1, 1, 0]
    assert data.sources == ["pets", "pets", "tiny"]
    assert (data.skipped, data.hidden) == ([], 0)
    assert str(data) == "3 pictures (2 cat, 1 non-cat)"


@make
def test_pictures_are_read_as_served_and_small_ones_kept_small(tmp_path: Path, make: Make) -> None:
    files = {"cat/1.jpg": turned(6), "cat/2.png": picture("PNG", 40, 30)}
    files |= {"non-cat/1.png": picture("PNG", 80, 60)}
    data = read_pictures([make(tmp_path / "d", files)], side=96, smallest=64)
    assert data.sides.tolist() == [96, 64, 80]
    for found, side, content in zip(data.pictures, data.sides, files.values(), strict=True):
        expected = read_picture(content, Preprocessing(side=int(side))).pixels
        assert (found[:side, :side] == expected).all()
        assert not found[side:].any()
        assert not found[:, side:].any()


def test_the_fingerprint_is_that_of_pictures_and_labels(tmp_path: Path) -> None:
    sets = [
        {"cat/1": view(1), "non-cat/2": view(2)},
        {"cat/1": view(2), "non-cat/2": view(1)},
        {"cat/1": view(1), "non-cat/2": view(3)},
    ]
    paths = [write_files(tmp_path / str(i), files) for i, files in enumerate(sets)]
    paths.append(make_zip(tmp_path / "0", sets[0]))
    *prints, packed = [read_pictures([path]).fingerprint for path in paths]
    assert packed == prints[0]
    assert len(set(prints)) == 3


@make
def test_class_folders_may_lie_deeper_and_hold_folders(tmp_path: Path, make: Make) -> None:
    files = {
        "my/cat/data/cat/a.jpg": view(1),
        "my/cat/data/cat/2024/b.jpg": view(2),
        "my/cat/data/non-cat/c.jpg": view(3),
    }
    if make is make_zip:
        files = {name.replace("/", "\\"): content for name, content in files.items()}
    data = read_pictures([make(tmp_path / "d", files)])
    assert data.names == ["cat/2024/b.jpg", "cat/a.jpg", "non-cat/c.jpg"]


def test_class_folders_and_files_may_be_links_but_not_in_a_circle(tmp_path: Path) -> None:
    write_files(tmp_path / "elsewhere", {"1.png": view(1), "2.png": view(2)})
    folder = write_files(tmp_path / "d", {"non-cat/3.png": view(3)})
    (folder / "cat").symlink_to(tmp_path / "elsewhere")
    (folder / "non-cat" / "4.png").symlink_to(write_files(tmp_path, {"4.png": view(4)}) / "4.png")
    names = ["cat/1.png", "cat/2.png", "non-cat/3.png", "non-cat/4.png"]
    assert read_pictures([folder]).names == names
    (folder / "non-cat" / "again").symlink_to(folder)
    (folder / "non-cat" / "gone.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(Refused, match=r"(?s)2 files .*non-cat/again: .*non-cat/gone\.png: "):
        read_pictures([folder])
    assert read_pictures([folder], skip_bad=True).names == names


@pytest.mark.parametrize("originals", ["all", "real"])  # before and after the links, by their names
def test_class_folders_may_be_links_to_folders_beside_them(tmp_path: Path, originals: str) -> None:
    files = {f"{originals}/c/1.png": view(1), f"{originals}/n/2.png": view(2)}
    folder = write_files(tmp_path / "d", files)
    (folder / "cat").symlink_to(folder / originals / "c")
    (folder / "non-cat").symlink_to(folder / originals / "n")
    data = read_pictures([folder])
    assert data.names == ["cat/1.png", "non-cat/2.png"]
    assert [name for name, _ in data.skipped] == list(files)


def test_pipes_are_named_and_never_waited_for(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "d", GOOD)
    for name in ("pipe", "pipe.jpg"):
        os.mkfifo(folder / "cat" / name)
    with pytest.raises(Refused, match=r"(?s)cat/pipe in .*cat/pipe\.jpg: is not a regular"):
        read_pictures([folder])


@make
def test_notes_and_sidecars_are_listed_with_all_that_is_bad(tmp_path: Path, make: Make) -> None:
    bad = {"cat/1.xmp": b"<x/>", "cat/more.zip": b"PK", "cat/torn.jpg": picture()[:900]}
    outside = {"README.txt": b"x", "fox/a.jpg": b"x"}
    path = make(tmp_path / "d", GOOD | bad | outside)
    with pytest.raises(Refused) as refused:
        read_pictures([path])
    for words in (*bad, "3 files", "unpack it", "--skip-bad"):
        assert words in str(refused.value)
    data = read_pictures([path], skip_bad=True)
    assert data.names == list(GOOD)
    reasons = dict(data.skipped)
    assert reasons.keys() == {*bad, *outside}
    assert {reasons[name] for name in outside} == {"not in cat/ or non-cat/"}


def test_a_picture_in_both_classes_is_refused_with_its_names(tmp_path: Path) -> None:
    image = scene(64, 64)
    twice = {"cat/same.png": encode(image), "non-cat/also.bmp": encode(image, "BMP")}
    path = write_files(tmp_path / "d", GOOD | twice)
    with pytest.raises(Refused, match=r"cat/same\.png in .*: is the same picture as non-cat/also"):
        read_pictures([path])
    assert read_pictures([path], skip_bad=True).names == list(GOOD)


def test_files_are_joined_and_classes_may_have_other_names(tmp_path: Path) -> None:
    phone = {"dog/IMG_1.jpg": view(1), "no dog/door-2.jpg": view(2)}
    one_class = {"no dog/tiny-7.webp": view(3)}
    paths = [make_zip(tmp_path / "phone", phone), make_zip(tmp_path / "b", one_class)]
    names = ("dog", "no dog")
    data = read_pictures(paths, class_names=names)
    assert data.names == [*phone, *one_class]
    assert data.labels.tolist() == [1, 0, 0]
    assert data.sources == ["phone", "door", "tiny"]  # the file's where a name has no dash
    assert len(read_pictures(paths[1:], class_names=names, both_classes=False)) == 1


@pytest.mark.parametrize(
    ("prefix", "shape", "classes", "labels"),
    [
        ("train", (3,), ["non-cat", "cat"], [0, 1, 0]),
        ("test", (1, 3), ["non-cat", "cat"], [0, 1, 0]),
        ("train", (3, 1), ["cat", "non-cat"], [1, 0, 1]),  # the list says what 1 means
    ],
)
def test_the_course_s_hdf5_is_read(
    tmp_path: Path, prefix: str, shape: tuple[int], classes: list[str], labels: list[int]
) -> None:
    y = np.array([0, 1, 0]).reshape(shape)
    datasets = {f"{prefix}_set_x": pixels(3), f"{prefix}_set_y": y}
    path = make_hdf5(tmp_path / "d.h5", list_classes=np.array(classes, "S"), **datasets)
    data = read_pictures([path])
    assert (data.pictures == pixels(3)).all()
    assert data.labels.tolist() == labels
    assert data.names[1] == f"{classes[1]}/course-00001"


ODD_LABELS = ([[0, 1], [0, 1]], [0, 1, np.nan, 0], [0, 1, 2, 0], [*"0101"], 1, h5py.Empty("f"))


def test_the_course_s_own_files_are_read() -> None:
    train = read_pictures([data_file("train_catvnoncat.h5")])
    assert str(train) == "209 pictures (72 cat, 137 non-cat)"
    test = read_pictures([data_file("test_catvnoncat.h5")])
    assert str(test) == "50 pictures (33 cat, 17 non-cat)"


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"images": pixels(2)}, "no datasets train_set_x and train_set_y.*it holds: images"),
        ({"train_set_x": pixels(2), "train_set_y": [0, 1, 1]}, "0 or 1 for each of the 2 pictures"),
        ({"train_set_x": pixels(2) / 255, "train_set_y": [0, 1]}, "float64; expected .* uint8"),
        ({"train_set_x": pixels(2)[:, 1:], "train_set_y": [0, 1]}, r"shape \(2, 63, 64, 3\)"),
        ({"train_set_x": pixels(0), "train_set_y": np.zeros(0)}, "no pictures"),
        ({"train_set_x": 3, "train_set_y": "x"}, r"train_set_x has shape \(\) of int64; expected"),
        ({"train_set_x": h5py.Empty("u1"), "train_set_y": [0]}, r"shape \(\) of object; expected"),
        ({"test_set_x": ["a", "b"], "test_set_y": [0, 1]}, r"test_set_x has shape \(2,\)"),
        *(
            ({"train_set_x": pixels(4), "train_set_y": y}, "train_set_y has shape .* a 0 or 1 for")
            for y in ODD_LABELS
        ),
        (
            {"train_set_x": pixels(2), "train_set_y": [0, 1], "list_classes": "cat"},
            "its classes are 'cat', not 'cat', 'non-cat'",
        ),
        (
            {"train_set_x": pixels(2), "train_set_y": [0, 1], "list_classes": [b"dog", b"\xff"]},
            "its classes are 'dog', '\ufffd', not 'cat', 'non-cat'.*--classes",
        ),
    ],
)
def test_an_hdf5_that_is_not_the_course_s_is_refused(
    tmp_path: Path, datasets: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused, match=rf"(?s)mine\.h5.*{message}"):
        read_pictures([make_hdf5(tmp_path / "mine.h5", **datasets)])


@make
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no folders cat/ and non-cat/; it contains 0 files"),
        ({"a.jpg": b"", "b.jpg": b""}, "it contains 2 files, no folders"),
        ({"cats/a.jpg": b"", "dogs/b.jpg": b""}, "it contains folders 'cats', 'dogs'.*--classes"),
        ({"cat/a.jpg": picture()}, "all 1 pictures are 'cat'. Training also needs .*'non-cat'"),
        ({"a/cat/1.jpg": b"", "b/non-cat/1.jpg": b""}, "in several places: a/, b/. Use one of"),
        (GOOD | {"cat/old/non-cat/1.jpg": view(1)}, "in several places: ./, cat/old/"),
    ],
)
def test_folders_and_zips_without_one_pair_of_classes_are_refused(
    tmp_path: Path, make: Make, files: Files, message: str
) -> None:
    with pytest.raises(Refused, match=rf"mine.*{message}"):
        read_pictures([make(tmp_path / "mine", files)])


def test_empty_class_folders_are_named(tmp_path: Path) -> None:
    for name in ("cat", "non-cat"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    with pytest.raises(Refused, match=r"^cat/ and non-cat/ in \S+mine are empty. Put pictures"):
        read_pictures([tmp_path / "mine"])


def zip_with(place: bytes, change: bytes) -> bytes:
    """A zip of good pictures with one change after the place."""
    data = zipped(GOOD, zipfile.ZIP_STORED)
    at = data.index(place) + len(place)
    return data[:at] + change + data[at + len(change) :]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.csv", b"a,b\n", "is not data for training. Expected: an HDF5"),
        ("pets.zip", b"<html>404</html>", "damaged or incomplete zip"),
        ("pets.zip", zip_with(b"JFIF", bytes(9)), "Bad CRC-32"),
        ("pets.zip", zip_with(b"PK\1\2\x14\3\x14\0", b"\1"), "is encrypted. Unpack it"),
        ("pets.h5", b"<html>404</html>", "not an HDF5 file, or is damaged"),
        ("pets", b"\x89HDF\r\n\x1a\n and no more", "not an HDF5 file, or is damaged"),
        ("nowhere.zip", None, "does not exist"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refused, match=f"(?s){name}.*{message}"):
        read_pictures([path])


def test_an_interrupted_reading_stops_at_once() -> None:
    read = []

    def interrupt(i: int) -> None:
        read.append(i)
        if i == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_all_cores(interrupt, 10**5, "reading")
    assert len(read) < 10**5


@pytest.mark.parametrize(
    ("name", "source", "parts"),
    [
        ("cat/pets-cat-09500.jpg", "pets", ("pets", "cat", "things")),
        ("cat/tiny-n02123394_1.jpg", "tiny", ("tiny", "Persian cat", "things")),
        ("non-cat/tiny-n02085620_12.jpg", "tiny", ("tiny", "Chihuahua", "small dogs")),
        (
            "non-cat/wild-llwa-fox-dark-0012.webp",
            "wild",
            ("wild", "fox in low light", "foxes, wolves and raccoons", "llwa"),
        ),
        ("non-cat/web-places-dining_room-eval-0001.jpg", "web", ("rooms", "dining room", "rooms")),
        ("cat/IMG-20240301-WA0001.jpg", "IMG", ("IMG",)),
        ("cat/tom.jpg", "mydata", ("mydata",)),
    ],
)
def test_a_name_tells_what_the_picture_is(name: str, source: str, parts: tuple[str, ...]) -> None:
    assert name_parts(name, source) == NameParts(*parts)
