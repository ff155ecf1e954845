"""The bytes of a picture to its pixels: each format with its one decoder.

JPEG goes to libjpeg-turbo by simplejpeg, which tells of missing data, everything else to Pillow.
A decoder may take more memory or time than there is: that is for the limits of the process.
What was seen to give wrong pixels is refused by name.
"""

import ctypes
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, product
from typing import Any, Final, cast

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from PIL import AvifImagePlugin, Image, ImagePalette, TiffImagePlugin, _webp
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.formats import Format, InvalidImage, Reason, damaged, not_accepted, transfer_damage

# `Limits` are checked here, so Pillow's own are not: a fixed number for the whole process
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of odd metadata, which is nobody's concern here
warnings.filterwarnings("ignore", module=r"PIL\.")
# Pillow's table has 16-bit grey whose 0 is white in the other byte order only. A key is byte order,
# photometric, sample format, fill order, bits, extra samples.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a process for each core

ORIENTATION_TAG: Final = 0x0112
WITHOUT_END: Final = "its end marker is missing, but its pixels are complete"


@dataclass(frozen=True)
class Limits:
    """What a picture may have, judged by its header before pixels are decoded.

    The pixels that count are those decoded: of a JPEG, what is left of it after it was shrunk in
    decoding, unless its decoder holds the whole all the same, as it does of a progressive one.
    """

    max_pixels: int = 25_000_000
    max_side: int = 10_000

    @property
    def max_pixels_in_file(self) -> int:
        """The most in a JPEG that is shrunk: decoding it takes time for every one of them."""
        return 8 * self.max_pixels

    def check(
        self, kind: Format, size: tuple[int, int], held: tuple[int, int] | None = None
    ) -> None:
        """Raise InvalidImage for a picture of this width and height that has too much.

        held: the width and height that its decoder holds, where they are fewer.
        """
        width, height = held or size
        if (
            width * height > self.max_pixels
            or max(width, height) > self.max_side
            or size[0] * size[1] > self.max_pixels_in_file
        ):
            raise self.too_many_pixels(kind, f"{size[0]:,} × {size[1]:,} pixels")

    def too_many_pixels(self, kind: Format, found: str) -> InvalidImage:
        """Return the refusal; found: as after "The picture has"."""
        limit = f"{_count(self.max_pixels)} pixels"
        if kind is Format.JPEG:
            limit += f" ({_count(self.max_pixels_in_file)} pixels in a baseline JPEG)"
        return InvalidImage(
            Reason.TOO_MANY_PIXELS,
            f"The {kind} picture has {found}. The limit is {limit} and {self.max_side:,} pixels "
            "per side. Send a smaller picture.",
        )


def _count(number: int) -> str:
    """Write a number for people: round ones in millions."""
    return f"{number / 1e6:g} million" if number % 1_000_000 == 0 else f"{number:,}"


@dataclass
class Decoded:
    """Pixels as they lie in the file, not turned yet, and what the file says of them."""

    image: Image.Image
    format: str
    width: int  # pixels of the picture in the file
    height: int
    scale: int = 1  # how many times smaller a JPEG was decoded; its last row may be a part of one
    orientation: int = 1  # as EXIF counts it: 1 is upright, up to 8
    animated: bool = False
    any_transparent: bool = False  # of the pixels that were flattened so far
    bits: int = 8  # a channel
    warnings: list[str] = field(default_factory=list)
    data: bytes = b""  # the file


def decode(
    data: bytes, kind: Format, reduction: Callable[[int, int], int], limits: Limits
) -> Decoded:
    """Decode a picture of that format.

    reduction: how many times smaller than its width and height a JPEG may be decoded. It is decoded
    at 1/8, 1/4, 1/2 or its whole size.
    Raises InvalidImage; MemoryError where its decoder got less memory than it asked for.
    """
    with refusing(data, kind):
        if kind is Format.JPEG:
            decoded = _decode_jpeg(data, reduction, limits)
        else:
            decoded = _decode_with_pillow(data, kind, limits)
        decoded.data = data
        return decoded


@contextmanager
def refusing(data: bytes, kind: Format) -> Iterator[None]:
    """Make InvalidImage or MemoryError of what the work on a picture of that format raises."""
    try:
        yield
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever the bytes lead them to
        if _NO_MEMORY.search(str(error)):
            raise MemoryError(str(error)) from None
        cut_off = "truncated" in str(error) or isinstance(
            error, (EOFError, IndexError, struct.error)
        )
        raise damaged(data, kind, cut_off=cut_off) from error


# What Pillow raises where it reads what is not as it should be
_ODD_METADATA: Final = (
    *(SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(OSError, EOFError, struct.error, zlib.error),
)
# How libraries say that an allocation failed, where they say it
_NO_MEMORY: Final = re.compile(
    r"insufficient memory|out of memory|memory allocation|error -9\b", re.IGNORECASE
)


def orientation_of(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that an EXIF block states; 1 where it states none.

    XMP may state one too. It is not used, as browsers do not use it.
    """
    tags = Image.Exif()
    try:
        tags.load(exif)
        return _valid_orientation(tags.get(ORIENTATION_TAG))
    except _ODD_METADATA:  # no reason to refuse good pixels
        return 1


def _valid_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


# --- JPEG ----------------------------------------------------------------------------------------

_START_OF_SCAN, _END, _JFIF, _EXIF, _ADOBE = 0xDA, b"\xff\xd9", 0xE0, 0xE1, 0xEE
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = 0xC2  # the last of the decoded ones
# APP1 to APP13, APP15 and comments; APP0 (JFIF) and APP14 (Adobe) tell how colours are stored
_METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})
_MARKER_AMONG_PIXELS = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # no fill, no restart
# Bytes after the last pixel, which cameras leave there
_PADDING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_MOST_PADDING = 16
_MISSING_DATA = ("Corrupt JPEG data", "Premature end")  # how complaints of it begin


@dataclass
class _JpegHeader:
    """What stands before the pixels of a JPEG."""

    width: int = 0
    height: int = 0
    components: bytes = b""  # their numbers
    orientation: int = 1
    one_pass: bool = False  # whether a decoder needs no memory for the whole picture
    needed: list[tuple[int, int]] = field(default_factory=list)  # segments, and what follows
    scan: int = 0  # where the first scan begins


def _read_jpeg_header(data: bytes) -> _JpegHeader:
    """Raises InvalidImage for a rare kind; EOFError, IndexError or struct.error if cut off."""
    header = _JpegHeader(needed=[(0, 2)])
    has_exif = False
    at = 2
    while True:
        if (found := data.find(b"\xff", at)) < 0:
            raise EOFError
        marker = data[found + 1]
        if marker == 0xFF:  # a fill byte before the marker
            at = found + 1
        elif marker in _WITHOUT_LENGTH:
            at = found + 2
        elif marker == _START_OF_SCAN:
            header.one_pass &= data[found + 4] >= len(header.components)
            header.needed.append((found, len(data)))
            header.scan = found
            return header
        else:
            at = found + 2 + int.from_bytes(data[found + 2 : found + 4], "big")
            if marker == _EXIF and not has_exif and data[found + 4 : found + 8] == b"Exif":
                has_exif = True
                header.orientation = orientation_of(data[found + 4 : at])
            if marker in _FRAMES:
                if marker > _PROGRESSIVE or data[found + 4] != 8:
                    if transfer_damage(data):
                        raise damaged(data, Format.JPEG)
                    # Which crash decoders, or hide what is missing; browsers show none of them
                    raise not_accepted("a lossless, 12-bit or arithmetic-coded JPEG, or a JPEG-LS")
                header.one_pass = marker != _PROGRESSIVE
                header.height, header.width, number = struct.unpack_from(">HHB", data, found + 5)
                header.components = data[found + 10 : found + 10 + 3 * number : 3]
            if marker not in _METADATA:
                header.needed.append((found, at))


def _decode_jpeg(data: bytes, reduction: Callable[[int, int], int], limits: Limits) -> Decoded:
    header = _read_jpeg_header(data)
    width, height = header.width, header.height
    scale = next((s for s in (8, 4, 2) if reduction(width, height) >= s), 1)
    shape = -(-width // scale), -(-height // scale)
    limits.check(Format.JPEG, (width, height), shape if header.one_pass else None)
    image, notes = _jpeg_pixels(data, header, scale, shape)
    return Decoded(image, Format.JPEG, width, height, scale, header.orientation, warnings=notes)


def _jpeg_pixels(
    data: bytes, header: _JpegHeader, scale: int, shape: tuple[int, int]
) -> tuple[Image.Image, list[str]]:
    """Return the pixels at that scale, to that width and height, and warnings.

    Raises InvalidImage where some of them are missing, as far as libjpeg-turbo tells.
    """
    if not header.one_pass and not _has_all_scans(data, header):
        raise damaged(data, Format.JPEG, cut_off=True)
    mode = {1: "L", 4: "CMYK"}.get(len(header.components), "RGBX")
    for tried, notes in _jpeg_attempts(data, header):
        try:
            return _libjpeg(tried, mode, scale, shape), notes
        except ValueError as error:
            complaint = str(error)
    if _NO_MEMORY.search(complaint):
        raise MemoryError(complaint)
    if (padding := _PADDING.match(complaint)) and int(padding[1]) <= _MOST_PADDING:
        return _libjpeg(tried, mode, scale, shape, strict=False), []
    if complaint.startswith(_MISSING_DATA):
        raise damaged(data, Format.JPEG, cut_off="remature end" in complaint)
    try:
        _libjpeg(tried, mode, scale, shape, strict=False)
    except ValueError:  # what simplejpeg cannot do, such as odd subsampling
        if header.one_pass:  # with zeros for an end marker, Pillow says whether it needs more
            tried = tried.removesuffix(_END) + bytes(_MOST_PADDING)
        return _pillow_jpeg(tried, scale), []
    raise damaged(data, Format.JPEG)  # an unknown complaint may hide one of missing pixels


def _jpeg_attempts(data: bytes, header: _JpegHeader) -> Iterator[tuple[bytes, list[str]]]:
    """Yield the file with less and less that may be complained of, and what to warn of.

    Only the first complaint is heard. It may be about metadata, padding or the end marker.
    """
    yield data, []
    needed = b"".join(_without_oddities(data[slice(*each)], header) for each in header.needed)
    yield needed, []
    yield needed + _END, [WITHOUT_END]
    padded = needed.removesuffix(_END)
    yield padded.rstrip(b"\0") + _END, [] if needed.endswith(_END) else [WITHOUT_END]


def _without_oddities(segment: bytes, header: _JpegHeader) -> bytes:
    """A segment with the values that its decoder would complain of, and then take for these."""
    marker, name = segment[1], segment[4:9]
    if marker == _JFIF and name == b"JFIF\0":
        return segment[:9] + b"\1" + segment[10:]  # its version
    if marker == _ADOBE and name == b"Adobe" and segment[15:16] > b"\2":
        return segment[:15] + (b"\2" if len(header.components) == 4 else b"\1") + segment[16:]
    if marker == _START_OF_SCAN and header.one_pass:
        at = 5 + 2 * segment[4]
        return segment[:at] + b"\0\x3f\0" + segment[at + 3 :]  # the coefficients: all
    return segment


def _libjpeg(
    data: bytes, mode: str, scale: int, shape: tuple[int, int], *, strict: bool = True
) -> Image.Image:
    """Decode to that width and height; raises ValueError with the first complaint."""
    least = {} if scale == 1 else {"min_width": shape[0], "min_height": shape[1]}
    colours = "GRAY" if mode == "L" else mode
    pixels = simplejpeg.decode_jpeg(data, colours, strict=strict, **least)
    if pixels.shape[1::-1] != shape:
        raise ValueError(f"decoded as {pixels.shape}, expected {shape}")
    if mode == "CMYK":
        del pixels  # Pillow turns inks to colours
        return _pillow_jpeg(data, scale)
    return Image.frombuffer(mode, shape, pixels, "raw", mode, 0, 1)


def _pillow_jpeg(data: bytes, scale: int) -> Image.Image:
    image = JpegImageFile(BytesIO(data))
    image.draft(None, (image.width // scale, image.height // scale))
    image.decodermaxblock = len(data)  # all at once, which takes no copy
    image.load()
    return image


def _has_all_scans(data: bytes, header: _JpegHeader) -> bool:
    """Whether the scans bring each coefficient of each component to its last bit.

    Where they do not, a decoder is content: a progressive picture is allowed to be a coarse one.
    """
    bits_left: dict[tuple[int, int], int] = {}  # of each coefficient that has come
    at = header.scan
    while found := _MARKER_AMONG_PIXELS.search(data, at):
        at = found.end()
        if data[at - 1] == _END[1] or at + 3 > len(data):
            break
        if data[at - 1] == _START_OF_SCAN:
            count = data[at + 2]
            scanned = data[at + 3 : at + 3 + 2 * count : 2]
            first, last, bits = data[at + 3 + 2 * count : at + 6 + 2 * count]
            for each in product(scanned, range(first, last + 1)):
                if bits_left.get(each, 0) == bits >> 4:  # a scan adds to what came before it
                    bits_left[each] = bits & 15
        at += int.from_bytes(data[at : at + 2], "big")
    every = product(header.components, range(64))
    return all(bits_left.get(each) == 0 for each in every)


# --- PNG, WebP, AVIF, GIF, BMP -------------------------------------------------------------------


def _decode_with_pillow(data: bytes, kind: Format, limits: Limits) -> Decoded:
    if kind is Format.WEBP and (still := _decode_still_webp(data, limits)):
        return still
    Image.MAX_IMAGE_PIXELS = limits.max_pixels // 2
    try:  # Pillow refuses twice as many where it needs memory for them as soon as it opens a file
        image = _open_png(data) if kind is Format.PNG else _DECODERS[kind](BytesIO(data))
    except Image.DecompressionBombError:
        raise limits.too_many_pixels(kind, "too many pixels") from None
    finally:
        Image.MAX_IMAGE_PIXELS = None
    width, height = image.size
    limits.check(kind, image.size)
    animated = bool(getattr(image, "is_animated", False))  # asked later, a GIF is decoded twice
    try:
        pixels = _load(image, kind)
    except (OSError, RuntimeError, ValueError):
        # Some decoders do not say that it was memory they lacked. MemoryError, if it may have been:
        np.empty(4 * width * height + 2**24, np.uint8)
        raise
    decoded = Decoded(pixels, kind, width, height)
    if kind is not Format.HEIC:  # which its decoder turns
        decoded.animated = animated
        decoded.orientation = orientation_of(image.info.get("exif", b""))
    if kind is Format.PNG:
        decoded.bits = data[_PNG_DEPTH]
        if pixels.mode == "P" and pixels.palette is None:
            raise damaged(data, kind)
        _state_transparent_colour(pixels, decoded.bits)
    if isinstance(image, _Tiff):
        decoded.bits, decoded.orientation = image.bits, image.orientation
    return decoded


def _load(image: Any, kind: Format) -> Image.Image:
    """Decode the pixels; of AVIF, letting its decoder go before anything is copied."""
    if kind is not Format.AVIF:
        if kind is Format.TIFF:
            image.refuse_missing_pixels()
        frame = image.tile[0].extents if kind is Format.GIF else None
        image.load()
        if frame and "transparency" not in image.info and frame != (0, 0, *image.size):
            alpha = Image.new("L", image.size)  # around the frame, browsers show nothing
            alpha.paste(255, frame)
            image.putalpha(alpha)
        if kind is Format.BMP and image.mode == "RGBA" and image.getbbox() is None:
            image.putalpha(255)  # programs that know no alpha write 0 everywhere
        return cast(Image.Image, image)
    pixels, image._decoder = image._decoder.get_frame(0)[0], None
    return Image.frombuffer(image.mode, image.size, pixels, "raw", image.mode, 0, 1)


def _open_heic(file: BytesIO) -> Any:
    from pillow_heif import HeifImageFile, options  # optional, and slow to import

    options.DECODE_THREADS = 1
    return HeifImageFile(file)


_PNG_PIXEL_CHUNKS: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_PNG_DEPTH: Final = 24  # where the bits a channel stand


def _open_png(data: bytes) -> PngImageFile:
    """Open a PNG; where Pillow refuses it for what is beside its pixels, without that.

    Pillow looks at no checksum of pixels. Raises InvalidImage, struct.error.
    """
    needed: list[bytes | memoryview] = [data[:8]]
    at, name = 8, b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = memoryview(data)[at : at + 12 + length]
        if len(chunk) < 12 + length:
            raise damaged(data, Format.PNG, cut_off=True)
        if name in _PNG_PIXEL_CHUNKS:
            if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise InvalidImage(
                    Reason.DAMAGED,
                    f"The PNG picture is damaged: the checksum of its {name.decode()} chunk at "
                    f"byte {at:,} does not match; {transfer_damage(data) or 'send it again'}.",
                )
            needed.append(chunk)
        at += len(chunk)
    try:
        return PngImageFile(BytesIO(data))
    except _ODD_METADATA:
        return PngImageFile(BytesIO(b"".join(needed)))


def _state_transparent_colour(image: Image.Image, bits: int) -> None:
    """Write the one transparent colour of a PNG as Pillow's conversions take it."""
    key = image.info.get("transparency")
    if isinstance(key, int) and image.mode == "L" and bits < 8:
        image.info["transparency"] = key * 255 // (2**bits - 1)  # PNG states it unscaled
    elif isinstance(key, bytes):
        image.info["transparency"] = key[:256]  # of as many as a palette can have
    elif isinstance(key, tuple) and bits == 16:
        # Pillow keeps the high bytes of 16-bit colours, so near shades become transparent too
        image.info["transparency"] = tuple(value >> 8 for value in key)


_libwebp = ctypes.CDLL(_webp.__file__)  # Pillow's module, and the library that it is linked with
_WEBP_ABI, _WEBP_ANIMATION, _WEBP_EXIF = 0x0200, 0x02, 0x08


def _decode_still_webp(data: bytes, limits: Limits) -> Decoded | None:
    """Decode a WebP of one frame into the memory of its pixels alone; None where that cannot be.

    Pillow only knows the decoder for animations, which takes three times as much.
    """
    is_animated = data[12:16] == b"VP8X" and data[20] & _WEBP_ANIMATION
    if is_animated or not hasattr(_libwebp, "WebPDecodeRGBAInto"):  # which may be linked statically
        return None
    length, features = ctypes.c_size_t(len(data)), (ctypes.c_int * 10)()
    if _libwebp.WebPGetFeaturesInternal(data, length, features, _WEBP_ABI):
        raise damaged(data, Format.WEBP)
    width, height, has_alpha, *_ = features
    limits.check(Format.WEBP, (width, height))
    pixels = np.empty((height, width, 4), np.uint8)
    _libwebp.WebPDecodeRGBAInto.restype = ctypes.c_void_p
    start, room = pixels.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(pixels.nbytes)
    if not _libwebp.WebPDecodeRGBAInto(data, length, start, room, 4 * width):
        np.empty_like(pixels)  # raises MemoryError where that may have been the reason
        raise damaged(data, Format.WEBP)
    mode = "RGBA" if has_alpha else "RGBX"
    image = Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)
    return Decoded(image, Format.WEBP, width, height, orientation=orientation_of(_webp_exif(data)))


def _webp_exif(data: bytes) -> bytes:
    at = 12
    while data[12:16] == b"VP8X" and data[20] & _WEBP_EXIF and at + 8 <= len(data):
        start, at = at, _webp_chunk_end(data, at)
        if data[start : start + 4] == b"EXIF":
            return data[start + 8 : at]
    return b""


def _webp_chunk_end(data: bytes, at: int) -> int:
    size = int.from_bytes(data[at + 4 : at + 8], "little")
    return at + 8 + size + size % 2


# --- TIFF ----------------------------------------------------------------------------------------

_BITS, _PHOTOMETRIC, _MAKER, _COLOURS, _WIDTH, _HEIGHT = 258, 262, 271, 320, 256, 257
_SUBFILE, _SUB_DIRECTORIES, _SAMPLE_FORMAT, _SUBSAMPLING, _DNG_VERSION = 254, 330, 339, 530, 50706
_STRIP_OFFSETS, _STRIP_ROWS, _STRIP_SIZES, _JPEG_TABLES = 273, 278, 279, 347
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_SIZES = 322, 323, 324, 325
_PREVIEW, _YCBCR, _SENSOR, _PLANES_APART, _UNSIGNED = 1, 6, (32803, 34892), 2, 1
_RAWS: Final = {"nikon": "NEF", "sony": "ARW", "pentax": "PEF", "samsung": "SRW"}  # by their maker


def _unsupported(what: str) -> InvalidImage:
    """Return the refusal of a TIFF; what: as after "a TIFF with"."""
    return InvalidImage(
        Reason.FORMAT_NOT_ALLOWED,
        f"The file is a TIFF with {what}, which is not supported. Save it as PNG, or as an "
        "interleaved RGB or grey TIFF with 8 or 16 bits and no extra channels.",
    )


class _Tiff(TiffImageFile):
    """A TIFF whose pixels Pillow reads right; they stay as they lie in the file."""

    bits = 8  # a channel
    orientation = 1

    def _open(self) -> None:
        try:
            super()._open()
        except (SyntaxError, KeyError) as error:
            if not isinstance(error, KeyError) and "unknown" not in str(error):
                raise
            raise _unsupported("an unusual combination of channels, bits or compression") from error
        tags = self.tag_v2
        self._refuse_half_a_directory()
        self._refuse_camera_raws()
        self._refuse_what_pillow_misreads()
        self.bits = max(tags.get(_BITS, (1,)))
        self.orientation = _valid_orientation(tags.get(ORIENTATION_TAG))
        self._size = self._tile_size
        if self.mode in ("P", "PA") and max(tags[_COLOURS]) < 256:  # of 8 bits, where 16 belong
            self.palette = ImagePalette.raw("RGB;L", bytes(tags[_COLOURS]))

    def load_end(self) -> None:
        """Leave the pixels as they lie: they are turned once they are few."""

    def _refuse_half_a_directory(self) -> None:
        """Without its last tags (the predictor!) pixels are wrong. Pillow takes what is there."""
        data, tags = cast(BytesIO, self.fp).getvalue(), self.tag_v2
        order, big = ("<" if tags.prefix == b"II" else ">"), tags._bigtiff
        (count,) = struct.unpack_from(order + "HQ"[big], data, tags.offset)
        if tags.offset + (6 + 12 * count, 16 + 20 * count)[big] > len(data):
            raise EOFError("truncated directory")

    def _refuse_camera_raws(self) -> None:
        """Many raws are TIFFs that begin with a thumbnail."""
        tags, area = self.tag_v2, self._tile_size[0] * self._tile_size[1]
        if (
            _DNG_VERSION in tags
            or tags.get(_SUBFILE, 0) & _PREVIEW
            or any(
                each.get(_PHOTOMETRIC) in _SENSOR
                or each.get(_WIDTH, 0) * each.get(_HEIGHT, 0) > area
                for each in chain([tags], self._sub_directories())
            )
        ):
            maker = str(tags.get(_MAKER, "")).lower().partition(" ")[0]
            name = "DNG" if _DNG_VERSION in tags else _RAWS.get(maker, "or similar")
            raise not_accepted(f"a camera raw ({name}), or a TIFF that begins with a preview")

    def _sub_directories(self) -> Iterator[Any]:
        assert self.fp is not None
        self.fp.seek(0)
        start = self.fp.read(16 if self.tag_v2._bigtiff else 8)
        for offset in self.tag_v2.get(_SUB_DIRECTORIES, ())[:8]:
            directory = TiffImagePlugin.ImageFileDirectory_v2(start)
            self.fp.seek(offset)
            directory.load(self.fp)
            yield directory

    def _refuse_what_pillow_misreads(self) -> None:
        """Refuse layouts in which its pixels are not those that another reader gives."""
        tags, raw = self.tag_v2, self._compression == "raw"
        if self.mode in ("I", "F") or set(tags.get(_SAMPLE_FORMAT, ())) - {_UNSIGNED}:
            raise _unsupported("signed, 32-bit or floating-point values without a defined white")
        if self.mode == "LAB" or self._compression == "webp":
            raise _unsupported("LAB colours or WebP compression")
        if self._planar_configuration == _PLANES_APART and len(self.getbands()) > 1:
            is_read_right = self.mode in ("RGB", "RGBA") and not (
                raw and max(tags.get(_BITS, (1,))) > 8
            )
        else:
            is_subsampled = tags.get(_SUBSAMPLING, (1, 1)) != (1, 1)
            is_read_right = not (raw and tags.get(_PHOTOMETRIC) == _YCBCR and is_subsampled)
        if not is_read_right:
            raise _unsupported("separate planes or subsampled colours")

    def refuse_missing_pixels(self) -> None:
        """Raises InvalidImage where strips or tiles are missing, empty, too short or holed."""
        tags, (width, height) = self.tag_v2, self._tile_size
        data = cast(BytesIO, self.fp).getvalue()
        if _TILE_OFFSETS in tags:
            offsets, sizes = tags[_TILE_OFFSETS], tags.get(_TILE_SIZES)
            across, down = tags[_TILE_WIDTH], tags[_TILE_HEIGHT]
        else:
            offsets, sizes = tags.get(_STRIP_OFFSETS, ()), tags.get(_STRIP_SIZES)
            across, down = width, min(tags.get(_STRIP_ROWS, height), height)
        sizes = sizes or [len(data)] * len(offsets)
        bits = tags.get(_BITS, (1,))
        planes = len(bits) if self._planar_configuration == _PLANES_APART else 1
        number = -(-width // across) * -(-height // down) * planes
        least = planes * height * -(-width * sum(bits) // planes // 8)
        tables, parts = tags.get(_JPEG_TABLES, b""), zip(offsets, sizes, strict=False)
        if (
            len(offsets) < number
            or not all(sizes)
            or (self._compression == "raw" and sum(sizes) < least)
            or (
                self._compression == "jpeg"
                and any(_has_hole(data[at : at + size], tables) for at, size in parts)
            )
        ):
            raise damaged(data, Format.TIFF, cut_off=True)


def _has_hole(strip: bytes, tables: bytes) -> bool:
    """Whether a strip of JPEG lacks data, which libtiff does not tell."""
    try:
        simplejpeg.decode_jpeg(tables[:-2] + strip[2:] if tables else strip, "GRAY")
    except ValueError as error:
        return str(error).startswith(_MISSING_DATA)
    return False


_DECODERS: Final[dict[Format, Callable[[BytesIO], Any]]] = {
    Format.WEBP: WebPImageFile,
    Format.GIF: GifImageFile,
    Format.BMP: BmpImageFile,
    Format.TIFF: _Tiff,
    Format.AVIF: AvifImageFile,
    Format.HEIC: _open_heic,
}
