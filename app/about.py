"""The facts of a weights file, in one form for all weights files."""

import base64
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.artifact import describe, summary
from model.classifier import Classifier
from model.explanation import method, picture_of_weights
from model.network import parameters
from model.preprocessing import png

ALL = "all"  # the source of metrics that are not given by source


def about(classifier: Classifier) -> dict[str, Any]:
    """The values of `app.routes.ModelAnswer`; without what has another form than ours."""
    facts = classifier.metadata
    weights = picture_of_weights(classifier.layers, classifier.preprocessing.side)
    explained = method(classifier.layers)
    metrics = _or_none(_metrics, facts) or {}
    rule = facts.get("threshold_rule")
    return {
        "name": classifier.name,
        "version": classifier.version,
        "classes": list(classifier.class_names),
        "threshold": classifier.threshold,
        "threshold_rule": rule if isinstance(rule, str) else None,
        "bands": [{"from": start, "words": words} for start, words in classifier.bands],
        "preprocessing": classifier.preprocessing.to_json(),
        "views": classifier.views.to_json(),
        "network": {
            "summary": summary(classifier.layers),
            "parameters": sum(value.size for value in parameters(classifier.layers).values()),
            "layers": describe(classifier.layers),
        },
        "explanation": {"name": explained.name, "description": explained.description},
        **{name: _mapping(facts.get(name)) for name in ("data", "training", "calibration")},
        "metrics": metrics,
        "limits": [
            *_limits(classifier),
            *(_or_none(lambda each: [*_measured_limits(classifier, each)], metrics) or []),
        ],
        "learning_curve": _or_none(_curve, facts),
        "weights_png": None if weights is None else png_text(weights),
    }


def png_text(pixels: NDArray[np.uint8]) -> str:
    """A picture (height, width, 3) as a PNG in base64."""
    return base64.b64encode(png(pixels)).decode()


def _or_none(make: Callable[[Any], Any], values: Any) -> Any:
    try:
        return make(values)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def _metrics(facts: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Split → source → metric, also where an artifact has its metrics right below the split."""
    found = {}
    for split, metrics in facts["metrics"].items():
        found[split] = {ALL: metrics} if "pictures" in metrics else metrics
    return found


def _limits(classifier: Classifier) -> list[str]:
    first, other = classifier.class_names
    side = classifier.preprocessing.side
    return [
        f'It only answers "{first} or {other}?". It sees {side}×{side} pixels, so it misses small '
        "objects.",
        "It makes more mistakes on other cameras, places and kinds of pictures than it was "
        "measured on.",
    ]


def _measured_limits(classifier: Classifier, metrics: Mapping[str, Any]) -> Iterator[str]:
    """A sentence a source: how much of each class gets the wrong answer."""
    first = classifier.class_names[0]
    split = "test" if "test" in metrics else "validation"
    for source, measured in metrics.get(split, {}).items():
        where = f"{split} pictures" if source == ALL else source
        at = measured.get("threshold")
        if at not in (None, classifier.threshold):  # the service was given another
            where += f", with a threshold of {at:.1%}"
        missed, found, taken, left = (
            measured.get(name, 0)
            for name in ("false_negative", "true_positive", "false_positive", "true_negative")
        )
        cats = missed + found
        words = [f"{missed / cats:.0%} of the {first} pictures are missed"] if cats else []
        if taken + left:
            others = "others" if cats else f"pictures without a {first}"
            words.append(f"{taken / (taken + left):.0%} of the {others} are called {first}")
        if words:
            yield f"{where}: {'; '.join(words)}.".replace("%", " %")


def _curve(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The course's costs, or the validation metrics of epochs."""
    series: dict[str, list[tuple[float, float]]] = {}
    if "costs" in facts:
        every, costs = facts["costs"]["every"], facts["costs"]["values"]
        series["cost"] = [(float(i * every), float(cost)) for i, cost in enumerate(costs)]
    else:
        for row in facts["learning_curve"]:
            shown = {f"AUC {name}": value for name, value in row.get("roc_auc", {}).items()}
            shown["balanced accuracy"] = row.get("balanced_accuracy")
            for name, value in shown.items():
                if value is not None:
                    series.setdefault(name, []).append((float(row["epoch"]), float(value)))
    series = {name: line for name, line in series.items() if len(line) > 1}
    x = "iteration" if "costs" in facts else "epoch"
    return {"x": x, "series": series} if series else None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
