"""API keys, other origins' web pages, and the headers that browsers heed."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from app.access import KeysRequired
from app.main import create_app
from app.settings import Settings

KEYS = ("first-key", "second-key")
PAGE = "https://example.org"


def service(weights: Path, **chosen: Any) -> TestClient:
    return TestClient(create_app(Settings(weights=weights, **chosen)))


@pytest.fixture(scope="module")
def locked(weights_path: Path) -> Iterator[TestClient]:
    with service(weights_path, api_keys=KEYS[:1], api_keys_file=KEYS[1:]) as client:
        yield client


# --- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("X-API-Key", "{}"),
        ("x-api-key", "{}"),
        ("Authorization", "Bearer {}"),
        ("Authorization", "bearer  {}"),
    ],
)
def test_every_key_opens_in_either_header(
    locked: TestClient, cat_picture: bytes, key: str, name: str, form: str
) -> None:
    response = locked.post("/predict", content=cat_picture, headers={name: form.format(key)})
    assert response.status_code == 200


def test_a_proxys_own_authorization_does_not_hide_the_key(
    locked: TestClient, cat_picture: bytes
) -> None:
    headers = {"Authorization": "Basic Zm9vOmJhcg==", "X-API-Key": KEYS[1]}
    assert locked.post("/predict", content=cat_picture, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": KEYS[0][:-1]},
        {"X-API-Key": KEYS[0] + "x"},
        {"X-API-Key": KEYS[0].upper()},
        {"X-API-Key": ",".join(KEYS)},
        {"X-API-Key": f"Bearer {KEYS[0]}"},
        {"Authorization": KEYS[0]},
        {"Authorization": f"Basic {KEYS[0]}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Cookie": f"X-API-Key={KEYS[0]}"},
    ],
    ids=str,
)
def test_anything_else_is_refused_with_what_to_do(
    locked: TestClient, cat_picture: bytes, headers: dict[str, str]
) -> None:
    response = locked.post("/predict", content=cat_picture, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    problem = response.json()
    assert problem["type"] == "/problems#unauthorized"
    assert "X-API-Key" in problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert not any(key in response.text for key in KEYS)


def test_a_key_of_any_bytes_is_no_fault_of_ours(locked: TestClient) -> None:
    for value in (b"\xff\xfe", b"caf\xc3\xa9", b"x" * 5000):
        response = locked.get("/v2", headers=[(b"X-API-Key", value)])
        assert response.status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("POST", "/v2/models/cat/infer"),
        ("GET", "/v2"),
        ("GET", "/v2/models/cat"),
        ("GET", "/v2/models/cat/ready"),
        ("GET", "/nope"),
        ("GET", "/healthy"),
        ("GET", "/health/../predict"),
        ("GET", "//health/live"),
        ("OPTIONS", "/predict"),
        ("HEAD", "/v2"),
    ],
)
def test_every_address_is_closed_that_is_not_named_open(
    locked: TestClient, method: str, path: str
) -> None:
    assert locked.request(method, path).status_code in {401, 404}
    assert locked.request(method, path).headers.get("x-request-id")
    if ".." not in path:
        assert locked.request(method, path).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        *("/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"),
        *("/docs", "/docs/start.js", "/openapi.json", "/problems", "/metrics"),
    ],
)
def test_health_pages_and_documents_are_open(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code == 200
    assert locked.head(path).status_code == 200


def test_metrics_ask_for_a_key_where_the_operator_says_so(weights_path: Path) -> None:
    with service(weights_path, api_keys=KEYS, metrics="key") as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"X-API-Key": KEYS[0]}).status_code == 200


def test_without_keys_nobody_is_asked(client: TestClient, cat_picture: bytes) -> None:
    response = client.post("/predict", content=cat_picture, headers={"X-API-Key": "any"})
    assert response.status_code == 200


def test_a_request_is_refused_before_its_body_is_read() -> None:
    sent: list[Message] = []

    async def app(_: Scope, __: Receive, ___: Send) -> None:
        raise AssertionError("a request without a key came through")

    async def receive() -> Message:
        raise AssertionError("the body was asked for")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    asyncio.run(KeysRequired(app, KEYS, metrics_open=True)(scope, receive, send))
    assert sent[0]["status"] == 401


def test_behind_a_path_of_a_proxy_the_same_addresses_are_open(weights_path: Path) -> None:
    app = create_app(Settings(weights=weights_path, api_keys=KEYS))
    with TestClient(app, root_path="/cats") as client:
        assert client.get("/cats/health").status_code == 200
        assert client.get("/cats/v2").status_code == 401


def test_the_document_says_which_addresses_need_a_key(
    locked: TestClient, client: TestClient
) -> None:
    document = locked.get("/openapi.json").json()
    assert document["components"]["securitySchemes"].keys() == {"bearer", "key"}
    predict = document["paths"]["/predict"]["post"]
    assert predict["security"] == [{"bearer": []}, {"key": []}]  # either will do
    assert "unauthorized" in predict["responses"]["401"]["description"]
    assert "security" not in document["paths"]["/health"]["get"]
    assert "security" not in document["paths"]["/metrics"]["get"]
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


# --- web pages of other origins -----------------------------------------------------------------

PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def test_other_origins_are_let_in_only_where_the_operator_says_so(client: TestClient) -> None:
    response = client.get("/health", headers={"Origin": PAGE})
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert client.options("/predict", headers=PREFLIGHT).status_code == 405


def test_an_origin_that_is_named_may_call_with_a_key_and_read_the_answer(
    weights_path: Path, cat_picture: bytes
) -> None:
    with service(weights_path, api_keys=KEYS, cors_origins=(PAGE,)) as client:
        asked = client.options("/predict", headers=PREFLIGHT)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        assert "POST" in asked.headers["access-control-allow-methods"]
        allowed = asked.headers["access-control-allow-headers"].lower()
        assert {"authorization", "x-api-key"} <= {name.strip() for name in allowed.split(",")}

        headers = {"Origin": PAGE, "X-API-Key": KEYS[0]}
        for response in (
            client.post("/predict", content=cat_picture, headers=headers),
            client.post("/predict", content=cat_picture, headers={"Origin": PAGE}),
        ):
            assert response.headers["access-control-allow-origin"] == PAGE
            exposed = response.headers["access-control-expose-headers"]
            assert "X-Request-ID" in exposed
            assert "Retry-After" in exposed
            assert "access-control-allow-credentials" not in response.headers
        assert response.status_code == 401  # and the page can read why


def test_an_origin_that_is_not_named_may_not(weights_path: Path) -> None:
    other = {**PREFLIGHT, "Origin": "https://example.org.example.net"}
    with service(weights_path, cors_origins=(PAGE,)) as client:
        refused = client.options("/predict", headers=other)
        assert refused.status_code == 400
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["content-length"]) == len(refused.content)
        assert refused.json()["type"] == "/problems#origin-not-allowed"
        assert other["Origin"] in refused.json()["detail"]
        assert refused.json()["request_id"] == refused.headers["x-request-id"]
        assert "access-control-allow-origin" not in refused.headers
        answer = client.get("/health", headers=other)
        assert "access-control-allow-origin" not in answer.headers


# --- headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health"), ("GET", "/nope"), ("POST", "/predict"), ("GET", "/problems")],
)
def test_every_answer_tells_browsers_to_be_careful(
    client: TestClient, method: str, path: str
) -> None:
    headers = client.request(method, path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


def test_pages_keep_the_policies_that_they_state(client: TestClient) -> None:
    docs = client.get("/docs").headers
    assert docs.get_list("content-security-policy") == [docs["content-security-policy"]]
    assert "script-src 'self'" in docs["content-security-policy"]
    assert client.get("/docs/start.js").headers["cache-control"] == "max-age=3600"
