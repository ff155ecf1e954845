"""Epoch after epoch: train, measure on validation, keep the best, write a checkpoint and a log."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from tqdm import tqdm

from training import checkpoint
from training.checkpoint import Best, Run
from training.command import Say, progress_bar
from training.loop import Trainer
from training.report import naming
from training.validation import Validation, progress_row

TIMINGS = ("pictures_per_second", "seconds")  # of a row of the learning curve
CHECKPOINT, LOG = "checkpoint.safetensors", "log.jsonl"  # in the folder of a run that goes on


@dataclass(frozen=True)
class Show:
    """Where a run shows how it goes."""

    step: Callable[[float], None]  # a batch's mean loss
    epoch: Callable[[dict[str, Any]], None]  # a row of the learning curve


def run_epochs(
    trainer: Trainer, validation: Validation, run: Run, folder: Path, show: Show
) -> None:
    """Train to the end of the run from wherever the trainer is, adding to `run` after each epoch.

    The checkpoint and the log in `folder` are those of the last complete epoch at any time; an
    interruption loses the epoch that was going on, and `run` is then good for what is in it.
    Raises Diverged and OSError.
    """
    config = trainer.config
    write_log(folder, run)
    while trainer.epoch < config.epochs:
        began = monotonic()
        losses = []
        for loss in trainer.run_epoch():
            losses.append(loss)
            show.step(loss)
        trained = monotonic() - began
        layers = trainer.folded()
        row = {
            "epoch": trainer.epoch,
            "loss": sum(losses) / len(losses),
            **progress_row(validation.logits(layers, config.threads), validation),
            "pictures_per_second": len(losses) * config.batch / trained,
            "seconds": monotonic() - began,
        }
        if run.best is None or row["log_loss"] < run.best.log_loss:
            run.best = Best(trainer.epoch, row["log_loss"], layers)
        run.curve.append(row)
        save_progress(folder, trainer, run)
        show.epoch(row)


def save_progress(folder: Path, trainer: Trainer, run: Run) -> None:
    """Write the checkpoint, then the log."""
    folder.mkdir(parents=True, exist_ok=True)
    with naming(folder / CHECKPOINT):
        checkpoint.save(folder / CHECKPOINT, trainer, run)
    with naming(folder / LOG), (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(run.curve[-1]) + "\n")


def write_log(folder: Path, run: Run) -> None:
    """Make the log that of the checkpoint: a run that died between the two left it behind."""
    if run.curve:
        with naming(folder / LOG):
            (folder / LOG).write_text(log_text(run.curve), encoding="utf-8")


def log_text(curve: Sequence[Mapping[str, Any]]) -> str:
    """The log: one JSON object a line and epoch."""
    return "".join(json.dumps(row) + "\n" for row in curve)


def remove_progress(folder: Path) -> None:
    """Remove what a run that is finished left in its folder, and the folder if nothing else is in
    it: someone may keep pictures in a folder of this name."""
    for pattern in (CHECKPOINT, LOG, f".{CHECKPOINT}.*.tmp"):  # the last one by a crash
        for file in folder.glob(pattern):
            file.unlink()
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def shown(trainer: Trainer, say: Say) -> Iterator[Show]:
    """A progress bar with loss, validation, pictures per second and time left, where there is a
    terminal; a line for each epoch anywhere."""
    config = trainer.config
    each = trainer.steps_per_epoch * config.batch
    with progress_bar("", "picture", each * config.epochs) as bar:  # 80 columns are few
        bar.initial = bar.n = trainer.epoch * each
        bar.unit_scale = True
        latest = ""

        def step(loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}{latest}", refresh=False)
            bar.update(config.batch)

        def epoch(row: dict[str, Any]) -> None:
            nonlocal latest
            latest = f", val {row['balanced_accuracy']:.1%}"
            left = (config.epochs - row["epoch"]) * row["seconds"]
            with tqdm.external_write_mode():
                say(_line(row, config.epochs, left))

        yield Show(step, epoch)


def _line(row: dict[str, Any], epochs: int, left: float) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.4f}; validation: "
        f"log loss {row['log_loss']:.4f}, balanced accuracy {row['balanced_accuracy']:.1%}; "
        f"{row['pictures_per_second']:,.0f} pictures/s, {_time(left)} left"
    )


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
