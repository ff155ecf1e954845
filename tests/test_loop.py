"""The training loop learns, repeats itself bit for bit, and goes on as if never stopped."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.network import Array, Layer, Linear, Residual, Scratch, forward, parameters
from training import Refused, loop
from training.architecture import default_network
from training.augmentation import whole
from training.loop import Settings, Trainer, score

pytestmark = pytest.mark.usefixtures("one_blas_thread")
CONFIG = Settings(epochs=3, batch=8, max_lr=0.02, warm_up=0.5, ema_decay=0.9, seed=5)


def blots(m: int, side: int = 64, seed: int = 0) -> loop.Examples:
    """Pictures with a blot, warm (1) or cold (0): no mirror image turns one into the other."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(60, 120, (m, side, side, 3), np.uint8)
    labels = (np.arange(m) % 2).astype(np.float32)
    for picture, label in zip(pictures, labels, strict=True):
        top, left = rng.integers(8, side - 32, 2)
        colour = (230, 120, 60) if label else (60, 120, 230)
        picture[top : top + 24, left : left + 24] = colour
    return loop.Examples(pictures, np.full(m, side, np.int16), labels[:, None], np.ones(m))


def trainer(config: Settings = CONFIG, examples: loop.Examples | None = None) -> Trainer:
    layers = default_network(np.random.default_rng(0), (4,))
    return Trainer(layers, examples or blots(20), config)


def run(trainer: Trainer, epochs: int) -> list[float]:
    return [loss for _ in range(epochs) for loss in trainer.run_epoch()]


def flat(values: dict[str, Array]) -> Array:
    return np.concatenate([value.ravel() for value in values.values()])


def weights(trainer: Trainer) -> Array:
    return flat(parameters(trainer.folded()))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_seed_data_and_threads_give_the_same_weights(threads: int) -> None:
    config = replace(CONFIG, threads=threads)
    results = []
    for seed in (5, 5, 6):
        with trainer(replace(config, seed=seed)) as t:
            run(t, 1)
            results.append(weights(t))
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_a_checkpoint_that_cannot_go_on_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    facts = {"seed": 5, "epochs": 3}
    with trainer() as t:
        loop.save_checkpoint(path, t, facts)
        with pytest.raises(Refused, match="epochs was 3 and is now 4"):
            loop.resume(path, t, facts | {"epochs": 4})
        with pytest.raises(Refused, match="teacher was 'not set' and is now 'x'"):
            loop.resume(path, t, facts | {"teacher": "x"})
        whole = path.read_bytes()
        for kept in (0, 500, -100):
            path.write_bytes(whole[:kept])
            with pytest.raises(Refused, match="cannot be used"):
                loop.resume(path, t, facts)


@pytest.mark.parametrize(
    ("pictures", "batch", "threads"), [(3, 8, 2), (5, 2, 4), (20, 1, 3), (9, 7, 2)]
)
def test_odd_numbers_of_pictures_and_threads_do(pictures: int, batch: int, threads: int) -> None:
    config = replace(CONFIG, batch=batch, threads=threads)
    with trainer(config, blots(pictures)) as t:
        assert len(run(t, 1)) == max(1, pictures // batch)
        assert np.isfinite(weights(t)).all()


def test_a_run_that_diverges_ends_with_a_message() -> None:
    message = r"epoch 1: .* max_lr below 1e\+30"
    with trainer(replace(CONFIG, max_lr=1e30)) as t, pytest.raises(Refused, match=message):
        run(t, 3)


def test_a_share_of_the_start_keeps_weights_on_the_way_back_to_the_start() -> None:
    with trainer() as t:
        run(t, 1)
        start = t.folded()
    kept = {}
    for share in (0.0, 0.75):
        config = replace(CONFIG, max_lr=0.01, start_share=share)
        with Trainer(copy.deepcopy(start), blots(20), config) as t:
            run(t, 1)
            kept[share] = parameters(t.folded())
    for name, value in parameters(start).items():
        expected = 0.75 * value + 0.25 * kept[0.0][name]
        np.testing.assert_allclose(kept[0.75][name], expected, atol=1e-6)
    assert not np.array_equal(flat(kept[0.75]), flat(parameters(start)))


def test_scores_are_those_of_one_picture_at_a_time_on_any_number_of_threads() -> None:
    examples = blots(70, side=80)
    with trainer() as t:
        layers = t.folded()
    x = whole(examples.pictures, examples.sides)
    alone = [float(forward(layers, row[None], Scratch())[-1][0, 0]) for row in x]
    for threads in (1, 2, 5):
        z = score(layers, examples.pictures, examples.sides, threads)
        np.testing.assert_allclose(z, alone, atol=1e-5)


def test_each_picture_is_drawn_as_often_as_its_weight_says() -> None:
    weights = np.array([1.0, 2.0, 0.0, 4.5, 0.5])
    drawn = loop.draw(weights, 80, np.random.default_rng(0))
    expected = 80 * weights / weights.sum()
    counts = np.bincount(drawn, minlength=5)
    assert (np.abs(counts - expected) < 1).all()
    assert not np.array_equal(drawn, np.sort(drawn))


def test_sources_are_drawn_equally_often_and_rare_classes_more_than_they_are_there() -> None:
    labels = np.array([1] * 100 + [0] * 400 + [1] * 5 + [0] * 5 + [0] * 30)
    names = np.repeat([*"abc"], [500, 10, 30])
    weights = loop.sampling_weights(labels, names.tolist())
    for source in "abc":
        assert weights[names == source].sum() == pytest.approx(1)
    other = loop.sampling_weights(labels, names.tolist(), {"b": 1.5})
    np.testing.assert_allclose(other, weights * np.where(names == "b", 1.5, 1))
    cats = weights[(names == "a") & (labels == 1)].sum()
    assert cats == pytest.approx(10 / (10 + 20))  # roots of 100 and 400, not 100 of 500


def test_look_alikes_are_drawn_by_kind_and_no_source_is_all_of_one_class() -> None:
    labels = np.array([1] * 50 + [0] * 50 + [0] * 40 + [0] * 10)
    sources = ["web"] * 100 + ["wild"] * 50
    kinds = [""] * 100 + ["fox"] * 40 + ["puma"] * 10
    weights = loop.sampling_weights(labels, sources, None, kinds, 1 / 3)
    np.testing.assert_array_equal(weights[:100], loop.sampling_weights(labels[:100], sources[:100]))
    assert weights[100:140].sum() == pytest.approx(weights[140:].sum())
    assert weights[100:].sum() == pytest.approx(weights[labels == 0].sum() / 3)


@pytest.mark.parametrize("n_x", [5, loop.NUMBERS // 2])  # in one piece and in several
def test_a_step_is_nesterov_momentum_with_decay_and_an_average(n_x: int) -> None:
    normal = np.random.default_rng(0).standard_normal
    inner = Residual([Linear(normal((3, 3)), normal(3))])
    layers: list[Layer] = [Linear(normal((n_x, 3)), normal(3)), inner]
    optimizer = loop.Optimizer(layers, 0.01, 0.5)
    theta = flat(parameters(layers)).copy()
    velocity, average = np.zeros_like(theta), theta.copy()
    decay = flat({n: np.full(v.shape, 0.01 * (v.ndim > 1)) for n, v in parameters(layers).items()})
    with ThreadPoolExecutor(2) as pool:
        for step in range(4):
            shards = [{n: normal(v.shape) for n, v in parameters(layers).items()} for _ in "abc"]
            rate, beta = 0.1 / (step + 1), min(0.5, (step + 1) / (step + 10))
            optimizer.step(shards, 12, rate, pool)
            g = sum(flat(shard) for shard in shards) / 12 + decay * theta
            velocity = 0.9 * velocity + g
            theta = theta - rate * (g + 0.9 * velocity)
            average += (1 - beta) * (theta - average)
    np.testing.assert_allclose(flat(parameters(layers)), theta, atol=1e-12)
    np.testing.assert_allclose(optimizer.average, average, atol=1e-12)


def test_the_learning_rate_rises_stays_and_falls_to_nothing() -> None:
    config = Settings(epochs=10, max_lr=0.2, warm_up=2, decay=0.3)
    rates = [loop.learning_rate(i / 10, config) for i in range(100)]
    assert (np.diff(rates[:20]) > 0).all()
    assert rates[20:71] == [0.2] * 51
    assert (np.diff(rates[70:]) < 0).all()
    assert 0 < rates[0] < 0.02
    assert 0 < rates[-1] < 0.01


def test_other_outputs_are_learned_beside_the_class_and_not_kept() -> None:
    examples = blots(64)
    both = np.hstack([examples.targets, 1 - examples.targets])
    layers = default_network(np.random.default_rng(0), (4,), outputs=2)
    config = replace(CONFIG, epochs=12, group_weight=1.0)
    with Trainer(layers, replace(examples, targets=both), config) as trainer:
        run(trainer, config.epochs)
        kept = trainer.folded()
        z = forward(trainer.layers, whole(examples.pictures, examples.sides), Scratch())[-1]
    assert np.corrcoef(z.T)[0, 1] < -0.9  # it learned that one excludes the other
    assert kept[-1].parameters["weights"].shape == (4, 1)
