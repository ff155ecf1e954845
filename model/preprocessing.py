"""From the bytes of a picture to the numbers of the network: one way, for training and serving.

encoded bytes → upright RGB, squeezed to side × side × 3 uint8 → vector of side·side·3 in [0, 1]

A JPEG is shrunk while it is decoded, as far as the specification allows: its decoder then works
out an 8 × 8 block as 4 × 4, 2 × 2 or one pixel. The squeeze comes before the turn: on a square
they commute, and turning 64×64 pixels costs nothing. A picture is turned as its EXIF orientation
says; an orientation in XMP is not used, as browsers do not use it, nor are colour profiles.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from io import BytesIO
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.decoding import Box, Decoded, Limits, decode
from model.formats import InvalidImage, Reason, accepted_formats, heic_is_installed, recognise

__all__ = [
    "DEFAULT_LIMITS",
    "InvalidImage",
    "Limits",
    "Picture",
    "Preprocessing",
    "Reason",
    "accepted_formats",
    "preload",
    "read_picture",
    "to_vector",
]

Filter = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]
Flatten = Callable[[Image.Image], tuple[Image.Image, bool]]

DEFAULT_LIMITS: Final = Limits()
BAND_PIXELS = 1 << 18  # that are converted at a time: a few MiB, which fit a processor's cache
_TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_FILTERS: Final = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_TURNS: Final = {  # EXIF orientation → what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become numbers; an artifact names it, so that no other way can be used."""

    side: int = 64  # pixels
    filter: Filter = "bilinear"  # Pillow's, which widens with the reduction: antialiased
    fit: Literal["squeeze"] = "squeeze"  # the whole picture: no crop, no bars
    background: Literal["white"] = "white"  # under transparent parts
    # A JPEG is decoded at 1/8, 1/4 or 1/2 where both sides still are this many times `side`; at
    # its whole size otherwise, and always where this is None
    jpeg_times: int | None = 1

    def __post_init__(self) -> None:
        if type(self.side) is not int or not 1 <= self.side <= 1024:
            raise ValueError(f"preprocessing: side must be from 1 to 1024, not {self.side!r}")
        if self.filter not in get_args(Filter):
            allowed = ", ".join(get_args(Filter))
            raise ValueError(f"preprocessing: filter must be one of {allowed}, not {self.filter!r}")
        if self.fit != "squeeze":
            raise ValueError(f"preprocessing: fit must be 'squeeze', not {self.fit!r}")
        if self.background != "white":
            raise ValueError(f"preprocessing: background must be 'white', not {self.background!r}")
        times = self.jpeg_times
        if times is not None and (type(times) is not int or not 1 <= times <= 4):
            raise ValueError(
                f"preprocessing: jpeg_times must be from 1 to 4, or none, not {times!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> "Preprocessing":
        """Read what to_json wrote; raises ValueError for whatever this code does not do."""
        names = {each.name for each in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(f"preprocessing must have exactly {sorted(names)}, not {values!r}")
        return cls(**values)


DEFAULT: Final = Preprocessing()


@dataclass(frozen=True)
class Picture:
    """A picture as the network sees it, and what it was."""

    pixels: NDArray[np.uint8]  # (side, side, 3) RGB
    width: int  # pixels of the original, upright
    height: int
    format: str  # "JPEG", "PNG", "WebP", …
    warnings: tuple[str, ...]  # what was done to it that its owner may not expect


def read_picture(
    data: bytes, spec: Preprocessing = DEFAULT, limits: Limits = DEFAULT_LIMITS
) -> Picture:
    """Decode a picture and squeeze it to spec.side × spec.side, upright, in RGB.

    The format is told by the first bytes; only its decoder is used, and only after the size in
    the header is within the limits. Of an animation, the first frame is taken.
    Raises InvalidImage; and MemoryError, after which a process with a limit should end.
    """
    kind = recognise(data)
    least = None if spec.jpeg_times is None else spec.side * spec.jpeg_times
    decoded = decode(data, kind, least, limits)
    width, height = decoded.width, decoded.height
    tile, notes = _squeeze(decoded, spec)
    if decoded.orientation in _TURNS:
        tile = tile.transpose(_TURNS[decoded.orientation])
        notes.append("it was turned upright as its EXIF orientation says")
    if decoded.orientation >= 5:
        width, height = height, width
    if min(width, height) < spec.side:
        notes.append(f"it is smaller than {spec.side} pixels a side and was enlarged")
    if decoded.animated:
        notes.append("only the first of several frames was used")
    return Picture(np.asarray(tile), width, height, kind.value, tuple(notes))


def to_vector(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unroll pictures, (..., side, side, 3) uint8, to rows, (..., side·side·3) float32 in [0, 1].

    Row by row, pixel by pixel, red, green, blue: the order of the course's reshape.
    """
    rows = pixels.reshape(*pixels.shape[:-3], -1).astype(np.float32)
    rows /= np.float32(255)
    return rows


# --- Pixels of any kind squeezed to a square of RGB, on white, with little memory beside them -----


def _squeeze(decoded: Decoded, spec: Preprocessing) -> tuple[Image.Image, list[str]]:
    """Return the picture as side × side RGB, and what was done to it."""
    image, notes = decoded.image, list(decoded.warnings)
    if decoded.bits == 16:
        notes.append("its 16 bits a channel were scaled to 8")
    deep = image.mode.startswith("I;16")
    white = 2**decoded.bits - 1
    tile, any_transparent = _resize(image, _flattening(image, decoded.bits), spec, decoded.box)
    if any_transparent:
        notes.append("its transparent parts were put on white")
    if deep:
        # Squeezed before it is scaled: 64 × 64 pixels are rounded, not millions
        values = np.asarray(tile, np.float64) * (255 / white)
        tile = Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))
    return (tile if tile.mode == "RGB" else tile.convert("RGB")), notes


def _resize(
    image: Image.Image, flatten: Flatten | None, spec: Preprocessing, box: Box
) -> tuple[Image.Image, bool]:
    """Return what is in the box, flattened, as side × side, and whether any was transparent.

    A band of rows after the other, so that only a band is ever there flattened, is to the bit what
    the whole would give: Pillow, too, first makes every row narrow, and then every column short.
    """
    side, resample = spec.side, _FILTERS[spec.filter]
    if flatten is None:
        return image.resize((side, side), resample, box), False
    rows = max(1, BAND_PIXELS // image.width)
    if rows >= image.height:
        flat, any_transparent = flatten(image)
        return flat.resize((side, side), resample, box), any_transparent
    left, upper, right, lower = box
    narrow: Image.Image | None = None
    any_transparent = False
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        flat, transparent = flatten(band)
        any_transparent |= transparent
        if narrow is None:
            narrow = Image.new(flat.mode, (side, image.height))
        flat = flat.resize((side, flat.height), resample, (left, 0, right, flat.height))
        narrow.paste(flat, (0, top))
    assert narrow is not None
    return narrow.resize((side, side), resample, (0, upper, side, lower)), any_transparent


def _flattening(image: Image.Image, bits: int) -> Flatten | None:
    """Return what makes a band of the picture one whose pixels can be averaged, in RGB or grey,
    and says whether any of it was transparent; None where they can be as they are."""
    if image.mode.startswith("I;16"):
        return partial(_deep_grey, image, 2**bits - 1)
    if image.has_transparency_data:
        _state_transparent_colour(image, bits)
        return _on_white
    if image.mode in ("RGB", "RGBX", "L"):
        return None  # a conversion would be a copy of every pixel
    mode = "L" if image.mode == "1" else "RGB"
    return lambda band: (band.convert(mode), False)


def _deep_grey(image: Image.Image, white: int, band: Image.Image) -> tuple[Image.Image, bool]:
    """Return a band of grey of more than 8 bits as one that Pillow resizes right, white on top."""
    tags: Any = getattr(image, "tag_v2", {})
    values = np.asarray(band)
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    transparent = values == image.info.get("transparency", -1)  # a PNG's one value for nothing
    any_transparent = bool(transparent.any())
    if any_transparent:
        values = np.where(transparent, white, values)
    return Image.fromarray(values.astype(np.uint16)), any_transparent


def _state_transparent_colour(image: Image.Image, bits: int) -> None:
    """Write the one transparent colour of a PNG as Pillow's conversions take it."""
    key = image.info.get("transparency")
    if isinstance(key, int) and image.mode == "L" and bits < 8:
        image.info["transparency"] = key * 255 // (2**bits - 1)  # PNG states it unscaled
    elif isinstance(key, tuple) and bits == 16:
        # Pillow keeps the high bytes of 16-bit colours, so near shades become transparent too
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _on_white(band: Image.Image) -> tuple[Image.Image, bool]:
    """Return a band in RGB on white, and whether any of it was transparent."""
    full = band
    if full.mode == "La":
        full = full.convert("LA")
    if full.mode != "RGBA":
        full = full.convert("RGBA")
    alpha = full.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return full.convert("RGB"), False
    flat = Image.new("RGB", full.size, "white")
    flat.paste(full, mask=alpha)
    return flat, True


def preload() -> None:
    """Load all that reading pictures and explaining answers need.

    A process may then be forbidden to open files and to start threads: codecs are there, and what
    Pillow and NumPy import when it is first used.
    """
    colours = Image.new("RGB", (8, 8), "red")
    for name, mode, options in (
        *(("JPEG", "RGB", {}), ("JPEG", "CMYK", {}), ("PNG", "RGBA", {}), ("GIF", "P", {})),
        *(("BMP", "RGB", {}), ("TIFF", "LAB", {}), ("TIFF", "RGB", {"compression": "jpeg"})),
        *(("WEBP", "RGB", {}), ("WEBP", "RGB", {"save_all": True, "append_images": [colours]})),
        ("AVIF", "RGB", {"max_threads": 1}),
    ):
        file = BytesIO()
        image = Image.new(mode, (8, 8)) if mode == "LAB" else colours.convert(mode)
        image.save(file, name, **options)
        read_picture(file.getvalue())
    if heic_is_installed():
        with suppress(InvalidImage):
            read_picture(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    row = to_vector(np.zeros((1, 64, 64, 3), np.uint8))
    np.quantile(row @ row.T, 0.5)
