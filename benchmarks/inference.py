"""Time a network on one core, beside PyTorch and ONNX Runtime with the same network.

    python -m benchmarks.inference

Each runs in a process of its own; all are bound to the same core and work in turn. One picture at
a time, and batches: from rows of numbers to probabilities, which have to agree. Memory is what a
process takes beside that of Python with NumPy. For this project the way from a JPEG's bytes is
timed too. Needs Linux; what is not installed is left out.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import numpy as np
import typer

from benchmarks.engine import BATCHES, REPOSITORY, Process, missing
from benchmarks.machine import describe
from benchmarks.serving.pictures import SIZES, jpeg
from model.classifier import Classifier

AGREEMENT = 1e-4  # of probabilities
OURS = "this project"


def main(
    weights: Path = REPOSITORY / "model/cat.safetensors",
    core: Annotated[int | None, typer.Option(help="to run on; the last one otherwise")] = None,
    rounds: Annotated[int, typer.Option(help="of all, one after the other")] = 10,
    repetitions: Annotated[int, typer.Option(help="of each in a round")] = 20,
) -> None:
    """Measure and print; the exit status is 1 where the probabilities do not agree."""
    core = max(os.sched_getaffinity(0)) if core is None else core
    names = [OURS]
    for name in ("PyTorch", "ONNX Runtime"):
        if why := missing(name):
            print(f"left out: {why}", file=sys.stderr)
        else:
            names.append(name)
    print(f"{describe()}\n{weights}, {weights.stat().st_size / 1e6:.1f} MB, core {core}\n")
    with ExitStack() as stack:
        engines = {n: stack.enter_context(Process(n, weights.absolute(), core)) for n in names}
        differences = _compare(engines, rounds, repetitions)
    os.sched_setaffinity(0, {core})
    classifier = Classifier.load(weights)
    print("\nfrom a JPEG's bytes to the answer, this project, milliseconds:\n")
    for size in SIZES:
        data = jpeg(size)
        seconds = [_seconds(classifier, data) for _ in range(repetitions)]
        print(f"  {f'{size.width}×{size.height}':<22}{median(seconds) * 1e3:>10.2f}")
    if max(differences) > AGREEMENT:
        sys.exit(f"The probabilities differ by more than {AGREEMENT}.")


def _compare(engines: dict[str, Process], rounds: int, repetitions: int) -> list[float]:
    """Print a line for each engine; the largest difference of its probabilities to ours."""
    times: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):
        for batch in BATCHES:
            for name, engine in engines.items():
                seconds = engine.ask(batch, max(1, repetitions // batch))
                if number:  # the first round fills caches and buffers
                    times.setdefault((name, batch), []).extend(seconds)
    print("milliseconds a picture, median (and 95th percentile); megabytes beside NumPy's own:\n")
    print(f"{'':<24}" + "".join(f"{f'batch of {batch}':>18}" for batch in BATCHES) + "   differs")
    right = np.array(engines[OURS].ask("probabilities"))
    differences = []
    for name, engine in engines.items():
        differences.append(float(np.abs(engine.ask("probabilities") - right).max()))
        cells = "".join(f"{_cell(times[name, batch], batch):>18}" for batch in BATCHES)
        memory = ", ".join(f"{step} {mb:.0f} MB" for step, mb in engine.ask("memory").items())
        print(f"{engine.ask('version'):<24}{cells}   {differences[-1]:.0e}   {memory}")
    return differences


def _cell(seconds: Sequence[float], batch: int) -> str:
    middle, high = np.percentile(np.array(seconds) / batch * 1e3, (50, 95))
    return f"{middle:.2f} ({high:.2f})"


def _seconds(classifier: Classifier, data: bytes) -> float:
    start = perf_counter()
    classifier.predict(data)
    return perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
