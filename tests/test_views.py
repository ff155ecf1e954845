"""Several views of a picture: what is in them, when they are looked at, and what the file says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model import archive, preprocessing
from model.classifier import Classifier
from model.network import sigmoid
from model.preprocessing import (
    WHOLE,
    Box,
    PictureReader,
    Preprocessing,
    Views,
    read_picture,
    to_vector,
)
from model.worker import Job
from tests import pictures
from tests.pictures import SIX, encode, kinds, scene
from tests.test_classifier import deep, logistic
from tests.test_explanation import logit

ALWAYS, NEVER = (-1e9, 1e9), (1e8, 1e9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def cut(image: Image.Image, box: Box, width: float = 0, height: float = 0) -> NDArray[np.int64]:
    """What Pillow makes of a box of the image, whose picture has these sides."""
    sides = (width or image.width, height or image.height) * 2
    scaled = tuple(edge * side for edge, side in zip(box, sides, strict=True))
    tile = image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR, scaled)  # type: ignore[arg-type]
    return np.asarray(tile).astype(int)


@pytest.mark.parametrize(
    "name", [name for name in sorted(kinds()) if "group4" not in name and name[:2] != "1 "]
)
def test_every_view_of_every_kind_of_picture_is_what_is_in_its_box(name: str) -> None:
    data = kinds()[name]
    reader = PictureReader(data, views=SIX)
    large = Image.fromarray(read_picture(data, Preprocessing(side=320)).pixels)
    for view, box in zip(reader.other_views(), SIX.boxes[1:], strict=True):
        assert np.abs(view - cut(large, box)).mean() < 2, box


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF"])
def test_the_boxes_are_those_of_the_upright_picture(name: str, orientation: int) -> None:
    boxes = (WHOLE, (0.1, 0.25, 0.3, 0.85), (0.6, 0.0, 1.0, 0.5))
    reader = PictureReader(pictures.turned(orientation, name), views=Views(boxes))
    for view, box in zip(reader.other_views(), boxes[1:], strict=True):
        np.testing.assert_allclose(view, cut(scene(), box), atol=14 if name == "JPEG" else 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(("side", "shrunk"), [(856, 8), (855, 4), (427, 2), (213, 1)])
def test_a_jpeg_is_shrunk_in_decoding_as_far_as_its_smallest_view_allows(
    side: int, shrunk: int, mode: str
) -> None:
    data = encode(scene(side, side + 90, mode), "JPEG")
    image = pictures.decode(data)
    if shrunk > 1:
        image.draft(None, (side // shrunk, (side + 90) // shrunk))
    assert image.size == (-(-side // shrunk), -(-(side + 90) // shrunk))
    reader = PictureReader(data, views=SIX)
    views = [reader.picture.pixels, *reader.other_views()]
    for view, box in zip(views, SIX.boxes, strict=True):
        expected = cut(image, box, side / shrunk, (side + 90) / shrunk)
        np.testing.assert_allclose(view, expected, atol=mode == "CMYK")


def test_a_large_picture_is_decoded_again_and_in_bands_to_the_same_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readers = {name: PictureReader(data, views=SIX) for name, data in kinds().items()}
    monkeypatch.setattr(preprocessing, "KEPT_BYTES", 0)
    monkeypatch.setattr(preprocessing, "BAND_PIXELS", 160 * 7)
    for name, whole in readers.items():
        banded = PictureReader(kinds()[name], views=SIX)
        np.testing.assert_array_equal(banded.picture.pixels, whole.picture.pixels, name)
        others, expected = banded.other_views().astype(int), whole.other_views()
        np.testing.assert_allclose(others, expected, atol=1, err_msg=name)


def gentle() -> Classifier:
    """Logistic regression on small weights, whose rounding errors are small too."""
    return logistic(scale=0.005)


def mirrored() -> Classifier:
    """A network that looks in the mirror too, unsure of most pictures."""
    return replace(deep(), views=Views(mirror=True))


MAKES = [gentle, mirrored]
Make = Callable[[], Classifier]


def looking(make: Make, unsure: tuple[float, float] = ALWAYS) -> Classifier:
    tested = make()
    return replace(tested, views=replace(tested.views, boxes=SIX.boxes, unsure=unsure))


@pytest.mark.parametrize("make", MAKES)
def test_the_logit_is_the_mean_over_the_views_of_which_the_whole_alone_is_seen_in_the_mirror(
    make: Make,
) -> None:
    tested, data = looking(make), pictures.turned(6)
    reader = PictureReader(data, views=SIX)
    pixels = reader.picture.pixels
    whole = logit(tested.layers, pixels)
    if tested.views.mirror:
        whole = (whole + logit(tested.layers, pixels[:, ::-1])) / 2
    others = [logit(tested.layers, view) for view in reader.other_views()]
    prediction = tested.predict(data)
    np.testing.assert_allclose(prediction.view_logits, [whole, *others], atol=1e-5)
    in_rows = tested.probabilities(to_vector(pixels[None]))  # as /v2 asks for pixels and vectors
    np.testing.assert_allclose(in_rows, [1 / (1 + np.exp(-whole))], atol=1e-6)
    expected = 1 / (1 + np.exp(-np.mean([whole, *others])))
    assert prediction.cat_probability == pytest.approx(expected, abs=1e-6)
    (alone,) = looking(make, NEVER).predict(data).view_logits
    for low, high, views in ((-1, 1, 6), (-1, 0, 1), (0, 1, 1), (-2, -1, 1)):
        between = looking(make, (alone + low, alone + high))
        assert between.predict(data).views == views
        assert between.predict(data, views="one").view_logits == (alone,)


@pytest.mark.parametrize("make", MAKES)
def test_every_way_to_ask_for_a_picture_gives_its_one_answer(make: Make, path: Path) -> None:
    files = [encode(scene(96, 96).rotate(20 * i), ("PNG", "JPEG")[i % 2]) for i in range(14)]
    wholes = make().logits(map(make().read, files))
    tested = looking(make, (float(np.median(wholes)), 1e9)).save(path)
    alone = [tested.predict(data) for data in files]
    assert {prediction.views for prediction in alone} == {1, 6}
    expected = [prediction.cat_probability for prediction in alone]
    together = tested.answers([tested.read(data) for data in files])
    assert [each.cat_probability for each in together] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(sigmoid(tested.logits(map(tested.read, files))), expected, atol=1e-6)
    np.testing.assert_array_equal(tested.logits(map(tested.read, files), "one"), wholes)
    _, handle = archive.load(str(path))  # the command and the job on a cluster
    rows = [reply.head["cat_probability"] for reply in handle([Job({}, data) for data in files])]
    assert rows == expected


def test_a_file_keeps_its_views_which_are_part_of_its_version(path: Path) -> None:
    versions = {gentle().save(path).version}
    others = (replace(SIX, unsure=(-2, 2)), Views(SIX.boxes[:2], (-2, 2)), Views(mirror=True))
    for views in (SIX, *others):
        saved = replace(gentle(), views=views).save(path)
        assert Classifier.load(path).views == views
        versions.add(saved.version)
    assert len(versions) == 5


WRONG_BOXES = ([0, 0, 1.1, 1], [-0.1, 0, 1, 1], [0, 0.5, 1, 0.55], [0, 0, np.nan, 1], [0])


@pytest.mark.parametrize(
    "wrong",
    [
        *({"boxes": boxes} for boxes in ([], [[0, 0, 0.6, 0.6]], [[0, 0, 1, 1]] * 17, None)),
        *({"boxes": [[0, 0, 1, 1], box]} for box in WRONG_BOXES),
        *({"unsure": unsure} for unsure in ([3, -3], [1, 1], [-3], [-3, np.inf], None)),
        *({"mirror": "yes"}, {"corners": 4}),
    ],
    ids=str,
)
def test_views_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    assert Views.from_json(SIX.to_json()) == SIX
    with pytest.raises(ValueError, match="views"):
        Views.from_json(SIX.to_json() | wrong)
