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
    assert grown(before, after, "cat_decode_seconds_sum") > 0
    assert grown(before, after, 'cat_rejections_total{reason="not-a-picture"}') == 1
    assert grown(before, after, 'cat_rejections_total{reason="method-not-allowed"}') == 1


def test_answers_are_counted_by_their_probability(
    client: TestClient, classifier: Classifier, cat_picture: bytes
) -> None:
    p = classifier.predict(cat_picture).cat_probability
    above, below = (f"{bound(p * 20) / 20:.12g}" for bound in (math.ceil, math.floor))
    before = read(client)
    client.post("/predict", content=cat_picture)
    after = read(client)
    assert grown(before, after, "cat_probability_count") == 1
    assert grown(before, after, "cat_probability_sum") == pytest.approx(p)
    assert grown(before, after, f'cat_probability_bucket{{le="{above}"}}') == 1
    assert grown(before, after, f'cat_probability_bucket{{le="{below}"}}') == 0


def test_pictures_are_compared_with_those_of_training(
    client: TestClient, cat_picture: bytes
) -> None:
    """A sample of them: the workers measure none within 20 ms of the last one."""
    before = read(client)
    time.sleep(0.03)
    client.post("/predict", content=cat_picture)
    after = read(client)
    assert grown(before, after, "cat_input_distance_count") == 1
    assert grown(before, after, "cat_input_distance_sum") > 0


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


def test_who_asks_for_openmetrics_gets_it_and_whoever_else_text(client: TestClient) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    response = client.get("/metrics", headers={"Accept": accept})
    assert response.headers["content-type"] == openmetrics.exposition.CONTENT_TYPE_LATEST
    assert "cat_requests" in {family.name for family in parse_openmetrics(response.text)}
    for accept in ("", "text/plain;version=x", ";;==,", "a" * 5000):
        plain = client.get("/metrics", headers={"Accept": accept})
        assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    nonsense = {"Accept": "application/openmetrics-text;version=x.y"}
    assert client.get("/metrics", headers=nonsense).status_code == 200


def test_metrics_that_are_off_are_not_there(service: Service, cat_picture: bytes) -> None:
    with service(metrics="off") as client:
        assert client.post("/predict", content=cat_picture).status_code == 200
        assert client.get("/metrics").status_code == 404
