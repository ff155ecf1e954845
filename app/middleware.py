"""What surrounds every request: small ASGI wrappers round the application, and its refusals."""

import asyncio
import hmac
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import HEADER_LENGTH, MODEL, errors
from app.errors import FAILED, Problem
from app.observation import LONGEST, RequestInfo
from model.workers import CannotStart

KEY_HEADER = "X-API-Key"
# What is asked for without a key: by load balancers, and by people who have still to type theirs
# in. None of it tells or does anything that the public source does not.
OPEN = ("/", "*", "/docs", "/openapi.json", errors.PAGE, "/health")
OPEN_FOLDERS = ("/docs/", "/static/", "/health/", "/v2/health/")
METRICS = "/metrics"
PREFLIGHT_SECONDS = 600
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
}
# How much of an upload is still taken in after it was answered, and for how long.
DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 5.0


class ProblemResponse(Response):
    """A problem. Clients of /v2 read only plain JSON, and of it the sentence in `error`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(b"", problem.type.status, problem.headers, errors.MEDIA_TYPE)
        self.problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts: RequestInfo = scope["facts"]
        facts.problem = self.problem.type.slug
        content = {**self.problem.content(), "request_id": facts.request_id}
        if f"{scope['path']}/".startswith("/v2/"):
            content = {"error": content["detail"], **content}
            self.headers["Content-Type"] = "application/json"
        self.body = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        self.headers["Content-Length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def install_handlers(app: FastAPI) -> None:
    """Make every error of the application a problem."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return ProblemResponse(error)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(_: Request, error: RequestValidationError) -> Response:
        # Only where and why: what was sent stays out of the answer.
        found = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return ProblemResponse(Problem("invalid-request", "; ".join(found)))

    @app.exception_handler(HTTPException)
    async def http_exception(request: Request, error: HTTPException) -> Response:
        # Of all that the framework raises, only these two come up here.
        path = request.scope["path"][:LONGEST]
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and error.headers:
            allowed = error.headers["Allow"]
            detail = f"{path} answers to {allowed}, not to {request.method[:20]}."
            return ProblemResponse(Problem("method-not-allowed", detail, error.headers))
        detail = f"There is nothing at {path}. Send a picture to POST /predict, or see /docs."
        model = path.partition("/v2/models/")[2].partition("/")[0]
        if model not in ("", MODEL):
            detail = f"There is no model {model!r}; there is {MODEL}."
        return ProblemResponse(Problem("not-found", detail))

    @app.exception_handler(ClientDisconnect)
    async def client_gone(_: Request, __: ClientDisconnect) -> Response:
        # Nobody reads this; without it the log would show a client's leaving as our error.
        return Response(status_code=HTTPStatus.BAD_REQUEST)


# --- who may use the service --------------------------------------------------------------------


class KeysRequired:
    """Refuses requests without one of the keys, before their bodies are read.

    metrics_open: whether /metrics is read without a key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], *, metrics_open: bool) -> None:
        self.app, self.metrics_open = app, metrics_open
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A proxy's own path before ours does not count.
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        brought = [] if scope["type"] != "http" else [*_keys_sent(scope)]
        # Hashed, keys are of one length; every key is compared, whichever fits.
        fits = [
            hmac.compare_digest(_digest(key), each) for key in brought for each in self._digests
        ]
        if scope["type"] != "http" or is_open(path, metrics_open=self.metrics_open) or any(fits):
            await self.app(scope, receive, send)
            return
        what = "This service needs a key, and the request has none"
        if brought:
            what = "The key in the request is not valid"
        detail = f"{what}. Send {KEY_HEADER}: KEY, or Authorization: Bearer KEY."
        refusal = Problem("unauthorized", detail, {"WWW-Authenticate": "Bearer"})
        await ProblemResponse(refusal)(scope, receive, send)


def is_open(path: str, *, metrics_open: bool) -> bool:
    """Whether an address answers without a key."""
    return path in OPEN or path.startswith(OPEN_FOLDERS) or (path == METRICS and metrics_open)


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _keys_sent(scope: Scope) -> Iterator[bytes]:
    """The keys that a request brings: two at most."""
    headers = Headers(scope=scope)
    if key := headers.get(KEY_HEADER):
        yield key.encode("latin-1")
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        yield key.strip().encode("latin-1")


def document_keys(openapi: dict[str, Any], *, metrics_open: bool) -> None:
    """Say in an OpenAPI document which addresses need a key."""
    openapi["components"]["securitySchemes"] = SCHEMES
    (refusal,) = errors.responses("unauthorized").values()
    for path, operations in openapi["paths"].items():
        if is_open(path, metrics_open=metrics_open):
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
            allow_headers=[
                *("Authorization", "Content-Type", KEY_HEADER, "X-Request-ID", HEADER_LENGTH)
            ],
            expose_headers=["Retry-After", "X-Request-ID", HEADER_LENGTH],
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
            f"A page of {request_headers['origin'][:100]} may not send this request: its "
            f"{refused} is not allowed. The operator sets allowed origins with CAT_CORS_ORIGINS."
        )
        kept = {name: text for name, text in response.headers.items() if name[:8] != "content-"}
        return ProblemResponse(Problem("origin-not-allowed", detail, kept))


# --- answers that the application does not give -------------------------------------------------


class HeadAndOptions:
    """Answers HEAD wherever GET is answered, and OPTIONS for the service as a whole."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope.get("method")
        if method == "OPTIONS" and scope["path"] == "*":  # RFC 9110, section 9.3.7
            text = (
                "This service accepts GET, HEAD, POST and DELETE. Send a picture to POST "
                "/predict.\n"
            )
            whole = PlainTextResponse(text, headers={"Allow": "GET, HEAD, POST, DELETE"})
            await whole(scope, receive, send)
        elif method == "HEAD":
            as_get = {**scope, "method": "GET"}  # a copy: the server still has to know
            await self.app(as_get, receive, send)  # the server leaves out the body
            scope["route"] = as_get.get("route")  # for the log and the metrics
        else:
            await self.app(scope, receive, send)


class PlainStartupFailure:
    """Shows why the workers cannot start as that one sentence, without a traceback before it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_plain(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                why = message["message"].rpartition(f"{CannotStart.__name__}: ")[2]
                message = {**message, "message": why.strip()}
            await send(message)

        await self.app(scope, receive, send_plain if scope["type"] == "lifespan" else send)


class FailedRequests:
    """Answers a request that nothing inside answers any more: one that failed, or that a stopping
    server gives up.

    uvicorn cancels what is not done when its time to stop is over: slow uploads, mostly. Failures
    are answered here, below the other wrappers, so that the answer gets what they add; then the
    exception goes on, to the server's log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = scope["type"] != "http"

        async def note_answer(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, receive, note_answer)
        except asyncio.CancelledError:
            if answered:
                raise
            detail = "The service stopped before it finished the request. Send it again later."
            await ProblemResponse(Problem("stopping", detail, {"Retry-After": "5"}))(
                scope, receive, send
            )
        except Exception:
            if not answered:
                await ProblemResponse(Problem("internal-error", FAILED))(scope, receive, send)
            raise


class DrainUnreadBody:
    """Lets a client read an answer that comes before its upload is through, as a refusal does.

    A server that answers, stops reading and closes makes the client's system reset the
    connection, and the answer may be lost with it. So the answer goes out at once and says that
    the connection closes, then what is still arriving is read and dropped, within bounds, and
    only then the connection is closed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        unread = True

        async def note_end() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def send_then_drain(message: Message) -> None:
            if message["type"] == "http.response.start" and unread:
                MutableHeaders(scope=message)["Connection"] = "close"
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not (last and unread):
                await send(message)
                return
            await send({**message, "more_body": True})
            left = DRAIN_BYTES
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    while unread and left > 0:
                        left -= len((await note_end()).get("body", b""))
            await send({"type": "http.response.body"})

        await self.app(scope, note_end, send_then_drain)


def _has_body(scope: Scope) -> bool:
    return any(
        (name == b"content-length" and value != b"0") or name == b"transfer-encoding"
        for name, value in scope["headers"]
    )
