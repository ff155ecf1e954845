"""Soft labels from a pretrained network (Hinton, Vinyals and Dean 2015, Distilling the Knowledge in
a Neural Network): a picture that only just shows a cat is worth less than 1, and a wrong label does
less harm.

The teacher is a CSV with the columns `name` (as in `PictureSet.names`) and `cat_log_odds`. Its
scale and zero differ from source to source, so its log-odds are calibrated on the labels of each.
"""

import csv
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.network import Array, sigmoid
from training.calibration import logistic_fit
from training.errors import BadData

COLUMNS = ("name", "cat_log_odds")
_SHOWN = 5  # names that a message lists


def read_teacher(path: Path, names: Sequence[str]) -> Array:
    """The teacher's log-odds (m,) float64 of the pictures of these names.

    Raises BadData: no file, not such a CSV, a number that is none, a picture that is not in it.
    """
    odds = _read_table(path)
    missing = [name for name in names if name not in odds]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise BadData(
            f"{path} has no log-odds for {len(missing):,} of {len(names):,} training pictures: "
            f"{shown}. Add them, train on pictures that it has, or leave --teacher out."
        )
    return np.array([odds[name] for name in names])


def _read_table(path: Path) -> dict[str, float]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise BadData(
                    f"{path} has the columns {', '.join(reader.fieldnames or ()) or '(none)'}; "
                    f"expected {' and '.join(COLUMNS)}."
                )
            odds = {
                row["name"]: _number(path, reader.line_num, row["cat_log_odds"]) for row in reader
            }
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{path} is no CSV: {error}.") from error
    return odds


def _number(path: Path, line: int, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise BadData(f"{path}, line {line}: {text!r} is not a number.")
    return value


def calibrated(log_odds: Array, labels: Array, sources: Sequence[str]) -> Array:
    """The teacher's probabilities (m,): its log-odds calibrated on the labels of each source; on
    those of all sources, for a source that has pictures of one class only."""
    names = np.asarray(sources)
    probabilities = np.zeros(len(labels))
    for source in np.unique(names):
        own = names == source
        basis = own if len(np.unique(labels[own])) > 1 else np.ones(len(labels), bool)
        scale, shift = logistic_fit(log_odds[basis], labels[basis])
        probabilities[own] = sigmoid(scale * log_odds[own] + shift)
    return probabilities


def mix(labels: Array, probabilities: Array, share: float) -> npt.NDArray[np.float32]:
    """Targets (m,): `share` of the teacher's probability and the rest of the label."""
    return ((1 - share) * labels + share * probabilities).astype(np.float32)
