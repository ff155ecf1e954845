"""How much memory a fresh process takes, step by step, in megabytes over NumPy's own; as JSON.

    python -m benchmarks.memory "this project" model/cat.safetensors

It starts from what Python with NumPy loaded holds, and imports everything else afterwards. Linux.
"""

import json
import sys
from pathlib import Path
from typing import Any


def _resident_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    [line] = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024 / 1e6


def measure(engine: str, weights: str, batch: int = 32) -> dict[str, float]:
    """What the process holds more than after `import numpy`: after importing what it needs, with
    the weights loaded, after one picture, after a batch of them, and at most at any time."""
    import numpy as np

    base = _resident_mb("VmRSS")
    report = {}

    def note(what: str) -> None:
        report[what] = round(_resident_mb("VmRSS") - base, 1)

    from benchmarks.engines import ENGINES, Lite0

    note("imported")
    made: Any = (ENGINES | {"Lite0": Lite0})[engine](weights)
    note("loaded")
    X = np.random.default_rng(0).random((batch, 64 * 64 * 3), dtype=np.float32)
    made.predict(made.prepare(X[:1]))
    note("one picture")
    made.predict(made.prepare(X))
    note(f"{batch} pictures")
    report["at most"] = round(_resident_mb("VmHWM") - base, 1)
    return report


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2])))
