"""A run of training on disk: what it takes to go on after any epoch as if nothing had happened.

One safetensors file, replaced as a whole after each epoch: the trainer's vectors, the network of
the best epoch so far, the learning curve, and what the run depends on (configuration and data), so
that another configuration or other data are noticed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.architecture import build, describe
from model.artifact import pack, read_file, unpack, write_file
from model.network import Layer, parameters
from training.errors import Refused
from training.loop import Trainer

FORMAT_VERSION = 1


class BadCheckpoint(Refused, ValueError):
    """A checkpoint that cannot be gone on from; the message says why, and what to do."""


@dataclass(frozen=True)
class Best:
    """The network of the best epoch so far, as it would be saved; epoch 0 is before training."""

    epoch: int
    log_loss: float  # on validation
    layers: list[Layer]


@dataclass
class Run:
    """What a run depends on, and what it has come to beside the trainer's own vectors."""

    identity: dict[str, Any]  # JSON values by name: every run with the same gives the same weights
    curve: list[dict[str, Any]] = field(default_factory=list)  # one row of JSON values an epoch
    best: Best | None = None


def save(path: Path, trainer: Trainer, run: Run) -> None:
    """Write the checkpoint, whole or not at all. Raises OSError."""
    state = trainer.state()
    progress = state.pop("progress")
    tensors = {f"state.{name}": value for name, value in state.items()}
    values: dict[str, Any] = {
        "checkpoint_version": FORMAT_VERSION,
        "identity": run.identity,
        "curve": run.curve,
        "progress": progress.tolist(),
        "best": None,
    }
    if run.best:
        values["best"] = {
            "epoch": run.best.epoch,
            "log_loss": run.best.log_loss,
            "architecture": describe(run.best.layers),
        }
        tensors |= {f"best.{name}": value for name, value in parameters(run.best.layers).items()}
    write_file(path, pack(values, tensors))


def resume(path: Path, trainer: Trainer, identity: dict[str, Any]) -> Run:
    """Put the trainer where the checkpoint left off, and return the run so far.

    Raises BadCheckpoint: it is missing or damaged, or of a run with another identity.
    """
    try:
        values, tensors = unpack(read_file(path))
        if values.get("checkpoint_version") != FORMAT_VERSION:
            raise ValueError("it is no checkpoint of this version")
        _check_identity(path, values["identity"], identity)
        state = {n.removeprefix("state."): t for n, t in tensors.items() if n.startswith("state.")}
        trainer.restore(state | {"progress": np.array(values["progress"])})
        best = values["best"]
        if best is not None:
            own = {n.removeprefix("best."): t for n, t in tensors.items() if n.startswith("best.")}
            best = Best(best["epoch"], best["log_loss"], build(best["architecture"], own))
    except BadCheckpoint:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(
            f"The checkpoint {path} cannot be used: {error}. Remove its folder and start anew."
        ) from error
    return Run(identity, values["curve"], best)


def _check_identity(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    different = [
        f"{name} was {then.get(name, 'not set')!r} and is now {now.get(name, 'not set')!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if different:
        raise BadCheckpoint(
            f"The run in {path.parent} cannot go on, since it would not be the same run: "
            f"{'; '.join(different)}. Resume it with what it was started with, or remove "
            f"{path.parent} and start anew."
        )
