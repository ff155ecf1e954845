"""What `python -m training fit` learns from, measures with and starts from."""

import argparse
import copy
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.architecture import describe
from model.classifier import BadArtifact, Classifier
from model.network import Layer, unmirrored
from model.preprocessing import Preprocessing
from training.architecture import STAGES, convolutional
from training.command import Say, class_names, read_data
from training.course import describe_data
from training.data import PictureSet, list_pictures
from training.errors import BadArguments, Refused
from training.loop import Examples, LoopConfig, balance
from training.split import (
    LEAST_HELD_BACK,
    LEAST_TRAINING,
    check_counts,
    hold_back,
    join_small,
)
from training.teacher import calibrated, mix, read_teacher
from training.validation import Validation, validation_of

LARGEST, SMALLEST = 96, 64  # sides that training pictures are kept at: crops of 64 need room
MOST_STAGES = 5  # halved after each but the last, 16 places a side become 1
FEW = 1000  # pictures of a class below which training from scratch disappoints
SHARD = 32  # pictures of a batch that each thread should have at least

SCRATCH = LoopConfig()
# Small steps for a short time, and half of the way back: tried on 160 pictures of a simulated night
# camera, ROC AUC rose from .84 to .86 there and stayed as it was elsewhere; without the way back it
# rose half as much, and fell by .04 on the hardest of the sources known before.
FINE_TUNING = LoopConfig(
    epochs=20,
    batch=32,
    peak_rate=0.001,
    averaging=0.98,
    weight_decay=0.0,
    strength=0.7,
    anchor=0.5,
)


@dataclass(frozen=True)
class Task:
    """What is to be learned, from what, and with what it is measured."""

    layers: list[Layer]
    start: Classifier | None
    examples: Examples
    validation: Validation
    config: LoopConfig
    identity: dict[str, Any]  # JSON values that decide which weights come out
    facts: dict[str, Any]  # JSON values for the metadata


def options() -> list[Field[Any]]:
    """The fields of LoopConfig that the command line has flags for."""
    return [field for field in fields(LoopConfig) if "help" in field.metadata]


def task_of(arguments: argparse.Namespace, say: Say) -> Task:
    """Read what there is to learn from; raises Refused."""
    start = _start(arguments)
    config = _config(arguments, start)
    training, validation = _read(arguments, config, say)
    sources = join_small(training.sources)
    shares = _shares(arguments, sources)
    targets = training.labels
    if arguments.teacher:
        odds = read_teacher(arguments.teacher, training.names)
        probabilities = calibrated(odds, training.labels, training.sources)
        targets = mix(training.labels, probabilities, arguments.teacher_share)
    if not start and min(training.count(name) for name in training.class_names) < FEW:
        say(
            f"note: from scratch, with fewer than {FEW:,} pictures of a class, the result will be "
            "weak; --from model/cat.safetensors makes more of them"
        )
    stages = tuple(arguments.stages or STAGES)
    # A copy: training changes its layers, and the result is compared with the start.
    own = copy.deepcopy(unmirrored(start.layers)) if start else None
    layers = own or convolutional(_rng(config), stages)
    configuration = {
        **asdict(config),
        "from": start.version if start else None,
        "architecture": describe(layers),
        "teacher_share": arguments.teacher_share if arguments.teacher else None,
        "shares": shares,
    }
    examples = Examples(
        training.pictures, training.sides, targets, balance(training.labels, sources, shares)
    )
    held = replace(validation_of(validation), sources=_reported(validation))
    validation_files = arguments.validation or arguments.data
    facts = {
        "training": {
            "command": "fit",
            **asdict(config),
            "stages": None if start else stages,
            "teacher": arguments.teacher and arguments.teacher.name,
            "teacher_share": configuration["teacher_share"],
            "shares": shares,
        },
        "started_from": start and {"name": start.name, "version": start.version},
        "seed": config.seed,
        "data": {
            "training": _described(arguments.data, training),
            "validation": _described(validation_files, validation),
        },
    }
    identity = {
        **configuration,
        "classes": list(training.class_names),
        "training pictures": training.fingerprint,
        "validation pictures": validation.fingerprint,
        "targets": hashlib.sha256(targets.tobytes()).hexdigest(),
    }
    return Task(layers, start, examples, held, config, _as_json(identity), facts)


def _described(paths: Sequence[Path], pictures: PictureSet) -> dict[str, Any]:
    first, second = pictures.class_names
    sources: dict[str, dict[str, int]] = {}
    for source, label in zip(_reported(pictures), pictures.labels, strict=True):
        counts = sources.setdefault(source, {first: 0, second: 0})
        counts[first if label else second] += 1
    return describe_data(paths, pictures) | {"sources": sources}


def _shares(arguments: argparse.Namespace, sources: list[str]) -> dict[str, float]:
    shares = dict(arguments.shares)
    if unknown := sorted(shares.keys() - set(sources)):
        raise BadArguments(
            f"--shares: there is no source {', '.join(unknown)}; there are "
            f"{', '.join(sorted(set(sources)))}."
        )
    return shares


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(values))
    return result


def _reported(pictures: PictureSet) -> list[str]:
    return join_small(validation_of(pictures).sources, least=20)


def _rng(config: LoopConfig) -> np.random.Generator:
    return np.random.default_rng(config.seed)


def _start(arguments: argparse.Namespace) -> Classifier | None:
    if len(arguments.stages or ()) > MOST_STAGES:
        raise BadArguments(f"--stages: {MOST_STAGES} at most; then one place of 16×16 is left")
    if arguments.start is None:
        return None
    if arguments.stages:
        raise BadArguments("--stages is for training from scratch; with --from they are there")
    try:
        start = Classifier.load(arguments.start)
    except BadArtifact as error:
        raise Refused(str(error)) from error
    if start.preprocessing != Preprocessing():
        raise Refused(
            f"{arguments.start} reads pictures as {start.preprocessing.to_json()}; fine-tuning "
            f"knows {Preprocessing().to_json()} only. Train from scratch."
        )
    if class_names(arguments) == start.class_names[::-1]:
        first, second = start.class_names
        raise BadArguments(
            f"{arguments.start} gives the probability of {first!r}: name it first, "
            f"--classes {first} {second}."
        )
    return start


def _config(arguments: argparse.Namespace, start: Classifier | None) -> LoopConfig:
    given = {
        field.name: value
        for field in options()
        if (value := getattr(arguments, field.name)) is not None
    }
    config = replace(FINE_TUNING if start else SCRATCH, **given)
    if "threads" not in given:
        config = replace(config, threads=_threads(config.batch))
    return config


def _threads(batch: int) -> int:
    """As many as there are processors for, each with enough of the batch to be worth it."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(available or 1, batch // SHARD))


def _read(
    arguments: argparse.Namespace, config: LoopConfig, say: Say
) -> tuple[PictureSet, PictureSet]:
    """The pictures to learn from, at their own size, and those to measure with, as the service
    reads them."""
    names = class_names(arguments)
    listing = list_pictures(arguments.data, names)
    apart = arguments.validation
    least = LEAST_TRAINING + (0 if apart else LEAST_HELD_BACK)
    to_learn = f"{LEAST_TRAINING} to learn from"
    parts = to_learn if apart else f"{to_learn} and {LEAST_HELD_BACK} to hold back"
    remedy = "Add pictures; with a few hundred it becomes useful."
    check_counts(
        listing.labels, names, least=least, purpose=f"in the data ({parts})", remedy=remedy
    )
    held = set() if apart else hold_back(listing, np.random.default_rng((config.seed, 7)))
    training = read_data(
        arguments,
        arguments.data,
        lambda text: say(f"learning from {text}"),
        side=LARGEST,
        smallest=SMALLEST,
        names=set(listing.names) - held,
    )
    validation = read_data(
        arguments,
        apart or arguments.data,
        lambda text: say(f"measuring with {text}"),
        names=None if apart else held,
    )
    check_counts(
        training.labels, names, least=LEAST_TRAINING, purpose="to learn from", remedy=remedy
    )
    check_counts(
        validation.labels, names, least=LEAST_HELD_BACK, purpose="to measure with", remedy=remedy
    )
    return training, validation
