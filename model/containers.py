"""Read the containers that pixels travel in, and keep of them what the pixels need.

Metadata is where a small file becomes a large bill: text chunks that inflate, thousands of EXIF
segments joined one by one, hundreds of thousands of tags. A decoder that never sees them cannot
stumble over them, so `open_container` reads the few facts that matter (orientation, frames,
depth) itself, in bounded work, and hands on the container without the rest.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from model import avif
from model.formats import Format, InvalidImage, Reason, size

MAX_PARTS = 100_000  # segments, chunks or blocks; 25 MB of ordinary ones are fewer
MAX_TAGS = 4_096
MAX_SCANS = 40  # passes over a JPEG's pixels; encoders make about ten
MAX_LAYERS = 8  # of an AVIF picture that is shown while it loads; four are what the format names
MAX_COUNTED_FRAMES = 10_000


@dataclass(frozen=True)
class Container:
    """What a decoder is given, and what it no longer says itself."""

    data: bytes
    orientation: int = 1  # as EXIF counts it: 1 is upright, up to 8
    frames: int | None = 1  # None: several, more than are worth counting
    bits: int = 8  # a channel
    size: tuple[int, int] = (0, 0)  # that a decoder may allocate for, where that is not its size
    can_shrink: bool = False  # whether its decoder can give fewer pixels
    held_whole: bool = True  # whether its decoder holds the whole picture even then
    beside_bytes: int = 0  # of memory that its decoder takes besides the pixels it gives
    opening_bytes: int = 0  # of memory in all, where the decoder takes them as soon as it is opened


def open_container(data: bytes, kind: Format) -> Container:
    """Read the container of a picture of this kind; raises InvalidImage (DAMAGED)."""
    reader = _READERS.get(kind, Container)
    try:
        container = reader(data)
    except (struct.error, IndexError) as error:
        raise cut_off(data, kind) from error
    if container.data is data:
        return container
    return replace(container, beside_bytes=container.beside_bytes + len(container.data))


def cut_off(data: bytes, kind: Format) -> InvalidImage:
    """Return the refusal of a picture that ends too early."""
    return InvalidImage(
        Reason.DAMAGED,
        f"The {kind} picture is cut off: its data ends after {size(data)}, in the middle; "
        "send the whole file.",
    )


def _crowded(kind: Format, what: str, most: int) -> InvalidImage:
    return InvalidImage(
        Reason.DAMAGED,
        f"The {kind} picture is cluttered: it has more than {most:,} {what}; save it anew.",
    )


# --- JPEG ----------------------------------------------------------------------------------------

_JPEG_START_OF_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_EXIF = 0xE1
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JPEG_ONE_PASS_FRAMES = frozenset({0xC0, 0xC1, 0xC9})  # where one scan can hold all components
_JPEG_FRAMES_THAT_SHRINK = frozenset({0xC0, 0xC1, 0xC2})  # cosines, coded as everyone codes them
# APP1 to APP13, APP15 and comments; APP0 (JFIF) and APP14 (Adobe) tell how colours are stored
_JPEG_METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
_JPEG_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})
_JPEG_MARKER_AMONG_PIXELS = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # no fill, no restart


def _jpeg(data: bytes) -> Container:
    view = memoryview(data)
    kept = [view[:2]]
    orientation = 0
    frame = 0  # where the frame header is
    one_pass = False
    at = 2
    for _ in range(MAX_PARTS):
        found = data.find(b"\xff", at)
        if found < 0:
            raise cut_off(data, Format.JPEG)
        marker = data[found + 1]
        if marker == 0xFF:  # a fill byte before the marker
            at = found + 1
        elif marker in _JPEG_WITHOUT_LENGTH:
            at = found + 2
        elif marker == _JPEG_START_OF_SCAN:
            kept.append(view[found:])
            one_pass = (
                frame > 0
                and data[frame + 1] in _JPEG_ONE_PASS_FRAMES
                and data[found + 4] >= data[frame + 9]
            )
            if not one_pass:
                _check_jpeg_scans(data, found)
            break
        else:
            at = found + 2 + struct.unpack_from(">H", data, found + 2)[0]
            if marker == _JPEG_EXIF and not orientation:
                orientation = _exif_orientation(data[found + 4 : at])
            if marker in _JPEG_FRAMES:
                frame = found
            if marker not in _JPEG_METADATA:
                kept.append(view[found:at])
    else:
        raise _crowded(Format.JPEG, "segments", MAX_PARTS)
    untouched = sum(map(len, kept)) == len(data)
    return Container(
        data if untouched else b"".join(kept),
        orientation or 1,
        can_shrink=data[frame + 1] in _JPEG_FRAMES_THAT_SHRINK,
        held_whole=not one_pass,
        beside_bytes=0 if one_pass or not frame else _jpeg_coefficients(data, frame),
    )


def _check_jpeg_scans(data: bytes, at: int) -> None:
    """Refuse more scans than any picture needs: each takes time for every block of pixels."""
    scans = 0
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER_AMONG_PIXELS.search(data, at)
        if found is None or data[found.end() - 1] == _JPEG_END:
            return
        scans += data[found.end() - 1] == _JPEG_START_OF_SCAN
        if scans > MAX_SCANS:
            raise _crowded(Format.JPEG, "scans", MAX_SCANS)
        at = found.end() + struct.unpack_from(">H", data, found.end())[0]
    raise _crowded(Format.JPEG, "segments", MAX_PARTS)


def _jpeg_coefficients(data: bytes, frame: int) -> int:
    """Return the bytes of all coefficients, which a decoder holds where there are several scans:
    two a pixel and component, in whole blocks of 8 × 8."""
    height, width, components = struct.unpack_from(">HHB", data, frame + 5)
    packed = [data[frame + 11 + 3 * i] for i in range(components)]
    factors = [(max(each >> 4, 1), max(each & 15, 1)) for each in packed]
    most_across, most_down = (max(side, default=1) for side in zip(*factors, strict=True))
    return sum(
        2
        * _rounded_up(-(-width * across // most_across), 8 * across)
        * _rounded_up(-(-height * down // most_down), 8 * down)
        for across, down in factors
    )


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


# --- PNG -----------------------------------------------------------------------------------------

_PNG_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


def _png(data: bytes) -> Container:
    view = memoryview(data)
    kept = [view[:8]]
    orientation, frames, bits = 1, 1, 8
    at = 8
    for _ in range(MAX_PARTS):
        length, name = struct.unpack_from(">I4s", data, at)
        content, start, at = view[at + 8 : at + 8 + length], at, at + 12 + length
        if at > len(data):
            raise cut_off(data, Format.PNG)
        if name in _PNG_PIXEL_CHUNKS:
            if zlib.crc32(view[start + 4 : at - 4]) != int.from_bytes(view[at - 4 : at], "big"):
                raise InvalidImage(
                    Reason.DAMAGED,
                    f"The PNG picture is damaged: the checksum of its {name.decode()} chunk at "
                    f"byte {start:,} does not match; send it again.",
                )
            kept.append(view[start:at])
        if name == b"IHDR" and length > 8:
            bits = content[8]
        elif name == b"eXIf":
            orientation = _exif_orientation(bytes(content[:65536])) or 1
        elif name == b"acTL" and length >= 4:
            frames = max(1, int.from_bytes(content[:4], "big"))
        elif name == b"IEND":
            break
    else:
        raise _crowded(Format.PNG, "chunks", MAX_PARTS)
    untouched = sum(map(len, kept)) == len(data)
    return Container(
        data if untouched else b"".join(kept),
        orientation,
        frames if frames <= MAX_COUNTED_FRAMES else None,
        bits,
    )


# --- GIF -----------------------------------------------------------------------------------------


def _gif(data: bytes) -> Container:
    """Count the frames by stepping over their blocks: decoding them is what makes it slow.

    Measure the first: it may be larger than the screen, and the decoder makes room for it, and for
    what is to be seen after it, as soon as it is opened.
    """
    at = 13 + _gif_palette_size(data[10])
    width, height = struct.unpack_from("<HH", data, 6)
    frames, disposal, counted = 0, 0, False
    steps = iter(range(MAX_PARTS))
    for _ in steps:
        if at >= len(data) or data[at] == 0x3B:  # the trailer, which some writers forget
            counted = True
            break
        if data[at] == 0x2C:  # a frame
            if not frames:
                left, top, across, down = struct.unpack_from("<HHHH", data, at + 1)
                width, height = max(width, left + across), max(height, top + down)
            frames += 1
            at = _after_gif_blocks(data, at + 11 + _gif_palette_size(data[at + 9]), steps)
        elif data[at] == 0x21:  # an extension: a comment, a duration, …
            if data[at + 1] == 0xF9 and not frames:
                disposal = max(disposal, data[at + 3] >> 2 & 7)
            at = _after_gif_blocks(data, at + 2, steps)
        else:
            at += 1
    if not counted and not frames:
        raise _crowded(Format.GIF, "blocks before its first frame", MAX_PARTS)
    return Container(
        data,
        frames=max(frames, 1) if counted or frames == 1 else None,
        size=(width, height),
        opening_bytes=width * height * (2 if disposal > 1 else 1),
    )


def _gif_palette_size(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_gif_blocks(data: bytes, at: int, steps: Iterator[int]) -> int:
    for _ in steps:
        if not data[at]:
            return at + 1
        at += 1 + data[at]
    return at


# --- BMP -----------------------------------------------------------------------------------------

_BMP_RUNS = (1, 2)
_MAX_PIXELS_IN_RUNS = 2_000_000  # which are unpacked by Python, one by one


def _bmp(data: bytes) -> Container:
    header, width, height = struct.unpack_from("<Iii", data, 14)
    if header < 40 or struct.unpack_from("<I", data, 30)[0] not in _BMP_RUNS:
        return Container(data)
    pixels = abs(width * height)
    if pixels > _MAX_PIXELS_IN_RUNS:
        raise InvalidImage(
            Reason.TOO_MANY_PIXELS,
            f"The BMP picture has {abs(width):,} × {abs(height):,} pixels in run-length encoding, "
            f"in which at most {_MAX_PIXELS_IN_RUNS:,} are accepted: save it as PNG.",
        )
    if len(data) > 4 * (pixels + abs(height) + 1024):
        raise InvalidImage(
            Reason.DAMAGED, "The BMP picture has more runs than pixels; save it as PNG."
        )
    # Unpacked to a row of pixels, which then is copied, before it is a picture
    return Container(data, beside_bytes=2 * pixels)


# --- WebP ----------------------------------------------------------------------------------------


def _webp(data: bytes) -> Container:
    """Read the canvas from the header: the decoder allocates it as soon as it is opened."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise InvalidImage(
            Reason.DAMAGED, "The WebP picture is damaged: it does not begin with a picture chunk."
        )
    if len(data) < 30:
        raise cut_off(data, Format.WEBP)
    # The picture, the one before, the one handed on; and one without loss while it is decoded
    return Container(data, size=(width, height), opening_bytes=12 * width * height + len(data))


# --- AVIF ----------------------------------------------------------------------------------------


def _avif(data: bytes) -> Container:
    """Measure the coded streams too: their size is what is decoded, whatever the file promises."""
    promised, streams = avif.sizes(data)
    coded = [each.size for each in streams]
    largest = max(*promised, *coded, (0, 0), (0, 0), key=_area)
    # A colour stream, alpha, a thumbnail, a gain map; or a grid of tiles, together one picture
    if sum(map(_area, coded)) > 4 * _area(largest):
        raise InvalidImage(
            Reason.DAMAGED, "The AVIF picture holds more pixels than it promises; save it anew."
        )
    if any(each.frames > MAX_LAYERS for each in streams):
        raise _crowded(Format.AVIF, "layers", MAX_LAYERS)
    memory = sum(each.bytes_to_decode() for each in streams)
    if b"grid" in data:  # of tiles, which are put together
        most = max((each.bytes_per_pixel for each in streams), default=0)
        memory += int(_area(largest) * most)
    return Container(data, size=largest, beside_bytes=memory)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


# --- TIFF, and the EXIF block, which is a small TIFF ----------------------------------------------

_ORIENTATION_TAG = 0x0112
_TILE_WIDTH_TAG, _TILE_LENGTH_TAG = 322, 323  # a decoder allocates a whole tile
_DNG_VERSION_TAG = 50706
_NUMBER_FORMS = {1: "B", 3: "H", 4: "I", 6: "B", 8: "H", 9: "I", 16: "Q", 17: "Q"}  # by type
_TIFF_PIXEL_TAGS = frozenset(
    {
        *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293),  # size and strips
        *(317, 320, 322, 323, 324, 325, 338, 339, 340, 341, 347),  # palette, tiles, alpha
        *(512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532),  # JPEG inside, and YCbCr
        *(332, 333, 334, 50674),  # inks, LERC
    }
)


@dataclass(frozen=True)
class _Directory:
    """One directory of tags (IFD): the raw entries by tag, and where the next one is."""

    entries: list[bytes]
    next_at: int
    start: int
    order: str  # "<" or ">"
    big: bool

    def number(self, tag: int, default: int) -> int:
        """Return the value of a tag that holds one whole number."""
        for entry in self.entries:
            found, kind = struct.unpack_from(f"{self.order}HH", entry)
            if found == tag and kind in _NUMBER_FORMS:
                form = self.order + _NUMBER_FORMS[kind]
                value: int = struct.unpack_from(form, entry, 12 if self.big else 8)[0]
                return value
        return default


def _directories(data: bytes) -> Iterator[_Directory]:
    """Yield the chain of directories; raises struct.error where one is not within the data."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    count_format, entry_size, next_format = ("Q", 20, "Q") if big else ("H", 12, "I")
    (at,) = struct.unpack_from(order + next_format, data, 8 if big else 4)
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        (count,) = struct.unpack_from(order + count_format, data, at)
        if count > MAX_TAGS:
            raise _crowded(Format.TIFF, "tags", MAX_TAGS)
        first = at + struct.calcsize(order + count_format)
        end = first + count * entry_size
        (next_at,) = struct.unpack_from(order + next_format, data, end)
        entries = [data[i : i + entry_size] for i in range(first, end, entry_size)]
        yield _Directory(entries, next_at, at, order, big)
        at = next_at


def _tiff(data: bytes) -> Container:
    chain = _directories(data)
    first = next(chain, None)
    if first is None:
        raise cut_off(data, Format.TIFF)
    tags = [struct.unpack_from(first.order + "H", entry)[0] for entry in first.entries]
    if _DNG_VERSION_TAG in tags:
        raise InvalidImage(
            Reason.FORMAT_NOT_ALLOWED,
            "The file is a camera raw (DNG), which is not accepted; save it as JPEG and send that.",
        )
    kept = [e for tag, e in zip(tags, first.entries, strict=True) if tag in _TIFF_PIXEL_TAGS]
    _check_tiff_counts(first, kept)
    directory = b"".join(
        (
            struct.pack(first.order + ("Q" if first.big else "H"), len(kept)),
            *kept,
            bytes(8 if first.big else 4),  # no next directory
        )
    )
    view = memoryview(data)
    return Container(
        b"".join((view[: first.start], directory, view[first.start + len(directory) :])),
        _valid_orientation(first.number(_ORIENTATION_TAG, 1)) or 1,
        _count_pages(chain),
        size=(first.number(_TILE_WIDTH_TAG, 0), first.number(_TILE_LENGTH_TAG, 0)),
    )


def _check_tiff_counts(directory: _Directory, entries: list[bytes]) -> None:
    """Refuse arrays of offsets that no picture within the limits needs."""
    for entry in entries:
        (count,) = struct.unpack_from(directory.order + ("Q" if directory.big else "I"), entry, 4)
        if count > MAX_PARTS:
            raise _crowded(Format.TIFF, "strips", MAX_PARTS)


def _count_pages(rest: Iterator[_Directory]) -> int | None:
    """Count the first page and the rest; raises struct.error where a page is cut off."""
    pages = 1
    try:
        for _ in rest:
            pages += 1
            if pages > MAX_COUNTED_FRAMES // 10:
                return None
    except InvalidImage:
        return None  # the chain leads into something else; the first page does not depend on it
    return pages


def _exif_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that an EXIF block gives, and 0 where it gives none."""
    block = exif.removeprefix(b"Exif\0\0")
    if not block.startswith((b"II*\0", b"MM\0*")):
        return 0
    try:
        first = next(_directories(block), None)
    except (struct.error, InvalidImage):
        return 0  # broken metadata is no reason to refuse good pixels
    return 0 if first is None else _valid_orientation(first.number(_ORIENTATION_TAG, 0))


def _valid_orientation(value: int) -> int:
    return value if 1 <= value <= 8 else 0


def exif_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that an EXIF block gives; 1, upright, where it gives none."""
    return _exif_orientation(exif) or 1


_READERS: dict[Format, Callable[[bytes], Container]] = {
    Format.JPEG: _jpeg,
    Format.PNG: _png,
    Format.GIF: _gif,
    Format.BMP: _bmp,
    Format.WEBP: _webp,
    Format.TIFF: _tiff,
    Format.AVIF: _avif,
}
