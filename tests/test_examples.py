"""What is held back, which pictures are copies of each other, and what a teacher says of them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from model.network import Array, sigmoid
from model.preprocessing import Preprocessing, read_picture
from tests.pictures import encode, write_files
from training import Refused
from training.data import PictureSet
from training.examples import (
    Data,
    calibrated,
    copy_groups,
    count_copies,
    grey_pictures,
    hold_back,
    read,
    read_teacher,
    soft_targets,
)


def pictures_of(groups: dict[tuple[str, int], int]) -> PictureSet:
    """Names, sources and labels of as many pictures of each source and class; no pixels."""
    rows = [
        (f"{label}/{source}-{i}.jpg", source, label)
        for (source, label), count in groups.items()
        for i in range(count)
    ]
    names, sources, labels = zip(*rows, strict=True)
    nothing = np.zeros((len(rows), 1, 1, 3), np.uint8)
    y, sides = np.array(labels, np.float32), np.ones(len(rows), np.int16)
    return PictureSet(nothing, sides, y, [*names], [*sources], ("cat", "non-cat"), [])


def held_of(pictures: PictureSet, groups: Array | None = None, seed: int = 0) -> Array:
    groups = np.arange(len(pictures)) if groups is None else groups
    return hold_back(pictures, groups, np.random.default_rng(seed))[0]


def test_a_fifth_of_every_source_and_class_is_held_back() -> None:
    groups = {("a", 1): 100, ("a", 0): 400, ("b", 1): 50, ("b", 0): 7}
    pictures = pictures_of(groups)
    held = held_of(pictures)
    places = np.split(held, np.cumsum(list(groups.values()))[:-1])
    for own, count in zip(places, groups.values(), strict=True):
        assert abs(own.sum() - count / 5) <= 1
    assert (held == held_of(pictures)).all()
    assert (held != held_of(pictures, seed=1)).any()


@pytest.mark.parametrize(("cats", "others", "held"), [(15, 15, 10), (15, 30_000, 2005)])
def test_few_pictures_give_five_and_many_not_too_many(cats: int, others: int, held: int) -> None:
    assert held_of(pictures_of({("a", 1): cats, ("a", 0): others})).sum() == held


def test_copies_are_on_one_side_but_where_a_class_is_almost_all_copies() -> None:
    pictures = pictures_of({("a", 1): 60, ("a", 0): 60})
    held = held_of(pictures, np.arange(120) // 3)
    assert set(held.reshape(40, 3).sum(axis=1).tolist()) == {0, 3}
    assert held.sum() == 24
    groups = np.where(pictures.labels == 1, np.arange(120), 60)
    held, divided = hold_back(pictures, groups, np.random.default_rng(0))
    assert divided == ["non-cat"]
    assert held.sum() == 24


Edit = Callable[[Image.Image], bytes]


@cache
def photo(seed: int) -> Image.Image:
    """Coarse and fine detail, 200 × 150, unlike any other."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((150, 200, 3))
    for cells in (3, 8, 30):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        picture += np.asarray(noise.resize((200, 150), Image.Resampling.BICUBIC), float) / 3
    return Image.fromarray(picture.astype(np.uint8))


def grey(files: list[bytes]) -> Array:
    pictures = np.stack([read_picture(file, Preprocessing(side=96)).pixels for file in files])
    return grey_pictures(pictures, np.full(len(files), 96))


EDITS: dict[str, Edit] = {
    "saved again": lambda image: encode(image, "JPEG", quality=20),
    "as WebP": lambda image: encode(image, "WEBP", lossless=False),
    "smaller": lambda image: encode(image.resize((75, 100))),
    "mirrored": lambda image: encode(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "without colour": lambda image: encode(image.convert("L")),
    "darker": lambda image: encode(image.point(lambda value: value * 0.7)),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_copy_is_found_among_other_pictures(edit: Edit) -> None:
    photos = [photo(seed) for seed in range(20)]
    groups = copy_groups(grey([*map(encode, photos), *map(edit, photos)]))
    assert groups[:20].tolist() == groups[20:].tolist()
    assert len(set(groups.tolist())) == 20


def frame(room: Image.Image, rng: np.random.Generator, cat: bool) -> bytes:
    """A frame of a fixed camera, with its sensor's noise; the cat is a fiftieth of it."""
    image = room.copy()
    if cat:
        left, top = int(rng.integers(165)), int(rng.integers(125))
        colour = tuple(rng.integers(0, 2, 3) * 200 + 20)
        ImageDraw.Draw(image).ellipse((left, top, left + 30, top + 25), fill=colour)
    noisy = np.asarray(image) + rng.normal(0, 4, (150, 200, 3))
    return encode(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), "JPEG", quality=80)


def test_frames_of_a_fixed_camera_with_and_without_a_cat_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    for seed in range(20):
        room = photo(seed)
        files = [frame(room, rng, cat) for cat in (False, False, True, True)]
        groups = copy_groups(grey(files)).tolist()
        assert groups[0] == groups[1]  # nothing happened in between
        assert groups[2] != groups[0] != groups[3]


def test_pictures_of_one_colour_are_copies_of_none_and_thousands_of_copies_one_group() -> None:
    flat = np.full((300, 16, 16), 7, np.float32)
    assert count_copies(copy_groups(flat)) == 0
    one, other = grey([encode(photo(3))]), grey([encode(photo(4))])
    noise = np.random.default_rng(2).normal(0, 0.3, (3000, 16, 16)).astype(np.float32)
    groups = copy_groups(np.concatenate([one + noise, other]))
    assert len(set(groups.tolist())) == 2
    assert count_copies(groups) == 3000


def make_folder(path: Path, seeds: range) -> Path:
    cats = {f"cat/home-{seed}.jpg": encode(photo(seed)) for seed in seeds}
    others = {f"non-cat/home-{seed}.jpg": encode(photo(seed + 1000)) for seed in seeds}
    return write_files(path, cats | others)


def test_copies_of_training_pictures_are_left_out_of_the_figures(tmp_path: Path) -> None:
    training = make_folder(tmp_path / "training", range(10))
    apart = make_folder(tmp_path / "apart", range(10, 16))
    (apart / "cat" / "home-copy.jpg").write_bytes(EDITS["mirrored"](photo(3)))
    (apart / "cat" / "home-small.jpg").write_bytes(EDITS["smaller"](photo(4)))
    lines: list[str] = []
    _, held = read(Data([training], [apart]), 1, lines.append)
    assert len(held) == 12
    assert "left out 2 validation pictures that are copies" in "\n".join(lines)


def test_what_is_held_back_is_read_as_the_service_reads_it(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", range(16))
    training, held = read(Data([data]), 1, lambda _: None)
    assert (len(training), len(held)) == (22, 10)
    assert not set(training.names) & set(held.names)
    for name, pixels in zip(held.names, held.pictures, strict=True):
        expected = read_picture((data / name).read_bytes(), Preprocessing()).pixels
        assert (pixels == expected).all()


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "teacher.npz", **arrays)
    return folder / "teacher.npz"


def test_the_teacher_is_read_in_the_order_of_the_pictures(tmp_path: Path) -> None:
    names, logit = np.array([b"cat/b.jpg", b"cat/a.jpg"]), np.array([1.5, -2], np.float16)
    groups = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]], np.float16)
    path = npz(tmp_path, name=names, logit=logit, group_probability=groups)
    log_odds, groups = read_teacher(path, ["cat/a.jpg", "cat/b.jpg"])
    np.testing.assert_array_equal(log_odds, [-2, 1.5])
    np.testing.assert_allclose(groups, [[0.3, 0.5], [0.1, 0.0]], atol=1e-3)
    path = npz(tmp_path, name=names.astype(str), logit=logit)  # it may tell the class alone
    assert read_teacher(path, ["cat/a.jpg"])[1].shape == (1, 0)


ONE, MANY = np.array([b"a"]), ["a", *(f"cat/{i}.jpg" for i in range(7))]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"name": ONE}, "has the arrays name; expected name and logit"),
        ({"name": ONE, "logit": np.array([1.0, 2.0])}, r"1 names, .* shape \(2,\)"),
        ({"name": ONE, "logit": np.array([1])}, "int64 .* floating-point"),
        ({"name": ONE, "logit": np.array([np.nan])}, "expected finite"),
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
    pictures = pictures_of({("s", 1): 2, ("s", 0): 2})
    labels, logit, groups = pictures.labels, np.array([2.0, 0.5, -1, 1]), np.full((4, 3), 0.25)
    path = npz(tmp_path, name=pictures.names, logit=logit, group_probability=groups)
    for share in (0.25, 0.0):
        targets = soft_targets(path, pictures, share)
        assert targets.dtype == np.float32
        probabilities = calibrated(logit, labels, ["s"] * 4)
        expected = np.column_stack([(1 - share) * labels + share * probabilities, groups[:, 1:]])
        np.testing.assert_allclose(targets, expected, rtol=1e-6)
