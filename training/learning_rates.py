"""`python -m training learning-rates`: the course's comparison of learning rates on one plot.

Source: deeplearning.ai, Neural Networks and Deep Learning, week 2, programming assignment
"Logistic Regression with a Neural Network mindset", "Choice of learning rate".
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training import report
from training.command import (
    Commands,
    Say,
    add_command,
    add_data_arguments,
    add_test_argument,
    costs_shown,
    positive,
    positive_int,
    read_data,
)
from training.course import THRESHOLD, CourseConfig, describe_data, rows, train
from training.gradient_descent import RECORD_EVERY, predict
from training.metrics import confusion

COURSE_RATES = (0.01, 0.001, 0.0001)
ITERATIONS = 1500

_HELP = """
Train logistic regression once for each learning rate, from zeros, and draw the cost curves on one
plot. Writes a folder with the report (open its report.html in a browser) and no weights file.
"""
_EXAMPLE = """
example:
  python -m training learning-rates train_catvnoncat.h5 --test test_catvnoncat.h5
      the course's comparison: 0.01, 0.001 and 0.0001, 1,500 iterations each
"""


def run_learning_rates(arguments: argparse.Namespace, say: Say) -> None:
    """Train with each rate and write the report."""
    folder: Path = arguments.output
    report.check_folder(folder)
    sets = {"training": read_data(arguments, arguments.data, say)}
    if arguments.test:
        sets["test"] = read_data(arguments, arguments.test, say, both_classes=False)
    inputs = {name: rows(pictures.pictures) for name, pictures in sets.items()}
    curves: dict[float, list[float]] = {}
    accuracies: dict[float, dict[str, float]] = {}
    for rate in dict.fromkeys(arguments.rates):
        config = CourseConfig(rate, arguments.iterations)
        with costs_shown(config.iterations, f"learning rate {rate:g}", say) as progress:
            layers, curves[rate] = train(
                inputs["training"], sets["training"].labels, config, progress
            )
        accuracies[rate] = {
            name: confusion(pictures.labels, predict(layers, inputs[name]), THRESHOLD).accuracy
            for name, pictures in sets.items()
        }
    files = {"training": arguments.data, "test": arguments.test}
    facts = {
        "iterations": arguments.iterations,
        "data": {name: describe_data(files[name], pictures) for name, pictures in sets.items()},
        "costs": {
            "every": RECORD_EVERY,
            "values": {f"{rate:g}": costs for rate, costs in curves.items()},
        },
        "accuracy": {f"{rate:g}": shares for rate, shares in accuracies.items()},
    }
    table = _table(curves, accuracies)
    with report.write_folder(folder, _report(curves, table, facts)):
        pass
    for row in table:
        say("  ".join(cell.rjust(17) for cell in row))
    say(f"report: {folder / report.PAGE}")


def _table(
    curves: Mapping[float, Sequence[float]], accuracies: Mapping[float, Mapping[str, float]]
) -> list[list[str]]:
    sets = list(next(iter(accuracies.values())))
    return [
        ["learning rate", "last cost", *(f"{name} accuracy" for name in sets)],
        *(
            [f"{rate:g}", f"{costs[-1]:.6f}", *map(report.percent, accuracies[rate].values())]
            for rate, costs in curves.items()
        ),
    ]


def _report(
    curves: Mapping[float, Sequence[float]],
    table: Sequence[Sequence[str]],
    facts: Mapping[str, Any],
) -> dict[str, bytes]:
    """The files of the report, by name."""
    plot = report.png(report.learning_rate_curves(curves, RECORD_EVERY))
    page = report.page(
        "Logistic regression at different learning rates",
        f"{facts['iterations']:,} iterations each, from zeros, on "
        f"{', '.join(facts['data']['training']['files'])}.",
        [
            report.Section(
                "Cost",
                "Too small a rate wastes iterations. Too large a one overshoots: the cost jumps "
                "up and down, and may never settle. A lower cost is not yet a better classifier: "
                "compare the accuracy on pictures that training did not see.",
                pictures={"cost against iterations, a curve for each rate": plot},
                table=table,
            )
        ],
    )
    return {
        report.PAGE: page.encode(),
        "metrics.json": report.json_text(facts).encode(),
        "learning-rates.png": plot,
    }


def add_commands(commands: Commands) -> None:
    """Add `learning-rates` to the command line."""
    parser = add_command(
        commands,
        "learning-rates",
        summary="compare learning rates on one plot",
        description=_HELP,
        example=_EXAMPLE,
        run=run_learning_rates,
    )
    add_data_arguments(parser)
    add_test_argument(parser)
    parser.add_argument(
        "--rates",
        nargs="+",
        type=positive,
        default=COURSE_RATES,
        metavar="RATE",
        help=f"learning rates (default: {' '.join(f'{rate:g}' for rate in COURSE_RATES)})",
    )
    parser.add_argument(
        "--iterations",
        type=positive_int,
        default=ITERATIONS,
        metavar="N",
        help="number of steps for each (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/learning-rates"),
        metavar="FOLDER",
        help="report to write, in place of an earlier one (default: %(default)s)",
    )
