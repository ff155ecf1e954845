"""Every metric against values computed by hand and against its definition, taken literally."""

import json
from math import isnan, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model.network import Array
from training.metrics import (
    Bin,
    Confusion,
    accuracy_at,
    average_precision,
    balanced_accuracy_at,
    bootstrap_interval,
    brier_score,
    confusion,
    expected_calibration_error,
    log_loss,
    reliability_table,
    roc_auc,
    summary,
)

# Eight examples, with a tie between the classes at 0.6.
Y = np.array([1, 1, 1, 1, 0, 0, 0, 0])
P = np.array([0.9, 0.8, 0.6, 0.3, 0.6, 0.4, 0.2, 0.1])


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Array, Array]:
    """Labels and probabilities, few distinct ones, so that there are ties."""
    m = draw(st.integers(1, 30))
    y = draw(arrays(np.int64, m, elements=st.integers(0, 1)))
    p = draw(arrays(np.int64, m, elements=st.integers(0, 10))) / 10
    return y, p


@given(labelled(), st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]))
def test_confusion_is_a_count_of_each_case(data: tuple[Array, Array], threshold: float) -> None:
    cases = [(bool(y), bool(p >= threshold)) for y, p in zip(*data, strict=True)]
    assert confusion(*data, threshold) == Confusion(
        true_positive=cases.count((True, True)),
        false_negative=cases.count((True, False)),
        false_positive=cases.count((False, True)),
        true_negative=cases.count((False, False)),
    )


@given(labelled())
def test_roc_auc_is_the_share_of_pairs_in_the_right_order(data: tuple[Array, Array]) -> None:
    y, p = data
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in p[y == 1]
        for low in p[y == 0]
    ]
    if pairs:
        assert roc_auc(y, p) == pytest.approx(np.mean(pairs))
    else:
        assert isnan(roc_auc(y, p))


@given(labelled())
def test_average_precision_is_its_sum_over_thresholds(data: tuple[Array, Array]) -> None:
    y, p = data
    if not y.any():
        assert isnan(average_precision(y, p))
        return
    total, recall = 0.0, 0.0
    for threshold in sorted(set(p), reverse=True):
        counts = confusion(y, p, threshold)
        total += (counts.recall - recall) * counts.precision
        recall = counts.recall
    assert average_precision(y, p) == pytest.approx(total)


def test_brier_score_and_log_loss_by_hand() -> None:
    y, p = np.array([1, 0]), np.array([0.8, 0.4])
    assert brier_score(y, p) == pytest.approx((0.04 + 0.16) / 2)
    assert log_loss(y, p) == pytest.approx(-(log(0.8) + log(0.6)) / 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_loss_is_finite_where_a_certainty_was_wrong(dtype: type) -> None:
    assert log_loss(np.array([1.0]), np.array([0], dtype)) == pytest.approx(36.04, abs=0.01)
    assert log_loss(np.array([1.0]), np.array([1], dtype)) == pytest.approx(0, abs=1e-12)


def test_reliability_table_and_calibration_error_by_hand() -> None:
    y = np.array([0, 1, 1, 1])
    p = np.array([0.1, 0.2, 0.5, 1.0])
    first, second = reliability_table(y, p, bins=2)
    assert first == Bin(0, 0.5, 2, first.mean_probability, 0.5)
    assert first.mean_probability == pytest.approx(0.15)
    assert second == Bin(0.5, 1, 2, 0.75, 1)
    assert expected_calibration_error(y, p, bins=2) == pytest.approx(0.5 * 0.35 + 0.5 * 0.25)


def test_what_is_undefined_is_nan_and_in_json_null() -> None:
    y, p = np.zeros(3), np.array([0.1, 0.2, 0.3])
    counts = confusion(y, p)
    assert isnan(counts.precision)
    assert isnan(counts.recall)
    assert isnan(counts.balanced_accuracy)
    numbers = summary(y, p)
    assert numbers["precision"] is None
    assert numbers["roc_auc"] is None
    assert numbers["accuracy"] == 1
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers


def test_the_bootstrap_interval_holds_the_accuracy_and_narrows_with_more_examples() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for m in (50, 5000):
        y = rng.integers(0, 2, m)
        p = np.where(rng.random(m) < 0.8, y, 1 - y).astype(float)
        low, high = bootstrap_interval(accuracy_at(0.5), y, p, rng, resamples=400)
        assert low < confusion(y, p).accuracy < high
        widths.append(high - low)
    # ±1.96 √(0.8 · 0.2 / m)
    assert widths == pytest.approx([0.22, 0.022], rel=0.25)


def test_the_bootstrap_is_reproducible_and_does_without_undefined_draws() -> None:
    y, p = np.array([1, 0]), np.array([0.9, 0.2])  # half the draws have one class only
    intervals = [
        bootstrap_interval(roc_auc, y, p, np.random.default_rng(1), resamples=50) for _ in range(2)
    ]
    assert intervals == [(1, 1), (1, 1)]
    metric = balanced_accuracy_at(0.5)
    low, high = bootstrap_interval(metric, y[:1], p[:1], np.random.default_rng(1), resamples=5)
    assert isnan(low)
    assert isnan(high)
