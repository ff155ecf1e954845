"""Probabilities that can be believed and a threshold that is not one picture's whim."""

import numpy as np
import pytest

from model.network import Array, Layer, Linear, Scratch, forward, sigmoid
from training.calibration import (
    BY_CHANCE,
    CLEARLY,
    NOT,
    Calibration,
    Comparison,
    calibrate,
    choose_threshold,
    choose_unsure,
    compare,
    comparison_text,
    fold_calibration,
    logistic_fit,
    mean_balanced_accuracy,
    source_weights,
)
from training.course import loss
from training.metrics import expected_calibration_error


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
def test_few_pictures_leave_everything_as_it_was(cats: int, others: int) -> None:
    y = np.array([1] * cats + [0] * others)
    z = np.random.default_rng(0).normal(size=len(y)) + 4 * y
    sources = ["a"] * len(y)
    found = calibrate(z, y, sources)
    assert (found.scale, found.shift) == (1, 0)
    assert "fewer than" in found.rule
    assert choose_threshold(y, sigmoid(z), sources, otherwise=(0.37,)) == 0.37


def test_of_two_thresholds_few_pictures_choose_the_better() -> None:
    y, p = np.array([1, 1, 0, 0]), np.array([0.9, 0.8, 0.4, 0.1])
    sources = ["a"] * 4
    assert choose_threshold(y, p, sources, otherwise=(0.3, 0.5)) == 0.5
    assert choose_threshold(y, p + 0.05, sources, otherwise=(0.7, 0.5)) == 0.7  # equally good


def test_a_calibration_can_be_undone() -> None:
    z = np.array([-3.0, 1.3])
    np.testing.assert_allclose(Calibration(0.7, -0.2).undone(0.7 * z - 0.2), z)


def test_other_views_are_looked_at_where_they_change_the_answer() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(0, 4, 4000)
    y = (rng.random(4000) < sigmoid(z)).astype(np.float32)
    between = (z > -2) & (z < 1.5)
    one = np.where(between, rng.uniform(-2, 1.5, 4000), z)  # the whole tells nothing there
    low, high = choose_unsure(one, z, y, ["a"] * 4000)
    assert -2.7 < low < -1.4
    assert 0.9 < high < 1.9
    unsure = (low < one) & (one < high)
    assert unsure.mean() < 0.36


def test_views_that_say_the_same_are_hardly_looked_at() -> None:
    z, y = answers(4000)
    low, high = choose_unsure(z, z, y, ["a"] * 4000)
    assert low == pytest.approx(-1.5, abs=0.2)
    assert high == pytest.approx(1, abs=0.2)


def test_a_network_that_is_worse_than_guessing_is_not_turned_round() -> None:
    z, y = answers(1000)
    assert calibrate(-z, y, ["a"] * 1000) == Calibration(
        rule="left as it was: the network is no better than guessing"
    )


def test_every_source_counts_the_same_however_large() -> None:
    weights = source_weights(["a"] * 90 + ["b"] * 10)
    assert weights[:90].sum() == pytest.approx(weights[90:].sum())
    assert weights.mean() == pytest.approx(1)


def test_where_sources_disagree_the_calibration_lies_between_them() -> None:
    z, y = answers(4000, 2)
    both = np.concatenate([z, z[:400] + 2])  # by itself the small source asks for a shift of −2
    labels = np.concatenate([y, y[:400]])
    found = calibrate(both, labels, ["large"] * 4000 + ["small"] * 400)
    assert found.shift == pytest.approx(-1, abs=0.35)
    as_one = calibrate(both, labels, ["one"] * 4400)
    assert as_one.shift == pytest.approx(0, abs=0.35)  # the large one's


def test_a_source_without_cats_takes_no_part() -> None:
    z, y = answers(2000, 5)
    rooms = np.random.default_rng(6).normal(-3, 1, 500)
    sources = ["a"] * 2000 + ["rooms"] * 500
    found = calibrate(np.concatenate([z, rooms]), np.concatenate([y, np.zeros(500)]), sources)
    assert found == calibrate(z, y, ["a"] * 2000)


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


def test_between_classes_that_are_apart_the_threshold_is_the_middle() -> None:
    assert choose_threshold(PLATEAU_Y, PLATEAU_P, ["a"] * 400) == pytest.approx(0.5)


def test_of_thresholds_that_are_as_good_it_is_the_highest() -> None:
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


def test_a_source_without_cats_sets_a_limit_that_the_threshold_keeps() -> None:
    y = np.concatenate([PLATEAU_Y, np.zeros(300)])
    p = np.concatenate([PLATEAU_P, np.linspace(0.3, 0.57, 300)])  # rooms that look like cats
    threshold = choose_threshold(y, p, ["a"] * 400 + ["rooms"] * 300)
    assert 0.55 < threshold < 0.6
    assert np.mean(p[400:] >= threshold) <= 0.02
    few = choose_threshold(y[:450], p[:450], ["a"] * 400 + ["rooms"] * 50)
    assert few == pytest.approx(0.5)  # too few to tell 2 % from 4 %


def test_look_alikes_set_no_limit() -> None:
    y = np.concatenate([PLATEAU_Y, np.zeros(300)])
    p = np.concatenate([PLATEAU_P, np.linspace(0.3, 0.9, 300)])  # foxes, many taken for cats
    threshold = choose_threshold(y, p, ["a"] * 400 + ["wild"] * 300)
    assert 0.4 < threshold < 0.61
    as_rooms = choose_threshold(y, p, ["a"] * 400 + ["wild"] * 300, lookalikes=())
    assert as_rooms > 0.85  # and half of the cats are missed


def test_the_balanced_accuracy_is_that_of_sources_with_both_classes() -> None:
    y = np.array([1, 1, 0, 0, 0, 0])
    p = np.array([0.9, 0.2, 0.1, 0.8, 0.3, 0.3])
    sources = ["a", "a", "a", "a", "rooms", "rooms"]
    assert mean_balanced_accuracy(y, p, sources, 0.5) == pytest.approx(0.5)
    assert mean_balanced_accuracy(y, p, sources, 0.15) == pytest.approx((1 + 0.5) / 2)
    assert mean_balanced_accuracy(y[4:], p[4:], sources[4:], 0.5) == pytest.approx(1)


# --- whether training helped --------------------------------------------------------------------


def verdict(before: Array, after: Array, y: Array, threshold: float = 0.5) -> Comparison:
    return compare(before, after, y, ["a"] * len(y), (0.5, threshold))


Y = np.repeat([1.0, 0.0], 200)
Z = np.random.default_rng(7).normal(0, 1, 400) + 2 * Y - 1


def test_a_network_that_answers_better_is_clearly_better() -> None:
    found = verdict(Z, Z + 2 * Y - 1, Y)
    assert found.verdict == CLEARLY
    assert "clearly better than it was: log loss 0." in comparison_text(found, "it was")


def test_a_little_better_may_be_chance() -> None:
    after = Z.copy()
    after[np.argmin(Z[:200])] += 3  # one cat is found
    assert verdict(Z, after, Y).verdict == BY_CHANCE


def test_a_lower_log_loss_with_a_threshold_that_misses_the_cats_is_no_better() -> None:
    better = Z + 2 * Y - 1
    found = verdict(Z, better, Y, threshold=0.99)
    assert found.after["log_loss"] < found.before["log_loss"]
    assert found.after["balanced_accuracy"] < found.before["balanced_accuracy"]
    assert found.verdict == NOT


def test_a_verdict_that_rests_on_nothing_says_so() -> None:
    found = verdict(8 * (2 * Y - 1), 8.0001 * (2 * Y - 1), Y)
    assert found.verdict == NOT
    assert "no better than it was: log loss 0.000 before and after" in comparison_text(
        found, "it was"
    )
