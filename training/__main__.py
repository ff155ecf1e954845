"""Command line of the training room: `python -m training COMMAND …`."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeAlias

try:
    import typer

    from training import Refused
    from training.course import COMPARED_ITERATIONS, COMPARED_RATES, ITERATIONS, LEARNING_RATE
    from training.data import CLASS_NAMES
    from training.evaluation import LOG, ROBUSTNESS_PICTURES
    from training.evaluation_report import CARD, EVALUATION, run_card, run_evaluate
    from training.fit import FINE_TUNING, SCRATCH, Settings, fit
    from training.held_back import Data
    from training.logistic import run_course, run_learning_rates
    from training.robustness import CHANGES
except ModuleNotFoundError as error:
    sys.exit(f"error: training needs {error.name}, which is not installed: `make setup`.")

INTERRUPTED, TERMINATED = 130, 143  # exit statuses, as shells count them: 128 + the signal
# Options that take one value or more, as in `--validation a.zip b.zip`; click takes one each.
SEVERAL = ("--test", "--validation", "--rates", "--shares", "--stages", "--baseline")

Work = Callable[[], None]  # what a command is to do, once its arguments are read

commands = typer.Typer(
    name="python -m training",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Train a classifier on your own pictures and look at how good it is.

Data is the course's HDF5, or a folder or zip with the pictures of each class in a folder of its
name (cat/ and non-cat/). A trained classifier is one file, which the service loads:

\b
  python -m training course train_catvnoncat.h5 --test test_catvnoncat.h5
  CAT_WEIGHTS=runs/logistic.safetensors python -m app

`python -m training COMMAND --help` explains each command and shows an example.
""",
)


# --- options ------------------------------------------------------------------------------------


def _option(name: str, metavar: str | None, text: str, **more: Any) -> Any:
    return typer.Option(name, metavar=metavar, help=text, **more)


def _flag(name: str, text: str) -> Any:
    return typer.Option(name, help=text)


def _setting(name: str, text: str) -> Any:
    """An option that overrides a setting of `fit`; `read_settings` checks its value."""
    scratch, tuned = getattr(SCRATCH, name), getattr(FINE_TUNING, name)
    default = f"{scratch:g}" if scratch == tuned else f"{scratch:g}; with --from {tuned:g}"
    default = "one a processor" if name == "threads" else default
    return _option(f"--{name.replace('_', '-')}", "N", f"{text} (default: {default})")


def _positive(value: float) -> float:
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value} is not a number above 0")
    return value


def _each_positive(values: list[float]) -> list[float]:
    return [_positive(value) for value in values]


Pictures = Annotated[
    list[Path],
    typer.Argument(metavar="DATA", help="HDF5, folder or zip of pictures; several are joined"),
]
Weights = Annotated[Path, typer.Argument(metavar="WEIGHTS", help="weights file")]
Test = Annotated[
    list[Path] | None,
    _option("--test", "DATA...", "pictures to measure with that training does not see"),
]
Output = Annotated[Path, _option("--output", "FILE", "weights file to write")]
Report = Annotated[
    Path | None,
    _option("--report", "FOLDER", "report to write (default: beside the weights, with -report)"),
]
Classes = Annotated[
    tuple[str, str],
    _option(
        "--classes",
        "FIRST SECOND",
        "names of the classes and of their folders; the probability is that of the first",
    ),
]
SkipBad = Annotated[
    bool,
    _flag("--skip-bad", "leave out what cannot be used; without it that is listed, nothing done"),
]
Seed = Annotated[int, _option("--seed", "N", "of what is drawn at random", min=0)]
Iterations = Annotated[int, _option("--iterations", "N", "number of steps", min=1)]
Number: TypeAlias = float | None
Count: TypeAlias = int | None
SETTINGS = {each.name for each in fields(Settings)}

say = partial(print, flush=True)


# --- the commands -------------------------------------------------------------------------------


@commands.command("fit")
def _fit(
    data: Pictures,
    validation: Annotated[
        list[Path] | None,
        _option("--validation", "DATA...", "pictures to measure with, in place of a fifth of DATA"),
    ] = None,
    start: Annotated[Path | None, _option("--from", "WEIGHTS", "fine-tune these weights")] = None,
    config: Annotated[
        Path | None, _option("--config", "FILE", "settings, such as training/default.toml")
    ] = None,
    output: Output = Path("runs/model.safetensors"),
    report: Report = None,
    name: Annotated[
        str | None, _option("--name", None, "of the model (default: that of the weights file)")
    ] = None,
    classes: Classes = CLASS_NAMES,
    skip_bad: SkipBad = False,
    resume: Annotated[bool, _flag("--resume", "go on with the run that was stopped")] = False,
    teacher: Annotated[
        Path | None,
        _option(
            "--teacher",
            "FILE",
            "what a pretrained network says of every training picture: an NPZ of name "
            "(cat/picture.jpg), logit and, if it has them, groups and group_probability",
        ),
    ] = None,
    teacher_share: Annotated[Number, _setting("teacher_share", "of the teacher in labels")] = None,
    shares: Annotated[
        list[str] | None,
        _option(
            "--shares",
            "SOURCE=N...",
            "sources (first words of the file names) to draw more or less often than the others, "
            "1 being as often: web=1.4 tiny=0.6",
        ),
    ] = None,
    lookalike_share: Annotated[
        Number, _setting("lookalike_share", "of look-alikes in what is drawn of the second class")
    ] = None,
    stages: Annotated[
        list[int] | None,
        _option(
            "--stages",
            "CHANNELS...",
            "from scratch: channels of the network's stages, each at half the resolution of the "
            f"one before (default: {' '.join(map(str, SCRATCH.stages))})",
        ),
    ] = None,
    epochs: Annotated[Count, _setting("epochs", "times that all pictures are drawn")] = None,
    batch: Annotated[Count, _setting("batch", "pictures a step learns from")] = None,
    threads: Annotated[Count, _setting("threads", "shards of a batch, side by side")] = None,
    max_lr: Annotated[Number, _setting("max_lr", "the largest learning rate")] = None,
    weight_decay: Annotated[Number, _setting("weight_decay", "pull of weights to zero")] = None,
    augmentation_strength: Annotated[
        Number, _setting("augmentation_strength", "of the pictures' variations: 0 for none")
    ] = None,
    mixup: Annotated[Number, _setting("mixup", "share of pictures mixed with another")] = None,
    seed: Annotated[Count, _setting("seed", "of everything that is drawn at random")] = None,
) -> Work:
    """Train the network on your own pictures.

    From random weights (thousands of pictures of each class), or from weights that there are
    (--from; a few hundred will do). Writes the weights file, which the service can load, and a
    folder with the report: open its report.html in a browser.

    Ctrl-C stops it and keeps the best epoch so far; --resume, given the same arguments, goes on
    where it, or a crash, stopped. --config takes every setting, also those without an option here.

    \b
    examples:
      python -m training fit mycamera/ --from model/cat.safetensors --output runs/mine.safetensors
          fine-tuning: mycamera/cat/*.jpg and mycamera/non-cat/*.jpg, some hundred in all
      python -m training fit photos.zip more/ --validation apart.zip --epochs 20
          from scratch, on a zip and a folder, measured on pictures of another zip
      CAT_WEIGHTS=runs/mine.safetensors python -m app
          the service with the result
    """
    given = {name: value for name, value in locals().items() if name in SETTINGS}
    given |= {"shares": dict(map(_source_share, shares or ())) or None, "stages": stages or None}
    return lambda: fit(
        _data(data, classes, skip_bad, validation),
        output,
        say,
        start=start,
        teacher=teacher,
        config=config,
        given=given,
        report=report,
        name=name,
        resumed=resume,
    )


def _data(
    data: list[Path], classes: tuple[str, str], skip_bad: bool, validation: list[Path] | None = None
) -> Data:
    if classes[0] == classes[1]:
        raise Refused(f"--classes needs two different names, not {classes[0]!r} twice")
    return Data(data, validation or (), classes, skip_bad)


def _source_share(text: str) -> tuple[str, float]:
    source, _, number = text.rpartition("=")
    try:
        return source, _positive(float(number if source else ""))
    except ValueError:
        message = f"{text!r} is not SOURCE=N, N a number above 0"
        raise typer.BadParameter(message, param_hint="--shares") from None


@commands.command("evaluate")
def _evaluate(
    weights: Weights,
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA",
            help="HDF5, folder or zip of pictures, or a folder of *-val.zip; several are joined",
        ),
    ],
    test: Annotated[
        bool, _flag("--test", "measure on the test split, and log that it was opened")
    ] = False,
    baseline: Annotated[
        list[Path] | None,
        _option("--baseline", "WEIGHTS...", "to measure beside it, on the same pictures"),
    ] = None,
    record: Annotated[bool, _flag("--record", "keep the metrics in the weights file")] = False,
    robustness: Annotated[
        int,
        _option(
            "--robustness",
            "N",
            f"pictures of each source to measure under each of {len(CHANGES)} changes; 0: none",
            min=0,
        ),
    ] = ROBUSTNESS_PICTURES,
    seed: Seed = 1,
    skip_bad: SkipBad = False,
    output: Annotated[
        Path | None, _option("--output", "FOLDER", "report to write (default: runs/WEIGHTS-SPLIT)")
    ] = None,
    log: Annotated[
        Path, _option("--log", "FILE", "where opening the test split is logged", show_default=False)
    ] = LOG,
) -> Work:
    """Measure a trained classifier on labelled pictures.

    By source, with confidence intervals, its calibration, what it takes for the first class and
    what it misses, how it bears worse pictures, how fast it is. Writes a folder with report.html
    and metrics.json.

    A folder of data that holds *-val.zip and *-test.zip stands for its *-val.zip, or with --test
    for its *-test.zip. The test split is for a finished model: each time it is opened, a line is
    added to training/EXPERIMENTS.md.

    The report shows some of the pictures; mind whose they are before it is published.

    \b
    example:
      python -m training evaluate model/logistic.safetensors mydata/
          mydata/ holds cat/ and non-cat/, or mydata-val.zip
    """
    return lambda: run_evaluate(
        weights,
        data,
        say,
        test=test,
        baselines=baseline or (),
        keep=record,
        robustness_pictures=robustness,
        seed=seed,
        skip_bad=skip_bad,
        output=output,
        log=log,
    )


@commands.command("card")
def _card(
    weights: Weights,
    evaluation: Annotated[
        Path | None,
        _option("--evaluation", "FILE", f"its metrics.json (default: {EVALUATION} beside it)"),
    ] = None,
    output: Annotated[
        Path | None, _option("--output", "FILE", f"card to write (default: {CARD} beside it)")
    ] = None,
) -> Work:
    """Write the model card.

    What the weights file is for and what not, what it was trained on, how it was trained, how good
    it is and where it fails. All of it comes from the weights file and from the metrics.json of
    `evaluate`.

    \b
    example:
      python -m training evaluate model/cat.safetensors data/ --test --output runs/cat-test
      cp runs/cat-test/metrics.json model/evaluation.json
      python -m training card model/cat.safetensors
    """
    return lambda: run_card(weights, evaluation, output, say)


@commands.command("course")
def _course(
    data: Pictures,
    test: Test = None,
    learning_rate: Annotated[
        float, _option("--learning-rate", "RATE", "size of the steps", callback=_positive)
    ] = LEARNING_RATE,
    iterations: Iterations = ITERATIONS,
    seed: Seed = 1,
    output: Output = Path("runs/logistic.safetensors"),
    report: Report = None,
    classes: Classes = CLASS_NAMES,
    skip_bad: SkipBad = False,
) -> Work:
    """Train logistic regression as the course does.

    From zeros, gradient descent over all pictures in every iteration. Writes the weights file,
    which the service can load, and a folder with the report: open its report.html in a browser.

    \b
    example:
      python -m training course train_catvnoncat.h5 --test test_catvnoncat.h5
          2,000 iterations at learning rate 0.005: the course's run, a second of work
    """
    return lambda: run_course(
        _data(data, classes, skip_bad),
        test or (),
        output,
        say,
        report=report,
        learning_rate=learning_rate,
        iterations=iterations,
        seed=seed,
    )


@commands.command("learning-rates")
def _learning_rates(
    data: Pictures,
    test: Test = None,
    rates: Annotated[
        list[float], _option("--rates", "RATE...", "learning rates", callback=_each_positive)
    ] = list(COMPARED_RATES),  # noqa: B006 - typer copies it
    iterations: Iterations = COMPARED_ITERATIONS,
    output: Annotated[Path, _option("--output", "FOLDER", "report to write")] = Path(
        "runs/learning-rates"
    ),
    classes: Classes = CLASS_NAMES,
    skip_bad: SkipBad = False,
) -> Work:
    """Compare learning rates on one plot.

    Trains logistic regression once for each learning rate, from zeros, and draws the cost curves.
    Writes a folder with the report (open its report.html in a browser) and no weights file.

    \b
    example:
      python -m training learning-rates train_catvnoncat.h5 --test test_catvnoncat.h5
          the course's comparison: 0.01, 0.001 and 0.0001, 1,500 iterations each
    """
    return lambda: run_learning_rates(
        _data(data, classes, skip_bad), test or (), output, say, rates=rates, iterations=iterations
    )


# --- running one --------------------------------------------------------------------------------


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C: temporary files are removed on the way out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, or another with one message that says what was wrong."""
    for stream in (sys.stdout, sys.stderr):  # names that the terminal cannot show are escaped
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if arguments is None else arguments
    try:
        work = _read_arguments(given)
        if isinstance(work, int):
            return work
        work()
    except KeyboardInterrupt as stopped:
        status = TERMINATED if isinstance(stopped, Terminated) else INTERRUPTED
        return _fail("Stopped; no file was left half-written.", status)
    except Refused as error:
        return _fail(f"error: {error}")
    except MemoryError as error:
        return _fail(f"error: out of memory: {error}. Use fewer pictures.")
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"error: {where}{error.strerror or error}.")
    return 0


def _read_arguments(given: Sequence[str]) -> Work | int:
    """What is to be done; the exit status where nothing is, after help or a message."""
    try:
        arguments = _one_value_each(given)
        work = commands(args=arguments, prog_name="python -m training", standalone_mode=False)
    except typer.TyperException as error:
        error.show()  # type: ignore[attr-defined] # it is a UsageError, which typer keeps private
        return 2
    return work if callable(work) else 0


def _one_value_each(given: Sequence[str]) -> list[str]:
    """`--validation a b` as `--validation a --validation b`, for the options in SEVERAL."""
    result: list[str] = []
    several, values = "", 0
    for word in given:
        if word.startswith("-") and word[1:2] not in "0123456789.":
            several, values = (word if word in SEVERAL else ""), 0
        elif several:
            if values:
                result.append(several)
            values += 1
        result.append(word)
    return result


def _fail(message: str, status: int = 1) -> int:
    print(message, file=sys.stderr)
    return status


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
