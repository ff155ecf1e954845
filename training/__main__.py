"""Command line of the training room: `python -m training COMMAND …`."""

import signal

# Until the command handles Ctrl-C, while the imports below take their time, it ends this quietly.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

try:
    import typer

    from model.archive import text
    from model.classifier import BadArtifact
    from training import Refused
    from training.card import run_card
    from training.course import ITERATIONS, LEARNING_RATE
    from training.data import CLASS_NAMES
    from training.evaluation import run_evaluate
    from training.examples import Data
    from training.fit import fit
    from training.logistic import run_course
    from training.loop import FINE_TUNING, SCRATCH
except ModuleNotFoundError as error:
    sys.exit(f"error: training needs {error.name}, which is not installed: `make setup`.")

# Options that take one value or more, as in `--validation a.zip b.zip`; click takes one each.
SEVERAL = ("--test", "--validation", "--set")

Work = Callable[[], None]  # what a command is to do, once its arguments are read

commands = typer.Typer(
    name="python -m training",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Train and evaluate a classifier on your own pictures.

DATA is the course's HDF5 file, or a folder or zip with one subfolder per class (cat/ and non-cat/).
A trained classifier is one file, which the service loads:

\b
  python -m training course train_catvnoncat.h5 --test test_catvnoncat.h5
  CAT_WEIGHTS=runs/logistic.safetensors python -m app

Run `python -m training COMMAND --help` for details and examples.
""",
)


def say(line: str) -> None:
    """Print a line at once, also one with a name that is no valid Unicode."""
    print(text(line), flush=True)


# --- options ------------------------------------------------------------------------------------


def _option(name: str, metavar: str | None, text: str, **more: Any) -> Any:
    return typer.Option(name, metavar=metavar, help=text, **more)


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """`epochs=5 shares.web=1.4 views=six` as TOML has them; a word needs no quotation marks."""
    quoted = [re.sub(r"=([A-Za-z.]\S*)$", r'="\1"', text) for text in texts]
    last = {text.partition("=")[0]: text for text in quoted}  # of each name
    try:
        return tomllib.loads("\n".join(last.values()))
    except tomllib.TOMLDecodeError:
        message = f"{' '.join(texts)!r} is not NAME=VALUE, such as epochs=20 shares.web=1.4"
        raise typer.BadParameter(message, param_hint="--set") from None


_DATA = "HDF5 file, folder or zip with pictures; several are combined"
Pictures = Annotated[list[Path], typer.Argument(metavar="DATA", help=_DATA)]
Weights = Annotated[Path, typer.Argument(metavar="WEIGHTS", help="weights file")]
_OUTPUT = "weights file to write; the report goes into a folder next to it"
Output = Annotated[Path, _option("--output", "FILE", _OUTPUT)]
_CLASSES = "names of the classes and their folders; the first is the class to detect"
Classes = Annotated[tuple[str, str], _option("--classes", "FIRST SECOND", _CLASSES)]
_SKIP_BAD = "skip unusable files (default: list them and stop)"
SkipBad = Annotated[bool, _option("--skip-bad", None, _SKIP_BAD)]
_EPOCHS = f"number of epochs (default: {SCRATCH.epochs}; with --from {FINE_TUNING.epochs})"
_SEED = f"seed of the random numbers (default: {SCRATCH.seed})"


# --- the commands -------------------------------------------------------------------------------


@commands.command("fit")
def _fit(
    data: Pictures,
    validation: Annotated[
        list[Path] | None,
        _option("--validation", "DATA...", "validation pictures (default: a fifth of DATA)"),
    ] = None,
    start: Annotated[Path | None, _option("--from", "WEIGHTS", "fine-tune these weights")] = None,
    output: Output = Path("runs/model.safetensors"),
    name: Annotated[
        str | None, _option("--name", None, "name of the model (default: that of the weights file)")
    ] = None,
    classes: Classes = CLASS_NAMES,
    skip_bad: SkipBad = False,
    resume: Annotated[bool, _option("--resume", None, "continue a stopped run")] = False,
    teacher: Annotated[
        Path | None,
        _option("--teacher", "FILE", "predictions of a larger network for each picture (NPZ)"),
    ] = None,
    config: Annotated[Path | None, _option("--config", "FILE", "TOML file with settings")] = None,
    settings: Annotated[
        list[str] | None,
        _option("--set", "NAME=VALUE...", "settings that override the file, such as epochs=20"),
    ] = None,
    epochs: Annotated[int | None, _option("--epochs", "N", _EPOCHS)] = None,
    threads: Annotated[
        int | None, _option("--threads", "N", "number of threads (default: one per core)")
    ] = None,
    seed: Annotated[int | None, _option("--seed", "N", _SEED)] = None,
) -> Work:
    """Train the network on your own pictures.

    Starts from random weights (needs thousands of pictures per class) or from existing weights
    (--from; a few hundred are enough). Writes a weights file for the service, and a folder with
    report.html.

    Ctrl-C stops training and saves the best epoch so far. To continue, also after a crash, run the
    same command with --resume.

    \b
    examples:
      python -m training fit mycamera/ --from model/cat.safetensors --output runs/mine.safetensors
          fine-tuning with a few hundred pictures in mycamera/cat/ and mycamera/non-cat/
      python -m training fit photos.zip more/ --validation apart.zip --epochs 20
          from scratch, with a zip and a folder, validated on another zip
      python -m training fit photos.zip --set max_lr=0.05 shares.web=1.4 stages=[32,64]
          with single settings; --config reads them from a file
      CAT_WEIGHTS=runs/mine.safetensors python -m app
          the service with the result
    """
    options = {"epochs": epochs, "threads": threads, "seed": seed}
    given = _settings(settings or ()) | {key: n for key, n in options.items() if n is not None}
    return lambda: fit(
        Data(data, validation or (), classes, skip_bad),
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
        bool, _option("--test", None, "measure on the test split; EXPERIMENTS.md records it")
    ] = False,
    record: Annotated[
        bool, _option("--record", None, "store the metrics in the weights file")
    ] = False,
    skip_bad: SkipBad = False,
    output: Annotated[
        Path | None,
        _option("--output", "FOLDER", "folder for the report (default: runs/WEIGHTS-SPLIT)"),
    ] = None,
) -> Work:
    """Measure a trained classifier on labelled pictures.

    Reports accuracy, calibration, false positives and misses by source, with confidence intervals.
    Repeats this with smaller and with darker pictures. Writes a folder with report.html and
    metrics.json.

    In a DATA folder with *-val.zip and *-test.zip, only *-val.zip is read; with --test, only
    *-test.zip. Use the test split only for a finished model: each use adds a line to
    training/EXPERIMENTS.md.

    The report contains some of the pictures. Check their rights before you publish it.

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
    """Write the model card, MODEL_CARD.md, next to the weights.

    The card describes intended use, training data, training, accuracy and failures. It is made from
    the weights file and from evaluation.json next to it (the metrics.json of `evaluate`).

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
        list[Path] | None, _option("--test", "DATA...", "test pictures, not used for training")
    ] = None,
    learning_rate: Annotated[
        float, _option("--learning-rate", "RATE", "learning rate", min=0)
    ] = LEARNING_RATE,
    iterations: Annotated[int, _option("--iterations", "N", "number of steps", min=1)] = ITERATIONS,
    output: Output = Path("runs/logistic.safetensors"),
    classes: Classes = CLASS_NAMES,
    skip_bad: SkipBad = False,
) -> Work:
    """Train logistic regression as the course does.

    Starts from zeros and uses all pictures in every iteration of gradient descent. Writes a weights
    file for the service, and a folder with report.html.

    \b
    example:
      python -m training course train_catvnoncat.h5 --test test_catvnoncat.h5
          the course's run: 2,000 iterations at learning rate 0.005; takes about a second
    """
    return lambda: run_course(
        Data(data, test or (), classes, skip_bad),
        output,
        say,
        learning_rate=learning_rate,
        iterations=iterations,
    )


# --- running one --------------------------------------------------------------------------------


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
        status = 128 + (stopped.args[0] if stopped.args else signal.SIGINT)  # as shells count
        return _fail("Stopped. All written files are complete.", status)
    except (Refused, BadArtifact) as error:
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
    several = ""
    for word in given:
        if word.startswith("-"):
            several = word if word in SEVERAL else ""
        elif several and result[-1] != several:
            result.append(several)
        result.append(word)
    return result


def _fail(message: str, status: int = 1) -> int:
    print(text(message), file=sys.stderr)
    return status


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)  # as Ctrl-C: temporary files are removed on the way out


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
