"""Time the default network on one core, beside PyTorch and ONNX Runtime with the same network.

    python -m benchmarks.inference

Each runs in a process of its own; all are bound to the same core and work in turn. One picture at
a time, and batches; from rows of numbers to probabilities, which have to agree. For this project
the whole way from a JPEG's bytes is timed too. Memory is measured in fresh processes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.engines import ENGINES, available
from benchmarks.machine import describe
from benchmarks.workers import Worker
from model.classifier import Classifier, Golden
from model.network import Array
from training.architecture import batch_norms, convolutional, fold

BATCHES = (1, 8, 32)
AGREEMENT = 1e-4  # of probabilities
DEFAULT = Path(__file__).parent.parent / "model/cat.safetensors"


class Measured:
    """An engine, bound to one core."""

    def __init__(self, name: str, weights: str, core: int | None, X: Array) -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})
        self.engine: Any = ENGINES[name](weights)
        self.inputs = {m: self.engine.prepare(X[:m]) for m in BATCHES}
        self.weights = weights

    def version(self) -> str:
        return str(self.engine.version())

    def probabilities(self) -> Array:
        """Of the largest batch's pictures."""
        values: Array = np.array(self.engine.predict(self.inputs[max(BATCHES)]), np.float64)
        return values

    def run(self, batch: int, repetitions: int) -> list[float]:
        """Seconds for each of so many batches."""
        x, predict = self.inputs[batch], self.engine.predict
        return [_seconds(lambda: predict(x)) for _ in range(repetitions)]

    def run_bytes(self, data: bytes, repetitions: int) -> list[float]:
        """Seconds from a file's bytes to the answer, this project only."""
        classifier = Classifier.load(self.weights)
        return [_seconds(lambda: classifier.predict(data)) for _ in range(repetitions)][1:]


def _seconds(function: Any) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


@contextmanager
def weights_file(path: Path | None) -> Iterator[tuple[str, str]]:
    """(path, what it is): the file named, else the default one, else random weights in a
    temporary file: the time does not depend on the numbers."""
    if path or DEFAULT.is_file():
        chosen = path or DEFAULT
        yield str(chosen), str(chosen)
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "random.safetensors"
        random_classifier().save(file, "float16")
        yield str(file), "random weights in the default network's shape"


def random_classifier(seed: int = 0) -> Classifier:
    """The default architecture with random weights, folded as for an artifact."""
    rng = np.random.default_rng(seed)
    layers = convolutional(rng)
    statistics = {
        id(norm): (np.zeros_like(shift), np.ones_like(shift))
        for norm in batch_norms(layers)
        for shift in norm.parameters.values()
    }
    return Classifier(
        "random",
        ("cat", "non-cat"),
        0.5,
        fold(layers, statistics),
        golden=Golden(jpeg(rng, 80, 60), 0.5),
    )


def jpeg(rng: np.random.Generator, width: int, height: int) -> bytes:
    """A picture of smooth noise."""
    small = rng.integers(256, size=(height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where the networks do not agree."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--weights", type=Path, help="a weights file; the default one otherwise")
    parser.add_argument("--core", type=int, help="the core to run on; the last one otherwise")
    parser.add_argument("--rounds", type=int, default=10, help="of all, one after the other")
    parser.add_argument("--repetitions", type=int, default=20, help="of each in a round")
    options = parser.parse_args(arguments)
    names, missing = available()
    print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
    with weights_file(options.weights) as (weights, what):
        print(f"{describe()}\n{what}, {Path(weights).stat().st_size / 1e6:.1f} MB on disk\n")
        if not _times(names, weights, _core(options.core), options.rounds, options.repetitions):
            return 1
        _memory(names, weights)
    return 0


def _core(chosen: int | None) -> int | None:
    if not hasattr(os, "sched_setaffinity"):
        print("this system cannot bind a process to a core; others may be used", file=sys.stderr)
        return None
    return max(os.sched_getaffinity(0)) if chosen is None else chosen


def _times(
    names: Sequence[str], weights: str, core: int | None, rounds: int, repetitions: int
) -> bool:
    X = np.random.default_rng(0).random((max(BATCHES), 64 * 64 * 3), dtype=np.float32)
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(Measured, name, weights, core, X)) for name in names
        }
        answers = {name: worker.call("probabilities") for name, worker in workers.items()}
        apart = {n: float(np.abs(a - answers["this project"]).max()) for n, a in answers.items()}
        times: dict[tuple[str, int], list[float]] = {}
        for number in range(rounds + 1):
            for batch in BATCHES:
                for name, worker in workers.items():
                    seconds = worker.call("run", batch, max(1, repetitions // batch))
                    if number:  # the first round fills caches and buffers
                        times.setdefault((name, batch), []).extend(seconds)
        versions = {name: worker.call("version") for name, worker in workers.items()}
        whole = [
            (size, workers["this project"].call("run_bytes", data, repetitions))
            for size, data in _files()
        ]
    where = "any core" if core is None else f"core {core}"
    print(f"milliseconds a picture on {where}, median (and 95th percentile):\n")
    print(f"{'':<24}" + "".join(f"{f'batch of {batch}':>18}" for batch in BATCHES) + "   differs")
    for name in names:
        cells = "".join(f"{_cell(times[name, batch], batch):>18}" for batch in BATCHES)
        print(f"{versions[name]:<24}{cells}   {apart[name]:.0e}")
    print("\nfrom a JPEG's bytes to the answer, this project, milliseconds:")
    for size, seconds in whole:
        print(f"  {size:<24}{median(seconds) * 1e3:>9.2f}")
    if max(apart.values()) <= AGREEMENT:
        return True
    print(f"the probabilities differ by more than {AGREEMENT}", file=sys.stderr)
    return False


def _cell(seconds: Sequence[float], batch: int) -> str:
    middle, high = np.percentile(np.array(seconds) / batch * 1e3, (50, 95))
    return f"{middle:.2f} ({high:.2f})"


def _files() -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    for width, height in ((96, 96), (640, 480), (4000, 3000)):
        yield f"{width}×{height} pixels", jpeg(rng, width, height)


def _memory(names: Sequence[str], weights: str) -> None:
    if not Path("/proc/self/status").exists():
        print("\nmemory is measured on Linux only", file=sys.stderr)
        return
    print("\nmegabytes over those of Python with NumPy, in a fresh process:\n")
    for name in names:
        report = memory(name, weights)
        print(f"{name:<24}" + ", ".join(f"{step} {mb:.0f}" for step, mb in report.items()))


def memory(engine: str, weights: str) -> dict[str, float]:
    """What `benchmarks.memory` measures, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", engine, weights]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    report: dict[str, float] = json.loads(answer.stdout)
    return report


if __name__ == "__main__":
    sys.exit(main())
