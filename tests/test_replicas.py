"""Replicas behind HAProxy under load: what clients see when one is updated, stopped or killed."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from model.classifier import Classifier
from tests.data_folder import REPOSITORY
from tests.pictures import encode
from tests.server import CLIENTS, PYTHON_M_APP, Server, load, running, wait_for_more, wait_until
from tests.test_deploy import CONFIGURATION, ENVIRONMENTS, needs_haproxy

pytestmark = [needs_haproxy, pytest.mark.slow]
DRAIN_SECONDS = ENVIRONMENTS["Compose"]["CAT_DRAIN_SECONDS"]


def large_picture() -> bytes:
    """A JPEG of 1 MB: more than the proxy keeps to send it again."""
    pixels = np.random.default_rng(0).integers(256, size=(1200, 1300, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), "JPEG", quality=80, subsampling=2)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def proxied(log: Path, *ports: int) -> Iterator[str]:
    """The address of HAProxy before these ports, for the time of a `with`."""
    port = free_port()
    names = zip(("BIND", "FIRST", "SECOND"), (port, *ports), strict=True)
    environment = os.environ | {name: f"127.0.0.1:{each}" for name, each in names}
    command = ["haproxy", "-db", "-f", str(CONFIGURATION)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        wait_until(lambda: accepts(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def test_no_client_sees_a_rolling_update(tmp_path: Path) -> None:
    weights = [REPOSITORY / "model" / f"{name}.safetensors" for name in ("cat", "logistic")]
    ports, log = (free_port(), free_port()), tmp_path / "log"

    def replica(number: int, port: int) -> AbstractContextManager[Server]:
        return running(
            PYTHON_M_APP, weights=weights[number], bind_port=port, drain_seconds=DRAIN_SECONDS
        )

    with ExitStack() as stack:
        old = [stack.enter_context(replica(0, port)) for port in ports]
        url = stack.enter_context(proxied(log, *ports))
        with load(url, large_picture()) as answers:
            for server, port in zip(old, ports, strict=True):
                assert server.stop() == 0
                new = stack.enter_context(replica(1, port))
                new.wait_for_log(" path=/predict ")
            wait_for_more(answers, 4 * CLIENTS)
    assert {answer.status_code for answer in answers} == {200}, log.read_text("utf-8")
    seen = {answer.json()["model"]["version"] for answer in answers}
    assert seen == {Classifier.load(path).version for path in weights}


def test_the_proxy_asks_the_other_where_a_replica_is_killed_and_answers_where_none_is_left(
    weights_path: Path, cat_picture: bytes, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with (
        running(PYTHON_M_APP, weights=weights_path) as first,
        running(PYTHON_M_APP, weights=weights_path) as second,
        proxied(log, first.port, second.port) as url,
    ):
        with load(url, cat_picture) as answers:
            first.wait_for_log(" path=/predict ", 5)
            os.killpg(first.process.pid, signal.SIGKILL)
            first.wait()
            wait_until(lambda: "Server cat/first is DOWN" in log.read_text("utf-8"))
            wait_for_more(answers, CLIENTS)
        assert {answer.status_code for answer in answers} == {200}, log.read_text("utf-8")
        for path in ("/metrics", "/%6detrics", "/metric%73?a"):
            assert httpx.get(f"{url}{path}").status_code == 404, path
        second.stop()
        answer = httpx.post(f"{url}/predict", content=b"no picture")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"].isdecimal()
    assert answer.json().keys() == {"type", "title", "status", "detail"}
