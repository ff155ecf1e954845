"""From the bytes of a picture to the numbers of the network: one way, for training and serving.

encoded bytes → upright RGB, resized to side × side × 3 uint8 → vector of side·side·3 in [0, 1]

A network may look at several *views* of a picture: boxes of it, each resized in the same way. The
first is the whole.

A JPEG is shrunk while it is decoded, as far as the specification allows: its decoder then works
out an 8 × 8 block as 4 × 4, 2 × 2 or one pixel. The squeeze comes before the turn: on a square
they commute, and turning 64×64 pixels costs nothing. A picture is turned as its EXIF orientation
says; an orientation in XMP is not used, as browsers do not use it, nor are colour profiles.
"""

from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from math import ceil, floor, isfinite
from typing import Any, Final, Literal, cast, get_args

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

from model.decoding import Decoded, decode, refusing
from model.decoding import Limits as Limits  # these are for those who import from here
from model.formats import Format, heic_is_installed, recognise
from model.formats import InvalidImage as InvalidImage
from model.formats import Reason as Reason
from model.formats import accepted_formats as accepted_formats

Box = tuple[float, float, float, float]  # left, top, right, bottom
Filter = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]

DEFAULT_LIMITS: Final = Limits()
WHOLE: Final[Box] = (0.0, 0.0, 1.0, 1.0)
MOST_VIEWS: Final = 16
LEAST_VIEW: Final = 0.1  # of the picture's sides
BAND_PIXELS = 1 << 18  # that are converted at a time: a few MiB, which fit a processor's cache
# A decoded picture up to this size is kept while its whole is judged; a larger one is decoded again
KEPT_BYTES: Final = 2**24
WIDEST_FILTER: Final = 3  # pixels of the result, to either side: Lanczos
_TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
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
    # As Pillow calls it: a JPEG is decoded at 1/8, 1/4 or 1/2 where both sides still are this many
    # times `side`; at its whole size otherwise, and always where this is None.
    reducing_gap: int | None = 1

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values."""
        return {
            "side": self.side,
            "filter": self.filter,
            "fit": "squeeze",  # the whole picture: no crop, no bars
            "background": "white",  # under transparent parts
            "jpeg_times": self.reducing_gap,
        }

    @classmethod
    def from_json(cls, values: Any) -> "Preprocessing":
        """Read what to_json wrote; raises ValueError for whatever this code does not do."""
        match values:
            case {"side": int(side), "filter": str(name), "jpeg_times": None | int() as gap}:
                spec = cls(side, cast(Filter, name), gap)
                is_known = 1 <= side <= 1024 and name in get_args(Filter)
                if is_known and gap in (None, 1, 2, 3, 4) and values == spec.to_json():
                    return spec
        raise ValueError(
            "preprocessing must have a side from 1 to 1024, jpeg_times from 1 to 4 or none, the fit"
            f" 'squeeze', the background 'white' and a filter of {', '.join(get_args(Filter))},"
            f" not {values!r:.300}"
        )


@dataclass(frozen=True)
class Views:
    """What of a picture a network looks at, and when; an artifact names it.

    The whole comes first. With `mirror` its logit is the mean of its own and of its mirror image's.
    If that logit lies between the two of `unsure`, all the other boxes are used too, and the
    picture's logit is the mean over all views.

    A cat is a cat in a mirror too, and the mean of two answers is mistaken less (as Krizhevsky et
    al. 2012 average over mirrored crops). Other views are not mirrored: the same time gains more
    where it is spent on more pictures.
    Raises ValueError for boxes or bounds that cannot be.
    """

    boxes: tuple[Box, ...] = (WHOLE,)  # of the upright picture, in [0, 1]
    unsure: tuple[float, float] = (-3.0, 3.0)
    mirror: bool = False

    def __post_init__(self) -> None:
        boxes, (low, high) = np.array(self.boxes, float).reshape(-1, 4), self.unsure
        inside = (boxes >= 0).all() and (boxes <= 1).all()
        large = (boxes[:, 2:] - boxes[:, :2] >= LEAST_VIEW).all()
        if not (inside and large and 1 <= len(boxes) <= MOST_VIEWS and self.boxes[0] == WHOLE):
            raise ValueError(
                f"views: boxes must be 1 to {MOST_VIEWS}, each left, top, right, bottom in [0, 1],"
                f" at least {LEAST_VIEW} a side, the first {[*WHOLE]}, not {self.boxes!r}"
            )
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ValueError(f"views: unsure must be two logits, the lower first, not {low, high}")

    def is_unsure(self, logit: float) -> bool:
        """Whether a whole of this logit leaves the network unsure, and there are other views."""
        return len(self.boxes) > 1 and self.unsure[0] < logit < self.unsure[1]

    @property
    def smallest_side(self) -> float:
        """The shortest side of any box, as a part of the picture's."""
        return min(min(right - left, bottom - top) for left, top, right, bottom in self.boxes)

    def to_json(self) -> dict[str, Any]:
        """Return the views as JSON values."""
        boxes, unsure = np.array(self.boxes, float), np.array(self.unsure, float)
        return {"boxes": boxes.tolist(), "unsure": unsure.tolist(), "mirror": self.mirror}

    @classmethod
    def from_json(cls, values: Any) -> "Views":
        """Read what to_json wrote; raises ValueError."""
        try:
            boxes = tuple((a, b, c, d) for a, b, c, d in values["boxes"])
            low, high = values["unsure"]
            views = cls(boxes, (low, high), bool(values["mirror"]))
            if values == views.to_json():
                return views
        except (TypeError, LookupError, ValueError) as error:
            what = "boxes, two bounds of unsure and mirror"
            raise ValueError(f"views must have {what} ({error})") from None
        raise ValueError(f"views must have boxes, unsure and mirror alone, not {values!r:.300}")


DEFAULT: Final = Preprocessing()
ONE_VIEW: Final = Views()


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
        decoded = self._decode()
        self.picture = _describe(decoded, self._tile(decoded, WHOLE))
        is_small = 4 * decoded.image.width * decoded.image.height <= KEPT_BYTES
        self._decoded = decoded if is_small else None

    def other_views(self) -> NDArray[np.uint8]:
        """Return what is in each box but the whole, upright and resized: (n, side, side, 3).

        The decoded picture is let go.
        """
        decoded, self._decoded = self._decoded or self._decode(), None
        return np.stack([self._tile(decoded, box) for box in self._views.boxes[1:]])

    def _decode(self) -> Decoded:
        if not isinstance(self._data, bytes):
            height, width, _ = self._data.shape
            return Decoded(Image.fromarray(self._data), "", width, height)
        # For all views at once: a second time, larger, would cost more than what the whole saves.
        least, gap = ceil(self._spec.side / self._views.smallest_side), self._spec.reducing_gap

        def reduction(width: int, height: int) -> int:
            return 1 if gap is None else min(width, height) // (least * gap)

        return decode(self._data, recognise(self._data), reduction, self._limits)

    def _tile(self, decoded: Decoded, box: Box) -> NDArray[np.uint8]:
        side = self._spec.side
        return _tile(decoded, box, (side, side), Image.Resampling[self._spec.filter.upper()])


def stored_jpeg(
    data: bytes, limits: Limits = DEFAULT_LIMITS, side: int = 512, quality: int = 92
) -> bytes:
    """Return an upright JPEG of a picture, as predictions see it, to keep it for training.

    Its proportions stay; its longer side has `side` pixels, or fewer where the picture has fewer.
    It holds pixels alone: no metadata. Raises what `read_picture` raises.
    """
    decoded = decode(data, recognise(data), lambda *size: max(size) // side, limits)
    times = max(1, decoded.width / side, decoded.height / side)
    size = max(1, round(decoded.width / times)), max(1, round(decoded.height / times))
    tile = _tile(decoded, WHOLE, size, Image.Resampling.BILINEAR)
    encoded: bytes = simplejpeg.encode_jpeg(tile, quality, "RGB", "444", fastdct=False)
    return encoded


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture (height, width, 3) as a PNG."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def mirror_images(X: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return the rows X (m, side·side·3) of the pictures' mirror images."""
    return X.reshape(-1, side, side, 3)[:, :, ::-1].reshape(X.shape)


def to_vector(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unroll pictures, (..., side, side, 3) uint8, to rows, (..., side·side·3) float32 in [0, 1].

    Row by row, pixel by pixel, red, green, blue: the order of the course's reshape.
    """
    rows = pixels.reshape(*pixels.shape[:-3], -1).astype(np.float32)
    rows /= np.float32(255)
    return rows


def _describe(decoded: Decoded, pixels: NDArray[np.uint8]) -> Picture:
    """Say what a picture was, and what was done to it."""
    width, height = decoded.width, decoded.height
    if decoded.orientation >= 5:
        width, height = height, width
    is_small = min(width, height) < len(pixels)
    notes = {
        "its 16 bits per channel were reduced to 8": decoded.bits == 16,
        "its transparent parts were filled with white": decoded.any_transparent,
        "it was rotated upright, following its EXIF orientation": decoded.orientation in _TURNS,
        f"it is smaller than {len(pixels)} pixels per side and was enlarged": is_small,
        "only the first of several frames was used": decoded.animated,
    }
    warnings = (*decoded.warnings, *(note for note, holds in notes.items() if holds))
    return Picture(pixels, width, height, decoded.format, warnings)


# --- Pixels of any kind squeezed to RGB, on white, with little memory beside them ----------------


def _tile(
    decoded: Decoded, box: Box, size: tuple[int, int], resample: Image.Resampling
) -> NDArray[np.uint8]:
    """Return what is in a box of the upright picture, upright, as (height, width, 3) RGB.

    size: width and height before it is turned."""
    left, top, right, bottom = _as_stored(box, decoded.orientation)
    width, height = decoded.width / decoded.scale, decoded.height / decoded.scale
    stored = (left * width, top * height, right * width, bottom * height)
    with refusing(decoded.data, cast(Format, decoded.format)):
        tile = _resize(decoded, size, resample, stored)
        if tile.mode.startswith("I;16"):
            # Squeezed before it is scaled: 64 × 64 pixels are rounded, not millions
            values = np.asarray(tile, np.float64) * (255 / (2**decoded.bits - 1))
            tile = Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))
        tile = tile.convert("RGB")
        if decoded.orientation in _TURNS:
            tile = tile.transpose(_TURNS[decoded.orientation])
        return np.asarray(tile)


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
    decoded: Decoded, size: tuple[int, int], resample: Image.Resampling, box: Box
) -> Image.Image:
    """Return what is in a box of the stored pixels, flattened, to that size.

    A band of rows after the other, so that only a band is ever there flattened, gives what the
    whole would give: Pillow, too, first makes every row narrow, and then every column short.
    """
    image = decoded.image
    if image.mode in ("RGB", "RGBX", "L") and not image.has_transparency_data:
        return image.resize(size, resample, box)
    width, height = size
    x0, x1 = _reached(box[0], box[2], image.width, width)
    y0, y1 = _reached(box[1], box[3], image.height, height)
    left, top, right, bottom = box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0
    rows = max(1, BAND_PIXELS // (x1 - x0))
    if rows >= y1 - y0:
        flat = _flatten(decoded, image.crop((x0, y0, x1, y1)))
        return flat.resize(size, resample, (left, top, right, bottom))
    bands = []
    for y in range(y0, y1, rows):
        flat = _flatten(decoded, image.crop((x0, y, x1, min(y + rows, y1))))
        bands.append(flat.resize((width, flat.height), resample, (left, 0, right, flat.height)))
    narrow = Image.new(bands[0].mode, (width, y1 - y0))
    for i, band in enumerate(bands):
        narrow.paste(band, (0, i * rows))
    return narrow.resize(size, resample, (0, top, width, bottom))


def _reached(start: float, end: float, size: int, target: int) -> tuple[int, int]:
    """Return from where to where the pixels lie that a filter takes for an interval.

    size: pixels of the picture in this direction; target: those that the interval becomes."""
    margin = ceil(WIDEST_FILTER * max(1, (end - start) / target)) + 1
    return max(0, floor(start) - margin), min(size, ceil(end) + margin)


def _flatten(decoded: Decoded, band: Image.Image) -> Image.Image:
    """Return a band of a picture as RGB or grey, on white: pixels that can be averaged."""
    if band.mode.startswith("I;16"):
        return _flatten_deep_grey(decoded, np.asarray(band))
    if not band.has_transparency_data:
        return band.convert("L" if band.mode == "1" else "RGB")
    if band.mode == "La":
        band = band.convert("LA")
    band = band.convert("RGBA")
    alpha = band.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return band.convert("RGB")
    decoded.any_transparent = True
    flat = Image.new("RGB", band.size, "white")
    flat.paste(band, mask=alpha)
    return flat


def _flatten_deep_grey(decoded: Decoded, values: NDArray[np.uint16]) -> Image.Image:
    """Return grey of more than 8 bits as Pillow resizes it right: its own bytes' order, 0 black."""
    image, white = decoded.image, 2**decoded.bits - 1
    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    transparent = values == image.info.get("transparency", -1)  # a PNG's one value for nothing
    decoded.any_transparent |= bool(transparent.any())
    return Image.fromarray(np.where(transparent, white, values).astype(np.uint16))


def preload() -> None:
    """Load all that reading pictures and explaining answers need.

    A process may then be forbidden to open files and to start threads: codecs are there, and what
    Pillow and NumPy import when it is first used.
    """
    colours = Image.new("RGB", (8, 8), "red")
    for name, mode, options in (
        *(("JPEG", "RGB", {}), ("JPEG", "CMYK", {}), ("PNG", "RGBA", {}), ("GIF", "P", {})),
        *(("BMP", "RGB", {}), ("TIFF", "RGB", {"compression": "jpeg"})),
        *(("WEBP", "RGB", {}), ("WEBP", "RGB", {"save_all": True, "append_images": [colours]})),
        ("AVIF", "RGB", {"max_threads": 1}),
    ):
        colours.convert(mode).save(file := BytesIO(), name, **options)
        read_picture(file.getvalue())
    if heic_is_installed():
        with suppress(InvalidImage):
            read_picture(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    stored_jpeg(file.getvalue())
    row = to_vector(np.zeros((1, 64, 64, 3), np.uint8))
    np.quantile(row @ row.T, 0.5)
