"""The model card, from the weights file and its evaluation.

Nothing in it is typed by hand, so nothing in it can be out of date: a test makes the committed card
again.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from model.artifact import summary
from model.classifier import Classifier
from model.machine import write_file
from model.network import parameters
from training import Refused
from training.data import CLASS_NAMES, PROVENANCE, TEACHERS
from training.evaluation import FORMAT, for_templates, worst_kinds
from training.loop import FINE_TUNING, SCRATCH
from training.report import Say, check_output, render

EVALUATION, CARD = "evaluation.json", "MODEL_CARD.md"  # beside the weights


def run_card(weights: Path, say: Say) -> None:
    """Write the card of the weights. Raises Refused and OSError."""
    output = weights.with_name(CARD)
    check_output(output)
    classifier = Classifier.load(weights)
    results = read_evaluation(weights.with_name(EVALUATION))
    try:
        text = model_card(weights, classifier, results)
    except (KeyError, UndefinedError) as error:  # weights or an evaluation of another make
        raise Refused(f"{weights} or its evaluation lacks {error}.") from error
    write_file(output, text.encode())
    say(f"card: {output}")


def read_evaluation(path: Path) -> dict[str, Any]:
    """The numbers of an evaluation; raises Refused where the file is missing or holds others."""
    with suppress(FileNotFoundError, ValueError):
        results = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(results, dict) and results.get("format") == FORMAT:
            return results
    source = "the metrics.json of a report of `python -m training evaluate`"
    raise Refused(f"{path} is missing, or not an evaluation of this version. Put {source} there.")


def model_card(weights: Path, classifier: Classifier, results: Mapping[str, Any]) -> str:
    """The card of these weights, in Markdown. classifier: what loading them gives. Raises Refused
    where the evaluation is of other weights."""
    model = results["model"]
    if model["version"] != classifier.version:
        raise Refused(
            f"The evaluation is of {model['name']}, version {model['version']}; {weights.name} has "
            f"version {classifier.version}. Evaluate these weights."
        )
    facts = classifier.metadata
    return render(
        "card.md",
        classifier=classifier,
        weights=weights.name,
        megabytes=weights.stat().st_size / 1e6,
        architecture=summary(classifier.layers),
        parameters=sum(value.size for value in parameters(classifier.layers).values()),
        house_cat=classifier.class_names == CLASS_NAMES,
        facts=facts,
        sets=facts.get("data", {}),
        provenance=PROVENANCE,
        teachers=TEACHERS,
        training=facts.get("training", {}),
        **_recipe(classifier),
        wrong={key: worst_kinds(results, key) for key in ("false", "missed")},
        **for_templates(results),
    )


def _recipe(classifier: Classifier) -> dict[str, dict[str, Any]]:
    """The settings of its training that differ from the defaults of `fit`, and all defaults. What
    is no setting, such as the command, is left out."""
    facts = classifier.metadata
    settings = asdict(FINE_TUNING if facts.get("started_from") else SCRATCH)
    without = dict.fromkeys(("teacher", "learning_rate", "iterations"), "")
    defaults = json.loads(json.dumps(settings)) | without
    used: Mapping[str, Any] = facts.get("training", {})
    recipe = {n: it for n, it in used.items() if it not in (None, defaults.get(n, it))}
    return {"recipe": recipe, "defaults": defaults}
