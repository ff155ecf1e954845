"""Probabilities that can be believed and a threshold that is not one picture's whim."""

import re

import numpy as np
import pytest

from model.network import Array, Layer, Linear, Scratch, forward, sigmoid
from training import calibration
from training.calibration import Calibration, choose_threshold
from training.course import loss
from training.report import render


def answers(m: int, seed: int = 0, share: float = 0.5) -> tuple[Array, Array]:
    """Logits that are right as probabilities, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    z = rng.normal(np.log(share / (1 - share)), 2, m)
    return z, (rng.random(m) < sigmoid(z)).astype(np.float32)


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_the_fit_has_the_least_loss_whatever_the_scale_of_the_logits(spread: float) -> None:
    z, y = answers(3000)
    z = (z - 1) * spread
    scale, shift = calibration.logistic_fit(z, y)
    least = loss(scale * z + shift, y).sum()
    for factor, more in ((1.01, 0), (0.99, 0), (1, 0.02)):
        assert loss(factor * scale * z + shift + more, y).sum() > least
    assert scale * spread == pytest.approx(1, rel=0.1)


def test_a_calibration_undoes_what_was_done_to_the_logits() -> None:
    z, y = answers(20_000)
    found = calibration.calibrate((z - 0.7) / 0.4, y, ["a"] * len(y))
    assert found.scale == pytest.approx(0.4, rel=0.05)
    assert found.shift == pytest.approx(0.7, abs=0.05)
    y = (np.arange(400) % 2).astype(np.float32)
    separated = calibration.calibrate(20 * y - 10, y, ["a"] * 400)
    assert 0 < separated.scale < 10
    assert np.isfinite(separated.shift)


@pytest.mark.parametrize(("cats", "others"), [(10, 20), (49, 500), (500, 49), (99, 99)])
def test_few_pictures_leave_the_better_of_the_thresholds_there_are(cats: int, others: int) -> None:
    y = np.array([1] * cats + [0] * others)
    z = np.where(y == 1, 1.0, -1.0)
    sources = ["a"] * len(y)
    found = calibration.calibrate(z, y, sources)
    assert (found.scale, found.shift) == (1, 0)
    assert "fewer than" in found.rule
    p = sigmoid(z)  # .27 and .73
    assert choose_threshold(y, p, sources, otherwise=(0.2, 0.4)) == 0.4
    assert choose_threshold(y, p, sources, otherwise=(0.7, 0.4)) == 0.7  # equally good


def test_other_views_are_looked_at_where_they_change_the_answer() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(0, 4, 4000)
    y = (rng.random(4000) < sigmoid(z)).astype(np.float32)
    between = (z > -2) & (z < 1.5)
    one = np.where(between, rng.uniform(-2, 1.5, 4000), z)  # the whole tells nothing there
    low, high = calibration.choose_unsure(one, z, y, ["a"] * 4000)
    assert -2.7 < low < -1.4
    assert 0.9 < high < 1.9
    assert ((low < one) & (one < high)).mean() < 0.36
    # They say the same: as seldom as may be
    low, high = calibration.choose_unsure(z, z, y, ["a"] * 4000)
    assert (low, high) == pytest.approx((-1.5, 1), abs=0.2)


def test_a_network_that_is_worse_than_guessing_is_not_turned_round() -> None:
    z, y = answers(1000)
    assert calibration.calibrate(-z, y, ["a"] * 1000) == Calibration(
        rule="not fitted: the network is no better than guessing"
    )


def test_where_sources_disagree_the_calibration_lies_between_them() -> None:
    z, y = answers(4000, 2)
    both = np.concatenate([z, z[:400] + 2])  # by itself the small source asks for a shift of −2
    labels = np.concatenate([y, y[:400]])
    found = calibration.calibrate(both, labels, ["large"] * 4000 + ["small"] * 400)
    assert found.shift == pytest.approx(-1, abs=0.35)
    without = np.concatenate([z, z - 3]), np.concatenate([y, np.zeros(4000)])
    sources = ["large"] * 4000 + ["rooms"] * 4000  # without a cat, they take no part
    assert calibration.calibrate(*without, sources) == calibration.calibrate(z, y, ["large"] * 4000)


def test_folding_a_calibration_scales_and_shifts_the_output_and_nothing_else() -> None:
    normal = np.random.default_rng(3).standard_normal
    layers: list[Layer] = [Linear(normal((6, 3)), normal(3)), Linear(normal((3, 1)), normal(1))]
    x = normal((5, 6))
    z = forward(layers, x, Scratch())[-1]
    folded = calibration.fold_calibration(layers, Calibration(0.7, -0.2))
    np.testing.assert_allclose(forward(folded, x, Scratch())[-1], 0.7 * z - 0.2)
    np.testing.assert_array_equal(forward(layers, x, Scratch())[-1], z)


# Twice as many of each as the fit asks for; cats from 0.6 up, others below 0.4.
PLATEAU_Y = np.array([1] * 200 + [0] * 200)
PLATEAU_P = np.concatenate([np.linspace(0.6, 0.99, 200), np.linspace(0.01, 0.4, 200)])


def test_of_thresholds_that_are_as_good_it_is_the_highest() -> None:
    assert choose_threshold(PLATEAU_Y, PLATEAU_P, ["a"] * 400) == pytest.approx(0.5)
    apart = ["cats"] * 200 + ["dogs"] * 200  # sources of one class each
    assert 0.4 < choose_threshold(PLATEAU_Y, PLATEAU_P, apart) < 0.62
    y = np.repeat([1, 0], 1000)
    p = np.concatenate([np.linspace(0.6, 0.99, 1000), np.linspace(0.01, 0.4, 1000)])
    threshold = choose_threshold(y, p, ["a"] * 2000)
    assert (p[:1000] < threshold).sum() == 4, "0.002 of balanced accuracy are 4 cats of 1,000"


def test_the_threshold_is_the_best_for_the_mean_over_sources() -> None:
    z, y = answers(6000, 4, share=0.3)
    sources = ["large"] * 5000 + ["small"] * 1000
    p = sigmoid(z) ** np.repeat([1, 2], [5000, 1000])

    def accuracy(threshold: float) -> float:
        return calibration.mean_balanced_accuracy(y, p, sources, threshold)

    every = map(accuracy, np.linspace(0.01, 0.99, 197))
    assert accuracy(choose_threshold(y, p, sources)) >= max(every) - 0.0021


@pytest.mark.parametrize(
    ("pictures", "highest_p", "source", "low", "high"),
    [
        (300, 0.57, "rooms", 0.55, 0.6),
        (50, 0.9, "rooms", 0.4, 0.61),  # too few to tell 2 % from 4 %
        (300, 0.9, "rooms", 0.85, 0.9),  # and half of the cats are missed
        (300, 0.9, "wild", 0.4, 0.61),  # foxes, many of which are taken for cats
    ],
)
def test_a_source_without_cats_sets_a_limit_unless_it_is_of_look_alikes(
    pictures: int, highest_p: float, source: str, low: float, high: float
) -> None:
    y = np.concatenate([PLATEAU_Y, np.zeros(pictures)])
    p = np.concatenate([PLATEAU_P, np.linspace(0.3, highest_p, pictures)])
    threshold = choose_threshold(y, p, ["a"] * 400 + [source] * pictures)
    assert low < threshold < high
    if pictures >= 100 and source == "rooms":
        assert np.mean(p[400:] >= threshold) <= 0.02


def test_the_balanced_accuracy_is_that_of_sources_with_both_classes() -> None:
    y, p = np.array([1, 1, 0, 0, 0, 0]), np.array([0.9, 0.2, 0.1, 0.8, 0.3, 0.3])
    sources = ["a", "a", "a", "a", "rooms", "rooms"]
    for start, threshold, expected in ((0, 0.5, 0.5), (0, 0.15, 0.75), (4, 0.5, 1)):
        found = calibration.mean_balanced_accuracy(y[start:], p[start:], sources[start:], threshold)
        assert found == pytest.approx(expected)


Y = np.repeat([1.0, 0.0], 200)
Z = np.random.default_rng(7).normal(0, 1, 400) + 2 * Y - 1
BETTER = Z + 2 * Y - 1
ONE_MORE_CAT = Z + 3 * (np.arange(400) == np.argmin(Z[:200]))
FEW = slice(191, 209)


@pytest.mark.parametrize(
    ("before", "after", "threshold", "words"),
    [
        (Z, BETTER, 0.5, "is clearly better than it was: log loss 0."),
        (Z, ONE_MORE_CAT, 0.5, "chance: log loss .* Use more validation pictures"),
        (Z[FEW], BETTER[FEW], 0.5, "chance: log loss "),
        # The log loss falls, but the threshold misses the cats.
        (Z, BETTER, 0.99, "no better than it was: .* 85.2 % before, 50.0 % after"),
        (8 * (2 * Y - 1), 8.0001 * (2 * Y - 1), 0.5, "no better .*log loss 0.000 before and after"),
        (Z, 1.008 * Z, 0.5, "no better .*log loss 0.402 before, 0.401 after"),
    ],
)
def test_a_verdict_says_what_it_rests_on(
    before: Array, after: Array, threshold: float, words: str
) -> None:
    y = Y if len(before) == 400 else Y[FEW]
    found = calibration.compare(before, after, y, ["a"] * len(y), (0.5, threshold))
    text = render("comparison.txt", comparison=found, start="it was")
    assert re.search(f"(?s){words}", text), text
    assert ("The file contains the weights of it was." in text) == ("no better" in words)
