"""Each change does to a picture what its name says, and the same every time."""

import io
import zipfile
from functools import partial

import numpy as np
import pytest
from PIL import Image

from model.preprocessing import Preprocessing
from tests.pictures import encode, scene
from training.data import PictureSet, Pixels, read_pictures
from training.robustness import (
    CHANGES,
    PLAIN,
    Apply,
    Change,
    blur,
    changed,
    crop,
    fill,
    grey,
    infrared,
    jpeg,
    light,
    squeeze,
    turn,
)

SPEC = Preprocessing()
PICTURE = np.asarray(scene(96, 96))
BLACK, WHITE = (np.full((96, 96, 3), value, np.uint8) for value in (0, 255))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> PictureSet:
    """Pictures of 96 and of 64 pixels a side, as files hold them."""
    path = tmp_path_factory.mktemp("robustness") / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, side in enumerate((96, 64, 96, 64)):
            name = f"{('cat', 'non-cat')[i % 2]}/pets-{i}.png"
            archive.writestr(name, encode(scene(side, side).rotate(20 * i)))
    return read_pictures([path], 128, smallest=64)


def run(
    apply: Apply, picture: Pixels = PICTURE, background: Pixels = BLACK, seed: int = 1
) -> Pixels:
    return apply(picture, background, np.random.default_rng(seed))


def all_changed(originals: PictureSet, change: Change) -> Pixels:
    """Every picture under the change, as the network gets it."""
    backgrounds = np.zeros((1, 64, 64, 3), np.uint8)
    return np.stack(
        [
            squeeze(changed(originals, i, change, SPEC, backgrounds, seed=1), SPEC)
            for i in range(len(originals))
        ]
    )


def difference(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(float) - other).mean())


def test_unchanged_pictures_are_what_the_network_gets(originals: PictureSet) -> None:
    plain = all_changed(originals, PLAIN)
    expected = [
        np.asarray(
            Image.fromarray(picture[:side, :side]).resize((64, 64), Image.Resampling.BILINEAR)
        )
        for picture, side in zip(originals.pictures, originals.sides, strict=True)
    ]
    assert originals.sides.tolist() == [96, 96, 64, 64]
    np.testing.assert_array_equal(plain, expected)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_a_change_is_decided_by_the_seed(originals: PictureSet, change: Change) -> None:
    plain = all_changed(originals, PLAIN)
    one, again = (all_changed(originals, change) for _ in range(2))
    assert one.shape == plain.shape
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, again)
    assert all(difference(a, b) > 0.3 for a, b in zip(one, plain, strict=True))


def test_a_quarter_turn_moves_pixels_to_where_they_belong() -> None:
    turned = run(partial(turn, degrees=90))
    assert min(difference(turned, np.rot90(PICTURE, k)) for k in (1, -1)) < 2


def test_a_crop_is_a_part_of_the_picture_enlarged() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 96)[None, :, None], (96, 96, 3)).astype(np.uint8)
    cropped = run(partial(crop, area=0.25), ramp)
    width = float(cropped[48, -1, 0]) - float(cropped[48, 0, 0])
    assert width == pytest.approx(255 * 0.25**0.5, rel=0.05)


@pytest.mark.parametrize("area", [0.5, 0.25, 0.1])
def test_the_picture_fills_that_share_of_the_frame(area: float) -> None:
    frame = run(partial(fill, area=area), WHITE, BLACK)
    assert (frame > 127).mean() == pytest.approx(area, rel=0.15)


def test_blur_takes_detail_away() -> None:
    fine = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    assert (
        run(partial(blur, radius=2 / 64), fine).std()
        < run(partial(blur, radius=1 / 64), fine).std()
        < fine.std() / 2
    )


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    middle = np.full((96, 96, 3), 128, np.uint8)
    assert run(partial(light, noise=0.05), middle).std() == pytest.approx(255 * 0.05, rel=0.03)


def test_darkness_is_a_share_of_the_light() -> None:
    assert run(partial(light, gain=0.2)).mean() == pytest.approx(0.2 * PICTURE.mean(), rel=0.1)


@pytest.mark.parametrize("apply", [grey, infrared])
def test_without_colour_all_channels_are_the_same(apply: Apply) -> None:
    channels = run(apply)
    np.testing.assert_array_equal(channels[..., 0], channels[..., 1])
    np.testing.assert_array_equal(channels[..., 0], channels[..., 2])


def test_a_lower_jpeg_quality_does_more_harm() -> None:
    losses = [
        difference(run(partial(jpeg, quality=quality)), PICTURE) for quality in (90, 50, 20, 8)
    ]
    assert losses == sorted(losses)
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "JPEG", quality=20)
    np.testing.assert_array_equal(run(partial(jpeg, quality=20)), np.asarray(Image.open(file)))
