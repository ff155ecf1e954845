"""A trained network with everything needed to use it, in one file: load, save, predict.

The file names the preprocessing and holds golden pictures with their probabilities, so that
weights that this code would use differently from how they were trained are refused at loading.
"""

import base64
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.artifact import build, describe, digest, pack, read_file, unpack
from model.machine import write_file
from model.network import Layer, Scratch, forward, parameters, pieces, sigmoid
from model.preprocessing import (
    DEFAULT_LIMITS,
    ONE_VIEW,
    InvalidImage,
    Limits,
    Picture,
    PictureReader,
    Preprocessing,
    Views,
    mirror_images,
    to_vector,
)
from model.worker import CannotLoad

FORMAT_VERSION = 2
# Rows that go through the network together: three pictures and their mirror images. From 8 on, the
# deepest convolutions would keep four times their weights (`model.convolution.FEW_TILES`).
ROWS_AT_ONCE = 6
READ_AT_ONCE = 12  # pictures that `logits` holds
LONGEST = 80  # characters of a name
INPUT_STATISTICS = "input_statistics"  # in an artifact's metadata
STATISTICS = ("brightness", "contrast", "colourfulness", "sharpness")
LEAST_DEVIATION = 1e-3  # else all others would be infinitely far from pictures all alike
GOLDEN_TOLERANCE = 1e-3  # other processors and decoders differ in the last digits

# What decides the answers, beside the tensors.
_DECIDING = (
    *("format_version", "name", "class_names", "threshold"),
    *("preprocessing", "views", "architecture"),
)

ViewMode = Literal["all", "one"]  # at all views where the whole leaves the network unsure, or never


class BadArtifact(CannotLoad, ValueError):
    """A weights file that cannot be used. The message says which file, what is wrong and what to
    do."""

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        super().__init__(
            f"The weights file {os.fspath(path)} cannot be used: {what}. "
            "Name another file, or train one with `python -m training`."
        )


@dataclass(frozen=True)
class Golden:
    """An encoded picture and the probability that the right code gives for it."""

    picture: bytes
    probability: float


def statistics(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Brightness, contrast, colourfulness and sharpness of a picture (side, side, 3), side > 1.

    Each is in 0 to 255. Of the grey picture, which is the mean of red, green and blue: its mean,
    its standard deviation, and the mean difference of neighbours; and the mean of max − min of the
    colours.
    """
    colours = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)  # NumPy is fast on these
    grey = colours.mean(axis=0)
    spread = colours.max(axis=0) - colours.min(axis=0)
    steps = np.abs(np.concatenate([np.diff(grey, axis=axis).ravel() for axis in (0, 1)]))
    return np.array([grey.mean(), grey.std(), spread.mean(), steps.mean()], np.float64)


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """What `statistics` are for the pictures that a network was measured on: (4,) each.

    A picture's distance is the root mean square of how many deviations it is from the means: 1 is
    usual, and what stays above 2 or 3 is not what the network was measured on.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, pictures: Iterable[NDArray[np.uint8]]) -> "InputStatistics":
        """Mean and standard deviation over pictures, one or more, each (side, side, 3)."""
        rows = np.stack([statistics(pixels) for pixels in pictures])
        return cls(rows.mean(0), np.maximum(rows.std(0), LEAST_DEVIATION))

    def distance(self, pixels: NDArray[np.uint8]) -> float:
        """The root mean square of the z-scores of a picture (side, side, 3); 0 or more."""
        z = (statistics(pixels) - self.mean) / self.deviation
        return math.sqrt(z @ z / len(z))

    def to_json(self) -> dict[str, Any]:
        """The value that an artifact's metadata hold under INPUT_STATISTICS."""
        mean, deviation = self.mean.tolist(), self.deviation.tolist()
        return {"names": [*STATISTICS], "mean": mean, "deviation": deviation}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "InputStatistics | None":
        """What to_json wrote; None where an artifact has none, or one of other numbers."""
        match metadata.get(INPUT_STATISTICS):
            case {"names": names, "mean": mean, "deviation": deviation} if names == [*STATISTICS]:
                return cls(np.array(mean), np.array(deviation))
        return None


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one picture."""

    cat_probability: float  # of the first class, whatever its name; in [0, 1]
    label: str
    words: str  # for people, with how sure it is: "cat, quite sure"
    warnings: tuple[str, ...]
    picture: Picture
    view_pixels: NDArray[np.uint8]  # (views, side, side, 3): what was looked at, the whole first
    view_logits: NDArray[np.float64]  # (views,): the probability is σ of their mean

    @property
    def views(self) -> int:
        """The number of views used: 1, or all that the weights file defines."""
        return len(self.view_logits)


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network, its preprocessing and its words. One thread at a time may use it."""

    name: str
    class_names: tuple[str, str]  # cat_probability is the probability of the first
    threshold: float  # from it on, the first class is the label; in (0, 1)
    layers: Sequence[Layer]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    views: Views = ONE_VIEW
    metadata: dict[str, Any] = field(default_factory=dict)  # how it was trained: JSON values
    golden: tuple[Golden, ...] = ()
    version: str = ""  # 12 hex digits of a hash of what decides the answers; empty while in no file
    _scratch: Scratch = field(default_factory=Scratch, init=False, repr=False)

    def predict(
        self, data: bytes, limits: Limits = DEFAULT_LIMITS, views: ViewMode = "all"
    ) -> Prediction:
        """Answer for the bytes of a picture; raises InvalidImage."""
        return self.answers([self.read(data, limits)], views)[0]

    def read(
        self, data: bytes | NDArray[np.uint8], limits: Limits = DEFAULT_LIMITS
    ) -> PictureReader:
        """Read the whole of a picture, for `answers` and `logits`; raises InvalidImage.

        data: its bytes, or the pixels of an upright one, (height, width, 3) RGB. Pixels get the
        answer of a PNG of them; and of the JPEG that they were decoded from at its whole size,
        where that has less than twice the side that the network takes.
        """
        return PictureReader(data, self.preprocessing, limits, self.views)

    def answers(
        self, readers: Sequence[PictureReader], views: ViewMode = "all"
    ) -> list[Prediction]:
        """Answer for each of these pictures; together they take less time than alone."""
        return [
            self._prediction(reader.picture, *seen)
            for reader, seen in zip(readers, self._view_logits(readers, views), strict=True)
        ]

    def logits(
        self, readers: Iterable[PictureReader], views: ViewMode = "all"
    ) -> NDArray[np.float64]:
        """Return z (m,) for many pictures; σ(z) are the probabilities that `predict` gives.

        readers: of `read`, such as `map(classifier.read, pictures)`; READ_AT_ONCE are held.
        views: "one" gives the logits of the wholes. With them, every choice of bounds is known:

            always = replace(classifier, views=replace(classifier.views, unsure=(-1e9, 1e9)))
            one, all_views = always.logits(readers, "one"), always.logits(readers)
            z = np.where((low < one) & (one < high), all_views, one)
        """
        found: list[float] = []
        rest = iter(readers)
        while some := list(islice(rest, READ_AT_ONCE)):
            found += [float(z.mean()) for _, z in self._view_logits(some, views)]
        return np.array(found)

    def _view_logits(
        self, readers: Sequence[PictureReader], views: ViewMode
    ) -> list[tuple[NDArray[np.uint8], NDArray[np.float64]]]:
        """Return pixels (n, side, side, 3) and logits (n,) of each picture's view.

        The wholes go through the network together, then the other views of each that leaves it
        unsure.
        """
        wholes = np.stack([reader.picture.pixels for reader in readers])
        seen = []
        for i, whole in enumerate(self._whole_logits(to_vector(wholes))):
            pixels, z = wholes[i : i + 1], np.array([whole])
            if views == "all" and self.views.is_unsure(whole):
                others = readers[i].other_views()
                pixels = np.concatenate([pixels, others])
                z = np.append(z, self._logits(to_vector(others)))
            seen.append((pixels, z))
        return seen

    def _prediction(
        self, picture: Picture, pixels: NDArray[np.uint8], z: NDArray[np.float64]
    ) -> Prediction:
        probability = float(sigmoid(z.mean()))
        label = self.class_names[0 if probability >= self.threshold else 1]
        words = self.words(probability)
        return Prediction(probability, label, words, picture.warnings, picture, pixels, z)

    def words(self, probability: float) -> str:
        """Return the words for a probability of the first class."""
        return next(words for start, words in reversed(self.bands) if probability >= start)

    @property
    def bands(self) -> tuple[tuple[float, str], ...]:
        """Five pairs of a probability and the words from it on, up to the next: quite sure from 0.9
        on (and below 0.1), not sure between 1/3 and 2/3.

        A threshold far from 0.5 moves them, so that "not sure" lies on both sides of it and no
        words contradict the label: each border is at most a third, or two thirds, of the way from
        its end to the threshold.
        """
        first, other = self.class_names
        no = f"no {first}" if other in (f"non-{first}", f"not-{first}", f"no-{first}") else other
        below, above = self.threshold, 1 - self.threshold
        return (
            (0.0, f"{no}, quite sure"),
            (min(0.1, below / 3), f"{no}, probably"),
            (min(1 / 3, below * 2 / 3), "not sure"),
            (max(2 / 3, 1 - above * 2 / 3), f"{first}, probably"),
            (max(0.9, 1 - above / 3), f"{first}, quite sure"),
        )

    @cached_property
    def input_statistics(self) -> InputStatistics | None:
        """What training pictures are like, to notice unlike ones; None if not measured."""
        return InputStatistics.from_metadata(self.metadata)

    def probabilities(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return σ(z), (m,) in [0, 1], for whole pictures X, (m, side·side·3) in [0, 1]."""
        return sigmoid(self._whole_logits(X))

    def _whole_logits(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return z, (m,), for rows X of whole pictures."""
        if not self.views.mirror:
            return self._logits(X)
        both = np.concatenate([X, mirror_images(X, self.preprocessing.side)])
        z: NDArray[np.float64] = self._logits(both).reshape(2, -1).mean(axis=0)
        return z

    def _logits(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return z, (m,), for rows X, a view each."""
        z = np.empty(len(X))
        for part in pieces(len(X), ROWS_AT_ONCE):
            z[part] = forward(self.layers, X[part], self._scratch)[-1].reshape(-1)
        return z

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Classifier":
        """Read and check a weights file; raises BadArtifact and nothing else."""
        try:
            return _from_bytes(read_file(path))
        except ValueError as error:
            raise BadArtifact(path, str(error)) from error
        except Exception as error:  # values of any kind reach what is built from them
            raise BadArtifact(path, f"it is damaged ({error!r})") from error

    def save(
        self, path: str | os.PathLike[str], dtype: Literal["float32", "float16"] = "float32"
    ) -> "Classifier":
        """Write the weights file, whole or not at all, and return what loading it gives.

        Golden probabilities are computed again, with the numbers as they are stored. Raises
        BadArtifact where loading would refuse the file, and OSError where it cannot be written; a
        file that was there is then still as it was.
        """
        try:
            data = self._to_bytes(dtype)
            saved = _from_bytes(data)
        except ValueError as error:
            raise BadArtifact(path, f"it was not written, since {error}") from error
        write_file(path, data)
        return saved

    def _to_bytes(self, dtype: Literal["float32", "float16"]) -> bytes:
        if not self.golden:
            raise ValueError("the classifier has no golden picture")
        with np.errstate(over="ignore"):  # too large for float16: build says which tensor
            tensors = {name: value.astype(dtype) for name, value in parameters(self.layers).items()}
        description = describe(self.layers)
        stored = replace(self, layers=build(description, tensors))
        values = {
            **self.metadata,
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "class_names": self.class_names,
            "threshold": self.threshold,
            "preprocessing": self.preprocessing.to_json(),
            "views": self.views.to_json(),
            "architecture": description,
            "golden": [
                {
                    "picture": base64.b64encode(golden.picture).decode(),
                    "probability": stored.predict(golden.picture).cat_probability,
                }
                for golden in self.golden
            ],
        }
        return pack(values, tensors)


def _from_bytes(data: bytes) -> Classifier:
    """Return the classifier that a file holds; raises ValueError, saying what is wrong with it."""
    values, tensors = unpack(data)
    version = values.get("format_version")
    if version is None:
        raise ValueError(f"it is not a weights file of format version {FORMAT_VERSION}")
    if version != FORMAT_VERSION:
        raise ValueError(f"its format version is {version!r}, and this code reads {FORMAT_VERSION}")
    for key, (is_valid, expected) in _VALID.items():
        if key not in values or not is_valid(values[key]):
            raise ValueError(f"its {key} must be {expected}, not {values.get(key)!r:.200}")
    classifier = Classifier(
        name=values["name"],
        class_names=tuple(values["class_names"]),
        threshold=values["threshold"],
        layers=build(values["architecture"], tensors),
        preprocessing=Preprocessing.from_json(values.get("preprocessing")),
        views=Views.from_json(values.get("views")),
        metadata={key: values[key] for key in values if key not in (*_DECIDING, "golden")},
        golden=tuple(map(_golden, values["golden"])),
        # Metrics that are recorded later leave a model the version it had.
        version=digest({key: values[key] for key in _DECIDING}, tensors),
    )
    _check_golden(classifier)
    return classifier


def _is_word(value: object) -> bool:
    """Whether a text is fit to be printed into a line of a log and every answer."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST and value.isprintable()


def _are_names(value: object) -> bool:
    return isinstance(value, list) and len({*filter(_is_word, value)}) == len(value) == 2


_VALID: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_word, f"printable text of at most {LONGEST} characters"),
    "class_names": (_are_names, f"two printable names of at most {LONGEST} characters"),
    "threshold": (lambda value: type(value) is float and 0 < value < 1, "between 0 and 1"),
    "golden": (lambda it: isinstance(it, list) and bool(it), "pictures with their probabilities"),
}


def _golden(value: Any) -> Golden:
    match value:
        case {"picture": str(picture), "probability": float(probability)}:
            return Golden(base64.b64decode(picture, validate=True), probability)
    raise ValueError("its golden pictures must be in base64, each with a probability")


def _check_golden(classifier: Classifier) -> None:
    try:
        found = [classifier.predict(each.picture).cat_probability for each in classifier.golden]
    except InvalidImage as error:
        raise ValueError(f"its golden picture cannot be read ({error})") from error
    except Exception as error:  # tensors that fit their layers, but not each other
        raise ValueError(f"its network does not run ({error})") from error
    for golden, probability in zip(classifier.golden, found, strict=True):
        if not abs(probability - golden.probability) <= GOLDEN_TOLERANCE:
            raise ValueError(
                f"its golden picture gives the probability {probability:.4f}, expected "
                f"{golden.probability:.4f}: this code reads or scales pictures differently from "
                "the code that trained it"
            )
