"""A network as a description (JSON values) and named tensors, and back: what an artifact stores.

The description is a list of layers, `{"kind": "linear"}`, with the settings of each and, for one
that is made of layers, the description of those. Tensors carry the names of
`network.parameters`: `<place in the list>.<name>`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.convolution import Convolution
from model.network import (
    Array,
    Composite,
    GlobalAverage,
    Layer,
    Linear,
    MaxPool,
    Mirrored,
    Relu,
    Residual,
    Standardise,
)

_KINDS: dict[str, type[Layer]] = {
    layer.kind: layer
    for layer in (
        *(Linear, Standardise, Convolution, Relu, MaxPool, GlobalAverage),
        *(Residual, Mirrored),
    )
}
_DIMENSIONS = {"weights": {"linear": 2, "convolution": 4}, "bias": {"linear": 1, "convolution": 1}}


def describe(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """The description of the layers."""
    return [
        {"kind": layer.kind, **layer.settings()}
        | ({"layers": describe(layer.layers)} if isinstance(layer, Composite) else {})
        for layer in layers
    ]


def build(description: Sequence[Mapping[str, Any]], tensors: Mapping[str, Array]) -> list[Layer]:
    """The layers that a description and its tensors stand for, in float32.

    Raises ValueError, saying which, for an unknown layer, a setting or tensor that is missing,
    left over or of the wrong number of dimensions, and for numbers that are not finite.
    """
    unused = dict(tensors)
    layers = _build(description, unused, "")
    if unused:
        raise ValueError(f"tensors that belong to no layer: {', '.join(sorted(unused))}")
    return layers


def _build(
    description: Sequence[Mapping[str, Any]], unused: dict[str, Array], prefix: str
) -> list[Layer]:
    if isinstance(description, (str, bytes)) or not isinstance(description, Sequence):
        raise ValueError("the architecture is not a list of layers")
    return [_layer(entry, unused, f"{prefix}{i}.") for i, entry in enumerate(description)]


def _layer(entry: Mapping[str, Any], unused: dict[str, Array], prefix: str) -> Layer:
    settings = dict(entry) if isinstance(entry, Mapping) else {}
    kind = settings.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"layer {prefix[:-1]} is of an unknown kind: {kind!r}")
    composite = issubclass(_KINDS[kind], Composite)
    if composite:
        settings["layers"] = _build(settings.get("layers", ()), unused, prefix)
    own = [] if composite else [n for n in unused if n.rpartition(".")[0] + "." == prefix]
    for name in own:
        settings[name.removeprefix(prefix)] = _tensor(kind, name, unused.pop(name))
    try:
        return _KINDS[kind](**settings)
    except (TypeError, IndexError, KeyError) as error:
        raise ValueError(f"layer {prefix[:-1]} ({kind}) cannot be built: {error}") from None


def _tensor(kind: str, name: str, value: Array) -> Array:
    expected = _DIMENSIONS.get(name.rpartition(".")[2], {}).get(kind)
    if expected is None:
        raise ValueError(f"tensor {name} is none that a layer of the kind {kind} has")
    if value.ndim != expected:
        raise ValueError(f"tensor {name} has shape {value.shape}, expected {expected} dimensions")
    if not np.isfinite(value).all():
        raise ValueError(f"tensor {name} holds numbers that are not finite")
    return np.ascontiguousarray(value, dtype=np.float32)
