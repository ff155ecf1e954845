"""A tiny classifier, and services on worker processes that all tests share."""

import asyncio
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from model import DEFAULT_WEIGHTS
from model.classifier import Classifier, Golden
from model.network import Linear
from model.preprocessing import Views
from model.worker import Reply
from model.workers import Failure, JobRefused, PendingJob, Workers
from tests.data_folder import REPOSITORY
from tests.pictures import SIX

IMAGE = "cat-under-test"

Service = Callable[..., TestClient]


class SharedWorkers(Workers):
    """Worker processes for the services of all tests, each of which has an event loop of its own.

    They live on a loop in a thread; what is submitted gets its reply on the caller's loop.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__("app.work", [str(weights)], count=2, memory_bytes=2**28)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self._loop).result()

    def submit(self, head: dict[str, Any], body: bytes, *, quick: bool = False) -> PendingJob:
        async def reply() -> Reply:
            job = Workers.submit(self, head, body, quick=quick)
            try:
                return await job.reply
            finally:
                job.cancel()

        submitted = PendingJob(deque(), (b"", b""), quick)
        submitted.is_waiting = False
        submitted.reply = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(reply(), self._loop))
        return submitted

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Stuck(Workers):
    """Workers without processes: each job ends as it is said here, or waits for ever."""

    def __init__(self, description: dict[str, Any], end: Failure | Reply | None = None) -> None:
        super().__init__("none", [], count=1, memory_bytes=0)
        self.description.update(description)
        self._end = end

    def submit(self, head: dict[str, Any], body: bytes, *, quick: bool = False) -> PendingJob:
        job = super().submit(head, body, quick=quick)
        if isinstance(self._end, Failure):
            job.reply.set_exception(JobRefused(self._end))
        elif self._end:
            job.reply.set_result(self._end)
        return job


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
        metadata={
            "input_statistics": {
                "names": ["brightness", "contrast", "colourfulness", "sharpness"],
                "mean": [100.0, 50.0, 40.0, 10.0],
                "deviation": [40.0, 10.0, 20.0, 5.0],
            }
        },
        golden=(Golden(cat_picture, probability=0.0),),  # saving works the probability out
    ).save(path)
    return path


@pytest.fixture(scope="session")
def classifier(weights_path: Path) -> Classifier:
    return Classifier.load(weights_path)


@pytest.fixture(scope="session")
def workers(weights_path: Path) -> Iterator[SharedWorkers]:
    """The workers of the tiny classifier."""
    workers = SharedWorkers(weights_path)
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def service(workers: SharedWorkers) -> Service:
    """Makes a client, for a with block, of a service with the settings that it is given."""
    return lambda **chosen: TestClient(create_app(Settings(**chosen), workers))


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[TestClient]:
    """A client of the service with its default settings."""
    with service() as client:
        yield client


@pytest.fixture(scope="session")
def unsure_path(weights_path: Path) -> Path:
    """The same artifact, but that it looks at six views of every picture."""
    path = weights_path.with_name("views.safetensors")
    views = Views(SIX.boxes, unsure=(-99.0, 99.0))
    replace(Classifier.load(weights_path), views=views).save(path)
    return path


@pytest.fixture(scope="session")
def unsure_service(unsure_path: Path) -> Iterator[Service]:
    """As `service`, of that artifact."""
    workers = SharedWorkers(unsure_path)
    yield lambda **chosen: TestClient(create_app(Settings(**chosen), workers))
    workers.close()


@pytest.fixture(scope="session")
def default_client() -> Iterator[TestClient]:
    """A client of the service with its default settings and its default weights."""
    workers = SharedWorkers(DEFAULT_WEIGHTS)
    with TestClient(create_app(Settings(), workers), base_url="http://127.0.0.1:8000") as client:
        yield client
    workers.close()


@pytest.fixture
def one_blas_thread() -> Iterator[None]:
    """Threads that wait for each other are slow where tests share the processor with others."""
    from threadpoolctl import threadpool_limits  # which the manifests' environment lacks

    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(scope="session")
def image() -> str:
    """The container image, built from this checkout."""
    if shutil.which("docker") is None:
        pytest.skip("needs a container engine: there is no docker")
    if subprocess.run(["docker", "version"], capture_output=True, check=False).returncode:
        pytest.skip("needs a container engine: none answers docker")
    subprocess.run(["docker", "build", "--tag", IMAGE, "."], check=True, cwd=REPOSITORY)
    return IMAGE
