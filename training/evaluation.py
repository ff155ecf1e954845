"""`evaluate`: what a classifier is worth on labelled pictures, as figures and as a page.

y (m,) holds the labels, 1 for the first class; p (m,) the probabilities that `Classifier.predict`
gives for the bytes of each picture, as the service does. Sources are measured apart: a mean over
all pictures would be that of the largest one. ROC AUC and balanced accuracy of a source of one
class, such as rooms without a cat, are None.

Whoever looks at the test split while choosing chooses by it. So it is read only where that is asked
for, and every reading is logged.
"""

import re
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from model.artifact import pack, read_file, unpack
from model.classifier import Classifier
from model.machine import write_file
from model.network import Array
from model.preprocessing import Preprocessing, png
from training import Refused
from training.calibration import by_source
from training.data import (
    ROOMS,
    Load,
    NameParts,
    PictureSet,
    Pixels,
    on_all_cores,
    read_at_own_size,
    read_pictures,
)
from training.metrics import intervals, reliability_table, summary
from training.report import (
    METRICS,
    PAGE,
    Say,
    check_folder,
    check_output,
    percent,
    render,
    write_report,
)

FORMAT = 2  # of the JSON
SEED = 1  # of intervals and changes
FEWEST = 20  # pictures that a kind must have before its share says anything
CHANGED = 500  # pictures of each source that are changed
NAMES = {  # metric → its name in a table
    "roc_auc": "ROC AUC",
    "balanced_accuracy": "balanced accuracy",
    "expected_calibration_error": "expected calibration error",
    "called_first": "called {first}",
}
HEADLINE = ("roc_auc", "balanced_accuracy", "expected_calibration_error")
_MISTAKES = 20  # pictures on each contact sheet

LOG = Path(__file__).with_name("EXPERIMENTS.md")


# --- which pictures -----------------------------------------------------------------------------

_SPLIT_WORDS = {"test": "test", "val": "validation", "validation": "validation"}
_SPLIT_WORDS |= {"train": "training", "training": "training"}


def data_files(paths: Sequence[Path], *, test: bool) -> list[Path]:
    """The paths, a folder that holds *-val.zip or *-test.zip replaced by those of the split."""
    files: list[Path] = []
    for path in paths:
        val, tests = sorted(path.glob("*-val.zip")), sorted(path.glob("*-test.zip"))
        wanted = (tests if test else val) if val or tests else [path]
        if not wanted:
            raise Refused(f"{path} holds no {'*-test.zip' if test else '*-val.zip'}.")
        files += wanted
    return files


def split_of(files: Sequence[Path], *, test: bool) -> str:
    """The split that these files are, as far as their names say it; "validation" where they do
    not. Raises Refused for test files without `test`, and for splits that are mixed."""
    splits = set()
    for file in files:
        words = re.split(r"[-_. ]", file.stem.lower())
        split = _SPLIT_WORDS.get(words[0]) or _SPLIT_WORDS.get(words[-1])
        split = split or ("test" if test else "validation")
        if (split == "test") != test:
            rule = "Test pictures need --test, which is logged, and --test accepts no others."
            raise Refused(f"{file.name} belongs to the {split} split. {rule}")
        splits.add(split)
    if len(splits) > 1:
        names = ", ".join(file.name for file in files)
        raise Refused(f"{names}: measure training pictures separately.")
    return splits.pop()


# --- figures ------------------------------------------------------------------------------------


def answers(classifier: Classifier, files: Sequence[Load], label: str) -> tuple[Array, Array]:
    """The probabilities (m,) of pictures, and the number of views used for each (m,)."""
    own = threading.local()  # one thread at a time may use a classifier

    def ask(i: int) -> tuple[float, int]:
        if not hasattr(own, "classifier"):
            own.classifier = replace(classifier)
        prediction = own.classifier.predict(files[i]())
        return prediction.cat_probability, prediction.views

    p, views = np.array(on_all_cores(ask, len(files), label)).T
    return p, views


def measure(y: Array, p: Array, threshold: float, rng: np.random.Generator) -> dict[str, Any]:
    """`training.metrics.summary`, with intervals of what is defined and the reliability table."""
    return {
        **summary(y, p, threshold),
        "intervals": intervals(list(NAMES), y, p, threshold, rng),
        "reliability": reliability_table(y, p),
    }


def mean_of(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each headline metric over the sources that have both classes, if any has."""
    complete = [each for each in sources.values() if each["roc_auc"] is not None]
    return {
        name: float(np.mean([each[name] for each in complete])) for name in HEADLINE if complete
    }


def wrong_by_kind(
    y: Array, p: Array, parts: Sequence[NameParts], threshold: float
) -> dict[str, list[dict[str, Any]]]:
    """The share of wrong answers among each kind of at least `FEWEST` pictures, the worst first:
    called the first class though they are not ("false"), by groups and by what they show, and of
    the first class but missed. `group` is that of a row whose pictures are counted there too."""
    wrong = (p >= threshold) != (y == 1)
    places: dict[tuple[str, str, str], list[int]] = defaultdict(list)  # (list, kind, group) → where
    for i, part in enumerate(parts):
        if y[i] == 1 and part.kind:
            places["missed", f"{part.source}: {part.repository or part.kind}", ""].append(i)
        elif y[i] != 1 and part.kind:
            places["false", part.group, ""].append(i)
            if part.kind != part.group:
                places["false", part.kind, part.group].append(i)
    rows: dict[str, list[dict[str, Any]]] = {"false": [], "missed": []}
    for (key, kind, group), own in places.items():
        alone = group and len(own) == len(places[key, group, ""])  # the same row again
        if len(own) >= FEWEST and not alone:
            count = int(wrong[own].sum())
            row = {"kind": kind, "group": group, "pictures": len(own), "wrong": count}
            rows[key].append(row | {"share": count / len(own)})
    for each in rows.values():
        each.sort(key=lambda row: (-row["share"], -row["pictures"], row["kind"]))
    return rows


# --- pictures that are harder -------------------------------------------------------------------


def shrunk_to_quarter(picture: Pixels, background: Pixels, rng: np.random.Generator) -> Pixels:
    """The picture fills a quarter of the frame, at a random place; around it the background, out
    of focus. The same is done to pictures without a cat: a pasted edge says nothing."""
    side, small = len(picture), len(picture) // 2
    left, top = rng.integers(0, side - small + 1, 2).tolist()
    image = Image.fromarray(background).resize((side, side), Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(side / 64))
    pasted = Image.fromarray(picture).resize((small, small), Image.Resampling.BILINEAR)
    edge = np.minimum(np.arange(small), np.arange(small)[::-1]) + 0.5  # pixels to it
    inside = np.clip(edge / max(1.0, small * 0.04), 0, 1)  # it fades into the background
    mask = Image.fromarray((np.minimum.outer(inside, inside) * 255).astype(np.uint8))
    image.paste(pasted, (left, top), mask)
    return np.asarray(image)


def low_light(picture: Pixels, _: Pixels, rng: np.random.Generator) -> Pixels:
    """A fifth of the light, with a sensor's noise of 1 % of white."""
    dark = 0.2 * picture + rng.normal(0, 2.55, picture.shape)
    return np.clip(dark + 0.5, 0, 255).astype(np.uint8)


CHANGES = {"fills a quarter of the frame": shrunk_to_quarter, "in a fifth of the light": low_light}


def changed(
    pictures: PictureSet, chosen: Sequence[int], name: str, spec: Preprocessing
) -> list[Load]:
    """The chosen pictures under that change, as files. They are put on rooms, else on what is not
    the first class. Each is drawn from (seed, change, place), so other changes do not matter."""
    rooms = np.array([part.source == ROOMS for part in pictures.parts])
    without = np.flatnonzero(rooms if rooms.any() else pictures.labels != 1)
    behind = (without if len(without) else np.arange(len(pictures))).tolist()

    def make(place: int) -> bytes:
        rng = np.random.default_rng((SEED, *name.encode(), place))
        background = pictures.pictures[behind[int(rng.integers(len(behind)))]]
        file = pictures.files[chosen[place]]()
        picture = read_at_own_size(file, replace(spec, side=2 * spec.side), spec.side)
        return png(CHANGES[name](picture, background, rng))

    return [partial(make, place) for place in range(len(chosen))]


# --- everything ---------------------------------------------------------------------------------


def evaluate(classifier: Classifier, pictures: PictureSet) -> tuple[dict[str, Any], Array]:
    """Every figure, as JSON values, and the probabilities (m,). The pictures must have been read as
    the classifier reads them."""
    y, threshold, sources = pictures.labels, classifier.threshold, pictures.reported_sources
    p, views = answers(classifier, pictures.files, "answering")
    measured = {}
    for source, own in by_source(sources).items():
        rng = np.random.default_rng((SEED, *source.encode()))
        measured[source] = measure(y[own], p[own], threshold, rng)
        if len(classifier.views.boxes) > 1:
            measured[source]["looked_again"] = float(np.mean(views[own] > 1))
    rng = np.random.default_rng(SEED)
    some = [rng.permutation(np.flatnonzero(own))[:CHANGED] for own in by_source(sources).values()]
    chosen = sorted(np.concatenate(some).tolist())
    own_sources = [sources[i] for i in chosen]
    rows = [_change("as it is", y[chosen], p[chosen], own_sources, threshold)]
    for name in CHANGES:
        files = changed(pictures, chosen, name, classifier.preprocessing)
        seen, _ = answers(classifier, files, name)
        rows.append(_change(name, y[chosen], seen, own_sources, threshold))
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).date().isoformat(),
        "class_names": list(classifier.class_names),
        "model": {name: getattr(classifier, name) for name in ("name", "version", "threshold")},
        # Rooms and the like, which have one class, last
        "sources": dict(sorted(measured.items(), key=lambda item: item[1]["roc_auc"] is None)),
        "mean": mean_of(measured),
        "kinds": wrong_by_kind(y, p, pictures.parts, threshold),
        "changes": {"pictures": len(chosen), "rows": rows},
    }, p


def _change(
    name: str, y: Array, p: Array, sources: Sequence[str], threshold: float
) -> dict[str, Any]:
    every = {s: summary(y[own], p[own], threshold) for s, own in by_source(sources).items()}
    one_class = {s: each["called_first"] for s, each in every.items() if each["roc_auc"] is None}
    return {"change": name, **mean_of(every), "called_first": one_class}


# --- the page -----------------------------------------------------------------------------------


def number(value: float | None, metric: str) -> str:
    """A metric as the report and the model card give it."""
    share = metric in ("balanced_accuracy", "called_first")
    return "–" if value is None else percent(value) if share else f"{value:.3f}"


def with_interval(source: Mapping[str, Any], metric: str) -> str:
    """A metric of a source with its 95 % interval, "0.983 (0.978 to 0.988)"."""
    if source[metric] is None:
        return "–"
    low, high = (number(end, metric) for end in source["intervals"][metric])
    interval = f"({low.removesuffix(' %')} to {high})".replace(" ", "\N{NO-BREAK SPACE}")
    return f"{number(source[metric], metric)} {interval}"


def worst_kinds(results: Mapping[str, Any], key: str, most: int = 8) -> list[Mapping[str, Any]]:
    """The worst rows of `wrong_by_kind`, without those that are a part of another one."""
    return [row for row in results["kinds"][key] if row["wrong"] and not row["group"]][:most]


def for_templates(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates of page and card share."""
    worst = {key: worst_kinds(results, key, 1) for key in ("false", "missed")}
    return {
        "results": results,
        "model": results["model"],
        "sources": results["sources"],
        "first": results["class_names"][0],
        "summary": render("summary.txt", results=results, worst=worst).strip(),
        "metrics": NAMES,
        "number": number,
        "with_interval": with_interval,
    }


def _mistakes(results: Mapping[str, Any], pictures: PictureSet, p: Array) -> list[dict[str, Any]]:
    """The wrong answers that were the most sure: title, number in all, and tiles of some."""
    first, other = results["class_names"]
    called = p >= results["model"]["threshold"]
    parts = pictures.parts
    found = []
    for title, wrong in (
        (f"Called {first}, but it is {other}", called & (pictures.labels != 1)),
        (f"Called {other}, but it is {first}", ~called & (pictures.labels == 1)),
    ):
        places = np.flatnonzero(wrong)
        surest = places[np.argsort(-np.abs(p[places] - results["model"]["threshold"]))]
        tiles = []
        for i in surest[:_MISTAKES].tolist():
            words = [PurePosixPath(pictures.names[i]).stem, parts[i].kind, percent(p[i])]
            tiles.append({"picture": png(pictures.pictures[i]), "lines": filter(None, words)})
        if tiles:
            found.append({"title": title, "count": len(places), "tiles": tiles})
    return found


# --- the command --------------------------------------------------------------------------------


def run_evaluate(
    weights: Path,
    data: Sequence[Path],
    say: Say,
    *,
    test: bool = False,
    keep: bool = False,
    skip_bad: bool = False,
    output: Path | None = None,
    log: Path = LOG,
) -> None:
    """Measure; log if it is the test split; keep the metrics in the weights file if asked; write
    the report. Raises Refused, BadArtifact and OSError."""
    classifier = Classifier.load(weights)
    files = data_files(data, test=test)
    split = split_of(files, test=test)
    if keep and split == "training":
        raise Refused("--record is only for pictures that were not used for training.")
    folder = output or Path("runs") / f"{weights.stem}-{split}"
    check_folder(folder)
    if test:
        check_output(log)
    pictures = read_pictures(
        files,
        classifier.preprocessing.side,
        classifier.class_names,
        preprocessing=classifier.preprocessing,
        both_classes=False,
        skip_bad=skip_bad,
        say=say,
    )
    figures, p = evaluate(classifier, pictures)
    described = pictures.describe(files)
    results = {"split": split, "file": weights.name, "data": described, **figures}
    if test:  # before anyone can have seen a number
        log_opening(log, results)
        say(f"logged:   {log}")
    mistakes = _mistakes(results, pictures, p)
    page = render("evaluation.html", **for_templates(results), mistakes=mistakes)
    write_report(folder, page, results)
    if keep:
        record(weights, results)
        say(f"recorded: {weights}")
    for name, words in headlines(results, names=True).items():
        say(f"{name + ':':9} {words}")
    say(f"numbers:  {folder / METRICS}")
    say(f"report:   {folder / PAGE}")


def headlines(results: Mapping[str, Any], *, names: bool = False) -> dict[str, str]:
    """The figures of each source that people ask for first, with their names or without."""
    lines = {}
    for source, its in results["sources"].items():
        metrics = HEADLINE if its["roc_auc"] is not None else ("called_first",)
        figures = [number(its[metric], metric) for metric in metrics]
        if names:
            words = [NAMES[metric].format(first=results["class_names"][0]) for metric in metrics]
            figures = [" ".join(each) for each in zip(words, figures, strict=True)]
        lines[source] = ", ".join(figures)
    return lines


def log_opening(log: Path, results: Mapping[str, Any]) -> None:
    """Add a row to the table of openings, with which the log ends. Raises OSError."""
    model = results["model"]
    figures = "; ".join(f"{name} {words}" for name, words in headlines(results).items())
    files = ", ".join(results["data"]["files"])
    cells = (results["date"], model["name"], f"`{model['version']}`", files, figures)
    row = "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    write_file(log, f"{text.rstrip()}\n{row}\n".encode())


def record(weights: Path, results: Mapping[str, Any]) -> None:
    """Keep the metrics by source in the weights file, under the split that they were measured on;
    everything else in it stays to the bit."""
    values, tensors = unpack(read_file(weights))
    kept = {
        name: {key: value for key, value in source.items() if key != "reliability"}
        for name, source in results["sources"].items()
    }
    values["metrics"] = {**values.get("metrics", {}), results["split"]: kept}
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    exact = all(np.array_equal(halves[name], tensors[name]) for name in tensors)
    write_file(weights, pack(values, halves if exact else dict(tensors)))
