"""`course`: the lesson of `training.course`, run on files of pictures."""

from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from model.classifier import INPUT_STATISTICS, Classifier, InputStatistics
from model.network import Layer, parameters
from training.course import ITERATIONS, LEARNING_RATE, RECORD_EVERY, THRESHOLD, predict, train
from training.data import PictureSet, as_png, read_pictures
from training.examples import Data
from training.golden import choose_golden
from training.metrics import reliability_table, summary, wilson_interval
from training.report import PAGE, Say, outputs, percent, progress_bar, render, write_report

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
    layers, costs = _train(training, learning_rate, iterations, say)
    answers = {name: predict(layers, each.pictures) for name, each in sets.items()}
    metrics = {name: summary(each.labels, answers[name], THRESHOLD) for name, each in sets.items()}
    settings = {"command": "course", "learning_rate": learning_rate, "iterations": iterations}
    facts: dict[str, Any] = {
        "training": settings,
        "seed": SEED,
        "data": {name: each.describe(files[name]) for name, each in sets.items()},
        "metrics": metrics,
        "costs": {"every": RECORD_EVERY, "values": costs},
        INPUT_STATISTICS: InputStatistics.of(training.pictures).to_json(),
    }
    classifier = Classifier("logistic", training.class_names, THRESHOLD, layers, metadata=facts)
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
        highest=ceil(max(costs) * 5) / 5,
        bins=reliability_table(sets[last].labels, p),
        weights=_weights_pictures(classifier),
    )
    write_report(folder, page, facts)
    saved = replace(classifier, golden=golden).save(output)
    for line in accuracies:
        say(line)
    say(f"weights: {output} (version {saved.version})")
    say(f"report:  {folder / PAGE}")


def _train(
    data: PictureSet, learning_rate: float, iterations: int, say: Say
) -> tuple[list[Layer], list[float]]:
    """`train`, with the cost shown: on a terminal by a bar, elsewhere by a line for each point of
    the cost curve."""
    with progress_bar("training", "iteration", iterations) as bar:

        def progress(iteration: int, cost: float) -> None:
            if not bar.disable:
                bar.set_postfix_str(f"cost {cost:.6f}", refresh=False)
                bar.update()
            elif iteration % RECORD_EVERY == 0:
                say(f"training: iteration {iteration:,}: cost {cost:.6f}")

        return train(data.pictures, data.labels, learning_rate, iterations, progress)


def _accuracy(name: str, metrics: dict[str, Any]) -> str:
    accuracy, count = metrics["accuracy"], metrics["pictures"]
    low, high = wilson_interval(accuracy, count)
    return (
        f"{name}: {percent(accuracy)} of {count:,} pictures right "
        f"(95 % interval {percent(low)} to {percent(high)})"
    )


def _weights_pictures(classifier: Classifier) -> list[bytes]:
    """The weights as the picture that they multiply, in colour and summed over the colours: PNG."""
    side = classifier.preprocessing.side
    weights = parameters(classifier.layers)["0.weights"].reshape(side, side, 3)
    total = weights.sum(axis=2)
    # One weight far from the others would leave everything else grey.
    colour, grey = (each / (np.quantile(np.abs(each), 0.995) or 1) for each in (weights, total))
    red_or_blue = np.stack([1 + np.minimum(grey, 0), 1 - np.abs(grey), 1 - np.maximum(grey, 0)], -1)
    return [
        as_png(np.repeat(np.repeat((np.clip(each, 0, 1) * 255).astype(np.uint8), 5, 0), 5, 1))
        for each in (0.5 + colour / 2, red_or_blue)
    ]
