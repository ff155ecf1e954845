"""Choose the golden picture: the one that best tells this classifier's preprocessing from others.

An artifact holds an encoded picture and the probability that it has. Whoever loads it computes
the probability again, and any code that decodes, turns, squeezes or scales pictures differently
must land more than the tolerance away. How far each mistake moves the probability depends on the
weights, so pictures are drawn until one shows them all.

The picture is more than four times the network's input on both sides, and of odd ones: ways to
shrink a picture while it is decoded, or in two steps, begin there.
"""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from model.classifier import Classifier, Golden
from model.network import Mirrored
from model.preprocessing import Filter, Preprocessing, read_picture, to_vector

CANDIDATES = 120
_SHARES = np.linspace(-1, 1, 17, dtype=np.float32)
_EXIF_ORIENTATION, _ROTATED = 0x0112, 6

Pixels = NDArray[np.uint8]  # (side, side, 3)
Field = NDArray[np.float32]  # (height, width, 3): a picture as deviations from grey
Vector = NDArray[np.float32]  # (side·side·3,)


def choose_golden(classifier: Classifier, rng: np.random.Generator) -> Golden:
    """Return the picture, of those tried, on which the least visible mistake shows most.

    It is a JPEG of a few kB, not square, at least four times the network's input, and to be turned.
    Where the weights are such that no picture shows a mistake (all zeros), it is just a picture.
    """
    # From twice what a JPEG is to keep in decoding, it is shrunk in decoding
    least = classifier.preprocessing.side * max(4, 2 * (classifier.preprocessing.jpeg_times or 1))
    best, best_score = Golden(b"", 0.5), -1.0
    best_field = np.zeros((1, 1, 3), np.float32)
    for i in range(CANDIDATES):
        if i < CANDIDATES // 2:
            height = int(least * rng.uniform(1.01, 1.05)) | 1
            field = _random_field(rng, height, int(height * rng.uniform(1.08, 1.15)) | 1)
        else:
            change = _random_field(rng, *best_field.shape[:2])
            field = _standardised(best_field + rng.uniform(0.1, 0.8) * change)
        field = _where_it_hesitates(classifier, field, _random_field(rng, *field.shape[:2]))
        picture = _encode(field)
        score = min(mistakes(classifier, picture).values())
        if score > best_score:
            best = Golden(picture, classifier.predict(picture).cat_probability)
            best_score, best_field = score, field
    return best


def mistakes(classifier: Classifier, picture: bytes) -> dict[str, float]:
    """Return by how much each wrong preprocessing moves the probability of this picture.

    A multiplication by 1/256 for 1/255 is not among them: it moves z by 0.4 %, and the
    probability of no picture by more than 0.0009 where the bias is small. Nor is a mirror image
    where the network answers for both.
    """
    wrong = _wrong_vectors(picture, classifier.preprocessing)
    if any(isinstance(layer, Mirrored) for layer in classifier.layers):
        del wrong["mirrored"]
    right = to_vector(read_picture(picture, classifier.preprocessing).pixels)
    expected, *moved = classifier.probabilities(np.stack([right, *wrong.values()]))
    return dict(zip(wrong, (abs(float(p - expected)) for p in moved), strict=True))


# --- The mistakes --------------------------------------------------------------------------------


def _wrong_vectors(picture: bytes, spec: Preprocessing) -> dict[str, Vector]:
    right = read_picture(picture, spec).pixels
    unscaled = right.reshape(-1).astype(np.float32)
    wrong: dict[str, Vector] = {
        f"{name} filter": to_vector(read_picture(picture, replace(spec, filter=name)).pixels)
        for name in get_args(Filter)
        if name != spec.filter
    }
    wrong |= {
        name: to_vector(read_picture(picture, replace(spec, jpeg_times=times)).pixels)
        for name, times in _JPEG_RULES.items()
        if times != spec.jpeg_times
    }
    wrong |= {name: to_vector(function(picture, spec)) for name, function in _DECODINGS.items()}
    wrong |= {
        "mirrored": to_vector(right[:, ::-1]),
        "upside down": to_vector(right[::-1]),
        "blue first": to_vector(right[..., ::-1]),
        "grey": to_vector(np.asarray(Image.fromarray(right).convert("L").convert("RGB"))),
        "channel by channel": to_vector(right).reshape(-1, 3).T.reshape(-1),
        "not scaled": unscaled,
        "scaled to [-1, 1]": unscaled / np.float32(127.5) - 1,
        "divided by 128": unscaled / np.float32(128),
    }
    return wrong


def _open(picture: bytes, spec: Preprocessing, *, upright: bool = True) -> Image.Image:
    image = Image.open(BytesIO(picture))
    if spec.jpeg_times is not None:
        least = spec.side * spec.jpeg_times
        image.draft(None, (least, least))
    return ImageOps.exif_transpose(image) if upright else image


def _nearest(picture: bytes, spec: Preprocessing) -> Pixels:
    image = _open(picture, spec)
    return np.asarray(image.resize((spec.side, spec.side), Image.Resampling.NEAREST))


def _without_antialiasing(picture: bytes, spec: Preprocessing) -> Pixels:
    """Interpolate between the nearest pixels alone, as OpenCV and TensorFlow do by default."""
    image = _open(picture, spec)
    box = (0, 0, *image.size)
    size = (spec.side, spec.side)
    return np.asarray(image.transform(size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR))


def _not_turned(picture: bytes, spec: Preprocessing) -> Pixels:
    image = _open(picture, spec, upright=False)
    return np.asarray(image.resize((spec.side, spec.side), _resampling(spec)))


def _cropped(picture: bytes, spec: Preprocessing) -> Pixels:
    return np.asarray(ImageOps.fit(_open(picture, spec), (spec.side, spec.side), _resampling(spec)))


def _letterboxed(picture: bytes, spec: Preprocessing) -> Pixels:
    return np.asarray(ImageOps.pad(_open(picture, spec), (spec.side, spec.side), _resampling(spec)))


def _with_what_is_beyond_the_edge(times: int) -> Callable[[bytes, Preprocessing], Pixels]:
    """Take the last row and column of a JPEG that was shrunk in decoding for whole ones."""

    def shrink(picture: bytes, spec: Preprocessing) -> Pixels:
        image = _open(picture, replace(spec, jpeg_times=times))
        return np.asarray(image.resize((spec.side, spec.side), _resampling(spec)))

    return shrink


def _in_two_steps(picture: bytes, spec: Preprocessing) -> Pixels:
    """Average whole blocks first, then filter: Pillow's reducing_gap."""
    size = (spec.side, spec.side)
    whole = ImageOps.exif_transpose(Image.open(BytesIO(picture)))
    return np.asarray(whole.resize(size, _resampling(spec), reducing_gap=2))


def _resampling(spec: Preprocessing) -> Image.Resampling:
    return Image.Resampling[spec.filter.upper()]


_DECODINGS: Final[dict[str, Callable[[bytes, Preprocessing], Pixels]]] = {
    "nearest pixel": _nearest,
    "no antialiasing": _without_antialiasing,
    "not turned": _not_turned,
    "cropped": _cropped,
    "letterboxed": _letterboxed,
    "shrunk in decoding, with what is beyond the edge": _with_what_is_beyond_the_edge(1),
    "shrunk to twice the side, with what is beyond the edge": _with_what_is_beyond_the_edge(2),
    "shrunk in two steps": _in_two_steps,
}
_JPEG_RULES: Final = {
    "decoded whole": None,
    "shrunk in decoding": 1,
    "shrunk in decoding to twice the side": 2,
}


# --- The pictures --------------------------------------------------------------------------------


def _random_field(rng: np.random.Generator, height: int, width: int) -> Field:
    """Draw coloured noise, a random mixture of coarse and fine, of mean 0 and deviation 1."""
    field = np.zeros((height, width, 3), np.float32)
    for cells in (2, 4, 8, 16, 32, 64):
        noise = rng.normal(size=(cells, cells, 3)).astype(np.float32) * rng.exponential()
        for channel in range(3):
            coarse = Image.fromarray(noise[..., channel])
            fine = coarse.resize((width, height), Image.Resampling.BICUBIC)
            field[..., channel] += np.asarray(fine)
    return _standardised(field)


def _where_it_hesitates(classifier: Classifier, field: Field, other: Field) -> Field:
    """Mix in as much of the other field as brings the probability near 1/2.

    There every mistake shows; at 0 and 1 a probability hardly moves. The mixtures are compared at
    the size of the network's input: scaling the sum is summing the scaled, but for clipping.
    """
    spread = np.sqrt(1 + _SHARES**2 + 2 * _SHARES * np.mean(field * other))  # of each mixture
    small, small_other = (_small(each, classifier.preprocessing.side) for each in (field, other))
    pixels = [
        np.asarray(_render((small + share * small_other) / deviation))
        for share, deviation in zip(_SHARES, spread, strict=True)
    ]
    hesitation = np.abs(classifier.probabilities(to_vector(np.stack(pixels))) - 0.5)
    return _standardised(field + _SHARES[hesitation.argmin()] * other)


def _small(field: Field, side: int) -> Field:
    """Squeeze a field to side × side and turn it as its picture will be turned."""
    channels = [
        np.asarray(Image.fromarray(field[..., channel]).resize((side, side)))
        for channel in range(3)
    ]
    return np.rot90(np.stack(channels, axis=-1), -1)


def _standardised(field: Field) -> Field:
    """Bring a field to mean 0 and deviation 1."""
    standardised: Field = (field - field.mean()) / max(float(field.std()), 1e-9)
    return standardised


def _render(field: Field) -> Image.Image:
    return Image.fromarray((np.clip(0.5 + 0.25 * field, 0, 1) * 255).round().astype(np.uint8))


def _encode(field: Field) -> bytes:
    """Encode as JPEG, at full colour resolution: decoders differ in how they restore less."""
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = _ROTATED
    buffer = BytesIO()
    _render(field).save(buffer, "JPEG", quality=30, subsampling=0, exif=exif)
    return buffer.getvalue()
