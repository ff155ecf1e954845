"""The pictures that training holds back, and what a network's answers for them are worth.

Fewer pictures decide by what they are read as than by how they are scored: they are read as the
service reads pictures, and each source counts the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.network import Array, Layer, sigmoid
from training.augmentation import SIDE, whole
from training.calibration import (
    calibrate,
    choose_threshold,
    mean_balanced_accuracy,
    source_weights,
)
from training.cost import loss
from training.data import PictureSet
from training.kinds import kind_of
from training.loop import score
from training.metrics import roc_auc, summary


@dataclass(frozen=True, eq=False)
class Validation:
    """m pictures; `pictures` and `sides` as `training.loop.Examples` holds them."""

    pictures: Array
    sides: Array
    labels: Array
    sources: Sequence[str]  # as they are reported: rooms are a source of their own

    def logits(self, layers: Sequence[Layer], threads: int) -> Array:
        """z (m,) float64 of the network."""
        return score(layers, self.pictures, self.sides, threads).astype(np.float64)

    def squeezed(self) -> Iterator[NDArray[np.uint8]]:
        """The pictures one by one as the network sees them, (64, 64, 3)."""
        for i in range(len(self.pictures)):
            row = whole(self.pictures[i : i + 1], self.sides[i : i + 1])
            yield (row * 255 + 0.5).astype(np.uint8).reshape(SIDE, SIDE, 3)


def validation_of(pictures: PictureSet) -> Validation:
    """The pictures of a set, with their sources as they are reported."""
    sources = [
        kind_of(name, source).source
        for name, source in zip(pictures.names, pictures.sources, strict=True)
    ]
    return Validation(pictures.pictures, pictures.sides, pictures.labels, sources)


def source_log_loss(z: Array, y: Array, sources: Sequence[str]) -> float:
    """The mean over the sources of the mean loss of each."""
    return float(np.mean(source_weights(sources) * loss(z, y)))


def progress_row(z: Array, validation: Validation) -> dict[str, Any]:
    """The figures of one epoch, as JSON values: after a calibration and with a threshold of its
    own, since that is how its network would be saved."""
    y, sources = validation.labels, validation.sources
    calibration = calibrate(z, y, sources)
    z = calibration.scale * z + calibration.shift
    p = sigmoid(z)
    threshold = choose_threshold(y, p, sources)
    aucs = {
        source: roc_auc(y[own], p[own])
        for source, own in _by_source(sources).items()
        if len(np.unique(y[own])) > 1
    }
    return {
        "log_loss": source_log_loss(z, y, sources),
        "balanced_accuracy": mean_balanced_accuracy(y, p, sources, threshold),
        "roc_auc": aucs,
    }


def metrics_by_source(p: Array, validation: Validation, threshold: float) -> dict[str, Any]:
    """`training.metrics.summary` of each source, and of all pictures together under "all"."""
    y = validation.labels
    numbers: dict[str, Any] = {"all": summary(y, p, threshold)}
    every = _by_source(validation.sources)
    if len(every) > 1:
        numbers |= {name: summary(y[own], p[own], threshold) for name, own in every.items()}
    return numbers


def _by_source(sources: Sequence[str]) -> dict[str, Array]:
    names = np.asarray(sources)
    return {str(source): names == source for source in np.unique(names)}
