"""Replicas behind HAProxy under load: what clients see when one is updated, stopped or killed."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from model.classifier import Classifier
from tests.data_folder import REPOSITORY
from tests.pictures import encode
from tests.server import CLIENTS, PYTHON_M_APP, load, running, wait_for_more, wait_until
from tests.test_container import docker
from tests.test_deploy import COMPOSE, CONFIGURATION, needs_haproxy

pytestmark = needs_haproxy
WEIGHTS = ("model/cat.safetensors", "model/logistic.safetensors")


def large_picture() -> bytes:
    """A JPEG of 1 MB: more than the proxy keeps to send it again."""
    pixels = np.random.default_rng(0).integers(256, size=(1200, 1300, 3), dtype=np.uint8)
    data = encode(Image.fromarray(pixels), "JPEG", quality=80, subsampling=2)
    assert 900_000 < len(data) < 1_200_000
    return data


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


def start(name: str, port: int, image: str, weights: str) -> None:
    """Start a replica as deploy/compose.yaml has it, and wait until it is healthy, as
    `docker compose up --wait` does."""
    replica = COMPOSE["x-replica"]
    options = {
        "tmpfs": replica["tmpfs"][0],
        "cap-drop": replica["cap_drop"][0],
        "security-opt": replica["security_opt"][0],
        "memory": replica["mem_limit"],
        "memory-swap": replica["memswap_limit"],
        "pids-limit": replica["pids_limit"],
        "stop-timeout": replica["stop_grace_period"].removesuffix("s"),
        "health-interval": "1s",
        "publish": f"127.0.0.1:{port}:8000",
    }
    environment = {**replica["environment"], "CAT_WEIGHTS": f"/srv/{weights}"}
    docker(
        *("run", "--detach", "--rm", "--read-only", "--name", name),
        *(f"--{option}={value}" for option, value in options.items()),
        *(f"--env={variable}={value}" for variable, value in environment.items()),
        image,
    )
    health = ("inspect", "--format", "{{.State.Health.Status}}", name)
    wait_until(lambda: docker(*health) == "healthy")


@pytest.mark.container
def test_no_client_sees_a_rolling_update(image: str, tmp_path: Path) -> None:
    replicas = {f"cat-{os.getpid()}-{place}": free_port() for place in ("first", "second")}
    before, after = WEIGHTS
    try:
        for name, port in replicas.items():
            start(name, port, image, before)
        with (
            proxied(tmp_path / "log", *replicas.values()) as url,
            load(url, large_picture()) as answers,
        ):
            for name, port in replicas.items():
                docker("stop", name)
                wait_until(lambda: name not in docker("ps", "--all"))  # noqa: B023 - now
                start(name, port, image, after)
            wait_for_more(answers, 4 * CLIENTS)
    finally:
        subprocess.run(["docker", "rm", "--force", *replicas], capture_output=True, check=False)
    log = (tmp_path / "log").read_text("utf-8")
    assert {answer.status_code for answer in answers} == {200}, log
    seen = {answer.json()["model"]["version"] for answer in answers}
    assert seen == {Classifier.load(REPOSITORY / weights).version for weights in WEIGHTS}
    assert len(answers) > 50


@pytest.mark.slow
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
        assert httpx.post(f"{url}/predict", content=large_picture()).status_code == 200
        second.stop()
        answer = httpx.post(f"{url}/predict", content=b"no picture")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"].isdecimal()
    assert answer.json().keys() == {"type", "title", "status", "detail"}
