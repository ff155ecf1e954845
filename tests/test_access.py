"""API keys, other origins' web pages, and the headers that browsers heed."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.conftest import Service, SharedWorkers

KEYS = ("first-key", "second-key")
PAGE = "https://example.org"


@pytest.fixture(scope="module")
def locked(service: Service) -> Iterator[TestClient]:
    with service(api_keys=KEYS[:1], api_keys_file=KEYS[1:]) as client:
        yield client


def test_every_key_opens_in_either_header(locked: TestClient, cat_picture: bytes) -> None:
    for headers in (
        {"x-api-key": KEYS[0]},
        {"Authorization": f"bearer  {KEYS[1]}"},
        {"Authorization": "Basic Zm9vOmJhcg==", "X-API-Key": KEYS[1]},  # the first is a proxy's own
    ):
        response = locked.post("/predict", content=cat_picture, headers=headers)
        assert response.status_code == 200, headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": KEYS[0][:-1]},
        {"X-API-Key": KEYS[0] + "x"},
        {"X-API-Key": ",".join(KEYS)},
        {"X-API-Key": b"\xff\xfe"},
        {"Authorization": f"Basic {KEYS[0]}"},
        {"Authorization": "Bearer "},
        {"Content-Length": "1000000000"},  # nobody looks at the body of a request without a key
        {"Content-Encoding": "gzip"},
    ],
    ids=range(10),
)
def test_anything_else_is_refused_with_what_to_do(
    locked: TestClient, headers: dict[str, str]
) -> None:
    response = locked.post("/predict", content=iter([b"x"]), headers=headers)
    problem = response.json()
    assert (response.status_code, problem["type"]) == (401, "/problems#unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "X-API-Key: KEY, or Authorization: Bearer KEY" in problem["detail"]
    assert not any(key in response.text for key in KEYS)


def test_every_address_is_closed_that_is_not_named_open(
    locked: TestClient, service: Service, workers: SharedWorkers
) -> None:
    for path in ("/predict", "/explain", "/v2/models/cat/infer"):
        assert locked.post(path, content=b"x").status_code == 401
        assert locked.options(path).status_code == 401
    for path in ("/model", "/v2", "/v2/models/cat/ready", "/nope", "/healthy", "//health/live"):
        assert locked.get(path).status_code == locked.head(path).status_code == 401, path
    health = ("/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
    for path in (*health, "/", "/docs", "/docs/start.js", "/openapi.json", "/problems", "/metrics"):
        assert locked.get(path).status_code == locked.head(path).status_code == 200, path
    with service(api_keys=KEYS, metrics="key") as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"X-API-Key": KEYS[0]}).status_code == 200
    with service(metrics="off") as client:
        assert client.get("/metrics").status_code == 404
    app = create_app(Settings(api_keys=KEYS), workers)
    with TestClient(app, root_path="/cats") as behind_a_proxy:
        assert behind_a_proxy.get("/cats/health").status_code == 200
        assert behind_a_proxy.get("/cats/v2").status_code == 401


PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


@pytest.mark.parametrize("origins", [(), ("https://example.org.example.net",)])
def test_a_page_of_an_origin_that_is_not_named_may_not_call(
    service: Service, origins: tuple[str, ...]
) -> None:
    with service(cors_origins=origins) as client:
        refused = client.options("/predict", headers=PREFLIGHT)
        answer = client.get("/health", headers={"Origin": PAGE})
    problem = refused.json()
    assert (refused.status_code, problem["type"]) == (400, "/problems#origin-not-allowed")
    assert PAGE in problem["detail"]
    assert "CAT_CORS_ORIGINS" in problem["detail"]
    for response in (refused, answer):
        assert "access-control-allow-origin" not in response.headers


def test_an_origin_that_is_named_may_call_with_a_key_and_read_the_answer(
    service: Service, cat_picture: bytes
) -> None:
    with service(cors_origins=("*",)) as client:
        answer = client.get("/health", headers={"Origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == "*"
    with service(api_keys=KEYS, cors_origins=(PAGE,)) as client:
        asked = client.options("/predict", headers=PREFLIGHT)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        assert "POST" in asked.headers["access-control-allow-methods"]
        allowed = asked.headers["access-control-allow-headers"].lower()
        assert {"authorization", "x-api-key"} <= {name.strip() for name in allowed.split(",")}
        too_much = PREFLIGHT | {"Access-Control-Request-Method": "DELETE"}
        detail = client.options("/predict", headers=too_much).json()["detail"]
        assert "send DELETE with" in detail
        assert "Allowed: GET, HEAD, POST with accept, " in detail
        assert "CAT_CORS_ORIGINS" not in detail
        for key, status in ((KEYS[0], 200), ("", 401)):  # and the page can read why
            headers = {"Origin": PAGE, "X-API-Key": key}
            response = client.post("/predict", content=cat_picture, headers=headers)
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == PAGE
            exposed = response.headers["access-control-expose-headers"].split(", ")
            assert {"X-Request-ID", "Retry-After"} <= set(exposed)
            assert "access-control-allow-credentials" not in response.headers


def test_every_answer_tells_browsers_to_be_careful_and_pages_keep_their_own_policies(
    client: TestClient,
) -> None:
    for method, path in (("GET", "/health"), ("GET", "/nope"), ("POST", "/predict")):
        headers = client.request(method, path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
    (policy,) = client.get("/docs").headers.get_list("content-security-policy")
    assert "script-src 'self'" in policy
