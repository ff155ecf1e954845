"""`fit`: train the network on pictures of one's own, from random weights or from weights there are.

Read, train, measure on the pictures held back after each epoch, keep the best, calibrate, compare
with the start, write the weights file and the report. A run that is stopped leaves a checkpoint,
from which it goes on.
"""

import copy
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from model.archive import printable
from model.artifact import build, describe
from model.classifier import INPUT_STATISTICS, Classifier, InputStatistics, ViewMode
from model.machine import cores
from model.network import Array, Layer, parameters, sigmoid
from model.preprocessing import WHOLE, Preprocessing, Views
from training import Refused
from training.architecture import default_network
from training.calibration import (
    FEW_RULE,
    NOT,
    THRESHOLD_RULE,
    UNSURE_RULE,
    Calibration,
    by_source,
    calibrate,
    choose_threshold,
    choose_unsure,
    compare,
    enough,
    fold_calibration,
    mean_balanced_accuracy,
    source_log_loss,
)
from training.data import LOOKALIKE_SOURCES, PictureSet, join_small
from training.examples import Data, read, soft_targets
from training.golden import choose_golden
from training.loop import (
    FINE_TUNING,
    SCRATCH,
    Best,
    Examples,
    Settings,
    Trainer,
    resume,
    sampling_weights,
    save_checkpoint,
    score,
)
from training.metrics import reliability_table, roc_auc, summary
from training.report import (
    PAGE,
    Say,
    outputs,
    progress_bar,
    render,
    write_report,
)

FEW = 1000  # pictures of a class below which training from scratch disappoints
SHARD = 32  # pictures of a batch that each thread should have at least
CHECKPOINT, LOG = "checkpoint.safetensors", "log.jsonl"  # of a run that goes on; in its report
TIMINGS = ("pictures_per_second", "seconds")  # of a row of the learning curve

_PLACES = ((0.2, 0.2), (0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.4, 0.4))
VIEWS: dict[str, Views] = {  # by the setting's name
    "whole": Views(mirror=True),
    "six": Views((WHOLE, *((x, y, x + 0.6, y + 0.6) for x, y in _PLACES)), mirror=True),
}


# --- settings -----------------------------------------------------------------------------------


def read_settings(
    config: Path | None, given: Mapping[str, Any], *, fine_tuning: bool = False
) -> Settings:
    """The settings: `given` (None where nothing is), over those of the TOML file, over defaults.

    Without `threads`, as many as there are processors for, each with enough of the batch to be
    worth it. Raises Refused for an unknown name and a value that cannot be; OSError.
    """
    values: dict[str, Any] = {}
    if config:
        try:
            values = tomllib.loads(config.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Refused(f"{config} is not TOML: {error}.") from error
    before = values.get("shares")
    values |= {name: value for name, value in given.items() if value is not None}
    if isinstance(before, dict) and isinstance(values["shares"], dict):
        values["shares"] = before | values["shares"]
    for name in ("stages", "views"):
        if fine_tuning and given.get(name):
            raise Refused(f"{name} can be set only from scratch, not with --from.")
    if values.get("start_share") and not fine_tuning:
        raise Refused("start_share can be set only with --from.")
    defaults = FINE_TUNING if fine_tuning else SCRATCH
    try:
        settings = TypeAdapter(Settings).validate_python(asdict(defaults) | values)
    except ValidationError as error:
        where = f"{config}: " if config else ""
        raise Refused(where + " ".join(map(_problem, error.errors()))) from error
    if "threads" not in values:
        settings = replace(settings, threads=max(1, min(cores(), settings.batch // SHARD)))
    return settings


def _problem(error: Mapping[str, Any]) -> str:
    """A sentence for what pydantic found wrong with a setting."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "unexpected_keyword_argument":
        near = get_close_matches(name, [each.name for each in fields(Settings)], 1)
        return f"There is no setting {name!r}." + "".join(f" Did you mean {it}?" for it in near)
    must = error["msg"].replace("Input should be", "must be").partition(", unable")[0]
    return f"{name} is {error['input']!r}, but {must}."


# --- what is to be learned ----------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What is to be learned, from what, and with what it is measured."""

    name: str  # of the model
    layers: list[Layer]
    start: Classifier | None
    examples: Examples
    held: PictureSet  # to validate on, as the service reads them
    settings: Settings
    identity: dict[str, Any]  # JSON values that decide which weights come out
    facts: dict[str, Any]  # JSON values for the metadata


def _task(
    name: str,
    data: Data,
    start: Classifier | None,
    teacher: Path | None,
    settings: Settings,
    say: Say,
) -> Task:
    """Read what there is to learn from; raises Refused."""
    training, held = read(data, settings.seed, say)
    sources = join_small(training.sources)
    if unknown := sorted(settings.shares.keys() - set(sources)):
        known = ", ".join(sorted(set(sources)))
        raise Refused(f"shares: there is no source {', '.join(unknown)}. The sources are {known}.")
    labels = training.labels
    targets = labels[:, None]
    if teacher:
        targets = soft_targets(teacher, training, settings.teacher_share)
        if start:  # a network that is there has one output
            targets = targets[:, :1]
    lookalikes = [  # of each picture the kind by which it is drawn, "" for those that are none
        (part.kind or source) if source in LOOKALIKE_SOURCES and not label else ""
        for part, source, label in zip(training.parts, training.sources, labels, strict=True)
    ]
    share = settings.lookalike_share
    weights = sampling_weights(labels, sources, settings.shares, lookalikes, share)
    if start:  # a copy: training changes its layers, and the result is compared with the start
        layers = copy.deepcopy(list(start.layers))
    else:
        if min(training.count(name) for name in training.class_names) < FEW:
            weak = "training from scratch gives a weak network; use --from model/cat.safetensors"
            say(f"note: with fewer than {FEW:,} pictures per class, {weak}")
        rng = np.random.default_rng(settings.seed)
        layers = default_network(rng, settings.stages, targets.shape[1])
    used = asdict(settings) | {"teacher_share": settings.teacher_share if teacher else None}
    facts = {
        "training": {
            "command": "fit",
            **used,
            "stages": None if start else settings.stages,
            "views": None if start else settings.views,
            "teacher": teacher and printable(teacher.name),
        },
        "started_from": start and {"name": start.name, "version": start.version},
        "data": {
            "training": training.describe(data.training),
            "validation": held.describe(data.validation or data.training),
        },
    }
    identity = {
        **used,
        "from": start.version if start else None,
        "classes": list(training.class_names),
        "training pictures": training.fingerprint,
        "validation pictures": held.fingerprint,
        "targets": hashlib.sha256(targets.tobytes()).hexdigest(),
        "weights": hashlib.sha256(weights.tobytes()).hexdigest(),
    }
    examples = Examples(training.pictures, training.sides, targets, weights)
    identity = json.loads(json.dumps(identity))  # as a checkpoint gives it back
    return Task(name, layers, start, examples, held, settings, identity, facts)


def _load_start(path: Path, class_names: tuple[str, str]) -> Classifier:
    start = Classifier.load(path)
    own, supported = start.preprocessing.to_json(), Preprocessing().to_json()
    if own != supported:
        what = f"fine-tuning supports only {supported}. Train from scratch."
        raise Refused(f"{path} reads pictures as {own}; {what}")
    if class_names == start.class_names[::-1]:
        first, second = start.class_names
        raise Refused(f"{path} detects {first!r}. Use --classes {first} {second}.")
    return start


# --- the run ------------------------------------------------------------------------------------


def fit(
    data: Data,
    output: Path,
    say: Say,
    *,
    start: Path | None = None,
    teacher: Path | None = None,
    config: Path | None = None,
    given: Mapping[str, Any] | None = None,
    name: str | None = None,
    resumed: bool = False,
) -> None:
    """Read, train, measure, write the weights file `output` and the report next to it.

    start: weights to fine-tune. config, given: as for `read_settings`. name: what the service calls
    the model, else the name of the file. resumed: continue the run that was stopped.
    Raises Refused and OSError; KeyboardInterrupt after the best epoch so far was written.
    """
    folder = outputs(output)
    unfinished = output.with_name(f"{output.stem}-training")
    if start and start.resolve() == output.resolve():
        raise Refused(f"{output} is also the --from file. Choose another --output.")
    _check_unfinished(unfinished, resumed)
    settings = read_settings(config, given or {}, fine_tuning=start is not None)
    network = _load_start(start, data.class_names) if start else None
    with threadpool_limits(1, user_api="blas"):  # its calls run side by side already
        task = _task(printable(name or output.stem), data, network, teacher, settings, say)
        with Trainer(task.layers, task.examples, settings) as trainer:
            if resumed:
                resume(unfinished / CHECKPOINT, trainer, task.identity)
            else:
                trainer.best = _best_before(task)
            stopped: KeyboardInterrupt | None = None
            try:
                _run_epochs(trainer, task, unfinished, say)
            except KeyboardInterrupt as interrupt:
                stopped = interrupt
        epochs = len(trainer.curve)
        if trainer.best and epochs:
            _write(task, trainer.best, trainer.curve, output, folder, say)
    if stopped:
        say(
            f"Stopped after epoch {epochs} of {settings.epochs}. To continue, add --resume."
            if epochs
            else "Stopped before the end of the first epoch: nothing was written."
        )
        raise stopped
    remove_progress(unfinished)


def _check_unfinished(folder: Path, resumed: bool) -> None:
    there = (folder / CHECKPOINT).is_file()
    if there and not resumed:
        remedy = "Continue it with --resume, delete the folder to start again"
        raise Refused(f"{folder} contains an unfinished run. {remedy}, or choose another --output.")
    if resumed and not there:
        remedy = "Remove --resume to start a new one."
        raise Refused(f"There is no unfinished run in {folder}. {remedy}")


def _best_before(task: Task) -> Best | None:
    """The network that is there takes part: nothing worse than it is kept."""
    if not task.start:
        return None
    layers = list(task.start.layers)
    return Best(0, _epoch_figures(task, layers)["log_loss"], layers)


def _run_epochs(trainer: Trainer, task: Task, folder: Path, say: Say) -> None:
    """Train to the end of the run from wherever the trainer is. The checkpoint in `folder`
    is that of the last complete epoch: an interruption loses the one going on."""
    config = trainer.config
    each = trainer.steps_per_epoch * config.batch
    latest = ""
    with progress_bar("", "picture", each * config.epochs) as bar:  # 80 columns are few
        bar.initial = bar.n = trainer.epoch * each
        bar.unit_scale = True
        while trainer.epoch < config.epochs:
            began, losses = monotonic(), []
            for loss in trainer.run_epoch():
                losses.append(loss)
                bar.set_postfix_str(f"loss {loss:.3f}{latest}", refresh=False)
                bar.update(config.batch)
            trained = monotonic() - began
            layers = trainer.folded()
            row = {
                "epoch": trainer.epoch,
                "loss": sum(losses) / len(losses),
                **_epoch_figures(task, layers),
                "pictures_per_second": len(losses) * config.batch / trained,
                "seconds": monotonic() - began,
            }
            if trainer.best is None or row["log_loss"] < trainer.best.log_loss:
                trainer.best = Best(trainer.epoch, row["log_loss"], layers)
            trainer.curve.append(row)
            folder.mkdir(parents=True, exist_ok=True)
            save_checkpoint(folder / CHECKPOINT, trainer, task.identity)
            latest = f", val {row['balanced_accuracy']:.1%}"
            with tqdm.external_write_mode():
                say(_epoch_line(row, config.epochs))


def _epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    left = tqdm.format_interval((epochs - row["epoch"]) * row["seconds"])
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.4f}; validation: "
        f"log loss {row['log_loss']:.4f}, balanced accuracy {row['balanced_accuracy']:.1%}; "
        f"{row['pictures_per_second']:,.0f} pictures/s, {left} left"
    )


def remove_progress(folder: Path) -> None:
    """Remove the checkpoint of a run that is finished, and its folder if nothing else is in it:
    someone may keep pictures in a folder of this name."""
    for file in (folder / CHECKPOINT, *folder.glob(f".{CHECKPOINT}.*.tmp")):  # those of a crash
        file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


# --- measuring ----------------------------------------------------------------------------------


def _logits(task: Task, layers: Sequence[Layer]) -> Array:
    """z (m,) float64 that the network gives for the whole held-back pictures."""
    z = score(layers, task.held.pictures, task.held.sides, task.settings.threads)
    return z.astype(np.float64)


def _answers(task: Task, classifier: Classifier, views: ViewMode = "all") -> Array:
    """z (m,) float64 that the classifier answers by: from all its views, or from the whole."""
    files = tqdm(task.held.files, "measuring", unit=" pictures", disable=None, leave=False)
    return classifier.logits((classifier.read(load()) for load in files), views)


def _epoch_figures(task: Task, layers: Sequence[Layer]) -> dict[str, Any]:
    """The figures of one epoch, as JSON values: after a calibration and with a threshold of its
    own, since that is how its network would be saved."""
    y, sources, z = task.held.labels, task.held.reported_sources, _logits(task, layers)
    calibration = calibrate(z, y, sources)
    z = calibration.apply(z)
    p = sigmoid(z)
    threshold = choose_threshold(y, p, sources)
    aucs = {source: roc_auc(y[own], p[own]) for source, own in by_source(sources).items()}
    return {
        "log_loss": source_log_loss(z, y, sources),
        "balanced_accuracy": mean_balanced_accuracy(y, p, sources, threshold),
        "roc_auc": {source: auc for source, auc in aucs.items() if auc == auc},  # not NaN
    }


def _metrics(held: PictureSet, p: Array, threshold: float) -> dict[str, Any]:
    """`training.metrics.summary` of each source, and of all pictures together under "all"."""
    y, every = held.labels, by_source(held.reported_sources)
    apart = {name: summary(y[own], p[own], threshold) for name, own in every.items()}
    return {"all": summary(y, p, threshold), **(apart if len(apart) > 1 else {})}


def _compare(task: Task, start: Classifier, classifier: Classifier, z: Array) -> dict[str, Any]:
    """The two as training left them, before the calibration of the second; z: its own (m,)."""
    calibration = Calibration(**classifier.metadata["calibration"])
    threshold = classifier.threshold
    own = calibration.inverse(np.log(threshold / (1 - threshold)))
    return compare(
        _answers(task, start),
        calibration.inverse(z),
        task.held.labels,
        task.held.reported_sources,
        (start.threshold, float(sigmoid(own))),
    )


# --- what is written ----------------------------------------------------------------------------


def _write(
    task: Task, best: Best, rows: Sequence[Mapping[str, Any]], output: Path, folder: Path, say: Say
) -> None:
    """rows: of the learning curve."""
    start = task.start
    say(f"best epoch: {best.epoch}; calibrating and measuring on {len(task.held):,} pictures")
    curve = [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]
    facts = {**task.facts, "learning_curve": curve, "best_epoch": best.epoch}
    classifier, z = build_classifier(best.layers, task, facts)
    if start:
        comparison = _compare(task, start, classifier, z)
        if comparison["verdict"] == NOT and best.epoch:
            facts["best_epoch"] = 0
            classifier, z = build_classifier(start.layers, task, facts)
        classifier.metadata["comparison"] = comparison
    own = {name: getattr(classifier, name) for name in ("name", "class_names", "threshold")}
    bins = reliability_table(task.held.labels, sigmoid(z))
    page = render(
        "fit.html", classifier=classifier, facts=classifier.metadata, bins=bins, curve=rows
    )
    log = "".join(json.dumps(row) + "\n" for row in rows)
    write_report(folder, page, own | classifier.metadata, {LOG: log})
    saved = classifier.save(output, "float16")
    if start:
        say(render("comparison.txt", comparison=comparison, start=start.name).strip())
    say(f"weights: {output} (version {saved.version}, threshold {saved.threshold:.3f})")
    say(f"report:  {folder / PAGE}")


def build_classifier(
    layers: Sequence[Layer], task: Task, facts: Mapping[str, Any]
) -> tuple[Classifier, Array]:
    """The classifier that these layers (without batch normalisation) make, ready to be saved with
    `save(path, "float16")`; and its logits z (m,) of the held-back pictures. It looks at the views
    of the network that it started from, or at those of the settings.

    Everything is fitted to and measured on the numbers as float16 holds them, which is how they
    are stored. facts: JSON values that go into the metadata beside what is found out here.
    Raises Refused.
    """
    held, settings, start = task.held, task.settings, task.start
    y, sources = held.labels, held.reported_sources
    views = start.views if start else VIEWS[settings.views]
    chosen = not start and len(views.boxes) > 1 and enough(y)
    try:
        stored = round_to_float16(layers)
        classifier = Classifier(task.name, held.class_names, 0.5, stored, views=views)
        if chosen:
            always = replace(classifier, views=replace(views, unsure=(-1e9, 1e9)))
            one, every = _answers(task, always, "one"), _answers(task, always)
            unsure = choose_unsure(one, every, y, sources)
            views = replace(views, unsure=unsure)  # before calibration
            z = np.where((unsure[0] < one) & (one < unsure[1]), every, one)
        else:
            z = _answers(task, classifier)
        calibration = calibrate(z, y, sources)
        low, high = calibration.apply(np.array(views.unsure)).tolist()
        classifier = replace(
            classifier,
            layers=round_to_float16(fold_calibration(stored, calibration)),
            views=replace(views, unsure=(low, high)),
        )
    except ValueError as error:
        raise Refused(f"The trained network cannot be saved: {error}.") from error
    z = _answers(task, classifier)
    p = sigmoid(z)
    otherwise = (start.threshold, 0.5) if start else (0.5,)
    threshold = choose_threshold(y, p, sources, otherwise)
    found = {
        "calibration": asdict(calibration),
        **({"unsure_rule": UNSURE_RULE} if chosen else {}),
        "threshold_rule": THRESHOLD_RULE if enough(y) else FEW_RULE,
        "metrics": {"validation": _metrics(held, p, threshold)},
        INPUT_STATISTICS: InputStatistics.of(held.pictures).to_json(),
    }
    classifier = replace(classifier, threshold=threshold, metadata={**facts, **found})
    rng = np.random.default_rng(settings.seed)
    return replace(classifier, golden=choose_golden(classifier, rng)), z


def round_to_float16(layers: Sequence[Layer]) -> list[Layer]:
    """The layers with their numbers rounded to float16. Raises ValueError for numbers beyond it."""
    with np.errstate(over="ignore"):
        rounded = {name: v.astype(np.float16) for name, v in parameters(layers).items()}
    return build(describe(layers), rounded)
