"""`python -m training course`: logistic regression, trained as the course does it.

Source: deeplearning.ai, Neural Networks and Deep Learning, week 2, programming assignment
"Logistic Regression with a Neural Network mindset".
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model import statistics
from model.classifier import Classifier
from model.network import Array, Layer, parameters
from model.preprocessing import to_vector
from training import report
from training.command import (
    Commands,
    Say,
    add_command,
    add_data_arguments,
    add_output_arguments,
    add_test_argument,
    costs_shown,
    outputs,
    positive,
    positive_int,
    read_data,
    save,
    seed,
)
from training.data import PictureSet, Pixels
from training.golden import choose_golden
from training.gradient_descent import (
    RECORD_EVERY,
    every_core,
    gradient_descent,
    initialize_with_zeros,
    predict,
)
from training.kinds import count_sources
from training.metrics import (
    accuracy_at,
    bootstrap_interval,
    confusion,
    reliability_table,
    summary,
)

THRESHOLD = 0.5
# Beyond this, pictures stay bytes and each pass scales them anew: slower, a quarter of the memory.
_MAX_FLOAT_BYTES = 2**30

_COURSE_HELP = """
Train logistic regression on pictures as the course does: from zeros, gradient descent over all
pictures in every iteration. Writes the weights file, which the service can load, and a folder
with the report: open its report.html in a browser.
"""
_COURSE_EXAMPLE = """
example:
  python -m training course train_catvnoncat.h5 --test test_catvnoncat.h5
      2,000 iterations at learning rate 0.005: the course's run, a second of work

data:
  an HDF5 like the course's, or a folder or zip with the pictures in cat/ and non-cat/
"""


@dataclass(frozen=True)
class CourseConfig:
    """What a run depends on beside its pictures; stored in the weights file."""

    learning_rate: float = 0.005
    iterations: int = 2000
    seed: int = 1  # of the golden picture and the confidence interval: training starts from zeros


# --- training -----------------------------------------------------------------------------------


def rows(pictures: Pixels) -> Array:
    """What `propagate` takes as X: floats where they fit into memory, else the pictures."""
    floats = pictures.size * np.dtype(np.float32).itemsize
    return to_vector(pictures) if floats <= _MAX_FLOAT_BYTES else pictures


def train(
    X: Array, y: Array, config: CourseConfig, progress: Callable[[int, float], None] | None = None
) -> tuple[list[Layer], list[float]]:
    """Logistic regression's trained layers and its cost at every 100th iteration: the assignment's
    `model`. X, y: as for `propagate`."""
    layers = initialize_with_zeros(X[0].size)
    with every_core():
        costs = gradient_descent(
            layers,
            X,
            y,
            learning_rate=config.learning_rate,
            iterations=config.iterations,
            progress=progress,
        )
    return layers, costs


@dataclass(frozen=True)
class Evaluated:
    """A set of pictures and what the trained network says of them."""

    pictures: PictureSet
    probabilities: Array  # (m,)
    metrics: dict[str, Any]  # JSON values


def evaluate(layers: Sequence[Layer], pictures: PictureSet, rng: np.random.Generator) -> Evaluated:
    """The answers for labelled pictures and the numbers that sum them up."""
    y, p = pictures.labels, predict(layers, rows(pictures.pictures))
    interval = bootstrap_interval(accuracy_at(THRESHOLD), y, p, rng)  # of 95 %
    return Evaluated(pictures, p, summary(y, p, THRESHOLD) | {"accuracy_interval": interval})


# --- python -m training course ------------------------------------------------------------------


def run_course(arguments: argparse.Namespace, say: Say) -> None:
    """Train, measure, write the weights file and the report."""
    output, folder = outputs(arguments)
    config = CourseConfig(arguments.learning_rate, arguments.iterations, arguments.seed)
    sets = {"training": read_data(arguments, arguments.data, say)}
    if arguments.test:
        sets["test"] = read_data(arguments, arguments.test, say, both_classes=False)
    trained_on = sets["training"]
    with costs_shown(config.iterations, "training", say) as progress:
        layers, costs = train(rows(trained_on.pictures), trained_on.labels, config, progress)
    rng = np.random.default_rng(config.seed)
    evaluated = {name: evaluate(layers, pictures, rng) for name, pictures in sets.items()}
    files = {"training": arguments.data, "test": arguments.test}
    facts = {
        "training": {"command": "course", **asdict(config)},
        "seed": config.seed,
        "data": {name: describe_data(files[name], pictures) for name, pictures in sets.items()},
        "metrics": {name: each.metrics for name, each in evaluated.items()},
        "costs": {"every": RECORD_EVERY, "values": costs},
        statistics.KEY: statistics.Usual.of(trained_on.pictures).to_json(),
    }
    classifier = _classifier(layers, trained_on.class_names, facts, rng)
    with report.write_folder(folder, _course_report(layers, costs, evaluated, facts)):
        saved = save(classifier, output)
    for name, each in evaluated.items():
        say(_accuracy(name, each))
    say(f"weights: {output} (version {saved.version})")
    say(f"report:  {folder / report.PAGE}")


def describe_data(paths: Sequence[Path], pictures: PictureSet) -> dict[str, Any]:
    """What a weights file says of its data: names of files, never where they lay."""
    return {
        "files": [path.name for path in paths],
        "pictures": len(pictures),
        "classes": {name: pictures.count(name) for name in pictures.class_names},
        "sources": count_sources(pictures),
        "left_out": len(pictures.skipped),
        "sha256": pictures.fingerprint,
    }


def _classifier(
    layers: Sequence[Layer],
    class_names: tuple[str, str],
    facts: dict[str, Any],
    rng: np.random.Generator,
) -> Classifier:
    classifier = Classifier("logistic", class_names, THRESHOLD, layers, metadata=facts)
    return replace(classifier, golden=choose_golden(classifier, rng))


def _accuracy(name: str, each: Evaluated) -> str:
    low, high = each.metrics["accuracy_interval"]
    return (
        f"{name}: {report.percent(each.metrics['accuracy'])} of {len(each.pictures):,} pictures "
        f"right (95 % interval {report.percent(low, 0)} to {report.percent(high, 0)})"
    )


def _course_report(
    layers: Sequence[Layer],
    costs: Sequence[float],
    evaluated: Mapping[str, Evaluated],
    facts: Mapping[str, Any],
) -> dict[str, bytes]:
    """The files of the report, by name."""
    last = list(evaluated.values())[-1]
    labels, side = last.pictures.labels, last.pictures.pictures.shape[1]
    class_names = last.pictures.class_names
    pictures = {
        "cost.png": report.cost_curve(costs, RECORD_EVERY),
        "confusion.png": report.confusion_matrices(
            {
                name: confusion(each.pictures.labels, each.probabilities, THRESHOLD)
                for name, each in evaluated.items()
            },
            class_names,
        ),
        "reliability.png": report.reliability_diagram(
            reliability_table(labels, last.probabilities), class_names[0]
        ),
        "weights.png": report.weights_picture(
            parameters(layers)["0.weights"], side, class_names[0]
        ),
    }
    drawn = {name: report.png(figure) for name, figure in pictures.items()}
    return {
        report.PAGE: _course_page(evaluated, facts, drawn).encode(),
        "metrics.json": report.json_text(facts).encode(),
        **drawn,
    }


def _course_page(
    evaluated: Mapping[str, Evaluated], facts: Mapping[str, Any], drawn: Mapping[str, bytes]
) -> str:
    config = facts["training"]
    files = {name: ", ".join(data["files"]) for name, data in facts["data"].items()}
    last = list(evaluated)[-1]
    return report.page(
        "Logistic regression: "
        + ", ".join(
            f"{report.percent(each.metrics['accuracy'])} of the {name} pictures right"
            for name, each in evaluated.items()
        ),
        f"Trained on {files['training']} from zeros with gradient descent over all pictures: "
        f"{config['iterations']:,} iterations at learning rate {config['learning_rate']:g}.",
        [
            report.Section(
                "Cost",
                "The mean loss of the training pictures before each iteration. It falls steadily "
                "where the learning rate suits; it jumps where the rate is too large.",
                pictures={"cost against iterations": drawn["cost.png"]},
            ),
            report.Section(
                "Right and wrong answers",
                f"Called {evaluated[last].pictures.class_names[0]} from a probability of "
                f"{THRESHOLD} on.",
                pictures={"confusion matrices": drawn["confusion.png"]},
            ),
            report.Section(
                "Measured",
                "\n".join(_accuracy(name, each) + "." for name, each in evaluated.items()),
                table=report.metrics_table({n: each.metrics for n, each in evaluated.items()}),
            ),
            report.Section(
                "Can the probabilities be believed?",
                f"Where a probability of 0.8 is given, 8 of 10 should be right: the {last} "
                "pictures.",
                pictures={"reliability diagram": drawn["reliability.png"]},
            ),
            report.Section(
                "What the network looks at",
                "Logistic regression multiplies each pixel by one weight. Laid out as a picture, "
                "the weights show which parts of the frame count, and in which colour.",
                pictures={"the weights as a picture": drawn["weights.png"]},
            ),
        ],
    )


def add_commands(commands: Commands) -> None:
    """Add `course` to the command line."""
    defaults = CourseConfig()
    parser = add_command(
        commands,
        "course",
        summary="train logistic regression as the course does",
        description=_COURSE_HELP,
        example=_COURSE_EXAMPLE,
        run=run_course,
    )
    add_data_arguments(parser)
    add_test_argument(parser)
    parser.add_argument(
        "--learning-rate",
        type=positive,
        default=defaults.learning_rate,
        metavar="RATE",
        help="size of the steps (default: %(default)s)",
    )
    parser.add_argument(
        "--iterations",
        type=positive_int,
        default=defaults.iterations,
        metavar="N",
        help="number of steps (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=seed,
        default=defaults.seed,
        metavar="N",
        help="of what is drawn at random: the picture that the weights file is checked with, and "
        "the confidence intervals; training itself starts from zeros (default: %(default)s)",
    )
    add_output_arguments(parser, Path("runs/logistic.safetensors"))
