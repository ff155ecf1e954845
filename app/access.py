"""Who may use the service: API keys, and the origins whose web pages may call it."""

import hmac
from collections.abc import Iterator, Sequence
from hashlib import sha256
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app import errors
from app.errors import Problem
from app.middleware import respond

HEADER = "X-API-Key"
# What is asked for without a key: by load balancers, and by people who have still to type theirs
# in. None of it tells or does anything that the public source does not.
OPEN = ("/", "/docs", "/openapi.json", errors.PAGE, "/health")
OPEN_FOLDERS = ("/docs/", "/static/", "/health/", "/v2/health/")
METRICS = "/metrics"
TENSORS = "Inference-Header-Content-Length"  # of /v2, where tensors come as bytes
PREFLIGHT_SECONDS = 600
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": HEADER},
}


class KeysRequired:
    """Refuses requests without one of the keys, before their bodies are read.

    metrics_open: whether /metrics is read without a key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], *, metrics_open: bool) -> None:
        self.app, self.metrics_open = app, metrics_open
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope) or self._is_allowed(scope):
            await self.app(scope, receive, send)
            return
        brought = any(_brought(scope))
        what = (
            "The key in the request is not one of this service's"
            if brought
            else ("This service needs a key, and the request brings none")
        )
        detail = f"{what}. Send {HEADER}: KEY, or Authorization: Bearer KEY."
        refusal = Problem("unauthorized", detail, {"WWW-Authenticate": "Bearer"})
        await respond(refusal)(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = own_path(scope)
        return is_open(path) or (path == METRICS and self.metrics_open)

    def _is_allowed(self, scope: Scope) -> bool:
        # Hashed, keys are of one length; every key is compared, whichever fits.
        fits = [
            hmac.compare_digest(_digest(brought), digest)
            for brought in _brought(scope)
            for digest in self._digests
        ]
        return any(fits)


def own_path(scope: Scope) -> str:
    """The address that a request asks for, without what a proxy has put before it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def is_open(path: str) -> bool:
    """Whether an address answers without a key."""
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _brought(scope: Scope) -> Iterator[bytes]:
    """The keys that a request brings: two at most."""
    headers = Headers(scope=scope)
    if key := headers.get(HEADER):
        yield key.encode("latin-1")
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        yield key.strip().encode("latin-1")


def document(openapi: dict[str, Any], *, metrics_open: bool) -> None:
    """Say in an OpenAPI document which addresses need a key."""
    openapi["components"]["securitySchemes"] = SCHEMES
    (refusal,) = errors.responses("unauthorized").values()
    for path, operations in openapi["paths"].items():
        if is_open(path) or (path == METRICS and metrics_open):
            continue
        for operation in operations.values():
            operation["security"] = [{name: []} for name in SCHEMES]
            operation["responses"].setdefault("401", refusal)


class Cors(CORSMiddleware):
    """Lets web pages of these origins call the service and read its answers; "*" is all."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Authorization", "Content-Type", HEADER, "X-Request-ID", TENSORS],
            expose_headers=["Retry-After", "X-Request-ID", TENSORS],
            max_age=PREFLIGHT_SECONDS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Where no origin is allowed, a preflight is refused and nothing else changes."""
        if self.allow_origins or (scope["type"] == "http" and scope["method"] == "OPTIONS"):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks what a page may do; a refusal is a problem."""
        response = super().preflight_response(request_headers)
        if response.status_code == HTTPStatus.OK:
            return response
        refused = bytes(response.body).decode().removeprefix("Disallowed CORS ")
        detail = (
            f"A page of {request_headers['origin'][:100]} may not send what it asks for,"
            f" because of its {refused}. The operator sets the origins with CAT_CORS_ORIGINS."
        )
        kept = {name: text for name, text in response.headers.items() if name[:8] != "content-"}
        return respond(Problem("origin-not-allowed", detail, kept))
