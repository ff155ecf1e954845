"""Compare the default network with a pretrained EfficientNet-Lite, what people would pick instead.

    python -m benchmarks.pretrained ../shared/data

The folder holds `*-val.zip` (and `*-test.zip`), as scripts/get_data.py makes them. The other one
answers with the sum of ImageNet's five house-cat classes, from the whole picture at 64×64 pixels,
enlarged to its own size, and from the picture at full size. Its threshold, one for all sources, is
chosen on the validation pictures by the rule that this project's came from, which is the one stored
with its weights. Validation pictures are judged unless --test is given. benchmarks/inference.py
measures what both cost.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from math import log
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image

from benchmarks.lite import Lite, Variant, not_installed
from benchmarks.machine import describe
from model import DEFAULT_WEIGHTS
from model.classifier import Classifier
from model.network import Array, pieces, sigmoid
from model.preprocessing import Preprocessing
from training import Refused
from training.calibration import calibrate, choose_threshold
from training.data import PictureSet, read_pictures
from training.evaluation import data_files
from training.metrics import summary

OURS = "this project"
Scores = dict[str, Array]  # of each way of answering, (m,); larger means rather a cat


def score(files: Sequence[Path], ours: Classifier, other: Lite) -> tuple[Array, Array, Scores]:
    """Labels (m,) and sources (m,) of all pictures in the files, and every way's scores."""
    labels, sources = [], []
    scores: dict[str, list[Array]] = {OURS: [], "64×64": [], "full size": []}
    for file in files:
        small = _read(file, ours.preprocessing)
        labels.append(small.labels)
        sources += [part.source for part in small.parts]
        scores[OURS].append(ours.logits(ours.read(load()) for load in small.files))
        for part in pieces(len(small), 64):
            pixels = _enlarged(small.pictures[part], other.side)
            scores["64×64"].append(other.cat_log_odds(pixels))
        scores["full size"].append(other.cat_log_odds(_read(file, other.preprocessing).pictures))
        print(f"{file.name}: {len(small):,} pictures", file=sys.stderr)
    joined = {way: np.concatenate(parts) for way, parts in scores.items()}
    return np.concatenate(labels), np.array(sources), joined


def _read(file: Path, spec: Preprocessing) -> PictureSet:
    return read_pictures([file], spec.side, preprocessing=spec, both_classes=False)


def _enlarged(pictures: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    size, bicubic = (side, side), Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(p).resize(size, bicubic)) for p in pictures])


def threshold_of(labels: Array, sources: Sequence[str], log_odds: Array) -> float:
    """The log-odds that part cats from the rest, by the steps and the rule that this project's
    threshold comes from: calibrate on the validation pictures, then choose."""
    calibration = calibrate(log_odds, labels, sources)
    p = sigmoid(calibration.apply(log_odds))
    return float(calibration.inverse(np.asarray(_logit(choose_threshold(labels, p, sources)))))


def _logit(p: float) -> float:
    return log(p / (1 - p))


def judge(
    labels: Array, sources: Array, scores: Scores, thresholds: dict[str, float]
) -> Iterator[str]:
    """A line of a table for each source and way; nothing where a class is missing."""
    for source in np.unique(sources):
        chosen = sources == source
        y = labels[chosen]
        for way, threshold in thresholds.items():
            its = summary(y, sigmoid(scores[way][chosen]), sigmoid(np.asarray(threshold)).item())
            both = (its["roc_auc"], its["balanced_accuracy"])
            figures = "   ".join("       –" if x is None else f"{x:8.3f}" for x in both)
            cats, others = int(y.sum()), int((y != 1).sum())
            called = its["false_positive"] / max(1, others)
            yield f"{source:<10}{cats:>7,}{others:>9,}  {way:<14}{figures}{called:>12.1%}"


def main(
    data: Annotated[Path, typer.Argument(help="a folder with *-val.zip and *-test.zip")],
    variant: Variant = "lite0",
    weights: Annotated[Path, typer.Option(help="of this project")] = DEFAULT_WEIGHTS,
    test: Annotated[bool, typer.Option(help="judge the test pictures")] = False,
    threads: Annotated[int, typer.Option(help="for the other one's scores")] = os.cpu_count() or 1,
) -> None:
    """How good is the default network, compared with a pretrained EfficientNet-Lite?"""
    try:
        if why := not_installed(variant):
            raise Refused(why)
        _compare(data, weights, Lite(variant, threads), test)
    except Refused as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _compare(data: Path, weights: Path, other: Lite, test: bool) -> None:
    ours = Classifier.load(weights)
    labels, sources, scores = score(data_files([data], test=False), ours, other)
    thresholds = {way: threshold_of(labels, sources.tolist(), scores[way]) for way in scores}
    thresholds[OURS] = _logit(ours.threshold)
    if test:
        labels, sources, scores = score(data_files([data], test=True), ours, other)
    print(f"{describe()}\n\n{'test' if test else 'validation'} pictures:\n")
    print("source       cats   others  way                AUC   balanced  others said cat")
    print(*judge(labels, sources, scores, thresholds), sep="\n")
    if test:
        print("\nThe test pictures were opened: log it in training/EXPERIMENTS.md.")


if __name__ == "__main__":
    typer.run(main)
