"""What a classifier is worth on labelled pictures: every number of an evaluation, as JSON values.

y (m,) holds the labels, 1 for the first class; p (m,) the probabilities that were answered.
Sources are measured apart, since a mean over all pictures would be that of the largest one. The
pictures of a source that has one class only, rooms without a cat, tell how often the first class
is seen where it is not; their ranking metrics are None.
"""

import os
import platform
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import BytesIO
from math import isnan
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from model.classifier import Classifier
from model.network import Array, parameters, pieces
from model.preprocessing import read_picture, to_vector
from training.data import PictureSet, Pixels
from training.kinds import ROOMS, Kind, kind_of
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
from training.robustness import CHANGES, PLAIN, changed
from training.split import join_small

FORMAT = 1  # of the JSON
THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.9)  # at which precision and recall are told
FEWEST = 20  # pictures that a kind must have before its share says anything
MEANS = (
    *("roc_auc", "balanced_accuracy", "average_precision"),
    *("brier_score", "expected_calibration_error"),
)
_ROWS = 64  # pictures a thread takes at a time
_BATCH = 32  # of the speed measurement
SECONDS = 0.3  # that each speed is measured for
PHOTO = (4000, 3000)  # pixels: what a phone takes

Progress = Callable[[str], None]  # called with what is measured next
T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A classifier to be measured, and the file that it came from."""

    classifier: Classifier
    path: Path


# --- answers ------------------------------------------------------------------------------------


def answers(classifier: Classifier, pictures: Pixels) -> Array:
    """The probabilities (m,) that the service would give for pictures (m, side, side, 3)."""
    parts = on_all_cores(
        lambda rows: classifier.probabilities(to_vector(pictures[rows])),
        list(pieces(len(pictures), _ROWS)),
    )
    return np.concatenate(parts)


def on_all_cores(function: Callable[[slice], T], parts: Sequence[slice]) -> list[T]:
    """function(part) for each, in order, on as many threads as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            return list(pool.map(function, parts))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C should not wait for the rest
            raise


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
    names = np.asarray(sources)
    by_source = {
        source: measure(y[names == source], p[names == source], threshold, _rng(seed, source))
        for source in np.unique(names).tolist()
    }
    by_source = dict(sorted(by_source.items(), key=lambda item: item[1]["roc_auc"] is None))
    complete = [each for each in by_source.values() if each["roc_auc"] is not None]
    mean = {name: float(np.mean([each[name] for each in complete])) for name in MEANS if complete}
    return {"sources": by_source, "mean": mean}


def _rng(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for each name: what else is measured does not change its draws."""
    return np.random.default_rng((seed, *name.encode()))


def _json(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and isnan(v) else v for k, v in values.items()}


def at_thresholds(y: Array, p: Array, sources: Sequence[str]) -> list[dict[str, Any]]:
    """Precision and recall at five thresholds, of each source that has both classes."""
    names = np.asarray(sources)
    complete = [s for s in np.unique(names).tolist() if len(np.unique(y[names == s])) == 2]
    rows = []
    for threshold in THRESHOLDS:
        counts = {s: confusion(y[names == s], p[names == s], threshold) for s in complete}
        rows.append(
            {
                "threshold": threshold,
                "sources": {
                    s: _json({"precision": c.precision, "recall": c.recall})
                    for s, c in counts.items()
                },
            }
        )
    return rows


# --- kinds of pictures --------------------------------------------------------------------------


def wrong_by_kind(
    y: Array, p: Array, kinds: Sequence[Kind], threshold: float
) -> dict[str, list[dict[str, Any]]]:
    """The share of wrong answers among each kind of at least `FEWEST` pictures, the worst first:
    called the first class though they are not, by what they show and by the repository that they
    come from, and of the first class but missed."""
    wrong = (p >= threshold) != (y == 1)
    other, first = np.flatnonzero(y != 1).tolist(), np.flatnonzero(y == 1).tolist()
    shown = defaultdict(set)  # group → what its pictures show
    for i in other:
        shown[kinds[i].group].add(kinds[i].shows)

    def look_alikes(kind: Kind) -> set[str]:
        return {kind.group or kind.shows, kind.shows if len(shown[kind.group]) > 1 else ""}

    return {
        "false": _shares(other, look_alikes, kinds, wrong),
        "false_by_repository": _shares(other, lambda kind: {kind.repository}, kinds, wrong),
        "missed": _shares(first, _own_name, kinds, wrong),
    }


def _own_name(kind: Kind) -> set[str]:
    """A kind of pictures of the first class, whose group says nothing that its name does not."""
    return {f"{kind.source}: {kind.repository or kind.shows}" if kind.shows else ""}


def _shares(
    chosen: Sequence[int],
    names_of: Callable[[Kind], set[str]],
    kinds: Sequence[Kind],
    wrong: Array,
) -> list[dict[str, Any]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i in chosen:
        for name in names_of(kinds[i]) - {""}:
            groups[name].append(i)
    rows = [
        {
            "kind": name,
            "pictures": len(indices),
            "wrong": int(wrong[indices].sum()),
            "share": float(wrong[indices].mean()),
            "shows": sorted({kinds[i].shows for i in indices} - {name, ""}, key=str.lower),
        }
        for name, indices in groups.items()
        if len(indices) >= FEWEST
    ]
    return sorted(rows, key=lambda row: (-row["share"], -row["pictures"], row["kind"]))


def kinds_of(pictures: PictureSet) -> list[Kind]:
    """What the names of the pictures tell."""
    named = zip(pictures.names, pictures.sources, strict=True)
    return [kind_of(name, source) for name, source in named]


def sources_of(kinds: Sequence[Kind]) -> list[str]:
    """The source of each, those of too few pictures to be measured put together."""
    return join_small([kind.source for kind in kinds], least=FEWEST)


# --- robustness ---------------------------------------------------------------------------------


def sample(pictures: PictureSet, most: int, seed: int) -> set[str]:
    """The names of at most `most` pictures of each source."""
    names, each = np.asarray(pictures.names), np.asarray(sources_of(kinds_of(pictures)))
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(names[each == source])[:most] for source in np.unique(each)]
    return set(np.concatenate(chosen).tolist())


def robustness(
    classifier: Classifier,
    originals: PictureSet,
    sources: Sequence[str],
    seed: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """For the pictures as they are, and under each change: ROC AUC and balanced accuracy, the means
    over the sources that have both classes, and of the other sources the share called the first
    class. originals: as for `changed`."""
    spec = classifier.preprocessing
    names = np.asarray(sources)
    y = originals.labels
    plain = changed(originals, PLAIN, spec, originals.pictures[:1], seed)
    backgrounds = backgrounds_of(originals, plain)
    rows = []
    for change in (PLAIN, *CHANGES):
        progress(change.name)
        p = answers(classifier, changed(originals, change, spec, backgrounds, seed))
        rows.append({"change": change.name} | _by_source(y, p, names, classifier.threshold))
    return rows


def backgrounds_of(pictures: PictureSet, plain: Pixels) -> Pixels:
    """Of the plain pictures, those to put others on: rooms, or else what is not the first class."""
    rooms = np.array([kind.source == ROOMS for kind in kinds_of(pictures)])
    without = rooms if rooms.any() else pictures.labels != 1
    return plain[without] if without.any() else plain


def _by_source(y: Array, p: Array, names: Array, threshold: float) -> dict[str, Any]:
    aucs, accuracies, called = [], [], {}
    for source in np.unique(names).tolist():
        of_source = names == source
        if len(np.unique(y[of_source])) == 2:
            aucs.append(roc_auc(y[of_source], p[of_source]))
            counts = confusion(y[of_source], p[of_source], threshold)
            accuracies.append(counts.balanced_accuracy)
        else:
            called[source] = float(np.mean(p[of_source] >= threshold))
    return {
        "roc_auc": float(np.mean(aucs)) if aucs else None,
        "balanced_accuracy": float(np.mean(accuracies)) if accuracies else None,
        "called_first": called,
    }


# --- speed --------------------------------------------------------------------------------------


def speed(classifier: Classifier, pictures: Pixels) -> dict[str, Any]:
    """Milliseconds on one core: the network on one picture and, for each, in a batch; and apart
    from it, decoding and squeezing a small JPEG and a photograph of 12 megapixels."""
    X = to_vector(pictures[:_BATCH])
    small, photo = _jpeg(pictures[0]), _jpeg(_mosaic(pictures))
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


def _mosaic(pictures: Pixels) -> Pixels:
    """A photograph's worth of pixels with a photograph's detail: pictures side by side."""
    width, height = PHOTO
    side = pictures.shape[1]
    across, down = -(-width // side), -(-height // side)
    tiles = pictures[np.arange(across * down) % len(pictures)]
    rows = tiles.reshape(down, across, side, side, 3).transpose(0, 2, 1, 3, 4)
    mosaic: Pixels = rows.reshape(down * side, across * side, 3)[:height, :width]
    return mosaic


def _jpeg(pixels: Pixels) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []  # not Linux
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# --- everything ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured, as JSON values, and what it was measured on."""

    results: dict[str, Any]
    pictures: PictureSet
    kinds: list[Kind]
    probabilities: list[Array]  # (m,) of each subject


def evaluate(
    subjects: Sequence[Subject],
    pictures: PictureSet,
    *,
    split: str,
    files: Sequence[Path],
    originals: PictureSet | None,
    seed: int,
    progress: Progress,
) -> Evaluation:
    """Measure the first subject in every way, and the others, its baselines, by source.

    originals: the pictures for `robustness`, or some of them; None leaves that part out.
    """
    kinds = kinds_of(pictures)
    sources = sources_of(kinds)
    y = pictures.labels
    models, probabilities = [], []
    for subject in subjects:
        classifier = subject.classifier
        progress(subject.path.name)
        p = answers(classifier, pictures.pictures)
        probabilities.append(p)
        models.append(
            describe_model(subject) | measure_sources(y, p, sources, classifier.threshold, seed)
        )
    classifier, p = subjects[0].classifier, probabilities[0]
    source_of = dict(zip(pictures.names, sources, strict=True))
    own = [source_of[name] for name in originals.names] if originals is not None else []
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
        "models": models,
        "at_thresholds": at_thresholds(y, p, sources),
        "kinds": wrong_by_kind(y, p, kinds, classifier.threshold),
        "robustness": None
        if originals is None
        else {
            "pictures": len(originals),
            "changes": robustness(classifier, originals, own, seed, progress),
        },
        "speed": speed(classifier, pictures.pictures),
    }
    return Evaluation(results, pictures, kinds, probabilities)


def describe_model(subject: Subject) -> dict[str, Any]:
    """Which classifier it was."""
    classifier = subject.classifier
    return {
        "file": subject.path.name,
        "name": classifier.name,
        "version": classifier.version,
        "threshold": classifier.threshold,
        "parameters": sum(value.size for value in parameters(classifier.layers).values()),
    }
