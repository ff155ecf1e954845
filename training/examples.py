"""What `fit` learns from, and what it measures with.

Pictures to validate on are read as the service reads them. Near copies of a picture (saved again,
resized, mirrored) are on one side; otherwise the figures would be too good.

A picture is compared as 16×16 grey values. Two are copies of each other where these are almost
proportional (a correlation of `LEAST_CORRELATION`) and differ nowhere by much against the picture's
own contrast: that tells frames of a fixed camera with and without a cat apart, which are the same
everywhere but in one place.

Labels may come from a teacher, a larger network (Hinton, Vinyals and Dean 2015, Distilling the
Knowledge in a Neural Network). A picture that only just shows a cat is worth less than 1, and a
wrong label does less harm. What else the picture shows teaches more than one bit.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.network import Array, pieces, sigmoid
from model.preprocessing import Preprocessing, read_picture
from training import Refused
from training.augmentation import LUMA, cosines
from training.calibration import by_source, logistic_fit
from training.data import CLASS_NAMES, PictureSet, on_all_cores, read_pictures
from training.report import Say

LARGEST, SMALLEST = 96, 64  # sides that training pictures are kept at: crops of 64 need room
SHARE = 0.2  # of each class that is held back,
MOST = 2000  # but no more pictures than this
LEAST_HELD_BACK, LEAST_TRAINING = 5, 10  # of each class
COPIES = "identical, re-saved, resized or mirrored"


# --- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Which pictures to read, as the command line names them; for `course`, `validation` is what
    --test names."""

    training: Sequence[Path]
    validation: Sequence[Path] = ()  # empty: a part of the training pictures is held back
    class_names: tuple[str, str] = CLASS_NAMES
    skip_bad: bool = False


def read(data: Data, seed: int, say: Say) -> tuple[PictureSet, PictureSet]:
    """The pictures to train on, at their own size, and those to validate on, at the network's.
    Raises Refused."""
    read_all = partial(read_pictures, class_names=data.class_names, skip_bad=data.skip_bad, say=say)
    training = read_all(data.training, LARGEST, smallest=SMALLEST)
    grey = grey_pictures(training.pictures, training.sides)
    if data.validation:
        held = read_all(data.validation)
        copies = copies_of(grey_pictures(held.pictures, held.sides), grey)
        if copies.any():
            what = f"validation pictures that are copies of training pictures ({COPIES})"
            say(f"left out {copies.sum():,} {what}")
            held = held.only(~copies)
    else:
        parts = f"({LEAST_TRAINING} to train on and {LEAST_HELD_BACK} to hold back)"
        _check_counts(training, LEAST_TRAINING + LEAST_HELD_BACK, f"in the data {parts}")
        groups = copy_groups(grey)
        if count := count_copies(groups):
            together = "copies stay together in training or in validation"
            say(f"{count:,} pictures have copies ({COPIES}); {together}")
        chosen, divided = hold_back(training, groups, np.random.default_rng((seed, 7)))
        for name in divided:
            say(
                f"note: almost all pictures of {name!r} are copies of each other. Some are in both "
                "training and validation: the figures are too good. Use --validation with others."
            )
        held = _read_again(training, chosen)
        training = training.only(~chosen)
    for pictures, purpose in ((training, "training on"), (held, "validating on")):
        say(f"{purpose} {pictures}")
    _check_counts(training, LEAST_TRAINING, "to train on")
    _check_counts(held, LEAST_HELD_BACK, "to validate on")
    return training, held


def _read_again(pictures: PictureSet, chosen: Array) -> PictureSet:
    """The chosen pictures (m,) bool, read from their files at the network's size."""
    places, spec = np.flatnonzero(chosen), Preprocessing()
    read = on_all_cores(
        lambda i: read_picture(pictures.files[places[i]](), spec).pixels, len(places), "reading"
    )
    sides = np.full(len(pictures), spec.side, np.int16)
    without = replace(pictures, pictures=np.zeros((len(sides), 0, 0, 3), np.uint8), sides=sides)
    return replace(without.only(chosen), pictures=np.stack(read))


def _check_counts(pictures: PictureSet, least: int, purpose: str) -> None:
    """Raises Refused where a class has too few pictures."""
    counts = {name: pictures.count(name) for name in pictures.class_names}
    if min(counts.values()) < least:
        found = " and ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise Refused(
            f"Too few pictures {purpose}: {found}. At least {least} per class are needed; a few "
            "hundred give useful results."
        )


def hold_back(
    pictures: PictureSet, groups: Array, rng: np.random.Generator
) -> tuple[Array, list[str]]:
    """Which pictures (m,) bool are held back for validation: a fifth of each class, spread evenly
    over the sources, drawn at random within them. Copies stay together; besides, the names of the
    classes in which they cannot, since almost all are copies.

    groups: (m,), as `copy_groups` gives them.
    """
    held, divided = np.zeros(len(pictures), bool), []
    for label, class_name in zip((1, 0), pictures.class_names, strict=True):
        own = np.flatnonzero(pictures.labels == label)
        count = min(max(LEAST_HELD_BACK, round(SHARE * len(own))), MOST)
        units, sizes = groups[own], np.bincount(groups[own])
        small = sizes[units] <= max(1, count // 3)
        if small.sum() < count + LEAST_HELD_BACK and not small.all():
            units, small = own, np.ones(len(own), bool)
            divided.append(class_name)
        own, units = own[small], units[small]
        _, first = np.unique(units, return_index=True)  # a picture of each unit
        in_order = sorted(rng.permutation(first), key=lambda i: pictures.sources[own[i]])
        # One at random from each of as many stretches as units are to be held back
        ends = np.linspace(0, len(in_order), max(1, round(len(first) * count / len(own))) + 1)
        places = rng.uniform(ends[:-1], ends[1:]).astype(int)
        held[own] |= np.isin(units, [units[in_order[place]] for place in places])
    return held, divided


# --- copies -------------------------------------------------------------------------------------
#
# Comparing every picture with every other would take an hour for 100,000. Each is written as its
# cosine transform of length 1, in which a mirror image has other signs and nothing else. The
# distance of two such vectors is at least that of any part of their coordinates: one coordinate, by
# which the pictures are sorted, leaves few to compare, and 35 leave hardly any that are no copies.

GREY_SIDE = 16
LEAST_CORRELATION = 0.98
MOST_DIFFERENCE = 0.22  # of one grey value, in standard deviations of the picture,
LEAST_DIFFERENCE = 1.5  # but not less than this, of 255: rounding and compression
LEAST_DEVIATION = 1.0  # of 255; below it there is nothing to compare
_REACH = np.float32(np.sqrt(2 * (1 - LEAST_CORRELATION)))  # distance of vectors of length 1
_LOW = 6  # coarse cosines a direction that are compared first
_AT_ONCE = 256

_COSINES = cosines(GREY_SIDE)
_MIRROR = np.tile(np.where(np.arange(_LOW) % 2, -1, 1), _LOW).astype(np.float32)  # signs of `low`


def grey_pictures(pictures: Array, sides: Array) -> Array:
    """Grey values (m, 16, 16) float32, 0 to 255, of pictures uint8 (m, s, s, 3), of which picture
    i fills its first sides[i] rows and columns: the mean over each of 16×16 areas."""
    result = np.empty((len(pictures), GREY_SIDE, GREY_SIDE), np.float32)
    for side in np.unique(sides).tolist():
        areas = np.linspace(0, side, GREY_SIDE + 1)
        covered = np.clip(areas[1:, None] - np.arange(side), 0, 1)
        covered -= np.clip(areas[:-1, None] - np.arange(side), 0, 1)
        mean = (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)  # (16, side)
        own = np.flatnonzero(sides == side)
        for part in pieces(len(own), _AT_ONCE):
            grey = pictures[own[part], :side, :side] @ LUMA
            result[own[part]] = mean @ grey @ mean.T
    return result


def copy_groups(grey: Array) -> Array:
    """A number (m,) for each of the grey pictures (m, 16, 16), the same for copies of each other
    and for copies of copies. Pictures of one colour are copies of none."""
    groups = np.arange(len(grey))
    deviation = grey.std(axis=(1, 2))
    standard = grey - grey.mean(axis=(1, 2), keepdims=True)
    standard /= np.maximum(deviation, 1e-6)[:, None, None]
    transform = (_COSINES @ standard @ _COSINES.T).astype(np.float32) / GREY_SIDE  # of length 1
    order = np.argsort(transform[:, 1, 0], kind="stable")  # a mirror image has the same
    order = order[deviation[order] > LEAST_DEVIATION]
    key = transform[order, 1, 0]
    low = transform[order, :_LOW, :_LOW].reshape(-1, _LOW * _LOW)
    squares = np.einsum("ij,ij->i", low, low)
    tolerance = np.maximum(MOST_DIFFERENCE, LEAST_DIFFERENCE / np.maximum(deviation, 1e-6))
    for part in pieces(len(order), _AT_ONCE):
        end = int(np.searchsorted(key, key[part.stop - 1] + _REACH, side="right"))
        others = slice(part.start, end)
        for mirrored in (False, True):
            rows = low[part] * _MIRROR if mirrored else low[part]
            near = squares[part, None] + squares[others] - 2 * rows @ low[others].T <= _REACH**2
            for row in np.flatnonzero(near.any(axis=1)).tolist():
                i, candidates = order[part.start + row], order[others][near[row]]
                candidates = candidates[groups[candidates] != groups[i]]
                own, theirs = standard[i, :, :: -1 if mirrored else 1], standard[candidates]
                alike = np.einsum("ij,nij->n", own, theirs) >= LEAST_CORRELATION * GREY_SIDE**2
                difference = np.abs(theirs - own).max(axis=(1, 2))
                alike &= difference <= np.maximum(tolerance[i], tolerance[candidates])
                if alike.any():
                    joined = np.append(groups[candidates[alike]], groups[i])
                    groups[np.isin(groups, joined)] = joined.min()
    return groups


def copies_of(grey: Array, others: Array) -> Array:
    """Whether each of the grey pictures (m, 16, 16) is a copy of one of the others."""
    groups = copy_groups(np.concatenate([grey, others]))
    result: Array = np.isin(groups[: len(grey)], groups[len(grey) :])
    return result


def count_copies(groups: Array) -> int:
    """How many pictures are copies of another one."""
    _, sizes = np.unique(groups, return_counts=True)
    return int(sizes[sizes > 1].sum())


# --- the teacher --------------------------------------------------------------------------------
#
# An NPZ file with the arrays `name` (m,), as in `PictureSet.names`, `logit` (m,), the log-odds of
# the first class, and, if it has them, `groups` (g,) and `group_probability` (m, g): what else may
# be in the picture. The first group is the first class itself, which `logit` tells better: it is
# left out. Scale and zero of the log-odds differ from source to source, so they are calibrated on
# the labels of each.

_SHOWN = 5  # names that a message lists


def read_teacher(path: Path, names: Sequence[str]) -> tuple[Array, Array]:
    """What the teacher says of the pictures of these names: log-odds float64 (m,), and groups
    float32 (m, g) in [0, 1], g 0 where it has none. Raises Refused: no such file, values that are
    not finite, a picture that it lacks."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file}
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:  # pickled objects, .npy
        raise Refused(f"{path} is not a valid NPZ file with names and numbers: {error}.") from error
    if not {"name", "logit"} <= arrays.keys():
        raise Refused(
            f"{path} has the arrays {', '.join(arrays) or '(none)'}; expected name and logit."
        )
    own = arrays["name"].astype(str).tolist()
    groups = arrays.get("group_probability", np.zeros((len(own), 1)))
    for values, axes in ((arrays["logit"], 1), (groups, 2)):
        right = values.ndim == axes and len(values) == len(own) and values.dtype.kind == "f"
        if not right or not np.isfinite(values).all():
            found = f"{len(own):,} names, and {values.dtype} of shape {values.shape}"
            raise Refused(f"{path}: {found}; expected finite floating-point numbers for each name.")
    place = {name: i for i, name in enumerate(own)}
    missing = [name for name in names if name not in place]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + ", …" * (len(missing) > _SHOWN)
        raise Refused(
            f"{path} has no entry for {len(missing):,} of {len(names):,} training pictures: "
            f"{shown}. Add them, train on pictures that it has, or leave --teacher out."
        )
    rows = [place[name] for name in names]
    return arrays["logit"][rows].astype(np.float64), groups[rows, 1:].astype(np.float32)


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
