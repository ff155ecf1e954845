"""From the bytes of a picture to the numbers of the network: one way, for training and serving.

encoded bytes → upright RGB, squeezed to side × side × 3 uint8 → vector of side·side·3 in [0, 1]

A network may look at several *views* of a picture: boxes of it, each squeezed in the same way. The
first is the whole.

A JPEG is shrunk while it is decoded, as far as the specification allows: its decoder then works
out an 8 × 8 block as 4 × 4, 2 × 2 or one pixel. The squeeze comes before the turn: on a square
they commute, and turning 64×64 pixels costs nothing. A picture is turned as its EXIF orientation
says; an orientation in XMP is not used, as browsers do not use it, nor are colour profiles.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from math import ceil, floor, isfinite
from typing import Any, Final, Literal, Self, get_args

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

from model.decoding import Box, Decoded, Limits, decode
from model.formats import (
    Format,
    InvalidImage,
    Reason,
    accepted_formats,
    heic_is_installed,
    recognise,
)

__all__ = [
    "DEFAULT_LIMITS",
    "ONE_VIEW",
    "WHOLE",
    "Box",
    "InvalidImage",
    "Limits",
    "Picture",
    "PictureReader",
    "Preprocessing",
    "Reason",
    "Views",
    "accepted_formats",
    "preload",
    "read_picture",
    "stored_jpeg",
    "to_vector",
]

Filter = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]
Flatten = Callable[[Image.Image], tuple[Image.Image, bool]]

DEFAULT_LIMITS: Final = Limits()
WHOLE: Final[Box] = (0.0, 0.0, 1.0, 1.0)
MOST_VIEWS: Final = 16
LEAST_VIEW: Final = 0.1  # of the picture's sides
BAND_PIXELS = 1 << 18  # that are converted at a time: a few MiB, which fit a processor's cache
# A decoded picture up to this size is kept while its whole is judged; a larger one is decoded again
KEPT_BYTES: Final = 2**24
_TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_FILTERS: Final = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_GAP: Final = "jpeg_times"  # the name that artifacts have for `reducing_gap`
WIDEST_FILTER: Final = 3  # pixels of the result, to either side: Lanczos
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
    # As Pillow calls it: a JPEG is decoded at 1/8, 1/4 or 1/2 where both sides still are this many
    # times `side`; at its whole size otherwise, and always where this is None. Files: "jpeg_times".
    reducing_gap: int | None = 1

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
        gap = self.reducing_gap
        if gap is not None and (type(gap) is not int or not 1 <= gap <= 4):
            raise ValueError(f"preprocessing: {_GAP} must be from 1 to 4, or none, not {gap!r}")

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values."""
        values = asdict(self)
        return values | {_GAP: values.pop("reducing_gap")}

    @classmethod
    def from_json(cls, values: object) -> "Preprocessing":
        """Read what to_json wrote; raises ValueError for whatever this code does not do."""
        names = DEFAULT.to_json().keys()
        if not isinstance(values, dict) or values.keys() != names:
            raise ValueError(f"preprocessing must have exactly {sorted(names)}, not {values!r}")
        others = {name: value for name, value in values.items() if name != _GAP}
        return cls(**others, reducing_gap=values[_GAP])


DEFAULT: Final = Preprocessing()


@dataclass(frozen=True)
class Views:
    """What of a picture a network looks at, and when; an artifact names it.

    The whole is looked at first. Where its logit lies between the two of `unsure`, all the other
    boxes are looked at too, and the picture's logit is the mean over all views.
    """

    boxes: tuple[Box, ...] = (WHOLE,)  # left, top, right, bottom of the upright picture, in [0, 1]
    unsure: tuple[float, float] = (-3.0, 3.0)

    def __post_init__(self) -> None:
        if not 1 <= len(self.boxes) <= MOST_VIEWS or self.boxes[0] != WHOLE:
            raise ValueError(
                f"views: boxes must be 1 to {MOST_VIEWS}, the first {[*WHOLE]}, not {self.boxes!r}"
            )
        for left, top, right, bottom in self.boxes:
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1) or (
                min(right - left, bottom - top) < LEAST_VIEW
            ):
                raise ValueError(
                    "views: each box must be left, top, right, bottom in [0, 1], each side at "
                    f"least {LEAST_VIEW}, not {[left, top, right, bottom]}"
                )
        low, high = self.unsure
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ValueError(
                f"views: unsure must be two logits, the lower first, not {[low, high]}"
            )

    def all_of(self, logit: float) -> bool:
        """Whether a whole of this logit leaves the network unsure, and there are other views."""
        return len(self.boxes) > 1 and self.unsure[0] < logit < self.unsure[1]

    @property
    def smallest_side(self) -> float:
        """The shortest side of any box, as a part of the picture's."""
        return min(min(right - left, bottom - top) for left, top, right, bottom in self.boxes)

    def to_json(self) -> dict[str, Any]:
        """Return the views as JSON values."""
        return {
            "boxes": [[float(edge) for edge in box] for box in self.boxes],
            "unsure": [float(bound) for bound in self.unsure],
        }

    @classmethod
    def from_json(cls, values: object) -> Self:
        """Read what to_json wrote; raises ValueError."""
        match values:
            case {"boxes": [*boxes], "unsure": [*unsure], **rest} if not rest:
                if all(map(_is_box, boxes)) and len(unsure) == 2 and all(map(_is_number, unsure)):
                    low, high = unsure
                    return cls(tuple((a, b, c, d) for a, b, c, d in boxes), (low, high))
        raise ValueError(
            "views must be {'boxes': [[left, top, right, bottom], …], 'unsure': [logit, logit]},"
            f" not {values!r:.200}"
        )


ONE_VIEW: Final = Views()


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
    return PictureReader(data, spec, limits).picture


class PictureReader:
    """Reads the whole of a picture, and its other views where they are wanted.

    picture: the whole. Raises what `read_picture` raises.
    """

    def __init__(
        self,
        data: bytes | NDArray[np.uint8],
        spec: Preprocessing = DEFAULT,
        limits: Limits = DEFAULT_LIMITS,
        views: Views = ONE_VIEW,
    ) -> None:
        """data: an encoded picture, or the pixels of an upright one, (height, width, 3) RGB."""
        self._data, self._spec, self._limits, self._views = data, spec, limits, views
        source = self._decode()
        self.picture = source.whole()
        self._source = source if source.bytes <= KEPT_BYTES else None

    def other_views(self) -> NDArray[np.uint8]:
        """Return what is in each box but the whole, upright and squeezed: (n, side, side, 3).

        The decoded picture is let go.
        """
        source, self._source = self._source or self._decode(), None
        return np.stack([np.asarray(source.tile(box)[0]) for box in self._views.boxes[1:]])

    def _decode(self) -> "_Source":
        if not isinstance(self._data, bytes):
            height, width, _ = self._data.shape
            image = Image.fromarray(self._data)
            return _Source(Decoded(image, width, height, (0, 0, width, height)), None, self._spec)
        kind, gap = recognise(self._data), self._spec.reducing_gap
        # For all views at once: a second time, larger, would cost more than what the whole saves.
        least = ceil(self._spec.side / self._views.smallest_side)
        decoded = decode(
            self._data,
            kind,
            lambda width, height: 1 if gap is None else min(width, height) // (least * gap),
            self._limits,
        )
        return _Source(decoded, kind, self._spec)


def stored_jpeg(
    data: bytes, limits: Limits = DEFAULT_LIMITS, side: int = 512, quality: int = 92
) -> bytes:
    """Return an upright JPEG of a picture, as predictions see it, to keep it for training.

    Its proportions stay; its longer side has `side` pixels, or fewer where the picture has fewer.
    It holds pixels alone: no metadata. Raises what `read_picture` raises.
    """
    kind = recognise(data)
    decoded = decode(data, kind, lambda width, height: max(width, height) // side, limits)
    reduction = max(1, decoded.width / side, decoded.height / side)
    size = (
        max(1, round(decoded.width / reduction)),
        max(1, round(decoded.height / reduction)),
    )
    tile, _ = _Source(decoded, kind, DEFAULT).tile(WHOLE, size)
    encoded: bytes = simplejpeg.encode_jpeg(np.asarray(tile), quality, "RGB", "444", fastdct=False)
    return encoded


def to_vector(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unroll pictures, (..., side, side, 3) uint8, to rows, (..., side·side·3) float32 in [0, 1].

    Row by row, pixel by pixel, red, green, blue: the order of the course's reshape.
    """
    rows = pixels.reshape(*pixels.shape[:-3], -1).astype(np.float32)
    rows /= np.float32(255)
    return rows


# --- Pixels of any kind squeezed to a square of RGB, on white, with little memory beside them -----


class _Source:
    """A decoded picture, of which tiles are squeezed."""

    def __init__(self, decoded: Decoded, kind: Format | None, spec: Preprocessing) -> None:
        self._decoded, self._kind, self._spec = decoded, kind, spec
        self._flatten = _flattening(decoded.image, decoded.bits)
        self.bytes = 4 * decoded.image.width * decoded.image.height

    def whole(self) -> Picture:
        """Squeeze all of it, and say what was done to it."""
        decoded, notes = self._decoded, list(self._decoded.warnings)
        tile, any_transparent = self.tile(WHOLE)
        width, height = decoded.width, decoded.height
        if decoded.bits == 16:
            notes.append("its 16 bits a channel were scaled to 8")
        if any_transparent:
            notes.append("its transparent parts were put on white")
        if decoded.orientation in _TURNS:
            notes.append("it was turned upright as its EXIF orientation says")
        if decoded.orientation >= 5:
            width, height = height, width
        if min(width, height) < self._spec.side:
            notes.append(f"it is smaller than {self._spec.side} pixels a side and was enlarged")
        if decoded.animated:
            notes.append("only the first of several frames was used")
        name = self._kind.value if self._kind else ""
        return Picture(np.asarray(tile), width, height, name, tuple(notes))

    def tile(self, box: Box, size: tuple[int, int] | None = None) -> tuple[Image.Image, bool]:
        """Return what is in a box of the upright picture as RGB, upright, and whether any of it
        was transparent. size: width and height before it is turned; side × side if None."""
        decoded = self._decoded
        left, top, right, bottom = _as_stored(box, decoded.orientation)
        _, _, width, height = decoded.box
        pixels = (left * width, top * height, right * width, bottom * height)
        resample, size = _FILTERS[self._spec.filter], size or (self._spec.side, self._spec.side)
        tile, any_transparent = _resize(decoded.image, self._flatten, size, resample, pixels)
        if decoded.image.mode.startswith("I;16"):
            # Squeezed before it is scaled: 64 × 64 pixels are rounded, not millions
            values = np.asarray(tile, np.float64) * (255 / (2**decoded.bits - 1))
            tile = Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))
        if tile.mode != "RGB":
            tile = tile.convert("RGB")
        if decoded.orientation in _TURNS:
            tile = tile.transpose(_TURNS[decoded.orientation])
        return tile, any_transparent


def _as_stored(box: Box, orientation: int) -> Box:
    """Return where a box of the upright picture lies in the picture as it is stored."""
    left, top, right, bottom = box
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 7, 8):
        left, right = 1 - right, 1 - left
    if orientation in (3, 4, 6, 7):
        top, bottom = 1 - bottom, 1 - top
    return left, top, right, bottom


def _resize(
    image: Image.Image,
    flatten: Flatten | None,
    size: tuple[int, int],
    resample: Image.Resampling,
    box: Box,
) -> tuple[Image.Image, bool]:
    """Return what is in the box, flattened, to that size, and whether any was transparent.

    A band of rows after the other, so that only a band is ever there flattened, gives what the
    whole would give: Pillow, too, first makes every row narrow, and then every column short.
    """
    if flatten is None:
        return image.resize(size, resample, box), False
    width, height = size
    x0, x1 = _reached(box[0], box[2], image.width, width)
    y0, y1 = _reached(box[1], box[3], image.height, height)
    left, top, right, bottom = box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0
    rows = max(1, BAND_PIXELS // (x1 - x0))
    if rows >= y1 - y0:
        flat, any_transparent = flatten(_crop(image, (x0, y0, x1, y1)))
        return flat.resize(size, resample, (left, top, right, bottom)), any_transparent
    narrow: Image.Image | None = None
    any_transparent = False
    for y in range(y0, y1, rows):
        flat, transparent = flatten(_crop(image, (x0, y, x1, min(y + rows, y1))))
        any_transparent |= transparent
        if narrow is None:
            narrow = Image.new(flat.mode, (width, y1 - y0))
        flat = flat.resize((width, flat.height), resample, (left, 0, right, flat.height))
        narrow.paste(flat, (0, y - y0))
    assert narrow is not None
    return narrow.resize(size, resample, (0, top, width, bottom)), any_transparent


def _crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    return image if box == (0, 0, *image.size) else image.crop(box)


def _reached(start: float, end: float, size: int, target: int) -> tuple[int, int]:
    """Return from where to where the pixels lie that a filter takes for an interval.

    size: pixels of the picture in this direction; target: those that the interval becomes."""
    margin = ceil(WIDEST_FILTER * max(1, (end - start) / target)) + 1
    return max(0, floor(start) - margin), min(size, ceil(end) + margin)


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
    stored_jpeg(file.getvalue())
    row = to_vector(np.zeros((1, 64, 64, 3), np.uint8))
    np.quantile(row @ row.T, 0.5)
