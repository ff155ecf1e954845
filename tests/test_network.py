"""Every layer's backward pass is the derivative of its forward pass, and what serving relies on."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from model import network as nn
from model.convolution import Convolution
from model.network import Array, Layer, Scratch, forward, parameters
from training.architecture import batch_norms, default_network, fold
from training.loop import bind

pytestmark = pytest.mark.usefixtures("one_blas_thread")
STEP = 1e-5  # of the finite differences, in float64
SMALL_STEP = 1e-7  # where thousands of maxima are taken, each with a kink that a step may cross


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def convolution(
    kernel: int, c_in: int, c_out: int, stride: int = 1, *, bias: bool = False
) -> Convolution:
    weights = random(kernel, kernel, c_in, c_out) / kernel
    return Convolution(weights, random(c_out) if bias else None, stride)


def slope(cost: Callable[[], float], values: Array, place: tuple[int, ...], step: float) -> float:
    """The derivative of the cost by one of these values, as a central finite difference."""
    middle = values[place]
    values[place] = middle + step
    above = cost()
    values[place] = middle - step
    found = (above - cost()) / (2 * step)
    values[place] = middle
    return float(found)


def check_gradients(
    layers: list[Layer], x: Array, places: int = 25, step: float = STEP, error: float = 1e-7
) -> None:
    """dx and the gradient of each parameter agree with central finite differences of J = Σ c·y,
    with a random c, in all places of small arrays and in some of large ones."""
    scratch = Scratch(keep=True)
    stages = forward(layers, x.copy(), scratch)
    c = random(*stages[-1].shape, seed=1)

    def cost() -> float:
        nn.prepare(layers)
        return float(np.sum(c * forward(layers, x.copy(), Scratch(keep=True))[-1]))

    dx, gradients = nn.backward(layers, stages, c.copy(), scratch)
    own = parameters(layers)
    assert gradients.keys() == own.keys()
    rng = np.random.default_rng(2)
    for name, values, gradient in [("x", x, dx), *((n, own[n], gradients[n]) for n in own)]:
        assert gradient.shape == values.shape, name
        chosen = rng.permutation(values.size)[:places]
        for place in map(tuple, np.array(np.unravel_index(chosen, values.shape)).T):
            expected = slope(cost, values, place, step)
            np.testing.assert_allclose(gradient[place], expected, 1e-6, error, err_msg=name)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (3, 4, 4, 2), (2, 7, 5, 3), (1, 1, 1, 2)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2), (3, 2), (1, 1), (5, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_s_gradients_are_its_derivatives(
    bias: bool, kernel: int, stride: int, shape: tuple[int, ...]
) -> None:
    check_gradients([convolution(kernel, shape[-1], 4, stride, bias=bias)], random(*shape))


@pytest.mark.parametrize(
    ("pictures", "side"),
    [(140, 4), (40, 8), (1, 48), (9, 30)],  # more tiles, or more rows, than one step handles
)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2)])
def test_steps_of_a_convolution_add_up(kernel: int, stride: int, pictures: int, side: int) -> None:
    layer = convolution(kernel, 2, 3, stride, bias=True)
    x = random(pictures, side, side, 2)
    check_gradients([layer], x, places=3)
    together = forward([layer], x, Scratch())[-1]
    alone = [forward([layer], x[i : i + 1], Scratch())[-1] for i in range(pictures)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-12)


LAYERS: dict[str, tuple[list[Layer], tuple[int, ...]]] = {
    "linear": ([nn.Linear(random(7, 2), random(2))], (5, 7)),
    "standardise": ([nn.Standardise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), side=4)], (3, 48)),
    "relu": ([nn.Relu()], (2, 3, 4, 5)),
    "max_pool": ([nn.MaxPool()], (2, 4, 6, 3)),
    "max_pool of many": ([nn.MaxPool()], (35, 2, 2, 1)),
    "global_average": ([nn.GlobalAverage()], (3, 4, 5, 2)),
    "batch_norm of many": ([nn.BatchNorm(random(2))], (9, 32, 32, 2)),
    "batch_norm, relu": ([nn.BatchNorm(random(3)), nn.Relu()], (4, 2, 3, 3)),
    "residual": ([nn.Residual([convolution(3, 3, 3), nn.BatchNorm(random(3))])], (3, 5, 4, 3)),
    "residual in residual": (
        [nn.Residual([nn.Residual([convolution(3, 2, 2), nn.Relu()]), convolution(1, 2, 2)])],
        (2, 4, 4, 2),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_s_gradients_are_its_derivatives(name: str) -> None:
    layers, shape = LAYERS[name]
    check_gradients(layers, random(*shape))


def in_float64(layers: list[Layer]) -> list[Layer]:
    """The layers with parameters, and so everything, in float64."""
    own = parameters(layers)
    bind(layers, np.concatenate([value.ravel() for value in own.values()]).astype(np.float64))
    nn.prepare(layers)
    return layers


@pytest.mark.parametrize("stages", [(4,), (4, 6, 8)], ids=str)
def test_the_network_s_gradients_are_its_derivatives(stages: tuple[int, ...]) -> None:
    layers = in_float64(default_network(np.random.default_rng(3), stages))
    check_gradients(layers, np.random.default_rng(4).random((3, 64 * 64 * 3)), 4, SMALL_STEP, 1e-6)


def test_a_pooling_sends_back_all_of_the_gradient_whatever_ties() -> None:
    x = np.random.default_rng(5).integers(0, 2, (20, 6, 6, 3)).astype(np.float64)
    scratch, dy = Scratch(keep=True), random(20, 3, 3, 3)
    layers: list[Layer] = [nn.MaxPool()]
    dx, _ = nn.backward(layers, forward(layers, x, scratch), dy.copy(), scratch)
    squares = dx.reshape(20, 3, 2, 3, 2, 3)
    np.testing.assert_allclose(squares.sum(axis=(2, 4)), dy)
    assert (np.count_nonzero(squares, axis=(2, 4)) == 1).all()


def direct(x: Array, weights: Array, stride: int = 1) -> Array:
    """Convolution as its definition says, in float64."""
    k, height, width = len(weights), *x.shape[1:3]
    padded = np.pad(x.astype(np.float64), ((0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)))
    terms = [
        padded[:, i : i + height : stride, j : j + width : stride] @ weights[i, j].astype(float)
        for i in range(k)
        for j in range(k)
    ]
    y: Array = np.sum(terms, axis=0)
    return y


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2), (3, 2), (1, 1)])
@pytest.mark.parametrize("side", [1, 4, 6, 16])
def test_a_convolution_is_what_its_definition_says(kernel: int, stride: int, side: int) -> None:
    layer = convolution(kernel, 3, 5, stride)
    x = random(2, side, side, 3)
    y = forward([layer], x, Scratch())[-1]
    np.testing.assert_allclose(y, direct(x, layer.parameters["weights"], stride), atol=1e-12)


def test_minimal_filtering_in_float32_is_as_exact_as_float32_asks_for() -> None:
    rng = np.random.default_rng(6)
    x = np.maximum(rng.standard_normal((4, 16, 16, 64)), 0).astype(np.float32)
    weights = (rng.standard_normal((3, 3, 64, 64)) * np.sqrt(2 / 576)).astype(np.float32)
    y = forward([Convolution(weights)], x, Scratch())[-1]
    exact = direct(x, weights)
    assert y.dtype == np.float32
    error = np.abs(y - exact).max() / np.abs(exact).max()
    assert error < 3e-5  # measured 1e-5; nine products in float32 are off by 3e-7


def trained_statistics(layers: list[Layer], x: Array) -> dict[int, tuple[Array, Array]]:
    """What each normalisation saw in a forward pass over x, shifts made other than 0 first."""
    for i, norm in enumerate(batch_norms(layers)):
        norm.parameters["shift"][...] = random(*norm.parameters["shift"].shape, seed=i) / 5
    scratch = Scratch(keep=True)
    forward(layers, x, scratch)
    return {id(norm): scratch.saved[id(norm)][:2] for norm in batch_norms(layers)}


def test_folding_the_normalisation_changes_no_answer_and_shares_no_memory() -> None:
    layers = default_network(np.random.default_rng(7), (8, 12))
    biased: list[Layer] = [convolution(3, 2, 3, bias=True), nn.BatchNorm(np.zeros(3)), nn.MaxPool()]
    for each, x in ((layers, random(6, 12288).astype(np.float32)), (biased, random(4, 8, 8, 2))):
        folded = fold(each, trained_statistics(each, x))
        assert not batch_norms(folded)
        z = [forward(every, x, Scratch(keep=True))[-1] for every in (each, folded)]
        np.testing.assert_allclose(z[1], z[0], atol=5e-5)
        for before, after in ((each, folded), (folded, fold(folded, {}))):
            for new in parameters(after).values():
                assert not any(np.shares_memory(new, old) for old in parameters(before).values())


def test_a_pass_needs_neither_the_pass_before_nor_other_threads() -> None:
    layers = default_network(np.random.default_rng(10), (8,))
    x = np.random.default_rng(11).random((6, 64 * 64 * 3), np.float32)
    layers = fold(layers, trained_statistics(layers, x))

    def answers(_: int) -> Array:
        scratch = Scratch()
        forward(layers, x, scratch)
        return np.concatenate([forward(layers, each[None], scratch)[-1] for each in x])

    alone = [forward(layers, each[None], Scratch())[-1] for each in x]
    with ThreadPoolExecutor(2) as pool:
        for each in pool.map(answers, range(6)):
            np.testing.assert_array_equal(each, np.concatenate(alone))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_is_exact_where_the_textbook_form_overflows(dtype: type) -> None:
    a = nn.sigmoid(np.array([-1e4, -90, -1, 0, 1, 90, 1e4], dtype))
    np.testing.assert_allclose(a, [0, 0, 0.26894142, 0.5, 0.73105858, 1, 1], atol=1e-8)
