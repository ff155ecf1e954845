"""Damaged pictures of every kind: pixels or a reason come out, in bounded time and memory.

A few hundred are tried with every run of the tests. For as many as you like:

    python -m pytest tests/test_fuzz_decoding.py --hypothesis-profile=long
"""

import contextlib
import re
import resource
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.preprocessing import InvalidImage, Limits, preload, read_picture
from tests.pictures import chunk, kinds

MEMORY = 100 * 2**20  # bytes beside what the process has
LIMITS = Limits(max_pixels=1_000_000, max_side=5_000)
SECONDS = 20  # a hang, whatever else the machine is doing

# The filter that `model.preprocessing` sets, which pytest replaces
noisy_libraries = pytest.mark.filterwarnings(r"ignore:::PIL\.")
fuzz = settings(
    deadline=None,
    max_examples=max(400, settings().max_examples),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Refuse this process more memory, as a worker is refused it."""
    unlimited = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status")
    if status.exists():
        held = int(status.read_text().split("VmData:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, unlimited)


def check(data: bytes) -> None:
    """What must hold whatever the bytes are."""
    start = time.perf_counter()
    refusal = "It takes too much memory."
    try:
        with contextlib.suppress(MemoryError), limited_memory():
            result = read_picture(data, limits=LIMITS)
            assert result.pixels.shape == (64, 64, 3)
            assert result.width * result.height <= LIMITS.max_pixels_in_file
    except InvalidImage as error:
        refusal = str(error)
    assert re.fullmatch(r"(?!.*0x)(?s:.{,499})\.", refusal)
    assert time.perf_counter() - start < SECONDS


preload()
CORPUS = sorted(kinds().values())
NUMBERS = (0, 1, 2, 3, 8, 255, 256, 4096, 0x7FFF, 0xFFDC, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
FORMS = ("B", "<H", ">H", "<I", ">I", "<Q", ">Q")

Draw = Callable[[st.SearchStrategy[Any]], Any]


def places(length: int) -> st.SearchStrategy[int]:
    """Headers more often than what they describe: there a bit means most."""
    return (
        st.integers(0, min(100, length)) | st.integers(0, min(700, length)) | st.integers(0, length)
    )


def change(draw: Draw, data: bytearray, at: int) -> None:
    """Flip a bit, write a number, cut something out, repeat it, or put in a part of another."""
    form, how = draw(st.sampled_from(FORMS)), draw(st.integers(0, 4))
    size = struct.calcsize(form)
    if how == 0 and at < len(data):
        data[at] ^= 1 << draw(st.integers(0, 7))
    elif how == 1 and at + size <= len(data):
        number = draw(st.sampled_from(NUMBERS) | st.just(len(data)) | st.integers(0, 2**16))
        struct.pack_into(form, data, at, number % (1 << 8 * size))
    elif how == 2:
        del data[at : at + draw(st.integers(1, 30) | st.integers(1, len(data) + 1))]
    elif how == 3:
        part = data[at : at + draw(st.integers(1, 300))]
        data[at:at] = part * draw(st.integers(1, 5) | st.sampled_from([50, 2000]))
    else:
        other = draw(st.sampled_from(CORPUS))
        start = draw(places(len(other)))
        part = bytearray(other[start : start + draw(st.integers(1, 400) | st.just(len(other)))])
        data[at : at + draw(st.sampled_from([0, len(part), len(data)]))] = part


@st.composite
def damaged(draw: Draw) -> bytes:
    data = bytearray(draw(st.sampled_from(CORPUS)))
    for _ in range(draw(st.integers(1, 5))):
        change(draw, data, draw(places(len(data))))
    if data.startswith(b"\x89PNG") and draw(st.booleans()):
        return with_right_checksums(bytes(data))
    return bytes(data[:1_000_000])


def with_right_checksums(data: bytes) -> bytes:
    """So that damage gets past the checksums of a PNG, to the decoder."""
    found, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return found


STARTS = sorted({data[:length] for data in CORPUS for length in (4, 12, 16, 30)})


@noisy_libraries
@fuzz
@given(damaged())
def test_damaged_pictures_give_pixels_or_a_reason(data: bytes) -> None:
    check(data)


@noisy_libraries
@fuzz
@given(st.sampled_from([b"", *STARTS]), st.binary(max_size=300))
def test_arbitrary_bytes_give_pixels_or_a_reason(start: bytes, rest: bytes) -> None:
    check(start + rest)
