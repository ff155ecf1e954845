"""Random variations of training pictures, in NumPy: what a camera, a crop or a saved file may do.

Pictures go in as they were read, uint8 (m, side, side, 3) with values 0 to 255, and come out as
the rows that the network takes, float32 (m, 64·64·3) in [0, 1]. A crop, a stretch, a mirror image,
a blur and the resize to 64×64 are one product from the left and one from the right with matrices
of filter weights: rows · picture · columnsᵀ, each colour apart. Everything is drawn from the
Generator passed in, and `strength` 0 gives exactly the plain resize of the whole picture.

Filters as in Pillow's resize; crops of random area and aspect after Szegedy et al. 2014 (Going
Deeper with Convolutions), erasing after Zhong et al. 2017 (Random Erasing Data Augmentation).
"""

from dataclasses import dataclass

import numpy as np

from model.network import Array
from model.preprocessing import to_vector

SIDE = 64
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Augmentation:
    """Ranges at strength 1. Probabilities and widths shrink in proportion to the strength."""

    smallest_area: float = 0.55  # of the picture, that a crop keeps
    largest_area: float = 1.50  # above 1 the border is repeated
    close: float = 0.12  # share of crops that keep less, as the views of a picture do,
    closest_area: float = 0.30  # from this to the smallest area
    stretch: float = 0.25  # log of the largest change of aspect ratio
    rotation: float = 8.0  # degrees, either way, for `rotated` of the pictures
    rotated: float = 0.4
    blurred: float = 0.35  # share of pictures whose filter is made wider or narrower
    sharpest: float = 0.6  # times the filter's width: less than 1 aliases, as small decodes do
    softest: float = 2.6
    brightness: float = 0.3  # log of the largest factor
    contrast: float = 0.25  # log of the largest factor
    saturation: float = 0.5  # largest change of the factor
    tint: float = 0.10  # log of the largest factor of one colour
    grey: float = 0.10  # share of pictures
    dark: float = 0.10  # share of pictures taken at night
    darkest: float = 0.15  # exposure
    noisy: float = 0.15  # share of pictures
    noise: float = 0.06  # largest standard deviation
    compressed: float = 0.25  # share of pictures with JPEG-like damage
    erased: float = 0.15  # share of pictures with a rectangle painted over


def augment(
    pictures: Array,
    sides: Array,
    rng: np.random.Generator,
    strength: float = 1.0,
    limits: Augmentation = Augmentation(),
) -> Array:
    """A random variation of each picture.

    pictures: uint8 (m, s, s, 3); picture i fills its first sides[i] rows and columns.
    strength: 0 (the whole picture, resized) to 1. Returns float32 (m, 64·64·3) in [0, 1].
    """
    if strength <= 0:
        return whole(pictures, sides)
    x = _resample(pictures, *_crops(pictures.shape[1], sides, rng, strength, limits))
    _rotate(x, rng, strength, limits)
    _recolour(x, rng, strength, limits)
    _darken(x, rng, strength, limits)
    _damage(x, rng, strength, limits)
    np.clip(x, 0, 1, out=x)
    return _unroll(x)


def whole(pictures: Array, sides: Array) -> Array:
    """The rows of whole, unvaried pictures, as the service makes them up to the rounding of its
    pixels to whole numbers; pictures, sides and what comes out as for `augment`."""
    side, m = pictures.shape[1], len(pictures)
    if side == SIDE and (sides == SIDE).all():
        return to_vector(pictures)
    weights = _filter(side, sides, np.zeros(m), sides.astype(np.float64), np.ones(m))
    return _unroll(_resample(pictures, weights, weights))


def _resample(pictures: Array, rows: Array, columns: Array) -> Array:
    """rows · picture · columnsᵀ of each colour, the filters (m, 64, s): float32 (m, 3, 64, 64)."""
    m = len(pictures)
    planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32)
    planes *= 1 / 255
    wide = planes.reshape(m, -1, planes.shape[-1]) @ columns.transpose(0, 2, 1)
    x: Array = rows[:, None] @ wide.reshape(m, 3, -1, SIDE)
    return x


def _unroll(x: Array) -> Array:
    rows: Array = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(len(x), -1)
    return rows


def _crops(
    side: int, sides: Array, rng: np.random.Generator, strength: float, limits: Augmentation
) -> tuple[Array, Array]:
    """The filter matrices (m, 64, side) from the left (rows) and from the right (columns)."""
    m = len(sides)
    low = 1 - strength * (1 - limits.smallest_area)
    high = 1 + strength * (limits.largest_area - 1)
    area, stretch = rng.uniform(low, high, m), rng.uniform(-1, 1, m) * limits.stretch * strength
    close = rng.random(m) < limits.close * strength
    area = np.where(close, rng.uniform(limits.closest_area, limits.smallest_area, m), area)
    height = sides * np.sqrt(area * np.exp(stretch))
    width = sides * np.sqrt(area * np.exp(-stretch))
    top, left = (rng.random(m) * (sides - extent) for extent in (height, width))
    mirrored = rng.random(m) < 0.5
    blurred = rng.random(m) < limits.blurred * strength
    blur = np.where(blurred, rng.uniform(limits.sharpest, limits.softest, m), 1)
    rows = _filter(side, sides, top, height, blur)
    columns = _filter(side, sides, left, width, blur)
    columns[mirrored] = columns[mirrored, ::-1]
    return rows, columns


def _filter(side: int, sides: Array, start: Array, extent: Array, blur: Array) -> Array:
    """Weights (m, 64, side) that resample [start, start + extent) to 64 places with the triangle
    of the preprocessing (Pillow's BILINEAR, which antialiases); beyond the picture its edge is
    repeated."""
    scale = extent / SIDE  # source pixels a place
    centre = start[:, None] + (np.arange(SIDE) + 0.5) * scale[:, None]
    centre = np.clip(centre, 0.5, sides[:, None] - 0.5)
    support = np.maximum(scale, 1) * blur
    distance = np.abs(np.arange(side) + 0.5 - centre[..., None]) / support[:, None, None]
    weights = np.maximum(1 - distance, 0)
    weights *= np.arange(side) < sides[:, None, None]
    weights /= weights.sum(axis=2, keepdims=True)
    result: Array = weights.astype(np.float32)
    return result


def _rotate(x: Array, rng: np.random.Generator, strength: float, limits: Augmentation) -> None:
    """Turn some of the pictures x (m, 3, 64, 64) about their middle, bilinearly, in place."""
    chosen = np.flatnonzero(rng.random(len(x)) < limits.rotated * strength)
    angles = np.radians(rng.uniform(-1, 1, len(chosen)) * limits.rotation)
    middle = (SIDE - 1) / 2
    place = np.arange(SIDE, dtype=np.float32) - middle
    for i, angle in zip(chosen, angles.astype(np.float32), strict=True):
        cos, sin = np.cos(angle), np.sin(angle)
        down = np.clip(cos * place[:, None] + sin * place + middle, 0, SIDE - 1.001)
        right = np.clip(cos * place - sin * place[:, None] + middle, 0, SIDE - 1.001)
        corner = down.astype(np.intp) * SIDE + right.astype(np.intp)
        down %= 1
        right %= 1
        flat = x[i].reshape(3, -1)
        upper = flat[:, corner] * (1 - right) + flat[:, corner + 1] * right
        lower = flat[:, corner + SIDE] * (1 - right) + flat[:, corner + SIDE + 1] * right
        x[i] = upper + (lower - upper) * down


def _recolour(x: Array, rng: np.random.Generator, strength: float, limits: Augmentation) -> None:
    """Brightness, contrast, saturation, tint; some pictures grey, as a night camera gives them."""
    m = len(x)

    def log_factor(width: float, *shape: int) -> Array:
        return np.exp(rng.uniform(-1, 1, (m, *shape)) * width * strength).astype(np.float32)

    gain = log_factor(limits.brightness)[:, None] * log_factor(limits.tint, 3)
    contrast = log_factor(limits.contrast)
    saturation = 1 + (rng.uniform(-1, 1, m) * limits.saturation * strength).astype(np.float32)
    saturation[rng.random(m) < limits.grey * strength] = 0
    # One 3×3 matrix a picture: mixed with its own luma, then scaled.
    mix = saturation[:, None, None] * np.eye(3, dtype=np.float32)
    mix = mix + (1 - saturation)[:, None, None] * LUMA
    mix = mix * (gain * contrast[:, None])[:, :, None]
    mean = x.mean(axis=(1, 2, 3)) * gain.mean(axis=1)
    flat = x.reshape(m, 3, -1)
    flat[...] = mix @ flat
    flat += (mean * (1 - contrast))[:, None, None]


def _darken(x: Array, rng: np.random.Generator, strength: float, limits: Augmentation) -> None:
    """Make some of the pictures x (m, 3, 64, 64) what a camera sees at night: little light, one
    colour (infrared, a street lamp) for half of them, and the noise of its sensor."""
    for i in np.flatnonzero(rng.random(len(x)) < limits.dark * strength):
        gamma, exposure = np.exp(rng.uniform([-0.35, np.log(limits.darkest)], [0.35, 0.2]))
        p = np.clip(x[i], 0, 1) ** np.float32(gamma)
        if rng.random() < 0.5:
            tint = rng.uniform(0.55, 1, 3).astype(np.float32)
            p = np.tensordot(LUMA, p, 1) * (tint / tint.max())[:, None, None]
        p *= np.float32(exposure)
        noise = np.sqrt(p + np.float32(0.1)) * np.float32(rng.random() * 0.04)
        x[i] = p + noise * rng.standard_normal(p.shape, dtype=np.float32)


def _damage(x: Array, rng: np.random.Generator, strength: float, limits: Augmentation) -> None:
    """Noise, a rectangle of one colour over a part, and JPEG-like compression, each on some."""
    draw = rng.random((3, len(x)))
    for i in np.flatnonzero(draw[0] < limits.noisy * strength):
        deviation = np.float32(rng.random() * limits.noise)
        x[i] += rng.standard_normal(x[i].shape, dtype=np.float32) * deviation
    for i in np.flatnonzero(draw[1] < limits.erased * strength):
        height, width = rng.integers(10, 33, 2)
        top, left = rng.integers(0, SIDE - height), rng.integers(0, SIDE - width)
        colour = rng.random(3, dtype=np.float32)
        x[i, :, top : top + height, left : left + width] = colour[:, None, None]
    for i in np.flatnonzero(draw[2] < limits.compressed * strength):
        x[i] = compress(x[i], quality=float(rng.uniform(15, 80)))


def cosines(n: int) -> Array:
    """The orthonormal discrete cosine transform as a matrix (n, n)."""
    place = np.arange(n)
    matrix: Array = np.sqrt(2 / n) * np.cos(np.pi * (place + 0.5) * place[:, None] / n)
    matrix[0] /= np.sqrt(2)
    return matrix


_DCT: Array = np.kron(cosines(8), cosines(8)).astype(np.float32)  # of a row-major 8×8 block
# The example quantisation tables of the JPEG standard (ITU-T T.81, annex K), luma and chroma.
_TABLES = np.array(
    [
        [
            *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
            *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
            *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
            *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
        ],
        [
            *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
            *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
            *[99] * 32,
        ],
    ],
    np.float32,
)
_CHROMA = np.array([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)  # JFIF
_YCC: Array = np.vstack([LUMA, _CHROMA])
_RGB = np.linalg.inv(_YCC).astype(np.float32)


def compress(x: Array, quality: float) -> Array:
    """What JPEG compression of that quality (1 to 100) leaves of x (3, 64, 64) in [0, 1]."""
    scale = (5000 / quality if quality < 50 else 200 - 2 * quality) / 100
    steps = np.maximum(_TABLES[[0, 1, 1]] * np.float32(scale), 1)[:, None, :] / 255
    planes = (_YCC @ x.reshape(3, -1)).reshape(3, 8, 8, 8, 8)  # block row, row, then columns
    blocks = planes.transpose(0, 1, 3, 2, 4).reshape(3, 64, 64)
    coefficients = blocks @ _DCT.T
    coefficients /= steps
    np.rint(coefficients, out=coefficients)
    coefficients *= steps
    planes = (coefficients @ _DCT).reshape(3, 8, 8, 8, 8).transpose(0, 1, 3, 2, 4)
    result: Array = (_RGB @ planes.reshape(3, -1)).reshape(x.shape)
    return result
