"""A trained network with everything needed to use it, in one file: load, save, predict.

The file names the preprocessing and holds a golden pair, a picture and its probability, so that
weights that this code would use differently from how they were trained are refused at loading.
"""

import base64
import hashlib
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model import bands
from model.architecture import build, describe
from model.artifact import pack, read_file, unpack, write_file
from model.bands import Band, default_bands, words_for
from model.network import Layer, Scratch, forward, parameters, pieces, prepare, sigmoid
from model.preprocessing import (
    DEFAULT_LIMITS,
    InvalidImage,
    Limits,
    Picture,
    Preprocessing,
    read_picture,
    to_vector,
)
from model.statistics import Usual

FORMAT_VERSION = 1
# Pictures that go through the network together. With one more, and their mirror images, the
# deepest convolutions would keep four times their weights (`model.convolution.FEW_TILES`).
PICTURES_AT_ONCE = 3
LONGEST = 80  # characters of a name
GOLDEN_TOLERANCE = 1e-3  # other processors and decoders differ in the last digits

_OWN_KEYS = (
    *("format_version", "name", "class_names", "threshold", "bands"),
    *("preprocessing", "architecture", "golden"),
)


class BadArtifact(ValueError):
    """A weights file that is not used; the message says which, what is wrong, and what to do."""

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


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture."""

    cat_probability: float  # of the first class, whatever its name; in [0, 1]
    label: str
    words: str  # for people, with how sure it is: "cat, quite sure"
    warnings: tuple[str, ...]
    picture: Picture


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network, its preprocessing and its words. Any number of threads may predict with it."""

    name: str
    class_names: tuple[str, str]  # cat_probability is the probability of the first
    threshold: float  # from it on, the first class is the label; in (0, 1)
    layers: Sequence[Layer]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    bands: tuple[Band, ...] = ()  # words for probabilities; empty for those that fit the threshold
    metadata: dict[str, Any] = field(default_factory=dict)  # how it was trained: JSON values
    golden: Golden | None = None
    version: str = ""  # 12 hex digits of a hash of what decides the answers; empty while in no file
    # Buffers for passes; there come to be as many as there were passes at the same time
    _scratches: deque[Scratch] = field(default_factory=deque, init=False, repr=False)

    def predict(self, data: bytes, limits: Limits = DEFAULT_LIMITS) -> Prediction:
        """Answer for the bytes of a picture; raises InvalidImage."""
        return self.answers([self.read(data, limits)])[0]

    def read(self, data: bytes, limits: Limits = DEFAULT_LIMITS) -> Picture:
        """Decode the bytes of a picture, and squeeze it to what the network takes; raises
        InvalidImage."""
        return read_picture(data, self.preprocessing, limits)

    def answers(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """Answer for each of these pictures; together they take less time than alone."""
        X = to_vector(np.stack([picture.pixels for picture in pictures]))
        return [
            Prediction(
                probability,
                self.class_names[0 if probability >= self.threshold else 1],
                self.words(probability),
                picture.warnings,
                picture,
            )
            for picture, probability in zip(pictures, self.probabilities(X).tolist(), strict=True)
        ]

    def words(self, probability: float) -> str:
        """Return the words for a probability of the first class."""
        return words_for(probability, self.all_bands)

    @property
    def all_bands(self) -> tuple[Band, ...]:
        """The bands of its own, or else those that fit its threshold."""
        return self.bands or default_bands(self.class_names, self.threshold)

    @cached_property
    def usual(self) -> Usual | None:
        """What pictures usually are, by which unlike ones are told; None in older artifacts."""
        return Usual.from_metadata(self.metadata)

    def probabilities(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return σ(z), (m,) in [0, 1], for pictures X, (m, side·side·3) in [0, 1]."""
        try:
            scratch = self._scratches.pop()
        except IndexError:
            scratch = Scratch()
        z = np.empty(len(X))
        for part in pieces(len(X), PICTURES_AT_ONCE):
            z[part] = forward(self.layers, X[part], scratch)[-1][:, 0]
        self._scratches.append(scratch)
        return sigmoid(z)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Classifier":
        """Read and check a weights file; raises BadArtifact and nothing else."""
        try:
            return _from_bytes(read_file(path))
        except ValueError as error:
            raise BadArtifact(path, str(error)) from error

    def save(
        self, path: str | os.PathLike[str], dtype: Literal["float32", "float16"] = "float32"
    ) -> "Classifier":
        """Write the weights file, whole or not at all, and return what loading it gives.

        The golden probability is computed anew, with the numbers as they are stored. Raises
        BadArtifact where loading would refuse the file, and OSError where it cannot be written;
        a file that was there is then still as it was.
        """
        try:
            data = self._to_bytes(dtype)
            saved = _from_bytes(data)
        except ValueError as error:
            raise BadArtifact(path, f"it was not written, since {error}") from error
        write_file(path, data)
        return saved

    def _to_bytes(self, dtype: Literal["float32", "float16"]) -> bytes:
        if self.golden is None:
            raise ValueError("the classifier has no golden picture")
        with np.errstate(over="ignore"):  # too large for float16: build says which tensor
            tensors = {name: value.astype(dtype) for name, value in parameters(self.layers).items()}
        description = describe(self.layers)
        stored = replace(self, layers=_network(description, tensors))
        golden = self.golden.picture
        values = {
            **self.metadata,
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "class_names": self.class_names,
            "threshold": self.threshold,
            "bands": bands.to_json(self.all_bands),
            "preprocessing": self.preprocessing.to_json(),
            "architecture": description,
            "golden": {
                "picture": base64.b64encode(golden).decode(),
                "probability": stored.predict(golden).cat_probability,
            },
        }
        return pack(values, tensors)


def default_weights() -> Path:
    """Return the path of the weights that come with the project."""
    return Path(__file__).with_name("cat.safetensors")


def _from_bytes(data: bytes) -> Classifier:
    """Return the classifier that a file holds; raises ValueError, saying what is wrong with it."""
    values, tensors = unpack(data)
    if "format_version" not in values:
        raise ValueError("it is a safetensors file, but no classifier of this project")
    if type(values["format_version"]) is not int or values["format_version"] != FORMAT_VERSION:
        found = values["format_version"]
        raise ValueError(f"its format version is {found!r}, and this code reads {FORMAT_VERSION}")
    missing = [key for key in _OWN_KEYS if key not in values]
    if missing:
        raise ValueError(f"its metadata lack {', '.join(missing)}")
    classifier = Classifier(
        name=_name(values["name"]),
        class_names=_class_names(values["class_names"]),
        threshold=_threshold(values["threshold"]),
        bands=bands.from_json(values["bands"]),
        layers=_network(values["architecture"], tensors),
        preprocessing=Preprocessing.from_json(values["preprocessing"]),
        metadata={key: value for key, value in values.items() if key not in _OWN_KEYS},
        golden=(golden := _golden(values["golden"])),
        version=_version(values, tensors),
    )
    _check_golden(classifier, golden)
    return classifier


def _version(values: Mapping[str, Any], tensors: dict[str, NDArray[Any]]) -> str:
    """Name what decides the answers: metrics recorded later leave a model the version it had."""
    deciding = {key: values[key] for key in _OWN_KEYS if key != "golden"}
    return hashlib.sha256(pack(deciding, tensors)).hexdigest()[:12]


def _network(description: Any, tensors: Mapping[str, NDArray[Any]]) -> list[Layer]:
    try:
        layers = build(description, tensors)
        prepare(layers)
    except ValueError:
        raise
    except Exception as error:  # numbers of any size and kind reach the layers' constructors
        raise ValueError(f"its architecture cannot be built ({error})") from error
    return layers


def _name(value: object) -> str:
    if not isinstance(value, str) or not _is_a_word(value):
        raise ValueError(f"its name must be a printable text of at most {LONGEST}, not {value!r}")
    return value


def _is_a_word(text: str) -> bool:
    """Whether a text is fit to be printed into a line of a log and every answer."""
    return 0 < len(text) <= LONGEST and text.isprintable()


def _class_names(value: object) -> tuple[str, str]:
    match value:
        case [str(first), str(second)] if first != second and all(map(_is_a_word, value)):
            return first, second
    raise ValueError(
        f"its class_names must be two different printable names of at most {LONGEST}, not {value!r}"
    )


def _threshold(value: object) -> float:
    if not isinstance(value, float) or not 0 < value < 1:
        raise ValueError(f"its threshold must be a number between 0 and 1, not {value!r}")
    return value


def _golden(value: object) -> Golden:
    match value:
        case {"picture": str(picture), "probability": float(probability)}:
            return Golden(base64.b64decode(picture, validate=True), probability)
    raise ValueError("its golden pair must be a picture in base64 and a probability")


def _check_golden(classifier: Classifier, golden: Golden) -> None:
    try:
        shape = _output_shape(classifier)
        probability = classifier.predict(golden.picture).cat_probability
    except InvalidImage as error:
        raise ValueError(f"its golden picture cannot be read ({error})") from error
    except Exception as error:  # tensors that fit their layers, but not each other
        raise ValueError(f"its network does not run ({error})") from error
    if shape != (1, 1):
        raise ValueError(f"its network gives numbers of the shape {shape}, expected (1, 1)")
    if not abs(probability - golden.probability) <= GOLDEN_TOLERANCE:
        raise ValueError(
            f"its golden picture gives the probability {probability:.4f}, expected "
            f"{golden.probability:.4f}: this code reads or scales pictures differently from the "
            "code that trained it"
        )


def _output_shape(classifier: Classifier) -> tuple[int, ...]:
    side = classifier.preprocessing.side
    black = np.zeros((1, side * side * 3), np.float32)
    return forward(classifier.layers, black, Scratch())[-1].shape
