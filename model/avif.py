"""What an AVIF file says of its size, and the streams that it is coded in of theirs.

Its decoder believes the streams: a file of 1 kB can promise 64 × 64 pixels and hold a stream of
16,384 × 16,384, which is decoded whole before anybody compares. So the streams' own headers are
read here. Formats: ISO/IEC 14496-12 (boxes), 23008-12 (items), and the AV1 bitstream
specification, sections 5.3 to 5.5 (OBUs and the sequence header).
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

_MAX_BOXES = 10_000
_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6
_MOST_BYTES_PER_PIXEL = 12.0  # three channels of 16 bits, without grain and with it
_BT709, _SRGB, _IDENTITY = 1, 13, 0
_OF_A_FILE = frozenset({b"ftyp", b"meta", b"moov", b"mdat"})
_PLAIN_CONTAINERS = frozenset({b"iprp", b"ipco", b"moov", b"trak", b"mdia", b"minf", b"stbl"})
Size = tuple[int, int]


@dataclass
class Stream:
    """An AV1 stream, which holds one picture or a part of one: what decoding it takes."""

    size: Size = (0, 0)  # the largest that it names
    bytes_per_pixel: float = 0  # of the picture as it comes out: luma and what chroma there is
    frames: int = 0  # which may all have to be decoded, and kept, before the first is shown

    def bytes_to_decode(self) -> int:
        """The memory that decoding takes; half a byte a pixel was measured beside the picture."""
        width, height = self.size
        return int(width * height * (self.bytes_per_pixel * max(self.frames, 1) + 0.5))


def sizes(data: bytes) -> tuple[list[Size], list[Stream]]:
    """Return the (width, height) of every picture promised, and every AV1 stream held.

    Raises struct.error or IndexError where the file is cut off or makes no sense.
    """
    promised: list[Size] = []
    streams: list[bytes] = []
    stored = b""  # the box idat, in which items may lie
    items: list[tuple[int, list[Size]]] = []
    sample_sizes: list[int] = []
    sample_starts: list[int] = []
    for name, start, end in _boxes(data):
        if name == b"ispe":
            promised.append(struct.unpack_from(">II", data, start + 4))
        elif name == b"idat":
            stored = data[start:end]
        elif name == b"iloc":
            items += _item_places(data, start)
        elif name == b"stsz":
            common, count = struct.unpack_from(">II", data, start + 4)
            first = struct.unpack_from(">I", data, start + 12)[0] if count and not common else 0
            sample_sizes.append(common or first)
        elif name in (b"stco", b"co64"):
            form = ">Q" if name == b"co64" else ">I"
            sample_starts.append(struct.unpack_from(form, data, start + 8)[0])
    for inside, extents in items:
        source = stored if inside else data
        if sum(length or len(source) for _, length in extents) > len(data):
            raise IndexError("extents of more bytes than there are")
        pieces = (source[at : at + length if length else None] for at, length in extents)
        streams.append(b"".join(pieces))
        promised += _grid_size(streams[-1])
    for at, length in zip(sample_starts, sample_sizes, strict=False):
        streams.append(data[at : at + length])
    return promised, [found for each in streams if (found := _stream(each)).size != (0, 0)]


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start of content, end) of the boxes, also of those inside others."""
    ends = [(0, len(data))]
    for _ in range(_MAX_BOXES):
        while ends and ends[-1][0] + 8 > ends[-1][1]:
            ends.pop()
        if not ends:
            return
        at, limit = ends.pop()
        length, name = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = at + length if length else limit
        if not start <= end <= limit:
            if not ends and name not in _OF_A_FILE:
                return  # something after the picture: no decoder gets past it either
            raise IndexError(f"a box {name!r} that ends outside")
        ends.append((end, limit))
        if name == b"meta":
            ends.append((start + 4, end))
        elif name in _PLAIN_CONTAINERS:
            ends.append((start, end))
        yield name, start, end
    raise IndexError("more boxes than any picture needs")


def _item_places(data: bytes, start: int) -> list[tuple[int, list[Size]]]:
    """Read the box iloc: for each item whether it lies in idat, and its (start, length) pieces."""
    version, packed = struct.unpack_from(">B3xH", data, start)
    offset_size, length_size, base_size = packed >> 12, packed >> 8 & 15, packed >> 4 & 15
    index_size = packed & 15 if version else 0
    at = start + 6
    wide = 4 if version == 2 else 2

    def number(size: int) -> int:
        nonlocal at
        at += size
        if at > len(data):
            raise IndexError("a list of items that is cut off")
        return int.from_bytes(data[at - size : at], "big")

    items: list[tuple[int, list[Size]]] = []
    pieces = 0
    for _ in range(number(wide)):
        number(wide)
        inside = number(2) & 15 if version else 0
        number(2)
        base = number(base_size)
        extents = []
        count = number(2)
        pieces += 1 + count
        if pieces > _MAX_BOXES:  # they may take no room in the list, so its end is no bound
            raise IndexError("more items than any picture needs")
        for _ in range(count):
            number(index_size)
            offset = number(offset_size)
            extents.append((base + offset, number(length_size)))
        items.append((inside, extents))
    return items


def _grid_size(item: bytes) -> list[Size]:
    """Return the size of the picture that an item puts together of others, if it is such a one."""
    if len(item) in (8, 12) and not item[0]:
        return [struct.unpack(">II" if item[1] & 1 else ">HH", item[4:])]
    return []


def _stream(data: bytes) -> Stream:
    """Read a series of OBUs; what is none, such as EXIF or a grid, has no size."""
    stream = Stream()
    with suppress(IndexError):  # where no decoder follows further either
        for kind, content in _obus(data):
            if kind == _SEQUENCE_HEADER:
                size, bytes_per_pixel = _sequence(content)
                stream.size = max(stream.size, size, key=lambda each: each[0] * each[1])
                stream.bytes_per_pixel = max(stream.bytes_per_pixel, bytes_per_pixel)
            elif kind in (_FRAME_HEADER, _FRAME):
                stream.frames += 1
    return stream


def _obus(stream: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(stream):
        header = stream[at]
        at += 2 if header & 4 else 1
        length = len(stream) - at
        if header & 2:
            length = 0
            for shift in range(0, 56, 7):
                length |= (stream[at] & 0x7F) << shift
                at += 1
                if not stream[at - 1] & 0x80:
                    break
        yield header >> 3, stream[at : at + min(length, 512)]
        at += length


class _Bits:
    """Bits read one after the other, the highest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError("a sequence header that is cut off")
        return self._value >> self._left & ((1 << count) - 1)

    def take_uvlc(self) -> int:
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros) if zeros < 32 else 2**32 - 1


def _sequence(header: bytes) -> tuple[Size, float]:
    """Read a sequence header (AV1 5.5.1): the largest size of a frame, and its bytes a pixel."""
    bits = _Bits(header)
    profile = bits.take(3)
    bits.take(1)  # still_picture
    reduced = bits.take(1)  # reduced_still_picture_header
    if reduced:
        bits.take(5)
    else:
        _skip_timing_and_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    size = bits.take(width_bits) + 1, bits.take(height_bits) + 1
    try:
        if not reduced and bits.take(1):  # frame_id_numbers
            bits.take(7)
        bits.take(3)  # superblocks, intra filter, intra edge
        if not reduced:
            _skip_tools(bits)
        bits.take(3)  # superres, cdef, restoration
        return size, _bytes_per_pixel(bits, profile)
    except IndexError:
        return size, _MOST_BYTES_PER_PIXEL  # and no decoder will show it


def _skip_tools(bits: _Bits) -> None:
    bits.take(4)  # inter-intra, masked compound, warped motion, dual filter
    has_order_hint = bits.take(1)
    if has_order_hint:
        bits.take(2)
    if bits.take(1) or bits.take(1):  # screen content tools: chosen by frame, or forced
        bits.take(1) or bits.take(1)  # whole-number motion vectors: chosen by frame, or told
    if has_order_hint:
        bits.take(3)


def _bytes_per_pixel(bits: _Bits, profile: int) -> float:
    """Read the colours (AV1 5.5.2), and whether grain is added, which is in a second picture."""
    deep = bits.take(1)
    twelve = profile == 2 and deep and bits.take(1)
    mono = profile != 1 and bits.take(1)
    described = (bits.take(8), bits.take(8), bits.take(8)) if bits.take(1) else None
    if mono:
        bits.take(1)  # colour range
        samples = 1.0
    elif described == (_BT709, _SRGB, _IDENTITY):
        bits.take(1)  # separate_uv_delta_q
        samples = 3.0
    else:
        bits.take(1)  # colour range
        across = profile == 0 or (profile == 2 and (bits.take(1) if twelve else 1))
        down = profile == 0 or (across and twelve and bits.take(1))
        if across and down:
            bits.take(2)  # where chroma lies
        bits.take(1)  # separate_uv_delta_q
        samples = 1.5 if down else 2.0 if across else 3.0
    has_grain = bits.take(1)
    return samples * (2 if deep else 1) * (2 if has_grain else 1)


def _skip_timing_and_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    has_decoder_model = 0
    if bits.take(1):  # timing_info
        bits.take(64)
        if bits.take(1):  # equal_picture_interval
            bits.take_uvlc()
        has_decoder_model = bits.take(1)
        if has_decoder_model:
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)  # operating_point_idc
        if bits.take(5) > 7:  # seq_level_idx
            bits.take(1)
        if has_decoder_model and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_display_delay and bits.take(1):
            bits.take(4)
