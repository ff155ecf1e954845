"""POST /explain, GET /model and the page at /, as a client without a browser sees them."""

import base64
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app import page
from app.about import about
from app.explain import accepted
from app.main import create_app
from app.reload import load_classifier
from app.settings import Settings
from model.classifier import Classifier
from model.network import Linear, Relu
from tests.data_folder import REPOSITORY

BROWSER = "text/html,application/xhtml+xml,image/avif,image/webp,image/apng,*/*;q=0.8"
EXAMPLES = ("cat.jpg", "coffee.jpg", "rocket.jpg")
LARGEST_BYTES = 50_000


def decoded(png: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png, validate=True)))


@pytest.fixture(scope="module")
def told(client: TestClient, cat_picture: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = client.post("/explain", content=cat_picture).json()
    return answer


def test_explain_gives_the_answer_of_predict(
    client: TestClient, cat_picture: bytes, told: dict[str, Any]
) -> None:
    predicted = client.post("/predict", content=cat_picture).json()
    assert {name: told[name] for name in predicted} == predicted


def test_the_map_and_the_bias_sum_to_the_logit_of_the_probability(told: dict[str, Any]) -> None:
    assert told["sum"] + told["bias"] == pytest.approx(told["logit"], abs=1e-4)
    assert np.sum(told["heat"]) == pytest.approx(told["sum"], abs=5e-3)  # rounded to 6 digits
    assert 1 / (1 + math.exp(-told["logit"])) == pytest.approx(told["cat_probability"], abs=1e-5)
    assert np.shape(told["heat"]) == (64, 64)


def test_the_pictures_are_what_the_model_saw(
    classifier: Classifier, cat_picture: bytes, told: dict[str, Any]
) -> None:
    seen = classifier.predict(cat_picture).picture
    assert (np.asarray(decoded(told["picture_png"])) == seen.pixels).all()
    overlay = decoded(told["overlay_png"])
    assert overlay.width == overlay.height > 64
    assert told["original"] == {"width": 451, "height": 300, "format": "JPEG"}


@pytest.mark.parametrize(
    ("address", "accept"), [("/explain", "image/png"), ("/explain?format=png", "*/*")]
)
def test_the_map_comes_as_a_png_too(
    client: TestClient, cat_picture: bytes, told: dict[str, Any], address: str, accept: str
) -> None:
    response = client.post(address, content=cat_picture, headers={"Accept": accept})
    assert response.headers["content-type"] == "image/png"
    assert response.content == base64.b64decode(told["overlay_png"])


@pytest.mark.parametrize("accept", ["application/json", "image/png", BROWSER])
def test_caches_are_told_that_the_answer_depends_on_accept(
    client: TestClient, cat_picture: bytes, accept: str
) -> None:
    response = client.post("/explain", content=cat_picture, headers={"Accept": accept})
    assert response.headers["vary"] == "Accept"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("image/png", "png"),
        ("image/png;q=0.5, application/json;q=0.9", "json"),
        ("image/PNG ; q=0.9, application/json;q=0.5", "png"),
        (BROWSER, "html"),
        ("image/png;q=0", "json"),
        ("image/png;q=nonsense", "json"),
        (";;,,=", "json"),
    ],
)
def test_the_accept_header_chooses(accept: str, form: str) -> None:
    assert accepted(accept) == form


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"", {}),
        (b"no picture", {}),
        (b"\x89PNG\r\n\x1a\n", {}),
        (b"a", {"Content-Encoding": "gzip"}),
        (b"a", {"Content-Type": "multipart/form-data"}),
        (b"a" * 2_000_000, {}),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_explain_refuses_what_predict_refuses(
    weights_path: Path, content: bytes, headers: dict[str, str]
) -> None:
    settings = Settings(weights=weights_path, max_upload_bytes=1_000_000)
    with TestClient(create_app(settings)) as client:
        predict, explain = (
            client.post(path, content=content, headers=headers) for path in ("/predict", "/explain")
        )
        asked = client.post("/explain", content=content, headers={**headers, "Accept": BROWSER})
    assert explain.status_code == predict.status_code == asked.status_code >= 400
    assert explain.json()["type"] == predict.json()["type"]
    assert explain.json()["detail"].replace("&", "&amp;").replace("'", "&#x27;") in asked.text


def test_the_document_says_that_refusals_come_as_pages_too(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]["/explain"]["post"]["responses"]
    for status in described.keys() - {"200"}:
        assert described[status]["content"].keys() == {"application/problem+json", "text/html"}


def test_explain_takes_a_place_in_the_queue(weights_path: Path, cat_picture: bytes) -> None:
    with TestClient(create_app(Settings(weights=weights_path, queue=1))) as client:
        admission = client.app.state.admission  # type: ignore[attr-defined]
        admission.taken = 1
        refused = client.post("/explain", content=cat_picture)
        admission.taken = 0
        assert client.post("/explain", content=cat_picture).status_code == 200
    assert refused.status_code == 503
    assert refused.json()["type"].endswith("#busy")
    assert "Retry-After" in refused.headers


def test_explain_needs_a_key_where_predict_does(weights_path: Path, cat_picture: bytes) -> None:
    with TestClient(create_app(Settings(weights=weights_path, api_keys=("secret",)))) as client:
        for accept in ("application/json", "image/png", BROWSER):
            headers = {"Accept": accept}
            assert client.post("/explain", content=cat_picture, headers=headers).status_code == 401
            headers["X-API-Key"] = "secret"
            assert client.post("/explain", content=cat_picture, headers=headers).status_code == 200
        assert client.get("/model").status_code == 401
        response = client.get("/")
        assert response.status_code == 200  # so that somebody can type the key in
        assert page.NO_KEY in response.text
        assert client.post("/").status_code == 405


def test_words_never_contradict_the_label(classifier: Classifier) -> None:
    for threshold in (0.01, 0.31, 0.5, 0.9, 0.999):
        words = replace(classifier, threshold=threshold, bands=()).words
        assert words(threshold) == words(math.nextafter(threshold, 0)) == "not sure"
        assert words(1.0) == "cat, quite sure"
        assert words(0.0) == "no cat, quite sure"


def test_a_threshold_from_the_settings_moves_the_words(
    weights_path: Path, cat_picture: bytes
) -> None:
    with TestClient(create_app(Settings(weights=weights_path))) as client:
        probability = client.post("/predict", content=cat_picture).json()["cat_probability"]
    settings = Settings(weights=weights_path, threshold=probability)
    with TestClient(create_app(settings)) as client:
        assert client.post("/predict", content=cat_picture).json()["words"] == "not sure"


# --- GET /model ----------------------------------------------------------------------------------


def test_the_model_tells_what_it_is(client: TestClient, classifier: Classifier) -> None:
    told = client.get("/model").json()
    assert told["name"] == classifier.name
    assert told["version"] == classifier.version
    assert told["classes"] == ["cat", "non-cat"]
    assert told["network"]["parameters"] == 12289
    assert told["bands"][0]["from"] == 0
    assert decoded(told["weights_png"]).size == (64, 64)
    assert told["metrics"] == {}
    assert told["learning_curve"] is None


def test_the_metrics_are_told_by_source_however_the_artifact_has_them(
    classifier: Classifier,
) -> None:
    flat = {"pictures": 9, "false_negative": 1, "true_positive": 3, "roc_auc": float("nan")}
    told = about(replace(classifier, metadata={"metrics": {"test": flat}}))
    assert told.metrics["test"]["all"]["false_negative"] == 1
    assert any("misses 25 % of cat" in limit for limit in told.limits)
    told = about(replace(classifier, metadata={"metrics": {"test": {"web": flat}}}))
    assert told.metrics["test"]["web"]["pictures"] == 9
    assert "NaN" not in told.model_dump_json()


def test_a_threshold_from_the_settings_is_told_apart_from_the_measured_one(
    classifier: Classifier, tmp_path: Path
) -> None:
    counts = {"pictures": 9, "false_negative": 1, "true_positive": 3, "threshold": 0.5}
    path = tmp_path / "measured.safetensors"
    metadata = {"metrics": {"test": counts}, "threshold_rule": "the best one"}
    replace(classifier, metadata=metadata).save(path)
    own = about(load_classifier(Settings(weights=path)))
    assert own.threshold_rule == "the best one"
    assert "Of the test pictures it misses 25 % of cat." in own.limits
    given = about(load_classifier(Settings(weights=path, threshold=0.8)))
    assert given.threshold_rule == "set by CAT_THRESHOLD"
    where = "Of the test pictures, with a threshold of 50.0 %,"
    assert f"{where} it misses 25 % of cat." in given.limits


@pytest.mark.parametrize(
    ("metadata", "line"),
    [
        ({"costs": {"every": 100, "values": [0.7, 0.5]}}, ("cost", [(0, 0.7), (100, 0.5)])),
        (
            {"learning_curve": [{"epoch": n, "loss": 1 / n, "roc_auc": {}} for n in (1, 2)]},
            ("loss", [(1, 1), (2, 0.5)]),
        ),
    ],
)
def test_the_learning_curve_is_told_however_it_was_trained(
    classifier: Classifier, metadata: dict[str, Any], line: tuple[str, list[tuple[float, float]]]
) -> None:
    told = about(replace(classifier, metadata=metadata)).learning_curve
    assert told is not None
    assert told.series[line[0]] == line[1]


@pytest.mark.parametrize("value", [None, 3, "text", [], [1, None], {}, {"a": 1}, {"a": {"b": 1}}])
def test_any_metadata_is_told_without_a_fault(
    weights_path: Path, classifier: Classifier, value: Any
) -> None:
    names = ("metrics", "data", "training", "calibration", "limits", "costs", "learning_curve")
    odd = dict.fromkeys((*names, "threshold_rule"), value)
    strange = replace(classifier, metadata=odd, layers=[*classifier.layers, Relu()])
    with TestClient(create_app(Settings(weights=weights_path), strange)) as client:
        told = client.get("/model")
    assert told.status_code == 200
    assert told.json()["weights_png"] is None


# --- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted(page.FOLDER.iterdir())
        if path.suffix != ".jpg"
    }


def test_the_page_is_small(files: dict[str, str]) -> None:
    assert sum(len(text.encode()) for text in files.values()) < LARGEST_BYTES


def test_the_page_allows_nothing_from_elsewhere_and_no_inline_code(client: TestClient) -> None:
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]+src=)|<style|\son\w+=|\sstyle=", response.text)


def test_every_address_is_relative_and_exists(client: TestClient, files: dict[str, str]) -> None:
    page_text = client.get("/").text
    addresses = re.findall(r'(?:href|src|action)="([^"]+)"', page_text)
    assert {"static/page.css", "static/page.js", "explain", "model", "docs"} <= set(addresses)
    for address in addresses:
        assert re.fullmatch(r"[a-z][a-z/.]*", address), address
        assert client.get(f"/{address}").status_code in (200, 405)
    for name, text in files.items():
        elsewhere = re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
        assert not elsewhere, f"{name} names another origin"
        for module in re.findall(r'from "([^"]+)"', text):
            assert client.get(f"/static/{module}").headers["content-type"].startswith("text/java")


def test_the_examples_are_those_of_the_repository(client: TestClient) -> None:
    for name in EXAMPLES:
        assert (
            client.get(f"/static/{name}").content == (REPOSITORY / "examples" / name).read_bytes()
        )


def test_files_are_sent_again_only_when_they_changed(client: TestClient) -> None:
    first = client.get("/static/page.js")
    again = client.get("/static/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(
    "name", ["index.html", "answer.html", "none.js", "..%2fpage.py", "%2e%2e/page.py", "page%00.js"]
)
def test_nothing_else_is_sent(client: TestClient, name: str) -> None:
    assert client.get(f"/static/{name}").status_code == 404


def test_a_form_without_javascript_is_answered_with_a_page(
    client: TestClient, cat_picture: bytes
) -> None:
    form = {"file": ("cat.jpg", cat_picture)}
    response = client.post("/explain", files=form, headers={"Accept": BROWSER})
    assert response.status_code == 200
    assert response.headers["content-security-policy"] == page.POLICY
    told = client.post("/explain", content=cat_picture).json()
    assert told["words"] in response.text
    assert told["picture_png"] in response.text
    assert told["overlay_png"] in response.text


@pytest.mark.parametrize(
    ("threshold", "text", "anchor"),
    [
        (0.5, "cat from 50 % on", "middle"),
        (0.42242943, "cat from 42.2 % on", "middle"),
        (0.1, "cat from 10 % on", "start"),
        (0.9, "cat from 90 % on", "end"),
        (0.00001, "cat from under 0.1 % on", "start"),
    ],
)
def test_the_threshold_is_a_round_number_inside_the_bar(
    weights_path: Path, cat_picture: bytes, threshold: float, text: str, anchor: str
) -> None:
    with TestClient(create_app(Settings(weights=weights_path, threshold=threshold))) as client:
        answer = client.post("/explain", content=cat_picture, headers={"Accept": BROWSER}).text
    assert f'text-anchor="{anchor}">{text}</text>' in answer


def test_names_of_classes_are_text_not_markup(weights_path: Path, cat_picture: bytes) -> None:
    layer = Linear(np.zeros((12288, 1), np.float32), np.zeros(1, np.float32))
    names = ("<b>&", '"$title')
    odd = Classifier(name="odd", class_names=names, threshold=0.5, layers=[layer])
    with TestClient(create_app(Settings(weights=weights_path), odd)) as client:
        plain = client.get("/").text
        answer = client.post("/explain", content=cat_picture, headers={"Accept": BROWSER}).text
    for text in (plain, answer):
        assert "<b>&" not in text
        assert "&lt;b&gt;&amp;" in text


def test_the_page_can_be_switched_off(weights_path: Path, cat_picture: bytes) -> None:
    with TestClient(create_app(Settings(weights=weights_path, page=False))) as client:
        for address in ("/", "/static/page.js"):
            response = client.get(address)
            assert response.status_code == 404
            assert response.headers["content-type"] == "application/problem+json"
        asked = client.post("/explain", content=cat_picture, headers={"Accept": BROWSER})
        assert "heat" in json.loads(asked.text)
