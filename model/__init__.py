"""From the bytes of a picture to a probability. Imports nothing from `app` or `training`."""

import os
from pathlib import Path


def _configure_linear_algebra() -> None:
    """Settle, before NumPy loads it, how the OpenBLAS in NumPy's wheels works; what the environment
    says already is left alone.

    One thread: requests and shards of a batch run side by side, and threads of its own inside each
    would fight for the same cores (three times slower, measured). Kernels: OpenBLAS takes AMD
    processors with AVX-512 for Haswell and leaves half of their speed unused.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return  # not Linux
    needed = ("AuthenticAMD", "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl")
    if all(word in cpu for word in needed):
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


_configure_linear_algebra()
