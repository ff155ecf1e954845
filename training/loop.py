"""The training loop: mini-batches, shards on threads, an epoch at a time.

A batch is split into as many shards as there are threads. Each shard draws its variations,
runs forward and backward with its own scratch memory and sums its gradients; batch normalisation
sees the shard. NumPy lets go of the interpreter lock in its loops and products, so shards run side
by side. Every random number comes from (seed, epoch, step, shard): a resumed run goes on exactly
as the unbroken one would have, and the same seed, data and number of threads give the same weights.
That holds for one thread of linear algebra inside each of ours, which `one_blas_thread` sees to.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Self

import numpy as np
from threadpoolctl import threadpool_limits

from model.network import (
    Array,
    Gradients,
    Layer,
    Scratch,
    backward,
    forward,
    parameters,
    pieces,
    sigmoid,
)
from training.architecture import batch_norms, fold
from training.augmentation import augment, mix, whole
from training.batch_norm import BatchNorm
from training.cost import loss
from training.gradient_descent import Diverged
from training.optimizer import Optimizer, bind, one_cycle

SCORING_ROWS = 32  # pictures a thread takes at a time when nothing is learned


def _option(default: Any, explanation: str) -> Any:
    """A field that the command line has a flag for, and what its help says."""
    return field(default=default, metadata={"help": explanation})


@dataclass(frozen=True)
class LoopConfig:
    """What decides, together with the data, which weights come out."""

    epochs: int = _option(40, "times that as many pictures are drawn as there are")
    batch: int = _option(128, "pictures a step learns from")
    threads: int = _option(2, "shards of a batch that run side by side")
    peak_rate: float = _option(0.2, "the largest learning rate, which is reached after the warm-up")
    warm_up: float = 0.15  # share of the run
    momentum: float = 0.9
    weight_decay: float = _option(5e-4, "how strongly weights are drawn to zero")
    averaging: float = 0.999
    strength: float = _option(1.0, "of the random variations of the pictures: 0 for none, 1 usual")
    mixed: float = _option(0.0, "share of the pictures that are mixed with another, at strength 1")
    calm: float = 0.2  # share of the run, at its end, over which the augmentation fades
    calm_strength: float = 0.4  # what it fades to
    anchor: float = 0.0  # share of the weights that it started from in those that are kept
    statistics: int = 4096  # pictures that measure the normalisation of the averaged weights
    seed: int = _option(1, "of everything that is drawn at random")


@dataclass(frozen=True)
class Examples:
    """What there is to learn from. pictures: uint8 (m, s, s, 3), picture i in its first sides[i]
    rows and columns; targets: float32 (m,) in [0, 1]; weights: float64 (m,), how often each is
    drawn, relative to the others."""

    pictures: Array
    sides: Array
    targets: Array
    weights: Array


class Trainer:
    """A network in training: layers, optimiser, progress. Close it, or use it in a `with`.

    An epoch that is interrupted leaves it undefined; what `folded` and `state` gave before stays
    as it was, if `state` was copied.
    """

    def __init__(self, layers: list[Layer], examples: Examples, config: LoopConfig) -> None:
        self.layers, self.examples, self.config = layers, examples, config
        self.epoch = 0
        self.optimizer = Optimizer(
            layers,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            averaging=config.averaging,
        )
        if config.anchor and batch_norms(layers):
            raise ValueError("an anchor is for weights that are trained, without normalisation")
        own = parameters(layers) if config.anchor else {}
        self._start = {name: value.copy() for name, value in own.items()}
        self._averaged = copy.deepcopy(layers)
        bind(self._averaged, self.optimizer.average)
        self._scratches = [Scratch(keep=True) for _ in range(config.threads)]
        self._pool = ThreadPoolExecutor(config.threads)
        self._prepare(self.layers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; a shard that is running is waited for."""
        self._pool.shutdown(cancel_futures=True)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.examples.pictures) // self.config.batch)

    def run_epoch(self) -> Iterator[float]:
        """One epoch, a step at a time: yields each batch's mean loss after its step.

        An epoch is as many drawings as there are pictures, less what does not fill a batch, but
        one batch at least; `epoch` grows when it is complete. Raises Diverged.
        """
        config, steps = self.config, self.steps_per_epoch
        order = draw(
            self.examples.weights,
            steps * config.batch,
            np.random.default_rng((config.seed, self.epoch)),
        )
        for step in range(steps):
            progress = (self.epoch + step / steps) / config.epochs
            batch = order[step * config.batch : (step + 1) * config.batch]
            yield self._step(batch, step, progress)
        self.epoch += 1

    def _step(self, batch: Array, step: int, progress: float) -> float:
        config = self.config
        shards = np.array_split(batch, min(config.threads, len(batch)))

        def run(i: int) -> tuple[Gradients, float]:
            rng = np.random.default_rng((config.seed, self.epoch, step, i))
            with np.errstate(over="ignore", invalid="ignore"):  # the loss tells
                return self._shard(shards[i], rng, self._strength(progress), self._scratches[i])

        results = list(self._pool.map(run, range(len(shards))))
        mean_loss = sum(total for _, total in results) / len(batch)
        if not isfinite(mean_loss):
            raise Diverged(
                f"Training diverged in epoch {self.epoch + 1}: the loss is no longer a number, so "
                f"the steps are too large. Try a smaller learning rate than {config.peak_rate:g}."
            )
        rate = one_cycle(progress, config.peak_rate, config.warm_up)
        gradients = [shard for shard, _ in results]
        self.optimizer.step(gradients, len(batch), rate, self._pool)
        self._prepare(self.layers)
        return mean_loss

    def _shard(
        self, rows: Array, rng: np.random.Generator, strength: float, scratch: Scratch
    ) -> tuple[Gradients, float]:
        examples = self.examples
        x = augment(examples.pictures[rows], examples.sides[rows], rng, strength)
        y = examples.targets[rows][:, None]
        if self.config.mixed:
            x, y = mix(x, y, rng, self.config.mixed * strength)
        stages = forward(self.layers, x, scratch)
        z = stages[-1]
        dz = sigmoid(z) - y
        total = float(loss(z, y).sum())
        _, gradients = backward(self.layers, stages, dz, scratch, input_gradient=False)
        return gradients, total

    def _strength(self, progress: float) -> float:
        config = self.config
        calm = max(0.0, (progress - (1 - config.calm)) / config.calm) if config.calm else 0.0
        return config.strength * (1 - calm * (1 - config.calm_strength))

    def _prepare(self, layers: Sequence[Layer]) -> None:
        list(self._pool.map(lambda layer: layer.prepare(), layers))

    def folded(self) -> list[Layer]:
        """The network as it would be saved now: averaged weights, and in place of the batch
        normalisation the statistics that whole, unvaried training pictures have under them
        (Izmailov et al. 2018, Averaging Weights Leads to Wider Optima).

        With an anchor, weights part of the way back to those that training started from: what it
        knew before is hardly lost, and what it learned generalises better than the end of the way
        does (Wortsman et al. 2022, Robust Fine-Tuning of Zero-Shot Models)."""
        self._prepare(self._averaged)
        norms = batch_norms(self._averaged)
        layers = fold(self._averaged, self._measure(norms) if norms else {})
        if self.config.anchor:
            for name, value in parameters(layers).items():
                value += self.config.anchor * (self._start[name] - value)
            self._prepare(layers)
        return layers

    def _measure(self, norms: Sequence[BatchNorm]) -> dict[int, tuple[Array, Array]]:
        """Mean and variance of what comes into each normalisation of the averaged network."""
        config, examples = self.config, self.examples
        count = min(config.statistics, 4 * len(examples.pictures))
        rows = draw(examples.weights, count, np.random.default_rng((config.seed, 2**31)))
        shards = np.array_split(rows, max(1, count // max(1, config.batch // 2)))

        def run(i: int) -> list[list[tuple[Array, Array]]]:
            measured = []
            scratch = self._scratches[i]
            for shard in shards[i :: config.threads]:
                x = whole(examples.pictures[shard], examples.sides[shard])
                forward(self._averaged, x, scratch)
                measured.append([scratch.saved[id(norm)][:2] for norm in norms])
            return measured

        results = [one for part in self._pool.map(run, range(config.threads)) for one in part]
        return {
            id(norm): (
                np.mean([one[i][0] for one in results], axis=0),
                np.mean([one[i][1] for one in results], axis=0),
            )
            for i, norm in enumerate(norms)
        }

    def state(self) -> dict[str, Array]:
        """What a checkpoint needs beside the configuration: the trainer's own arrays, by name."""
        optimizer = self.optimizer
        return {
            "theta": optimizer.theta,
            "velocity": optimizer.velocity,
            "average": optimizer.average,
            "progress": np.array([self.epoch, optimizer.steps]),
        }

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` gave, bit for bit."""
        optimizer = self.optimizer
        for name in ("theta", "velocity", "average"):
            getattr(optimizer, name)[...] = state[name]
        self.epoch, optimizer.steps = (int(number) for number in state["progress"])
        self._prepare(self.layers)


def draw(weights: Array, count: int, rng: np.random.Generator) -> Array:
    """`count` indices in random order, each as often as its weight says, rounded up or down
    (systematic sampling: evenly spaced points on the cumulated weights)."""
    cumulated = np.cumsum(weights, dtype=np.float64)
    points = (np.arange(count) + rng.random()) * (cumulated[-1] / count)
    chosen = np.minimum(np.searchsorted(cumulated, points, side="right"), len(weights) - 1)
    # Neighbours on the line are of one source and class; the order must not be theirs.
    result: Array = rng.permutation(chosen)
    return result


def score(layers: Sequence[Layer], pictures: Array, sides: Array, threads: int = 2) -> Array:
    """The logits z (m,) of whole pictures, as `Examples` holds them, on several threads."""
    parts = list(pieces(len(pictures), SCORING_ROWS))
    z = np.empty(len(pictures), np.float32)

    def run(i: int) -> None:
        scratch = Scratch()
        for part in parts[i::threads]:
            z[part] = forward(layers, whole(pictures[part], sides[part]), scratch)[-1][:, 0]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(threads)))
    return z


def one_blas_thread() -> AbstractContextManager[Any]:
    """While it lasts, NumPy's linear algebra uses one thread a call, whoever imported it first:
    calls run side by side already, and more threads than cores make each other wait."""
    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def balance(
    labels: Array, sources: Sequence[str], shares: Mapping[str, float] | None = None
) -> Array:
    """Weights (m,) that give every source the same share of what is drawn and, within a source,
    each class a share that grows with the root of its size: rare cats are seen more often, and
    the source says little about the label.

    shares: sources to be drawn more or less often than the others, 1 being as often; a source that
    is harder than the others may deserve more.
    """
    names = np.asarray(sources)
    weights = np.zeros(len(labels))
    for source in np.unique(names):
        groups = [(names == source) & (labels == label) for label in (0, 1)]
        roots = [np.sqrt(group.sum()) for group in groups]
        for group, root in zip(groups, roots, strict=True):
            if root:
                weights[group] = root / sum(roots) / root**2 * (shares or {}).get(str(source), 1.0)
    return weights
