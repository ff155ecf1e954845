"""Command line of the training room: `python -m training COMMAND …`."""

import signal

# Until the command handles Ctrl-C, while the imports below take their time, it ends this quietly.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

try:
    import typer

    from model.archive import text
    from training import Refused
    from training.card import run_card
    from training.course import ITERATIONS, LEARNING_RATE
    from training.data import CLASS_NAMES
    from training.evaluation import run_evaluate
    from training.fit import FINE_TUNING, SCRATCH, fit
    from training.held_back import Data
    from training.logistic import run_course
except ModuleNotFoundError as error:
    sys.exit(f"error: training needs {error.name}, which is not installed: `make setup`.")

INTERRUPTED, TERMINATED = 130, 143  # exit statuses, as shells count them: 128 + the signal
# Options that take one value or more, as in `--validation a.zip b.zip`; click takes one each.
SEVERAL = ("--test", "--validation", "--set")

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


def say(line: str) -> None:
    """Print a line at once, also one with a name that is no valid Unicode."""
    print(text(line), flush=True)


# --- options ------------------------------------------------------------------------------------


def _option(name: str, metavar: str | None, text: str, **more: Any) -> Any:
    return typer.Option(name, metavar=metavar, help=text, **more)


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """`epochs=5 shares.web=1.4 views=six` as TOML has them, the last one of a name; a word needs no
    quotation marks."""
    lines = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            tomllib.loads(text)
            lines[name] = text
        except tomllib.TOMLDecodeError:
            lines[name] = f"{name} = {json.dumps(value)}" if value else text
    try:
        return tomllib.loads("\n".join(lines.values()))
    except tomllib.TOMLDecodeError:
        message = f"{' '.join(texts)!r} is not NAME=VALUE, such as mixup=0.2 shares.web=1.4"
        raise typer.BadParameter(message, param_hint="--set") from None


def _data(
    data: list[Path], classes: tuple[str, str], skip_bad: bool, validation: list[Path] | None = None
) -> Data:
    if classes[0] == classes[1]:
        raise Refused(f"--classes needs two different names, not {classes[0]!r} twice")
    return Data(data, validation or (), classes, skip_bad)


Pictures = Annotated[
    list[Path],
    typer.Argument(metavar="DATA", help="HDF5, folder or zip of pictures; several are joined"),
]
Weights = Annotated[Path, typer.Argument(metavar="WEIGHTS", help="weights file")]
Output = Annotated[Path, _option("--output", "FILE", "weights file to write; its report beside it")]
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
    _option("--skip-bad", None, "leave out what cannot be used; else it is listed, nothing done"),
]


# --- the commands -------------------------------------------------------------------------------


@commands.command("fit")
def _fit(
    data: Pictures,
    validation: Annotated[
        list[Path] | None,
        _option("--validation", "DATA...", "pictures to measure with, in place of a fifth of DATA"),
    ] = None,
    start: Annotated[Path | None, _option("--from", "WEIGHTS", "fine-tune these weights")] = None,
    output: Output = Path("runs/model.safetensors"),
    name: Annotated[
        str | None, _option("--name", None, "of the model (default: that of the weights file)")
    ] = None,
    classes: Classes = CLASS_NAMES,
    skip_bad: SkipBad = False,
    resume: Annotated[bool, _option("--resume", None, "go on with the run that stopped")] = False,
    teacher: Annotated[
        Path | None, _option("--teacher", "FILE", "what a larger network says of each picture: NPZ")
    ] = None,
    config: Annotated[
        Path | None, _option("--config", "FILE", "settings, such as training/default.toml")
    ] = None,
    settings: Annotated[
        list[str] | None,
        _option("--set", "NAME=VALUE...", "settings, in place of those in the file: mixup=0.2"),
    ] = None,
    epochs: Annotated[
        int | None,
        _option(
            "--epochs",
            "N",
            "times that all pictures are drawn "
            f"(default: {SCRATCH.epochs}; with --from {FINE_TUNING.epochs})",
        ),
    ] = None,
    threads: Annotated[
        int | None, _option("--threads", "N", "that share a batch (default: one a processor)")
    ] = None,
    seed: Annotated[
        int | None, _option("--seed", "N", f"of all that is random (default: {SCRATCH.seed})")
    ] = None,
) -> Work:
    """Train the network on your own pictures.

    From random weights (thousands of pictures of each class), or from weights that there are
    (--from; a few hundred will do). Writes the weights file, which the service can load, and a
    folder with the report: open its report.html in a browser.

    Ctrl-C stops it and keeps the best epoch so far; --resume, given the same arguments, goes on
    where it, or a crash, stopped.

    \b
    examples:
      python -m training fit mycamera/ --from model/cat.safetensors --output runs/mine.safetensors
          fine-tuning: mycamera/cat/*.jpg and mycamera/non-cat/*.jpg, some hundred in all
      python -m training fit photos.zip more/ --validation apart.zip --epochs 20
          from scratch, on a zip and a folder, measured on pictures of another zip
      python -m training fit photos.zip --set mixup=0.2 shares.web=1.4 stages=[32,64]
          with settings of its own; training/default.toml names them all
      CAT_WEIGHTS=runs/mine.safetensors python -m app
          the service with the result
    """
    options = {"epochs": epochs, "threads": threads, "seed": seed}
    given = _settings(settings or ()) | {key: n for key, n in options.items() if n is not None}
    return lambda: fit(
        _data(data, classes, skip_bad, validation),
        output,
        say,
        start=start,
        teacher=teacher,
        config=config,
        given=given,
        name=name,
        resumed=resume,
    )


@commands.command("evaluate")
def _evaluate(
    weights: Weights,
    data: Pictures,
    test: Annotated[
        bool, _option("--test", None, "measure on the test split, and log that it was opened")
    ] = False,
    record: Annotated[
        bool, _option("--record", None, "keep the metrics in the weights file")
    ] = False,
    skip_bad: SkipBad = False,
    output: Annotated[
        Path | None, _option("--output", "FOLDER", "report to write (default: runs/WEIGHTS-SPLIT)")
    ] = None,
) -> Work:
    """Measure a trained classifier on labelled pictures.

    By source, with confidence intervals: how many answers are right, whether its probabilities can
    be believed, what it takes for the first class and what it misses, also in a quarter of the
    frame and in low light. Writes a folder with report.html and metrics.json.

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
        weights, data, say, test=test, keep=record, skip_bad=skip_bad, output=output
    )


@commands.command("card")
def _card(weights: Weights) -> Work:
    """Write the model card, MODEL_CARD.md beside the weights.

    What the weights file is for and what not, what it was trained on, how it was trained, how good
    it is and where it fails. All of it comes from the weights file, and from evaluation.json beside
    it: the metrics.json of `evaluate`.

    \b
    example:
      python -m training evaluate model/cat.safetensors data/ --test --output runs/cat-test
      cp runs/cat-test/metrics.json model/evaluation.json
      python -m training card model/cat.safetensors
    """
    return lambda: run_card(weights, say)


@commands.command("course")
def _course(
    data: Pictures,
    test: Annotated[
        list[Path] | None,
        _option("--test", "DATA...", "pictures to measure with that training does not see"),
    ] = None,
    learning_rate: Annotated[
        float, _option("--learning-rate", "RATE", "size of the steps", min=0)
    ] = LEARNING_RATE,
    iterations: Annotated[int, _option("--iterations", "N", "number of steps", min=1)] = ITERATIONS,
    output: Output = Path("runs/logistic.safetensors"),
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
        learning_rate=learning_rate,
        iterations=iterations,
    )


# --- running one --------------------------------------------------------------------------------


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C: temporary files are removed on the way out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, or another with one message that says what was wrong."""
    if sys.stderr is None:  # closed; what is printed there would go to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - it stays open
    for stream in (sys.stdout, sys.stderr):  # names that the terminal cannot show are escaped
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    given = _one_value_each(sys.argv[1:] if arguments is None else arguments)
    try:
        work = commands(args=given, prog_name="python -m training", standalone_mode=False)
        if callable(work):  # not after --help
            work()
    except typer.TyperException as error:
        error.show()  # type: ignore[attr-defined] # it is a UsageError, which typer keeps private
        return 2
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


def _one_value_each(given: Sequence[str]) -> list[str]:
    """`--validation a b` as `--validation a --validation b`, for the options in SEVERAL."""
    result: list[str] = []
    several, values = "", 0
    for word in given:
        if word.startswith("-"):
            several, values = (word if word in SEVERAL else ""), 0
        elif several:
            if values:
                result.append(several)
            values += 1
        result.append(word)
    return result


def _fail(message: str, status: int = 1) -> int:
    print(text(message), file=sys.stderr)
    return status


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
