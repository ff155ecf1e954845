"""Time whole training steps against PyTorch, with the network that ships.

    python -m benchmarks.training_step

A step is the forward pass, the loss, both gradients of every layer, Nesterov momentum with weight
decay, and the average of the weights; augmentation is left out on both sides. PyTorch works at its
best on a processor: float32, channels_last, oneDNN, its fused optimiser, eager.

Both start from the same weights, in processes of their own, and work in turn, so that neither
takes the other's cores or cache. Before anything is timed, one step on the same batch, in float64,
where rounding hides nothing, has to give the same loss, gradients, updated weights and averages:
it is the same network. In that check this project's batch is one shard, as PyTorch's is; when timed
it is split over the threads, and batch normalisation sees each shard alone.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.machine import describe, memory_mb
from benchmarks.workers import Worker
from model.network import (
    Array,
    Composite,
    Gradients,
    Layer,
    Scratch,
    backward,
    forward,
    parameters,
    prepare,
    sigmoid,
)
from training.architecture import convolutional
from training.cost import loss
from training.optimizer import Optimizer

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, AVERAGING = 0.01, 0.9, 5e-4, 0.999
TOLERANCE = 1e-6  # relative, of the vectors' lengths, in float64


@dataclass(frozen=True)
class Task:
    """What both sides do: the numbers that the network and the batch are drawn from."""

    batch: int
    threads: int
    seed: int
    dtype: str = "float32"

    def data(self) -> tuple[Array, Array]:
        """X (batch, n_x) in [0, 1] and y (batch, 1) in [0, 1]."""
        rng = np.random.default_rng((self.seed, 1))
        X = rng.random((self.batch, 64 * 64 * 3), dtype=np.float32)
        y = rng.random((self.batch, 1), dtype=np.float32)
        return X.astype(self.dtype), y.astype(self.dtype)

    def layers(self) -> list[Layer]:
        """The default network with random weights."""
        layers = convolutional(np.random.default_rng(self.seed))
        _cast(layers, self.dtype)
        return layers


def _cast(layers: Sequence[Layer], dtype: str) -> None:
    for layer in layers:
        if isinstance(layer, Composite):
            _cast(layer.layers, dtype)
            layer.parameters = parameters(layer.layers)
        else:
            layer.parameters = {name: v.astype(dtype) for name, v in layer.parameters.items()}


@dataclass(frozen=True)
class Step:
    """What came out of one step, by the names of `model.network.parameters`."""

    loss: float
    gradients: dict[str, Array]
    parameters: Array  # all of them, one after the other
    average: Array


class Ours:
    """This project's step, put together as training.loop.Trainer does."""

    def __init__(self, task: Task) -> None:
        self.layers = task.layers()
        self.optimizer = Optimizer(
            self.layers, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, averaging=AVERAGING
        )
        prepare(self.layers)
        self.X, self.y = task.data()
        self.scratches = [Scratch(keep=True) for _ in range(task.threads)]
        self.pool = ThreadPoolExecutor(task.threads)

    def describe(self) -> str:
        """Machine and versions."""
        return describe()

    def first_step(self) -> Step:
        """One step with the whole batch as one shard."""
        gradients, total = self._step(shards=1)
        m = len(self.X)
        return Step(
            total / m,
            {name: value / m for name, value in gradients[0].items()},
            self.optimizer.theta,
            self.optimizer.average,
        )

    def run(self, steps: int) -> list[float]:
        """Seconds of each of so many steps."""
        return _time(lambda: self._step(len(self.scratches)), steps)

    def peak_memory_mb(self) -> float:
        """Resident memory of this process at its largest."""
        return memory_mb()[1]

    def _step(self, shards: int) -> tuple[list[Gradients], float]:
        rows = np.array_split(np.arange(len(self.X)), shards)

        def run(i: int) -> tuple[Gradients, float]:
            part = slice(rows[i][0], rows[i][-1] + 1)
            y, scratch = self.y[part], self.scratches[i]
            stages = forward(self.layers, self.X[part], scratch)
            z = stages[-1]
            dz = sigmoid(z) - y
            total = float(loss(z, y).sum())
            _, gradients = backward(self.layers, stages, dz, scratch, input_gradient=False)
            return gradients, total

        results = list(self.pool.map(run, range(shards)))
        gradients = [shard for shard, _ in results]
        self.optimizer.step(gradients, len(self.X), LEARNING_RATE, self.pool)
        list(self.pool.map(lambda layer: layer.prepare(), self.layers))
        return gradients, sum(total for _, total in results)


class Theirs:
    """PyTorch's step."""

    def __init__(self, task: Task) -> None:
        import torch

        from benchmarks.torch_network import Network, pictures

        torch.set_num_threads(task.threads)
        self.torch = torch
        self.network = Network(task.layers(), task.dtype)
        own = list(self.network.own.values())
        self.parameters = own
        self.averages = [value.detach().clone() for value in own]
        self.steps = 0
        self.optimizer = torch.optim.SGD(
            [
                {"params": [p for p in own if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
                {"params": [p for p in own if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=LEARNING_RATE,
            momentum=MOMENTUM,
            nesterov=True,
            fused=True,
        )
        X, y = task.data()
        self.x, self.y = pictures(X), torch.from_numpy(y)
        assert self.x.is_contiguous(memory_format=torch.channels_last)

    def describe(self) -> str:
        """Version and what it computes with."""
        torch = self.torch
        return (
            f"PyTorch {torch.__version__} with {torch.get_num_threads()} threads, "
            f"{torch.backends.cpu.get_cpu_capability()}, "
            f"oneDNN {'on' if torch.backends.mkldnn.is_available() else 'off'}"
        )

    def first_step(self) -> Step:
        """One step with the whole batch."""
        value = self._step()
        weights = dict(zip(self.network.own, self.averages, strict=True))
        parameters = self.network.values()
        gradients = self.network.gradients()
        self.network.own = weights
        averages = self.network.values()
        return Step(value, gradients, _joined(parameters), _joined(averages))

    def run(self, steps: int) -> list[float]:
        """Seconds of each of so many steps."""
        return _time(self._step, steps)

    def peak_memory_mb(self) -> float:
        """Resident memory of this process at its largest."""
        return memory_mb()[1]

    def _step(self) -> float:
        torch = self.torch
        self.optimizer.zero_grad(set_to_none=True)
        cost = torch.nn.functional.binary_cross_entropy_with_logits(self.network(self.x), self.y)
        cost.backward()
        self.optimizer.step()
        self.steps += 1
        beta = min(AVERAGING, self.steps / (self.steps + 9))
        with torch.no_grad():  # the call under torch.optim.swa_utils.AveragedModel
            torch._foreach_lerp_(self.averages, self.parameters, 1 - beta)
        return float(cost.detach())


def compare(ours: Step, theirs: Step) -> list[tuple[str, float]]:
    """(what, relative difference) for the loss, the worst gradient, weights and averages."""
    gradients = [
        _difference(ours.gradients[name], value) for name, value in theirs.gradients.items()
    ]
    return [
        ("loss", abs(ours.loss - theirs.loss) / theirs.loss),
        (f"worst of {len(gradients)} gradients", max(gradients)),
        ("weights after the step", _difference(ours.parameters, theirs.parameters)),
        ("average of the weights", _difference(ours.average, theirs.average)),
    ]


def _difference(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _joined(values: dict[str, Array]) -> Array:
    return np.concatenate([value.ravel() for value in values.values()])


def _time(step: object, steps: int) -> list[float]:
    assert callable(step)
    seconds = []
    for _ in range(steps):
        start = perf_counter()
        step()
        seconds.append(perf_counter() - start)
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure and print; 2 where PyTorch is missing, 1 where the networks differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12, help="of both, one after the other")
    parser.add_argument("--steps", type=int, default=5, help="of each in a round")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if find_spec("torch") is None:
        print(
            "PyTorch, which this compares with, is not installed. benchmarks/README.md says how: "
            "python -m pip install torch==2.13.0, in an environment of its own.",
            file=sys.stderr,
        )
        return 2
    task = Task(options.batch, options.threads, options.seed)
    exact = replace(task, dtype="float64")
    with Worker(Ours, exact) as ours, Worker(Theirs, exact) as theirs:
        print(ours.call("describe"), theirs.call("describe"), sep="\n")
        if not _same_network(ours.call("first_step"), theirs.call("first_step")):
            return 1
    with Worker(Ours, task) as ours, Worker(Theirs, task) as theirs:
        _measure(ours, theirs, options.batch, options.threads, options.rounds, options.steps)
    return 0


def _same_network(ours: Step, theirs: Step) -> bool:
    print("\nthe same step on the same batch in float64, relative difference:")
    differences = compare(ours, theirs)
    for what, difference in differences:
        print(f"  {what:<28} {difference:.1e}")
    if max(difference for _, difference in differences) <= TOLERANCE:
        return True
    print(f"more than {TOLERANCE}: these are not the same network.", file=sys.stderr)
    return False


def _measure(
    ours: Worker, theirs: Worker, batch: int, threads: int, rounds: int, steps: int
) -> None:
    print(f"\nbatch {batch}, {threads} threads, milliseconds a step, median of {steps}:\n")
    print("round    PyTorch   this project")
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    ratios = []
    for worker in (theirs, ours):
        worker.call("run", 2)  # caches, buffers and threads are there afterwards
    for number in range(1, rounds + 1):
        other, own = theirs.call("run", steps), ours.call("run", steps)
        times["theirs"] += other
        times["ours"] += own
        ratios.append(median(other) / median(own))
        print(f"{number:>5}   {median(other) * 1e3:8.1f}   {median(own) * 1e3:12.1f}")
    other, own = median(times["theirs"]), median(times["ours"])
    print(f"median  {other * 1e3:8.1f}   {own * 1e3:12.1f}")
    print(f"fastest {min(times['theirs']) * 1e3:8.1f}   {min(times['ours']) * 1e3:12.1f}")
    print(f"\npictures a second   {batch / other:.0f} and {batch / own:.0f}")
    print(
        f"speed of PyTorch    {other / own:.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} over the rounds); load {os.getloadavg()[0]:.1f}"
    )
    memory = [worker.call("peak_memory_mb") for worker in (theirs, ours)]
    print(f"memory at most      {memory[0]:.0f} MB and {memory[1]:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
