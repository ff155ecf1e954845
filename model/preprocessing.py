"""From the bytes of a picture to the numbers of the network: one way, for training and serving.

encoded bytes → upright RGB, squeezed to side × side × 3 uint8 → vector of side·side·3 in [0, 1]

A JPEG is shrunk while it is decoded, as far as the specification allows: its decoder then works
out an 8 × 8 block as 4 × 4, 2 × 2 or one pixel. The squeeze comes before the turn: on a square
they commute, and turning 64×64 pixels costs nothing. Colour profiles and XMP are not read; EXIF
is, for its orientation.
"""

import warnings
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from io import BytesIO
from typing import Any, Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, TiffImagePlugin
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
from model.memory import MemoryBudget, OverBudget, TooLate, bytes_to_decode, bytes_to_squeeze
from model.squeeze import Box, squeeze

__all__ = [
    "DEFAULT_LIMITS",
    "InvalidImage",
    "Limits",
    "MemoryBudget",
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
# The threads that read pictures fill the cores already.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

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


@dataclass(frozen=True)
class Limits:
    """What a picture may take, judged by its header before pixels are decoded.

    The pixels that count are those decoded: of a JPEG, what is left of it after it was shrunk in
    decoding, unless its decoder holds the whole all the same, as it does of a progressive one.
    """

    max_pixels: int = 25_000_000
    max_side: int = 10_000
    # What the pictures read at the same time may take together: one that needs more than all of
    # it is refused, one that needs more than there is now waits
    memory: MemoryBudget = field(default_factory=MemoryBudget)

    @property
    def max_pixels_in_file(self) -> int:
        """The most in a JPEG that is shrunk: decoding it takes time for every one of them."""
        return 8 * self.max_pixels


DEFAULT_LIMITS: Final = Limits()


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
    Raises InvalidImage; and TooLate, where the thread's work has a time limit.
    """
    kind = recognise(data)
    try:
        return _read(data, kind, spec, limits)
    except (InvalidImage, TooLate):
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
    if not _is_within(*container.size, limits):
        raise _too_many_pixels(*container.size, kind, limits)
    memory = container.opening_bytes
    if memory:
        memory += bytes_to_squeeze(*container.size, spec.side)
    try:
        with (
            limits.memory.reserve(memory),
            closing(_decoder(kind)(BytesIO(container.data))) as image,
        ):
            return _read_opened(image, container, kind, spec, limits)
    except OverBudget as error:
        raise _too_large(*container.size, memory, kind, limits) from error


def _read_opened(
    image: ImageFile, container: Container, kind: Format, spec: Preprocessing, limits: Limits
) -> Picture:
    width, height = image.size
    box = _shrink_in_decoding(image, container, spec)
    if container.can_shrink and not container.held_whole:
        decoded, in_file = image.size, limits.max_pixels_in_file
    else:
        decoded, in_file = (width, height), limits.max_pixels
    if not _is_within(*decoded, limits) or width * height > in_file:
        raise _too_many_pixels(width, height, kind, limits)
    if image.mode in ("I", "F"):
        raise InvalidImage(
            Reason.FORMAT_NOT_ALLOWED,
            f"The {kind} picture holds signed, 32-bit or fractional numbers, whose black and "
            "white nobody states; save it with 8 or 16 bits a channel.",
        )
    memory = 0  # or all of it is there already
    if not container.opening_bytes:
        memory = bytes_to_decode(image, kind, container.beside_bytes)
        memory += bytes_to_squeeze(*image.size, spec.side)
    try:
        with limits.memory.reserve(memory), closing(image):
            pixels = _load(image, kind, len(container.data))
            tile, notes = squeeze(pixels, spec.side, _FILTERS[spec.filter], box, container.bits)
            del pixels
    except OverBudget as error:
        raise _too_large(width, height, memory, kind, limits) from error
    orientation = _orientation(image, container, kind)
    if orientation in _TURNS:
        tile = tile.transpose(_TURNS[orientation])
        notes.append("it was turned upright as its EXIF orientation says")
    if orientation >= 5:
        width, height = height, width
    if min(width, height) < spec.side:
        notes.append(f"it is smaller than {spec.side} pixels a side and was enlarged")
    frames = _frames(image, container, kind)
    if frames != 1:
        number = "several" if frames is None else str(frames)
        notes.append(f"only the first of {number} frames was used")
    return Picture(np.asarray(tile), width, height, kind.value, tuple(notes))


def _decoder(kind: Format) -> Any:
    if kind is Format.HEIC:  # optional, and slow to import
        from pillow_heif import HeifImageFile, options

        options.DECODE_THREADS = 1
        return HeifImageFile
    return _DECODERS[kind]


def _shrink_in_decoding(image: ImageFile, container: Container, spec: Preprocessing) -> Box:
    """Let a JPEG be decoded as small as is allowed; return where in that the picture lies.

    Its last row and column of pixels may lie beyond the picture's edge in part.
    """
    drafted = None
    if container.can_shrink and spec.jpeg_times is not None:
        least = spec.side * spec.jpeg_times
        drafted = image.draft(None, (least, least))
    return drafted[1] if drafted else (0, 0, *image.size)


def _load(image: Any, kind: Format, size: int) -> Image.Image:
    """Decode the pixels; of WebP and AVIF, letting their decoders go before anything is copied."""
    if kind is Format.WEBP:
        data, mode = image._decoder.get_next()[0], image.rawmode
    elif kind is Format.AVIF:
        data, mode = image._decoder.get_frame(0)[0], image.mode
    else:
        if kind is Format.JPEG:
            image.decodermaxblock = size  # all at once, which takes no copy
        image.load()
        return cast(Image.Image, image)
    image._decoder = None
    return Image.frombuffer(mode, image.size, data, "raw", mode, 0, 1)


def _is_within(width: int, height: int, limits: Limits) -> bool:
    return width * height <= limits.max_pixels and max(width, height) <= limits.max_side


def _too_many_pixels(width: int, height: int, kind: Format, limits: Limits) -> InvalidImage:
    larger = (
        f" ({_count(limits.max_pixels_in_file)} pixels in a baseline JPEG, which is shrunk while it"
        " is decoded)"
    )
    return InvalidImage(
        Reason.TOO_MANY_PIXELS,
        f"The {kind} picture has {width:,} × {height:,} pixels; at most "
        f"{_count(limits.max_pixels)} pixels and {limits.max_side:,} a side are "
        f"accepted{larger if kind is Format.JPEG else ''}: send a smaller one.",
    )


def _too_large(width: int, height: int, memory: int, kind: Format, limits: Limits) -> InvalidImage:
    baseline = "" if kind is Format.JPEG else ", or as a baseline JPEG"
    return InvalidImage(
        Reason.TOO_MANY_PIXELS,
        f"The {kind} picture of {width:,} × {height:,} pixels needs {memory / 1e6:,.0f} MB of "
        f"memory to be decoded, and there are {(limits.memory.total or 0) / 1e6:,.0f} MB: "
        f"send it smaller{baseline}.",
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


def _undecodable(data: bytes, kind: Format, error: Exception) -> InvalidImage:
    if "truncated" in str(error) or isinstance(error, EOFError):
        return cut_off(data, kind)
    return InvalidImage(
        Reason.DAMAGED,
        f"The {kind} picture of {size(data)} cannot be decoded: it is damaged, or of a "
        f"variant of {kind} that is not supported; save it anew and send that.",
    )
