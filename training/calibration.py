"""From logits to probabilities that can be believed, and one threshold, on the validation pictures.

Calibration (Platt 1999; Guo et al. 2017, On Calibration of Modern Neural Networks) is logistic
regression on one number, the logit z: p = σ(scale·z + shift). Both numbers are folded into the
last layer, so that a probability stays σ of the last layer's output.

Letters: z (m,) logits, y (m,) labels in {0, 1}, p (m,) probabilities; sources (m,) names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np

from model.network import Array, Layer, Linear, sigmoid
from training.metrics import confusion

ENOUGH, ENOUGH_OF_EACH = 200, 50  # pictures that two numbers and a threshold can be fitted to
TOLERANCE = 0.002  # what the rule may fall short of its best to be on the plateau
# Of a source with one class, such as rooms without a cat: rooms of other people have turned out to
# be taken for cats twice as often as those that the threshold was chosen by.
MOST_WRONG = 0.02
COUNTS = 100  # pictures of such a source for it to count

CALIBRATION_RULE = (
    "of all scales and shifts the one with which, on the validation pictures, the source that is "
    "served worst loses least Brier score against a calibration of its own; sources with one "
    "class take no part"
)
THRESHOLD_RULE = (
    "highest of the thresholds whose balanced accuracy on the validation pictures, averaged over "
    f"the sources with both classes, is the best to {TOLERANCE}, among those that answer at least "
    f"{1 - MOST_WRONG:.0%} of every source with one class right (where it has {COUNTS} pictures)"
)
FEW_RULE = (
    "of 0.5 and, after fine-tuning, the threshold that it started from the one with the better "
    "balanced accuracy: the validation pictures are too few to choose another"
)
TOO_FEW = f"left as it was: fewer than {ENOUGH} validation pictures, or {ENOUGH_OF_EACH} of a class"


@dataclass(frozen=True)
class Calibration:
    """p = σ(scale·z + shift), and how the two numbers came about."""

    scale: float = 1.0
    shift: float = 0.0
    rule: str = TOO_FEW

    def undone(self, p: float) -> float:
        """The probability before the calibration of what is p, in (0, 1), after it."""
        return float(sigmoid(np.asarray((np.log(p / (1 - p)) - self.shift) / self.scale)))


def enough(y: Array) -> bool:
    """Whether there are pictures enough to fit a calibration and a threshold."""
    first = int((y == 1).sum())
    return len(y) >= ENOUGH and min(first, len(y) - first) >= ENOUGH_OF_EACH


def source_weights(sources: Sequence[str]) -> Array:
    """Weights (m,) of mean 1 under which every source counts the same.

    The classes keep the mix that they have in each source. A mix of one's own, half cats
    everywhere, would be fair to neither: where one picture in six is a cat, every probability
    would come out too large.
    """
    _, place, counts = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    weights: Array = len(place) / len(counts) / counts[place]
    return weights


def logistic_fit(z: Array, y: Array, ridge: float = 0.0) -> tuple[float, float]:
    """The (scale, shift) with the least Σ L(σ(scale·z + shift), y), L the logistic loss.

    ridge: draws towards (1, 0), with the force of about that many pictures; above 0 the answer is
    finite even where a threshold parts the classes without a mistake.
    By Newton's method from (0, 0), where the curvature is largest; from (1, 0) it can overshoot.
    """
    X = np.stack([z, np.ones_like(z)], axis=1).astype(np.float64)
    numbers, target = np.zeros(2), np.array([1.0, 0.0])
    for _ in range(30):
        p = sigmoid(X @ numbers)
        curvature = (X * (p * (1 - p))[:, None]).T @ X + (1e-3 + ridge) * np.eye(2)
        slope = X.T @ (p - y) + ridge * (numbers - target)
        numbers -= np.linalg.solve(curvature, slope)
    return float(numbers[0]), float(numbers[1])


def calibrate(z: Array, y: Array, sources: Sequence[str]) -> Calibration:
    """The calibration on validation pictures; the identity where they are too few to tell, or
    where the network tells less than nothing (a scale below 0).

    Sources disagree: where one picture in fourteen is a cat, the same logit means less than where
    every second one is. One calibration for all cannot suit each, so it is to suit none badly. A
    source without one of the classes takes no part: the best that could be said of its pictures
    is 0, and a shift towards that makes every other source less believable.
    """
    groups = _groups(np.asarray(sources))
    mixed = [(z[own], y[own]) for own in groups if len(np.unique(y[own])) > 1]
    if not mixed or not enough(np.concatenate([labels for _, labels in mixed])):
        return Calibration()
    every_z, every_y = (np.concatenate(each) for each in zip(*mixed, strict=True))
    scale, shift = logistic_fit(every_z, every_y, ridge=1.0)
    if scale <= 0:
        return Calibration(rule="left as it was: the network is no better than guessing")
    for width in (1.0, 0.3, 0.1):
        scale, shift = _least_regret(mixed, scale, shift, width)
    return Calibration(scale, shift, CALIBRATION_RULE)


def _least_regret(
    groups: Sequence[tuple[Array, Array]], scale: float, shift: float, width: float
) -> tuple[float, float]:
    """The best of a grid of calibrations around the one given, for groups of logits and labels."""
    grid = [
        (float(scale * factor), float(shift + step))
        for factor in np.exp(width / 2 * np.linspace(-1, 1, 11))
        for step in width * np.linspace(-1, 1, 11)
    ]
    scores = np.array(
        [[np.mean((sigmoid(a * z + b) - y) ** 2) for z, y in groups] for a, b in grid]
    )  # (calibrations, groups)
    regret = (scores - scores.min(axis=0)).max(axis=1)
    return grid[int(regret.argmin())]


def fold_calibration(layers: Sequence[Layer], calibration: Calibration) -> list[Layer]:
    """Layers whose output is scale·z + shift; the last one is made anew, the others are shared."""
    *others, last = layers
    if not isinstance(last, Linear):
        raise ValueError(f"the last layer is {last.kind}, expected linear")
    weights, bias = last.parameters["weights"], last.parameters["bias"]
    scale, shift = (np.asarray(x, weights.dtype) for x in (calibration.scale, calibration.shift))
    return [*others, Linear(weights * scale, bias * scale + shift)]


def mean_balanced_accuracy(y: Array, p: Array, sources: Sequence[str], threshold: float) -> float:
    """The mean over the sources of (recall + specificity)/2 at p ≥ threshold. Sources with one
    class have none; where there are no others, the share of right answers stands for it."""
    names = np.asarray(sources)
    every = [confusion(y[own], p[own], threshold) for own in _groups(names)]
    balanced = [counts.balanced_accuracy for counts in every if not isnan(counts.balanced_accuracy)]
    return float(np.mean(balanced or [counts.accuracy for counts in every]))


def choose_threshold(
    y: Array, p: Array, sources: Sequence[str], otherwise: Sequence[float] = (0.5,)
) -> float:
    """One threshold for all sources, as `THRESHOLD_RULE` says; where the pictures are too few to
    choose by, the better on them of those in `otherwise`, the first if they are equal. The single
    best threshold would follow one picture this way or that. Of those that are as good it is the
    highest: a false alarm is worse than a miss, which the next picture makes good. In (0, 1)."""
    if not enough(y):
        return max(otherwise, key=lambda t: mean_balanced_accuracy(y, p, sources, t))
    edges = np.concatenate([[0.0], np.unique(p), [1.0]])
    candidates = (edges[1:] + edges[:-1]) / 2  # halfway between neighbouring p
    values, allowed = _rule(candidates, y, p, np.asarray(sources))
    if allowed.any():  # it may be asked for what cannot be
        values = np.where(allowed, values, -1)
    best = int(np.argmax(values))
    on_plateau = values >= values[best] - TOLERANCE
    highest = best + int(np.argmin(np.append(on_plateau[best:], False))) - 1
    return min(max(float(candidates[highest]), 0.01), 0.99)


def _rule(candidates: Array, y: Array, p: Array, names: Array) -> tuple[Array, Array]:
    """At each candidate the mean balanced accuracy of the sources with both classes, and whether
    the others are answered well enough."""
    balanced, allowed = [], np.ones(len(candidates), bool)
    for own in _groups(names):
        right = [
            1 - below if label else below
            for label in (1, 0)
            if (below := _share_below(candidates, p[own & (y == label)])) is not None
        ]
        if len(right) == 2:
            balanced.append(np.mean(right, axis=0))
        elif own.sum() >= COUNTS:
            allowed &= right[0] >= 1 - MOST_WRONG
    return np.mean(balanced, axis=0) if balanced else np.zeros(len(candidates)), allowed


def _share_below(candidates: Array, p: Array) -> Array | None:
    """The share of p below each candidate; None where there is no p."""
    return np.searchsorted(np.sort(p), candidates) / len(p) if len(p) else None


def _groups(names: Array) -> list[Array]:
    return [names == source for source in np.unique(names)]
