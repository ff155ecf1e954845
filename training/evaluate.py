"""`python -m training evaluate`: what a classifier is worth, in a report and in numbers.

The test split is for the numbers of a model that is finished: whoever looks at it while choosing
chooses by it. So it is read only where `--test` asks for it, and every reading is logged.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from model.artifact import pack, read_file, unpack, write_file
from model.classifier import BadArtifact, Classifier
from training import report
from training.command import (
    Commands,
    Say,
    add_command,
    check_output,
    progress_bar,
    read_data,
    seed,
)
from training.data import PictureSet, read_pictures
from training.errors import BadArguments, Refused
from training.evaluation import Evaluation, Subject, evaluate, sample
from training.evaluation_report import METRICS, number, page
from training.robustness import CHANGES

METRICS_FILE = "metrics.json"
LOG = Path(__file__).with_name("EXPERIMENTS.md")
# The last part of the log, so that a row can be added at its end.
LOG_HEAD = """\
## Openings of the test split

Written by `python -m training evaluate --test`, each time. By source: ROC AUC, balanced accuracy,
expected calibration error; of rooms, the share called a cat.

| date | model | version | data | by source |
|---|---|---|---|---|"""
HEADLINE = ("roc_auc", "balanced_accuracy", "expected_calibration_error")
ROBUSTNESS_PICTURES = 500  # of each source

_SPLIT_WORDS = {
    "test": "test",
    "val": "validation",
    "validation": "validation",
    "train": "training",
    "training": "training",
}
_HELP = """
Measure a trained classifier on labelled pictures: by source, with confidence intervals, its
calibration, what it takes for the first class and what it misses, how it bears worse pictures, how
fast it is. Writes a folder with report.html and metrics.json.

A folder of data that holds *-val.zip and *-test.zip stands for its *-val.zip, or with --test for
its *-test.zip. The test split is for a finished model: each time it is opened, a line is added to
training/EXPERIMENTS.md.

The report shows some of the pictures; mind whose they are before it is published.
"""
_EXAMPLE = """
example:
  python -m training evaluate model/logistic.safetensors mydata/
      mydata/ holds cat/ and non-cat/, or mydata-val.zip
"""


def run_evaluate(arguments: argparse.Namespace, say: Say) -> None:
    """Measure; log if it is the test split; record if asked; write the report."""
    subjects = [_load(path) for path in (arguments.weights, *arguments.baseline)]
    _check_alike(subjects)
    classifier = subjects[0].classifier
    files = data_files(arguments.data, test=arguments.test)
    split = split_of(files, test=arguments.test)
    if arguments.record and split == "training":
        raise BadArguments("--record keeps numbers of unseen pictures; these were trained on.")
    output: Path = arguments.output or Path("runs") / f"{arguments.weights.stem}-{split}"
    report.check_folder(output)
    if arguments.test:
        check_output(arguments.log)
    arguments.classes = classifier.class_names
    spec = classifier.preprocessing
    pictures = read_data(
        arguments, files, say, both_classes=False, side=spec.side, preprocessing=spec
    )
    originals = _originals(arguments, files, pictures, classifier)
    steps = len(subjects) + (0 if originals is None else 1 + len(CHANGES))
    with _steps(steps, say) as progress:
        evaluation = evaluate(
            subjects,
            pictures,
            split=split,
            files=files,
            originals=originals,
            seed=arguments.seed,
            progress=progress,
        )
    _publish(arguments, evaluation, classifier, originals, output, say)


def _publish(
    arguments: argparse.Namespace,
    evaluation: Evaluation,
    classifier: Classifier,
    originals: PictureSet | None,
    output: Path,
    say: Say,
) -> None:
    results = evaluation.results
    if arguments.test:  # before anyone can have seen a number
        log_opening(arguments.log, results)
        say(f"logged:   {arguments.log}")
    written = {
        report.PAGE: page(evaluation, classifier, originals).encode(),
        METRICS_FILE: report.json_text(results).encode(),
    }
    with report.write_folder(output, written):
        if arguments.record:
            record(arguments.weights, results)
    for line in headlines(results):
        say(line)
    if arguments.record:
        say(f"recorded: {arguments.weights}")
    say(f"numbers:  {output / METRICS_FILE}")
    say(f"report:   {output / report.PAGE}")


@contextmanager
def _steps(total: int, say: Say) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, elsewhere a line for each step; yields what is called as one begins."""
    with progress_bar("measuring", "step", total) as bar:

        def begin(step: str) -> None:
            if bar.disable:
                say(step)
            bar.set_postfix_str(step, refresh=False)
            bar.update()

        yield begin


# --- which classifiers, which pictures ----------------------------------------------------------


def _load(path: Path) -> Subject:
    try:
        return Subject(Classifier.load(path), path)
    except BadArtifact as error:
        raise Refused(str(error)) from error


def _check_alike(subjects: Sequence[Subject]) -> None:
    first, *others = subjects
    for other in others:
        if other.classifier.class_names != first.classifier.class_names:
            raise BadArguments(
                f"{other.path.name} answers {' or '.join(other.classifier.class_names)}, and "
                f"{first.path.name} {' or '.join(first.classifier.class_names)}: they cannot be "
                "compared on the same labels."
            )
        if other.classifier.preprocessing != first.classifier.preprocessing:
            raise BadArguments(
                f"{other.path.name} reads pictures in another way than {first.path.name}; evaluate "
                "them one after the other."
            )


def data_files(paths: Sequence[Path], *, test: bool) -> list[Path]:
    """The paths, a folder that holds *-val.zip or *-test.zip replaced by those of the split."""
    wanted = "*-test.zip" if test else "*-val.zip"
    files: list[Path] = []
    for path in paths:
        splits = {pattern: sorted(path.glob(pattern)) for pattern in ("*-val.zip", "*-test.zip")}
        if path.is_dir() and any(splits.values()):
            if not splits[wanted]:
                raise BadArguments(f"{path} holds no {wanted}.")
            files += splits[wanted]
        else:
            files.append(path)
    return files


def split_of(files: Sequence[Path], *, test: bool) -> str:
    """The split that these files are, as far as their names say it; "validation" where they do
    not. Raises BadArguments for test files without --test, and for splits that are mixed."""
    splits = {file: _split_word(file) for file in files}
    for file, split in splits.items():
        if split == "test" and not test:
            raise BadArguments(
                f"{file.name} is of the test split, which is for the numbers of a finished model. "
                "Use validation pictures, or open it with --test, which is logged."
            )
        if split not in ("test", None) and test:
            raise BadArguments(
                f"{file.name} is of the {split} split; --test measures on test pictures alone."
            )
    if test:
        return "test"
    if "training" not in splits.values():
        return "validation"
    if set(splits.values()) != {"training"}:
        names = ", ".join(file.name for file, split in splits.items() if split == "training")
        raise BadArguments(f"{names}: training pictures; measure them apart from the others.")
    return "training"


def _split_word(file: Path) -> str | None:
    words = re.split(r"[-_. ]", file.stem.lower())
    return _SPLIT_WORDS.get(words[0]) or _SPLIT_WORDS.get(words[-1])


def _originals(
    arguments: argparse.Namespace,
    files: Sequence[Path],
    pictures: PictureSet,
    classifier: Classifier,
) -> PictureSet | None:
    """Some of the pictures, up to twice as large as the network's: what changes precede."""
    if not arguments.robustness:
        return None
    spec = classifier.preprocessing
    return read_pictures(
        files,
        2 * spec.side,
        classifier.class_names,
        smallest=spec.side,
        names=sample(pictures, arguments.robustness, arguments.seed),
        preprocessing=spec,
        both_classes=False,
        skip_bad=arguments.skip_bad,
    )


# --- what is kept -------------------------------------------------------------------------------


def headlines(results: Mapping[str, Any]) -> list[str]:
    """A line for each source: what the report begins with."""
    first = results["class_names"][0]
    return [f"{name + ':':9} {line}" for name, line in _by_source(results, first).items()]


def _by_source(results: Mapping[str, Any], first: str) -> dict[str, str]:
    lines = {}
    for name, source in results["models"][0]["sources"].items():
        if source["roc_auc"] is None:
            lines[name] = f"called {first} {number(source['called_first'], 'called_first')}"
        else:
            lines[name] = ", ".join(
                f"{METRICS[metric]} {number(source[metric], metric)}" for metric in HEADLINE
            )
    return lines


def log_opening(log: Path, results: Mapping[str, Any]) -> None:
    """Add a row to the table of openings, which is at the end of the log, whole or not at all."""
    model, *baselines = results["models"]
    figures = "; ".join(
        f"{name} {', '.join(number(source[metric], metric) for metric in HEADLINE)}"
        if source["roc_auc"] is not None
        else f"{name} {number(source['called_first'], 'called_first')}"
        for name, source in model["sources"].items()
    )
    beside = f" (beside {', '.join(each['file'] for each in baselines)})" if baselines else ""
    files = ", ".join(results["data"]["files"])
    cells = (results["date"], model["name"] + beside, f"`{model['version']}`", files, figures)
    row = "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
    text = log.read_text(encoding="utf-8") if log.exists() else "# Experiments\n"
    if LOG_HEAD not in text:
        text = f"{text.rstrip()}\n\n{LOG_HEAD}"
    write_file(log, f"{text.rstrip()}\n{row}\n".encode())


def record(weights: Path, results: Mapping[str, Any]) -> None:
    """Keep the metrics by source in the weights file, under the split that they were measured on;
    everything else in it stays to the bit."""
    values, tensors = unpack(read_file(weights))
    kept = {
        name: {key: value for key, value in source.items() if key != "reliability"}
        for name, source in results["models"][0]["sources"].items()
    }
    values["metrics"] = {**values.get("metrics", {}), results["split"]: kept}
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    exact = all(np.array_equal(halves[name], tensors[name]) for name in tensors)
    write_file(weights, pack(values, halves if exact else dict(tensors)))


def add_commands(commands: Commands) -> None:
    """Add `evaluate` to the command line."""
    parser = add_command(
        commands,
        "evaluate",
        summary="measure a trained classifier",
        description=_HELP,
        example=_EXAMPLE,
        run=run_evaluate,
    )
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="weights file to measure")
    parser.add_argument(
        "data",
        nargs="+",
        type=Path,
        metavar="DATA",
        help="HDF5, folder or zip of pictures, or a folder of *-val.zip; several are joined",
    )
    parser.add_argument(
        "--test", action="store_true", help="measure on the test split, and log that it was opened"
    )
    parser.add_argument(
        "--baseline",
        nargs="+",
        type=Path,
        default=[],
        metavar="WEIGHTS",
        help="weights files to measure beside it, on the same pictures",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="keep the metrics in the weights file too",
    )
    parser.add_argument(
        "--robustness",
        type=seed,
        default=ROBUSTNESS_PICTURES,
        metavar="N",
        help="how many pictures of each source are measured under each of "
        f"{len(CHANGES)} changes; 0 leaves that out (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=seed,
        default=1,
        metavar="N",
        help="of the intervals and of what is drawn for robustness (default: %(default)s)",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out pictures that cannot be read; without it they are listed and nothing is "
        "done",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="report to write, in place of an earlier one (default: runs/ and the name of the "
        "weights and of the split)",
    )
    parser.add_argument(
        "--log",
        type=Path,
        default=LOG,
        metavar="FILE",
        help="where opening the test split is logged (default: training/EXPERIMENTS.md)",
    )
