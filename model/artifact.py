"""The file a classifier is kept in: safetensors, which is tensors and a header of texts.

Reading it runs no code. The header's one text is a JSON object; what its values mean is the
business of model.classifier, but for the network: it is stored as a description, a list of layers,
`{"kind": "linear"}` with the settings of each and, for one that is made of layers, the description
of those. Tensors carry the names of `network.parameters`: `<place in the list>.<name>`.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from model import network
from model.convolution import Convolution
from model.network import Array, Layer, Residual

MAX_BYTES = 2**30
_VALUES: Final = "values"  # the name of the header's text


def pack(values: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Lay out a file; the same content gives the same bytes on every run.

    All values are one text: the library writes several in an order that changes from run to run.
    tensors: float32 or float16, of any shape.
    """
    text = json.dumps(values, sort_keys=True)
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    return safetensors.numpy.save(contiguous, {_VALUES: text})


def digest(values: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]]) -> str:
    """Return 12 hex digits that name this content, however it is stored."""
    content = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        content.update(f"{name} {value.shape} ".encode() + value.astype("<f4").tobytes())
    return content.hexdigest()[:12]


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Return the values and the tensors, in float32, of a file; raises ValueError."""
    if not data:
        raise ValueError("it is empty")
    try:
        stored = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: numbers of another kind
        raise ValueError(f"it is damaged or not a safetensors file ({error})") from error
    for name, value in stored.items():
        if value.dtype not in (np.float32, np.float16):
            kind = f"{value.dtype}, expected float32 or float16"
            raise ValueError(f"its tensor {name} is stored as {kind}")
    header_size = int.from_bytes(data[:8], "little")
    texts = json.loads(data[8 : 8 + header_size]).get("__metadata__") or {}
    try:
        values = dict(json.loads(texts.get(_VALUES, "{}"), parse_constant=_refuse))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(
            "it is damaged or not a classifier of this project: its values are not JSON"
        ) from None
    return values, {name: value.astype(np.float32) for name, value in stored.items()}


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")  # NaN and infinities, which Python would read


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file; raises ValueError if it is not a file, missing or too large."""
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            if not S_ISREG(status.st_mode):
                raise ValueError("it is not a regular file")
            if status.st_size > MAX_BYTES:
                raise ValueError(f"it has {status.st_size:,} bytes, too many for a weights file")
            return file.read()
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from error


_LAYERS = (
    *(network.Linear, network.Standardise, Convolution, network.Relu, network.MaxPool),
    *(network.GlobalAverage, Residual),
)
_KINDS: dict[str, type[Layer]] = {layer.kind: layer for layer in _LAYERS}


def summary(layers: Sequence[Layer]) -> str:
    """What the layers are, in words: "12 convolutions, 4 residual blocks, 1 linear layer"."""
    names = {
        Convolution: "convolution",
        Residual: "residual block",
        network.Linear: "linear layer",
    }
    counts = [(_count(layers, of), name) for of, name in names.items()]
    if len(layers) == 1 and isinstance(layers[0], network.Linear):
        return "logistic regression on the pixels"
    return ", ".join(f"{n} {name}{'s' if n > 1 else ''}" for n, name in counts if n)


def _count(layers: Sequence[Layer], of: type[Layer]) -> int:
    inside = sum(_count(layer.layers, of) for layer in layers if isinstance(layer, Residual))
    return inside + sum(isinstance(layer, of) for layer in layers)


def describe(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """The description of the layers."""
    return [
        {"kind": layer.kind, **layer.settings()}
        | ({"layers": describe(layer.layers)} if isinstance(layer, Residual) else {})
        for layer in layers
    ]


def build(description: Sequence[Mapping[str, Any]], tensors: Mapping[str, Array]) -> list[Layer]:
    """The layers that a description and its tensors stand for, in float32.

    Raises ValueError, saying which, for an unknown layer, a tensor that is left over, and numbers
    that are not finite; TypeError for a setting or tensor that is missing or not the layer's.
    """
    unused = dict(tensors)
    layers = [_layer(entry, unused, f"{i}.") for i, entry in enumerate(description)]
    if unused:
        raise ValueError(f"tensors that belong to no layer: {', '.join(sorted(unused))}")
    return layers


def _layer(entry: Mapping[str, Any], unused: dict[str, Array], prefix: str) -> Layer:
    settings = dict(entry)
    kind = settings.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"layer {prefix[:-1]} is of an unknown kind: {kind!r}")
    if _KINDS[kind] is Residual:
        inner = enumerate(settings["layers"])
        settings["layers"] = [_layer(each, unused, f"{prefix}{i}.") for i, each in inner]
    for name in [name for name in unused if name.rpartition(".")[0] + "." == prefix]:
        value = unused.pop(name)
        if not np.isfinite(value).all():
            raise ValueError(f"tensor {name} holds numbers that are not finite")
        settings[name.removeprefix(prefix)] = np.ascontiguousarray(value, dtype=np.float32)
    return _KINDS[kind](**settings)
