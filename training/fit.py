"""`python -m training fit`: train the network on your own pictures."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.classifier import Classifier
from model.network import Layer, unmirrored
from training import checkpoint, report
from training.architecture import STAGES, mirrored
from training.calibration import Calibration
from training.checkpoint import Best, Run
from training.command import (
    Commands,
    Say,
    add_command,
    add_data_arguments,
    add_output_arguments,
    class_names,
    outputs,
    positive,
    positive_int,
    save,
    seed,
)
from training.comparison import Comparison, as_text, compare
from training.epochs import CHECKPOINT, TIMINGS, remove_progress, run_epochs, shown
from training.errors import BadArguments, Refused
from training.finish import Words, finish
from training.fit_report import fit_report
from training.loop import LoopConfig, Trainer, one_blas_thread
from training.task import FINE_TUNING, SCRATCH, Task, options, task_of
from training.validation import source_log_loss

_HELP = """
Train the convolutional network on pictures of your own: from random weights (thousands of pictures
of each class), or from weights that there are (--from; a few hundred will do). Pictures are held
back by themselves to measure with. Writes the weights file, which the service can load, and a
folder with the report: open its report.html in a browser.

Ctrl-C stops it and keeps the best epoch so far; --resume goes on where it, or a crash, stopped.
"""
_EXAMPLE = """
examples:
  python -m training fit mycamera/ --from model/cat.safetensors --output runs/mine.safetensors
      fine-tuning: mycamera/cat/*.jpg and mycamera/non-cat/*.jpg, some hundred in all
  python -m training fit photos.zip more/ --validation apart.zip --epochs 20
      from scratch, on a zip and a folder, measured on pictures of another zip
  CAT_WEIGHTS=runs/mine.safetensors python -m app
      the service with the result
"""


@dataclass(frozen=True)
class Places:
    """Where a run writes."""

    output: Path  # the weights
    report: Path  # folder
    unfinished: Path  # folder of the checkpoint and the log while the run goes on

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Places":
        """As the arguments say; raises OSError and BadArguments for what cannot be written."""
        output, folder = outputs(arguments)
        if arguments.start and arguments.start.resolve() == output.resolve():
            raise BadArguments(
                f"{output} is what it starts from; name another --output to write the result to."
            )
        return cls(output, folder, output.with_name(f"{output.stem}-training"))


def run_fit(arguments: argparse.Namespace, say: Say) -> None:
    """Read, train, measure, write the weights file and the report."""
    places = Places.of(arguments)
    _check_unfinished(places.unfinished, arguments.resume)
    with one_blas_thread():
        task = task_of(arguments, say)
        with Trainer(task.layers, task.examples, task.config) as trainer:
            run = _run(task, trainer, places, arguments.resume)
            stopped: KeyboardInterrupt | None = None
            try:
                with shown(trainer, say) as show:
                    run_epochs(trainer, task.validation, run, places.unfinished, show)
            except KeyboardInterrupt as interrupt:
                stopped = interrupt
        if not run.curve:
            say("Stopped before the first epoch was complete: nothing is written.")
        else:
            _write(task, run, places, arguments, say)
    if stopped:
        if run.curve:
            say(f"Stopped after epoch {len(run.curve)} of {task.config.epochs}; --resume goes on.")
        raise stopped
    remove_progress(places.unfinished)


def _check_unfinished(folder: Path, resume: bool) -> None:
    there = (folder / CHECKPOINT).is_file()
    if there and not resume:
        raise BadArguments(
            f"{folder} holds a run that is not finished. Go on with it with --resume, remove the "
            "folder to start anew, or name another --output."
        )
    if resume and not there:
        raise BadArguments(
            f"There is no unfinished run in {folder} to resume. Leave --resume out to start one."
        )


def _run(task: Task, trainer: Trainer, places: Places, resume: bool) -> Run:
    if resume:
        return checkpoint.resume(places.unfinished / CHECKPOINT, trainer, task.identity)
    run = Run(task.identity)
    if task.start:  # the network that is there takes part: nothing worse than it is kept
        validation = task.validation
        layers = unmirrored(task.start.layers)
        z = validation.logits(layers, task.config.threads)
        log_loss = source_log_loss(z, validation.labels, validation.sources)
        run.best = Best(0, log_loss, layers)
    return run


# --- what is written ----------------------------------------------------------------------------


def _write(task: Task, run: Run, places: Places, arguments: argparse.Namespace, say: Say) -> None:
    best = run.best
    assert best is not None
    say(f"best epoch: {best.epoch}; calibrating and measuring")
    facts: dict[str, Any] = {
        **task.facts,
        "learning_curve": [_untimed(row) for row in run.curve],
        "best_epoch": best.epoch,
    }
    words = Words(
        name=arguments.name or places.output.stem,
        class_names=class_names(arguments),
        thresholds=(task.start.threshold, 0.5) if task.start else (0.5,),
    )
    classifier = _finished(best.layers, task, words, facts)
    comparison = _compare(task, best, classifier)
    if comparison:
        classifier.metadata["comparison"] = asdict(comparison)
    files = fit_report(classifier, task.validation, run.curve, task.config.threads)
    with report.write_folder(places.report, files):
        saved = save(classifier, places.output, "float16")
    if comparison and task.start:
        say(as_text(comparison, len(task.validation.labels), task.start.name))
    say(f"weights: {places.output} (version {saved.version}, threshold {saved.threshold:.3f})")
    say(f"report:  {places.report / report.PAGE}")


def _untimed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without what differs from run to run: the same weights make the same file."""
    return {name: value for name, value in row.items() if name not in TIMINGS}


def _compare(task: Task, best: Best, classifier: Classifier) -> Comparison | None:
    if not task.start:
        return None
    threads = task.config.threads
    before = task.validation.logits(task.start.layers, threads)
    after = task.validation.logits(mirrored(best.layers), threads)
    calibration = Calibration(**classifier.metadata["calibration"])
    thresholds = task.start.threshold, calibration.undone(classifier.threshold)
    return compare(before, after, task.validation, thresholds)


def _finished(
    layers: Sequence[Layer], task: Task, words: Words, facts: Mapping[str, Any]
) -> Classifier:
    config = task.config
    try:
        return finish(
            layers, task.validation, words, facts, seed=config.seed, threads=config.threads
        )
    except ValueError as error:
        raise Refused(f"The trained network cannot be stored: {error}.") from error


# --- the command line ---------------------------------------------------------------------------


def add_commands(commands: Commands) -> None:
    """Add `fit` to the command line."""
    parser = add_command(
        commands,
        "fit",
        summary="train the network on your own pictures",
        description=_HELP,
        example=_EXAMPLE,
        run=run_fit,
    )
    add_data_arguments(parser)
    parser.add_argument(
        "--validation",
        nargs="+",
        type=Path,
        metavar="DATA",
        help="pictures to measure with and choose by; without it a fifth of the data is held back",
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="WEIGHTS",
        help="fine-tune these weights instead of starting from random ones",
    )
    add_output_arguments(parser, Path("runs/model.safetensors"))
    parser.add_argument(
        "--name",
        help="what the service calls the model (default: the name of the weights file)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run that was stopped, given the same arguments",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="CSV",
        help="log-odds of a pretrained network for every training picture, in columns name "
        "(cat/picture.jpg) and cat_log_odds: soft labels",
    )
    parser.add_argument(
        "--teacher-share",
        type=share,
        default=0.5,
        metavar="SHARE",
        help="of the teacher in what is learned, the rest being the label (default: %(default)s)",
    )
    parser.add_argument(
        "--shares",
        nargs="+",
        type=source_share,
        default=[],
        metavar="SOURCE=N",
        help="sources (first words of the file names) to draw more or less often than the others, "
        "1 being as often: web=1.4 tiny=0.6",
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        type=positive_int,
        metavar="CHANNELS",
        help="from scratch: channels of the network's stages, each at half the resolution of the "
        "one before; fewer are faster and know less "
        f"(default: {' '.join(str(channels) for channels in STAGES)})",
    )
    for option in options():
        default = f"{_shown(SCRATCH, option.name)}; with --from {_shown(FINE_TUNING, option.name)}"
        same = _shown(SCRATCH, option.name) == _shown(FINE_TUNING, option.name)
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=_TYPES[option.name],
            metavar="N",
            help=f"{option.metadata['help']} "
            f"(default: {_shown(SCRATCH, option.name) if same else default})",
        )


def not_negative(text: str) -> float:
    """An argument that is 0 or more."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def share(text: str) -> float:
    """An argument from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def source_share(text: str) -> tuple[str, float]:
    """An argument such as web=1.4."""
    source, _, number = text.rpartition("=")
    if not source:
        raise ValueError
    return source, positive(number)


source_share.__name__ = "SOURCE=N, N a number above 0"
not_negative.__name__ = "number from 0 on"
share.__name__ = "number from 0 to 1"

_TYPES: dict[str, Callable[[str], float]] = {
    "epochs": positive_int,
    "batch": positive_int,
    "threads": positive_int,
    "peak_rate": positive,
    "weight_decay": not_negative,
    "strength": share,
    "mixed": share,
    "seed": seed,
}


def _shown(config: LoopConfig, name: str) -> str:
    return "one a processor" if name == "threads" else f"{getattr(config, name):g}"
