"""Training pictures are varied as intended, and left alone when they are not to be varied."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.network import Array
from model.preprocessing import read_picture
from tests.pictures import decode, encode
from training.augmentation import Augmentation, augment, compress, whole
from training.data import read_pictures


def only(**chosen: float) -> Augmentation:
    """No variation but the chosen ones, and mirror images."""
    nothing = {field.name: 0.0 for field in fields(Augmentation)}
    return Augmentation(**{**nothing, "smallest_area": 1.0, "largest_area": 1.0, **chosen})


def photo(side: int, seed: int = 0) -> Array:
    """Smooth colours with some grain, uint8 (side, side, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), float)
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def held(*pixels: Array) -> tuple[Array, Array]:
    """Square pictures as training holds them: pictures (m, 96, 96, 3) and sides."""
    pictures = np.zeros((len(pixels), 96, 96, 3), np.uint8)
    for i, one in enumerate(pixels):
        pictures[i, : len(one), : len(one)] = one
    return pictures, np.array([len(one) for one in pixels], np.int16)


USUAL = Augmentation()


def varied(seed: int, strength: float = 1.0, limits: Augmentation = USUAL) -> Array:
    pictures, sides = held(*(photo(side, side) for side in (96, 64, 80, 96, 64, 71)))
    return augment(pictures, sides, np.random.default_rng(seed), strength, limits)


@pytest.mark.parametrize("side", [96, 64, 80])
def test_unvaried_pictures_are_those_that_the_service_sees(side: int, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    file = tmp_path / "cat" / "a.png"
    Image.fromarray(photo(side)).save(file)
    read = read_pictures([tmp_path], 96, smallest=64, both_classes=False)
    unvaried = augment(read.pictures, read.sides, np.random.default_rng(0), strength=0)
    served = read_picture(file.read_bytes()).pixels
    difference = np.abs(unvaried[0].reshape(64, 64, 3) * 255 - served)
    assert difference.max() < 1.01  # the service rounds to whole levels


def test_what_lies_beyond_a_small_picture_is_never_seen() -> None:
    pictures, sides = held(photo(64), photo(70))
    other = pictures.copy()
    for i, side in enumerate(sides):
        other[i, side:] = 255
        other[i, :, side:] = 255
    for strength in (0, 1):
        rows = [augment(p, sides, np.random.default_rng(1), strength) for p in (pictures, other)]
        np.testing.assert_array_equal(rows[0], rows[1])


def test_the_same_generator_gives_the_same_rows_in_the_network_s_range() -> None:
    np.testing.assert_array_equal(varied(1), varied(1))
    assert np.abs(varied(1) - varied(2)).mean() > 0.02
    rows = np.concatenate([varied(seed) for seed in range(8)])
    assert rows.dtype == np.float32
    assert rows.shape == (48, 12288)
    assert rows.min() >= 0
    assert rows.max() <= 1


def test_without_limits_to_vary_within_only_a_mirror_image_comes_out() -> None:
    plain = varied(0, 0).reshape(-1, 64, 64, 3)
    rows = varied(3, 1, only()).reshape(-1, 64, 64, 3)
    mirrored = [np.allclose(a, b[:, ::-1], atol=1e-5) for a, b in zip(rows, plain, strict=True)]
    unchanged = [np.allclose(a, b, atol=1e-5) for a, b in zip(rows, plain, strict=True)]
    assert {*zip(mirrored, unchanged, strict=True)} == {(True, False), (False, True)}


def test_a_crop_shows_a_part_larger() -> None:
    """A dot on black is four times as large when a quarter of the picture fills the frame."""
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[40:56, 40:56] = 255
    pictures, sides = held(*[picture] * 20)
    limits = only(smallest_area=0.25, largest_area=0.25)
    rows = augment(pictures, sides, np.random.default_rng(4), 1, limits)
    seen = rows.sum(axis=1)  # of those whose crop holds the whole dot
    assert seen.max() / whole(pictures[:1], sides[:1]).sum() == pytest.approx(4, rel=0.02)


def spread(row: Array) -> float:
    """Between the colours of a pixel, on average: 0 in a grey picture."""
    return float(np.ptp(row.reshape(-1, 3), axis=1).mean())


def grain(row: Array) -> float:
    return float(np.abs(np.diff(row.reshape(-1, 64, 64, 3), axis=1)).mean())


Effect = Callable[[Array, Array], bool]  # of a row, and of the row of the same picture unvaried
EFFECTS: dict[str, tuple[dict[str, float], Effect]] = {
    "grey": ({"grey": 1}, lambda row, _: spread(row) < 1e-5),
    "tint": ({"tint": 0.1}, lambda row, plain: 0.001 < np.abs(row - plain).mean() < 0.1),
    "brightness": ({"brightness": 0.3}, lambda row, plain: abs(row.mean() - plain.mean()) > 1e-3),
    "contrast": ({"contrast": 0.25}, lambda row, plain: abs(row.std() / plain.std() - 1) > 1e-3),
    "saturation": ({"saturation": 0.5}, lambda row, plain: abs(spread(row) - spread(plain)) > 1e-4),
    "noise": ({"noisy": 1, "noise": 0.06}, lambda row, plain: 1e-4 < np.std(row - plain) < 0.065),
    "erased": ({"erased": 1}, lambda row, plain: 0.01 < np.mean(np.abs(row - plain) > 1e-4) < 0.3),
    "compressed": ({"compressed": 1}, lambda row, plain: 1e-3 < np.std(row - plain) < 0.1),
    "blur": (
        {"blurred": 1, "sharpest": 2, "softest": 2.6},
        lambda row, plain: grain(row) < grain(plain),
    ),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_each_variation_does_what_its_name_says(name: str) -> None:
    ranges, holds = EFFECTS[name]
    pictures = (np.stack([photo(64, seed) for seed in range(8)]) // 2 + 64).astype(np.uint8)
    sides = np.full(8, 64)
    rows = augment(pictures, sides, np.random.default_rng(5), 1, only(**ranges))
    plain, mirrored = whole(pictures, sides), whole(pictures[:, :, ::-1], sides)
    for row, either in zip(rows, zip(plain, mirrored, strict=True), strict=True):
        nearer = either[int(np.argmin(np.abs(np.stack(either) - row).mean(axis=1)))]
        assert holds(row, nearer)


@pytest.mark.parametrize("quality", [15, 50, 80])
def test_compression_leaves_about_what_jpeg_leaves(quality: int) -> None:
    pixels = photo(64, 6)
    file = encode(Image.fromarray(pixels), "JPEG", quality=quality)
    x, jpeg = pixels / 255, np.asarray(decode(file)) / 255
    ours = compress(x.transpose(2, 0, 1).astype(np.float32), quality).transpose(1, 2, 0)
    damage = float(np.abs(jpeg - x).mean())
    assert np.abs(ours - jpeg).mean() < damage / 2
    assert float(np.abs(ours - x).mean()) == pytest.approx(damage, rel=0.25)
