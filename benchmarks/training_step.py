"""Time training steps of the default network, here and in PyTorch.

    python -m benchmarks.training_step

A step is the forward pass, the loss, both gradients of every layer, Nesterov momentum with weight
decay, and the average of the weights, without augmentation. PyTorch works at its best on a
processor: float32, channels_last, oneDNN, its fused optimiser, eager.

Both start from the same weights, in processes of their own, and work in turn. Before anything is
timed, one step in float64, where rounding hides nothing, has to give the same loss, gradients,
weights and averages. In that check this project's batch is one part, as PyTorch's is; when timed it
is split over the threads, and batch normalisation sees each part alone.
"""

import sys
import timeit
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from multiprocessing import get_context
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.machine import describe
from model.network import Array, Gradients, Layer, Scratch, parameters, prepare
from training.architecture import default_network
from training.course import forward_backward
from training.loop import MOMENTUM, Optimizer, bind

LEARNING_RATE, WEIGHT_DECAY, EMA_DECAY = 0.01, 5e-4, 0.999
TOLERANCE = 1e-6  # relative, of the vectors' lengths, in float64

Step = dict[str, dict[str, Array]]  # loss, gradients, parameters, averages; by parameters' names


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
        X, y = rng.random((self.batch, 64 * 64 * 3)), rng.random((self.batch, 1))
        return X.astype(self.dtype), y.astype(self.dtype)

    def layers(self) -> list[Layer]:
        """The default network with random weights."""
        layers = default_network(np.random.default_rng(self.seed))
        values = [value.ravel() for value in parameters(layers).values()]
        bind(layers, np.concatenate(values).astype(self.dtype))
        return layers


class Ours:
    """This project's step, put together as training.loop.Trainer does."""

    def __init__(self, task: Task) -> None:
        self.layers = task.layers()
        self.optimizer = Optimizer(self.layers, WEIGHT_DECAY, EMA_DECAY)
        prepare(self.layers)
        self.X, self.y = task.data()
        self.scratches = [Scratch(keep=True) for _ in range(task.threads)]
        self.pool = ThreadPoolExecutor(task.threads)

    def step(self) -> float:
        return self._step(len(self.scratches))[1]

    def first_step(self) -> Step:
        [gradients], loss = self._step(parts=1)
        own, average = parameters(self.layers), self.optimizer.average.copy()
        ends = np.cumsum([value.size for value in own.values()])[:-1]
        return {
            "loss": {"": np.array(loss)},
            "gradients": {name: value / len(self.X) for name, value in gradients.items()},
            "parameters": {name: value.copy() for name, value in own.items()},
            "averages": dict(zip(own, np.split(average, ends), strict=True)),
        }

    def _step(self, parts: int) -> tuple[list[Gradients], float]:
        rows = np.array_split(np.arange(len(self.X)), parts)

        def run(i: int) -> tuple[Gradients, float]:
            x, y = self.X[rows[i]], self.y[rows[i]]
            return forward_backward(self.layers, x, y, self.scratches[i])

        results = list(self.pool.map(run, range(parts)))
        gradients = [part for part, _ in results]
        self.optimizer.step(gradients, len(self.X), LEARNING_RATE, self.pool)
        list(self.pool.map(lambda layer: layer.prepare(), self.layers))
        return gradients, sum(total for _, total in results) / len(self.X)


class Theirs:
    """PyTorch's step."""

    def __init__(self, task: Task) -> None:
        import torch

        from benchmarks import torch_network

        torch.set_num_threads(task.threads)
        self.torch, self.network = torch, torch_network
        self.layers = task.layers()
        self.own = torch_network.tensors(self.layers)
        values = [value.requires_grad_() for value in self.own.values()]
        self.averages = [value.detach().clone() for value in values]
        self.steps = 0
        self.optimizer = torch.optim.SGD(
            [
                {"params": [p for p in values if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
                {"params": [p for p in values if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=LEARNING_RATE,
            momentum=MOMENTUM,
            nesterov=True,
            fused=True,
        )
        X, y = task.data()
        self.x, self.y = torch_network.pictures(X), torch.from_numpy(y)

    def step(self) -> float:
        torch, functional = self.torch, self.torch.nn.functional
        self.optimizer.zero_grad(set_to_none=True)
        z = self.network.forward(self.layers, self.own, self.x)
        cost = functional.binary_cross_entropy_with_logits(z, self.y)
        cost.backward()
        self.optimizer.step()
        self.steps += 1
        beta = min(EMA_DECAY, self.steps / (self.steps + 9))
        with torch.no_grad():  # the call under torch.optim.swa_utils.AveragedModel
            torch._foreach_lerp_(self.averages, [*self.own.values()], 1 - beta)
        return float(cost.detach())

    def first_step(self) -> Step:
        loss, array = self.step(), self.network.array
        averages = map(array, self.averages)
        return {
            "loss": {"": np.array(loss)},
            "gradients": {name: array(value.grad) for name, value in self.own.items()},
            "parameters": {name: array(value) for name, value in self.own.items()},
            "averages": dict(zip(self.own, averages, strict=True)),
        }


_side: Ours | Theirs  # of a process


def _start(side: type[Ours | Theirs], task: Task) -> None:
    global _side
    _side = side(task)


def _first_step() -> Step:
    return _side.first_step()


def _seconds(steps: int) -> list[float]:
    return timeit.repeat(_side.step, repeat=steps, number=1)


@contextmanager
def both(task: Task) -> Iterator[Callable[..., list[Any]]]:
    """A process for PyTorch and one for this project, neither with what the other loaded. Each
    runs a function in turn."""
    context = get_context("spawn")
    with ExitStack() as stack:
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, context, _start, (side, task)))
            for side in (Theirs, Ours)
        ]
        yield lambda function, *arguments: [
            pool.submit(function, *arguments).result() for pool in pools
        ]


def compare(theirs: Step, ours: Step) -> dict[str, float]:
    """Relative differences: of each kind of vector, the worst."""
    return {
        what: max(
            float(np.linalg.norm(ours[what][name].ravel() - value.ravel()) / np.linalg.norm(value))
            for name, value in values.items()
        )
        for what, values in theirs.items()
    }


def main(
    batch: int = 128,
    threads: int = 2,
    rounds: Annotated[int, typer.Option(help="of both, one after the other")] = 12,
    steps: Annotated[int, typer.Option(help="of each in a round")] = 5,
    seed: int = 1,
) -> None:
    """How fast is a training step, compared with PyTorch? Exit status 1: the results differ."""
    if find_spec("torch") is None:
        print("PyTorch is not installed: python -m pip install torch==2.13.0.", file=sys.stderr)
        sys.exit(2)
    task = Task(batch, threads, seed)
    print(describe())
    with both(replace(task, dtype="float64")) as ask:
        differences = compare(*ask(_first_step))
    print("\nthe same step on the same batch in float64, relative difference:")
    print(*(f"  {what:<12}{difference:.1e}" for what, difference in differences.items()), sep="\n")
    if max(differences.values()) > TOLERANCE:
        sys.exit(f"More than {TOLERANCE}: these are not the same network.")
    with both(task) as ask:
        ask(_seconds, steps)  # caches, buffers and threads are there afterwards
        taken = [ask(_seconds, steps) for _ in range(rounds)]
    print(f"\nmilliseconds for a step of {batch} pictures, median (fastest):\n")
    for place, name in enumerate((f"PyTorch {version('torch')}", "this project")):
        own = list(chain(*(each[place] for each in taken)))
        print(f"  {name:<20}{median(own) * 1e3:8.1f} ({min(own) * 1e3:.1f})")
    ratios = [median(theirs) / median(ours) for theirs, ours in taken]
    print(f"\n{median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    typer.run(main)
