"""Copies of a picture are found; frames of a fixed camera with and without a cat are none."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw

from model.network import Array
from model.preprocessing import Preprocessing, read_picture
from tests.pictures import encode
from training.copies import copies_of, copy_groups, count_copies, grey_pictures

Edit = Callable[[Image.Image], bytes]


def photo(seed: int) -> Image.Image:
    """Coarse and fine detail, 400 × 300, unlike any other."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((300, 400, 3))
    for cells in (3, 8, 30):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        picture += np.asarray(noise.resize((400, 300), Image.Resampling.BICUBIC), float) / 3
    return Image.fromarray(picture.astype(np.uint8))


def grey(files: list[bytes], side: int = 96) -> Array:
    pictures = np.stack([read_picture(file, Preprocessing(side=side)).pixels for file in files])
    return grey_pictures(pictures, np.full(len(files), side))


EDITS: dict[str, Edit] = {
    "saved again": lambda image: encode(image, "JPEG", quality=20),
    "as WebP": lambda image: encode(image, "WEBP", lossless=False),
    "smaller": lambda image: encode(image.resize((150, 200))),
    "mirrored": lambda image: encode(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "without colour": lambda image: encode(image.convert("L")),
    "darker": lambda image: encode(image.point(lambda value: value * 0.7)),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_copy_is_found_among_other_pictures(edit: Edit) -> None:
    photos = [photo(seed) for seed in range(40)]
    groups = copy_groups(grey([*map(encode, photos), *map(edit, photos)]))
    assert groups[:40].tolist() == groups[40:].tolist()
    assert len(set(groups.tolist())) == 40


def test_copies_in_the_other_set_are_found_whatever_the_size_that_it_was_read_at() -> None:
    files = [encode(photo(seed)) for seed in range(6)]
    known = grey([EDITS["smaller"](photo(seed)) for seed in (1, 4)], side=64)
    assert np.flatnonzero(copies_of(grey(files), known)).tolist() == [1, 4]


def frame(room: Image.Image, rng: np.random.Generator, cat: bool) -> bytes:
    """A frame of a fixed camera, with its sensor's noise; the cat is a fiftieth of it."""
    image = room.copy()
    if cat:
        left, top = int(rng.integers(330)), int(rng.integers(250))
        colour = tuple(rng.integers(0, 2, 3) * 200 + 20)
        ImageDraw.Draw(image).ellipse((left, top, left + 60, top + 50), fill=colour)
    noisy = np.asarray(image) + rng.normal(0, 4, (300, 400, 3))
    return encode(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), "JPEG", quality=80)


def test_frames_of_a_fixed_camera_with_and_without_a_cat_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    for seed in range(20):
        room = photo(seed)
        files = [frame(room, rng, cat) for cat in (False, False, True, True)]
        groups = copy_groups(grey(files)).tolist()
        assert groups[0] == groups[1]  # nothing happened in between
        assert groups[2] != groups[0] != groups[3]


def test_pictures_of_one_colour_are_copies_of_none() -> None:
    flat = np.full((300, 16, 16), 7, np.float32)
    assert count_copies(copy_groups(flat)) == 0


def test_thousands_of_copies_of_one_picture_are_one_group() -> None:
    rng = np.random.default_rng(2)
    one = grey([encode(photo(3))])
    many = one + rng.normal(0, 0.3, (3000, 16, 16)).astype(np.float32)
    groups = copy_groups(np.concatenate([many, grey([encode(photo(4))])]))
    assert len(set(groups.tolist())) == 2
    assert count_copies(groups) == 3000
