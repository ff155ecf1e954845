"""Soft labels from a pretrained network (Hinton, Vinyals and Dean 2015, Distilling the Knowledge in
a Neural Network): a picture that only just shows a cat is worth less than 1, and a wrong label does
less harm. What else the picture shows teaches more than one bit.

The teacher is an NPZ file with the arrays `name` (m,), as in `PictureSet.names`, `logit` (m,), the
log-odds of the first class, and, if it has them, `groups` (g,) and `group_probability` (m, g): what
else may be in the picture. The first group is the first class itself, which `logit` tells better:
it is left out. Scale and zero of the log-odds differ from source to source, so they are calibrated
on the labels of each.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.network import Array, sigmoid
from training import Refused
from training.calibration import by_source, logistic_fit
from training.data import PictureSet

_SHOWN = 5  # names that a message lists


class Teacher(NamedTuple):
    """What the teacher says of m pictures."""

    log_odds: Array  # float64 (m,)
    groups: Array  # float32 (m, g) in [0, 1], g 0 where it has none


def read_teacher(path: Path, names: Sequence[str]) -> Teacher:
    """What the teacher says of the pictures of these names. Raises Refused: no such file, values
    that are not finite, a picture that it lacks."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file}
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:  # ValueError: pickled objects
        raise Refused(f"{path} is not a valid NPZ file with names and numbers: {error}.") from error
    if not {"name", "logit"} <= arrays.keys():
        raise Refused(
            f"{path} has the arrays {', '.join(arrays) or '(none)'}; expected name and logit."
        )
    own = arrays["name"].astype(str).tolist()
    groups = arrays.get("group_probability", np.zeros((len(own), 1)))[:, 1:]
    for values, axes in ((arrays["logit"], 1), (groups, 2)):
        if values.ndim != axes or len(values) != len(own) or values.dtype.kind != "f":
            raise Refused(
                f"{path}: {len(own):,} names, and {values.dtype} of shape {values.shape}; expected "
                "floating-point numbers for each name."
            )
        if not np.isfinite(values).all():
            raise Refused(f"{path}: some values are not finite.")
    place = {name: i for i, name in enumerate(own)}
    missing = [name for name in names if name not in place]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + ", …" * (len(missing) > _SHOWN)
        raise Refused(
            f"{path} has no entry for {len(missing):,} of {len(names):,} training pictures: "
            f"{shown}. Add them, train on pictures that it has, or leave --teacher out."
        )
    rows = [place[name] for name in names]
    return Teacher(arrays["logit"][rows].astype(np.float64), groups[rows].astype(np.float32))


def calibrated(log_odds: Array, labels: Array, sources: Sequence[str]) -> Array:
    """The teacher's probabilities (m,): its log-odds calibrated on the labels of each source; on
    those of all sources, for a source that has pictures of one class only."""
    probabilities = np.zeros(len(labels))
    for own in by_source(sources).values():
        basis = own if len(np.unique(labels[own])) > 1 else np.ones(len(labels), bool)
        scale, shift = logistic_fit(log_odds[basis], labels[basis])
        probabilities[own] = sigmoid(scale * log_odds[own] + shift)
    return probabilities


def soft_targets(path: Path, pictures: PictureSet, share: float) -> npt.NDArray[np.float32]:
    """What a network is to learn of the pictures (m, 1 + g): `share` of the teacher's probability
    of the class and the rest of the label; then the teacher's groups. Raises Refused."""
    log_odds, groups = read_teacher(path, pictures.names)
    probabilities = calibrated(log_odds, pictures.labels, pictures.sources)
    targets = (1 - share) * pictures.labels + share * probabilities
    return np.hstack([targets.astype(np.float32)[:, None], groups])
