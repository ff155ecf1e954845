"""What /metrics says."""

import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client import openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from app.main import create_app, reload
from app.settings import Settings
from model.classifier import Classifier
from tests.conftest import Service, SharedWorkers, Stuck

Numbers = dict[str, float]


def read(client: TestClient) -> Numbers:
    """Each sample under its name and labels, as Prometheus writes them."""
    response = client.get("/metrics")
    assert response.status_code == 200
    samples = {}
    for family in parse(response.text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{sample.labels[name]}"' for name in sorted(sample.labels))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def grown(before: Numbers, after: Numbers, name: str) -> float:
    return after.get(name, 0) - before.get(name, 0)


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
    client.get("/v2/models/cat/versions/none/ready")
    after = read(client)
    for name, count in {
        'cat_requests_total{method="POST",route="/predict",status="200"}': 3,
        'cat_requests_total{method="POST",route="/predict",status="415"}': 1,
        'cat_requests_total{method="GET",route="/predict",status="405"}': 1,
        'cat_requests_total{method="HEAD",route="/health",status="200"}': 1,
        'cat_request_seconds_count{route="/predict"}': 5,
        "cat_queue_seconds_count": 4,
        "cat_decode_seconds_count": 4,
        'cat_rejections_total{reason="not-a-picture"}': 1,
        "cat_probability_count": 3,
        "cat_probability_sum": pytest.approx(3 * p),
        f'cat_probability_bucket{{le="{above}"}}': 3,
        f'cat_probability_bucket{{le="{below}"}}': 0,
    }.items():
        assert grown(before, after, name) == count, name
    unknown = 'method="GET",route="/v2/models/cat/versions/{version}/ready",status="404"'
    assert grown(before, after, f"cat_requests_total{{{unknown}}}") == 1
    for name in ('cat_request_seconds_sum{route="/predict"}', "cat_decode_seconds_sum"):
        assert grown(before, after, name) > 0
    assert 1 <= grown(before, after, "cat_input_distance_count") <= 3


def test_what_is_under_way_is_counted(workers: SharedWorkers) -> None:
    stuck = Stuck(workers.description)
    with TestClient(create_app(Settings(), stuck)) as client:
        idle = read(client)
        assert client.portal
        client.portal.call(stuck.submit, {}, b"")
        busy = read(client)
    for name in ("cat_requests_in_progress", "cat_queue_depth", "cat_decoders_busy"):
        assert idle[name] == 0
    assert busy["cat_queue_depth"] == 1
    assert busy["cat_workers"] == 1


def test_labels_have_few_values_whatever_clients_send(client: TestClient) -> None:
    client.request("GET", "/warm-up")
    client.request("NONSENSE", "/warm-up")
    before = read(client)
    for i in range(30):
        client.request("GET", f"/nope/{i}")
        client.request(f"METHOD{i}", "/nope")
        client.get(f"/v2/models/cat/versions/{i}")
    after = read(client)
    assert len(after.keys() - before.keys()) < 30
    others = 'cat_requests_total{method="other",route="other",status="404"}'
    assert grown(before, after, others) == 30


def test_a_replaced_worker_is_counted_and_after_a_reload_the_new_version_alone_is_named(
    weights_path: Path, classifier: Classifier, tmp_path: Path
) -> None:
    path = tmp_path / "served.safetensors"
    path.write_bytes(weights_path.read_bytes())
    app = create_app(Settings(weights=path, workers=1))
    with TestClient(app) as client:
        assert client.portal
        assert read(client)["cat_workers_replaced_total"] == 0
        (worker,) = app.state.workers.current.workers
        while not worker.pid:
            time.sleep(0.01)
        os.kill(worker.pid, signal.SIGKILL)
        while not read(client)["cat_workers_replaced_total"]:
            time.sleep(0.02)
        newer = replace(classifier, name="newer").save(path)
        client.portal.call(reload, app)
        served = client.get("/health").json()["model"]
        path.write_bytes(b"no weights")
        client.portal.call(reload, app)  # changes nothing
        assert client.get("/health").json()["model"] == served
        models = [name for name in read(client) if "cat_model_info" in name]
    assert served == {"name": "newer", "version": newer.version}
    assert newer.version != classifier.version
    assert models == [f'cat_model_info{{name="newer",version="{newer.version}"}}']


def test_who_asks_for_openmetrics_gets_it_and_whoever_else_text(
    client: TestClient, service: Service
) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    response = client.get("/metrics", headers={"Accept": accept})
    assert response.headers["content-type"] == openmetrics.exposition.CONTENT_TYPE_LATEST
    assert "cat_requests" in {family.name for family in parse_openmetrics(response.text)}
    for accept in ("", "text/plain;version=x", ";;==,"):
        plain = client.get("/metrics", headers={"Accept": accept})
        assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    nonsense = {"Accept": "application/openmetrics-text;version=x.y"}
    assert client.get("/metrics", headers=nonsense).status_code == 200
    with service(metrics="off") as silent:
        assert silent.get("/metrics").status_code == 404
