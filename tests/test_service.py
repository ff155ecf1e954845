"""The service as a client sees it: answers, refusals, the pages of documents."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI
from fastapi.testclient import TestClient
from PIL import Image

from app import HEADER_LENGTH, __version__, pages
from app.errors import TYPES
from app.main import create_app
from app.routes import FORM_ALLOWANCE_BYTES, PredictionAnswer, ProblemAnswer
from app.settings import Settings
from app.work import Work
from model.classifier import Classifier, ViewMode
from model.formats import Reason
from model.worker import Job, Reply
from model.workers import Failure
from tests.conftest import Service, SharedWorkers, Stuck
from tests.data_folder import REPOSITORY
from tests.pictures import animation, encode, picture

BROWSER = {"Accept": "text/html,*/*;q=0.8"}
FORM = "multipart/form-data; boundary=b"
FOLDED = 'Content-Disposition: form-data;\r\n name="file";\r\n\tfilename="x"\r\n\r\nx'
ENCODED = "Content-Transfer-Encoding"
IN_BASE64 = base64.b64encode(picture("JPEG")).decode()


def body(content: bytes, kind: str = "", encoding: str = "") -> dict[str, Any]:
    headers = {"Content-Type": kind, "Content-Encoding": encoding}
    return {"content": content, "headers": headers}


def multipart(*parts: str, end: str = "--b--\r\n") -> dict[str, Any]:
    """A request with a form of these parts, each with its headers."""
    return body(("".join(f"--b\r\n{part}\r\n" for part in parts) + end).encode(), FORM)


def unannounced(data: bytes) -> Iterator[bytes]:
    """For httpx: sent with Transfer-Encoding chunked, without a length."""
    yield data


def file(name: str) -> str:
    return f'Content-Disposition: form-data; name="{name}"; filename="x"\r\n\r\nx'


def field(name: str) -> str:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\nx'


def png_that_claims(width: int, height: int) -> bytes:
    """A small PNG whose header announces that many pixels."""
    return encode(Image.new("1", (width, height)))


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [picture(), animation("GIF")], ids=["JPEG", "GIF"])
def test_the_served_probability_is_exactly_the_models(
    client: TestClient, classifier: Classifier, data: bytes
) -> None:
    direct = classifier.predict(data)
    answer = client.post("/predict", content=data)
    assert answer.headers["content-type"] == "application/json"
    PredictionAnswer.model_validate_json(answer.content, strict=True)
    assert bool(direct.warnings) == data.startswith(b"GIF")
    assert answer.json() == {
        "cat_probability": direct.cat_probability,
        "label": direct.label,
        "words": direct.words,
        "threshold": classifier.threshold,
        "model": {"name": classifier.name, "version": classifier.version},
        "views": 1,
        "warnings": list(direct.warnings),
    }


@pytest.mark.parametrize(("setting", "views"), [("all", 6), ("one", 1)])
def test_an_unsure_model_looks_at_all_views_unless_the_setting_is_one(
    unsure_service: Service, unsure_path: Path, cat_picture: bytes, setting: ViewMode, views: int
) -> None:
    direct = Classifier.load(unsure_path).predict(cat_picture, views=setting)
    with unsure_service(views=setting) as client:
        predicted, explained = (
            client.post(path, content=cat_picture).json() for path in ("/predict", "/explain")
        )
        alone = {HEADER_LENGTH: "0"}
        inferred = client.post("/v2/models/cat/infer", content=cat_picture, headers=alone).json()
        assert len(client.get("/model").json()["views"]["boxes"]) == views
    assert (predicted["views"], len(explained["views"]), direct.views) == (views, views, views)
    assert predicted["cat_probability"] == explained["cat_probability"] == direct.cat_probability
    assert inferred["outputs"][0]["data"] == [direct.cat_probability]


def test_small_pictures_that_are_worked_on_together_get_their_answers(
    unsure_path: Path, cat_picture: bytes
) -> None:
    work = Work(Classifier.load(unsure_path))
    head = {"kind": "predict", "threshold": None, "views": "all", "max_pixels": 10**6}
    jobs = [Job(head, data) for data in (cat_picture, b"no picture", picture("PNG", 96, 96))]
    together, alone = work(jobs), [work([job])[0] for job in jobs]
    assert together[1] == alone[1]
    for i in (0, 2):
        answer, expected = json.loads(together[i].body), json.loads(alone[i].body)
        probability = pytest.approx(expected["cat_probability"], abs=1e-6)
        assert answer == expected | {"cat_probability": probability}


def test_a_picture_gets_the_same_answer_however_it_is_sent(
    client: TestClient, cat_picture: bytes
) -> None:
    expected = client.post("/predict", content=cat_picture).text
    for kind in ("image/png", "application/x-www-form-urlencoded", "x;;="):
        sent = client.post("/predict", **body(cat_picture, kind, "identity"))
        assert sent.text == expected
    for name in ("cat.jpg", "кіт.jpg", 'a "cat".jpg'):
        form = {"files": {"file": (name, cat_picture)}, "data": {"button": "Send"}}
        assert client.post("/predict", **form).text == expected


@pytest.mark.parametrize(
    ("threshold", "label", "words"),
    [(0.001, "cat", "not sure"), (0.999, "non-cat", "no cat, quite sure")],
)
def test_the_threshold_setting_decides_the_label_and_its_words_and_nothing_else(
    service: Service, cat_picture: bytes, threshold: float, label: str, words: str
) -> None:
    with service() as client:
        default = client.post("/predict", content=cat_picture).json()
    with service(threshold=threshold) as client:
        answer = client.post("/predict", content=cat_picture).json()
        assert client.get("/v2/models/cat").json()["parameters"]["threshold"] == threshold
    assert answer == default | {"threshold": threshold, "label": label, "words": words}


def test_health_names_the_loaded_model_also_for_head(
    client: TestClient, classifier: Classifier
) -> None:
    named = {"name": classifier.name, "version": classifier.version}
    for path in ("/health", "/health/ready"):
        get, head = client.get(path), client.head(path)
        assert get.json() == {"status": "ready", "version": __version__, "model": named}
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.head("/predict").status_code == 405


# --- refusals -----------------------------------------------------------------------------------

REFUSED = [  # request, slug, words of the detail
    ({"content": b""}, "empty", "no body"),
    ({"files": {"file": ("", b"")}}, "empty", "'file' is empty"),
    ({"content": b"hello, world"}, "not-a-picture", "looks like text"),
    (body(b"hello", "application/x-www-form-urlencoded"), "not-a-picture", "--data-binary"),
    (body(b"--b\r\n" + file("file").encode(), "image/jpeg"), "not-a-picture", "is 'image/jpeg'"),
    ({"files": {"file": ("cat.jpg", b"hello, world")}}, "not-a-picture", "looks like text"),
    ({"content": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, "format-not-allowed", "SVG"),
    ({"content": b"%PDF-1.7\n" + bytes(100)}, "format-not-allowed", "PDF"),
    ({"content": b"\xff\xd8\xff\xe0" + bytes(100)}, "damaged", "JPEG"),
    ({"content": png_that_claims(5001, 5000)}, "too-many-pixels", "25 million"),
    ({"content": png_that_claims(10_001, 1)}, "too-many-pixels", "10,000"),
    (body(b"x", encoding="gzip"), "encoded-body", "'gzip'"),
    # What is wrong with a form, in its sender's words.
    ({"files": {"image": ("cat.jpg", b"x")}}, "missing-file", "'image'"),
    (multipart(field("a"), field("b")), "missing-file", "'file' (fields: 'a', 'b')."),
    (multipart(), "missing-file", "'file' (fields: none)."),
    (multipart(file("file"), file("image")), "several-files", "'image'"),
    (multipart(file("file"), file("file")), "several-files", "2 files"),
    # The empty one of two files is left out.
    (multipart(FOLDED, file("file")[:-1]), "not-a-picture", "(1 byte)"),
    (multipart(f"{ENCODED}: base64\r\n{file('file')[:-1]}{IN_BASE64}"), "not-a-picture", "base64"),
    (body(f"--b\n{file('file')}\n--b--\n".encode(), FORM), "malformed-form", "CR LF"),
    (multipart("Content-Type: image/jpeg\r\n\r\nx"), "malformed-form", "no Content-Disposition"),
    (multipart(f"X-Long: {'x' * 5000}\r\n\r\nx"), "malformed-form", "between two boundaries"),
    (multipart("a line without a colon\r\n\r\nx"), "malformed-form", "between two boundaries"),
    (multipart(file("file"), end="--b"), "malformed-form", "before its closing boundary"),
    (body(b"\xff\xd8\xff", FORM), "malformed-form", "does not begin with the boundary"),
]


@pytest.mark.parametrize(("request_", "slug", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_classified_gets_its_problem(
    client: TestClient, request_: dict[str, Any], slug: str, words: str
) -> None:
    response = client.post("/predict", **request_)
    problem = response.json()
    assert problem["type"] == f"/problems#{slug}", problem
    ProblemAnswer.model_validate(problem, strict=True)
    assert response.status_code == problem["status"] == TYPES[slug].status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["title"] == TYPES[slug].title
    assert words in problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]


def test_a_picture_of_exactly_the_limit_passes_and_one_byte_more_does_not(
    service: Service, cat_picture: bytes
) -> None:
    most = len(cat_picture)
    room = {"note": "x" * (FORM_ALLOWANCE_BYTES - 1000)}
    with service(max_upload_bytes=most) as client:
        for picture, status in ((cat_picture, 200), (cat_picture + b"\0", 413)):
            for request in (
                {"content": picture},
                {"content": unannounced(picture)},
                {"files": {"file": picture}, "data": room},
            ):
                answer = client.post("/predict", **request)
                assert answer.status_code == status
                if status == 413:
                    problem = answer.json()
                    assert problem["type"] == "/problems#too-large"
                    assert problem["limit_bytes"] == most
                    assert f"at most {most:,}" in problem["detail"]
        beyond = {"note": "x" * FORM_ALLOWANCE_BYTES}
        too_large = client.post("/predict", files={"file": cat_picture}, data=beyond)
        assert too_large.status_code == 413


FAULT = Reply({"fault": "secret", "seconds": 0.1})


def test_hostile_forms_are_parsed_in_time(client: TestClient) -> None:
    """Near misses of the boundary are what makes a parser slow; here is 1 MiB of them."""
    for filler in ("\r\n--b", "\r\n--", "\r\n--b-", "\r\n--b \r\n"):
        request = multipart(file("file") + filler * (2**20 // len(filler)))
        assert client.post("/predict", **request).status_code in (400, 415)


@pytest.mark.parametrize(
    ("path", "end", "slug", "words"),
    [
        ("/predict", Failure.MEMORY, "too-many-pixels", "more memory than is available"),
        ("/predict", Failure.TIME, "takes-too-long", "too much processor time"),
        ("/explain", Failure.CRASH, "crashes-decoder", "crashed its decoder twice"),
        ("/v2/models/cat/infer", Failure.MEMORY, "too-large", "Send fewer pictures"),
        ("/v2/models/cat/infer", Failure.TIME, "takes-too-long", "The request takes too much"),
        ("/predict", FAULT, "internal-error", "The service failed"),
        ("/predict", None, "deadline-passed", "0.3 s passed"),
    ],
)
def test_what_a_worker_cannot_do_gets_its_problem(
    workers: SharedWorkers, path: str, end: Failure | Reply | None, slug: str, words: str
) -> None:
    app = create_app(Settings(deadline_seconds=0.3), Stuck(workers.description, end))
    with TestClient(app) as client:
        answer = client.post(path, content=b"a picture")
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (TYPES[slug].status, f"/problems#{slug}")
    assert words in problem["detail"]
    assert "secret" not in answer.text
    assert ("limit_pixels" in problem) == (slug == "too-many-pixels")
    if answer.status_code == 503:
        assert int(answer.headers["retry-after"]) >= 1


def test_the_pixel_limit_is_a_setting_and_is_named(service: Service) -> None:
    with service(max_pixels=9_999) as client:
        problem = client.post("/predict", content=png_that_claims(100, 100)).json()
    assert (problem["limit_pixels"], problem["limit_side"]) == (9_999, 10_000)
    assert "9,999 pixels and 10,000 pixels per side" in problem["detail"]


def test_an_unknown_address_is_a_problem(client: TestClient) -> None:
    answers = [client.post("/predict/", content=b"x")]  # a redirect would send the picture twice
    answers += [client.get(path) for path in ("/%00%ff", "/docs/nothing", "/docs/../main.py")]
    for answer in answers:
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems#not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("NONSENSE", "/openapi.json", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_a_problem_that_names_the_right_one(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert response.json()["type"] == "/problems#method-not-allowed"
    assert allowed in response.json()["detail"]


def test_a_fault_of_ours_is_a_problem_without_its_innards(workers: SharedWorkers) -> None:
    app = create_app(Settings(), workers)
    with TestClient(app, raise_server_exceptions=False) as client:
        app.state.model = None
        response = client.post("/predict", content=b"a picture")
    assert response.status_code == 500
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.json()["type"] == "/problems#internal-error"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "NoneType" not in response.text


# --- pages and documents ------------------------------------------------------------------------


def test_the_api_document_is_valid_and_names_keys_and_problems(
    client: TestClient, service: Service
) -> None:
    document = client.get("/openapi.json").json()
    assert OpenAPI.model_validate(document).info.version == __version__
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert named == set(document["components"]["schemas"])
    operations = [each for methods in document["paths"].values() for each in methods.values()]
    tags = [*chain.from_iterable(each["tags"] for each in operations)]
    assert set(tags) == {"Cat or not", "Open Inference Protocol"}
    assert len(tags) == len(operations)
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "application/octet-stream", "image/*"} <= set(content)
    assert "security" not in document
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["responses"].keys() in ({"200", "default"}, {"204", "default"})
    with service(api_keys=("key",)) as locked:
        secured = locked.get("/openapi.json").json()
        assert secured["security"] == [{"bearer": []}, {"key": []}]  # either will do
        assert secured["components"]["securitySchemes"].keys() == {"bearer", "key"}
        for path, methods in secured["paths"].items():
            for method, operation in methods.items():
                needs_key = locked.request(method, path).status_code == 401
                assert needs_key == ("security" not in operation), path


def test_the_problems_page_has_a_place_for_every_type(client: TestClient) -> None:
    page = client.get("/problems")
    assert page.headers["content-type"].startswith("text/html")
    for slug in TYPES.keys() | set(Reason):
        assert page.text.count(f'id="{slug}"') == 1
        assert html.escape(TYPES[slug].advice) in page.text


def test_docs_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert "//" not in page.text  # no absolute address
    assert not re.search(r"<script>|<style|\son\w+=", page.text)  # nothing inline
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        if not address.startswith("data:"):
            assert client.get(f"/{address}").status_code == 200, address
    assert "validatorUrl: null" in client.get("/docs/start.js").text


def test_swagger_ui_is_served_as_published_and_as_gzip(client: TestClient) -> None:
    readme = (pages.FOLDER / "swagger-ui" / "README.md").read_text(encoding="utf-8")
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        published = re.search(rf"([0-9a-f]{{64}})  {re.escape(name)}", readme)
        assert published
        response = client.get(f"/docs/{name}")
        assert response.headers["content-encoding"] == "gzip"
        assert hashlib.sha256(response.content).hexdigest() == published[1]


def test_its_files_are_small_and_allow_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/", headers=BROWSER)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    addresses = re.findall(r'(?:href|src|action)="([^"]+)"', page.text)
    files = [each for each in (pages.FOLDER / "page").iterdir() if each.suffix != ".jpg"]
    text = "".join(each.read_text() for each in files)
    modules = re.findall(r'from "\./(.+)"', text)
    for address in {*addresses, *(f"static/{name}" for name in modules)} - {"docs"}:
        assert re.fullmatch(r"static/[a-z.]+", address)
        assert client.get(f"/{address}").status_code == 200, address
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert len(text) < 40_000


def test_files_are_sent_again_only_when_they_changed_and_nothing_else_is_sent(
    client: TestClient, service: Service
) -> None:
    first = client.get("/static/cat.jpg")
    assert first.content == (REPOSITORY / "examples" / "cat.jpg").read_bytes()
    again = client.get("/static/cat.jpg", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    for name in ("index.html", "no.js", "..%2fpage.py", "%2e%2e/page.py", "%00"):
        assert client.get(f"/static/{name}").status_code == 404
    with service(page=False) as without:
        assert {without.get(path).status_code for path in ("/", "/static/page.js")} == {404}


def test_names_of_classes_are_text_not_markup(workers: SharedWorkers) -> None:
    named = workers.description | {"class_names": ("<b>&", '"$title')}
    with TestClient(create_app(Settings(), Stuck(named))) as client:
        text = client.get("/", headers=BROWSER).text
    assert "<title>&lt;b&gt;&amp; or &quot;$title?</title>" in text
    assert "<b>&" not in text


@pytest.mark.parametrize("accept", ["*/*", "", "text/plain"])
def test_whoever_does_not_ask_for_a_page_gets_the_commands_to_try(
    client: TestClient, service: Service, accept: str, tmp_path: Path
) -> None:
    answer = client.get("/", headers={"Accept": accept})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["vary"] == "Accept"
    assert answer.text.startswith("Is it a cat or not? Send a picture:\n")
    assert "\ncurl --data-binary @picture.jpg http://testserver/predict\n" in answer.text
    assert "feedback" not in answer.text
    with service(api_keys=("secret",), collect=tmp_path) as locked:
        text = locked.get("/", headers={"Accept": accept}).text
    assert text.endswith("\nPictures sent to http://testserver/feedback are saved for training.\n")
    assert '\ncurl -H "X-API-Key: KEY" --data-binary @picture.jpg' in text
    assert "secret" not in text
