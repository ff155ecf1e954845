"""The service as a client sees it: answers, refusals, the pages of documents."""

import asyncio
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI
from fastapi.testclient import TestClient
from PIL import Image
from starlette.types import Message

from app import docs
from app.answers import PredictionAnswer
from app.errors import TYPES
from app.main import create_app
from app.settings import Settings
from model.classifier import Classifier
from model.formats import Reason
from model.worker import Reply
from model.workers import End
from tests.conftest import Service, SharedWorkers, Stuck
from tests.pictures import animation, picture

FORM = "multipart/form-data; boundary=b"


def multipart(*parts: str, end: str = "--b--\r\n") -> dict[str, Any]:
    """A request with a form of these parts, each with its headers."""
    body = "".join(f"--b\r\n{part}\r\n" for part in parts) + end
    return {"content": body.encode(), "headers": {"Content-Type": FORM}}


def part(name: str, content: str, filename: str | None = "x") -> str:
    named = "" if filename is None else f'; filename="{filename}"'
    return f'Content-Disposition: form-data; name="{name}"{named}\r\n\r\n{content}'


def png_that_claims(width: int, height: int) -> bytes:
    """A small PNG whose header announces that many pixels."""
    out = BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


# --- answers ------------------------------------------------------------------------------------


def test_the_served_probability_is_exactly_the_models(
    client: TestClient, classifier: Classifier, cat_picture: bytes
) -> None:
    direct = classifier.predict(cat_picture)
    answer = client.post("/predict", content=cat_picture)
    assert answer.headers["content-type"] == "application/json"
    PredictionAnswer.model_validate_json(answer.content, strict=True)
    assert answer.json() == {
        "cat_probability": direct.cat_probability,
        "label": direct.label,
        "words": direct.words,
        "threshold": classifier.threshold,
        "model": {"name": classifier.name, "version": classifier.version},
        "warnings": list(direct.warnings),
    }


@pytest.mark.parametrize(
    "request_",
    [
        *({"headers": {"Content-Type": kind}} for kind in ("image/png", "application/json", "x;;")),
        {"headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"headers": {"Content-Encoding": "identity"}},
        *({"form": name} for name in ("cat.jpg", "кіт.jpg", 'a "cat".jpg', "no-extension")),
        {"form": "cat.jpg", "data": {"button": "Send"}},
    ],
    ids=str,
)
def test_a_picture_gets_the_same_answer_however_it_is_sent(
    client: TestClient, cat_picture: bytes, request_: dict[str, Any]
) -> None:
    request = dict(request_)
    if name := request.pop("form", ""):
        request["files"] = {"file": (name, cat_picture)}
    else:
        request["content"] = cat_picture
    answer = client.post("/predict", **request)
    assert answer.text == client.post("/predict", content=cat_picture).text
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("threshold", "label", "words"),
    [(0.001, "cat", "not sure"), (0.999, "non-cat", "no cat, quite sure")],
)
def test_the_threshold_setting_decides_the_label_and_its_words_and_nothing_else(
    *,
    service: Service,
    client: TestClient,
    cat_picture: bytes,
    threshold: float,
    label: str,
    words: str,
) -> None:
    with service(threshold=threshold) as other:
        answer = other.post("/predict", content=cat_picture).json()
        assert other.get("/v2/models/cat").json()["parameters"]["threshold"] == threshold
    default = client.post("/predict", content=cat_picture).json()
    assert answer == default | {"threshold": threshold, "label": label, "words": words}


def test_the_answer_warns_of_what_was_left_out(client: TestClient) -> None:
    (warning,) = client.post("/predict", content=animation("GIF", 12)).json()["warnings"]
    assert "12 frames" in warning


def test_health_names_the_loaded_model(client: TestClient, classifier: Classifier) -> None:
    named = {"name": classifier.name, "version": classifier.version}
    for path in ("/health", "/health/ready"):
        assert client.get(path).json() == {"status": "ready", "model": named}
    assert client.get("/health/live").json() == {"status": "live"}


def test_head_is_answered_where_get_is(client: TestClient) -> None:
    head, get = client.head("/health"), client.get("/health")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]
    assert client.head("/predict").status_code == 405


# --- refusals -----------------------------------------------------------------------------------

REFUSED = [  # request, slug, words of the detail
    ({"content": b""}, "empty", "no body"),
    ({"files": {"file": ("", b"")}}, "empty", "'file' is empty"),
    ({"content": b"", "headers": {"Content-Type": FORM}}, "empty", "no content"),
    ({"content": b"hello, world"}, "not-a-picture", "looks like text"),
    ({"files": {"file": ("cat.jpg", b"hello, world")}}, "not-a-picture", "looks like text"),
    ({"content": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, "format-not-allowed", "SVG"),
    ({"content": b"%PDF-1.7\n" + bytes(100)}, "format-not-allowed", "PDF"),
    ({"content": b"\xff\xd8\xff\xe0" + bytes(100)}, "damaged", "JPEG"),
    ({"content": picture("PNG")[:-100]}, "damaged", "PNG"),
    ({"content": png_that_claims(5001, 5000)}, "too-many-pixels", "25 million"),
    ({"content": png_that_claims(10_001, 1)}, "too-many-pixels", "10,000"),
    ({"files": {"image": ("cat.jpg", b"x")}}, "missing-file", "'image'"),
    (
        multipart(part("image", "raw", None), part("note", "hi", None)),
        "missing-file",
        "no field 'file'; there are 'image', 'note'.",
    ),
    (multipart(), "missing-file", "no field 'file'."),
    (multipart(part("file", "a"), part("image", "b")), "several-files", "'image'"),
    (multipart(part("file", "a"), part("file", "b")), "several-files", "more than one"),
    # What is wrong with a form, in its sender's words.
    (multipart("Content-Type: image/jpeg\r\n\r\nx"), "malformed-form", "no Content-Disposition"),
    (multipart(*[part("note", "", None)] * 21), "malformed-form", "more than 20 parts"),
    (multipart(f"X-Long: {'x' * 5000}\r\n\r\nx"), "malformed-form", "between its boundaries"),
    (multipart("a line without a colon\r\n\r\nx"), "malformed-form", "between its boundaries"),
    (multipart(part("file", "x"), end="--b"), "malformed-form", "before its closing boundary"),
    (
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        "malformed-form",
        "names no boundary. Let the HTTP client write this header",
    ),
    (
        {"content": b"\xff\xd8\xff", "headers": {"Content-Type": FORM}},
        "malformed-form",
        "does not begin with the boundary",
    ),
    ({"content": b"x", "headers": {"Content-Encoding": "gzip"}}, "encoded-body", "'gzip'"),
]


@pytest.mark.parametrize("path", ["/predict", "/explain"])
@pytest.mark.parametrize(("request_", "slug", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_classified_gets_its_problem(
    client: TestClient, path: str, request_: dict[str, Any], slug: str, words: str
) -> None:
    response = client.post(path, **request_)
    problem = response.json()
    kind = TYPES[slug]
    assert problem["type"] == f"/problems#{slug}", problem
    assert response.status_code == problem["status"] == kind.status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["title"] == kind.title
    assert words in problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]


def test_every_reason_of_the_model_has_a_type_of_problem() -> None:
    assert set(Reason) <= set(TYPES)


def test_the_pixel_limit_is_a_setting_and_is_named(service: Service) -> None:
    with service(max_pixels=9_999) as client:
        problem = client.post("/predict", content=png_that_claims(100, 100)).json()
    assert problem["type"] == "/problems#too-many-pixels"
    assert (problem["limit_pixels"], problem["limit_side"]) == (9_999, 10_000)
    assert "at most 9,999 pixels and 10,000 a side" in problem["detail"]


@pytest.mark.parametrize(
    ("path", "end", "slug", "words"),
    [
        ("/predict", End.MEMORY, "too-many-pixels", "more memory than there is"),
        ("/predict", End.TIME, "takes-too-long", "more processor time than one may have"),
        ("/explain", End.CRASH, "crashes-decoder", "crashed again"),
        ("/v2/models/cat/infer", End.MEMORY, "too-large", "Send fewer pictures"),
        ("/predict", Reply({"fault": "secret", "seconds": 0.1}), "internal-error", "went wrong"),
        ("/predict", None, "deadline-passed", "0.05 s passed"),
    ],
)
def test_what_a_worker_cannot_do_gets_its_problem(
    workers: SharedWorkers, path: str, end: End | Reply | None, slug: str, words: str
) -> None:
    app = create_app(Settings(deadline_seconds=0.05), Stuck(workers.description, end))
    with TestClient(app) as client:
        answer = client.post(path, content=b"a picture")
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (TYPES[slug].status, f"/problems#{slug}")
    assert words in problem["detail"]
    assert "secret" not in answer.text
    assert ("limit_pixels" in problem) == (slug == "too-many-pixels")
    if answer.status_code == 503:
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ["/predict", "/explain", "/v2/models/cat/infer"])
def test_a_full_queue_refuses_and_says_when_to_come_back(workers: SharedWorkers, path: str) -> None:
    stuck = Stuck(workers.description)
    with TestClient(create_app(Settings(queue=1), stuck)) as client:
        assert client.portal
        client.portal.call(stuck.submit, {}, b"")
        answer = client.post(path, content=b"a picture")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems#busy")
    assert answer.headers["retry-after"] in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) >= 1


def test_a_service_that_is_about_to_stop_is_live_but_not_ready(
    service: Service, cat_picture: bytes
) -> None:
    with service() as client:
        client.app.state.ready = False  # type: ignore[attr-defined]
        for path in ("/health", "/health/ready"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["type"]) == (503, "/problems#not-ready")
            assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/health/live").status_code == 200
        assert client.post("/predict", content=cat_picture).status_code == 200


def test_an_upload_that_a_stopping_server_gives_up_is_answered(workers: SharedWorkers) -> None:
    app = create_app(Settings(), workers)
    sent: list[Message] = []

    async def stop_amid_an_upload() -> None:
        reading = asyncio.Event()

        async def receive() -> Message:
            reading.set()
            await asyncio.sleep(60)
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
        async with app.router.lifespan_context(app):
            upload = asyncio.create_task(app({**scope, "headers": []}, receive, send))
            await reading.wait()
            upload.cancel()
            await upload

    asyncio.run(stop_amid_an_upload())
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"5") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["type"] == "/problems#stopping"


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
        ("PUT", "/explain", "POST"),
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


def test_a_fault_of_ours_is_a_problem_without_its_innards(
    workers: SharedWorkers, cat_picture: bytes
) -> None:
    app = create_app(Settings(), workers)
    with TestClient(app, raise_server_exceptions=False) as client:
        app.state.model = None
        response = client.post("/predict", content=cat_picture)
    assert response.status_code == 500
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.json()["type"] == "/problems#internal-error"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "NoneType" not in response.text


def test_invalid_values_are_a_problem_that_does_not_quote_them(client: TestClient) -> None:
    response = client.post("/explain?format=secret", content=b"x")
    assert response.status_code == 422
    assert response.json()["type"] == "/problems#invalid-request"
    assert "query.format" in response.json()["detail"]
    assert "secret" not in response.text


# --- documents ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from [value] if key == "$ref" else references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_the_api_document_is_valid_and_holds_what_it_refers_to(document: dict[str, Any]) -> None:
    OpenAPI.model_validate(document)
    named = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert named == set(document["components"]["schemas"])
    documented = {"/predict", "/explain", "/model", "/metrics", "/v2", "/v2/models/cat/infer"}
    assert documented | {"/health", "/health/live", "/health/ready"} <= set(document["paths"])


@pytest.mark.parametrize("path", ["/predict", "/explain"])
def test_the_api_document_has_the_forms_and_the_problems_of_pictures(
    document: dict[str, Any], path: str
) -> None:
    operation = document["paths"][path]["post"]
    content = operation["requestBody"]["content"]
    assert content["multipart/form-data"]["schema"]["required"] == ["file"]
    assert {"application/octet-stream", "image/*"} <= set(content)
    described = operation["responses"]
    others = ("slow-upload", "too-large", "takes-too-long", "crashes-decoder", "busy", "stopping")
    for slug in {slug for _, slug, _ in REFUSED} | {*others, "deadline-passed"}:
        entry = described[str(TYPES[slug].status)]
        assert f"`/problems#{slug}`" in entry["description"]
        assert list(entry["content"]) == ["application/problem+json"]
        assert "X-Request-ID" in entry["headers"]
    assert set(described) == {"200", "400", "408", "413", "415", "422", "503"}
    assert "Retry-After" in described["503"]["headers"]


def test_the_problems_page_has_a_place_for_every_type(client: TestClient) -> None:
    page = client.get("/problems")
    assert page.headers["content-type"].startswith("text/html")
    for each in TYPES.values():
        assert page.text.count(f'id="{each.slug}"') == 1
        assert each.uri == f"/problems#{each.slug}"


def test_docs_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert "//" not in page.text  # no absolute address
    assert not re.search(r"<script>|<style|\son\w+=", page.text)  # nothing inline
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        if not address.startswith("data:"):
            assert client.get(f"/{address}").status_code == 200, address
    assert "validatorUrl: null" in client.get("/docs/start.js").text


@pytest.mark.parametrize("name", ["swagger-ui-bundle.js", "swagger-ui.css"])
def test_swagger_ui_is_served_as_published_and_whole_with_and_without_gzip(
    client: TestClient, name: str
) -> None:
    readme = (docs.FOLDER / "README.md").read_text(encoding="utf-8")
    published = re.search(rf"([0-9a-f]{{64}})  {re.escape(name)}", readme)
    assert published
    for encoding in ("gzip", "identity"):
        headers = {"Accept-Encoding": encoding, "Range": "bytes=0-9"}
        response = client.get(f"/docs/{name}", headers=headers)
        assert response.status_code == 200
        assert response.headers.get("content-encoding", "identity") == encoding
        assert hashlib.sha256(response.content).hexdigest() == published[1]


def test_the_compressed_assets_carry_no_time_or_name() -> None:
    for path in docs.FOLDER.glob("*.gz"):
        header = path.read_bytes()[:10]
        assert header[3:8] == bytes(5), "made with gzip -n, so that the same input gives the file"
        assert gzip.decompress(path.read_bytes())
