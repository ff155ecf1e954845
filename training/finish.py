"""From trained layers to a classifier that can be saved: calibrated, with a threshold, measured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from model import statistics
from model.architecture import build, describe
from model.classifier import Classifier
from model.network import Layer, parameters, sigmoid
from training.architecture import mirrored
from training.calibration import (
    FEW_RULE,
    THRESHOLD_RULE,
    calibrate,
    choose_threshold,
    enough,
    fold_calibration,
)
from training.golden import choose_golden
from training.validation import Validation, metrics_by_source


@dataclass(frozen=True)
class Words:
    """What a classifier is called, and what it answers."""

    name: str
    class_names: tuple[str, str]
    thresholds: tuple[float, ...] = (0.5,)  # to choose from where validation pictures are few


def finish(
    layers: Sequence[Layer],
    validation: Validation,
    words: Words,
    facts: Mapping[str, Any],
    *,
    seed: int = 1,
    threads: int = 2,
) -> Classifier:
    """The classifier that these layers (without batch normalisation) make, ready to be saved with
    `save(path, "float16")`. A convolutional network answers for the picture and its mirror image.

    Everything is fitted to and measured on the numbers as float16 holds them, which is how they
    are stored. facts: JSON values that go into the metadata beside what is found out here:
    calibration, threshold_rule, metrics, input_statistics.
    """
    stored = as_stored(mirrored(layers))
    z = validation.logits(stored, threads)
    calibration = calibrate(z, validation.labels, validation.sources)
    calibrated = as_stored(fold_calibration(stored, calibration))
    p = sigmoid(validation.logits(calibrated, threads))
    threshold = choose_threshold(validation.labels, p, validation.sources, words.thresholds)
    found = {
        "calibration": asdict(calibration),
        "threshold_rule": THRESHOLD_RULE if enough(validation.labels) else FEW_RULE,
        "metrics": {"validation": metrics_by_source(p, validation, threshold)},
        statistics.KEY: statistics.Usual.of(validation.squeezed()).to_json(),
    }
    classifier = Classifier(
        name=words.name,
        class_names=words.class_names,
        threshold=threshold,
        layers=calibrated,
        metadata={**facts, **found},
    )
    return replace(classifier, golden=choose_golden(classifier, np.random.default_rng(seed)))


def as_stored(layers: Sequence[Layer]) -> list[Layer]:
    """The layers with their numbers rounded to float16. Raises ValueError for numbers beyond it."""
    with np.errstate(over="ignore"):
        rounded = {name: v.astype(np.float16) for name, v in parameters(layers).items()}
    return build(describe(layers), rounded)
