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


# --- numbers -------------------------------------------------------------------------------------


def number(value: float | None, metric: str) -> str:
    """A metric as the report and the model card give it."""
    if value is None:
        return "–"
    return percent(value, 1) if metric in _SHARES else f"{value:.3f}"


def with_interval(source: Mapping[str, Any], metric: str) -> str:
    """A metric of a source with its 95 % interval, "0.983 (0.978 to 0.988)"."""
    value, interval = source[metric], source["intervals"].get(metric)
    if value is None or interval is None:
        return number(value, metric)
    low, high = (number(end, metric) for end in interval)
    return f"{number(value, metric)} " + f"({low.removesuffix(' %')} to {high})".replace(" ", NBSP)


def _shared(results: Mapping[str, Any]) -> dict[str, Any]:
    """What page and card share."""
    models = results["models"]
    ranked = [n for n, each in models[0]["sources"].items() if each["roc_auc"] is not None]
    return {
        "results": results,
        "model": models[0],
        "first": results["class_names"][0],
        "ranked": ranked,
        "others": [name for name in models[0]["sources"] if name not in ranked],
        "labels": [_label(model, models) for model in models],
        "summary": summary_sentences(results),
        "split": SPLITS[results["split"]],
        "metrics": METRICS,
        "number": number,
        "with_interval": with_interval,
    }


def _label(model: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> str:
    """The name of a model, or its file's where several have the same name."""
    same = [each for each in models if each["name"] == model["name"]]
    name: str = model["name"] if len(same) == 1 else PurePosixPath(model["file"]).stem
    return name


def summary_sentences(results: Mapping[str, Any]) -> str:
    """Three sentences: what was measured, how good it is, and where it is worst."""
    worst = {key: wrong(results, key)[:1] for key in ("false", "missed")}
    return render("summary.txt", results=results, worst=worst).strip()


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
    if ranked := [n for n, each in model["sources"].items() if each["roc_auc"] is not None]:
        own = by_source(sources_of(evaluation.pictures.parts))
        y, p = evaluation.pictures.labels, evaluation.probabilities
        answers = {name: (y[own[name]], p[own[name]]) for name in ranked}
        figures["curves"] = plots.roc_and_precision(answers, model["threshold"])
    return render(
        "evaluation.html",
        **_shared(results),
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
        prediction = classifier.predict(originals.changed(int(np.argmax(p)), change, classifier))
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
        house_cat=classifier.class_names == CLASS_NAMES,
        facts=facts,
        sets=sets,
        sources=sources,
        provenance=PROVENANCE,
        teachers=TEACHERS,
        training=training,
        settings={k: v for k, v in training.items() if k in known and v is not None},
        **_shared(results),
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
