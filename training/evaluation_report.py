"""The page of an evaluation: its numbers, plots and pictures, for people."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from model.classifier import Classifier
from model.network import Array
from model.preprocessing import to_vector
from training import plots, report
from training.data import PictureSet
from training.evaluation import Evaluation, answers, backgrounds_of, sources_of
from training.metrics import Confusion
from training.robustness import CHANGES, PLAIN, changed

METRICS = {  # metric → its words
    "roc_auc": "ROC AUC",
    "balanced_accuracy": "balanced accuracy",
    "average_precision": "average precision",
    "brier_score": "Brier score",
    "expected_calibration_error": "expected calibration error",
    "called_first": "called {first}",
}
NBSP = "\N{NO-BREAK SPACE}"
_SHARES = ("balanced_accuracy", "called_first")  # told in percent
_MISTAKES = 20  # pictures on each contact sheet
_KINDS = 24  # bars of a chart

SPLITS = {
    "validation": "Validation pictures: choices were made with them, which flatters a little. The "
    "numbers of the test split are the ones to quote.",
    "test": "Test pictures: nothing was chosen with them.",
    "training": "Training pictures: the network has seen them, and these numbers say nothing about "
    "others.",
}


def page(evaluation: Evaluation, classifier: Classifier, originals: PictureSet | None) -> str:
    """The report as one HTML file."""
    results = evaluation.results
    model, *baselines = results["models"]
    mean = model["mean"]
    headline = (
        f"{report.percent(mean['balanced_accuracy'], 1)} balanced accuracy, "
        f"ROC AUC {mean['roc_auc']:.3f}"
        if mean
        else f"{results['data']['pictures']:,} pictures of one class"
    )
    sections = [_sources(results), *([_baselines(results)] if baselines else [])]
    sections += [_confusions(results), *_ranking(evaluation), _calibration(results)]
    sections += _kinds(results)
    if originals is not None:
        sections.append(_robustness(results, originals, classifier))
    sections += [*_mistakes(evaluation), _speed(results), _how(results)]
    return report.page(
        f"{model['name']} on {results['split']} pictures: {headline}",
        f"{SPLITS[results['split']]} Version {model['version']}, "
        f"{results['data']['pictures']:,} pictures, {results['date']}. Called "
        f"{results['class_names'][0]} from a probability of {model['threshold']:.3f} on, the same "
        "for all sources.",
        sections,
    )


# --- numbers ------------------------------------------------------------------------------------


def number(value: float | None, metric: str) -> str:
    """A metric as the report and the model card tell it."""
    if value is None:
        return "–"
    return report.percent(value, 1) if metric in _SHARES else f"{value:.3f}"


def with_interval(source: Mapping[str, Any], metric: str) -> str:
    """A metric of a source with its 95 % interval, "0.983 (0.978 to 0.988)"."""
    value, interval = source[metric], source["intervals"].get(metric)
    if value is None or interval is None:
        return number(value, metric)
    low, high = (number(end, metric) for end in interval)
    told = f"({low.removesuffix(' %')} to {high})"
    return f"{number(value, metric)} {told.replace(' ', NBSP)}"


def source_table(results: Mapping[str, Any]) -> list[list[str]]:
    """A row for each metric, a column for each source, and the mean."""
    first = results["class_names"][0]
    model = results["models"][0]
    sources, mean = model["sources"], model["mean"]
    table = [["", *sources, "mean of sources"]]
    table.append(["pictures", *(f"{each['pictures']:,}" for each in sources.values()), ""])
    for metric, words in METRICS.items():
        cells = [with_interval(each, metric) for each in sources.values()]
        mean_cell = number(mean[metric], metric) if metric in mean else ""
        table.append([words.format(first=first), *cells, mean_cell])
    return table


def baseline_table(results: Mapping[str, Any]) -> list[list[str]]:
    """A row for each model, columns of AUC and balanced accuracy by source, of calibration, and
    for sources of one class of the share called the first."""
    names = list(results["models"][0]["sources"])
    ranked = [n for n in names if results["models"][0]["sources"][n]["roc_auc"] is not None]
    first = results["class_names"][0]
    head = ["", *(f"{n}: AUC / balanced accuracy" for n in ranked)]
    head += [f"{n}: called {first}" for n in names if n not in ranked]
    rows = [[*head, "calibration error", "parameters"]]
    for model in results["models"]:
        sources = model["sources"]
        row = [model_label(model, results["models"])]
        for name in ranked:
            accuracy = number(sources[name]["balanced_accuracy"], "balanced_accuracy")
            row.append(f"{number(sources[name]['roc_auc'], 'roc_auc')} / {accuracy}")
        row += [
            number(sources[n]["called_first"], "called_first") for n in names if n not in ranked
        ]
        error = model["mean"].get("expected_calibration_error")
        row += [number(error, "expected_calibration_error"), f"{model['parameters']:,}"]
        rows.append(row)
    return rows


def model_label(model: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> str:
    """The name of a model, or its file's where several have the same name."""
    same = [each for each in models if each["name"] == model["name"]]
    name: str = model["name"] if len(same) == 1 else PurePosixPath(model["file"]).stem
    return name


def threshold_table(results: Mapping[str, Any]) -> list[list[str]]:
    """A row for each threshold, a column for each source: precision / recall."""
    rows = results["at_thresholds"]
    table = [["threshold", *(f"{name}: precision / recall" for name in rows[0]["sources"])]]
    for row in rows:
        cells = [
            f"{report.percent(each['precision'], 1)} / {report.percent(each['recall'], 1)}"
            for each in row["sources"].values()
        ]
        table.append([f"{row['threshold']:g}", *cells])
    return table


def robustness_table(results: Mapping[str, Any]) -> list[list[str]]:
    """A row for each change."""
    rows = results["robustness"]["changes"]
    first = results["class_names"][0]
    others = list(rows[0]["called_first"])
    table = [["", "ROC AUC", "balanced accuracy", *(f"{o}: called {first}" for o in others)]]
    for row in rows:
        cells = [number(row[metric], metric) for metric in ("roc_auc", "balanced_accuracy")]
        cells += [number(row["called_first"][other], "called_first") for other in others]
        table.append([row["change"], *cells])
    return table


def speed_table(results: Mapping[str, Any]) -> list[list[str]]:
    """Milliseconds a picture."""
    speed = results["speed"]
    width, height = speed["photo_pixels"]
    times = {
        "network, one picture": speed["network_ms"],
        f"network, each of {speed['batch']} at once": speed["network_ms_in_batch"],
        "decoding and squeezing a small JPEG": speed["small_jpeg_ms"],
        f"decoding and squeezing a JPEG of {width * height / 1e6:.0f} megapixels": speed[
            "photo_jpeg_ms"
        ],
    }
    return [["", "milliseconds"], *([what, f"{ms:.2f}"] for what, ms in times.items())]


# --- sections -----------------------------------------------------------------------------------


def _ranked(model: Mapping[str, Any]) -> list[str]:
    """The sources that have both classes."""
    return [n for n, each in model["sources"].items() if each["roc_auc"] is not None]


def _sources(results: Mapping[str, Any]) -> report.Section:
    models = results["models"]
    sources = _ranked(models[0])
    words = {name: METRICS[name] for name in ("roc_auc", "balanced_accuracy")}
    drawn = {}
    if sources:
        by_model = {model_label(model, models): model["sources"] for model in models}
        figure = plots.metric_by_source(by_model, words, sources)
        drawn = {"ROC AUC and balanced accuracy by source": report.png(figure)}
    return report.Section(
        "By source",
        "In brackets and as bars, 95 % intervals: what other pictures of the same source might "
        "have given. Sources that are not here can be harder.",
        source_table(results),
        drawn,
    )


def _baselines(results: Mapping[str, Any]) -> report.Section:
    return report.Section(
        "Beside others",
        "On the same pictures, each at the threshold stored in its own file. The calibration error "
        "is the mean of the sources.",
        baseline_table(results),
    )


def _confusions(results: Mapping[str, Any]) -> report.Section:
    model = results["models"][0]
    keys = ("true_positive", "false_negative", "false_positive", "true_negative")
    sets = {
        name: Confusion(*(each[key] for key in keys)) for name, each in model["sources"].items()
    }
    figure = report.confusion_matrices(sets, tuple(results["class_names"]))
    return report.Section(
        "Right and wrong answers",
        f"At the stored threshold, {model['threshold']:.3f}.",
        pictures={"confusion matrices by source": report.png(figure)},
    )


def _ranking(evaluation: Evaluation) -> list[report.Section]:
    results = evaluation.results
    model = results["models"][0]
    names = np.asarray(sources_of(evaluation.kinds))
    y, p = evaluation.pictures.labels, evaluation.probabilities[0]
    by_source = {name: plots.Answers(y[names == name], p[names == name]) for name in _ranked(model)}
    if not by_source:
        return []
    first = results["class_names"][0]
    return [
        report.Section(
            "Other thresholds",
            f"A lower threshold finds more of class {first} and is wrong more often. The dots are "
            "the stored threshold.",
            threshold_table(results),
            {
                "ROC and precision-recall curves": report.png(
                    plots.curves(by_source, model["threshold"])
                )
            },
        )
    ]


def _calibration(results: Mapping[str, Any]) -> report.Section:
    first = results["class_names"][0]
    tables = {name: s["reliability"] for name, s in results["models"][0]["sources"].items()}
    figure = plots.reliability(tables, first)
    return report.Section(
        "Can the probabilities be believed?",
        f"Of the pictures that were given a probability of 80 %, 80 % should be of class {first}: "
        "then the line lies on the diagonal. Bars are 95 % intervals; the numbers of pictures are "
        "below.",
        pictures={"reliability diagrams by source": report.png(figure)},
    )


def _kinds(results: Mapping[str, Any]) -> list[report.Section]:
    first = results["class_names"][0]
    charts = {
        "false": (f"What is taken for class {first}", f"share called {first}"),
        "false_by_repository": (f"Taken for class {first}, by repository", f"share called {first}"),
        "missed": (f"What is missed of class {first}", "share missed"),
    }
    sections = []
    for key, (title, words) in charts.items():
        rows = results["kinds"][key][:_KINDS]
        if rows:
            sections.append(
                report.Section(
                    title,
                    "Kinds of at least 20 pictures, as far as their names tell, the worst first.",
                    pictures={title: report.png(plots.shares(rows, words))},
                )
            )
    return sections


def _robustness(
    results: Mapping[str, Any], originals: PictureSet, classifier: Classifier
) -> report.Section:
    rows = results["robustness"]["changes"]
    drawn = {"one picture under each change": report.png(_examples(results, originals, classifier))}
    if rows[0]["roc_auc"] is not None:
        drawn["ROC AUC and balanced accuracy under each change"] = report.png(
            plots.robustness(rows)
        )
    return report.Section(
        "When the picture is worse",
        f"{results['robustness']['pictures']:,} of the pictures, each changed in one way; means of "
        "the sources, at the stored threshold. The dashed lines are the pictures as they are.",
        robustness_table(results),
        drawn,
    )


def _examples(results: Mapping[str, Any], originals: PictureSet, classifier: Classifier) -> Figure:
    """The surest picture of the first class among them, under every change."""
    spec, seed = classifier.preprocessing, results["seed"]
    plain = changed(originals, PLAIN, spec, originals.pictures[:1], seed)
    p = np.where(originals.labels == originals.labels.max(), answers(classifier, plain), -1)
    example = _only(originals, int(np.argmax(p)))
    backgrounds = backgrounds_of(originals, plain)
    tiles = []
    for change in (PLAIN, *CHANGES):
        picture = changed(example, change, spec, backgrounds, seed)
        told = f"{classifier.probabilities(to_vector(picture))[0]:.0%}".replace("%", " %")
        tiles.append(plots.Tile(picture[0], [change.name, told]))
    return plots.contact_sheet(tiles)


def _only(pictures: PictureSet, i: int) -> PictureSet:
    one = slice(i, i + 1)
    return replace(
        pictures,
        pictures=pictures.pictures[one],
        labels=pictures.labels[one],
        names=pictures.names[one],
        sources=pictures.sources[one],
        sides=pictures.sides[one],
    )


def _mistakes(evaluation: Evaluation) -> list[report.Section]:
    """The wrong answers that were the most sure."""
    first, other = evaluation.results["class_names"]
    threshold = evaluation.results["models"][0]["threshold"]
    y, p = evaluation.pictures.labels, evaluation.probabilities[0]
    false = np.flatnonzero((y != 1) & (p >= threshold))
    missed = np.flatnonzero((y == 1) & (p < threshold))
    sheets = {
        f"Called {first}, but {other}": false[np.argsort(-p[false], kind="stable")],
        f"Called {other}, but {first}": missed[np.argsort(p[missed], kind="stable")],
    }
    return [
        report.Section(
            f"The worst mistakes: {title[0].lower()}{title[1:]}",
            f"{len(worst):,} in all; the {min(len(worst), _MISTAKES)} with the most confident "
            f"answers. Below each, its name, what that tells, and the probability of {first}. Some "
            "labels are wrong.",
            pictures={title: report.png(_sheet(evaluation, p, worst[:_MISTAKES]))},
        )
        for title, worst in sheets.items()
        if len(worst)
    ]


def _sheet(evaluation: Evaluation, p: Array, chosen: Array) -> Figure:
    pictures = evaluation.pictures
    return plots.contact_sheet(
        [
            plots.Tile(
                pictures.pictures[i],
                [PurePosixPath(pictures.names[i]).stem, _told(evaluation, i, p[i])],
                plots.WRONG,
            )
            for i in chosen.tolist()
        ]
    )


def _told(evaluation: Evaluation, i: int, p: float) -> str:
    shows = evaluation.kinds[i].shows
    return ", ".join([*([shows] if shows else []), report.percent(p, 1)])


def _speed(results: Mapping[str, Any]) -> report.Section:
    return report.Section(
        "Speed",
        f"A picture on one core of this machine ({results['speed']['processor']}). The service "
        "needs both: decoding and the network.",
        speed_table(results),
    )


def _how(results: Mapping[str, Any]) -> report.Section:
    data, model = results["data"], results["models"][0]
    left_out = f", {data['left_out']:,} left out" if data["left_out"] else ""
    return report.Section(
        "What was measured",
        "",
        [
            ["", ""],
            ["weights", f"{model['file']}, version {model['version']}"],
            ["data", ", ".join(data["files"]) + f" ({data['pictures']:,} pictures{left_out})"],
            ["SHA-256 of pictures and labels", data["sha256"]],
            ["seed of intervals and changes", str(results["seed"])],
        ],
    )
