"""Every layer's backward pass is the derivative of its forward pass, and what serving relies on."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from model.artifact import describe
from model.convolution import Convolution
from model.network import (
    Array,
    BatchNorm,
    GlobalAverage,
    Layer,
    Linear,
    MaxPool,
    Mirrored,
    Relu,
    Residual,
    Scratch,
    Standardise,
    backward,
    forward,
    parameters,
    prepare,
    sigmoid,
    unmirrored,
)
from training.architecture import batch_norms, convolutional, fold, mirrored
from training.loop import bind, one_blas_thread

STEP = 1e-5  # of the finite differences, in float64
SMALL_STEP = 1e-7  # where thousands of maxima are taken, each with a kink that a step may cross


@pytest.fixture(autouse=True)
def one_blas() -> Iterator[None]:
    """Threads inside the linear algebra of each of ours make them wait for one another."""
    with one_blas_thread():
        yield


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def convolution(
    kernel: int, c_in: int, c_out: int, stride: int = 1, *, bias: bool = False
) -> Convolution:
    weights = random(kernel, kernel, c_in, c_out) / kernel
    return Convolution(weights, random(c_out) if bias else None, stride)


def derivative(
    function: Callable[[], float], values: Array, place: tuple[int, ...], step: float
) -> float:
    """The central finite difference of the function in one number of `values`."""
    middle = values[place]
    values[place] = middle + step
    above = function()
    values[place] = middle - step
    below = function()
    values[place] = middle
    return (above - below) / (2 * step)


def check_gradients(
    layers: list[Layer], x: Array, places: int = 25, step: float = STEP, error: float = 1e-7
) -> None:
    """dx and the gradient of each parameter agree with finite differences of J = Σ c·y, with a
    random c, in all places of small arrays and in some of large ones."""
    scratch = Scratch(keep=True)
    stages = forward(layers, x.copy(), scratch)
    c = random(*stages[-1].shape, seed=1)

    def cost() -> float:
        prepare(layers)
        return float(np.sum(c * forward(layers, x.copy(), Scratch(keep=True))[-1]))

    dx, gradients = backward(layers, stages, c.copy(), scratch)
    own = parameters(layers)
    assert gradients.keys() == own.keys()
    rng = np.random.default_rng(2)
    for name, values, gradient in [("x", x, dx), *((n, own[n], gradients[n]) for n in own)]:
        assert gradient.shape == values.shape, name
        chosen = rng.permutation(values.size)[:places]
        for place in map(tuple, np.array(np.unravel_index(chosen, values.shape)).T):
            expected = derivative(cost, values, place, step)
            np.testing.assert_allclose(gradient[place], expected, 1e-6, error, err_msg=name)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (3, 4, 4, 2), (2, 7, 5, 3), (1, 1, 1, 2)])
@pytest.mark.parametrize(
    ("kernel", "stride", "bias"),
    [
        *((3, 1, False), (3, 1, True), (5, 2, False), (5, 2, True)),
        *((3, 2, True), (1, 1, True), (5, 1, False)),
    ],
)
def test_a_convolution_s_gradients_are_its_derivatives(
    kernel: int, stride: int, bias: bool, shape: tuple[int, ...]
) -> None:
    check_gradients([convolution(kernel, shape[-1], 4, stride, bias=bias)], random(*shape))


@pytest.mark.parametrize(
    ("pictures", "side"),
    [(140, 4), (40, 8), (1, 48), (9, 30)],  # more tiles, or more rows, than one step handles
)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2)])
def test_a_convolution_in_several_steps_is_the_sum_of_its_steps(
    kernel: int, stride: int, pictures: int, side: int
) -> None:
    layer = convolution(kernel, 2, 3, stride, bias=True)
    x = random(pictures, side, side, 2)
    check_gradients([layer], x, places=3)
    together = forward([layer], x, Scratch())[-1]
    alone = [forward([layer], x[i : i + 1], Scratch())[-1] for i in range(pictures)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-12)


LAYERS: dict[str, tuple[list[Layer], tuple[int, ...]]] = {
    "linear": ([Linear(random(7, 2), random(2))], (5, 7)),
    "logistic regression": ([Linear(random(12, 1), random(1))], (3, 12)),
    "standardise": ([Standardise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), side=4)], (3, 48)),
    "relu": ([Relu()], (2, 3, 4, 5)),
    "max_pool": ([MaxPool()], (2, 4, 6, 3)),
    "max_pool of many": ([MaxPool()], (35, 2, 2, 1)),
    "global_average": ([GlobalAverage()], (3, 4, 5, 2)),
    "batch_norm": ([BatchNorm(random(3))], (4, 3, 5, 3)),
    "batch_norm of many": ([BatchNorm(random(2))], (9, 32, 32, 2)),
    "batch_norm, relu": ([BatchNorm(random(3)), Relu()], (4, 2, 2, 3)),
    "residual": (
        [Residual([convolution(3, 3, 3), BatchNorm(random(3)), Relu(), convolution(3, 3, 3)])],
        (3, 5, 4, 3),
    ),
    "mirrored": (
        [Mirrored([convolution(3, 3, 2, bias=True), Relu(), GlobalAverage()])],
        (3, 4, 6, 3),
    ),
    "mirrored residual": (
        [Standardise((0.5,), (0.2,), side=4), Mirrored([Residual([convolution(3, 1, 1)])])],
        (2, 16),
    ),
    "residual in residual": (
        [Residual([Residual([convolution(3, 2, 2, bias=True), Relu()]), convolution(1, 2, 2)])],
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
    prepare(layers)
    return layers


@pytest.mark.parametrize("stages", [(), (4, 6, 8)], ids=str)
def test_the_network_s_gradients_are_its_derivatives_at_every_depth(
    stages: tuple[int, ...],
) -> None:
    layers = in_float64(convolutional(np.random.default_rng(3), stages))
    check_gradients(layers, np.random.default_rng(4).random((3, 64 * 64 * 3)), 4, SMALL_STEP, 1e-6)


def test_a_pooling_sends_back_all_of_the_gradient_whatever_ties() -> None:
    x = np.random.default_rng(5).integers(0, 2, (20, 6, 6, 3)).astype(np.float64)
    scratch = Scratch(keep=True)
    layers: list[Layer] = [MaxPool()]
    stages = forward(layers, x, scratch)
    dy = random(20, 3, 3, 3)
    dx, _ = backward(layers, stages, dy.copy(), scratch)
    np.testing.assert_allclose(dx.reshape(20, 3, 2, 3, 2, 3).sum(axis=(2, 4)), dy)
    assert (np.count_nonzero(dx.reshape(20, 3, 2, 3, 2, 3), axis=(2, 4)) == 1).all()


def direct(x: Array, weights: Array, stride: int = 1) -> Array:
    """Convolution as its definition says, in float64."""
    k, (m, height, width, _) = len(weights), x.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)))
    y = sum(
        padded[:, i : i + height : stride, j : j + width : stride] @ weights[i, j].astype(float)
        for i in range(k)
        for j in range(k)
    )
    assert isinstance(y, np.ndarray)
    assert y.shape[0] == m
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


def test_a_whole_network_in_float32_answers_as_in_float64() -> None:
    layers = convolutional(np.random.default_rng(13), (32, 64, 64))
    x = np.random.default_rng(14).random((8, 64 * 64 * 3), np.float32)
    z = forward(layers, x, Scratch(keep=True))[-1]
    exact = forward(in_float64(layers), x.astype(np.float64), Scratch(keep=True))[-1]
    assert z.dtype == np.float32
    np.testing.assert_allclose(z, exact, atol=1e-4)


def trained_statistics(layers: list[Layer], x: Array) -> dict[int, tuple[Array, Array]]:
    """What each normalisation saw in a forward pass over x, shifts made other than 0 first."""
    for i, norm in enumerate(batch_norms(layers)):
        norm.parameters["shift"][...] = random(*norm.parameters["shift"].shape, seed=i) / 5
    scratch = Scratch(keep=True)
    forward(layers, x, scratch)
    return {id(norm): scratch.saved[id(norm)][:2] for norm in batch_norms(layers)}


def test_folding_the_normalisation_changes_no_answer_and_shares_no_memory() -> None:
    layers = convolutional(np.random.default_rng(7), (8, 12))
    biased: list[Layer] = [convolution(3, 2, 3, bias=True), MaxPool(), BatchNorm(np.zeros(3))]
    for each, x in ((layers, random(6, 12288).astype(np.float32)), (biased, random(4, 8, 8, 2))):
        folded = fold(each, trained_statistics(each, x))
        assert not batch_norms(folded)
        z = [forward(every, x, Scratch(keep=True))[-1] for every in (each, folded)]
        np.testing.assert_allclose(z[1], z[0], atol=5e-5)
        for before, after in ((each, folded), (folded, fold(folded, {}))):
            for new in parameters(after).values():
                assert not any(np.shares_memory(new, old) for old in parameters(before).values())


def test_a_pass_needs_neither_the_pass_before_nor_other_threads() -> None:
    layers = convolutional(np.random.default_rng(10), (8,))
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
    z: Array = np.array([-1e4, -90, -1, 0, 1, 90, 1e4], dtype)
    a = sigmoid(z)
    np.testing.assert_allclose(a + a[::-1], 1)
    np.testing.assert_allclose(a[2:5], [0.26894142, 0.5, 0.73105858])
    assert a[0] == 0
    assert a[-1] == 1


def test_with_its_mirror_image_taken_in_a_network_answers_the_same_for_both() -> None:
    layers = convolutional(np.random.default_rng(0), stages=(8, 8))
    x = np.random.default_rng(1).random((3, 12288), np.float32)
    layers = fold(layers, trained_statistics(layers, x))
    reflected = np.ascontiguousarray(x.reshape(3, 64, 64, 3)[:, :, ::-1]).reshape(3, -1)
    z, z_reflected = (forward(layers, each, Scratch())[-1] for each in (x, reflected))
    both = [forward(mirrored(layers), each, Scratch())[-1] for each in (x, reflected)]
    assert abs(z - z_reflected).max() > 1e-3
    np.testing.assert_allclose(both[0], (z + z_reflected) / 2, atol=1e-5)
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)
    assert describe(mirrored(mirrored(layers))) == describe(mirrored(layers))
    assert describe(unmirrored(mirrored(layers))) == describe(layers)
