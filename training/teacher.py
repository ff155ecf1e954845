"""Soft labels from a pretrained network (Hinton, Vinyals and Dean 2015, Distilling the Knowledge in
a Neural Network): a picture that only just shows a cat is worth less than 1, and a wrong label does
less harm.

The teacher is a file with a number for each picture, its log-odds of the first class: a CSV with
the columns `name` (as in `PictureSet.names`) and `cat_log_odds`, or an NPZ with the arrays `name`
and `logit`. Scale and zero differ from source to source, so the log-odds are calibrated on the
labels of each.
"""

import csv
import zipfile
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.network import Array, sigmoid
from training import Refused
from training.calibration import by_source, logistic_fit

CSV_COLUMNS, NPZ_ARRAYS = ("name", "cat_log_odds"), ("name", "logit")
_SHOWN = 5  # names that a message lists


def read_teacher(path: Path, names: Sequence[str]) -> Array:
    """The teacher's log-odds (m,) float64 of the pictures of these names.

    Raises Refused: no such file, something in it that is no number, a picture that it lacks.
    """
    try:
        odds = _read_npz(path) if path.suffix.lower() == ".npz" else _read_csv(path)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}.") from error
    missing = [name for name in names if name not in odds]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise Refused(
            f"{path} has no log-odds for {len(missing):,} of {len(names):,} training pictures: "
            f"{shown}. Add them, train on pictures that it has, or leave --teacher out."
        )
    return np.array([odds[name] for name in names], np.float64)


def _read_csv(path: Path) -> dict[str, float]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not set(CSV_COLUMNS) <= set(reader.fieldnames or ()):
                raise Refused(
                    f"{path} has the columns {', '.join(reader.fieldnames or ()) or '(none)'}; "
                    f"expected {' and '.join(CSV_COLUMNS)}."
                )
            return {
                row["name"]: _number(f"{path}, line {reader.line_num}", row["cat_log_odds"])
                for row in reader
            }
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{path} is no CSV: {error}.") from error


def _number(where: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise Refused(f"{where}: {text!r} is not a number.")
    return value


def _read_npz(path: Path) -> dict[str, float]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not set(NPZ_ARRAYS) <= set(file):
                raise Refused(
                    f"{path} has the arrays {', '.join(file) or '(none)'}; expected "
                    f"{' and '.join(NPZ_ARRAYS)}."
                )
            names, odds = (np.asarray(file[name]) for name in NPZ_ARRAYS)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:  # ValueError: pickled objects
        raise Refused(f"{path} is no NPZ of names and numbers: {error}.") from error
    if names.ndim != 1 or names.shape != odds.shape or odds.dtype.kind != "f":
        raise Refused(
            f"{path}: name has shape {names.shape} and logit {odds.shape} of {odds.dtype}; "
            "expected one name and one floating-point number for each picture."
        )
    texts = [
        name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        for name in names.tolist()
    ]
    if not np.isfinite(odds).all():
        raise Refused(
            f"{path}: the logit of {texts[int(np.isfinite(odds).argmin())]} is no number."
        )
    return dict(zip(texts, odds.astype(np.float64).tolist(), strict=True))


def calibrated(log_odds: Array, labels: Array, sources: Sequence[str]) -> Array:
    """The teacher's probabilities (m,): its log-odds calibrated on the labels of each source; on
    those of all sources, for a source that has pictures of one class only."""
    probabilities = np.zeros(len(labels))
    for own in by_source(sources).values():
        basis = own if len(np.unique(labels[own])) > 1 else np.ones(len(labels), bool)
        scale, shift = logistic_fit(log_odds[basis], labels[basis])
        probabilities[own] = sigmoid(scale * log_odds[own] + shift)
    return probabilities


def soften(labels: Array, probabilities: Array, share: float) -> npt.NDArray[np.float32]:
    """Targets (m,): `share` of the teacher's probability and the rest of the label."""
    return ((1 - share) * labels + share * probabilities).astype(np.float32)
