"""`course` and `learning-rates`: the lesson of `training.course`, run on files of pictures.

Source: deeplearning.ai, Neural Networks and Deep Learning, week 2, programming assignment
"Logistic Regression with a Neural Network mindset", and its "Choice of learning rate".
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from model.classifier import INPUT_STATISTICS, Classifier, InputStatistics
from model.network import Array, parameters
from training.course import (
    COMPARED_ITERATIONS,
    COMPARED_RATES,
    ITERATIONS,
    LEARNING_RATE,
    RECORD_EVERY,
    THRESHOLD,
    Progress,
    predict,
    train,
)
from training.data import PictureSet, as_png
from training.fit import describe_data
from training.golden import choose_golden
from training.held_back import Data, read_aloud
from training.metrics import accuracy_at, bootstrap_interval, confusion, reliability_table, summary
from training.report import (
    PAGE,
    Say,
    check_folder,
    outputs,
    percent,
    progress_bar,
    render,
    save,
    write_report,
)


def run_course(
    data: Data,
    test: Sequence[Path],
    output: Path,
    say: Say,
    *,
    report: Path | None = None,
    learning_rate: float = LEARNING_RATE,
    iterations: int = ITERATIONS,
    seed: int = 1,
) -> None:
    """Train logistic regression as the course does, measure it on the training and the test
    pictures, write the weights file and the report.

    seed: of the golden picture and the confidence intervals; training starts from zeros. Raises
    Refused and OSError.
    """
    folder = outputs(output, report)
    sets = _read(data, test, say)
    training = sets["training"]
    with _costs_shown(iterations, "training", say) as progress:
        trained = train(training.pictures, training.labels, learning_rate, iterations, progress)
    rng = np.random.default_rng(seed)
    measured = {name: _measure(trained.layers, each, rng) for name, each in sets.items()}
    files = {"training": data.training, "test": test}
    facts: dict[str, Any] = {
        "training": {
            "command": "course",
            "learning_rate": learning_rate,
            "iterations": iterations,
            "seed": seed,
        },
        "seed": seed,
        "data": {name: describe_data(files[name], each) for name, each in sets.items()},
        "metrics": {name: each.metrics for name, each in measured.items()},
        "costs": {"every": RECORD_EVERY, "values": trained.costs},
        INPUT_STATISTICS: InputStatistics.of(training.pictures).to_json(),
    }
    classifier = Classifier(
        "logistic", training.class_names, THRESHOLD, trained.layers, metadata=facts
    )
    classifier = replace(classifier, golden=choose_golden(classifier, rng))
    write_report(folder, _course_page(classifier, measured), facts)
    saved = save(classifier, output)
    for name, each in measured.items():
        say(_accuracy(name, each))
    say(f"weights: {output} (version {saved.version})")
    say(f"report:  {folder / PAGE}")


def _read(data: Data, test: Sequence[Path], say: Say) -> dict[str, PictureSet]:
    sets = {"training": read_aloud(data.training, data, say)}
    if test:
        sets["test"] = read_aloud(test, data, say, both_classes=False)
    return sets


@contextmanager
def _costs_shown(iterations: int, label: str, say: Say) -> Iterator[Progress]:
    """Show the cost while gradient descent runs: a bar on a terminal, elsewhere a line for each
    point of the cost curve."""
    with progress_bar(label, "iteration", iterations) as bar:

        def progress(iteration: int, cost: float) -> None:
            if bar.disable:
                if iteration % RECORD_EVERY == 0:
                    say(f"{label}: iteration {iteration:,}: cost {cost:.6f}")
            else:
                bar.set_postfix_str(f"cost {cost:.6f}", refresh=False)
                bar.update()

        yield progress


@dataclass(frozen=True)
class _Measured:
    """Labels and answers of a set of pictures, (m,) each, and the numbers that sum them up."""

    y: Array
    p: Array
    metrics: dict[str, Any]


def _measure(layers: Sequence[Any], pictures: PictureSet, rng: np.random.Generator) -> _Measured:
    y, p = pictures.labels, predict(layers, pictures.pictures)
    interval = bootstrap_interval(accuracy_at(THRESHOLD), y, p, rng)  # of 95 %
    return _Measured(y, p, summary(y, p, THRESHOLD) | {"accuracy_interval": interval})


def _accuracy(name: str, each: _Measured) -> str:
    low, high = each.metrics["accuracy_interval"]
    return (
        f"{name}: {percent(each.metrics['accuracy'])} of {len(each.y):,} pictures "
        f"right (95 % interval {percent(low, 0)} to {percent(high, 0)})"
    )


def _course_page(classifier: Classifier, measured: dict[str, _Measured]) -> str:
    facts = classifier.metadata
    last = list(measured)[-1]
    costs = _points(facts["costs"]["values"])
    return render(
        "course.html",
        facts=facts,
        class_names=classifier.class_names,
        threshold=THRESHOLD,
        last=last,
        accuracies=[_accuracy(name, each) for name, each in measured.items()],
        costs=costs,
        highest=_axis_end(cost for _, cost in costs),
        bins=[asdict(bin) for bin in reliability_table(measured[last].y, measured[last].p)],
        weights=_weights_pictures(classifier),
    )


def _points(costs: Sequence[float]) -> list[tuple[int, float]]:
    return [(i * RECORD_EVERY, cost) for i, cost in enumerate(costs)]


def _axis_end(values: Iterable[float]) -> float:
    return ceil(max(values) * 5) / 5


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


def run_learning_rates(
    data: Data,
    test: Sequence[Path],
    folder: Path,
    say: Say,
    *,
    rates: Sequence[float] = COMPARED_RATES,
    iterations: int = COMPARED_ITERATIONS,
) -> None:
    """Train once with each rate, from zeros, and write the report with all cost curves. Raises
    Refused and OSError."""
    check_folder(folder)
    sets = _read(data, test, say)
    training = sets["training"]
    costs: dict[str, list[float]] = {}
    accuracies: dict[str, dict[str, float]] = {}
    for rate in dict.fromkeys(rates):
        with _costs_shown(iterations, f"learning rate {rate:g}", say) as progress:
            trained = train(training.pictures, training.labels, rate, iterations, progress)
        costs[f"{rate:g}"] = trained.costs
        accuracies[f"{rate:g}"] = {
            name: confusion(each.labels, predict(trained.layers, each.pictures)).accuracy
            for name, each in sets.items()
        }
    files = {"training": data.training, "test": test}
    facts = {
        "iterations": iterations,
        "data": {name: describe_data(files[name], each) for name, each in sets.items()},
        "costs": {"every": RECORD_EVERY, "values": costs},
        "accuracy": accuracies,
    }
    table = [
        ["learning rate", "last cost", *(f"{name} accuracy" for name in sets)],
        *(
            [rate, f"{costs[rate][-1]:.6f}", *map(percent, shares.values())]
            for rate, shares in accuracies.items()
        ),
    ]
    page = render(
        "learning_rates.html",
        facts=facts,
        table=table,
        costs={rate: _points(each) for rate, each in costs.items()},
        highest=_axis_end(cost for each in costs.values() for cost in each),
    )
    write_report(folder, page, facts)
    for row in table:
        say("  ".join(cell.rjust(17) for cell in row))
    say(f"report: {folder / PAGE}")
