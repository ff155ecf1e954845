"""What may happen to a picture before it reaches the network, one change at a time.

What happens in front of or inside the camera's lens is done to the picture as it was read, uint8
(s, s, 3), larger than the network's where the file is. Light and noise, whose size is told in
values of pixels, are done to the squeezed picture. Every change is drawn from (seed, change,
picture): it is the same whatever else is measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from model.preprocessing import Preprocessing, read_picture
from training.data import PictureSet, Pixels

# (picture, background, generator) → the picture, changed; all of one size (s, s, 3)
Apply = Callable[[Pixels, Pixels, np.random.Generator], Pixels]

_FINER = 2  # pictures are turned at this many times their size, which keeps their edges sharp
_FEATHER = 0.04  # of the side of a pasted picture, over which it fades into its background


@dataclass(frozen=True)
class Change:
    """A change and its words for people."""

    name: str  # "turned by 10°"
    apply: Apply
    squeezed_first: bool = False


def changed(
    originals: PictureSet,
    i: int,
    change: Change,
    spec: Preprocessing,
    backgrounds: Pixels,
    seed: int,
) -> Pixels:
    """Picture i under the change, (s, s, 3).

    originals: read with `smallest`, so that each has the size of its file.
    backgrounds: (n, side, side, 3), what a picture is put on where it fills a part of the frame.
    """
    rng = np.random.default_rng((seed, *change.name.encode(), i))
    background = backgrounds[rng.integers(len(backgrounds))]
    side = originals.sides[i]
    picture = originals.pictures[i, :side, :side]
    if change.squeezed_first:
        picture = squeeze(picture, spec)
    background = squeeze(background, Preprocessing(side=len(picture)))
    return change.apply(picture, background, rng)


def squeeze(picture: Pixels, spec: Preprocessing) -> Pixels:
    """The picture at the size of `spec`, as `read_picture` would make it from a lossless file."""
    if len(picture) == spec.side:
        return picture
    resampling = Image.Resampling[spec.filter.upper()]
    return np.asarray(Image.fromarray(picture).resize((spec.side, spec.side), resampling))


def turn(picture: Pixels, _: Pixels, rng: np.random.Generator, *, degrees: float) -> Pixels:
    """Turned about the middle, to the left or to the right; the corners show the mirrored edge."""
    side = len(picture)
    margin = side // 4  # more than a corner turns out by, (√2 − 1) / 2
    edge = np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    image = Image.fromarray(edge).resize((len(edge) * _FINER,) * 2, Image.Resampling.BICUBIC)
    image = image.rotate(degrees * rng.choice((-1, 1)), Image.Resampling.BICUBIC)
    inner = (margin * _FINER, margin * _FINER, *((margin + side) * _FINER,) * 2)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX, box=inner))


def crop(picture: Pixels, _: Pixels, rng: np.random.Generator, *, area: float) -> Pixels:
    """A square of that share of the area, from a random place, enlarged to the whole frame."""
    side = len(picture)
    kept = side * area**0.5
    left, top = rng.uniform(0, side - kept, 2)
    box = (left, top, left + kept, top + kept)
    return np.asarray(
        Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC, box=box)
    )


def fill(picture: Pixels, background: Pixels, rng: np.random.Generator, *, area: float) -> Pixels:
    """The picture fills that share of the frame, at a random place; around it the background, out
    of focus. The same is done to pictures without a cat: a pasted edge says nothing."""
    side = len(picture)
    small = max(1, round(side * area**0.5))
    left, top = rng.integers(0, side - small + 1, 2).tolist()
    image = Image.fromarray(background).filter(ImageFilter.GaussianBlur(side / 64))
    pasted = Image.fromarray(picture).resize((small, small), Image.Resampling.BILINEAR)
    distance = np.minimum(np.arange(small), np.arange(small)[::-1]) + 0.5  # to the edge, in pixels
    inside = np.clip(distance / max(1.0, small * _FEATHER), 0, 1)
    mask = Image.fromarray((np.minimum.outer(inside, inside) * 255).astype(np.uint8))
    image.paste(pasted, (left, top), mask)
    return np.asarray(image)


def blur(picture: Pixels, _: Pixels, __: np.random.Generator, *, radius: float) -> Pixels:
    """Out of focus: a Gaussian whose deviation is that share of the side."""
    image = Image.fromarray(picture)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius * len(picture))))


def light(
    picture: Pixels, _: Pixels, rng: np.random.Generator, *, gain: float = 1, noise: float = 0.01
) -> Pixels:
    """Every value times the gain, with a sensor's noise of that deviation where white is 1."""
    return _bytes(picture * gain + rng.normal(0, 255 * noise, picture.shape))


def grey(picture: Pixels, _: Pixels, __: np.random.Generator) -> Pixels:
    """Without colour, as luma (ITU-R BT.601)."""
    return np.asarray(Image.fromarray(picture).convert("L").convert("RGB"))


def infrared(picture: Pixels, _: Pixels, rng: np.random.Generator) -> Pixels:
    """What a night camera with its own infrared lamp makes of the scene: no colour, surfaces
    bright as they are in red, a lit middle and dark corners, soft, grainy."""
    side = len(picture)
    soft = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(side / 128)))
    lit = soft @ np.array([0.7, 0.2, 0.1])
    lit = 255 * (lit / 255) ** 0.7  # skin and fur reflect infrared well
    place = np.linspace(-1, 1, side)
    lit *= np.exp(-0.7 * (place**2 + place[:, None] ** 2))  # the lamp's cone
    lit += rng.normal(0, 255 * 0.03, lit.shape)
    return np.repeat(_bytes(lit)[..., None], 3, axis=2)


def jpeg(picture: Pixels, _: Pixels, __: np.random.Generator, *, quality: int) -> Pixels:
    """Saved as a JPEG of that quality at the size that it has, and read again."""
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return read_picture(file.getvalue(), Preprocessing(side=len(picture))).pixels


def _bytes(values: npt.NDArray[Any]) -> Pixels:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


PLAIN = Change("as it is", lambda picture, _, __: picture)
CHANGES = (
    *(Change(f"turned by {d}°", partial(turn, degrees=d)) for d in (10, 30, 90)),
    Change("cropped to 70 % of the area", partial(crop, area=0.7)),
    Change("cropped to 40 % of the area", partial(crop, area=0.4)),
    Change("fills half of the frame", partial(fill, area=0.5)),
    Change("fills a quarter of the frame", partial(fill, area=0.25)),
    Change("fills a tenth of the frame", partial(fill, area=0.1)),
    Change("slightly out of focus", partial(blur, radius=1 / 64)),
    Change("far out of focus", partial(blur, radius=2 / 64)),
    Change("some noise", partial(light, noise=0.05), squeezed_first=True),
    Change("much noise", partial(light, noise=0.12), squeezed_first=True),
    Change("half as bright", partial(light, gain=0.5), squeezed_first=True),
    Change("a fifth as bright", partial(light, gain=0.2), squeezed_first=True),
    Change("grey", grey),
    Change("infrared look", infrared, squeezed_first=True),
    *(Change(f"JPEG of quality {q}", partial(jpeg, quality=q)) for q in (50, 20, 8)),
)
