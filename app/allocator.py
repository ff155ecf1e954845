"""Keeps memory at hand between requests, and the garbage collector out of them.

By default glibc hands the memory of a large decoded picture back to the system and takes it again
for the next one: a photo of 12 megapixels then costs 1,500 to 12,000 page faults, the latter a
quarter of its time. And each thread gets a heap of its own, in which the same memory lies idle.
"""

import contextlib
import ctypes
import gc

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

# Pillow takes memory in blocks of up to 16 MB. What is larger still goes back when it is freed,
# and of what is smaller at most twice that stays at a heap's end.
MMAP_THRESHOLD_BYTES = 16 * 2**20 + 2**16
TRIM_THRESHOLD_BYTES = 2 * MMAP_THRESHOLD_BYTES
# Two decoding threads were as fast with a common heap, and held half the memory.
ARENAS = 1

# Allocations, less what was freed, before young objects are looked through. Requests leave little
# that counting references does not free.
YOUNG_OBJECTS = 10_000


def settle() -> None:
    """Call once what lives as long as the process has been built; calling it again does no harm.

    What exists is kept out of all later garbage collections: these would take tens of milliseconds
    amid a request, and after a fork would copy the pages that processes share.
    """
    gc.collect()
    # musl and macOS have no mallopt, and no such habits.
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
        libc.mallopt(M_ARENA_MAX, ARENAS)
        libc.malloc_trim(0)  # what loading took goes back once
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
