"""What an artifact says of itself, in one shape whoever trained it and however."""

import base64
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.artifact import describe
from model.classifier import Classifier
from model.explanation import method, picture_of_weights
from model.network import Composite, Layer, parameters

ALL = "all"  # the source of metrics that are not given by source


def about(classifier: Classifier) -> dict[str, Any]:
    """The values of `app.answers.ModelAnswer`. An artifact's metadata may be any JSON."""
    facts = _finite(classifier.metadata)
    measured = _metrics(_mapping(facts.get("metrics")))
    side = classifier.preprocessing.side
    weights = picture_of_weights(classifier.layers, side)
    rule = facts.get("threshold_rule")
    explained = method(classifier.layers)
    return {
        "name": classifier.name,
        "version": classifier.version,
        "classes": list(classifier.class_names),
        "threshold": classifier.threshold,
        "threshold_rule": rule if isinstance(rule, str) else None,
        "bands": [{"from": band.start, "words": band.words} for band in classifier.bands],
        "preprocessing": classifier.preprocessing.to_json(),
        "views": classifier.views.to_json(),
        "network": {
            "summary": summary(classifier.layers),
            "parameters": sum(value.size for value in parameters(classifier.layers).values()),
            "layers": describe(classifier.layers),
        },
        "explanation": {"name": explained.name, "description": explained.description},
        "data": _mapping(facts.get("data")),
        "training": _mapping(facts.get("training")),
        "metrics": measured,
        "calibration": _mapping(facts.get("calibration")),
        "limits": [*_limits(classifier, measured), *_texts(facts.get("limits"))],
        "learning_curve": _curve(facts),
        "weights_png": None if weights is None else base64.b64encode(png(weights)).decode(),
    }


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture (height, width, 3) as a PNG."""
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def summary(layers: Sequence[Layer]) -> str:
    """The layers that have weights, counted: "10 convolutions, 1 linear"."""
    counts: dict[str, int] = {}
    _count(layers, counts)
    if counts == {"linear": 1} and len(layers) == 1:
        return "Logistic regression on the pixels"
    counted = (
        f"{n} {kind}{'s' if n > 1 and kind != 'linear' else ''}" for kind, n in counts.items()
    )
    return ", ".join(counted)


def _count(layers: Sequence[Layer], counts: dict[str, int]) -> None:
    for layer in layers:
        if isinstance(layer, Composite):
            _count(layer.layers, counts)
        elif layer.parameters:
            counts[layer.kind] = counts.get(layer.kind, 0) + 1


def _metrics(measured: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Split → source → metric, also where an artifact has its metrics right below the split."""
    found = {}
    for split, metrics in measured.items():
        by_source = {name: each for name, each in _mapping(metrics).items() if _by_source(each)}
        if by_source or metrics:
            found[str(split)] = by_source or {ALL: _mapping(metrics)}
    return found


def _by_source(value: Any) -> bool:
    return isinstance(value, dict) and "pictures" in value


def _limits(
    classifier: Classifier, measured: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[str]:
    """What follows from its kind and from its measured metrics."""
    first, other = classifier.class_names
    side = classifier.preprocessing.side
    limits = [
        f"It knows one question, {first} or {other}, and sees {side}×{side} pixels: what is small"
        " in the picture is lost.",
        "Pictures of other kinds, cameras and places than those it was measured on are harder.",
    ]
    split = next((name for name in ("test", "validation") if name in measured), None)
    for source, metrics in measured.get(split or "", {}).items():
        missed = _share(metrics, "false_negative", "true_positive")
        taken = _share(metrics, "false_positive", "true_negative")
        where = f"Of the {split} pictures" + ("" if source == ALL else f" from {source}")
        at = metrics.get("threshold")
        # The artifact's own: the service may have been given another.
        if _is_number(at) and 0 < at < 1 and at != classifier.threshold:
            where += f", with a threshold of {at:.1%},"
        words = [
            *([f"misses {missed:.0%} of {first}"] if missed is not None else []),
            *([f"answers {first} to {taken:.0%} of {other}"] if taken is not None else []),
        ]
        if words:
            limits.append(f"{where} it {' and '.join(words)}.".replace("%", " %"))
    return limits


def _share(metrics: Mapping[str, Any], wrong: str, right: str) -> float | None:
    counts = [metrics.get(name) for name in (wrong, right)]
    if not all(isinstance(count, int) and count >= 0 for count in counts) or not any(counts):
        return None
    return float(counts[0] / (counts[0] + counts[1]))  # type: ignore[operator]


def _curve(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The course's costs, or the losses and metrics of epochs."""
    series: dict[str, list[tuple[float, float]]] = {}
    costs = _mapping(facts.get("costs"))
    every, values = costs.get("every"), costs.get("values")
    if _is_number(every) and isinstance(values, list):
        series["cost"] = [(i * every, v) for i, v in enumerate(values) if _is_number(v)]
        x = "iteration"
    else:
        x = "epoch"
        rows = facts.get("learning_curve")
        for row in rows if isinstance(rows, list) else []:
            _add_epoch(series, _mapping(row))
    series = {name: line for name, line in series.items() if len(line) > 1}
    return {"x": x, "series": series} if series else None


def _add_epoch(series: dict[str, list[tuple[float, float]]], row: Mapping[str, Any]) -> None:
    epoch = row.get("epoch")
    values = {"loss": row.get("loss")}
    values |= {f"AUC {name}": value for name, value in _mapping(row.get("roc_auc")).items()}
    for name, value in values.items():
        if _is_number(epoch) and _is_number(value):
            series.setdefault(name, []).append((epoch, value))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _finite(value: Any) -> Any:
    """The JSON value without infinities and NaN, which JSON itself does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
