"""The training loop: mini-batches on threads, an optimiser, a schedule, checkpoints.

A batch is split into as many shards as there are threads. Each shard draws its variations, runs
forward and backward and sums its gradients; batch normalisation sees the shard. Every random number
comes from (seed, epoch, step, shard). So a resumed run goes on exactly as the unbroken one would
have, and the same seed, data and number of threads give the same weights, provided that linear
algebra uses one thread inside each of ours, which `fit` sees to.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field

from model.artifact import build, describe, pack, read_file, unpack
from model.machine import write_file
from model.network import (
    Array,
    Gradients,
    Layer,
    Linear,
    Residual,
    Scratch,
    forward,
    parameters,
    pieces,
    prepare,
)
from training import Refused
from training.architecture import MOST_STAGES, STAGES, batch_norms, fold
from training.augmentation import augment, whole
from training.course import forward_backward

SCORING_ROWS = 32  # pictures a thread takes at a time when nothing is learned
NUMBERS = 65536  # parameters an update step handles at a time, so that they stay in cache
CHECKPOINT_VERSION = 3
MOMENTUM = 0.9
FADE, FADED = 0.2, 0.4  # over the last fifth of a run, variations fade to this share of them
NORM_PICTURES = 4096  # that measure the normalisation of the averaged weights

Count = Annotated[int, Field(ge=1)]
Stages = Annotated[tuple[Count, ...], Field(min_length=1, max_length=MOST_STAGES)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Settings:
    """What decides, together with the data, which weights come out. pydantic checks the ranges
    where settings are read."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epochs: Count = 40  # times that as many pictures are drawn as there are
    batch: Count = 128  # pictures a step learns from
    threads: Count = 2  # shards of a batch that run side by side
    max_lr: Positive = 0.1  # the learning rate between warm-up and decay
    warm_up: NotNegative = 1.0  # epochs over which it rises
    decay: Share = 0.3  # of the run, at its end, over which it falls to 0
    weight_decay: NotNegative = 5e-4
    ema_decay: Share = 0.999  # of the running average of the weights, which is what is kept
    augmentation_strength: Share = 1.0  # of the variations of the pictures
    group_weight: NotNegative = 0.3  # of the loss of the teacher's groups, beside the class's
    start_share: Share = 0.0  # of the weights that training started from in those that are kept
    seed: Annotated[int, Field(ge=0)] = 1  # of everything that is drawn at random
    stages: Stages = STAGES  # from scratch
    views: Literal["whole", "six"] = "whole"  # of a picture, from scratch
    teacher_share: Share = 0.7  # of the teacher in what is learned, the rest being the label
    shares: dict[str, Positive] = field(default_factory=dict)  # of sources, 1 being as the others
    lookalike_share: Annotated[float, Field(ge=0, lt=1)] = 1 / 3  # of the second class drawn


SCRATCH = Settings()
# Small steps for a short time, and half of the way back: without the way back, 160 pictures of a
# simulated night camera helped half as much, and what was known before was forgotten.
FINE_TUNING = Settings(
    epochs=20,
    batch=32,
    max_lr=0.001,
    warm_up=3.0,
    decay=0.85,
    ema_decay=0.98,
    weight_decay=0.0,
    augmentation_strength=0.7,
    start_share=0.5,
)


# --- the optimiser and its schedule ---------------------------------------------------------------


class Optimizer:
    """The parameters of a network as one vector θ, and what each step does to it.

    Nesterov momentum (Sutskever et al. 2013), with weight decay λ on weights but not on biases:

        g ← dJ/dθ + λθ,   v ← μv + g,   θ ← θ − α(g + μv)

    and an exponential average of the weights, θ̄ ← θ̄ + (1 − β)(θ − θ̄), which is what is kept at the
    end (Polyak and Juditsky 1992); β grows from 0 to `ema_decay` so that the start is forgotten.

    The layers' parameters become views of θ. A step that is cut off leaves the vectors undefined.
    """

    def __init__(self, layers: Sequence[Layer], weight_decay: float, ema_decay: float) -> None:
        self.ema_decay = ema_decay
        self.steps = 0
        own = parameters(layers)
        self.theta = np.concatenate([value.ravel() for value in own.values()])
        self.velocity = np.zeros_like(self.theta)
        self.average = self.theta.copy()
        self._gradient = np.empty_like(self.theta)
        self._gradients = split_vector(self._gradient, own)
        self._decay = np.concatenate(
            [np.full(v.size, weight_decay if v.ndim > 1 else 0, v.dtype) for v in own.values()]
        )
        bind(layers, self.theta)

    @property
    def vectors(self) -> dict[str, Array]:
        """All that changes but the number of steps."""
        return {"theta": self.theta, "velocity": self.velocity, "average": self.average}

    def step(
        self, shards: Sequence[Gradients], examples: int, learning_rate: float, pool: Executor
    ) -> None:
        """One update from the gradients that each shard summed over its part of the examples."""
        for name, total in self._gradients.items():
            np.multiply(shards[0][name], 1 / examples, out=total)
            for shard in shards[1:]:
                total += shard[name] * (1 / examples)
        self.steps += 1
        beta = min(self.ema_decay, self.steps / (self.steps + 9))
        # Each part is computed alone: the result does not depend on the number of threads.
        update = partial(self._update, learning_rate=learning_rate, fresh=1 - beta)
        list(pool.map(update, pieces(len(self.theta), NUMBERS)))

    def _update(self, part: slice, learning_rate: float, fresh: float) -> None:
        theta, velocity, average = self.theta[part], self.velocity[part], self.average[part]
        gradient = self._gradient[part]
        gradient += self._decay[part] * theta
        velocity *= MOMENTUM
        velocity += gradient
        gradient += MOMENTUM * velocity
        gradient *= learning_rate
        theta -= gradient
        average += fresh * (theta - average)


def split_vector(vector: Array, own: Mapping[str, Array]) -> dict[str, Array]:
    """Parts of the vector, one after the other, in the shapes of the parameters."""
    ends = np.cumsum([value.size for value in own.values()])
    parts = zip(own.items(), np.split(vector, ends[:-1]), strict=True)
    return {name: part.reshape(value.shape) for (name, value), part in parts}


def bind(layers: Sequence[Layer], vector: Array) -> None:
    """Make the layers' parameters views of the vector, in the order of `parameters`.
    `model.network.prepare` must follow."""
    sizes = [sum(value.size for value in layer.parameters.values()) for layer in layers]
    for layer, part in zip(layers, np.split(vector, np.cumsum(sizes)[:-1]), strict=True):
        if isinstance(layer, Residual):
            bind(layer.layers, part)
            layer.parameters = parameters(layer.layers)
        elif layer.parameters:
            layer.parameters = split_vector(part, layer.parameters)


def learning_rate(epoch: float, config: Settings) -> float:
    """The learning rate after so many epochs, which need not be whole: up in a straight line,
    constant, down in a straight line to 0 (Hägele et al. 2024, Scaling Laws and Compute-Optimal
    Training Beyond Fixed Training Durations). Runs of any length are the
    same up to the decay."""
    rising = (epoch + 0.05) / config.warm_up if config.warm_up else 1.0
    falling = (1 - epoch / config.epochs) / config.decay if config.decay else 1.0
    return config.max_lr * min(1.0, rising, falling)


# --- the loop -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """What there is to learn from. pictures: uint8 (m, s, s, 3), picture i in its first sides[i]
    rows and columns; targets: float32 (m, k) in [0, 1], one column for each output of the network:
    the class's first, then the teacher's groups; weights: float64 (m,), how often each is drawn,
    relative to the others."""

    pictures: Array
    sides: Array
    targets: Array
    weights: Array


@dataclass(frozen=True)
class Best:
    """The network of the best epoch so far, as it would be saved; epoch 0 is before training."""

    epoch: int
    log_loss: float  # on validation
    layers: list[Layer]


class Trainer:
    """A network in training: layers, optimiser, progress; a `with` ends its threads.

    Of the run until now, `curve` has a row of JSON values for each epoch, and `best` the best
    network; who measures adds to them. An epoch that is interrupted leaves the layers undefined.
    """

    def __init__(self, layers: list[Layer], examples: Examples, config: Settings) -> None:
        if config.start_share and batch_norms(layers):
            raise ValueError("start_share is for weights that are trained, without normalisation")
        self.layers, self.examples, self.config = layers, examples, config
        self.epoch = 0
        self.curve: list[dict[str, Any]] = []
        self.best: Best | None = None
        self.optimizer = Optimizer(layers, config.weight_decay, config.ema_decay)
        self._start = copy.deepcopy(parameters(layers)) if config.start_share else {}
        self._averaged = copy.deepcopy(layers)
        bind(self._averaged, self.optimizer.average)
        self._scratches = [Scratch(keep=True) for _ in range(config.threads)]
        self._pool = ThreadPoolExecutor(config.threads)
        self._prepare(self.layers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)  # a shard that is running is waited for

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.examples.pictures) // self.config.batch)

    def run_epoch(self) -> Iterator[float]:
        """One epoch, a step at a time: yields each batch's mean loss after its step.

        An epoch is as many drawings as there are pictures, less what does not fill a batch, but
        one batch at least; `epoch` grows when it is complete. Raises Refused.
        """
        config, steps = self.config, self.steps_per_epoch
        rng = np.random.default_rng((config.seed, self.epoch))
        order = draw(self.examples.weights, steps * config.batch, rng)
        for step, batch in enumerate(order.reshape(steps, config.batch)):
            yield self._step(batch, step, self.epoch + step / steps)
        self.epoch += 1

    def _step(self, batch: Array, step: int, epoch: float) -> float:
        config, examples = self.config, self.examples
        faded = max(0.0, (epoch / config.epochs - (1 - FADE)) / FADE)
        strength = config.augmentation_strength * (1 - faded * (1 - FADED))
        shards = np.array_split(batch, min(config.threads, len(batch)))

        def run(i: int) -> tuple[Gradients, float]:
            rng = np.random.default_rng((config.seed, self.epoch, step, i))
            rows, scratch = shards[i], self._scratches[i]
            x = augment(examples.pictures[rows], examples.sides[rows], rng, strength)
            y = examples.targets[rows]
            with np.errstate(over="ignore", invalid="ignore"):  # the loss tells
                return forward_backward(self.layers, x, y, scratch, config.group_weight)

        results = list(self._pool.map(run, range(len(shards))))
        mean_loss = sum(total for _, total in results) / len(batch)
        if not isfinite(mean_loss):
            raise Refused(
                f"Training diverged in epoch {self.epoch + 1}: the loss is not finite. Try max_lr "
                f"below {config.max_lr:g}."
            )
        gradients = [shard for shard, _ in results]
        rate = learning_rate(epoch, config)
        self.optimizer.step(gradients, len(batch), rate, self._pool)
        self._prepare(self.layers)
        return mean_loss

    def _prepare(self, layers: Sequence[Layer]) -> None:
        list(self._pool.map(lambda layer: layer.prepare(), layers))

    def folded(self) -> list[Layer]:
        """The network as it would be saved now: averaged weights, and in place of the batch
        normalisation the statistics that whole, unvaried training pictures have under them
        (Izmailov et al. 2018, Averaging Weights Leads to Wider Optima).

        With `start_share`, part of the way back to the weights that training started from: what it
        knew before is hardly lost, and what it learned generalises better than the end of the way
        does (Wortsman et al. 2022, Robust Fine-Tuning of Zero-Shot Models)."""
        self._prepare(self._averaged)
        norms = batch_norms(self._averaged)
        layers = fold(self._averaged, self._measure(norms) if norms else {})
        last = layers[-1].parameters  # of its outputs the first alone, the class, is kept
        layers[-1] = Linear(last["weights"][:, :1].copy(), last["bias"][:1].copy())
        if self.config.start_share:
            for name, value in parameters(layers).items():
                value += self.config.start_share * (self._start[name] - value)
            self._prepare(layers)
        return layers

    def _measure(self, norms: Sequence[Layer]) -> dict[int, Array]:
        """Mean and variance (2, channels) of what comes into each normalisation of the averaged
        network, by its `id`."""
        config, examples = self.config, self.examples
        count = min(NORM_PICTURES, 4 * len(examples.pictures))
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
        return {id(n): np.mean([one[i] for one in results], axis=0) for i, n in enumerate(norms)}


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


def sampling_weights(
    labels: Array,
    sources: Sequence[str],
    shares: Mapping[str, float] | None = None,
    lookalikes: Sequence[str] = (),
    lookalike_share: float = 1 / 3,
) -> Array:
    """Weights (m,), how often each picture is drawn: every source as often as the others and,
    within a source, each class by the root of its size. Rare cats are seen more often, and the
    source says little about the label.

    shares: sources to be drawn more or less often than the others, 1 being as often.
    lookalikes: of each picture the kind that it shows, or "" where it is no look-alike (m,). They
    are no part of their source: a source without cats would tell its label. They are drawn by kind,
    each as often as the others, and together are `lookalike_share` of the second class.
    """
    names = np.asarray(sources)
    kinds = np.asarray(lookalikes) if len(lookalikes) else np.full(len(labels), "")
    weights = np.zeros(len(labels))
    for source in np.unique(names):
        both = [(names == source) & (labels == label) & (kinds == "") for label in (0, 1)]
        groups = [group for group in both if group.any()]
        roots = [np.sqrt(group.sum()) for group in groups]
        for group, root in zip(groups, roots, strict=True):
            weights[group] = root / sum(roots) / root**2 * (shares or {}).get(str(source), 1.0)
    others = weights[labels == 0].sum()
    every = others * lookalike_share / (1 - lookalike_share) if others else weights.sum() or 1.0
    found = set(kinds) - {""}
    for kind in found:
        own = kinds == kind
        weights[own] = every / len(found) / own.sum()
    return weights


# --- checkpoints ----------------------------------------------------------------------------------
#
# One safetensors file, replaced as a whole after each epoch: the optimiser's vectors, the network
# of the best epoch so far, the learning curve, and what the run depends on (settings and data), so
# that other settings or data are noticed.


def save_checkpoint(path: Path, trainer: Trainer, identity: dict[str, Any]) -> None:
    """Write the checkpoint, whole or not at all. Raises OSError.

    identity: JSON values by name, on which the weights depend.
    """
    tensors = trainer.optimizer.vectors
    values: dict[str, Any] = {
        "checkpoint_version": CHECKPOINT_VERSION,
        "identity": identity,
        "curve": trainer.curve,
        "progress": [trainer.epoch, trainer.optimizer.steps],
        "best": None,
    }
    if best := trainer.best:
        values["best"] = {"epoch": best.epoch, "log_loss": best.log_loss}
        values["best"]["architecture"] = describe(best.layers)
        tensors |= parameters(best.layers)
    write_file(path, pack(values, tensors))


def resume(path: Path, trainer: Trainer, identity: dict[str, Any]) -> None:
    """Put the trainer where the checkpoint left off, bit for bit.

    Raises Refused: it is missing or damaged, or of a run with another identity.
    """
    try:
        values, tensors = unpack(read_file(path))
        if values.get("checkpoint_version") != CHECKPOINT_VERSION:
            raise ValueError("it is not a checkpoint of this version")
        _check_identity(path, values["identity"], identity)
        for name, vector in trainer.optimizer.vectors.items():
            vector[...] = tensors.pop(name)
        trainer.epoch, trainer.optimizer.steps = values["progress"]
        trainer.curve = values["curve"]
        if best := values["best"]:
            layers = build(best["architecture"], tensors)
            trainer.best = Best(best["epoch"], best["log_loss"], layers)
        prepare(trainer.layers)
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"The checkpoint {path} cannot be used: {error}. Delete its folder and start again."
        ) from error


def _check_identity(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    different = [
        f"{name} was {then.get(name, 'not set')!r} and is now {now.get(name, 'not set')!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if different:
        raise Refused(
            f"The run in {path.parent} cannot be resumed, because these have changed: "
            f"{'; '.join(different)}. Use the same data and options as before, or delete "
            f"{path.parent} and start again."
        )
