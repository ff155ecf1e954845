"""From the bytes of a picture to the numbers of the network: one way, for training and serving.

encoded bytes → upright RGB, squeezed to side × side × 3 uint8 → vector of side·side·3 in [0, 1]

The squeeze comes before the turn: on a square they commute, and turning 64×64 pixels costs
nothing. Colour profiles and XMP are not read; EXIF is, for its orientation.
"""

import warnings
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.containers import Container, cut_off, exif_orientation, open_container
from model.formats import Format, InvalidImage, Reason, accepted_formats, recognise, size

__all__ = [
    "DEFAULT_LIMITS",
    "InvalidImage",
    "Limits",
    "Picture",
    "Preprocessing",
    "Reason",
    "accepted_formats",
    "read_picture",
    "to_vector",
]

Filter = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]

# Limits stand before every decoder here; Pillow's own, a fixed number of pixels for the whole
# process, would forbid what an operator has allowed.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of odd metadata, which is nobody's concern here. Filters are shared by all threads,
# so this one is set once, never around a call.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Pillow's table has these two in the other byte order only: 16-bit grey whose 0 is white, and
# 32-bit grey. A key is byte order, photometric, sample format, fill order, bits, extra samples.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 1, (1,), 1, (32,), ()), ("I", "I;32B"))

# Given directly to the bytes they are for: no other decoder is ever tried.
_DECODERS: Final[dict[Format, type[ImageFile]]] = {
    Format.JPEG: JpegImageFile,
    Format.PNG: PngImageFile,
    Format.WEBP: WebPImageFile,
    Format.GIF: GifImageFile,
    Format.BMP: BmpImageFile,
    Format.TIFF: TiffImageFile,
    Format.AVIF: AvifImageFile,
}
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
ON_WHITE: Final = "its transparent parts were put on white"
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


@dataclass(frozen=True)
class Limits:
    """What a picture may hold, judged by its header before pixels are decoded."""

    max_pixels: int = 25_000_000
    max_side: int = 10_000


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become numbers; an artifact names it, so that no other way can be used."""

    side: int = 64  # pixels
    filter: Filter = "bilinear"  # Pillow's, which widens with the reduction: antialiased
    fit: Literal["squeeze"] = "squeeze"  # the whole picture: no crop, no bars
    background: Literal["white"] = "white"  # under transparent parts

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
    Raises InvalidImage and nothing else.
    """
    kind = recognise(data)
    try:
        return _read(data, kind, spec, limits)
    except InvalidImage:
        raise
    except MemoryError as error:
        raise InvalidImage(
            Reason.TOO_MANY_PIXELS,
            f"The {kind} picture needs more memory than there is now; send a smaller one.",
        ) from error
    except Exception as error:  # decoders raise whatever the bytes lead them to
        error.with_traceback(None)  # its frames would keep the pixels alive
        raise _undecodable(data, kind, error) from error


def to_vector(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unroll pictures, (..., side, side, 3) uint8, to rows, (..., side·side·3) float32 in [0, 1].

    Row by row, pixel by pixel, red, green, blue: the order of the course's reshape.
    """
    rows = pixels.reshape(*pixels.shape[:-3], -1).astype(np.float32)
    rows /= np.float32(255)
    return rows


def _read(data: bytes, kind: Format, spec: Preprocessing, limits: Limits) -> Picture:
    container = open_container(data, kind)
    _check_size(*container.size, kind=kind, limits=limits)
    with _decoder(kind)(BytesIO(container.data)) as image:
        # Whatever decodes fewer pixels than the file holds has its place here, and in the
        # specification: before the limits, which are about what is decoded.
        _check_size(image.width, image.height, kind, limits)
        image.load()
        tile, notes = _squeeze(image, container, spec)
        width, height = image.size
        orientation = _orientation(image, container, kind)
        frames = _frames(image, container, kind)
    if orientation in _TURNS:
        tile = tile.transpose(_TURNS[orientation])
        notes.append("it was turned upright as its EXIF orientation says")
    if orientation >= 5:
        width, height = height, width
    if min(width, height) < spec.side:
        notes.append(f"it is smaller than {spec.side} pixels a side and was enlarged")
    if frames != 1:
        number = "several" if frames is None else str(frames)
        notes.append(f"only the first of {number} frames was used")
    return Picture(np.asarray(tile), width, height, kind.value, tuple(notes))


def _decoder(kind: Format) -> Any:
    if kind is Format.HEIC:  # optional, and slow to import
        from pillow_heif import HeifImageFile

        return HeifImageFile
    return _DECODERS[kind]


def _check_size(width: int, height: int, kind: Format, limits: Limits) -> None:
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise InvalidImage(
            Reason.TOO_MANY_PIXELS,
            f"The {kind} picture has {width:,} × {height:,} pixels; at most "
            f"{_count(limits.max_pixels)} pixels and {limits.max_side:,} a side are "
            "accepted: send a smaller one.",
        )


def _count(number: int) -> str:
    """Write a number for people: round ones in millions."""
    return f"{number / 1e6:g} million" if number % 1_000_000 == 0 else f"{number:,}"


def _orientation(image: ImageFile, container: Container, kind: Format) -> int:
    if kind in (Format.WEBP, Format.AVIF):  # AVIF's own turn, which Pillow states as EXIF
        return exif_orientation(image.info.get("exif", b""))
    return container.orientation  # HEIC is turned by its decoder


def _frames(image: ImageFile, container: Container, kind: Format) -> int | None:
    if kind in (Format.WEBP, Format.AVIF):
        return int(getattr(image, "n_frames", 1))
    return container.frames


def _squeeze(
    image: ImageFile, container: Container, spec: Preprocessing
) -> tuple[Image.Image, list[str]]:
    """Return the picture as side × side RGB, and notes on what was done to its pixels."""
    square, resample = (spec.side, spec.side), _FILTERS[spec.filter]
    notes = []
    tags: Any = getattr(image, "tag_v2", {})
    if 16 in (container.bits, *tags.get(_TIFF_BITS, ())):
        notes.append("its 16 bits a channel were scaled to 8")
    if image.mode.startswith(("I", "F")):
        deep, full_scale, any_transparent = _deep_grey(image)
        if any_transparent:
            notes.append(ON_WHITE)
        # Squeezed before it is scaled: 64 × 64 pixels are rounded, not millions
        values = np.asarray(deep.resize(square, resample), np.float64)
        grey = np.clip(values * (255 / full_scale) + 0.5, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB"), notes
    if image.has_transparency_data:
        flat, any_transparent = _on_white(image, container.bits)
        if any_transparent:
            notes.append(ON_WHITE)
    elif image.mode in ("RGB", "L"):
        flat = image  # a conversion would be a copy of every pixel
    else:
        flat = image.convert("L" if image.mode == "1" else "RGB")
    tile = flat.resize(square, resample)
    return (tile if tile.mode == "RGB" else tile.convert("RGB")), notes


def _deep_grey(image: ImageFile) -> tuple[Image.Image, int, bool]:
    """Return grey of more than 8 bits as one that Pillow resizes right, its value of white, and
    whether any of it was transparent."""
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode in ("I", "F"):
        raise InvalidImage(
            Reason.FORMAT_NOT_ALLOWED,
            f"The {image.format} picture holds signed, 32-bit or fractional numbers, whose black "
            "and white nobody states; save it with 8 or 16 bits a channel.",
        )
    values = np.asarray(image)
    white = 4095 if tags.get(_TIFF_BITS) == (12,) else 65535
    if tags.get(_TIFF_PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        values = white - values
    transparent = values == image.info.get("transparency", -1)  # a PNG's one value for nothing
    any_transparent = bool(transparent.any())
    if any_transparent:
        values = np.where(transparent, white, values)
    return Image.fromarray(values.astype(np.uint16)), white, any_transparent


def _on_white(image: ImageFile, bits: int) -> tuple[Image.Image, bool]:
    """Return the picture in RGB on white, and whether any of it was transparent."""
    key = image.info.get("transparency")
    if isinstance(key, int) and image.mode == "L" and bits < 8:
        image.info["transparency"] = key * 255 // (2**bits - 1)  # PNG states it unscaled
    elif isinstance(key, tuple) and bits == 16:
        # Pillow keeps the high bytes of 16-bit colours, so near shades become transparent too
        image.info["transparency"] = tuple(value >> 8 for value in key)
    full: Image.Image = image
    if image.mode == "La":
        full = full.convert("LA")
    if full.mode != "RGBA":
        full = full.convert("RGBA")
    alpha = full.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return full.convert("RGB"), False
    flat = Image.new("RGB", full.size, "white")
    flat.paste(full, mask=alpha)
    return flat, True


def _undecodable(data: bytes, kind: Format, error: Exception) -> InvalidImage:
    if "truncated" in str(error) or isinstance(error, EOFError):
        return cut_off(data, kind)
    return InvalidImage(
        Reason.DAMAGED,
        f"The {kind} picture of {size(data)} cannot be decoded: it is damaged, or of a "
        f"variant of {kind} that is not supported; save it anew and send that.",
    )
