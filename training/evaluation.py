"""What a classifier is worth on labelled pictures: every number of an evaluation, as JSON values.

y (m,) holds the labels, 1 for the first class; p (m,) the probabilities that `Classifier.predict`
answered for the bytes of each picture, as the service does. Sources are measured apart, since a
mean over all pictures would be that of the largest one. The pictures of a source that has one class
only, rooms without a cat, tell how often the first class is seen where it is not; their ranking
metrics are None.

The test split is for the numbers of a model that is finished: whoever looks at it while choosing
chooses by it. So it is read only where that is asked for, and every reading is logged.
"""

import platform
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from math import isnan
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from model.artifact import pack, read_file, unpack, write_file
from model.classifier import Classifier
from model.network import Array, parameters
from model.preprocessing import read_picture, to_vector
from training import Refused
from training.calibration import by_source
from training.data import (
    ROOMS,
    NameParts,
    PictureSet,
    Pixels,
    as_png,
    check_usable,
    join_small,
    list_pictures,
    on_all_cores,
    read_pictures,
    same_in_both_classes,
)
from training.held_back import count_text
from training.metrics import (
    Metric,
    average_precision,
    balanced_accuracy_at,
    bootstrap_interval,
    brier_score,
    confusion,
    expected_calibration_error,
    reliability_table,
    roc_auc,
    summary,
)
from training.report import Say, check_output, counted
from training.robustness import CHANGES, PLAIN, Change, changed, squeeze

FORMAT = 1  # of the JSON
THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.9)  # at which precision and recall are given
FEWEST = 20  # pictures that a kind must have before its share says anything
MEANS = (
    *("roc_auc", "balanced_accuracy", "average_precision"),
    *("brier_score", "expected_calibration_error"),
)
HEADLINE = ("roc_auc", "balanced_accuracy", "expected_calibration_error")
ROBUSTNESS_PICTURES = 500  # of each source
SECONDS = 0.3  # that each speed is measured for
PHOTO = (4000, 3000)  # pixels: what a phone takes
_BATCH = 32  # of the speed measurement

LOG = Path(__file__).with_name("EXPERIMENTS.md")
# The last part of the log, so that a row can be added at its end.
LOG_HEAD = """\
## Openings of the test split

Written by `python -m training evaluate --test`, each time. By source: ROC AUC, balanced accuracy,
expected calibration error; of rooms, the share called a cat.

| date | model | version | data | by source |
|---|---|---|---|---|"""


# --- which pictures -----------------------------------------------------------------------------

_SPLIT_WORDS = {
    "test": "test",
    "val": "validation",
    "validation": "validation",
    "train": "training",
    "training": "training",
}


def data_files(paths: Sequence[Path], *, test: bool) -> list[Path]:
    """The paths, a folder that holds *-val.zip or *-test.zip replaced by those of the split."""
    wanted = "*-test.zip" if test else "*-val.zip"
    files: list[Path] = []
    for path in paths:
        splits = {pattern: sorted(path.glob(pattern)) for pattern in ("*-val.zip", "*-test.zip")}
        if path.is_dir() and any(splits.values()):
            if not splits[wanted]:
                raise Refused(f"{path} holds no {wanted}.")
            files += splits[wanted]
        else:
            files.append(path)
    return files


def split_of(files: Sequence[Path], *, test: bool) -> str:
    """The split that these files are, as far as their names say it; "validation" where they do
    not. Raises Refused for test files without `test`, and for splits that are mixed."""
    splits = {file: _split_word(file) for file in files}
    for file, split in splits.items():
        if split == "test" and not test:
            raise Refused(
                f"{file.name} is of the test split, which is for the numbers of a finished model. "
                "Use validation pictures, or open it with --test, which is logged."
            )
        if split not in ("test", None) and test:
            raise Refused(
                f"{file.name} is of the {split} split; --test measures on test pictures alone."
            )
    if test:
        return "test"
    if "training" not in splits.values():
        return "validation"
    if set(splits.values()) != {"training"}:
        names = ", ".join(file.name for file, split in splits.items() if split == "training")
        raise Refused(f"{names}: training pictures; measure them apart from the others.")
    return "training"


def _split_word(file: Path) -> str | None:
    words = re.split(r"[-_. ]", file.stem.lower())
    return _SPLIT_WORDS.get(words[0]) or _SPLIT_WORDS.get(words[-1])


def sources_of(parts: Sequence[NameParts]) -> list[str]:
    """The source of each, those of too few pictures to be measured put together."""
    return join_small([part.source for part in parts], FEWEST)


def sample(pictures: PictureSet, most: int, seed: int) -> set[str]:
    """The names of at most `most` pictures of each source."""
    names = np.asarray(pictures.names)
    rng = np.random.default_rng(seed)
    sources = by_source(sources_of(pictures.parts))
    return {
        name for own in sources.values() for name in rng.permutation(names[own])[:most].tolist()
    }


# --- answers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A classifier to be measured, and the file that it came from."""

    classifier: Classifier
    path: Path


class _OfThread(threading.local):
    """Classifiers for each thread: one can be used by a single thread at a time."""

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        self.classifiers = [replace(classifier) for classifier in classifiers]


def answer(
    subjects: Sequence[Subject], files: Sequence[Path], *, skip_bad: bool = False
) -> tuple[PictureSet, list[Array]]:
    """The pictures of the files as the first subject saw them, and each subject's probabilities
    (m,). Raises Refused as `read_pictures` does."""
    class_names = subjects[0].classifier.class_names
    listing = list_pictures(files, class_names, both_classes=False)
    listed = listing.pictures

    own = _OfThread([subject.classifier for subject in subjects])

    def ask(i: int) -> tuple[Pixels, list[float]]:
        data = listed[i].load()
        predictions = [classifier.predict(data) for classifier in own.classifiers]
        return predictions[0].picture.pixels, [each.cat_probability for each in predictions]

    with counted("answering", "picture") as progress:
        answers, failures = on_all_cores(ask, len(listed), progress)
    check_usable(listing, failures, skip_bad)
    if not answers:
        raise Refused(f"{', '.join(map(str, files))}: no pictures.")
    kept = [i for i in range(len(listed)) if i in answers]
    pictures = PictureSet(
        np.stack([answers[i][0] for i in kept]),
        np.full(len(kept), subjects[0].classifier.preprocessing.side, np.int16),
        listing.labels[kept],
        [listed[i].name for i in kept],
        [listed[i].source for i in kept],
        class_names,
        listing.left_out
        + listing.unusable
        + [(listed[i].name, reason) for i, reason in failures.items()],
        listing.hidden,
    )
    twice = same_in_both_classes(pictures, (), skip_bad)
    p = np.array([answers[i][1] for i in kept])
    alone = np.array([i not in twice for i in range(len(kept))])
    return pictures.only(alone), list(p[alone].T)


# --- one set of answers -------------------------------------------------------------------------


def measure(y: Array, p: Array, threshold: float, rng: np.random.Generator) -> dict[str, Any]:
    """Every metric of these answers, the share called the first class, the confusion, the
    reliability table, and bootstrap intervals of 95 % under "intervals"."""
    metrics: dict[str, Metric] = {
        "roc_auc": roc_auc,
        "balanced_accuracy": balanced_accuracy_at(threshold),
        "average_precision": average_precision,
        "brier_score": brier_score,
        "expected_calibration_error": expected_calibration_error,
        "called_first": lambda _, p: float(np.mean(p >= threshold)),
    }
    if len(np.unique(y)) == 1:
        for name in ("roc_auc", "balanced_accuracy", "average_precision"):
            del metrics[name]
    intervals = {name: bootstrap_interval(metric, y, p, rng) for name, metric in metrics.items()}
    return {
        **summary(y, p, threshold),
        "called_first": float(np.mean(p >= threshold)),
        "intervals": {name: list(interval) for name, interval in intervals.items()},
        "reliability": [_json(asdict(bin)) for bin in reliability_table(y, p)],
    }


def measure_sources(
    y: Array, p: Array, sources: Sequence[str], threshold: float, seed: int
) -> dict[str, Any]:
    """`measure` for each source, in alphabetical order but rooms and the like, which have one
    class, last; and the means over those that have both classes."""
    measured = {
        source: measure(y[own], p[own], threshold, np.random.default_rng((seed, *source.encode())))
        for source, own in by_source(sources).items()
    }
    measured = dict(sorted(measured.items(), key=lambda item: item[1]["roc_auc"] is None))
    complete = [each for each in measured.values() if each["roc_auc"] is not None]
    mean = {name: float(np.mean([each[name] for each in complete])) for name in MEANS if complete}
    return {"sources": measured, "mean": mean}


def _json(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and isnan(v) else v for k, v in values.items()}


def at_thresholds(y: Array, p: Array, sources: Sequence[str]) -> list[dict[str, Any]]:
    """Precision and recall at five thresholds, of each source that has both classes."""
    complete = {s: own for s, own in by_source(sources).items() if len(np.unique(y[own])) == 2}
    rows: list[dict[str, Any]] = []
    for threshold in THRESHOLDS:
        counts = {s: confusion(y[own], p[own], threshold) for s, own in complete.items()}
        told = {s: {"precision": c.precision, "recall": c.recall} for s, c in counts.items()}
        rows.append(
            {"threshold": threshold, "sources": {s: _json(each) for s, each in told.items()}}
        )
    return rows


def wrong_by_kind(
    y: Array, p: Array, parts: Sequence[NameParts], threshold: float
) -> dict[str, list[dict[str, Any]]]:
    """The share of wrong answers among each kind of at least `FEWEST` pictures, the worst first:
    called the first class though they are not, by what they show and by the repository that they
    come from, and of the first class but missed."""
    wrong = (p >= threshold) != (y == 1)
    other, first = np.flatnonzero(y != 1).tolist(), np.flatnonzero(y == 1).tolist()
    shown = defaultdict(set)  # group → what its pictures show
    for i in other:
        shown[parts[i].group].add(parts[i].kind)

    def look_alikes(part: NameParts) -> set[str]:
        return {part.group or part.kind, part.kind if len(shown[part.group]) > 1 else ""}

    def own_name(part: NameParts) -> set[str]:  # a group says nothing of the first class
        return {f"{part.source}: {part.repository or part.kind}" if part.kind else ""}

    return {
        "false": _shares(other, look_alikes, parts, wrong),
        "false_by_repository": _shares(other, lambda part: {part.repository}, parts, wrong),
        "missed": _shares(first, own_name, parts, wrong),
    }


def _shares(
    chosen: Sequence[int],
    names_of: Callable[[NameParts], set[str]],
    parts: Sequence[NameParts],
    wrong: Array,
) -> list[dict[str, Any]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i in chosen:
        for name in names_of(parts[i]) - {""}:
            groups[name].append(i)
    rows = [
        {
            "kind": name,
            "pictures": len(indices),
            "wrong": int(wrong[indices].sum()),
            "share": float(wrong[indices].mean()),
            "shows": sorted({parts[i].kind for i in indices} - {name, ""}, key=str.lower),
        }
        for name, indices in groups.items()
        if len(indices) >= FEWEST
    ]
    return sorted(rows, key=lambda row: (-row["share"], -row["pictures"], row["kind"]))


# --- robustness ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Originals:
    """Pictures at up to twice the network's size, to be changed, and what they are put on."""

    pictures: PictureSet
    backgrounds: Pixels
    seed: int

    def changed(self, i: int, change: Change, classifier: Classifier) -> bytes:
        """Picture i under the change, as a file."""
        spec = classifier.preprocessing
        return as_png(changed(self.pictures, i, change, spec, self.backgrounds, self.seed))

    def answers(self, change: Change, classifier: Classifier) -> Array:
        """The probabilities (m,) of the pictures under the change."""
        own = _OfThread([classifier])
        results, _ = on_all_cores(
            lambda i: own.classifiers[0].predict(self.changed(i, change, classifier)),
            len(self.pictures),
        )
        return np.array([results[i].cat_probability for i in range(len(results))])


def _originals(
    classifier: Classifier, files: Sequence[Path], names: set[str], seed: int, skip_bad: bool
) -> Originals:
    """The pictures of these names. They are put on rooms, else on what is not the first class."""
    spec = classifier.preprocessing
    pictures = read_pictures(
        files,
        2 * spec.side,
        classifier.class_names,
        smallest=spec.side,
        names=names,
        preprocessing=spec,
        both_classes=False,
        skip_bad=skip_bad,
    )
    rooms = np.array([part.source == ROOMS for part in pictures.parts])
    without = rooms if rooms.any() else pictures.labels != 1
    if not without.any():
        without[:] = True
    backgrounds = [
        squeeze(pictures.pictures[i, : pictures.sides[i], : pictures.sides[i]], spec)
        for i in np.flatnonzero(without)
    ]
    return Originals(pictures, np.stack(backgrounds), seed)


def robustness(
    classifier: Classifier, originals: Originals, sources: Sequence[str], say: Say
) -> list[dict[str, Any]]:
    """For the pictures as they are, and under each change: ROC AUC and balanced accuracy, the means
    over the sources that have both classes, and of the other sources the share called the first
    class."""
    y = originals.pictures.labels
    rows = []
    for change in (PLAIN, *CHANGES):
        say(change.name)
        p = originals.answers(change, classifier)
        aucs, accuracies, called = [], [], {}
        for source, own in by_source(sources).items():
            if len(np.unique(y[own])) == 2:
                aucs.append(roc_auc(y[own], p[own]))
                counts = confusion(y[own], p[own], classifier.threshold)
                accuracies.append(counts.balanced_accuracy)
            else:
                called[source] = float(np.mean(p[own] >= classifier.threshold))
        rows.append(
            {
                "change": change.name,
                "roc_auc": float(np.mean(aucs)) if aucs else None,
                "balanced_accuracy": float(np.mean(accuracies)) if accuracies else None,
                "called_first": called,
            }
        )
    return rows


# --- speed --------------------------------------------------------------------------------------


def speed(classifier: Classifier, pictures: Pixels) -> dict[str, Any]:
    """Milliseconds on one core: the network on one picture and, for each, in a batch; and apart
    from it, decoding and squeezing a small JPEG and a photograph of 12 megapixels."""
    X = to_vector(pictures[:_BATCH])
    width, height = PHOTO
    across, down = -(-width // pictures.shape[1]), -(-height // pictures.shape[1])
    tiles = [pictures[i % len(pictures)] for i in range(across)]  # a photograph's detail
    mosaic = np.tile(np.concatenate(tiles, axis=1), (down, 1, 1))[:height, :width]
    small, photo = _jpeg(pictures[0]), _jpeg(mosaic)
    spec = classifier.preprocessing
    return {
        "processor": _processor(),
        "network_ms": _milliseconds(lambda: classifier.probabilities(X[:1])),
        "batch": len(X),
        "network_ms_in_batch": _milliseconds(lambda: classifier.probabilities(X)) / len(X),
        "small_jpeg_ms": _milliseconds(lambda: read_picture(small, spec)),
        "photo_jpeg_ms": _milliseconds(lambda: read_picture(photo, spec)),
        "photo_pixels": list(PHOTO),
    }


def _milliseconds(function: Callable[[], object]) -> float:
    """The median time of a call, after one that is not counted."""
    function()
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        start = perf_counter()
        function()
        times.append(perf_counter() - start)
    return 1000 * median(times)


def _jpeg(pixels: Pixels) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""  # not Linux
    name = re.search(r"^model name\s*:\s*(.+)", text, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


# --- everything ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured, as JSON values, and what it was measured on."""

    results: dict[str, Any]
    pictures: PictureSet
    probabilities: Array  # (m,) of the first subject
    originals: Originals | None


def evaluate(
    subjects: Sequence[Subject],
    files: Sequence[Path],
    say: Say,
    *,
    split: str = "validation",
    robustness_pictures: int = ROBUSTNESS_PICTURES,
    seed: int = 1,
    skip_bad: bool = False,
) -> Evaluation:
    """Measure the first subject in every way, and the others, its baselines, by source.

    robustness_pictures: of each source, how many are measured under each change; 0 for none.
    Raises Refused.
    """
    classifier = subjects[0].classifier
    for other in subjects[1:]:
        if other.classifier.class_names != classifier.class_names:
            raise Refused(
                f"{other.path.name} answers {' or '.join(other.classifier.class_names)}, and "
                f"{subjects[0].path.name} {' or '.join(classifier.class_names)}: they cannot be "
                "compared on the same labels."
            )
    pictures, probabilities = answer(subjects, files, skip_bad=skip_bad)
    say(f"{', '.join(file.name for file in files)}: {count_text(pictures)}")
    sources = sources_of(pictures.parts)
    y, p = pictures.labels, probabilities[0]
    originals, changes = None, []
    if robustness_pictures:
        names = sample(pictures, robustness_pictures, seed)
        originals = _originals(classifier, files, names, seed, skip_bad)
        source_of = dict(zip(pictures.names, sources, strict=True))
        own = [source_of[name] for name in originals.pictures.names]
        changes = robustness(classifier, originals, own, say)
    results = {
        "format": FORMAT,
        "split": split,
        "date": datetime.now(UTC).date().isoformat(),
        "seed": seed,
        "data": {
            "files": [path.name for path in files],
            "pictures": len(pictures),
            "left_out": len(pictures.skipped),
            "sha256": pictures.fingerprint,
        },
        "class_names": list(classifier.class_names),
        "models": [
            _describe(subject)
            | measure_sources(y, each, sources, subject.classifier.threshold, seed)
            for subject, each in zip(subjects, probabilities, strict=True)
        ],
        "at_thresholds": at_thresholds(y, p, sources),
        "kinds": wrong_by_kind(y, p, pictures.parts, classifier.threshold),
        "robustness": {"pictures": len(originals.pictures), "changes": changes}
        if originals
        else None,
        "speed": speed(classifier, pictures.pictures),
    }
    return Evaluation(results, pictures, p, originals)


def _describe(subject: Subject) -> dict[str, Any]:
    """Which classifier it was."""
    classifier = subject.classifier
    return {
        "file": subject.path.name,
        "name": classifier.name,
        "version": classifier.version,
        "threshold": classifier.threshold,
        "parameters": sum(value.size for value in parameters(classifier.layers).values()),
    }


# --- what is kept -------------------------------------------------------------------------------


def log_opening(log: Path, results: Mapping[str, Any], figures: Mapping[str, str]) -> None:
    """Add a row to the table of openings, which is at the end of the log, whole or not at all.
    figures: the headline of each source, in words. Raises OSError."""
    check_output(log)
    model, *baselines = results["models"]
    beside = f" (beside {', '.join(each['file'] for each in baselines)})" if baselines else ""
    told = "; ".join(f"{name} {words}" for name, words in figures.items())
    files = ", ".join(results["data"]["files"])
    cells = (results["date"], model["name"] + beside, f"`{model['version']}`", files, told)
    row = "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
    text = log.read_text(encoding="utf-8") if log.exists() else "# Experiments\n"
    if LOG_HEAD not in text:
        text = f"{text.rstrip()}\n\n{LOG_HEAD}"
    write_file(log, f"{text.rstrip()}\n{row}\n".encode())


def record(weights: Path, results: Mapping[str, Any]) -> None:
    """Keep the metrics by source in the weights file, under the split that they were measured on;
    everything else in it stays to the bit."""
    values, tensors = unpack(read_file(weights))
    kept = {
        name: {key: value for key, value in source.items() if key != "reliability"}
        for name, source in results["models"][0]["sources"].items()
    }
    values["metrics"] = {**values.get("metrics", {}), results["split"]: kept}
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    exact = all(np.array_equal(halves[name], tensors[name]) for name in tensors)
    write_file(weights, pack(values, halves if exact else dict(tensors)))
