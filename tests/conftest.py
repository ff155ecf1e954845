"""A tiny classifier and the service on top of it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from model.classifier import Classifier, Golden
from model.network import Linear
from tests.data_folder import REPOSITORY

IMAGE = "cat-under-test"


@pytest.fixture(scope="session")
def cat_picture() -> bytes:
    """The photo of a cat that ships with the project."""
    return (REPOSITORY / "examples" / "cat.jpg").read_bytes()


@pytest.fixture(scope="session")
def weights_path(tmp_path_factory: pytest.TempPathFactory, cat_picture: bytes) -> Path:
    """An artifact with logistic regression on fixed random weights.

    They vary smoothly over the picture, as trained ones do, with some fine grain: the answer
    depends on how a picture is turned and scaled, and is neither 0 nor 1.
    """
    rng = np.random.default_rng(1)
    smooth = np.kron(rng.standard_normal((8, 8, 3)), np.ones((8, 8, 1)))
    weights = (smooth + 0.5 * rng.standard_normal((64, 64, 3))) / 64
    layer = Linear(weights.reshape(-1, 1).astype(np.float32), np.zeros(1, np.float32))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    Classifier(
        name="tiny",
        class_names=("cat", "non-cat"),
        threshold=0.5,
        layers=[layer],
        golden=Golden(cat_picture, probability=0.0),  # saving works the probability out
    ).save(path)
    return path


@pytest.fixture(scope="session")
def classifier(weights_path: Path) -> Classifier:
    return Classifier.load(weights_path)


@pytest.fixture(scope="session")
def client(weights_path: Path) -> Iterator[TestClient]:
    """The service in this process, with its default settings but for the weights."""
    with TestClient(create_app(Settings(weights=weights_path))) as client:
        yield client


@pytest.fixture(scope="session")
def image() -> str:
    """The container image, built from this checkout."""
    if shutil.which("docker") is None:
        pytest.skip("needs a container engine: there is no docker")
    if subprocess.run(["docker", "version"], capture_output=True, check=False).returncode:
        pytest.skip("needs a container engine: none answers docker")
    subprocess.run(["docker", "build", "--tag", IMAGE, "."], check=True, cwd=REPOSITORY)
    return IMAGE
