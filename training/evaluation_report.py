"""The page of an evaluation and the model card: numbers, plots and pictures for people.

Both are made from `evaluation.evaluate`'s results. Nothing in the card is typed by hand, so nothing
in it can be out of date: a test makes the committed card again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from model.artifact import write_file
from model.classifier import Classifier
from model.convolution import Convolution
from model.network import Composite, Layer, Linear, Mirrored, Residual, parameters
from training import Refused, plots
from training.calibration import by_source
from training.data import CLASS_NAMES, PROVENANCE, TEACHERS, as_png
from training.evaluation import (
    FORMAT,
    HEADLINE,
    LOG,
    Evaluation,
    Originals,
    Subject,
    data_files,
    evaluate,
    log_opening,
    record,
    sources_of,
    split_of,
)
from training.fit import Settings
from training.metrics import Bin
from training.report import (
    PAGE,
    Say,
    Table,
    check_folder,
    check_output,
    load,
    percent,
    render,
    report_files,
    write_folder,
)
from training.robustness import CHANGES, PLAIN

METRICS = {  # metric → its words
    "roc_auc": "ROC AUC",
    "balanced_accuracy": "balanced accuracy",
    "average_precision": "average precision",
    "brier_score": "Brier score",
    "expected_calibration_error": "expected calibration error",
    "called_first": "called {first}",
}
SPLITS = {
    "validation": "Validation pictures: choices were made with them, which flatters a little. The "
    "numbers of the test split are the ones to quote.",
    "test": "Test pictures: nothing was chosen with them.",
    "training": "Training pictures: the network has seen them, and these numbers say nothing about "
    "others.",
}
EVALUATION, CARD = "evaluation.json", "MODEL_CARD.md"  # beside the weights
NBSP = "\N{NO-BREAK SPACE}"
_SHARES = ("balanced_accuracy", "called_first", "precision", "recall")  # given in percent
_MISTAKES = 20  # pictures on each contact sheet
_KINDS = 24  # bars of a chart
_WORST, _HARD = 8, 5  # kinds, and changes, in the card's list of failures


# --- tables -------------------------------------------------------------------------------------


def number(value: float | None, metric: str) -> str:
    """A metric as the report and the model card give it."""
    if value is None:
        return "–"
    return percent(value, 1) if metric in _SHARES else f"{value:.3f}"


def _with_interval(source: Mapping[str, Any], metric: str) -> str:
    """A metric of a source with its 95 % interval, "0.983 (0.978 to 0.988)"."""
    value, interval = source[metric], source["intervals"].get(metric)
    if value is None or interval is None:
        return number(value, metric)
    low, high = (number(end, metric) for end in interval)
    return f"{number(value, metric)} " + f"({low.removesuffix(' %')} to {high})".replace(" ", NBSP)


def tables(results: Mapping[str, Any]) -> dict[str, Table]:
    """The tables that page and card share, by name: lists of rows."""
    first, models, speed = results["class_names"][0], results["models"], results["speed"]
    sources, mean = models[0]["sources"], models[0]["mean"]
    ranked, others = _ranked(models[0]), [n for n in sources if n not in _ranked(models[0])]
    called = [f"{name}: called {first}" for name in others]
    beside = [["", *(f"{name}: AUC / balanced accuracy" for name in ranked), *called]]
    beside[0] += ["calibration error", "parameters"]
    for model in models:
        row = [_label(model, models)]
        row += [_pair(model["sources"][name], "roc_auc", "balanced_accuracy") for name in ranked]
        row += [number(model["sources"][name]["called_first"], "called_first") for name in others]
        row += [number(model["mean"].get("expected_calibration_error"), "calibration")]
        beside.append([*row, f"{model['parameters']:,}"])
    thresholds = [
        [f"{row['threshold']:g}", *row["sources"].values()] for row in results["at_thresholds"]
    ]
    changes = results["robustness"]["changes"] if results["robustness"] else []
    rooms = list(changes[0]["called_first"]) if changes else []
    megapixels = speed["photo_pixels"][0] * speed["photo_pixels"][1] / 1e6
    return {
        "sources": [
            ["", *sources, "mean of sources"],
            ["pictures", *(f"{each['pictures']:,}" for each in sources.values()), ""],
            *(
                [
                    words.format(first=first),
                    *(_with_interval(each, metric) for each in sources.values()),
                    number(mean[metric], metric) if metric in mean else "",
                ]
                for metric, words in METRICS.items()
            ),
        ],
        "beside": beside,
        "thresholds": [
            ["threshold", *(f"{name}: precision / recall" for name in ranked)],
            *([t, *(_pair(each, "precision", "recall") for each in its)] for t, *its in thresholds),
        ],
        "robustness": [
            ["", "ROC AUC", "balanced accuracy", *(f"{name}: called {first}" for name in rooms)],
            *(
                [
                    row["change"],
                    *(number(row[metric], metric) for metric in ("roc_auc", "balanced_accuracy")),
                    *(number(row["called_first"][name], "called_first") for name in rooms),
                ]
                for row in changes
            ),
        ],
        "speed": [
            ["", "milliseconds"],
            ["network, one picture", f"{speed['network_ms']:.2f}"],
            [f"network, each of {speed['batch']} at once", f"{speed['network_ms_in_batch']:.2f}"],
            ["decoding and squeezing a small JPEG", f"{speed['small_jpeg_ms']:.2f}"],
            [
                f"decoding and squeezing a JPEG of {megapixels:.0f} megapixels",
                f"{speed['photo_jpeg_ms']:.2f}",
            ],
        ],
    }


def _pair(values: Mapping[str, Any], one: str, other: str) -> str:
    return f"{number(values[one], one)} / {number(values[other], other)}"


def _ranked(model: Mapping[str, Any]) -> list[str]:
    """The sources that have both classes."""
    return [n for n, each in model["sources"].items() if each["roc_auc"] is not None]


def _label(model: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> str:
    """The name of a model, or its file's where several have the same name."""
    same = [each for each in models if each["name"] == model["name"]]
    name: str = model["name"] if len(same) == 1 else PurePosixPath(model["file"]).stem
    return name


def summary_sentences(results: Mapping[str, Any]) -> str:
    """Three sentences: what was measured, how good it is, and where it is worst."""
    model, first = results["models"][0], results["class_names"][0]
    mean = model["mean"]
    files = ", ".join(results["data"]["files"])
    asked = (
        f"{model['name']} was asked whether {results['data']['pictures']:,} {results['split']} "
        f"pictures ({files}) show the class {first}."
    )
    called = ", ".join(
        f"{percent(each['called_first'], 1)} of {name}"
        for name, each in model["sources"].items()
        if each["roc_auc"] is None
    )
    good = (
        f"Its balanced accuracy is {percent(mean['balanced_accuracy'], 1)} and its ROC AUC "
        f"{mean['roc_auc']:.3f}, means of the sources"
        + (f", and it calls {called} {first}." if called else ".")
        if mean
        else f"It calls {called} {first}."
    )
    false, missed = (wrong(results, key)[:1] for key in ("false", "missed"))
    worst = [
        text.format(row["kind"], percent(row["share"], 1))
        for rows, text in (
            (false, f"{{}}, of which it calls {{}} {first}"),
            (missed, f"{first} of {{}}, of which it misses {{}}"),
        )
        for row in rows
    ]
    return " ".join(
        [
            asked,
            good,
            f"It is worst at {' and at '.join(worst)}."
            if worst
            else "No kind of picture with enough examples stands out as worse than the others.",
        ]
    )


def wrong(results: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The worst kinds of a list, without those that are a part of another kind there."""
    rows = results["kinds"][key]
    parts = {shown for row in rows for shown in row["shows"]}
    return [row for row in rows if row["wrong"] and row["kind"] not in parts][:_WORST]


# --- the page of an evaluation ------------------------------------------------------------------


def evaluation_page(evaluation: Evaluation, classifier: Classifier) -> str:
    """The report as one HTML file."""
    results = evaluation.results
    model = results["models"][0]
    bins = {n: [Bin(**row) for row in s["reliability"]] for n, s in model["sources"].items()}
    figures = {"reliability": plots.reliability(bins, results["class_names"][0])}
    if ranked := _ranked(model):
        own = by_source(sources_of(evaluation.pictures.parts))
        y, p = evaluation.pictures.labels, evaluation.probabilities
        answers = {name: (y[own[name]], p[own[name]]) for name in ranked}
        figures["curves"] = plots.roc_and_precision(answers, model["threshold"])
    return render(
        "evaluation.html",
        results=results,
        model=model,
        first=results["class_names"][0],
        summary=summary_sentences(results),
        split=SPLITS[results["split"]],
        tables=tables(results),
        pictures={name: plots.png(figure) for name, figure in figures.items()},
        most_kinds=_KINDS,
        examples=_examples(evaluation.originals, classifier),
        mistakes=_mistakes(evaluation),
    )


def _examples(originals: Originals | None, classifier: Classifier) -> list[dict[str, Any]]:
    """The surest picture of the first class among them, under every change."""
    if not originals:
        return []
    labels = originals.pictures.labels
    p = np.where(labels == labels.max(), originals.answers(PLAIN, classifier), -1)
    tiles = []
    for change in (PLAIN, *CHANGES):
        prediction = classifier.predict(
            as_png(originals.changed(int(np.argmax(p)), change, classifier))
        )
        lines = [change.name, percent(prediction.cat_probability, 0)]
        tiles.append({"picture": as_png(prediction.picture.pixels), "lines": lines})
    return tiles


def _mistakes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The wrong answers that were the most sure: title, number in all, and tiles of some."""
    first, other = evaluation.results["class_names"]
    threshold = evaluation.results["models"][0]["threshold"]
    pictures, p = evaluation.pictures, evaluation.probabilities
    false = np.flatnonzero((pictures.labels != 1) & (p >= threshold))
    missed = np.flatnonzero((pictures.labels == 1) & (p < threshold))
    parts = pictures.parts
    found = []
    for title, worst in (
        (f"called {first}, but {other}", false[np.argsort(-p[false], kind="stable")]),
        (f"called {other}, but {first}", missed[np.argsort(p[missed], kind="stable")]),
    ):
        tiles = []
        for i in worst[:_MISTAKES].tolist():
            name = PurePosixPath(pictures.names[i]).stem
            lines = filter(None, [name, parts[i].kind, percent(p[i], 1)])
            tiles.append({"picture": as_png(pictures.pictures[i]), "lines": list(lines)})
        if tiles:
            found.append({"title": title, "count": len(worst), "tiles": tiles})
    return found


# --- evaluate -----------------------------------------------------------------------------------


def run_evaluate(
    weights: Path,
    data: Sequence[Path],
    say: Say,
    *,
    test: bool = False,
    baselines: Sequence[Path] = (),
    keep: bool = False,
    robustness_pictures: int,
    seed: int,
    skip_bad: bool = False,
    output: Path | None = None,
    log: Path = LOG,
) -> None:
    """Measure; log if it is the test split; keep the metrics in the weights file if asked; write
    the report. Raises Refused and OSError."""
    subjects = [Subject(load(path), path) for path in (weights, *baselines)]
    files = data_files(data, test=test)
    split = split_of(files, test=test)
    if keep and split == "training":
        raise Refused("--record keeps numbers of unseen pictures; these were trained on.")
    folder = output or Path("runs") / f"{weights.stem}-{split}"
    check_folder(folder)
    if test:
        check_output(log)
    evaluation = evaluate(
        subjects,
        files,
        say,
        split=split,
        robustness_pictures=robustness_pictures,
        seed=seed,
        skip_bad=skip_bad,
    )
    results = evaluation.results
    if test:  # before anyone can have seen a number
        log_opening(log, results, headlines(results))
        say(f"logged:   {log}")
    page = evaluation_page(evaluation, subjects[0].classifier)
    with write_folder(folder, report_files(page, results, {})):
        if keep:
            record(weights, results)
    for name, words in headlines(results, METRICS).items():
        say(f"{name + ':':9} {words}")
    if keep:
        say(f"recorded: {weights}")
    say(f"numbers:  {folder / 'metrics.json'}")
    say(f"report:   {folder / PAGE}")


def headlines(results: Mapping[str, Any], words: Mapping[str, str] | None = None) -> dict[str, str]:
    """The figures of each source that a report begins with, with their names or without."""
    first = results["class_names"][0]
    lines = {}
    for name, source in results["models"][0]["sources"].items():
        metrics = HEADLINE if source["roc_auc"] is not None else ("called_first",)
        lines[name] = ", ".join(
            (words[metric].format(first=first) + " " if words else "")
            + number(source[metric], metric)
            for metric in metrics
        )
    return lines


# --- the model card -----------------------------------------------------------------------------


def model_card(weights: Path, results: Mapping[str, Any]) -> str:
    """The card, in Markdown. Raises Refused where the evaluation is of other weights."""
    classifier = load(weights)
    model = results["models"][0]
    if model["version"] != classifier.version:
        raise Refused(
            f"The evaluation is of {model['name']}, version {model['version']}; {weights.name} has "
            f"version {classifier.version}. Evaluate these weights."
        )
    facts = classifier.metadata
    sets: Mapping[str, Any] = facts.get("data", {})
    sources = sets.get("training", {}).get("sources", {})
    known = {each.name for each in fields(Settings)}
    training: Mapping[str, Any] = facts.get("training", {})
    changes = results["robustness"]["changes"] if results["robustness"] else []
    hard = sorted(changes[1:], key=lambda row: float(row["roc_auc"] or 0))[:_HARD]
    return render(
        "card.md",
        classifier=classifier,
        weights=weights.name,
        megabytes=weights.stat().st_size / 1e6,
        architecture=_architecture(classifier.layers),
        parameters=sum(value.size for value in parameters(classifier.layers).values()),
        summary=summary_sentences(results),
        house_cat=classifier.class_names == CLASS_NAMES,
        facts=facts,
        sets=sets,
        sources=sources,
        provenance=PROVENANCE,
        teachers=TEACHERS,
        training=training,
        settings={k: v for k, v in training.items() if k in known and v is not None},
        results=results,
        split=SPLITS[results["split"]],
        tables=tables(results),
        errors={
            name: number(source["expected_calibration_error"], "expected_calibration_error")
            for name, source in model["sources"].items()
        },
        wrong={key: wrong(results, key) for key in ("false", "missed")},
        plain=changes[0] if changes else None,
        hard=hard if changes and changes[0]["roc_auc"] is not None else [],
    )


def _architecture(layers: Sequence[Layer]) -> str:
    convolutions = _count(layers, Convolution)
    if not convolutions and len(layers) == 1:
        return "logistic regression on the pixels"
    blocks = _count(layers, Residual)
    twice = ", mean over the picture and its mirror image" if _count(layers, Mirrored) else ""
    linear = _count(layers, Linear)
    return f"{convolutions} convolutions, {blocks} residual blocks, {linear} linear{twice}"


def _count(layers: Sequence[Layer], of: type[Layer]) -> int:
    inside = sum(_count(layer.layers, of) for layer in layers if isinstance(layer, Composite))
    return inside + sum(isinstance(layer, of) for layer in layers)


def read_evaluation(path: Path) -> dict[str, Any]:
    """The numbers of an evaluation; raises Refused where the file holds something else."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(
            f"{path} does not exist. Make it with `python -m training evaluate`: it is the "
            "metrics.json of the report."
        ) from None
    except ValueError as error:
        raise Refused(f"{path} is no evaluation: it is not JSON ({error}).") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise Refused(
            f"{path} is no evaluation that this code reads; name the metrics.json of a report."
        )
    return results


def run_card(weights: Path, evaluation: Path | None, output: Path | None, say: Say) -> None:
    """Write the card of the weights. Raises Refused and OSError."""
    output = output or weights.with_name(CARD)
    check_output(output)
    results = read_evaluation(evaluation or weights.with_name(EVALUATION))
    try:
        text = model_card(weights, results)
    except KeyError as error:  # weights or an evaluation of another make
        raise Refused(f"{weights} or its evaluation says nothing of {error}.") from error
    write_file(output, text.encode())
    say(f"card: {output}")
