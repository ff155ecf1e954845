"""Explain an answer: how much each pixel is evidence for the first class.

At one picture every layer here is linear plus a bias: ReLU and maxima only choose which numbers
pass. So the logit z is a sum, exactly, over the numbers a of any one stage and the biases after it:

    z = Σ a · ∂z/∂a + Σ b · ∂z/∂y     y: the outputs of a layer, to which its bias b was added

For logistic regression, whose one stage is the picture, that is w⊙x and the bias. In a deeper
network it is exact at every stage, and differs: near the picture terms are fine, but large, and
neighbours cancel; deep down they are telling, but coarse. So the heat map is the mean of such sums
over stages, one of each size from the picture down to GRID positions per side. Every place's term
is spread softly over the pixels where it lies, which changes no sum. The parts are known: gradient
times activation is HiResCAM (Draelos and Carin 2020, arXiv:2011.08891), and that biases belong to
it is FullGrad's (Srinivas and Fleuret 2019, arXiv:1905.00780). Terms without a position, such as
the last bias, are reported separately.

Where the logit is a mean, over views or over the whole and its mirror image, so is the map. Each
view's own lies where its box does, and that of the mirror image is turned back.

Cost: one forward pass and one backward pass per view, and for the whole's mirror image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.network import Array, Layer, Linear, Residual, Scratch, forward
from model.preprocessing import ONE_VIEW, Box, Views, to_vector

GRID = 8  # places a side: coarser stages say too little of where
SPREAD = 3 / 64  # of the picture's side: the standard deviation of a term's place, at least
FOR, AGAINST = np.array([214, 68, 12]), np.array([24, 92, 216])  # orange and blue
ENLARGED = 4  # pixels a side of an overlay for each of the picture's


@dataclass(frozen=True)
class Method:
    """How a heat map was made, for people."""

    name: str
    description: str


@dataclass(frozen=True, eq=False)
class Explanation:
    """A logit taken apart: heat.sum() + bias = logit, but for rounding."""

    heat: NDArray[np.float32]  # (side, side), logit units; positive speaks for the first class
    bias: float  # logit units: the part that has no place in the picture
    logit: float
    method: Method


WEIGHTS = Method(
    "weights times pixels",
    "Each pixel's value times its weight, summed over red, green and blue. The pixels and the "
    "bias add up to the logit.",
)
STAGES = Method(
    "gradient times activation with biases, mean over stages",
    "At several layers, from the picture down to 8×8 positions: each activation times the "
    "derivative of the logit (HiResCAM), and each later bias times its derivative (FullGrad). "
    "The map is the mean over these layers, each smoothed to full size. The map and the bias add "
    "up to the logit.",
)
OVER_VIEWS = (
    " The model used several views of the picture. The map is the mean of their maps, each "
    "placed where its view is."
)


def explain_views(
    layers: Sequence[Layer], pixels: NDArray[np.uint8], views: Views = ONE_VIEW
) -> Explanation:
    """Take the mean of the logits of views apart, as `Classifier.predict` works them out.

    pixels: (n, side, side, 3) uint8, the whole picture first; if it was not all that was used, then
    what is in the other boxes of `views`.
    """
    parts = [explain(layers, each) for each in pixels]
    if views.mirror:
        mirrored = explain(layers, pixels[0, :, ::-1])
        heat = [parts[0].heat, mirrored.heat[:, ::-1]]
        parts[0] = _mean([parts[0], mirrored], heat, mirrored.method)
    boxes = views.boxes[: len(parts)]
    heat = [place(part.heat, box) for part, box in zip(parts, boxes, strict=True)]
    how = method(layers)
    if len(parts) > 1:
        how = Method(f"{how.name}, mean over views", how.description + OVER_VIEWS)
    return _mean(parts, heat, how)


def explain(layers: Sequence[Layer], pixels: NDArray[np.uint8]) -> Explanation:
    """Take the logit of one view, (side, side, 3) uint8, apart."""
    side = len(pixels)
    scratch = Scratch(keep=True, train=False)
    stages = forward(layers, to_vector(pixels[None]), scratch)
    chosen = _choose(stages)
    shares = _BiasTerms(side, scratch)
    heat = np.zeros((side, side))
    dy = np.ones_like(stages[-1])
    for i in reversed(range(chosen[0], len(stages))):
        if i < len(layers):
            dy = shares.back(layers[i], stages[i], dy)
        if i in chosen:
            places = stages[i].shape[1:3] if stages[i].ndim == 4 else (side, side)
            terms = (stages[i] * dy).reshape(*places, -1).sum(axis=2)
            heat += (terms if i == 0 else spread(terms, side)) + shares.placed
    heat /= len(chosen)
    logit = float(stages[-1][0, 0])
    return Explanation(heat.astype(np.float32), shares.unplaced, logit, method(layers))


def _mean(parts: Sequence[Explanation], heat: Sequence[Array], how: Method) -> Explanation:
    """The mean of explanations, whose heat is given as it lies in the picture."""
    bias = sum(part.bias for part in parts) / len(parts)
    logit = sum(part.logit for part in parts) / len(parts)
    return Explanation(np.mean(heat, axis=0).astype(np.float32), bias, logit, how)


def place(heat: Array, box: Box) -> Array:
    """Lay a view's map where its box is: (side, side) over the whole picture, sum kept."""
    left, top, right, bottom = box
    down, across = _overlaps(top, bottom, len(heat)), _overlaps(left, right, len(heat))
    return np.asarray(down @ heat @ across.T)


def _overlaps(start: float, end: float, side: int) -> Array:
    """(side, side): how much of each of a view's pixels, a column each, lies in each of the
    whole's."""
    edges = np.linspace(start, end, side + 1) * side
    first = np.arange(side)[:, None]
    within = np.minimum(edges[1:], first + 1) - np.maximum(edges[:-1], first)
    return np.asarray(np.maximum(within, 0) / np.diff(edges))


def method(layers: Sequence[Layer]) -> Method:
    """How `explain` explains this network."""
    return WEIGHTS if len(layers) == 1 else STAGES


def _choose(stages: Sequence[Array]) -> list[int]:
    """The first stage of each size down to GRID positions per side; if there is none, the
    picture."""
    first: dict[int, int] = {}
    for i, stage in enumerate(stages):
        if stage.ndim == 4 and (stage.shape[1] >= GRID or not first):
            first.setdefault(stage.shape[1], i)
    return sorted(first.values()) or [0]


class _BiasTerms:
    """The shares of the biases that a backward pass has come by: placed, (side, side), or not."""

    def __init__(self, side: int, scratch: Scratch) -> None:
        self._side, self._scratch = side, scratch
        self.placed = np.zeros((side, side))
        self.unplaced = 0.0

    def back(self, layer: Layer, x: Array, dy: Array) -> Array:
        """The chain rule through one layer: dx. Its biases' shares are counted."""
        if isinstance(layer, Residual):
            stages: list[Array] = self._scratch.saved[id(layer)]
            dx = dy.copy()
            for i in reversed(range(len(layer.layers))):
                dx = self.back(layer.layers[i], stages[i], dx)
            return dx + dy
        bias = layer.parameters.get("bias")
        if bias is not None and dy.ndim == 4:
            self.placed += spread((dy[0] * bias).sum(axis=2), self._side)
        elif bias is not None:
            self.unplaced += float((dy * bias).sum())
        return layer.backward(x, dy, self._scratch, True)[0]


def spread(terms: Array, side: int) -> Array:
    """Spread the terms of a coarser grid, (h, w), over the pixels, (side, side), sum kept."""
    high, wide = (_gaussians(n, side) for n in terms.shape)
    return np.asarray(high @ terms @ wide.T)


def _gaussians(places: int, side: int) -> Array:
    """(side, places): each column a bell round the middle of its place, of sum 1."""
    width = max(side * SPREAD, side / places / 2)
    middles = (np.arange(places) + 0.5) * side / places
    bells = np.exp(-(((np.arange(side)[:, None] + 0.5 - middles) / width) ** 2) / 2)
    return np.asarray(bells / bells.sum(axis=0))


def overlay(pixels: NDArray[np.uint8], heat: Array) -> tuple[NDArray[np.uint8], float]:
    """The heat map over the picture in grey, enlarged, and the heat of its full colour.

    Orange is evidence for the first class, blue against it. pixels: (side, side, 3); heat: (side,
    side).
    Returns (side·ENLARGED, side·ENLARGED, 3) and logit units a pixel: the 99th percentile, but
    at least so much that a picture of nothing but full colour sums to 1.
    """
    full = max(float(np.quantile(np.abs(heat), 0.99)), 1 / heat.size)
    size = (len(heat) * ENLARGED, len(heat) * ENLARGED)
    smooth = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(smooth) / full, -1, 1)[:, :, None]
    grey = Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.NEAREST)
    ground = 112 + np.asarray(grey, np.float32)[:, :, None] * (136 / 255)
    share = 0.9 * np.abs(strength) ** 1.25  # weak ones stay in the background
    mixed = ground * (1 - share) + np.where(strength > 0, FOR, AGAINST) * share
    return mixed.astype(np.uint8), full


def picture_of_weights(layers: Sequence[Layer], side: int) -> NDArray[np.uint8] | None:
    """Logistic regression's weights as a picture, (side, side, 3); of other networks None.

    Grey is 0; a brighter red, green or blue is a weight that makes the first class more probable
    where the picture has that colour.
    """
    if len(layers) != 1 or not isinstance(layers[0], Linear):
        return None
    weights = layers[0].parameters["weights"].reshape(side, side, 3)
    full = max(float(np.quantile(np.abs(weights), 0.99)), 1e-12)
    return (127.5 + 127.5 * np.clip(weights / full, -1, 1)).astype(np.uint8)
