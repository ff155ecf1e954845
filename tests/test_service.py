"""The service as a client sees it, through the TestClient."""

import asyncio
import dataclasses
import gzip
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from app import docs, problems
from app.main import create_app
from app.settings import Settings
from model.classifier import Classifier
from model.preprocessing import Reason
from tests.gate import Gate

BOUNDARY = "multipart/form-data; boundary=b"


def gif(frames: int) -> bytes:
    """An animation of that many grey frames."""
    pictures = [Image.new("L", (90, 80), 20 * number) for number in range(frames)]
    out = io.BytesIO()
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:])
    return out.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A small PNG whose header announces that many pixels."""
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


def test_the_served_probability_is_exactly_the_models(
    client: TestClient, classifier: Classifier, cat_picture: bytes
) -> None:
    direct = classifier.predict(cat_picture)
    assert client.post("/predict", content=cat_picture).json() == {
        "cat_probability": direct.cat_probability,
        "label": direct.label,
        "words": direct.words,
        "threshold": classifier.threshold,
        "model": {"name": classifier.name, "version": classifier.version},
        "warnings": list(direct.warnings),
    }


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "image/jpeg"},
        {"Content-Type": "image/png"},
        {"Content-Type": "application/json"},
        {"Content-Type": "no such thing;;="},
        {"Content-Encoding": "identity"},
    ],
    ids=str,
)
def test_a_raw_body_is_taken_whatever_its_headers_say(
    client: TestClient, classifier: Classifier, cat_picture: bytes, headers: dict[str, str]
) -> None:
    response = client.post("/predict", content=cat_picture, headers=headers)
    assert response.status_code == 200
    assert response.json()["cat_probability"] == classifier.predict(cat_picture).cat_probability


@pytest.mark.parametrize("file_name", ["cat.jpg", "кіт.jpg", 'a "cat".jpg', "no-extension"])
def test_a_form_gives_the_same_answer_as_the_raw_body(
    client: TestClient, cat_picture: bytes, file_name: str
) -> None:
    raw = client.post("/predict", content=cat_picture)
    form = client.post("/predict", files={"file": (file_name, cat_picture)})
    assert form.status_code == 200
    assert form.json() == raw.json()


@pytest.mark.parametrize(
    ("threshold", "label", "words"),
    [(0.001, "cat", "not sure"), (0.999, "non-cat", "no cat, quite sure")],
)
def test_the_threshold_setting_decides_the_label_and_its_words_and_nothing_else(
    weights_path: Path,
    client: TestClient,
    cat_picture: bytes,
    threshold: float,
    label: str,
    words: str,
) -> None:
    settings = Settings(weights=weights_path, threshold=threshold)
    with TestClient(create_app(settings)) as strict:
        answer = strict.post("/predict", content=cat_picture).json()
    assert answer["threshold"] == threshold
    default = client.post("/predict", content=cat_picture).json()
    assert answer == default | {"threshold": threshold, "label": label, "words": words}


def test_the_answer_warns_of_what_was_left_out(client: TestClient) -> None:
    (warning,) = client.post("/predict", content=gif(frames=12)).json()["warnings"]
    assert "12 frames" in warning


def test_health_names_the_loaded_model(client: TestClient, classifier: Classifier) -> None:
    response = client.get("/health")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "model": {"name": classifier.name, "version": classifier.version},
    }


def test_head_is_answered_where_get_is(client: TestClient) -> None:
    head, get = client.head("/health"), client.get("/health")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"]


def multipart(*parts: str) -> dict[str, Any]:
    """A request with a form of these parts, each with its headers."""
    body = "".join(f"--b\r\n{part}\r\n" for part in parts) + "--b--\r\n"
    return {"content": body.encode(), "headers": {"Content-Type": BOUNDARY}}


def part(name: str, content: str, filename: str | None = "x") -> str:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    return f"{disposition}\r\n\r\n{content}"


REFUSED = [  # request, status, slug, words of the detail
    ({"content": b""}, 422, "empty", "no body"),
    ({}, 422, "empty", "no body"),
    ({"files": {"file": ("", b"")}}, 422, "empty", "'file' is empty"),
    ({"files": {"file": ("cat.jpg", b"")}}, 422, "empty", "'file' is empty"),
    ({"content": b"", "headers": {"Content-Type": BOUNDARY}}, 422, "empty", "no content"),
    ({"content": b"hello, world"}, 415, "not-a-picture", ""),
    ({"files": {"file": ("cat.jpg", b"hello, world")}}, 415, "not-a-picture", ""),
    ({"content": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, 415, "format-not-allowed", "SVG"),
    ({"content": b"%PDF-1.7\n" + bytes(100)}, 415, "format-not-allowed", "PDF"),
    ({"content": b"\xff\xd8\xff\xe0" + bytes(100)}, 422, "damaged", "JPEG"),
    ({"content": gif(1)[:-20]}, 422, "damaged", "GIF"),
    ({"content": png_that_claims(5001, 5000)}, 422, "too-many-pixels", "25 million"),
    ({"content": png_that_claims(10_001, 1)}, 422, "too-many-pixels", "10,000"),
    ({"files": {"image": ("cat.jpg", b"x")}}, 422, "missing-file", "'image'"),
    ({"files": {"": ("cat.jpg", b"x")}}, 422, "missing-file", "''"),
    (
        multipart(part("image", "raw", None), part("note", "hi", None)),
        422,
        "missing-file",
        "no field 'file'; there are 'image', 'note'.",
    ),
    (multipart(part("file", "a"), part("image", "b")), 422, "several-files", "'image'"),
    (multipart(part("file", "a"), part("file", "b")), 422, "several-files", "more than one"),
    (multipart(), 422, "missing-file", "no field 'file'."),
    (multipart("Content-Type: image/jpeg\r\n\r\nx"), 400, "malformed-form", "Content-Disposition"),
    (multipart(*[part("note", "", None)] * 21), 400, "malformed-form", "20 parts"),
    (multipart(f"X-Long: {'x' * 5000}\r\n\r\nx"), 400, "malformed-form", "header size"),
    (multipart("A: b\r\n" * 20 + "\r\nx"), 400, "malformed-form", "header count"),
    (
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "malformed-form",
        "no boundary",
    ),
    (
        {"content": b"x", "headers": {"Content-Type": BOUNDARY + "b" * 300}},
        400,
        "malformed-form",
        "oundary",
    ),
    ({"content": b"garbage", "headers": {"Content-Type": BOUNDARY}}, 400, "malformed-form", ""),
    (
        {
            "content": multipart(part("file", "x"))["content"][:-8],
            "headers": {"Content-Type": BOUNDARY},
        },
        400,
        "malformed-form",
        "closing boundary",
    ),
    (
        {"content": b"x", "headers": {"Content-Encoding": "gzip"}},
        415,
        "encoded-body",
        "Content-Encoding 'gzip'",
    ),
]


@pytest.mark.parametrize(("request_", "status", "slug", "words"), REFUSED)
def test_what_cannot_be_classified_gets_its_problem(
    client: TestClient, request_: dict[str, Any], status: int, slug: str, words: str
) -> None:
    response = client.post("/predict", **request_)
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["type"]) == (status, f"/problems#{slug}"), problem
    assert problem["status"] == status
    assert problem["title"] == problems.KINDS[slug].title
    assert words in problem["detail"]


def test_every_reason_of_the_model_has_a_kind_of_problem() -> None:
    assert set(Reason) <= set(problems.KINDS)


def test_the_pixel_limit_is_a_setting_and_is_told(weights_path: Path) -> None:
    with TestClient(create_app(Settings(weights=weights_path, max_pixels=9_999))) as client:
        problem = client.post("/predict", content=png_that_claims(100, 100)).json()
    assert problem["type"] == "/problems#too-many-pixels"
    assert problem["limit_side"] == 10_000
    assert problem["limit_pixels"] == 9_999
    assert "at most 9,999 pixels and 10,000 a side" in problem["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict/"),  # no redirect: it would have the picture sent twice
        ("GET", "/health/"),
        ("GET", "/docs/nothing"),
        ("GET", "/docs/../main.py"),
        ("POST", "/%00%ff"),
    ],
)
def test_an_unknown_address_is_a_problem(client: TestClient, method: str, path: str) -> None:
    response = client.request(method, path)
    assert response.status_code == 404
    assert response.json()["type"] == "/problems#not-found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict", "POST"),
        ("OPTIONS", "/predict", "POST"),
        ("PUT", "/predict", "POST"),
        ("POST", "/health", "GET"),
        ("NONSENSE", "/health", "GET"),
    ],
)
def test_a_wrong_method_is_a_problem_that_names_the_right_one(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert response.json()["type"] == "/problems#method-not-allowed"
    assert allowed in response.json()["detail"]


def test_head_of_predict_is_not_allowed(client: TestClient) -> None:
    assert client.head("/predict").status_code == 405


def test_a_fault_of_ours_is_a_problem_without_its_innards(
    weights_path: Path, cat_picture: bytes
) -> None:
    app = create_app(Settings(weights=weights_path))
    with TestClient(app, raise_server_exceptions=False) as client:
        app.state.classifier = None
        response = client.post("/predict", content=cat_picture)
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "/problems#internal-error"
    assert "NoneType" not in response.text


def test_invalid_values_are_a_problem_that_does_not_quote_them(weights_path: Path) -> None:
    app = create_app(Settings(weights=weights_path))

    @app.get("/number")
    async def number(value: int) -> int:
        return value

    with TestClient(app) as client:
        response = client.get("/number?value=secret")
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert "query.value" in response.json()["detail"]
    assert "secret" not in response.text


def test_other_clients_are_answered_while_a_picture_is_classified(
    weights_path: Path, classifier: Classifier, cat_picture: bytes
) -> None:
    gate = Gate()
    app = create_app(Settings(weights=weights_path))

    async def two_clients() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            app.state.classifier = dataclasses.replace(
                classifier, layers=[gate, *classifier.layers]
            )
            slow = asyncio.create_task(client.post("/predict", content=cat_picture))
            assert await asyncio.to_thread(gate.reached.wait, 10)
            quick = await client.get("/health")
            assert not slow.done()
            gate.opened.set()
            return quick, await slow

    quick, slow = asyncio.run(two_clients())
    assert quick.status_code == slow.status_code == 200


@pytest.mark.parametrize("path", ["/health", "/docs", "/docs/start.js", "/problems", "/nothing"])
def test_browsers_are_told_to_believe_content_types(client: TestClient, path: str) -> None:
    assert client.get(path).headers["x-content-type-options"] == "nosniff"


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def test_the_api_document_has_every_problem_that_predict_answers(
    document: dict[str, Any],
) -> None:
    described = document["paths"]["/predict"]["post"]["responses"]
    others = [(None, 413, "too-large", ""), (None, 503, "stopping", "")]
    for _, status, slug, _ in [*REFUSED, *others]:
        assert f"`/problems#{slug}`" in described[str(status)]["description"]
        assert list(described[str(status)]["content"]) == ["application/problem+json"]
    assert set(described) == {"200", "400", "408", "413", "415", "422", "503"}


def test_the_api_document_describes_forms_and_raw_bodies(document: dict[str, Any]) -> None:
    body = document["paths"]["/predict"]["post"]["requestBody"]
    assert body["required"]
    assert body["content"]["multipart/form-data"]["schema"]["required"] == ["file"]
    assert "application/octet-stream" in body["content"]
    assert "image/*" in body["content"]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_the_api_document_holds_what_it_refers_to(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert {ref.removeprefix("#/components/schemas/") for ref in references(document)} == set(
        schemas
    )


def test_the_version_is_described_as_what_it_is(document: dict[str, Any]) -> None:
    version = document["components"]["schemas"]["ModelName"]["properties"]["version"]
    assert "whatever decides the answers" in version["description"]


def test_the_problems_page_has_a_place_for_every_type(client: TestClient) -> None:
    page = client.get("/problems")
    assert page.headers["content-type"].startswith("text/html")
    for kind in problems.KINDS.values():
        assert page.text.count(f'id="{kind.slug}"') == 1
        assert kind.type == f"/problems#{kind.slug}"


def test_docs_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert "//" not in page.text  # no absolute address
    assert not re.search(r"<script>|<style|\son\w+=", page.text)  # nothing inline
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        if not address.startswith("data:"):
            assert client.get(f"/{address}").status_code == 200, address
    assert "validatorUrl: null" in client.get("/docs/start.js").text


@pytest.mark.parametrize("name", docs.MEDIA_TYPES)
@pytest.mark.parametrize("range_", ["bytes=5-1", "bytes=0-9", "bytes=999999999-", "lines=1"])
def test_a_file_of_the_docs_is_sent_whole_whatever_range_is_asked_for(
    client: TestClient, name: str, range_: str
) -> None:
    whole = client.get(f"/docs/{name}")
    answer = client.get(f"/docs/{name}", headers={"Range": range_})
    assert answer.status_code == 200
    assert answer.content == whole.content
    assert "accept-ranges" not in answer.headers


@pytest.mark.parametrize("name", ["swagger-ui-bundle.js", "swagger-ui.css"])
def test_swagger_ui_is_served_as_published_with_and_without_gzip(
    client: TestClient, name: str
) -> None:
    readme = (docs.FOLDER / "README.md").read_text(encoding="utf-8")
    published = re.search(rf"([0-9a-f]{{64}})  {re.escape(name)}", readme)
    assert published
    for encoding in ("gzip", "identity"):
        response = client.get(f"/docs/{name}", headers={"Accept-Encoding": encoding})
        assert response.headers.get("content-encoding", "identity") == encoding
        assert hashlib.sha256(response.content).hexdigest() == published[1]


def test_every_client_gets_the_apps_own_settings(weights_path: Path) -> None:
    apps: list[FastAPI] = [
        create_app(Settings(weights=weights_path, max_upload_bytes=limit)) for limit in (10, 20)
    ]
    limits = []
    for app in apps:
        with TestClient(app) as client:
            limits.append(client.post("/predict", content=bytes(21)).json()["limit_bytes"])
    assert limits == [10, 20]


def test_the_compressed_assets_carry_no_time_or_name() -> None:
    for path in docs.FOLDER.glob("*.gz"):
        header = path.read_bytes()[:10]
        assert header[3:8] == bytes(5), "made with gzip -n, so that the same input gives the file"
        assert gzip.decompress(path.read_bytes())


def test_answers_are_json_that_any_reader_takes(client: TestClient, cat_picture: bytes) -> None:
    response = client.post("/predict", content=cat_picture)
    assert response.headers["content-type"] == "application/json"

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(response.content, parse_constant=refuse)
