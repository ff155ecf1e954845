"""How good predictions are, in numbers, from labels and probabilities alone.

y (m,) holds the labels: 1 for the first class ('cat', the positive one), 0 for the other.
p (m,) holds the predicted probabilities of the first class, in [0, 1].

A number that the data leave undefined (precision where nothing was called positive, ROC AUC where
one class is missing) is NaN: neither 0 nor 1 would be true. `summary` gives None for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan, nan

import numpy as np

from model.network import Array

Metric = Callable[[Array, Array], float]

BINS = 10  # of the reliability table


@dataclass(frozen=True)
class Confusion:
    """Counts of answers at one threshold: `positive` where p ≥ threshold."""

    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int

    @property
    def accuracy(self) -> float:
        """Share of all examples answered right."""
        right = self.true_positive + self.true_negative
        return _ratio(right, right + self.false_positive + self.false_negative)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of recall and specificity: blind guessing gives 0.5 however rare a class is."""
        return (self.recall + self.specificity) / 2

    @property
    def precision(self) -> float:
        """Share of the positive answers that are right."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Share of the positive examples that were found."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """Share of the negative examples that were answered right."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2TP / (2TP + FP + FN)."""
        twice = 2 * self.true_positive
        return _ratio(twice, twice + self.false_positive + self.false_negative)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else nan


def confusion(y: Array, p: Array, threshold: float = 0.5) -> Confusion:
    """Counts of right and wrong answers when p ≥ threshold is called the first class."""
    positive, answered = y == 1, p >= threshold
    return Confusion(
        true_positive=int(np.sum(positive & answered)),
        false_negative=int(np.sum(positive & ~answered)),
        false_positive=int(np.sum(~positive & answered)),
        true_negative=int(np.sum(~positive & ~answered)),
    )


def roc_auc(y: Array, p: Array) -> float:
    """The probability that a positive example gets a higher p than a negative one, a tie counting
    half: the area under the ROC curve.

    By ranks (Mann and Whitney 1947): (R − n₊(n₊ + 1)/2) / (n₊ n₋), where R is the sum of the
    positives' ranks and tied examples share the mean of their ranks.
    """
    positive = y == 1
    n_positive = int(positive.sum())
    n_negative = len(y) - n_positive
    if not n_positive or not n_negative:
        return nan
    _, place, count = np.unique(p, return_inverse=True, return_counts=True)
    last = np.cumsum(count)  # rank of the last example of each distinct p, from 1
    mean_rank = last - (count - 1) / 2
    rank_sum = mean_rank[place][positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def average_precision(y: Array, p: Array) -> float:
    """Σ (Rₖ − Rₖ₋₁) Pₖ over the distinct p as thresholds, from the highest down: the area under the
    precision-recall curve in steps, without interpolation."""
    positive = y == 1
    n_positive = int(positive.sum())
    if not n_positive:
        return nan
    distinct, place = np.unique(-p, return_inverse=True)  # highest p first
    called = np.cumsum(np.bincount(place, minlength=len(distinct)))
    found = np.bincount(place, weights=positive, minlength=len(distinct))
    precision = np.cumsum(found) / called
    return float(np.sum(found / n_positive * precision))


def brier_score(y: Array, p: Array) -> float:
    """Mean of (p − y)², in [0, 1], 0 the best (Brier 1950)."""
    return float(np.mean((p.astype(np.float64) - y) ** 2))


def log_loss(y: Array, p: Array) -> float:
    """Mean of −(y log p + (1 − y) log(1 − p)), the course's cost from probabilities; y may lie
    between 0 and 1. An impossible that happened costs 36 (p is kept 2⁻⁵² away from 0 and 1), not
    infinity. From logits `training.course.loss` is exact."""
    step = np.finfo(np.float64).eps
    p = np.clip(p.astype(np.float64), step, 1 - step)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


@dataclass(frozen=True)
class Bin:
    """The examples whose p lies in [low, high), the last bin's high included."""

    low: float
    high: float
    count: int
    mean_probability: float  # mean p of its examples; NaN for an empty bin
    positive_rate: float  # share of the first class among them; NaN for an empty bin


def reliability_table(y: Array, p: Array, bins: int = BINS) -> list[Bin]:
    """What was predicted against what happened, in bins of equal width over [0, 1]."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    predicted = np.bincount(place, weights=p, minlength=bins)
    happened = np.bincount(place, weights=y, minlength=bins)
    return [
        Bin(
            float(edges[i]),
            float(edges[i + 1]),
            int(counts[i]),
            float(predicted[i] / counts[i]) if counts[i] else nan,
            float(happened[i] / counts[i]) if counts[i] else nan,
        )
        for i in range(bins)
    ]


def expected_calibration_error(y: Array, p: Array, bins: int = BINS) -> float:
    """Σ countₖ/m · |mean probabilityₖ − positive rateₖ| over the bins of `reliability_table`
    (Naeini, Cooper and Hauskrecht 2015), in [0, 1], 0 the best. It depends on the number of bins
    and is not 0 for a perfect forecast of few examples."""
    table = [bin for bin in reliability_table(y, p, bins) if bin.count]
    gaps = [bin.count * abs(bin.mean_probability - bin.positive_rate) for bin in table]
    return sum(gaps) / len(y) if len(y) else nan


def bootstrap_interval(
    metric: Metric,
    y: Array,
    p: Array,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile confidence interval of metric(y, p) (Efron 1979): computed again on `resamples`
    draws of m examples with replacement. Draws that leave it undefined are left out; (NaN, NaN)
    where all do. What it does not cover: examples that resemble each other, or other sources."""
    values = np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(len(y), size=len(y))
        values[i] = metric(y[drawn], p[drawn])
    values = values[~np.isnan(values)]
    if not len(values):
        return nan, nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def accuracy_at(threshold: float) -> Metric:
    """Accuracy at a threshold, as a metric for `bootstrap_interval`."""
    return lambda y, p: confusion(y, p, threshold).accuracy


def balanced_accuracy_at(threshold: float) -> Metric:
    """Balanced accuracy at a threshold, as a metric for `bootstrap_interval`."""
    return lambda y, p: confusion(y, p, threshold).balanced_accuracy


def summary(y: Array, p: Array, threshold: float = 0.5) -> dict[str, int | float | None]:
    """Every number above, by name, as JSON values: None where it is undefined."""
    counts = confusion(y, p, threshold)
    numbers = {
        "accuracy": counts.accuracy,
        "balanced_accuracy": counts.balanced_accuracy,
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
        "roc_auc": roc_auc(y, p),
        "average_precision": average_precision(y, p),
        "brier_score": brier_score(y, p),
        "log_loss": log_loss(y, p),
        "expected_calibration_error": expected_calibration_error(y, p),
    }
    return {
        "pictures": len(y),
        "true_positive": counts.true_positive,
        "false_negative": counts.false_negative,
        "false_positive": counts.false_positive,
        "true_negative": counts.true_negative,
        "threshold": threshold,
    } | {name: None if isnan(number) else number for name, number in numbers.items()}
