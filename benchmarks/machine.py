"""What a measurement was made on, in a line or two that go with its numbers."""

import os
import platform
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info


def describe() -> str:
    """Processor, load, versions, and the linear algebra library as it is set up here."""
    [blas] = [each for each in threadpool_info() if each["user_api"] == "blas"] or [{}]
    return (
        f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, NumPy {np.__version__},\n"
        f"{blas.get('internal_api')} {blas.get('version')} with {blas.get('num_threads')} thread, "
        f"kernels for {blas.get('architecture')} "
        f"(OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', '')})"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({platform.machine()})"
