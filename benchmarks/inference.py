"""Time the default network, ONNX Runtime and a pretrained EfficientNet-Lite on one core.

    python -m benchmarks.inference mydata/*-val.zip

ONNX Runtime has the same network, and has to give the same probabilities. All are processes of
their own, bound to the same core, that work in turn. A picture is its whole, and, where that leaves
the network unsure, its other views too. How often that is so is measured on the given pictures, and
the mean time takes it into account. The pretrained one always sees one picture, a larger one.
Memory is what a process takes beside that of Python with NumPy. The way from a JPEG's bytes is
timed too. Needs Linux; what is not installed is left out.
"""

import os
import sys
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer

from benchmarks.engine import OTHERS, WHOLE, Process
from benchmarks.lite import Lite, Variant, not_installed
from benchmarks.machine import describe
from benchmarks.serving.pictures import SIZES, jpeg
from model import DEFAULT_WEIGHTS
from model.classifier import Classifier
from model.preprocessing import read_picture
from training import Refused
from training.data import read_pictures

AGREEMENT = 1e-4  # of probabilities
OURS, SAME, PRETRAINED = "this project", "ONNX Runtime", "pretrained"


def main(
    data: Annotated[
        list[Path] | None, typer.Argument(help="validation pictures, as `evaluate` takes them")
    ] = None,
    weights: Path = DEFAULT_WEIGHTS,
    core: Annotated[int | None, typer.Option(help="to run on; the last one otherwise")] = None,
    rounds: Annotated[int, typer.Option(help="of all, one after the other")] = 10,
    repetitions: Annotated[int, typer.Option(help="of each in a round")] = 20,
    variant: Annotated[Variant, typer.Option(help="the pretrained one")] = "lite0",
) -> None:
    """How much time and memory does the default network take? Exit status 1: answers differ."""
    core = max(os.sched_getaffinity(0)) if core is None else core
    classifier = Classifier.load(weights)
    try:
        unsure = _unsure(classifier, data) if data else None
    except Refused as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    why = not_installed(variant)
    print(f"left out: {why}\n" if why else "", end="", file=sys.stderr)
    other = None if why else Lite(variant, threads=1)
    print(f"{describe()}\n{weights}, {weights.stat().st_size / 1e6:.1f} MB, core {core}")
    with TemporaryDirectory() as folder, ExitStack() as stack:
        processes = _processes(weights, classifier, core, other, Path(folder))
        engines = {name: stack.enter_context(each) for name, each in processes}
        differs = _compare(engines, rounds, repetitions, unsure)
    os.sched_setaffinity(0, {core})
    _print_from_bytes(classifier, other, repetitions, unsure)
    if differs > AGREEMENT:
        sys.exit(f"The probabilities differ by more than {AGREEMENT}.")


def _unsure(classifier: Classifier, data: Sequence[Path]) -> float:
    """The share of the pictures whose whole leaves the network unsure."""
    files = read_pictures(data, both_classes=False).files
    wholes = classifier.logits((classifier.read(load()) for load in files), "one")
    unsure = [classifier.views.is_unsure(z) for z in wholes]
    print(f"{np.mean(unsure):.1%} of {len(unsure):,} pictures leave the network unsure")
    return float(np.mean(unsure))


def _processes(
    weights: Path, classifier: Classifier, core: int, other: Lite | None, folder: Path
) -> Iterator[tuple[str, Process]]:
    """Start everything that can run here."""
    views = len(classifier.views.boxes)
    yield OURS, Process(core, views, weights)
    if other:
        from benchmarks.onnx_graph import from_layers

        files = [folder / f"{name}.onnx" for name in ("whole", "others", "pretrained")]
        files[WHOLE].write_bytes(from_layers(classifier.layers, mirror=classifier.views.mirror))
        files[OTHERS].write_bytes(from_layers(classifier.layers))
        files[-1].write_bytes(other.model)
        print(f"EfficientNet-{other.variant.capitalize()}, {len(other.model) / 1e6:.1f} MB")
        yield SAME, Process(core, views, *files[:-1])
        yield PRETRAINED, Process(core, 1, files[-1])


def _compare(
    engines: Mapping[str, Process], rounds: int, repetitions: int, unsure: float | None
) -> float:
    """Print a line for each engine; the largest difference of a probability to ours."""
    found = {name: process.probabilities for name, process in engines.items()}
    taken: dict[str, list[list[float]]] = {name: [[] for _ in each] for name, each in found.items()}
    for number in range(rounds + 1):
        for name, process in engines.items():
            for which, seconds in enumerate(taken[name]):
                new = process.seconds(which, repetitions)
                seconds += new if number else []  # the first round fills caches and buffers
    print("\nthe network alone, milliseconds a picture: median (95th percentile)\n")
    print(f"{'':<16}{'whole':>16}{'other views':>16}{'mean':>8}   megabytes beside NumPy's own")
    for name, process in engines.items():
        cells = "".join(f"{_cell(seconds):>16}" for seconds in taken[name])
        mean = _mean(*map(median, taken[name]), unsure=unsure)
        memory = ", ".join(f"{step} {mb:.0f}" for step, mb in process.memory.items())
        print(f"{name:<16}{cells:<32}{mean:>8}   {memory} ({process.version})")
    pairs = zip(chain(*found.get(SAME, found[OURS])), chain(*found[OURS]), strict=True)
    differs: float = max(abs(a - b) for a, b in pairs)
    print(f"\nlargest difference of a probability to {SAME}: {differs:.0e}")
    return differs


def _cell(seconds: Sequence[float]) -> str:
    middle, high = np.percentile(seconds, (50, 95)) * 1e3
    return f"{middle:.2f} ({high:.2f})"


def _mean(whole: float, others: float = 0.0, *, unsure: float | None) -> str:
    """Of seconds, in milliseconds."""
    if others and unsure is None:
        return "–"
    return f"{(whole + (unsure or 0) * others) * 1e3:.2f}"


def _print_from_bytes(
    classifier: Classifier, other: Lite | None, repetitions: int, unsure: float | None
) -> None:
    """What a picture takes with decoding, for the whole and for all views."""
    never, always = (
        replace(classifier, views=replace(classifier.views, unsure=bounds))
        for bounds in ((-2e9, -1e9), (-1e9, 1e9))
    )

    def pretrained(data: bytes) -> None:
        assert other
        other.answers(read_picture(data, other.preprocessing).pixels[None])

    def seconds(answer: Callable[[], object]) -> float:
        return median(timeit.repeat(answer, repeat=repetitions, number=1))

    print("\nfrom a JPEG's bytes to the answer, milliseconds: median\n")
    print(f"{'':<16}{'whole':>16}{'all views':>16}{'mean':>8}{PRETRAINED if other else '':>16}")
    for size in SIZES:
        data = jpeg(size)
        one, every = (seconds(partial(each.predict, data)) for each in (never, always))
        line = f"{f'{size.width}×{size.height}':<16}{one * 1e3:>16.2f}{every * 1e3:>16.2f}"
        line += f"{_mean(one, every - one, unsure=unsure):>8}"
        if other:
            line += f"{seconds(partial(pretrained, data)) * 1e3:>16.2f}"
        print(line)


if __name__ == "__main__":
    typer.run(main)
