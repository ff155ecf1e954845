"""`course`: the lesson of `training.course`, run on files of pictures."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model.classifier import INPUT_STATISTICS, Classifier, InputStatistics
from model.explanation import picture_of_weights
from model.preprocessing import png, to_vector
from training.course import ITERATIONS, LEARNING_RATE, RECORD_EVERY, THRESHOLD, predict, train
from training.data import read_pictures
from training.examples import Data
from training.golden import choose_golden
from training.metrics import reliability_table, summary, wilson_interval
from training.report import PAGE, Say, outputs, percent, render, write_report

SEED = 1  # of the golden pictures; training starts from zeros


def run_course(
    data: Data,
    output: Path,
    say: Say,
    *,
    learning_rate: float = LEARNING_RATE,
    iterations: int = ITERATIONS,
) -> None:
    """Train logistic regression as the course does, measure it on the training and the test
    pictures, write the weights file and the report. Raises Refused and OSError."""
    folder = outputs(output)
    files = {"training": data.training, "test": data.validation}
    read = partial(read_pictures, class_names=data.class_names, skip_bad=data.skip_bad, say=say)
    training = read(data.training)
    sets = {"training": training}
    if data.validation:
        sets["test"] = read(data.validation, both_classes=False)

    def progress(iteration: int, cost: float) -> None:
        if iteration % RECORD_EVERY == 0:
            say(f"training: iteration {iteration:,}: cost {cost:.6f}")

    rows = {name: to_vector(each.pictures) for name, each in sets.items()}
    layers, costs = train(rows["training"], training.labels, learning_rate, iterations, progress)
    answers = {name: predict(layers, X) for name, X in rows.items()}
    metrics = {name: summary(each.labels, answers[name], THRESHOLD) for name, each in sets.items()}
    settings = {"command": "course", "learning_rate": learning_rate, "iterations": iterations}
    facts: dict[str, Any] = {
        "training": settings,
        "data": {name: each.describe(files[name]) for name, each in sets.items()},
        "metrics": metrics,
        "costs": {"every": RECORD_EVERY, "values": costs},
        INPUT_STATISTICS: InputStatistics.of(training.pictures).to_json(),
    }
    classifier = Classifier("logistic", training.class_names, THRESHOLD, layers, metadata=facts)
    weights = picture_of_weights(layers, classifier.preprocessing.side)
    assert weights is not None  # it is one linear layer
    golden = choose_golden(classifier, np.random.default_rng(SEED))
    accuracies = [_accuracy(name, each) for name, each in metrics.items()]
    last, p = list(answers.items())[-1]
    page = render(
        "course.html",
        facts=facts,
        class_names=classifier.class_names,
        threshold=THRESHOLD,
        last=last,
        accuracies=accuracies,
        costs=[(i * RECORD_EVERY, cost) for i, cost in enumerate(costs)],
        bins=reliability_table(sets[last].labels, p),
        weights=png(weights),
    )
    write_report(folder, page, facts)
    saved = replace(classifier, golden=golden).save(output)
    for line in accuracies:
        say(line)
    say(f"weights: {output} (version {saved.version})")
    say(f"report:  {folder / PAGE}")


def _accuracy(name: str, metrics: dict[str, Any]) -> str:
    accuracy, count = metrics["accuracy"], metrics["pictures"]
    low, high = wilson_interval(accuracy, count)
    return (
        f"{name}: {percent(accuracy)} of {count:,} pictures right "
        f"(95 % interval {percent(low)} to {percent(high)})"
    )
