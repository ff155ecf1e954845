"""Request ids and log lines."""

import asyncio
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from app import observation
from app.main import create_app
from app.observation import Observed
from app.settings import Settings
from model.classifier import Classifier
from model.network import Array, Layer, Scratch


class Broken(Layer):
    """A layer with a fault of ours in it."""

    def forward(self, x: Array, scratch: Scratch) -> Array:
        raise RuntimeError("a fault in the network")


@contextmanager
def serving(
    weights: Path, classifier: Classifier | None = None, **chosen: Any
) -> Iterator[TestClient]:
    app = create_app(Settings(weights=weights, **chosen), classifier)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def json_lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines that were logged as JSON since the last call."""
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


# --- ids ----------------------------------------------------------------------------------------

ANSWERS = [  # method, path, body, status
    ("GET", "/health", b"", 200),
    ("HEAD", "/health", b"", 200),
    ("GET", "/nope", b"", 404),
    ("GET", "/predict", b"", 405),
    ("POST", "/predict", b"hello, world", 415),
    ("POST", "/v2/models/cat/infer", b"{", 400),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), ANSWERS)
def test_every_answer_has_the_clients_id(
    client: TestClient, method: str, path: str, body: bytes, status: int
) -> None:
    identity = "camera-7:2024/05/01@12.30+x=_1"
    response = client.request(method, path, content=body, headers={"X-Request-ID": identity})
    assert response.status_code == status
    assert response.headers["x-request-id"] == identity
    if status >= 400:
        assert response.json()["request_id"] == identity


@pytest.mark.parametrize(
    "harmful",
    [b"", b"a b", b"a\tb", b'a"b', b"a\x1b[31m", b"caf\xe9", b"x" * 129, b"a,b", b"<b>", b"%0a"],
    ids=str,
)
def test_an_id_that_could_harm_is_replaced(client: TestClient, harmful: bytes) -> None:
    response = client.get("/nope", headers=[(b"X-Request-ID", harmful)])
    made = response.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert response.json()["request_id"] == made


def test_an_id_of_128_characters_is_kept(client: TestClient) -> None:
    identity = "x" * 128
    response = client.get("/health", headers={"X-Request-ID": identity})
    assert response.headers["x-request-id"] == identity


def test_requests_without_an_id_get_different_ones(client: TestClient) -> None:
    ids = {client.get("/health").headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20


def test_a_fault_of_ours_is_answered_like_everything_else(
    weights_path: Path,
    classifier: Classifier,
    cat_picture: bytes,
    capfd: pytest.CaptureFixture[str],
) -> None:
    broken = replace(classifier, layers=[Broken()])
    with serving(weights_path, broken, log="json") as client:
        response = client.post("/predict", content=cat_picture, headers={"X-Request-ID": "a-1"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "a-1"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.json()["type"] == "/problems#internal-error"
    assert response.json()["request_id"] == "a-1"
    (line,) = json_lines(capfd)
    assert line["level"] == "error"
    assert line["status"] == 500
    assert line["problem"] == "internal-error"


# --- lines --------------------------------------------------------------------------------------


def test_a_line_says_what_an_operator_asks_for(
    weights_path: Path,
    classifier: Classifier,
    cat_picture: bytes,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with serving(weights_path, log="json") as client:
        client.post("/predict", content=cat_picture, headers={"X-Request-ID": "a-1"})
    (line,) = json_lines(capfd)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert line["level"] == "info"
    assert line["request_id"] == "a-1"
    assert line["client"] == "testclient"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/predict", 200)
    assert line["received_bytes"] == len(cat_picture)
    assert line["model"] == classifier.version
    prediction = classifier.predict(cat_picture)
    assert line["label"] == prediction.label
    assert line["probability"] == pytest.approx(prediction.cat_probability, abs=1e-4)
    assert 0 < line["decode_ms"] <= line["duration_ms"]
    assert 0 <= line["queue_ms"] <= line["duration_ms"]


def test_the_text_line_says_the_same_for_people(
    weights_path: Path, cat_picture: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(weights_path) as client:
        client.post("/predict", content=cat_picture, headers={"X-Request-ID": "a-1"})
    (line,) = capfd.readouterr().out.splitlines()
    assert re.match(r"\S+Z INFO request_id=a-1 client=testclient method=POST path=/predict ", line)
    assert " status=200 duration_ms=" in line
    assert " label=" in line


def test_a_refusal_names_its_reason(weights_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(weights_path, log="json") as client:
        client.post("/predict", content=b"hello, world")
        client.get("/predict")
    refused, wrong_method = json_lines(capfd)
    assert refused["problem"] == "not-a-picture"
    assert "label" not in refused
    assert wrong_method["problem"] == "method-not-allowed"


@pytest.mark.parametrize("log", ["text", "json"])
@pytest.mark.parametrize(
    "path",
    [
        "/a%0a2026-01-01T00:00:00.000Z INFO request_id=forged",
        "/a%0d%0aforged",
        "/%1b[2Jforged",
        "/%e2%80%a8forged%c2%85forged",
        "/a%22 status=200 forged=%22",
        "/%ff%fe",
        "/" + "long" * 1000,
    ],
)
def test_whatever_a_client_asks_for_its_line_is_one_line_of_plain_characters(
    weights_path: Path, capfd: pytest.CaptureFixture[str], log: str, path: str
) -> None:
    with serving(weights_path, log=log) as client:
        client.get(path)
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    assert out.endswith("\n")
    assert out[:-1].isascii()
    assert out[:-1].isprintable()
    assert len(out) < 1000
    if log == "json":
        assert json.loads(out)["status"] == 404
    else:
        assert re.sub(r'"(\\.|[^"\\])*"', "", out).count("forged") == 0


def test_neither_pictures_nor_queries_nor_keys_are_logged(
    weights_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(weights_path, api_keys=("secret-key",)) as client:
        for key in ("secret-key", "secret-guess"):
            client.post(
                "/predict?token=secret-query", content=b"secret-body", headers={"X-API-Key": key}
            )
    out = capfd.readouterr().out
    assert out.count("\n") == 2
    assert "secret" not in out


def test_health_and_metrics_are_logged_only_when_something_is_wrong(
    weights_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(weights_path, log="json") as client:
        for path in ("/health", "/health/live", "/health/ready", "/v2/health/ready", "/metrics"):
            assert client.get(path).status_code == 200
        assert json_lines(capfd) == []
        assert isinstance(client.app, object)
        client.app.state.ready = False  # type: ignore[attr-defined]
        client.get("/health/ready")
    (line,) = json_lines(capfd)
    assert (line["path"], line["status"], line["level"]) == ("/health/ready", 503, "warning")


def test_a_log_that_is_off_says_nothing(
    weights_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(weights_path, log="off") as client:
        client.get("/nope")
    assert capfd.readouterr().out == ""


def test_many_pictures_in_one_request_are_counted_in_its_line(
    weights_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    black = {"name": "vector", "datatype": "FP32", "shape": [3, 12288], "data": [0] * 3 * 12288}
    with serving(weights_path, log="json") as client:
        response = client.post("/v2/models/cat/infer", json={"inputs": [black]})
    assert response.status_code == 200
    (line,) = json_lines(capfd)
    assert line["pictures"] == 3
    assert line["path"] == "/v2/models/cat/infer"


def test_a_client_that_leaves_is_logged_as_gone(capfd: pytest.CaptureFixture[str]) -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body"})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    asyncio.run(Observed(app, "json")(scope, receive, send))
    (line,) = json_lines(capfd)
    assert line["status"] == 499


# --- where lines go -----------------------------------------------------------------------------


def test_a_reader_that_stops_reading_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(observation, "STDOUT", writing)
    line = b"x" * 199 + b"\n"
    written = 0
    while observation._write(line):  # would block for good if it waited
        written += 1
        assert written < 10_000
    assert written > 10
    os.set_blocking(reading, False)
    taken = b"".join(iter(lambda: read_some(reading), b""))
    assert taken == line * written  # whole lines or none
    assert observation._write(line)
    os.close(reading)
    assert not observation._write(line)
    os.close(writing)
    assert not observation._write(line)


def read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b""


def test_a_line_fits_what_a_pipe_takes_at_once(
    weights_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worst = "/" + "%00" * 5000
    with serving(weights_path, log="json") as client:
        client.request("X" * 5000, worst, headers={"X-Request-ID": "i" * 128})
    assert 500 < len(capfd.readouterr().out) < 4096
