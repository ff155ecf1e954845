"""How good predictions are, in numbers, from labels and probabilities alone.

y (m,) holds the labels: 1 for the first class ('cat', the positive one), 0 for the other.
p (m,) holds the predicted probabilities of the first class, in [0, 1].

A number that the data leave undefined (precision where nothing was called positive, ROC AUC where
one class is missing) is NaN: neither 0 nor 1 would be true. `summary` gives None for it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isnan, nan, sqrt

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
    place = _bins(p, bins)
    table = []
    for i in range(bins):
        own = place == i
        means = (float(p[own].mean()), float(y[own].mean())) if own.any() else (nan, nan)
        table.append(Bin(i / bins, (i + 1) / bins, int(own.sum()), *means))
    return table


def expected_calibration_error(y: Array, p: Array, bins: int = BINS) -> float:
    """Σ countₖ/m · |mean probabilityₖ − positive rateₖ| over the bins of `reliability_table`
    (Naeini, Cooper and Hauskrecht 2015), in [0, 1], 0 the best. It depends on the number of bins
    and is not 0 for a perfect forecast of few examples."""
    gaps = np.bincount(_bins(p, bins), weights=p - y)  # countₖ · (mean probabilityₖ − rateₖ)
    return float(np.abs(gaps).sum() / len(y))


def _bins(p: Array, bins: int) -> Array:
    places: Array = np.minimum((p * bins).astype(int), bins - 1)
    return places


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` examples (Wilson 1927), which stays in [0, 1]."""
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z**2 / count)
    return middle - half, middle + half


def bootstrap_interval(
    metric: Metric, y: Array, p: Array, rng: np.random.Generator, resamples: int = 1000
) -> tuple[float, float]:
    """The 95 % percentile interval of metric(y, p) (Efron 1979): computed again on `resamples`
    draws of m examples with replacement. Draws that leave it undefined are left out; (NaN, NaN)
    where all do. What it does not cover: examples that resemble each other, or other sources."""
    draws = (rng.integers(len(y), size=len(y)) for _ in range(resamples))
    values = np.array([metric(y[drawn], p[drawn]) for drawn in draws])
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (nan, nan)
    return float(low), float(high)


def summary(y: Array, p: Array, threshold: float = 0.5) -> dict[str, int | float | None]:
    """Counts and metrics by name, as JSON values: None where one is undefined. `called_first` is
    the share of the answers that are the first class."""
    counts = confusion(y, p, threshold)
    numbers = {
        "accuracy": counts.accuracy,
        "balanced_accuracy": counts.balanced_accuracy,
        "precision": counts.precision,
        "recall": counts.recall,
        "roc_auc": roc_auc(y, p),
        "expected_calibration_error": expected_calibration_error(y, p),
        "called_first": float(np.mean(p >= threshold)),
    }
    return {
        "pictures": len(y),
        **asdict(counts),
        "threshold": threshold,
        **{name: None if isnan(number) else number for name, number in numbers.items()},
    }
