"""What it changes, and what it saves, to let the decoder of a JPEG shrink it.

    python -m benchmarks.scaled_decoding photos.zip
    python -m benchmarks.scaled_decoding photos.zip --weights mine.safetensors

The zip holds photos as their cameras made them. Each is read whole, and with every rule that
`Preprocessing.reducing_gap` can name; the probabilities of the same network are compared. A rule is
accepted where the 95th percentile of the differences is at most 0.02 and at most one label changes.
"""

import argparse
import io
import time
import zipfile
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import describe
from model.classifier import Classifier, default_weights
from model.preprocessing import Preprocessing, read_picture, to_vector

RULES: Final = (1, 2, 3, 4)  # times the network's side that must be left
SIZES: Final = ((256, 256), (1024, 768), (4000, 3000))
MOST_AT_95, MOST_LABELS = 0.02, 1
REPEATS = 7


def compare(photos: list[bytes], classifier: Classifier) -> list[str]:
    """A row of a table for each rule."""
    spec = classifier.preprocessing
    whole = _probabilities(photos, classifier, replace(spec, reducing_gap=None))
    rows = []
    for times in RULES:
        here = _probabilities(photos, classifier, replace(spec, reducing_gap=times))
        moved = np.abs(here - whole)
        labels = int(((here >= classifier.threshold) != (whole >= classifier.threshold)).sum())
        at_95 = float(np.percentile(moved, 95))
        accepted = at_95 <= MOST_AT_95 and labels <= MOST_LABELS
        rows.append(
            f"| at least {times * spec.side} | {at_95:.4f} | {moved.max():.4f} | {labels} | "
            f"{'yes' if accepted else 'no'} |"
        )
    return rows


def _probabilities(
    photos: list[bytes], classifier: Classifier, spec: Preprocessing
) -> NDArray[np.float64]:
    pixels = np.stack([read_picture(data, spec).pixels for data in photos])
    return classifier.probabilities(to_vector(pixels))


def time_reading(photo: bytes, spec: Preprocessing) -> list[str]:
    """A row of a table for each size: milliseconds whole, and with every rule, at best."""
    original = Image.open(io.BytesIO(photo)).convert("RGB")
    rows = []
    for width, height in SIZES:
        buffer = io.BytesIO()
        original.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=87)
        data = buffer.getvalue()
        specs = [replace(spec, reducing_gap=times) for times in (None, *RULES)]
        taken = [[_milliseconds(data, each) for each in specs] for _ in range(REPEATS)]
        cells = " | ".join(f"{each:.2f}" for each in np.min(taken, axis=0))
        rows.append(f"| {width} × {height}, {len(data) / 1e3:,.0f} kB | {cells} |")
    return rows


def _milliseconds(data: bytes, spec: Preprocessing) -> float:
    start = time.perf_counter()
    read_picture(data, spec)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", help="a zip with photos as their cameras made them")
    parser.add_argument("--weights", default=default_weights(), help="of the network compared")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.photos) as archive:
        names = [each for each in archive.namelist() if each.lower().endswith((".jpg", ".jpeg"))]
        photos = [archive.read(each) for each in names]
    classifier = Classifier.load(arguments.weights)
    print(describe())
    print(f"{classifier.name} {classifier.version}, {len(photos)} photos\n")
    print("| pixels left a side | 95 % move at most | largest | labels changed | accepted |")
    print("|---|---|---|---|---|")
    print(*compare(photos, classifier), sep="\n")
    sides = " | ".join(f"at least {times * classifier.preprocessing.side}" for times in RULES)
    print(f"\nMilliseconds to read a picture, the best of {REPEATS}:\n")
    print(f"| picture | whole | {sides} |")
    print("|---|---|" + "---|" * len(RULES))
    print(*time_reading(max(photos, key=len), classifier.preprocessing), sep="\n")


if __name__ == "__main__":
    main()
