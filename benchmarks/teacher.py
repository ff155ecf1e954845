"""Write what a pretrained network says of training pictures: the teacher of `fit --teacher`.

    python -m benchmarks.teacher mydata/*-train.zip --output mydata/teacher.npz

EfficientNet-Lite2 sees each picture. On its features, the 1,280 numbers that its last layer takes,
logistic regression is fitted to the labels, by the training code of this project. So that no answer
is learnt by heart, a picture is answered by a regression that did not see it: a hash of its name
puts it into one of four folds. The probabilities of ImageNet's 1,000 classes are summed into a few
groups of animals and things.

The features take about 50 ms a picture and core. They are kept in a folder beside the output, and
read from there by the next run, also where the first was stopped.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import typer
from tqdm import tqdm

from benchmarks.lite import Lite, Variant, not_installed
from model.machine import cores, write_file
from model.network import Array, Layer, Scratch, forward, parameters, pieces
from model.preprocessing import read_picture
from training import Refused
from training.course import initialize_with_zeros, propagate
from training.data import join_small, read_pictures
from training.loop import draw, sampling_weights

FOLDS = 4
STEPS, BATCH = 2000, 1024  # of the regression
SEED = 1  # of its batches
AT_ONCE = 512  # pictures whose features are kept in one file

Files = Sequence[Callable[[], bytes]]

# ImageNet's classes by their numbers, from first to last; the first group is the class to look for
GROUPS: Final = {
    "house cats": [(281, 285)],
    "big cats": [(286, 293)],
    "foxes": [(277, 280)],
    "wolves, wild dogs": [(269, 276)],
    "toy dogs": [(151, 158)],
    "dogs": [(159, 268)],
    "bears, pandas": [(294, 297), (387, 388)],
    "weasels, badgers, mongooses": [(298, 299), (356, 363)],
    "rabbits": [(330, 332)],
    "rodents": [(333, 338)],
    "hoofed, elephants": [(101, 101), (339, 355), (385, 386)],
    "primates, sloths": [(364, 384)],
    "marsupials, sea mammals": [(102, 106), (147, 150)],
    "birds": [(7, 24), (80, 100), (127, 146)],
    "reptiles, amphibians": [(25, 68)],
    "fish": [(0, 6), (389, 397)],
    "insects, spiders, crustaceans": [(69, 79), (107, 126), (300, 329)],
    "food, plants, fungi": [(924, 969), (984, 998)],
    "landscapes": [(970, 980)],
    "people": [(981, 983)],
    "things": [(398, 923), (999, 999)],
}


def group_probabilities(logits: Array) -> Array:
    """The probabilities of GROUPS (m, g), which sum to 1, for logits (m, 1000)."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    sums = [
        sum(e[:, first : last + 1].sum(axis=1) for first, last in ranges)
        for ranges in GROUPS.values()
    ]
    probabilities: Array = np.stack(sums, axis=1) / e.sum(axis=1, keepdims=True)
    return probabilities


# --- features -------------------------------------------------------------------------------------


def see(files: Files, network: Lite, folder: Path, at_once: int = AT_ONCE) -> tuple[Array, Array]:
    """Features (m, 1280) and probabilities of GROUPS (m, g), float16, of the pictures in `files`.
    What the folder has of an earlier run is read, the rest is kept there."""
    parts = [files[part] for part in pieces(len(files), at_once)]
    shown = tqdm(parts, network.variant, unit=f"×{at_once}", disable=None)
    seen = [_see_part(part, network, folder) for part in shown]
    features, groups = zip(*seen, strict=True)
    return np.concatenate(features), np.concatenate(groups)


def _see_part(files: Files, network: Lite, folder: Path) -> tuple[Array, Array]:
    """As `see`, in one file. Its name is a hash of what it is computed from."""
    data = [load() for load in files]
    digest = hashlib.sha256(repr((network.variant, GROUPS)).encode())
    for each in data:
        digest.update(each)
    file = folder / f"{digest.hexdigest()[:24]}.npz"
    if not file.exists():
        spec = network.preprocessing
        pictures = np.stack([read_picture(each, spec).pixels for each in data])
        logits, features = network.answers(pictures)
        groups = group_probabilities(logits)
        write_npz(file, features=features.astype(np.float16), groups=groups.astype(np.float16))
    with np.load(file) as found:
        return found["features"], found["groups"]


def write_npz(file: Path, **arrays: Any) -> None:
    """Write an NPZ, whole or not at all. Raises OSError."""
    data = BytesIO()
    np.savez_compressed(data, **arrays)
    write_file(file, data.getvalue())


# --- logistic regression on them ------------------------------------------------------------------


def out_of_fold(
    features: Array,
    y: Array,
    sources: Sequence[str],
    folds: Array,
    rng: np.random.Generator,
    steps: int = STEPS,
) -> Array:
    """The log-odds z (m,) of the first class, of each picture by the regression without its fold.

    features: (m, n), of any scale: they are standardised. y: labels (m,). All sources are drawn
    equally often, and in each its rarer class more often than it is there, as in training.
    """
    X = features.astype(np.float32)
    X -= X.mean(axis=0)
    X /= X.std(axis=0) + 1e-6
    # Steps below 2 over the largest curvature converge, and that is at most a quarter of the
    # largest eigenvalue of XᵀX/m
    some = X[:: max(1, len(X) // 4096)]
    rate = 4 / max(1, float(np.linalg.eigvalsh(some.T @ some / len(some))[-1]))
    z = np.empty(len(X), np.float32)
    for fold in np.unique(folds):
        rest = folds != fold
        chances = np.zeros(len(X))
        chances[rest] = sampling_weights(y[rest], np.asarray(sources)[rest].tolist())
        rows = draw(chances, steps * BATCH, rng)
        layers = _fit(X, y, rows.reshape(steps, BATCH), rate)
        z[~rest] = forward(layers, X[~rest], Scratch())[-1][:, 0]
    return z


def _fit(X: Array, y: Array, batches: Array, rate: float) -> list[Layer]:
    """Gradient descent from zeros, each step on the rows that `batches` (steps, m) has for it; the
    learning rate falls to 0."""
    layers = initialize_with_zeros(X.shape[1])
    weights = parameters(layers)
    for step, rows in enumerate(batches):
        gradients, _ = propagate(layers, X[rows], y[rows])
        for name, gradient in gradients.items():
            weights[name] -= rate * (1 - step / len(batches)) * gradient
    return layers


# --- the command ----------------------------------------------------------------------------------


def main(
    data: Annotated[list[Path], typer.Argument(help="training pictures, as `fit` takes them")],
    output: Annotated[
        Path, typer.Option(help="the NPZ; features are saved in a folder next to it")
    ],
    variant: Literal["lite0", "lite2", "both"] = "lite2",
    threads: Annotated[int, typer.Option(help="for the pretrained network")] = cores(),
    skip_bad: Annotated[bool, typer.Option(help="as of `fit`")] = False,
) -> None:
    """Write a teacher for `fit --teacher`; exit status 2 where packages or pictures are missing."""
    variants: list[Variant] = ["lite0", "lite2"] if variant == "both" else [variant]
    try:
        if why := not_installed(*variants):
            raise Refused(why)
        _write(data, output, variants, threads, skip_bad)
    except (Refused, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _write(
    data: Sequence[Path], output: Path, variants: Sequence[Variant], threads: int, skip_bad: bool
) -> None:
    pictures = read_pictures(data, side=16, skip_bad=skip_bad)  # whether they all can be read
    sources = join_small([part.source for part in pictures.parts])
    hashes = [hashlib.sha256(os.fsencode(name)).digest() for name in pictures.names]
    folds = np.array([each[0] % FOLDS for each in hashes])
    if len(np.unique(folds)) < FOLDS:
        raise Refused(f"{len(pictures)} pictures are too few to be parted into {FOLDS} folds.")
    folder = output.with_suffix(".features")
    folder.mkdir(parents=True, exist_ok=True)
    seen = [see(pictures.files, Lite(each, threads), folder) for each in variants]
    features = np.concatenate([each for each, _ in seen], axis=1)
    rng = np.random.default_rng(SEED)
    write_npz(
        output,
        name=np.array(pictures.names),
        logit=out_of_fold(features, pictures.labels, sources, folds, rng),
        groups=np.array(list(GROUPS)),
        group_probability=np.mean([groups for _, groups in seen], axis=0, dtype=np.float32),
    )
    print(f"{output}: {len(pictures):,} pictures. {folder} can be deleted.")


if __name__ == "__main__":
    typer.run(main)
