"""Choose the golden pictures: small photos that tell this classifier's preprocessing from others.

An artifact holds encoded pictures and the probability of each. The code that loads it computes them
again, and code that decodes, turns, squeezes or scales pictures differently must land more than the
tolerance away in one of them. How far a mistake moves a probability depends on the weights, and
near 0 and 1 it hardly moves: so parts of the photos are tried, and those are taken on which the
mistakes that are hardest to see show most.
"""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from model.classifier import Classifier, Golden
from model.network import Array, sigmoid
from model.preprocessing import Preprocessing

PHOTOS: Final = Path(__file__).parent.parent / "examples"
CANDIDATES = 24  # of each photo
# More than four times the network's input on both sides, odd, not square, to be turned: ways to
# shrink a picture while it is decoded, or in two steps, begin there, and roundings show.
SIZE: Final = (287, 261)
_ORIENTATION, _ROTATED = 0x0112, 6
_HARD_TO_SEE: Final = ({"filter": "box"}, {"filter": "hamming"}, {"reducing_gap": None})


def choose_golden(classifier: Classifier, rng: np.random.Generator) -> tuple[Golden, ...]:
    """A part of each of the photos in examples/, as a JPEG of some kB."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    return tuple(_best_part(classifier, Image.open(photo), rng) for photo in photos)


def _best_part(classifier: Classifier, photo: Image.Image, rng: np.random.Generator) -> Golden:
    files = [_part(photo, rng) for _ in range(CANDIDATES)]
    right = _answers(classifier, files, classifier.preprocessing)
    moved = [
        np.abs(_answers(classifier, files, replace(classifier.preprocessing, **mistake)) - right)
        for mistake in _HARD_TO_SEE
    ]
    best = int(np.argmax(np.min(moved, axis=0)))
    return Golden(files[best], float(right[best]))


def _part(photo: Image.Image, rng: np.random.Generator) -> bytes:
    width, height = np.array(photo.size) * rng.uniform(0.3, 1)
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    box = (left, top, left + width, top + height)
    part = photo.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC, box=box)
    exif = Image.Exif()
    exif[_ORIENTATION] = _ROTATED
    file = BytesIO()
    # At full colour resolution: decoders differ in how they restore less.
    part.save(file, "JPEG", quality=40, subsampling=0, exif=exif)
    return file.getvalue()


def _answers(classifier: Classifier, files: list[bytes], spec: Preprocessing) -> Array:
    other = replace(classifier, preprocessing=spec)
    return sigmoid(other.logits(map(other.read, files)))
