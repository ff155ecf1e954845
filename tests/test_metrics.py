"""Every metric against values computed by hand and against its definition, taken literally."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model.network import Array
from training import metrics
from training.metrics import expected_calibration_error, intervals, roc_auc, summary


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Array, Array]:
    """Labels and probabilities, few distinct ones, so that there are ties."""
    m = draw(st.integers(1, 30))
    y = draw(arrays(np.int64, m, elements=st.integers(0, 1)))
    p = draw(arrays(np.int64, m, elements=st.integers(0, 10))) / 10
    return y, p


@given(labelled(), st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]))
def test_the_summary_counts_each_case(data: tuple[Array, Array], threshold: float) -> None:
    cases = [(bool(y), bool(p >= threshold)) for y, p in zip(*data, strict=True)]
    tp, fn, fp, tn = (cases.count((y, p)) for y in (True, False) for p in (True, False))
    found = summary(*data, threshold)
    assert [found[f"{name}_positive"] for name in ("true", "false")] == [tp, fp]
    assert [found[f"{name}_negative"] for name in ("true", "false")] == [tn, fn]
    assert found["accuracy"] == pytest.approx((tp + tn) / len(cases))
    assert found["called_first"] == pytest.approx((tp + fp) / len(cases))
    for name, part, rest in (("precision", tp, fp), ("recall", tp, fn)):
        assert found[name] == (pytest.approx(part / (part + rest)) if part + rest else None)
    if (tp + fn) * (fp + tn):
        mean = (tp / (tp + fn) + tn / (fp + tn)) / 2
        assert found["balanced_accuracy"] == pytest.approx(mean)


@given(labelled())
def test_roc_auc_is_the_share_of_pairs_in_the_right_order(data: tuple[Array, Array]) -> None:
    y, p = data
    difference = p[y == 1][:, None] - p[y == 0]
    share = np.mean((np.sign(difference) + 1) / 2) if difference.size else np.nan
    assert roc_auc(y, p) == pytest.approx(share, nan_ok=True)


def test_reliability_table_and_calibration_error_by_hand() -> None:
    y = np.array([0, 1, 1, 1])
    p = np.array([0.1, 0.2, 0.5, 1.0])
    first, second = metrics.reliability_table(y, p, bins=2)
    assert [*first.values()] == pytest.approx([0, 0.5, 2, 0.15, 0.5])
    assert [*second.values()] == pytest.approx([0.5, 1, 2, 0.75, 1])
    assert metrics.reliability_table(y[2:], p[2:], bins=2) == [second]  # no empty bins
    assert expected_calibration_error(y, p, bins=2) == pytest.approx(0.5 * 0.35 + 0.5 * 0.25)


def test_what_is_undefined_is_none_in_json() -> None:
    numbers = summary(np.zeros(3), np.array([0.1, 0.2, 0.3]))
    undefined = {name for name, number in numbers.items() if number is None}
    assert undefined == {"precision", "recall", "balanced_accuracy", "roc_auc"}
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers


def test_the_wilson_interval_is_that_of_a_share() -> None:
    assert metrics.wilson_interval(0.7, 50) == pytest.approx((0.562, 0.809), abs=5e-4)
    assert metrics.wilson_interval(1.0, 20) == pytest.approx((0.839, 1.0), abs=5e-4)


def test_the_bootstrap_interval_holds_the_accuracy_and_narrows_with_more_examples() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for m in (50, 5000):
        y = rng.integers(0, 2, m)
        p = np.where(rng.random(m) < 0.8, y, 1 - y).astype(float)
        low, high = intervals(["accuracy"], y, p, 0.5, rng, 400)["accuracy"]
        assert low < summary(y, p)["accuracy"] < high
        widths.append(high - low)
    # ±1.96 √(0.8 · 0.2 / m)
    assert widths == pytest.approx([0.22, 0.022], rel=0.25)


def test_the_bootstrap_is_reproducible_and_does_without_undefined_draws() -> None:
    y, p = np.array([1, 0]), np.array([0.9, 0.2])  # half the draws have one class only
    found = [intervals(["roc_auc"], y, p, 0.5, np.random.default_rng(1), 50) for _ in range(2)]
    assert found == [{"roc_auc": [1, 1]}] * 2
    assert intervals(["roc_auc"], y[:1], p[:1], 0.5, np.random.default_rng(1), 5) == {}
