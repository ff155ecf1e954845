"""Probabilities that can be believed and a threshold that is not one picture's whim."""

import re

import numpy as np
import pytest

from model.network import Array, Layer, Linear, Scratch, forward, sigmoid
from training.calibration import (
    BY_CHANCE,
    CLEARLY,
    NOT,
    Calibration,
    calibrate,
    choose_threshold,
    choose_unsure,
    compare,
    fold_calibration,
    logistic_fit,
    mean_balanced_accuracy,
)
from training.course import loss
from training.metrics import expected_calibration_error
from training.report import render


def answers(m: int, seed: int = 0, share: float = 0.5) -> tuple[Array, Array]:
    """Logits that are right as probabilities, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    z = rng.normal(np.log(share / (1 - share)), 2, m)
    return z, (rng.random(m) < sigmoid(z)).astype(np.float32)


def cost(z: Array, y: Array, scale: float, shift: float) -> float:
    return float(np.sum(loss(scale * z + shift, y)))


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_the_fit_has_the_least_loss_whatever_the_scale_of_the_logits(spread: float) -> None:
    z, y = answers(3000)
    z = (z - 1) * spread
    scale, shift = logistic_fit(z, y)
    least = cost(z, y, scale, shift)
    for other in ((scale * 1.01, shift), (scale * 0.99, shift), (scale, shift + 0.02)):
        assert cost(z, y, *other) > least
    assert scale * spread == pytest.approx(1, rel=0.1)


def test_a_calibration_undoes_what_was_done_to_the_logits() -> None:
    z, y = answers(20_000)
    found = calibrate((z - 0.7) / 0.4, y, ["a"] * len(y))
    assert found.scale == pytest.approx(0.4, rel=0.05)
    assert found.shift == pytest.approx(0.7, abs=0.05)
    p = sigmoid(found.scale * (z - 0.7) / 0.4 + found.shift)
    assert expected_calibration_error(y, p) < 0.015


def test_a_perfect_separation_gives_finite_numbers() -> None:
    y = (np.arange(400) % 2).astype(np.float32)
    found = calibrate(20 * y - 10, y, ["a"] * 400)
    assert 0 < found.scale < 10
    assert np.isfinite(found.shift)


@pytest.mark.parametrize(("cats", "others"), [(10, 20), (49, 500), (500, 49), (99, 99)])
def test_few_pictures_leave_the_better_of_the_thresholds_there_are(cats: int, others: int) -> None:
    y = np.array([1] * cats + [0] * others)
    z = np.where(y == 1, 1.0, -1.0)
    sources = ["a"] * len(y)
    found = calibrate(z, y, sources)
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
    low, high = choose_unsure(one, z, y, ["a"] * 4000)
    assert -2.7 < low < -1.4
    assert 0.9 < high < 1.9
    assert ((low < one) & (one < high)).mean() < 0.36
    low, high = choose_unsure(z, z, y, ["a"] * 4000)  # they say the same: as seldom as may be
    assert (low, high) == pytest.approx((-1.5, 1), abs=0.2)


def test_a_network_that_is_worse_than_guessing_is_not_turned_round() -> None:
    z, y = answers(1000)
    assert calibrate(-z, y, ["a"] * 1000) == Calibration(
        rule="not fitted: the network is no better than guessing"
    )


def test_where_sources_disagree_the_calibration_lies_between_them() -> None:
    z, y = answers(4000, 2)
    both = np.concatenate([z, z[:400] + 2])  # by itself the small source asks for a shift of −2
    labels = np.concatenate([y, y[:400]])
    found = calibrate(both, labels, ["large"] * 4000 + ["small"] * 400)
    assert found.shift == pytest.approx(-1, abs=0.35)
    as_one = calibrate(both, labels, ["one"] * 4400)
    assert as_one.shift == pytest.approx(0, abs=0.35)  # the large one's
    without = np.concatenate([z, z - 3]), np.concatenate([y, np.zeros(4000)])
    sources = ["large"] * 4000 + ["rooms"] * 4000  # without a cat, they take no part
    assert calibrate(*without, sources) == calibrate(z, y, ["large"] * 4000)


def test_folding_a_calibration_scales_and_shifts_the_output_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    first = Linear(rng.standard_normal((6, 3)), rng.standard_normal(3))
    last = Linear(rng.standard_normal((3, 1)), rng.standard_normal(1))
    layers: list[Layer] = [first, last]
    x = rng.standard_normal((5, 6))
    z = forward(layers, x, Scratch())[-1]
    folded = fold_calibration(layers, Calibration(0.7, -0.2))
    np.testing.assert_allclose(forward(folded, x, Scratch())[-1], 0.7 * z - 0.2)
    np.testing.assert_array_equal(forward(layers, x, Scratch())[-1], z)
    assert folded[0] is first


# Twice as many of each as the fit asks for; cats from 0.6 up, others below 0.4.
PLATEAU_Y = np.array([1] * 200 + [0] * 200)
PLATEAU_P = np.concatenate([np.linspace(0.6, 0.99, 200), np.linspace(0.01, 0.4, 200)])


def test_of_thresholds_that_are_as_good_it_is_the_highest() -> None:
    assert choose_threshold(PLATEAU_Y, PLATEAU_P, ["a"] * 400) == pytest.approx(0.5)
    y = np.repeat([1, 0], 1000)
    p = np.concatenate([np.linspace(0.6, 0.99, 1000), np.linspace(0.01, 0.4, 1000)])
    threshold = choose_threshold(y, p, ["a"] * 2000)
    assert (p[:1000] < threshold).sum() == 4, "0.002 of balanced accuracy are 4 cats of 1,000"


def test_the_threshold_is_the_best_for_the_mean_over_sources() -> None:
    z, y = answers(6000, 4, share=0.3)
    p = sigmoid(z)
    sources = np.where(np.arange(6000) < 5000, "large", "small")
    p = np.where(sources == "small", p**2, p)
    threshold = choose_threshold(y, p, list(sources))
    chosen = mean_balanced_accuracy(y, p, list(sources), threshold)
    every = [mean_balanced_accuracy(y, p, list(sources), t) for t in np.linspace(0.01, 0.99, 197)]
    assert chosen >= max(every) - 0.0021


@pytest.mark.parametrize(
    ("pictures", "highest_p", "lookalikes", "low", "high"),
    [
        (300, 0.57, (), 0.55, 0.6),
        (50, 0.9, (), 0.4, 0.61),  # too few to tell 2 % from 4 %
        (300, 0.9, (), 0.85, 0.9),  # and half of the cats are missed
        (300, 0.9, ("other",), 0.4, 0.61),  # as of foxes, many of which are taken for cats
    ],
)
def test_a_source_without_cats_sets_a_limit_unless_it_is_of_look_alikes(
    pictures: int, highest_p: float, lookalikes: tuple[str, ...], low: float, high: float
) -> None:
    y = np.concatenate([PLATEAU_Y, np.zeros(pictures)])
    p = np.concatenate([PLATEAU_P, np.linspace(0.3, highest_p, pictures)])
    sources = ["a"] * 400 + ["other"] * pictures
    threshold = choose_threshold(y, p, sources, lookalikes=lookalikes)
    assert low < threshold < high
    if pictures >= 100 and not lookalikes:
        assert np.mean(p[400:] >= threshold) <= 0.02


def test_sources_of_one_class_each_have_a_threshold_that_parts_them() -> None:
    sources = ["cats"] * 200 + ["dogs"] * 200
    assert 0.4 < choose_threshold(PLATEAU_Y, PLATEAU_P, sources) < 0.62


def test_the_balanced_accuracy_is_that_of_sources_with_both_classes() -> None:
    y = np.array([1, 1, 0, 0, 0, 0])
    p = np.array([0.9, 0.2, 0.1, 0.8, 0.3, 0.3])
    sources = ["a", "a", "a", "a", "rooms", "rooms"]
    assert mean_balanced_accuracy(y, p, sources, 0.5) == pytest.approx(0.5)
    assert mean_balanced_accuracy(y, p, sources, 0.15) == pytest.approx((1 + 0.5) / 2)
    assert mean_balanced_accuracy(y[4:], p[4:], sources[4:], 0.5) == pytest.approx(1)


# --- whether training helped --------------------------------------------------------------------

Y = np.repeat([1.0, 0.0], 200)
Z = np.random.default_rng(7).normal(0, 1, 400) + 2 * Y - 1
BETTER = Z + 2 * Y - 1
ONE_MORE_CAT = Z + 3 * (np.arange(400) == np.argmin(Z[:200]))


@pytest.mark.parametrize(
    ("before", "after", "threshold", "verdict", "words"),
    [
        (Z, BETTER, 0.5, CLEARLY, "clearly better than it was: log loss 0."),
        (Z, ONE_MORE_CAT, 0.5, BY_CHANCE, "chance: log loss .* Use more validation pictures"),
        # The log loss falls, but the threshold misses the cats.
        (Z, BETTER, 0.99, NOT, r"no better than it was: .* 85.2 % before, 50.0 % after"),
        (8 * (2 * Y - 1), 8.0001 * (2 * Y - 1), 0.5, NOT, "log loss 0.000 before and after"),
        (Z, 1.008 * Z, 0.5, NOT, "log loss 0.402 before, 0.401 after"),
    ],
    ids=["better", "a little better", "worse at its threshold", "of nothing", "of hardly anything"],
)
def test_a_verdict_says_what_it_rests_on(
    before: Array, after: Array, threshold: float, verdict: str, words: str
) -> None:
    found = compare(before, after, Y, ["a"] * 400, (0.5, threshold))
    assert found.verdict == verdict
    text = render("comparison.txt", comparison=found, start="it was")
    assert text.startswith(
        f"On 400 held-back pictures the new network is {verdict.partition(', ')[0]} than "
    )
    assert re.search(words, text), text
    assert ("The file contains the weights of it was." in text) == (verdict == NOT)


def test_a_few_pictures_are_never_clear() -> None:
    few = slice(191, 209)
    found = compare(Z[few], BETTER[few], Y[few], ["a"] * 18, (0.5, 0.5))
    assert found.verdict == BY_CHANCE
