"""`python -m training card`: the model card, made from the weights file and its evaluation.

Nothing in it is typed by hand, so nothing in it can be out of date: what a sentence says about
this classifier is looked up, and a test makes the card that is committed again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from model.artifact import write_file
from model.classifier import BadArtifact, Classifier
from model.convolution import Convolution
from model.network import Composite, Layer, Linear, Mirrored, Residual, parameters
from training.command import Commands, Say, add_command, check_output
from training.data import CLASS_NAMES
from training.errors import BadArguments, Refused
from training.evaluate import METRICS_FILE
from training.evaluation import FORMAT
from training.evaluation_report import (
    SPLITS,
    baseline_table,
    number,
    robustness_table,
    source_table,
    speed_table,
    threshold_table,
)
from training.loop import LoopConfig
from training.report import percent

EVALUATION = "evaluation.json"  # beside the weights
CARD = "MODEL_CARD.md"

# source → (what it is, its terms as far as they are known)
PROVENANCE = {
    "pets": (
        "PetImages, Microsoft's Kaggle Cats and Dogs data set: cats and dogs from Petfinder.com",
        "Microsoft's, stated where it is downloaded",
    ),
    "tiny": (
        "Tiny ImageNet, Stanford CS231n's 64×64 subset of ImageNet: 200 kinds of things and "
        "animals, three of them cats",
        "ImageNet's: non-commercial research and education",
    ),
    "web": (
        "photographs from about 30 public repositories, which gathered them from Flickr, search "
        "engines, classified adverts, phones and homes",
        "most of the repositories state none",
    ),
    "rooms": ("rooms without a cat, from MIT's Places database", "MIT's: research and education"),
    "course": (
        "the pictures of the course, deeplearning.ai's Neural Networks and Deep Learning, week 2",
        "none stated",
    ),
}
_UNKNOWN = ("pictures of whoever trained it", "not known here")
_WORST = 8  # kinds in the list of failures
_HARD = 5  # changes in the list of failures

_HELP = """
Write the model card of a weights file: what it is for and what not, what it was trained on, how it
was trained, how good it is and where it fails. All of it comes from the weights file and from the
metrics.json of `evaluate`.
"""
_EXAMPLE = """
example:
  python -m training evaluate model/cat.safetensors data/ --test --output runs/cat-test
  cp runs/cat-test/metrics.json model/evaluation.json
  python -m training card model/cat.safetensors
"""


def model_card(weights: Path, results: Mapping[str, Any]) -> str:
    """The card, in Markdown. Raises BadArtifact, and BadArguments where the evaluation is of other
    weights."""
    classifier = Classifier.load(weights)
    model = results["models"][0]
    if model["version"] != classifier.version:
        raise BadArguments(
            f"The evaluation is of {model['name']}, version {model['version']}; {weights.name} has "
            f"version {classifier.version}. Evaluate these weights."
        )
    parts = [
        f"# Model card: {classifier.name}",
        "<!-- Made by `python -m training card`; changes belong into training/card.py. -->",
        *_introduction(classifier, weights),
        *_use(classifier),
        *_data(classifier),
        *_training(classifier),
        *_measured(results),
        *_calibration(classifier, results),
        *_robustness(results),
        *_failures(results),
        *_rebuild(classifier),
    ]
    return "\n\n".join(parts) + "\n"


# --- what it is ---------------------------------------------------------------------------------


def _introduction(classifier: Classifier, weights: Path) -> list[str]:
    first, other = classifier.class_names
    side = classifier.preprocessing.side
    total = sum(value.size for value in parameters(classifier.layers).values())
    rows = [
        ["", ""],
        ["version", f"`{classifier.version}`"],
        ["file", f"`{weights.name}`, {weights.stat().st_size / 1e6:.1f} MB, safetensors"],
        ["answers", f"the probability of *{first}*; *{first}* from {classifier.threshold:.3f} on"],
        ["classes", f"{first}, {other}"],
        ["input", f"any picture, squeezed to {side}×{side} pixels in RGB"],
        ["network", f"{_architecture(classifier.layers)}; {total:,} parameters"],
    ]
    return [
        f"Says how probable it is that a picture shows the class *{first}*. It is one file, run by "
        "the code of this repository in NumPy.",
        _table(rows, align="left"),
    ]


def _architecture(layers: Sequence[Layer]) -> str:
    convolutions = _count(layers, Convolution)
    if not convolutions and len(layers) == 1:
        return "logistic regression on the pixels"
    blocks = _count(layers, Residual)
    twice = ", mean over the picture and its mirror image" if _count(layers, Mirrored) else ""
    linear = _count(layers, Linear)
    return f"{convolutions} convolutions, {blocks} residual blocks, {linear} linear{twice}"


def _count(layers: Sequence[Layer], kind: type[Layer]) -> int:
    inside = sum(_count(layer.layers, kind) for layer in layers if isinstance(layer, Composite))
    return inside + sum(isinstance(layer, kind) for layer in layers)


def _use(classifier: Classifier) -> list[str]:
    first = classifier.class_names[0]
    cat = classifier.class_names == CLASS_NAMES
    house_cat = (
        "*Cat* means a house cat, all of it or a part that one recognises. Lynx, tiger and lion "
        "are *non-cat*.\n\n"
    )
    return [
        "## What it is for",
        (house_cat if cat else "")
        + f"Sorting photographs, searching them for *{first}*, waking a camera, learning how such "
        "a network is made. Where its own figures below are good enough for the purpose, and a "
        "person can put right what it gets wrong.",
        "## What it must not be used for",
        _list(
            [
                "Deciding alone where a wrong answer harms a person or an animal: a flap that "
                "locks a cat out or lets a fox in needs a second way to tell, and a way out.",
                "Telling individuals, breeds, health or mood apart: it knows one class only.",
                "Recognising or watching people. It has learned nothing about them, and pictures "
                "of people get answers all the same.",
                "Evidence: an answer is a probability, and pictures can be made to mislead it.",
                "Pictures unlike those measured below (thermal cameras, fisheye lenses, drawings, "
                f"a {first} far away) without measuring it on some of them first.",
                "Commercial use without clearing what the terms of the training pictures allow.",
            ]
        ),
    ]


# --- what it was made of ------------------------------------------------------------------------


def _data(classifier: Classifier) -> list[str]:
    first, other = classifier.class_names
    sets: Mapping[str, Any] = classifier.metadata.get("data", {})
    training = sets.get("training", {})
    rows = [["source", first, other, "what it is", "terms"]]
    for source, counts in training.get("sources", {}).items():
        what, terms = PROVENANCE.get(source, _UNKNOWN)
        rows.append([source, f"{counts[first]:,}", f"{counts[other]:,}", what, terms])
    parts = ["## What it was trained on"]
    if len(rows) > 1:
        parts.append(_table(rows, align="left"))
    for name, each in sets.items():
        files = ", ".join(f"`{file}`" for file in each["files"])
        parts.append(
            f"{name.capitalize()}: {each['pictures']:,} pictures from {files} (SHA-256 of pictures "
            f"and labels `{each['sha256'][:16]}…`)."
        )
    parts += _teacher(classifier.metadata.get("training", {}), training.get("sources", {}))
    parts.append(
        "The weights hold no picture. The code is under the MIT licence; that licence says nothing "
        "about the pictures, and nobody can grant by it what their owners have not."
    )
    return parts


def _teacher(training: Mapping[str, Any], sources: Mapping[str, Any]) -> list[str]:
    share = training.get("teacher_share")
    if not share:
        return []
    own = set(sources) <= set(PROVENANCE)  # of which it is known whose log-odds there are
    who = (
        "EfficientNet-Lite0, pretrained on ImageNet, which saw the originals at 224×224"
        if own
        else f"whatever made the log-odds in `{training['teacher']}`"
    )
    return [
        f"{percent(share, 0)} of each training label came from a teacher (Hinton, Vinyals and Dean "
        f"2015): {who}. Its scores were calibrated on the labels of each source."
    ]


def _training(classifier: Classifier) -> list[str]:
    training: Mapping[str, Any] = classifier.metadata.get("training", {})
    start = classifier.metadata.get("started_from")
    rows = [["setting", "value"]]
    rows += [
        [name.replace("_", " "), _told(value)]
        for name, value in training.items()
        if value is not None
    ]
    best = classifier.metadata.get("best_epoch")
    told = (
        f"It went on from {start['name']}, version `{start['version']}`."
        if start
        else "From random or zero weights."
    )
    if best:
        told += f" Kept: epoch {best}, the best on the validation pictures."
    return ["## How it was trained", told, _table(rows, align="left")]


def _told(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)


# --- how good it is -----------------------------------------------------------------------------


def _measured(results: Mapping[str, Any]) -> list[str]:
    data = results["data"]
    files = ", ".join(f"`{file}`" for file in data["files"])
    parts = [
        "## How good it is",
        f"{SPLITS[results['split']]} {data['pictures']:,} pictures from {files}, measured "
        f"{results['date']}; in brackets 95 % intervals.",
        _table(source_table(results)),
        f"{_capital(results['class_names'][0])} from another threshold on:",
        _table(threshold_table(results)),
    ]
    if len(results["models"]) > 1:
        parts += ["Beside others, on the same pictures:", _table(baseline_table(results))]
    return [
        *parts,
        f"Time for a picture on one core ({results['speed']['processor']}):",
        _table(speed_table(results)),
    ]


def _calibration(classifier: Classifier, results: Mapping[str, Any]) -> list[str]:
    first = classifier.class_names[0]
    errors = ", ".join(
        f"{name} {number(source['expected_calibration_error'], 'expected_calibration_error')}"
        for name, source in results["models"][0]["sources"].items()
    )
    parts = [
        "## Can the probabilities be believed?",
        f"Expected calibration error by source: {errors}. That is how far, in the mean, a "
        f"probability lies from the share of *{first}* among the pictures that get it. The mix "
        f"matters: where *{first}* is rarer than in these sources, its probability is overstated.",
    ]
    calibration = classifier.metadata.get("calibration")
    if calibration:
        parts.append(
            f"Calibration: {calibration['rule']} (scale {calibration['scale']:.3f}, shift "
            f"{calibration['shift']:.3f}, both within the weights)."
        )
    rule = classifier.metadata.get("threshold_rule")
    if rule:
        parts.append(f"Threshold, {classifier.threshold:.3f}: {rule}.")
    return parts


def _robustness(results: Mapping[str, Any]) -> list[str]:
    if results["robustness"] is None:
        return []
    return [
        "## When the picture is worse",
        f"{results['robustness']['pictures']:,} of the pictures, each changed in one way; means of "
        "the sources.",
        _table(robustness_table(results)),
    ]


def _failures(results: Mapping[str, Any]) -> list[str]:
    first = results["class_names"][0]
    kinds = results["kinds"]
    parts = ["## Where it fails"]
    if kinds["false"]:
        parts += [f"Most often taken for *{first}*:", _list(_wrong(kinds["false"]))]
    if kinds["missed"]:
        parts += [f"Most often missed of *{first}*:", _list(_wrong(kinds["missed"]))]
    if results["robustness"] and results["robustness"]["changes"][0]["roc_auc"] is not None:
        plain, *changes = results["robustness"]["changes"]
        hardest = sorted(changes, key=lambda row: float(row["roc_auc"]))[:_HARD]
        parts += [
            f"ROC AUC, {plain['roc_auc']:.3f} on these pictures as they are, falls most where the "
            "picture is:",
            _list(f"{row['change']}: {row['roc_auc']:.3f}" for row in hardest),
        ]
    parts.append(
        "It has learned from its sources where such pictures are taken and how they look. Other "
        "cameras, places and seasons are harder than anything measured here."
    )
    return parts


def _wrong(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The worst kinds, without those that are a part of another kind here."""
    parts = {shown for row in rows for shown in row["shows"]}
    return [
        f"{row['kind']}: {percent(row['share'], 1)} ({row['wrong']:,} of {row['pictures']:,})"
        for row in rows
        if row["wrong"] and row["kind"] not in parts
    ][:_WORST]


def _rebuild(classifier: Classifier) -> list[str]:
    training: Mapping[str, Any] = classifier.metadata.get("training", {})
    sets: Mapping[str, Any] = classifier.metadata.get("data", {})
    command = training.get("command")
    if command not in ("fit", "course") or "training" not in sets:
        return []
    words = [f"python -m training {command}", *sets["training"]["files"]]
    words += _options(classifier, command)
    same = (
        "The same pictures, seed and number of threads give the same weights; another processor or "
        "linear algebra library moves the last digits, and then everything after them."
    )
    if "parts" in training:
        same = (
            "These weights were made in parts, between which the settings were changed as the "
            "table above says; in one run the result is as good, not the same."
        )
    return [
        "## How to make it again",
        "```\n" + " \\\n    ".join(words) + "\n```",
        f"{same} Which of the pictures can be had, and how, the documentation of this repository "
        "says.",
    ]


def _options(classifier: Classifier, command: str) -> list[str]:
    training = classifier.metadata["training"]
    start = classifier.metadata.get("started_from")
    sets = classifier.metadata["data"]
    words = [f"--from {start['name']}.safetensors"] if start else []
    if training.get("stages"):
        words.append(f"--stages {_told(training['stages'])}")
    if command == "fit":
        files = sets.get("validation", {}).get("files", [])
        if files and files != sets["training"]["files"]:
            words.append(f"--validation {' '.join(files)}")
        if training.get("teacher"):
            words.append(f"--teacher {training['teacher']}")
            words.append(f"--teacher-share {training['teacher_share']}")
        if shares := training.get("shares"):
            words.append("--shares " + " ".join(f"{name}={n}" for name, n in shares.items()))
        names = [each.name for each in fields(LoopConfig) if "help" in each.metadata]
    else:
        names = ["learning_rate", "iterations", "seed"]
    return words + [f"--{n.replace('_', '-')} {training[n]}" for n in names if n in training]


# --- Markdown -----------------------------------------------------------------------------------


def _table(rows: Sequence[Sequence[str]], align: str = "right") -> str:
    head, *others = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    line = "---" if align == "left" else "--:"
    lines = [head, ["---", *[line] * (len(head) - 1)], *others]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _list(items: Any) -> str:
    return "\n".join(f"- {item}" for item in items)


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]


# --- python -m training card --------------------------------------------------------------------


def read_evaluation(path: Path) -> dict[str, Any]:
    """The numbers of an evaluation; raises Refused where the file is none."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(
            f"{path} does not exist. Make it with `python -m training evaluate`: it is the "
            f"{METRICS_FILE} of the report."
        ) from None
    except ValueError as error:
        raise Refused(f"{path} is no evaluation: it is not JSON ({error}).") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise Refused(
            f"{path} is no evaluation that this code reads; name the {METRICS_FILE} of a report."
        )
    return results


def run_card(arguments: argparse.Namespace, say: Say) -> None:
    """Write the card of the weights."""
    weights: Path = arguments.weights
    output: Path = arguments.output or weights.with_name(CARD)
    check_output(output)
    results = read_evaluation(arguments.evaluation or weights.with_name(EVALUATION))
    try:
        text = model_card(weights, results)
    except BadArtifact as error:
        raise Refused(str(error)) from error
    except KeyError as error:  # weights or an evaluation of another make
        raise Refused(f"{weights} or its evaluation says nothing of {error}.") from error
    write_file(output, text.encode())
    say(f"card: {output}")


def add_commands(commands: Commands) -> None:
    """Add `card` to the command line."""
    parser = add_command(
        commands,
        "card",
        summary="write the model card",
        description=_HELP,
        example=_EXAMPLE,
        run=run_card,
    )
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="weights file")
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help=f"{METRICS_FILE} of its evaluation (default: {EVALUATION} beside the weights)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"card to write (default: {CARD} beside the weights)",
    )
