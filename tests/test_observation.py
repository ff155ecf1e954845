"""Request ids, log lines, and what /metrics says."""

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families as parse

from app.main import create_app
from app.settings import Settings
from model.classifier import Classifier
from model.worker import Reply
from tests.conftest import Service, SharedWorkers, Stuck
from tests.data_folder import REPOSITORY


def json_lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines that were logged as JSON since the last call."""
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


@pytest.fixture(scope="module")
def logging_json(service: Service) -> Iterator[TestClient]:
    with service(log="json") as client:
        yield client


def test_every_answer_has_the_clients_id_or_a_new_one_where_that_could_harm(
    client: TestClient,
) -> None:
    for method, path, body, status in (
        ("HEAD", "/health", b"", 200),
        ("GET", "/nope", b"", 404),
        ("POST", "/predict", b"hello, world", 415),
        ("POST", "/v2/models/cat/infer", b"{", 400),
    ):
        for identity in ("camera-7:2024/05/01@12.30+x=_1", "x" * 128):
            headers = {"X-Request-ID": identity}
            response = client.request(method, path, content=body, headers=headers)
            assert response.status_code == status
            assert response.headers.get_list("x-request-id") == [identity]
            assert status < 400 or response.json()["request_id"] == identity
    harmful = (b"", b"a b", b'a"b', b"a\x1b[31m", b"caf\xe9", b"x" * 129, b"a,b", b"%0a", b"<b>")
    ids = set()
    for harm in harmful:
        response = client.get("/nope", headers=[(b"X-Request-ID", harm)])
        made = response.headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made), harm
        assert response.json()["request_id"] == made
        ids.add(made)
    assert len(ids) == len(harmful)


def test_a_line_says_what_an_operator_asks_for(
    logging_json: TestClient,
    classifier: Classifier,
    cat_picture: bytes,
    capfd: pytest.CaptureFixture[str],
) -> None:
    logging_json.post("/predict", content=cat_picture, headers={"X-Request-ID": "a-1"})
    (line,) = json_lines(capfd)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    prediction = classifier.predict(cat_picture)
    expected = {
        "level": "info",
        "request_id": "a-1",
        "client": "testclient",
        "method": "POST",
        "path": "/predict",
        "status": 200,
        "received_bytes": len(cat_picture),
        "model": classifier.version,
        "label": prediction.label,
        "probability": round(prediction.cat_probability, 4),
    }
    assert {name: line[name] for name in expected} == expected
    assert line.keys() - expected.keys() == {"time", "duration_ms", "queue_ms", "decode_ms"}
    assert 0 < line["decode_ms"] <= line["duration_ms"]
    assert 0 <= line["queue_ms"] <= line["duration_ms"]


def test_a_line_names_what_went_wrong_and_how_grave_it_is(
    workers: SharedWorkers, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    fault = Reply({"fault": "Traceback of a worker", "seconds": 0.1})
    failing = Stuck(workers.description, fault)
    for chosen, level, slug in (
        (workers, "info", "not-a-picture"),
        (failing, "error", "internal-error"),
        (Stuck(workers.description), "warning", "deadline-passed"),
    ):
        with TestClient(create_app(Settings(log="json", deadline_seconds=0.3), chosen)) as client:
            client.post("/predict", content=b"hello, world")
        (line,) = json_lines(capfd)
        assert (line["level"], line["problem"]) == (level, slug)
        assert "label" not in line
    assert "Traceback of a worker" in caplog.text


@pytest.mark.parametrize(
    "path",
    [
        "/%0d%0a%1b[2J2026-01-01T00:00:00.000Z INFO request_id=forged",
        "/%e2%80%a8forged%c2%85forged",
        "/a%22 status=200 forged=%22",
        "/%ff%fe" + "long" * 1000,
    ],
)
def test_whatever_a_client_asks_for_its_line_is_one_line_of_plain_characters(
    client: TestClient, logging_json: TestClient, capfd: pytest.CaptureFixture[str], path: str
) -> None:
    for asked in (client, logging_json):
        asked.request("X" * 5000, path, headers={"X-Request-ID": "i" * 128})
    text, as_json, end = capfd.readouterr().out.split("\n")
    assert end == ""
    for line in (text, as_json):
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 1000  # a pipe takes 4096 bytes at once
    assert "forged" not in re.sub(r'"(\\.|[^"\\])*"', "", text)
    assert json.loads(as_json)["status"] == 404


def test_neither_pictures_nor_queries_nor_keys_are_logged(
    service: Service, capfd: pytest.CaptureFixture[str]
) -> None:
    for log, lines in (("text", 2), ("off", 0)):
        with service(api_keys=("secret-key",), log=log) as client:
            for key in ({"X-API-Key": "secret-key"}, {"X-API-Key": "secret-guess"}):
                client.post("/predict?token=secret-query", content=b"secret-body", headers=key)
        out = capfd.readouterr().out
        assert out.count("\n") == lines
        assert "secret" not in out


def test_health_is_logged_only_when_something_is_wrong(
    service: Service, capfd: pytest.CaptureFixture[str]
) -> None:
    with service(log="json") as client:
        for path in ("/health", "/health/live", "/v2/health/ready", "/metrics"):
            assert client.get(path).status_code == 200
        assert json_lines(capfd) == []
        client.app.state.ready = False  # type: ignore[attr-defined]
        client.get("/health/ready")
    (line,) = json_lines(capfd)
    assert (line["path"], line["status"], line["level"]) == ("/health/ready", 503, "warning")


def test_a_reader_that_stops_reading_holds_nobody_up_and_gets_whole_lines() -> None:
    code = """
import sys
from app import observation as log
written = 0
while log.write(b"x" * 199 + b"\\n"):  # would block for good if it waited
    written += 1
print(written, file=sys.stderr)
"""
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe) as program:
        assert program.wait(30) == 0
        assert program.stdout
        assert program.stderr
        written = int(program.stderr.read())
        assert written > 10
        assert program.stdout.read() == (b"x" * 199 + b"\n") * written


def read(client: TestClient) -> dict[str, float]:
    """Each sample under its name and labels, as Prometheus writes them."""
    response = client.get("/metrics")
    assert response.status_code == 200
    samples = {}
    for family in parse(response.text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{sample.labels[name]}"' for name in sorted(sample.labels))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def test_requests_and_answers_are_counted(
    client: TestClient, classifier: Classifier, cat_picture: bytes
) -> None:
    p = classifier.predict(cat_picture).cat_probability
    above, below = (f"{bound(p * 20) / 20:.12g}" for bound in (math.ceil, math.floor))
    before = read(client)
    time.sleep(0.03)  # a sample of pictures is compared with training's: one every 20 ms
    for _ in range(3):
        client.post("/predict", content=cat_picture)
    client.post("/predict", content=b"hello, world")
    client.get("/predict")
    client.head("/health")
    client.request("NONSENSE", "/nope")
    for number in range(3):  # whatever clients send, labels have few values
        client.get(f"/v2/models/cat/versions/{number}/ready")
    after = read(client)

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    for name, count in {
        'cat_requests_total{method="POST",route="/predict",status="200"}': 3,
        'cat_requests_total{method="POST",route="/predict",status="415"}': 1,
        'cat_requests_total{method="GET",route="/predict",status="405"}': 1,
        'cat_requests_total{method="HEAD",route="/health",status="200"}': 1,
        'cat_request_seconds_count{route="/predict"}': 5,
        'cat_requests_total{method="other",route="other",status="404"}': 1,
        "cat_queue_seconds_count": 4,
        "cat_decode_seconds_count": 4,
        'cat_rejections_total{reason="not-a-picture"}': 1,
        "cat_probability_count": 3,
        "cat_probability_sum": pytest.approx(3 * p),
        f'cat_probability_bucket{{le="{above}"}}': 3,
        f'cat_probability_bucket{{le="{below}"}}': 0,
    }.items():
        assert grown(name) == count, name
    unknown = 'method="GET",route="/v2/models/cat/versions/{version}/ready",status="404"'
    assert grown(f"cat_requests_total{{{unknown}}}") == 3
    for name in ('cat_request_seconds_sum{route="/predict"}', "cat_decode_seconds_sum"):
        assert grown(name) > 0
    assert 1 <= grown("cat_input_distance_count") <= 3
