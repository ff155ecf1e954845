"""The memory that decoding a picture takes, and what those decoded at the same time share."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Condition
from time import monotonic
from typing import Any, Final

from PIL.ImageFile import ImageFile

from model.formats import Format
from model.squeeze import BAND_PIXELS

_TIFF_BITS, _TIFF_COMPRESSION, _TIFF_PHOTOMETRIC, _TIFF_SAMPLES = 258, 259, 262, 277
_TIFF_ROWS_PER_STRIP, _TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 278, 322, 323
_TIFF_JPEG, _TIFF_WINDOWED, _YCBCR = 7, (34925, 50000, 50001), 6  # LZMA, Zstandard, WebP
_HEIC_BYTES, _DEEP_HEIC_BYTES = 3.5, 5.5  # a pixel and channel, with all of its decoder's copies
_SMALLER_MODES: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}  # bytes a pixel; others: 4


# Until when this thread's work is worth waiting for, in time.monotonic()'s seconds; None: for ever.
# Whoever hands a thread its work sets it.
worth_until: ContextVar[float | None] = ContextVar("worth_until", default=None)


class OverBudget(Exception):
    """More was asked for than there will ever be."""


class TooLate(Exception):
    """The work is not worth it any more."""


class MemoryBudget:
    """A number of bytes that any number of threads share; without a number, all they want.

    Whoever asks waits in line until enough has been given back, the first first: so that one who
    needs much is not passed by others for ever.
    """

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self._taken = 0
        self._line: deque[object] = deque()
        self._changed = Condition()

    @property
    def taken(self) -> int:
        """The bytes that are held now."""
        return self._taken

    @property
    def waiting(self) -> int:
        """How many wait for theirs."""
        return len(self._line)

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Hold this many bytes for as long as the block lasts; may wait for them.

        Raises OverBudget at once where the whole budget is less, and TooLate where the wait lasts
        longer than `worth_until`. A thread that holds some must not ask for more: two that do
        would wait for each other.
        """
        if self.total is None or not amount:
            yield
            return
        if amount > self.total:
            raise OverBudget(f"{amount:,} bytes of {self.total:,}")
        with self._changed:
            if self._line or self._taken + amount > self.total:
                self._wait_for(amount, self.total)
            self._taken += amount
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()

    def _wait_for(self, amount: int, total: int) -> None:
        """Wait in line. Raises TooLate."""
        until = worth_until.get()
        me = object()
        self._line.append(me)
        try:
            while self._line[0] is not me or self._taken + amount > total:
                left = None if until is None else until - monotonic()
                if left is not None and left <= 0:
                    raise TooLate
                self._changed.wait(left)
        finally:  # also where the wait was given up
            self._line.remove(me)
            self._changed.notify_all()


def bytes_to_decode(image: ImageFile, kind: Format, beside: int) -> int:
    """Return at least as many bytes as decoding the opened picture takes, over the upload.

    Beside: what the container knows of. Factors that no format states were measured;
    tests/test_preprocessing.py measures them again.
    """
    each: float = _SMALLER_MODES.get(image.mode, 4)
    if kind is Format.AVIF:  # whose colours are handed on as a copy
        each = 2 * len(image.getbands())
    elif kind is Format.HEIC:
        shallow = image.info.get("bit_depth") == 8
        each = (_HEIC_BYTES if shallow else _DEEP_HEIC_BYTES) * len(image.getbands())
    if kind is Format.TIFF:
        beside += _tiff_buffer_bytes(image)
    return int(image.width * image.height * each) + beside


def _tiff_buffer_bytes(image: Any) -> int:
    """Return what libtiff needs for a strip or a tile, which it decodes as a whole."""
    tags = image.tag_v2
    if image.tile[0].codec_name != "libtiff":
        return 0
    pixels = image.width * min(tags.get(_TIFF_ROWS_PER_STRIP, image.height), image.height)
    if _TIFF_TILE_WIDTH in tags:
        pixels = tags[_TIFF_TILE_WIDTH] * tags[_TIFF_TILE_LENGTH]
    bits = tags.get(_TIFF_BITS, (1,))
    size = pixels * max(sum(bits), max(bits) * tags.get(_TIFF_SAMPLES, 1)) // 8
    compression = tags.get(_TIFF_COMPRESSION)
    if compression in _TIFF_WINDOWED:
        size *= 2  # what is decoded refers back to any of it
    elif compression == _TIFF_JPEG:
        size *= 3  # all coefficients, which is what a progressive one takes
    elif tags.get(_TIFF_PHOTOMETRIC) == _YCBCR:
        size += 4 * pixels  # what libtiff makes RGB of
    return int(size)


def bytes_to_squeeze(width: int, height: int, side: int) -> int:
    """Return what squeezing a decoded picture takes, and what decoders take whatever its size."""
    return 12 * min(width * height, BAND_PIXELS) + 4 * side * height + 500_000
