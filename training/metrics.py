"""How good predictions are, in numbers, from labels and probabilities alone.

y (m,) holds the labels: 1 for the first class ('cat', the positive one), 0 for the other.
p (m,) holds the predicted probabilities of the first class, in [0, 1].

A number that the data leave undefined (precision where nothing was called positive, ROC AUC where
one class is missing) is NaN: neither 0 nor 1 would be true. `summary` gives None for it.
"""

from collections.abc import Sequence
from math import isnan, nan, sqrt
from typing import Any

import numpy as np

from model.network import Array

BINS = 10  # of the reliability table


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


def reliability_table(y: Array, p: Array, bins: int = BINS) -> list[dict[str, float]]:
    """What was predicted against what happened: of the examples whose p lies in [low, high), the
    last high included, how many, their mean p, and the share of the first class. The bins have
    equal width over [0, 1]; empty ones are left out."""
    place = _bins(p, bins)
    return [
        {
            "low": i / bins,
            "high": (i + 1) / bins,
            "count": int(np.sum(place == i)),
            "mean_probability": float(p[place == i].mean()),
            "positive_rate": float(y[place == i].mean()),
        }
        for i in np.unique(place).tolist()
    ]


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


def summary(y: Array, p: Array, threshold: float = 0.5) -> dict[str, Any]:
    """Counts and metrics by name, as JSON values: None where one is undefined.

    From `threshold` on, p is the first class: that is positive, and `called_first` its share.
    `balanced_accuracy` is the mean of recall and specificity: blind guessing gives 0.5.
    """
    positive, called = y == 1, p >= threshold
    tp, fn = int(np.sum(positive & called)), int(np.sum(positive & ~called))
    fp, tn = int(np.sum(~positive & called)), int(np.sum(~positive & ~called))
    recall, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    numbers = {
        "accuracy": _ratio(tp + tn, len(y)),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": _ratio(tp, tp + fp),
        "recall": recall,
        "roc_auc": roc_auc(y, p),
        "expected_calibration_error": expected_calibration_error(y, p),
        "called_first": float(np.mean(called)),
    }
    return {
        "pictures": len(y),
        "true_positive": tp,
        "false_negative": fn,
        "false_positive": fp,
        "true_negative": tn,
        "threshold": threshold,
        **{name: None if isnan(number) else number for name, number in numbers.items()},
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else nan


def intervals(
    names: Sequence[str],
    y: Array,
    p: Array,
    threshold: float,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> dict[str, list[float]]:
    """The 95 % percentile intervals (Efron 1979) of these metrics of `summary`: computed again on
    draws of m examples with replacement. Draws that leave a metric undefined are left out. What
    it does not cover: examples that resemble each other, or other sources."""
    draws = (rng.integers(len(y), size=len(y)) for _ in range(resamples))
    found = [summary(y[drawn], p[drawn], threshold) for drawn in draws]
    values = {name: [each[name] for each in found if each[name] is not None] for name in names}
    return {
        name: np.quantile(each, [0.025, 0.975]).tolist() for name, each in values.items() if each
    }
