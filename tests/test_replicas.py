"""Replicas behind HAProxy under load: what clients see when one is updated, stopped or killed."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.classifier import Classifier, default_weights
from tests.data_folder import REPOSITORY
from tests.server import PYTHON_M_APP, running
from tests.test_deploy import COMPOSE, CONFIGURATION, needs_haproxy

pytestmark = needs_haproxy
OTHER_WEIGHTS = REPOSITORY / "model" / "logistic.safetensors"
CONNECTIONS = 6


def large_picture() -> bytes:
    """A JPEG of 1 MB: more than the proxy keeps to send it again."""
    pixels = np.random.default_rng(0).integers(256, size=(1200, 1300, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    assert 900_000 < len(file.getvalue()) < 1_500_000
    return file.getvalue()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def proxied(first: int, second: int, log: Path) -> Iterator[int]:
    """The port of HAProxy before these ports, for the time of a `with`."""
    port = free_port()
    addresses = {"FIRST": f"127.0.0.1:{first}", "SECOND": f"127.0.0.1:{second}"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["haproxy", "-db", "-f", str(CONFIGURATION)],
            env={**os.environ, **addresses, "BIND": f"127.0.0.1:{port}"},
            stdout=out,
            stderr=out,
        )
    try:
        wait(lambda: accepts(port))
        yield port
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def load(port: int, picture: bytes) -> Iterator[Counter[str]]:
    """Keep some connections busy with a picture inside a `with`. What clients got, by the model's
    version or by what was wrong."""
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def client() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        while not stop.is_set():
            try:
                connection.request("POST", "/predict", picture)
                response = connection.getresponse()
                answer = json.loads(response.read())
                ok = response.status == 200
                seen[answer["model"]["version"] if ok else f"{response.status}: {answer}"] += 1
            except (OSError, ValueError, HTTPException) as error:
                seen[repr(error)] += 1
                connection.close()  # the next request opens it anew
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(CONNECTIONS)]
    for each in clients:
        each.start()
    try:
        yield seen
    finally:
        stop.set()
        for each in clients:
            each.join()


def docker(*arguments: str) -> str:
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


class Replica:
    """A container as deploy/compose.yaml has it."""

    def __init__(self, name: str, image: str) -> None:
        self.name, self.image, self.port = f"cat-{os.getpid()}-{name}", image, free_port()

    def start(self, weights: str) -> None:
        """Start it, and wait until it is healthy, as `docker compose up --wait` does."""
        replica = COMPOSE["x-replica"]
        options = {
            "tmpfs": replica["tmpfs"][0],
            "cap-drop": replica["cap_drop"][0],
            "security-opt": replica["security_opt"][0],
            "memory": replica["mem_limit"],
            "memory-swap": replica["memswap_limit"],
            "pids-limit": replica["pids_limit"],
            "stop-timeout": replica["stop_grace_period"].removesuffix("s"),
        }
        docker(
            *("run", "--detach", "--rm", "--name", self.name, "--read-only"),
            *("--publish", f"127.0.0.1:{self.port}:8000"),
            *(f"--{name}={value}" for name, value in options.items()),
            *(f"--env={name}={value}" for name, value in replica["environment"].items()),
            *("--health-interval", "1s", f"--env=CAT_WEIGHTS={weights}", self.image),
        )
        health = ("inspect", "--format", "{{.State.Health.Status}}", self.name)
        wait(lambda: docker(*health) == "healthy")

    def stop(self) -> None:
        docker("stop", self.name)
        wait(lambda: self.name not in docker("ps", "--all", "--format", "{{.Names}}"))


@pytest.mark.container
def test_no_client_sees_a_rolling_update(image: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first, second = Replica("first", image), Replica("second", image)
    try:
        for each in (first, second):
            each.start("/srv/model/cat.safetensors")
        with (
            proxied(first.port, second.port, log) as port,
            load(port, large_picture()) as seen,
        ):
            time.sleep(2)
            for each in (first, second):
                each.stop()
                each.start("/srv/model/logistic.safetensors")
            time.sleep(2)
    finally:
        for each in (first, second):
            subprocess.run(["docker", "rm", "--force", each.name], capture_output=True, check=False)
    before, after = (Classifier.load(path).version for path in (default_weights(), OTHER_WEIGHTS))
    assert seen.keys() == {before, after}, log.read_text("utf-8")
    assert seen.total() > 50


@pytest.mark.slow
@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL])
def test_no_client_sees_a_replica_go(
    way: signal.Signals, weights_path: Path, cat_picture: bytes, tmp_path: Path
) -> None:
    """One that stops is left in time; what one that is killed had begun is asked of the other."""
    log = tmp_path / "log"
    settings: dict[str, Any] = {"weights": weights_path, "drain_seconds": 5}
    with (
        running(PYTHON_M_APP, **settings) as first,
        running(PYTHON_M_APP, **settings) as second,
        proxied(first.port, second.port, log) as port,
        load(port, cat_picture) as seen,
    ):
        time.sleep(1)
        os.killpg(first.process.pid, way) if way == signal.SIGKILL else first.stop()
        first.wait()
        time.sleep(2)
    assert list(seen) == [Classifier.load(weights_path).version], log.read_text("utf-8")
    assert first.log.count(" path=/predict ") > 1
    assert "Server cat/first is DOWN" in log.read_text("utf-8")


@pytest.mark.slow
def test_the_proxy_answers_as_the_service_does_where_no_replica_can(
    weights_path: Path, tmp_path: Path
) -> None:
    def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, Any, str]:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path, body)
        response = connection.getresponse()
        kind = response.headers["content-type"] or ""
        data = response.read()
        connection.close()
        answer = json.loads(data) if "json" in kind else None
        return response.status, answer, response.headers["retry-after"] or ""

    with (
        running(PYTHON_M_APP, weights=weights_path) as server,
        proxied(server.port, server.port, tmp_path / "log") as port,
    ):
        for path in ("/metrics", "/%6detrics", "/metric%73?a"):
            assert ask(port, "GET", path)[0] == 404, path
        _, answer, _ = ask(port, "POST", "/predict", b"no picture")
        assert answer["type"].endswith("#not-a-picture")
        assert ask(port, "POST", "/predict", large_picture())[0] == 200
        server.stop()
        status, answer, retry_after = ask(port, "POST", "/predict", b"no picture")
    assert status == 503
    assert retry_after.isdecimal()
    assert answer.keys() == {"type", "title", "status", "detail"}
