"""What /metrics tells, of one process and of several."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from prometheus_client import openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from app import metrics, observation
from app.main import create_app
from app.settings import Settings
from model import statistics
from model.classifier import Classifier
from model.network import Linear
from model.preprocessing import read_picture
from model.statistics import Usual
from tests.server import PYTHON_M_APP, Server, running

Numbers = dict[str, float]
PATIENCE_SECONDS = 30


def numbers(text: str) -> Numbers:
    """Each sample under its name and labels, as Prometheus writes them."""
    told = {}
    for family in parse(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{sample.labels[name]}"' for name in sorted(sample.labels))
            told[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return told


def read(client: TestClient | httpx.Client) -> Numbers:
    response = client.get("/metrics")
    assert response.status_code == 200
    return numbers(response.text)


def grown(before: Numbers, after: Numbers, name: str) -> float:
    return after.get(name, 0) - before.get(name, 0)


# --- one process --------------------------------------------------------------------------------


def test_requests_are_counted_by_route_method_and_status(
    client: TestClient, cat_picture: bytes
) -> None:
    before = read(client)
    for _ in range(3):
        client.post("/predict", content=cat_picture)
    client.post("/predict", content=b"hello, world")
    client.get("/predict")
    client.head("/health")
    client.get("/v2/models/cat/versions/none/ready")
    after = read(client)
    for labels, count in (
        ('method="POST",route="/predict",status="200"', 3),
        ('method="POST",route="/predict",status="415"', 1),
        ('method="GET",route="/predict",status="405"', 1),
        ('method="HEAD",route="/health",status="200"', 1),
        ('method="GET",route="/v2/models/cat/versions/{version}/ready",status="404"', 1),
    ):
        assert grown(before, after, f"cat_requests_total{{{labels}}}") == count, labels
    assert grown(before, after, 'cat_request_seconds_count{route="/predict"}') == 5
    assert grown(before, after, 'cat_request_seconds_sum{route="/predict"}') > 0
    assert grown(before, after, "cat_queue_seconds_count") == 4
    assert grown(before, after, "cat_decode_seconds_count") == 4
    assert grown(before, after, 'cat_rejections_total{reason="not-a-picture"}') == 1
    assert grown(before, after, 'cat_rejections_total{reason="method-not-allowed"}') == 1


def test_answers_are_counted_by_their_probability(
    client: TestClient, classifier: Classifier, cat_picture: bytes
) -> None:
    p = classifier.predict(cat_picture).cat_probability
    above = f"{np.ceil(p * 20) / 20:.12g}"
    below = f"{np.floor(p * 20) / 20:.12g}"
    before = read(client)
    client.post("/predict", content=cat_picture)
    after = read(client)
    assert grown(before, after, "cat_probability_count") == 1
    assert grown(before, after, "cat_probability_sum") == pytest.approx(p)
    assert grown(before, after, f'cat_probability_bucket{{le="{above}"}}') == 1
    assert grown(before, after, f'cat_probability_bucket{{le="{below}"}}') == 0


def test_labels_have_few_values_whatever_clients_send(client: TestClient) -> None:
    client.request("GET", "/warm-up")
    client.request("NONSENSE", "/warm-up")
    before = read(client)
    for i in range(30):
        client.request("GET", f"/nope/{i}")
        client.request(f"METHOD{i}", "/nope")
        client.get(f"/v2/models/cat/versions/{i}")
    after = read(client)
    new = {name.partition("{")[0] for name in after.keys() - before.keys()}
    assert len(after.keys() - before.keys()) < 30, new
    others = 'cat_requests_total{method="other",route="other",status="404"}'
    assert grown(before, after, others) == 30


def test_the_model_is_named(client: TestClient, classifier: Classifier) -> None:
    models = {name: value for name, value in read(client).items() if "cat_model_info" in name}
    labels = f'name="{classifier.name}",version="{classifier.version}"'
    assert models == {f"cat_model_info{{{labels}}}": 1}


def test_a_model_that_is_no_longer_served_is_no_longer_named(
    client: TestClient, classifier: Classifier
) -> None:
    metrics.serve("newer", "0123456789ab")
    try:
        models = [name for name in read(client) if "cat_model_info" in name]
        assert models == ['cat_model_info{name="newer",version="0123456789ab"}']
    finally:
        metrics.serve(classifier.name, classifier.version)


def test_pictures_unlike_trainings_are_told_by_their_distance(
    weights_path: Path,
    classifier: Classifier,
    cat_picture: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observation, "MEASURING_SECONDS", 0)
    pixels = read_picture(cat_picture).pixels
    usual = Usual.of([pixels, pixels // 2])
    facts = {statistics.KEY: usual.to_json()}
    informed = replace(classifier, metadata=facts)
    with TestClient(create_app(Settings(weights=weights_path), informed)) as client:
        before = read(client)
        client.post("/predict", content=cat_picture)
        tensor = {"name": "pixels", "datatype": "UINT8", "shape": [2, 64, 64, 3]}
        data = [0] * 2 * 12288
        client.post("/v2/models/cat/infer", json={"inputs": [tensor | {"data": data}]})
        after = read(client)
    assert grown(before, after, "cat_input_distance_count") == 3
    black = usual.distance(np.zeros((64, 64, 3), np.uint8))
    expected = usual.distance(pixels) + 2 * black
    assert grown(before, after, "cat_input_distance_sum") == pytest.approx(expected)


def test_under_load_the_distances_of_a_sample_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observation, "MEASURING_SECONDS", 3600)
    monkeypatch.setattr(observation, "_measured", -3600)
    pixels = np.zeros((64, 64, 3), np.uint8)
    facts = observation.Facts()
    for _ in range(5):
        facts.saw(pixels, Usual.of([pixels, pixels + 9]))
    assert len(facts.distances) == 1


def test_an_artifact_that_knows_nothing_usual_tells_no_distance(
    client: TestClient, cat_picture: bytes
) -> None:
    before = read(client)
    assert client.post("/predict", content=cat_picture).status_code == 200
    assert grown(before, read(client), "cat_input_distance_count") == 0


def test_who_asks_for_openmetrics_gets_it(client: TestClient) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    response = client.get("/metrics", headers={"Accept": accept})
    assert response.headers["content-type"] == openmetrics.exposition.CONTENT_TYPE_LATEST
    assert "cat_requests" in {family.name for family in parse_openmetrics(response.text)}
    plain = client.get("/metrics").headers["content-type"]
    assert plain.startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize(
    "accept",
    ["", "text/plain;version=x", "application/openmetrics-text;version=x.y", ";;==,", "a" * 5000],
)
def test_no_accept_header_makes_the_metrics_fail(client: TestClient, accept: str) -> None:
    assert client.get("/metrics", headers={"Accept": accept}).status_code == 200


def test_metrics_that_are_off_are_not_there(weights_path: Path, cat_picture: bytes) -> None:
    with TestClient(create_app(Settings(weights=weights_path, metrics="off"))) as client:
        assert client.post("/predict", content=cat_picture).status_code == 200
        assert client.get("/metrics").status_code == 404


# --- several ------------------------------------------------------------------------------------


@pytest.fixture
def weights(weights_path: Path, tmp_path: Path) -> Path:
    """The tiny artifact in a place of its own, where it can be replaced."""
    path = tmp_path / "served.safetensors"
    path.write_bytes(weights_path.read_bytes())
    return path


@pytest.fixture
def pair(weights: Path) -> Iterator[Server]:
    with running(PYTHON_M_APP, weights=weights, workers=2, log="off") as server:
        ask_until(server, lambda told: told["cat_workers"] == 2)
        yield server


def ask(server: Server, path: str, **request: bytes) -> httpx.Response:
    """One request on a connection of its own: any worker may get it."""
    method = "POST" if request else "GET"
    return httpx.request(method, server.url + path, timeout=PATIENCE_SECONDS, **request)  # type: ignore[arg-type]


def ask_until(server: Server, condition: Callable[[Numbers], bool]) -> Numbers:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        told = numbers(ask(server, "/metrics").text)
        if condition(told):
            return told
        assert time.monotonic() < end, told
        time.sleep(0.1)


def pids(server: Server) -> list[int]:
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", server.log)]


PREDICTED = 'cat_requests_total{method="POST",route="/predict",status="200"}'


def test_any_worker_tells_the_numbers_of_all_and_a_dead_one_takes_none_along(
    pair: Server, cat_picture: bytes
) -> None:
    for _ in range(12):
        assert ask(pair, "/predict", content=cat_picture).status_code == 200
    for _ in range(6):
        told = numbers(ask(pair, "/metrics").text)
        assert told[PREDICTED] == 12
        assert told["cat_decode_seconds_count"] == 12
        assert sum("cat_model_info" in name for name in told) == 1
    first, second = pids(pair)
    for pid in (first, second):
        os.kill(pid, signal.SIGKILL)
    told = ask_until(pair, lambda told: told["cat_workers"] == 2 and len(pids(pair)) == 4)
    assert told[PREDICTED] == 12
    assert told["cat_queue_depth"] == told["cat_decoders_busy"] == 0
    assert ask(pair, "/predict", content=cat_picture).status_code == 200
    assert numbers(ask(pair, "/metrics").text)[PREDICTED] == 13
    assert "server" not in ask(pair, "/health").headers


def test_after_a_reload_only_the_new_version_is_named(
    pair: Server, weights: Path, classifier: Classifier
) -> None:
    layer = Linear(np.full((12288, 1), 0.001, np.float32), np.zeros(1, np.float32))
    newer = replace(classifier, layers=[layer]).save(weights)
    assert newer.version != classifier.version
    pair.process.send_signal(signal.SIGHUP)
    named = f'cat_model_info{{name="{newer.name}",version="{newer.version}"}}'

    def only_newer(told: Numbers) -> bool:
        return [name for name in told if "cat_model_info" in name] == [named]

    told = ask_until(pair, only_newer)
    assert told["cat_workers"] == 2
