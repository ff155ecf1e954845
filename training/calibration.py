"""What the validation pictures decide: a calibration, a threshold, and whether training helped.

Calibration (Platt 1999; Guo et al. 2017, On Calibration of Modern Neural Networks) is logistic
regression on one number, the logit z: p = σ(scale·z + shift). Both are folded into the last layer.

Letters: z (m,) logits, y (m,) labels in {0, 1}, p (m,) probabilities; sources (m,) names. Sources
whose pictures are all of one class have no balanced accuracy. Among them, rooms limit what may be
called a cat. Look-alikes, such as foxes, do not: with 2 % of them a cat, many cats are missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from model.network import Array, Layer, Linear, sigmoid
from training.course import loss
from training.data import LOOKALIKE_SOURCES
from training.metrics import roc_auc

MIN_PICTURES, MIN_PER_CLASS = 200, 50  # pictures that two numbers and a threshold can be fitted to
TOLERANCE = 0.002  # what the rule may fall short of its best to be on the plateau
# Rooms of other people have turned out to be taken for cats twice as often as those that the
# threshold was chosen by.
MAX_FALSE_RATE = 0.02
MIN_SOURCE_PICTURES = 100  # pictures of a source of one class for it to count
NEAR_BEST = 0.01  # of the log loss, for views that take time to be left out
MAX_UNSURE_SHARE = 0.35  # of the pictures, whose other views are looked at too
LOW_BOUNDS, HIGH_BOUNDS = (-4.0, -3.5, -3.0, -2.5, -2.0, -1.5), (1.0, 1.5, 2.0, 2.5, 3.0)

CALIBRATION_RULE = (
    "the scale and shift whose worst source is as good as possible. Of each source with both "
    "classes, the Brier score on validation pictures is compared with that of its own best scale "
    "and shift"
)
THRESHOLD_RULE = (
    "the highest whose balanced accuracy on the validation pictures (the mean over sources with "
    f"both classes) is within {TOLERANCE} of the best. It must also classify "
    f"{1 - MAX_FALSE_RATE:.0%} of each one-class source correctly; look-alikes and sources of "
    f"fewer than {MIN_SOURCE_PICTURES} pictures are exempt"
)
FEW_RULE = "there are too few pictures to choose a new one"
UNSURE_RULE = (
    "the two logits, from a grid, that leave the fewest pictures unsure, at most "
    f"{MAX_UNSURE_SHARE:.0%}. The log loss on the validation pictures must be within "
    f"{NEAR_BEST:.0%} of the best"
)
TOO_FEW = (
    f"not fitted: there are fewer than {MIN_PICTURES} validation pictures, or fewer than "
    f"{MIN_PER_CLASS} of a class"
)


def enough(y: Array) -> bool:
    """Whether the pictures are enough to fit a calibration and a threshold."""
    first = int((y == 1).sum())
    return len(y) >= MIN_PICTURES and min(first, len(y) - first) >= MIN_PER_CLASS


def by_source(sources: Sequence[str]) -> dict[str, Array]:
    """Where the pictures of each source are: (m,) of bool by name, in alphabetical order."""
    names = np.asarray(sources)
    return {str(source): names == source for source in np.unique(names)}


def source_weights(sources: Sequence[str]) -> Array:
    """Weights (m,) of mean 1 under which every source counts the same, and the classes of a source
    in the mix that they have there: with half cats everywhere, every probability would be too
    large where one picture in six is a cat."""
    _, place, counts = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    weights: Array = len(place) / len(counts) / counts[place]
    return weights


def source_log_loss(z: Array, y: Array, sources: Sequence[str]) -> float:
    """The mean over the sources of the mean loss of each."""
    return float(np.mean(source_weights(sources) * loss(z, y)))


# --- calibration --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """p = σ(scale·z + shift), and how the two numbers came about."""

    scale: float = 1.0
    shift: float = 0.0
    rule: str = TOO_FEW

    def apply(self, z: Array) -> Array:
        """The calibrated logits."""
        return self.scale * z + self.shift

    def inverse(self, z: Array) -> Array:
        """The logits before calibration."""
        return (z - self.shift) / self.scale


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
    """The calibration on validation pictures, as `CALIBRATION_RULE` says; the identity where they
    are too few, or where the network is worse than guessing (a scale below 0).

    Sources disagree: where one picture in fourteen is a cat, the same logit means less than where
    every second one is. One calibration cannot suit each, so it is to suit none badly. Sources of
    one class take no part: their best would be a probability of 0, which spoils the others.
    """
    mixed = [(z[own], y[own]) for own in by_source(sources).values() if len(np.unique(y[own])) > 1]
    if not mixed or not enough(np.concatenate([labels for _, labels in mixed])):
        return Calibration()
    every_z, every_y = (np.concatenate(each) for each in zip(*mixed, strict=True))
    scale, shift = logistic_fit(every_z, every_y, ridge=1.0)
    if scale <= 0:
        return Calibration(rule="not fitted: the network is no better than guessing")
    for width in (1.0, 0.3, 0.1):
        scales = scale * np.exp(width / 2 * np.linspace(-1, 1, 11))
        grid = list(product(scales.tolist(), (shift + width * np.linspace(-1, 1, 11)).tolist()))
        scores = np.array(
            [[np.mean((sigmoid(a * z + b) - y) ** 2) for z, y in mixed] for a, b in grid]
        )  # (calibrations, sources)
        regret = (scores - scores.min(axis=0)).max(axis=1)
        scale, shift = grid[int(regret.argmin())]
    return Calibration(scale, shift, CALIBRATION_RULE)


def fold_calibration(layers: Sequence[Layer], calibration: Calibration) -> list[Layer]:
    """Layers whose output is scale·z + shift; the last one is new, the others are shared."""
    *others, last = layers
    assert isinstance(last, Linear)
    weights, bias = last.parameters["weights"], last.parameters["bias"]
    scale, shift = (np.asarray(x, weights.dtype) for x in (calibration.scale, calibration.shift))
    return [*others, Linear(weights * scale, bias * scale + shift)]


# --- the threshold ------------------------------------------------------------------------------


def balanced_weights(y: Array, sources: Sequence[str]) -> Array:
    """Weights (m,) of sum 1 under which the share of right answers is the mean over the sources of
    their balanced accuracies, (recall + specificity)/2. Sources of one class have none and weigh
    nothing; where there are no others, the share of right answers stands for it."""
    groups = list(by_source(sources).values())
    mixed = [own for own in groups if len(np.unique(y[own])) > 1]
    weights = np.zeros(len(y))
    for own in mixed or groups:
        classes = np.unique(y[own])
        for label in classes:
            group = own & (y == label)
            weights[group] = 1 / len(mixed or groups) / len(classes) / group.sum()
    return weights


def mean_balanced_accuracy(y: Array, p: Array, sources: Sequence[str], threshold: float) -> float:
    """The mean of the sources' balanced accuracies at p ≥ threshold; see `balanced_weights`."""
    right = (p >= threshold) == (y == 1)
    return round(float(balanced_weights(y, sources)[right].sum()), 12)  # so that equals are equal


def choose_threshold(
    y: Array, p: Array, sources: Sequence[str], otherwise: Sequence[float] = (0.5,)
) -> float:
    """One threshold for all sources, in (0, 1), as `THRESHOLD_RULE` says. Where the pictures are
    too few, it is the better on them of those in `otherwise`, the first if they are equal.

    The single best threshold would follow one picture this way or that. Of those that are as good
    it is the highest: a false alarm is worse than a miss, which the next picture makes good.
    """
    if not enough(y):
        return max(otherwise, key=lambda t: mean_balanced_accuracy(y, p, sources, t))
    edges = np.concatenate([[0.0], np.unique(p), [1.0]])
    candidates = (edges[1:] + edges[:-1]) / 2  # halfway between neighbouring p
    values = _share_right(candidates, y, p, balanced_weights(y, sources))
    allowed = np.ones(len(candidates), bool)
    for source, own in by_source(sources).items():
        one_class = len(np.unique(y[own])) == 1 and source not in LOOKALIKE_SOURCES
        if one_class and own.sum() >= MIN_SOURCE_PICTURES:
            allowed &= _share_right(candidates, y, p, own / own.sum()) >= 1 - MAX_FALSE_RATE
    if allowed.any():  # it may be asked for what cannot be
        values = np.where(allowed, values, -1)
    best = int(np.argmax(values))
    on_plateau = values >= values[best] - TOLERANCE
    highest = best + int(np.argmin(np.append(on_plateau[best:], False))) - 1
    return min(max(float(candidates[highest]), 0.01), 0.99)


def _share_right(candidates: Array, y: Array, p: Array, weights: Array) -> Array:
    """The share of right answers at each candidate for the threshold, to nine digits. weights (m,)
    of sum 1."""
    order = np.argsort(p)
    # From below all p upwards: a picture that falls below becomes wrong if it is a cat, else right.
    gained = np.append(0, np.cumsum((weights * np.where(y == 1, -1, 1))[order]))
    right: Array = weights[y == 1].sum() + gained[np.searchsorted(p[order], candidates)]
    return right.round(9)


def choose_unsure(
    one: Array, every: Array, y: Array, sources: Sequence[str]
) -> tuple[float, float]:
    """The two logits of the whole picture between which all views are used, as `UNSURE_RULE` says.

    one, every: logits (m,) of the whole alone, and the mean over all views.
    """
    calibration = calibrate(every, y, sources)
    one, every = map(calibration.apply, (one, every))
    weights = source_weights(sources)
    tried = []
    for low, high in product(LOW_BOUNDS, HIGH_BOUNDS):
        unsure = (low < one) & (one < high)
        log_loss = source_log_loss(np.where(unsure, every, one), y, sources)
        tried.append((float(np.mean(weights * unsure)), log_loss, low, high))
    allowed = [each for each in tried if each[0] <= MAX_UNSURE_SHARE] or [min(tried)]
    most = (1 + NEAR_BEST) * min(log_loss for _, log_loss, _, _ in allowed)
    _, _, low, high = min(each for each in allowed if each[1] <= most)
    low, high = calibration.inverse(np.array([low, high])).tolist()
    return low, high


# --- whether training helped --------------------------------------------------------------------

CLEARLY, BY_CHANCE, NOT = "clearly better", "better, maybe by chance", "no better"
ENOUGH_TO_COMPARE = 20  # pictures; of fewer the standard errors are guesses themselves
LEAST_FALL = 0.01  # of the log loss, as a share of it, for it to count,
LEAST_SHOWN = 0.001  # and of either figure what people are shown


def compare(
    before: Array, after: Array, y: Array, sources: Sequence[str], thresholds: tuple[float, float]
) -> dict[str, Any]:
    """Figures of two networks on held-back pictures, and one of the three verdicts, as JSON values.

    before, after: logits (m,) of the held-back pictures, as training left them: a calibration
    that is fitted to these very pictures must not take part. thresholds: of both, for them.

    Clearly better: on `ENOUGH_TO_COMPARE` pictures the log loss falls by `LEAST_FALL` of itself and
    by more than 1.96 standard errors of the mean difference, picture by picture, and the balanced
    accuracy at the threshold does not fall. No better: the log loss does not fall, or by less than
    that while the balanced accuracy does not rise, or the balanced accuracy falls by more than 1.96
    of its standard errors.
    """
    both = list(zip((before, after), thresholds, strict=True))
    gains = source_weights(sources) * (loss(before, y) - loss(after, y))
    was_right, is_right = ((sigmoid(z) >= threshold) == (y == 1) for z, threshold in both)
    losses = balanced_weights(y, sources) * (was_right.astype(float) - is_right)
    old, new = (
        {
            "log_loss": source_log_loss(z, y, sources),
            "balanced_accuracy": mean_balanced_accuracy(y, sigmoid(z), sources, threshold),
            "roc_auc": roc_auc(y, sigmoid(z)),
        }
        for z, threshold in both
    )
    falls = old["log_loss"] - new["log_loss"] >= max(LEAST_FALL * old["log_loss"], LEAST_SHOWN)
    rises = new["balanced_accuracy"] - old["balanced_accuracy"] >= LEAST_SHOWN
    sure = falls and len(y) >= ENOUGH_TO_COMPARE and _surely_positive(gains)
    verdict = CLEARLY if sure and losses.mean() <= 0 else BY_CHANCE
    if gains.mean() <= 0 or _surely_positive(losses) or not (falls or rises):
        verdict = NOT
    return {"before": old, "after": new, "verdict": verdict, "pictures": len(y)}


def _surely_positive(differences: Array) -> bool:
    """Whether their mean is above 0 by more than 1.96 standard errors."""
    if len(differences) < 2:
        return False
    return bool(differences.mean() > 1.96 * differences.std(ddof=1) / np.sqrt(len(differences)))
