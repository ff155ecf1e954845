"""Which pictures `fit` learns from, which it measures with, and what answers for those are worth.

Pictures to measure with are read as the service reads them. Copies of a picture are on one side, or
the figures would flatter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.classifier import Classifier, Looking
from model.network import Array, Layer, sigmoid
from training import Refused
from training.calibration import (
    by_source,
    calibrate,
    choose_threshold,
    mean_balanced_accuracy,
    source_log_loss,
)
from training.copies import copies_of, copy_groups, count_copies, grey_pictures
from training.data import CLASS_NAMES, PictureSet, Pixels, join_small, list_pictures, read_pictures
from training.loop import score
from training.metrics import roc_auc, summary
from training.report import Say, counted

LARGEST, SMALLEST = 96, 64  # sides that training pictures are kept at: crops of 64 need room
SHARE = 0.2  # of each class that is held back,
MOST = 2000  # but no more pictures than this
LEAST_HELD_BACK, LEAST_TRAINING = 5, 10  # of each class
LEAST_OF_A_SOURCE = 20  # pictures to be reported apart
COPIES = "the same, saved again, resized or mirrored"
_REMEDY = "Add pictures; with a few hundred it becomes useful."


# --- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Which pictures to read, as the command line names them."""

    training: Sequence[Path]
    validation: Sequence[Path] = ()  # empty: a part of the training pictures is held back
    class_names: tuple[str, str] = CLASS_NAMES
    skip_bad: bool = False


def read(data: Data, seed: int, say: Say) -> tuple[PictureSet, PictureSet]:
    """The pictures to learn from, at their own size, and those to measure with, at the network's.
    Raises Refused."""
    names = data.class_names
    listing = list_pictures(data.training, names)
    _check_counts(listing.labels, data, "in the data", held_back=not data.validation)
    training = read_aloud(data.training, data, say, side=LARGEST, smallest=SMALLEST)
    grey = grey_pictures(training.pictures, training.sides)
    if data.validation:
        held = read_aloud(data.validation, data, say)
        copies = copies_of(grey_pictures(held.pictures, held.sides), grey)
        if copies.any():
            say(
                f"left out {copies.sum():,} of the validation pictures: they are copies of "
                f"training pictures ({COPIES})"
            )
            held = held.only(~copies)
    else:
        groups = copy_groups(grey)
        if count := count_copies(groups):
            say(f"{count:,} pictures are copies of each other ({COPIES}) and stay on one side")
        chosen, divided = hold_back(training, groups, np.random.default_rng((seed, 7)))
        for name in divided:
            say(
                f"note: almost all pictures of {name!r} are copies of each other, so that both "
                "sides have some: the figures flatter; --validation names others"
            )
        held = read_pictures(
            data.training, 64, names, names=chosen, both_classes=False, skip_bad=data.skip_bad
        )
        training = training.only(np.array([name not in chosen for name in training.names]))
    for pictures, purpose in ((training, "learning from"), (held, "measuring with")):
        say(f"{purpose} {count_text(pictures)}")
    _check_counts(training.labels, data, "to learn from")
    _check_counts(held.labels, data, "to measure with", least=LEAST_HELD_BACK)
    return training, held


def read_aloud(
    paths: Sequence[Path],
    data: Data,
    say: Say,
    *,
    side: int = 64,
    smallest: int | None = None,
    both_classes: bool = True,
) -> PictureSet:
    """`read_pictures` with a progress bar and a line that says what was read."""
    with counted("reading", "picture") as progress:
        pictures = read_pictures(
            paths,
            side,
            data.class_names,
            smallest=smallest,
            both_classes=both_classes,
            skip_bad=data.skip_bad,
            progress=progress,
        )
    left_out = "".join(
        f"; left out {count:,} {what}{'s' if count > 1 else ''}"
        for count, what in ((len(pictures.skipped), "file"), (pictures.hidden, "hidden file"))
        if count
    )
    say(f"{', '.join(path.name for path in paths)}: {count_text(pictures)}{left_out}")
    return pictures


def count_text(pictures: PictureSet) -> str:
    """How many pictures there are, for people."""
    counts = ", ".join(f"{pictures.count(name):,} {name}" for name in pictures.class_names)
    return f"{len(pictures):,} pictures ({counts})"


def _check_counts(
    labels: Array, data: Data, where: str, *, least: int = LEAST_TRAINING, held_back: bool = False
) -> None:
    """Raises Refused where a class has too few pictures."""
    first = int((labels == 1).sum())
    counts = dict(zip(data.class_names, (first, len(labels) - first), strict=True))
    if held_back:
        where += f" ({least} to learn from and {LEAST_HELD_BACK} to hold back)"
        least += LEAST_HELD_BACK
    if min(counts.values()) < least:
        found = " and ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise Refused(
            f"Too few pictures {where}: {found}; at least {least} of each are needed. {_REMEDY}"
        )


# --- what is held back --------------------------------------------------------------------------


def hold_back(
    pictures: PictureSet, groups: Array, rng: np.random.Generator
) -> tuple[set[str], list[str]]:
    """The names of the pictures held back for validation: a fifth of each class, spread evenly
    over the sources, drawn at random within them. Pictures of one group of copies, or of one name,
    stay together; and the classes in which they cannot, since almost all are copies.

    groups: (m,), as `copy_groups` gives them.
    """
    same: dict[str, int] = {}
    numbers = zip(pictures.names, groups.tolist(), strict=True)
    units = [(same.setdefault(name, group), name) for name, group in numbers]
    held: set[str] = set()
    divided = []
    for label, class_name in zip((1, 0), pictures.class_names, strict=True):
        own = [
            (unit, name, source)
            for (unit, name), source, its in zip(
                units, pictures.sources, pictures.labels, strict=True
            )
            if its == label
        ]
        count = min(max(LEAST_HELD_BACK, round(SHARE * len({name for _, name, _ in own}))), MOST)
        members: dict[Any, dict[str, str]] = {}  # unit → its names and their sources
        for unit, name, source in own:
            members.setdefault(unit, {})[name] = source
        small = [each for each in members.values() if len(each) <= max(1, count // 3)]
        if sum(map(len, small)) < count + LEAST_HELD_BACK and len(small) < len(members):
            small = [{name: source} for each in members.values() for name, source in each.items()]
            divided.append(class_name)
        shuffled = [small[i] for i in rng.permutation(len(small))]
        in_order = sorted(shuffled, key=lambda each: next(iter(each.values())))
        every = max(1.0, sum(map(len, in_order)) / count)  # units for each that is held back
        for i in range(max(1, round(len(in_order) / every))):
            held |= in_order[min(int((i + rng.random()) * every), len(in_order) - 1)].keys()
    return held, divided


# --- what answers for them are worth ------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Validation:
    """m pictures (m, 64, 64, 3) to measure with, their labels (m,), and their sources as they are
    reported: rooms are one of their own, and those of few pictures are one together."""

    pictures: Pixels
    labels: Array
    sources: Sequence[str]
    lookalikes: Sequence[str]  # sources that set no limit to the threshold
    files: Sequence[Callable[[], bytes]]  # what gives the bytes of each

    @classmethod
    def of(cls, pictures: PictureSet, lookalikes: Sequence[str]) -> "Validation":
        """The pictures of a set, which were read at the network's size."""
        sources = join_small([part.source for part in pictures.parts], LEAST_OF_A_SOURCE)
        return cls(pictures.pictures, pictures.labels, sources, lookalikes, pictures.files)

    def logits(self, layers: Sequence[Layer], threads: int) -> Array:
        """z (m,) float64 of the network."""
        sides = np.full(len(self.pictures), self.pictures.shape[1])
        return score(layers, self.pictures, sides, threads).astype(np.float64)

    def answers(self, classifier: Classifier, threads: int, views: Looking = "all") -> Array:
        """z (m,) float64 that the classifier answers by: from all its views, or from one."""
        if views == "one" or len(classifier.views.boxes) == 1:
            return self.logits(classifier.layers, threads)
        return classifier.logits(classifier.read(load()) for load in self.files)

    def log_loss(self, z: Array) -> float:
        """The mean over the sources of the mean loss of each."""
        return source_log_loss(z, self.labels, self.sources)

    def threshold(self, p: Array, otherwise: Sequence[float] = (0.5,)) -> float:
        """The threshold that probabilities p (m,) ask for; see `choose_threshold`."""
        return choose_threshold(self.labels, p, self.sources, otherwise, self.lookalikes)

    def epoch_figures(self, z: Array) -> dict[str, Any]:
        """The figures of one epoch, as JSON values: after a calibration and with a threshold of its
        own, since that is how its network would be saved."""
        y, sources = self.labels, self.sources
        calibration = calibrate(z, y, sources)
        z = calibration.scale * z + calibration.shift
        p = sigmoid(z)
        aucs = {
            source: roc_auc(y[own], p[own])
            for source, own in by_source(sources).items()
            if len(np.unique(y[own])) > 1
        }
        return {
            "log_loss": self.log_loss(z),
            "balanced_accuracy": mean_balanced_accuracy(y, p, sources, self.threshold(p)),
            "roc_auc": aucs,
        }

    def metrics(self, p: Array, threshold: float) -> dict[str, Any]:
        """`training.metrics.summary` of each source, and of all pictures together under "all"."""
        y = self.labels
        every = by_source(self.sources)
        apart = {name: summary(y[own], p[own], threshold) for name, own in every.items()}
        return {"all": summary(y, p, threshold), **(apart if len(apart) > 1 else {})}
